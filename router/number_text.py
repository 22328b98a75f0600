"""Numbers as text at an address, for compiled loops: eight digits at a time.

Each function writes at the address `at`, and returns where the text ends. What lies up to `SLACK`
bytes behind that may have been written as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from shardserve.router.compiled import part
from shardserve.shards.lanes import loader, store

#: Characters of the longest number: the sign, 17 digits, the point, an exponent of 3 digits.
LONGEST = 25

#: Words are written whole, and digits before it is known how many of them count.
SLACK = 24

_MINUS, _PLUS, _POINT, _E, _ZERO = (np.uint8(ord(character)) for character in "-+.e0")

#: Eight characters "0", and "0.000000".
_ZEROS, _BELOW_ONE = (int.from_bytes(text, "little") for text in (b"00000000", b"0.000000"))


def _counting(operation: str) -> Any:
    """A numba function (word) -> how many of its 64 bits are zero at one of its ends."""

    def typed(_typing: Any, _word: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            return getattr(builder, operation)(args[0], ir.Constant(ir.IntType(1), 0))

        return types.int64(types.int64), generate

    return intrinsic(typed)


_load_byte = loader(types.uint8)
_zeros_above = _counting("ctlz")
_zeros_below = _counting("cttz")


@part
def _eight_digits(number):  # type: ignore[no-untyped-def]
    """A number below 10**8 as eight bytes from 0 to 9, the first digit in the lowest.

    All lanes of a word are divided at once, by 10,000, by 100 and by 10: times the inverse.
    """
    upper = (number * 109951163) >> 40
    fours = upper | (number - upper * 10000) << 32
    upper = ((fours * 10486) >> 20) & 0x7F0000007F
    pairs = upper | (fours - upper * 100) << 16
    upper = ((pairs * 103) >> 10) & 0x000F000F000F000F
    return upper | (pairs - upper * 10) << 8


@part
def _write_few(number, at):  # type: ignore[no-untyped-def]
    """A number below 10**8."""
    digits = _eight_digits(np.int64(number))
    blank = min(_zeros_below(digits) >> 3, 7)
    store(at, (digits | _ZEROS) >> (blank << 3))
    return at + 8 - blank


@part
def _write_eight(number, at):  # type: ignore[no-untyped-def]
    """A number below 10**8 with the zeros before it."""
    store(at, _eight_digits(np.int64(number)) | _ZEROS)
    return at + 8


@part
def write_integer(number, at):  # type: ignore[no-untyped-def]
    """An unsigned integer of 64 bits."""
    unit = np.uint64(100000000)
    if number < unit:
        return _write_few(number, at)
    above, below = number // unit, number % unit
    if above < unit:
        at = _write_few(above, at)
    else:
        at = _write_eight(above % unit, _write_few(above // unit, at))
    return _write_eight(below, at)


@part
def write_text(characters, at):  # type: ignore[no-untyped-def]
    """An array of bytes."""
    for character in characters:
        store(at, character)
        at += 1
    return at


@part
def _write_exponent(exponent, at):  # type: ignore[no-untyped-def]
    store(at, _E)
    store(at + 1, _MINUS if exponent < 0 else _PLUS)
    exponent = abs(exponent)
    if exponent < 10:
        store(at + 2, _ZERO)
        at += 1
    return _write_few(exponent, at + 2)


@part
def _write_digits(first, middle, last, at):  # type: ignore[no-untyped-def]
    """1 and 8 and 8 digits, and a zero."""
    store(at, np.uint8(first + 48))
    store(at + 1, middle | _ZEROS)
    store(at + 9, last | _ZEROS)
    store(at + 17, _ZERO)


@part
def _significant(middle, last):  # type: ignore[no-untyped-def]
    """How many digits there are without the zeros at the end."""
    if last:
        return 17 - (_zeros_above(last) >> 3)
    return 9 - (_zeros_above(middle) >> 3)


@part
def write_decimal(first, middle, last, exponent, digits, at):  # type: ignore[no-untyped-def]
    """first.middlelast * 10**exponent as `%.{digits}g`, with ".0" where it would be an integer.

    The three are numbers of 1, 8 and 8 digits, of which only so many count, up to 17.
    """
    middle, last = _eight_digits(middle), _eight_digits(last)
    count = _significant(middle, last)
    if exponent < -4 or exponent >= digits:
        _write_digits(first, middle, last, at + 1)
        store(at, np.uint8(first + 48))
        store(at + 1, _POINT)
        return _write_exponent(exponent, at + count + (1 if count > 1 else 0))
    if exponent < 0:
        store(at, _BELOW_ONE)
        _write_digits(first, middle, last, at + 1 - exponent)
        return at + 1 - exponent + count
    _write_digits(first, middle, last, at + 1)
    for place in range(at, at + exponent + 1):
        store(place, _load_byte(place + 1))
    store(at + exponent + 1, _POINT)
    return at + 1 + max(count, exponent + 2)
