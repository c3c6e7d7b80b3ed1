"""Gradient training of the head: the loss is the formula's, and wordings are left out."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from conductor.router import softmax
from training.graders import Exact
from training.router_sft import (
    SFT,
    Examples,
    descend,
    fit,
    join,
    permuted_workers,
    picked_reward,
    shuffled_labels,
    targets,
    wordings,
)
from training.tasks import draw, task

QUICK = SFT(taus=(0.3,), weight_decays=(0.01,), components=(8,))


def world(count: int, seed: int = 0, workers: int = 4, width: int = 16) -> Examples:
    """Kinds of tasks lie in different directions; each has one worker that is mostly right."""
    random = np.random.default_rng(seed)
    centres = 3 * np.random.default_rng(99).normal(size=(workers, width))
    kinds = random.integers(workers, size=count)
    states = centres[kinds] + random.normal(size=(count, width)) + 10
    right = np.where(np.eye(workers)[kinds] > 0, 0.9, 0.1)
    rewards = (random.random((count, workers, 4)) < right[:, :, None]).mean(axis=2)
    return Examples(states.astype(np.float32), rewards.astype(np.float32))


def test_targets_are_the_softmax_of_scores_over_tau() -> None:
    """p(j) = exp(r_j / tau) / sum; the smaller tau, the sharper."""
    soft = targets(np.array([[1.0, 0.5, 0.0]], np.float32), 0.5)

    e = np.e
    assert np.allclose(soft, [np.array([e**2, e, 1]) / (e**2 + e + 1)])
    with pytest.raises(ValueError, match="above 0"):
        targets(soft, 0.0)


def test_the_loss_told_is_the_mean_kl_and_its_minimum_is_found() -> None:
    """With as many directions as tasks and no decay, the policy becomes the targets."""
    random = np.random.default_rng(0)
    seen = np.eye(5, dtype=np.float32)
    soft = targets(random.random((5, 3)).astype(np.float32), 0.3)
    steps = descend(seen, soft, np.ones(5), np.zeros((5, 3), np.float32), 0.0, every=20)

    (first, told), *_, (last, least) = islice(steps, 4)

    chances = softmax(first.T)
    assert told == pytest.approx((soft * np.log(soft / chances)).sum(axis=1).mean(), abs=1e-5)
    assert least < 1e-6
    assert np.allclose(softmax(last.T), soft, atol=1e-3)


def test_the_head_learns_who_is_good_at_what() -> None:
    """And beats the best single worker by far on tasks that it never saw."""
    train, test = world(300), world(200, seed=2)

    fitted = fit(train, world(100, seed=1), QUICK)

    best_single = test.rewards.mean(axis=0).max()
    assert picked_reward(fitted.weight, test) > 0.85 > 0.5 > best_single
    assert fitted.weight.shape == (4, 16)
    losses = [update.loss for update in fitted.history]
    assert losses[-1] < losses[0]


def test_ties_teach_nothing() -> None:
    """Tasks on which all score the same leave the head what it is; alone they are an error."""
    train, validation = world(100), world(50, seed=1)
    frame_safe = np.vstack([train.states, train.states])
    tied = Examples(frame_safe, np.vstack([train.rewards, np.full_like(train.rewards, 0.5)]))

    with_ties, without = fit(tied, validation, QUICK), fit(train, validation, QUICK)

    assert np.allclose(with_ties.weight, without.weight, atol=1e-3)
    with pytest.raises(ValueError, match="nothing to learn"):
        fit(tied.where(~tied.decided), validation, QUICK)


def test_all_settings_are_tried_and_the_best_on_left_out_wordings_is_taken() -> None:
    """By picked reward; of equals the one that believes less."""
    train = world(120)
    folds = np.arange(120) % 3
    settings = SFT(taus=(0.1, 0.5), weight_decays=(0.01, 0.1), components=(4, 8))

    fitted = fit(train, world(60, seed=1), settings, folds=folds)

    assert len(fitted.trials) == 8
    best = max(trial.left_out or 0 for trial in fitted.trials)
    (chosen,) = (trial for trial in fitted.trials if trial.setting == fitted.setting)
    assert chosen.left_out == pytest.approx(best, abs=1e-4)


def test_sharpening_changes_probabilities_and_no_pick() -> None:
    """Soft targets make an undecided policy, which is brought to what it knows."""
    train, validation = world(200), world(100, seed=1)

    fitted = fit(train, validation, SFT(taus=(0.05, 1.0), weight_decays=(0.1,), components=(8,)))

    soft = fitted.frame.head(fitted.theta / fitted.sharpness)
    logits, before = validation.states @ fitted.weight.T, validation.states @ soft.T
    assert fitted.sharpness > 1
    assert (logits.argmax(axis=1) == before.argmax(axis=1)).all()


def test_wordings_keep_a_phrasing_in_one_fold() -> None:
    """Whatever the items; tasks of other sources are dealt one by one."""
    drawn = draw("addition", 60)
    folds = wordings(drawn, 3)

    by_start = {}
    for each, fold in zip(drawn, folds, strict=True):
        by_start.setdefault(each.question.split()[0].strip("0123456789"), set()).add(int(fold))
    assert {len(found) for start, found in by_start.items() if start} == {1}
    others = [task("other", f"question {number}", Exact(("x",))) for number in range(50)]
    assert set(wordings(others, 3).tolist()) == {0, 1, 2}


def test_a_newcomer_gets_its_share_and_old_decisions_stay() -> None:
    """Its row begins as the mean of the others; what it is best at goes to it."""
    whole = world(400), world(200, seed=1)
    old = [Examples(each.states, each.rewards[:, :3]) for each in whole]
    before = fit(*old, QUICK).weight

    joined = join(before, *whole)

    kinds = whole[1].rewards.argmax(axis=1)
    assert joined.weight.shape == (4, 16)
    assert joined.share == pytest.approx((kinds == 3).mean(), abs=0.08)
    assert joined.moved < 0.05
    assert joined.after > joined.before + 0.15


def test_a_newcomer_that_is_good_at_nothing_gets_nothing() -> None:
    """And nothing moves."""
    train, validation = world(300), world(200, seed=1)
    before = fit(train, validation, QUICK).weight
    useless = [
        Examples(each.states, np.hstack([each.rewards, np.zeros((len(each), 1), np.float32)]))
        for each in (train, validation)
    ]

    joined = join(before, *useless)

    assert joined.share == 0
    assert joined.moved < 0.03


def test_controls_spoil_what_they_say() -> None:
    """Rows or columns are permuted; every score is still there."""
    rewards = world(50).rewards

    assert sorted(map(tuple, shuffled_labels(rewards))) == sorted(map(tuple, rewards))
    permuted = permuted_workers(rewards)
    assert (np.sort(permuted, axis=1) == np.sort(rewards, axis=1)).all()
    assert (permuted != rewards).any()


def test_both_negative_controls_fall_to_chance() -> None:
    """Shuffled labels leave the best single worker, permuted workers a random one."""
    train, validation, test = world(300), world(100, seed=1), world(300, seed=2)
    honest = picked_reward(fit(train, validation, QUICK).weight, test)
    single = test.rewards[:, train.rewards.mean(axis=0).argmax()].mean()
    chances = ((shuffled_labels, single), (permuted_workers, test.rewards.mean()))

    for spoil, chance in chances:
        got = []
        for seed in range(4):
            first, second = (
                Examples(each.states, spoil(each.rewards, seed)) for each in (train, validation)
            )
            got.append(picked_reward(fit(first, second, QUICK).weight, test))
        assert np.mean(got) < chance + 0.12 < honest - 0.3
