"""SessionService.SessionRun: tensors fed and fetched by the graph's names, or by aliases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardserve.batching.errors import InvalidArgument, Unimplemented
from shardserve.router.predict import DEFAULT_SIGNATURE, decode_input, signature_named
from shardserve.router.proto_codec import encode_named_tensor, message_field
from shardserve.router.servable import Array, RequestContext, Servable, Signature


@dataclass(frozen=True)
class SessionRun:
    """A decoded request. `fetches` are names as they were asked for, in order.

    `by_alias` is the signature whose aliases the names are, or None where they are the graph's.
    """

    feeds: Mapping[str, Array]
    fetches: tuple[str, ...]
    targets: tuple[str, ...]
    by_alias: str | None


def decode_session_run(request: Any) -> SessionRun:
    """The tensors of a SessionRunRequest. Raises InvalidArgument, naming the one at fault."""
    feeds: dict[str, Array] = {}
    for named in request.feed:
        if named.name in feeds:
            raise InvalidArgument(f"Endpoint '{named.name}' fed more than once.")
        feeds[named.name] = decode_input(named.name, named.tensor)
    signature = request.model_spec.signature_name or DEFAULT_SIGNATURE
    by_alias = signature if request.tensor_name_is_alias else None
    return SessionRun(feeds, tuple(request.fetch), tuple(request.target), by_alias)


async def run(servable: Servable, asked: SessionRun, context: RequestContext) -> list[Array]:
    """The values of `asked.fetches`.

    What one signature's inputs and outputs are goes the way of a prediction, through shards if the
    model has some. Anything else needs a servable that has its whole graph in one session; raises
    Unimplemented for another one. Raises FailedPrecondition for a signature that is not there,
    InvalidArgument for tensors that are not, and as `Servable.run` does.
    """
    if asked.by_alias is not None:
        signature = signature_named(servable, asked.by_alias)
        _check_aliases(asked, signature)
        if asked.feeds.keys() | signature.defaults.keys() >= signature.inputs.keys():
            return await _run_signature(servable, asked.by_alias, asked, asked.fetches, context)
        feeds = {signature.inputs[alias].tensor: value for alias, value in asked.feeds.items()}
        fetches = [signature.outputs[alias].tensor for alias in asked.fetches]
        return await _run_tensors(servable, feeds, fetches, asked.targets, context)
    return await _run_by_tensor(servable, asked, context)


def encode_session_run(
    fetches: Sequence[str], values: Sequence[Array], spec: bytes, as_content: bool = False
) -> bytes:
    """A serialised SessionRunResponse. `spec` is a serialised ModelSpec."""
    tensors = [
        message_field(1, encode_named_tensor(name, value, as_content))
        for name, value in zip(fetches, values, strict=True)
    ]
    return b"".join((*tensors, message_field(3, spec)))


def _check_aliases(asked: SessionRun, signature: Signature) -> None:
    _check_known("Input", asked.feeds, signature.inputs)
    _check_known("Output", asked.fetches, signature.outputs)


def _check_known(kind: str, names: Iterable[str], known: Mapping[str, Any]) -> None:
    for name in names:
        if name not in known:
            raise InvalidArgument(
                f"{kind} alias {name} is not in the signature, which has: {', '.join(known)}"
            )


async def _run_by_tensor(
    servable: Servable, asked: SessionRun, context: RequestContext
) -> list[Array]:
    feeds = {_tensor(name): value for name, value in asked.feeds.items()}
    if len(feeds) != len(asked.feeds):
        raise InvalidArgument("An endpoint is fed more than once.")
    fetches = tuple([_tensor(name) for name in asked.fetches])
    for name, signature in servable.signatures.items():
        if asked.targets or not _covers(signature, feeds.keys(), fetches):
            continue
        inputs = {alias: feeds[info.tensor] for alias, info in signature.inputs.items()}
        alias_of = {info.tensor: alias for alias, info in signature.outputs.items()}
        aliases = tuple([alias_of[tensor] for tensor in fetches])
        matched = SessionRun(inputs, aliases, (), name)
        return await _run_signature(servable, name, matched, aliases, context)
    return await _run_tensors(servable, feeds, fetches, asked.targets, context)


def _covers(signature: Signature, feeds: Iterable[str], fetches: Sequence[str]) -> bool:
    """Whether these are all of its inputs, and some of its outputs."""
    inputs = {info.tensor for info in signature.inputs.values()}
    outputs = {info.tensor for info in signature.outputs.values()}
    return bool(fetches) and inputs == set(feeds) and outputs >= set(fetches)


async def _run_signature(
    servable: Servable,
    name: str,
    asked: SessionRun,
    aliases: Sequence[str],
    context: RequestContext,
) -> list[Array]:
    inputs = {**servable.signatures[name].defaults, **asked.feeds}
    different = tuple(dict.fromkeys(aliases))
    if asked.targets:
        raise Unimplemented("operations can be run besides only where tensors are named")
    results = await servable.run(name, inputs, different, context)
    return [results[alias] for alias in aliases]


async def _run_tensors(
    servable: Servable,
    feeds: Mapping[str, Array],
    fetches: Sequence[str],
    targets: Sequence[str],
    context: RequestContext,
) -> list[Array]:
    run_tensors = getattr(servable, "run_tensors", None)
    if run_tensors is None:
        raise Unimplemented(
            f"Model {servable.name} is run by its signatures: feed all inputs of one of them, and "
            "fetch some of its outputs"
        )
    values: list[Array] = await run_tensors(feeds, fetches, targets, context)
    return values


def _tensor(name: str) -> str:
    """The full name: an operation's own stands for its first output."""
    return name if ":" in name else f"{name}:0"
