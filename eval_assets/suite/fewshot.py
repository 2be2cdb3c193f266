"""Which solved examples an item is shown."""

import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from eval_assets.suite.items import Example, Item
from eval_assets.suite.spec import BenchmarkSpec
from resources.errors import UserError


@dataclass(frozen=True, slots=True)
class Candidate:
    """An example that may be shown, unless the item asks one of `queries`: then it would show the answer."""

    example: Example
    queries: tuple[str, ...]
    group: str | None


class ExamplePool:
    """The candidates of a benchmark, in order, split by group where examples come from the item's own."""

    def __init__(self, spec: BenchmarkSpec, candidates: Iterable[Candidate]) -> None:
        self._spec = spec
        self._per_group = spec.fewshot.per_group
        self._examples: dict[str | None, list[Example]] = defaultdict(list)
        self._asking: dict[tuple[str | None, str], set[int]] = defaultdict(set)
        self._first: dict[str | None, tuple[Example, ...]] = {}
        for candidate in candidates:
            group = candidate.group if self._per_group else None
            for query in candidate.queries:
                self._asking[group, query].add(len(self._examples[group]))
            self._examples[group].append(candidate.example)

    def examples_for(self, item: Item) -> tuple[Example, ...]:
        """The item's examples, none of which asks what the item asks.

        Raises UserError if there are too few.
        """
        fewshot = self._spec.fewshot
        group = item.group if self._per_group else None
        pool = self._examples.get(group, [])
        own = self._asking.get((group, item.query), set())
        usable = len(pool) - len(own)
        if usable < fewshot.count:
            where = (
                f"split '{fewshot.split}'" if fewshot.split else fewshot.path or "the benchmark's own rows"
            )
            of_group = f" of group '{group}'" if self._per_group else ""
            raise UserError(
                f"{self._spec.file}: fewshot.n is {fewshot.count}, but there are only {usable} usable "
                f"examples{of_group} ({where}) besides the item itself; lower n or add examples"
            )
        if fewshot.pick == "seeded":
            # Python seeds a generator from a text by SHA-512: the same examples on every machine.
            draw = random.Random(f"{fewshot.seed}:{item.sample_id}")
            order: Iterable[int] = draw.sample(range(len(pool)), fewshot.count + len(own))
        elif not own:
            # Items that share one prompt share one object: it is compared and hashed all the time.
            if group not in self._first:
                self._first[group] = tuple(pool[: fewshot.count])
            return self._first[group]
        else:
            order = range(len(pool))
        return tuple(pool[index] for index in order if index not in own)[: fewshot.count]
