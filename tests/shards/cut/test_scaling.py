"""Which weights and masks are part of a pooled lookup, and which keep its rows gathered."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from shardserve.shards.cut.cut import CutModel, CutRule, cut_saved_model
from shardserve.shards.cut.inspection import inspect_model
from shardserve.shards.cut.lookups import Motif
from shardserve.shards.model import PlanOptions
from tests.masked_models import NOT_POOLED, POOLED
from tests.saved_models import THRESHOLD

_MASKED = {
    *("where", "where_zeros", "zeros_like", "dropped", "masked_and_weighted"),
    *("segments", "lengths", "one_id_many_weights"),
}


@pytest.fixture(scope="module")
def cut(saved_model) -> Callable[[str], tuple[CutModel, Path]]:
    """The models that were cut, by name; where they lie."""

    @functools.cache
    def of(name: str) -> tuple[CutModel, Path]:
        path = saved_model(name)
        return cut_saved_model(path, CutRule(threshold=THRESHOLD)), path

    return of


def _lookups(model: CutModel, output: str):
    program = model.program_for("serving_default", (output,))
    return [lookup for one in program.rounds for lookup in one.lookups]


@pytest.mark.parametrize("form", [form for form in POOLED if form != "branch"])
def test_a_weight_or_a_mask_for_each_row_is_pooled_on_the_shards(form, cut):
    (lookup,) = _lookups(cut("pooled")[0], form)
    assert lookup.motif is not Motif.GATHER
    assert (lookup.mask is not None) == (form in _MASKED)
    assert lookup.mask_drops == (form == "dropped")
    is_weighted = form not in _MASKED or form in ("masked_and_weighted", "segments")
    assert (lookup.weights is not None) == is_weighted


def test_a_mask_in_a_branch_is_pooled_by_a_call_out(cut):
    model, _ = cut("pooled")
    assert sorted(
        (one.lookup.motif, one.lookup.weights is not None, one.lookup.mask is not None)
        for one in model.call_outs
    ) == [(Motif.REDUCE_POOL, False, True), (Motif.REDUCE_POOL, True, True)]


@pytest.mark.parametrize("form", NOT_POOLED)
def test_what_only_looks_like_it_is_gathered(form, cut):
    lookups = _lookups(cut("not_pooled")[0], form)
    assert {lookup.motif for lookup in lookups} == {Motif.GATHER}


def test_of_two_tables_of_one_column_neither_weighs_the_others_rows(cut):
    model, _ = cut("width_one")
    assert {one.motif for one in _lookups(model, "both")} == {Motif.GATHER}
    assert {one.motif for one in _lookups(model, "alone")} == {Motif.REDUCE_POOL}


@pytest.mark.parametrize("name", ["keras_average", "keras_average_kept", "keras_by_hand"])
def test_keras_masked_average_is_pooled(name, cut):
    (table,) = cut(name)[0].tables.values()
    assert {lookup.motif for lookup in table.lookups} == {Motif.REDUCE_POOL}
    assert all((one.mask or one.weights) is not None for one in table.lookups)


def test_inspect_names_masks_and_says_what_is_no_mask(cut):
    options = PlanOptions(threshold=THRESHOLD)
    (pooled,) = inspect_model(cut("pooled")[1], options).tables
    assert "5 x masked reduce_pool sum" in pooled.motifs
    assert "1 x masked weighted segment_pool mean" in pooled.motifs
    (gathered,) = inspect_model(cut("not_pooled")[1], options).tables
    assert len(gathered.motifs) == 1
    assert any("is no weight and no mask of one element for each row" in n for n in gathered.notes)
