"""More SavedModels of TensorFlow 2: variables in shards, several signatures, text, control flow."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from hypothesis import strategies as st
from tensorflow.python.distribute.sharded_variable import ShardedVariable

from tests.saved_models import Feeds, ModelCase, int_array
from tests.saved_models_tf1 import numbers

WORDS = ("red", "green", "blue", "a longer word")


def _ids(dtype: tf.DType = tf.int64, shape: tuple[int | None, ...] = (None,)) -> tf.TensorSpec:
    return tf.TensorSpec(shape, dtype, name="ids")


class _Sharded(tf.Module):
    """A variable that lies in shards, of unlike sizes, while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        pieces = np.split(numbers(90), [40, 70])
        self.emb = ShardedVariable([tf.Variable(p, name=f"part_{i}") for i, p in enumerate(pieces)])

    @tf.function(input_signature=[_ids()])
    def __call__(self, ids: Any) -> dict[str, Any]:
        bags = tf.RaggedTensor.from_uniform_row_length(ids, 1).to_sparse()
        return {
            "rows": tf.nn.embedding_lookup(self.emb, ids),
            "bags": tf.nn.embedding_lookup_sparse(self.emb, bags, None, combiner="sum"),
        }


class Subclassed(keras.Model):
    """Two embeddings, one of them used twice, in a model that is a class."""

    def __init__(self) -> None:
        super().__init__()
        keras.utils.set_random_seed(11)
        self.items = keras.layers.Embedding(70, 8)
        self.users = keras.layers.Embedding(50, 8)
        self.head = keras.layers.Dense(2)

    def call(self, inputs: dict[str, Any]) -> Any:
        seen = keras.ops.mean(self.items(inputs["seen"]), axis=1)
        pair = self.users(inputs["user"]) * self.items(inputs["item"])
        return self.head(keras.ops.concatenate([pair, seen], axis=-1))


def _keras_subclassed(path: Path) -> None:
    model = Subclassed()
    ids = {"user": [1], "item": [2], "seen": [[1, 2, 3, 4]]}
    model({name: np.array(value, np.int32) for name, value in ids.items()})
    signature = {
        name: tf.TensorSpec([None, *np.shape(value)[1:]], tf.int32, name=name)
        for name, value in ids.items()
    }
    model.export(str(path), input_signature=[signature], verbose=False)


