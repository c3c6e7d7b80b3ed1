"""Train the router's head by evolution: sep-CMA-ES on the terminal reward of whole runs.

A generation asks for a population of heads, lets each answer the same few tasks, and tells the
search how well they did. What a rollout is, a *problem* knows: a look-up in measured labels
(:class:`LabelProblem`), or a run of the real Conductor (:mod:`training.router_rollouts`). The
search only sees fitness. Random search goes through the same loop, REINFORCE through the same
problem.

Departures from TRINITY's trainer (arXiv 2512.04695):

* common random numbers: the candidates of a generation get the same tasks and the same dice, so
  that luck does not select among them; off gives the paper's, a draw for each candidate;
* turns are counted episode by episode; the authors pool them over the episodes of a candidate;
* the search is in a frame of few directions (:class:`training.states.Frame`), with states of
  variance 1 in each: there one sigma fits all numbers, and there are ten times fewer of them;
* what is kept is the mean of the search that did best on the validation split.

The dice of a generation follow from the seed and its number alone. So the state is a handful of
arrays, and a search that was killed goes on exactly as if it had not been.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from conductor.router import softmax

from .router_sft import Examples, picked_reward
from .states import Array, Frame

Floats = NDArray[np.float64]


class SearchError(Exception):
    """A kept search can't be gone on with; the message says why and what to do."""


class Evolution(BaseModel):
    """How the head is trained by evolution."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["sep-cma-es", "random"] = "sep-cma-es"
    """random draws all its heads round the start: the baseline."""
    start: Literal["sft", "zero"] = "sft"
    """Where it begins."""
    sigma: float = Field(default=0.03, gt=0)
    """First step size in the frame; 0.03 in the paper."""
    relative: bool = True
    """Whether sigma is a share of the root mean square of the start, unless that is zero."""
    generations: int = Field(default=60, ge=0)
    population: int = Field(default=0, ge=0)
    """Heads of a generation; 4 + floor(3 ln n) if 0, for n numbers."""
    replications: int = Field(default=16, ge=1)
    """Episodes of each head in a generation."""
    common: bool = True
    """Whether the heads of a generation get the same tasks and dice."""
    choose: Literal["sample", "expect", "argmax"] = "sample"
    """How a head picks: it draws, gets the mean over its draws (labels only), or takes the best."""
    entropy_bonus: float = Field(default=0.0, ge=0)
    """Weight of the entropy, in nats, of what a head picks over its episodes; 0.15 in the paper."""
    turn_penalty: float = Field(default=0.0, ge=0)
    """Weight of ((turns - 1) / most turns) / 4, of the mean episode; 0.10 in the paper."""
    look_every: int = Field(default=5, ge=1)
    """Generations from one look at validation to the next."""


# --- what a head did ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Dice:
    """What is left to chance in the episodes of a generation."""

    tasks: NDArray[np.intp]
    """(P, M): numbers of tasks, for P heads and M episodes."""
    draws: Floats
    """(P, M) in [0, 1): what the picks are drawn by."""
    repeats: Floats
    """(P, M) in [0, 1): which of several replies counts."""
    seeds: NDArray[np.int64]
    """(P, M): for whatever else a run draws."""

    @classmethod
    def throw(
        cls, random: np.random.Generator, tasks: int, heads: int, episodes: int, *, common: bool
    ) -> Self:
        """Throw the dice; one row for all heads if they are to be the same."""
        rows = 1 if common else heads
        # Each task once before any comes twice: less chance for the same number of episodes.
        rounds = math.ceil(episodes / tasks)
        order = [
            np.concatenate([random.permutation(tasks) for _ in range(rounds)])[:episodes]
            for _ in range(rows)
        ]
        shape = (heads, episodes)
        return cls(
            np.broadcast_to(np.stack(order), shape),
            np.broadcast_to(random.random((rows, episodes)), shape),
            np.broadcast_to(random.random((rows, episodes)), shape),
            np.broadcast_to(random.integers(2**31, size=(rows, episodes)), shape),
        )


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the episodes of P heads came to."""

    rewards: Floats
    """(P, M); NaN where an episode failed for technical reasons."""
    shares: Floats
    """(P, W): how often each worker was picked, over the episodes."""
    turns: Floats
    """(P, M): turns that each took; 1 without roles."""


