"""Retention on a real store: what is there afterwards, in whatever way it came about."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest

from resources.catalog import Catalog
from resources.errors import BusyError, UserError
from resources.lease import Lease
from resources.records import Estimate, EvaluationRecord, MetricRow, Output, Sample
from resources.results import Cell, ResultsStore, chat_fingerprint
from resources.retention import Applied, Plan, RetentionPolicy, apply, measured, plan, take_inventory
from resources.retention.applying import AUDIT, audit_lines, last_audits
from resources.storage import Storage
from tests.committed import committed_in
from tests.resources.test_results import findings

NOW = datetime(2026, 6, 15, tzinfo=UTC)
POLICY = RetentionPolicy(versions=1, texts_days=30, delete_days=100, leftovers_days=30)
TEXT = "what the model was shown, what it wrote, what was right " * 20


def evaluated(
    store: ResultsStore,
    model: str,
    days: int,
    *,
    task: str = "generation",
    reference: str = TEXT,
    finished: int = -1,
    **more: Any,
) -> EvaluationRecord:
    """Commit an evaluation that finished so many days before NOW; `finished` makes it the same one anew."""
    outputs = [Output(f"{TEXT}", "stop", 3, {"f1": 1.0}), Output(f"{TEXT}!", "length", 4, {"f1": 0.0})]
    samples = [
        Sample(
            f"id{i}", i, "g", "c", f"{i} {TEXT}", target=1, choices=[TEXT, "b"], labels=[0, 1],
            references=[reference], incorrect_references=["no"], loglikelihoods=[-1.5, -2.5],
            choice_tokens=[3, 4], is_greedy=[True, False], output=f"{TEXT}{i}", finish_reason="stop",
            prompt_tokens=7, output_tokens=8, outputs=outputs if i else (), scores={"f1": i / 3},
        )
        for i in range(3)
    ]  # fmt: skip
    ended = (NOW - timedelta(days=days if finished < 0 else finished)).isoformat()
    name, _, version = model.partition("@")
    record: dict[str, Any] = {
        "model_name": name, "model_version": version, "benchmark_fingerprint": "now", "samples": 3,
        "items_available": 3, "started_at": ended, "finished_at": ended, "task": task,
        "score": {"value": 0.5, "stderr": 0.1, "ci_low": 0.3, "ci_high": 0.7}, **more,
    }  # fmt: skip
    fingerprint = hashlib.sha256(f"{model}{days}{more}".encode()).hexdigest()
    with store.writer(Cell("squad", model, fingerprint)) as writer:
        rows = [MetricRow("f1", None, Estimate(0.5, 0.1, 0.3, 0.7, 3))]
        return writer.commit(samples, rows, findings(**record))


def aged(store: ResultsStore, folder: str, days: int) -> None:
    """Give all files of a folder a time so many days before NOW."""
    moment = (NOW - timedelta(days=days)).timestamp()
    for path in Path(store.root, folder).rglob("*"):
        os.utime(path, (moment, moment))


def filled(store: ResultsStore) -> dict[str, EvaluationRecord]:
    """A store with one of each: new, old, very old, champion, referenced, abandoned, former items."""
    made = {
        "new": evaluated(store, "m@9", 1),
        "old": evaluated(store, "m@5", 50),
        "very old": evaluated(store, "m@1", 200),
        "champion": evaluated(store, "m@2", 300),
        "before": evaluated(store, "m@3", 300),
        "referenced": evaluated(store, "m@4", 300, benchmark_fingerprint="former-but-needed"),
        "only one": evaluated(store, "other@1", 400),
    }
    store.save_promotion("m", {"promotion_id": "1", "alias": "champion", "from": "3", "to": "2", "why": "w"})
    store.save_comparison(
        "squad",
        "m@4",
        {
            "dataset": "squad", "model": "m@4", "baseline": "m@9",
            "candidate_evaluation": made["referenced"]["evaluation_id"],
            "baseline_evaluation": made["new"]["evaluation_id"],
        },
    )  # fmt: skip
    with store.writer(Cell("quiz", "m@5", "e" * 64)) as writer:
        writer.append([Sample("id", 0, None, None, "p")])
    aged(store, "evaluations/quiz", 60)
    for fingerprint in ("former", "former-but-needed", "now"):
        store.save_benchmark("squad", fingerprint, pa.table({"x": [1]}), {})
    aged(store, "benchmarks", 60)
    return made


def planned(store: ResultsStore, policy: RetentionPolicy = POLICY) -> Plan:
    return measured(plan(take_inventory(store, {}, NOW), policy, NOW), store)


def applied(store: ResultsStore, policy: RetentionPolicy = POLICY, **options: Any) -> Applied:
    return apply(
        planned(store, policy), store, why="the disk is full", who="ada", clock=lambda: NOW, **options
    )


def folder_of(store: ResultsStore, record: EvaluationRecord) -> Path:
    return Path(store.root, "evaluations", record["dataset"], record["model"], record["evaluation_id"])


def contents(store: ResultsStore) -> dict[str, str]:
    """Every file of the store and what is in it."""
    root = Path(store.root)
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.startswith("catalog")
    }


def test_each_thing_gets_what_the_policy_says(store: ResultsStore) -> None:
    made = filled(store)
    before = contents(store)
    done = applied(store)
    assert done.skipped == ()
    here = {name for name, record in made.items() if (folder_of(store, record) / "evaluation.json").exists()}
    assert here == {"new", "old", "champion", "before", "referenced", "only one"}
    records = {record["model"]: record for record in committed_in(store)}
    assert {model for model, record in records.items() if "retention" in record} == {"m@5", "m@4"}
    after = contents(store)
    for name in ("new", "champion", "before", "only one"):
        prefix = str(folder_of(store, made[name]).relative_to(store.root))
        assert {p: d for p, d in after.items() if p.startswith(prefix)} == {
            p: d for p, d in before.items() if p.startswith(prefix)
        }, name
    assert [path.name for path in folder_of(store, made["very old"]).iterdir()] == ["deleted.json"]
    assert not list(Path(store.root, "evaluations/quiz").rglob("*.parquet"))
    assert {path.parent.name for path in Path(store.root, "benchmarks").rglob("items.parquet")} == {
        "former-but-needed", "now",
    }  # fmt: skip


def test_a_plan_changes_nothing(store: ResultsStore) -> None:
    filled(store)
    before = contents(store)
    found = planned(store)
    assert contents(store) == before
    assert {str(action.kind) for action in found.actions} == {"texts", "delete", "progress", "items"}
    assert found.bytes > 0
    assert all(action.why for action in found.actions)


def test_removing_texts_keeps_every_number(store: ResultsStore) -> None:
    """A comparison that holds today must hold, to the last bit, when the texts are gone."""
    made = filled(store)
    before = store.samples(made["old"])
    applied(store)
    after = store.samples(made["old"])
    for one, other in zip(before, after, strict=True):
        for name in (
            "sample_id", "index", "group", "cluster", "target", "labels", "loglikelihoods", "choice_tokens",
            "is_greedy", "finish_reason", "prompt_tokens", "output_tokens", "truncated_tokens", "scores",
            "error",
        ):  # fmt: skip
            assert getattr(one, name) == getattr(other, name), name
        assert [(o.finish_reason, o.tokens, o.scores) for o in other.outputs] == [
            (o.finish_reason, o.tokens, o.scores) for o in one.outputs
        ]
        assert (other.prompt, other.output, list(other.choices)) == ("", None, ["", ""])
        assert (list(other.references), list(other.incorrect_references)) == ([], [])
    content = (folder_of(store, made["old"]) / "samples.parquet").read_bytes()
    assert b"what the model" not in content
    row = store.get_table(
        f"evaluations/squad/m@5/{made['old']['evaluation_id']}/samples.parquet"
    ).to_pylist()[0]
    assert (row["prompt"], row["output"]) == (None, None)
    assert store.metrics(made["old"]) == store.metrics(made["new"])


def test_the_record_says_what_was_removed_when_why_and_by_which_audit(store: ResultsStore) -> None:
    made = filled(store)
    done = applied(store)
    record = next(record for record in committed_in(store) if record["model"] == "m@5")
    assert record["content_digest"] == made["old"]["content_digest"]
    assert record["retention"]["content_digest"] != record["content_digest"]
    assert record["retention"]["removed"] == [
        "prompt", "choices", "incorrect_references", "output", "outputs.text", "references",
    ]  # fmt: skip
    assert record["retention"]["at"] == NOW.isoformat()
    assert f"{AUDIT}/{record['retention']['audit']}" == done.audit
    assert record["retention"]["why"] == "finished 50 days ago, without texts after 30"
    assert {k: v for k, v in record.items() if k != "retention"} == made["old"]


def test_the_text_of_a_perplexity_stays_for_its_words_are_counted(store: ResultsStore) -> None:
    evaluated(store, "p@2", 1, task="perplexity")
    record = evaluated(store, "p@1", 50, task="perplexity")
    applied(store)
    assert store.samples(record)[0].references == [TEXT]
    assert store.samples(record)[0].prompt == ""


def test_every_change_has_an_audit_line(store: ResultsStore) -> None:
    filled(store)
    found = planned(store)
    done = applied(store)
    [audit] = last_audits(store)
    assert (audit["who"], audit["why"], audit["at"]) == ("ada", "the disk is full", NOW.isoformat())
    assert audit["policy"] == POLICY.model_dump()
    assert [change["folder"] for change in audit["changes"]] == [action.folder for action in found.actions]
    assert {change["outcome"] for change in audit["changes"]} == {"done"}
    assert sum(change["bytes"] for change in audit["changes"]) == done.bytes
    lines = audit_lines(audit)
    assert len(lines) == len(found.actions)
    assert all("ada" in line and "the disk is full" in line and " bytes: " in line for line in lines)


def test_the_bytes_that_are_told_are_those_that_are_freed(store: ResultsStore) -> None:
    made = filled(store)
    size = (folder_of(store, made["old"]) / "samples.parquet").stat().st_size
    told = {action.folder: action.bytes for action in planned(store).actions}
    applied(store)
    path = folder_of(store, made["old"])
    freed = size - (path / "samples.parquet").stat().st_size
    [audit] = last_audits(store)
    change = next(c for c in audit["changes"] if c["folder"].endswith(made["old"]["evaluation_id"]))
    assert change["bytes"] == freed
    # The footer, which has each column's least and greatest text, shrinks too; of so few samples it counts.
    assert freed / 2 < told[change["folder"]] <= freed


def test_of_a_perplexity_no_bytes_are_promised_that_stay(store: ResultsStore) -> None:
    evaluated(store, "p@2", 1, task="perplexity")
    record = evaluated(store, "p@1", 50, task="perplexity", reference=Random(0).randbytes(10_000).hex())
    path = folder_of(store, record) / "samples.parquet"
    size = path.stat().st_size
    [action] = planned(store).actions
    applied(store)
    freed = size - path.stat().st_size
    assert 0 < action.bytes <= freed


def test_again_nothing_is_left_to_do(store: ResultsStore) -> None:
    filled(store)
    applied(store)
    before = contents(store)
    assert planned(store).actions == ()
    assert applied(store) == Applied(None, 0, ())
    assert contents(store) == before


def test_the_catalogue_notices_and_its_numbers_stay(store: ResultsStore) -> None:
    made = filled(store)
    evaluated(store, "gone@1", 300)
    evaluated(store, "gone@2", 1)
    for path in Path(store.root, "comparisons").rglob("*.json"):
        path.unlink()  # a made-up one, without the numbers that the catalogue wants
    catalog = Catalog(store)
    catalog.refresh()

    def query(text: str) -> list[tuple[Any, ...]]:
        with catalog.connect() as connection:
            return connection.execute(text).fetchall()

    scores = query("SELECT sample_id, value FROM sample_scores WHERE model = 'm@5' ORDER BY 1")
    assert query("SELECT count(prompt) FROM samples WHERE model = 'm@5'") == [(3,)]
    applied(store)
    catalog.refresh()
    assert query("SELECT count(prompt), count(output), count(*) FROM samples WHERE model = 'm@5'") == [
        (0, 0, 3)
    ]
    assert query("SELECT sample_id, value FROM sample_scores WHERE model = 'm@5' ORDER BY 1") == scores
    assert query("SELECT count(*) FROM samples WHERE model IN ('gone@1', 'm@1')") == [(0,)]
    assert made["very old"]["evaluation_id"] not in str(query("FROM history"))


def test_what_became_needed_since_it_was_planned_is_left_alone(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the dry run that somebody reads and the doing lies a day, and a rollback."""
    made = filled(store)
    monkeypatch.setattr("resources.lease.BEAT_SECONDS", 0.05)
    found = planned(store)
    evaluated(store, "n@1", 1, benchmark_fingerprint="former")
    store.save_promotion("m", {"promotion_id": "2", "alias": "champion", "from": "2", "to": "5", "why": "w"})
    store.save_comparison(
        "squad",
        "m@1",
        {
            "dataset": "squad", "model": "m@1", "baseline": "m@2",
            "candidate_evaluation": made["very old"]["evaluation_id"], "baseline_evaluation": "x",
        },
    )  # fmt: skip
    with store.writer(Cell("quiz", "m@5", "e" * 64)) as writer:
        writer.append([Sample("id2", 1, None, None, "p")])
        before = contents(store)
        done = apply(found, store, why="w", clock=lambda: NOW)
    assert len(done.skipped) == 4
    assert {reason.partition(": ")[2] for reason in done.skipped} == {
        "kept meanwhile: the last move of champion", "a verdict or comparison rests on it meanwhile",
        "a process is at work on it", "an evaluation refers to them meanwhile",
    }  # fmt: skip
    records = {record["model"] for record in committed_in(store) if "retention" in record}
    assert records == {"m@4"}
    assert {p for p in before if p not in contents(store) and "lease" not in p} == set()


