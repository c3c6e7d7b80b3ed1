"""Replay: a run follows from its own record byte for byte, and a record that was changed does not.

The records are those of real runs: the engine and the planner on workers whose every answer,
failure and plan is drawn at random.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from zlib import crc32

import anyio
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from conductor import Conductor
from grammar import Plan, chain
from runtime import (
    Attempt,
    Budget,
    Completion,
    ConductorWorker,
    Event,
    Failure,
    FailureKind,
    FinishReason,
    FunctionWorker,
    Message,
    PlannerSettings,
    PlanSource,
    Pool,
    Record,
    ReplayError,
    Round,
    Run,
    RunFinished,
    RunSettings,
    RunState,
    StepResult,
    StepState,
    Terms,
    Usage,
    WorkerError,
    areplay,
    carry_out,
    fold,
    replay,
)

NAMES = ("a", "b", "c", "self")
FAILURES = [
    FailureKind.OVERLOADED,
    FailureKind.RATE_LIMITED,
    FailureKind.REJECTED,
    FailureKind.TIMEOUT,
    FailureKind.BAD_RESPONSE,
]


def dice(seed: int, *parts: object) -> random.Random:
    """Random numbers that depend on what is asked, and not on who comes first."""
    return random.Random(seed ^ crc32(repr(parts).encode()))


def worker(name: str, seed: int, health: float) -> FunctionWorker:
    """Answers most of the time; else fails, says nothing, or says nothing but blanks."""
    calls: dict[Sequence[Message], int] = {}

    async def answer(messages: Sequence[Message]) -> str | Completion:
        calls[messages] = calls.get(messages, 0) + 1
        chance = dice(seed, name, messages, calls[messages])
        if chance.random() < health:
            text = chance.choice(["yes", "no", "x = [[1]]\n" * 2, "\U0001f600 \ud83d", "[end of"])
            usage = chance.choice([None, Usage(chance.randrange(99), chance.randrange(99), 1)])
            return Completion(text, chance.choice([*FinishReason]), usage, chance.choice("mn"))
        if chance.random() < 0.3:
            return chance.choice(["", " \n"])
        if chance.random() < 0.2:
            raise KeyError(name)
        kind = chance.choice(FAILURES)
        raise WorkerError(kind, f"{name}: {kind}", retry_after_s=chance.choice([None, 0.0]))

    return FunctionWorker(name, answer, card=name)


def written(chance: random.Random, most: int) -> str:
    """A completion of the Conductor model: a plan of one to five steps, seldom no plan."""
    shape = chance.random()
    if shape < 0.1:
        return chance.choice(["I'd rather not.", "subtasks = []\nworkers = []\naccess = []\n", ""])
    steps = chance.randint(1, most)
    subtasks = [chance.choice(["Draft it.", "Check it.", "Say “so”."]) for _ in range(steps)]
    workers = [chance.randrange(len(NAMES)) for _ in range(steps)]
    access = [
        chance.choice([[], list(range(at)), [chance.randrange(at)] if at else []])
        for at in range(steps)
    ]
    if shape < 0.2:
        access[-1] = [steps]
    return f"So:\nsubtasks = {subtasks}\nworkers = {workers}\naccess = {access}\n"


def scribe(seed: int) -> FunctionWorker:
    """Plans, mostly; in later rounds it often keeps the answer."""

    async def write(messages: Sequence[Message]) -> str:
        chance = dice(seed, "scribe", messages)
        if len(messages) > 2 and chance.random() < 0.4:
            return "subtasks = []\nworkers = []\naccess = []\n"
        if chance.random() < 0.05:
            raise WorkerError(FailureKind.UNAUTHORIZED, "the key is wrong", retry_after_s=3.0)
        return written(chance, 6)

    return FunctionWorker("scribe", write)


def team(seed: int, health: float) -> Conductor:
    chance = dice(seed, "team")
    roster = dice(seed, "roster").choice([(), (), ("b", "self", "a", "c"), ("b", "x", "self", "a")])
    return Conductor(
        Pool(
            [*(worker(name, seed, health) for name in NAMES[:3]), ConductorWorker("self")],
            planner=scribe(seed),
            planning=PlannerSettings(most_steps=5, roster=roster),
            terms=Terms(retries=1, retry_base_s=0.0, trip_after=None),
            settings=RunSettings(fallback=chance.choice([(), ("a",), ("b", "c")])),
        )
    )


class Crash(Exception):
    """The process dies."""


def killed(stop: int, then: list[Event]) -> Callable[[Event], None]:
    """A listener that takes so many events and then raises: what it took is the record."""

    def take(event: Event) -> None:
        if len(then) >= stop:
            raise Crash
        then.append(event)

    return take


async def stopped(conductor: Conductor, after: int, **options: Any) -> list[Event]:
    """The events of a run that its caller cancels after some events, or that comes to its end."""
    events: list[Event] = []
    with anyio.CancelScope() as scope:

        def follow(event: Event) -> None:
            events.append(event)
            if len(events) == after:
                scope.cancel()

        await conductor.arun("Why?", on_event=follow, **options)
    return events


async def resumed(conductor: Conductor, after: int, **options: Any) -> list[Event]:
    """The events of a run whose process dies after some events, and which goes on then."""
    events: list[Event] = []
    try:
        await conductor.arun("Why?", on_event=killed(after, events), **options)
    except Crash:
        past = Record()
        for event in events:
            past.add(event)
        await carry_out(
            "Why?",
            conductor.pool,
            conductor._planner_for(conductor.pool).decide,
            emit=events.append,
            rounds=options.get("rounds", 1),
            nested=conductor._planner_for(conductor.pool).decide,
            past=past,
        )
    return events


def check(run: Run) -> None:
    """The run comes out of its record again, also when it was written and read between."""
    again = replay(Run.from_json(run.to_json()))

    assert again.to_json() == run.to_json()
    assert again == run


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    health=st.sampled_from([0.4, 0.8, 1.0]),
    rounds=st.integers(1, 3),
    after=st.none() | st.integers(1, 60),
    end=st.sampled_from(["cancelled", "resumed"]),
    budget=st.sampled_from([Budget(), Budget(calls=4), Budget(steps=7), Budget(depth=2)]),
)
@example(seed=1, health=0.4, rounds=3, after=None, end="resumed", budget=Budget(depth=2))
def test_every_run_replays_to_the_same_bytes(
    seed: int, health: float, rounds: int, after: int | None, end: str, budget: Budget
) -> None:
    """With failures, fallbacks, empty texts, bad plans, rounds, nested runs; stopped, resumed."""
    conductor = team(seed, health)
    if after is None:
        check(conductor.run("Why?", rounds=rounds, budget=budget))
    elif end == "cancelled":
        start = partial(stopped, conductor, after, rounds=rounds, budget=budget)
        check(fold(anyio.run(start)))
    else:
        check(fold(anyio.run(partial(resumed, conductor, after, rounds=rounds))))


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), after=st.integers(1, 40))
def test_a_run_that_is_not_over_replays_as_far_as_it_came(seed: int, after: int) -> None:
    events: list[Event] = []
    try:
        team(seed, 0.8).run("Why?", rounds=2, on_event=killed(after, events))
    except Crash:
        events = [each for each in events if not isinstance(each, RunFinished)]
    check(fold(events))


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), at=st.integers(0, 4))
def test_a_run_that_repeats_another_in_part_replays(seed: int, at: int) -> None:
    old = team(seed, 0.8).run("Why?", rounds=2)
    if old.plan is not None:
        check(team(seed + 1, 0.8).rerun(old, from_step=min(at, len(old.plan) - 1)))


def test_what_was_drawn_at_random_has_all_that_is_promised() -> None:
    """The property is about something: each kind of record does occur among such runs."""
    runs = [team(seed, 0.7).run("Why?", rounds=3, budget=Budget(depth=2)) for seed in range(90)]
    steps = [step for run in runs for one in run.rounds for step in one.steps]

    assert {each.state for each in runs} == {RunState.DONE, RunState.FAILED}
    assert any(step.run and any(inner.run for inner in step.run.steps) for step in steps)
    assert any(step.lost and step.state is StepState.DONE for step in steps)
    assert any(step.because_of is not None for step in steps)
    assert any(each.kept for run in runs for each in run.rounds)
    assert any(len(run.rounds) == 3 for run in runs)
    assert any(attempt.diagnostics for run in runs for attempt in run.planning)
    assert any(
        step.state is StepState.DONE and step.worker != one.plan.steps[step.index].worker
        for run in runs
        for one in run.rounds
        for step in one.steps
        if one.plan
    )
    assert any(step.failure and step.failure.kind is FailureKind.EMPTY for step in steps)
    assert any("" in attempt.numbers for run in runs for attempt in run.planning)


async def never(messages: Sequence[Message]) -> str:
    await anyio.sleep_forever()
    raise AssertionError("unreachable")


def test_a_deadline_that_stopped_a_step_is_taken_from_the_record() -> None:
    """The step that was stopped, what could not start any more, and the reason."""
    pool = Pool([worker("a", 0, 1.0), FunctionWorker("slow", never)])
    plan = Plan.of(["x", "y", "z"], ["a", "slow", "a"], [[], [], "all"])
    run = Conductor(pool).run("Why?", plan=plan, budget=Budget(seconds=0.02))

    check(run)

    assert [step.state for step in run.steps] == ["done", "failed", "skipped"]
    assert run.failure is not None and run.failure.kind is FailureKind.DEADLINE


class FullDisk:
    """A cache that fails after some calls."""

    def __init__(self, calls: int) -> None:
        self._left = calls

    def get(self, worker: object, call: object) -> None:
        self._left -= 1
        if self._left < 0:
            raise OSError("disk full")

    def put(self, worker: object, call: object, completion: object) -> None:
        pass


@pytest.mark.parametrize("calls", range(4))
@pytest.mark.parametrize("rounds", [1, 2])
def test_a_run_that_its_cache_stopped_is_taken_as_far_as_it_came(calls: int, rounds: int) -> None:
    """The record is closed before the error goes on, and says what happened."""
    events: list[Event] = []
    conductor = Conductor(Pool([worker("a", 0, 1.0)]), cache=FullDisk(calls))
    plan = Plan.of(["x", "y"], ["a", "a"], [[], [0]])

    with pytest.raises(OSError, match="disk full"):
        conductor.run("Why?", plan=plan, rounds=rounds + 2, on_event=events.append)

    check(fold(events))


@pytest.mark.parametrize("query", ["Why?", "Why? \ud83d"])
@pytest.mark.parametrize("options", [{"worker": "a"}, {"plan": chain(["x", "y"], ["a", "b"])}])
def test_picks_and_given_plans_replay(options: dict[str, Any], query: str) -> None:
    check(team(3, 1.0).run(query, rounds=2, **options))


def test_a_plan_alone_replays() -> None:
    check(team(3, 1.0).plan("Why?"))


@pytest.mark.anyio
async def test_it_runs_in_an_event_loop_too(anyio_backend: str) -> None:
    """On both kinds of them, with several steps of equal messages by the same worker."""
    plan = Plan.of(["Say it."] * 5 + ["Decide."], ["a"] * 6, [[]] * 5 + [[0, 1, 2, 3, 4]])
    run = await team(7, 0.6).arun("Why?", plan=plan)

    assert (await areplay(run)).to_json() == run.to_json()


# -- records that were changed -------------------------------------------------------------------

PLAN = Plan.of(["Draft.", "Check.", "Decide."], ["a", "b", "a"], [[], [0], [0, 1]])
TEXT = 'subtasks = ["Draft.", "Check.", "Decide."]\nworkers = [0, 1, 0]\naccess = [[], [0], "all"]'


async def wrote(messages: Sequence[Message]) -> str:
    return TEXT


def good() -> Run:
    """A planned run of three steps that all went well."""

    async def say(messages: Sequence[Message]) -> str:
        return f"{len(messages[-1].content)} letters"

    pool = Pool([FunctionWorker(name, say) for name in "ab"], planner=FunctionWorker("s", wrote))
    return Conductor(pool).run("Why?")


def changed_step(run: Run, index: int, **new: Any) -> Run:
    steps = [replace(each, **new) if each.index == index else each for each in run.steps]
    return replace(run, rounds=(replace(run.rounds[0], steps=tuple(steps)),))


def changed_round(run: Run, **new: Any) -> Run:
    return replace(run, rounds=(replace(run.rounds[0], **new),))


FAILURE = Failure(FailureKind.TIMEOUT, "a: too slow")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda run: changed_step(run, 0, text="9 letters"), "step 1: messages: recorded"),
        (lambda run: changed_step(run, 1, messages=()), "step 1: messages"),
        (lambda run: changed_step(run, 2, text=" "), "step 2: state: recorded 'done'"),
        (lambda run: changed_step(run, 1, state=StepState.FAILED, failure=FAILURE), "step 2"),
        (lambda run: changed_step(run, 2, because_of=0), "step 2: because_of: recorded '0'"),
        (lambda run: changed_round(run, steps=run.steps[:2]), "step 2: recorded 'None'"),
        (lambda run: changed_round(run, source=None), "source: recorded 'None'"),
        (
            lambda run: changed_round(run, plan=chain(["Draft.", "Check."], ["a", "b"])),
            "plan: recorded",
        ),
        (lambda run: changed_round(run, planning=()), "nothing was written"),
        (
            lambda run: changed_round(
                run, planning=(replace(run.planning[0], text=TEXT.replace("[0]", "[]")),)
            ),
            "plan: recorded",
        ),
        (lambda run: replace(run, query="How?"), "step 0: messages"),
        (lambda run: replace(run, state=RunState.FAILED), "state: recorded 'failed'"),
        (lambda run: replace(run, failure=FAILURE), "failure: recorded"),
        (lambda run: replace(run, workers=("b", "a")), "plan: recorded"),
        (lambda run: replace(run, workers=("b",)), "plan: recorded"),
        (lambda run: replace(run, most_rounds=2), "it would go on with another one"),
        (lambda run: replace(run, rounds=(*run.rounds, Round())), "rounds: recorded 2"),
        (lambda run: changed_round(run, plan=None, steps=()), "plan: there is none"),
    ],
)
def test_a_changed_record_is_found(change: Callable[[Run], Run], told: str) -> None:
    """The first thing that does not follow is named: which step, which field."""
    run = good()

    with pytest.raises(ReplayError) as caught:
        replay(change(run))

    assert told in str(caught.value)
    assert str(caught.value).startswith(f"run {run.id}: ")


def test_a_changed_diagnosis_is_found() -> None:
    run = next(
        run
        for run in (team(seed, 1.0).run("Why?") for seed in range(60))
        if any(attempt.diagnostics for attempt in run.planning)
    )
    attempts = tuple(
        replace(each, diagnostics=each.diagnostics and (*each.diagnostics, *each.diagnostics))
        for each in run.planning
    )

    with pytest.raises(ReplayError, match="planning attempt 0: diagnostics"):
        replay(changed_round(run, planning=attempts))


def nested() -> Run:
    """A run whose last step is a run, told in the second of two rounds."""

    async def plans(messages: Sequence[Message]) -> str:
        again = len(messages) > 2
        inner = "Task" in messages[-1].content
        who = 0 if inner or not again else 1
        return f'subtasks = ["Do it."]\nworkers = [{who}]\naccess = [[]]\n'

    async def say(messages: Sequence[Message]) -> str:
        return messages[-1].content[-9:]

    pool = Pool(
        [FunctionWorker("a", say), ConductorWorker("self")], planner=FunctionWorker("s", plans)
    )
    return Conductor(pool).run("Why?", rounds=2)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"id": "other"}, "id: it is the run inside a step"),
        ({"query": "How?"}, "query: it is not what the step was told|step 0: messages"),
        ({"state": RunState.FAILED}, "state: recorded 'failed'"),
    ],
)
def test_a_changed_run_inside_a_step_is_found(change: dict[str, Any], told: str) -> None:
    """It is replayed by itself, and compared with its step."""
    run = nested()
    (step,) = run.rounds[1].steps
    assert step.run is not None
    check(run)
    changed = replace(step, run=replace(step.run, **change))
    run = replace(run, rounds=(run.rounds[0], replace(run.rounds[1], steps=(changed,))))

    with pytest.raises(ReplayError, match=rf"round 2, step 0: run .*({told})"):
        replay(run)


def test_times_money_and_lost_calls_are_taken_as_they_are() -> None:
    """They can't be worked out, so a record that differs in them alone is as good as any."""
    run = good()
    lost = (Attempt("a", Failure(FailureKind.OVERLOADED, "busy", 3.0), 0.5),)
    check(replace(changed_step(run, 0, seconds=9.0, lost=lost, worker="b"), id="x", seconds=10.0))


def test_a_step_result_without_a_plan_or_a_pool_without_workers_is_told() -> None:
    for run in (
        Run("id", "q", (), "now"),
        Run("id", "q", ("a",), "now", state=RunState.DONE),
        Run(
            "id",
            "q",
            ("a",),
            "now",
            rounds=(
                Round(
                    plan=PLAN, source=PlanSource.GIVEN, steps=(StepResult(0, "a", StepState.DONE),)
                ),
            ),
            state=RunState.DONE,
        ),
    ):
        with pytest.raises(ReplayError, match="run id: "):
            replay(run)
