"""What each cell of the grid is today: which items, asked how, run by what; and so its fingerprint."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from eval_assets.evaluating.evaluator import cell_for
from eval_assets.grid.prepared import PreparedBenchmark, prepared_benchmark
from eval_assets.grid.tracking import TrackedModels, Tracking
from eval_assets.metrics import ScoringSettings
from eval_assets.statistics.sequential import Looks
from resources.engines.settings import EngineSettings, fingerprint_fields
from resources.records import EvaluationRecord
from resources.registries import ModelVersion
from resources.results import Cell, ResultsStore
from resources.settings import Settings


@dataclass(frozen=True, slots=True)
class Cells:
    """Everything that decides about a cell but the model itself. Raises UserError for what is missing."""

    settings: Settings
    store: ResultsStore
    tracking: Tracking

    @property
    def scoring(self) -> ScoringSettings:
        """What the metrics need to know of their surroundings."""
        return ScoringSettings(
            bertscore_model=self.settings.bertscore_model, bertscore_layers=self.settings.bertscore_layers
        )

    def benchmark(self, name: str, dataset: str) -> PreparedBenchmark:
        """A benchmark as the versions of a model are asked it."""
        entry = self.tracking.entry(name)
        return prepared_benchmark(dataset, self.store, self.settings.limit, entry.chat if entry else None)

    def engine_fields(self, name: str) -> Mapping[str, Any]:
        """The engine's settings for a model that may change a score."""
        return fingerprint_fields(EngineSettings(device=self.settings.device, dtype=self.dtype(name)))

    def dtype(self, name: str) -> str:
        """The dtype that a model is run in: its own entry's, or else that of all."""
        entry: TrackedModels | None = self.tracking.entry(name)
        return entry.dtype if entry is not None and entry.dtype != "auto" else self.settings.dtype

    def cell(self, version: ModelVersion, benchmark: PreparedBenchmark) -> Cell:
        """The cell with today's fingerprint."""
        return cell_for(version, benchmark, self.engine_fields(version.name), self.scoring)

    def looks(self, benchmark: PreparedBenchmark) -> list[PreparedBenchmark]:
        """The benchmark at each look of a staged evaluation: ever more of its items, at last all."""
        return [replace(benchmark, count=size) for size in Looks().sizes(benchmark.count)]

    def accepted(
        self, version: ModelVersion, benchmark: PreparedBenchmark, baseline: str | None
    ) -> list[tuple[PreparedBenchmark, Cell]]:
        """The cells any of which, once shown, is the evaluation that is wanted: of most items first.

        Of a version that is evaluated in stages that may be an earlier look; not of the one in production,
        which others are compared with on all items.
        """
        entry = self.tracking.entry(version.name)
        looks = [benchmark]
        if entry is not None and entry.staged and baseline is not None and baseline != version.key:
            looks = self.looks(benchmark)[::-1]
        return [(look, self.cell(version, look)) for look in looks]

    def evaluation(
        self, version: ModelVersion, dataset: str, baseline: str | None
    ) -> EvaluationRecord | None:
        """The record of the cell's evaluation of today, with as many items as there are; None without one."""
        for _, cell in self.accepted(version, self.benchmark(version.name, dataset), baseline):
            record = self.store.committed(cell)
            if record is not None:
                return record
        return None
