"""What a router asks of a stage actor, and what that answers, on whatever transport."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from shardserve.batching.tasks import Priority
from shardserve.shards.messages import Array


@dataclass(frozen=True, slots=True)
class StageRequest:
    """One request's, or one batch's, tensors for a stage.

    `stage` is the name by which the actor knows it; `tensors` are in the order of the stage's
    inputs, each of its dtype (strings: object arrays of bytes). `rows` is the dimension 0 by which
    a region joins this with others; sequences and loops see theirs from the tensors.
    """

    stage: str
    tensors: tuple[Array, ...]
    rows: int
    priority: Priority = Priority.HIGH

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors; of strings, those of their places."""
        return sum([tensor.nbytes for tensor in self.tensors])


@dataclass(frozen=True, slots=True)
class StageReply:
    """The stage's outputs, in their order.

    The seconds are the actor's own: waiting for a batch and for its turn, then running.
    """

    tensors: tuple[Array, ...]
    queue_seconds: float = 0.0
    run_seconds: float = 0.0


class StageChannel(Protocol):
    """A way to the actors of one group. Safe for many requests at once."""

    async def ask(self, request: StageRequest, deadline: float) -> StageReply:
        """Answer, or raise a `ServingError`, by `deadline` (on `time.monotonic`).

        Raises Unavailable when no actor can be reached, DeadlineExceeded when the time is up, and
        what the stage itself raises, with its code and its words. Cancelling the awaiting task
        tells the actor to forget the request. Arrays in the reply may be read-only views.
        """
        ...
