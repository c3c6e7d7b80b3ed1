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
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio

from grammar import Plan, chain
from runtime import (
    Call,
    Endpoint,
    FunctionWorker,
    Journal,
    Message,
    Pool,
    no_listener,
    run_plan,
)

from .baselines import RUNNERS, Runner, on_anyio, version_of
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
        print(f"\n{'':54}{'figure':>14}  {'baseline':28}{'ratio':>7}  {'bar':8}")

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
            f"{quantity:54}{figure:>14}  {baseline:28}{ratio:7.2f}  {told:8}{verdict}", flush=True
        )

    def leave_out(self, quantity: str) -> None:
        """Say what can't be measured here."""
        self.left_out.append(quantity)
        print(f"{quantity:54}left out: LangGraph is not installed ({INSTALL})")

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


def has(runner: str) -> bool:
    """Whether what it runs on is installed."""
    package = {"langgraph": "langgraph", "langgraph+sqlite": "langgraph-checkpoint-sqlite"}
    return runner not in package or version_of(package[runner]) is not None


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
    for journal, engine in (("", "conductor"), (" with journal", "conductor+journal")):
        async with RUNNERS[engine]() as run:
            for shape, make in SHAPES.items():
                await _steps(report, f"CPU per step{journal}, {shape}", run, make)


async def _steps(report: Report, quantity: str, run: Runner, make: Callable[[int], Plan]) -> None:
    found = {}
    for size in SIZES:
        plan = make(size)
        ours, bare = partial(run, plan, nothing), partial(on_anyio, plan, nothing)
        found[size], bare_us, ratio = await compared(ours, bare, size, report.repeats)
        told = f"{found[size]:.1f} us", f"bare anyio {bare_us:.1f} us"
        report.line(f"{quantity} of {size:,}", *told, ratio, 3)
    least, most = SIZES[0], SIZES[-1]
    told = f"{found[most]:.1f} us", f"a step of {least}: {found[least]:.1f} us"
    report.line(f"{quantity}, {most:,} over {least}", *told, found[most] / found[least], 1.5)


async def build_and_run(report: Report) -> None:
    """A plan of five steps from its lists to its answer; then all of it kept in a file."""
    quantity = "5-step plan, build and run"
    pairs = {
        quantity: ("conductor", "langgraph"),
        f"{quantity}, kept in SQLite": ("conductor+journal", "langgraph+sqlite"),
    }
    for name, (ours, theirs) in pairs.items():
        if not has(theirs):
            report.leave_out(name)
            continue
        async with RUNNERS[ours]() as one, RUNNERS[theirs]() as other:
            us, theirs_us, ratio = await compared(
                partial(_built, one), partial(_built, other), 1, report.repeats, least=50
            )
        report.line(name, f"{us:,.0f} us", f"LangGraph {theirs_us:,.0f} us", ratio, 0.1)


async def _built(run: Runner) -> None:
    await run(small_plan(), nothing)


# -- time on the clock ------------------------------------------------------------------------


async def makespans(report: Report) -> None:
    """How much longer a plan takes than its critical path; steps of 50 ms and more, journal on."""
    rng = random.Random(8)
    grid = [
        sorted({row * 8 - 8 + column, row * 8 - 8 + rng.randrange(8)}) if row else []
        for row in range(8)
        for column in range(8)
    ]
    dag = random_dag(40).access
    fan: list[list[int]] = [[], *([[0]] * 16), list(range(1, 17))]
    cases: list[tuple[str, Sequence[Sequence[int]], list[float], float]] = [
        ("8x8 plan of 50 to 250 ms steps", grid, [rng.uniform(0.05, 0.25) for _ in grid], 1.05),
        ("random DAG of 40, 50 to 250 ms", dag, [rng.uniform(0.05, 0.25) for _ in dag], 1.05),
        ("1 -> 16 -> 1 plan of 200 ms steps", fan, [0.2] * 18, 1.1),
        ("chain of 10 steps of 50 ms", line(10).access, [0.05] * 10, 1.05),
    ]
    with TemporaryDirectory() as folder, Journal(Path(folder) / "runs.db") as journal:
        await _makespan_s([[]], [0.0], journal)  # opens the file
        for name, access, seconds, bar in cases:
            found = [await _makespan_s(access, seconds, journal) for _ in range(report.repeats)]
            took, path = statistics.median(found), critical_path_s(access, seconds)
            told = f"{took * 1e3:,.0f} ms", f"critical path {path * 1e3:,.0f} ms"
            report.line(f"makespan, {name}", *told, took / path, bar)


async def _makespan_s(
    access: Sequence[Sequence[int]], seconds: Sequence[float], journal: Journal
) -> float:
    pool = Pool(FunctionWorker(f"w{i}", sleeper(took)) for i, took in enumerate(seconds))
    plan = Plan.of([f"do {i}" for i in range(len(access))], pool.names, access)
    run = await run_plan(plan, "q", pool, emit=journal.before(no_listener))
    return run.seconds


def critical_path_s(access: Sequence[Sequence[int]], seconds: Sequence[float]) -> float:
    """When the last step ends at best."""
    ends: list[float] = []
    for reads, took in zip(access, seconds, strict=True):
        ends.append(took + max((ends[earlier] for earlier in reads), default=0.0))
    return max(ends)


# -- many plans at once -----------------------------------------------------------------------


async def flight(report: Report) -> None:
    """A thousand plans of five steps at once, each runner in a process of its own."""
    runners = [runner for runner in RUNNERS if has(runner)]
    found: dict[str, list[dict[str, float]]] = {runner: [] for runner in runners}
    for _ in range(min(3, report.repeats)):
        for runner in runners:
            found[runner].append(await _in_flight(runner))

    def median(runner: str, what: str) -> float:
        return statistics.median(each[what] for each in found[runner])

    many = f"{PLANS:,} plans in flight"
    for ours, name in (("conductor", many), ("conductor+journal", f"{many} with journal")):
        kib, bare = median(ours, "kib"), median("anyio", "kib")
        told = f"{kib:.1f} KiB", f"bare anyio {bare:.1f} KiB"
        report.line(f"{name}: memory", *told, kib / bare, 3)
    pairs = {
        f"{many}: throughput": ("conductor", "langgraph"),
        f"{many}, kept in SQLite: throughput": ("conductor+journal", "langgraph+sqlite"),
    }
    for name, (ours, theirs) in pairs.items():
        if not has(theirs):
            report.leave_out(name)
            continue
        one, other = median(ours, "plans_per_s"), median(theirs, "plans_per_s")
        told = f"{one:,.0f} plans/s", f"LangGraph {other:,.0f} plans/s"
        report.line(name, *told, one / other, 10, at_least=True)


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
