"""Variables that are parts of one table are found to be, or it is said why they are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import tensorflow as tf

from shardserve.batching.errors import InvalidArgument
from shardserve.shards.cut.cut import CutRule, cut_saved_model
from shardserve.shards.cut.lookups import Motif
from shardserve.shards.cut.partitioned import Strategy
from tests.saved_models import THRESHOLD
from tests.saved_models_tf1 import (
    CASES,
    COLUMNS,
    PARTS,
    ROWS,
    export_graph,
    listed,
    partitioned,
    sliced,
)

v1 = tf.compat.v1
RULE = CutRule(threshold=THRESHOLD)
EACH = CutRule(threshold=100)

BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize("name", [name for name in BY_NAME if "_div" in name or "_mod" in name])
def test_parts_become_one_table_in_every_signature(name, saved_model):
    model = cut_saved_model(saved_model(name), RULE)
    (found,) = model.tables.values()
    assert found.table.name == "emb"
    assert (found.table.rows, found.table.row_shape) == (ROWS, (COLUMNS,))
    assert found.strategy == (Strategy.DIV if "div" in name else Strategy.MOD)
    assert len(found.lookups) == 7
    assert not [v for v in model.variables if "emb" in v.shared_name]


def test_pools_are_found_above_a_partitioned_lookup(saved_model):
    (found,) = cut_saved_model(saved_model("tf1_mod_resource"), RULE).tables.values()
    motifs = sorted(str(lookup.motif) for lookup in found.lookups)
    assert motifs == [Motif.GATHER] * 3 + [Motif.REDUCE_POOL] + [Motif.SEGMENT_POOL] * 3


def test_rows_of_mod_lie_a_number_of_parts_apart(saved_model):
    (found,) = cut_saved_model(saved_model("tf1_mod_ref"), RULE).tables.values()
    assert [(run.first, run.count, run.start, run.step) for run in found.stored] == [
        (0, 26, 0, 4),
        (26, 26, 1, 4),
        (52, 26, 2, 4),
        (78, 25, 3, 4),
    ]


def export(path: Path, build) -> Path:
    """A model whose one signature gives `build(ids)`."""

    def graph():
        ids = v1.placeholder(tf.int64, [None], "ids")
        return {"serving_default": ({"ids": ids}, build(ids))}

    export_graph(path, graph)
    return path


def by_hand(parts, ids, assigned, local):
    """What embedding_lookup makes, from any arithmetic on ids."""
    assigned = tf.cast(assigned, tf.int32)
    places = tf.dynamic_partition(tf.range(tf.size(ids)), assigned, len(parts))
    rows = tf.dynamic_partition(local, assigned, len(parts))
    found = [tf.gather(part, row) for part, row in zip(parts, rows, strict=True)]
    return tf.dynamic_stitch(places, found)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (
            lambda ids, parts: {"rows": by_hand(parts, ids, ids % 4, (ids + 4) // 4 - 1)},
            "no strategy partitions 103 ids over 4 parts",
        ),
        (
            lambda ids, parts: {"rows": by_hand(parts, ids, 3 - ids % 4, ids // 4)},
            "no strategy partitions 103 ids over 4 parts",
        ),
        (
            lambda ids, parts: {"rows": by_hand(parts[::-1], ids, ids % 4, ids // 4)},
            "its parts do not have the rows that 'mod' gives 103 ids",
        ),
        (
            lambda ids, parts: {
                "rows": v1.nn.embedding_lookup(parts, ids, "mod"),
                "others": v1.nn.embedding_lookup(parts, ids, "div"),
            },
            "partition ids in different ways: div, mod",
        ),
        (
            lambda ids, parts: {
                "rows": v1.nn.embedding_lookup(parts, ids, "mod"),
                "alone": tf.gather(parts[2], ids),
            },
            "emb_2 is one of 4 parts, and read alone too",
        ),
    ],
    ids=["other arithmetic", "other order", "uneven", "both strategies", "read alone"],
)
def test_what_is_no_partition_leaves_tables_of_their_own_and_says_why(tmp_path, build, said):
    path = export(tmp_path / "m", lambda ids: build(ids, listed("emb", "mod")))
    model = cut_saved_model(path, EACH)
    assert sorted(model.tables) == [f"emb_{part}" for part in range(PARTS)]
    assert all(said in found.note for found in model.tables.values())


def test_parts_of_a_table_below_the_threshold_stay_whole_as_slices(saved_model):
    model = cut_saved_model(saved_model("tf1_div_ref"), CutRule(threshold=1 << 30))
    assert not model.tables
    names = [f"emb/part_{part}" for part in range(PARTS)]
    assert [v.name for v in model.whole] == ["dense", *names]
    assert {v.slice_spec for v in model.variables if v.shared_name in names} == {
        "103 6 0,26:0,6",
        "103 6 26,26:0,6",
        "103 6 52,26:0,6",
        "103 6 78,25:0,6",
    }


@pytest.mark.parametrize("kind", ["ref", "resource"])
def test_slices_that_are_read_as_one_tensor_are_one_table(kind, saved_model):
    model = cut_saved_model(saved_model(f"tf1_concatenated_{kind}"), RULE)
    forms = {name: (t.table.rows, t.table.columns) for name, t in model.tables.items()}
    table = (ROWS, COLUMNS)
    assert forms == {"columns": table, "rows": table, "each": table, "kernel": (COLUMNS, ROWS)}
    assert model.tables["columns"].note == "3 variables, slices of one entry, are one table"
    assert len(model.tables["columns"].lookups) == 3
    assert str(model.tables["kernel"].lookups[0]) == "top 3 of scores"
    assert {v.name for v in model.whole} == {"read_alone/part_0", "read_alone/part_1"}


def columns_apart(parts, ids):
    return tf.concat([tf.gather(parts[0], ids), tf.gather(parts[1], ids * 2 % ROWS)], axis=1)


def columns_turned(parts, ids):
    return tf.concat([tf.gather(part, ids) for part in reversed(parts)], axis=1)


def columns_below(parts, ids):
    return tf.concat([tf.gather(part, ids) for part in parts], axis=0)


@pytest.mark.parametrize("read", [columns_apart, columns_turned, columns_below])
def test_columns_in_parts_that_are_no_concatenation_stay_whole_and_it_is_said_why(tmp_path, read):
    def build(ids):
        return {"rows": read(list(sliced("emb", [1, 2], use_resource=True)), ids)}

    model = cut_saved_model(export(tmp_path / "m", build), EACH)
    assert {v.reason for v in model.whole} == {
        "it restores some columns ('103 6 0,103:0,3') of 'emb'",
        "it restores some columns ('103 6 0,103:3,3') of 'emb'",
    }


def test_why_a_concatenation_is_no_table_is_said_of_its_parts(tmp_path: Path):
    def build(ids):
        whole = tf.convert_to_tensor(sliced("emb", [1, 2], use_resource=True))
        return {"rows": tf.gather(whole, ids) + tf.reduce_max(whole)}

    path = export(tmp_path / "m", build)
    model = cut_saved_model(path, EACH)
    assert all("; emb: Max " in v.reason for v in model.whole)
    with pytest.raises(InvalidArgument, match="table 'emb' cannot be cut: Max "):
        cut_saved_model(path, CutRule(only=frozenset({"emb"})))


def test_a_single_part_that_is_a_slice_is_a_table(saved_model):
    (found,) = cut_saved_model(saved_model("tf1_ref"), RULE).tables.values()
    assert (found.table.rows, found.strategy) == (ROWS, None)


def test_a_partitioned_table_can_be_named(tmp_path: Path):
    path = export(
        tmp_path / "m",
        lambda ids: {
            "rows": v1.nn.embedding_lookup(
                partitioned("emb", parts=PARTS, use_resource=True), ids, "div"
            )
        },
    )
    assert set(cut_saved_model(path, CutRule(only=frozenset({"emb"}))).tables) == {"emb"}
    parts = CutRule(only=frozenset({"emb/part_1"}))
    assert set(cut_saved_model(path, parts).tables) == {"emb/part_1"}
