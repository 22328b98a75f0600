"""Answers the lookups that a running graph makes itself, for the request that it runs for.

TensorFlow's thread waits here for the shards, while the event loop asks them; nothing that the loop
does waits for that thread.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import graph_pb2

from shardserve.batching.errors import Cancelled, ServingError, error_of
from shardserve.router.batch_context import SharedContext
from shardserve.router.rounds import Fanout, SplitRound, ask
from shardserve.router.servable import Array, RequestContext
from shardserve.router.session import Stage
from shardserve.shards.cut.call_outs import CALL_OUT, CallOut
from shardserve.shards.cut.scorings import outputs_of
from shardserve.shards.messages import LookupReply, ShardChannel


class CallOuts:
    """A model's call-outs. What TensorFlow calls lives as long as this does."""

    def __init__(
        self, call_outs: Sequence[CallOut], fanout: Fanout, channels: Sequence[ShardChannel]
    ) -> None:
        self._call_outs = tuple(call_outs)
        self._fanout = fanout
        self._channels = tuple(channels)
        self._numbers = itertools.count(1)
        self._callers: dict[int, Caller] = {}
        #: TensorFlow keeps what a graph calls as long as the graph in which it was registered.
        self._registry = tf.Graph()

    def connect(self, graph_def: graph_pb2.GraphDef) -> None:
        """Give the nodes that call out, in place, the tokens by which TensorFlow finds this."""
        if not self._call_outs:
            return
        tokens = [self._register(number) for number in range(len(self._call_outs))]
        bodies = [function.node_def for function in graph_def.library.function]
        for node in itertools.chain(graph_def.node, *bodies):
            if node.op == CALL_OUT:
                node.attr["token"].s = tokens[int(node.attr["token"].s)]

    def open(self, context: RequestContext) -> Caller | None:
        """What a request's stages run with, on the event loop that runs now; None if none calls.

        It is to be closed at the end, whatever the end is.
        """
        if not self._call_outs:
            return None
        number = next(self._numbers)
        caller = Caller(number, context, self._channels)
        self._callers[number] = caller
        return caller

    def close(self, caller: Caller) -> None:
        """Cancel the request's call-outs that are on their way, and refuse later ones."""
        del self._callers[caller.number]
        caller.close()

    def _register(self, number: int) -> bytes:
        def called(request: Array, *operands: Array) -> list[Array]:
            return self._answer(number, int(request), operands)

        one = self._call_outs[number]
        with self._registry.as_default():
            # Nothing of this node is used but the name under which it was registered.
            made = tf.numpy_function(called, [], [tf.int64] * len(outputs_of(one.lookup)), False)
            token: bytes = tf.nest.flatten(made)[0].op.get_attr("token")
        return token

    def _answer(self, number: int, request: int, operands: Sequence[Array]) -> list[Array]:
        """On a thread of TensorFlow's, or the one that runs the stage."""
        caller = self._callers.get(request)
        if caller is None:
            raise Cancelled("the request is over")
        lookup = self._call_outs[number].lookup
        try:
            known = dict(zip(lookup.operands, operands, strict=True))
            split = self._fanout.split((lookup,), known)
            made = self._fanout.merge(split, caller.ask(split))
        except ServingError as error:
            caller.fail(error)
            raise
        return [made[name] for name in outputs_of(lookup)]


class Caller:
    """One request, as the graphs that run for it know it: by `number`. Safe for many threads."""

    def __init__(
        self, number: int, context: RequestContext, channels: Sequence[ShardChannel]
    ) -> None:
        self.number = number
        # A context of its own: what it spends is spent again, by whom it is told.
        self._context = SharedContext(context.request_id, context.deadline, of=(context,))
        self._channels = channels
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._asked: set[Future[dict[int, LookupReply]]] = set()
        self._is_closed = False
        self._error: ServingError | None = None

    def run(self, stage: Stage, values: Sequence[Array]) -> tuple[list[Array], dict[str, float]]:
        """The stage on `values`, and the seconds of each of `STAGES` that its call-outs took.

        What a call-out raised keeps its code and words: TensorFlow passes on neither.
        """
        try:
            results = stage(*values)
        except ServingError:
            if self._error is not None:
                raise self._taken_error() from None
            raise
        return results, self._spent()

    def ask(self, split: SplitRound) -> dict[int, LookupReply]:
        """The shards' replies. Raises as `rounds.ask` does; Cancelled once the request is over."""
        if not split.requests:
            return {}
        asked = self._start(lambda: ask(split, self._channels, self._context))
        try:
            return asked.result()
        except CancelledError:
            raise Cancelled("the request is over") from None
        finally:
            with self._lock:
                self._asked.discard(asked)
            # An error's traceback has this frame, which would be in a cycle with what has it.
            del asked

    def fail(self, error: ServingError) -> None:
        """Note why the stage is about to fail; the first reason counts."""
        with self._lock:
            # One of its own: the traceback of the other has frames that know this caller.
            self._error = self._error or error_of(error.code, error.message)

    def _taken_error(self) -> ServingError:
        error, self._error = self._error, None
        assert error is not None
        return error

    def close(self) -> None:
        """Cancel what is on its way, and refuse what comes later."""
        with self._lock:
            self._is_closed = True
            asked = list(self._asked)
        for one in asked:
            one.cancel()

    def _start(self, asking: Callable[[], Any]) -> Future[dict[int, LookupReply]]:
        with self._lock:
            if self._is_closed or self._loop.is_closed():
                raise Cancelled("the request is over")
            future = asyncio.run_coroutine_threadsafe(asking(), self._loop)
            self._asked.add(future)
            return future

    def _spent(self) -> dict[str, float]:
        seconds = dict(self._context.seconds)
        self._context.seconds.clear()
        return seconds
