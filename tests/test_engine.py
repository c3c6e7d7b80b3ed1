"""Engine: what starts when, what failure, deadline and cancellation leave, and what is told."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from typing import Any, Self

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grammar import Plan, PlanError, chain, single
from runtime import (
    Account,
    Budget,
    Call,
    Completion,
    Event,
    Failure,
    FailureKind,
    FinishReason,
    FunctionWorker,
    Health,
    Message,
    NoPlan,
    OnText,
    PlanParsed,
    PlanSource,
    Pool,
    Run,
    RunFinished,
    RunStarted,
    RunState,
    Session,
    StepDelta,
    StepFinished,
    StepResult,
    StepStarted,
    StepState,
    Terms,
    Usage,
    Worker,
    WorkerError,
    carry_out,
    fold,
    run_plan,
)

pytestmark = pytest.mark.anyio

ONCE = Terms(retries=0)
DONE, FAILED, SKIPPED = StepState.DONE, StepState.FAILED, StepState.SKIPPED


# -- workers --------------------------------------------------------------------------------------


async def say(messages: Sequence[Message]) -> str:
    """Answer at once."""
    return "said"


async def hang(messages: Sequence[Message]) -> str:
    """Never answer."""
    await anyio.sleep_forever()
    raise AssertionError


class Gates:
    """Workers that each wait until the test lets them go; and who has started."""

    def __init__(self, *names: str) -> None:
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self._open: defaultdict[str, anyio.Event] = defaultdict(anyio.Event)
        self.pool = Pool(FunctionWorker(name, self._waiting(name)) for name in names)

    def _waiting(self, name: str) -> Callable[[Sequence[Message]], Awaitable[str]]:
        async def wait(messages: Sequence[Message]) -> str:
            self.started.append(name)
            try:
                await self._open[name].wait()
            except anyio.get_cancelled_exc_class():
                self.cancelled.append(name)
                raise
            return f"{name} is done"

        return wait

    async def let(self, *names: str) -> list[str]:
        """Let workers finish, and tell who has started once all is quiet again."""
        for name in names:
            self._open[name].set()
        await anyio.wait_all_tasks_blocked()
        return self.started


class Typist:
    """A worker by protocol alone: writes letter by letter, and counts who holds it open."""

    name = "typist"
    card = ""
    tags: tuple[str, ...] = ()
    constrains = False
    identity = "typist"

    def __init__(self, text: str) -> None:
        self.text = text
        self.holders = 0
        self.entered = 0

    async def complete(self, call: Call, on_text: OnText = lambda text: None) -> Completion:
        assert self.holders > 0
        for letter in self.text:
            await anyio.lowlevel.checkpoint()
            on_text(letter)
        return Completion(self.text, FinishReason.LENGTH, Usage(1, len(self.text)), "typist-1")

    async def check(self) -> Health:
        return Health(True, "at the desk")

    async def __aenter__(self) -> Self:
        self.holders += 1
        self.entered += 1
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await anyio.lowlevel.checkpoint()
        self.holders -= 1


def pool_of(**functions: Any) -> Pool:
    workers = (FunctionWorker(name, function) for name, function in functions.items())
    return Pool(workers, terms=ONCE)


def states(run: Run) -> tuple[StepState, ...]:
    return tuple(step.state for step in run.steps)


def outline(events: Sequence[Event]) -> list[Any]:
    """Kinds of events, with the step and state where there is one."""
    told: list[Any] = []
    for event in events:
        match event:
            case StepStarted(index=index) | StepDelta(index=index):
                told.append((event.kind, index))
            case StepFinished(result=result):
                told.append((event.kind, result.index, result.state.value))
            case RunFinished(state=state):
                told.append((event.kind, state.value))
            case _:
                told.append(event.kind)
    return told


# -- what starts when -----------------------------------------------------------------------------


async def test_a_step_starts_the_moment_its_own_inputs_are_done() -> None:
    """A fast branch runs to its end while the slow one is still at its first step."""
    names = ["slow1", "fast1", "slow2", "fast2", "fast3", "last"]
    gates = Gates(*names)
    plan = Plan.of(names, names, [[], [], [0], [1], [3], [2, 4]])

    async with anyio.create_task_group() as group:
        group.start_soon(run_plan, plan, "q", gates.pool)
        assert set(await gates.let()) == {"slow1", "fast1"}
        assert (await gates.let("fast1"))[2:] == ["fast2"]
        assert (await gates.let("fast2"))[2:] == ["fast2", "fast3"]
        assert (await gates.let("fast3"))[2:] == ["fast2", "fast3"]
        assert (await gates.let("slow1"))[2:] == ["fast2", "fast3", "slow2"]
        assert (await gates.let("slow2"))[2:] == ["fast2", "fast3", "slow2", "last"]
        await gates.let("last")


async def test_all_independent_steps_run_at_once() -> None:
    """Two hundred calls are under way together, and of one worker too."""
    running = 0
    together = anyio.Event()

    async def meet(messages: Sequence[Message]) -> str:
        nonlocal running
        running += 1
        if running == 200:
            together.set()
        await together.wait()
        return "met"

    plan = Plan.of([f"do {i}" for i in range(200)], ["w"] * 200, [[]] * 200)
    with anyio.fail_after(20):
        run = await run_plan(plan, "q", pool_of(w=meet))

    assert states(run) == (DONE,) * 200


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(chain([f"do {i}" for i in range(2_000)], ["w"]), id="chain"),
        pytest.param(
            Plan.of(
                [f"do {i}" for i in range(2_002)],
                ["w"] * 2_002,
                [[], *[[0]] * 2_000, range(1, 2_001)],
            ),
            id="fan-out",
        ),
    ],
)
async def test_two_thousand_steps_run(plan: Plan) -> None:
    """Neither depth nor width is bounded by the stack."""
    run = await run_plan(plan, "q", pool_of(w=say))

    assert (run.state, run.answer) == (RunState.DONE, "said")
    assert (DONE,) * len(plan) == states(run)


async def test_numbers_become_names_before_anything_else() -> None:
    """The record names workers, whatever the plan said."""
    events: list[Event] = []
    plan = Plan.of(["one", "two", "three"], [1, "a", "0"], [[], [], "all"])

    run = await run_plan(plan, "q", pool_of(a=say, b=say), emit=events.append)

    assert tuple(step.worker for step in run.steps) == ("b", "a", "a")
    assert run.plan == Plan.of(["one", "two", "three"], ["b", "a", "a"], [[], [], "all"])
    assert run.workers == ("a", "b")
    assert run.source == PlanSource.GIVEN


async def test_an_unknown_worker_is_an_error_before_anything_is_called() -> None:
    """Nothing happens, not even an event."""
    gates = Gates("a")
    events: list[Event] = []

    with pytest.raises(PlanError, match="no worker is called 'b'"):
        await run_plan(chain(["x", "y"], ["a", "b"]), "q", gates.pool, emit=events.append)

    assert (events, gates.started) == ([], [])


# -- what is told ---------------------------------------------------------------------------------


async def test_events_come_in_order_and_complete() -> None:
    """Each step starts, writes and finishes after its inputs, inside the run's first and last."""
    events: list[Event] = []

    async def broken(messages: Sequence[Message]) -> str:
        raise WorkerError(FailureKind.REJECTED, "no")

    plan = Plan.of(list("abcd"), ["w", "w", "x", "w"], [[], [0], [1], [2]])
    run = await run_plan(plan, "q", pool_of(w=say, x=broken), emit=events.append)

    assert outline(events) == [
        "run_started",
        "plan_parsed",
        ("step_started", 0),
        ("step_delta", 0),
        ("step_finished", 0, "done"),
        ("step_started", 1),
        ("step_delta", 1),
        ("step_finished", 1, "done"),
        ("step_started", 2),
        ("step_finished", 2, "failed"),
        ("step_finished", 3, "skipped"),
        ("run_finished", "failed"),
    ]
    assert sorted(event.at for event in events) == [event.at for event in events]
    assert isinstance(events[0], RunStarted)
    assert (run.id, 0.0) == (events[0].run, round(events[0].at, 2))
    assert run == fold(events)


