"""Row counts: read from a file, checked, and what the slices of a table get of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserve.batching.errors import InvalidArgument, NotFound
from shardserve.shards.layout import Sharding
from shardserve.shards.row_counts import RowCounts, check_counts, read_shares
from shardserve.shards.row_counts_file import read_row_counts
from shardserve.shards.rows import base_of
from shardserve.shards.tables import Table
from tests.layouts import random_layout

TABLE = Table("emb", "float32", 10, (4,))


@given(st.data(), st.integers(1, 40), st.integers(1, 6), st.integers(1, 6))
def test_a_slice_gets_the_reads_of_its_rows_under_any_layout(data, rows, columns, shards):
    table = Table("emb", "float32", rows, (columns,))
    table_layout = data.draw(random_layout({"emb": table}, shards)).tables["emb"]
    counts = np.array(data.draw(st.lists(st.integers(0, 9), min_size=rows, max_size=rows)))
    listed = np.flatnonzero(counts)
    shares = read_shares(table_layout, table, RowCounts(counts))
    assert shares == read_shares(table_layout, table, RowCounts(counts[listed], listed))
    if table_layout.sharding is Sharding.REPLICATED:
        assert shares == (1 / len(shares),) * len(shares)
        return
    reads = counts if counts.any() else np.ones(rows)
    hot = list(table_layout.hot)
    own = [base_of(s.rows) for s in table_layout.slices]
    cold = np.where(np.isin(np.arange(rows), hot), 0, reads)
    held = [cold[one.rows(0, one.count)].sum() + reads[hot].sum() / len(own) for one in own]
    assert list(shares) == pytest.approx([float(one) / reads.sum() for one in held])


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (RowCounts(np.ones(9, int)), "9 counts, the table has 10 rows"),
        (RowCounts(np.ones(10)), r"not float64\[10\]"),
        (RowCounts(np.ones((10, 1), int)), r"not int64\[10, 1\]"),
        (RowCounts(np.array([0, 0, -1, 0, 0, 0, 0, 0, 0, 0])), "row 2 has a count below zero"),
        (RowCounts(np.array([1, 1]), np.array([3, 10])), r"row 10 is not in \[0, 10\)"),
    ],
)
def test_counts_that_are_not_the_tables_are_refused_naming_it(found, words):
    with pytest.raises(InvalidArgument, match=f"row counts: table 'emb': .*{words}"):
        check_counts(found, TABLE)


def test_a_file_names_an_array_beside_it_or_lists_the_rows_that_are_read(tmp_path: Path):
    np.save(tmp_path / "emb.npy", np.arange(10, dtype=np.uint32))
    path = tmp_path / "counts.yaml"
    path.write_text("tables:\n  emb: emb.npy\n  other: {7: 3, 2: 5}\n")
    found = read_row_counts(path)
    assert found["emb"].counts.tolist() == list(range(10))
    assert [chunk.tolist() for chunk in next(found["other"].chunks())] == [[2, 7], [5, 3]]
    assert found["other"].total == 8


def _pickled(path: Path) -> None:
    np.save(path, np.array([{}], object), allow_pickle=True)


def _archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, np.arange(3))


@pytest.mark.parametrize(
    "write", [_pickled, _archive, lambda path: path.write_bytes(b""), lambda path: path.mkdir()]
)
def test_an_array_file_of_another_kind_is_refused_by_name_and_no_pickle_is_run(tmp_path, write):
    write(tmp_path / "emb.npy")
    (tmp_path / "counts.yaml").write_text("tables: {emb: emb.npy}")
    with pytest.raises((InvalidArgument, NotFound), match=r"emb\.npy: "):
        read_row_counts(tmp_path / "counts.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tables: {emb: absent.npy}", r"absent\.npy: cannot be read"),
        ("tables: {emb: {3: -1}}", "tables.emb"),
        ("tables: {emb: [1, 2]}", "tables.emb"),
        ("tabels: {}", "tabels"),
        ("version: 2\ntables: {}", "version"),
    ],
)
def test_a_wrong_file_is_refused_naming_what_is_wrong(tmp_path: Path, text, words):
    path = tmp_path / "counts.yaml"
    path.write_text(text)
    with pytest.raises((InvalidArgument, NotFound), match=words):
        read_row_counts(path)
