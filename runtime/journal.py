"""The journal: every run, its events, and so every finished call, in one SQLite file.

What is guaranteed: an event that settles something (a completion, a plan, the end of a step or of
the run) is committed before anything depends on it, so a process that is killed at any moment loses
no finished call, and a run that goes on makes none again. The file is in WAL mode with synchronous
NORMAL: that holds against the death of the process; against the loss of power it needs
``synchronous="full"``, which waits for the disk at every commit.

What is told again later is left out: pieces of text, which the whole has, and the starts of steps
and of attempts to plan, since results have their times and what was seen.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from .errors import JournalError
from .run import (
    CallRetried,
    Emit,
    Event,
    NestedEvent,
    PlanDelta,
    PlanStarted,
    Record,
    Run,
    RunFinished,
    RunResumed,
    RunStarted,
    RunState,
    StepDelta,
    StepStarted,
)
from .worker import Call, Completion, Worker

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import SchemaSerializer

_VERSION = 1
_APPLICATION = 0x434E4454  # "CNDT"
_MOST_EVENTS = 2**20  # of one run: an event's id is the run's number and its own in one integer
_BUSY_MS = 5_000

_TABLES = """
CREATE TABLE run (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    started TEXT NOT NULL,
    query TEXT NOT NULL,
    state TEXT NOT NULL,
    seconds REAL NOT NULL DEFAULT 0,
    answer TEXT,
    failure TEXT,
    steps INTEGER NOT NULL DEFAULT 0,
    workers TEXT NOT NULL DEFAULT '',
    tokens INTEGER NOT NULL DEFAULT 0,
    dollars TEXT NOT NULL DEFAULT '0',
    parent TEXT NOT NULL DEFAULT '',
    host TEXT NOT NULL,
    process INTEGER NOT NULL
);
CREATE INDEX run_by_start ON run (started);
CREATE TABLE event (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    body BLOB NOT NULL
);
CREATE TABLE call (
    key BLOB PRIMARY KEY,
    worker TEXT NOT NULL,
    completion BLOB NOT NULL
) WITHOUT ROWID;
"""


class _File:
    """An SQLite file of ours: opened at the first use, private, with errors that say what to do."""

    def __init__(self, path: str | Path, *, synchronous: Literal["normal", "full"]) -> None:
        self.path = Path(path)
        self._synchronous = synchronous
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None

    @contextmanager
    def connected(self) -> Iterator[sqlite3.Connection]:
        """Hold the connection for a few statements.

        Raises:
            JournalError: For whatever SQLite raises.
        """
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = self._open()
                yield self._connection
            except sqlite3.Error as error:
                raise self._told(error) from error

    def execute(self, statement: str, values: Sequence[Any]) -> None:
        """Execute one statement, which is a transaction: as ``connected``, for the hot path."""
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = self._open()
                self._connection.execute(statement, values)
            except sqlite3.Error as error:
                raise self._told(error) from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the connection for statements that all happen, or none."""
        with self.connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                with suppress(sqlite3.Error):  # a full disk has rolled back already
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def close(self) -> None:
        """Close the file; it opens again at the next use."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _open(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # SQLite gives its side files the mode of this one.
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            if self.path.stat().st_mode & 0o077:
                self.path.chmod(0o600)
        except OSError as error:
            raise self._told(error) from error
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        connection.execute("BEGIN IMMEDIATE")
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in _TABLES.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                connection.execute(f"PRAGMA user_version = {_VERSION}")
        finally:
            connection.execute("COMMIT")
        if version > _VERSION:
            told = f"written by a newer version of conductor (format {version})"
            raise JournalError(f"{self.path}: {told}; upgrade, or name another file")

    def _told(self, error: Exception) -> JournalError:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        remedy = "name a file that can be written, or go without a journal"
        if "full" in f"{reason}":
            remedy = "free some space; what was committed before is safe"
        elif "not a database" in f"{reason}":
            remedy = "it is no journal; name another file"
        elif "malformed" in f"{reason}":
            remedy = "the file is damaged; move it away, `sqlite3 FILE .recover` may read it"
        elif "locked" in f"{reason}":
            remedy = "another process writes to it without pause; try again"
        return JournalError(f"journal {self.path}: {reason}; {remedy}")


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run of the journal, in a line."""

    id: str
    started: str
    """Date and time, ISO 8601, UTC."""
    state: RunState
    """running also if its process died: see ``alive``."""
    query: str
    seconds: float
    steps: int
    """Steps of its last plan."""
    workers: tuple[str, ...]
    """Who worked, in order of first appearance."""
    tokens: int
    dollars: Decimal
    answer: str | None
    failure: str | None
    parent: str
    alive: bool
    """Whether a process of this machine works at it now."""


