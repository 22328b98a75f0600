"""SavedModels of both formats are served as they are; broken ones are refused by file name."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import get_model_metadata_pb2

from shardserve.batching.errors import DataLoss, DeadlineExceeded, NotFound, ServingError
from shardserve.router.once import OnceCache
from shardserve.router.servable import RequestContext, TensorInfo
from shardserve.router.session import Stage, StageThreads
from shardserve.router.whole import WholeServable, load_whole, signatures_of
from shardserve.shards.cut.cut import CutRule, cut_saved_model

Contexts = Callable[..., RequestContext]
Ends = tuple[tuple[str, ...], tuple[str, ...]]

MIXED_INPUTS = {
    "ids": np.array([1, 9]),
    "text": np.array([b"a", b"\xff"], object),
    "scale": np.array([1, 2], np.float32),
}


async def test_all_outputs_equal_those_of_tensorflow_s_own_loader(
    mixed: WholeServable, mixed_dir: Path, context: Contexts
) -> None:
    reference = tf.saved_model.load(str(mixed_dir)).signatures["serving_default"]
    expected = reference(**{name: tf.constant(value) for name, value in MIXED_INPUTS.items()})
    answer = await mixed.run("serving_default", MIXED_INPUTS, tuple(expected), context())
    assert answer.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(answer[name], value.numpy())


async def test_only_the_outputs_named_come_back_in_their_order(
    mixed: WholeServable, context: Contexts
) -> None:
    answer = await mixed.run("serving_default", MIXED_INPUTS, ("total", "odd"), context())
    assert list(answer) == ["total", "odd"]
    assert answer["odd"].tolist() == [True, True]


async def test_a_model_of_tensorflow_1_is_served(
    tf1_dir: Path, threads: StageThreads, context: Contexts
) -> None:
    servable = load_whole("old", 1, tf1_dir, threads)
    answer = await servable.run(
        "serving_default", {"x": np.array([1, 2], np.float32)}, ("y",), context()
    )
    assert answer["y"].tolist() == [4.0, 7.0]
    assert servable.signatures["serving_default"].method_name == "any/method"


def test_signatures_say_types_shapes_and_defaults(mixed: WholeServable) -> None:
    signature = mixed.signatures["defaulted"]
    assert list(signature.inputs) == ["ids", "scale", "text"]
    assert signature.inputs["ids"] == TensorInfo(
        signature.inputs["ids"].tensor, tf.int64.as_datatype_enum, (-1,)
    )
    assert signature.outputs["total"].shape == ()
    assert {name: value.tolist() for name, value in signature.defaults.items()} == {
        "scale": [1.0, 10.0]
    }
    assert mixed.signatures["serving_default"].defaults == {}


def test_the_initialisation_is_metadata_but_no_signature_to_call(mixed: WholeServable) -> None:
    whole = get_model_metadata_pb2.SignatureDefMap.FromString(mixed.signature_def_map)
    assert set(whole.signature_def) - set(mixed.signatures) == {"__saved_model_init_op"}


async def test_a_deadline_holds_while_a_stage_is_compiled(
    half_plus_two_dir: Path, threads: StageThreads, context: Contexts
) -> None:
    servable = load_whole("fresh", 1, half_plus_two_dir, threads)
    with pytest.raises(DeadlineExceeded):
        await servable.run("serving_default", {"x": np.ones(1, np.float32)}, ("y",), context(0.0))


async def test_requests_that_need_the_same_stage_compile_it_once(
    mixed: WholeServable, context: Contexts
) -> None:
    cache = _stages(mixed, limit=4)
    feeds = (mixed.signatures["look_up"].inputs["ids"].tensor,)
    fetches = (mixed.signatures["look_up"].outputs["rows"].tensor,)
    stages = await asyncio.gather(*[cache.get((feeds, fetches), context()) for _ in range(8)])
    assert len(set(map(id, stages))) == 1


async def test_a_request_that_gives_up_leaves_the_stage_to_the_others(
    mixed: WholeServable, context: Contexts
) -> None:
    cache = _stages(mixed, limit=4)
    feeds = (mixed.signatures["look_up"].inputs["ids"].tensor,)
    fetches = (mixed.signatures["look_up"].outputs["rows"].tensor,)
    hasty = asyncio.ensure_future(cache.get((feeds, fetches), context()))
    patient = asyncio.ensure_future(cache.get((feeds, fetches), context()))
    await asyncio.sleep(0)
    hasty.cancel()
    assert (await patient).fetches == fetches


async def test_stages_kept_are_bounded_and_the_last_used_stay(
    mixed: WholeServable, context: Contexts
) -> None:
    cache = _stages(mixed, limit=2)
    signature = mixed.signatures["serving_default"]
    feeds = tuple(info.tensor for info in signature.inputs.values())
    names = [(signature.outputs[alias].tensor,) for alias in ("odd", "rows", "text")]
    first = await cache.get((feeds, names[0]), context())
    await cache.get((feeds, names[1]), context())
    assert await cache.get((feeds, names[0]), context()) is first
    await cache.get((feeds, names[2]), context())
    assert await cache.get((feeds, names[0]), context()) is first
    assert len(cache) == 2


def _stages(servable: WholeServable, limit: int) -> OnceCache[Ends, Stage]:
    runner = servable._runner
    return OnceCache(runner.threads, lambda ends: runner.make_callable(*ends), limit)


def _copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def _truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda path: shutil.rmtree(path), "saved_model.pb"),
        (lambda path: (path / "saved_model.pb").unlink(), "saved_model.pb"),
        (lambda path: _truncate(path / "saved_model.pb", 100), "saved_model.pb"),
        (lambda path: (path / "saved_model.pb").write_bytes(b"\xff" * 50), "saved_model.pb"),
        (lambda path: (path / "saved_model.pb").write_bytes(b""), "saved_model.pb"),
        (lambda path: shutil.rmtree(path / "variables"), "variables.index"),
        (lambda path: _truncate(path / "variables" / "variables.index", 20), "variables.index"),
        (
            lambda path: (path / "variables" / "variables.data-00000-of-00001").unlink(),
            "variables.data-00000-of-00001",
        ),
        (
            lambda path: _truncate(path / "variables" / "variables.data-00000-of-00001", 3),
            "variables",
        ),
    ],
)
def test_a_broken_directory_is_refused_and_the_file_is_named(
    half_plus_two_dir: Path,
    tmp_path: Path,
    threads: StageThreads,
    damage: Callable[[Path], object],
    named: str,
) -> None:
    path = _copy(half_plus_two_dir, tmp_path / "1")
    damage(path)
    with pytest.raises(ServingError, match=named) as caught:
        load_whole("broken", 1, path, threads)
    assert str(path) in caught.value.message


def test_a_file_that_does_not_parse_is_data_loss(
    half_plus_two_dir: Path, tmp_path: Path, threads: StageThreads
) -> None:
    path = _copy(half_plus_two_dir, tmp_path / "1")
    (path / "saved_model.pb").write_bytes(b"\xff" * 50)
    with pytest.raises(DataLoss):
        load_whole("broken", 1, path, threads)


def test_tags_that_no_meta_graph_has_are_named_beside_those_there_are(
    half_plus_two_dir: Path, threads: StageThreads
) -> None:
    with pytest.raises(NotFound, match=r"has the tags \{gpu,serve\}; there are: \{serve\}"):
        load_whole("m", 1, half_plus_two_dir, threads, tags=("serve", "gpu"))


class _Ragged(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def partly(self, x: tf.Tensor) -> dict[str, tf.Tensor | tf.RaggedTensor]:
        return {**self.ragged(x), "y": 3.0 * x}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def ragged(self, x: tf.Tensor) -> dict[str, tf.RaggedTensor]:
        return {"rows": tf.RaggedTensor.from_row_lengths(x, [tf.size(x)])}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def plain(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": 2.0 * x}


def test_a_signature_with_ragged_outputs_is_served_with_the_others_if_there_are_some(
    tmp_path: Path,
    threads: StageThreads,
    context: Contexts,
    caplog: pytest.LogCaptureFixture,
) -> None:
    module = _Ragged()
    signatures = {"ragged": module.ragged, "partly": module.partly, "plain": module.plain}
    tf.saved_model.save(module, str(tmp_path / "1"), signatures)

    cut = cut_saved_model(tmp_path / "1", CutRule())
    assert sorted(cut.programs) == ["partly", "plain"]
    servable = load_whole("m", 1, tmp_path / "1", threads)
    assert sorted(servable.signatures) == ["partly", "plain"]
    assert caplog.messages == [
        "output 'rows' of signature 'partly' of model m is ragged or sparse, and in no reply",
        "signature 'ragged' of model m has a ragged or sparse tensor, and is not served",
    ]
    described = get_model_metadata_pb2.SignatureDefMap.FromString(servable.signature_def_map)
    assert "ragged" in described.signature_def
    assert "rows" in described.signature_def["partly"].outputs
    for name, factor in (("plain", 2.0), ("partly", 3.0)):
        outputs = tuple(servable.signatures[name].outputs)
        asked = servable.run(name, {"x": np.ones(2, np.float32)}, outputs, context())
        answer = asyncio.run(asked)
        assert {alias: array.tolist() for alias, array in answer.items()} == {"y": [factor] * 2}


def test_a_signature_with_a_sparse_input_is_not_served(caplog: pytest.LogCaptureFixture) -> None:
    with tf.Graph().as_default():
        sparse = tf.compat.v1.sparse_placeholder(tf.float32, name="x")
        told = {"x": tf.compat.v1.saved_model.build_tensor_info(sparse)}
        y = {"y": tf.compat.v1.saved_model.build_tensor_info(tf.sparse.reduce_sum(sparse))}
    meta_graph = meta_graph_pb2.MetaGraphDef()
    meta_graph.signature_def["sums"].CopyFrom(
        tf.compat.v1.saved_model.build_signature_def(told, y, "tensorflow/serving/predict")
    )

    assert signatures_of(meta_graph, "m") == {}
    assert caplog.messages == [
        "signature 'sums' of model m has a ragged or sparse tensor, and is not served"
    ]
