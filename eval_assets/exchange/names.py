"""The harness's names for what has another one here: tasks, metrics with their filters, models.

Source of the names: lm_eval 0.4.13, the YAML files of lm_eval/tasks. What is in no table here keeps its name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from eval_assets.exchange.untrusted import section
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
class Destination:
    """The evaluation here that some tasks of a results file make up.

    `total` is the entry of the results that has the value of the whole, None where that is the only part's.
    """

    dataset: str
    parts: tuple[Part, ...]
    total: str | None = None
    spec: BenchmarkSpec | None = field(default=None, compare=False)

    def metric(self, label: str, part: Part | None = None) -> tuple[str, float]:
        """The name here and the factor to our unit of a ``metric,filter`` of the harness."""
        names = (part or self.parts[0]).names
        if names is not None and label in names.metrics:
            return names.metrics[label]
        name, _, filter_name = label.partition(",")
        return (name if filter_name in ("", NO_FILTER) else label), 1.0


def destinations_of(
    tasks: Mapping[str, int | None],
    groups: Mapping[str, tuple[str, ...]],
    suite: Mapping[str, BenchmarkSpec],
) -> list[Destination]:
    """The evaluations that the tasks of one results file make up.

    `tasks` has the number of solved examples of each task, None where the file doesn't say; `groups` the
    tasks below each group that has a value of its own. A group is one evaluation and its tasks are that one's
    groups; of nested groups the outermost counts. A task that no benchmark here asks in the same way gets
    the key of its own name, and ``_5shot`` after it where it had five solved examples.

    Raises UserError for a name that makes no key (`check_task_name`).
    """
    found: list[Destination] = []
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
            destination = _of_group(prefix.rstrip("_"), members, left[members[0]], suite, old)
            if destination.spec is not None:  # otherwise some of them only, which have no value as a group
                found.append(replace(destination, total=None))
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
            key = _generic_key(name, shots, suite)
            free = (key if number == 1 else f"{key}_{number}" for number in count(1))
            together[next(one for one in free if one not in together)] = [Part(name)]
    for key, parts in together.items():
        found.append(Destination(key, tuple(parts), None, suite.get(key)))
    return found


def is_name(text: str) -> bool:
    """Whether a task's name can stand in a table and in a path as it is: it is shown in many places."""
    return re.fullmatch(r"[A-Za-z0-9_.,:/+@ -]{1,160}", text) is not None and ".." not in text


def is_label(text: str) -> bool:
    """Whether the name of a metric or of a group of items can be shown: one line, no markup."""
    return 0 < len(text) <= 200 and text.isprintable() and not set("<>|[]`") & set(text)


def check_task_name(name: str) -> None:
    """Raise UserError for a name of a task or group that makes no key."""
    if not is_name(name):
        raise UserError(
            f"task {name[:80]!r}: a name has letters, digits and . _ - : / + @ and blanks only, no '..', and "
            "at most 160 of them"
        )
    check_dataset_key(_key_of(name), f"task {name[:80]!r}")


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
) -> Destination:
    partial = False
    for names in TASKS:
        if not names.prefix or names.task != group or names.benchmark not in suite:
            continue
        spec = suite[names.benchmark]
        before = names.prefix if prefix is None else prefix
        expected = {f"{before}{config}": str(config) for config in spec.source.configs}
        partial = set(members) != set(expected)
        if not partial and names.shots == (shots or 0):
            parts = tuple(Part(task, expected[task], names) for task in expected)
            return Destination(names.benchmark, parts, group, spec)
    parts = tuple(Part(task, task) for task in members)
    key = _generic_key(group, shots, suite)
    return Destination(f"{key}_{len(members)}tasks" if partial else key, parts, group)


def _outermost(groups: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The groups whose tasks are in no larger group, each set of tasks once."""
    chosen: list[str] = []
    for name in sorted(groups, key=lambda name: (-len(groups[name]), name)):
        if not any(set(groups[name]) & set(groups[other]) for other in chosen):
            chosen.append(name)
    return chosen


def _generic_key(task: str, shots: int | None, suite: Mapping[str, BenchmarkSpec]) -> str:
    """The dataset key of a task that no benchmark here stands for; none of a benchmark here."""
    key = _key_of(task)
    if shots:
        return f"{key}_{shots}shot"
    taken = key in suite or any(key == names.benchmark for names in TASKS)
    return f"{key}_0shot" if taken else key


def _key_of(task: str) -> str:
    return re.sub(r"[^a-z0-9_.-]+", "_", task.lower()).strip("_.-")


_NAME_ARGUMENTS = ("peft", "delta", "pretrained", "model", "path", "engine")
"""Where the harness looks for a model's name, in its order (GeneralConfigTracker._get_model_name)."""
_COMMITS = {"peft": "peft_sha", "delta": "delta_sha"}
"""Where the harness writes the commit of what gave the name (HFLM.get_model_info); otherwise model_sha."""


def model_key_of(results: Mapping[str, Any], given: Mapping[str, str]) -> ModelKey:
    """The key of a results file's model: what `given` says of its name, or its name and revision.

    A hub's model has the revision that was asked for, or the first digits of the commit where that is known
    and the revision was a branch's head. A local folder has its last two names, as in a folder registry.
    Raises UserError where there is no name, or none that makes a key.
    """
    name = model_name_of(results)
    told = given.get(name or "", given.get("*"))
    if told is not None:
        return ModelKey.parse(told)
    if not name:
        raise UserError("it doesn't say which model it is about; name it: --model name@version")
    if _own_name(results) is not None:
        return ModelKey.parse(name)
    config = section(results, "config")
    arguments = _arguments(config.get("model_args"))
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
        named_by = next((key for key in _NAME_ARGUMENTS if arguments.get(key)), "")
        sha = str(config.get(_COMMITS.get(named_by, "model_sha")) or "")
        version = sha[:12] if re.fullmatch(r"[0-9a-f]{12,64}", sha) else version
    return ModelKey.parse(f"{_legal(name, '/')}@{_legal(version)}")


def model_name_of(results: Mapping[str, Any]) -> str | None:
    """The model's name as the file has it: what people name in ``--model THEIR_NAME=name@version``."""
    own = _own_name(results)
    if own is not None:
        return own
    arguments = _arguments(section(results, "config").get("model_args"))
    named = next((str(arguments[key]) for key in _NAME_ARGUMENTS if arguments.get(key)), None)
    told = results.get("model_name")
    return named or (told if isinstance(told, str) else None)


def _own_name(results: Mapping[str, Any]) -> str | None:
    name = section(results, OWN).get("model")
    return name if isinstance(name, str) else None


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
