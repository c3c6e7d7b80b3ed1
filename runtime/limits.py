"""Bounds: on what terms a worker is called, and what a run may take.

The decisions are pure and take the time as an argument: how long to wait before the next try
(:func:`wait_before`), whether a worker is left alone (:class:`Breaker`), how long a rate limit puts
a call off (:class:`Window`), whether a run may make one more call (:class:`Ledger`). :class:`Guard`
applies them to the calls of one worker.
"""

from __future__ import annotations

import math
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

import anyio
import anyio.lowlevel

from .errors import Failure, FailureKind, WorkerError
from .prices import Price
from .worker import Call, Completion, OnText, Usage, Worker

_MINUTE_S = 60.0
_INSTANT_S = 5e-7  # adding a wait to a time may fall short of its end by a rounding error
_CHARACTERS_PER_TOKEN = 4  # a guess that the worker's own count replaces


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a worker is called."""

    concurrency: int | None = None
    """Most calls at the same time in one event loop; more wait their turn."""
    requests_per_minute: int | None = None
    """Most calls begun in any 60 seconds; more wait."""
    tokens_per_minute: int | None = None
    """Most tokens, in and out, in any 60 seconds."""
    retries: int = 2
    """Further tries after one that may go better next time (:attr:`FailureKind.transient`)."""
    retry_base_s: float = 0.5
    """The first wait is a random part of it; the range doubles with every try (full jitter)."""
    retry_cap_s: float = 20.0
    """The longest wait, unless the server asks for a longer one (Retry-After)."""
    retry_total_s: float = 60.0
    """No try begins later than this after the first one."""
    first_text_s: float | None = None
    """Longest wait for the first piece of text."""
    silence_s: float | None = None
    """Longest wait between two pieces of text."""
    call_s: float | None = None
    """Longest time for a whole call."""
    trip_after: int | None = 5
    """Failures in a row after which the worker is left alone; None: never."""
    open_s: float = 30.0
    """For how long; then one call is let through, and decides how it goes on."""
    fallback: tuple[str, ...] = ()
    """Workers that stand in when all tries came to nothing, in this order."""
    price: Price | None = None
    """What it costs; None: what is published of the model, nothing in this process."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run may take, nested runs and all rounds included. None is no limit.

    Money and tokens are known when a call has ended, so each of the calls under way at that moment
    may go over them; calls and steps are never exceeded.
    """

    dollars: Decimal | None = None
    tokens: int | None = None
    """In and out together."""
    calls: int | None = None
    """Calls of workers, the planner's and failed ones included."""
    seconds: float | None = None
    """The deadline, from the start of the run; what is under way is stopped then."""
    steps: int | None = None
    """Steps of all plans together."""
    depth: int = 1
    """How deep runs may be nested: the Conductor as a worker of a step of a step..."""


# --- decisions -------------------------------------------------------------------------------


def wait_before(
    tries: int, failure: Failure, elapsed_s: float, terms: Terms, dice: float
) -> float | None:
    """Decide how long to wait before a worker is tried again.

    Exponential backoff with full jitter (M. Brooker, "Exponential Backoff And Jitter", AWS
    Architecture Blog, 2015): uniform between 0 and base * 2^(tries - 1), at most the cap. A time
    that the server asks for is kept, and the jitter comes on top, lest all come back at once.

    Args:
        tries: How many were made, at least 1.
        failure: Why the last one came to nothing.
        elapsed_s: Seconds since the first one began.
        terms: The worker's terms.
        dice: A random number from 0 to 1.

    Returns:
        Seconds, or None if there are no more tries.
    """
    if tries > terms.retries or not failure.kind.transient:
        return None
    jitter = dice * min(terms.retry_cap_s, terms.retry_base_s * 2.0 ** min(tries - 1, 60))
    wait = jitter if failure.retry_after_s is None else failure.retry_after_s + jitter
    return wait if elapsed_s + wait <= terms.retry_total_s else None


_BLAMED = frozenset(
    {
        FailureKind.UNREACHABLE,
        FailureKind.TIMEOUT,
        FailureKind.OVERLOADED,
        FailureKind.BAD_RESPONSE,
        FailureKind.UNAUTHORIZED,
        FailureKind.NOT_FOUND,
        FailureKind.MODEL,
    }
)
"""Failures that say something of the worker's health, and not of the one call."""


class Breaker:
    """Leaves a worker alone that keeps failing: closed, open, half open (M. Nygard, Release It!).

    Args:
        trip_after: Failures in a row that open it; None: it never opens.
        open_s: Seconds until one call, the probe, is let through.
    """

    def __init__(self, trip_after: int | None, open_s: float) -> None:
        self._trip_after = trip_after or math.inf
        self._open_s = open_s
        self._failures = 0
        self._probe_at = math.inf
        self._probing = False

    def closed_in_s(self, now: float) -> float:
        """How long the worker is left alone: 0 if it may be called; then a probe may be begun."""
        if self._failures < self._trip_after:
            return 0.0
        if self._probing:
            return self._open_s
        return max(0.0, self._probe_at - now)

    def begin(self) -> bool:
        """A call begins.

        Returns:
            Whether it is the probe, for the methods that tell how it ended: calls that began before
            the breaker opened may end while the probe is under way.
        """
        probe = self._failures >= self._trip_after
        self._probing = self._probing or probe
        return probe

    def succeed(self) -> None:
        """A call has ended well: closed."""
        self._failures, self._probing = 0, False

    def fail(self, kind: FailureKind, now: float, *, probe: bool) -> None:
        """A call has failed."""
        self.abandon(probe=probe)
        if kind in _BLAMED:
            self._failures += 1
            self._probe_at = now + self._open_s

    def abandon(self, *, probe: bool) -> None:
        """A call was cancelled, which says nothing of the worker."""
        if probe:
            self._probing = False


