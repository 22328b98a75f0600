"""A router's channels to a model's shards, kept as the controller's table says."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from ray.exceptions import RayError

from shardserve.batching.errors import FailedPrecondition
from shardserve.cluster.credentials import shard_credentials
from shardserve.cluster.table import RoutingTable, changes
from shardserve.shards.replicas import ReplicatedChannel

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 0.5


class Routing:
    """One channel for each shard of the table's plan. Belongs to the running event loop."""

    def __init__(self, table: RoutingTable, secret: bytes) -> None:
        self._table = table
        self.channels = [
            ReplicatedChannel(
                f"shard {shard} of {table.model}",
                table.of_shard(shard),
                shard_credentials(secret, table.plan, shard),
            )
            for shard in range(len(table.addresses))
        ]

    @property
    def table(self) -> RoutingTable:
        """The latest table."""
        return self._table

    def apply(self, table: RoutingTable) -> None:
        """Send requests where `table` says from now on; those in flight are not disturbed.

        Raises FailedPrecondition for the table of another plan: that needs another router.
        """
        if table.plan.fingerprint != self._table.plan.fingerprint:
            raise FailedPrecondition(f"the plan of {table.model} version {table.version} changed")
        for line in changes(self._table, table):
            logger.info("table %d: %s", table.number, line)
        self._table = table
        for shard, channel in enumerate(self.channels):
            channel.update(table.of_shard(shard))

    async def connected(self) -> None:
        """Return when each shard has a replica that is connected."""
        await asyncio.gather(*(channel.connected() for channel in self.channels))

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
        for channel in self.channels:
            await channel.close()
