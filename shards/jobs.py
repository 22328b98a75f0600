"""Carrying out one request at the shard, and saying how it went."""

from __future__ import annotations

import logging
import time
from typing import Final, Protocol

from shardserve.batching.errors import DeadlineExceeded, Internal, ServingError
from shardserve.shards.exchange import Performed
from shardserve.shards.messages import Array, LookupRequest

logger = logging.getLogger(__name__)


class LookupExecutor(Protocol):
    """What answers requests. Called from several threads at once.

    The arrays that `execute` returns are sent as they are, later: they must not change.
    """

    def execute(self, request: LookupRequest) -> tuple[Array, ...]:
        """The results, one for each part. Raises a `ServingError` for a request it cannot do."""
        ...

    def cost(self, request: LookupRequest) -> int:
        """Bytes, roughly, that `execute` will read and write. Cheap, and never far too low."""
        ...


_OWN_FAILURE: Final = "the shard failed, see its log"


def cost_of(executor: LookupExecutor, request: LookupRequest) -> int:
    """`executor.cost`. Raises a `ServingError`, nothing else, as `perform` does."""
    try:
        return executor.cost(request)
    except ServingError:
        raise
    except Exception as error:
        logger.exception("a lookup failed for a reason of the shard's own")
        raise Internal(_OWN_FAILURE) from error


def perform(
    executor: LookupExecutor, request: LookupRequest, arrived: float, deadline: float
) -> Performed:
    """Carry out a request; times are on `time.monotonic`. Raises a `ServingError`, nothing else.

    What is too late is not started. A failure of the executor's own is logged, and is Internal.
    """
    started = time.monotonic()
    if started >= deadline:
        raise DeadlineExceeded("the deadline passed before the shard could start")
    try:
        results = executor.execute(request)
    except ServingError:
        raise
    except Exception as error:
        logger.exception("a lookup failed for a reason of the shard's own")
        raise Internal(_OWN_FAILURE) from error
    ended = time.monotonic()
    if ended >= deadline:
        raise DeadlineExceeded("the deadline passed while the shard was at work")
    return results, started - arrived, ended - started
