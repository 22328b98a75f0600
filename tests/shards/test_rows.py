"""Sets of rows: each numbers its rows without holes, and the parts share out the table."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserve.shards.reads import SCATTER_ROWS, chosen_rows
from shardserve.shards.rows import (
    MAX_HASHED_ROWS,
    HotRows,
    RowHash,
    RowMod,
    RowRange,
    hash_multiplier,
    owners_of,
)

totals = st.integers(1, 500)
parts = st.integers(1, 9)


def all_rows(rows) -> list[int]:
    return rows.rows(0, rows.count).tolist()


@pytest.mark.parametrize("kind", [RowMod, RowHash])
@given(total=totals, parts=parts)
def test_the_parts_hold_each_row_once(kind, total, parts):
    held = [row for part in range(parts) for row in all_rows(kind(part, parts, total))]
    assert sorted(held) == list(range(total))


@given(total=totals, parts=parts)
def test_mod_puts_row_r_at_r_div_parts(total, parts):
    for part in range(parts):
        rows = all_rows(RowMod(part, parts, total))
        assert [row % parts for row in rows] == [part] * len(rows)
        assert [row // parts for row in rows] == list(range(len(rows)))


@given(start=st.integers(0, 100), count=st.integers(0, 100))
def test_a_range_holds_its_rows_in_order(start, count):
    rows = RowRange(start, start + count)
    assert rows.count == count
    assert all_rows(rows) == list(range(start, start + count))


@given(total=st.integers(2, MAX_HASHED_ROWS), parts=st.integers(1, 64), data=st.data())
def test_hashed_rows_are_where_the_hash_says_in_any_table(total, parts, data):
    part = data.draw(st.integers(0, min(parts, total) - 1))
    rows = RowHash(part, parts, total)
    first = data.draw(st.integers(0, rows.count - 1))
    numbers = rows.rows(first, min(first + 50, rows.count)).tolist()
    for local, row in enumerate(numbers, start=first):
        place = row * hash_multiplier(total) % total
        assert 0 <= row < total
        assert (place % parts, place // parts) == (part, local)


@given(kind=st.sampled_from([RowMod, RowHash, RowRange]), total=totals, n=parts, data=st.data())
def test_the_owner_of_a_row_is_the_set_that_holds_it(kind, total, n, data):
    if kind is RowRange:
        cuts = sorted(data.draw(st.sets(st.integers(1, max(total - 1, 1)), max_size=n - 1)))
        edges = [0, *(cut for cut in cuts if cut < total), total]
        sets = data.draw(st.permutations([RowRange(*span) for span in pairwise(edges)]))
    else:
        sets = [kind(part, n, total) for part in range(n)]
    owners = owners_of(sets, np.arange(total)).tolist()
    assert all(row in all_rows(sets[owner]) for row, owner in enumerate(owners))


row_sets = st.one_of(
    st.builds(RowRange, st.integers(0, 200), st.integers(200, 400)),
    st.builds(RowMod, st.integers(0, 3), st.just(4), st.integers(1, 400)),
    st.builds(RowHash, st.integers(0, 3), st.just(4), st.integers(1, 400)),
)
hot_sets = st.builds(
    lambda base, hot: HotRows(base, tuple(sorted(hot))),
    st.builds(RowMod, st.integers(0, 3), st.just(4), st.just(400)),
    st.sets(st.integers(0, 399), min_size=1, max_size=9),
)


@given(rows=hot_sets, first=st.integers(0, 120), length=st.integers(0, 120))
def test_copies_of_hot_rows_come_after_a_sets_own(rows, first, length):
    whole = all_rows(rows)
    assert whole == [*all_rows(rows.base), *rows.hot]
    last = min(first + length, rows.count)
    assert rows.rows(min(first, last), last).tolist() == whole[first:last]


@given(rows=hot_sets, start=st.integers(0, 400), length=st.integers(0, 400))
def test_rows_are_chosen_for_a_sets_own_places_and_for_their_copies(rows, start, length):
    stop = min(start + length, 400)
    chosen = [pair for chunk in chosen_rows(rows, start, stop) for pair in zip(*chunk, strict=True)]
    expected = [(row, at) for at, row in enumerate(all_rows(rows)) if start <= row < stop]
    assert sorted(chosen) == sorted(expected)


@given(rows=row_sets, start=st.integers(0, 400), length=st.integers(0, 400))
def test_the_rows_chosen_of_a_run_are_the_sets_own(rows, start, length):
    stop = min(start + length, getattr(rows, "total", 400))
    expected = {row: local for local, row in enumerate(all_rows(rows)) if start <= row < stop}
    chosen = list(chosen_rows(rows, start, stop))
    assert all(len(numbers) for numbers, _ in chosen)
    numbers = [row for chunk, _ in chosen for row in chunk.tolist()]
    places = [place for _, chunk in chosen for place in chunk.tolist()]
    assert numbers == sorted(numbers)
    assert dict(zip(numbers, places, strict=True)) == expected


@pytest.mark.parametrize("kind", [RowMod, RowHash])
def test_rows_are_chosen_in_bounded_chunks(kind):
    total = 3 * SCATTER_ROWS + 5
    chunks = [numbers for numbers, _ in chosen_rows(kind(0, 1, total), 0, total)]
    assert max(map(len, chunks)) <= SCATTER_ROWS
    assert np.array_equal(np.concatenate(chunks), np.arange(total))
