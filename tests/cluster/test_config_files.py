"""The other configuration files: the doors' and our own options for each model."""

from pathlib import Path

import pytest

from shardserve.batching.errors import InvalidArgument, NotFound
from shardserve.cluster.door_config import Monitoring, read_monitoring, read_tls
from shardserve.cluster.model_options import ModelOptions, options_of, parse_model_options
from shardserve.router.experiments import Experiment
from shardserve.router.tls import Tls
from shardserve.shards.model import PlanOptions
from shardserve.shards.stages import BatchingOptions
from shardserve.shards.storage import Precision, Storage, Tier

SECRET = "-----BEGIN PRIVATE KEY-----"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "file.config"
    path.write_text(text)
    return path


def test_certificates_are_read_and_the_key_is_never_shown(tmp_path) -> None:
    text = f'server_key: "{SECRET}" server_cert: "cert" custom_ca: "ca" client_verify: true'
    tls = read_tls(written(tmp_path, text))
    assert tls == Tls(SECRET.encode(), b"cert", b"ca", client_verify=True)
    assert "PRIVATE" not in repr(tls)


@pytest.mark.parametrize(
    "text",
    [
        f'server_key: "{SECRET}"',
        f'server_kee: "{SECRET}"',
        f'server_key: "{SECRET}" server_cert: "c" client_verify: true',
        f"server_key: {SECRET}",
    ],
)
def test_what_is_wrong_with_certificates_is_said_without_the_key(tmp_path, text) -> None:
    with pytest.raises(InvalidArgument, match=r"file\.config") as raised:
        read_tls(written(tmp_path, text))
    assert "PRIVATE" not in raised.value.message


def test_monitoring_is_read(tmp_path) -> None:
    path = written(tmp_path, "prometheus_config { enable: true }")
    assert read_monitoring(path) == Monitoring(True, "/monitoring/prometheus/metrics")
    path = written(tmp_path, 'prometheus_config { enable: true path: "/metrics" }')
    assert read_monitoring(path) == Monitoring(True, "/metrics")
    assert not read_monitoring(written(tmp_path, "")).enabled
    with pytest.raises(InvalidArgument, match="must begin with '/'"):
        read_monitoring(written(tmp_path, 'prometheus_config { path: "metrics" }'))
    with pytest.raises(NotFound, match="none"):
        read_monitoring(tmp_path / "none")


DEFAULT = ModelOptions(PlanOptions(shards=2, replicas=3))


def parsed(text: str) -> dict[str, ModelOptions]:
    return parse_model_options(text, "f", Path("/etc/models"), DEFAULT)


def test_a_model_is_as_its_options_say_and_else_as_the_command_line_says() -> None:
    found = parsed(
        """
        model_options {
          name: "ranker" shards: 8 layout: "ranker.yaml" memory_per_shard: "20GiB"
          cut_threshold: "0" tier: "mapped" precision: "int8" stages: "/abs/stages.yaml"
          canary: "5%" shadow: "10%" experiment_key: "x-user"
        }
        model_options { name: "plain" }
        """
    )
    assert found["plain"] == DEFAULT
    assert options_of("ranker", found, DEFAULT) == found["ranker"]
    assert options_of("other", found, DEFAULT) == DEFAULT
    assert found["ranker"] == ModelOptions(
        PlanOptions(
            shards=8,
            replicas=3,
            layout_file=Path("/etc/models/ranker.yaml"),
            memory_per_shard=20 << 30,
            threshold=0,
            storage=Storage(Tier.MAPPED, Precision.INT8),
            batching=BatchingOptions(stages_file=Path("/abs/stages.yaml")),
        ),
        Experiment(0.05, 0.1, "x-user"),
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("", "f: model '': each model_options needs a name"),
        ('name: "m" tier: "tape"', "f: model 'm': tier is one of memory, mapped.*not 'tape'"),
        ('name: "m" memory_per_shard: "lots"', "f: model 'm': memory_per_shard is a size"),
        ('name: "m" shards: -1', "f: model 'm': shards must be positive"),
        ('name: "m" canary: "half"', "f: model 'm': canary: a share is from 0% to 100%"),
        ('name: "m" shard: 1', "f: Error parsing text-format shardserve.ModelOptionsList: 1:"),
    ],
)
def test_what_makes_no_sense_is_named(fields, said) -> None:
    with pytest.raises(InvalidArgument, match=said):
        parsed(f"model_options {{ {fields} }}")


def test_a_model_named_twice_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="a name of its own"):
        parsed('model_options { name: "m" } model_options { name: "m" }')
