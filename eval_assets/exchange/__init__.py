"""Results for and from elsewhere: lm-evaluation-harness's files both ways, and tables for any tool."""

from eval_assets.exchange.exporting import Exported, export_harness
from eval_assets.exchange.importing import Imported, ImportedEvaluation, import_harness
from eval_assets.exchange.tables import FORMATS, ExportedTable, export_table

__all__ = [
    "FORMATS",
    "Exported",
    "ExportedTable",
    "Imported",
    "ImportedEvaluation",
    "export_harness",
    "export_table",
    "import_harness",
]
