"""Evaluation: what every decider scores, what it takes, and how sure the differences are. Pure.

A *decider* says who works on a task. What came of it is its :class:`Outcomes`: score, calls,
tokens, seconds and dollars of each task and seed. Where it picks one worker, or asks all of them,
the outcomes follow from labels, the replies that are on file; :mod:`training.trials` carries out
the others.

Three sets of test tasks are reported apart, and chains as a fourth: new items in phrasings that
were trained on, new items in phrasings that were not, and families that deciders never saw. A
router easily learns to tell templates apart, so the second is the one to go by.

Whatever is chosen (the best single worker, the worker of a part) is chosen by :func:`choose`, which
sees validation tasks and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .graders import plurality
from .intervals import RESAMPLES, UNKNOWN, Floats, Interval, difference, mean, share
from .labels import Labels, read, read_manifest, read_rows
from .tasks import Split, Task

BEST, ORACLE, RANDOM = "best-single", "oracle", "random"
"""Names of the deciders that others are held against."""


class EvaluationError(Exception):
    """An evaluation can't be made; the message says what is missing and where it comes from."""


class Section(StrEnum):
    """A set of test tasks that is reported apart."""

    ITEMS = "items"
    """New items of trained families, in phrasings that were trained on."""
    PHRASINGS = "phrasings"
    """New items of trained families, in phrasings that nothing was trained on."""
    FAMILIES = "families"
    """Families that no decider was trained on."""
    COMPOSED = "composed"
    """Two families in sequence: what the first gives, the second needs."""


def section_of(task: Task) -> Section | None:
    """Say where a task is reported; None if it is no test task."""
    if task.split is not Split.TEST:
        return None
    if task.parts:
        return Section.COMPOSED
    if task.reserved:
        return Section.FAMILIES
    return Section.PHRASINGS if task.held_out_wording else Section.ITEMS


