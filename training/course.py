"""The curriculum: which question comes when, and who is there to answer it. Deterministic.

GRPO learns from groups whose rewards differ and from no others. So families of tasks in whose
groups some are right and some are not come more often; those that always or never succeed come
seldom, but never not at all, since that changes while the Conductor learns. Composed tasks, which
hardly ever succeed at first, come later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

Mixed = Mapping[str, tuple[int, int]]
"""By family: groups of an update in which some were right and some were not, and groups."""


@dataclass(frozen=True, slots=True)
class Question:
    """What the Conductor is asked."""

    task: Task
    offered: tuple[int, ...]
    """Who is there: positions in the roster."""
    group: int
    """Its place in the update."""


def weights(
    families: Sequence[str], history: Sequence[Mixed], floor: float = FLOOR
) -> dict[str, float]:
    """How often families are to come, relative to each other, from ``floor`` to 1.

    A family starts as if half its groups were mixed, and is judged by an exponential average.

    Args:
        families: All there are.
        history: What became of earlier updates, from the first one on.
        floor: Smallest weight.
    """
    shares = dict.fromkeys(families, 0.5)
    for update in history:
        for family, (mixed, groups) in update.items():
            if groups and family in shares:
                shares[family] = MEMORY * shares[family] + (1 - MEMORY) * mixed / groups
    return {family: floor + (1 - floor) * share for family, share in shares.items()}


class Course:
    """All questions of a training, in order.

    Args:
        workers: How many the roster has.
        questions: Of an update.
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
        fewest: int = 3,
        tasks: int = 400,
        simple_first: int = 0,
        seed: int = 0,
        history: Sequence[Mixed] = (),
    ) -> None:
        self._workers, self._questions, self._fewest = workers, questions, fewest
        self._seed, self._simple_first = seed, simple_first
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

    def _draw(self, number: int, history: Sequence[Mixed]) -> tuple[Question, ...]:
        random = Random(f"{self._seed} {number}")  # noqa: S311
        chosen = self._families(number, history, random)
        found = []
        for group, family in enumerate(chosen):
            there = offered(random, self._workers, self._fewest)
            found.append(Question(random.choice(self._tasks[family]), there, group))
        return tuple(found)

    def _families(self, number: int, history: Sequence[Mixed], random: Random) -> list[str]:
        if number >= self._simple_first:
            often = weights(list(self._tasks), history)
            return random.choices(list(often), list(often.values()), k=self._questions)
        # Equally often: who is right where groups are mixed most would seem right anywhere.
        simple = [name for name in self._tasks if name in FAMILIES]
        order: list[str] = []
        while len(order) < self._questions:
            order += random.sample(simple, len(simple))
        return order[: self._questions]

    def note(self, number: int, mixed: Mixed) -> None:
        """Keep what became of an update."""
        del self.history[number:]
        self.history.append(mixed)
