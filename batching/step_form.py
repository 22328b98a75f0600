"""What a step takes and gives, and what a sequence brings to it and takes away. Plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shardserve.batching.tensors import Array


@dataclass(frozen=True)
class StepForm:
    """What a step takes and gives, in order.

    Inputs are the `carried` states, `per_step` inputs, and `constant` ones; outputs, which
    `outputs` names, are the states carried on and then others. Of the outputs, places in `last` are
    returned as the last step makes them, those in `every` for all steps. A sequence stops after
    the step whose output at place `stop[0]` has nothing but `stop[1]` in its row.
    """

    carried: int
    per_step: int
    constant: int
    outputs: tuple[str, ...]
    last: tuple[int, ...] = ()
    every: tuple[int, ...] = ()
    stop: tuple[int, Any] | None = None


@dataclass(slots=True, eq=False)
class SequenceRow:
    """One sequence: its first states and constants, [1, ...] each, and inputs, [steps, ...] each.

    The batch's: `slot` is its row, `base` the step of the batch before its own first one, `chunks`
    what is kept so far, and `kept_from` where in the window the rest begins.
    """

    initial: Sequence[Array]
    per_step: Sequence[Array] = ()
    constant: Sequence[Array] = ()
    slot: int = -1
    base: int = 0
    kept_from: int = 0
    chunks: list[list[Array]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RowResult:
    """What a sequence returns after `steps` steps.

    `last` outputs are [1, ...] each, those of `every` step [steps, ...].
    """

    steps: int
    last: list[Array]
    every: list[Array]
