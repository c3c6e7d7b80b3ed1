"""The ASGI application: routes, who may come in, and what is told with every reply."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import anyio
from starlette.routing import Route, Router
from starlette.types import Message, Receive, Scope, Send

from runtime import JournalError

from ..orchestrator import Conductor
from . import chat, responses
from .archive import Archive
from .asgi import (
    Served,
    check_method,
    header,
    hung_up,
    nowhere,
    request_id,
    send_json,
    send_refusal,
)
from .books import Books
from .callers import Caller, Callers
from .exchange import AnswerRoute, Wire
from .keys import Keyring
from .openapi import document
from .refusals import Refusal
from .replies import Replies
from .traffic import Limits, Traffic

_LOG = logging.getLogger(__name__)
_OPEN = frozenset({"/health/live", "/health/ready", "/openapi.json"})
"""Where nobody needs a key."""


class Server:
    """A team behind the OpenAI-compatible API.

    Args:
        team: Who answers. With a journal, runs can be looked up and conversations continued.
        keys: Who may ask; anybody who reaches the server if None.
        limits: What it takes on.
        hosts: Names under which it may be addressed; any if empty. On loopback this keeps web pages
            from reaching it under a name of their own (DNS rebinding).
    """

    def __init__(
        self,
        team: Conductor,
        *,
        keys: Keyring | None = None,
        limits: Limits = Limits(),
        hosts: Sequence[str] = (),
    ) -> None:
        self.team = team
        self.traffic = Traffic(limits.requests)
        """Requests for answers under way."""
        self._keyed = keys is not None
        self._hosts = frozenset(hosts)
        self._callers = Callers(team, keys)
        self._books = Books(keys)
        self._archive = Archive(team.journal)
        replies = Replies(limits.kept_bytes)
        events = _Events(self._archive, self.traffic, limits.keep_alive_s)

        def answers(wire: Wire) -> AnswerRoute:
            return AnswerRoute(wire, limits, self.traffic, self._books, self._archive, replies)

        # A bare Router: Starlette's own error pages come in another shape than the API's.
        self._routes = Router(
            [
                Route("/v1/chat/completions", answers(chat)),
                Route("/v1/responses", answers(responses)),
                Route("/v1/responses/{id}", _Small(self._response)),
                Route("/v1/models", _Small(self._models)),
                Route("/v1/models/{model:path}", _Small(self._model)),
                Route("/v1/runs/{id}", _Small(self._run)),
                Route("/v1/runs/{id}/events", events),
                Route("/metrics", _Small(self._metrics, "text/plain; version=0.0.4")),
                Route("/openapi.json", _Small(lambda scope, caller: (200, document()))),
                Route("/health/live", _Small(self._live)),
                Route("/health/ready", _Small(self._ready)),
            ],
            redirect_slashes=False,
            default=nowhere,
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, app: object) -> AsyncIterator[None]:
        async with self.team:  # connections stay open from one request to the next
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection; what goes wrong becomes an error in the API's shape."""
        if scope["type"] != "http":
            await self._routes(scope, receive, send)
            return
        served = Served(time.perf_counter(), request_id(scope))
        caller: Caller | None = None
        scope["conductor"] = served

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                served.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_headers(served, caller)]
            else:
                served.ended = not message.get("more_body")
            await send(message)

        try:
            self._check_host(scope)
            if not self._keyed or scope["path"] not in _OPEN:
                caller = self._callers.admit(header(scope, b"authorization"))
            scope["conductor.caller"] = caller
            await self._routes(scope, receive, told)
        except Refusal as refusal:
            await send_refusal(told, refusal)
        except JournalError as error:
            await _broken(served, told, Refusal(503, str(error), retry_after_s=5.0))
        except Exception as error:
            _LOG.exception("request %s", served.identifier)
            what = f"this is a bug: {type(error).__name__}; the log of the server has more"
            await _broken(served, told, Refusal(500, what, code="internal_error"))
        finally:
            self._books.requested(scope["path"], served.status)

    def _check_host(self, scope: Scope) -> None:
        if not self._hosts:
            return
        host = header(scope, b"host")
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if name.lower() not in self._hosts:
            told = f"this server does not answer to the name {name[:100]!r}"
            raise Refusal(421, f"{told}; ask for {sorted(self._hosts)[0]}, or serve with --host")

    # -- routes that read

    def _models(self, scope: Scope, caller: Caller | None) -> tuple[int, Any]:
        assert caller is not None
        allowed = caller.account.key.models
        listed = [
            caller.policies.described(policy)
            for policy in caller.policies
            if not allowed or policy.name in allowed
        ]
        return 200, {"object": "list", "data": listed}

    def _model(self, scope: Scope, caller: Caller | None) -> tuple[int, Any]:
        assert caller is not None
        asked = scope["path_params"]["model"]
        return 200, caller.policies.described(caller.find(asked), asked)

    def _run(self, scope: Scope, caller: Caller | None) -> tuple[int, Any]:
        assert caller is not None
        run = self._archive.run(scope["path_params"]["id"], caller.name)
        return 200, run.to_json().encode()

    def _response(self, scope: Scope, caller: Caller | None) -> tuple[int, Any]:
        assert caller is not None
        return 200, self._archive.response(scope["path_params"]["id"], caller.name)

    def _metrics(self, scope: Scope, caller: Caller | None) -> tuple[int, Any]:
        text = self._books.prometheus(self.traffic.open)
        if self.team.telemetry is not None:
            text += self.team.telemetry.prometheus()
        return 200, text.encode()

    def _live(self, scope: Scope, caller: Caller | None) -> tuple[int, Any]:
        return 200, {"status": "ok"}

    def _ready(self, scope: Scope, caller: Caller | None) -> tuple[int, Any]:
        if self.traffic.draining:
            return 503, {"status": "stopping"}
        return 200, {"status": "ok", "requests": self.traffic.open}


