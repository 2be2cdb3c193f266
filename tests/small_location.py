"""A code location whose evaluations only take time: for tests of the queue, where a hundred run at once.

It is not beside them: each of the hundred processes would import that package, too.
"""

import time

import dagster as dg

DATASETS = ["first", "second"]
SECONDS = 4.0


@dg.asset(
    partitions_def=dg.MultiPartitionsDefinition(
        {
            "dataset": dg.StaticPartitionsDefinition(DATASETS),
            "model": dg.DynamicPartitionsDefinition(name="model"),
        }
    )
)
def evaluation() -> None:
    """Takes the devices of its pod for a while."""
    time.sleep(SECONDS)


defs = dg.Definitions(assets=[evaluation], executor=dg.in_process_executor)
