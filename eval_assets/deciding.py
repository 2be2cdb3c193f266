"""What a person or a CI decides: gate, A/B comparison, rollback, trying again, removing a partition."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from rich.table import Table

from eval_assets import comparing
from eval_assets.attempts import clear
from eval_assets.comparing import COLUMNS, compare_cells, inert, shown
from eval_assets.partitions import SUITE
from eval_assets.promotion import ROLLBACK, record_move
from eval_assets.reconciling import judgement
from eval_assets.runs import Runs
from eval_assets.terminal import console, evaluate_grid
from resources.errors import TransientError, UserError
from resources.keys import ModelKey

PASSED, FAILED, NOT_DECIDED = 0, 1, 2
_STATUS = {"first": PASSED, "passed": PASSED, "failed": FAILED}


def gate(key: str, *, run: bool, summary: Path | None, junit: Path | None) -> int:
    """Say whether a version has passed: 0 yes, 1 no, 2 not decided.

    `run` evaluates and judges it first, as far as that is missing. `summary` is appended to as Markdown (the
    summary of a CI's step), `junit` is written.
    """
    ModelKey.parse(key)
    runs = Runs()
    entry = runs.tracking.entry_of(key)
    if run:
        evaluate_grid([*_compared_with(runs, key), key], entry.datasets(SUITE), force=False)
    verdict = _todays_verdict(runs, key)
    text = markdown(verdict)
    console.print(text, markup=False, soft_wrap=True)
    if summary is not None:
        with summary.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
    if junit is not None:
        junit.write_bytes(junit_xml(verdict))
    return _STATUS.get(verdict["status"], NOT_DECIDED)


def _compared_with(runs: Runs, key: str) -> list[str]:
    """The version that it is compared with, which a CI's own Dagster instance may never have seen."""
    name = ModelKey.parse(key).name
    baseline = runs.look.production([key]).get(name)
    if baseline is None:
        baseline = next((str(one) for one in runs.registry.versions().keys if one.name == name), key)
    return [baseline] if baseline != key else []


def _todays_verdict(runs: Runs, key: str) -> Mapping[str, Any]:
    """The verdict on the version as its files and benchmarks are now; an earlier one decides nothing."""
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


def compare_versions(candidate: str, baseline: str, datasets: Sequence[str]) -> None:
    """Print how two versions differ on each benchmark that both were evaluated on."""
    runs = Runs()
    for key in (candidate, baseline):
        if runs.store.model_version(str(ModelKey.parse(key))) is None:
            raise UserError(f"model version {key} is not registered: run 'make register'")
    entry = runs.tracking.entry_of(candidate)
    table = Table(*COLUMNS)
    reasons = []
    for dataset in datasets or entry.datasets(SUITE):
        try:
            cell = compare_cells(runs.look.cells, candidate, baseline, dataset)
        except UserError as error:
            reasons.append(str(error))
            continue
        table.add_row(*shown(cell.as_row()))
    if not table.row_count:
        raise UserError(f"nothing to compare: {'; '.join(reasons)}")
    console.print(f"{candidate} against {baseline}")
    console.print(table)
    for reason in reasons:
        console.print(f"not compared: {reason}", markup=False, soft_wrap=True)


def rollback(name: str, version: str | None) -> None:
    """Point the alias of what is in production back to the version before, or to the one that is named."""
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
    console.print(f"{name}: {alias} moved from {now} back to {version}")


def retry(key: str, datasets: Sequence[str]) -> None:
    """Have the automation try again what it has given up of a model version (or of a benchmark)."""
    runs = Runs()
    count = clear(runs.instance, key, datasets)
    if not count:
        raise UserError(f"{key}: no failed runs are remembered; nothing to try again")
    runs.store.forget_given_up(key)
    console.print(f"{key}: {count} failed runs forgotten; the sensor tries again at its next look")


def forget(key: str) -> None:
    """Remove the partition of a version that its registry has no more; its results stay."""
    runs = Runs()
    model = ModelKey.parse(key)
    if key not in runs.instance.get_dynamic_partitions("model"):
        raise UserError(f"model version {key} has no partition: name one that the UI shows")
    try:
        runs.registry.revision(model)
    except TransientError:
        raise
    except UserError:
        runs.instance.delete_dynamic_partition("model", key)
        console.print(f"{key}: its partition is removed; its results stay in {runs.store.root}")
        return
    raise UserError(f"model version {key} is still in its registry: delete it there first")
