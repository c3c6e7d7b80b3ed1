"""Carrying plans out: every step starts the moment its inputs are done; all that happens is told.

A run is rounds of deciding on a plan and carrying it out. Whatever calls a worker, a step or a
decider, does so through :meth:`Session.call`, where budget, retries, fallbacks and accounting are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from secrets import token_hex
from typing import Protocol

import anyio
import anyio.lowlevel
import sniffio

from grammar import Plan, Step

from .context import step_messages, turn_messages
from .errors import Failure, FailureKind, WorkerError
from .limits import Budget, Guard, Ledger, LeftAlone
from .pool import Pool
from .run import (
    Attempt,
    CallRetried,
    Emit,
    Event,
    NestedEvent,
    PlanKept,
    PlanParsed,
    PlanSource,
    Record,
    RoundStarted,
    Run,
    RunFinished,
    RunResumed,
    RunStarted,
    RunState,
    StepDelta,
    StepFinished,
    StepResult,
    StepStarted,
    StepSuspended,
    ToolSteps,
    ToolTurn,
    episode,
)
from .schedule import Schedule, StepState
from .tools import ToolResult, outgoing_id
from .turns import Role
from .worker import (
    Call,
    Completion,
    ConductorWorker,
    Message,
    OnText,
    Sampling,
    ToolCall,
    Worker,
    ignore,
    mended,
    undemanding,
)


def no_listener(event: Event) -> None:
    """Drop an event: the Run records it anyway."""


class Cache(Protocol):
    """Completions of earlier calls, for training and evaluation; see :class:`runtime.CallCache`."""

    def get(self, worker: Worker, call: Call) -> Completion | None:
        """The completion of an equal call, if there is one."""

    def put(self, worker: Worker, call: Call, completion: Completion) -> None:
        """Keep a completion."""


async def run_plan(
    plan: Plan,
    query: str,
    pool: Pool,
    *,
    emit: Emit = no_listener,
    budget: Budget = Budget(),
    fallback: Sequence[str] = (),
    cache: Cache | None = None,
    taken: Iterable[StepResult] = (),
    parent: str = "",
) -> Run:
    """Carry out a given plan.

    Args:
        plan: Workers by name or by number in the pool.
        query: What the user asked.
        pool: The workers.
        emit: Gets every event as it happens.
        budget: What the run may take. When its seconds are over, what is under way is stopped; the
            run fails, unless it has its answer by then.
        fallback: Workers that stand in for any that fails, after its own fallbacks.
        cache: Completions to use instead of calls.
        taken: Results of steps of an earlier run, to be taken over instead of calls.
        parent: Id of that run.

    Returns:
        The record, also if steps failed: a dead worker is data, not an exception.

    Raises:
        grammar.PlanError: If the plan names a worker that the pool does not have.
        PoolError: If a fallback is not in the pool.
        Exception: What ``emit`` or the cache raised. The run is stopped first; after ``emit`` has
            raised it is told nothing any more.
    """
    plan = plan.resolve(pool.names)
    return await carry_out(
        query,
        pool,
        given(plan),
        emit=emit,
        budget=budget,
        fallback=fallback,
        cache=cache,
        plan=plan,
        source=PlanSource.GIVEN,
        taken=taken,
        parent=parent,
    )


class NoPlan(Exception):
    """Raised by a decider that comes to no plan; its ``failure`` ends the run."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(failure.message)


def given(plan: Plan, then: Decide | None = None, source: PlanSource = PlanSource.GIVEN) -> Decide:
    """Decide for a plan that is there already.

    Args:
        plan: With the workers' names.
        then: Decides in later rounds; the answer of the first one is kept if None.
        source: Where it is from.
    """

    async def decide(session: Session) -> Plan | None:
        if session.record.number:
            return await then(session) if then else None
        session.emit(PlanParsed(session.now(), plan, source))
        return plan

    return decide


@dataclass(frozen=True, slots=True)
class Answered:
    """A call that came to a completion."""

    completion: Completion
    worker: str
    """Who answered: the one that was asked, or a fallback."""
    dollars: Decimal | None
    """None where tokens or price are unknown."""
    reused: str = ""
    """As :attr:`runtime.StepResult.reused`."""


