"""The ASGI application: routes, who may come in, streams, and what is told with every reply."""

from __future__ import annotations

import logging
import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from functools import partial
from hashlib import sha256
from typing import Any, Protocol
from uuid import uuid4

import anyio
from pydantic_core import to_json
from starlette.routing import Route, Router
from starlette.types import Message, Receive, Scope, Send

from runtime import (
    Call,
    Event,
    Journal,
    JournalError,
    PlanParsed,
    PlanSource,
    Run,
    RunStarted,
    RunState,
    StepFinished,
    StepStarted,
    ToolError,
    ToolResult,
    WorkerError,
    suspended_run,
)

from ..orchestrator import AnswerText, Conductor
from . import chat, responses
from .accounts import busy_s
from .answering import Answering, Answers, OnEvent
from .ask import Ask
from .body import read_json
from .keys import Account, Key, Keyring
from .openapi import document
from .policies import Policies, Policy
from .refusals import Refusal, bad, of_failure
from .sse import KEEP_ALIVE
from .vitals import vitals

_LOG = logging.getLogger(__name__)
_ID = re.compile(r"[0-9a-f]{32}")
_WATCH_S = 0.2
_KEPT_S = 600.0
_MOST_KEPT = 1000
_KEPT_BESIDE = 300  # bytes of a kept message beside its body
_RUN_STATUS = {RunState.RUNNING: "in_progress", RunState.CANCELLED: "cancelled"}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server takes on."""

    body_bytes: int = 10 * 2**20
    """Largest request."""
    requests: int = 2048
    """Most requests for answers at the same time; more are told to come again."""
    keep_alive_s: float = 10.0
    """Longest silence of a stream."""
    kept_bytes: int = 64 * 2**20
    """Most that is kept of replies to idempotency keys, together; the oldest are forgotten."""
    unread: int = 100_000
    """Most events that wait for a client who does not read; then its run is stopped."""


class Wire(Protocol):
    """One of the two APIs: how a request is read, and an answer written."""

    def read(self, body: dict[str, Any]) -> Ask:
        """Read a request; raises Refusal."""

    def reply(self, ask: Ask, policy: str, created: int, answers: Answers) -> dict[str, Any]:
        """Write a whole answer."""

    def Chunks(self, ask: Ask, policy: str, created: int) -> Chunks:
        """Begin a streamed answer."""


class Chunks(Protocol):
    """The events of one streamed answer, as bytes to be sent at once."""

    def begin(self, run: str) -> list[bytes]: ...
    def text(self, index: int, piece: str) -> list[bytes]: ...
    def progress(self, told: dict[str, Any]) -> list[bytes]: ...
    def end(self, answers: Answers) -> list[bytes]: ...
    def fail(self, refusal: Refusal) -> list[bytes]: ...


@dataclass(slots=True)
class Caller:
    """A client: its account, and the part of the team that it sees."""

    account: Account
    team: Conductor
    policies: Policies

    @property
    def name(self) -> str:
        """Name of the key; empty where no keys are needed."""
        return self.account.key.name

    def find(self, model: str) -> Policy:
        """Look a model id up.

        Raises:
            Refusal: If there is none, or the key may not use it.
        """
        policy = self.policies.find(model)
        allowed = self.account.key.models
        if allowed and policy.name not in allowed:
            told = f"the key {self.name} may use the models {', '.join(allowed)} only"
            raise Refusal(403, told, param="model", code="model_not_allowed")
        return policy


@dataclass(slots=True)
class Kept:
    """The reply to a request with an idempotency key."""

    digest: bytes
    """Of the request."""
    messages: list[Message] = field(default_factory=list)
    """What was sent; empty until it is made."""
    headers: dict[str, str] = field(default_factory=dict)
    over: anyio.Event = field(default_factory=anyio.Event)
    until: float = math.inf
    """When it is forgotten."""
    size: int = 0
    """About how many bytes it takes, once it is made."""


@dataclass(slots=True)
class Served:
    """One request, for the headers of its reply and for the metrics."""

    started: float
    identifier: str
    caller: Caller | None = None
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 0


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
        self.limits = limits
        self.draining = False
        """Set when the process is about to end: it is ready for no more."""
        self.stopped = False
        """Set by :meth:`stop`."""
        self.open = 0
        """Requests for answers under way."""
        self._under_way: set[anyio.CancelScope] = set()
        self._keys = keys
        self._hosts = frozenset(hosts)
        self._created = int(time.time())
        self._callers: dict[str, Caller] = {}
        self._requests: Counter[tuple[str, int]] = Counter()
        self._kept: dict[tuple[str, str], Kept] = {}
        self._runs: Counter[str] = Counter()
        self._took: Counter[tuple[str, str]] = Counter()
        self._dollars: defaultdict[str, Decimal] = defaultdict(Decimal)
        self._anybody = self._caller(Account(Key("")))
        # A bare Router: Starlette's own error pages come in another shape than the API's.
        self._routes = Router(
            [
                Route("/v1/chat/completions", _Answer(self, chat)),
                Route("/v1/responses", _Answer(self, responses)),
                Route("/v1/responses/{id}", _Small(self._response)),
                Route("/v1/models", _Small(self._models)),
                Route("/v1/models/{model:path}", _Small(self._model)),
                Route("/v1/runs/{id}", _Small(self._run)),
                Route("/v1/runs/{id}/events", _Events(self)),
                Route("/metrics", _Small(self._metrics, "text/plain; version=0.0.4")),
                Route("/openapi.json", _Small(lambda scope, caller: (200, document()))),
                Route("/health/live", _Small(self._live)),
                Route("/health/ready", _Small(self._ready)),
            ],
            redirect_slashes=False,
            default=_nowhere,
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, app: object) -> AsyncIterator[None]:
        async with self.team:  # connections stay open from one request to the next
            yield

    def _caller(self, account: Account) -> Caller:
        known = self._callers.get(account.key.name)
        if known is None:
            key = account.key
            team = self.team.within(
                only=key.only,
                without=key.without,
                tags=key.tags,
                without_tags=key.without_tags,
                caller=key.name,
            )
            known = Caller(account, team, Policies(team, self._created))
            self._callers[key.name] = known
        return known

    # -- every request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection; what goes wrong becomes an error in the API's shape."""
        if scope["type"] != "http":
            await self._routes(scope, receive, send)
            return
        served = Served(time.perf_counter(), _request_id(scope))
        scope["conductor"] = served

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                served.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *self._told(served)]
            await send(message)

        try:
            self._check_host(scope)
            served.caller = self._admit(scope)
            await self._routes(scope, receive, told)
        except Refusal as refusal:
            await send_refusal(told, refusal)
        except JournalError as error:
            await self._broken(served, told, Refusal(503, str(error), retry_after_s=5.0))
        except Exception as error:
            _LOG.exception("request %s", served.identifier)
            what = f"this is a bug: {type(error).__name__}; the log of the server has more"
            await self._broken(served, told, Refusal(500, what, code="internal_error"))
        finally:
            route = scope["path"] if scope["path"] in _COUNTED else "other"
            self._requests[route, served.status] += 1

    async def _broken(self, served: Served, send: Send, refusal: Refusal) -> None:
        if not served.status:
            await send_refusal(send, refusal)

    def _told(self, served: Served) -> list[tuple[bytes, bytes]]:
        took = (time.perf_counter() - served.started) * 1000
        told = {
            "x-request-id": served.identifier,
            "openai-processing-ms": f"{took:.0f}",
            "x-content-type-options": "nosniff",
            "cache-control": "no-store",
            **served.headers,
        }
        if served.caller is not None and served.caller.name:
            told |= served.caller.account.headers(time.monotonic())
        return [(name.encode(), value.encode("latin-1", "replace")) for name, value in told.items()]

    def _check_host(self, scope: Scope) -> None:
        if not self._hosts:
            return
        host = _header(scope, b"host")
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if name.lower() not in self._hosts:
            told = f"this server does not answer to the name {name[:100]!r}"
            raise Refusal(421, f"{told}; ask for {sorted(self._hosts)[0]}, or serve with --host")

    def _admit(self, scope: Scope) -> Caller | None:
        """Who asks; None where nobody needs to be known.

        Raises:
            Refusal: 401.
        """
        if self._keys is None:
            return self._anybody
        if scope["path"] in _OPEN:
            return None
        kind, _, secret = _header(scope, b"authorization").partition(" ")
        account = self._keys.find(secret.strip()) if kind.lower() == "bearer" else None
        if account is None:
            told = "no valid key: send Authorization: Bearer KEY; `conductor keys add` makes one"
            raise Refusal(401, told, code="invalid_api_key")
        return self._caller(account)

    # -- answers

    @asynccontextmanager
    async def _entered(self, caller: Caller) -> AsyncIterator[None]:
        """Count a request for an answer while it lasts.

        Raises:
            Refusal: 503 if there are too many, or the server is about to end; 429 if the key is
                over its limits.
        """
        if self.draining:
            raise _stopping()
        if self.open >= self.limits.requests:
            told = f"{self.open} requests are under way, the most that this server takes on"
            raise Refusal(503, f"{told}; try again", code="overloaded", retry_after_s=1.0)
        caller.account.enter(time.monotonic())
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1
            caller.account.leave()

    def stop(self) -> int:
        """Stop what is under way: its runs are cancelled in the journal, its clients are told.

        Returns:
            How many requests for answers were stopped.
        """
        self.draining = self.stopped = True
        under_way, self._under_way = self._under_way, set()
        for scope in under_way:
            scope.cancel()
        return len(under_way)

    @contextmanager
    def stoppable(self, scope: anyio.CancelScope) -> Iterator[None]:
        """Cancel the scope if the server is stopped meanwhile."""
        self._under_way.add(scope)
        try:
            yield
        finally:
            self._under_way.discard(scope)

    def settle(self, caller: Caller, runs: Sequence[Run], before: Run | None = None) -> None:
        """Enter what runs took, into the account of the client and the metrics.

        Args:
            caller: The client.
            runs: The runs.
            before: One of them as it was, if it went on: that is in the books already.
        """
        tokens, dollars = 0, Decimal(0)
        for run, sign in (*((run, 1) for run in runs), *(((before, -1),) if before else ())):
            if before is not None and not runs:
                break
            self._runs[run.state.value] += sign > 0
            dollars += sign * run.dollars
            for worker, account in (*run.accounts.items(), ("planning", run.orchestration)):
                if account.calls:
                    usage = account.usage
                    tokens += sign * (usage.input_tokens + usage.output_tokens)
                    self._took[worker, "calls"] += sign * account.calls
                    self._took[worker, "failed"] += sign * account.failed
                    self._took[worker, "input_tokens"] += sign * usage.input_tokens
                    self._took[worker, "output_tokens"] += sign * usage.output_tokens
                    self._dollars[worker] += sign * account.dollars
        caller.account.settle(time.monotonic(), tokens, dollars)
        if self._keys is not None and any(run.dollars for run in runs):
            self._keys.keep()

    # -- small routes

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

    def recorded(self, identifier: str, caller: Caller | None) -> tuple[Journal, Run]:
        """A run of this client.

        Raises:
            Refusal: 404 if there is none, whether it is another's or nobody's.
        """
        assert caller is not None
        journal = self.team.journal
        if journal is None:
            raise Refusal(404, "runs are not kept here: there is no journal", code="no_journal")
        try:
            if not _ID.fullmatch(identifier):
                raise JournalError("no id")
            run = journal.run(identifier)
        except JournalError:
            run = None
        if run is None or run.caller != caller.name:
            raise Refusal(404, f"there is no run {identifier[:100]!r}", code="run_not_found")
        return journal, run

    def _run(self, scope: Scope, caller: Caller | None) -> tuple[int, Any]:
        _, run = self.recorded(scope["path_params"]["id"], caller)
        return 200, run.to_json().encode()

    def _response(self, scope: Scope, caller: Caller | None) -> tuple[int, Any]:
        _, run = self.recorded(scope["path_params"]["id"].removeprefix("resp_"), caller)
        pick = run.source is PlanSource.PICK and run.plan
        model = f"worker/{run.plan.final.worker}" if pick and run.plan else "conductor"
        ask = Ask(model, run.asked or Call(()))
        created = int(datetime.fromisoformat(run.started).timestamp())
        choices = () if run.answer is None else ((run.answer, run),)
        told = responses.reply(ask, model, created, Answers(choices, (run,)))
        if run.state is not RunState.DONE:
            told["status"] = _RUN_STATUS.get(run.state, "failed")
        if run.failure is not None and run.answer is None:
            told["error"] = {"code": "server_error", "message": run.failure.message}
        return 200, told

    async def kept(self, caller: Caller, name: str, body: bytes) -> Kept:
        """Find the reply to an idempotency key, waiting for it if it is being made; or begin one.

        Raises:
            Refusal: If the key is too long, or was used for another request.
        """
        if len(name) > 255:
            raise bad("idempotency-key is longer than 255 characters", "idempotency-key")
        at, digest = (caller.name, name), sha256(body).digest()
        while True:
            now = time.monotonic()
            for old in [key for key, each in self._kept.items() if each.until < now]:
                del self._kept[old]
            known = self._kept.get(at)
            if known is None:
                self._make_room(_MOST_KEPT - 1, self.limits.kept_bytes)
                if len(self._kept) >= _MOST_KEPT:
                    told = "too many replies are being made for idempotency keys"
                    raise Refusal(503, f"{told}; try again", retry_after_s=5.0)
                self._kept[at] = Kept(digest)
                return self._kept[at]
            if known.digest != digest:
                told = "this idempotency-key was used for another request"
                raise Refusal(422, f"{told}; use a new one", code="idempotency_mismatch")
            if known.over.is_set():
                return known
            await known.over.wait()
            if known.until < math.inf:
                return known

    def _make_room(self, count: int, size: int) -> None:
        """Forget the oldest replies until there are so many at most, of so many bytes."""
        done = [key for key, each in self._kept.items() if each.until < math.inf]
        size -= sum(self._kept[key].size for key in done)
        for key in done:
            if len(self._kept) <= count and size >= 0:
                return
            size += self._kept.pop(key).size

    def settled(self, caller: Caller, name: str, kept: Kept, *, whole: bool) -> None:
        """Keep a reply for a while, or forget it if it is none."""
        if whole:
            kept.until = time.monotonic() + _KEPT_S
            kept.size = sum(len(each.get("body", b"")) + _KEPT_BESIDE for each in kept.messages)
            self._make_room(_MOST_KEPT, self.limits.kept_bytes)
        else:
            del self._kept[caller.name, name]
        kept.over.set()

    def resumed(self, ask: Ask, caller: Caller) -> tuple[Run | None, tuple[ToolResult, ...]]:
        """Find the run that goes on with the results of tools that a conversation ends with.

        Returns:
            The run and the results; None where there is no such run: then the conversation, results
            included, is what is asked.
        """
        found = suspended_run(ask.call.messages)
        if found is None or self.team.journal is None:
            return None, ()
        name, results = found
        try:
            record = self.team.journal.record(name)
            record.missing(results)
        except (JournalError, ToolError):
            return None, ()
        run = record.run
        return (run, results) if run.caller == caller.name else (None, ())

    def continued(self, ask: Ask, caller: Caller) -> Ask:
        """Put the conversation of an earlier response before what is asked.

        Raises:
            Refusal: 404 if there is none; 400 if it came to no answer.
        """
        if not ask.previous:
            return ask
        _, run = self.recorded(ask.previous, caller)
        if run.answer is None:
            told = f"the response resp_{run.id} has no answer to go on from"
            raise bad(told, "previous_response_id")
        messages = responses.continued(ask, run, run.answer)
        return replace(ask, call=replace(ask.call, messages=messages))

    def _metrics(self, scope: Scope, caller: Caller | None) -> tuple[int, Any]:
        lines = [
            "# TYPE conductor_http_requests_total counter",
            *(
                f'conductor_http_requests_total{{route="{route}",status="{status}"}} {count}'
                for (route, status), count in sorted(self._requests.items())
            ),
            "# TYPE conductor_requests_in_flight gauge",
            f"conductor_requests_in_flight {self.open}",
            "# TYPE conductor_runs_total counter",
            *(
                f'conductor_runs_total{{state="{state}"}} {count}'
                for state, count in sorted(self._runs.items())
            ),
            "# TYPE conductor_worker_total counter",
            *(
                f'conductor_worker_total{{worker="{worker}",what="{what}"}} {count}'
                for (worker, what), count in sorted(self._took.items())
            ),
            "# TYPE conductor_worker_dollars_total counter",
            *(
                f'conductor_worker_dollars_total{{worker="{worker}"}} {dollars}'
                for worker, dollars in sorted(self._dollars.items())
            ),
            *vitals(),
        ]
        text = "\n".join(lines) + "\n"
        if self.team.telemetry is not None:
            text += self.team.telemetry.prometheus()
        return 200, text.encode()

    def _live(self, scope: Scope, caller: Caller | None) -> tuple[int, Any]:
        return 200, {"status": "ok"}

    def _ready(self, scope: Scope, caller: Caller | None) -> tuple[int, Any]:
        if self.draining:
            return 503, {"status": "stopping"}
        return 200, {"status": "ok", "requests": self.open}


