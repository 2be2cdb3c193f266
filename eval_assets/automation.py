"""What starts by itself, and the jobs that people start: each asks `reconcile` what is left to do."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from eval_assets.grid import attempts
from eval_assets.grid.observing import Observer, in_turn
from eval_assets.grid.reconciling import Policy, Request, Task, Work, World, reconcile
from eval_assets.model_versions import register, registration
from eval_assets.operations.notifications import report_given_up
from eval_assets.partitions import models, row_tags
from resources.errors import TransientError, UserError
from resources.keys import ModelKey
from resources.pods.tags import EVALUATION, IN_FLIGHT, ROW_JOB
from resources.registries import Listing, Registry, VersionNotThereError
from resources.results import ResultsStore
from resources.settings import Settings

NEW_VERSION, NIGHTLY = "0", "-10"
LOOK_SECONDS = 15.0
"""How long one look may take; what it doesn't get to, the next one does."""
RELIST_SECONDS = 3600
"""How often everything is listed again, to find versions that were deleted."""
NIGHTLY_LOOK_SECONDS = 45.0
NIGHTLY_REQUESTS = 500
SETTLE_SECONDS = 10.0
"""A folder whose files changed more recently is still being copied."""


_SETTINGS = Settings.from_environment()
_DECLARED = _SETTINGS.models is not None
"""Whoever wrote down what is tracked wants it evaluated; on a laptop that only looks, nothing starts."""


class RegisterConfig(dg.Config):
    """Which versions to register; none named: every version of the registry."""

    models: list[str] = Field(default_factory=list)


@dg.op(tags={"kind": "registry"}, pool="registry")
def register_versions(
    context: dg.OpExecutionContext,
    config: RegisterConfig,
    registry: dg.ResourceParam[Registry],
    store: dg.ResourceParam[ResultsStore],
) -> None:
    """Verify, measure and record model versions, and add their partitions."""
    attempts.begin(context)
    keys = config.models
    if not keys:
        listing = registry.versions()
        keys = [str(key) for key in listing.keys]
        for skipped in listing.skipped:
            context.log.warning(f"{skipped.place} was skipped: {skipped.reason}")
    failed: dict[Task, Exception] = {}
    tasks = [registration(key, registry) for key in keys]
    attempts.announce(context, tasks)
    for task in tasks:
        try:
            register(context, task.model, registry, store)
        except UserError as error:
            failed[task] = error
            continue
        context.instance.add_dynamic_partitions("model", [task.model])
    if failed:
        attempts.confess(context, failed)
        raise dg.Failure("; ".join(str(error) for error in failed.values()), allow_retries=False)
    if not keys:
        with attempts.confessing(context):
            raise UserError(no_versions_message(registry))


def no_versions_message(registry: Registry) -> str:
    """What to tell a user whose registry is empty."""
    return (
        f"no model versions in {registry.root}: put a Hugging Face folder at "
        "<name>/<version>/ below it, then register again"
    )


@dg.job(description="Look at the registry: verify, measure and record each model version; add its partition.")
def register_models() -> None:
    register_versions()


prepare_benchmarks = dg.define_asset_job(
    "prepare_benchmarks",
    selection=["benchmark"],
    description="Normalize and fingerprint benchmarks.",
)
evaluate_models = dg.define_asset_job(
    ROW_JOB,
    selection=[EVALUATION],
    description="Evaluate cells of the grid; a run over a model's row loads its weights once.",
)
judge_models = dg.define_asset_job(
    "judge_models",
    selection=["promotion"],
    description="Compare a model version with the one in production, and move the alias or say why not.",
)
refresh_leaderboard = dg.define_asset_job(
    "refresh_leaderboard",
    selection=["leaderboard", "report"],
    description="Bring the DuckDB catalogue, the leaderboard and the report up to date.",
)


def run_request(look: Observer, request: Request, priority: str) -> dg.RunRequest:
    """The Dagster run for a request.

    Its key says which run for the same was the last before: two looks at once ask for one run, and one that
    was interrupted or whose result was removed is asked for again, whichever runs somebody has deleted.
    """
    what = attempts.tags_of(request.tasks)
    tags = {**what, attempts.PRIORITY_TAG: priority}
    first = request.tasks[0]
    before = look.instance.get_runs(dg.RunsFilter(tags=what), limit=1)
    run_key = "/".join([*what.values(), before[0].run_id if before else "first"])
    match request.work:
        case Work.REGISTER:
            config = {"ops": {"register_versions": {"config": {"models": [first.model]}}}}
            return dg.RunRequest(run_key, config, tags, job_name="register_models")
        case Work.PREPARE:
            return dg.RunRequest(
                run_key, tags=tags, job_name="prepare_benchmarks", partition_key=first.dataset
            )
        case Work.EVALUATE:
            entry = look.tracking.entry_of(request.model)
            tags |= {**row_tags(request.model, request.datasets), **entry.pod_tags()}
            return dg.RunRequest(run_key, tags=tags, job_name=ROW_JOB)
        case Work.JUDGE:
            return dg.RunRequest(run_key, tags=tags, job_name="judge_models", partition_key=first.model)


