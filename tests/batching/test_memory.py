"""Collections are paused while anybody wants them paused, and are then as they were."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserve.batching.memory import collections_paused


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    """Every test begins with collections enabled, and must leave them so."""
    assert gc.isenabled()
    yield
    assert gc.isenabled()


def test_collections_are_paused_inside_and_come_again_after():
    with collections_paused():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_error_ends_the_pause_and_passes_through():
    with pytest.raises(KeyError, match="reason"), collections_paused():
        raise KeyError("reason")
    assert gc.isenabled()


def test_an_inner_pause_does_not_end_the_outer():
    with collections_paused():
        with collections_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()


def test_collections_that_were_disabled_stay_disabled():
    gc.disable()
    try:
        with collections_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_decorated_function_pauses_each_time_that_it_runs():
    paused = collections_paused()(gc.isenabled)
    assert [paused(), gc.isenabled(), paused(), gc.isenabled()] == [False, True, False, True]


def test_a_pause_lasts_until_the_last_of_several_threads_leaves():
    inside, leave = threading.Barrier(2), threading.Event()

    def other() -> None:
        with collections_paused():
            inside.wait()
            leave.wait()

    with collections_paused():
        thread = threading.Thread(target=other)
        thread.start()
        inside.wait()
    assert not gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()


@given(st.lists(st.booleans(), max_size=30))
def test_however_pauses_overlap_collections_are_paused_exactly_while_one_is_open(begins):
    open_ones = []
    for begin in begins:
        if begin:
            open_ones.append(collections_paused())
            open_ones[-1].__enter__()
        elif open_ones:
            open_ones.pop(len(open_ones) // 2).__exit__(None, None, None)
        assert gc.isenabled() == (not open_ones)
    for one in open_ones:
        one.__exit__(None, None, None)