async def test_a_custom_worker_writes_piece_by_piece() -> None:
    """Any class with the protocol's members is a worker; its deltas add up to its text."""
    typist = Typist("one two")
    assert isinstance(typist, Worker)
    events: list[Event] = []

    run = await run_plan(single("typist", "q"), "q", Pool([typist]), emit=events.append)

    pieces = [event.text for event in events if isinstance(event, StepDelta)]
    assert list("one two") == pieces
    step = run.steps[0]
    assert step == StepResult(
        0,
        "typist",
        DONE,
        "one two",
        (Message("user", "q"),),
        Usage(1, 7),
        FinishReason.LENGTH,
        "typist-1",
        step.started_s,
        step.seconds,
        first_text_s=step.first_text_s,
        dollars=Decimal(0),
    )
    assert 0 <= step.started_s <= step.started_s + step.seconds <= run.seconds
    assert (typist.holders, typist.entered) == (0, 1)


@st.composite
def fates(draw: st.DrawFn) -> tuple[Plan, list[int], set[int]]:
    """A plan, how long each step takes, and which fail. Drawn whole: what hypothesis raises to end
    an example must not pass through an event loop."""
    size = draw(st.integers(1, 7))
    access = [sorted(draw(st.sets(st.integers(0, i - 1)))) if i else [] for i in range(size)]
    waits = draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    fails = draw(st.sets(st.integers(0, size - 1), max_size=2))
    plan = Plan.of([f"do {i}" for i in range(size)], [f"w{i}" for i in range(size)], access)
    return plan, waits, fails


