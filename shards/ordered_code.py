"""The keys under which a tensor bundle keeps the slices of a tensor that was saved in slices.

They are OrderedCode strings, which sort as their parts do (ordered_code.h in TensorFlow's
tensorflow/core/lib/strings): a zero, the tensor's name, the rank, and for each dimension its start
and its length, -1 for "all".
"""

from __future__ import annotations

from collections.abc import Sequence


def slice_key(name: str, extents: Sequence[tuple[int, int | None]]) -> bytes:
    """The key of the slice that has, in each dimension, this start and this length."""
    key = _unsigned(0) + _text(name.encode()) + _unsigned(len(extents))
    for start, length in extents:
        key += _signed(start) + _signed(-1 if length is None else length)
    return key


def _unsigned(value: int) -> bytes:
    """How many bytes, then those, without leading zeros."""
    digits = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes([len(digits)]) + digits


def _text(value: bytes) -> bytes:
    """0 and 255 escaped, so that the end mark sorts before every continuation."""
    escaped = b"".join(
        {0: b"\x00\xff", 255: b"\xff\x00"}.get(byte, bytes([byte])) for byte in value
    )
    return escaped + b"\x00\x01"


def _signed(value: int) -> bytes:
    """Two's complement in the fewest bytes n that leave n + 1 sign bits, the first n flipped."""
    magnitude = ~value if value < 0 else value
    size = magnitude.bit_length() // 7 + 1
    bits = 8 * size
    flipped = ((1 << size) - 1) << (bits - size)
    return ((value % (1 << bits)) ^ flipped).to_bytes(size, "big")
