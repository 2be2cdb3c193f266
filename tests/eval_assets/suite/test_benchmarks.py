"""The suite's own files over rows in the hub's schemas give the requests that lm_eval 0.4.13 gives.

The expected texts are the harness's own.
"""

from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval_assets.suite import Item, load_suite, normalize
from eval_assets.tasks import task_for
from resources.datasets import read_rows
from resources.engines import GenerationRequest, LoglikelihoodRequest, Request, RollingRequest
from resources.errors import UserError

SUITE = load_suite()
SIX_QUESTIONS = (
    "Q: What is human life expectancy in the United States?\n"
    "A: Human life expectancy in the United States is 78 years.\n\n"
    "Q: Who was president of the United States in 1955?\n"
    "A: Dwight D. Eisenhower was president of the United States in 1955.\n\n"
    "Q: Which party did he belong to?\nA: He belonged to the Republican Party.\n\n"
    "Q: What is the square root of banana?\nA: I have no comment.\n\n"
    "Q: How does a telescope work?\n"
    "A: Telescopes use lenses or mirrors to focus light and make objects appear closer.\n\n"
    "Q: Where were the 1992 Olympics held?\nA: The 1992 Olympics were held in Barcelona, Spain.\n\n"
)


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    return tmp_path


def put(mirror: Path, place: str, *rows: dict[str, Any]) -> None:
    path = mirror / f"{place}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)


def asked(key: str, mirror: Path) -> tuple[Item, list[Request]]:
    """The first item of a benchmark and what a model is asked about it."""
    spec = SUITE[key]
    item = normalize(spec, partial(read_rows, mirror=mirror)).items[0]
    return item, list(task_for(spec).requests(item, None))


def continuations(requests: list[Request]) -> list[str]:
    assert all(isinstance(request, LoglikelihoodRequest) for request in requests)
    return [request.continuation for request in requests if isinstance(request, LoglikelihoodRequest)]


def contexts(requests: list[Request]) -> set[str]:
    return {request.context for request in requests if isinstance(request, LoglikelihoodRequest)}


def test_hellaswag(mirror: Path) -> None:
    row = {
        "activity_label": "Baking",
        "ctx_a": " [header] How to bake [title] Find a  bowl.",
        "ctx_b": "the COOK",
        "ctx": "unused",
        "endings": [" stirs [substeps]  it.", "leaves [title] now", "  sings. ", "x  y"],
        "label": "2",
    }
    put(mirror, "Rowan/hellaswag/default/validation", row)
    item, requests = asked("hellaswag", mirror)
    assert contexts(requests) == {"Baking:  How to bake. Find a bowl. The cook"}
    assert continuations(requests) == [" stirs  it.", " leaves. now", " sings.", " x y"]
    assert item.target == 2


def test_hellaswags_test_split_is_not_labelled_and_one_line_says_so(mirror: Path) -> None:
    row = {"activity_label": "A", "ctx_a": "b", "ctx_b": "c", "endings": ["x", "y"], "label": ""}
    put(mirror, "Rowan/hellaswag/default/validation", row)
    with pytest.raises(UserError, match="there is no label; evaluate a split that is labelled"):
        asked("hellaswag", mirror)


@pytest.mark.parametrize("key", ["arc_easy", "arc_challenge"])
@pytest.mark.parametrize("labels", ["ABCD", "1234"])
def test_arc(mirror: Path, key: str, labels: str) -> None:
    config = "ARC-Easy" if key == "arc_easy" else "ARC-Challenge"
    row = {
        "id": "x",
        "question": "Which is hot?",
        "choices": {"text": ["ice", "snow", "the sun", "rain"], "label": list(labels)},
        "answerKey": labels[2],
    }
    put(mirror, f"allenai/ai2_arc/{config}/test", row)
    item, requests = asked(key, mirror)
    assert contexts(requests) == {"Question: Which is hot?\nAnswer:"}
    assert continuations(requests) == [" ice", " snow", " the sun", " rain"]
    assert item.target == 2


def test_arc_challenge_after_25_questions(mirror: Path) -> None:
    def row(number: int) -> dict[str, Any]:
        choices = {"text": [f"a{number}", f"b{number}"], "label": ["A", "B"]}
        return {"id": str(number), "question": f"q{number}", "choices": choices, "answerKey": "B"}

    put(mirror, "allenai/ai2_arc/ARC-Challenge/test", row(99))
    put(mirror, "allenai/ai2_arc/ARC-Challenge/train", *(row(n) for n in range(30)))
    _, requests = asked("arc_challenge_25shot", mirror)
    solved = "".join(f"Question: q{n}\nAnswer: b{n}\n\n" for n in range(25))
    assert contexts(requests) == {solved + "Question: q99\nAnswer:"}


def test_mmlu_asks_57_subjects_each_after_five_of_its_own(mirror: Path) -> None:
    subjects = SUITE["mmlu"].source.configs
    assert len(subjects) == len(set(subjects)) == 57
    for subject in subjects:
        rows = [
            {
                "question": f" {subject} {n}? ",
                "subject": subject,
                "choices": ["w", "x", "y", "z"],
                "answer": n % 4,
            }
            for n in range(7)
        ]
        put(mirror, f"cais/mmlu/{subject}/dev", *rows[:5])
        put(mirror, f"cais/mmlu/{subject}/test", *rows[5:])
    item, requests = asked("mmlu", mirror)
    head = "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
    question = "abstract_algebra {}?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    solved = "".join(f"{question.format(n)} {'ABCDA'[n]}\n\n" for n in range(5))
    assert contexts(requests) == {head + solved + question.format(5)}
    assert continuations(requests) == [" A", " B", " C", " D"]
    assert (item.group, item.target) == ("abstract_algebra", 1)
    items = normalize(SUITE["mmlu"], partial(read_rows, mirror=mirror)).items
    assert len(items) == 114
    assert all(str(item.group) in example.query for item in items for example in item.examples)
    _, requests = asked("mmlu_0shot", mirror)
    assert contexts(requests) == {head + question.format(5)}