# --- what was measured ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Labels with what each reply said and took; arrays are (T, W, R), NaN where unknown."""

    labels: Labels
    replies: NDArray[np.object_]
    """Texts; empty where there is none."""
    tokens: Floats
    """In and out."""
    seconds: Floats
    dollars: Floats

    def where(self, keep: NDArray[np.bool_]) -> Measured:
        """Keep the tasks for which ``keep`` (T,) is true."""
        return Measured(
            self.labels.where(keep),
            self.replies[keep],
            self.tokens[keep],
            self.seconds[keep],
            self.dollars[keep],
        )

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks, T."""
        return self.labels.tasks

    @property
    def workers(self) -> tuple[str, ...]:
        """The workers, W."""
        return self.labels.workers


def read_measured(folders: Sequence[str | Path]) -> Measured:
    """Read labels with their replies; what several folders have adds up, the last one counts.

    Raises:
        training.labels.LabelsError: If there are none, or they can't be read.
    """
    labels = read(folders[0])
    for folder in folders[1:]:
        labels = labels.merged(read(folder))
    shape = labels.scores.shape
    replies = np.full(shape, "", dtype=object)
    took = {name: np.full(shape, np.nan) for name in ("tokens", "seconds", "dollars")}
    at = {task.id: index for index, task in enumerate(labels.tasks)}
    for folder in folders:
        workers: Mapping[str, Mapping[str, Any]] = read_manifest(folder)["workers"]
        for row in read_rows(folder).values():
            about = workers.get(row.worker)
            if about is None or row.task not in at or row.score is None:
                continue
            if row.identity != about.get("digest", row.identity) or row.repeat >= shape[2]:
                continue
            repeat = slice(None) if about.get("asked") == 1 else slice(row.repeat, row.repeat + 1)
            place = (at[row.task], labels.workers.index(row.worker), repeat)
            replies[place] = row.reply
            if row.usage is not None:
                took["tokens"][place] = row.usage.input_tokens + row.usage.output_tokens
            took["seconds"][place] = row.seconds
            if row.dollars is not None:
                took["dollars"][place] = float(row.dollars)
    return Measured(labels, replies, **took)


# --- what is chosen, on validation tasks only -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Choices:
    """What was chosen on validation tasks."""

    best: str
    """The best single worker."""
    best_composed: str
    """The best single worker on chains; ``best`` if there are no chains to choose by."""
    of_family: Mapping[str, str]
    """The best worker by family."""
    tasks: int
    """How many validation tasks there were to choose by."""

    def for_task(self, task: Task) -> str:
        """The best single worker for a task of its sort."""
        return self.best_composed if task.parts else self.best


def choose(labels: Labels) -> Choices:
    """Choose by the validation tasks among the labels; the others are not looked at.

    The best single worker is chosen by tasks of trained families in trained phrasings, as a user
    would who has no others.

    Raises:
        EvaluationError: If there are no validation tasks with labels.
    """
    known = labels.where([task.split is Split.VALIDATION for task in labels.tasks]).complete()
    plain = known.where(
        [not (task.parts or task.reserved or task.held_out_wording) for task in known.tasks]
    )
    if not plain.tasks:
        told = "no labels of validation tasks, by which the best single worker is chosen"
        raise EvaluationError(f"{told}; collect some: `conductor labels`")

    def best_of(keep: Callable[[Task], bool], among: Labels) -> str:
        chosen = among.where([keep(task) for task in among.tasks])
        return labels.workers[int(chosen.means.mean(axis=0).argmax())] if chosen.tasks else ""

    best = best_of(lambda task: True, plain)
    return Choices(
        best,
        best_of(lambda task: bool(task.parts), known) or best,
        {
            family: best_of(lambda task, family=family: task.family == family, known)  # type: ignore[misc]  # mypy can't infer a lambda with a default
            for family in known.families
        },
        len(known.tasks),
    )


# --- outcomes -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """What came of a decider's decisions; arrays are (T, S), tasks and seeds."""

    name: str
    about: str
    """What it does, in a line."""
    scores: Floats
    """From 0 to 1; NaN where a call failed for technical reasons."""
    calls: Floats
    """Calls of workers, and of a model that plans or chooses by writing."""
    tokens: Floats
    """Of all calls, in and out, and what a router reads; NaN if a worker does not count."""
    deciding: Floats
    """The part of the tokens that went into deciding."""
    seconds: Floats
    """What a user waits; calls that are made together count once."""
    dollars: Floats
    """NaN where a price is unknown."""
    workers: Floats
    """(T, W): share of the calls that each worker had; zero rows where none was called."""
    held_to: str = ""
    """For a negative control, the decider that it may not beat."""

    def where(self, keep: NDArray[np.bool_]) -> Outcomes:
        """Keep the tasks for which ``keep`` (T,) is true."""
        return replace(
            self,
            scores=self.scores[keep],
            calls=self.calls[keep],
            tokens=self.tokens[keep],
            deciding=self.deciding[keep],
            seconds=self.seconds[keep],
            dollars=self.dollars[keep],
            workers=self.workers[keep],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Deciding:
    """What deciding took before a worker was called; arrays are (T, S) or broadcast to it."""

    tokens: Floats | float = 0.0
    seconds: Floats | float = 0.0
    dollars: Floats | float = 0.0
    calls: Floats | float = 0.0


def picks(
    name: str,
    about: str,
    measured: Measured,
    weights: Floats,
    *,
    deciding: Deciding = Deciding(),
    held_to: str = "",
) -> Outcomes:
    """Give what comes of picking one worker a task: the mean over the replies on file.

    Args:
        name: Of the decider.
        about: What it does.
        measured: Labels with their replies.
        weights: (S, T, W): how likely each worker is picked; rows add up to 1. A row with a NaN
            is a decision that failed for technical reasons.
        deciding: What that took.
        held_to: For a negative control, the decider that it may not beat.
    """

    def expected(values: Floats) -> Floats:
        """(T, S); NaN where a worker that may be picked has no value."""
        filled = np.nan_to_num(values)
        missing = (weights > 0) & np.isnan(values)
        found = (weights * filled).sum(axis=2)  # NaN weights give NaN
        return np.asarray(np.where(missing.any(axis=2), np.nan, found).T)

    scores = expected(measured.labels.means.astype(np.float64))
    none = np.zeros_like(scores)
    read_tokens = none + deciding.tokens
    return Outcomes(
        name,
        about,
        scores,
        1.0 + deciding.calls + none,
        expected(_mean(measured.tokens)) + read_tokens,
        read_tokens,
        expected(_mean(measured.seconds)) + deciding.seconds,
        expected(_mean(measured.dollars)) + deciding.dollars,
        np.nan_to_num(weights).mean(axis=0),
        held_to,
    )


def _mean(values: Floats) -> Floats:
    """Mean over the repeats that are known; NaN where none is."""
    known = ~np.isnan(values)
    sums, counts = np.where(known, values, 0.0).sum(axis=-1), known.sum(axis=-1)
    found: Floats = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return found


def one_hot(chosen: NDArray[np.integer], workers: int) -> Floats:
    """Turn the numbers of picked workers (...,) into weights (..., W); -1 into NaN."""
    weights: Floats = np.eye(workers)[chosen]
    weights[chosen < 0] = np.nan
    return weights


def alone(measured: Measured, worker: str) -> Outcomes:
    """One worker for everything."""
    chosen = np.full(len(measured.tasks), measured.workers.index(worker))
    weights = one_hot(chosen, len(measured.workers))[None]
    return picks(f"worker:{worker}", f"{worker} alone", measured, weights)


def best_single(measured: Measured, choices: Choices) -> Outcomes:
    """The worker that was best on validation tasks, for everything."""
    index = {name: at for at, name in enumerate(measured.workers)}
    chosen = np.array([index[choices.for_task(task)] for task in measured.tasks], dtype=int)
    about = f"{choices.best} for everything"
    if choices.best_composed != choices.best:
        about += f", {choices.best_composed} for chains"
    weights = one_hot(chosen, len(measured.workers))[None]
    return picks(BEST, f"{about}: best on validation", measured, weights)


def random_pick(measured: Measured) -> Outcomes:
    """Any worker: the expected value, without drawing."""
    count = len(measured.workers)
    weights = np.full((1, len(measured.tasks), count), 1 / count)
    return picks(RANDOM, "any worker, expected value", measured, weights)


def random_sampled(measured: Measured, seeds: int, seed: int = 0) -> Outcomes:
    """Any worker, drawn: what chance looks like with so many seeds."""
    random = np.random.default_rng(seed)
    count = len(measured.workers)
    chosen = random.integers(count, size=(seeds, len(measured.tasks)))
    return picks("random-sampled", "any worker, drawn", measured, one_hot(chosen, count))


def oracle_weights(scores: Floats) -> Floats:
    """Share each task among the workers that do it best.

    Args:
        scores: (T, W); NaN where a worker was not measured.

    Returns:
        (T, W); rows add up to 1, or are NaN where nothing was measured.
    """
    filled = np.where(np.isnan(scores), -np.inf, scores)
    top = filled.max(axis=1, keepdims=True)
    best = ((filled == top) & np.isfinite(filled)).astype(np.float64)
    counts = best.sum(axis=1, keepdims=True)
    shared: Floats = np.divide(best, counts, out=np.full(best.shape, np.nan), where=counts > 0)
    return shared


def oracle(measured: Measured) -> Outcomes:
    """Who is best on each task, known beforehand.

    Cross-fitted: who is best is told by all repeats but one, and how good it is by that one, so
    that luck in one reply does not count as skill (the winner's curse). For workers that always
    say the same the two are the same. Of workers that sample, few repeats tell little: who knows
    more of a task than they do can exceed it. A single repeat can't be split, and is too high.
    """
    scores = measured.labels.scores.astype(np.float64)
    repeats = scores.shape[2]
    if repeats == 1:
        about = "the best worker of each task; one repeat, so too high if workers sample"
        return picks(ORACLE, about, measured, oracle_weights(scores[:, :, 0])[None])
    folds, chosen = [], []
    for repeat in range(repeats):
        others = _mean(np.delete(scores, repeat, axis=2))
        others[np.isnan(scores[:, :, repeat])] = np.nan
        weights = oracle_weights(others)
        folds.append((weights * np.nan_to_num(scores[:, :, repeat])).sum(axis=1))
        chosen.append(weights)
    weights = _mean(np.stack(chosen, axis=-1))  # (T, W)
    given = picks(ORACLE, "the best worker of each task, cross-fitted", measured, weights[None])
    return replace(given, scores=_mean(np.stack(folds, axis=-1))[:, None])


def vote(measured: Measured) -> Outcomes:
    """Ask every worker; what most of them say is the answer. A tie is shared.

    Raises:
        EvaluationError: If the labels have no replies.
    """
    calls = len(measured.workers)
    scores = measured.labels.scores.astype(np.float64)
    return _voted("vote", f"what most of all {calls} workers say", measured, scores, calls)


def self_consistency(measured: Measured, choices: Choices, calls: int) -> Outcomes | None:
    """Ask the best single worker several times; what it says most often is the answer.

    Args:
        measured: Labels with their replies.
        choices: Says which worker that is.
        calls: How often, so that it takes no less than whom it is compared with.

    Returns:
        None if the labels have fewer repeats of it, or those of a worker that always says the same:
        then it has to be carried out (:func:`training.trials.self_consistency`).
    """
    index = {name: at for at, name in enumerate(measured.workers)}
    mine = np.array([index[choices.for_task(task)] for task in measured.tasks], dtype=int)
    rows = np.arange(len(mine))
    groups = measured.labels.scores.shape[2] // calls
    replies = measured.replies[rows, mine]  # (T, R)
    if not groups or all(len(set(each)) == 1 for each in replies):
        return None
    parts = [slice(calls * group, calls * (group + 1)) for group in range(groups)]

    def regrouped(values: NDArray[Any]) -> NDArray[Any]:
        """(T, R) of the chosen worker to (T, calls, groups), as votes have it."""
        return np.stack([values[rows, mine][:, part] for part in parts], axis=-1)

    grouped = Measured(
        Labels(measured.tasks, tuple(map(str, range(calls))), regrouped(measured.labels.scores)),
        regrouped(measured.replies),
        regrouped(measured.tokens),
        regrouped(measured.seconds),
        regrouped(measured.dollars),
    )
    about = f"what {choices.best} says most often of {calls} times"
    scores = grouped.labels.scores.astype(np.float64)
    voted = _voted("self-consistency", about, grouped, scores, calls)
    return replace(voted, workers=one_hot(mine, len(measured.workers)))


def voted(task: Task, replies: Sequence[str], scores: Sequence[float]) -> float:
    """Score the answer that is given most often.

    Of answers given equally often the first one counts; so each reply comes first in turn, and the
    mean is taken. Otherwise a tie would favour whom the pool names first.

    Args:
        task: What was asked.
        replies: At least one.
        scores: Of the replies.
    """
    order = list(range(len(replies)))
    turned = [order[first:] + order[:first] for first in order]
    chosen = (
        turn[plurality(task.grader, [replies[at] for at in turn], task.question)] for turn in turned
    )
    return float(np.mean([scores[at] for at in chosen]))


def _voted(name: str, about: str, measured: Measured, scores: Floats, calls: int) -> Outcomes:
    tasks, _, repeats = scores.shape
    if tasks and not (measured.replies != "").any():
        raise EvaluationError(f"{name} needs the replies, and these labels were kept without them")
    found = np.full((tasks, repeats), np.nan)
    for row, task in enumerate(measured.tasks):
        for repeat in range(repeats):
            known = ~np.isnan(scores[row, :, repeat])
            if known.any():
                said = [str(each) for each in measured.replies[row, known, repeat]]
                found[row, repeat] = voted(task, said, scores[row, known, repeat].tolist())
    each = np.full((tasks, repeats), float(calls))
    # A worker that did not answer has no seconds: the others were waited for.
    seconds = np.nan_to_num(measured.seconds).max(axis=1)
    shares = np.full((tasks, scores.shape[1]), 1 / scores.shape[1])
    return Outcomes(
        name,
        about,
        found,
        each,
        measured.tokens.sum(axis=1),
        np.zeros_like(found),
        seconds,
        measured.dollars.sum(axis=1),
        shares,
    )


# --- the comparison -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """One decider on one section, or on one family of it."""

    decider: str
    section: str
    family: str
    """Empty for the section as a whole."""
    score: Interval
    against: Interval
    """Score less that of the reference, on the same tasks."""
    headroom: Interval
    """Share of the way from the best single worker to the oracle that is gone; unknown where there
    is no such way."""
    tasks: int
    seeds: int
    lost: int
    """Tasks without a score for technical reasons; they count for nobody it is compared with."""
    calls: float
    """Means per task that has a score, from here on."""
    tokens: float
    deciding: float
    seconds: float
    """Over those that no cache answered."""
    dollars: float


@dataclass(frozen=True, slots=True)
class Routing:
    """Whom a decider called in one family."""

    decider: str
    section: str
    family: str
    shares: Mapping[str, float]
    """By worker; they add up to 1."""


@dataclass(frozen=True, slots=True)
class Confusion:
    """Whom a decider picked where someone else was best, over the test tasks that tell workers
    apart."""

    decider: str
    tasks: int
    counts: Mapping[str, Mapping[str, float]]
    """By the best worker, then by the picked one; where several are best, each has a part."""

    @property
    def agreement(self) -> float:
        """Share of these tasks given to a best worker."""
        right = sum(row.get(worker, 0.0) for worker, row in self.counts.items())
        return right / self.tasks if self.tasks else float("nan")


@dataclass(frozen=True, slots=True)
class Control:
    """Whether a decider that was trained on nonsense does no better than it should.

    On families that it was trained on: on others even the best single worker may be a bad one.
    """

    decider: str
    section: str
    held_to: str
    difference: Interval
    """Score less that of the decider that it may not beat."""

    @property
    def behaves(self) -> bool:
        """Whether it is not better beyond chance."""
        return not self.difference.above_zero


@dataclass(frozen=True, slots=True)
class Planning:
    """What the plans of a decider were like, in one family."""

    decider: str
    section: str
    family: str
    trials: int
    at_once: int
    """Trials whose plan was right as it was first written."""
    planned: int
    """Trials with a plan."""
    failed: int
    """Trials that failed for technical reasons."""
    steps: float
    """Mean per trial, all rounds together."""
    topologies: Mapping[str, int]
    """How often the last plan had each shape."""
    right: Mapping[str, float]
    """Mean score of the trials with a plan of each shape, from 0 to 1; one that failed for
    technical reasons counts as 0."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All that an evaluation found; :mod:`training.report` writes and draws it."""

    workers: tuple[str, ...]
    reference: str
    choices: Choices
    deciders: Mapping[str, str]
    """What each does, by name."""
    lines: tuple[Line, ...]
    routing: tuple[Routing, ...]
    confusion: tuple[Confusion, ...]
    controls: tuple[Control, ...]
    planning: tuple[Planning, ...]
    made_with: Mapping[str, Any]
    """Pool, checkpoints, seeds, versions and command line: what it takes to make it again."""

    def sections(self) -> tuple[str, ...]:
        """The sections that have tasks, in order."""
        return tuple(dict.fromkeys(line.section for line in self.lines))

    def line(self, decider: str, section: str, family: str = "") -> Line:
        """Look a line up.

        Raises:
            KeyError: If there is none.
        """
        for each in self.lines:
            if (each.decider, each.section, each.family) == (decider, section, family):
                return each
        raise KeyError((decider, section, family))


def evaluate(
    measured: Measured,
    outcomes: Sequence[Outcomes],
    choices: Choices,
    *,
    reference: str = BEST,
    planning: Sequence[Planning] = (),
    made_with: Mapping[str, Any] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Evaluation:
    """Compare deciders on the test tasks.

    Args:
        measured: The labels; rows of ``outcomes`` are its tasks.
        outcomes: Of the deciders, in the order of the report.
        choices: As :func:`choose` gives them.
        reference: The decider that the others are held against.
        planning: What plans were like, to be reported with the rest.
        made_with: What it takes to make it again, for the record.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        EvaluationError: If there are no test tasks, or no such reference.
    """
    by_name = {each.name: each for each in outcomes}
    if reference not in by_name:
        raise EvaluationError(f"no decider is called {reference!r}; there are: {_list(by_name)}")
    sections = [section_of(task) for task in measured.tasks]
    if not any(sections):
        raise EvaluationError("no labels of test tasks; collect some: `conductor labels`")
    best = by_name.get(BEST) or best_single(measured, choices)
    top = by_name.get(ORACLE) or oracle(measured)

    def line(each: Outcomes, section: Section, family: str) -> Line:
        keep = np.array(
            [
                at is section and (not family or task.family == family)
                for at, task in zip(sections, measured.tasks, strict=True)
            ]
        )
        part = each.where(keep)
        known = ~np.asarray(np.isnan(part.scores).any(axis=1))
        # Of families there are many, and nobody decides by the third digit of their intervals.
        common = {"resamples": resamples // 5 if family else resamples, "seed": seed}
        other = by_name[reference].where(keep).scores
        low, high = best.where(keep).scores, top.where(keep).scores
        there = part.where(known)
        costs = (there.calls, there.tokens, there.deciding, there.seconds, there.dollars)
        return Line(
            each.name,
            section,
            family,
            mean(part.scores, **common),
            UNKNOWN if each.name == reference else difference(part.scores, other, **common),
            UNKNOWN if family else share(part.scores, low, high, **common),
            int(known.sum()),
            part.scores.shape[1],
            int((~known).sum()),
            *(
                # How long a call took is not known where a cache answered it.
                float(_mean(cost.ravel()) if cost is there.seconds else cost.sum() / cost.size)
                if cost.size
                else float("nan")
                for cost in costs
            ),
        )

    present = [section for section in Section if section in sections]
    families = {
        section: tuple(
            dict.fromkeys(
                task.family
                for task, at in zip(measured.tasks, sections, strict=True)
                if at is section
            )
        )
        for section in present
    }
    tested = np.array([section is not None for section in sections])
    return Evaluation(
        measured.workers,
        reference,
        choices,
        {each.name: each.about for each in outcomes},
        tuple(
            line(each, section, family)
            for section in present
            for family in ("", *families[section])
            for each in outcomes
        ),
        tuple(
            _routing(each, measured, section, family)
            for each in outcomes
            for section in present
            for family in families[section]
        ),
        tuple(_confusion(each.where(tested), measured.where(tested)) for each in outcomes),
        tuple(
            _control(each, by_name, sections, section, resamples, seed)
            for each in outcomes
            if each.held_to in by_name
            for section in present
            if section in (Section.ITEMS, Section.PHRASINGS)
        ),
        tuple(planning),
        made_with or {},
    )


def _list(names: Mapping[str, Any]) -> str:
    return ", ".join(names) or "none"


def _routing(each: Outcomes, measured: Measured, section: Section, family: str) -> Routing:
    keep = [section_of(task) is section and task.family == family for task in measured.tasks]
    shares = each.workers[np.array(keep)].mean(axis=0)
    total = shares.sum() or 1.0
    named = zip(measured.workers, (shares / total).tolist(), strict=True)
    return Routing(each.name, section, family, dict(named))


def _confusion(each: Outcomes, measured: Measured) -> Confusion:
    scores = measured.labels.means.astype(np.float64)
    apart = np.nanmax(scores, axis=1, initial=0) > np.nanmin(scores, axis=1, initial=1)
    apart &= ~np.isnan(scores).all(axis=1) & (each.workers.sum(axis=1) > 0)
    best, picked = oracle_weights(scores)[apart], each.workers[apart]
    # Where the decider took one of several best workers, that one is the best.
    agreed = np.minimum((best > 0) * picked, picked)
    astray = picked - agreed  # (T, W)
    counts = best.T @ astray + np.diag(agreed.sum(axis=0))
    return Confusion(
        each.name,
        int(apart.sum()),
        {
            worker: dict(zip(measured.workers, row.tolist(), strict=True))
            for worker, row in zip(measured.workers, counts, strict=True)
        },
    )


def _control(
    each: Outcomes,
    by_name: Mapping[str, Outcomes],
    sections: Sequence[Section | None],
    section: Section,
    resamples: int,
    seed: int,
) -> Control:
    keep = np.array([at is section for at in sections])
    ours, theirs = each.where(keep).scores, by_name[each.held_to].where(keep).scores
    found = difference(ours, theirs, resamples=resamples, seed=seed)
    return Control(each.name, section, each.held_to, found)