def test_what_was_evaluated_again_since_it_was_planned_is_left_alone(store: ResultsStore) -> None:
    """It has the place and the id of the one that was to go, and is of today."""
    made = filled(store)
    found = planned(store)
    for name in ("old", "very old"):
        shutil.rmtree(folder_of(store, made[name]))
    fresh = [evaluated(store, "m@5", 50, finished=0), evaluated(store, "m@1", 200, finished=0)]
    assert [one["evaluation_id"] for one in fresh] == [
        made[name]["evaluation_id"] for name in ("old", "very old")
    ]
    done = apply(found, store, why="w", clock=lambda: NOW)
    assert [line.split(": ", 1)[1] for line in done.skipped] == ["it was evaluated again meanwhile"] * 2
    assert all(store.samples(one)[0].prompt for one in fresh)


def test_of_what_was_deleted_a_note_stays_until_it_is_evaluated_again(store: ResultsStore) -> None:
    """Without it the nightly schedule would compute it again, and retention delete it again."""
    made = filled(store)
    done = applied(store)
    cell = Cell("squad", "m@1", made["very old"]["fingerprint"])
    assert store.committed(cell) is None
    assert store.was_deleted(cell)
    assert ("m@1", cell.fingerprint[:16]) in store.evaluated("squad")
    note = json.loads((folder_of(store, made["very old"]) / "deleted.json").read_text())
    assert f"{AUDIT}/{note['audit']}" == done.audit
    assert (note["fingerprint"], note["why"]) == (
        cell.fingerprint, "finished 200 days ago, deleted after 100",
    )  # fmt: skip
    with store.writer(cell):
        assert not store.was_deleted(cell)
    evaluated(store, "m@1", 200, finished=0)
    assert not store.was_deleted(cell)
    assert {path.name for path in folder_of(store, made["very old"]).iterdir()} == {
        "evaluation.json", "samples.parquet", "metrics.parquet",
    }  # fmt: skip


