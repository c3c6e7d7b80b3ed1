"""Event and Run: the fold of the events is the Run, also as JSON and also half-way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import FrozenInstanceError, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grammar import Plan, PlanError, chain, parse
from runtime import (
    Completion,
    Event,
    Failure,
    FailureKind,
    FinishReason,
    FunctionWorker,
    Message,
    PlanAttempt,
    PlanAttempted,
    PlanDelta,
    PlanParsed,
    PlanSource,
    PlanStarted,
    Pool,
    Record,
    Round,
    Run,
    RunFinished,
    RunResumed,
    RunStarted,
    RunState,
    StepDelta,
    StepFinished,
    StepResult,
    StepStarted,
    StepState,
    Usage,
    WorkerError,
    flattened,
    fold,
    marks,
    run_plan,
)

PLAN = chain(["draft", "check"], ["a", "b"])
START = RunStarted(0.0, "id", "q", ("a", "b"), "2026-01-01T00:00:00.000+00:00")
ASKED = (Message("user", "q"),)
DRAFT = StepResult(0, "a", StepState.DONE, "draft!", ASKED, Usage(3, 2, 1), FinishReason.STOP, "m")
CHECK = StepResult(1, "b", StepState.DONE, "fine", ASKED, Usage(5, 7))

# -- random events, in an order that a run could have ------------------------------------------

seconds = st.floats(0, 1e9, allow_nan=False)
counts = st.integers(0, 10**9)
usages = st.builds(Usage, counts, counts, counts)
failures = st.builds(Failure, st.sampled_from(FailureKind), st.text(), st.none() | seconds)
messages = st.lists(
    st.builds(Message, st.sampled_from(["system", "user", "assistant"]), st.text()), max_size=3
).map(tuple)


def diagnostics() -> st.SearchStrategy[tuple[object, ...]]:
    """Real ones, with and without a place in a text."""
    found = []
    for text in ("no plan", 'subtasks = ["a"\nworkers = [0]\naccess = [[]]', ""):
        try:
            parse(text)
        except PlanError as error:
            found.append(error.diagnostics)
    return st.sampled_from([(), *found])


attempts = st.builds(PlanAttempt, st.text(), st.text(), st.none() | usages, seconds, diagnostics())


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    size = draw(st.integers(1, 6))
    access = [sorted(draw(st.sets(st.integers(0, i - 1)))) if i else [] for i in range(size)]
    subtasks = [f"do {draw(st.text())}" for _ in range(size)]
    workers: list[str | int] = [draw(st.sampled_from(("a", "b"))) for _ in range(size)]
    workers[0] = draw(st.integers(0, 9))
    return Plan.of(subtasks, workers, access)


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """Any prefix of any run, consistent or not in what it tells: the fold has no opinion."""
    workers = draw(st.lists(st.text(), max_size=3).map(tuple))
    events: list[Event] = [RunStarted(0.0, draw(st.text()), draw(st.text()), workers, "now")]
    for attempt in draw(st.lists(attempts, max_size=2)):
        events.append(PlanStarted(draw(seconds), attempt.worker, 0))
        events.append(PlanDelta(draw(seconds), attempt.text))
        events.append(PlanAttempted(draw(seconds), attempt))
    if draw(st.booleans()):
        plan = draw(plans())
        events.append(PlanParsed(draw(seconds), plan, draw(st.sampled_from(PlanSource))))
        for index in draw(st.permutations(range(len(plan)))):
            events.append(StepStarted(draw(seconds), index, "a", draw(messages)))
            events.append(StepDelta(draw(seconds), index, draw(st.text())))
            result = StepResult(
                index,
                draw(st.text()),
                draw(st.sampled_from([StepState.DONE, StepState.FAILED, StepState.SKIPPED])),
                draw(st.text()),
                draw(messages),
                draw(st.none() | usages),
                draw(st.none() | st.sampled_from(FinishReason)),
                draw(st.text()),
                draw(seconds),
                draw(seconds),
                draw(st.none() | failures),
                draw(st.none() | st.integers(0, 5)),
            )
            events.append(StepFinished(draw(seconds), result))
    state = draw(st.sampled_from(RunState))
    events.append(RunFinished(draw(seconds), state, draw(st.none() | failures)))
    return events[: draw(st.integers(1, len(events)))]


@given(histories())
def test_json_gives_the_same_run_again(events: list[Event]) -> None:
    """Whatever happened, and however far it came."""
    run = fold(events)

    assert run == Run.from_json(run.to_json())
    assert run == Run.from_json(run.to_json(indent=2))


@given(histories())
def test_a_record_holds_the_run_so_far(events: list[Event]) -> None:
    """After each event, the Record is the fold of the events up to it."""
    record = Record()
    for count, event in enumerate(events, 1):
        record.add(event)
        assert fold(events[:count]) == record.run


def test_a_run_is_all_that_its_events_tell() -> None:
    """Every field of a finished run, from events that come out of order of index."""
    bad = PlanAttempt("a", "well...", Usage(10, 1), 0.1)
    good = PlanAttempt("a", "subtasks = ...", Usage(20, 2), 0.2)
    failure = Failure(FailureKind.TIMEOUT, "step 0 (a): too slow")
    failed = StepResult(0, "a", StepState.FAILED, failure=failure)
    skipped = StepResult(1, "b", StepState.SKIPPED, because_of=0)

    run = fold(
        [
            START,
            PlanStarted(0.1, "a", 0),
            PlanDelta(0.2, "well..."),
            PlanAttempted(0.2, bad),
            PlanAttempted(0.3, good),
            PlanParsed(0.3, PLAN, PlanSource.CONDUCTOR),
            StepStarted(0.3, 0, "a", ASKED),
            StepFinished(0.5, skipped),
            StepFinished(0.5, failed),
            RunFinished(0.6, RunState.FAILED, failure),
        ]
    )

    assert run == Run(
        id="id",
        query="q",
        workers=("a", "b"),
        started="2026-01-01T00:00:00.000+00:00",
        state=RunState.FAILED,
        seconds=0.6,
        rounds=(Round((bad, good), PLAN, PlanSource.CONDUCTOR, (failed, skipped)),),
        failure=failure,
    )
    assert None is run.answer
    assert Usage(30, 3) == run.planning_usage


def test_a_run_that_goes_on_plans_again_where_planning_was_cut_off() -> None:
    """Killed after the failed attempt was told, and before the run's end was."""
    failed = PlanAttempt("p", "", None, 1.0, failure=Failure(FailureKind.CANCELLED, "stopped"))
    odd = PlanAttempt("p", "no plan", Usage(1, 2), 1.0)
    events = [START, PlanAttempted(1.0, odd), PlanAttempted(2.0, failed), RunResumed(2.0)]
    assert fold(events).planning == (odd,)


