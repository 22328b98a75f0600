"""A Keras model whose parts are named as regions: preprocessing, and a tower behind it."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import yaml

from shardserve.shards.cut.saved_model import inline
from tests.saved_models import Feeds

WORDS = ("and", "or", "xor", "not")
CLEAN, TOWER = "clean", "tower"


def export(path: Path, seed: int = 5) -> None:
    """Strings are looked up and numbers normalised; then three dense layers."""
    keras.utils.set_random_seed(seed)
    words = keras.Input((), dtype="string", name="words")
    x = keras.Input((4,), name="x")
    known = keras.layers.StringLookup(vocabulary=list(WORDS), output_mode="one_hot")(words)
    scaled = keras.layers.Normalization(mean=[1.0, 2.0, 3.0, 4.0], variance=[4.0] * 4)(x)
    joined = keras.layers.Concatenate(name="joined")([known, scaled])
    hidden = keras.layers.Dense(8, "relu", name="hidden")(joined)
    scores = keras.layers.Dense(3, name="scores", bias_initializer="glorot_normal")(hidden)
    keras.Model([words, x], keras.layers.Softmax(name="best")(scores)).export(
        str(path), verbose=False
    )


def feeds(rows: int, seed: int) -> Feeds:
    rng = np.random.default_rng(seed)
    words = np.array([rng.choice([*WORDS, "none"]).encode() for _ in range(rows)], object)
    return {"words": words, "x": rng.normal(size=(rows, 4)).astype(np.float32)}


def tensors_ending(directory: Path, *endings: str) -> list[str]:
    """The tensors of `serving_default` in the inlined graph whose operations' names end so."""
    model, graph = inline(directory)
    (output,) = model.signatures["serving_default"].outputs.values()
    call = output.name.partition(":")[0]
    names = [node.name for node in graph.node if node.name.startswith(f"{call}/")]
    return [next(f"{n}:0" for n in names if n.endswith(f"/{ending}")) for ending in endings]


def write_stages(
    path: Path,
    directory: Path,
    clean: dict[str, object] | None = None,
    tower: dict[str, object] | None = None,
) -> Path:
    """A stages file with both regions; what it says of each besides inputs and outputs."""
    joined, scores = tensors_ending(directory, "joined_1/concat", "scores_1/BiasAdd")
    inputs = ["serving_default_words:0", "serving_default_x:0"]
    regions = {
        CLEAN: {"inputs": inputs, "outputs": [joined], **(clean or {})},
        TOWER: {"inputs": [joined], "outputs": [scores], **(tower or {})},
    }
    path.write_text(yaml.safe_dump({"version": 1, "regions": regions}))
    return path