class Journal:
    """Keeps runs in a file; several processes may share it.

    Args:
        path: The file, made if it is not there, readable by its owner only.
        synchronous: ``"full"`` waits for the disk at every commit.

    Nothing is opened before the first use.
    """

    def __init__(
        self, path: str | Path, *, synchronous: Literal["normal", "full"] = "normal"
    ) -> None:
        self._file = _File(path, synchronous=synchronous)
        self._host = socket.gethostname()
        self._under_way: set[int] = set()

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    def before(self, emit: Emit) -> Emit:
        """Make what keeps the events of one run and then passes each on to ``emit``.

        It raises JournalError, which stops the run, where an event can't be kept.
        """
        return _Writer(self, emit)

    def runs(
        self,
        *,
        state: RunState | None = None,
        worker: str = "",
        contains: str = "",
        since: str = "",
        most: int | None = None,
    ) -> list[RunSummary]:
        """List runs, the latest first.

        Args:
            state: Only those in this state.
            worker: Only those in which this worker worked.
            contains: Only those with this text in query or answer; case does not count.
            since: Only those started at or after this date or time, ISO 8601, UTC.
            most: At most so many.
        """
        pattern = "%" + contains.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        with self._file.connected() as connection:
            rows = connection.execute(
                "SELECT id, started, state, query, seconds, steps, workers, tokens, dollars, "
                "answer, failure, parent, host, process FROM run "
                "WHERE (?1 = '' OR state = ?1) AND started >= ?2 "
                "AND (?3 = '' OR instr(' ' || workers || ' ', ' ' || ?3 || ' ')) "
                "AND (query LIKE ?4 ESCAPE '\\' OR coalesce(answer, '') LIKE ?4 ESCAPE '\\') "
                "ORDER BY number DESC LIMIT ?5",
                (state or "", since, worker, pattern, -1 if most is None else most),
            ).fetchall()
        return [self._summary(row) for row in rows]

    def _summary(self, row: tuple[Any, ...]) -> RunSummary:
        *_, host, process = row
        state = RunState(row[2])
        return RunSummary(
            id=row[0],
            started=row[1],
            state=state,
            query=row[3],
            seconds=row[4],
            steps=row[5],
            workers=tuple(row[6].split()),
            tokens=row[7],
            dollars=Decimal(row[8]),
            answer=row[9],
            failure=row[10],
            parent=row[11],
            alive=state is RunState.RUNNING and host == self._host and _is_alive(process),
        )

    def events(self, run: str) -> list[Event]:
        """The events of a run, without the pieces of text.

        Args:
            run: Id of the run, or the beginning of it.

        Raises:
            JournalError: If there is no such run, or there are several.
        """
        number, _ = self._find(run)
        first = number * _MOST_EVENTS
        with self._file.connected() as connection:
            rows = connection.execute(
                "SELECT body FROM event WHERE id >= ? AND id < ? ORDER BY id",
                (first, first + _MOST_EVENTS),
            ).fetchall()
        return [_event_adapter().validate_json(body) for (body,) in rows]

    def record(self, run: str) -> Record:
        """The record of a run, which can go on if the run has not ended; raises as ``events``."""
        record = Record()
        for event in self.events(run):
            record.add(event)
        return record

    def run(self, run: str) -> Run:
        """A run, whole or as far as it came; raises as ``events``."""
        return self.record(run).run

    @contextmanager
    def resumed(
        self, run: str, emit: Emit, *, force: bool = False
    ) -> Iterator[tuple[Record, Emit]]:
        """Make a run this process's own, to go on with it.

        Args:
            run: Id of the run, or the beginning of it.
            emit: Gets each event after it was kept.
            force: Also if another process seems to work at it.

        Yields:
            Its record, to be written on, and what keeps its further events.

        Raises:
            JournalError: If another process works at it, or if there is no such run.
        """
        number, identifier = self._find(run)
        with self._file.transaction() as connection:
            state, host, process = connection.execute(
                "SELECT state, host, process FROM run WHERE number = ?", (number,)
            ).fetchone()
            if state == RunState.RUNNING and not force:
                self._check_owner(number, identifier, host, process)
            connection.execute(
                "UPDATE run SET state = ?, host = ?, process = ? WHERE number = ?",
                (RunState.RUNNING, self._host, os.getpid(), number),
            )
        events = self.events(identifier)
        writer = _Writer(self, emit)
        writer.resume(number, events)
        self._under_way.add(number)
        try:
            record = Record()
            for event in events:
                record.add(event)
            yield record, writer
        finally:
            self._under_way.discard(number)

    def _check_owner(self, number: int, run: str, host: str, process: int) -> None:
        if host != self._host:
            told = f"run {run} was begun on {host}; if it does not run there any more, use force"
            raise JournalError(told)
        here = process == os.getpid()
        if number in self._under_way if here else _is_alive(process):
            told = f"run {run} is under way in process {process}; wait for it, stop it or use force"
            raise JournalError(told)

    def forget(self, *, before: str = "", keep: int | None = None) -> int:
        """Delete runs that have ended.

        Args:
            before: Those started before this date or time, ISO 8601, UTC.
            keep: All but the latest so many.

        Returns:
            How many were deleted.
        """
        with self._file.transaction() as connection:
            floor = None
            if keep is not None:
                row = connection.execute(
                    "SELECT number FROM run ORDER BY number DESC LIMIT 1 OFFSET ?", (keep,)
                ).fetchone()
                floor = row[0] if row else 0
            gone = [
                number
                for number, state, host, process in connection.execute(
                    "SELECT number, state, host, process FROM run WHERE started < ? OR number <= ?",
                    (before, -1 if floor is None else floor),
                ).fetchall()
                if state != RunState.RUNNING or host != self._host or not _is_alive(process)
            ]
            for number in gone:
                first = number * _MOST_EVENTS
                connection.execute(
                    "DELETE FROM event WHERE id >= ? AND id < ?", (first, first + _MOST_EVENTS)
                )
                connection.execute("DELETE FROM run WHERE number = ?", (number,))
        if gone:
            with self._file.connected() as connection:
                connection.execute("VACUUM")
        return len(gone)

    def check(self) -> list[str]:
        """What SQLite finds wrong with the file; empty if it is sound."""
        with self._file.connected() as connection:
            found = [text for (text,) in connection.execute("PRAGMA integrity_check").fetchall()]
        return [] if found == ["ok"] else found

    def close(self) -> None:
        """Close the file; it opens again at the next use."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _find(self, run: str) -> tuple[int, str]:
        known = "`conductor runs` lists them"
        if not run:
            raise JournalError(f"no run is named; {known}")
        with self._file.connected() as connection:
            if run == "last":
                found = connection.execute(
                    "SELECT number, id FROM run ORDER BY number DESC LIMIT 1"
                ).fetchall()
            else:
                found = connection.execute(
                    "SELECT number, id FROM run WHERE id >= ?1 AND id < ?1 || char(0x10ffff) "
                    "ORDER BY id = ?1 DESC LIMIT 2",
                    (run,),
                ).fetchall()
        if not found:
            raise JournalError(f"journal {self.path}: there is no run {run}; {known}")
        if len(found) > 1 and found[0][1] != run:
            raise JournalError(f"journal {self.path}: several runs begin with {run}; {known}")
        number, identifier = found[0]
        return int(number), str(identifier)


def _is_alive(process: int) -> bool:
    if os.name == "nt":  # os.kill would end it there
        return process == os.getpid()
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


_INSERT = "INSERT INTO event VALUES (?, ?, ?)"


class _Writer:
    """Keeps the events of one run. Those that settle nothing wait for the next one that does."""

    def __init__(self, journal: Journal, then: Emit) -> None:
        self._journal = journal
        self._file = journal._file
        self._then = then
        self._record = Record()
        self._next = -1
        self._rows: list[int | str | bytes] = []

    def __call__(self, event: Event) -> None:
        kept, settles = _kept(event)
        if kept:
            self._keep(event, settles)
        self._then(event)

    def _keep(self, event: Event, settles: bool) -> None:
        if isinstance(event, RunStarted):
            self._begin(event)
            return
        if isinstance(event, RunResumed) and self._next < 0:
            raise JournalError("a run goes on that was not taken from this journal")
        self._record.add(event)
        self._rows += (self._next, event.kind, _serialize(event))
        self._next += 1
        if isinstance(event, RunFinished):
            self._finish()
        elif settles:
            self._flush()

    def _flush(self) -> None:
        if len(self._rows) == 3:  # one statement is cheaper than a transaction spelt out
            self._file.execute(_INSERT, self._rows)
        else:
            with self._file.transaction() as connection:
                self._insert(connection)
        self._rows = []

    def _insert(self, connection: sqlite3.Connection) -> None:
        for at in range(0, len(self._rows), 3):
            connection.execute(_INSERT, self._rows[at : at + 3])

    def _begin(self, event: RunStarted) -> None:
        self._record.add(event)
        with self._file.transaction() as connection:
            cursor = connection.execute(
                "INSERT INTO run (id, started, query, state, parent, host, process) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    event.run,
                    event.started,
                    event.query,
                    RunState.RUNNING,
                    event.parent,
                    self._journal._host,
                    os.getpid(),
                ),
            )
            assert cursor.lastrowid is not None
            first = cursor.lastrowid * _MOST_EVENTS
            connection.execute(_INSERT, (first, event.kind, _serialize(event)))
        self._next = first + 1
        self._journal._under_way.add(cursor.lastrowid)

    def resume(self, number: int, events: Sequence[Event]) -> None:
        """Go on with a run that is in the journal."""
        for event in events:
            self._record.add(event)
        self._next = number * _MOST_EVENTS + len(events)

    def _finish(self) -> None:
        run = self._record.run
        accounts = run.accounts
        total = sum(accounts.values(), run.orchestration)
        with self._file.transaction() as connection:
            self._insert(connection)
            connection.execute(
                "UPDATE run SET state = ?, seconds = ?, answer = ?, failure = ?, steps = ?, "
                "workers = ?, tokens = ?, dollars = ? WHERE number = ?",
                (
                    run.state,
                    run.seconds,
                    run.answer,
                    run.failure.message if run.failure else None,
                    len(run.plan) if run.plan else 0,
                    " ".join(accounts),
                    total.usage.input_tokens + total.usage.output_tokens,
                    str(total.dollars),
                    self._next // _MOST_EVENTS,
                ),
            )
        self._rows = []
        self._journal._under_way.discard(self._next // _MOST_EVENTS)


def _kept(event: Event) -> tuple[bool, bool]:
    """Whether an event is kept, and whether something may depend on it."""
    match event:
        case StepDelta() | PlanDelta() | StepStarted() | PlanStarted():
            return False, False
        case CallRetried():
            return True, False
        case NestedEvent():
            return _kept(event.event)
        case _:
            return True, True


def _serialize(event: Event) -> bytes:
    kind: Any = type(event)
    return _serializer(kind).to_json(event)


@cache
def _serializer(kind: Any) -> SchemaSerializer:
    """Of one class of events: half as dear as that of them all."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind).serializer


