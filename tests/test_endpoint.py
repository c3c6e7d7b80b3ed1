"""Endpoint and HttpClient: requests, streams, failures, secrets; against real sockets and fakes."""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from typing import Any

import aiohttp
import anyio
import anyio.abc
import anyio.lowlevel
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import (
    Call,
    Completion,
    Endpoint,
    FailureKind,
    FinishReason,
    Health,
    HttpClient,
    Message,
    PoolError,
    Sampling,
    Tool,
    ToolCall,
    Usage,
    Worker,
    WorkerError,
)
from runtime import endpoint as module

pytestmark = pytest.mark.anyio

KEY = "sk-canary-0123456789abcdef"
CALL = Call((Message("user", "hi"),))


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


# -- fakes: a handler in place of the network, and a server of raw bytes ------------------------


def endpoint(handler: Callable[[httpx.Request], Any], **options: Any) -> Endpoint:
    """An endpoint whose requests go to ``handler``."""
    given = {"url": "https://api.test/v1", "model": "m", "key": KEY} | options
    transport = httpx.MockTransport(handler)
    return Endpoint("gpt", client=HttpClient(transport=transport), **given)


def delta(text: str | None = None, finish: str | None = None, **rest: Any) -> dict[str, Any]:
    content = {} if text is None else {"content": text}
    return {"choices": [{"index": 0, "delta": content, "finish_reason": finish}]} | rest


def sse(*events: Any, done: bool = True) -> bytes:
    lines = [event if isinstance(event, str) else json.dumps(event) for event in events]
    lines += ["[DONE]"] if done else []
    return "".join(f"data: {line}\n\n" for line in lines).encode()


def streamed(*events: Any, done: bool = True) -> httpx.Response:
    return httpx.Response(
        200, headers={"content-type": "text/event-stream"}, content=sse(*events, done=done)
    )


def replying(*responses: Any) -> Callable[[httpx.Request], httpx.Response]:
    """Give the responses in turn, the last one for ever."""
    left = list(responses)
    return lambda request: left.pop(0) if len(left) > 1 else left[0]


def head(kind: str = "text/event-stream", status: str = "200 OK", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


CHUNKED = {"Transfer_Encoding": "chunked"}
FINE = sse(delta("he"), delta("llo"), delta(finish="stop"))
WHOLE = head(Content_Length=str(len(FINE))) + FINE
Handler = Callable[[anyio.abc.SocketStream, bytes], Awaitable[None]]


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[str]:
    """Serve on loopback, request by request; the handler writes raw bytes."""

    async def connection(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            buffer = b""
            try:
                while True:
                    while b"\r\n\r\n" not in buffer:
                        buffer += await stream.receive()
                    top, _, buffer = buffer.partition(b"\r\n\r\n")
                    fields = dict(line.lower().split(b": ", 1) for line in top.split(b"\r\n")[1:])
                    length = int(fields.get(b"content-length", b"0"))
                    while len(buffer) < length:
                        buffer += await stream.receive()
                    body, buffer = buffer[:length], buffer[length:]
                    await handler(stream, top + b"\r\n\r\n" + body)
            except (
                anyio.EndOfStream,
                anyio.BrokenResourceError,
                anyio.ClosedResourceError,
            ):
                pass

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1", backlog=1024) as listener,
        anyio.create_task_group() as group,
    ):
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        group.start_soon(listener.serve, connection)
        yield f"http://127.0.0.1:{port}/v1"
        group.cancel_scope.cancel()


def sending(*pieces: bytes, then: str = "") -> Handler:
    """Write the pieces one by one; then keep the connection, ``close`` or ``reset`` it."""

    async def handler(stream: anyio.abc.SocketStream, request: bytes) -> None:
        for piece in pieces:
            await stream.send(piece)
            await anyio.lowlevel.checkpoint()
        if then == "reset":
            raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if then:
            await stream.aclose()

    return handler


async def failure_of(worker: Endpoint, call: Call = CALL) -> Any:
    with pytest.raises(WorkerError) as caught:
        async with worker:
            await worker.complete(call)
    failure = caught.value.failure
    assert failure.message.startswith(f"{worker.name} ({worker.host}): ")
    assert "\n" not in failure.message
    assert len(failure.message) < 500
    assert KEY not in failure.message
    return failure


# -- requests -----------------------------------------------------------------------------------


async def test_the_request_holds_what_is_set_and_nothing_else() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return streamed(delta("x", "stop"))

    worker = endpoint(
        handler,
        url="https://api.test/v1/?api-version=2",
        headers={"x-title": "conductor"},
        sampling=Sampling(temperature=0.0, seed=7),
        token_limit_field="max_completion_tokens",
        extra={"reasoning_effort": "low"},
        system="Be brief.",
    )
    messages = (Message("system", "You check."), Message("user", "hi"))
    async with worker:
        await worker.complete(Call(messages, Sampling(max_tokens=9, stop=("END",))))

    (request,) = seen
    assert str(request.url) == "https://api.test/v1/chat/completions?api-version=2"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["x-title"] == "conductor"
    assert json.loads(request.content) == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief.\n\nYou check."},
            {"role": "user", "content": "hi"},
        ],
        "temperature": 0.0,
        "max_completion_tokens": 9,
        "seed": 7,
        "stop": ["END"],
        "reasoning_effort": "low",
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_what_a_caller_sets_for_the_answer_is_sent_as_it_was_written() -> None:
    """Parts of a message, its name, penalties, the response format and further fields."""
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return streamed(delta("x", "stop"))

    parts = [{"type": "image_url", "image_url": {"url": "https://x.test/a.png"}}]
    form = {"type": "json_object"}
    call = Call(
        (
            Message("developer", "Be kind."),
            Message("user", "[image_url]", parts=json.dumps(parts), name="ann"),
        ),
        Sampling(frequency_penalty=0.5, presence_penalty=-0.5),
        response_format=json.dumps(form),
        extra='{"logit_bias": {"50256": -100}, "user": "u"}',
    )
    async with endpoint(handler, system="Be brief.", extra={"user": "ours"}) as worker:
        await worker.complete(call)

    sent = json.loads(seen[0].content)
    assert sent["messages"] == [
        {"role": "developer", "content": "Be brief.\n\nBe kind."},
        {"role": "user", "content": parts, "name": "ann"},
    ]
    assert (sent["frequency_penalty"], sent["presence_penalty"]) == (0.5, -0.5)
    assert (sent["response_format"], sent["logit_bias"]) == (form, {"50256": -100})
    assert sent["user"] == "ours"  # the pool file has the last word


