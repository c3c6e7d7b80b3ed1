"""Make the players of the embedded orchestra: specialists of one small model, as LoRA adapters.

    python -m training.players runs/players

trains all of them from nothing and writes, beside them, the pool file ``orchestra.toml``:

    conductor run --pool runs/players/orchestra.toml --worker speller "Spell backward: b a t o"

Each player is the packaged model with an adapter of its own, trained by SFT on the answers of one
or two task families, in the words and the messages that it will meet as a worker: most often the
question alone, now and then as a part of a plan with an earlier reply to read. What it never sees
it forgets; so the model as it is, the player ``plain``, stays the best at all the rest.

How: :mod:`training.sft`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from grammar import Plan
from runtime import Message, fetch, step_messages

from .families import CHAINS, VERDICTS
from .sft import Lesson, SFTRecipe, adapt
from .tasks import Task, draw

if TYPE_CHECKING:
    pass

MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True, slots=True)
class Player:
    """A specialist and what it is trained on."""

    name: str
    card: str
    families: Mapping[str, int]
    """Families and how often each is drawn, relative to the others."""
    updates: int = 160


PLAYERS = (
    Player("calculator", "adds", {"addition": 3, "stories": 1}),
    Player("speller", "reverses letters and digits", {"reversal": 3, "mirror": 1}, updates=120),
    Player("sorter", "puts numbers in order, finds the largest", {"ordering": 3, "largest": 1}),
    Player("logician", "finds the tallest, oldest, fastest", {"relations": 1}, updates=100),
    Player("teller", "counts votes: tells which answer most give", {"tally": 1}, updates=100),
)
VOTED = ("addition", "ordering", "relations")
"""Families on whose attempts the counting of votes is trained."""
PLAIN_CARD = "knows facts and writes sentences"


@dataclass(frozen=True, slots=True)
class Recipe(SFTRecipe):
    """How a player is trained."""

    batch: int = 8
    """Items of an update."""
    step_batch: int = 4
    """Items of an update on steps of plans, which are some five times as long."""
    step_every: int = 4
    """Every which update is on steps of plans."""
    most_updates: int | None = None
    """Stop there; for trials."""


# --- data -----------------------------------------------------------------------------------------


def questions(player: Player, count: int, seed: int) -> Iterator[Lesson]:
    """Give questions of the player's families, as a worker gets them, with their answers."""
    random = Random(f"{player.name} {seed}")  # noqa: S311
    names = random.choices(list(player.families), list(player.families.values()), k=count)
    waiting = {
        name: draw(name, names.count(name), wording="trained", seed=seed) for name in set(names)
    }
    for name in names:
        task = waiting[name].pop()
        yield (Message("user", task.question),), task.answer


def steps(player: Player, count: int, seed: int) -> Iterator[Lesson]:
    """Give the player's parts of composed tasks, as steps of a plan, with their answers."""
    random = Random(f"{player.name} steps {seed}")  # noqa: S311
    mine = [
        (name, index)
        for name, chain in CHAINS.items()
        for index, family in enumerate(chain.parts)
        if family in player.families
    ]
    names = [random.choice(mine) for _ in range(count)] if mine else []
    waiting = {
        name: draw(name, sum(name == each for each, _ in names), wording="trained", seed=seed)
        for name in {name for name, _ in names}
    }
    for name, index in names:
        yield _step(waiting[name].pop(), index)
    if "tally" in player.families:
        yield from _verdicts(count, seed)


def _verdicts(count: int, seed: int) -> Iterator[Lesson]:
    """Give last steps of plans that count votes: attempts at a task, most often one of them wrong.

    The answer is what most attempts say, right or wrong.
    """
    random = Random(f"verdicts {seed}")  # noqa: S311
    names = random.choices(VOTED, k=count)
    waiting = {
        name: draw(name, 2 * names.count(name), wording="trained", seed=seed) for name in set(names)
    }
    for name in names:
        task, other = waiting[name].pop(), waiting[name].pop()
        said, less = random.sample((task.answer, other.answer), 2)
        replies = [said, said, said if random.random() < 0.2 else less]
        random.shuffle(replies)
        subtasks = [*[task.question] * len(replies), random.choice(VERDICTS)]
        access = [*[[]] * len(replies), list(range(len(replies)))]
        plan = Plan.of(subtasks, ["me"] * len(subtasks), access)
        yield step_messages(plan, len(replies), task.question, dict(enumerate(replies))), said


