"""Replay: a run carried out again from its own record, offline, to the same record byte for byte.

Worked out anew, by the code that carries every run out: plans from what the Conductor model wrote,
the messages of every step, which steps ran, which were skipped and because of which, rounds, the
runs inside steps, the state, the failure and the answer.

Taken from the record, since nothing could tell: what workers answered and in which order, times,
ids, what a call cost, calls that came to nothing, who stood in for whom, what was reused, and what
a stop from outside (the caller, the deadline, the budget) left of the run, what tools gave.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import fields, replace
from functools import partial
from itertools import zip_longest
from typing import Any

import anyio

from grammar import Limits, Plan, PlanError, parse, parse_revision, single

from .engine import NoPlan, Session, carry_out
from .errors import Failure, FailureKind, PoolError, ReplayError, WorkerError
from .limits import Terms
from .pool import Pool
from .run import (
    Event,
    PlanAttempt,
    PlanAttempted,
    PlanParsed,
    PlanSource,
    Record,
    Round,
    RoundStarted,
    Run,
    RunState,
    StepFinished,
    StepResult,
    StepStarted,
    ToolTurn,
    WorkerPicked,
    episode,
)
from .schedule import StepState
from .tools import ToolResult
from .turns import Role
from .worker import Completion, FinishReason, FunctionWorker, Message, ToolCall

_STOPPED = frozenset({FailureKind.DEADLINE, FailureKind.CANCELLED})
_OUTSIDE = _STOPPED | {FailureKind.BUDGET}
_UNKNOWN = Failure(FailureKind.INTERNAL, "the record does not say how this ended")


def replay(run: Run) -> Run:
    """:func:`areplay` for code that is not async.

    Raises:
        RuntimeError: If called where an event loop runs already.
    """
    return anyio.run(areplay, run)


async def areplay(run: Run) -> Run:
    """Carry a run out again from its own record. No worker is called and nothing is waited for.

    Also a run that failed or was stopped, and one that is not over: as far as it came.

    Returns:
        A run whose JSON is that of ``run``, byte for byte.

    Raises:
        ReplayError: If the record does not follow from itself; it tells the first difference.
    """
    for number, one in enumerate(run.rounds):
        for step in one.steps:
            if step.run is not None:
                await _replay_nested(run, number, step)
    again = await _Replay(run).again()
    for where, was, now in _differences(run, again):
        if was != now:
            raise ReplayError(f"run {run.id}: {where}: {_told(was, now)}")
    if again.to_json() != run.to_json():
        raise ReplayError(f"run {run.id}: its values are equal, but not their JSON")
    return again


async def _replay_nested(run: Run, number: int, step: StepResult) -> None:
    assert step.run is not None
    name, nested = f"{run.id}.{number}.{step.index}", step.run
    try:
        if nested.id != name:
            raise ReplayError(f"run {nested.id}: id: it is the run inside a step, {name}")
        await areplay(nested)
        if step.messages and nested.query != step.messages[-1].content:
            raise ReplayError(f"run {name}: query: it is not what the step was told")
        if step.state is StepState.DONE and nested.answer != step.text:
            raise ReplayError(f"run {name}: answer: it is not the text of the step")
        ended = step.failure is None or step.failure.kind in _OUTSIDE
        if not ended and nested.failure != step.failure:
            raise ReplayError(f"run {name}: failure: it is not that of the step")
    except ReplayError as error:
        raise ReplayError(f"run {run.id}: {_where(run, number, step.index)}: {error}") from error


class _Replay:
    """One run, carried out again."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._stopped = _was_stopped(run)
        self._record = Record()
        self._number = 0
        self._step: ContextVar[int] = ContextVar("step")
        self._turns = _Turns(Round())

    async def again(self) -> Run:
        """The run, with what can't be worked out copied."""
        run = self._run
        taken = [each for each in run.rounds[0].steps if each.reused not in ("", "cache")]
        try:
            carry = partial(
                carry_out,
                run.query,
                self._pool(),
                self._decide,
                emit=self._follow,
                rounds=len(run.rounds) if self._stopped else run.most_rounds,
                plan_only=run.state is RunState.PLANNED,
                taken=taken,
            )
            again = await carry(asked=run.asked, tool_steps=run.tool_steps, run=run.id)
            while results := self._results(again):  # of a run that failed by now, too
                again = await carry(past=self._record, results=results)
        except (PoolError, PlanError) as error:
            raise ReplayError(f"run {run.id}: {error}") from error
        if len(again.rounds) < len(run.rounds):
            told = f"recorded {len(run.rounds)}, but it ends with round {len(again.rounds)}"
            raise ReplayError(f"run {run.id}: rounds: {told}")
        rounds = map(self._with_outcomes, run.rounds, again.rounds)
        state, failure = again.state, _with_time(again.failure, run.failure)
        if self._stopped:
            failure = run.failure
            if run.state in (RunState.RUNNING, RunState.CANCELLED):
                state = run.state
            elif run.state is not RunState.PLANNED:
                state = RunState.FAILED if run.answer is None else RunState.DONE
        return replace(run, state=state, failure=failure, rounds=tuple(rounds))

    def _results(self, again: Run) -> list[ToolResult]:
        """Those on record of the calls that the run waits for."""
        turns = (turn for step in self._run.rounds[self._number].steps for turn in step.turns)
        known = {
            call.id: result
            for turn in turns
            for call, result in zip(turn.calls, turn.results, strict=True)
        }
        texts = ((call.id, known.get(call.id)) for call in again.open_calls)
        return [ToolResult(call, text) for call, text in texts if text is not None]

    def _pool(self) -> Pool:
        workers = [FunctionWorker(name, self._answers()) for name in self._run.workers]
        return Pool(workers, terms=Terms(retries=0, trip_after=None))

    def _answers(self) -> Callable[[Sequence[Message]], Awaitable[Completion]]:
        async def answer(messages: Sequence[Message]) -> Completion:
            index = self._step.get()
            steps = self._run.rounds[self._number].steps
            result = next((each for each in steps if each.index == index), None)
            turn = len(self._record.turns(index))
            if result is not None and turn < len(result.turns):
                return _asking(result.turns[turn])
            if result is not None and result.state is StepState.SUSPENDED:
                return _asking_inside()
            await self._turns.wait(index)
            if result is None or result.state is not StepState.DONE:
                # Without the time that a server asked for: nothing is to wait for it.
                failure = result.failure if result and result.failure else _UNKNOWN
                raise WorkerError(failure.kind, failure.message)
            reason = result.finish_reason or FinishReason.STOP
            return Completion(result.text, reason, result.usage, result.model)

        return answer

    def _follow(self, event: Event) -> None:
        match event:
            case RoundStarted():
                self._number = event.round
            case StepStarted():
                # Told in the task of the step, right before its worker is called.
                self._step.set(event.index)
            case StepFinished():
                self._turns.settle(event.result.index)
            case _:
                pass

    async def _decide(self, session: Session) -> Plan | None:
        run, number = self._run, session.record.number
        self._record = session.record
        if number >= len(run.rounds):
            told = f"it ends with round {number}, but it would go on with another one"
            raise ReplayError(f"run {run.id}: rounds: {told}")
        recorded = run.rounds[number]
        where = f"run {run.id}: {_where(run, number)}"
        for at, attempt in enumerate(recorded.planning):
            self._check_attempt(f"{where}planning attempt {at}", attempt, number)
            session.emit(PlanAttempted(session.now(), attempt))
        if recorded.pick is not None:
            self._check_pick(f"{where}pick", number)
            session.emit(WorkerPicked(session.now(), recorded.pick))
        if recorded.plan is not None:
            plan = self._plan(f"{where}plan", recorded, number)
            source = recorded.source or PlanSource.GIVEN
            self._turns = _Turns(recorded)
            session.emit(PlanParsed(session.now(), plan, source))
            return plan
        if recorded.kept:
            turns = episode(run.rounds[:number])
            if turns.turns and not turns.accepted:
                raise ReplayError(f"{where}kept: no verifier accepted the answer")
            if recorded.planning and self._read(recorded.planning[-1], number) is not None:
                raise ReplayError(f"{where}kept: the Conductor wrote another plan")
            return None
        self._check_undecided(where, recorded)
        raise NoPlan(run.failure or _UNKNOWN)

    def _plan(self, where: str, recorded: Round, number: int) -> Plan:
        """Come to the plan of a round the way that its source says."""
        plan = recorded.plan
        assert plan is not None
        match recorded.source:
            case PlanSource.CONDUCTOR:
                if not recorded.planning:
                    raise ReplayError(f"{where}: nothing was written that it could be read from")
                again = self._read(recorded.planning[-1], number, plan)
            case PlanSource.PICK:
                again = single(str(plan.final.worker), self._run.query)
            case PlanSource.ROUTER:
                if recorded.pick is None:
                    raise ReplayError(f"{where}: the router decided, but no pick is recorded")
                again = single(recorded.pick.worker, self._run.query)
            case _:
                again = plan.resolve(self._run.workers)
        if again != plan:
            raise ReplayError(f"{where}: {_told(str(plan), str(again or 'no plan'))}")
        return plan

    def _read(self, attempt: PlanAttempt, number: int, expected: object = None) -> object:
        """Read a completion: a plan, None (keep the answer), or what is wrong with it.

        The longest plan that was allowed is not in the record. It decides only whether a plan is
        too long; so if the usual limit does not lead to what is expected, another one may.
        """
        text, names = attempt.text, attempt.numbers or self._run.workers
        found = _reading(text, names, number, Limits())
        if expected is None or found == expected:
            return found
        for most in range(1, Limits().steps):
            if _reading(text, names, number, Limits(steps=most)) == expected:
                return expected
        return found

    def _check_attempt(self, where: str, attempt: PlanAttempt, number: int) -> None:
        """Compare what was found wrong with a completion."""
        if attempt.failure is None and attempt.diagnostics:
            again = self._read(attempt, number, attempt.diagnostics)
            if again != attempt.diagnostics:
                told = _told(attempt.diagnostics, again)
                raise ReplayError(f"{where}: diagnostics: {told}")

    def _check_pick(self, where: str, number: int) -> None:
        """Compare a router's decision with what it was drawn from; its states are not in the
        record."""
        pick = self._run.rounds[number].pick
        assert pick is not None
        most = max(pick.probabilities, key=pick.probabilities.__getitem__, default="")
        if pick.worker not in pick.probabilities or not (pick.sampled or pick.worker == most):
            raise ReplayError(f"{where}: {_told(pick.worker, most)}")
        if pick.role is None:
            return
        past = episode(self._run.rounds[:number])
        if past.accepted:
            raise ReplayError(f"{where}: a verifier had accepted the answer")
        likely = max(pick.roles, key=pick.roles.__getitem__, default="")
        drawn = pick.role if pick.sampled else Role(likely)
        role = past.role(drawn)
        if (role, past.suggested is not None) != (pick.role, pick.suggested):
            raise ReplayError(f"{where}: {_told(pick.role, role)}")

    def _check_undecided(self, where: str, recorded: Round) -> None:
        """A round without a plan must say why: a call that failed, or a text that is no plan."""
        if self._stopped:
            return
        last = recorded.planning[-1] if recorded.planning else None
        failure = self._run.failure or _UNKNOWN
        if self._run.router and last is None:
            self._check_unrouted(where, recorded, failure)
            return
        cause, kind = "", failure.kind
        if last is not None and last.failure is not None:
            cause, kind = last.failure.message, last.failure.kind
        elif last is not None:
            if not last.diagnostics:
                raise ReplayError(f"{where}plan: there is none, and nothing says why")
            cause, kind = last.diagnostics[0].message, FailureKind.NO_PLAN
        if kind is not failure.kind or not failure.message.endswith(cause):
            told = _told(failure.message, f"{kind}: {cause}")
            raise ReplayError(f"run {self._run.id}: failure: {told}")

    def _check_unrouted(self, where: str, recorded: Round, failure: Failure) -> None:
        """The router came to no plan: it could not read, or picked a verifier of nothing."""
        verifies = recorded.pick is not None and recorded.pick.role is Role.VERIFIER
        if verifies is not (failure.kind is FailureKind.NO_ANSWER):
            told = _told(failure.kind, FailureKind.NO_ANSWER if verifies else "none")
            raise ReplayError(f"{where}pick: failure: {told}")

    def _with_outcomes(self, recorded: Round, again: Round) -> Round:
        results = {each.index: each for each in recorded.steps}
        steps = [
            _with_outcome(results[each.index], each) if each.index in results else each
            for each in again.steps
            # What a run that was stopped did not come to is not in its record.
            if each.index in results or not self._stopped
        ]
        return replace(again, steps=tuple(steps))


