"""Commands for runs on record, as a user runs them, on models that always say the same."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import pytest

from conductor import Conductor, load_pool
from conductor.cli import main
from conductor.options import bounded, journal, moment
from runtime import Budget, Journal, Run, RunState, Tool
from tests.team import PLAN, SAID, Team, team

QUERY = "Is it safe to drink tea every day?"


@pytest.fixture
def models() -> Iterator[Team]:
    with team() as models:
        yield models


@pytest.fixture
def home(tmp_path: Path, models: Team) -> Path:
    """A folder with the pool file of the models."""
    models.write_pool(tmp_path)
    return tmp_path


def environment(home: Path) -> dict[str, str]:
    return {
        "COLUMNS": "100",
        "CONDUCTOR_POOL": str(home / "team.toml"),
        "CONDUCTOR_JOURNAL": str(home / "journal.db"),
    }


@dataclass(frozen=True)
class Done:
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


def command(*arguments: str, home: Path, **env: str) -> Done:
    """Run `conductor ...` in a folder, with its journal and pool; nobody is there to be asked."""
    out, err, code = StringIO(), StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name, value in {**environment(home), **env}.items():
            patch.setenv(name, value)
        patch.chdir(home)
        patch.setattr(sys, "argv", ["conductor", *arguments])
        patch.setattr(sys, "stdin", StringIO())
        try:
            main()
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 0
    return Done(code, out.getvalue(), err.getvalue())


def kept(home: Path) -> list[Run]:
    """The runs of the journal, the latest first."""
    with Journal(home / "journal.db") as book:
        return [book.run(each.id) for each in book.runs()]


# -- run: bounds, tags, fallbacks, journal -------------------------------------------------------


def test_a_run_is_kept_and_says_what_it_cost_and_where_more_is_told(home: Path) -> None:
    """Answer on standard output; on the other one who, how long, how much, and the id."""
    done = command("run", QUERY, home=home, COLUMNS="200")

    (run,) = kept(home)
    assert (done.returncode, done.stdout) == (0, SAID["judge"] + "\n")
    footer = " ".join(done.stderr.split("─\n")[-1].split())
    assert re.fullmatch(
        r"answered by judge \(step 2\) · \d+\.\d s · tokens in/out 300/30 · planning 100/10 · "
        rf"\$0\.0001 \+ cost unknown for 3 calls · conductor show {run.id[:8]}",
        footer,
    )
    assert run.answer == SAID["judge"]
    assert run.pool == str(home / "team.toml")


def test_without_a_journal_nothing_is_kept(home: Path) -> None:
    """By the option, or by the environment."""
    by_option = command("run", QUERY, "--no-journal", "-q", home=home)
    by_environment = command("run", QUERY, "-q", home=home, CONDUCTOR_JOURNAL="off")

    assert by_option.stdout == by_environment.stdout == SAID["judge"] + "\n"
    assert not (home / "journal.db").exists()
    assert "show" not in command("run", QUERY, "--no-journal", home=home).stderr


def test_a_journal_that_can_not_be_written_is_told_with_the_remedy(home: Path) -> None:
    done = command("run", QUERY, "--journal", "team.toml", home=home)

    assert (done.returncode, done.stdout) == (2, "")
    assert "team.toml" in done.stderr and "--no-journal" in done.stderr
    assert "Traceback" not in done.stderr


def test_tags_choose_workers(home: Path, models: Team) -> None:
    models.said["scribe"] = PLAN.replace('"judge"', '"other"').replace('"con"', '"pro"')

    done = command("run", QUERY, "--tag", "cheap", "--json", home=home)

    assert done.returncode == 1  # the planner is not cheap: the first cheap one plans, badly
    assert kept(home)[0].workers == ("pro", "other")
    assert kept(home)[0].planner == "pro"


def test_without_tags_leaves_workers_out(home: Path) -> None:
    command("run", QUERY, "--without-tag", "cheap", home=home)

    assert kept(home)[0].workers == ("con", "judge", "scribe", "self")


def test_a_fallback_stands_in_and_is_named(home: Path, models: Team) -> None:
    models.down = {"con"}

    done = command("run", QUERY, "--fallback", "other", home=home)

    assert (done.returncode, done.stdout) == (0, SAID["judge"] + "\n")
    assert "1 call failed · other stood in for con" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--calls", "3"], "3 calls"),
        (["--tokens", "300"], "300 tokens"),
        (["--dollars", "0.0001"], "0.0001 dollars"),
        (["--steps", "2"], "2 steps"),
    ],
)
def test_bounds_end_a_run_with_the_reason(home: Path, options: list[str], told: str) -> None:
    """Exit code 1, and what came nearest to an answer can be looked at."""
    done = command("run", QUERY, *options, home=home)

    assert (done.returncode, done.stdout) == (1, "")
    assert f"budget of {told}" in done.stderr
    assert f"conductor show {kept(home)[0].id[:8]}" in done.stderr


def test_the_best_so_far_is_printed_on_demand(home: Path, models: Team) -> None:
    """It is no answer, so the exit code stays 1."""
    models.down = {"judge"}

    done = command("run", QUERY, "--best", "-q", home=home)
    framed = command("run", QUERY, "--best", home=home)

    assert (done.returncode, done.stdout) == (1, SAID["con"] + "\n")
    assert "no answer: step 2 (judge)" in done.stderr
    assert framed.stdout == SAID["con"] + "\n"
    assert "best so far: step 1, con" in framed.stderr


def test_rounds_are_asked_for_and_a_kept_answer_is_told(home: Path, models: Team) -> None:
    models.said["scribe"] = PLAN

    done = command("run", QUERY, "--rounds", "2", home=home)

    (run,) = kept(home)
    assert (len(run.rounds), run.most_rounds) == (2, 2)
    assert "(step 2 of round 2)" in done.stderr


def test_a_flag_overrides_one_bound_of_the_pool_file_alone(home: Path, models: Team) -> None:
    models.write_pool(home, "[run]\ncalls = 50\ntokens = 99999\nseconds = 100\n")

    command("run", QUERY, "--calls", "40", home=home)

    assert kept(home)[0].budget == Budget(calls=40, tokens=99_999, seconds=100)


def test_a_plan_alone_is_kept_too(home: Path) -> None:
    done = command("plan", QUERY, home=home)

    (run,) = kept(home)
    assert (done.returncode, done.stdout, run.state) == (0, str(run.plan), RunState.PLANNED)


# -- runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A journal of four runs: done, failed, planned, and one whose process died."""
    home = tmp_path_factory.mktemp("past")
    with team() as models:
        models.write_pool(home)
        command("run", QUERY, home=home)
        models.down = {"judge"}
        command("run", "And coffee?", home=home)
        command("plan", "And wine?", home=home)
        command("run", "And water?", "--worker", "pro", home=home)
        with sqlite3.connect(home / "journal.db") as connection:
            connection.execute(
                "UPDATE run SET state = 'running', process = 99999999 WHERE query = 'And water?'"
            )
        yield home


