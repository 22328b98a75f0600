"""The OpenAPI description of the REST surface, which is served at /openapi.json."""

from __future__ import annotations

from typing import Any

import orjson

import shardserve
from shardserve.router.readiness import READY_PATH

OPENAPI_PATH = "/openapi.json"

_Schema = dict[str, Any]


def openapi() -> bytes:
    """The description, as JSON."""
    return orjson.dumps(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "TensorFlow Serving's REST API, by shardserve",
                "version": shardserve.__version__,
            },
            "paths": _paths(),
            "components": {"schemas": _SCHEMAS, "parameters": _PARAMETERS},
        },
        option=orjson.OPT_INDENT_2,
    )


def _paths() -> _Schema:
    paths: _Schema = {}
    for which, parameters in _WHICH.items():
        base = f"/v1/models/{{model}}{which}"
        refs = [{"$ref": f"#/components/parameters/{name}"} for name in ("model", *parameters)]
        for action in ("predict", "classify", "regress"):
            paths[f"{base}:{action}"] = {"parameters": refs, "post": _post(action, which)}
        paths[base] = {"parameters": refs, "get": _get("status", which)}
        paths[f"{base}/metadata"] = {"parameters": refs, "get": _get("metadata", which)}
    paths[READY_PATH] = {"get": _ready()}
    return paths


def _ready() -> _Schema:
    """The probe's: it says the same whether the server is ready or not."""
    replies = {"200": "every model can be asked", "503": "not yet, or not any more"}
    responses = {
        status: {"description": text, "content": _json("Readiness")}
        for status, text in replies.items()
    }
    return {"operationId": "ready", "responses": responses}


def _post(action: str, which: str) -> _Schema:
    return {
        "operationId": _operation(action, which),
        "requestBody": {"required": True, "content": _json(f"{action.capitalize()}Request")},
        "responses": _responses(f"{action.capitalize()}Response"),
    }


def _get(what: str, which: str) -> _Schema:
    return {
        "operationId": _operation(what, which),
        "responses": _responses(f"{what.capitalize()}Response"),
    }


def _operation(action: str, which: str) -> str:
    by = which.strip("/").partition("/")[0]
    return f"{action}_by_{by[:-1]}" if by else action


def _responses(schema: str) -> _Schema:
    errors = {
        str(status): {"description": text, "content": _json("Error")}
        for status, text in _ERRORS.items()
    }
    return {"200": {"description": "the answer", "content": _json(schema)}, **errors}


def _json(schema: str) -> _Schema:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _object(required: tuple[str, ...] = (), **properties: _Schema) -> _Schema:
    return {"type": "object", "required": list(required), "properties": properties}


#: How the version is named, and by which parameters.
_WHICH = {"": (), "/versions/{version}": ("version",), "/labels/{label}": ("label",)}

_ERRORS = {
    400: "the request is not one, or the model's graph refuses it",
    404: "there is no such model, or no such version that answers",
    408: "the body did not come in time",
    413: "the body is too long",
    429: "a bound would be passed, or the time ran out in a queue",
    499: "the client went away",
    500: "the server is at fault",
    501: "a type that JSON cannot carry",
    503: "not now: a retry may succeed",
    504: "the time ran out",
}

_PARAMETERS: _Schema = {
    "model": {
        "name": "model",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1, "maxLength": 256},
        "description": "The model's name, percent-encoded.",
    },
    "version": {
        "name": "version",
        "in": "path",
        "required": True,
        "schema": {"type": "integer", "minimum": 0, "maximum": 2**63 - 1},
    },
    "label": {
        "name": "label",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1, "maxLength": 256},
        "description": "A version label, percent-encoded. Status and metadata: see the reply.",
    },
}

_TEXT: _Schema = {"type": "string"}
_ANY: _Schema = {"description": 'A number, bool, string, {"b64": base64}, or lists of these.'}
_SIGNATURE: _Schema = {"type": "string", "description": 'By default "serving_default".'}
_EXAMPLE: _Schema = {
    "type": "object",
    "description": "Values by feature: one, or a list of one kind.",
    "additionalProperties": True,
}
_EXAMPLES = _object(
    ("examples",),
    signature_name=_SIGNATURE,
    context=_EXAMPLE,
    examples={"type": "array", "minItems": 1, "items": _EXAMPLE},
)

_SCHEMAS: _Schema = {
    "PredictRequest": {
        "oneOf": [
            _object(
                ("instances",),
                signature_name=_SIGNATURE,
                instances={"type": "array", "minItems": 1, "items": _ANY},
            ),
            _object(("inputs",), signature_name=_SIGNATURE, inputs=_ANY),
        ]
    },
    "PredictResponse": {
        "oneOf": [
            _object(("predictions",), predictions={"type": "array"}),
            _object(("outputs",), outputs=_ANY),
        ]
    },
    "ClassifyRequest": _EXAMPLES,
    "ClassifyResponse": _object(
        ("results",),
        results={
            "type": "array",
            "items": {
                "type": "array",
                "description": "Of one example: a label and a score for each class.",
                "items": {"type": "array", "prefixItems": [_TEXT, {"type": "number"}]},
            },
        },
    ),
    "RegressRequest": _EXAMPLES,
    "RegressResponse": _object(
        ("results",), results={"type": "array", "items": {"type": "number"}}
    ),
    "StatusResponse": _object(
        ("model_version_status",),
        model_version_status={
            "type": "array",
            "items": _object(
                ("version", "state", "status"),
                version=_TEXT,
                state={"enum": ["UNKNOWN", "START", "LOADING", "AVAILABLE", "UNLOADING", "END"]},
                status=_object(
                    ("error_code", "error_message"), error_code=_TEXT, error_message=_TEXT
                ),
            ),
        },
    ),
    "MetadataResponse": _object(
        ("model_spec", "metadata"),
        model_spec=_object(
            ("name", "signature_name", "version"), name=_TEXT, signature_name=_TEXT, version=_TEXT
        ),
        metadata=_object(("signature_def",), signature_def={"type": "object"}),
    ),
    "Error": _object(("error",), error=_TEXT),
    "Readiness": _object(
        ("ready", "draining", "missing"),
        ready={"type": "boolean"},
        draining={"type": "boolean"},
        missing={"type": "array", "items": _TEXT},
    ),
}
