# ruff: noqa: T201, B023
"""Ways to search for the router's head, on the same labels with the same number of episodes.

    python tests/benchmarks/router_search.py LABELS... --states FOLDER [--seeds 3]

Prints picked reward on validation tasks and on held-out wordings (test split), mean over seeds, and
seconds. LABELS are folders of `conductor labels` for all splits; hidden states are read into FOLDER
if they are not there. `pip install cma` adds pycma's diagonal CMA-ES to the table.
"""

from __future__ import annotations

import argparse
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import numpy as np

from conductor.router import Encoder
from training.router_evolve import SEARCHES, Evolution, LabelProblem, SepCMAES, evolve, formula
from training.router_sft import SFT, Examples, fit, picked_reward, wordings
from training.router_train import read_data
from training.states import frame_of, states_of
from training.tasks import Split


class Pycma(SepCMAES):
    """pycma with a diagonal covariance throughout, as in TRINITY's trainer."""

    def __init__(self, start: Any, sigma: float, *, population: int = 0, seed: int = 0) -> None:
        import cma

        options = {
            "CMA_diagonal": True,
            "popsize": population or formula(len(start)),
            "seed": seed + 1,  # 0 means the clock
            "verbose": -9,
        }
        self._es = cma.CMAEvolutionStrategy(start.astype(np.float64), sigma, options)
        self.population = self._es.popsize
        self._asked: Any = None
        self._told = 0

    @property
    def generation(self) -> int:
        return self._told

    @property
    def mean(self) -> Any:
        return self._es.mean.astype(np.float32)

    @property
    def sigma(self) -> float:
        return float(self._es.sigma)

    def ask(self) -> Any:
        self._asked = self._es.ask()
        return np.stack(self._asked).astype(np.float32)

    def tell(self, fitness: Any) -> None:
        self._es.tell(self._asked, [-float(each) for each in fitness])
        self._told += 1


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labels", nargs="+", type=Path)
    parser.add_argument("--states", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--replications", type=int, default=16)
    parser.add_argument("--generations", type=int, default=60)
    given = parser.parse_args()
    data = read_data(given.labels)
    labels = data.labels
    examples = Examples(states_of(labels.tasks, Encoder(), given.states), labels.means)
    train, validation = examples.where(data.train), examples.where(data.validation)
    held_out = [
        t.split is Split.TEST and t.held_out_wording and not t.reserved for t in labels.tasks
    ]
    test = examples.where(np.array(held_out, bool))
    print(f"{len(train)} training, {len(validation)} validation, {len(test)} test tasks")
    best = train.rewards.mean(axis=0).argmax()
    sets = (validation.rewards, test.rewards)
    print("best single worker:", *(f"{rewards[:, best].mean():.3f}" for rewards in sets))
    print("oracle:            ", *(f"{rewards.max(1).mean():.3f}" for rewards in sets))

    folds = wordings(data.tasks(data.train), 3)
    for choose_by in ("validation", "wordings"):
        began = time.monotonic()
        fitted = fit(train, validation, SFT(choose_by=choose_by), folds=folds)
        _row(f"SFT, chosen by {choose_by}", [fitted.weight], validation, test, began)
    for components in (0, 12):
        frame = frame_of(train.states, components)
        problem = LabelProblem(train, validation, frame, labels.scores[data.train])
        zero = np.zeros((problem.rows, frame.basis.shape[1]), np.float32)
        common = {"replications": given.replications, "generations": given.generations}

        def search(name: str, theta: Any = zero, **settings: Any) -> None:
            began = time.monotonic()
            wanted = Evolution(**{**common, "sigma": 0.3 if components else 0.03, **settings})
            weights = []
            for seed in range(given.seeds):
                kept, _ = anyio.run(lambda: evolve(problem, theta, wanted, seed=seed))
                weights.append(frame.head(kept.theta))
            _row(f"{components or 'all'}: {name}", weights, validation, test, began)

        search("sep-CMA-ES from zero (cmaes)")
        if find_spec("cma"):
            searches: dict[str, Any] = SEARCHES  # type: ignore[assignment]  # a liberty, for once
            searches["sep-cma-es"] = Pycma
            search("sep-CMA-ES from zero (pycma)")
            searches["sep-cma-es"] = SepCMAES
        search("own dice for each head", common=False)
        search("random search", method="random")
        search("256 replications", replications=256)
        search("expected reward", replications=len(train), choose="expect")
        population = formula(zero.size)
        for rate in (0.003, 0.01, 0.03):
            began = time.monotonic()
            weights = []
            for seed in range(given.seeds):
                kept = anyio.run(
                    lambda: problem.reinforce(
                        zero,
                        updates=population * given.generations,
                        batch=given.replications,
                        rate=rate,
                        seed=seed,
                    )
                )
                weights.append(frame.head(kept.theta))
            _row(f"{components or 'all'}: REINFORCE, rate {rate}", weights, validation, test, began)
    frame = fitted.frame
    problem = LabelProblem(train, validation, frame, labels.scores[data.train])
    components = 1
    for sigma in (0.03, 0.1, 0.3):
        search(
            f"sep-CMA-ES from SFT, {sigma} of its size", fitted.theta, sigma=sigma, replications=256
        )


def _row(name: str, weights: list[Any], validation: Examples, test: Examples, began: float) -> None:
    seconds = (time.monotonic() - began) / len(weights)
    got = [
        f"{np.mean([picked_reward(w, on) for w in weights]):.3f}"
        + (f" ±{np.std([picked_reward(w, on) for w in weights]):.3f}" if len(weights) > 1 else "")
        for on in (validation, test)
    ]
    print(f"{name:45} {got[0]:>14} {got[1]:>14} {seconds:8.1f} s", flush=True)


if __name__ == "__main__":
    main()
