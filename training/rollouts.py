"""Rollouts of a trained Conductor: completions are read, carried out on the real runtime, graded.

All of a batch go at the same time; what is a worker's turn is decided by the pool's own terms. With
a cache no worker is asked the same twice, and completions that are the same plan are carried out
once. What fails for technical reasons is carried out again, then masked.

Everything here is async and starts no event loop: trainers call rewards on their own.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TypeVar

import anyio
import anyio.to_thread

from grammar import Limits, Plan, PlanError, parse, parse_revision
from runtime import (
    Budget,
    Cache,
    Call,
    Failure,
    FailureKind,
    PlanParsed,
    PlanSource,
    Pool,
    PoolError,
    Run,
    Session,
    StepResult,
    StepState,
    carry_out,
    given,
)

from .graders import Exact, grade
from .rewards import Outcome, Reward, Weights, kept, reward_of
from .tasks import Task
from .trials import OWN_FAULT

Asked = tuple[Task, Sequence[int], str]
"""A task, the numbers that were offered (positions in the roster), and a completion."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How completions are read and carried out."""

    most_steps: int = 5
    """Longest valid plan."""
    retries: int = 1
    """How often a run is tried again that failed for technical reasons which may pass."""
    patience_s: float = 30.0
    """Longest wait before that, if the failure tells how long to wait."""
    weights: Weights = Weights()


@dataclass(frozen=True, slots=True)
class Rollout:
    """A completion and what it came to."""

    task: Task
    offered: tuple[int, ...]
    text: str
    """The completion."""
    plan: Plan | None = None
    """With the workers' names; None if the text is none, or keeps the first answer."""
    run: Run | None = None
    """What was carried out; the same for equal plans. That of the first round if it was kept."""
    outcome: Outcome = Outcome(valid=False)
    reward: Reward | None = None
    """None: it failed for technical reasons, and is to be masked."""
    failure: Failure | None = None
    """What is wrong with the text, or why the plan came to no answer."""
    kept: bool = False
    """Whether it is a second round that keeps the first one's answer."""

    @property
    def total(self) -> float | None:
        """The reward as a number; None if it is masked."""
        return None if self.reward is None else self.reward.total


@dataclass(frozen=True, slots=True)
class Summary:
    """What a batch took."""

    completions: int = 0
    valid: int = 0
    masked: int = 0
    runs: int = 0
    """Plans carried out: equal ones count once if there is a cache."""
    retried: int = 0
    """Runs tried again."""
    calls: int = 0
    """Completions that workers were asked for."""
    cached: int = 0
    """Completions that the cache had."""
    seconds: float = 0.0
    """From the texts to the rewards, grading included."""

    def share(self, alone_s: float) -> float:
        """Throughput as a share of what the workers alone can do; 1 if plans cost nothing.

        Args:
            alone_s: Seconds of the same calls without plans, see :meth:`Rollouts.alone`.
        """
        return alone_s / self.seconds if self.seconds else 0.0


@dataclass(slots=True)
class _Carried:
    run: Run
    score: float | None
    retried: int
    parts: float = 0.0


