"""The sections `sequences` and `loops` of the stages file: what is batched at each step.

A sequence is a signature of the model declared as the step of a new one, that a client calls like
any other. A loop is one that the model has already (`shards/cut/step_loops.py`).
"""

from __future__ import annotations

import enum
from typing import Annotated

from pydantic import Field, model_validator

from shardserve.batching.errors import InvalidArgument
from shardserve.batching.parameters import BatchingParameters
from shardserve.shards.actors_form import ActorsEntry
from shardserve.shards.forms import Strict

#: Rows of a running batch, where the file does not say.
DEFAULT_ROWS = 32
MAX_STEPS = 1 << 20

#: The output that every sequence signature has besides those it returns.
STEPS = "steps"


class Take(enum.StrEnum):
    """Which of a step's outputs are returned: that of a sequence's last step, or all of them."""

    LAST = "last"
    ALL = "all"


class StepBatching(Strict):
    """A running batch. It waits for nobody, so there is no timeout."""

    max_batch_size: Annotated[int, Field(ge=1)] = DEFAULT_ROWS
    max_enqueued_batches: Annotated[int, Field(ge=0)] = 10
    allowed_batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = ()

    @model_validator(mode="after")
    def _is_consistent(self) -> StepBatching:
        try:
            self.parameters()
        except InvalidArgument as error:
            raise ValueError(error.message) from None
        return self

    def parameters(self) -> BatchingParameters:
        """As batching parameters."""
        return BatchingParameters(
            max_batch_size=self.max_batch_size,
            max_enqueued_batches=self.max_enqueued_batches,
            allowed_batch_sizes=self.allowed_batch_sizes,
        )


class Source(Strict):
    """Where a value comes from, one of three.

    `input` is an input of the request, [rows, ...]. `output` is an output of the signature
    `before`. `value` is put into every element.
    """

    input: str | None = None
    output: str | None = None
    value: bool | int | float | str | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Source:
        if sum(value is not None for value in (self.input, self.output, self.value)) != 1:
            raise ValueError("takes one of 'input', 'output' and 'value'")
        return self


class Stop(Strict):
    """A sequence ends with the step whose output, all of the sequence's row, equals a value."""

    output: str
    equals: bool | int | float | str


class SequenceEntry(Strict):
    """A signature made of steps.

    `step` is the signature that takes one step of each row. `state` and `feedback` map its inputs
    to the outputs that they are in the next step; the first values are `initial`'s, or zeros of the
    declared shape. `per_step` maps its inputs to inputs of the request, [rows, steps, ...], and
    `constants` its inputs to what is the same in all steps. `before` is a signature that is run
    once for a request, whose inputs are the request's too. `lengths` names an input of the request,
    int64 [rows], that may be left out: the steps of each row.

    A sequence takes as many steps as its input has, at most `max_steps`, or fewer if it meets
    `stop`. `returns` are outputs of the step. With `actors` these run it all, `before` too, instead
    of the routers.
    """

    step: str
    state: dict[str, str] = Field(default_factory=dict)
    feedback: dict[str, str] = Field(default_factory=dict)
    initial: dict[str, Source] = Field(default_factory=dict)
    per_step: dict[str, str] = Field(default_factory=dict)
    constants: dict[str, Source] = Field(default_factory=dict)
    before: str | None = None
    lengths: str | None = None
    stop: Stop | None = None
    max_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 512
    returns: Annotated[dict[str, Take], Field(min_length=1)]
    batching: StepBatching = StepBatching()
    actors: ActorsEntry | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> SequenceEntry:
        roles = ("state", "feedback", "per_step", "constants")
        seen: dict[str, str] = {}
        for role in roles:
            for alias in getattr(self, role):
                if alias in seen:
                    raise ValueError(f"input {alias!r} of the step is in {seen[alias]} and {role}")
                seen[alias] = role
        if not self.carried:
            raise ValueError("'state' and 'feedback' are both empty: nothing makes it a sequence")
        for alias in self.initial:
            if alias not in self.carried:
                raise ValueError(f"initial.{alias}: is not in 'state' or 'feedback'")
        if STEPS in self.returns:
            raise ValueError(f"returns.{STEPS}: the name is taken by the number of steps")
        return self

    @property
    def carried(self) -> dict[str, str]:
        """State and feedback: they differ in what they mean, and in nothing that is done."""
        return {**self.state, **self.feedback}

    @property
    def signatures(self) -> dict[str, str]:
        """The model's signatures that it runs, by the field that names them."""
        named = {"step": self.step, "before": self.before}
        return {field: name for field, name in named.items() if name is not None}


class LoopEntry(Strict):
    """A signature whose loops are stepped for all requests together, by `actors` if there are."""

    batching: StepBatching = StepBatching()
    actors: ActorsEntry | None = None
