"""Flags that say which models there are."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from shardserve.batching.errors import InvalidArgument
from shardserve.cluster.flags.group import flag
from shardserve.cluster.model_config import ModelConfig, check_name, local_path, read_model_config
from shardserve.cluster.model_options import ModelOptions, read_model_options
from shardserve.cluster.options import Models
from shardserve.cluster.permitted import permitted


@dataclass(frozen=True)
class ModelFlags:
    PANEL: ClassVar[str] = "Models"

    model_name: Annotated[str, flag("The model's name in requests.")] = "default"
    # A `Path` would keep one of a URI's slashes.
    model_base_path: Annotated[
        str | None,
        flag("Holds one directory for each version of the model.", metavar="DIR"),
    ] = None
    model_config_file: Annotated[
        Path | None,
        flag(
            "Several models: a ModelServerConfig in text format, instead of the two above.",
            metavar="FILE",
            resolve_path=True,
        ),
    ] = None
    model_config_file_poll_wait_seconds: Annotated[
        float, flag("Seconds after which that file is read again; 0: never.", min=0)
    ] = 0
    model_options_file: Annotated[
        Path | None,
        flag(
            "Shards, layout, experiments and the like for each model by its name.",
            metavar="FILE",
            resolve_path=True,
        ),
    ] = None
    allowed_model_roots: Annotated[
        str,
        flag(
            "Directories, by comma: base paths outside of them are refused.",
            show_default="any",
            metavar="DIRS",
        ),
    ] = ""
    allowed_python_servables: Annotated[
        str,
        flag(
            "Functions, by comma, that a model_platform of python:MODULE:FUNCTION may name.",
            show_default="none",
            metavar="FUNCTIONS",
        ),
    ] = ""
    allow_pickle: Annotated[
        bool, flag("Read estimators that are pickled: that can run any code of their makers.")
    ] = False
    trusted_types: Annotated[
        str,
        flag(
            "Types, by comma, that a scikit-learn estimator may be made of besides the harmless.",
            show_default="none",
            metavar="TYPES",
        ),
    ] = ""
    request_log_root: Annotated[
        Path | None,
        flag(
            "Directory below which the logging_config of a model may have requests logged.",
            show_default="none",
            metavar="DIR",
            resolve_path=True,
        ),
    ] = None


def trusted_types_of(flags: ModelFlags) -> tuple[str, ...]:
    """Of all models that say nothing else."""
    return tuple(filter(None, flags.trusted_types.split(",")))


def models_of(flags: ModelFlags, defaults: ModelOptions, *, waits: bool) -> Models:
    """The models of the start, their files checked.

    Base paths of a file of models are waited for, and, if it `waits`, that of a single one.
    Raises NotFound or InvalidArgument for a file that cannot be read, with line and column where it
    does not parse, PermissionDenied for a base path outside of the roots, and as `permitted`.
    """
    roots = tuple(Path(root).absolute() for root in flags.allowed_model_roots.split(",") if root)
    configs = _configs(flags)
    functions = frozenset(name for name in flags.allowed_python_servables.split(",") if name)
    models = Models(
        configs,
        flags.model_config_file,
        flags.model_config_file_poll_wait_seconds,
        flags.model_options_file,
        roots,
        flags.request_log_root,
        python_servables=functions,
        are_waited_for=waits or flags.model_config_file is not None,
    )
    permitted(configs, models)
    if flags.model_options_file is not None:
        read_model_options(flags.model_options_file, defaults)
    return models


def warnings_of_models(flags: ModelFlags, given: Collection[str]) -> list[str]:
    """What is not heeded."""
    if flags.model_config_file is None:
        if flags.model_config_file_poll_wait_seconds:
            return ["--model_config_file_poll_wait_seconds: there is no --model_config_file"]
        return []
    return [
        f"--{name}: ignored, as there is a --model_config_file"
        for name in ("model_name", "model_base_path")
        if name in given and getattr(flags, name)
    ]


def _configs(flags: ModelFlags) -> tuple[ModelConfig, ...]:
    if flags.model_config_file is not None:
        return read_model_config(flags.model_config_file)
    if not flags.model_base_path:
        raise InvalidArgument("--model_base_path or --model_config_file has to be given")
    check_name(flags.model_name)
    base_path = local_path(flags.model_base_path, flags.model_name)
    return (ModelConfig(flags.model_name, base_path.absolute()),)
