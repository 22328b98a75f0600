"""Masked and weighted pooling answers what TensorFlow answers, pooled on the shards or not."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardserve.batching.errors import InvalidArgument
from shardserve.router.servable import RequestContext
from tests.layouts import layout_of
from tests.masked_models import EXPORTS, LENGTH, ROWS
from tests.saved_models import Feeds, float_array, int_array
from tests.sharded import ask, assert_same, served, tables_of

SHARDS = 3


@st.composite
def requests(draw: st.DrawFn) -> Feeds:
    """Ids of which many are masked, in some rows all."""
    batch = draw(st.integers(0, 5))
    ids = draw(int_array(0, ROWS, (batch, LENGTH), np.int32))
    mask = draw(int_array(0, 2, (batch, LENGTH), np.int32))
    lengths = draw(int_array(0, LENGTH + 1, (batch, 1), np.int32))
    return {
        "ids": ids * mask * (np.arange(LENGTH, dtype=np.int32) < lengths),
        "weights": draw(float_array((batch, LENGTH))),
    }


@pytest.mark.parametrize("kind", ["row_range", "row_hash", "column", "hot_rows"])
@pytest.mark.parametrize("name", EXPORTS)
def test_the_answer_is_tensorflows_under_each_layout(name, kind, saved_model, threads, uncut):
    sources = tables_of(saved_model(name))
    tables = {table: source.table for table, source in sources.items()}
    kind = "row_mod" if name == "width_one" and kind == "column" else kind
    servable = served(saved_model(name), layout_of(kind, tables, SHARDS), sources, threads)

    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(requests())
    def check(feeds: Feeds) -> None:
        answers = ask(servable, "serving_default", feeds)
        assert_same(answers, uncut(name).answer("serving_default", feeds))

    check()
    asyncio.run(servable.close())


def test_a_masked_id_outside_of_the_table_is_refused_as_tensorflow_refuses_it(
    saved_model, threads, uncut
):
    sources = tables_of(saved_model("pooled"))
    tables = {table: source.table for table, source in sources.items()}
    servable = served(
        saved_model("pooled"), layout_of("row_range", tables, SHARDS), sources, threads
    )
    context = RequestContext("test", math.inf)
    feeds = {
        "ids": np.array([[1, 2, 3, 2 * ROWS]], np.int32),
        "weights": np.array([[2, 0, 0, 0]], np.float32),
    }
    with pytest.raises(InvalidArgument, match=rf"indices\[0,3\] = {2 * ROWS} is not in \[0, 120\)"):
        asyncio.run(servable.run("serving_default", feeds, ["lengths"], context))
    with pytest.raises(tf.errors.InvalidArgumentError):
        uncut("pooled").answer("serving_default", feeds)
    asyncio.run(servable.close())
