"""The page says what was measured, also where it is bad news."""

import re
from typing import Any

import pytest

from tests.performance import report
from tests.performance.machine import describe
from tests.performance.works import WORKS, HarnessWork


def figures(wall: float, peak: float = 1e9) -> dict[str, float]:
    seconds = {"evaluation": wall, "process": wall + 5, "load": 2.0, "import": 3.0}
    measured = {f"{phase}_wall": value for phase, value in seconds.items()}
    measured |= {f"{phase}_cpu": 2 * value for phase, value in seconds.items()}
    return measured | {"peak_bytes": peak, "engine_wall": wall, "score_wall": 0.1, "runs": 1}


def result_of(work: Any) -> dict[str, Any]:
    result: dict[str, Any] = {
        "slug": work.slug,
        "title": work.title,
        "kind": "harness" if isinstance(work, HarnessWork) else work.kind,
        "goal": work.goal,
        "items": 10,
        "threads": 2,
        "seconds": 60.0,
        "busy": 0.03,
        "machine": {"processor": "a processor", "torch": "2.13.0"},
        "scores": {"equal": True, "notes": []},
    }
    match result["kind"]:
        case "harness":
            result |= {
                "requests": 40,
                "sides": {"lm_eval": figures(100), "ours": figures(10)},
                "search": {
                    "tried": [
                        {"batch": 1, "items": 8, "seconds_an_item": 2.0},
                        {"batch": 8, "items": 8, "seconds_an_item": 1.0},
                        {"batch": 16, "skipped": "would need 99 GB"},
                    ],
                    "best": 8,
                },
                "floor": {
                    "whole": {"tokens": 1000, "headed": 1000, "flops": 4e12},
                    "least": {"tokens": 500, "headed": 40, "flops": 1e12},
                },
                "versions": {"lm_eval": {"lm_eval": "0.4.13"}, "ours": {}},
            }
            if work.memory_peer:
                result["sides"]["lm_eval_1"] = figures(120, peak=2e9)
        case "article":
            result["sides"] = {"script": figures(60), "ours": figures(10), "script_stop": figures(40)}
        case "pipeline":
            result["sides"] = {"engine": figures(50), "pipeline": figures(52)}
        case "row":
            result["sides"] = {"one_run": figures(50), "four_runs": figures(80)}
        case "planner":
            result |= {"planned": {"10000": 0.1, "1000000": 9.0}, "peak_bytes": 2e9}
    return result


@pytest.fixture
def results() -> list[dict[str, Any]]:
    return [result_of(work) for work in WORKS]


def row_of(page: str, title: str) -> str:
    return next(line for line in page.splitlines() if line.startswith(f"| {title} |"))


def test_the_page_has_every_work_its_ratio_and_the_batch_sizes_tried(results: list[dict[str, Any]]) -> None:
    page = report.document(results)
    row = row_of(page, "GSM8K, 5-shot, generation")
    assert "**10.00x**" in row
    assert "4x reached" in row
    assert "| 4.00x | 250% | yes |" in row
    assert "1: 2.00 (8 items); 8: 1.00 (8 items); 16: not tried (would need 99 GB) | 8 |" in page
    assert "**+4.0%** (goal: under 10%, reached)" in page
    assert "1,000,000 requests in 9.00 s" in page
    assert "Every goal is reached, and all scores are equal without exception." in page
    assert "script with a stop string" in page
    assert "others used at most 3% of the processor" in page
    assert not re.search(r"\{\w+\}", page), "a place in page.md that nothing was set into"


def test_a_missed_goal_an_unequal_score_and_a_missing_work_are_named(results: list[dict[str, Any]]) -> None:
    """Fails when the page could hide that something became slow or wrong."""
    by_slug = {result["slug"]: result for result in results}
    by_slug["mmlu"]["sides"]["ours"] = figures(50)
    by_slug["squad"]["scores"] = {
        "equal": True,
        "generated": 10,
        "texts_equal": 9,
        "notes": ["exception: item 3: a tie"],
    }
    by_slug["hellaswag"]["scores"] = {"equal": False, "notes": ["DIFFERENCE: item 1: other prompt"]}
    by_slug["rolling"]["sides"]["ours"] = figures(10, peak=3e9)
    page = report.document([result for result in results if result["slug"] != "gsm8k"])
    assert "- MMLU, 5-shot, three subjects: 2.00 where the goal is 5.5." in page
    assert "5.5x NOT reached" in row_of(page, "MMLU, 5-shot, three subjects")
    assert "yes, 1 of 10 texts excused" in row_of(page, "SQuAD, 0-shot, generation")
    assert "exception: item 3: a tie" in page
    assert "| NO |" in row_of(page, "HellaSwag, 0-shot")
    assert "with 3.00 GB against 2.00 GB at batch size 1" in page
    assert "- Not measured: GSM8K, 5-shot, generation." in page


def test_works_measured_on_two_machines_say_which(results: list[dict[str, Any]]) -> None:
    results[0]["machine"] = {"processor": "another processor"}
    page = report.document(results)
    assert "HellaSwag, 0-shot: processor another processor, threads 2." in page


def test_the_machine_is_described_without_its_name_or_a_path() -> None:
    import platform

    described = describe()
    assert described.keys() >= {"processor", "cores", "memory", "python", "torch", "transformers"}
    text = " ".join(described.values())
    assert platform.node() not in text
    assert not re.search(r"(?:^|\s)/\w", text)
