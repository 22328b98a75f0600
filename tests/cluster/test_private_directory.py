from __future__ import annotations

import os
from pathlib import Path

import pytest

from shardserve.batching.errors import PermissionDenied
from shardserve.cluster.private_directory import private_directory

NAME = f"shardserve-{os.getuid()}"


def test_it_is_made_for_this_user_alone(tmp_path: Path) -> None:
    path = private_directory(tmp_path)

    assert path == tmp_path / NAME
    assert path.stat().st_mode & 0o777 == 0o700


def test_it_is_used_again(tmp_path: Path) -> None:
    (private_directory(tmp_path) / "kept").touch()

    assert (private_directory(tmp_path) / "kept").exists()


def test_one_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME).chmod(0o755)

    with pytest.raises(PermissionDenied, match=f"{NAME} is open to other users"):
        private_directory(tmp_path)


def test_a_planted_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / NAME).symlink_to(tmp_path / "elsewhere")

    with pytest.raises(PermissionDenied, match="is not a directory of user"):
        private_directory(tmp_path)