class Rollouts:
    """Carries out what a Conductor in training writes.

    Args:
        pool: The workers.
        roster: Names of workers, in the order of the numbers in plans.
        cache: Completions to use instead of calls. A worker that samples says the same again then.
        budget: What each run may take. A deadline counts the time in which others have their
            turns, and a plan that passes it is wrong: bound calls or tokens rather.
        settings: How completions are read and carried out.

    Raises:
        PoolError: If somebody of the roster is not in the pool.
    """

    def __init__(
        self,
        pool: Pool,
        roster: Sequence[str],
        *,
        cache: Cache | None = None,
        budget: Budget = Budget(),
        settings: Settings = Settings(),
    ) -> None:
        for name in roster:
            pool[name]
        if not roster:
            raise PoolError("the roster is empty; name the workers that the Conductor may number")
        self._pool, self._roster, self._cache = pool, tuple(roster), cache
        self._budget, self._settings = budget, settings
        self.summary = Summary()
        """Of the last batch."""

    async def play(self, asked: Sequence[Asked], *, tokens: Sequence[int] = ()) -> list[Rollout]:
        """Read, carry out and grade completions, all at the same time.

        Args:
            asked: The completions. One that names a worker who was not offered is no valid plan.
            tokens: How long each is, for the length term of the reward.

        Returns:
            A rollout each, in the same order.

        Raises:
            ValueError: If a number is offered that the roster does not have.
            JournalError: If the cache can't be read or written.
        """
        rollouts = [self._read(each, parse) for each in asked]
        return await self._all(rollouts, [None] * len(rollouts), tokens)

    async def play_again(
        self, firsts: Sequence[Rollout], texts: Sequence[str], *, tokens: Sequence[int] = ()
    ) -> list[Rollout]:
        """The same for second rounds, each written in view of a first one's answer.

        Three empty lists keep that answer, which is then as right as it was. Steps that read all
        before them see it. A new plan that comes to nothing is wrong, though a user would be given
        the first answer.

        Args:
            firsts: The first rounds.
            texts: A completion each.
            tokens: As in :meth:`play`.

        Raises:
            ValueError: If one is no first round with an answer, or there are more texts or fewer.
            JournalError: If the cache can't be read or written.
        """
        for at, first in enumerate(firsts):
            run = first.run
            if first.plan is None or run is None or run.answer is None or len(run.rounds) > 1:
                told = "is no first round with an answer, so no second follows; leave it out"
                raise ValueError(f"rollout {at} (task {first.task.id}) {told}")
        rollouts = [
            self._read((first.task, first.offered, text), parse_revision)
            for first, text in zip(firsts, texts, strict=True)
        ]
        return await self._all(rollouts, firsts, tokens)

    async def alone(self, rollouts: Iterable[Rollout]) -> float:
        """Measure what the workers alone can do: seconds of a batch's calls, made anew.

        A call is made as soon as those are answered that its step reads, with the messages of then,
        on the pool's terms: without plans to read, runs, cache and grading. What the cache had is
        not called here either, nor is what failed.

        The calls come in the order in which plans make them, so that models in this process, which
        decode in batches, get the batches that they got. Wall time: other work on the machine
        between both measurements is in their ratio.

        Raises:
            WorkerError: If one fails.
        """
        runs = {
            each.run.id: each.run for each in rollouts if each.run is not None and not each.kept
        }

        async def one(run: Run) -> None:
            plan = run.rounds[-1].plan
            assert plan is not None
            steps = {step.index: step for step in _asked_for(run)}
            over = {index: anyio.Event() for index in steps}

            async def call(index: int) -> None:
                for earlier in plan.steps[index].access:
                    if earlier in over:
                        await over[earlier].wait()
                worker = self._pool[steps[index].worker]
                made = Call(steps[index].messages)
                await self._pool.guard(worker).attempt(worker, made, _unheard)
                over[index].set()

            await _at_once(call, list(steps))

        async with self._pool:
            began = time.perf_counter()
            await _at_once(one, list(runs.values()))
            return time.perf_counter() - began

    def _read(self, asked: Asked, read: Callable[..., Plan | None]) -> Rollout:
        task, offered, text = asked
        wrong = [number for number in offered if not 0 <= number < len(self._roster)]
        if wrong:
            most = len(self._roster) - 1
            raise ValueError(f"worker {wrong[0]} is offered; the roster has 0 to {most}")
        # An empty name is a number that nobody has: those that were not offered.
        names = [name if at in offered else "" for at, name in enumerate(self._roster)]
        blank = Rollout(task, tuple(offered), text)
        try:
            plan = read(text, workers=names, limits=Limits(steps=self._settings.most_steps))
        except PlanError as error:
            return replace(blank, failure=Failure(FailureKind.NO_PLAN, str(error.diagnostics[0])))
        return replace(blank, plan=plan, kept=plan is None)

    async def _all(
        self,
        rollouts: Sequence[Rollout],
        firsts: Sequence[Rollout | None],
        tokens: Sequence[int],
    ) -> list[Rollout]:
        if tokens and len(tokens) != len(rollouts):
            raise ValueError(
                f"{len(tokens)} lengths for {len(rollouts)} completions; give one each"
            )
        keys: list[object] = []
        for at, (rollout, first) in enumerate(zip(rollouts, firsts, strict=True)):
            said = first.run.answer if first is not None and first.run is not None else None
            same = (rollout.task.id, rollout.plan, said)
            keys.append(at if self._cache is None else same)
        wanted = {
            key: (rollout, first)
            for key, rollout, first in zip(keys, rollouts, firsts, strict=True)
            if rollout.plan is not None
        }
        carried: dict[object, _Carried] = {}

        async def one(key: object) -> None:
            carried[key] = await self._carry(*wanted[key])

        began = time.perf_counter()
        async with self._pool:
            await _at_once(one, list(wanted))
        done = [
            self._rewarded(rollout, first, carried.get(key), tokens[at] if tokens else 0)
            for at, (key, rollout, first) in enumerate(zip(keys, rollouts, firsts, strict=True))
        ]
        steps = [step for each in carried.values() for step in each.run.rounds[-1].steps]
        finished = [step for step in steps if step.state is StepState.DONE]
        self.summary = Summary(
            len(done),
            sum(each.outcome.valid for each in done),
            sum(each.reward is None for each in done),
            len(carried),
            sum(each.retried for each in carried.values()),
            sum(not step.reused for step in finished) + sum(len(step.lost) for step in steps),
            sum(bool(step.reused) for step in finished),
            time.perf_counter() - began,
        )
        return done

    async def _carry(self, rollout: Rollout, first: Rollout | None) -> _Carried:
        """Carry out a plan, again if that may help, and grade what it came to."""
        retried = 0
        while True:
            run = await self._run(rollout, first)
            answer, failure = run.rounds[-1].answer, run.failure
            if answer is not None:
                # In a thread: code is run in a sandbox, and that takes its time.
                score = await anyio.to_thread.run_sync(
                    grade, rollout.task.grader, answer, rollout.task.question
                )
                return _Carried(run, score, retried, _answered(rollout.task, run))
            if failure is not None and failure.kind in OWN_FAULT:
                return _Carried(run, 0.0, retried, _answered(rollout.task, run))
            wait = (failure.retry_after_s if failure is not None else None) or 0.0
            passing = failure is not None and failure.kind.transient
            if not passing or retried >= self._settings.retries or wait > self._settings.patience_s:
                return _Carried(run, None, retried)
            retried += 1
            await anyio.sleep(wait)

    async def _run(self, rollout: Rollout, first: Rollout | None) -> Run:
        plan = rollout.plan
        assert plan is not None
        decide, begun = given(plan), plan
        taken: list[StepResult] = []
        if first is not None:
            assert first.run is not None
            assert first.plan is not None
            begun, before = first.plan, first.run
            done = (step for step in before.steps if step.state is StepState.DONE)
            taken = [replace(step, reused=before.id, lost=(), run=None) for step in done]

            async def second(session: Session) -> Plan:
                session.emit(PlanParsed(session.now(), plan, PlanSource.GIVEN))
                return plan

            decide = given(begun, second)
        return await carry_out(
            rollout.task.question,
            self._pool,
            decide,
            budget=self._budget,
            rounds=1 if first is None else 2,
            cache=self._cache,
            plan=begun,
            source=PlanSource.GIVEN,
            taken=taken,
        )

    def _rewarded(
        self, rollout: Rollout, first: Rollout | None, carried: _Carried | None, tokens: int
    ) -> Rollout:
        if rollout.kept and first is not None:
            outcome = kept(first.outcome, tokens)
            rollout = replace(rollout, run=first.run)
        elif carried is None:
            outcome = Outcome(valid=False, tokens=tokens)
        else:
            dollars = self._dollars(carried.run)
            outcome = Outcome(True, carried.score, dollars, tokens, carried.parts)
            rollout = replace(rollout, run=carried.run, failure=carried.run.failure)
        earned = reward_of(outcome, self._settings.weights)
        return replace(rollout, outcome=outcome, reward=earned)

    def _dollars(self, run: Run) -> Decimal:
        """What the last round cost, cached completions as if they had been asked for."""
        total = Decimal(0)
        for step in run.rounds[-1].steps:
            cost = step.dollars
            if step.reused:
                cost = self._pool.cost(self._pool[step.worker], step.usage)
            total += cost or Decimal(0)
        return total


def _answered(task: Task, run: Run) -> float:
    """Share of a task's parts before the last that a step before the last was right about."""
    earlier = task.parts[:-1]
    said = [step.text for step in run.rounds[-1].steps[:-1] if step.state is StepState.DONE]
    right = [
        any(grade(Exact((part.answer,)), text, part.subtask) == 1 for text in said)
        for part in earlier
    ]
    return sum(right) / len(right) if right else 0.0


def _asked_for(run: Run) -> Iterable[StepResult]:
    """The steps of the last round that workers were asked for and that came to something."""
    steps = run.rounds[-1].steps
    return (step for step in steps if step.state is StepState.DONE and not step.reused)


_Item = TypeVar("_Item")


def _unheard(text: str) -> None:
    pass


async def _at_once(work: Callable[[_Item], Awaitable[None]], items: Sequence[_Item]) -> None:
    """Do the work for all items at the same time; the first error ends it and is raised."""
    errors: list[Exception] = []
    async with anyio.create_task_group() as group:

        async def one(item: _Item) -> None:
            try:
                await work(item)
            except Exception as error:
                errors.append(error)
                group.cancel_scope.cancel()

        for item in items:
            group.start_soon(one, item)
    if errors:
        raise errors[0]
