"""SavedModels as teams have them: old exporters, mixed reads, odd dtypes, Python's control flow.

Each has requests of its own for all of its signatures, by signature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.saved_models import Feeds
from tests.saved_models_tf1 import COLUMNS, export_graph, numbers

v1 = tf.compat.v1


@dataclass(frozen=True)
class AwkwardModel:
    """A model, requests for its signatures, and the tables of it that are cut."""

    export: Callable[[Path], None]
    requests: Mapping[str, tuple[Feeds, ...]]
    tables: int


def ids(*values: Any, dtype: type = np.int64) -> Feeds:
    return {"ids": np.array(values, dtype)}


def spec(*shape: int | None, dtype: tf.DType = tf.int64, name: str = "ids") -> tf.TensorSpec:
    return tf.TensorSpec(shape, dtype, name=name)


def table(rows: int = 90, dtype: tf.DType = tf.float32, name: str = "table") -> tf.Variable:
    return tf.Variable(tf.cast(numbers(rows) / 8, dtype), name=name)


def module(
    function: Callable[..., Any], variables: Mapping[str, Any], *signature: tf.TensorSpec
) -> Callable[[Path], None]:
    """How to export `function(variables, *inputs)`."""

    def export(path: Path) -> None:
        found = {name: make() for name, make in variables.items()}
        holder = tf.Module()
        holder.variables_of_model = found
        holder.function = tf.function(
            lambda *inputs: function(found, *inputs), input_signature=signature
        )
        tf.saved_model.save(holder, str(path), signatures=holder.function)

    return export


def _scalar(found: Any, one: Any) -> Any:
    return {
        "gathered": tf.gather(found["t"], one),
        "looked_up": tf.nn.embedding_lookup(found["t"], one),
    }


def _constant_ids(found: Any) -> Any:
    return {
        "rows": tf.gather(found["t"], [1, 2, 3]),
        "pooled": tf.reduce_sum(tf.gather(found["t"], [[1, 2], [3, 4]]), 1),
    }


def _tied(found: Any, bags: Any) -> Any:
    hidden = tf.tanh(tf.reduce_mean(tf.gather(found["t"], bags), 1))
    scores = tf.matmul(hidden, found["t"], transpose_b=True)
    return {"best": tf.math.top_k(scores, 4).indices, "all": tf.nn.softmax(scores)}


def _dtypes(found: Any, one: Any) -> Any:
    return {name: tf.gather(variable, one) for name, variable in found.items()}


def _read_whole_too(found: Any, one: Any) -> Any:
    rows = tf.gather(found["t"], one) + tf.gather(found["u"], one)
    return {"rows": rows, "norm": tf.norm(found["t"])}


def _recomputed(found: Any, one: Any) -> Any:
    again = tf.recompute_grad(lambda i: tf.gather(found["t"], i) + 1.0)
    looped = tf.while_loop(
        lambda step, _: step < 2,
        lambda step, total: (step + 1, total + again(one)),
        (0, tf.zeros([tf.size(one), COLUMNS])),
    )
    return {"rows": again(one), "looped": looped[1]}


def _nested_sparse(found: Any, one: Any, weight: Any) -> Any:
    """Sparse ids of rank 3, some bags empty."""
    count = tf.range(tf.size(one, tf.int64))
    places = tf.stack([count // 2, count % 2, count * 0], 1)
    bags, weights = (tf.SparseTensor(places, values, [3, 2, 4]) for values in (one, weight))
    return {
        combiner: tf.nn.safe_embedding_lookup_sparse(
            found["t"], bags, weights, combiner=combiner, default_id=default
        )
        for combiner, default in (("sum", None), ("mean", 7), ("sqrtn", None))
    }


def _in_loops(found: Any, one: Any) -> Any:
    """Sparse lookups in a loop, and a gradient through one that gathers."""

    def body(step: Any, total: Any) -> Any:
        half = tf.size(one, tf.int64) // 2
        splits = tf.stack([tf.constant(0, tf.int64), half, tf.size(one, tf.int64)])
        bags = tf.RaggedTensor.from_row_splits(one, splits).to_sparse()
        weights = tf.SparseTensor(bags.indices, tf.cast(bags.values, tf.float32), bags.dense_shape)
        safe = tf.nn.safe_embedding_lookup_sparse(found["t"], bags, weights, combiner="mean")
        plain = tf.nn.embedding_lookup_sparse(found["t"], bags, None, combiner="sqrtn")
        return step + 1, total + safe + plain[:1]

    start = tf.ones([tf.size(one), COLUMNS])
    with tf.GradientTape() as tape:
        tape.watch(start)
        scaled = tf.while_loop(
            lambda step, _: step < 3,
            lambda step, x: (step + 1, tf.tanh(x) * tf.gather(found["t"], one)),
            (0, start),
        )[1]
    total = tf.while_loop(lambda step, _: step < 3, body, (0, tf.zeros([2, COLUMNS])))[1]
    return {"total": total, "gradient": tape.gradient(scaled, start)}


class PythonFlow(tf.Module):
    """Loops and branches as Python has them, in functions that call functions."""

    def __init__(self) -> None:
        super().__init__()
        self.table = table()

    @tf.function
    def inner(self, x: Any, one: Any) -> Any:
        rows = tf.gather(self.table, one)
        if tf.reduce_sum(rows) > 100.0:
            return x + rows
        return x - tf.gather(self.table, one // 2)

    @tf.function(input_signature=[spec(None)])
    def __call__(self, one: Any) -> Any:
        x = tf.zeros([tf.size(one), COLUMNS])
        for outer in tf.range(4):
            if outer % 2 == 0:
                x = self.inner(x, (one + tf.cast(outer, tf.int64)) % 90)
            else:
                for _ in tf.range(outer):
                    x = x * 0.5 + self.inner(x, one)
                    if tf.reduce_sum(x) > 1e6:
                        break
        return {"x": x}


def _python_flow(path: Path) -> None:
    found = PythonFlow()
    tf.saved_model.save(found, str(path), signatures=found.__call__)


def _words(path: Path) -> None:
    """Text that is split, looked up in a table, and pooled as ragged rows."""
    holder = tf.Module()
    holder.rows = table()
    keys, values = tf.constant(["a", "b"]), tf.constant([3, 4], tf.int64)
    holder.known = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), 7)

    @tf.function(input_signature=[spec(None, dtype=tf.string, name="words")])
    def function(words: Any) -> Any:
        found = tf.ragged.map_flat_values(holder.known.lookup, tf.strings.split(words))
        rows = tf.nn.embedding_lookup(holder.rows, found)
        return {
            "safe": tf.nn.safe_embedding_lookup_sparse(holder.rows, found.to_sparse()),
            "dense": rows.to_tensor(),
            "most": tf.reduce_max(rows, 1),
        }

    tf.saved_model.save(holder, str(path), signatures=function)


def _estimator(path: Path) -> None:
    """What an estimator of TensorFlow 1 exports: examples parsed into feature columns."""
    column = tf.feature_column

    def build() -> Any:
        serialized = v1.placeholder(tf.string, [None], "examples")
        city = column.categorical_column_with_hash_bucket("city", 200)
        identity = column.categorical_column_with_identity("item", 150, default_value=0)
        item = column.weighted_categorical_column(identity, "weight")
        age = column.bucketized_column(column.numeric_column("age"), [18.0, 30.0, 50.0])
        crossed = column.crossed_column(["city", age], 300)
        columns = [
            column.embedding_column(city, 8, combiner="sqrtn"),
            column.embedding_column(item, 8, combiner="sum"),
            column.embedding_column(crossed, 4),
            column.numeric_column("age"),
        ]
        features = v1.parse_example(serialized, column.make_parse_example_spec(columns))
        parts = v1.min_max_variable_partitioner(max_partitions=3, min_slice_size=2000)
        with v1.variable_scope("dnn", partitioner=parts):
            x = v1.feature_column.input_layer(features, columns)
        linear = v1.feature_column.linear_model(features, [city, item, crossed])
        return {
            "serving_default": ({"examples": serialized}, {"logits": x[:, :1] + linear}),
            "regress": ({"examples": serialized}, {"x": x}),
        }

    export_graph(path, build)


def _examples() -> Feeds:
    train = tf.train
    full = {
        "city": train.Feature(bytes_list=train.BytesList(value=[b"x", b"y"])),
        "item": train.Feature(int64_list=train.Int64List(value=[3, 4, 5])),
        "weight": train.Feature(float_list=train.FloatList(value=[0.5, 1.0, 2.0])),
        "age": train.Feature(float_list=train.FloatList(value=[33.0])),
    }
    found = [
        train.Example(features=train.Features(feature=features)).SerializeToString()
        for features in (full, {"age": full["age"]})
    ]
    return {"examples": np.array(found, object)}


def _partitioned_in_flow(path: Path) -> None:
    """A partitioned variable in a branch and in a loop of lowered control flow."""

    def build() -> Any:
        v1.disable_control_flow_v2()
        try:
            parts = v1.get_variable(
                "emb",
                initializer=tf.constant(numbers(303)),
                partitioner=v1.fixed_size_partitioner(3),
                use_resource=True,
            )
            one = v1.placeholder(tf.int64, [None], "ids")

            def look_up(at: Any) -> Any:
                return v1.nn.embedding_lookup(parts, at, "div")

            branch = v1.cond(tf.size(one) > 2, lambda: look_up(one), lambda: look_up(one * 2))
            loop = v1.while_loop(
                lambda step, at: step < 3,
                lambda step, at: (step + 1, tf.cast(look_up(at)[:, 1], tf.int64) % 303),
                (0, one),
            )[1]
            return {"serving_default": ({"ids": one}, {"branch": branch, "loop": loop})}
        finally:
            v1.enable_control_flow_v2()

    export_graph(path, build)


class KerasFlow(keras.Model):
    """Keras' own loop, branch and scan."""

    def __init__(self) -> None:
        super().__init__()
        keras.utils.set_random_seed(41)
        self.rows = keras.layers.Embedding(90, 6)
        self.mix = keras.layers.Dense(6)

    def call(self, one: Any) -> Any:
        ops = keras.ops
        start = ops.zeros((ops.shape(one)[0], 6))
        _, looped = ops.while_loop(
            lambda step, x: step < 3,
            lambda step, x: (step + 1, self.mix(x + self.rows(one + step))),
            (0, start),
        )
        either = ops.cond(
            ops.sum(one) > 5, lambda: self.rows(one), lambda: self.rows(one * 0) * 2.0
        )
        scanned, _ = ops.scan(
            lambda carry, at: (carry + ops.sum(self.rows(at)), carry), ops.zeros(()), one
        )
        return looped + either + scanned


