"""One cell on an engine without a model: what is saved, resumed, told and recorded."""

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval_assets.evaluating import evaluator
from eval_assets.evaluating.evaluator import Benchmark, Outcome, cell_for, evaluate
from eval_assets.evaluating.progress import Progress, time_left
from eval_assets.gates import check_cell
from eval_assets.metrics import ScoringSettings
from eval_assets.partitions import SUITE
from eval_assets.suite import normalize
from resources.datasets import read_rows
from resources.engines import Step
from resources.errors import UserError
from resources.records import Sample
from resources.registries import ModelVersion
from resources.results import Cell, EvaluationWriter, ResultsStore
from resources.writer import COMMITTED
from tests.committed import committed_in
from tests.eval_assets.fake_engine import FakeEngine

SCORING = ScoringSettings(bertscore_model="", bertscore_layers=None)
MODEL = ModelVersion(
    key="fake@1", digest="d" * 64, path="/nowhere", architecture="fake", parameters=1, weight_bytes=1,
    bytes_by_dtype={}, context_length=100, vocabulary=1, layers=1, kv_bytes_per_token=1, chat_template=False,
)  # fmt: skip


def benchmark(key: str = "capitals", copies: int = 20) -> Benchmark:
    """A test benchmark, its items repeated under other ids."""
    items = normalize(SUITE[key], read_rows).items
    many = [
        replace(item, sample_id=f"{item.sample_id}-{copy}", index=copy * len(items) + item.index)
        for copy in range(copies)
        for item in items
    ]
    return Benchmark(SUITE[key], "f" * 64, many, len(many))


def run(
    store: ResultsStore, engine: FakeEngine, asked: Benchmark | None = None, **options: Any
) -> tuple[Cell, Outcome]:
    asked = asked or benchmark()
    cell = cell_for(MODEL, asked, engine.fingerprint_fields, SCORING)
    return cell, evaluate(cell, MODEL, asked, lambda: engine, store, scoring=SCORING, **options)


def stopping(engine: FakeEngine, batches: int, error: BaseException) -> FakeEngine:
    """The engine, made to raise after some batches."""

    def before_batch() -> None:
        if engine.batches == batches:
            raise error

    engine.before_batch = before_batch
    return engine


def parts(store: ResultsStore) -> list[Path]:
    return sorted(Path(store.root).glob("evaluations/**/part-*.parquet"))


def test_a_resumed_evaluation_equals_an_undisturbed_one_to_the_last_bit(tmp_path: Path) -> None:
    """Otherwise nobody could tell a resumed evaluation from one that went wrong."""
    undisturbed, resumed = ResultsStore(str(tmp_path / "a")), ResultsStore(str(tmp_path / "b"))
    _, expected = run(undisturbed, FakeEngine(batch=7))
    for batches in (5, 9, 3):
        with pytest.raises(KeyboardInterrupt):
            run(resumed, stopping(FakeEngine(batch=7), batches, KeyboardInterrupt()))
    engine = FakeEngine(batch=7)
    _, outcome = run(resumed, engine)
    assert outcome.record["content_digest"] == expected.record["content_digest"]
    assert resumed.samples(outcome.record) == undisturbed.samples(expected.record)
    assert outcome.record["metrics"] == expected.record["metrics"]
    assert outcome.record["interruptions"] == 3
    assert outcome.record["samples_resumed"] > 12
    assert len(engine.computed) == (240 - outcome.record["samples_resumed"]) * 4


def test_samples_are_resumed_under_another_batch_size_but_not_under_another_fingerprint(
    store: ResultsStore, tmp_path: Path
) -> None:
    undisturbed = ResultsStore(str(tmp_path / "undisturbed"))
    _, expected = run(undisturbed, FakeEngine(batch=7))
    with pytest.raises(KeyboardInterrupt):
        run(store, stopping(FakeEngine(batch=7), 20, KeyboardInterrupt()))
    other = FakeEngine(batch=7)
    other.fingerprint_fields = {"dtype": "bfloat16"}
    _, outcome = run(store, other)
    assert outcome.record["samples_resumed"] == 0
    _, outcome = run(store, FakeEngine(batch=16))
    assert outcome.record["samples_resumed"] == 35
    for found, wanted in zip(
        store.samples(outcome.record), undisturbed.samples(expected.record), strict=True
    ):
        assert found.sample_id == wanted.sample_id
        assert found.loglikelihoods == pytest.approx(wanted.loglikelihoods, abs=1e-4)


