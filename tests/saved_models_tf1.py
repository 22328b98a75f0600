"""SavedModels in the format of TensorFlow 1: ref and resource variables, in parts or whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from tests.saved_models import Feeds, ModelCase, int_array

v1 = tf.compat.v1

#: Not a multiple of PARTS: the first parts have a row more.
ROWS, COLUMNS, PARTS = 103, 6, 4

Tensors = Mapping[str, Any]


def export_graph(path: Path, build: Callable[[], Mapping[str, tuple[Tensors, Tensors]]]) -> None:
    """Save what `build` makes in a new graph: (inputs, outputs) of each signature."""
    with tf.Graph().as_default(), v1.Session() as session:
        signatures = {name: _signature(*ends) for name, ends in build().items()}
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(
            session, ["serve"], signatures, main_op=v1.tables_initializer()
        )
        builder.save()


def _signature(inputs: Tensors, outputs: Tensors) -> Any:
    info = v1.saved_model.build_tensor_info
    return v1.saved_model.build_signature_def(
        {name: info(t) for name, t in inputs.items()},
        {name: info(t) for name, t in outputs.items()},
        "tensorflow/serving/predict",
    )


def numbers(rows: int, columns: int = COLUMNS) -> np.ndarray:
    """Small whole numbers, different in each row: sums of a few are exact in any order."""
    return np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)


def partitioned(name: str, *, parts: int, use_resource: bool) -> Any:
    """TensorFlow 1's partitioned variable."""
    return v1.get_variable(
        name,
        initializer=tf.constant(numbers(ROWS)),
        partitioner=v1.fixed_size_partitioner(parts),
        use_resource=use_resource,
    )


def listed(name: str, strategy: str) -> list[Any]:
    """As many variables of their own, with the rows that the strategy gives them."""
    if strategy == "mod":
        pieces = [numbers(ROWS)[part::PARTS] for part in range(PARTS)]
    else:
        pieces = np.array_split(numbers(ROWS), PARTS)
    return [
        v1.get_variable(f"{name}_{part}", initializer=piece, use_resource=True)
        for part, piece in enumerate(pieces)
    ]


def lookups(table: Any, strategy: str) -> dict[str, tuple[Tensors, Tensors]]:
    """Every kind of embedding lookup, in two signatures over one table."""
    grid = v1.placeholder(tf.int32, [None, 2, 3], "grid")
    indices = v1.placeholder(tf.int64, [None, 2], "indices")
    values = v1.placeholder(tf.int64, [None], "values")
    count = v1.placeholder(tf.int64, [], "count")
    ids = tf.SparseTensor(indices, values, tf.stack([count, 8]))
    weights = tf.SparseTensor(indices, tf.cast(values % 3 + 1, tf.float32), ids.dense_shape)
    dense = v1.get_variable("dense", initializer=numbers(COLUMNS, 2) / 8, use_resource=True)
    sparse = v1.nn.embedding_lookup_sparse
    outputs = {
        "grid": v1.nn.embedding_lookup(table, grid, strategy),
        "pooled": tf.reduce_sum(v1.nn.embedding_lookup(table, grid, strategy), axis=2),
        "flat": v1.nn.embedding_lookup(table, values, strategy, max_norm=300.0) @ dense,
        "mean": sparse(table, ids, None, strategy, combiner="mean"),
        "weighted": sparse(table, ids, weights, strategy, combiner="sqrtn"),
        "safe": v1.nn.safe_embedding_lookup_sparse(
            table, ids, None, "sum", partition_strategy=strategy
        ),
    }
    inputs = {"grid": grid, "indices": indices, "values": values, "count": count}
    word = v1.placeholder(tf.string, [None], "word")
    hashed = tf.strings.to_hash_bucket_fast(word, ROWS)
    by_word = {"rows": v1.nn.embedding_lookup(table, hashed, strategy), "word": tf.identity(word)}
    return {"serving_default": (inputs, outputs), "by_word": ({"word": word}, by_word)}


def sliced(name: str, parts: list[int], *, use_resource: bool) -> Any:
    """A variable partitioned along both or either of its axes."""
    return v1.get_variable(
        name,
        initializer=tf.constant(numbers(ROWS)),
        partitioner=lambda **_: parts,
        use_resource=use_resource,
    )


