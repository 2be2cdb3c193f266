import json
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.errors import UserError
from resources.keys import key_of_segment, path_segment
from resources.records import SAMPLE_SCHEMA, Estimate, EvaluationRecord, Findings, MetricRow, Sample
from resources.registries.folder import FolderRegistry
from resources.results import AlreadyCommittedError, Cell, ResultsStore
from resources.writer import COMMITTED, content_digest
from tests.committed import committed_in

CELL = Cell("hellaswag", "org/model@1", "ab" * 32)
METRICS = [
    MetricRow("acc", None, Estimate(0.5, 0.1, 0.3, 0.7, 2)),
    MetricRow("acc", "g", Estimate(1, None, None, None, 1)),
]


def findings(**values: Any) -> Findings:
    """What an evaluation says of itself, with these values in the place of made-up ones."""
    whole: Findings = {
        "model_name": "m", "model_version": "1", "model_digest": "d", "model_parameters": 5,
        "benchmark_version": "1", "benchmark_fingerprint": "b", "task": "generation", "run_id": "",
        "started_at": "2026-01-01T00:00:00+00:00", "finished_at": "2026-01-01T00:00:00+00:00",
        "status": "valid", "items_available": 1, "samples": 1, "samples_resumed": 0, "samples_with_error": 0,
        "samples_truncated": 0, "primary_metric": "f1", "higher_is_better": True, "score": None,
        "metrics": {}, "seconds": {}, "engine": {}, "scoring_version": None, "packages": {}, "python": None,
        "git_revision": None,
    }  # fmt: skip
    return cast(Findings, {**whole, **values})


def evaluation_record(**values: Any) -> EvaluationRecord:
    """The record of an evaluation, with these values in the place of made-up ones."""
    identity = {"evaluation_id": "f-1", "dataset": "squad", "model": "m@1", "fingerprint": "f"}
    return cast(EvaluationRecord, {**identity, "content_digest": "c", **findings(**values)})


def sample(index: int, **values: Any) -> Sample:
    return Sample(
        sample_id=f"id{index}",
        index=index,
        group="g",
        cluster=None,
        prompt=f"prompt {index}",
        **values,
    )


def test_a_sample_survives_the_way_through_parquet_unchanged() -> None:
    original = sample(
        3, target=1, choices=["a", "b"], labels=[0, 1], references=["x"], incorrect_references=["y"],
        loglikelihoods=[-1.5, -0.25], choice_tokens=[2, 3], is_greedy=[True, False], output="text",
        finish_reason="stop", prompt_tokens=7, output_tokens=5, truncated_tokens=1,
        scores={"acc": 1.0, "acc_norm": 0.0}, error=None,
    )  # fmt: skip
    table = pa.Table.from_pylist([original.as_row()], schema=SAMPLE_SCHEMA)
    assert Sample.from_row(table.to_pylist()[0]) == original


def test_an_evaluation_exists_only_once_its_record_is_written(store: ResultsStore) -> None:
    """A reader must never see half an evaluation, whatever its writer was doing when it died."""
    with store.writer(CELL) as writer:
        writer.append([sample(0)])
        assert committed_in(store) == []
        assert store.committed(CELL) is None
        assert store.evaluated("hellaswag") == set()
        record = writer.commit([sample(1), sample(0)], METRICS, findings())
        folder = Path(writer.path)
    assert committed_in(store) == [record]
    assert store.committed(CELL) == record
    assert store.evaluated("hellaswag") == {("org/model@1", "abababababababab")}
    assert store.evaluated("squad") == set()
    assert [s.index for s in store.samples(record)] == [0, 1]
    assert sorted(path.name for path in folder.iterdir()) == [
        "evaluation.json", "metrics.parquet", "samples.parquet",
    ]  # fmt: skip


