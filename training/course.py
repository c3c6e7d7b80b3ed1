"""The curriculum: which question comes when, and who is there to answer it. Deterministic.

GRPO learns from groups whose rewards differ and from no others. All families come equally often,
and who is there is drawn so that groups are mixed.

A question that takes two players succeeds at first about once in a hundred, and hardly ever where
one of both is missing. So who is there follows experience: a team that was once right about a
family is mostly among those who are offered when the family comes again. Which team that is has
been found out by rollouts and nothing else. How many are beside it is chance: where few were, who
is there would give the family away, and a Conductor learns that rather than to read the question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from .cold_start import offered
from .families import CHAINS, FAMILIES
from .tasks import Split, Task, Wording, draw

LAG = 3
"""The questions of an update depend on what happened so many updates before it, and earlier: data
loaders read ahead."""

TOGETHER = 0.75
"""Share of questions that offer a team that was right about their family, if one is known."""

Team = tuple[int, ...]
"""Workers who answered a question together: positions in the roster, ascending."""

Teams = Mapping[str, Sequence[Team]]
"""Of an update: for each group of a family in which somebody was right the smallest team that was,
by the family's name."""


@dataclass(frozen=True, slots=True)
class Question:
    """What the Conductor is asked."""

    task: Task
    offered: tuple[int, ...]
    """Who is there: positions in the roster."""
    group: int
    """Its place in the update."""


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
        wording: In which phrasings they come.
        parts: Whether families of which composed questions have parts come as well, though they are
            reserved otherwise.
        history: Who was right in the updates before, if it goes on.
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
        wording: Wording = "trained",
        parts: bool = False,
        history: Sequence[Teams] = (),
    ) -> None:
        self._workers, self._questions, self._fewest = workers, questions, fewest
        self._seed, self._composed, self._simple_first = seed, composed, simple_first
        self.history = list(history)
        """Who was right in each update so far."""
        chains = [chain for chain in CHAINS.values() if not chain.reserved]
        asked = {part for chain in chains for part in chain.parts} if parts else set()
        self._tasks = {
            name: draw(name, tasks, split=Split.TRAIN, wording=wording, seed=seed, fewer=True)
            for of in (FAMILIES, CHAINS)
            for name in of
            if not of[name].reserved or name in asked
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

    def _draw(self, number: int, history: Sequence[Teams]) -> tuple[Question, ...]:
        random = Random(f"{self._seed} {number}")  # noqa: S311
        chosen = self._families(number, random)
        found = []
        for group, family in enumerate(chosen):
            task = random.choice(self._tasks[family])
            found.append(Question(task, self._offers(task, history, random), group))
        return tuple(found)

    def _offers(self, task: Task, history: Sequence[Teams], random: Random) -> tuple[int, ...]:
        """Draw who is there: mostly a team that was right, one that often was more often.

        Where no team has been right about a composed task yet, teams that were about its parts.
        """

        def drawn(family: str) -> Team:
            known = Counter(team for update in history for team in update.get(family, ()))
            return random.choices(list(known), list(known.values()))[0] if known else ()

        together = random.random() < TOGETHER
        team = drawn(task.family) or sum(map(drawn, task.step_families), ())
        if not together or not team:
            return offered(random, self._workers, self._fewest)
        return offered(random, self._workers, self._fewest, sorted(set(team)))

    def _families(self, number: int, random: Random) -> list[str]:
        """Draw simple families, then composed ones, each equally often.

        Who is right where groups are mixed most would otherwise seem right anywhere.
        """
        composed = round(self._composed * self._questions) if number >= self._simple_first else 0
        chosen: list[str] = []
        for of, count in ((FAMILIES, self._questions - composed), (CHAINS, composed)):
            names = [name for name in self._tasks if name in of]
            rounds = (random.sample(names, len(names)) for _ in range(0, count, len(names)))
            chosen += [name for each in rounds for name in each][:count]
        return chosen

    def note(self, number: int, teams: Teams) -> None:
        """Keep who was right in an update."""
        del self.history[number:]
        self.history.append(teams)
