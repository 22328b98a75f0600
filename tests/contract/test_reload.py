"""Configurations that come while the server serves. Each case leaves the one that there was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tensorflow_serving.config import model_server_config_pb2

from tests.contract.clients import GrpcClient, RestClient
from tests.contract.endpoint import Endpoint
from tests.contract.models import export_half_plus_two
from tests.contract.requests import half, reload, spec, status

RELOAD = "HandleReloadConfigRequest"


@pytest.fixture
def config(
    rpc: GrpcClient, endpoint: Endpoint
) -> Iterator[model_server_config_pb2.ModelServerConfig]:
    """What is served, to be changed; it is served again afterwards."""
    changed = model_server_config_pb2.ModelServerConfig()
    changed.CopyFrom(endpoint.config)
    yield changed
    rpc.call(RELOAD, reload(endpoint.config))


def add(config: Any, name: str, base_path: Path | str, platform: str = "tensorflow") -> Any:
    return config.model_config_list.config.add(
        name=name, base_path=str(base_path), model_platform=platform
    )


def states(rpc: GrpcClient, name: str) -> dict[int, int]:
    reply = rpc.call("GetModelStatus", status(spec(name)))
    return {row.version: row.state for row in reply.model_version_status}


def test_a_model_that_is_added_answers_when_the_reload_does_and_goes_when_it_is_left_out(
    rpc: GrpcClient, rest: RestClient, endpoint: Endpoint, config: Any, tmp_path: Path
) -> None:
    export_half_plus_two(tmp_path / "00000007")
    add(config, "added", tmp_path)
    rpc.call(RELOAD, reload(config))
    assert rest.predict("added", {"instances": [1.0]}).json == {"predictions": [2.5]}
    assert states(rpc, "added") == {7: 30}

    rpc.call(RELOAD, reload(endpoint.config))
    while rest.predict("added", {"instances": [1.0]}).status != 404:
        pass
    while states(rpc, "added") != {7: 50}:
        pass
    assert rest.predict("half_plus_two", {"instances": [1.0]}).status == 200


def test_a_model_that_cannot_be_loaded_fails_the_reload_and_no_other_model(
    rpc: GrpcClient, rest: RestClient, config: Any, tmp_path: Path
) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"no graph")
    add(config, "bad", tmp_path)
    code, text = rpc.refusal(RELOAD, reload(config))
    assert code is grpc.StatusCode.UNKNOWN
    assert "1 model(s) did not become available: {{{name: bad version: 1} due to error: " in text
    assert states(rpc, "bad") == {1: 50}
    assert rest.predict("half_plus_two", {"instances": [1.0]}).status == 200


def test_a_label_moves_to_a_version_that_answers_only(
    rpc: GrpcClient, config: Any, endpoint: Endpoint
) -> None:
    labels = config.model_config_list.config[0].version_labels
    labels["stable"] = 122
    code, text = rpc.refusal(RELOAD, reload(config))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert text.startswith(
        "Request to assign label to version 122 of model half_plus_two, which is not currently "
        "available for inference"
    )
    assert rpc.call("Predict", half(label="stable")).model_spec.version.value == 123

    labels["stable"] = 123
    labels["fresh"] = 123
    rpc.call(RELOAD, reload(config))
    assert rpc.call("Predict", half(label="fresh")).model_spec.version.value == 123
    rpc.call(RELOAD, reload(endpoint.config))
    assert rpc.refusal("Predict", half(label="fresh"))[1].startswith("Unrecognized servable")


def test_configurations_that_cannot_be_are_refused_whole(
    rpc: GrpcClient, endpoint: Endpoint, tmp_path: Path
) -> None:
    wrong: list[tuple[tuple[str, Path | str, str], str]] = [
        (("half_plus_two", tmp_path, "tensorflow"), "Illegal to list model half_plus_two multiple"),
        (("other", "relative/path", "tensorflow"), "Expected model other to have an absolute path"),
        (("other", tmp_path, ""), "Illegal setting neither ModelServerConfig::model_type"),
        (("other", tmp_path, "caffe"), "unsupported platform"),
        (("a/b", tmp_path, "tensorflow"), "must not be empty or hold"),
    ]
    for (name, path, platform), text in wrong:
        config = model_server_config_pb2.ModelServerConfig()
        config.CopyFrom(endpoint.config)
        add(config, name, path, platform)
        code, said = rpc.refusal(RELOAD, reload(config))
        assert (code, text in said) == (grpc.StatusCode.INVALID_ARGUMENT, True), said
    config.CopyFrom(endpoint.config)
    config.model_config_list.config[1].model_platform = "onnx"
    _, said = rpc.refusal(RELOAD, reload(config))
    assert said.startswith("Illegal to change a model's platform. For model examples platform was")
    assert rpc.call("Predict", half())
