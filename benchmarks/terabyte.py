"""A terabyte on a small machine: tables of 1 TiB and more, in the mapped tier, over 8 shards.

Two tables of rows of 512 float16, one of a billion rows (the item table of MLPerf's DLRM-v3) and
one of a hundred million, on a file that is holes but for some thousands of planted rows. A stock
gRPC client asks for planted rows, which have to come back exact, and for holes, which are zeros.

Settings: `dir=DIR`, where to make the model (a temporary directory's place if unset; its file
system must have sparse files), `seconds=N`, how long to ask for (10), `cache=SIZE`, the layout's
`cache_per_shard` (none).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from benchmarks.load import data_file, evict
from benchmarks.load_starts import is_shard, title
from benchmarks.report import Claim, Options, Report, Row, missing
from benchmarks.server_process import DidNotStart, ServerProcess, free_ports, unwinding_on_sigterm
from benchmarks.serving_subjects import START_SECONDS, haproxy_files
from benchmarks.sparse_model import SparseTable, write
from examples.dlrm import quiet_tensorflow
from shardserve.shards.native import library

Array = npt.NDArray[Any]

MODEL = "terabyte"
SHARDS = 8
TABLES = (
    SparseTable("items", 1_000_000_000, 512, 8192),
    SparseTable("users", 100_000_000, 512, 4096),
)
QUICK_TABLES = (
    SparseTable("items", 10_000_000, 512, 512),
    SparseTable("users", 1_000_000, 512, 256),
)
#: What the console says once Ray runs, and what is ours begins.
RAY_IS_UP = "Ray is up"
SUBJECT = f"ours, ray engine, {SHARDS} shards, mapped"
#: Ids of each table in a request, requests in flight.
IDS, IN_FLIGHT = 64, 8


@dataclass
class Findings:
    """Rows and claims, as they come."""

    rows: list[Row] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)


def run(options: Options) -> Report:
    """Measure. Ends every process that it started, also when it is interrupted."""
    tables = QUICK_TABLES if options.quick else TABLES
    seconds = float(options.settings.get("seconds", 2 if options.quick else 10))
    findings = Findings()
    library()  # Compiled once a machine, which is no part of a start.
    with (
        unwinding_on_sigterm(),
        TemporaryDirectory(prefix="terabyte-", dir=options.settings.get("dir")) as directory,
    ):
        base_path = Path(directory) / "model"
        write(base_path / "1", tables)
        layout = Path(directory) / "layout.yaml"
        layout.write_text(layout_text(tables, options.settings.get("cache")))
        try:
            _serve_and_ask(findings, base_path, layout, tables, seconds)
        except DidNotStart as error:
            findings.rows.append(missing(SUBJECT, str(error)))
            findings.claims = [_first_answer(None), _shard_peak([])]
        sizes = _size_rows(data_file(base_path / "1"), tables)
        return Report("terabyte", [*sizes, *findings.rows], findings.claims, _notes(tables))


def layout_text(tables: Sequence[SparseTable], cache: str | None) -> str:
    """Every table mapped, its rows scattered over all shards; `cache` as the file spells it."""
    shards = list(range(SHARDS))
    lines = [f"shards: {SHARDS}", "tier: mapped"]
    lines += [f"cache_per_shard: {cache}"] if cache else []
    lines += ["tables:"]
    lines += [f"  {table.name}: {{sharding: row_hash, shards: {shards}}}" for table in tables]
    return "\n".join([*lines, ""])


def _serve_and_ask(
    findings: Findings,
    base_path: Path,
    layout: Path,
    tables: Sequence[SparseTable],
    seconds: float,
) -> None:
    port, rest, serve_http, serve_grpc = free_ports(4)
    command = [
        *(sys.executable, "-m", "shardserve", "serve", f"--layout={layout}"),
        *(f"--model_name={MODEL}", f"--model_base_path={base_path}"),
        *(f"--port={port}", f"--rest_api_port={rest}"),
        *(f"--serve_http_port={serve_http}", f"--serve_grpc_port={serve_grpc}"),
    ]
    client = Client(f"127.0.0.1:{port}", tables)
    evict(data_file(base_path / "1"))
    logs = base_path.parent
    with ServerProcess(command, logs / "log", haproxy_files(logs)) as server:
        ray_up = server.wait_until(lambda: server.said(RAY_IS_UP), START_SECONDS)
        answered = server.wait_until(client.answers, START_SECONDS)
        processor = server.cpu_seconds()
        first = answered - ray_up
        findings.rows += [
            Row(SUBJECT, "start", "Ray is up after", "s", ray_up),
            Row(SUBJECT, "start", "first right answer after", "s", answered),
            Row(SUBJECT, "start", "first right answer after Ray is up", "s", first),
            Row(SUBJECT, "start", "processor time of living processes by then", "s", processor),
        ]
        findings.claims.append(_first_answer(first))
        findings.rows += asyncio.run(client.load(seconds))
        _weigh(findings, server)


def _weigh(findings: Findings, server: ServerProcess) -> None:
    memory = sorted(server.memory(), key=lambda one: -one.peak_bytes)
    for process in memory:
        row = Row(SUBJECT, title(process.command), "peak resident", "MB", process.peak_bytes / 1e6)
        findings.rows.append(row)
    peaks = [process.peak_bytes / 1e6 for process in memory if is_shard(process)]
    findings.claims.append(_shard_peak(peaks))


def _first_answer(seconds: float | None) -> Claim:
    return Claim("terabyte.seconds_to_first_answer", seconds, 15.0, sense="at_most")


def _shard_peak(peaks: Sequence[float]) -> Claim:
    worst = max(peaks) if len(peaks) == SHARDS else None
    note = f"{len(peaks)} shard processes were measured"
    return Claim("terabyte.shard_peak_mb", worst, 500.0, sense="at_most", note=note)


class Client:
    """A stock gRPC client, which knows what is planted where."""

    def __init__(self, address: str, tables: Sequence[SparseTable]) -> None:
        self._address = address
        self._tables = tables
        self._planted = {table: table.planted_rows() for table in tables}
        self._tf = quiet_tensorflow()

    def answers(self) -> bool:
        """Whether planted rows come back exact, and holes as zeros. Raises DidNotStart if not."""
        from tensorflow_serving.apis import prediction_service_pb2_grpc

        if not self._is_open():
            return False
        asked = {
            table: np.concatenate([rows[:32], rows[-32:], self._holes(table, 64)])
            for table, rows in self._planted.items()
        }
        with grpc.insecure_channel(self._address) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            try:
                reply = stub.Predict(self._request(asked), timeout=5.0)
            except grpc.RpcError:
                return False
        self.check(asked, reply)
        return True

    def _is_open(self) -> bool:
        """Whether somebody listens: a channel for each look would slow the start that it awaits."""
        host, _, port = self._address.partition(":")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1.0):
            return True
        return False

    async def load(self, seconds: float) -> list[Row]:
        """Ask for planted rows, IDS of each table at once: each once, cold, then for a while."""
        from tensorflow_serving.apis import prediction_service_pb2_grpc

        async with grpc.aio.insecure_channel(self._address) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            once = [*self._batches(0)]
            rows = _rate_rows("each planted row once, cold", *await self._ask(stub, iter(once)))
            end = time.perf_counter() + seconds
            again = itertools.takewhile(
                lambda _: time.perf_counter() < end,
                itertools.chain.from_iterable(map(self._batches, itertools.count(1))),
            )
            return [*rows, *_rate_rows("planted rows", *await self._ask(stub, again))]

    async def _ask(
        self, stub: Any, requests: Iterator[dict[SparseTable, Array]]
    ) -> tuple[float, int, list[float]]:
        """Keep IN_FLIGHT requests on the way; the seconds, the rows, and each one's latency."""
        latencies: list[float] = []
        rows = 0

        async def ask() -> None:
            nonlocal rows
            for asked in requests:
                started = time.perf_counter()
                reply = await stub.Predict(self._request(asked), timeout=30.0)
                latencies.append(time.perf_counter() - started)
                rows += sum(map(len, asked.values()))
                if len(latencies) % 16 == 1:
                    self.check(asked, reply)

        started = time.perf_counter()
        await asyncio.gather(*[ask() for _ in range(IN_FLIGHT)])
        return time.perf_counter() - started, rows, latencies

    def _batches(self, seed: int) -> Iterator[dict[SparseTable, Array]]:
        """Every planted row of the larger table once, in random order, the others' along."""
        rng = np.random.default_rng(seed)
        orders = {table: rng.permutation(rows) for table, rows in self._planted.items()}
        longest = max(map(len, orders.values()))
        for start in range(0, longest, IDS):
            places = np.arange(start, min(start + IDS, longest))
            yield {table: order[places % len(order)] for table, order in orders.items()}

    def _holes(self, table: SparseTable, count: int) -> Array:
        drawn = np.random.default_rng(7).integers(0, table.rows, count)
        return np.setdiff1d(drawn, self._planted[table])

    def _request(self, asked: dict[SparseTable, Array]) -> Any:
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest()
        request.model_spec.name = MODEL
        for table, rows in asked.items():
            request.inputs[f"{table.name}_id"].CopyFrom(self._tf.make_tensor_proto(rows))
        return request

    def check(self, asked: dict[SparseTable, Array], reply: Any) -> None:
        """Raise DidNotStart, naming the table, for a reply that is not what is planted."""
        for table, rows in asked.items():
            is_planted = np.isin(rows, self._planted[table])
            expected = np.where(is_planted[:, None], table.values(rows), 0).astype(np.float32)
            if not np.array_equal(self._tf.make_ndarray(reply.outputs[table.name]), expected):
                raise DidNotStart(f"wrong answer: rows of {table.name}")


