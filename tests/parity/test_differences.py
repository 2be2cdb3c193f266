"""The comparison itself: whatever differs between the two sides must be found."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest

from tests.parity.differences import TextException, compare

METRICS = {"acc": ("acc", 1.0)}


def scored() -> dict[str, Any]:
    """What both sides record of one multiple-choice item."""
    requests = [
        {
            "type": "loglikelihood",
            "context": "Question: why?\nAnswer:",
            "continuation": choice,
            "context_ids": [1, 2, 3],
            "continuation_ids": [4, 5],
            "loglikelihood": loglikelihood,
            "is_greedy": False,
        }
        for choice, loglikelihood in ((" because", -3.0), (" never", -5.0))
    ]
    return record(requests, {"acc": 1.0})


def generated() -> dict[str, Any]:
    """What both sides record of one generated answer."""
    request = {
        "type": "generate_until",
        "context": "Question: why?\nAnswer:",
        "context_ids": [1, 2, 3],
        "until": ["\n"],
        "max_new_tokens": 16,
        "text": " because",
    }
    return record([request], {"acc": 1.0})


def rolled() -> dict[str, Any]:
    """What both sides record of one long text."""
    request = {
        "type": "loglikelihood_rolling",
        "text": "a page",
        "ids": [1, 2, 3],
        "windows": [[1, 2], [2, 1]],
        "loglikelihood": -9.0,
    }
    return record([request], {"acc": 1.0})


def record(requests: list[dict[str, Any]], metrics: dict[str, float]) -> dict[str, Any]:
    aggregates = {name: {"value": value, "stderr": None, "n": 1} for name, value in metrics.items()}
    return {"items": [{"requests": requests, "metrics": metrics, "error": None}], "aggregates": aggregates}


@pytest.mark.parametrize("side", [scored, generated, rolled])
def test_equal_records_agree(side: Callable[[], dict[str, Any]]) -> None:
    found = compare("work", side(), side(), METRICS)

    assert found.agrees
    assert (
        found.requests == found.prompts_equal == found.token_ids_equal == len(side()["items"][0]["requests"])
    )


@pytest.mark.parametrize(
    ("side", "field", "value"),
    [
        (scored, "context", "Question: why? \nAnswer:"),
        (scored, "continuation", "because"),
        (scored, "context_ids", [1, 2]),
        (scored, "continuation_ids", [5, 4]),
        (scored, "loglikelihood", -3.001),
        (scored, "loglikelihood", math.nan),
        (scored, "is_greedy", True),
        (generated, "context", "Question: why?\n\nAnswer:"),
        (generated, "context_ids", [0, 1, 2, 3]),
        (generated, "until", ["\n", "Q:"]),
        (generated, "max_new_tokens", 17),
        (generated, "text", " because of it"),
        (rolled, "text", "a  page"),
        (rolled, "windows", [[1, 2], [1, 1]]),
        (rolled, "ids", [1, 2, 4]),
        (rolled, "loglikelihood", -9.1),
    ],
)
def test_a_request_that_differs_is_found(side: Callable[[], dict[str, Any]], field: str, value: Any) -> None:
    """Otherwise the table in docs/parity.md would claim an agreement that nobody looked for."""
    ours = side()
    ours["items"][0]["requests"][0][field] = value

    assert not compare("work", ours, side(), METRICS).agrees


def test_a_difference_within_rounding_agrees_and_is_shown() -> None:
    ours = scored()
    ours["items"][0]["requests"][0]["loglikelihood"] = -3.0001

    found = compare("work", ours, scored(), METRICS)

    assert found.agrees
    assert found.largest_difference == pytest.approx(5e-5)


def test_a_metric_that_differs_is_found_in_the_item_and_in_the_whole() -> None:
    for change in ("item", "whole"):
        ours = scored()
        if change == "item":
            ours["items"][0]["metrics"]["acc"] = 0.0
        else:
            ours["aggregates"]["acc"]["value"] = 0.0

        assert not compare("work", ours, scored(), METRICS).agrees, change


def test_a_metric_is_compared_in_the_harness_s_unit() -> None:
    theirs = scored()
    theirs["items"][0]["metrics"]["acc"] = theirs["aggregates"]["acc"]["value"] = 100.0

    assert compare("work", scored(), theirs, {"acc": ("acc", 100.0)}).agrees


def test_missing_items_and_requests_are_found() -> None:
    fewer_requests = scored()
    del fewer_requests["items"][0]["requests"][1]
    fewer_items = scored()
    fewer_items["items"] = fewer_items["items"] * 2

    assert not compare("work", fewer_requests, scored(), METRICS).agrees
    assert not compare("work", fewer_items, scored(), METRICS).agrees


def test_requests_beyond_the_harness_s_are_allowed_only_where_that_is_said() -> None:
    ours = scored()
    ours["items"][0]["requests"].append({**ours["items"][0]["requests"][0], "continuation": " maybe"})

    assert not compare("work", ours, scored(), METRICS).agrees
    assert compare("work", ours, scored(), METRICS, asked_more=True).agrees


def test_an_item_that_could_not_be_scored_is_found() -> None:
    ours = scored()
    ours["items"][0]["error"] = "the model's log-likelihood is nan"

    assert not compare("work", ours, scored(), METRICS).agrees


def test_only_an_excused_text_may_differ_and_its_scores_are_not_compared() -> None:
    ours = generated()
    ours["items"][0]["requests"][0]["text"] = " for"
    ours["items"][0]["metrics"]["acc"] = ours["aggregates"]["acc"]["value"] = 0.0

    found = compare("work", ours, copy.deepcopy(generated()), METRICS)

    assert found.exceptions == [TextException(0, "Question: why?\nAnswer:", " for", " because")]
    assert not found.agrees
    found.exceptions[0].excused = True
    assert found.agrees
