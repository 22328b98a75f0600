"""The smallest models worth a server: half-plus-two, and the same of vectors of 1,000 numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from benchmarks.workloads import FloatArray
from examples.dlrm import quiet_tensorflow

WIDTH = 1000


@dataclass(frozen=True)
class Arithmetic:
    """y = x / 2 + 2 for one example of `x`, of `shape` without the batch's dimension."""

    name: str
    shape: tuple[int, ...]

    @property
    def x(self) -> FloatArray:
        """The example that is sent."""
        count = int(np.prod(self.shape, dtype=int))
        return np.linspace(0.0, 1.0, count).round(4).reshape((1, *self.shape))

    @property
    def body(self) -> bytes:
        """The REST request, in row form."""
        return orjson.dumps({"instances": self.x.tolist()})

    def is_right(self, y: Any) -> bool:
        """Whether the predictions are the model's, to float32."""
        return bool(np.allclose(np.asarray(y, np.float64).reshape(self.x.shape), self.x / 2 + 2))

    def export(self, base_path: Path) -> Path:
        """Write version 1 below `base_path`, if it is not there; the base path."""
        if not (base_path / "1" / "saved_model.pb").exists():
            tf = quiet_tensorflow()
            module = tf.Module()
            spec = tf.TensorSpec([None, *self.shape], tf.float32, "x")
            half = tf.function(lambda x: {"y": x / 2.0 + 2.0}, input_signature=[spec])
            tf.saved_model.save(module, str(base_path / "1"), signatures=half)
        return base_path


HALF_PLUS_TWO = Arithmetic("half_plus_two", ())
VECTOR = Arithmetic("vector_1000", (WIDTH,))
MODELS = (HALF_PLUS_TWO, VECTOR)