class Session:
    """One run under way, as a decider sees it: its record so far, an outlet for events, calls."""

    def __init__(
        self,
        query: str,
        pool: Pool,
        emit: Emit,
        *,
        budget: Budget = Budget(),
        fallback: Sequence[str] = (),
        cache: Cache | None = None,
        nested: Decide | None = None,
        past: Record | None = None,
        asked: Call | None = None,
        tool_steps: ToolSteps = "last",
    ) -> None:
        self.query = query
        self.asked = asked
        """As :attr:`runtime.Run.asked`; inside a step, what of it holds there."""
        self.asked_anew = False
        """Whether that has been told since steps were suspended."""
        self.tool_steps = tool_steps
        self.pool = pool
        self.record = past or Record()
        """What has happened so far. Deciders read it, ``emit`` alone writes it."""
        self.ledger = Ledger(budget)
        self.scope = anyio.CancelScope()
        """Cancelled by the deadline, or when ``emit`` or the cache raises; not by the caller."""
        self.broken: Exception | None = None
        """What ``emit`` or the cache raised, if one did."""
        self.depth = 0
        """How many runs this one is inside of."""
        self._fallback = tuple(pool[name].name for name in fallback)
        self._cache = cache
        self._nested = nested
        self._emit = emit
        self._outer: tuple[Session, int] | None = None
        self._zero = time.monotonic() - self.record.seconds

    def inside(self, index: int, query: str) -> Session | Failure:
        """Open the run inside a step, or say why there can be none."""
        most = self.ledger.budget.depth
        if self._nested is None:
            told = "the Conductor can't be a worker here: nobody was named who plans"
            return Failure(FailureKind.EXCLUDED, told)
        if self.depth >= most:
            told = f"runs may be nested {most} deep; raise depth in the budget"
            return Failure(FailureKind.BUDGET, told)
        pool = self.pool
        selves = [worker.name for worker in pool if isinstance(worker, ConductorWorker)]
        if self.depth + 1 >= most:
            if len(selves) == len(pool):
                told = "the pool has no worker but the Conductor itself"
                return Failure(FailureKind.EXCLUDED, told)
            pool = pool.without(*selves)
        past = self.record.nested(index)
        child = Session(query, pool, no_listener, nested=self._nested, past=past)
        child.ledger, child.scope, child.depth = self.ledger, self.scope, self.depth + 1
        child._fallback = tuple(name for name in self._fallback if name in pool.names)
        call = self.call_for(index, ())
        child.asked = None if call == Call(()) else call
        child.tool_steps, child.asked_anew = self.tool_steps, self.asked_anew
        child._cache = self._cache
        child._outer = self, index
        return child

    def call_for(self, index: int, messages: tuple[Message, ...], *, again: bool = False) -> Call:
        """Make the call of a step of the present plan: how the answer is to be is told to the last
        one, unless it thinks or verifies; the seed to all, tools to those that may use them.

        Args:
            index: The step.
            messages: What it sees.
            again: Whether it goes on after a turn with tools. That a tool has to be called, and
                which, holds for the first turn only, unless it has been told anew.
        """
        plan, pick, asked = self.record.plan, self.record.pick, self.asked
        if asked is None:
            return Call(messages)
        if again and not self.asked_anew:
            asked = replace(asked, tool_choice=undemanding(asked.tool_choice))
        answers = plan is None or index == plan.final.index
        if answers and (pick is None or pick.role in (None, Role.SOLVER)):
            return replace(asked, messages=messages)
        call = Call(messages, Sampling(seed=asked.sampling.seed))
        if answers or self.tool_steps == "last":  # who thinks or verifies has none
            return call
        choice = undemanding(asked.tool_choice)
        parallel = asked.parallel_tool_calls
        return replace(call, tools=asked.tools, tool_choice=choice, parallel_tool_calls=parallel)

    @property
    def deadline_s(self) -> float | None:
        """Seconds that the run may take, if there is a limit."""
        return self.ledger.budget.seconds

    @property
    def decide_nested(self) -> Decide:
        """Decides in the runs inside steps."""
        assert self._nested is not None
        return self._nested

    def now(self) -> float:
        """Seconds from the start of the run."""
        return time.monotonic() - self._zero

    def emit(self, event: Event) -> None:
        """Record an event and pass it on.

        A listener that raises stops the run. It does so here and not by raising through a worker,
        which would be blamed for it.
        """
        if self._outer is not None:
            outer, index = self._outer
            outer.emit(NestedEvent(outer.now(), index, event))
            return
        self.record.add(event)
        try:
            self._emit(event)
        except Exception as error:
            self._emit = no_listener
            self._stop(error)

    def _stop(self, error: Exception) -> None:
        """Stop the run since what it relies on has failed; carry_out raises the error again."""
        if self._outer is not None:
            self._outer[0]._stop(error)
            return
        self.broken = self.broken or error
        self.scope.cancel()

    async def call(
        self,
        worker: Worker,
        call: Call,
        on_text: OnText = ignore,
        on_lost: Callable[[Attempt], None] = lambda attempt: None,
        index: int | None = None,
    ) -> Answered:
        """Call a worker on its terms; if it fails for good, its fallbacks.

        Args:
            worker: Who is asked.
            call: What is asked.
            on_text: Gets the pieces of the text; mended, so that the record can be written.
            on_lost: Is told of each call that came to nothing; the text so far is void then.
            index: The step it is for, if it is for one.

        Raises:
            WorkerError: If there is no completion, whatever the workers raised.
        """
        if self._cache is not None and (known := await self._known(worker, call)) is not None:
            on_text(known.text)
            return Answered(known, worker.name, Decimal(0), "cache")
        chain = self._chain(worker)
        told: list[Failure] = []
        for at, one in enumerate(chain, 1):
            following = chain[at] if at < len(chain) else None
            answered = await self._persist(
                one, call, on_text, on_lost, index, following.name if following else None
            )
            if isinstance(answered, Answered):
                if self._cache is not None and one is worker:
                    self._learn(worker, call, answered.completion)
                return answered
            told.append(answered)
        message = "; then ".join(failure.message for failure in told)
        raise WorkerError(told[-1].kind, message, retry_after_s=told[-1].retry_after_s)

    async def _known(self, worker: Worker, call: Call) -> Completion | None:
        assert self._cache is not None
        try:
            return self._cache.get(worker, call)
        except Exception as error:
            self._stop(error)
            await anyio.sleep_forever()  # ends at once, the run being cancelled
            raise AssertionError from error

    def _learn(self, worker: Worker, call: Call, completion: Completion) -> None:
        assert self._cache is not None
        try:
            self._cache.put(worker, call, completion)
        except Exception as error:  # the call was made all the same, and is recorded
            self._stop(error)

    def _chain(self, worker: Worker) -> list[Worker]:
        """The worker and who may stand in for it, each once."""
        pool = self.pool
        own = pool.terms(worker).fallback
        if not own and not self._fallback:
            return [worker]
        names = dict.fromkeys((*own, *self._fallback))
        able = (pool[name] for name in names if name != worker.name and name in pool.names)
        return [worker, *(one for one in able if not isinstance(one, ConductorWorker))]

    async def _persist(
        self,
        worker: Worker,
        call: Call,
        on_text: OnText,
        on_lost: Callable[[Attempt], None],
        index: int | None,
        following: str | None,
    ) -> Answered | Failure:
        """Try one worker as often as its terms say.

        Raises:
            WorkerError: If the budget is used up: no other worker helps then.
        """
        if self.pool.excludes(worker.name):
            return Failure(FailureKind.EXCLUDED, f"{worker.name} may not be used in this run")
        guard = self.pool.guard(worker)
        began, tries = guard.now(), 0
        while True:
            started = time.monotonic()
            made: Answered | Attempt | Failure | None = guard.refusal(worker)
            if made is None:
                made = await self._attempt(guard, worker, call, on_text, on_lost, started)
            if isinstance(made, Answered):
                return made
            if isinstance(made, Attempt):
                on_lost(made)
                attempt, failure, pointless = made, made.failure, False
            else:
                attempt, failure = Attempt(worker.name, made, 0.0, dollars=Decimal(0)), made
                pointless = following is not None
            tries += 1
            wait = None if pointless else guard.wait_before(tries, failure, guard.now() - began)
            if wait is None:
                if following is not None:
                    self.emit(CallRetried(self.now(), index, attempt, following, 0.0))
                return failure
            self.emit(CallRetried(self.now(), index, attempt, worker.name, wait))
            await guard.sleep(wait)

    async def _attempt(
        self,
        guard: Guard,
        worker: Worker,
        call: Call,
        on_text: OnText,
        on_lost: Callable[[Attempt], None],
        started: float,
    ) -> Answered | Attempt | Failure:
        """Make one call and enter it in the ledger; a Failure if it was not made after all."""
        if self.scope.cancel_called:  # by emit a moment ago: nothing is called any more
            await anyio.lowlevel.checkpoint()
        over = self.ledger.refusal()
        if over is not None:
            raise WorkerError(over.kind, over.message)
        self.ledger.calls += 1
        completion: Completion | None = None

        def heard(text: str) -> None:
            if text:
                on_text(mended(text))

        try:
            completion = await guard.attempt(worker, call, heard)
            if completion.tool_calls:
                calls = map(_mended_call, completion.tool_calls) if call.tools else ()
                completion = replace(completion, tool_calls=tuple(calls))
            if completion.text.strip() or completion.tool_calls:
                text, model = mended(completion.text), mended(completion.model)
                if text != completion.text or model != completion.model:
                    completion = replace(completion, text=text, model=model)
                dollars = self._settle(worker, completion)
                return Answered(completion, worker.name, dollars)
            failure = Failure(FailureKind.EMPTY, f"{worker.name} answered with no text")
        except LeftAlone as error:
            self.ledger.calls -= 1
            return error.failure
        except WorkerError as error:
            failure = replace(error.failure, message=mended(error.failure.message))
        except anyio.get_cancelled_exc_class():
            seconds = time.monotonic() - started
            if _cancelled_from_outside():
                stopped = self.stopped(f"stopped after {seconds:.1f} s")
                on_lost(Attempt(worker.name, stopped, seconds))
                raise
            failure = Failure(FailureKind.INTERNAL, f"{worker.name} was cancelled from inside")
        except Exception as error:  # a worker may be anybody's code: its bugs stay in its call
            told = f"{worker.name} raised {type(error).__name__}: {mended(str(error))}"
            failure = Failure(FailureKind.INTERNAL, told)
        dollars = self._settle(worker, completion) if completion is not None else None
        usage = completion.usage if completion is not None else None
        return Attempt(worker.name, failure, time.monotonic() - started, usage, dollars)

    def _settle(self, worker: Worker, completion: Completion) -> Decimal | None:
        dollars = self.pool.cost(worker, completion.usage)
        self.ledger.settle(completion.usage, dollars)
        return dollars

    def stopped(self, message: str) -> Failure:
        """Say why something was cancelled."""
        session = self
        while session._outer is not None:
            session, _ = session._outer
        if session.broken is not None:
            return Failure(FailureKind.INTERNAL, f"{message}: {mended(str(session.broken))}")
        late = self.scope.cancel_called
        return Failure(FailureKind.DEADLINE if late else FailureKind.CANCELLED, message)


