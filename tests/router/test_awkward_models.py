"""Models as teams have them answer in every signature what TensorFlow answers for them uncut."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.layouts import layout_of
from tests.saved_models import Feeds
from tests.saved_models_awkward import MODELS
from tests.sharded import ask, assert_same, served, tables_of
from tests.uncut import Uncut

SHARDS = 3


@pytest.mark.filterwarnings("ignore::UserWarning:tensorflow")
@pytest.mark.parametrize("name", MODELS)
def test_the_answer_is_tensorflows_in_every_signature_under_each_layout(name, tmp_path, threads):
    model = MODELS[name]
    model.export(tmp_path / "m")
    sources = tables_of(tmp_path / "m")
    assert len(sources) == model.tables
    expected = answers(tmp_path / "m", model.requests)
    for kind in ("row_range", "row_hash", "column"):
        layout = layout_of(kind, {n: source.table for n, source in sources.items()}, SHARDS)
        servable = served(tmp_path / "m", layout, sources, threads)
        assert servable.signatures.keys() == model.requests.keys()
        for signature, feeds, answer in expected:
            assert_same(ask(servable, signature, feeds), answer)
        asyncio.run(servable.close())


def answers(directory: Path, requests) -> list[tuple[str, Feeds, Feeds]]:
    uncut = Uncut(directory)
    found = []
    for signature, feeds_of_it in requests.items():
        found += [(signature, feeds, uncut.answer(signature, feeds)) for feeds in feeds_of_it]
    uncut.close()
    return found