class Window:
    """At most so much in any 60 seconds: a sliding window, not buckets that allow twice as much."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._spent = 0
        self._entries: deque[list[float]] = deque()  # [time, amount], ascending

    def wait_s(self, now: float, amount: int) -> float:
        """Seconds until so much more fits in. More than the limit is taken for the limit."""
        while self._entries and self._entries[0][0] <= now - _MINUTE_S + _INSTANT_S:
            self._spent -= int(self._entries.popleft()[1])
        over = self._spent + min(amount, self._limit) - self._limit
        for at, spent in self._entries:
            if over <= 0:
                break
            over -= int(spent)
            if over <= 0:
                return max(0.0, at + _MINUTE_S - now)
        return 0.0

    def left(self, now: float) -> int:
        """How much may be spent at once; less than 0 if a guess was too low."""
        self.wait_s(now, 0)
        return self._limit - self._spent

    def spend(self, now: float, amount: int) -> list[float]:
        """Enter an amount.

        Returns:
            The entry, for :meth:`correct`.
        """
        entry = [now, float(amount)]
        self._entries.append(entry)
        self._spent += amount
        return entry

    def correct(self, entry: list[float], amount: int) -> None:
        """Replace a guess by what it was in the end; too late is harmless."""
        if self._entries and entry[0] >= self._entries[0][0]:
            self._spent += amount - int(entry[1])
            entry[1] = float(amount)


class Ledger:
    """What a run has taken so far, held against its budget. Nested runs share their outer one's."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.calls = 0
        self.steps = 0
        self.tokens = 0
        self.dollars = Decimal(0)
        self._bounded = any(
            limit is not None for limit in (budget.dollars, budget.tokens, budget.calls)
        )

    def refusal(self) -> Failure | None:
        """Say why no further call may be made, if so."""
        if not self._bounded:
            return None
        budget = self.budget
        if budget.calls is not None and self.calls >= budget.calls:
            return _used_up(f"{budget.calls} calls", "calls")
        if budget.tokens is not None and self.tokens >= budget.tokens:
            return _used_up(f"{budget.tokens:,} tokens ({self.tokens:,} used)", "tokens")
        if budget.dollars is not None and self.dollars >= budget.dollars:
            return _used_up(f"{budget.dollars} dollars ({self.dollars} spent)", "dollars")
        return None

    def room_for(self, steps: int) -> Failure | None:
        """Enter the steps of a plan; say why it may not be carried out, if so."""
        most = self.budget.steps
        if most is not None and self.steps + steps > most:
            told = f"{most} steps ({self.steps} used, the plan has {steps})"
            return _used_up(told, "steps")
        self.steps += steps
        return None

    def settle(self, usage: Usage | None, dollars: Decimal | None) -> None:
        """Enter what a call took."""
        if usage is not None:
            self.tokens += usage.input_tokens + usage.output_tokens
        if dollars:
            self.dollars += dollars


def _used_up(what: str, setting: str) -> Failure:
    told = f"the run's budget of {what} is used up; raise {setting}"
    return Failure(FailureKind.BUDGET, told)


# --- the calls of one worker -----------------------------------------------------------------


class Clock(Protocol):
    """The time, and a way to let it pass."""

    def now(self) -> float:
        """Seconds from any fixed moment; the same in every event loop."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


class RealClock:
    """The computer's own."""

    now = staticmethod(time.monotonic)
    sleep = staticmethod(anyio.sleep)


