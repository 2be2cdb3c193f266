"""What is compared: each work's tasks in the harness, its benchmark here, and how both are set alike."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from eval_assets.suite import BenchmarkSpec
from tests.parity.rows import MMLU_SUBJECTS

SYSTEM = "You are a careful student."
WINDOW = 512
"""Tokens a window of the rolling log-likelihood, so that a page of this size has several."""


@dataclass(frozen=True, slots=True)
class Work:
    """One comparison.

    `rows` names the rows in `rows.py` and `limit` how many of them are asked (of each subject, for MMLU).
    `metrics` maps a metric here to the harness's label and the factor from ours to theirs. `asked_more`:
    ours asks for more than the harness does in this work (mc1's choices are among mc2's). `gemma`: the work
    is done with the second model as well, where that is asked for.
    """

    name: str
    benchmark: str
    tasks: tuple[str, ...]
    rows: str
    limit: int
    metrics: Mapping[str, tuple[str, float]]
    num_fewshot: int | None = None
    first_n: bool = False
    max_length: int | None = None
    chat: bool = False
    asked_more: bool = False
    gemma: int = 0
    spec: Mapping[str, Any] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The name as a folder's."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    def adapt(self, spec: BenchmarkSpec) -> BenchmarkSpec:
        """The benchmark as the suite declares it, with what this work sets."""
        document = spec.model_dump(exclude_unset=True)
        for name, value in self.spec.items():
            document[name] = {**document.get(name, {}), **value} if isinstance(value, dict) else value
        if self.chat:
            document["chat"] = {"system": SYSTEM}
        return BenchmarkSpec.model_validate({**document, "folder": spec.folder})

    def for_harness(self, mirror: str) -> dict[str, Any]:
        """The work as `run_harness.py` reads it."""
        return {
            "name": self.name,
            "tasks": list(self.tasks),
            "mirror": mirror,
            "num_fewshot": self.num_fewshot,
            "first_n": self.first_n,
            "max_length": self.max_length,
            "chat": self.chat,
            "system": SYSTEM if self.chat else None,
        }


def _same(*names: str) -> dict[str, tuple[str, float]]:
    return {name: (name, 1.0) for name in names}


_ACC = _same("acc", "acc_norm")
_MMLU_TASKS = tuple(f"mmlu_{subject}" for subject in MMLU_SUBJECTS)
_ALL_SUBJECTS = {"source": {"config": MMLU_SUBJECTS}}
_TWO_SUBJECTS = {"source": {"config": MMLU_SUBJECTS[:2]}}
_GSM8K = {
    "exact_match_strict": ("exact_match,strict-match", 1.0),
    "exact_match_flexible": ("exact_match,flexible-extract", 1.0),
}
_LONG = {"generation": {"max_new_tokens": 256}}  # the harness's limit; ours is 64
_SQUAD = {"squad_exact_match": ("exact", 100.0), "squad_f1": ("f1", 100.0)}
_TRUTHFUL = _same(
    *(
        f"{measure}_{form}"
        for measure in ("bleu", "rouge1", "rouge2", "rougeL")
        for form in ("max", "acc", "diff")
    )
)

WORKS = (
    Work("HellaSwag, 0-shot", "hellaswag", ("hellaswag",), "hellaswag", 50, _ACC, gemma=20),
    Work(
        "MMLU, 8 subjects, 5-shot",
        "mmlu",
        _MMLU_TASKS,
        "mmlu",
        4,
        _same("acc"),
        num_fewshot=5,
        gemma=1,
        spec=_ALL_SUBJECTS,
    ),
    Work("ARC-Easy, 0-shot", "arc_easy", ("arc_easy",), "arc_easy", 60, _ACC, gemma=30),
    Work(
        "ARC-Challenge, 25-shot",
        "arc_challenge_25shot",
        ("arc_challenge",),
        "arc_challenge",
        10,
        _ACC,
        num_fewshot=25,
        first_n=True,
    ),
    Work(
        "LAMBADA (OpenAI), 0-shot",
        "lambada",
        ("lambada_openai",),
        "lambada",
        60,
        _same("acc", "perplexity"),
        gemma=30,
    ),
    Work(
        "TruthfulQA mc1",
        "truthful_qa",
        ("truthfulqa_mc1",),
        "truthful",
        12,
        {"mc1": ("acc", 1.0)},
        asked_more=True,
    ),
    Work("TruthfulQA mc2", "truthful_qa", ("truthfulqa_mc2",), "truthful", 12, {"mc2": ("acc", 1.0)}),
    Work(
        "Rolling perplexity, long pages",
        "wikitext",
        ("wikitext",),
        "wikitext",
        5,
        _same("word_perplexity", "byte_perplexity", "bits_per_byte"),
        max_length=WINDOW,
        gemma=2,
    ),
    Work("SQuAD v1.1, generation", "squad", ("squadv2",), "squad", 16, _SQUAD, gemma=8, spec=_LONG),
    Work("SQuAD v2.0, generation", "squad_v2", ("squadv2",), "squad_v2", 8, _SQUAD, spec=_LONG),
    Work("GSM8K, 5-shot", "gsm8k", ("gsm8k",), "gsm8k", 8, _GSM8K, first_n=True),
    Work("TruthfulQA, generation", "truthful_qa_gen", ("truthfulqa_gen",), "truthful", 8, _TRUTHFUL),
    Work(
        "MMLU, 5-shot, chat template",
        "mmlu",
        _MMLU_TASKS[:2],
        "mmlu_two",
        10,
        _same("acc"),
        num_fewshot=5,
        chat=True,
        spec=_TWO_SUBJECTS,
    ),
    Work("GSM8K, 5-shot, chat template", "gsm8k", ("gsm8k",), "gsm8k", 8, _GSM8K, first_n=True, chat=True),
    Work("SQuAD v1.1, chat template", "squad", ("squadv2",), "squad", 8, _SQUAD, chat=True, spec=_LONG),
)

_IN_THE_SLICE = {
    "hellaswag": 3,
    "arc_easy": 3,
    "arc_challenge": 1,
    "lambada": 4,
    "truthful": 1,
    "wikitext": 1,
    "squad": 2,
    "squad_v2": 2,
    "gsm8k": 1,
    "mmlu_two": 1,
}


def _few(work: Work) -> Work:
    if work.rows == "mmlu":
        work = replace(
            work, name="MMLU, 2 subjects, 5-shot", tasks=_MMLU_TASKS[:2], rows="mmlu_two", spec=_TWO_SUBJECTS
        )
    return replace(work, limit=_IN_THE_SLICE[work.rows])


SLICE = tuple(_few(work) for work in WORKS if not (work.chat and work.rows == "gsm8k"))
"""The works with few enough items for every run of the tests; GSM8K's answers are long, so once is enough."""
