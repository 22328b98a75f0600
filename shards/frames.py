"""Frames, pure: a fixed prefix, a msgpack header, then raw bytes in multiples of 8.

    magic "ST" | version u8 | kind u8 | header bytes u32 | body bytes u64      (little-endian)
    header, padded with zeros to a multiple of 8
    body, whose length is a multiple of 8

So every frame's length is a multiple of 8, and a body that is received into an aligned block stays
aligned. What headers and bodies mean is `wire`'s and `handshake`'s.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import msgpack
import numpy as np

from shardserve.batching.errors import InvalidArgument

VERSION: Final = 1
PREFIX_BYTES: Final = 16
HEADER_LIMIT: Final = 1 << 18
#: Items in one msgpack array. msgpack makes room for an array from its announced length, so this
#: also bounds what a lying header costs.
ITEMS_LIMIT: Final = 4096
#: Bytes in one msgpack string or bin.
TEXT_LIMIT: Final = 1 << 14
#: What is smaller than this is copied together: that costs less than buffers of its own.
COPY_BELOW: Final = 1 << 13
#: A reader receives into blocks of this size. A view keeps its whole block alive.
BLOCK_BYTES: Final = 1 << 16

_MAGIC: Final = b"ST"
_START: Final = _MAGIC + bytes([VERSION])
_PREFIX: Final = struct.Struct("<3sBIQ")
_ROOM_BYTES: Final = 1 << 12
#: What `unpack`, and looking at what came out of it, may raise for bytes that are no message.
MALFORMED: Final = (
    *(TypeError, ValueError, LookupError, OverflowError, StopIteration),
    msgpack.UnpackException,
)

#: One packer for all threads: it holds the GIL throughout, as it calls nothing of Python's.
_pack: Final = msgpack.Packer().pack
_PADDING: Final = tuple(bytes(-size % 8) for size in range(8))


class ProtocolError(InvalidArgument):
    """The peer sent bytes that are no frame, or no message of ours. The connection is lost."""


class Kind(enum.IntEnum):
    """What a frame is."""

    HELLO = 1
    CHALLENGE = 2
    PROOF = 3
    WELCOME = 4
    REFUSAL = 5
    REQUEST = 16
    CANCEL = 17
    REPLY = 18
    ERROR = 19
    PING = 20
    PONG = 21


_KINDS: Final = {kind.value: kind for kind in Kind}


#: Bytes to send, in order. Views of arrays are among them: these must not change until then.
Buffers = list[bytes | memoryview]

#: A frame as received: kind, header, body. Both are read-only views into the reader's block.
Frame = tuple[Kind, memoryview, memoryview]


def padding(nbytes: int) -> bytes:
    """The zeros that bring `nbytes` to a multiple of 8."""
    return _PADDING[nbytes % 8]


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension of type {code}")


#: The one msgpack value in a header; arrays come as tuples, and there are no maps or extensions.
#: Raises `MALFORMED`. A partial, as it is called for every message.
unpack: Final[Callable[[memoryview], Any]] = partial(
    msgpack.unpackb,
    use_list=False,
    ext_hook=_refuse_extension,
    max_str_len=TEXT_LIMIT,
    max_bin_len=TEXT_LIMIT,
    max_array_len=ITEMS_LIMIT,
    max_map_len=0,
    max_ext_len=0,
)


def bare_frame(kind: Kind, *fields: Any) -> bytes:
    """A frame without a body."""
    header = pack_fields(fields)
    size = len(header)
    return _PREFIX.pack(_START, kind, size, 0) + header + _PADDING[size % 8]


def frame(kind: Kind, fields: tuple[Any, ...], body: Buffers) -> tuple[Buffers, int]:
    """A frame's buffers, and their bytes together. A short frame is one buffer.

    `body` must be a multiple of 8 bytes long.
    """
    header = _pack(fields)
    size = len(header)
    pad = _PADDING[size % 8]
    body_bytes = sum(map(len, body))
    prefix = _PREFIX.pack(_START, kind, size, body_bytes)
    total = PREFIX_BYTES + size + len(pad) + body_bytes
    if total < COPY_BELOW:
        return [b"".join((prefix, header, pad, *body))], total
    return [b"".join((prefix, header, pad)), *body], total


def pack_fields(fields: tuple[Any, ...]) -> bytes:
    """Fields as msgpack."""
    packed: bytes = _pack(fields)
    return packed


def bare_fields(frame: Frame, *types: type) -> tuple[Any, ...]:
    """The fields, of exactly these types, of a frame that has no body."""
    kind, header, body = frame
    try:
        fields = unpack(header)
    except MALFORMED as error:
        raise ProtocolError(f"{kind.name} is malformed: {error!r}") from error
    if type(fields) is not tuple or tuple(map(type, fields)) != types or len(body):
        raise ProtocolError(f"{kind.name} is not as it should be")
    return fields


class FrameReader:
    """Cuts received bytes into frames, in the manner of `asyncio.BufferedProtocol`.

    Receive into `get_buffer()`, then tell `received` how many bytes came. A frame that fits no
    block gets one of its own, so its body is received in place and never copied. A frame whose
    prefix announces more than `limit` bytes is refused before anything is allocated for it. Blocks
    are not used again: views into them stay valid.
    """

    def __init__(self, limit: int) -> None:
        #: The longest frame to accept, in bytes.
        self.limit = limit
        self._block = memoryview(b"")
        self._view = self._block
        self._start = 0
        self._end = 0
        self._needed = PREFIX_BYTES

    def get_buffer(self) -> memoryview:
        """Room, never none, for the bytes that come next."""
        size, start, end = len(self._block), self._start, self._end
        if size - end < _ROOM_BYTES and (
            size == end or start == end or size - start < self._needed
        ):
            self._renew()
            end = self._end
        return self._block[end:]

    def received(self, nbytes: int) -> list[Frame]:
        """The frames that are complete, now that `nbytes` have come into the last buffer.

        Raises ProtocolError for what is no frame; then give up.
        """
        start = self._start
        self._end = end = self._end + nbytes
        view = self._view
        frames: list[Frame] = []
        needed = PREFIX_BYTES
        while end - start >= PREFIX_BYTES:
            begins, number, header_bytes, body_bytes = _PREFIX.unpack_from(view, start)
            kind = _KINDS.get(number)
            header = start + PREFIX_BYTES
            body = header + (header_bytes + 7 & ~7)
            stop = body + body_bytes
            if (
                kind is None
                or stop - start > self.limit
                or header_bytes > HEADER_LIMIT
                or begins != _START
                or body_bytes % 8
            ):
                raise self._refusal(begins, number, header_bytes, stop - start)
            if stop > end:
                needed = stop - start
                break
            frames.append((kind, view[header : header + header_bytes], view[body:stop]))
            start = stop
        self._start, self._needed = start, needed
        return frames

    def _renew(self) -> None:
        pending = self._block[self._start : self._end]
        size = max(self._needed, min(BLOCK_BYTES, self.limit))
        # Not a bytearray, which would be filled with zeros first.
        block = np.empty(size, np.uint8).data
        block[: len(pending)] = pending
        self._block = block
        self._view = block.toreadonly()
        self._start, self._end = 0, len(pending)

    def _refusal(self, begins: bytes, number: int, header_bytes: int, total: int) -> ProtocolError:
        if begins[:2] != _MAGIC:
            return ProtocolError(f"not a frame: starts with {begins!r}")
        if begins != _START:
            return ProtocolError(f"peer speaks version {begins[2]}, we speak version {VERSION}")
        if number not in _KINDS:
            return ProtocolError(f"frame is of unknown kind {number}")
        if header_bytes > HEADER_LIMIT:
            return ProtocolError(f"header of {header_bytes} bytes, limit is {HEADER_LIMIT}")
        if total > self.limit:
            return ProtocolError(f"frame of {total} bytes, limit is {self.limit}")
        return ProtocolError("frame's body is not a multiple of 8 bytes")
