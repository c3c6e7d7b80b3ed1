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
_MAY_TEXT = {"type": ["string", "null"]}


def _object(*needed: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(needed), "properties": properties}


def _one_of(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


def _content(*texts: str) -> dict[str, Any]:
    """A text or a list of parts: texts of those types, or others, which only some workers read."""
    text = _object("type", "text", type=_one_of(*texts), text=_TEXT)
    other = _object("type", type={"type": "string", "not": _one_of(*_TEXT_PARTS)})
    return {"anyOf": [_MAY_TEXT, {"type": "array", "items": {"anyOf": [text, other]}}]}


_TEXT_PARTS = ("text", "refusal", "input_text", "output_text", "summary_text", "reasoning_text")
_CALLS = {
    "type": ["array", "null"],
    "items": _object(
        "function",
        id=_MAY_TEXT,
        type=_one_of("function"),
        function=_object("name", name=_TEXT, arguments=_MAY_TEXT),
    ),
}
_MESSAGE = {
    "anyOf": [
        _object(
            "role",
            "content",
            role=_one_of("system", "developer", "user"),
            content=_content("text"),
            name=_MAY_TEXT,
        ),
        _object(
            "role",
            role=_one_of("assistant"),
            content=_content("text"),
            refusal=_MAY_TEXT,
            tool_calls=_CALLS,
        ),
        _object(
            "role",
            "tool_call_id",
            role=_one_of("tool"),
            content=_content("text"),
            tool_call_id=_TEXT,
        ),
    ]
}
_ITEM = {
    "anyOf": [
        _object(
            "role",
            "content",
            type=_one_of("message"),
            role=_one_of("system", "developer", "user", "assistant"),
            content=_content("input_text", "output_text"),
        ),
        _object(
            "type",
            "call_id",
            "name",
            type=_one_of("function_call"),
            call_id=_TEXT,
            name=_TEXT,
            arguments=_MAY_TEXT,
        ),
        _object(
            "type",
            "call_id",
            "output",
            type=_one_of("function_call_output", "custom_tool_call_output"),
            call_id=_TEXT,
            output=_content("input_text"),
        ),
        _object(
            "type",
            "call_id",
            "name",
            type=_one_of("custom_tool_call"),
            call_id=_TEXT,
            name=_TEXT,
            input=_MAY_TEXT,
        ),
        _object("type", type=_one_of("reasoning")),
    ]
}
_ABOUT = {"name": _TEXT, "description": _MAY_TEXT, "parameters": {"type": ["object", "null"]}}
_FORMS = (_object("type", type=_one_of("text")), _object("type", type=_one_of("json_object")))
_JSON_SCHEMA = {"name": _TEXT, "schema": {"type": ["object", "boolean"]}}
_CHAT_TYPES: dict[str, Any] = {
    "tools": {
        "type": ["array", "null"],
        "items": {
            "anyOf": [
                _object(
                    "type", "function", type=_one_of("function"), function=_object("name", **_ABOUT)
                ),
                _object("type", type={"type": "string", "not": _one_of("function")}),
            ]
        },
    },
    "response_format": {
        "anyOf": [
            {"type": "null"},
            *_FORMS,
            _object(
                "type",
                "json_schema",
                type=_one_of("json_schema"),
                json_schema=_object("name", **_JSON_SCHEMA),
            ),
        ]
    },
    "stream_options": {**_object(include_usage=_FLAG), "type": ["object", "null"]},
}
_RESPONSES_TYPES: dict[str, Any] = {
    "tools": {
        "type": ["array", "null"],
        "items": {
            "anyOf": [
                _object("type", "name", type=_one_of("function"), **_ABOUT),
                _object("type", "name", type=_one_of("custom"), name=_TEXT, description=_MAY_TEXT),
                _object("type", type={"type": "string", "not": _one_of("function", "custom")}),
            ]
        },
    },
    "text": {
        **_object(
            format={
                "anyOf": [
                    {"type": "null"},
                    *_FORMS,
                    _object("type", "name", type=_one_of("json_schema"), **_JSON_SCHEMA),
                ]
            },
            verbosity={"enum": ["low", "medium", "high", None]},
        ),
        "type": ["object", "null"],
    },
    "reasoning": {**_object(effort={"enum": [*EFFORTS, None]}), "type": ["object", "null"]},
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
    "tool_choice": {
        "anyOf": [_one_of("none", "auto", "required"), {"type": ["object", "null"]}],
    },
    "reasoning_effort": {"enum": [*EFFORTS, None]},
    "messages": {
        "type": "array",
        "items": _MESSAGE,
        "minItems": 1,
        "maxItems": MOST_MESSAGES,
    },
    "input": {"anyOf": [_TEXT, {"type": "array", "items": _ITEM, "maxItems": MOST_MESSAGES}]},
    "instructions": {"type": ["string", "null"]},
    "previous_response_id": {"type": ["string", "null"]},
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

_COUNT = {"type": "integer", "minimum": 0}
_TOLD = {
    "type": "object",
    "description": "who did what, and what it took",
    "required": ["policy"],
    "properties": {
        "policy": _TEXT,
        "run": _TEXT,
        "state": _TEXT,
        "plan": {"type": ["object", "null"]},
        "steps": {"type": "array", "items": {"type": "object", "required": ["worker", "state"]}},
        "workers": {"type": "object"},
        "dollars": {"type": "number", "minimum": 0},
        "seconds": {"type": "number", "minimum": 0},
    },
}
_COMPLETION = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices", "usage", "conductor"],
    "properties": {
        "id": _TEXT,
        "object": {"const": "chat.completion"},
        "created": _COUNT,
        "model": _TEXT,
        "choices": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["index", "message", "finish_reason"],
                "properties": {
                    "index": _COUNT,
                    "message": {
                        "type": "object",
                        "required": ["role", "content"],
                        "properties": {
                            "role": {"const": "assistant"},
                            "content": {"type": ["string", "null"]},
                            "tool_calls": {
                                "type": "array",
                                "minItems": 1,
                                "items": {"type": "object", "required": ["id", "type"]},
                            },
                        },
                    },
                    "finish_reason": {"enum": ["stop", "length", "tool_calls", "content_filter"]},
                },
            },
        },
        "usage": {
            "type": "object",
            "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
            "additionalProperties": {"anyOf": [_COUNT, {"type": "object"}]},
        },
        "conductor": _TOLD,
    },
}
_RESPONSE = {
    "type": "object",
    "required": ["id", "object", "created_at", "status", "model", "output", "usage", "error"],
    "properties": {
        "id": {"type": "string", "pattern": "^resp_"},
        "object": {"const": "response"},
        "created_at": _COUNT,
        "status": {"enum": ["completed", "incomplete", "failed", "in_progress", "cancelled"]},
        "model": _TEXT,
        "output": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type", "id", "status"],
                "properties": {
                    "type": {"enum": ["message", "function_call", "custom_tool_call"]},
                    "content": {"type": "array"},
                    "call_id": _TEXT,
                },
            },
        },
        "usage": {
            "type": ["object", "null"],
            "required": ["input_tokens", "output_tokens", "total_tokens"],
        },
        "error": {"type": ["object", "null"]},
        "conductor": _TOLD,
    },
}
_MODEL = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {"id": _TEXT, "object": {"const": "model"}, "created": _COUNT},
}
_MODELS = {
    "type": "object",
    "required": ["object", "data"],
    "properties": {
        "object": {"const": "list"},
        "data": {"type": "array", "items": {"$ref": "#/components/schemas/Model"}},
    },
}
_RUN = {
    "type": "object",
    "required": ["id", "query", "state", "rounds"],
    "properties": {
        "id": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
        "query": _TEXT,
        "state": _TEXT,
        "rounds": {"type": "array", "items": {"type": "object"}},
    },
}
_OBJECT = {"type": "object"}
_SCHEMAS = {
    "Error": _ERROR,
    "Completion": _COMPLETION,
    "Response": _RESPONSE,
    "Model": _MODEL,
    "Models": _MODELS,
    "Run": _RUN,
    "Object": _OBJECT,
}


