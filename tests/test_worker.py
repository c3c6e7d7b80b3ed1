"""FunctionWorker and the values round it: what a function may return, and who a worker is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest

from runtime import FunctionWorker, Message, Tool, Worker, chosen_tool
from runtime.worker import undemanding


async def say(messages: Sequence[Message]) -> str:
    return "said"


async def shout(messages: Sequence[Message], mark: str = "!") -> str:
    return f"said{mark}"


class Speaker:
    async def __call__(self, messages: Sequence[Message]) -> str:
        return "said"


def test_a_function_worker_is_known_by_its_name_and_where_its_function_is_defined() -> None:
    worker = FunctionWorker("w", say)

    assert isinstance(worker, Worker)
    assert f'"{say.__module__}.say"' in worker.identity
    assert worker.identity == FunctionWorker("w", say, card="Other words.").identity
    others = [
        FunctionWorker("v", say),
        FunctionWorker("w", shout),
        FunctionWorker("w", Speaker()),
        FunctionWorker("w", partial(shout, mark="?")),
    ]
    assert len({each.identity for each in [worker, *others]}) == 5


@pytest.mark.parametrize(
    "declaration",
    [
        {"type": "function", "function": {"name": "f"}},
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},
        {"type": "function", "function": {"name": "f", "description": "d", "strict": True}},
        {"type": "function", "function": {"name": "f", "description": "", "parameters": None}},
        {"type": "function", "name": "f", "parameters": {}},
        {"type": "custom", "custom": {"name": "f"}},
        {"type": "web_search", "depth": [1, 2]},
        {},
    ],
)
def test_a_tool_declares_itself_as_it_was_declared(declaration: dict[str, object]) -> None:
    tool = Tool.of(declaration)

    assert tool.declaration == declaration
    assert tool.callable is (declaration.get("type") == "function")


def test_a_tool_is_json_that_can_be_kept() -> None:
    with pytest.raises(ValueError, match="tool 'f': its parameters are no JSON"):
        Tool("f", parameters={"at most": float("nan")})
    assert Tool("f", parameters={"a": ("\ud800",)}).parameters == {"a": ["\ufffd"]}


@pytest.mark.parametrize(
    ("choice", "name"),
    [
        (None, None),
        ("required", None),
        ({"type": "function", "function": {"name": "f"}}, "f"),
        ({"type": "function", "name": "f"}, "f"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}, None),
    ],
)
def test_a_choice_may_name_one_tool(choice: object, name: str | None) -> None:
    assert chosen_tool(choice) == name  # type: ignore[arg-type]  # as it comes from outside


NAMED = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("choice", "left"),
    [
        (None, None),
        ("none", "none"),
        ("auto", "auto"),
        ("required", "auto"),
        (NAMED, "auto"),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}},
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}},
        ),
    ],
)
def test_a_choice_without_its_demand_still_allows_the_same(choice: object, left: object) -> None:
    assert undemanding(choice) == left  # type: ignore[arg-type]  # as it comes from outside
