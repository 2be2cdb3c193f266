"""``gate``, ``rollback``, ``retry``, ``forget``: what a person or a CI decides."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import click

from eval_assets.commands.output import MODEL, Output, benchmarks_option, output

if TYPE_CHECKING:
    from eval_assets.commands.runs import Runs

PASSED, FAILED, NOT_DECIDED = 0, 1, 3
_STATUS = {"first": PASSED, "passed": PASSED, "failed": FAILED}


@click.command()
@click.argument("model", type=MODEL)
@click.option("--run", is_flag=True, help="first evaluate and judge what is missing")
@click.option("--summary", type=click.Path(path_type=Path), help="append a Markdown summary to this file")
@click.option("--junit", type=click.Path(path_type=Path), help="write a JUnit file")
@output
def gate(out: Output, model: str, run: bool, summary: Path | None, junit: Path | None) -> None:
    """Has a version passed? Exits with 0 (passed), 1 (worse) or 3 (not decided), for a CI.

    Anything else is no verdict: 2 a mistake, 4 a run that failed, 70 and 75 as in docs/cli.md. Without --run
    it reads the latest verdict in the store and needs no Dagster instance.
    """
    import dagster as dg

    from eval_assets.commands.evaluating import evaluate_grid, show_verdict
    from eval_assets.commands.runs import RunFailedError, Runs
    from eval_assets.grid.comparing import COLUMNS, come_since, shown
    from eval_assets.partitions import SUITE
    from resources.keys import ModelKey

    key = str(ModelKey.parse(model))
    with ExitStack() as stack:
        runs = Runs(None if run else stack.enter_context(dg.DagsterInstance.ephemeral()))
        entry = runs.tracking.entry_of(key)
        if run:
            models = [*_compared_with(runs, key), key]
            evaluated = evaluate_grid(out, runs, models, entry.datasets(SUITE), force=False)
            if evaluated["failures"]:
                raise RunFailedError("; ".join(evaluated["failures"]))
            given = runs.store.verdicts().get(key)
            if given is not None and not _in_production(runs, key):
                came = come_since(runs.look.cells, given, entry.datasets(SUITE))
                if came or _other_tolerance(runs, key, given):
                    runs.judge_again(key)
        verdict = _todays_verdict(runs, key)
    show_verdict(out, verdict)
    if verdict["cells"]:
        out.table(COLUMNS, [shown(cell) for cell in verdict["cells"]])
    for dataset, why in verdict["missing"].items():
        out.say(f"not compared on {dataset}: {why}")
    out.document(verdict)
    if summary is not None:
        with summary.open("a", encoding="utf-8") as file:
            file.write(summary_of(verdict) + "\n")
    if junit is not None:
        junit.write_bytes(junit_xml(verdict))
    sys.exit(_STATUS.get(verdict["status"], NOT_DECIDED))


def _compared_with(runs: "Runs", key: str) -> list[str]:
    """The version that it is compared with, which a CI's own Dagster instance may never have seen."""
    from resources.keys import ModelKey

    name = ModelKey.parse(key).name
    baseline = runs.look.production([key]).get(name)
    if baseline is None:
        baseline = next((str(one) for one in runs.registry.versions().keys if one.name == name), key)
    return [baseline] if baseline != key else []


def _todays_verdict(runs: "Runs", key: str) -> Mapping[str, Any]:
    """The verdict on the version as its files and benchmarks are now; an earlier one decides nothing."""
    nothing: dict[str, Any] = {
        "model": key, "baseline": None, "status": "undecided", "action": "", "cells": [], "missing": {},
    }  # fmt: skip
    if _in_production(runs, key):
        return {**nothing, "status": "passed", "reason": "it is the version in production"}
    verdict = runs.store.verdicts().get(key)
    if verdict is None:
        return {**nothing, "reason": "there is no verdict yet: run it with --run, or wait for the automation"}
    stale = _why_stale(runs, key, verdict)
    if stale is not None:
        return {**nothing, "reason": f"{stale}; --run evaluates and judges it as it is now"}
    return verdict


def _in_production(runs: "Runs", key: str) -> bool:
    from resources.keys import ModelKey

    return runs.look.production([key]).get(ModelKey.parse(key).name) == key


