"""The near end of the load generator: starts its process, hands it schedules, judges replies."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import msgpack
import numpy as np

from benchmarks.open_loop import NEVER_SENT
from benchmarks.workloads import Array, FloatArray, poisson_arrivals

WRONG = "wrong answer"


@dataclass(frozen=True)
class Target:
    """Where one kind of request goes. `path` is a URL's path, or "/SERVICE/METHOD"."""

    wire: Literal["rest", "grpc"]
    port: int
    path: str
    host: str = "127.0.0.1"
    connections: int = 256


@dataclass(frozen=True)
class Workload:
    """Encoded requests, the right answer to each, and how to read a reply.

    `decode` gives the predictions, float32 [n]; it may raise ValueError for what is no reply.
    """

    bodies: Sequence[bytes]
    answers: Sequence[Array]
    decode: Callable[[bytes], Array]

    def why_wrong(self, number: int, reply: bytes | str) -> str | None:
        """None if `reply` answers request `number` as TensorFlow does, to 1e-5 relative."""
        if isinstance(reply, str):
            return reply
        try:
            got = self.decode(reply)
        except ValueError as error:
            return f"unreadable reply: {error}"
        wanted = self.answers[number % len(self.answers)]
        if got.shape != wanted.shape or not np.allclose(got, wanted, rtol=1e-5, atol=1e-7):
            return f"{WRONG}: {got[:3]} instead of {wanted[:3]}"
        return None


@dataclass(frozen=True)
class Measured:
    """One schedule's outcome. Latencies in seconds; a request without an answer counts as inf."""

    latencies: FloatArray
    late: FloatArray
    seconds: float
    generator_cpu: float
    errors: int
    first_error: str = ""
    wrong_answer: str = ""

    @property
    def completed_rate(self) -> float:
        """Right answers a second."""
        return (len(self.latencies) - self.errors) / self.seconds

    def percentile(self, percent: float) -> float:
        """Of the latencies in seconds: the smallest that at least `percent` % do not exceed.

        NaN, which is within no bound, if nothing was sent.
        """
        if not len(self.latencies):
            return float("nan")
        return float(np.percentile(self.latencies, percent, method="inverted_cdf"))

    @property
    def lag_p99(self) -> float:
        """By how much the generator itself sent late, at the 99th percentile, in seconds."""
        return float(np.percentile(self.late, 99)) if len(self.late) else 0.0


class Generator:
    """A load generator's process, aimed at one target. A context manager: ends it on leaving."""

    def __init__(self, target: Target, workload: Workload) -> None:
        self._workload = workload
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.open_loop"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"GRPC_VERBOSITY": "ERROR"},
            # The scheduler shares the processor out by session first.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        # Raw: a buffered read would wait for more than there is.
        raw: Any = self._process.stdout
        self._answers = msgpack.Unpacker(raw.raw, read_size=1 << 20, max_buffer_size=1 << 30)
        self._ask(
            {
                "wire": target.wire,
                "host": target.host,
                "port": target.port,
                "path": target.path,
                "connections": target.connections,
                "bodies": list(workload.bodies),
            }
        )

    def open_loop(self, rate: float, seconds: float, give_up: float, seed: int) -> Measured:
        """Poisson arrivals of `rate` per second; stops once a request waited for `give_up`."""
        arrivals = poisson_arrivals(rate, seconds, seed)
        return self._judge(self._ask({"arrivals": arrivals.tobytes(), "give_up": give_up}))

    def closed_loop(self, clients: int, seconds: float) -> Measured:
        """`clients` requests always in flight."""
        return self._judge(self._ask({"clients": clients, "seconds": seconds}))

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(msgpack.packb(message))
        self._process.stdin.flush()
        answer: dict[str, Any] | None = next(self._answers, None)
        if answer is None:
            raise RuntimeError(f"the load generator ended with {self._process.wait()}")
        return answer

    def _judge(self, answer: dict[str, Any]) -> Measured:
        latencies = np.frombuffer(answer["latencies"]).copy()
        errors: list[str] = []
        for number, reply in enumerate(answer["replies"]):
            why = self._workload.why_wrong(number, reply)
            if why is not None:
                errors.append(why)
                latencies[number] = np.inf
        return Measured(
            latencies=latencies,
            late=np.frombuffer(answer["late"]),
            seconds=answer["seconds"],
            generator_cpu=answer["cpu_seconds"],
            errors=len(errors),
            first_error=next((why for why in errors if why != NEVER_SENT), *errors[:1] or [""]),
            wrong_answer=next((why for why in errors if why.startswith(WRONG)), ""),
        )

    def __enter__(self) -> Generator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
