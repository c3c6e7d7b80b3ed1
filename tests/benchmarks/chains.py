"""How often do chains come out right, by the plan that is known and by one player alone?

    python -m tests.benchmarks.chains [CHAIN...] [--pool orchestra] [--tasks 40] [--singles 40]

Carries the known plan of each validation task out, every part done by the player that was trained
on its family (the others by the untouched one), and prints a row of a Markdown table a chain: the
share that is right with Wilson's 95 % interval, and of each part how often it is right where those
before it are. `--singles N` asks each player N of the questions alone as well; `--asks N` prints
each part's share by the words it was asked in, and N wrong ones.
Run it as a process of low priority: it takes minutes.
"""
# ruff: noqa: T201

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence

import anyio

from conductor.config import load_pool
from grammar import single
from runtime import Pool, Run, run_plan
from training.families import CHAINS
from training.graders import grade
from training.matrix import wilson
from training.players import PLAYERS
from training.tasks import Split, Task, draw

BEST = {family: player.name for player in PLAYERS for family in player.families}


async def carried_out(pool: Pool, plans: Sequence[tuple[Task, Sequence[str]]]) -> list[Run]:
    """Run the known plan, or the question alone where one worker is named."""
    runs: dict[int, Run] = {}
    room = anyio.CapacityLimiter(16)

    async def one(at: int, task: Task, workers: Sequence[str]) -> None:
        plan = single(task.question, workers[0]) if len(workers) == 1 else task.plan(workers)
        async with room:
            runs[at] = await run_plan(plan, task.question, pool)

    async with anyio.create_task_group() as group:
        for at, (task, workers) in enumerate(plans):
            group.start_soon(one, at, task, workers)
    return [runs[at] for at in range(len(plans))]


def right(task: Task, run: Run) -> bool:
    return grade(task.grader, run.answer or "", task.question) == 1.0


def told(hits: Sequence[bool]) -> str:
    found = wilson(sum(hits) / len(hits), len(hits)) if hits else None
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]" if found else "-"


async def measure(given: argparse.Namespace) -> None:
    pool = load_pool(given.pool)
    async with pool:
        for name in given.chains or CHAINS:
            tasks = draw(name, given.tasks, split=Split.VALIDATION, seed=given.seed)
            hands = [[BEST.get(part.family, "plain") for part in task.parts] for task in tasks]
            runs = await carried_out(pool, list(zip(tasks, hands, strict=True)))
            parts: dict[int, list[bool]] = defaultdict(list)
            asked: dict[tuple[int, str], list[bool]] = defaultdict(list)
            wrong = []
            for task, run in zip(tasks, runs, strict=True):
                for at, part in enumerate(task.parts):
                    last = at == len(task.parts) - 1
                    said = run.steps[at].text.strip()
                    hit = right(task, run) if last else said == part.answer
                    parts[at].append(hit)
                    ways = CHAINS[name].asks[at]
                    asked[at, _ask(ways, part.subtask)].append(hit)
                    if not hit:
                        wrong.append((part.subtask, part.answer, said))
                        break
            alone = ""
            if given.singles:
                few = tasks[: given.singles]
                scores = {}
                for worker in pool.names:
                    replies = await carried_out(pool, [(task, [worker]) for task in few])
                    scores[worker] = [right(*pair) for pair in zip(few, replies, strict=True)]
                best = max(scores, key=lambda worker: sum(scores[worker]))
                alone = f" {told(scores[best])} ({best}, n = {len(few)}) |"
            steps = ", ".join(told(parts[at]) for at in sorted(parts))
            whole = told([right(*pair) for pair in zip(tasks, runs, strict=True)])
            print(f"| {name} | {len(tasks)} | {whole} | {steps} |{alone}", flush=True)
            if given.asks:
                for (at, way), hits in sorted(asked.items()):
                    print(f"    {at} {told(hits)} n={len(hits)} {way}", flush=True)
                for row in wrong[: given.asks]:
                    print("    wrong:", *map(repr, row), flush=True)


def _ask(ways: Sequence[str], subtask: str) -> str:
    """The way of asking that a subtask was written in, by its words without blanks."""

    def words(way: str) -> list[str]:
        return [piece for piece in way.replace("}", "{").split("{")[::2] if piece]

    fit = [way for way in ways if all(piece in subtask for piece in words(way))]
    return max(fit, key=lambda way: sum(map(len, words(way))))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.chains")
    parser.add_argument("chains", nargs="*")
    parser.add_argument("--pool", default="orchestra")
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--singles", type=int, default=0, help="so many tasks to single players")
    parser.add_argument("--asks", type=int, default=0, help="show asks, and so many wrong parts")
    anyio.run(measure, parser.parse_args())


if __name__ == "__main__":
    main()
