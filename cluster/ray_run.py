"""One run of the server on Ray, from the driver's side. Import it once Ray's environment is set."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import time
from typing import Any, NoReturn

import ray
from ray.exceptions import ActorDiedError, RayError

from shardserve.batching.errors import Unavailable
from shardserve.cluster import environment
from shardserve.cluster.catalog_table import CatalogTable, table_changes
from shardserve.cluster.certificates import LOOK_SECONDS, certificate_file
from shardserve.cluster.console import StartDisplay
from shardserve.cluster.controller import Controller
from shardserve.cluster.options import Application, ServeOptions
from shardserve.cluster.progress import Start
from shardserve.cluster.run import Run
from shardserve.cluster.serve_ingress import ServeIngress, ignored
from shardserve.cluster.stop_signals import StopSignals
from shardserve.cluster.stream_actor import NAMESPACE
from shardserve.router import logs

_POLL_SECONDS = 0.25
#: Routers take some seconds for each door, then Serve's own, then the actors of all deployments.
_END_SECONDS = 30.0
#: Ray's object store carries plans and tables here, nothing large.
_OBJECT_STORE_BYTES = 100 << 20
_SECRET_BYTES = 32


class RayRun:
    """Starts, watches and ends one run. `start` first; `end` whatever happened before."""

    def __init__(self, name: str, options: ServeOptions, stop: StopSignals) -> None:
        self._name = name
        self._options = options
        self._stop = stop
        self._controller: Any = None
        self._certificates = certificate_file(options.doors)
        self._look_at = 0.0
        #: How often the controller is to have been told of certificates, the first ones too.
        self._renewals = 1
        #: Where Serve's ingress listens, once all is served.
        self.ingress = ServeIngress()
        self._log = logs.logger(run=name)

    @property
    def _is_own(self) -> bool:
        """Whether the Ray is ours, to be ended with us."""
        return self._options.ray.address is None

    def start(self, display: StartDisplay) -> CatalogTable:
        """Return what is served, when every router serves it.

        Raises Stopped on a signal, and the `ServingError` for which it cannot be.
        """
        display.step("starting Ray" if self._is_own else "joining Ray")
        self._init_ray()
        display.step("Ray is up")
        self._stop.check()
        self._controller = (
            ray.remote(Controller)
            .options(name=self._name, num_cpus=0, max_restarts=-1)
            .remote(self._run(), secrets.token_bytes(_SECRET_BYTES))
        )
        self._wait_until_served(display)
        table: CatalogTable = self._ask("wait_for_table", -1)
        return table

    def stay(self, table: CatalogTable) -> NoReturn:
        """Log what becomes of versions and actors, until Stopped is raised on a signal."""
        while True:
            after = self._ask("wait_for_table", table.number)
            for line in table_changes(table, after):
                self._log.info("table", number=after.number, change=line)
            table = after

    def drain(self, seconds: float) -> None:
        """Have probes find nobody ready, and requests answered, for so long or until a signal."""
        if seconds > 0:
            self._controller.drain.remote()
            self._stop.rest(seconds)

    def end(self) -> None:
        """End all that was started, in order; in a Ray that is not ours, only what is ours."""
        if not ray.is_initialized():
            return
        # Ray prints what it thinks of actors that end; here that is no news.
        with contextlib.redirect_stdout(io.StringIO()):
            if self._controller is not None:
                ray.wait([self._controller.end.remote()], timeout=_END_SECONDS)
            if self._controller is not None and not self._is_own:
                ray.kill(self._controller)
            ray.shutdown()

    def _run(self) -> Run:
        options = self._options
        application = Application(
            self._name,
            self._name,
            options.doors,
            options.ray,
            plan=options.defaults.plan,
            warm_up=options.warm_up,
        )
        return Run(
            self._name,
            options.models,
            not self._is_own,
            options.defaults,
            options.manager,
            application.without_key(),
        )

    def _init_ray(self) -> None:
        try:
            with self._stop.lent():
                ray.init(
                    namespace=NAMESPACE,
                    log_to_driver=False,
                    logging_level="error",
                    **self._which_ray(),
                )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise Unavailable(f"Ray does not start: {error}") from error

    def _which_ray(self) -> dict[str, Any]:
        if not self._is_own:
            settings = {"env_vars": environment.SERVE_SETTINGS}
            return {"address": self._options.ray.address, "runtime_env": settings}
        return {
            "address": "local",
            "num_cpus": max(os.cpu_count() or 1, self._options.ray.routers),
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }

    def _wait_until_served(self, display: StartDisplay) -> None:
        start = Start(-1)
        while not start.is_served:
            start = self._ask("wait_for_start", start.number)
            display.show(start)
            if start.failure is not None:
                raise start.failure.error()
        self.ingress = start.ingress
        for line in ignored(self._options.ray, start.ingress):
            display.warn(line)

    def _ask(self, method: str, known: int) -> Any:
        """A long poll of the controller, through its deaths. Raises Stopped on a signal."""
        while True:
            asked = getattr(self._controller, method).remote(known)
            # One that was made anew has none.
            self._send_certificates()
            while not ray.wait([asked], timeout=_POLL_SECONDS)[0]:
                self._stop.check()
                self._look_at_certificates()
            try:
                return ray.get(asked)
            except ActorDiedError as error:
                raise Unavailable(f"the controller has died for good: {error}") from error
            except RayError as error:
                self._log.warning("no controller", error=str(error))
                self._stop.check()
                time.sleep(_POLL_SECONDS)

    def _look_at_certificates(self) -> None:
        now = time.monotonic()
        if self._certificates is None or now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        if self._certificates.is_renewed():
            self._renewals += 1
            self._send_certificates()

    def _send_certificates(self) -> None:
        if self._certificates is not None:
            self._controller.renew.remote(self._renewals, self._certificates.latest)
