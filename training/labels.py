"""Labels: how right each worker is on each task, measured call by call and kept in a folder.

The folder holds ``labels.jsonl`` (a row a call, in the order in which they ended), ``tasks.jsonl``
(the tasks, in the order of the matrix) and ``manifest.json`` (the workers in order, and how it was
measured). Rows are only ever appended: the last one of a task, worker and repeat counts, and a last
line that a kill cut off does not.

Workers are called through the runtime, with the messages that they get when they are picked for a
query. Each repeat is a draw of its own. A model in this process decodes each with a seed of its
own; a server draws anew by itself, and is sent seeds only if the pool file gives it one, since some
refuse to take any. A model in this process that decodes greedily would say the same again, so it
is asked once.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import anyio.to_thread
import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from grammar import Plan
from runtime import (
    Attempt,
    Budget,
    Cache,
    Call,
    CallCache,
    Completion,
    ConductorWorker,
    Endpoint,
    Failure,
    FailureKind,
    FinishReason,
    Ledger,
    LocalWorker,
    Pool,
    RunStarted,
    Sampling,
    Session,
    Usage,
    Worker,
    WorkerError,
    mended,
    no_listener,
    step_messages,
)

from .graders import Code, Gym, Maths, grade
from .tasks import Task, TaskError, read_jsonl, write_jsonl

ROWS, TASKS, MANIFEST, CALLS = "labels.jsonl", "tasks.jsonl", "manifest.json", "calls.db"
PATIENCE = 10
"""Failures in a row after which a worker is not asked any more."""


class LabelsError(Exception):
    """Labels can't be read, written or joined; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Row:
    """One call of a worker on a task, and how right its reply was."""

    task: str
    """Id of the task."""
    worker: str
    repeat: int
    """From 0; each is a draw of its own."""
    score: float | None
    """From 0 to 1; None where the call failed for technical reasons."""
    reply: str = ""
    usage: Usage | None = None
    seconds: float = 0.0
    """From asking to the whole reply, waiting for a turn included."""
    dollars: Decimal | None = None
    """What the reply costs; None where tokens or price are unknown."""
    paid: Decimal = Decimal(0)
    """What was spent on it, calls that came to nothing included; 0 if it was cached."""
    calls: int = 1
    """Calls made for it: 0 if it was cached, more than 1 if some came to nothing."""
    failure: Failure | None = None
    finish_reason: FinishReason = FinishReason.STOP
    identity: str = ""
    """Digest of the worker's identity: rows of a worker that has changed don't count."""

    @property
    def key(self) -> tuple[str, str, int]:
        """Task, worker, repeat."""
        return self.task, self.worker, self.repeat


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """The matrix of success: tasks, workers, repeats."""

    tasks: tuple[Task, ...]
    workers: tuple[str, ...]
    scores: NDArray[np.float32]
    """(T, W, R), from 0 to 1; NaN where a call failed for technical reasons or was not made."""

    def __post_init__(self) -> None:
        shape = self.scores.shape
        if shape[:2] != (len(self.tasks), len(self.workers)) or len(shape) != 3:
            expected = f"({len(self.tasks)}, {len(self.workers)}, R)"
            raise LabelsError(
                f"scores have the shape {shape}; tasks and workers ask for {expected}"
            )
        scores = np.asarray(self.scores, dtype=np.float32).copy()
        scores.setflags(write=False)
        object.__setattr__(self, "scores", scores)

    @property
    def means(self) -> NDArray[np.float32]:
        """(T, W): means over the repeats that were measured; NaN where none was."""
        measured = ~np.isnan(self.scores)
        counts = measured.sum(axis=2)
        sums = np.where(measured, self.scores, 0.0).sum(axis=2)
        means = np.full(counts.shape, np.nan, np.float32)
        np.divide(sums, counts, out=means, where=counts > 0, casting="same_kind")
        return means

    @property
    def families(self) -> tuple[str, ...]:
        """Families of the tasks, each once, in order of appearance."""
        return tuple(dict.fromkeys(task.family for task in self.tasks))

    def only(self, *workers: str) -> Labels:
        """Keep these workers, in the order given.

        Raises:
            LabelsError: If one was not measured.
        """
        for worker in workers:
            if worker not in self.workers:
                known = ", ".join(self.workers)
                raise LabelsError(f"no worker {worker!r} was measured; there are: {known}")
        columns = [self.workers.index(worker) for worker in workers]
        return Labels(self.tasks, workers, self.scores[:, columns])

    def where(self, keep: Sequence[bool] | NDArray[np.bool_]) -> Labels:
        """Keep the tasks for which ``keep`` (T,) is true."""
        chosen = np.asarray(keep, dtype=bool)
        tasks = tuple(task for task, kept in zip(self.tasks, chosen, strict=True) if kept)
        return Labels(tasks, self.workers, self.scores[chosen])

    def complete(self) -> Labels:
        """Keep the tasks on which every worker was measured at least once."""
        return self.where(~np.asarray(np.isnan(self.means).any(axis=1)))

    def merged(self, other: Labels) -> Labels:
        """Join with labels of other workers on the same tasks, or of other tasks.

        Workers of the second that the first has too replace those of the first. The tasks are
        those of the first, then those that only the second has; what neither measured is NaN.
        """
        tasks = {task.id: task for task in (*self.tasks, *other.tasks)}
        workers = tuple(dict.fromkeys((*self.workers, *other.workers)))
        repeats = max(self.scores.shape[2], other.scores.shape[2])
        scores = np.full((len(tasks), len(workers), repeats), np.nan, np.float32)
        rows = {task: row for row, task in enumerate(tasks)}
        for each in (self, other):
            for column, worker in enumerate(each.workers):
                at = [rows[task.id] for task in each.tasks]
                scores[at, workers.index(worker), :] = np.nan
                scores[at, workers.index(worker), : each.scores.shape[2]] = each.scores[:, column]
        return Labels(tuple(tasks.values()), workers, scores)

    def write(self, folder: str | Path) -> None:
        """Write the matrix to a new folder, without replies; :func:`read` gives it back.

        Raises:
            LabelsError: If the folder has labels already.
        """
        target = Path(folder)
        if (target / ROWS).exists():
            raise LabelsError(f"{target / ROWS} is there already; name another folder")
        target.mkdir(parents=True, exist_ok=True)
        write_jsonl(self.tasks, target / TASKS)
        rows = (
            Row(task.id, worker, repeat, float(score), calls=0)
            for task, by_worker in zip(self.tasks, self.scores, strict=True)
            for worker, by_repeat in zip(self.workers, by_worker, strict=True)
            for repeat, score in enumerate(by_repeat)
            if not np.isnan(score)
        )
        (target / ROWS).write_bytes(b"".join(map(line_of, rows)))
        workers: dict[str, Any] = {name: {} for name in self.workers}
        write_manifest(target, {"workers": workers, "repeats": self.scores.shape[2]})


