"""Rewards: three values in named parts, what is masked, groups, and two rounds."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.rewards import (
    EPSILON,
    Group,
    Outcome,
    Reward,
    Weights,
    advantages,
    blended,
    group_of,
    grouped_advantages,
    groups_of,
    kept,
    reward_of,
)

TOTALS = st.sampled_from([0.0, 0.5, 1.0])
REWARDS = st.lists(st.none() | TOTALS, max_size=12)
SCORES = st.none() | st.floats(0, 1)
OUTCOMES = st.builds(
    Outcome,
    valid=st.booleans(),
    score=SCORES,
    dollars=st.decimals(0, 1, places=6),
    tokens=st.integers(0, 500),
    parts=st.floats(0, 1),
)


@pytest.mark.parametrize(
    ("outcome", "parts", "total"),
    [
        pytest.param(Outcome(False), Reward(0, 0), 0, id="no plan"),
        pytest.param(Outcome(False, None), Reward(0, 0), 0, id="no plan is no technical failure"),
        pytest.param(Outcome(True, 0.0), Reward(0.5, 0), 0.5, id="wrong"),
        pytest.param(Outcome(True, 0.99), Reward(0.5, 0), 0.5, id="right in part"),
        pytest.param(Outcome(True, 1.0), Reward(0.5, 0.5), 1, id="right"),
    ],
)
def test_a_completion_earns_0_or_a_half_or_1(outcome: Outcome, parts: Reward, total: float) -> None:
    earned = reward_of(outcome)

    assert earned == parts
    assert earned is not None
    assert earned.total == total


def test_what_failed_for_technical_reasons_is_masked() -> None:
    assert reward_of(Outcome(True, None)) is None


@given(OUTCOMES)
def test_money_and_length_count_for_nothing_unless_asked_for(outcome: Outcome) -> None:
    earned = reward_of(outcome)

    assert earned is None or (earned.cost == earned.length == 0 and earned.total in (0, 0.5, 1))


@given(OUTCOMES, st.floats(0, 10), st.floats(0, 10))
def test_terms_only_ever_take_off(outcome: Outcome, cost: float, length: float) -> None:
    plain, weighted = reward_of(outcome), reward_of(outcome, Weights(cost, length))

    assert (plain is None) == (weighted is None)
    if plain is not None and weighted is not None:
        assert weighted.total <= plain.total
        assert (weighted.format, weighted.correct) == (plain.format, plain.correct)


def test_each_term_is_a_part_of_its_own() -> None:
    earned = reward_of(Outcome(True, 1.0, Decimal("0.0002"), 30), Weights(cost=0.5, length=0.01))

    assert earned == Reward(0.5, 0.5, pytest.approx(-0.1), pytest.approx(-0.3))  # type: ignore[arg-type]


@given(OUTCOMES, st.floats(0, 0.5))
def test_parts_count_for_a_wrong_answer_and_never_for_more_than_a_right_one(
    outcome: Outcome, weight: float
) -> None:
    plain, weighted = reward_of(outcome), reward_of(outcome, Weights(parts=weight))

    assert (plain is None) == (weighted is None)
    if plain is not None and weighted is not None:
        wrong = plain.total == 0.5
        assert weighted.parts == (weight * outcome.parts if wrong else 0)
        assert plain.total <= weighted.total <= 1


@pytest.mark.parametrize("weight", [-0.1, 0.6, math.nan])
def test_parts_may_not_be_worth_more_than_the_answer(weight: float) -> None:
    with pytest.raises(ValueError, match=r"parts = .*write 0 to 0.5"):
        Weights(parts=weight)


@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
def test_a_weight_that_would_pay_for_waste_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=r"length = .*0 or more"):
        Weights(length=weight)


# --- groups ---------------------------------------------------------------------------------------


def test_a_group_tells_mean_deviation_and_what_is_masked() -> None:
    assert group_of([0, None, 1]) == Group(0.5, pytest.approx(math.sqrt(0.5)), 2, 1)  # type: ignore[arg-type]
    assert group_of([1, None]) == Group(1, None, 1, 1)
    assert group_of([None]) == Group(None, None, 0, 1)


@given(REWARDS)
def test_advantages_of_a_group_sum_to_nothing(rewards: list[float | None]) -> None:
    assert sum(advantages(rewards)) == pytest.approx(0, abs=1e-9)


@given(REWARDS, st.integers(0, 12))
def test_what_is_masked_changes_nobody_elses_advantage(
    rewards: list[float | None], at: int
) -> None:
    found = advantages([*rewards[:at], None, *rewards[at:]])
    place = min(at, len(rewards))

    assert found[place] == 0
    assert found[:place] + found[place + 1 :] == advantages(rewards)


@given(REWARDS)
def test_a_group_is_flat_exactly_if_nothing_moves(rewards: list[float | None]) -> None:
    assert group_of(rewards).flat == all(abs(each) < 1e-3 for each in advantages(rewards))


@given(st.lists(TOTALS, min_size=2, max_size=12))
def test_better_rewards_have_the_greater_advantages(rewards: list[float]) -> None:
    found = advantages(rewards)

    ordered = sorted(zip(rewards, found, strict=True))
    assert [each for _, each in ordered] == sorted(found)


@given(st.lists(TOTALS | st.none(), min_size=2, max_size=8))
def test_advantages_are_those_of_trl(rewards: list[float | None]) -> None:
    torch = pytest.importorskip("torch")
    nanstd = pytest.importorskip("trl.trainer.utils").nanstd
    given_ = torch.tensor([math.nan if each is None else each for each in rewards]).double()

    theirs = torch.nan_to_num((given_ - given_.nanmean()) / (nanstd(given_) + EPSILON), nan=0.0)

    assert advantages(rewards) == pytest.approx(theirs.tolist(), abs=1e-6)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.none() | TOTALS), max_size=20))
def test_groups_in_any_order_are_as_each_alone(rows: list[tuple[str, float | None]]) -> None:
    keys, rewards = [key for key, _ in rows], [reward for _, reward in rows]

    found = grouped_advantages(keys, rewards)

    for key in set(keys):
        at = [place for place, each in enumerate(keys) if each == key]
        alone = advantages([rewards[place] for place in at])
        assert tuple(found[place] for place in at) == alone


def test_a_batch_counts_groups_that_teach_nothing() -> None:
    keys = ["mixed", "mixed", "flat", "flat", "lost", "lost"]
    summed = groups_of(keys, [0.5, 1, 1, 1, 1, None])

    assert (summed.groups, summed.flat, summed.masked) == (3, 2, 1)
    assert summed.flat_share == pytest.approx(2 / 3)
    assert (summed.mean, summed.std) == (pytest.approx(0.9), pytest.approx(0.125**0.5 / 2))
    assert groups_of([], []).flat_share == 0


def test_a_reward_without_its_group_is_refused() -> None:
    with pytest.raises(ValueError, match="1 keys for 2 rewards"):
        grouped_advantages(["a"], [0, 1])


# --- two rounds -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param(0.5, 1.0, 0.625, id="mended"),
        pytest.param(1.0, 0.5, 0.875, id="spoiled"),
        pytest.param(1.0, 0.0, 0.75, id="garbled"),
        pytest.param(1.0, 1.0, 1.0, id="kept"),
        pytest.param(None, 1.0, None, id="first masked"),
        pytest.param(1.0, None, None, id="second masked"),
    ],
)
def test_the_first_round_is_worth_a_part_of_the_second(
    first: float | None, second: float | None, expected: float | None
) -> None:
    assert blended(first, second) == expected


@given(TOTALS, TOTALS, st.floats(0, 1))
def test_a_blend_lies_between_its_rounds(first: float, second: float, discount: float) -> None:
    found = blended(first, second, discount)

    assert found is not None
    assert min(first, second) - 1e-12 <= found <= max(first, second) + 1e-12


@given(SCORES, st.integers(0, 100))
def test_to_keep_an_answer_is_as_right_as_the_answer(score: float | None, tokens: int) -> None:
    first = Outcome(True, score, Decimal(1), 5)

    second = kept(first, tokens)

    assert reward_of(second) == reward_of(first)
    assert (second.dollars, second.tokens) == (0, tokens)


def test_nothing_can_be_kept_of_what_was_no_plan() -> None:
    with pytest.raises(ValueError, match="no answer to keep"):
        kept(Outcome(False))


@pytest.mark.parametrize("discount", [-0.1, 1.1, math.nan])
def test_a_discount_beyond_its_range_is_refused(discount: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        blended(1, 1, discount)
