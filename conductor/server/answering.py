"""From an Ask to its answers: which runs are made, how often, and within what bounds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import anyio

from grammar import single
from runtime import (
    Budget,
    Call,
    Emit,
    Endpoint,
    Event,
    Message,
    PlanSource,
    PoolError,
    Run,
    RunStarted,
    RunState,
    StepDelta,
    ToolError,
    ToolResult,
    WorkerError,
    conversation_query,
    fold,
)

from ..estimate import estimate
from ..orchestrator import AnswerText, Conductor
from .accounts import Took, last_step, said
from .ask import Ask, Wishes
from .json_form import problem, read_text
from .policies import Policy
from .refusals import Refusal, bad, of_failure

OnEvent = Callable[[int, Event], None]
"""Gets the number of a choice and what happens in its run."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What came of an Ask."""

    choices: tuple[tuple[str, Run], ...]
    """The text of each choice, and its run: one that is suspended asks for tools."""
    runs: tuple[Took, ...]
    """All runs that were made, the first choice's first."""
    estimate: dict[str, Any] | None = None
    """Of a dry run."""
    before: Took | None = None
    """The run as it was, if it went on with results of tools."""


@dataclass(frozen=True, slots=True)
class Effort:
    """What an effort means for plans."""

    steps: int | None = None
    """Longest plan; as the pool says if None."""
    rounds: int = 1
    """Most rounds at least: the pool may allow more."""


EFFORTS = {
    "none": Effort(steps=1),
    "minimal": Effort(steps=1),
    "low": Effort(steps=2),
    "medium": Effort(),
    "high": Effort(),
    "xhigh": Effort(rounds=2),
    "max": Effort(rounds=3),
}
"""All tiers of clients. What a request says in its ``conductor`` object counts more."""


