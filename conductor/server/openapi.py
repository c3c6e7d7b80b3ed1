"""The OpenAPI description of the server, made from the tables that it works by."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .answering import EFFORTS
from .ask import CHAT, MOST_CHOICES, MOST_MESSAGES, RESPONSES, Fate, Parameter

_TEXT = {"type": "string"}
_TEXTS = {"type": "array", "items": _TEXT}
_FLAG = {"type": ["boolean", "null"]}


def _number(least: float, most: float) -> dict[str, Any]:
    return {"type": ["number", "null"], "minimum": least, "maximum": most}


def _whole(least: int, most: int) -> dict[str, Any]:
    return {"type": ["integer", "null"], "minimum": least, "maximum": most}


_WISHES = {
    "type": ["object", "null"],
    "additionalProperties": False,
    "properties": {
        "only": _TEXTS,
        "without": _TEXTS,
        "tags": _TEXTS,
        "without_tags": _TEXTS,
        "max_dollars": _number(0, 1e9),
        "max_tokens": _whole(1, 10**12),
        "max_calls": _whole(1, 10**6),
        "deadline": _number(0.001, 1e6),
        "rounds": _whole(1, 10),
        "steps": _whole(1, 16),
        "dry_run": _FLAG,
        "progress": _FLAG,
        "tools": {"type": ["string", "null"], "enum": ["last", "all", None]},
    },
}
_MESSAGE = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {
            "anyOf": [
                {"type": ["string", "null"]},
                {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["type"],
                        "properties": {"type": _TEXT, "text": _TEXT},
                    },
                },
            ]
        },
        "name": {"type": ["string", "null"]},
        "tool_call_id": {"type": ["string", "null"]},
    },
}
_TYPES: dict[str, Any] = {
    "model": _TEXT,
    "stream": _FLAG,
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "frequency_penalty": _number(-2, 2),
    "presence_penalty": _number(-2, 2),
    "max_tokens": _whole(1, 10**7),
    "max_completion_tokens": _whole(1, 10**7),
    "max_output_tokens": _whole(1, 10**7),
    "n": _whole(1, MOST_CHOICES),
    "seed": _whole(-(2**63), 2**63 - 1),
    "stop": {"anyOf": [{"type": ["string", "null"]}, {**_TEXTS, "maxItems": 4}]},
    "parallel_tool_calls": _FLAG,
    "tools": {"type": ["array", "null"], "items": {"type": "object", "required": ["type"]}},
    "tool_choice": {"type": ["string", "object", "null"]},
    "reasoning_effort": {"enum": [*EFFORTS, None]},
    "response_format": {"type": ["object", "null"]},
    "stream_options": {"type": ["object", "null"]},
    "messages": {
        "type": "array",
        "items": _MESSAGE,
        "minItems": 1,
        "maxItems": MOST_MESSAGES,
    },
    "input": {
        "anyOf": [_TEXT, {"type": "array", "items": {"type": "object"}, "maxItems": MOST_MESSAGES}]
    },
    "instructions": {"type": ["string", "null"]},
    "previous_response_id": {"type": ["string", "null"]},
    "text": {"type": ["object", "null"]},
    "reasoning": {"type": ["object", "null"]},
    "metadata": {"type": ["object", "null"]},
    "conductor": _WISHES,
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
                "run": _TEXT,
            },
        }
    },
}


def _request(table: tuple[Parameter, ...], *needed: str) -> dict[str, Any]:
    properties = {
        row.name: {
            **_TYPES.get(row.name, {}),
            "description": f"{row.fate}{f': {row.remark}' if row.remark else ''}",
        }
        for row in table
        if row.fate is not Fate.REFUSED
    }
    schema = {"type": "object", "required": list(needed), "properties": properties}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _replies(*kinds: str, errors: tuple[int, ...] = ()) -> dict[str, Any]:
    failed = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    return {
        "200": {"description": "done", "content": {kind: {} for kind in kinds}},
        **{str(status): {"description": "an error", **failed} for status in errors},
    }


_JSON, _SSE = "application/json", "text/event-stream"
_ASKING = (400, 401, 403, 404, 405, 413, 415, 421, 422, 429, 499, 500, 502, 503, 504)
_READING = (401, 404, 405, 421)


@cache
def document() -> dict[str, Any]:
    """The description, as JSON."""
    try:
        number = version("conductor-lm")
    except PackageNotFoundError:  # run from a checkout
        number = "0"

    def get(*kinds: str, path: str = "", summary: str) -> dict[str, Any]:
        parameter = {"name": path, "in": "path", "required": True, "schema": _TEXT}
        told: dict[str, Any] = {
            "summary": summary,
            "responses": _replies(*kinds, errors=_READING),
        }
        return {"get": {**told, "parameters": [parameter]} if path else told}

    return {
        "openapi": "3.1.0",
        "info": {"title": "Conductor", "version": number},
        "security": [{"key": []}, {}],
        "paths": {
            "/v1/chat/completions": {
                "post": {
                    "summary": "Answer a conversation",
                    "requestBody": _request(CHAT, "model", "messages"),
                    "responses": _replies(_JSON, _SSE, errors=_ASKING),
                }
            },
            "/v1/responses": {
                "post": {
                    "summary": "Answer a conversation, in the newer form",
                    "requestBody": _request(RESPONSES, "model", "input"),
                    "responses": _replies(_JSON, _SSE, errors=_ASKING),
                }
            },
            "/v1/responses/{id}": get(_JSON, path="id", summary="An earlier response"),
            "/v1/models": get(_JSON, summary="What can be asked"),
            "/v1/models/{model}": get(_JSON, path="model", summary="One of them"),
            "/v1/runs/{id}": get(_JSON, path="id", summary="The whole record of a run"),
            "/v1/runs/{id}/events": get(_SSE, path="id", summary="What happens in a run"),
            "/metrics": get("text/plain", summary="Counters, in the form of Prometheus"),
            "/openapi.json": get(_JSON, summary="This description"),
            "/health/live": get(_JSON, summary="Whether the process runs"),
            "/health/ready": {
                "get": {
                    "summary": "Whether it takes requests",
                    "responses": {
                        **_replies(_JSON, errors=(405, 421)),
                        "503": {"description": "it is about to stop", "content": {_JSON: {}}},
                    },
                }
            },
        },
        "components": {
            "schemas": {"Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