async def test_without_a_key_or_settings_the_request_is_minimal() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return streamed(delta("x", "stop"))

    await endpoint(handler, key="", system="Be brief.").complete(CALL)

    assert "authorization" not in seen[0].headers
    body = json.loads(seen[0].content)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert set(body) == {"model", "messages", "stream", "stream_options"}


async def test_stream_options_are_left_out_once_a_server_refuses_them() -> None:
    bodies: list[Any] = []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        if "stream_options" in bodies[-1]:
            error = {"error": {"message": "Unrecognized request argument: stream_options"}}
            return httpx.Response(400, json=error)
        return streamed(delta("x", "stop"))

    worker = endpoint(handler)
    for _ in range(2):
        assert (await worker.complete(CALL)).text == "x"
    assert ["stream_options" in body for body in bodies] == [True, False, False]


async def test_a_refusal_that_stays_is_told_and_usage_is_asked_for_again() -> None:
    refusal = httpx.Response(400, json={"error": {"message": "bad: stream_options, messages"}})
    worker = endpoint(replying(refusal))
    assert (await failure_of(worker)).kind is FailureKind.REJECTED
    assert worker._asks_usage


async def test_broken_unicode_in_a_message_is_sent_all_the_same() -> None:
    worker = endpoint(replying(streamed(delta("x", "stop"))))
    assert (await worker.complete(Call((Message("user", "\ud800"),)))).text == "x"


SETTINGS: dict[str, Any] = {
    "url": "https://api.test/v1",
    "model": "m",
    "sampling": Sampling(temperature=0.0),
    "system": "Be brief.",
    "extra": {"top_k": 4},
    "headers": {"X-Beta": "value-0123456789"},
}


@pytest.mark.parametrize(
    "other",
    [
        {"url": "https://other.test/v1"},
        {"url": "https://api.test/v1?api-version=2"},
        {"model": "n"},
        {"sampling": Sampling(temperature=0.5)},
        {"sampling": Sampling()},
        {"system": ""},
        {"extra": {"top_k": 5}},
        {"token_limit_field": "max_completion_tokens"},
        {"headers": {}},
    ],
    ids=str,
)
def test_the_identity_differs_with_whatever_decides_a_completion(other: dict[str, Any]) -> None:
    one, same = Endpoint("a", **SETTINGS), Endpoint("b", **SETTINGS)
    assert one.identity == same.identity
    assert Endpoint("a", **SETTINGS | other).identity != one.identity


def test_the_identity_holds_no_secret_and_does_not_change_with_one() -> None:
    worker = Endpoint("w", key=KEY, **SETTINGS)
    assert worker.identity == Endpoint("w", **SETTINGS).identity
    assert "value-0123456789" not in worker.identity
    assert json.loads(worker.identity) == {
        "kind": "openai",
        "url": "https://api.test/v1",
        "model": "m",
        "sampling": {"temperature": 0.0},
        "system": "Be brief.",
        "token_limit_field": "max_tokens",
        "extra": {"top_k": 4},
        "headers": ["x-beta"],
    }


# -- completions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("together", "expected"),
    [(False, ["", "", "Hel", "lo", ""]), (True, ["Hello"])],
    ids=["one by one", "at once"],
)
async def test_a_stream_becomes_a_completion_piece_by_piece(
    together: bool, expected: list[str]
) -> None:
    """What comes together is one piece; an empty one says that the server is at it."""
    usage = {
        "prompt_tokens": 12,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 8},
    }
    events = sse(
        delta(model="m-2026-01-01") | {"choices": [{"delta": {"role": "assistant"}}]},
        {"choices": [{"index": 0, "delta": {"reasoning_content": "hmm"}}]},
        {"choices": [{"index": 0, "delta": {"reasoning": "hmm", "content": None}}]},
        delta("Hel"),
        {"choices": [{"index": 1, "delta": {"content": "another choice"}}]},
        delta("lo", model="m-2026-01-01"),
        delta(finish="length"),
        {"choices": [], "usage": usage},
    )

    async def body() -> AsyncIterator[bytes]:
        for event in [events] if together else events.splitlines(keepends=True):
            yield event

    reply = httpx.Response(200, headers={"content-type": "text/event-stream"}, content=body())
    pieces: list[str] = []
    completion = await endpoint(replying(reply)).complete(CALL, pieces.append)
    assert pieces == expected
    assert completion == Completion("Hello", FinishReason.LENGTH, Usage(12, 3, 8), "m-2026-01-01")


async def test_an_answer_in_one_json_is_taken_too() -> None:
    answer = {
        "model": "n",
        "choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2},
    }
    pieces: list[str] = []
    worker = endpoint(replying(httpx.Response(200, json=answer)))
    completion = await worker.complete(CALL, pieces.append)
    assert completion == Completion("Hello", FinishReason.STOP, Usage(5, 2), "n")
    assert pieces == ["Hello"]


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ("stop", FinishReason.STOP),
        ("eos", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("content_filter", FinishReason.CONTENT_FILTER),
        ("tool_calls", FinishReason.OTHER),
    ],
)
async def test_finish_reasons_are_mapped(told: str, reason: FinishReason) -> None:
    completion = await endpoint(replying(streamed(delta("x", told)))).complete(CALL)
    assert completion.finish_reason is reason


