"""What any configuration has to keep to, whoever it came from: the start, a file, a request."""

from __future__ import annotations

from collections.abc import Sequence

from shardserve.cluster.log_root import with_log_prefix
from shardserve.cluster.model_config import ModelConfig
from shardserve.cluster.model_roots import check_roots
from shardserve.cluster.options import Models
from shardserve.cluster.python_servables import check_python
from shardserve.router.platforms import check_platform


def permitted(configs: Sequence[ModelConfig], models: Models) -> tuple[ModelConfig, ...]:
    """The configurations, each with its log below the root that `models` has for logs.

    Raises as `check_roots`, `check_platform`, `check_python` and `with_log_prefix` do.
    """
    check_roots(configs, models.roots)
    for config in configs:
        check_platform(config.platform, f"Model {config.name}")
    check_python(configs, models.python_servables)
    return tuple(with_log_prefix(config, models.log_root) for config in configs)