def _asking(turn: ToolTurn) -> Completion:
    """What a worker answered when it asked for tools."""
    calls = (replace(call, id=own) for call, own in zip(turn.calls, turn.own, strict=True))
    reason = FinishReason.TOOL_CALLS
    return Completion(turn.text, reason, turn.usage, turn.model, tuple(calls))


def _asking_inside() -> Completion:
    """What stands for a run inside a step in which somebody asked for tools."""
    asked = (ToolCall("", "", ""),)
    return Completion("", FinishReason.TOOL_CALLS, tool_calls=asked)


class _Turns:
    """Lets the steps of a round end in the order in which they did: of two that failed, the first
    is the reason why others were skipped.

    Times that were made up can't make it wait for ever: no step is before one that it reads. Steps
    that wait for tools, and those that read them, have no turn: they end after results have come,
    whenever that was.
    """

    def __init__(self, recorded: Round) -> None:
        ends = {each.index: each.started_s + each.seconds for each in recorded.steps}
        free = {
            each.index for each in recorded.steps if each.turns or each.state is StepState.SUSPENDED
        }
        late: list[float] = []
        for step in recorded.plan or ():
            end = ends.get(step.index, math.inf)
            late.append(max((end, *(late[earlier] for earlier in step.access))))
            if not free.isdisjoint(step.access):
                free.add(step.index)
        self._order = sorted(set(range(len(late))) - free, key=late.__getitem__)
        self._open = {index: anyio.Event() for index in self._order}
        self._settled: set[int] = set()
        self._next = 0
        self._advance()

    async def wait(self, index: int) -> None:
        """Wait until all that ended before this step have ended."""
        if index in self._open:
            await self._open[index].wait()

    def settle(self, index: int) -> None:
        """A step has ended, or is skipped."""
        self._settled.add(index)
        self._advance()

    def _advance(self) -> None:
        while self._next < len(self._order) and self._order[self._next] in self._settled:
            self._next += 1
        if self._next < len(self._order):
            self._open[self._order[self._next]].set()


