"""A trained Conductor in smaller pools: with everybody, and with each worker missing.

    python -m training.pools runs/conductor

It is compared, on the same questions, with the router that comes with the package (restricted to
who is there) and with the best worker of those left, chosen in hindsight. Numbers keep their
meaning: the roster is what was trained on, whoever is there. Plans are sampled freely.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
import numpy as np

from conductor.config import TRAINED, load_pool
from conductor.prompt import plan_text
from conductor.router import Router
from grammar import Plan
from runtime import Cache, CallCache, LocalModel, LocalWorker, Pool

from .cold_start import questions, write
from .intervals import Floats, Interval, difference, mean
from .report import ranged, table
from .rollouts import Rollouts
from .states import states_of
from .tasks import Split, Task, Wording


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What came of the questions in one pool: share of right answers, (N, 1) each."""

    without: str
    """Who is missing; empty for the full pool."""
    trained: Floats
    valid: float
    """Share of valid plans of who is there."""
    router: Floats
    best: Floats
    """The best worker of those left, in hindsight."""
    best_name: str
    oracle: Floats
    """For each question the best of those left."""

    @property
    def beyond(self) -> Interval:
        """How much better the trained Conductor is than the best single worker."""
        return difference(self.trained, self.best)


async def measure(
    folder: Path,
    pool: Pool,
    tasks: Sequence[Task],
    router: Router,
    states: Path,
    *,
    cache: Cache | None = None,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[Scores]:
    """Measure the full pool, and the pools in which one worker is missing.

    Args:
        folder: Of the trained Conductor.
        pool: The workers; its roster are all of them in their order.
        tasks: The questions.
        router: Whom to compare with.
        states: Where hidden states are kept.
        cache: Replies that are known already.
        temperature: At which plans are sampled.
        seed: Of the draws.
    """
    roster = pool.names
    about = json.loads((folder / TRAINED).read_text(encoding="utf-8"))
    model = next((w.model for w in pool if isinstance(w, LocalWorker)), LocalModel(about["model"]))
    conductor = LocalWorker("conductor", model, adapter=folder)
    rollouts = Rollouts(pool, roster, cache=cache)
    everyone = tuple(range(len(roster)))

    async def scored(asked: Sequence[tuple[Task, tuple[int, ...], str]]) -> Floats:
        played = await rollouts.play(asked)
        return np.array([float((each.outcome.score or 0) >= 1) for each in played])

    alone = np.stack(
        [
            await scored([(task, everyone, _handed_on(number)) for task in tasks])
            for number in everyone
        ]
    )  # (W, N)
    logits = router.head.logits(states_of(tasks, router.encoder, states))
    order = [router.head.workers.index(name) for name in roster]
    found = []
    for missing in (None, *everyone):
        there = tuple(number for number in everyone if number != missing)
        written = await write(
            conductor,
            tasks,
            len(roster),
            there=there,
            temperature=temperature,
            seed=seed,
        )
        right = await scored([(each.task, there, each.text) for each in written])
        picked = np.array(there)[logits[:, order][:, there].argmax(axis=1)]
        left = alone[list(there)]
        best = int(left.mean(axis=1).argmax())
        found.append(
            Scores(
                "" if missing is None else roster[missing],
                right[:, None],
                sum(each.plan is not None for each in written) / len(written),
                alone[picked, np.arange(len(tasks))][:, None],
                left[best][:, None],
                roster[there[best]],
                left.max(axis=0)[:, None],
            )
        )
    return found


def _handed_on(number: int) -> str:
    return plan_text(Plan.of(["{query}"], [number], [[]]))


def markdown(found: Sequence[Scores]) -> str:
    """The table, with 95 % intervals."""
    rows = [
        (
            f"without {each.without}" if each.without else "all",
            ranged(mean(each.trained)),
            ranged(mean(each.router)),
            f"{ranged(mean(each.best))} ({each.best_name})",
            ranged(each.beyond, sign=True),
            ranged(mean(each.oracle)),
            f"{each.valid:.2f}",
        )
        for each in found
    ]
    heads = "pool", "Conductor", "router", "best single", "difference", "oracle of singles", "valid"
    return table(heads, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m training.pools")
    parser.add_argument("folder", type=Path, help="of the trained Conductor")
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("pools"), help="where the table and replies go"
    )
    parser.add_argument("--pool", default="orchestra")
    parser.add_argument("--tasks", type=int, default=120, help="about so many")
    parser.add_argument("--composed", type=float, default=0.5, help="share of composed ones")
    parser.add_argument("--wording", choices=["trained", "held-out"], default="held-out")
    parser.add_argument("--threads", type=int, help="of in-process models")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    wording: Wording = chosen.wording
    tasks = questions(
        chosen.tasks,
        split=Split.TEST,
        wording=wording,
        composed=chosen.composed,
        seed=chosen.seed,
    )
    pool = load_pool(chosen.pool)
    for worker in pool:
        if isinstance(worker, LocalWorker):
            worker.model.threads = chosen.threads
    kept: Path = chosen.out
    kept.mkdir(parents=True, exist_ok=True)

    async def measured() -> list[Scores]:
        return await measure(
            chosen.folder,
            pool,
            tasks,
            Router.load(),
            kept / "states",
            cache=CallCache(kept / "calls.db"),
            seed=chosen.seed,
        )

    text = f"n = {len(tasks)}, {wording} phrasings\n\n" + markdown(anyio.run(measured)) + "\n"
    (kept / "pools.md").write_text(text, encoding="utf-8")
    print(text)  # noqa: T201


if __name__ == "__main__":
    main()
