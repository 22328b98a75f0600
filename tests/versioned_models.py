"""Versions of models that answer each with a number of their own, and a client to ask them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    predict_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from shardserve.router.catalog import State
from shardserve.router.prediction import RPCS, PredictionHandlers
from shardserve.router.servable import RequestContext

#: Tables of models that are to be cut are of as many bytes or more.
THRESHOLD = 4096
_ROWS = 1024


class Constant(tf.Module):
    """Gathers rows of a table that is full of one number."""

    def __init__(self, number: float) -> None:
        self.table = tf.Variable(np.full((_ROWS, 1), number, np.float32), name="table")

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, "ids")])
    def __call__(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.gather(self.table, ids)[:, 0]}


def export(base_path: Path, version: int, number: float) -> None:
    """Version `version`, that answers `number`. It appears whole, as if it had been moved there."""
    module = Constant(number)
    beside = base_path.parent / f"{base_path.name}-{version}-being-written"
    tf.saved_model.save(module, str(beside), signatures=module.__call__)
    base_path.mkdir(parents=True, exist_ok=True)
    beside.rename(base_path / str(version))


def config(text: str) -> model_server_config_pb2.ModelServerConfig:
    """A configuration, from its text form."""
    return text_format.Parse(text, model_server_config_pb2.ModelServerConfig())


def config_text(*models: str) -> str:
    """The text form of a list of models, each the text form of one."""
    return "model_config_list { " + " ".join(f"config {{ {one} }}" for one in models) + " }"


def model_text(name: str, base_path: Path, more: str = "") -> str:
    """The text form of one model."""
    return f'name: "{name}" base_path: "{base_path}" model_platform: "tensorflow" {more}'


@dataclass(frozen=True)
class Client:
    """Asks a server in this process, as a gRPC door would. Errors are raised as `ServingError`s."""

    prediction: PredictionHandlers
    seconds: float = 20.0

    async def answer(self, method: str, request: Any) -> bytes:
        context = RequestContext("test", time.monotonic() + self.seconds)
        return await self.prediction.answer(RPCS[method], request.SerializeToString(), context)

    async def ask(self, model: str, version: int | None = None, label: str = "") -> float:
        """The number of the version that answers."""
        request = predict_pb2.PredictRequest()
        request.model_spec.name = model
        if version is not None:
            request.model_spec.version.value = version
        elif label:
            request.model_spec.version_label = label
        request.inputs["ids"].CopyFrom(tf.make_tensor_proto([3, 9], tf.int64))
        reply = predict_pb2.PredictResponse.FromString(await self.answer("Predict", request))
        (number,) = set(reply.outputs["y"].float_val)
        return float(number)

    async def states(self, model: str) -> dict[int, State]:
        """What GetModelStatus says of each version."""
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = model
        reply = get_model_status_pb2.GetModelStatusResponse.FromString(
            await self.answer("GetModelStatus", request)
        )
        return {one.version: State(one.state) for one in reply.model_version_status}

    async def reload(self, text: str) -> None:
        """HandleReloadConfigRequest with a configuration in text form."""
        request = model_management_pb2.ReloadConfigRequest(config=config(text))
        await self.answer("HandleReloadConfigRequest", request)
