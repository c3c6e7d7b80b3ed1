"""Tools by the OpenAI client, unmodified: round trips, each request to a server of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from conductor import Conductor
from conductor.server import Server
from runtime import Journal, LocalModel, LocalWorker, Pool, Sampling
from tests.serving import Team, calling
from tests.test_server_clients import listening

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
CHAT_TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
FLAT_TOOL: Any = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}
ASKED: Any = [{"role": "user", "content": "Weather in Rome?"}]


@contextmanager
def client(server: Server) -> Iterator[openai.OpenAI]:
    with (
        listening(server) as url,
        openai.OpenAI(base_url=url, api_key="none", max_retries=0) as made,
    ):
        yield made


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Team]:
    with Journal(tmp_path / "journal.db") as journal:
        team = Team(journal=journal)
        called = calling(("weather", '{"city": "Rome"}'), ("weather", '{"city": "Oslo"}'))
        team.judge.texts = [called, "Sunny there, rain here."]
        yield team


@pytest.mark.parametrize("streamed", [False, True])
def test_a_round_trip_by_chat_completions(team: Team, streamed: bool) -> None:
    """Two calls at once; the messages of the client go back as the client made them."""

    def ask(messages: Any) -> Any:
        with client(team.server()) as sdk:
            if not streamed:
                made = sdk.chat.completions.create(
                    model="conductor", messages=messages, tools=[CHAT_TOOL]
                )
                return made.choices[0]
            with sdk.chat.completions.stream(
                model="conductor", messages=messages, tools=[CHAT_TOOL]
            ) as stream:
                return stream.get_final_completion().choices[0]

    first = ask(ASKED)
    assert first.finish_reason == "tool_calls"
    calls = first.message.tool_calls
    assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Rome", "Oslo"]
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": call.function.arguments}
        for call in calls
    ]
    second = ask([*ASKED, first.message.model_dump(exclude_none=True), *results])

    assert (second.finish_reason, second.message.content) == ("stop", "Sunny there, rain here.")
    assert len(team.judge.calls) == 2
    assert len(team.scribe.calls) == 1


def test_a_round_trip_by_responses(team: Team) -> None:
    with client(team.server()) as sdk:
        first = sdk.responses.create(model="conductor", input=ASKED, tools=[FLAT_TOOL])
    calls = [item for item in first.output if item.type == "function_call"]
    assert len(calls) == 2
    results = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "fine"}
        for call in calls
    ]
    asked: Any = [*ASKED, *(item.model_dump(exclude_none=True) for item in first.output), *results]
    with client(team.server()) as sdk:
        second = sdk.responses.create(model="conductor", input=asked, tools=[FLAT_TOOL])

    assert second.output_text == "Sunny there, rain here."
    assert len(team.judge.calls) == 2


def test_a_round_trip_on_the_small_model(small_model: LocalModel, tmp_path: Path) -> None:
    """The packaged model calls what it has to call, and goes on with the result."""
    worker = LocalWorker("small", small_model, sampling=Sampling(temperature=0, max_tokens=64))
    with Journal(tmp_path / "journal.db") as journal:
        team = Conductor(Pool([worker]), journal=journal)
        with client(Server(team)) as sdk:
            first = sdk.chat.completions.create(
                model="worker/small", messages=ASKED, tools=[CHAT_TOOL], tool_choice="required"
            )
            message = first.choices[0].message
            (call,) = message.tool_calls or ()
            assert call.type == "function"
            assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")
            result: Any = {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}
            again: Any = [*ASKED, message.model_dump(exclude_none=True), result]
            second = sdk.chat.completions.create(
                model="worker/small", messages=again, tools=[CHAT_TOOL]
            )
    assert second.choices[0].finish_reason in ("stop", "length")
    assert second.choices[0].message.content
