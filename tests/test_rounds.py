"""Recursion: later rounds that see the answer, and the Conductor itself as the worker of a step."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from conductor import Conductor, Planner
from conductor.prompt import plan_messages, revision_messages
from grammar import Plan, decoding_grammar, parse_revision
from runtime import (
    Account,
    Budget,
    Call,
    Completion,
    ConductorWorker,
    Event,
    FailureKind,
    FunctionWorker,
    LocalModel,
    LocalWorker,
    Message,
    NestedEvent,
    OnText,
    PlannerSettings,
    Pool,
    PoolError,
    Run,
    RunState,
    Sampling,
    StepState,
    Terms,
    Usage,
    Worker,
    fold,
)

pytestmark = pytest.mark.anyio

FIRST = 'subtasks = ["Draft it.", "Finish it."]\nworkers = [0, 1]\naccess = [[], [0]]\n'
SECOND = 'subtasks = ["Check it.", "Look aside.", "Mend it."]\nworkers = [1, 0, 1]\n'
SECOND += "access = [[], [], [0, 1]]\n"
KEEP = "subtasks = []\nworkers = []\naccess = []\n"
DELEGATE = 'subtasks = ["Do the hard part.", "Sum up."]\nworkers = [2, 0]\naccess = [[], [0]]\n'


class Scribe:
    """A Conductor model by script."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)
        self.asked: list[tuple[Message, ...]] = []

    async def __call__(self, messages: Sequence[Message]) -> Completion:
        self.asked.append(tuple(messages))
        return Completion(self.texts.pop(0), usage=Usage(100, 10))


class Echo:
    """Workers that number their replies; and what each of them saw."""

    def __init__(self, *names: str) -> None:
        self.saw: list[str] = []
        self.workers: list[Worker] = [FunctionWorker(name, self) for name in names]

    async def __call__(self, messages: Sequence[Message]) -> Completion:
        self.saw.append(messages[-1].content)
        return Completion(f"reply {len(self.saw)}", usage=Usage(10, 1))


def team(scribe: Scribe, *more: Worker, names: str = "ab") -> tuple[Conductor, Echo]:
    echo = Echo(*names)
    pool = Pool([*echo.workers, *more], terms=Terms(retries=0))
    return Conductor(pool, planner=Planner(FunctionWorker("scribe", scribe))), echo


# -- rounds ----------------------------------------------------------------------------------------


async def test_the_conductor_sees_the_answer_and_plans_again_until_it_keeps_it() -> None:
    """Each round is in the record; the answer is that of the last one with a plan."""
    scribe = Scribe(FIRST, SECOND, KEEP)
    conductor, _ = team(scribe)
    events: list[Event] = []

    run = await conductor.arun("Why?", rounds=5, on_event=events.append)

    assert [len(each.steps) for each in run.rounds] == [2, 3, 0]
    assert [each.kept for each in run.rounds] == [False, False, True]
    assert [each.answer for each in run.rounds] == ["reply 2", "reply 5", None]
    assert (run.state, run.answer, run.failure) == (RunState.DONE, "reply 5", None)
    assert run.plan == run.rounds[1].plan
    assert run.orchestration == Account(calls=3, usage=Usage(300, 30))
    assert run.usage == Usage(50, 5)
    assert run == fold(events) == Run.from_json(run.to_json())


async def test_what_later_rounds_are_asked_is_the_conversation_so_far() -> None:
    """The plan as the model wrote it, the answer it led to, and the choice to keep it."""
    scribe = Scribe(FIRST, SECOND, KEEP)
    conductor, _ = team(scribe)

    await conductor.arun("Why?", rounds=3)

    first = plan_messages("Why?", 2)
    second = revision_messages(first, FIRST, "reply 2")
    assert scribe.asked == [first, second, revision_messages(second, SECOND, "reply 5")]
    assert "reply 2" in second[-1].content
    assert "three empty lists" in second[-1].content


async def test_steps_that_read_all_before_them_see_the_previous_answer() -> None:
    """Step 0 does, vacuously, and step 2; step 1, which reads nothing, does not."""
    conductor, _ = team(Scribe(FIRST, SECOND))

    run = await conductor.arun("Why?", rounds=2)

    saw = ["reply 2" in step.messages[-1].content for step in run.rounds[1].steps]
    assert saw == [True, False, True]


async def test_rounds_end_with_the_most_that_are_allowed() -> None:
    """Nobody is asked after the last one."""
    scribe = Scribe(FIRST, FIRST, FIRST)
    conductor, _ = team(scribe)

    run = await conductor.arun("Why?", rounds=2)

    assert (len(run.rounds), len(scribe.texts)) == (2, 1)


