"""Drills against the fault server: availability, the breaker, hanging up, and the books.

Each is a function that returns a report: figures, and the promises that were broken. They are run
by ``python -m tests.faults.matrix NAME`` and, smaller, by ``tests/test_faults.py``.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from random import Random

import anyio

from conductor import Conductor
from grammar import Plan
from runtime import (
    Account,
    Event,
    HttpClient,
    Pool,
    Price,
    Run,
    RunFinished,
    RunState,
    Terms,
    Usage,
)
from tests.faults import server as play
from tests.faults.pulse import Pulse
from tests.faults.server import End, Play, serving

HANG_UP_S = 0.25


@dataclass(frozen=True, slots=True)
class Report:
    """What a drill found."""

    figures: str
    broken: tuple[str, ...]

    def __str__(self) -> str:
        return "\n  ".join([self.figures, *(f"WRONG: {each}" for each in self.broken)])


# -- a pool with one dead worker and one that fails at times --------------------------------------


async def availability(requests: int = 5_000, width: int = 50) -> Report:
    """Ask three workers in turn, each with the others as fallback: one is dead, one fails 30 %."""
    names = ("dead", "flaky", "good")
    async with serving() as server, HttpClient() as client:
        plays: dict[str, Play] = {
            "dead": play.reset_before_headers,
            "flaky": play.failing(0.3, seed=1),
            "good": play.fine,
        }
        pool = Pool(
            [server.endpoint(name, plays[name], client=client) for name in names],
            terms={
                name: Terms(
                    retries=1,
                    retry_base_s=0.01,
                    trip_after=5,
                    open_s=1.0,
                    fallback=tuple(other for other in names if other != name),
                )
                for name in names
            },
        )
        conductor = Conductor(pool)
        runs: list[Run] = []
        left = iter(range(requests))

        async def ask() -> None:
            for number in left:
                runs.append(await conductor.arun("q", worker=names[number % len(names)]))

        started = time.monotonic()
        async with conductor, anyio.create_task_group() as group:
            for _ in range(width):
                group.start_soon(ask)
        seconds = time.monotonic() - started
        await server.ledger.quiet()
        answered = sum(run.answer == play.ANSWER for run in runs)
        lost = sum(len(step.lost) for run in runs for step in run.steps)
        calls = len(server.ledger.entries)
        dead = len(server.ledger.of("dead"))

    broken = []
    if answered < 0.999 * requests:
        broken.append(f"only {answered} of {requests} were answered")
    # Nothing is tried again but what failed, so there is no further call without a lost one.
    beyond = calls - answered - lost
    if beyond > 0.01 * requests:
        broken.append(f"{beyond} calls more than there were failures to make up for")
    # Before it opens, calls that are under way already fail too; then there is a probe a second.
    most = 5 + width + int(seconds) + 1
    if dead > most:
        broken.append(f"the dead worker was called {dead} times instead of at most {most}")
    return Report(
        f"{answered} of {requests} answered ({answered / requests:.2%}) in {seconds:.1f} s; "
        f"{calls} calls, {lost} of them lost; the dead worker was called {dead} times",
        tuple(broken),
    )


async def breaker(width: int = 20, concurrency: int | None = None, open_s: float = 0.3) -> Report:
    """Let a worker die, stay dead for a probe, and recover; count its calls.

    A phase that takes longer than the worker is left alone may have a further probe.
    """
    async with serving() as server, HttpClient() as client:
        workers = [
            server.endpoint("dead", play.status(503), client=client),
            server.endpoint("good", play.fine, client=client),
        ]
        terms = Terms(
            retries=0, trip_after=5, open_s=open_s, fallback=("good",), concurrency=concurrency
        )
        conductor = Conductor(Pool(workers, terms={"dead": terms}))
        answers: list[str | None] = []

        async def ask() -> None:
            answers.append((await conductor.arun("q", worker="dead")).answer)

        async def phase(*, at_once: bool) -> tuple[int, int]:
            """How often the worker is called for ``width`` runs; and further probes that may be."""
            before, began = len(server.ledger.of("dead")), time.monotonic()
            async with anyio.create_task_group() as group:
                for _ in range(width):
                    if at_once:
                        group.start_soon(ask)
                    else:
                        await ask()
            calls = len(server.ledger.of("dead")) - before
            return calls, int((time.monotonic() - began) / open_s)

        async with conductor:
            opening, more = await phase(at_once=False)
            await anyio.sleep(open_s)
            probes, further = await phase(at_once=True)
            server.script("dead", play.fine)
            await anyio.sleep(open_s)
            recovered, _ = await phase(at_once=True)
            after, _ = await phase(at_once=True)

    broken = []
    if not 5 <= opening <= 5 + more:
        broken.append(f"{opening} calls until it was left alone")
    if not 1 <= probes <= 1 + further:
        broken.append(f"{probes} probes")
    # Those who wait their turn when the probe comes back go ahead; the others were sent away.
    if not 1 <= recovered <= (width if concurrency else 1):
        broken.append(f"{recovered} calls in the moment it was well again")
    if after != width:
        broken.append(f"{after} calls of {width} then")
    if answers.count(play.ANSWER) != 4 * width:
        broken.append(f"only {answers.count(play.ANSWER)} of {4 * width} were answered")
    return Report(
        f"of {width} runs each, {opening} called it until it was left alone, {probes} while it was "
        f"still dead, {recovered} in the moment it was well again, {after} then",
        tuple(broken),
    )


# -- hanging up -----------------------------------------------------------------------------------


async def cancellation(width: int = 40) -> Report:
    """Cancel a run of many silent and dripping calls; the server sees how fast they end."""
    plays = (play.hangs, play.hangs_midway, play.dripping(0.01), play.dripping_nothing(0.01))
    async with serving() as server, HttpClient() as client, Pulse() as pulse:
        names = [f"w{number}" for number in range(width)]
        workers = [
            server.endpoint(
                name, plays[at % len(plays)], streamed=at % 8 < len(plays), client=client
            )
            for at, name in enumerate(names)
        ]
        # Some wait for a retry, and some for their turn: they must not call any more.
        waiting = server.endpoint("waiting", play.status(500, Retry_After="30"), client=client)
        queued = server.endpoint("queued", play.hangs, client=client)
        pool = Pool(
            [*workers, waiting, queued],
            terms={"queued": Terms(concurrency=1)},
        )
        steps = [*names, "waiting", "queued", "queued", "queued"]
        plan = Plan.of([f"do {name}" for name in steps], steps, [[]] * len(steps))
        events: list[Event] = []
        conductor = Conductor(pool)
        async with conductor, anyio.create_task_group() as group:

            async def run() -> None:
                await conductor.arun("q", plan=plan, on_event=events.append)

            group.start_soon(run)
            with anyio.fail_after(30):
                await server.ledger.arrived(width + 2)
            await anyio.sleep(0.05)  # until those that drip are at it
            before_s, cancelled_s = pulse.stolen_s, time.monotonic()
            group.cancel_scope.cancel()
        returned_s = time.monotonic() - cancelled_s
        with anyio.move_on_after(5):
            await server.ledger.quiet()
        calls = len(server.ledger.entries)
        await anyio.sleep(HANG_UP_S)
        hung_up = [
            each.ended_s - cancelled_s for each in server.ledger.entries if each.end is End.HUNG_UP
        ]
        most_s = HANG_UP_S + pulse.stolen_s - before_s
        broken = []
        if server.ledger.count(End.OPEN):
            broken.append(f"{server.ledger.count(End.OPEN)} calls go on")
        if len(hung_up) != width + 1:
            broken.append(f"{len(hung_up)} hung up instead of {width + 1}")
        if hung_up and max(hung_up) > most_s:
            broken.append(f"the last hung up after {max(hung_up):.3f} s")
        if returned_s > most_s:
            broken.append(f"the run ended after {returned_s:.3f} s")
        if len(server.ledger.entries) != calls:
            broken.append("calls began afterwards")
        if server.ledger.usage() != Usage():
            broken.append(f"{server.ledger.usage()} were counted")
        last = events[-1]
        if not isinstance(last, RunFinished) or last.state is not RunState.CANCELLED:
            broken.append(f"the record ends with {last}")
    return Report(
        f"{len(hung_up)} calls: the run ended {returned_s * 1000:.0f} ms after it was cancelled, "
        f"the last connection {max(hung_up, default=0.0) * 1000:.0f} ms",
        tuple(broken),
    )


# -- the books ------------------------------------------------------------------------------------


async def accounting(calls: int = 10_000, width: int = 20) -> Report:
    """Compare the records of many runs with the ledger: calls, tokens and money of each worker."""
    plays: dict[str, tuple[Play, bool]] = {
        "streamed": (play.fine, True),
        "body": (play.fine, False),
        "at-once": (play.at_once, True),
        "split": (play.split_characters, False),
        "failing": (play.failing(0.3, seed=2), True),
        "broken": (play.failing(0.3, play.reset_midway, seed=3), True),
        "limited": (play.failing(0.2, play.error_midway(429), seed=4), True),
        "empty": (play.failing(0.3, play.nothing, seed=5), True),
        "wrong": (play.failing(0.5, play.wrong_usage(play.NEGATIVE), seed=6), False),
        "absurd": (play.failing(0.5, play.wrong_usage(play.ABSURD), seed=7), True),
    }
    chance = Random(8)
    async with serving() as server, HttpClient() as client:
        workers = [
            server.endpoint(name, how, streamed=streamed, client=client)
            for name, (how, streamed) in plays.items()
        ]
        written = 'subtasks = ["a", "b"]\nworkers = ["streamed", "empty"]\naccess = [[], [0]]\n'
        planner = server.endpoint("planner", play.failing(0.2, seed=9), client=client, text=written)
        price = Price(Decimal("0.15"), Decimal("0.60"), Decimal("0.075"))
        terms = Terms(retries=2, retry_base_s=0.001, trip_after=None, price=price)
        pool = Pool(
            workers,
            planner=planner,
            terms={
                "planner": terms,
                **{name: replace(terms, fallback=("streamed",)) for name in plays},
            },
        )
        conductor = Conductor(pool)
        runs: list[Run] = []

        async def work() -> None:
            while len(server.ledger.entries) < calls:
                if chance.random() < 0.2:
                    runs.append(await conductor.arun("how now"))
                    continue
                chosen = chance.choices(list(plays), k=5)
                access = [
                    [other for other in range(at) if chance.random() < 0.3] for at in range(5)
                ]
                subtasks = [f"step {at} of many" for at in range(5)]
                plan = Plan.of(subtasks, chosen, access)
                runs.append(await conductor.arun("how now", plan=plan))

        started = time.monotonic()
        async with conductor, anyio.create_task_group() as group:
            for _ in range(width):
                group.start_soon(work)
        seconds = time.monotonic() - started
        await server.ledger.quiet()

        broken = []
        kept = dict.fromkeys(plays, Account())
        for run in runs:
            for name, account in run.accounts.items():
                kept[name] += account
        kept["planner"] = sum((run.orchestration for run in runs), Account())
        for name, account in kept.items():
            entries = server.ledger.of(name)
            dollars = sum((price.cost(entry.usage) for entry in entries), Decimal(0))
            told = (len(entries), server.ledger.usage(name), dollars)
            if (account.calls, account.usage, account.dollars) != told:
                broken.append(f"{name}: the server has {told}, the records {account}")
        total = sum(kept.values(), Account())
    return Report(
        f"{len(runs)} runs, {total.calls:,} calls of {len(kept)} workers, {total.failed:,} of them "
        f"lost, {total.usage.input_tokens:,} + {total.usage.output_tokens:,} tokens, "
        f"{total.dollars} dollars in {seconds:.0f} s, all as in the server's ledger",
        tuple(broken),
    )


DRILLS: dict[str, Callable[[], Awaitable[Report]]] = {
    "availability": availability,
    "breaker": breaker,
    "cancellation": cancellation,
    "accounting": accounting,
}
