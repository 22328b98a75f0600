"""Who runs a stage that is asked whole: a region, a sequence, a lifted loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from shardserve.router.servable import Array, RequestContext


class StageRunner(Protocol):
    """Runs one stage, for all its callers, here or elsewhere. Safe for many calls at once."""

    async def run(
        self, tensors: Sequence[Array], rows: int, context: RequestContext
    ) -> list[Array]:
        """The stage's outputs, in their order.

        `tensors` are its inputs. Of a region, each with `rows` as dimension 0, as its outputs have,
        then what it captured; others say their rows themselves. They must not change until this
        returns; results may be read-only views. Raises a `ServingError`: what the graph raises,
        DeadlineExceeded by `context.deadline`, Unavailable for a queue that is full. Spends its
        time on `context`.
        """
        ...
