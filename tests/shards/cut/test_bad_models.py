"""Models that cannot be served right are refused before they are loaded, naming what is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from shardserve.batching.errors import DataLoss, InvalidArgument, NotFound, Unimplemented
from shardserve.shards.cut.planning import plan_model
from shardserve.shards.model import PlanOptions
from tests.checkpoints import save, save_boxes
from tests.saved_models import THRESHOLD
from tests.saved_models_tf1 import CASES, numbers

OPTIONS = PlanOptions(threshold=THRESHOLD)
MODELS = {case.name: case for case in CASES}
KEY = "wide/.ATTRIBUTES/VARIABLE_VALUE"


@pytest.fixture
def gathers(saved_model, tmp_path: Path) -> Path:
    """A copy of a model that may be damaged."""
    return Path(shutil.copytree(saved_model("gathers"), tmp_path / "gathers"))


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A model whose table is four slices of one entry, 103 x 6."""
    MODELS["tf1_mod_ref"].export(tmp_path / "parts")
    return tmp_path / "parts"


def variables(directory: Path) -> Path:
    return directory / "variables" / "variables"


def rewrite(directory: Path, tensors: dict[str, np.ndarray | None]) -> None:
    """Write the checkpoint again, with these tensors instead (None: without)."""
    reader = tf.train.load_checkpoint(str(variables(directory)))
    found = {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}
    found = {
        key: np.asarray(value) for key, value in (found | tensors).items() if value is not None
    }
    save(variables(directory), found)


def test_a_model_that_is_sound_is_planned(gathers, parts):
    for directory in (gathers, parts):
        assert plan_model("m", 1, directory, OPTIONS).sources


@pytest.mark.parametrize(
    ("tensor", "error", "said"),
    [
        (None, NotFound, rf"variables\.index: no entry '{KEY}'"),
        (np.zeros((90, 12), np.float64), DataLoss, r"is float64\[90, 12\].*'wide' is float32"),
        (np.zeros((90, 11), np.float32), DataLoss, r"is float32\[90, 11\].*\[90, 12\]"),
        (np.zeros((89, 12), np.float32), DataLoss, r"is float32\[89, 12\].*\[90, 12\]"),
        (np.zeros((), np.float32), InvalidArgument, "is a scalar, not a table"),
    ],
    ids=["missing", "dtype", "columns", "rows", "scalar"],
)
def test_an_entry_that_is_not_the_graphs_is_refused(gathers, tensor, error, said):
    rewrite(gathers, {KEY: tensor})
    with pytest.raises(error, match=said):
        plan_model("m", 1, gathers, OPTIONS)


def test_parts_of_another_whole_are_refused(parts):
    rewrite(parts, {"emb": numbers(104)})
    with pytest.raises(DataLoss, match=r"entry 'emb' is float32\[104, 6\].*float32\[103, 6\]"):
        plan_model("m", 1, parts, OPTIONS)


def test_a_partitioned_table_that_was_saved_again_whole_is_still_one_table(parts):
    before = plan_model("m", 1, parts, OPTIONS)
    rewrite(parts, {})
    after = plan_model("m", 1, parts, OPTIONS)
    assert after.sources.keys() == before.sources.keys()
    assert len(after.sources["emb"].extents) == 4


def test_a_slice_that_is_missing_is_refused(parts):
    table = numbers(103)
    boxes = [("emb", table, (slice(a, b), slice(None))) for a, b in ((0, 26), (26, 52), (52, 78))]
    dense = tf.train.load_checkpoint(str(variables(parts))).get_tensor("dense")
    save_boxes(variables(parts), [*boxes, ("dense", dense, None)])
    with pytest.raises(DataLoss, match="slices of entry 'emb' do not make up the tensor"):
        plan_model("m", 1, parts, OPTIONS)


@pytest.mark.parametrize("kept", [0, 10, 200])
def test_a_checkpoint_file_that_is_cut_off_is_refused(gathers, kept):
    for suffix in (".data-00000-of-00001", ".index"):
        file = variables(gathers).with_name("variables" + suffix)
        file.write_bytes(file.read_bytes()[:kept])
        with pytest.raises(DataLoss, match="variables" + suffix):
            plan_model("m", 1, gathers, OPTIONS)


