"""The manager of models, over base paths on disk and a deployer that does what a test says."""

import asyncio
import threading
from pathlib import Path

import pytest

from shardserve.batching.errors import (
    Aborted,
    Code,
    FailedPrecondition,
    InvalidArgument,
    Unavailable,
    Unknown,
)
from shardserve.cluster.base_paths import Found, look
from shardserve.cluster.configured import ConfiguredModel, Wanted
from shardserve.cluster.lifecycle import Life, Retries
from shardserve.cluster.manager import KEPT_MODELS, Manager
from shardserve.cluster.model_config import All, ModelConfig
from shardserve.cluster.model_options import ModelOptions
from shardserve.cluster.model_views import warnings_of
from shardserve.cluster.options import ManagerOptions
from shardserve.cluster.versions import VersionId

OPTIONS = ManagerOptions(retries=Retries(0), poll_seconds=0.0)


class Deployer:
    """Loads at once, but for versions that are to fail, or to wait until they are released."""

    def __init__(self) -> None:
        self.failing: dict[int, str] = {}
        self.held: dict[int, asyncio.Event] = {}
        self.calls: list[tuple[str, str, int]] = []
        self.attempts = 0

    async def load(self, wanted: Wanted) -> None:
        model, version = wanted.id.model, wanted.id.version
        assert wanted.directory.name == str(version)
        self.attempts += 1
        if version in self.held:
            await self.held[version].wait()
        if version in self.failing:
            raise Unavailable(self.failing[version])
        self.calls.append(("load", model, version))

    async def unload(self, version: VersionId) -> None:
        self.calls.append(("unload", version.model, version.version))


def model(tmp_path: Path, name: str, *versions: int, **fields) -> ConfiguredModel:
    for version in versions:
        (tmp_path / name / str(version)).mkdir(parents=True, exist_ok=True)
    return ConfiguredModel(ModelConfig(name, tmp_path / name, **fields), ModelOptions())


