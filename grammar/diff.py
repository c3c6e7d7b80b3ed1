"""What changed from one plan to another, in the words of plans: steps, workers, subtasks, edges.

Steps have no names, so they are matched by what they say: the matching that needs the fewest
changes wins, and steps keep their order in it. A step put in front is therefore one added step,
and references that only count differently are no change.

Numbers are those of the new plan; only a removed step has its old one.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

from .format import quote
from .plan import Plan, Step

Sign = Literal["+", "-", "~"]

_SIMILAR = 0.6
"""Least likeness of two subtasks, from 0 to 1, by which one counts as an edit of the other."""
_LONG = 400
"""Characters from which subtasks are compared word by word; letter by letter takes too long."""
_STEP = 1000
"""Cost of a step added or removed, and of a worker changed."""
_EDIT = 400
"""Cost, on top of that, of a subtask edited beyond recognition: the same subtask goes first."""


@dataclass(frozen=True, slots=True)
class StepAdded:
    """A step of the new plan that the old one has nothing like. Its edges are its own."""

    step: Step
    kind: Literal["step_added"] = "step_added"
    sign: Sign = "+"

    def __str__(self) -> str:
        return f"+ {_described(self.step)}"


@dataclass(frozen=True, slots=True)
class StepRemoved:
    """A step of the old plan that is gone, and with it every edge from and to it."""

    step: Step
    """As it was; its numbers are those of the old plan."""
    kind: Literal["step_removed"] = "step_removed"
    sign: Sign = "-"

    def __str__(self) -> str:
        return f"- {_described(self.step)}"


@dataclass(frozen=True, slots=True)
class WorkerChanged:
    """A step goes to another worker."""

    index: int
    was: int
    """Its number in the old plan, as in all changes of a step."""
    old: str | int
    new: str | int
    kind: Literal["worker_changed"] = "worker_changed"
    sign: Sign = "~"

    def __str__(self) -> str:
        return f"{_step(self.index, self.was)}: worker {_worker(self.old)} -> {_worker(self.new)}"


@dataclass(frozen=True, slots=True)
class SubtaskEdited:
    """A step is told something else, or the same in other words."""

    index: int
    was: int
    old: str
    new: str
    kind: Literal["subtask_edited"] = "subtask_edited"
    sign: Sign = "~"

    def __str__(self) -> str:
        return f"{_step(self.index, self.was)}: subtask {quote(self.old)} -> {quote(self.new)}"


@dataclass(frozen=True, slots=True)
class EdgeAdded:
    """A step reads one more step; that one may be new."""

    index: int
    was: int
    reads: int
    kind: Literal["edge_added"] = "edge_added"
    sign: Sign = "~"

    def __str__(self) -> str:
        return f"{_step(self.index, self.was)}: now reads {self.reads}"


@dataclass(frozen=True, slots=True)
class EdgeRemoved:
    """A step no longer reads a step that is still there."""

    index: int
    was: int
    reads: int
    kind: Literal["edge_removed"] = "edge_removed"
    sign: Sign = "~"

    def __str__(self) -> str:
        return f"{_step(self.index, self.was)}: no longer reads {self.reads}"


Change = StepAdded | StepRemoved | WorkerChanged | SubtaskEdited | EdgeAdded | EdgeRemoved


def diff(old: Plan, new: Plan) -> tuple[Change, ...]:
    """Tell what makes ``new`` of ``old``, in the order of the steps; empty if they are equal."""
    changes: list[Change] = []
    pairs = _matched(old, new)
    now = {before: after for before, after in pairs if before is not None and after is not None}
    for before, after in pairs:
        if before is None:
            assert after is not None  # a pair has at least one step
            changes.append(StepAdded(new.steps[after]))
        elif after is None:
            changes.append(StepRemoved(old.steps[before]))
        else:
            changes += _edits(old.steps[before], new.steps[after], now)
    return tuple(changes)


def _edits(old: Step, new: Step, now: dict[int, int]) -> list[Change]:
    """Compare two steps that are the same one; ``now`` has the new numbers of steps still there."""
    index, was = new.index, old.index
    changes: list[Change] = []
    if (old.worker, type(old.worker)) != (new.worker, type(new.worker)):
        changes.append(WorkerChanged(index, was, old.worker, new.worker))
    if old.subtask != new.subtask:
        changes.append(SubtaskEdited(index, was, old.subtask, new.subtask))
    read = {now[earlier] for earlier in old.access if earlier in now}
    changes += [EdgeRemoved(index, was, each) for each in sorted(read.difference(new.access))]
    changes += [EdgeAdded(index, was, each) for each in new.access if each not in read]
    return changes


def _matched(old: Plan, new: Plan) -> list[tuple[int | None, int | None]]:
    """Pair the steps at the least cost, in order; None stands for no partner."""
    likeness = _Likeness(old, new)
    rows, columns = len(old), len(new)
    cost = [[_STEP * (row + column) for column in range(columns + 1)] for row in range(rows + 1)]
    # Edit distance: cost[r][c] makes the first c steps of the new plan of the first r of the old.
    for row in range(1, rows + 1):
        for column in range(1, columns + 1):
            alone = _STEP + min(cost[row - 1][column], cost[row][column - 1])
            together = likeness.cost(row - 1, column - 1)
            if together is not None:
                alone = min(alone, cost[row - 1][column - 1] + together)
            cost[row][column] = alone
    pairs: list[tuple[int | None, int | None]] = []
    row, column = rows, columns
    while row or column:
        together = likeness.cost(row - 1, column - 1) if row and column else None
        if together is not None and cost[row][column] == cost[row - 1][column - 1] + together:
            row, column = row - 1, column - 1
            pairs.append((row, column))
        elif column and cost[row][column] == _STEP + cost[row][column - 1]:
            column -= 1
            pairs.append((None, column))
        else:
            row -= 1
            pairs.append((row, None))
    return pairs[::-1]


class _Likeness:
    """What it costs to make one step of another; subtasks are compared once per pair of texts."""

    def __init__(self, old: Plan, new: Plan) -> None:
        self._old, self._new = old.steps, new.steps
        self._edits: dict[tuple[str, str], int | None] = {}

    def cost(self, before: int, after: int) -> int | None:
        """The cost of a pair; None if the two have nothing to do with each other."""
        old, new = self._old[before], self._new[after]
        same_worker = (old.worker, type(old.worker)) == (new.worker, type(new.worker))
        if old.subtask == new.subtask:
            cost: int | None = 0 if same_worker else _STEP
        else:
            cost = self._edit(old.subtask, new.subtask) if same_worker else None
        if cost is None:
            return None
        # The place decides between equal steps: the same one, or at least the same neighbours.
        moved = after - before
        if new.access == tuple(earlier + moved for earlier in old.access):
            return cost + bool(moved)
        return cost + 2

    def _edit(self, old: str, new: str) -> int | None:
        texts = (old, new)
        if texts not in self._edits:
            alike = _alike(old, new)
            edit = _STEP + round((1 - alike) * _EDIT)
            self._edits[texts] = edit if alike >= _SIMILAR else None
        return self._edits[texts]


def _alike(old: str, new: str) -> float:
    """How alike two subtasks are, from 0 to 1."""
    words = old.split(), new.split()
    if min(map(len, words)) > 8 and 4 * len(set(words[0]) & set(words[1])) < len(set(words[0])):
        return 0.0  # hardly a word in common: not worth the long comparison
    long = max(len(old), len(new)) > _LONG
    matcher: SequenceMatcher[str] = SequenceMatcher(None, autojunk=False)
    matcher.set_seqs(*(words if long else (old, new)))
    if matcher.real_quick_ratio() < _SIMILAR or matcher.quick_ratio() < _SIMILAR:
        return 0.0
    return matcher.ratio()


def _step(index: int, was: int) -> str:
    return f"~ step {index}" if index == was else f"~ step {index} (was {was})"


def _described(step: Step) -> str:
    reads = f", reads {', '.join(map(str, step.access))}" if step.access else ""
    return f"step {step.index}: {_worker(step.worker)} {quote(step.subtask)}{reads}"


def _worker(worker: str | int) -> str:
    """A name in quotes only where it could be taken for something else."""
    if isinstance(worker, int):
        return str(worker)
    return worker if worker.isascii() and worker.isidentifier() else quote(worker)