def _mended_call(call: ToolCall) -> ToolCall:
    parts = (call.id, call.name, call.arguments, call.type, call.extra)
    return ToolCall(*map(mended, parts))


def _cancelled_from_outside() -> bool:
    """Tell a cancellation that is meant for this task from one that a worker made up.

    A scope round the task shows in its deadline. asyncio can also cancel a task by itself, without
    any scope: Ctrl-C in ``anyio.run``, ``asyncio.wait_for``, ``task.cancel()``.
    """
    if anyio.current_effective_deadline() == -math.inf:
        return True
    if sniffio.current_async_library() != "asyncio":
        return False
    import asyncio  # only where its loop runs; anyio has no word for this

    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


Decide = Callable[[Session], Awaitable[Plan | None]]
"""Comes to a plan, telling of it with events that end in PlanParsed; or raises NoPlan.

In later rounds None keeps the answer so far. What ``session.record.round`` holds already, in a run
that goes on after it was stopped, is not asked for again.
"""


async def carry_out(
    query: str,
    pool: Pool,
    decide: Decide,
    *,
    emit: Emit = no_listener,
    budget: Budget = Budget(),
    rounds: int = 1,
    fallback: Sequence[str] = (),
    cache: Cache | None = None,
    nested: Decide | None = None,
    plan_only: bool = False,
    planner: str = "",
    plan: Plan | None = None,
    source: PlanSource = PlanSource.CONDUCTOR,
    taken: Iterable[StepResult] = (),
    parent: str = "",
    past: Record | None = None,
    asked: Call | None = None,
    router: str = "",
    caller: str = "",
    tool_steps: ToolSteps = "last",
    results: Iterable[ToolResult] = (),
    run: str = "",
) -> Run:
    """Decide on a plan and run it; the one path that every run takes, whoever decides.

    Args and return value are those of :func:`run_plan`, and:
        decide: Comes to the plan inside the run, so that deadline and record cover it.
        rounds: Most rounds: after each but the last the decider sees the answer so far.
        nested: Decides in runs inside steps whose worker is the Conductor itself.
        plan_only: End the run with the first plan.
        planner: Name of the worker that plans, for the record.
        plan: The plan that ``decide`` comes to in the first round, if it is there already, for the
            record: so a run that is stopped before it comes to that can go on.
        source: Where it is from.
        past: The record of this same run, which was stopped and goes on: what is done stays. It
            is written on.
        asked: What ``query`` is the text of, if it was more than a text. Where a run goes on, how
            it does so from now on; its messages stay. As before if None.
        caller: For whom the run is, for the record.
        router: Where the Router is from, if one decides, for the record.
        tool_steps: Which steps may use the tools of ``asked``.
        results: What came of the tools that a suspended run waits for, or of some.
        run: Id of the run, 128 bits in hexadecimal; a new one if empty.

    Raises:
        ToolError: If results don't fit what the run waits for.
        PoolError: If a fallback is not in the pool.
        Exception: What ``decide``, ``emit``, the cache or opening the pool raised.
    """
    taken = tuple(taken)
    session = Session(
        mended(query),
        pool,
        emit,
        budget=budget,
        fallback=fallback,
        cache=cache,
        nested=nested,
        past=past,
        asked=asked,
        tool_steps=tool_steps,
    )
    left_s = budget.seconds
    if past is None or past.started is None:
        begin: Event = RunStarted(
            session.now(),
            run or token_hex(16),
            session.query,
            pool.names,
            datetime.now(UTC).isoformat(timespec="milliseconds"),
            rounds,
            budget,
            mended(pool.source),
            planner,
            parent,
            plan,
            source,
            plan_only,
            tuple(fallback),
            taken,
            asked,
            router,
            caller,
            tool_steps,
        )
    else:
        new = past.missing(results)
        session.tool_steps = past.started.tool_steps
        session.asked = past.asked
        if asked is not None:
            session.asked_anew = True
            messages = past.asked.messages if past.asked is not None else ()
            session.asked = replace(asked, messages=messages)
            asked = None if session.asked == past.asked else replace(asked, messages=())
        if past.suspended and left_s is not None and budget == past.budget:
            left_s = max(0.0, left_s - past.seconds)  # waiting for tools was no part of it
        begin = RunResumed(session.now(), budget, new, asked)
    session.emit(begin)
    if plan is not None and isinstance(begin, RunStarted):  # the journal keeps both in one go
        session.emit(PlanParsed(session.now(), plan, source))
    if session.broken is not None:  # nothing has been called yet
        raise session.broken
    _take_stock(session.ledger, session.record)
    if left_s is not None:
        session.scope.deadline = anyio.current_time() + left_s
    await _conduct(session, decide, rounds, {each.index: each for each in taken}, plan_only)
    if session.broken is not None:
        raise session.broken
    return session.record.run