def read(folder: str | Path) -> Labels:
    """Read the labels of a folder, whole or as far as their collection came.

    Raises:
        LabelsError: If there are none, or they can't be read.
    """
    source = Path(folder)
    manifest = read_manifest(source)
    try:
        tasks = tuple(read_jsonl(source / TASKS))
    except TaskError as error:
        raise LabelsError(f"no labels in {source}: {error}") from error
    return matrix(tasks, manifest, read_rows(source).values())


def matrix(tasks: Sequence[Task], manifest: Mapping[str, Any], rows: Iterable[Row]) -> Labels:
    """Make the matrix of rows; the repeats of a worker that was asked once are all the same."""
    workers: Mapping[str, Mapping[str, Any]] = manifest["workers"]
    names = tuple(workers)
    scores = np.full((len(tasks), len(names), int(manifest["repeats"])), np.nan, np.float32)
    at = {task.id: index for index, task in enumerate(tasks)}
    for row in rows:
        about = workers.get(row.worker)
        if about is None or row.task not in at or row.score is None:
            continue
        if row.identity != about.get("digest", row.identity):
            continue
        place = slice(None) if about.get("asked") == 1 else row.repeat
        if isinstance(place, slice) or place < scores.shape[2]:
            scores[at[row.task], names.index(row.worker), place] = row.score
    return Labels(tuple(tasks), names, scores)