@pytest.mark.parametrize(
    ("events", "text"),
    [
        pytest.param([delta("x")], "x", id="only [DONE]"),
        pytest.param([delta("", "stop")], "", id="no text"),
        pytest.param([{"choices": [{"delta": {"refusal": "No."}}]}], "No.", id="refusal"),
        pytest.param(
            [{"choices": [{"delta": {"content": [{"type": "text", "text": "x"}, {"a": 1}]}}]}],
            "x",
            id="typed parts",
        ),
        pytest.param(
            [{"choices": 3}, {"choices": [7, {"delta": [1]}]}, {"model": 4, "usage": "much"}, {}],
            "",
            id="odd shapes",
        ),
    ],
)
async def test_odd_streams_that_end_well_are_completions(events: list[Any], text: str) -> None:
    completion = await endpoint(replying(streamed(*events))).complete(CALL)
    assert completion == Completion(text)


# -- tools ----------------------------------------------------------------------------------------

WEATHER = Tool("weather", "Tells the weather.", {"type": "object", "properties": {"city": {}}})


async def test_tools_and_what_was_asked_of_them_are_sent_as_they_are() -> None:
    """Also declarations of other types, and what a server gave along with a call of its own."""
    seen: list[Any] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        return streamed(delta("x", "stop"))

    named = {"type": "function", "function": {"name": "weather"}}
    strict = {"type": "function", "function": {"name": "f", "strict": True, "parameters": {}}}
    search = {"type": "web_search", "depth": 2}
    signed = ToolCall("c1", "weather", '{"city": "Oslo"}', extra='{"signature": {"of": "it"}}')
    custom = ToolCall("c2", "shell", "ls", "custom")
    call = Call(
        (
            Message("user", "hi"),
            Message("assistant", "", (signed, custom)),
            Message("tool", "rain", tool_call_id="c1"),
            Message("tool", "", tool_call_id="c2"),
        ),
        tools=(WEATHER, Tool.of(strict), Tool.of(search)),
        tool_choice=named,
        parallel_tool_calls=False,
    )
    await endpoint(handler).complete(call)

    (body,) = seen
    assert body["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "Tells the weather.",
                "parameters": {"type": "object", "properties": {"city": {}}},
            },
        },
        strict,
        search,
    ]
    assert (body["tool_choice"], body["parallel_tool_calls"]) == (named, False)
    told = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    assert body["messages"][1:] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"signature": {"of": "it"}, "id": "c1", "type": "function", "function": told},
                {"id": "c2", "type": "custom", "custom": {"name": "shell", "input": "ls"}},
            ],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
        {"role": "tool", "content": "", "tool_call_id": "c2"},
    ]


def calling(*calls: Any, **rest: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"tool_calls": [*calls], **rest}}]}


def piece(name: str | None = None, arguments: Any = None, **rest: Any) -> dict[str, Any]:
    told = {"name": name, "arguments": arguments}
    return {"function": {key: each for key, each in told.items() if each is not None}, **rest}


ONE, TWO = ToolCall("a", "weather", '{"city": "Oslo"}'), ToolCall("b", "time", "{}")


@pytest.mark.parametrize(
    ("events", "calls"),
    [
        pytest.param(
            [
                calling(piece("weather", "", index=0, id="a", type="function")),
                calling(piece(arguments='{"ci', index=0)),
                calling(piece("time", "", index=1, id="b", type="function")),
                calling(piece(arguments='ty": "Oslo"}', index=0), piece(arguments="{}", index=1)),
            ],
            (ONE, TWO),
            id="in pieces, two at a time",
        ),
        pytest.param(
            [
                calling(piece("weather", '{"city": "Oslo"}', index=0, id="a")),
                calling(piece("time", "{}", index=0, id="b")),
            ],
            (ONE, TWO),
            id="whole ones, all with index 0",
        ),
        pytest.param(
            [calling(piece("weather", '{"city": "Oslo"}')), calling(piece("time", "{}"))],
            (replace(ONE, id=""), replace(TWO, id="")),
            id="neither index nor id",
        ),
        pytest.param(
            [calling(piece("weather", '{"city": "Oslo"}', id="a"), piece("time", id="b"))],
            (ONE, TWO),
            id="no index, no arguments",
        ),
        pytest.param(
            [
                calling(piece("weather", '{"city": ', index=0, id="a")),
                calling(piece("weather", '"Oslo"}', index=0, id="a", type="")),
            ],
            (ONE,),
            id="name and id in every piece",
        ),
        pytest.param(
            [calling(piece("weather", {"city": "Oslo"}, index=0, id="a"))],
            (ONE,),
            id="arguments that are no text",
        ),
        pytest.param(
            [calling(piece("weather", '{"city": "Oslo"}', index=0, id="a", note={"b": 1}))],
            (replace(ONE, extra='{"note": {"b": 1}}'),),
            id="further fields",
        ),
        pytest.param(
            [
                {"choices": [{"delta": {"function_call": {"name": "weather", "arguments": ""}}}]},
                {"choices": [{"delta": {"function_call": {"arguments": '{"city": "Oslo"}'}}}]},
            ],
            (replace(ONE, id=""),),
            id="the older field",
        ),
        pytest.param(
            [
                calling({"type": "custom", "id": "c", "custom": {"name": "sh", "input": "l"}}),
                calling({"custom": {"input": "s"}}),
            ],
            (ToolCall("c", "sh", "ls", "custom"),),
            id="custom",
        ),
        pytest.param(
            [{"choices": [{"delta": {"tool_calls": 3}}]}, calling(None, 7), calling()],
            (),
            id="odd shapes",
        ),
    ],
)
@pytest.mark.parametrize("reason", ["tool_calls", "stop", None])
async def test_tool_calls_are_put_together_from_their_pieces(
    events: list[Any], calls: tuple[ToolCall, ...], reason: str | None
) -> None:
    """Whatever finish reason the server gives them."""
    completion = await endpoint(replying(streamed(*events, delta(finish=reason)))).complete(CALL)
    assert completion.tool_calls == calls
    if calls:
        assert completion.finish_reason is FinishReason.TOOL_CALLS


