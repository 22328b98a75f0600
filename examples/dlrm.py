"""Export the model that `make serve` serves: a DLRM with the tables of MLPerf's DLRM-v2.

The 26 tables keep the ratios between their rows, which are all divided by one factor; widths and
multi-hot sizes are the benchmark's own. The weights are random, the answers TensorFlow's.

    python -m examples.dlrm --out .cache/dlrm

writes `.cache/dlrm/1/`, a SavedModel, and into its `assets.extra/` a REST request and the reply
that TensorFlow gives for the uncut model. A model built before with the same parameters is kept.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    import tensorflow as tf

Array = npt.NDArray[Any]

# The rows and multi-hot sizes of MLPerf's DLRM-v2 (dcnv2) model.
# fmt: off
MLPERF_ROWS = (
    40_000_000, 39_060, 17_295, 7_424, 20_265, 3, 7_122, 1_543, 63, 40_000_000,
    3_067_956, 405_282, 10, 2_209, 11_938, 155, 4, 976, 14, 40_000_000,
    40_000_000, 40_000_000, 590_152, 12_973, 108, 36,
)
MLPERF_HOTS = (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1)
# fmt: on

#: Divides every table's rows: 0.55 GB are left of the benchmark's 104.5 GB.
DEFAULT_SCALE = 190
#: Rows that are drawn and written at once.
CHUNK_ROWS = 1 << 15
VERSION = "1"
EXTRA = "assets.extra"


@dataclass(frozen=True)
class DlrmConfig:
    """The shape of a DLRM. `rows[t]` and `hots[t]` are table t's rows and ids per example."""

    rows: tuple[int, ...]
    hots: tuple[int, ...]
    dim: int = 128
    dense: int = 13
    bottom: tuple[int, ...] = (512, 256, 128)
    cross_layers: int = 3
    cross_rank: int = 512
    top: tuple[int, ...] = (1024, 1024, 512, 256, 1)

    @property
    def table_bytes(self) -> int:
        """Bytes of all tables together, in fp32."""
        return sum(self.rows) * self.dim * 4

    @property
    def interaction(self) -> int:
        """Width of the vector that the cross layers see: the dense one and one for each table."""
        return (len(self.rows) + 1) * self.dim


