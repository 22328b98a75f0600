"""In which round each lookup can be made: when all that its operands follow from is known. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shardserve.shards.cut.graph import ITERATES, Graph, split, tensor
from shardserve.shards.cut.scorings import AnyLookup


def rounds_of(
    graph: Graph, outputs: Iterable[str], lookups: Mapping[str, AnyLookup]
) -> list[tuple[AnyLookup, ...]]:
    """The lookups that the outputs need, by round; each needs nothing of its own round.

    `lookups` are by each tensor that they make known, a placeholder of the graph.
    """
    levels = _Levels(graph, lookups).of(split(name)[0] for name in outputs)
    rounds: dict[int, list[AnyLookup]] = {}
    for name in sorted(levels):
        if tensor(name) in lookups:
            rounds.setdefault(levels[name], []).append(lookups[tensor(name)])
    return [tuple(dict.fromkeys(rounds[level])) for level in sorted(rounds)]


class _Levels:
    """How many rounds must be done before a node's outputs are known; every node looked at once.

    Loops are why it may take some passes: what enters the next iteration is known last.
    """

    def __init__(self, graph: Graph, lookups: Mapping[str, AnyLookup]) -> None:
        self._graph = graph
        self._lookups = lookups
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
            self._known[name] = level + (tensor(name) in self._lookups)
            pending.pop()

    def _sources(self, name: str) -> list[str]:
        lookup = self._lookups.get(tensor(name))
        if lookup is not None:
            return [split(operand)[0] for operand in lookup.operands]
        return [] if self._graph.nodes[name].op in ITERATES else self._inputs(name)

    def _inputs(self, name: str) -> list[str]:
        return [split(source.removeprefix("^"))[0] for source in self._graph.nodes[name].input]
