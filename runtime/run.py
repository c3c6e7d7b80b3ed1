"""Event and Run: everything that happens is an Event, and a Run is the fold of its Events.

There is no second record. Progress display, journal, server and tests read the same events, and
``fold(events)`` gives the same Run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from grammar import Diagnostic, Mark, Plan, mimebundle

from .errors import Failure
from .schedule import StepState
from .worker import FinishReason, Message, Usage

if TYPE_CHECKING:
    from pydantic import TypeAdapter


class RunState(StrEnum):
    """Where a run is."""

    RUNNING = "running"
    DONE = "done"
    """There is an answer."""
    PLANNED = "planned"
    """There is a plan, and no more was asked for."""
    FAILED = "failed"
    """There is none; ``Run.failure`` says why."""
    CANCELLED = "cancelled"
    """The caller stopped it."""


class PlanSource(StrEnum):
    """Who decided."""

    CONDUCTOR = "conductor"
    """The Planner: a Conductor model wrote the plan."""
    GIVEN = "given"
    """The caller brought the plan."""
    PICK = "pick"
    """One worker was picked; the plan hands it the query."""


@dataclass(frozen=True, slots=True)
class PlanAttempt:
    """One completion of the Conductor model."""

    worker: str
    """Name of the worker that wrote it."""
    text: str
    """The completion, kept verbatim."""
    usage: Usage | None
    seconds: float
    diagnostics: tuple[Diagnostic, ...] = ()
    """What was wrong with it; empty if it is the plan."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What became of a step."""

    index: int
    worker: str
    state: StepState
    """done, failed or skipped."""
    text: str = ""
    """The completion; what came before it broke off, if the step failed."""
    messages: tuple[Message, ...] = ()
    """Exactly what the worker saw; empty if the step was skipped."""
    usage: Usage | None = None
    finish_reason: FinishReason | None = None
    model: str = ""
    started_s: float = 0.0
    """Seconds from the start of the run."""
    seconds: float = 0.0
    """How long the call took."""
    failure: Failure | None = None
    """Why it failed; for a skipped step, what stopped the run before it could start."""
    because_of: int | None = None
    """For a skipped step, the failed step that is the reason, if one is."""


@dataclass(frozen=True, slots=True)
class RunStarted:
    """First event of every run."""

    at: float
    """Seconds from the start of the run, as in all events."""
    run: str
    """Identifier of the run."""
    query: str
    workers: tuple[str, ...]
    """Names of the pool, in order: what numbers in the Conductor's text meant."""
    started: str
    """Date and time, ISO 8601, UTC."""
    kind: Literal["run_started"] = "run_started"


@dataclass(frozen=True, slots=True)
class PlanStarted:
    """The Conductor model begins to write."""

    at: float
    worker: str
    attempt: int
    """0, or 1 for the repair round."""
    kind: Literal["plan_started"] = "plan_started"


@dataclass(frozen=True, slots=True)
class PlanDelta:
    """The next piece of the Conductor's text."""

    at: float
    text: str
    kind: Literal["plan_delta"] = "plan_delta"


@dataclass(frozen=True, slots=True)
class PlanAttempted:
    """The Conductor model has written; the attempt says whether it is a plan."""

    at: float
    attempt: PlanAttempt
    kind: Literal["plan_attempted"] = "plan_attempted"


@dataclass(frozen=True, slots=True)
class PlanParsed:
    """The plan is settled; workers are named."""

    at: float
    plan: Plan
    source: PlanSource
    kind: Literal["plan_parsed"] = "plan_parsed"


@dataclass(frozen=True, slots=True)
class StepStarted:
    """A step's inputs are done and its worker has been called."""

    at: float
    index: int
    worker: str
    messages: tuple[Message, ...]
    kind: Literal["step_started"] = "step_started"


@dataclass(frozen=True, slots=True)
class StepDelta:
    """The next piece of a step's completion."""

    at: float
    index: int
    text: str
    kind: Literal["step_delta"] = "step_delta"


@dataclass(frozen=True, slots=True)
class StepFinished:
    """A step is done, failed or skipped."""

    at: float
    result: StepResult
    kind: Literal["step_finished"] = "step_finished"


@dataclass(frozen=True, slots=True)
class RunFinished:
    """Last event of every run."""

    at: float
    state: RunState
    failure: Failure | None = None
    kind: Literal["run_finished"] = "run_finished"


Event = (
    RunStarted
    | PlanStarted
    | PlanDelta
    | PlanAttempted
    | PlanParsed
    | StepStarted
    | StepDelta
    | StepFinished
    | RunFinished
)
Emit = Callable[[Event], None]
"""Takes each event as it happens. Must not block."""


