from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from examples.dlrm import (
    DEFAULT_SCALE,
    EXTRA,
    MLPERF_ROWS,
    VERSION,
    dlrm_config,
    export,
    tiny_config,
)


def test_tables_keep_the_benchmarks_ratios_at_half_a_gigabyte() -> None:
    config = dlrm_config()
    assert 0.5e9 <= config.table_bytes <= 0.6e9
    for full, rows in zip(MLPERF_ROWS, config.rows, strict=True):
        assert full <= rows * DEFAULT_SCALE < full + DEFAULT_SCALE


def test_the_model_written_answers_its_own_request_with_its_own_reply(tiny_dlrm: Path) -> None:
    import tensorflow as tf

    version = tiny_dlrm / VERSION
    instances = json.loads((version / EXTRA / "predict_request.json").read_text())["instances"]
    expected = json.loads((version / EXTRA / "predict_reply.json").read_text())["predictions"]
    predict = tf.saved_model.load(str(version)).signatures["serving_default"]
    inputs = {
        name: tf.constant(
            [instance[name] for instance in instances], tf.float32 if name == "dense" else tf.int64
        )
        for name in instances[0]
    }
    np.testing.assert_allclose(predict(**inputs)["prediction"].numpy(), expected, rtol=1e-6)


def test_every_id_moves_the_prediction(tiny_dlrm: Path) -> None:
    import tensorflow as tf

    predict = tf.saved_model.load(str(tiny_dlrm / VERSION)).signatures["serving_default"]
    config = tiny_config()
    inputs = {
        f"sparse_{table}": tf.zeros([1, hot], tf.int64) for table, hot in enumerate(config.hots)
    }
    inputs["dense"] = tf.zeros([1, config.dense])
    before = predict(**inputs)["prediction"].numpy()
    for table, rows in enumerate(config.rows):
        if rows > 1:
            name = f"sparse_{table}"
            last_moved = tf.concat(
                [inputs[name][:, :-1], tf.constant([[rows - 1]], tf.int64)], axis=1
            )
            after = predict(**inputs | {name: last_moved})["prediction"].numpy()
            assert abs(after - before) > 1e-4 * before


def test_a_built_model_is_kept_and_one_with_other_parameters_replaced(tmp_path: Path) -> None:
    config = replace(tiny_config(), rows=(5, 3), hots=(2, 1))
    saved_model = export(config, tmp_path) / "saved_model.pb"
    built = saved_model.stat().st_mtime_ns
    export(config, tmp_path)
    assert saved_model.stat().st_mtime_ns == built
    export(config, tmp_path, seed=1)
    assert saved_model.stat().st_mtime_ns != built
    assert [path.name for path in tmp_path.iterdir()] == [VERSION]


def test_a_build_that_was_cut_off_leaves_no_version(tmp_path: Path) -> None:
    import tensorflow as tf

    config = replace(tiny_config(), rows=(5, -3), hots=(2, 1))
    with pytest.raises(tf.errors.InvalidArgumentError, match="-3"):
        export(config, tmp_path)
    assert not (tmp_path / VERSION).exists()
    export(replace(config, rows=(5, 3)), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [VERSION]
