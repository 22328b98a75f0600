"""A server on each engine for all the contract's cases, and one client for each wire."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.contract.clients import GrpcClient, RestClient
from tests.contract.endpoint import Endpoint
from tests.contract.engines import ENGINES, engine_server
from tests.contract.servers import local_server


@pytest.fixture(scope="session")
def model_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("contract")


@pytest.fixture(scope="session", params=ENGINES)
def endpoint(request: pytest.FixtureRequest, model_root: Path) -> Iterator[Endpoint]:
    with engine_server(request.param, model_root) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def posed(model_root: Path) -> Iterator[Endpoint]:
    with local_server(model_root) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def posed_rest(posed: Endpoint) -> RestClient:
    return RestClient(posed)


@pytest.fixture(scope="session")
def posed_rpc(posed: Endpoint) -> Iterator[GrpcClient]:
    with grpc.insecure_channel(posed.grpc) as channel:
        yield GrpcClient(channel)


@pytest.fixture(scope="session")
def rest(endpoint: Endpoint) -> RestClient:
    return RestClient(endpoint)


@pytest.fixture(scope="session")
def rpc(endpoint: Endpoint) -> Iterator[GrpcClient]:
    with grpc.insecure_channel(endpoint.grpc) as channel:
        yield GrpcClient(channel)