async def test_text_beside_tool_calls_and_a_whole_message_are_taken() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 2}
    told = [piece("weather", '{"city": "Oslo"}', id="a"), piece("time", "{}", id="b")]
    message = {"content": "I look.", "tool_calls": told}
    answer = {"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": usage}
    worker = endpoint(replying(httpx.Response(200, json=answer)))
    expected = Completion("I look.", FinishReason.TOOL_CALLS, Usage(5, 2), "", (ONE, TWO))
    assert await worker.complete(CALL) == expected


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([calling(piece("weather", '{"city": "Os')), delta(finish="length")], "cut its tool call"),
        ([calling(piece(arguments="{}", id="a")), delta(finish="tool_calls")], "without a name"),
    ],
)
async def test_a_tool_call_that_nobody_could_carry_out_is_a_failure(
    events: list[Any], words: str
) -> None:
    failure = await failure_of(endpoint(replying(streamed(*events))))
    assert failure.kind is FailureKind.BAD_RESPONSE
    assert words in failure.message


# -- usage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": -1, "completion_tokens": "3"}, None),
        ({"prompt_tokens": True, "completion_tokens": 2.5}, None),
        ({"prompt_tokens": 10**12, "completion_tokens": 10**300}, None),
        ({"prompt_tokens": 10**12, "completion_tokens": 3}, None),
        ({"completion_tokens": 3}, Usage(0, 3)),
        ({"prompt_tokens": 4, "prompt_tokens_details": {"cached_tokens": -9}}, Usage(4)),
        ({"prompt_tokens": 0, "completion_tokens": 0}, Usage()),
        ({"prompt_tokens": 4, "prompt_tokens_details": {"cached_tokens": 9}}, Usage(4, 0, 4)),
        ({"prompt_tokens": 4, "prompt_cache_hit_tokens": 3}, Usage(4, 0, 3)),
        ({"prompt_tokens": 4, "prompt_tokens_details": None}, Usage(4)),
    ],
)
async def test_wrong_usage_is_not_believed(usage: dict[str, Any], expected: Usage | None) -> None:
    worker = endpoint(replying(streamed(delta("x", "stop"), {"choices": [], "usage": usage})))
    assert (await worker.complete(CALL)).usage == expected


async def test_of_several_counts_the_last_that_can_be_believed_counts() -> None:
    told = [{"prompt_tokens": 4, "completion_tokens": number} for number in (1, 2, -3)]
    worker = endpoint(replying(streamed(*(delta("x", usage=each) for each in told))))
    assert (await worker.complete(CALL)).usage == Usage(4, 2)


async def test_an_error_of_the_listener_comes_out_as_it_is() -> None:
    def on_text(text: str) -> None:
        raise LookupError(text)

    async with served(sending(WHOLE)) as url, Endpoint("w", url=url, model="m") as worker:
        with pytest.raises(LookupError, match="he"):
            await worker.complete(CALL, on_text)


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\ndata:b\n\n", ["a", "b"]),
        (b"data: a\r\n\r\ndata: b\r\rdata: c\n\n", ["a", "b", "c"]),
        (b"data: a\r\n\ndata: b\n\r\n", ["a", "b"]),
        (b"data: a\rdata: b\r\ndata:  c\n\n", ["a\nb\n c"]),
        (b": comment\n\ndata: a\n:\n\n\n", ["a"]),
        (b"event: x\nid: 7\nretry: 9\ndata: a\n\n", ["a"]),
        (b"event: x\n\ndatum: a\n\n data: b\n\n", []),
        (b"data\n\ndata:\n\n", ["", ""]),
        (b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", ["a"]),
        ("data: größer   日\n\n".encode(), ["größer   日"]),
        (b"data: \xff\n\n", ["\ufffd"]),
        (b"data: a\n\ndata: b\n", ["a"]),
        (b"data: a\n\ndata: b", ["a"]),
        (b"\n\r\n\r", []),
        (b"", []),
    ],
)
def test_events_are_found_as_the_standard_says(stream: bytes, events: list[str]) -> None:
    assert list(module._Events().take(stream)) == events


@given(
    st.lists(
        st.sampled_from([b"\n", b"\r", b"data", b":", b" ", b"x", b"\xef\xbb\xbf", b"\xc3\xb6"])
    ),
    st.data(),
)
def test_events_do_not_depend_on_how_a_stream_is_cut(
    parts: list[bytes], data: st.DataObject
) -> None:
    stream = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    events = module._Events()
    found = []
    for start, end in pairwise([0, *cuts, len(stream)]):
        found += events.take(stream[start:end])
    assert found == list(module._Events().take(stream))


# -- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (400, {"error": {"message": "no such parameter"}}, "rejected", "no such parameter"),
        (401, {"error": {"message": f"bad key {KEY}"}}, "unauthorized", "bad key [key]"),
        (401, {"error": {"message": "bad key: sk-ca****cdef."}}, "unauthorized", "bad key: [key]"),
        (402, {"error": {"message": "no credit"}}, "unauthorized", "check its billing"),
        (403, {}, "unauthorized", "may use model m"),
        (404, {"error": {"message": "model m"}}, "not_found", "check url"),
        (405, {}, "not_found", "check url"),
        (408, {}, "timeout", "gave up"),
        (409, {}, "overloaded", "busy"),
        (413, {"message": "too long"}, "rejected", "too long"),
        (418, {"error": "teapot"}, "rejected", "teapot"),
        (422, {"detail": [{"loc": ["body"]}]}, "rejected", "loc"),
        (429, {"error": {"message": "slow down"}}, "rate_limited", "slow down"),
        (429, {"error": {"code": "insufficient_quota"}}, "unauthorized", "billing"),
        (500, [{"error": {"message": "oops"}}], "overloaded", "oops"),
        (503, {}, "overloaded", "503"),
        (529, {"error": {"type": "overloaded_error", "message": "full"}}, "overloaded", "full"),
        (204, {}, "bad_response", "unexpected"),
    ],
)
async def test_each_status_has_its_kind(status: int, body: Any, kind: str, words: str) -> None:
    failure = await failure_of(endpoint(replying(httpx.Response(status, json=body))))
    assert failure.kind == kind
    assert words in failure.message


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "-2"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({}, None),
        (
            {
                "retry-after": "Wed, 21 Oct 2026 07:28:30 GMT",
                "date": "Wed, 21 Oct 2026 07:28:00 GMT",
            },
            30.0,
        ),
        ({"retry-after": "Wed, 21 Oct 2020 07:28:30 GMT"}, 0.0),
    ],
)
async def test_the_time_to_wait_is_read(headers: Mapping[str, str], expected: float | None) -> None:
    failure = await failure_of(endpoint(replying(httpx.Response(429, headers=headers))))
    assert failure.retry_after_s == expected


