"""A results store as a team has it after two years, from a seed: the real file formats, no model.

Sizes are those of real evaluations (`make demo`, MMLU by subject): prompts of 200 to 3,000 characters, four
to six choices with their log-likelihoods, a fifth of the benchmarks written answers, 57 groups or a few or
none, two or three metrics; names with a dozen versions each, some asked through a chat template, so that the
prompts differ; teams, accelerators, costs; comparisons and verdicts of each version against the one before;
some cells evaluated twice. Every model is shown the same items, as in a real store.
"""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from resources.keys import path_segment
from resources.records import METRIC_SCHEMA, SAMPLE_SCHEMA
from resources.storage import parquet
from resources.writer import METRICS, RECORD, SAMPLES

Floats: TypeAlias = npt.NDArray[np.float64]
Bools: TypeAlias = npt.NDArray[np.bool_]

NAMES = 40
"""Model names; the versions are spread over them."""
CHAT_EVERY = 5
"""One name in so many is asked through a chat template of its own."""
TWICE_EVERY = 20
"""One cell in so many was evaluated twice."""
RARE = "quokka"
"""A word that a thousandth of the written answers have."""

_START = datetime(2025, 1, 1, tzinfo=UTC)
_TEAMS = ("search", "assistants", "research", None)
_CLASSES = (("l4", 0.8), ("a100-40gb", 3.2), ("h100", 9.8))
_ZIPF = 1.1


@dataclass(frozen=True, slots=True)
class Shape:
    """What a benchmark's items look like, in characters; without `choices` answers of `words` are written."""

    key: str
    prompt: int
    choices: int
    choice: int
    groups: int
    words: int
    metrics: tuple[str, ...]


def shapes() -> list[Shape]:
    """Twenty benchmarks; the last four write their answers."""
    chosen = ("acc", "acc_norm", "acc_bytes")
    return [
        *(Shape(f"mmlu_{i}", 3000, 4, 40, 57, 0, ("acc", "brier")) for i in range(3)),
        *(Shape(f"hellaswag_{i}", 220, 4, 150, 0, 0, chosen) for i in range(4)),
        *(Shape(f"arc_{i}", 180, 4, 30, 0, 0, chosen) for i in range(5)),
        *(Shape(f"truthful_{i}", 700, 6, 60, 8, 0, ("mc1", "mc2")) for i in range(4)),
        *(Shape(f"squad_{i}", 850, 0, 0, 20, 8, ("exact_match", "squad_f1")) for i in range(2)),
        *(Shape(f"gsm_{i}", 2500, 0, 0, 0, 60, ("exact_match", "flexible")) for i in range(2)),
    ]


@dataclass(frozen=True, slots=True)
class Version:
    """A model version of the made store."""

    name: str
    version: int
    chat: bool
    ability: float
    digest: str
    finished: datetime

    @property
    def key(self) -> str:
        return f"{self.name}@{self.version}"


def versions(evaluations: int, seed: int) -> list[Version]:
    """Model versions for so many evaluations, the older ones first."""
    count = round(evaluations / len(shapes()) / (1 + 1 / TWICE_EVERY))
    draw = np.random.default_rng(seed)
    found = []
    for number in range(count):
        name, version = number % NAMES, number // NAMES + 1
        digest = hashlib.sha256(f"{seed} {number}".encode()).hexdigest()
        found.append(
            Version(
                f"model-{name:02d}", version, name % CHAT_EVERY == 0,
                float(draw.normal(version / 10, 0.5)), digest,
                _START + timedelta(days=540 * number / count),
            )
        )  # fmt: skip
    return found


def make_store(root: Path, evaluations: int, samples: int, *, seed: int = 1, workers: int = 2) -> int:
    """Write a store of about so many evaluations with so many samples each; returns how many there are."""
    models = versions(evaluations, seed)
    for version in models:
        record = {
            "key": version.key,
            "digest": version.digest,
            "parameters": 10**9,
            "chat_template": version.chat,
        }
        _put_json(root / f"models/{path_segment(version.key)}.json", record)
    build = partial(_benchmark, root, models, samples, seed)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        written = list(pool.map(build, shapes()))
    for before, version in _pairs(models):
        verdict = {
            "verdict_id": f"{version.finished:%Y%m%dT%H%M%S}", "model": version.key, "baseline": before.key,
            "status": "passed" if version.ability > before.ability else "failed", "reason": "as drawn",
            "action": "none", "moved": False, "family": {"family": [shape.key for shape in shapes()]},
            "missing": {}, "judged_at": version.finished.isoformat(), "run_id": "made",
        }  # fmt: skip
        _put_json(root / f"verdicts/{path_segment(version.key)}/latest.json", verdict)
    return sum(written)


