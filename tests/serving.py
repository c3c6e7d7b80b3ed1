"""Teams and clients for tests of the server: workers that say what they are told to, in pieces."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
from anyio.lowlevel import checkpoint

from conductor import Conductor
from conductor.server import Server
from runtime import (
    Call,
    Completion,
    FinishReason,
    FunctionWorker,
    Message,
    OnText,
    Pool,
    ToolCall,
    Usage,
)

PLAN = (
    'subtasks = ["Name the good sides.", "Decide."]\nworkers = ["pro", "judge"]\n'
    "access = [[], [0]]\n"
)


class Speaker(FunctionWorker):
    """Says its texts in turn, word by word, and keeps the calls that it gets."""

    def __init__(
        self, name: str, *texts: str | Completion | Exception, usage: Usage | None = None
    ) -> None:
        super().__init__(name, self._unused)
        self.texts: list[str | Completion | Exception] = list(texts)
        self.calls: list[Call] = []
        self.usage = usage or Usage(10, 3)
        self.finish_reason = FinishReason.STOP
        self.holding: anyio.Event | None = None
        """Set it to hold the rest of the text back after the first word."""
        self.cancelled = 0

    async def _unused(self, messages: Sequence[Message]) -> str:
        raise AssertionError

    async def complete(self, call: Call, on_text: OnText = lambda text: None) -> Completion:
        self.calls.append(call)
        text = self.texts[min(len(self.calls), len(self.texts)) - 1]
        if isinstance(text, Exception):
            raise text
        if isinstance(text, Completion):
            if text.text:
                on_text(text.text)
            return text
        try:
            for at, word in enumerate(text.split(" ")):
                if at == 1 and self.holding is not None:
                    await self.holding.wait()
                on_text(word if at == 0 else f" {word}")
        except anyio.get_cancelled_exc_class():
            self.cancelled += 1
            raise
        return Completion(text, self.finish_reason, self.usage, f"{self.name}-model")


class Team:
    """A team of three and its parts."""

    def __init__(self, **options: Any) -> None:
        self.scribe = Speaker("scribe", PLAN, usage=Usage(100, 40))
        self.pro = Speaker("pro", "Tea warms.", usage=Usage(20, 5))
        self.judge = Speaker("judge", "Yes, in the morning.", usage=Usage(30, 7))
        pool = Pool([self.pro, self.judge], planner=self.scribe)
        self.conductor = Conductor(pool, **options)

    def server(self, **options: Any) -> Server:
        return Server(self.conductor, **options)


@asynccontextmanager
async def client(server: Server, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client in this process."""
    transport = httpx.ASGITransport(app=server)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://localhost", headers=headers
    ) as http:
        yield http


CHAT = "/v1/chat/completions"


class Wire:
    """What a server sends, as it sends it; the client hangs up when told to."""

    def __init__(self, body: dict[str, Any], path: str = CHAT, **headers: str) -> None:
        self._body = json.dumps(body).encode()
        self._read = False
        self.gone = anyio.Event()
        self.status = 0
        self.sent: list[bytes] = []
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "query_string": b"",
        }

    async def receive(self) -> dict[str, Any]:
        if not self._read:
            self._read = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message.get("body"):
            self.sent.append(message["body"])
        await checkpoint()
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.gone.set()  # as ASGI has it: nothing is received any more after a whole reply


def asked(model: str = "conductor", text: str = "Is tea healthy?", **more: Any) -> dict[str, Any]:
    """The body of a request for a chat completion."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


def calling(*calls: tuple[str, str], text: str = "") -> Completion:
    """A completion that asks for tools: names and arguments."""
    made = tuple(
        ToolCall(f"own{at}", name, arguments) for at, (name, arguments) in enumerate(calls)
    )
    return Completion(text, FinishReason.TOOL_CALLS, Usage(50, 9), "m", made)


def events(body: str) -> list[Any]:
    """The data of server-sent events, JSON read; comments are left out."""
    read: list[Any] = []
    for block in body.split("\n\n"):
        for line in block.split("\n"):
            if line.startswith("data: "):
                data = line.removeprefix("data: ")
                read.append(data if data == "[DONE]" else json.loads(data))
    return read


def said(chunks: Sequence[Any]) -> str:
    """The text of streamed chunks."""
    choices = (choice for chunk in chunks if chunk != "[DONE]" for choice in chunk["choices"])
    return "".join(choice["delta"].get("content") or "" for choice in choices)
