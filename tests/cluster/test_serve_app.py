"""Routers beside others' applications in one real Serve: what is ended, and when."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray import serve
from ray.serve.config import ProxyLocation
from ray.serve.schema import ServeInstanceDetails

from shardserve.cluster import serve_app, serve_state
from shardserve.cluster.dead_runs import delete_dead
from shardserve.cluster.ingress import ADDERS
from shardserve.cluster.kept import Kept, kept_runs
from shardserve.cluster.options import Application, DoorOptions, Models, RayOptions, ServeOptions
from shardserve.cluster.ray_run import RayRun
from shardserve.cluster.run import new_name
from shardserve.cluster.serve_ingress import ServeIngress
from shardserve.cluster.serve_state import ingress_of, may_end
from shardserve.cluster.stop_signals import StopSignals
from shardserve.router.tls import Tls


@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0})
class Anything:
    """An application of somebody's."""


def deployed(*names: str) -> None:
    app = Anything.bind()  # type: ignore[attr-defined]
    serve.run_many([serve.RunTarget(app, name=name, route_prefix=None) for name in names])


def guest(name: str) -> Application:
    return Application(name, name, DoorOptions(), RayOptions(address="auto", serve_http_port=0))


@pytest.fixture
def our_serve(ray_cluster: None) -> Iterator[None]:
    """A Serve that a run of ours has started."""
    serve_app._start_serve(guest(new_name()))
    yield
    serve.shutdown()


@pytest.mark.usefixtures("our_serve")
def test_a_run_that_ends_ends_serve_only_when_nobody_else_is_served() -> None:
    ours, other = new_name(), new_name()
    deployed(ours, other, "theirs")
    Kept(other).put("opened", b"1")

    serve_app.withdraw(guest(ours))
    assert set(serve.status().applications) == {other, "theirs"}

    # Nobody has a controller for the other run.
    delete_dead()
    assert set(serve.status().applications) == {"theirs"}
    assert other not in kept_runs()

    assert ingress_of(serve_state.details()) == ServeIngress()
    serve.delete("theirs")
    serve_app.withdraw(guest(ours))
    assert serve_state.controller() is None
    assert "serve" not in kept_runs()
    serve_app.withdraw(guest(ours))


def test_a_serve_that_others_started_or_use_is_left_alone() -> None:
    assert may_end((), we_started=True)
    assert not may_end(("theirs",), we_started=True)
    assert not may_end((), we_started=False)


@pytest.mark.parametrize(
    ("location", "adders", "expected"),
    [
        (ProxyLocation.EveryNode, ADDERS, ServeIngress("::", 8123, 9123)),
        (ProxyLocation.HeadOnly, ["theirs.add"], ServeIngress("::", 8123, 0)),
        (ProxyLocation.Disabled, ADDERS, ServeIngress()),
    ],
)
def test_serves_own_ports_are_known(
    location: ProxyLocation, adders: list[str], expected: ServeIngress
) -> None:
    details = {
        "proxy_location": location,
        "http_options": {"host": "::", "port": 8123},
        "grpc_options": {"port": 9123, "grpc_servicer_functions": adders},
        "proxies": {},
        "applications": {},
    }
    assert ingress_of(ServeInstanceDetails(**details)) == expected


def test_what_a_controller_is_made_with_has_no_key() -> None:
    doors = DoorOptions(tls=Tls(b"a secret", b"a certificate"), tls_file=Path("ssl.config"))
    run = RayRun("run", ServeOptions(Models(()), doors=doors), StopSignals())._run()

    assert b"a secret" not in pickle.dumps(run)
    assert run.application is not None
    assert run.application.doors.tls_file == doors.tls_file
