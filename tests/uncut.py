"""TensorFlow's own answers: a session over a SavedModel of either format, nothing cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf

from tests.saved_models import Feeds


class Uncut:
    """One SavedModel, loaded whole as TensorFlow Serving loads it."""

    def __init__(self, directory: Path) -> None:
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        with self._session.graph.as_default():
            loaded = tf.compat.v1.saved_model.load(self._session, ["serve"], str(directory))
        self._signatures = loaded.signature_def

    def answer(self, signature: str, feeds: Feeds) -> dict[str, np.ndarray]:
        """All outputs of a signature, by alias."""
        chosen = self._signatures[signature]
        fetches = {alias: info.name for alias, info in chosen.outputs.items()}
        values = {chosen.inputs[alias].name: value for alias, value in feeds.items()}
        return {k: np.asarray(v) for k, v in self._session.run(fetches, values).items()}

    def close(self) -> None:
        self._session.close()
