"""Trials: deciders carried out for real, a task and a seed at a time, each kept as soon as it ends.

What a decider is asked goes through the same engine as any run, with the cache of worker calls and
the journal that are given. A killed evaluation goes on where it was: trials that are on file are
not made again, and calls that were answered come from the cache.

A trial ends in a *pick* (one worker gets the question as it is) or in an answer that is graded.
What a picked worker says is on file already, in the labels; it is not asked again, so that all who
pick the same worker are judged by the same reply.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cache
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, Self

import anyio
import anyio.to_thread
import numpy as np
from pydantic import TypeAdapter, ValidationError

from conductor import Conductor, Planner
from conductor.router import Router
from grammar import Plan, single, topology
from runtime import Cache as CallsOnFile
from runtime import (
    Call,
    Completion,
    Failure,
    FailureKind,
    Health,
    Journal,
    Message,
    NoPlan,
    OnText,
    PlanAttempt,
    PlanAttempted,
    PlanParsed,
    PlanSource,
    PlanStarted,
    Pool,
    Run,
    Sampling,
    Session,
    StepResult,
    StepState,
    Worker,
    WorkerError,
    carry_out,
    no_listener,
)

from .evaluate import (
    Choices,
    Deciding,
    EvaluationError,
    Measured,
    Outcomes,
    Planning,
    one_hot,
    picks,
    section_of,
    voted,
)
from .graders import grade
from .tasks import Task

TRIALS = "trials.jsonl"


@dataclass(frozen=True, slots=True)
class Trial:
    """One task given to a decider once, and what came of it."""

    decider: str
    digest: str
    """Of all that decides the outcome: a decider that has changed is tried anew."""
    task: str
    """Id of the task."""
    seed: int
    score: float | None = None
    """From 0 to 1; None for a pick, and where calls failed for technical reasons."""
    picked: str = ""
    """The worker that gets the question as it is, if that is the decision."""
    calls: int = 0
    """What it took, calls answered by the cache included: what it would take without one."""
    tokens: int | None = 0
    """In and out; None if a worker does not count."""
    deciding: int = 0
    """The part of them that went into planning or choosing."""
    dollars: Decimal | None = Decimal(0)
    """None where a price is unknown."""
    paid: Decimal = Decimal(0)
    """What was spent on it this time, without what the cache answered."""
    seconds: float | None = None
    """How long it took; None if the cache answered some of it."""
    workers: Mapping[str, int] = field(default_factory=dict)
    """Calls for steps, by worker."""
    topology: str = ""
    """Shape of the last plan."""
    steps: int = 0
    """Steps of all plans."""
    plans: int = 0
    """How often a model wrote, to plan or to choose; more than one where what it wrote was none."""
    run: str = ""
    """Id in the journal."""
    failure: str = ""
    """Why there is no answer."""

    @property
    def ended(self) -> bool:
        """Whether it came to a score or a pick, and need not be tried again."""
        return self.score is not None or self.picked != ""


Answer = Callable[[Task, int], Awaitable[Trial]]
"""Gives a task to a decider, with a seed."""


@dataclass(frozen=True, slots=True)
class Decider:
    """Someone who decides, to be carried out."""

    name: str
    about: str
    identity: str
    """What decides its outcomes beside the task and the seed."""
    answer: Answer
    calls: float
    """Calls a task about, for estimates."""
    seeds: int = 1

    @property
    def digest(self) -> str:
        """A short digest of the identity."""
        return sha256(self.identity.encode()).hexdigest()[:16]


# --- what a run took ------------------------------------------------------------------------------

OWN_FAULT = frozenset(
    {
        FailureKind.NO_PLAN,
        FailureKind.NO_ANSWER,
        FailureKind.BUDGET,
        FailureKind.DEADLINE,
        FailureKind.EMPTY,
        FailureKind.EXCLUDED,
    }
)
"""Failures that are the decider's or its workers' own doing, and score 0; all others are technical,
and say nothing of it."""


def trial_of(decider: Decider, task: Task, seed: int, run: Run, pool: Pool) -> Trial:
    """Account for a run, without its score: what the cache answered counts as if it had been asked.

    Args:
        decider: Whose it is.
        task: What was asked.
        seed: Its seed.
        run: The record.
        pool: Says what tokens cost.
    """
    plan = run.plan
    blank = Trial(
        decider.name,
        decider.digest,
        task.id,
        seed,
        paid=run.dollars,
        seconds=run.seconds,
        topology=str(topology(plan)) if plan else "",
        plans=len(run.planning),
        run=run.id,
        failure=run.failure.message if run.failure and run.answer is None else "",
    )
    return _add(blank, run, pool)


def _add(trial: Trial, run: Run, pool: Pool) -> Trial:
    calls, deciding, seconds = trial.calls, trial.deciding, trial.seconds
    tokens, dollars = trial.tokens, trial.dollars
    workers = Counter(trial.workers)
    results = [step for each in run.rounds for step in each.steps]
    wrote = [attempt for attempt in run.planning if attempt.failure is None]
    did = [step for step in results if step.state is StepState.DONE and step.run is None]
    completions: list[PlanAttempt | StepResult] = [*wrote, *did]
    for each in completions:
        calls += 1
        count = None if each.usage is None else each.usage.input_tokens + each.usage.output_tokens
        tokens = None if tokens is None or count is None else tokens + count
        cost = each.dollars
        if each.reused:
            seconds = None
            worker = pool[each.worker] if each.worker in pool.names else pool.planner
            cost = pool.cost(worker, each.usage)
        dollars = None if dollars is None or cost is None else dollars + cost
        if isinstance(each, PlanAttempt):
            deciding += count or 0
        else:
            workers[each.worker] += 1
    for each_round in run.rounds:
        if each_round.pick is not None:
            tokens = None if tokens is None else tokens + each_round.pick.tokens
            deciding += each_round.pick.tokens
    asked: list[PlanAttempt | StepResult] = [*run.planning, *results]
    for lost in (attempt for each in asked for attempt in each.lost):
        calls += 1
        if lost.usage is not None and tokens is not None:
            tokens += lost.usage.input_tokens + lost.usage.output_tokens
        dollars = None if dollars is None or lost.dollars is None else dollars + lost.dollars
    trial = replace(
        trial,
        calls=calls,
        tokens=tokens,
        deciding=deciding,
        dollars=dollars,
        seconds=seconds,
        workers=dict(workers),
        steps=trial.steps + len(results),
    )
    for step in results:
        if step.run is not None:
            trial = _add(trial, step.run, pool)
    return trial


async def graded(trial: Trial, task: Task, run: Run) -> Trial:
    """Grade a run's answer; None stays where it has none for technical reasons."""
    if run.answer is not None:
        # In a thread: code is run in a sandbox, and that takes its time.
        score = await anyio.to_thread.run_sync(grade, task.grader, run.answer, task.question)
        return replace(trial, score=score)
    own = run.failure is not None and run.failure.kind in OWN_FAULT
    return replace(trial, score=0.0) if own else trial


