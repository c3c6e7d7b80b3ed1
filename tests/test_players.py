"""Players: a batch is plain SFT, a trained adapter is served, and training teaches."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from transformers import AutoModelForCausalLM

from runtime import Call, LocalModel, LocalWorker, Message, Pool, Sampling, fetch
from training.players import (
    MODEL,
    PLAYERS,
    Recipe,
    pool_text,
    questions,
    steps,
    train,
)
from training.sft import Example, loss_of
from training.tasks import Split, draw, plain

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

EXAMPLES = (
    Example([9, 8, 7, 50, 51, 52], [60, 61, 1]),
    Example([9, 8, 7, 53], [62, 1]),
    Example([9, 8, 7, 50, 54, 55, 56, 57], [63, 64, 65, 66, 1]),
)
SPELLER = next(player for player in PLAYERS if player.name == "speller")


@pytest.fixture(scope="module")
def tiny_lm(tiny_folder: Path) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    model.train(False)
    return model


@pytest.mark.parametrize("examples", [EXAMPLES, EXAMPLES[1:2], (Example([5], [6, 1]),) * 2])
def test_a_batch_has_the_loss_of_its_examples_one_by_one(
    tiny_lm: Any, examples: tuple[Example, ...]
) -> None:
    losses = []
    for prompt, answer in examples:
        logits = tiny_lm(input_ids=torch.tensor([prompt + answer])).logits[0]
        predicted = logits[len(prompt) - 1 : -1]
        losses.append(
            torch.nn.functional.cross_entropy(predicted, torch.tensor(answer), reduction="none")
        )

    torch.testing.assert_close(loss_of(tiny_lm, examples), torch.cat(losses).mean())


@pytest.mark.parametrize("player", PLAYERS, ids=lambda player: player.name)
def test_players_learn_from_the_training_split_in_words_that_are_not_held_out(
    player: Any,
) -> None:
    shown = {plain(messages[-1].content) for messages, _ in questions(player, 300, seed=0)}
    for family in player.families:
        for split in (Split.VALIDATION, Split.TEST):
            held = {plain(each.question) for each in draw(family, 200, split=split, wording="all")}
            assert not shown & held


def test_players_learn_the_messages_that_steps_get() -> None:
    seen = list(steps(SPELLER, 12, seed=0))

    assert len(seen) == 12
    for messages, answer in seen:
        system, user = messages
        assert system.role == "system"
        assert "[reply " in user.content
        assert answer.replace(" ", "")[::-1] in user.content.splitlines()
    with_none = replace(SPELLER, families={"geography": 1})
    assert list(steps(with_none, 12, seed=0)) == []


def test_training_is_reproducible_and_its_adapter_is_served(
    tiny_folder: Path, tmp_path: Path
) -> None:
    player = replace(SPELLER, families={"mirror": 1}, updates=12)
    recipe = Recipe(batch=4, step_batch=1, rate=1e-2)

    losses = train(player, tmp_path / "one", recipe, folder=str(tiny_folder))
    again = train(player, tmp_path / "two", recipe, folder=str(tiny_folder))
    other = train(player, tmp_path / "other", replace(recipe, seed=1), folder=str(tiny_folder))

    assert losses == again != other
    record = json.loads((tmp_path / "one" / "training.json").read_text())
    assert record["losses"] == losses
    assert record["player"]["families"] == {"mirror": 1}
    weights = "adapter_model.safetensors"
    assert (tmp_path / "one" / weights).read_bytes() == (tmp_path / "two" / weights).read_bytes()

    model = LocalModel(str(tiny_folder))
    call = Call((Message("user", "Reverse the digits of 123."),), Sampling(0.0, max_tokens=8))

    plain_text = anyio.run(LocalWorker("plain", model).complete, call).text
    adapted = LocalWorker("adapted", model, adapter=tmp_path / "one")
    assert anyio.run(adapted.complete, call).text != plain_text


def test_the_real_model_learns_a_family_in_a_few_updates(tmp_path: Path) -> None:
    """In the first updates it learns the form: a name and nothing else."""
    logician = next(player for player in PLAYERS if player.name == "logician")
    few = replace(logician, updates=8)

    losses = train(few, tmp_path / "few", Recipe(batch=4, step_every=100, warm_up=2))

    assert sum(losses[-2:]) < 0.5 * sum(losses[:2])
    worker = LocalWorker(
        "logician",
        LocalModel(MODEL, engine="transformers"),
        adapter=tmp_path / "few",
        sampling=Sampling(0.0, max_tokens=8),
    )

    task = draw("relations", 1, split=Split.TEST)[0]
    answer = anyio.run(worker.complete, Call((Message("user", task.question),))).text
    assert answer.strip().isalpha()
    assert answer.strip() in task.question


def test_the_pool_file_has_the_model_as_it_is_and_every_player(tmp_path: Path) -> None:
    assert fetch(MODEL).is_dir()
    file = tmp_path / "orchestra.toml"
    file.write_text(pool_text(PLAYERS))

    pool = Pool.load(file)

    assert pool.names == ("plain", *(player.name for player in PLAYERS))
    assert len({id(worker.model) for worker in pool if isinstance(worker, LocalWorker)}) == 1
    assert [worker.adapter for worker in pool if isinstance(worker, LocalWorker)] == [
        "",
        *(str(tmp_path / player.name) for player in PLAYERS),
    ]
    assert tomllib.loads(file.read_text())["workers"]["plain"]["temperature"] == 0.0
