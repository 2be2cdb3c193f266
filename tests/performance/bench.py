"""Measure this project against lm_eval 0.4.13 and other peers, and write docs/performance.md.

    python -m tests.performance.bench [--only WORK] [--items N] [--write docs/performance.md]

Each side runs in a process of its own, one after the other. Results are kept as JSON, one file a work, and
the page is written from all of them. With `--items` every work is shrunk for a try, and no page is written.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.performance import report
from tests.performance.comparisons import measure
from tests.performance.sides import HERE, ROOT, Bench, ProcessFailedError, say
from tests.performance.works import WORKS, HarnessWork, OtherWork

PINNED = HERE / "harness_requests.json"
FLAMES = {"mmlu": 10, "gsm8k": 8}
"""The works whose flame graphs are recorded, and with how many items."""


def flame_graph(bench: Bench, work: HarnessWork, path: Path) -> None:
    """Record where our process spends its time, as an SVG that names no folder of this machine."""
    mirror = bench.mirror(f"{work.slug}-flame", work.work.rows, work.items)
    raw = (bench.folder / f"{work.slug}.svg").resolve()
    spy = [str(Path(sys.executable).parent / "py-spy"), "record", "--nolineno", "--rate", "50"]
    bench.ours(
        f"{work.slug}-flame",
        "our_side",
        {**bench.engine, "mirror": str(mirror), "slug": work.slug},
        prefix=[*spy, "--format", "flamegraph", "--output", str(raw), "--"],
    )
    picture = raw.read_text(encoding="utf-8")
    for place in (sys.prefix, sys.base_prefix, str(ROOT)):
        picture = picture.replace(f"{place}/", "")
    title = f"{work.title} ({work.items * len(work.work.tasks)} items)"
    picture = re.sub(r'(<text id="title"[^>]*>)[^<]*', rf"\g<1>{title}", picture)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(picture, encoding="utf-8")


def pin(bench: Bench) -> None:
    """Keep digests of what lm_eval asks about the first two rows of each work, for a test without lm_eval."""
    pinned = {}
    for work in WORKS:
        if isinstance(work, HarnessWork):
            few = work.of(2)
            mirror = bench.mirror(f"{work.slug}-pin", few.work.rows, few.items)
            request = {
                **bench.engine,
                "work": few.for_harness(str(mirror)),
                "batch_sizes": [1],
                "mode": "ask",
            }
            pinned[work.slug] = digests(bench.theirs(f"{work.slug}-pin", request)["asked"])
    PINNED.write_text(json.dumps(pinned, indent=1) + "\n", encoding="utf-8")


def digests(items: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    """Of each item, SHA-256 over the texts and limits of its requests, the first 16 digits."""
    texts = [json.dumps([texts_of(request) for request in requests]) for requests in items]
    return [sha256(text.encode()).hexdigest()[:16] for text in texts]


def texts_of(request: Mapping[str, Any]) -> list[Any]:
    """What a recorded request asks."""
    names: tuple[str, ...] = ("context", "continuation", "text")
    if request["type"] == "generate_until":
        names = ("context", "until", "max_new_tokens")  # its text is the answer
    return [request[name] for name in names if name in request]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="measure this project against lm_eval and other peers")
    parser.add_argument("--only", default="", help=f"one work: {', '.join(work.slug for work in WORKS)}")
    parser.add_argument("--items", type=int, default=0, help="at most so many items a work, for a try")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each side; the fastest counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--harness-python", type=Path, default=Path(".venv-lm-eval/bin/python"))
    parser.add_argument("--write", type=Path, help="write the page, and flame graphs into images/ beside it")
    parser.add_argument("--page-only", action="store_true", help="write the page from what was measured")
    parser.add_argument("--flames-only", action="store_true", help="record the flame graphs only")
    parser.add_argument("--pin", action="store_true", help=f"only write {PINNED.name}")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    works = [work for work in WORKS if options.only in ("", work.slug)]
    if not works:
        raise SystemExit(f"there is no work {options.only!r}: {', '.join(work.slug for work in WORKS)}")
    kept = ROOT / "build" / ("bench-try" if options.items else "bench")
    kept.mkdir(parents=True, exist_ok=True)
    bench = Bench(
        kept, options.models, options.data, options.harness_python, options.threads, options.repeats
    )
    if options.pin:
        pin(bench)
        return 0
    failed = []
    if not (options.page_only or options.flames_only):
        for work in works:
            try:
                _measure(bench, work.of(options.items) if options.items else work, kept)
            except ProcessFailedError as error:  # the next work gets its turn
                say(str(error))
                failed.append(work.slug)
    if options.write and not options.items and not options.page_only:
        images = options.write.parent / "images"
        for work in works:
            if work.slug in FLAMES and work.slug not in failed and isinstance(work, HarnessWork):
                say(f"{work.slug}: flame graph")
                flame_graph(bench, work.of(FLAMES[work.slug]), images / f"flame-{work.slug}.svg")
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(kept.glob("*.json"))]
    print(report.table(results))
    if options.write and not options.items:
        options.write.write_text(report.document(results), encoding="utf-8")
        print(f"written to {options.write}")
    if failed:
        raise SystemExit(f"not measured: {', '.join(failed)}")
    return 0 if all(result.get("scores", {}).get("equal", True) for result in results) else 1


def _measure(bench: Bench, work: HarnessWork | OtherWork, kept: Path) -> None:
    started = time.monotonic()
    say(f"{work.slug}: {work.title}")
    path = kept / f"{work.slug}.json"
    path.unlink(missing_ok=True)  # what an earlier code measured must not stand for this one
    result = {**measure(bench, work), "seconds": time.monotonic() - started}
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    say(f"{work.slug}: {result['seconds']:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
