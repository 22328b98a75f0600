"""Makes sure that nothing that this process started, however indirectly, outlives it."""

from __future__ import annotations

import contextlib
import ctypes
import os

import psutil

_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """From now on, a descendant whose parent dies becomes our child, and not init's.

    So `end_descendants` finds it: HAProxy, for one, whose manager was killed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def end_descendants(grace: float) -> list[str]:
    """Ask every descendant to end, kill those that have not after `grace` seconds.

    Returns the names of all that there were. Call `adopt_orphans` before starting anything.
    """
    names = []
    while found := psutil.Process().children(recursive=True):
        names += [_name(process) for process in found]
        _end(found, grace)
    return names


def _end(found: list[psutil.Process], grace: float) -> None:
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, stubborn = psutil.wait_procs(found, timeout=grace)
    for process in stubborn:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(stubborn)


def _name(process: psutil.Process) -> str:
    try:
        name: str = process.name()
    except psutil.NoSuchProcess:
        return "ended"
    return name
