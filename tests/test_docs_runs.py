"""docs/runs.md is true: its commands and its Python are executed, and what it shows is theirs.

Ids, moments, durations and the bars that draw them differ from run to run; all else is compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.pages import carried_out
from tests.team import team

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "runs.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"^```(sh|python)\n(.*?)^```\n(?:\n^```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """One folder for the whole page, in which the models of the page can be reached.

    Not one of pytest's: their names may be so long that lines which tell them are wrapped.
    """
    with TemporaryDirectory() as name, team() as models:
        folder = Path(name)
        models.write_pool(folder).rename(folder / "conductor.toml")
        yield folder


def comparable(text: str) -> list[str]:
    """The lines, with what differs from run to run made equal."""
    text = re.sub(r"\b[0-9a-f]{32}\b", "ID", text)
    text = re.sub(r"\b[0-9a-f]{8}\b", "ID", text)
    text = re.sub(r"\S*/conductor\.toml", "conductor.toml", text)
    text = re.sub(r"(\d\d \w{3} )?\b\d\d:\d\d\b", "WHEN", text)
    text = re.sub(r"\b\d+\.\d\b", "TIME", text)
    text = re.sub(r"\b[\d,]+ bytes", "SIZE bytes", text)
    text = re.sub(r"[░█]+", "BAR", text).replace("BARBAR", "BAR")
    return [re.sub(r" +", " ", line.rstrip()) for line in text.splitlines()]


@pytest.mark.parametrize(("kind", "commands", "shown"), BLOCK.findall(PAGE))
def test_every_block_prints_what_the_page_shows(
    kind: str, commands: str, shown: str, folder: Path
) -> None:
    printed = carried_out(kind, commands, folder)

    assert comparable(printed) == comparable(shown)
    assert "Traceback" not in printed


def test_the_page_has_the_commands_for_runs() -> None:
    """One section each, and output with every block."""
    from conductor.records import COMMANDS

    told = set(re.findall(r"`conductor (\w+)`", " ".join(re.findall(r"^## .*$", PAGE, re.M))))

    assert told == {"run", *(each.__name__ for each in COMMANDS)}
    assert all(shown for *_, shown in BLOCK.findall(PAGE))


def test_options_named_exist() -> None:
    from typer.main import get_command

    from conductor.cli import app

    known = {
        option
        for command in get_command(app).commands.values()  # type: ignore[attr-defined]
        for parameter in command.params
        for option in parameter.opts
    }
    assert {*re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)} - known == set()


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", PAGE)

    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
