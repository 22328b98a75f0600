"""How TensorFlow's sessions are made, as flags and files say it. Plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Sessions:
    """The threads are TensorFlow's own, see `session.Parallelism`.

    All else is as `config` says, a serialised `tensorflow.ConfigProto`.
    """

    intra_op_threads: int = 0
    inter_op_threads: int = -1
    config: bytes = b""


def sessions_of_stage(sessions: Sessions, num_cpus: float) -> Sessions:
    """A stage actor's: with a thread for each CPU that it is given, unless the flags say how many.

    It shares its machine with others, so TensorFlow is not to choose.
    """
    threads = sessions.intra_op_threads or max(1, math.ceil(num_cpus))
    return replace(sessions, intra_op_threads=threads)
