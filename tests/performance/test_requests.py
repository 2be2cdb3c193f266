"""Both sides are asked the same: what lm_eval asked in a try of two items is kept as digests."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from eval_assets.suite import load_suite, normalize
from eval_assets.tasks import task_for
from resources.datasets import read_rows
from resources.engines import GenerationRequest, LoglikelihoodRequest, Request, RollingRequest
from tests.parity.rows import write_mirror
from tests.performance.bench import PINNED, digests, texts_of
from tests.performance.rows import tables_for
from tests.performance.works import WORKS, HarnessWork

HARNESS_WORKS = [work for work in WORKS if isinstance(work, HarnessWork)]


def recorded(request: Request) -> dict[str, Any]:
    """A request in the form in which both sides record theirs."""
    match request:
        case LoglikelihoodRequest(context, continuation):
            return {"type": "loglikelihood", "context": context, "continuation": continuation}
        case RollingRequest(text):
            return {"type": "loglikelihood_rolling", "text": text}
        case GenerationRequest():
            return {
                "type": "generate_until",
                "context": request.prompt,
                "until": list(request.stop),
                "max_new_tokens": request.max_new_tokens,
            }


@pytest.mark.parametrize("work", HARNESS_WORKS, ids=[work.slug for work in HARNESS_WORKS])
def test_every_work_asks_what_the_harness_asks(work: HarnessWork, data: Path, tmp_path: Path) -> None:
    """Fails when a comparison of times would compare two different things."""
    pinned = json.loads(PINNED.read_text(encoding="utf-8"))[work.slug]
    write_mirror(tables_for(work.work.rows, data, 2), tmp_path)
    spec = work.work.adapt(load_suite()[work.work.benchmark])
    task = task_for(spec)
    items = [
        [recorded(request) for request in task.requests(item, None)]
        for item in normalize(spec, partial(read_rows, mirror=tmp_path)).items
    ]
    assert len(pinned) >= 2
    assert digests(items) == pinned, f"ours asks, of the first item: {texts_of(items[0][0])}"


@pytest.mark.parametrize("work", HARNESS_WORKS, ids=[work.slug for work in HARNESS_WORKS])
def test_every_work_has_as_many_items_as_it_says_and_asks_none_of_its_examples(
    work: HarnessWork, data: Path, tmp_path: Path
) -> None:
    write_mirror(tables_for(work.work.rows, data, work.items), tmp_path)
    spec = work.work.adapt(load_suite()[work.work.benchmark])
    items = normalize(spec, partial(read_rows, mirror=tmp_path)).items
    assert len(items) == work.items * len(spec.source.configs)
    assert all(len(item.examples) == spec.fewshot.count for item in items)
    assert not {item.query for item in items} & {e.query for item in items for e in item.examples}
