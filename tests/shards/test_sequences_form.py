"""The sections `sequences` and `loops` of the stages file, and what they refuse by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shardserve.batching.errors import InvalidArgument
from shardserve.shards.forms import parse_form
from shardserve.shards.sequences_form import SequenceEntry, Take
from shardserve.shards.stages_file import StagesFile

DOCUMENT = Path(__file__).parents[2] / "docs" / "sequences.md"
ENTRY = """
step: next
state: {h: new_h}
returns: {new_h: last}
"""


def parse(text: str) -> SequenceEntry:
    return parse_form(SequenceEntry, text, "stages.yaml")


def test_the_examples_of_the_document_are_read():
    blocks = re.findall(r"(?:^    .*\n)+", DOCUMENT.read_text(), re.MULTILINE)
    files = [parse_form(StagesFile, block, "document") for block in blocks]
    assert files[0].loops["serving_default"].batching.max_batch_size == 32
    translate = files[1].sequences["translate"]
    assert translate.carried == {"state": "new_state", "token": "next_token"}
    assert translate.returns == {"next_token": Take.ALL, "new_state": Take.LAST}


def test_what_is_left_out_has_a_default():
    entry = parse(ENTRY)
    assert entry.max_steps == 512
    assert entry.batching.parameters().max_batch_size == 32
    assert entry.stop is None


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("steps: next", "steps: Extra inputs are not permitted"),
        ("per_step: {h: x}", "input 'h' of the step is in state and per_step"),
        ("initial: {x: {value: 0}}", "initial.x: is not in 'state' or 'feedback'"),
        ("initial: {h: {value: 0, input: x}}", "takes one of 'input', 'output' and 'value'"),
        ("initial: {h: {}}", "takes one of 'input', 'output' and 'value'"),
        ("max_steps: 0", "max_steps: "),
        ("returns: {new_h: first}", "returns.new_h: .* not 'first'"),
        ("returns: {}", "returns: "),
        ("returns: {steps: last}", "returns.steps: the name is taken by the number of steps"),
        ("state: {}", "'state' and 'feedback' are both empty"),
        (
            "batching: {max_batch_size: 4, allowed_batch_sizes: [2, 3]}",
            "batching: .* must match max_batch_size",
        ),
        ("batching: {batch_timeout_micros: 5}", "batch_timeout_micros: Extra inputs"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_field(more, words):
    kept = [line for line in ENTRY.splitlines() if line.split(":")[0] != more.split(":")[0]]
    with pytest.raises(InvalidArgument, match=f"stages.yaml: .*{words}"):
        parse("\n".join([*kept, more]))
