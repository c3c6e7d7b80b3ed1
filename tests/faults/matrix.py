"""The fault matrix: what a run comes to when a worker fails, for every fault.

Run ``python -m tests.faults.matrix`` for all of it, under both event loops: each fault x {streamed
reply, one JSON} x {single pick, step of a plan, planner} x {fallback, none}; those that only a time
limit ends once more with nothing but the run's deadline. A line per cell says what came of it; the
exit code is 1 if any broke a promise:

- it ends in an answer or in the failure that the fault has, within the deadline + 250 ms;
- an answer is whole, and never empty; its pieces add up to it;
- with a fallback there is an answer;
- no more calls are made than the terms allow, and no connection stays open;
- the tokens of the record are those that the server reported.

``python -m tests.faults.matrix availability`` (or ``cancellation``, ``accounting``) runs a drill of
``tests/faults/drills.py`` instead; ``--backend trio`` chooses an event loop.
"""
# ruff: noqa: T201

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from itertools import count, product

import anyio

from conductor import Conductor
from grammar import Plan
from runtime import (
    Budget,
    CallRetried,
    Endpoint,
    Event,
    FailureKind,
    HttpClient,
    PlanAttempt,
    Pool,
    Run,
    RunState,
    StepDelta,
    StepResult,
    StepState,
    Terms,
    Usage,
)
from tests.faults import drills
from tests.faults.pulse import Pulse
from tests.faults.server import ANSWER, End, Fault, FaultServer, Ledger, faults, fine, serving

QUERY = "What does the fox say?"
BACKUP = "The fallback says: Grüße 🦊"
WRITTEN = f"""\
subtasks = ["Ask the fox. {ANSWER}"]
workers = ["good"]
access = [[]]
"""
"""What a planner writes."""
PLAN = Plan.of(["draft", "check", "judge"], ["good", "faulty", "good"], [[], [], [0, 1]])
LATE_S = 0.25


class Where(StrEnum):
    """What the faulty worker is asked for."""

    PICK = "pick"
    """The whole query."""
    PLAN = "plan"
    """A step in the middle of a plan; the other steps have a good worker."""
    PLANNER = "planner"
    """The plan."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Time limits of a matrix, in seconds."""

    deadline_s: float = 15.0
    text_s: float = 1.5
    """For the first text and between pieces."""
    call_s: float = 2.0
    connect_s: float = 1.5
    alone_s: float = 1.0
    """The deadline where there is no other limit."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One case."""

    fault: Fault
    streamed: bool
    where: Where
    fallback: bool
    alone: bool = False
    """Whether nothing but the run's deadline limits the call."""

    def __str__(self) -> str:
        mode = "stream" if self.streamed else "body"
        beside = "deadline only" if self.alone else "fallback" if self.fallback else "none"
        return f"{self.fault.name:22}{mode:8}{self.where:9}{beside:14}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a cell."""

    cell: Cell
    told: str
    """Who answered, or the kind of failure."""
    seconds: float
    calls: int
    """Calls of the faulty worker."""
    broken: tuple[str, ...]
    """Promises that were broken."""

    def __str__(self) -> str:
        verdict = "; ".join(self.broken) or "ok"
        return f"{self.cell}{self.told:14}{self.seconds:6.2f} s {self.calls:3}  {verdict}"


def cells(every: Sequence[Fault] = faults(stall_s=60.0)) -> Iterator[Cell]:
    """All cases."""
    for fault, streamed, where in product(every, (True, False), Where):
        if fault.play is None and not streamed:
            continue  # nobody is there to reply in one way or another
        for fallback in (False, True):
            yield Cell(fault, streamed, where, fallback)
        if fault.by_limit:
            yield Cell(fault, streamed, where, False, alone=True)


