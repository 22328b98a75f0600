from __future__ import annotations

from shardserve.cluster.environment import (
    SERVE_SETTINGS,
    IngressPorts,
    apply,
    join_settings,
    local_settings,
)

PORTS = IngressPorts(1001, 1002, 1003, 1004)


def test_every_run_of_a_ray_of_our_own_asks_for_a_token_of_its_own() -> None:
    first, second = local_settings(PORTS), local_settings(PORTS)

    assert first["RAY_AUTH_MODE"] == "token"
    assert len(first["RAY_AUTH_TOKEN"]) == 64
    assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]


def test_serve_leaves_tensorflow_servings_ports_alone() -> None:
    for settings in (local_settings(PORTS), join_settings()):
        assert {settings[name] for name in SERVE_SETTINGS}.isdisjoint({"8500", "8501"})


def test_what_the_user_has_set_stays() -> None:
    environ = {"RAY_AUTH_MODE": "disabled"}

    apply(local_settings(PORTS), environ)

    assert environ["RAY_AUTH_MODE"] == "disabled"
    assert environ["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
