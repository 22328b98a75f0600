"""Answers requests about the models of a catalog; every door leads here."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any

import orjson
from google.protobuf import json_format
from google.protobuf.message import Message
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    predict_pb2,
)

from shardserve.batching.errors import InvalidArgument
from shardserve.router.catalog import Catalog, ModelSpec
from shardserve.router.json_codec import Form, decode_predict, parse_predict
from shardserve.router.json_encode import encode_predict
from shardserve.router.predict import (
    DEFAULT_SIGNATURE,
    choose_outputs,
    decode_inputs,
    signature_named,
    signature_named_over_rest,
)
from shardserve.router.proto_codec import encode_predict_response
from shardserve.router.servable import Array, RequestContext, Servable
from shardserve.router.session import StageThreads

#: JSON bodies from this size on are decoded on a thread: they take longer than handing over does.
LARGE_BODY = 64 << 10

_SIGNATURE_DEF = "signature_def"


@dataclass(frozen=True, slots=True)
class _Call:
    """A decoded predict request."""

    servable: Servable
    signature: str
    inputs: dict[str, Array]
    outputs: tuple[str, ...]

    async def run(self, context: RequestContext) -> dict[str, Array]:
        return await self.servable.run(self.signature, self.inputs, self.outputs, context)


class Handlers:
    """Stateless but for the catalog. What goes wrong with a request is a `ServingError`."""

    def __init__(self, catalog: Catalog, threads: StageThreads) -> None:
        self.catalog = catalog
        self._threads = threads

    async def predict(self, request: predict_pb2.PredictRequest, context: RequestContext) -> bytes:
        """A serialised PredictResponse."""
        started = time.perf_counter()
        call = self._decode_proto(request)
        context.spend("decode", time.perf_counter() - started)
        results = await call.run(context)
        started = time.perf_counter()
        spec = _served_spec(request.model_spec.name, call.signature, call.servable.version)
        reply = encode_predict_response(results, spec)
        context.spend("encode", time.perf_counter() - started)
        return reply

    async def predict_json(self, spec: ModelSpec, body: bytes, context: RequestContext) -> bytes:
        """The reply to a REST predict request, laid out as its body is."""
        if len(body) < LARGE_BODY:
            started = time.perf_counter()
            call, form = self._decode_json(spec, body)
            context.spend("decode", time.perf_counter() - started)
        else:
            call, form = await self._threads.run(
                lambda: self._decode_json(spec, body), context, "decode"
            )
        results = await call.run(context)
        started = time.perf_counter()
        reply = encode_predict(results, form)
        context.spend("encode", time.perf_counter() - started)
        return reply

    def metadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """The model's signatures."""
        spec = spec_of(request)
        if not request.metadata_field:
            raise InvalidArgument(
                "GetModelMetadataRequest must specify at least one metadata_field"
            )
        for field in request.metadata_field:
            if field != _SIGNATURE_DEF:
                raise InvalidArgument(f"Metadata field {field} is not supported")
        return self._metadata(spec)

    def metadata_json(self, spec: ModelSpec) -> bytes:
        """The REST form of `metadata`, in which the signatures are not packed."""
        response = self._metadata(spec)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata[_SIGNATURE_DEF].Unpack(signatures)
        return orjson.dumps(
            {
                "model_spec": _as_dict(response.model_spec),
                "metadata": {_SIGNATURE_DEF: _as_dict(signatures)},
            },
            option=orjson.OPT_INDENT_2,
        )

    def status(
        self, request: get_model_status_pb2.GetModelStatusRequest
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """The states of the model's versions, newest first; a label is not looked at."""
        return self._status(spec_of(request))

    def status_json(self, spec: ModelSpec) -> bytes:
        """The REST form of `status`."""
        return orjson.dumps(_as_dict(self._status(spec)), option=orjson.OPT_INDENT_2)

    def _decode_proto(self, request: predict_pb2.PredictRequest) -> _Call:
        servable = self.catalog.resolve(spec_of(request))
        name = request.model_spec.signature_name or DEFAULT_SIGNATURE
        signature = signature_named(servable, name)
        inputs = decode_inputs(request.inputs, signature)
        return _Call(servable, name, inputs, choose_outputs(request.output_filter, signature))

    def _decode_json(self, spec: ModelSpec, body: bytes) -> tuple[_Call, Form]:
        parsed = parse_predict(body)
        servable = self.catalog.resolve(spec)
        name = parsed.signature_name or DEFAULT_SIGNATURE
        signature = signature_named_over_rest(servable, name)
        inputs = decode_predict(parsed, signature)
        return _Call(servable, name, inputs, tuple(signature.outputs)), parsed.form

    def _metadata(self, spec: ModelSpec) -> get_model_metadata_pb2.GetModelMetadataResponse:
        servable = self.catalog.resolve(spec)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = servable.name
        response.model_spec.version.value = servable.version
        signatures = get_model_metadata_pb2.SignatureDefMap.FromString(servable.signature_def_map)
        response.metadata[_SIGNATURE_DEF].Pack(signatures)
        return response

    def _status(self, spec: ModelSpec) -> get_model_status_pb2.GetModelStatusResponse:
        response = get_model_status_pb2.GetModelStatusResponse()
        for number, version in self.catalog.statuses(spec):
            row = response.model_version_status.add(version=number, state=int(version.state))
            row.status.error_code = int(version.code)
            row.status.error_message = version.message
        return response


def spec_of(request: Any) -> ModelSpec:
    """The ModelSpec of any request that has one. Raises InvalidArgument if it is missing."""
    if not request.HasField("model_spec"):
        raise InvalidArgument("Missing ModelSpec")
    spec = request.model_spec
    choice = spec.WhichOneof("version_choice")
    return ModelSpec(
        spec.name,
        spec.version.value if choice == "version" else None,
        spec.version_label if choice == "version_label" else None,
    )


@functools.lru_cache(maxsize=1024)
def _served_spec(name: str, signature: str, version: int) -> bytes:
    """The serialised ModelSpec of a reply: what answered, with nothing left open."""
    spec = model_pb2.ModelSpec(name=name, signature_name=signature)
    spec.version.value = version
    serialized: bytes = spec.SerializeToString()
    return serialized


def _as_dict(message: Message) -> dict[str, Any]:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
