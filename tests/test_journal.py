"""Journal and CallCache: what is kept, when, for whom; what a resumed run calls; bad disks."""
# ruff: noqa: ASYNC240 - files are what this is about, and nobody else waits for the loop

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conductor import Conductor
from grammar import Plan, chain
from runtime import (
    Attempt,
    Budget,
    Call,
    CallCache,
    CallRetried,
    Completion,
    ConductorWorker,
    Event,
    FailureKind,
    FinishReason,
    FunctionWorker,
    Journal,
    JournalError,
    Message,
    NestedEvent,
    PlanDelta,
    PlanParsed,
    PlanSource,
    PlanStarted,
    Pool,
    PoolError,
    RoundStarted,
    Run,
    RunFinished,
    RunResumed,
    RunStarted,
    RunState,
    Sampling,
    StepDelta,
    StepFinished,
    StepStarted,
    StepState,
    Terms,
    Tool,
    Usage,
    Worker,
    WorkerError,
    fold,
    no_listener,
    run_plan,
)
from tests.crash.scenes import (
    BROKEN,
    FLAKY,
    SCENES,
    Scene,
    call_id,
    essence,
    finished_calls,
    reply,
    team_of,
)
from tests.faults import server as play
from tests.faults.server import serving

pytestmark = pytest.mark.anyio