def test_a_request_that_cannot_be_answered_costs_its_own_sample_only(store: ResultsStore) -> None:
    """One over-long item must not take ten thousand others with it, nor pass for a wrong answer."""
    asked = benchmark(copies=1)
    engine = FakeEngine(failing={" " + asked.items[3].choices[1]})
    _, outcome = run(store, engine, asked)
    samples = store.samples(outcome.record)
    errors = {sample.index: sample.error for sample in samples if sample.error}
    assert errors[3] == "it is too long"
    assert len(errors) < 12
    assert samples[3].prompt.endswith("Answer:")
    assert outcome.record["status"] == "invalid"
    failed = [check.name for check in check_cell(asked, outcome.record, samples) if not check.passed]
    assert "finite" in failed


def clocked(monkeypatch: pytest.MonkeyPatch, seconds_a_write: float) -> Callable[[float], None]:
    """A clock of the test's own, that each write advances; returns what advances it."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def advance(seconds: float) -> None:
        now[0] += seconds

    original = EvaluationWriter.append

    def append(self: Any, samples: Any) -> None:
        original(self, samples)
        advance(seconds_a_write)

    monkeypatch.setattr(EvaluationWriter, "append", append)
    return advance


@pytest.mark.parametrize(
    ("seconds_a_write", "seconds_a_batch", "expected"),
    [(0.001, 1.0, 60), (0.05, 1.0, 12), (5.0, 1.0, 2), (5.0, 0.001, 2), (0.001, 40.0, 60)],
)
def test_samples_are_saved_as_often_as_costs_a_hundredth_and_at_least_every_30_s_and_200(
    store: ResultsStore,
    monkeypatch: pytest.MonkeyPatch,
    seconds_a_write: float,
    seconds_a_batch: float,
    expected: int,
) -> None:
    """What is not saved is computed again after a kill; what is saved too often is paid by every run."""
    advance = clocked(monkeypatch, seconds_a_write)
    engine = FakeEngine(batch=16)
    engine.before_batch = lambda: advance(seconds_a_batch)
    written: list[int] = []
    original = EvaluationWriter.append

    def append(self: EvaluationWriter, samples: Sequence[Sample]) -> None:
        written.append(len(samples))
        original(self, samples)

    monkeypatch.setattr(EvaluationWriter, "append", append)
    run(store, engine)
    assert sum(written) == 240
    assert max(written) <= 200
    assert len([count for count in written if count]) == pytest.approx(expected, abs=1)


def test_finished_samples_are_saved_although_no_other_one_finishes(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long generations finish together after an hour; what was done before them must not wait for that."""
    advance = clocked(monkeypatch, 0.001)
    engine = FakeEngine(batch=48)
    seen: list[int] = []

    def before_batch() -> None:
        if engine.batches == 2:
            for _ in range(5):
                advance(7)
                engine.on_step(Step("decode", 7.0, 0, 1, 1, 0))
            seen.append(len(parts(store)))

    engine.before_batch = before_batch
    run(store, engine)
    assert seen == [2]


def test_a_damaged_part_is_told_counted_and_computed_again(store: ResultsStore, tmp_path: Path) -> None:
    _, expected = run(ResultsStore(str(tmp_path / "undisturbed")), FakeEngine())
    with pytest.raises(KeyboardInterrupt):
        run(store, stopping(FakeEngine(), 20, KeyboardInterrupt()))
    part = parts(store)[0]
    content = bytearray(part.read_bytes())
    content[100] ^= 4
    part.write_bytes(content)
    warnings: list[str] = []
    _, outcome = run(store, FakeEngine(), on_warning=warnings.append)
    assert [f"progress part {part.name} is damaged" in line for line in warnings] == [True]
    assert outcome.record["parts_discarded"] == 1
    assert outcome.record["content_digest"] == expected.record["content_digest"]


