"""Speed and memory of the runtime, as ratios with a baseline measured in the same run.

    python -m tests.benchmarks.engine_speed
    python -m tests.benchmarks.engine_speed --only steps flight --repeats 3

The rest of the machine should be idle. Figures are medians of pairs taken in turn, ours and the
baseline's, since the speed of a CPU drifts. Bars that need LangGraph are left out, and said so, if
it is not installed. Exits with 0 whatever comes out: a benchmark is no test.
"""
# ruff: noqa: T201

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import anyio

from grammar import Plan, chain
from runtime import Call, Endpoint, FunctionWorker, Message, Pool, Run, run_plan

from .baselines import Runner, on_anyio, on_engine, on_langgraph, version_of
from .in_flight import small_plan

INSTALL = "pip install -r tests/benchmarks/requirements.txt"
SIZES = (50, 500, 2_000)
PLANS = 1_000
REQUESTS = 2_000


@dataclass
class Report:
    """Prints each line as it is known, and sums up."""

    repeats: int
    met: int = 0
    missed: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def begin(self) -> None:
        """Say what was measured on what."""
        packages = ("anyio", "httpx", "aiohttp", "langgraph")
        versions = (f"{each} {version_of(each) or '(not installed)'}" for each in packages)
        load, *_ = os.getloadavg()
        print(f"Python {platform.python_version()}, {', '.join(versions)}")
        print(f"{platform.system()}, {os.cpu_count()} cores, load {load:.1f}; ", end="")
        print(f"medians of {self.repeats}")
        print(f"\n{'':46}{'figure':>14}  {'baseline':28}{'ratio':>7}  {'bar':8}")

    def line(
        self, quantity: str, figure: str, baseline: str, ratio: float, bar: float | None, *,
        at_least: bool = False,
    ) -> None:  # fmt: skip
        """Print a figure and judge its ratio; without a bar it is for information."""
        verdict, told = "", ""
        if bar is not None:
            good = ratio >= bar if at_least else ratio <= bar
            verdict = "ok" if good else "not met"
            told = f"{'>=' if at_least else '<='} {bar:g}"
            if good:
                self.met += 1
            else:
                self.missed.append(quantity)
        print(
            f"{quantity:46}{figure:>14}  {baseline:28}{ratio:7.2f}  {told:8}{verdict}", flush=True
        )

    def leave_out(self, quantity: str) -> None:
        """Say what can't be measured here."""
        self.left_out.append(quantity)
        print(f"{quantity:46}left out: LangGraph is not installed ({INSTALL})")

    def end(self) -> None:
        """Sum up."""
        print(f"\n{self.met} of {self.met + len(self.missed)} bars met", end="")
        print(f"; not met: {', '.join(self.missed)}" if self.missed else "", end="")
        print(f"; left out: {', '.join(self.left_out)}" if self.left_out else "")


# -- plans and workers ------------------------------------------------------------------------


async def nothing(messages: Sequence[Message]) -> str:
    """Answer at once."""
    return "x"


def random_dag(size: int, seed: int = 0) -> Plan:
    """Each step reads up to three earlier ones."""
    rng = random.Random(seed)
    access = [sorted(rng.sample(range(i), min(i, rng.randrange(4)))) for i in range(size)]
    return Plan.of([f"do {i}" for i in range(size)], ["w"] * size, access)


def line(size: int) -> Plan:
    """Each step reads the one before it."""
    return chain([f"do {i}" for i in range(size)], ["w"])


SHAPES: dict[str, Callable[[int], Plan]] = {"chain": line, "random DAG": random_dag}


def sleeper(seconds: float) -> Callable[[Sequence[Message]], Awaitable[str]]:
    """A worker's function that takes so long."""

    async def sleep(messages: Sequence[Message]) -> str:
        await anyio.sleep(seconds)
        return "x"

    return sleep


# -- CPU per step -----------------------------------------------------------------------------


