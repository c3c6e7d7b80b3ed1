"""Figures of the process itself, for the metrics: whatever grows for ever is seen there."""

from __future__ import annotations

import os
import time
from pathlib import Path

import anyio

_SELF = Path("/proc/self")


def vitals() -> list[str]:
    """CPU time, tasks, and on Linux memory and open files, by the names that Prometheus' own
    clients use.
    """
    figures: dict[str, tuple[str, float]] = {
        "process_cpu_seconds_total": ("counter", round(time.process_time(), 3)),
        "conductor_tasks": ("gauge", len(anyio.get_running_tasks())),
    }
    if _SELF.is_dir():
        pages = int((_SELF / "statm").read_text().split()[1])
        memory = pages * os.sysconf("SC_PAGE_SIZE")
        figures["process_resident_memory_bytes"] = ("gauge", memory)
        # Without the one that lists them.
        figures["process_open_fds"] = ("gauge", len(os.listdir(_SELF / "fd")) - 1)
    return [
        line
        for name, (kind, figure) in figures.items()
        for line in (f"# TYPE {name} {kind}", f"{name} {figure:.15g}")
    ]
