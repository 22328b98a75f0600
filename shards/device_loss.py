"""What to do when a device fails for good: its process can never use it again, a new one may."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from shardserve.batching.errors import Internal

if TYPE_CHECKING:
    # The benchmark of the kernels knows of losses, and has no msgpack.
    from shardserve.shards.jobs import LookupExecutor
    from shardserve.shards.messages import Array, LookupRequest


class DeviceLost(Internal):
    """A device failed, and will fail at whatever this process asks of it from now on."""


class UntilLost:
    """A `LookupExecutor` that tells `lost` when a device is; as a rule that ends the process.

    Otherwise the request fails with the error, and `lost` is told again with the next one. It is
    called on the thread that carries out the request.
    """

    def __init__(self, executor: LookupExecutor, lost: Callable[[DeviceLost], None]) -> None:
        self._executor = executor
        self._lost = lost

    def execute(self, request: LookupRequest) -> tuple[Array, ...]:
        """See `LookupExecutor.execute`."""
        try:
            return self._executor.execute(request)
        except DeviceLost as error:
            self._lost(error)
            raise

    def cost(self, request: LookupRequest) -> int:
        """See `LookupExecutor.cost`."""
        return self._executor.cost(request)