def _keras_flow(path: Path) -> None:
    model = KerasFlow()
    model(np.array([1, 2], np.int32))
    model.export(str(path), input_signature=[spec(None, dtype=tf.int32)], verbose=False)


def _keras_text(path: Path) -> None:
    """Keras' preprocessing layers."""
    keras.utils.set_random_seed(42)
    word = keras.Input((1,), dtype="string", name="word")
    number = keras.Input((1,), dtype="int64", name="number")
    tokens = keras.layers.TextVectorization(
        output_sequence_length=4, vocabulary=["red", "blue", "x"]
    )(word)
    rows = keras.layers.Embedding(80, 6)(tokens)
    looked_up = keras.layers.IntegerLookup(vocabulary=[5, 6, 7])(number)
    crossed = keras.layers.HashedCrossing(100)((word, number))
    beside = [keras.layers.Embedding(n, 6)(one) for n, one in ((90, looked_up), (100, crossed))]
    outputs = keras.layers.Dense(2)(keras.layers.Concatenate(axis=1)([rows, *beside]))
    keras.Model([word, number], outputs).export(str(path), verbose=False)


def _archive(path: Path) -> None:
    """Endpoints of one's own, over some of the layers."""
    keras.utils.set_random_seed(43)
    one = keras.Input((3,), dtype="int32", name="ids")
    flat = keras.layers.Flatten()(keras.layers.Embedding(90, 6)(one))
    model = keras.Model(one, keras.layers.Dense(2)(flat))
    archive = keras.export.ExportArchive()
    archive.track(model)
    signature = [spec(None, 3, dtype=tf.int32)]
    archive.add_endpoint("serving_default", model.call, input_signature=signature)
    archive.add_endpoint(
        "rows", lambda ids: tf.reduce_sum(model.layers[1](ids), 1), input_signature=signature
    )
    archive.write_out(str(path), verbose=False)