@pytest.mark.parametrize("suffix", [".data-00000-of-00001", ".index"])
def test_a_checkpoint_file_that_is_not_there_is_refused(gathers, suffix):
    variables(gathers).with_name("variables" + suffix).unlink()
    with pytest.raises(NotFound, match="variables" + suffix):
        plan_model("m", 1, gathers, OPTIONS)


def test_a_changed_byte_is_found_where_checksums_are_asked_for(parts):
    file = variables(parts).with_name("variables.data-00000-of-00001")
    damaged = bytearray(file.read_bytes())
    source = plan_model("m", 1, parts, OPTIONS).sources["emb"]
    damaged[source.extents[2].offset + 5] ^= 1
    file.write_bytes(damaged)

    assert plan_model("m", 1, parts, OPTIONS).sources
    checked = PlanOptions(threshold=THRESHOLD, verify_checksums=True)
    with pytest.raises(DataLoss, match=r"variables\.data-00000-of-00001: entry 'emb', .* checksum"):
        plan_model("m", 1, parts, checked)


def test_what_is_sound_passes_the_checksums(gathers, parts):
    checked = PlanOptions(threshold=THRESHOLD, verify_checksums=True)
    for directory in (gathers, parts):
        assert plan_model("m", 1, directory, checked).sources


def test_a_model_in_chunks_is_refused_naming_the_file(gathers):
    (gathers / "saved_model.pb").rename(gathers / "saved_model.cpb")

    with pytest.raises(Unimplemented, match=rf"{gathers}/saved_model\.cpb: a SavedModel in chunks"):
        plan_model("m", 1, gathers, OPTIONS)


@pytest.mark.parametrize("where", ["graph", "function"])
def test_a_custom_operation_is_refused_naming_the_file_and_the_node(gathers, parts, where):
    directory = parts if where == "graph" else gathers
    file = directory / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    graph_def = model.meta_graphs[0].graph_def
    nodes = graph_def.node
    if where == "function":
        nodes = [node for function in graph_def.library.function for node in function.node_def]
    node = next(node for node in nodes if node.op in ("ResourceGather", "GatherV2"))
    node.op = "AcmeGather"
    file.write_bytes(model.SerializeToString())
    with pytest.raises(NotFound, match=rf"saved_model\.pb: node '{node.name}'.*'AcmeGather'"):
        plan_model("m", 1, directory, OPTIONS)


class _CallsPython(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = tf.Variable(numbers(90), name="table")

    @tf.function
    def unused(self):
        return tf.numpy_function(lambda: np.int64(1), [], tf.int64)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, name="ids")])
    def __call__(self, ids):
        rows = tf.gather(self.table, ids)
        return {
            "rows": tf.cond(
                tf.size(ids) > 3,
                lambda: tf.numpy_function(lambda x: x, [rows], tf.float32),
                lambda: rows,
            )
        }


def test_a_node_that_calls_python_is_refused_naming_the_file_and_the_node(tmp_path):
    module = _CallsPython()
    tf.saved_model.save(module, str(tmp_path), signatures=module.__call__)
    with pytest.raises(Unimplemented, match=r"saved_model\.pb: node '.*PyFunc.*calls Python"):
        plan_model("m", 1, tmp_path, OPTIONS)


def test_a_function_that_calls_python_and_is_never_run_is_no_matter(tmp_path):
    module = _CallsPython()
    signature = tf.function(lambda ids: {"rows": tf.gather(module.table, ids)})
    signature = signature.get_concrete_function(tf.TensorSpec([None], tf.int64, name="ids"))
    module.unused()
    tf.saved_model.save(module, str(tmp_path), signatures=signature)
    assert plan_model("m", 1, tmp_path, OPTIONS).sources


def test_a_function_that_refers_to_a_node_that_is_not_there_is_refused(gathers):
    file = gathers / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    functions = model.meta_graphs[0].graph_def.library.function
    nodes = [node for function in functions for node in function.node_def]
    gather = next(node for node in nodes if node.op == "GatherV2" or node.op == "ResourceGather")
    gather.input[1] = "nowhere:output:0"
    file.write_bytes(model.SerializeToString())
    with pytest.raises(DataLoss, match=r"saved_model\.pb: a function refers to 'nowhere'"):
        plan_model("m", 1, gathers, OPTIONS)
