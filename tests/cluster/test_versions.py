from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserve.batching.errors import InvalidArgument, NotFound
from shardserve.cluster.versions import (
    VersionDirectory,
    latest,
    locate,
    parse_version,
    versions_of,
)


def save(directory: Path) -> Path:
    directory.mkdir(parents=True)
    (directory / "saved_model.pb").write_bytes(b"graph")
    return directory


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("1", 1),
        ("0", 0),
        ("00000123", 123),
        ("9223372036854775807", 9223372036854775807),
        ("9223372036854775808", None),
        ("", None),
        ("v1", None),
        ("1.5", None),
        ("-1", None),
        ("1_000", None),
        ("٣", None),
        ("1.tmp", None),
    ],
)
def test_a_name_is_a_version_only_if_it_is_a_number(name: str, version: int | None) -> None:
    assert parse_version(name) == version


@given(st.integers(0, (1 << 63) - 1), st.integers(0, 5))
def test_leading_zeros_do_not_change_a_version(version: int, zeros: int) -> None:
    assert parse_version("0" * zeros + str(version)) == version


@given(st.lists(st.one_of(st.integers(0, 1000).map(str), st.text(max_size=4)), max_size=20))
def test_versions_rise_and_each_name_stands_for_its_version(names: list[str]) -> None:
    found = versions_of(names)

    assert list(found) == sorted(found)
    assert all(parse_version(name) == version for version, name in found.items())
    assert set(found) == {parse_version(name) for name in names} - {None}


def test_of_two_names_for_one_version_the_later_sorted_counts() -> None:
    assert versions_of(["007", "7", "07"]) == {7: "7"}


def test_the_latest_version_is_the_highest_number_and_not_the_last_name(tmp_path: Path) -> None:
    save(tmp_path / "9")
    path = save(tmp_path / "00010")
    save(tmp_path / "export-11")

    assert latest(tmp_path) == VersionDirectory(10, path)


def test_a_missing_base_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=str(tmp_path / "absent")):
        latest(tmp_path / "absent")


def test_a_base_path_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"")
    with pytest.raises(NotFound, match=r"model is not a directory"):
        latest(tmp_path / "model")


def test_an_empty_base_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=f"no versions .* {tmp_path}"):
        latest(tmp_path)


def test_a_version_without_a_graph_is_named_and_no_older_one_is_taken(tmp_path: Path) -> None:
    save(tmp_path / "1")
    (tmp_path / "2" / "variables").mkdir(parents=True)

    with pytest.raises(InvalidArgument, match=f"version 2 .* {tmp_path / '2' / 'saved_model.pb'}"):
        latest(tmp_path)


def test_a_version_directory_is_refused_as_a_base_path(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="holds a SavedModel itself"):
        latest(save(tmp_path / "1"))


def test_a_model_is_located_by_its_base_path_or_by_its_version_directory(tmp_path: Path) -> None:
    path = save(tmp_path / "0042")

    assert locate(tmp_path) == locate(path) == VersionDirectory(42, path)


def test_a_version_directory_may_have_any_name(tmp_path: Path) -> None:
    path = save(tmp_path / "export")

    assert locate(path) == VersionDirectory(0, path)


def test_a_version_in_text_form_is_one(tmp_path: Path) -> None:
    version = save(tmp_path / "4")
    (version / "saved_model.pb").rename(version / "saved_model.pbtxt")

    assert latest(tmp_path) == locate(version) == VersionDirectory(4, version)
