"""Write prometheus-rule.yaml, the object that Prometheus' operator reads, from rules.yaml."""

from pathlib import Path

FOLDER = Path(__file__).parent
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


if __name__ == "__main__":
    (FOLDER / "prometheus-rule.yaml").write_text(wrapped((FOLDER / "rules.yaml").read_text()))
