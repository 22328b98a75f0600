"""What a predict request must be, whichever wire it came over."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from tensorflow.core.framework import tensor_pb2

from shardserve.batching.errors import FailedPrecondition, Internal, InvalidArgument
from shardserve.router.proto_codec import TensorError, decode_tensor
from shardserve.router.servable import Array, Servable, Signature
from shardserve.router.tensor_types import BY_NUMPY, name_of

#: The signature a request means that names none.
DEFAULT_SIGNATURE = "serving_default"

_METHODS = tuple(f"tensorflow/serving/{method}" for method in ("predict", "classify", "regress"))


def signature_named(servable: Servable, name: str) -> Signature:
    """The signature that a gRPC request names. Raises FailedPrecondition if there is none such."""
    signature = servable.signatures.get(name)
    if signature is None:
        raise FailedPrecondition(f'Serving signature key "{name}" not found.')
    return signature


def signature_named_over_rest(servable: Servable, name: str) -> Signature:
    """As `signature_named`, with the code and the words that REST has for it."""
    signature = servable.signatures.get(name)
    if signature is None:
        raise InvalidArgument(f'Serving signature name: "{name}" not found in signature def')
    return signature


def check_method_name(signature: Signature) -> None:
    """Raises Internal, as TensorFlow Serving does, for a signature of an odd method."""
    if signature.method_name not in _METHODS:
        raise Internal(
            "Expected prediction signature method_name to be one of "
            f"{{{', '.join(_METHODS)}}}. Was: {signature.method_name}"
        )


def decode_inputs(
    protos: Mapping[str, tensor_pb2.TensorProto], signature: Signature
) -> dict[str, Array]:
    """Exactly the signature's inputs, defaults filled in, each of its dtype.

    Raises InvalidArgument, naming the input, for missing, surplus, malformed and mistyped ones.
    """
    # A proto's map compares its keys in Python.
    given = set(protos)
    _check_count(given, signature)
    inputs = {}
    for place, (alias, info) in enumerate(signature.inputs.items()):
        if alias in given:
            inputs[alias] = decode_input(alias, protos[alias])
            _check_type(place, inputs[alias], info.dtype)
        elif alias in signature.defaults:
            inputs[alias] = signature.defaults[alias]
        else:
            raise InvalidArgument(_missing(alias, info.tensor, given, signature))
    if not given <= inputs.keys():
        used = given & inputs.keys()
        raise InvalidArgument(
            f"Inputs contains invalid name. Used request inputs: {_joined(used)}, "
            f"request input: {_joined(given)}"
        )
    return inputs


def choose_outputs(output_filter: Collection[str], signature: Signature) -> tuple[str, ...]:
    """The outputs asked for; all of them, if none is named. Raises InvalidArgument."""
    if not output_filter:
        return tuple(signature.outputs)
    seen: set[str] = set()
    for alias in output_filter:
        if alias not in signature.outputs:
            raise InvalidArgument(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in "
                f"the set {{{_joined(signature.outputs)}}}."
            )
        if alias in seen:
            raise InvalidArgument(f"duplicate output tensor alias: {alias}")
        seen.add(alias)
    return tuple(output_filter)


def _check_count(given: Collection[str], signature: Signature) -> None:
    wanted = signature.inputs.keys()
    too_few = len(given) < len(wanted) and not signature.defaults
    if len(given) > len(wanted) or too_few:
        raise InvalidArgument(
            f"input size does not match signature: {len(given)}!={len(wanted)} "
            f"len({{{_joined(given)}}}) != len({{{_joined(wanted)}}}). "
            f"Sent extra: {{{_joined(set(given) - wanted)}}}. "
            f"Missing but required: {{{_joined(wanted - set(given))}}}."
        )


def decode_input(alias: str, proto: tensor_pb2.TensorProto) -> Array:
    """One tensor of a request. Raises InvalidArgument, naming it."""
    try:
        return decode_tensor(proto)
    except TensorError as error:
        raise InvalidArgument(f"tensor parsing error: {alias} ({error})") from None


def _check_type(place: int, array: Array, dtype: int) -> None:
    given = BY_NUMPY[array.dtype]
    if given.number != dtype:
        raise InvalidArgument(
            f"Expects arg[{place}] to be {name_of(dtype)} but {given.name} is provided"
        )


def _missing(alias: str, feed: str, given: Iterable[str], signature: Signature) -> str:
    return (
        f"Signature input alias: {alias}(feed name: {feed}) not found in request and no default "
        f"value provided. Inputs expected to be in the request {{{_joined(given)}}}, or default "
        f"input alias set: {_joined(signature.defaults)}"
    )


def _joined(names: Iterable[str]) -> str:
    return ",".join(sorted(names))
