"""`conductor serve` as a process of its own, for the scripts of this folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


@contextmanager
def serving(folder: Path, *args: str, port: int = 0) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start it in a folder, with its journal there; gives the base address and the process."""
    command = [sys.executable, "-m", "conductor", "serve", "--port", str(port)]
    journal = ["--journal", str(folder / "journal.db")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*command, *journal, *args], cwd=folder, env=env, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        found = re.search(r"http://\S+", process.stderr.readline())
        assert found, "it does not listen"
        yield found[0], process
    finally:
        process.terminate()
        process.wait()


def tail(text: str, lines: int) -> Sequence[str]:
    """The last lines that say something."""
    return [line for line in text.splitlines() if line.strip()][-lines:]