async def test_a_date_to_wait_for_counts_from_now_if_the_server_tells_no_time() -> None:
    until = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    failure = await failure_of(
        endpoint(replying(httpx.Response(503, headers={"retry-after": until})))
    )
    assert 3500 < failure.retry_after_s <= 3600


@pytest.mark.parametrize(
    ("response", "kind", "words"),
    [
        pytest.param(
            httpx.Response(302, headers={"location": f"https://u:{KEY}@evil.test/{KEY}"}),
            "not_found",
            "it points to evil.test",
            id="redirect",
        ),
        pytest.param(
            httpx.Response(200, html="<html>Sign in</html>"), "bad_response", "text/html", id="html"
        ),
        pytest.param(
            httpx.Response(200, content=b'{"choices": [{"mess'),
            "bad_response",
            "cut off",
            id="truncated json",
        ),
        pytest.param(
            httpx.Response(200, json={"hello": 1}), "bad_response", "no choices", id="other json"
        ),
        pytest.param(
            httpx.Response(200, content=b'{"a":' * 5000), "bad_response", "broken", id="deep json"
        ),
        pytest.param(
            httpx.Response(200, json={"error": {"message": "no", "code": 429}}),
            "rate_limited",
            "no",
            id="error in json",
        ),
        pytest.param(streamed("{oops"), "bad_response", "not JSON", id="bad event"),
        pytest.param(streamed("[" * 9000), "bad_response", "not JSON", id="deep event"),
        pytest.param(streamed("1" * 5000), "bad_response", "not JSON", id="huge number"),
        pytest.param(
            streamed(delta("x"), done=False), "bad_response", "after 1 characters", id="cut off"
        ),
        pytest.param(streamed(done=False), "bad_response", "cut off", id="nothing"),
        pytest.param(
            streamed(delta("x"), {"error": {"message": "late", "code": 503}}),
            "overloaded",
            "late",
            id="error in stream",
        ),
        pytest.param(
            streamed({"error": {"message": "n", "type": "rate_limit_error"}}),
            "rate_limited",
            "n",
            id="error type in stream",
        ),
        pytest.param(
            streamed({"object": "error", "message": "long", "code": 400}),
            "rejected",
            "long",
            id="error object",
        ),
        pytest.param(streamed({"error": KEY}), "bad_response", "[key]", id="key in stream"),
        pytest.param(streamed(delta("x", "error")), "bad_response", "broke off", id="finish error"),
        pytest.param(
            httpx.Response(200, headers={"content-encoding": "br"}, stream=httpx.ByteStream(b"x")),
            "bad_response",
            "compression",
            id="compressed",
        ),
        pytest.param(
            httpx.Response(500, text="\x1b[31mboom\x07 \u202e" + "x" * 9999),
            "overloaded",
            "boom",
            id="control characters",
        ),
    ],
)
async def test_what_is_no_completion_is_told(
    response: httpx.Response, kind: str, words: str
) -> None:
    failure = await failure_of(endpoint(replying(response)))
    assert failure.kind == kind
    assert words in failure.message
    assert failure.message.isprintable()


def subclasses(base: type[Exception]) -> Iterator[type[Exception]]:
    yield base
    for each in base.__subclasses__():
        yield from subclasses(each)


HTTPX_ERRORS = [
    each for each in vars(httpx).values() if isinstance(each, type) and issubclass(each, Exception)
]


@pytest.mark.parametrize("error", HTTPX_ERRORS, ids=lambda error: error.__name__)
def test_every_exception_of_httpx_is_mapped_by_itself_or_a_close_base(
    error: type[Exception],
) -> None:
    """A new one fails here until someone has decided what it means."""
    decided = {
        "CloseError", "ConnectError", "ConnectTimeout", "CookieConflict", "DecodingError",
        "HTTPError", "HTTPStatusError", "InvalidURL", "LocalProtocolError", "NetworkError",
        "PoolTimeout", "ProtocolError", "ProxyError", "ReadError", "ReadTimeout",
        "RemoteProtocolError", "RequestError", "RequestNotRead", "ResponseNotRead",
        "StreamClosed", "StreamConsumed", "StreamError", "TimeoutException", "TooManyRedirects",
        "TransportError", "UnsupportedProtocol", "WriteError", "WriteTimeout",
    }  # fmt: skip
    assert error.__name__ in decided
    assert any(base in module.exception_table() for base in error.__mro__)


@pytest.mark.parametrize("error", sorted(set(subclasses(aiohttp.ClientError)), key=str))
def test_every_exception_of_aiohttp_is_mapped(error: type[Exception]) -> None:
    assert any(base in module.exception_table() for base in error.__mro__)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (httpx.ConnectError(KEY), "unreachable"),
        (httpx.ConnectTimeout(""), "timeout"),
        (httpx.ReadTimeout(""), "timeout"),
        (httpx.WriteTimeout(""), "timeout"),
        (httpx.PoolTimeout(""), "timeout"),
        (httpx.ReadError(""), "unreachable"),
        (httpx.WriteError(""), "unreachable"),
        (httpx.CloseError(""), "unreachable"),
        (httpx.RemoteProtocolError("gone"), "unreachable"),
        (httpx.LocalProtocolError(f"Illegal header {KEY}"), "internal"),
        (httpx.UnsupportedProtocol("x"), "not_found"),
        (httpx.DecodingError("x"), "bad_response"),
        (httpx.StreamClosed(), "unreachable"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
async def test_exceptions_become_failures(error: Exception, kind: str) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise error

    assert (await failure_of(endpoint(handler))).kind == kind


# -- real sockets ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([WHOLE], id="length"),
        pytest.param([head(**CHUNKED), chunk(FINE), b"0\r\n\r\n"], id="chunked"),
        pytest.param([head(**CHUNKED), *(chunk(FINE[i : i + 1]) for i in range(len(FINE))), b"0\r\n\r\n"], id="byte by byte"),  # noqa: E501
        pytest.param([head(**CHUNKED), chunk(FINE.replace(b"\n", b"\r\n")), b"0\r\n\r\n"], id="crlf"),  # noqa: E501
        pytest.param([head(**CHUNKED), chunk(b": keep-alive\n\n" + FINE), b"0\r\n\r\n"], id="comments"),  # noqa: E501
        pytest.param([head("text/event-stream; charset=latin-1", **CHUNKED), chunk(FINE), b"0\r\n\r\n"], id="charset"),  # noqa: E501
    ],
)  # fmt: skip
async def test_real_streams_arrive_however_they_are_cut(pieces: list[bytes]) -> None:
    async with served(sending(*pieces)) as url, Endpoint("w", url=url, model="m") as worker:
        told: list[str] = []
        assert (await worker.complete(CALL, told.append)).text == "hello"
        assert "".join(told) == "hello"


