"""docs/files.md is true: its commands are executed, and its output is theirs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "files.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```sh\n(.*?)^```\n(?:\n^```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the whole page: later commands use files of earlier ones."""
    folder = tmp_path_factory.mktemp("docs")
    plan = (DOCS / "debate.plan").read_text(encoding="utf-8")
    (folder / "debate.plan").write_text(plan, encoding="utf-8")
    return folder


@pytest.mark.parametrize(("commands", "shown"), BLOCK.findall(PAGE))
def test_every_command_prints_what_the_page_shows(commands: str, shown: str, folder: Path) -> None:
    """In order, with nothing on standard error but remarks about files written."""
    scripts = Path(sys.executable).parent
    env = {
        "PATH": f"{scripts}{os.pathsep}/usr/bin{os.pathsep}/bin",
        "HOME": str(folder),
        "COLUMNS": "120",
        "PYTHONPATH": str(DOCS.parent),
    }

    done = subprocess.run(
        ["sh", "-c", commands], cwd=folder, env=env, capture_output=True, text=True, timeout=120
    )

    differs = "revised.plan" in commands
    assert (done.returncode, "error" in done.stderr) == (int(differs), False), done.stderr
    assert [line.rstrip() for line in done.stdout.splitlines()] == shown.splitlines()


def test_every_command_of_the_page_has_its_section() -> None:
    """One section each, and output with every block."""
    sections = re.findall(r"^## .*`conductor (\w+)`$", PAGE, re.MULTILINE)

    assert sections == ["diff", "estimate", "convert", "schema"]
    assert PAGE.count("```sh\n") == PAGE.count("```text\n") == len(BLOCK.findall(PAGE))
    assert all(shown for _, shown in BLOCK.findall(PAGE))
