"""Items as data scripts: chunks that a browser loads, whatever is in them."""

import json
import math
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from eval_assets.report.items import CHUNK_CHARACTERS, CHUNK_ITEMS, Listed, data_files, listed_samples, safe
from resources.records import Output, Sample
from tests.eval_assets.report.stores import choice_sample, text_sample


def row(sample: Sample) -> dict[str, Any]:
    """A sample as the catalogue's view has it."""
    found = sample.as_row()
    found["outputs"] = [{**output, "scores": dict(output["scores"])} for output in found["outputs"]]
    return {**found, "scores": dict(found["scores"])}


def read(files: list[tuple[str, bytes]]) -> list[Any]:
    """What each script hands over; the list is the last."""
    found = []
    for path, content in files:
        match = re.fullmatch(r'evalReport\("([^"]+)", (".*")\);\n', content.decode(), re.DOTALL)
        assert match is not None
        assert path == f"folder/{match[1]}"
        found.append(json.loads(json.loads(match[2])))
    return found


def test_chunks_hold_every_item_once_and_in_order() -> None:
    rows = [row(choice_sample(i, True, prompt="x" * (i * 50))) for i in range(450)]
    *chunks, listed = read(list(data_files("folder", listed_samples(rows, "acc", 50_000))))
    assert listed["sizes"] == [len(chunk) for chunk in chunks]
    prompts = [item.get("prompt") for chunk in chunks for item in chunk]
    assert prompts == [one["prompt"] for one in rows]
    assert max(listed["sizes"]) <= CHUNK_ITEMS
    assert max(len(json.dumps(chunk)) for chunk in chunks) < 2 * CHUNK_CHARACTERS
    assert listed["columns"]["index"] == list(range(450))


def test_a_text_too_large_for_a_chunk_has_one_of_its_own() -> None:
    rows = [row(text_sample(i, "y" * (CHUNK_CHARACTERS if i == 1 else 5), 0.5)) for i in range(3)]
    listed = listed_samples(rows, "f1", 10 * CHUNK_CHARACTERS)
    assert read(list(data_files("folder", listed)))[-1]["sizes"] == [1, 1, 1]


def test_numbers_that_json_lacks_are_none_and_flags_say_what_happened() -> None:
    rows = [
        row(choice_sample(0, True, scores={"acc": math.nan}, loglikelihoods=[-math.inf, -1.0, -2.0, -3.0])),
        row(choice_sample(1, True, error="no logits", scores={})),
        row(text_sample(2, "  ", 0.0, finish_reason="length", truncated_tokens=4)),
    ]  # fmt: skip
    chunk, listed = read(list(data_files("folder", listed_samples(rows, "acc", 100))))
    assert listed["columns"]["scores"] == [[None, None, None], [None, None, 0.0]]
    assert listed["metrics"] == ["acc", "f1"]
    assert chunk[0]["sides"][0]["lls"] == [None, -1.0, -2.0, -3.0]
    assert listed["columns"]["flags"] == [0, 1, 2 | 4 | 8]
    assert chunk[1]["sides"][0]["error"] == "no logits"


def test_several_outputs_are_all_there() -> None:
    outputs = [Output("one", "stop", 1, {"f1": 1.0}), Output("two", "length", 2, {"f1": 0.0})]
    chunk, _ = read(
        list(
            data_files("folder", listed_samples([row(text_sample(0, "one", 0.5, outputs=outputs))], "f1", 9))
        )
    )
    assert [(one["text"], one["end"], one["scores"]) for one in chunk[0]["sides"][0]["outputs"]] == [
        ("one", "stop", {"f1": 1.0}),
        ("two", "length", {"f1": 0.0}),
    ]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_from_its_script(text: str) -> None:
    listed = Listed({"id": [text]}, [{"prompt": text}], {})
    chunk, found = read(list(data_files("folder", listed)))
    assert chunk == [{"prompt": text}]
    assert found["columns"]["id"] == [text]


def test_a_literal_holds_nothing_that_html_or_an_old_browser_reads_otherwise() -> None:
    literal = safe(json.dumps("</script>\u2028\u2029<!--", ensure_ascii=False))
    assert not {"<", "\u2028", "\u2029"} & set(literal)
    assert json.loads(literal) == "</script>\u2028\u2029<!--"