@given(fates())
async def test_every_random_run_keeps_its_record(fate: tuple[Plan, list[int], set[int]]) -> None:
    """Events, Run and rules agree for any plan, any failures and any order of completions."""
    plan, waits, fails = fate
    size = len(plan)

    def worker(index: int) -> FunctionWorker:
        async def function(messages: Sequence[Message]) -> str:
            for _ in range(waits[index]):
                await anyio.lowlevel.checkpoint()
            if index in fails:
                raise WorkerError(FailureKind.OVERLOADED, "busy")
            return f"text {index}"

        return FunctionWorker(f"w{index}", function)

    events: list[Event] = []
    pool = Pool((worker(index) for index in range(size)), terms=ONCE)
    run = await run_plan(plan, "q", pool, emit=events.append)

    lost: set[int] = set()
    expected = []
    for step in plan:
        if lost & set(step.access):
            lost.add(step.index)
            expected.append(SKIPPED)
        elif step.index in fails:
            lost.add(step.index)
            expected.append(FAILED)
        else:
            expected.append(DONE)
    assert tuple(expected) == states(run)
    assert run == fold(events) == Run.from_json(run.to_json())
    told = outline(events)
    for step in plan:
        if expected[step.index] is SKIPPED:
            assert ("step_started", step.index) not in told
            because_of = run.steps[step.index].because_of
            assert because_of is not None
            assert expected[because_of] is FAILED
            continue
        start = told.index(("step_started", step.index))
        assert all(told.index(("step_finished", i, "done")) < start for i in step.access)
        assert start < told.index(("step_finished", step.index, expected[step.index].value))
    assert (RunState.DONE if expected[-1] is DONE else RunState.FAILED) == run.state
    assert (run.failure is None) == (expected[-1] is DONE)


async def test_texts_that_no_encoding_can_hold_are_mended() -> None:
    """Half a surrogate pair from outside never makes a record that can't be written."""

    async def broken_emoji(messages: Sequence[Message]) -> str:
        assert messages[-1].content == "q\ufffd"
        return "a\ud83d"

    async def bad_name(messages: Sequence[Message]) -> str:
        raise OSError("no file called \udcff")

    events: list[Event] = []
    plan = Plan.of(["q\ufffd", "other"], ["a", "b"], [[], []])
    run = await run_plan(plan, "q\ud83d", pool_of(a=broken_emoji, b=bad_name), emit=events.append)

    assert (run.query, run.steps[0].text) == ("q\ufffd", "a\ufffd")
    assert [event.text for event in events if isinstance(event, StepDelta)] == ["a\ufffd"]
    assert Failure(FailureKind.INTERNAL, "b raised OSError: no file called \ufffd") == (
        run.steps[1].failure
    )
    assert run == Run.from_json(run.to_json())


# -- failure is data ------------------------------------------------------------------------------


class Silent(Typist):
    """A worker whose bugs are its own."""

    name = "x"

    async def complete(self, call: Call, on_text: OnText = lambda text: None) -> Completion:
        return None  # type: ignore[return-value]  # the bug under test


