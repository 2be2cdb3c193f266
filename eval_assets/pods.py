"""What a run says of itself so that its pod fits."""

import json

from eval_assets.tracking import TrackedModels
from resources.pods.tags import DTYPE_TAG, TEAM_TAG


def pod_tags(entry: TrackedModels) -> dict[str, str]:
    """What an entry of EVAL_MODELS says of its models' pods, as tags that the launcher reads."""
    limits = {"container_config": {"resources": {"limits": dict(entry.resources)}}}
    tags = {
        TEAM_TAG: entry.team or "",
        DTYPE_TAG: "" if entry.dtype == "auto" else entry.dtype,
        "dagster-k8s/config": json.dumps(limits) if entry.resources else "",
    }
    return {name: value for name, value in tags.items() if value}