def test_an_alias_of_a_registry_keeps_its_version(store: ResultsStore) -> None:
    filled(store)
    there = take_inventory(store, {"m@5": "champion", "m@1": "candidate"}, NOW)
    assert {action.place[1] for action in plan(there, POLICY, NOW).actions if action.place} == {"m@4"}


def test_a_chats_evaluations_refer_to_their_items(store: ResultsStore) -> None:
    evaluated(store, "m@1", 1, benchmark_fingerprint=chat_fingerprint("former", True))
    for fingerprint in ("former", "now"):
        store.save_benchmark("squad", fingerprint, pa.table({"x": [1]}), {})
    aged(store, "benchmarks", 60)
    assert planned(store).actions == ()


def test_a_second_process_is_refused_while_one_is_at_it(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store)
    monkeypatch.setattr("resources.lease.BEAT_SECONDS", 0.05)
    Path(store.root, AUDIT).mkdir()
    lease = Lease.acquire(store.filesystem, f"{store.root}/{AUDIT}/lease.json", what="x", owner="bob")
    try:
        with pytest.raises(BusyError, match=r"is being tidied by another process \(pid \d+ .*bob\)"):
            applied(store)
    finally:
        lease.release()
    assert planned(store).actions
    assert applied(store).bytes > 0


def test_a_damaged_evaluation_is_left_alone_and_named(store: ResultsStore) -> None:
    made = filled(store)
    (folder_of(store, made["old"]) / "samples.parquet").write_bytes(b"PAR1 nonsense")
    (folder_of(store, made["very old"]) / "evaluation.json").write_text("{")
    (folder_of(store, made["referenced"]) / "metrics.parquet").write_bytes(b"PAR1 nonsense")
    before = (folder_of(store, made["referenced"]) / "samples.parquet").read_bytes()
    more = evaluated(store, "z@1", 60)
    evaluated(store, "z@2", 1)
    done = applied(store)
    assert [line.split(": ", 1)[1][:16] for line in done.skipped] == ["it can't be read"] * 2
    assert (folder_of(store, made["referenced"]) / "samples.parquet").read_bytes() == before
    assert store.samples(more)[0].prompt == "", "what is damaged holds up nothing else"
    assert (folder_of(store, made["very old"]) / "samples.parquet").exists()


