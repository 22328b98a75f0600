"""Logs a share of the requests that were answered, as PredictionLogs, for each model that asks.

The files can be warm-up files as they are. Nothing is serialised, and no disk is waited for, on the
event loop.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from tensorflow_serving.apis import logging_pb2, prediction_log_pb2

from shardserve.batching.errors import Code
from shardserve.router.catalog import Catalog, Model
from shardserve.router.prediction_logs import LogLimits, PredictionLogWriter
from shardserve.router.proto_codec import message_field
from shardserve.router.request_logging import RequestLogging

if TYPE_CHECKING:
    from shardserve.router.metrics import Metrics

#: A message's bytes, made when it is written.
Made = Callable[[], bytes]

_FIELDS = prediction_log_pb2.PredictionLog.DESCRIPTOR.fields_by_name


class RequestLogs:
    """The logs of the models of a catalog: each is open while its model says so. One event loop."""

    def __init__(
        self,
        catalog: Catalog,
        metrics: Metrics | None = None,
        limits: LogLimits = LogLimits(),  # noqa: B008 (frozen)
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`draw` gives chances in [0, 1)."""
        self._metrics = metrics
        self._limits = limits
        self._draw = draw
        self._open: dict[str, RequestLog] = {}
        catalog.follow(self._follow)

    def sampled(self, model: str) -> RequestLog | None:
        """Where a request that was answered is to be logged; mostly nowhere."""
        if not self._open:
            return None
        log = self._open.get(model)
        return None if log is None or self._draw() >= log.logging.sampling_rate else log

    def close(self) -> None:
        """Write what waits, and return when it is on disk. Blocks."""
        closing, self._open = self._open, {}
        for log in closing.values():
            log.writer.close()

    def _follow(self, models: Mapping[str, Model]) -> None:
        wanted = {name: one.logging for name, one in models.items() if one.logging is not None}
        for name, log in list(self._open.items()):
            if wanted.get(name) != log.logging:
                self._open.pop(name).writer.finish()
        for name, logging in wanted.items():
            if name not in self._open:
                writer = PredictionLogWriter(logging.prefix, self._limits)
                self._open[name] = RequestLog(name, logging, writer, self._metrics)


class RequestLog:
    """One model's log."""

    def __init__(
        self,
        model: str,
        logging: RequestLogging,
        writer: PredictionLogWriter,
        metrics: Metrics | None,
    ) -> None:
        self.logging = logging
        self.writer = writer
        self._model = model
        self._metrics = metrics

    def add_message(self, kind: str, request: Any, reply: bytes, served: bytes) -> None:
        """As `add`, of a request message, which nobody changes any more, and a serialised reply."""
        nbytes = request.ByteSize() + len(reply)
        self.add(kind, request.SerializeToString, lambda: reply, served, nbytes)

    def add(self, kind: str, request: Made, response: Made, served: bytes, nbytes: int) -> None:
        """Log a request and what it was answered; drop both where too many wait to be written.

        `kind` is the field of PredictionLog, `served` the serialised ModelSpec of what answered;
        `nbytes` is about what is kept until it is written.
        """
        rate, now = self.logging.sampling_rate, int(time.time())
        record = partial(_record, kind, request, response, served, rate, now)
        taken = self.writer.write(record, nbytes)
        if self._metrics is not None:
            code = Code.OK if taken else Code.RESOURCE_EXHAUSTED
            self._metrics.request_logged(self._model, code)


def _record(
    kind: str, request: Made, response: Made, served: bytes, rate: float, seconds: int
) -> bytes:
    """A serialised PredictionLog: whose parts are serialised is theirs put together."""
    metadata = logging_pb2.LogMetadata(timestamp_secs=seconds)
    metadata.model_spec.ParseFromString(served)
    metadata.sampling_config.sampling_rate = rate
    log = message_field(1, request()) + message_field(2, response())
    head = message_field(_FIELDS["log_metadata"].number, metadata.SerializeToString())
    return head + message_field(_FIELDS[kind].number, log)