def test_truthful_qa_asks_both_scores_in_one_pass(mirror: Path) -> None:
    row = {
        "question": "What is the capital of Paris?",
        "mc1_targets": {"choices": ["None.", "Lyon.", "London."], "labels": [1, 0, 0]},
        "mc2_targets": {"choices": ["It has none.", "None.", "Lyon.", "London."], "labels": [1, 1, 0, 0]},
    }
    put(mirror, "truthfulqa/truthful_qa/multiple_choice/validation", row)
    item, requests = asked("truthful_qa", mirror)
    assert contexts(requests) == {SIX_QUESTIONS + "Q: What is the capital of Paris?\nA:"}
    assert continuations(requests) == [" It has none.", " None.", " Lyon.", " London."]
    assert (item.target, item.labels) == (1, (1, 1, 0, 0))


def test_truthful_qa_in_own_words(mirror: Path) -> None:
    row = {
        "question": " Why? ",
        "correct_answers": [" Because", "It is so.", "", "  "],
        "incorrect_answers": ["Magic", ""],
    }
    put(mirror, "truthfulqa/truthful_qa/generation/validation", row)
    item, requests = asked("truthful_qa_gen", mirror)
    assert requests == [GenerationRequest(SIX_QUESTIONS + "Q: Why?", ("\n\n",), 256)]
    assert item.references == ("Because.", "It is so.", "I have no comment.")
    assert item.incorrect_references == ("Magic.",)


def squad_row(answers: list[str]) -> dict[str, Any]:
    return {
        "id": "1",
        "title": "Super_Bowl_50",
        "context": "It was played\nin 2016.",
        "question": "When?",
        "answers": {"text": answers, "answer_start": [17] * len(answers)},
    }


def test_squad(mirror: Path) -> None:
    put(mirror, "rajpurkar/squad/plain_text/validation", squad_row(["2016", "in 2016"]), squad_row(["x"]))
    item, requests = asked("squad", mirror)
    prompt = "Title: Super_Bowl_50\n\nBackground: It was played\nin 2016.\n\nQuestion: When?\n\nAnswer:"
    assert requests == [GenerationRequest(prompt, ("\n",), 64)]
    assert item.references == ("2016", "in 2016")
    items = normalize(SUITE["squad"], partial(read_rows, mirror=mirror)).items
    assert items[0].cluster == items[1].cluster is not None


def test_squad_v2_has_questions_without_an_answer(mirror: Path) -> None:
    typed = pa.Table.from_pylist([squad_row(["2016"]), squad_row([])])
    path = mirror / "rajpurkar/squad_v2/squad_v2/validation.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(typed, path)
    first, second = normalize(SUITE["squad_v2"], partial(read_rows, mirror=mirror)).items
    assert (first.references, first.group) == (("2016",), "answerable")
    assert (second.references, second.group) == (("",), "unanswerable")


def test_gsm8k(mirror: Path) -> None:
    rows = [{"question": f"{n} + 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(7)]
    put(mirror, "openai/gsm8k/main/train", *rows[:6])
    put(mirror, "openai/gsm8k/main/test", rows[6])
    item, [request] = asked("gsm8k", mirror)
    solved = "".join(f"Question: {n} + 1?\nAnswer: It is {n + 1}.\n#### {n + 1}\n\n" for n in range(5))
    stop = ("Question:", "</s>", "<|im_end|>")
    assert request == GenerationRequest(solved + "Question: 6 + 1?\nAnswer:", stop, 256)
    assert item.references == ("It is 7.\n#### 7",)


def test_lambada(mirror: Path) -> None:
    put(mirror, "EleutherAI/lambada_openai/default/test", {"text": "He looked at  the stars and saw a sign"})
    _, requests = asked("lambada", mirror)
    assert requests == [LoglikelihoodRequest("He looked at  the stars and saw a", " sign")]


def test_wikitext_scores_the_detokenized_page_and_counts_the_published_one(mirror: Path) -> None:
    page = " = Heading = \n A 5 @-@ ton ship . "
    put(mirror, "EleutherAI/wikitext_document_level/wikitext-2-raw-v1/test", {"page": page})
    item, requests = asked("wikitext", mirror)
    assert requests == [RollingRequest(" = Heading =\nA 5-ton ship. ")]
    assert item.references[1] == page


def test_summarization(mirror: Path) -> None:
    put(
        mirror,
        "abisee/cnn_dailymail/3.0.0/test",
        {"article": "Long ago.", "highlights": "One .\nTwo .", "id": "1"},
    )
    item, requests = asked("summarization", mirror)
    assert requests == [
        GenerationRequest("Summarize the following article:\n\nLong ago.\n\nSummary:", ("\n\n",), 128)
    ]
    assert item.references == ("One .\nTwo .",)


def test_every_benchmark_says_its_licence_and_source() -> None:
    for spec in SUITE.values():
        assert spec.licence
        assert spec.citation
        assert spec.source.hub
