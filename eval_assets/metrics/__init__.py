"""Metrics: from answered samples to a score an item, and from scores to estimates.

One public face: `METRICS` (name -> `Metric`) says what exists; `check_metrics` whether a benchmark's
metrics can be computed; `score_samples` fills in `Sample.scores`; `estimate_metrics` aggregates them by
group and as a whole. Importing this loads no metric library; scoring loads those that it needs.
"""

from eval_assets.metrics.metric import Metric, ScoringSettings, answers_of
from eval_assets.metrics.scoring import METRICS, check_metrics, estimate_metrics, score_samples

__all__ = [
    "METRICS",
    "Metric",
    "ScoringSettings",
    "answers_of",
    "check_metrics",
    "estimate_metrics",
    "score_samples",
]
