"""The report: a static site of the results, opened from a folder or behind any web server."""

from eval_assets.report.building import Limits, Report, build_report, leaderboard_picture

__all__ = ["Limits", "Report", "build_report", "leaderboard_picture"]
