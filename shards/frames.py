"""Frames, pure: a fixed prefix, a msgpack header, then raw bytes in multiples of 8.

    magic "ST" | version u8 | kind u8 | header bytes u32 | body bytes u64 | number u64
    header, padded with zeros to a multiple of 8
    body

All little-endian. Every frame's length is a multiple of 8, so a body that is received into an
aligned memory stays aligned. The number says which request a frame belongs to. What headers and
bodies mean is `wire`'s and `handshake`'s.

The functions here and in `wire` run for every request of every shard, mostly on a core that has
just done something else: what they cost is the bytecodes they execute.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

import msgpack
import numpy as np

from shardserve.batching.errors import InvalidArgument

VERSION: Final = 1
PREFIX_BYTES: Final = 24
HEADER_LIMIT: Final = 1 << 18
#: Items in one msgpack array. msgpack makes room for an array from its announced length, so this
#: also bounds what a lying header costs.
ITEMS_LIMIT: Final = 4096
#: Bytes in one msgpack string or bin.
TEXT_LIMIT: Final = 1 << 14
#: What is smaller than this is copied together: that costs less than buffers of its own.
COPY_BELOW: Final = 1 << 13
#: What is received at once. Also what a view of one array may keep alive besides.
BUFFER_BYTES: Final = 1 << 16

_MAGIC: Final = b"ST"
_PREFIX: Final = struct.Struct("<4sIQQ")
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
    STAGE_REQUEST = 22
    STAGE_REPLY = 23


#: A frame as received: kind, number, header, and where its body lies: in which read-only bytes, and
#: from where to where.
Frame = tuple[Kind, int, bytes, bytes | memoryview, int, int]

#: Bytes to send, in order. Views of arrays are among them: these must not change until then.
Buffers = list[bytes | memoryview]

#: The first 4 bytes of each kind of frame.
_STARTS: Final = {kind: _MAGIC + bytes([VERSION, kind]) for kind in Kind}

#: What `unpack`, and looking at what came out of it, may raise for bytes that are no message.
MALFORMED: Final = (
    *(TypeError, ValueError, LookupError, OverflowError, StopIteration),
    msgpack.UnpackException,
)

#: Fields as msgpack. One packer for all threads: it holds the GIL, as it calls nothing of Python's.
pack: Final[Callable[[Any], bytes]] = msgpack.Packer().pack


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension of type {code}")


#: The one msgpack value in a header; arrays come as tuples, and there are no maps or extensions.
#: Raises `MALFORMED`.
unpack: Final[Callable[[bytes], Any]] = partial(
    msgpack.unpackb,
    use_list=False,
    ext_hook=_refuse_extension,
    max_str_len=TEXT_LIMIT,
    max_bin_len=TEXT_LIMIT,
    max_array_len=ITEMS_LIMIT,
    max_map_len=0,
    max_ext_len=0,
)


def frame(kind: Kind, number: int, fields: Any, body: Buffers) -> tuple[Buffers, int]:
    """A frame's buffers, and their bytes together. A short frame is one buffer.

    `body` must be a multiple of 8 bytes long.
    """
    header = pack(fields)
    size = len(header)
    body_bytes = sum(map(len, body))
    prefix = _PREFIX.pack(_STARTS[kind], size, body_bytes, number)
    pad = _PADDING[size % 8]
    if body_bytes < COPY_BELOW:
        whole = b"".join((prefix, header, pad, *body))
        return [whole], len(whole)
    head = b"".join((prefix, header, pad))
    return [head, *body], len(head) + body_bytes


def bare_frame(kind: Kind, number: int, *fields: Any) -> bytes:
    """A frame without a body."""
    (buffer,), _ = frame(kind, number, fields, [])
    return bytes(buffer)


def bare_fields(received: Frame, *types: type) -> tuple[Any, ...]:
    """The fields, of exactly these types, of a frame that has no body. Raises ProtocolError."""
    kind, _, header, _, start, stop = received
    try:
        fields = unpack(header)
    except MALFORMED as error:
        raise ProtocolError(f"{kind.name} is malformed: {error!r}") from error
    if type(fields) is not tuple or tuple(map(type, fields)) != types or start != stop:
        raise ProtocolError(f"{kind.name} is not as it should be")
    return fields


def padding(nbytes: int) -> bytes:
    """The zeros that bring `nbytes` to a multiple of 8."""
    return _PADDING[nbytes % 8]


class FrameReader:
    """Cuts received bytes into frames, in the manner of `asyncio.BufferedProtocol`.

    Receive into `get_buffer()`, then tell `received` how many bytes came. What comes is copied once
    into bytes of its own, which the frames share; a frame longer than the buffer gets memory of its
    own, and is received in place. A frame of another kind than `accept` names, or longer than it
    allows, is refused before anything is allocated for it.
    """

    def __init__(self, kinds: Iterable[Kind], limit: int) -> None:
        self.accept(kinds, limit)
        #: The start of a frame that is not complete, nor longer than the buffer.
        self._begun = b""
        #: A longer frame.
        self._long = memoryview(b"")

    def accept(self, kinds: Iterable[Kind], limit: int) -> None:
        """From the next buffer on, accept frames of these kinds, up to `limit` bytes long."""
        self._kinds: Mapping[bytes, Kind] = {_STARTS[kind]: kind for kind in kinds}
        self._limit = limit
        self._buffer = np.empty(min(limit, BUFFER_BYTES), np.uint8).data
        self._room = self._buffer

    def get_buffer(self, sizehint: int = -1) -> memoryview:
        """Room, never none, for the bytes that come next."""
        return self._room

    def received(self, nbytes: int) -> list[Frame]:
        """The frames that are complete, now that `nbytes` have come into the last buffer.

        Raises ProtocolError for what is no frame; then give up.
        """
        if self._long:
            return self._received_long(nbytes)
        data = self._room[:nbytes].tobytes()
        if self._begun:
            data = self._begun + data
            self._begun = b""
        frames: list[Frame] = []
        start, end = 0, len(data)
        while end - start >= PREFIX_BYTES:
            begins, header_bytes, body_bytes, number = _PREFIX.unpack_from(data, start)
            header = start + PREFIX_BYTES
            body = header + (header_bytes + 7 & ~7)
            stop = body + body_bytes
            kind = self._kinds.get(begins)
            if kind is None or stop - start > self._limit or header_bytes > HEADER_LIMIT:
                raise self._refusal(begins, header_bytes, stop - start)
            if stop > end:
                break
            frames.append((kind, number, data[header : header + header_bytes], data, body, stop))
            start = stop
        if start < end:
            self._keep(data[start:])
        return frames

    def _keep(self, begun: bytes) -> None:
        """Wait for the rest of a frame, whose prefix is right as far as it has come."""
        if len(begun) >= PREFIX_BYTES:
            total = _total(begun)
            if total > len(self._buffer):
                # Not a bytearray, which would be filled with zeros first.
                self._long = np.empty(total, np.uint8).data
                self._long[: len(begun)] = begun
                self._room = self._long[len(begun) :]
                return
        self._begun = begun

    def _received_long(self, nbytes: int) -> list[Frame]:
        self._room = self._room[nbytes:]
        if self._room:
            return []
        data = self._long.toreadonly()
        self._long, self._room = memoryview(b""), self._buffer
        begins, header_bytes, body_bytes, number = _PREFIX.unpack_from(data, 0)
        header = data[PREFIX_BYTES : PREFIX_BYTES + header_bytes].tobytes()
        body = len(data) - body_bytes
        return [(self._kinds[begins], number, header, data, body, len(data))]

    def _refusal(self, begins: bytes, header_bytes: int, total: int) -> ProtocolError:
        if begins[:2] != _MAGIC:
            return ProtocolError(f"not a frame: starts with {begins!r}")
        if begins[2] != VERSION:
            return ProtocolError(f"peer speaks version {begins[2]}, we speak version {VERSION}")
        if begins not in self._kinds:
            return ProtocolError(f"frame is of kind {begins[3]}, which does not belong here")
        if header_bytes > HEADER_LIMIT:
            return ProtocolError(f"header of {header_bytes} bytes, limit is {HEADER_LIMIT}")
        return ProtocolError(f"frame of {total} bytes, limit is {self._limit}")


def _total(begun: bytes) -> int:
    _, header_bytes, body_bytes, _ = _PREFIX.unpack_from(begun, 0)
    total: int = PREFIX_BYTES + (header_bytes + 7 & ~7) + body_bytes
    return total
