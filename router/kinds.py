"""The kinds of servables, by `model_platform`. `docs/servables.md` shows how to add one."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shardserve.batching.driver import BatchDevice
from shardserve.batching.errors import Internal, InvalidArgument, ServingError
from shardserve.batching.parameters import BatchingParameters
from shardserve.router import platforms
from shardserve.router.admitting import AdmittingServable
from shardserve.router.batched import BatchedServable
from shardserve.router.computed import Computation, ComputedServable
from shardserve.router.servable import Servable
from shardserve.router.session import StageThreads
from shardserve.shards.stages import BatchingOptions, Stages
from shardserve.shards.stages_file import stages_of


@dataclass(frozen=True)
class Version:
    """What is to be loaded: a version's own directory, and what the operator allows.

    `allow_pickle` lets a kind read files that can run any code when they are read; of the
    `trusted_types`, each with its module, it may make objects where it makes any by their name.
    """

    model: str
    version: int
    directory: Path
    allow_pickle: bool = False
    trusted_types: tuple[str, ...] = ()


#: Loads a version. Blocks; raises a `ServingError` that names the file at fault.
Load = Callable[[Version], Computation]

_registered: dict[str, Load] = {}


def register(platform: str, load: Load) -> None:
    """Add a kind. Raises InvalidArgument for a platform that there is."""
    if platform in platforms.known():
        raise InvalidArgument(f"model platform {platform!r} is registered already")
    platforms.added.add(platform)
    _registered[platform] = load


def kind_of(platform: str) -> Load:
    """The kind that a `model_platform` names: a registered one, or "python:MODULE:FUNCTION".

    Raises InvalidArgument, naming the platform, for one that is unknown or whose library is
    missing.
    """
    if platform in _registered:
        return _registered[platform]
    if platform in platforms.MODULES:
        return _imported(platform, platforms.MODULES[platform], "load")
    platforms.check_platform(platform)
    module, function = platforms.python_function(platform) or (platform, "load")
    return _imported(platform, module, function)


def load_kind(
    platform: str,
    version: Version,
    threads: StageThreads,
    batching: BatchingOptions = BatchingOptions(),  # noqa: B008 (frozen)
    device: BatchDevice | None = None,
) -> Servable:
    """Load a version of any kind but TensorFlow's, batched as `batching` says.

    Its computations run on `threads`, its batches take turns with others' on `device`; None: it has
    one of its own. Blocks. Raises as `kind_of` and the kind's `load` do, InvalidArgument for what
    a stages file says that only a graph can do, Internal for what is no error of ours.
    """
    stages = stages_of(version.directory, batching)
    return load_planned(platform, version, threads, stages, device)


def load_planned(
    platform: str,
    version: Version,
    threads: StageThreads,
    stages: Stages,
    device: BatchDevice | None = None,
) -> Servable:
    """As `load_kind`, where it is known what the stages file says."""
    load = kind_of(platform)
    parameters = _whole_requests(stages, platform)
    try:
        computation = load(version)
        servable = ComputedServable(version.model, version.version, computation, threads)
    except ServingError:
        raise
    except Exception as error:
        text = f"{version.directory}: {platform}: {type(error).__name__}: {error}"
        raise Internal(text) from error
    if parameters is None:
        return servable
    return AdmittingServable(BatchedServable(servable, parameters, device))


def _whole_requests(stages: Stages, platform: str) -> BatchingParameters | None:
    """How whole requests are batched: there is but one stage."""
    graph_only = [name for name in _OF_GRAPHS if getattr(stages, name)]
    if graph_only:
        raise InvalidArgument(
            f"the stages file has {', '.join(graph_only)}, but a model of platform {platform!r} "
            "has only whole requests to batch"
        )
    return stages.requests or stages.dense


#: The stages that only a TensorFlow graph has.
_OF_GRAPHS = ("ids", "regions", "sequences", "loops")


def _imported(platform: str, module: str, function: str) -> Load:
    try:
        load: Load = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InvalidArgument(f"model platform {platform!r}: {error}") from error
    return load
