"""Kill runs and go on with them: is a finished call lost, or made again?

    python -m tests.crash.tool --kills 200 --seed 0

A child process plays the scenes, all at once, with a journal; its workers ask a server in this
process, which keeps books of every answer. The child kills itself (SIGKILL) at a seeded moment:
before the journal takes an event, or right after it has; or it is killed from here at a random
time. The next child goes on with what it finds in the journal, until all runs have ended. Then the
next pass begins with a new file. Exits with 1 if a promise was broken.
"""
# ruff: noqa: T201

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import anyio

from runtime import (
    Completion,
    Emit,
    Event,
    FailureKind,
    FunctionWorker,
    Journal,
    Message,
    NestedEvent,
    PlanDelta,
    PlanStarted,
    Record,
    RunState,
    RunSummary,
    StepDelta,
    StepStarted,
    ToolCall,
    Usage,
    Worker,
    WorkerError,
)

from .scenes import (
    BROKEN,
    FLAKY,
    SCENES,
    WITH_TOOLS,
    Scene,
    asks_for,
    call_id,
    essence,
    finished_calls,
    gave,
    reply,
    team_of,
)

ALL = (*SCENES, *WITH_TOOLS)
ROOT = Path(__file__).parents[2]
KINDS = ("before", "after", "random")
"""Where a process dies: before the journal has an event, after that, or at any time."""
_LEFT_OUT = (StepDelta, PlanDelta, StepStarted, PlanStarted)
_LATEST_S = 0.6  # a random kill falls between the start of the first call and this


# -- the server: books of what was answered -----------------------------------------------------


