"""The command line over a store with real evaluations of tiny models."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from eval_assets.__main__ import main, pipes
from eval_assets.commands.output import Output, known_models, printable
from resources.results import ResultsStore
from tests.committed import committed_in
from tests.conftest import BENCHMARKS, ROOT

CELLS = [(dataset, f"tiny@{n}") for dataset in ("capitals", "capitals_written") for n in (1, 2)]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> Iterator[Path]:
    """A project in which `CELLS` are evaluated; without DAGSTER_HOME, as somebody has who only reads."""
    folder = tmp_path_factory.mktemp("commands")
    with pytest.MonkeyPatch.context() as patch:
        (folder / "home").mkdir()
        shutil.copy(ROOT / "deployments" / "local" / "dagster.yaml", folder / "home")
        for name, value in {
            "DAGSTER_HOME": folder / "home", "EVAL_STORE": folder / "store", "EVAL_REGISTRY": tiny_models,
            "EVAL_DEVICE": "cpu", "EVAL_THREADS": "1", "EVAL_DATA_MIRROR": folder / "data",
        }.items():  # fmt: skip
            patch.setenv(name, str(value))
        # In a process of its own: a run of Dagster configures logging anew, and absl then closes the
        # stream that was stderr when it was imported, here pytest's.
        done = subprocess.run(
            [sys.executable, "-m", "eval_assets", "evaluate", "--models", "tiny@*", "--benchmarks",
             "capitals,capitals_written", "--json"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert [(c["benchmark"], c["model"]) for c in json.loads(done.stdout)["leaderboard"]] == CELLS
        patch.delenv("DAGSTER_HOME")
        yield folder


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


def document(*arguments: str) -> Any:
    """What a command prints with ``--json``: nothing else may be on stdout."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_leaderboard_can_be_filtered_and_counted_on_as_json(evaluated: Path) -> None:
    every = document("leaderboard")
    assert [(cell["benchmark"], cell["model"]) for cell in every] == CELLS
    store = ResultsStore(str(evaluated / "store"))
    record = next(r for r in committed_in(store) if (r["dataset"], r["model"]) == ("capitals", "tiny@1"))
    scores = [sample.scores["acc"] for sample in store.samples(record)]
    assert (every[0]["metric"], every[0]["value"], every[0]["n"]) == (
        "acc", pytest.approx(sum(scores) / len(scores)), len(scores),
    )  # fmt: skip
    some = document("leaderboard", "--models", "tiny@2", "--benchmarks", "capitals")
    assert [(cell["benchmark"], cell["model"]) for cell in some] == [("capitals", "tiny@2")]
    table = run("leaderboard", "--benchmarks", "capitals")
    assert "tiny@1" in table.stdout
    assert "capitals_written" not in table.stdout
    nothing = run("leaderboard", "--models", "huge@*")
    assert (nothing.exit_code, nothing.stderr) == (2, "error: no evaluation of huge@* on any benchmark\n")


def test_samples_are_found_by_score_group_text_and_id(evaluated: Path) -> None:
    store = ResultsStore(str(evaluated / "store"))
    record = next(r for r in committed_in(store) if (r["dataset"], r["model"]) == ("capitals", "tiny@1"))
    samples = store.samples(record)
    wrong = [sample.sample_id for sample in samples if sample.scores["acc"] < 0.5]
    assert 0 < len(wrong) < len(samples)
    assert [s["sample_id"] for s in document("samples", "tiny@1", "capitals", "--below", "0.5")] == wrong
    right = document("samples", "tiny@1", "capitals", "--above", "0.5", "--metric", "acc")
    assert {s["sample_id"] for s in right} == {s.sample_id for s in samples} - set(wrong)
    group = samples[0].group
    assert group is not None
    of_group = document("samples", "tiny@1", "capitals", "--group", group)
    assert [s["sample_id"] for s in of_group] == [s.sample_id for s in samples if s.group == group]
    country = re.search(r"capital of (\w+)", samples[3].prompt)
    assert country is not None
    found = document("samples", "tiny@1", "capitals", "--find", country[1].upper())
    assert samples[3].sample_id in [s["sample_id"] for s in found]
    (whole,) = document("samples", "tiny@1", "capitals", samples[3].sample_id[:12])
    assert whole["prompt"] == samples[3].prompt
    assert whole["loglikelihoods"] == list(samples[3].loglikelihoods)
    text = run("samples", "tiny@1", "capitals", samples[3].sample_id[:12]).stdout
    assert samples[3].prompt in text
    assert f"* {samples[3].loglikelihoods[0]:10.4f} nats  {samples[3].choices[0]}" in text
    few = run("samples", "tiny@1", "capitals", "--limit", "2").stdout
    assert f"{len(samples) - 2} more: --limit, or narrow it" in few


