"""A router replica: one model behind TensorFlow Serving's own ports and behind Serve's ingress.

Stateless: what it needs it asks the controller. Serve places, restarts and scales its replicas.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError
from starlette.requests import Request
from starlette.responses import Response

from shardserve.batching.errors import ServingError, Unavailable
from shardserve.cluster.options import DoorOptions
from shardserve.cluster.progress import failure_of
from shardserve.cluster.routing import Routing
from shardserve.cluster.shard_actor import NAMESPACE
from shardserve.cluster.table import RoutingTable
from shardserve.router import logs
from shardserve.shards.measures import Measure

if TYPE_CHECKING:
    from shardserve.cluster.ingress_requests import Encoded


logger = logging.getLogger(__name__)

#: What a scrape waits for the shards' figures, rather than be without them.
_MEASURES_SECONDS = 3.0


class Router:
    """What Serve makes of each replica. It is made, and its doors open, when all shards answer."""

    async def __init__(self, controller: str, options: DoorOptions) -> None:  # type: ignore[misc]
        logs.configure()
        self._controller: Any = ray.get_actor(controller, NAMESPACE)
        # TensorFlow takes seconds to import; the plan is being made meanwhile.
        importing = asyncio.ensure_future(asyncio.to_thread(_import_tensorflow))
        try:
            table = await self._next_table(-1)
            await importing
            await self._start(table, options)
        except ServingError as error:
            await self._controller.router_refused.remote(failure_of(error))
            raise

    async def _start(self, table: RoutingTable, options: DoorOptions) -> None:
        from shardserve.cluster.ingress_requests import Ingress  # noqa: PLC0415 (TensorFlow)
        from shardserve.cluster.serving import (  # noqa: PLC0415
            Serving,
            load_servable,
            start_threads,
        )
        from shardserve.router.remote_region import remote_regions  # noqa: PLC0415

        routing = Routing(table, await self._controller.secret.remote())
        self._following = asyncio.ensure_future(routing.follow(self._next_table))
        threads = start_threads(options)
        servable = await asyncio.to_thread(
            load_servable,
            table.plan,
            routing.channels,
            threads,
            options,
            remote_regions(table.plan, routing.stages),
        )
        self._serving = Serving(servable, threads, options, self._measures)
        self._ingress = Ingress(self._serving.rest, self._serving.prediction)
        await routing.connected()
        await self._serving.open()

    async def _next_table(self, known: int) -> RoutingTable:
        table: RoutingTable = await self._controller.wait_for_table.remote(known)
        return table

    async def _measures(self) -> Sequence[Measure]:
        """What the shards tell of themselves; nothing while the controller does not answer."""
        try:
            async with asyncio.timeout(_MEASURES_SECONDS):
                measures: Sequence[Measure] = await self._controller.measures.remote()
                return measures
        except (RayError, TimeoutError) as error:
            logger.warning("the controller does not tell of the shards: %s", error)
            return ()

    async def check_health(self) -> None:
        """For Serve, which makes a replica anew that raises here."""
        if self._following.done():
            raise Unavailable(f"tables are followed no more: {self._following.exception()}")

    async def __call__(self, request: Request) -> Response:
        """HTTP from Serve's ingress. So are the others gRPC, by the names of their methods."""
        return await self._ingress.http(request)

    async def Predict(self, request: bytes, grpc_context: Any) -> Encoded:  # noqa: N802
        return await self._ingress.rpc("Predict", request, grpc_context)

    async def Classify(self, request: bytes, grpc_context: Any) -> Encoded:  # noqa: N802
        return await self._ingress.rpc("Classify", request, grpc_context)

    async def Regress(self, request: bytes, grpc_context: Any) -> Encoded:  # noqa: N802
        return await self._ingress.rpc("Regress", request, grpc_context)

    async def MultiInference(self, request: bytes, grpc_context: Any) -> Encoded:  # noqa: N802
        return await self._ingress.rpc("MultiInference", request, grpc_context)

    async def GetModelMetadata(self, request: bytes, grpc_context: Any) -> Encoded:  # noqa: N802
        return await self._ingress.rpc("GetModelMetadata", request, grpc_context)

    async def GetModelStatus(self, request: bytes, grpc_context: Any) -> Encoded:  # noqa: N802
        return await self._ingress.rpc("GetModelStatus", request, grpc_context)

    async def HandleReloadConfigRequest(  # noqa: N802
        self, request: bytes, grpc_context: Any
    ) -> Encoded:
        return await self._ingress.rpc("HandleReloadConfigRequest", request, grpc_context)

    async def SessionRun(self, request: bytes, grpc_context: Any) -> Encoded:  # noqa: N802
        return await self._ingress.rpc("SessionRun", request, grpc_context)


def _import_tensorflow() -> None:
    from shardserve.cluster import ingress_requests, serving  # noqa: F401, PLC0415
