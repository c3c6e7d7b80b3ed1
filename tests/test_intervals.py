"""Intervals: known cases in closed form, and what holds whatever the scores are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from training.intervals import difference, mean, resampled_means, share

SCORES = arrays(
    np.float64,
    st.tuples(st.integers(1, 30), st.integers(1, 4)),
    elements=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)


def coins(count: int, chance: float, seed: int, seeds: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.random((count, seeds)) < chance).astype(np.float64)


@given(SCORES)
@settings(max_examples=40)
def test_an_interval_holds_the_measured_mean_and_stays_in_range(scores: np.ndarray) -> None:
    found = mean(scores, resamples=400)

    assert found.value == pytest.approx(scores.mean())
    assert found.low - 1e-9 <= found.value <= found.high + 1e-9
    assert scores.min() - 1e-9 <= found.low <= found.high <= scores.max() + 1e-9


@given(SCORES, st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_the_order_of_tasks_makes_no_difference(scores: np.ndarray, random: object) -> None:
    order = np.arange(len(scores))
    random.shuffle(order)  # type: ignore[attr-defined]  # hypothesis gives it no type
    other = np.roll(scores, 1, axis=1) ** 2

    assert mean(scores[order], resamples=200) == mean(scores, resamples=200)
    assert difference(scores[order], other[order], resamples=200) == difference(
        scores, other, resamples=200
    )


def test_turning_a_comparison_round_turns_its_interval_round() -> None:
    one, two = coins(500, 0.6, seed=9), coins(500, 0.4, seed=10)

    there, back = difference(one, two), difference(two, one)

    assert back.value == -there.value
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low), abs=0.005)


def test_the_width_is_that_of_the_normal_limit() -> None:
    """Mean of n coins: 1.96 sqrt(p (1 - p) / n) to each side."""
    scores = coins(2_000, 0.3, seed=1)
    p = scores.mean()

    found = mean(scores)

    half = 1.96 * np.sqrt(p * (1 - p) / len(scores))
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.05)


def test_of_two_tasks_the_distribution_is_known() -> None:
    """Means 0, 1/2, 1 with chances 1/4, 1/2, 1/4."""
    _, draws = resampled_means([np.array([[0.0], [1.0]])], resamples=20_000)

    values, counts = np.unique(draws, return_counts=True)
    assert values.tolist() == [0.0, 0.5, 1.0]
    assert counts / 20_000 == pytest.approx([0.25, 0.5, 0.25], abs=0.02)


def test_pairing_takes_out_what_is_hard_for_all() -> None:
    """The same worker a tenth better at every task: unpaired this would be lost in the noise."""
    scores = np.random.default_rng(2).random((100, 1))

    found = difference(scores + 0.1, scores)

    assert (found.low, found.value, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert found.above_zero


def test_seeds_that_differ_widen_the_interval() -> None:
    """Three training runs, all tasks alike: what is left is the luck of the run, as in closed form.

    The mean of three drawn with replacement from 0.2, 0.5, 0.8 has a deviation of sqrt(0.06 / 3).
    """
    scores = np.tile([0.2, 0.5, 0.8], (400, 1))

    _, draws = resampled_means([scores], resamples=20_000)

    assert draws.std() == pytest.approx(np.sqrt(0.06 / 3), rel=0.03)
    assert mean(scores[:, 1:2]).high == pytest.approx(0.5)


def test_ninety_five_of_a_hundred_intervals_hold_the_truth() -> None:
    hits = 0
    for seed in range(300):
        found = mean(coins(80, 0.4, seed), resamples=400, seed=seed)
        hits += found.low <= 0.4 <= found.high

    # 285 expected, deviation 3.8; percentile intervals of n = 80 fall a little short.
    assert 270 <= hits <= 297


def test_what_is_lost_for_one_is_left_out_for_all() -> None:
    ours = np.array([[1.0], [np.nan], [0.0]])
    theirs = np.array([[0.0], [1.0], [0.0]])

    assert difference(ours, theirs).value == 0.5
    assert mean(ours).value == 0.5
    assert np.isnan(mean(ours[1:2]).value)


def test_a_share_is_0_at_the_one_end_and_1_at_the_other() -> None:
    low, high = coins(300, 0.3, seed=3), coins(300, 0.9, seed=4)

    assert share(low, low, high).value == 0.0
    ends = share(high, low, high)
    assert (ends.low, ends.value, ends.high) == pytest.approx((1.0, 1.0, 1.0))
    middle = share((low + high) / 2, low, high)
    assert (middle.low, middle.high) == pytest.approx((0.5, 0.5))


def test_a_share_of_nothing_is_unknown() -> None:
    scores = coins(50, 0.5, seed=5)

    assert np.isnan(share(scores, scores, scores).value)
    assert np.isnan(share(scores, scores, 0 * scores).value)


def test_a_worse_decider_has_a_negative_share() -> None:
    low, high = coins(400, 0.5, seed=6), coins(400, 0.9, seed=7)

    assert share(coins(400, 0.1, seed=8), low, high).high < 0


def test_deciders_of_other_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="the same tasks"):
        difference(np.zeros((3, 1)), np.zeros((2, 1)))
    with pytest.raises(ValueError, match="none"):
        resampled_means([])
