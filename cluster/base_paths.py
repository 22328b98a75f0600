"""What lies under the base path of a model now."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from shardserve.cluster.model_config import ModelConfig, missing_versions, wanted_versions
from shardserve.cluster.versions import versions_under
from shardserve.shards.graph_file import graph_file


@dataclass(frozen=True)
class Found:
    """The wanted versions of one model: their directories, and what tells their contents apart.

    `problems` are for the log: versions that are named and not there. A base path that could not
    be read has an `error` and no versions, and changes nothing: what is served goes on.
    """

    directories: dict[int, Path] = field(default_factory=dict)
    files: dict[int, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    error: str | None = None


def look(model: ModelConfig) -> Found:
    """What the model's policy wants of what is there. It blocks, as long as the disk does."""
    try:
        return _looked_at(model)
    except OSError as error:
        where = error.filename or model.base_path
        return Found(error=f"base path {where} of model {model.name}: {error.strerror}")


def _looked_at(model: ModelConfig) -> Found:
    names = versions_under(model.base_path)
    wanted = sorted(wanted_versions(model.policy, names))
    directories = {version: model.base_path / names[version] for version in wanted}
    missing = sorted(missing_versions(model.policy, names))
    return Found(
        directories,
        {version: digest_of(path) for version, path in directories.items()},
        (
            *(
                f"version {version} of model {model.name} is not under base path {model.base_path}"
                for version in missing
            ),
            *(() if names else (_no_versions(model),)),
        ),
    )


def _no_versions(model: ModelConfig) -> str:
    text = f"no versions of model {model.name} found under base path {model.base_path}"
    if graph_file(model.base_path).exists():
        return f"{text}, which holds a SavedModel itself: a base path holds numbered directories"
    return text


def digest_of(directory: Path) -> str:
    """What changes when files of a version are added, replaced or still being copied."""
    entries = sorted(_entries(directory, depth=2))
    return ";".join(f"{name}:{size}:{changed}" for name, size, changed in entries)


def _entries(directory: Path, depth: int) -> Iterable[tuple[str, int, int]]:
    try:
        with os.scandir(directory) as children:
            for child in children:
                status = child.stat()
                yield str(Path(child.path)), status.st_size, status.st_mtime_ns
                if depth > 1 and child.is_dir():
                    yield from _entries(Path(child.path), depth - 1)
    except FileNotFoundError:
        # It went while it was being looked at: the next look tells.
        return
