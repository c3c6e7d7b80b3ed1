"""docs/performance.md is true to its script: what it lists is what the script prints.

Figures belong to a machine and are not compared.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
QUANTITIES = re.findall(r"^\| ([^|]+?) \| [^|]*\d[^|]* \|", PAGE, re.MULTILINE)
COMMAND = "python -m tests.benchmarks.engine_speed"


def measured(*options: str) -> str:
    """What the page's command prints."""
    assert f"\n{COMMAND}\n" in PAGE
    module = COMMAND.split()[-1]
    done = subprocess.run(
        [sys.executable, "-m", module, *options], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_command_prints_the_rows_of_the_page() -> None:
    """Those of two parts; each line is judged, or says how to get what it lacks."""
    told = measured("--only", "langgraph", "makespan", "--repeats", "1")

    lines = told.partition("\n\n")[2].partition("\n\n")[0].splitlines()[1:]
    parts = [name for name in QUANTITIES if name.startswith(("5-step", "makespan"))]
    assert [line[: len(name)] for line, name in zip(lines, parts, strict=True)] == parts
    left_out = "is not installed (pip install -r tests/benchmarks/requirements.txt)"
    assert all(line.endswith(("ok", "not met", left_out)) for line in lines)


def test_the_summary_counts_the_lines() -> None:
    """Met and not met, by name; a client's request is judged against fewer at once."""
    told = measured("--only", "client", "--repeats", "1")

    judged = [line for line in told.splitlines() if line.endswith(("ok", "not met"))]
    met = sum(line.endswith("ok") for line in judged)
    assert [line[:40] for line in judged] == ["HTTP client CPU per request, 500 at once"]
    assert told.splitlines()[-1].startswith(f"{met} of 1 bars met")


def test_every_part_of_the_script_is_on_the_page() -> None:
    """And no other."""
    offered = re.search(r"of: ([\w, ]+)", " ".join(measured("--help").split()))

    assert offered is not None
    names = re.findall(r"`(\w+)`", PAGE.partition("`--only`")[2].partition(".\n")[0])
    assert names == [name.strip() for name in offered[1].partition(" --")[0].split(",")]