async def measure(cases: Sequence[Cell], limits: Limits = Limits()) -> list[Outcome]:
    """Run cases: light ones side by side, heavy ones one by one.

    A case that goes wrong while the machine keeps this process from running is tried again.
    """
    outcomes: dict[Cell, Outcome] = {}
    numbers = count()
    async with serving() as server, HttpClient() as client, Pulse() as pulse:
        # One call ahead, lest the first cases pay for imports with their deadlines.
        async with server.endpoint("first", fine, client=client) as worker:
            await worker.check()

        async def case(cell: Cell, turn: anyio.CapacityLimiter) -> None:
            async with turn:
                for _ in range(3):
                    stolen_s = pulse.stolen_s
                    outcomes[cell] = await _case(server, client, cell, limits, next(numbers))
                    if not outcomes[cell].broken or pulse.stolen_s - stolen_s < 0.05:
                        break

        for heavy, width in ((False, 40), (True, 1)):
            turn = anyio.CapacityLimiter(width)
            async with anyio.create_task_group() as group:
                for cell in cases:
                    if cell.fault.heavy is heavy:
                        group.start_soon(case, cell, turn)
    return [outcomes[cell] for cell in cases]


async def _case(
    server: FaultServer, client: HttpClient, cell: Cell, limits: Limits, number: int
) -> Outcome:
    models = {name: f"{name}-{number}" for name in ("faulty", "backup", "good")}
    planning = cell.where is Where.PLANNER
    good = WRITTEN if planning else ANSWER
    server.script(models["good"], fine, text=ANSWER)
    # The fallback replies in the other way, so that the two must not be told apart by what is next.
    backup = WRITTEN if planning else BACKUP
    server.script(models["backup"], fine, streamed=not cell.streamed, text=backup)
    if cell.fault.play is not None:
        server.script(models["faulty"], cell.fault.play, streamed=cell.streamed, text=good)
    within = {"first_text_s": limits.text_s, "silence_s": limits.text_s, "call_s": limits.call_s}
    terms = Terms(
        retries=1,
        retry_base_s=0.01,
        fallback=("backup",) if cell.fallback else (),
        **({} if cell.alone else within),
    )
    deadline_s = limits.alone_s if cell.alone else limits.deadline_s
    events: list[Event] = []
    with ExitStack() as stack:
        url = stack.enter_context(cell.fault.at()) if cell.fault.at else server.url
        urls = {"faulty": url, "backup": server.url, "good": server.url}
        workers = [
            Endpoint(
                name,
                url=urls[name],
                model=models[name],
                client=client,
                connect_s=limits.connect_s,
            )
            for name in models
        ]
        pool = Pool(workers, planner=workers[0], terms={"faulty": terms})
        started = time.monotonic()
        run = await Conductor(pool).arun(
            QUERY,
            worker="faulty" if cell.where is Where.PICK else None,
            plan=PLAN if cell.where is Where.PLAN else None,
            budget=Budget(seconds=deadline_s),
            on_event=events.append,
        )
        with anyio.move_on_after(LATE_S):
            await server.ledger.quiet(*models.values())
    return _judged(cell, run, events, server.ledger, models, started, deadline_s)


def _judged(
    cell: Cell,
    run: Run,
    events: Sequence[Event],
    ledger: Ledger,
    models: Mapping[str, str],
    started: float,
    deadline_s: float,
) -> Outcome:
    called = _called(cell, run)
    if called is None:
        return Outcome(cell, str(run.state), run.seconds, 0, ("the record lacks the call",))
    answered = run.failure is None
    entries = ledger.of(models["faulty"])
    calls = sum(each.worker == "faulty" for each in called.lost)
    calls += answered and called.worker == "faulty"
    broken = [
        *_wrong_end(cell, run, called, deadline_s),
        *_wrong_text(cell, run, events),
        *_wrong_books(cell, run, ledger, models),
    ]
    if run.seconds > deadline_s + LATE_S:
        broken.append(f"took {run.seconds - deadline_s:.2f} s more than the deadline")
    late = [each.ended_s - started - deadline_s for each in entries]
    if late and max(late) > LATE_S:
        broken.append(f"held a connection {max(late):.2f} s longer than the deadline")
    most = 2 if cell.fault.outcomes and not cell.alone else 1
    if calls > most or (cell.fault.play is not None and calls != len(entries)):
        broken.append(f"{calls} calls, {len(entries)} requests, at most {most}")
    told = f"by {called.worker}" if run.failure is None else str(run.failure.kind)
    return Outcome(cell, told, run.seconds, calls, tuple(broken))


def _called(cell: Cell, run: Run) -> PlanAttempt | StepResult | None:
    """What the faulty worker was called for."""
    match cell.where:
        case Where.PLANNER:
            return run.planning[-1] if run.planning else None
        case Where.PICK:
            return run.steps[0]
        case Where.PLAN:
            return run.steps[1]