def read_rows(folder: str | Path) -> dict[tuple[str, str, int], Row]:
    """Read the rows of a folder: the last one of each task, worker and repeat.

    Raises:
        LabelsError: If a line but the last one is no row.
    """
    return {row.key: row for row in all_rows(folder)}


def all_rows(folder: str | Path) -> Iterator[Row]:
    """Read every row ever appended, in order; raises as :func:`read_rows`."""
    path = Path(folder) / ROWS
    if not path.exists():
        return
    *lines, _ = path.read_bytes().split(b"\n")  # what follows the last line end was cut off
    for number, line in enumerate(lines, start=1):
        try:
            yield _row_adapter().validate_json(line)
        except ValidationError as error:
            told = error.errors()[0]["msg"]
            raise LabelsError(f"{path}:{number}: not a row of labels: {told}") from error


def line_of(row: Row) -> bytes:
    """Write a row as a line."""
    return _row_adapter().dump_json(row) + b"\n"


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Read the manifest of a folder.

    Raises:
        LabelsError: If there is none.
    """
    path = Path(folder) / MANIFEST
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        remedy = "`conductor labels` makes a folder of labels"
        raise LabelsError(f"no labels in {folder}: {error}; {remedy}") from error
    return found


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest whole or not at all."""
    fresh = folder / f".{MANIFEST}"
    fresh.write_text(json.dumps(manifest, indent=1, default=str) + "\n", encoding="utf-8")
    os.replace(fresh, folder / MANIFEST)


def digest_of(text: str) -> str:
    """A short digest."""
    return sha256(text.encode()).hexdigest()[:16]


@cache
def _row_adapter() -> TypeAdapter[Row]:
    return TypeAdapter(Row)


# --- collecting -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asking:
    """One call that is to be made."""

    task: Task
    worker: str
    repeat: int
    call: Call
    """What the worker gets."""
    known_as: Call
    """Under what the cache keeps the reply: a draw of its own for each repeat."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a collection has to do, and what it has already."""

    tasks: tuple[Task, ...]
    manifest: Mapping[str, Any]
    """Of the folder, as it will be: with the workers that it has already."""
    rows: tuple[Row, ...]
    """Rows that count already."""
    askings: tuple[Asking, ...]
    """Calls to make; those that failed before are among them."""
    left_out: tuple[str, ...] = ()
    """Workers that are no models."""


def order(
    tasks: Sequence[Task],
    pool: Pool,
    *,
    folder: str | Path,
    repeats: int = 1,
    seed: int = 0,
    about: Mapping[str, Any] = {},
) -> Order:
    """Work out what is to be asked; nothing is called or written.

    Args:
        tasks: What is asked, each once.
        pool: Who is asked. Workers that the folder has already stay in it.
        folder: Where the labels go.
        repeats: Draws of each worker on each task.
        seed: Chooses the draws.
        about: Where the tasks are from, for the manifest.

    Raises:
        LabelsError: If the folder is one of other tasks, or was begun with another seed.
    """
    target = Path(folder)
    models = [each for each in pool if not isinstance(each, ConductorWorker)]
    asked = {each.name: 1 if _decodes_greedily(each) else repeats for each in models}
    digests = {each.name: digest_of(each.identity) for each in models}
    past = read_manifest(target) if (target / MANIFEST).exists() else {}
    if past:
        _check_same(target, past, tasks, seed)
    described: dict[str, dict[str, Any]] = {
        each.name: {
            "digest": digests[each.name],
            "identity": json.loads(each.identity) if each.identity.startswith("{") else "",
            "card": each.card,
            "asked": asked[each.name],
            "greedy": _decodes_greedily(each),
            "seeded": _takes_seed(each),
        }
        for each in models
    }
    manifest: dict[str, Any] = {
        "version": 1,
        "made_with": f"conductor-lm {version('conductor-lm')}",
        "pool": Path(pool.source).name,
        "workers": {**past.get("workers", {}), **described},
        "repeats": max(repeats, int(past.get("repeats", 1))),
        "seed": seed,
        "tasks": len(tasks),
        "families": dict(Counter(task.family for task in tasks)),
        "graders": dict(Counter(task.grader.kind for task in tasks)),
        "about": {**past.get("about", {}), **about},
    }
    told = json.dumps([[task.id for task in tasks], digests, repeats, seed])
    manifest["digest"] = digest_of(told)
    known = {
        row.key: row
        for row in read_rows(target).values()
        if row.identity == manifest["workers"].get(row.worker, {}).get("digest")
    }
    done = {key for key, row in known.items() if row.score is not None}
    askings = tuple(
        _asking(task, worker, repeat, seed, once=asked[worker.name] == 1)
        for task in tasks
        for repeat in range(repeats)
        for worker in models
        if repeat < asked[worker.name] and (task.id, worker.name, repeat) not in done
    )
    left_out = tuple(each.name for each in pool if each not in models)
    rows = tuple(row for key, row in known.items() if key in done)
    return Order(tuple(tasks), manifest, rows, askings, left_out)


