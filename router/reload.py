"""ModelService.HandleReloadConfigRequest: what may be asked; who reloads is given."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tensorflow_serving.apis import model_management_pb2
from tensorflow_serving.config import model_server_config_pb2

from shardserve.batching.errors import InvalidArgument, Unimplemented

#: Makes a configuration the one that is served. Returns once all its models have a version that
#: answers. Raises a `ServingError`, in which case nothing that was served is gone.
Reload = Callable[[model_server_config_pb2.ModelServerConfig], Awaitable[None]]

#: What a counter, named as TensorFlow Serving's `/tensorflow/serving/...`, has reached in all.
CounterTotal = Callable[[str], int | None]


async def refuse_reload(config: model_server_config_pb2.ModelServerConfig) -> None:
    """For a server whose models are set when it starts."""
    raise Unimplemented("this server's models were set when it started; they cannot be reloaded")


async def reload_config(
    request: model_management_pb2.ReloadConfigRequest, reload: Reload, total: CounterTotal
) -> model_management_pb2.ReloadConfigResponse:
    """Serve what the request says, all of it and nothing else.

    The response has how much each counter that the request names rose meanwhile; those that there
    are not are left out. Raises InvalidArgument for anything but a list of models, and as `reload`
    does.
    """
    if request.config.WhichOneof("config") != "model_config_list":
        raise InvalidArgument(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. Only "
            "ModelConfigList is currently supported"
        )
    before = {name: total(name) for name in request.metric_names}
    await reload(request.config)
    response = model_management_pb2.ReloadConfigResponse()
    response.status.SetInParent()
    for name, start in before.items():
        end = total(name)
        if start is not None and end is not None:
            response.metric.add(name=name, int64_value_increase=end - start)
    return response
