"""The shape of plans: graph, name, levels, critical path; and presets that build known shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING

from .plan import Plan, Step

if TYPE_CHECKING:
    import networkx as nx


class Topology(StrEnum):
    """Names of shapes. They are read off the transitive reduction, so that "reads all" and
    "reads the one before" in a row of steps are the same chain."""

    SINGLE = "single"
    """One step."""
    CHAIN = "chain"
    """Each step builds on the one before."""
    BEST_OF_N = "best-of-n"
    """Independent attempts, and a last step that reads them all."""
    FAN_OUT = "fan-out"
    """One first step, then several that read it and nobody else."""
    DIAMOND = "diamond"
    """One first step, several that read it, and a last one that reads them all."""
    DEBATE = "debate"
    """Rounds of the same width, each reading the whole round before, then a judge."""
    TREE = "tree"
    """Several levels; every output is read by one step, down to the last."""
    INDEPENDENT = "independent"
    """No step reads another; only the last one's completion is the answer."""
    GENERAL = "general"
    """Anything else."""


def graph(plan: Plan) -> nx.DiGraph[int]:
    """Build the directed acyclic graph of a plan.

    Nodes are step indices with attributes ``worker``, ``subtask`` and ``final``; an edge i -> j
    says that step j reads step i.
    """
    import networkx as nx

    dag: nx.DiGraph[int] = nx.DiGraph()
    for step in plan:
        dag.add_node(step.index, worker=step.worker, subtask=step.subtask, final=step is plan.final)
        dag.add_edges_from((earlier, step.index) for earlier in step.access)
    return dag


def topology(plan: Plan) -> Topology:
    """Name the shape of a plan."""
    import networkx as nx

    if len(plan) == 1:
        return Topology.SINGLE
    dag = nx.transitive_reduction(graph(plan))
    last = len(plan) - 1
    sources = [node for node in dag if not dag.in_degree(node)]
    sinks = [node for node in dag if not dag.out_degree(node)]
    if len(sources) == len(plan):
        return Topology.INDEPENDENT
    if all(set(dag.pred[node]) == ({node - 1} if node else set()) for node in dag):
        return Topology.CHAIN
    if len(sources) == 1 and len(sinks) == last and last >= 2:
        return Topology.FAN_OUT
    if sinks != [last]:
        return Topology.GENERAL
    if len(sources) == last:
        return Topology.BEST_OF_N
    if len(sources) == 1 and dag.out_degree(0) == last - 1 == dag.in_degree(last):
        return Topology.DIAMOND
    if _is_debate(plan):
        return Topology.DEBATE
    if all(dag.out_degree(node) <= 1 for node in dag):
        return Topology.TREE
    return Topology.GENERAL


def _is_debate(plan: Plan) -> bool:
    """Layers of one width >= 2, each reading the whole layer before (at least), then one judge."""
    rows = levels(plan)
    widths = {len(row) for row in rows[:-1]}
    if len(rows) < 3 or len(rows[-1]) != 1 or len(widths) != 1 or widths == {1}:
        return False
    return all(
        set(before) <= set(plan.steps[index].access)
        for before, row in pairwise(rows)
        for index in row
    )


def levels(plan: Plan) -> tuple[tuple[int, ...], ...]:
    """Group the steps by the longest way to them: level 0 reads nothing."""
    depth = [0] * len(plan)
    rows: list[list[int]] = []
    for step in plan:
        depth[step.index] = 1 + max((depth[earlier] for earlier in step.access), default=-1)
        while len(rows) <= depth[step.index]:
            rows.append([])
        rows[depth[step.index]].append(step.index)
    return tuple(map(tuple, rows))


def critical_path(
    plan: Plan, duration: Callable[[Step], float] = lambda step: 1.0
) -> tuple[tuple[int, ...], float]:
    """Find the chain of steps that decides how long a plan takes.

    Args:
        plan: The plan.
        duration: Seconds (or any unit) that a step takes by itself; one per step by default.

    Returns:
        The steps of the longest chain in order, and its length. No schedule is shorter.
    """
    finish: list[float] = []
    through: list[int | None] = []
    for step in plan:
        before = max(step.access, key=lambda earlier: finish[earlier], default=None)
        through.append(before)
        finish.append(duration(step) + (finish[before] if before is not None else 0.0))
    end = max(range(len(plan)), key=lambda index: finish[index])
    path = [end]
    while (earlier := through[path[-1]]) is not None:
        path.append(earlier)
    return tuple(reversed(path)), finish[end]