def fitness(outcome: Outcome, settings: Evolution, most_turns: int = 1) -> Floats:
    """Give the fitness of each head, (P,); more is better.

    Mean reward of the episodes that did not fail technically (-1 if all did), plus the weighted
    entropy of the picks, minus the weighted mean of ((turns - 1) / most turns) / 4.
    """
    right = ~np.isnan(outcome.rewards)
    counts = right.sum(axis=1)
    sums = np.where(right, outcome.rewards, 0.0).sum(axis=1)
    mean = np.where(counts > 0, sums / np.maximum(counts, 1), -1.0)
    logs = np.log(np.where(outcome.shares > 0, outcome.shares, 1.0))
    entropy = -(outcome.shares * logs).sum(axis=1)
    late = ((outcome.turns - 1) / most_turns / 4).mean(axis=1)
    found: Floats = mean + settings.entropy_bonus * entropy - settings.turn_penalty * late
    return found


class Problem(Protocol):
    """What heads are tried on."""

    rows: int
    """Rows of a head: workers, and 3 for roles."""
    tasks: int
    """How many training tasks there are."""
    most_turns: int

    async def rollouts(self, thetas: Array, dice: Dice, choose: str) -> Outcome:
        """Let heads (P, R, K), in the frame, have their episodes."""

    async def validation(self, theta: Array) -> float:
        """Mean reward of a head on the validation tasks, as it will be used."""


class LabelProblem:
    """Single picks, rewarded by labels that were measured before: array arithmetic.

    Args:
        train: Training tasks; the rewards are means over repeats.
        validation: Validation tasks.
        frame: What the heads are searched in.
        scores: (N, W, R), each repeat of the training tasks by itself, NaN where there is none;
            the means count if None.
    """

    def __init__(
        self,
        train: Examples,
        validation: Examples,
        frame: Frame,
        scores: NDArray[np.float32] | None = None,
    ) -> None:
        self.rows, self.tasks = train.rewards.shape[1], len(train)
        self.most_turns = 1
        self._train, self._validation, self._frame = train, validation, frame
        self._states = frame.seen(train.states)
        self._scores = train.rewards[:, :, None] if scores is None else scores

    async def rollouts(self, thetas: Array, dice: Dice, choose: str) -> Outcome:
        """Look the rewards up."""
        heads, episodes = dice.tasks.shape
        logits = np.empty((heads, episodes, self.rows), np.float32)
        if dice.tasks.strides[0] == 0:  # the same tasks for all: one product
            logits[:] = np.einsum("mk,prk->pmr", self._states[dice.tasks[0]], thetas, optimize=True)
        else:
            for head in range(heads):
                logits[head] = self._states[dice.tasks[head]] @ thetas[head].T
        chances = softmax(logits.astype(np.float64))
        if choose == "expect":
            rewards = (chances * self._train.rewards[dice.tasks]).sum(axis=2)
            return Outcome(rewards, chances.mean(axis=1), np.ones((heads, episodes)))
        if choose == "argmax":
            picks = chances.argmax(axis=2)
        else:
            picks = (chances.cumsum(axis=2) < dice.draws[:, :, None]).sum(axis=2)
            picks = np.minimum(picks, self.rows - 1)  # rounding may leave the sum below the draw
        repeats = (dice.repeats * self._scores.shape[2]).astype(np.intp)
        rewards = self._scores[dice.tasks, picks, repeats].astype(np.float64)
        shares = np.stack([(picks == worker).mean(axis=1) for worker in range(self.rows)], axis=1)
        return Outcome(rewards, shares, np.ones((heads, episodes)))

    async def validation(self, theta: Array) -> float:
        """Mean reward of the most probable worker."""
        return picked_reward(self._frame.head(theta), self._validation)

    async def reinforce(
        self,
        theta: Array,
        *,
        updates: int,
        batch: int,
        rate: float,
        seed: int,
        look_every: int = 5,
        report: Callable[[Look], None] = lambda look: None,
    ) -> Kept:
        """REINFORCE, the baseline: draws, their advantage over the mean, Adam.

        Args:
            theta: Where to begin, (W, K).
            updates: Steps.
            batch: Episodes of each.
            rate: Adam's.
            seed: Of the draws.
            look_every: Steps from one look at validation to the next.
            report: Is told of each step.
        """
        now = theta.astype(np.float64)
        first, second = np.zeros_like(now), np.zeros_like(now)
        kept = Kept(theta, await self.validation(theta), 0)
        for update in range(1, updates + 1):
            random = np.random.default_rng([seed, update])
            dice = Dice.throw(random, self.tasks, 1, batch, common=True)
            states = self._states[dice.tasks[0]]
            chances = softmax(states @ now.T)
            picks = (chances.cumsum(axis=1) < dice.draws[0][:, None]).sum(axis=1)
            picks = np.minimum(picks, self.rows - 1)
            repeats = (dice.repeats[0] * self._scores.shape[2]).astype(np.intp)
            rewards = self._scores[dice.tasks[0], picks, repeats].astype(np.float64)
            advantage = np.nan_to_num(rewards - np.nanmean(rewards))
            # d log p(pick) / d logits = one-hot - p
            ascent = (np.eye(self.rows)[picks] - chances) * advantage[:, None]
            gradient = ascent.T @ states / batch
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            step = first / (1 - 0.9**update)
            now += rate * step / (np.sqrt(second / (1 - 0.999**update)) + 1e-8)
            found = None
            if update % look_every == 0 or update == updates:
                theta = now.astype(np.float32)
                found = await self.validation(theta)
                if found > kept.validation:
                    kept = Kept(theta, found, update)
            values = (float(np.nanmean(rewards)),)
            report(Look(update, update * batch, values, rate, found))
        return kept


