"""Draws a model's stages for a person."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

from shardserve.shards.cut.stage_graph import LoopReport, ProgramReport, StageGraph

#: Tensors that are named of those that go into or come out of a stage.
MAX_TENSORS = 8


def draw_stages(console: Console, graph: StageGraph) -> None:
    """Each signature's stages in order, then each region's."""
    for report in graph.signatures:
        _draw(console, f"signature {report.name}", report)
    for report in graph.regions:
        _draw(console, f"region {report.name}", report)
    for name, steps in graph.sequences:
        _line(console, f"signature {name}: {steps}")
    for loop in graph.loops:
        _line(console, f"loop {loop.node}: {_stepping(loop)}")
    for node in graph.by_tensorflow:
        _line(console, f"{node} is in a loop or a branch: TensorFlow batches there by itself")


def _stepping(loop: LoopReport) -> str:
    if loop.whole:
        return f"stays whole: {loop.whole}"
    if loop.stepped_by:
        return f"stepped for all requests to {', '.join(loop.stepped_by)} together, {loop.where}"
    return f"could be stepped, with {', '.join(loop.might_be_by)} in the stages file's 'loops'"


def _draw(console: Console, title: str, report: ProgramReport) -> None:
    _line(console, f"{title}{': ' if report.note else ''}{report.note}")
    for stage in report.stages:
        _line(console, f"  {stage.step}. {stage.name}: {stage.batching}")
        _line(console, f"       in   {_tensors(stage.feeds)}")
        _line(console, f"       out  {_tensors(stage.fetches)}")


def _tensors(names: Iterable[str]) -> str:
    every = list(names)
    rest = len(every) - MAX_TENSORS
    more = [f"and {rest} more"] if rest > 0 else []
    return ", ".join([*every[:MAX_TENSORS], *more]) or "nothing"


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
