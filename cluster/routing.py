"""The channels to one version's shards and stage actors, kept as the controller's table says."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from ray.exceptions import RayError

from shardserve.cluster.credentials import shard_credentials, stage_credentials
from shardserve.cluster.table import RoutingTable, changes
from shardserve.cluster.versions import VersionId
from shardserve.shards.model import ModelPlan
from shardserve.shards.replicas import Replicas, ReplicatedChannel
from shardserve.shards.stage_messages import StageReply, StageRequest
from shardserve.shards.stage_wire import STAGES

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 0.5


class Routing:
    """One channel for each shard and each group of stage actors of a plan.

    Without `stages` there are none to stage actors. Belongs to the running event loop.
    """

    def __init__(
        self, plan: ModelPlan, table: RoutingTable, secret: bytes, *, stages: bool = True
    ) -> None:
        self._name = VersionId(plan.name, plan.version)
        self._table = table
        self.channels = [
            ReplicatedChannel(
                f"shard {shard} of {plan.name}",
                table.of_shard(shard),
                shard_credentials(secret, plan, shard),
            )
            for shard in range(len(table.addresses))
        ]
        #: By group of stage actors.
        self.stages: dict[str, Replicas[StageRequest, StageReply]] = {
            group.name: Replicas(
                f"stage {group.name} of {plan.name}",
                table.of_group(group.name),
                stage_credentials(secret, group),
                STAGES,
            )
            for group in (plan.stage_groups if stages else ())
        }

    @property
    def table(self) -> RoutingTable:
        """The latest table."""
        return self._table

    def apply(self, table: RoutingTable) -> None:
        """Send requests where `table` says from now on; those in flight are not disturbed."""
        for line in changes(self._table, table):
            logger.info("%s: %s", self._name, line)
        self._table = table
        for shard, channel in enumerate(self.channels):
            channel.update(table.of_shard(shard))
        for group, actors in self.stages.items():
            actors.update(table.of_group(group))

    async def connected(self) -> None:
        """Return when each shard, and each group of stage actors, has a replica connected."""
        await asyncio.gather(*(channel.connected() for channel in self._every()))

    async def follow(
        self,
        next_table: Callable[[int], Awaitable[RoutingTable]],
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Apply every table that comes, for ever. `next_table` is the controller's long poll.

        While there is no controller, the latest table is kept.
        """
        while True:
            try:
                table = await next_table(self._table.number)
            except RayError as error:
                logger.warning("no controller: %s", error)
                await pause(_RETRY_SECONDS)
                continue
            if table.number != self._table.number:
                self.apply(table)

    async def close(self) -> None:
        """Close every channel."""
        for channel in self._every():
            await channel.close()

    def _every(self) -> list[Replicas[Any, Any]]:
        return [*self.channels, *self.stages.values()]
