"""What a probe gets over the REST port of a server with a model that has not come up."""

from __future__ import annotations

import pytest

from tests.contract.clients import RestClient


def test_a_server_is_not_ready_while_a_model_is_missing(posed_rest: RestClient) -> None:
    reply = posed_rest.send("GET", "/health/ready")
    assert reply.status == 503
    assert reply.headers["content-type"] == "application/json"
    assert reply.json == {"ready": False, "draining": False, "missing": ["new"]}


def test_a_server_is_ready_when_each_model_has_a_version_that_answers(rest: RestClient) -> None:
    reply = rest.send("GET", "/health/ready")
    assert (reply.status, reply.json["missing"]) == (200, [])


@pytest.mark.parametrize("path", ["/v1/health/ready", "/health/ready/", "/HEALTH/READY", "/health"])
def test_it_is_there_and_nowhere_else(rest: RestClient, path: str) -> None:
    assert rest.send("GET", path).status == (400 if path.startswith("/v1/") else 404)
