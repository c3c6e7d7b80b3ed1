"""The journal: every run, its events, and so every finished call, in one SQLite file.

What is guaranteed: an event is committed before anything depends on it or anybody hears of it, so
a process that is killed at any moment loses no finished call, and a run that goes on makes none
again. The file is in WAL mode with synchronous NORMAL: that holds against the death of the process;
against the loss of power it needs ``synchronous="full"``, which waits for the disk at every commit.

What is told again later is left out: pieces of text, which the whole has, and the starts of steps
and of attempts to plan, since results have their times and what was seen.
"""

from __future__ import annotations

import errno
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, fields
from decimal import Decimal
from functools import cache
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from .errors import JournalError
from .run import (
    PASSING,
    Emit,
    Event,
    NestedEvent,
    PlanParsed,
    Record,
    Run,
    RunFinished,
    RunResumed,
    RunStarted,
    RunState,
)
from .worker import Call, Completion, Message, Sampling, Worker

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import SchemaSerializer

_VERSION = 1
_APPLICATION = 0x434E4454  # "CNDT"
_MOST_EVENTS = 2**20  # of one run: an event's id is the run's number and its own in one integer
_BUSY_MS = 5_000
_WAL_BYTES = 2**22  # what one large event made longer is cut to this again

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
                yield self._connection or self._open()
            except sqlite3.Error as error:
                raise self._told(error) from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the connection for statements that all happen, or none; raises as ``connected``."""
        with self._lock:  # what `connected` and `_transaction` do, at half their price
            try:
                connection = self._connection or self._open()
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    _roll_back(connection)
                    raise
            except sqlite3.Error as error:
                raise self._told(error) from error

    def execute(self, statement: str, values: Sequence[int | str | bytes]) -> None:
        """Do one statement that is a transaction by itself; raises as ``connected``."""
        with self._lock:  # what `connected` does, at a third of its price
            try:
                (self._connection or self._open()).execute(statement, values)
            except sqlite3.Error as error:
                raise self._told(error) from error

    def close(self) -> None:
        """Close the file; it opens again at the next use."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _open(self) -> sqlite3.Connection:
        try:
            self._make_private()
        except OSError as error:
            raise self._told(error) from error
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _make_private(self) -> None:
        """Make the file, if it is not there, and let nobody else read it.

        SQLite gives its side files the mode of this one, so it comes first. A file that is there is
        opened by SQLite alone: closing it would give up all locks that this process has on it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(FileExistsError):
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        mode = self.path.stat().st_mode
        if not os.access(self.path, os.R_OK | os.W_OK):
            reason = "its mode or its disk forbids to write it"
            raise OSError(errno.EACCES, reason)
        if mode & 0o077 and self._is_ours_at_first_sight():
            self.path.chmod(0o600)

    def _is_ours_at_first_sight(self) -> bool:
        if self.path.stat().st_size == 0:
            return True
        address = f"{self.path.resolve().as_uri()}?mode=ro&immutable=1"  # makes no side files
        with closing(sqlite3.connect(address, uri=True)) as connection:
            try:
                found = connection.execute("PRAGMA application_id").fetchone()
            except sqlite3.DatabaseError:
                return False
        return bool(found == (_APPLICATION,))

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        with _transaction(connection, "DEFERRED"):
            new = self._is_new(connection)  # before a byte is changed: it may be another's
        if new:
            with _transaction(connection):
                if self._is_new(connection):  # and no other process was faster
                    for statement in _TABLES.split(";"):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                    connection.execute(f"PRAGMA user_version = {_VERSION}")
        _use_wal(connection)
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        connection.create_function("folded", 1, str.casefold, deterministic=True)

    def _is_new(self, connection: sqlite3.Connection) -> bool:
        """Whether the file is empty.

        Raises:
            JournalError: If it is neither that nor a journal that we can read.
        """
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application == 0 and version == 0 and tables == 0:
            return True
        if application != _APPLICATION:
            told = "a database of another program, no journal; name another file"
            raise JournalError(f"journal {self.path}: {told}")
        if version > _VERSION:
            told = f"written by a newer version of conductor (format {version})"
            raise JournalError(f"journal {self.path}: {told}; upgrade, or name another file")
        return False

    def _told(self, error: Exception) -> JournalError:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        name = getattr(error, "sqlite_errorname", "")  # those of Python's own module have none
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            name = "SQLITE_FULL"
        usual = "name a file that can be written, or go without a journal"
        remedy = next((text for kind, text in _REMEDIES.items() if name.startswith(kind)), usual)
        return JournalError(f"journal {self.path}: {reason}; {remedy}")


_REMEDIES = {
    "SQLITE_FULL": "free some space; what was committed before is safe",
    "SQLITE_NOTADB": "it is no journal; name another file",
    "SQLITE_CORRUPT": "the file is damaged; move it away, `sqlite3 FILE .recover` may read it",
    "SQLITE_BUSY": "another process writes to it without pause; try again",
    "SQLITE_CONSTRAINT": "another process goes on with the same run; leave it to that one",
    "SQLITE_IOERR": "the disk fails or is full; what was committed before is safe",
}
"""What to do, by the beginning of SQLite's name for what happened."""


