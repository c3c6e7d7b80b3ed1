"""JSON Schemas of what is kept in files: plans as JSON, pool files, records of runs."""

from __future__ import annotations

import ast
import inspect
import sys
from copy import deepcopy
from enum import StrEnum
from typing import Any

from grammar import Diagnostic, Plan
from runtime import Failure, Message, PoolFile, Run, StepState


class SchemaOf(StrEnum):
    """What there is a schema of."""

    PLAN = "plan"
    POOL = "pool"
    RUN = "run"


_PLAN: dict[str, Any] = {
    "title": "Plan",
    "description": "A workflow: three lists of the same length, one entry each per step. "
    "The last step gives the answer.",
    "type": "object",
    "properties": {
        "subtasks": {
            "description": "What each step has to do, in plain language.",
            "type": "array",
            "minItems": 1,
            "items": {"type": "string", "pattern": r"\S"},
        },
        "workers": {
            "description": "Who does it: a name of the pool, or a number in it, from 0.",
            "type": "array",
            "minItems": 1,
            "items": {
                "anyOf": [
                    {"type": "string", "pattern": r"\S"},
                    {"type": "integer", "minimum": 0, "maximum": 999_999},
                ]
            },
        },
        "access": {
            "description": "Per step the earlier steps that it may read, counted from 0, or all.",
            "type": "array",
            "minItems": 1,
            "items": {
                "anyOf": [
                    {"$ref": "#/$defs/All"},
                    {
                        "type": "array",
                        "items": {
                            "anyOf": [
                                {"type": "integer", "minimum": 0},
                                {"type": "string", "pattern": "^[0-9]{1,6}$"},
                                {"$ref": "#/$defs/All"},
                            ]
                        },
                    },
                ]
            },
        },
    },
    "required": ["subtasks", "workers", "access"],
    "additionalProperties": False,
    "$defs": {
        "All": {
            "description": "Every earlier step.",
            "type": "string",
            "pattern": r"^\s*[aA][lL][lL]\s*$",
        }
    },
}

_DESCRIBED = {
    SchemaOf.POOL: "A pool file (TOML): the workers, in order, and who plans. "
    "${NAME} in a text is a variable of the environment.",
    SchemaOf.RUN: "The whole record of one query: what was decided, who saw and said what, "
    "and the answer.",
}


def json_schema(of: SchemaOf | str) -> dict[str, Any]:
    """Describe a kind of document as a JSON Schema, draft 2020-12.

    A schema says less than the reader of the document: that steps read earlier ones, for instance,
    is beyond it.

    Args:
        of: ``"plan"`` (as :meth:`Plan.to_json` writes it), ``"pool"`` or ``"run"``.

    Raises:
        ValueError: If there is no schema of that name.
    """
    from pydantic import TypeAdapter

    try:
        kind = SchemaOf(of)
    except ValueError:
        known = ", ".join(SchemaOf)
        raise ValueError(f"there is no schema of {str(of)!r}; there are: {known}") from None
    named = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:conductor-lm:schema:{kind}",
    }
    match kind:
        case SchemaOf.PLAN:
            return deepcopy({**named, **_PLAN})
        case SchemaOf.POOL:
            schema = PoolFile.model_json_schema()
        case SchemaOf.RUN:
            schema = TypeAdapter(Run).json_schema()
            # A run may hold runs, so it is defined by name; it stands at the root as well.
            schema = {**schema["$defs"]["Run"], "$defs": schema["$defs"]}
    return _with_docstrings({**named, **schema, "description": _DESCRIBED[kind]})


def _with_docstrings(schema: dict[str, Any]) -> dict[str, Any]:
    """Put the docstrings under fields into the schema.

    pydantic can do it, but only when a class is made, and it takes the sources of all of them: too
    long for every import.
    """
    docs = _docstrings()
    tables = {schema["title"]: schema, **schema.get("$defs", {})}
    for name, table in tables.items():
        bases, own, fields = docs.get(name, ((), "", {}))
        if own:
            table.setdefault("description", own)
        todo = list(bases)
        while todo:
            inherited, _, more = docs.get(todo.pop(), ((), "", {}))
            fields = {**more, **fields}
            todo += inherited
        for field, described in fields.items():
            if field in table.get("properties", {}):
                table["properties"][field].setdefault("description", described)
    return schema


def _docstrings() -> dict[str, tuple[tuple[str, ...], str, dict[str, str]]]:
    """Per class its bases, its docstring, and the docstrings under its fields."""
    found = {}
    for one in (Diagnostic, Plan, Failure, Message, PoolFile, Run, StepState):
        try:
            tree = ast.parse(inspect.getsource(sys.modules[one.__module__]))
        except OSError:  # installed without sources: a schema without words
            continue
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                bases = tuple(base.id for base in node.bases if isinstance(base, ast.Name))
                found[node.name] = (bases, ast.get_docstring(node) or "", _fields(node))
    return found


def _fields(node: ast.ClassDef) -> dict[str, str]:
    fields = {}
    for field, below in zip(node.body, node.body[1:], strict=False):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                fields[name] = inspect.cleandoc(text)
    return fields
