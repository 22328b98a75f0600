"""A model as it is to be served: TensorFlow Serving's configuration of it, and ours. Plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shardserve.cluster.model_config import ModelConfig
from shardserve.cluster.model_options import ModelOptions, options_of
from shardserve.cluster.versions import VersionId


@dataclass(frozen=True)
class ConfiguredModel:
    """What is to be served, and how."""

    config: ModelConfig
    options: ModelOptions

    @property
    def name(self) -> str:
        return self.config.name


@dataclass(frozen=True)
class Wanted:
    """One version that is to be served: where it lies, of which kind it is, and how to load it."""

    id: VersionId
    directory: Path
    platform: str
    options: ModelOptions


def configured(
    configs: Iterable[ModelConfig], own: Mapping[str, ModelOptions], defaults: ModelOptions
) -> tuple[ConfiguredModel, ...]:
    """Each model with its `own` options, or the defaults."""
    return tuple(ConfiguredModel(one, options_of(one.name, own, defaults)) for one in configs)
