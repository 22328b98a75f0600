"""A text classifier with uneven stages: costly, irregular preprocessing before a dense tower.

Documents are normalised and stripped of private data by regular expressions, and cut into character
n-grams, which are hashed and looked up in one table (the ids stage: its cost grows with a
document's length, and a batch of documents costs what they cost one by one); the mean of their rows
goes through a tower of wide layers (the dense stage: mostly reading its weights, so a batch costs
little more than one example).
The architecture is that of fastText (A. Joulin et al., "Bag of tricks for efficient text
classification", 2016) with a tower on top; lengths are lognormal, as those of web pages are.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.workloads import Array
from examples.dlrm import quiet_tensorflow

PARAMETERS = "parameters.json"
#: What is not to be learnt from documents: numbers, names and addresses of people, by their form.
PRIVATE = (
    r"\+?[0-9]{1,3}[ .-][0-9]{2,4}[ .-][0-9]{3,4}[ .-][0-9]{3,4}",
    r"[0-9]{4}[ -][0-9]{4}[ -][0-9]{4}[ -][0-9]{4}",
    r"[0-9]{3}-[0-9]{2}-[0-9]{4}",
    r"[a-z]{2}[0-9]{2}( ?[a-z0-9]{4}){3,7}",
    r"[0-9]{1,3}(\.[0-9]{1,3}){3}",
    r"([0-9a-f]{2}:){5}[0-9a-f]{2}",
    r"([0-9a-f]{1,4}:){3,7}[0-9a-f]{1,4}",
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    r"[0-9]{1,2}[./-][0-9]{1,2}[./-][0-9]{2,4}",
    r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]* [0-9]{1,2},? [0-9]{4}",
    r"[0-9]+ [a-z]+ (street|st|road|rd|avenue|ave|lane|ln|drive|dr)",
    r"(mr|mrs|ms|dr|prof)\. [a-z]+( [a-z]+)?",
    r"@[a-z0-9_]{2,30}",
    r"#[a-z0-9_]{2,50}",
    r"[$€£] ?[0-9]+([.,][0-9]+)*",
    r"(passport|licen[cs]e|account|iban|swift)( no| number|:)? [a-z0-9]{5,20}",
    r"[a-z]:\\[a-z0-9\\._-]+",
    r"/(home|users|var|etc)/[a-z0-9/._-]+",
    r"(bearer|token|key|secret)[=: ]+[a-z0-9._-]{8,}",
    r"-?[0-9]{1,3}\.[0-9]{4,}, ?-?[0-9]{1,3}\.[0-9]{4,}",
)
#: A scraper's usual chores, in its usual order.
NORMALISE = (
    (r"<(script|style)[^>]*>[^<]*</(script|style)>", " "),
    (r"<[^>]*>", " "),
    (r"&[a-z]+;", " "),
    (r"https?://[^\s]+", " url "),
    (r"[^\s@]+@[^\s@]+\.[^\s@]+", " mail "),
    *((pattern, " private ") for pattern in PRIVATE),
    (r"[0-9]+", "0"),
    (r"[^a-z0 ]+", " "),
    (r"\b(the|a|an|of|and|or|to|in|is|it|that|this)\b", " "),
    (r"\s+", " "),
)
LETTERS = "etaoinshrdlucmfwypvbgkqjxz"


@dataclass(frozen=True)
class UnevenConfig:
    """`grams` n-grams of a document are looked up in a table [rows, dim]; `tower` are widths."""

    rows: int = 200_000
    dim: int = 64
    grams: int = 512
    tower: tuple[int, ...] = (2048, 2048, 2048, 2048, 1)
    seed: int = 0


@dataclass(frozen=True)
class Documents:
    """Documents of words, lognormal in number: `median` words, `sigma` of the logarithm.

    Document n is a function of the seed and n alone.
    """

    median: int = 2000
    sigma: float = 0.6
    most: int = 16000
    seed: int = 0

    def query(self, number: int, size: int = 1) -> dict[str, Array]:
        """`text` [size], objects of bytes."""
        rng = np.random.default_rng([self.seed, number])
        words = self.median * np.exp(self.sigma * rng.standard_normal(size))
        counts = np.minimum(words.astype(int) + 1, self.most)
        texts = np.empty(size, object)
        texts[:] = [_document(rng, int(count)) for count in counts]
        return {"text": texts}


def _document(rng: np.random.Generator, words: int) -> bytes:
    """Words of 1 to 9 letters, one in twenty of them markup, an address or a number."""
    letters = np.array(list(LETTERS))
    chance = 1.0 / np.arange(1, len(letters) + 1)
    drawn = "".join(rng.choice(letters, 9 * words, p=chance / chance.sum()))
    lengths = rng.integers(1, 10, words)
    found = [drawn[9 * i : 9 * i + length] for i, length in enumerate(lengths)]
    for place in np.flatnonzero(rng.random(words) < 0.05):
        found[place] = ("<b>", "&amp;", "https://example.com/a", "me@example.com", "1984")[
            place % 5
        ]
    return " ".join(found).encode()


def export(config: UnevenConfig, out: Path) -> Path:
    """Build version 1 below `out` and return its directory; keep one of the same parameters."""
    version = out / "1"
    parameters = json.loads(json.dumps(asdict(config)))
    kept = version / "assets.extra" / PARAMETERS
    if kept.is_file() and json.loads(kept.read_text()) == parameters:
        return version
    shutil.rmtree(version, ignore_errors=True)
    _write(config, version)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(parameters))
    return version


def _write(config: UnevenConfig, version: Path) -> None:
    tf = quiet_tensorflow()
    rng = np.random.default_rng(config.seed)
    module = tf.Module()
    table = rng.standard_normal((config.rows, config.dim), np.float32)
    module.table = tf.Variable(table, name="ngrams")
    module.layers = [
        tf.Variable(
            rng.standard_normal(shape, np.float32) * (2 / shape[0]) ** 0.5, name=f"w{layer}"
        )
        for layer, shape in enumerate(pairwise((config.dim, *config.tower)))
    ]

    def predict(text: Any) -> dict[str, Any]:
        vector = tf.reduce_mean(tf.gather(module.table, _grams(tf, text, config)), axis=1)
        for weights in module.layers[:-1]:
            vector = tf.nn.relu(vector @ weights)
        return {"prediction": tf.squeeze(tf.sigmoid(vector @ module.layers[-1]), 1)}

    signature = tf.function(predict, input_signature=[tf.TensorSpec([None], tf.string, "text")])
    tf.saved_model.save(module, str(version), signatures=signature)


def _grams(tf: Any, text: Any, config: UnevenConfig) -> Any:
    """The rows of each document's first n-grams, int64 [n, grams]; short ones are padded."""
    text = tf.strings.lower(text)
    for pattern, instead in NORMALISE:
        text = tf.strings.regex_replace(text, pattern, instead)
    padded = tf.strings.join([text, " " * (config.grams + 4)])
    places = np.arange(config.grams, dtype=np.int32)[None, :]
    grams = tf.strings.substr(tf.expand_dims(padded, 1), places, np.full_like(places, 4))
    return tf.strings.to_hash_bucket_fast(grams, config.rows)
