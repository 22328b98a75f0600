"""What is served: models, their versions and labels, as one immutable snapshot."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from shardserve.batching.errors import Code, InvalidArgument, NotFound
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
    """One version of a model: its state, why it ended if in error, what answers while AVAILABLE."""

    state: State
    servable: Servable | None = None
    code: Code = Code.OK
    message: str = ""


@dataclass(frozen=True)
class Model:
    """A model's versions by number, and its labels, each naming a version."""

    versions: Mapping[int, Version]
    labels: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelSpec:
    """Which model a request means: one version, one label, or (neither) the newest."""

    name: str
    version: int | None = None
    label: str | None = None


class Catalog:
    """The models served now. Readers see one whole snapshot; `replace` sets the next."""

    def __init__(self, models: Mapping[str, Model] | None = None) -> None:
        self._models: Mapping[str, Model] = {}
        self.replace(models or {})

    def replace(self, models: Mapping[str, Model]) -> None:
        """Serve exactly `models` from now on; a request that has its servable keeps it."""
        self._models = MappingProxyType(dict(models))

    @property
    def models(self) -> Mapping[str, Model]:
        """What is served now, by name."""
        return self._models

    def resolve(self, spec: ModelSpec) -> Servable:
        """The servable that answers `spec`: of the highest available version, if none is named.

        Raises InvalidArgument for no name or an unknown label, NotFound otherwise, in
        TensorFlow Serving's words.
        """
        if not spec.name:
            raise InvalidArgument("ModelSpec has no name specified.")
        model = self._models.get(spec.name)
        version = _version_meant(model, spec)
        found = model.versions.get(version) if model and version is not None else None
        if found is None or found.state is not State.AVAILABLE or found.servable is None:
            raise NotFound(f"Servable not found for request: {_wanted(spec, version)}")
        return found.servable

    def statuses(self, spec: ModelSpec) -> list[tuple[int, Version]]:
        """The versions of a model, newest first, or the one named. A label is not looked at.

        Raises NotFound for a model or version that was never known.
        """
        model = self._models.get(spec.name)
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
    return max((n for n, v in model.versions.items() if v.state is State.AVAILABLE), default=None)


def _wanted(spec: ModelSpec, version: int | None) -> str:
    if spec.version is None and spec.label is None:
        return f"Latest({spec.name})"
    return f"Specific({spec.name}, {version})"
