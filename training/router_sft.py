"""Train the router's head by gradient: soft targets from what the workers scored.

For task i and worker j the target is p_i(j) = softmax_j(r_ij / tau), r_ij being the mean score of
the worker; the loss is the mean of KL(p_i || policy(. | task i)). It is convex in the head and the
states are kept on disk, so L-BFGS on the whole set takes a fraction of a second.

Departures from the Fugu report, which leaves tau, data and optimiser open:

* tau, weight decay and frame are chosen by leaving *wordings* out: questions are grouped by what
  they have in common, heads are trained without some groups and tried on them. On the validation
  split, whose wordings are those of training, nearly every setting is right nearly always, and the
  sharpest one wins there and fails on a new wording (docs/router.md has the figures);
* tasks on which all workers score the same teach nothing and are left out;
* the head is trained in a frame, a linear map of the states, that folds back into the weights: it
  stays a matrix without a bias.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from conductor.router import softmax

from .families import CHAINS, FAMILIES
from .states import Array, Frame, frame_of
from .tasks import Task

_ALIKE = 1e-6
"""Scores closer than this are the same."""


class SFT(BaseModel):
    """How the head is trained by gradient."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    taus: tuple[float, ...] = Field(default=(0.1, 0.3, 1.0), min_length=1)
    """Temperatures of the targets; the best one is taken."""
    weight_decays: tuple[float, ...] = Field(default=(1e-3, 1e-2), min_length=1)
    """Factors of half the squared weights, in the frame; likewise."""
    components: tuple[int, ...] = Field(default=(8, 12, 16, 32), min_length=1)
    """Directions of the frame, see :func:`training.states.frame_of`; likewise."""
    choose_by: Literal["wordings", "validation"] = "wordings"
    """The best: by picked reward on wordings that were left out, or by expected reward on the
    validation tasks."""
    folds: int = Field(default=3, ge=2)
    """Parts that wordings are dealt to; each is left out once."""
    tie_weight: float = Field(default=0.0, ge=0, le=1)
    """Weight of a task on which all workers score the same; 0 leaves it out."""
    most_updates: int = Field(default=100, ge=1)
    """Steps of the optimiser at most."""
    patience: int = Field(default=8, ge=1)
    """Steps without a smaller loss on validation after which training stops."""


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

    def where(self, keep: NDArray[np.bool_]) -> Examples:
        """Keep the tasks for which ``keep`` (N,) is true."""
        return Examples(self.states[keep], self.rewards[keep])


class Setting(BaseModel):
    """One temperature, weight decay and frame."""

    model_config = ConfigDict(frozen=True)

    tau: float
    weight_decay: float
    components: int


@dataclass(frozen=True, slots=True)
class Update:
    """One step of the optimiser."""

    update: int
    loss: float
    """Mean KL(p || policy) on training tasks, in nats, without weight decay."""
    validation_loss: float
    """The same on validation tasks."""
    expected: float
    """Expected reward on validation tasks."""
    picked: float
    """Reward of the most probable worker there."""


