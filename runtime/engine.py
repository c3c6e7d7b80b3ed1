"""Carrying a plan out: every step in its own task, started the moment its inputs are done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import anyio

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
from .worker import Call, Completion, OnText, Worker

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
        deadline_s: Seconds after which what is under way is stopped and the run fails.
        call: How workers are called.

    Returns:
        The record, also if steps failed: a dead worker is data, not an exception.

    Raises:
        grammar.PlanError: If the plan names a worker that the pool does not have.
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
        self.query = query
        self.pool = pool
        self.call = call
        self.record = Record()
        self._emit = emit
        self._zero = anyio.current_time()

    def now(self) -> float:
        """Seconds from the start of the run."""
        return anyio.current_time() - self._zero

    def emit(self, event: Event) -> None:
        """Record an event and pass it on."""
        self.record.add(event)
        self._emit(event)


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
    """
    session = Session(query, pool, emit, call)
    started = datetime.now(UTC).isoformat(timespec="milliseconds")
    session.emit(RunStarted(session.now(), uuid4().hex, query, pool.names, started))
    state, failure = RunState.CANCELLED, None
    try:
        async with pool:
            with anyio.move_on_after(deadline_s) as scope:
                failure = await _decide_and_run(session, decide, plan_only=plan_only)
            if scope.cancelled_caught:
                failure = Failure(FailureKind.DEADLINE, f"the deadline of {deadline_s:g} s passed")
                _skip_the_rest(session)
        done = RunState.PLANNED if plan_only else RunState.DONE
        state = RunState.FAILED if failure else done
    finally:  # also when the caller cancels: the record is closed before the exception goes on
        session.emit(RunFinished(session.now(), state, failure))
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

    def failed(failure: Failure) -> StepResult:
        return result(StepState.FAILED, "".join(pieces), failure=failure)

    try:
        completion = await session.call(worker, Call(messages), on_text)
    except WorkerError as error:
        return failed(error.failure)
    except anyio.get_cancelled_exc_class():
        message = f"stopped after {session.now() - started:.1f} s"
        stopped = failed(Failure(FailureKind.DEADLINE, message))
        session.emit(StepFinished(session.now(), stopped))
        raise
    except Exception as error:  # a worker may be anybody's code: its bugs stay in its step
        told = f"{worker.name} raised {type(error).__name__}: {error}"
        return failed(Failure(FailureKind.INTERNAL, told))
    if not completion.text.strip():
        return failed(Failure(FailureKind.EMPTY, f"{worker.name} answered with no text"))
    return result(
        StepState.DONE,
        completion.text,
        usage=completion.usage,
        finish_reason=completion.finish_reason,
        model=completion.model,
    )


def _skipped(plan: Plan, index: int, because_of: int, now: float) -> StepResult:
    worker = str(plan.steps[index].worker)
    return StepResult(index, worker, StepState.SKIPPED, started_s=now, because_of=because_of)


def _skip_the_rest(session: Session) -> None:
    """After the deadline: what never started is skipped, so that every step has a result."""
    run = session.record.run
    if run.plan is None:
        return
    settled = {step.index for step in run.steps}
    late = Failure(FailureKind.DEADLINE, "the deadline passed before it could start")
    for step in run.plan:
        if step.index not in settled:
            now = session.now()
            result = StepResult(
                step.index, str(step.worker), StepState.SKIPPED, started_s=now, failure=late
            )
            session.emit(StepFinished(now, result))