def test_samples_are_those_of_one_version_of_two_with_the_same_files(
    evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that is put in again under another name has the same evaluation id as the first."""
    shutil.copytree(evaluated / "store", tmp_path / "store")
    cell = tmp_path / "store" / "evaluations" / "capitals"
    shutil.copytree(cell / "tiny@1", cell / "tiny@copy")
    for file in (cell / "tiny@copy").rglob("evaluation.json"):
        file.write_text(file.read_text().replace('"tiny@1"', '"tiny@copy"'))
    for file in (cell / "tiny@copy").rglob("*.parquet"):
        table = pq.read_table(file)
        names = pa.array(["tiny@copy"] * len(table), table.schema.field("model").type)
        pq.write_table(table.set_column(table.schema.get_field_index("model"), "model", names), file)
    monkeypatch.setenv("EVAL_STORE", str(tmp_path / "store"))
    found = {
        model: document("samples", model, "capitals", "--limit", "99") for model in ("tiny@1", "tiny@copy")
    }
    assert {model: {s["model"] for s in samples} for model, samples in found.items()} == {
        "tiny@1": {"tiny@1"}, "tiny@copy": {"tiny@copy"},
    }  # fmt: skip
    assert [len(samples) for samples in found.values()] == [12, 12]
    assert len({s["evaluation_id"] for samples in found.values() for s in samples}) == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["tiny@9", "capitals"], "tiny@9 has no evaluation on capitals: 'leaderboard' lists what there is"),
        (["tiny@1", "capitals", "zzz"], "tiny@1 on capitals: no sample like that"),
        (["tiny@1' OR 1=1 --", "capitals"], "has no evaluation on capitals"),
        (["tiny@1", "capitals", "' OR '1'='1"], "no sample like that"),
        (["tiny@1", "capitals", "--group", "x'; DROP TABLE samples; --"], "no sample like that"),
        (["tiny@1", "capitals", "--metric", "a'] OR 1=1", "--above", "0"], "no sample like that"),
    ],
)
def test_arguments_are_values_in_queries_and_never_a_part_of_them(
    evaluated: Path, arguments: list[str], line: str
) -> None:
    result = run("samples", *arguments)
    assert result.exit_code == 2
    assert line in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_two_versions_are_compared_without_an_instance(evaluated: Path) -> None:
    found = document("compare", "tiny@2", "tiny@1", "--benchmarks", "capitals,sentences")
    assert [row["dataset"] for row in found["compared"]] == ["capitals"]
    assert "sentences" in found["missing"]


def test_models_say_how_far_they_are(evaluated: Path) -> None:
    found = document("models", "--models", "tiny@*")
    assert [(one["key"], one["evaluations"]) for one in found] == [("tiny@1", 2), ("tiny@2", 2)]
    assert "no registered model version matches x@*" in run("models", "--models", "x@*").stderr


def test_queries_give_values_and_not_their_texts(evaluated: Path) -> None:
    found = document("sql", "select model, value, [1, 2] as list, 'nan'::double as none from leaderboard")
    assert len(found) == len(CELLS)
    assert isinstance(found[0]["value"], float)
    assert (found[0]["list"], found[0]["none"]) == ([1, 2], None)


def test_a_preview_is_what_the_model_was_asked(evaluated: Path) -> None:
    """A preview of its own making would calm whoever looks for a mistake in a template."""
    store = ResultsStore(str(evaluated / "store"))
    for dataset in ("capitals", "capitals_written"):
        record = next(r for r in committed_in(store) if (r["dataset"], r["model"]) == (dataset, "tiny@1"))
        sample = store.samples(record)[2]
        shown = document("benchmarks", "preview", dataset, "--item", "2", "--model", "tiny@1")
        (prompt,) = {request.get("context", request.get("prompt")) for request in shown["requests"]}
        assert prompt == sample.prompt
        assert shown["item"]["sample_id"] == sample.sample_id
        tokens = [r.get("tokens", r.get("context_tokens")) for r in shown["requests"]]
        assert set(tokens) == {sample.prompt_tokens}
    assert sample.prompt in run("benchmarks", "preview", "capitals_written", "--item", "2").stdout
    beyond = run("benchmarks", "preview", "capitals", "--item", "99999")
    assert "items: --item 0 to" in beyond.stderr


def test_a_wrong_benchmark_file_is_one_line_and_right_ones_are_listed(
    evaluated: Path, tmp_path: Path
) -> None:
    assert "capitals" in document("benchmarks", "validate")["valid"]
    own = tmp_path / "mine"
    shutil.copytree(BENCHMARKS, own)
    assert document("benchmarks", "validate", str(own / "capitals.yaml"))["valid"] == ["capitals"]
    assert len(document("benchmarks", "validate", str(own))["valid"]) == 3
    (own / "capitals.yaml").write_text("version: 1\ntitle: x\n")
    wrong = run("benchmarks", "validate", str(own / "capitals.yaml"))
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith(f"error: {own / 'capitals.yaml'}: ")
    assert {one["key"]: one["items"] for one in document("benchmarks", "list")}["capitals"] == 12


def test_completion_knows_commands_models_and_benchmarks(evaluated: Path) -> None:
    def completed(words: str, number: int) -> list[str]:
        environment = {
            **os.environ, "_EVAL_ASSETS_COMPLETE": "bash_complete", "COMP_WORDS": words,
            "COMP_CWORD": str(number),
        }  # fmt: skip
        command = [sys.executable, "-c", "import sys; sys.argv[0] = 'eval-assets'\n"
                   "from eval_assets.__main__ import main; main(prog_name='eval-assets')"]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert "leaderboard" in completed("eval-assets lea", 1)
    assert completed("eval-assets samples ti", 2) == ["tiny@1", "tiny@2"]
    assert "tiny@1,tiny@2" in completed("eval-assets evaluate --models tiny@1,ti", 3)
    assert completed("eval-assets leaderboard --benchmarks capitals_", 3) == ["capitals_written"]
    assert "_EVAL_ASSETS_COMPLETE=bash_complete" in run("completion", "bash").stdout


def test_models_are_completed_also_where_the_path_of_the_store_looks_like_a_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVAL_STORE", str(tmp_path / "team[a]"))
    ResultsStore(str(tmp_path / "team[a]")).save_model_version("tiny@1", {})
    assert known_models() == ["tiny@1"]


@pytest.mark.parametrize(
    "arguments", [["samples", "tiny@1", "capitals", "--json"], ["leaderboard"], ["--help"]], ids=" ".join
)
def test_a_reader_that_has_seen_enough_ends_a_command_quietly(evaluated: Path, arguments: list[str]) -> None:
    """`gate | head -1` with 1 would be a regression, with 0 a version that has passed."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "eval_assets", *arguments],
        cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_connection_that_broke_is_no_reader_that_has_seen_enough() -> None:
    with pytest.raises(ConnectionError, match="the database") as raised, pipes():
        raise BrokenPipeError("the database")
    assert not isinstance(raised.value, BrokenPipeError)


def test_an_interrupt_says_what_is_kept(evaluated: Path) -> None:
    command = subprocess.Popen(
        [sys.executable, "-m", "eval_assets", "sql"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert command.stdout is not None
    assert "Tables and views" in command.stdout.readline()
    command.send_signal(signal.SIGTERM)
    command.wait(60)  # before its input is closed, which would end it, too
    _, told = command.communicate()
    assert (command.returncode, told) == (
        143, "\ninterrupted: what is finished is kept; run it again to go on\n",
    )  # fmt: skip


def test_what_a_model_wrote_does_not_move_a_terminals_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "a\x1b[2Jb\u202ec[bold]d\r\x07"
    assert printable(hostile) == "a\\x1b[2Jb\\u202ec[bold]d\\r\\x07"
    out = Output()
    out.table(("text",), [(hostile,)])
    out.say(hostile, style="red")
    shown = capsys.readouterr().out
    assert shown.count("a\\x1b[2Jb\\u202ec[bold]d\\r\\x07") == 2
    assert not set(shown) & set("\x1b\u202e\r\x07")


def test_the_report_is_built_and_only_what_changed_is_written_again(evaluated: Path) -> None:
    first = document("report")
    assert Path(first["index"]) == evaluated / "store" / "reports" / "index.html"
    assert "tiny@1" in Path(first["index"]).read_text()
    assert document("report")["pages_written"] == 0


def test_two_versions_that_somebody_names_get_pages_of_their_own(evaluated: Path) -> None:
    asked = document("report", "--compare", "tiny@1", "tiny@2")
    for dataset in ("capitals", "capitals_written"):
        page = Path(asked["index"]).parent / "comparisons" / dataset / "tiny@1" / "tiny@2.html"
        assert "tiny@1 <span>against tiny@2</span>" in page.read_text()
    refused = run("report", "--compare", "tiny@1", "tiny@1")
    assert refused.exit_code != 0
    assert "tiny@1 can't be compared with itself" in refused.output


def test_results_go_out_in_the_harnesss_format_and_come_back_marked(
    evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = document("leaderboard", "--models", "tiny@1")
    written = document("export", "lm-eval", str(tmp_path / "out"), "--models", "tiny@1")
    assert [path for path in written["files"] if Path(path).name.startswith("results_")]
    monkeypatch.setenv("EVAL_STORE", str(tmp_path / "other"))
    done = document("import", str(tmp_path / "out"))
    assert (len(done["evaluations"]), done["refused"]) == (2, [])
    after = document("leaderboard")
    assert [(c["benchmark"], c["value"], c["n"]) for c in after] == [
        (c["benchmark"], c["value"], c["n"]) for c in before
    ]
    (origins,) = document("sql", "select distinct origin from evaluations")
    assert origins == {"origin": "lm_eval"}
    renamed = document("import", str(tmp_path / "out"), "--model", "other@7")
    assert {one["model"] for one in renamed["evaluations"]} == {"other@7"}


def test_a_table_is_written_as_its_name_says(evaluated: Path, tmp_path: Path) -> None:
    file = tmp_path / "scores.csv"
    options = ["--models", "tiny@1", "--columns", "dataset,value", "--since", "2020-01-01"]
    done = document("export", "table", "leaderboard", str(file), *options)
    assert (done["rows"], done["format"]) == (2, "csv")
    assert file.read_text().splitlines()[0] == "dataset,value"
    wrong = run("export", "table", "leaderbord", str(file))
    assert wrong.exit_code == 2
    assert len(wrong.stderr.splitlines()) == 1


def test_retention_shows_before_it_removes(
    evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(evaluated / "store", tmp_path / "store")
    monkeypatch.setenv("EVAL_STORE", str(tmp_path / "store"))
    (tmp_path / "policy.yaml").write_text("versions: 1\ntexts_days: 0\n")
    policy = ("--policy", str(tmp_path / "policy.yaml"))
    planned = document("retention", *policy)
    assert {action["kind"] for action in planned["actions"]} == {"texts"}
    assert planned["applied"] is None
    assert len(document("samples", "tiny@1", "capitals", "--find", "capital of")) == 12
    refused = run("retention", *policy, "--apply")
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (2, 1)
    done = document("retention", *policy, "--apply", "--why", "a test")
    assert done["applied"]["skipped"] == []
    (audit,) = document("retention", "--log")
    assert [change["folder"] for change in audit["changes"]] == [a["folder"] for a in planned["actions"]]
    assert f"(a test): {audit['changes'][0]['outcome']}" in run("retention", "--log").stdout
    gone = {action["place"][1] for action in planned["actions"]}
    for model in ("tiny@1", "tiny@2"):
        (sample, *_) = document("samples", model, "capitals")
        assert (sample["prompt"] is None) == (model in gone)
        assert run("samples", model, "capitals", sample["sample_id"]).exit_code == 0
        assert run("samples", model, "capitals").exit_code == 0


def test_metrics_are_served_until_the_command_is_told_to_end(evaluated: Path) -> None:
    command = subprocess.Popen(
        [sys.executable, "-m", "eval_assets", "metrics", "--port", "0"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert command.stdout is not None
        told = re.search(r"http://\S+/metrics", command.stdout.readline())
        assert told is not None
        deadline = time.monotonic() + 60
        text = ""
        while "llm_evaluation_score{" not in text and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(told[0], timeout=30) as answer:
                    text = answer.read().decode()
            except urllib.error.HTTPError as error:
                if error.code != 503:  # it has not looked at the results yet
                    raise
        assert 'llm_evaluation_score{dataset="capitals"' in text
    finally:
        command.terminate()
        _, errors = command.communicate(timeout=60)
    assert (command.returncode, errors) == (
        0, "DAGSTER_HOME is not set: there are no metrics of Dagster's runs\n",
    )  # fmt: skip
