"""LSTM requests of long-tailed lengths: batched at each step, padded to the longest, one by one.

A section of `python -m benchmarks batching`. One model, a Keras LSTM layer that answers with its
last output, and requests of one sequence each, whose lengths are lognormal (median 40, sigma 1;
mean 64, 99 of 100 below 410), clipped to 1 to 512. Four ways to serve it in one process:

- `steps`: the layer's cell is a signature, declared as the step of a sequence;
- `loop`: the layer's own loop is lifted, and nothing is declared;
- `padded`: whole requests are batched and padded to the longest (`pad_variable_length_inputs`);
  the signature takes each row's length and masks what is behind it, so that answers are right;
- `alone`: each request runs by itself.

Load is open-loop (Poisson), latency counts from the time a request was meant to be sent. A
subject's figure is the highest rate at which 99 of 100 requests take at most the bound. `padded` is
given the best of several batch sizes.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from benchmarks.batching_section import Section
from benchmarks.report import Claim, Options, Row
from benchmarks.serving_search import Bracket
from benchmarks.workloads import Array, IntArray, poisson_arrivals
from shardserve.batching.parameters import BatchingParameters
from shardserve.router.batched import BatchedServable
from shardserve.router.sequences import SequenceServable
from shardserve.router.servable import RequestContext, Servable
from shardserve.router.session import Parallelism, StageThreads, start_tensorflow
from shardserve.router.sharded import load_sharded
from shardserve.router.whole import WholeServable, load_whole
from shardserve.shards.cut.planning import plan_model
from shardserve.shards.model import PlanOptions
from shardserve.shards.sequences_form import LoopEntry, SequenceEntry, StepBatching
from shardserve.shards.stages import Stages

CLAIM = "batching.steps_vs_padded"
MEDIAN, SIGMA, LONGEST = 40, 1.0, 512
UNITS, WIDTH = 512, 128
#: Rows of the running batch.
STEP_ROWS = 32
PADDED_ROWS = (8, 16, 32)
DRAWN = 4096

#: Sends one sequence [1, steps, WIDTH] and returns its answer [1, UNITS].
Send = Callable[[Array], Awaitable[Array]]


@dataclass(frozen=True)
class Plan:
    """What to measure: trials of `seconds` each, `tries` to find a rate; `bound` in seconds."""

    units: int
    width: int
    seconds: float
    tries: int
    bound: float


@dataclass(frozen=True)
class Found:
    """What one subject holds: a rate per second, the p99 there, and its most in a closed loop."""

    rate: float
    p99: float
    capacity: float


def measure(options: Options) -> Section:
    """The section.

    `--set sequence_seconds=S` changes the length of a trial, `--set sequence_bound=S` the bound.
    """
    seconds = float(options.settings.get("sequence_seconds", 1.0 if options.quick else 7.0))
    bound = float(options.settings.get("sequence_bound", 0.6))
    units, width = (32, 8) if options.quick else (UNITS, WIDTH)
    plan = Plan(units, width, seconds, 2 if options.quick else 5, bound)
    start_tensorflow(Parallelism())
    with tempfile.TemporaryDirectory() as directory, _threads() as threads:
        path = Path(directory) / "1"
        export(path, plan)
        whole = load_whole("lstm", 1, path, threads)
        return uvloop.run(_measure(plan, whole, looped(path, threads), threads))


async def _measure(plan: Plan, whole: WholeServable, loop: Send, threads: StageThreads) -> Section:
    load = _Load(plan)
    every = {
        "steps": steps(whole, threads),
        "loop": loop,
        **{f"padded to {rows}": padded(whole, rows) for rows in PADDED_ROWS},
        "alone": alone(whole),
    }
    found = await load.find(every)
    best = max(PADDED_ROWS, key=lambda rows: found[f"padded to {rows}"].rate)
    theirs = found[f"padded to {best}"]
    rows = []
    for name, one in found.items():
        metric = f"requests a second within a p99 of {plan.bound * 1e3:.0f} ms"
        rows.append(Row(f"LSTM, {name}", "open loop", metric, "1/s", one.rate))
        rows.append(Row(f"LSTM, {name}", "open loop", "p99 at that rate", "ms", 1e3 * one.p99))
        rows.append(Row(f"LSTM, {name}", "64 clients", "requests a second", "1/s", one.capacity))
    ratio = found["steps"].rate / theirs.rate if theirs.rate else None
    note = f"against padded batches of up to {best}"
    return Section(rows, [Claim(CLAIM, ratio, 2.0, note=note)], [_note(plan, load.lengths)])


def steps(whole: WholeServable, threads: StageThreads) -> Send:
    """Batched at each step."""
    entry = SequenceEntry.model_validate(
        {
            "step": "step",
            "state": {"h": "new_h", "c": "new_c"},
            "per_step": {"x": "x"},
            "returns": {"new_h": "last"},
            "batching": {"max_batch_size": STEP_ROWS, "max_enqueued_batches": 1000},
        }
    )
    servable = SequenceServable(whole, whole, {"encode": entry}, threads)
    return _sender(servable, "encode", "new_h")


def looped(path: Path, threads: StageThreads) -> Send:
    """Batched at each step of the model's own loop. Blocks while it loads."""
    batching = StepBatching(max_batch_size=STEP_ROWS, max_enqueued_batches=1000)
    stages = Stages(loops={"serving_default": LoopEntry(batching=batching)})
    plan = plan_model("lstm", 1, path, PlanOptions(threshold=1 << 40))
    servable = load_sharded(replace(plan, stages=stages), [], threads)
    return _sender(servable, "serving_default", "output")