async def raising(messages: Sequence[Message]) -> str:
    raise RuntimeError("out of ideas")


async def refusing(messages: Sequence[Message]) -> str:
    raise WorkerError(FailureKind.RATE_LIMITED, "slow down", retry_after_s=2.5)


async def blank(messages: Sequence[Message]) -> Completion:
    return Completion(" \n", FinishReason.LENGTH, Usage(4, 9), "m")


async def forgetting(messages: Sequence[Message]) -> str:
    return None  # type: ignore[return-value]  # the bug under test


async def grouped(messages: Sequence[Message]) -> str:
    raise ExceptionGroup("in two", [RuntimeError("out of ideas")])


@pytest.mark.parametrize(
    ("worker", "failure"),
    [
        pytest.param(
            FunctionWorker("x", raising),
            Failure(FailureKind.INTERNAL, "x raised RuntimeError: out of ideas"),
            id="function-raises",
        ),
        pytest.param(
            FunctionWorker("x", refusing),
            Failure(FailureKind.RATE_LIMITED, "slow down", 2.5),
            id="worker-error",
        ),
        pytest.param(
            FunctionWorker("x", blank),
            Failure(FailureKind.EMPTY, "x answered with no text"),
            id="no-text",
        ),
        pytest.param(
            FunctionWorker("x", forgetting),
            Failure(FailureKind.INTERNAL, "x returned NoneType, not a text or Completion"),
            id="function-returns-nothing",
        ),
        pytest.param(
            FunctionWorker("x", grouped),
            Failure(FailureKind.INTERNAL, "x raised ExceptionGroup: in two (1 sub-exception)"),
            id="task-group-raises",
        ),
        pytest.param(
            Silent(""),
            Failure(
                FailureKind.INTERNAL,
                "x raised AttributeError: 'NoneType' object has no attribute 'tool_calls'",
            ),
            id="worker-returns-nothing",
        ),
    ],
)
async def test_a_failing_step_takes_only_its_readers_along(
    worker: Worker, failure: Failure
) -> None:
    """Siblings go on to the answer; what reads the step is skipped and says because of whom."""
    plan = Plan.of(list("abcde"), ["x", "w", "w", "w", "w"], [[], [], [0], [2], [1]])
    pool = Pool([worker, FunctionWorker("w", say)], terms=ONCE)

    run = await run_plan(plan, "q", pool)

    assert states(run) == (FAILED, DONE, SKIPPED, SKIPPED, DONE)
    assert run.steps[0].failure == failure
    assert (run.steps[2].because_of, run.steps[3].because_of) == (0, 0)
    assert (run.state, run.answer, run.failure) == (RunState.DONE, "said", None)


async def test_a_failed_step_keeps_what_was_written_and_spent() -> None:
    """Half a text is evidence, and tokens of an empty one are still tokens."""

    class Stuttering(Typist):
        async def complete(self, call: Call, on_text: OnText = lambda text: None) -> Completion:
            on_text("half ")
            on_text("a te")
            raise WorkerError(FailureKind.UNREACHABLE, "gone")

    plan = Plan.of(["a", "b"], ["typist", "x"], [[], []])
    run = await run_plan(plan, "q", Pool([Stuttering(""), FunctionWorker("x", blank)], terms=ONCE))

    assert ("half a te", Failure(FailureKind.UNREACHABLE, "gone")) == (
        run.steps[0].text,
        run.steps[0].failure,
    )
    assert Usage(4, 9) == run.usage


@pytest.mark.parametrize("failing", [0, 2])
async def test_without_a_last_completion_the_run_fails_with_the_cause(failing: int) -> None:
    """The run's failure is that of the step that broke, also if the last one was only skipped."""
    workers = ["x" if index == failing else "w" for index in range(3)]
    plan = chain(["a", "b", "c"], workers)

    run = await run_plan(plan, "q", pool_of(x=refusing, w=say))

    assert (run.state, run.answer) == (RunState.FAILED, None)
    told = f"step {failing} (x): slow down"
    assert Failure(FailureKind.RATE_LIMITED, told, retry_after_s=2.5) == run.failure


