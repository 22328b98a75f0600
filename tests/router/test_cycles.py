"""Requests leave nothing of ours for the garbage collector, however they end."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    closing,
    suppress,
)
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from prometheus_client import CollectorRegistry
from tensorflow_serving.apis import predict_pb2

from shardserve.batching.driver import BatchDevice
from shardserve.batching.errors import (
    InvalidArgument,
    ServingError,
    Unavailable,
)
from shardserve.batching.parameters import BatchingParameters
from shardserve.router import logs
from shardserve.router.admitting import AdmittingServable
from shardserve.router.batched import BatchedServable
from shardserve.router.catalog import Catalog, Model, State, Version
from shardserve.router.grpc_door import GrpcDoor
from shardserve.router.handlers import Handlers
from shardserve.router.http_door import HttpDoor
from shardserve.router.metrics import Metrics
from shardserve.router.prediction import PredictionHandlers
from shardserve.router.rest import Rest
from shardserve.router.servable import Array, RequestContext, Servable, Signature, TensorInfo
from shardserve.router.session import StageThreads
from shardserve.router.sharded import ShardedServable, StageBatching, load_sharded
from shardserve.router.whole import WholeServable
from shardserve.shards.batched_channel import BatchedChannel
from shardserve.shards.fan_out import fan_out
from shardserve.shards.local import INLINE_COST, LocalChannel
from shardserve.shards.model import ModelPlan
from shardserve.shards.replicas import ReplicatedChannel
from shardserve.shards.shard import Shard
from shardserve.shards.stages import LookupBatching, Stages
from tests.cycles import assert_leaves_no_cycles
from tests.layouts import layout_of
from tests.region_models import THRESHOLD as REGION_THRESHOLD
from tests.saved_models import THRESHOLD, Feeds
from tests.sharded import tables_of
from tests.shards.plane import CREDENTIALS, Gate, Raising, gather, in_, serving, until
from tests.stepped import PLACES, Places

BATCHING = BatchingParameters(max_batch_size=16, max_enqueued_batches=100)
STAGES = {
    "one by one": Stages(),
    "batched": Stages(ids=BATCHING, dense=BATCHING),
    "whole requests": Stages(requests=BATCHING),
}
LOOKUPS = LookupBatching(max_in_flight_batches=1)


@asynccontextmanager
async def channel_to(executor: Any, batching: LookupBatching = LOOKUPS) -> AsyncIterator[Any]:
    """Lookups that wait for each other, over a socket to a shard."""
    async with serving(executor) as (_, address):
        replicas = ReplicatedChannel("shard", [address], CREDENTIALS)
        await until(lambda: replicas.is_up)
        yield BatchedChannel(replicas, batching)
        await replicas.close()


@pytest.fixture
def serving_model(saved_model, threads) -> Callable[..., AbstractAsyncContextManager[Any]]:
    """A model whose tables two shards behind sockets have."""

    @asynccontextmanager
    async def serve(
        name: str, stages: Stages, threshold: int = THRESHOLD
    ) -> AsyncIterator[ShardedServable]:
        directory = saved_model(name)
        sources = tables_of(directory, threshold)
        tables = {name: source.table for name, source in sources.items()}
        layout = layout_of("row_range", tables, 2)
        plan = ModelPlan(name, 1, str(directory), ("serve",), layout, sources, "", stages)
        shards = [Shard.load(sources, layout.slices_of_shard(shard)) for shard in range(2)]
        async with AsyncExitStack() as stack:
            channels = [await stack.enter_async_context(channel_to(shard)) for shard in shards]
            batching = StageBatching(BatchDevice(2))
            servable = load_sharded(plan, channels, threads, batching=batching)
            stack.push_async_callback(servable.close)
            yield servable

    return serve


async def ask(
    servable: Servable,
    feeds: Feeds,
    name: str = "serving_default",
    seconds: float = 60.0,
    outputs: Sequence[str] | None = None,
) -> None:
    """What is refused is as good as what is answered."""
    context = RequestContext("test", time.monotonic() + seconds)
    with suppress(ServingError):
        wanted = outputs or tuple(servable.signatures[name].outputs)
        await servable.run(name, feeds, wanted, context)


async def at_once(*asked: Any) -> None:
    """Not by `gather`, which is in a cycle with what it raises."""
    await asyncio.wait([asyncio.ensure_future(one) for one in asked])


def embedded(rows: int = 1, row: int = 3) -> Feeds:
    """A request of the model keras_embedding."""
    ids = np.full((rows, 5), row, np.int32)
    return {"ids": ids, "extra": np.ones((rows, 3), np.float32)}


#: Rows of the table; the second and the last there are not.
ROWS = ((3, 4, 5, 3), (3, 1 << 20, 4, -7))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("how", STAGES)
async def test_lookups_on_shards(how, rows, serving_model):
    async with serving_model("keras_embedding", STAGES[how]) as servable:
        asked: Servable = servable
        if STAGES[how].requests is not None:
            asked = AdmittingServable(BatchedServable(servable, BATCHING))
        await assert_leaves_no_cycles(
            lambda: at_once(*[ask(asked, embedded(row % 3 + 1, row)) for row in rows])
        )


async def test_regions(serving_model):
    rows = [np.arange(count, dtype=np.int64) for count in (1, 2, 3)]
    bad = np.full((2, 4), 1e7, np.float32)

    async with serving_model("marked", Stages(), REGION_THRESHOLD) as servable:
        await assert_leaves_no_cycles(
            lambda: at_once(
                *[ask(servable, {"ids": ids}) for ids in rows],
                ask(servable, {"x": bad}, "dense"),
                ask(servable, {"x": bad[:1] * 0}, "dense"),
            )
        )


@pytest.mark.parametrize("row", [1, 1 << 40])
async def test_lookups_that_a_running_graph_makes(row, serving_model):
    feeds = {"ids": np.array([[row, 2]]), "steps": np.array(2, np.int32)}
    async with serving_model("mapped", Stages()) as servable:
        await assert_leaves_no_cycles(lambda: ask(servable, feeds, outputs=["chased"]))


SUM = {
    "step": "step",
    "state": {"total": "sum", "text": "longer"},
    "initial": {"total": {"input": "start"}},
    "per_step": {"x": "numbers"},
    "returns": {"sum": "last", "longer": "all"},
    "batching": {"max_batch_size": 4},
}


@pytest.mark.parametrize("place", PLACES)
async def test_sequences_that_are_stepped_together(place, saved_model, threads, tmp_path):
    async with AsyncExitStack() as stack:
        places = Places(place, threads, tmp_path, stack)
        servable = (await places.serve(saved_model("fragile"), sum=SUM)).servable

        async def some() -> None:
            numbers = [np.ones((1, steps), np.float32) for steps in (1, 5, 3)]
            numbers[1][0, 3] = -1.0
            start = np.zeros(1, np.float32)
            await at_once(
                *[ask(servable, {"numbers": one, "start": start}, "sum") for one in numbers],
                ask(servable, {"numbers": numbers[0], "start": start}, "sum", 0.0),
            )

        await assert_leaves_no_cycles(some)


# Of lookups


async def lookup(channel: Any, seconds: float = 60.0, *rows: int) -> None:
    with suppress(ServingError):
        await fan_out([(channel, gather(*(rows or (1,))))], in_(seconds))


@pytest.mark.parametrize("error", [InvalidArgument("no such row"), Unavailable("busy"), KeyError()])
async def test_lookups_that_fail(error):
    async with channel_to(Raising(error)) as channel:
        await assert_leaves_no_cycles(lambda: at_once(*[lookup(channel) for _ in range(4)]))


@pytest.mark.parametrize("cost", [0, INLINE_COST + 1])
@pytest.mark.parametrize("executor", [Gate, Raising])
async def test_lookups_in_this_process(executor, cost):
    shard = Gate(cost) if executor is Gate else Raising(InvalidArgument("no such row"))
    channel = LocalChannel(shard)
    await assert_leaves_no_cycles(lambda: at_once(lookup(channel), lookup(channel, -1.0)))


async def test_a_lookup_whose_deadline_passes():
    gate = Gate(1 << 24, is_open=False)
    async with channel_to(gate) as channel:
        await assert_leaves_no_cycles(
            lambda: at_once(lookup(channel, 0.002), lookup(channel, 0.003), lookup(channel, -1.0))
        )


async def test_a_lookup_that_is_cancelled():
    gate = Gate(1 << 24, is_open=False)
    async with channel_to(gate) as channel:

        async def cancelled() -> None:
            tasks = [asyncio.ensure_future(lookup(channel)) for _ in range(3)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

        await assert_leaves_no_cycles(cancelled)


async def test_a_lookup_for_which_there_is_no_room():
    gate = Gate(1 << 24, is_open=False)
    few = LookupBatching(max_in_flight_batches=1, max_batch_size=1, max_enqueued_batches=1)
    async with channel_to(gate, few) as channel:
        held = [asyncio.ensure_future(lookup(channel)) for _ in range(2)]
        await asyncio.sleep(0)
        await assert_leaves_no_cycles(lambda: at_once(*[lookup(channel) for _ in range(3)]))
        gate.opened.set()
        await asyncio.wait(held)


# Of batches


@pytest.fixture
def batched(mixed: WholeServable) -> BatchedServable:
    return BatchedServable(
        mixed,
        BatchingParameters(8, batch_timeout_micros=0, num_batch_threads=1, max_enqueued_batches=1),
    )


async def test_a_batch_that_fails_and_is_split(batched):
    async def some() -> None:
        asked = [{"ids": np.array([row])} for row in (1, 2, 99, 3)]
        await at_once(*[ask(batched, one, "look_up") for one in asked])

    await assert_leaves_no_cycles(some)


async def test_requests_of_a_batch_that_end_before_it(batched):
    async def some() -> None:
        tasks = [
            asyncio.ensure_future(ask(batched, one, "look_up", seconds))
            for one, seconds in [
                ({"ids": np.arange(4)}, 60.0),
                ({"ids": np.arange(8)}, 60.0),
                ({"ids": np.arange(8)}, 60.0),
                ({"ids": np.arange(9)}, 60.0),
                ({"ids": np.arange(3)}, 1e-4),
                ({"ids": np.arange(3)}, -1.0),
            ]
        ]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.wait(tasks)

    await assert_leaves_no_cycles(some)


async def test_a_request_whose_deadline_passes_while_it_runs(mixed):
    rounds = {"rounds": np.array(2000)}
    await assert_leaves_no_cycles(lambda: ask(mixed, rounds, "count", 1e-3))


async def test_a_request_that_is_cancelled_while_it_runs(mixed):
    async def cancelled() -> None:
        task = asyncio.ensure_future(ask(mixed, {"rounds": np.array(2000)}, "count"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    await assert_leaves_no_cycles(cancelled)


async def test_a_request_that_is_not_admitted(mixed):
    servable = AdmittingServable(mixed)
    for _ in range(3):
        await ask(servable, {"rounds": np.array(2000)}, "count", 1e-3)

    async def refused() -> None:
        under_way = asyncio.ensure_future(ask(servable, {"rounds": np.array(100)}, "count"))
        await asyncio.sleep(0)
        await ask(servable, {"rounds": np.array(100)}, "count", 1e-9)
        await under_way

    await assert_leaves_no_cycles(refused)


async def test_requests_larger_than_a_batch(mixed):
    parameters = BatchingParameters(
        16, batch_timeout_micros=0, enable_large_batch_splitting=True, max_execution_batch_size=4
    )
    servable = BatchedServable(mixed, parameters)

    async def some() -> None:
        rows = [np.arange(count) % 10 for count in (3, 11, 15, 6)]
        bad = np.full(9, 99)
        late = asyncio.ensure_future(ask(servable, {"ids": rows[1]}, "look_up"))
        await asyncio.sleep(0)
        late.cancel()
        await at_once(*[ask(servable, {"ids": ids}, "look_up") for ids in (*rows, bad)])

    await assert_leaves_no_cycles(some)


# At the doors


class Stuck:
    """A servable whose requests wait until they are cancelled, or fail as a defect would."""

    version = 1
    signature_def_map = b""

    def __init__(self, name: str, defect: Exception | None = None) -> None:
        self.name = name
        inputs = {"x": TensorInfo("x:0", 1, None)}
        self.signatures = {"serving_default": Signature("", inputs, {})}
        self.under_way = 0
        self._defect = defect

    async def run(
        self, signature: str, inputs: Any, outputs: Any, context: RequestContext
    ) -> dict[str, Array]:
        if self._defect is not None:
            raise type(self._defect)(*self._defect.args)
        self.under_way += 1
        try:
            return dict(await asyncio.get_running_loop().create_future())
        finally:
            self.under_way -= 1


@pytest.fixture
def stuck() -> Stuck:
    return Stuck("stuck")


@pytest.fixture
def handlers(
    unconfigured: None,
    half_plus_two: WholeServable,
    mixed: WholeServable,
    stuck: Stuck,
    threads: StageThreads,
) -> Handlers:
    # Lines as a server writes them: for a console, frames in tracebacks get their locals twice.
    logs.configure()
    broken = Stuck("broken", ZeroDivisionError("a defect"))
    served: list[Any] = [half_plus_two, mixed, stuck, broken]
    available = {one.name: Model({1: Version(State.AVAILABLE, one)}) for one in served}
    return Handlers(Catalog(available), threads)


ASKED: Mapping[str, tuple[str, bytes]] = {
    "an answer": ("half_plus_two:predict", b'{"instances": [1, 2, 5]}'),
    "no JSON": ("half_plus_two:predict", b'{"instances": [1, 2'),
    "no tensor": ("half_plus_two:predict", b'{"instances": [1, [2]]}'),
    "a wrong type": ("half_plus_two:predict", b'{"instances": ["a"]}'),
    "inputs that disagree": (
        "mixed:predict",
        b'{"inputs": {"ids": [1, 2], "text": ["a"], "scale": [1]}}',
    ),
    "ids that no row has": (
        "mixed:predict",
        b'{"signature_name": "look_up", "instances": [1, 99]}',
    ),
    "no such model": ("nothing:predict", b'{"instances": [1]}'),
    "no such signature": ("mixed:predict", b'{"signature_name": "no", "instances": [1]}'),
    "a defect": ("broken:predict", b'{"instances": [1]}'),
    "no such path": ("mixed:nothing", b"{}"),
    "a long answer": (
        "half_plus_two:predict",
        json.dumps({"instances": [1.5] * 40_000}).encode(),
    ),
}


def posted(path: str, body: bytes) -> bytes:
    head = f"POST /v1/models/{path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


class HttpClient:
    """A connection on which one request follows the other."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 30)
        self._socket.setblocking(False)

    async def ask(self, asked: bytes) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._socket, asked)
        received = b""
        while b"\r\n\r\n" not in received:
            received += await loop.sock_recv(self._socket, 1 << 16)
        head, _, body = received.partition(b"\r\n\r\n")
        left = int(head.split(b"content-length: ")[1].split(b"\r\n")[0]) - len(body)
        while left:
            left -= len(await loop.sock_recv(self._socket, 1 << 16))

    def close(self) -> None:
        self._socket.close()


