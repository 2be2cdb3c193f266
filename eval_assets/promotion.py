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
from eval_assets.grid.comparing import CellComparison, as_markdown, compare_cells, evaluation_ids
from eval_assets.grid.observing import Observer
from eval_assets.grid.reconciling import Task, Version, Work, judgement
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
_NEVER_JUDGED: Mapping[str, Any] = {
    "status": "none", "reason": "it was never compared with another", "action": "nothing was moved",
    "baseline": None, "cells": [], "missing": {},
}  # fmt: skip
Status: TypeAlias = Literal["first", "passed", "failed", "undecided"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was found about a version.

    `missing` are benchmarks that could not be compared, and why; `lacking` which evaluations there were of
    them (`comparing.evaluation_ids`), so that others that come later are noticed.
    """

    model: str
    baseline: str | None
    status: Status
    reason: str
    cells: Mapping[str, CellComparison]
    missing: Mapping[str, str]
    lacking: Mapping[str, Sequence[str | None]]
    family: FamilyVerdict | None

    def as_row(self) -> dict[str, Any]:
        """As plain data for a record."""
        return {
            "model": self.model,
            "baseline": self.baseline,
            "status": self.status,
            "reason": self.reason,
            "missing": dict(self.missing),
            "lacking": dict(self.lacking),
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
    lacking: dict[str, Sequence[str | None]] = {}
    for dataset in datasets:
        there = evaluation_ids(
            look.cells, model, baseline or model, dataset
        )  # what comes from now on is later
        try:
            compared[dataset] = compare_cells(look.cells, model, baseline or model, dataset)
        except TransientError:
            raise
        except UserError as error:
            missing[dataset], lacking[dataset] = str(error), there
    family = family_verdict({d: c.verdict for d, c in compared.items()}) if compared else None
    gaps = f"not compared on {', '.join(f'{d} ({why})' for d, why in missing.items())}"
    if baseline is None:
        status: Status = "undecided" if missing else "first"
        reason = gaps if missing else f"no version is in production yet; valid on all {len(compared)}"
        return Judgement(model, None, status, reason, {}, missing, lacking, None)
    if family is None:
        status, reason = "undecided", gaps
    elif missing and family.outcome == "passed":
        status, reason = "undecided", f"{gaps}; {family.reason}"
    else:
        status, reason = family.outcome, family.reason
    return Judgement(model, baseline, status, reason, compared, missing, lacking, family)


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
    # (While none is in production, it is compared with the oldest, or with nothing.)
    if version.baseline != in_production and (in_production is not None or version.baseline == key):
        raise TransientError(f"{key}: the alias of its baseline moved just now; it is judged again")
    task = judgement(version, world.fingerprints)
    announce(context, [task])
    verdict: Mapping[str, Any]
    if in_production == key:
        # Nothing is left to compare it with but itself; what was found when it came there stays.
        is_news = finish_move(look.registry, look.store, key)
        verdict = look.store.verdicts().get(key) or {**_NEVER_JUDGED, "fingerprint": task.fingerprint}
    else:
        is_news = True
        verdict = _judged(context, look, entry, version, task, in_production)
    link = f"{look.settings.ui}/assets/promotion?partition={key}"
    if entry.promote and is_news:
        _annotate(context, look.registry, key, verdict, link)
    record_materialization(
        context,
        "promotion",
        key,
        data_version=verdict["fingerprint"],
        code_version=CODE_VERSION,
        inputs={"evaluation": [str(cell_key(dataset, key)) for dataset in version.datasets]},
        metadata={
            "verdict": verdict["status"],
            "reason": verdict["reason"],
            "action": verdict["action"],
            "baseline": verdict["baseline"] or "none",
            "benchmarks": dg.MetadataValue.md(as_markdown(verdict["cells"], verdict["missing"])),
            **report_link(look.settings, model_page(key)),
        },
    )
    said = f"{verdict['status']}: {verdict['reason']}; {verdict['action']}"
    context.log.info(f"{key}: {'' if is_news else 'in production, so its verdict stays: '}{said}")
    if is_news:
        text = f"{verdict['reason']}. {verdict['action']}"
        notify(look.settings, f"{key}: {verdict['status']}", text, link, context.log.warning)


def _judged(
    context: dg.AssetExecutionContext,
    look: Observer,
    entry: TrackedModels,
    version: Version,
    task: Task,
    in_production: str | None,
) -> Mapping[str, Any]:
    """The verdict on a version, as it is stored, once what follows from it is done.

    `in_production` is what the alias pointed to when the version was compared.
    """
    key = version.model
    recorded(key, look.registry, look.store)  # whose files changed since they were evaluated is not promoted
    found = judge(look, key, version.baseline, version.datasets)
    for dataset, cell in found.cells.items():
        record_check(context, str(cell_key(dataset, key)), no_regression(cell))
        look.store.save_comparison(dataset, key, cell.as_row())
    judged_at = datetime.now(UTC)
    verdict = {
        "verdict_id": f"{judged_at:%Y%m%dT%H%M%S%f}-{task.fingerprint}",
        "fingerprint": task.fingerprint,
        "judged_at": judged_at.isoformat(),
        "run_id": context.run.run_id,
        **found.as_row(),
        "moved": False,
    }
    known = context.instance.get_dynamic_partitions("model")
    before = None if in_production is None else ModelKey.parse(in_production).version
    name, after = ModelKey.parse(key).name, ModelKey.parse(key).version
    alias, what = entry.baseline.alias, f"{entry.baseline.alias} from {before or 'nothing'} to {after}"
    action = _why_not(look, entry, found, known, in_production)
    if alias is not None and action is None and entry.promote:
        # First what is about to be done: should this process end here, it is finished or done again.
        move = move_record(alias, before, after, f"verdict: {found.reason}")
        look.store.save_verdict(key, {**verdict, "action": f"moving {what}", "moving": move})
        try:
            look.registry.move_alias(name, alias, after, before)
        except AliasMovedError as error:
            action = f"not promoted: {error}"
        else:
            return _settled(look.store, {**verdict, "moving": move}, moved=True)
    verdict["action"] = action or f"would move {what} (promote is off in EVAL_MODELS)"
    look.store.save_verdict(key, verdict)
    return verdict


def _why_not(
    look: Observer, entry: TrackedModels, found: Judgement, known: Sequence[str], in_production: str | None
) -> str | None:
    """Why the alias must stay where it is, in one line; None where all says that it may move."""
    alias, key = entry.baseline.alias, ModelKey.parse(found.model)
    if found.status not in ("first", "passed"):
        lacks = "not every benchmark could be compared" if found.missing else "more items are needed"
        return "blocked" if found.status == "failed" else f"not promoted: {lacks}"
    if alias is None:
        return "nothing to move: the baseline is a fixed version"
    candidate = look.registry.aliases(key.name).get(entry.candidate)
    if candidate is not None and candidate != key.version:
        return f"not promoted: the alias {entry.candidate!r} points to {candidate!r}"
    order = [one for one in known if ModelKey.parse(one).name == key.name]
    if candidate is None and in_production in order and order.index(in_production) > order.index(found.model):
        return f"not promoted: {in_production} was registered after it"
    if any(
        (move["alias"], move["from"], move["why"]) == (alias, key.version, ROLLBACK)
        for move in look.store.promotions(key.name)
    ):
        return "not promoted: it was rolled back by hand; move the alias by hand to bring it back"
    return None


def move_record(alias: str, before: str | None, after: str, why: str) -> dict[str, Any]:
    """What the store keeps of a move of an alias: when, by whom, from where to where, and why."""
    now = datetime.now(UTC)
    return {
        "promotion_id": f"{now:%Y%m%dT%H%M%S%f}",
        "at": now.isoformat(),
        "who": f"{getpass.getuser()}@{socket.gethostname()}",
        "alias": alias,
        "from": before,
        "to": after,
        "why": why,
    }


def finish_move(registry: Registry, store: ResultsStore, key: str) -> bool:
    """Write down the move of an alias that a version's verdict has announced; whether it had announced one.

    A verdict says beforehand, in ``moving``, what is about to be moved, so that a process that ends between
    that and here loses nothing. What never came to be, since the alias isn't there, is no move.
    """
    verdict = store.verdicts().get(key)
    if verdict is None or "moving" not in verdict:
        return False
    parsed = ModelKey.parse(key)
    there = registry.aliases(parsed.name).get(verdict["moving"]["alias"]) == parsed.version
    _settled(store, verdict, moved=there)
    return True


def _settled(store: ResultsStore, verdict: Mapping[str, Any], *, moved: bool) -> Mapping[str, Any]:
    """The verdict once it is stored that the move that it announced has happened, or has not."""
    settled = dict(verdict)
    move = settled.pop("moving")
    what = f"moved {move['alias']} from {move['from'] or 'nothing'} to {move['to']}"
    if moved:
        store.save_promotion(ModelKey.parse(verdict["model"]).name, move)
    settled |= {"moved": moved, "action": what if moved else f"interrupted, not {what}"}
    store.save_verdict(verdict["model"], settled)
    return settled


def _annotate(
    context: dg.AssetExecutionContext, registry: Registry, key: str, verdict: Mapping[str, Any], link: str
) -> None:
    notes = {"verdict": verdict["status"], "reason": verdict["reason"], "baseline": verdict["baseline"] or ""}
    try:
        registry.annotate(ModelKey.parse(key), {**notes, "link": link})
    except UserError as error:  # the verdict is in the store; only the note is missing
        context.log.warning(f"{key}: the verdict could not be noted in the registry: {error}")
