"""How a model's requests are logged. Plain data, for whoever reads configurations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: The one `log_collector_config.type` that there is.
TFRECORD = "tfrecord"


@dataclass(frozen=True)
class RequestLogging:
    """A share, in [0, 1], of a model's requests goes to files whose paths begin with `prefix`."""

    prefix: Path
    sampling_rate: float