# --- deciders -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bench:
    """What deciders are carried out with."""

    pool: Pool
    cache: CallsOnFile | None = None
    """Completions to use instead of calls."""
    journal: Journal | None = None
    """Where the runs are kept."""

    @property
    def identity(self) -> str:
        """The workers, by what decides their completions."""
        return json.dumps({worker.name: worker.identity for worker in self.pool})

    def planned(
        self,
        name: str,
        about: str,
        planners: Sequence[Planner],
        *,
        rounds: int = 1,
    ) -> Decider:
        """Conductor models that write plans, which are carried out; each is a seed.

        Args:
            name: Of the decider.
            about: What it is.
            planners: One or more that were trained alike, and how they are asked.
            rounds: Most rounds of planning.
        """

        async def answer(task: Task, seed: int) -> Trial:
            run = await self._team(planners[seed]).arun(task.question, rounds=rounds)
            return await graded(trial_of(decider, task, seed, run, self.pool), task, run)

        told = [[each.worker.identity, repr(each.settings), each.constrained] for each in planners]
        decider = self._decider(
            name, about, [told, rounds], answer, 1 + 2.5 * rounds, len(planners)
        )
        return decider

    def given(
        self,
        name: str,
        about: str,
        plan_of: Callable[[Task, int], Plan],
        *,
        calls: float,
        seeds: int = 1,
        told: object = None,
    ) -> Decider:
        """Plans that are there already; one that hands the question to one worker is a pick.

        Args:
            name: Of the decider.
            about: What it is.
            plan_of: Makes the plan of a task and seed, with the workers' names.
            calls: Calls a task about.
            seeds: How often each task is tried.
            told: What ``plan_of`` depends on beside the task and the seed.
        """

        async def answer(task: Task, seed: int) -> Trial:
            plan = plan_of(task, seed)
            first = plan.steps[0]
            if len(plan) == 1 and first.subtask == task.question:
                blank = Trial(decider.name, decider.digest, task.id, seed)
                return replace(blank, picked=str(first.worker), topology="single", steps=1)
            team = self._team(self.pool.planner)
            run = await team.arun(task.question, plan=plan)
            return await graded(trial_of(decider, task, seed, run, self.pool), task, run)

        decider = self._decider(name, about, told, answer, calls, seeds)
        return decider

    def chosen(self, name: str, about: str, chooser: Chooser) -> Decider:
        """A language model that is shown the workers' cards and names one."""

        async def answer(task: Task, seed: int) -> Trial:
            emit = self.journal.before(no_listener) if self.journal else no_listener
            run = await carry_out(
                task.question,
                self.pool,
                chooser.decide,
                emit=emit,
                cache=self.cache,
                plan_only=True,
                planner=chooser.worker.name,
            )
            trial = trial_of(decider, task, seed, run, self.pool)
            if run.plan is not None:
                return replace(trial, picked=str(run.plan.steps[0].worker), steps=1)
            return await graded(trial, task, run)

        cards = {worker.name: worker.card for worker in self.pool}
        told = [chooser.worker.identity, cards]
        decider = self._decider(name, about, told, answer, 2.0)
        return decider

    def self_consistency(
        self,
        choices: Choices,
        calls: int,
        temperature: float = 0.7,
        seeds: int = 1,
        name: str = "self-consistency",
    ) -> Decider:
        """The best single worker asked several times, sampling; what it says most often counts.

        Args:
            choices: Says which worker that is.
            calls: How often it is asked.
            temperature: At which it samples.
            seeds: How often each task is tried.
            name: Of the decider.
        """

        def pool_for(worker: Worker, seed: int) -> Pool:
            drawn = [
                _Sampled(
                    worker, f"{worker.name}.{at}", Sampling(temperature, seed=calls * seed + at)
                )
                for at in range(calls)
            ]
            return Pool(drawn, terms=_parted(self.pool, worker, drawn))

        async def answer(task: Task, seed: int) -> Trial:
            worker = self.pool[choices.for_task(task)]
            pool = pool_for(worker, seed)
            # None reads another, and each has the question as its subtask: all see it as it is.
            plan = Plan.of([task.question] * calls, list(pool.names), [[]] * calls)
            team = replace(self, pool=pool)._team(pool.planner)
            run = await team.arun(task.question, plan=plan)
            trial = trial_of(decider, task, seed, run, pool)
            trial = replace(trial, workers={worker.name: calls})
            said = [step.text for step in run.steps if step.state is StepState.DONE]
            if not said:
                return await graded(trial, task, run)
            scores = [
                await anyio.to_thread.run_sync(grade, task.grader, text, task.question)
                for text in said
            ]
            return replace(trial, score=voted(task, said, scores), failure="")

        about = f"what {choices.best} says most often of {calls} times, temperature {temperature:g}"
        told = [choices.best, choices.best_composed, calls, temperature]
        decider = self._decider(name, about, told, answer, calls, seeds)
        return decider

    def routed(self, name: str, about: str, routers: Sequence[Router], told: object) -> Decider:
        """Routers that take turns in roles; each is a seed.

        Args:
            name: Of the decider.
            about: What it is.
            routers: One or more that were trained alike.
            told: What tells them from others, as a digest does.
        """

        async def answer(task: Task, seed: int) -> Trial:
            run = await self._team(router=routers[seed]).arun(task.question)
            return await graded(trial_of(decider, task, seed, run, self.pool), task, run)

        decider = self._decider(name, about, told, answer, routers[0].turns, len(routers))
        return decider

    def _team(
        self, planner: Planner | Worker | None = None, router: Router | None = None
    ) -> Conductor:
        return Conductor(
            self.pool, planner=planner, router=router, cache=self.cache, journal=self.journal
        )

    def _decider(
        self,
        name: str,
        about: str,
        told: object,
        answer: Answer,
        calls: float,
        seeds: int = 1,
    ) -> Decider:
        identity = json.dumps([name, told, self.identity], default=str)
        return Decider(name, about, identity, answer, calls, seeds)


