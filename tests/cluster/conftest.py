"""One Ray for all tests that need it. Its environment is set before anything imports Ray."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

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


@pytest.fixture(scope="session")
def ssl_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SSLConfig in text format, with a certificate of its own for localhost."""
    issued = trustme.CA().issue_cert("localhost", "127.0.0.1")
    path = tmp_path_factory.mktemp("tls") / "ssl.config"
    path.write_text(
        ssl_config_text(issued.private_key_pem.bytes(), issued.cert_chain_pems[0].bytes())
    )
    return path


def ssl_config_text(key: bytes, cert: bytes, more: str = "") -> str:
    """An SSLConfig of PEMs."""
    return f"server_key: {json.dumps(key.decode())}\nserver_cert: {json.dumps(cert.decode())}{more}"
