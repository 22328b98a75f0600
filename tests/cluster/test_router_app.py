"""Ends of what is still being started, on real threads."""

from __future__ import annotations

import asyncio
import threading

import pytest

from shardserve.cluster.router_app import RouterApp
from shardserve.cluster.serve_ingress import ServeIngress
from shardserve.cluster.uncancelled import on_thread
from shardserve.cluster.waiting import noted_after


class Cluster:
    """Where an application runs, or does not."""

    def __init__(self) -> None:
        self.runs = False
        self.withdrawn = 0
        self.begun, self.may_run = threading.Event(), threading.Event()

    def deploy(self) -> ServeIngress:
        self.begun.set()
        self.may_run.wait(10)
        self.runs = True
        return ServeIngress()

    def withdraw(self) -> None:
        self.withdrawn += 1
        self.runs = False
        self.may_run.set()


async def test_routers_that_are_ended_while_they_start_are_ended_once_they_have() -> None:
    cluster = Cluster()
    app = RouterApp(cluster.deploy, cluster.withdraw)
    starting = asyncio.ensure_future(app.start())
    await asyncio.to_thread(cluster.begun.wait, 10)
    starting.cancel()

    await app.end()

    assert not cluster.runs
    assert cluster.withdrawn > 1


async def test_routers_that_are_ended_before_do_not_start() -> None:
    cluster = Cluster()
    app = RouterApp(cluster.deploy, cluster.withdraw)
    await app.end()
    await app.start()
    assert not cluster.begun.is_set()


async def test_a_cancelled_call_on_a_thread_returns_after_the_thread() -> None:
    begun, goes_on, made = threading.Event(), threading.Event(), []

    def work() -> None:
        begun.set()
        goes_on.wait(10)
        made.append("group")

    calling = asyncio.ensure_future(on_thread(work))
    await asyncio.to_thread(begun.wait, 10)
    calling.cancel()
    await asyncio.to_thread(int)
    assert not calling.done()
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert made == ["group"]


async def test_what_takes_long_is_noted_and_what_does_not_is_not() -> None:
    noted: list[str] = []
    late = asyncio.Event()
    with noted_after(0.0, lambda: (noted.append("late"), late.set())[0]):
        await late.wait()
    with noted_after(0.0, lambda: noted.append("in time")) as note:
        note.cancel()
        await asyncio.to_thread(int)
    assert noted == ["late"]