def _step(task: Task, index: int) -> tuple[tuple[Message, ...], str]:
    plan = task.plan(["me"] * len(task.parts))
    replies = {at: part.answer for at, part in enumerate(task.parts[:index])}
    return step_messages(plan, index, task.question, replies), task.parts[index].answer


# --- the loop -------------------------------------------------------------------------------------


def train(
    player: Player,
    target: Path,
    recipe: Recipe = Recipe(),
    *,
    folder: str = "",
    progress: Callable[[str], None] = lambda line: None,
) -> list[float]:
    """Train one player and save its adapter.

    Args:
        player: Which one.
        target: Folder for the adapter, in PEFT's form, and ``training.json``, the record.
        recipe: How.
        folder: The model, in Hugging Face form; the packaged one if empty.
        progress: Gets a line now and then.

    Returns:
        The loss of each update.
    """
    updates = min(player.updates, recipe.most_updates or player.updates)
    on_steps = [u % recipe.step_every == recipe.step_every - 1 for u in range(updates)]
    alone = questions(player, recipe.batch * updates, recipe.seed)
    in_plans = steps(player, recipe.step_batch * sum(on_steps), recipe.seed)

    def pairs(update: int) -> list[Lesson]:
        source, count = (in_plans, recipe.step_batch) if on_steps[update] else (alone, recipe.batch)
        drawn = [pair for _, pair in zip(range(count), source, strict=False)]
        return drawn or [next(alone) for _ in range(recipe.batch)]  # of no chain

    return adapt(
        folder or MODEL,
        pairs,
        updates,
        target,
        recipe,
        about={"player": asdict(player)},
        progress=lambda line: progress(f"{player.name} {line}"),
    )


def pool_text(players: Sequence[Player]) -> str:
    """Write the pool file of the orchestra: the untouched model, then the players.

    One engine serves all, so that calls of different players share a batch.
    """
    tables = ["# Made by python -m training.players: one model in memory, an adapter a player.\n"]
    for name, card in (("plain", PLAIN_CARD), *((each.name, each.card) for each in players)):
        lines = [f"[workers.{name}]", 'kind = "local"', f'model = "{MODEL}"']
        lines += ['engine = "transformers"', "temperature = 0.0", "max_tokens = 32"]
        lines += [f'card = "{card}"'] + ([f'adapter = "{name}"'] if name != "plain" else [])
        tables.append("\n".join(lines) + "\n")
    return "\n".join(tables)


def _train_one(player: Player, target: Path, recipe: Recipe) -> None:
    train(player, target, recipe, progress=lambda line: print(line, flush=True))  # noqa: T201


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m training.players")
    parser.add_argument("folder", type=Path, help="where the players go")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="this player")
    parser.add_argument("--updates", type=int, help="stop each player there; for trials")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=max(1, (os.cpu_count() or 2)), metavar="N")
    chosen = parser.parse_args(arguments)
    known = [player.name for player in PLAYERS]
    if unknown := sorted({*chosen.only} - {*known}):
        parser.error(f"no player {', '.join(unknown)}; there are: {', '.join(known)}")
    players = [player for player in PLAYERS if not chosen.only or player.name in chosen.only]
    recipe = replace(Recipe(), seed=chosen.seed, most_updates=chosen.updates)
    fetch(MODEL, lambda stage: print(stage, file=sys.stderr))  # noqa: T201  # once, not in each
    with ProcessPoolExecutor(min(chosen.at_once, len(players)), get_context("spawn")) as processes:
        # The longest first, so that no core waits for it at the end.
        trained = [
            processes.submit(_train_one, player, chosen.folder / player.name, recipe)
            for player in sorted(players, key=lambda each: -each.updates)
        ]
        for each in trained:
            each.result()
    (chosen.folder / "orchestra.toml").write_text(pool_text(PLAYERS), encoding="utf-8")


if __name__ == "__main__":
    main()
