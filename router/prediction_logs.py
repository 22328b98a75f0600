"""Files of PredictionLogs: the TFRecords of TensorFlow Serving's warm-up and request logs."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.python.lib.io import tf_record
from tensorflow_serving.apis import prediction_log_pb2

from shardserve.batching.errors import DataLoss, InvalidArgument, NotFound, error_of
from shardserve.router import logs

#: Records of a warm-up file that are read, as TensorFlow Serving bounds it.
MAX_WARMUP_RECORDS = 1000


def read_prediction_logs(
    path: Path, limit: int = MAX_WARMUP_RECORDS
) -> Iterator[prediction_log_pb2.PredictionLog]:
    """The file's records, in order.

    Raises NotFound where there is no file, DataLoss for one that is no TFRecord file or is cut off,
    InvalidArgument for a record that is no PredictionLog or for more than `limit` of them.
    """
    if not path.is_file():
        raise NotFound(f"{path}: no such file")
    for number, record in enumerate(_records(path)):
        if number == limit:
            raise InvalidArgument(f"{path}: Number of warmup records exceeds the maximum ({limit})")
        try:
            yield prediction_log_pb2.PredictionLog.FromString(record)
        except DecodeError:
            raise InvalidArgument(
                f"{path}: Failed to parse warmup record {number}: it is no PredictionLog"
            ) from None


def _records(path: Path) -> Iterator[bytes]:
    try:
        yield from tf_record.tf_record_iterator(str(path))
    except tf.errors.DataLossError as error:
        raise DataLoss(
            f"{path}: {error.message}. Please verify your warmup data is in TFRecord format."
        ) from None
    except tf.errors.OpError as error:
        raise error_of(error.error_code, f"{path}: {error.message}") from None


@dataclass(frozen=True)
class LogLimits:
    """`waiting` records of `waiting_bytes` at most wait to be written; after `file_bytes` a new
    file is begun.

    What is in the file is on disk at the latest after `flush_seconds`.
    """

    waiting: int = 1024
    waiting_bytes: int = 64 << 20
    file_bytes: int = 256 << 20
    flush_seconds: float = 1.0


#: Of all files of the process, whatever their prefixes.
_numbers = itertools.count()

#: Makes a serialised PredictionLog.
MakeRecord = Callable[[], bytes]


class PredictionLogWriter:
    """Writes records on a thread of its own, so that no request waits for a disk.

    Files are `PREFIX-HOST-PROCESS-SECONDS-NUMBER.tfrecord`, so that routers and models can share a
    prefix, in the order in which they were begun in their process. A record that finds too many
    waiting is dropped and counted; so is one that cannot be made, and everything after the disk has
    failed.
    """

    def __init__(self, prefix: Path, limits: LogLimits = LogLimits()) -> None:
        self.dropped = 0
        self.written = 0
        self._prefix = prefix
        self._limits = limits
        self._waiting: queue.SimpleQueue[tuple[MakeRecord, int] | None] = queue.SimpleQueue()
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._is_open = True
        self._thread = threading.Thread(target=self._write, name="request-log", daemon=True)
        self._thread.start()

    def write(self, make: MakeRecord, nbytes: int = 0) -> bool:
        """Queue a record, that keeps so many bytes until it is made; False if it was dropped."""
        with self._lock:
            fits = (
                self._is_open
                and self._waiting.qsize() < self._limits.waiting
                and self._waiting_bytes + nbytes <= self._limits.waiting_bytes
            )
            if fits:
                self._waiting_bytes += nbytes
                self._waiting.put((make, nbytes))
            else:
                self.dropped += 1
        return fits

    def finish(self) -> None:
        """Take no more. What waits is written soon, and the thread ends then."""
        with self._lock:
            if self._is_open:
                self._is_open = False
                self._waiting.put(None)

    def close(self) -> None:
        """As `finish`; return when all is on disk."""
        self.finish()
        self._thread.join()

    def _write(self) -> None:
        try:
            self._prefix.parent.mkdir(parents=True, exist_ok=True)
            while self._write_file():
                pass
        except (tf.errors.OpError, OSError) as error:
            logs.logger().error("request log failed", prefix=str(self._prefix), error=str(error))
            self._drop_all()

    def _drop_all(self) -> None:
        with self._lock:
            self._is_open = False
            while not self._waiting.empty():
                self.dropped += self._waiting.get() is not None

    def _write_file(self) -> bool:
        """Write one file until it is full; False once all is written."""
        record = self._next()
        if record is None:
            return False
        where = f"{socket.gethostname()}-{os.getpid()}-{int(time.time())}-{next(_numbers)}"
        with tf.io.TFRecordWriter(f"{self._prefix}-{where}.tfrecord") as records:
            file = _File(records, self._limits.flush_seconds)
            while record is not None:
                file.write(record)
                self.written += 1
                if file.nbytes >= self._limits.file_bytes:
                    return True
                record = self._next(file)
        return False

    def _next(self, file: _File | None = None) -> bytes | None:
        """The next record that can be made; None if there will be none any more."""
        while (waiting := self._taken(file)) is not None:
            make, nbytes = waiting
            try:
                return make()
            except Exception:  # noqa: BLE001 (that one cannot be made costs no other)
                logs.logger().exception("a request cannot be logged", prefix=str(self._prefix))
                self.dropped += 1
            finally:
                with self._lock:
                    self._waiting_bytes -= nbytes
        return None

    def _taken(self, file: _File | None) -> tuple[MakeRecord, int] | None:
        """What waits next. Meanwhile, and before it, what is due goes to disk."""
        while file is not None and (seconds := file.seconds_left()) < math.inf:
            if seconds <= 0:
                file.flush()
                continue
            with contextlib.suppress(queue.Empty):
                return self._waiting.get(timeout=seconds)
        return self._waiting.get()


class _File:
    """Records on their way to a file."""

    def __init__(self, records: tf.io.TFRecordWriter, flush_seconds: float) -> None:
        self.nbytes = 0
        self._records = records
        self._flush_seconds = flush_seconds
        #: When the oldest record that is not on disk has to be.
        self._due = math.inf

    def write(self, record: bytes) -> None:
        self._records.write(record)
        self.nbytes += len(record)
        self._due = min(self._due, time.monotonic() + self._flush_seconds)

    def flush(self) -> None:
        self._records.flush()
        self._due = math.inf

    def seconds_left(self) -> float:
        """Until a flush is due; inf where all is on disk."""
        return self._due - time.monotonic()
