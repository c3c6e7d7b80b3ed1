"""docs/server.md is true: its commands and its Python are executed, its tables are the code's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conductor.server.ask import CHAT, RESPONSES
from tests.team import team

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"^```(sh run|python)\n(.*?)^```\n(?:\n^```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with a pool file, and the address of `conductor serve` started in it."""
    folder = tmp_path_factory.mktemp("server")
    with team() as models:
        models.write_pool(folder).rename(folder / "conductor.toml")
        call = [sys.executable, "-m", "conductor", "serve", "--port", "0"]
        env = environment(folder)
        with subprocess.Popen(call, cwd=folder, env=env, stderr=subprocess.PIPE, text=True) as it:
            assert it.stderr is not None
            line = it.stderr.readline()
            found = re.search(r"serving at http://([\d.:]+)/v1 until Ctrl-C", line)
            assert found, line
            yield folder, found[1]
            it.terminate()
            assert it.wait(timeout=60) == 0


def environment(folder: Path) -> dict[str, str]:
    scripts = Path(sys.executable).parent
    return {
        "PATH": f"{scripts}{os.pathsep}{os.defpath}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder),
        "COLUMNS": "100",
    }


@pytest.mark.parametrize(("kind", "commands", "shown"), BLOCK.findall(PAGE))
def test_every_block_prints_what_the_page_shows(
    kind: str, commands: str, shown: str, place: tuple[Path, str]
) -> None:
    folder, address = place
    commands = commands.replace("127.0.0.1:8000", address)
    call = ["sh", "-c", commands] if kind == "sh run" else [sys.executable, "-c", commands]

    done = subprocess.run(
        call,
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )

    told = re.sub(r'"run":"[0-9a-f]{32}"', '"run":"ID"', done.stdout)
    assert sorted(told.splitlines()) == sorted(shown.splitlines())


@pytest.mark.parametrize("table", [CHAT, RESPONSES], ids=["chat", "responses"])
def test_the_tables_are_those_of_the_code(table: tuple[object, ...]) -> None:
    """One row for each parameter."""
    for row in table:
        name, fate, remark = (getattr(row, part) for part in ("name", "fate", "remark"))
        assert f"| `{name}` | {fate} | {remark} |" in PAGE
    assert PAGE.count("| parameter | fate | remark |") == 2
    rows = re.findall(r"^\| `\w+` \| (?:honoured|passed|refused|without)", PAGE, re.MULTILINE)
    assert len(rows) == len(CHAT) + len(RESPONSES)


def test_options_named_exist() -> None:
    from typer.main import get_command

    from conductor.cli import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    named_here = [commands[name] for name in ("serve", "config", "init")]
    known = {
        option for each in named_here for parameter in each.params for option in parameter.opts
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE))
    assert named - known <= {"--json", "--profile"}  # the last one is Codex's