def listed(home: Path, *options: str) -> list[str]:
    done = command("runs", "--json", *options, home=home)
    assert done.returncode == 0, done.stderr
    return [each["query"] for each in json.loads(done.stdout)]


def test_runs_are_listed_the_latest_first(past: Path) -> None:
    done = command("runs", home=past)

    head, *lines = (line.split() for line in done.stdout.splitlines())
    assert head[:3] == ["run", "started", "state"]
    assert [line[2] for line in lines] == ["stopped", "planned", "failed", "done"]
    assert [line[-1] for line in lines] == ["water?", "wine?", "coffee?", "day?"]
    assert all(re.fullmatch("[0-9a-f]{8}", line[0]) for line in lines)


@pytest.mark.parametrize("width", ["50", "80", "120"])
def test_the_list_fits_any_terminal(past: Path, width: str) -> None:
    done = command("runs", home=past, COLUMNS=width)

    assert max(map(len, done.stdout.splitlines())) <= int(width)
    assert "Is it s" in done.stdout


@pytest.mark.parametrize(
    ("options", "queries"),
    [
        (["--state", "done"], [QUERY]),
        (["--state", "stopped"], ["And water?"]),
        (["--state", "running"], []),
        (["--worker", "judge"], ["And coffee?", QUERY]),
        (["--contains", "WINE"], ["And wine?"]),
        (["--contains", "in the morning"], [QUERY]),
        (["--since", "1h", "-n", "2"], ["And water?", "And wine?"]),
        (["--since", "2999-01-01"], []),
    ],
)
def test_the_list_can_be_filtered(past: Path, options: list[str], queries: list[str]) -> None:
    assert listed(past, *options) == queries


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["runs", "--state", "dead"], "possible: running, stopped"),
        (["runs", "--since", "soon"], "write a date"),
        (["show", "zzzz"], "there is no run zzzz"),
        (["show", ""], "no run is named"),
        (["replay", "team.toml"], "team.toml: not the record of a run"),
        (["rerun", "last", "--from", "9"], "there is no step 9"),
        (["rerun", "last", "--from", "0", "--worker", "nobody"], "no worker is called 'nobody'"),
        (["forget"], "say which"),
        (["forget", "--keep", "1"], "--yes does it"),
        (["forget", "--older-than", "old"], "write a date"),
    ],
)
def test_mistakes_are_told_with_the_remedy(past: Path, arguments: list[str], told: str) -> None:
    done = command(*arguments, home=past)

    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_reading_makes_no_journal(tmp_path: Path) -> None:
    done = command("runs", home=tmp_path)
    off = command("runs", home=tmp_path, CONDUCTOR_JOURNAL="off")

    assert (done.returncode, off.returncode) == (2, 2)
    assert "there is no journal yet" in done.stderr
    assert "the journal is off" in off.stderr
    assert list(tmp_path.iterdir()) == []


