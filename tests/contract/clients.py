"""Clients as users have them: an HTTP client, and the stubs of tensorflow-serving-api."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from tensorflow_serving.apis import (
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
    session_service_pb2,
)

from tests.contract.endpoint import HOST, Endpoint

SECONDS = 30.0


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class RestClient:
    """Sends requests as they are: paths are neither quoted nor checked."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._port = endpoint.rest_port

    def send(
        self,
        method: str,
        path: str,
        body: Any = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection(HOST, self._port, timeout=SECONDS)
        try:
            connection.request(method, path, raw, dict(headers or {}))
            reply = connection.getresponse()
            lowered = {name.lower(): value for name, value in reply.getheaders()}
            return Reply(reply.status, lowered, reply.read())
        finally:
            connection.close()

    def predict(self, model: str, body: Any) -> Reply:
        return self.send("POST", f"/v1/models/{model}:predict", body)


class GrpcClient:
    """The stubs; SessionRun, which has none, by its path."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        models = model_service_pb2_grpc.ModelServiceStub(channel)
        session_run = channel.unary_unary(
            "/tensorflow.serving.SessionService/SessionRun",
            session_service_pb2.SessionRunRequest.SerializeToString,
            session_service_pb2.SessionRunResponse.FromString,
        )
        self._methods = {
            "Predict": prediction.Predict,
            "Classify": prediction.Classify,
            "Regress": prediction.Regress,
            "MultiInference": prediction.MultiInference,
            "GetModelMetadata": prediction.GetModelMetadata,
            "GetModelStatus": models.GetModelStatus,
            "HandleReloadConfigRequest": models.HandleReloadConfigRequest,
            "SessionRun": session_run,
        }

    def call(self, method: str, request: Any) -> Any:
        return self._methods[method](request, timeout=SECONDS)

    def refusal(self, method: str, request: Any) -> tuple[grpc.StatusCode, str]:
        """Code and text of a call that fails."""
        try:
            reply = self.call(method, request)
        except grpc.RpcError as error:
            return error.code(), error.details() or ""
        raise AssertionError(f"{method} was answered: {reply}")
