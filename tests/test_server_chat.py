"""Chat completions: one model from outside, in the API's own shapes."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from conductor.server import Limits, Server
from runtime import (
    FailureKind,
    FinishReason,
    Journal,
    Message,
    RunState,
    Sampling,
    WorkerError,
)
from tests.serving import Speaker, Team, Wire, asked, client, events, said

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"


async def post(server: Server, body: dict[str, Any], **headers: str) -> Any:
    async with client(server) as http:
        return await http.post(CHAT, json=body, headers=headers)


# -- whole replies -------------------------------------------------------------------------------


async def test_the_team_answers_as_one_model_and_tells_who_did_what() -> None:
    team = Team()
    reply = await post(team.server(), asked())

    told = reply.json()
    assert reply.status_code == 200
    assert told["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Yes, in the morning.", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert (told["object"], told["model"]) == ("chat.completion", "conductor")
    usage = told["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (30, 7)
    assert usage["prompt_tokens_details"]["orchestration_input_tokens"] == 120
    assert usage["completion_tokens_details"]["orchestration_output_tokens"] == 45
    assert usage["total_tokens"] == 30 + 7 + 120 + 45
    who = told["conductor"]
    assert who["plan"]["workers"] == ["pro", "judge"]
    assert who["plan"]["access"] == [[], [0]]
    assert [step["worker"] for step in who["steps"]] == ["pro", "judge"]
    assert who["workers"]["judge"]["output_tokens"] == 7
    assert who["planning"]["input_tokens"] == 100
    assert told["id"] == f"chatcmpl-{who['run']}"
    assert reply.headers["x-conductor-run-id"] == who["run"]
    assert reply.headers["x-conductor-policy"] == who["policy"]
    assert reply.headers["x-conductor-workers"] == "pro,judge"
    assert reply.headers["x-conductor-cost-usd"] == "0"
    assert float(reply.headers["x-conductor-overhead-ms"]) >= 0
    assert reply.headers["x-request-id"].startswith("req_")


async def test_one_worker_gets_the_messages_and_settings_untouched() -> None:
    team = Team()
    talk = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "ann"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y"}}]},
    ]
    settings = {"temperature": 0.5, "top_p": 0.9, "max_completion_tokens": 9, "seed": 7}
    more = {"stop": ["END"], "frequency_penalty": 1, "presence_penalty": -1, "logit_bias": {"5": 1}}

    reply = await post(team.server(), {"model": "worker/pro", "messages": talk, **settings, **more})

    assert reply.json()["choices"][0]["message"]["content"] == "Tea warms."
    (call,) = team.pro.calls
    assert call.messages == (
        Message("system", "Be kind."),
        Message("user", "Hi", name="ann"),
        Message("assistant", "Yes?"),
        Message("user", "[image_url]", parts=json.dumps(talk[3]["content"])),
    )
    assert call.sampling == Sampling(0.5, 0.9, 9, 7, ("END",), 1.0, -1.0)
    assert json.loads(call.extra) == {"logit_bias": {"5": 1}}
    assert reply.json()["usage"]["total_tokens"] == 25
    assert reply.json()["conductor"]["plan"] == {"source": "pick", "workers": ["pro"]}


async def test_an_image_reaches_a_step_that_hands_the_query_on_and_is_a_word_to_all_others() -> (
    None
):
    team = Team()
    team.scribe.texts = [
        'subtasks = ["What is this?\\n[image_url]", "What is this?\\n[image_url]"]\n'
        'workers = ["pro", "judge"]\naccess = [[], [0]]\n'
    ]
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,x"}}
    parts = [{"type": "text", "text": "What is this?"}, image]

    await post(
        team.server(), {"model": "conductor", "messages": [{"role": "user", "content": parts}]}
    )

    asked = Message("user", "What is this?\n[image_url]", parts=json.dumps(parts))
    assert team.pro.calls[0].messages == (asked,)
    for worker in (team.scribe, team.judge):
        (call,) = worker.calls
        assert not any(each.parts for each in call.messages)
        assert "What is this?\n[image_url]" in call.messages[-1].content


async def test_every_step_of_a_plan_sees_the_conversation_and_the_last_is_told_how() -> None:
    team = Team()
    talk = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "A team."},
        {"role": "user", "content": "Is tea healthy?"},
    ]

    await post(team.server(), {"model": "conductor", "messages": talk, "temperature": 0.5})

    for worker in (team.scribe, team.pro, team.judge):
        seen = worker.calls[0].messages[-1].content
        assert "Be kind." in seen
        assert "assistant: A team." in seen
        assert "Is tea healthy?" in seen
    assert team.pro.calls[0].sampling == Sampling()
    assert team.judge.calls[0].sampling == Sampling(temperature=0.5)


async def test_choices_are_as_many_as_asked_for() -> None:
    """Of a plan only the last step is done again; seeds differ, or they would be alike."""
    team = Team()
    team.judge.texts = ["One.", "Two.", "Three."]

    told = (await post(team.server(), asked(n=3, seed=5))).json()

    texts = [choice["message"]["content"] for choice in told["choices"]]
    assert (texts[0], sorted(texts[1:])) == ("One.", ["Three.", "Two."])
    assert [choice["index"] for choice in told["choices"]] == [0, 1, 2]
    assert (len(team.scribe.calls), len(team.pro.calls)) == (1, 1)
    assert sorted(call.sampling.seed or 0 for call in team.judge.calls) == [5, 6, 7]
    assert told["usage"]["completion_tokens"] == 21
    assert told["usage"]["total_tokens"] == 140 + 25 + 3 * 37


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        (FinishReason.LENGTH, "length"),
        (FinishReason.CONTENT_FILTER, "content_filter"),
        (FinishReason.OTHER, "stop"),
    ],
)
async def test_the_finish_reason_is_that_of_the_last_step(reason: FinishReason, told: str) -> None:
    team = Team()
    team.judge.finish_reason = reason

    reply = await post(team.server(), asked())

    assert reply.json()["choices"][0]["finish_reason"] == told


# -- streams -------------------------------------------------------------------------------------


async def test_a_stream_has_the_role_first_then_text_then_one_finish_then_usage() -> None:
    team = Team()
    body = asked(stream=True, stream_options={"include_usage": True})

    reply = await post(team.server(), body)

    *chunks, done = events(reply.text)
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert done == "[DONE]"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert deltas[0] == {"role": "assistant", "content": "Yes,"}
    assert "".join(delta.get("content", "") for delta in deltas) == "Yes, in the morning."
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"]]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 202
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["conductor"]["plan"]["workers"] == ["pro", "judge"]
    assert len({(chunk["id"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert reply.headers["x-conductor-run-id"] == chunks[-1]["conductor"]["run"]
    assert reply.headers["x-conductor-workers"] == "pro,judge"


async def test_without_usage_every_chunk_has_a_choice() -> None:
    """Clients read chunk.choices[0] without looking."""
    reply = await post(Team().server(), asked(stream=True))

    *chunks, _ = events(reply.text)
    assert all(chunk["choices"] for chunk in chunks)
    assert "usage" not in chunks[-1]
    assert chunks[-1]["conductor"]["state"] == "done"


async def test_a_stream_and_a_whole_reply_count_the_same() -> None:
    body = asked(n=2)
    whole = (await post(Team().server(), body)).json()["usage"]

    streamed = await post(
        Team().server(), {**body, "stream": True, "stream_options": {"include_usage": True}}
    )

    assert events(streamed.text)[-2]["usage"] == whole


async def test_several_choices_stream_side_by_side() -> None:
    team = Team()
    team.judge.texts = ["One a.", "Two b.", "Three c."]

    reply = await post(team.server(), asked(stream=True, n=3))

    texts = {0: "", 1: "", 2: ""}
    finishes = []
    for chunk in events(reply.text)[:-1]:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
            finishes += [choice["index"]] if choice["finish_reason"] else []
    assert sorted(texts.values()) == ["One a.", "Three c.", "Two b."]
    assert finishes == [0, 1, 2]


async def test_progress_is_told_to_those_who_ask() -> None:
    reply = await post(Team().server(), asked(stream=True, conductor={"progress": True}))

    kinds = [
        chunk["conductor"].get("kind") for chunk in events(reply.text)[:-1] if not chunk["choices"]
    ]
    assert kinds == [
        "run_started",
        "plan_parsed",
        "step_started",
        "step_finished",
        "step_started",
        "step_finished",
    ]


async def test_tokens_are_passed_on_as_they_come() -> None:
    """The first word is out while the last step still writes."""
    team = Team()
    team.judge.holding = anyio.Event()
    server, wire = team.server(), Wire(asked(stream=True))

    async with anyio.create_task_group() as group:
        group.start_soon(server, wire.scope, wire.receive, wire.send)
        await anyio.wait_all_tasks_blocked()
        before = said(events(b"".join(wire.sent).decode()))
        team.judge.holding.set()

    assert (wire.status, before) == (200, "Yes,")
    assert said(events(b"".join(wire.sent).decode())) == "Yes, in the morning."


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_hangs_up_stops_the_run_and_its_calls(
    stream: bool, tmp_path: Any
) -> None:
    with Journal(tmp_path / "journal.db") as journal:
        team = Team(journal=journal)
        team.judge.holding = anyio.Event()
        server, wire = team.server(), Wire(asked(stream=stream))

        async with anyio.create_task_group() as group:
            group.start_soon(server, wire.scope, wire.receive, wire.send)
            await anyio.wait_all_tasks_blocked()
            wire.gone.set()

        assert (team.judge.cancelled, server.traffic.open) == (1, 0)
        (run,) = journal.runs()
        assert run.state is RunState.CANCELLED
        assert b"[DONE]" not in b"".join(wire.sent)


async def test_silence_is_filled_with_comments() -> None:
    team = Team()
    team.pro.holding = anyio.Event()
    server, wire = team.server(limits=Limits(keep_alive_s=0.01)), Wire(asked(stream=True))

    async with anyio.create_task_group() as group:
        group.start_soon(server, wire.scope, wire.receive, wire.send)
        while len(wire.sent) < 3:
            await checkpoint()
        team.pro.holding.set()

    assert wire.sent[:3] == [b": keep-alive\n\n"] * 3
    assert said(events(b"".join(wire.sent).decode())) == "Yes, in the morning."


async def test_who_does_not_read_is_dropped() -> None:
    """What waits for a slow client is bounded."""
    team = Team()
    team.judge.texts = ["word " * 100]
    server, wire = team.server(limits=Limits(unread=20)), Wire(asked(stream=True))

    await server(wire.scope, wire.receive, wire.send)

    assert b"[DONE]" not in b"".join(wire.sent)
    assert server.traffic.open == 0


# -- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        (FailureKind.RATE_LIMITED, 429, "rate_limit_exceeded"),
        (FailureKind.REJECTED, 400, "worker_refused"),
        (FailureKind.UNAUTHORIZED, 502, "worker_key_rejected"),
        (FailureKind.OVERLOADED, 503, "worker_overloaded"),
    ],
)
async def test_a_failure_before_the_first_byte_is_a_real_status(
    kind: FailureKind, status: int, code: str, stream: bool
) -> None:
    team = Team()
    failure = WorkerError(kind, "pro: it went wrong; try again", retry_after_s=100.0)
    team.pro.texts = [failure]

    reply = await post(team.server(), asked("worker/pro", stream=stream))

    told = reply.json()["error"]
    assert (reply.status_code, told["code"]) == (status, code)
    assert "it went wrong" in told["message"]
    assert set(told) == {"message", "type", "param", "code", "run"}
    if status in (429, 503):
        assert reply.headers["retry-after"] == "100"
        assert reply.headers["retry-after-ms"] == "100000"


async def test_a_failure_after_the_first_byte_is_an_error_event_and_no_normal_finish() -> None:
    """Neither a finish reason nor [DONE]: a cut answer must not look whole."""
    team = Team()

    class Breaks(Speaker):
        async def complete(self, call: Any, on_text: Any = None) -> Any:
            on_text("Yes, but")
            raise WorkerError(FailureKind.BAD_RESPONSE, "judge: cut off")

    team.conductor.pool = type(team.conductor.pool)(
        [team.pro, Breaks("judge")], planner=team.scribe
    )
    server = team.server()
    wire = Wire(asked(stream=True))

    await server(wire.scope, wire.receive, wire.send)

    sent = events(b"".join(wire.sent).decode())
    assert wire.status == 200
    assert "error" in sent[-1]
    assert sent[-1]["error"]["code"] == "bad_worker_response"
    assert "[DONE]" not in sent
    assert [c["choices"][0]["finish_reason"] for c in sent[:-1]] == [None] * (len(sent) - 1)