def test_readers_and_refreshers_never_see_half_of_it(store: ResultsStore) -> None:
    """A report that is built while the nightly job runs would fail, or show samples of nothing."""
    made = filled(store)
    for path in Path(store.root, "comparisons").rglob("*.json"):
        path.unlink()
    more = [evaluated(store, f"x@{number}", 50 + number) for number in range(8)]
    stop = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        reader = ResultsStore(store.root)
        try:
            while not stop.is_set():
                for record in (made["old"], *more):
                    rows = reader.samples(record)
                    assert [row.scores for row in rows] == [{"f1": i / 3} for i in range(3)]
                    assert len({row.prompt == "" for row in rows}) == 1
        except BaseException as error:
            failures.append(error)

    def refresh() -> None:
        catalog = Catalog(ResultsStore(store.root))
        try:
            while not stop.is_set():
                catalog.refresh()
                with catalog.connect() as connection:
                    half = connection.execute(
                        "SELECT count(*) FROM (SELECT count(prompt) AS prompts, count(*) AS n FROM samples "
                        "GROUP BY dataset, model, evaluation_id) WHERE prompts NOT IN (0, n)"
                    ).fetchall()
                    assert half == [(0,)]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for work in (read, refresh)]
    for thread in threads:
        thread.start()
    try:
        applied(store)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    Catalog(store).refresh()
    with Catalog(store).connect() as connection:
        left = connection.execute("SELECT model FROM samples WHERE prompt IS NOT NULL GROUP BY 1 ORDER BY 1")
        assert left.fetchall() == [("m@2",), ("m@3",), ("m@9",), ("other@1",), ("x@0",)]


