from __future__ import annotations

import errno
import io
import os
from typing import TextIO

import pytest

from shardserve.router.lasting import Lasting


@pytest.fixture
def unread() -> TextIO:
    """A pipe that nobody reads."""
    reads, writes = os.pipe()
    os.close(reads)
    return os.fdopen(writes, "w")


def test_what_nobody_reads_any_more_is_lost_without_an_error(unread: TextIO) -> None:
    lasting = Lasting(lambda: unread)

    assert lasting.write("stopping\n") == len("stopping\n")
    lasting.flush()

    # What was not written is no error at the end either, which Python makes a status of its own.
    unread.close()


def test_whatever_the_stream_is_at_the_moment_gets_the_text() -> None:
    first, second = io.StringIO(), io.StringIO()
    streams = [second, first]
    lasting = Lasting(lambda: streams.pop())

    lasting.write("a")
    lasting.write("b")

    assert (first.getvalue(), second.getvalue()) == ("a", "b")


def test_a_full_disk_is_not_taken_for_a_reader_that_is_gone() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def fileno(self) -> int:
            pytest.fail("somebody writes to what is behind it")

    assert Lasting(Full).write("line\n") == len("line\n")
