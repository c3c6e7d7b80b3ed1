"""Train the router's head by gradient: soft targets from what the workers scored.

For task i and worker j the target is p_i(j) = softmax_j(r_ij / tau), where r_ij is the worker's mean
score; the loss is the mean of KL(p_i || policy(. | task i)). It is convex in the head, and the
states are kept on disk, so L-BFGS on the whole set takes a second where the same loss takes Adam
five (measured on 1,500 tasks: see docs/router.md).

Departures from the Fugu report, which leaves tau, data and optimiser open:

* tau and weight decay are chosen on the validation split, by expected reward;
* tasks on which all workers score the same teach nothing and are left out;
* hidden states are scaled coordinate by coordinate before training, which folds into the weights:
  the head stays a matrix without a bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from conductor.router import softmax

Array = NDArray[np.float32]

_ALIKE = 1e-6
"""Scores closer than this are the same."""


class SFT(BaseModel):
    """How the head is trained by gradient."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    taus: tuple[float, ...] = Field((0.05, 0.1, 0.2, 0.5), min_length=1)
    """Temperatures of the targets; the best one on validation is taken."""
    weight_decays: tuple[float, ...] = Field((1e-3, 1e-2, 1e-1), min_length=1)
    """Factors of half the squared weights, of scaled states; likewise."""
    tie_weight: float = Field(0.0, ge=0, le=1)
    """Weight of a task on which all workers score the same; 0 leaves it out."""
    scale: bool = True
    """Whether states are scaled coordinate by coordinate."""
    most_updates: int = Field(120, ge=1)
    """Steps of the optimiser at most."""
    patience: int = Field(4, ge=1)
    """Looks at validation without improvement after which training stops."""
    look_every: int = Field(5, ge=1)
    """Steps from one look at validation to the next."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Tasks as the trainers see them."""

    states: Array
    """(N, D)"""
    rewards: Array
    """(N, W): mean scores, from 0 to 1, none missing."""

    def __post_init__(self) -> None:
        if self.states.ndim != 2 or self.rewards.ndim != 2 or len(self.states) != len(self.rewards):
            told = f"{self.states.shape} and {self.rewards.shape}"
            raise ValueError(f"states and rewards have the shapes {told}; give (N, D) and (N, W)")
        if not (np.isfinite(self.states).all() and np.isfinite(self.rewards).all()):
            raise ValueError("states or rewards are not all finite; leave incomplete tasks out")

    def __len__(self) -> int:
        return len(self.states)

    @property
    def decided(self) -> NDArray[np.bool_]:
        """(N,): whether the workers differ."""
        apart: NDArray[np.bool_] = np.ptp(self.rewards, axis=1) > _ALIKE
        return apart