def _use_wal(connection: sqlite3.Connection) -> None:
    give_up = time.monotonic() + _BUSY_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:  # here alone SQLite itself does not wait
            busy = error.sqlite_errorname.startswith("SQLITE_BUSY")
            if not busy or time.monotonic() > give_up:
                raise
            time.sleep(0.005)


@contextmanager
def _transaction(
    connection: sqlite3.Connection, kind: Literal["IMMEDIATE", "DEFERRED"] = "IMMEDIATE"
) -> Iterator[None]:
    connection.execute(f"BEGIN {kind}")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        _roll_back(connection)
        raise


def _roll_back(connection: sqlite3.Connection) -> None:
    with suppress(sqlite3.Error):  # a full disk has rolled back already
        connection.execute("ROLLBACK")


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

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    def before(self, emit: Emit) -> Emit:
        """Make what keeps the events of one run and then passes each on to ``emit``.

        It raises JournalError, which stops the run, where an event can't be kept.
        """
        return _Writer(self._file, self._host, emit)

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
        with self._file.connected() as connection:
            rows = connection.execute(
                "SELECT id, started, state, query, seconds, steps, workers, tokens, dollars, "
                "answer, failure, parent, host, process FROM run "
                "WHERE (?1 = '' OR state = ?1) AND started >= ?2 "
                "AND (instr(folded(query), ?3) OR instr(folded(coalesce(answer, '')), ?3)) "
                "ORDER BY number DESC",
                (state or "", since, contains.casefold()),
            )
            found = (self._summary(row) for row in rows)
            return list(islice((each for each in found if worker in ("", *each.workers)), most))

    def _summary(self, row: tuple[Any, ...]) -> RunSummary:
        run, started, state, query, *totals, parent, host, process = row
        if state == RunState.RUNNING:  # its row is filled in at the end
            totals = list(_totals(self.run(run)))
        seconds, steps, workers, tokens, dollars, answer, failure = totals
        return RunSummary(
            id=run,
            started=started,
            state=RunState(state),
            query=query,
            seconds=seconds,
            steps=steps,
            workers=tuple(workers.split()),
            tokens=tokens,
            dollars=Decimal(dollars),
            answer=answer,
            failure=failure,
            parent=parent,
            alive=state == RunState.RUNNING and self._works(run, host, process) is True,
        )

    def events(self, run: str) -> list[Event]:
        """The events of a run, without the pieces of text.

        Args:
            run: Id of the run, or the beginning of it.

        Raises:
            JournalError: If there is no such run, or there are several.
        """
        return self._read(run)[0]

    def lines(self, run: str, *, after: int = 0) -> list[bytes]:
        """The events of a run as they are kept: each a JSON object with its ``kind``.

        Args:
            run: Id of the run, or the beginning of it.
            after: Leave so many of the first ones out.

        Raises:
            JournalError: If there is no such run, or there are several.
        """
        return self._bodies(run, after)[1]

    def record(self, run: str) -> Record:
        """The record of a run, which can go on if the run has not ended; raises as ``events``."""
        return self._read(run)[1]

    def run(self, run: str) -> Run:
        """A run, whole or as far as it came; raises as ``events``."""
        return self.record(run).run

    def _read(self, run: str) -> tuple[list[Event], Record]:
        identifier, bodies = self._bodies(run)
        events: list[Event] = []
        record = Record()
        try:
            for body in bodies:
                events.append(_event_adapter().validate_json(body))
                record.add(events[-1])
        except ValueError as error:
            told = f"run {identifier}: its event {len(events)} can't be read"
            remedy = "the file is damaged; `conductor forget` takes the run out"
            raise JournalError(f"journal {self.path}: {told}; {remedy}") from error
        return events, record

    def _bodies(self, run: str, after: int = 0) -> tuple[str, list[bytes]]:
        number, identifier = self._find(run)
        first = number * _MOST_EVENTS
        with self._file.connected() as connection:
            rows = connection.execute(
                "SELECT body FROM event WHERE id >= ? AND id < ? ORDER BY id",
                (first + after, first + _MOST_EVENTS),
            ).fetchall()
        return identifier, [body for (body,) in rows]

    @contextmanager
    def resumed(
        self, run: str, emit: Emit, *, force: bool = False
    ) -> Iterator[tuple[Record, Emit]]:
        """Make a run this process's own, to go on with it.

        Args:
            run: Id of the run, or the beginning of it.
            emit: Gets each event after it was kept.
            force: Also if another process seems to work at it. If one does, whoever of the two
                writes first goes on, and the other is stopped.

        Yields:
            Its record, to be written on, and what keeps its further events.

        Raises:
            JournalError: If another process works at it, or if there is no such run.
        """
        number, identifier = self._find(run)
        with self._file.transaction() as connection:
            before = connection.execute(
                "SELECT state, host, process FROM run WHERE number = ?", (number,)
            ).fetchone()
            if before[0] == RunState.RUNNING and not force:
                self._check_owner(identifier, *before[1:])
            mine = (RunState.RUNNING, self._host, os.getpid())
            connection.execute(_OWN, (*mine, number))
        _AT_WORK.add(identifier)
        writer = None
        try:
            events, record = self._read(identifier)
            writer = _Writer(self._file, self._host, emit)
            writer.resume(number, identifier, events)
            yield record, writer
        finally:
            _AT_WORK.discard(identifier)
            if writer is None or not writer.resumed:
                with suppress(JournalError):  # what is raised already matters more
                    self._file.execute(_OWN, (*before, number))

    def _check_owner(self, run: str, host: str, process: int) -> None:
        works = self._works(run, host, process)
        if works is None:
            told = f"run {run} was begun on {host}; if it does not run there any more, use force"
            raise JournalError(told)
        if works:
            told = f"run {run} is under way in process {process}; wait for it, stop it or use force"
            raise JournalError(told)

    def _works(self, run: str, host: str, process: int) -> bool | None:
        """Whether a process works at a run; None if that can't be told from here."""
        if host != self._host:
            return None
        return run in _AT_WORK if process == os.getpid() else _is_alive(process)

    def forget(self, *, before: str = "", keep: int | None = None) -> int:
        """Delete runs, but none that may be under way.

        Args:
            before: Those started before this date or time, ISO 8601, UTC.
            keep: All but the latest so many.

        Returns:
            How many were deleted.

        Raises:
            ValueError: If ``keep`` is negative.
        """
        if keep is not None and keep < 0:
            raise ValueError(f"keep is {keep}; give the number of runs to keep, at least 0")
        with self._file.transaction() as connection:
            rows = connection.execute(
                "SELECT number, id, started, state, host, process FROM run ORDER BY number DESC"
            ).fetchall()
            gone = [
                number
                for at, (number, run, started, state, host, process) in enumerate(rows)
                if (started < before or (keep is not None and at >= keep))
                and (state != RunState.RUNNING or self._works(run, host, process) is False)
            ]
            for number in gone:
                first = number * _MOST_EVENTS
                connection.execute(
                    "DELETE FROM event WHERE id >= ? AND id < ?", (first, first + _MOST_EVENTS)
                )
                connection.execute("DELETE FROM run WHERE number = ?", (number,))
        if gone:
            with self._file.connected() as connection, suppress(sqlite3.OperationalError):
                # Gives the space back and wipes what was there; not while others are at it.
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return len(gone)

    def check(self) -> list[str]:
        """What SQLite finds wrong with the file; empty if it is sound."""
        with self._file.connected() as connection:
            try:
                found = connection.execute("PRAGMA integrity_check").fetchall()
            except sqlite3.DatabaseError as error:
                if error.sqlite_errorname.startswith("SQLITE_CORRUPT"):  # it may not get through
                    return [str(error)]
                raise
        return [text for (text,) in found if text != "ok"]

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
            which = "no run at all" if run == "last" else f"no run {run}"
            raise JournalError(f"journal {self.path}: there is {which}; {known}")
        if len(found) > 1 and found[0][1] != run:
            raise JournalError(f"journal {self.path}: several runs begin with {run}; {known}")
        number, identifier = found[0]
        return int(number), str(identifier)