# -- show ----------------------------------------------------------------------------------------


def test_show_tells_everything_about_a_run(past: Path) -> None:
    """By the beginning of its id, `last`, or its JSON in a file, all the same."""
    identifier = kept(past)[-1].id
    done = command("show", identifier[:8], home=past)
    as_json = command("show", identifier, "--json", home=past)
    (past / "run.json").write_text(as_json.stdout, encoding="utf-8")
    from_file = command("show", "run.json", home=past)

    assert done.stdout == from_file.stdout
    assert Run.from_json(as_json.stdout) == kept(past)[-1]
    for expected in (QUERY, "best-of-n · 3 steps", SAID["con"], "scribe (planning)", "█"):
        assert expected in done.stdout


@pytest.mark.parametrize("name", ["run.svg", "run.mmd"])
def test_show_draws(past: Path, name: str, tmp_path: Path) -> None:
    done = command("show", kept(past)[-1].id, "-o", str(tmp_path / name), home=past)

    assert done.returncode == 0, done.stderr
    assert "Weigh them" in (tmp_path / name).read_text(encoding="utf-8")


def test_show_messages_has_what_a_step_saw(past: Path) -> None:
    run = kept(past)[-1]

    done = command("show", run.id, "--messages", home=past, COLUMNS="300")

    for line in run.steps[2].messages[-1].content.splitlines():
        assert line in done.stdout


# -- resume, rerun, replay -----------------------------------------------------------------------


