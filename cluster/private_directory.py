"""A directory for Unix sockets that only this user can enter."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from shardserve.batching.errors import PermissionDenied


def private_directory(parent: Path | None = None) -> Path:
    """`shardserve-UID` in the temporary directory (or in `parent`), mode 0700, made if missing.

    Raises PermissionDenied, naming it, if it belongs to somebody else, is open to others, or is no
    directory (a link that somebody else planted, for one).
    """
    path = (parent or Path(tempfile.gettempdir())) / f"shardserve-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionDenied(f"{path} is not a directory of user {os.getuid()}")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionDenied(f"{path} is open to other users: its mode must be 0700")
    return path


def socket_path(run: str, seat: str) -> Path:
    """Where an actor listens for the routers on its own node; `seat` is a short name of its own."""
    return private_directory() / f"{run}-{seat}.sock"


def remove_sockets(run: str) -> None:
    """Remove what processes of a run that were killed have left on this node."""
    for socket in private_directory().glob(f"{run}-*.sock"):
        socket.unlink(missing_ok=True)
