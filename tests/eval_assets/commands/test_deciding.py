"""What a person or a CI decides from: gate, compare, rollback, retry, as commands."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import dagster as dg
import pytest
from click.testing import CliRunner, Result

from eval_assets import promotion
from eval_assets.__main__ import main
from eval_assets.commands.deciding import junit_xml, summary_of
from eval_assets.evaluating.evaluator import evaluate
from eval_assets.grid import attempts
from eval_assets.grid.observing import Observer
from eval_assets.grid.reconciling import Task, Work
from resources.errors import UserError
from resources.results import Cell
from tests.committed import committed_in
from tests.conftest import ROOT
from tests.eval_assets.conftest import Automation, make_worse


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "eval_assets", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ,
    )  # fmt: skip


def here(*arguments: str) -> Result:
    """A command that starts no run, in this process."""
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


def test_a_gate_tells_a_ci_passed_failed_or_not_decided(
    automation: Automation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit statuses are all that a pipeline looks at: a wrong one ships a regression."""
    make_worse(automation.project.registry / "tiny" / "1", automation.project.registry / "tiny" / "3")
    summary, junit = tmp_path / "summary.md", tmp_path / "junit.xml"
    undecided = here("gate", "tiny@2")
    assert (undecided.exit_code, undecided.stderr) == (3, "")
    assert "there is no verdict yet: run it with --run" in undecided.stdout
    first = command("gate", "tiny@1", "--run")
    assert first.returncode == 0, first.stdout + first.stderr
    passed = command("gate", "tiny@2", "--run")
    assert passed.returncode == 0, passed.stdout + passed.stderr
    failed = command("gate", "tiny@3", "--run", "--summary", str(summary), "--junit", str(junit))
    assert failed.returncode == 1, failed.stdout + failed.stderr
    text = summary.read_text()
    assert text.startswith("### ❌ `tiny@3` against `tiny@2`: failed\n")
    assert "| sentences | worse | " in text  # as Markdown, numbers and all
    assert "│ sentences │ worse " in failed.stdout
    suite = ElementTree.parse(junit).getroot()[0]
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == ("tiny@3", "2", "1")
    assert [case.get("name") for case in suite if case.find("failure") is not None] == ["sentences"]
    assert automation.aliases() == {"champion": "2"}
    # What was judged is read without an instance, in a checkout whose files have other times.
    monkeypatch.delenv("DAGSTER_HOME")
    for rows in automation.project.benchmarks.glob("*.jsonl"):
        rows.touch()
    assert here("gate", "tiny@3").exit_code == 1
    assert here("gate", "tiny@1").exit_code == 0
    # A verdict on other items, benchmarks or files than there are now decides nothing.
    monkeypatch.setenv("EVAL_LIMIT", "5")
    fewer = here("gate", "tiny@3")
    assert (fewer.exit_code, fewer.stderr) == (3, "")
    assert "it was judged on 12 items of capitals, and 5 are asked here: EVAL_LIMIT" in fewer.stdout
    monkeypatch.delenv("EVAL_LIMIT")
    tracked = Path(os.environ["EVAL_MODELS"])
    tracked.write_text(tracked.read_text().replace("[capitals, sentences]", "[capitals]"))
    assert "it was judged on capitals, sentences, and here on other" in here("gate", "tiny@3").stdout
    tracked.write_text(tracked.read_text().replace("[capitals]", "[capitals, sentences]"))
    before = (automation.project.benchmarks / "sentences.jsonl").read_text()
    (automation.project.benchmarks / "sentences.jsonl").write_text(before.replace("dog", "pig"))
    assert "the benchmark sentences has changed since its verdict" in here("gate", "tiny@3").stdout
    (automation.project.benchmarks / "sentences.jsonl").write_text(before)
    shutil.rmtree(automation.project.registry / "tiny" / "3")
    shutil.copytree(automation.project.registry / "tiny" / "1", automation.project.registry / "tiny" / "3")
    changed = here("gate", "tiny@3")
    assert changed.exit_code == 3, changed.stdout
    assert "its files have changed since its verdict" in changed.stdout


