from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.serving_kserve import (
    _REQUEST,
    _RESPONSE,
    grpc_predictions,
    grpc_request,
    json_predictions,
    json_request,
)

INPUTS = {
    "dense": np.array([[0.1, 0.5]], np.float32),
    "ids": np.array([[1, 2, 3]], np.int64),
}


def test_json_carries_names_shapes_types_and_flat_data() -> None:
    assert json.loads(json_request(INPUTS)) == {
        "inputs": [
            {"name": "dense", "shape": [1, 2], "datatype": "FP32", "data": [0.1, 0.5]},
            {"name": "ids", "shape": [1, 3], "datatype": "INT64", "data": [1, 2, 3]},
        ]
    }


def test_grpc_carries_the_same_with_raw_contents() -> None:
    request = _REQUEST.FromString(grpc_request("model")(INPUTS))
    assert request.model_name == "model"
    assert [(one.name, one.datatype, list(one.shape)) for one in request.inputs] == [
        ("dense", "FP32", [1, 2]),
        ("ids", "INT64", [1, 3]),
    ]
    assert list(request.raw_input_contents) == [value.tobytes() for value in INPUTS.values()]


def test_predictions_are_read_from_the_one_output() -> None:
    predictions = np.array([0.25, 0.5], np.float32)
    reply = _RESPONSE(raw_output_contents=[predictions.tobytes()]).SerializeToString()
    assert np.array_equal(grpc_predictions(reply), predictions)
    assert np.array_equal(json_predictions(b'{"outputs": [{"data": [0.25, 0.5]}]}'), predictions)


@pytest.mark.parametrize("reply", [b"{}", b'{"outputs": []}', b'{"outputs": [{}]}', b"not JSON"])
def test_what_is_no_reply_is_refused(reply: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        json_predictions(reply)


@pytest.mark.parametrize("reply", [b"", b"\xff"])
def test_what_is_no_message_is_refused(reply: bytes) -> None:
    with pytest.raises(ValueError, match="no output"):
        grpc_predictions(reply)