def test_a_run_under_way_knows_what_is_settled() -> None:
    """A Record can be read in the middle, and its earlier reading does not change."""
    record = Record()
    record.add(START)
    record.add(PlanParsed(0.1, PLAN, PlanSource.GIVEN))
    record.add(StepStarted(0.1, 0, "a", ASKED))
    record.add(StepDelta(0.2, 0, "dra"))
    before = record.run
    record.add(StepFinished(0.5, DRAFT))

    assert (before.state, before.seconds, before.steps, before.answer) == (
        RunState.RUNNING,
        0.2,
        (),
        None,
    )
    assert (record.run.state, record.run.seconds, record.run.steps, record.run.answer) == (
        RunState.RUNNING,
        0.5,
        (DRAFT,),
        None,
    )


def run_of(*results: StepResult, plan: Plan | None = PLAN) -> Run:
    return Run("id", "q", ("a", "b"), "now", rounds=(Round(plan=plan, steps=results),))


@pytest.mark.parametrize(
    ("run", "answer"),
    [
        pytest.param(run_of(DRAFT, CHECK), "fine", id="last-step-done"),
        pytest.param(run_of(DRAFT), None, id="last-step-not-there-yet"),
        pytest.param(run_of(), None, id="nothing-there-yet"),
        pytest.param(run_of(plan=None), None, id="no-plan"),
        pytest.param(
            run_of(DRAFT, StepResult(1, "b", StepState.FAILED, "half")), None, id="last-step-failed"
        ),
        pytest.param(
            run_of(StepResult(0, "a", StepState.FAILED), CHECK), "fine", id="another-step-failed"
        ),
    ],
)
def test_the_answer_is_the_completion_of_the_last_step(run: Run, answer: str | None) -> None:
    """And of no other: a draft is never passed off as the answer."""
    assert answer == run.answer