def available(manager: Manager) -> dict[str, set[int]]:
    return {name: set(view.available) for name, view in manager.models.items()}


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (the condition is the test's own)
            await asyncio.sleep(0)


async def closed(manager: Manager) -> None:
    """End it as a server ends: nothing is configured, all versions go, and nothing follows."""
    await manager.configure([])
    await until(lambda: not any(available(manager).values()))
    await manager.abandon()


async def test_what_is_configured_is_served_when_configure_returns(tmp_path) -> None:
    manager = Manager(Deployer(), OPTIONS)
    await manager.configure([model(tmp_path, "a", 1, 2), model(tmp_path, "b", 7, policy=All())])
    assert available(manager) == {"a": {2}, "b": {7}}
    await closed(manager)
    assert available(manager) == {"a": set(), "b": set()}


async def test_a_new_version_is_ready_before_the_old_one_goes(tmp_path) -> None:
    deployer = Deployer()
    manager = Manager(deployer, OPTIONS)
    await manager.configure([model(tmp_path, "a", 1)])
    model(tmp_path, "a", 2)
    await manager.poll()
    await until(lambda: available(manager) == {"a": {2}})
    await until(lambda: ("unload", "a", 1) in deployer.calls)
    assert deployer.calls == [("load", "a", 1), ("load", "a", 2), ("unload", "a", 1)]
    await closed(manager)


async def test_a_model_without_a_base_path_stalls_nobody_else(tmp_path) -> None:
    manager = Manager(Deployer(), OPTIONS)
    missing = model(tmp_path, "missing")
    configuring = asyncio.ensure_future(manager.configure([missing, model(tmp_path, "there", 1)]))
    await until(lambda: available(manager).get("there") == {1})
    assert not configuring.done()
    model(tmp_path, "missing", 3)
    await manager.poll()
    await configuring
    assert available(manager) == {"missing": {3}, "there": {1}}
    await closed(manager)


async def test_a_base_path_that_vanishes_takes_nothing_from_what_is_served(tmp_path) -> None:
    manager = Manager(Deployer(), OPTIONS)
    config = model(tmp_path, "a", 1)
    await manager.configure([config])
    config.config.base_path.rename(tmp_path / "moved")
    await manager.poll()
    assert available(manager) == {"a": {1}}
    await closed(manager)


async def test_a_model_whose_versions_all_fail_is_reported_and_the_others_are_served(
    tmp_path,
) -> None:
    deployer = Deployer()
    deployer.failing = {3: "no such table"}
    manager = Manager(deployer, OPTIONS)
    with pytest.raises(Unknown) as raised:
        await manager.configure([model(tmp_path, "m", 3), model(tmp_path, "ok", 1)])
    assert raised.value.message == (
        "1 model(s) did not become available: "
        "{{{name: m version: 3} due to error: UNAVAILABLE: no such table}, }"
    )
    assert available(manager)["ok"] == {1}
    status = manager.models["m"].versions[3]
    assert status.phase is Life.ENDED
    assert status.error is not None
    assert status.error.code is Code.UNAVAILABLE
    await closed(manager)


async def test_a_failed_load_is_tried_again(tmp_path) -> None:
    deployer = Deployer()
    deployer.failing = {1: "not yet"}
    options = ManagerOptions(retries=Retries(most=10_000, interval=0.0), poll_seconds=0.0)
    manager = Manager(deployer, options)
    configuring = asyncio.ensure_future(manager.configure([model(tmp_path, "a", 1)]))
    await until(lambda: deployer.attempts > 1)
    deployer.failing.clear()
    await configuring
    assert available(manager) == {"a": {1}}
    await closed(manager)


async def test_a_load_that_is_wanted_no_more_is_cancelled(tmp_path) -> None:
    deployer = Deployer()
    deployer.held[1] = asyncio.Event()
    manager = Manager(deployer, OPTIONS)
    configuring = asyncio.ensure_future(manager.configure([model(tmp_path, "a", 1)]))
    await until(lambda: deployer.attempts)
    (tmp_path / "a" / "1").rmdir()
    await manager.poll()
    await until(lambda: manager.models["a"].versions[1].phase is Life.ENDED)
    model(tmp_path, "a", 2)
    await manager.poll()
    await configuring
    assert available(manager) == {"a": {2}}
    await closed(manager)


async def test_a_reload_replaces_the_configuration_whole(tmp_path) -> None:
    manager = Manager(Deployer(), OPTIONS)
    await manager.configure([model(tmp_path, "a", 1), model(tmp_path, "b", 1)])
    await manager.configure([model(tmp_path, "b", 1), model(tmp_path, "c", 1)])
    await until(lambda: available(manager) == {"a": set(), "b": {1}, "c": {1}})
    with pytest.raises(InvalidArgument, match="platform"):
        await manager.configure([model(tmp_path, "b", platform="onnx")])
    assert available(manager)["c"] == {1}
    await closed(manager)


async def test_labels_are_assigned_after_their_versions_have_loaded(tmp_path) -> None:
    manager = Manager(Deployer(), OPTIONS)
    config = model(tmp_path, "a", 1, 2, policy=All(), labels={"stable": 1, "canary": 2})
    await manager.configure([config])
    assert manager.models["a"].labels == {"stable": 1, "canary": 2}
    with pytest.raises(FailedPrecondition, match="version 3 of model a"):
        await manager.configure([model(tmp_path, "a", policy=All(), labels={"stable": 3})])
    assert manager.models["a"].labels == {"stable": 1, "canary": 2}
    await closed(manager)


async def test_no_more_versions_load_at_once_than_is_allowed(tmp_path) -> None:
    deployer = Deployer()
    deployer.held = {version: asyncio.Event() for version in range(1, 6)}
    options = ManagerOptions(retries=Retries(0), poll_seconds=0.0, loads=2, initial_loads=2)
    manager = Manager(deployer, options)
    configs = [model(tmp_path, name, 1, 2, 3, policy=All()) for name in ("a", "b")]
    configuring = asyncio.ensure_future(manager.configure(configs))
    await until(lambda: deployer.attempts == 2)
    for _ in range(10):
        await asyncio.sleep(0)
    assert deployer.attempts == 2
    for event in deployer.held.values():
        event.set()
    await configuring
    await until(lambda: available(manager) == {"a": {1, 2, 3}, "b": {1, 2, 3}})
    await closed(manager)


async def test_every_change_is_told(tmp_path) -> None:
    told = []
    manager = Manager(
        Deployer(),
        OPTIONS,
        lambda models: told.append(
            {n: v.versions[1].phase for n, v in models.items() if v.versions}
        ),
    )
    await manager.configure([model(tmp_path, "a", 1)])
    await closed(manager)
    phases = [one["a"] for one in told if one]
    assert list(dict.fromkeys(phases)) == [
        Life.LOADING,
        Life.READY,
        Life.UNLOADING,
        Life.ENDED,
    ]


async def test_a_newer_configuration_overtakes_one_that_is_still_waited_for(tmp_path) -> None:
    manager = Manager(Deployer(), OPTIONS)
    missing = model(tmp_path, "missing")
    first = asyncio.ensure_future(manager.configure([missing]))
    await until(lambda: manager.models.get("missing"))
    await manager.configure([model(tmp_path, "there", 1)])
    with pytest.raises(Aborted, match="another configuration"):
        await first
    assert available(manager) == {"missing": set(), "there": {1}}
    assert not manager.models["missing"].is_configured
    await closed(manager)


async def test_the_same_configuration_again_overtakes_nobody(tmp_path) -> None:
    manager = Manager(Deployer(), OPTIONS)
    missing = model(tmp_path, "missing")
    both = [asyncio.ensure_future(manager.configure([missing])) for _ in range(2)]
    await until(lambda: manager.models.get("missing"))
    model(tmp_path, "missing", 1)
    await manager.poll()
    await asyncio.gather(*both)
    await closed(manager)


async def test_a_reload_can_bring_a_version_and_its_label(tmp_path) -> None:
    manager = Manager(Deployer(), OPTIONS)
    await manager.configure([model(tmp_path, "a", 1, 2, labels={"stable": 2})])
    both = model(tmp_path, "a", policy=All(), labels={"stable": 2, "old": 1})
    await manager.configure([both])
    assert manager.models["a"].labels == {"stable": 2, "old": 1}
    await closed(manager)


async def test_a_model_that_failed_before_fails_no_later_configuration(tmp_path) -> None:
    deployer = Deployer()
    deployer.failing = {3: "no such table"}
    manager = Manager(deployer, OPTIONS)
    broken = model(tmp_path, "m", 3)
    with pytest.raises(Unknown):
        await manager.configure([broken])
    await manager.configure([broken, model(tmp_path, "ok", 1)])
    assert available(manager) == {"m": set(), "ok": {1}}
    await closed(manager)


async def test_problems_and_attempts_that_failed_are_told_to_whoever_waits(tmp_path) -> None:
    deployer = Deployer()
    deployer.failing = {1: "not yet"}
    options = ManagerOptions(retries=Retries(most=5, interval=1000.0), poll_seconds=0.0)
    manager = Manager(deployer, options)
    configs = [model(tmp_path, "missing"), model(tmp_path, "late", 1)]
    configuring = asyncio.ensure_future(manager.configure(configs))
    await until(lambda: len(warnings_of(manager.models)) == 2)
    missing, late = warnings_of(manager.models)
    assert str(tmp_path / "missing") in missing
    assert late == "late version 1 cannot be loaded, and will be tried again: not yet"
    configuring.cancel()
    await closed(manager)


async def test_a_watcher_that_fails_ends_the_wait_and_does_not_stall_it(tmp_path) -> None:
    def watch(models) -> None:
        if models["a"].available:
            raise RuntimeError("cannot draw this")

    manager = Manager(Deployer(), OPTIONS, watch)
    with pytest.raises(RuntimeError, match="cannot draw this"):
        async with asyncio.timeout(10):
            await manager.configure([model(tmp_path, "a", 1)])
    await manager.abandon()


async def test_of_models_that_are_configured_no_more_the_last_are_remembered(tmp_path) -> None:
    manager = Manager(Deployer(), OPTIONS)
    names = [f"m{number}" for number in range(KEPT_MODELS + 3)]
    for name in names:
        await manager.configure([model(tmp_path, name, 1)])
        await until(lambda: sum(map(bool, available(manager).values())) == 1)
    again = names[2]
    await manager.configure([model(tmp_path, again, 1)])
    await until(lambda: available(manager)[names[-1]] == set())
    await manager.configure([])

    kept = {*names[3:], again}
    assert len(kept) == KEPT_MODELS + 1
    await until(lambda: available(manager)[again] == set())
    await manager.configure([model(tmp_path, "new", 1)])
    assert set(manager.models) == {*names[4:], again, "new"}
    for name in names[4:]:
        assert manager.models[name].versions[1].phase is Life.ENDED
    assert len(manager._looks._latest) <= KEPT_MODELS + 1
    await closed(manager)


async def test_a_label_whose_version_goes_is_told_once_and_one_that_moves_is_not(
    tmp_path, caplog: pytest.LogCaptureFixture
) -> None:
    manager = Manager(Deployer(), OPTIONS)
    await manager.configure(
        [model(tmp_path, "a", 1, policy=All(), labels={"stable": 1, "fixed": 1})]
    )
    model(tmp_path, "a", 2)
    labels = {"stable": 2, "fixed": 1}
    await manager.configure([model(tmp_path, "a", policy=All(), labels=labels)])
    assert "label" not in caplog.text

    (tmp_path / "a" / "1").rmdir()
    for _ in range(3):
        await manager.poll()
    await until(lambda: available(manager) == {"a": {2}})
    (told,) = [record.getMessage() for record in caplog.records if "label" in record.getMessage()]
    assert told == "label fixed of model a names version 1, which is unloaded"
    await closed(manager)


class HungDisk:
    """Looks at base paths; that of the model `hung` only when it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.looks: list[str] = []

    def look(self, config: ModelConfig) -> Found:
        self.looks.append(config.name)
        if config.name == "hung":
            assert self.released.wait(60)
        return look(config)


async def test_a_disk_that_hangs_stalls_nobody_else_and_is_asked_once(tmp_path) -> None:
    disk = HungDisk()
    manager = Manager(Deployer(), OPTIONS, look=disk.look)
    models = [model(tmp_path, "hung", 1), model(tmp_path, "there", 1)]
    configuring = asyncio.ensure_future(manager.configure(models))
    await until(lambda: available(manager) == {"hung": set(), "there": {1}})
    model(tmp_path, "there", 2)
    async with asyncio.timeout(10):
        await manager.poll()
    await until(lambda: available(manager)["there"] == {2})
    assert not configuring.done()
    assert disk.looks.count("hung") == 1
    disk.released.set()
    await configuring
    assert available(manager) == {"hung": {1}, "there": {2}}
    await closed(manager)


async def test_a_configuration_is_not_held_up_by_a_disk_that_one_before_it_waits_for(
    tmp_path,
) -> None:
    disk = HungDisk()
    manager = Manager(Deployer(), OPTIONS, look=disk.look)
    first = asyncio.ensure_future(manager.configure([model(tmp_path, "hung", 1)]))
    await until(lambda: disk.looks)
    await manager.configure([model(tmp_path, "there", 1)])
    with pytest.raises(Aborted):
        await first
    disk.released.set()
    await manager.poll()
    assert available(manager) == {"hung": set(), "there": {1}}
    await closed(manager)


async def test_a_configuration_sees_what_came_after_a_look_that_was_under_way(tmp_path) -> None:
    disk = HungDisk()
    manager = Manager(Deployer(), OPTIONS, look=disk.look)
    hung = model(tmp_path, "hung", 1)
    first = asyncio.ensure_future(manager.configure([hung]))
    await until(lambda: disk.looks)
    second = asyncio.ensure_future(manager.configure([hung]))
    await asyncio.sleep(0)
    disk.released.set()
    await asyncio.gather(first, second)
    assert disk.looks == ["hung", "hung"]
    await closed(manager)


async def test_a_look_that_fails_as_nobody_expects_fails_who_asked_for_it(tmp_path) -> None:
    def broken(config: ModelConfig) -> Found:
        raise RuntimeError(f"no look at {config.name}")

    manager = Manager(Deployer(), OPTIONS, look=broken)
    with pytest.raises(RuntimeError, match="no look at a"):
        await manager.configure([model(tmp_path, "a", 1)])
    with pytest.raises(RuntimeError, match="no look at a"):
        await manager.poll()
    await closed(manager)


async def test_who_stops_waiting_for_a_configuration_takes_nothing_from_it(tmp_path) -> None:
    deployer = Deployer()
    deployer.held[1] = asyncio.Event()
    manager = Manager(deployer, OPTIONS)
    config = model(tmp_path, "a", 1, labels={"stable": 1})
    configuring = asyncio.ensure_future(manager.configure([config]))
    await until(lambda: deployer.attempts)
    configuring.cancel()
    await asyncio.wait([configuring])
    deployer.held[1].set()
    await until(lambda: manager.models["a"].is_settled)
    assert manager.models["a"].labels == {"stable": 1}
    await closed(manager)


async def test_however_many_wait_for_a_configuration_one_task_does(tmp_path) -> None:
    manager = Manager(Deployer(), OPTIONS)
    missing = model(tmp_path, "missing")
    before = len(asyncio.all_tasks())
    for _ in range(20):
        waiting = asyncio.ensure_future(manager.configure([missing]))
        await until(lambda: (one := manager.models.get("missing")) and one.problems)
        waiting.cancel()
        await asyncio.wait([waiting])
    assert len(asyncio.all_tasks()) <= before + 2  # One that waits, and one that looks.
    await closed(manager)


async def test_a_look_at_base_paths_that_fails_is_not_the_last(tmp_path) -> None:
    rounds = iter(range(4))

    async def pause(_: float) -> None:
        if next(rounds, None) is None:
            raise asyncio.CancelledError

    manager = Manager(Deployer(), ManagerOptions(poll_seconds=1.0), pause=pause)
    nowhere = ConfiguredModel(ModelConfig("a", None), ModelOptions())  # No such thing as a path.
    with pytest.raises(AttributeError):
        await manager.configure([nowhere])
    with pytest.raises(asyncio.CancelledError):
        await manager.run()
    assert next(rounds, None) is None
