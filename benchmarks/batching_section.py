"""What a section of the batching benchmark hands back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.report import Claim, Row


@dataclass(frozen=True)
class Section:
    """The rows in the order to show them, the claims, and what a reader has to know about both."""

    rows: Sequence[Row]
    claims: Sequence[Claim]
    notes: Sequence[str] = ()
