"""A request to a sequence's signature as rows to step, and their results as its outputs. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shardserve.batching.errors import InvalidArgument
from shardserve.batching.step_form import RowResult, SequenceRow
from shardserve.router.sequence_plan import RowForm, SequencePlan
from shardserve.router.servable import Array
from shardserve.shards.sequences_form import STEPS, Source, Take


@dataclass(frozen=True)
class SequenceRequest:
    """The sequences of one request, and the steps that each takes, at most.

    `is_single` where it has left the rows' dimension out. Requests of one `likeness` can be
    stepped together.
    """

    rows: tuple[SequenceRow, ...]
    steps: tuple[int, ...]
    is_single: bool
    likeness: tuple[object, ...]
    nbytes: int


def request_of(
    plan: SequencePlan, inputs: Mapping[str, Array], before: Mapping[str, Array]
) -> SequenceRequest:
    """What a request asks for; `before` are the outputs of the signature that runs once.

    Raises InvalidArgument naming the input that does not fit.
    """
    stepped = {alias: inputs[name] for alias, name in plan.per_step.items()}
    is_single = _is_single(plan, stepped)
    if is_single:
        stepped = {alias: array[None] for alias, array in stepped.items()}
        inputs = {name: array[None] for name, array in inputs.items()}
    given = {
        alias: _given(plan, alias, source, inputs, before) for alias, source in plan.sources.items()
    }
    count, longest = _extents(plan, stepped, given, inputs)
    steps = _steps(plan, inputs, count, longest)
    values = {
        alias: _filled(plan.inputs[alias], plan.sources[alias], count) if array is None else array
        for alias, array in given.items()
    }
    return SequenceRequest(
        rows=_rows(plan, values, stepped, steps),
        steps=steps,
        is_single=is_single,
        likeness=tuple(
            [(a.dtype, a.shape[1:]) for a in values.values()]
            + [(a.dtype, a.shape[2:]) for a in stepped.values()]
        ),
        nbytes=_nbytes(plan, [*values.values(), *stepped.values()], steps),
    )


def outputs_of(
    plan: SequencePlan,
    request: SequenceRequest,
    results: Sequence[RowResult],
    wanted: Sequence[str],
) -> dict[str, Array]:
    """The outputs named.

    What is returned for all steps is [rows, longest, ...]: behind a shorter sequence's end it is
    zeros, or empty strings. `steps`, int64 [rows], says where each has ended. Of a single sequence
    the rows' dimension is left out.
    """
    found = {alias: _output(plan, alias, request, results) for alias in wanted}
    return {alias: array[0] for alias, array in found.items()} if request.is_single else found


def _is_single(plan: SequencePlan, stepped: Mapping[str, Array]) -> bool:
    if not stepped or plan.before is not None:
        return False
    alias, array = next(iter(stepped.items()))
    return array.ndim == len(plan.inputs[alias].shape) + 1


def _given(
    plan: SequencePlan,
    alias: str,
    source: Source | None,
    inputs: Mapping[str, Array],
    before: Mapping[str, Array],
) -> Array | None:
    if source is None or source.value is not None:
        return None
    if source.input is not None:
        array, name = inputs[source.input], f"input {source.input!r}"
    else:
        assert source.output is not None
        array, name = before[source.output], f"output {source.output!r} of {plan.before!r}"
    if not array.ndim or not plan.inputs[alias].fits(array.shape[1:]):
        raise InvalidArgument(_misfit(plan, name, array, (-1, *plan.inputs[alias].shape)))
    return array


def _extents(
    plan: SequencePlan,
    stepped: Mapping[str, Array],
    given: Mapping[str, Array | None],
    inputs: Mapping[str, Array],
) -> tuple[int, int]:
    """The number of rows, and of the steps that there are inputs for."""
    counts: dict[str, int] = {}
    longest: dict[str, int] = {}
    for alias, array in stepped.items():
        row = plan.inputs[alias].shape
        if array.ndim != len(row) + 2 or not plan.inputs[alias].fits(array.shape[2:]):
            name = f"input {plan.per_step[alias]!r}"
            raise InvalidArgument(_misfit(plan, name, array, (-1, -1, *row)))
        counts[plan.per_step[alias]], longest[plan.per_step[alias]] = array.shape[:2]
    counts |= {alias: len(array) for alias, array in given.items() if array is not None}
    if plan.lengths is not None and inputs[plan.lengths].size:
        counts[plan.lengths] = len(inputs[plan.lengths].reshape(-1))
    if len(set(counts.values())) != 1:
        raise InvalidArgument(f"sequences {plan.name!r}: inputs differ in their rows: {counts}")
    if len(set(longest.values())) > 1:
        raise InvalidArgument(f"sequences {plan.name!r}: inputs differ in their steps: {longest}")
    count = next(iter(counts.values()))
    if not count:
        raise InvalidArgument(f"sequences {plan.name!r}: there is no sequence in the request")
    steps = next(iter(longest.values()), plan.max_steps)
    if not 0 < steps <= plan.max_steps:
        raise InvalidArgument(
            f"sequences {plan.name!r}: a sequence has 1 to {plan.max_steps} steps, not {steps}"
        )
    return count, steps


def _steps(
    plan: SequencePlan, inputs: Mapping[str, Array], count: int, longest: int
) -> tuple[int, ...]:
    if plan.lengths is None or not inputs[plan.lengths].size:
        return (longest,) * count
    lengths = inputs[plan.lengths].reshape(-1)
    if lengths.min() < 1 or lengths.max() > longest:
        raise InvalidArgument(
            f"input {plan.lengths!r}: lengths are 1 to {longest}, not {lengths.tolist()}"
        )
    return tuple(lengths.tolist())


def _filled(row: RowForm, source: Source | None, count: int) -> Array:
    value: object = None if source is None else source.value
    if value is None:
        value = b"" if row.dtype == object else 0
    elif isinstance(value, str):
        value = value.encode()
    return np.full((count, *(max(size, 1) for size in row.shape)), value, row.dtype)


def _rows(
    plan: SequencePlan,
    values: Mapping[str, Array],
    stepped: Mapping[str, Array],
    steps: Sequence[int],
) -> tuple[SequenceRow, ...]:
    carried = plan.form.carried
    arrays = list(values.values())
    return tuple(
        SequenceRow(
            [array[n : n + 1] for array in arrays[:carried]],
            [array[n] for array in stepped.values()],
            [array[n : n + 1] for array in arrays[carried:]],
        )
        for n in range(len(steps))
    )


def _nbytes(plan: SequencePlan, arrays: Sequence[Array], steps: Sequence[int]) -> int:
    """What the request holds, and what it will return."""
    kept = sum(
        plan.outputs[alias].nbytes for alias, (take, _) in plan.returns.items() if take is Take.ALL
    )
    return sum(array.nbytes for array in arrays) + kept * sum(steps)


def _output(
    plan: SequencePlan, alias: str, request: SequenceRequest, results: Sequence[RowResult]
) -> Array:
    if alias == STEPS:
        return np.array([result.steps for result in results], np.int64)
    take, place = plan.returns[alias]
    if take is Take.LAST:
        return np.concatenate([result.last[place] for result in results])
    rows = [result.every[place] for result in results]
    if len({len(row) for row in rows}) == 1:
        return np.stack(rows)
    shape = (len(rows), max(len(row) for row in rows), *rows[0].shape[1:])
    padded = np.full(shape, b"" if rows[0].dtype == object else 0, rows[0].dtype)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded


def _misfit(plan: SequencePlan, name: str, array: Array, wanted: tuple[int, ...]) -> str:
    return (
        f"sequences {plan.name!r}: {name} has shape {list(array.shape)}; it must be {list(wanted)}"
    )
