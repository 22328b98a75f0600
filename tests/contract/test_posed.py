"""What a server passes through too quickly to be asked about, posed: a catalog made by hand."""

from __future__ import annotations

import grpc
import numpy as np
import tensorflow as tf

from tests.contract.clients import GrpcClient, RestClient
from tests.contract.requests import predict, session_run, spec, status

X = np.array([1.0, 2.0], np.float32)
FULL = "The batch scheduling queue is full"


def test_a_model_of_which_no_version_has_come_up_is_not_found(posed_rpc: GrpcClient) -> None:
    code, text = posed_rpc.refusal("Predict", predict(spec("new")))
    assert (code, text) == (
        grpc.StatusCode.NOT_FOUND,
        "Servable not found for request: Latest(new)",
    )
    [row] = posed_rpc.call("GetModelStatus", status(spec("new"))).model_version_status
    assert row.state == 10


def test_a_full_queue_refuses_before_a_request_is_decoded(
    posed_rpc: GrpcClient, posed_rest: RestClient
) -> None:
    for x in (X, np.zeros(5000, np.float32)):
        refusal = posed_rpc.refusal("Predict", predict(spec("busy"), x=x))
        assert refusal == (grpc.StatusCode.UNAVAILABLE, FULL)
    reply = posed_rest.send("POST", "/v1/models/busy:predict", b"{")
    assert (reply.status, reply.json) == (503, {"error": FULL})


def test_a_session_feeds_and_fetches_inner_tensors_where_there_is_one(
    posed_rpc: GrpcClient,
) -> None:
    asked = session_run(
        spec("types"), {"x_float:0": X, "x_int32:0": np.array(3, np.int32)},
        ("Identity_10:0", "Identity:0"), ("Identity",),
    )  # fmt: skip
    reply = posed_rpc.call("SessionRun", asked)
    values = {named.name: tf.make_ndarray(named.tensor).tolist() for named in reply.tensor}
    assert values == {"Identity_10:0": 3, "Identity:0": [1.0, 2.0]}


def test_a_session_of_tensors_that_there_are_not_is_refused(posed_rpc: GrpcClient) -> None:
    asked = session_run(spec("types"), {"nothing:0": X}, ("x_float:0",))
    assert posed_rpc.refusal("SessionRun", asked)[0] is grpc.StatusCode.INVALID_ARGUMENT