@dataclass(frozen=True, slots=True)
class Update:
    """One look at how training goes."""

    tau: float
    weight_decay: float
    update: int
    loss: float
    """Mean KL(p || policy) on training tasks, in nats, without weight decay."""
    validation: float
    """Expected reward on validation tasks."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """A trained head."""

    weight: Array
    """(W, D), for states as the backbone gives them."""
    tau: float
    weight_decay: float
    validation: float
    """Expected reward on the validation tasks."""
    history: tuple[Update, ...]
    """Of the chosen temperature and weight decay."""
    tried: tuple[Update, ...] = ()
    """The best look of each pair that was tried."""


# --- rewards of a head ----------------------------------------------------------------------------


def expected_reward(weight: Array, examples: Examples) -> float:
    """Mean over tasks of the reward that a draw by the policy expects."""
    chances = softmax(examples.states @ weight.T)
    return float((chances * examples.rewards).sum(axis=1).mean())


def picked_reward(weight: Array, examples: Examples) -> float:
    """Mean reward of the most probable worker."""
    picks = (examples.states @ weight.T).argmax(axis=1)
    return float(examples.rewards[np.arange(len(picks)), picks].mean())


def targets(rewards: Array, tau: float) -> Array:
    """Make soft targets (N, W) of mean scores (N, W)."""
    if tau <= 0:
        raise ValueError(f"tau is {tau}; it must be above 0")
    soft: Array = softmax(rewards.astype(np.float64) / tau).astype(np.float32)
    return soft


def scale_of(states: Array) -> Array:
    """Spread of each coordinate, (D,): what states are divided by before training.

    Coordinates that hardly move are not blown up: their spread counts as a hundredth of the
    middle one at least.
    """
    spread = states.std(axis=0)
    floor = max(float(np.median(spread)) / 100, 1e-6)
    scale: Array = np.maximum(spread, floor).astype(np.float32)
    return scale


# --- training -------------------------------------------------------------------------------------


def fit(
    train: Examples,
    validation: Examples,
    settings: SFT = SFT(),
    *,
    report: Callable[[Update], None] = lambda update: None,
) -> Fitted:
    """Train a head for each temperature and weight decay, and take the best on validation.

    Args:
        train: What it is trained on.
        validation: What stopping, temperature and weight decay are chosen by.
        settings: How.
        report: Is told of every look at validation.

    Raises:
        ValueError: If there is nothing to learn: no task on which workers differ.
    """
    if not train.decided.any() and not settings.tie_weight:
        raise ValueError("all workers score the same on every training task; nothing to learn")
    scale = scale_of(train.states) if settings.scale else np.ones(train.states.shape[1], np.float32)
    runs = [
        _fit_one(train, validation, settings, scale, tau, decay, report)
        for tau, decay in product(settings.taus, settings.weight_decays)
    ]
    # Of equals the stronger decay, then the softer target: less to believe.
    best = max(runs, key=lambda run: (round(run.validation, 6), run.weight_decay, run.tau))
    tried = tuple(max(run.history, key=lambda update: update.validation) for run in runs)
    return Fitted(best.weight, best.tau, best.weight_decay, best.validation, best.history, tried)


def _fit_one(
    train: Examples,
    validation: Examples,
    settings: SFT,
    scale: Array,
    tau: float,
    decay: float,
    report: Callable[[Update], None],
) -> Fitted:
    weights = np.where(train.decided, 1.0, settings.tie_weight)
    kept = weights > 0
    history: list[Update] = []
    best: tuple[float, Array] | None = None
    patience = settings.patience
    steps = descend(
        train.states[kept] / scale,
        targets(train.rewards[kept], tau),
        weights[kept],
        np.zeros((train.rewards.shape[1], train.states.shape[1]), np.float32),
        decay,
        every=settings.look_every,
    )
    for update, (theta, loss) in zip(
        range(settings.look_every, settings.most_updates + 1, settings.look_every),
        steps,
        strict=False,
    ):
        weight = theta / scale
        reward = expected_reward(weight, validation)
        history.append(Update(tau, decay, update, loss, reward))
        report(history[-1])
        if best is None or reward > best[0] + 1e-5:
            best, patience = (reward, weight), settings.patience
        elif not (patience := patience - 1):
            break
    if best is None:
        raise ValueError("most_updates is below look_every, so nothing was looked at")
    return Fitted(best[1], tau, decay, best[0], tuple(history))


def descend(
    states: Array,
    soft: Array,
    weights: NDArray[np.float64],
    start: Array,
    decay: float,
    *,
    every: int,
    anchor: float = 0.0,
) -> Iterable[tuple[Array, float]]:
    """Go down the loss with L-BFGS, on one thread, and give the head every so many steps.

    Args:
        states: (N, D), scaled.
        soft: Targets, (N, W).
        weights: Of the tasks, (N,).
        start: Where to begin, (W, D).
        decay: Factor of half the squared distance from ``start``.
        every: Steps between two heads given.
        anchor: Factor of KL(start's policy || policy) over all workers but the last, the newcomer:
            holds decisions between the others.

    Yields:
        The head for scaled states, (W, D), and the mean KL in nats.
    """
    import torch

    x, p = torch.from_numpy(states), torch.from_numpy(soft)
    share = torch.from_numpy((weights / weights.sum()).astype(np.float32))
    origin = torch.from_numpy(start)
    entropy = torch.special.entr(p).sum(1)
    before = torch.log_softmax(x @ origin[:-1].T, 1) if anchor else None
    theta = origin.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([theta], max_iter=every, line_search_fn="strong_wolfe")

    def kl() -> Any:
        cross = -(p * torch.log_softmax(x @ theta.T, 1)).sum(1)
        return (share * (cross - entropy)).sum()

    def closure() -> Any:
        optimizer.zero_grad()
        loss = kl() + decay / 2 * (theta - origin).square().sum()
        if before is not None:
            after = torch.log_softmax(x @ theta[:-1].T, 1)
            loss = loss + anchor * (before.exp() * (before - after)).sum(1).mean()
        loss.backward()
        return loss

    threads = torch.get_num_threads()
    while True:
        torch.set_num_threads(1)  # the products are small; threads wait for each other
        optimizer.step(closure)
        with torch.no_grad():
            told = float(kl())
        torch.set_num_threads(threads)
        yield theta.detach().numpy().copy(), told
