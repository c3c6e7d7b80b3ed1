"""Carrying a plan out: every step in its own task, started the moment its inputs are done."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import anyio
import anyio.lowlevel
import sniffio

from grammar import Plan, Step

from .context import step_messages
from .errors import Failure, FailureKind, WorkerError
from .pool import Pool
from .run import (
    Emit,
    Event,
    PlanParsed,
    PlanSource,
    Record,
    Run,
    RunFinished,
    RunStarted,
    RunState,
    StepDelta,
    StepFinished,
    StepResult,
    StepStarted,
)
from .schedule import Schedule, StepState
from .worker import Call, Completion, OnText, Worker, mended

CallWorker = Callable[[Worker, Call, OnText], Awaitable[Completion]]
"""How a worker is called. Limits, retries and a journal wrap this one function."""


async def call_worker(worker: Worker, call: Call, on_text: OnText) -> Completion:
    """Call a worker once, as it is."""
    return await worker.complete(call, on_text)


def no_listener(event: Event) -> None:
    """Drop an event: the Run records it anyway."""


async def run_plan(
    plan: Plan,
    query: str,
    pool: Pool,
    *,
    emit: Emit = no_listener,
    deadline_s: float | None = None,
    call: CallWorker = call_worker,
) -> Run:
    """Carry out a given plan.

    Args:
        plan: Workers by name or by number in the pool.
        query: What the user asked.
        pool: The workers.
        emit: Gets every event as it happens.
        deadline_s: Seconds after which what is under way is stopped; the run fails, unless it has
            its answer by then.
        call: How workers are called.

    Returns:
        The record, also if steps failed: a dead worker is data, not an exception.

    Raises:
        grammar.PlanError: If the plan names a worker that the pool does not have.
        Exception: What ``emit`` raised. The run is stopped first, and emits nothing any more.
    """
    resolved = plan.resolve(pool.names)

    async def given(session: Session) -> Plan:
        session.emit(PlanParsed(session.now(), resolved, PlanSource.GIVEN))
        return resolved

    return await carry_out(query, pool, given, emit=emit, deadline_s=deadline_s, call=call)


class NoPlan(Exception):
    """Raised by a decider that comes to no plan; its ``failure`` ends the run."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(failure.message)


class Session:
    """One run under way, as a decider sees it: a clock, an outlet for events, a way to call."""

    def __init__(self, query: str, pool: Pool, emit: Emit, call: CallWorker) -> None:
        self.query = mended(query)
        self.pool = pool
        self.record = Record()
        self.scope = anyio.CancelScope()
        """Cancelled by the deadline, or when ``emit`` raises; not by the caller."""
        self.broken: Exception | None = None
        """What ``emit`` raised, if it did."""
        self._emit = emit
        self._call = call
        self._zero = anyio.current_time()

    def now(self) -> float:
        """Seconds from the start of the run."""
        return anyio.current_time() - self._zero

    def emit(self, event: Event) -> None:
        """Record an event and pass it on.

        A listener that raises stops the run. It does so here and not by raising through a worker,
        which would be blamed for it.
        """
        self.record.add(event)
        try:
            self._emit(event)
        except Exception as error:  # raised again by carry_out
            self.broken = error
            self._emit = no_listener
            self.scope.cancel()

    async def call(self, worker: Worker, call: Call, on_text: OnText) -> Completion:
        """Call a worker; its text is mended so that the record can be written.

        Raises:
            WorkerError: If there is no completion, whatever the worker raised.
        """
        try:
            completion = await self._call(worker, call, lambda text: on_text(mended(text)))
            text = mended(completion.text)
            return completion if text == completion.text else replace(completion, text=text)
        except WorkerError:
            raise
        except anyio.get_cancelled_exc_class() as error:
            if _cancelled_from_outside():
                raise
            told = f"{worker.name} was cancelled from inside"
            raise WorkerError(FailureKind.INTERNAL, told) from error
        except Exception as error:  # a worker may be anybody's code: its bugs stay in its call
            told = f"{worker.name} raised {type(error).__name__}: {mended(str(error))}"
            raise WorkerError(FailureKind.INTERNAL, told) from error

    def stopped(self, message: str) -> Failure:
        """Say why something was cancelled."""
        late = self.scope.cancel_called
        return Failure(FailureKind.DEADLINE if late else FailureKind.CANCELLED, message)


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


Decide = Callable[[Session], Awaitable[Plan]]
"""Comes to a plan, telling of it with events that end in PlanParsed; or raises NoPlan."""


