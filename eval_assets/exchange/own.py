"""What only this project reads in the harness's files: evaluations and samples exactly as they are here.

A results file has under `OWN` an `OwnEvaluation` for each of its evaluations, and a line of samples what of a
`Sample` the harness has no place for. So what is exported comes back as it was, to the last bit.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from eval_assets.exchange.names import OWN, is_label, is_name
from eval_assets.exchange.untrusted import number, section
from resources.errors import UserError
from resources.records import MetricRow, Sample

Checked = TypeVar("Checked")


@dataclass(frozen=True, slots=True)
class OwnEvaluation:
    """An evaluation as it was exported. `tasks` are the harness's tasks, each with its group here, if any."""

    metrics: list[MetricRow]
    primary_metric: str
    higher_is_better: bool | None
    items_available: int
    tasks: dict[str, str | None]
    total: str | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


_EVALUATION = TypeAdapter(OwnEvaluation)
_SAMPLE = TypeAdapter(Sample)
_ELSEWHERE = ("prompt", "loglikelihoods", "is_greedy")
"""The fields of a sample that a line of the harness has anyway."""


def own_evaluation(content: Mapping[str, Any], dataset: str) -> OwnEvaluation | None:
    """What this project had exported of an evaluation; None of a run of the harness itself.

    Raises UserError where it is not as this project writes it.
    """
    entry = section(section(content, OWN), "evaluations").get(dataset)
    if entry is None:
        return None
    own = _checked(_EVALUATION, entry)
    estimates = [value for row in own.metrics for value in asdict(row.estimate).values()]
    if any(value is not None and number(value) is None for value in estimates):
        raise UserError("a number is not finite")
    labels = [name for row in own.metrics for name in (row.metric, row.group) if name is not None]
    if not all(map(is_label, [*labels, own.primary_metric, *filter(None, own.tasks.values())])):
        raise UserError("a metric or group has a name that can't be one")
    if not all(map(is_name, [*own.tasks, *filter(None, [own.total])])):
        raise UserError("a task has a name that can't be one")
    if any(not 0 <= count <= 2**53 for count in (own.items_available, *(r.estimate.n for r in own.metrics))):
        raise UserError("a number of items is out of range")
    return own


def own_fields(sample: Sample) -> dict[str, Any]:
    """What of a sample the harness has no field for; its output too where there is none."""
    fields = asdict(sample)
    for name in _ELSEWHERE if sample.output is None else (*_ELSEWHERE, "output"):
        del fields[name]
    return fields


def own_sample(fields: Any, prompt: str, output: str | None) -> Sample:
    """The sample that `own_fields` was made of, but for what `_ELSEWHERE` names.

    Raises UserError where it is not as this project writes it.
    """
    if not isinstance(fields, dict):
        raise UserError(f"{OWN} is no object")
    sample = _checked(_SAMPLE, {"output": output, **fields, "prompt": prompt})
    if not (sample.group is None or is_label(sample.group)):
        raise UserError("its group has a name that can't be one")
    return sample


def _checked(adapter: "TypeAdapter[Checked]", value: Any) -> Checked:
    try:
        # By way of JSON: strict for Python's values takes an object for no dataclass.
        return adapter.validate_json(json.dumps(value), strict=True, extra="forbid")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
