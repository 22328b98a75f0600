"""Starts and ends the routers' Ray Serve application. Ray Serve's calls, no decisions.

They block. They are the controller's to make, on a thread: a driver that ends while one is under
way would be ended by Ray before it has tidied up.
"""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation, gRPCOptions
from ray.serve.schema import ApplicationStatus, LoggingConfig

from shardserve.cluster import serve_state
from shardserve.cluster.dead_runs import delete_dead
from shardserve.cluster.ingress import ADDERS
from shardserve.cluster.options import Application
from shardserve.cluster.placement import ROUTER_CPUS
from shardserve.cluster.router_deployment import Router
from shardserve.cluster.serve_ingress import ServeIngress

#: A bound on what waits in one router, far above what it can serve.
MAX_ONGOING_REQUESTS = 4096
_LOGGING = LoggingConfig(enable_access_log=False, log_level="WARNING")


def deploy(application: Application) -> ServeIngress:
    """Start Serve if it does not run, and the routers if they do not. Returns when they answer.

    What comes back is where Serve leads to them, if it does. Routers of runs that are dead go
    first. Routers that run are left alone: they outlive the controller that started them.
    """
    _start_serve(application)
    delete_dead()
    if not _is_running(application.name):
        _run_routers(application)
    if not application.ray.has_ingress:
        return ServeIngress()
    return serve_state.ingress_of(serve_state.details())


def withdraw(application: Application) -> None:
    """End the routers, and Serve with them unless it is somebody else's, or serves others."""
    if application.ray.address is None:
        serve.shutdown()
    elif serve_state.controller() is not None:
        serve.delete(application.name)
        if serve_state.may_end(serve.status().applications, we_started=serve_state.is_ours()):
            serve.shutdown()
            serve_state.note_ended()


def _start_serve(application: Application) -> None:
    was_there = serve_state.controller() is not None
    serve.start(**_ingress(application), logging_config=_LOGGING)
    if not was_there:
        serve_state.note_started()


def _run_routers(application: Application) -> None:
    deployment = serve.deployment(Router).options(
        name="Router",
        num_replicas=application.ray.routers,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        ray_actor_options={"num_cpus": ROUTER_CPUS},
        health_check_period_s=5.0,
        logging_config=_LOGGING,
    )
    serve.run(
        deployment.bind(application),
        name=application.name,
        # A Serve that runs already may have an ingress, which then does not lead here.
        route_prefix="/" if application.ray.has_ingress else None,
    )


def _ingress(application: Application) -> dict[str, Any]:
    """Where Serve's own proxies listen, if there are to be any."""
    ports = application.ray
    if not ports.has_ingress:
        return {"proxy_location": ProxyLocation.Disabled}
    host = application.doors.host or "0.0.0.0"  # noqa: S104 (all interfaces were asked for)
    return {
        "http_options": HTTPOptions(host=host, port=ports.serve_http_port),
        "grpc_options": gRPCOptions(port=ports.serve_grpc_port, grpc_servicer_functions=ADDERS),
    }


def _is_running(name: str) -> bool:
    found = serve.status().applications.get(name)
    return found is not None and found.status == ApplicationStatus.RUNNING
