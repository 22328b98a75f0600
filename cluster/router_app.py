"""The routers' application of one run, which may be ended while it is still being started."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from shardserve.cluster.options import Application
from shardserve.cluster.serve_ingress import ServeIngress

#: Between two attempts to end what is being started.
_AGAIN_SECONDS = 0.5


class RouterApp:
    """Started once, and ended once. Both functions block; `deploy` may go on while `withdraw` runs.

    Belongs to the running event loop.
    """

    def __init__(self, deploy: Callable[[], ServeIngress], withdraw: Callable[[], None]) -> None:
        self._deploy = deploy
        self._withdraw = withdraw
        self._deploying: asyncio.Future[ServeIngress] | None = None
        self._is_over = False

    async def start(self) -> ServeIngress:
        """What `deploy` returns or raises, when routers answer; nothing once it is ended."""
        if self._is_over:
            return ServeIngress()
        self._deploying = asyncio.ensure_future(asyncio.to_thread(self._deploy))
        return await asyncio.shield(self._deploying)

    async def end(self) -> None:
        """Return when there are no routers, and none will come of a start that was under way."""
        self._is_over = True
        while True:
            nothing_can_follow = self._deploying is None or self._deploying.done()
            await asyncio.to_thread(self._withdraw)
            if self._deploying is None or nothing_can_follow:
                return
            await asyncio.wait({self._deploying}, timeout=_AGAIN_SECONDS)


def app_of(application: Application) -> RouterApp:
    """What Serve is asked to start and to end for an application."""
    return RouterApp(partial(_deploy, application), partial(_withdraw, application))


def _deploy(application: Application) -> ServeIngress:
    from shardserve.cluster import serve_app  # noqa: PLC0415 (slow to import; the plan goes first)

    return serve_app.deploy(application)


def _withdraw(application: Application) -> None:
    from shardserve.cluster import serve_app  # noqa: PLC0415

    serve_app.withdraw(application)