@asynccontextmanager
async def http_door(handlers: Handlers) -> AsyncIterator[int]:
    door = HttpDoor(Rest(handlers, Metrics(CollectorRegistry())), "127.0.0.1")
    await door.start()
    try:
        yield door.port
    finally:
        await door.stop(grace=0.0)


@pytest.mark.parametrize("what", ASKED)
async def test_rest_requests(what, handlers):
    async with http_door(handlers) as port:
        with closing(HttpClient(port)) as client:
            await assert_leaves_no_cycles(lambda: client.ask(posted(*ASKED[what])))


async def test_rest_requests_whose_client_goes_away(stuck, handlers):
    sent = posted("stuck:predict", b'{"instances": [1]}')

    async def gone() -> None:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(sent)
            await until(lambda: stuck.under_way)
        await until(lambda: not stuck.under_way)

    async with http_door(handlers) as port:
        await assert_leaves_no_cycles(gone, 2)


def predict_request(
    name: str, signature: str = "", **inputs: tuple[Any, tf.DType]
) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    for alias, (values, dtype) in inputs.items():
        request.inputs[alias].CopyFrom(tf.make_tensor_proto(values, dtype))
    return request


CALLED: Mapping[str, Callable[[], predict_pb2.PredictRequest]] = {
    "an answer": lambda: predict_request("half_plus_two", x=([1.0, 2.0], tf.float32)),
    "a wrong type": lambda: predict_request("half_plus_two", x=([1, 2], tf.int32)),
    "a wrong name": lambda: predict_request("half_plus_two", y=([1.0], tf.float32)),
    "ids that no row has": lambda: predict_request("mixed", "look_up", ids=([99], tf.int64)),
    "no such model": lambda: predict_request("nothing", x=([1.0], tf.float32)),
    "a defect": lambda: predict_request("broken", x=([1.0], tf.float32)),
    "a long answer": lambda: predict_request("half_plus_two", x=([1.0] * 40_000, tf.float32)),
}


Ask = Callable[[bytes, float], Awaitable[None]]


@asynccontextmanager
async def calling(handlers: Handlers) -> AsyncIterator[Ask]:
    """Asks through the gRPC door, with bytes, within so many seconds."""
    door = GrpcDoor(PredictionHandlers(handlers, Metrics(CollectorRegistry())), "127.0.0.1")
    await door.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{door.port}") as channel:
        predict = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")

        async def ask(raw: bytes, seconds: float) -> None:
            with suppress(grpc.aio.AioRpcError):
                await predict(raw, timeout=seconds)

        yield ask
    await door.stop(grace=0.0)


@pytest.mark.parametrize("what", CALLED)
async def test_grpc_calls(what, handlers):
    raw = CALLED[what]().SerializeToString()
    async with calling(handlers) as call:
        await assert_leaves_no_cycles(lambda: call(raw, 60.0))


async def test_grpc_calls_that_are_no_request_or_late(handlers):
    late = predict_request("stuck", x=([1.0], tf.float32)).SerializeToString()

    async with calling(handlers) as call:
        await assert_leaves_no_cycles(lambda: at_once(call(b"\xff\xff", 60.0), call(late, 0.005)))
