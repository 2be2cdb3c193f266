"""lm_eval's files in and out, against what a real run of lm_eval 0.4.13 wrote (make_harness_files.py)."""

import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eval_assets.exchange import Imported, export_harness, import_harness
from eval_assets.exchange import files as limits
from eval_assets.exchange.names import TASKS
from eval_assets.exchange.reading import _logged_score
from eval_assets.exchange.writing import sample_lines
from eval_assets.grid.comparing import compare_cells
from eval_assets.leaderboard import leaderboard_rows
from eval_assets.metrics import estimate_metrics
from eval_assets.suite import BenchmarkSpec, MetricSpec, load_suite, normalize
from resources.catalog import Catalog
from resources.datasets import read_rows
from resources.errors import UserError
from resources.records import Estimate, EvaluationRecord, MetricRow, Output, Sample
from resources.results import Cell, ResultsStore
from tests.committed import committed_in
from tests.conftest import ROOT
from tests.eval_assets.conftest import Project
from tests.resources.test_results import findings

HARNESS = Path(__file__).parent / "harness"
SUITE = load_suite([ROOT / "tests" / "benchmarks"])
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct@main"
ONE_RUN = next(HARNESS.glob("tasks/*/results_*.json"))


def imported(store: ResultsStore, *paths: Path, **options: Any) -> Imported:
    return import_harness(list(paths), store, SUITE, **options)


def records(store: ResultsStore) -> dict[str, EvaluationRecord]:
    return {record["dataset"]: record for record in committed_in(store)}


