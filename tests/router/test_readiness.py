"""A probe is told whether every configured model can be asked, and to go away before the end."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from shardserve.router.catalog import Catalog, Model, State, Version
from shardserve.router.handlers import Handlers
from shardserve.router.metrics import Metrics
from shardserve.router.readiness import READY_PATH, readiness
from shardserve.router.rest import Rest
from shardserve.router.session import StageThreads

STATES = st.sampled_from(State)
VERSIONS = st.dictionaries(st.integers(0, 5), STATES.map(Version), max_size=4)
MODELS = st.dictionaries(
    st.text(max_size=3), st.builds(Model, VERSIONS, is_configured=st.booleans()), max_size=4
)


@given(MODELS, st.booleans())
def test_ready_is_who_answers_for_every_configured_model(models: Any, draining: bool) -> None:
    found = readiness(Catalog(models), draining=draining)
    for name, model in models.items():
        answers = State.AVAILABLE in [one.state for one in model.versions.values()]
        assert (name in found.missing) == (model.is_configured and not answers)
    assert found.is_ready == (not draining and not found.missing)


@pytest.fixture
def catalog() -> Catalog:
    return Catalog({"m": Model({1: Version(State.AVAILABLE)})})


@pytest.fixture
def rest(catalog: Catalog, threads: StageThreads) -> Rest:
    return Rest(Handlers(catalog, threads), Metrics(CollectorRegistry()))


async def probed(rest: Rest, method: str = "GET", path: str = READY_PATH) -> tuple[int, Any]:
    response = await rest.handle(method, path, {}, b"")
    return response.status, orjson.loads(response.body)


async def test_the_probe_says_what_is_missing(rest: Rest, catalog: Catalog) -> None:
    assert await probed(rest) == (200, {"ready": True, "draining": False, "missing": []})
    catalog.replace({"m": Model({1: Version(State.LOADING)}), "n": Model({})})
    assert await probed(rest) == (503, {"ready": False, "draining": False, "missing": ["m", "n"]})


async def test_the_probe_knows_before_the_doors_close(rest: Rest) -> None:
    rest.drain()
    assert await probed(rest) == (503, {"ready": False, "draining": True, "missing": []})


async def test_probes_are_no_requests(rest: Rest) -> None:
    assert (await probed(rest, "HEAD"))[0] == 200
    page = await rest.handle("GET", "/monitoring/prometheus/metrics", {}, b"")
    assert b"request_count{" not in page.body


@pytest.mark.parametrize(("method", "path"), [("POST", READY_PATH), ("GET", READY_PATH + "?a=b")])
async def test_what_is_no_probe_is_not_found(rest: Rest, method: str, path: str) -> None:
    assert (await probed(rest, method, path))[0] == 404
