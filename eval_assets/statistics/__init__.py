"""Estimates of one version, comparisons of two, and the verdicts that follow; docs/statistics.md.

`estimates` (a mean, a ratio, a bootstrapped statistic, each with its interval) is what metrics are made with;
`paired` and `verdicts` compare two versions item by item, `sequential` does it in stages.
"""

from eval_assets.statistics.estimates import (
    UNBOUNDED,
    Clusters,
    Floats,
    bootstrap_estimate,
    cluster_codes,
    mean_estimate,
    pass_at_k,
    ratio_estimate,
    sampling_share,
)

__all__ = [
    "UNBOUNDED",
    "Clusters",
    "Floats",
    "bootstrap_estimate",
    "cluster_codes",
    "mean_estimate",
    "pass_at_k",
    "ratio_estimate",
    "sampling_share",
]
