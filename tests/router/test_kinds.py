"""Servables that are not TensorFlow's: each kind answers as its own library does."""

import asyncio
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import skops.io
from onnx import TensorProto, helper
from skl2onnx import to_onnx
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from tensorflow_serving.apis import get_model_metadata_pb2

from shardserve.batching.errors import (
    DataLoss,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unimplemented,
)
from shardserve.batching.parameters import BatchingParameters
from shardserve.router.computed import ComputedServable, Spec, signature
from shardserve.router.kinds import Version, kind_of, load_kind, register
from shardserve.router.servable import RequestContext
from shardserve.shards.stages import BatchingOptions

FEATURES = np.random.default_rng(0).random((60, 4))
CLASSES = np.where(FEATURES[:, 0] > 0.5, "cat", "dog")


def classifier():
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(FEATURES, CLASSES)


def version(directory: Path, **allowed: bool) -> Version:
    return Version("m", 1, directory, **allowed)


def context() -> RequestContext:
    return RequestContext("r", math.inf)


async def answer(computation, threads, inputs, outputs):
    servable = ComputedServable("m", 1, computation, threads)
    return await servable.run("serving_default", inputs, outputs, context())


async def test_an_onnx_model_answers_as_what_it_was_made_of(tmp_path, threads) -> None:
    model = classifier()
    onnx = to_onnx(model, FEATURES[:1], options={"zipmap": False})
    (tmp_path / "model.onnx").write_bytes(onnx.SerializeToString())
    loaded = kind_of("onnx")(version(tmp_path))
    found = await answer(loaded, threads, {"X": FEATURES[:5]}, ["label", "probabilities"])
    assert found["label"].tolist() == [one.encode() for one in model.predict(FEATURES[:5])]
    np.testing.assert_allclose(found["probabilities"], model.predict_proba(FEATURES[:5]), 1e-6)


async def test_an_onnx_models_strings_go_both_ways(tmp_path, threads) -> None:
    names = [helper.make_tensor_value_info(n, TensorProto.STRING, ["n"]) for n in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "g", *[[n] for n in names]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    loaded = kind_of("onnx")(version(tmp_path))
    words = np.array(["Zürich".encode(), b""], object)
    found = await answer(loaded, threads, {"x": words}, ["y"])
    assert found["y"].tolist() == words.tolist()
    with pytest.raises(InvalidArgument, match="UTF-8"):
        await answer(loaded, threads, {"x": np.array([b"\xff"], object)}, ["y"])


def test_an_onnx_model_that_is_missing_damaged_or_gives_maps_is_named(tmp_path) -> None:
    with pytest.raises(NotFound, match=r"model\.onnx does not exist"):
        kind_of("onnx")(version(tmp_path))
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(DataLoss, match=r"model\.onnx"):
        kind_of("onnx")(version(tmp_path))
    maps = to_onnx(classifier(), FEATURES[:1].astype(np.float32))
    (tmp_path / "model.onnx").write_bytes(maps.SerializeToString())
    with pytest.raises(Unimplemented, match="zipmap=False"):
        kind_of("onnx")(version(tmp_path))


async def test_an_estimator_answers_with_all_that_it_can_do(tmp_path, threads) -> None:
    model = classifier()
    skops.io.dump(model, tmp_path / "model.skops")
    loaded = kind_of("sklearn")(version(tmp_path))
    outputs = ["predictions", "probabilities", "scores"]
    assert sorted(loaded.signatures["serving_default"].outputs) == outputs
    found = await answer(loaded, threads, {"inputs": FEATURES[:3]}, outputs)
    assert found["predictions"].tolist() == [one.encode() for one in model.predict(FEATURES[:3])]
    np.testing.assert_allclose(found["probabilities"], model.predict_proba(FEATURES[:3]))
    np.testing.assert_allclose(found["scores"], model.decision_function(FEATURES[:3]))


def test_an_estimator_that_is_no_data_is_refused_unless_the_operator_allows_it(tmp_path) -> None:
    model = RandomForestRegressor(2).fit(FEATURES, FEATURES[:, 0])
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(model))
    with pytest.raises(PermissionDenied, match=r"model\.pkl: .*--allow_pickle is not set"):
        kind_of("sklearn")(version(tmp_path))
    loaded = kind_of("sklearn")(version(tmp_path, allow_pickle=True))
    assert list(loaded.signatures["serving_default"].outputs) == ["predictions"]


def test_an_estimator_of_types_that_skops_does_not_trust_is_refused(tmp_path) -> None:
    model = make_pipeline(FunctionTransformer(Path)).fit(FEATURES)
    skops.io.dump(model, tmp_path / "model.skops")
    with pytest.raises(PermissionDenied, match=r"model\.skops.*pathlib"):
        kind_of("sklearn")(version(tmp_path))


async def test_an_estimator_of_types_that_the_operator_trusts_is_served(tmp_path, threads) -> None:
    model = RandomForestRegressor(2).fit(FEATURES, FEATURES[:, 0])
    skops.io.dump(model, tmp_path / "model.skops")
    with pytest.raises(PermissionDenied, match=r"sklearn\.tree\._tree\.Tree.*--trusted_types"):
        kind_of("sklearn")(version(tmp_path))
    with pytest.raises(PermissionDenied, match=r"sklearn\.tree\._tree\.Tree"):
        kind_of("sklearn")(version(tmp_path, trusted_types=("sklearn.tree._tree.Other",)))

    loaded = kind_of("sklearn")(version(tmp_path, trusted_types=("sklearn.tree._tree.Tree",)))

    found = await answer(loaded, threads, {"inputs": FEATURES[:3]}, ["predictions"])
    np.testing.assert_allclose(found["predictions"], model.predict(FEATURES[:3]))


