"""Starts and ends the routers' Ray Serve application. Ray Serve's calls, no decisions."""

from __future__ import annotations

from dataclasses import dataclass

import ray
from ray import serve
from ray.serve.config import HTTPOptions, gRPCOptions
from ray.serve.schema import LoggingConfig

from shardserve.cluster.ingress import ADDERS
from shardserve.cluster.options import DoorOptions, RayOptions
from shardserve.cluster.router_deployment import Router

#: A bound on what waits in one router, far above what it can serve.
MAX_ONGOING_REQUESTS = 4096
#: What Ray takes a router to need of a node's cores, so that a laptop can run several.
ROUTER_CPUS = 0.1
_LOGGING = LoggingConfig(enable_access_log=False, log_level="WARNING")


def serve_runs() -> bool:
    """Whether there is a Serve in this Ray already: somebody else's, or of another run."""
    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Application:
    """A Serve application: `routers` replicas that serve the model of a controller's run."""

    name: str
    controller: str
    doors: DoorOptions
    ray: RayOptions

    def deploy(self) -> None:
        """Start Serve if it does not run, and the routers. Returns when they answer."""
        host = self.doors.host
        serve.start(
            http_options=HTTPOptions(host=host, port=self.ray.serve_http_port),
            grpc_options=gRPCOptions(port=self.ray.serve_grpc_port, grpc_servicer_functions=ADDERS),
            logging_config=_LOGGING,
        )
        deployment = serve.deployment(Router).options(
            name="Router",
            num_replicas=self.ray.routers,
            max_ongoing_requests=MAX_ONGOING_REQUESTS,
            ray_actor_options={"num_cpus": ROUTER_CPUS},
            health_check_period_s=5.0,
            logging_config=_LOGGING,
        )
        serve.run(deployment.bind(self.controller, self.doors), name=self.name, route_prefix="/")
