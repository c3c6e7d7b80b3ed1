"""A run on paper: all of the record, in any width, and nothing of it acts on a terminal."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from io import StringIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from conductor.show import (
    budget_words,
    cost_of,
    incidents,
    money,
    runs_table,
    show,
    state_of,
    terms_words,
    when,
)
from grammar import Plan, chain
from runtime import (
    Account,
    Attempt,
    Budget,
    Failure,
    FailureKind,
    Message,
    PlanAttempt,
    PlanSource,
    Price,
    Round,
    Run,
    RunState,
    RunSummary,
    StepResult,
    StepState,
    Terms,
    Usage,
)
from tests.test_replay import team

EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202egnp.exe\r\b"
BUSY = Failure(FailureKind.OVERLOADED, "pro: too much to do")
INNER = Plan.of(["Think."], ["con"], [[]])
FIRST = Plan.of(["Draft.", "Check."], ["pro", "self"], [[], [0]])
SECOND = chain(["Improve."], ["pro"])


def asked(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def story() -> Run:
    """Two rounds; a lost call, a stand-in, a run inside a step, and a step that failed."""
    draft = StepResult(
        0,
        "con",
        StepState.DONE,
        "A draft.",
        asked("Draft it."),
        Usage(1200, 40),
        started_s=1.0,
        seconds=3.0,
        first_text_s=1.0,
        lost=(Attempt("pro", BUSY, 0.5, dollars=Decimal(0)),),
        dollars=Decimal("0.0123"),
    )
    think = StepResult(
        0, "con", StepState.DONE, "Hm.", asked("Think."), Usage(10, 2), started_s=1.0, seconds=2.0
    )
    inner = Run(
        "0123456789abcdef.0.1",
        "Check it.",
        ("pro", "con"),
        "2026-05-31T10:00:04.000+00:00",
        RunState.DONE,
        3.0,
        (
            Round(
                (PlanAttempt("scribe", "...", Usage(50, 20), 1.0, dollars=Decimal("0.001")),),
                INNER,
                PlanSource.CONDUCTOR,
                (think,),
            ),
        ),
    )
    check = StepResult(
        1, "self", StepState.DONE, "Hm.", asked("Check it."), started_s=4.0, seconds=3.0, run=inner
    )
    failed = StepResult(
        0, "pro", StepState.FAILED, "", asked("Improve."), started_s=8.0, seconds=2.0, failure=BUSY
    )
    return Run(
        "0123456789abcdef",
        "Is tea good?",
        ("pro", "con", "self"),
        "2026-05-31T10:00:00.000+00:00",
        RunState.DONE,
        10.0,
        (
            Round(
                (
                    PlanAttempt("scribe", "Well...", Usage(100, 5), 0.5, failure=BUSY),
                    PlanAttempt("scribe", "...", Usage(100, 20), 0.5, dollars=Decimal("0.002")),
                ),
                FIRST,
                PlanSource.CONDUCTOR,
                (draft, check),
            ),
            Round(
                (PlanAttempt("scribe", "...", Usage(150, 9), 1.0, dollars=Decimal("0.003")),),
                SECOND,
                PlanSource.CONDUCTOR,
                (failed,),
            ),
        ),
        failure=Failure(FailureKind.OVERLOADED, "step 0 (pro): too much to do"),
        pool="embedded",
        planner="scribe",
        budget=Budget(dollars=Decimal("0.5"), seconds=60.0),
        most_rounds=2,
    )


def printed(
    run: Run, width: int = 80, *, terminal: bool = False, messages: bool = False, full: bool = False
) -> str:
    out = StringIO()
    console = Console(
        file=out, width=width, force_terminal=terminal, color_system=None, highlight=False
    )
    show(run, console, messages=messages, full=full)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


PAGE = """\
run      0123456789abcdef
query    Is tea good?
state    done · 10.0 s · started {when} · $0.0183 + cost unknown for 1 call
because  step 0 (pro): too much to do
answer   step R1.1, self
bounds   $0.5000, 60 s
pool     pro, con, self  (embedded)

Plans · round 1: chain · 2 steps; round 2: single · 1 step
✓    R1.0 pro   Draft.   3.0 s · 40 tokens
│
✓  R1.1.0 con   Think.   2.0 s · 2 tokens   reads R1.0
│
✓    R1.1 self  Check.   3.0 s   reads R1.0, R1.1.0
│
✗    R2.0 pro   Improve.   overloaded · 2.0 s   reads R1.1

Round 1

✗ planning scribe · 0.5 s · tokens in/out 100/5
   failed    pro: too much to do
   wrote     Well...

✓ planning scribe · 0.5 s · tokens in/out 100/20 · $0.0020