async def cpu_us(run: Callable[[], Awaitable[object]], units: int, *, least: int = 2_000) -> float:
    """CPU microseconds per unit of work; short work is repeated until it can be measured."""
    times = max(1, least // units)
    gc.collect()  # or one would pay for the other's garbage
    before = time.process_time()
    for _ in range(times):
        await run()
    return (time.process_time() - before) / times / units * 1e6


async def compared(
    ours: Callable[[], Awaitable[object]],
    other: Callable[[], Awaitable[object]],
    units: int,
    repeats: int,
    *,
    least: int = 2_000,
) -> tuple[float, float, float]:
    """CPU microseconds of both, and the median ratio of pairs."""
    await ours()
    await other()
    pairs = [
        (await cpu_us(ours, units, least=least), await cpu_us(other, units, least=least))
        for _ in range(repeats)
    ]
    one, two = (statistics.median(column) for column in zip(*pairs, strict=True))
    return one, two, statistics.median(a / b for a, b in pairs)


async def steps(report: Report) -> None:
    """Engine over bare anyio per step, and whether a step costs more in a larger plan."""
    for shape, make in SHAPES.items():
        found = {}
        for size in SIZES:
            plan = make(size)
            found[size], bare, ratio = await compared(
                partial(on_engine, plan, nothing),
                partial(on_anyio, plan, nothing),
                size,
                report.repeats,
            )
            report.line(
                f"CPU per step, {shape} of {size:,}",
                f"{found[size]:.1f} us",
                f"bare anyio {bare:.1f} us",
                ratio,
                3,
            )
        least, *_, most = SIZES
        report.line(
            f"linearity: {shape} of {most:,} over {least}",
            f"{found[most]:.1f} us",
            f"a step of {least}: {found[least]:.1f} us",
            found[most] / found[least],
            1.5,
        )


async def build_and_run(report: Report) -> None:
    """A plan of five steps from its lists to its answer."""
    quantity = "5-step plan, build and run"
    if version_of("langgraph") is None:
        report.leave_out(quantity)
        return
    ours, theirs, ratio = await compared(
        partial(_built, on_engine), partial(_built, on_langgraph), 1, report.repeats, least=100
    )
    report.line(quantity, f"{ours:,.0f} us", f"LangGraph {theirs:,.0f} us", ratio, 0.1)


async def _built(run: Runner) -> None:
    await run(small_plan(), nothing)


# -- time on the clock ------------------------------------------------------------------------


async def makespans(report: Report) -> None:
    """How much longer a plan takes than its critical path; every step 50 to 250 ms."""
    rng = random.Random(8)
    grid = [
        sorted({row * 8 - 8 + column, row * 8 - 8 + rng.randrange(8)}) if row else []
        for row in range(8)
        for column in range(8)
    ]
    for name, access in (("8x8 plan", grid), ("random DAG of 40", list(random_dag(40).access))):
        seconds = [rng.uniform(0.05, 0.25) for _ in access]
        found = [await _makespan(access, seconds) for _ in range(report.repeats)]
        path = critical_path_s(access, seconds)
        took = statistics.median(found)
        figures = f"{took:.3f} s", f"critical path {path:.3f} s"
        report.line(f"makespan, {name}", *figures, took / path, 1.05)


async def _makespan(access: Sequence[Sequence[int]], seconds: Sequence[float]) -> float:
    pool = Pool(FunctionWorker(f"w{i}", sleeper(took)) for i, took in enumerate(seconds))
    plan = Plan.of([f"do {i}" for i in range(len(access))], pool.names, access)
    run: Run = await run_plan(plan, "q", pool)
    return run.seconds


def critical_path_s(access: Sequence[Sequence[int]], seconds: Sequence[float]) -> float:
    """When the last step ends at best."""
    ends: list[float] = []
    for reads, took in zip(access, seconds, strict=True):
        ends.append(took + max((ends[earlier] for earlier in reads), default=0.0))
    return max(ends)


async def fan_out(report: Report) -> None:
    """One step, sixteen that read it, one that reads these; 200 ms each. Then a chain of 10."""
    wide = [[], *([[0]] * 16), list(range(1, 17))]
    took = await _median_makespan(wide, 0.2, report.repeats)
    told = f"{took * 1e3:.0f} ms", "3 x 200 ms"
    report.line("1 -> 16 -> 1 plan of 200 ms steps", *told, took / 0.6, 1.1)
    took = await _median_makespan([list(step) for step in line(10).access], 0.05, report.repeats)
    told = f"{took * 1e3:.0f} ms", "10 x 50 ms"
    report.line("chain of 10 steps of 50 ms", *told, took / 0.5, 1.05)


async def _median_makespan(access: Sequence[Sequence[int]], seconds: float, repeats: int) -> float:
    found = [await _makespan(access, [seconds] * len(access)) for _ in range(repeats)]
    return statistics.median(found)


# -- many plans at once -----------------------------------------------------------------------


async def flight(report: Report) -> None:
    """A thousand plans of five steps at once, each runner in a process of its own."""
    runners = ["conductor", "anyio"]
    if version_of("langgraph") is not None:
        runners.append("langgraph")
    repeats = min(3, report.repeats)
    found: dict[str, list[dict[str, float]]] = {runner: [] for runner in runners}
    for _ in range(repeats):
        for runner in runners:
            found[runner].append(await _in_flight(runner))

    def median(runner: str, what: str) -> float:
        return statistics.median(each[what] for each in found[runner])

    many = f"{PLANS:,} plans in flight"
    kib, bare = median("conductor", "kib"), median("anyio", "kib")
    told = f"{kib:.1f} KiB", f"bare anyio {bare:.1f} KiB"
    report.line(f"{many}: memory per plan", *told, kib / bare, 3)
    if "langgraph" not in found:
        report.leave_out(f"{many}: throughput")
        return
    ours, theirs = median("conductor", "plans_per_s"), median("langgraph", "plans_per_s")
    told = f"{ours:,.0f} plans/s", f"LangGraph {theirs:,.0f} plans/s"
    report.line(f"{many}: throughput", *told, ours / theirs, 10, at_least=True)
    other = median("langgraph", "kib")
    told = f"{kib:.1f} KiB", f"LangGraph {other:.1f} KiB"
    report.line(f"{many}: memory over LangGraph", *told, kib / other, None)


async def _in_flight(runner: str) -> dict[str, float]:
    module = f"{__package__}.in_flight"
    done = await anyio.run_process([sys.executable, "-m", module, runner, str(PLANS)], stderr=None)
    told: dict[str, float] = json.loads(done.stdout)
    return told


# -- the HTTP client --------------------------------------------------------------------------


async def client(report: Report) -> None:
    """CPU of an Endpoint per request; the server is another process, connections are open."""
    async with _served() as url:
        endpoint = Endpoint("w", url=url, model="m")
        call = Call((Message("user", "How are you?"),))
        async with endpoint, _plain_aiohttp(url) as plain:

            async def ours() -> None:
                completion = await endpoint.complete(call)
                assert completion.text.startswith("word 0"), completion

            found: dict[tuple[str, int], list[float]] = {}
            for _ in range(report.repeats):
                for requests in (50, 500):
                    for name, one in (("ours", ours), ("aiohttp", plain)):
                        us = await _per_request_us(one, requests)
                        found.setdefault((name, requests), []).append(us)
    medians = {key: statistics.median(values) for key, values in found.items()}
    few, many = found["ours", 50], found["ours", 500]
    report.line(
        "HTTP client CPU per request, 500 at once",
        f"{medians['ours', 500]:.0f} us",
        f"50 at once: {medians['ours', 50]:.0f} us",
        statistics.median(b / a for a, b in zip(few, many, strict=True)),
        1.5,
    )
    for requests in (50, 500):
        ours_us, plain_us = medians["ours", requests], medians["aiohttp", requests]
        told = f"{ours_us:.0f} us", f"plain aiohttp {plain_us:.0f} us"
        report.line(f"HTTP client, {requests} at once", *told, ours_us / plain_us, None)


@asynccontextmanager
async def _served() -> AsyncIterator[str]:
    """Run the loopback server in a process of its own."""
    command = [sys.executable, "-m", f"{__package__}.loopback"]
    async with await anyio.open_process(command, stderr=None) as process:
        assert process.stdin is not None and process.stdout is not None
        port = (await process.stdout.receive()).decode().strip()
        yield f"http://127.0.0.1:{port}/v1"
        await process.stdin.aclose()


@asynccontextmanager
async def _plain_aiohttp(url: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """The least that posts a call and reads the bytes of the answer."""
    import aiohttp

    body = {"model": "m", "messages": [{"role": "user", "content": "How are you?"}]}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def post() -> None:
            async with session.post(f"{url}/chat/completions", json=body) as answer:
                assert (await answer.read()).endswith(b"[DONE]\n\n")

        yield post


async def _per_request_us(one: Callable[[], Awaitable[None]], at_once: int) -> float:
    """CPU microseconds of a request when so many tasks make one after the other."""

    async def several(times: int) -> None:
        for _ in range(times):
            await one()

    async def round_of(times: int) -> None:
        async with anyio.create_task_group() as group:
            for _ in range(at_once):
                group.start_soon(several, times)

    await round_of(1)  # opens the connections
    gc.collect()
    before = time.process_time()
    await round_of(REQUESTS // at_once)
    return (time.process_time() - before) / REQUESTS * 1e6


# -- all of it --------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Report], Awaitable[None]]] = {
    "steps": steps,
    "langgraph": build_and_run,
    "makespan": makespans,
    "fan-out": fan_out,
    "flight": flight,
    "client": client,
}


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
                        help="of: " + ", ".join(PARTS))  # fmt: skip
    parser.add_argument("--repeats", type=int, default=5, help="pairs per figure (5)")
    options = parser.parse_args()
    report = Report(options.repeats)
    report.begin()
    for part in options.only:
        anyio.run(PARTS[part], report)
    report.end()


if __name__ == "__main__":
    main()