async def test_a_worker_that_is_cancelled_from_inside_fails_like_any_other() -> None:
    """A cancelled future of the worker's own neither ends the run nor passes for a deadline."""
    import asyncio

    async def waits_for_a_cancelled_future(messages: Sequence[Message]) -> str:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future
        return "never"

    plan = Plan.of(list("abc"), ["x", "w", "w"], [[], [0], []])
    run = await run_plan(plan, "q", pool_of(x=waits_for_a_cancelled_future, w=say))

    assert states(run) == (FAILED, SKIPPED, DONE)
    assert run.steps[0].failure is not None
    assert run.steps[0].failure.kind == FailureKind.INTERNAL
    assert run.answer == "said"


# -- deadline -------------------------------------------------------------------------------------


async def test_a_deadline_stops_what_runs_and_skips_the_rest() -> None:
    """Every step has a result, workers see the cancellation, and the run says why it failed."""
    gates = Gates("a", "b", "c", "d")
    events: list[Event] = []
    plan = Plan.of(list("abcd"), list("abcd"), [[], [], [0], [2]])
    gates._open["b"].set()

    run = await run_plan(plan, "q", gates.pool, budget=Budget(seconds=0.05), emit=events.append)

    assert states(run) == (FAILED, DONE, SKIPPED, SKIPPED)
    assert set(gates.started) == {"a", "b"}
    assert gates.cancelled == ["a"]
    assert [step.failure and step.failure.kind for step in run.steps] == [
        FailureKind.DEADLINE,
        None,
        FailureKind.DEADLINE,
        FailureKind.DEADLINE,
    ]
    assert [step.because_of for step in run.steps] == [None] * 4
    assert (run.state, run.answer) == (RunState.FAILED, None)
    assert Failure(FailureKind.DEADLINE, "the deadline of 0.05 s passed") == run.failure
    assert run == fold(events)
    assert outline(events)[-1] == ("run_finished", "failed")


async def test_a_deadline_in_the_past_calls_nobody() -> None:
    """Also workers that never wait do not start any more."""
    run = await run_plan(chain(["a", "b"], ["w"]), "q", pool_of(w=say), budget=Budget(seconds=0))

    assert states(run) == (SKIPPED, SKIPPED)
    assert Failure(FailureKind.DEADLINE, "the deadline of 0 s passed") == run.failure


async def test_workers_that_never_wait_do_not_outrun_the_deadline() -> None:
    """Between steps the deadline is looked at even where no worker gives it a chance."""
    calls = 0

    async def spin(messages: Sequence[Message]) -> str:
        nonlocal calls
        calls += 1
        until = anyio.current_time() + 0.001
        while anyio.current_time() < until:
            pass
        return "x"

    plan = chain([f"do {i}" for i in range(1_000)], ["w"])
    run = await run_plan(plan, "q", pool_of(w=spin), budget=Budget(seconds=0.02))

    assert calls < 1_000
    assert run.state == RunState.FAILED
    assert len(plan) == len(run.steps)


async def test_an_answer_that_is_there_survives_the_deadline() -> None:
    """A step that nobody reads may hang; the run still has its answer."""
    plan = Plan.of(["a", "b"], ["slow", "w"], [[], []])

    run = await run_plan(plan, "q", pool_of(slow=hang, w=say), budget=Budget(seconds=0.05))

    assert states(run) == (FAILED, DONE)
    assert (run.state, run.answer, run.failure) == (RunState.DONE, "said", None)


async def test_a_deadline_that_is_kept_changes_nothing() -> None:
    """The run is done and the deadline forgotten."""
    run = await run_plan(single("w", "q"), "q", pool_of(w=say), budget=Budget(seconds=60))

    assert (run.state, run.answer) == (RunState.DONE, "said")


async def test_the_deadline_covers_the_decision() -> None:
    """A decider that takes too long leaves a run without a plan."""

    async def ponder(session: Session) -> Plan:
        await anyio.sleep_forever()
        raise AssertionError

    run = await carry_out("q", pool_of(w=say), ponder, budget=Budget(seconds=0.01))

    assert (run.state, run.plan, run.steps) == (RunState.FAILED, None, ())
    assert Failure(FailureKind.DEADLINE, "the deadline of 0.01 s passed") == run.failure


# -- cancellation by the caller, and what may raise -----------------------------------------------