def _rate_rows(case: str, seconds: float, rows: int, latencies: Sequence[float]) -> Iterator[Row]:
    yield Row(SUBJECT, case, "lookups", "rows/s", rows / seconds)
    yield Row(SUBJECT, case, "requests", "1/s", len(latencies) / seconds)
    yield Row(SUBJECT, case, "latency, median", "ms", statistics.median(latencies) * 1e3)
    p99 = float(np.quantile(latencies, 0.99))
    yield Row(SUBJECT, case, "latency, 99th percentile", "ms", p99 * 1e3)


def _size_rows(file: Path, tables: Sequence[SparseTable]) -> list[Row]:
    found = file.stat()
    return [
        Row("model", "tables", "bytes", "TiB", sum(table.nbytes for table in tables) / 2**40),
        Row("model", "data file", "bytes on disk", "MB", found.st_blocks * 512 / 1e6),
        Row("model", "planted", "rows", "", sum(len(table.planted_rows()) for table in tables)),
    ]


def _notes(tables: Sequence[SparseTable]) -> list[str]:
    shapes = ", ".join(f"{table.name} {table.rows:,} x {table.columns}" for table in tables)
    asked = (
        f"Tables of float16: {shapes}. Each request asks for {IDS} rows of each, {IN_FLIGHT} "
        "requests at a time, by a Python client on the same machine, which takes processor time of "
        "its own; one reply in 16 is compared with what was planted, to the bit."
    )
    cold = (
        "Cold: the data file's pages are evicted before the start, by posix_fadvise; what holds "
        "the disk may have a cache of its own. The kernels are compiled before it."
    )
    return [asked, cold, "Memory is each process's VmHWM after all requests."]