_AT_WORK: set[str] = set()
"""Ids of the runs that this process works at, through whatever Journal."""
_OWN = "UPDATE run SET state = ?, host = ?, process = ? WHERE number = ?"


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


def _totals(run: Run) -> tuple[float, int, str, int, str, str | None, str | None]:
    """Seconds, steps, workers, tokens, dollars, answer and failure, as the table has them."""
    accounts = run.accounts
    total = sum(accounts.values(), run.orchestration)
    return (
        run.seconds,
        len(run.plan) if run.plan else 0,
        " ".join(accounts),
        total.usage.input_tokens + total.usage.output_tokens,
        str(total.dollars),
        run.answer,
        run.failure.message if run.failure else None,
    )


_INSERT = "INSERT INTO event VALUES (?, ?, ?)"


class _Writer:
    """Keeps the events of one run, each committed before it is passed on."""

    def __init__(self, file: _File, host: str, then: Emit) -> None:
        self._file = file
        self._host = host
        self._then = then
        self._record = Record()
        self._run = ""
        self._number = -1
        self._next = -1
        self._opening: RunStarted | None = None
        """A beginning whose plan follows at once: both are kept together, and only then told."""
        self.resumed = False
        """Whether a run that was stopped goes on."""

    def __call__(self, event: Event) -> None:
        inner = event
        while isinstance(inner, NestedEvent):
            inner = inner.event
        try:
            opening, self._opening = self._opening, None
            if isinstance(event, RunStarted) and event.plan is not None:
                self._opening = event
                return
            together = opening is not None and isinstance(event, PlanParsed)
            if opening is not None:
                self._begin(opening, *((event,) if together else ()))
                self._then(opening)
            if not together and type(inner) not in PASSING:
                self._keep(event)
            self._then(event)
        except BaseException:  # nothing more will come, so another may go on with the run
            _AT_WORK.discard(self._run)
            raise

    def _written(self, event: Event) -> bytes:
        try:
            return _serialize(event)
        except ValueError as error:
            raise JournalError(f"journal {self._file.path}: {event.kind}: {error}") from error

    def _keep(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._begin(event)
            return
        body = self._written(event)
        if self._next < 0:
            raise JournalError("a run goes on that was not taken from this journal")
        if self._next // _MOST_EVENTS != self._number:
            told = f"run {self._run} has {_MOST_EVENTS:,} events, more than fit; bound its budget"
            raise JournalError(f"journal {self._file.path}: {told}")
        self._record.add(event)
        row = (self._next, event.kind, body)
        if isinstance(event, RunFinished):
            self._finish(row)
        else:
            self._file.execute(_INSERT, row)
        self._next += 1
        self.resumed = self.resumed or isinstance(event, RunResumed)

    def _begin(self, event: RunStarted, *more: Event) -> None:
        kept = [(each.kind, self._written(each)) for each in (event, *more)]
        for each in (event, *more):
            self._record.add(each)
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
                    self._host,
                    os.getpid(),
                ),
            )
            assert cursor.lastrowid is not None
            first = cursor.lastrowid * _MOST_EVENTS
            for at, (kind, body) in enumerate(kept, first):
                connection.execute(_INSERT, (at, kind, body))
        self._number, self._run = cursor.lastrowid, event.run
        self._next = first + len(kept)
        _AT_WORK.add(event.run)

    def resume(self, number: int, run: str, events: Sequence[Event]) -> None:
        """Go on with a run that is in the journal."""
        for event in events:
            self._record.add(event)
        self._number, self._run = number, run
        self._next = number * _MOST_EVENTS + len(events)

    def _finish(self, row: tuple[int, str, bytes]) -> None:
        run = self._record.run
        with self._file.transaction() as connection:
            connection.execute(_INSERT, row)
            connection.execute(
                "UPDATE run SET state = ?, seconds = ?, steps = ?, workers = ?, tokens = ?, "
                "dollars = ?, answer = ?, failure = ? WHERE number = ?",
                (run.state, *_totals(run), self._number),
            )
        _AT_WORK.discard(self._run)


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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _key(worker: Worker, call: Call) -> bytes:
    """A digest of all that decides a completion; parts carry their length, so none can pass into
    the next."""
    digest = sha256()
    body = _call_adapter().dump_json(call, exclude=_unsaid(call))
    for part in (worker.identity.encode(), body):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


