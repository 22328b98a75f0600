"""TensorFlow Serving's file of models, --model_config_file: text in, checked plain data out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import unquote_to_bytes

from tensorflow_serving.config import model_server_config_pb2

from shardserve.batching.errors import InvalidArgument
from shardserve.batching.text_messages import parse_message, read_text
from shardserve.router.request_logging import TFRECORD, RequestLogging

TENSORFLOW = "tensorflow"
#: `model_type`, that came before `model_platform`, had one kind that is not deprecated.
_PLATFORM_OF_TYPE = {model_server_config_pb2.TENSORFLOW: TENSORFLOW}

#: By RFC 3986, of those with an authority or a path from the root.
_URI = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):(?://(?P<host>[^/]*)|(?=/))(?P<path>.*)", re.DOTALL
)


@dataclass(frozen=True)
class Latest:
    """The `count` highest versions there are."""

    count: int = 1


@dataclass(frozen=True)
class All:
    """Every version there is."""


@dataclass(frozen=True)
class Specific:
    """Those named, as far as they are there."""

    versions: frozenset[int]


VersionPolicy = Latest | All | Specific


@dataclass(frozen=True)
class ModelConfig:
    """A model to serve: `base_path` is absolute, `labels` each name a version.

    The prefix of `logging` is as it was given, and is to be checked by `log_root.log_prefix`.
    """

    name: str
    base_path: Path
    platform: str = TENSORFLOW
    policy: VersionPolicy = field(default_factory=Latest)
    labels: Mapping[str, int] = field(default_factory=dict)
    logging: RequestLogging | None = None


def wanted_versions(policy: VersionPolicy, there: Iterable[int]) -> frozenset[int]:
    """Which of the versions that are there a policy wants."""
    match policy:
        case Latest(count):
            return frozenset(sorted(there, reverse=True)[:count])
        case Specific(versions):
            return versions & frozenset(there)
        case All():
            return frozenset(there)


def missing_versions(policy: VersionPolicy, there: Iterable[int]) -> frozenset[int]:
    """The versions that a policy names and that are not there."""
    return policy.versions - frozenset(there) if isinstance(policy, Specific) else frozenset()


def read_model_config(path: Path) -> tuple[ModelConfig, ...]:
    """The file's models. Raises NotFound where it cannot be read, and as `parse_model_config`."""
    return parse_model_config(read_text(path), str(path))


def parse_model_config(text: str, source: str) -> tuple[ModelConfig, ...]:
    """The models of a text-format `tensorflow.serving.ModelServerConfig`, in its order.

    `source` is named in errors. Raises InvalidArgument, with line and column, for what does not
    parse, and as `models_of` does.
    """
    message = parse_message(text, model_server_config_pb2.ModelServerConfig, source)
    try:
        return models_of(message)
    except InvalidArgument as error:
        raise InvalidArgument(f"{source}: {error.message}") from None


def parse_reload(config: bytes) -> tuple[ModelConfig, ...]:
    """The models of a serialised `ModelServerConfig`. Raises as `models_of` does."""
    return models_of(model_server_config_pb2.ModelServerConfig.FromString(config))


def models_of(config: model_server_config_pb2.ModelServerConfig) -> tuple[ModelConfig, ...]:
    """The models of a configuration, as its file or a reload request has it.

    Raises InvalidArgument, in TensorFlow Serving's words where it has some, for a custom
    configuration, a name twice or that no URL can have, a base path that is not absolute, a
    platform that is not said, or said twice, and request logging that cannot be done.
    """
    if config.WhichOneof("config") == "custom_model_config":
        raise InvalidArgument("custom_model_config is not supported; use model_config_list")
    models = tuple(_model(one) for one in config.model_config_list.config)
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise InvalidArgument(f"Illegal to list model {name} multiple times in config list")
    return models


def check_platforms(before: Iterable[ModelConfig], after: Iterable[ModelConfig]) -> None:
    """Raise InvalidArgument if a model that stays changes its platform."""
    platforms = {model.name: model.platform for model in before}
    for model in after:
        old = platforms.get(model.name, model.platform)
        if old != model.platform:
            raise InvalidArgument(
                f"Illegal to change a model's platform. For model {model.name} platform was {old} "
                f"and new platform requested is {model.platform}."
            )


