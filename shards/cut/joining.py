"""Whether a stage of a program may run the joined tensors of several requests as one."""

from __future__ import annotations

from shardserve.batching.parameters import BatchingParameters
from shardserve.shards.cut.cut import CutModel
from shardserve.shards.cut.program import Program, StagePlan

#: What is padded are a signature's inputs, by their own elements: a clients' contract.
PADS = "pad_variable_length_inputs pads the inputs of a signature"


def why_at_front(
    cut: CutModel, program: Program, parameters: BatchingParameters
) -> tuple[str, ...]:
    """Why requests are joined before a program's first stage, not before its last; () if not."""
    if parameters.pad_variable_length_inputs:
        return (PADS,)
    return cut.why_not_joined(program.dense.feeds)


def why_not_ids(cut: CutModel, stage: StagePlan, parameters: BatchingParameters) -> tuple[str, ...]:
    """Why requests are not joined for an ids stage; () if they are."""
    if parameters.pad_variable_length_inputs:
        return (PADS,)
    return cut.why_not_joined((*stage.feeds, *stage.fetches))