_FIRST_FIELDS: dict[type, frozenset[str]] = {
    Call: frozenset({"messages", "sampling", "grammar"}),
    Message: frozenset({"role", "content"}),
    Sampling: frozenset({"temperature", "top_p", "max_tokens", "seed", "stop"}),
}
"""Those that are in every digest; later ones are only where they say something, so that what was
kept before they came is still found."""


def _unsaid(call: Call) -> dict[str, Any]:
    """The later fields that say nothing, in pydantic's form of what to leave out."""
    left_out: dict[str, Any] = dict.fromkeys(_defaults(call), True)
    if sampling := _defaults(call.sampling):
        left_out["sampling"] = sampling
    messages = {at: unsaid for at, each in enumerate(call.messages) if (unsaid := _defaults(each))}
    if messages:
        left_out["messages"] = messages
    return left_out


def _defaults(value: Call | Message | Sampling) -> set[str]:
    return {
        each.name
        for each in fields(value)
        if each.name not in _FIRST_FIELDS[type(value)] and getattr(value, each.name) == each.default
    }


@cache
def _call_adapter() -> TypeAdapter[Call]:
    from pydantic import TypeAdapter

    return TypeAdapter(Call)


@cache
def _completion_adapter() -> TypeAdapter[Completion]:
    from pydantic import TypeAdapter

    return TypeAdapter(Completion)
