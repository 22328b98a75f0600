"""What lies in a region: walked back from its outputs to its inputs, and checked to be closed."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from shardserve.batching.errors import InvalidArgument
from shardserve.shards.cut.graph import (
    ITERATES,
    Graph,
    data_inputs,
    has_effect,
    split,
    tensor,
)

PLACEHOLDERS = frozenset({"Placeholder", "PlaceholderV2"})


class _Follows(enum.IntEnum):
    """What a node's value follows from, as seen from inside of the region; the highest counts."""

    NOTHING = 0  # constants and variables: the same for every request
    SIGNATURE = 1  # an input of the signature, past the region's own inputs
    EFFECT = 2  # a draw inside of the region
    REGION = 3  # the region's inputs


@dataclass(frozen=True)
class Ends:
    """Where a region begins and ends: tensors of the graph.

    Of a region that `is_named` by somebody an input that leads nowhere is a mistake; a model's
    function may well not use all that it gets.
    """

    name: str
    inputs: tuple[str, ...]
    captured: tuple[str, ...]
    outputs: tuple[str, ...]
    is_named: bool = False

    @property
    def entries(self) -> tuple[str, ...]:
        """Its inputs, then what it captured."""
        return (*self.inputs, *self.captured)


@dataclass(frozen=True)
class Leak:
    """An edge that crosses a region's border past its inputs and outputs."""

    tensor: str
    reader: str
    inwards: bool


@dataclass(frozen=True)
class Enclosed:
    """The nodes of a region that vary between requests, and those that it needs besides.

    Nobody reads the nodes `effects`: they are run for what they do.
    """

    nodes: frozenset[str]
    fixed: frozenset[str]
    effects: tuple[str, ...]


def enclosed(graph: Graph, ends: Ends, wanted: Collection[str]) -> Enclosed:
    """The nodes between the ends; `wanted` are the tensors of signatures' outputs.

    Raises InvalidArgument naming the region, and the edge that leaks in or out, or the input or
    output that has nothing to do with the others.
    """
    readers = _Readers(graph, wanted)
    walk = _Walk(graph, ends)
    for leak in walk.leaks_in():
        raise _leaking(ends, leak)
    if ends.is_named:
        _check_ends(ends, walk, readers)
    inside = walk.inside()
    fixed = walk.fixed()
    checks = _run_for_effects(walk, inside, readers)
    inside |= checks
    for leak in _leaks_out(ends, inside, readers):
        raise _leaking(ends, leak)
    effects = tuple(sorted(name for name in checks if not readers.of(name)))
    return Enclosed(frozenset(inside), frozenset(fixed), effects)


def side_inputs(graph: Graph, ends: Ends) -> tuple[str, ...]:
    """The tensors that vary between requests and reach the region past its inputs."""
    captured: dict[str, None] = {}
    while True:
        known = Ends(ends.name, ends.inputs, tuple(captured), ends.outputs)
        found = dict.fromkeys(leak.tensor for leak in _Walk(graph, known).leaks_in())
        if not found:
            return tuple(captured)
        captured |= found


class _Readers:
    """Who reads which tensors, among the nodes that the signatures' outputs need."""

    def __init__(self, graph: Graph, wanted: Collection[str]) -> None:
        self.wanted = frozenset(map(tensor, wanted))
        self._of: dict[str, list[tuple[str, str]]] = {}
        for name in graph.ancestors(wanted):
            for source in data_inputs(graph.nodes[name]):
                self._of.setdefault(_node_of(source), []).append((name, source))

    def of(self, node: str) -> list[tuple[str, str]]:
        """(reader, tensor) of each use of what the node makes."""
        return self._of.get(node, [])

    def downstream(self, start: str) -> set[str]:
        found: set[str] = set()
        pending = [start]
        while pending:
            name = pending.pop()
            if name not in found:
                found.add(name)
                pending.extend(reader for reader, _ in self.of(name))
        return found