@cache
def _event_adapter() -> TypeAdapter[Event]:
    from pydantic import Field, TypeAdapter

    return TypeAdapter(Annotated[Event, Field(discriminator="kind")])


# --- calls that need not be made twice -------------------------------------------------------


class CallCache:
    """Completions by what was called: worker (its identity), messages, parameters.

    For training and evaluation, where the same call comes again and again. It answers a sampled
    call always with the same completion; give calls that are to differ a seed each.

    Args:
        path: The file; a journal's own will do.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = _File(path, synchronous="normal")
        self.hits = 0
        self.misses = 0

    def get(self, worker: Worker, call: Call) -> Completion | None:
        """The completion of an equal call, if there is one.

        Raises:
            JournalError: If the file can't be read.
        """
        with self._file.connected() as connection:
            row = connection.execute(
                "SELECT completion FROM call WHERE key = ?", (_key(worker, call),)
            ).fetchone()
        if row is None:
            self.misses += 1
            return None
        self.hits += 1
        return _completion_adapter().validate_json(row[0])

    def put(self, worker: Worker, call: Call, completion: Completion) -> None:
        """Keep a completion; the first one stays.

        Raises:
            JournalError: If the file can't be written.
        """
        body = _completion_adapter().dump_json(completion)
        with self._file.connected() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO call VALUES (?, ?, ?)",
                (_key(worker, call), worker.name, body),
            )

    def close(self) -> None:
        """Close the file; it opens again at the next use."""
        self._file.close()


def _key(worker: Worker, call: Call) -> bytes:
    """A digest of all that decides a completion; parts carry their length, so none can pass into
    the next."""
    digest = sha256()
    for part in (worker.identity.encode(), _call_adapter().dump_json(call)):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


@cache
def _call_adapter() -> TypeAdapter[Call]:
    from pydantic import TypeAdapter

    return TypeAdapter(Call)


@cache
def _completion_adapter() -> TypeAdapter[Completion]:
    from pydantic import TypeAdapter

    return TypeAdapter(Completion)
