"""docs/tasks.md is true: its commands are executed, and its output is theirs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pages import carried_out
from tests.team import team

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"^```(sh|python)\n(.*?)^```\n(?:\n^```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One folder for the whole page, in which the models of the page can be reached."""
    folder = tmp_path_factory.mktemp("tasks")
    with team() as models:
        models.write_pool(folder).rename(folder / "conductor.toml")
        yield folder


@pytest.mark.parametrize(("kind", "commands", "shown"), BLOCK.findall(PAGE))
def test_every_block_prints_what_the_page_shows(
    kind: str, commands: str, shown: str, folder: Path
) -> None:
    printed = carried_out(kind, commands, folder)

    lines = [line.rstrip() for line in printed.splitlines()]
    assert lines == [line.rstrip() for line in shown.splitlines()]


def test_the_page_names_what_there_is() -> None:
    """Options, graders of short lines, links."""
    from typer.main import get_command

    from conductor.cli import app
    from training.tasks import _SIMPLE

    known = {
        option
        for command in get_command(app).commands.values()  # type: ignore[attr-defined]
        for parameter in command.params
        for option in parameter.opts
    }
    assert {*re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)} - known == set()
    assert all(f"`{name}`" in PAGE for name in _SIMPLE)
    links = re.findall(r"\]\(([^)#:]+)\)", PAGE)
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
