"""Triton's Python backend through nvidia-pytriton, as its user would write it.

Runs in an environment of its own, so it imports nothing of this project:

    python triton.py --model=DIR/1 --http_port=P --grpc_port=Q --delays_us=0,2000

Binds the model once for each queue delay, as `dlrm_DELAY`, all over one loaded SavedModel, so
that one start is enough to find the best. Prints "ready" when it serves.
"""

# mypy: disable-error-code="import-not-found, untyped-decorator"

from __future__ import annotations

import argparse
import os
import signal
import threading
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

MAX_BATCH_SIZE = 512
NUMPY_TYPES = {tf.float32: np.float32, tf.int64: np.int64}


class Model:
    """A SavedModel's default signature, called with whole batches."""

    def __init__(self, directory: Path) -> None:
        self._loaded = tf.saved_model.load(str(directory))
        self._signature = self._loaded.signatures["serving_default"]
        self._specs = self._signature.structured_input_signature[1]

    def inputs(self) -> list[Tensor]:
        """What Triton has to know of each input; the batch's dimension is not part of it."""
        return [
            Tensor(name=name, dtype=NUMPY_TYPES[spec.dtype], shape=tuple(spec.shape[1:]))
            for name, spec in self._specs.items()
        ]

    @batch
    def infer(self, **inputs: Any) -> dict[str, Any]:
        """Called by pytriton with the requests of a batch concatenated."""
        outputs = self._signature(**{name: tf.constant(value) for name, value in inputs.items()})
        return {name: value.numpy() for name, value in outputs.items()}

    def warm_up(self, batch_size: int) -> None:
        """Run once, so that the first client does not wait for TensorFlow to settle."""
        self._signature(
            **{
                name: tf.zeros([batch_size, *spec.shape[1:]], spec.dtype)
                for name, spec in self._specs.items()
            }
        )


def bind(triton: Triton, model: Model, delay_us: int) -> None:
    """Serve the model under a dynamic batcher that waits up to `delay_us` for a batch to fill."""
    triton.bind(
        model_name=f"dlrm_{delay_us}",
        infer_func=model.infer,
        inputs=model.inputs(),
        outputs=[Tensor(name="prediction", dtype=np.float32, shape=(1,))],
        config=ModelConfig(
            max_batch_size=MAX_BATCH_SIZE,
            batcher=DynamicBatcher(max_queue_delay_microseconds=delay_us),
        ),
        strict=False,
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Serve a DLRM by Triton.")
    parser.add_argument("--model", type=Path, required=True, help="the SavedModel's directory")
    parser.add_argument("--http_port", type=int, required=True)
    parser.add_argument("--grpc_port", type=int, required=True)
    parser.add_argument("--delays_us", required=True, help="comma-separated")
    flags = parser.parse_args()
    model = Model(flags.model)
    for batch_size in (1, 32, 270):
        model.warm_up(batch_size)
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=flags.http_port,
        grpc_address="127.0.0.1",
        grpc_port=flags.grpc_port,
        allow_metrics=False,
    )
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with Triton(config=config) as triton:
        for delay_us in flags.delays_us.split(","):
            bind(triton, model, int(delay_us))
        triton.run()
        print("\nready", flush=True)
        ended.wait()


if __name__ == "__main__":
    main()
