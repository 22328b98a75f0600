"""What is served: models, their versions and labels, as one immutable snapshot.

A request enters the snapshot that is current when it begins, and leaves it when it ends. Whoever
takes a servable out of the catalog waits for the requests that began before that, and only then
frees it: TensorFlow Serving's FastReadDynamicPtr, with plain counts on one event loop.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from shardserve.batching.errors import Code, InvalidArgument, NotFound
from shardserve.router.experiments import Experiment
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
    """A model's versions by number, its labels, each naming a version, and what is tried out."""

    versions: Mapping[int, Version]
    labels: Mapping[str, int] = field(default_factory=dict)
    experiment: Experiment = Experiment()  # noqa: RUF009 (frozen)


@dataclass(frozen=True)
class ModelSpec:
    """Which model a request means: one version, one label, or (neither) the newest."""

    name: str
    version: int | None = None
    label: str | None = None


class Snapshot:
    """What is served from one `Catalog.replace` to the next, and how many requests are in it."""

    __slots__ = ("ended", "models", "requests")

    def __init__(self, models: Mapping[str, Model]) -> None:
        self.models = MappingProxyType(dict(models))
        self.requests = 0
        #: Set once it is not current and the last of its requests has left.
        self.ended = asyncio.Event()


class Catalog:
    """The models served now. Readers see one whole snapshot; `replace` sets the next.

    For one event loop.
    """

    def __init__(self, models: Mapping[str, Model] | None = None) -> None:
        self._current = Snapshot(models or {})
        #: Those before, as long as requests are in them.
        self._past: set[Snapshot] = set()

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
        if not spec.name:
            raise InvalidArgument("ModelSpec has no name specified.")
        model = self._current.models.get(spec.name)
        version = _version_meant(model, spec)
        found = model.versions.get(version) if model and version is not None else None
        if found is None or found.servable is None:
            raise NotFound(f"Servable not found for request: {_wanted(spec, version)}")
        return found.servable

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
    if model is None:
        return None
    return max((n for n, v in model.versions.items() if v.servable is not None), default=None)


def _wanted(spec: ModelSpec, version: int | None) -> str:
    if spec.version is None and spec.label is None:
        return f"Latest({spec.name})"
    return f"Specific({spec.name}, {version})"