def _take_stock(ledger: Ledger, record: Record) -> None:
    """Enter what a run took before it was stopped, if it was."""
    for account in record.calls():
        ledger.calls += account.calls
        ledger.settle(account.usage, account.dollars)
    ledger.steps = record.entered(again=True)


async def _conduct(
    session: Session,
    decide: Decide,
    rounds: int,
    taken: Mapping[int, StepResult],
    plan_only: bool = False,
) -> Failure | None:
    """Take an opened run to its last event."""
    state, failure = RunState.CANCELLED, None
    try:
        if session.depth:
            failure = await _rounds(session, decide, rounds, taken, plan_only)
        else:
            async with session.pool:
                with session.scope:
                    failure = await _rounds(session, decide, rounds, taken, plan_only)
            if session.scope.cancelled_caught and session.record.round.answer is None:
                told = f"the deadline of {session.deadline_s or 0:g} s passed"
                failure = session.stopped("the run was stopped" if session.broken else told)
        done = RunState.PLANNED if plan_only else RunState.DONE
        answered = session.record.answer is not None
        state = RunState.FAILED if failure and not answered else done
        if failure is None and session.record.suspended:
            state = RunState.SUSPENDED
    except Exception as error:
        state = RunState.FAILED
        failure = Failure(FailureKind.INTERNAL, mended(f"{type(error).__name__}: {error}"))
        raise
    finally:  # also when the caller cancels: the record is closed before the exception goes on
        if not plan_only and state is not RunState.SUSPENDED:
            _skip_the_rest(session)
        session.emit(RunFinished(session.now(), state, failure))
    return failure


