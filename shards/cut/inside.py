"""Follows a table into loops, branches and calls, to the lookups that are made there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tensorflow.core.framework.node_def_pb2 import NodeDef

from shardserve.shards.cut.bodies import (
    WHILES,
    Bodies,
    Body,
    argument_of,
    functions_of,
    is_compiled,
    only_passes_on,
    runs_functions,
)
from shardserve.shards.cut.call_outs import AskedShape, CallOut
from shardserve.shards.cut.graph import SWITCHES
from shardserve.shards.cut.motifs import Entry, MotifFinder, TableNode, Uses


@dataclass
class Inside:
    """What reads a table in loops and branches, and what is in the way of calling out there."""

    call_outs: list[CallOut] = field(default_factory=list)
    shapes: list[AskedShape] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


class InsideFinder:
    """Looks behind the entries that the finder of the graph itself came upon."""

    def __init__(self, finder: MotifFinder, bodies: Bodies) -> None:
        self._finder = finder
        self._bodies = bodies
        self._finders: dict[str, MotifFinder] = {}

    def uses(self, entries: Iterable[Entry], table: TableNode) -> Inside:
        """All that reads the table behind these entries."""
        search = _Search(self, table)
        for entry in entries:
            search.enter("", self._finder, entry)
        return search.found

    def body(self, name: str) -> tuple[Body, MotifFinder] | str:
        """A function's body and its finder; or why a table may not go there."""
        body = self._bodies.get(name)
        if isinstance(body, str):
            return body
        if name not in self._finders:
            self._finders[name] = MotifFinder(body.graph, body.live)
        return body, self._finders[name]

    def is_compiled(self, node: NodeDef) -> bool:
        """Whether what the node runs is compiled as one, and can call nothing."""
        return is_compiled(node, self._bodies.functions)


class _Search:
    """The search for one table."""

    def __init__(self, finders: InsideFinder, table: TableNode) -> None:
        self.found = Inside()
        self._finders = finders
        self._table = table

    def enter(self, scope: str, finder: MotifFinder, entry: Entry) -> None:
        if runs_functions(entry.node):
            self._run(scope, finder, entry)
        elif entry.slot == 0 and _passes_on(entry.node):
            for slot in range(2 if entry.node.op in SWITCHES else 1):
                self._follow(scope, finder, f"{entry.node.name}:{slot}", entry)
        else:
            self._refuse(scope, f"{entry.node.op} {entry.node.name} does more than pass it on")

    def _follow(self, scope: str, finder: MotifFinder, name: str, entry: Entry) -> None:
        uses = finder.uses(name, self._table, is_value=entry.is_value, inside=True)
        self._take(scope, finder, uses)

    def _take(self, scope: str, finder: MotifFinder, uses: Uses) -> None:
        self.found.call_outs.extend(CallOut(scope, lookup) for lookup in uses.lookups)
        self.found.shapes.extend(AskedShape(scope, shape) for shape in uses.shapes)
        for reason in uses.reasons:
            self._refuse(scope, reason)
        for entry in uses.entries:
            self.enter(scope, finder, entry)

    def _run(self, scope: str, finder: MotifFinder, entry: Entry) -> None:
        node, number = entry.node, argument_of(entry.node, entry.slot)
        if self._finders.is_compiled(node):
            self._refuse(scope, f"it is passed to a function that XLA compiles ({_named(node)})")
            return
        if number < 0:
            self._refuse(scope, f"{_named(node)} is decided by it")
            return
        functions = functions_of(node)
        for name in functions:
            body = self._finders.body(name)
            if isinstance(body, str):
                self._refuse(scope, f"it is read inside {_named(node)}, whose {body}")
            else:
                goes_round = node.op in WHILES and name == functions[1]
                self._look_in(*body, entry, number, goes_round=goes_round)
        if node.op in WHILES:
            self._follow(scope, finder, f"{node.name}:{entry.slot}", entry)

    def _look_in(
        self, body: Body, finder: MotifFinder, entry: Entry, number: int, *, goes_round: bool
    ) -> None:
        argument = body.arguments[number]
        uses = finder.uses(argument, self._table, is_value=entry.is_value, may_leave=True)
        self._take(body.name, finder, uses)
        passed = set(body.graph.passed_on(argument))
        leaves = any(name in passed for name in body.returned)
        wanted = only_passes_on(body.graph, body.returned, argument, number)
        if not (wanted if goes_round else not leaves):
            self._refuse(body.name, f"the function hands on the whole variable ({argument})")

    def _refuse(self, scope: str, reason: str) -> None:
        where = f" (in function {scope})" if scope else ""
        self.found.reasons.append(reason + where)


def _named(node: NodeDef) -> str:
    return f"{node.op} {node.name}"


def _passes_on(node: NodeDef) -> bool:
    return node.op in SWITCHES or bool(node.attr["is_constant"].b)
