"""Which versions of a model lie under its base path, as TensorFlow Serving reads them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from shardserve.batching.errors import InvalidArgument, NotFound
from shardserve.shards.graph_file import graph_file

_MAX_VERSION = (1 << 63) - 1


@dataclass(frozen=True, order=True)
class VersionId:
    """One version of one model, by the model's name."""

    model: str
    version: int

    def __str__(self) -> str:
        return f"{self.model} version {self.version}"


@dataclass(frozen=True)
class VersionDirectory:
    """One SavedModel: its version number and the absolute path of the directory that holds it."""

    version: int
    path: Path


def parse_version(name: str) -> int | None:
    """The version that a directory's name stands for ("00000123" is 123), or None."""
    if not (name.isascii() and name.isdecimal()):
        return None
    version = int(name)
    return version if version <= _MAX_VERSION else None


def versions_of(names: Iterable[str]) -> dict[int, str]:
    """The names that stand for versions, by version, rising.

    Of two names for one version ("7" and "007") the one that sorts later counts.
    """
    found = {}
    for name in sorted(names):
        version = parse_version(name)
        if version is not None:
            found[version] = name
    return dict(sorted(found.items()))


def versions_under(base_path: Path) -> dict[int, str]:
    """The names of a base path's directories, by version, rising. Raises OSError."""
    return versions_of(child.name for child in base_path.iterdir() if child.is_dir())


def latest(base_path: Path) -> VersionDirectory:
    """The highest version under a base path.

    Raises NotFound when the path or its versions are missing, InvalidArgument when it is no base
    path or when the highest version has no graph (yet). Each names the path.
    """
    if not base_path.is_dir():
        raise NotFound(f"model base path {base_path} is not a directory")
    names = versions_under(base_path)
    if names:
        version = max(names)
        return _checked(VersionDirectory(version, (base_path / names[version]).resolve()))
    if graph_file(base_path).exists():
        raise InvalidArgument(
            f"{base_path} holds a SavedModel itself; a model base path holds numbered version"
            f" directories, such as {base_path}/1/{graph_file(base_path).name}"
        )
    raise NotFound(f"no versions of a model found under base path {base_path}")


def locate(directory: Path) -> VersionDirectory:
    """The SavedModel in a directory that is either a version directory or a base path.

    A version directory with a name that is no number counts as version 0.
    """
    if graph_file(directory).is_file():
        path = directory.resolve()
        return VersionDirectory(parse_version(path.name) or 0, path)
    return latest(directory)


def _checked(found: VersionDirectory) -> VersionDirectory:
    graph = graph_file(found.path)
    if not graph.is_file():
        raise InvalidArgument(
            f"version {found.version} has no graph: {graph} does not exist"
            " (is the directory still being copied?)"
        )
    return found
