"""Layout files: there and back, and every way to be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserve.batching.errors import InvalidArgument, NotFound
from shardserve.shards.layout_file import (
    dump_layout,
    parse_layout,
    read_layout_file,
    to_file,
    to_layout,
)
from shardserve.shards.storage import Precision, Storage, Tier
from shardserve.shards.tables import Table
from tests.layouts import random_layout

TABLES = {
    "emb": Table("emb", "float32", 10, (4,)),
    "odd: name #1": Table("odd: name #1", "float32", 7, (3, 2)),
}


@given(random_layout(TABLES, 3))
def test_a_layout_written_and_read_is_the_same_layout(layout):
    text = dump_layout(to_file(layout), {"emb": "first line\nsecond"}, "What this is\n")
    assert to_layout(parse_layout(text, "file"), TABLES) == layout


def test_a_written_layout_keeps_one_line_for_each_slice():
    text = "shards: 2\ntables: {emb: {sharding: row_range, slices: [{shard: 0, rows: [0, 10]}]}}"
    layout = to_layout(parse_layout(text, "file"), TABLES)
    assert "    - {shard: 0, rows: [0, 10]}" in dump_layout(to_file(layout)).splitlines()


def test_a_grid_has_for_each_run_of_columns_a_line_that_says_how_its_rows_fall():
    text = """
shards: 3
tables:
  emb:
    sharding: grid
    bands:
    - {columns: [0, 2], sharding: row_hash, shards: [0, 1]}
    - columns: [2, 4]
      sharding: row_range
      slices: [{shard: 2, rows: [0, 10]}]
"""
    layout = to_layout(parse_layout(text, "file"), TABLES)
    places = [(s.shard, s.column_start, s.column_stop) for s in layout.tables["emb"].slices]
    assert places == [(0, 0, 2), (1, 0, 2), (2, 2, 4)]
    written = dump_layout(to_file(layout)).splitlines()
    assert "    - {columns: [0, 2], sharding: row_hash, shards: [0, 1]}" in written


def test_hot_rows_are_written_in_one_list_whatever_their_order():
    entry = "{sharding: row_mod, shards: [0, 1], hot_rows: [7, 2]}"
    layout = to_layout(parse_layout(f"shards: 2\ntables: {{emb: {entry}}}", "file"), TABLES)
    assert layout.tables["emb"].hot == (2, 7)
    assert layout.slices_of_shard(1)[0].rows.rows(0, 7).tolist() == [1, 3, 5, 7, 9, 2, 7]
    assert "    hot_rows: [2, 7]" in dump_layout(to_file(layout)).splitlines()


def test_the_layouts_replicas_and_memory_are_read():
    text = "shards: 1\nreplicas: 2\nmemory_per_shard: 1KiB\ntables: {}\n"
    file = parse_layout(text, "file")
    assert (file.replicas, file.memory_per_shard) == (2, 1024)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "int4"])
def test_only_float32_is_converted(precision):
    text = f"shards: 1\ntables: {{ids: {{sharding: table, shards: [0], precision: {precision}}}}}"
    tables = {"ids": Table("ids", "int64", 10, (4,))}
    with pytest.raises(InvalidArgument, match=f"'ids': precision '{precision}' .* of int64"):
        to_layout(parse_layout(text, "file"), tables)


def test_a_precision_that_the_table_has_is_as_saved():
    text = "shards: 1\ntables: {emb: {sharding: table, shards: [0], precision: float32}}"
    (piece,) = to_layout(parse_layout(text, "file"), TABLES).tables["emb"].slices
    assert piece.nbytes(TABLES["emb"]) == TABLES["emb"].nbytes


def test_tables_have_the_files_tier_unless_they_say_theirs():
    text = """
shards: 1
tier: mapped
cache_per_shard: 1KiB
tables:
  emb: {sharding: table, shards: [0]}
  "odd: name #1": {sharding: table, shards: [0], tier: memory, precision: int8}
"""
    layout = to_layout(parse_layout(text, "file"), TABLES)
    assert layout.tables["emb"].storage == Storage(Tier.MAPPED)
    assert layout.tables["odd: name #1"].storage == Storage(Tier.MEMORY, Precision.INT8)
    assert layout.cache_of_shard(0) == 1024


def test_what_is_mapped_takes_no_memory_but_its_cache_does():
    text = "shards: 1\ntier: mapped\nmemory_per_shard: {}B\ncache_per_shard: 100B\ntables: {}"
    tables = "{emb: {sharding: table, shards: [0]}}"
    text = text.replace("tables: {}", f"tables: {tables}")
    to_layout(parse_layout(text.replace("{}B", "100B"), "file"), TABLES)
    with pytest.raises(InvalidArgument, match="shard 0 holds 100 bytes, its memory is 99 bytes"):
        to_layout(parse_layout(text.replace("{}B", "99B"), "file"), TABLES)


def test_a_table_on_a_gpu_takes_no_memory_of_its_shard_and_a_gpu_of_its_own():
    text = """
