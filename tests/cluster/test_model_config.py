"""The file of models, and which versions its policies want."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserve.batching.errors import InvalidArgument, NotFound
from shardserve.batching.text_messages import MAX_FILE_BYTES
from shardserve.cluster.model_config import (
    All,
    Latest,
    ModelConfig,
    Specific,
    check_platforms,
    local_path,
    missing_versions,
    parse_model_config,
    read_model_config,
    wanted_versions,
)
from shardserve.router.request_logging import RequestLogging

VERSIONS = st.frozensets(st.integers(0, 20), max_size=8)


def one(fields: str) -> str:
    return f"model_config_list {{ config {{ {fields} }} }}"


NAMED = 'name: "m" base_path: "/models/m" model_platform: "tensorflow" '


def test_a_file_says_all_that_tensorflow_serving_reads() -> None:
    text = """
    model_config_list {
      config {
        name: "ranker"
        base_path: "/models/ranker"
        model_platform: "tensorflow"
        model_version_policy { specific { versions: 3 versions: 5 } }
        version_labels { key: "stable" value: 3 }
        version_labels { key: "canary" value: 5 }
      }
      config { name: "old" base_path: "/models/old" model_type: TENSORFLOW }
      config {
        name: "all" base_path: "/models/all" model_platform: "tensorflow"
        model_version_policy { all {} }
      }
      config {
        name: "two" base_path: "/models/two" model_platform: "tensorflow"
        model_version_policy { latest { num_versions: 2 } }
      }
    }"""
    assert parse_model_config(text, "models.config") == (
        ModelConfig(
            "ranker",
            Path("/models/ranker"),
            policy=Specific(frozenset({3, 5})),
            labels={"stable": 3, "canary": 5},
        ),
        ModelConfig("old", Path("/models/old")),
        ModelConfig("all", Path("/models/all"), policy=All()),
        ModelConfig("two", Path("/models/two"), policy=Latest(2)),
    )


def logging(kind: str, prefix: str, rate: float) -> str:
    collector = f'log_collector_config {{ type: "{kind}" filename_prefix: "{prefix}" }}'
    return f"logging_config {{ {collector} sampling_config {{ sampling_rate: {rate} }} }}"


def test_requests_are_logged_as_the_file_says() -> None:
    text = one(NAMED + logging("tfrecord", "m/requests", 0.25))
    (model,) = parse_model_config(text, "f")
    assert model.logging == RequestLogging(Path("m/requests"), 0.25)


def test_latest_of_zero_is_latest_of_one() -> None:
    text = one(NAMED + "model_version_policy { latest { num_versions: 0 } }")
    assert parse_model_config(text, "f")[0].policy == Latest(1)


@pytest.mark.parametrize(
    "base_path",
    [
        "/models/a b",
        "file:///models/a b",
        "FILE:/models/a%20b",
        "file:////models/a%20b",
        "file://localhost/models/a%20b",
        "file://LOCALHOST/models/a b",
    ],
)
def test_a_base_path_may_be_a_uri_of_a_file(base_path: str) -> None:
    text = one(f'name: "m" base_path: "{base_path}" model_platform: "tensorflow"')
    assert parse_model_config(text, "f")[0].base_path == Path("/models/a b")


def test_a_plain_path_has_no_escapes() -> None:
    assert local_path("/models/a%20b", "m") == Path("/models/a%20b")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model_config_list { config { nam: 1 } }", r"f: Error parsing .*ModelServerConfig: 1:30"),
        (
            "model_config_list {" + f"config {{ {NAMED} }}" * 2 + "}",
            "f: Illegal to list model m multiple times",
        ),
        (one('name: "" base_path: "/m" model_platform: "tensorflow"'), "f: a model's name must"),
        (one('name: "a/b" base_path: "/m" model_platform: "tensorflow"'), "not 'a/b'"),
        (one('name: "m" base_path: "m" model_platform: "tensorflow"'), "absolute path or URI"),
        (
            one('name: "m" base_path: "s3://b/m" model_platform: "tensorflow"'),
            "base path s3://b/m of model m: s3 is not read from",
        ),
        (
            one('name: "m" base_path: "file://models/a" model_platform: "tensorflow"'),
            "base path file://models/a of model m: a file of host models is not read",
        ),
        (one('name: "m" base_path: "/m"'), "setting neither"),
        (one(NAMED + "model_type: TENSORFLOW"), "setting both"),
        (one(NAMED + logging("", "p", 0.1)), "f: logging_config of model m: .*'tfrecord', not ''"),
        (one(NAMED + logging("kafka", "p", 0.1)), "'tfrecord', not 'kafka'"),
        (one(NAMED + logging("tfrecord", "", 0.1)), "filename_prefix names no file"),
        (one(NAMED + logging("tfrecord", "dir/", 0.1)), "filename_prefix names no file"),
        (one(NAMED + logging("tfrecord", "p", 1.5)), "sampling_rate is from 0 to 1, not 1.5"),
        (one(NAMED + logging("tfrecord", "p", float("nan"))), "sampling_rate is .* not nan"),
        ("custom_model_config { }", "f: custom_model_config is not supported"),
    ],
)
def test_what_makes_no_sense_is_refused_and_named(text: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        parse_model_config(text, "f")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"none\.config"):
        read_model_config(tmp_path / "none.config")
    (tmp_path / "binary").write_bytes(b"\xff")
    with pytest.raises(InvalidArgument, match="binary"):
        read_model_config(tmp_path / "binary")
    (tmp_path / "large").write_bytes(b" " * (MAX_FILE_BYTES + 1))
    with pytest.raises(InvalidArgument, match=r"large.* at most"):
        read_model_config(tmp_path / "large")


def test_a_model_keeps_its_platform() -> None:
    before = ModelConfig("m", Path("/m"))
    moved = ModelConfig("m", Path("/elsewhere"))
    check_platforms([before], [moved])
    other = ModelConfig("m", Path("/m"), platform="onnx")
    with pytest.raises(InvalidArgument, match=r"model m platform was tensorflow and .* onnx"):
        check_platforms([before], [other])


@given(VERSIONS, st.integers(1, 5))
def test_latest_wants_the_highest_there_are(there: frozenset[int], count: int) -> None:
    wanted = wanted_versions(Latest(count), there)
    assert wanted <= there
    assert len(wanted) == min(count, len(there))
    assert all(version > other for version in wanted for other in there - wanted)


@given(VERSIONS, VERSIONS)
def test_specific_wants_those_named_that_are_there(
    there: frozenset[int], named: frozenset[int]
) -> None:
    policy = Specific(named)
    assert wanted_versions(policy, there) == there & named
    assert missing_versions(policy, there) == named - there
    assert wanted_versions(All(), there) == there
