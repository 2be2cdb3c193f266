"""The rows that both sides read: small Parquet files in the hub's layout and columns, one folder a work.

Real benchmark rows come from the data folder. Where a training split, from which few-shot examples are taken,
is not there, rows of another split stand in for it (ARC) or the last rows of the same one (GSM8K), for both
sides alike and never the rows that are asked.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

Row: TypeAlias = dict[str, Any]
Tables: TypeAlias = Mapping[tuple[str, str, str], Sequence[Row]]
"""``(hub id, config, split) -> rows``."""

MMLU_SUBJECTS = (
    "anatomy",
    "astronomy",
    "college_biology",
    "econometrics",
    "high_school_european_history",
    "international_law",
    "moral_scenarios",
    "professional_law",
)
_EXAMPLES = 25
"""Rows that few-shot examples are taken from."""
_PASSAGES_A_PAGE = 12
_HERE = Path(__file__).parent


def _read(data: Path, hub: str, config: str, split: str) -> list[Row]:
    path = data / hub / config / f"{split}.parquet"
    if not path.exists():
        raise SystemExit(f"{path} is not there: make the demo's data first")
    rows: list[Row] = pq.read_table(path).to_pylist()
    return rows


def _hellaswag(data: Path, limit: int) -> Tables:
    rows = _read(data, "Rowan/hellaswag", "default", "validation")
    return {
        ("Rowan/hellaswag", "default", "validation"): rows[:limit],
        ("Rowan/hellaswag", "default", "train"): rows[-1:],
    }


def _mmlu(subjects: Sequence[str]) -> Callable[[Path, int], Tables]:
    def tables(data: Path, limit: int) -> Tables:
        return {
            ("cais/mmlu", subject, split): _read(data, "cais/mmlu", subject, split)[:count]
            for subject in subjects
            for split, count in (("test", limit), ("dev", None))
        }

    return tables


def _arc(config: str) -> Callable[[Path, int], Tables]:
    def tables(data: Path, limit: int) -> Tables:
        pool = _read(data, "allenai/ai2_arc", config, "validation")[:_EXAMPLES]
        return {
            ("allenai/ai2_arc", config, "test"): _read(data, "allenai/ai2_arc", config, "test")[:limit],
            ("allenai/ai2_arc", config, "validation"): pool,
            ("allenai/ai2_arc", config, "train"): pool,
        }

    return tables


def _lambada(data: Path, limit: int) -> Tables:
    place = ("EleutherAI/lambada_openai", "default", "test")
    return {place: _read(data, *place)[:limit]}


def _gsm8k(data: Path, limit: int) -> Tables:
    rows = _read(data, "openai/gsm8k", "main", "test")
    return {
        ("openai/gsm8k", "main", "test"): rows[:limit],
        ("openai/gsm8k", "main", "train"): rows[-_EXAMPLES:],
    }


def _squad_tables(asked: list[Row], pool: list[Row]) -> Tables:
    return {
        (hub, config, split): rows
        for hub, config in (
            ("lighteval/squad_v2", "default"),
            ("rajpurkar/squad_v2", "squad_v2"),
            ("rajpurkar/squad", "plain_text"),
        )
        for split, rows in (("validation", asked), ("train", pool))
    }


def _squad(data: Path, limit: int) -> Tables:
    rows = _read(data, "rajpurkar/squad", "plain_text", "validation")
    return _squad_tables(rows[:limit], rows[-1:])


def _squad_v2(data: Path, limit: int) -> Tables:
    """Half of the rows ask about another passage: questions without an answer, as SQuAD 2.0 has them."""
    rows = _read(data, "rajpurkar/squad", "plain_text", "validation")
    asked = [dict(row) for row in rows[:limit]]
    for index in range(1, limit, 2):
        other = next(row for row in rows[limit:] if row["title"] != asked[index]["title"])
        asked[index] |= {
            "id": f"{asked[index]['id']}-unanswerable",
            "question": other["question"],
            "answers": {"text": [], "answer_start": []},
        }
    return _squad_tables(asked, rows[-1:])


def _truthful(_: Path, limit: int) -> Tables:
    rows = json.loads((_HERE / "truthful_rows.json").read_text())[:limit]
    return {
        ("truthfulqa/truthful_qa", "generation", "validation"): rows,
        ("truthfulqa/truthful_qa", "multiple_choice", "validation"): [_targets(row) for row in rows],
    }


def _targets(row: Row) -> Row:
    """A row of the hub's `multiple_choice` config; in mc1 the true answer stands first, as there."""
    wrong = row["incorrect_answers"]
    right = row["correct_answers"]
    return {
        "question": row["question"],
        "mc1_targets": {"choices": [row["best_answer"], *wrong], "labels": [1] + [0] * len(wrong)},
        "mc2_targets": {"choices": [*right, *wrong], "labels": [1] * len(right) + [0] * len(wrong)},
    }


def _wikitext(data: Path, limit: int) -> Tables:
    """Pages longer than a window: SQuAD's Wikipedia passages, spaced as WikiText spaces its text."""
    rows = _read(data, "rajpurkar/squad", "plain_text", "validation")
    passages = list(dict.fromkeys(row["context"] for row in rows))
    pages = []
    for start in range(0, limit * _PASSAGES_A_PAGE, _PASSAGES_A_PAGE):
        body = [_spaced(passage) for passage in passages[start : start + _PASSAGES_A_PAGE]]
        pages.append({"page": f" = Page {start} = \n \n " + " \n ".join(body) + " \n"})
    hub = "EleutherAI/wikitext_document_level"
    return {(hub, "wikitext-2-raw-v1", split): pages for split in ("train", "validation", "test")}


def _spaced(text: str) -> str:
    """Punctuation apart from words, hyphens and separators in numbers as ``@-@``, ``@,@``, ``@.@``."""
    text = re.sub(r"(?<=\w)-(?=\w)", " @-@ ", text)
    text = re.sub(r"(?<=\d)([,.])(?=\d)", r" @\1@ ", text)
    text = re.sub(r"(?<=\w)([,.;:!?)])(?=\s|$)", r" \1", text)
    text = re.sub(r"(?<=\s)\((?=\w)", "( ", text)
    return re.sub(r"(?<=\w)'s\b", " 's", text)


_MAKERS: Mapping[str, Callable[[Path, int], Tables]] = {
    "hellaswag": _hellaswag,
    "mmlu": _mmlu(MMLU_SUBJECTS),
    "mmlu_two": _mmlu(MMLU_SUBJECTS[:2]),
    "arc_easy": _arc("ARC-Easy"),
    "arc_challenge": _arc("ARC-Challenge"),
    "lambada": _lambada,
    "gsm8k": _gsm8k,
    "squad": _squad,
    "squad_v2": _squad_v2,
    "truthful": _truthful,
    "wikitext": _wikitext,
}


def tables_of(kind: str, data: Path, limit: int) -> Tables:
    """The tables of one kind of rows, `limit` rows asked in each (of each subject, for MMLU).

    The harness reads a training split even where it takes no example from it, so there is always one.
    """
    return _MAKERS[kind](data, limit)


def write_mirror(tables: Tables, folder: Path) -> None:
    """Write tables as ``<hub id>/<config>/<split>.parquet`` below `folder`."""
    for (hub, config, split), rows in tables.items():
        path = folder / hub / config / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
