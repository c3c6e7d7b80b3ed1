"""One request for an answer, from its body to the last byte of its reply, whole or streamed."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import anyio
from starlette.types import Message, Receive, Scope, Send

from runtime import (
    Event,
    JournalError,
    PlanParsed,
    Run,
    RunStarted,
    StepFinished,
    StepStarted,
    ToolResult,
    WorkerError,
)

from ..orchestrator import AnswerText
from .accounts import Took
from .answering import Answering, Answers, OnEvent
from .archive import Archive
from .asgi import (
    Served,
    check_method,
    header,
    hung_up,
    on_a_line,
    read_body,
    send_json,
    trace_context,
)
from .ask import Ask
from .body import read_json
from .books import Books
from .callers import Caller
from .policies import Policy
from .refusals import Refusal, of_failure
from .replies import Replies
from .sse import KEEP_ALIVE
from .traffic import Limits, Traffic, stopping

_LOG = logging.getLogger(__name__)


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


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request for an answer that has been read."""

    wire: Wire
    served: Served
    caller: Caller
    policy: Policy
    ask: Ask
    past: Run | None
    """The run that goes on, if one does."""
    results: Sequence[ToolResult]
    """What came of its calls of tools."""
    trace: Mapping[str, str]
    """What the client's request is a part of: W3C Trace Context, if it says so."""
    receive: Receive | None
    """Tells when the client hangs up; None if it does not matter."""
    send: Send

    def answering(self, on_event: OnEvent) -> Answering:
        """Have it answered."""
        team, policy, ask = self.caller.team, self.policy, self.ask
        return Answering(team, policy, ask, on_event, past=self.past, results=self.results)

    def tell(self, runs: Sequence[Took]) -> None:
        """Put into the headers who answered, and what it took."""
        if not runs:
            return
        workers = dict.fromkeys(worker for each in runs for worker in each.accounts)
        waited = sum(each.busy_s for each in runs)
        overhead = max(0.0, time.perf_counter() - self.served.started - waited)
        self.served.headers |= {
            "x-conductor-run-id": runs[0].run.id,
            "x-conductor-workers": ",".join(workers),
            "x-conductor-cost-usd": str(sum(each.dollars for each in runs)),
            "x-conductor-overhead-ms": f"{overhead * 1000:.1f}",
        }