# --- searches: ask and tell -----------------------------------------------------------------------


class Search(Protocol):
    """Proposes heads and hears how they did; the caller owns the loop."""

    population: int

    @property
    def generation(self) -> int:
        """How many generations were told."""

    def ask(self) -> Array:
        """Give the heads of this generation, (P, n), the same ones however often it is asked."""

    def tell(self, fitness: Floats) -> None:
        """Hear how they did, (P,); more is better."""

    @property
    def mean(self) -> Array:
        """What the search would answer now, (n,)."""

    @property
    def sigma(self) -> float:
        """Its step size."""

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """All that it knows, as arrays and as plain values."""

    def resume(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Take up a state that an equal search gave."""


def formula(numbers: int) -> int:
    """Population for so many numbers: 4 + floor(3 ln n) (Hansen's tutorial, eq. 48)."""
    return 4 + math.floor(3 * math.log(numbers))


class SepCMAES:
    """Separable CMA-ES of the library cmaes.

    Args:
        start: First mean, (n,).
        sigma: First step size.
        population: As :func:`formula` gives it if 0.
        seed: Of all draws.
    """

    def __init__(self, start: Array, sigma: float, *, population: int = 0, seed: int = 0) -> None:
        from cmaes import SepCMA

        self._seed = seed
        # It adds to the array that it is given.
        mean = start.astype(np.float64).copy()
        self._search = SepCMA(mean, sigma, population_size=population or formula(len(start)))
        self._sigma = sigma
        self.population = self._search.population_size

    @property
    def generation(self) -> int:
        """How many generations were told."""
        return int(self._search.generation)

    @property
    def mean(self) -> Array:
        """The mean of the distribution."""
        mean: Array = self._search.mean.astype(np.float32)
        return mean

    @property
    def sigma(self) -> float:
        """The scalar step size; per-coordinate variances come on top."""
        return float(self._search.__getstate__()["_sigma"])

    def ask(self) -> Array:
        """Draw from the distribution."""
        return self._drawn().astype(np.float32)

    def _drawn(self) -> Floats:
        # The dice follow from seed and generation, so they are no part of the state.
        words = np.random.SeedSequence([self._seed, self.generation]).generate_state(1)
        self._search.reseed_rng(int(words[0]))
        return np.stack([self._search.ask() for _ in range(self.population)])

    def tell(self, fitness: Floats) -> None:
        """Move the distribution; the library minimises."""
        drawn = self._drawn()
        self._search.tell([(x, -float(f)) for x, f in zip(drawn, fitness, strict=True)])

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What the library itself would pickle, sorted into arrays and plain values."""
        arrays: dict[str, np.ndarray] = {}
        values: dict[str, Any] = {}
        for name, value in self._search.__getstate__().items():
            if isinstance(value, np.ndarray):
                arrays[name] = value
            elif isinstance(value, np.generic):
                values[name] = value.item()
            else:
                values[name] = value
        return arrays, values

    def resume(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Take up a state."""
        self._search.__setstate__({**{k: v.copy() for k, v in arrays.items()}, **values})


class RandomSearch:
    """Draws every head round the start and keeps the best one: the baseline.

    Args: as :class:`SepCMAES`.
    """

    def __init__(self, start: Array, sigma: float, *, population: int = 0, seed: int = 0) -> None:
        self._start, self._sigma, self._seed = start.astype(np.float64), sigma, seed
        self.population = population or formula(len(start))
        self._generation = 0
        self._best, self._value = start.astype(np.float64), -math.inf

    @property
    def generation(self) -> int:
        """How many generations were told."""
        return self._generation

    @property
    def sigma(self) -> float:
        """The spread of what is drawn, always the same."""
        return self._sigma

    @property
    def mean(self) -> Array:
        """The best head so far."""
        return self._best.astype(np.float32)

    def ask(self) -> Array:
        """Draw round the start."""
        return self._drawn().astype(np.float32)

    def _drawn(self) -> Floats:
        random = np.random.default_rng([self._seed, self.generation])
        noise = random.standard_normal((self.population, len(self._start)))
        drawn: Floats = self._start + self._sigma * noise
        return drawn

    def tell(self, fitness: Floats) -> None:
        """Keep the best one."""
        at = int(fitness.argmax())
        if fitness[at] > self._value:
            self._best, self._value = self._drawn()[at], float(fitness[at])
        self._generation += 1

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The best head and its fitness."""
        value = None if math.isinf(self._value) else self._value
        return {"best": self._best}, {"value": value, "generation": self.generation}

    def resume(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Take up a state."""
        self._best, self._generation = arrays["best"].copy(), int(values["generation"])
        self._value = -math.inf if values["value"] is None else float(values["value"])


SEARCHES: Mapping[str, Callable[..., Search]] = {"sep-cma-es": SepCMAES, "random": RandomSearch}


# --- the loop -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Look:
    """One generation, for the record."""

    generation: int
    """From 1."""
    episodes: int
    """So far."""
    fitness: tuple[float, ...]
    """Of every head, the best first."""
    sigma: float
    validation: float | None
    """Mean reward of the search's mean on validation, where it was looked at."""

    def row(self) -> dict[str, Any]:
        """What goes into a file of metrics."""
        values = np.array(self.fitness)
        return {
            "generation": self.generation,
            "episodes": self.episodes,
            "best": float(values.max()),
            "mean": float(values.mean()),
            "worst": float(values.min()),
            "spread": float(values.std()),
            "sigma": self.sigma,
            "validation": self.validation,
        }


@dataclass(frozen=True, eq=False)
class Kept:
    """The head that did best on validation."""

    theta: Array
    """(R, K), in the frame."""
    validation: float
    generation: int


class Shelf:
    """Where a search is kept from one generation to the next.

    Args:
        folder: Made if need be.
        terms: What the search depends on; it goes on only under the same.
    """

    def __init__(self, folder: str | Path, terms: Mapping[str, Any]) -> None:
        self._folder = Path(folder)
        self._file = self._folder / "search.safetensors"
        self._terms = json.loads(json.dumps(terms))

    def save(self, search: Search, kept: Kept, looks: list[Look], drawn: Array) -> None:
        """Keep the state, whole or not at all; and the heads of this generation, for a picture."""
        from safetensors.numpy import save_file

        self._folder.mkdir(parents=True, exist_ok=True)
        arrays, values = search.state()
        told = {
            "terms": self._terms,
            "values": values,
            "kept": [kept.validation, kept.generation],
            "looks": [asdict(look) for look in looks],
        }
        all_of: dict[str, np.ndarray] = {"kept": kept.theta}
        all_of |= {f"search.{name}": np.ascontiguousarray(each) for name, each in arrays.items()}
        fresh = self._file.with_name(".search.new")
        save_file(all_of, fresh, {"state": json.dumps(told)})
        heads: dict[str, np.ndarray] = {"heads": drawn.astype(np.float16), "mean": search.mean}
        save_file(heads, self._folder / f"generation-{search.generation:05}.safetensors")
        os.replace(fresh, self._file)

    def load(self, search: Search) -> tuple[Kept, list[Look]] | None:
        """Take up the state that is kept; None if there is none.

        Raises:
            SearchError: If it belongs to other settings or data, or can't be read.
        """
        from safetensors import SafetensorError, safe_open

        if not self._file.exists():
            return None
        opened: Any
        try:
            with safe_open(self._file, framework="numpy") as opened:
                told = json.loads(opened.metadata()["state"])
                arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise SearchError(f"{self._file}: can't be read: {error}; delete it") from error
        differ = [name for name in self._terms if told["terms"].get(name) != self._terms[name]]
        if differ:
            remedy = "restore them, or start anew without --resume"
            raise SearchError(f"{self._file}: other {', '.join(differ)} than before; {remedy}")
        theta = arrays.pop("kept")
        search.resume(
            {name.removeprefix("search."): each for name, each in arrays.items()}, told["values"]
        )
        looks = [Look(**{**each, "fitness": tuple(each["fitness"])}) for each in told["looks"]]
        return Kept(theta, *told["kept"]), looks

    def trail(self) -> Iterator[tuple[Array, Array]]:
        """Give heads (P, n) and mean (n,) of each generation that is kept."""
        from safetensors.numpy import load_file

        for file in sorted(self._folder.glob("generation-*.safetensors")):
            each = load_file(file)
            yield each["heads"].astype(np.float32), each["mean"]


async def evolve(
    problem: Problem,
    start: Array,
    settings: Evolution = Evolution(),
    *,
    seed: int = 0,
    shelf: Shelf | None = None,
    report: Callable[[Look], None] = lambda look: None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Kept, list[Look]]:
    """Search for a head.

    Args:
        problem: What heads are tried on.
        start: Where to begin, (R, K), in the frame.
        settings: How.
        seed: Of all draws.
        shelf: Where the search is kept, and what it goes on from.
        report: Is told of every generation, those before it went on too.
        stop: Is asked after each generation whether to stop there.

    Returns:
        The best head on validation, the start among them, and all generations.
    """
    sigma = settings.sigma
    size = float(np.sqrt(np.square(start).mean()))
    if settings.relative and size > 0:
        sigma *= size
    search = SEARCHES[settings.method](
        start.ravel(), sigma, population=settings.population, seed=seed
    )
    found = shelf.load(search) if shelf else None
    if found is None:
        kept, looks = Kept(start, await problem.validation(start), 0), list[Look]()
    else:
        kept, looks = found
        for look in looks:
            report(look)
    while search.generation < settings.generations and not stop():
        random = np.random.default_rng([seed, search.generation, 1])
        dice = Dice.throw(
            random, problem.tasks, search.population, settings.replications, common=settings.common
        )
        drawn = search.ask()
        outcome = await problem.rollouts(drawn.reshape(-1, *start.shape), dice, settings.choose)
        values = fitness(outcome, settings, problem.most_turns)
        search.tell(values)
        at, last = search.generation, search.generation == settings.generations
        validation = None
        if at % settings.look_every == 0 or last:
            theta = search.mean.reshape(start.shape)
            validation = await problem.validation(theta)
            if validation > kept.validation:
                kept = Kept(theta, validation, at)
        episodes = at * search.population * settings.replications
        ordered = tuple(sorted(map(float, values), reverse=True))
        looks.append(Look(at, episodes, ordered, search.sigma, validation))
        if shelf:
            shelf.save(search, kept, looks, drawn)
        report(looks[-1])
    return kept, looks
