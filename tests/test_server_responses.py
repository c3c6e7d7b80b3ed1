"""Responses: the event order that clients rely on, always one terminal event, runs on record."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from conductor.server import Key, Keyring
from conductor.server.ask import RESPONSES, Fate, Parameter
from conductor.server.keys import digest
from runtime import (
    Completion,
    FailureKind,
    FinishReason,
    Journal,
    Message,
    Run,
    Sampling,
    Tool,
    WorkerError,
)
from tests.serving import Speaker, Team, client, events

pytestmark = pytest.mark.anyio
RESPOND = "/v1/responses"
ASKED = {"model": "conductor", "input": "Is tea healthy?"}
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.db") as kept:
        yield kept


async def post(team: Team, body: dict[str, Any]) -> Any:
    async with client(team.server()) as http:
        return await http.post(RESPOND, json=body)


async def test_a_whole_response() -> None:
    reply = await post(Team(), {**ASKED, "metadata": {"a": "b"}, "instructions": "Be kind."})

    told = reply.json()
    assert (told["object"], told["status"], told["error"]) == ("response", "completed", None)
    (item,) = told["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"] == [
        {
            "type": "output_text",
            "text": "Yes, in the morning.",
            "annotations": [],
            "logprobs": [],
        }
    ]
    assert told["usage"]["total_tokens"] == 202
    assert told["usage"]["output_tokens_details"]["orchestration_output_tokens"] == 45
    assert told["id"] == f"resp_{told['conductor']['run']}"
    assert (told["metadata"], told["instructions"]) == ({"a": "b"}, "Be kind.")


async def test_the_order_of_the_events_of_a_stream() -> None:
    reply = await post(Team(), {**ASKED, "stream": True})

    sent = events(reply.text)
    names = [line[7:] for line in reply.text.splitlines() if line.startswith("event: ")]
    kinds = [each["type"] for each in sent]
    assert kinds == names
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 4,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [each["sequence_number"] for each in sent] == list(range(len(sent)))
    assert "".join(each["delta"] for each in sent if "delta" in each) == "Yes, in the morning."
    assert sent[-1]["response"]["output"][0] == sent[-2]["item"]
    assert len({each["response"]["id"] for each in sent if "response" in each}) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_was_cut_off_is_incomplete(stream: bool) -> None:
    team = Team()
    team.judge.finish_reason = FinishReason.LENGTH

    reply = await post(team, {**ASKED, "stream": stream})

    told = events(reply.text)[-1]["response"] if stream else reply.json()
    if stream:
        assert events(reply.text)[-1]["type"] == "response.incomplete"
    assert told["status"] == "incomplete"
    assert told["incomplete_details"] == {"reason": "max_output_tokens"}


async def test_a_stream_that_breaks_off_has_a_terminal_event_all_the_same() -> None:
    class Breaks(Speaker):
        async def complete(self, call: Any, on_text: Any = None) -> Completion:
            on_text("Yes, but")
            raise WorkerError(FailureKind.BAD_RESPONSE, "judge: cut off")

    team = Team()
    pool = type(team.conductor.pool)([team.pro, Breaks("judge")], planner=team.scribe)
    team.conductor.pool = pool

    reply = await post(team, {**ASKED, "stream": True})

    last = events(reply.text)[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert "cut off" in last["response"]["error"]["message"]


async def test_a_failure_before_the_first_event_is_a_real_status() -> None:
    team = Team()
    team.pro.texts = [WorkerError(FailureKind.OVERLOADED, "too much to do")]

    reply = await post(team, {**ASKED, "model": "worker/pro", "stream": True})

    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "worker_overloaded")


async def test_items_of_every_kind_become_messages() -> None:
    """As coding assistants send them: developer messages, calls with results, reasoning, images."""
    team = Team()
    body = {
        "model": "worker/pro",
        "instructions": "Be kind.",
        "input": [
            {"type": "message", "role": "developer", "content": [
                {"type": "input_text", "text": "Use tools."}]},
            {"role": "user", "content": [
                {"type": "input_text", "text": "Look:"},
                {"type": "input_image", "image_url": "data:image/png;base64,x", "detail": "low"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
            {"type": "message", "role": "assistant", "content": [
                {"type": "output_text", "text": "I look."}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "custom_tool_call", "call_id": "c2", "name": "g", "input": "free"},
            {"type": "function_call_output", "call_id": "c1", "output": "seen"},
            {"type": "custom_tool_call_output", "call_id": "c2", "output": "done"},
            {"role": "user", "content": "Well?"},
        ],
    }  # fmt: skip

    reply = await post(team, body)

    assert reply.status_code == 200, reply.text
    system, developer, user, assistant, *results, last = team.pro.calls[0].messages
    assert (system, developer) == (
        Message("system", "Be kind."),
        Message("developer", "Use tools."),
    )
    assert (user.content, json.loads(user.parts)) == (
        "Look:\n[input_image]",
        [
            {"type": "text", "text": "Look:"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,x", "detail": "low"}},
        ],
    )
    assert assistant.content == "I look."
    assert [(c.id, c.name, c.arguments, c.type) for c in assistant.tool_calls] == [
        ("c1", "f", "{}", "function"),
        ("c2", "g", '{"input": "free"}', "function"),
    ]
    assert [(m.role, m.content, m.tool_call_id) for m in results] == [
        ("tool", "seen", "c1"),
        ("tool", "done", "c2"),
    ]
    assert last == Message("user", "Well?")


async def test_what_a_coding_assistant_sends_is_accepted() -> None:
    """Tool types and fields that nobody here knows are no reason to refuse."""
    team = Team()
    body = {
        **ASKED,
        "model": "worker/pro",
        "tools": [
            TOOL,
            {"type": "namespace", "name": "mcp", "tools": []},
            {"type": "web_search"},
            {"type": "custom", "name": "apply_patch", "format": {"type": "grammar"}},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "k",
        "client_metadata": {"a": "b"},
        "reasoning": {"effort": "medium", "summary": "auto"},
        "text": {"verbosity": "medium"},
        "stream": True,
    }

    reply = await post(team, body)

    assert reply.status_code == 200, reply.text
    assert [tool.name for tool in team.pro.calls[0].tools] == ["f", "apply_patch"]
    assert reply.headers["x-conductor-ignored"].split(", ") == [
        "store",
        "include",
        "prompt_cache_key",
        "client_metadata",
        "tools[2].type web_search",
    ]


# -- the table -----------------------------------------------------------------------------------

SAMPLES: dict[str, Any] = {
    "access_programs": ["x"],
    "background": True,
    "background_options": {"a": 1},
    "conductor": {"only": ["pro"]},
    "context_management": [{"type": "compaction"}],
    "conversation": "conv_1",
    "image": {"a": 1},
    "include": ["reasoning.encrypted_content"],
    "input": "Another",
    "instructions": "Be kind.",
    "max_output_tokens": 7,
    "max_tool_calls": 3,
    "metadata": {"a": "b"},
    "model": "worker/judge",
    "moderation": {"model": "omni"},
    "parallel_tool_calls": False,
    "previous_response_id": "resp_" + "0" * 32,
    "prompt": {"id": "p"},
    "prompt_cache_key": "k",
    "prompt_cache_options": {"ttl": "24h"},
    "prompt_cache_retention": "24h",
    "reasoning": {"effort": "low"},
    "safety_identifier": "s",
    "service_tier": "flex",
    "store": True,
    "stream": True,
    "stream_options": {"include_obfuscation": False},
    "temperature": 0.5,
    "text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}},
    "tool_choice": {"type": "function", "name": "f"},
    "tools": [TOOL],
    "top_logprobs": 3,
    "top_p": 0.5,
    "truncation": "auto",
    "user": "u",
}
PASSED: dict[str, Any] = {
    "max_output_tokens": lambda call: call.sampling == Sampling(max_tokens=7),
    "parallel_tool_calls": lambda call: call.parallel_tool_calls is False,
    "temperature": lambda call: call.sampling == Sampling(temperature=0.5),
    "tool_choice": lambda call: call.tool_choice == {"type": "function", "function": {"name": "f"}},
    "tools": lambda call: call.tools == (Tool("f", "", {"type": "object"}),),
    "top_p": lambda call: call.sampling == Sampling(top_p=0.5),
}


def test_the_table_has_every_parameter_of_the_client() -> None:
    from openai.resources.responses import AsyncResponses

    known = set(inspect.signature(AsyncResponses.create).parameters)
    known -= {"self", "timeout", "extra_headers", "extra_query", "extra_body"}

    assert known == {row.name for row in RESPONSES} - {"conductor"}
    assert known == SAMPLES.keys() - {"conductor"}


@pytest.mark.parametrize("row", RESPONSES, ids=lambda row: row.name)
async def test_each_parameter_meets_its_fate(row: Parameter) -> None:
    team = Team()
    team.pro.texts = ['{"a": 1}']

    reply = await post(team, {**ASKED, "model": "worker/pro", row.name: SAMPLES[row.name]})

    ignored = reply.headers.get("x-conductor-ignored")
    match row.fate:
        case Fate.REFUSED:
            error = reply.json()["error"]
            assert (reply.status_code, error["param"]) == (400, row.name)
        case Fate.NOTED:
            assert (reply.status_code, ignored) == (200, row.name)
        case Fate.PASSED:
            assert (reply.status_code, ignored) == (200, None)
            assert PASSED[row.name](team.pro.calls[0])
        case Fate.HONOURED if row.name == "previous_response_id":
            assert reply.status_code == 404  # there is no journal
        case Fate.HONOURED:
            assert (reply.status_code, ignored) == (200, None)


# -- runs on record ------------------------------------------------------------------------------


async def test_a_conversation_goes_on_from_an_earlier_response(journal: Journal) -> None:
    team = Team(journal=journal)
    body = {"model": "worker/pro", "instructions": "Be kind.", "input": "Hi"}
    async with client(team.server()) as http:
        first = (await http.post(RESPOND, json=body)).json()
        more = {"previous_response_id": first["id"], "input": "And?", "instructions": "Be short."}
        second = (await http.post(RESPOND, json={**body, **more})).json()

    assert team.pro.calls[-1].messages == (
        Message("system", "Be short."),
        Message("user", "Hi"),
        Message("assistant", "Tea warms."),
        Message("user", "And?"),
    )
    assert second["previous_response_id"] == first["id"]


async def test_responses_and_runs_can_be_looked_up(journal: Journal) -> None:
    team = Team(journal=journal)
    async with client(team.server()) as http:
        made = (await http.post(RESPOND, json=ASKED)).json()
        again = (await http.get(f"{RESPOND}/{made['id']}")).json()
        run = Run.from_json((await http.get(f"/v1/runs/{made['id'][5:]}")).text)
        gone = await http.get("/v1/runs/" + "0" * 32)

    assert (again["id"], again["output"], again["usage"]) == (
        made["id"],
        made["output"],
        made["usage"],
    )
    assert run == journal.run(run.id)
    assert gone.status_code == 404


async def test_the_events_of_a_run_go_on_after_the_last_that_was_seen(journal: Journal) -> None:
    team = Team(journal=journal)
    async with client(team.server()) as http:
        run = (await http.post(RESPOND, json=ASKED)).json()["conductor"]["run"]
        whole = await http.get(f"/v1/runs/{run}/events")
        rest = await http.get(f"/v1/runs/{run}/events", headers={"last-event-id": "2"})

    sent = events(whole.text)
    assert [each["kind"] for each in sent][0::5] == ["run_started", "run_finished"]
    assert events(rest.text) == sent[2:]
    assert rest.text.startswith("id: 3\n")


async def test_the_events_of_a_run_are_told_while_it_is_under_way(journal: Journal) -> None:
    team = Team(journal=journal)
    team.judge.holding = anyio.Event()
    server = team.server()
    told = ""

    async with client(server) as http, anyio.create_task_group() as group:
        group.start_soon(lambda: http.post(RESPOND, json=ASKED))
        await anyio.wait_all_tasks_blocked()
        (run,) = journal.runs()

        async def watch() -> None:
            nonlocal told
            told = (await http.get(f"/v1/runs/{run.id}/events")).text

        group.start_soon(watch)
        await anyio.wait_all_tasks_blocked()
        team.judge.holding.set()

    assert [each["kind"] for each in events(told)][-1] == "run_finished"


async def test_a_key_sees_its_own_runs_only(journal: Journal) -> None:
    team = Team(journal=journal)
    keys = Keyring([Key("ann", digest("a")), Key("bob", digest("b"))])
    server = team.server(keys=keys)
    async with client(server, authorization="Bearer a") as http:
        made = (await http.post(RESPOND, json=ASKED)).json()
        mine = await http.get(f"/v1/runs/{made['conductor']['run']}")
    async with client(server, authorization="Bearer b") as http:
        others = [
            await http.get(f"/v1/runs/{made['conductor']['run']}"),
            await http.get(f"/v1/runs/{made['conductor']['run']}/events"),
            await http.get(f"{RESPOND}/{made['id']}"),
            await http.post(RESPOND, json={**ASKED, "previous_response_id": made["id"]}),
        ]

    assert mine.status_code == 200
    assert [reply.status_code for reply in others] == [404] * 4
