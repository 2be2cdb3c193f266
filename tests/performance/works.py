"""What is measured: each work's items, its goal, and what it is compared with."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tests.parity.works import WORKS as PARITY_WORKS
from tests.parity.works import Work

CANDIDATES = (1, 8, 16, 32, 64)
"""Batch sizes that the harness's best is looked for among."""

ANSWER_TOKENS = 64
"""The most tokens of a SQuAD answer, on both sides."""


@dataclass(frozen=True, slots=True)
class HarnessWork:
    """A benchmark through lm_eval and through this project, on the same rows.

    `work` says how both are set alike (tests/parity/works.py); `goal` is lm_eval's seconds over ours.
    `asked` is the kind of request that is timed. The search times each batch size on `search_items` items,
    or on as many as fill a batch, an item being `rows_an_item` rows of a batch. `memory_peer`: ours must not
    need more memory than lm_eval does at batch size 1.
    """

    slug: str
    title: str
    work: Work
    goal: float
    asked: str
    search_items: int
    rows_an_item: int = 1
    max_new_tokens: int | None = None
    memory_peer: bool = False

    @property
    def items(self) -> int:
        """Rows asked (of each subject, for MMLU)."""
        return self.work.limit

    def of(self, items: int) -> "HarnessWork":
        """The same with fewer items."""
        return replace(self, work=replace(self.work, limit=min(self.items, items)))

    def for_harness(self, mirror: str) -> dict[str, Any]:
        """The work as `harness_side.py` reads it."""
        return {
            **self.work.for_harness(mirror),
            "asked": self.asked,
            "search_items": self.search_items,
            "rows_an_item": self.rows_an_item,
            "max_new_tokens": self.max_new_tokens,
        }


@dataclass(frozen=True, slots=True)
class OtherWork:
    """What is compared with something else than lm_eval. `kind` names the function in comparisons.py."""

    slug: str
    title: str
    kind: str
    items: int
    goal: float | None = None
    benchmarks: tuple[str, ...] = ()
    spec: Mapping[str, Any] = field(default_factory=dict)

    def of(self, items: int) -> "OtherWork":
        """The same with fewer items."""
        return replace(self, items=min(self.items, items))


_PARITY = {work.name: work for work in PARITY_WORKS}


def _parity(name: str, **changes: Any) -> Work:
    return replace(_PARITY[name], **changes)


_SUBJECTS = ("anatomy", "astronomy", "professional_law")
_SHORT_ANSWERS = {"generation": {"max_new_tokens": ANSWER_TOKENS}}
_LIKELIHOOD, _GENERATION = "loglikelihood", "generate_until"

WORKS: tuple[HarnessWork | OtherWork, ...] = (
    HarnessWork(
        "hellaswag",
        "HellaSwag, 0-shot",
        _parity("HellaSwag, 0-shot", limit=200),
        goal=2.3,
        asked=_LIKELIHOOD,
        search_items=4,
        rows_an_item=4,
    ),
    HarnessWork(
        "truthful",
        "TruthfulQA mc2, six-shot prompt",
        _parity("TruthfulQA mc2", rows="truthful_many", limit=40),
        goal=9,
        asked=_LIKELIHOOD,
        search_items=4,
        rows_an_item=4,
    ),
    HarnessWork(
        "mmlu",
        "MMLU, 5-shot, three subjects",
        _parity(
            "MMLU, 8 subjects, 5-shot",
            tasks=tuple(f"mmlu_{subject}" for subject in _SUBJECTS),
            limit=20,
            spec={"source": {"config": _SUBJECTS}},
        ),
        goal=5.5,
        asked=_LIKELIHOOD,
        search_items=8,
    ),
    HarnessWork(
        "squad",
        "SQuAD, 0-shot, generation",
        _parity("SQuAD v1.1, generation", limit=100, spec=_SHORT_ANSWERS),
        goal=1.2,
        asked=_GENERATION,
        search_items=8,
        max_new_tokens=ANSWER_TOKENS,
    ),
    HarnessWork(
        "squad-5shot",
        "SQuAD, 5-shot, generation",
        _parity(
            "SQuAD v1.1, generation",
            rows="squad_five_shot",
            limit=100,
            num_fewshot=5,
            first_n=True,
            # lm_eval's answers begin with a blank of their own, after the one that follows the prompt.
            spec={
                **_SHORT_ANSWERS,
                "fewshot": {"n": 5, "split": "train", "answer": " {{answers.text[0]}}"},
            },
        ),
        goal=4.5,
        asked=_GENERATION,
        search_items=8,
        max_new_tokens=ANSWER_TOKENS,
    ),
    HarnessWork(
        "gsm8k",
        "GSM8K, 5-shot, generation",
        _parity("GSM8K, 5-shot", limit=64),
        goal=4,
        asked=_GENERATION,
        search_items=8,
    ),
    HarnessWork(
        "rolling",
        "Rolling perplexity, long pages",
        _parity("Rolling perplexity, long pages", rows="long_pages", limit=3, max_length=None),
        goal=1,
        asked="loglikelihood_rolling",
        search_items=1,
        memory_peer=True,
    ),
    OtherWork(
        "article",
        "A script of model.generate(), ROUGE and BERTScore, item by item",
        "article",
        items=64,
        goal=5,
        spec={
            "references": "answers.text[:1]",
            "generation": {"max_new_tokens": ANSWER_TOKENS},
            "metrics": ["rouge1", "rouge2", "rougeL", "bertscore_f1"],
            "primary_metric": "rougeL",
        },
    ),
    OtherWork(
        "pipeline",
        "The pipeline around the engine (ARC-Easy through Dagster)",
        "pipeline",
        items=500,
        goal=0.10,
        benchmarks=("arc_easy",),
    ),
    OtherWork(
        "row",
        "Four benchmarks in one run against four runs",
        "row",
        items=8,
        benchmarks=("arc_easy", "hellaswag", "mmlu_0shot", "squad"),
    ),
    OtherWork("planner", "Planning a million requests", "planner", items=1_000_000),
)

ENGINE_WORKS: Mapping[str, Work] = {
    **{work.slug: work.work for work in WORKS if isinstance(work, HarnessWork)},
    "pipeline": _parity("ARC-Easy, 0-shot", limit=500),
}
"""What `our_side.py` gives the engine, by slug."""
