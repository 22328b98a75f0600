"""What is served: models, their versions and labels, as one immutable snapshot.

A request enters the snapshot that is current when it begins, and leaves it when it ends. Whoever
takes a servable out of the catalog waits for the requests that began before that, and only then
frees it: TensorFlow Serving's FastReadDynamicPtr, with plain counts on one event loop.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from shardserve.batching.errors import Code, InvalidArgument, NotFound
from shardserve.router.experiments import Experiment
from shardserve.router.request_logging import RequestLogging
from shardserve.router.servable import Servable


class State(enum.IntEnum):
    """Where a version is in its life, numbered as ModelVersionStatus.State."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True)
class Version:
    """One version of a model: its state, why it ended if in error, what answers if it may be asked.

    It may be asked a moment before it is AVAILABLE and no more once it is UNLOADING, so that who
    learns its state can rely on it.
    """

    state: State
    servable: Servable | None = None
    code: Code = Code.OK
    message: str = ""


@dataclass(frozen=True)
class Model:
    """A model's versions by number, its labels, each naming a version, and what is tried out.

    A share of its requests is logged where `logging` says so.
    """

    versions: Mapping[int, Version]
    labels: Mapping[str, int] = field(default_factory=dict)
    experiment: Experiment = Experiment()  # noqa: RUF009 (frozen)
    logging: RequestLogging | None = None


@dataclass(frozen=True)
class ModelSpec:
    """Which model a request means: one version, one label, or (neither) the newest."""

    name: str
    version: int | None = None
    label: str | None = None


@dataclass(frozen=True, eq=False)
class Trial:
    """A model of which two versions get requests: the newest, and the one that was before it."""

    experiment: Experiment
    newest: Servable
    before: Servable


class Snapshot:
    """What is served from one `Catalog.replace` to the next, and how many requests are in it."""

    __slots__ = ("ended", "models", "newest", "on_trial", "requests")

    def __init__(self, models: Mapping[str, Model]) -> None:
        self.models = MappingProxyType(dict(models))
        self.newest: dict[str, Servable] = {}
        self.on_trial: dict[str, Trial] = {}
        for name, model in models.items():
            self._add(name, model)
        self.requests = 0
        #: Set once it is not current and the last of its requests has left.
        self.ended = asyncio.Event()

    def _add(self, name: str, model: Model) -> None:
        available = _available(model)
        if available:
            self.newest[name] = available[0]
        if len(available) > 1 and model.experiment.is_on:
            self.on_trial[name] = Trial(model.experiment, *available[:2])


class Catalog:
    """The models served now. Readers see one whole snapshot; `replace` sets the next.

    For one event loop.
    """

    def __init__(self, models: Mapping[str, Model] | None = None) -> None:
        self._current = Snapshot(models or {})
        #: Those before, as long as requests are in them.
        self._past: set[Snapshot] = set()
        self._followers: list[Callable[[Mapping[str, Model]], None]] = []

    def enter(self) -> Snapshot:
        """Begin a request. No servable that it resolves is freed before it has left."""
        snapshot = self._current
        snapshot.requests += 1
        return snapshot

    def leave(self, snapshot: Snapshot) -> None:
        """End a request that entered `snapshot`, once."""
        snapshot.requests -= 1
        if not snapshot.requests and snapshot is not self._current:
            self._past.discard(snapshot)
            snapshot.ended.set()

    def replace(self, models: Mapping[str, Model]) -> None:
        """Serve exactly `models` from now on; a request that has its servable keeps it."""
        before, self._current = self._current, Snapshot(models)
        if before.requests:
            self._past.add(before)
        for follower in self._followers:
            follower(self._current.models)

    def follow(self, follower: Callable[[Mapping[str, Model]], None]) -> None:
        """Tell `follower` what is served, now and after each `replace`. It takes no time."""
        self._followers.append(follower)
        follower(self._current.models)

    async def quiesce(self) -> None:
        """Return when all requests have left that had entered before the last `replace`.

        What that took out of the catalog is then used by nobody.
        """
        for snapshot in tuple(self._past):
            await snapshot.ended.wait()

    @property
    def models(self) -> Mapping[str, Model]:
        """What is served now, by name."""
        return self._current.models

    def resolve(self, spec: ModelSpec) -> Servable:
        """The servable that answers `spec`: of the highest available version, if none is named.

        Raises InvalidArgument for no name or an unknown label, NotFound otherwise, in
        TensorFlow Serving's words.
        """
        if spec.version is None and spec.label is None:
            newest = self._current.newest.get(spec.name)
            if newest is not None:
                return newest
        if not spec.name:
            raise InvalidArgument("ModelSpec has no name specified.")
        model = self._current.models.get(spec.name)
        version = _version_meant(model, spec)
        found = model.versions.get(version) if model and version is not None else None
        if found is None or found.servable is None:
            raise NotFound(f"Servable not found for request: {_wanted(spec, version)}")
        return found.servable

    def trial(self, spec: ModelSpec) -> Trial | None:
        """What is tried out with requests of `spec`. Those of a version or a label are in none."""
        if spec.version is not None or spec.label is not None:
            return None
        return self._current.on_trial.get(spec.name)

    def is_current(self, trial: Trial) -> bool:
        """Whether its servables are served now; a request that enters now may ask them."""
        return trial in self._current.on_trial.values()

    def statuses(self, spec: ModelSpec) -> list[tuple[int, Version]]:
        """The versions of a model, newest first, or the one named. A label is not looked at.

        Raises NotFound for a model or version that was never known.
        """
        model = self._current.models.get(spec.name)
        if spec.version is not None:
            if model is None or spec.version not in model.versions:
                raise NotFound(f"Could not find version {spec.version} of model {spec.name}")
            return [(spec.version, model.versions[spec.version])]
        if model is None or not model.versions:
            raise NotFound(f"Could not find any versions of model {spec.name}")
        return sorted(model.versions.items(), reverse=True)


def _version_meant(model: Model | None, spec: ModelSpec) -> int | None:
    if spec.version is not None:
        return spec.version
    if spec.label is not None:
        if model is None or spec.label not in model.labels:
            raise InvalidArgument(f"Unrecognized servable version label: {spec.label}")
        return model.labels[spec.label]
    return None


def _available(model: Model) -> list[Servable]:
    """What can be asked, newest first."""
    return [
        one.servable
        for _, one in sorted(model.versions.items(), reverse=True)
        if one.servable is not None
    ]


def _wanted(spec: ModelSpec, version: int | None) -> str:
    if spec.version is None and spec.label is None:
        return f"Latest({spec.name})"
    return f"Specific({spec.name}, {version})"
