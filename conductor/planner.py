"""The Planner: query -> Conductor model -> text -> Plan, with one round to repair; and, in later
rounds, the answer so far -> a new plan, or the word to keep it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import anyio

from grammar import Limits, Plan, PlanError, decoding_grammar, parse, parse_revision
from runtime import (
    Answered,
    Attempt,
    Call,
    Failure,
    FailureKind,
    Message,
    NoPlan,
    PlanAttempt,
    PlanAttempted,
    PlanDelta,
    PlannerSettings,
    PlanParsed,
    PlanSource,
    PlanStarted,
    Session,
    Worker,
    WorkerError,
)

from .prompt import brief_messages, plan_messages, plan_text, repair_messages, revision_messages

_ATTEMPTS = 2


@dataclass(frozen=True)
class Planner:
    """Lets a Conductor model write the plan.

    A model in this process decodes under the grammar of the pool at hand, so that what it writes
    is a plan whatever its weights are. Any other is asked, and once told what is wrong.
    """

    worker: Worker
    """The Conductor model: any worker."""
    settings: PlannerSettings = PlannerSettings()
    constrained: bool = True
    """Whether to decode under the grammar where the worker can."""

    def shortened(self, steps: int | None) -> Planner:
        """The same one, asking for plans of at most so many steps; itself if it does anyway."""
        settings = self.settings
        if steps is None or steps >= settings.most_steps:
            return self
        least = min(settings.least_steps, steps)
        return replace(self, settings=replace(settings, most_steps=steps, least_steps=least))

    async def decide(self, session: Session) -> Plan | None:
        """Come to a plan for the session's query, telling of it in its events.

        In later rounds the model sees the answer so far (see :func:`revision_messages`). What it
        has written in this round already, before the run was stopped, is not asked for again.

        Returns:
            The plan; None to keep the answer.

        Raises:
            NoPlan: If the model can't be reached, or writes no valid plan in two attempts.
        """
        written = [each for each in session.record.round.planning if each.failure is None]
        asked = self._asked(session)
        messages = asked
        for number in range(_ATTEMPTS):
            new = number == len(written)
            attempt = await self._write(session, messages, number) if new else written[number]
            plan, error = None, None
            try:
                plan = self._read(session, attempt.text)
            except PlanError as wrong:
                error = wrong
                attempt = replace(attempt, diagnostics=error.diagnostics)
            if new:
                written.append(attempt)
                session.emit(PlanAttempted(session.now(), attempt))
            if error is None:
                if plan is not None:
                    session.emit(PlanParsed(session.now(), plan, PlanSource.CONDUCTOR))
                return plan
            messages = repair_messages(asked, attempt.text, error)
        problem = written[-1].diagnostics[0].message
        message = f"{self.worker.name} wrote no valid plan in {_ATTEMPTS} attempts: {problem}"
        raise NoPlan(Failure(FailureKind.NO_PLAN, message))

    def _asked(self, session: Session) -> tuple[Message, ...]:
        settings = self.settings
        names = self._names(session)
        if settings.roster:
            asked = brief_messages(session.query, _offered(names))
        else:
            asked = plan_messages(
                session.query,
                len(names),
                most_steps=settings.most_steps,
                least_steps=settings.least_steps,
                cards=[worker.card for worker in session.pool] if settings.cards else [],
            )
        for earlier in session.record.rounds[:-1]:
            if earlier.plan is not None and earlier.answer is not None:
                wrote = earlier.planning[-1].text if earlier.planning else None
                told = wrote or plan_text(earlier.plan, names)
                asked = revision_messages(asked, told, earlier.answer)
        return asked

    def _read(self, session: Session, text: str) -> Plan | None:
        read = parse_revision if session.record.number else parse
        limits = Limits(steps=self.settings.most_steps)
        return read(text, workers=self._names(session), limits=limits)

    def _names(self, session: Session) -> tuple[str, ...]:
        """Whom each number stands for; empty where the roster has somebody who is not there.

        Raises:
            NoPlan: If nobody of the roster is there.
        """
        pool = session.pool.names
        names = tuple(name if name in pool else "" for name in self.settings.roster) or pool
        if not any(names):
            known = ", ".join(self.settings.roster)
            told = f"{self.worker.name} knows none of this pool's workers, only {known}"
            raise NoPlan(Failure(FailureKind.NO_PLAN, f"{told}; name them in planner.roster"))
        return names

    async def _write(
        self, session: Session, messages: tuple[Message, ...], number: int
    ) -> PlanAttempt:
        """Have the next attempt written.

        Raises:
            NoPlan: If there is no completion; the event of the attempt has been told.
        """
        settings, name = self.settings, self.worker.name
        grammar = None
        if self.constrained and settings.constrained and self.worker.constrains:
            grammar = decoding_grammar(
                _offered(self._names(session)),
                most_steps=settings.most_steps,
                least_steps=settings.least_steps,
                subtask_characters=settings.subtask_characters,
                keep=session.record.number > 0,
            )
        sampling = settings.sampling
        if session.asked is not None and session.asked.sampling.seed is not None:
            sampling = replace(sampling, seed=session.asked.sampling.seed)
        started = session.now()
        session.emit(PlanStarted(started, name, number))
        lost: list[Attempt] = []
        failure: Failure | None = None
        answered: Answered | None = None
        try:
            answered = await session.call(
                self.worker,
                Call(messages, sampling, grammar),
                lambda text: session.emit(PlanDelta(session.now(), text)),
                lost.append,
            )
        except WorkerError as error:
            failure = error.failure
        except anyio.get_cancelled_exc_class():
            stopped = session.stopped(f"stopped after {session.now() - started:.1f} s")
            self._give_up(session, stopped, started, lost)
            raise
        seconds = session.now() - started
        if answered is None:
            assert failure is not None
            self._give_up(session, failure, started, lost)
            message = f"the planner {name}: {failure.message}"
            raise NoPlan(Failure(failure.kind, message, failure.retry_after_s))
        return PlanAttempt(
            answered.worker,
            answered.completion.text,
            answered.completion.usage,
            seconds,
            lost=tuple(lost),
            dollars=answered.dollars,
            reused=answered.reused,
            numbers=self._names(session) if settings.roster else (),
        )

    def _give_up(
        self, session: Session, failure: Failure, started: float, lost: list[Attempt]
    ) -> None:
        now = session.now()
        attempt = PlanAttempt(
            self.worker.name, "", None, now - started, failure=failure, lost=tuple(lost)
        )
        session.emit(PlanAttempted(now, attempt))


def _offered(names: tuple[str, ...]) -> list[int]:
    return [at for at, name in enumerate(names) if name]
