"""Which calls' tensors may be joined: what a call's tensors look like, found at little cost."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from shardserve.batching.errors import InvalidArgument
from shardserve.batching.tensors import Array

#: Forms and likenesses that are remembered. Clients choose the shapes.
MAX_FORMS = 1024

shape_of, dtype_of = attrgetter("shape"), attrgetter("dtype")


@dataclass(frozen=True, eq=False, slots=True)
class Likeness:
    """What calls that share batches have in common. `group` is what they named.

    A row of tensor i has `lines[i]` lines of dimension 0. If it `is_empty` the calls have no rows,
    and each counts as one in the queues, so that a batch has a bounded number of them.
    """

    group: Hashable
    lines: tuple[int, ...]
    is_empty: bool


@dataclass(frozen=True, eq=False, slots=True)
class Form:
    """What a call's tensors look like, row count included, and so whom it may be joined with.

    `count` is how many they are, `size` is its room in a batch, `nbytes` what the tensors
    hold, without the strings of those at the places `strings`.
    """

    count: int
    shapes: list[tuple[int, ...]]
    dtypes: list[np.dtype[Any]]
    likeness: Likeness
    size: int
    nbytes: int
    strings: tuple[int, ...]

    def nbytes_of(self, tensors: Sequence[Array]) -> int:
        """What these hold, strings included."""
        texts = [tensors[place] for place in self.strings]
        return self.nbytes + sum([sum(map(len, text.flat)) for text in texts])


class Forms:
    """The forms of calls seen before. `known` has the last one of each group and row count."""

    def __init__(self, *, pads_inner: bool, multiples: bool) -> None:
        self.known: dict[tuple[Hashable, int], Form] = {}
        self._likenesses: dict[Hashable, Likeness] = {}
        self._pads_inner = pads_inner
        self._multiples = multiples

    def form(self, group: Hashable, rows: int, tensors: Sequence[Array]) -> Form:
        """The form of these tensors, which is known from then on.

        Raises InvalidArgument, in TensorFlow Serving's words, unless they have `rows` rows each.
        """
        if not tensors:
            raise InvalidArgument("Batching Run() must have at least one input tensor")
        lines = tuple([self._lines(tensor, rows) for tensor in tensors])
        if len(self.known) >= MAX_FORMS:
            self.known.clear()
        form = self.known[group, rows] = Form(
            count=len(tensors),
            shapes=[tensor.shape for tensor in tensors],
            dtypes=[tensor.dtype for tensor in tensors],
            likeness=self._likeness(group, rows, lines, tensors),
            size=max(1, rows),
            nbytes=sum([tensor.nbytes for tensor in tensors]),
            strings=tuple([i for i, tensor in enumerate(tensors) if tensor.dtype.hasobject]),
        )
        return form

    def _lines(self, tensor: Array, rows: int) -> int:
        if tensor.ndim == 0:
            raise InvalidArgument("Batching Run() input tensors must have at least one dimension")
        lines, odd = divmod(len(tensor), rows) if rows else (1, len(tensor))
        if odd or (lines != 1 and not self._multiples):
            raise InvalidArgument("Batching Run() input tensors must have equal 0th-dimension size")
        return lines

    def _likeness(
        self, group: Hashable, rows: int, lines: tuple[int, ...], tensors: Sequence[Array]
    ) -> Likeness:
        kinds: list[Hashable]
        if self._pads_inner:
            kinds = [(tensor.dtype, tensor.ndim) for tensor in tensors]
        else:
            kinds = [(tensor.dtype, tensor.shape[1:]) for tensor in tensors]
        key = (group, lines, rows == 0, tuple(kinds))
        if len(self._likenesses) >= MAX_FORMS:
            self._likenesses.clear()
        return self._likenesses.setdefault(key, Likeness(group, lines, rows == 0))
