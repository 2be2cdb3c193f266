"""Metrics: from answered samples to a score an item, and from scores to estimates.

One public face: `METRICS` (name -> `Metric`) says what exists; `check_metrics` whether a benchmark's
metrics can be computed; `metric_named` which metric is behind a name in results; `score_samples` fills in
`Sample.scores`; `estimate_metrics` aggregates them by group and as a whole; `comparable` gives what two
versions are compared by. Importing this loads no metric library; scoring loads those that it needs.
"""

from eval_assets.metrics.metric import Metric, ScoringSettings, answers_of
from eval_assets.metrics.scoring import (
    METRICS,
    check_metrics,
    comparable,
    estimate_metrics,
    metric_named,
    score_samples,
    weighs_texts,
)

__all__ = [
    "METRICS",
    "Metric",
    "ScoringSettings",
    "answers_of",
    "check_metrics",
    "comparable",
    "estimate_metrics",
    "metric_named",
    "score_samples",
    "weighs_texts",
]