@dg.sensor(
    jobs=[register_models, prepare_benchmarks, evaluate_models, judge_models],
    minimum_interval_seconds=_SETTINGS.sensor_seconds,
    default_status=dg.DefaultSensorStatus.RUNNING if _DECLARED else dg.DefaultSensorStatus.STOPPED,
    description=(
        "Sees new model versions in the registries and brings each all the way: registered, evaluated on its "
        "benchmarks, compared with the version in production, promoted or blocked. Goes on after any failure."
    ),
)
def new_model_versions(
    context: dg.SensorEvaluationContext,
    registry: dg.ResourceParam[Registry],
    store: dg.ResourceParam[ResultsStore],
    settings: dg.ResourceParam[Settings],
) -> dg.SensorResult | dg.SkipReason:
    """One look at everything; the cursor only spares listing what was listed before."""
    cursor: dict[str, Any] = json.loads(context.cursor) if context.cursor else {}
    relist = not 0 <= time.time() - cursor.get("listed_at", 0) < RELIST_SECONDS
    attempts.end_orphans(context.instance)
    look = Observer.of(context.instance, registry, store, settings)
    try:
        listing = registry.versions("" if relist else cursor.get("registry", ""))
        known = dict.fromkeys(context.instance.get_dynamic_partitions("model"))
        fresh = [str(key) for key in listing.keys if str(key) not in known and _is_tracked(look, key)]
        if relist:
            mark_deleted(look, listing, list(known))
        problems: dict[str, str] = {}
        world = look.world([*known, *fresh], seconds=LOOK_SECONDS, problems=problems)
    except UserError as error:
        return dg.SkipReason(str(error))  # with the cursor as it was
    decision = reconcile(world, Policy())
    events = report_given_up(look.settings, store, decision, context.log.warning)
    cursor = {
        "registry": listing.cursor,
        "listed_at": time.time() if relist else cursor.get("listed_at", 0),
    }
    for skipped in listing.skipped:
        context.log.info(f"{skipped.place} was skipped: {skipped.reason}")
    _tell(context, problems, world)
    context.log.info(
        f"{len(listing.keys)} versions listed, {len(fresh)} of them new; {len(decision.requests)} runs "
        f"requested, {decision.left} more left, {len(decision.waiting)} tasks wait for another try, "
        f"{len(decision.given_up)} given up"
    )
    return dg.SensorResult(
        run_requests=[run_request(look, request, NEW_VERSION) for request in decision.requests],
        dynamic_partitions_requests=[models.build_add_request(fresh)] if fresh else [],
        cursor=json.dumps(cursor),
        asset_events=events,
    )


def _tell(
    context: dg.SensorEvaluationContext | dg.ScheduleEvaluationContext,
    problems: Mapping[str, str],
    world: World,
) -> None:
    for name, reason in problems.items():
        context.log.warning(f"model {name} is left alone until this is put right: {reason}")
    for what in world.not_looked_at:
        context.log.warning(what)


def _is_tracked(look: Observer, key: ModelKey) -> bool:
    return look.tracking.entry(key.name) is not None


def mark_deleted(look: Observer, listing: Listing, known: Sequence[str]) -> None:
    """Note in the store which recorded versions their registry has no more, and which it has again.

    Their results and partitions stay. `listing` is a full one; what it lacks is asked for once more, since
    a registry that was not reached, or refused, is not in it either; in turns, as far as there is time.
    """
    deadline = time.monotonic() + LOOK_SECONDS
    there = {str(key) for key in listing.keys}
    records = look.store.model_versions()
    for key in in_turn(known, RELIST_SECONDS):
        record = records.get(key)
        if record is None:
            continue
        deleted = key not in there
        if deleted:
            if time.monotonic() > deadline:
                continue
            try:
                look.registry.revision(ModelKey.parse(key))
                deleted = False
            except VersionNotThereError:
                pass
            except UserError:  # its registry has not said that it isn't there
                continue
        if deleted != bool(record.get("deleted")):
            look.store.save_model_version(key, {**record, "deleted": deleted})


