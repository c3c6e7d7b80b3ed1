"""What a Conductor learned, told from the log of its own training. Pure: rows in, figures out.

Rows are those of ``rollouts.jsonl``, see :mod:`training.grpo`: a completion each, with what it came
to. What follows is observed, not an experiment: a plan that is written more often where it is right
looks better than it is. So forms are compared on the same questions as well
(:func:`against_the_rest`).
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from grammar import Plan, Topology, topology

from .intervals import Floats, Interval, difference
from .matrix import wilson

QUERY = "{query}"
"""A subtask that is this hands the query on as it is."""


class Form(StrEnum):
    """What a completion is: the topology of its plan, and whether the query is handed on whole."""

    HANDED_ON = "handed on"
    """One step that is given the query as it is."""
    REWORDED = "one step, reworded"
    """One step that is told something else."""
    CHECKED = "handed on, then gone over"
    """A chain whose first step is given the query as it is."""
    IN_TWO = "taken apart in 2"
    """A chain of two steps, none of which is given the query as it is at first."""
    IN_MORE = "taken apart in 3 or more"
    BEST_OF_N = "best-of-n"
    """Independent attempts, and a last step that reads them all."""
    OTHER = "another shape"
    KEPT = "keeps the answer"
    """A second round that leaves it at the first."""
    NO_PLAN = "no plan"
    """Also one that names somebody who was not offered."""


APART = (Form.IN_TWO, Form.IN_MORE)


@dataclass(frozen=True, slots=True)
class Sample:
    """A completion of the training and what it came to."""

    update: int
    group: int
    """Of the update: completions of one question."""
    family: str
    parts: int
    """Of the question; 1 if it is simple."""
    question: str
    offered: tuple[int, ...]
    """Who could be named: positions in the roster."""
    text: str
    plan: Plan | None
    """Workers by their positions in the roster."""
    form: Form
    right: bool | None
    """None: nobody knows, for technical reasons. What is no plan is wrong."""
    answer: str | None = None
    round: int = 1


def form_of(plan: Plan, question: str) -> Form:
    """Tell what form a plan has."""
    whole = plan.steps[0].subtask.strip() in (QUERY, question)
    match topology(plan):
        case Topology.SINGLE:
            return Form.HANDED_ON if whole else Form.REWORDED
        case Topology.CHAIN if whole:
            return Form.CHECKED
        case Topology.CHAIN:
            return Form.IN_TWO if len(plan) == 2 else Form.IN_MORE
        case Topology.BEST_OF_N:
            return Form.BEST_OF_N
    return Form.OTHER


def sample_of(row: Mapping[str, Any]) -> Sample | None:
    """Read a row of the log; None if no completion was asked for there."""
    if row["valid"] is None:
        return None
    plan, right = None, False if not row["valid"] else None
    if row["valid"] and row["workers"] is not None:
        plan = Plan.of(row["subtasks"], row["workers"], row["access"])
    if row["valid"] and row["score"] is not None:
        right = row["score"] >= 1
    form = Form.NO_PLAN if not row["valid"] else Form.KEPT
    return Sample(
        row["update"],
        row["group"],
        row["family"],
        row["parts"],
        row["question"],
        tuple(row["offered"]),
        row["text"],
        plan,
        form_of(plan, row["question"]) if plan is not None else form,
        right,
        row["answer"],
        row["round"],
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a log in which the last line may be cut short; empty if there is none."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def families_of(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """Sort samples by family: simple ones first, then chains, each by name."""
    found: defaultdict[tuple[int, str], list[Sample]] = defaultdict(list)
    for each in samples:
        found[each.parts, each.family].append(each)
    return {family: found[parts, family] for parts, family in sorted(found)}


# --- over the updates -----------------------------------------------------------------------------


def trend(at: ArrayLike, values: ArrayLike, grid: ArrayLike, width: float) -> Floats:
    """Smooth what was seen here and there: means weighted by a Gaussian of the distance.

    Args:
        at: Where it was seen, (N,).
        values: What was seen, (N,) or (N, K); rows with a NaN don't count.
        grid: Where to tell it, (G,).
        width: Standard deviation of the Gaussian.

    Returns:
        The means, (G,) or (G, K); NaN if nothing was seen.
    """
    seen, what = np.asarray(at, np.float64), np.asarray(values, np.float64)
    known = ~np.isnan(what) if what.ndim == 1 else ~np.isnan(what).any(axis=1)
    seen, what = seen[known], what[known]
    steps = np.asarray(grid, np.float64)
    if not len(seen):
        return np.full((len(steps), *what.shape[1:]), np.nan)
    far = (steps[:, None] - seen[None, :]) ** 2 / (2 * width**2)
    weights = np.exp(far.min(axis=1, keepdims=True) - far)  # the nearest weighs 1: no 0 / 0
    return np.asarray((weights / weights.sum(axis=1, keepdims=True)) @ what)


def forms_over_time(samples: Sequence[Sample], grid: ArrayLike, width: float) -> Floats:
    """Shares of the forms, (G, forms in their order), as :func:`trend`."""
    forms = list(Form)
    hot = np.zeros((len(samples), len(forms)))
    for row, each in zip(hot, samples, strict=True):
        row[forms.index(each.form)] = 1
    return trend([each.update for each in samples], hot, grid, width)


def workers_over_time(
    samples: Sequence[Sample], place: int, workers: int, grid: ArrayLike, width: float
) -> Floats:
    """Shares of the workers at a place of the plans that have it, (G, W), as :func:`trend`."""
    there = [each for each in samples if each.plan is not None and len(each.plan) > place]
    hot = np.zeros((len(there), workers))
    for row, each in zip(hot, there, strict=True):
        assert each.plan is not None
        row[int(each.plan.steps[place].worker)] = 1
    return trend([each.update for each in there], hot, grid, width)


def right_over_time(samples: Sequence[Sample], grid: ArrayLike, width: float) -> Floats:
    """Share of right answers, (G,), as :func:`trend`."""
    right = [np.nan if each.right is None else float(each.right) for each in samples]
    return trend([each.update for each in samples], np.array(right), grid, width)


# --- stages ---------------------------------------------------------------------------------------


STAGES = ("start", "middle", "end")


def stages(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """The samples of the first, the middle and the last fifth of their questions; one at least.

    Of their own, not of the training: some families come later than others.
    """
    questions = sorted({(each.update, each.group) for each in samples})
    size = max(1, len(questions) // 5)
    middle = (len(questions) - size) // 2
    of = (
        set(questions[:size]),
        set(questions[middle : middle + size]),
        set(questions[max(0, len(questions) - size) :]),
    )
    return {
        stage: [each for each in samples if (each.update, each.group) in mine]
        for stage, mine in zip(STAGES, of, strict=True)
    }


def last_third(samples: Sequence[Sample]) -> list[Sample]:
    """Those of the last third of the updates."""
    updates = 1 + max((each.update for each in samples), default=-1)
    return [each for each in samples if each.update >= updates - max(1, updates // 3)]


@dataclass(frozen=True, slots=True)
class Place:
    """Where in its plans a family's worker is looked for."""

    family: str
    step: int | None
    """From 0; None: the first step of any plan."""

    def __str__(self) -> str:
        return self.family if self.step is None else f"{self.family}, step {self.step + 1}"

    def of(self, samples: Iterable[Sample]) -> list[Sample]:
        """The family's plans that have it; of a chain's those that take it apart."""
        return [
            each
            for each in samples
            if each.family == self.family
            and each.plan is not None
            and len(each.plan) > (self.step or 0)
            and (self.step is None or each.form in APART)
        ]