class Books:
    """How often each call was made, and answered."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.first = threading.Event()
        """Set by the first call since it was cleared."""

    def answer(self, model: str, messages: Sequence[Message]) -> dict[str, Any]:
        """Enter a call and say what it comes to."""
        self.first.set()
        with self.lock:
            call = call_id(messages)
            self.calls[call] += 1
            if model == BROKEN:
                return {"failure": FailureKind.REJECTED}
            if model == FLAKY and self.calls[call] == 1:
                return {"failure": FailureKind.OVERLOADED}
            self.answered[call] += 1
            asked = [asdict(each) for each in asks_for(model, messages)]
            return {"text": reply(model, messages), "calls": asked}


@contextmanager
def served(books: Books) -> Iterator[int]:
    """Answer calls on a port of this machine."""

    class Desk(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                asked = json.loads(line)
                messages = [Message(role, text) for role, text in asked["messages"]]
                answer = books.answer(asked["model"], messages)
                self.wfile.write(json.dumps(answer).encode() + b"\n")

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # the client has been killed

    with Server(("127.0.0.1", 0), Desk) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


# -- the child: plays the scenes, or goes on with them ------------------------------------------


def asks(port: int) -> Callable[[str], Worker]:
    """Make workers that ask the server."""

    def make(name: str) -> Worker:
        async def answer(messages: Sequence[Message]) -> Completion:
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                told = [(each.role, each.content) for each in messages]
                await stream.send(json.dumps({"model": name, "messages": told}).encode() + b"\n")
                line = b""
                while not line.endswith(b"\n"):
                    line += await stream.receive()
            said = json.loads(line)
            if "failure" in said:
                raise WorkerError(FailureKind(said["failure"]), "on purpose")
            calls = tuple(ToolCall(**each) for each in said["calls"])
            return Completion(said["text"], usage=Usage(10, 2), tool_calls=calls)

        return FunctionWorker(name, answer)

    return make


class Deadly(Journal):
    """A journal in whose surroundings the process dies.

    Args:
        path: The file.
        kind: ``before`` or ``after`` the event is kept; else never.
        count: Which of the events of this process, from 1.
    """

    def __init__(self, path: Path, kind: str, count: int) -> None:
        super().__init__(path)
        self._kind = kind
        self._left = count

    def before(self, emit: Emit) -> Emit:
        """As every journal, and then some."""
        return self._around(super().before(self._then(emit)))

    @contextmanager
    def resumed(
        self, run: str, emit: Emit, *, force: bool = False
    ) -> Iterator[tuple[Record, Emit]]:
        """As every journal, and then some."""
        with super().resumed(run, self._then(emit), force=force) as (record, writer):
            yield record, self._around(writer)

    def _around(self, writer: Emit) -> Emit:
        def emit(event: Event) -> None:
            self._count("before", event)
            writer(event)

        return emit

    def _then(self, emit: Emit) -> Emit:
        def then(event: Event) -> None:
            self._count("after", event)
            emit(event)

        return then

    def _count(self, kind: str, event: Event) -> None:
        while isinstance(event, NestedEvent):
            event = event.event
        if kind != self._kind or isinstance(event, _LEFT_OUT):
            return
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)


async def play(path: Path, port: int, number: int, kind: str, count: int) -> None:
    """Go on with what was stopped, begin what was not begun; write down what is heard of."""
    journal = Deadly(path, kind, count)

    def heard(event: Event) -> None:
        if calls := finished_calls([event]):
            with path.with_suffix(".heard").open("a") as file:
                file.write("\n".join(calls) + "\n")

    team = team_of(asks(port), journal)

    async def carry(scene: Scene, past: RunSummary | None) -> None:
        """Bring one run to its end, whatever tools it waits for: one result at a time."""
        if past is None:
            run = await scene.play(team, number, heard)
        elif past.state is RunState.RUNNING:
            run = await team.aresume(past.id, on_event=heard)
        else:
            run = journal.run(past.id)
        while run.state is RunState.SUSPENDED:
            call = run.open_calls[0]
            result = {call.id: gave(call)}
            run = await team.aresume(run.id, tool_results=result, on_event=heard)

    known = {each.query: each for each in journal.runs()}
    async with team, anyio.create_task_group() as group:
        for scene in ALL:
            group.start_soon(carry, scene, known.get(scene.query(number)))


# -- the driver ---------------------------------------------------------------------------------


@dataclass
class Verdict:
    """What was done, and what went wrong."""

    kills: Counter[str] = field(default_factory=Counter)
    passes: int = 0
    calls: int = 0
    in_flight: int = 0
    """Answers that a killed process had not on record: those calls are made again."""
    wrong: list[str] = field(default_factory=list)

    @property
    def killed(self) -> int:
        """All kills."""
        return sum(self.kills.values())


def drive(kills: int, seed: int, folder: Path, tell: Callable[[str], None]) -> Verdict:
    """Kill so often, in as many passes as that takes.

    Args:
        kills: How often.
        seed: Decides every moment.
        folder: For the journals.
        tell: Hears of the progress.
    """
    dice = random.Random(seed)
    verdict = Verdict()
    clean = Pass(0, folder)
    with served(clean.books) as port:
        clean.child(port, "never", 0).wait(timeout=120)
    verdict.wrong += clean.unfinished()
    expected = clean.essences()
    while verdict.killed < kills and len(verdict.wrong) < 10:
        verdict.passes += 1
        one = Pass(verdict.passes, folder)
        with served(one.books) as port:
            while verdict.killed < kills:
                kind = KINDS[dice.randrange(3)]
                if not one.killed_once(port, kind, dice, verdict):
                    break
                if verdict.killed % 20 == 0:
                    tell(f"{verdict.killed} of {kills} kills, {len(verdict.wrong)} wrong")
            else:
                one.child(port, "never", 0).wait(timeout=120)
        verdict.wrong += one.unfinished()
        verdict.wrong += one.compared(expected)
        verdict.calls += sum(one.books.calls.values())
    return verdict


class Pass:
    """All scenes once, in one journal."""

    def __init__(self, number: int, folder: Path) -> None:
        self.number = number
        self.path = folder / f"pass-{number}.db"
        self.books = Books()
        self.recorded: set[str] = set()
        self._answered: Counter[str] = Counter()
        """How often the calls on record had been answered when a process died."""

    def child(self, port: int, kind: str, count: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.crash.tool", "--child", str(self.path)]
        command += [str(port), str(self.number), kind, str(count)]
        return subprocess.Popen(command, cwd=ROOT)

    def killed_once(self, port: int, kind: str, dice: random.Random, verdict: Verdict) -> bool:
        """Let a child play until it is killed; False if it came to the end instead."""
        count, delay = dice.randint(1, 25), dice.uniform(0, _LATEST_S)
        self.books.first.clear()
        process = self.child(port, kind, count)
        if kind == "random":
            self.books.first.wait(20)
            try:
                process.wait(delay)
            except subprocess.TimeoutExpired:
                process.kill()
        code = process.wait(timeout=120)
        if code == 0:
            return False
        if code != -signal.SIGKILL:
            verdict.wrong.append(f"pass {self.number}: the process ended with {code}")
            return False
        verdict.kills[kind] += 1
        verdict.wrong += self.examined(verdict)
        return True

    def examined(self, verdict: Verdict) -> Iterator[str]:
        """What a killed process left."""
        where = f"pass {self.number}, kill {verdict.killed}"
        with Journal(self.path) as journal:
            yield from (f"{where}: damaged file: {each}" for each in journal.check())
            recorded = self._on_record(journal)
        for call in self.recorded - recorded:
            yield f"{where}: the result of call {call} was on record and is lost"
        with self.books.lock:
            answered = Counter(self.books.answered)
        for call in self.recorded:
            if answered[call] > self._answered[call]:
                yield f"{where}: call {call} was on record and was made again"
        for call in recorded - answered.keys():
            yield f"{where}: call {call} is on record and was never answered"
        for call in self._heard() - recorded:
            yield f"{where}: the end of call {call} was told, but is not on record"
        verdict.in_flight += len(answered.keys() - recorded)
        self.recorded |= recorded
        self._answered = answered

    def _heard(self) -> set[str]:
        """The calls of whose end a listener was told."""
        told = self.path.with_suffix(".heard")
        return set(told.read_text().split()) if told.exists() else set()

    def _on_record(self, journal: Journal) -> set[str]:
        runs = journal.runs()
        return {call for run in runs for call in finished_calls(journal.events(run.id))}

    def unfinished(self) -> Iterator[str]:
        """Runs that have not come to their end."""
        with Journal(self.path) as journal:
            ended = {run.query: run.state for run in journal.runs()}
        for scene in ALL:
            state = ended.get(scene.query(self.number))
            if state is not scene.state:
                yield f"pass {self.number}: {scene.name} ended as {state}, not {scene.state}"

    def compared(self, expected: dict[str, Any]) -> Iterator[str]:
        """Records that differ from those of a process that was left alone."""
        for call in self.recorded:
            if self.books.answered[call] > self._answered[call]:
                yield f"pass {self.number}: call {call} was on record and was made again"
        for name, found in self.essences().items():
            if found != expected.get(name):
                yield f"pass {self.number}: {name} came to another record than undisturbed"

    def essences(self) -> dict[str, Any]:
        """By scene, what must not depend on having been killed."""
        names = {scene.query(self.number): scene.name for scene in ALL}
        with Journal(self.path) as journal:
            runs = [journal.run(each.id) for each in journal.runs()]
        return {names[run.query]: _same_for_all(essence(run), self.number) for run in runs}


def _same_for_all(value: Any, number: int) -> Any:
    """Leave out what tells the pass: its number, and the digests that depend on it."""
    match value:
        case dict():
            return {name: _same_for_all(each, number) for name, each in value.items()}
        case list():
            return [_same_for_all(each, number) for each in value]
        case str():
            return _DIGEST.sub("#", value.replace(f" no. {number}:", " no. N:"))
        case _:
            return value


_DIGEST = re.compile(r"\b[0-9a-f]{8,16}\b")


def main() -> None:
    """Drive, and say what came of it."""
    if sys.argv[1:2] == ["--child"]:
        path, port, number, kind, count = sys.argv[2:]
        anyio.run(play, Path(path), int(port), int(number), kind, int(count))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        verdict = drive(given.kills, given.seed, Path(folder), lambda line: print(line, flush=True))
    kinds = ", ".join(f"{verdict.kills[kind]} {kind}" for kind in KINDS)
    print(f"\n{verdict.killed} kills (seed {given.seed}): {kinds}")
    print(f"{verdict.passes} passes of {len(ALL)} runs, {verdict.calls:,} calls")
    print(f"{verdict.in_flight} answers were not on record yet when the process died")
    print(f"{len(verdict.wrong)} broken promises; {time.monotonic() - began:.0f} s")
    for each in verdict.wrong:
        print(f"  {each}")
    if verdict.wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