def concatenated(*, use_resource: bool) -> dict[str, tuple[Tensors, Tensors]]:
    """Partitioned variables that are read as tensors, and columns that are gathered part by part.

    Of `read_alone` a part is read, too.
    """
    grid = v1.placeholder(tf.int32, [None, 3], "grid")
    columns = sliced("columns", [1, 3], use_resource=use_resource)
    rows = sliced("rows", [4, 1], use_resource=use_resource)
    each = sliced("each", [1, 2], use_resource=use_resource)
    read_alone = sliced("read_alone", [1, 2], use_resource=use_resource)
    kernel = v1.get_variable(
        "kernel",
        initializer=tf.constant(numbers(COLUMNS, ROWS) / 64),
        partitioner=lambda **_: [1, 4],
        use_resource=use_resource,
    )
    as_tensor = tf.gather(tf.convert_to_tensor(columns), grid)
    outputs = {
        "columns": as_tensor,
        "pooled": tf.reduce_mean(tf.gather(tf.convert_to_tensor(columns), grid), axis=1),
        "rows": tf.gather(tf.convert_to_tensor(rows), grid),
        "each": tf.concat([tf.gather(part, grid) for part in each], axis=-1),
        "pooled_each": tf.reduce_sum(
            tf.concat([tf.gather(part, grid) for part in each], axis=2), axis=1
        ),
        "best": tf.math.top_k(tf.matmul(as_tensor[:, 0], kernel), 3).indices,
        "read_alone": tf.gather(tf.convert_to_tensor(read_alone), grid)
        + tf.reduce_sum(next(iter(read_alone))),
    }
    word = v1.placeholder(tf.string, [None], "word")
    hashed = tf.strings.to_hash_bucket_fast(word, ROWS)
    by_word = {"rows": tf.gather(tf.convert_to_tensor(columns), hashed)}
    return {"serving_default": ({"grid": grid}, outputs), "by_word": ({"word": word}, by_word)}


def looped() -> dict[str, tuple[Tensors, Tensors]]:
    """Lowered control flow: ids that come out of a loop, which another lookup goes into.

    The loop's `at` meets those rows in the second iteration only. One table is read in a branch.
    """
    v1.disable_control_flow_v2()
    try:
        first, second, third = (partitioned(n, parts=1, use_resource=True) for n in "abc")
        ids = v1.placeholder(tf.int64, [None], "ids")
        rows = tf.cast(v1.nn.embedding_lookup(first, ids)[:, 1], tf.int64)
        at = v1.while_loop(
            lambda step, at, by: step < 4,
            lambda step, at, by: (step + 1, (at + by) % ROWS, by * 2),
            (0, ids, rows),
        )[1]
        branch = v1.cond(
            tf.size(ids) > 2,
            lambda: v1.nn.embedding_lookup(third, ids),
            lambda: tf.zeros([1, COLUMNS]),
        )
        found = {"rows": v1.nn.embedding_lookup(second, at), "at": at, "branch": branch}
        return {"serving_default": ({"ids": ids}, found)}
    finally:
        v1.enable_control_flow_v2()


@st.composite
def _loop_feeds(draw: st.DrawFn) -> Feeds:
    return {"ids": draw(int_array(0, ROWS, (draw(st.integers(0, 5)),), np.int64))}


@st.composite
def _lookup_feeds(draw: st.DrawFn) -> Feeds:
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    pairs = [(row, place) for row, length in enumerate(lengths) for place in range(length)]
    batch = draw(st.integers(0, 3))
    return {
        "grid": draw(int_array(0, ROWS, (batch, 2, 3), np.int32)),
        "indices": np.array(pairs, np.int64),
        "values": draw(int_array(0, ROWS, (len(pairs),), np.int64)),
        "count": np.array(len(lengths), np.int64),
    }


_words = st.lists(st.binary(max_size=5), min_size=1, max_size=6).map(
    lambda words: {"word": np.array(words, object)}
)


def _case(name: str, make: Callable[[], Any], strategy: str) -> ModelCase:
    return ModelCase(
        name,
        lambda path: export_graph(path, lambda: lookups(make(), strategy)),
        _lookup_feeds(),
        {"by_word": _words},
    )


CASES = (
    _case("tf1_ref", lambda: partitioned("emb", parts=1, use_resource=False), "div"),
    _case("tf1_resource", lambda: partitioned("emb", parts=1, use_resource=True), "mod"),
    *(
        _case(
            f"tf1_{strategy}_{'resource' if resource else 'ref'}",
            lambda resource=resource: partitioned("emb", parts=PARTS, use_resource=resource),
            strategy,
        )
        for strategy in ("div", "mod")
        for resource in (False, True)
    ),
    _case("tf1_list_div", lambda: listed("emb", "div"), "div"),
    _case("tf1_list_mod", lambda: listed("emb", "mod"), "mod"),
    *(
        ModelCase(
            f"tf1_concatenated_{'resource' if resource else 'ref'}",
            lambda path, resource=resource: export_graph(
                path, lambda: concatenated(use_resource=resource)
            ),
            st.integers(0, 4)
            .flatmap(lambda n: int_array(0, ROWS, (n, 3), np.int32))
            .map(lambda grid: {"grid": grid}),
            {"by_word": _words},
        )
        for resource in (False, True)
    ),
    ModelCase("tf1_loop", lambda path: export_graph(path, looped), _loop_feeds()),
)