def _request(table: tuple[Parameter, ...], types: dict[str, Any], *needed: str) -> dict[str, Any]:
    types = {**_TYPES, **types}
    properties = {
        row.name: {
            **types.get(row.name, {}),
            "description": f"{row.fate}{f': {row.remark}' if row.remark else ''}",
        }
        for row in table
        if row.fate is not Fate.REFUSED
    }
    schema = {"type": "object", "required": list(needed), "properties": properties}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _named(schema: str) -> dict[str, Any]:
    return {"schema": {"$ref": f"#/components/schemas/{schema}"}}


def _replies(*kinds: str, schema: str = "", errors: tuple[int, ...] = ()) -> dict[str, Any]:
    """What comes back: errors, or one of several media types; of JSON it is told of what form."""
    failed = {"content": {_JSON: _named("Error")}}
    content = {kind: _named(schema) if kind == _JSON and schema else {} for kind in kinds}
    return {
        "200": {"description": "done", "content": content},
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

    def get(*kinds: str, path: str = "", schema: str = "", summary: str) -> dict[str, Any]:
        parameter = {"name": path, "in": "path", "required": True, "schema": _TEXT}
        told: dict[str, Any] = {
            "summary": summary,
            "responses": _replies(*kinds, schema=schema, errors=_READING),
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
                    "requestBody": _request(CHAT, _CHAT_TYPES, "model", "messages"),
                    "responses": _replies(_JSON, _SSE, schema="Completion", errors=_ASKING),
                }
            },
            "/v1/responses": {
                "post": {
                    "summary": "Answer a conversation, in the newer form",
                    "requestBody": _request(RESPONSES, _RESPONSES_TYPES, "model", "input"),
                    "responses": _replies(_JSON, _SSE, schema="Response", errors=_ASKING),
                }
            },
            "/v1/responses/{id}": get(
                _JSON, path="id", schema="Response", summary="An earlier response"
            ),
            "/v1/models": get(_JSON, schema="Models", summary="What can be asked"),
            "/v1/models/{model}": get(_JSON, path="model", schema="Model", summary="One of them"),
            "/v1/runs/{id}": get(
                _JSON, path="id", schema="Run", summary="The whole record of a run"
            ),
            "/v1/runs/{id}/events": get(_SSE, path="id", summary="What happens in a run"),
            "/metrics": get("text/plain", summary="Counters, in the form of Prometheus"),
            "/openapi.json": get(_JSON, schema="Object", summary="This description"),
            "/health/live": get(_JSON, schema="Object", summary="Whether the process runs"),
            "/health/ready": {
                "get": {
                    "summary": "Whether it takes requests",
                    "responses": {
                        **_replies(_JSON, schema="Object", errors=(405, 421)),
                        "503": {"description": "it is about to stop", "content": {_JSON: {}}},
                    },
                }
            },
        },
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
