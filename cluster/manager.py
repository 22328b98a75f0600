"""Keeps what is served as the configuration and the base paths say: drives the lifecycles.

The decisions are `Lifecycle`'s, what they take is the deployer's (shards to place, routers to
tell); this is between them. One for all models, on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from shardserve.batching.errors import (
    Cancelled,
    Code,
    ServingError,
    Unknown,
    error_of,
)
from shardserve.cluster.base_paths import Found, look
from shardserve.cluster.labels import check_labels
from shardserve.cluster.lifecycle import (
    CANCELLED,
    Action,
    CancelLoad,
    Lifecycle,
    Load,
    Phase,
    Unload,
    VersionStatus,
    WakeAt,
)
from shardserve.cluster.model_config import ModelConfig, check_platforms
from shardserve.cluster.options import ManagerOptions
from shardserve.cluster.progress import failure_of

logger = logging.getLogger(__name__)


class Deployer(Protocol):
    """Does what takes time. Each call is a task of its own."""

    async def load(self, model: ModelConfig, version: int, directory: Path) -> None:
        """Return when requests can be answered. Raises a `ServingError`, and then holds nothing.

        A cancelled load ends soon, and holds nothing either.
        """
        ...

    async def unload(self, model: str, version: int) -> None:
        """Send no more requests there, let those under way end, and free what it held."""
        ...


@dataclass(frozen=True)
class ModelView:
    """One model as it is now."""

    versions: Mapping[int, VersionStatus]
    labels: Mapping[str, int]

    @property
    def available(self) -> frozenset[int]:
        return frozenset(v for v, one in self.versions.items() if one.phase is Phase.READY)


@dataclass
class _Managed:
    """A model that is, or was, configured: its lifecycle remembers it."""

    config: ModelConfig
    lifecycle: Lifecycle
    is_configured: bool = True
    labels: Mapping[str, int] = field(default_factory=dict)
    directories: dict[int, Path] = field(default_factory=dict)


class Manager:
    """Makes so what is configured. `changed` is called after anything has become different."""

    def __init__(
        self,
        deployer: Deployer,
        options: ManagerOptions,
        changed: Callable[[Mapping[str, ModelView]], None] = lambda _: None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._deployer = deployer
        self._options = options
        self._changed = changed
        self._pause = pause
        self._models: dict[str, _Managed] = {}
        self._configured: tuple[ModelConfig, ...] = ()
        self._loads = asyncio.Semaphore(options.loads)
        self._under_way: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._progressed = asyncio.Event()
        self._configuring = asyncio.Lock()
        self._problems: dict[str, tuple[str, ...]] = {}

    @property
    def models(self) -> dict[str, ModelView]:
        """Every model there ever was, by name."""
        return {
            name: ModelView(one.lifecycle.versions, one.labels)
            for name, one in self._models.items()
        }

    async def configure(self, models: Sequence[ModelConfig]) -> None:
        """Serve exactly these from now on; what is not among them goes. One at a time.

        Returns when each model that is new has a version that answers, and labels are assigned.
        Raises InvalidArgument, and changes nothing, for a platform that changes; Unknown when a
        model's versions all failed, FailedPrecondition for a label whose version does not answer;
        the other models and labels stand then.
        """
        async with self._configuring:
            check_platforms(self._configured, models)
            new = [model.name for model in models if not self._is_configured(model.name)]
            self._configured = tuple(models)
            self._adopt(models)
            await self.poll()
            await self._settled(new)
            self._assign_labels(models)

    async def poll(self) -> None:
        """Look at the base paths once, and begin what that asks for."""
        found = await asyncio.to_thread(look, self._configured)
        for name, one in found.items():
            self._note_problems(name, one)
            if one.error is None and self._is_configured(name):
                self._want(name, one)
        for name, managed in self._models.items():
            if not managed.is_configured:
                self._perform(name, managed.lifecycle.want({}, self._now()))

    async def run(self) -> None:
        """Poll for ever. With `poll_seconds` of 0 or less nothing is polled."""
        while self._options.poll_seconds > 0:
            await self._pause(self._options.poll_seconds)
            await self.poll()

    async def close(self) -> None:
        """Unload everything, and return when it is gone."""
        async with self._configuring:
            self._configured = ()
            self._adopt(())
            await self.poll()
            while self._under_way:
                await asyncio.wait(self._under_way.values())
            if self._timer is not None:
                self._timer.cancel()

    def _is_configured(self, name: str) -> bool:
        return name in self._models and self._models[name].is_configured

    def _adopt(self, models: Sequence[ModelConfig]) -> None:
        wanted = {model.name: model for model in models}
        for name, managed in self._models.items():
            if name not in wanted:
                managed.is_configured = False
                managed.labels = {}
        for name, model in wanted.items():
            if name not in self._models:
                # All that may load at once may be versions of one model.
                options = self._options
                lifecycle = Lifecycle(options.policy, options.retries, options.loads)
                self._models[name] = _Managed(model, lifecycle)
            managed = self._models[name]
            managed.config, managed.is_configured = model, True

    def _want(self, name: str, found: Found) -> None:
        managed = self._models[name]
        managed.directories.update(found.directories)
        self._perform(name, managed.lifecycle.want(found.files, self._now()))

    def _note_problems(self, name: str, found: Found) -> None:
        """Log what is new: the same is found at every poll."""
        problems = found.problems if found.error is None else (found.error,)
        for problem in problems:
            if problem not in self._problems.get(name, ()):
                logger.warning("%s", problem)
        self._problems[name] = problems

    async def _settled(self, names: Sequence[str]) -> None:
        """Wait until each of these models answers, or has failed for good."""
        while any(self._is_pending(self._models[name]) for name in names):
            self._progressed.clear()
            await self._progressed.wait()
        failures = [text for name in names for text in self._failures_of(name)]
        if failures:
            raise Unknown(
                f"{len(failures)} model(s) did not become available: "
                f"{{{''.join(f'{{{text}}}, ' for text in failures)}}}"
            )

    def _is_pending(self, managed: _Managed) -> bool:
        statuses = [one for one in managed.lifecycle.versions.values() if one.is_wanted]
        if any(one.phase is Phase.READY for one in statuses):
            return False
        # A base path that is not there yet, or is empty, is waited for.
        failed = statuses and all(one.phase is Phase.ENDED for one in statuses)
        return managed.is_configured and not failed

    def _failures_of(self, name: str) -> list[str]:
        versions = self._models[name].lifecycle.versions
        if any(one.phase is Phase.READY for one in versions.values()):
            return []
        return [
            f"{{name: {name} version: {version}}} due to error: "
            f"{Code(one.error.code).name}: {one.error.message}"
            for version, one in versions.items()
            if one.is_wanted and one.error is not None
        ]

    def _assign_labels(self, models: Sequence[ModelConfig]) -> None:
        """Each model's labels, or none of them; then the first error."""
        refused: ServingError | None = None
        for model in models:
            managed = self._models[model.name]
            view = ModelView(managed.lifecycle.versions, managed.labels)
            try:
                check_labels(
                    model.name,
                    model.labels,
                    view.available,
                    managed.labels,
                    allow_unavailable=self._options.allow_labels_for_unavailable,
                )
            except ServingError as error:
                refused = refused or error
            else:
                managed.labels = dict(model.labels)
        self._tell()
        if refused is not None:
            raise refused

    def _perform(self, name: str, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Load(version):
                    self._start(name, version, self._load(name, version))
                case Unload(version):
                    self._start(name, version, self._unload(name, version))
                case CancelLoad(version):
                    self._under_way[name, version].cancel()
                case WakeAt(time):
                    self._set_timer(time)
        if any(not isinstance(action, WakeAt) for action in actions):
            self._tell()

    def _start(self, name: str, version: int, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._under_way[name, version] = task
        task.add_done_callback(partial(self._ended, name, version))

    def _ended(self, name: str, version: int, task: asyncio.Task[None]) -> None:
        """A load that was cancelled before its first step has told nobody."""
        if self._under_way.get((name, version)) is task:
            self._load_failed(name, version, Cancelled(CANCELLED))

    async def _load(self, name: str, version: int) -> None:
        managed = self._models[name]
        try:
            async with self._loads:
                await self._deployer.load(managed.config, version, managed.directories[version])
        except asyncio.CancelledError:
            self._load_failed(name, version, Cancelled(CANCELLED))
        except Exception as error:
            failure = failure_of(error)
            logger.exception("version %d of model %s cannot be loaded", version, name)
            self._load_failed(name, version, error_of(failure.code, failure.message))
        else:
            del self._under_way[name, version]
            self._perform(name, managed.lifecycle.loaded(version, self._now()))
            self._tell()

    def _load_failed(self, name: str, version: int, error: ServingError) -> None:
        del self._under_way[name, version]
        self._perform(name, self._models[name].lifecycle.failed(version, error, self._now()))
        self._tell()

    async def _unload(self, name: str, version: int) -> None:
        try:
            await self._deployer.unload(name, version)
        except Exception:
            # Whatever is left of it is not served any more.
            logger.exception("version %d of model %s was not unloaded well", version, name)
        del self._under_way[name, version]
        self._perform(name, self._models[name].lifecycle.unloaded(version, self._now()))
        self._tell()

    def _tell(self) -> None:
        self._changed(self.models)
        self._progressed.set()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _set_timer(self, when: float) -> None:
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(when, self._tick)

    def _tick(self) -> None:
        self._timer = None
        for name, managed in self._models.items():
            self._perform(name, managed.lifecycle.tick(self._now()))
