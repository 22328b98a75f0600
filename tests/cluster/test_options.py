from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from shardserve.batching.errors import InvalidArgument
from shardserve.cluster.model_config import ModelConfig
from shardserve.cluster.options import (
    Application,
    DoorOptions,
    Engine,
    Models,
    RayOptions,
    ServeOptions,
    check,
)
from shardserve.router.tls import Tls

GOOD = ServeOptions(Models((ModelConfig("dlrm", Path("/models/dlrm")),)))


def test_the_defaults_are_tensorflow_servings() -> None:
    check(GOOD)

    assert (GOOD.doors.grpc_port, GOOD.doors.rest_port, GOOD.doors.rest_timeout) == (8500, 0, 30.0)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (replace(GOOD, doors=DoorOptions(grpc_port=0)), "--port and --rest_api_port are both 0"),
        (replace(GOOD, doors=DoorOptions(rest_port=8500)), "--port and --rest_api_port are both"),
        (replace(GOOD, doors=DoorOptions(rest_port=65536)), "--rest_api_port must be in"),
        (replace(GOOD, doors=DoorOptions(grpc_port=-1)), "--port must be in"),
        (replace(GOOD, doors=DoorOptions(rest_port=8000)), "--serve_http_port are both 8000"),
        (replace(GOOD, ray=RayOptions(routers=0)), "--routers"),
        (replace(GOOD, doors=DoorOptions(grpc_socket="/" * 108)), "longer than the 107 bytes"),
        (
            replace(GOOD, doors=DoorOptions(grpc_socket="/s"), ray=RayOptions(routers=2)),
            "--grpc_socket_path takes one router",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_the_name_of_its_flag(bad: ServeOptions, named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        check(bad)


def test_the_local_engine_has_no_ingress_to_collide_with() -> None:
    check(replace(GOOD, engine=Engine.LOCAL, doors=DoorOptions(rest_port=8000)))


def test_a_socket_alone_is_something_to_serve_on() -> None:
    check(replace(GOOD, doors=DoorOptions(grpc_port=0, grpc_socket="/run/model.sock")))


def test_what_ray_keeps_of_an_application_has_no_key() -> None:
    doors = DoorOptions(tls=Tls(b"a secret", b"a certificate"))
    application = Application("run", "run", doors, RayOptions())

    kept = application.without_key()

    assert b"a secret" not in pickle.dumps(kept)
    assert replace(kept, doors=doors) == application
