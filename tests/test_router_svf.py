"""Training singular-value offsets: two blocks as the model has them, and what gradients do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conductor import Encoder
from training.router_sft import SFT, Examples, Fitted, fit
from training.router_svf import SVF, Bend, _Blocks, bend, bent
from training.tasks import Task, draw

QUESTIONS = ["2 + 2?", "Sort 3, 1, 2, please.", "Spell it."]


@pytest.fixture(scope="module")
def encoder(tiny_folder: Path) -> Encoder:
    return Encoder(str(tiny_folder), system="s", frame="{question}", lead="A:", most_tokens=200)


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return [each for name in ("addition", "reversal") for each in draw(name, 12)]


@pytest.fixture(scope="module")
def known(encoder: Encoder, tasks: list[Task]) -> Examples:
    """Two workers: one adds, one spells; of two tasks nobody knows who is better."""
    rewards = np.array([[1, 0] if task.family == "addition" else [0, 1] for task in tasks])
    rewards[:2] = 1
    return Examples(encoder.states([task.question for task in tasks]), rewards.astype(np.float32))


@pytest.fixture(scope="module")
def fitted(known: Examples) -> Fitted:
    return fit(known, known, SFT(taus=(1.0,), weight_decays=(0.01,), components=(2,)))


def test_its_two_blocks_give_the_states_of_the_encoder(encoder: Encoder) -> None:
    """Also with offsets, as the engine puts them in place."""
    import torch

    blocks = _Blocks.of(encoder)
    inputs = blocks.below(QUESTIONS, 2)
    random = np.random.default_rng(0)
    offsets = {
        name: random.uniform(-0.4, 0.4, min(weight.shape)).astype(np.float32)
        for name, weight in blocks.weights.items()
    }

    for chosen in ({name: np.zeros_like(each) for name, each in offsets.items()}, offsets):
        tensors = {name: torch.from_numpy(each) for name, each in chosen.items()}
        found = blocks.states(inputs, tensors).numpy()
        np.testing.assert_allclose(found, bent(encoder, chosen).states(QUESTIONS), atol=1e-4)


def test_offsets_lower_the_loss_and_the_same_seed_gives_the_same(
    encoder: Encoder, tasks: list[Task], known: Examples, fitted: Fitted
) -> None:
    part = (tasks, known)
    settings = SVF(rate=0.05, updates=12, batch=8, every=4)
    told: list[Bend] = []

    found = bend(encoder, fitted, part, part, settings, seed=3, report=told.append)
    again = bend(encoder, fitted, part, part, settings, seed=3)

    assert [look.update for look in found.looks] == [0, 4, 8, 12]
    assert tuple(told) == found.looks
    assert [look.loss is None for look in found.looks] == [True, False, False, False]
    assert min(look.validation_loss for look in found.looks[1:]) < found.looks[0].validation_loss
    assert len(found.offsets) == 7
    assert any(np.abs(each).max() > 0.01 for each in found.offsets.values())
    for name, each in found.offsets.items():
        np.testing.assert_array_equal(each, again.offsets[name])


def test_stopped_at_once_it_bends_nothing(
    encoder: Encoder, tasks: list[Task], known: Examples, fitted: Fitted
) -> None:
    found = bend(encoder, fitted, (tasks, known), (tasks, known), stop=lambda: True)

    assert len(found.looks) == 1
    assert all(not each.any() for each in found.offsets.values())


def test_what_it_can_not_train_is_refused(
    encoder: Encoder, tasks: list[Task], known: Examples, fitted: Fitted, tiny_folder: Path
) -> None:
    part = (tasks, known)
    tied = (tasks, replace(known, rewards=np.ones_like(known.rewards)))

    with pytest.raises(ValueError, match="read at the final layer"):
        bend(Encoder(str(tiny_folder), layer=1), fitted, part, part)
    with pytest.raises(ValueError, match="nothing to learn"):
        bend(encoder, fitted, tied, part)
