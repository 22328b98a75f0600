"""What a router makes of it that its controller does not answer. Pure.

One that has died is made anew by Ray, which knows it meanwhile. Ray knows none any more once the
run is over, be it that its driver was killed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: As long as Ray may know no controller before the run counts as over.
OVER_SECONDS = 120.0


@dataclass(frozen=True)
class Contact:
    """Whether the controller `is_lost`, and since when Ray knows of none."""

    is_lost: bool = False
    unknown_since: float = math.inf

    def is_over(self, now: float) -> bool:
        """Whether it is waited for no more."""
        return now - self.unknown_since >= OVER_SECONDS


def missed(contact: Contact, now: float, *, is_known: bool) -> Contact:
    """The controller did not answer; `is_known` says whether Ray knows it."""
    since = math.inf if is_known else min(contact.unknown_since, now)
    return Contact(is_lost=True, unknown_since=since)