async def test_a_garbled_later_round_keeps_nothing_but_the_answer_stays() -> None:
    """No lists are no word to keep: it is a failure, told, beside the answer of round one."""
    conductor, _ = team(Scribe(FIRST, "It looks fine to me.", "Really."))

    run = await conductor.arun("Why?", rounds=2)

    assert (run.state, run.answer, run.rounds[1].kept) == (RunState.DONE, "reply 2", False)
    assert run.failure is not None
    assert run.failure.kind is FailureKind.NO_PLAN


async def test_three_empty_lists_in_the_first_round_are_no_plan() -> None:
    """There is nothing to keep."""
    conductor, _ = team(Scribe(KEEP, KEEP))

    run = await conductor.arun("Why?", rounds=2)

    assert (run.state, run.answer) == (RunState.FAILED, None)
    assert run.planning[0].diagnostics[0].code == "P202"


async def test_a_later_round_that_fails_leaves_the_answer_before_it() -> None:
    """Best so far: the record says that and why the last round came to nothing."""
    scribe = Scribe(FIRST, SECOND)
    conductor, _ = team(scribe)

    run = await conductor.arun("Why?", rounds=2, budget=Budget(calls=5))

    assert (run.state, run.answer) == (RunState.DONE, "reply 2")
    assert run.failure is not None
    assert run.failure.kind is FailureKind.BUDGET
    assert run.best == run.rounds[0].steps[-1]


async def test_a_given_plan_may_be_followed_by_rounds_of_the_conductor() -> None:
    """It is told the given plan in its own form: one line a list, workers by number."""
    scribe = Scribe(KEEP)
    conductor, _ = team(scribe)
    plan = Plan.of(["Do it."], ["b"], [[]])

    run = await conductor.arun("Why?", plan=plan, rounds=2)

    told = 'subtasks = ["Do it."]\nworkers = [1]\naccess = [[]]\n'
    assert scribe.asked == [revision_messages(plan_messages("Why?", 2), told, "reply 1")]
    assert (run.answer, run.rounds[1].kept) == ("reply 1", True)


async def test_a_picked_worker_is_not_asked_twice() -> None:
    """A single pick has one round, whatever is allowed."""
    conductor, echo = team(Scribe())

    run = await conductor.arun("Why?", worker="a", rounds=3)

    assert (run.answer, len(echo.saw), run.rounds[-1].kept) == ("reply 1", 1, True)


async def test_pool_settings_hold_unless_the_run_says_otherwise() -> None:
    """Rounds, budget and fallback of the [run] table."""
    from runtime import RunSettings

    scribe = Scribe(FIRST, KEEP, FIRST)
    echo = Echo("a", "b")
    settings = RunSettings(Budget(calls=50), rounds=2, fallback=("b",))
    pool = Pool(echo.workers, settings=settings)
    conductor = Conductor(pool, planner=Planner(FunctionWorker("scribe", scribe)))

    as_set = await conductor.arun("Why?")
    other = await conductor.arun("Why?", rounds=1, budget=Budget())

    assert (as_set.most_rounds, as_set.budget, len(as_set.rounds)) == (2, Budget(calls=50), 2)
    assert (other.most_rounds, other.budget, len(other.rounds)) == (1, Budget(), 1)


def test_the_grammar_of_later_rounds_allows_three_empty_lists() -> None:
    """In both forms that are at hand, and what it allows is read as the word to keep."""
    from lark import Lark
    from lark.exceptions import UnexpectedInput

    keeping = Lark(decoding_grammar(2, keep=True), parser="lalr")
    keeping.parse(KEEP)
    keeping.parse(FIRST)
    with pytest.raises(UnexpectedInput):
        Lark(decoding_grammar(2), parser="lalr").parse(KEEP)
    assert 'plan0 ::= "subtasks = ["' in decoding_grammar(2, keep=True, form="gbnf")
    assert parse_revision(KEEP) is None


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_real_model_goes_through_two_rounds(small_model: LocalModel) -> None:
    """Under the grammar it keeps the answer or writes a valid plan; both end in an answer."""
    short = Sampling(temperature=0.0, max_tokens=12)
    pool = Pool(
        [
            LocalWorker("a", small_model, sampling=short),
            LocalWorker("b", small_model, sampling=short),
        ],
        planner=LocalWorker("conductor", small_model),
        planning=PlannerSettings(
            most_steps=2, subtask_characters=40, sampling=Sampling(temperature=0.0, max_tokens=160)
        ),
    )

    run = await Conductor(pool).arun("What is the capital of France?", rounds=2)

    assert run.state is RunState.DONE
    assert run.answer
    assert len(run.rounds) == 2
    assert run.rounds[1].kept or run.rounds[1].plan is not None
    assert all(not each.diagnostics for each in run.planning)