class _Signatures(tf.Module):
    """Signatures that share tables, that use only some, and that use none; flags and texts."""

    def __init__(self) -> None:
        super().__init__()
        self.first = tf.Variable(numbers(80), name="first")
        self.second = tf.Variable(numbers(60), name="second")

    @tf.function(
        input_signature=[
            _ids(),
            tf.TensorSpec([None], tf.string, name="text"),
            tf.TensorSpec([None], tf.bool, name="wanted"),
        ]
    )
    def both(self, ids: Any, text: Any, wanted: Any) -> dict[str, Any]:
        rows = tf.gather(self.first, ids) + tf.gather(self.second, ids)
        return {
            "rows": tf.where(wanted[:, None], rows, tf.zeros_like(rows)),
            "labels": tf.strings.join([text, tf.strings.as_string(ids)], ":"),
            "skipped": tf.logical_not(wanted),
        }

    @tf.function(input_signature=[_ids(tf.int32, (None, 4))])
    def pooled(self, ids: Any) -> dict[str, Any]:
        return {"mean": tf.reduce_mean(tf.gather(self.first, ids), axis=1)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def no_table(self, text: Any) -> dict[str, Any]:
        return {"lengths": tf.strings.length(text)}

    def export(self, path: Path) -> None:
        signatures = {
            "serving_default": self.both,
            "pooled": self.pooled,
            "no_table": self.no_table,
        }
        tf.saved_model.save(self, str(path), signatures=signatures)


class _Vocabulary(tf.Module):
    """Ids out of a vocabulary's file, with buckets for what is not in it."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        file.write_text("\n".join(WORDS))
        initializer = tf.lookup.TextFileInitializer(
            str(file), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        )  # fmt: skip
        self.ids = tf.lookup.StaticVocabularyTable(initializer, num_oov_buckets=50)
        self.words = tf.Variable(numbers(len(WORDS) + 50), name="words")

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.string, name="words")])
    def __call__(self, words: Any) -> dict[str, Any]:
        ids = self.ids.lookup(words)
        return {"ids": ids, "sum": tf.reduce_sum(tf.gather(self.words, ids), axis=1)}


def _vocabulary(path: Path) -> None:
    with TemporaryDirectory() as directory:
        module = _Vocabulary(Path(directory) / "words.txt")
        tf.saved_model.save(module, str(path), signatures=module.__call__)


class _ControlFlow(tf.Module):
    """Gathers inside of a branch, a loop and a map, and beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.beside = tf.Variable(numbers(90), name="beside")
        self.branch = tf.Variable(numbers(90), name="branch")
        self.loop = tf.Variable(numbers(90), name="loop")
        self.mapped = tf.Variable(numbers(90), name="mapped")

    @tf.function(input_signature=[_ids()])
    def __call__(self, ids: Any) -> dict[str, Any]:
        chosen = tf.cond(
            tf.size(ids) > 2, lambda: tf.gather(self.branch, ids), lambda: tf.zeros([1, 6])
        )
        hops = tf.while_loop(
            lambda step, at: step < 3,
            lambda step, at: (step + 1, tf.cast(tf.gather(self.loop, at)[:, 0], tf.int64) // 7),
            (0, ids),
        )[1]
        mapped = tf.map_fn(
            lambda one: tf.gather(self.mapped, one), ids, fn_output_signature=tf.float32
        )
        picked = tf.cond(tf.size(ids) > 3, lambda: ids * 2 % 90, lambda: ids)
        return {
            "branch": chosen,
            "hops": hops,
            "mapped": mapped,
            "beside": tf.gather(self.beside, picked),
            "after": tf.gather(self.beside, hops),
        }


class _Narrow(tf.Module):
    """Rows of two bytes an element, pooled by the graph; ids of three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.half = tf.Variable(tf.cast(numbers(120) / 64, tf.float16), name="half")
        self.brain = tf.Variable(tf.cast(numbers(120) / 64, tf.bfloat16), name="brain")

    @tf.function(input_signature=[_ids(tf.int32, (None, 2, 3))])
    def __call__(self, ids: Any) -> dict[str, Any]:
        bags = tf.RaggedTensor.from_uniform_row_length(tf.reshape(ids, [-1]), 6).to_sparse()
        return {
            "half_sum": tf.reduce_sum(tf.gather(self.half, ids), axis=2),
            "brain_rows": tf.cast(tf.nn.embedding_lookup(self.brain, ids), tf.float32),
            "brain_max": tf.cast(tf.reduce_max(tf.gather(self.brain, ids), axis=1), tf.float32),
            "half_bags": tf.nn.embedding_lookup_sparse(self.half, bags, None, combiner="mean"),
        }


class _Halves(tf.Module):
    """Bags of rows of half precision, which TensorFlow sums as float32."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(4)
        self.half = tf.Variable(tf.cast(rng.normal(size=(130, 16)), tf.float16), name="half")
        self.brain = tf.Variable(tf.cast(rng.normal(size=(150, 5)), tf.bfloat16), name="brain")

    @tf.function(input_signature=[_ids(), tf.TensorSpec([None], tf.int64, name="lengths")])
    def __call__(self, ids: Any, lengths: Any) -> dict[str, Any]:
        bags = tf.RaggedTensor.from_row_lengths(ids, lengths).to_sparse()
        pooled = {
            f"{name}_{combiner}": tf.nn.safe_embedding_lookup_sparse(
                table, bags, None, combiner=combiner
            )
            for name, table in (("half", self.half), ("brain", self.brain))
            for combiner in ("sum", "mean", "sqrtn")
        }
        return {name: tf.cast(value, tf.float32) for name, value in pooled.items()}


def _save(module: tf.Module, path: Path) -> None:
    tf.saved_model.save(module, str(path), signatures=module.__call__)


@st.composite
def _flat_ids(draw: st.DrawFn, rows: int, low: int = 1) -> Feeds:
    return {"ids": draw(int_array(0, rows, (draw(st.integers(low, 6)),), np.int64))}


@st.composite
def _subclassed_feeds(draw: st.DrawFn) -> Feeds:
    batch = draw(st.integers(1, 5))
    return {
        "user": draw(int_array(0, 50, (batch,), np.int32)),
        "item": draw(int_array(0, 70, (batch,), np.int32)),
        "seen": draw(int_array(0, 70, (batch, 4), np.int32)),
    }


@st.composite
def _both_feeds(draw: st.DrawFn) -> Feeds:
    batch = draw(st.integers(0, 5))
    return {
        "ids": draw(int_array(0, 60, (batch,), np.int64)),
        "text": np.array(draw(st.lists(st.binary(), min_size=batch, max_size=batch)), object),
        "wanted": draw(int_array(0, 2, (batch,), bool)),
    }


@st.composite
def _pooled_feeds(draw: st.DrawFn) -> Feeds:
    return {"ids": draw(int_array(0, 80, (draw(st.integers(0, 5)), 4), np.int32))}


@st.composite
def _text_feeds(draw: st.DrawFn) -> Feeds:
    return {"text": np.array(draw(st.lists(st.binary(), min_size=1)), object)}


@st.composite
def _vocabulary_feeds(draw: st.DrawFn) -> Feeds:
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 3)))
    count = shape[0] * shape[1]
    word = st.sampled_from([w.encode() for w in WORDS]) | st.binary(max_size=4)
    words = draw(st.lists(word, min_size=count, max_size=count))
    return {"words": np.array(words, object).reshape(shape)}


@st.composite
def _narrow_feeds(draw: st.DrawFn) -> Feeds:
    return {"ids": draw(int_array(0, 120, (draw(st.integers(1, 4)), 2, 3), np.int32))}


@st.composite
def _halves_feeds(draw: st.DrawFn) -> Feeds:
    lengths = draw(st.lists(st.integers(0, 30), min_size=1, max_size=5))
    return {
        "ids": np.random.default_rng(draw(st.integers(0, 99))).integers(0, 130, sum(lengths)),
        "lengths": np.array(lengths, np.int64),
    }


CASES = (
    ModelCase("sharded_variable", lambda path: _save(_Sharded(), path), _flat_ids(90)),
    ModelCase("keras_subclassed", _keras_subclassed, _subclassed_feeds()),
    ModelCase(
        "signatures",
        lambda path: _Signatures().export(path),
        _both_feeds(),
        {"pooled": _pooled_feeds(), "no_table": _text_feeds()},
    ),
    ModelCase("vocabulary", _vocabulary, _vocabulary_feeds()),
    ModelCase("control_flow", lambda path: _save(_ControlFlow(), path), _flat_ids(90)),
    ModelCase("narrow", lambda path: _save(_Narrow(), path), _narrow_feeds()),
    ModelCase("halves", lambda path: _save(_Halves(), path), _halves_feeds()),
)
