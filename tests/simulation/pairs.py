"""Pairs of versions to simulate: how often two versions score an item differently, and by how much."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_assets.statistics import Floats
from resources.records import EvaluationRecord
from resources.results import ResultsStore
from tests.committed import committed_in

AGREEMENT = Path(__file__).with_name("agreement.json")


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two versions agree on items: the share that differs, quantiles of the differences' sizes.

    Items come in clusters of `cluster_size`; an item has its cluster's difference with probability `sharing`.
    """

    name: str
    differing: float
    sizes: tuple[float, ...]
    cluster_size: int = 1
    sharing: float = 0.0

    @property
    def binary(self) -> bool:
        """Whether scores are 0 or 1."""
        return self.sizes == (1.0,)

    def variance(self, truth: float = 0.0) -> float:
        """What the variance of a mean of n differences is times n, where their true mean is `truth`."""
        share = self.differing + abs(truth) / float(np.mean(self.sizes))
        inflation = 1 + (self.cluster_size - 1) * self.sharing**2
        return (share * float(np.mean(np.square(self.sizes))) - truth * truth) * inflation

    def possible(self, truth: float) -> bool:
        """Whether items that differ can make up that true difference."""
        return self.differing + abs(truth) / float(np.mean(self.sizes)) <= 1

    def draw(
        self, generator: np.random.Generator, trials: int, items: int, truth: float
    ) -> tuple[Floats, NDArray[np.int64] | None]:
        """Differences of shape (trials, items), and each item's cluster, shape (items,).

        Two equal versions win and lose the same. A truth other than 0 comes from further items that differ,
        all in one direction: what a regression adds to the disagreement that there is anyway.
        """
        own = self._independent(generator, (trials, items), truth)
        if self.cluster_size == 1:
            return own, None
        groups = -(-items // self.cluster_size)
        # The items are looked at in random order, so a cluster's items come at different looks.
        clusters = generator.permutation(groups * self.cluster_size)[:items] // self.cluster_size
        shared = self._independent(generator, (trials, groups), truth)[:, clusters]
        return np.where(generator.random((trials, items)) < self.sharing, shared, own), clusters

    def _independent(self, generator: np.random.Generator, shape: tuple[int, int], truth: float) -> Floats:
        sizes = np.asarray(self.sizes)
        added = abs(truth) / sizes.mean()
        if not self.possible(truth):
            raise ValueError(f"{self.name}: no item is left to make a difference of {truth}")
        chance = generator.random(shape)
        signs = np.where(chance < self.differing / 2, 1.0, 0.0) - (chance >= 1 - self.differing / 2)
        middle = (chance >= self.differing / 2) & (chance < self.differing / 2 + added)
        signs[middle] = np.sign(truth)
        return np.asarray(signs * generator.choice(sizes, shape) if len(sizes) > 1 else signs * sizes[0])


def committed() -> list[Agreement]:
    """The agreements of agreement.json."""
    return [_agreement(row) for row in json.loads(AGREEMENT.read_text(encoding="utf-8"))]


def of_store(root: str) -> Iterator[Agreement]:
    """The agreement of each two versions of a model in a results store, by benchmark, on its primary metric.

    Items are assumed to be independent. Pairs that never differ, or only in one direction, are left out:
    nothing can be simulated from them.
    """
    store = ResultsStore(root)
    seen: set[Agreement] = set()
    latest: dict[tuple[str, str, str], EvaluationRecord] = {}
    for record in committed_in(store):
        bounds = record["score"] is not None and record["higher_is_better"] is not None
        if bounds and record["task"] != "perplexity":
            latest[record["dataset"], record["model_name"], record["model_version"]] = record
    for (dataset, name, version), (other_dataset, other_name, other) in combinations(sorted(latest), 2):
        if (dataset, name) != (other_dataset, other_name):
            continue
        metric = latest[dataset, name, version]["primary_metric"]
        first, second = (
            {s.sample_id: s.scores[metric] for s in store.samples(latest[dataset, name, v]) if s.scores}
            for v in (version, other)
        )
        differences = np.array([second[key] - first[key] for key in sorted(first.keys() & second.keys())])
        sizes = np.abs(differences[differences != 0])
        if not len(sizes):
            continue
        # What is left where the versions were equally good: without the items that make the difference.
        share = (len(sizes) - abs(differences.sum()) / sizes.mean()) / len(differences)
        quantiles = np.unique(np.quantile(sizes, np.linspace(0.05, 0.95, 10)).round(4))
        agreement = Agreement(
            f"{dataset}, @{version} and @{other}",
            round(float(share), 4),
            tuple(float(size) for size in quantiles),
        )
        # Two copies of one version agree with a third in the same way.
        if share > 0 and replace(agreement, name=dataset) not in seen:
            seen.add(replace(agreement, name=dataset))
            yield agreement


def as_rows(agreements: list[Agreement]) -> list[dict[str, Any]]:
    """As agreement.json has them."""
    return [asdict(agreement) for agreement in agreements]


def _agreement(row: dict[str, Any]) -> Agreement:
    return Agreement(**{**row, "sizes": tuple(row["sizes"])})
