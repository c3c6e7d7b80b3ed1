"""Conductor: every way to ask, what is refused, and one query on the embedded pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import anyio
import pytest

from conductor import Conductor, Planner, embedded_pool
from grammar import Plan, PlanError, Topology, chain, topology
from runtime import (
    Budget,
    Call,
    Completion,
    Event,
    FailureKind,
    FunctionWorker,
    Message,
    OnText,
    PlannerSettings,
    PlanSource,
    Pool,
    PoolError,
    Run,
    RunFinished,
    RunStarted,
    RunState,
    Sampling,
    StepState,
    areplay,
    conversation_query,
    fold,
)

pytestmark = pytest.mark.anyio

WRITTEN = 'subtasks = ["Draft.", "Check."]\nworkers = [0, 1]\naccess = [[], [0]]\n'


def echo(name: str) -> FunctionWorker:
    """Answers with its name and the end of what it was asked."""

    async def answer(messages: Sequence[Message]) -> str:
        return f"{name}: {messages[-1].content[-20:]}"

    return FunctionWorker(name, answer)


def scribe(name: str = "scribe", text: str = WRITTEN) -> FunctionWorker:
    async def write(messages: Sequence[Message]) -> str:
        return text

    return FunctionWorker(name, write)


def team(**options: Any) -> Conductor:
    return Conductor(Pool([echo("a"), echo("b"), scribe("c")], planner=scribe()), **options)


# -- ways to ask ---------------------------------------------------------------------------------


async def test_the_planner_of_the_pool_decides_and_the_workers_answer() -> None:
    run = await team().arun("Why?")

    assert (run.state, run.source) == (RunState.DONE, PlanSource.CONDUCTOR)
    assert run.plan == Plan.of(["Draft.", "Check."], ["a", "b"], [[], [0]])
    assert [(step.worker, step.state) for step in run.steps] == [
        ("a", StepState.DONE),
        ("b", StepState.DONE),
    ]
    assert run.answer == run.steps[-1].text


async def test_one_worker_gets_the_query_as_it_is() -> None:
    run = await team().arun("Why?", worker="b")

    assert (run.source, run.answer, run.planning) == (PlanSource.PICK, "b: Why?", ())
    assert run.plan and topology(run.plan) is Topology.SINGLE
    assert run.steps[0].messages[-1].content == "Why?"


async def test_a_given_plan_is_carried_out() -> None:
    run = await team().arun("Why?", plan=chain(["x", "y"], [1, 0]))

    assert (run.source, run.planning) == (PlanSource.GIVEN, ())
    assert [step.worker for step in run.steps] == ["b", "a"]


@pytest.mark.parametrize(
    "planner",
    ["c", scribe("other"), Planner(scribe("other"), PlannerSettings(most_steps=2))],
    ids=["name", "worker", "planner"],
)
async def test_another_planner_may_be_named(planner: Planner | FunctionWorker | str) -> None:
    run = await team(planner=planner).aplan("Why?")

    expected = planner if isinstance(planner, str) else "other"
    assert [each.worker for each in run.planning] == [expected]
    assert run.state is RunState.PLANNED
    assert run.steps == ()


async def test_a_planner_left_out_does_not_plan() -> None:
    run = await team(planner="c").aplan("Why?", without=["c"])

    assert [each.worker for each in run.planning] == ["scribe"]


async def test_only_and_without_together() -> None:
    run = await team().aplan("Why?", only=["c", "b", "a"], without=["a"])

    assert run.workers == ("b", "c")


async def test_a_conductor_can_be_held_open_over_runs() -> None:
    async with team() as conductor:
        answers = [(await conductor.arun(query, worker="a")).answer for query in ("one", "two")]

    assert answers == ["a: one", "a: two"]


# -- conversations -------------------------------------------------------------------------------

TALK = (Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Yes?"))


class Listener(FunctionWorker):
    """Keeps the calls that it gets."""

    def __init__(self, name: str, text: str = "heard") -> None:
        super().__init__(name, self._unused)
        self.calls: list[Call] = []
        self.text = text

    async def _unused(self, messages: Sequence[Message]) -> str:
        raise AssertionError

    async def complete(self, call: Call, on_text: OnText = lambda text: None) -> Completion:
        self.calls.append(call)
        on_text(self.text)
        return Completion(self.text)


async def test_one_worker_gets_a_call_as_it_is() -> None:
    worker = Listener("a")
    call = Call((*TALK, Message("user", "Why?", name="ann")), Sampling(temperature=0.5))

    run = await Conductor(Pool([worker])).arun(call, worker="a")

    assert worker.calls == [call]
    assert (run.asked, run.query) == (call, conversation_query(call.messages))
    assert (await areplay(Run.from_json(run.to_json()))).to_json() == run.to_json()


async def test_the_last_step_of_a_plan_is_told_how_to_answer_and_the_seed_all() -> None:
    workers = [Listener("a"), Listener("b"), planner := Listener("scribe", WRITTEN)]
    sampling = Sampling(temperature=0.5, seed=7, stop=("END",))
    call = Call((*TALK, Message("user", "Why?")), sampling, response_format='{"type": "text"}')

    run = await Conductor(Pool(workers, planner=planner)).arun(call)

    assert run.state is RunState.DONE
    first, last = (worker.calls[0] for worker in workers[:2])
    assert (first.sampling, first.response_format) == (Sampling(seed=7), "")
    assert (last.sampling, last.response_format) == (sampling, call.response_format)
    assert planner.calls[0].sampling == replace(PlannerSettings().sampling, seed=7)
    assert all(run.query in worker.calls[0].messages[-1].content for worker in workers)


async def test_a_call_that_is_but_a_query_is_recorded_as_one() -> None:
    run = await Conductor(Pool([Listener("a")])).arun(Call((Message("user", "Why?"),)), worker="a")

    assert (run.query, run.asked) == ("Why?", None)


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "options", "error", "told"),
    [
        ("", {}, ValueError, "the query is empty"),
        (" \n", {}, ValueError, "the query is empty"),
        ("q", {"worker": "a", "plan": chain(["x"], ["a"])}, ValueError, "give one of them"),
        ("q", {"worker": "z"}, PoolError, "no worker is called 'z'; the pool has: a, b, c"),
        ("q", {"only": ["z"]}, PoolError, "no worker is called 'z'"),
        ("q", {"without": ["z"]}, PoolError, "no worker is called 'z'"),
        ("q", {"worker": "a", "without": ["a"]}, PoolError, "no worker is called 'a'"),
        ("q", {"without": ["a", "b", "c"]}, PoolError, "no worker is left"),
        ("q", {"only": ["a"], "without": ["a"]}, PoolError, "no workers"),
        ("q", {"plan": chain(["x"], ["z"])}, PlanError, "z"),
        ("q", {"plan": chain(["x"], ["a"]), "without": ["a"]}, PlanError, "a"),
    ],
)
async def test_a_mistake_is_told_before_anything_runs(
    query: str, options: dict[str, Any], error: type[Exception], told: str
) -> None:
    events: list[Event] = []

    with pytest.raises(error, match=told):
        await team().arun(query, on_event=events.append, **options)

    assert events == []


async def test_an_empty_query_is_not_planned() -> None:
    with pytest.raises(ValueError, match="the query is empty"):
        await team().aplan(" ")


def test_an_unknown_planner_is_told_at_once() -> None:
    with pytest.raises(PoolError, match="no worker is called 'z'"):
        team(planner="z")


# -- without async, deadlines, events ------------------------------------------------------------


def test_run_and_plan_need_no_event_loop() -> None:
    assert team().run("Why?", worker="a").answer == "a: Why?"
    assert len(team().plan("Why?").plan or ()) == 2


@pytest.mark.parametrize("name", ["run", "plan"])
async def test_inside_an_event_loop_the_async_twin_is_named(name: str) -> None:
    with pytest.raises(RuntimeError, match=rf"write `await conductor\.a{name}\(\.\.\.\)`"):
        getattr(team(), name)("Why?")


@pytest.mark.parametrize("ask", ["arun", "aplan"])
async def test_the_deadline_covers_planning(ask: str) -> None:
    async def never(messages: Sequence[Message]) -> str:
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    conductor = Conductor(Pool([echo("a")]), planner=FunctionWorker("slow", never))

    run = await getattr(conductor, ask)("Why?", budget=Budget(seconds=0.0))

    assert (run.state, run.plan) == (RunState.FAILED, None)
    assert run.failure.kind is FailureKind.DEADLINE


@pytest.mark.parametrize(
    "options",
    [{}, {"worker": "a"}, {"plan": chain(["x", "y"], [0, 1])}],
    ids=["planned", "picked", "given"],
)
async def test_the_events_are_the_run(options: dict[str, Any]) -> None:
    events: list[Event] = []

    run = await team().arun("Why?", on_event=events.append, **options)

    assert fold(events) == run
    assert isinstance(events[0], RunStarted)
    assert isinstance(events[-1], RunFinished)
    assert [event.at for event in events] == sorted(event.at for event in events)


# -- without arguments ---------------------------------------------------------------------------


def test_the_embedded_pool_answers_without_keys() -> None:
    run = Conductor().run("Why is the sky blue?")

    assert run.state is RunState.DONE, run.failure
    assert run.source is PlanSource.CONDUCTOR
    assert run.workers == embedded_pool().names
    assert run.plan
    assert [step.state for step in run.steps] == [StepState.DONE] * len(run.plan)
    assert run.answer and run.answer.strip()
    assert run.usage.output_tokens > 0 < run.planning_usage.output_tokens
