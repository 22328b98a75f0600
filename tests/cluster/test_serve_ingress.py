"""Flags of the ingress, of which a Serve that runs already takes no notice."""

from __future__ import annotations

from shardserve.cluster.options import RayOptions
from shardserve.cluster.serve_ingress import ServeIngress, ignored


def test_ports_that_serve_has_otherwise_are_said_by_the_names_of_their_flags() -> None:
    asked = RayOptions(serve_http_port=8000, serve_grpc_port=9000)

    assert ignored(asked, ServeIngress("127.0.0.1", 8000, 9000)) == []
    http, grpc = ignored(asked, ServeIngress("127.0.0.1", 8123))
    assert http.startswith("--serve_http_port=8000 is not heeded")
    assert http.endswith("listens on 8123")
    assert grpc.startswith("--serve_grpc_port=9000 is not heeded")
    assert "no such ingress" in grpc


def test_nothing_is_said_of_an_ingress_that_nobody_asked_for() -> None:
    assert ignored(RayOptions(serve_http_port=0), ServeIngress()) == []
