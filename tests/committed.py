"""What is in a results store, for tests that look at all of it."""

from typing import cast

from resources.records import EvaluationRecord
from resources.results import RECORD, ResultsStore


def committed_in(store: ResultsStore) -> list[EvaluationRecord]:
    """The records of all committed evaluations, in the order of their folders."""
    return [cast(EvaluationRecord, record) for _, record in store.json_files(f"evaluations/*/*/*/{RECORD}")]
