"""A running batch gives each sequence what it would get alone, whoever comes and goes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardserve.batching.errors import FailedPrecondition, InvalidArgument
from shardserve.batching.slots import RunningBatch
from shardserve.batching.step_driver import Burst, take_steps
from shardserve.batching.step_form import SequenceRow, StepForm
from shardserve.batching.tensors import NotBatchable

#: State s and constant k, input x: the state becomes 2s + x + k, the other output is text and s.
FORM = StepForm(1, 1, 1, ("s", "text", "x"), last=(0, 1), every=(0, 1, 2))


def step(values):
    state, x, k = values
    new = 2 * state + x + k
    return [new, np.array([b"%d" % v for v in new.sum(1)], object), x]


def padded_step(count):
    """Rows from `count` on are the first one again: no others' values, which could be refused."""

    def checked(values):
        for array in values:
            assert all(row.tolist() == array[0].tolist() for row in array[count:])
        return step(values)

    return checked


def sequence(number, length):
    rng = np.random.default_rng(number)
    return SequenceRow(
        [rng.integers(0, 5, (1, 3))],
        [rng.integers(0, 5, (length, 3))],
        [rng.integers(0, 5, (1, 3))],
    )


def alone(row, steps):
    ((state,),), (xs,), ((k,),) = row.initial, row.per_step, row.constant
    states = []
    for x in xs[:steps]:
        state = 2 * state + x + k
        states.append(state)
    return np.array(states), xs[:steps]


def check(row, result, steps):
    states, xs = alone(row, steps)
    texts = [b"%d" % s for s in states.sum(1)]
    assert result.last[0].tolist() == states[-1:].tolist()
    assert result.last[1].tolist() == texts[-1:]
    assert result.steps == steps
    assert result.every[0].tolist() == states.tolist()
    assert result.every[1].tolist() == texts
    assert result.every[2].tolist() == xs.tolist()


events = st.one_of(
    st.tuples(st.just("join"), st.integers(1, 40)),
    st.tuples(st.just("leave"), st.integers(0, 9)),
    st.tuples(st.just("step"), st.integers(1, 20)),
    st.tuples(st.just("pad"), st.integers(0, 3)),
    st.tuples(st.just("part"), st.integers(1, 5)),
)


@given(st.lists(events, max_size=40))
@settings(max_examples=300, deadline=None)
def test_each_sequence_gets_what_it_would_get_alone(program):
    batch = RunningBatch(FORM)
    living: dict[SequenceRow, list[int]] = {}
    padding = 0
    for number, (event, argument) in enumerate(program):
        if event == "join":
            row = sequence(number, argument)
            batch.join(row)
            living[row] = [0, argument]
        elif event == "leave" and living:
            row = list(living)[argument % len(living)]
            batch.leave(row)
            del living[row]
        elif event == "pad":
            padding = argument
        elif event in ("step", "part") and living:
            part = list(living)[:argument] if event == "part" else None
            stepped = part or list(living)
            limit = min(living[row][1] - living[row][0] for row in stepped)
            limit = 1 if part else min(limit, argument)
            burst = Burst(batch, len(stepped) + padding, limit, part)
            assert take_steps(burst, padded_step(len(stepped))).steps == limit
            for row in stepped:
                living[row][0] += limit
                if living[row][0] == living[row][1]:
                    check(row, batch.finish(row), living[row][1])
                    del living[row]
        assert len(batch) == len(living)


def test_who_has_only_stepped_in_a_part_can_move_up():
    batch = RunningBatch(FORM)
    first, second = sequence(1, 5), sequence(2, 3)
    batch.join(first)
    take_steps(Burst(batch, 1, 2), step)
    batch.join(second)
    take_steps(Burst(batch, 1, 1, [second]), step)
    batch.leave(first)
    take_steps(Burst(batch, 1, 2), step)
    check(second, batch.finish(second), 3)