def add_evaluation(root: Path, samples: int, number: int, *, seed: int = 1) -> None:
    """One evaluation more, of the so many-th version that the store hasn't got yet."""
    digest = hashlib.sha256(f"newcomer {number}".encode()).hexdigest()
    version = Version("newcomer", number, False, 0.5, digest, datetime(2026, 9, 1, tzinfo=UTC))
    _Benchmark(root, shapes()[0], samples, seed).evaluate(version, 1)


def _pairs(models: Sequence[Version]) -> list[tuple[Version, Version]]:
    by_key = {(version.name, version.version): version for version in models}
    return [(by_key[version.name, version.version - 1], version) for version in models if version.version > 1]


def _benchmark(root: Path, models: Sequence[Version], samples: int, seed: int, shape: Shape) -> int:
    benchmark = _Benchmark(root, shape, samples, seed)
    scores: dict[str, tuple[str, Floats]] = {}
    count = 0
    for number, version in enumerate(models):
        for attempt in (1, 2) if number % TWICE_EVERY == 0 else (1,):
            scores[version.key] = benchmark.evaluate(version, attempt)
            count += 1
    for before, version in _pairs(models):
        benchmark.compare(version, before, scores[version.key], scores[before.key])
    return count


class _Benchmark:
    """One benchmark's items, and its evaluations."""

    def __init__(self, root: Path, shape: Shape, samples: int, seed: int) -> None:
        self._root, self._shape, self._n = root, shape, samples
        self._seed = int.from_bytes(hashlib.sha256(f"{seed} {shape.key}".encode()).digest()[:4])
        draw = np.random.default_rng(self._seed)
        self._fingerprint = hashlib.sha256(f"{seed} {shape.key}".encode()).hexdigest()
        self._difficulty = draw.normal(0, 1, samples)
        self._ids = [
            hashlib.sha256(f"{seed} {shape.key} {i}".encode()).hexdigest()[:16] for i in range(samples)
        ]
        self._groups = (
            [f"subject {i % shape.groups:02d}" for i in range(samples)] if shape.groups else [None] * samples
        )
        shots = _text(draw, shape.prompt - 180) if shape.prompt > 1000 else ""
        self._prompts = [
            shots + _text(draw, min(shape.prompt, 180 if shots else shape.prompt)) for _ in range(samples)
        ]
        self._targets = draw.integers(0, max(shape.choices, 1), samples)
        self._choices = [[_text(draw, shape.choice) for _ in range(shape.choices)] for _ in range(samples)]
        self._references = [[] if shape.choices else [_text(draw, 20)] for _ in range(samples)]
        self._tokens = draw.integers(4, 40, (samples, shape.choices))
        _put_json(
            root / f"benchmarks/{shape.key}/current.json",
            {"key": shape.key, "fingerprint": self._fingerprint},
        )

    def evaluate(self, version: Version, attempt: int) -> tuple[str, Floats]:
        """Write an evaluation; returns its id and the primary metric's score of each item."""
        shape = self._shape
        fingerprint = hashlib.sha256(f"{version.digest} {self._fingerprint}".encode()).hexdigest()
        identity = f"{fingerprint[:16]}-{attempt}"
        draw = np.random.default_rng([self._seed, int(version.digest[:8], 16), attempt])
        right = draw.random(self._n) < 1 / (1 + np.exp(self._difficulty - version.ability))
        scores, answers = (self._chosen if shape.choices else self._written)(draw, right)
        prompts = self._prompts
        if version.chat:
            prompts = [f"<|{version.name}|>user\n{prompt}<|end|>\n<|assistant|>" for prompt in prompts]
        columns: dict[str, Any] = {
            "sample_id": self._ids, "index": range(self._n), "group": self._groups,
            "cluster": [None] * self._n, "prompt": prompts,
            "choices": self._choices, "references": self._references,
            "labels": [[]] * self._n, "incorrect_references": [[]] * self._n, "outputs": [[]] * self._n,
            "prompt_tokens": [len(prompt) // 4 for prompt in prompts], "truncated_tokens": [0] * self._n,
            "error": [None] * self._n,
            "scores": [list(zip(scores, row, strict=True)) for row in zip(*scores.values(), strict=True)],
            **answers,
        }  # fmt: skip
        folder = self._root / f"evaluations/{shape.key}/{path_segment(version.key)}/{identity}"
        folder.mkdir(parents=True)
        whole = {"evaluation_id": identity, "dataset": shape.key, "model": version.key}
        table = pa.table(
            [pa.array(columns[field.name], field.type) for field in SAMPLE_SCHEMA], schema=SAMPLE_SCHEMA
        )
        (folder / SAMPLES).write_bytes(parquet(_identified(table, whole)))
        metrics, primary = self._metrics(scores)
        (folder / METRICS).write_bytes(parquet(_identified(metrics, whole)))
        record = {**whole, "fingerprint": fingerprint, **self._record(version, draw, primary, scores)}
        _put_json(folder / RECORD, record)
        return identity, scores[shape.metrics[-1]]

    def compare(
        self, version: Version, before: Version, ours: tuple[str, Floats], theirs: tuple[str, Floats]
    ) -> None:
        """Write how a version compares with the one before."""
        difference = ours[1] - theirs[1]
        stderr = float(difference.std() / np.sqrt(self._n))
        mean = float(difference.mean())
        name = "worse" if mean < -2 * stderr else "better" if mean > 2 * stderr else "undecided"
        value = {
            "dataset": self._shape.key, "model": version.key, "baseline": before.key,
            "metric": self._shape.metrics[-1], "candidate_evaluation": ours[0],
            "baseline_evaluation": theirs[0], "items_available": 14_042,
            "comparison": {
                "difference": mean, "stderr": stderr, "unpaired_stderr": 1.4 * stderr,
                "ci_low": mean - 2 * stderr, "ci_high": mean + 2 * stderr, "detectable": 3 * stderr,
                "n": self._n, "ties": int((difference == 0).sum()), "method": "paired score",
                "wins": [self._ids[i] for i in np.flatnonzero(difference > 0)],
                "losses": [self._ids[i] for i in np.flatnonzero(difference < 0)],
            },
            "verdict": {
                "name": name, "tolerance": 0.02, "p_worse": 0.5, "p_not_worse": 0.5, "reason": "as drawn",
            },
        }  # fmt: skip
        _put_json(
            self._root / f"comparisons/{path_segment(self._shape.key)}/{path_segment(version.key)}.json",
            value,
        )

    def _chosen(self, draw: np.random.Generator, right: Bools) -> tuple[dict[str, Floats], dict[str, Any]]:
        n, choices = self._n, self._shape.choices
        likelihoods = -draw.gamma(8.0, 4.0, (n, choices)).astype(np.float32).astype(np.float64)
        best = np.where(right, self._targets, (self._targets + draw.integers(1, choices, n)) % choices)
        rows = np.arange(n)
        top, old = likelihoods.max(axis=1), likelihoods[rows, best].copy()
        at = likelihoods.argmax(axis=1)
        likelihoods[rows, at], likelihoods[rows, best] = old, top
        answers = {
            "target": self._targets, "loglikelihoods": list(likelihoods), "choice_tokens": list(self._tokens),
            "is_greedy": list(likelihoods > -8), "output": [None] * n, "finish_reason": [None] * n,
            "output_tokens": [0] * n,
        }  # fmt: skip
        hits = right.astype(float)
        soft = np.exp(top) / np.exp(likelihoods).sum(axis=1)
        found = dict.fromkeys(self._shape.metrics, hits)
        for name in ("brier", "mc2"):
            if name in found:
                found[name] = soft
        if "acc_norm" in found:
            flip = draw.random(n) < 0.1
            found["acc_norm"] = np.where(flip, 1 - hits, hits)
        return found, answers

    def _written(self, draw: np.random.Generator, right: Bools) -> tuple[dict[str, Floats], dict[str, Any]]:
        n, words = self._n, self._shape.words
        vocabulary, cumulated = _vocabulary()
        drawn = vocabulary[np.searchsorted(cumulated, draw.random((n, words)))]
        rare = draw.random(n) < 0.001
        outputs = [
            " ".join([*row, *([RARE] if rare[i] else []), self._references[i][0] if right[i] else "nothing"])
            for i, row in enumerate(drawn.tolist())
        ]
        answers = {
            "target": [None] * n, "loglikelihoods": [[]] * n, "choice_tokens": [[]] * n,
            "is_greedy": [[]] * n, "output": outputs,
            "finish_reason": np.where(draw.random(n) < 0.9, "stop", "length").tolist(),
            "output_tokens": [len(output) // 4 for output in outputs],
        }  # fmt: skip
        hits = right.astype(float)
        soft = np.where(right, 1.0, np.round(draw.random(n), 2))
        return {self._shape.metrics[0]: hits, self._shape.metrics[1]: soft}, answers

    def _metrics(self, scores: dict[str, Floats]) -> tuple[pa.Table, dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        labels = np.array([group or "" for group in self._groups])
        whole: dict[str, Any] = {}
        for metric, values in scores.items():
            whole = _estimate(values)
            rows.append({"metric": metric, "group": None, **whole})
            if self._shape.groups:
                rows += [
                    {"metric": metric, "group": str(group), **_estimate(values[labels == group])}
                    for group in np.unique(labels)
                ]
        return pa.Table.from_pylist(rows, schema=METRIC_SCHEMA), whole

    def _record(
        self, version: Version, draw: np.random.Generator, primary: dict[str, Any], scores: dict[str, Floats]
    ) -> dict[str, Any]:
        seconds = float(draw.gamma(4, 30))
        kind, price = _CLASSES[int(draw.integers(len(_CLASSES)))]
        packages = dict.fromkeys(("torch", "transformers", "tokenizers", "rouge-score", "scipy"), "1.2.3")
        return {
            "content_digest": version.digest, "model_name": version.name,
            "model_version": str(version.version), "model_digest": version.digest,
            "model_parameters": 10**9, "benchmark_version": "1", "benchmark_fingerprint": self._fingerprint,
            "task": "multiple_choice" if self._shape.choices else "generation",
            "run_id": hashlib.sha256(version.digest.encode()).hexdigest()[:36],
            "started_at": (version.finished - timedelta(seconds=seconds)).isoformat(),
            "finished_at": version.finished.isoformat(), "status": "valid", "items_available": 14_042,
            "samples": self._n, "samples_resumed": 0, "samples_taken_over": 0, "stage": None,
            "interruptions": 0, "parts_discarded": 0, "samples_with_error": 0, "samples_truncated": 0,
            "prompt_tokens": 100 * self._n, "output_tokens": 0, "primary_metric": self._shape.metrics[-1],
            "higher_is_better": True, "score": {**primary, "sampling_share": None},
            "metrics": {name: float(values.mean()) for name, values in scores.items()},
            "seconds": {"load": 8.1, "prefill": round(seconds, 3), "decode": 0.0, "score": 0.1},
            "prompt_tokens_computed": 80 * self._n, "output_tokens_computed": 0, "batch_sequences": 128,
            "peak_memory_bytes": 4 * 10**9, "peak_device_bytes": 20 * 10**9, "accelerator_class": kind,
            "accelerator_count": 1, "accelerator_seconds": round(seconds, 3),
            "spot": bool(draw.random() < 0.3),
            "price_per_hour": price, "cost": round(price * seconds / 3600, 6),
            "team": _TEAMS[int(draw.integers(len(_TEAMS)))],
            "engine": {
                "engine": "transformers", "device": "cuda", "device_name": kind, "dtype": "bfloat16",
                "threads": 8, "seed": 1234, "deterministic": True, "passes": "prefix tree",
                "batch_tokens": 16384, "context_length": 8192, "attention": "prefix_tree",
            },
            "scoring_version": "2", "packages": packages, "python": "3.11.7", "git_revision": "0" * 40,
        }  # fmt: skip


def _estimate(values: Floats) -> dict[str, Any]:
    mean, stderr = float(values.mean()), float(values.std() / np.sqrt(len(values)))
    return {
        "value": mean, "stderr": stderr, "ci_low": mean - 2 * stderr, "ci_high": mean + 2 * stderr,
        "n": len(values),
    }  # fmt: skip


@cache
def _vocabulary() -> tuple[npt.NDArray[np.str_], Floats]:
    """Twenty thousand words, and how often each is used, cumulated (Zipf's law)."""
    draw = np.random.default_rng(0)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = {"".join(draw.choice(syllables, int(draw.integers(1, 5)))) for _ in range(26_000)}
    weights = 1 / np.arange(1, len(words) + 1) ** _ZIPF
    return np.array(sorted(words, key=lambda word: (len(word), word))), np.cumsum(weights / weights.sum())


def _text(draw: np.random.Generator, characters: int) -> str:
    vocabulary, cumulated = _vocabulary()
    words = vocabulary[np.searchsorted(cumulated, draw.random(characters // 3 + 1))]
    return " ".join(words.tolist())[:characters]


def _identified(table: pa.Table, identity: dict[str, str]) -> pa.Table:
    for position, (name, value) in enumerate(identity.items()):
        column = pa.array([value] * table.num_rows, pa.string())
        table = table.add_column(position, pa.field(name, pa.string(), nullable=False), column)
    return table


def _put_json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1))
