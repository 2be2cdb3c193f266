"""A Google Cloud Storage server on loopback (gcp-storage-emulator), and a precondition that it leaves out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

from tests.servers import free_port

BUCKET = "results"


@contextmanager
def google_storage() -> Iterator[dict[str, str]]:
    """Start the server with an empty bucket; yields the environment variables that lead a client to it."""
    emulator.HANDLERS = tuple(
        (path, {method: _conditional(handler) for method, handler in handlers.items()})
        for path, handlers in emulator.HANDLERS
    )
    port = free_port()
    with emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET):
        yield {
            "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}",
            "FSSPEC_GS": '{"token": "anon", "project": "tests"}',
            # Otherwise the client asks for the bucket's kind over gRPC, which the server doesn't speak.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }


def _conditional(handler: Callable[..., Any]) -> Callable[..., Any]:
    """An upload that takes ``ifGenerationMatch=0`` as Google does: 412 where the object is there."""
    if handler is not objects.insert:
        return handler

    def insert(request: Any, response: Any, storage: Any, *rest: Any, **named: Any) -> Any:
        if request.query.get("ifGenerationMatch") == ["0"]:
            try:
                meta = request.data.get("meta", {}) if isinstance(request.data, dict) else {}
                name = request.query.get("name", [meta.get("name")])[0]
                storage.get_file_obj(request.params["bucket_name"], name)
            except NotFound:
                pass
            else:
                response.status = HTTPStatus.PRECONDITION_FAILED
                return None
        return handler(request, response, storage, *rest, **named)

    return insert