def results(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def changed(tmp_path: Path, change: Any, name: str = "results_2026-01-02T03-04-05.000006.json") -> Path:
    """A copy of the real results file with a change, its samples files beside it."""
    folder = tmp_path / "changed"
    folder.mkdir(exist_ok=True)
    for file in ONE_RUN.parent.glob("samples_*"):
        shutil.copy(file, folder / (file.name.rpartition("_")[0] + "_2026-01-02T03-04-05.000006.jsonl"))
    content = results(ONE_RUN)
    change(content)
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def test_a_real_run_becomes_evaluations_of_our_benchmarks(store: ResultsStore) -> None:
    """People's old results must stand beside the new ones, under the same names and in the same unit."""
    done = imported(store, HARNESS)
    assert done.refused == ()
    found = records(store)
    assert sorted(found) == [
        "arc_easy", "gsm8k", "hellaswag", "lambada", "mmlu_0shot", "mmlu_social_sciences", "squad_v2",
        "truthful_qa", "truthful_qa_gen", "wikitext",
    ]  # fmt: skip
    theirs = results(ONE_RUN)["results"]
    score = found["hellaswag"]["score"]
    assert score is not None
    assert score["value"] == theirs["hellaswag"]["acc_norm,none"]
    assert score["stderr"] == theirs["hellaswag"]["acc_norm_stderr,none"]
    assert found["squad_v2"]["metrics"]["squad_f1"] == theirs["squadv2"]["f1,none"] / 100
    assert found["truthful_qa"]["metrics"] == {
        "mc1": theirs["truthfulqa_mc1"]["acc,none"],
        "mc2": theirs["truthfulqa_mc2"]["acc,none"],
    }
    assert found["gsm8k"]["metrics"] == {"exact_match_strict": 0.0, "exact_match_flexible": 0.0}
    assert found["lambada"]["metrics"]["perplexity"] == theirs["lambada_openai"]["perplexity,none"]
    assert {record["model"] for record in found.values()} == {MODEL}
    assert {record["origin"] for record in found.values()} == {"lm_eval"}
    assert {record["samples"] for name, record in found.items() if "mmlu" not in name} == {3}


def test_the_subjects_of_mmlu_are_the_groups_of_one_evaluation(store: ResultsStore) -> None:
    imported(store, HARNESS)
    whole, part = records(store)["mmlu_0shot"], records(store)["mmlu_social_sciences"]
    assert (whole["samples"], whole["items_available"]) == (114, 114)
    rows = store.metrics(whole)
    assert len([row for row in rows if row.group is not None]) == 57
    assert {row.group for row in rows} >= {None, "anatomy", "virology"}
    assert (part["samples"], len(store.samples(part))) == (12, 12)


@pytest.mark.parametrize(
    ("dataset", "metric"),
    [
        ("hellaswag", "acc_norm"), ("arc_easy", "acc"), ("truthful_qa", "mc1"), ("truthful_qa", "mc2"),
        ("gsm8k", "exact_match_flexible"), ("squad_v2", "squad_f1"), ("squad_v2", "squad_exact_match"),
        ("truthful_qa_gen", "bleu_max"), ("lambada", "acc"), ("mmlu_social_sciences", "acc"),
    ],
)  # fmt: skip
def test_the_samples_scores_have_the_mean_that_the_run_reports(
    store: ResultsStore, dataset: str, metric: str
) -> None:
    """Scores of another metric or unit would make every comparison of samples a lie."""
    imported(store, HARNESS)
    record = records(store)[dataset]
    scores = [sample.scores[metric] for sample in store.samples(record)]
    assert math.fsum(scores) / len(scores) == pytest.approx(
        record["metrics"][metric],
        rel=1e-7,  # torchmetrics, which stands in for the hub's squad, counts in float32
    )


def test_a_perplexity_under_another_ones_name_is_written_with_its_words_and_comes_back() -> None:
    """As a plain log-likelihood it would come back as the perplexity of a target of one word."""
    metrics = (MetricSpec(metric="word_perplexity", name="perplexity"),)
    spec = SUITE["wikitext"].model_copy(update={"metrics": metrics})
    sample = Sample("text", 0, None, None, "", references=["four words of text"], loglikelihoods=[-8.0])
    sample.scores = {"perplexity": math.exp(2.0)}
    [line] = sample_lines([sample], spec, None, "perplexity")
    assert line["perplexity"] == [-8.0, 4.0]
    assert _logged_score("perplexity", line["perplexity"]) == pytest.approx(math.exp(2.0))


def test_a_perplexity_comes_out_of_the_imported_log_likelihoods(store: ResultsStore) -> None:
    imported(store, HARNESS)
    for dataset in ("wikitext", "lambada"):
        record = records(store)[dataset]
        again = {
            row.metric: row.estimate
            for row in estimate_metrics(store.samples(record), SUITE[dataset].metrics)
        }
        for name in again:
            assert again[name].value == pytest.approx(record["metrics"][name], rel=1e-12)


def test_imported_samples_have_the_ids_of_our_own_items(store: ResultsStore, data: Path) -> None:
    """Only then can two evaluations be joined item by item, whoever made them."""
    imported(store, HARNESS)
    for dataset in ("hellaswag", "gsm8k"):
        spec = SUITE[dataset].model_copy(update={"fewshot": SUITE["hellaswag"].fewshot})
        ours = normalize(spec, lambda source: read_rows(source, data)).items
        found = store.samples(records(store)[dataset])
        assert [sample.sample_id for sample in found] == [item.sample_id for item in ours[: len(found)]]
        assert found[0].references == list(ours[0].references)
        assert found[0].target == ours[0].target


def test_the_same_file_again_is_the_same_evaluation(store: ResultsStore, tmp_path: Path) -> None:
    first = imported(store, HARNESS)
    again = imported(store, HARNESS, ONE_RUN)
    assert not any(one.new for one in again.evaluations)
    assert {one.evaluation_id for one in again.evaluations} == {
        one.evaluation_id for one in first.evaluations
    }
    copy = shutil.copytree(HARNESS, tmp_path / "elsewhere")
    assert not any(one.new for one in imported(store, copy).evaluations)
    assert Catalog(store).refresh().total == len(first.evaluations)


def test_another_run_of_the_same_model_is_another_evaluation(store: ResultsStore, tmp_path: Path) -> None:
    imported(store, ONE_RUN)
    later = changed(tmp_path, lambda content: content.update(date=content["date"] + 1000))
    assert all(one.new for one in imported(store, later).evaluations)


def test_an_imported_evaluation_is_never_taken_for_one_of_the_grid(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number that nobody here computed would stand for a cell, or let a version pass a gate."""
    monkeypatch.setenv("EVAL_LIMIT", "6")
    runs = project.registered("tiny@1", "tiny@2")
    runs.evaluate_cells("tiny@1", ["capitals"])
    shots = SUITE["capitals"].fewshot.count
    content = {
        "results": {"capitals": {"acc,none": 1.0, "acc_norm,none": 1.0, "sample_len": 6}},
        "n-shot": {"capitals": shots},
        "config": {"model_args": "pretrained=a/b"},
    }
    path = tmp_path / "results_x.json"
    path.write_text(json.dumps(content))
    done = import_harness([path], runs.store, SUITE, models={"*": "tiny@2"})
    assert [(one.dataset, one.model) for one in done.evaluations] == [("capitals", "tiny@2")]
    [cell] = runs.cells(["tiny@2"], ["capitals"])
    assert runs.store.committed(cell) is None
    assert runs.missing({cell: runs.cells(["tiny@2"], ["capitals"])[cell]})
    with pytest.raises(UserError, match="tiny@2 has no evaluation of today's capitals"):
        compare_cells(runs.look.cells, "tiny@2", "tiny@1", "capitals")
    runs.evaluate_cells("tiny@2", ["capitals"])
    compared = compare_cells(runs.look.cells, "tiny@2", "tiny@1", "capitals")
    assert "origin" not in compared.candidate
    catalog = Catalog(runs.store)
    catalog.refresh()
    with catalog.connect() as connection:
        rows = connection.execute("SELECT model, origin FROM leaderboard ORDER BY 1").fetchall()
        assert rows == [("tiny@1", None), ("tiny@2", None)], "our own comes first"


def test_an_imported_evaluation_is_marked(store: ResultsStore) -> None:
    imported(store, HARNESS)
    assert {record["model_digest"] for record in records(store).values()} == {None}
    Catalog(store).refresh()
    with Catalog(store).connect() as connection:
        rows = connection.execute("SELECT DISTINCT origin FROM leaderboard UNION SELECT origin FROM history")
        assert rows.fetchall() == [("lm_eval",)]
        assert connection.execute("SELECT count(*) FROM costs").fetchall() == [(0,)]
    assert {row.model for row in leaderboard_rows(Catalog(store))} == {f"{MODEL} (from lm_eval)"}


@pytest.mark.parametrize(
    ("arguments", "more", "key"),
    [
        ("pretrained=org/model,revision=v1.0,dtype=float16", {}, "org/model@v1.0"),
        ({"pretrained": "org/model"}, {"model_sha": "93efa2f097d58c2a7487"}, "org/model@93efa2f097d5"),
        ({"pretrained": "org/model", "revision": "main"}, {"model_sha": ""}, "org/model@main"),
        ({"pretrained": "org/base", "peft": "org/adapter"}, {}, "org/adapter@main"),
        (
            {"pretrained": "org/base", "peft": "org/adapter"},
            {"model_sha": "93efa2f097d58c2a7487", "peft_sha": "0123456789abcdef"}, "org/adapter@0123456789ab",
        ),
        (
            {"pretrained": "org/base", "delta": "org/delta"}, {"model_sha": "93efa2f097d58c2a7487"},
            "org/delta@main",
        ),
        ("pretrained=/models/llama/3,dtype=auto", {}, "llama@3"),
        ("pretrained=./checkpoints/run7/step-500", {}, "run7@step-500"),
        ({"model": "llama3:8b", "base_url": "http://localhost"}, {}, "llama3-8b@main"),
        ({"pretrained": "org/model", "revision": "refs/pr/3"}, {}, "org/model@refs-pr-3"),
    ],
)  # fmt: skip
def test_the_models_key_is_its_name_and_revision(
    store: ResultsStore, tmp_path: Path, arguments: Any, more: dict[str, str], key: str
) -> None:
    def change(content: dict[str, Any]) -> None:
        content["config"] = {"model": "hf", "model_args": arguments, **more}

    done = imported(store, changed(tmp_path, change))
    assert {one.model for one in done.evaluations} == {key}


def test_a_person_can_say_which_model_it_was(store: ResultsStore, tmp_path: Path) -> None:
    name = MODEL.rpartition("@")[0]
    assert imported(store, ONE_RUN, models={name: "smol@1"}).evaluations[0].model == "smol@1"
    nameless = changed(tmp_path, lambda content: (content.pop("config"), content.pop("model_name")))
    with pytest.raises(UserError, match="which model it is about; name it: --model"):
        imported(store, nameless)
    assert imported(store, nameless, models={"*": "smol@2"}).evaluations[0].model == "smol@2"
    assert imported(store, ONE_RUN, models={name: "smol@3", "*": "x@1"}).evaluations[0].model == "smol@3"
    with pytest.raises(UserError, match="model key"):
        imported(store, ONE_RUN, models={"*": "../../etc@1"})


def test_a_name_that_no_file_has_is_told_before_anything_is_taken(
    store: ResultsStore, tmp_path: Path
) -> None:
    """The results would else be there for good under a key that nobody meant."""
    with pytest.raises(UserError, match=rf"--model smollm=\.\.\.: no file .*; they have {MODEL[:-5]}$"):
        imported(store, ONE_RUN, models={"smollm": "smol@1"})
    assert records(store) == {}


def test_other_few_shot_examples_make_it_another_benchmark(store: ResultsStore, tmp_path: Path) -> None:
    """HellaSwag with ten examples is another test than ours: on one leaderboard they can't be compared."""

    def change(content: dict[str, Any]) -> None:
        content["n-shot"]["hellaswag"] = 10
        content["configs"]["hellaswag"]["num_fewshot"] = 10
        content["results"]["winogrande"] = {"acc,none": 0.5, "acc_stderr,none": "N/A"}

    imported(store, changed(tmp_path, change))
    assert {"hellaswag_10shot", "winogrande"} <= set(records(store))
    assert "hellaswag" not in records(store)


def test_a_run_without_examples_is_no_run_of_a_benchmark_that_has_some(
    store: ResultsStore, tmp_path: Path
) -> None:
    """`--num_fewshot 0` makes GSM8K much harder: under our key it would be a sudden loss."""
    own = SUITE["capitals"].model_copy(update={"key": "own", "fewshot": SUITE["gsm8k"].fewshot})

    def change(content: dict[str, Any]) -> None:
        content["n-shot"]["gsm8k"] = content["configs"]["gsm8k"]["num_fewshot"] = 0
        content["results"] |= {"own": {"acc,none": 0.5}, "part": {"acc,none": 0.5}}
        content["groups"] = {"own_group": {"acc,none": 0.5}}
        content["group_subtasks"] = {"own_group": ["part"]}

    suite = {**SUITE, "own": own, "own_group": own}
    import_harness([changed(tmp_path, change)], store, suite)
    assert {"gsm8k_0shot", "own_0shot", "own_group_0shot"} <= set(records(store))
    assert not {"gsm8k", "own", "own_group"} & set(records(store))


@pytest.mark.parametrize(("shots", "key"), [(5, "mmlu_5shot_2tasks"), (0, "mmlu_0shot_2tasks")])
def test_some_subjects_of_mmlu_have_a_key_of_their_own(
    store: ResultsStore, tmp_path: Path, shots: int, key: str
) -> None:
    def change(content: dict[str, Any]) -> None:
        subjects = ["mmlu_anatomy", "mmlu_virology"]
        content["results"] = {name: {"acc,none": 0.5} for name in (*subjects, "mmlu")}
        content["groups"] = {"mmlu": {"acc,none": 0.5}}
        content["group_subtasks"] = {"mmlu": subjects}
        content["n-shot"] = dict.fromkeys(subjects, shots)

    imported(store, changed(tmp_path, change))
    assert set(records(store)) == {key}


def test_two_tasks_whose_names_make_one_key_are_two_evaluations(store: ResultsStore, tmp_path: Path) -> None:
    """The value of the one would stand beside the samples of the other."""

    def change(content: dict[str, Any]) -> None:
        content["results"] = {"Some task": {"acc,none": 0.25}, "some_task": {"acc,none": 0.75}}

    imported(store, changed(tmp_path, change))
    assert {name: one["metrics"]["acc"] for name, one in records(store).items()} == {
        "some_task": 0.25, "some_task_2": 0.75,
    }  # fmt: skip


def test_a_bad_name_or_group_takes_nothing_else_apart(store: ResultsStore, tmp_path: Path) -> None:
    [whole] = HARNESS.glob("mmlu/*/results_*.json")
    content = results(whole)
    content["results"]["a|b"] = {"acc,none": 0.5}
    content["group_subtasks"] |= {"other": 5, "another": "mmlu_anatomy"}
    path = tmp_path / "results_x.json"
    path.write_text(json.dumps(content))
    done = imported(store, path)
    assert [one.dataset for one in done.evaluations] == ["mmlu_0shot"]
    assert [line.partition(": ")[2][:30] for line in done.refused] == [
        "group_subtasks: 'other' has no", "group_subtasks: 'another' has ", "task 'a|b': a name has letters",
    ]  # fmt: skip


def test_tasks_of_a_group_keep_all_samples_also_where_they_share_documents(
    store: ResultsStore, tmp_path: Path
) -> None:
    """flores and GPQA ask several tasks about the same documents: half of the evidence would be gone."""
    tasks = ("gpqa_main", "gpqa_extended")

    def change(content: dict[str, Any]) -> None:
        content["results"] = {name: {"acc,none": 2 / 3, "sample_len": 3} for name in tasks}
        content["groups"] = {"gpqa": {"acc,none": 2 / 3}}
        content["group_subtasks"] = {"gpqa": list(tasks)}
        content["n-samples"] = {name: {"original": 3, "effective": 3} for name in tasks}

    path = changed(tmp_path, change)
    shared = next(path.parent.glob("samples_hellaswag_*"))
    for name in tasks:
        shutil.copy(shared, path.parent / shared.name.replace("hellaswag", name))
    done = imported(store, path)
    assert (done.refused, [one.samples for one in done.evaluations]) == ((), [6])
    samples = store.samples(records(store)["gpqa"])
    assert [sample.group for sample in samples] == ["gpqa_main"] * 3 + ["gpqa_extended"] * 3
    assert [sample.sample_id for sample in samples[3:]] == [f"{one.sample_id}-2" for one in samples[:3]]


def test_files_of_the_harness_before_filters_and_groups_are_read(store: ResultsStore, tmp_path: Path) -> None:
    subjects = SUITE["mmlu"].source.configs
    old = {
        "results": {
            "hellaswag": {"acc": 0.25, "acc_stderr": 0.01, "acc_norm": 0.3, "acc_norm_stderr": 0.02},
            **{f"hendrycksTest-{subject}": {"acc": 0.5, "acc_stderr": 0.1} for subject in subjects},
        },
        "versions": {"hellaswag": 0},
        "config": {"model": "hf-causal", "model_args": "pretrained=gpt2", "num_fewshot": 5, "limit": None},
    }
    path = tmp_path / "gpt2.json"
    path.write_text(json.dumps(old))
    imported(store, path)
    found = records(store)
    assert sorted(found) == ["hellaswag_5shot", "mmlu"]
    assert found["hellaswag_5shot"]["metrics"] == {"acc": 0.25, "acc_norm": 0.3}
    assert found["mmlu"]["model"] == "gpt2@main"
    export_harness(store, SUITE, tmp_path / "out", benchmarks=["mmlu"])
    [file] = (tmp_path / "out").rglob("*.json*")
    assert results(file)["groups"]["mmlu"]["acc,none"] == 0.5
    assert set(results(file)["results"]) == {"mmlu", *(f"mmlu_{subject}" for subject in subjects)}
    other = ResultsStore(str(tmp_path / "other"))
    imported(other, tmp_path / "out")
    assert records(other)["mmlu"]["content_digest"] == found["mmlu"]["content_digest"]


BAD: dict[str, tuple[Any, str]] = {
    "not JSON": (b"{", "it is no JSON"),
    "not UTF-8": (b"\xff\xfe{}", "not UTF-8"),
    "a list": (b"[]", "no 'results'"),
    "results of another kind": (b'{"results": [1]}', "no 'results'"),
    "nested deeply": (b'{"results":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "it is no JSON"),
    "a number with 5,000 digits": (b'{"results": {"a": {"acc": ' + b"9" * 5000 + b"}}}", "it is no JSON"),
    "no model": (b'{"results": {"a": {"acc": 0.5}}}', "which model"),
    "no task": (b'{"results": {}, "config": {"model_args": "pretrained=a/b"}}', "no task"),
    "a task that leaves the folder": (
        b'{"results": {"../../x": {"acc": 0.5}}, "config": {"model_args": "pretrained=a/b"}}', "no '..'",
    ),
    "outputs only": (
        b'{"results": {"a": {"bypass,none": 999, "bypass_stderr,none": "N/A"}},'
        b' "config": {"model_args": "pretrained=a/b"}}',
        "a has outputs only",
    ),
    "nothing but NaN": (
        b'{"results": {"a": {"acc,none": NaN}}, "config": {"model_args": "pretrained=a/b"}}',
        "no finite value",
    ),
    "an infinite value": (
        b'{"results": {"a": {"acc,none": 1e999}}, "config": {"model_args": "pretrained=a/b"}}',
        "no finite value",
    ),
    "a metric that is markup": (
        b'{"results": {"a": {"<script>x</script>|,none": 0.5}}, "config": {"model_args": "pretrained=a/b"}}',
        "no name for a metric",
    ),
    "a task that is markup": (
        b'{"results": {"[a](http://x)|": {"acc": 0.5}}, "config": {"model_args": "pretrained=a/b"}}',
        "a name has letters",
    ),
    "a task without a name": (
        b'{"results": {".-.": {"acc": 0.5}}, "config": {"model_args": "pretrained=a/b"}}', "benchmark key",
    ),
    "a model that leaves the folder": (
        b'{"results": {"a": {"acc": 0.5}}, "config": {"model_args": "pretrained=../../etc/passwd"}}',
        "no name",
    ),
    "values of other types": (
        b'{"results": {"a": {"acc": {"x": 1}, "b": [1], "c": "0.5", "d": null, "e": true}},'
        b' "config": {"model_args": "pretrained=a/b"}}',
        "no finite value",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_can_not_be_used_is_refused_in_one_line(store: ResultsStore, tmp_path: Path, case: str) -> None:
    content, reason = BAD[case]
    path = tmp_path / "results_x.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason) as raised:
        imported(store, path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)
    assert not list(Path(store.root).rglob("evaluation.json"))


def test_one_bad_file_does_not_hold_up_the_others(store: ResultsStore, tmp_path: Path) -> None:
    folder = shutil.copytree(HARNESS, tmp_path / "runs")
    bad = folder / "results_bad.json"
    bad.write_text("{")
    done = imported(store, folder)
    assert len(done.evaluations) == 10
    assert [line.split(": it is no JSON")[0] for line in done.refused] == [str(bad)]


def test_a_file_of_a_gigabyte_is_refused_without_reading_it(store: ResultsStore, tmp_path: Path) -> None:
    path = tmp_path / "results_big.json"
    with path.open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(UserError, match=r"1,073,741,824 bytes; a results file has at most"):
        imported(store, path)


def test_samples_that_do_not_fit_the_results_are_left_out_and_told(
    store: ResultsStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a file, or somebody else's, would otherwise be the evidence for the number beside it."""
    path = changed(tmp_path, lambda _: None)
    samples = {file.name.split("_2026")[0]: file for file in path.parent.glob("samples_*")}
    short = samples["samples_hellaswag"]
    short.write_text("\n".join(short.read_text().splitlines()[:2]))
    samples["samples_arc_easy"].write_text('{"doc_id": -1}\n')
    samples["samples_lambada_openai"].write_text('{"doc_id": 0, "arguments": 5, "resps": []}\n')
    samples["samples_gsm8k"].write_text("{nonsense\n")
    samples["samples_truthfulqa_gen"].unlink()
    samples["samples_truthfulqa_gen"].mkdir()
    line = json.loads(samples["samples_wikitext"].read_text().splitlines()[0])
    line["resps"] = [["nan"]]
    samples["samples_wikitext"].write_text(json.dumps(line))
    squad = [json.loads(text) for text in samples["samples_squadv2"].read_text().splitlines()]
    squad[0]["resps"][0][0] = "half of a pair: \ud83d"
    samples["samples_squadv2"].write_text("\n".join(map(json.dumps, squad)))
    done = imported(store, path)
    assert len(done.evaluations) == 8
    taken = {one.dataset: one.samples for one in done.evaluations}
    assert taken == {
        "hellaswag": 0, "arc_easy": 0, "lambada": 0, "gsm8k": 0, "truthful_qa_gen": 0, "wikitext": 0,
        "squad_v2": 3, "truthful_qa": 3,
    }  # fmt: skip
    assert len(done.refused) == 6
    assert all("taken without samples" in line and "\n" not in line for line in done.refused)
    assert store.samples(records(store)["squad_v2"])[0].output == "half of a pair: ?"
    monkeypatch.setattr(limits, "LARGEST_SAMPLES", 100)
    done = imported(store, ONE_RUN)
    assert {one.samples for one in done.evaluations} == {0}


def test_a_line_without_an_end_does_not_fill_the_memory(
    store: ResultsStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LONGEST_LINE", 1000)
    done = imported(store, changed(tmp_path, lambda _: None))
    assert any("longer than 1,000 bytes" in line for line in done.refused)


def kinds(value: Any) -> Any:
    """The shape of JSON data: types, with the keys of objects and the first element of lists."""
    if isinstance(value, dict):
        return {name: kinds(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [kinds(value[0])] if value else []
    return (
        "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__
    )


def test_exported_files_have_the_harnesss_own_fields(store: ResultsStore, tmp_path: Path) -> None:
    """What reads a run's files (make_table, the trackers, a Hub's viewer) would fail on a missing field."""
    imported(store, ONE_RUN)
    export_harness(store, SUITE, tmp_path / "out")
    theirs = results(ONE_RUN)
    [path] = (tmp_path / "out").rglob("results_*.json")
    ours = results(path)
    of_the_tokenizer = {name for name in theirs if name.startswith("tokenizer_")} | {
        "eot_token_id",
        "max_length",
    }
    assert set(theirs) - of_the_tokenizer <= set(ours)
    assert ours["results"] == theirs["results"]
    for name in ("n-shot", "n-samples", "versions", "higher_is_better"):
        assert ours[name] == theirs[name], name
    assert set(theirs["config"]) <= set(ours["config"])
    needed = {"task", "num_fewshot", "metric_list", "output_type", "metadata", "repeats", "description"}
    assert all(needed <= set(config) for config in ours["configs"].values())
    assert {n: c["output_type"] for n, c in ours["configs"].items()} == {
        n: c["output_type"] for n, c in theirs["configs"].items()
    }
    for file in ONE_RUN.parent.glob("samples_*"):
        name = file.name.rpartition("_")[0]
        [other] = path.parent.glob(f"{name}_*")
        real = [json.loads(line) for line in file.read_text().splitlines()]
        made = [json.loads(line) for line in other.read_text().splitlines()]
        assert len(made) == len(real), name
        for one, two in zip(real, made, strict=True):
            logged = set(one) if name != "samples_squadv2" else set(one) - set(one["metrics"])
            assert logged <= set(two), name
            for field in ("filter", "resps", "filtered_resps"):
                if name != "samples_squadv2":  # it asks for a log-likelihood besides, which ours does not
                    assert two[field] == one[field], (name, field)
            for metric in one["metrics"]:
                if metric in two and isinstance(one[metric], (int, float)):
                    assert two[metric] == one[metric]
                    assert kinds(two[metric]) == kinds(one[metric])
            texts = [request["arg_0"] for request in one["arguments"].values()]
            assert [r["arg_0"] for r in two["arguments"].values()] == texts[: len(two["arguments"])]
            assert two["prompt_hash"] == one["prompt_hash"]


def test_a_real_run_comes_back_from_its_export_as_it_was(store: ResultsStore, tmp_path: Path) -> None:
    imported(store, HARNESS)
    exported = export_harness(store, SUITE, tmp_path / "out")
    assert exported.left_out == (f"{MODEL} on mmlu_0shot: without samples: it was imported without them",)
    assert {path for path in (tmp_path / "out").rglob("*") if path.is_file()} == set(exported.files)
    assert all(path.stat().st_size for path in exported.files)
    other = ResultsStore(str(tmp_path / "other"))
    imported(other, tmp_path / "out")
    before, after = records(store), records(other)
    assert set(before) == set(after)
    for name, record in before.items():
        assert after[name]["content_digest"] == record["content_digest"], name
        assert after[name]["score"] == record["score"]
        assert after[name]["model"] == record["model"]


def test_without_samples_there_is_no_file_of_them(store: ResultsStore, tmp_path: Path) -> None:
    """An empty one reads as a run of no items."""
    path = changed(tmp_path, lambda _: None)
    next(path.parent.glob("samples_hellaswag_*")).unlink()
    imported(store, path)
    done = export_harness(store, SUITE, tmp_path / "out", benchmarks=["hellaswag"])
    assert done.left_out == (f"{MODEL} on hellaswag: without samples: it was imported without them",)
    assert [one.suffix for one in (tmp_path / "out").rglob("*.json*")] == [".json"]


TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
SCORE = st.floats(0, 1)


@st.composite
def evaluations(draw: st.DrawFn) -> tuple[BenchmarkSpec, list[Sample]]:
    spec = SUITE[
        draw(
            st.sampled_from(["hellaswag", "mmlu", "truthful_qa", "capitals", "gsm8k", "lambada", "wikitext"])
        )
    ]
    samples = []
    for index in range(draw(st.integers(1, 4))):
        group = draw(st.sampled_from(spec.source.configs)) if spec.group and spec.key == "mmlu" else None
        sample = Sample(f"{index:016x}", index, group, draw(st.none() | TEXT), draw(TEXT))
        sample.prompt_tokens = draw(st.integers(0, 1000))
        if spec.task == "multiple_choice":
            sample.choices = draw(st.lists(TEXT, min_size=2, max_size=4))
            sample.target = draw(st.integers(0, len(sample.choices) - 1))
            sample.labels = [int(place == sample.target) for place in range(len(sample.choices))]
            sample.loglikelihoods = [draw(st.floats(-1000, 0) | st.just(-math.inf)) for _ in sample.choices]
            sample.choice_tokens = [3 for _ in sample.choices]
            sample.is_greedy = [draw(st.booleans()) for _ in sample.choices]
        elif spec.task == "generation":
            sample.references = draw(st.lists(TEXT, min_size=1, max_size=3))
            sample.output, sample.finish_reason, sample.output_tokens = draw(st.none() | TEXT), "stop", 7
            if sample.output is not None and draw(st.booleans()):
                sample.outputs = [
                    Output(sample.output, "stop", 3, {"m": draw(SCORE)}),
                    Output(draw(TEXT), "length", 4),
                ]
        else:
            sample.references = [draw(TEXT)] * (2 if spec.key == "wikitext" else 1)
            sample.loglikelihoods, sample.choice_tokens = [draw(st.floats(-1000, 0))], [5]
            if spec.prompt:
                sample.is_greedy = [draw(st.booleans())]
            else:
                sample.prompt, sample.prompt_tokens = "", 0
        sample.scores = {metric.name: draw(SCORE) for metric in spec.metrics}
        samples.append(sample)
    return spec, samples


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(evaluations())
def test_our_own_evaluation_comes_back_from_its_export_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, evaluation: tuple[BenchmarkSpec, list[Sample]]
) -> None:
    """Whoever shares results by the harness's files must get back the numbers that were sent."""
    spec, samples = evaluation
    folder = tmp_path_factory.mktemp("round")
    store, other = ResultsStore(str(folder / "one")), ResultsStore(str(folder / "two"))
    counts: Counter[str | None] = Counter([sample.group for sample in samples if sample.group is not None])
    counts[None] = len(samples)
    rows = [
        MetricRow(metric.name, group, Estimate(0.1 + 0.2, 1 / 3, 0.25, 0.5, counts[group], None))
        for metric in spec.metrics
        for group in sorted(counts, key=str)
    ]
    record = findings(
        model_name="org/m", task=spec.task, primary_metric=spec.primary_metric,
        higher_is_better=spec.key not in ("wikitext",), samples=len(samples), items_available=100,
        finished_at="2026-01-01T00:00:10+00:00", engine={"device": "cpu", "dtype": "float32"},
        score={"value": 0.1 + 0.2, "stderr": 1 / 3, "ci_low": 0.25, "ci_high": 0.5, "n": 1},
    )  # fmt: skip
    with store.writer(Cell(spec.key, "org/m@1", "1" * 64)) as writer:
        before = writer.commit(samples, rows, record)
    export_harness(store, SUITE, folder / "files")
    done = imported(other, folder / "files")
    assert done.refused == ()
    [after] = records(other).values()
    assert other.samples(after) == store.samples(before)
    assert sorted(map(str, other.metrics(after))) == sorted(map(str, store.metrics(before)))
    assert (after["dataset"], after["model"], after["origin"]) == (spec.key, "org/m@1", "lm_eval")
    for name in (
        "primary_metric",
        "higher_is_better",
        "items_available",
        "started_at",
        "finished_at",
        "task",
    ):
        assert after[name] == before[name], name
    assert before["score"] is not None
    assert after["score"] is not None
    assert {**after["score"], "n": 1} == {**before["score"], "n": 1}


@pytest.mark.parametrize("task", ["../../../../escaped/x", "a/b", "/tmp/x"])
def test_nothing_is_written_outside_the_folder_that_was_named(
    store: ResultsStore, tmp_path: Path, task: str
) -> None:
    """A results file from anywhere, imported and exported again, would write where its author likes."""
    imported(store, ONE_RUN)
    export_harness(store, SUITE, tmp_path / "deep" / "in" / "out", benchmarks=["hellaswag"])
    [path] = (tmp_path / "deep").rglob("results_*.json")
    [samples] = (tmp_path / "deep").rglob("samples_*.jsonl")
    content = json.loads(path.read_text().replace('"hellaswag"', json.dumps(task)))
    content["continuous_model_evaluation"]["evaluations"] = {
        "hellaswag": next(iter(content["continuous_model_evaluation"]["evaluations"].values()))
    }
    path.write_text(json.dumps(content))
    samples.rename(samples.with_name(samples.name.replace("hellaswag", task.replace("/", "__"))))
    other = ResultsStore(str(tmp_path / "other"))
    before = {one for one in tmp_path.rglob("*") if one.is_file()}
    if ".." in task:
        with pytest.raises(UserError, match="a task has a name that can't be one"):
            imported(other, path)
        return
    imported(other, path)
    assert records(other)["hellaswag"]["imported"]["tasks"] == [task]
    out = tmp_path / "deep" / "in" / "again"
    done = export_harness(other, SUITE, out)
    after = {one for one in tmp_path.rglob("*") if one.is_file()} - before
    assert {one.parent for one in done.files} == {out / path.parent.name}
    assert all(one.is_relative_to(out) or one.is_relative_to(other.root) for one in after)


def test_only_what_is_asked_for_is_exported(store: ResultsStore, tmp_path: Path) -> None:
    imported(store, HARNESS)
    done = export_harness(store, SUITE, tmp_path / "a", benchmarks=["hella*"], samples=False)
    assert [path.name for path in done.files] == ["results_2026-11-28T04-43-45.115727.json"]
    assert list(results(done.files[0])["results"]) == ["hellaswag"]
    for patterns in (["nobody@*"], []):
        with pytest.raises(UserError, match="no evaluation of"):
            export_harness(store, SUITE, tmp_path / "b", models=patterns)
    with pytest.raises(UserError, match="no evaluation of nobody"):
        export_harness(store, SUITE, tmp_path / "b", models=["nobody@*"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        export_harness(store, SUITE, tmp_path / "file")


def test_an_export_that_is_repeated_makes_the_same_files(store: ResultsStore, tmp_path: Path) -> None:
    imported(store, HARNESS)
    first = {p: p.read_bytes() for p in export_harness(store, SUITE, tmp_path / "out").files}
    assert {p: p.read_bytes() for p in export_harness(store, SUITE, tmp_path / "out").files} == first
    assert sorted(first) == sorted(p for p in (tmp_path / "out").rglob("*") if p.is_file())


def test_the_page_names_every_task_and_metric() -> None:
    """People look up there what becomes of their task; a wrong line sends them to the wrong benchmark."""
    rows = {}
    for line in (ROOT / "docs" / "exchange.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| `") and len(cells) == 4:
            rows[cells[0].split(",")[0].strip("`"), cells[1], cells[2].strip("`")] = cells[3]
    assert set(rows) == {(names.task, str(names.shots), names.benchmark) for names in TASKS}
    for names in TASKS:
        told = rows[names.task, str(names.shots), names.benchmark]
        if "the same" not in told:
            for label, (ours, factor) in names.metrics.items():
                assert f"`{label}` → `{ours}`" in told
                assert ("divided by 100" in told) == (factor != 1)


def test_the_table_of_names_has_only_benchmarks_and_metrics_that_are_there() -> None:
    for names in TASKS:
        spec = SUITE[names.benchmark]
        assert spec.fewshot.count == names.shots
        assert {ours for ours, _ in names.metrics.values()} <= {metric.name for metric in spec.metrics}