def _check_same(folder: Path, past: Mapping[str, Any], tasks: Sequence[Task], seed: int) -> None:
    if past.get("seed", seed) != seed:
        told = f"was begun with seed {past['seed']}, and is asked to go on with {seed}"
        raise LabelsError(f"{folder} {told}; give that seed, or another folder")
    here = {task.id for task in tasks}
    gone = [task for task in read_jsonl(folder / TASKS) if task.id not in here]
    if gone:
        told = f"has labels of {len(gone)} other tasks, such as {gone[0].question!r}"
        raise LabelsError(f"{folder} {told}; name another folder, or give those tasks too")


def asked_messages(task: Task, worker: str) -> tuple[Any, ...]:
    """Messages of a worker that is picked for a task, as the runtime builds them."""
    question = mended(task.question)
    return step_messages(Plan.of([question], [worker], [[]]), 0, question, {})


def _asking(task: Task, worker: Worker, repeat: int, seed: int, *, once: bool) -> Asking:
    plain = Call(asked_messages(task, worker.name))
    if once:
        return Asking(task, worker.name, repeat, plain, plain)
    digest = sha256(f"{seed} {task.id} {repeat}".encode()).digest()
    draw = replace(plain, sampling=Sampling(seed=int.from_bytes(digest[:4]) >> 1))
    if _takes_seed(worker):
        return Asking(task, worker.name, repeat, draw, draw)
    # The first draw is kept as what any run asks, so that both share it.
    return Asking(task, worker.name, repeat, plain, draw if repeat else plain)


def _decodes_greedily(worker: Worker) -> bool:
    return isinstance(worker, LocalWorker) and not worker.sampling.temperature


def _takes_seed(worker: Worker) -> bool:
    if not isinstance(worker, Endpoint):
        return True
    return "seed" in json.loads(worker.identity).get("sampling", {})


async def collect(
    tasks: Sequence[Task],
    pool: Pool,
    *,
    folder: str | Path,
    repeats: int = 1,
    seed: int = 0,
    cache: Cache | None = None,
    budget: Budget = Budget(),
    concurrency: int = 16,
    progress: Callable[[Row], None] = lambda row: None,
    about: Mapping[str, Any] = {},
) -> Labels:
    """Ask every worker every task and grade the replies; goes on where it was stopped.

    A call that fails for technical reasons is tried again as the worker's terms say; after that its
    label is NaN, and it is asked again when the collection goes on. A reply without text is a wrong
    answer. Fallbacks don't stand in: a label is the worker's own.

    Args:
        tasks: What is asked, each once.
        pool: Who is asked, on the pool's terms. Conductors among the workers are left out.
        folder: Where the labels go. What it has already is not asked again.
        repeats: Draws of each worker on each task.
        seed: Chooses the draws.
        cache: Replies of earlier calls; a file in the folder if None.
        budget: What may be spent on this folder, earlier calls included: dollars, tokens, calls.
            After its seconds no call is begun. Calls that are under way are let end, so dollars and
            tokens may go over it by those.
        concurrency: Most calls of one worker at the same time, if its terms do not say less.
        progress: Gets each row once it is written.
        about: Where the tasks are from, for the manifest.

    Returns:
        The labels of the folder; the manifest says if and why some are missing.

    Raises:
        LabelsError: If the folder is one of other tasks or seeds, or another process writes to it.
        GraderError: If a task can't be graded here; nothing is called then.
        JournalError: If the cache can't be read or written.
    """
    target = Path(folder)
    with _appending(target) as write:
        wanted = order(tasks, pool, folder=target, repeats=repeats, seed=seed, about=about)
        await _check_graders(wanted.tasks)
        write_jsonl(wanted.tasks, target / f".{TASKS}")
        os.replace(target / f".{TASKS}", target / TASKS)
        write_manifest(target, wanted.manifest)
        kept = CallCache(target / CALLS) if cache is None else cache
        collection = _Collection(wanted, pool, kept, budget, write, progress)
        for row in all_rows(target):
            collection.take_stock(row)
        try:
            await collection.run(concurrency)
        finally:
            if isinstance(kept, CallCache) and cache is None:
                kept.close()
            write_manifest(target, {**wanted.manifest, **collection.outcome(target)})
    return read(target)


