"""Trials: deciders carried out for real, accounted for in full, and never twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import anyio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conductor import Planner
from runtime import (
    CallCache,
    Completion,
    FailureKind,
    FunctionWorker,
    Journal,
    LocalModel,
    LocalWorker,
    Message,
    Pool,
    Price,
    Sampling,
    Terms,
    Usage,
    WorkerError,
)
from training.evaluate import Choices, Measured
from training.graders import Number
from training.labels import Labels
from training.tasks import Part, Split, Task, task
from training.trials import (
    TRIALS,
    Bench,
    Chooser,
    Decider,
    carry_out_trials,
    known_parts,
    mixture,
    named,
    outcomes_of,
    planning_of,
    random_plan,
    read_trials,
    waiting,
)

pytestmark = pytest.mark.anyio

PLAN = 'subtasks = ["add", "tell"]\nworkers = [0, 1]\naccess = [[], [0]]\n'
SUMS = tuple(task("sums", f"{at} + 1?", Number(str(at + 1))) for at in range(4))
CHOICES = Choices("adder", "adder", {"sums": "adder", "words": "teller"}, 10)
TERMS = Terms(price=Price(Decimal(1), Decimal(1)), retries=0)


class Crew:
    """Workers that add, that tell what they read, and that plan; and who was asked what."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.plan = PLAN
        self.down = False
        self.held: anyio.Event | None = None

    def pool(self) -> Pool:
        async def adder(messages: Sequence[Message]) -> Completion:
            if self.held is not None:
                await self.held.wait()
            return self.said(
                "adder", messages, str(int(messages[-1].content.split(" + ")[0][-1]) + 1)
            )

        async def teller(messages: Sequence[Message]) -> Completion:
            if self.down:
                raise WorkerError(FailureKind.UNREACHABLE, "teller is down")
            return self.said("teller", messages, "it is 3")

        async def scribe(messages: Sequence[Message]) -> Completion:
            return self.said("scribe", messages, self.plan)

        workers = [FunctionWorker("adder", adder, card="adds"), FunctionWorker("teller", teller)]
        return Pool(workers, planner=FunctionWorker("scribe", scribe), terms=TERMS)

    def said(self, name: str, messages: Sequence[Message], text: str) -> Completion:
        self.asked.append((name, messages[-1].content))
        return Completion(text, usage=Usage(10, 2))


def planned(bench: Bench, seeds: int = 1) -> Decider:
    return bench.planned("conductor", "plans", [Planner(bench.pool.planner)] * seeds)


def measured(tasks: Sequence[Task] = SUMS) -> Measured:
    """What adder and teller say on file: adder is right, teller says 3."""
    scores = np.array([[[1.0], [float(at == 2)]] for at in range(len(tasks))], np.float32)
    said = np.full(scores.shape, "3", dtype=object)
    took = np.ones(scores.shape)
    labels = Labels(tuple(tasks), ("adder", "teller"), scores)
    return Measured(labels, said, 12 * took, 0.5 * took, 0.25 * took)


# -- plans ---------------------------------------------------------------------------------------


async def test_a_plan_is_carried_out_graded_and_accounted_for(tmp_path: Path) -> None:
    crew = Crew()
    bench = Bench(crew.pool())
    decider = planned(bench)

    assert await carry_out_trials([decider], SUMS, bench, tmp_path)

    trial = read_trials(tmp_path)[decider.digest, SUMS[2].id, 0]
    assert (trial.score, trial.calls, trial.tokens, trial.deciding) == (1.0, 3, 36, 12)
    assert trial.dollars == trial.paid == Decimal("36e-6")
    assert trial.workers == {"adder": 1, "teller": 1}
    assert (trial.topology, trial.steps, trial.plans, trial.failure) == ("chain", 2, 1, "")
    found = outcomes_of(decider, measured(), tmp_path)
    assert found.scores[:, 0].tolist() == [0, 0, 1, 0]  # teller says 3, whatever is asked
    assert found.workers.tolist() == [[0.5, 0.5]] * 4
    assert found.tokens[:, 0].tolist() == [36] * 4 and found.deciding[:, 0].tolist() == [12] * 4
    tests = [replace(each, split=Split.TEST) for each in SUMS]
    (plans,) = planning_of(decider, tests, tmp_path)
    assert (plans.trials, plans.planned, plans.steps) == (4, 4, 2)
    assert plans.topologies == {"chain": 4} and plans.right == {"chain": 0.25}


