"""Materializations recorded one partition at a time.

A run over a model's row covers many cells, some of which may fail. A normal return would materialize them
all, with one data version for the whole range; so the assets here record each partition themselves, the
moment it is done, with the tags by which Dagster decides what is stale. Those tag names are Dagster's
own; tests/eval_assets/test_staleness.py holds us to them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    DATA_VERSION_TAG,
    get_input_data_version_tag,
    get_input_event_pointer_tag,
)

from eval_assets.report.naming import address
from resources.settings import Settings


def record_materialization(
    context: dg.AssetExecutionContext | dg.OpExecutionContext,
    asset: str,
    partition: str,
    *,
    data_version: str,
    code_version: str,
    inputs: Mapping[str, Sequence[str]],
    metadata: Mapping[str, Any],
) -> None:
    """Log the materialization of one partition. `inputs` maps each upstream asset to the partitions used.

    Of several the latest event counts: it is stale once any of them changes after that.
    """
    tags = {DATA_VERSION_TAG: data_version, CODE_VERSION_TAG: code_version}
    for upstream, partitions in inputs.items():
        found = latest_materialization(context.instance, upstream, *partitions)
        if found is None:
            continue
        storage_id, upstream_version = found
        key = dg.AssetKey(upstream)
        tags[get_input_data_version_tag(key)] = upstream_version
        tags[get_input_event_pointer_tag(key)] = str(storage_id)
    context.log_event(
        dg.AssetMaterialization(asset_key=asset, partition=partition, metadata=dict(metadata), tags=tags)
    )


def report_link(settings: Settings, page: str) -> dict[str, dg.UrlMetadataValue]:
    """Metadata that leads to a page of the report, where EVAL_REPORT_URL says where people open that.

    The page is there, or new, once the asset `report` has been refreshed.
    """
    if not settings.report_url.startswith(("http://", "https://")):
        return {}
    return {"report": dg.MetadataValue.url(address(settings.report_url, page))}


def latest_materialization(
    instance: dg.DagsterInstance, asset: str, *partitions: str
) -> tuple[int, str] | None:
    """``(storage id, data version)`` of the latest materialization of any of the partitions, or None."""
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=list(partitions)), limit=1
    ).records
    if not records or records[0].asset_materialization is None:
        return None
    tags = records[0].asset_materialization.tags or {}
    return records[0].storage_id, tags.get(DATA_VERSION_TAG, "")
