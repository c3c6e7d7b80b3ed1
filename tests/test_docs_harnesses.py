"""docs/harnesses.md is true: its commands and its Python are executed where both are installed.

Not verifiers' own command, which fetches what its harness needs.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("inspect_ai")
pytest.importorskip("verifiers.v1")

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "harnesses.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_extras_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installed = [each for block in blocks("sh") for each in re.findall(r"\.\[(\w+)\]", block)]

    assert installed == ["evals", "environments"]
    assert set(installed) <= extras["optional-dependencies"].keys()


def test_inspect_evaluates_the_orchestra(tmp_path: Path) -> None:
    (command,) = [block for block in blocks("sh") if block.startswith("inspect ")]
    program, *arguments = shlex.split(command)
    kept = ["--log-dir", str(tmp_path), "--log-format", "json", "--display", "plain"]
    done = subprocess.run(
        [sys.executable, "-m", f"{program}_ai", *arguments, *kept],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    (log,) = tmp_path.glob("*.json")
    told = json.loads(log.read_text(encoding="utf-8"))
    assert told["status"] == "success"
    assert len(told["samples"]) == 4
    assert {each["metadata"]["section"] for each in told["samples"]} == {"phrasings", "composed"}
    assert all(each["output"]["metadata"]["steps"] for each in told["samples"])


def test_the_prompts_of_the_tasks_are_the_ones_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (code,) = blocks("python")
    shown = blocks("text")[1]
    monkeypatch.chdir(tmp_path)

    exec(code, {})

    assert capsys.readouterr().out == shown
