"""Every SavedModel that tests share, by name: how it is exported."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path

from tests import (
    loop_models,
    masked_models,
    region_models,
    saved_models,
    saved_models_flow,
    saved_models_more,
    saved_models_tf1,
    scored_models,
    stage_models,
    step_models,
)

Export = Callable[[Path], None]

_OF_CASES = (saved_models, saved_models_tf1, saved_models_more, saved_models_flow)
_OTHERS: Mapping[str, Export] = {
    "marked": region_models.marked,
    "captures": region_models.captures,
    "pairs": region_models.pairs,
    "plain": region_models.plain,
    "staged": stage_models.export,
    "scored": scored_models.export,
    "lowered": loop_models.export_lowered,
    "encoder": step_models.export_encoder,
    "decoder": step_models.export_decoder,
    "fragile": step_models.export_fragile,
    "halving": step_models.export_halving,
}


def _exports() -> Iterator[tuple[str, Export]]:
    for module in _OF_CASES:
        yield from ((case.name, case.export) for case in module.CASES)
    stay_whole = {name: export for name, (export, _) in loop_models.WHOLE.items()}
    tables = (masked_models.EXPORTS, loop_models.LIFTED, stay_whole, _OTHERS)
    yield from chain.from_iterable(table.items() for table in tables)


def _by_name() -> dict[str, Export]:
    found: dict[str, Export] = {}
    for name, export in _exports():
        assert name not in found, f"two models are called {name}"
        found[name] = export
    return found


EXPORTS: Mapping[str, Export] = _by_name()
