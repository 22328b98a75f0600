"""Files of PredictionLogs: the TFRecords of TensorFlow Serving's warm-up and request logs."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
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
    """`waiting` records at most wait to be written; after `file_bytes` a new file is begun.

    What is in the file is on disk at the latest after `flush_seconds`.
    """

    waiting: int = 1024
    file_bytes: int = 256 << 20
    flush_seconds: float = 1.0


class PredictionLogWriter:
    """Writes records on a thread of its own, so that no request waits for a disk.

    Files are `PREFIX-SECONDS-NUMBER.tfrecord`, in the order in which they were begun. A record that
    finds too many waiting is dropped and counted; so is everything after the disk has failed.
    """

    def __init__(
        self,
        prefix: Path,
        limits: LogLimits = LogLimits(),
    ) -> None:
        self.dropped = 0
        self.written = 0
        self._prefix = prefix
        self._limits = limits
        self._waiting: queue.Queue[bytes | None] = queue.Queue(limits.waiting)
        prefix.parent.mkdir(parents=True, exist_ok=True)
        self._thread = threading.Thread(target=self._write, name="request-log", daemon=True)
        self._thread.start()

    def write(self, log: prediction_log_pb2.PredictionLog) -> bool:
        """Queue a record; False if it was dropped."""
        if not self._thread.is_alive():
            self.dropped += 1
            return False
        try:
            self._waiting.put_nowait(log.SerializeToString())
        except queue.Full:
            self.dropped += 1
            return False
        return True

    def close(self) -> None:
        """Write what waits, and return when it is on disk."""
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()

    def _write(self) -> None:
        try:
            number = 0
            while self._write_file(number):
                number += 1
        except tf.errors.OpError as error:
            self.dropped += self._waiting.qsize()
            logs.logger().error("request log failed", prefix=str(self._prefix), error=error.message)

    def _write_file(self, number: int) -> bool:
        """Write one file until it is full; False once all is written."""
        record = self._waiting.get()
        if record is None:
            return False
        path = f"{self._prefix}-{int(time.time())}-{number}.tfrecord"
        with tf.io.TFRecordWriter(path) as file:
            nbytes = 0
            while record is not None:
                file.write(record)
                self.written += 1
                nbytes += len(record)
                if nbytes >= self._limits.file_bytes:
                    return True
                record = self._next(file)
        return False

    def _next(self, file: tf.io.TFRecordWriter) -> bytes | None:
        """The next record. While none comes, what was written goes to disk."""
        try:
            return self._waiting.get(timeout=self._limits.flush_seconds)
        except queue.Empty:
            file.flush()
            return self._waiting.get()
