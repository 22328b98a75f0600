"""One model that is, or was, configured: performs what its lifecycle decides, and tells it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from shardserve.batching.errors import Cancelled, ServingError, error_of
from shardserve.cluster.base_paths import Found
from shardserve.cluster.configured import ConfiguredModel, Wanted
from shardserve.cluster.lifecycle import (
    CANCELLED,
    Action,
    CancelLoad,
    Lifecycle,
    Load,
    Unload,
    WakeAt,
)
from shardserve.cluster.model_roots import check_directory
from shardserve.cluster.model_views import ModelView
from shardserve.cluster.progress import failure_of
from shardserve.cluster.versions import VersionId
from shardserve.router import logs

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


@dataclass(frozen=True)
class Surroundings:
    """What a manager's models have in common.

    Who loads enters `loading` for it. Versions outside of all `roots` are not loaded, if there are
    any. `changed` is called when anything is different.
    """

    deployer: Deployer
    loading: Callable[[], AbstractAsyncContextManager[None]]
    roots: Sequence[Path]
    changed: Callable[[], None]


class ManagedModel:
    """A model's configuration, labels and versions. Belongs to the running event loop."""

    def __init__(
        self, model: ConfiguredModel, lifecycle: Lifecycle, surroundings: Surroundings
    ) -> None:
        self.model = model
        self.is_configured = self.is_settled = False
        self.labels: Mapping[str, int] = {}
        self._lifecycle = lifecycle
        self._around = surroundings
        self._directories: dict[int, Path] = {}
        self._problems: tuple[str, ...] = ()
        self._under_way: dict[int, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def under_way(self) -> list[asyncio.Task[None]]:
        """What the deployer does for it now."""
        return list(self._under_way.values())

    @property
    def has_gone(self) -> bool:
        """Whether it is configured no more, and nothing of it is left."""
        gone = all(one.has_gone for one in self._lifecycle.versions.values())
        return not (self.is_configured or self._under_way) and gone

    def view(self) -> ModelView:
        """The model as it is now."""
        return ModelView(
            self._lifecycle.versions,
            self.labels,
            self.model.options.experiment,
            self.model.config.logging,
            self.is_configured,
            self.is_settled,
            self._problems,
        )

    def want(self, found: Found) -> None:
        """Have the versions that were found, unless they could not be looked for; note problems."""
        self._note(found.problems if found.error is None else (found.error,))
        if found.error is None:
            actions = self._lifecycle.want(found.files, _now())
            known = {**self._directories, **found.directories}
            self._directories = {v: known[v] for v in self._lifecycle.versions}
            self._perform(actions)

    def end(self) -> None:
        """It is configured no more: have no version."""
        self.is_configured = self.is_settled = False
        self.labels = {}
        self._perform(self._lifecycle.want({}, _now()))

    async def abandon(self) -> None:
        """Begin nothing more, and end what is under way. What is loaded stays."""
        if self._timer is not None:
            self._timer.cancel()
        tasks = self.under_way
        self._under_way.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _note(self, problems: tuple[str, ...]) -> None:
        """Log what is new: the same is found at every poll."""
        for problem in problems:
            if problem not in self._problems:
                logger.warning("%s", problem)
        if problems != self._problems:
            self._problems = problems
            self._around.changed()

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Load(version):
                    self._start(version, self._load(version))
                case Unload(version):
                    self._warn_of_labels(version)
                    self._start(version, self._unload(version))
                case CancelLoad(version):
                    self._under_way[version].cancel()
                case WakeAt(time):
                    self._set_timer(time)
        if any(not isinstance(action, WakeAt) for action in actions):
            self._around.changed()

    def _warn_of_labels(self, version: int) -> None:
        """Of those that go on naming a version that goes."""
        for label, named in sorted(self.model.config.labels.items()):
            if named == version and self.labels.get(label) == version:
                logger.warning(
                    "label %s of model %s names version %d, which is unloaded",
                    label,
                    self.model.name,
                    version,
                )

    def _start(self, version: int, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._under_way[version] = task
        task.add_done_callback(partial(self._ended, version))

    def _ended(self, version: int, task: asyncio.Task[None]) -> None:
        """A load that was cancelled before its first step has told nobody."""
        if self._under_way.get(version) is task:
            self._load_failed(version, Cancelled(CANCELLED))

    async def _load(self, version: int) -> None:
        model, directory = self.model, self._directories[version]
        name = VersionId(model.name, version)
        try:
            check_directory(model.name, directory, self._around.roots)
            async with self._around.loading():
                wanted = Wanted(name, directory, model.config.platform, model.options)
                await self._around.deployer.load(wanted)
        except asyncio.CancelledError:
            if version in self._under_way:
                self._load_failed(version, Cancelled(CANCELLED))
        except ServingError as error:
            logger.error("%s cannot be loaded: %s", name, error.message)
            self._load_failed(version, error)
        except Exception as error:
            failure = failure_of(error)
            logger.exception("%s cannot be loaded", name)
            self._load_failed(version, error_of(failure.code, failure.message))
        else:
            logs.logger(model=name.model, version=version).info("version loaded")
            del self._under_way[version]
            self._perform(self._lifecycle.loaded(version, _now()))
            self._around.changed()

    def _load_failed(self, version: int, error: ServingError) -> None:
        del self._under_way[version]
        self._perform(self._lifecycle.failed(version, error, _now()))
        self._around.changed()

    async def _unload(self, version: int) -> None:
        name = VersionId(self.model.name, version)
        try:
            await self._around.deployer.unload(name)
        except Exception:
            # Whatever is left of it is not served any more.
            logger.exception("%s was not unloaded well", name)
        else:
            logs.logger(model=name.model, version=version).info("version unloaded")
        del self._under_way[version]
        self._perform(self._lifecycle.unloaded(version, _now()))
        self._around.changed()

    def _set_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(when, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._perform(self._lifecycle.tick(_now()))


def _now() -> float:
    return asyncio.get_running_loop().time()
