"""Does it help to ask a worker several times and take what it says most often?

    python -m tests.benchmarks.votes POOL WORKER FAMILY... [--temperature 1.0] [--tasks 120]

Asks the worker each validation task of the families once greedily and five times sampled, and
compares the mean of one attempt with the plurality of 3 and 5, paired, with 95 % intervals. Replies
are kept in a folder, so that a run that was stopped goes on.
"""
# ruff: noqa: T201

from __future__ import annotations

import argparse
from pathlib import Path

import anyio
import numpy as np

from runtime import LocalWorker, Pool, Sampling
from training.graders import grade, plurality
from training.intervals import Interval, difference, mean
from training.labels import collect, read_rows
from training.tasks import Split, draw

DRAWS = 5


def told(found: Interval) -> str:
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.votes")
    parser.add_argument("pool", type=Path)
    parser.add_argument("worker")
    parser.add_argument("families", nargs="+")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--tasks", type=int, default=120)
    parser.add_argument("--out", type=Path, default=Path("votes"))
    given = parser.parse_args()
    worker = Pool.load(given.pool)[given.worker]
    assert isinstance(worker, LocalWorker), "a model in this process"
    most = worker.sampling.max_tokens
    kinds = {"greedy": 0.0, "warm": given.temperature}
    one, several = (
        LocalWorker(
            name, worker.model, adapter=worker.adapter, sampling=Sampling(t, max_tokens=most)
        )
        for name, t in kinds.items()
    )
    for family in given.families:
        tasks = draw(family, given.tasks, split=Split.VALIDATION)
        folder = given.out / f"{given.worker}-{family}-{given.temperature:g}"
        labels = anyio.run(
            lambda tasks=tasks, folder=folder: collect(
                tasks, Pool([one, several]), folder=folder, repeats=DRAWS, concurrency=32
            )
        )
        rows = read_rows(folder)
        greedy = labels.only("greedy").means.astype(np.float64)  # (T, 1)
        single = labels.only("warm").means.astype(np.float64)
        print(
            f"{family}: {len(tasks)} tasks, greedy {told(mean(greedy))}, one {told(mean(single))}"
        )
        for count in (3, DRAWS):
            voted = np.empty_like(single)
            for at, task in enumerate(tasks):
                replies = [rows[task.id, "warm", draw].reply for draw in range(count)]
                chosen = replies[plurality(task.grader, replies, task.question)]
                voted[at] = grade(task.grader, chosen, task.question)
            against = ", ".join(
                f"less {name} {told(difference(voted, other))}"
                for name, other in (("one", single), ("greedy", greedy))
            )
            print(f"  vote of {count}: {told(mean(voted))}, {against}")


if __name__ == "__main__":
    main()