def test_usage_adds_up_over_steps_that_counted() -> None:
    """Workers that do not count add nothing; planning is told apart."""
    uncounted = StepResult(2, "b", StepState.DONE, "x")

    run = run_of(DRAFT, CHECK, uncounted)

    assert Usage(8, 9, 1) == run.usage
    assert Usage() == run.planning_usage
    assert Usage() == run_of().usage


@pytest.mark.parametrize(
    "events",
    [
        pytest.param([], id="no-events"),
        pytest.param([PlanDelta(0.0, "x")], id="another-event"),
        pytest.param([RunFinished(0.0, RunState.DONE), START], id="start-comes-late"),
        pytest.param([START, START], id="two-starts"),
    ],
)
def test_events_that_do_not_begin_with_one_start_are_refused(events: Iterable[Event]) -> None:
    """A Run is the record of one run from its beginning."""
    with pytest.raises(ValueError, match=r"(?i)run_?started"):
        fold(events)


def test_a_refused_event_changes_nothing() -> None:
    """The record stays what it was."""
    record = Record()
    record.add(START)
    before = record.run

    with pytest.raises(ValueError, match="run_started"):
        record.add(RunStarted(9.0, "other", "other", (), "other"))

    assert before == record.run


@pytest.mark.parametrize("value", [START, DRAFT, run_of(), Usage(), ASKED[0], Completion("x")])
def test_values_are_frozen(value: object) -> None:
    """What has been recorded can't be changed, nor can anything be added to it."""
    name = fields(value)[0].name  # type: ignore[arg-type]  # dataclasses, all of them
    with pytest.raises(FrozenInstanceError):
        setattr(value, name, "changed")
    assert not hasattr(value, "__dict__")


GOOD = run_of(DRAFT, CHECK).to_json()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("nonsense", id="no-json"),
        pytest.param(GOOD[:-1], id="cut-off"),
        pytest.param("[]", id="a-list"),
        pytest.param("{}", id="nothing-in-it"),
        pytest.param("null", id="null"),
        pytest.param(GOOD.replace('"running"', '"walking"'), id="unknown-state"),
        pytest.param(GOOD.replace('"access":[0]', '"access":[1]'), id="plan-that-is-none"),
        pytest.param(GOOD.replace('"role":"user"', '"role":"root"'), id="unknown-role"),
        pytest.param(GOOD.replace('"query":"q"', '"query":1'), id="wrong-type"),
        pytest.param('{"a":' * 10_000, id="too-deep"),
    ],
)
def test_json_that_is_no_run_is_refused(text: str) -> None:
    """It raises ValueError, whatever is wrong."""
    assert text != GOOD
    with pytest.raises(ValueError, match=r"."):
        Run.from_json(text)


