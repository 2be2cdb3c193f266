"""Dagster's queue where runs are pods; ``dagster.yaml`` names it beside the launcher.

Each pod of a run loads the coordinator, to ask it for limits: the launcher's module, which takes Kubernetes'
client along, is imported only where runs are submitted and launched.
"""

import logging

import dagster as dg
from dagster._core.run_coordinator import QueuedRunCoordinator, SubmitRunContext

from resources.errors import UserError
from resources.settings import Settings

_log = logging.getLogger("dagster.evaluation.coordinator")


class EvaluationRunCoordinator(QueuedRunCoordinator):
    """Dagster's queue, whose runs say from the start what pod they get: for people, and for limits."""

    def submit_run(self, context: SubmitRunContext) -> dg.DagsterRun:
        """Tag the run with its pod, as far as that is known now; `launch_run` decides for good."""
        from resources.launcher import plan_of_run

        run = context.dagster_run
        try:
            tags = plan_of_run(run, self._instance, Settings.from_environment()).tags(run.run_id)
            self._instance.add_run_tags(run.run_id, tags)
        except UserError as error:  # the launcher meets it again, and fails the run with it
            _log.warning("%s", error)
        return super().submit_run(context)

    @property
    def dequeue_interval_seconds(self) -> int:
        # The daemon asks this when it starts, and nobody else ever: from here on it watches the pods that
        # are left from before, also while nothing is launched.
        from resources.launcher import EvaluationRunLauncher

        launcher = self._instance.run_launcher
        if isinstance(launcher, EvaluationRunLauncher):
            launcher.watch_pods()
        return super().dequeue_interval_seconds
