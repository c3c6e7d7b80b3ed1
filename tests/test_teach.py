"""Commands that measure workers, as a user runs them, on models that always say the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from conductor.measuring import Measuring
from tests.team import Team, team
from tests.test_records import command
from training.labels import read, read_manifest
from training.tasks import Split, draw, read_jsonl

QUESTIONS = [f"What is {at} + {at}?" for at in range(60)]


@pytest.fixture
def models() -> Iterator[Team]:
    with team() as models:
        models.said |= {"pro": "14", "con": "The answer is 16."}
        yield models


@pytest.fixture
def home(tmp_path: Path, models: Team) -> Path:
    """A folder with the pool file of the models, and tasks."""
    models.write_pool(tmp_path)
    rows = (
        {"question": each, "answer": str(2 * at), "grader": "number"}
        for at, each in enumerate(QUESTIONS)
    )
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def trained(home: Path) -> int:
    return sum(each.split is Split.TRAIN for each in read_jsonl(home / "quiz.jsonl"))


PAID = ("labels", "quiz.jsonl", "--out", "out", "--only", "pro", "--concurrency", "1")


# -- labels --------------------------------------------------------------------------------------


def test_a_collection_is_told_beforehand_bounded_gone_on_with_and_reported(
    home: Path, models: Team
) -> None:
    count = trained(home)
    assert 20 < count < 60

    dry = command(*PAID, "--dry-run", home=home)
    assert dry.returncode == 0
    assert f"{count} tasks of 1 family, asked once" in dry.stdout
    assert not models.calls and not (home / "out").exists()

    first = command(*PAID, "--max-dollars", "0.0011", home=home)
    assert first.returncode == 1
    assert f"{count - 8} labels are missing; the same command asks for them again" in first.stderr
    assert "stopped: the run's budget of 0.0011 dollars" in " ".join(first.stderr.split())
    assert len(models.calls) == 8

    again = command(*PAID, home=home)
    assert (again.returncode, len(models.calls)) == (0, count)
    assert "report in out/report.md" in again.stderr
    manifest = read_manifest(home / "out")
    assert manifest["dollars"] == str(count * Decimal("0.00014"))
    assert manifest["about"]["sources"] == ["quiz.jsonl"]
    assert {"report.md", "report.json", "labels.svg", "labels.png"} <= {
        each.name for each in (home / "out").iterdir()
    }

    third = command(*PAID, home=home)
    assert (third.returncode, len(models.calls)) == (0, count)
    assert third.stdout == again.stdout
    assert str(home) not in (home / "out" / "manifest.json").read_text()


def test_a_worker_that_is_down_is_told_and_the_exit_code_says_so(home: Path, models: Team) -> None:
    models.down = {"con"}

    done = command("labels", "quiz.jsonl", "-o", "out", "--only", "con", "-n", "3", home=home)

    assert done.returncode == 1
    assert "con: calls that failed: 3 overloaded" in done.stderr
    assert "3 labels are missing" in done.stderr


def test_what_an_evaluation_set_asks_is_left_out_of_training(home: Path, models: Team) -> None:
    evaluation = home / "evaluation.jsonl"
    known = [each for each in read_jsonl(home / "quiz.jsonl") if each.split is Split.TRAIN]
    asked = known[0].question.upper()
    evaluation.write_text(json.dumps({"question": asked, "answer": "0"}) + "\n")

    done = command(*PAID, "--apart", "evaluation.jsonl", home=home)

    assert "left out 1 task that an evaluation set asks too" in done.stderr
    assert read(home / "out").tasks == tuple(known[1:])


def test_what_is_wrong_is_told_in_a_line(home: Path) -> None:
    for arguments, told in (
        (("labels", "sums", "-o", "out"), "no tasks are called 'sums'"),
        (("labels", "quiz.jsonl", "-o", "out", "--only", "nobody"), "no worker is called 'nobody'"),
        (("labels", "none.jsonl", "-o", "out"), "none.jsonl"),
        (("tasks", "gym:"), "no tasks are called 'gym:'"),
    ):
        done = command(*arguments, home=home)
        assert (done.returncode, done.stdout) == (2, "")
        assert told in done.stderr and "Traceback" not in done.stderr


# -- tasks ---------------------------------------------------------------------------------------


def test_families_are_listed_and_their_tasks_shown(home: Path) -> None:
    listed = command("tasks", home=home).stdout
    shown = command("tasks", "addition", "-n", "2", "--split", "test", home=home).stdout

    assert "relations-sentences" in listed and "reserved" in listed
    for each in draw("addition", 2, split=Split.TEST):
        assert f"{each.question}\n  number: {each.answer}\n" in shown


def test_tasks_are_written_for_later(home: Path) -> None:
    done = command("tasks", "addition", "relations", "-n", "4", "--json", home=home)
    (home / "mine.jsonl").write_text(done.stdout)

    assert read_jsonl(home / "mine.jsonl") == [*draw("addition", 4), *draw("relations", 4)]


# -- progress ------------------------------------------------------------------------------------


def followed(console: Console, clock: Iterator[float]) -> None:
    with Measuring(console, {"a\x1b[2J": 4, "b": 4}, lambda: next(clock)) as view:
        view.take_up("b", 1.0)
        view.take_up("who has left", 1.0)
        view.heard("a\x1b[2J", 1.0, Decimal("0.5"), priced=True)
        view.heard("a\x1b[2J", None, Decimal(0), priced=True)
        view.heard("b", 0.0, Decimal(0), priced=False)


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal() -> None:
    out = StringIO()
    seconds = iter([0.0, 5.0, 12.0, 12.0, 12.0, 14.0, 15.0, 15.0])

    followed(Console(file=out, width=100), seconds)

    first, last = out.getvalue().splitlines()
    assert first == "2 of 8 labels · 0.2 a second · 30 s left · $0.5000 · 1 failed"
    assert last == ("3 of 8 labels · 0.2 a second · $0.5000 + cost unknown for 1 call · 1 failed")


def test_progress_is_a_table_in_a_terminal() -> None:
    out = StringIO()

    followed(Console(file=out, force_terminal=True, width=100), iter(range(1000)))

    assert "2/4" in out.getvalue()
    assert "50% right" in out.getvalue()
    assert "\x1b[2J" not in out.getvalue()
