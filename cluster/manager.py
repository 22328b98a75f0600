"""Keeps what is served as the configuration and the base paths say: drives the lifecycles.

The decisions are `Lifecycle`'s, what they take is the deployer's (shards to place, routers to
tell); this is between them. One for all models, on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from shardserve.batching.errors import Aborted, Cancelled, ServingError, error_of
from shardserve.cluster.base_paths import Found, look
from shardserve.cluster.configured import ConfiguredModel, Wanted
from shardserve.cluster.labels import check_labels
from shardserve.cluster.lifecycle import (
    CANCELLED,
    Action,
    CancelLoad,
    Lifecycle,
    Load,
    Unload,
    WakeAt,
)
from shardserve.cluster.model_config import check_platforms
from shardserve.cluster.model_roots import check_directory
from shardserve.cluster.model_views import ModelView, NotAvailable, failures_of
from shardserve.cluster.options import ManagerOptions
from shardserve.cluster.progress import failure_of
from shardserve.cluster.versions import VersionId

logger = logging.getLogger(__name__)


class Deployer(Protocol):
    """Does what takes time. Each call is a task of its own."""

    async def load(self, wanted: Wanted) -> None:
        """Return when requests can be answered. Raises a `ServingError`, and then holds nothing.

        A cancelled load ends soon, and holds nothing either.
        """
        ...

    async def unload(self, version: VersionId) -> None:
        """Send no more requests there, let those under way end, and free what it held."""
        ...


@dataclass
class _Managed:
    """A model that is, or was, configured: its lifecycle remembers it."""

    model: ConfiguredModel
    lifecycle: Lifecycle
    is_configured: bool = False
    is_settled: bool = False
    labels: Mapping[str, int] = field(default_factory=dict)
    directories: dict[int, Path] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def view(self) -> ModelView:
        return ModelView(
            self.lifecycle.versions,
            self.labels,
            self.model.options.experiment,
            self.model.config.logging,
            self.is_configured,
            self.is_settled,
            self.problems,
        )


class Manager:
    """Makes so what is configured. `changed` is called after anything has become different.

    Versions that lie outside of all `roots` are not loaded, if there are any.
    """

    def __init__(
        self,
        deployer: Deployer,
        options: ManagerOptions,
        changed: Callable[[Mapping[str, ModelView]], None] = lambda _: None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        roots: Sequence[Path] = (),
    ) -> None:
        self._roots = roots
        self._deployer = deployer
        self._options = options
        self._changed = changed
        self._pause = pause
        self._models: dict[str, _Managed] = {}
        self._configured: tuple[ConfiguredModel, ...] = ()
        self._loads = asyncio.Semaphore(max(1, options.initial_loads))
        self._under_way: dict[VersionId, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._progressed = asyncio.Event()

    @property
    def models(self) -> dict[str, ModelView]:
        """Every model there ever was, by name."""
        return {name: one.view() for name, one in self._models.items()}

    async def configure(
        self, models: Sequence[ConfiguredModel], adopted: Callable[[], None] = lambda: None
    ) -> None:
        """Serve exactly these from now on; what is not among them goes.

        Returns when each model that is new has a version that answers, and labels are assigned.
        Raises InvalidArgument, and changes nothing, for a platform that changes; otherwise
        `adopted` is called once nothing is refused any more. Raises `NotAvailable` when a model's
        versions all failed, FailedPrecondition for a label whose version does not answer; the other
        models and labels stand then. Aborted if another configuration comes before all that.
        """
        configs = [model.config for model in models]
        check_platforms([model.config for model in self._configured], configs)
        self._adopt(tuple(models))
        adopted()
        mine = self._configured
        new = [model.name for model in mine if not self._models[model.name].is_settled]
        await self.poll()
        refusals = await self._settle(mine)
        failures = failures_of({name: self._models[name].view() for name in new})
        if failures:
            raise NotAvailable(failures)
        if refusals:
            raise refusals[0]

    async def poll(self) -> None:
        """Look at the base paths once, and begin what that asks for."""
        looked_at = {model.name: model for model in self._configured}
        found = await asyncio.to_thread(look, [model.config for model in looked_at.values()])
        for name, one in found.items():
            managed = self._models[name]
            if managed.is_configured and managed.model == looked_at[name]:
                self._note_problems(managed, one)
                if one.error is None:
                    self._want(managed, one)

    async def run(self) -> None:
        """Poll for ever. With `poll_seconds` of 0 or less nothing is polled."""
        while self._options.poll_seconds > 0:
            await self._pause(self._options.poll_seconds)
            await self.poll()

    def started(self) -> None:
        """From now on, loading is not to disturb what is served: fewer versions load at once."""
        self._loads = asyncio.Semaphore(max(1, self._options.loads))

    async def close(self) -> None:
        """Unload everything, and return when it is gone."""
        self._adopt(())
        while self._under_way:
            await asyncio.wait(self._under_way.values())
        self._stop_timer()

    async def abandon(self) -> None:
        """Begin nothing more, and end what is under way. What is loaded stays."""
        self._stop_timer()
        tasks = list(self._under_way.values())
        self._under_way.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _adopt(self, models: tuple[ConfiguredModel, ...]) -> None:
        wanted = {model.name: model for model in models}
        for name, managed in self._models.items():
            if managed.is_configured and name not in wanted:
                managed.is_configured = managed.is_settled = False
                managed.labels = {}
                self._perform(managed, managed.lifecycle.want({}, self._now()))
        for name, model in wanted.items():
            managed = self._models.setdefault(name, _Managed(model, self._new_lifecycle()))
            managed.model, managed.is_configured = model, True
        if models != self._configured:
            self._configured = models
        self._tell()

    def _new_lifecycle(self) -> Lifecycle:
        # All that may load at once may be versions of one model.
        most = max(1, self._options.loads, self._options.initial_loads)
        return Lifecycle(self._options.policy, self._options.retries, most)

    def _want(self, managed: _Managed, found: Found) -> None:
        managed.directories.update(found.directories)
        self._perform(managed, managed.lifecycle.want(found.files, self._now()))

    def _note_problems(self, managed: _Managed, found: Found) -> None:
        """Log what is new: the same is found at every poll."""
        problems = found.problems if found.error is None else (found.error,)
        for problem in problems:
            if problem not in managed.problems:
                logger.warning("%s", problem)
        if problems != managed.problems:
            managed.problems = problems
            self._tell()

    async def _settle(self, models: tuple[ConfiguredModel, ...]) -> list[ServingError]:
        """Wait for each of these models, and assign its labels; what was refused of them."""
        refusals: list[ServingError] = []
        waiting = list(models)
        while waiting:
            if self._configured is not models:
                raise Aborted("another configuration came before this one was served")
            settled = [model for model in waiting if self._can_settle(model)]
            for model in settled:
                waiting.remove(model)
                refusals += self._assign_labels(self._models[model.name])
            if waiting:
                await self._progressed.wait()
        return refusals

    def _can_settle(self, model: ConfiguredModel) -> bool:
        return self._models[model.name].view().can_settle(model.config.labels)

    def _assign_labels(self, managed: _Managed) -> Iterable[ServingError]:
        """All of the model's labels, or none of them, with the error."""
        config = managed.model.config
        try:
            check_labels(
                config.name,
                config.labels,
                managed.view().available,
                managed.labels,
                allow_unavailable=self._options.allow_labels_for_unavailable,
            )
        except ServingError as error:
            return (error,)
        else:
            managed.labels = dict(config.labels)
            return ()
        finally:
            managed.is_settled = True
            self._tell()

    def _perform(self, managed: _Managed, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Load(version):
                    self._start(managed, version, self._load(managed, version))
                case Unload(version):
                    self._start(managed, version, self._unload(managed, version))
                case CancelLoad(version):
                    self._under_way[VersionId(managed.model.name, version)].cancel()
                case WakeAt(time):
                    self._set_timer(time)
        if any(not isinstance(action, WakeAt) for action in actions):
            self._tell()

    def _start(self, managed: _Managed, version: int, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._under_way[VersionId(managed.model.name, version)] = task
        task.add_done_callback(partial(self._ended, managed, version))

    def _ended(self, managed: _Managed, version: int, task: asyncio.Task[None]) -> None:
        """A load that was cancelled before its first step has told nobody."""
        if self._under_way.get(VersionId(managed.model.name, version)) is task:
            self._load_failed(managed, version, Cancelled(CANCELLED))

    async def _load(self, managed: _Managed, version: int) -> None:
        model = managed.model
        name = VersionId(model.name, version)
        directory = managed.directories[version]
        wanted = Wanted(name, directory, model.config.platform, model.options)
        try:
            check_directory(model.name, directory, self._roots)
            async with self._loads:
                await self._deployer.load(wanted)
        except asyncio.CancelledError:
            if name in self._under_way:
                self._load_failed(managed, version, Cancelled(CANCELLED))
        except Exception as error:
            failure = failure_of(error)
            logger.exception("version %d of model %s cannot be loaded", version, model.name)
            self._load_failed(managed, version, error_of(failure.code, failure.message))
        else:
            del self._under_way[name]
            self._perform(managed, managed.lifecycle.loaded(version, self._now()))
            self._tell()

    def _load_failed(self, managed: _Managed, version: int, error: ServingError) -> None:
        del self._under_way[VersionId(managed.model.name, version)]
        self._perform(managed, managed.lifecycle.failed(version, error, self._now()))
        self._tell()

    async def _unload(self, managed: _Managed, version: int) -> None:
        name = VersionId(managed.model.name, version)
        try:
            await self._deployer.unload(name)
        except Exception:
            # Whatever is left of it is not served any more.
            logger.exception("version %d of model %s was not unloaded well", version, name.model)
        del self._under_way[name]
        self._perform(managed, managed.lifecycle.unloaded(version, self._now()))
        self._tell()

    def _tell(self) -> None:
        self._changed(self.models)
        self._progressed.set()
        self._progressed = asyncio.Event()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _set_timer(self, when: float) -> None:
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(when, self._tick)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        self._timer = None
        for managed in self._models.values():
            self._perform(managed, managed.lifecycle.tick(self._now()))
