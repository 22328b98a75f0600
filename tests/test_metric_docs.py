"""The page of metrics, what is written about it, and the dashboard name the same metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from shardserve.batching.errors import Code
from shardserve.batching.parameters import BatchingParameters
from shardserve.batching.stage import Stage
from shardserve.batching.tasks import Batch, Priority, Task
from shardserve.cluster.placement import Seat
from shardserve.cluster.shard_measures import labelled, routed
from shardserve.cluster.stage_placement import StageSeat
from shardserve.router.catalog import Model, State, Version
from shardserve.router.metric_families import FAMILIES, Kind
from shardserve.router.metrics import Metrics
from shardserve.router.stage_figures import count_measures
from shardserve.shards.cut.planning import plan_model
from shardserve.shards.measures import Measure, process_measures
from shardserve.shards.model import PlanOptions
from shardserve.shards.shard import Shard
from shardserve.shards.storage import Storage, Tier

ROOT = Path(__file__).parents[1]
DASHBOARD = ROOT / "docs" / "grafana" / "shardserve.json"

_PARAMETERS = BatchingParameters(max_batch_size=8, allowed_batch_sizes=(4, 8))


class _Batched:
    """As much of a servable as the metrics look at: it has a dense stage that has run a batch."""

    def __init__(self) -> None:
        self.stage: Stage[Any] = Stage("m/dense", _PARAMETERS)
        batch: Batch[Any] = Batch(self.stage.queue(None, Priority.HIGH), 0.0)
        batch.add(Task(None, 3, 1.0, 0, None), 0.0)
        self.stage.started(batch, 0.001)

    def stage_counts(self) -> dict[str, Any]:
        return {"m/dense": self.stage.counts()}


def _full(models: dict[str, Model]) -> Metrics:
    metrics = Metrics(REGISTRY, lambda: models)
    metrics.request("m", "predict", "REST", Code.OK, 0.001)
    metrics.request("m", "predict", "REST", Code.UNAVAILABLE, 0.001)
    metrics.stages("m", "predict", {"decode": 0.1, "dense": 0.2})
    metrics.examples("m", 3)
    metrics.warm_up("/models/m/1", Code.OK, 1.0, 5)
    metrics.request_logged("m", Code.OK)
    metrics.experiment("m", 1, "canary", Code.OK, 0.1)
    metrics.shadow_dropped("m", 1)
    return metrics


def _measures(shard: Shard, stage: Stage[Any]) -> list[Measure]:
    queue = [one.labelled(stage="m/1/region") for one in count_measures(stage.counts())]
    told = {
        Seat(0, 0): [*shard.measures(), *process_measures()],
        StageSeat("regions", 0): [*queue, *process_measures()],
    }
    return [*labelled("m", 1, told), *routed("m", 1, [(seat, None) for seat in told])]


@pytest.fixture(scope="module")
def page(saved_model: Callable[[str], Path]) -> dict[str, tuple[str, frozenset[str]]]:
    """The type and the labels of every family on a page that has all there are, by name."""
    servable: Any = _Batched()
    mapped = PlanOptions(shards=1, threshold=1, storage=Storage(Tier.MAPPED))
    plan = plan_model("m", 1, saved_model("gathers"), mapped)
    shard = Shard.load(plan.sources, plan.slices_of_shard(0), None, 1 << 12)
    metrics = _full({"m": Model({1: Version(State.AVAILABLE, servable)})})
    text = metrics.page(_measures(shard, servable.stage)).decode()
    types = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE))
    labels: dict[str, set[str]] = {name: set() for name in types}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels[_family(sample.name, types)] |= set(sample.labels) - {"le"}
    return {name: (kind, frozenset(labels[name])) for name, kind in types.items()}


def _family(sample: str, types: dict[str, str]) -> str:
    """Of which family a sample is. The parser adds "_total" to every counter's."""
    shorter = (sample.removesuffix(end) for end in ("_total", "_bucket", "_sum", "_count"))
    return next(name for name in (sample, *shorter) if name in types)


