"""The context of a batch: that of all its requests, whose time is spent on each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from shardserve.batching.tasks import Batch
from shardserve.router.servable import RequestContext, Said


@dataclass
class SharedContext(RequestContext):
    """What is done for several requests at once, or for a part `of` one: its time is its own."""

    of: Sequence[RequestContext] = ()

    def told(self, said: Iterable[Said], elapsed: float) -> None:
        """See `RequestContext.told`: each of the requests is."""
        known = tuple(said)
        for context in self.of:
            context.told(known, elapsed)


def _itself(context: Any) -> RequestContext:
    assert isinstance(context, RequestContext)
    return context


@contextmanager
def batch_context(
    batch: Batch[Any], request: Callable[[Any], RequestContext] = _itself
) -> Iterator[RequestContext]:
    """A context for a batch's run; `request` has the request's of each task's context.

    It lasts to the latest deadline. What the tasks have waited is spent on "queue".
    """
    assert batch.started is not None
    for task in batch.tasks:
        request(task.context).spend("queue", batch.started - task.queued)
    # A large task is in a batch more than once.
    contexts = list({id(c): c for c in (request(task.context) for task in batch.tasks)}.values())
    if len(contexts) == 1:
        yield contexts[0]
        return
    common = SharedContext(
        request_id=f"{contexts[0].request_id}+{len(contexts) - 1}",
        deadline=max(context.deadline for context in contexts),
        of=contexts,
    )
    try:
        yield common
    finally:
        for context in contexts:
            for stage, seconds in common.seconds.items():
                context.spend(stage, seconds)
