"""In which round each call can be made: when all that its operands follow from is known. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from shardserve.shards.cut.graph import ITERATES, Graph, split, tensor
from shardserve.shards.cut.scorings import AnyCall


def rounds_of(
    graph: Graph,
    inputs: Collection[str],
    outputs: Iterable[str],
    calls: Mapping[str, AnyCall],
) -> list[tuple[AnyCall, ...]]:
    """The lookups and regions that the outputs need, by round; each needs nothing of its own round.

    `calls` are by each tensor that they make known, a placeholder or a gate of the graph. What is
    above the tensors `inputs` is not looked at.
    """
    given = frozenset(split(name)[0] for name in inputs)
    levels = _Levels(graph, given, calls).of(split(name)[0] for name in outputs)
    rounds: dict[int, list[AnyCall]] = {}
    for name in sorted(levels):
        if name not in given and tensor(name) in calls:
            rounds.setdefault(levels[name], []).append(calls[tensor(name)])
    return [tuple(dict.fromkeys(rounds[level])) for level in sorted(rounds)]


class _Levels:
    """How many rounds must be done before a node's outputs are known; every node looked at once.

    Loops are why it may take some passes: what enters the next iteration is known last.
    """

    def __init__(self, graph: Graph, given: Collection[str], calls: Mapping[str, AnyCall]) -> None:
        self._graph = graph
        self._given = given
        self._calls = calls
        self._iterated: dict[str, int] = {}
        self._known: dict[str, int] = {}

    def of(self, names: Iterable[str]) -> dict[str, int]:
        """The level of each of these nodes and of all above them."""
        starts = list(names)
        while True:
            self._known = {}
            self._visit(starts)
            iterated = self._levels_of_iterations()
            if iterated == self._iterated:
                return self._known
            self._iterated = iterated

    def _levels_of_iterations(self) -> dict[str, int]:
        levels: dict[str, int] = {}
        while pending := self._iterations() - levels.keys():
            for name in pending:
                sources = self._inputs(name)
                self._visit(sources)
                levels[name] = max(self._known[source] for source in sources)
        return levels

    def _iterations(self) -> set[str]:
        nodes = self._graph.nodes
        return {name for name in self._known if nodes[name].op in ITERATES}

    def _visit(self, starts: Iterable[str]) -> None:
        pending = list(starts)
        while pending:
            name = pending[-1]
            if name in self._known:
                pending.pop()
                continue
            sources = self._sources(name)
            unknown = [source for source in sources if source not in self._known]
            if unknown:
                pending.extend(unknown)
                continue
            level = max((self._known[s] for s in sources), default=self._iterated.get(name, 0))
            is_call = name not in self._given and tensor(name) in self._calls
            self._known[name] = level + is_call
            pending.pop()

    def _sources(self, name: str) -> list[str]:
        if name in self._given:
            return []
        call = self._calls.get(tensor(name))
        if call is not None:
            return [split(operand)[0] for operand in call.operands]
        return [] if self._graph.nodes[name].op in ITERATES else self._inputs(name)

    def _inputs(self, name: str) -> list[str]:
        return [split(source.removeprefix("^"))[0] for source in self._graph.nodes[name].input]