async def test_a_cancelled_run_closes_its_record_and_goes() -> None:
    """Workers are cancelled, the last event says so, and nothing of the caller's is swallowed."""
    gates = Gates("a", "b")
    events: list[Event] = []
    returned = False

    async def caller() -> None:
        nonlocal returned
        await run_plan(chain(["x", "y"], ["a", "b"]), "q", gates.pool, emit=events.append)
        returned = True

    async with anyio.create_task_group() as group:
        group.start_soon(caller)
        await gates.let()
        group.cancel_scope.cancel()

    assert not returned
    assert gates.cancelled == ["a"]
    assert outline(events) == [
        "run_started",
        "plan_parsed",
        ("step_started", 0),
        ("step_finished", 0, "failed"),
        ("step_finished", 1, "skipped"),
        ("run_finished", "cancelled"),
    ]
    run = fold(events)
    assert (run.state, run.failure) == (RunState.CANCELLED, None)
    assert [step.failure and step.failure.kind for step in run.steps] == [FailureKind.CANCELLED] * 2


async def test_the_callers_own_deadline_is_a_cancellation() -> None:
    """A scope around the run cancels it; the scope's owner gets control back."""
    events: list[Event] = []
    with anyio.move_on_after(0.02) as scope:
        await run_plan(
            single("w", "q"), "q", pool_of(w=hang), emit=events.append, budget=Budget(seconds=60)
        )

    assert scope.cancelled_caught
    assert outline(events)[-1] == ("run_finished", "cancelled")


@pytest.mark.parametrize(
    "kind",
    ["run_started", "plan_parsed", "step_started", "step_delta", "step_finished", "run_finished"],
)
async def test_what_the_listener_raises_reaches_the_caller(kind: str) -> None:
    """As it is and once: workers are stopped, not blamed, and the listener hears no more."""

    class ListenerError(Exception):
        pass

    events: list[Event] = []

    def emit(event: Event) -> None:
        events.append(event)
        if event.kind == kind:
            raise ListenerError

    gates = Gates("slow")
    pool = Pool([*gates.pool, FunctionWorker("w", say)])
    plan = Plan.of(["a", "b", "c"], ["slow", "w", "w"], [[], [], []])
    if kind == "run_finished":
        gates._open["slow"].set()

    with anyio.fail_after(5), pytest.raises(ListenerError):
        await run_plan(plan, "q", pool, emit=emit)

    assert [kind] == [event.kind for event in events if event.kind == kind]
    assert kind == events[-1].kind
    assert gates.started == gates.cancelled or kind == "run_finished"


async def test_a_bug_in_the_decider_is_an_exception_and_a_failed_record() -> None:
    """It reaches the caller as it is; the listener is told that the run is over."""

    async def broken(session: Session) -> Plan:
        raise LookupError("no such head")

    events: list[Event] = []
    with pytest.raises(LookupError, match="no such head"):
        await carry_out("q", pool_of(w=say), broken, emit=events.append)

    run = fold(events)
    assert (RunState.FAILED, Failure(FailureKind.INTERNAL, "LookupError: no such head")) == (
        run.state,
        run.failure,
    )


async def test_a_decider_without_a_plan_is_a_failed_run() -> None:
    """NoPlan is data: its failure is the run's."""
    failure = Failure(FailureKind.BAD_RESPONSE, "no plan in sight")

    async def undecided(session: Session) -> Plan:
        raise NoPlan(failure)

    run = await carry_out("q", pool_of(w=say), undecided)

    assert (RunState.FAILED, failure, None) == (run.state, run.failure, run.plan)


async def test_with_plan_only_nothing_is_carried_out() -> None:
    """The run ends with its plan."""
    gates = Gates("a")
    plan = single("a", "q")

    async def decide(session: Session) -> Plan:
        session.emit(PlanParsed(session.now(), plan, PlanSource.GIVEN))
        return plan

    run = await carry_out("q", gates.pool, decide, plan_only=True)

    assert (RunState.PLANNED, plan, (), []) == (run.state, run.plan, run.steps, gates.started)


# -- the cache, and the pool -----------------------------------------------------------------------


