"""Progress and marks: a run as people see it, and nothing a model wrote acts on their terminal."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from io import StringIO

import pytest
from rich.console import Console

from conductor import Conductor, marks
from conductor.progress import Progress
from conductor.show import shown
from grammar import Mark, Plan, best_of_n
from runtime import (
    Completion,
    Event,
    Failure,
    FailureKind,
    FunctionWorker,
    Message,
    PlanDelta,
    PlanParsed,
    PlanSource,
    PlanStarted,
    Pool,
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
    fold,
)

EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202egnp.exe\r\b"
PLAN = best_of_n(["a", "b"], "a")
FAILURE = Failure(FailureKind.OVERLOADED, "b is overloaded")


def story(said: str = "so") -> list[Event]:
    """A planned run of three steps: done, failed, and skipped because of that."""
    done = StepResult(0, "a", StepState.DONE, said, usage=Usage(9, 5), seconds=1.25)
    failed = StepResult(1, "b", StepState.FAILED, said, seconds=0.5, failure=FAILURE)
    skipped = StepResult(2, "a", StepState.SKIPPED, because_of=1)
    plan = Plan.of([step.subtask + said for step in PLAN], PLAN.workers, PLAN.access)
    return [
        RunStarted(0.0, "id", "q", ("a", "b"), "2026-01-01T00:00:00.000+00:00"),
        PlanStarted(0.0, "scribe", 0),
        PlanDelta(0.1, said),
        PlanParsed(0.2, plan, PlanSource.CONDUCTOR),
        StepStarted(0.2, 0, "a", ()),
        StepStarted(0.2, 1, "b", ()),
        StepDelta(0.3, 0, said),
        StepFinished(0.7, failed),
        StepFinished(1.5, done),
        StepFinished(1.5, skipped),
        RunFinished(1.5, RunState.FAILED, FAILURE),
    ]


def plainly(events: Iterable[Event]) -> str:
    """What is printed where there is no terminal."""
    out = StringIO()
    with Progress(Console(file=out, width=100)) as progress:
        for event in events:
            progress(event)
    return out.getvalue()


def drawn(events: Iterable[Event], *, note: str = "") -> str:
    """What is written to a terminal, redrawn after each event."""
    out = StringIO()
    console = Console(file=out, force_terminal=True, width=100, height=40, color_system="truecolor")
    with Progress(console) as progress:
        if note:
            progress.note(note)
        for event in events:
            progress(event)
            console.print(progress._view())
    return out.getvalue()


# -- marks ---------------------------------------------------------------------------------------


def test_marks_tell_the_state_and_cost_of_each_step() -> None:
    assert marks(fold(story())) == {
        0: Mark("done", "1.2 s · 5 tokens"),
        1: Mark("failed", "overloaded · 0.5 s"),
        2: Mark("skipped", "step 1 failed"),
    }


def test_a_step_that_was_never_reached_is_marked_with_what_stopped_the_run() -> None:
    late = Failure(FailureKind.DEADLINE, "too late")
    result = StepResult(0, "a", StepState.SKIPPED, failure=late)
    run = Run("id", "q", ("a",), "", rounds=(Round(plan=PLAN, steps=(result,)),))

    assert marks(run) == {0: Mark("skipped", "deadline")}


def test_a_run_without_steps_has_no_marks() -> None:
    assert marks(Run("id", "q", ("a",), "")) == {}


# -- progress ------------------------------------------------------------------------------------


def test_without_a_terminal_each_thing_is_a_line() -> None:
    text = plainly(story())

    assert "\x1b" not in text
    lines = text.splitlines()
    assert lines[0] == "scribe writes a plan …"
    assert lines[1] == "Plan · best-of-n · 3 steps"
    assert lines[-5:] == [
        "step 0 starts on a",
        "step 1 starts on b",
        "step 1 failed: overloaded · 0.5 s",
        "step 0 done: 1.2 s · 5 tokens",
        "step 2 skipped: step 1 failed",
    ]


def test_a_preparation_is_told() -> None:
    out = StringIO()
    with Progress(Console(file=out)) as progress:
        progress.note("downloading")

    assert out.getvalue() == "downloading …\n"
    assert "downloading …" in drawn([], note="downloading") + drawn(story()[:1], note="downloading")


def test_in_a_terminal_the_steps_are_drawn_with_their_state() -> None:
    text = drawn(story())

    assert "\x1b[" in text
    for expected in ("planning …", "0 a", "1 b", "· 1 tokens", "1.2 s · 5 tokens", "step 1 failed"):
        assert expected in text


def test_a_single_pick_shows_no_plan() -> None:
    pool = Pool([FunctionWorker("a", said("fine"))])
    out = StringIO()
    with Progress(Console(file=out)) as progress:
        Conductor(pool).run("q", worker="a", on_event=progress)

    assert out.getvalue().splitlines()[0] == "step 0 starts on a"
    assert "Plan" not in out.getvalue()


@pytest.mark.parametrize(("resumed", "done"), [(0, None), (3, 0), (8, 1)])
def test_a_run_that_goes_on_shows_what_is_done_already(resumed: int, done: int | None) -> None:
    """The display takes up the past silently and follows the rest as any run."""
    past = story()[: resumed + 1]
    out = StringIO()
    with Progress(Console(file=out, width=100)) as progress:
        progress.take_up(past)
        progress(RunResumed(2.0))
        for event in story()[resumed + 1 :]:
            progress(event)

    lines = out.getvalue().splitlines()
    told = [] if done is None else [f"goes on: {done} of 3 steps are done"]
    assert [line for line in lines if line.startswith("goes on")] == told
    assert lines[-1] == "step 2 skipped: step 1 failed"


# -- nothing a model wrote acts on the terminal --------------------------------------------------


def said(text: str) -> Callable[[Sequence[Message]], Awaitable[Completion]]:
    async def answer(messages: Sequence[Message]) -> Completion:
        return Completion(text)

    return answer


def harmless(text: str) -> bool:
    return not any(mark in text for mark in ("\x1b[2J", "\x1b]0;", "\x07", "\x9b", "\u202e", "\b"))


@pytest.mark.parametrize("show", [plainly, drawn])
def test_control_characters_are_spelt_out(show: Callable[[list[Event]], str]) -> None:
    text = show(story(EVIL))

    assert harmless(text)
    assert "\\u001b[2J" in text


@pytest.mark.parametrize("show", [plainly, drawn])
def test_a_bad_plan_is_told_of_harmlessly(show: Callable[[list[Event]], str]) -> None:
    bad = f'subtasks = ["{EVIL}"]\nworkers = ["{EVIL}"]\naccess = [[]]\n'
    events: list[Event] = []
    team = Pool([FunctionWorker("a", said("x"))], planner=FunctionWorker("scribe", said(bad)))
    run = Conductor(team).run("q", on_event=events.append)

    text = show(events)

    assert "not a plan yet: " in text
    assert harmless(text)
    assert harmless(shown(run.failure))


def test_rich_markup_of_a_model_is_plain_text() -> None:
    assert "[bold red]x[/]" in plainly(story("[bold red]x[/]"))


def test_no_failure_shows_as_nothing() -> None:
    assert shown(None) == ""