def test_an_interrupted_run_goes_on_and_calls_nobody_twice(home: Path, models: Team) -> None:
    """Ctrl-C: exit code 130, and the command that goes on."""
    models.held = {"judge"}
    process = subprocess.Popen(
        [sys.executable, "-m", "conductor", "run", QUERY],
        cwd=home,
        env={
            "PATH": os.defpath,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            **environment(home),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert models.reached.acquire(timeout=60)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    (run,) = kept(home)
    models.let_go.set()

    done = command("resume", run.id[:8], home=home)

    assert process.returncode == 130
    assert f"interrupted; `conductor resume {run.id[:8]}` goes on" in told
    assert run.state is RunState.CANCELLED
    assert (done.returncode, done.stdout) == (0, SAID["judge"] + "\n")
    assert "goes on: 2 of 3 steps are done" in done.stderr
    assert [models.calls.count(name) for name in ("scribe", "pro", "con", "judge")] == [1, 1, 1, 2]
    assert command("replay", "last", home=home).returncode == 0


def test_a_run_that_ran_out_of_budget_goes_on_with_more(home: Path, models: Team) -> None:
    command("run", QUERY, "--calls", "3", home=home)

    done = command("resume", "last", "--calls", "9", "-q", home=home)

    assert (done.returncode, done.stdout) == (0, SAID["judge"] + "\n")
    assert kept(home)[0].budget.calls == 9
    assert len(models.calls) == 4


def test_a_run_that_has_ended_is_not_resumed(home: Path, models: Team) -> None:
    command("run", QUERY, home=home)
    calls = len(models.calls)

    done = command("resume", "last", home=home)

    assert (done.returncode, done.stdout, len(models.calls)) == (0, SAID["judge"] + "\n", calls)
    assert "nothing to go on with" in done.stderr


def test_a_run_whose_pool_was_made_in_python_wants_a_pool_file(home: Path) -> None:
    command("run", QUERY, "--calls", "3", home=home)
    with sqlite3.connect(home / "journal.db") as connection:
        told = str(home / "team.toml")
        connection.execute(
            "UPDATE event SET body = replace(CAST(body AS TEXT), ?, '') WHERE kind = 'run_started'",
            (told,),
        )

    without = command("resume", "last", "--calls", "9", home=home)
    named = command("resume", "last", "--calls", "9", "--pool", "team.toml", home=home)

    assert without.returncode == 2
    assert "name a pool file with --pool" in without.stderr
    assert (named.returncode, named.stdout) == (0, SAID["judge"] + "\n")


def test_a_rerun_does_again_what_depends_on_the_step(home: Path, models: Team) -> None:
    """The rest is taken over; what changed is told."""
    command("run", QUERY, home=home)
    calls = len(models.calls)

    done = command("rerun", "last", "--from", "2", "--worker", "other", home=home)

    new, old = kept(home)
    assert (done.returncode, done.stdout) == (0, SAID["other"] + "\n")
    assert "~ step 2: worker judge -> other" in done.stderr
    assert f"1 of 3 steps were done again; the answer is not the one of run {old.id[:8]}" in (
        done.stderr
    )
    assert models.calls[calls:] == ["other"]
    assert (new.parent, [step.reused for step in new.steps]) == (old.id, [old.id, old.id, ""])


def test_a_rerun_of_a_file_needs_no_journal(home: Path, models: Team) -> None:
    done = command("run", QUERY, "--no-journal", "--json", home=home)
    (home / "run.json").write_text(done.stdout, encoding="utf-8")

    again = command("rerun", "run.json", "--from", "0", "--no-journal", home=home)

    assert (again.returncode, again.stdout) == (0, SAID["judge"] + "\n")
    assert "the answer is the same as run" in again.stderr


def test_a_replay_calls_nobody_and_finds_a_changed_record(home: Path, models: Team) -> None:
    command("run", QUERY, "--rounds", "2", home=home)
    calls = len(models.calls)
    run = kept(home)[0]
    changed = run.to_json().replace("costs sleep", "costs money", 1)
    (home / "changed.json").write_text(changed, encoding="utf-8")

    done = command("replay", "last", home=home)
    found = command("replay", "changed.json", home=home)

    size = len(run.to_json().encode())
    assert done.stdout == f"run {run.id}: 6 steps, 2 rounds: the same again, {size:,} bytes\n"
    assert (found.returncode, found.stdout) == (1, "")
    assert "round 1, step 2: messages" in found.stderr
    assert len(models.calls) == calls


# -- forget --------------------------------------------------------------------------------------


def test_forget_says_what_it_deletes_and_does_so_on_yes(home: Path) -> None:
    for query in ("one?", "two?", "three?"):
        command("run", query, home=home)

    asked = command("forget", "--keep", "1", home=home)
    before = listed(home)
    done = command("forget", "--keep", "1", "--yes", home=home)
    again = command("forget", "--older-than", "1d", "--yes", home=home)

    assert (asked.returncode, before) == (2, ["three?", "two?", "one?"])
    assert "deletes 2 of 3 runs" in asked.stderr
    assert (done.returncode, done.stderr) == (0, "deleted 2 of 3 runs\n")
    assert (again.returncode, again.stderr) == (0, "no such runs\n")
    assert listed(home) == ["three?"]


# -- parts ---------------------------------------------------------------------------------------

NOW = datetime(2026, 5, 31, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30d", "2026-05-01T12:00:00.000+00:00"),
        ("12h", "2026-05-31T00:00:00.000+00:00"),
        ("1.5 m", "2026-05-31T11:58:30.000+00:00"),
        ("2w", "2026-05-17T12:00:00.000+00:00"),
        ("2026-05-30T10:00+02:00", "2026-05-30T08:00:00.000+00:00"),
        ("2026-05-30T10:00Z", "2026-05-30T10:00:00.000+00:00"),
    ],
)
def test_moments_are_dates_or_ages(text: str, expected: str) -> None:
    """As the journal writes them, so that they can be compared with what it holds."""
    assert moment(text, NOW) == expected


@pytest.mark.parametrize("text", ["", "d", "30", "yesterday", "9999999999d", "2026-13-01"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no moment; write a date"):
        moment(text, NOW)


def test_a_date_without_a_zone_is_local() -> None:
    local = datetime(2026, 5, 30).astimezone(UTC)

    assert moment("2026-05-30", NOW) == local.isoformat(timespec="milliseconds")


def test_bounds_that_are_not_given_stay() -> None:
    budget = Budget(calls=3, seconds=9.0)

    assert bounded(budget) == budget
    assert bounded(budget, calls=4, depth=0) == Budget(calls=4, seconds=9.0, depth=0)
    assert str(bounded(budget, dollars=0.1).dollars) == "0.1"


def test_the_journal_of_tests_is_off() -> None:
    """So that nobody's own one is touched by them."""
    assert journal() is None
    assert journal(Path("x.db"), off=True) is None


# -- runs that wait for tools --------------------------------------------------------------------


def test_a_run_that_waits_for_tools_is_shown_and_gone_on_with(home: Path, models: Team) -> None:
    """Who asked for what, under which id; with its result the answer comes."""
    function = {"name": "look_up", "arguments": '{"word": "tea"}'}
    models.asks["judge"] = [{"id": "own", "type": "function", "function": function}]
    with Journal(home / "journal.db") as book:
        team = Conductor(load_pool(home / "team.toml"), journal=book)
        run = team.run(QUERY, tools=[Tool("look_up")])
    (call,) = run.open_calls

    listed = command("runs", "--state", "suspended", home=home)
    assert run.id[:8] in listed.stdout
    shown = command("show", "last", home=home).stdout
    assert "suspended" in shown
    assert re.search(r"calls +look_up {\"word\": \"tea\"}", shown)
    assert f"for the result of {call.id}" in shown

    waiting = command("resume", "last", home=home)
    assert waiting.returncode == 1
    assert f"{call.id}: look_up" in waiting.stderr
    wrong = command("resume", "last", "--result", "call_x=a drink", home=home)
    assert wrong.returncode == 2
    assert "no step of it made the call call_x" in wrong.stderr

    done = command("resume", "last", "--result", f"{call.id}=a drink", "-q", home=home)
    assert (done.returncode, done.stdout) == (0, SAID["judge"] + "\n")
    assert models.calls.count("judge") == 2
    shown = command("show", "last", home=home).stdout
    assert re.search(r"got +a drink", shown)
    assert command("replay", "last", home=home).returncode == 0