@pytest.mark.anyio
async def test_the_events_of_a_run_fold_to_the_run() -> None:
    """The engine returns what its events tell, to the last field; JSON keeps it."""

    async def answer(messages: object) -> Completion:
        return Completion("fine", usage=Usage(1, 2), model="m-1")

    async def broken(messages: object) -> str:
        raise WorkerError(FailureKind.REJECTED, "no")

    pool = Pool([FunctionWorker("a", answer), FunctionWorker("b", broken)])
    plan = Plan.of(["one", "two", "three"], ["a", "b", "a"], [[], [], [0]])
    events: list[Event] = []

    run = await run_plan(plan, "q", pool, emit=events.append)

    assert run == fold(events) == Run.from_json(run.to_json())
    assert ("fine", Usage(2, 4)) == (run.answer, run.usage)


# -- one plan of many, for pictures --------------------------------------------------------------


def result(index: int, **fields: object) -> StepResult:
    return StepResult(index, "a", StepState.DONE, f"said {index}", **fields)  # type: ignore[arg-type]


def whole(plan: Plan, *, without: Iterable[int] = (), **runs: Run) -> Round:
    """A round whose steps are done, some of them by a run of their own."""
    steps = (
        result(step.index, run=runs.get(f"run_{step.index}"))
        for step in plan
        if step.index not in without
    )
    return Round(plan=plan, source=PlanSource.GIVEN, steps=tuple(steps))


def done(*rounds: Round, state: RunState = RunState.DONE) -> Run:
    return Run("id", "q", ("a", "b"), "now", state, rounds=rounds)


def test_a_run_of_one_plan_is_drawn_as_it_is() -> None:
    """The same plan, and the marks of its steps."""
    run = done(whole(PLAN))

    assert flattened(run) == (PLAN, marks(run))
    assert flattened(done(Round(plan=PLAN), state=RunState.PLANNED)) == (PLAN, {})


def test_a_run_inside_a_step_stands_before_it() -> None:
    """Its steps begin with what the step reads; the step reads the last of them."""
    inner = Plan.of(["p", "q", "r"], ["a", "b", "a"], [[], [], [0, 1]])
    outer = Plan.of(["x", "y", "z"], ["a", "self", "b"], [[], [0], [0, 1]])
    run = done(whole(outer, run_1=done(whole(inner))))

    plan, states = flattened(run)

    assert plan == Plan.of(
        ["x", "p", "q", "r", "y", "z"],
        ["a", "a", "b", "a", "self", "b"],
        [[], [0], [0], [1, 2], [0, 3], [0, 4]],
    )
    numbers = ["", "1.0", "1.1", "1.2", "1", "2"]
    assert [states[at].number for at in range(6)] == numbers


def test_runs_are_nested_to_any_depth() -> None:
    deep = done(whole(chain(["deep"], ["a"])))
    middle = done(whole(chain(["middle"], ["self"]), run_0=deep))
    run = done(whole(chain(["x", "top"], ["a", "self"]), run_1=middle))

    plan, states = flattened(run)

    assert plan.subtasks == ("x", "deep", "middle", "top")
    assert plan.access == ((), (0,), (0, 1), (0, 2))
    assert [states[at].number for at in range(4)] == ["", "1.0.0", "1.0", "1"]


def test_steps_of_a_later_round_read_the_answer_if_they_saw_it() -> None:
    """Those that read all steps before them; from the last round that had an answer."""
    second = Plan.of(["d", "e", "f"], ["a", "a", "a"], [[], [], [0, 1]])
    failed = whole(chain(["c"], ["a"]), without=[0])
    run = done(whole(PLAN), failed, Round(kept=True), whole(second))

    plan, states = flattened(run)

    assert plan.subtasks == ("draft", "check", "c", "d", "e", "f")
    assert plan.access == ((), (0,), (1,), (1,), (), (1, 3, 4))
    assert [states[at].number for at in range(6)] == [
        "R1.0",
        "R1.1",
        "R2.0",
        "R3.0",
        "R3.1",
        "R3.2",
    ]
    assert states[2].state == "waiting"


def test_a_run_without_a_plan_can_not_be_drawn() -> None:
    with pytest.raises(ValueError, match="run id came to no plan"):
        flattened(done(Round()))