async def _rounds(
    session: Session,
    decide: Decide,
    rounds: int,
    taken: Mapping[int, StepResult],
    plan_only: bool,
) -> Failure | None:
    record = session.record
    while True:
        plan = record.plan
        if plan is None and not record.kept:
            try:
                plan = await decide(session)
            except NoPlan as undecided:
                return undecided.failure
            if plan is None:
                session.emit(PlanKept(session.now()))
        if plan is None or plan_only:
            return None
        failure = session.ledger.room_for(len(plan))
        if failure is None:
            failure = await _run_steps(session, plan, taken)
        if record.suspended and failure is None:
            return None
        if failure is not None or record.number + 1 >= rounds:
            return failure or _unanswered(record)
        taken = {}
        session.emit(RoundStarted(session.now(), record.number + 1))


def _unanswered(record: Record) -> Failure | None:
    """Say why there is no answer although every step is done: no turn was a solver's."""
    if record.answer is not None:
        return None
    turns = "the only turn" if record.number == 0 else f"all {record.number + 1} turns"
    told = f"{turns} went to thinkers: there is no answer; train the router on, or allow more turns"
    return Failure(FailureKind.NO_ANSWER, told)


async def _run_steps(
    session: Session, plan: Plan, taken: Mapping[int, StepResult]
) -> Failure | None:
    schedule = Schedule(plan)
    results: dict[int, StepResult] = {}
    if session.record.settled:
        steps = session.record.round.steps
        results = {each.index: each for each in steps if each.state in _FINAL}
    previous = session.record.previous

    def settle(result: StepResult) -> None:
        results[result.index] = result
        session.emit(StepFinished(session.now(), result))

    for index, result in taken.items():
        if index not in results:
            settle(result)
    texts = {
        index: result.text for index, result in results.items() if result.state is StepState.DONE
    }
    # A run inside a step is entered all the same: some of its own steps may go on.
    waiting = {each for each in session.record.suspended if session.record.turns(each)}
    ready = [each for each in _past(schedule, texts) if each not in waiting]

    # One step alone needs no tasks; they are a fifth of what a run of one costs.
    async with anyio.create_task_group() if len(plan) > 1 else nullcontext() as group:

        async def work(index: int) -> None:
            """Run a step, and in the same task one that it made ready: a chain is one task.

            A context variable that a worker sets therefore stays set for that next step.
            """
            while True:
                # Workers that never wait would let a plan run past its deadline.
                await anyio.lowlevel.checkpoint()
                result = await _run_step(session, plan, plan.steps[index], texts, previous)
                if result is None:  # suspended; to the schedule it is running on
                    return
                settle(result)
                done = result.state is StepState.DONE
                if done:
                    texts[index] = result.text
                for skipped in schedule.finish(index, done=done):
                    settle(_skipped(plan, skipped, index, session.now()))
                ready = schedule.start()
                if not ready:
                    return
                index = ready[0]
                for another in ready[1:]:
                    assert group is not None
                    group.start_soon(work, another)

        for index in ready[1:]:
            assert group is not None
            group.start_soon(work, index)
        if ready:
            await work(ready[0])

    last = results.get(plan.final.index)
    if last is None:  # steps wait for tools; or they were stopped, and this task is about to be
        await anyio.lowlevel.checkpoint()
        return None
    if last.state is StepState.DONE:
        return None
    cause = last if last.because_of is None else results[last.because_of]
    assert cause.failure is not None
    where = f"step {cause.index} ({cause.worker})"
    failure = cause.failure
    return Failure(failure.kind, f"{where}: {failure.message}", failure.retry_after_s)