shards: 2
memory_per_shard: 1B
tables:
  emb: {sharding: table, shards: [1], tier: gpu, precision: int8}
"""
    layout = to_layout(parse_layout(text, "file"), TABLES)
    (piece,) = layout.slices_of_shard(1)
    assert piece.storage == Storage(Tier.GPU, Precision.INT8)
    assert (piece.memory_bytes(TABLES["emb"]), piece.loaded_bytes(TABLES["emb"])) == (0, 80)
    assert [layout.gpus_of_shard(shard) for shard in (0, 1)] == [0, 1]
    assert to_layout(to_file(layout), TABLES) == layout


def test_a_precision_counts_in_the_memory():
    text = "shards: 1\nmemory_per_shard: 80B\ntables: {emb: %s}"
    entry = "{sharding: table, shards: [0], precision: int8}"
    layout = to_layout(parse_layout(text % entry, "file"), TABLES)
    assert layout.slices_of_shard(0)[0].nbytes(TABLES["emb"]) == 10 * (4 + 4)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("{sharding: diagonal, shards: [0]}", "tables.emb.sharding"),
        ("{sharding: row_range, shards: [0]}", "'emb'.*'row_range' takes 'slices'"),
        ("{sharding: row_hash, slices: [{shard: 0, rows: [0, 10]}]}", "'emb'.*takes 'shards'"),
        ("{sharding: column, slices: [{shard: 0, rows: [0, 10]}]}", "slice 0 needs 'columns'"),
        ("{sharding: row_range, slices: [{shard: 0, rows: [0]}]}", "tables.emb.slices.0.rows"),
        ("{sharding: table, shards: [0, 1]}", "'emb'.*takes one shard"),
        ("{sharding: table, shards: [7]}", r"'emb'.*shard 7 is not in \[0, 2\)"),
        ("{sharding: table, shards: [0], precision: int3}", "tables.emb.precision.*not 'int3'"),
        ("{sharding: table, shards: [0], tier: cloud}", "tables.emb.tier.*not 'cloud'"),
        (
            "{sharding: table, shards: [0], precision: int8, tier: mapped}",
            "'emb': precision 'int8' needs tier 'memory' or 'gpu'",
        ),
        (
            "{sharding: table, shards: [0], precision: float64}",
            "tables.emb.precision.*not 'float64'",
        ),
        ("{sharding: table, shards: [0], colour: red}", "tables.emb.colour"),
        ("{sharding: row_range, slices: [{shard: 0, rows: [0, 9]}]}", r"'emb'.*\[9, 10\)"),
        ("{sharding: grid, shards: [0, 1]}", "'emb'.*'grid' takes 'bands'"),
        ("{sharding: table, shards: [0], bands: []}", "'emb'.*only sharding 'grid' takes 'bands'"),
        (
            "{sharding: grid, bands: [{columns: [0, 4], sharding: column, shards: [0]}]}",
            "'emb': band 0: a band's sharding is one of row_range, row_mod, row_hash, not column",
        ),
        (
            "{sharding: grid, bands: [{columns: [0, 4], sharding: row_range, shards: [0]}]}",
            "'emb': band 0: sharding 'row_range' takes 'slices'",
        ),
        (
            "{sharding: grid, bands: [{columns: [0, 3], sharding: row_mod, shards: [0]}]}",
            r"'emb': columns \[3, 4\) lie on no slice",
        ),
        ("[]", "tables.emb"),
    ],
)
def test_a_wrong_table_entry_is_refused_naming_the_table(entry, words):
    with pytest.raises(InvalidArgument, match=words):
        to_layout(parse_layout(f"shards: 2\ntables: {{emb: {entry}}}", "file"), TABLES)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("shards: [", "layout.yaml: not YAML"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
        ("", "layout.yaml"),
        ("tables: {}", "shards: Field required"),
        ("shards: 0\ntables: {}", "shards"),
        ("shards: 1\nreplicas: 0\ntables: {}", "replicas"),
        ("version: 2\nshards: 1\ntables: {}", "version"),
        ("shards: 1\nmemory_per_shard: lots\ntables: {}", "memory_per_shard"),
        ("shards: 1\ntables: {nope: {sharding: table, shards: [0]}}", "'nope' is not in the model"),
        (
            "shards: 1\nmemory_per_shard: 159B\ntables: {emb: {sharding: table, shards: [0]}}",
            "shard 0 holds 160 bytes, its memory is 159 bytes",
        ),
    ],
)
def test_a_wrong_file_is_refused_naming_the_field(tmp_path: Path, text, words):
    path = tmp_path / "layout.yaml"
    path.write_text(text)
    with pytest.raises(InvalidArgument, match=words):
        to_layout(read_layout_file(path), TABLES)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_read_and_nothing_else(data):
    try:
        parse_layout(data, "file")
    except InvalidArgument as error:
        refusal = error.message
    else:
        refusal = "file: "
    assert refusal.startswith("file: ")


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(NotFound, match=r"gone\.yaml"):
        read_layout_file(tmp_path / "gone.yaml")