LEFT_OUT = (StepDelta, PlanDelta, StepStarted, PlanStarted)
TWO = chain(["draft", "check"], ["a", "b"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with Journal(path) as journal:
        yield journal


class Ants:
    """The workers of the scenes, in this process; and how often each call was made."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()

    def make(self, name: str) -> Worker:
        async def answer(messages: Sequence[Message]) -> Completion:
            call = call_id(messages)
            self.calls[call] += 1
            if name == BROKEN:
                raise WorkerError(FailureKind.REJECTED, "broken on purpose")
            if name == FLAKY and self.calls[call] == 1:
                raise WorkerError(FailureKind.OVERLOADED, "flaky on purpose")
            self.answered[call] += 1
            return Completion(reply(name, messages), usage=Usage(10, 2), model=f"{name}-1")

        return FunctionWorker(name, answer)


class Killed(Exception):
    """Stands for the death of the process: nothing reaches the journal after it."""


def dies_after(events: int) -> Callable[[Event], None]:
    """Hear of so many kept events, and of no more."""
    heard = 0

    def emit(event: Event) -> None:
        nonlocal heard
        heard += is_kept(event)
        if heard == events and is_kept(event):
            raise Killed

    return emit


def is_kept(event: Event) -> bool:
    while isinstance(event, NestedEvent):
        event = event.event
    return not isinstance(event, LEFT_OUT)


def say(text: str = "said") -> Callable[[Sequence[Message]], Any]:
    async def answer(messages: Sequence[Message]) -> Completion:
        return Completion(text, usage=Usage(3, 1))

    return answer


def pool_of(*names: str, terms: Terms = Terms(retries=0)) -> Pool:
    return Pool([FunctionWorker(name, say()) for name in names], terms=terms)


def sql(path: Path, statement: str, *values: Any) -> list[Any]:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        return connection.execute(statement, values).fetchall()
    finally:
        connection.close()


def dead_process() -> int:
    """The number of a process that was."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        return process.pid


# -- what is kept ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
async def test_the_journal_has_the_run_that_was_returned(scene: Scene, journal: Journal) -> None:
    team = team_of(Ants().make, journal)

    run = await scene.play(team, 1, no_listener)

    assert run.state is scene.state
    assert journal.run(run.id) == run
    assert journal.check() == []


class Dice:
    """Workers that answer, fail, fail at first or break off, at random."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    async def __call__(self, messages: Sequence[Message]) -> Completion:
        kind = self._random.choice([None, None, None, None, *FailureKind])
        if kind is not None:
            raise WorkerError(kind, f"{kind} at random", retry_after_s=0.0)
        text = self._random.choice(["yes", "ünï🦊", "a\x00b", "\ud800 half", "line\nline"])
        usage = self._random.choice([None, Usage(5, 7, 2)])
        reason = self._random.choice(list(FinishReason))
        return Completion(text, reason, usage, model=self._random.choice(["", "m-1", "\udfff"]))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    size = draw(st.integers(1, 6))
    access = [sorted(draw(st.sets(st.integers(0, at - 1)))) if at else [] for at in range(size)]
    workers = draw(st.lists(st.sampled_from(["a", "b", "self"]), min_size=size, max_size=size))
    return Plan.of([f"do {at}" for at in range(size)], workers, access)


@settings(max_examples=60)
@given(plans(), st.integers(0, 10**6), st.sampled_from([1, 3]), st.sampled_from([None, 0, 4, 9]))
def test_whatever_happens_the_journal_has_the_run(
    plan: Plan, seed: int, rounds: int, calls: int | None
) -> None:
    """Random plans, workers that fail at random, retries, fallbacks, rounds, nested runs."""
    dice = Dice(seed)
    texts = random.Random(seed)

    async def write(messages: Sequence[Message]) -> str:
        good = 'subtasks = ["x", "y"]\nworkers = [1, 0]\naccess = [[], [0]]'
        keep = "subtasks = []\nworkers = []\naccess = []"
        return texts.choice([good, good, keep, "no plan \ud83d"])

    workers = [FunctionWorker("a", dice), FunctionWorker("b", dice), ConductorWorker("self")]
    terms = Terms(retries=1, retry_base_s=1e-6, trip_after=3, fallback=("b",))
    pool = Pool(
        workers, planner=FunctionWorker("scribe", write), terms={"a": terms}, source="\udc80"
    )

    with TemporaryJournal() as journal:
        team, heard = Conductor(pool, journal=journal), list[Event]()

        async def ask() -> Run:
            budget = Budget(calls=calls)
            return await team.arun(
                "why \ud800?", plan=plan, rounds=rounds, budget=budget, on_event=heard.append
            )

        run = anyio.run(ask)

        assert journal.run(run.id) == run == fold(heard)
        assert journal.events(run.id) == [event for event in heard if is_kept(event)]
        [summary] = journal.runs()
        assert (summary.state, summary.answer, summary.seconds) == (
            run.state,
            run.answer,
            run.seconds,
        )
        assert (summary.dollars, summary.workers) == (run.dollars, tuple(run.accounts))


class TemporaryJournal(Journal):
    """In a folder of its own, for tests that make many."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory()
        super().__init__(Path(self._folder.name) / "runs.db")

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__(*exc_info)
        self._folder.cleanup()


async def test_an_event_is_on_disk_before_anybody_hears_of_it(journal: Journal) -> None:
    """A second connection finds it there, as the last of its run; pieces and starts never. Only a
    plan that is there from the beginning is kept with it."""
    with Journal(journal.path) as other:
        run = ""

        def look(event: Event) -> None:
            nonlocal run
            if isinstance(event, RunStarted):
                run = event.run
            events = other.events(run)
            if isinstance(event, RunStarted) and event.plan is not None:
                parsed = events.pop()
                assert isinstance(parsed, PlanParsed)
            assert (events[-1] == event) is is_kept(event)

        for number, scene in enumerate(SCENES):
            await scene.play(team_of(Ants().make, journal), number, look)


async def test_a_worker_is_called_when_all_that_it_reads_is_on_disk(journal: Journal) -> None:
    plan = Plan.of(["a", "b", "c", "d"], ["w"] * 4, [[], [0], [0], [1, 2]])
    seen: list[set[int]] = []

    async def look(messages: Sequence[Message]) -> str:
        with Journal(journal.path) as other:
            events = other.events("last")
        assert any(isinstance(event, PlanParsed) for event in events)
        seen.append({each.result.index for each in events if isinstance(each, StepFinished)})
        return "said"

    pool = Pool([FunctionWorker("w", look)])
    await run_plan(plan, "q", pool, emit=journal.before(no_listener))

    assert [seen[0], {0} <= seen[1], {0} <= seen[2], seen[3]] == [set(), True, True, {0, 1, 2}]


def test_a_writer_keeps_one_run_from_its_beginning(journal: Journal) -> None:
    writer = journal.before(no_listener)
    with pytest.raises(JournalError, match="not taken from this journal"):
        writer(RunResumed(1.0))
    started = RunStarted(0.0, "r", "q", ("a",), "2026-01-01T00:00:00.000+00:00")
    writer(started)
    with pytest.raises(ValueError, match="out of order"):
        writer(replace(started, run="s"))

    assert journal.events("r") == [started]
    assert [each.id for each in journal.runs()] == ["r"]


async def test_no_run_grows_into_the_next(journal: Journal) -> None:
    """Ids of events are the run's number and its own: the last one that fits is the last."""
    writer = journal.before(no_listener)
    writer(RunStarted(0.0, "r", "q", ("a",), "2026-01-01T00:00:00.000+00:00"))
    writer._next += 2**20 - 2  # type: ignore[attr-defined]  # a million events take too long
    writer(RoundStarted(1.0, 1))

    with pytest.raises(JournalError, match=r"run r has 1,048,576 events.*budget"):
        writer(RoundStarted(2.0, 2))


def test_a_large_event_does_not_keep_its_side_file_large(tmp_path: Path) -> None:
    """SQLite would leave the file as long as it ever was, until the process ends."""
    side = tmp_path / "runs.db-wal"
    with Journal(tmp_path / "runs.db") as journal:
        for run, query in (("r", "x" * 2**24), ("s", "q"), ("t", "q")):
            writer = journal.before(no_listener)
            writer(RunStarted(0.0, run, query, ("a",), "2026-01-01T00:00:00.000+00:00"))
        after = side.stat().st_size

    assert after <= 2**22


def test_file_and_side_files_are_their_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path = tmp_path / "new" / "runs.db"
        with Journal(path) as journal:
            journal.runs()
            modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    finally:
        os.umask(before)

    assert modes == {"runs.db": 0o600, "runs.db-wal": 0o600, "runs.db-shm": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    path.chmod(0o644)
    with Journal(path) as journal:
        journal.runs()
        modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    assert set(modes.values()) == {0o600}


async def test_full_synchronous_waits_for_the_disk(path: Path) -> None:
    for level, expected in (("normal", 1), ("full", 2)):
        with Journal(path, synchronous=level) as journal:  # type: ignore[arg-type]
            await run_plan(TWO, "q", pool_of("a", "b"), emit=journal.before(no_listener))
            with journal._file.connected() as connection:
                assert connection.execute("PRAGMA synchronous").fetchone() == (expected,)
                assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


# -- which runs there are ------------------------------------------------------------------------


async def test_runs_are_listed_and_chosen_from(journal: Journal) -> None:
    pool = pool_of("a", "b")
    ids = []
    for plan, query in ((TWO, "Straße_1"), (chain(["x"], ["a"]), "100 % sure"), (TWO, "plain")):
        run = await run_plan(plan, query, pool, emit=journal.before(no_listener))
        ids.append(run.id)
    with pytest.raises(Killed):
        await run_plan(TWO, "cut", pool, emit=journal.before(dies_after(3)))
    first, second, third = ids

    def found(**chosen: Any) -> list[str]:
        return [each.id for each in journal.runs(**chosen)]

    cut = journal.runs()[0]
    assert found() == [cut.id, third, second, first]
    assert found(most=2) == [cut.id, third]
    assert found(state=RunState.DONE, most=1) == [third]
    assert found(state=RunState.RUNNING) == [cut.id]
    assert found(worker="b") == [third, first]
    assert found(worker="b", most=1) == [third]
    assert found(worker="a") == found()
    assert found(worker="") == found()
    assert found(contains="STRASSE_") == [first]
    assert found(contains="%") == [second]
    assert found(contains="said") == [third, second, first]
    assert found(contains="'; DROP TABLE run; --") == []
    assert found(since=journal.runs()[1].started) in ([cut.id, third], found(), [*found()[:3]])
    assert found(since="2999") == []
    summary = journal.runs(contains="plain")[0]
    assert replace(summary, id="", started="", seconds=0.0) == replace(
        summary,
        id="",
        started="",
        seconds=0.0,
        state=RunState.DONE,
        query="plain",
        steps=2,
        workers=("a", "b"),
        tokens=8,
        dollars=Decimal(0),
        answer="said",
        failure=None,
        parent="",
        alive=False,
    )
    assert (cut.steps, cut.workers, cut.tokens, cut.alive) == (2, ("a",), 4, False)


def test_a_run_is_found_by_the_beginning_of_its_id(journal: Journal) -> None:
    with pytest.raises(JournalError, match="no run at all; `conductor runs`"):
        journal.run("last")
    for run in ("abc1", "abc2", "abc", "b%_"):
        writer = journal.before(no_listener)
        writer(RunStarted(0.0, run, "q", ("a",), "2026-01-01T00:00:00.000+00:00"))

    assert [journal.run(name).id for name in ("abc", "abc1", "b", "last")] == [
        "abc",
        "abc1",
        "b%_",
        "b%_",
    ]
    for name, told in (
        ("ab", "several runs begin with ab"),
        ("zz", "no run zz"),
        ("%", "no run %"),
        ("", "no run is named"),
    ):
        with pytest.raises(JournalError, match=f"{told}; `conductor runs` lists them"):
            journal.run(name)


async def test_one_runs_events_are_apart_from_those_of_others(journal: Journal) -> None:
    """A hundred runs at once through one Journal, each of them whole."""
    runs: list[Run] = []

    async def one(number: int) -> None:
        pool = pool_of("a", "b")
        runs.append(await run_plan(TWO, str(number), pool, emit=journal.before(no_listener)))

    async with anyio.create_task_group() as group:
        for number in range(100):
            group.start_soon(one, number)

    assert {run.query for run in runs} == {str(number) for number in range(100)}
    assert [journal.run(run.id) for run in runs] == runs


def test_threads_and_journals_share_a_new_file(path: Path) -> None:
    """Six threads with a Journal each, and two that share one, begin with a file that is not there.

    What they write is all there, in order, and the file is sound.
    """
    together = threading.Barrier(8)
    shared = Journal(path)
    runs: list[Run] = []
    failed: list[BaseException] = []

    def work(number: int) -> None:
        journal = shared if number < 2 else Journal(path)
        together.wait()

        async def several() -> None:
            for turn in range(10):
                pool = pool_of("a", "b")
                emit = journal.before(no_listener)
                runs.append(await run_plan(TWO, f"{number}.{turn}", pool, emit=emit))

        try:
            anyio.run(several)
        except BaseException as error:
            failed.append(error)
        if journal is not shared:
            journal.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not failed
    assert len(shared.runs()) == 80
    assert all(shared.run(run.id) == run for run in runs)
    assert shared.check() == []
    shared.close()


async def test_a_writer_waits_for_another_one(journal: Journal) -> None:
    journal.runs()
    other = sqlite3.connect(journal.path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.05, other.execute, ("COMMIT",))
    release.start()

    run = await run_plan(TWO, "q", pool_of("a", "b"), emit=journal.before(no_listener))

    release.join()
    other.close()
    assert journal.run(run.id) == run


OTHER = """
import sys
from runtime import Journal
with Journal(sys.argv[1]) as journal:
    print(len(journal.runs()))
"""


async def test_another_process_that_leaves_takes_nothing_along(path: Path) -> None:
    """Journals of one file in one process: the second does not give up the locks of the first.

    Else a process that opens and closes the file would take itself for the last one, and remove
    the side file that the first still writes to.
    """

    def other() -> str:
        command = [sys.executable, "-c", OTHER, str(path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout

    with Journal(path) as first:
        await run_plan(TWO, "1", pool_of("a", "b"), emit=first.before(no_listener))
        with Journal(path) as second, CallCache(path) as cache:
            assert len(second.runs()) == 1
            assert cache.get(FunctionWorker("a", say()), Call(())) is None
            path.chmod(0o640)
            with Journal(path) as third:
                third.runs()
            assert other() == "1\n"
            await run_plan(TWO, "2", pool_of("a", "b"), emit=first.before(no_listener))
            assert other() == "2\n"
        assert other() == "2\n"


async def test_nobody_stands_in_once_a_listener_has_failed(journal: Journal) -> None:
    """What the journal could not keep is no reason for a call, be it of a fallback."""
    called: list[str] = []

    def worker(name: str) -> FunctionWorker:
        async def fail(messages: Sequence[Message]) -> str:
            called.append(name)
            raise WorkerError(FailureKind.OVERLOADED, "no")

        return FunctionWorker(name, fail)

    pool = Pool([worker("a"), worker("b")], terms=Terms(retries=0))
    with pytest.raises(Killed):
        await run_plan(
            chain(["x"], ["a"]),
            "q",
            pool,
            fallback=["b"],
            emit=journal.before(dies_after(3)),
        )

    assert [event.kind for event in journal.events("last")][-1] == "call_retried"
    assert called == ["a"]


# -- bad files -----------------------------------------------------------------------------------


async def refused(path: Path, told: str) -> None:
    """Nobody is called if the run can't be kept, and reading is refused in the same words."""
    called: list[str] = []

    async def never(messages: Sequence[Message]) -> str:
        called.append("called")
        return "said"

    pool = Pool([FunctionWorker("a", never), FunctionWorker("b", never)])
    with Journal(path) as journal:
        with pytest.raises(JournalError, match=told):
            await run_plan(TWO, "q", pool, emit=journal.before(no_listener))
        with pytest.raises(JournalError, match=told):
            journal.runs()
    with pytest.raises(JournalError, match=told), CallCache(path) as cache:
        cache.get(FunctionWorker("a", never), Call(()))
    assert called == []


async def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_text("Dear diary, today I wrote a plan.\n" * 50)
    path.chmod(0o644)
    before = path.read_bytes()

    await refused(path, "is not a database; it is no journal; name another file")

    assert path.read_bytes() == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [each.name for each in path.parent.iterdir()] == [path.name]


async def test_a_database_of_another_program_is_refused_and_left_alone(path: Path) -> None:
    sql(path, "CREATE TABLE bookmarks (address TEXT)")
    path.chmod(0o644)
    before = path.read_bytes()

    await refused(path, "a database of another program, no journal; name another file")

    assert path.read_bytes() == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


async def test_a_newer_format_is_refused_and_left_alone(path: Path) -> None:
    with Journal(path) as journal:
        journal.runs()
    sql(path, "PRAGMA user_version = 2")
    before = path.read_bytes()

    await refused(path, r"newer version of conductor \(format 2\); upgrade, or name another file")

    assert path.read_bytes() == before


async def test_a_damaged_file_is_told(path: Path) -> None:
    with Journal(path) as journal:
        for _ in range(20):
            await run_plan(TWO, "q" * 500, pool_of("a", "b"), emit=journal.before(no_listener))
    data = bytearray(path.read_bytes())
    data[4096:] = random.Random(0).randbytes(len(data) - 4096)
    path.write_bytes(data)

    await refused(path, r"malformed; the file is damaged; move it away")
    with Journal(path) as journal:
        assert journal.check() != []


async def test_a_damaged_event_is_told(journal: Journal) -> None:
    run = await run_plan(TWO, "q", pool_of("a", "b"), emit=journal.before(no_listener))
    for body in (b'{"kind": "step_finished"}', b"{", b'{"kind": "of another kind"}'):
        sql(journal.path, "UPDATE event SET body = ? WHERE kind = 'step_finished'", body)
        with pytest.raises(JournalError, match=f"run {run.id}: its event 2 can't be read; .*dam"):
            journal.run(run.id)


async def test_what_no_file_can_be_made_of_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, told in (
        (tmp_path, "unable to open database file; name a file that can be written"),
        (tmp_path / "file" / "runs.db", r"(Not a directory|File exists); name a file"),
    ):
        await refused(path, told)


# -- bad disks -----------------------------------------------------------------------------------


class SmallDisk:
    """A file system of two mebibytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._mount("-t", "tmpfs", "-o", "size=2m", "none")

    def _mount(self, *options: str) -> None:
        subprocess.run(
            ["mount", *options, str(self.folder)], check=True, capture_output=True, timeout=60
        )

    def fill(self, leave: int = 0) -> None:
        """Leave so many bytes."""
        space = os.statvfs(self.folder)
        (self.folder / "ballast").write_bytes(bytes(space.f_bavail * space.f_frsize - leave))

    def clear(self) -> None:
        """Give the space back."""
        (self.folder / "ballast").unlink()

    def make_read_only(self) -> None:
        self._mount("-o", "remount,ro")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    try:
        disk = SmallDisk(tmp_path / "disk")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk.folder)], check=True, timeout=60)


LONG = chain([f"write {at}" for at in range(6)], ["w"])


def long_winded(called: list[str], size: int = 60_000) -> Pool:
    async def write(messages: Sequence[Message]) -> str:
        called.append(messages[-1].content[-40:])
        return "x" * size + str(len(called))

    return Pool([FunctionWorker("w", write)])


async def test_a_full_disk_stops_the_run_and_loses_nothing(disk: SmallDisk) -> None:
    """What fits is kept, what does not is not, no worker is called after that; and with space again
    the same Journal goes on, making one call again: the one whose end did not fit."""
    with Journal(disk.folder / "runs.db") as journal:
        called: list[str] = []
        team = Conductor(long_winded(called), journal=journal)
        journal.runs()
        disk.fill(leave=200_000)

        with pytest.raises(JournalError, match="full; free some space; what was committed before"):
            await team.arun("q", plan=LONG)

        kept = journal.run("last")
        assert kept.state is RunState.RUNNING
        assert 0 < len(kept.steps) == len(called) - 1
        with pytest.raises(JournalError, match="full; free some space"):
            await team.arun("another", plan=LONG)
        another = journal.run("last")  # small events may still fit into what the file has already
        fitted = 0 if another.id == kept.id else len(another.steps) + 1
        assert len(called) - len(kept.steps) - 1 <= fitted
        assert journal.check() == []

        disk.clear()
        called.clear()
        run = await team.aresume(kept.id)

        assert (run.state, len(called)) == (RunState.DONE, len(LONG) - len(kept.steps))
        assert run.steps[: len(kept.steps)] == kept.steps
        assert journal.run(run.id) == run
        assert journal.check() == []


async def test_a_new_journal_on_a_full_disk_is_told(disk: SmallDisk) -> None:
    disk.fill()
    await refused(disk.folder / "runs.db", "(full|disk I/O error); .* is safe")
    disk.clear()
    with Journal(disk.folder / "runs.db") as journal:
        await run_plan(TWO, "q", pool_of("a", "b"), emit=journal.before(no_listener))
        assert journal.check() == []


async def test_a_read_only_disk_is_told(disk: SmallDisk) -> None:
    path = disk.folder / "runs.db"
    with Journal(path) as journal:
        run = await run_plan(TWO, "q", pool_of("a", "b"), emit=journal.before(no_listener))
    before = path.read_bytes()
    disk.make_read_only()

    await refused(path, "its disk forbids to write it; name a file that can be written, or go")
    await refused(disk.folder / "new.db", "Read-only file system; name a file")

    assert path.read_bytes() == before
    copy = shutil.copy(path, disk.folder.parent / "copy.db")
    with Journal(copy) as journal:
        assert journal.run(run.id) == run


@pytest.mark.skipif(os.getuid() == 0, reason="nothing is forbidden to root")
async def test_a_file_of_somebody_else_is_told(path: Path) -> None:
    path.touch(mode=0o400)
    await refused(path, "its mode or its disk forbids to write it; name a file that can be")


LIMITED = """
import resource, sys
from pathlib import Path
import anyio
from grammar import chain
from runtime import FunctionWorker, Journal, JournalError, Pool, no_listener, run_plan

called = []
async def write(messages):
    called.append(0)
    return "x" * 60_000

journal = Journal(sys.argv[1])
journal.runs()
resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, 250_000))
plan = chain([f"write {at}" for at in range(9)], ["w"])
try:
    anyio.run(run_plan, plan, "q", Pool([FunctionWorker("w", write)]), )
    called.clear()
    import functools
    run = functools.partial(run_plan, emit=journal.before(no_listener))
    anyio.run(run, plan, "q", Pool([FunctionWorker("w", write)]))
except JournalError as error:
    print(len(called), error)
"""


def test_a_file_that_may_not_grow_stops_the_run(path: Path) -> None:
    """The same on any machine: the system refuses a write in the middle of a run."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, timeout=120
    )

    called, _, told = done.stdout.partition(" ")
    assert "the disk fails or is full; what was committed before is safe" in told, done
    with Journal(path) as journal:
        run = journal.run("last")
        assert 0 < len(run.steps) == int(called) - 1
        assert journal.check() == []


# -- whose a run is ------------------------------------------------------------------------------


async def stopped(journal: Journal, events: int = 3, query: str = "q") -> str:
    """A run of two steps that was cut short after so many events."""
    team = Conductor(pool_of("a", "b"), journal=journal)
    with pytest.raises(Killed):
        await team.arun(query, plan=TWO, on_event=dies_after(events))
    return journal.runs(contains=query)[0].id


async def test_a_run_that_is_under_way_is_nobody_elses(journal: Journal) -> None:
    """Not even another Journal's of the same process; nor is it forgotten."""
    tried: list[str] = []

    with Journal(journal.path) as other:

        def try_to_resume(event: Event) -> None:
            if not isinstance(event, RunFinished):
                told = pytest.raises(JournalError, match=r"under way in process .* use force")
                with told, other.resumed("last", no_listener):
                    raise AssertionError
                assert other.runs()[0].alive
                assert other.forget(keep=0) == 0
                tried.append(event.kind)

        await run_plan(TWO, "q", pool_of("a", "b"), emit=journal.before(try_to_resume))
        assert not other.runs()[0].alive
        assert other.forget(keep=0) == 1

    assert tried[:2] == ["run_started", "plan_parsed"]


async def test_a_run_of_a_living_process_needs_force(journal: Journal) -> None:
    run = await stopped(journal)
    parent = os.getppid()
    sql(journal.path, "UPDATE run SET process = ?", parent)
    team = Conductor(pool_of("a", "b"), journal=journal)

    assert journal.runs()[0].alive
    assert journal.forget(keep=0) == 0
    with pytest.raises(JournalError, match=f"run {run} is under way in process {parent}; .* force"):
        await team.aresume(run)
    assert sql(journal.path, "SELECT process FROM run") == [(parent,)]

    assert (await team.aresume(run, force=True)).state is RunState.DONE


async def test_a_run_of_a_dead_process_is_anybodys(journal: Journal) -> None:
    run = await stopped(journal)
    sql(journal.path, "UPDATE run SET process = ?", dead_process())

    assert not journal.runs()[0].alive
    assert (await Conductor(pool_of("a", "b"), journal=journal).aresume(run)).answer == "said"


async def test_a_run_of_another_machine_needs_force(journal: Journal) -> None:
    run = await stopped(journal)
    sql(journal.path, "UPDATE run SET host = 'elsewhere'")
    team = Conductor(pool_of("a", "b"), journal=journal)

    assert not journal.runs()[0].alive, "it can't be known"
    assert journal.forget(keep=0) == 0, "it may be alive there"
    with pytest.raises(JournalError, match=f"run {run} was begun on elsewhere; .* use force"):
        await team.aresume(run)

    assert (await team.aresume(run, force=True)).state is RunState.DONE


async def test_of_two_that_go_on_with_a_run_one_is_stopped(journal: Journal) -> None:
    """Force is wrong while the other lives: who is late to write learns it, and calls no more."""
    run = await stopped(journal, events=2)
    called: list[str] = []

    async def one(messages: Sequence[Message]) -> str:
        called.append("by the first")
        if len(called) == 1:
            other = Conductor(pool_of("a", "b"), journal=journal)
            assert (await other.aresume(run, force=True)).state is RunState.DONE
        return "said"

    pool = Pool([FunctionWorker("a", one), FunctionWorker("b", one)])
    with pytest.raises(JournalError, match="another process goes on with the same run"):
        await Conductor(pool, journal=journal).aresume(run)

    assert called == ["by the first"]
    assert journal.run(run).state is RunState.DONE
    assert journal.check() == []


async def test_a_run_that_could_not_go_on_stays_as_it_was(journal: Journal) -> None:
    async def fail(messages: Sequence[Message]) -> str:
        raise WorkerError(FailureKind.REJECTED, "no")

    pool = Pool([FunctionWorker("a", fail)])
    run = await run_plan(chain(["x"], ["a"]), "q", pool, emit=journal.before(no_listener))
    before = journal.runs()
    assert run.state is RunState.FAILED

    with pytest.raises(Killed), journal.resumed(run.id, no_listener):
        assert journal.runs()[0].alive
        raise Killed

    assert journal.runs() == before
    assert journal.run(run.id) == run
    assert journal.forget(keep=0) == 1


async def test_a_listener_that_raises_leaves_a_run_that_can_go_on(journal: Journal) -> None:
    run = await stopped(journal, events=3)

    assert not journal.runs()[0].alive
    assert (await Conductor(pool_of("a", "b"), journal=journal).aresume(run)).state is RunState.DONE


async def test_what_is_not_there_or_has_ended_is_not_resumed(journal: Journal) -> None:
    team = Conductor(pool_of("a", "b"), journal=journal)
    with pytest.raises(JournalError, match="there is no run nothing"):
        await team.aresume("nothing")
    run = await team.arun("q", plan=TWO)
    events = journal.events(run.id)

    assert await team.aresume(run.id[:8]) == run
    assert journal.events(run.id) == events
    with pytest.raises(ValueError, match="no journal"):
        await Conductor(pool_of("a", "b")).aresume("x")


async def test_only_the_pool_of_the_run_goes_on_with_it(journal: Journal) -> None:
    run = await stopped(journal)
    with pytest.raises(PoolError, match="no worker is called 'b'"):
        await Conductor(pool_of("a"), journal=journal).aresume(run)
    with pytest.raises(PoolError, match="in the order a, b; the pool has b, a; restore the order"):
        await Conductor(pool_of("b", "a"), journal=journal).aresume(run)

    more = pool_of("a", "more", "b")
    done = await Conductor(more, journal=journal).aresume(run)
    assert (done.state, done.workers) == (RunState.DONE, ("a", "b"))


# -- going on ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
async def test_stopped_after_any_event_a_run_comes_to_the_same_end(
    scene: Scene, tmp_path: Path
) -> None:
    """And each call whose end was told is made once: wherever the run was stopped."""
    with Journal(tmp_path / "whole.db") as journal:
        whole = await scene.play(team_of(Ants().make, journal), 1, no_listener)
        events = journal.events(whole.id)
    for number in range(1, len(events)):
        ants = Ants()
        with Journal(tmp_path / f"{number}.db") as journal:
            team = team_of(ants.make, journal)
            with pytest.raises(Killed):
                await scene.play(team, 1, dies_after(number))
            known = finished_calls(journal.events("last"))
            made = ants.answered.copy()

            run = await team_of(ants.make, journal).aresume("last")

            assert journal.run("last") == run
        assert essence(run) == essence(whole)
        assert run.seconds >= 0
        again = ants.answered - made
        assert not set(known) & set(again), f"after {events[number - 1]}"
        assert set(known) <= set(made)


async def test_the_record_tells_that_a_run_went_on_and_its_clock_too(journal: Journal) -> None:
    run = await stopped(journal, events=3)
    before = journal.record(run)
    budget = Budget(calls=9)

    await Conductor(pool_of("a", "b"), journal=journal).aresume(run, budget=budget)

    events = journal.events(run)
    assert [event.kind for event in events] == [
        "run_started",
        "plan_parsed",
        "step_finished",
        "run_resumed",
        "step_finished",
        "run_finished",
    ]
    times = [event.at for event in events]
    assert times == sorted(times)
    assert times[3] - before.seconds < 60, "the time between does not count"
    assert events[3] == RunResumed(times[3], budget)
    done = journal.run(run)
    assert (done.seconds, done.budget) == (times[-1], budget)
    assert done.steps[1].started_s >= done.steps[0].started_s + done.steps[0].seconds


async def test_failed_steps_are_tried_again_and_done_ones_are_not(journal: Journal) -> None:
    calls: Counter[str] = Counter()
    works = False

    def worker(name: str) -> FunctionWorker:
        async def answer(messages: Sequence[Message]) -> Completion:
            calls[name] += 1
            if name == "b" and not works:
                raise WorkerError(FailureKind.OVERLOADED, "not today")
            return Completion("said", usage=Usage(3, 1))

        return FunctionWorker(name, answer)

    plan = Plan.of(["x", "y", "z"], ["a", "b", "a"], [[], [0], [1]])
    pool = Pool(map(worker, "ab"), terms=Terms(retries=1, retry_base_s=1e-6))
    team = Conductor(pool, journal=journal)
    failed = await team.arun("q", plan=plan)
    assert [step.state.value for step in failed.steps] == ["done", "failed", "skipped"]
    assert (failed.accounts["b"].calls, failed.accounts["b"].failed) == (2, 2)

    works = True
    run = await team.aresume(failed.id)

    assert (run.state, run.answer, run.failure) == (RunState.DONE, "said", None)
    assert calls == {"a": 2, "b": 3}
    assert run.steps[0] == failed.steps[0]
    assert [each.failure.message for each in run.steps[1].lost] == ["not today"] * 2
    assert {name: account.calls for name, account in run.accounts.items()} == calls
    assert journal.run(run.id) == run


async def test_planning_that_came_to_nothing_is_tried_again_and_stays_in_the_books(
    journal: Journal,
) -> None:
    asked: list[int] = []
    good = 'subtasks = ["x"]\nworkers = [0]\naccess = [[]]'
    texts = ["no plan", "none either", "", "once more none", good]

    async def write(messages: Sequence[Message]) -> Completion:
        asked.append(len(messages))
        return Completion(texts.pop(0), usage=Usage(100, 10))

    pool = Pool([FunctionWorker("a", say())], planner=FunctionWorker("p", write))
    team = Conductor(replace_terms(pool, Terms(retries=0)), journal=journal)
    first = await team.arun("q")
    assert (first.failure and first.failure.kind) is FailureKind.NO_PLAN
    assert asked[1] == asked[0] + 2, "the second attempt is a repair"

    second = await team.aresume(first.id)
    assert (second.failure and second.failure.kind) is FailureKind.EMPTY
    run = await team.aresume(first.id)

    assert (run.state, run.answer) == (RunState.DONE, "said")
    assert asked == [asked[0], asked[1], asked[0], asked[0], asked[1]]
    assert (run.orchestration.calls, run.orchestration.failed) == (5, 3)
    assert run.planning_usage == Usage(500, 50)
    assert len(run.planning) == 2


def replace_terms(pool: Pool, terms: Terms) -> Pool:
    return Pool(list(pool), planner=pool.planner, terms=terms)


async def test_after_a_bad_attempt_the_repair_is_the_next_call(journal: Journal) -> None:
    asked: list[tuple[Message, ...]] = []
    texts = ["nonsense", 'subtasks = ["x"]\nworkers = [0]\naccess = [[]]']

    async def write(messages: Sequence[Message]) -> str:
        asked.append(tuple(messages))
        return texts[len(asked) - 1]

    pool = Pool([FunctionWorker("a", say())], planner=FunctionWorker("p", write))
    team = Conductor(pool, journal=journal)
    with pytest.raises(Killed):
        await team.arun("q", on_event=dies_after(2))
    assert len(asked) == 1

    run = await team.aresume("last")

    assert [attempt.text for attempt in run.planning] == texts
    assert "not a valid plan" in asked[1][-1].content
    assert asked[1][-2] == Message("assistant", "nonsense")


async def test_a_planner_that_was_out_of_reach_is_asked_anew(journal: Journal) -> None:
    """Not to repair what it never wrote: stopped between its failure and the end of the run."""
    asked: list[tuple[Message, ...]] = []

    async def write(messages: Sequence[Message]) -> str:
        asked.append(tuple(messages))
        if len(asked) == 1:
            raise WorkerError(FailureKind.REJECTED, "not yet")
        return 'subtasks = ["x"]\nworkers = [0]\naccess = [[]]'

    pool = Pool([FunctionWorker("a", say())], planner=FunctionWorker("p", write))
    team = Conductor(pool, journal=journal)
    with pytest.raises(Killed):
        await team.arun("q", on_event=dies_after(2))

    assert (await team.aresume("last")).state is RunState.DONE
    assert asked[0] == asked[1]


@pytest.mark.parametrize("after", [1, 2, 3])
async def test_what_a_run_was_asked_with_is_what_it_goes_on_with(
    after: int, journal: Journal
) -> None:
    """Stopped before it came to its plan: the plan it was given, its fallbacks, its source."""

    async def fail(messages: Sequence[Message]) -> str:
        raise WorkerError(FailureKind.REJECTED, "no")

    workers = [FunctionWorker("a", fail), FunctionWorker("b", say("b did it"))]
    planner = FunctionWorker("p", fail)
    team = Conductor(Pool(workers, planner=planner), journal=journal)
    with pytest.raises(Killed):
        await team.arun(
            "q", plan=chain(["x", "y"], [0, 1]), fallback=["b"], on_event=dies_after(after)
        )

    run = await team.aresume("last")

    assert (run.answer, run.source, run.planning) == ("b did it", PlanSource.GIVEN, ())
    assert run.plan == chain(["x", "y"], ["a", "b"])
    assert run.steps[0].worker == "b"


async def test_a_picked_worker_stays_the_only_one(journal: Journal) -> None:
    """No model plans a later round of a run that a worker was picked for, resumed or not."""

    async def never(messages: Sequence[Message]) -> str:
        raise AssertionError

    planner = FunctionWorker("p", never)
    team = Conductor(Pool([FunctionWorker("a", say())], planner=planner), journal=journal)
    whole = await team.arun("q", worker="a", rounds=2)
    for after in (1, 2, 3, 4):
        with pytest.raises(Killed):
            await team.arun("q", worker="a", rounds=2, on_event=dies_after(after))

        run = await team.aresume("last")

        assert run.source is PlanSource.PICK
        assert essence(run) == essence(whole)


async def test_a_planner_that_was_left_out_does_not_plan_the_rest(journal: Journal) -> None:
    async def write(messages: Sequence[Message]) -> str:
        return 'subtasks = ["x"]\nworkers = [0]\naccess = [[]]'

    async def never(messages: Sequence[Message]) -> str:
        raise AssertionError

    workers = [FunctionWorker("good", write), FunctionWorker("left-out", never)]
    team = Conductor(Pool(workers, planner=workers[1]), journal=journal)
    with pytest.raises(Killed):
        await team.arun("q", without=["left-out"], on_event=dies_after(1))

    assert [each.worker for each in (await team.aresume("last")).planning] == ["good"]


async def test_results_that_were_taken_over_are_not_called_for(journal: Journal) -> None:
    """A run that repeats another one in part, stopped at any moment, repeats that part alone."""
    called: list[str] = []

    def worker(name: str) -> FunctionWorker:
        async def answer(messages: Sequence[Message]) -> str:
            called.append(name)
            return f"{name} said"

        return FunctionWorker(name, answer)

    team = Conductor(Pool(map(worker, "abc")), journal=journal)
    old = await team.arun("q", plan=chain(["x", "y", "z"], ["a", "b", "c"]))
    for after in (1, 2, 3, 4, 5):
        called.clear()
        with pytest.raises(Killed):
            await team.arerun(old.id, from_step=2, on_event=dies_after(after))

        run = await team.aresume("last")

        assert called == ["c"], after
        assert (run.answer, run.parent) == ("c said", old.id)
        assert [step.reused for step in run.steps] == [old.id, old.id, ""]
        assert {name: each.calls for name, each in run.accounts.items()} == {"c": 1}


# -- budgets go on -------------------------------------------------------------------------------


@pytest.mark.parametrize("after", range(1, 9))
async def test_calls_are_counted_on(after: int, journal: Journal) -> None:
    """Two lives of a run may make as many calls as one, those that came to nothing included."""
    made: list[str] = []

    async def sometimes(messages: Sequence[Message]) -> Completion:
        made.append("call")
        if len(made) % 2:
            raise WorkerError(FailureKind.OVERLOADED, "flaky")
        return Completion("said", usage=Usage(3, 1))

    terms = Terms(retries=1, retry_base_s=1e-6)
    pool = Pool([FunctionWorker("w", sometimes)], terms=terms)
    team = Conductor(pool, journal=journal)
    plan = chain(["1", "2", "3", "4"], ["w"])
    with pytest.raises(Killed):
        await team.arun("q", plan=plan, budget=Budget(calls=5), on_event=dies_after(after))

    run = await team.aresume("last")

    assert run.failure and run.failure.kind is FailureKind.BUDGET
    assert len(made) == 5
    assert run.accounts["w"].calls == 5
    assert run.accounts["w"].failed == 3


@pytest.mark.parametrize("after", range(3, 12))
async def test_steps_and_tokens_of_nested_runs_are_counted_on(after: int, journal: Journal) -> None:
    """One step of budget fewer than needed is one too few, wherever the run was stopped."""
    scene = next(scene for scene in SCENES if scene.name == "nested")
    for steps, state in ((8, RunState.DONE), (7, RunState.FAILED)):
        ants = Ants()
        team = team_of(ants.make, journal)
        budget = Budget(steps=steps)
        with pytest.raises(Killed):
            await team.arun(
                scene.query(1), plan=scene.plan, budget=budget, on_event=dies_after(after)
            )
        run = await team.aresume("last")
        assert run.state is state

    whole = await team_of(Ants().make).arun(scene.query(1), plan=scene.plan)
    spent = whole.usage + whole.planning_usage
    tokens = spent.input_tokens + spent.output_tokens
    for most, state in ((tokens, RunState.DONE), (tokens - 12, RunState.FAILED)):
        team = team_of(Ants().make, journal)
        with pytest.raises(Killed):
            await team.arun(
                scene.query(1),
                plan=scene.plan,
                budget=Budget(tokens=most),
                on_event=dies_after(after),
            )
        run = await team.aresume("last")
        assert run.state is state


async def test_a_refusal_is_no_call(journal: Journal) -> None:
    """A worker that was left alone was not called: nothing of it is counted after a stop."""

    async def fail(messages: Sequence[Message]) -> str:
        raise WorkerError(FailureKind.UNREACHABLE, "down")

    terms = {"a": Terms(retries=0, trip_after=1, fallback=("b",)), "b": Terms(retries=0)}
    pool = Pool([FunctionWorker("a", fail), FunctionWorker("b", say())], terms=terms)
    team = Conductor(pool, journal=journal)
    heard: list[Attempt] = []

    def die(event: Event) -> None:
        if isinstance(event, CallRetried):
            heard.append(event.attempt)
            if len(heard) == 2:
                raise Killed

    with pytest.raises(Killed):
        await team.arun("q", plan=chain(["1", "2"], ["a"]), on_event=die)
    assert [each.failure.kind for each in heard] == [FailureKind.UNREACHABLE, FailureKind.TRIPPED]

    run = await team.aresume("last")

    assert {name: each.calls for name, each in run.accounts.items()} == {"a": 1, "b": 2}


# -- forgetting ----------------------------------------------------------------------------------


async def test_old_runs_are_forgotten_and_wiped(journal: Journal, path: Path) -> None:
    secret = "the moon is made of basalt"
    ids = [
        (await run_plan(TWO, query, pool_of("a", "b"), emit=journal.before(no_listener))).id
        for query in (secret, "second", "third")
    ]
    assert secret.encode() in b"".join(each.read_bytes() for each in path.parent.iterdir())

    assert journal.forget() == 0
    assert journal.forget(before="1999") == 0
    assert journal.forget(keep=3) == 0
    assert journal.forget(keep=2) == 1

    assert [each.id for each in journal.runs()] == [ids[2], ids[1]]
    assert secret.encode() not in b"".join(each.read_bytes() for each in path.parent.iterdir())
    assert journal.check() == []
    assert journal.forget(before="2999") == 2
    assert sql(path, "SELECT count(*) FROM event") == [(0,)]
    with pytest.raises(ValueError, match=r"keep is -1; .* at least 0"):
        journal.forget(keep=-1)


async def test_forgetting_beside_a_reader_works(journal: Journal, path: Path) -> None:
    """The space is given back when nobody is in the way."""
    await run_plan(TWO, "q", pool_of("a", "b"), emit=journal.before(no_listener))
    with journal._file.connected() as connection:
        connection.execute("PRAGMA busy_timeout = 1")  # or the test would wait as long
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT * FROM run").fetchone()

    assert journal.forget(keep=0) == 1

    assert len(other.execute("SELECT * FROM run").fetchall()) == 1
    other.close()
    assert journal.runs() == []
    assert journal.check() == []


async def test_a_run_of_a_dead_process_can_be_forgotten(journal: Journal) -> None:
    await stopped(journal)
    sql(journal.path, "UPDATE run SET process = ?", dead_process())

    assert journal.forget(keep=0) == 1


# -- secrets -------------------------------------------------------------------------------------

CANARY = "sk-canary-93f1c7d2e8"


async def test_no_key_is_in_any_file(tmp_path: Path) -> None:
    """Not where calls work, nor where the server throws the key back in an error."""
    async with serving() as server:
        echo = play.status(401, f"bad key {CANARY}")
        with Journal(tmp_path / "runs.db") as journal, CallCache(tmp_path / "calls.db") as cache:
            keys = {"key": CANARY, "headers": {"X-Key": CANARY}}
            workers = [server.endpoint("a", play.fine, **keys), server.endpoint("b", echo, **keys)]
            team = Conductor(Pool(workers), journal=journal, cache=cache)
            run = await team.arun("q", plan=TWO)
            written = [each.read_bytes() for each in tmp_path.iterdir()]
            assert cache.misses == 2

    assert [step.state for step in run.steps] == [StepState.DONE, StepState.FAILED]
    assert len(written) == 6, "both files with their side files"
    assert any(b"Fuchsbau" in each for each in written)
    assert not any(CANARY.encode() in each for each in written)


# -- calls that need not be made twice -----------------------------------------------------------

ASKED = Call((Message("user", "Why?"),), Sampling(temperature=0.5, seed=1))
OTHERS = [
    replace(ASKED, messages=(Message("user", "Why not?"),)),
    replace(ASKED, messages=(Message("system", "Why?"),)),
    replace(ASKED, messages=(*ASKED.messages, Message("user", ""))),
    replace(ASKED, sampling=Sampling(temperature=0.5, seed=2)),
    replace(ASKED, sampling=Sampling(temperature=0.5)),
    replace(ASKED, sampling=Sampling(temperature=0.5, seed=1, stop=("x",))),
    replace(ASKED, sampling=Sampling(temperature=0.5, seed=1, max_tokens=9)),
    replace(ASKED, grammar="start: /x/"),
    replace(ASKED, tools=(Tool("f"),)),
    replace(ASKED, tool_choice="required"),
    replace(ASKED, parallel_tool_calls=False),
    replace(ASKED, messages=(*ASKED.messages, Message("tool", "x", tool_call_id="a"))),
]


def test_an_equal_call_of_an_equal_worker_is_known(path: Path) -> None:
    full = Completion("Because.", FinishReason.LENGTH, Usage(4, 2, 1), "m-1")
    with CallCache(path) as cache:
        assert cache.get(FunctionWorker("w", say), ASKED) is None
        cache.put(FunctionWorker("w", say), ASKED, full)
    with CallCache(path) as again:
        assert again.get(FunctionWorker("w", say), replace(ASKED)) == full
        again.put(FunctionWorker("w", say), ASKED, Completion("Something else."))
        assert again.get(FunctionWorker("w", say), ASKED) == full, "the first one stays"
        assert (cache.hits, cache.misses, again.hits, again.misses) == (0, 1, 2, 0)


def test_fields_that_came_later_leave_the_keys_of_calls_without_them_as_they_were(
    path: Path,
) -> None:
    """What was kept by an older version is found."""
    worker = FunctionWorker("w", say)
    told = '{"messages":[{"role":"user","content":"Why?"}],"sampling":{"temperature":null,'
    told += '"top_p":null,"max_tokens":null,"seed":null,"stop":[]},"grammar":null}'
    digest = sha256()
    for part in (worker.identity.encode(), told.encode()):
        digest.update(len(part).to_bytes(8, "big") + part)
    with CallCache(path) as cache:
        cache.put(worker, Call((Message("user", "Why?"),)), Completion("Because."))
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT key FROM call").fetchall() == [(digest.digest(),)]


@pytest.mark.parametrize("other", OTHERS)
def test_an_unequal_call_is_another(other: Call, path: Path) -> None:
    with CallCache(path) as cache:
        cache.put(FunctionWorker("w", say), ASKED, Completion("Because."))

        assert cache.get(FunctionWorker("w", say), other) is None
        assert cache.get(FunctionWorker("w", stopped), ASKED) is None
        assert cache.get(FunctionWorker("v", say), ASKED) is None


async def test_a_run_takes_known_calls_and_makes_the_others(path: Path) -> None:
    """In a journal's own file too. What failed is not known; what was reused costs nothing."""
    ants = Ants()
    with Journal(path) as journal, CallCache(path) as cache:
        team = Conductor(team_of(ants.make).pool, journal=journal, cache=cache)
        scenes = [scene for scene in SCENES if scene.name in ("rounds", "nested", "broken")]
        whole = [await scene.play(team, 1, no_listener) for scene in scenes]
        made = ants.calls.copy()

        again = [await scene.play(team, 1, no_listener) for scene in scenes]

        assert [run.answer for run in again] == [run.answer for run in whole]
        new = ants.calls - made
        assert len(new) == 1, "the one that is broken"
        assert [sum(account.calls for account in run.accounts.values()) for run in again] == [
            0,
            0,
            1,
        ]
        assert all(run.orchestration.calls == 0 for run in again)
        assert {step.reused for run in again[:2] for step in run.steps} == {"cache", ""}
        assert cache.hits == sum(made.values()) - sum(new.values())


async def test_a_cache_that_fails_stops_the_run_in_its_own_words(tmp_path: Path) -> None:
    """The journal has what was called all the same, and the run can go on without the cache."""
    called: list[str] = []

    def worker(name: str, then: Callable[[], Any] = lambda: None) -> FunctionWorker:
        async def answer(messages: Sequence[Message]) -> str:
            called.append(name)
            then()
            return "said"

        return FunctionWorker(name, answer)

    cache = CallCache(tmp_path / "calls.db")

    def damage() -> None:
        sql(tmp_path / "calls.db", "DROP TABLE call")

    with Journal(tmp_path / "runs.db") as journal:
        pool = Pool([worker("a", damage), worker("b")])
        with pytest.raises(JournalError, match=r"calls\.db: no such table: call"):
            await Conductor(pool, journal=journal, cache=cache).arun("q", plan=TWO)
        assert called == ["a"]
        stopped_run = journal.run("last")
        assert stopped_run.state is RunState.FAILED
        assert "no such table: call" in str(stopped_run.failure)
        with pytest.raises(JournalError, match="no such table: call"):
            await Conductor(pool, cache=cache).arun("q", plan=TWO)
        assert called == ["a"]

        run = await Conductor(pool, journal=journal).aresume("last")
    cache.close()
    assert (run.state, called) == (RunState.DONE, ["a", "b"])


# -- files of earlier versions -------------------------------------------------------------------

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("file", sorted(DATA.glob("journal-*.db")), ids=lambda file: file.stem)
async def test_journals_of_every_version_open_replay_and_go_on(file: Path, tmp_path: Path) -> None:
    """They hold every scene once whole and once cut short in its middle (see ``data/write.py``)."""
    with Journal(shutil.copy(file, tmp_path)) as journal:
        assert journal.check() == []
        wholes = {run.query: journal.run(run.id) for run in journal.runs()[len(SCENES) :]}
        cut = journal.runs()[: len(SCENES)]
        assert {scene.query(1): scene.state for scene in SCENES} == {
            query: run.state for query, run in wholes.items()
        }
        for scene in SCENES:
            fresh = await scene.play(team_of(Ants().make), 1, no_listener)
            assert essence(wholes[scene.query(1)]) == essence(fresh)

        ants = Ants()
        for summary in cut:
            assert summary.state is RunState.RUNNING
            known = finished_calls(journal.events(summary.id))
            run = await team_of(ants.make, journal).aresume(summary.id, force=True)
            assert essence(run) == essence(wholes[run.query])
            assert not set(known) & set(ants.calls)
        assert journal.check() == []
