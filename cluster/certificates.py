"""The doors' certificates, read again as their file changes: whoever issues them renews them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from shardserve.batching.errors import InvalidArgument, ServingError
from shardserve.cluster.door_config import read_tls
from shardserve.cluster.options import DoorOptions
from shardserve.router.tls import Tls, check_renewal
from shardserve.router.tls_context import server_context

logger = logging.getLogger(__name__)

#: Between two looks at the file.
LOOK_SECONDS = 10.0


def read_certificates(path: Path) -> Tls:
    """What an --ssl_config_file says, if a server can do with it.

    Raises NotFound or InvalidArgument, naming the file; nothing of a key is said.
    """
    tls = read_tls(path)
    try:
        server_context(tls)
    except InvalidArgument as error:
        raise InvalidArgument(f"{path}: {error.message}") from None
    return tls


class CertificateFile:
    """The file at `path`, which said `tls` at the start."""

    def __init__(self, path: Path, tls: Tls) -> None:
        self._path = path
        self._latest = tls
        self._problem = ""

    @property
    def latest(self) -> Tls:
        """The last that a server can do with."""
        return self._latest

    def is_renewed(self) -> bool:
        """Read the file again: whether `latest` is another now. Blocks.

        What is wrong with the file is logged once, and changes nothing.
        """
        try:
            found = read_certificates(self._path)
            check_renewal(self._latest, found)
        except ServingError as error:
            self._note(error.message)
            return False
        self._note("")
        if found == self._latest:
            return False
        self._latest = found
        logger.info("the certificates of %s are new", self._path)
        return True

    def _note(self, problem: str) -> None:
        if problem and problem != self._problem:
            logger.error("certificates are not renewed, those before stay: %s", problem)
        self._problem = problem


def certificate_file(doors: DoorOptions) -> CertificateFile | None:
    """The file that the doors have their certificates of, if they have any."""
    if doors.tls is None or doors.tls_file is None:
        return None
    return CertificateFile(doors.tls_file, doors.tls)


async def follow_certificates(
    file: CertificateFile,
    renew: Callable[[Tls], None],
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Give what is new to `renew`, for ever."""
    while True:
        await pause(LOOK_SECONDS)
        if await asyncio.to_thread(file.is_renewed):
            renew(file.latest)