def places_of(samples: Iterable[Sample]) -> list[Place]:
    """Where to look: the first step of simple families, each step of those of several parts."""
    found = []
    for family, mine in families_of(samples).items():
        parts = mine[0].parts
        found += [Place(family, step) for step in (range(parts) if parts > 1 else [None])]
    return found


def named(samples: Sequence[Sample], place: Place, workers: int) -> NDArray[np.intp]:
    """How often each worker was named at a place, and could have been: (2, W)."""
    counts = np.zeros((2, workers), np.intp)
    for each in place.of(samples):
        assert each.plan is not None
        counts[0, int(each.plan.steps[place.step or 0].worker)] += 1
        counts[1, list(each.offered)] += 1
    return counts


def paid(samples: Sequence[Sample], place: Place, workers: int) -> NDArray[np.intp]:
    """How often the answer was right with each worker at a place, and how often it is known."""
    counts = np.zeros((2, workers), np.intp)
    for each in place.of(samples):
        assert each.plan is not None
        if each.right is not None:
            counts[:, int(each.plan.steps[place.step or 0].worker)] += (each.right, 1)
    return counts


# --- what pays ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Worth:
    """What a form of plan came to."""

    form: Form
    share: float
    """Of the completions."""
    count: int
    """Completions of which it is known whether they were right."""
    right: Interval
    """Share of right answers, with Wilson's interval. Completions of one question are no
    independent draws, so it is rather too narrow."""