_HOUR, _MINUTE = _SETTINGS.nightly
_SCHEDULE: Mapping[str, Any] = {
    "job": evaluate_models,
    "execution_timezone": _SETTINGS.timezone,
    "default_status": dg.DefaultScheduleStatus.RUNNING if _DECLARED else dg.DefaultScheduleStatus.STOPPED,
}


@dg.schedule(
    **_SCHEDULE,
    cron_schedule=f"{_MINUTE} {_HOUR} * * *",
    description=(
        "Each night: evaluates what is stale or missing, and only that. Looks deeper than the sensor does: "
        "into the registry, whether a version's files have changed, and into the store, whether a result is "
        "there."
    ),
)
def nightly(
    context: dg.ScheduleEvaluationContext,
    registry: dg.ResourceParam[Registry],
    store: dg.ResourceParam[ResultsStore],
    settings: dg.ResourceParam[Settings],
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """What `reconcile` finds missing when nothing that was recorded is believed."""
    look = Observer.of(context.instance, registry, store, settings)
    known = context.instance.get_dynamic_partitions("model")
    problems: dict[str, str] = {}
    try:
        world = look.world(known, thorough=True, seconds=NIGHTLY_LOOK_SECONDS, problems=problems)
    except TransientError as error:
        yield dg.SkipReason(str(error))
        return
    _tell(context, problems, world)
    for version in world.versions:
        if not version.registered and (record := store.model_version(version.model)) is not None:
            # Its files are not those that were recorded: the sensor registers it again.
            store.save_model_version(version.model, {**record, "revision": ""})
    decision = reconcile(world, Policy(requests_at_once=NIGHTLY_REQUESTS))
    rows = [request for request in decision.requests if request.work is Work.EVALUATE]
    yield from (run_request(look, request, NIGHTLY) for request in rows)
    if not rows:
        yield dg.SkipReason("nothing is stale or missing")


@dg.schedule(
    **_SCHEDULE,
    cron_schedule=f"{_MINUTE} {_HOUR} * * 0",
    description=(
        "Each Sunday: evaluates the versions in production again, all of it. The check 'reproduced' of each "
        "cell says whether the same code, model and items still give the same samples, bit by bit."
    ),
)
def weekly_recheck(
    context: dg.ScheduleEvaluationContext,
    registry: dg.ResourceParam[Registry],
    store: dg.ResourceParam[ResultsStore],
    settings: dg.ResourceParam[Settings],
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """One forced run for each version that others are compared with."""
    look = Observer.of(context.instance, registry, store, settings)
    try:
        problems: dict[str, str] = {}
        known = context.instance.get_dynamic_partitions("model")
        champions = sorted(look.production(known, problems).values())
        world = look.world(champions)
    except TransientError as error:
        yield dg.SkipReason(str(error))
        return
    _tell(context, problems, world)
    for version in world.versions:
        if version.model not in champions or not version.registered:
            continue
        tasks = tuple(
            Task(Work.EVALUATE, version.model, dataset, world.fingerprints[version.model, dataset])
            for dataset in version.datasets
            if (version.model, dataset) in world.fingerprints
        )
        if tasks:
            request = run_request(look, Request(Work.EVALUATE, tasks), NIGHTLY)
            day = f"{context.scheduled_execution_time:%Y-%m-%d}"
            yield request._replace(
                run_key=f"recheck/{version.model}/{day}", tags={**request.tags, attempts.FORCE_TAG: "true"}
            )
    if not champions:
        yield dg.SkipReason("no version is in production")


@dg.schedule(
    job=refresh_leaderboard,
    cron_schedule="*/15 * * * *",
    execution_timezone=_SETTINGS.timezone,
    default_status=_SCHEDULE["default_status"],
    description="Every quarter of an hour: the catalogue, leaderboard and report, if there is anything new.",
)
def keep_report_fresh(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """A refresh where an evaluation or a verdict is later than the report, and none is at work."""
    instance = context.instance

    def latest(asset: str) -> float:
        event = instance.get_latest_materialization_event(dg.AssetKey(asset))
        return 0.0 if event is None else event.timestamp

    if max(latest(EVALUATION), latest("promotion")) <= latest("report"):
        return dg.SkipReason("nothing was evaluated or judged since the last report")
    at_work = dg.RunsFilter(job_name=refresh_leaderboard.name, statuses=IN_FLIGHT)
    if instance.get_runs_count(at_work):
        return dg.SkipReason("a refresh is at work already")
    return dg.RunRequest()


JOBS = (register_models, prepare_benchmarks, evaluate_models, judge_models, refresh_leaderboard)
SENSORS = (new_model_versions,)
SCHEDULES = (nightly, weekly_recheck, keep_report_fresh)