def _headers(served: Served, caller: Caller | None) -> list[tuple[bytes, bytes]]:
    """What every reply says."""
    took = (time.perf_counter() - served.started) * 1000
    told = {
        "x-request-id": served.identifier,
        "openai-processing-ms": f"{took:.0f}",
        "x-content-type-options": "nosniff",
        "cache-control": "no-store",
        **served.headers,
    }
    if caller is not None and caller.name:
        told |= caller.account.headers(time.monotonic())
    return [(name.encode(), value.encode("latin-1", "replace")) for name, value in told.items()]


async def _broken(served: Served, send: Send, refusal: Refusal) -> None:
    if not served.status:
        await send_refusal(send, refusal)


class _Small:
    """A route that reads: a function from the request and its caller to status and JSON."""

    def __init__(
        self,
        handle: Callable[[Scope, Caller | None], tuple[int, Any]],
        kind: str = "application/json",
    ) -> None:
        self._handle = handle
        self._kind = kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        check_method(scope, "GET", "HEAD")
        status, told = self._handle(scope, scope["conductor.caller"])
        await send_json(send, status, told, kind=self._kind)


class _Events:
    """The events of a run as they come; ``Last-Event-ID`` goes on after one."""

    def __init__(self, archive: Archive, traffic: Traffic, keep_alive_s: float) -> None:
        self._archive = archive
        self._traffic = traffic
        self._keep_alive_s = keep_alive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        check_method(scope, "GET")
        last = header(scope, b"last-event-id")
        events = self._archive.events(
            scope["path_params"]["id"],
            scope["conductor.caller"].name,
            after=int(last) if last.isdecimal() and len(last) < 10 else 0,
            keep_alive_s=self._keep_alive_s,
        )
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with anyio.create_task_group() as group, aclosing(events):
            group.start_soon(hung_up, receive, scope["conductor"], group.cancel_scope)
            async for piece in events:
                if piece:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                if self._traffic.stopped:
                    break
            group.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
