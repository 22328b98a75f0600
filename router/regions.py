"""Who runs a region of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy.typing as npt

from shardserve.router.servable import RequestContext

Array = npt.NDArray[Any]


class RegionRunner(Protocol):
    """Runs one region, for all its callers. Safe for many calls at once."""

    async def run(
        self, tensors: Sequence[Array], rows: int, context: RequestContext
    ) -> list[Array]:
        """The region's outputs, in their order, each with `rows` as dimension 0.

        `tensors` are its inputs, each with `rows` as dimension 0, then what it captured. They must
        not change until this returns; results may be read-only views. Raises a `ServingError`:
        what the graph raises, DeadlineExceeded by `context.deadline`, Unavailable for a queue that
        is full. Spends its time on `context`.
        """
        ...