@dataclass(frozen=True, slots=True)
class Trial:
    """How a setting did."""

    setting: Setting
    left_out: float | None
    """Picked reward on wordings that were left out; None if that was not measured."""
    expected: float
    """Expected reward on validation."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """A trained head."""

    theta: Array
    """(W, K), in the frame."""
    frame: Frame
    setting: Setting
    history: tuple[Update, ...]
    """Before sharpening."""
    sharpness: float = 1.0
    """What the weights were multiplied by in the end."""
    trials: tuple[Trial, ...] = ()
    """All settings that were tried."""

    @property
    def weight(self) -> Array:
        """(W, D), for states as the backbone gives them."""
        return self.frame.head(self.theta)


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


# --- wordings -------------------------------------------------------------------------------------


def wordings(tasks: Sequence[Task], folds: int) -> NDArray[np.intp]:
    """Deal tasks to folds, (N,), all of one wording to the same.

    The phrasings of our own families take turns. Tasks of other sources are each a wording of
    their own.
    """
    dealt = []
    for task in tasks:
        number = next((at for at, form in _forms(task.family) if form.fullmatch(task.question)), -1)
        if number < 0:
            number = int.from_bytes(sha256(task.question.encode()).digest()[:4])
        dealt.append(number % folds)
    return np.array(dealt, np.intp)


@cache
def _forms(family: str) -> tuple[tuple[int, re.Pattern[str]], ...]:
    source = FAMILIES.get(family) or CHAINS.get(family)
    phrasings = (*source.phrasings, *source.held_out) if source else ()
    return tuple(
        (at, re.compile("(.+)".join(map(re.escape, re.split(r"\{\w+\}", phrasing)))))
        for at, phrasing in enumerate(phrasings)
    )


# --- training -------------------------------------------------------------------------------------


def fit(
    train: Examples,
    validation: Examples,
    settings: SFT = SFT(),
    *,
    folds: NDArray[np.intp] | None = None,
    report: Callable[[Trial], None] = lambda trial: None,
) -> Fitted:
    """Choose a setting, and train a head by it.

    Args:
        train: What it is trained on.
        validation: What training is stopped by.
        settings: How.
        folds: (N,): which fold each training task is in, see :func:`wordings`; settings are
            chosen on validation tasks if None.
        report: Is told of every setting that was tried.

    Raises:
        ValueError: If there is nothing to learn: no task on which workers differ.
    """
    if not train.decided.any() and not settings.tie_weight:
        raise ValueError("all workers score the same on every training task; nothing to learn")
    choices = [
        Setting(tau=tau, weight_decay=decay, components=components)
        for components, tau, decay in product(
            settings.components, settings.taus, settings.weight_decays
        )
    ]
    chosen, trials = choices[0], list[Trial]()
    if settings.choose_by == "validation" or folds is None or len(set(folds.tolist())) < 2:
        folds = None
    everything = np.ones(len(train), bool)
    left = [] if folds is None else [folds == fold for fold in sorted(set(folds.tolist()))]

    @cache
    def frame(components: int, without: int) -> Frame:
        """That of the tasks outside a fold, or of all for -1."""
        return frame_of(train.states[everything if without < 0 else ~left[without]], components)

    for setting in choices if len(choices) > 1 else []:
        left_out = None
        fitted = _fit(train, validation, settings, setting, frame(setting.components, -1))
        if left:
            got = 0.0
            for at, fold in enumerate(left):
                part, rest = train.where(fold), train.where(~fold)
                if rest.decided.any():
                    seen = frame(setting.components, at)
                    tried = _fit(rest, validation, settings, setting, seen)
                    got += picked_reward(tried.weight, part) * len(part)
            left_out = got / len(train)
        trial = Trial(setting, left_out, expected_reward(fitted.weight, validation))
        trials.append(trial)
        report(trial)

    def merit(trial: Trial) -> tuple[float, ...]:
        # Of equals the stronger decay and the softer target: less to believe.
        value = trial.expected if trial.left_out is None else trial.left_out
        return round(value, 4), trial.setting.weight_decay, trial.setting.tau

    if trials:
        chosen = max(trials, key=merit).setting
    best = _fit(train, validation, settings, chosen, frame(chosen.components, -1))
    return replace(_sharpened(best, validation, min(settings.taus)), trials=tuple(trials))


def _sharpened(fitted: Fitted, validation: Examples, tau: float) -> Fitted:
    """Multiply the weights so that probabilities mean what they say; picks stay what they are.

    Soft targets generalise best, but a policy trained on them is as undecided as they are. So the
    factor is chosen that brings the policy closest to the sharpest targets, on validation.
    """
    checked = validation.where(validation.decided)
    if not len(checked):
        return fitted
    soft, logits = targets(checked.rewards, tau), checked.states @ fitted.weight.T
    factors = np.geomspace(1, 1000, 61)
    losses = [_kl(soft, softmax(logits * factor)) for factor in factors]
    factor = float(factors[int(np.argmin(losses))])
    theta = (fitted.theta * factor).astype(np.float32)
    return replace(fitted, theta=theta, sharpness=factor)


def _fit(
    train: Examples, validation: Examples, settings: SFT, setting: Setting, frame: Frame
) -> Fitted:
    """Train one head; the one with the least validation loss is kept."""
    weights = np.where(train.decided, 1.0, settings.tie_weight)
    kept = weights > 0
    # All in the frame, where products are small: BLAS threads would wait for each other.
    seen, decided = frame.seen(validation.states), validation.decided
    decided = decided if decided.any() else ~decided
    soft = targets(validation.rewards[decided], setting.tau)
    history: list[Update] = []
    best: tuple[float, Array] | None = None
    patience = settings.patience
    workers = train.rewards.shape[1]
    steps = descend(
        frame.seen(train.states[kept]),
        targets(train.rewards[kept], setting.tau),
        weights[kept],
        np.zeros((int(kept.sum()), workers), np.float32),
        setting.weight_decay,
        every=1,
    )
    for update, (theta, loss) in zip(range(1, settings.most_updates + 1), steps, strict=False):
        chances = softmax(seen @ theta.T)
        against = _kl(soft, chances[decided])
        expected = float((chances * validation.rewards).sum(axis=1).mean())
        picked = validation.rewards[np.arange(len(seen)), chances.argmax(axis=1)].mean()
        history.append(Update(update, loss, against, expected, float(picked)))
        if best is None or against < best[0] - 1e-5:
            best, patience = (against, theta), settings.patience
        elif not (patience := patience - 1):
            break
    assert best is not None  # there is at least one update
    return Fitted(best[1], frame, setting, tuple(history))


def _kl(soft: Array, chances: Array) -> float:
    """Mean KL(soft || chances), both (N, W), in nats."""
    logs = np.log(np.maximum(soft, 1e-30)) - np.log(np.maximum(chances, 1e-30))
    return float((soft * logs).sum(axis=1).mean())


def descend(
    seen: Array,
    soft: Array,
    weights: NDArray[np.float64],
    base: Array,
    decay: float,
    *,
    every: int,
    anchor: float = 0.0,
) -> Iterator[tuple[Array, float]]:
    """Go down the loss with L-BFGS, on one thread, and give the head every so many steps.

    Args:
        seen: States in the frame, (N, K).
        soft: Targets, (N, W).
        weights: Of the tasks, (N,).
        base: Logits that the head's are added to, (N, W).
        decay: Factor of half the squared weights.
        every: Steps between two heads given.
        anchor: Factor of KL(policy of the base || policy) over all workers but the last, the
            newcomer: holds decisions between the others.

    Yields:
        The head in the frame, (W, K), and the mean KL of the targets in nats.
    """
    import torch

    x, p, b = torch.from_numpy(seen), torch.from_numpy(soft), torch.from_numpy(base)
    share = torch.from_numpy((weights / weights.sum()).astype(np.float32))
    entropy = torch.special.entr(p).sum(1)
    before = torch.log_softmax(b[:, :-1], 1)
    theta = torch.zeros((soft.shape[1], seen.shape[1]), requires_grad=True)
    optimizer = torch.optim.LBFGS([theta], max_iter=every, line_search_fn="strong_wolfe")

    def kl(logits: torch.Tensor) -> torch.Tensor:
        cross = -(p * torch.log_softmax(logits, 1)).sum(1)
        loss: torch.Tensor = (share * (cross - entropy)).sum()
        return loss

    def closure() -> Any:
        optimizer.zero_grad()
        logits = b + x @ theta.T
        loss = kl(logits) + decay / 2 * theta.square().sum()
        if anchor:
            after = torch.log_softmax(logits[:, :-1], 1)
            loss = loss + anchor * (before.exp() * (before - after)).sum(1).mean()
        loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        return loss

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the products are small; threads would wait for each other
    try:
        while True:
            optimizer.step(closure)  # type: ignore[no-untyped-call]  # likewise
            with torch.no_grad():
                told = float(kl(b + x @ theta.T))
            yield theta.detach().numpy().copy(), told
    finally:
        torch.set_num_threads(threads)


# --- a worker joins -------------------------------------------------------------------------------


class Joining(BaseModel):
    """How a newcomer's row is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tau: float = Field(default=1.0, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    components: int = Field(default=16, ge=1)
    anchor: float = Field(default=0.1, ge=0)
    """Weight of keeping the decisions between the others."""
    updates: int = Field(default=60, ge=1)


