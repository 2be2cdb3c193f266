"""The cluster that most of its own tests use; others make one of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes import Cluster
from tests.kubernetes.clients import NAMESPACE, NODES, Clients, connect


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A node without and one with GPUs."""
    with Cluster(tmp_path, NODES, namespaces=[NAMESPACE], node_grace=0.5, time_scale=0.02) as cluster:
        yield cluster


@pytest.fixture
def clients(cluster: Cluster) -> Clients:
    """The official client."""
    return connect(cluster)
