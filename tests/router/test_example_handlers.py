"""Examples reach the graph merged and unparsed; results come back as the protos of the API."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    input_pb2,
    model_pb2,
    regression_pb2,
)

from shardserve.batching.errors import InvalidArgument
from shardserve.router import examples as examples_module
from shardserve.router.examples import example_strings, parse_examples
from shardserve.router.inference import Classes
from shardserve.router.result_codec import encode_classification_result, encode_regression_result
from shardserve.router.serialized_examples import ExamplesRequest, Input, MultiInferenceRequest

scores = st.floats(width=32, allow_nan=False) | st.just(0.0) | st.just(-0.0)
labels = st.text(max_size=3).map(str.encode) | st.just(b"l" * 200)


@st.composite
def classifications(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = draw(st.integers(0, 5)), draw(st.integers(0, 4))
    count = rows * columns
    made = np.empty(count, object)
    made[:] = draw(st.lists(labels, min_size=count, max_size=count))
    numbers = draw(st.lists(scores, min_size=count, max_size=count))
    shape = rows, columns
    return made.reshape(shape), np.array(numbers, np.float32).reshape(shape)


@given(classifications(), st.sampled_from(["both", "labels", "scores"]))
@settings(max_examples=200)
def test_classifications_are_what_protobuf_writes(
    made: tuple[np.ndarray, np.ndarray], given_: str
) -> None:
    names, numbers = made
    expected = classification_pb2.ClassificationResult()
    for row in range(len(names)):
        classes = expected.classifications.add()
        for column in range(names.shape[1]):
            one = classes.classes.add()
            if given_ != "scores":
                one.label = names[row, column].decode()
            if given_ != "labels":
                one.score = numbers[row, column]
    classes = Classes(
        None if given_ == "scores" else names, None if given_ == "labels" else numbers
    )
    assert encode_classification_result(classes) == expected.SerializeToString()


@given(st.lists(scores, max_size=20))
def test_regressions_are_what_protobuf_writes(values: list[float]) -> None:
    expected = regression_pb2.RegressionResult(
        regressions=[regression_pb2.Regression(value=value) for value in values]
    )
    array = np.array(values, np.float32)
    assert encode_regression_result(array) == expected.SerializeToString()
    assert encode_regression_result(np.repeat(array, 2)[::2]) == expected.SerializeToString()


def example(**features: float) -> tf.train.Example:
    made = tf.train.Example()
    for name, value in features.items():
        made.features.feature[name].float_list.value.append(value)
    return made


def parsed(given_: input_pb2.Input) -> list[tf.train.Example]:
    strings = example_strings(Input.FromString(given_.SerializeToString()))
    return [tf.train.Example.FromString(raw) for raw in strings]


def test_requests_parse_but_for_their_examples() -> None:
    spec = model_pb2.ModelSpec(name="m", signature_name="s")
    spec.version.value = 3
    given_ = input_pb2.Input()
    given_.example_list.examples.append(example(x=1.0))
    for whole in (
        classification_pb2.ClassificationRequest(model_spec=spec, input=given_),
        regression_pb2.RegressionRequest(model_spec=spec, input=given_),
    ):
        request = ExamplesRequest.FromString(whole.SerializeToString())
        assert request.model_spec == spec
        assert list(request.input.example_list.examples) == [example(x=1.0).SerializeToString()]
    task = inference_pb2.InferenceTask(model_spec=spec, method_name="m")
    multi = inference_pb2.MultiInferenceRequest(tasks=[task, task], input=given_)
    request = MultiInferenceRequest.FromString(multi.SerializeToString())
    assert list(request.tasks) == [task, task]


def test_a_context_is_merged_and_what_an_example_has_itself_counts() -> None:
    given_ = input_pb2.Input()
    both = given_.example_list_with_context
    both.context.CopyFrom(example(a=1.0, b=2.0))
    both.examples.extend([example(b=3.0), example()])
    first, second = parsed(given_)
    assert first.features.feature["a"].float_list.value == [1.0]
    assert first.features.feature["b"].float_list.value == [3.0]
    assert second == example(a=1.0, b=2.0)


@pytest.mark.parametrize("kind", ["none", "empty", "empty with context"])
def test_no_examples_are_refused(kind: str) -> None:
    given_ = input_pb2.Input()
    if kind == "empty":
        given_.example_list.SetInParent()
    elif kind == "empty with context":
        given_.example_list_with_context.context.CopyFrom(example(x=1.0))
    with pytest.raises(InvalidArgument, match="Input is empty"):
        parsed(given_)


def test_examples_and_copies_of_a_context_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples_module, "MAX_EXAMPLES", 3)
    monkeypatch.setattr(examples_module, "MAX_CONTEXT_BYTES", 60)
    given_ = input_pb2.Input()
    given_.example_list.examples.extend([example()] * 4)
    with pytest.raises(InvalidArgument, match="4 examples are more than 3"):
        parsed(given_)
    given_.example_list_with_context.context.CopyFrom(example(long_name_of_a_feature=1.0))
    given_.example_list_with_context.examples.extend([example()] * 2)
    with pytest.raises(InvalidArgument, match="for each of 2 examples is more than 60 bytes"):
        parsed(given_)


def features(body: bytes) -> list[dict[str, object]]:
    _, strings = parse_examples(body)
    made = []
    for raw in strings:
        found = tf.train.Example.FromString(raw).features.feature
        made.append({name: list(_values(feature)) for name, feature in found.items()})
    return made


def _values(feature: tf.train.Feature) -> list[object]:
    kind = feature.WhichOneof("kind")
    return [] if kind is None else [(kind[0], value) for value in getattr(feature, kind).value]


def test_json_values_choose_their_feature_s_kind() -> None:
    body = (
        b'{"examples": [{"i": 1, "b": [true, false, 2], "f": [1.5, NaN], "e": [],'
        b' "s": ["a", {"b64": "/w=="}]}], "context": {"c": -9223372036854775808}}'
    )
    [found] = features(body)
    [first, second] = found.pop("f")  # type: ignore[misc]
    assert first == ("f", 1.5)
    assert math.isnan(second[1])
    assert found == {
        "i": [("i", 1)],
        "b": [("i", 1), ("i", 0), ("i", 2)],
        "e": [],
        "s": [("b", b"a"), ("b", b"\xff")],
        "c": [("i", -(2**63))],
    }


def test_of_two_equal_keys_in_an_example_the_first_counts() -> None:
    assert features(b'{"examples": [{"a": 1, "a": 2}]}') == [{"a": [("i", 1)]}]
    name, _ = parse_examples(b'{"signature_name": "s", "examples": [{}]}')
    assert name == "s"
