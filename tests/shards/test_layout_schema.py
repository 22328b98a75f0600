"""The published schema of layout files refuses what the code refuses for its form, and no more."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from shardserve.batching.errors import InvalidArgument
from shardserve.shards.layout import Sharding
from shardserve.shards.layout_file import dump_layout, parse_layout, to_file, to_layout
from shardserve.shards.layout_schema import layout_schema
from shardserve.shards.storage import Precision, Tier
from shardserve.shards.tables import Table
from tests.layouts import random_layout

PUBLISHED = Path(__file__).parents[2] / "docs" / "layout.schema.json"
TABLES = {"emb": Table("emb", "float32", 4, (4,))}
SCHEMA = Draft202012Validator(layout_schema())

#: What is wrong with a layout for the tables that there are, and no matter of form.
CONTENT = re.compile(
    r"lie on no slice|lie on two slices|are empty|the layout goes to|is not in \[0, 2\)"
    r"|is named twice|hot row \d is not in|cannot be had of|needs tier 'memory'"
)


def test_the_published_schema_is_the_codes_own() -> None:
    Draft202012Validator.check_schema(layout_schema())
    assert json.loads(PUBLISHED.read_text()) == layout_schema()


@given(random_layout(TABLES, 3))
def test_every_layout_that_is_written_fits_the_schema(layout) -> None:
    SCHEMA.validate(yaml.safe_load(dump_layout(to_file(layout, 1 << 30))))


def _spans() -> st.SearchStrategy[list[int]]:
    return st.sampled_from([[0, 4], [0, 2], [2, 4], [3, 3], [-1, 4], [0], [0, 2, 4]])


def _entries(*, bands: bool) -> st.SearchStrategy[dict[str, Any]]:
    """Table entries, or a grid's bands: right, nearly right and wrong."""
    pieces = st.fixed_dictionaries(
        {"shard": st.integers(-1, 2)},
        optional={"rows": st.none() | _spans(), "columns": st.none() | _spans()},
    )
    optional: dict[str, st.SearchStrategy[Any]] = {
        "slices": st.none() | st.lists(pieces, max_size=2),
        "shards": st.none() | st.lists(st.integers(-1, 2), max_size=2),
    }
    required: dict[str, st.SearchStrategy[Any]] = {
        "sharding": st.sampled_from([*(word.value for word in Sharding), "diagonal"])
    }
    if bands:
        required["columns"] = _spans()
        return st.fixed_dictionaries(required, optional=optional)
    optional["bands"] = st.none() | st.lists(_entries(bands=True), max_size=2)
    optional["hot_rows"] = st.none() | st.lists(st.integers(-1, 4), max_size=2)
    optional["tier"] = st.sampled_from([*(word.value for word in Tier), "cloud", None])
    optional["precision"] = st.sampled_from([*(word.value for word in Precision), "int3"])
    optional["colour"] = st.just("red")
    return st.fixed_dictionaries(required, optional=optional)


def _refusal(file: dict[str, Any]) -> str | None:
    try:
        to_layout(parse_layout(yaml.safe_dump(file), "file"), TABLES)
    except InvalidArgument as error:
        return error.message
    return None


@given(_entries(bands=False))
def test_an_entry_fits_the_schema_if_the_code_refuses_at_most_its_content(entry) -> None:
    file = {"shards": 2, "tables": {"emb": entry}}
    refusal = _refusal(file)
    if SCHEMA.is_valid(file):
        assert refusal is None or CONTENT.search(refusal)
    else:
        assert refusal is not None


@pytest.mark.parametrize(
    ("entry", "fits"),
    [
        ({"sharding": "row_hash", "shards": [0, 1]}, True),
        ({"sharding": "row_range", "slices": [{"shard": 0, "rows": [0, 4]}]}, True),
        ({"sharding": "column", "slices": [{"shard": 0, "columns": [0, 4]}]}, True),
        (
            {
                "sharding": "grid",
                "bands": [
                    {"columns": [0, 3], "sharding": "row_mod", "shards": [0]},
                    {
                        "columns": [3, 4],
                        "sharding": "row_range",
                        "slices": [{"shard": 1, "rows": [0, 4]}],
                    },
                ],
            },
            True,
        ),
        ({"sharding": "row_range", "shards": [0, 1]}, False),
        ({"sharding": "column", "slices": [{"shard": 0, "rows": [0, 4]}]}, False),
        ({"sharding": "grid", "shards": [0, 1]}, False),
        (
            {
                "sharding": "grid",
                "bands": [{"columns": [0, 4], "sharding": "table", "shards": [0]}],
            },
            False,
        ),
        ({"sharding": "row_mod", "shards": [0, 1], "hot_rows": [3, 0]}, True),
        ({"sharding": "row_mod", "shards": [0, 1], "hot_rows": [3, 3]}, False),
        ({"sharding": "table", "shards": [0], "hot_rows": [3]}, False),
        ({"sharding": "table", "shards": [0], "hot_rows": []}, True),
        ({"sharding": "table", "shards": [0, 1]}, False),
        ({"sharding": "table", "shards": [0], "bands": []}, False),
        ({"sharding": "table", "shards": [0], "tier": "cloud"}, False),
    ],
)
def test_schema_and_code_agree_on_each_form(entry, fits) -> None:
    file = {"shards": 2, "tables": {"emb": entry}}
    assert SCHEMA.is_valid(file) is fits
    assert (_refusal(file) is None) is fits


@pytest.mark.parametrize(
    "change",
    [
        {"shards": 0},
        {"replicas": 0},
        {"version": 2},
        {"memory_per_shard": "lots"},
        {"tier": "cloud"},
        {"tables": []},
        {"colour": "red"},
    ],
)
def test_schema_and_code_agree_on_what_is_wrong_with_the_head(change) -> None:
    file = {"shards": 1, "memory_per_shard": "20GiB", "tables": {}}
    assert SCHEMA.is_valid(file)
    assert _refusal(file) is None
    assert not SCHEMA.is_valid(file | change)
    assert _refusal(file | change) is not None
