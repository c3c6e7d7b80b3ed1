"""A server that fails on purpose, and keeps the books.

It speaks the OpenAI-compatible ``/chat/completions`` over raw sockets on loopback, under asyncio
and trio. The ``model`` of a request names a script: a list of plays, one a request, the last one
for ever. A play decides byte by byte what the client gets; a reply is streamed, or one JSON as from
a server that ignores ``stream``.

The ledger has a line for every request: what was asked, what became of the reply, which tokens it
reported, and when the client hung up. So a test compares what a client believes with what was.

Run ``python -m tests.faults.server`` to try a client by hand. The name of a fault (:func:`faults`),
with dashes, is the name of a model; ``-body`` after it makes the reply one JSON.
"""
# ruff: noqa: T201

from __future__ import annotations

import json
import random
import re
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NoReturn

import anyio
import anyio.lowlevel

from runtime import Endpoint, FailureKind, HttpClient, Usage

ANSWER = "Grüße aus dem Fuchsbau 🦊, 日本"
"""What a reply says unless its script says otherwise."""


# -- the books --------------------------------------------------------------------------------


class End(StrEnum):
    """What became of a request."""

    OPEN = "open"
    """It is under way."""
    SENT = "sent"
    """The play wrote its reply to the end, whatever it was worth."""
    BROKEN = "broken"
    """The server broke the connection on purpose."""
    HUNG_UP = "hung up"
    """The client closed the connection before the reply was sent."""


@dataclass(slots=True)
class Entry:
    """One request and what became of it. Times are of ``time.monotonic()``."""

    model: str
    body: dict[str, Any]
    """The request, parsed."""
    started_s: float
    end: End = End.OPEN
    ended_s: float = 0.0
    usage: Usage = Usage()
    """Tokens that were reported to the client and are worth believing."""

    @property
    def prompt(self) -> str:
        """The last message."""
        return str(self.body["messages"][-1]["content"])