async def carry_out(
    query: str,
    pool: Pool,
    decide: Decide,
    *,
    emit: Emit = no_listener,
    deadline_s: float | None = None,
    call: CallWorker = call_worker,
    plan_only: bool = False,
) -> Run:
    """Decide on a plan and run it; the one path that every run takes, whoever decides.

    Args and return value are those of :func:`run_plan`; ``decide`` comes to the plan inside the
    run, so that deadline and record cover it, and with ``plan_only`` the run ends there.

    Raises:
        Exception: What ``decide``, ``emit`` or opening the pool raised.
    """
    session = Session(query, pool, emit, call)
    started = datetime.now(UTC).isoformat(timespec="milliseconds")
    session.emit(RunStarted(session.now(), uuid4().hex, session.query, pool.names, started))
    if deadline_s is not None:
        session.scope.deadline = anyio.current_time() + deadline_s
    state: RunState = RunState.CANCELLED
    failure: Failure | None = None
    try:
        async with pool:
            with session.scope:
                failure = await _decide_and_run(session, decide, plan_only=plan_only)
        if session.scope.cancelled_caught and session.record.run.answer is None:
            failure = session.stopped(f"the deadline of {deadline_s or 0:g} s passed")
        done = RunState.PLANNED if plan_only else RunState.DONE
        state = RunState.FAILED if failure else done
    except Exception as error:
        state = RunState.FAILED
        failure = Failure(FailureKind.INTERNAL, mended(f"{type(error).__name__}: {error}"))
        raise
    finally:  # also when the caller cancels: the record is closed before the exception goes on
        if not plan_only:
            _skip_the_rest(session)
        session.emit(RunFinished(session.now(), state, failure))
    if session.broken is not None:
        raise session.broken
    return session.record.run


async def _decide_and_run(session: Session, decide: Decide, *, plan_only: bool) -> Failure | None:
    try:
        plan = await decide(session)
    except NoPlan as undecided:
        return undecided.failure
    if plan_only:
        return None
    results = await _run_steps(session, plan)
    last = results[plan.final.index]
    if last.state is StepState.DONE:
        return None
    cause = last if last.because_of is None else results[last.because_of]
    assert cause.failure is not None
    where = f"step {cause.index} ({cause.worker})"
    return Failure(cause.failure.kind, f"{where}: {cause.failure.message}")


async def _run_steps(session: Session, plan: Plan) -> dict[int, StepResult]:
    schedule = Schedule(plan)
    results: dict[int, StepResult] = {}
    texts: dict[int, str] = {}

    async with anyio.create_task_group() as group:

        def start_ready() -> None:
            for index in schedule.start():
                group.start_soon(run_step, plan.steps[index])

        async def run_step(step: Step) -> None:
            # Workers that never wait would let a plan run past its deadline.
            await anyio.lowlevel.checkpoint_if_cancelled()
            result = await _run_step(session, plan, step, texts)
            settle(result)
            done = result.state is StepState.DONE
            if done:
                texts[step.index] = result.text
            for index in schedule.finish(step.index, done=done):
                settle(_skipped(plan, index, step.index, session.now()))
            start_ready()

        def settle(result: StepResult) -> None:
            results[result.index] = result
            session.emit(StepFinished(session.now(), result))

        start_ready()
    return results


async def _run_step(session: Session, plan: Plan, step: Step, texts: dict[int, str]) -> StepResult:
    """Call one worker and turn whatever happens into a StepResult."""
    worker = session.pool[str(step.worker)]
    messages = step_messages(plan, step.index, session.query, texts)
    started = session.now()
    session.emit(StepStarted(started, step.index, worker.name, messages))
    pieces: list[str] = []

    def on_text(text: str) -> None:
        pieces.append(text)
        session.emit(StepDelta(session.now(), step.index, text))

    def result(state: StepState, text: str, **rest: Any) -> StepResult:
        return StepResult(
            index=step.index,
            worker=worker.name,
            state=state,
            text=text,
            messages=messages,
            started_s=started,
            seconds=session.now() - started,
            **rest,
        )

    def failed(failure: Failure, **rest: Any) -> StepResult:
        return result(StepState.FAILED, "".join(pieces), failure=failure, **rest)

    try:
        completion = await session.call(worker, Call(messages), on_text)
    except WorkerError as error:
        return failed(error.failure)
    except anyio.get_cancelled_exc_class():
        stopped = failed(session.stopped(f"stopped after {session.now() - started:.1f} s"))
        session.emit(StepFinished(session.now(), stopped))
        raise
    told_of: dict[str, Any] = {
        "usage": completion.usage,
        "finish_reason": completion.finish_reason,
        "model": completion.model,
    }
    if not completion.text.strip():
        return failed(Failure(FailureKind.EMPTY, f"{worker.name} answered with no text"), **told_of)
    return result(StepState.DONE, completion.text, **told_of)


def _skipped(plan: Plan, index: int, because_of: int, now: float) -> StepResult:
    worker = str(plan.steps[index].worker)
    return StepResult(index, worker, StepState.SKIPPED, started_s=now, because_of=because_of)


def _skip_the_rest(session: Session) -> None:
    """After the run was stopped: what never started is skipped, so that every step has a result."""
    run = session.record.run
    if run.plan is None:
        return
    settled = {step.index for step in run.steps}
    late = session.stopped("the run was stopped before it could start")
    for step in run.plan:
        if step.index not in settled:
            now = session.now()
            result = StepResult(
                step.index, str(step.worker), StepState.SKIPPED, started_s=now, failure=late
            )
            session.emit(StepFinished(now, result))