def test_samples_and_metrics_carry_their_evaluation(store: ResultsStore) -> None:
    with store.writer(CELL) as writer:
        writer.commit([sample(0)], METRICS, findings())
        for name in ("samples", "metrics"):
            row = pq.read_table(f"{writer.path}/{name}.parquet").to_pylist()[0]
            assert (row["evaluation_id"], row["dataset"], row["model"]) == (
                "abababababababab-1", "hellaswag", "org/model@1",
            )  # fmt: skip


def test_the_next_writer_finds_what_a_killed_one_had_finished(store: ResultsStore) -> None:
    with pytest.raises(KeyboardInterrupt), store.writer(CELL) as writer:
        writer.append([sample(0), sample(1)])
        writer.append([sample(2)])
        raise KeyboardInterrupt
    with store.writer(CELL) as writer:
        assert sorted(s.index for s in writer.finished()[0]) == [0, 1, 2]
        writer.append([sample(3)])
        assert sorted(s.index for s in writer.finished()[0]) == [0, 1, 2, 3]


def test_another_fingerprint_never_resumes_the_samples_of_the_first(store: ResultsStore) -> None:
    with store.writer(CELL) as writer:
        writer.append([sample(0)])
    with store.writer(Cell(CELL.dataset, CELL.model, "cd" * 32)) as writer:
        assert writer.finished() == ([], [])