def padded(whole: WholeServable, rows: int) -> Send:
    """Batched whole."""
    parameters = BatchingParameters(
        max_batch_size=rows, max_enqueued_batches=1000, pad_variable_length_inputs=True
    )
    return _sender(BatchedServable(whole, parameters), "masked", "output", with_lengths=True)


def alone(whole: WholeServable) -> Send:
    """Not batched."""
    return _sender(whole, "serving_default", "output")


def _sender(servable: Servable, signature: str, output: str, *, with_lengths: bool = False) -> Send:
    async def send(x: Array) -> Array:
        inputs = {"x": x}
        if with_lengths:
            inputs["lengths"] = np.array([x.shape[1]])
        context = RequestContext("benchmark", time.monotonic() + 60.0)
        return (await servable.run(signature, inputs, [output], context))[output]

    return send


class _Load:
    """The requests, and how they are sent."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        rng = np.random.default_rng(1)
        self.lengths = lengths(rng, DRAWN)
        self._pool = rng.standard_normal((1, 4 * LONGEST, plan.width), np.float32)
        self._expected: dict[int, Array] = {}

    async def find(self, subjects: Mapping[str, Send]) -> dict[str, Found]:
        """The highest rate that each holds, by bisection from what it does in a closed loop.

        They take turns, so that a machine that slows down or speeds up favours none.
        """
        capacity: dict[str, float] = {}
        held: dict[str, dict[float, float]] = {name: {} for name in subjects}
        brackets: dict[str, Bracket] = {}
        for name, send in subjects.items():
            await self._check(send)
            capacity[name] = await self.closed(send)
            brackets[name] = Bracket.around(capacity[name])
        for number in range(self._plan.tries):
            for name, send in subjects.items():
                rate = brackets[name].next_rate()
                held[name][rate] = p99 = await self._p99(send, rate, number)
                brackets[name] = brackets[name].after(rate, p99 <= self._plan.bound)
        return {
            name: Found(one.holds, held[name].get(one.holds, float("nan")), capacity[name])
            for name, one in brackets.items()
        }

    async def closed(self, send: Send, clients: int = 64) -> float:
        """Requests a second with so many always under way."""
        numbers = iter(range(1 << 30))
        until = time.monotonic() + self._plan.seconds / 2
        done = 0

        async def client() -> None:
            nonlocal done
            while time.monotonic() < until:
                await send(self._request(next(numbers)))
                done += time.monotonic() < until

        await asyncio.gather(*[client() for _ in range(clients)])
        return done / (self._plan.seconds / 2)

    async def _p99(self, send: Send, rate: float, seed: int) -> float:
        """Of the latencies at a rate, in seconds; infinite where a request failed."""
        arrivals = poisson_arrivals(rate, self._plan.seconds, seed)
        latencies = np.full(len(arrivals), np.inf)
        start = time.monotonic()

        async def one(number: int, due: float) -> None:
            await send(self._request(number + 1000 * seed))
            latencies[number] = time.monotonic() - due

        tasks = []
        for number, arrival in enumerate(arrivals):
            due = start + arrival
            if (early := due - time.monotonic()) > 0:
                await asyncio.sleep(early)
            tasks.append(asyncio.ensure_future(one(number, due)))
        await asyncio.gather(*tasks)
        return float(np.percentile(latencies, 99, method="inverted_cdf"))

    def _request(self, number: int) -> Array:
        length = int(self.lengths[number % DRAWN])
        start = number % (3 * LONGEST)
        return self._pool[:, start : start + length]

    async def _check(self, send: Send) -> None:
        """Refuse to time what answers otherwise than the first subject."""
        answers = await asyncio.gather(*[send(self._request(number)) for number in range(20)])
        for number, answer in enumerate(answers):
            expected = self._expected.setdefault(number, answer)
            np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)


def lengths(rng: np.random.Generator, count: int) -> IntArray:
    """Long-tailed lengths."""
    drawn = rng.lognormal(np.log(MEDIAN), SIGMA, count)
    return np.clip(np.rint(drawn), 1, LONGEST).astype(np.int64)


def export(path: Path, plan: Plan) -> None:
    """The model: `serving_default`, `masked` (each row has a length), and `step`."""
    import keras
    import tensorflow as tf

    layer = keras.layers.LSTM(plan.units)
    layer.build((None, None, plan.width))
    some = tf.TensorSpec([None, None, plan.width], tf.float32, name="x")
    lengths_form = tf.TensorSpec([None], tf.int64, name="lengths")
    row = tf.TensorSpec([None, plan.width], tf.float32, name="x")
    states = [tf.TensorSpec([None, plan.units], tf.float32, name=name) for name in "hc"]

    def whole(x: Any) -> dict[str, Any]:
        return {"output": layer(x)}

    def masked(x: Any, lengths: Any) -> dict[str, Any]:
        return {"output": layer(x, mask=tf.sequence_mask(lengths, tf.shape(x)[1]))}

    def step(x: Any, h: Any, c: Any) -> dict[str, Any]:
        _, (new_h, new_c) = layer.cell(x, [h, c])
        return {"new_h": new_h, "new_c": new_c}

    module = tf.Module()
    module.kept = [variable.value for variable in layer.variables]
    signatures = {
        "serving_default": tf.function(whole, input_signature=[some]),
        "masked": tf.function(masked, input_signature=[some, lengths_form]),
        "step": tf.function(step, input_signature=[row, *states]),
    }
    tf.saved_model.save(module, str(path), signatures=signatures)


@contextmanager
def _threads() -> Iterator[StageThreads]:
    threads = StageThreads()
    yield threads
    threads.close()


def _note(plan: Plan, drawn: IntArray) -> str:
    return (
        f"LSTM of {plan.units} units over {plan.width} numbers a step; {DRAWN} lengths with mean "
        f"{drawn.mean():.0f}, median {np.median(drawn):.0f}, p99 {np.percentile(drawn, 99):.0f}; "
        f"running batch of {STEP_ROWS}; trials of "
        f"{plan.seconds:g} s, {plan.tries} for a rate; everything in one process, without a wire."
    )