@dataclass(frozen=True, eq=False)
class Joined:
    """A head with one worker more."""

    weight: Array
    """(W + 1, D); the newcomer's row is the last one."""
    moved: float
    """Share of validation tasks that now go from one of the others to another one of them."""
    share: float
    """Share of validation tasks that go to the newcomer."""
    before: float
    """Picked reward on validation without it."""
    after: float
    """The same with it."""


def join(
    weight: Array, train: Examples, validation: Examples, settings: Joining = Joining()
) -> Joined:
    """Add a worker to a head: the mean of the others' rows, then a short anchored training.

    Args:
        weight: The head without it, (W, D).
        train: With the newcomer's rewards as the last column, (N, W + 1).
        validation: Likewise.
        settings: How.

    Raises:
        ValueError: If the shapes don't fit, or nothing can be learned.
    """
    if train.rewards.shape[1] != len(weight) + 1:
        told = f"{train.rewards.shape[1]} columns of rewards for a head of {len(weight)} workers"
        raise ValueError(f"{told}; the newcomer's is the one more")
    kept = train.where(train.decided)
    if not len(kept):
        raise ValueError("all workers score the same on every training task; nothing to learn")
    frame = frame_of(train.states, settings.components)
    start: Array = np.vstack([weight, weight.mean(axis=0)]).astype(np.float32)
    steps = descend(
        frame.seen(kept.states),
        targets(kept.rewards, settings.tau),
        np.ones(len(kept)),
        (kept.states @ start.T).astype(np.float32),
        settings.weight_decay,
        every=settings.updates,
        anchor=settings.anchor,
    )
    theta, _ = next(steps)
    joined: Array = (start + frame.head(theta)).astype(np.float32)
    old = Examples(validation.states, validation.rewards[:, :-1])
    was = (old.states @ weight.T).argmax(axis=1)
    now = (validation.states @ joined.T).argmax(axis=1)
    newcomer = now == len(weight)
    return Joined(
        joined,
        float(((now != was) & ~newcomer).mean()),
        float(newcomer.mean()),
        picked_reward(weight, old),
        picked_reward(joined, validation),
    )


# --- negative controls ----------------------------------------------------------------------------


def shuffled_labels(rewards: Array, seed: int = 0) -> Array:
    """Permute the rows of rewards (N, W): each task gets those of another one.

    What a worker scores on average stays, so the best that can be learned is the best single one.
    """
    return rewards[np.random.default_rng([seed, 0]).permutation(len(rewards))]


def permuted_workers(rewards: Array, seed: int = 0) -> Array:
    """Permute the columns of rewards (N, W), task by task: names mean nothing any more.

    Nothing can be learned; what is left is a random worker.
    """
    return np.random.default_rng([seed, 1]).permuted(rewards, axis=1)
