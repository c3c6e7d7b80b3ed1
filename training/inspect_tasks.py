"""Our tasks and a Conductor in inspect-ai: its harness, logs and viewer, our questions and graders.

    inspect eval training/inspect_tasks.py --model conductor/orchestra -T sources=trained

The task takes any model that inspect knows, and the model any task. Everything beside the glue is
what ``conductor eval`` uses: questions from :func:`training.tasks.gather`, marks from
:func:`training.graders.grade`, answers from :class:`conductor.Conductor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio.to_thread
import inspect_ai
from inspect_ai import task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessage,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    RetryDecision,
    modelapi,
)
from inspect_ai.scorer import Score, Scorer, Target, accuracy, grouped, scorer, stderr
from inspect_ai.solver import TaskState, generate
from inspect_ai.tool import ToolChoice, ToolInfo

from conductor import Call, CallCache, Conductor, FailureKind, Message, Run, Sampling, WorkerError
from conductor.config import EMBEDDED, embedded_pool, load_pool
from conductor.prompt import plan_text

# In full, since inspect loads this file by its path.
from training.evaluate import section_of
from training.graders import grade
from training.tasks import Split, Task, Wording, gather, lines, task_of
from training.trials import OWN_FAULT

_AT_ONCE = 64
"""Most questions under way where inspect neither adapts that nor is told: calls wait their turn in
the pool, on its own terms, and models in this process answer in batches."""


@task
def questions(
    sources: str | Sequence[str] = "all",
    n: int = 20,
    split: str = Split.TEST,
    wording: Wording = "held-out",
    seed: int = 0,
) -> inspect_ai.Task:
    """Our tasks, as ``conductor tasks`` draws them.

    Args:
        sources: As for ``conductor labels``: families, ``all``, ``trained``, ``chains``, files.
        n: How many of each.
        split: ``train``, ``validation`` or ``test``.
        wording: In which phrasings.
        seed: Chooses them.

    Raises:
        TaskError: If a source is unknown or has too few.
    """
    named = [sources] if isinstance(sources, str) else list(sources)
    found = gather(named, n, split=Split(split), wording=wording, seed=seed)
    return inspect_ai.Task(
        dataset=MemoryDataset([sample_of(each) for each in found], name="conductor"),
        solver=generate(),
        scorer=graded(),
    )


def sample_of(of: Task) -> Sample:
    """A task as a sample; all that grades it is in its metadata, so logs can be scored again."""
    return Sample(
        id=of.id,
        input=of.question,
        target=of.answer,
        metadata={
            "family": of.family,
            "section": str(section_of(of) or of.split),
            "task": lines([of])[0],
        },
    )


@scorer(metrics=[grouped(accuracy(), "section"), stderr()])
def graded() -> Scorer:
    """The task's own grader: 1 right, 0 wrong, parts between where it gives them."""

    async def score(state: TaskState, target: Target) -> Score:
        asked = task_of(state.metadata["task"])
        answer = state.output.completion
        # In a thread: code is run in a sandbox, and that takes its time.
        value = await anyio.to_thread.run_sync(grade, asked.grader, answer, asked.question)
        failure = (state.output.metadata or {}).get("failure")
        return Score(value=value, answer=answer, explanation=failure or f"right is {target.text}")

    return score


class ConductorAPI(ModelAPI):
    """A Conductor as a model of inspect.

    Args:
        model_name: A pool file, ``orchestra`` or ``embedded``.
        base_url: Not used.
        api_key: Not used: keys are the pool's.
        config: Settings of all calls.
        router: Folder of a router that decides, ``embedded`` for the one in the package; the
            pool's own decision if empty.
        rounds: Most rounds; as the pool says if None.
        cache: A file of completions to use instead of calls.

    Raises:
        PoolError: If the pool or router is wrong.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),
        *,
        router: str = "",
        rounds: int | None = None,
        cache: str = "",
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        self._rounds = rounds
        self._conductor = Conductor(
            embedded_pool() if model_name == EMBEDDED else load_pool(model_name),
            router=router or None,
            cache=CallCache(Path(cache)) if cache else None,
        )

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Answer a conversation.

        Raises:
            WorkerError: If it failed for technical reasons: inspect tries again what may pass, and
                else reports an error, which is no wrong answer.
            ValueError: If tools are offered.
        """
        if tools:
            raise ValueError("a Conductor in inspect has no tools; use its server for these")
        run = await self._conductor.arun(call_of(input, config), rounds=self._rounds)
        failure = run.failure
        if run.answer is None and failure is not None and failure.kind not in OWN_FAULT:
            raise WorkerError(failure.kind, failure.message, retry_after_s=failure.retry_after_s)
        output = ModelOutput.from_content(self.model_name, run.answer or "")
        output.usage = usage_of(run)
        output.time = run.seconds
        output.metadata = told_of(run)
        return output

    def should_retry(self, ex: BaseException) -> bool | RetryDecision:
        """Whether a failure may pass."""
        if not isinstance(ex, WorkerError) or not ex.failure.kind.transient:
            return RetryDecision.no()
        if ex.failure.kind is FailureKind.RATE_LIMITED:
            return RetryDecision.rate_limit(ex.failure.retry_after_s)
        return RetryDecision.transient(ex.failure.retry_after_s)

    def max_connections(self) -> int:
        """Most questions under way."""
        return _AT_ONCE


def call_of(conversation: Sequence[ChatMessage], config: GenerateConfig) -> str | Call:
    """What the Conductor is asked: the question alone, or a conversation and how to answer it."""
    sampling = Sampling(
        config.temperature,
        config.top_p,
        config.max_tokens,
        config.seed,
        tuple(config.stop_seqs or ()),
    )
    if len(conversation) == 1 and sampling == Sampling():
        question: str = conversation[0].text
        return question
    return Call(tuple(Message(each.role, each.text) for each in conversation), sampling)


def usage_of(run: Run) -> ModelUsage:
    """Tokens of planning and of all steps, and what they cost where that is known."""
    usage = run.usage + run.planning_usage
    return ModelUsage(
        input_tokens=usage.input_tokens - usage.cached_tokens,
        input_tokens_cache_read=usage.cached_tokens,
        output_tokens=usage.output_tokens,
        total_tokens=usage.input_tokens + usage.output_tokens,
        total_cost=float(run.dollars),
    )


def told_of(run: Run) -> dict[str, Any]:
    """Who answered, by which plan, at what cost; and why there is no answer."""
    return {
        "run": run.id,
        "planner": run.planner,
        "router": run.router,
        "plan": plan_text(run.plan) if run.plan else None,
        "steps": [{"worker": step.worker, "state": step.state.value} for step in run.steps],
        "dollars": str(run.dollars),
        "failure": run.failure.message if run.failure and run.answer is None else None,
    }


@modelapi(name="conductor")
def conductor() -> type[ModelAPI]:
    """The provider, by the name that is before the slash in ``--model conductor/orchestra``."""
    return ConductorAPI
