"""Find or install Prometheus for the tests of metrics and rules: the system's packages, where allowed."""

import os
import shutil
import subprocess
import sys

PACKAGES = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "prometheus-pushgateway": "prometheus-pushgateway",
}
"""Program -> Debian package."""


def program(name: str) -> str:
    """The path of one of `PACKAGES`. Raises AssertionError, saying what to do, where it is missing."""
    path = shutil.which(name)
    assert path is not None, f"{name} is missing: {_ADVICE}"
    return path


_ADVICE = "install your system's packages 'prometheus' and 'prometheus-pushgateway', or put both on the PATH"


def _missing() -> set[str]:
    return {package for name, package in PACKAGES.items() if shutil.which(name) is None}


def install() -> None:
    """Install what is missing; one line says what to do where that can't work. Starts no service."""
    missing = sorted(_missing())
    if not missing:
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"installing {' and '.join(missing)} from the system's packages", flush=True)
        subprocess.run(["apt-get", "update", "-qq"], check=False, stdout=subprocess.DEVNULL)
        subprocess.run(
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing],
            check=False,
            stdout=subprocess.DEVNULL,
            # What a package's scripts would start as a service stays off: only the programs are wanted.
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"},
        )
    if _missing():
        sys.exit(f"error: the monitoring tests need Prometheus: {_ADVICE}")


if __name__ == "__main__":
    install()
