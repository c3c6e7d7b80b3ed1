"""Tools of callers: a call goes out as if from one model, its result comes back to who asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conductor.server import Key, Keyring
from conductor.server.keys import digest
from runtime import Journal, Message, RunState, Tool
from tests.serving import CHAT, Team, asked, calling, client, events

pytestmark = pytest.mark.anyio
RESPOND = "/v1/responses"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
FLAT = {"type": "function", "name": "weather", "parameters": PARAMETERS}


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.db") as kept:
        yield kept


async def post(team: Team, body: dict[str, Any], path: str = CHAT, **options: Any) -> Any:
    """Each time by a server of its own: nothing but the journal is kept."""
    async with client(team.server(**options)) as http:
        return await http.post(path, json=body)


def following(body: dict[str, Any], message: dict[str, Any], *results: str) -> dict[str, Any]:
    """The request that brings the results of the calls in a message."""
    told = [
        {"role": "tool", "tool_call_id": call["id"], "content": result}
        for call, result in zip(message["tool_calls"], results, strict=True)
    ]
    return {**body, "messages": [*body["messages"], message, *told]}


@pytest.mark.parametrize("model", ["conductor", "worker/judge"])
async def test_a_call_goes_out_and_its_result_resumes_the_run(model: str, journal: Journal) -> None:
    """By another server, since the first one may be gone: no finished call is made again."""
    team = Team(journal=journal)
    team.judge.texts = [calling(("weather", '{"city": "Rome"}'), text="I look."), "Sunny."]
    body = asked(model, tools=[TOOL], tool_choice="auto")

    first = (await post(team, body)).json()
    (choice,) = first["choices"]
    message = choice["message"]
    assert choice["finish_reason"] == "tool_calls"
    assert message["content"] == "I look."
    (call,) = message["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Rome"}'}
    assert first["conductor"]["state"] == "suspended"
    second = (await post(team, following(body, message, "25 degrees"))).json()

    assert second["choices"][0]["message"]["content"] == "Sunny."
    assert second["choices"][0]["finish_reason"] == "stop"
    assert second["conductor"]["run"] == first["conductor"]["run"]
    assert len(team.scribe.calls) == len(team.pro.calls) == int(model == "conductor")
    asked_first, then = team.judge.calls
    assert asked_first.tools == (Tool("weather", "", PARAMETERS),)
    assert then.messages[: len(asked_first.messages)] == asked_first.messages
    assert then.messages[-1] == Message("tool", "25 degrees", tool_call_id="own0")
    assert journal.run(first["conductor"]["run"]).state is RunState.DONE


async def test_what_each_request_took_is_counted_once(journal: Journal) -> None:
    team = Team(journal=journal)
    team.judge.texts = [calling(("weather", "{}")), "Sunny."]
    body = asked(tools=[TOOL])

    first = (await post(team, body)).json()
    second = (await post(team, following(body, first["choices"][0]["message"], "25"))).json()

    assert first["usage"]["prompt_tokens"] == 50
    assert first["usage"]["total_tokens"] == 140 + 25 + 59
    assert second["usage"]["prompt_tokens"] == 30
    assert second["usage"]["total_tokens"] == 37


async def test_a_streamed_call_comes_before_its_finish(journal: Journal) -> None:
    team = Team(journal=journal)
    team.judge.texts = [calling(("weather", '{"a": 1}'), ("weather", '{"a": 2}')), "Sunny."]
    body = asked(tools=[TOOL], stream=True)

    *chunks, done = events((await post(team, body)).text)

    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert deltas[0]["role"] == "assistant"
    assert [(call["index"], call["function"]["arguments"]) for call in calls] == [
        (0, '{"a": 1}'),
        (1, '{"a": 2}'),
    ]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert done == "[DONE]"
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    *rest, _ = events((await post(team, following(body, message, "x", "y"))).text)
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in rest)
    assert (text, len({chunk["id"] for chunk in (*chunks, *rest)})) == ("Sunny.", 1)


async def test_any_step_may_call_if_the_caller_says_so(journal: Journal) -> None:
    team = Team(journal=journal)
    team.pro.texts = [calling(("weather", "{}")), "Tea warms."]
    body = asked(tools=[TOOL], conductor={"tools": "all"})

    first = (await post(team, body)).json()
    second = (await post(team, following(body, first["choices"][0]["message"], "25"))).json()

    assert first["choices"][0]["finish_reason"] == "tool_calls"
    assert second["choices"][0]["message"]["content"] == "Yes, in the morning."
    assert [call.tools != () for call in (*team.pro.calls, *team.judge.calls)] == [True] * 3


async def test_by_default_the_last_step_alone_may_call(journal: Journal) -> None:
    team = Team(journal=journal)

    await post(team, asked(tools=[TOOL]))

    assert (team.pro.calls[0].tools, len(team.judge.calls[0].tools)) == ((), 1)


async def test_a_retry_of_results_that_are_there_already_gives_the_same_answer(
    journal: Journal,
) -> None:
    team = Team(journal=journal)
    team.judge.texts = [calling(("weather", "{}")), "Sunny."]
    body = asked(tools=[TOOL])
    first = (await post(team, body)).json()
    more = following(body, first["choices"][0]["message"], "25")

    answers = [(await post(team, more)).json()["choices"][0]["message"] for _ in range(3)]

    assert [answer["content"] for answer in answers] == ["Sunny."] * 3
    assert len(team.judge.calls) == 2


@pytest.mark.parametrize("lost", ["journal", "run", "id"])
async def test_results_of_an_unknown_run_are_part_of_what_is_asked(
    lost: str, journal: Journal, tmp_path: Path
) -> None:
    """Another journal, a run that was forgotten, ids of another service: planned for anew."""
    team = Team(journal=journal)
    team.judge.texts = [calling(("weather", "{}")), "Sunny."]
    body = asked(tools=[TOOL])
    message = (await post(team, body)).json()["choices"][0]["message"]
    if lost == "journal":
        team.conductor.journal = None
    elif lost == "run":
        team.conductor.journal = Journal(tmp_path / "other.db")
    else:
        message["tool_calls"][0]["id"] = "call_of_another_service"

    reply = await post(team, following(body, message, "25 degrees"))

    assert reply.json()["choices"][0]["message"]["content"] == "Sunny."
    assert len(team.scribe.calls) == 2
    assert "25 degrees" in team.scribe.calls[1].messages[-1].content


async def test_a_key_resumes_its_own_runs_only(journal: Journal) -> None:
    team = Team(journal=journal)
    team.judge.texts = [calling(("weather", "{}")), "Sunny."]
    keys = Keyring([Key("ann", digest("a")), Key("bob", digest("b"))])
    body = asked(tools=[TOOL])
    server = team.server(keys=keys)
    async with client(server, authorization="Bearer a") as http:
        first = (await http.post(CHAT, json=body)).json()
    more = following(body, first["choices"][0]["message"], "25")

    async with client(server, authorization="Bearer b") as http:
        other = (await http.post(CHAT, json=more)).json()

    assert other["conductor"]["run"] != first["conductor"]["run"]
    assert journal.run(first["conductor"]["run"]).state is RunState.SUSPENDED


# -- responses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["items", "previous"])
async def test_a_round_trip_by_responses(by: str, journal: Journal) -> None:
    team = Team(journal=journal)
    team.judge.texts = [calling(("weather", '{"city": "Rome"}')), "Sunny."]
    body = {"model": "conductor", "input": "How is the weather?", "tools": [FLAT]}

    first = (await post(team, body, RESPOND)).json()
    (item,) = first["output"]
    assert (item["type"], item["name"], item["arguments"]) == (
        "function_call",
        "weather",
        '{"city": "Rome"}',
    )
    result = {"type": "function_call_output", "call_id": item["call_id"], "output": "25"}
    asked_first = {"role": "user", "content": body["input"]}
    more = (
        {**body, "input": [asked_first, item, result]}
        if by == "items"
        else {**body, "input": [result], "previous_response_id": first["id"]}
    )
    second = (await post(team, more, RESPOND)).json()

    assert second["output"][0]["content"][0]["text"] == "Sunny."
    assert second["conductor"]["run"] == first["conductor"]["run"]
    assert len(team.scribe.calls) == 1


async def test_a_streamed_call_by_responses_has_its_events(journal: Journal) -> None:
    team = Team(journal=journal)
    team.judge.texts = [calling(("weather", "{}"), text="I look.")]
    body = {"model": "conductor", "input": "Hi", "tools": [FLAT], "stream": True}

    sent = events((await post(team, body, RESPOND)).text)

    kinds = [each["type"].removeprefix("response.") for each in sent]
    assert kinds[-6:] == [
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert [item["type"] for item in sent[-1]["response"]["output"]] == ["message", "function_call"]
    assert [each["sequence_number"] for each in sent] == list(range(len(sent)))
    assert sent[-2]["output_index"] == 1


async def test_a_custom_tool_is_a_function_to_workers_and_itself_to_clients(
    journal: Journal,
) -> None:
    """Few servers know tools of free text; a coding assistant's patch tool is one."""
    team = Team(journal=journal)
    team.judge.texts = [calling(("apply_patch", '{"input": "*** Begin"}')), "Done."]
    custom = {"type": "custom", "name": "apply_patch", "description": "Patch.", "format": {"a": 1}}
    body = {"model": "worker/judge", "input": "Fix it", "tools": [custom]}

    first = (await post(team, body, RESPOND)).json()
    (item,) = first["output"]
    result = {"type": "custom_tool_call_output", "call_id": item["call_id"], "output": "ok"}
    more = {**body, "input": [{"role": "user", "content": "Fix it"}, item, result]}
    second = (await post(team, more, RESPOND)).json()

    assert (item["type"], item["name"], item["input"]) == (
        "custom_tool_call",
        "apply_patch",
        "*** Begin",
    )
    assert team.judge.calls[0].tools[0].parameters is not None
    assert second["output"][0]["content"][0]["text"] == "Done."