class AnswerRoute:
    """The route of one API.

    Args:
        wire: The API.
        limits: Of the server.
        traffic: Requests under way.
        books: Where it is entered what runs took.
        archive: Runs that requests may go on with.
        replies: Those that are kept.
    """

    def __init__(
        self,
        wire: Wire,
        limits: Limits,
        traffic: Traffic,
        books: Books,
        archive: Archive,
        replies: Replies,
    ) -> None:
        self._wire = wire
        self._limits = limits
        self._traffic = traffic
        self._books = books
        self._archive = archive
        self._replies = replies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        check_method(scope, "POST")
        body = await read_body(scope, receive, self._limits.body_bytes)
        exchange = self._read(body, scope, receive, send)
        name = header(scope, b"idempotency-key")
        if not name:
            await self._answer(exchange)
        else:
            await self._once(exchange, name, body)

    def _read(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> Exchange:
        served: Served = scope["conductor"]
        caller: Caller = scope["conductor.caller"]
        ask = self._wire.read(read_json(body))
        policy = caller.find(ask.model)
        past, results = self._archive.suspended(ask, caller.name)
        if past is None:
            ask = self._archive.continued(ask, caller.name)
        served.headers["x-conductor-policy"] = policy.pinned
        if ask.noted:
            served.headers["x-conductor-ignored"] = on_a_line(", ".join(ask.noted)[:1000])
        trace = trace_context(scope)
        return Exchange(
            self._wire, served, caller, policy, ask, past, results, trace, receive, send
        )

    async def _once(self, exchange: Exchange, name: str, body: bytes) -> None:
        """Answer, unless the reply is kept under an idempotency key; keep it."""
        served, send, caller = exchange.served, exchange.send, exchange.caller.name
        kept = await self._replies.find(caller, name, body)
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
            await self._answer(replace(exchange, receive=None, send=keep))
            whole = True
        finally:
            self._replies.settle(caller, name, kept, whole=whole)

    async def _answer(self, exchange: Exchange) -> None:
        team, trace = exchange.caller.team, exchange.trace
        with (
            self._traffic.entered(exchange.caller.account),
            team.part_of(trace) if trace else nullcontext(),
        ):
            if exchange.ask.stream:
                await self._stream(exchange)
            else:
                await self._whole(exchange)

    async def _whole(self, exchange: Exchange) -> None:
        answering = exchange.answering(_unheard)
        answers: Answers | None = None
        error: Exception | None = None
        async with anyio.create_task_group() as group:
            if exchange.receive is not None:
                group.start_soon(hung_up, exchange.receive, exchange.served, group.cancel_scope)
            try:
                with self._traffic.stoppable(group.cancel_scope):
                    answers = await answering.answers()
                self._settle(exchange, answering)
                # Within the group: the end of the reply ends the watch, for less than cancelling.
                await self._reply(exchange, answers)
            except Exception as caught:  # raised again outside the group, which would wrap it
                error = caught
                group.cancel_scope.cancel()
        if answers is None:
            self._settle(exchange, answering)
        if error is not None:
            raise error
        if answers is None and self._traffic.stopped:
            raise stopping()
        if answers is None:  # nobody is there any more
            exchange.served.status = 499

    async def _reply(self, exchange: Exchange, answers: Answers) -> None:
        exchange.tell(answers.runs)
        pinned = exchange.policy.pinned
        told = exchange.wire.reply(exchange.ask, pinned, int(time.time()), answers)
        await send_json(exchange.send, 200, told)

    async def _stream(self, exchange: Exchange) -> None:
        told = _Told(self._limits.unread)
        answering = exchange.answering(lambda index, event: told.put((index, event)))

        async def work() -> None:
            try:
                told.put(await answering.answers())
            except Exception as error:
                told.put(error)

        stream = _Stream(exchange)
        error: Exception | None = None
        try:
            async with anyio.create_task_group() as group:
                if exchange.receive is not None:
                    group.start_soon(hung_up, exchange.receive, exchange.served, group.cancel_scope)
                group.start_soon(work)
                with self._traffic.stoppable(group.cancel_scope):
                    try:
                        await stream.follow(told, self._limits.keep_alive_s)
                    except Exception as caught:
                        error = caught
                if not stream.whole:
                    group.cancel_scope.cancel()
        finally:
            self._settle(exchange, answering)
        if error is not None:
            raise error
        if not stream.ended and self._traffic.stopped:
            await stream.fail(stopping())
        if not stream.ended:
            exchange.served.status = 499

    def _settle(self, exchange: Exchange, answering: Answering) -> None:
        self._books.settle(exchange.caller.account, answering.runs, answering.before)


_Item = tuple[int, Event] | Answers | Exception


class _Told:
    """What is to be sent, until it is.

    Args:
        most: Most that waits at a time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._items: deque[_Item] = deque()
        self._woken: anyio.Event | None = None
        self._full = False

    def put(self, item: _Item) -> None:
        """Add something; what comes after too much was added is dropped.

        Raises:
            Refusal: If that is now: the client reads too slowly.
        """
        if self._full:
            return
        slow: Refusal | None = None
        if len(self._items) >= self._most:
            self._full = True
            item = slow = Refusal(500, "the client reads too slowly", code="slow_client")
        self._items.append(item)
        if self._woken is not None:
            self._woken.set()
            self._woken = None
        if slow is not None:
            raise slow

    async def take(self, seconds: float) -> list[_Item]:
        """All that is there, or comes within so many seconds; empty if nothing does."""
        if not self._items:
            self._woken = anyio.Event()
            with anyio.move_on_after(seconds):
                await self._woken.wait()
        taken = [*self._items]
        self._items.clear()
        return taken


class _Stream:
    """A streamed answer: begun with its first text, so that a failure before is a real status."""

    def __init__(self, exchange: Exchange) -> None:
        self._past = exchange.past
        self._ask = exchange.ask
        pinned = exchange.policy.pinned
        self._chunks = exchange.wire.Chunks(exchange.ask, pinned, int(time.time()))
        if self._past is not None:
            self._chunks.begin(self._past.id)
        self._headers = exchange.served.headers
        self._send = exchange.send
        self._begun = False
        self._texts: dict[int, AnswerText] = {}
        self.ended = False
        """Whether nothing more is to be sent."""
        self.whole = False
        """Whether the whole answer was."""

    async def follow(self, told: _Told, keep_alive_s: float) -> None:
        """Send what is told until the end.

        Raises:
            Refusal: If the answer fails before anything was sent.
        """
        while not self.ended:
            items = await told.take(keep_alive_s)
            out: list[bytes] = [] if items else [KEEP_ALIVE]
            for item in items:
                if not self.ended:
                    out += self._take(item)
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
                self.ended = self.whole = True
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
                self._headers["x-conductor-run-id"] = event.run
                out += self._chunks.begin(event.run)
            case PlanParsed() if index == 0:
                workers = dict.fromkeys(str(step.worker) for step in event.plan)
                self._headers["x-conductor-workers"] = ",".join(workers)
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
