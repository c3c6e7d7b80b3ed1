"""Make the players of the embedded orchestra: specialists of one small model, as LoRA adapters.

    python -m training.players runs/players

trains all of them from nothing and writes, beside them, the pool file ``orchestra.toml``:

    conductor run --pool runs/players/orchestra.toml --worker speller "Spell backward: b a t o"

Each player is the packaged model with an adapter of its own, trained by SFT on the answers of one
or two task families, in the words and the messages that it will meet as a worker: most often the
question alone, now and then as a part of a plan with an earlier reply to read. What it never sees
it forgets; so the model as it is, the player ``plain``, stays the best at all the rest.

It departs from common recipes in three points, all for a CPU, where arithmetic is the limit:

1. A batch is one row: the tokens that all prompts begin with once, then item after item, each
   seeing the beginning and itself. So nothing is padded and the chat template is read once.
2. The vocabulary's logits are computed where an answer token is predicted and nowhere else.
3. Small batches at a high rate: 80 updates of 8 at 2e-3 on all layers taught two-digit sums to 92 %
   (n = 48), where 40 updates of 16 at 1e-3 on the upper half taught 54 %.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from grammar import Plan
from runtime import Message, fetch, prompt_ids, step_messages

from .families import CHAINS, VERDICTS
from .tasks import Task, draw

if TYPE_CHECKING:
    import torch

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
class Recipe:
    """How a player is trained."""

    rank: int = 4
    scale: float = 2.0
    """What an adapter's products are multiplied by."""
    batch: int = 8
    """Items of an update."""
    step_batch: int = 4
    """Items of an update on steps of plans, which are some five times as long."""
    step_every: int = 4
    """Every which update is on steps of plans."""
    rate: float = 2e-3
    """Peak of the learning rate; it rises over the first updates and falls linearly to 0."""
    warm_up: int = 5
    """Updates over which the rate rises."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    seed: int = 0
    most_updates: int | None = None
    """Stop there; for trials."""


class Example(NamedTuple):
    """One prompt and the answer that is to follow it."""

    prompt: list[int]
    answer: list[int]
    """With the token that ends a turn."""


# --- data -----------------------------------------------------------------------------------------


def questions(player: Player, count: int, seed: int) -> Iterator[tuple[tuple[Message, ...], str]]:
    """Give questions of the player's families, as a worker gets them, with their answers."""
    random = Random(f"{player.name} {seed}")  # noqa: S311
    names = random.choices(list(player.families), list(player.families.values()), k=count)
    waiting = {
        name: draw(name, names.count(name), wording="trained", seed=seed) for name in set(names)
    }
    for name in names:
        task = waiting[name].pop()
        yield (Message("user", task.question),), task.answer


def steps(player: Player, count: int, seed: int) -> Iterator[tuple[tuple[Message, ...], str]]:
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


def _verdicts(count: int, seed: int) -> Iterator[tuple[tuple[Message, ...], str]]:
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


# --- the packed batch -----------------------------------------------------------------------------


class Batch(NamedTuple):
    """Several examples in one row."""

    ids: torch.Tensor  # (1, T)
    positions: torch.Tensor  # (1, T): each example counts on from the common beginning
    mask: torch.Tensor  # (1, 1, T, T): whether a token sees another
    at: torch.Tensor  # (N,): where answer tokens are predicted
    targets: torch.Tensor  # (N,)


def pack(examples: Sequence[Example]) -> Batch:
    """Put examples in one row, what all prompts begin with once."""
    import torch

    prompts = [example.prompt for example in examples]
    shortest = min(map(len, prompts)) - 1
    same = next((at for at in range(shortest) if len({p[at] for p in prompts}) > 1), shortest)
    ids, positions, owner = list(prompts[0][:same]), list(range(same)), [-1] * same
    at: list[int] = []
    for number, (prompt, answer) in enumerate(examples):
        own = prompt[same:] + answer[:-1]
        first = len(ids) + len(prompt) - same - 1
        at += range(first, first + len(answer))
        ids += own
        positions += range(same, same + len(own))
        owner += [number] * len(own)
    owners = torch.tensor(owner)
    mask = (owners[None] == owners[:, None]) | (owners[None] == -1)
    return Batch(
        torch.tensor([ids]),
        torch.tensor([positions]),
        mask.tril()[None, None],
        torch.tensor(at),
        torch.tensor([token for example in examples for token in example.answer]),
    )


def loss_of(model: Any, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy of the answer tokens.

    Args:
        model: A causal LM with its body in ``model.model`` and its head in ``model.lm_head``.
        batch: As :func:`pack` gives it.
    """
    import torch

    hidden = model.model(
        input_ids=batch.ids,
        position_ids=batch.positions,
        attention_mask=batch.mask,
        use_cache=False,
    ).last_hidden_state[0, batch.at]  # (N, D)
    return torch.nn.functional.cross_entropy(model.lm_head(hidden), batch.targets)


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
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)  # two players at once are faster than one on two threads
    torch.manual_seed(recipe.seed)
    given, folder = folder, folder or str(fetch(MODEL))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    plain: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    plain.train(False)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=round(recipe.scale * recipe.rank),
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks transformers for what it renames
        adapted: Any = get_peft_model(plain, config)
    weights = [weight for weight in adapted.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.0)

    updates = min(player.updates, recipe.most_updates or player.updates)
    on_steps = [u % recipe.step_every == recipe.step_every - 1 for u in range(updates)]
    alone = questions(player, recipe.batch * updates, recipe.seed)
    in_plans = steps(player, recipe.step_batch * sum(on_steps), recipe.seed)

    def examples(update: int) -> list[Example]:
        source, count = (in_plans, recipe.step_batch) if on_steps[update] else (alone, recipe.batch)
        drawn = [pair for _, pair in zip(range(count), source, strict=False)]
        drawn = drawn or [next(alone) for _ in range(recipe.batch)]  # of no chain
        return [
            Example(
                prompt_ids(tokenizer, messages),
                [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id],
            )
            for messages, answer in drawn
        ]

    losses: list[float] = []
    began = time.monotonic()
    for update in range(updates):
        rising = min(1.0, (update + 1) / recipe.warm_up)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * rising * (1 - update / updates)
        loss = loss_of(plain, pack(examples(update)))
        loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        torch.nn.utils.clip_grad_norm_(weights, recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if update % 20 == 19 or update == updates - 1:
            mean = sum(losses[-20:]) / len(losses[-20:])
            seconds = time.monotonic() - began
            progress(f"{player.name} {update + 1}/{updates} loss {mean:.3f} {seconds:.0f} s")

    adapted.peft_config["default"].base_model_name_or_path = folder if given else MODEL
    adapted.save_pretrained(target, save_embedding_layers=False)  # else it asks the hub
    (target / "README.md").unlink(missing_ok=True)  # a form that PEFT leaves to fill in
    file = target / "adapter_model.safetensors"
    # Half precision halves the file; the rounding is far below what an update changes.
    save_file({name: each.half() for name, each in load_file(file).items()}, file)
    record: dict[str, Any] = {"player": asdict(player), "recipe": asdict(recipe), "losses": losses}
    record["seconds"] = round(time.monotonic() - began)
    (target / "training.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    return losses


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
