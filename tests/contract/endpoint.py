"""Where a server of the contract listens, and what its cases may rely on."""

from __future__ import annotations

from dataclasses import dataclass, field

from tensorflow_serving.config import model_server_config_pb2

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Failure:
    """Why a version could not be loaded: a code, and what its message has in it."""

    code: int
    text: str


@dataclass(frozen=True)
class Endpoint:
    """A server of `half_plus_two` (versions 122 END, 123 AVAILABLE, 124 LOADING, 125 END because of
    `failure`; labels stable 123, old 122), `examples` 1 and `types` 1, as `models` exports them.

    `config` is what it serves, for those who reload it.
    """

    rest_port: int
    grpc_port: int
    failure: Failure
    config: model_server_config_pb2.ModelServerConfig = field(
        default_factory=model_server_config_pb2.ModelServerConfig
    )

    def url(self, path: str) -> str:
        return f"http://{HOST}:{self.rest_port}{path}"

    @property
    def grpc(self) -> str:
        return f"{HOST}:{self.grpc_port}"