async def test_a_tool_of_a_namespace_is_a_function_to_workers_and_itself_to_clients(
    journal: Journal,
) -> None:
    """As coding assistants group theirs."""
    team = Team(journal=journal)
    team.judge.texts = [calling(("agents__spawn", '{"task": "look"}')), "Done."]
    inner = [
        {"type": "function", "name": "spawn", "parameters": PARAMETERS, "strict": False},
        {"type": "custom", "name": "note"},
        {"type": "web_search"},
    ]
    space = {"type": "namespace", "name": "agents", "description": "Others.", "tools": inner}
    body = {"model": "worker/judge", "input": "Fix it", "tools": [FLAT, space]}

    reply = await post(team, body, RESPOND)
    (item,) = reply.json()["output"]
    result = {"type": "function_call_output", "call_id": item["call_id"], "output": "ok"}
    more = {**body, "input": [{"role": "user", "content": "Fix it"}, item, result]}
    second = (await post(team, more, RESPOND)).json()

    assert (item["type"], item["namespace"], item["name"]) == ("function_call", "agents", "spawn")
    told = team.judge.calls[0].tools
    assert [each.name for each in told] == ["weather", "agents__spawn", "agents__note"]
    assert told[1].declaration["function"] == {
        "name": "agents__spawn",
        "parameters": PARAMETERS,
        "strict": False,
    }
    assert reply.headers["x-conductor-ignored"] == "tools[1].tools[2].type web_search"
    assert second["output"][0]["content"][0]["text"] == "Done."
    (made,) = team.judge.calls[1].messages[-2].tool_calls
    assert made.name == "agents__spawn"