def test_a_step_that_fails_leaves_the_states_as_they_were():
    batch = RunningBatch(FORM)
    rows = [sequence(n, 4) for n in range(3)]
    for row in rows:
        batch.join(row)

    def fails_at_the_third(values, calls=[]):  # noqa: B006 (counts)
        calls.append(None)
        if len(calls) == 3:
            raise InvalidArgument("bad")
        return step(values)

    assert take_steps(Burst(batch, 3, 4), fails_at_the_third).steps == 2
    batch.prepare(3)
    assert take_steps(Burst(batch, 2, 1, rows[:2]), step).steps == 1
    assert take_steps(Burst(batch, 1, 1, rows[2:]), step).steps == 1
    assert take_steps(Burst(batch, 3, 1), step).steps == 1
    for row in rows:
        check(row, batch.finish(row), 4)


def test_it_stops_with_the_value_that_ends_a_sequence():
    form = StepForm(1, 0, 0, ("n",), last=(0,), stop=(0, 5))
    batch = RunningBatch(form)
    rows = [SequenceRow([np.array([[first]])]) for first in (1, 3, 0)]
    for row in rows:
        batch.join(row)
    taken = take_steps(Burst(batch, 4, 16), lambda values: [values[0] + 1])
    assert taken.steps == 2
    assert taken.stopped == [rows[1]]


def test_an_interrupted_burst_takes_one_step():
    batch = RunningBatch(FORM)
    batch.join(sequence(0, 9))
    burst = Burst(batch, 1, 9, interrupted=True)
    assert take_steps(burst, step).steps == 1


def test_an_output_that_is_an_input_is_kept_when_the_window_moves_on():
    batch = RunningBatch(StepForm(1, 1, 0, ("s",), last=(0,)))
    row = SequenceRow([np.zeros((1, 2))], [np.arange(80.0).reshape(40, 2)])
    batch.join(row)
    take_steps(Burst(batch, 1, 17), lambda values: [values[1]])
    assert batch.finish(row).last[0].tolist() == [[32.0, 33.0]]


#: State n counts; the other output, which is kept of every step, is as wide as k says.
WIDTHS = StepForm(1, 0, 1, ("n", "wide"), last=(0,), every=(1,))


def wide(values):
    n, k = values
    return [n + 1, np.ones((len(n), k.max()))]


def of_width(width):
    return SequenceRow([np.zeros((1,), int)], (), [np.array([width])])


@pytest.mark.parametrize("in_part", [False, True])
def test_a_kept_output_that_changes_its_form_is_refused_before_anything_has_happened(in_part):
    batch = RunningBatch(WIDTHS)
    narrow, wider = of_width(1), of_width(2)
    batch.join(narrow)
    take_steps(Burst(batch, 1, 2, [narrow] if in_part else None), wide)
    batch.join(wider)
    words = r"output 'wide' of the step is float64\[2\] .* before it was float64\[1\]"
    for part in (None, [wider]):
        rows = 2 if part is None else 1
        with pytest.raises(FailedPrecondition, match=words):
            take_steps(Burst(batch, rows, 1, part), wide)
    batch.leave(wider)
    take_steps(Burst(batch, 1, 1, [narrow] if in_part else None), wide)
    result = batch.finish(narrow)
    assert result.every[0].shape == (3, 1)
    assert result.last[0].tolist() == [3]


def test_a_kept_output_may_have_another_form_once_all_who_had_one_have_left():
    batch = RunningBatch(WIDTHS)
    for width in (1, 3, 2):
        row = of_width(width)
        batch.join(row)
        take_steps(Burst(batch, 1, 2), wide)
        assert batch.finish(row).every[0].shape == (2, width)


@pytest.mark.parametrize(
    ("outputs", "error", "words"),
    [
        ([np.zeros(())], NotBatchable, "output 's' of the step has 0 dimensions"),
        ([np.zeros((3, 2))], NotBatchable, "output 's' of the step has 3 rows; it ran with 2"),
        ([np.zeros((2, 3))], FailedPrecondition, "the state that it becomes is float64\\[2\\]"),
        ([np.zeros((2, 2), "f")], FailedPrecondition, "output 's' of the step is float32\\[2\\]"),
    ],
)
def test_outputs_that_are_no_rows_of_the_state_are_refused_by_name(outputs, error, words):
    batch = RunningBatch(StepForm(1, 0, 0, ("s",), last=(0,)))
    batch.join(SequenceRow([np.zeros((1, 2))]))
    with pytest.raises(error, match=words):
        take_steps(Burst(batch, 2, 1), lambda values: outputs)
