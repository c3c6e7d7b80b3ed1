"""docs/orchestra.md is true: quick commands are carried out with the real players, long ones are
read, counted and held against the recipe."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from conductor import Router, load_pool
from conductor.cli import app
from training.players import PLAYERS, pool_text

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "orchestra.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [shlex.split(line) for block in BLOCKS for line in block.splitlines()]
LABELS = [words for words in COMMANDS if words[:2] == ["conductor", "labels"]]
EMBEDDED = ROOT / "conductor" / "heads" / "embedded"


def carried_out(words: list[str]) -> str:
    result = CliRunner().invoke(app, words[1:], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def value(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def test_a_stranger_asks_the_orchestra_through_its_router() -> None:
    """The page's first block, with the real players and the real head."""
    routed, asked, shown = (shlex.split(line) for line in BLOCKS[0].splitlines())

    assert "12 45 78" in carried_out([*routed, "--no-journal"])
    assert "o t a b" in carried_out([*asked, "--no-journal"])
    picks = re.findall(r"^\W*([a-z]+)\b", carried_out(shown), re.MULTILINE)
    assert next(name for name in picks if name in load_pool("orchestra").names) == "teller"


@pytest.mark.parametrize("words", LABELS, ids=" ".join)
def test_labels_take_as_many_calls_as_the_page_says(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pool = value(words, "--pool")
    if pool != "orchestra":
        Path(pool).parent.mkdir(parents=True)
        Path(pool).write_text(pool_text(PLAYERS), encoding="utf-8")

    told = carried_out([*words, "--dry-run"]).replace(",", "")

    tasks = {
        "train": 420,
        "validation": 175,
        "phrasings": 1400,
        "items": 280,
        "families": 183,
        "sealed": 525,
    }
    count = tasks[Path(value(words, "-o")).name]
    assert re.search(rf"\b{count}\b", told) and re.search(rf"\b{6 * count}\b", told), told


def test_the_recipe_reads_and_writes_what_the_page_does() -> None:
    recipe = tomllib.loads(
        (ROOT / "examples" / "recipes" / "router.toml").read_text(encoding="utf-8")
    )
    outs = [value(words, "-o") for words in LABELS]
    (run,) = [words for words in COMMANDS if words[1] == "run" and "runs/router" in words]
    (evaluation,) = [words for words in COMMANDS if words[:2] == ["conductor", "eval"]]

    assert recipe["labels"] == outs[:2]
    assert recipe["output"] == value(run, "--router")
    assert evaluation[2:7] == [each for each in outs if not each.endswith("sealed")]
    assert value(evaluation, "--router") == f"router={recipe['output']}"


def test_the_shipped_pool_is_what_the_trainer_of_players_writes() -> None:
    assert (EMBEDDED / "orchestra.toml").read_text(encoding="utf-8") == pool_text(PLAYERS)


def test_the_shipped_router_is_for_the_shipped_pool() -> None:
    assert Router.load().head.workers == load_pool("orchestra").names
