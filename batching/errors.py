"""The error tree of the whole project: one class for each canonical status code.

Code raises the class that says what went wrong; only the doors translate it, to a gRPC status or
an HTTP one, and only the shard stream carries it over a wire, as (code, message).
"""

from __future__ import annotations

import enum
from typing import ClassVar


class Code(enum.IntEnum):
    """Canonical status codes, numbered as in google.rpc.Code and tensorflow.error.Code."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class ServingError(Exception):
    """A request or a load that failed. `message` goes to the client as it is."""

    code: ClassVar[Code] = Code.UNKNOWN

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Cancelled(ServingError):
    """The client went away, or a sibling of this part failed first."""

    code = Code.CANCELLED


class Unknown(ServingError):
    """The cause has no code of its own."""

    code = Code.UNKNOWN


class InvalidArgument(ServingError):
    """The input is wrong, whatever the state of the server."""

    code = Code.INVALID_ARGUMENT


class DeadlineExceeded(ServingError):
    """The request's time ran out."""

    code = Code.DEADLINE_EXCEEDED


class NotFound(ServingError):
    """No such model, version or table."""

    code = Code.NOT_FOUND


class AlreadyExists(ServingError):
    """The thing to be made is there already."""

    code = Code.ALREADY_EXISTS


class PermissionDenied(ServingError):
    """The caller may not do this."""

    code = Code.PERMISSION_DENIED


class ResourceExhausted(ServingError):
    """A bound (bytes, memory, queue places) would be passed."""

    code = Code.RESOURCE_EXHAUSTED


class FailedPrecondition(ServingError):
    """The server's or the model's state does not allow it; retrying alone will not help."""

    code = Code.FAILED_PRECONDITION


class Aborted(ServingError):
    """Overtaken by a concurrent change."""

    code = Code.ABORTED


class OutOfRange(ServingError):
    """Past the end of something that ends."""

    code = Code.OUT_OF_RANGE


class Unimplemented(ServingError):
    """Not done here."""

    code = Code.UNIMPLEMENTED


class Internal(ServingError):
    """A broken invariant of ours."""

    code = Code.INTERNAL


class Unavailable(ServingError):
    """Not now; a retry may succeed."""

    code = Code.UNAVAILABLE


class DataLoss(ServingError):
    """Bytes on disk are missing, cut off or changed."""

    code = Code.DATA_LOSS


class Unauthenticated(ServingError):
    """The peer did not prove who it is."""

    code = Code.UNAUTHENTICATED


_CLASS_OF: dict[Code, type[ServingError]] = {
    cls.code: cls for cls in ServingError.__subclasses__() if cls.code is not Code.OK
}


def error_of(code: int, message: str) -> ServingError:
    """The error that `code` names, as it was raised on the other side of a wire.

    A code that is not an error, or not one we know, gives `Unknown`.
    """
    try:
        known = Code(code)
    except ValueError:
        return Unknown(message)
    return _CLASS_OF.get(known, Unknown)(message)
