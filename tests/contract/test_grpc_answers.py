"""What each RPC answers when all is well."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import get_model_metadata_pb2

from tests.contract.clients import GrpcClient
from tests.contract.endpoint import Endpoint
from tests.contract.models import TYPES
from tests.contract.requests import (
    classify,
    example,
    examples,
    half,
    metadata,
    multi,
    predict,
    regress,
    reload,
    session_run,
    spec,
    status,
    task,
)


@pytest.mark.parametrize("options", [{}, {"version": 123}, {"label": "stable"}])
def test_a_prediction_names_what_answered(rpc: GrpcClient, options: dict[str, Any]) -> None:
    reply = rpc.call("Predict", half(**options))
    assert list(reply.outputs["y"].float_val) == [2.5]
    assert reply.model_spec == spec("half_plus_two", 123, signature="serving_default")


def test_a_client_s_other_fields_are_not_looked_at(rpc: GrpcClient) -> None:
    request = half()
    request.client_id = b"me"
    request.predict_streamed_options.return_single_response = True
    assert list(rpc.call("Predict", request).outputs["y"].float_val) == [2.5]


def test_a_signature_of_any_method_predicts(rpc: GrpcClient) -> None:
    assert rpc.call("Predict", half(signature="odd")).outputs.keys() == {"y"}
    raw = example(x=3.0).SerializeToString()
    asked = predict(spec("examples", signature="regress"), inputs=np.array([raw], object))
    assert list(rpc.call("Predict", asked).outputs["outputs"].float_val) == [6.0]


def test_only_the_outputs_of_the_filter_come_back(rpc: GrpcClient) -> None:
    inputs = {"a": np.ones((1, 2), np.float32), "b": np.array([b"s"], object)}
    asked = predict(spec("types", signature="several"), ("total",), **inputs)
    assert rpc.call("Predict", asked).outputs.keys() == {"total"}


SAMPLES = {
    "bool": [[True, False]],
    "string": [[b"a", b"\xff\0"]],
    "complex64": [[1 + 2j, -0.5j]],
    "complex128": [[1 + 2j, -0.5j]],
}


def sample(kind: str) -> np.ndarray:
    if kind in SAMPLES:
        return np.array(SAMPLES[kind], tf.as_dtype(kind).as_numpy_dtype)
    if kind.startswith("q"):
        bits = np.array([[0, 1, 100]], kind[1:])
        return bits.view(tf.as_dtype(kind).as_numpy_dtype)
    return np.array([[0, 1, 100]]).astype(tf.as_dtype(kind).as_numpy_dtype)


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_comes_back_as_it_went(rpc: GrpcClient, kind: str) -> None:
    sent = tf.make_tensor_proto(sample(kind), tf.as_dtype(kind))
    reply = rpc.call("Predict", predict(spec("types", signature=kind), x=sent)).outputs["y"]
    assert reply.dtype == sent.dtype
    assert not reply.tensor_content
    np.testing.assert_array_equal(tf.make_ndarray(reply), tf.make_ndarray(sent))


def test_odd_tensors_are_read_as_tensorflow_reads_them(rpc: GrpcClient) -> None:
    shape = {"dim": [{"size": 3}]}
    cases = [
        (tensor_pb2.TensorProto(dtype=1, float_val=[1, 2], tensor_shape=shape), [1, 2, 2]),
        (tensor_pb2.TensorProto(dtype=1, float_val=[1, 2, 3, 4], tensor_shape=shape), [1, 2, 3]),
        (tensor_pb2.TensorProto(dtype=1, tensor_shape=shape), [0, 0, 0]),
        (
            tensor_pb2.TensorProto(dtype=1, float_val=[5], tensor_shape={"unknown_rank": True}),
            5,
        ),
    ]
    for proto, expected in cases:
        reply = rpc.call("Predict", predict(spec("types", signature="float"), x=proto))
        np.testing.assert_array_equal(tf.make_ndarray(reply.outputs["y"]), expected)
    content = tensor_pb2.TensorProto(
        dtype=7, tensor_content=b"\x01\x02abb", tensor_shape={"dim": [{"size": 2}]}
    )
    reply = rpc.call("Predict", predict(spec("types", signature="string"), x=content))
    assert list(reply.outputs["y"].string_val) == [b"a", b"bb"]


# Classify, Regress, MultiInference

TWO = examples(example(x=1.0, name=b"a"), example(x=2.0))


def classes(result: Any) -> list[list[tuple[str, float]]]:
    return [[(c.label, c.score) for c in row.classes] for row in result.classifications]


def test_classes_have_labels_and_scores(rpc: GrpcClient) -> None:
    reply = rpc.call("Classify", classify(given=TWO))
    assert classes(reply.result) == [[("a0", 1.0), ("a1", 2.0)], [("n0", 2.0), ("n1", 3.0)]]
    assert reply.model_spec == spec("examples", 1, signature="classify")


def test_classes_may_have_one_of_both(rpc: GrpcClient) -> None:
    labels = rpc.call("Classify", classify("labels", TWO)).result
    assert classes(labels) == [[("a0", 0.0), ("a1", 0.0)], [("n0", 0.0), ("n1", 0.0)]]
    scores = rpc.call("Classify", classify("scores", TWO)).result
    assert classes(scores) == [[("", 1.0), ("", 2.0)], [("", 2.0), ("", 3.0)]]


@pytest.mark.parametrize("signature", ["regress", ""])
def test_regressions_are_values(rpc: GrpcClient, signature: str) -> None:
    reply = rpc.call("Regress", regress(signature, examples(example(x=1.5), example(x=0.0))))
    assert [row.value for row in reply.result.regressions] == [3.0, 0.0]
    expected = spec("examples", 1, signature=signature or "serving_default")
    assert reply.model_spec == expected


def test_a_context_is_merged_into_each_example(rpc: GrpcClient) -> None:
    given = examples(example(x=1.0), example(x=2.0, name=b"b"), context=example(name=b"c"))
    result = rpc.call("Classify", classify("labels", given)).result
    assert [row[0][0] for row in classes(result)] == ["c0", "b0"]
    only = examples(example(), context=example(x=4.0))
    assert rpc.call("Regress", regress(given=only)).result.regressions[0].value == 8.0


def test_an_example_without_its_feature_is_refused_by_the_graph(rpc: GrpcClient) -> None:
    _, text = rpc.refusal("Regress", regress(given=examples(example())))
    assert "x" in text


def test_tasks_are_answered_in_their_order(rpc: GrpcClient) -> None:
    asked = multi(task("regress", "regress"), task("classify", "classify"), given=TWO)
    first, second = rpc.call("MultiInference", asked).results
    assert [row.value for row in first.regression_result.regressions] == [2.0, 4.0]
    assert classes(second.classification_result)[0] == [("a0", 1.0), ("a1", 2.0)]
    assert first.model_spec == spec("examples", 1, signature="regress")
    assert second.model_spec == spec("examples", 1, signature="classify")


def test_large_results_come_whole(rpc: GrpcClient) -> None:
    given = examples(*[example(x=float(n)) for n in range(40_000)])
    values = rpc.call("Regress", regress(given=given)).result.regressions
    assert [row.value for row in values] == [2.0 * n for n in range(40_000)]
    rows = rpc.call("Classify", classify(given=given)).result.classifications
    assert [row.classes[1].score for row in rows] == [n + 1.0 for n in range(40_000)]


# Models


def test_metadata_are_the_saved_model_s_signatures(rpc: GrpcClient) -> None:
    reply = rpc.call("GetModelMetadata", metadata(spec("half_plus_two"), "signature_def"))
    assert reply.model_spec == spec("half_plus_two", 123)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert reply.metadata["signature_def"].Unpack(signatures)
    assert signatures.signature_def["serving_default"].inputs["x"].name == "x:0"


def test_status_has_every_version_newest_first(rpc: GrpcClient, endpoint: Endpoint) -> None:
    reply = rpc.call("GetModelStatus", status(spec("half_plus_two", label="no such")))
    rows = [(row.version, row.state) for row in reply.model_version_status]
    assert rows == [(125, 50), (124, 20), (123, 30), (122, 50)]
    failed = reply.model_version_status[0].status
    assert failed.error_code == endpoint.failure.code
    assert endpoint.failure.text in failed.error_message
    [row] = rpc.call("GetModelStatus", status(spec("half_plus_two", 123))).model_version_status
    assert (row.version, row.status.error_code) == (123, 0)


def test_a_reload_tells_how_counters_rose(rpc: GrpcClient, endpoint: Endpoint) -> None:
    metrics = ("/tensorflow/serving/request_count", "/no/such")
    reply = rpc.call("HandleReloadConfigRequest", reload(endpoint.config, metrics))
    assert reply.status.error_code == 0
    assert [(m.name, m.int64_value_increase) for m in reply.metric] == [
        ("/tensorflow/serving/request_count", 0)
    ]


# Sessions

X = np.array([1.0, 2.0], np.float32)


def tensors(reply: Any) -> dict[str, Any]:
    return {named.name: tf.make_ndarray(named.tensor).tolist() for named in reply.tensor}


@pytest.mark.parametrize(
    ("feed", "fetch", "by_alias"), [("x:0", "y:0", False), ("x", "y", False), ("x", "y", True)]
)
def test_a_session_runs_by_tensor_and_by_alias(
    rpc: GrpcClient, feed: str, fetch: str, by_alias: bool
) -> None:
    asked = session_run(spec("half_plus_two"), {feed: X}, (fetch,), by_alias=by_alias)
    reply = rpc.call("SessionRun", asked)
    assert tensors(reply) == {fetch: [2.5, 3.0]}
    assert reply.model_spec.version.value == 123
