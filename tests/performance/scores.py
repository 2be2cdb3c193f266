"""Are the answers of both sides equal? Loads the model only where two generated texts differ.

    python -m tests.performance.scores REQUEST.json OUTPUT.json

The request is ``{"model", "threads", "slug", "ours", "theirs"}``, the last two being the sides' outputs.
"""

import json
import sys
from pathlib import Path
from typing import Any

from tests.parity.differences import compare
from tests.parity.report import notes
from tests.performance.works import ENGINE_WORKS


def verdict(request: dict[str, Any]) -> dict[str, Any]:
    """Whether all is equal, what differs, and the texts that are excused, each with its reason."""
    work = ENGINE_WORKS[request["slug"]]
    ours, theirs = (
        json.loads(Path(request[side]).read_text(encoding="utf-8")) for side in ("ours", "theirs")
    )
    found = compare(work.name, ours, theirs, work.metrics)
    if found.exceptions:
        from resources.engines.settings import EngineSettings
        from resources.engines.transformers_engine import TransformersEngine
        from tests.parity.ours import Side, name_exceptions

        path = Path(request["model"])
        settings = EngineSettings(device="cpu", dtype="float32", threads=request["threads"])
        name_exceptions(found, Side(TransformersEngine.load(path, settings), path))
    return {
        "equal": found.agrees,
        "requests": found.requests,
        "generated": found.generated,
        "texts_equal": found.texts_equal,
        "largest_difference": found.largest_difference if found.scored else None,
        "notes": notes({"SmolLM2-135M-Instruct": [found]}),
    }


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(json.dumps(verdict(request)), encoding="utf-8")


if __name__ == "__main__":
    main()