_ONE = {"t": table}
_KINDS = (tf.float64, tf.int8, tf.uint8, tf.bool, tf.int32, tf.complex64, tf.uint16)
_INT32 = {"dtype": np.int32}
_KERAS_TEXT = {
    "word": np.array([[b"red x"], [b"blue"]], object),
    "number": np.array([[5], [700]], np.int64),
}


def _default(*requests: Feeds) -> dict[str, tuple[Feeds, ...]]:
    return {"serving_default": requests}


def _of_keras(*requests: Feeds) -> dict[str, tuple[Feeds, ...]]:
    return {"serving_default": requests, "serve": requests}


MODELS = {
    "scalar_ids": AwkwardModel(
        module(_scalar, _ONE, spec()), _default({"ids": np.int64(5)}, {"ids": np.int64(89)}), 1
    ),
    "no_inputs": AwkwardModel(module(_constant_ids, _ONE), _default({}), 1),
    "tied": AwkwardModel(
        module(_tied, _ONE, spec(None, 3)), _default(ids([1, 2, 0], [7, 0, 0])), 1
    ),
    "dtypes": AwkwardModel(
        module(
            _dtypes,
            {k.name: (lambda k=k: table(1000, k, k.name)) for k in _KINDS},
            spec(None),
        ),
        _default(ids(1, 999, 500)),
        len(_KINDS),
    ),
    "read_whole_too": AwkwardModel(
        module(_read_whole_too, {"t": table, "u": lambda: table(95, name="u")}, spec(None)),
        _default(ids(1, 89)),
        1,
    ),
    "recomputed": AwkwardModel(
        module(_recomputed, _ONE, spec(None)), _default(ids(1, 2, 3), ids()), 1
    ),
    "nested_sparse": AwkwardModel(
        module(_nested_sparse, _ONE, spec(None), spec(None, dtype=tf.float32, name="weight")),
        _default(ids(1, 2, 3) | {"weight": np.array([1, 2, 3], np.float32)}),
        1,
    ),
    "in_loops": AwkwardModel(
        module(_in_loops, _ONE, spec(None)), _default(ids(1, 2, 3), ids(4)), 1
    ),
    "python_flow": AwkwardModel(_python_flow, _default(ids(1, 2, 3), ids(4)), 1),
    "words": AwkwardModel(
        _words, _default({"words": np.array([b"a b c", b"", b"zz a"], object)}), 1
    ),
    "estimator": AwkwardModel(
        _estimator, {"serving_default": (_examples(),), "regress": (_examples(),)}, 4
    ),
    "partitioned_in_flow": AwkwardModel(_partitioned_in_flow, _default(ids(1, 2, 302), ids(4)), 3),
    "keras_flow": AwkwardModel(_keras_flow, _of_keras(ids(1, 2, 3, **_INT32), ids(4, **_INT32)), 1),
    "keras_text": AwkwardModel(_keras_text, _of_keras(_KERAS_TEXT), 3),
    "archive": AwkwardModel(
        _archive,
        {name: (ids([1, 2, 0], [3, 0, 0], **_INT32),) for name in ("serving_default", "rows")},
        1,
    ),
}