@pytest.mark.parametrize("damage", ["truncated", "bit flipped"])
def test_a_damaged_progress_part_is_put_aside_and_named(store: ResultsStore, damage: str) -> None:
    """Read as if it were whole, it would bring wrong numbers; left out in silence, a failing disk goes on."""
    with store.writer(CELL) as writer:
        writer.append([sample(0)])
        writer.append([sample(1)])
        part = sorted(Path(writer.path, "progress").iterdir())[0]
        content = bytearray(part.read_bytes())
        if damage == "truncated":
            content = content[: len(content) // 2]
        else:
            content[len(content) // 2] ^= 1
        part.write_bytes(content)
    with store.writer(CELL) as writer:
        samples, damaged = writer.finished()
        assert [s.index for s in samples] == [1]
        assert damaged == [part.name]
    with store.writer(CELL) as writer:  # a kill in between must not make it forgotten
        assert writer.finished()[1] == [part.name]
        writer.append([sample(0)])
        assert sorted(s.index for s in writer.finished()[0]) == [0, 1]


def test_a_committed_evaluation_is_not_written_again_unless_forced(store: ResultsStore) -> None:
    with store.writer(CELL) as writer:
        writer.commit([sample(0)], METRICS, findings(samples=1))
    with pytest.raises(AlreadyCommittedError), store.writer(CELL):
        pass
    with store.writer(CELL, force=True) as writer:
        assert writer.evaluation_id.endswith("-2")
        writer.commit([sample(0)], METRICS, findings(samples=2))
    committed = store.committed(CELL)
    assert committed is not None
    assert committed["samples"] == 2
    assert len(committed_in(store)) == 2


def test_a_second_process_on_the_same_cell_gets_one_clear_line(store: ResultsStore) -> None:
    """Two workers on one cell would score every sample twice."""
    program = (
        "import sys; from resources.results import *\n"
        f"s = ResultsStore({store.root!r})\n"
        f"with s.writer(Cell(*{[CELL.dataset, CELL.model, CELL.fingerprint]!r}), owner='run 1'):\n"
        "    print('held', flush=True); sys.stdin.readline()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError) as caught, store.writer(CELL):
            pass
        assert str(other.pid) in str(caught.value)
        assert "org/model@1 on hellaswag is being evaluated by another process" in str(caught.value)
        other.kill()
        other.wait()
        with store.writer(CELL) as writer:  # a dead owner's lease is taken over at once
            assert writer.finished() == ([], [])


def test_a_full_or_read_only_store_is_one_line_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    store = ResultsStore(str(tmp_path / "a file"))
    (tmp_path / "a file").write_text("not a folder")
    with pytest.raises(UserError, match=r"can't write .*a file/models/m@1\.json.*EVAL_STORE"):
        store.save_model_version("m@1", {})


def test_files_of_the_store_can_be_read_by_other_users(store: ResultsStore) -> None:
    """A pod with another uid reads what this one wrote."""
    store.save_model_version("m@1", {"digest": "x"})
    mode = Path(store.root, "models", "m@1.json").stat().st_mode
    assert mode & stat.S_IROTH
    assert json.loads(Path(store.root, "models", "m@1.json").read_text()) == {"digest": "x"}


def test_the_digest_can_be_computed_from_the_files_of_an_evaluation(store: ResultsStore) -> None:
    """Whoever gets only the Parquet files can tell whether they are what the record speaks of."""
    scored = [sample(1, scores={"acc": 1}, loglikelihoods=[-1, -2.5]), sample(0, error="no")]
    with store.writer(CELL) as writer:
        record = writer.commit(scored, METRICS, findings())
        tables = [pq.read_table(f"{writer.path}/{name}.parquet") for name in ("samples", "metrics")]
    assert content_digest(*tables) == record["content_digest"]
    with store.writer(CELL, force=True) as writer:
        again = writer.commit([Sample.from_row(row) for row in tables[0].to_pylist()], METRICS, findings())
    assert again["content_digest"] == record["content_digest"]
    with store.writer(CELL, force=True) as writer:
        other = writer.commit([scored[0], sample(0, error="another")], METRICS, findings())
    assert other["content_digest"] != record["content_digest"]


def test_a_committed_evaluation_is_three_files_wherever_its_writer_was_killed(store: ResultsStore) -> None:
    """What a killed process leaves would fill the disk, evaluation by evaluation."""
    with store.writer(CELL) as writer:
        writer.append([sample(0)])
        record = writer.commit([sample(0)], METRICS, findings())
        folder = Path(writer.path)
    (folder / "progress").mkdir()
    for name in ("progress/part-000001-0.parquet", ".samples.parquet.0.tmp", "lease.json", "runs.json"):
        (folder / name).write_text("left behind")
    store.tidy(record)
    assert {path.name for path in folder.iterdir()} == COMMITTED


def test_runs_that_ended_before_the_commit_are_counted_and_say_why(store: ResultsStore) -> None:
    for owner in ("first", "second"):
        with store.writer(CELL, owner=owner) as writer:
            writer.begin()
            writer.end("interrupted (SIGTERM)", 7)
            runs = json.loads(Path(writer.path, "runs.json").read_text())["runs"]
    assert [run["run_id"] for run in runs] == ["first", "second"]
    assert runs[0]["ended"]["reason"] == "interrupted (SIGTERM)"
    assert runs[0]["ended"]["samples"] == 7
    with store.writer(CELL) as writer:
        assert writer.interruptions == 2
        writer.commit([sample(0)], METRICS, findings())
        writer.end("too late: it is committed", 1)
        assert not Path(writer.path, "runs.json").exists()


def test_an_object_store_keeps_the_same_promises(bucket: str) -> None:
    store = ResultsStore(f"{bucket}/results")
    with store.writer(CELL) as writer:
        writer.append([sample(0)])
        assert [s.index for s in writer.finished()[0]] == [0]
        record = writer.commit([sample(0)], METRICS, findings())
    assert store.committed(CELL) == record
    assert [s.index for s in store.samples(record)] == [0]


@given(st.text(min_size=1, max_size=50))
def test_a_key_is_one_segment_of_a_path_and_comes_back(key: str) -> None:
    segment = path_segment(key.replace("\ud800", ""))
    assert "/" not in segment
    assert "\\" not in segment
    assert key_of_segment(segment) == key


@pytest.mark.parametrize("root", ["az://bucket/results", "nosuch://bucket"])
@pytest.mark.parametrize("opened", [ResultsStore, FolderRegistry])
def test_a_url_that_nothing_here_can_open_is_one_line(opened: Callable[[str], object], root: str) -> None:
    with pytest.raises(UserError, match=f"^{root} can't be opened: .*") as error:
        opened(root)
    assert "\n" not in str(error.value)
