"""What joins requests, runs an identity stage and splits them again, on one core in one process.

`python -m benchmarks.batching_subjects SUBJECT TENSORS STANDING SECONDS` measures one and prints a
line of JSON. In each a number of callers stand, and each asks again as soon as it has its answer.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardserve.batching.memory import settle_memory
from shardserve.batching.tensors import Array

MAX_BATCH = 1024
WARM_UP = 0.5
#: Questions of a caller between two looks at whether to go on.
TURNS = 16


@dataclass(frozen=True)
class Run:
    """What to measure: requests of so many tensors of [1, 16] floats, from so many callers."""

    tensors: int
    standing: int
    seconds: float

    def request(self) -> list[Array]:
        """One request's tensors."""
        return [np.ones((1, 16), np.float32) for _ in range(self.tensors)]


def shardserve(run: Run) -> dict[str, float]:
    """A `TensorStage` on a `BatchDevice`, on uvloop, as in the server."""
    import uvloop

    from shardserve.batching.driver import BatchDevice
    from shardserve.batching.parameters import BatchingParameters
    from shardserve.batching.tensor_stage import TensorBatch, TensorStage

    async def identity(tensors: list[Array], batch: TensorBatch) -> list[Array]:
        return tensors

    async def measure() -> dict[str, float]:
        parameters = BatchingParameters(max_batch_size=MAX_BATCH)
        outputs = [f"y{place}" for place in range(run.tensors)]
        stage = TensorStage(BatchDevice(1), "identity", parameters, identity, outputs)
        clock = _Clock(run)

        async def caller() -> None:
            tensors = run.request()
            while clock.goes_on(TURNS):
                for _ in range(TURNS):
                    await stage(tensors, 1)

        await asyncio.gather(*[caller() for _ in range(run.standing)])
        return clock.figures()

    return uvloop.run(measure())


def shardserve_stream(run: Run) -> dict[str, float]:
    """The same in another process, asked as routers ask stage actors.

    The processor time of both processes counts.
    """
    import uvloop

    from benchmarks.batching_stream import NAME, connected, identity_process
    from shardserve.shards.stage_messages import StageRequest

    async def measure(path: str, process: int) -> dict[str, float]:
        channel = await connected(path)
        clock = _Clock(run, _with_process(process))

        async def caller() -> None:
            tensors = tuple(run.request())
            while clock.goes_on(1):
                await channel.ask(StageRequest(NAME, tensors, 1), math.inf)

        await asyncio.gather(*[caller() for _ in range(run.standing)])
        await channel.close()
        return clock.figures()

    with identity_process(run.tensors) as (path, process):
        return uvloop.run(measure(path, process))


def serve_batch(run: Run) -> dict[str, float]:
    """The decorator of Ray Serve, without a cluster. The function joins and splits with numpy."""
    import uvloop
    from ray import serve

    _stand_in_a_replica()

    async def identity(requests: list[list[Array]]) -> list[list[Array]]:
        return _numpy_identity(requests)

    async def measure() -> dict[str, float]:
        batched = serve.batch(identity, max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.0)
        clock = _Clock(run)

        async def caller() -> None:
            tensors = run.request()
            while clock.goes_on(TURNS):
                for _ in range(TURNS):
                    await batched(tensors)

        await asyncio.gather(*[caller() for _ in range(run.standing)])
        return clock.figures()

    return uvloop.run(measure())


def serve_handle(run: Run) -> dict[str, float]:
    """The same through a deployment's handle, as users of Ray Serve call it, without HTTP.

    One replica. The processor time of the caller's process and of the replica's count, those of
    Ray's own processes do not.
    """
    import ray
    import uvloop
    from ray import serve

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    serve.start(proxy_location="Disabled")

    @serve.deployment(max_ongoing_requests=100 * MAX_BATCH)
    class Identity:
        @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.0)  # type: ignore[untyped-decorator]
        async def identity(self, requests: list[list[Array]]) -> list[list[Array]]:
            return _numpy_identity(requests)

        async def __call__(self, tensors: list[Array]) -> list[Array]:
            answer: list[Array] = await self.identity(tensors)
            return answer

        def process(self) -> int:
            return os.getpid()

    handle = serve.run(Identity.bind(), route_prefix=None)  # type: ignore[attr-defined]
    replica = int(handle.process.remote().result())

    async def measure() -> dict[str, float]:
        clock = _Clock(run, _with_process(replica))

        async def caller() -> None:
            tensors = run.request()
            while clock.goes_on(1):  # So slow that the callers would be counted all at once.
                await handle.remote(tensors)

        await asyncio.gather(*[caller() for _ in range(run.standing)])
        return clock.figures()

    try:
        return uvloop.run(measure())
    finally:
        ray.shutdown()


