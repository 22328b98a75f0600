"""Flags that say when versions are loaded and unloaded, and how they are warmed up."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated, ClassVar

from shardserve.cluster.flags.group import flag
from shardserve.cluster.lifecycle import Retries, availability_preserving, resource_preserving
from shardserve.cluster.options import ManagerOptions


@dataclass(frozen=True)
class LoadingFlags:
    PANEL: ClassVar[str] = "Versions"

    file_system_poll_wait_seconds: Annotated[
        float, flag("Seconds between looks at base paths; 0 or less: only at start and reload.")
    ] = 1
    max_num_load_retries: Annotated[
        int, flag("How often a load that failed is tried again.", min=0)
    ] = 5
    load_retry_interval_micros: Annotated[
        int, flag("Microseconds between tries; negative counts as 0.")
    ] = 60_000_000
    num_load_threads: Annotated[
        int, flag("Versions that load at a time once the server serves; 0 for 4.", min=0)
    ] = 0
    resource_preserving: Annotated[
        bool, flag("Unload a version before its successor loads, rather than after.")
    ] = False
    allow_version_labels_for_unavailable_models: Annotated[
        bool, flag("A label that is new may name a version that does not answer yet.")
    ] = False


def manager_options_of(flags: LoadingFlags) -> ManagerOptions:
    return ManagerOptions(
        policy=resource_preserving if flags.resource_preserving else availability_preserving,
        retries=Retries(
            flags.max_num_load_retries, max(0, flags.load_retry_interval_micros) / 1_000_000
        ),
        loads=flags.num_load_threads or ManagerOptions().loads,
        # As many as the original has, which has no flag for them.
        initial_loads=4 * len(os.sched_getaffinity(0)),
        poll_seconds=flags.file_system_poll_wait_seconds,
        allow_labels_for_unavailable=flags.allow_version_labels_for_unavailable_models,
    )
