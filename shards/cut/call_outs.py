"""A call-out: a lookup that a running graph makes itself, inside a loop or a branch. Plain data.

There neither feed nor fetch reaches, and how often a lookup is made, and of which ids, only the
running graph knows. So the node that reads the table becomes one that calls the router.
"""

from __future__ import annotations

from dataclasses import dataclass

from shardserve.shards.cut.scorings import AnyLookup, Scoring, outputs_of

#: The tensor, an int64 scalar, that says which request a graph runs for. It goes where the cut
#: table went, through the same loops and branches, to every call-out.
REQUEST = "shardserve/request:0"

#: The operation of a call-out: (request, operands ...) -> what the lookup makes known. Its `token`
#: is the call-out's place in `CutModel.call_outs`, until the router registers what it calls.
CALL_OUT = "PyFuncStateless"


@dataclass(frozen=True)
class CallOut:
    """A lookup of the function `scope` ("" for the graph itself); its tensors are of that body."""

    scope: str
    lookup: AnyLookup

    @property
    def node(self) -> str:
        """The node whose place the call-out takes, output by output."""
        found = self.lookup
        return found.node if isinstance(found, Scoring) else found.output.partition(":")[0]

    @property
    def reader(self) -> str:
        """The node that reads the table."""
        return self.lookup.product if isinstance(self.lookup, Scoring) else self.lookup.node

    def output_dtypes(self, dtype: str) -> tuple[str, ...]:
        """The dtypes of its outputs, over a table of `dtype`."""
        if isinstance(self.lookup, Scoring):
            made = self.lookup.output_dtypes(dtype)
            return tuple(made[name] for name in outputs_of(self.lookup))
        return (dtype,)


@dataclass(frozen=True)
class AskedShape:
    """A tensor of the function `scope` ("" for the graph itself) that asks for a table's shape."""

    scope: str
    output: str