def test_a_gate_judges_by_the_tolerance_of_today(
    automation: Automation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an older, wider policy let pass would be released under a stricter one."""
    make_worse(automation.project.registry / "tiny" / "1", automation.project.registry / "tiny" / "3")
    automation.until_at_rest()
    assert here("gate", "tiny@3").exit_code == 1
    tracked = Path(os.environ["EVAL_MODELS"])
    with tracked.open("a") as policy:
        policy.write("    tolerances: {sentences: 500}\n")
    other = here("gate", "tiny@3")
    assert other.exit_code == 3, other.stderr
    assert "with a tolerance of 0.5 on sentences, and 500 is asked here; --run evaluates" in other.stdout
    assert here("gate", "tiny@2").exit_code == 0  # in production
    assert automation.until_at_rest() == []  # a policy is about what comes
    passed = command("gate", "tiny@3", "--run")
    assert passed.returncode == 0, passed.stdout + passed.stderr
    assert here("gate", "tiny@3").exit_code == 0


def test_a_gate_whose_database_is_down_is_no_verdict(
    automation: Automation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python ends with 1 where something is raised: a hiccup would block a release as a regression."""
    (tmp_path / "ci").mkdir()
    (tmp_path / "ci" / "dagster.yaml").write_text(
        "storage: {postgres: {postgres_url: 'postgresql+psycopg2://me@127.0.0.1:1/none'}}\n"
        "telemetry: {enabled: false}\n"
    )
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "ci"))
    down = command("gate", "tiny@1", "--run")
    assert down.returncode == 70
    line = down.stderr.splitlines()[-1]  # after those of Dagster's own tries
    assert "Traceback" not in down.stderr
    assert line.startswith("error: unexpected DagsterPostgresException: ")
    assert line.endswith("; --traceback before the command shows where")
    shown = command("--traceback", "gate", "tiny@1", "--run")
    assert shown.returncode == 70
    assert "Traceback (most recent call last)" in shown.stderr


def test_a_gate_whose_run_fails_is_no_verdict(automation: Automation) -> None:
    (automation.project.registry / "tiny" / "1" / "tokenizer.json").unlink()
    failed = command("gate", "tiny@1", "--run")
    assert failed.returncode == 4, failed.stderr
    assert "tokenizer" in failed.stderr


