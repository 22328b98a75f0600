"""What is known of a tensor when requests are joined on dimension 0. Plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fixed:
    """The same for every request whose inputs agree beyond dimension 0."""


@dataclass(frozen=True)
class Rows:
    """Of joined requests it is the join of what it is of each: `lines` lines for each row."""

    lines: int


@dataclass(frozen=True)
class Count:
    """A scalar: `lines` for each row of the request."""

    lines: int


@dataclass(frozen=True)
class Sizes:
    """A shape whose first size is `lines` for each row of the request, the others fixed."""

    lines: int


@dataclass(frozen=True)
class Mixed:
    """Not known to keep rows apart, and why."""

    reason: str


RowKind = Fixed | Rows | Count | Sizes | Mixed

FIXED = Fixed()
