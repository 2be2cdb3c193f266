"""``gate``, ``rollback``, ``retry``, ``forget``: what a person or a CI decides."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import click

from eval_assets.commands.output import MODEL, Output, benchmarks_option, output

if TYPE_CHECKING:
    from eval_assets.commands.runs import Runs

PASSED, FAILED, NOT_DECIDED = 0, 1, 2
_STATUS = {"first": PASSED, "passed": PASSED, "failed": FAILED}


@click.command()
@click.argument("model", type=MODEL)
@click.option("--run", is_flag=True, help="first evaluate and judge what is missing")
@click.option("--summary", type=click.Path(path_type=Path), help="append a Markdown summary to this file")
@click.option("--junit", type=click.Path(path_type=Path), help="write a JUnit file")
@output
def gate(out: Output, model: str, run: bool, summary: Path | None, junit: Path | None) -> None:
    """Has a version passed? Exits with 0 (passed), 1 (failed) or 2 (not decided), for a CI."""
    from eval_assets.commands.evaluating import evaluate_grid
    from eval_assets.commands.runs import Runs
    from eval_assets.partitions import SUITE
    from resources.errors import UserError
    from resources.keys import ModelKey

    key = str(ModelKey.parse(model))
    runs = Runs()
    entry = runs.tracking.entry_of(key)
    if run:
        evaluated = evaluate_grid(
            out, runs, [*_compared_with(runs, key), key], entry.datasets(SUITE), force=False
        )
        if evaluated["failures"]:
            raise UserError("; ".join(evaluated["failures"]))
    verdict = _todays_verdict(runs, key)
    text = markdown(verdict)
    out.say(text)
    out.document(verdict)
    if summary is not None:
        with summary.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
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
    from eval_assets.grid.reconciling import judgement
    from resources.keys import ModelKey

    nothing: dict[str, Any] = {
        "model": key, "baseline": None, "status": "undecided", "action": "", "cells": [], "missing": {},
    }  # fmt: skip
    if runs.look.production([key]).get(ModelKey.parse(key).name) == key:
        return {**nothing, "status": "passed", "reason": "it is the version in production"}
    verdict = runs.store.verdicts().get(key)
    if verdict is None:
        return {**nothing, "reason": "there is no verdict yet: run it with --run, or wait for the automation"}
    world = runs.look.world([key], failures={}, thorough=True)
    version = next((version for version in world.versions if version.model == key), None)
    if version is None or judgement(version, world.fingerprints).fingerprint != verdict["fingerprint"]:
        stale = "its files, benchmarks or settings have changed since its verdict: run it with --run"
        return {**nothing, "reason": stale}
    return verdict


def markdown(verdict: Mapping[str, Any]) -> str:
    """A stored verdict as Markdown, for a pull request."""
    from eval_assets.grid import comparing
    from eval_assets.grid.comparing import inert

    mark = {PASSED: "✅", FAILED: "❌"}.get(_STATUS.get(verdict["status"], NOT_DECIDED), "❔")
    against = f" against `{verdict['baseline']}`" if verdict["baseline"] else ""
    lines = [
        f"### {mark} `{verdict['model']}`{against}: {verdict['status']}",
        "",
        inert(verdict["reason"]),
        "",
    ]
    lines.append(comparing.markdown(verdict["cells"], verdict["missing"]))
    return "\n".join([*lines, "", inert(verdict["action"])]).strip() + "\n"


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
    from eval_assets.promotion import ROLLBACK, record_move
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
    if version is None:
        moves = [
            move
            for move in runs.store.promotions(name)
            if move["to"] == now and move["from"] is not None and move["why"] != ROLLBACK
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
    record_move(runs.store, name, alias, now, version, ROLLBACK)
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
    runs.store.forget_given_up(key)
    out.say(f"{key}: {count} failed runs forgotten; the sensor tries again at its next look")
    out.document({"model": key, "forgotten": count})


@click.command()
@click.argument("model", type=MODEL)
@output
def forget(out: Output, model: str) -> None:
    """Remove the partition of a version that is deleted in its registry; its results stay."""
    from eval_assets.commands.runs import Runs
    from eval_assets.operations.pushgateway import forget_pushed
    from resources.errors import TransientError, UserError
    from resources.keys import ModelKey

    key, runs = model, Runs()
    parsed = ModelKey.parse(key)
    if key not in runs.instance.get_dynamic_partitions("model"):
        raise UserError(f"model version {key} has no partition: name one that the UI shows")
    try:
        runs.registry.revision(parsed)
    except TransientError:
        raise
    except UserError:
        runs.instance.delete_dynamic_partition("model", key)
        forget_pushed(runs.settings, key)
        out.say(f"{key}: its partition is removed; its results stay in {runs.store.root}")
        out.document({"model": key, "partition": "removed"})
        return
    raise UserError(f"model version {key} is still in its registry: delete it there first")
