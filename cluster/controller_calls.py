"""What a router asks of its controller besides tables, as calls that raise `ServingError`s."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from shardserve.batching.errors import Unavailable
from shardserve.cluster.progress import Failure
from shardserve.shards.measures import Measure
from shardserve.shards.model import ModelPlan

logger = logging.getLogger(__name__)

#: What a scrape waits for the shards' figures, rather than be without them.
_MEASURES_SECONDS = 3.0


class ControllerCalls:
    """Of one controller, by its actor's handle."""

    def __init__(self, controller: Any) -> None:
        self._controller = controller

    async def plan(self, deployment: str) -> ModelPlan:
        """The plan of a deployment."""
        plan: ModelPlan = await self._controller.plan.remote(deployment)
        return plan

    async def reload(self, config: Any) -> None:
        """Serve what a `ModelServerConfig` says. Raises what the controller says of it."""
        asked = self._controller.reload.remote(config.SerializeToString())
        try:
            failure: Failure | None = await asked
        except asyncio.CancelledError:
            # The call would wait on in the controller, for nobody, for as long as a model needs.
            ray.cancel(asked)
            raise
        except RayError as error:
            raise Unavailable(f"the controller does not answer: {error}") from error
        if failure is not None:
            raise failure.error()

    async def measures(self) -> Sequence[Measure]:
        """What the shards tell of themselves; nothing while the controller does not answer."""
        try:
            async with asyncio.timeout(_MEASURES_SECONDS):
                measures: Sequence[Measure] = await self._controller.measures.remote()
                return measures
        except (RayError, TimeoutError) as error:
            logger.warning("the controller does not tell of the shards: %s", error)
            return ()

    async def collected(self) -> bytes:
        """What all routers have counted together. Raises Unavailable without a controller."""
        try:
            async with asyncio.timeout(_MEASURES_SECONDS):
                collected: bytes = await self._controller.collected.remote()
                return collected
        except (RayError, TimeoutError) as error:
            raise Unavailable(f"the controller does not answer: {error}") from error
