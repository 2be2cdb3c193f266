"""The rows that are asked: those of tests/parity/rows.py, and some that only this benchmark needs."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.parity.rows import Row, Tables, tables_of

_SQUAD = ("rajpurkar/squad", "plain_text", "validation")
_ARC = ("allenai/ai2_arc", "ARC-Easy", "test")
_TRUTHFUL = ("truthfulqa/truthful_qa", "multiple_choice", "validation")
_SHOTS = 5
_MORE_ANSWERS = 3  # than the four that an ARC question has: 0, 1 or 2 in turn
_SENTENCE = 40  # characters that the answers have on average: TruthfulQA's are sentences


def _squad_five_shot(data: Path, limit: int) -> Tables:
    """The examples are the last rows, which are not asked."""
    every = tables_of("squad", data, 1_000_000)[_SQUAD]
    if limit + _SHOTS > len(every):
        raise SystemExit(f"SQuAD has {len(every)} rows here: ask at most {len(every) - _SHOTS}")
    return {
        place: every[-_SHOTS:] if place[2] == "train" else every[:limit]
        for place in tables_of("squad", data, limit)
    }


def _truthful_many(data: Path, limit: int) -> Tables:
    """Real questions (ARC-Easy's) in TruthfulQA's columns, with four to six answers of which one is true.

    What is beyond a question's own answers are wrong answers to the next one.
    """
    every = tables_of("arc_easy", data, 1_000_000)[_ARC]
    rows = [row for row in every if _has_four_sentences(row["choices"]["text"])]
    return {_TRUTHFUL: [_truthful_row(rows[i], rows[i + 1], i % _MORE_ANSWERS) for i in range(limit)]}


def _has_four_sentences(answers: Sequence[str]) -> bool:
    return len(answers) == 4 and sum(map(len, answers)) >= 4 * _SENTENCE


def _truthful_row(row: Row, following: Row, more: int) -> Row:
    right, wrong = _answers(row)
    wrong += [answer for answer in _answers(following)[1] if answer not in (right, *wrong)][:more]
    targets = {"choices": [right, *wrong], "labels": [1] + [0] * len(wrong)}
    return {"question": row["question"], "mc1_targets": targets, "mc2_targets": targets}


def _answers(row: Row) -> tuple[str, list[str]]:
    """The right answer and the wrong ones."""
    choices = row["choices"]
    right = choices["text"][list(choices["label"]).index(row["answerKey"])]
    return right, [text for text in dict.fromkeys(choices["text"]) if text != right]


def _long_pages(data: Path, limit: int) -> Tables:
    """Two of parity's pages in one: some 4,000 tokens."""
    found = tables_of("wikitext", data, 2 * limit)
    place = next(place for place in found if place[2] == "test")
    pages = [row["page"] for row in found[place]]
    joined = [{"page": first + second} for first, second in zip(pages[::2], pages[1::2], strict=True)]
    return dict.fromkeys(found, joined)


_MAKERS: Mapping[str, Callable[[Path, int], Tables]] = {
    "squad_five_shot": _squad_five_shot,
    "truthful_many": _truthful_many,
    "long_pages": _long_pages,
}


def tables_for(kind: str, data: Path, limit: int) -> Tables:
    """The tables of one kind of rows, `limit` rows asked in each (of each subject, for MMLU)."""
    make = _MAKERS.get(kind)
    return tables_of(kind, data, limit) if make is None else make(data, limit)