def _was_stopped(run: Run) -> bool:
    """Whether something from outside ended the run, or a part of it, before its end."""
    steps = [step for one in run.rounds for step in one.steps]
    return (
        run.state in (RunState.RUNNING, RunState.CANCELLED)
        or any(step.state is StepState.SKIPPED and step.because_of is None for step in steps)
        or any(map(_is_stop, (run.failure, *(step.failure for step in steps))))
    )


def _is_stop(failure: Failure | None) -> bool:
    if failure is None or failure.kind in _STOPPED:
        return failure is not None
    # A listener or a cache that raised is nobody's fault in the run; the engine says it so.
    told = ("stopped after ", "the run was stopped")
    return failure.kind is FailureKind.INTERNAL and failure.message.startswith(told)


def _reading(text: str, workers: tuple[str, ...], number: int, limits: Limits) -> object:
    try:
        return (parse_revision if number else parse)(text, workers=workers, limits=limits)
    except PlanError as error:
        return error.diagnostics


def _with_outcome(recorded: StepResult, again: StepResult) -> StepResult:
    """Copy what can't be worked out."""
    again = replace(again, turns=_with_turns(recorded, again))
    if StepState.SUSPENDED in (recorded.state, again.state):
        return replace(
            again,
            worker=recorded.worker,
            started_s=recorded.started_s,
            seconds=recorded.seconds,
            run=recorded.run,
        )
    if recorded.state is StepState.RUNNING:  # it had come no further when the run was stopped
        return replace(recorded, turns=again.turns)
    unreached = recorded.state is StepState.SKIPPED and recorded.failure is not None
    if unreached and again.state is not StepState.DONE:
        return recorded  # a stop came before it could start
    if recorded.state is not StepState.DONE or again.state is not StepState.DONE:
        worker, text = again.worker, recorded.text if again.messages else again.text
    else:
        worker, text = recorded.worker, again.text
    return replace(
        again,
        worker=worker,
        text=text,
        usage=recorded.usage,
        finish_reason=recorded.finish_reason,
        model=recorded.model,
        started_s=recorded.started_s,
        seconds=recorded.seconds,
        failure=_with_time(again.failure, recorded.failure),
        first_text_s=recorded.first_text_s,
        lost=recorded.lost,
        dollars=recorded.dollars,
        reused=recorded.reused,
        run=recorded.run,
    )