async def test_a_byte_order_mark_hides_no_text() -> None:
    mark = "\N{BOM}".encode()
    stream = sending(head(**CHUNKED), chunk(mark + FINE), b"0\r\n\r\n")
    async with served(stream) as url, Endpoint("w", url=url, model="m") as worker:
        assert (await worker.complete(CALL)).text == "hello"
    answer = {"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]}
    body = mark + json.dumps(answer).encode()
    whole = sending(head("application/json", Content_Length=str(len(body))), body)
    async with served(whole) as url, Endpoint("w", url=url, model="m") as worker:
        assert (await worker.complete(CALL)).text == "hello"


async def test_characters_that_are_split_between_chunks_come_out_whole() -> None:
    text = "größer 🦊 日本"
    data = sse(json.dumps(delta(text, "stop"), ensure_ascii=False))
    pieces = [chunk(data[i : i + 1]) for i in range(len(data))]
    handler = sending(head("text/event-stream; charset=latin-1", **CHUNKED), *pieces, b"0\r\n\r\n")
    async with served(handler) as url, Endpoint("w", url=url, model="m") as worker:
        assert (await worker.complete(CALL)).text == text


@pytest.mark.parametrize(
    ("handler", "kind", "words"),
    [
        pytest.param(sending(then="reset"), "unreachable", "lost", id="reset before headers"),
        pytest.param(sending(then="close"), "unreachable", "lost", id="closed before headers"),
        pytest.param(
            sending(head(**CHUNKED), chunk(sse(delta("x"), done=False)), then="reset"),
            "unreachable",
            "lost",
            id="reset in stream",
        ),
        pytest.param(
            sending(head(**CHUNKED), chunk(sse(delta("x"), done=False)), then="close"),
            "unreachable",
            "lost",
            id="closed in stream",
        ),
        pytest.param(
            sending(head(**CHUNKED), chunk(sse(delta("x"), done=False)), b"0\r\n\r\n"),
            "bad_response",
            "cut off",
            id="ended in stream",
        ),
        pytest.param(
            sending(head(Connection="close"), sse(delta("x"), done=False), then="close"),
            "bad_response",
            "cut off",
            id="without length",
        ),
        pytest.param(sending(b"SSH-2.0-x\r\n", then="close"), None, "", id="not HTTP"),
        pytest.param(
            sending(head("text/html", Content_Length="6"), b"<html>"),
            "bad_response",
            "text/html",
            id="html",
        ),
        pytest.param(
            sending(head("application/json", Content_Length="900"), b'{"cho', then="close"),
            "unreachable",
            "lost",
            id="truncated json",
        ),
        pytest.param(
            sending(
                head("application/json", "429 Slow", Content_Length="2", Retry_After="7") + b"{}"
            ),
            "rate_limited",
            "429",
            id="429",
        ),
        pytest.param(
            sending(head("text/plain", "307 Go", Location="http://evil.test/", Content_Length="0")),
            "not_found",
            "redirect",
            id="redirect",
        ),
    ],
)
async def test_real_faults_are_told(handler: Handler, kind: str | None, words: str) -> None:
    async with served(handler) as url:
        failure = await failure_of(Endpoint("w", url=url, model="m", key=KEY))
    assert kind is None or failure.kind == kind
    assert failure.kind.transient or kind == "not_found"
    assert words in failure.message


async def test_a_port_without_a_server_says_so() -> None:
    async with served(sending()) as url:
        pass
    worker = Endpoint("w", url=url, model="m")
    failure = await failure_of(worker)
    assert failure.kind is FailureKind.UNREACHABLE
    assert "nothing listens there" in failure.message
    assert failure.message.endswith("start it or correct url")
    health = await worker.check()
    assert not health.ready
    assert health.detail == failure.message


async def test_a_silent_server_times_out() -> None:
    async with served(sending(head(**CHUNKED))) as url:
        failure = await failure_of(Endpoint("w", url=url, model="m", timeout_s=0.05))
    assert failure.kind is FailureKind.TIMEOUT
    assert "within 0.05 s" in failure.message


async def test_tls_with_a_server_that_has_none_is_told() -> None:
    async def connection(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as group,
    ):
        group.start_soon(listener.serve, connection)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        worker = Endpoint("w", url=f"https://127.0.0.1:{port}/v1", model="m")
        failure = await failure_of(worker)
        group.cancel_scope.cancel()
    assert failure.kind is FailureKind.UNREACHABLE
    assert "no secure connection" in failure.message


@pytest.mark.parametrize("kind", ["text/event-stream", "application/json", "text/html"])
async def test_an_endless_body_is_cut_and_the_connection_closed(kind: str) -> None:
    closed = anyio.Event()
    sent = 0

    async def handler(stream: anyio.abc.SocketStream, request: bytes) -> None:
        nonlocal sent
        piece = chunk(b"data: " + b"x" * 2**20)
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError, BaseExceptionGroup)):
            async with anyio.create_task_group() as group:
                group.start_soon(stream.receive)  # ends with an error once the client hangs up
                await stream.send(head(kind, **CHUNKED))
                while True:
                    await stream.send(piece)
                    sent += len(piece)
        closed.set()

    async with served(handler) as url:
        failure = await failure_of(Endpoint("w", url=url, model="m"))
        await closed.wait()
    assert failure.kind is FailureKind.BAD_RESPONSE
    assert sent < module.BODY_LIMIT + 16 * 2**20


