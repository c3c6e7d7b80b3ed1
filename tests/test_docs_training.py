"""docs/training.md is true: its prompt, plan, pool file and command are the real ones."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from conductor import Pool
from conductor.cli import app
from conductor.config import ORCHESTRA
from conductor.prompt import brief_messages, plan_text
from grammar import parse
from training.cold_start import main

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


def block(language: str, number: int = 0) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(found[number])


def test_the_recipe_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)

    done = CliRunner().invoke(app, [*shlex.split(block("sh"))[1:], "--dry-run"])

    assert done.exit_code == 0, done.stderr
    assert "roster: 0 plain, 1 calculator, 2 speller, 3 sorter, 4 logician, 5 teller" in done.stdout
    assert "loss_type = grpo" in done.stdout


def test_the_prompt_is_the_one_that_is_shown() -> None:
    query = "Add 25 and 61, then reverse the digits of the sum."
    system, user = brief_messages(query, [0, 2, 5])

    shown = f"system: {system.content}\nuser:   " + user.content.replace("\n", "\n        ") + "\n"

    assert block("text") == shown


def test_the_plan_is_written_as_a_conductor_writes_it() -> None:
    assert plan_text(parse(block("plan"))) == block("plan")


def test_the_pool_file_serves_it_beside_the_orchestra(tmp_path: Path) -> None:
    file = tmp_path / "trained.toml"
    file.write_text(ORCHESTRA.read_text(encoding="utf-8") + "\n" + block("toml"), encoding="utf-8")

    pool = Pool.load(file)

    assert pool.planner.name == "conductor"
    assert pool.planning.roster == Pool.load(ORCHESTRA).names
    assert not pool.planning.constrained


@pytest.mark.parametrize(
    ("number", "calls"),
    [(2, [43 * 7 * 6, 40 * 5 * 6, 12 * 8 * 6, 2 * 8 * 6]), (3, [12 * 12 * 6])],
)
def test_the_evaluation_is_of_as_many_tasks_as_the_page_says(
    number: int, calls: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels are counted, evaluations read what they made: both are long."""
    *labels, first, second = (shlex.split(line)[1:] for line in block("sh", number).splitlines())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conductor").symlink_to(ROOT / "conductor")

    for words, count in zip(labels, calls, strict=True):
        told = CliRunner().invoke(app, [*words, "--dry-run"])
        assert told.exit_code == 0, told.output
        assert str(count) in told.output.replace(",", "")
    for words in (first, second):
        told = CliRunner().invoke(app, words)
        assert told.exit_code == 2
        assert f"no labels in {words[1]}" in told.stderr, "the first thing that it lacks"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_command_trains_and_measures(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    python, flag, module, *arguments = shlex.split(block("sh", 1))
    assert (python, flag, module) == ("python", "-m", "training.cold_start")

    main([*arguments, "--updates", "2", "--tasks", "8", "--model", str(tiny_folder)])

    assert (tmp_path / "runs" / "cold-start" / "adapter_model.safetensors").is_file()
    printed = capsys.readouterr().out
    assert printed.count('"valid"') == 2
