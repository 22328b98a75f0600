"""The published OpenAPI description is true of the server, whatever is generated from it."""

from __future__ import annotations

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import checks

from shardserve.router.openapi import openapi
from shardserve.router.readiness import READY_PATH
from tests.contract.clients import RestClient
from tests.contract.endpoint import Endpoint

#: Most generated requests are for models that there are.
MODELS = ("half_plus_two", "examples", "types")

TRUE_OF_EVERY_REPLY = (
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
)


def test_the_description_is_published(rest: RestClient) -> None:
    reply = rest.send("GET", "/openapi.json")
    assert reply.status == 200
    assert reply.json["openapi"] == "3.1.0"
    assert "/v1/models/{model}/labels/{label}:classify" in reply.json["paths"]


OPERATIONS = {
    f"{found.ok().method} {found.ok().path}": found.ok()
    for found in schemathesis.openapi.from_dict(json.loads(openapi())).get_all_operations()
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_generated_requests_are_answered_as_described(endpoint: Endpoint, operation: str) -> None:
    @given(
        case=OPERATIONS[operation].as_strategy(),
        model=st.sampled_from((*MODELS, None)),
        version=st.sampled_from((1, 123, None)),
    )
    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    def ask(case: schemathesis.Case, model: str | None, version: int | None) -> None:
        if "model" in case.path_parameters:
            case.path_parameters["model"] = model or case.path_parameters["model"]
        if "version" in case.path_parameters and version is not None:
            case.path_parameters["version"] = version
        response = case.call(base_url=endpoint.url(""))
        # Neither is a type that JSON cannot carry, nor that a model has not come up.
        is_no_fault = response.status_code == 501 or case.path == READY_PATH
        faults = TRUE_OF_EVERY_REPLY[is_no_fault:]
        case.validate_response(response, checks=list(faults))

    ask()
