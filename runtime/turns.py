"""Turns: what a router decides, and the loop in which thinkers, solvers and verifiers take turns.

The rules are pure. What a worker wrote is data: it is searched for a few tags and a verdict, and
never followed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Role(StrEnum):
    """What a worker is asked for in its turn. In this order they follow the workers in a head."""

    SOLVER = "solver"
    """A full answer."""
    THINKER = "thinker"
    """A suggestion for whoever comes next."""
    VERIFIER = "verifier"
    """Whether the current answer is right."""


ROLES = tuple(Role)


@dataclass(frozen=True, slots=True)
class Pick:
    """One decision of a router, and its grounds."""

    worker: str
    probabilities: Mapping[str, float]
    """By worker, in the order of the head; those that may not be used are left out."""
    role: Role | None = None
    """None where there are no roles."""
    roles: Mapping[str, float] = field(default_factory=dict)
    """Probability of each role; empty where there are none."""
    suggested: bool = False
    """Whether the role is the one that a thinker suggested, and not the router's."""
    sampled: bool = False
    """Whether it was drawn by its probability, or else is the most probable."""
    unknown: tuple[str, ...] = ()
    """Workers of the pool that the router was not trained on: they are never picked."""
    backbone: str = ""
    """The model whose hidden state was read."""
    tokens: int = 0
    """Length of what it read."""
    seconds: float = 0.0
    """How long the decision took; the first one of a process loads the model."""
