"""What other gateways got wrong, each with a test against the real server: a request comes in over
ASGI, and its models are the fault server's, over real sockets.
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from conductor import Conductor
from conductor.server import Server
from runtime import Endpoint, HttpClient, Pool, Terms, Usage
from tests.faults import server as play
from tests.faults.server import ANSWER, End, Exchange, FaultServer, Play, pieces, serving
from tests.serving import CHAT, Wire, asked, client, events, said

pytestmark = pytest.mark.anyio
BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
FIRST = pieces(ANSWER)[0]
ONCE = Terms(retries=0, trip_after=None)


@asynccontextmanager
async def served(faults: FaultServer, **terms: Terms) -> AsyncIterator[Server]:
    """A server with a worker for each model, which is scripted already; no second try unless its
    terms say so."""
    http = HttpClient()
    workers = [Endpoint(name, url=faults.url, model=name, client=http) for name in faults.models]
    ours = {name: terms.get(name, ONCE) for name in faults.models}
    team = Conductor(Pool(workers, terms=ours))
    async with team:
        yield Server(team)


async def post(server: Server, body: dict[str, Any], path: str = CHAT) -> Any:
    async with client(server) as http:
        return await http.post(path, json=body)


def terms_of(fallback: str) -> Terms:
    """One try, then another worker."""
    return Terms(retries=0, trip_after=None, fallback=(fallback,))


async def error_first(exchange: Exchange) -> None:
    """Begin a stream, and fail in it before any text."""
    await exchange.head()
    await exchange.part(play.sse({"error": {"message": "on purpose", "code": 500}}))
    await exchange.end()


async def stops_at_once(exchange: Exchange) -> None:
    """Say that all is done, having said nothing."""
    await exchange.head()
    await exchange.part(play.event(finish="stop") + play.DONE)
    await exchange.end()


async def other_words(exchange: Exchange) -> None:
    """Begin with other words than the next try will, and break off."""
    await exchange.head()
    await exchange.part(play.event("Quite another "))
    exchange.reset()


LOST: dict[str, Play] = {
    "reset": play.reset_before_headers,
    "500": play.status(500),
    "HTML": play.html,
    "error in the stream": error_first,
    "nothing": stops_at_once,
}


# -- a failed stream became a 200 with an empty answer (litellm 36768) ----------------------------


@BOTH
@pytest.mark.parametrize("lost", LOST)
async def test_a_stream_that_failed_is_no_empty_success(lost: str, stream: bool) -> None:
    """Nothing was said, so the failure is a real status."""
    async with serving() as faults:
        faults.script("m", LOST[lost])
        async with served(faults) as server:
            reply = await post(server, asked("worker/m", stream=stream))

    assert reply.status_code in (502, 503)
    assert reply.json()["error"]["message"]


@BOTH
@pytest.mark.parametrize("lost", LOST)
async def test_a_stream_that_failed_has_its_fallback(lost: str, stream: bool) -> None:
    async with serving() as faults:
        faults.script("m", LOST[lost])
        faults.script("other", play.fine)
        async with served(faults, m=terms_of("other")) as server:
            reply = await post(server, asked("worker/m", stream=stream))

    assert reply.status_code == 200
    assert answer_of(reply, stream) == ANSWER
    assert [entry.model for entry in faults.ledger.entries] == ["m", "other"]


def answer_of(reply: Any, stream: bool) -> str:
    if not stream:
        return str(reply.json()["choices"][0]["message"]["content"])
    told = events(reply.text)
    assert told[-1] == "[DONE]"
    return said(told)


@pytest.mark.parametrize("path", [CHAT, "/v1/responses"])
async def test_a_stream_whose_text_became_void_ends_with_an_error(path: str) -> None:
    """Whoever stood in had other words: the client is told, and the stream has no normal end."""
    async with serving() as faults:
        faults.script("m", other_words)
        faults.script("other", play.fine)
        body: dict[str, Any] = {"model": "worker/m", "input": "q", "stream": True}
        async with served(faults, m=terms_of("other")) as server:
            reply = await post(server, body if path != CHAT else asked(**body), path)

    assert reply.status_code == 200
    told = events(reply.text)
    if path == CHAT:
        assert said(told[:-1]) == "Quite another "
        assert told[-1]["error"]["code"] == "bad_worker_response"
    else:
        assert told[-1]["type"] == "response.failed"
    assert "[DONE]" not in reply.text


# -- a 429 midway, without a fallback, kept a CPU busy for good (litellm 26015) -------------------


@BOTH
@pytest.mark.parametrize("retries", [0, 2])
async def test_a_429_midway_is_tried_as_often_as_said_and_ends(retries: int, stream: bool) -> None:
    """No more calls than tries, no task left behind, and the client is told."""
    async with serving() as faults:
        faults.script("m", play.error_midway(429))
        terms = Terms(retries=retries, retry_base_s=0.001, trip_after=None)
        async with served(faults, m=terms) as server:
            before = len(anyio.get_running_tasks())
            reply = await post(server, asked("worker/m", stream=stream))
            await faults.ledger.quiet()
            await anyio.wait_all_tasks_blocked()
            after = len(anyio.get_running_tasks())

    if stream:
        assert reply.status_code == 200
        told = events(reply.text)
        assert told[-1]["error"]["code"] == "rate_limit_exceeded"
        assert said(told[:-1]) == FIRST
    else:
        assert reply.status_code == 429
        assert reply.headers["retry-after"]
    assert len(faults.ledger.entries) == 1 + retries
    # A connection that is kept open has a task at the other end, which is in this process too.
    assert after <= before + 1


# -- streams came in one piece (litellm 26102) ----------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, "/v1/responses"])
async def test_a_stream_is_passed_on_piece_by_piece(path: str) -> None:
    """The model writes a piece only when the client has the one before it."""
    body: dict[str, Any] = {"model": "worker/m", "input": "q", "stream": True}
    wire = Wire(body if path != CHAT else asked(**body), path)
    sent = anyio.Event()

    async def send(message: Any) -> None:
        nonlocal sent
        await wire.send(message)
        sent.set()
        sent = anyio.Event()

    async def heard(count: int) -> None:
        so_far = "".join(pieces(ANSWER)[:count])
        while text_of(wire, path) != so_far:
            await sent.wait()

    async with serving() as faults:
        faults.script("m", play.in_step(heard))
        async with served(faults) as server:
            with anyio.fail_after(20):
                await server(wire.scope, wire.receive, send)

    assert text_of(wire, path) == ANSWER


def text_of(wire: Wire, path: str) -> str:
    told = events(b"".join(wire.sent).decode())
    if path == CHAT:
        return said(told)
    kind = "response.output_text.delta"
    return "".join(event["delta"] for event in told if event["type"] == kind)


# -- fallbacks that were switched off were used midway (litellm 19077) ----------------------------


@BOTH
@pytest.mark.parametrize("lost", [play.reset_midway, play.error_midway(503), play.status(500)])
@pytest.mark.parametrize("wish", [{"only": ["m"]}, {"without": ["other"]}])
async def test_who_may_not_work_does_not_stand_in_either(
    wish: dict[str, Any], lost: Play, stream: bool
) -> None:
    async with serving() as faults:
        faults.script("m", lost)
        faults.script("other", play.fine)
        async with served(faults, m=terms_of("other")) as server:
            reply = await post(server, asked("worker/m", stream=stream, conductor=wish))

    assert faults.ledger.of("other") == []
    told = events(reply.text)[-1] if reply.status_code == 200 else reply.json()
    assert told["error"]["code"] in ("worker_unreachable", "worker_overloaded")
    assert (reply.status_code == 200) <= stream
    assert "[DONE]" not in reply.text


# -- a fallback that does not stream broke the reply (litellm 42724) ------------------------------


@BOTH
@pytest.mark.parametrize("lost", [play.status(500), play.reset_midway])
async def test_a_fallback_that_does_not_stream_fits_all_the_same(lost: Play, stream: bool) -> None:
    """Its one JSON goes on where the stream had broken off."""
    async with serving() as faults:
        faults.script("m", lost)
        faults.script("other", play.fine, streamed=False)
        async with served(faults, m=terms_of("other")) as server:
            body = asked("worker/m", stream=stream, stream_options={"include_usage": True})
            if not stream:
                del body["stream_options"]
            reply = await post(server, body)

    assert reply.status_code == 200
    assert answer_of(reply, stream) == ANSWER
    told = events(reply.text)[-2]["usage"] if stream else reply.json()["usage"]
    assert told["total_tokens"] == tokens(faults.ledger.usage("other"))


def tokens(usage: Usage) -> int:
    return usage.input_tokens + usage.output_tokens


# -- usage was corrupted on its way through a chain (litellm 40253, 36168) ------------------------


@BOTH
async def test_usage_goes_through_a_chain_as_the_models_told_it(stream: bool) -> None:
    """Tries again, stand-ins and a plan's steps: each token once, whoever gave the answer."""
    plan = 'subtasks = ["One.", "Two."]\nworkers = ["m", "judge"]\naccess = [[], [0]]\n'
    twice = Terms(retries=1, retry_base_s=0.001, fallback=("other",))
    async with serving() as faults:
        faults.script("scribe", play.fine, text=plan)
        faults.script("m", play.error_midway(503), play.reset_midway)
        faults.script("other", play.fine)
        faults.script("judge", play.status(500), play.fine)
        async with served(faults, m=twice, judge=twice) as server:
            body = asked("conductor", stream=stream, conductor={"without": []})
            if stream:
                body["stream_options"] = {"include_usage": True}
            reply = await post(server, body)

    told = events(reply.text)[-2] if stream else reply.json()
    usage, ledger = told["usage"], faults.ledger
    assert answer_of(reply, stream) == ANSWER
    assert usage["prompt_tokens"] == ledger.usage("judge").input_tokens
    assert usage["completion_tokens"] == ledger.usage("judge").output_tokens
    led = ledger.usage("scribe") + ledger.usage("other")
    inputs, outputs = usage["prompt_tokens_details"], usage["completion_tokens_details"]
    assert inputs["orchestration_input_tokens"] == led.input_tokens
    assert inputs["orchestration_input_cached_tokens"] == led.cached_tokens
    assert inputs["cached_tokens"] == ledger.usage("judge").cached_tokens
    assert outputs["orchestration_output_tokens"] == led.output_tokens
    assert usage["total_tokens"] == tokens(ledger.usage())


