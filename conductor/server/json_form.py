"""JSON that a caller asked for: which schemas can be asked for, and whether a text is of one.

The keywords are those that strict outputs of the OpenAI API have, and the bounds beside them. A
schema with any other is refused: what can't be checked must not be promised. ``pattern`` is among
the refused, since a hostile expression would take for ever.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from .refusals import bad

_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "integer": lambda value: (
        not isinstance(value, bool)
        and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))
    ),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
}
_BOUNDS: dict[str, tuple[str, Callable[[Any], float], Callable[[float, float], bool], str]] = {
    "minLength": ("string", len, lambda n, bound: n >= bound, "at least {} characters long"),
    "maxLength": ("string", len, lambda n, bound: n <= bound, "at most {} characters long"),
    "minItems": ("array", len, lambda n, bound: n >= bound, "at least {} items long"),
    "maxItems": ("array", len, lambda n, bound: n <= bound, "at most {} items long"),
    "minimum": ("number", lambda value: value, lambda n, bound: n >= bound, "at least {}"),
    "maximum": ("number", lambda value: value, lambda n, bound: n <= bound, "at most {}"),
    "exclusiveMinimum": ("number", lambda value: value, lambda n, bound: n > bound, "over {}"),
    "exclusiveMaximum": ("number", lambda value: value, lambda n, bound: n < bound, "under {}"),
}
_REMARKS = frozenset(
    {"title", "description", "default", "examples", "format", "$schema", "$id", "$comment"}
)
_OTHERS = frozenset(
    {
        "type",
        "properties",
        "required",
        "additionalProperties",
        "items",
        "enum",
        "const",
        "anyOf",
        "$ref",
        "$defs",
        "definitions",
    }
)
_MOST_LOOKS = 100_000
"""Places that are compared at most; nested alternatives multiply."""


def check_schema(schema: Any, where: str) -> None:
    """Refuse a schema that says anything but what :func:`problem` checks.

    Args:
        schema: As the caller sent it.
        where: Its place in the request.

    Raises:
        Refusal: Naming the keyword and its place.
    """
    open_ = [(schema, where)]
    while open_:
        part, place = open_.pop()
        if part is True:
            continue
        if not isinstance(part, dict):
            raise bad(f"{place} must be a JSON schema, an object", where)
        for word, value in part.items():
            at = f"{place}.{word}"
            match word:
                case "properties" | "$defs" | "definitions":
                    if not isinstance(value, dict):
                        raise bad(f"{at} must be an object", where)
                    open_ += [(each, f"{at}.{name}") for name, each in value.items()]
                case "items":
                    open_.append((value, at))
                case "additionalProperties" if value is not False:
                    open_.append((value, at))
                case "anyOf":
                    if not isinstance(value, list) or not value:
                        raise bad(f"{at} must be a list of schemas", where)
                    open_ += [(each, f"{at}[{number}]") for number, each in enumerate(value)]
                case "$ref":
                    _referred(schema, value, at, where)
                case "type":
                    names = value if isinstance(value, list) else [value]
                    if not names or not all(
                        isinstance(name, str) and name in _TYPES for name in names
                    ):
                        raise bad(f"{at} must be of: {', '.join(_TYPES)}", where)
                case "required":
                    if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
                        raise bad(f"{at} must be a list of names", where)
                case "enum":
                    if not isinstance(value, list) or not value:
                        raise bad(f"{at} must be a list of values", where)
                case _ if word in _BOUNDS:
                    if isinstance(value, bool) or not isinstance(value, int | float):
                        raise bad(f"{at} must be a number", where)
                case _ if word not in _OTHERS and word not in _REMARKS:
                    told = f"{place} has the keyword {word!r}, which can't be checked here"
                    raise bad(f"{told}; leave it out", where, "unsupported_schema")


def _referred(root: Any, reference: Any, at: str, where: str) -> Any:
    found = root
    steps = reference.split("/") if isinstance(reference, str) else [""]
    if steps[0] != "#":
        raise bad(f"{at} must begin with #: nothing is fetched from elsewhere", where)
    for step in steps[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or name not in found:
            raise bad(f"{at} leads nowhere in this schema", where)
        found = found[name]
    return found


def read_text(text: str) -> Any:
    """Read JSON that a model wrote, with or without a code fence round it.

    Raises:
        ValueError: If it is none.
    """
    bare = text.strip()
    if bare.startswith("```") and bare.endswith("```"):
        bare = bare[3:-3].removeprefix("json").strip()
    try:
        return json.loads(bare)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def problem(value: Any, schema: Mapping[str, Any]) -> str:
    """Say where a value is not of a schema that was checked; empty if it is."""
    return _Look(schema).at(value, schema, "$", 0)


class _Look:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._looks = 0

    def at(self, value: Any, schema: Any, place: str, depth: int) -> str:
        self._looks += 1
        if self._looks > _MOST_LOOKS or depth > 200:
            return f"{place}: the schema is too intricate to be checked"
        if schema is True:
            return ""
        if "$ref" in schema:
            target = _referred(self._root, schema["$ref"], place, place)
            if told := self.at(value, target, place, depth + 1):
                return told
        kinds = schema.get("type")
        if kinds is not None:
            names = kinds if isinstance(kinds, list) else [kinds]
            if not any(_TYPES[name](value) for name in names):
                return f"{place} must be of type {' or '.join(names)}"
        if "enum" in schema and not any(_same(value, each) for each in schema["enum"]):
            return f"{place} must be one of {json.dumps(schema['enum'])}"
        if "const" in schema and not _same(value, schema["const"]):
            return f"{place} must be {json.dumps(schema['const'])}"
        for word, (kind, measure, holds, told) in _BOUNDS.items():
            bound = schema.get(word)
            if bound is not None and _TYPES[kind](value) and not holds(measure(value), bound):
                return f"{place} must be {told.format(bound)}"
        if isinstance(value, dict):
            return self._object(value, schema, place, depth) or self._any(
                value, schema, place, depth
            )
        if isinstance(value, list) and "items" in schema:
            for number, each in enumerate(value):
                if told := self.at(each, schema["items"], f"{place}[{number}]", depth + 1):
                    return told
        return self._any(value, schema, place, depth)

    def _object(self, value: dict[str, Any], schema: Any, place: str, depth: int) -> str:
        for name in schema.get("required", ()):
            if name not in value:
                return f"{place}.{name} is missing"
        properties = schema.get("properties", {})
        others = schema.get("additionalProperties", True)
        for name, each in value.items():
            inner = properties.get(name, others)
            if inner is False:
                return f"{place}.{name} is not allowed"
            if told := self.at(each, inner, f"{place}.{name}", depth + 1):
                return told
        return ""

    def _any(self, value: Any, schema: Any, place: str, depth: int) -> str:
        told = ""
        for each in schema.get("anyOf", ()):
            told = self.at(value, each, place, depth + 1)
            if not told:
                return ""
        return told


def _same(one: Any, other: Any) -> bool:
    """JSON equality: true is not 1, but 1 is 1.0, at any depth."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return bool(one == other)