def _wrong_end(
    cell: Cell, run: Run, called: PlanAttempt | StepResult, deadline_s: float
) -> Iterator[str]:
    fault = cell.fault
    kinds = (FailureKind.DEADLINE,) if cell.alone else fault.outcomes
    good = not cell.alone and (cell.fallback or not fault.outcomes)
    if (run.state is RunState.DONE) is not good:
        yield f"{run.state} instead of {'done' if good else 'failed'}"
    if (run.state is RunState.DONE) is not bool(run.answer and run.answer.strip()):
        yield f"{run.state} with the answer {run.answer!r}"
    if run.failure is not None and run.failure.kind not in kinds:
        yield f"failed as {run.failure.kind}: {run.failure.message}"
    if run.failure is not None and not run.failure.message.isprintable():
        yield f"tells {run.failure.message!r}"
    for attempt in called.lost:
        if attempt.failure.kind not in kinds:
            yield f"lost a call as {attempt.failure.kind}: {attempt.failure.message}"
    if good and called.worker != ("backup" if fault.outcomes else "faulty"):
        yield f"answered by {called.worker}"
    if cell.where is Where.PLAN:
        states = [step.state for step in run.steps]
        done, failed, skipped = StepState.DONE, StepState.FAILED, StepState.SKIPPED
        if states != ([done] * 3 if good else [done, failed, skipped]):
            yield f"steps {', '.join(states)}"


def _wrong_text(cell: Cell, run: Run, events: Sequence[Event]) -> Iterator[str]:
    pieces: defaultdict[int, list[str]] = defaultdict(list)
    for event in events:
        match event:
            case StepDelta():
                pieces[event.index].append(event.text)
            case CallRetried(index=int(index)):
                pieces[index].clear()
    for step in run.steps:
        if step.state is StepState.DONE:
            expected = BACKUP if step.worker == "backup" else ANSWER
            if step.text != expected:
                yield f"step {step.index} says {step.text[:40]!r}"
            if "".join(pieces[step.index]) != step.text:
                yield f"step {step.index} told {''.join(pieces[step.index])[:40]!r} piece by piece"


def _wrong_books(cell: Cell, run: Run, ledger: Ledger, models: Mapping[str, str]) -> Iterator[str]:
    told = {name: ledger.usage(model) for name, model in models.items()}
    kept = {name: account.usage for name, account in run.accounts.items()}
    if cell.where is Where.PLANNER:
        told["planning"] = told.pop("faulty") + told.pop("backup")
        kept["planning"] = run.orchestration.usage
    for name, usage in told.items():
        if kept.get(name, Usage()) != usage:
            yield f"{name} reported {usage}, the record has {kept.get(name)}"
    if not cell.fallback and ledger.of(models["backup"]):
        yield "the fallback was called unasked"
    for model in models.values():
        if open_ := ledger.count(End.OPEN, model):
            yield f"{open_} connections stay open"


def _report(backend: str, outcomes: Sequence[Outcome]) -> bool:
    for outcome in outcomes:
        print(outcome)
    bad = [outcome for outcome in outcomes if outcome.broken]
    longest = max(outcome.seconds for outcome in outcomes)
    print(f"{backend}: {len(outcomes)} cases, {len(bad)} wrong; the longest took {longest:.2f} s\n")
    return not bad


def asked_for(words: Sequence[str]) -> argparse.Namespace:
    """Read a command line."""
    parser = argparse.ArgumentParser(description="What runs come to when workers fail.")
    parser.add_argument("what", nargs="?", choices=["matrix", *drills.DRILLS], default="matrix")
    parser.add_argument("--backend", choices=["asyncio", "trio"], help="both if left out")
    return parser.parse_args(words)


def main() -> None:
    """Run what the command line asks for; ends the process."""
    asked = asked_for(sys.argv[1:])
    right = True
    for backend in [asked.backend] if asked.backend else ["asyncio", "trio"]:
        if asked.what == "matrix":
            right &= _report(backend, anyio.run(measure, list(cells()), backend=backend))
        else:
            report = anyio.run(drills.DRILLS[asked.what], backend=backend)
            print(f"{backend}: {report}")
            right &= not report.broken
    sys.exit(not right)


if __name__ == "__main__":
    main()