async def test_a_finished_answer_counts_even_if_the_connection_breaks() -> None:
    events = chunk(sse(delta("hello"), delta(finish="stop"), done=False))
    async with served(sending(head(**CHUNKED), events, then="reset")) as url:
        worker = Endpoint("w", url=url, model="m")
        assert await worker.complete(CALL) == Completion("hello")


async def test_a_server_that_never_closes_after_done_holds_nobody_up() -> None:
    async with (
        served(sending(head(**CHUNKED), chunk(FINE))) as url,
        Endpoint("w", url=url, model="m", timeout_s=60) as worker,
    ):
        with anyio.fail_after(5):
            assert (await worker.complete(CALL)).text == "hello"


async def test_connections_are_used_again() -> None:
    connections: set[int] = set()

    async def handler(stream: anyio.abc.SocketStream, request: bytes) -> None:
        connections.add(id(stream))
        await stream.send(head(**CHUNKED))
        await stream.send(chunk(FINE))
        await stream.send(b"0\r\n\r\n")

    async with served(handler) as url, Endpoint("w", url=url, model="m") as worker:
        for _ in range(3):
            await worker.complete(CALL)
    assert len(connections) == 1


@pytest.mark.parametrize("started", [False, True], ids=["before headers", "in the stream"])
async def test_cancelling_closes_the_connection_at_once(started: bool) -> None:
    arrived, hung_up = anyio.Event(), anyio.Event()
    got_text = anyio.Event()

    async def handler(stream: anyio.abc.SocketStream, request: bytes) -> None:
        if started:
            await stream.send(head(**CHUNKED) + chunk(sse(delta("x"), done=False)))
        arrived.set()
        try:
            await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            hung_up.set()
            raise

    async with served(handler) as url, Endpoint("w", url=url, model="m") as worker:
        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(worker.complete, CALL, lambda text: got_text.set())
                await (got_text if started else arrived).wait()
                group.cancel_scope.cancel()
            await hung_up.wait()  # while the worker and its other connections stay open


async def test_five_hundred_calls_at_once_are_all_answered() -> None:
    waiting: list[anyio.Event] = []
    all_there = anyio.Event()

    async def handler(stream: anyio.abc.SocketStream, request: bytes) -> None:
        waiting.append(all_there)
        if len(waiting) == 500:
            all_there.set()
        await all_there.wait()  # so that they are under way at the same time
        await stream.send(WHOLE)

    texts: list[str] = []

    async def ask(worker: Endpoint) -> None:
        texts.append((await worker.complete(CALL)).text)

    async with served(handler) as url, Endpoint("w", url=url, model="m") as worker:
        began = time.process_time()
        async with anyio.create_task_group() as group:
            for _ in range(500):
                group.start_soon(ask, worker)
        spent = time.process_time() - began
    assert texts == ["hello"] * 500
    assert spent / 500 < 0.05, "client and server together take a few milliseconds a call"


# -- the client's life ----------------------------------------------------------------------------


async def test_a_client_may_be_entered_twice_and_from_many_tasks() -> None:
    client = HttpClient(transport=httpx.MockTransport(replying(streamed(delta("x", "stop")))))
    one, two = (Endpoint(n, url="https://a.test/v1", model="m", client=client) for n in "ab")
    async with one, two, one:
        async with client.opened() as first, client.opened() as second:
            assert first is second
        async with anyio.create_task_group() as group:
            for worker in (one, two):
                group.start_soon(worker.complete, CALL)
    async with client.opened() as later:
        assert later is not first


def test_a_client_serves_several_event_loops_in_turn_and_in_threads() -> None:
    worker = Endpoint("w", url="http://127.0.0.1:9/v1", model="m")

    async def ask() -> str:
        async with served(sending(WHOLE)) as url:
            here = Endpoint("w", url=url, model="m", client=worker._client)
            async with worker, here:
                return (await here.complete(CALL)).text

    texts: list[str] = []
    for backend in ("asyncio", "trio", "asyncio"):
        texts.append(anyio.run(ask, backend=backend))
    threads = [
        threading.Thread(target=lambda b=b: texts.append(anyio.run(ask, backend=b)))
        for b in ("asyncio", "trio")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == ["hello"] * 5


async def test_cookies_are_not_kept() -> None:
    seen: list[bytes] = []

    async def handler(stream: anyio.abc.SocketStream, request: bytes) -> None:
        seen.append(request.lower())
        await stream.send(head(Content_Length=str(len(FINE)), Set_Cookie="a=b; Path=/") + FINE)

    async with served(handler) as url, Endpoint("w", url=url, model="m") as worker:
        for _ in range(2):
            await worker.complete(CALL)
    assert not any(b"\r\ncookie:" in request for request in seen)


# -- secrets and addresses ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "https://user:password@api.test/v1",
        "https://user@api.test/v1",
        "ftp://api.test/v1",
        "file:///etc/passwd",
        "api.test/v1",
        "https://",
        "https:///v1",
        "https://api.test:port/v1",
        "https://api test/v1",
        "https://api.test\\@evil.test/v1",
        "https://api.test/v1#part",
        "https://api.test/v1?api_key=secret",
        "http://api.test/v1",
        "http://192.168.1.5:8000/v1",
        "http://localhost.evil.test/v1",
        "http://127.0.0.1.evil.test/v1",
        "https://169.254.169.254/v1",
        "https://2852039166/v1",
        "https://0xa9fea9fe/v1",
        "https://[::ffff:169.254.169.254]/v1",
        "https://[fe80::1]/v1",
        "https://metadata.google.internal/v1",
        "https://[::1/v1",
    ],
)
def test_addresses_that_are_wrong_or_give_a_key_away_are_refused(url: str) -> None:
    with pytest.raises(PoolError, match=r"^workers\.w\.url: ") as caught:
        Endpoint("w", url=url, model="m", key=KEY)
    assert KEY not in str(caught.value)
    assert "password" not in str(caught.value).partition("a user name or password")[0]


