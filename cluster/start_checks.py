"""What is looked at before anything is started, and what is shown when all of it is."""

from __future__ import annotations

from collections.abc import Mapping

from shardserve.batching.errors import NotFound
from shardserve.cluster.base_paths import look
from shardserve.cluster.catalog_table import ModelEntry
from shardserve.cluster.console import Served
from shardserve.cluster.example import Example, find_example
from shardserve.cluster.model_config import TENSORFLOW
from shardserve.cluster.options import ServeOptions, ports_by_flag
from shardserve.cluster.ports import check_free
from shardserve.cluster.versions import latest
from shardserve.router.catalog import State
from shardserve.router.listening import claim_socket
from shardserve.shards.layout_file import read_layout_file


def check_start(options: ServeOptions) -> None:
    """Raise the `ServingError` for what is not worth starting: a slip that can be seen at once.

    Base paths have to be there, unless they are waited for.
    """
    if not options.models.are_waited_for:
        for config in options.models.configs:
            if config.platform == TENSORFLOW:
                latest(config.base_path)
    if options.defaults.plan.layout_file is not None:
        read_layout_file(options.defaults.plan.layout_file)
    if options.example is not None and not options.example.is_file():
        raise NotFound(f"--print_example={options.example}: no such file")


def check_addresses(options: ServeOptions) -> None:
    """Raise FailedPrecondition or Unavailable for a port or a socket that somebody listens on."""
    check_free(options.doors.host, ports_by_flag(options))
    if options.doors.grpc_socket:
        claim_socket(options.doors.grpc_socket)


def served_of(models: Mapping[str, ModelEntry]) -> list[Served]:
    """The models that answer."""
    found = {
        name: tuple(v for v, one in sorted(entry.versions.items()) if one.state is State.AVAILABLE)
        for name, entry in models.items()
    }
    return [Served(name, versions) for name, versions in found.items() if versions]


def example_of(options: ServeOptions, served: list[Served]) -> Example | None:
    """The example request of the only model that is served, if it has one."""
    configs = {config.name: config for config in options.models.configs}
    if len(served) != 1 or served[0].name not in configs:
        return None
    config = configs[served[0].name]
    found = look(config).directories.get(max(served[0].versions))
    return None if found is None else find_example(found, options.example)
