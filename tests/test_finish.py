"""The last stage of a Conductor's training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("peft")

from conductor.prompt import KEEP, brief_messages, plan_text, revision_messages
from grammar import Plan, parse, parse_revision
from runtime import Message, prompt_ids
from training.cold_start import ColdStart, questions
from training.cold_start import train as train_cold
from training.finish import Finish, finish, own_plans, second_round, written_plans
from training.sft import SFTRecipe, adapted_model
from training.tasks import in_a_row
from training.trie import scores_of

RECIPE = SFTRecipe(rank=2, rate=1e-2)
TASKS = questions(60, wording="varied", seed=4)


@pytest.fixture(scope="module")
def trained(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that prefers some workers to others by chance."""
    folder = tmp_path_factory.mktemp("trained")
    train_cold(folder, 4, ColdStart(6, 2, tasks=60), RECIPE, model=str(tiny_folder))
    return folder


def likelihood(model: Any, tokenizer: Any, asked: Sequence[Message], text: str) -> float:
    """Of a text, in nats, scored alone."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    with torch.inference_mode():
        ((logps, _),) = scores_of(model, [prompt_ids(tokenizer, asked)], [ids])
    return float(logps.sum())


def test_workers_are_those_that_it_would_name_for_each_part_alone(
    trained: Path, tiny_folder: Path
) -> None:
    """Scored one by one and to the end, where the module scores them together and cut."""
    model, _, tokenizer = adapted_model(str(tiny_folder), RECIPE, trained)
    there = (0, 1, 3)

    def likely(question: str, number: int) -> float:
        text = plan_text(Plan.of(["{query}"], [number], [[]]))
        begun = text[: text.index("]\naccess")]
        return likelihood(model, tokenizer, brief_messages(question, range(4)), begun)

    def named(question: str) -> int:
        return max(there, key=lambda number: likely(question, number))

    asked = [(task, there) for task in TASKS[:20]]
    found = list(own_plans(model, tokenizer, asked, 4))

    assert len(found) == 20
    for task, (messages, text) in zip(TASKS, found, strict=False):
        assert messages == brief_messages(task.question, there)
        alone = [named(question) for question in task.alone]
        subtasks = task.usual_subtasks if task.parts else ["{query}"]
        assert text == plan_text(in_a_row(subtasks, alone))
    assert len({text.split("workers")[1] for _, text in found}) > 1
    assert {len(task.usual_subtasks) for task in TASKS[:20]} == {1, 2}


def test_it_goes_on_with_the_adapter_and_repeats_with_the_seed(
    trained: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    how = Finish(updates=6, batch=4, seed=2)
    told: list[str] = []

    one = finish(trained, tmp_path / "one", 4, how, RECIPE, model=str(tiny_folder))
    other = finish(
        trained, tmp_path / "two", 4, how, RECIPE, model=str(tiny_folder), progress=told.append
    )

    assert one == other
    assert one[-1] < one[0]
    assert told[-1].startswith("6/6 loss ")
    record = json.loads((tmp_path / "one" / "training.json").read_text())
    assert record["finish"] | {"plans": 24} == {
        "workers": 4,
        "plans": 24,
        "updates": 6,
        "batch": 4,
        "composed": 0.45,
        "fewest": 4,
        "seed": 2,
        "second": 0.0,
    }


def test_where_nothing_is_learned_the_adapter_stays(
    trained: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    still = SFTRecipe(rank=2, rate=0.0)
    finish(trained, tmp_path, 4, Finish(updates=2, batch=2), still, model=str(tiny_folder))

    before, after = (load_file(each / "adapter_model.safetensors") for each in (trained, tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_written_plans_name_whom_it_finds_most_likely_at_each_step(
    trained: Path, tiny_folder: Path
) -> None:
    """Scored one by one, where the module scores them together."""
    model, _, tokenizer = adapted_model(str(tiny_folder), RECIPE, trained)
    there = (0, 1, 3)
    asked = [(task, there) for task in TASKS[:20]]
    found = list(written_plans(model, tokenizer, asked))

    assert len(found) == 20
    for task, (messages, text) in zip(TASKS, found, strict=False):
        assert messages == brief_messages(task.question, there)
        subtasks = task.usual_subtasks if task.parts else ["{query}"]
        told = ", ".join(f'"{each}"' for each in subtasks)
        begun, named = f"subtasks = [{told}]\nworkers = [", []
        for _ in subtasks:
            likely = [likelihood(model, tokenizer, messages, f"{begun}{each}") for each in there]
            named.append(there[likely.index(max(likely))])
            begun += f"{named[-1]}, "
        assert text == plan_text(in_a_row(subtasks, named))
    assert len({text.split("workers")[1] for _, text in found}) > 2
    assert {len(parse(text)) for _, text in found} == {1, 2}


@given(
    workers=st.lists(st.sampled_from([0, 2, 3]), min_size=1, max_size=3),
    there=st.sets(st.sampled_from([0, 2, 3]), min_size=1).map(sorted),
    reply=st.text(max_size=20),
    lot=st.randoms(use_true_random=False),
)
def test_second_rounds_keep_the_answer_or_give_one_step_to_somebody_else(
    workers: list[int], there: list[int], reply: str, lot: Random
) -> None:
    asked = brief_messages("Why?", there)
    text = plan_text(in_a_row(["{query}", "Check it.", "Decide."][: len(workers)], workers))

    messages, again = second_round((asked, text), there, reply, lot)

    assert messages == revision_messages(asked, text, reply)
    plan = parse_revision(again)
    if plan is None:
        assert again == KEEP
        return
    first = parse(text)
    assert (plan.subtasks, plan.access) == (first.subtasks, first.access)
    changed = [at for at, step in enumerate(plan) if step.worker != workers[at]]
    assert len(changed) == 1
    assert plan.workers[changed[0]] in there


def test_whether_second_rounds_keep_the_answer_is_chance_whatever_the_reply() -> None:
    lesson = brief_messages("Why?", [0, 1]), plan_text(in_a_row(["{query}"], [0]))
    lot = Random(5)

    for reply in ("Because.", ""):
        kept = sum(second_round(lesson, [0, 1], reply, lot)[1] == KEEP for _ in range(1000))
        assert 450 < kept < 550
    assert {second_round(lesson, [0], "No.", lot)[1] for _ in range(20)} == {KEEP}


def test_a_share_of_second_rounds_is_learned_with_the_first_ones(
    trained: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    """What is learned is seen by what it lowers: the loss of keeping, which else is not touched."""

    def loss(folder: Path) -> float:
        model, _, tokenizer = adapted_model(str(tiny_folder), RECIPE, folder)
        task = TASKS[0]
        ((asked, text),) = written_plans(model, tokenizer, [(task, (0, 1, 2))])
        again = revision_messages(asked, text, task.answer)
        return -likelihood(model, tokenizer, again, KEEP)

    alone, both = (
        finish(
            trained,
            tmp_path / str(share),
            4,
            Finish(12, 4, second=share),
            RECIPE,
            model=str(tiny_folder),
        )
        for share in (0.0, 0.5)
    )

    assert alone != both
    assert loss(tmp_path / "0.5") < loss(tmp_path / "0.0")


def test_what_is_learned_are_valid_plans_of_who_is_there(trained: Path, tiny_folder: Path) -> None:
    model, _, tokenizer = adapted_model(str(tiny_folder), RECIPE, trained)
    asked = [(task, (1, 2)) for task in TASKS]

    for messages, text in islice(own_plans(model, tokenizer, asked, 4), 12):
        assert messages[-1].content.endswith("Workers: 1, 2")
        assert len(parse(text, workers=["", "one", "two", ""])) in {1, 2}
