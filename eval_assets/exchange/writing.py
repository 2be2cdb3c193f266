"""Samples as lines of the harness's samples files, in its fields and its units."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eval_assets.exchange.names import NO_FILTER, OWN, TaskNames
from eval_assets.exchange.own import own_fields
from eval_assets.metrics import METRICS
from eval_assets.metrics.answers import extracted
from eval_assets.suite.spec import BenchmarkSpec, MetricSpec
from resources.records import Sample

_AS_NATS = {"word_perplexity", "byte_perplexity", "bits_per_byte", "perplexity"}


def label_of(name: str, names: TaskNames | None) -> tuple[str, float] | None:
    """The harness's ``metric,filter`` of a metric here and the factor from our unit to its own.

    None where the benchmark's task of the harness has another part of the benchmark's metrics (TruthfulQA's
    mc1 and mc2 are tasks of their own).
    """
    if names is not None:
        for label, (ours, factor) in names.metrics.items():
            if ours == name:
                return label, 1.0 / factor
        if names.benchmark == "truthful_qa":
            return None
    return (name, 1.0) if "," in name else (f"{name},{NO_FILTER}", 1.0)


def sample_lines(
    samples: Sequence[Sample], spec: BenchmarkSpec | None, names: TaskNames | None, task_type: str
) -> Iterator[dict[str, Any]]:
    """The lines of one task's file: for each filter one a sample, in the order of their items.

    A sample has a line under the filters of its own scores, and one in any case.
    """
    names_of_all = dict.fromkeys(name for sample in samples for name in sample.scores)
    filters: dict[str, list[tuple[str, str, float]]] = {}
    for name in names_of_all:
        found = label_of(name, names)
        if found is not None:
            metric, _, filter_name = found[0].partition(",")
            filters.setdefault(filter_name, []).append((metric, name, found[1]))
    written: set[str] = set()
    for filter_name, labels in filters.items():
        for position, sample in enumerate(samples):
            mine = [label for label in labels if label[1] in sample.scores]
            if mine:
                written.add(sample.sample_id)
                yield _line(position, sample, filter_name, mine, spec, names, task_type)
    for position, sample in enumerate(samples):
        if sample.sample_id not in written:
            yield _line(position, sample, NO_FILTER, [], spec, names, task_type)


def _line(
    position: int,
    sample: Sample,
    filter_name: str,
    labels: Sequence[tuple[str, str, float]],
    spec: BenchmarkSpec | None,
    names: TaskNames | None,
    task_type: str,
) -> dict[str, Any]:
    by_name = {metric.name: metric for metric in spec.metrics} if spec is not None else {}
    asked, answers, filtered, target = _requests(sample, task_type, spec, names)
    if filter_name != NO_FILTER and labels[0][1] in by_name and sample.output is not None:
        filtered = [extracted(sample, by_name[labels[0][1]])]
    document = {
        "sample_id": sample.sample_id,
        "group": sample.group,
        "query": sample.prompt,
        "choices": list(sample.choices),
        "references": list(sample.references),
    }
    line: dict[str, Any] = {
        "doc_id": position,
        "doc": document,
        "target": target,
        "arguments": {
            f"gen_args_{number}": {f"arg_{place}": value for place, value in enumerate(request)}
            for number, request in enumerate(asked)
        },
        "resps": [[answer] for answer in answers] if task_type != "generation" else [answers],
        "filtered_resps": filtered,
        "filter": filter_name,
        "metrics": [metric for metric, _, _ in labels],
        "doc_hash": hash_of(json.dumps(document, indent=2, ensure_ascii=False)),
        "prompt_hash": hash_of(asked[0][0]),
        "target_hash": hash_of(target),
    }
    for metric, name, factor in labels:
        line[metric] = _logged(metric, name, factor, sample, by_name)
    line[OWN] = own_fields(sample)
    return line


def _requests(
    sample: Sample, task_type: str, spec: BenchmarkSpec | None, names: TaskNames | None
) -> tuple[list[list[Any]], list[Any], list[Any], str]:
    """The arguments of each request, the answers as the harness writes them, filtered answers, the target."""
    delimiter = spec.delimiter if spec is not None else " "
    if task_type == "generation":
        texts = [output.text for output in sample.outputs] or [sample.output or ""]
        settings: dict[str, Any] = {}
        if spec is not None:
            settings = {"until": list(spec.generation.stop), "do_sample": bool(spec.generation.temperature)}
            settings["temperature"] = spec.generation.temperature
            settings["max_gen_toks"] = spec.generation.max_new_tokens
        return [[sample.prompt, settings]], texts, texts[:1], next(iter(sample.references), "")
    likelihoods = [str(float(value)) for value in sample.loglikelihoods]
    greedy = [str(bool(value)) for value in sample.is_greedy]
    pairs = [list(pair) for pair in zip(likelihoods, greedy, strict=True)] if greedy else likelihoods
    if task_type == "perplexity":
        text = sample.references[0] if sample.references else ""
        if greedy:
            return [[sample.prompt, delimiter + text]], list(pairs), list(pairs), delimiter + text
        return [[text]], list(pairs), list(pairs), text
    shown = list(range(len(sample.choices)))
    target = sample.target
    if names is not None and names.choices == "best" and sample.target is not None:
        shown = [sample.target, *(place for place, label in enumerate(sample.labels) if label == 0)]
        target = 0
    elif target is None and 1 in sample.labels:
        target = list(sample.labels).index(1)
    asked = [[sample.prompt, delimiter + sample.choices[place]] for place in shown]
    kept = [pairs[place] for place in shown]
    return asked, kept, kept, "" if target is None else str(target)


def _logged(
    metric: str, name: str, factor: float, sample: Sample, by_name: Mapping[str, MetricSpec]
) -> float | list[float]:
    """The value of a metric as the harness logs it for an item: of perplexities what they are made of."""
    if metric in _AS_NATS and name in by_name and sample.loglikelihoods:
        likelihood = math.fsum(sample.loglikelihoods)
        if by_name[name].metric == "perplexity":
            return likelihood
        found = METRICS[by_name[name].metric].statistics([sample], by_name[name])
        return [likelihood, float(found[0, 1])]
    return sample.scores[name] * factor


def hash_of(text: str) -> str:
    """SHA-256 of a text, as lm_eval.utils.hash_string."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
