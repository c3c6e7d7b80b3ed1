"""Reading the JSON of a request: capped in size and depth, and looked into with errors that name
the parameter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic_core import from_json

from .refusals import Refusal, bad

DEPTH = 64
"""How deep JSON may be nested."""
_SPECIAL = b'"[]{}'
_REST = bytes(set(range(256)) - set(_SPECIAL))

T = TypeVar("T")


def read_json(body: bytes) -> dict[str, Any]:
    """Read the JSON object of a request.

    Raises:
        Refusal: If it is none, or nested too deep.
    """
    if body.count(b"[") + body.count(b"{") > DEPTH and _deeper(body):
        raise bad(f"the body is JSON nested more than {DEPTH} deep, or broken; flatten it")
    try:
        read = from_json(body, allow_inf_nan=False)  # a third of the price
    except ValueError:  # or JSON all the same: halves of surrogate pairs, other encodings
        read = _read_slowly(body)
    if not isinstance(read, dict):
        raise bad("the body is JSON, but no object; send {...}")
    return read


def _read_slowly(body: bytes) -> Any:
    try:
        return json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise bad(f"the body is not valid JSON: {error}; send a JSON object") from None


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _deeper(body: bytes) -> bool:
    """Whether brackets are nested more than DEPTH deep, or don't match; without recursion.

    Brackets in strings do not count: escapes go first, then every second part between quotes. Each
    round then takes the innermost pairs away.
    """
    marks = body.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _REST)
    brackets = b"".join(marks.split(b'"')[::2])
    for _ in range(DEPTH):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    return bool(brackets)


class Fields:
    """The fields of a JSON object, each asked for by name and type.

    Args:
        values: The object.
        where: Its place in the request, for errors; empty for the body itself.
    """

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        self.values = values
        self._where = where

    def at(self, name: str) -> str:
        """The place of a field, for errors."""
        return f"{self._where}.{name}" if self._where else name

    def text(self, name: str) -> str | None:
        """A string, or None if it is not there."""
        return self._typed(name, str, "a string")

    def flag(self, name: str) -> bool | None:
        """A boolean, or None."""
        return self._typed(name, bool, "true or false")

    def object(self, name: str) -> Fields | None:
        """An object, or None."""
        found = self._typed(name, dict, "an object")
        return None if found is None else Fields(found, self.at(name))

    def entries(self, name: str) -> list[Any] | None:
        """A list, or None."""
        return self._typed(name, list, "a list")

    def texts(self, name: str) -> tuple[str, ...] | None:
        """A list of strings, or None."""
        found = self.entries(name)
        if found is None:
            return None
        for at, each in enumerate(found):
            if not isinstance(each, str):
                raise bad(f"{self.at(name)}[{at}] must be a string", self.at(name))
        return tuple(found)

    def objects(self, name: str) -> list[Fields] | None:
        """A list of objects, or None."""
        found = self.entries(name)
        if found is None:
            return None
        for at, each in enumerate(found):
            if not isinstance(each, dict):
                raise bad(f"{self.at(name)}[{at}] must be an object", self.at(name))
        return [Fields(each, f"{self.at(name)}[{at}]") for at, each in enumerate(found)]

    def whole(self, name: str, least: int, most: int) -> int | None:
        """A whole number within bounds, or None."""
        value = self.values.get(name)
        if value is None:
            return None
        if type(value) is float and value.is_integer():  # to JSON, 5.0 is a whole number
            value = int(value)
        if type(value) is not int or not least <= value <= most:
            raise bad(f"{self.at(name)} must be a whole number, {least} to {most}", self.at(name))
        return value

    def number(self, name: str, least: float, most: float) -> float | None:
        """A number within bounds, or None."""
        value = self.values.get(name)
        if value is None:
            return None
        if type(value) not in (int, float) or not least <= value <= most:
            raise bad(f"{self.at(name)} must be a number, {least:g} to {most:g}", self.at(name))
        return float(value)

    def one_of(self, name: str, *known: str) -> str | None:
        """One of several strings, or None."""
        value = self.text(name)
        if value is not None and value not in known:
            raise bad(f"{self.at(name)} must be one of: {', '.join(known)}", self.at(name))
        return value

    def needed(self, name: str, value: T | None) -> T:
        """A value that must be there.

        Raises:
            Refusal: If it is not.
        """
        if value is None:
            raise Refusal(
                400, f"{self.at(name)} is missing", param=self.at(name), code="missing_parameter"
            )
        return value

    def known(self, *names: str) -> None:
        """Refuse any other field."""
        for name in self.values:
            if name not in names:
                told = f"there is no {self.at(name)}; possible: {', '.join(names)}"
                raise bad(told, self.at(name), "unknown_parameter")

    def _typed(self, name: str, kind: type[T], what: str) -> T | None:
        value = self.values.get(name)
        if value is None or isinstance(value, kind):
            return value
        raise bad(f"{self.at(name)} must be {what}", self.at(name))
