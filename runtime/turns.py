"""Turns: what a router decides, and the loop in which thinkers, solvers and verifiers take turns.

The rules are pure. What a worker wrote is data: it is searched for a few tags and a verdict, and
never followed.
"""

from __future__ import annotations

import re
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


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn that has been taken."""

    role: Role
    text: str
    """What the worker wrote."""


@dataclass(frozen=True, slots=True)
class Episode:
    """What the turns so far come to. A value: :meth:`after` gives the next one."""

    turns: tuple[Turn, ...] = ()
    answer: str | None = None
    """The current answer: that of the last solver."""
    thoughts: tuple[str, ...] = ()
    """An idea of each solver, for those that come after it and for the router."""
    suggestion: str = ""
    """What the last thinker suggested; until a solver or verifier has read it."""
    suggested: Role | None = None
    """The role that it suggested: it takes the place of the next draw."""
    accepted: bool = False
    """Whether a verifier accepted the answer: no turn follows."""

    def after(self, turn: Turn) -> Episode:
        """What one more turn comes to.

        Raises:
            ValueError: If no turn may follow: the answer is accepted, or there is none to verify.
        """
        if self.accepted:
            raise ValueError("the answer is accepted; no turn follows")
        turns = (*self.turns, turn)
        match turn.role:
            case Role.SOLVER:
                answer, idea = answer_of(turn.text), _tagged(turn.text, "idea")
                return Episode(turns, answer, (*self.thoughts, idea or turn.text))
            case Role.THINKER:
                suggestion = _tagged(turn.text, "suggestion")
                role = _ROLE_NAMES.get(_tagged(turn.text, "suggested_role").lower())
                if role is Role.VERIFIER and self.answer is None:
                    role = None  # there is nothing to verify; the paper's code would end here
                return Episode(
                    turns,
                    self.answer,
                    self.thoughts,
                    suggestion or self.suggestion,
                    role if suggestion else None,
                )
            case Role.VERIFIER:
                if self.answer is None:
                    raise ValueError("there is no answer to verify")
                return Episode(turns, self.answer, self.thoughts, accepted=accepts(turn.text))

    def role(self, drawn: Role) -> Role:
        """The role of the next turn: the suggested one, else the one that the router drew."""
        return self.suggested or drawn


_ROLE_NAMES = {"solver": Role.SOLVER, "worker": Role.SOLVER, "verifier": Role.VERIFIER}
"""What a thinker may suggest: none that only thinks again."""


def answer_of(text: str) -> str:
    """What a solver answers: its text without the idea that is meant for the others.

    The whole text if nothing else is in it.
    """
    found = _find(text, "idea")
    if found is None:
        return text
    start, end = found[0], found[3]
    rest = f"{text[:start].rstrip()}\n\n{text[end:].lstrip()}".strip()
    return rest or text


def accepts(text: str) -> bool:
    """Whether a verifier's text begins with ACCEPT; whatever is unclear rejects.

    Marks before the word and thoughts in front of all are passed over.
    """
    found = _find(text, "think")
    said = text[found[3] :] if found is not None else text
    first = _WORD.search(said)
    return first is not None and first[0].upper() in ("ACCEPT", "ACCEPTED")


_WORD = re.compile(r"[^\W_]+")


def _tagged(text: str, tag: str) -> str:
    """What stands in the last complete block of a tag; empty if there is none."""
    found = _find(text, tag)
    return text[found[1] : found[2]].strip() if found is not None else ""


def _find(text: str, tag: str) -> tuple[int, int, int, int] | None:
    """Where the last complete block of a tag begins, its text begins, ends, and it ends."""
    closes = [*re.finditer(f"</{tag}>", text, re.IGNORECASE)]
    if not closes:
        return None
    last = closes[-1]
    opens = [*re.finditer(f"<{tag}>", text[: last.start()], re.IGNORECASE)]
    if not opens:
        return None
    return opens[-1].start(), opens[-1].end(), last.start(), last.end()
