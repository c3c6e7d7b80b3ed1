"""The cold start teaches what a plan looks like, and nothing about who is good."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conductor.prompt import brief_messages, plan_text
from grammar import Plan, parse
from runtime import LocalModel, LocalWorker, Message
from training.cold_start import (
    ColdStart,
    Written,
    lessons,
    offered,
    questions,
    random_plan,
    told,
    train,
    write,
)
from training.families import CHAINS, FAMILIES
from training.sft import SFTRecipe
from training.tasks import Split, draw

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

SUM = draw("addition", 1)[0]
CHAIN = draw("addition-mirror", 1)[0]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_who_is_offered_is_in_order_and_enough(workers: int, fewest: int, seed: int) -> None:
    numbers = offered(Random(seed), workers, fewest)

    assert list(numbers) == sorted(set(numbers))
    assert set(numbers) <= set(range(workers))
    assert min(fewest, workers) <= len(numbers) <= workers


@given(st.sets(st.integers(0, 5), max_size=6), st.integers(1, 6), st.integers(0, 99))
def test_a_team_is_there_in_any_case(team: set[int], fewest: int, seed: int) -> None:
    numbers = offered(Random(seed), 6, fewest, sorted(team))

    assert list(numbers) == sorted({*numbers, *team})
    assert max(fewest, len(team)) <= len(numbers) <= 6


@given(st.integers(0, 2**32), st.booleans())
def test_what_is_taught_is_a_plan_of_who_is_offered(seed: int, composed: bool) -> None:
    """The text as it is learned parses to the plan, and nobody is named who is not there."""
    random = Random(seed)
    numbers = offered(random, 6)
    plan = random_plan(CHAIN if composed else SUM, numbers, random)

    assert parse(plan_text(plan)) == plan
    assert set(plan.workers) <= set(numbers)


def test_workers_do_not_depend_on_what_is_asked() -> None:
    """With a thousand plans a task every worker is named in its share, for sums as for chains."""
    for task in (SUM, CHAIN):
        random = Random(0)
        plans = [random_plan(task, range(5), random) for _ in range(1000)]
        named = Counter(worker for plan in plans for worker in plan.workers)
        total = named.total()
        assert sorted(named) == [0, 1, 2, 3, 4]
        # Four standard deviations of a share of 1/5.
        assert all(abs(n / total - 0.2) < 4 * (0.16 / total) ** 0.5 for n in named.values())


def test_a_simple_question_is_mostly_handed_on_as_it_is() -> None:
    random = Random(0)
    often = Counter(random_plan(SUM, range(5), random).subtasks for _ in range(1000))

    # 950 expected; four standard deviations.
    assert 922 < often[("{query}",)] < 978
    assert {text for subtasks in often for text in subtasks[:-1]} == {"{query}"}


def test_a_composed_question_is_taken_apart_in_nine_of_ten_plans() -> None:
    random = Random(1)
    parts = tuple(part.usual for part in CHAIN.parts)
    plans = [random_plan(CHAIN, range(6), random) for _ in range(400)]

    apart = [plan for plan in plans if plan.subtasks == parts]

    assert 336 < len(apart) < 384
    assert {plan.steps[1].access for plan in apart} == {(0,)}


@pytest.mark.parametrize("name", sorted(CHAINS))
def test_a_part_is_always_said_in_the_same_words(name: str) -> None:
    """What is asked differs, so numbers, names and the like do; which words are new is the same."""
    for at, asks in enumerate(CHAINS[name].asks):
        plans = [task.parts[at].usual for task in draw(name, 20)]
        said = re.compile(re.sub(r"\\{\w+\\}", ".+", re.escape(asks[0])))
        assert len(set(plans)) > 1 or "{" not in asks[0]
        assert all(said.fullmatch(each) for each in plans)


def test_questions_are_of_the_split_and_of_no_reserved_family() -> None:
    which: dict[str, Any] = {
        "split": Split.VALIDATION,
        "wording": "held-out",
        "composed": 0.25,
        "seed": 3,
    }

    tasks = questions(200, **which)

    assert {task.split for task in tasks} == {Split.VALIDATION}
    assert all(task.held_out_wording and not task.reserved for task in tasks)
    reserved = {name for name, each in (*FAMILIES.items(), *CHAINS.items()) if each.reserved}
    assert not {task.family for task in tasks} & reserved
    assert 0.2 < sum(bool(task.parts) for task in tasks) / len(tasks) < 0.4
    assert tasks == questions(200, **which)


def test_lessons_are_the_serving_prompt_and_repeat_with_the_seed() -> None:
    how = ColdStart(tasks=60)
    some = list(islice(lessons(how, 6), 20))

    assert some == list(islice(lessons(how, 6), 20))
    for messages, answer in some:
        question, there = messages[-1].content.rsplit("\nWorkers: ", 1)
        numbers = [int(number) for number in there.split(", ")]
        assert messages == brief_messages(question, numbers)
        assert messages[0] == Message("system", "Write a plan.")
        assert set(parse(answer).workers) <= set(numbers)


def test_training_and_measuring_from_end_to_end(tiny_folder: Path, tmp_path: Path) -> None:
    """On a tiny model of random weights: it learns, is served, and what it writes is judged."""
    how = ColdStart(updates=12, batch=2, tasks=40)
    recipe = SFTRecipe(rank=2, rate=1e-2)

    losses = train(tmp_path / "one", 6, how, recipe, model=str(tiny_folder))

    assert losses == train(tmp_path / "two", 6, how, recipe, model=str(tiny_folder))
    assert sum(losses[-4:]) < sum(losses[:4])
    record = json.loads((tmp_path / "one" / "training.json").read_text())
    assert record["cold_start"]["workers"] == 6
    conductor = LocalWorker("conductor", LocalModel(str(tiny_folder)), adapter=tmp_path / "one")
    tasks = questions(16, split=Split.VALIDATION)
    written = anyio.run(write, conductor, tasks, 6)
    assert [each.task for each in written] == tasks
    again = anyio.run(write, conductor, tasks, 6)
    assert [each.text for each in again] == [each.text for each in written]


def test_a_summary_counts_what_is_valid_apart_and_copied() -> None:
    by_family = defaultdict(list)
    for task in questions(100):
        by_family[task.family].append(task)
    chain = by_family["addition-mirror"][0]
    good = Plan.of([part.usual for part in chain.parts], ["worker-0", "worker-2"], [[], [0]])
    wrong = Plan.of(["Add 1 and 1.", "Turn it round."], ["worker-0", "worker-0"], [[], [0]])
    solo = Plan.of(["{query}"], ["worker-2"], [[]])
    written = [Written(chain, (0, 2), "", plan) for plan in (good, wrong, solo, None)]

    summary = told(written)

    assert (summary["n"], summary["valid"]) == (4, 0.75)
    assert summary["interval"][0] < 0.75 < summary["interval"][1]
    assert summary["steps"] == {1: 1, 2: 2}
    assert summary["workers"] == {"worker-0": 3, "worker-2": 2}
    assert (summary["taken_apart"], summary["numbers_copied"]) == (2, 1)
    assert (summary["composed"], summary["as_taught"]) == (4, 1)
