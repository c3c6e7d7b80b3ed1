"""The curriculum: which question comes when, and who is there to answer it. Deterministic.

GRPO learns from groups whose rewards differ and from no others. So families of tasks in whose
groups some are right and some are not come more often; those that always or never succeed come
seldom, but never not at all, since that changes while the Conductor learns.

A question that takes two players succeeds at first about once in a hundred, and hardly ever where
one of both is missing. So who is there follows experience: a team that was once right about a
family is mostly among those who are offered when the family comes again, at first with few beside
it, and the more often the family succeeds the more. Which team that is has been found out by
rollouts and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from .cold_start import offered
from .families import CHAINS, FAMILIES
from .tasks import Split, Task, draw

FLOOR = 0.3
"""Weight of a family none of whose groups is mixed; of one whose groups all are, it is 1."""
MEMORY = 0.7
"""What is kept of a family's share of mixed groups when it is seen again."""
LAG = 3
"""The questions of an update depend on what happened so many updates before it, and earlier: data
loaders read ahead."""

TOGETHER = 0.75
"""Share of questions that offer a team that was right about their family, if one is known."""

EASE = 2.0
"""Beside such a team there may be all others where half of the plans are right; fewer before."""

Team = tuple[int, ...]
"""Workers who answered a question together: positions in the roster, ascending."""


@dataclass(frozen=True, slots=True)
class Became:
    """What became of a family in an update."""

    mixed: int = 0
    """Groups in which some were right and some were not."""
    groups: int = 1
    right: float = 0.0
    """Share of plans that were right."""
    teams: tuple[Team, ...] = ()
    """For each group in which somebody was right the smallest team that was."""


@dataclass(frozen=True, slots=True)
class Question:
    """What the Conductor is asked."""

    task: Task
    offered: tuple[int, ...]
    """Who is there: positions in the roster."""
    group: int
    """Its place in the update."""


def weights(
    families: Sequence[str], history: Sequence[Mapping[str, Became]], floor: float = FLOOR
) -> dict[str, float]:
    """How often families are to come, relative to each other, from ``floor`` to 1.

    A family starts as if half its groups were mixed, and is judged by an exponential average.

    Args:
        families: All there are.
        history: What became of earlier updates, from the first one on.
        floor: Smallest weight.
    """
    return {
        family: floor
        + (1 - floor) * _average(family, history, 0.5, lambda it: it.mixed / it.groups)
        for family in families
    }


def _average(
    family: str,
    history: Sequence[Mapping[str, Became]],
    begin: float,
    value: Callable[[Became], float],
) -> float:
    """Exponential average of a family's values in the updates in which it came."""
    for update in history:
        if family in update:
            begin = MEMORY * begin + (1 - MEMORY) * value(update[family])
    return begin


class Course:
    """All questions of a training, in order.

    Args:
        workers: How many the roster has.
        questions: Of an update.
        composed: Share of composed questions.
        fewest: Fewest workers that a question offers.
        tasks: How many different tasks a family has; small ones have fewer.
        simple_first: Updates in which no composed tasks come, and all others equally often.
        seed: Chooses them.
        history: What became of the updates before, if it goes on.
    """

    def __init__(
        self,
        workers: int,
        *,
        questions: int,
        composed: float = 0.5,
        fewest: int = 3,
        tasks: int = 400,
        simple_first: int = 0,
        seed: int = 0,
        history: Sequence[Mapping[str, Became]] = (),
    ) -> None:
        self._workers, self._questions, self._fewest = workers, questions, fewest
        self._seed, self._composed, self._simple_first = seed, composed, simple_first
        self.history = list(history)
        """What became of each update so far."""
        self._tasks = {
            name: draw(name, tasks, split=Split.TRAIN, seed=seed, fewer=True)
            for of in (FAMILIES, CHAINS)
            for name in of
            if not of[name].reserved
        }
        self._drawn: dict[int, tuple[Question, ...]] = {}

    def update(self, number: int) -> tuple[Question, ...]:
        """The questions of an update, counted from 0. The same whenever it is asked.

        Raises:
            ValueError: If what they depend on has not happened yet.
        """
        if number not in self._drawn:
            known = max(0, number - LAG + 1)
            if len(self.history) < known:
                raise ValueError(
                    f"update {number} depends on {known}; {len(self.history)} are over"
                )
            self._drawn[number] = self._draw(number, self.history[:known])
        return self._drawn[number]

    def _draw(self, number: int, history: Sequence[Mapping[str, Became]]) -> tuple[Question, ...]:
        random = Random(f"{self._seed} {number}")  # noqa: S311
        chosen = self._families(number, history, random)
        found = []
        for group, family in enumerate(chosen):
            task = random.choice(self._tasks[family])
            found.append(Question(task, self._offers(task, history, random), group))
        return tuple(found)

    def _offers(
        self, task: Task, history: Sequence[Mapping[str, Became]], random: Random
    ) -> tuple[int, ...]:
        """Draw who is there: mostly a team that was right, one that often was more often.

        Where no team has been right about a composed task yet, teams that were about its parts.
        """

        def drawn(family: str) -> Team:
            known = Counter(
                team for update in history if family in update for team in update[family].teams
            )
            return random.choices(list(known), list(known.values()))[0] if known else ()

        together = random.random() < TOGETHER
        team = drawn(task.family) or sum(map(drawn, task.step_families), ())
        if not together or not team:
            return offered(random, self._workers, self._fewest)
        team = tuple(sorted(set(team)))
        right = _average(task.family, history, 0.0, lambda it: it.right)
        others = round(min(1.0, EASE * right) * (self._workers - len(team)))
        return offered(random, self._workers, self._fewest, team, len(team) + others)

    def _families(
        self, number: int, history: Sequence[Mapping[str, Became]], random: Random
    ) -> list[str]:
        if number < self._simple_first:
            # Equally often: who is right where groups are mixed most would seem right anywhere.
            simple = [name for name in self._tasks if name in FAMILIES]
            order: list[str] = []
            while len(order) < self._questions:
                order += random.sample(simple, len(simple))
            return order[: self._questions]
        often = weights(list(self._tasks), history)
        composed = round(self._composed * self._questions)
        chosen: list[str] = []
        for of, count in ((FAMILIES, self._questions - composed), (CHAINS, composed)):
            names = [name for name in self._tasks if name in of]
            chosen += random.choices(names, [often[name] for name in names], k=count)
        return chosen

    def note(self, number: int, became: Mapping[str, Became]) -> None:
        """Keep what became of an update."""
        del self.history[number:]
        self.history.append(became)
