"""Blocks of the documentation, carried out as a reader would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def carried_out(kind: str, commands: str, folder: Path) -> str:
    """Carry out a block, ``sh`` or ``python``, in a folder; give all that it prints."""
    scripts = Path(sys.executable).parent
    env = {
        "PATH": f"{scripts}{os.pathsep}{os.defpath}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder),
        "COLUMNS": "100",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
    }
    call = ["sh", "-c", commands] if kind == "sh" else [sys.executable, "-c", commands]
    done = subprocess.run(
        call,
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return done.stdout
