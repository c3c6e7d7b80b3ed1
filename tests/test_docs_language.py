"""docs/language.md is true: its commands are run in order and its output compared."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from grammar import format_file

PAGE = (Path(__file__).parents[1] / "docs" / "language.md").read_text(encoding="utf-8")


def test_the_page_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """The file shown first goes through the commands and becomes the file shown last."""
    file = tmp_path / "draft.plan"
    said = ""
    plans = 0
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        match language:
            case "plan" if not plans:
                plans += 1
                file.write_text(text, encoding="utf-8")
            case "plan" if plans == 1:
                plans += 1
                assert file.read_text(encoding="utf-8") == text
            case "plan":
                plans += 1
                assert format_file(text) == text
            case "sh":
                words = [sys.executable, "-m", *shlex.split(text)]
                done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
                assert "error:" not in done.stderr
                said = done.stdout
            case "text":
                assert said == text

    assert plans == 3
    assert said.count("\n") > 25