class LeftAlone(WorkerError):
    """The worker was not called: it turned out to be left alone when the call's turn had come."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.kind, failure.message, retry_after_s=failure.retry_after_s)


class Guard:
    """Keeps the terms of one worker, for all runs of this process that use its pool.

    Args:
        terms: The terms.
        clock: For waits; time-outs go by the event loop.
        dice: Random numbers from 0 to 1, for jitter.
    """

    def __init__(
        self,
        terms: Terms,
        *,
        clock: Clock = RealClock(),
        dice: Callable[[], float] = random.random,
    ) -> None:
        self.terms = terms
        self._clock = clock
        self._dice = dice
        self._breaker = Breaker(terms.trip_after, terms.open_s)
        self._paused_until = -math.inf
        self._requests = _window(terms.requests_per_minute)
        self._tokens = _window(terms.tokens_per_minute)
        self._queued = bool(terms.concurrency or self._requests or self._tokens)
        self._timed = any((terms.first_text_s, terms.silence_s, terms.call_s))
        self._here: anyio.lowlevel.RunVar[tuple[anyio.CapacityLimiter, anyio.Lock]] = (
            anyio.lowlevel.RunVar(f"guard-{id(self)}")
        )

    def refusal(self, worker: Worker) -> Failure | None:
        """Say why the worker is not called now, if so."""
        now = self._clock.now()
        paused = self._paused_until - now
        if paused > self.terms.retry_total_s:
            told = f"{worker.name} asked to be left alone for another {paused:.0f} s"
            return Failure(FailureKind.RATE_LIMITED, told, paused)
        left = self._breaker.closed_in_s(now)
        if not left:
            return None
        told = f"{worker.name} failed {self.terms.trip_after} times in a row and is left alone"
        return Failure(FailureKind.TRIPPED, f"{told}; next try in {left:.0f} s", left)

    async def attempt(self, worker: Worker, call: Call, on_text: OnText) -> Completion:
        """Call the worker once, when its turn has come.

        Raises:
            LeftAlone: If that has been decided while it waited for its turn.
            WorkerError: If there is no completion.
        """
        if not self._queued and self._clock.now() >= self._paused_until:
            return await self._watched(worker, call, on_text)
        async with self._turn():
            entry = await self._rate(worker, call)
            completion = await self._watched(worker, call, on_text)
            if entry is not None and self._tokens and completion.usage:
                used = completion.usage
                self._tokens.correct(entry, used.input_tokens + used.output_tokens)
            return completion

    def wait_before(self, tries: int, failure: Failure, elapsed_s: float) -> float | None:
        """As :func:`wait_before`, by the worker's terms."""
        return wait_before(tries, failure, elapsed_s, self.terms, self._dice())

    def now(self) -> float:
        """The time by which waits are counted."""
        return self._clock.now()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await self._clock.sleep(seconds)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        if not self.terms.concurrency:
            yield
            return
        async with self._of_this_loop()[0]:
            yield

    async def _rate(self, worker: Worker, call: Call) -> list[float] | None:
        """Wait until the rates allow the call, first come, first served; enter it.

        Raises:
            LeftAlone: If the worker is by then.
        """
        async with self._of_this_loop()[1]:
            written = call.sampling.max_tokens or 0
            guess = written + sum(len(each.content) for each in call.messages) // (
                _CHARACTERS_PER_TOKEN
            )
            while True:
                failure = self.refusal(worker)
                if failure is not None:
                    raise LeftAlone(failure)
                now = self._clock.now()
                wait = max(
                    self._paused_until - now,
                    self._requests.wait_s(now, 1) if self._requests else 0.0,
                    self._tokens.wait_s(now, guess) if self._tokens else 0.0,
                )
                if wait <= 0:
                    break
                await self._clock.sleep(wait)
            if self._requests:
                self._requests.spend(now, 1)
            return self._tokens.spend(now, guess) if self._tokens else None

    def _of_this_loop(self) -> tuple[anyio.CapacityLimiter, anyio.Lock]:
        try:
            return self._here.get()
        except LookupError:
            made = anyio.CapacityLimiter(self.terms.concurrency or math.inf), anyio.Lock()
            self._here.set(made)
            return made

    async def _watched(self, worker: Worker, call: Call, on_text: OnText) -> Completion:
        """Call, and tell the breaker how it went."""
        probe = self._breaker.begin()
        over = False
        try:
            if self._timed:
                completion = await _timed(self.terms, worker, call, on_text)
            else:
                completion = await worker.complete(call, on_text)
            over = True
        except WorkerError as error:
            over = True
            failure = error.failure
            self._breaker.fail(failure.kind, self._clock.now(), probe=probe)
            if failure.kind is FailureKind.RATE_LIMITED and failure.retry_after_s:
                # All calls of this worker wait, not only the one that was told.
                self._paused_until = self._clock.now() + failure.retry_after_s
            raise
        finally:
            if not over:
                self._breaker.abandon(probe=probe)
        self._breaker.succeed()
        return completion


def _window(limit: int | None) -> Window | None:
    return Window(limit) if limit else None


async def _timed(terms: Terms, worker: Worker, call: Call, on_text: OnText) -> Completion:
    """Call within the terms' time-outs."""
    start = anyio.current_time()
    end = start + (terms.call_s or math.inf)
    heard_any = False

    def heard(text: str) -> None:
        nonlocal heard_any
        heard_any = True
        scope.deadline = min(end, anyio.current_time() + (terms.silence_s or math.inf))
        if text:
            on_text(text)

    with anyio.CancelScope(deadline=min(end, start + (terms.first_text_s or math.inf))) as scope:
        return await worker.complete(call, heard)
    if anyio.current_time() >= end:
        what, remedy = f"no whole answer within {terms.call_s:g} s", "call_s"
    elif heard_any:
        what, remedy = f"it fell silent for {terms.silence_s:g} s", "silence_s"
    else:
        what, remedy = f"no text within {terms.first_text_s:g} s", "first_text_s"
    raise WorkerError(FailureKind.TIMEOUT, f"{worker.name}: {what}; raise {remedy}")
