"""Which matrix products the cut finds, and what it leaves alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from shardserve.shards.cut.cut import CutRule, cut_saved_model
from shardserve.shards.cut.inspection import inspect_model
from shardserve.shards.cut.planning import plan_model
from shardserve.shards.cut.scorings import Pick, Scale
from shardserve.shards.layout import Sharding
from shardserve.shards.messages import Axis
from shardserve.shards.model import PlanOptions
from tests.scored_models import THRESHOLD

RULE = CutRule(threshold=THRESHOLD)


@pytest.fixture(scope="module")
def scores(saved_model: Callable[[str], Path]) -> Path:
    return saved_model("scored")


def test_every_product_is_found_with_what_is_picked_from_it(scores):
    model = cut_saved_model(scores, RULE)
    assert set(model.tables) == {"items", "kernel", "half", "brain", "wide"}
    assert [variable.name for variable in model.whole] == ["bias"]
    read = Counter(
        (lookup.axis, lookup.pick, lookup.bias is not None, lookup.scale)
        for lookup in model.tables["kernel"].lookups
    )
    columns = Axis.COLUMNS
    assert read == {
        (columns, Pick.ALL, False, Scale.NONE): 7,
        (columns, Pick.ARG_MAX, True, Scale.NONE): 1,
        (columns, Pick.ARG_MAX, False, Scale.NONE): 1,
        (columns, Pick.ARG_MAX, False, Scale.SOFTMAX): 1,
        (columns, Pick.TOP_K, False, Scale.NONE): 4,
        (columns, Pick.TOP_K, True, Scale.NONE): 12,
        (columns, Pick.TOP_K, True, Scale.SOFTMAX): 3,
    }


def saved(tmp_path: Path, function, **variables: tf.Variable) -> Path:
    """A model whose one signature is `function(x, variables)` of x [None, 8]."""
    module = tf.Module()
    module.kept = variables
    signature = tf.function(
        lambda x: function(x, **variables),
        input_signature=[tf.TensorSpec([None, 8], tf.float32, name="x")],
    )
    tf.saved_model.save(module, str(tmp_path), signatures=signature)
    return tmp_path


def kernel(*shape: int) -> tf.Variable:
    return tf.Variable(np.ones(shape, np.float32), name="kernel")


def only_pick(path: Path) -> Pick:
    model = cut_saved_model(path, RULE)
    ((lookup,),) = (table.lookups for table in model.tables.values())
    return lookup.pick


def top(scores, k=3, **options):
    found = tf.math.top_k(scores, k, **options)
    return {"values": found.values, "indices": found.indices}


FULL_SCORES = {
    "k is not constant": lambda x, w: top(x @ w, tf.shape(x)[0]),
    "the order does not matter": lambda x, w: top(x @ w, 3, sorted=False),
    "the scores are an output too": lambda x, w: (lambda s: {"s": s, **top(s)})(x @ w),
    "the scores are used twice": lambda x, w: (lambda s: top(s) | {"m": tf.reduce_max(s)})(x @ w),
    "the bias is another for each query": lambda x, w: top(x @ w + x[:, :1]),
    "something else is done to the scores": lambda x, w: top(tf.nn.relu(x @ w)),
    "the product is of another form": lambda x, w: top(tf.einsum("bd,dn->bn", x, w) * 2.0),
    "the best query is wanted": lambda x, w: {"best": tf.argmax(x @ w, 0)},
}


@pytest.mark.parametrize("case", FULL_SCORES)
def test_what_is_not_exactly_recognised_gets_all_scores(tmp_path, case):
    path = saved(tmp_path, FULL_SCORES[case], w=kernel(8, 100))
    assert only_pick(path) is Pick.ALL


@pytest.mark.parametrize("pick", ["top_k", "arg_max"])
def test_softmax_goes_to_the_shards_with_the_pick(tmp_path, pick):
    def function(x, w):
        scores = tf.nn.softmax(x @ w)
        return top(scores) if pick == "top_k" else {"best": tf.argmax(scores, -1)}

    assert only_pick(saved(tmp_path, function, w=kernel(8, 100))) == pick


def test_the_product_of_two_variables_keeps_both_whole(tmp_path):
    def function(x, w):
        return {"y": x @ tf.matmul(w, w, transpose_b=True)}

    model = cut_saved_model(saved(tmp_path, function, w=kernel(8, 100)), RULE)
    assert not model.tables
    assert "MatMul" in model.whole[0].reason


@pytest.mark.parametrize(
    "equation", ["bd,dn->nb", "bd,dn->b", "bb,bn->bn", "bd,en->bn", "b...,dn->bn..."]
)
def test_an_einsum_of_another_form_keeps_the_variable_whole(tmp_path, equation):
    def function(x, w):
        return {"y": tf.einsum(equation, x[:8] if equation == "bb,bn->bn" else x, w)}

    assert not cut_saved_model(saved(tmp_path, function, w=kernel(8, 100)), RULE).tables


def test_a_product_inside_a_branch_is_called_out(tmp_path):
    def function(x, w):
        return {"y": tf.cond(tf.size(x) > 3, lambda: x @ w, lambda: tf.zeros([1, 100]))}

    model = cut_saved_model(saved(tmp_path, function, w=kernel(8, 100)), RULE)
    (found,) = model.tables.values()
    assert [str(one.lookup) for one in found.call_outs] == ["scores"]
    assert not found.lookups


def test_inspection_says_what_is_picked_and_where(scores):
    found = inspect_model(scores, PlanOptions(threshold=THRESHOLD))
    report = next(one for one in found.tables if one.table.name == "kernel")
    assert "7 x scores" in report.motifs
    assert "1 x arg max of scores + bias" in report.motifs
    assert "1 x arg max of softmax of scores" in report.motifs
    assert "1 x top 3 of scores" in report.motifs
    assert not any("/cut/" in node for node in report.cut_at)


def test_a_scored_table_is_planned_in_runs_of_its_classes(tmp_path):
    path = saved(tmp_path, lambda x, w: top(x @ w), w=kernel(8, 100))
    plan = plan_model("m", 1, path, PlanOptions(shards=4, threshold=THRESHOLD))
    (found,) = plan.layout.tables.values()
    assert found.sharding is Sharding.COLUMN
    path = saved(
        tmp_path / "items", lambda x, w: top(tf.matmul(x, w, transpose_b=True)), w=kernel(300, 8)
    )
    plan = plan_model("m", 1, path, PlanOptions(shards=4, threshold=THRESHOLD))
    (found,) = plan.layout.tables.values()
    assert found.sharding is Sharding.ROW_RANGE
