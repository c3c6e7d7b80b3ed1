"""Intervals: how sure a mean, a difference or a share is. Pure: arrays in, numbers out.

All come from one bootstrap (B. Efron, R. Tibshirani, An Introduction to the Bootstrap, 1993,
chapter 13: percentiles). It is *paired*: a resample takes the same tasks for everyone compared, so
that what makes a task hard for all cancels out. It is *crossed*: seeds are drawn anew as well,
for each decider its own, since a training run that went well is luck too (A. Owen, The pigeonhole
bootstrap, 2007).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

RESAMPLES = 10_000
_CHUNK = 2**22
"""Entries of a matrix of counts that are held at once."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A number and where it lies in 95 of 100 repetitions of the experiment."""

    value: float
    """As measured; NaN if it can't be told."""
    low: float
    high: float

    @property
    def above_zero(self) -> bool:
        """Whether it is positive beyond chance."""
        return self.low > 0

    @property
    def below_zero(self) -> bool:
        """Whether it is negative beyond chance."""
        return self.high < 0


UNKNOWN = Interval(float("nan"), float("nan"), float("nan"))


def resampled_means(
    columns: Sequence[Floats], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Floats, Floats]:
    """Draw tasks and seeds with replacement, again and again, and take everyone's mean each time.

    The order of the tasks makes no difference, not even to the last digit.

    Args:
        columns: For each of K deciders its scores, (T, S): the same T tasks, seeds of its own. Rows
            with a NaN in any of them are left out for all.
        resamples: How often, B.
        seed: Of the draws.

    Returns:
        The means as measured, (K,), and those of the resamples, (B, K). NaN if no row is whole.

    Raises:
        ValueError: If there are no columns, or they are not of the same tasks.
    """
    if not columns or len({len(each) for each in columns}) > 1:
        sizes = ", ".join(str(each.shape) for each in columns)
        raise ValueError(f"deciders are compared on the same tasks; got {sizes or 'none'}")
    stacked = np.concatenate(columns, axis=1).astype(np.float64)  # (T, all S)
    stacked = stacked[~np.isnan(stacked).any(axis=1)]
    count = len(stacked)
    widths = [each.shape[1] for each in columns]
    if not count:
        return np.full(len(columns), np.nan), np.full((resamples, len(columns)), np.nan)
    # Tasks that went alike for all are drawn together: the same distribution, in far fewer draws.
    kinds, counts = np.unique(stacked, axis=0, return_counts=True)  # (U, all S), (U,)
    random = np.random.default_rng(seed)
    by_seed = np.empty((resamples, stacked.shape[1]))
    step = max(1, _CHUNK // len(kinds))
    for at in range(0, resamples, step):
        size = min(step, resamples - at)
        drawn = random.multinomial(count, counts / count, size=size)  # (b, U)
        by_seed[at : at + step] = drawn @ kinds / count
    means = np.empty((resamples, len(columns)))
    measured = np.empty(len(columns))
    first = 0
    for at, width in enumerate(widths):
        mine = by_seed[:, first : first + width]
        seeds = random.multinomial(width, np.full(width, 1 / width), size=resamples)  # (B, S)
        means[:, at] = (mine * seeds).sum(axis=1) / width
        measured[at] = stacked[:, first : first + width].mean()
        first += width
    return measured, means


def interval(value: float, draws: Floats) -> Interval:
    """Put the middle 95 % of the draws round a number; unknown if it is, or any draw is."""
    if np.isnan(value) or np.isnan(draws).any():
        return UNKNOWN
    low, high = np.quantile(draws, (0.025, 0.975))
    return Interval(float(value), float(low), float(high))


def mean(scores: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean score of a decider.

    Args:
        scores: (T, S): tasks, seeds. Tasks with a NaN are left out.
        resamples: As :func:`resampled_means`.
        seed: As there.
    """
    measured, draws = resampled_means([scores], resamples=resamples, seed=seed)
    return interval(measured[0], draws[:, 0])


def difference(
    scores: Floats, reference: Floats, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """How much better a decider is than another one, on the same tasks.

    Args:
        scores: (T, S).
        reference: (T, S'), the same tasks.
        resamples: As :func:`resampled_means`.
        seed: As there.
    """
    measured, draws = resampled_means([scores, reference], resamples=resamples, seed=seed)
    return interval(measured[0] - measured[1], draws[:, 0] - draws[:, 1])


def share(
    scores: Floats,
    low: Floats,
    high: Floats,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """What part of the way from one decider to a better one is gone: 0 at the one, 1 at the other.

    Unknown where the way itself is not positive beyond chance: a share of nothing means nothing.

    Args:
        scores: (T, S).
        low: Scores at 0, as those of the best single worker.
        high: Scores at 1, as those of the oracle.
        resamples: As :func:`resampled_means`.
        seed: As there.
    """
    measured, draws = resampled_means([scores, low, high], resamples=resamples, seed=seed)
    way, ways = measured[2] - measured[1], draws[:, 2] - draws[:, 1]
    if not interval(way, ways).above_zero:
        return UNKNOWN
    # The few resamples without a way, 2.5 % at most, lie outside on the side they tend to.
    ways = np.where(ways > 0, ways, np.finfo(np.float64).tiny)
    with np.errstate(over="ignore"):
        gone = np.clip((draws[:, 0] - draws[:, 1]) / ways, -1e9, 1e9)
    return interval((measured[0] - measured[1]) / way, gone)