def _other_tolerance(runs: "Runs", key: str, verdict: Mapping[str, Any]) -> str | None:
    """Where the verdict was given with another tolerance than is asked for now, if anywhere.

    The automation judges no version again for that: what an earlier policy has let pass stays.
    """
    entry = runs.tracking.entry_of(key)
    for cell in verdict["cells"]:
        dataset, given = cell["dataset"], cell["verdict"]["tolerance"]
        asked = entry.tolerance_of(dataset)
        if given != asked:
            return f"it was judged with a tolerance of {given:g} on {dataset}, and {asked:g} is asked here"
    return None


def _why_stale(runs: "Runs", key: str, verdict: Mapping[str, Any]) -> str | None:
    """What is not as it was when the verdict was given, if anything: files, benchmarks or settings."""
    from eval_assets.grid.comparing import come_since
    from eval_assets.grid.prepared import has_same_items
    from eval_assets.grid.reconciling import Version, judgement
    from eval_assets.model_versions import measured
    from eval_assets.partitions import SUITE
    from resources.keys import ModelKey

    record = runs.store.model_version(key) or {}
    revision = runs.registry.revision(ModelKey.parse(key))
    if record.get("revision") != revision:
        digest = measured(key, runs.registry, runs.store).digest
        if record.get("digest") != digest:
            return "its files have changed since its verdict"
    datasets = runs.tracking.entry_of(key).datasets(SUITE)
    judged = {*(cell["dataset"] for cell in verdict["cells"]), *verdict["missing"]}
    # The verdict on a model's first version compares nothing: what is prepared may be what it was judged on.
    judged = judged or {dataset for dataset in datasets if runs.store.benchmark(dataset) is not None}
    if judged != set(datasets):
        others = f"it was judged on {', '.join(sorted(judged))}, and here on other benchmarks"
        return f"{others}: EVAL_MODELS names the file that says on which"
    for dataset in datasets:
        if not has_same_items(SUITE[dataset], runs.store, runs.settings.data_mirror):
            return f"the benchmark {dataset} has changed since its verdict"
    if tolerance := _other_tolerance(runs, key, verdict):
        return tolerance
    cells = runs.cells([key], datasets)
    fingerprints = {(key, cell.dataset): cell.fingerprint[:16] for cell in cells}
    if judgement(Version(key, "", True, tuple(datasets)), fingerprints).fingerprint == verdict["fingerprint"]:
        came = come_since(runs.look.cells, verdict, datasets)
        return came and f"it was judged without {came}, which has been evaluated since"
    for cell, benchmark in cells.items():
        counts = {
            one["samples"]
            for one in runs.store.evaluations_of(key, cell.dataset)
            if one["benchmark_fingerprint"] == benchmark.fingerprint
            and one["model_digest"] == record["digest"]
            and not one["stage"]
        }
        if counts and benchmark.count not in counts:
            asked = f"{max(counts):,} items of {cell.dataset}, and {benchmark.count:,} are asked here"
            return f"it was judged on {asked}: EVAL_LIMIT was another one then"
    return "its files, benchmarks or settings (docs/configuration.md) have changed since its verdict"


