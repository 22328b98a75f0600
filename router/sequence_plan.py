"""A declared sequence, checked against the model that is to run it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tensorflow.core.framework import types_pb2

from shardserve.batching.errors import InvalidArgument
from shardserve.batching.parameters import BatchingParameters
from shardserve.batching.step_form import StepForm
from shardserve.router.servable import Array, Signature, TensorInfo, numpy_dtype
from shardserve.shards.sequences_form import STEPS, SequenceEntry, Source, Take

METHOD = "tensorflow/serving/predict"


@dataclass(frozen=True)
class RowForm:
    """What a row of a tensor is: its dtype, and its shape with -1 for an unknown size."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of that shape can be such a row."""
        return len(shape) == len(self.shape) and all(
            declared in (-1, size) for declared, size in zip(self.shape, shape, strict=True)
        )

    @property
    def nbytes(self) -> int:
        """The bytes of a row, an unknown size counting as 1."""
        return int(self.dtype.itemsize * np.prod([max(size, 1) for size in self.shape], dtype=int))


@dataclass(frozen=True)
class SequencePlan:
    """How requests to a sequence's signature are answered.

    `inputs` are the step's inputs by alias, in the order of `form`; `fixed` those left to their
    default. `sources` says where first values and constants come from, `per_step` which input of
    the request is stepped through; `returns` maps an output to its place among the last or the
    all outputs of a row.
    """

    name: str
    step: str
    signature: Signature
    inputs: Mapping[str, RowForm]
    fixed: Mapping[str, Array]
    outputs: Mapping[str, RowForm]
    form: StepForm
    sources: Mapping[str, Source | None]
    per_step: Mapping[str, str]
    returns: Mapping[str, tuple[Take, int]]
    before: str | None
    before_inputs: tuple[str, ...]
    before_outputs: tuple[str, ...]
    lengths: str | None
    max_steps: int
    parameters: BatchingParameters

    @property
    def stops(self) -> bool:
        """Whether a sequence may end before its inputs do."""
        return self.form.stop is not None


def plan_sequence(
    name: str, entry: SequenceEntry, signatures: Mapping[str, Signature]
) -> SequencePlan:
    """The plan of the signature `name`.

    Raises InvalidArgument that names the file's field, and the alias and the signature at fault.
    """
    return _Planner(name, entry, signatures).plan()