# -- memory and connections leaked with each streamed call (litellm 6404) -------------------------


CALLS = 12
ENDS: dict[str, Play] = {
    "answered": play.fine,
    "refused": play.status(500),
    "broken off": play.reset_midway,
    "hung up": play.hangs_midway,
}


@pytest.mark.parametrize("end", ENDS)
async def test_a_streamed_call_leaves_nothing_behind(end: str) -> None:
    """Neither objects of ours or of a client, nor connections, nor tasks, however it ended."""
    async with serving() as faults:
        faults.script("m", ENDS[end])
        async with served(faults) as server:
            await calls(server, faults, 4, hang_up=end == "hung up")  # what is made once is made
            before = held()
            await calls(server, faults, CALLS, hang_up=end == "hung up")
            after = held()

    # A leak by call would be CALLS of something.
    assert {what: count for what, count in (after - before).items() if count >= CALLS // 2} == {}
    assert server.traffic.open == 0


async def calls(server: Server, faults: FaultServer, count: int, *, hang_up: bool) -> None:
    """Make streamed calls one after the other, and hang up on the first word, or not at all."""
    for _ in range(count):
        wire = Wire(asked("worker/m", stream=True))

        async def send(message: Any, wire: Wire = wire) -> None:
            await wire.send(message)
            if hang_up and text_of(wire, CHAT):
                wire.gone.set()

        with anyio.fail_after(20):
            await server(wire.scope, wire.receive, send)
            await faults.ledger.quiet()
    assert faults.ledger.count(End.HUNG_UP) == count * hang_up
    faults.ledger.entries.clear()


def held() -> Counter[str]:
    """What this process has: objects of our types and of the HTTP clients', sockets, tasks."""
    gc.collect()
    parts = ("conductor", "runtime", "httpx", "httpcore", "aiohttp", "anyio", "httpx_aiohttp")
    kinds = (type(each) for each in gc.get_objects())
    found = Counter(
        f"{kind.__module__}.{kind.__qualname__}"
        for kind in kinds
        if str(kind.__module__).partition(".")[0] in parts
    )
    found["tasks"] = len(anyio.get_running_tasks())
    files = Path("/proc/self/fd")
    found["open files"] = len(os.listdir(files)) if files.is_dir() else 0
    return found