def summary_of(verdict: Mapping[str, Any]) -> str:
    """A stored verdict as Markdown, for a pull request."""
    from eval_assets.grid.comparing import as_markdown
    from eval_assets.markdown import inert

    mark = {PASSED: "✅", FAILED: "❌"}.get(_STATUS.get(verdict["status"], NOT_DECIDED), "❔")
    against = f" against `{verdict['baseline']}`" if verdict["baseline"] else ""
    parts = [
        f"### {mark} `{verdict['model']}`{against}: {verdict['status']}",
        inert(verdict["reason"]),
        as_markdown(verdict["cells"], verdict["missing"]),
        inert(verdict["action"]),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def junit_xml(verdict: Mapping[str, Any]) -> bytes:
    """A stored verdict as a JUnit file: a test case a benchmark; what is not decided counts as an error."""
    cases = [
        (cell["dataset"], cell["verdict"]["name"], cell["verdict"]["reason"]) for cell in verdict["cells"]
    ]
    cases += [(dataset, "undecided", why) for dataset, why in verdict["missing"].items()]
    if not cases:
        cases = [
            ("verdict", "undecided" if verdict["status"] == "undecided" else "passed", verdict["reason"])
        ]
    suite = ElementTree.Element(
        "testsuite",
        name=verdict["model"],
        tests=str(len(cases)),
        failures=str(sum(name == "worse" for _, name, _ in cases)),
        errors=str(sum(name == "undecided" for _, name, _ in cases)),
    )
    for dataset, name, reason in cases:
        case = ElementTree.SubElement(suite, "testcase", classname=verdict["model"], name=dataset)
        if name in ("worse", "undecided"):
            kind = "failure" if name == "worse" else "error"
            ElementTree.SubElement(case, kind, message=reason, type=name).text = reason
    whole = ElementTree.Element("testsuites")
    whole.append(suite)
    content: bytes = ElementTree.tostring(whole, encoding="utf-8", xml_declaration=True)
    return content


@click.command()
@click.argument("name")
@click.option("--to", "version", help="the version; by default the one that was in production before")
@output
def rollback(out: Output, name: str, version: str | None) -> None:
    """Put the version before back into production."""
    from eval_assets.commands.runs import Runs
    from eval_assets.promotion import ROLLBACK, finish_move, move_record
    from resources.errors import UserError
    from resources.keys import ModelKey

    runs = Runs()
    entry = runs.tracking.entry(name)
    if entry is None or entry.baseline.alias is None:
        raise UserError(f"model {name}: no entry of EVAL_MODELS gives it an alias for what is in production")
    alias = entry.baseline.alias
    now = runs.registry.aliases(name).get(alias)
    if now is None:
        raise UserError(f"model {name}: no version has the alias {alias!r}; nothing to roll back")
    finish_move(runs.registry, runs.store, f"{name}@{now}")
    if version is None:
        moves = [
            move
            for move in runs.store.promotions(name)
            if (move["alias"], move["to"]) == (alias, now)
            and move["from"] is not None
            and move["why"] != ROLLBACK
        ]
        if not moves:
            raise UserError(
                f"model {name}: no record of what was {alias} before {now}; name it with --to VERSION"
            )
        version = str(moves[-1]["from"])
    if version == now:
        raise UserError(f"model {name}: {alias} points to {now} already")
    runs.registry.revision(ModelKey.parse(f"{name}@{version}"))
    runs.registry.move_alias(name, alias, version, now)
    runs.store.save_promotion(name, move_record(alias, now, version, ROLLBACK))
    out.say(f"{name}: {alias} moved from {now} back to {version}")
    out.document({"name": name, "alias": alias, "from": now, "to": version})


@click.command()
@click.argument("model", type=MODEL)
@benchmarks_option
@output
def retry(out: Output, model: str, benchmarks: Sequence[str]) -> None:
    """Have the automation try again what it gave up of a model version or benchmark."""
    from eval_assets.commands.runs import Runs
    from eval_assets.grid.attempts import clear
    from resources.errors import UserError

    key, runs = model, Runs()
    count = clear(runs.instance, key, benchmarks)
    if not count:
        raise UserError(f"{key}: no failed runs are remembered; nothing to try again")
    runs.store.forget_given_up(key, benchmarks)
    out.say(f"{key}: {count} failed runs forgotten; the sensor tries again at its next look")
    out.document({"model": key, "forgotten": count})


@click.command()
@click.argument("model", type=MODEL)
@output
def forget(out: Output, model: str) -> None:
    """Remove the partition of a version that is deleted in its registry; its results stay."""
    from eval_assets.commands.runs import Runs
    from eval_assets.operations.pushgateway import forget_pushed
    from resources.errors import UserError
    from resources.keys import ModelKey
    from resources.registries import VersionNotThereError

    key, runs = model, Runs()
    parsed = ModelKey.parse(key)
    if key not in runs.instance.get_dynamic_partitions("model"):
        raise UserError(f"model version {key} has no partition: name one that the UI shows")
    with suppress(VersionNotThereError):
        if runs.tracking.entry(parsed.name) is not None:  # what no entry names is in no registry
            runs.registry.revision(parsed)
            raise UserError(f"model version {key} is still in its registry: delete it there first")
    runs.instance.delete_dynamic_partition("model", key)
    forget_pushed(runs.settings, key)
    out.say(f"{key}: its partition is removed; its results stay in {runs.store.root}")
    out.document({"model": key, "partition": "removed"})