_MOST_BROKEN_OFF = 2**20
"""Most characters that are kept of a text that was not finished: more than any model writes. One
that writes without end is stopped later, and would fill journals."""
_FINAL = (StepState.DONE, StepState.FAILED, StepState.SKIPPED)


def _past(schedule: Schedule, texts: Mapping[int, str]) -> list[int]:
    """Take the schedule past the steps that are done already; returns those that may start."""
    ready: list[int] = []
    while started := schedule.start():
        for index in started:
            if index in texts:
                schedule.finish(index, done=True)
            else:
                ready.append(index)
    return ready


async def _run_step(
    session: Session,
    plan: Plan,
    step: Step,
    texts: Mapping[int, str],
    previous: str | None,
) -> StepResult | None:
    """Call one worker and turn whatever happens into a StepResult; None if it asks for tools."""
    turns = session.record.turns(step.index)
    worker = session.pool[turns[-1].worker if turns else str(step.worker)]
    pick = session.record.pick
    if pick is not None and pick.role is not None:
        past = episode(session.record.rounds[:-1])
        messages = turn_messages(pick.role, session.query, past)
    else:
        messages = step_messages(
            plan,
            step.index,
            session.query,
            texts,
            previous=previous,
            conversation=session.asked.messages if session.asked else (),
            turns={earlier: session.record.turns(earlier) for earlier in step.access},
        )
    seen = (*messages, *(message for turn in turns for message in turn.messages))
    started = session.now()
    session.emit(StepStarted(started, step.index, worker.name, seen))
    pieces: list[str] = []
    left = _MOST_BROKEN_OFF
    lost: list[Attempt] = []
    first_text_s: float | None = None

    def on_text(text: str) -> None:
        nonlocal first_text_s, left
        now = session.now()
        if first_text_s is None:
            first_text_s = now - started
        if left:
            pieces.append(text[:left])
            left -= len(pieces[-1])
        session.emit(StepDelta(now, step.index, text))

    def on_lost(attempt: Attempt) -> None:
        nonlocal first_text_s, left
        lost.append(attempt)
        if attempt.failure.kind not in (FailureKind.DEADLINE, FailureKind.CANCELLED):
            broken_off[:] = pieces
            pieces.clear()
            left = _MOST_BROKEN_OFF
            first_text_s = None

    broken_off: list[str] = []

    def failed(failure: Failure) -> StepResult:
        return StepResult(
            step.index,
            worker.name,
            StepState.FAILED,
            text="".join(pieces or broken_off),
            messages=messages,
            started_s=started,
            seconds=session.now() - started,
            failure=failure,
            first_text_s=first_text_s,
            lost=tuple(lost),
        )

    try:
        if isinstance(worker, ConductorWorker):
            return await _run_nested(session, step, messages, failed)
        call = session.call_for(step.index, seen, again=bool(turns))
        answered = await session.call(worker, call, on_text, on_lost, step.index)
    except WorkerError as error:
        return failed(error.failure)
    except anyio.get_cancelled_exc_class():
        stopped = failed(session.stopped(f"stopped after {session.now() - started:.1f} s"))
        session.emit(StepFinished(session.now(), stopped))
        raise
    completion = answered.completion
    if completion.tool_calls:
        calls, own = _named(session, step.index, turns, completion.tool_calls)
        turn = ToolTurn(
            answered.worker,
            calls,
            own,
            (None,) * len(calls),
            completion.text,
            completion.usage,
            completion.model,
            started,
            session.now() - started,
            first_text_s,
            tuple(lost),
            answered.dollars,
            answered.reused,
        )
        told = () if turns else messages
        session.emit(StepSuspended(session.now(), step.index, told, turn))
        return None
    return StepResult(
        step.index,
        answered.worker,
        StepState.DONE,
        completion.text,
        messages,
        completion.usage,
        completion.finish_reason,
        completion.model,
        started,
        session.now() - started,
        None,
        None,
        first_text_s,
        tuple(lost),
        answered.dollars,
        answered.reused,
    )


