"""The harness's names for what has another one here: tasks, metrics with their filters, models.

Source of the names: lm_eval 0.4.13, the YAML files of lm_eval/tasks. What is in no table here keeps its name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eval_assets.suite.spec import BenchmarkSpec
from resources.errors import UserError
from resources.keys import ModelKey, check_dataset_key

NO_FILTER = "none"
OWN = "continuous_model_evaluation"
"""The key of what only this project reads, in a results file and in a line of samples."""


@dataclass(frozen=True, slots=True)
class TaskNames:
    """A task of the harness that asks the same as a benchmark here (or as one part of it).

    `shots` is the number of solved examples with which it does. `metrics` maps its ``metric,filter`` to the
    name here and the factor from the harness's unit to ours. Of a task in parts, `prefix` and a group's name
    make the name of the harness's task, and `task` is its group. `choices` says which choices of an item the
    task shows: all, or the best answer and then the false ones.
    """

    task: str
    benchmark: str
    shots: int
    metrics: Mapping[str, tuple[str, float]]
    prefix: str = ""
    choices: str = "all"


def _same(*names: str, filter_name: str = NO_FILTER) -> dict[str, tuple[str, float]]:
    return {f"{name},{filter_name}": (name, 1.0) for name in names}


_SQUAD = {"exact,none": ("squad_exact_match", 0.01), "f1,none": ("squad_f1", 0.01)}
_MEASURES = ("bleu", "rouge1", "rouge2", "rougeL")

TASKS = (
    TaskNames("arc_challenge", "arc_challenge", 0, _same("acc", "acc_norm", "acc_bytes")),
    TaskNames("arc_challenge", "arc_challenge_25shot", 25, _same("acc", "acc_norm", "acc_bytes")),
    TaskNames("arc_easy", "arc_easy", 0, _same("acc", "acc_norm", "acc_bytes")),
    TaskNames(
        "gsm8k",
        "gsm8k",
        5,
        {
            "exact_match,strict-match": ("exact_match_strict", 1.0),
            "exact_match,flexible-extract": ("exact_match_flexible", 1.0),
        },
    ),
    TaskNames("hellaswag", "hellaswag", 0, _same("acc", "acc_norm", "acc_bytes")),
    TaskNames("lambada_openai", "lambada", 0, _same("acc", "perplexity")),
    TaskNames("mmlu", "mmlu", 5, _same("acc"), prefix="mmlu_"),
    TaskNames("mmlu", "mmlu_0shot", 0, _same("acc"), prefix="mmlu_"),
    TaskNames("squadv2", "squad_v2", 0, _SQUAD),
    TaskNames("truthfulqa_mc1", "truthful_qa", 0, {"acc,none": ("mc1", 1.0)}, choices="best"),
    TaskNames("truthfulqa_mc2", "truthful_qa", 0, {"acc,none": ("mc2", 1.0)}),
    TaskNames(
        "truthfulqa_gen",
        "truthful_qa_gen",
        0,
        _same(*(f"{measure}_{form}" for measure in _MEASURES for form in ("max", "acc", "diff"))),
    ),
    TaskNames("wikitext", "wikitext", 0, _same("word_perplexity", "byte_perplexity", "bits_per_byte")),
)
_OLD_PREFIXES = {"hendrycksTest-": "mmlu_"}
"""What lm_eval 0.3 called the tasks of a group."""


@dataclass(frozen=True, slots=True)
class Part:
    """A task of a results file within an evaluation here: the harness's name, and its group here, if any."""

    task: str
    group: str | None = None
    names: TaskNames | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """The evaluation here that some tasks of a results file make up.

    `total` is the entry of the results that has the value of the whole, None where that is the only part's.
    """

    dataset: str
    parts: tuple[Part, ...]
    total: str | None = None
    names: TaskNames | None = None
    spec: BenchmarkSpec | None = field(default=None, compare=False)

    def metric(self, label: str, part: Part | None = None) -> tuple[str, float]:
        """The name here and the factor to our unit of a ``metric,filter`` of the harness."""
        names = part.names if part is not None and part.names is not None else self.names
        if names is not None and label in names.metrics:
            return names.metrics[label]
        name, _, filter_name = label.partition(",")
        return (name if filter_name in ("", NO_FILTER) else label), 1.0


def targets_of(
    tasks: Mapping[str, int | None],
    groups: Mapping[str, tuple[str, ...]],
    suite: Mapping[str, BenchmarkSpec],
) -> list[Target]:
    """The evaluations that the tasks of one results file make up.

    `tasks` has the number of solved examples of each task, None where the file doesn't say; `groups` the
    tasks below each group that has a value of its own. A group is one evaluation and its tasks are that one's
    groups; of nested groups the outermost counts. A task that no benchmark here asks in the same way gets
    the key of its own name, and ``_5shot`` after it where it had five solved examples.

    Raises UserError for a name that makes no key.
    """
    for name in (*tasks, *groups):
        if not is_name(name):
            raise UserError(
                f"task {name[:80]!r}: a name has letters, digits and . _ - : / + @ and blanks only"
            )
    found: list[Target] = []
    left = dict(tasks)
    for group in _outermost(groups):
        members = [name for name in groups[group] if name in left]
        if members:
            found.append(_of_group(group, members, left[members[0]], suite))
            for name in members:
                del left[name]
    for old, prefix in _OLD_PREFIXES.items():
        members = [name for name in left if name.startswith(old)]
        if members:
            shots = left[members[0]]
            target = _of_group(prefix.rstrip("_"), members, shots, suite, old)
            if target.names is not None:
                found.append(Target(target.dataset, target.parts, None, target.names, target.spec))
                for name in members:
                    del left[name]
    together: dict[str, list[Part]] = {}
    for name, shots in left.items():
        names = next((n for n in TASKS if (n.task, n.shots) == (name, shots or 0) and not n.prefix), None)
        if names is not None and names.benchmark in suite:
            together.setdefault(names.benchmark, []).append(Part(name, None, names))
        elif (name in suite and not any(known.task == name for known in TASKS)) and (
            suite[name].fewshot.count == (shots or 0)
        ):  # one of the user's own that was exported from here
            together.setdefault(name, []).append(Part(name))
        else:
            together.setdefault(generic_key(name, shots), []).append(Part(name))
    for key, parts in together.items():
        found.append(Target(key, tuple(parts), None, parts[0].names, suite.get(key)))
    return found


