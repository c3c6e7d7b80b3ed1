"""inspect-ai evaluates with our questions and graders, and asks a Conductor as it asks any model.

Workers are functions here, but in the last test, which asks the real players.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

inspect_ai = pytest.importorskip("inspect_ai")
from inspect_ai.log import EvalLog, read_eval_log  # noqa: E402
from inspect_ai.model import (  # noqa: E402
    ChatMessageUser,
    GenerateConfig,
    ModelOutput,
    ModelUsage,
    get_model,
)

from conductor.prompt import plan_text  # noqa: E402
from grammar import Plan  # noqa: E402
from runtime import (  # noqa: E402
    Call,
    FailureKind,
    FunctionWorker,
    Message,
    PlannerSettings,
    Pool,
    Sampling,
    WorkerError,
)
from training import inspect_tasks  # noqa: E402
from training.evaluate import Section  # noqa: E402
from training.graders import grade  # noqa: E402
from training.inspect_tasks import call_of, questions  # noqa: E402
from training.tasks import Split, gather  # noqa: E402

pytestmark = [  # inspect's own: streams that it leaves open, and what it calls
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

SOURCES = ["addition", "addition-mirror"]
TASKS = gather(SOURCES, 3, split=Split.TEST, wording="held-out", seed=1)
ANSWERS = {task.question: task.answer for task in TASKS}
PLAN = plan_text(Plan.of(["{query}"], [0], [[]]))


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What inspect leaves open is told of here, where that is ignored."""
    yield
    gc.collect()


def evaluated(tmp_path: Path, model: Any, **more: Any) -> EvalLog:
    (log,) = inspect_ai.eval(
        questions(SOURCES, 3, seed=1),
        model=model,
        log_dir=str(tmp_path),
        display="none",
        fail_on_error=False,
        **more,
    )
    return read_eval_log(log.location)


def scores(log: EvalLog) -> dict[str, float]:
    """Marks by id of the task; none of samples that failed."""
    assert log.samples is not None
    return {str(each.id): each.scores["graded"].as_float() for each in log.samples if each.scores}


def team(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], str]) -> None:
    """Let the model ``conductor/team`` be one worker, led by a Conductor that names it."""

    async def player(messages: Sequence[Message]) -> str:
        (question,) = (text for text in ANSWERS if text in messages[-1].content)
        return answer(question)

    async def scribe(messages: Sequence[Message]) -> str:
        return PLAN

    pool = Pool(
        [FunctionWorker("player", player)],
        planner=FunctionWorker("scribe", scribe),
        planning=PlannerSettings(constrained=False),
    )
    monkeypatch.setattr(inspect_tasks, "load_pool", lambda name: {"team": pool}[name])


def test_the_questions_are_ours_and_can_be_graded_from_the_log_alone() -> None:
    made = questions(SOURCES, 3, seed=1).dataset

    assert [(each.id, each.input, each.target) for each in made] == [
        (task.id, task.question, task.answer) for task in TASKS
    ]
    sections = [each.metadata["section"] for each in made if each.metadata]
    assert sections == [Section.PHRASINGS] * 3 + [Section.COMPOSED] * 3


def test_any_model_is_graded_by_the_tasks_own_grader(tmp_path: Path) -> None:
    said = [task.answer if at % 2 else "no idea" for at, task in enumerate(TASKS)]
    by_question = dict(zip([task.question for task in TASKS], said, strict=True))

    def reply(conversation: Any, *_: Any) -> ModelOutput:
        output = ModelOutput.from_content("mock", by_question[conversation[-1].text])
        output.usage = ModelUsage()  # else its tokens are counted by what has to be downloaded
        return output

    log = evaluated(tmp_path, get_model("mockllm/model", custom_outputs=reply))

    assert scores(log) == {
        task.id: grade(task.grader, text, task.question)
        for task, text in zip(TASKS, said, strict=True)
    }
    assert log.results is not None
    found = log.results.scores[0].metrics
    assert found[Section.PHRASINGS].value == pytest.approx(1 / 3)
    assert found[Section.COMPOSED].value == pytest.approx(2 / 3)
    assert found["all"].value == pytest.approx(1 / 2)


def test_a_conductor_is_a_model_and_tells_who_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    team(monkeypatch, ANSWERS.__getitem__)

    log = evaluated(tmp_path, get_model("conductor/team", memoize=False))

    assert scores(log) == {task.id: 1.0 for task in TASKS}
    assert log.samples is not None
    told = log.samples[0].output.metadata
    assert told is not None
    assert told["steps"] == [{"worker": "player", "state": "done"}]
    assert told["planner"] == "scribe"
    assert told["plan"] == plan_text(Plan.of(["{query}"], ["player"], [[]]))


def test_no_answer_is_wrong_and_a_broken_worker_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    team(monkeypatch, lambda question: "")
    wrong = evaluated(tmp_path / "wrong", get_model("conductor/team", memoize=False))

    def broken(question: str) -> str:
        raise WorkerError(FailureKind.UNAUTHORIZED, "the key is wrong")

    team(monkeypatch, broken)
    failed = evaluated(tmp_path / "failed", get_model("conductor/team", memoize=False))

    assert scores(wrong) == {task.id: 0.0 for task in TASKS}
    assert scores(failed) == {}
    assert failed.samples is not None
    assert all(each.error and "the key is wrong" in each.error.message for each in failed.samples)


@pytest.mark.parametrize(
    ("kind", "again"), [(FailureKind.OVERLOADED, True), (FailureKind.UNAUTHORIZED, False)]
)
def test_what_may_pass_is_tried_again(
    kind: FailureKind, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    team(monkeypatch, ANSWERS.__getitem__)
    api = inspect_tasks.ConductorAPI("team")

    assert bool(api.should_retry(WorkerError(kind, "too much to do"))) is again
    assert not api.should_retry(ValueError("no"))


def test_settings_and_conversations_reach_the_conductor() -> None:
    asked = ChatMessageUser(content="Add 1 and 2.")
    sampling = Sampling(0.5, max_tokens=9, seed=3, stop=("\n",))

    assert call_of([asked], GenerateConfig()) == "Add 1 and 2."
    assert call_of(
        [asked], GenerateConfig(temperature=0.5, max_tokens=9, seed=3, stop_seqs=["\n"])
    ) == Call((Message("user", "Add 1 and 2."),), sampling)


def test_the_embedded_orchestra_through_inspect(tmp_path: Path) -> None:
    """What its players said is graded as we grade it."""
    log = evaluated(tmp_path, "conductor/orchestra", limit=2)

    assert log.status == "success"
    assert log.samples is not None
    for sample in log.samples:
        (task,) = (each for each in TASKS if each.id == sample.id)
        said = sample.output.completion
        assert said
        assert scores(log)[task.id] == grade(task.grader, said, task.question)
        assert sample.output.usage is not None
        assert sample.output.usage.output_tokens > 0