# -- the Conductor itself as a worker --------------------------------------------------------------


async def test_a_step_of_the_conductor_is_a_run_inside_the_run() -> None:
    """Its record is in the step, its events in the stream, its cost in the run's accounts."""
    scribe = Scribe(DELEGATE, FIRST)
    conductor, echo = team(scribe, ConductorWorker("self"))
    events: list[Event] = []

    run = await conductor.arun("Why?", on_event=events.append)

    inner = run.steps[0].run
    assert inner is not None
    assert (run.answer, run.steps[0].text, inner.answer) == ("reply 3", "reply 2", "reply 2")
    assert (inner.id, inner.workers) == (f"{run.id}.0.0", ("a", "b"))
    assert inner.query == run.steps[0].messages[-1].content
    assert "Do the hard part." in inner.query
    assert run.accounts == {
        "a": Account(calls=2, usage=Usage(20, 2)),
        "b": Account(calls=1, usage=Usage(10, 1)),
    }
    assert run.orchestration == Account(calls=2, usage=Usage(200, 20))
    nested = [event.event for event in events if isinstance(event, NestedEvent)]
    assert fold(nested) == inner
    assert run == fold(events) == Run.from_json(run.to_json())
    assert len(echo.saw) == 3


async def test_depth_is_bounded_and_at_the_bound_the_conductor_is_no_worker() -> None:
    """Two deep: the innermost pool offers the models alone."""
    deeper = DELEGATE.replace("hard", "harder")
    scribe = Scribe(DELEGATE, deeper, FIRST)
    conductor, _ = team(scribe, ConductorWorker("self"))

    run = await conductor.arun("Why?", budget=Budget(depth=2))

    inner = run.steps[0].run
    assert inner is not None and inner.steps[0].run is not None
    assert inner.workers == ("a", "b", "self")
    assert inner.steps[0].run.workers == ("a", "b")
    assert run.state is RunState.DONE


async def test_no_depth_is_left_then_its_step_fails() -> None:
    """A given plan may ask for it all the same; it is told what to raise."""
    conductor, _ = team(Scribe(DELEGATE), ConductorWorker("self"))

    run = await conductor.arun("Why?", budget=Budget(depth=0))

    assert (run.state, run.steps[0].run) == (RunState.FAILED, None)
    assert run.failure is not None
    assert run.failure.kind is FailureKind.BUDGET
    assert "raise depth" in run.failure.message


async def test_nested_runs_draw_on_the_same_budget() -> None:
    """Two plans, and one step of the inner one: then it is used up, inside and outside."""
    conductor, echo = team(Scribe(DELEGATE, FIRST), ConductorWorker("self"))

    run = await conductor.arun("Why?", budget=Budget(calls=3))

    assert len(echo.saw) == 1
    inner = run.steps[0].run
    assert inner is not None and inner.failure is not None and run.failure is not None
    assert inner.failure.kind is run.failure.kind is FailureKind.BUDGET
    assert run.orchestration.calls + run.accounts["a"].calls == 3


async def test_a_nested_run_that_fails_fails_its_step() -> None:
    """With its reason; the record keeps how far it came."""
    conductor, _ = team(Scribe(DELEGATE, "no plan", "none"), ConductorWorker("self"))

    run = await conductor.arun("Why?")

    assert [step.state for step in run.steps] == [StepState.FAILED, StepState.SKIPPED]
    assert run.steps[0].run is not None
    assert run.failure is not None
    assert run.failure.kind is FailureKind.NO_PLAN


async def test_the_conductor_alone_is_no_pool() -> None:
    """Somebody has to do the work."""
    with pytest.raises(PoolError, match="no worker but the Conductor itself"):
        Pool([ConductorWorker()])


async def test_outside_a_run_it_answers_nothing() -> None:
    """It says what it is."""
    from runtime import WorkerError

    def drop(text: str) -> None: ...

    heard: OnText = drop
    with pytest.raises(WorkerError, match="works as a step of a plan only"):
        await ConductorWorker().complete(Call((Message("user", "q"),)), heard)
