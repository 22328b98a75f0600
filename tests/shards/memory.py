"""Transports without a kernel: what one end writes, the other receives at the loop's next turn.

`test_stream_transports.py` holds them to what real sockets do.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from typing import Any

#: Like a kernel's: beyond this, bytes wait at the sender until the peer reads.
PIPE_BYTES = 1 << 16


class MemoryTransport(asyncio.Transport):
    """One end of a pair; see `memory_pair`."""

    def __init__(self, protocol: asyncio.BufferedProtocol) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._peer: MemoryTransport
        self._unsent = bytearray()
        self._arrived = bytearray()
        self._high = 1 << 16
        self._paused_writing = False
        self._reading = True
        self._closing = False
        self._lost = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._closing:
            self._unsent += data
            self._push()
            if len(self._unsent) > self._high and not self._paused_writing:
                self._paused_writing = True
                self._protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.write(b"".join(list_of_data))

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._push()

    def abort(self) -> None:
        self._closing = True
        self._unsent.clear()
        self._lose()

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._loop.call_soon(self._pull)

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = self._high if high is None else high

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def _push(self) -> None:
        """Move what the pipe has room for, and end when all is moved and the end is wanted."""
        room = PIPE_BYTES - len(self._peer._arrived)
        self._peer._arrived += self._unsent[:room]
        del self._unsent[:room]
        self._loop.call_soon(self._peer._pull)
        if self._paused_writing and len(self._unsent) <= self._high // 4:
            self._paused_writing = False
            self._protocol.resume_writing()
        if self._closing and not self._unsent:
            self._lose()

    def _pull(self) -> None:
        """Hand over what has come, and the end when there is no more."""
        while self._arrived and self._reading and not self._closing:
            buffer = self._protocol.get_buffer(-1)
            count = min(len(buffer), len(self._arrived))
            buffer[:count] = self._arrived[:count]
            del self._arrived[:count]
            self._protocol.buffer_updated(count)
            if not self._peer._lost:
                self._peer._push()
        if self._peer._lost and not self._arrived and self._reading and not self._closing:
            self._protocol.eof_received()
            self.close()

    def _lose(self) -> None:
        if not self._lost:
            self._lost = True
            self._loop.call_soon(self._protocol.connection_lost, None)
            self._loop.call_soon(self._peer._pull)


async def memory_pair(
    left: asyncio.BufferedProtocol, right: asyncio.BufferedProtocol
) -> tuple[asyncio.Transport, asyncio.Transport]:
    """Connect two protocols of the running loop, without sockets."""
    ends = MemoryTransport(left), MemoryTransport(right)
    ends[0]._peer, ends[1]._peer = ends[1], ends[0]
    right.connection_made(ends[1])
    left.connection_made(ends[0])
    return ends


async def socket_pair(
    left: asyncio.BufferedProtocol, right: asyncio.BufferedProtocol
) -> tuple[asyncio.Transport, asyncio.Transport]:
    """Connect two protocols of the running loop by a pair of Unix sockets."""
    loop = asyncio.get_running_loop()
    sockets = socket.socketpair()
    right_end, _ = await loop.create_connection(lambda: right, sock=sockets[1])
    left_end, _ = await loop.create_connection(lambda: left, sock=sockets[0])
    return left_end, right_end


PAIRS = {"memory": memory_pair, "socket": socket_pair}
