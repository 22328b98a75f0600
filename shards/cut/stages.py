"""Orders lookups and regions into rounds, and says what each stage feeds and fetches.

What an earlier stage has computed is fetched there and fed later, never run twice, so that a random
draw or a costly string hash happens once. What depends on no input (constants, whole variables)
is cheaper to have again than to carry, and handles cannot be carried; those are run where needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from tensorflow.core.framework import types_pb2

from shardserve.shards.cut.call_outs import REQUEST
from shardserve.shards.cut.graph import (
    ITERATES,
    Graph,
    control_inputs,
    data_inputs,
    has_effect,
    split,
    tensor,
)
from shardserve.shards.cut.levels import rounds_of
from shardserve.shards.cut.op_outputs import output_type
from shardserve.shards.cut.program import Program, Round, StagePlan
from shardserve.shards.cut.regions import RegionCall
from shardserve.shards.cut.scorings import AnyCall, Scoring, outputs_of

_NOT_CARRIED = frozenset({types_pb2.DT_RESOURCE, types_pb2.DT_VARIANT})


def plan_program(
    graph: Graph,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    calls: Mapping[str, AnyCall],
) -> Program:
    """The program of one signature, or of one region, over the rewritten graph.

    `inputs` and `outputs` are the tensors by alias; `calls` are all lookups and regions of the
    model by each tensor that they make known (a placeholder or a gate of the graph by now).
    """
    planner = _Planner(graph, inputs)
    # One IdentityN often passes on all outputs; asked for one, it would make the others too.
    wanted = {alias: graph.resolve(name) for alias, name in outputs.items()}
    for ready in rounds_of(graph, inputs.values(), wanted.values(), calls):
        planner.add_stage([t for call in ready for t in call.operands], ready)
    planner.add_stage(wanted.values(), ())
    *rounds, last = planner.finished()
    named = {alias: planner.known_as(name) for alias, name in wanted.items()}
    return Program(
        inputs={alias: tensor(name) for alias, name in inputs.items()},
        rounds=tuple(rounds),
        dense=last.stage,
        outputs=named,
    )


class _Planner:
    def __init__(self, graph: Graph, inputs: Mapping[str, str]) -> None:
        self._graph = graph
        # Known from the start, too: which request it is.
        self._known = {REQUEST, *(tensor(name) for name in inputs.values())}
        self._ran: dict[str, int] = {}
        self._feeds: list[list[str]] = []
        self._fetches: list[list[str]] = []
        self._rounds: list[tuple[AnyCall, ...]] = []
        self._varies: dict[str, bool] = {}

    def known_as(self, name: str) -> str:
        """The known tensor with this one's value: itself, or what its Identity passes on."""
        resolved = self._graph.resolve(name)
        return name if name in self._known or resolved not in self._known else resolved

    def add_stage(self, tensors: Iterable[str], calls: tuple[AnyCall, ...]) -> None:
        """Append the stage that makes `tensors`, and the lookups and regions that follow it."""
        number = len(self._feeds)
        self._feeds.append([])
        self._fetches.append([])
        fetches = [
            t for t in dict.fromkeys(map(tensor, tensors)) if self.known_as(t) not in self._known
        ]
        self._trace(fetches, number)
        # What an earlier stage is found to make is known now, and only fed.
        fed = set(self._feeds[number])
        self._fetches[number].extend(name for name in fetches if name not in fed)
        self._known.update(fetches)
        self._known.update(output for call in calls for output in outputs_of(call))
        self._rounds.append(
            tuple(
                _with_operands(call, {t: self.known_as(tensor(t)) for t in call.operands})
                for call in calls
            )
        )

    def _trace(self, fetches: list[str], number: int) -> None:
        """Note what the stage runs, and feed it what is known already.

        A feed replaces a tensor, not its node: a node that others wait for runs all the same.
        """
        feeds: dict[str, None] = {}
        pending = [split(name)[0] for name in self._not_known(fetches, number, feeds)]
        seen: set[str] = set()
        while pending:
            name = pending.pop()
            if name in seen:
                continue
            seen.add(name)
            self._ran.setdefault(name, number)
            node = self._graph.nodes[name]
            needed = self._not_known(data_inputs(node), number, feeds)
            pending.extend(split(tensor_name)[0] for tensor_name in needed)
            pending.extend(control_inputs(node))
        self._feeds[number].extend(feeds)

    def _not_known(self, tensors: Iterable[str], number: int, feeds: dict[str, None]) -> list[str]:
        """Those tensors that the stage has to make; the others are added to `feeds`."""
        made = []
        for name in tensors:
            if self._taken_from_earlier(name, number):
                feeds[name] = None
            else:
                made.append(name)
        return made

    def _taken_from_earlier(self, name: str, number: int) -> bool:
        if name in self._known:
            return True
        if self._graph.resolve(name) != name:
            return False
        node = self._graph.node(name)
        ran = self._ran.get(node.name, number)
        if ran == number or node.name in self._graph.conditional:
            return False
        if not self._is_varying(node.name) or not _can_carry(self._graph, name):
            return False
        self._fetches[ran].append(name)
        self._known.add(name)
        return True

    def _is_varying(self, name: str) -> bool:
        """Whether a node's value differs between requests: it follows from an input, or a draw."""
        pending = [name]
        while pending:
            at = pending[-1]
            if at in self._varies:
                pending.pop()
                continue
            node = self._graph.nodes[at]
            sources = [split(t)[0] for t in data_inputs(node)]
            unknown = [s for s in sources if s not in self._varies]
            if node.op in ("Placeholder", "PlaceholderV2") or has_effect(node):
                self._varies[at] = True
            elif node.op in ITERATES or not unknown:
                self._varies[at] = any(self._varies.get(s, True) for s in sources)
            else:
                pending.extend(unknown)
                continue
            pending.pop()
        return self._varies[name]

    def finished(self) -> list[Round]:
        """Every stage with its lookups and regions, the last one without any."""
        return [
            Round(
                StagePlan(tuple(feeds), tuple(fetches)),
                tuple(one for one in calls if not isinstance(one, RegionCall)),
                tuple(one for one in calls if isinstance(one, RegionCall)),
            )
            for feeds, fetches, calls in zip(self._feeds, self._fetches, self._rounds, strict=True)
        ]


def _with_operands(call: AnyCall, known: Mapping[str, str]) -> AnyCall:
    if isinstance(call, Scoring | RegionCall):
        return call.with_operands(known)

    def renamed(name: str | None) -> str | None:
        return None if name is None else known[name]

    return replace(
        call,
        ids=known[call.ids],
        take=renamed(call.take),
        segments=renamed(call.segments),
        num_segments=renamed(call.num_segments),
        weights=renamed(call.weights),
        mask=renamed(call.mask),
    )


def _can_carry(graph: Graph, name: str) -> bool:
    op, slot = split(name)
    node = graph.nodes[op]
    return output_type(node, slot) not in _NOT_CARRIED