async def test_what_is_on_file_is_not_done_again(tmp_path: Path) -> None:
    """Nor is anything lost that ended before a kill, of which a half line is left."""
    crew = Crew()
    bench = Bench(crew.pool())
    decider = planned(bench)
    await carry_out_trials([decider], SUMS[:2], bench, tmp_path)
    with (tmp_path / TRIALS).open("ab") as file:
        file.write(b'{"decider": "conductor", "dig')
    crew.asked.clear()

    assert waiting([decider], SUMS, tmp_path) == [(decider, each, 0) for each in SUMS[2:]]
    await carry_out_trials([decider], SUMS, bench, tmp_path)

    assert len(crew.asked) == 3 * 2
    assert len(read_trials(tmp_path)) == 4
    await carry_out_trials([decider], SUMS, bench, tmp_path)
    assert len(crew.asked) == 3 * 2


async def test_cancelled_halfway_it_goes_on_with_the_calls_that_were_answered(
    tmp_path: Path,
) -> None:
    """The planner has answered when the run is stopped; with a cache it is not asked again."""
    crew = Crew()
    crew.held = anyio.Event()
    with CallCache(tmp_path / "calls.db") as cache:
        bench = Bench(crew.pool(), cache)
        decider = planned(bench)
        async with anyio.create_task_group() as group:
            group.start_soon(carry_out_trials, [decider], SUMS[:1], bench, tmp_path)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        assert [name for name, _ in crew.asked] == ["scribe"]
        crew.held.set()

        await carry_out_trials([decider], SUMS[:1], bench, tmp_path)

    assert [name for name, _ in crew.asked] == ["scribe", "adder", "teller"]


async def test_what_the_cache_answers_counts_as_if_it_had_been_asked(tmp_path: Path) -> None:
    crew = Crew()
    with CallCache(tmp_path / "calls.db") as cache:
        bench = Bench(crew.pool(), cache)
        decider = planned(bench)
        await carry_out_trials([decider], SUMS[:1], bench, tmp_path / "a")
        await carry_out_trials([decider], SUMS[:1], bench, tmp_path / "b")

    (first,), (second,) = (read_trials(tmp_path / each).values() for each in "ab")
    assert len(crew.asked) == 3
    assert (second.paid, second.seconds) == (Decimal(0), None)
    assert first.seconds is not None
    same = replace(second, paid=first.paid, seconds=first.seconds, run=first.run)
    assert same == first


async def test_no_plan_is_wrong_and_a_dead_worker_is_neither(tmp_path: Path) -> None:
    """What failed for technical reasons is tried again the next time."""
    crew = Crew()
    bench = Bench(crew.pool())
    decider = planned(bench)
    crew.plan = "I would rather not."
    await carry_out_trials([decider], SUMS[:1], bench, tmp_path)
    crew.plan, crew.down = PLAN, True
    await carry_out_trials([decider], SUMS[:3], bench, tmp_path)

    there = read_trials(tmp_path)
    no_plan, dead = (there[decider.digest, SUMS[at].id, 0] for at in (0, 2))
    assert (no_plan.score, no_plan.plans, no_plan.calls) == (0.0, 2, 2)
    assert "wrote no valid plan" in no_plan.failure
    assert dead.score is None and "teller is down" in dead.failure
    found = outcomes_of(decider, measured(), tmp_path)
    assert np.isnan(found.scores[:, 0]).tolist() == [False, True, True, True]
    crew.down = False
    await carry_out_trials([decider], SUMS[:3], bench, tmp_path)
    assert read_trials(tmp_path)[decider.digest, SUMS[2].id, 0].score == 1.0


