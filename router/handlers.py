"""Answers requests about the models of a catalog; every door leads here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2

from shardserve.router import model_info, session_run
from shardserve.router.catalog import Catalog, ModelSpec
from shardserve.router.example_handlers import ExampleHandlers
from shardserve.router.json_codec import Form, decode_predict, parse_predict
from shardserve.router.json_encode import encode_predict
from shardserve.router.metrics import Metrics
from shardserve.router.model_specs import served_spec, spec_message, spec_of
from shardserve.router.predict import (
    DEFAULT_SIGNATURE,
    check_method_name,
    choose_outputs,
    decode_inputs,
    signature_named,
    signature_named_over_rest,
)
from shardserve.router.proto_codec import encode_predict_request, encode_predict_response
from shardserve.router.request_logs import RequestLogs
from shardserve.router.request_steps import RequestSteps
from shardserve.router.servable import Array, RequestContext, Servable, Signature, nbytes_of
from shardserve.router.session import StageThreads
from shardserve.router.trials import Trials


@dataclass(frozen=True)
class HandlerOptions:
    """How requests are answered, as TensorFlow Serving's flags of similar names say.

    `tensor_content`: outputs go into `tensor_content` rather than typed fields
    (--enable_serialization_as_tensor_content). `check_method_names`: a signature answers only the
    calls that its method is for (--enable_signature_method_name_check).
    """

    tensor_content: bool = False
    check_method_names: bool = False


class _Call(NamedTuple):
    """A decoded predict request."""

    servable: Servable
    signature: str
    inputs: dict[str, Array]
    outputs: tuple[str, ...]

    async def run(self, context: RequestContext) -> dict[str, Array]:
        return await self.servable.run(self.signature, self.inputs, self.outputs, context)


class Handlers:
    """Stateless but for the catalog. What goes wrong with a request is a `ServingError`."""

    def __init__(
        self,
        catalog: Catalog,
        threads: StageThreads,
        options: HandlerOptions = HandlerOptions(),
        metrics: Metrics | None = None,
    ) -> None:
        """`metrics` are told of experiments and of requests that are logged."""
        self.catalog = catalog
        self.logs = RequestLogs(catalog, metrics)
        self.steps = RequestSteps(catalog, threads, Trials(catalog, metrics), self.logs)
        self.examples = ExampleHandlers(self.steps, options.check_method_names)
        self._options = options

    async def predict(self, request: predict_pb2.PredictRequest, context: RequestContext) -> bytes:
        """A serialised PredictResponse."""
        call = await self.steps.decode(0, lambda: self._decode_proto(request, context), context)
        results = await call.run(context)
        spec = served_spec(request.model_spec.name, call.signature, call.servable.version)
        as_content = self._options.tensor_content
        reply = await self.steps.encode(
            _size(results), lambda: encode_predict_response(results, spec, as_content), context
        )
        log = self.logs.sampled(request.model_spec.name)
        if log is not None:
            log.add_message("predict_log", request, reply, spec)
        return reply

    async def predict_json(self, spec: ModelSpec, body: bytes, context: RequestContext) -> bytes:
        """The reply to a REST predict request, laid out as its body is."""
        servable = self.steps.resolve_for_body(spec, body, parse_predict, context)
        call, form = await self.steps.decode(
            len(body), lambda: self._decode_json(servable, body), context
        )
        results = await call.run(context)
        reply = await self.steps.encode(
            _size(results), lambda: encode_predict(results, form), context
        )
        log = self.logs.sampled(spec.name)
        if log is not None:
            served = served_spec(spec.name, call.signature, servable.version)
            asked = spec_message(spec, call.signature)
            log.add(
                "predict_log",
                lambda: encode_predict_request(call.inputs, asked),
                lambda: encode_predict_response(results, served),
                served,
                nbytes_of([*call.inputs.values(), *results.values()]),
            )
        return reply

    async def session_run(self, request: Any, context: RequestContext) -> bytes:
        """A serialised SessionRunResponse."""
        servable = self.steps.resolve(spec_of(request), context)
        asked = await self.steps.decode(0, lambda: session_run.decode_session_run(request), context)
        values = await session_run.run(servable, asked, context)
        spec = served_spec(request.model_spec.name, asked.by_alias or "", servable.version)
        size = sum([value.size for value in values])
        as_content = self._options.tensor_content
        return await self.steps.encode(
            size,
            lambda: session_run.encode_session_run(asked.fetches, values, spec, as_content),
            context,
        )

    def metadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """The model's signatures."""
        spec = spec_of(request)
        model_info.check_metadata_fields(request.metadata_field)
        return model_info.metadata_of(self.catalog, spec)

    def metadata_json(self, spec: ModelSpec) -> bytes:
        """The REST form of `metadata`, in which the signatures are not packed."""
        return model_info.metadata_json(model_info.metadata_of(self.catalog, spec))

    def status(
        self, request: get_model_status_pb2.GetModelStatusRequest
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """The states of the model's versions, newest first; a label is not looked at."""
        return model_info.status_of(self.catalog, spec_of(request))

    def status_json(self, spec: ModelSpec) -> bytes:
        """The REST form of `status`."""
        return model_info.status_json(model_info.status_of(self.catalog, spec))

    def _decode_proto(self, request: predict_pb2.PredictRequest, context: RequestContext) -> _Call:
        servable = self.steps.resolve(spec_of(request), context)
        name = request.model_spec.signature_name or DEFAULT_SIGNATURE
        signature = self._checked(signature_named(servable, name))
        inputs = decode_inputs(request.inputs, signature)
        return _Call(servable, name, inputs, choose_outputs(request.output_filter, signature))

    def _decode_json(self, servable: Servable, body: bytes) -> tuple[_Call, Form]:
        parsed = parse_predict(body)
        name = parsed.signature_name or DEFAULT_SIGNATURE
        signature = self._checked(signature_named_over_rest(servable, name))
        inputs = decode_predict(parsed, signature)
        return _Call(servable, name, inputs, tuple(signature.outputs)), parsed.form

    def _checked(self, signature: Signature) -> Signature:
        if self._options.check_method_names:
            check_method_name(signature)
        return signature


def _size(outputs: dict[str, Array]) -> int:
    return sum([array.size for array in outputs.values()])