# --- presets ---------------------------------------------------------------------------------

_ATTEMPT = "Solve the task."
_JUDGE = "Compare the earlier answers, resolve where they differ, and give the final answer."
_REVISE = "Read the other answers, say where you disagree and why, and give your improved answer."
_MERGE = "Put the earlier results together and give the final answer."


def single(worker: str | int, subtask: str) -> Plan:
    """One step: hand the subtask to one worker."""
    return Plan((Step(0, worker, subtask),))


def chain(subtasks: Sequence[str], workers: Sequence[str | int]) -> Plan:
    """Each step reads the one before.

    Args:
        subtasks: One per step.
        workers: Taken in turn, again from the front where there are fewer than steps.
    """
    access = [[index - 1] if index else [] for index in range(len(subtasks))]
    return Plan.of(subtasks, _in_turn(workers, len(subtasks)), access)


def best_of_n(
    workers: Sequence[str | int],
    judge: str | int,
    *,
    subtask: str = _ATTEMPT,
    judge_subtask: str = _JUDGE,
) -> Plan:
    """Independent attempts, one per worker given (repeats allowed), then a judge reads them all."""
    n = len(_some(workers))
    return Plan.of([subtask] * n + [judge_subtask], [*workers, judge], [[]] * n + [list(range(n))])


def diamond(
    first: tuple[str | int, str],
    middle: Sequence[tuple[str | int, str]],
    last: tuple[str | int, str] | str | int,
) -> Plan:
    """One step prepares, several work on it side by side, one puts the results together.

    Args:
        first: Worker and subtask.
        middle: Worker and subtask of each step in between.
        last: Worker and subtask, or the worker alone.
    """
    end = last if isinstance(last, tuple) else (last, _MERGE)
    steps = [first, *middle, end]
    access = [[], *([0] for _ in middle), list(range(len(middle) + 1))]
    return Plan.of([subtask for _, subtask in steps], [worker for worker, _ in steps], access)


def debate(
    workers: Sequence[str | int],
    judge: str | int,
    *,
    rounds: int = 2,
    subtask: str = _ATTEMPT,
    revise_subtask: str = _REVISE,
    judge_subtask: str = _JUDGE,
) -> Plan:
    """All answer; in each further round all read the round before and revise; a judge decides.

    Args:
        workers: The debaters; one alone revises its own answer.
        judge: Reads the last round and gives the answer.
        rounds: Answers of each debater, at least 1 (1 is best-of-n).
        subtask: What debaters do first.
        revise_subtask: What they do in later rounds.
        judge_subtask: What the judge does.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; a debate needs at least 1")
    n = len(_some(workers))
    subtasks = [subtask] * n + [revise_subtask] * (n * (rounds - 1)) + [judge_subtask]
    access: list[list[int]] = [[]] * n
    for turn in range(1, rounds + 1):
        before = list(range(n * (turn - 1), n * turn))
        access += [before] * (n if turn < rounds else 1)
    return Plan.of(subtasks, [*workers] * rounds + [judge], access)


def tree(
    workers: Sequence[str | int],
    judge: str | int,
    *,
    branching: int = 2,
    subtask: str = _ATTEMPT,
    judge_subtask: str = _JUDGE,
) -> Plan:
    """Attempts at the leaves; groups of them are judged, and the winners judged again, to one.

    Args:
        workers: One leaf each.
        judge: Judges every group.
        branching: Size of a group, at least 2.
        subtask: What the leaves do.
        judge_subtask: What each judging step does.
    """
    if branching < 2:
        raise ValueError(f"branching is {branching}; a group to judge needs at least 2")
    access: list[list[int]] = [[] for _ in workers]
    row = list(range(len(_some(workers))))
    while len(row) > 1:
        groups = [row[at : at + branching] for at in range(0, len(row), branching)]
        row = []
        for group in groups:
            if len(group) == 1:  # a lone leaf goes on unjudged
                row += group
                continue
            access.append(group)
            row.append(len(access) - 1)
    judged = len(access) - len(workers)
    return Plan.of(
        [subtask] * len(workers) + [judge_subtask] * judged, [*workers] + [judge] * judged, access
    )


def _in_turn(workers: Sequence[str | int], count: int) -> list[str | int]:
    return [workers[index % len(_some(workers))] for index in range(count)]


def _some(workers: Sequence[str | int]) -> Sequence[str | int]:
    if not workers:
        raise ValueError("no workers given; a plan needs at least one")
    return workers
