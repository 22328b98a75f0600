"""What one kind of server is asked, and what it answers, as frames. Plain data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from shardserve.shards.frames import Buffers, Frame, Kind
from shardserve.shards.messages import Array

Q = TypeVar("Q")
P = TypeVar("P")

#: What came of a request at its server: the results, and the seconds spent waiting and at work.
Performed = tuple[tuple[Array, ...], float, float]


@dataclass(frozen=True)
class Exchange(Generic[Q, P]):
    """The messages of one connection besides those that every connection has.

    `encode_request` takes a number, the seconds left and the request; `encode_reply` a number and
    the parts of a `Performed`. Both return a frame's buffers and their bytes together. Decoders
    raise ProtocolError, and nothing else, for what no encoder makes.
    """

    request: Kind
    reply: Kind
    encode_request: Callable[[int, float, Q], tuple[Buffers, int]]
    decode_request: Callable[[Frame], tuple[float, Q]]
    encode_reply: Callable[[int, tuple[Array, ...], float, float], tuple[Buffers, int]]
    decode_reply: Callable[[Frame], P]
