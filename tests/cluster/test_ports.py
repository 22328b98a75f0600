from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from shardserve.batching.errors import FailedPrecondition
from shardserve.cluster.ports import check_free, free_ports


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_port_that_somebody_would_share_is_refused_by_the_name_of_its_flag(taken: int) -> None:
    with pytest.raises(FailedPrecondition, match=f"--rest_api_port={taken}: cannot listen on"):
        check_free("127.0.0.1", {"--port": 0, "--rest_api_port": taken})


def test_free_ports_are_different_and_free() -> None:
    ports = free_ports(4)

    assert len(set(ports)) == 4
    check_free("127.0.0.1", {f"--{port}": port for port in ports})
