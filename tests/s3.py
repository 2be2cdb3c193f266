"""An S3 server on loopback (moto), reached as any other: s3fs, botocore and HTTP."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers import free_port, serving


@contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """Start the server; yields the environment variables that lead a client to it."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with serving(command, f"{url}/moto-api/", folder / "s3.log", folder=folder, environment=dict(os.environ)):
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