async def test_money_that_is_spent_begins_no_trial(tmp_path: Path) -> None:
    crew = Crew()
    bench = Bench(crew.pool())
    decider = planned(bench)
    told = []

    whole = await carry_out_trials(
        [decider],
        SUMS,
        bench,
        tmp_path,
        concurrency=1,
        dollars=Decimal("40e-6"),
        progress=told.append,
    )

    assert not whole
    assert [(each.done, each.of) for each in told] == [(1, 4), (2, 4)]
    assert told[-1].dollars == Decimal("72e-6")


async def test_a_decider_that_has_changed_is_tried_anew(tmp_path: Path) -> None:
    bench = Bench(Crew().pool())
    plain = planned(bench)
    told = replace(bench.pool.planning, most_steps=3)
    other = bench.planned("conductor", "plans", [Planner(bench.pool.planner, told)])
    fewer = Bench(bench.pool.without("teller"))

    assert len({plain.digest, other.digest, planned(fewer).digest}) == 3
    assert planned(bench).digest == plain.digest


async def test_runs_are_in_the_journal_and_seeds_are_told_apart(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    crew = Crew()
    bench = Bench(crew.pool(), journal=journal)
    decider = planned(bench, seeds=2)

    await carry_out_trials([decider], SUMS[:1], bench, tmp_path)

    trials = list(read_trials(tmp_path).values())
    assert sorted(each.seed for each in trials) == [0, 1]
    assert {each.run for each in trials} == {each.id for each in journal.runs()}
    assert outcomes_of(decider, measured(), tmp_path).scores.shape == (4, 2)


async def test_conductor_models_that_were_trained_alike_are_seeds_of_one(tmp_path: Path) -> None:
    """The second hands on to who says 3; its trials are its own."""
    first, second = Crew(), Crew()
    second.plan = PLAN.replace("0, 1", "1, 1")
    bench = Bench(first.pool())
    models = [Planner(bench.pool.planner), Planner(second.pool().planner)]
    decider = bench.planned("conductor", "plans", models)

    assert await carry_out_trials([decider], SUMS[:1], bench, tmp_path)

    workers = {each.seed: each.workers for each in read_trials(tmp_path).values()}
    assert workers == {0: {"adder": 1, "teller": 1}, 1: {"teller": 2}}
    assert [name for name, _ in second.asked] == ["scribe"]
    assert outcomes_of(decider, measured(), tmp_path).workers[0].tolist() == [0.25, 0.75]


# -- plans that are given ------------------------------------------------------------------------


async def test_handing_the_question_on_is_a_pick_and_asks_nobody(tmp_path: Path) -> None:
    """What the picked worker says is on file."""
    crew = Crew()
    bench = Bench(crew.pool())
    decider = bench.given("known", "", lambda task, seed: known_parts(task, CHOICES), calls=1)

    await carry_out_trials([decider], SUMS, bench, tmp_path)

    assert crew.asked == []
    found = outcomes_of(decider, measured(), tmp_path)
    assert found.scores[:, 0].tolist() == [1, 1, 1, 1]
    assert found.calls[:, 0].tolist() == [1] * 4 and found.tokens[:, 0].tolist() == [12] * 4
    assert found.workers.tolist() == [[1, 0]] * 4


def test_known_parts_go_to_who_does_each_best() -> None:
    parts = (Part("sums", "add 1", "2"), Part("words", "say it", "two"))
    chain = task("sums-words", "1 + 1 in words?", Number("2"), parts=parts)

    plan = known_parts(chain, CHOICES)

    assert [step.worker for step in plan] == ["adder", "teller"]
    assert [list(step.access) for step in plan] == [[], [0]]
    assert [step.worker for step in known_parts(SUMS[0], CHOICES)] == ["adder"]


def test_a_mixture_asks_all_and_lets_the_best_read_them() -> None:
    plan = mixture(SUMS[0], CHOICES, ["adder", "teller"])

    assert [step.worker for step in plan] == ["adder", "teller", "adder"]
    assert [list(step.access) for step in plan] == [[], [], [0, 1]]


@given(st.integers(0, 200))
def test_random_plans_are_valid_and_the_same_for_a_task_and_seed(seed: int) -> None:
    plan = random_plan(SUMS[0], seed, ["adder", "teller"], most_steps=4)

    assert plan == random_plan(SUMS[0], seed, ["adder", "teller"], most_steps=4)
    assert 1 <= len(plan) <= 4
    assert len(plan) == 1 or plan.final.access


# -- asking one worker several times -------------------------------------------------------------


async def test_self_consistency_asks_the_question_as_it_is_with_seeds_of_its_own(
    tmp_path: Path,
) -> None:
    seen: list[tuple[str, Sampling]] = []

    class Dice(FunctionWorker):
        async def complete(self, call, on_text=lambda text: None):  # type: ignore[no-untyped-def]
            seen.append((call.messages[-1].content, call.sampling))
            return Completion("3" if call.sampling.seed % 3 else "9", usage=Usage(5, 1))

    async def nobody(messages: Sequence[Message]) -> str:
        raise AssertionError

    pool = Pool([Dice("adder", nobody), FunctionWorker("teller", nobody)], terms=TERMS)
    bench = Bench(pool)
    decider = bench.self_consistency(CHOICES, calls=5, seeds=2)

    await carry_out_trials([decider], SUMS[2:3], bench, tmp_path)

    assert {content for content, _ in seen} == {SUMS[2].question}
    assert sorted(sampling.seed or 0 for _, sampling in seen) == list(range(10))
    assert {sampling.temperature for _, sampling in seen} == {0.7}
    for trial in read_trials(tmp_path).values():
        assert (trial.score, trial.calls, trial.tokens) == (1.0, 5, 30)
        assert trial.workers == {"adder": 5}


# -- a language model as router ------------------------------------------------------------------


async def test_a_language_model_is_shown_the_cards_and_names_one(tmp_path: Path) -> None:
    crew = Crew()
    crew.plan = "That is one for **Adder**, not for teller."
    bench = Bench(crew.pool())
    decider = bench.chosen("prompted", "", Chooser(bench.pool.planner))

    await carry_out_trials([decider], SUMS, bench, tmp_path)

    assert [name for name, _ in crew.asked] == ["scribe"] * 4
    found = outcomes_of(decider, measured(), tmp_path)
    assert found.scores[:, 0].tolist() == [1, 1, 1, 1]
    assert found.calls[:, 0].tolist() == [2] * 4
    assert found.tokens[:, 0].tolist() == [24] * 4 and found.deciding[:, 0].tolist() == [12] * 4
    assert found.dollars[0, 0] == pytest.approx(0.25 + 12e-6)
    assert found.seconds[0, 0] > 0.5


async def test_one_who_names_nobody_is_wrong(tmp_path: Path) -> None:
    crew = Crew()
    crew.plan = "Hm."
    bench = Bench(crew.pool())
    decider = bench.chosen("prompted", "", Chooser(bench.pool.planner))

    await carry_out_trials([decider], SUMS[:1], bench, tmp_path)

    (trial,) = read_trials(tmp_path).values()
    assert (trial.score, trial.picked) == (0.0, "") and "named no worker" in trial.failure


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("fast-2", "fast-2"),
        ("fast", "fast"),
        ("Not steadfast, but slow.", "slow"),
        ("Slow, then fast.", "slow"),
        ("nobody", None),
        ("", None),
    ],
)
def test_the_worker_that_a_text_names_first(text: str, name: str | None) -> None:
    assert named(text, ["fast", "fast-2", "slow"]) == name


async def test_a_real_model_decodes_under_the_grammar_of_the_names(
    small_model: LocalModel, tmp_path: Path
) -> None:
    names = ("short-answers", "teller")
    workers = [
        LocalWorker(name, small_model, sampling=Sampling(temperature=0.0, max_tokens=4))
        for name in names
    ]
    bench = Bench(Pool(workers))
    decider = bench.chosen("prompted", "", Chooser(workers[0]))

    await carry_out_trials([decider], SUMS[:1], bench, tmp_path)

    (trial,) = read_trials(tmp_path).values()
    assert trial.picked in names
    assert trial.calls == 1 and trial.tokens and trial.deciding == trial.tokens