def _with_turns(recorded: StepResult, again: StepResult) -> tuple[ToolTurn, ...]:
    """The turns with tools, with what can't be worked out: who answered, when, for how much."""
    pairs = zip_longest(recorded.turns, again.turns[: len(recorded.turns)])
    return tuple(
        replace(
            now,
            worker=was.worker,
            started_s=was.started_s,
            seconds=was.seconds,
            first_text_s=was.first_text_s,
            lost=was.lost,
            dollars=was.dollars,
            reused=was.reused,
        )
        for was, now in pairs
        if now is not None
    )


def _with_time(again: Failure | None, recorded: Failure | None) -> Failure | None:
    """The failure, with the time that a server asked for."""
    if again is None or recorded is None:
        return again
    return replace(again, retry_after_s=recorded.retry_after_s)


# --- the first difference --------------------------------------------------------------------


def _where(run: Run, number: int, index: int | None = None) -> str:
    """Name a round, where there are several, and a step."""
    round_ = f"round {number + 1}, " if len(run.rounds) > 1 else ""
    return round_ if index is None else f"{round_}step {index}"


def _differences(run: Run, again: Run) -> Iterator[tuple[str, Any, Any]]:
    """Name what is to be equal, with its two values, from the first step to the whole run."""
    for number, (one, other) in enumerate(zip(run.rounds, again.rounds, strict=False)):
        for old, new in zip_longest(one.steps, other.steps):
            if old is None or new is None:
                where = _where(run, number, (old or new).index)
                yield where, old and old.state, new and new.state
                continue
            for field in fields(StepResult):
                where = f"{_where(run, number, old.index)}: {field.name}"
                yield where, getattr(old, field.name), getattr(new, field.name)
        for field in fields(Round):
            where = f"{_where(run, number)}{field.name}"
            yield where, getattr(one, field.name), getattr(other, field.name)
    for field in fields(Run):
        yield field.name, getattr(run, field.name), getattr(again, field.name)


def _told(was: object, now: object) -> str:
    """Two values, from shortly before where they part."""
    old, new = str(was), str(now)
    pairs = enumerate(zip(old, new, strict=False))
    at = next((at for at, (one, other) in pairs if one != other), min(len(old), len(new)))
    start = max(0, at - 20)
    cut = "…" if start else ""
    one, other = (f"{cut}{text[start : at + 40]}" for text in (old, new))
    return f"recorded {one!r}, but what comes of it is {other!r}"
