"""Version labels, names that move between versions, by TensorFlow Serving's rules. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from shardserve.batching.errors import FailedPrecondition


def check_labels(
    model: str,
    labels: Mapping[str, int],
    available: Collection[int],
    assigned: Mapping[str, int],
    *,
    allow_unavailable: bool = False,
) -> None:
    """Raise FailedPrecondition for a label whose version cannot answer now.

    `assigned` are the labels as they are. With `allow_unavailable` (TensorFlow Serving's
    --allow_version_labels_for_unavailable_models) a label that is new, or stays where it is, may
    name any version: only one that moves must not move to where nobody answers.
    """
    for label, version in labels.items():
        moves = assigned.get(label, version) != version
        if version not in available and (moves or not allow_unavailable):
            raise FailedPrecondition(
                f"Request to assign label to version {version} of model {model}, which is not "
                "currently available for inference"
            )
