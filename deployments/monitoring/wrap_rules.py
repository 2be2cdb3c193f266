"""Write prometheus-rule.yaml, the object that Prometheus' operator reads, from rules.yaml.

    python deployments/monitoring/wrap_rules.py --docs https://git.example.com/you/this/blob/main/docs

With --docs the runbook links of all files in this folder lead to that address of the docs from then on.
"""

import argparse
import re
from pathlib import Path

FOLDER = Path(__file__).parent
RULES, TESTS, OBJECT = "rules.yaml", "rules_test.yaml", "prometheus-rule.yaml"
HEAD = """\
# Made from rules.yaml by wrap_rules.py: change that one. Your Prometheus may want a label (`ruleSelector`).
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: evaluation
  namespace: evaluation
spec:
"""


def wrapped(rules: str) -> str:
    """The PrometheusRule of a rules file."""
    _, _, groups = rules.partition("groups:\n")
    lines = [f"  {line}" if line else line for line in f"groups:\n{groups}".splitlines()]
    return HEAD + "\n".join(lines) + "\n"


def documented(text: str, docs: str) -> str:
    """A file's text with its runbook links at this address of the docs."""
    return re.sub(r"(runbook_url: )\S+(/monitoring\.md#)", rf"\g<1>{docs.rstrip('/')}\g<2>", text)


def main(folder: Path = FOLDER, arguments: list[str] | None = None) -> None:
    """Bring the files of a folder up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", metavar="URL", help="where people read docs/")
    docs = parser.parse_args(arguments).docs
    if docs is not None:
        if not re.fullmatch(r"https?://[^\s\"'\\#{}]+", docs):
            parser.error(
                f"--docs {docs}: not an address like https://git.example.com/you/this/blob/main/docs"
            )
        for name in (RULES, TESTS):
            (folder / name).write_text(documented((folder / name).read_text(), docs))
    (folder / OBJECT).write_text(wrapped((folder / RULES).read_text()))


if __name__ == "__main__":
    main()
