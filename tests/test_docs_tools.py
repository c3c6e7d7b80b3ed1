"""The page on tools is true: its program runs and prints what it shows, and its tests exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "tools.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_program_prints_what_the_page_shows(tmp_path: Path) -> None:
    (program,), (shown,) = blocks("python"), blocks("text")
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.stdout, done.stderr) == (shown, "")


def test_what_shows_a_promise_is_there() -> None:
    written = "".join(
        (ROOT / "tests" / f"test_{name}.py").read_text(encoding="utf-8")
        for name in ("tools", "calling")
    )
    named = re.findall(r"`(test_\w+)`", PAGE)
    assert len(named) > 3
    for name in named:
        assert f"def {name}(" in written