def test_what_was_deleted_is_named_in_one_line_when_it_is_read(store: ResultsStore) -> None:
    made = filled(store)
    applied(store)
    with pytest.raises(UserError, match=r"m@1 on squad: evaluation .* is gone \(deleted by retention\?\)"):
        store.samples(made["very old"])


def test_it_works_in_an_object_store(bucket: str) -> None:
    store = ResultsStore(f"{bucket}/results")
    records = [evaluated(store, f"m@{number}", days) for number, days in enumerate((200, 50, 1))]
    done = apply(planned(store), store, why="w", clock=lambda: NOW)
    assert done.skipped == ()
    assert {record["model"]: "retention" in record for record in committed_in(store)} == {
        "m@1": True,
        "m@2": False,
    }
    assert store.samples(records[1])[2].scores == {"f1": 2 / 3}
    gone = Cell("squad", "m@0", records[0]["fingerprint"])
    assert (store.committed(gone), store.was_deleted(gone)) == (None, True)
    folder = f"{store.root}/evaluations/squad/m@0/{records[0]['evaluation_id']}"
    assert store.filesystem.ls(folder, detail=False, refresh=True) == [f"{folder}/deleted.json"]


# -- kills ------------------------------------------------------------------------------------------


def _killed_at(root: str, moment: int, found: Plan) -> None:
    """Apply in this process, and kill it before the n-th time that it changes anything."""
    left = [moment]

    def counting(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*arguments, **options)

        return changed

    store = ResultsStore(root)
    Storage.put = counting(Storage.put)  # type: ignore[method-assign]
    Path.replace = counting(Path.replace)  # type: ignore[method-assign]
    for name in ("rm_file", "rmdir"):
        setattr(store.filesystem, name, counting(getattr(store.filesystem, name)))
    apply(found, store, why="the disk is full", who="ada", clock=lambda: NOW)


