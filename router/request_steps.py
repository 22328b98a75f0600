"""What all requests go through, whatever they ask: find the model, decode, encode."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from shardserve.batching.errors import ServingError
from shardserve.router.catalog import Catalog, ModelSpec
from shardserve.router.request_logs import RequestLogs
from shardserve.router.servable import RequestContext, Servable, admit
from shardserve.router.session import StageThreads
from shardserve.router.trials import Trials

#: Bodies from this size on are decoded on a thread: they take longer than handing over does.
LARGE_BODY = 64 << 10

#: Replies of so many elements are encoded on a thread, for the same reason.
LARGE_REPLY = 32 << 10

_T = TypeVar("_T")


class RequestSteps:
    """The steps of a request, timed on its context, on the event loop or beside it."""

    def __init__(
        self, catalog: Catalog, threads: StageThreads, trials: Trials, logs: RequestLogs
    ) -> None:
        self.catalog = catalog
        #: Of the requests that were answered.
        self.logs = logs
        self._trials = trials
        self._threads = threads

    def resolve(self, spec: ModelSpec, context: RequestContext) -> Servable:
        """The servable that answers, if it would not refuse a request that came now.

        Raises as `Catalog.resolve` and `servable.admit` do.
        """
        servable = self._answering(spec, context)
        admit(servable, context.deadline)
        return servable

    def admit(self, spec: ModelSpec, deadline: float) -> None:
        """As `resolve`, where nothing is known of a request but its model and its deadline.

        Of a model on trial that does not say who answers: nothing is refused.
        """
        if self.catalog.trial(spec) is None:
            admit(self.catalog.resolve(spec), deadline)

    def resolve_for_body(
        self,
        spec: ModelSpec,
        body: bytes,
        parse: Callable[[bytes], object],
        context: RequestContext,
    ) -> Servable:
        """As `resolve`, but raises what `parse` does if there is no such model.

        What is wrong with a body comes before what is wrong with the model's name. Where the
        servable would refuse, nothing is decoded.
        """
        try:
            servable = self._answering(spec, context)
        except ServingError:
            parse(body)
            raise
        admit(servable, context.deadline)
        return servable

    def _answering(self, spec: ModelSpec, context: RequestContext) -> Servable:
        trial = self.catalog.trial(spec)
        if trial is None:
            return self.catalog.resolve(spec)
        return self._trials.choose(trial, context)

    async def decode(self, size: int, decode: Callable[[], _T], context: RequestContext) -> _T:
        """What `decode` makes of a body of `size` bytes."""
        if size < LARGE_BODY:
            return _timed("decode", decode, context)
        result: _T = await self._threads.run(decode, context, "decode")
        return result

    async def encode(self, size: int, encode: Callable[[], _T], context: RequestContext) -> _T:
        """What `encode` makes of results of `size` elements."""
        if size < LARGE_REPLY:
            return _timed("encode", encode, context)
        result: _T = await self._threads.run(encode, context, "encode")
        return result


def _timed(stage: str, work: Callable[[], _T], context: RequestContext) -> _T:
    started = time.perf_counter()
    result = work()
    context.spend(stage, time.perf_counter() - started)
    return result