def worth_of(samples: Sequence[Sample]) -> list[Worth]:
    """Tell what each form came to, the most frequent first."""
    counts = Counter(each.form for each in samples)
    found = []
    for form in sorted(counts, key=lambda form: (-counts[form], list(Form).index(form))):
        known = [each.right for each in samples if each.form is form and each.right is not None]
        share = sum(known) / len(known) if known else 0.0
        found.append(
            Worth(form, counts[form] / len(samples), len(known), wilson(share, len(known)))
        )
    return found


@dataclass(frozen=True, slots=True)
class Against:
    """A form against all other plans of the same questions."""

    form: Form
    questions: int
    """On which both were written."""
    difference: Interval
    """In the share of right answers, paired by question."""


def against_the_rest(samples: Sequence[Sample]) -> Against | None:
    """Compare the most frequent form with the other plans that were written for the same questions.

    Returns:
        None if there are fewer than two such questions.
    """
    known = [each for each in samples if each.plan is not None and each.right is not None]
    if not known:
        return None
    (form, _), *_ = Counter(each.form for each in known).most_common(1)
    groups: defaultdict[tuple[int, int], tuple[list[float], list[float]]]
    groups = defaultdict(lambda: ([], []))
    for each in known:
        groups[each.update, each.group][each.form is not form].append(float(bool(each.right)))
    both = [(np.mean(ours), np.mean(rest)) for ours, rest in groups.values() if ours and rest]
    if len(both) < 2:
        return None
    scores = np.array(both)
    return Against(form, len(both), difference(scores[:, :1], scores[:, 1:]))


# --- second rounds --------------------------------------------------------------------------------


class Second(StrEnum):
    """What a second round made of the first one's answer."""

    KEPT_RIGHT = "kept, and it was right"
    STAYED_RIGHT = "new plan: right as before"
    MENDED = "new plan: wrong, now right"
    STAYED_WRONG = "new plan: wrong as before"
    KEPT_WRONG = "kept, and it was wrong"
    SPOILT = "new plan: right, now wrong"
    NO_PLAN = "no plan"


def second_rounds(rows: Iterable[Mapping[str, Any]]) -> list[tuple[Sample, Second]]:
    """Tell what each second round made of the first one, if it is known of both.

    Args:
        rows: Of the log, in its order: the completions of a group are side by side, and those of
            second rounds are the group behind.
    """
    groups: defaultdict[tuple[int, int], list[Sample | None]] = defaultdict(list)
    for row in rows:
        groups[row["update"], row["group"]].append(sample_of(row))
    found = []
    for (update, group), again in groups.items():
        for first, second in zip(groups.get((update, group - 1), ()), again, strict=False):
            if first is None or second is None or second.round != 2 or first.round != 1:
                continue
            if first.right is None or second.right is None:
                continue
            found.append((second, _second(first.right, second)))
    return found


def _second(was: bool, second: Sample) -> Second:
    match second.form, was, second.right:
        case Form.NO_PLAN, _, _:
            return Second.NO_PLAN
        case Form.KEPT, _, _:
            return Second.KEPT_RIGHT if was else Second.KEPT_WRONG
        case _, True, True:
            return Second.STAYED_RIGHT
        case _, True, False:
            return Second.SPOILT
        case _, False, True:
            return Second.MENDED
    return Second.STAYED_WRONG


def second_rounds_over_time(
    found: Sequence[tuple[Sample, Second]], grid: ArrayLike, width: float
) -> Floats:
    """Shares of what second rounds made, (G, kinds in their order), as :func:`trend`."""
    kinds = list(Second)
    hot = np.zeros((len(found), len(kinds)))
    for row, (_, kind) in zip(hot, found, strict=True):
        row[kinds.index(kind)] = 1
    return trend([each.update for each, _ in found], hot, grid, width)


# --- plans ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Typical:
    """The most frequent kind of completion: a form and its workers."""

    sample: Sample
    """One of them."""
    alike: int
    right: int
    """Of those alike."""
    of: int


def typical(samples: Sequence[Sample]) -> Typical:
    """Find the most frequent form with the same workers, and the first completion of it."""
    kinds: defaultdict[Any, list[Sample]] = defaultdict(list)
    for each in samples:
        kinds[each.form, each.plan.workers if each.plan is not None else ()].append(each)
    alike = max(kinds.values(), key=len)
    return Typical(alike[0], len(alike), sum(bool(each.right) for each in alike), len(samples))


def drawn(samples: Sequence[Sample], seed: str) -> Sample:
    """Draw one by lot, the same one whenever it is asked."""
    return Random(seed).choice(samples)  # noqa: S311