def test_a_gate_on_an_instance_of_its_own_knows_the_version_in_production(
    automation: Automation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CI has no instance that anything was registered in; without the baseline nothing is decided there."""
    automation.until_at_rest()
    make_worse(automation.project.registry / "tiny" / "1", automation.project.registry / "tiny" / "3")
    (tmp_path / "ci").mkdir()
    shutil.copy(ROOT / "deployments" / "local" / "dagster.yaml", tmp_path / "ci")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "ci"))
    failed = command("gate", "tiny@3", "--run")
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "tiny@3 against tiny@2: failed" in failed.stdout


def test_two_versions_are_compared_on_demand(automation: Automation, monkeypatch: pytest.MonkeyPatch) -> None:
    automation.until_at_rest()
    result = here("compare", "tiny@2", "tiny@1", "--benchmarks", "capitals")
    assert result.exit_code == 0, result.stderr
    assert "tiny@2 against tiny@1" in result.stdout
    assert " equivalent " in result.stdout
    unknown = here("compare", "tiny@9", "tiny@1")
    assert unknown.exit_code == 2
    assert unknown.stderr == (
        "error: tiny@9 has no evaluation: 'leaderboard' lists what there is, 'evaluate' makes one\n"
    )
    # Without the file of who is tracked, verdicts are those of the leaderboard.
    monkeypatch.delenv("EVAL_MODELS")
    monkeypatch.setenv("EVAL_REGISTRY", str(automation.project.registry))
    again = json.loads(here("compare", "tiny@2", "tiny@1", "--json").stdout)
    assert {row["dataset"]: row["verdict"]["tolerance"] for row in again["compared"]} == {
        "capitals": 0.5, "sentences": 0.5,
    }  # fmt: skip


def test_a_rollback_puts_the_version_before_back_and_is_recorded(automation: Automation) -> None:
    nothing = command("rollback", "tiny")
    assert nothing.returncode == 2
    assert "no version has the alias 'champion'; nothing to roll back" in nothing.stderr
    automation.until_at_rest()
    assert automation.aliases() == {"champion": "2"}
    result = command("rollback", "tiny")
    assert result.returncode == 0, result.stderr
    assert automation.aliases() == {"champion": "1"}
    last = automation.project.runs().store.promotions("tiny")[-1]
    assert (last["from"], last["to"], last["why"]) == ("2", "1", "rollback by hand")
    again = command("rollback", "tiny")
    assert again.returncode == 2
    assert "no record of what was champion before 1; name it with --to VERSION" in again.stderr
    absent = command("rollback", "tiny", "--to", "77")
    assert absent.returncode == 2
    assert "tiny@77" in absent.stderr
    # What was rolled back stays back: its verdict is known, and production isn't judged against itself.
    assert automation.until_at_rest() == []
    # Not even when it is judged again, and passes again.
    with (automation.project.benchmarks / "sentences.jsonl").open("a") as rows:
        rows.write('{"text": "The horse sleeps near the house."}\n')
    assert ("judge_models", "tiny@2") in automation.until_at_rest()
    verdict = automation.project.runs().store.verdicts()["tiny@2"]
    assert (verdict["status"], verdict["moved"]) == ("passed", False)
    assert verdict["action"].startswith("not promoted: it was rolled back by hand")
    assert automation.aliases() == {"champion": "1"}


def test_a_rollback_goes_by_the_moves_of_the_alias_that_there_is_now(
    automation: Automation, tmp_path: Path
) -> None:
    """After champion has been renamed to production, what champion once was says nothing of production."""
    automation.until_at_rest()
    assert here("rollback", "tiny").exit_code == 0  # champion: 2 -> 1
    with (tmp_path / "models.yaml").open("a") as tracked:
        tracked.write("    baseline: {alias: production}\n")
    aliases = automation.project.registry / "tiny" / "aliases.json"
    aliases.write_text(json.dumps({"champion": "2", "production": "2"}))
    refused = command("rollback", "tiny")
    assert refused.returncode == 2
    assert "no record of what was production before 2; name it with --to VERSION" in refused.stderr
    # Nor was 2 rolled back as production: once it is judged anew and passes, it is promoted.
    aliases.write_text(json.dumps({"champion": "2", "production": "1"}))
    with (automation.project.benchmarks / "sentences.jsonl").open("a") as rows:
        rows.write('{"text": "The horse sleeps near the house."}\n')
    automation.until_at_rest()
    assert automation.aliases() == {"champion": "2", "production": "2"}
    assert here("rollback", "tiny").exit_code == 0
    assert automation.aliases() == {"champion": "2", "production": "1"}


@pytest.mark.parametrize("fails", ["tiny@1", "tiny@2"])
def test_a_version_that_was_judged_without_a_cell_is_judged_again_once_that_is_there(
    automation: Automation, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """Otherwise it is never promoted or blocked, and the gate says 3 for good; also where the cell is the
    baseline's, of which nothing changes in the version itself."""

    def broken(cell: Cell, *rest: Any, **more: Any) -> Any:
        if (cell.model, cell.dataset) == (fails, "sentences"):
            raise UserError("the encoder is not installed")
        return evaluate(cell, *rest, **more)

    with monkeypatch.context() as patched:
        patched.setattr("eval_assets.evaluations.evaluate", broken)
        automation.until_at_rest()
        assert automation.until_at_rest() == []
    undecided = here("gate", "tiny@2")
    assert undecided.exit_code == 3
    assert f"not compared on sentences ({fails} has no evaluation of today's sentences)" in undecided.stdout
    assert "undecided, not promoted: not every benchmark could be compared" in undecided.stdout
    assert command("retry", fails).returncode == 0
    judged_again = {"tiny@1": ["tiny@1", "tiny@2"], "tiny@2": ["tiny@2"]}[fails]
    assert automation.until_at_rest() == [
        ("evaluate_models", fails), *(("judge_models", key) for key in judged_again)
    ]  # fmt: skip
    assert automation.aliases() == {"champion": "2"}
    assert here("gate", "tiny@2").exit_code == 0


def judged_invalid(automation: Automation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything run, where tiny@2 on sentences comes out as not valid."""
    whole, store = promotion.judge, automation.project.runs().store

    def damaged(look: Observer, model: str, *rest: Any) -> promotion.Judgement:
        if model == "tiny@2":
            for path, record in store.json_files("evaluations/sentences/tiny@2/*/evaluation.json"):
                store.put_json(path, {**record, "status": "invalid"})
        return whole(look, model, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(promotion, "judge", damaged)
        automation.until_at_rest()


def test_a_version_whose_cell_was_not_valid_is_judged_again_once_that_was_evaluated_again(
    automation: Automation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forced evaluation has the fingerprint of the broken one. Until it comes, nothing is judged again."""
    judged_invalid(automation, monkeypatch)
    assert automation.until_at_rest() == []
    assert "tiny@2 on sentences is not valid" in here("gate", "tiny@2").stdout
    automation.project.runs().evaluate_cells("tiny@2", ["sentences"], force=True)
    stale = here("gate", "tiny@2")
    assert (stale.exit_code, stale.stderr) == (3, "")
    assert "it was judged without sentences, which has been evaluated since; --run" in stale.stdout
    assert automation.until_at_rest() == [("judge_models", "tiny@2")]
    assert automation.aliases() == {"champion": "2"}


def test_a_gate_that_runs_judges_again_also_where_another_version_is_in_production_since(
    automation: Automation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CI's own instance knows nothing of what the version was compared with: it would say for good that
    --run judges it again."""
    judged_invalid(automation, monkeypatch)
    shutil.copytree(automation.project.registry / "tiny" / "1", automation.project.registry / "tiny" / "3")
    (automation.project.registry / "tiny" / "aliases.json").write_text('{"champion": "3"}')
    automation.until_at_rest()
    automation.project.runs().evaluate_cells("tiny@2", ["sentences"], force=True)
    (tmp_path / "ci").mkdir()
    shutil.copy(ROOT / "deployments" / "local" / "dagster.yaml", tmp_path / "ci")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "ci"))
    passed = command("gate", "tiny@2", "--run")
    assert passed.returncode == 0, passed.stdout + passed.stderr
    verdict = automation.project.runs().store.verdicts()["tiny@2"]
    assert (verdict["status"], verdict["baseline"]) == ("passed", "tiny@3")


def test_retry_takes_up_what_was_given_up(automation: Automation) -> None:
    tokenizer = automation.project.registry / "tiny" / "2" / "tokenizer.json"
    content = tokenizer.read_bytes()
    tokenizer.unlink()
    automation.until_at_rest()
    assert automation.until_at_rest() == []
    assert command("retry", "tiny@2").returncode == 0
    assert [job for job, _ in automation.until_at_rest()] == ["register_models"]
    given_up = automation.project.folder / "store" / "given_up"
    assert len(list(given_up.rglob("*.json"))) == 1  # told again
    assert command("retry", "tiny@2").returncode == 0
    assert list(given_up.rglob("*.json")) == []
    assert command("retry", "tiny@1").stderr == (
        "error: tiny@1: no failed runs are remembered; nothing to try again\n"
    )
    tokenizer.write_bytes(content)
    assert automation.until_at_rest()[-1] == ("judge_models", "tiny@2")


def test_retry_on_some_benchmarks_leaves_the_others_given_up(automation: Automation) -> None:
    """They would be told of again, by a message, although nobody has tried them again."""
    store, cells = automation.project.runs().store, ["capitals", "sentences"]
    for model in ("tiny@1", "tiny@2"):
        for dataset in cells:
            given_up = {"work": "evaluate", "model": model, "dataset": dataset, "fingerprint": "f"}
            assert store.note_given_up(given_up)
    tasks = [Task(Work.EVALUATE, "tiny@1", dataset, "f") for dataset in cells]
    automation.instance.create_run_for_job(
        automation.definitions.resolve_job_def("evaluate_models"),
        tags=attempts.tags_of(tasks),
        status=dg.DagsterRunStatus.FAILURE,
    )
    assert here("retry", "tiny@1", "--benchmarks", "capitals").exit_code == 0
    left = [(record["model"], record["dataset"]) for _, record in store.json_files("given_up/*/*/*/*.json")]
    assert left == [("tiny@1", "sentences"), ("tiny@2", "capitals"), ("tiny@2", "sentences")]
    assert set(attempts.failures(automation.instance)) == {tasks[1]}
    store.forget_given_up("capitals")  # as a benchmark: no cell on it was tried again
    assert len(list(store.json_files("given_up/*/*/*/*.json"))) == 3


def test_the_partition_of_a_deleted_version_is_removed_when_asked(automation: Automation) -> None:
    """But not that of one whose registry only can't be asked."""
    automation.until_at_rest()
    there = command("forget", "tiny@1")
    assert (there.returncode, there.stderr) == (
        2, "error: model version tiny@1 is still in its registry: delete it there first\n",
    )  # fmt: skip
    shutil.move(automation.project.registry, automation.project.folder / "unmounted")
    refused = command("forget", "tiny@1")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "does not exist" in refused.stderr
    assert "tiny@1" in automation.instance.get_dynamic_partitions("model")
    shutil.move(automation.project.folder / "unmounted", automation.project.registry)
    shutil.rmtree(automation.project.registry / "tiny" / "1")
    gone = command("forget", "tiny@1")
    assert gone.returncode == 0, gone.stderr
    assert list(automation.instance.get_dynamic_partitions("model")) == ["tiny@2"]
    assert "tiny@1" in {record["model"] for record in committed_in(automation.project.runs().store)}
    again = command("forget", "tiny@1")
    assert again.stderr == "error: model version tiny@1 has no partition: name one that the UI shows\n"
    automation.cursor = None
    assert automation.until_at_rest() == []
    tracked = automation.project.folder / "models.yaml"
    tracked.write_text(tracked.read_text().replace("names: tiny", "names: another"))
    assert command("forget", "tiny@2").returncode == 0  # no entry names it any more
    assert list(automation.instance.get_dynamic_partitions("model")) == []


VERDICT = {
    "model": "a@2", "baseline": "a@1", "status": "undecided", "action": "more | items <needed>",
    "reason": "1 of 1 not decided", "missing": {"squad": "a@2 has no evaluation of today's squad"},
    "cells": [],
}  # fmt: skip


def test_what_is_not_decided_is_no_success_in_any_form() -> None:
    suite = ElementTree.fromstring(junit_xml(VERDICT))[0]
    assert (suite.get("failures"), suite.get("errors")) == ("0", "1")
    assert summary_of(VERDICT).startswith("### ❔ `a@2` against `a@1`: undecided")


def test_a_summary_renders_nothing_that_a_reason_holds() -> None:
    """Reasons quote error messages and names: in a pull request they must stay text."""
    hostile = "![x](https://a.example/p.png) `code` *b* | <img src=x>\n# title @all &lt;"
    found = {**VERDICT, "reason": hostile, "action": hostile, "missing": {"squad": hostile}}
    text = summary_of(found)
    inert = text.split("\n\n")[1]
    assert text.split("\n\n")[2:] == [rf"- squad\: not compared\: {inert}", f"{inert}\n"]
    assert inert == (
        r"\!\[x\]\(https\:\/\/a\.example\/p\.png\) \`code\` \*b\* \| &lt;img src\=x&gt; "
        r"\# title \@all &amp;lt\;"
    )