_OPEN = frozenset({"/health/live", "/health/ready", "/openapi.json"})


_COUNTED = frozenset({"/v1/chat/completions", "/v1/responses", "/v1/models"})


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
        _check_method(scope, "GET", "HEAD")
        status, told = self._handle(scope, scope["conductor"].caller)
        await send_json(send, status, told, kind=self._kind)


class _Events:
    """The events of a run, from the journal, as they come; ``Last-Event-ID`` goes on after one."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _check_method(scope, "GET")
        caller = scope["conductor"].caller
        journal, run = self._server.recorded(scope["path_params"]["id"], caller)
        last = _header(scope, b"last-event-id")
        sent = int(last) if last.isdecimal() and len(last) < 10 else 0
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with anyio.create_task_group() as group:
            group.start_soon(_hung_up, receive, group.cancel_scope)
            silent = 0.0
            while True:
                over = journal.run(run.id).state is not RunState.RUNNING
                lines = journal.lines(run.id, after=sent)
                out = [
                    b"id: %d\ndata: %s\n\n" % (sent + at, line) for at, line in enumerate(lines, 1)
                ]
                sent += len(lines)
                if not out and not over and silent >= self._server.limits.keep_alive_s:
                    out = [KEEP_ALIVE]
                if out:
                    silent = 0.0
                    body = b"".join(out)
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                if (over and not lines) or self._server.stopped:
                    break
                if not over:
                    await anyio.sleep(_WATCH_S)
                    silent += _WATCH_S
            group.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Answer:
    """The route of one API: reads an Ask, has it answered, and writes or streams what comes."""

    def __init__(self, server: Server, wire: Wire) -> None:
        self._server = server
        self._wire = wire

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _check_method(scope, "POST")
        server, served = self._server, scope["conductor"]
        caller: Caller = served.caller
        body = await read_body(scope, receive, server.limits.body_bytes)
        ask = self._wire.read(read_json(body))
        policy = caller.find(ask.model)
        past, results = server.resumed(ask, caller)
        if past is None:
            ask = server.continued(ask, caller)
        served.headers["x-conductor-policy"] = policy.pinned
        if ask.noted:
            served.headers["x-conductor-ignored"] = _on_a_line(", ".join(ask.noted)[:1000])
        name = _header(scope, b"idempotency-key")
        if not name:
            await self._admitted(caller, policy, ask, past, results, served, receive, send)
            return
        kept = await server.kept(caller, name, body)
        if kept.messages:
            served.headers |= {**kept.headers, "x-conductor-replayed": "true"}
            for message in kept.messages:
                await send({**message})
            return

        async def keep(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept.headers = dict(served.headers)
            kept.messages.append({**message})
            await send(message)

        whole = False
        try:
            # Whoever hangs up is expected to ask again: the run goes on, for the next try to find.
            await self._admitted(caller, policy, ask, past, results, served, _forever, keep)
            whole = True
        finally:
            server.settled(caller, name, kept, whole=whole)

    async def _admitted(
        self,
        caller: Caller,
        policy: Policy,
        ask: Ask,
        past: Run | None,
        results: Sequence[ToolResult],
        served: Served,
        receive: Receive,
        send: Send,
    ) -> None:
        async with self._server._entered(caller):
            make = partial(Answering, caller.team, policy, ask, past=past, results=results)
            if ask.stream:
                await self._stream(make, caller, policy, ask, past, served, receive, send)
            else:
                await self._whole(make, caller, policy, ask, past, served, receive, send)

    async def _whole(
        self,
        make: Callable[[OnEvent], Answering],
        caller: Caller,
        policy: Policy,
        ask: Ask,
        past: Run | None,
        served: Served,
        receive: Receive,
        send: Send,
    ) -> None:
        answering = make(_unheard)
        answers: Answers | None = None
        error: Exception | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(_hung_up, receive, group.cancel_scope)
            with self._server.stoppable(group.cancel_scope):
                try:
                    answers = await answering.answers()
                except Exception as caught:  # raised again outside the group, which would wrap it
                    error = caught
            group.cancel_scope.cancel()
        self._server.settle(caller, answering.runs, answering.before)
        if error is not None:
            raise error
        if answers is None and self._server.stopped:
            raise _stopping()
        if answers is None:  # nobody is there any more
            served.status = 499
            return
        _tell(served, answers.runs)
        reply = self._wire.reply(ask, policy.pinned, int(time.time()), answers)
        await send_json(send, 200, reply)

    async def _stream(
        self,
        make: Callable[[OnEvent], Answering],
        caller: Caller,
        policy: Policy,
        ask: Ask,
        past: Run | None,
        served: Served,
        receive: Receive,
        send: Send,
    ) -> None:
        limits = self._server.limits
        told, heard = anyio.create_memory_object_stream[_Item](limits.unread)
        answering = make(lambda index, event: told.send_nowait((index, event)))

        async def work() -> None:
            try:
                told.send_nowait(await answering.answers())
            except Exception as error:
                with suppress(anyio.WouldBlock, anyio.BrokenResourceError):
                    told.send_nowait(error)
            finally:
                told.close()

        chunks = self._wire.Chunks(ask, policy.pinned, int(time.time()))
        stream = _Stream(ask, chunks, served, send, past)
        error: Exception | None = None
        try:
            with heard:
                async with anyio.create_task_group() as group:
                    group.start_soon(_hung_up, receive, group.cancel_scope)
                    group.start_soon(work)
                    with self._server.stoppable(group.cancel_scope):
                        try:
                            await stream.follow(heard, limits.keep_alive_s)
                        except Exception as caught:
                            error = caught
                    group.cancel_scope.cancel()
        finally:
            self._server.settle(caller, answering.runs, answering.before)
        if error is not None:
            raise error
        if not stream.ended and self._server.stopped:
            await stream.fail(_stopping())
        if not stream.ended:
            served.status = 499


_Item = tuple[int, Event] | Answers | Exception


class _Stream:
    """A streamed answer: begun with its first text, so that a failure before is a real status."""

    def __init__(
        self, ask: Ask, chunks: Chunks, served: Served, send: Send, past: Run | None
    ) -> None:
        self._past = past
        if past is not None:
            chunks.begin(past.id)
        self._ask = ask
        self._chunks = chunks
        self._served = served
        self._send = send
        self._begun = False
        self._texts: dict[int, AnswerText] = {}
        self.ended = False

    async def follow(self, heard: Any, keep_alive_s: float) -> None:
        """Send what is heard until the end.

        Raises:
            Refusal: If the answer fails before anything was sent.
        """
        while not self.ended:
            out: list[bytes] = []
            with anyio.move_on_after(keep_alive_s) as scope:
                try:
                    item: _Item = await heard.receive()
                except anyio.EndOfStream:
                    item = Refusal(500, "the client reads too slowly", code="slow_client")
            if scope.cancelled_caught:
                out.append(KEEP_ALIVE)
            else:
                out += self._take(item)
                # What has come meanwhile goes out with it.
                while not self.ended and heard.statistics().current_buffer_used:
                    out += self._take(heard.receive_nowait())
            if out:
                await self._put(b"".join(out))

    async def fail(self, refusal: Refusal) -> None:
        """End with an error.

        Raises:
            Refusal: The same, if nothing was sent yet.
        """
        await self._put(b"".join(self._take(refusal)))

    def _take(self, item: _Item) -> list[bytes]:
        if isinstance(item, tuple):
            return self._event(*item)
        if isinstance(item, Answers):
            try:
                rest = [*self._rest(item), *self._chunks.end(item)]
            except Refusal as refusal:
                item = refusal
            else:
                self.ended = True
                return rest
        if not self._begun:
            raise item
        self.ended = True
        return self._chunks.fail(_refusal_of(item))

    def _rest(self, answers: Answers) -> list[bytes]:
        """What was not sent yet of the answers.

        Raises:
            Refusal: If what was sent is another text: its call broke off, and the next try, or who
                stood in, had other words.
        """
        out: list[bytes] = []
        for index, (text, run) in enumerate(answers.choices):
            said = self._texts.get(index)
            try:
                missing = text if said is None or self._held else said.rest(run)
            except WorkerError as error:
                raise of_failure(error.failure, run.id) from None
            if missing:
                out += self._chunks.text(index, missing)
        return out

    @property
    def _held(self) -> bool:
        """Whether text is held back until it is whole: it may have to be written again."""
        return self._ask.schema is not None or self._ask.wishes.dry_run

    def _event(self, index: int, event: Event) -> list[bytes]:
        out: list[bytes] = []
        match event:
            case RunStarted() if index == 0:
                self._served.headers["x-conductor-run-id"] = event.run
                out += self._chunks.begin(event.run)
            case PlanParsed() if index == 0:
                workers = dict.fromkeys(str(step.worker) for step in event.plan)
                self._served.headers["x-conductor-workers"] = ",".join(workers)
        if self._ask.wishes.progress and index == 0:
            told = _progress(event)
            out += self._chunks.progress(told) if told else []
        if index not in self._texts:
            self._texts[index] = AnswerText(None if index else self._past)
        piece = self._texts[index].take(event)
        if piece and not self._held:
            out += self._chunks.text(index, piece)
        return out

    async def _put(self, data: bytes) -> None:
        if not self._begun:
            self._begun = True
            headers = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"x-accel-buffering", b"no"),
            ]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": data, "more_body": not self.ended})


def _stopping() -> Refusal:
    told = "the server is about to stop; try again"
    return Refusal(503, told, code="server_stopping", retry_after_s=2.0)


def _refusal_of(error: Exception) -> Refusal:
    if isinstance(error, Refusal):
        return error
    if isinstance(error, JournalError):
        return Refusal(503, str(error))
    _LOG.error("an answer broke off", exc_info=error)
    return Refusal(500, f"this is a bug: {type(error).__name__}", code="internal_error")


def _progress(event: Event) -> dict[str, Any] | None:
    """What goes on, in a few words; texts of steps are not in it."""
    match event:
        case RunStarted():
            return {"kind": event.kind, "run": event.run}
        case PlanParsed():
            plan = event.plan
            return {
                "kind": event.kind,
                "subtasks": [step.subtask for step in plan],
                "workers": [str(step.worker) for step in plan],
                "access": [list(step.access) for step in plan],
            }
        case StepStarted():
            return {"kind": event.kind, "index": event.index, "worker": event.worker}
        case StepFinished():
            result = event.result
            return {
                "kind": event.kind,
                "index": result.index,
                "worker": result.worker,
                "state": result.state.value,
                "seconds": round(result.seconds, 3),
            }
    return None


def _unheard(index: int, event: Event) -> None:
    pass


async def _forever() -> Message:
    """Of a client that is not watched: nothing comes any more."""
    await anyio.sleep_forever()
    raise AssertionError


async def _hung_up(receive: Receive, scope: anyio.CancelScope) -> None:
    """Cancel when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _tell(served: Served, runs: Sequence[Run]) -> None:
    if not runs:
        return
    waited = sum(busy_s(run) for run in runs)
    workers = dict.fromkeys(worker for run in runs for worker in run.accounts)
    overhead = max(0.0, time.perf_counter() - served.started - waited)
    served.headers |= {
        "x-conductor-run-id": runs[0].id,
        "x-conductor-workers": ",".join(workers),
        "x-conductor-cost-usd": str(sum(run.dollars for run in runs)),
        "x-conductor-overhead-ms": f"{overhead * 1000:.1f}",
    }


