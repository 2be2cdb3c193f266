"""Benchmark files: what is accepted, merged, and how each mistake is said."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval_assets.suite import SUITE_FOLDER, load_suite
from resources.errors import UserError
from tests.eval_assets.suite.quiz import ANSWER, CHOICE, TEXT

NEEDED = {
    "arc_challenge",
    "arc_challenge_25shot",
    "arc_easy",
    "gsm8k",
    "hellaswag",
    "lambada",
    "mmlu",
    "mmlu_0shot",
    "squad",
    "squad_v2",
    "summarization",
    "truthful_qa",
    "truthful_qa_gen",
    "wikitext",
}


def write(folder: Path, name: str, document: dict[str, Any] | str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return path


def refusal(folder: Path, document: dict[str, Any] | str, name: str = "quiz.yaml") -> str:
    path = write(folder, name, document)
    with pytest.raises(UserError) as caught:
        load_suite([folder])
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def pass_at(k: object, *more: str, of: str | None = "exact_match") -> dict[str, Any]:
    """The fields of a benchmark with ten outputs an item and pass@k; None leaves a field out."""
    metric = {
        name: value for name, value in {"metric": "pass@k", "k": k, "of": of}.items() if value is not None
    }
    return {"generation": {"temperature": 0.8, "outputs": 10}, "metrics": ["exact_match", metric, *more]}


def test_the_suite_holds_the_benchmarks_that_the_readme_promises() -> None:
    assert set(load_suite()) >= NEEDED


def test_loading_takes_well_under_half_a_second_and_nothing_heavy(tmp_path: Path) -> None:
    """The web server and the daemon load definitions; torch there would cost seconds and a gigabyte."""
    code = (
        "import sys, time\n"
        "from eval_assets.suite import load_suite\n"
        "load_suite()\n"
        "start = time.process_time()\n"
        "load_suite()\n"
        "print(time.process_time() - start)\n"
        "heavy = ('torch', 'datasets', 'pandas', 'transformers', 'dagster', 'scipy')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(SUITE_FOLDER.parent.parent)},
        cwd=tmp_path,
    )
    seconds, heavy = done.stdout.splitlines()
    assert float(seconds) < 0.4
    assert heavy == "[]"


def test_a_folder_of_ones_own_is_added_and_keys_are_file_names(tmp_path: Path) -> None:
    write(tmp_path / "a", "quiz.yaml", CHOICE)
    write(tmp_path / "b", "essay.yml", ANSWER)
    write(tmp_path / "b", "notes.txt", "no benchmark")
    write(tmp_path / "b", ".hidden.yaml", "no benchmark")
    suite = load_suite(os.pathsep.join([str(tmp_path / "a"), "", str(tmp_path / "b")]))
    assert {"quiz", "essay", "mmlu"} <= set(suite)
    assert list(suite) == sorted(suite)
    assert suite["quiz"].key == "quiz"
    assert suite["quiz"].file == tmp_path / "a" / "quiz.yaml"


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent.*EVAL_BENCHMARKS"):
        load_suite(str(tmp_path / "absent"))


def test_two_files_with_one_key_are_refused(tmp_path: Path) -> None:
    assert "exists already" in refusal(tmp_path, CHOICE, "mmlu.yaml")
    assert str(SUITE_FOLDER) in refusal(tmp_path, CHOICE, "mmlu.yaml")


@pytest.mark.parametrize("name", ["Quiz.yaml", "my quiz.yaml", "a..b.yaml", "a|b.yaml"])
def test_a_file_whose_name_is_no_legal_key_is_refused(tmp_path: Path, name: str) -> None:
    assert "benchmark key" in refusal(tmp_path, CHOICE, name)


def test_extends_merges_mappings_replaces_values_and_null_removes(tmp_path: Path) -> None:
    base = {**CHOICE, "fewshot": {"n": 3, "split": "train", "pick": "seeded"}, "tags": ["a", "b"], "limit": 5}
    write(tmp_path, "base.yaml", base)
    child = {"extends": "base", "fewshot": {"n": 1, "pick": None}, "tags": ["c"], "limit": None}
    write(tmp_path, "child.yaml", child)
    write(tmp_path, "grandchild.yaml", {"extends": "child", "title": "Another"})
    spec = load_suite([tmp_path])["grandchild"]
    assert (spec.fewshot.n, spec.fewshot.split, spec.fewshot.pick) == (1, "train", "first")
    assert (spec.tags, spec.limit, spec.title, spec.prompt) == (("c",), None, "Another", CHOICE["prompt"])


def test_an_inherited_path_still_starts_at_the_folder_where_it_was_written(tmp_path: Path) -> None:
    write(
        tmp_path / "a",
        "base.yaml",
        {**CHOICE, "source": {"path": "rows.csv"}, "fewshot": {"n": 1, "path": "x.csv"}},
    )
    write(tmp_path / "b", "child.yaml", {"extends": "base"})
    spec = load_suite([tmp_path / "a", tmp_path / "b"])["child"]
    assert Path(str(spec.source.path)) == tmp_path / "a" / "rows.csv"
    assert Path(str(spec.fewshot.path)) == tmp_path / "a" / "x.csv"


def test_extending_nothing_or_in_a_circle_is_refused(tmp_path: Path) -> None:
    assert "no benchmark 'mmul'; did you mean 'mmlu'?" in refusal(tmp_path, {"extends": "mmul"})
    assert "circle" in refusal(tmp_path, {"extends": "quiz"})
    write(tmp_path, "a.yaml", {"extends": "quiz"})
    write(tmp_path, "quiz.yaml", {"extends": "a"})
    with pytest.raises(UserError, match="circle"):
        load_suite([tmp_path])


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "found nothing"),
        ("- a\n- b\n", "expected a mapping"),
        ("title: [a\n", "line 2: not valid YAML"),
        ("title: a\nversion: 1\ntitle: b\n", "line 3: not valid YAML: 'title' is written twice"),
        ("source: {hub: a, hub: b}\n", "'hub' is written twice"),
        ("title: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("key: other\n", "key: unknown field; a benchmark's key is its file's name"),
    ],
)
def test_a_file_that_is_no_mapping_of_fields_is_refused(tmp_path: Path, text: str, rule: str) -> None:
    assert rule in refusal(tmp_path, text)


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "quiz.yaml").write_bytes("title: Größe".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        load_suite([tmp_path])


@pytest.mark.parametrize(
    ("base", "change", "rule"),
    [
        (
            CHOICE,
            {"primery_metric": "acc", "primary_metric": None},
            "primery_metric: unknown field; did you mean 'primary_metric'?",
        ),
        (
            CHOICE,
            {"source": {"hubb": "a/b", "split": "test"}},
            "source.hubb: unknown field; did you mean 'hub'?",
        ),
        (
            CHOICE,
            {"metrics": [{"metric": "acc", "nam": "x"}]},
            "metrics[0].nam: unknown field; did you mean 'name'?",
        ),
        (CHOICE, {"zzz": 1}, "zzz: unknown field; the fields are chat, choices"),
        (CHOICE, {"title": None}, "title: this field is required"),
        (CHOICE, {"task": "classification"}, "task: "),
        (CHOICE, {"task": "classification"}, "not 'classification'"),
        (CHOICE, {"limit": 0}, "limit: "),
        (CHOICE, {"fewshot": {"n": -1}}, "fewshot.n: "),
        (CHOICE, {"source": {"hub": "a/b"}}, "source: a hub source needs a 'split'"),
        (
            CHOICE,
            {"source": {"hub": "a/b", "split": "test", "path": "x.csv"}},
            "source: give exactly one of 'hub' and 'path'",
        ),
        (CHOICE, {"source": {"split": "test"}}, "source: give exactly one of 'hub' and 'path'"),
        (CHOICE, {"source": {"path": "x.csv", "split": "test"}}, "source: 'split' does not go with 'path'"),
        (CHOICE, {"source": {"hub": "a/b", "split": "test", "config": []}}, "source.config: "),
        (CHOICE, {"prompt": "{{ question"}, "prompt: not a valid Jinja2 template"),
        (CHOICE, {"choices": "a b"}, "choices: not a valid Jinja2 expression"),
        (CHOICE, {"prompt": None}, "needs a 'prompt'"),
        (CHOICE, {"choices": None}, "needs 'choices'"),
        (CHOICE, {"target": None}, "needs a 'target'"),
        (CHOICE, {"references": "a"}, "'references' is for task generation, and this one is multiple_choice"),
        (CHOICE, {"generation": {"max_new_tokens": 5}}, "'generation' is for task generation"),
        (ANSWER, {"choices": "a"}, "'choices' is for task multiple_choice"),
        (ANSWER, {"generation": {"stop": [""]}}, "generation.stop[0]: "),
        (ANSWER, {"generation": {"temperature": -0.5}}, "generation.temperature: "),
        (ANSWER, {"generation": {"temperature": math.nan}}, "generation.temperature: "),
        (ANSWER, {"generation": {"temperature": 1, "top_p": 0}}, "generation.top_p: "),
        (ANSWER, {"generation": {"temperature": 1, "outputs": 0}}, "generation.outputs: "),
        (ANSWER, {"generation": {"outputs": 10}}, "generation: 'outputs' needs a 'temperature' above 0"),
        (ANSWER, {"generation": {"temperature": 0, "top_p": 0.9}}, "'top_p' needs a 'temperature' above 0"),
        (ANSWER, {"generation": {"seed": 1}}, "generation: 'seed' needs a 'temperature' above 0"),
        (ANSWER, {"chat": {"prefill": "{{"}}, "chat.prefill: not a valid Jinja2 template"),
        (
            ANSWER,
            pass_at(11),
            "quiz.yaml: metrics: 'pass@11': k is 11, but generation.outputs is 10; ask for",
        ),
        (ANSWER, pass_at("ten"), "metrics[1].k: "),
        (ANSWER, pass_at(None), "metric 'pass@k' needs 'k', such as {metric: pass@k, k: 1"),
        (ANSWER, pass_at(1, of=None), "metric 'pass@k' needs 'of', such as"),
        (ANSWER, pass_at(1, of="exact"), "calls an output right or wrong (exact_match), not 'exact'"),
        (ANSWER, pass_at(1, of="pass@1"), "right or wrong (exact_match), not 'pass@1'"),
        (ANSWER, pass_at(1, "squad_f1", of="squad_f1"), "right or wrong (exact_match), not 'squad_f1'"),
        (ANSWER, {"metrics": [{"metric": "exact_match", "k": 1}]}, "'exact_match' has no option 'k'"),
        (
            ANSWER,
            {"metrics": [{"metric": "exact_match", "extract": {"regex": "("}}]},
            "metrics[0].extract.regex: not a valid regular",
        ),
        (TEXT, {"text": None}, "needs a 'text'"),
        (TEXT, {"chat": {"system": "x"}}, "'chat' needs a 'prompt'"),
        (TEXT, {"fewshot": {"n": 1}}, "'fewshot' needs a 'prompt'"),
        (
            CHOICE,
            {"fewshot": {"n": 1, "split": "a", "path": "b"}},
            "fewshot: 'split' and 'path' are two places",
        ),
        (
            CHOICE,
            {"fewshot": {"n": 2, "examples": [{"query": "a", "answer": "b"}]}},
            "only 1 examples are written out",
        ),
        (
            CHOICE,
            {"fewshot": {"examples": [{"query": "a"}]}},
            "fewshot.examples[0].answer: this field is required",
        ),
        (CHOICE, {"fewshot": {"n": 1, "per_group": True}}, "fewshot.per_group needs a 'group'"),
        (
            CHOICE,
            {"source": {"path": "x.csv"}, "fewshot": {"n": 1, "split": "dev"}},
            "fewshot.split: a file has no splits",
        ),
        (CHOICE, {"metrics": []}, "metrics: "),
        (
            CHOICE,
            {"metrics": ["accc"], "primary_metric": "accc"},
            "unknown metric 'accc'; did you mean 'acc'?",
        ),
        (CHOICE, {"metrics": ["exact_match"], "primary_metric": "exact_match"}, "exact_match"),
        (CHOICE, {"metrics": ["mc2"], "primary_metric": "mc2"}, "needs the field 'labels'"),
        (CHOICE, {"metrics": ["acc", "acc"]}, "named"),
        (CHOICE, {"metrics": [{"metric": "acc", "ignore_case": True}]}, "no option 'ignore_case'"),
        (CHOICE, {"primary_metric": "acc_norm"}, "primary_metric 'acc_norm' is none of the metrics: acc"),
        (
            ANSWER,
            {"metrics": ["output_length"], "primary_metric": "output_length"},
            "neither better nor worse",
        ),
    ],
)
def test_every_mistake_in_a_file_is_one_line_with_field_and_rule(
    tmp_path: Path, base: dict[str, Any], change: dict[str, Any], rule: str
) -> None:
    document = {name: value for name, value in {**base, **change}.items() if value is not None}
    assert rule in refusal(tmp_path, document)


def test_several_mistakes_are_counted(tmp_path: Path) -> None:
    assert refusal(tmp_path, {**CHOICE, "titel": "x", "limit": 0}).endswith("(and 1 more)")


def test_pass_at_k_is_called_by_its_k_and_may_be_the_primary_metric(tmp_path: Path) -> None:
    fields = pass_at(10)
    fields["metrics"] += [{"metric": "pass@k", "k": 5, "of": "exact_match", "name": "one_of_five"}]
    write(tmp_path, "quiz.yaml", {**ANSWER, **fields, "primary_metric": "pass@10"})
    names = [metric.name for metric in load_suite([tmp_path])["quiz"].metrics]
    assert names == ["exact_match", "pass@10", "one_of_five"]


def test_a_greedy_benchmark_can_be_extended_to_a_sampled_one_and_back(tmp_path: Path) -> None:
    sampled = {"extends": "gsm8k", "generation": {"temperature": 0.8, "outputs": 4}}
    write(tmp_path, "sampled.yaml", sampled)
    greedy = {"extends": "sampled", "generation": {"temperature": None, "outputs": None}}
    write(tmp_path, "greedy.yaml", greedy)
    suite = load_suite([tmp_path])
    assert suite["sampled"].generation.stop == suite["gsm8k"].generation.stop
    assert suite["sampled"].generation.outputs == 4
    assert suite["greedy"].generation == suite["gsm8k"].generation


def test_a_metric_is_called_by_its_own_name_unless_it_is_given_one(tmp_path: Path) -> None:
    metrics = ["exact_match", {"metric": "exact_match", "name": "loose", "ignore_case": True}]
    write(tmp_path, "quiz.yaml", {**ANSWER, "metrics": metrics})
    assert [metric.name for metric in load_suite([tmp_path])["quiz"].metrics] == ["exact_match", "loose"]