def _named(
    session: Session, index: int, turns: Sequence[ToolTurn], calls: Sequence[ToolCall]
) -> tuple[tuple[ToolCall, ...], tuple[str, ...]]:
    """Give calls the ids under which they go out.

    Returns:
        The calls; and the ids that the worker knows them by: its own, as far as it gave any that
        tell its calls apart.
    """
    record = session.record
    assert record.started is not None
    taken = {own for turn in turns for own in turn.own}
    first = sum(len(turn.calls) for turn in turns)
    named: list[ToolCall] = []
    known: list[str] = []
    for number, call in enumerate(calls, first):
        outgoing = outgoing_id(record.started.run, record.number, index, number)
        own = outgoing if not call.id or call.id in taken else call.id
        taken.add(own)
        known.append(own)
        named.append(replace(call, id=outgoing))
    return tuple(named), tuple(known)


async def _run_nested(
    session: Session,
    step: Step,
    messages: tuple[Message, ...],
    failed: Callable[[Failure], StepResult],
) -> StepResult | None:
    """Let the Conductor itself do a step: a run inside the run; None if tools are asked for."""
    child = session.inside(step.index, messages[-1].content)
    if isinstance(child, Failure):
        return failed(child)
    past = child.record.started
    if past is None:
        outer = session.record.started
        assert outer is not None
        name = f"{outer.run}.{session.record.number}.{step.index}"
        child.emit(
            RunStarted(
                child.now(),
                name,
                child.query,
                child.pool.names,
                datetime.now(UTC).isoformat(timespec="milliseconds"),
                budget=child.ledger.budget,
                pool=mended(child.pool.source),
                planner=outer.planner,
                asked=child.asked,
                tool_steps=child.tool_steps,
            )
        )
    else:
        child.emit(RunResumed(child.now(), child.ledger.budget))
    failure = await _conduct(child, child.decide_nested, 1, {})
    if failure is None and child.record.suspended:
        session.emit(StepSuspended(session.now(), step.index, messages))
        return None
    answer = child.record.answer
    if answer is None:
        assert failure is not None
        return failed(failure)
    blank = failed(Failure(FailureKind.INTERNAL, ""))
    return replace(blank, state=StepState.DONE, text=answer, failure=None)


def _skipped(plan: Plan, index: int, because_of: int, now: float) -> StepResult:
    worker = str(plan.steps[index].worker)
    return StepResult(index, worker, StepState.SKIPPED, started_s=now, because_of=because_of)


def _skip_the_rest(session: Session) -> None:
    """After the run was stopped: what never started is skipped, so that every step has a result."""
    plan, settled = session.record.plan, session.record.settled
    if plan is None or len(settled) == len(plan):
        return
    late = session.stopped("the run was stopped before it could start")
    suspended = session.record.suspended
    for step in plan:
        if step.index not in settled and step.index not in suspended:
            now = session.now()
            result = StepResult(
                step.index, str(step.worker), StepState.SKIPPED, started_s=now, failure=late
            )
            session.emit(StepFinished(now, result))