@dataclass(slots=True)
class Ledger:
    """All requests, in the order of their arrival."""

    entries: list[Entry] = field(default_factory=list)
    most_open: int = 0
    """Most requests that were under way at one time."""
    _open: int = 0
    _changed: anyio.Event | None = None

    def open(self, model: str, body: dict[str, Any]) -> Entry:
        """Begin a line."""
        entry = Entry(model, body, time.monotonic())
        self.entries.append(entry)
        self._open += 1
        self.most_open = max(self.most_open, self._open)
        self._tell()
        return entry

    def close(self, entry: Entry, end: End) -> None:
        """End a line."""
        entry.end, entry.ended_s = end, time.monotonic()
        self._open -= 1
        self._tell()

    async def quiet(self, *models: str) -> None:
        """Wait until no request is under way: a client may know of an end before the server.

        Args:
            models: Only requests of these matter; all if there are none.
        """
        while any(
            entry.end is End.OPEN and (not models or entry.model in models)
            for entry in self.entries
        ):
            await self._news()

    async def arrived(self, count: int) -> None:
        """Wait until so many requests have come."""
        while len(self.entries) < count:
            await self._news()

    async def _news(self) -> None:
        self._changed = self._changed or anyio.Event()
        await self._changed.wait()

    def _tell(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def of(self, model: str) -> list[Entry]:
        """The lines of one model."""
        return [entry for entry in self.entries if entry.model == model]

    def count(self, end: End, model: str | None = None) -> int:
        """How many requests ended so."""
        entries = self.entries if model is None else self.of(model)
        return sum(entry.end is end for entry in entries)

    def usage(self, model: str | None = None) -> Usage:
        """All tokens that were reported."""
        entries = self.entries if model is None else self.of(model)
        return sum((entry.usage for entry in entries), Usage())


# -- sockets ----------------------------------------------------------------------------------


class _HungUp(Exception):
    """The client has closed the connection."""


class _Broken(Exception):
    """The play has closed the connection."""


class _Connection:
    """One accepted socket, without buffers between us and the kernel."""

    def __init__(self, raw: socket.socket) -> None:
        raw.setblocking(False)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a send is a segment
        self.raw = raw
        self.received = b""

    async def receive(self) -> None:
        while True:
            try:
                data = self.raw.recv(2**16)
            except (BlockingIOError, InterruptedError):
                await anyio.wait_readable(self.raw)
                continue
            except OSError:
                raise _HungUp from None
            if not data:
                raise _HungUp
            self.received += data
            return

    async def send(self, data: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        left = memoryview(data)
        while left:
            try:
                left = left[self.raw.send(left) :]
            except (BlockingIOError, InterruptedError):
                await anyio.wait_writable(self.raw)
            except OSError:
                raise _HungUp from None

    def reset(self) -> None:
        """Make the closing a RST instead of a FIN."""
        self.raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def close(self) -> None:
        if self.raw.fileno() >= 0:
            anyio.notify_closing(self.raw)
            self.raw.close()


def _listening() -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.setblocking(False)
    return listener


def _address(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


@contextmanager
def refusing() -> Iterator[str]:
    """Give an address where nothing listens, and keep it so."""
    with _listening() as bound:
        yield _address(bound)


@contextmanager
def deaf() -> Iterator[str]:
    """Give an address that answers no attempt to connect: its queue is full for good."""
    with _listening() as listener:
        listener.listen(0)
        callers = [socket.socket() for _ in range(3)]
        try:
            for caller in callers:
                caller.setblocking(False)
                caller.connect_ex(listener.getsockname())
            yield _address(listener)
        finally:
            for caller in callers:
                caller.close()


# -- one request and its reply ----------------------------------------------------------------


class Exchange:
    """What a play works with: the request, a good reply to it, and the wire."""

    def __init__(
        self, connection: _Connection, entry: Entry, text: str, *, streamed: bool, limit: int
    ) -> None:
        self.entry = entry
        self.text = text
        self.streamed = streamed
        self._connection = connection
        self._limit = limit

    @property
    def usage(self) -> Usage:
        """What a good reply reports: words in and out, and a third of the prompt from a cache."""
        given = sum(len(str(each["content"]).split()) for each in self.entry.body["messages"])
        return Usage(given, len(self.text.split()), given // 3)

    async def raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        await self._connection.send(data)

    async def head(
        self, kind: str = "", status: str = "200 OK", *, length: int | None = None, **more: str
    ) -> None:
        """Send the head of a reply; its body has ``length`` bytes, or comes in chunks."""
        kind = kind or ("text/event-stream" if self.streamed else "application/json")
        await self.raw(_head(kind, status, length=length, **more))

    async def part(self, data: bytes) -> None:
        """Send a chunk of a body."""
        await self.raw(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def end(self) -> None:
        """End a body that comes in chunks."""
        await self.raw(b"0\r\n\r\n")

    async def whole(self, data: bytes, kind: str = "", status: str = "200 OK", **more: str) -> None:
        """Send a reply at once."""
        await self.head(kind, status, length=len(data), **more)
        await self.raw(data)

    def reply(self, usage: Any = None, finish: str = "stop") -> list[bytes]:
        """A good reply in parts: a few pieces of text, then the rest.

        Args:
            usage: Reported instead of the true usage.
            finish: The finish reason.
        """
        told = self._told(usage)
        model = {"model": f"{self.entry.model}-1"}
        if not self.streamed:
            message = {"role": "assistant", "content": self.text}
            choices = [{"index": 0, "message": message, "finish_reason": finish}]
            data = json.dumps(model | {"choices": choices, "usage": told}, ensure_ascii=False)
            return _cut(data.encode(), 3)
        events = [event(text, **model) for text in pieces(self.text)]
        events.append(event(finish=finish, **model))
        if self.entry.body.get("stream_options", {}).get("include_usage"):
            events.append(sse(model | {"choices": [], "usage": told}))
        return [*events, DONE]

    def _told(self, usage: Any) -> Any:
        if usage is not None:
            return usage
        true = self.usage
        return {
            "prompt_tokens": true.input_tokens,
            "completion_tokens": true.output_tokens,
            "total_tokens": true.input_tokens + true.output_tokens,
            "prompt_tokens_details": {"cached_tokens": true.cached_tokens},
        }

    def told_usage(self, usage: Usage | None = None) -> None:
        """Put into the books that usage was reported."""
        self.entry.usage = self.usage if usage is None else usage

    def reset(self) -> NoReturn:
        """Break the connection with a RST."""
        self._connection.reset()
        raise _Broken

    def hang_up(self) -> NoReturn:
        """Close the connection in good order, wherever the reply is."""
        raise _Broken

    async def for_ever(self, data: bytes, pause_s: float) -> NoReturn:
        """Send the same again and again; up to a limit, since loopback is fast."""
        sent = 0
        while sent < self._limit:
            await self.part(data)
            sent += len(data)
            if pause_s:
                await anyio.sleep(pause_s)
        await anyio.sleep_forever()
        raise AssertionError


def _head(kind: str, status: str = "200 OK", *, length: int | None = None, **more: str) -> bytes:
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", framing]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in more.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def pieces(text: str) -> list[str]:
    """Cut a text into words with the space after them."""
    words = text.split(" ")
    return [f"{word} " for word in words[:-1]] + words[-1:]


def _cut(data: bytes, count: int) -> list[bytes]:
    size = -(-len(data) // count)
    return [data[at : at + size] for at in range(0, len(data), size)]


def sse(payload: Any) -> bytes:
    """Write a server-sent event."""
    return b"data: " + json.dumps(payload, ensure_ascii=False).encode() + b"\n\n"


def event(text: str | None = None, finish: str | None = None, **rest: Any) -> bytes:
    """Write a chunk of a completion as a server-sent event."""
    delta = {} if text is None else {"content": text}
    return sse({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **rest})


DONE = b"data: [DONE]\n\n"

Play = Callable[[Exchange], Awaitable[None]]
"""Answers one request, in its own way."""


# -- plays ------------------------------------------------------------------------------------


async def fine(exchange: Exchange) -> None:
    """Answer as one should."""
    await exchange.head()
    for part in exchange.reply():
        await exchange.part(part)
    exchange.told_usage()
    await exchange.end()


async def reset_before_headers(exchange: Exchange) -> None:
    """Break off before a byte is sent."""
    exchange.reset()


async def reset_midway(exchange: Exchange) -> None:
    """Break off in the middle of the reply."""
    await exchange.head()
    await exchange.part(exchange.reply()[0])
    exchange.reset()


async def closed_midway(exchange: Exchange) -> None:
    """Close the connection in the middle of the reply, which HTTP calls incomplete."""
    await exchange.head()
    await exchange.part(exchange.reply()[0])
    exchange.hang_up()


async def ended_midway(exchange: Exchange) -> None:
    """End the body in good order in the middle of the reply."""
    await exchange.head()
    await exchange.part(exchange.reply()[0])
    await exchange.end()


def stalled(seconds: float, *, midway: bool) -> Play:
    """Fall silent for a while, before the reply or in its middle, then go on."""

    async def play(exchange: Exchange) -> None:
        if not midway:
            await anyio.sleep(seconds)
        await exchange.head()
        first, *rest = exchange.reply()
        await exchange.part(first)
        if midway:
            await anyio.sleep(seconds)
        for part in rest:
            await exchange.part(part)
        exchange.told_usage()
        await exchange.end()

    return play


async def hangs(exchange: Exchange) -> None:
    """Never answer."""
    await anyio.sleep_forever()


async def hangs_midway(exchange: Exchange) -> None:
    """Begin to answer, and never go on."""
    await exchange.head()
    await exchange.part(exchange.reply()[0])
    await anyio.sleep_forever()


def status(code: int, message: str = "on purpose", **headers: str) -> Play:
    """Refuse with a status; underscores in names of headers stand for dashes."""
    body = json.dumps({"error": {"message": message}}).encode()

    async def play(exchange: Exchange) -> None:
        await exchange.whole(body, "application/json", f"{code} Fault", **headers)

    return play


async def html(exchange: Exchange) -> None:
    """Answer 200 with a page, as a login wall or a wrong address does."""
    page = b"<!doctype html><html><body><h1>Please sign in</h1></body></html>"
    await exchange.whole(page, "text/html; charset=utf-8")


async def truncated(exchange: Exchange) -> None:
    """Cut the JSON short, in a reply that is well-formed HTTP."""
    first = exchange.reply()[0]
    await exchange.whole(first[: len(first) // 2] + b"\n\n")


async def bad_events(exchange: Exchange) -> None:
    """Send JSON lines where server-sent events were promised."""
    await exchange.head("text/event-stream")
    for part in exchange.reply():
        await exchange.part(part.removeprefix(b"data: "))
    await exchange.end()


async def garbage(exchange: Exchange) -> None:
    """Send bytes that are neither UTF-8 nor JSON."""
    prefix = b"data: " if exchange.streamed else b"{"
    await exchange.whole(prefix + bytes(range(128, 256)) * 8 + b"\n\n")


async def no_http(exchange: Exchange) -> None:
    """Speak another protocol."""
    await exchange.raw(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
    exchange.hang_up()


async def split_characters(exchange: Exchange) -> None:
    """Tear characters apart: each byte of those that have several is a TCP segment of its own."""
    reply = b"".join(exchange.reply())
    await exchange.head(length=len(reply))
    for segment in re.findall(rb"[\x00-\x7f]+|[\x80-\xff]", reply):
        await exchange.raw(segment)
        await anyio.sleep(0.001)  # let the client read it, or the kernel joins segments again
    exchange.told_usage()


def huge(size: int) -> Play:
    """Answer with so many bytes of text."""

    async def play(exchange: Exchange) -> None:
        await exchange.head()
        text = "x" * 2**16
        if not exchange.streamed:
            await exchange.part(b'{"choices": [{"message": {"content": "')
        for _ in range(size // len(text)):
            await exchange.part(event(text) if exchange.streamed else text.encode())
        if not exchange.streamed:
            await exchange.part(b'"}, "finish_reason": "stop"}]}')
        else:
            await exchange.part(event(finish="stop") + DONE)
        await exchange.end()

    return play


def wrong_usage(usage: Any, believed: Usage = Usage()) -> Play:
    """Answer well, but report nonsense; ``believed`` is what may be believed of it."""

    async def play(exchange: Exchange) -> None:
        await exchange.head()
        for part in exchange.reply(usage):
            await exchange.part(part)
        exchange.told_usage(believed)
        await exchange.end()

    return play


NEGATIVE = {"prompt_tokens": -5, "completion_tokens": -7}
STRINGS = {"prompt_tokens": "12", "completion_tokens": [3], "prompt_tokens_details": "many"}
ABSURD = {"prompt_tokens": 10**300, "completion_tokens": 1e308}


def dripping(pause_s: float) -> Play:
    """Write one letter at a time, without end."""

    async def play(exchange: Exchange) -> None:
        await exchange.head()
        if not exchange.streamed:
            await exchange.part(b'{"choices": [{"message": {"content": "')
        await exchange.for_ever(event("x") if exchange.streamed else b"x", pause_s)

    return play


def dripping_nothing(pause_s: float) -> Play:
    """Send what never becomes text: comments in a stream, white space before JSON."""

    async def play(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.for_ever(b": wait\n" if exchange.streamed else b" ", pause_s)

    return play


def dripping_headers(pause_s: float) -> Play:
    """Never come to the end of the headers."""

    async def play(exchange: Exchange) -> None:
        await exchange.raw(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while True:
            await exchange.raw(b"x")
            await anyio.sleep(pause_s)

    return play


def dripping_status(code: int, pause_s: float, **headers: str) -> Play:
    """Refuse with a status whose body never ends."""

    async def play(exchange: Exchange) -> None:
        await exchange.head("application/json", f"{code} Fault", **headers)
        await exchange.for_ever(b" ", pause_s)

    return play


async def flood_of_nothing(exchange: Exchange) -> None:
    """Send empty lines as fast as the client takes them."""
    await exchange.head()
    await exchange.for_ever(b"\n" * 2**16, 0)


def error_midway(code: int) -> Play:
    """Write some text, then an error, as servers do that fail when status 200 is long sent."""
    error = {"error": {"message": "on purpose", "code": code}}

    async def play(exchange: Exchange) -> None:
        await exchange.head()
        if exchange.streamed:
            await exchange.part(exchange.reply()[0])
            await exchange.part(sse(error))
            await exchange.part(DONE)
        else:
            await exchange.part(json.dumps(error).encode())
        await exchange.end()

    return play


async def nothing(exchange: Exchange) -> None:
    """Say that all is done, having said nothing."""
    exchange.text = ""
    await fine(exchange)


async def at_once(exchange: Exchange) -> None:
    """Answer with everything in one write."""
    exchange.told_usage()
    await exchange.whole(b"".join(exchange.reply()))


def in_step(heard: Callable[[int], Awaitable[None]]) -> Play:
    """Write a piece only when the one before it was heard: ``heard(n)`` waits for n pieces.

    A client that keeps pieces back waits for ever, and so does this server.
    """

    async def play(exchange: Exchange) -> None:
        await exchange.head()
        for number, part in enumerate(exchange.reply()):
            await exchange.part(part)
            if number < len(pieces(exchange.text)):
                await heard(number + 1)
        exchange.told_usage()
        await exchange.end()

    return play


def one_of(*plays: Play, seed: int = 0) -> Play:
    """Choose a play for each request, by a generator of its own."""
    chance = random.Random(seed)

    async def play(exchange: Exchange) -> None:
        await chance.choice(plays)(exchange)

    return play


def failing(rate: float, failure: Play = status(500), *, seed: int = 0) -> Play:
    """Fail some of the requests."""
    chance = random.Random(seed)

    async def play(exchange: Exchange) -> None:
        await (failure if chance.random() < rate else fine)(exchange)

    return play


# -- the server -------------------------------------------------------------------------------


@dataclass(slots=True)
class _Script:
    plays: list[Play]
    text: Callable[[dict[str, Any]], str]
    streamed: bool


class FaultServer:
    """The server; made by :func:`serving`."""

    def __init__(self, url: str, *, flood_limit: int) -> None:
        self.url = url
        self.ledger = Ledger()
        self._scripts: dict[str, _Script] = {}
        self._flood_limit = flood_limit

    @property
    def models(self) -> tuple[str, ...]:
        """The names that are scripted."""
        return tuple(self._scripts)

    def script(
        self,
        model: str,
        *plays: Play,
        streamed: bool = True,
        text: str | Callable[[dict[str, Any]], str] = ANSWER,
    ) -> None:
        """Say how requests for a model are answered: in turn, the last play for ever.

        Args:
            model: The name to ask for.
            plays: At least one.
            streamed: Whether replies are streams; else the server ignores ``stream``.
            text: What a good reply says, or how to come to it from the request.
        """
        said = text if callable(text) else lambda _, constant=text: constant
        self._scripts[model] = _Script(list(plays), said, streamed)

    def endpoint(
        self,
        model: str,
        *plays: Play,
        streamed: bool = True,
        text: str | Callable[[dict[str, Any]], str] = ANSWER,
        client: HttpClient | None = None,
        **options: Any,
    ) -> Endpoint:
        """Script a model and give the worker of the same name that asks for it."""
        self.script(model, *plays, streamed=streamed, text=text)
        return Endpoint(model, url=self.url, model=model, client=client, **options)

    async def _talk(self, connection: _Connection) -> None:
        try:
            while True:
                await self._exchange(connection)
        except (_HungUp, _Broken):
            pass
        finally:
            connection.close()

    async def _exchange(self, connection: _Connection) -> None:
        line, body = await _request(connection)
        if line.startswith("GET"):
            models = json.dumps({"data": [{"id": name} for name in self.models]}).encode()
            await connection.send(_head("application/json", length=len(models)) + models)
            return
        asked = json.loads(body)
        script = self._scripts[asked["model"]]
        play = script.plays.pop(0) if len(script.plays) > 1 else script.plays[0]
        entry = self.ledger.open(asked["model"], asked)
        exchange = Exchange(
            connection,
            entry,
            script.text(asked),
            streamed=script.streamed,
            limit=self._flood_limit,
        )
        end = End.HUNG_UP
        try:
            end = await _played(play, exchange, connection)
        finally:
            self.ledger.close(entry, end)
        if end is not End.SENT:
            raise _Broken


async def _played(play: Play, exchange: Exchange, connection: _Connection) -> End:
    """Play, while watching whether the client hangs up."""
    end = End.HUNG_UP
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            try:
                while True:
                    await connection.receive()
            except _HungUp:
                group.cancel_scope.cancel()

        group.start_soon(watch)
        try:
            await play(exchange)
            end = End.SENT
        except _Broken:
            end = End.BROKEN
        except _HungUp:
            pass
        group.cancel_scope.cancel()
    return end


async def _request(connection: _Connection) -> tuple[str, bytes]:
    while b"\r\n\r\n" not in connection.received:
        await connection.receive()
    top, _, connection.received = connection.received.partition(b"\r\n\r\n")
    first, *lines = top.decode("latin-1").split("\r\n")
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    length = int(fields.get("content-length", "0"))
    while len(connection.received) < length:
        await connection.receive()
    body, connection.received = connection.received[:length], connection.received[length:]
    return first, body


@asynccontextmanager
async def serving(*, flood_limit: int = 64 * 2**20) -> AsyncIterator[FaultServer]:
    """Serve on a free port of loopback until the block is left.

    Args:
        flood_limit: Most bytes that a play without end sends.
    """
    with _listening() as listener:
        listener.listen(1024)
        server = FaultServer(_address(listener), flood_limit=flood_limit)
        async with anyio.create_task_group() as group:

            async def accept() -> None:
                while True:
                    try:
                        raw, _ = listener.accept()
                    except (BlockingIOError, InterruptedError):
                        await anyio.wait_readable(listener)
                        continue
                    group.start_soon(server._talk, _Connection(raw))

            group.start_soon(accept)
            try:
                yield server
            finally:
                group.cancel_scope.cancel()


# -- the faults -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to fail, and what a caller is told."""

    name: str
    play: Play | None
    """None: there is no server."""
    outcomes: tuple[FailureKind, ...] = ()
    """What it may be taken for; empty if the reply is good, and its whole text must arrive."""
    by_limit: bool = False
    """Whether only a time limit of the caller ends it."""
    heavy: bool = False
    """Whether it takes a CPU for long enough to disturb what runs beside it."""
    at: Callable[[], AbstractContextManager[str]] | None = None
    """Where to call if there is no server."""


def faults(pause_s: float = 0.01, stall_s: float = 5.0) -> tuple[Fault, ...]:
    """All faults.

    Args:
        pause_s: Between the bytes of a slow drip.
        stall_s: How long a server falls silent before it goes on.
    """
    kind = FailureKind
    lost, bad, late = (kind.UNREACHABLE,), (kind.BAD_RESPONSE,), (kind.TIMEOUT,)
    limited, failed = (kind.RATE_LIMITED,), (kind.OVERLOADED,)

    def unknown_host() -> AbstractContextManager[str]:
        return nullcontext("http://nowhere.invalid/v1")

    return (
        Fault("none", fine),
        Fault("all at once", at_once),
        Fault("split UTF-8", split_characters),
        Fault("usage negative", wrong_usage(NEGATIVE)),
        Fault("usage in strings", wrong_usage(STRINGS)),
        Fault("usage absurd", wrong_usage(ABSURD)),
        Fault("refused", None, lost, at=refusing),
        Fault("unknown host", None, (*lost, *late), at=unknown_host),
        Fault("never connects", None, late, at=deaf),
        Fault("reset before headers", reset_before_headers, lost),
        Fault("reset midway", reset_midway, lost),
        Fault("closed midway", closed_midway, lost),
        Fault("ended midway", ended_midway, bad),
        Fault("stall", stalled(stall_s, midway=False), late, by_limit=True),
        Fault("stall midway", stalled(stall_s, midway=True), late, by_limit=True),
        Fault("hang", hangs, late, by_limit=True),
        Fault("hang midway", hangs_midway, late, by_limit=True),
        Fault("429 with Retry-After", status(429, Retry_After="1"), limited),
        Fault("429", status(429), limited),
        Fault("429 midway", error_midway(429), limited),
        Fault("429 without end", dripping_status(429, pause_s), limited),
        Fault("500", status(500), failed),
        Fault("503", status(503), failed),
        Fault("503 midway", error_midway(503), failed),
        Fault("HTML", html, bad),
        Fault("truncated JSON", truncated, bad),
        Fault("bad SSE", bad_events, bad),
        Fault("garbage", garbage, bad),
        Fault("not HTTP", no_http, (*bad, *lost)),
        Fault("50 MiB", huge(50 * 2**20), bad, heavy=True),
        Fault("flood of nothing", flood_of_nothing, (*bad, *late), heavy=True),
        Fault("drip", dripping(pause_s), late, by_limit=True),
        Fault("drip of nothing", dripping_nothing(pause_s), late, by_limit=True),
        Fault("drip of headers", dripping_headers(pause_s), late, by_limit=True),
        Fault("empty answer", nothing, (kind.EMPTY,)),
    )


async def _main() -> None:
    async with serving() as server:
        for fault in faults():
            if fault.play is not None:
                name = fault.name.replace(" ", "-")
                server.script(name, fault.play)
                server.script(f"{name}-body", fault.play, streamed=False)
        print(f"url {server.url}\nmodels: {', '.join(server.models)}")
        await anyio.sleep_forever()


if __name__ == "__main__":
    anyio.run(_main)
