"""What the engine costs: CPU per step against bare anyio, and makespan over the critical path.

Run ``python -m tests.benchmarks.engine_speed`` or the file itself; the rest of the machine should
be idle. Bare anyio is one task per step that waits for the events of its inputs: no context, no
record, no failures. The bar: at most 3 times bare anyio from 50 steps on, a cost per step that does
not grow with the plan, and a makespan of at most 1.10 times the critical path.
"""
# ruff: noqa: T201

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence

import anyio

from grammar import Plan, chain
from runtime import FunctionWorker, Message, Pool, Run, run_plan

_REPEATS = 5  # medians of so many


async def nothing(messages: Sequence[Message]) -> str:
    """Answer at once."""
    return "x"


POOL = Pool([FunctionWorker("w", nothing)])


async def bare(plan: Plan) -> None:
    """The least that runs a plan in the right order."""
    done = [anyio.Event() for _ in plan]

    async def step(index: int, access: tuple[int, ...]) -> None:
        for earlier in access:
            await done[earlier].wait()
        await nothing(())
        done[index].set()

    async with anyio.create_task_group() as group:
        for each in plan:
            group.start_soon(step, each.index, each.access)


async def engine(plan: Plan) -> None:
    """The engine, with its events recorded."""
    await run_plan(plan, "q", POOL)


def random_dag(size: int, seed: int = 0) -> Plan:
    """Each step reads up to three earlier ones."""
    rng = random.Random(seed)
    access = [sorted(rng.sample(range(i), min(i, rng.randrange(4)))) for i in range(size)]
    return Plan.of([f"do {i}" for i in range(size)], ["w"] * size, access)


def line(size: int) -> Plan:
    """A chain."""
    return chain([f"do {i}" for i in range(size)], ["w"])


async def cpu_us(run: Callable[[Plan], Awaitable[None]], plan: Plan) -> float:
    """CPU microseconds per step; short plans run often enough to be measurable."""
    times = max(1, 2_000 // len(plan))
    before = time.process_time()
    for _ in range(times):
        await run(plan)
    return (time.process_time() - before) / times / len(plan) * 1e6


async def compared(plan: Plan) -> tuple[float, float, float]:
    """Engine, bare anyio and their ratio; medians of pairs taken in turn, as the CPU drifts."""
    await engine(plan)
    pairs = [(await cpu_us(engine, plan), await cpu_us(bare, plan)) for _ in range(_REPEATS)]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    return ours, theirs, statistics.median(one / other for one, other in pairs)


async def overheads() -> None:
    """CPU per step, engine and bare anyio in the same process."""
    print(f"{'CPU per step':<22}{'engine':>10}{'bare':>10}{'ratio':>8}")
    plans = {
        "chain of 5": line(5),
        "chain of 50": line(50),
        "chain of 500": line(500),
        "random DAG of 50": random_dag(50),
        "random DAG of 500": random_dag(500),
        "random DAG of 2,000": random_dag(2_000),
        "chain of 2,000": line(2_000),
    }
    ours = {}
    for name, plan in plans.items():
        ours[name], theirs, ratio = await compared(plan)
        print(f"{name:<22}{ours[name]:>7.1f} us{theirs:>7.1f} us{ratio:>8.2f}")
    for shape in ("chain", "random DAG"):
        growth = ours[f"{shape} of 2,000"] / ours[f"{shape} of 50"]
        print(f"{shape}: a step of 2,000 costs {growth:.2f} times a step of 50")


async def makespans() -> None:
    """An unbalanced 8x8 plan: every step reads two of the eight before it, 5 to 200 ms each."""
    rng = random.Random(8)
    seconds = [rng.uniform(0.005, 0.2) for _ in range(64)]
    access = [
        sorted({row * 8 - 8 + column, row * 8 - 8 + rng.randrange(8)}) if row else []
        for row in range(8)
        for column in range(8)
    ]
    ends: list[float] = []
    for reads, took in zip(access, seconds, strict=True):
        ends.append(took + max((ends[earlier] for earlier in reads), default=0.0))

    def sleeper(took: float) -> Callable[[Sequence[Message]], Awaitable[str]]:
        async def sleep(messages: Sequence[Message]) -> str:
            await anyio.sleep(took)
            return "x"

        return sleep

    pool = Pool(FunctionWorker(f"w{i}", sleeper(took)) for i, took in enumerate(seconds))
    plan = Plan.of([f"do {i}" for i in range(64)], pool.names, access)
    found = []
    for _ in range(_REPEATS):
        run: Run = await run_plan(plan, "q", pool)
        found.append(run.seconds / max(ends))
    print(
        f"8x8 plan, critical path {max(ends):.3f} s: makespan {statistics.median(found):.3f} times "
        f"that (median of {_REPEATS}; {min(found):.3f} to {max(found):.3f})"
    )


async def main() -> None:
    """Measure all."""
    await overheads()
    await makespans()


if __name__ == "__main__":
    anyio.run(main)