class _Planner:
    def __init__(
        self, name: str, entry: SequenceEntry, signatures: Mapping[str, Signature]
    ) -> None:
        self._where = f"sequences.{name}"
        self._name = name
        self._entry = entry
        self._signatures = signatures
        if name in signatures:
            raise InvalidArgument(f"{self._where}: the model has a signature of this name")
        self._step = self._signature("step", entry.step)
        self._before = None if entry.before is None else self._signature("before", entry.before)

    def plan(self) -> SequencePlan:
        entry = self._entry
        covered = [*entry.carried, *entry.per_step, *entry.constants]
        for alias, info in self._step.inputs.items():
            if alias not in covered and alias not in self._step.defaults:
                raise self._wrong(
                    "step", f"its input {alias!r} ({info.tensor}) is in none of state, feedback, "
                    "per_step and constants"
                )  # fmt: skip
        outputs = self._outputs()
        sources: dict[str, Source | None] = {a: entry.initial.get(a) for a in entry.carried}
        return SequencePlan(
            name=self._name,
            step=entry.step,
            signature=self._new_signature(),
            inputs={alias: self._input_row(alias) for alias in covered},
            fixed={a: v for a, v in self._step.defaults.items() if a not in covered},
            outputs=outputs,
            form=self._form(tuple(outputs)),
            sources=sources | dict(entry.constants),
            per_step=entry.per_step,
            returns=self._returns(),
            before=entry.before,
            before_inputs=tuple(self._before.inputs) if self._before else (),
            before_outputs=tuple(
                dict.fromkeys(s.output for _, s in self._sources() if s.output is not None)
            ),
            lengths=entry.lengths,
            max_steps=entry.max_steps,
            parameters=entry.batching.parameters(),
        )

    def _signature(self, field: str, name: str) -> Signature:
        if name not in self._signatures:
            known = ", ".join(sorted(self._signatures)) or "none"
            raise self._wrong(field, f"the model has no signature {name!r}; it has: {known}")
        return self._signatures[name]

    def _wrong(self, field: str, why: str) -> InvalidArgument:
        return InvalidArgument(f"{self._where}.{field}: {why}")

    def _input_row(self, alias: str) -> RowForm:
        entry = self._entry
        for field in ("state", "feedback", "per_step", "constants"):
            if alias in getattr(entry, field):
                return self._row(f"{field}.{alias}", alias, self._step.inputs, "input", entry.step)
        raise AssertionError(alias)

    def _row(
        self, field: str, alias: str, infos: Mapping[str, TensorInfo], kind: str, signature: str
    ) -> RowForm:
        """The row of a signature's tensor, whose dimension 0 is rows."""
        if alias not in infos:
            known = ", ".join(infos)
            raise self._wrong(
                field, f"signature {signature!r} has no {kind} {alias!r}; it has: {known}"
            )
        info = infos[alias]
        if not info.shape or info.shape[0] != -1:
            shape = "any rank" if info.shape is None else f"shape {list(info.shape)}"
            raise self._wrong(
                field, f"{kind} {alias!r} of signature {signature!r} has {shape}; dimension 0 "
                "must be rows, of any number"
            )  # fmt: skip
        return RowForm(numpy_dtype(info.dtype), info.shape[1:])

    def _outputs(self) -> dict[str, RowForm]:
        """What is fetched: the states first."""
        entry = self._entry
        found: dict[str, RowForm] = {}
        for alias, output in entry.carried.items():
            field = "state" if alias in entry.state else "feedback"
            where = f"{field}.{alias}"
            row = self._row(where, output, self._step.outputs, "output", entry.step)
            self._check_carried(where, alias, output, row)
            if output in found:
                raise self._wrong(where, f"output {output!r} is carried on twice")
            found[output] = row
        others = [*entry.returns, *([entry.stop.output] if entry.stop else [])]
        for output in others:
            where = f"returns.{output}" if output in entry.returns else "stop.output"
            found[output] = self._row(where, output, self._step.outputs, "output", entry.step)
        return found

    def _check_carried(self, where: str, alias: str, output: str, row: RowForm) -> None:
        wanted = self._input_row(alias)
        agrees = len(row.shape) == len(wanted.shape) and all(
            -1 in pair or pair[0] == pair[1] for pair in zip(row.shape, wanted.shape, strict=True)
        )
        if row.dtype != wanted.dtype or not agrees:
            raise self._wrong(
                where, f"output {output!r} of signature {self._entry.step!r} is "
                f"{row.dtype}{list(row.shape)} for each row, input {alias!r} is "
                f"{wanted.dtype}{list(wanted.shape)}"
            )  # fmt: skip
        if alias not in self._entry.initial and -1 in wanted.shape:
            raise self._wrong(
                f"initial.{alias}", "its declared shape is not known, so there are no zeros of it"
            )

    def _form(self, outputs: tuple[str, ...]) -> StepForm:
        entry = self._entry
        returned = {take: [a for a, t in entry.returns.items() if t is take] for take in Take}
        stop = entry.stop
        return StepForm(
            carried=len(entry.carried),
            per_step=len(entry.per_step),
            constant=len(entry.constants),
            outputs=outputs,
            last=tuple(outputs.index(alias) for alias in returned[Take.LAST]),
            every=tuple(outputs.index(alias) for alias in returned[Take.ALL]),
            stop=None if stop is None else (outputs.index(stop.output), _value(stop.equals)),
        )

    def _returns(self) -> dict[str, tuple[Take, int]]:
        places = dict.fromkeys(Take, 0)
        found = {}
        for alias, take in self._entry.returns.items():
            found[alias] = (take, places[take])
            places[take] += 1
        return found

    def _sources(self) -> Iterator[tuple[str, Source]]:
        """Each source that the file names, by its field."""
        for field in ("initial", "constants"):
            for alias, source in getattr(self._entry, field).items():
                yield f"{field}.{alias}", source

    # The signature that clients see.

    def _new_signature(self) -> Signature:
        inputs = self._new_inputs()
        if not inputs:
            raise self._wrong("per_step", "nothing of a request says how many sequences it has")
        entry = self._entry
        outputs = {
            alias: self._info(
                alias, self._step.outputs[alias].dtype,
                (-1,) * (1 + (take is Take.ALL)) + self._outputs()[alias].shape,
            )
            for alias, take in entry.returns.items()
        }  # fmt: skip
        outputs[STEPS] = self._info(STEPS, types_pb2.DT_INT64, (-1,))
        defaults = {} if entry.lengths is None else {entry.lengths: np.zeros(0, np.int64)}
        return Signature(
            METHOD, dict(sorted(inputs.items())), dict(sorted(outputs.items())), defaults
        )

    def _new_inputs(self) -> dict[str, TensorInfo]:
        entry = self._entry
        found: dict[str, TensorInfo] = {}
        for alias, name in entry.per_step.items():
            self._add(found, f"per_step.{alias}", name, alias, (-1, -1))
        for field, source in self._sources():
            alias = field.partition(".")[2]
            if source.input is not None:
                self._add(found, field, source.input, alias, (-1,))
            if source.output is not None:
                self._check_before(field, alias, source.output)
        if self._before is not None:
            for name, info in self._before.inputs.items():
                if name in found:
                    raise self._wrong("before", f"input {name!r} of the request is taken already")
                found[name] = info
        if entry.lengths is not None:
            if entry.lengths in found:
                raise self._wrong("lengths", f"input {entry.lengths!r} is taken already")
            found[entry.lengths] = self._info(entry.lengths, types_pb2.DT_INT64, (-1,))
        return found

    def _add(
        self,
        found: dict[str, TensorInfo],
        field: str,
        name: str,
        alias: str,
        rows: tuple[int, ...],
    ) -> None:
        row = self._input_row(alias)
        info = self._info(name, self._step.inputs[alias].dtype, rows + row.shape)
        if found.setdefault(name, info) != info:
            raise self._wrong(field, f"input {name!r} of the request has two forms")

    def _check_before(self, field: str, alias: str, output: str) -> None:
        if self._before is None or self._entry.before is None:
            raise self._wrong(field, f"output {output!r} is of no signature: 'before' is not set")
        row = self._row(field, output, self._before.outputs, "output", self._entry.before)
        if row.dtype != self._input_row(alias).dtype:
            raise self._wrong(
                field, f"output {output!r} of signature {self._entry.before!r} is {row.dtype}, "
                f"input {alias!r} of the step is {self._input_row(alias).dtype}"
            )  # fmt: skip

    def _info(self, alias: str, dtype: int, shape: tuple[int, ...]) -> TensorInfo:
        return TensorInfo(f"{self._name}/{alias}:0", dtype, shape)


def _value(value: object) -> object:
    """Strings are bytes in tensors."""
    return value.encode() if isinstance(value, str) else value
