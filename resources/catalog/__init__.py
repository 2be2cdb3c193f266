"""The DuckDB catalogue of a results store: `Catalog` refreshes it and opens it (docs/results.md)."""

from resources.catalog.catalogue import Catalog, Refresh
from resources.catalog.copies import CATALOG
from resources.catalog.schema import SCHEMA_VERSION

__all__ = ["CATALOG", "SCHEMA_VERSION", "Catalog", "Refresh"]