async def _check_graders(tasks: Sequence[Task]) -> None:
    """Grade one reply with each kind of grader, so that a missing part is told before any call."""
    samples = {(each.grader.kind, getattr(each.grader, "name", "")): each for each in tasks}
    for each in samples.values():
        await _graded(each, "")


_SLOW = (Code, Maths, Gym)
"""Graders that start a process or may compute long: they work beside the event loop."""


async def _graded(task: Task, reply: str) -> float:
    if isinstance(task.grader, _SLOW):
        return await anyio.to_thread.run_sync(grade, task.grader, reply, task.question)
    return grade(task.grader, reply, task.question)


@contextmanager
def _appending(folder: Path) -> Iterator[Callable[[bytes], None]]:
    """Open the rows for this process alone; cut off what a kill left of a last line."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ROWS
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        _lock(handle, folder)
        text = path.read_bytes()
        os.truncate(handle, text.rfind(b"\n") + 1)

        def write(line: bytes) -> None:
            view = memoryview(line)
            while view:
                view = view[os.write(handle, view) :]

        yield write
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    if sys.platform == "win32":  # it has no such locks; two processes would only ask twice there
        return
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        told = "another process collects into it; wait for it, or name another folder"
        raise LabelsError(f"{folder}: {told}") from error


@dataclass(slots=True)
class _As:
    """A cache that keeps one reply under another call than the one that is made."""

    cache: Cache
    call: Call

    def get(self, worker: Worker, call: Call) -> Completion | None:
        return self.cache.get(worker, self.call)

    def put(self, worker: Worker, call: Call, completion: Completion) -> None:
        self.cache.put(worker, self.call, completion)


class _Collection:
    """A collection under way."""

    def __init__(
        self,
        wanted: Order,
        pool: Pool,
        cache: Cache,
        budget: Budget,
        write: Callable[[bytes], None],
        progress: Callable[[Row], None],
    ) -> None:
        self._wanted = wanted
        self._pool = pool
        self._cache = cache
        self._write = write
        self._progress = progress
        self._ledger = Ledger(budget)
        self._scope = anyio.CancelScope()
        self._ends = time.monotonic() + budget.seconds if budget.seconds is not None else None
        self._stopped = ""
        self._given_up: dict[str, str] = {}
        self._in_a_row: Counter[str] = Counter()
        self._error: Exception | None = None

    def take_stock(self, row: Row) -> None:
        """Enter what an earlier call took."""
        self._ledger.calls += row.calls
        self._ledger.settle(row.usage if row.calls else None, row.paid)

    async def run(self, concurrency: int) -> None:
        """Ask all there is to ask."""
        queues: dict[str, list[Asking]] = {}
        for asking in self._wanted.askings:
            queues.setdefault(asking.worker, []).append(asking)
        async with self._pool:
            with self._scope:
                async with anyio.create_task_group() as group:
                    for name, askings in queues.items():
                        part = self._pool.only(name)  # nobody stands in
                        lanes = part.terms(part[name]).concurrency or concurrency
                        left = iter(askings)
                        for _ in range(min(lanes, concurrency, len(askings))):
                            group.start_soon(self._work, part, left)
        if self._error is not None:
            raise self._error

    async def _work(self, part: Pool, left: Iterator[Asking]) -> None:
        for asking in left:
            if self._ends is not None and time.monotonic() >= self._ends:
                self._stopped = "its seconds are over"
            if self._stopped or asking.worker in self._given_up:
                return
            try:
                row = await self._ask(part, asking)
                if row is None:
                    return
                self._write(line_of(row))
                self._progress(row)
            except Exception as error:  # ends the collection; told once all lanes have ended
                self._error = self._error or error
                self._scope.cancel()
                return
            self._count(row)

    def _count(self, row: Row) -> None:
        if row.failure is None or row.score is not None:
            self._in_a_row[row.worker] = 0
            return
        self._in_a_row[row.worker] += 1
        if self._in_a_row[row.worker] >= PATIENCE:
            self._given_up[row.worker] = row.failure.message

    async def _ask(self, part: Pool, asking: Asking) -> Row | None:
        """Make one call and grade its reply; None if the budget does not allow it."""
        worker = part[asking.worker]
        session = Session(
            asking.task.question, part, no_listener, cache=_As(self._cache, asking.known_as)
        )
        session.ledger, session.scope = self._ledger, self._scope
        moment = datetime.now(UTC).isoformat(timespec="milliseconds")
        session.emit(RunStarted(0.0, uuid4().hex, session.query, part.names, moment))
        lost: list[Attempt] = []
        began = time.monotonic()
        failure, completion, dollars, reused = None, None, None, ""
        try:
            answered = await session.call(worker, asking.call, on_lost=lost.append)
            completion, dollars, reused = answered.completion, answered.dollars, answered.reused
        except WorkerError as error:
            failure = error.failure
        finally:
            self._error = self._error or session.broken
        if failure is not None and failure.kind is FailureKind.BUDGET:
            self._stopped = failure.message
            if not lost:
                return None
        seconds = time.monotonic() - began
        usage = completion.usage if completion else None
        if failure is not None and failure.kind is FailureKind.EMPTY:
            usage, dollars = lost[-1].usage, lost[-1].dollars
        wasted = sum((each.dollars or Decimal(0) for each in lost), Decimal(0))
        spent = dollars if completion and not reused and dollars else Decimal(0)
        reply = completion.text if completion else ""
        answered_nothing = failure is not None and failure.kind is FailureKind.EMPTY
        score = 0.0 if answered_nothing else None
        if completion is not None:
            score = await _graded(asking.task, reply)
        return Row(
            asking.task.id,
            worker.name,
            asking.repeat,
            score,
            reply,
            usage,
            round(seconds, 4),
            self._pool.cost(worker, usage) if reused else dollars,
            wasted + spent,
            len(lost) + (completion is not None and not reused),
            failure,
            completion.finish_reason if completion else FinishReason.STOP,
            self._wanted.manifest["workers"][worker.name]["digest"],
        )

    def outcome(self, folder: Path) -> dict[str, Any]:
        """What came of it, for the manifest."""
        workers = self._wanted.manifest["workers"]
        rows = [r for r in read_rows(folder).values() if r.worker in workers]
        every = list(all_rows(folder))
        failed: dict[str, Counter[str]] = {}
        for row in rows:
            if row.score is None and row.failure is not None:
                failed.setdefault(row.worker, Counter())[row.failure.kind] += 1
        return {
            "labels": sum(row.score is not None for row in rows),
            "wanted": len(self._wanted.rows) + len(self._wanted.askings),
            "failed": failed,
            "given_up": self._given_up,
            "stopped": self._stopped,
            "calls": sum(row.calls for row in every),
            "dollars": str(sum((row.paid for row in every), Decimal(0))),
            "unpriced_calls": sum(row.calls > 0 and row.dollars is None for row in every),
            "input_tokens": sum(row.usage.input_tokens for row in rows if row.usage),
            "output_tokens": sum(row.usage.output_tokens for row in rows if row.usage),
        }
