"""Runs on record: a budget that stops one, a fallback, text as it comes, going on, replaying.

python examples/08_runs_on_record.py
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import anyio

from conductor import (
    Budget,
    Conductor,
    FailureKind,
    FunctionWorker,
    Journal,
    Message,
    Plan,
    Pool,
    Terms,
    WorkerError,
    replay,
)


async def recipe(messages: Sequence[Message]) -> str:
    return "Flour, water, salt; knead, wait, bake."


async def busy(messages: Sequence[Message]) -> str:
    raise WorkerError(FailureKind.OVERLOADED, "the baker is busy")


async def taste(messages: Sequence[Message]) -> str:
    return "More salt." if "salt" in messages[-1].content else "Some salt."


POOL = Pool(
    [FunctionWorker("book", recipe), FunctionWorker("baker", busy), FunctionWorker("cook", taste)],
    terms=Terms(retries=0),
)
PLAN = Plan.of(
    ["Find a recipe.", "Improve it.", "Say it shortly."], ["book", "baker", "cook"], [[], [0], [1]]
)


async def bake(journal: Journal) -> None:
    async with Conductor(POOL, journal=journal) as team:
        run = await team.arun(
            "How do I bake bread?", plan=PLAN, fallback=["cook"], budget=Budget(calls=3)
        )
        print(f"stopped: {run.failure.message if run.failure else ''}")
        print(f"so far:  {run.best.text if run.best else ''}")

        run = await team.aresume(run.id, budget=Budget(calls=4))
        print(f"then:    {run.answer}")
        for step in run.steps:
            lost = ", ".join(f"{each.worker}: {each.failure.message}" for each in step.lost)
            print(f"step {step.index}, {step.worker}" + (f" ({lost})" if lost else ""))

        async with team.stream("What does the soup lack?", worker="cook") as stream:
            async for text in stream.text():
                print(f"heard:   {text}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal.db") as journal:
        anyio.run(bake, journal)
        for known in journal.runs():
            run = journal.run(known.id)
            print(f"{known.state}: {known.query} replayed alike: {replay(run) == run}")


if __name__ == "__main__":
    main()
