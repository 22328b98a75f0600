"""The models that the contract is asked of. What they compute is said where they are exported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

v1 = tf.compat.v1

CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"
PREDICT = "tensorflow/serving/predict"

#: Of the model `types`: a signature for each, that returns its input.
TYPES = (
    *("float", "double", "half", "bfloat16", "complex64", "complex128", "bool", "string"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("qint8", "quint8", "qint16", "quint16", "qint32"),
)


def export_half_plus_two(path: Path) -> None:
    """y = x / 2 + 2; besides `serving_default`, an `odd` signature of no known method."""
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None], "x")
        a = v1.get_variable("a", initializer=0.5, use_resource=True)
        y = tf.add(a * x, 2.0, "y")
        session.run(v1.global_variables_initializer())
        signatures = {
            "serving_default": _signature({"x": x}, {"y": y}),
            "odd": _signature({"x": x}, {"y": y}, "any/method"),
        }
        _save(path, session, signatures)


def export_examples(path: Path) -> None:
    """Signatures over serialised Examples with a float `x` and an optional string `name`.

    `classify`: classes name + "0" and name + "1" with scores x and x + 1; `regress`: 2 x; others
    are wrong in one way each.
    """
    with tf.Graph().as_default(), v1.Session() as session:
        serialized = v1.placeholder(tf.string, [None], "examples")
        features = {
            "x": tf.io.FixedLenFeature([1], tf.float32),
            "name": tf.io.FixedLenFeature([1], tf.string, default_value=["n"]),
        }
        parsed = v1.io.parse_example(serialized, features)
        x, name = parsed["x"], parsed["name"]
        classes = tf.concat([name + "0", name + "1"], 1)
        scores = tf.concat([x, x + 1.0], 1)
        plain = v1.placeholder(tf.float32, [None], "plain")
        ins = {"inputs": serialized}
        signatures = {
            "serving_default": _signature(ins, {"outputs": 2.0 * x}, REGRESS),
            "classify": _signature(ins, {"classes": classes, "scores": scores}, CLASSIFY),
            "labels": _signature(ins, {"classes": classes}, CLASSIFY),
            "scores": _signature(ins, {"scores": scores}, CLASSIFY),
            "regress": _signature(ins, {"outputs": 2.0 * x[:, 0]}, REGRESS),
            "two_inputs": _signature({**ins, "more": plain}, {"outputs": 1.0 * plain}, REGRESS),
            "three_outputs": _signature(
                ins, {"classes": classes, "scores": scores, "x": x}, CLASSIFY
            ),
            "odd_input": _signature({"x": serialized}, {"outputs": x}, REGRESS),
            "odd_outputs": _signature(ins, {"y": x}, REGRESS),
            "floats": _signature({"inputs": plain}, {"outputs": 1.0 * plain}, REGRESS),
            "flat_scores": _signature(ins, {"scores": x[:, 0]}, CLASSIFY),
            "mistyped_scores": _signature(ins, {"scores": tf.cast(scores, tf.float64)}, CLASSIFY),
            "wide": _signature(ins, {"outputs": scores}, REGRESS),
            "mistyped": _signature(ins, {"outputs": tf.cast(x, tf.float64)}, REGRESS),
            "short": _signature(ins, {"outputs": x[1:, 0]}, REGRESS),
        }
        _save(path, session, signatures)


def export_types(path: Path) -> None:
    """y = x for each of `TYPES`; `several` has two inputs and outputs of odd kinds.

    `count` takes about a microsecond for each of `rounds`.
    """
    with tf.Graph().as_default(), v1.Session() as session:
        signatures = {}
        for kind in TYPES:
            x = v1.placeholder(tf.as_dtype(kind), None, f"x_{kind}")
            signatures[kind] = _signature({"x": x}, {"y": tf.identity(x)})
        a = v1.placeholder(tf.float32, [None, 2], "a")
        b = v1.placeholder(tf.string, [None], "b")
        outputs = {
            "sum": tf.reduce_sum(a, 1),
            "raw_bytes": tf.identity(b),
            "total": tf.reduce_sum(a),
        }
        signatures["several"] = _signature({"a": a, "b": b}, outputs)
        rows = {"sum": outputs["sum"], "raw_bytes": outputs["raw_bytes"]}
        signatures["serving_default"] = _signature({"a": a, "b": b}, rows)
        table = tf.constant([[1.0], [2.0], [3.0]])
        ids = v1.placeholder(tf.int64, [None], "ids")
        signatures["gather"] = _signature({"ids": ids}, {"rows": tf.gather(table, ids)})
        rounds = v1.placeholder(tf.int64, [], "rounds")
        counted = tf.while_loop(lambda i: i < rounds, lambda i: i + 1, [tf.constant(0, tf.int64)])
        signatures["count"] = _signature({"rounds": rounds}, {"done": tf.identity(counted)})
        _save(path, session, signatures)


def _signature(
    inputs: dict[str, Any], outputs: dict[str, Any], method: str = PREDICT
) -> meta_graph_pb2.SignatureDef:
    info = v1.saved_model.build_tensor_info
    return v1.saved_model.build_signature_def(
        {alias: info(tensor) for alias, tensor in inputs.items()},
        {alias: info(tensor) for alias, tensor in outputs.items()},
        method,
    )


def _save(
    path: Path,
    session: Any,
    signatures: dict[str, meta_graph_pb2.SignatureDef],
    tags: Sequence[str] = ("serve",),
) -> None:
    builder = v1.saved_model.Builder(str(path))
    builder.add_meta_graph_and_variables(session, tags, signatures)
    builder.save()
