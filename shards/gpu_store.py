"""The GPU tier: a slice's rows in a GPU's memory, gathered and summed there.

A lookup is three steps on a stream of the calling thread's own: row numbers, offsets and weights go
over in one copy, a kernel runs (`gpu_code.py`), the answer comes back. What lookups answer is to
the bit what the memory tier does.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from shardserve.batching.errors import Unimplemented
from shardserve.shards import gpu_code
from shardserve.shards.arguments import checked_offsets, checked_weights, integers, outside
from shardserve.shards.gpu_calls import (
    THREADS,
    Argument,
    Array,
    Call,
    Device,
    Geometry,
    Place,
    geometry,
)
from shardserve.shards.gpu_code import ALL_FOUND, CODED_FORMS, SAVED_FORMS, DeviceForm, word_bytes
from shardserve.shards.halves import HALVES, sums_dtype
from shardserve.shards.storage import Precision, Tier, coded_row_bytes

_NO_RESULT = np.dtype(np.uint8)


class GpuStore:
    """Rows of one slice in a device's memory. `put` fills it, before anything is asked.

    `dtype` is the table's; `precision` is what rows of float32 are kept at, where that is another.
    Raises ResourceExhausted where the device's memory is short, and InvalidArgument for rows that
    are too wide for it.
    """

    may_wait = True
    tier = Tier.GPU
    in_place = False

    def __init__(
        self,
        device: Device,
        rows: int,
        columns: int,
        dtype: str,
        precision: Precision | None = None,
    ) -> None:
        self._device = device
        self.rows = rows
        self.columns = columns
        self.dtype = dtype
        self._array_dtype = np.dtype(np.uint16 if dtype == "bfloat16" else dtype)
        self._is_coded = precision is not None
        if precision is not None:
            self._row_bytes = coded_row_bytes(precision, columns)
            self._form: DeviceForm | None = CODED_FORMS[precision]
        else:
            self._row_bytes = columns * self._array_dtype.itemsize
            half = CODED_FORMS[Precision(dtype)] if dtype in HALVES else None
            self._form = half or SAVED_FORMS.get(dtype)
        self._sums_dtype = sums_dtype(dtype)
        self._check_width()
        self._memory = device.hold(self.nbytes)

    @property
    def nbytes(self) -> int:
        return self.rows * self._row_bytes

    @property
    def resident_bytes(self) -> int:
        return self.nbytes

    def put(self, places: Array, kept: Array) -> None:
        """Rows, by local number: `kept` is uint8 [n, bytes of a row], `places` int64 [n].

        Safe for many threads at once where no two of them put the same row.
        """
        if not kept.size:
            return
        width = word_bytes(self._row_bytes)
        words = self._row_bytes // width
        call = Call(
            words_code(width),
            "scatter",
            geometry(len(places), words),
            (Place.TABLE, self.rows, words, places, len(places), kept, Place.MISSED),
            (0,),
            _NO_RESULT,
        )
        self._perform(call, places)

    def prepare(self) -> None:
        """Have the device compile what lookups will need, so that none has to wait for it."""
        no_rows, no_bags = np.empty(1, np.int64), np.zeros(2, np.int64)
        for wide in (False, True):
            calls = [self.gather_call(no_rows, wide=wide)]
            if self._form is not None:
                calls.append(self.pool_call(no_rows, no_bags, None, wide=wide))
            for call in calls:
                self._device.compile(call)

    def block(self, first: int, last: int) -> Array:
        return self.gather(np.arange(first, last))

    def gather(self, rows: Array) -> Array:
        rows, wide = integers(rows, "row numbers")
        if not len(rows) or not self.columns:
            return np.empty((len(rows), self.columns), self._array_dtype)
        return self._perform(self.gather_call(rows, wide=wide), rows)

    def pool(self, rows: Array, offsets: Array, weights: Array | None) -> Array:
        if self._form is None:
            raise Unimplemented(f"pooling rows of {self.dtype} is not implemented")
        rows, wide = integers(rows, "row numbers")
        offsets = checked_offsets(offsets, len(rows))
        weights = checked_weights(weights, len(rows), self._sums_dtype)
        if not len(rows) or not self.columns:
            return np.zeros((len(offsets) - 1, self.columns), self._sums_dtype)
        return self._perform(self.pool_call(rows, offsets, weights, wide=wide), rows)

    def gather_call(self, rows: Array, *, wide: bool) -> Call:
        """The launch that gathers `rows`, int64 if `wide`, else int32; at least one."""
        shape = (len(rows), self.columns)
        name = "gather_int64" if wide else "gather_int32"
        if self._is_coded:
            assert self._form is not None
            code, launch = self._of_form(self._form, len(rows))
            widths: tuple[int, ...] = (self._row_bytes, self.columns)
        else:
            width = word_bytes(self._row_bytes)
            words = self._row_bytes // width
            code, launch, widths = words_code(width), geometry(len(rows), words), (words,)
        arguments: tuple[Argument, ...] = (
            Place.TABLE,
            self.rows,
            *widths,
            rows,
            len(rows),
            Place.RESULT,
            Place.MISSED,
        )
        return Call(code, name, launch, arguments, shape, self._array_dtype)

    def pool_call(self, rows: Array, offsets: Array, weights: Array | None, *, wide: bool) -> Call:
        """The launch that sums bags; the arguments are checked, and `offsets` are int64."""
        assert self._form is not None
        bags = len(offsets) - 1
        code, launch = self._of_form(self._form, bags)
        arguments = (
            Place.TABLE,
            self.rows,
            self._row_bytes,
            self.columns,
            rows,
            offsets,
            bags,
            weights,
            Place.RESULT,
            Place.MISSED,
        )
        name = "pool_int64" if wide else "pool_int32"
        return Call(code, name, launch, arguments, (bags, self.columns), self._sums_dtype)

    def _of_form(self, form: DeviceForm, items: int) -> tuple[str, Geometry]:
        vector = form.vector(self.columns)
        return form_code(form, vector), geometry(items, -(-self.columns // vector))

    def _check_width(self) -> None:
        """Raise InvalidArgument, before anything is held, for rows that no launch has room for."""
        if self._row_bytes:
            geometry(1, self._row_bytes // word_bytes(self._row_bytes))
        if self._form is not None and self.columns:
            self._of_form(self._form, 1)

    def _perform(self, call: Call, rows: Array) -> Array:
        if not self.rows:
            raise outside(rows, 0, 0)
        result, missed = self._device.perform(self._memory, call)
        if missed != ALL_FOUND:
            raise outside(rows, missed, self.rows)
        return result

    @property
    def memory(self) -> Any:
        """The rows' memory, as the device gave it: for measurements of the kernels alone."""
        return self._memory


@functools.cache
def words_code(width: int) -> str:
    """See `gpu_code.words_code`."""
    return gpu_code.words_code(width, THREADS)


@functools.cache
def form_code(form: DeviceForm, vector: int) -> str:
    """See `gpu_code.form_code`."""
    return gpu_code.form_code(form, vector, THREADS)