@dataclass(frozen=True, slots=True)
class Run:
    """The whole record of one query: what was decided, who saw and said what, and the answer."""

    id: str
    query: str
    workers: tuple[str, ...]
    """The pool, in order."""
    started: str
    """Date and time, ISO 8601, UTC."""
    state: RunState = RunState.RUNNING
    seconds: float = 0.0
    planning: tuple[PlanAttempt, ...] = ()
    """The Conductor's completions, the last one the plan; empty if no model planned."""
    plan: Plan | None = None
    source: PlanSource | None = None
    steps: tuple[StepResult, ...] = ()
    """Results so far, by index; all of them once the run is finished."""
    failure: Failure | None = None

    @property
    def answer(self) -> str | None:
        """The completion of the last step; None if the run has none (see ``failure``)."""
        if self.plan is None or not self.steps:
            return None
        last = self.steps[-1]
        answered = last.index == self.plan.final.index and last.state is StepState.DONE
        return last.text if answered else None

    @property
    def usage(self) -> Usage:
        """Tokens of all steps, planning apart."""
        return sum((step.usage for step in self.steps if step.usage), Usage())

    @property
    def planning_usage(self) -> Usage:
        """Tokens of the Conductor model."""
        return sum((each.usage for each in self.planning if each.usage), Usage())

    def to_json(self, *, indent: int | None = None) -> str:
        """Write the run as JSON; :meth:`from_json` gives an equal Run."""
        return _adapter().dump_json(self, indent=indent).decode()

    @classmethod
    def from_json(cls, text: str) -> Run:
        """Read a run.

        Raises:
            ValueError: If the text is not the JSON of a run.
        """
        return _adapter().validate_json(text)

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        """What a notebook shows: the answer, or why there is none, and the plan by its marks."""
        told = f"{self.state}, {self.seconds:.1f} s"
        said = self.answer or (self.failure.message if self.failure else "")
        text = f"{told}\n{said}" if said else told
        return mimebundle(self.plan, text, marks=marks(self))


def marks(run: Run) -> dict[int, Mark]:
    """The state of each step, for the renderers: ``to_svg(run.plan, marks=marks(run))``."""
    return {result.index: _mark(result) for result in run.steps}


def _mark(result: StepResult) -> Mark:
    if result.state is StepState.SKIPPED:
        if result.because_of is not None:
            return Mark("skipped", f"step {result.because_of} failed")
        return Mark("skipped", result.failure.kind if result.failure else "")
    detail = f"{result.seconds:.1f} s"
    if result.usage:
        detail += f" · {result.usage.output_tokens} tokens"
    if result.failure:
        return Mark("failed", f"{result.failure.kind} · {detail}")
    return Mark("done", detail)


@lru_cache(maxsize=1)
def _adapter() -> TypeAdapter[Run]:
    from pydantic import TypeAdapter

    return TypeAdapter(Run)


def fold(events: Iterable[Event]) -> Run:
    """Replay events to the Run that they record.

    Raises:
        ValueError: If the events do not begin with RunStarted, or hold a second one.
    """
    record = Record()
    for event in events:
        record.add(event)
    return record.run


@dataclass(slots=True)
class Record:
    """A Run under way: takes events one by one, in constant time each."""

    _start: RunStarted | None = None
    _seconds: float = 0.0
    _state: RunState = RunState.RUNNING
    _failure: Failure | None = None
    _planning: list[PlanAttempt] = field(default_factory=list)
    _plan: PlanParsed | None = None
    _steps: dict[int, StepResult] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        """Take in the next event.

        Raises:
            ValueError: If it is RunStarted and not the first event, or the other way round.
        """
        if isinstance(event, RunStarted) is not (self._start is None):
            raise ValueError(f"{event.kind} is out of order: a run begins with one run_started")
        self._seconds = event.at
        match event:
            case RunStarted():
                self._start = event
            case PlanAttempted():
                self._planning.append(event.attempt)
            case PlanParsed():
                self._plan = event
            case StepFinished():
                self._steps[event.result.index] = event.result
            case RunFinished():
                self._state, self._failure = event.state, event.failure
            case PlanStarted() | PlanDelta() | StepStarted() | StepDelta():
                pass  # passing states: what they announce arrives whole with a later event

    @property
    def run(self) -> Run:
        """The Run so far.

        Raises:
            ValueError: Before RunStarted.
        """
        if self._start is None:
            raise ValueError("no RunStarted event yet, so there is no run")
        return Run(
            id=self._start.run,
            query=self._start.query,
            workers=self._start.workers,
            started=self._start.started,
            state=self._state,
            seconds=self._seconds,
            planning=tuple(self._planning),
            plan=self._plan.plan if self._plan else None,
            source=self._plan.source if self._plan else None,
            steps=tuple(self._steps[index] for index in sorted(self._steps)),
            failure=self._failure,
        )
