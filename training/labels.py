"""Labels: how right each worker is on each task, measured call by call and kept in a folder.

The folder holds ``labels.jsonl`` (a row a call, in the order in which they ended), ``tasks.jsonl``
(the tasks, in the order of the matrix) and ``manifest.json`` (the workers in order, and how it was
measured). Rows are only ever appended: the last one of a task, worker and repeat counts, and a last
line that a kill cut off does not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from runtime import Failure, FinishReason, Usage

from .tasks import Task, TaskError, read_jsonl, write_jsonl

ROWS, TASKS, MANIFEST = "labels.jsonl", "tasks.jsonl", "manifest.json"


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
