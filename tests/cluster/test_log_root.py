"""Requests are logged below one directory, whatever a configuration asks for."""

from pathlib import Path

import pytest

from shardserve.batching.errors import FailedPrecondition, PermissionDenied
from shardserve.cluster.log_root import with_log_prefix
from shardserve.cluster.model_config import ModelConfig
from shardserve.router.request_logging import RequestLogging


def logging(prefix: Path | str) -> ModelConfig:
    return ModelConfig("m", Path("/models/m"), logging=RequestLogging(Path(prefix), 0.5))


def prefix_of(model: ModelConfig) -> Path | None:
    return model.logging and model.logging.prefix


def test_a_model_that_does_not_log_needs_no_root() -> None:
    with_log_prefix(ModelConfig("m", Path("/models/m")), None)


def test_a_prefix_is_relative_to_the_root_or_below_it(tmp_path: Path) -> None:
    assert prefix_of(with_log_prefix(logging("m/requests"), tmp_path)) == tmp_path / "m/requests"
    absolute = tmp_path / "requests"
    assert prefix_of(with_log_prefix(logging(absolute), tmp_path)) == absolute


def test_without_a_root_the_flag_is_named() -> None:
    with pytest.raises(FailedPrecondition, match=r"model m: .*--request_log_root"):
        with_log_prefix(logging("requests"), None)


@pytest.mark.parametrize("prefix", ["../requests", "/etc/cron.d/m", "a/../../m", "out/m"])
def test_a_prefix_that_leads_out_is_refused(tmp_path: Path, prefix: str) -> None:
    root = tmp_path / "logs"
    root.mkdir()
    (root / "out").symlink_to(tmp_path)
    with pytest.raises(PermissionDenied, match=r"model m: .*outside of --request_log_root"):
        with_log_prefix(logging(prefix), root)