async def test_a_cache_answers_in_place_of_a_call() -> None:
    """It sees worker and messages of each call; what it knows is not called and costs nothing."""
    asked: list[tuple[str, str]] = []
    kept: list[tuple[str, str]] = []

    class Memory:
        def get(self, worker: Worker, call: Call) -> Completion | None:
            part = call.messages[-1].content.partition("Your part: ")[2]
            asked.append((worker.name, part.split("\n")[0]))
            return Completion("from memory", usage=Usage(5, 6)) if worker.name == "b" else None

        def put(self, worker: Worker, call: Call, completion: Completion) -> None:
            kept.append((worker.name, completion.text))

    plan = chain(["one", "two", "three"], ["a", "b"])
    run = await run_plan(plan, "q", pool_of(a=say, b=hang), cache=Memory())

    assert asked == [("a", "one"), ("b", "two"), ("a", "three")]
    assert kept == [("a", "said"), ("a", "said")]
    assert tuple(step.text for step in run.steps) == ("said", "from memory", "said")
    assert tuple(step.reused for step in run.steps) == ("", "cache", "")
    assert run.accounts == {"a": Account(calls=2)}


async def test_runs_of_one_pool_share_it_and_leave_it_closed() -> None:
    """Concurrent runs hold their workers open until the last one ends."""
    typist = Typist("shared")
    pool = Pool([typist, FunctionWorker("w", say)])
    runs: list[Run] = []

    async def once(steps: int) -> None:
        plan = chain([f"do {i}" for i in range(steps)], ["typist"])
        runs.append(await run_plan(plan, "q", pool))

    async with anyio.create_task_group() as group:
        for steps in range(1, 21):
            group.start_soon(once, steps)

    assert [run.answer for run in runs] == ["shared"] * 20
    assert len({run.id for run in runs}) == 20
    assert (typist.holders, typist.entered) == (0, 1)


async def test_a_pool_entered_outside_stays_open_between_runs() -> None:
    """Runs enter it again, which is harmless, and leave it as they found it."""
    typist = Typist("shared")
    pool = Pool([typist])

    async with pool:
        for _ in range(3):
            await run_plan(single("typist", "q"), "q", pool)
            assert typist.holders == 1

    assert typist.holders == 0


async def test_a_pool_that_does_not_open_fails_the_run_loudly() -> None:
    """Workers entered before are left again, and the record is closed."""

    class Closed(Typist):
        name = "closed"

        async def __aenter__(self) -> Self:
            raise OSError("no room")

    typist = Typist("x")
    events: list[Event] = []
    with pytest.raises(OSError, match="no room"):
        await run_plan(single("typist", "q"), "q", Pool([typist, Closed("x")]), emit=events.append)

    assert typist.holders == 0
    assert outline(events) == [
        "run_started",
        "plan_parsed",
        ("step_finished", 0, "skipped"),
        ("run_finished", "failed"),
    ]


@pytest.mark.parametrize("order", [["asyncio", "trio", "asyncio"]])
async def test_one_pool_serves_successive_event_loops(order: list[str]) -> None:
    """Nothing of one loop is left in the pool for the next."""
    typist = Typist("again")
    pool = Pool([typist])

    def runs() -> list[str | None]:
        plan = single("typist", "q")
        return [anyio.run(run_plan, plan, "q", pool, backend=name).answer for name in order]

    assert await anyio.to_thread.run_sync(runs) == ["again"] * 3
    assert typist.holders == 0


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("planning", [True, False], ids=["while planning", "while a step runs"])
async def test_asyncio_may_cancel_the_task_itself(planning: bool) -> None:
    """A cancellation without a scope (Ctrl-C, ``asyncio.wait_for``) is the caller's, too."""
    called = anyio.Event()

    async def hang(messages: Sequence[Message]) -> str:
        called.set()
        await anyio.sleep_forever()
        raise AssertionError

    pool = Pool([FunctionWorker("a", hang)])
    events: list[Event] = []

    async def decide(session: Session) -> Plan:
        if planning:
            await session.call(pool["a"], Call((Message("user", "plan"),)))
        session.emit(PlanParsed(session.now(), single("a", "q"), PlanSource.PICK))
        return single("a", "q")

    task = asyncio.ensure_future(carry_out("q", pool, decide, emit=events.append))
    await called.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    last = events[-1]
    assert isinstance(last, RunFinished)
    assert (last.state, last.failure) == (RunState.CANCELLED, None)
