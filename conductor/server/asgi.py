"""The ASGI side of a request: what is read of it, and how whole replies are sent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any

import anyio
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from .refusals import Refusal


def header(scope: Scope, name: bytes) -> str:
    """A header of the request, its name in small letters; empty if it is not there."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return ""


def request_id(scope: Scope) -> str:
    """The id that the client gives its request, or a new one."""
    given = header(scope, b"x-client-request-id")
    fits = 0 < len(given) <= 128 and given.isascii() and given.isprintable()
    return given if fits else f"req_{token_hex(16)}"


def trace_context(scope: Scope) -> dict[str, str]:
    """What the client's request is a part of, as in W3C Trace Context; empty if it does not say, or
    not as it should.
    """
    parent = header(scope, b"traceparent")
    if not _TRACEPARENT.fullmatch(parent):
        return {}
    states = [value.decode("latin-1") for key, value in scope["headers"] if key == b"tracestate"]
    state = ",".join(states)
    fits = 0 < len(state) <= _MOST_STATE and state.isascii() and state.isprintable()
    return {"traceparent": parent, **({"tracestate": state} if fits else {})}


_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_MOST_STATE = 512  # characters that W3C asks everybody to pass on


def on_a_line(text: str) -> str:
    """A text as a header can hold it: what would end it, or is no ASCII, is a question mark, and
    there are no blanks at its ends."""
    return "".join(each if " " <= each <= "~" else "?" for each in text).strip()


def check_method(scope: Scope, *methods: str) -> None:
    """Refuse a request of another method.

    Raises:
        Refusal: 405.
    """
    if scope["method"] not in methods:
        told = f"{scope['path'][:200]} takes {methods[0]}, not {scope['method'][:20]}"
        raise Refusal(405, told, code="method_not_allowed", allow=methods)


async def nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    """Where there is nothing.

    Raises:
        Refusal: 404.
    """
    told = f"there is no {scope['path'][:200]} here; /openapi.json tells what there is"
    raise Refusal(404, told, code="unknown_url")


async def read_body(scope: Scope, receive: Receive, most: int) -> bytes:
    """Read the body of a request.

    Raises:
        Refusal: If it is too large, or no JSON by its type.
    """
    kind = header(scope, b"content-type").partition(";")[0].strip().lower()
    if kind and kind != "application/json" and not kind.endswith("+json"):
        told = f"the body is {kind[:60]}; send application/json"
        raise Refusal(415, told, code="unsupported_media_type")
    length = header(scope, b"content-length")
    if length.isdecimal() and len(length) < 20 and int(length) > most:
        raise _too_large(most)
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(499, "the client hung up", code="cancelled")
        piece = message.get("body", b"")
        size += len(piece)
        if size > most:
            raise _too_large(most)
        pieces.append(piece)
        if not message.get("more_body"):
            return b"".join(pieces)


def _too_large(most: int) -> Refusal:
    told = f"the body is larger than {most / 2**20:g} MiB; send less"
    return Refusal(413, told, code="request_too_large")


@dataclass(slots=True)
class Served:
    """One request, for the headers of its reply and for the metrics."""

    started: float
    identifier: str
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 0
    ended: bool = False
    """Whether the last of the reply is on its way."""


async def hung_up(receive: Receive, served: Served, scope: anyio.CancelScope) -> None:
    """Cancel if the client is gone before the reply has ended; come to an end with it."""
    while (await receive())["type"] != "http.disconnect":
        pass
    if not served.ended:  # ASGI tells both alike
        scope.cancel()


async def send_json(
    send: Send,
    status: int,
    told: Any,
    headers: Sequence[tuple[bytes, bytes]] = (),
    kind: str = "application/json",
) -> None:
    """Send a whole reply: JSON, or bytes as they are."""
    body = told if isinstance(told, bytes) else to_json(told)
    own = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*own, *headers]})
    await send({"type": "http.response.body", "body": body})


async def send_refusal(send: Send, refusal: Refusal) -> None:
    """Send an error."""
    headers = [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send_json(send, refusal.status, refusal.body, headers)
