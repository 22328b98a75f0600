from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from shardserve.cluster.model_config import parse_model_config
from shardserve.cluster.model_options import ModelOptions, parse_model_options
from shardserve.router.experiments import Experiment
from shardserve.router.request_logging import RequestLogging
from shardserve.shards.forms import parse_form
from shardserve.shards.layout import Sharding
from shardserve.shards.layout_file import parse_layout, to_layout
from shardserve.shards.row_counts_file import read_row_counts
from shardserve.shards.stages_file import StagesFile
from shardserve.shards.storage import Precision, Tier
from shardserve.shards.tables import Table

ROOT = Path(__file__).parents[1]
FOLDERS = "(?:batching|shards|router|cluster|docs|examples|benchmarks)"
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


def test_the_layout_that_is_explained_is_a_layout() -> None:
    page = (ROOT / "docs" / "layouts.md").read_text()
    text, _ = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    found = re.findall(r"^  (\w+): +# ([\d,]+) x (\d+)$", text, re.MULTILINE)
    tables = {
        name: Table(name, "float32", int(rows.replace(",", "")), (int(columns),))
        for name, rows, columns in found
    }
    layout = to_layout(parse_layout(text, "docs/layouts.md"), tables)
    assert set(layout.tables) == set(tables)


def test_the_row_counts_that_are_explained_are_row_counts(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "layouts.md").read_text()
    _, text = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "counts.yaml").write_text(text)
    np.save(tmp_path / "items.npy", np.arange(4))
    assert set(read_row_counts(tmp_path / "counts.yaml")) == {"items", "countries"}


def test_every_sharding_is_explained() -> None:
    page = (ROOT / "docs" / "layouts.md").read_text()
    assert [word for word in Sharding if f"| `{word}` |" not in page] == []


@pytest.mark.parametrize("words", [Tier, set(Precision) - {Precision.FLOAT32}])
def test_every_tier_and_precision_is_explained(words: Iterable[str]) -> None:
    page = (ROOT / "docs" / "layouts.md").read_text()
    assert [word for word in words if f"| `{word}` |" not in page] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    named = [ROOT / name for name in re.findall(rf"`({FOLDERS}/[\w/.]+\.\w+)`", text)]
    linked = [page.parent / link for link in re.findall(r"\]\(([^)#:]+)\)", text)]
    assert [str(path) for path in named + linked if not path.exists()] == []


def test_the_stages_files_that_are_explained_are_such_files() -> None:
    page = (ROOT / "docs" / "stages.md").read_text()
    texts = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    groups, regions = (parse_form(StagesFile, text, "docs/stages.md") for text in texts)
    assert groups.stages.requests is not None
    assert groups.stages.requests.num_batch_threads == 4
    assert regions.regions.keys() == {"tower"}


def test_the_model_files_that_are_explained_are_such_files() -> None:
    page = (ROOT / "docs" / "rollout.md").read_text()
    options, config = re.findall(r"```\n(.*?)```", page, re.DOTALL)
    (ranker,) = parse_model_options(options, "docs", Path(), ModelOptions()).values()
    assert ranker.experiment == Experiment(0.05, 0.1, "x-user")
    (model,) = parse_model_config(config, "docs")
    assert model.logging == RequestLogging(Path("ranker/requests"), 0.01)
