"""The Planner: query -> Conductor model -> text -> Plan, with one round to repair."""

from __future__ import annotations

from dataclasses import dataclass

from grammar import Diagnostic, Limits, Plan, PlanError, decoding_grammar, parse
from runtime import (
    Call,
    Completion,
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

from .prompt import plan_messages, repair_messages

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

    async def decide(self, session: Session) -> Plan:
        """Come to a plan for the session's query, telling of it in its events.

        Raises:
            NoPlan: If the model can't be reached, or writes no valid plan in two attempts.
        """
        names, settings = session.pool.names, self.settings
        cards = [worker.card for worker in session.pool] if settings.cards else []
        asked = plan_messages(
            session.query,
            len(names),
            most_steps=settings.most_steps,
            least_steps=settings.least_steps,
            cards=cards,
        )
        messages = asked
        diagnostics: tuple[Diagnostic, ...] = ()
        for attempt in range(_ATTEMPTS):
            started = session.now()
            session.emit(PlanStarted(started, self.worker.name, attempt))
            completion = await self._ask(session, messages)
            plan, diagnostics = None, ()
            try:
                plan = parse(
                    completion.text, workers=names, limits=Limits(steps=settings.most_steps)
                )
            except PlanError as error:
                diagnostics = error.diagnostics
                messages = repair_messages(asked, completion.text, error)
            written = PlanAttempt(
                self.worker.name,
                completion.text,
                completion.usage,
                session.now() - started,
                diagnostics,
            )
            session.emit(PlanAttempted(session.now(), written))
            if plan is not None:
                session.emit(PlanParsed(session.now(), plan, PlanSource.CONDUCTOR))
                return plan
        problem = diagnostics[0].message
        message = f"{self.worker.name} wrote no valid plan in {_ATTEMPTS} attempts: {problem}"
        raise NoPlan(Failure(FailureKind.NO_PLAN, message))

    async def _ask(self, session: Session, messages: tuple[Message, ...]) -> Completion:
        settings = self.settings
        grammar = None
        if self.constrained and self.worker.constrains:
            grammar = decoding_grammar(
                len(session.pool),
                most_steps=settings.most_steps,
                least_steps=settings.least_steps,
                subtask_characters=settings.subtask_characters,
            )
        call = Call(messages, settings.sampling, grammar)
        try:
            return await session.call(
                self.worker, call, lambda text: session.emit(PlanDelta(session.now(), text))
            )
        except WorkerError as error:
            failure = error.failure
            message = f"the planner {self.worker.name}: {failure.message}"
            raise NoPlan(Failure(failure.kind, message, failure.retry_after_s)) from error
