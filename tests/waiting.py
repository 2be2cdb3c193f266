"""Waiting for what another process or thread does."""

import time
from collections.abc import Callable


def until(reached: Callable[[], object], seconds: float = 60.0) -> None:
    """Return once it is so. Raises AssertionError where it is not within so many seconds."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)