def check_name(name: str) -> None:
    """Raise InvalidArgument for a model's name that no URL can have."""
    if not name or "/" in name or ":" in name:
        raise InvalidArgument(f"a model's name must not be empty or hold '/' or ':', not {name!r}")


def local_path(base_path: str, model: str) -> Path:
    """The directory that a path or a `file:` URI (RFC 8089) names, whose %20 is a space.

    Raises InvalidArgument for a URI of anything else, and for one of another host: what is read is
    mapped, or read by threads of ours, which know no filesystem but the machine's.
    """
    uri = _URI.fullmatch(base_path)
    if uri is None:
        return Path(base_path)
    if uri["scheme"].lower() != "file":
        raise InvalidArgument(
            f"base path {base_path} of model {model}: {uri['scheme']} is not read from; mount it, "
            "or copy it to a directory"
        )
    if (uri["host"] or "").lower() not in ("", "localhost"):
        raise InvalidArgument(
            f"base path {base_path} of model {model}: a file of host {uri['host']} is not read; "
            "of this one it is file:///PATH"
        )
    return Path("/", os.fsdecode(unquote_to_bytes(uri["path"].lstrip("/"))))


def _model(config: model_server_config_pb2.ModelConfig) -> ModelConfig:
    name = config.name
    check_name(name)
    base_path = local_path(config.base_path, name)
    if not base_path.is_absolute():
        raise InvalidArgument(
            f"Expected model {name} to have an absolute path or URI; got base_path()="
            f"{config.base_path}"
        )
    return ModelConfig(
        name=name,
        base_path=base_path,
        platform=_platform(config),
        policy=_policy(config),
        labels=dict(config.version_labels),
        logging=_logging(config),
    )


def _logging(config: model_server_config_pb2.ModelConfig) -> RequestLogging | None:
    if not config.HasField("logging_config"):
        return None
    logging, where = config.logging_config, f"logging_config of model {config.name}"
    collector, sampling = logging.log_collector_config, logging.sampling_config
    if collector.type != TFRECORD:
        raise InvalidArgument(
            f"{where}: log_collector_config.type is to be {TFRECORD!r}, not {collector.type!r}"
        )
    if not PurePosixPath(collector.filename_prefix).name or collector.filename_prefix[-1] == "/":
        raise InvalidArgument(f"{where}: filename_prefix names no file")
    if not 0.0 <= sampling.sampling_rate <= 1.0:
        raise InvalidArgument(
            f"{where}: sampling_rate is from 0 to 1, not {sampling.sampling_rate:g}"
        )
    if sampling.per_task_sampling_configs or logging.HasField("custom_logging_config"):
        raise InvalidArgument(f"{where}: only log_collector_config and sampling_rate are supported")
    return RequestLogging(Path(collector.filename_prefix), sampling.sampling_rate)


def _platform(config: model_server_config_pb2.ModelConfig) -> str:
    typed = config.model_type != model_server_config_pb2.MODEL_TYPE_UNSPECIFIED
    if typed and config.model_platform:
        raise InvalidArgument(
            f"Illegal setting both ModelServerConfig::model_type(deprecated) and model_platform "
            f"of model {config.name}."
        )
    if typed and config.model_type not in _PLATFORM_OF_TYPE:
        raise InvalidArgument(
            f"ModelServerConfig::model_type choice {config.model_type} not handled."
        )
    platform: str = _PLATFORM_OF_TYPE[config.model_type] if typed else config.model_platform
    if not platform:
        raise InvalidArgument(
            f"Illegal setting neither ModelServerConfig::model_type(deprecated) nor model_platform "
            f"of model {config.name}."
        )
    return platform


def _policy(config: model_server_config_pb2.ModelConfig) -> VersionPolicy:
    policy = config.model_version_policy
    match policy.WhichOneof("policy_choice"):
        case "all":
            return All()
        case "specific":
            return Specific(frozenset(policy.specific.versions))
        case _:
            # TensorFlow Serving takes none, and 0, for one.
            return Latest(max(1, policy.latest.num_versions))
