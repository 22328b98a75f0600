"""The GPU tier's kernels: checked against float64, then timed against a copy and against torch.

Needs numpy, CuPy and this package's shards, and neither Ray nor TensorFlow; where there is not even
typer, `python -m benchmarks.gpu [--quick]` prints the report as JSON. Without CuPy or a GPU the
report says so.

A figure is the bytes of the rows that were asked for, per second, as in `lookup`: row numbers that
are read and sums that are written are overhead. A copy's is the bytes it reads and those it writes.
Everything lies on the device before the clock starts, row numbers are uniform over the table and
new in each of a sample's calls, and time is the device's own, between two events. What copies to
and from the host add is a case of its own.

`--set mebibytes=N` changes a table's size (8192), `--set rounds=N` the samples per figure (7).
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.report import Claim, Options, Report, Row, as_json, missing, paired_ratio
from shardserve.shards.encoding import encode
from shardserve.shards.gpu_calls import ALIGNMENT, Call, Device, Place
from shardserve.shards.gpu_device import CupyDevice, the_gpu, why_no_gpu
from shardserve.shards.gpu_store import GpuStore
from shardserve.shards.storage import SCALE_BYTES, Precision

Array = npt.NDArray[Any]

DIMS = (32, 64, 128, 256)
BAGS = (1, 20, 100)
PRECISIONS = (None, Precision.FLOAT16, Precision.INT8)
ROWS_ASKED = 1 << 21
CALLS = 8
CLAIMED = (128, 20)
COPY_TO_REACH, TORCH_TO_REACH = 0.75, 1.0
COPY, TORCH = "device-to-device copy", "torch embedding_bag"
VS_COPY, VS_TORCH = "gpu.fp32_vs_copy", "gpu.fp32_vs_torch"
#: Rows that are made once; a table repeats them, each time moved on by one.
BLOCK = 1 << 16
#: Widths that between them use every way of loading a row.
CHECKED_DIMS = (1, 5, 16, 34, 128, 300)


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    table_bytes: int
    rounds: int
    rows_asked: int
    dims: tuple[int, ...]
    bags: tuple[int, ...]


def run(options: Options) -> Report:
    """The benchmark. Raises AssertionError, before anything is timed, for a wrong answer."""
    reason = why_no_gpu()
    if reason is not None:
        copy = Claim(VS_COPY, None, COPY_TO_REACH, note=reason)
        torch = Claim(VS_TORCH, None, TORCH_TO_REACH, note=reason)
        return Report("gpu", [missing("shardserve", reason)], [copy, torch])
    device, plan = the_gpu(), _plan(options)
    rows = [Row("shardserve", "every kernel", "error / its bound", "", check(device))]
    claims: list[Claim] = []
    for dim in plan.dims:
        for precision in PRECISIONS:
            bench = _Bench(device, plan, dim, precision)
            rows += bench.rows()
            if dim == CLAIMED[0] and precision is None:
                claims = bench.claims()
            del bench
    return Report("gpu", rows, claims, _notes(plan))


def _plan(options: Options) -> Plan:
    mebibytes = int(options.settings.get("mebibytes", 64 if options.quick else 8192))
    rounds = int(options.settings.get("rounds", 3 if options.quick else 7))
    dims, bags = ((128,), (20,)) if options.quick else (DIMS, BAGS)
    return Plan(mebibytes << 20, rounds, 1 << 16 if options.quick else ROWS_ASKED, dims, bags)


def check(device: Device) -> float:
    """Hold every kernel against sums in float64; the largest error found, over what it may be.

    Raises AssertionError, naming the kernel, for one above its bound, which is that of adding n
    numbers one after the other: (n + 2) times half an ulp of the sum of their magnitudes.
    """
    rng = np.random.default_rng(0)
    worst = 0.0
    for dtype, precision in [("float64", None), ("float32", None)] + [
        ("float32", precision) for precision in Precision if precision in _CODED
    ]:
        for dim in CHECKED_DIMS:
            table = rng.normal(size=(1000, dim)).astype(dtype)
            store, exact = _store_of(device, table, precision), _kept64(table, precision)
            for ids in (np.int32, np.int64):
                offsets = np.cumsum([0, *rng.integers(0, 40, 200)])
                rows = rng.integers(0, len(table), offsets[-1]).astype(ids)
                for weights in (None, rng.normal(size=len(rows)).astype(dtype)):
                    found = _error(
                        store.pool(rows, offsets, weights), exact, rows, offsets, weights
                    )
                    name = f"pool of {precision or dtype}, {dim} columns, {ids.__name__}"
                    assert found <= 1.0, f"{name}: the error is {found:.3g} times its bound"
                    worst = max(worst, found)
                gathered = store.gather(rows)
                np.testing.assert_allclose(gathered, exact[rows], rtol=2**-23, err_msg=str(dim))
    return worst


def _store_of(device: Device, table: Array, precision: Precision | None) -> GpuStore:
    store = GpuStore(device, len(table), table.shape[1], table.dtype.name, precision)
    store.put(np.arange(len(table)), _kept(table, precision))
    return store


def _kept(table: Array, precision: Precision | None) -> Array:
    if precision is None:
        return table.view(np.uint8).reshape(len(table), -1)
    return encode(precision, table)[0]


_CODED = (Precision.FLOAT16, Precision.BFLOAT16, Precision.INT8, Precision.INT4)


def _kept64(table: Array, precision: Precision | None) -> Array:
    """What a table's elements are once they are kept so, in float64."""
    if precision is None:
        return table.astype(np.float64)
    kept = encode(precision, table)[0]
    match precision:
        case Precision.FLOAT16:
            return kept.view(np.float16).astype(np.float64)
        case Precision.BFLOAT16:
            return (
                (kept.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
            )
    scales = np.ascontiguousarray(kept[:, :SCALE_BYTES]).view(np.float32).astype(np.float64)
    codes = kept[:, SCALE_BYTES:]
    if precision is Precision.INT4:
        halves = np.stack([codes & 15, codes >> 4], axis=2).reshape(len(codes), -1)
        codes = ((halves ^ 8).astype(np.int8) - 8)[:, : table.shape[1]]
    return codes.view(np.int8).astype(np.float64) * scales


def _error(sums: Array, exact: Array, rows: Array, offsets: Array, weights: Array | None) -> float:
    """The largest error of any sum, over its bound."""
    terms = exact[rows] * (1.0 if weights is None else weights[:, None].astype(np.float64))
    half_ulp = np.finfo(sums.dtype).eps / 2
    worst = 0.0
    for bag, (first, stop) in enumerate(pairwise(offsets)):
        some = terms[first:stop]
        bound = (len(some) + 2) * half_ulp * np.abs(some).sum(axis=0)
        off = np.abs(sums[bag] - some.sum(axis=0))
        if not np.array_equal(off[bound == 0], np.zeros(int((bound == 0).sum()))):
            return float("inf")
        worst = max(
            worst, float(np.divide(off, bound, where=bound > 0, out=0 * off).max(initial=0))
        )
    return worst


@dataclass(frozen=True)
class _Prepared:
    """A launch whose arrays, result and `missed` lie on the device; `held` keeps them there."""

    call: Call
    addresses: list[int]
    known: dict[Place, int]
    held: tuple[Any, ...]


class _Bench:
    """One table on the device, and all that is timed over it."""

    def __init__(
        self, device: CupyDevice, plan: Plan, dim: int, precision: Precision | None
    ) -> None:
        self._cupy = import_module("cupy")
        self._device = device
        self._plan = plan
        self._dim = dim
        self._precision = precision
        self._rng = np.random.default_rng(1)
        base = np.random.default_rng(0).normal(size=(BLOCK, dim)).astype(np.float32)
        self._exact = _kept64(base, precision)
        kept = _kept(base, precision)
        self._blocks = max(1, plan.table_bytes // kept.nbytes)
        self._count = self._blocks * BLOCK
        self._row_bytes: int = kept.shape[1]
        self._store = GpuStore(device, self._count, dim, "float32", precision)
        self._load_rate = self._load(kept)
        self._torch = self._torch_bag() if precision is None else None

    def _load(self, kept: Array) -> float:
        """Put the table on the device; GB/s."""
        places = np.arange(BLOCK)
        started = time.perf_counter()
        for block in range(self._blocks):
            self._store.put(block * BLOCK + (places + block) % BLOCK, kept)
        return self._store.nbytes / (time.perf_counter() - started) / 1e9

    def _torch_bag(self) -> Callable[[Array, Array], Callable[[], Any]] | Row:
        """Rows and offsets to a call of torch over the same memory, or why there is none."""
        try:
            torch = import_module("torch")
        except ImportError as error:
            return missing(TORCH, f"not installed: {error}")
        if not torch.cuda.is_available():
            return missing(TORCH, "it finds no GPU: it is a build for processors alone")
        shape = (self._count, self._dim)
        table = torch.from_dlpack(self._store.memory.view(np.float32).reshape(shape))
        bag = torch.nn.functional.embedding_bag

        def prepared(rows: Array, offsets: Array) -> Callable[[], Any]:
            ids = torch.from_numpy(rows).to(table.device)
            starts = torch.from_numpy(offsets).to(table.device)
            return lambda: bag(ids, table, starts, mode="sum", include_last_offset=True)

        return prepared

    @property
    def _what(self) -> str:
        return f"{self._precision or 'float32'}, dim {self._dim}"

    def rows(self) -> Iterator[Row]:
        """Each case's median rate."""
        yield _row("shardserve", f"load, {self._what}", self._load_rate)
        if isinstance(self._torch, Row):
            yield self._torch
        for bag in self._plan.bags:
            case = f"pool, {self._what}, bag {bag}"
            self._check(bag)
            yield _row("shardserve", case, self._median(partial(self.pool_rate, bag)))
            if callable(self._torch):
                yield _row(TORCH, case, self._median(partial(self.torch_rate, bag)))
        yield _row("shardserve", f"gather, {self._what}", self._median(self._gather_rate))
        whole = f"pool, {self._what}, bag {CLAIMED[1]}, from the host and back"
        yield _row("shardserve", whole, self._median(self._store_rate))
        yield _row(COPY, self._what, self._median(self.copy_rate))

    def claims(self) -> list[Claim]:
        """Ours against a copy and against torch, in turns."""
        bag, times = CLAIMED[1], 2 * self._plan.rounds

        def ours() -> float:
            return self.pool_rate(bag)

        copy = paired_ratio(ours, self.copy_rate, times)
        note = f"{copy.ours:.0f} GB/s against {copy.theirs:.0f}"
        claims = [Claim(VS_COPY, copy.ratio, COPY_TO_REACH, note=note)]
        if not callable(self._torch):
            why = self._torch.note if isinstance(self._torch, Row) else ""
            return [*claims, Claim(VS_TORCH, None, TORCH_TO_REACH, note=why)]
        torch = paired_ratio(ours, lambda: self.torch_rate(bag), times)
        note = f"{torch.ours:.0f} GB/s against {torch.theirs:.0f}"
        return [*claims, Claim(VS_TORCH, torch.ratio, TORCH_TO_REACH, note=note)]

    def pool_rate(self, bag: int) -> float:
        """GB/s of one sample."""
        calls = [self._prepared(self._pool_call(*self._bags(bag))) for _ in range(CALLS)]
        return self._rate([self._launch(one) for one in calls], bag)

    def torch_rate(self, bag: int) -> float:
        """The same of torch's."""
        assert callable(self._torch)
        return self._rate([self._torch(*self._bags(bag)) for _ in range(CALLS)], bag)

    def copy_rate(self) -> float:
        """GB/s read and written of copies of as many bytes as a sample's rows have."""
        nbytes = min(self._plan.rows_asked * self._row_bytes, self._store.nbytes)
        target = self._cupy.empty(nbytes, np.uint8)
        source = self._store.memory

        def copy() -> None:
            target.data.copy_from_device_async(source.data, nbytes)

        return 2 * CALLS * nbytes / self._seconds([copy] * CALLS) / 1e9

    def _gather_rate(self) -> float:
        rows = [self._bags(1)[0] for _ in range(CALLS)]
        calls = [self._prepared(self._store.gather_call(some, wide=True)) for some in rows]
        return self._rate([self._launch(one) for one in calls], 1)

    def _store_rate(self) -> float:
        """With the copies there and back, by this thread's clock."""
        asked = [self._bags(CLAIMED[1]) for _ in range(CALLS)]
        started = time.perf_counter()
        for rows, offsets in asked:
            self._store.pool(rows, offsets, None)
        seconds = time.perf_counter() - started
        return sum(len(rows) for rows, _ in asked) * self._row_bytes / seconds / 1e9

    def _bags(self, bag: int) -> tuple[Array, Array]:
        n = self._plan.rows_asked // bag * bag
        return self._rng.integers(0, self._count, n), np.arange(0, n + 1, bag)

    def _pool_call(self, rows: Array, offsets: Array) -> Call:
        return self._store.pool_call(rows, offsets, None, wide=True)

    def _prepared(self, call: Call) -> _Prepared:
        cupy = self._cupy
        arrays = [cupy.asarray(array) for array in call.arrays]
        answer = cupy.empty(ALIGNMENT + int(np.prod(call.shape)) * call.dtype.itemsize, np.uint8)
        known = {Place.MISSED: answer.data.ptr, Place.RESULT: answer.data.ptr + ALIGNMENT}
        addresses = [array.data.ptr for array in arrays]
        return _Prepared(call, addresses, known, (arrays, answer))

    def _launch(self, one: _Prepared) -> Callable[[], None]:
        memory = self._store.memory
        return lambda: self._device.launch(memory, one.call, one.addresses, one.known)

    def _median(self, rate: Callable[[], float]) -> float:
        """Of the plan's rounds, after one that does not count."""
        return statistics.median([rate() for _ in range(self._plan.rounds + 1)][1:])

    def _rate(self, calls: Sequence[Callable[[], Any]], bag: int) -> float:
        asked = self._plan.rows_asked // bag * bag * self._row_bytes
        return len(calls) * asked / self._seconds(calls) / 1e9

    def _seconds(self, calls: Sequence[Callable[[], Any]]) -> float:
        """Of the device's, from the first to the last. The calls go to the stream that is current:
        torch's and CuPy's are both the null stream.
        """
        cuda = self._cupy.cuda
        start, stop = cuda.Event(), cuda.Event()
        cuda.get_current_stream().synchronize()
        start.record()
        for call in calls:
            call()
        stop.record()
        stop.synchronize()
        return float(cuda.get_elapsed_time(start, stop)) / 1e3

    def _check(self, bag: int) -> None:
        """Refuse to time an answer that is another, ours or torch's."""
        rows, offsets = self._bags(bag)
        rows, offsets = rows[: 100 * bag], offsets[:101]
        blocks, places = np.divmod(rows, BLOCK)
        bases = (places - blocks) % BLOCK
        found = _error(self._store.pool(rows, offsets, None), self._exact, bases, offsets, None)
        assert found <= 1.0, f"{self._what}: the error is {found:.3g} times its bound"
        if callable(self._torch):
            theirs = self._torch(rows, offsets)().cpu().numpy()
            np.testing.assert_allclose(
                theirs, self._store.pool(rows, offsets, None), rtol=1e-4, atol=1e-4
            )


def _row(subject: str, case: str, rate: float) -> Row:
    return Row(subject, case, "bytes per second", "GB/s", rate)


def _notes(plan: Plan) -> list[str]:
    runtime = import_module("cupy").cuda.runtime
    name = runtime.getDeviceProperties(0)["name"].decode()
    driver = runtime.driverGetVersion()
    tables = f"Tables of {plan.table_bytes / 2**20:.0f} MiB; medians of {plan.rounds} samples"
    return [
        f"On {name}, CUDA driver {driver}, runtime {runtime.runtimeGetVersion()}.",
        f"{tables} of {CALLS} calls, {plan.rows_asked} row numbers (int64) each.",
        "A copy's figure counts what it reads and what it writes, ours only the rows it reads.",
    ]


if __name__ == "__main__":
    print(as_json(run(Options(quick="--quick" in sys.argv[1:]))))
