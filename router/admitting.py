"""Refuses requests that would be answered too late, before they are decoded."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

from shardserve.batching.admission import Admission
from shardserve.batching.errors import DeadlineExceeded, ResourceExhausted
from shardserve.batching.stage import StageCounts
from shardserve.router.servable import Array, RequestContext, Servable, Signature


class AdmittingServable:
    """A `Servable` that refuses what it could not answer in time, and so answers the others.

    How many may be under way is found by how those of each signature fare. Requests without a
    deadline are always admitted. All come from one event loop.
    """

    def __init__(self, servable: Servable) -> None:
        self.name = servable.name
        self.version = servable.version
        self.signatures: Mapping[str, Signature] = servable.signatures
        self.signature_def_map = servable.signature_def_map
        #: The one that answers.
        self.servable = servable
        self._admission = Admission()

    def admit(self, deadline: float) -> None:
        """See `Admitting.admit`."""
        if deadline != math.inf:
            self._admission.check(deadline, time.monotonic())

    async def run(
        self,
        signature: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        context: RequestContext,
    ) -> dict[str, Array]:
        """See `Servable.run`; besides, Unavailable at once for what would end too late."""
        admission = self._admission
        started = time.monotonic()
        if context.deadline != math.inf:
            admission.check(context.deadline, started, signature)
        in_flight = admission.begin()
        try:
            results = await self.servable.run(signature, inputs, outputs, context)
        except (DeadlineExceeded, ResourceExhausted):
            # It took all of its time, and that says as much as an answer does.
            self._observe(in_flight, started, context.deadline, context.deadline, signature)
            raise
        finally:
            admission.end()
        self._observe(in_flight, started, context.deadline, time.monotonic(), signature)
        return results

    def stage_counts(self) -> Mapping[str, StageCounts]:
        """See `Servable.stage_counts`; "admission" counts what was refused before it began."""
        counts = StageCounts(refused=self._admission.refused)
        return {**self.servable.stage_counts(), f"{self.name}/admission": counts}

    async def close(self) -> None:
        """See `Servable.close`."""
        await self.servable.close()

    def _observe(
        self, in_flight: int, started: float, deadline: float, ended: float, kind: str
    ) -> None:
        if deadline != math.inf:
            self._admission.observe(in_flight, started, deadline, ended, kind)
