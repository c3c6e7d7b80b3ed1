"""Every parameter of the current clients has a fate, and meets it."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest

from conductor.server.ask import CHAT, Fate, Parameter
from runtime import Sampling, Tool
from tests.serving import Team, asked, client

pytestmark = pytest.mark.anyio
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
FORM = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}

SAMPLES: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "wav"},
    "conductor": {"only": ["pro"]},
    "frequency_penalty": 0.5,
    "function_call": "auto",
    "functions": [{"name": "f"}],
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "max_completion_tokens": 7,
    "max_tokens": 8,
    "messages": [{"role": "user", "content": "Another question"}],
    "metadata": {"a": "b"},
    "modalities": ["text", "audio"],
    "model": "worker/judge",
    "moderation": {"model": "omni"},
    "n": 2,
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "x"},
    "presence_penalty": -0.5,
    "prompt_cache_key": "k",
    "prompt_cache_options": {"ttl": "24h"},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "low",
    "response_format": FORM,
    "safety_identifier": "s",
    "seed": 7,
    "service_tier": "flex",
    "stop": ["END"],
    "store": True,
    "stream": True,
    "stream_options": {"include_usage": True},
    "temperature": 0.5,
    "tool_choice": "auto",
    "tools": [TOOL],
    "top_logprobs": 3,
    "top_p": 0.5,
    "user": "u",
    "verbosity": "low",
    "web_search_options": {},
}
"""A value for each that says something."""
PASSED: dict[str, Any] = {
    "frequency_penalty": lambda call: call.sampling == Sampling(frequency_penalty=0.5),
    "logit_bias": lambda call: json.loads(call.extra) == {"logit_bias": {"50256": -100}},
    "max_completion_tokens": lambda call: call.sampling == Sampling(max_tokens=7),
    "max_tokens": lambda call: call.sampling == Sampling(max_tokens=8),
    "parallel_tool_calls": lambda call: call.parallel_tool_calls is False,
    "prediction": lambda call: json.loads(call.extra)["prediction"]["content"] == "x",
    "presence_penalty": lambda call: call.sampling == Sampling(presence_penalty=-0.5),
    "seed": lambda call: call.sampling == Sampling(seed=7),
    "stop": lambda call: call.sampling == Sampling(stop=("END",)),
    "temperature": lambda call: call.sampling == Sampling(temperature=0.5),
    "tool_choice": lambda call: call.tool_choice == "auto",
    "tools": lambda call: call.tools == (Tool("f", "", {"type": "object"}),),
    "top_p": lambda call: call.sampling == Sampling(top_p=0.5),
    "verbosity": lambda call: json.loads(call.extra) == {"verbosity": "low"},
}


def test_the_table_has_every_parameter_of_the_client() -> None:
    from openai.resources.chat.completions import AsyncCompletions

    known = set(inspect.signature(AsyncCompletions.create).parameters)
    known -= {"self", "timeout", "extra_headers", "extra_query", "extra_body"}

    assert known == {row.name for row in CHAT} - {"conductor"} == SAMPLES.keys() - {"conductor"}


@pytest.mark.parametrize("row", CHAT, ids=lambda row: row.name)
async def test_each_parameter_meets_its_fate(row: Parameter) -> None:
    team = Team()
    team.pro.texts = ['{"a": 1}']
    async with client(team.server()) as http:
        body = {**asked("worker/pro"), row.name: SAMPLES[row.name]}
        reply = await http.post("/v1/chat/completions", json=body)

    ignored = reply.headers.get("x-conductor-ignored")
    match row.fate:
        case Fate.REFUSED:
            error = reply.json()["error"]
            assert (reply.status_code, error["param"]) == (400, row.name)
            assert row.remark in error["message"]
        case Fate.NOTED:
            assert (reply.status_code, ignored) == (200, row.name)
        case Fate.PASSED:
            assert (reply.status_code, ignored) == (200, None)
            assert PASSED[row.name](team.pro.calls[0])
        case Fate.HONOURED:
            assert (reply.status_code, ignored) == (200, None)


async def test_values_that_say_nothing_are_accepted_of_what_is_refused() -> None:
    body = {
        "audio": None,
        "logprobs": False,
        "top_logprobs": 0,
        "modalities": ["text"],
        "service_tier": "auto",
        "functions": None,
    }
    async with client(Team().server()) as http:
        reply = await http.post("/v1/chat/completions", json={**asked(), **body})

    assert reply.status_code == 200
    assert "x-conductor-ignored" not in reply.headers


async def test_unknown_fields_are_told_and_not_refused() -> None:
    """Clients send fields that are newer than this server."""
    async with client(Team().server()) as http:
        reply = await http.post("/v1/chat/completions", json=asked(brand_new=1, another=[]))

    assert reply.status_code == 200
    assert reply.headers["x-conductor-ignored"] == "brand_new, another"


async def test_names_of_unknown_fields_never_break_a_header() -> None:
    """A header with a blank at its end is none to an HTTP server: it drops the connection."""
    odd = {"": 1, " ": 1, "a\r\nset-cookie: b": 1, "Grüße": 1, "c ": 1}
    async with client(Team().server()) as http:
        reply = await http.post("/v1/chat/completions", json=asked(**odd))

    assert reply.status_code == 200
    told = reply.headers["x-conductor-ignored"]
    assert told.isascii() and told.isprintable() and told == told.strip()
    assert told.endswith("a??set-cookie: b, Gr??e, c")


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 7}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [7]}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "pirate", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"temperature": 9}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": 1000}, "n"),
        ({"seed": "x"}, "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": 7}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"reasoning_effort": "immense"}, "reasoning_effort"),
        ({"tools": [{"function": {}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": 7}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"conductor": {"oly": ["pro"]}}, "conductor.oly"),
        ({"conductor": {"only": "pro"}}, "conductor.only"),
        ({"conductor": {"only": [1]}}, "conductor.only"),
        ({"conductor": {"max_dollars": -1}}, "conductor.max_dollars"),
        ({"conductor": {"deadline": 0}}, "conductor.deadline"),
        ({"conductor": {"only": ["nobody"]}}, "conductor"),
    ],
)
async def test_what_is_wrong_is_named(wrong: dict[str, Any], param: str) -> None:
    async with client(Team().server()) as http:
        reply = await http.post("/v1/chat/completions", json={**asked(), **wrong})

    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param), error
    assert error["type"] == "invalid_request_error"


# -- JSON ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["worker/judge", "conductor"])
async def test_an_answer_of_another_form_is_written_once_more(model: str, stream: bool) -> None:
    team = Team()
    team.judge.texts = ['{"a": "one"}', '{"a": 1}']
    body = asked(model, response_format=FORM, stream=stream)

    async with client(team.server()) as http:
        reply = await http.post("/v1/chat/completions", json=body)

    assert '"one' not in reply.text.replace("\\", "").partition('"conductor"')[0]
    assert '\\"a\\": 1' in reply.text
    first, second = team.judge.calls
    assert second.messages[: len(first.messages)] == first.messages
    assert second.messages[-2].content == '{"a": "one"}'
    assert "$.a must be of type integer" in second.messages[-1].content
    assert json.loads(second.response_format) == FORM


@pytest.mark.parametrize(
    ("texts", "form", "told"),
    [
        (["no", "still no"], FORM, "it is not JSON"),
        (["[1]", "[2]"], {"type": "json_object"}, "$ must be of type object"),
        (['{"b": 1}', "{}"], FORM, "$.a is missing"),
    ],
)
async def test_an_answer_that_is_wrong_twice_is_none(
    texts: list[str], form: dict[str, Any], told: str
) -> None:
    team = Team()
    team.pro.texts = list(texts)

    async with client(team.server()) as http:
        body = asked("worker/pro", response_format=form)
        reply = await http.post("/v1/chat/completions", json=body)

    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (502, "schema_mismatch")
    assert told in error["message"]
    assert len(team.pro.calls) == 2


async def test_a_schema_that_cannot_be_checked_is_refused_before_anything_is_called() -> None:
    team = Team()
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(a+)+$"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}

    async with client(team.server()) as http:
        reply = await http.post("/v1/chat/completions", json=asked(response_format=form))

    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, "response_format.json_schema.schema")
    assert "'pattern'" in error["message"]
    assert team.scribe.calls == []


# -- effort --------------------------------------------------------------------------------------


@pytest.mark.parametrize("effort", ["none", "minimal", "low", "medium", "high", "xhigh", "max"])
async def test_every_tier_of_effort_is_accepted(effort: str) -> None:
    team = Team()
    async with client(team.server()) as http:
        reply = await http.post("/v1/chat/completions", json=asked(reasoning_effort=effort))

    allowed = effort not in ("none", "minimal")  # one step at most, and the plan has two
    assert (reply.status_code == 200) is allowed
    if not allowed:
        assert reply.json()["error"]["code"] == "no_plan"
        assert "1 step" in team.scribe.calls[0].messages[0].content
    rounds = {"xhigh": 2, "max": 3}.get(effort, 1)
    plans = [call for call in team.scribe.calls if effort in ("xhigh", "max")]
    assert len(plans) == (rounds if rounds > 1 else 0)


async def test_a_whole_number_may_be_written_with_a_point() -> None:
    """As some languages write all their numbers."""
    team = Team()
    async with client(team.server()) as http:
        whole = await http.post(
            "/v1/chat/completions", json=asked("worker/pro", max_tokens=5.0, n=1.0)
        )
        broken = await http.post("/v1/chat/completions", json=asked("worker/pro", max_tokens=5.5))

    assert whole.status_code == 200
    assert repr(team.pro.calls[0].sampling.max_tokens) == "5"
    assert (broken.status_code, broken.json()["error"]["param"]) == (400, "max_tokens")
