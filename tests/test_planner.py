"""Planner and prompt: what the Conductor model is asked, what is accepted, and the repair round."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import pytest

from conductor import Conductor, Planner, plan_messages
from conductor.prompt import plan_text
from grammar import Limits, Plan, PlanError, decoding_grammar, parse
from runtime import (
    Account,
    Call,
    Completion,
    FailureKind,
    FunctionWorker,
    LocalModel,
    LocalWorker,
    Message,
    OnText,
    PlannerSettings,
    PlanSource,
    Pool,
    Run,
    RunState,
    Sampling,
    Terms,
    Usage,
    WorkerError,
    carry_out,
)
from runtime.worker import ignore

pytestmark = pytest.mark.anyio

GOOD = 'subtasks = ["Draft.", "Check."]\nworkers = [0, 1]\naccess = [[], [0]]\n'
PLAN = Plan.of(["Draft.", "Check."], ["a", "b"], [[], [0]])
FORWARD = 'subtasks = ["Draft.", "Check."]\nworkers = [0, 1]\naccess = [[1], []]\n'


class Scribe(FunctionWorker):
    """Writes the given texts one after the other, and keeps the calls it got."""

    def __init__(self, *texts: str, constrains: bool = False) -> None:
        super().__init__("scribe", self._write)
        self.constrains = constrains
        self.calls: list[Call] = []
        self._texts = list(texts)

    async def complete(self, call: Call, on_text: OnText = ignore) -> Completion:
        self.calls.append(call)
        return await super().complete(call, on_text)

    async def _write(self, messages: Sequence[Message]) -> Completion:
        return Completion(self._texts.pop(0), usage=Usage(10, 5))


async def silent(messages: Sequence[Message]) -> str:
    raise AssertionError("planning calls no worker")


def team(*names: str, card: str = "") -> Pool:
    return Pool([FunctionWorker(name, silent, card=card and f"{card} {name}") for name in names])


async def plan(planner: Planner, pool: Pool, query: str = "Why?") -> Run:
    return await carry_out(query, pool, planner.decide, plan_only=True)


# -- a trained Conductor -------------------------------------------------------------------------


async def test_a_trained_conductor_gets_the_brief_prompt_and_numbers_that_keep_their_meaning() -> (
    None
):
    """Who is left out of the pool leaves a gap; a worker that it does not know is not offered."""
    scribe = Scribe('subtasks = ["{query}"]\nworkers = [2]\naccess = [[]]\n')
    planner = Planner(scribe, PlannerSettings(roster=("a", "b", "c")))

    run = await plan(planner, team("new", "c", "a"))

    assert scribe.calls[0].messages == (
        Message("system", "Write a plan."),
        Message("user", "Why?\nWorkers: 0, 2"),
    )
    assert run.plan == Plan.of(["{query}"], ["c"], [[]])


async def test_a_number_of_somebody_who_is_not_there_is_no_plan() -> None:
    scribe = Scribe(GOOD, 'subtasks = ["Go."]\nworkers = [1]\naccess = [[]]\n')
    planner = Planner(scribe, PlannerSettings(roster=("a", "b")))

    run = await plan(planner, team("b"))

    (told,) = run.planning[0].diagnostics
    assert (told.code, told.hint) == ("P302", "it has: 1")
    assert run.plan == Plan.of(["Go."], ["b"], [[]])


async def test_a_pool_of_strangers_is_told_of() -> None:
    planner = Planner(Scribe(GOOD), PlannerSettings(roster=("a", "b")))

    run = await plan(planner, team("x"))

    assert run.failure and run.failure.kind is FailureKind.NO_PLAN
    assert "scribe knows none of this pool's workers, only a, b" in run.failure.message


@pytest.mark.parametrize("held", [True, False])
async def test_the_grammar_of_a_roster_offers_who_is_there(held: bool) -> None:
    scribe = Scribe('subtasks = ["Go."]\nworkers = [0]\naccess = [[]]\n', constrains=True)
    settings = PlannerSettings(roster=("a", "b", "c"), constrained=held)

    await plan(Planner(scribe, settings), team("c", "a"))

    expected = decoding_grammar([0, 2]) if held else None
    assert scribe.calls[0].grammar == expected


# -- what is accepted ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(GOOD, id="as-asked"),
        pytest.param(f"Sure, here is the plan:\n```python\n{GOOD}```\nGood luck!", id="prose"),
        pytest.param(GOOD.replace("[0, 1]", '["a", "b"]'), id="names"),
        pytest.param(f"{FORWARD}\nNo, better:\n{GOOD}", id="second-thoughts"),
    ],
)
async def test_a_plan_is_found_in_what_the_model_writes(text: str) -> None:
    scribe = Scribe(text)

    run = await plan(Planner(scribe), team("a", "b"))

    assert (run.state, run.plan, run.source) == (RunState.PLANNED, PLAN, PlanSource.CONDUCTOR)
    assert [(each.worker, each.text, each.diagnostics) for each in run.planning] == [
        ("scribe", text, ())
    ]
    assert run.planning_usage == Usage(10, 5)


async def test_a_bad_plan_is_sent_back_once_with_what_is_wrong() -> None:
    scribe = Scribe(FORWARD, GOOD)

    run = await plan(Planner(scribe), team("a", "b"))

    first, second = run.planning
    assert [each.code for each in first.diagnostics] == ["P204"]
    assert (second.text, second.diagnostics) == (GOOD, ())
    assert run.plan == PLAN
    asked, again = (call.messages for call in scribe.calls)
    assert again[: len(asked)] == asked
    assert again[-2] == Message("assistant", FORWARD)
    assert first.diagnostics[0].message in again[-1].content
    assert first.diagnostics[0].hint in again[-1].content


async def test_two_bad_plans_end_the_run() -> None:
    run = await plan(Planner(Scribe("I would rather not.", FORWARD)), team("a", "b"))

    assert (run.state, run.plan) == (RunState.FAILED, None)
    assert [len(each.diagnostics) > 0 for each in run.planning] == [True, True]
    assert run.failure and run.failure.kind is FailureKind.NO_PLAN
    assert "scribe wrote no valid plan in 2 attempts: " in run.failure.message
    assert run.planning[1].diagnostics[0].message in run.failure.message


async def test_a_planner_that_fails_ends_the_run_with_its_own_reason() -> None:
    async def limited(messages: Sequence[Message]) -> str:
        raise WorkerError(FailureKind.RATE_LIMITED, "wait a little", retry_after_s=3.0)

    busy = FunctionWorker("busy", limited)
    pool = Pool(team("a"), planner=busy, terms=Terms(retries=0))
    run = await plan(Planner(busy), pool)

    assert run.state is RunState.FAILED
    assert run.failure and run.failure.kind is FailureKind.RATE_LIMITED
    assert run.failure.message == "the planner busy: wait a little"
    assert run.failure.retry_after_s == 3.0
    (attempt,) = run.planning
    assert (attempt.text, attempt.failure) == ("", attempt.lost[0].failure)
    assert run.orchestration == Account(calls=1, failed=1, unpriced=1)


async def test_a_plan_longer_than_asked_for_is_refused() -> None:
    settings = PlannerSettings(most_steps=1)

    run = await plan(Planner(Scribe(GOOD, GOOD), settings), team("a", "b"))

    assert [each.diagnostics[0].code for each in run.planning] == ["P203", "P203"]


async def test_a_smaller_pool_is_asked_for_and_held_to() -> None:
    """``only`` and ``without`` shrink both what the prompt offers and what is accepted."""
    pool = team("a", "b", "c")
    third = GOOD.replace("[0, 1]", "[0, 2]")
    offers = []
    for only, without, expected in (
        ([], [], ("a", "c")),
        (["a", "c"], [], None),
        ([], ["b"], None),
    ):
        scribe = Scribe(third, third)
        run = await Conductor(pool, planner=scribe).aplan("Why?", only=only, without=without)
        offers.append(scribe.calls[0].messages[-1].content.splitlines()[-1])
        assert (run.plan and run.plan.workers) == expected
        assert len(run.planning) == (1 if expected else 2)

    assert offers == ["Workers: 0 to 2", "Workers: 0 to 1", "Workers: 0 to 1"]


async def test_numbers_count_the_workers_that_may_be_used() -> None:
    run = await Conductor(team("a", "b", "c"), planner=Scribe(GOOD)).aplan("Why?", without=["a"])

    assert run.plan and run.plan.workers == ("b", "c")
    assert run.workers == ("b", "c")


@pytest.mark.parametrize(
    ("can", "wanted", "expected"),
    [(True, True, True), (True, False, False), (False, True, False)],
)
async def test_the_grammar_of_the_pool_is_given_where_it_is_honoured(
    can: bool, wanted: bool, expected: bool
) -> None:
    settings = PlannerSettings(most_steps=3, least_steps=2, subtask_characters=50)
    scribe = Scribe(GOOD, constrains=can)

    await plan(Planner(scribe, settings, constrained=wanted), team("a", "b"))

    grammar = decoding_grammar(2, most_steps=3, least_steps=2, subtask_characters=50)
    assert scribe.calls[0].grammar == (grammar if expected else None)
    assert scribe.calls[0].sampling == settings.sampling


# -- the prompt ----------------------------------------------------------------------------------

GOLDEN = """\
[system]
You coordinate a team of language models. You never answer a question yourself: you write a plan \
of 1 to 2 steps that gets it answered. A plan is three lists of the same length:
subtasks: what each step has to do
workers: the number of the worker that does it
access: the earlier steps whose replies it reads, counted from 0
The reply of the last step is the answer.
[user]
Question: Write a haiku about rain.
Workers: 0 to 1
[assistant]
subtasks = ["Collect images and sounds of rain.", "Write a haiku about rain with the best of them."]
workers = [0, 1]
access = [[], [0]]