class _Walk:
    """Everything that the outputs follow from, up to the region's entries."""

    def __init__(self, graph: Graph, ends: Ends) -> None:
        self._graph = graph
        self._ends = ends
        self._entries = frozenset(ends.entries)
        self._follows: dict[str, _Follows] = {}
        for output in ends.outputs:
            if output not in self._entries:
                self.visit(_node_of(output))

    def visit(self, start: str) -> _Follows:
        """Note what a node, and all that it reads, follows from."""
        pending = [start]
        while pending:
            name = pending[-1]
            if name not in self._follows:
                node = self._graph.nodes[name]
                sources = [_node_of(t) for t in data_inputs(node) if t not in self._entries]
                unknown = [source for source in sources if source not in self._follows]
                if unknown and node.op not in ITERATES:
                    pending.extend(unknown)
                    continue
                self._follows[name] = self._of_node(name)
            pending.pop()
        return self._follows[start]

    def _of_node(self, name: str) -> _Follows:
        node = self._graph.nodes[name]
        if node.op in PLACEHOLDERS:
            return _Follows.SIGNATURE
        own = _Follows.EFFECT if has_effect(node, self._graph.library) else _Follows.NOTHING
        return max([own, *(self.of_tensor(t) for t in data_inputs(node))])

    def of_tensor(self, name: str) -> _Follows:
        if name in self._entries:
            return _Follows.REGION
        return self._follows.get(_node_of(name), _Follows.NOTHING)

    def knows(self, node: str) -> bool:
        return node in self._follows

    def inside(self) -> set[str]:
        return {n for n, follows in self._follows.items() if follows >= _Follows.EFFECT}

    def fixed(self) -> set[str]:
        return {n for n, follows in self._follows.items() if follows is _Follows.NOTHING}

    def leaks_in(self) -> Iterator[Leak]:
        for output in self._ends.outputs:
            if self.of_tensor(output) is _Follows.SIGNATURE:
                yield Leak(output, "its outputs", inwards=True)
        for name in sorted(self.inside()):
            for source in data_inputs(self._graph.nodes[name]):
                if self.of_tensor(source) is _Follows.SIGNATURE:
                    yield Leak(source, name, inwards=True)


def _check_ends(ends: Ends, walk: _Walk, readers: _Readers) -> None:
    for output in ends.outputs:
        if output in ends.entries:
            raise InvalidArgument(f"region {ends.name!r}: {output} is its input and its output")
        if walk.of_tensor(output) is not _Follows.REGION:
            raise InvalidArgument(
                f"region {ends.name!r}: its output {output} follows from none of its inputs"
            )
    for entry in ends.inputs:
        read_by = [name for name, source in readers.of(_node_of(entry)) if source == entry]
        if not any(map(walk.knows, read_by)):
            raise InvalidArgument(
                f"region {ends.name!r}: its input {entry} leads to none of its outputs"
            )


def _run_for_effects(walk: _Walk, inside: Collection[str], readers: _Readers) -> set[str]:
    """Nodes that read what is inside, and of which nothing is read: checks and messages."""
    found: set[str] = set()
    for name in inside:
        for reader, _ in readers.of(name):
            if walk.knows(reader) or reader in found:
                continue
            members = readers.downstream(reader)
            if any(_node_of(t) in members for t in readers.wanted):
                continue
            follows = {walk.visit(member) for member in members}
            if _Follows.SIGNATURE not in follows:
                found |= members
    return found


def _leaks_out(ends: Ends, inside: Collection[str], readers: _Readers) -> Iterator[Leak]:
    for name in sorted(inside):
        for reader, source in readers.of(name):
            if reader not in inside and source not in ends.outputs:
                yield Leak(source, reader, inwards=False)
    for name in sorted(readers.wanted):
        if _node_of(name) in inside and name not in ends.outputs:
            yield Leak(name, "a signature's outputs", inwards=False)


def _leaking(ends: Ends, leak: Leak) -> InvalidArgument:
    edge = f"{leak.tensor} -> {leak.reader}"
    if leak.inwards:
        why = f"{edge} enters it, and {leak.tensor} follows from a signature's input past its own"
    else:
        why = f"{edge} leaves it, and {leak.tensor} is none of its outputs"
    return InvalidArgument(f"region {ends.name!r} is not closed: {why}")


def _node_of(name: str) -> str:
    return split(name)[0]