# -- ASGI -------------------------------------------------------------------------------------


async def read_body(scope: Scope, receive: Receive, most: int) -> bytes:
    """Read the body of a request.

    Raises:
        Refusal: If it is too large, or no JSON by its type.
    """
    kind = _header(scope, b"content-type").partition(";")[0].strip().lower()
    if kind and kind != "application/json" and not kind.endswith("+json"):
        told = f"the body is {kind[:60]}; send application/json"
        raise Refusal(415, told, code="unsupported_media_type")
    length = _header(scope, b"content-length")
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


async def _nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    told = f"there is no {scope['path'][:200]} here; /openapi.json tells what there is"
    raise Refusal(404, told, code="unknown_url")


def _check_method(scope: Scope, *methods: str) -> None:
    if scope["method"] not in methods:
        told = f"{scope['path'][:200]} takes {methods[0]}, not {scope['method'][:20]}"
        raise Refusal(405, told, code="method_not_allowed")


def _header(scope: Scope, name: bytes) -> str:
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return ""


def _request_id(scope: Scope) -> str:
    given = _header(scope, b"x-client-request-id")
    fits = 0 < len(given) <= 128 and given.isascii() and given.isprintable()
    return given if fits else f"req_{uuid4().hex}"


def _on_a_line(text: str) -> str:
    """A text as a header can hold it: what would end it, or is no ASCII, is a question mark."""
    return "".join(each if " " <= each <= "~" else "?" for each in text)
