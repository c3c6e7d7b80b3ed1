"""Recipes: TOML files that say how something is trained, and what is told of a wrong one."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError


class RecipeError(ValueError):
    """A recipe is wrong; the message names file and key, and what would be right."""


class Table(BaseModel):
    """A table of a recipe: its keys are known, its values don't change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class Told:
    """How far a stage of a training is."""

    stage: Literal["read", "sft", "svf", "es", "cold", "second", "grpo", "finish"]
    done: int
    total: int
    text: str = ""


_Recipe = TypeVar("_Recipe", bound=Table)


def read(of: type[_Recipe], path: str | Path, changes: Sequence[str] = (), **given: Any) -> _Recipe:
    """Read a recipe.

    Args:
        of: Which kind.
        path: A TOML file.
        changes: ``KEY=VALUE`` each, as ``sft.taus=[0.1]``, which win over the file; the value is
            TOML, or else text.
        given: Values of top-level keys, which win over both; None is not given.

    Raises:
        RecipeError: If it can't be read, or a key or value is wrong.
    """
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not TOML: {error}") from error
    for change in changes:
        key, sign, text = change.partition("=")
        if not sign:
            raise RecipeError(f"--set {change}: write KEY=VALUE, as in --set es.generations=20")
        *outer, last = key.strip().split(".")
        at = table
        for name in outer:
            at = at.setdefault(name, {})
            if not isinstance(at, dict):
                raise RecipeError(f"--set {change}: {name} is no table")
        at[last] = _value(text.strip())
    table |= {name: value for name, value in given.items() if value is not None}
    try:
        return of.model_validate(table)
    except ValidationError as error:
        problems = [_problem(of, each) for each in error.errors(include_url=False)]
        raise RecipeError("\n".join(f"{path}: {each}" for each in problems)) from error


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _problem(of: type[BaseModel], problem: Mapping[str, Any]) -> str:
    where = [part for part in problem["loc"] if isinstance(part, str)]
    key = ".".join(where)
    match problem["type"]:
        case "extra_forbidden":
            for part in where[:-1]:
                of = of.model_fields[part].annotation  # type: ignore[assignment]  # a table
            known = list(of.model_fields)
            near = get_close_matches(where[-1], known, 1)
            told = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
            return f"unknown key {key}; {told}"
        case "missing":
            return f"{key} is missing"
        case _:
            told = problem["msg"].removeprefix("Value error, ")
            told = f"{told[:1].lower()}{told[1:]}"
            return f"{key}: {told}" if key else told  # what several keys make wrong has no place