[user]
Question: Why is the sky blue?
Workers: 0 to 2
"""


def test_the_prompt_is_these_bytes() -> None:
    """A trained Conductor model knows no other prompt: a change here is a change of its input."""
    messages = plan_messages("Why is the sky blue?", 3, most_steps=2)

    assert "".join(f"[{each.role}]\n{each.content}\n" for each in messages) == GOLDEN


async def test_the_planner_asks_with_that_prompt() -> None:
    scribe, settings = Scribe(GOOD), PlannerSettings(most_steps=4, least_steps=2)

    await plan(Planner(scribe, settings), team("a", "b"), "Why is the sky blue?")

    expected = plan_messages("Why is the sky blue?", 2, most_steps=4, least_steps=2)
    assert scribe.calls[0].messages == expected


@pytest.mark.parametrize(
    ("least", "most", "expected"),
    [(1, 5, "a plan of 1 to 5 steps"), (1, 1, "a plan of 1 step "), (3, 3, "a plan of 3 steps")],
)
def test_the_prompt_tells_the_limits(least: int, most: int, expected: str) -> None:
    system, *turns = plan_messages("Why?", 2, most_steps=most, least_steps=least)

    assert expected in system.content
    for turn in turns:
        if turn.role == "assistant":
            shown = parse(turn.content, workers=["a", "b"], limits=Limits(steps=most))
            assert least <= len(shown) <= most
            assert turn.content == plan_text(parse(turn.content))


async def test_cards_are_told_only_if_asked_for() -> None:
    for cards, expected in ((True, "0: knows a; 1: knows b"), (False, "0 to 1")):
        scribe = Scribe(GOOD)
        planner = Planner(scribe, PlannerSettings(cards=cards))
        await plan(planner, team("a", "b", card="knows"))
        asked = scribe.calls[0].messages[-1].content
        assert asked == f"Question: Why?\nWorkers: {expected}"


# -- the real model ------------------------------------------------------------------------------

_TOPICS = (
    "tea",
    "volcanoes",
    "chess",
    "the moon",
    "bread",
    "bees",
    "tides",
    "opera",
    "rust",
    "ice",
)
_ASKED = (
    "Explain {} to a child.",
    "Write two lines about {}.",
    "What is the history of {}?",
    "Name three facts about {}.",
    "Is it true that {} can be dangerous?",
)
QUERIES = [asked.format(topic) for topic in _TOPICS for asked in _ASKED]
LEAST, MOST, WORKERS = 2, 3, ("a", "b", "c")


@pytest.fixture(scope="module")
def planning_model() -> LocalModel:
    """One engine for both tests, so that prompts share what they begin with."""
    return LocalModel("smollm2-135m-instruct", engine="transformers")


def test_under_the_grammar_every_completion_is_a_plan(planning_model: LocalModel) -> None:
    """An untrained model of 135M parameters, fifty queries, fifty plans, at the first attempt."""
    settings = PlannerSettings(
        most_steps=MOST,
        least_steps=LEAST,
        subtask_characters=40,
        sampling=Sampling(temperature=0.0, max_tokens=256),
    )
    planner = Planner(LocalWorker("conductor", planning_model), settings)
    pool, runs = team(*WORKERS), []

    async def ask(query: str) -> None:
        runs.append(await plan(planner, pool, query))

    async def ask_all() -> None:
        async with anyio.create_task_group() as group:
            for query in QUERIES:
                group.start_soon(ask, query)

    anyio.run(ask_all)

    assert len(set(QUERIES)) == 50
    assert {run.query for run in runs} == set(QUERIES)
    assert [run.state for run in runs] == [RunState.PLANNED] * 50
    assert [len(run.planning) for run in runs] == [1] * 50
    assert {len(run.plan) for run in runs if run.plan} <= set(range(LEAST, MOST + 1))


def test_without_the_grammar_there_is_a_rate_to_report(planning_model: LocalModel) -> None:
    """What the same model writes freely; a figure, not a promise. Shown with ``pytest -s``."""
    sampling = Sampling(temperature=0.0, max_tokens=80)
    valid: dict[str, bool] = {}

    async def ask(query: str) -> None:
        asked = plan_messages(query, len(WORKERS), most_steps=MOST, least_steps=LEAST)
        text = (await planning_model.complete(Call(asked, sampling))).text
        try:
            found = parse(text, workers=WORKERS, limits=Limits(steps=MOST))
            valid[query] = len(found) >= LEAST
        except PlanError:
            valid[query] = False

    async def ask_all() -> None:
        async with anyio.create_task_group() as group:
            for query in QUERIES:
                group.start_soon(ask, query)

    anyio.run(ask_all)

    print(f"valid plans without the grammar: {sum(valid.values())} of {len(valid)}")  # noqa: T201
    assert len(valid) == 50
