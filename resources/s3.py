"""S3 as a file system that waits for a store which throttles, is slow or is gone for a while."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, ConnectionError
from s3fs import S3FileSystem
from s3fs.core import S3_RETRYABLE_ERRORS

from resources.errors import TransientError, UserError

PATIENCE_SECONDS = 90.0
"""For so long a store may be gone; then whatever is asked of it ends, after one try each."""
_PAUSE_SECONDS = 3.0
"""Between rounds of some quick tries; a lease's patience is longer than this and `lease.BEAT_SECONDS`."""
_PASSING = (429, 500, 502, 503, 504)
_NO_ANSWER = (*S3_RETRYABLE_ERRORS, ConnectionError)
_ONE_TRY = {"retries": {"total_max_attempts": 1}}


class PatientS3(S3FileSystem):  # type: ignore[misc]  # s3fs has no types
    """Every request is tried until the store has answered none for `PATIENCE_SECONDS`.

    It raises TransientError then, and UserError where a request can't be made at all (no credentials); what
    a store answers is an OSError, as in any file system of fsspec.
    """

    def __init__(self, **options: Any) -> None:
        # The layer below would try again by itself, with pauses of its own that are random.
        super().__init__(**{"config_kwargs": _ONE_TRY, **options})
        self._silent_since: float | None = None

    async def _call_s3(self, method: str, *options: Any, **arguments: Any) -> Any:
        began = time.monotonic()
        where = f"s3://{arguments.get('Bucket')}/{arguments.get('Key') or arguments.get('Prefix') or ''}"
        with _in_one_line(where):
            while True:
                try:
                    answer = await super()._call_s3(method, *options, **arguments)
                except Exception as error:  # s3fs passes on what three libraries below it raise
                    if not _passes(error):
                        self._silent_since = None
                        raise
                    self._silent_since = min(began, self._silent_since or began)
                    if time.monotonic() - self._silent_since > PATIENCE_SECONDS:
                        raise
                    await asyncio.sleep(_PAUSE_SECONDS)
                else:
                    self._silent_since = None
                    return answer

    # What breaks off in the middle of a file is tried again by these, from the next request on.

    async def _cat_file(self, path: str, *arguments: Any, **options: Any) -> Any:
        # With more than one piece at a time it would first ask for the size, of a listing that it has kept: a
        # file that was put there since would not be there.
        with _in_one_line(path):
            return await super()._cat_file(path, *arguments, **{"max_concurrency": 1, **options})

    async def _get_file(self, rpath: str, lpath: str, *arguments: Any, **options: Any) -> None:
        with _in_one_line(rpath):
            await super()._get_file(rpath, lpath, *arguments, **options)


@contextmanager
def _in_one_line(where: str) -> Iterator[None]:
    """Turn what no file system raises into one line for the user."""
    try:
        yield
    except Exception as error:  # of three libraries; what no user can put right is raised as it is
        reason = " ".join(str(error).split()) or type(error).__name__
        if _passes(error):
            raise TransientError(
                f"{where}: the store has not answered for {PATIENCE_SECONDS:.0f} s ({reason}); see to it "
                "(EVAL_STORE, AWS_ENDPOINT_URL, the network), then run it again: what was finished is kept"
            ) from error
        if isinstance(error, BotoCoreError):
            raise UserError(
                f"{where}: {reason}; check AWS_ACCESS_KEY_ID or AWS_PROFILE, and AWS_ENDPOINT_URL"
            ) from error
        raise


def _passes(error: BaseException) -> bool:
    """Whether the store gave no answer, or one that says to come back later."""
    if isinstance(error, _NO_ANSWER):
        return True
    answer = error if isinstance(error, ClientError) else error.__cause__
    if not isinstance(answer, ClientError):
        return False
    # The answer to HEAD has no text: only its status tells.
    status = answer.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status in _PASSING or answer.response.get("Error", {}).get("Code") == "RequestTimeout"
