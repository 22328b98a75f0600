"""Triton's Python backend through nvidia-pytriton, with both models in numpy.

Runs in an environment of its own, so it imports nothing of this project:

    python triton.py HTTP_PORT GRPC_PORT WIDTH

Prints "ready" when it serves.
"""

# mypy: disable-error-code="import-not-found, untyped-decorator"

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


@batch
def infer(x: Any) -> dict[str, Any]:
    return {"y": x / 2 + 2}


def main(http_port: int, grpc_port: int, width: int) -> None:
    config = TritonConfig(
        http_port=http_port, grpc_port=grpc_port, http_address="127.0.0.1", log_verbose=0
    )
    with Triton(config=config) as triton:
        for name, shape in (("half_plus_two", (1,)), ("vector_1000", (width,))):
            tensor = Tensor(name="x", dtype=np.float32, shape=shape)
            triton.bind(
                model_name=name,
                infer_func=infer,
                inputs=[tensor],
                outputs=[Tensor(name="y", dtype=np.float32, shape=shape)],
                config=ModelConfig(
                    max_batch_size=128, batcher=DynamicBatcher(max_queue_delay_microseconds=0)
                ),
            )
        triton.run()
        print("ready", flush=True)
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        stop.wait()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