def dlrm_config(scale: int = DEFAULT_SCALE) -> DlrmConfig:
    """MLPerf's DLRM-v2 with each table's rows divided by `scale`, rounded up."""
    return DlrmConfig(rows=tuple(-(-rows // scale) for rows in MLPERF_ROWS), hots=MLPERF_HOTS)


def tiny_config(scale: int = 40_000) -> DlrmConfig:
    """The same tables for tests: narrow towers, rows of 16, under 1 MB at the default scale."""
    return replace(
        dlrm_config(scale), dim=16, bottom=(32, 16), cross_rank=8, cross_layers=2, top=(32, 16, 1)
    )


def example_features(config: DlrmConfig, batch: int, seed: int) -> dict[str, Array]:
    """`batch` random examples: `dense` [batch, dense], `sparse_T` int64 [batch, hots[T]]."""
    rng = np.random.default_rng([seed, 1])
    features: dict[str, Array] = {
        "dense": rng.random((batch, config.dense), dtype=np.float32).round(3)
    }
    for table, (rows, hot) in enumerate(zip(config.rows, config.hots, strict=True)):
        features[f"sparse_{table}"] = rng.integers(0, rows, (batch, hot), dtype=np.int64)
    return features


def export(config: DlrmConfig, out: Path, seed: int = 0) -> Path:
    """Build version 1 below `out` and return its directory; do nothing if it is there already.

    A model with other parameters is replaced. The directory appears whole or not at all.
    """
    version = out / VERSION
    parameters = json.loads(json.dumps(asdict(config) | {"seed": seed}))
    if _parameters_of(version) == parameters:
        return version
    building = out / ".building"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    _write(config, building, seed)
    _write_json(building / EXTRA / "parameters.json", parameters)
    shutil.rmtree(version, ignore_errors=True)
    building.rename(version)
    return version


def _parameters_of(version: Path) -> object:
    path = version / EXTRA / "parameters.json"
    return json.loads(path.read_text()) if path.is_file() else None


def _write(config: DlrmConfig, building: Path, seed: int) -> None:
    tf = quiet_tensorflow()
    module, predict = _build(tf, config, seed)
    tf.saved_model.save(module, str(building), signatures=predict)
    features = example_features(config, batch=2, seed=seed)
    prediction = predict(**{name: tf.constant(value) for name, value in features.items()})
    _write_json(building / EXTRA / "predict_request.json", {"instances": _rows(features)})
    _write_json(
        building / EXTRA / "predict_reply.json",
        {"predictions": [shortest(row) for row in prediction["prediction"].numpy()]},
    )


def _build(tf: Any, config: DlrmConfig, seed: int) -> tuple[tf.Module, Any]:
    rng = np.random.default_rng([seed, 2])
    module = tf.Module()
    module.tables = list(_tables(tf, config, seed))
    module.bottom = _mlp(tf, rng, "bottom", (config.dense, *config.bottom))
    module.cross = [_cross_layer(tf, rng, config, layer) for layer in range(config.cross_layers)]
    module.top = _mlp(tf, rng, "top", (config.interaction, *config.top))

    def predict(**features: Any) -> dict[str, Any]:
        vectors = [_perceptron(tf, module.bottom, features["dense"], tf.nn.relu)]
        for number, table in enumerate(module.tables):
            vectors.append(tf.reduce_sum(tf.gather(table, features[f"sparse_{number}"]), axis=1))
        crossed = first = tf.concat(vectors, axis=1)
        for down, up, bias in module.cross:
            crossed = first * (tf.matmul(tf.matmul(crossed, down), up) + bias) + crossed
        return {"prediction": tf.sigmoid(_perceptron(tf, module.top, crossed, last=tf.identity))}

    return module, tf.function(predict).get_concrete_function(**_specs(tf, config))


def _specs(tf: Any, config: DlrmConfig) -> dict[str, Any]:
    specs = {"dense": tf.TensorSpec([None, config.dense], tf.float32, name="dense")}
    for table, hot in enumerate(config.hots):
        name = f"sparse_{table}"
        specs[name] = tf.TensorSpec([None, hot], tf.int64, name=name)
    return specs


def _tables(tf: Any, config: DlrmConfig, seed: int) -> Iterator[tf.Variable]:
    """The tables, one after the other, drawn chunk by chunk: no second copy of one ever exists.

    Uniform within 1 / sqrt(dim). The reference draws within 1 / sqrt(rows), so small that a wrong
    row of a big table would hardly move the prediction.
    """
    bound = np.float32(config.dim**-0.5)
    with _progress() as progress:
        task = progress.add_task("building the tables", total=config.table_bytes)
        for number, rows in enumerate(config.rows):
            rng = np.random.default_rng([seed, 0, number])
            table = tf.Variable(tf.zeros([rows, config.dim]), name=f"table_{number}")
            for start in range(0, rows, CHUNK_ROWS):
                stop = min(start + CHUNK_ROWS, rows)
                chunk = rng.random((stop - start, config.dim), dtype=np.float32)
                table[start:stop].assign((chunk * 2 - 1) * bound)
                progress.advance(task, chunk.nbytes)
            yield table


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn()
    )


def _dense(tf: Any, rng: np.random.Generator, name: str, fan_in: int, fan_out: int) -> tf.Variable:
    weights = rng.standard_normal((fan_in, fan_out), dtype=np.float32) * np.sqrt(2 / fan_in)
    return tf.Variable(weights.astype(np.float32), name=name)


def _mlp(tf: Any, rng: np.random.Generator, name: str, widths: tuple[int, ...]) -> list[Any]:
    return [
        (
            _dense(tf, rng, f"{name}_{layer}_kernel", fan_in, fan_out),
            tf.Variable(tf.zeros([fan_out]), name=f"{name}_{layer}_bias"),
        )
        for layer, (fan_in, fan_out) in enumerate(pairwise(widths))
    ]


def _cross_layer(tf: Any, rng: np.random.Generator, config: DlrmConfig, layer: int) -> Any:
    """One low-rank cross layer of DCN-v2: x0 * (x down up + bias) + x."""
    return (
        _dense(tf, rng, f"cross_{layer}_down", config.interaction, config.cross_rank),
        _dense(tf, rng, f"cross_{layer}_up", config.cross_rank, config.interaction),
        tf.Variable(tf.zeros([config.interaction]), name=f"cross_{layer}_bias"),
    )


def _perceptron(tf: Any, layers: list[Any], x: Any, last: Any) -> Any:
    for kernel, bias in layers[:-1]:
        x = tf.nn.relu(tf.matmul(x, kernel) + bias)
    kernel, bias = layers[-1]
    return last(tf.matmul(x, kernel) + bias)


def _rows(features: Mapping[str, Array]) -> list[dict[str, Any]]:
    """The REST row form: one object for each example."""
    batch = len(features["dense"])
    return [
        {
            name: shortest(value[i]) if value.dtype == np.float32 else value[i].tolist()
            for name, value in features.items()
        }
        for i in range(batch)
    ]


def shortest(values: Array) -> list[float]:
    """Floats with the fewest digits that give the same fp32 back."""
    return [float(str(value)) for value in values]


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value) + "\n")


def quiet_tensorflow() -> Any:
    """TensorFlow, imported without the lines that it logs while starting."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _stderr_discarded():
        import tensorflow as tf
    tf.get_logger().setLevel(logging.ERROR)
    return tf


@contextmanager
def _stderr_discarded() -> Iterator[None]:
    """TensorFlow's C++ writes to the descriptor before it reads the wanted log level."""
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Export the example DLRM as a SavedModel.")
    parser.add_argument("--out", type=Path, required=True, help="the model's base path")
    parser.add_argument(
        "--scale", type=int, default=DEFAULT_SCALE, help="divides each table's rows"
    )
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    config = dlrm_config(flags.scale)
    version = export(config, flags.out, flags.seed)
    print(f"{version}: {len(config.rows)} tables, {config.table_bytes / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