def _parted(pool: Pool, worker: Worker, drawn: Sequence[Worker]) -> dict[str, Any]:
    """The worker's terms for each of those who sample it; what is limited is shared out."""
    terms = pool.terms(worker)
    limits = {
        name: max(1, limit // len(drawn))
        for name in ("concurrency", "requests_per_minute", "tokens_per_minute")
        if (limit := getattr(terms, name)) is not None
    }
    return {each.name: replace(terms, fallback=(), **limits) for each in drawn}


class _Sampled:
    """A worker that samples, with a seed of its own, whatever its usual settings are."""

    def __init__(self, worker: Worker, name: str, sampling: Sampling) -> None:
        self.name = name
        self.card, self.tags, self.constrains = worker.card, worker.tags, worker.constrains
        self._worker, self._sampling = worker, sampling

    @property
    def identity(self) -> str:
        return f"{self._worker.identity} {self._sampling}"

    async def complete(self, call: Call, on_text: OnText = lambda text: None) -> Completion:
        sampling = self._sampling.over(call.sampling)
        return await self._worker.complete(replace(call, sampling=sampling), on_text)

    async def check(self) -> Health:
        return await self._worker.check()

    async def __aenter__(self) -> Self:
        await self._worker.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._worker.__aexit__(*exc_info)


# --- a language model as router -------------------------------------------------------------------

_CHOOSER = """\
You hand questions to others and never answer them. These are the ones you can choose from:

{cards}

Write the name of the one who can answer the question best, and nothing else."""


@dataclass(frozen=True, slots=True)
class Chooser:
    """Lets a language model name the worker that a question goes to: what a router is held against.

    A model in this process decodes under a grammar of the names; any other is asked.
    """

    worker: Worker

    async def decide(self, session: Session) -> Plan:
        """Come to a plan of one step, telling of it in events.

        Raises:
            NoPlan: If the model can't be reached, or names nobody.
        """
        names = session.pool.names
        cards = "\n".join(f"{each.name}: {each.card or each.name}" for each in session.pool)
        question = f"Question: {session.query}\n\nName:"
        messages = (Message("system", _CHOOSER.format(cards=cards)), Message("user", question))
        grammar = None
        if self.worker.constrains:
            grammar = "start: " + " | ".join(f'"{name}"' for name in names)
        call = Call(messages, Sampling(temperature=0.0, max_tokens=64), grammar)
        started = session.now()
        session.emit(PlanStarted(started, self.worker.name, 0))
        try:
            answered = await session.call(self.worker, call)
        except WorkerError as error:
            seconds = session.now() - started
            attempt = PlanAttempt(self.worker.name, "", None, seconds, failure=error.failure)
            session.emit(PlanAttempted(session.now(), attempt))
            raise NoPlan(error.failure) from error
        completion = answered.completion
        attempt = PlanAttempt(
            answered.worker,
            completion.text,
            completion.usage,
            session.now() - started,
            dollars=answered.dollars,
            reused=answered.reused,
        )
        session.emit(PlanAttempted(session.now(), attempt))
        chosen = named(completion.text, names)
        if chosen is None:
            told = f"{self.worker.name} named no worker: {completion.text[:60]!r}"
            raise NoPlan(Failure(FailureKind.NO_PLAN, told))
        plan = single(chosen, session.query)
        session.emit(PlanParsed(session.now(), plan, PlanSource.PICK))
        return plan


def named(text: str, names: Sequence[str]) -> str | None:
    """Find the worker that a text names first; None if it names none."""
    folded = text.casefold()
    places = {name: at for name in names if (at := _word_at(folded, name.casefold())) is not None}
    # Of "fast" and "fast-2" at one place the longer one is meant.
    return min(places, key=lambda name: (places[name], -len(name)), default=None)


def _word_at(text: str, word: str) -> int | None:
    at = text.find(word)
    while at >= 0:
        around = text[at - 1 : at] + text[at + len(word) : at + len(word) + 1]
        if not any(each.isalnum() or each == "_" for each in around):
            return at
        at = text.find(word, at + 1)
    return None


# --- plans that nobody wrote ----------------------------------------------------------------------


def random_plan(task: Task, seed: int, workers: Sequence[str], most_steps: int = 5) -> Plan:
    """Draw a plan: length, workers and access lists at random, the subtasks the same for all."""
    random = Random(f"{task.id} {seed}")  # noqa: S311
    count = random.randint(1, most_steps)
    chosen = [random.choice(workers) for _ in range(count)]
    if count == 1:
        return single(chosen[0], task.question)
    access = [[at for at in range(step) if random.random() < 0.5] for step in range(count)]
    access[-1] = access[-1] or [random.randrange(count - 1)]
    subtasks = ["Work on the task, or on a part of it."] * (count - 1) + ["Solve the task."]
    return Plan.of(subtasks, chosen, access)


def known_parts(task: Task, choices: Choices) -> Plan:
    """The plan of someone who knows how the task falls apart and who does each part best.

    Of a task of one part that is who does its family best.
    """
    return task.plan([choices.of_family.get(name, choices.best) for name in task.step_families])


def mixture(task: Task, choices: Choices, workers: Sequence[str]) -> Plan:
    """All workers answer, and the best single one reads them and decides: mixture of agents."""
    last = len(workers)
    subtasks = [task.question] * last + ["Compare the replies; give the right answer."]
    access: list[list[int]] = [*([] for _ in workers), list(range(last))]
    return Plan.of(subtasks, [*workers, choices.for_task(task)], access)


# --- carrying out ---------------------------------------------------------------------------------


def read_trials(folder: str | Path) -> dict[tuple[str, str, int], Trial]:
    """Read the trials of a folder by digest, task and seed: the last one of each.

    Raises:
        EvaluationError: If a line but the last one is no trial.
    """
    path = Path(folder) / TRIALS
    found = {}
    if path.exists():
        *lines, _ = path.read_bytes().split(b"\n")  # what follows the last line end was cut off
        for number, line in enumerate(lines, start=1):
            try:
                trial = _adapter().validate_json(line)
            except ValidationError as error:
                told = error.errors()[0]["msg"]
                raise EvaluationError(f"{path}:{number}: not a trial: {told}") from error
            found[trial.digest, trial.task, trial.seed] = trial
    return found


@dataclass(frozen=True, slots=True)
class Progress:
    """How far trials have come."""

    decider: str
    """The one whose trial ended last."""
    done: int
    of: int
    dollars: Decimal
    """Spent so far."""


def waiting(
    deciders: Iterable[Decider], tasks: Sequence[Task], folder: str | Path
) -> list[tuple[Decider, Task, int]]:
    """List the trials that are not on file."""
    there = read_trials(folder)
    return [
        (decider, task, seed)
        for decider in deciders
        for task in tasks
        for seed in range(decider.seeds)
        if not ((known := there.get((decider.digest, task.id, seed))) and known.ended)
    ]


async def carry_out_trials(
    deciders: Sequence[Decider],
    tasks: Sequence[Task],
    bench: Bench,
    folder: str | Path,
    *,
    concurrency: int = 8,
    dollars: Decimal | None = None,
    progress: Callable[[Progress], None] = lambda state: None,
) -> bool:
    """Carry out the trials that are not on file, several at once, and keep each as it ends.

    Args:
        deciders: Who decides.
        tasks: On what.
        bench: With what; its pool is held open.
        folder: Where ``trials.jsonl`` is.
        concurrency: Most trials at the same time.
        dollars: Most money; when it is spent no trial begins, those under way may go over it.
        progress: Is told after each trial.

    Returns:
        Whether all were carried out; False if the money ran out.

    Raises:
        EvaluationError: If the file can't be read.
        Exception: What the journal or the cache raised.
    """
    todo = waiting(deciders, tasks, folder)
    target = Path(folder) / TRIALS
    target.parent.mkdir(parents=True, exist_ok=True)
    _drop_cut_line(target)
    spent, done, whole = Decimal(0), 0, True
    coming = iter(todo)
    with target.open("ab") as file:

        async def work() -> None:
            nonlocal spent, done, whole
            for decider, task, seed in coming:
                if dollars is not None and spent >= dollars:
                    whole = False
                    return
                trial = await decider.answer(task, seed)
                file.write(_adapter().dump_json(trial) + b"\n")
                file.flush()
                spent, done = spent + trial.paid, done + 1
                progress(Progress(decider.name, done, len(todo), spent))

        async with bench.pool, anyio.create_task_group() as group:
            for _ in range(min(concurrency, len(todo))):
                group.start_soon(work)
    return whole


def _drop_cut_line(path: Path) -> None:
    """Take off what a kill left of a last line, so that the next one begins at its beginning."""
    if path.exists() and not (text := path.read_bytes()).endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(text.rfind(b"\n") + 1)


def outcomes_of(decider: Decider, measured: Measured, folder: str | Path) -> Outcomes:
    """Gather the trials of a decider; what is missing, or came to nothing, has no score.

    Args:
        decider: Whose.
        measured: Its tasks are the rows; its replies are what picked workers said.
        folder: Where ``trials.jsonl`` is.
    """
    there = read_trials(folder)
    tasks, workers, seeds = measured.tasks, measured.workers, decider.seeds
    shape = (len(tasks), seeds)
    took = {name: np.full(shape, np.nan) for name in ("calls", "tokens", "deciding", "seconds")}
    dollars, scores = np.full(shape, np.nan), np.full(shape, np.nan)
    chosen = np.full((seeds, len(tasks)), -1)
    shares = np.zeros((len(tasks), len(workers)))
    for row, task in enumerate(tasks):
        for seed in range(seeds):
            trial = there.get((decider.digest, task.id, seed))
            if trial is None or not trial.ended:
                continue
            for name, values in took.items():
                value = getattr(trial, name)
                values[row, seed] = np.nan if value is None else value
            dollars[row, seed] = np.nan if trial.dollars is None else float(trial.dollars)
            if trial.picked in workers:
                chosen[seed, row] = workers.index(trial.picked)
            elif trial.score is not None:
                scores[row, seed] = trial.score
            total = sum(trial.workers.values())
            for name, count in trial.workers.items():
                if name in workers:
                    shares[row, workers.index(name)] += count / total / seeds
    took["seconds"] = np.where(chosen.T >= 0, np.nan_to_num(took["seconds"]), took["seconds"])
    deciding = Deciding(took["deciding"], took["seconds"], dollars, took["calls"])
    given = picks(decider.name, decider.about, measured, one_hot(chosen, len(workers)))
    added = picks(
        decider.name, decider.about, measured, one_hot(chosen, len(workers)), deciding=deciding
    )
    is_pick = chosen.T >= 0
    return Outcomes(
        decider.name,
        decider.about,
        np.where(is_pick, given.scores, scores),
        np.where(is_pick, added.calls, took["calls"]),
        np.where(is_pick, given.tokens + np.nan_to_num(took["tokens"]), took["tokens"]),
        took["deciding"],
        np.where(is_pick, added.seconds, took["seconds"]),
        np.where(is_pick, added.dollars, dollars),
        shares + given.workers,
    )


def planning_of(decider: Decider, tasks: Sequence[Task], folder: str | Path) -> list[Planning]:
    """Tell what a decider's plans were like, by family.

    Args:
        decider: Whose.
        tasks: On which tasks.
        folder: Where ``trials.jsonl`` is.
    """
    there = read_trials(folder)
    found: dict[tuple[str, str], list[Trial]] = {}
    for task in tasks:
        if (section := section_of(task)) is None:
            continue
        for seed in range(decider.seeds):
            if (trial := there.get((decider.digest, task.id, seed))) is not None:
                found.setdefault((section, task.family), []).append(trial)
    return [
        _planning(decider.name, section, family, trials)
        for (section, family), trials in found.items()
    ]


def _planning(decider: str, section: str, family: str, trials: Sequence[Trial]) -> Planning:
    planned = [each for each in trials if each.topology]
    shapes = dict(Counter(each.topology for each in planned).most_common())
    right = dict.fromkeys(shapes, 0.0)
    for each in planned:
        right[each.topology] += (each.score or 0.0) / shapes[each.topology]
    return Planning(
        decider,
        section,
        family,
        len(trials),
        sum(each.plans == 1 for each in planned),
        len(planned),
        sum(not each.ended for each in trials),
        sum(each.steps for each in trials) / len(trials),
        shapes,
        right,
    )


@cache
def _adapter() -> TypeAdapter[Trial]:
    return TypeAdapter(Trial)
