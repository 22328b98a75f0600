"""One Ray for all tests that need it. Its environment is set before anything imports Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from shardserve.cluster import environment
from shardserve.cluster.environment import IngressPorts
from shardserve.cluster.ports import free_ports

environment.apply(environment.local_settings(IngressPorts(*free_ports(4))), os.environ)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A Ray of this run's own, in the namespace that controllers have."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=1,  # Whether there is one or not.
        namespace="shardserve",
        include_dashboard=False,
        object_store_memory=200 << 20,
        log_to_driver=False,
        logging_level="error",
    )
    yield
    ray.shutdown()