def batch_function(run: Run) -> dict[str, float]:
    """TensorFlow's `BatchFunction` in a graph that threads call."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    def identity(*tensors: Any) -> list[Any]:
        return [tf.identity(tensor) for tensor in tensors]

    spec = [tf.TensorSpec([None, 16], tf.float32)] * run.tensors
    batched = tf.nondifferentiable_batch_function(
        num_batch_threads=1,
        max_batch_size=MAX_BATCH,
        batch_timeout_micros=0,
        max_enqueued_batches=100,
    )
    graph = tf.function(batched(identity), input_signature=spec).get_concrete_function()
    tensors = [tf.constant(tensor) for tensor in run.request()]
    return _threads(run, lambda: graph(*tensors))


def litserve(run: Run) -> dict[str, float]:
    """LitServe's batching loop alone, between a queue and its answers: no HTTP, no processes."""
    from litserve import LitAPI
    from litserve.callbacks import CallbackRunner
    from litserve.loops.simple_loops import BatchedLoop

    class Identity(LitAPI):  # type: ignore[misc]
        def setup(self, device: object) -> None: ...

        def predict(self, x: list[Array]) -> list[Array]:
            return x

        def batch(self, inputs: list[list[Array]]) -> list[Array]:
            return [np.concatenate(column) for column in zip(*inputs, strict=True)]

        def unbatch(self, output: list[Array]) -> list[list[Array]]:
            return _rows(output)

    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    request = (0, 0, 0.0, run.request())
    clock = _Clock(run)

    class Callers:
        """Each asks again when it is answered, until the time is over."""

        def send(self, item: object, consumer_id: int) -> None:
            requests.put(request if clock.goes_on(1) else (None, None, None, None))

    api = Identity(max_batch_size=MAX_BATCH, batch_timeout=0.0)
    api.pre_setup()
    api.request_timeout = -1
    for _ in range(run.standing):
        requests.put(request)
    BatchedLoop().run_batched_loop(api, requests, Callers(), CallbackRunner())
    return clock.figures()


SUBJECTS: dict[str, Callable[[Run], dict[str, float]]] = {
    "shardserve": shardserve,
    "shardserve, by stream": shardserve_stream,
    "serve.batch": serve_batch,
    "serve.batch, by handle": serve_handle,
    "BatchFunction": batch_function,
    "LitServe": litserve,
}


class _Clock:
    """Counts answers: those of the time after a warm-up, by processor time and by time."""

    def __init__(self, run: Run, processor: Callable[[], float] = time.process_time) -> None:
        self._run = run
        self._processor = processor
        self._answers = self._counted = 0
        self._begins = time.perf_counter() + WARM_UP
        self._began: tuple[int, float, float] | None = None
        self._ended: tuple[int, float, float] | None = None

    def goes_on(self, answers: int) -> bool:
        """So many answers more. Whether to ask again."""
        self._answers += answers
        # A look at the clock costs as much as some of what is measured.
        if self._answers % (4 * TURNS):
            return self._ended is None
        now = time.perf_counter()
        if self._began is None:
            if now >= self._begins:
                self._began = (self._answers, now, self._processor())
        elif self._ended is None and now >= self._began[1] + self._run.seconds:
            self._ended = (self._answers, now, self._processor())
        return self._ended is None

    def figures(self) -> dict[str, float]:
        """Requests a second of processor time, and a second."""
        assert self._began is not None
        assert self._ended is not None
        answers, seconds, processor = (b - a for a, b in zip(self._began, self._ended, strict=True))
        return {"per_core": answers / processor, "per_second": answers / seconds}


def _with_process(number: int) -> Callable[[], float]:
    """The processor time of this process and of another one."""
    import psutil

    other = psutil.Process(number)

    def seconds() -> float:
        theirs = other.cpu_times()
        return time.process_time() + float(theirs.user + theirs.system)

    return seconds


def _threads(run: Run, ask: Callable[[], object]) -> dict[str, float]:
    clock = _Clock(run)

    def caller() -> None:
        while clock.goes_on(1):
            ask()

    threads = [threading.Thread(target=caller) for _ in range(run.standing)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return clock.figures()


def _stand_in_a_replica() -> None:
    """What the decorator asks about where it is: how many requests a replica may have at once."""
    from ray.serve import context
    from ray.serve._private.common import DeploymentID, ReplicaID
    from ray.serve._private.config import DeploymentConfig
    from ray.serve.schema import ReplicaRank

    context._set_internal_replica_context(  # noqa: SLF001 (there is no other way)
        replica_id=ReplicaID("replica", DeploymentID("identity")),
        servable_object=None,
        _deployment_config=DeploymentConfig(max_ongoing_requests=100 * MAX_BATCH),
        rank=ReplicaRank(rank=0, node_rank=0, local_rank=0),
        world_size=1,
    )


def _rows(columns: list[Array]) -> list[list[Array]]:
    """Each request's row of each column."""
    places = range(len(columns[0]))
    return [[column[place : place + 1] for column in columns] for place in places]


def _numpy_identity(requests: list[list[Array]]) -> list[list[Array]]:
    return _rows([np.concatenate(column) for column in zip(*requests, strict=True)])


def main(name: str, tensors: str, standing: str, seconds: str) -> None:
    """Measure one subject on one core, the memory as in the server."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    settle_memory()
    run = Run(int(tensors), int(standing), float(seconds))
    print(json.dumps(SUBJECTS[name](run)))


if __name__ == "__main__":
    main(*sys.argv[1:])
