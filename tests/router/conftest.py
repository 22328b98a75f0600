"""SavedModels, small and real, and what it takes to serve them in a test."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from shardserve.router.catalog import Catalog, Model, State, Version
from shardserve.router.handlers import Handlers
from shardserve.router.servable import RequestContext
from shardserve.router.session import StageThreads
from shardserve.router.whole import WholeServable, load_whole
from shardserve.shards.tables import TableSource
from tests.sharded import tables_of


class _HalfPlusTwo(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = tf.Variable(0.5)
        self.b = tf.Variable(2.0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def predict(self, x: Any) -> dict[str, Any]:
        return {"y": self.a * x + self.b}


class _Mixed(tf.Module):
    """Several inputs and outputs of several types; a gather that refuses ids; a scalar output."""

    def __init__(self) -> None:
        super().__init__()
        self.table = tf.Variable(np.arange(20, dtype=np.float32).reshape(10, 2))

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.int64, name="ids"),
            tf.TensorSpec([None], tf.string, name="text"),
            tf.TensorSpec([None], tf.float32, name="scale"),
        ]
    )
    def predict(self, ids: Any, text: Any, scale: Any) -> dict[str, Any]:
        return {
            "rows": tf.gather(self.table, ids) * scale[:, None],
            "text": tf.strings.join([text, text]),
            "raw_bytes": text,
            "odd": ids % 2 == 1,
            "total": tf.reduce_sum(scale),
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, name="ids")])
    def look_up(self, ids: Any) -> dict[str, Any]:
        return {"rows": tf.gather(self.table, ids)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.bfloat16, name="x")])
    def narrow(self, x: Any) -> dict[str, Any]:
        return {"y": x * tf.constant(2, tf.bfloat16)}

    @tf.function(input_signature=[tf.TensorSpec([], tf.int64, name="rounds")])
    def count(self, rounds: Any) -> dict[str, Any]:
        """Takes about a microsecond a round."""
        done = tf.while_loop(lambda i: i < rounds, lambda i: (i + 1,), (tf.constant(0, tf.int64),))
        return {"done": done[0]}


@pytest.fixture(scope="session")
def half_plus_two_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = x / 2 + 2, as a version directory."""
    path = tmp_path_factory.mktemp("half_plus_two") / "123"
    module = _HalfPlusTwo()
    tf.saved_model.save(module, str(path), signatures=module.predict)
    return path


@pytest.fixture(scope="session")
def mixed_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`_Mixed`, with the signatures serving_default, look_up, narrow, count, and defaulted: as
    serving_default, but `scale` may be left out where there are two rows."""
    path = tmp_path_factory.mktemp("mixed") / "1"
    module = _Mixed()
    signatures = {
        "serving_default": module.predict,
        "look_up": module.look_up,
        "narrow": module.narrow,
        "count": module.count,
    }
    tf.saved_model.save(module, str(path), signatures=signatures)
    _add_defaulted(path / "saved_model.pb")
    return path


def _add_defaulted(file: Path) -> None:
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    signatures = saved.meta_graphs[0].signature_def
    signatures["defaulted"].CopyFrom(signatures["serving_default"])
    default = tf.make_tensor_proto([1.0, 10.0], tf.float32)
    signatures["defaulted"].defaults["scale"].CopyFrom(default)
    file.write_bytes(saved.SerializeToString())


@pytest.fixture(scope="session")
def tf1_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = 3 x + 1 in the format of TensorFlow 1, with reference variables."""
    path = tmp_path_factory.mktemp("tf1") / "1"
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None], "x")
        a = v1.get_variable("a", initializer=3.0, use_resource=False)
        y = tf.add(a * x, 1.0, "y")
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(path))
        info = v1.saved_model.build_tensor_info
        signature = v1.saved_model.build_signature_def({"x": info(x)}, {"y": info(y)}, "any/method")
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
        builder.save()
    return path


@pytest.fixture(scope="session")
def sources(saved_model: Callable[[str], Path]) -> Callable[[str], dict[str, TableSource]]:
    """The tables of a model of `saved_model`, and where their bytes lie."""
    return lambda name: tables_of(saved_model(name))


@pytest.fixture(scope="session")
def half_plus_two(half_plus_two_dir: Path, threads: StageThreads) -> WholeServable:
    return load_whole("half_plus_two", 123, half_plus_two_dir, threads)


@pytest.fixture(scope="session")
def mixed(mixed_dir: Path, threads: StageThreads) -> WholeServable:
    return load_whole("mixed", 1, mixed_dir, threads)


@pytest.fixture
def catalog(half_plus_two: WholeServable, mixed: WholeServable) -> Catalog:
    """half_plus_two 123 (label stable) with 122 gone and 124 loading; mixed 1."""
    return Catalog(
        {
            "half_plus_two": Model(
                {
                    122: Version(State.END),
                    123: Version(State.AVAILABLE, half_plus_two),
                    124: Version(State.LOADING),
                },
                {"stable": 123, "old": 122},
            ),
            "mixed": Model({1: Version(State.AVAILABLE, mixed)}),
        }
    )


@pytest.fixture
def handlers(catalog: Catalog, threads: StageThreads) -> Handlers:
    return Handlers(catalog, threads)


@pytest.fixture
def context() -> Callable[..., RequestContext]:
    """Makes contexts, without a deadline unless one is given."""

    def make(deadline: float = math.inf) -> RequestContext:
        return RequestContext("test", deadline)

    return make


@pytest.fixture
def unconfigured() -> Iterator[None]:
    """Ends what `logs.configure` does with the test."""
    ours = logging.getLogger("shardserve")
    before = ours.handlers, ours.level, ours.propagate
    yield
    ours.handlers, ours.level, ours.propagate = before
    structlog.reset_defaults()
