"""Our own options for each model, in a file beside TensorFlow Serving's: --model_options_file.

    model_options {
      name: "ranker"
      shards: 8
      memory_per_shard: "20GiB"
      canary: "5%"
    }

A model that is not named, and a field that is not set, is as the command line says.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ByteSize, TypeAdapter, ValidationError

from shardserve.batching.errors import InvalidArgument
from shardserve.batching.text_messages import message_classes, parse_message, read_text
from shardserve.router.experiments import Experiment, parse_share
from shardserve.shards.model import PlanOptions
from shardserve.shards.storage import Precision, Storage, Tier

Choice = TypeVar("Choice", bound=enum.StrEnum)

_MESSAGES = message_classes(
    "shardserve",
    {
        "ModelOptions": {
            "name": "string",
            "shards": "int64",
            "replicas": "int64",
            "layout": "string",
            "memory_per_shard": "string",
            "cut_threshold": "string",
            "tier": "string",
            "precision": "string",
            "stages": "string",
            "canary": "string",
            "shadow": "string",
            "experiment_key": "string",
            "trusted_types": "repeated string",
        },
        "ModelOptionsList": {"model_options": "repeated ModelOptions"},
    },
)


@dataclass(frozen=True)
class ModelOptions:
    """How one model is planned, batched and tried out."""

    plan: PlanOptions = PlanOptions()  # noqa: RUF009 (frozen)
    experiment: Experiment = field(default_factory=Experiment)


def options_of(
    model_name: str, options_by_name: Mapping[str, ModelOptions], defaults: ModelOptions
) -> ModelOptions:
    """What goes for a model: its own options, or those of the command line."""
    return options_by_name.get(model_name, defaults)


def read_model_options(path: Path, default: ModelOptions) -> dict[str, ModelOptions]:
    """Each named model's options. Raises NotFound, or InvalidArgument naming file, model and field.

    Paths in the file are relative to its directory.
    """
    return parse_model_options(read_text(path), str(path), path.parent, default)


def parse_model_options(
    text: str, source: str, directory: Path, default: ModelOptions
) -> dict[str, ModelOptions]:
    """As `read_model_options`; `source` is named in errors."""
    message = parse_message(text, _MESSAGES["ModelOptionsList"], source)
    found: dict[str, ModelOptions] = {}
    for one in message.model_options:
        where = f"{source}: model {one.name!r}"
        if not one.name or one.name in found:
            raise InvalidArgument(f"{where}: each model_options needs a name of its own")
        found[one.name] = _options(one, where, directory, default)
    return found


def _options(one: Any, where: str, directory: Path, default: ModelOptions) -> ModelOptions:
    plan = default.plan
    for name in ("shards", "replicas"):
        if getattr(one, name) < 0:
            raise InvalidArgument(f"{where}: {name} must be positive, not {getattr(one, name)}")
    storage = Storage(
        _choice(Tier, one.tier, where, "tier") or plan.storage.tier,
        _choice(Precision, one.precision, where, "precision") or plan.storage.precision,
    )
    threshold = _bytes(one.cut_threshold, where, "cut_threshold")
    plan = replace(
        plan,
        shards=one.shards or plan.shards,
        replicas=one.replicas or plan.replicas,
        layout_file=directory / one.layout if one.layout else plan.layout_file,
        memory_per_shard=_bytes(one.memory_per_shard, where, "memory_per_shard")
        or plan.memory_per_shard,
        threshold=plan.threshold if threshold is None else threshold,
        storage=storage,
        batching=replace(
            plan.batching,
            stages_file=directory / one.stages if one.stages else plan.batching.stages_file,
        ),
        trusted_types=tuple(one.trusted_types) or plan.trusted_types,
    )
    return ModelOptions(
        plan=plan,
        experiment=Experiment(
            _share(one.canary, where, "canary", default.experiment.canary),
            _share(one.shadow, where, "shadow", default.experiment.shadow),
            one.experiment_key or default.experiment.key,
        ),
    )


def _share(text: str, where: str, field: str, default: float) -> float:
    try:
        return parse_share(text) if text else default
    except InvalidArgument as error:
        raise InvalidArgument(f"{where}: {field}: {error.message}") from None


def _bytes(text: str, where: str, field: str) -> int | None:
    if not text:
        return None
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise InvalidArgument(f"{where}: {field} is a size such as 20GiB, not {text!r}") from None


def _choice(kind: type[Choice], text: str, where: str, field: str) -> Choice | None:
    if not text:
        return None
    try:
        return kind(text)
    except ValueError:
        known = ", ".join(kind)
        raise InvalidArgument(f"{where}: {field} is one of {known}, not {text!r}") from None
