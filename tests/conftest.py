"""What tests of more than one package need."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from examples.dlrm import export, tiny_config
from shardserve.router.session import StageThreads
from tests.exports import EXPORTS
from tests.uncut import Uncut

# How long an example takes says more of the machine than of what is tested.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

#: Whose tests start servers, and the one Ray of a run.
_WITH_SERVERS = ("tests/cluster/", "tests/contract/")


class ServersTogether(LoadScopeScheduling):
    """One process has all tests with servers, which wait a lot; others have one file at a time.

    So what a module shares is made once, as is what those with servers share.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "servers" if nodeid.startswith(_WITH_SERVERS) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ServersTogether:
    """Where `-n` has several processes share the tests."""
    return ServersTogether(config, log)


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that routers and shards run on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def tiny_dlrm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base path of the example model, small: 26 tables of up to 1,000 x 16."""
    base_path = tmp_path_factory.mktemp("dlrm")
    export(tiny_config(), base_path)
    return base_path


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The version directory of a model of `tests.exports`, exported the first time it is asked for.

    Many tests read it; none writes into it.
    """
    root = tmp_path_factory.mktemp("saved_models")

    @functools.cache
    def exported(name: str) -> Path:
        path = root / name / "1"
        EXPORTS[name](path)
        return path

    return exported


@pytest.fixture(scope="session")
def threads() -> Iterator[StageThreads]:
    threads = StageThreads(2)
    yield threads
    threads.close()


@pytest.fixture(scope="module")
def uncut(saved_model: Callable[[str], Path]) -> Iterator[Callable[[str], Uncut]]:
    """TensorFlow's own answers for a model of `saved_model`."""
    loaded: dict[str, Uncut] = {}

    def load(name: str) -> Uncut:
        if name not in loaded:
            loaded[name] = Uncut(saved_model(name))
        return loaded[name]

    yield load
    for one in loaded.values():
        one.close()
