"""Hold many plans in flight at once, in this process: KiB per plan, plans per second of CPU.

    python -m tests.benchmarks.in_flight conductor 1000

One line of JSON. A process of its own per runner, since memory that was used once is not given
back. Needs /proc (Linux).
"""
# ruff: noqa: T201

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import anyio
import anyio.lowlevel

from grammar import Plan
from runtime import Message

from .baselines import RUNNERS, Runner

ACCESS = [[], [], [0], [1], [2, 3]]
"""Two attempts, a check of each, a judge: two steps are under way at any time."""
WARM_UP = 20


def small_plan() -> Plan:
    """A plan of five steps."""
    return Plan.of([f"do {i}" for i in range(5)], ["w"] * 5, ACCESS)


def resident_kib() -> int:
    """Memory of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0])


async def turn(messages: Sequence[Message]) -> str:
    """Give way once, so that all plans really are under way together."""
    await anyio.lowlevel.checkpoint()
    return "x"


async def held_kib(run: Runner, plans: int) -> float:
    """What a plan takes whose first two steps wait for their workers."""
    gate = anyio.Event()
    waiting = 0

    async def wait(messages: Sequence[Message]) -> str:
        nonlocal waiting
        waiting += 1
        await gate.wait()
        return "x"

    gc.collect()
    before = resident_kib()
    async with anyio.create_task_group() as group:
        for _ in range(plans):
            group.start_soon(run, small_plan(), wait)
        while waiting < 2 * plans:
            await anyio.lowlevel.checkpoint()
        held = resident_kib() - before
        gate.set()
    return held / plans


async def per_cpu_second(run: Runner, plans: int) -> float:
    """How many plans are built and run in a second of CPU when all begin at once."""
    gc.collect()
    began = time.process_time()
    async with anyio.create_task_group() as group:
        for _ in range(plans):
            group.start_soon(run, small_plan(), turn)
    return plans / (time.process_time() - began)


async def main(runner: str, plans: int) -> None:
    """Measure memory first, while the heap is small."""
    async with RUNNERS[runner]() as run:
        for _ in range(WARM_UP):
            await run(small_plan(), turn)
        told = {
            "kib": await held_kib(run, plans),
            "plans_per_s": await per_cpu_second(run, plans),
        }
    print(json.dumps(told))


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], int(sys.argv[2]))