def test_a_commit_whose_process_was_killed_right_after_it_is_tidied_by_the_next_run(
    store: ResultsStore,
) -> None:
    _, first = run(store, FakeEngine())
    (record,) = Path(store.root).glob("evaluations/**/evaluation.json")
    (record.parent / "progress").mkdir()
    (record.parent / "progress" / "part-000001-0.parquet").write_text("left behind")
    (record.parent / "lease.json").write_text("{}")
    engine = FakeEngine()
    _, outcome = run(store, engine)
    assert (outcome.reused, engine.batches) == (True, 0)
    assert outcome.record == first.record
    assert {path.name for path in record.parent.iterdir()} == COMMITTED


def test_an_interrupted_run_leaves_word_of_itself(store: ResultsStore) -> None:
    warnings: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run(
            store,
            stopping(FakeEngine(), 20, KeyboardInterrupt()),
            run_id="run 1",
            on_warning=warnings.append,
        )
    (path,) = Path(store.root).glob("evaluations/**/runs.json")
    (left,) = json.loads(path.read_text())["runs"]
    assert (left["run_id"], left["ended"]["samples"]) == ("run 1", 40)
    assert left["ended"]["reason"] == "interrupted (KeyboardInterrupt)"
    assert warnings == [
        "fake@1 on capitals: interrupted (KeyboardInterrupt); 40 of 240 samples are kept, "
        "and the next run goes on from there"
    ]


def test_the_record_adds_up_what_the_models_passes_told(store: ResultsStore) -> None:
    engine = FakeEngine(batch=32, memory_bytes=10**15)
    _, outcome = run(store, engine, benchmark("capitals_written", 1))
    record = outcome.record
    assert set(record["seconds"]) == {"load", "prefill", "decode", "score"}
    assert (record["prompt_tokens_computed"], record["output_tokens_computed"]) == (120, 36)
    assert record["batch_sequences"] == 1
    assert record["peak_memory_bytes"] == 10**15
    assert record["seconds"]["decode"] >= 0
    engine.on_step(Step("decode", 1.0, 1, 1, 1, 1))  # nobody listens any more


def test_progress_is_one_line_with_everything_an_operator_looks_at(store: ResultsStore) -> None:
    lines: list[Progress] = []
    run(store, FakeEngine(batch=32, memory_bytes=2_500_000_000), on_progress=lines.append)
    assert (lines[0].done, lines[-1].done) == (0, 240)
    assert re.fullmatch(
        r"fake@1 on capitals: 240/240 samples, [\d,.]+ samples/s, [\d,]+ prompt tokens/s, 0 output tokens/s, "
        r"0:00 left, batch 32, 2\.50 GB",
        lines[-1].line(),
    )
    assert "time left unknown" in lines[0].line()
    assert time_left(10, 100, 1300) == "2:10 left"


@pytest.mark.parametrize("error", [RuntimeError("the log is gone"), KeyboardInterrupt()])
def test_what_progress_raises_within_the_models_pass_is_not_swallowed(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """A cancellation that arrives while progress is logged would otherwise be lost."""
    monkeypatch.setattr(evaluator, "REPORT_SECONDS", 0.0)

    def fail(progress: Progress) -> None:
        if progress.done >= 20:
            raise error

    with pytest.raises(type(error)):
        run(store, FakeEngine(), on_progress=fail)
    assert committed_in(store) == []
    _, outcome = run(store, FakeEngine())
    assert outcome.record["samples_resumed"] >= 20


def test_a_metric_that_cannot_be_computed_says_so_at_the_first_answer(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After hours of answers it would be too late."""

    def unavailable(*_: object) -> None:
        raise UserError("no encoder")

    monkeypatch.setattr(evaluator, "score_samples", unavailable)
    engine = FakeEngine()
    with pytest.raises(UserError, match="no encoder"):
        run(store, engine)
    assert engine.batches == 1