def is_name(text: str) -> bool:
    """Whether a task's or metric's name can stand in a table as it is: it is shown in many places."""
    return re.fullmatch(r"[A-Za-z0-9_.,:/+@ -]{1,200}", text) is not None


def names_of(dataset: str, task: str, shots: int | None) -> TaskNames | None:
    """The names of a task of the harness that is known to be (a part of) a benchmark here."""
    for names in TASKS:
        member = task.startswith(names.prefix) if names.prefix else task == names.task
        if names.benchmark == dataset and names.shots == (shots or 0) and member:
            return names
    return None


def _of_group(
    group: str,
    members: list[str],
    shots: int | None,
    suite: Mapping[str, BenchmarkSpec],
    prefix: str | None = None,
) -> Target:
    for names in TASKS:
        if not names.prefix or (names.task, names.shots) != (group, shots) or names.benchmark not in suite:
            continue
        spec = suite[names.benchmark]
        before = names.prefix if prefix is None else prefix
        expected = {f"{before}{config}": str(config) for config in spec.source.configs}
        if set(members) == set(expected):
            parts = tuple(Part(task, expected[task], names) for task in expected)
            return Target(names.benchmark, parts, group, names, spec)
    parts = tuple(Part(task, task) for task in members)
    key = generic_key(group, shots)
    if any(names.benchmark == key for names in TASKS):  # some of its tasks only are no such evaluation
        key = f"{key}_{len(members)}tasks"
    return Target(key, parts, group)


def _outermost(groups: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The groups whose tasks are in no larger group, each set of tasks once."""
    chosen: list[str] = []
    for name in sorted(groups, key=lambda name: (-len(groups[name]), name)):
        if not any(set(groups[name]) & set(groups[other]) for other in chosen):
            chosen.append(name)
    return chosen


def generic_key(task: str, shots: int | None) -> str:
    """The dataset key of a task that no benchmark here stands for; UserError for a name that makes none."""
    key = re.sub(r"[^a-z0-9_.-]+", "_", task.lower()).strip("_.-")
    return check_dataset_key(f"{key}_{shots}shot" if shots else key, f"task {task[:80]!r}")


_NAME_ARGUMENTS = ("peft", "delta", "pretrained", "model", "path", "engine")
"""Where the harness looks for a model's name, in its order (GeneralConfigTracker._get_model_name)."""


def model_key_of(results: Mapping[str, Any], given: Mapping[str, str]) -> ModelKey:
    """The key of a results file's model: what `given` says of its name, or its name and revision.

    A hub's model has the revision that was asked for, or the first digits of the commit where that is known
    and the revision was a branch's head. A local folder has its last two names, as in a folder registry.
    Raises UserError where there is no name, or none that makes a key.
    """
    own = results.get(OWN)
    if "*" not in given and isinstance(own, dict) and isinstance(own.get("model"), str):
        return ModelKey.parse(given.get(own["model"], own["model"]))
    config = results.get("config")
    config = config if isinstance(config, dict) else {}
    arguments = _arguments(config.get("model_args"))
    name = next((str(arguments[key]) for key in _NAME_ARGUMENTS if arguments.get(key)), None)
    if name is None:
        name = results.get("model_name") if isinstance(results.get("model_name"), str) else None
    if "*" in given:
        return ModelKey.parse(given["*"])
    if not name:
        raise UserError("it doesn't say which model it is about; name it: --model name@version")
    if name in given:
        return ModelKey.parse(given[name])
    revision = arguments.get("revision") or config.get("model_revision")
    version = str(revision) if revision else "main"
    if re.match(r"[/~.]|[A-Za-z]:\\", name):
        names = [part for part in re.split(r"[/\\]+", name) if part not in ("", "~", ".")]
        if ".." in names:
            raise UserError(f"model {name[:80]!r} is no name; name it: --model name@version")
        if version == "main":
            version = names.pop() if len(names) > 1 else "local"
        name = names[-1] if names else ""
    elif version in ("main", "master"):
        sha = str(config.get("model_sha") or "")
        version = sha[:12] if re.fullmatch(r"[0-9a-f]{12,64}", sha) else version
    return ModelKey.parse(f"{_legal(name, '/')}@{_legal(version)}")


def _legal(text: str, also: str = "") -> str:
    return re.sub(rf"[^A-Za-z0-9._{also}-]+", "-", text).strip("-/")


def _arguments(arguments: Any) -> dict[str, Any]:
    """``model_args`` as a mapping: newer versions write one, older ones the text of the command line."""
    if isinstance(arguments, dict):
        return {str(name): value for name, value in arguments.items()}
    if not isinstance(arguments, str):
        return {}
    pairs = (part.partition("=") for part in arguments.split(","))
    return {name.strip(): value.strip() for name, _, value in pairs if value.strip()}
