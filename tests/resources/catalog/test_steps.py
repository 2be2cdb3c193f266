"""Whatever happens to a store, a catalogue refreshed step by step is the one that is made at once."""

import json
import shutil
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from resources.catalog import CATALOG, Catalog, Refresh
from resources.records import Estimate, MetricRow, Sample
from resources.results import Cell, ResultsStore
from tests.resources.catalog.relations import relations, stored_rows
from tests.resources.test_results import findings

MODELS = st.sampled_from(["m@1", "m@2", "org/other@1"])
DATASETS = st.sampled_from(["squad", "quiz"])
DIGESTS = st.sampled_from("ab")
ANY = st.integers(0, 1000)


class Store(RuleBasedStateMachine):
    """A store that things happen to; the catalogue is refreshed after every one, two or three of them.

    It begins with so much that what one of them takes out is never the half of it: the catalogue would be
    made anew, and nothing be taken out of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = ResultsStore(str(self.folder / "store"))
        self.saved: dict[Path, bytes] = {}
        self.clock = 0
        self.steps = 0
        self.every = 1

    @initialize(every=st.integers(1, 3))
    def it_begins_with_something(self, every: int) -> None:
        for dataset in ("squad", "quiz"):
            for model in ("m@1", "m@2", "org/other@1"):
                self.an_evaluation_is_committed_or_repeated(dataset, model, "a", [0.0, 1.0])
                self.a_cell_is_compared(dataset, model, "worse")
        for model in ("m@1", "m@2"):
            self.a_version_is_judged(model, "passed")
            self.a_version_is_recorded(model, "a", False)
        self.every = every
        self.refresh()

    @rule(
        dataset=DATASETS,
        model=MODELS,
        digest=DIGESTS,
        scores=st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=4),
    )
    def an_evaluation_is_committed_or_repeated(
        self, dataset: str, model: str, digest: str, scores: list[float]
    ) -> None:
        samples = [
            Sample(
                f"id{i}", i, "g", None, f"{dataset} {i}", output=f"{score} of {model}", scores={"f1": score}
            )
            for i, score in enumerate(scores)
        ]
        self.clock += 1
        record = findings(
            model_name=model.split("@")[0],
            model_digest=digest,
            samples=len(scores),
            finished_at=f"2026-01-01T00:{self.clock:02d}:00+00:00",
        )
        with self.store.writer(Cell(dataset, model, digest * 64), force=True) as writer:
            estimate = Estimate(sum(scores), None, None, None, len(scores))
            writer.commit(samples, [MetricRow("f1", None, estimate)], record)

    def evaluations(self) -> list[Path]:
        return sorted(Path(self.store.root).glob("evaluations/*/*/*"))

    @rule(which=ANY)
    def an_evaluation_is_removed(self, which: int) -> None:
        if folders := self.evaluations():
            shutil.rmtree(folders[which % len(folders)])

    @rule(which=ANY)
    def prompts_are_taken_out(self, which: int) -> None:
        paths = [path for folder in self.evaluations() for path in folder.glob("samples.parquet")]
        if not paths or (path := paths[which % len(paths)]) in self.saved:
            return
        table = pq.read_table(path)
        place = table.column_names.index("prompt")
        pq.write_table(table.set_column(place, "prompt", pa.nulls(table.num_rows, pa.string())), path)

    @rule(which=ANY, name=st.sampled_from(["evaluation.json", "samples.parquet", "metrics.parquet"]), cut=ANY)
    def a_file_is_cut_off(self, which: int, name: str, cut: int) -> None:
        paths = [folder / name for folder in self.evaluations() if (folder / name).exists()]
        if paths and (path := paths[which % len(paths)]) not in self.saved:
            self.saved[path] = path.read_bytes()
            path.write_bytes(self.saved[path][: cut % len(self.saved[path])])

    @rule()
    def damaged_files_are_restored(self) -> None:
        for path, content in self.saved.items():
            if path.exists():
                path.write_bytes(content)
        self.saved.clear()

    @rule(dataset=DATASETS, model=MODELS, verdict=st.sampled_from(["worse", "undecided"]))
    def a_cell_is_compared(self, dataset: str, model: str, verdict: str) -> None:
        self.store.save_comparison(
            dataset,
            model,
            {
                "dataset": dataset, "model": model, "baseline": "m@1", "metric": "f1",
                "candidate_evaluation": "x", "baseline_evaluation": "y",
                "comparison": {"difference": -0.1, "n": 3, "wins": ["id1"], "losses": [], "ties": 2},
                "verdict": {"name": verdict, "reason": "so"},
            },
        )  # fmt: skip

    @rule(model=MODELS, status=st.sampled_from(["passed", "failed"]))
    def a_version_is_judged(self, model: str, status: str) -> None:
        verdict = {"verdict_id": "1", "model": model, "status": status, "missing": {"squad": "none"}}
        self.store.save_verdict(model, verdict)

    @rule(model=MODELS, digest=DIGESTS, deleted=st.booleans())
    def a_version_is_recorded(self, model: str, digest: str, deleted: bool) -> None:
        self.store.save_model_version(model, {"digest": digest, "deleted": deleted})

    @rule(content=st.sampled_from([b"", b"cut", b"[]", b'{"digest": 1}']))
    def a_record_of_a_version_is_damaged(self, content: bytes) -> None:
        self.store.put("models/m@2.json", content)

    @invariant()
    def it_is_refreshed_and_is_the_catalogue_that_is_made_at_once(self) -> None:
        self.steps += 1
        if self.steps % self.every == 0:
            self.refresh()

    def refresh(self) -> None:
        done = Catalog(self.store).refresh()
        assert Catalog(self.store).refresh() == Refresh(0, 0, done.total, 0, done.damaged)
        anew = self.folder / "anew"
        anew.mkdir(exist_ok=True)
        for path in Path(self.store.root).iterdir():
            if path.is_dir() and not (anew / path.name).exists():
                (anew / path.name).symlink_to(path)
        (anew / CATALOG).unlink(missing_ok=True)
        made = Catalog(ResultsStore(str(anew)))
        made.refresh()
        assert relations(Catalog(self.store)) == relations(made)
        assert stored_rows(Catalog(self.store)) == stored_rows(made)

    def teardown(self) -> None:
        self.refresh()
        total = sum(1 for folder in self.evaluations() if _is_whole(folder))
        assert Catalog(self.store).refresh().total == total
        shutil.rmtree(self.folder)


def _is_whole(folder: Path) -> bool:
    try:
        json.loads((folder / "evaluation.json").read_bytes())
        pq.read_table(folder / "samples.parquet")
        pq.read_table(folder / "metrics.parquet")
    except (ValueError, OSError):
        return False
    return True


def test_a_catalogue_refreshed_step_by_step_is_the_one_that_is_made_at_once() -> None:
    """A catalogue that drifts from the files shows numbers that nobody can find again, and no error."""
    run_state_machine_as_test(
        Store,
        settings=settings(
            max_examples=12, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