def test_trust_in_types_lets_no_pickle_in(tmp_path) -> None:
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(classifier()))
    with pytest.raises(PermissionDenied, match="--allow_pickle is not set"):
        kind_of("sklearn")(version(tmp_path, trusted_types=("sklearn.tree._tree.Tree",)))


def test_an_estimator_that_is_missing_damaged_or_unfitted_is_named(tmp_path) -> None:
    with pytest.raises(NotFound, match=r"model\.skops does not exist"):
        kind_of("sklearn")(version(tmp_path))
    (tmp_path / "model.skops").write_bytes(b"no zip")
    with pytest.raises(DataLoss, match=r"model\.skops"):
        kind_of("sklearn")(version(tmp_path))
    skops.io.dump(LogisticRegression(), tmp_path / "model.skops")
    with pytest.raises(FailedPrecondition, match="not fitted"):
        kind_of("sklearn")(version(tmp_path))


class Doubled:
    """A servable in plain Python."""

    def __init__(self) -> None:
        floats = Spec(np.dtype(np.float32), (-1, 2))
        self.signatures = {"serving_default": signature({"x": floats}, {"y": floats})}

    def compute(self, signature, inputs, outputs):
        if (inputs["x"] < 0).any():
            raise ZeroDivisionError("negative")
        return {"y": 2.0 * inputs["x"]}


def doubled(version: Version) -> Doubled:
    return Doubled()


async def test_plain_python_is_a_kind(threads) -> None:
    loaded = kind_of(f"python:{__name__}:doubled")(version(Path()))
    servable = ComputedServable("m", 1, loaded, threads)
    found = await servable.run(
        "serving_default", {"x": np.ones((3, 2), np.float32)}, ["y"], context()
    )
    assert found["y"].dtype == np.float32
    assert found["y"].tolist() == [[2.0, 2.0]] * 3
    metadata = get_model_metadata_pb2.SignatureDefMap.FromString(servable.signature_def_map)
    shape = metadata.signature_def["serving_default"].inputs["x"].tensor_shape
    assert [dim.size for dim in shape.dim] == [-1, 2]


async def test_a_shape_that_the_signature_does_not_take_is_the_clients_fault(threads) -> None:
    with pytest.raises(InvalidArgument, match=r"'x' must be of shape \[\?,2\], not \[3,1\]"):
        await answer(Doubled(), threads, {"x": np.ones((3, 1), np.float32)}, ["y"])


async def test_an_exception_of_the_model_is_internal_and_named(threads) -> None:
    with pytest.raises(Internal, match="ZeroDivisionError: negative"):
        await answer(Doubled(), threads, {"x": -np.ones((1, 2), np.float32)}, ["y"])


def test_a_kind_can_be_registered_once() -> None:
    register("doubled", doubled)
    assert kind_of("doubled") is doubled
    for platform in ("doubled", "onnx", "tensorflow"):
        with pytest.raises(InvalidArgument, match="registered already"):
            register(platform, doubled)


@pytest.mark.parametrize(
    "platform", ["caffe", "python:", "python:no.such.module:f", "python:math:f"]
)
def test_an_unknown_platform_is_named(platform: str) -> None:
    with pytest.raises(InvalidArgument, match=platform):
        kind_of(platform)


def doubled_for_load(directory: Path) -> dict[str, object]:
    return {"platform": f"python:{__name__}:doubled", "version": version(directory)}


async def test_a_kind_is_loaded_as_a_servable_that_batches_as_the_server_does(
    tmp_path, threads
) -> None:
    parameters = BatchingParameters(max_batch_size=8)
    options = BatchingOptions(parameters)
    servable = load_kind(**doubled_for_load(tmp_path), threads=threads, batching=options)
    assert (servable.name, servable.version) == ("m", 1)
    x = {"x": np.ones((3, 2), np.float32)}
    asked = [servable.run("serving_default", x, ["y"], context()) for _ in range(3)]
    for found in await asyncio.gather(*asked):
        assert found["y"].tolist() == [[2.0, 2.0]] * 3
    assert servable.stage_counts()["m/requests"].rows == 9
    await servable.close()


async def test_a_kinds_own_batching_file_counts_where_each_model_has_one(tmp_path, threads) -> None:
    options = BatchingOptions(BatchingParameters(), per_model=True)
    alone = load_kind(**doubled_for_load(tmp_path), threads=threads, batching=options)
    assert not alone.stage_counts()
    (tmp_path / "batching_params.pbtxt").write_text("max_batch_size { value: 2 }")
    servable = load_kind(**doubled_for_load(tmp_path), threads=threads, batching=options)
    x = {"x": np.ones((3, 2), np.float32)}
    with pytest.raises(InvalidArgument, match="larger than maximum input batch size 2"):
        await servable.run("serving_default", x, ["y"], context())


def test_stages_that_only_a_graph_has_are_refused_by_name(tmp_path, threads) -> None:
    stages = tmp_path / "stages.yaml"
    stages.write_text("version: 1\nstages: {ids: {max_batch_size: 4}}\n")
    options = BatchingOptions(BatchingParameters(), stages_file=stages)
    with pytest.raises(InvalidArgument, match="has ids, but a model of platform 'python:"):
        load_kind(**doubled_for_load(tmp_path), threads=threads, batching=options)


def broken(version: Version) -> Doubled:
    raise OSError("the weights' server is away")


def test_what_a_kind_raises_while_it_loads_is_named(tmp_path, threads) -> None:
    with pytest.raises(Internal, match=r"OSError: the weights' server is away"):
        load_kind(f"python:{__name__}:broken", version(tmp_path), threads)
    with pytest.raises(NotFound, match=r"model\.onnx does not exist"):
        load_kind("onnx", version(tmp_path), threads)