✓ R1.0 con · 3.0 s from 1.0 s · first text after 1.0 s · tokens in/out 1,200/40 · $0.0123
   stands in for pro
   does      Draft.
   lost      pro after 0.5 s: pro: too much to do
   saw       1 message, 9 characters
   said      A draft.

✓ planning R1.1 scribe · 1.0 s · tokens in/out 50/20 · $0.0010

✓ R1.1.0 con · 2.0 s from 1.0 s · tokens in/out 10/2
   saw       1 message, 6 characters
   said      Hm.

✓ R1.1 self · 3.0 s from 4.0 s
   does      Check.
   saw       1 message, 9 characters
   said      Hm.

Round 2

✓ planning scribe · 1.0 s · tokens in/out 150/9 · $0.0030

✗ R2.0 pro · 2.0 s from 8.0 s
   saw       1 message, 8 characters
   failed    pro: too much to do

"""


def test_a_run_is_told_whole() -> None:
    """Head, picture, everything written and done in order, cost by worker, waterfall."""
    run = story()
    page, table = printed(run, 100).split("worker   ", 1)
    table, bars = table.split("\n\n")

    assert page == PAGE.format(when=when(run.started))
    rows = [line.split() for line in table.splitlines()[1:]]
    assert rows == [
        ["scribe", "(planning)", "3", "0", "300", "0", "49", "0.006"],
        ["pro", "1", "1", "0", "0", "0", "0"],
        ["con", "2", "0", "1,210", "0", "42", "0.0123", "+", "?"],
        ["total", "6", "1", "1,510", "0", "91", "0.0183", "+", "?"],
    ]
    assert [line.split()[:2] for line in bars.splitlines()] == [
        ["planning", bars.splitlines()[0].split()[1]],
        ["planning", bars.splitlines()[1].split()[1]],
        ["R1.0", "con"],
        ["R1.1", "planning"],
        ["R1.1.0", "con"],
        ["R1.1", "self"],
        ["round", "2"],
        ["planning", bars.splitlines()[7].split()[1]],
        ["R2.0", "pro"],
        ["0", "s"],
    ]


def test_the_waterfall_is_to_scale() -> None:
    """A bar begins and ends where its step does: light until the first text, then solid."""
    bars = printed(story(), width=121).split("\n\n")[-1].splitlines()
    first = min(line.index("0 s") for line in bars[-1:])
    room = [line[first:] for line in bars]

    def span(line: str) -> tuple[int, int, int]:
        drawn = line[: line.rindex("  ")]
        return (
            len(drawn) - len(drawn.lstrip()),
            drawn.count("░"),
            len(drawn.rstrip()),
        )

    total = len(room[6].rstrip())
    scale = total / 10.0
    assert span(room[2]) == (round(scale), round(2 * scale) - round(scale), round(4 * scale))
    assert span(room[3]) == (round(4 * scale), 0, round(5 * scale))
    assert span(room[4]) == (round(5 * scale), 0, round(7 * scale))
    assert span(room[8]) == (round(8 * scale), 0, round(10 * scale))


def test_messages_and_replies_can_be_had_in_full() -> None:
    """What is cut says how long it is."""
    run = story()
    long = "word " * 200
    step = replace(run.rounds[0].steps[0], text=long, messages=asked("one\ntwo " + long))
    run = replace(run, rounds=(replace(run.rounds[0], steps=(step, run.rounds[0].steps[1])),))

    brief, whole = printed(run), printed(run, messages=True, full=True)

    assert "… (1,000 characters)" in " ".join(brief.split())
    assert brief.count("word") < 100 < whole.count("word")
    assert "   user      one\n             two word" in whole


def test_runs_that_did_not_come_far_are_told_too() -> None:
    """Not even a plan; planned alone; stopped, with steps that were never reached."""
    late = Failure(FailureKind.CANCELLED, "the run was stopped before it could start")
    bare = Run("id", "q", ("a",), "2026-05-31T10:00:00.000+00:00")
    plan = Round(plan=chain(["x", "y"], ["a"]), source=PlanSource.GIVEN)
    skipped = replace(plan, steps=(StepResult(0, "a", StepState.SKIPPED, failure=late),))
    because = replace(plan, steps=(StepResult(1, "a", StepState.SKIPPED, because_of=0),))

    assert "state  running · so far 0.0 s" in printed(bare)
    assert "●  0 a" in printed(replace(bare, state=RunState.PLANNED, rounds=(plan,)))
    assert "◌  1 a" in printed(replace(bare, rounds=(skipped,)))
    assert f"⊘ 0 a · skipped: {late.message}" in printed(replace(bare, rounds=(skipped,)))
    assert "skipped: step 0 failed, which it reads" in printed(replace(bare, rounds=(because,)))


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), width=st.integers(40, 140), full=st.booleans())
def test_every_run_can_be_shown_in_every_width(seed: int, width: int, full: bool) -> None:
    """Random runs with nested ones and rounds: no line of the report is wider than the terminal."""
    run = team(seed, 0.7).run("Why?", rounds=3, budget=Budget(depth=2))

    text = printed(run, width, messages=full, full=full)

    picture = text.split("\n\n")[1] if run.plan else ""
    rest = text.replace(picture, "")
    assert all(cell_len(line) <= width for line in rest.splitlines())


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_that_was_written_acts_on_the_terminal(terminal: bool) -> None:
    run = story()
    failure = Failure(FailureKind.OVERLOADED, EVIL)
    first = replace(
        run.rounds[0].steps[0], text=EVIL, messages=asked(EVIL), failure=failure, worker=EVIL
    )
    attempt = replace(run.planning[0], text=EVIL, failure=failure, lost=(Attempt("a", failure, 1),))
    round_ = replace(
        run.rounds[0], steps=(first,), planning=(attempt,), plan=chain(["a" + EVIL], ["b" + EVIL])
    )
    run = replace(run, query=EVIL, failure=failure, rounds=(round_,), pool=EVIL, workers=(EVIL,))

    text = printed(run, terminal=terminal, messages=True, full=True)

    for mark in ("\x1b[2J", "\x1b]0;", "\x07", "\x9b", "\u202e", "\b"):
        assert mark not in text
    assert "\\u001b[2J" in text


# -- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dollars", "expected"),
    [
        ("0", "$0"),
        ("0.00001", "<$0.0001"),
        ("0.00123", "$0.0012"),
        ("1", "$1.00"),
        ("1234.5", "$1,234.50"),
    ],
)
def test_money_is_as_exact_as_matters(dollars: str, expected: str) -> None:
    assert money(Decimal(dollars)) == expected


def test_a_cost_says_what_is_not_known() -> None:
    assert cost_of(Account(calls=3)) == ""
    assert cost_of(Account(calls=3, dollars=Decimal("0.5"))) == "$0.5000"
    assert cost_of(Account(calls=3, unpriced=1)) == "cost unknown for 1 call"
    assert cost_of(Account(3, 0, Usage(), Decimal(1), 2)) == "$1.00 + cost unknown for 2 calls"


def test_incidents_are_lost_calls_and_stand_ins() -> None:
    assert incidents(story()) == ["1 call failed", "con stood in for pro"]


def test_bounds_and_terms_are_told_if_they_are_not_the_usual_ones() -> None:
    terms = Terms(8, 60, 100_000, 0, fallback=("a", "b"), first_text_s=20.0)
    price = Price(Decimal("1.250"), Decimal(10))

    assert budget_words(Budget()) == []
    assert budget_words(Budget(Decimal(2), 1000, 5, 9.5, 7, 0)) == [
        "$2.00",
        "1,000 tokens",
        "5 calls",
        "7 steps",
        "9.5 s",
        "depth 0",
    ]
    assert terms_words(Terms()) == []
    assert terms_words(replace(terms, price=price)) == [
        "8 at once",
        "60/min",
        "100,000 tokens/min",
        "$1.25/$10 per M tokens",
        "no retries",
        "first text 20 s",
        "else a, b",
    ]


def summary(state: RunState, *, alive: bool = False) -> RunSummary:
    return RunSummary(
        "0123456789abcdef",
        "2026-05-31T10:00:00.000+00:00",
        state,
        f"Why?\n{EVIL}",
        1.25,
        3,
        ("a", "b"),
        100,
        Decimal("0.5"),
        None,
        None,
        "",
        alive,
    )


def test_a_run_whose_process_is_gone_is_stopped() -> None:
    assert state_of(summary(RunState.RUNNING)) == "stopped"
    assert state_of(summary(RunState.RUNNING, alive=True)) == "running"
    assert state_of(summary(RunState.DONE)) == "done"


@pytest.mark.parametrize("width", [50, 80, 120])
def test_a_list_of_runs_is_harmless_and_fits(width: int) -> None:
    out = StringIO()
    rows = [summary(state) for state in RunState]
    Console(file=out, width=width, highlight=False).print(runs_table(rows, width))

    assert all(len(line) <= width for line in out.getvalue().splitlines())
    assert "\x1b" not in out.getvalue()


def test_a_moment_is_the_shorter_the_nearer_it_is() -> None:
    now = datetime(2026, 5, 31, 12, 0).astimezone()

    def said(ago: timedelta) -> str:
        return when((now - ago).astimezone(UTC).isoformat(timespec="milliseconds"), now)

    assert said(timedelta(hours=2)) == "10:00"
    assert said(timedelta(days=2)) == "29 May 12:00"
    assert said(timedelta(days=365)) == "31 May 2025"
    assert when("whenever\x1b", now) == "whenever\\u001b"