@pytest.mark.parametrize(
    "url",
    [
        "https://api.test/v1",
        "https://api.test/v1/chat/completions",
        "http://localhost:8000/v1",
        "http://LOCALHOST/v1",
        "http://a.localhost/v1",
        "http://127.0.0.1:8000/v1/",
        "http://127.8.9.1/v1",
        "http://[::1]:8000/v1",
        "http://[::ffff:127.0.0.1]/v1",
    ],
)
def test_addresses_that_keep_a_key_safe_are_taken(url: str) -> None:
    Endpoint("w", url=url, model="m", key=KEY)


def test_without_a_key_plain_http_is_fine() -> None:
    Endpoint("w", url="http://192.168.1.5:8000/v1", model="m")
    with pytest.raises(PoolError, match="unencrypted"):
        Endpoint("w", url="http://192.168.1.5/v1", model="m", headers={"X-Api-Key": KEY})


@pytest.mark.parametrize("key", ["sk-a b", "sk-a\nb", "sk-ä", "sk-a\r\nHost: evil"])
def test_a_key_that_can_not_be_one_is_refused(key: str) -> None:
    with pytest.raises(PoolError, match="check the variable") as caught:
        Endpoint("w", url="https://api.test/v1", model="m", key=key)
    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize("header", [{"a b": "c"}, {"a": "b\r\nc: d"}, {"": "x"}])
def test_headers_that_would_break_the_request_are_refused(header: dict[str, str]) -> None:
    with pytest.raises(PoolError, match="headers"):
        Endpoint("w", url="https://api.test/v1", model="m", headers=header)


async def test_a_key_is_in_one_header_and_nowhere_else() -> None:
    seen: list[bytes] = []

    async def handler(stream: anyio.abc.SocketStream, request: bytes) -> None:
        seen.append(request)
        body = json.dumps({"error": {"message": f"you sent {request.decode()}", "code": KEY}})
        await stream.send(
            head("application/json", "400 Bad", Content_Length=str(len(body))) + body.encode()
        )

    async with served(handler) as url:
        worker = Endpoint("w", url=url, model="m", key=f" {KEY}\n", headers={"x-extra": KEY[::-1]})
        assert KEY not in repr(worker)
        with pytest.raises(WorkerError) as caught:
            await worker.complete(CALL)
        health = await worker.check()
    assert all(request.count(KEY.encode()) == 1 for request in seen)
    assert KEY not in health.detail
    assert KEY[::-1] not in health.detail + caught.value.failure.message
    assert "[key]" in caught.value.failure.message


async def test_failures_do_not_drag_the_request_along() -> None:
    async with served(sending(then="reset")) as url:
        with pytest.raises(WorkerError) as caught:
            await Endpoint("w", url=url, model="m", key=KEY).complete(CALL)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


async def test_the_name_that_a_model_gives_itself_is_cleaned() -> None:
    worker = endpoint(replying(streamed(delta("x", "stop", model=f"m\x1b[0m {KEY}"))))
    assert (await worker.complete(CALL)).model == "m [0m [key]"


# -- health ---------------------------------------------------------------------------------------


def listing(*ids: str) -> httpx.Response:
    return httpx.Response(200, json={"object": "list", "data": [{"id": each} for each in ids]})


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (listing("a", "m"), Health(True, "reachable, model m is there")),
        (listing("models/m"), Health(True, "reachable, model m is there")),
        (listing("m:latest"), Health(True, "reachable, model m is there")),
        (
            listing("a", "b"),
            Health(False, "reachable, but it does not list model m; it has: a, b"),
        ),
        (listing(), Health(True, "reachable, but it lists no models, so m is unchecked")),
        (
            httpx.Response(404),
            Health(True, "reachable, but it lists no models, so m is unchecked"),
        ),
        (
            httpx.Response(401, json={"error": {"message": f"bad {KEY}"}}),
            Health(False, "api.test rejected the key: bad [key]; check the key"),
        ),
        (
            httpx.Response(200, html="<p>"),
            Health(False, "api.test answers, but not as an OpenAI-compatible API; check url"),
        ),
        (
            httpx.Response(503),
            Health(False, "gpt (api.test): it failed (503); try again later"),
        ),
    ],
)
async def test_health_says_what_is_wrong(response: httpx.Response, expected: Health) -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return response

    assert await endpoint(handler).check() == expected
    assert [(each.method, each.url.path) for each in seen] == [("GET", "/v1/models")]
    assert seen[0].headers["authorization"] == f"Bearer {KEY}"


async def test_health_shows_similar_models_first_and_not_all() -> None:
    models = [f"other-{number}" for number in range(50)] + ["gpt-5-mini", "gpt-5"]
    worker = endpoint(replying(listing(*models)), model="gpt-5-min")
    detail = (await worker.check()).detail
    assert detail.partition("it has: ")[2].startswith("gpt-5-mini, gpt-5, other-0")
    assert detail.endswith(" and 44 more")


async def test_a_service_that_lists_models_to_another_header_is_not_called_wrong() -> None:
    refusal = httpx.Response(401, json={"error": {"message": "x-api-key header is required"}})
    worker = endpoint(replying(refusal), url="https://api.anthropic.com/v1/")
    assert (await worker.check()).ready


def test_an_endpoint_is_a_worker_and_loads_nothing_until_used() -> None:
    assert isinstance(endpoint(replying()), Worker)
    assert not endpoint(replying()).constrains
    code = (
        "import sys, runtime; runtime.Endpoint('w', url='https://a.test', model='m');"
        "print([m for m in ('httpx', 'aiohttp') if m in sys.modules])"
    )

    async def run() -> bytes:
        return (await anyio.run_process([sys.executable, "-c", code])).stdout

    assert anyio.run(run).strip() == b"[]"
