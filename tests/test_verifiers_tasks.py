"""Trainers of verifiers get our questions and prompts, and the rewards of our rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

vf = pytest.importorskip("verifiers.v1")
from verifiers.v1.graph import MessageNode  # noqa: E402

from conductor.config import load_pool  # noqa: E402
from conductor.prompt import brief_messages, plan_text  # noqa: E402
from grammar import Plan  # noqa: E402
from runtime import FailureKind, FunctionWorker, Message, Pool, WorkerError  # noqa: E402
from training import verifiers_tasks  # noqa: E402
from training.cold_start import offered, questions  # noqa: E402
from training.rollouts import Rollouts  # noqa: E402
from training.tasks import task_of  # noqa: E402
from training.verifiers_tasks import Asking, Plans, PlanTask, Playing  # noqa: E402

ROSTER = ("right", "wrong", "broken")


@pytest.fixture
def anyio_backend() -> str:
    """verifiers knows no other."""
    return "asyncio"


@pytest.fixture(autouse=True)
def team(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three workers, under the name ``team``: the last one breaks down."""
    answers = {task_of(each.data.task).question: each for each in tasks()}

    async def right(messages: Sequence[Message]) -> str:
        (asked,) = (text for text in answers if text in messages[-1].content)
        return task_of(answers[asked].data.task).answer

    async def wrong(messages: Sequence[Message]) -> str:
        return "no idea"

    async def broken(messages: Sequence[Message]) -> str:
        raise WorkerError(FailureKind.UNAUTHORIZED, "the key is wrong")

    functions = zip(ROSTER, (right, wrong, broken), strict=True)
    pool = Pool([FunctionWorker(name, function) for name, function in functions])
    verifiers_tasks._rollouts.cache_clear()
    monkeypatch.setattr(verifiers_tasks, "load_pool", lambda name: {"team": pool}[name])


def tasks(**more: object) -> list[PlanTask]:
    how = {"n": 6, "seed": 2, "task": Playing(pool="team", roster=ROSTER), "fewest": 3} | more
    return list(Plans(Asking(**how)))  # type: ignore[arg-type]


def hand_on(worker: int) -> str:
    return plan_text(Plan.of(["{query}"], [worker], [[]]))


async def scored(task: PlanTask, text: str) -> vf.Trace:
    """What is left of a rollout with this completion."""
    trace: vf.Trace = vf.Trace(
        task=vf.TraceTask(type=type(task).__name__, data=task.data),
        agent=vf.AgentInfo(config=vf.AgentConfig()),
        nodes=[MessageNode(message=vf.AssistantMessage(content=text), sampled=True)],
    )
    await task.score(trace)
    return trace


def test_the_questions_and_prompts_are_those_of_training() -> None:
    random = Random(2)
    asked = questions(6, composed=0.5, seed=2)

    found = tasks(fewest=2)

    assert [task_of(each.data.task) for each in found] == asked
    for task, each in zip(asked, found, strict=True):
        assert each.data.offered == offered(random, 3, 2)
        system, user = brief_messages(task.question, each.data.offered)
        assert (each.data.system_prompt, each.data.prompt) == (system.content, user.content)
    assert tasks(fewest=2)[0].data == found[0].data
    assert len({each.key for each in found}) == len(found)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("text", "reward", "metrics"),
    [
        (hand_on(0), 1.0, {"valid": 1.0, "right": 1.0, "steps": 1.0}),
        (hand_on(1), 0.5, {"valid": 1.0, "right": 0.0, "steps": 1.0}),
        ("Ask somebody.", 0.0, {"valid": 0.0, "right": 0.0, "steps": 0.0}),
    ],
)
async def test_a_plan_earns_what_it_comes_to(
    text: str, reward: float, metrics: dict[str, float]
) -> None:
    trace = await scored(tasks()[0], text)

    assert trace.reward == reward
    assert trace.metrics == metrics


@pytest.mark.anyio
async def test_what_failed_for_technical_reasons_is_an_error_and_earns_nothing() -> None:
    with pytest.raises(vf.TaskError, match="the key is wrong"):
        await scored(tasks()[0], hand_on(2))


@pytest.mark.anyio
async def test_the_real_players_earn_what_rollouts_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifiers_tasks, "load_pool", load_pool)
    how = Playing(pool="orchestra", cache=str(tmp_path / "calls.db"))
    (task, *_) = tasks(task=how, fewest=6, composed=0.0)

    found = [(await scored(task, hand_on(worker))).reward for worker in (0, 1)]

    pool = load_pool("orchestra")
    asked = [(task_of(task.data.task), task.data.offered, hand_on(worker)) for worker in (0, 1)]
    played = await Rollouts(pool, pool.names).play(asked)
    assert found == [each.total for each in played]


def test_verifiers_finds_the_tasks_by_their_name() -> None:
    from verifiers.v1.utils.loaders import taskset_class

    assert taskset_class("conductor-plans") is Plans
