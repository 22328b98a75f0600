"""Every row of the original's table of errors, over gRPC: the code, and the text."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    model_management_pb2,
    predict_pb2,
    session_service_pb2,
)

from tests.contract.clients import GrpcClient
from tests.contract.requests import (
    classify,
    examples,
    half,
    metadata,
    multi,
    predict,
    regress,
    session_run,
    spec,
    status,
    task,
)

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED
UNKNOWN = grpc.StatusCode.UNKNOWN

X = np.array([1.0], np.float32)

HALF = spec("half_plus_two")


def broken() -> predict_pb2.PredictRequest:
    proto = tensor_pb2.TensorProto(dtype=1, tensor_content=b"abc")
    return predict(HALF, x=proto)


def typeless() -> predict_pb2.PredictRequest:
    return predict(HALF, x=tensor_pb2.TensorProto(dtype=0))


ROWS: list[tuple[str, Any, grpc.StatusCode, str]] = [
    # The model
    ("Predict", predict_pb2.PredictRequest(), INVALID, "Missing ModelSpec"),
    ("Predict", predict(spec("")), INVALID, "ModelSpec has no name specified."),
    ("Predict", predict(spec("m")), NOT_FOUND, "Servable not found for request: Latest(m)"),
    (
        "Predict",
        half(version=7),
        NOT_FOUND,
        "Servable not found for request: Specific(half_plus_two, 7)",
    ),
    (
        "Predict",
        half(version=0),
        NOT_FOUND,
        "Servable not found for request: Specific(half_plus_two, 0)",
    ),
    (
        "Predict",
        half(version=122),
        NOT_FOUND,
        "Servable not found for request: Specific(half_plus_two, 122)",
    ),
    (
        "Predict",
        half(version=124),
        NOT_FOUND,
        "Servable not found for request: Specific(half_plus_two, 124)",
    ),
    ("Predict", half(label="L"), INVALID, "Unrecognized servable version label: L"),
    ("Predict", predict(spec("m", label="L")), INVALID, "Unrecognized servable version label: L"),
    (
        "Predict",
        half(label="old"),
        NOT_FOUND,
        "Servable not found for request: Specific(half_plus_two, 122)",
    ),
    ("Classify", classification_pb2.ClassificationRequest(), INVALID, "Missing ModelSpec"),
    ("Classify", classify(version=7), NOT_FOUND, "Servable not found for request: Specific(ex"),
    ("Regress", regress(label="L"), INVALID, "Unrecognized servable version label: L"),
    ("SessionRun", session_service_pb2.SessionRunRequest(), INVALID, "Missing ModelSpec"),
    # The signature
    ("Predict", half(signature="s"), PRECONDITION, 'Serving signature key "s" not found.'),
    ("Classify", classify("s"), INVALID, "No signature was found with the name: s"),
    ("Regress", regress("s"), INVALID, "No signature was found with the name: s"),
    (
        "MultiInference",
        multi(task("s", "regress")),
        INVALID,
        "Requested signature not found in model graph: s",
    ),
    # Several tasks
    ("MultiInference", multi(), INVALID, "ModelSpec has no name specified."),
    (
        "MultiInference",
        multi(task("regress", "regress", model="")),
        INVALID,
        "ModelSpec has no name specified.",
    ),
    (
        "MultiInference",
        multi(task("regress", "regress"), task("classify", "classify", model="")),
        INVALID,
        "Found ModelSpec with an empty model name.",
    ),
    (
        "MultiInference",
        multi(task("regress", "regress"), task("classify", "classify", model="types")),
        INVALID,
        "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
    ),
    (
        "MultiInference",
        multi(task("regress", "regress"), task("regress", "regress")),
        INVALID,
        "Duplicate evaluation of signature: regress",
    ),
    (
        "MultiInference",
        multi(task("regress", "predict")),
        UNIMPLEMENTED,
        "Unsupported signature method_name: tensorflow/serving/predict",
    ),
    (
        "MultiInference",
        multi(task("regress", "regress"), task("floats", "regress")),
        INVALID,
        "Expects arg[0] to be float but string is provided",
    ),
    # The inputs
    (
        "Predict",
        predict(HALF, a=X, b=X),
        INVALID,
        (
            "input size does not match signature: 2!=1 len({a,b}) != len({x}). Sent extra: {a,b}. "
            "Missing but required: {x}."
        ),
    ),
    (
        "Predict",
        predict(HALF),
        INVALID,
        (
            "input size does not match signature: 0!=1 len({}) != len({x}). Sent extra: {}. "
            "Missing but required: {x}."
        ),
    ),
    (
        "Predict",
        predict(HALF, a=X),
        INVALID,
        "Signature input alias: x(feed name: x:0) not found in request and no default value",
    ),
    ("Predict", broken(), INVALID, "tensor parsing error: x"),
    ("Predict", typeless(), INVALID, "tensor parsing error: x"),
    (
        "Predict",
        predict(HALF, x=np.array(["a"])),
        INVALID,
        "Expects arg[0] to be float but string is provided",
    ),
    (
        "Predict",
        predict(spec("types", signature="gather"), ids=np.array([0, 3])),
        INVALID,
        "indices[1] = 3 is not in [0, 3)",
    ),
    # The outputs
    (
        "Predict",
        predict(HALF, ("z",), x=X),
        INVALID,
        "output tensor alias not found in signature: z Outputs expected to be in the set {y}",
    ),
    ("Predict", predict(HALF, ("y", "y"), x=X), INVALID, "duplicate output tensor alias: y"),
    # Signatures that cannot classify or regress
    ("Classify", classify("two_inputs"), INVALID, "Expected one input Tensor."),
    (
        "Classify",
        classify("three_outputs"),
        INVALID,
        "Expected one or two output Tensors, found 3",
    ),
    (
        "Classify",
        classify("odd_input"),
        INVALID,
        'No classification inputs found in SignatureDef: inputs {\n  key: "x"',
    ),
    (
        "Classify",
        classify("regress"),
        INVALID,
        (
            "Expected classification signature outputs to contain at least one of "
            '"classes" or "scores". Signature was: inputs {'
        ),
    ),
    (
        "Classify",
        classify("flat_scores"),
        INVALID,
        "Expected Tensor shape: [batch_size num_classes] but got [1]",
    ),
    (
        "Classify",
        classify("mistyped_scores"),
        INVALID,
        "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE",
    ),
    ("Regress", regress("two_inputs"), INVALID, "Expected one input Tensor."),
    ("Regress", regress("classify"), INVALID, "Expected one output Tensor."),
    ("Regress", regress("odd_input"), INVALID, "No regression inputs found in SignatureDef: "),
    ("Regress", regress("odd_outputs"), INVALID, "No regression outputs found in SignatureDef: "),
    (
        "Regress",
        regress("floats"),
        INVALID,
        "Expects arg[0] to be float but string is provided",
    ),
    (
        "Regress",
        regress("wide"),
        INVALID,
        "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [1,2]",
    ),
    ("Regress", regress("mistyped"), INVALID, "Expected output Tensor of DT_FLOAT.  Got: DT_DOU"),
    (
        "Regress",
        regress("short"),
        INVALID,
        "Input batch size did not match output batch size: 1 vs. 0",
    ),
    # The Examples
    ("Classify", classify(given=examples()), INVALID, "Input is empty."),
    ("Regress", regress(given=examples()), INVALID, "Input is empty."),
    (
        "MultiInference",
        multi(task("regress", "regress"), given=examples()),
        INVALID,
        "Input is empty.",
    ),
    # Metadata and status
    (
        "GetModelMetadata",
        metadata(HALF),
        INVALID,
        "GetModelMetadataRequest must specify at least one metadata_field",
    ),
    ("GetModelMetadata", metadata(HALF, "X"), INVALID, "Metadata field X is not supported"),
    ("GetModelMetadata", metadata(None, "signature_def"), INVALID, "Missing ModelSpec"),
    (
        "GetModelMetadata",
        metadata(spec("m"), "signature_def"),
        NOT_FOUND,
        "Servable not found for request: Latest(m)",
    ),
    ("GetModelStatus", status(None), INVALID, "Missing ModelSpec"),
    ("GetModelStatus", status(spec("M")), NOT_FOUND, "Could not find any versions of model M"),
    ("GetModelStatus", status(spec("")), NOT_FOUND, "Could not find any versions of model "),
    (
        "GetModelStatus",
        status(spec("half_plus_two", 9)),
        NOT_FOUND,
        "Could not find version 9 of model half_plus_two",
    ),
    # Reloading
    (
        "HandleReloadConfigRequest",
        model_management_pb2.ReloadConfigRequest(),
        INVALID,
        "ServerModelConfig type not supported by HandleReloadConfigRequest.",
    ),
    # Sessions
    (
        "SessionRun",
        session_run(HALF, {"y:0": X, "x:0": X}, ("a:0",)),
        UNIMPLEMENTED,
        "Model half_plus_two is run by its signatures",
    ),
    (
        "SessionRun",
        session_run(HALF, {"z": X}, ("y",), by_alias=True),
        INVALID,
        "Input alias z is not in the signature, which has: x",
    ),
    (
        "SessionRun",
        session_run(HALF, {"x": X}, ("z",), by_alias=True),
        INVALID,
        "Output alias z is not in the signature, which has: y",
    ),
    (
        "SessionRun",
        session_run(HALF, {"x:0": tensor_pb2.TensorProto(dtype=1, tensor_content=b"a")}, ("y:0",)),
        INVALID,
        "tensor parsing error: x:0",
    ),
]


@pytest.mark.parametrize(
    ("method", "request_", "code", "text"), ROWS, ids=[f"{row[0]}-{row[3][:60]}" for row in ROWS]
)
def test_what_is_wrong_is_said(
    rpc: GrpcClient, method: str, request_: Any, code: grpc.StatusCode, text: str
) -> None:
    got_code, got_text = rpc.refusal(method, request_)
    assert got_code is code, got_text
    assert text in got_text
    assert got_text.startswith(text) or text.startswith("indices")


def test_long_messages_are_cut_and_marked(rpc: GrpcClient) -> None:
    code, text = rpc.refusal("Predict", predict(spec("n" * 5000)))
    assert code is NOT_FOUND
    assert text.startswith("Servable not found for request: Latest(nnn")
    assert text.endswith("n...TRUNCATED")
    assert len(text) == 1024 + len("...TRUNCATED")


@pytest.mark.parametrize(
    ("service", "method", "kind"),
    [
        ("PredictionService", "Predict", "PredictRequest"),
        ("PredictionService", "Classify", "ClassificationRequest"),
        ("PredictionService", "Regress", "RegressionRequest"),
        ("PredictionService", "MultiInference", "MultiInferenceRequest"),
        ("PredictionService", "GetModelMetadata", "GetModelMetadataRequest"),
        ("ModelService", "GetModelStatus", "GetModelStatusRequest"),
        ("ModelService", "HandleReloadConfigRequest", "ReloadConfigRequest"),
        ("SessionService", "SessionRun", "SessionRunRequest"),
    ],
)
def test_bytes_that_are_no_request_are_refused_by_name(
    rpc: GrpcClient, service: str, method: str, kind: str
) -> None:
    call = rpc.channel.unary_unary(f"/tensorflow.serving.{service}/{method}")
    for raw in (b"\xff\xff", b"\xff" * 10_000):
        with pytest.raises(grpc.RpcError) as caught:
            call(raw)
        assert caught.value.code() is INVALID
        assert caught.value.details() == f"the request is not a tensorflow.serving.{kind}"


def test_a_time_that_ran_out_is_a_deadline_exceeded(rpc: GrpcClient) -> None:
    call = rpc.channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    slow = predict(spec("types", signature="count"), rounds=np.int64(1_000_000))
    with pytest.raises(grpc.RpcError) as caught:
        call(slow.SerializeToString(), timeout=0.05)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