def _results(contents: dict[str, str], root: str) -> dict[str, Any]:
    """What is in a store but for who did it: of a run that was killed, the next one does the rest."""
    found: dict[str, Any] = {}
    for path, digest in contents.items():
        if path.startswith(AUDIT):
            continue
        found[path] = digest
        if path.endswith(("evaluation.json", "deleted.json")):
            record = json.loads(Path(root, path).read_text())
            (record.get("retention") or record).pop("audit", None)
            found[path] = record
    return found


@pytest.fixture
def killed(tmp_path: Path) -> Callable[[ResultsStore, str, int], tuple[ResultsStore, bool]]:
    """A copy of a store after retention was killed before its n-th change; whether it came that far."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.resources.retention.test_applying"])

    def run(first: ResultsStore, name: str, moment: int) -> tuple[ResultsStore, bool]:
        store = ResultsStore(str(shutil.copytree(first.root, tmp_path / name)))
        child = context.Process(target=_killed_at, args=(store.root, moment, planned(store)))
        child.start()
        child.join(60)
        killed = child.exitcode == -signal.SIGKILL
        assert killed or child.exitcode == 0
        return store, killed

    return run


Kill = Callable[[ResultsStore, str, int], tuple[ResultsStore, bool]]


def test_killed_at_any_moment_and_done_again_it_ends_the_same(tmp_path: Path, killed: Kill) -> None:
    """Half a retention is the worst of all: texts gone that no record tells of, or a record of nothing."""
    first = ResultsStore(str(tmp_path / "first"))
    made = filled(first)
    for days in (40, 60, 70):
        evaluated(first, f"m@8.{days}", days)
    whole, _ = killed(first, "whole", 10**9)
    [audit] = last_audits(whole)
    assert audit["finished_at"]
    expected = _results(contents(whole), whole.root)
    kills = 0
    for moment in range(200):
        store, was_killed = killed(first, str(moment), moment)
        if not was_killed:
            break
        kills += 1
        for record in (made["old"], made["referenced"]):  # no text is gone that no record tells of
            samples = store.samples(record)
            there = store.get_json(f"{folder_of(store, record).relative_to(store.root)}/evaluation.json")
            assert samples[0].prompt or "retention" in (there or {}), f"killed before change {moment}"
        applied(store)  # what anybody does next: look again, and go on
        assert _results(contents(store), store.root) == expected, f"killed before change {moment}"
        audits = last_audits(store)
        assert all(one["finished_at"] for one in audits)
        outcomes = [
            (change["folder"], change["kind"], change["outcome"])
            for one in audits
            for change in one["changes"]
            if change["outcome"] != "not done: it was interrupted"
        ]
        assert len(outcomes) == len(set(outcomes)), f"killed before change {moment}: twice done"
        assert {(folder, outcome) for folder, _, outcome in outcomes} == {
            (change["folder"], "done") for change in audit["changes"]
        }, f"killed before change {moment}"
    assert kills >= 20


def test_what_an_interrupted_run_had_not_begun_is_planned_anew(tmp_path: Path, killed: Kill) -> None:
    """Somebody stops it because its policy was wrong: the next run must not do the rest of it."""
    first = ResultsStore(str(tmp_path / "first"))
    made = filled(first)
    keep = RetentionPolicy(texts_days=None, delete_days=None, leftovers_days=None)
    half_done = 0
    for moment in range(0, 200, 2):
        store, was_killed = killed(first, str(moment), moment)
        if not was_killed:
            break
        before = {record["evaluation_id"] for record in committed_in(store) if "retention" not in record}
        fresh = None
        if store.was_deleted(Cell("squad", "m@1", made["very old"]["fingerprint"])) and (
            store.committed(Cell("squad", "m@1", made["very old"]["fingerprint"])) is None
        ):
            fresh = evaluated(store, "m@1", 200, finished=0)  # and somebody wants it again
            before.add(fresh["evaluation_id"])
        actions = planned(store, keep).actions
        assert {action.why.partition(",")[0] for action in actions} <= {
            "removing its texts was interrupted", "its deletion was interrupted",
        }  # fmt: skip
        half_done += len(actions)
        applied(store, keep)
        left = {record["evaluation_id"] for record in committed_in(store) if "retention" not in record}
        assert left == before, f"killed before change {moment}"
        assert fresh is None or store.samples(fresh)[0].prompt
        assert planned(store, keep).actions == ()
        for record in committed_in(store):
            assert (store.samples(record)[0].prompt == "") == ("retention" in record)
            assert "content_digest" in record.get("retention", {"content_digest": ""})
    assert half_done > 0
