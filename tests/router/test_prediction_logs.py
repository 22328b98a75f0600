"""Files of PredictionLogs are what TensorFlow reads and writes."""

from pathlib import Path
from threading import Event

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_serving.apis import prediction_log_pb2

from shardserve.batching.errors import DataLoss, InvalidArgument, NotFound
from shardserve.router.prediction_logs import LogLimits, PredictionLogWriter, read_prediction_logs


def log(model: str) -> prediction_log_pb2.PredictionLog:
    found = prediction_log_pb2.PredictionLog()
    found.predict_log.request.model_spec.name = model
    return found


def names(path: Path) -> list[str]:
    return [one.predict_log.request.model_spec.name for one in read_prediction_logs(path)]


@settings(max_examples=20, deadline=None)
@given(models=st.lists(st.text(max_size=20), max_size=30), file_bytes=st.integers(1, 200))
def test_what_is_written_is_read_in_order_over_all_files(
    tmp_path_factory, models, file_bytes
) -> None:
    prefix = tmp_path_factory.mktemp("logs") / "requests"
    writer = PredictionLogWriter(prefix, LogLimits(file_bytes=file_bytes))
    assert all(writer.write(log(model).SerializeToString) for model in models)
    writer.close()
    files = sorted(prefix.parent.iterdir(), key=lambda path: int(path.stem.rsplit("-", 1)[1]))
    assert [name for path in files for name in names(path)] == models
    assert (writer.written, writer.dropped) == (len(models), 0)


def test_models_may_share_a_prefix(tmp_path) -> None:
    writers = [PredictionLogWriter(tmp_path / "requests") for _ in range(3)]
    for number, writer in enumerate(writers):
        writer.write(log(f"m{number}").SerializeToString)
    for writer in writers:
        writer.close()
    files = list(tmp_path.iterdir())
    assert len({path.stem.rsplit("-", 1)[1] for path in files}) == 3
    assert sorted(name for path in files for name in names(path)) == ["m0", "m1", "m2"]


def test_what_is_due_is_on_disk_however_much_waits(tmp_path) -> None:
    writer = PredictionLogWriter(tmp_path / "requests", LogLimits(flush_seconds=0.0))
    all_wait = Event()
    found: list[list[str]] = []

    def make() -> bytes:
        all_wait.wait()
        found.append([name for path in tmp_path.iterdir() for name in names(path)])
        return log("m").SerializeToString()

    for _ in range(3):
        writer.write(make)
    all_wait.set()
    writer.close()
    assert found == [[], ["m"], ["m", "m"]]


def test_a_disk_that_fails_drops_records_and_stops_nobody(tmp_path) -> None:
    prefix = tmp_path / "gone" / "requests"
    prefix.parent.write_bytes(b"a file where a directory should be")
    writer = PredictionLogWriter(prefix)
    writer.write(log("a").SerializeToString)
    writer.close()
    assert not writer.write(log("b").SerializeToString)
    assert writer.dropped >= 1


def test_a_file_that_tensorflow_wrote_is_read(tmp_path) -> None:
    path = tmp_path / "warmup"
    with tf.io.TFRecordWriter(str(path)) as file:
        file.write(log("m").SerializeToString())
    assert names(path) == ["m"]


def test_a_file_that_is_missing_damaged_or_of_something_else_is_named(tmp_path) -> None:
    with pytest.raises(NotFound, match="none: no such file"):
        names(tmp_path / "none")
    (tmp_path / "text").write_bytes(b"these are no records at all")
    with pytest.raises(DataLoss, match=r"text: .*TFRecord format"):
        names(tmp_path / "text")
    with tf.io.TFRecordWriter(str(tmp_path / "other")) as file:
        file.write(b"\xff\xff")
    with pytest.raises(InvalidArgument, match=r"other: .*record 0"):
        names(tmp_path / "other")


def test_more_records_than_the_limit_are_refused(tmp_path) -> None:
    path = tmp_path / "long"
    with tf.io.TFRecordWriter(str(path)) as file:
        for _ in range(3):
            file.write(log("m").SerializeToString())
    with pytest.raises(InvalidArgument, match=r"maximum \(2\)"):
        list(read_prediction_logs(path, limit=2))


def test_a_record_that_cannot_be_made_costs_no_other(tmp_path) -> None:
    writer = PredictionLogWriter(tmp_path / "requests")
    for make in (log("a").SerializeToString, lambda: 1 / 0, log("b").SerializeToString):
        assert writer.write(make)
    writer.close()
    (path,) = tmp_path.iterdir()
    assert names(path) == ["a", "b"]
    assert (writer.written, writer.dropped) == (2, 1)