class Answering:
    """An Ask under way.

    Args:
        team: Who answers.
        policy: How it is decided who does.
        ask: What is asked.
        on_event: Gets everything that happens in the runs of the choices.
        past: The run that goes on, if one does.
        results: What came of its calls of tools.
    """

    def __init__(
        self,
        team: Conductor,
        policy: Policy,
        ask: Ask,
        on_event: OnEvent,
        *,
        past: Run | None = None,
        results: Sequence[ToolResult] = (),
    ) -> None:
        self._past = past
        self._results = results
        self._team = team if policy.name == "trinity" else team.planning()
        self._policy = policy
        self._ask = ask
        self._on_event = on_event
        self._extra: list[Run] = []
        self._under_way: dict[int, list[Event]] = {}
        self._ended: dict[str, Took] = {}

    @property
    def runs(self) -> tuple[Took, ...]:
        """All runs so far, also those that failed or were stopped."""
        stopped = map(self._stopped, filter(None, self._under_way.values()))
        return (*self._ended.values(), *map(Took.by, stopped))

    @property
    def before(self) -> Took | None:
        """The run that goes on, as it was when it did."""
        return None if self._past is None else Took.by(self._past)

    def _stopped(self, events: Sequence[Event]) -> Run:
        if isinstance(events[0], RunStarted):
            return fold(events)
        # It went on, so its beginning is in the journal.
        assert self._past is not None and self._team.journal is not None
        return self._team.journal.run(self._past.id)

    def _follow(self, index: int) -> Emit:
        """Tell of a run, and keep what it takes should it be stopped."""
        kept = self._under_way[index] = []

        def follow(event: Event) -> None:
            if not isinstance(event, StepDelta):
                kept.append(event)
            self._on_event(index, event)

        return follow

    def _over(self, index: int, run: Run) -> Run:
        self._under_way.pop(index, None)
        self._ended[run.id] = Took.by(run)
        return run

    async def answers(self) -> Answers:
        """Come to all choices.

        Raises:
            Refusal: If one has no answer.
        """
        ask = self._ask
        try:
            if ask.wishes.dry_run:
                return await self._dry()
            first = await self._begin(0)
            choices: list[tuple[str, Run] | Refusal] = [await self._checked(first)]
            if ask.n > 1:
                choices += await self._others(first)
        except ToolError as error:  # another request brought other results meanwhile
            raise Refusal(409, str(error), code="tool_results_conflict") from None
        except (PoolError, ValueError) as error:  # names that the caller wrote, rounds for one pick
            raise bad(str(error), "conductor", "not_possible") from None
        for choice in choices:
            if isinstance(choice, Refusal):
                raise choice
        done = tuple(choice for choice in choices if not isinstance(choice, Refusal))
        runs = (*self._extra, *(run for _, run in done))
        return Answers(done, tuple(self._ended[each.id] for each in runs), before=self.before)

    async def _begin(self, index: int) -> Run:
        ask, wishes = self._ask, self._ask.wishes
        if self._past is not None and index == 0:
            assert self._team.journal is not None
            # Others may have brought results to it since it was found: what they took is theirs.
            self._past = self._team.journal.run(self._past.id)
            run = await self._team.aresume(
                self._past.id,
                tool_results=self._results,
                asked=self._call(0),
                on_event=self._follow(0),
            )
            return self._over(0, run)
        effort = EFFORTS[ask.effort or "medium"]
        settings = self._team.pool.settings
        rounds: int | None = wishes.rounds or max(settings.rounds, effort.rounds)
        worker = self._policy.worker
        if worker is not None:
            rounds = 1
        elif self._policy.name == "trinity":
            rounds = wishes.rounds
        run = await self._team.arun(
            self._call(index),
            worker=worker,
            only=wishes.only,
            without=wishes.without,
            tags=wishes.tags,
            without_tags=wishes.without_tags,
            budget=self._budget(),
            rounds=rounds,
            steps=wishes.steps or effort.steps,
            tool_steps=wishes.tools,
            on_event=self._follow(index),
        )
        return self._over(index, run)

    def _call(self, index: int) -> Call:
        """The call of a choice: a seed of its own, or all would be alike."""
        ask = self._ask
        call = ask.call
        seed = call.sampling.seed
        if index and seed is not None:
            call = replace(call, sampling=replace(call.sampling, seed=seed + index))
        worker = self._policy.worker
        if ask.effort and worker and isinstance(self._team.pool[worker], Endpoint):
            extra = {**json.loads(call.extra or "{}"), "reasoning_effort": ask.effort}
            call = replace(call, extra=json.dumps(extra))
        return call

    def _budget(self) -> Budget:
        """That of the pool, narrowed to what the caller asks for."""
        wishes, budget = self._ask.wishes, self._team.pool.settings.budget
        if wishes == _NO_WISHES:
            return budget

        def least(ours: Any, theirs: Any) -> Any:
            return min((each for each in (ours, theirs) if each is not None), default=None)

        return replace(
            budget,
            dollars=least(budget.dollars, wishes.dollars),
            tokens=least(budget.tokens, wishes.tokens),
            calls=least(budget.calls, wishes.calls),
            seconds=least(budget.seconds, wishes.deadline),
        )

    async def _others(self, first: Run) -> list[tuple[str, Run] | Refusal]:
        """The choices but the first: the last step of its plan is done again, or the one worker
        asked again."""
        made: dict[int, tuple[str, Run] | Refusal] = {}

        async def make(index: int) -> None:
            try:
                run = await self._again(first, index)
                made[index] = await self._checked(run)
            except Refusal as refusal:
                made[index] = refusal

        async with anyio.create_task_group() as group:
            for index in range(1, self._ask.n):
                group.start_soon(make, index)
        return [made[index] for index in range(1, self._ask.n)]

    async def _again(self, first: Run, index: int) -> Run:
        plan = first.plan
        if plan is None or first.source in (PlanSource.PICK, PlanSource.ROUTER):
            return await self._begin(index)
        run = await self._team.arerun(
            replace(first, asked=self._call(index)),
            from_step=plan.final.index,
            budget=self._budget(),
            on_event=self._follow(index),
        )
        return self._over(index, run)

    async def _checked(self, run: Run) -> tuple[str, Run]:
        """Hold an answer against the form that was asked for; let it be written once more.

        Raises:
            Refusal: If there is no answer, or it is of another form both times.
        """
        if run.state is RunState.SUSPENDED:
            return said(run), run
        text = answer_of(run)
        schema = self._ask.schema
        if schema is None:
            return text, run
        wrong = _wrong(text, schema)
        if not wrong:
            return text, run
        last = last_step(run)
        assert last is not None
        self._extra.append(run)
        again_asked = (
            *last.messages,
            Message("assistant", text),
            Message("user", f"This is not of the form that was asked for: {wrong}. {_ONLY_JSON}"),
        )
        again = await self._team.arun(
            replace(self._ask.call, messages=again_asked), worker=last.worker, budget=self._budget()
        )
        self._ended[again.id] = Took.by(again)
        text = answer_of(again)
        if wrong := _wrong(text, schema):
            told = f"{last.worker} did not write what was asked for, twice: {wrong}"
            refusal = Refusal(502, f"{told}; ask another worker", code="schema_mismatch")
            refusal.run = again.id
            raise refusal
        return text, again

    async def _dry(self) -> Answers:
        """Plan, and estimate what carrying the plan out would take."""
        ask, wishes = self._ask, self._ask.wishes
        effort = EFFORTS[ask.effort or "medium"]
        team = self._team.within(
            only=wishes.only,
            without=wishes.without,
            tags=wishes.tags,
            without_tags=wishes.without_tags,
        )
        if self._policy.worker is not None:
            plan = single(
                team.pool[self._policy.worker].name, conversation_query(ask.call.messages)
            )
            return Answers((), (), json.loads(estimate(plan, team.pool).to_json()))
        run = await team.aplan(
            ask.call,
            budget=self._budget(),
            steps=wishes.steps or effort.steps,
            on_event=self._follow(0),
        )
        self._over(0, run)
        if run.state is not RunState.PLANNED or run.plan is None:
            answer_of(run)
        assert run.plan is not None
        found = estimate(run.plan, team.pool, query=run.query)
        return Answers(((str(run.plan), run),), self.runs, json.loads(found.to_json()))


_NO_WISHES = Wishes()
_ONLY_JSON = "Write it again as JSON, and nothing else."


def answer_of(run: Run) -> str:
    """The text of the answer.

    Raises:
        Refusal: If there is none; it says why.
    """
    try:
        return AnswerText().rest(run)
    except WorkerError as error:
        raise of_failure(error.failure, run.id) from None


def _wrong(text: str, schema: Any) -> str:
    try:
        value = read_text(text)
    except ValueError as error:
        return f"it is not JSON ({error})"
    return problem(value, schema)
