"""Frames on their way out of one connection, gathered so that many leave in one system call."""

from __future__ import annotations

import asyncio
from typing import Final

from shardserve.shards.frames import Buffers

#: More than this does not wait for `flush`.
_WAIT_BYTES: Final = 1 << 18
#: Up to so many bytes, one joined buffer costs less than handing over each by itself.
_JOIN_BELOW: Final = 1 << 16


class Outbox:
    """Collects frames; `flush` hands them to the transport. After the transport closes, drops them.

    Buffers must not change until they are sent, which may be after `flush`.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._buffers: Buffers = []
        #: Bytes that wait for `flush`.
        self.nbytes = 0

    def put(self, frame: bytes) -> None:
        """Add a frame that is one buffer."""
        self.extend([frame], len(frame))

    def extend(self, frame: Buffers, nbytes: int) -> None:
        """Add a frame of several buffers, `nbytes` long together."""
        self._buffers += frame
        self.nbytes += nbytes
        if self.nbytes > _WAIT_BYTES:
            self.flush()

    def send(self, frame: Buffers, nbytes: int) -> None:
        """Add a frame, and hand everything over."""
        if len(frame) == 1 and not self._buffers and not self._transport.is_closing():
            self._transport.write(frame[0])
        else:
            self.extend(frame, nbytes)
            self.flush()

    def flush(self) -> None:
        """Hand everything over, in order."""
        buffers, nbytes = self._buffers, self.nbytes
        if not buffers:
            return
        # Before writing, which may call back a protocol that was paused, and so come here again.
        self._buffers, self.nbytes = [], 0
        transport = self._transport
        if transport.is_closing():
            return
        if len(buffers) == 1:
            transport.write(buffers[0])
        elif nbytes < _JOIN_BELOW:
            transport.write(b"".join(buffers))
        else:
            transport.writelines(buffers)
