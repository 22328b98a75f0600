"""A router replica: the models of a run behind TensorFlow Serving's own ports and Serve's ingress.

Stateless: what it needs it asks the controller. Serve places, restarts and scales its replicas.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError
from starlette.requests import Request
from starlette.responses import Response

from shardserve.batching.errors import ServingError, Unavailable
from shardserve.cluster.catalog_table import CatalogTable
from shardserve.cluster.controller_calls import ControllerCalls
from shardserve.cluster.controller_loss import Contact, missed
from shardserve.cluster.dead_runs import delete_soon, has_controller
from shardserve.cluster.options import Application
from shardserve.cluster.progress import failure_of
from shardserve.cluster.stream_actor import NAMESPACE
from shardserve.router import logs

if TYPE_CHECKING:
    from shardserve.cluster.ingress_requests import Encoded
    from shardserve.router.prediction import PredictionHandlers

logger = logging.getLogger(__name__)

#: Between two attempts to find the controller.
_RETRY_SECONDS = 0.5
#: What a router that goes waits for the controller to hear of it.
_LEFT_SECONDS = 2.0


class Router:
    """What Serve makes of each replica.

    It is made, and its doors open, when the models of the start are served, here as elsewhere.
    """

    #: Whether there is anything to be closed.
    _is_there = False
    #: The number of the certificates that the doors show.
    _renewed = 0

    async def __init__(self, application: Application) -> None:  # type: ignore[misc]
        logs.configure()
        self._id = secrets.token_hex(8)
        self._name = application.controller
        self._controller: Any = ray.get_actor(self._name, NAMESPACE)
        # TensorFlow takes seconds to import.
        await asyncio.to_thread(_import_tensorflow)
        try:
            await self._start(application)
        except ServingError as error:
            await self._controller.router_failed.remote(failure_of(error))
            raise

    async def _start(self, application: Application) -> None:
        from shardserve.cluster.ingress_requests import Ingress  # noqa: PLC0415 (TensorFlow)
        from shardserve.cluster.planned_version import PlannedVersion  # noqa: PLC0415
        from shardserve.cluster.router_models import RouterModels  # noqa: PLC0415
        from shardserve.cluster.serving import Endpoints, start_runtime  # noqa: PLC0415

        calls = ControllerCalls(self._controller)
        secret = await self._controller.secret.remote()
        doors = replace(application.doors, tls=await self._controller.tls.remote())
        runtime = start_runtime(doors, application.plan, application.warm_up, self._id)
        self._metrics = runtime.metrics
        self._changed = asyncio.Event()
        self._models = RouterModels(
            runtime.catalog,
            lambda _, serving: PlannedVersion(serving, calls.plan, secret, runtime),
            self._tell,
        )
        self._endpoints = Endpoints(runtime, calls.reload, calls.measures, calls.collected)
        is_open = application.ray.has_ingress
        self._ingress = Ingress(self._endpoints.rest, self._endpoints.prediction, is_open=is_open)
        self._following = asyncio.ensure_future(self._follow())
        self._is_there = True
        await self._ready()
        await self._endpoints.open()

    async def _ready(self) -> None:
        while not (self._models.table.opens and self._models.is_ready):
            if self._models.refusal is not None:
                raise self._models.refusal.error()
            await self._news()
            self._changed.clear()

    async def _news(self) -> None:
        """Return when something has changed. Raises what ends the following of tables."""
        changed = asyncio.ensure_future(self._changed.wait())
        await asyncio.wait({changed, self._following}, return_when=asyncio.FIRST_COMPLETED)
        changed.cancel()
        if self._following.done():
            self._following.result()

    async def _follow(self) -> None:
        """Apply every table that comes, for ever. Without a controller, the latest one is kept.

        Raises Unavailable when Ray has known no controller for so long that the run is over.
        """
        contact = Contact()
        while True:
            known = self._models.table.number
            try:
                asked = self._controller.wait_for_catalog.remote(
                    self._id, known, self._models.report()
                )
                table: CatalogTable | None = await asked
            except RayError as error:
                contact = await self._missed(contact, error)
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            contact = Contact()
            if table is None:
                continue
            await self._heed(table)
            if table.number != known:
                self._models.apply(table)

    async def _heed(self, table: CatalogTable) -> None:
        """Do what a table asks for besides serving its models."""
        if table.collect != self._models.table.collect:
            snapshot = await self._metrics.snapshot()
            self._controller.report_metrics.remote(self._id, table.collect, snapshot)
        if table.renewed > self._renewed:
            await self._renew(table.renewed)
        if table.draining:
            await self._endpoints.drain()

    async def _renew(self, number: int) -> None:
        """Show the certificates that there are now. One that could not be had comes next time."""
        try:
            self._endpoints.renew(await self._controller.tls.remote())
        except RayError as error:
            logger.warning("no new certificates: %s", error)
            return
        except ServingError as error:
            logger.error("certificates are not renewed, those before stay: %s", error.message)
        self._renewed = number

    async def _missed(self, contact: Contact, error: RayError) -> Contact:
        if not contact.is_lost:
            logger.warning("no controller: %s", error)
        is_known = await asyncio.to_thread(has_controller, self._name)
        now = time.monotonic()
        contact = missed(contact, now, is_known=is_known)
        if contact.is_over(now):
            await asyncio.to_thread(delete_soon, self._name)
            raise Unavailable(f"{self._name} is over: there is no controller any more")
        return contact

    def _tell(self) -> None:
        self._changed.set()
        self._controller.report_router.remote(self._id, self._models.report())

    @property
    def prediction(self) -> PredictionHandlers:
        """What RPCs are answered by."""
        return self._endpoints.prediction

    async def leave(self) -> None:
        """Close the doors, free the models, and be waited for no more."""
        self._is_there = False
        await self._endpoints.close()
        self._following.cancel()
        await self._models.close()
        with suppress(RayError, TimeoutError):
            async with asyncio.timeout(_LEFT_SECONDS):
                await self._controller.left.remote(self._id)

    def __del__(self) -> Coroutine[Any, Any, None] | None:
        """For Serve, which awaits it before it ends a replica. Nothing is left to do the next time.

        Python calls it again, and awaits nothing.
        """
        return self.leave() if self._is_there else None

    async def check_health(self) -> None:
        """For Serve, which makes a replica anew that raises here."""
        if self._is_there and self._following.done():
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
    from shardserve.cluster import ingress_requests, planned_version  # noqa: F401, PLC0415
