"""The white space of nested JSON lists, as RapidJSON's pretty writer sets it."""

from __future__ import annotations

import enum
import functools
import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass

_INDENT = b"    "

#: What is around the elements of deeper nested lists is not kept: a client chooses how deep.
_KEPT_RANK = 8


class Style(enum.Enum):
    """Elements beside each other on one line, or one below the other."""

    LINE = enum.auto()
    BLOCK = enum.auto()


@dataclass(frozen=True, slots=True)
class Nesting:
    """What stands before, between and after the elements of a nested list.

    `separators[0]` is between two elements, `separators[k]` between two groups of `sizes[k - 1]`.
    """

    opening: bytes
    separators: tuple[bytes, ...]
    sizes: tuple[int, ...]
    closing: bytes

    def around(self, elements: bytes) -> bytes:
        return b"".join((self.opening, elements, self.closing))

    def joined(self, texts: Sequence[bytes]) -> bytes:
        """All of it, of the elements' own texts in order."""
        groups, before = texts, 1
        for separator, size in zip(self.separators, (*self.sizes, len(texts)), strict=True):
            step = size // before
            groups = [
                separator.join(groups[start : start + step])
                for start in range(0, len(groups), step)
            ]
            before = size
        return self.around(b"".join(groups))


def nesting(shape: tuple[int, ...], style: Style, depth: int) -> Nesting:
    """That of a list of such a shape, of at least one element, within `depth` other containers."""
    rank = len(shape)
    lines = _kept_lines if rank <= _KEPT_RANK else _lines
    opening, separators, closing = lines(rank, style, depth)
    sizes = tuple(itertools.accumulate(shape[:0:-1], operator.mul))
    return Nesting(opening, separators, sizes, closing)


def _lines(rank: int, style: Style, depth: int) -> tuple[bytes, tuple[bytes, ...], bytes]:
    """The opening, the separators and the closing of a `Nesting`."""
    opening, closing = _brackets(rank, rank, style, depth)
    separators = [_comma(rank, style, depth)]
    for level in range(1, rank):
        opened, closed = _brackets(level, rank, style, depth)
        comma = _comma(rank - level, style, depth)
        # What the outermost of the opened brackets begins with is in the comma already.
        separators.append(closed + comma + opened)
    return opening, tuple(separators), closing


_kept_lines = functools.lru_cache(maxsize=128)(_lines)


def empty(shape: tuple[int, ...], style: Style, depth: int) -> bytes:
    """A list of such a shape that has no elements."""
    if shape[0] == 0:
        return b"[]"
    inner = empty(shape[1:], style, depth + 1)
    line = nesting(shape[:1], style, depth)
    return line.around(line.separators[0].join([inner] * shape[0]))


def new_line(depth: int) -> bytes:
    """To where something within `depth` containers begins."""
    return b"\n" + _INDENT * depth


def _brackets(levels: int, rank: int, style: Style, depth: int) -> tuple[bytes, bytes]:
    """The innermost `levels` brackets, from the first "[" to the first element, and back."""
    if style is Style.LINE:
        return b"[" * levels, b"]" * levels
    outermost = depth + rank - levels
    opening = b"".join(b"[" + new_line(outermost + k + 1) for k in range(levels))
    closing = b"".join(new_line(outermost + levels - 1 - k) + b"]" for k in range(levels))
    return opening, closing


def _comma(rank: int, style: Style, depth: int) -> bytes:
    return b", " if style is Style.LINE else b"," + new_line(depth + rank)
