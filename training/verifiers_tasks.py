"""Plans as tasks of verifiers, so that its trainers can train a Conductor.

    eval conductor-plans --env.taskset.n 20

A prompt is what a Conductor is asked in training and serving; a completion is a plan; its reward is
what the plan comes to on the real runtime: 0, 0.5 or 1. What failed for technical reasons is an
error of the rollout, and no reward.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from random import Random

import verifiers.v1 as vf

from conductor.config import load_pool
from conductor.prompt import brief_messages
from runtime import CallCache

from .cold_start import offered, questions
from .rewards import Weights
from .rollouts import Rollouts, Settings
from .tasks import Split, Wording, lines, task_of


class Playing(vf.TaskConfig):
    """How plans are carried out and rewarded."""

    pool: str = "orchestra"
    """The pool file of the workers, or ``orchestra``."""
    roster: tuple[str, ...] = ()
    """Who may be named, in the order of the numbers in plans; the pool in its order if empty."""
    cache: str = ""
    """A file of workers' replies to use instead of calls."""
    most_steps: int = 5
    """Longest valid plan."""
    cost: float = 0.0
    """Taken off the reward for a tenth of a cent."""


class Asking(vf.TasksetConfig):
    """Which questions are asked, and who is offered."""

    task: Playing = Playing()
    n: int = 400
    """How many, about: small families have fewer."""
    split: Split = Split.TRAIN
    wording: Wording = "trained"
    composed: float = 0.5
    """Share of composed questions."""
    fewest: int = 3
    """Fewest workers that a question offers; more, up to all, are as likely."""
    seed: int = 0


class Asked(vf.TaskData):
    """A question and who is there."""

    task: str
    """Our task, as :func:`training.tasks.lines` writes it."""
    offered: tuple[int, ...]
    """Positions in the roster."""


class PlanTask(vf.Task[Asked, vf.State, Playing]):
    """A plan is to be written."""

    @vf.reward
    async def reward(self, trace: vf.Trace) -> float:
        """What the plan comes to; metrics tell whether it is valid and right, and its steps.

        Raises:
            RuntimeError: If a worker failed for technical reasons, more than once.
        """
        asked = task_of(self.data.task), self.data.offered, trace.last_reply
        (played,) = await rollouts_of(self.config).play([asked])
        if played.total is None:
            why = played.failure.message if played.failure else "the answer can't be graded"
            raise RuntimeError(f"not rewarded: {why}")
        trace.record_metrics(
            {
                "valid": float(played.outcome.valid),
                "right": played.outcome.score or 0.0,
                "steps": float(len(played.plan or ())),
            }
        )
        trace.info["answer"] = played.run.answer if played.run else None
        trace.info["failure"] = played.failure.message if played.failure else None
        return played.total


class Plans(vf.Taskset[PlanTask, Asking]):
    """Questions of our families and chains, each offered to a random part of the roster."""

    def load(self) -> Iterator[PlanTask]:
        """Draw the questions: the same settings give the same ones."""
        how = self.config
        workers = len(how.task.roster or load_pool(how.task.pool).names)
        random = Random(how.seed)  # noqa: S311
        found = questions(
            how.n, split=how.split, wording=how.wording, composed=how.composed, seed=how.seed
        )
        for number, task in enumerate(found):
            there = offered(random, workers, how.fewest)
            system, user = brief_messages(task.question, there)
            yield PlanTask(
                Asked(
                    idx=number,
                    name=f"{task.family} {task.id}",
                    prompt=user.content,
                    system_prompt=system.content,
                    task=lines([task])[0],
                    offered=there,
                ),
                how.task,
            )


def rollouts_of(how: Playing) -> Rollouts:
    """What carries plans out: one pool for all tasks of the same settings."""
    return _rollouts(how.pool, how.roster, how.cache, how.most_steps, how.cost)


@lru_cache(maxsize=4)
def _rollouts(
    pool: str, roster: tuple[str, ...], cache: str, most_steps: int, cost: float
) -> Rollouts:
    team = load_pool(pool)
    return Rollouts(
        team,
        roster or team.names,
        cache=CallCache(cache) if cache else None,
        settings=Settings(most_steps=most_steps, weights=Weights(cost)),
    )


__all__ = ["Plans"]