def _documented(text: str) -> Iterator[tuple[str, tuple[str, frozenset[str]]]]:
    for name, kind, labels in re.findall(r"^\| `(:\S+)` \| (\w+) \| (.*?) \|", text, re.MULTILINE):
        yield name, (kind, frozenset(re.findall(r"`(\w+)`", labels)))


def test_every_metric_is_explained_with_its_type_and_labels(
    page: dict[str, tuple[str, frozenset[str]]],
) -> None:
    explained = dict(_documented((ROOT / "docs" / "metrics.md").read_text()))
    ours = {
        name: found
        for name, found in page.items()
        if name.startswith(":")
        and not name.startswith((":shardserve:stage_b", ":shardserve:stage_p"))
    }
    assert explained == ours


def test_what_is_explained_is_what_is_declared() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    for family in FAMILIES.values():
        labels = ", ".join(f"`{label}`" for label in family.labels)
        row = (
            f"| `{family.name}` | {family.kind} | {labels} "
            f"| {family.unit} | {family.meaning} | {family.fold} |"
        )
        assert row in text


def test_stage_actors_have_the_batching_metrics_under_names_of_their_own(
    page: dict[str, tuple[str, frozenset[str]]],
) -> None:
    of_actors = {"model_name", "version", "group", "replica"}
    for name, (kind, _) in page.items():
        if name.startswith(":shardserve:batching_"):
            theirs = name.replace("batching_", "stage_batching_")
            assert page[theirs] == (kind, of_actors | {"stage"})
    assert page[":shardserve:stage_process_resident_bytes"] == ("gauge", of_actors)


# The dashboard


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def _queries(dashboard: dict[str, Any]) -> list[str]:
    variables = [v["definition"] for v in dashboard["templating"]["list"] if v["type"] == "query"]
    panels = [t["expr"] for panel in dashboard["panels"] for t in panel.get("targets", [])]
    return variables + panels


def _asked(query: str) -> set[tuple[str, frozenset[str]]]:
    """Metrics of a query, each with the labels that it is chosen by."""
    found = re.findall(r"(?<![\w:])(:[\w:]+|process_\w+)(?:\{(.*?)\})?", query)
    return {(name, frozenset(re.findall(r"(\w+)(?:=|!)", by))) for name, by in found}


def test_the_dashboard_asks_only_for_what_there_is(
    dashboard: dict[str, Any], page: dict[str, tuple[str, frozenset[str]]]
) -> None:
    types = {name: kind for name, (kind, _) in page.items()}
    asked = {one for query in _queries(dashboard) for one in _asked(query)}
    for name, chosen_by in asked:
        family = name if name in types else re.sub("_(bucket|sum|count)$", "", name)
        assert (types.get(family) == Kind.HISTOGRAM) == (family != name), name
        assert chosen_by <= page[family][1], name


def test_the_dashboard_groups_by_labels_that_there_are(
    dashboard: dict[str, Any], page: dict[str, tuple[str, frozenset[str]]]
) -> None:
    for query in _queries(dashboard):
        grouped = {
            label.strip() for by in re.findall(r"by \((.*?)\)", query) for label in by.split(",")
        }
        names = {re.sub("_(bucket|sum|count)$", "", name) for name, _ in _asked(query)}
        names |= {name for name, _ in _asked(query)}
        labels = frozenset().union(*(page[name][1] for name in names if name in page))
        assert grouped <= labels | {"le"}, query


def test_the_dashboard_charts_every_metric_of_ours_and_of_tensorflow_serving(
    dashboard: dict[str, Any],
) -> None:
    queries = " ".join(_queries(dashboard))
    assert [name for name in FAMILIES if name not in queries] == []


def test_panels_are_told_apart_and_take_the_data_source_that_is_chosen(
    dashboard: dict[str, Any],
) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    charts = [panel for panel in panels if panel["type"] != "row"]
    assert all(panel["targets"] for panel in charts)
    sources = [panel["datasource"] for panel in charts]
    sources += [target["datasource"] for panel in charts for target in panel["targets"]]
    assert {source["uid"] for source in sources} == {"${datasource}"}
    [variable] = [v for v in dashboard["templating"]["list"] if v["name"] == "datasource"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")


def test_panels_lie_beside_each_other(dashboard: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not taken & cells, panel["title"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
