"""What a stages file says is what stages get, and what it may not say is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from shardserve.batching.errors import InvalidArgument, NotFound
from shardserve.batching.parameters import Auto, BatchingParameters
from shardserve.shards.regions import ActorOptions, Region
from shardserve.shards.stages import BatchingOptions, LookupBatching, Stages
from shardserve.shards.stages_file import PER_MODEL_FILE, stages_of
from shardserve.shards.stages_schema import stages_schema

SERVER = BatchingParameters(max_batch_size=100, num_batch_threads=3)

FULL = """
version: 1
stages:
  ids: {max_batch_size: 32, batch_timeout_micros: 500}
  lookups: {max_batch_size: 1000, max_in_flight_batches: 4}
  dense:
    batch_timeout_micros: auto
    p99_target_micros: 30000
    allowed_batch_sizes: [8, 64, 100]
regions:
  tower:
    inputs: [joined]
    outputs: ["scores:0", more]
    batching: {max_batch_size: 8, enable_large_batch_splitting: true, max_execution_batch_size: 4}
    actors: {count: 2, num_cpus: 1, num_gpus: 0.5}
sequences:
  sums: {step: add, state: {x: y}, returns: {y: last}, actors: {group: gpu, num_gpus: 1}}
loops:
  serving_default: {actors: {count: 3}}
"""


def stages(tmp_path: Path, text: str, server: BatchingParameters | None = SERVER) -> Stages:
    path = tmp_path / "stages.yaml"
    path.write_text(text)
    return stages_of(tmp_path, BatchingOptions(server, stages_file=path))


def test_all_of_it(tmp_path):
    found = stages(tmp_path, FULL)
    assert found.ids == BatchingParameters(32, 500, num_batch_threads=3)
    assert found.lookups == LookupBatching(max_batch_size=1000, max_in_flight_batches=4)
    assert found.dense == BatchingParameters(
        100, Auto(30000), num_batch_threads=3, allowed_batch_sizes=(8, 64, 100)
    )
    batching = BatchingParameters(
        8, num_batch_threads=3, enable_large_batch_splitting=True, max_execution_batch_size=4
    )
    actors = ActorOptions(2, 1, 0.5)
    expected = Region("tower", ("joined",), ("scores:0", "more"), batching, actors)
    assert found.regions == (expected,)
    given = [entry.actors for entry in (found.sequences["sums"], found.loops["serving_default"])]
    assert [one and one.options() for one in given] == [
        ActorOptions(1, 1, 1, "gpu"),
        ActorOptions(3, 1, 0),
    ]


def test_what_the_file_does_not_name_is_as_the_servers_flags_say(tmp_path):
    assert stages(tmp_path, "version: 1") == Stages(lookups=LookupBatching(), dense=SERVER)
    assert stages(tmp_path, "version: 1", None) == Stages()
    only_ids = stages(tmp_path, "stages: {ids: {max_batch_size: 5}}", None)
    assert only_ids == Stages(ids=BatchingParameters(5))


def test_without_a_file_the_flags_say_it():
    assert stages_of(Path("nowhere"), BatchingOptions()) == Stages()
    found = stages_of(Path("nowhere"), BatchingOptions(SERVER))
    assert found == Stages(lookups=LookupBatching(), dense=SERVER)


def test_a_models_own_parameters_count_but_for_the_threads(tmp_path):
    own = "max_batch_size { value: 7 } num_batch_threads { value: 9 }"
    (tmp_path / PER_MODEL_FILE).write_text(own)
    options = BatchingOptions(SERVER, per_model=True)
    assert stages_of(tmp_path, options).dense == BatchingParameters(7, num_batch_threads=3)
    assert stages_of(tmp_path / "other", options) == Stages()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("version: 2", "version"),
        ("stages: {dence: {}}", "stages.dence: Extra inputs"),
        ("stages: {dense: {max_batch_sise: 3}}", "stages.dense.max_batch_sise"),
        ("stages: {dense: {max_batch_size: 0}}", "stages.dense.max_batch_size"),
        ("stages: {dense: {batch_timeout_micros: auto}}", "p99_target_micros go together"),
        ("stages: {dense: {p99_target_micros: 3}}", "p99_target_micros go together"),
        (
            "stages: {dense: {allowed_batch_sizes: [3, 2]}}",
            "stages.dense: .*monotonically increasing",
        ),
        ("stages: {lookups: {batch_timeout_micros: 3}}", "stages.lookups.batch_timeout_micros"),
        ("regions: {r: {inputs: [], outputs: [y]}}", "regions.r.inputs"),
        ("regions: {r: {outputs: [y]}}", "regions.r: .*inputs and outputs go together"),
        ("regions: {r: {actors: {}, batching: {max_batch_size: 3}}}", "batched as the model says"),
        (
            "regions: {sequences/s: {inputs: [x], outputs: [y]}}",
            "regions.sequences/s: sequences and loops are named so",
        ),
        (
            "regions: {loops/l: {inputs: [x], outputs: [y]}}",
            "regions.loops/l: sequences and loops are named so",
        ),
        ("regions: {'a b': {inputs: [x], outputs: [y]}}", "regions.a b"),
        ("regions: {r: {inputs: [x], outputs: [y], actors: {count: 0}}}", "regions.r.actors.count"),
        (
            "regions: {r: {inputs: [x], outputs: [y], batching: {max_execution_batch_size: 999}}}",
            "regions.r.batching: max_execution_batch_size must be at most",
        ),
        ("loops: {f: {actors: {num_gpus: -1}}}", "loops.f.actors.num_gpus"),
        ("loops: {f: {actors: {group: 'a b'}}}", "loops.f.actors.group"),
        ("[", "not YAML"),
    ],
)
def test_what_is_wrong_is_refused_naming_the_place(tmp_path, text, words):
    with pytest.raises(InvalidArgument, match=words):
        stages(tmp_path, text)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(NotFound, match="missing"):
        stages_of(tmp_path, BatchingOptions(stages_file=tmp_path / "missing.yaml"))


def test_the_published_schema_takes_what_the_form_takes_and_is_of_this_version():
    published = Path(__file__).parents[2] / "docs" / "stages.schema.json"
    assert json.loads(published.read_text()) == stages_schema()
    validator = jsonschema.Draft202012Validator(stages_schema())
    validator.validate(yaml.safe_load(FULL))
    assert not validator.is_valid({"stages": {"dence": {}}})


def test_where_whole_requests_are_joined_other_stages_are_only_if_named(tmp_path):
    file = tmp_path / "stages.yaml"
    file.write_text("stages: {requests: {max_batch_size: 8}, ids: {max_batch_size: 4}}")
    options = BatchingOptions(BatchingParameters(max_batch_size=100), stages_file=file)
    stages = stages_of(tmp_path, options)
    assert stages.requests is not None
    assert stages.requests.max_batch_size == 8
    assert stages.ids is not None
    assert (stages.dense, stages.lookups) == (None, None)
