"""What a trained Conductor is rewarded by, and what becomes of it in a group. Pure: no I/O here.

A completion that is no valid plan earns 0, a plan whose answer is wrong 0.5, one whose answer is
right 1 (the Conductor paper's three values). What failed for technical reasons earns nothing that
could be told, which is not 0: it is None, takes no part in its group, and moves no weight.

Where the Conductor is asked a second time, it sees the first answer and writes a new plan or three
empty lists, which keep it. Then the first round is worth a part of what the second one came to.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from statistics import fmean, stdev

EPSILON = 1e-4
"""Added to the standard deviation that advantages are divided by."""
DISCOUNT = 0.25
"""What the second round counts for in the first one's reward."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a completion of the Conductor came to."""

    valid: bool
    """Whether it is a plan of the workers that were offered; in a second round also if it keeps."""
    score: float | None = 0.0
    """The answer's grade, from 0 to 1; None if there is none for technical reasons."""
    dollars: Decimal = Decimal(0)
    """What its workers cost."""
    tokens: int = 0
    """Of the completion."""
    parts: float = 0.0
    """Share of the question's parts before the last that a step before the last was right about."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What else counts. Nothing does by default, as in the paper."""

    cost: float = 0.0
    """Taken off for a tenth of a cent (1000 x dollars)."""
    length: float = 0.0
    """Taken off for each token of the completion."""
    parts: float = 0.0
    """Given where the answer is wrong, but all parts before the last were answered; up to 0.5. The
    paper has no such term."""

    def __post_init__(self) -> None:
        for name in ("cost", "length"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} = {value}: a weight is 0 or more; it is taken off")
        if not 0 <= self.parts <= 0.5:
            told = "a wrong answer is worth no more than a right one; write 0 to 0.5"
            raise ValueError(f"parts = {self.parts}: {told}")


@dataclass(frozen=True, slots=True)
class Reward:
    """A reward in its parts."""

    format: float
    """0.5 for a valid plan, else 0."""
    correct: float
    """0.5 for a right answer, else 0."""
    cost: float = 0.0
    """0 or less."""
    length: float = 0.0
    """0 or less."""
    parts: float = 0.0
    """0 to 0.5, and 0 for a right answer."""

    @property
    def total(self) -> float:
        """The sum: 0, 0.5 or 1 if nothing else counts."""
        return self.format + self.correct + self.cost + self.length + self.parts


def reward_of(outcome: Outcome, weights: Weights = Weights()) -> Reward | None:
    """Reward an outcome; None, to be masked, if it has no answer for technical reasons.

    An answer that is right in part is wrong. What is no plan was written all the same: its length
    counts.
    """
    length = -weights.length * outcome.tokens
    if not outcome.valid:
        return Reward(0.0, 0.0, length=length)
    if outcome.score is None:
        return None
    correct = 0.5 if outcome.score >= 1 else 0.0
    cost = -weights.cost * 1000 * float(outcome.dollars)
    return Reward(0.5, correct, cost, length, 0.0 if correct else weights.parts * outcome.parts)


# --- two rounds -----------------------------------------------------------------------------------


def kept(first: Outcome, tokens: int = 0) -> Outcome:
    """The outcome of a second round that keeps the first one's answer: it is as right as that.

    Args:
        first: The first round's.
        tokens: Of the second completion.

    Raises:
        ValueError: If the first round was no plan: then there is no answer to keep.
    """
    if not first.valid:
        raise ValueError("the first round was no plan, so it has no answer to keep")
    return replace(first, dollars=Decimal(0), tokens=tokens)


def blended(first: float | None, second: float | None, discount: float = DISCOUNT) -> float | None:
    """What the first of two rounds is rewarded with: ``(1 - discount) first + discount second``.

    The second round's reward stays as it is. One that is garbled earned 0 and is blended as 0. A
    first round that no second followed is not blended.

    Returns:
        The reward; None if either is masked, since a blend with the unknown is unknown.

    Raises:
        ValueError: If the discount is not from 0 to 1.
    """
    if not 0 <= discount <= 1:
        raise ValueError(f"discount = {discount}: write a number from 0 to 1")
    if first is None or second is None:
        return None
    return (1 - discount) * first + discount * second


# --- groups ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Group:
    """The rewards of one question's completions, in one round."""

    mean: float | None
    """None if all are masked."""
    std: float | None
    """The sample standard deviation (n - 1), as TRL has it; None with fewer than two rewards."""
    counted: int
    masked: int

    @property
    def flat(self) -> bool:
        """Whether nothing can be learned from it: its rewards don't differ, or are fewer than two.

        TRL's ``frac_reward_zero_std`` does not count groups of one reward that is not masked.
        """
        return self.std is None or self.std <= _NOTHING


_NOTHING = 1e-8
"""A standard deviation that is rounding and no more."""


def group_of(rewards: Sequence[float | None]) -> Group:
    """Describe a group; rewards that are None count only as masked."""
    known = [each for each in rewards if each is not None]
    return Group(
        fmean(known) if known else None,
        stdev(known) if len(known) > 1 else None,
        len(known),
        len(rewards) - len(known),
    )


def advantages(rewards: Sequence[float | None]) -> tuple[float, ...]:
    """Advantages in a group: ``(r - mean) / (std + 1e-4)``.

    The standard deviation is that of the sample (n - 1), so this is what TRL 1.16 computes with
    ``scale_rewards = "group"``; masked rewards get 0 and count for nothing there, too.
    """
    group = group_of(rewards)
    if group.mean is None or group.std is None:
        return (0.0,) * len(rewards)
    scale = group.std + EPSILON
    return tuple(0.0 if each is None else (each - group.mean) / scale for each in rewards)


def grouped_advantages(
    keys: Sequence[Hashable], rewards: Sequence[float | None]
) -> tuple[float, ...]:
    """Advantages of rewards in several groups at once.

    Args:
        keys: Which group each reward is in: the question or, with two rounds, question and round.
        rewards: As many; blended before.

    Raises:
        ValueError: If there are more of the one than of the other.
    """
    places = _places(keys, rewards)
    found = [0.0] * len(rewards)
    for at in places.values():
        for place, value in zip(at, advantages([rewards[each] for each in at]), strict=True):
            found[place] = value
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Groups:
    """What the groups of a batch come to, for the log."""

    groups: int
    flat: int
    """Groups without variance."""
    masked: int
    """Completions without a reward."""
    mean: float | None
    """Of all rewards; None if all are masked."""
    std: float | None
    """Mean of the groups' own standard deviations; that of the whole batch would hide flat ones."""

    @property
    def flat_share(self) -> float:
        """Share of groups without variance, from 0 to 1."""
        return self.flat / self.groups if self.groups else 0.0


def groups_of(keys: Sequence[Hashable], rewards: Sequence[float | None]) -> Groups:
    """Sum up the groups of a batch.

    Args, Raises: As :func:`grouped_advantages`.
    """
    groups = [group_of([rewards[at] for at in each]) for each in _places(keys, rewards).values()]
    spreads = [each.std for each in groups if each.std is not None]
    return Groups(
        len(groups),
        sum(each.flat for each in groups),
        sum(each.masked for each in groups),
        group_of(rewards).mean,
        fmean(spreads) if spreads else None,
    )


def _places(keys: Sequence[Hashable], rewards: Sequence[float | None]) -> dict[Hashable, list[int]]:
    if len(keys) != len(rewards):
        raise ValueError(f"{len(keys)} keys for {len(rewards)} rewards; each reward needs its own")
    places: dict[Hashable, list[int]] = {}
    for at, key in enumerate(keys):
        places.setdefault(key, []).append(at)
    return places
