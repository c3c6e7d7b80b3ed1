"""Rollouts of the router through the real runtime: what evolution is rewarded by where labels don't
tell, such as the turn loop, in which one worker's words decide what the next one does.

Each episode is a run of the Conductor with the head as its router. Calls of workers come from the
cache where an equal call was made before, and hidden states are read once for each text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import anyio
import anyio.to_thread
import numpy as np

from conductor import Conductor
from conductor.router import MOST_TURNS, Encoder, Head, Router
from runtime import Cache, Call, Message, Pool, Run, Sampling, States

from .graders import grade
from .router_evolve import Dice, Outcome
from .states import Array, Frame
from .tasks import Task
from .trials import OWN_FAULT


class RunProblem:
    """Whole runs, rewarded by the grade of their answers.

    Args:
        train: Training tasks.
        validation: Validation tasks.
        pool: The workers, in the order of the head's rows.
        encoder: The backbone.
        frame: What the heads are searched in.
        roles: Whether heads have rows for roles, and turns follow one another.
        most_turns: Turns at most, with roles.
        cache: Completions to use instead of calls.
        repeats: Different replies that a worker may give to the same call.
        concurrency: Runs at the same time.
        stop: Is asked before each run; if it says so, what is under way ends with
            KeyboardInterrupt.
    """

    def __init__(
        self,
        train: Sequence[Task],
        validation: Sequence[Task],
        pool: Pool,
        encoder: Encoder,
        frame: Frame,
        *,
        roles: bool = False,
        most_turns: int = MOST_TURNS,
        cache: Cache | None = None,
        repeats: int = 1,
        concurrency: int = 16,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._train, self._validation = tuple(train), tuple(validation)
        self._pool, self._frame, self._roles, self._cache = pool, frame, roles, cache
        self._encoder = _Remembering.of(encoder.on(pool))
        self._repeats, self._concurrency, self._stop = repeats, concurrency, stop
        self.tasks, self.most_turns = len(self._train), most_turns if roles else 1
        self.rows = len(pool.names) + 3 * roles

    async def rollouts(self, thetas: Array, dice: Dice, choose: str) -> Outcome:
        """Let each head answer its tasks, all of them concurrently."""
        if choose == "expect":
            raise ValueError('whole runs have no expected reward: choose = "sample" or "argmax"')
        heads, episodes = dice.tasks.shape
        rewards, turns = np.full((heads, episodes), np.nan), np.ones((heads, episodes))
        picked = np.zeros((heads, len(self._pool.names)))

        async def episode(at: tuple[int, int]) -> None:
            task = self._train[dice.tasks[at]]
            run = await self._run(
                self._router(thetas[at[0]], sample=choose == "sample", seed=int(dice.seeds[at])),
                task,
                int(dice.repeats[at] * self._repeats),
            )
            rewards[at] = await reward_of(run, task)
            turns[at] = max(1, len(run.rounds))
            for each in run.rounds:
                if each.pick is not None:
                    picked[at[0], self._pool.names.index(each.pick.worker)] += 1

        await self._all(episode, list(np.ndindex(heads, episodes)))
        return Outcome(rewards, picked / np.maximum(picked.sum(axis=1, keepdims=True), 1), turns)

    async def validation(self, theta: Array) -> float:
        """Mean reward on the validation tasks, of the most probable worker and role."""
        rewards = np.full(len(self._validation), np.nan)
        router = self._router(theta, sample=False, seed=0)

        async def episode(at: int) -> None:
            task = self._validation[at]
            rewards[at] = await reward_of(await self._run(router, task, 0), task)

        await self._all(episode, range(len(rewards)))
        return float(np.nanmean(rewards)) if np.isfinite(rewards).any() else -1.0

    def _router(self, theta: Array, *, sample: bool, seed: int) -> Router:
        weight = np.ascontiguousarray(self._frame.head(theta), dtype=np.float32)
        head = Head(weight, self._pool.names, self._roles)
        return Router(head, self._encoder, sample=sample, seed=seed, turns=self.most_turns)

    async def _run(self, router: Router, task: Task, repeat: int) -> Run:
        if self._stop():
            raise KeyboardInterrupt
        team = Conductor(self._pool, router=router, cache=self._cache)
        if self._repeats == 1:  # the very call that labels are measured by, so caches are shared
            return await team.arun(task.question)
        return await team.arun(Call((Message("user", task.question),), Sampling(seed=repeat)))

    async def _all(self, episode: Callable[[Any], Any], numbers: Sequence[Any]) -> None:
        places = anyio.CapacityLimiter(self._concurrency)

        async def one(at: Any) -> None:
            async with places:
                await episode(at)

        async with self._pool, anyio.create_task_group() as group:
            for at in numbers:
                group.start_soon(one, at)


async def reward_of(run: Run, task: Task) -> float:
    """Grade a run's answer; NaN if it has none for technical reasons."""
    if run.answer is not None:
        # In a thread: code is run in a sandbox, and that takes its time.
        return await anyio.to_thread.run_sync(grade, task.grader, run.answer, task.question)
    own = run.failure is not None and run.failure.kind in OWN_FAULT
    return 0.0 if own else float("nan")


class _Remembering(Encoder):
    """Reads every text once."""

    _read: dict[Any, States]

    @classmethod
    def of(cls, encoder: Encoder) -> _Remembering:
        same = object.__new__(cls)
        same.__dict__.update(encoder.__dict__, _read={})
        return same

    async def astates(
        self, conversations: Sequence[Any], *, thoughts: Sequence[str] = ()
    ) -> States:
        key = tuple(self.rendered(conversations, thoughts))
        if key not in self._read:
            self._read[key] = await super().astates(conversations, thoughts=thoughts)
        return self._read[key]
