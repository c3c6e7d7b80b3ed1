"""The cold start of a Conductor: it learns what a plan looks like, and nothing about who is good.

    python -m training.cold_start runs/cold-start

trains an adapter of the packaged model by SFT on random plans, and measures how many of the plans
that it then writes, freely and at temperature 1, are valid. Workers are random among those that are
offered; whether a question is handed on, tried twice or checked is random too, the simplest being
by far the most frequent; a composed question is taken apart into its parts, each step reading the
one before, in nine of ten plans. So who is right is left to reinforcement learning to find out, but
it is within reach: with subtasks that are wholly random no rollout would ever solve a composed
question.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import anyio

from conductor.prompt import brief_messages, plan_text
from grammar import Plan, PlanError, parse
from runtime import Call, LocalModel, LocalWorker, Sampling

from .families import CHAINS, FAMILIES
from .matrix import wilson
from .players import MODEL
from .sft import Lesson, SFTRecipe, adapt
from .tasks import Split, Task, Wording, draw, in_a_row

_APART = 0.9
"""Share of composed questions that are taken apart."""
_ALONE = 0.95
"""Share of the others that are handed on to one worker, and no more."""
_CHECKS = (
    "Check the reply and give the final answer.",
    "Correct the reply if it is wrong.",
    "Give the final answer.",
)
_VERDICTS = (
    "Compare the replies and give the final answer.",
    "Pick the best reply.",
    "Say which answer is right.",
)


@dataclass(frozen=True, slots=True)
class ColdStart:
    """How a Conductor learns the form."""

    updates: int = 100
    batch: int = 16
    """Plans of an update."""
    composed: float = 0.5
    """Share of composed questions."""
    fewest: int = 3
    """Fewest workers that a question offers; more, up to all, are as likely."""
    tasks: int = 4000
    """Different questions, about."""
    seed: int = 0


def offered(
    random: Random,
    workers: int,
    fewest: int = 3,
    team: Sequence[int] = (),
) -> tuple[int, ...]:
    """Draw who is there, in order.

    Args:
        random: The source of chance.
        workers: How many the roster has; each is a number from 0 on.
        fewest: How many are there at least.
        team: Who is there in any case.
    """
    least = min(max(fewest, len(team)), workers)
    count = random.randint(least, workers)
    others = [number for number in range(workers) if number not in team]
    return tuple(sorted([*team, *random.sample(others, count - len(team))]))


def random_plan(task: Task, numbers: Sequence[int], random: Random) -> Plan:
    """Draw a plan for a task: its form as the module's docstring says, workers by chance.

    Args:
        task: What is asked.
        numbers: Who may be named.
        random: The source of chance.
    """
    if task.parts and random.random() < _APART:
        # Always in the same words: completions of a question then differ less before they name
        # somebody, which is what is to be learned, and what they share is computed once.
        subtasks = task.usual_subtasks
        return in_a_row(subtasks, [random.choice(numbers) for _ in subtasks])
    access: list[list[int]]
    if (drawn := random.random()) < _ALONE:
        subtasks, access = ["{query}"], [[]]
    elif drawn < (1 + _ALONE) / 2:
        subtasks, access = ["{query}", random.choice(_CHECKS)], [[], [0]]
    else:
        subtasks, access = ["{query}", "{query}", random.choice(_VERDICTS)], [[], [], [0, 1]]
    return Plan.of(subtasks, [random.choice(numbers) for _ in subtasks], access)


def questions(
    count: int,
    *,
    split: Split = Split.TRAIN,
    wording: Wording = "trained",
    composed: float = 0.5,
    seed: int = 0,
    often: int = 1,
) -> list[Task]:
    """Draw tasks of all families and chains that deciders may train on, each about as often.

    Args:
        count: How many, about: small families have fewer.
        split: Of which split.
        wording: In which phrasings.
        composed: Share of composed ones.
        seed: Chooses them.
        often: How often the same item comes, each time drawing its phrasing.
    """
    families = [name for name, family in FAMILIES.items() if not family.reserved]
    chains = [name for name, chain in CHAINS.items() if not chain.reserved]
    found: list[Task] = []
    for names, share in ((families, 1 - composed), (chains, composed)):
        each = round(count * share / len(names))
        for name in names if each else ():
            found += draw(
                name, each, split=split, wording=wording, seed=seed, fewer=True, often=often
            )
    Random(seed).shuffle(found)  # noqa: S311
    return found


def lessons(how: ColdStart, workers: int) -> Iterator[Lesson]:
    """Give questions as a Conductor gets them, with plans as it writes them, without end."""
    random = Random(how.seed)  # noqa: S311
    tasks = questions(how.tasks, composed=how.composed, seed=how.seed)
    while True:
        task = random.choice(tasks)
        numbers = offered(random, workers, how.fewest)
        plan = random_plan(task, numbers, random)
        yield brief_messages(task.question, numbers), plan_text(plan)


def train(
    target: Path,
    workers: int,
    how: ColdStart = ColdStart(),
    recipe: SFTRecipe = SFTRecipe(rank=8, threads=2),
    *,
    model: str = MODEL,
    progress: Any = lambda line: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[float]:
    """Train the adapter; see :func:`training.sft.adapt`.

    Args:
        target: Its folder.
        workers: How many the roster has.
        how: What is learned.
        recipe: How the adapter is trained.
        model: A packaged model or a folder.
        progress: Gets a line now and then.
        stop: Is asked after each update whether to stop.

    Returns:
        The loss of each update, in nats; fewer than updates after a stop.
    """
    stream = lessons(how, workers)
    about = {"cold_start": {"workers": workers, **asdict(how)}}

    def batch(update: int) -> list[Lesson]:
        return [next(stream) for _ in range(how.batch)]

    return adapt(
        model, batch, how.updates, target, recipe, about=about, progress=progress, stop=stop
    )


# --- what it writes -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Written:
    """What a Conductor wrote for one task."""

    task: Task
    numbers: tuple[int, ...]
    text: str
    plan: Plan | None
    """None if it is no valid plan of who is offered."""


async def write(
    conductor: LocalWorker,
    tasks: Sequence[Task],
    workers: int,
    *,
    there: Sequence[int] = (),
    temperature: float = 1.0,
    most_tokens: int = 128,
    seed: int = 0,
) -> list[Written]:
    """Let a Conductor write a plan for each task, freely.

    Args:
        conductor: The model with its adapter.
        tasks: The questions.
        workers: How many the roster has.
        there: Who is offered; of each question others, drawn by chance, if empty.
        temperature: Of its choices.
        most_tokens: Longest completion.
        seed: Draws the pools, and the choices.
    """
    random = Random(seed)  # noqa: S311
    numbers = [tuple(there) or offered(random, workers) for _ in tasks]
    texts = [""] * len(tasks)

    async def one(at: int) -> None:
        sampling = Sampling(temperature, max_tokens=most_tokens, seed=seed * 1_000_003 + at)
        asked = brief_messages(tasks[at].question, numbers[at])
        texts[at] = (await conductor.complete(Call(asked, sampling))).text

    async with anyio.create_task_group() as group:
        for at in range(len(tasks)):
            group.start_soon(one, at)
    return [
        Written(task, there, text, _plan(text, there, workers))
        for task, there, text in zip(tasks, numbers, texts, strict=True)
    ]


def _plan(text: str, numbers: Sequence[int], workers: int) -> Plan | None:
    names = [f"worker-{at}" if at in numbers else "" for at in range(workers)]
    try:
        return parse(text, workers=names)
    except PlanError:
        return None


def told(written: Sequence[Written]) -> dict[str, Any]:
    """Summarise: how many are valid (Wilson interval, 95 %), of which lengths, who is named.

    ``as_taught`` counts the composed questions, of ``composed``, that are taken apart into their
    parts, word by word.
    """
    valid = [each for each in written if each.plan is not None]
    interval = wilson(len(valid) / len(written), len(written))
    steps = Counter(len(each.plan or ()) for each in valid)
    named = Counter(step.worker for each in valid for step in each.plan or ())
    parts = [each for each in valid if each.task.parts and len(each.plan or ()) > 1]
    apart = [each for each in parts if each.plan and "{query}" not in each.plan.subtasks]
    exact = [
        each
        for each in apart
        if each.plan and _numbers(*each.plan.subtasks) == _numbers(each.task.question)
    ]
    return {
        "n": len(written),
        "valid": len(valid) / len(written),
        "interval": [interval.low, interval.high],
        "steps": dict(sorted(steps.items())),
        "workers": {str(name): count for name, count in sorted(named.items(), key=str)},
        "taken_apart": len(apart),
        "numbers_copied": len(exact),
        "composed": sum(bool(each.task.parts) for each in written),
        "as_taught": sum(
            [*each.plan.subtasks] == each.task.usual_subtasks for each in apart if each.plan
        ),
    }


def _numbers(*texts: str) -> Counter[str]:
    """The numbers in texts, and how often each is there."""
    return Counter("".join(c if c.isdigit() else " " for c in " ".join(texts)).split())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m training.cold_start")
    parser.add_argument("folder", type=Path, help="where the adapter goes")
    parser.add_argument("--workers", type=int, default=6, help="how many the roster has")
    parser.add_argument("--updates", type=int, default=ColdStart().updates)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", type=int, default=96, help="to measure with, of each wording")
    chosen = parser.parse_args(arguments)
    how = ColdStart(updates=chosen.updates, seed=chosen.seed)
    train(
        chosen.folder,
        chosen.workers,
        how,
        SFTRecipe(rank=8, seed=chosen.seed, threads=2),
        model=chosen.model,
        progress=lambda line: print(line, flush=True),  # noqa: T201
    )
    conductor = LocalWorker("conductor", LocalModel(chosen.model), adapter=chosen.folder)
    wordings: tuple[Wording, ...] = ("trained", "held-out")
    for wording in wordings:
        tasks = questions(chosen.tasks, split=Split.VALIDATION, wording=wording, seed=chosen.seed)
        written = anyio.run(write, conductor, tasks, chosen.workers)
        print(wording, json.dumps(told(written)))  # noqa: T201


if __name__ == "__main__":
    main()
