"""A text classifier with uneven stages: costly, irregular preprocessing before a dense tower.

Documents are normalised and stripped of private data by regular expressions, and cut into character
n-grams, which are hashed and looked up in one table (the ids stage: its cost grows with a
document's length, and a batch of documents costs what they cost one by one); the mean of their rows
goes through a tower of wide layers (the dense stage: mostly reading its weights, so a batch costs
little more than one example).
A document is one string, or a list of passages and their number, as models have it that are sent
what has been split before: then requests differ in shape, and to be joined they must be padded.

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
#: Characters of an n-gram.
GRAM = 4
LETTERS = "etaoinshrdlucmfwypvbgkqjxz"


@dataclass(frozen=True)
class UnevenConfig:
    """`grams` n-grams of each text are looked up in a table [rows, dim]; `tower` are widths.

    A text is a document, or with `passages` one of the passages of a document.
    """

    rows: int = 200_000
    dim: int = 64
    grams: int = 512
    passages: bool = False
    tower: tuple[int, ...] = (2048, 2048, 2048, 2048, 1)
    seed: int = 0


@dataclass(frozen=True)
class Documents:
    """Documents of words, lognormal in number: `median` words, `sigma` of the logarithm.

    Document n is a function of the seed and n alone. With a `passage` of so many words it is cut
    into passages.
    """

    median: int = 2000
    sigma: float = 0.6
    most: int = 16000
    seed: int = 0
    passage: int = 0

    def query(self, number: int, size: int = 1) -> dict[str, Array]:
        """`text` [size], objects of bytes.

        Or `passages` [size, most of them], filled up with empty ones, and their `count`, int32
        [size].
        """
        rng = np.random.default_rng([self.seed, number])
        words = self.median * np.exp(self.sigma * rng.standard_normal(size))
        counts = np.minimum(words.astype(int) + 1, self.most)
        texts = np.empty(size, object)
        texts[:] = [_document(rng, int(count)) for count in counts]
        return _in_passages(texts, self.passage) if self.passage else {"text": texts}


def _in_passages(texts: Array, words: int) -> dict[str, Array]:
    split = [text.split(b" ") for text in texts]
    cut = [[b" ".join(all_[i : i + words]) for i in range(0, len(all_), words)] for all_ in split]
    count = np.array([len(passages) for passages in cut], np.int32)
    filled = np.full((len(cut), count.max()), b"", object)
    for row, passages in enumerate(cut):
        filled[row, : len(passages)] = passages
    return {"passages": filled, "count": count}


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

    def tower(vector: Any) -> dict[str, Any]:
        for weights in module.layers[:-1]:
            vector = tf.nn.relu(vector @ weights)
        return {"prediction": tf.squeeze(tf.sigmoid(vector @ module.layers[-1]), 1)}

    def of_text(text: Any) -> dict[str, Any]:
        grams = _grams(tf, _normalised(tf, text, config), tf.range(config.grams), config)
        return tower(tf.reduce_mean(tf.gather(module.table, grams), axis=1))

    def of_passages(passages: Any, count: Any) -> dict[str, Any]:
        heads = tf.strings.substr(_normalised(tf, passages, config), 0, config.grams)
        places = tf.range(tf.shape(passages)[1] * config.grams - GRAM + 1)
        grams = _grams(tf, tf.strings.reduce_join(heads, axis=1), places, config)
        # Those that would reach into what is padded are none of the document's.
        own = count * config.grams - GRAM + 1
        mask = tf.sequence_mask(own, tf.shape(grams)[1])[..., None]
        summed = tf.reduce_sum(tf.where(mask, tf.gather(module.table, grams), [0.0]), axis=1)
        return tower(summed / tf.cast(own, tf.float32)[:, None])

    text = [tf.TensorSpec([None], tf.string, "text")]
    passages = [
        tf.TensorSpec([None, None], tf.string, "passages"),
        tf.TensorSpec([None], tf.int32, "count"),
    ]
    signature = (
        tf.function(of_passages, input_signature=passages)
        if config.passages
        else tf.function(of_text, input_signature=text)
    )
    tf.saved_model.save(module, str(version), signatures=signature)


def _normalised(tf: Any, text: Any, config: UnevenConfig) -> Any:
    """Each text, and as many blanks as short ones lack."""
    text = tf.strings.lower(text)
    for pattern, instead in NORMALISE:
        text = tf.strings.regex_replace(text, pattern, instead)
    return tf.strings.join([text, " " * (config.grams + GRAM)])


def _grams(tf: Any, text: Any, places: Any, config: UnevenConfig) -> Any:
    """The rows of the n-grams of each of n texts that begin at some places, int64 [n, places]."""
    grams = tf.strings.substr(text[:, None], places[None, :], GRAM * tf.ones_like(places)[None, :])
    return tf.strings.to_hash_bucket_fast(grams, config.rows)
