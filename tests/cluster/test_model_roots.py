"""Models outside of the roots that are allowed, by whatever path."""

from pathlib import Path

import pytest

from shardserve.batching.errors import PermissionDenied
from shardserve.cluster.model_config import ModelConfig
from shardserve.cluster.model_roots import check_directory, check_roots


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "models" / "dlrm" / "1").mkdir(parents=True)
    (tmp_path / "secret" / "1").mkdir(parents=True)
    return tmp_path / "models"


def test_without_roots_a_model_may_lie_anywhere() -> None:
    check_roots([ModelConfig("m", Path("/anywhere"))], ())


def test_a_model_below_a_root_is_allowed_also_before_it_is_there(root: Path) -> None:
    check_roots([ModelConfig("a", root / "dlrm"), ModelConfig("b", root / "new")], (root,))


@pytest.mark.parametrize("path", ["../secret", "dlrm/../../secret", "../models-too", ".."])
def test_a_model_elsewhere_is_refused_by_its_name_and_path(root: Path, path: str) -> None:
    with pytest.raises(PermissionDenied, match=r"model m: .*is outside of --allowed_model_roots"):
        check_roots([ModelConfig("m", root / path)], (root,))


def test_a_link_that_leads_out_is_refused_as_base_path_and_as_version(root: Path) -> None:
    (root / "out").symlink_to(root.parent / "secret")
    (root / "dlrm" / "2").symlink_to(root.parent / "secret" / "1")

    with pytest.raises(PermissionDenied):
        check_roots([ModelConfig("m", root / "out")], (root,))
    with pytest.raises(PermissionDenied, match="dlrm/2"):
        check_directory("m", root / "dlrm" / "2", (root,))
    check_directory("m", root / "dlrm" / "1", (root,))


def test_a_root_that_is_a_link_is_what_it_leads_to(root: Path, tmp_path: Path) -> None:
    (tmp_path / "here").symlink_to(root)

    check_roots([ModelConfig("m", root / "dlrm")], (tmp_path / "here",))
    check_roots([ModelConfig("m", tmp_path / "here" / "dlrm")], (root,))
