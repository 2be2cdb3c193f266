"""Asset `promotion`: a version's cells against those of the version in production, and what follows from it.

The verdict on each cell is a matter of statistics, that on the version one of all its benchmarks together.
What follows is the least that can: an alias that moves if nobody else has moved it meanwhile, notes where the
registry shows them, and a record in the store of who moved what and why.
"""

import getpass
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

import dagster as dg

from eval_assets.gates import no_regression, record_check
from eval_assets.grid.attempts import announce, begin, confessing
from eval_assets.grid.comparing import CellComparison, as_markdown, compare_cells
from eval_assets.grid.observing import Observer
from eval_assets.grid.reconciling import Task, Work, judgement
from eval_assets.grid.tracking import TrackedModels
from eval_assets.materializations import record_materialization, report_link
from eval_assets.model_versions import recorded
from eval_assets.operations.notifications import notify
from eval_assets.partitions import cell_key, models
from eval_assets.report.naming import model_page
from eval_assets.statistics.verdicts import FamilyVerdict, family_verdict
from resources.errors import TransientError, UserError
from resources.keys import ModelKey
from resources.registries import AliasMovedError, Registry
from resources.results import ResultsStore
from resources.settings import Settings

CODE_VERSION = "1"
ROLLBACK = "rollback by hand"
"""Why an alias was moved back; such a version is not promoted again by itself."""
Status: TypeAlias = Literal["first", "passed", "failed", "undecided"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was found about a version. `missing` are benchmarks that could not be compared, and why."""

    model: str
    baseline: str | None
    status: Status
    reason: str
    cells: Mapping[str, CellComparison]
    missing: Mapping[str, str]
    family: FamilyVerdict | None

    def as_row(self) -> dict[str, Any]:
        """As plain data for a record."""
        return {
            "model": self.model,
            "baseline": self.baseline,
            "status": self.status,
            "reason": self.reason,
            "missing": dict(self.missing),
            "family": None if self.family is None else self.family.as_row(),
            "cells": [cell.as_row() for cell in self.cells.values()],
        }


def judge(look: Observer, model: str, baseline: str | None, datasets: Sequence[str]) -> Judgement:
    """Compare a version with a baseline on a family of benchmarks.

    Without a baseline a version is the first if each of its evaluations is there and valid. A benchmark that
    can't be compared leaves the version undecided: what was not looked at has not been passed.
    """
    compared: dict[str, CellComparison] = {}
    missing: dict[str, str] = {}
    for dataset in datasets:
        try:
            compared[dataset] = compare_cells(look.cells, model, baseline or model, dataset)
        except TransientError:
            raise
        except UserError as error:
            missing[dataset] = str(error)
    family = family_verdict({d: c.verdict for d, c in compared.items()}) if compared else None
    gaps = f"not compared on {', '.join(f'{d} ({why})' for d, why in missing.items())}"
    if baseline is None:
        status: Status = "undecided" if missing else "first"
        reason = gaps if missing else f"no version is in production yet; valid on all {len(compared)}"
        return Judgement(model, None, status, reason, {}, missing, None)
    if family is None:
        return Judgement(model, baseline, "undecided", gaps, compared, missing, family)
    if missing and family.outcome == "passed":
        return Judgement(model, baseline, "undecided", f"{gaps}; {family.reason}", compared, missing, family)
    return Judgement(model, baseline, family.outcome, family.reason, compared, missing, family)


@dg.asset(
    partitions_def=models,
    deps=[
        dg.AssetDep("evaluation", partition_mapping=dg.MultiToSingleDimensionPartitionMapping("model")),
    ],
    output_required=False,
    code_version=CODE_VERSION,
    group_name="results",
    kinds={"statistics"},
    owners=["team:evaluation"],
    tags={"stage": "results"},
)
def promotion(
    context: dg.AssetExecutionContext,
    registry: dg.ResourceParam[Registry],
    store: dg.ResourceParam[ResultsStore],
    settings: dg.ResourceParam[Settings],
) -> Iterator[dg.Output[None]]:
    """A model version against the one in production: the verdict, and the alias moved or why it was not."""
    yield from ()
    begin(context)
    look = Observer.of(context.instance, registry, store, settings)
    for key in context.partition_keys:
        with confessing(context, Task(Work.JUDGE, key)):
            _promote(context, look, key)


def _promote(context: dg.AssetExecutionContext, look: Observer, key: str) -> None:
    entry = look.tracking.entry_of(key)
    # Once and first: what the version is compared with is what the alias must still point to when it moves.
    in_production = look.production([key]).get(ModelKey.parse(key).name)
    world = look.world([key], failures={})
    version = next((version for version in world.versions if version.model == key), None)
    if version is None:
        raise UserError(f"model version {key}: not in {look.registry.root} any more; nothing to judge")
    if in_production is not None and version.baseline != in_production:
        raise TransientError(f"{key}: the alias of its baseline moved just now; it is judged again")
    task = judgement(version, world.fingerprints)
    announce(context, [task])
    recorded(key, look.registry, look.store)  # whose files changed since they were evaluated is not promoted
    baseline = version.baseline if version.baseline != key else None
    found = judge(look, key, baseline, version.datasets)
    for dataset, cell in found.cells.items():
        record_check(context, str(cell_key(dataset, key)), no_regression(cell))
        look.store.save_comparison(dataset, key, cell.as_row())
    known = context.instance.get_dynamic_partitions("model")
    moved, action = _move(look, entry, found, known, in_production)
    judged_at = datetime.now(UTC)
    verdict = {
        "verdict_id": f"{judged_at:%Y%m%dT%H%M%S%f}-{task.fingerprint}",
        "fingerprint": task.fingerprint,
        "judged_at": judged_at.isoformat(),
        "run_id": context.run.run_id,
        **found.as_row(),
        "action": action,
        "moved": moved,
    }
    look.store.save_verdict(key, verdict)
    link = f"{look.settings.ui}/assets/promotion?partition={key}"
    if entry.promote:
        _annotate(context, look.registry, key, found, link)
    record_materialization(
        context,
        "promotion",
        key,
        data_version=task.fingerprint,
        code_version=CODE_VERSION,
        inputs={"evaluation": [str(cell_key(dataset, key)) for dataset in version.datasets]},
        metadata={
            "verdict": found.status,
            "reason": found.reason,
            "action": action,
            "baseline": found.baseline or "none",
            "benchmarks": dg.MetadataValue.md(as_markdown(verdict["cells"], found.missing)),
            **report_link(look.settings, model_page(key)),
        },
    )
    context.log.info(f"{key}: {found.status}: {found.reason}; {action}")
    notify(look.settings, f"{key}: {found.status}", f"{found.reason}. {action}", link, context.log.warning)


def _move(
    look: Observer, entry: TrackedModels, found: Judgement, known: Sequence[str], in_production: str | None
) -> tuple[bool, str]:
    """Move the alias if all says so; whether it moved, and one line of what was done or would be.

    `in_production` is what the alias pointed to when the version was compared.
    """
    alias, key = entry.baseline.alias, ModelKey.parse(found.model)
    if in_production == found.model:
        return False, f"it is in production already ({alias})"
    if found.status not in ("first", "passed"):
        return False, "blocked" if found.status == "failed" else "not promoted: more items are needed"
    if alias is None:
        return False, "nothing to move: the baseline is a fixed version"
    aliases = look.registry.aliases(key.name)
    candidate = aliases.get(entry.candidate)
    if candidate is not None and candidate != key.version:
        return False, f"not promoted: the alias {entry.candidate!r} points to {candidate!r}"
    order = [one for one in known if ModelKey.parse(one).name == key.name]
    if candidate is None and in_production in order and order.index(in_production) > order.index(found.model):
        return False, f"not promoted: {in_production} was registered after it"
    if any(
        move["from"] == key.version and move["why"] == ROLLBACK for move in look.store.promotions(key.name)
    ):
        return False, "not promoted: it was rolled back by hand; move the alias by hand to bring it back"
    expected = None if in_production is None else ModelKey.parse(in_production).version
    what = f"{alias} from {expected or 'nothing'} to {key.version}"
    if not entry.promote:
        return False, f"would move {what} (promote is off in EVAL_MODELS)"
    try:
        look.registry.move_alias(key.name, alias, key.version, expected)
    except AliasMovedError as error:
        return False, f"not promoted: {error}"
    record_move(look.store, key.name, alias, expected, key.version, f"verdict: {found.reason}")
    return True, f"moved {what}"


def record_move(store: ResultsStore, name: str, alias: str, before: str | None, after: str, why: str) -> None:
    """Write down that an alias was moved: when, by whom, from where to where, and why."""
    now = datetime.now(UTC)
    store.save_promotion(
        name,
        {
            "promotion_id": f"{now:%Y%m%dT%H%M%S%f}",
            "at": now.isoformat(),
            "who": f"{getpass.getuser()}@{socket.gethostname()}",
            "alias": alias,
            "from": before,
            "to": after,
            "why": why,
        },
    )


def _annotate(
    context: dg.AssetExecutionContext, registry: Registry, key: str, found: Judgement, link: str
) -> None:
    notes = {"verdict": found.status, "reason": found.reason, "baseline": found.baseline or "", "link": link}
    try:
        registry.annotate(ModelKey.parse(key), notes)
    except UserError as error:  # the verdict is in the store; only the note is missing
        context.log.warning(f"{key}: the verdict could not be noted in the registry: {error}")
