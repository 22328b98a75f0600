"""What is found under base paths, and which labels may be assigned."""

from pathlib import Path

import pytest

from shardserve.batching.errors import FailedPrecondition
from shardserve.cluster.base_paths import look
from shardserve.cluster.labels import check_labels
from shardserve.cluster.model_config import All, Latest, ModelConfig, Specific


def version(base: Path, name: str) -> Path:
    directory = base / name
    (directory / "variables").mkdir(parents=True)
    (directory / "saved_model.pb").write_bytes(b"graph")
    return directory


def test_the_policy_chooses_among_the_version_directories(tmp_path: Path) -> None:
    for name in ("1", "00000123", "7", "notes"):
        version(tmp_path, name)
    found = look(ModelConfig("m", tmp_path, policy=Latest(2)))
    assert found.directories == {7: tmp_path / "7", 123: tmp_path / "00000123"}
    assert found.error is None


def test_a_file_whose_name_is_a_number_is_no_version(tmp_path: Path) -> None:
    version(tmp_path, "7")
    (tmp_path / "9").write_text("notes")
    (tmp_path / "11").symlink_to(tmp_path / "gone")
    found = look(ModelConfig("m", tmp_path, policy=All()))
    assert found.error is None
    assert found.directories == {7: tmp_path / "7"}


def test_a_base_path_that_is_missing_is_told_and_raises_nothing(tmp_path: Path) -> None:
    found = look(ModelConfig("a", tmp_path / "gone"))
    assert "gone of model a: No such file" in (found.error or "")
    assert not found.directories


def test_a_version_that_is_named_and_missing_is_a_problem_to_log(tmp_path: Path) -> None:
    version(tmp_path, "1")
    found = look(ModelConfig("m", tmp_path, policy=Specific(frozenset({1, 9}))))
    assert found.directories.keys() == {1}
    assert "version 9 of model m" in found.problems[0]


def test_a_base_path_without_versions_is_a_problem_to_log(tmp_path: Path) -> None:
    model = ModelConfig("m", tmp_path)
    (found,) = look(model).problems
    assert found == f"no versions of model m found under base path {tmp_path}"
    (tmp_path / "saved_model.pb").write_bytes(b"graph")
    (found,) = look(model).problems
    assert found.endswith("which holds a SavedModel itself: a base path holds numbered directories")


def test_contents_that_change_are_told_apart_and_those_that_do_not_are_not(tmp_path: Path) -> None:
    directory = version(tmp_path, "1")
    model = ModelConfig("m", tmp_path, policy=All())
    before = look(model).files
    assert look(model).files == before
    (directory / "variables" / "variables.index").write_bytes(b"more")
    assert look(model).files != before


def test_a_label_needs_a_version_that_answers() -> None:
    check_labels("m", {"stable": 1}, {1}, {})
    with pytest.raises(FailedPrecondition, match="version 2 of model m, which is not currently"):
        check_labels("m", {"stable": 1, "canary": 2}, {1}, {})


def test_where_it_is_allowed_a_new_label_may_wait_for_its_version_but_none_moves_to_it() -> None:
    check_labels("m", {"canary": 2}, {1}, {}, allow_unavailable=True)
    check_labels("m", {"canary": 2}, {1}, {"canary": 2}, allow_unavailable=True)
    with pytest.raises(FailedPrecondition):
        check_labels("m", {"canary": 2}, {1}, {"canary": 1}, allow_unavailable=True)
