"""Event and Run: everything that happens is an Event, and a Run is the fold of its Events.

There is no second record. Progress display, journal, server and tests read the same events, and
``fold(events)`` gives the same Run again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from grammar import Diagnostic, Mark, Plan, Step, mimebundle

from .errors import Failure, FailureKind, ToolError
from .limits import Budget
from .schedule import StepState
from .tools import ToolResult
from .turns import Episode, Pick, Role, Turn, answer_of
from .worker import Call, FinishReason, Message, ToolCall, Usage

if TYPE_CHECKING:
    from pydantic import TypeAdapter


class RunState(StrEnum):
    """Where a run is."""

    RUNNING = "running"
    DONE = "done"
    """There is an answer."""
    PLANNED = "planned"
    """There is a plan, and no more was asked for."""
    SUSPENDED = "suspended"
    """Steps wait for results of tools, and nothing else can be done: see ``Run.open_calls``."""
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
    """The caller picked one worker; the plan hands it the query."""
    ROUTER = "router"
    """The Router picked one worker; the plan hands it the query."""


ToolSteps = Literal["last", "all"]
"""Which steps of a plan are offered the tools."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call that came to nothing; another one may have followed."""

    worker: str
    failure: Failure
    seconds: float
    """How long it took; 0 if the worker was not even called."""
    usage: Usage | None = None
    """What the worker counted all the same."""
    dollars: Decimal | None = None
    """None where tokens or price are unknown."""


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
    failure: Failure | None = None
    """Why there is no completion, if the call failed."""
    lost: tuple[Attempt, ...] = ()
    """The calls that came to nothing, before this one or in place of it."""
    dollars: Decimal | None = None
    """What the completion cost; None where tokens or price are unknown."""
    reused: str = ""
    """As :attr:`StepResult.reused`."""
    numbers: tuple[str, ...] = ()
    """Whom each number stood for where that is a roster, see :class:`PlannerSettings`; an empty
    name is somebody who was not there. Empty if it is the pool in its order."""


@dataclass(frozen=True, slots=True)
class ToolTurn:
    """A call of a step's worker that it answered by asking for tools."""

    worker: str
    """Who answered."""
    calls: tuple[ToolCall, ...]
    """What it asked for, under the ids by which the caller knows the calls."""
    own: tuple[str, ...]
    """The ids by which the worker knows them, in the same order."""
    results: tuple[str | None, ...]
    """What came of each call, in the same order; None where nothing has come yet."""
    text: str = ""
    """What it said besides."""
    usage: Usage | None = None
    model: str = ""
    started_s: float = 0.0
    """Seconds from the start of the run."""
    seconds: float = 0.0
    """How long the worker took."""
    first_text_s: float | None = None
    lost: tuple[Attempt, ...] = ()
    """The calls that came to nothing before."""
    dollars: Decimal | None = None
    """What it cost; None where tokens or price are unknown."""
    reused: str = ""
    """As :attr:`StepResult.reused`."""

    @property
    def open_calls(self) -> tuple[ToolCall, ...]:
        """The calls without a result."""
        pairs = zip(self.calls, self.results, strict=True)
        return tuple(call for call, result in pairs if result is None)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The turn as its worker sees it when it goes on; results as far as they are there."""
        asked = tuple(replace(call, id=own) for call, own in zip(self.calls, self.own, strict=True))
        results = zip(self.own, self.results, strict=True)
        answers = (
            Message("tool", text, tool_call_id=own) for own, text in results if text is not None
        )
        return (Message("assistant", self.text, asked), *answers)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What became of a step."""

    index: int
    worker: str
    """Who answered: the plan's worker, or the fallback that stood in for it."""
    state: StepState
    """done, failed or skipped; suspended if it waits for tools, running if it has their results."""
    text: str = ""
    """The completion; what came before it broke off, if the step failed."""
    messages: tuple[Message, ...] = ()
    """Exactly what the worker saw, before any turn with tools; empty if the step was skipped."""
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
    first_text_s: float | None = None
    """Seconds from the start of the step to the first piece of its text."""
    lost: tuple[Attempt, ...] = ()
    """The calls that came to nothing: before the one that did, or all if the step failed. Those
    from before the run was stopped and went on are among them."""
    dollars: Decimal | None = None
    """What the completion cost; None where tokens or price are unknown."""
    reused: str = ""
    """Where the completion was taken from instead of a call: "cache", or the id of another run.
    What it cost then is no cost of this run."""
    run: Run | None = None
    """The nested run, if the worker was the Conductor itself."""
    turns: tuple[ToolTurn, ...] = ()
    """The turns with tools, before its completion."""

    @property
    def transcript(self) -> tuple[Message, ...]:
        """All that its worker saw by its last call: the messages, then the turns."""
        return (*self.messages, *(message for turn in self.turns for message in turn.messages))


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
    rounds: int = 1
    """Most rounds of planning."""
    budget: Budget = Budget()
    """What it may take."""
    pool: str = ""
    """Where the pool is from: a path, "embedded", or empty if it was made in Python."""
    planner: str = ""
    """Name of the worker that plans."""
    parent: str = ""
    """Id of the run that this one repeats in part."""
    plan: Plan | None = None
    """The plan of the first round, if no model is to write it."""
    source: PlanSource = PlanSource.CONDUCTOR
    """Who decides on it."""
    plan_only: bool = False
    """Whether the run ends with its plan."""
    fallback: tuple[str, ...] = ()
    """Workers that stand in for any that fails, after its own fallbacks."""
    taken: tuple[StepResult, ...] = ()
    """Results of the other run that are taken over."""
    asked: Call | None = None
    """As :attr:`Run.asked`."""
    router: str = ""
    """As :attr:`Run.router`."""
    caller: str = ""
    """As :attr:`Run.caller`."""
    tool_steps: ToolSteps = "last"
    """As :attr:`Run.tool_steps`."""
    kind: Literal["run_started"] = "run_started"


@dataclass(frozen=True, slots=True)
class RunResumed:
    """A run that had been stopped goes on: done steps stay, all others are open again."""

    at: float
    """Goes on from the last event; the time between does not count."""
    budget: Budget = Budget()
    """What it may take from now on: the seconds begin anew, the rest counts from the start."""
    results: tuple[ToolResult, ...] = ()
    """What came of calls of tools, those of nested runs too."""
    asked: Call | None = None
    """How the answer is to be decoded and which tools there are from now on; as before if None. It
    has no messages: they stay."""
    kind: Literal["run_resumed"] = "run_resumed"


@dataclass(frozen=True, slots=True)
class RoundStarted:
    """A further round: the Conductor sees the answer so far and keeps it or plans again."""

    at: float
    round: int
    """From 1: the first round starts with the run."""
    kind: Literal["round_started"] = "round_started"


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
class WorkerPicked:
    """The Router has decided; the plan that hands the worker the query follows."""

    at: float
    pick: Pick
    kind: Literal["worker_picked"] = "worker_picked"


@dataclass(frozen=True, slots=True)
class PlanParsed:
    """The plan is settled; workers are named."""

    at: float
    plan: Plan
    source: PlanSource
    kind: Literal["plan_parsed"] = "plan_parsed"


@dataclass(frozen=True, slots=True)
class PlanKept:
    """The Conductor keeps the answer of the round before."""

    at: float
    kind: Literal["plan_kept"] = "plan_kept"


@dataclass(frozen=True, slots=True)
class CallRetried:
    """A call came to nothing and is made again, by the same worker or a fallback.

    Text that it gave before it broke off is void.
    """

    at: float
    index: int | None
    """The step; None if it was the Conductor's call."""
    attempt: Attempt
    """What came to nothing."""
    worker: str
    """Who is called next."""
    wait_s: float
    """How long that is put off, in seconds."""
    kind: Literal["call_retried"] = "call_retried"


@dataclass(frozen=True, slots=True)
class StepStarted:
    """A step's inputs are done, or the results of its tools are there: its worker is called."""

    at: float
    index: int
    worker: str
    messages: tuple[Message, ...]
    """Exactly what it sees, turns with tools included."""
    kind: Literal["step_started"] = "step_started"


@dataclass(frozen=True, slots=True)
class StepDelta:
    """The next piece of a step's completion."""

    at: float
    index: int
    text: str
    kind: Literal["step_delta"] = "step_delta"


@dataclass(frozen=True, slots=True)
class StepSuspended:
    """A step's worker asks for tools; the step goes on when all results are there."""

    at: float
    index: int
    messages: tuple[Message, ...] = ()
    """What the worker saw before any turn with tools; empty if an earlier turn has told it."""
    turn: ToolTurn | None = None
    """What it asked for; None if the step is a run of its own, in which somebody did."""
    kind: Literal["step_suspended"] = "step_suspended"


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


@dataclass(frozen=True, slots=True)
class NestedEvent:
    """Something happened in the run inside a step: the Conductor is its worker."""

    at: float
    """On the clock of the outer run."""
    index: int
    """The step."""
    event: Event
    kind: Literal["nested_event"] = "nested_event"


Event = (
    RunStarted
    | RunResumed
    | RoundStarted
    | PlanStarted
    | PlanDelta
    | PlanAttempted
    | WorkerPicked
    | PlanParsed
    | PlanKept
    | CallRetried
    | StepStarted
    | StepDelta
    | StepSuspended
    | StepFinished
    | NestedEvent
    | RunFinished
)
Emit = Callable[[Event], None]
"""Takes each event as it happens. Must not block."""


@dataclass(frozen=True, slots=True)
class Round:
    """One plan of a run and what became of it. Most runs have one round."""

    planning: tuple[PlanAttempt, ...] = ()
    """The Conductor's completions, the last one the plan; empty if no model planned."""
    plan: Plan | None = None
    source: PlanSource | None = None
    steps: tuple[StepResult, ...] = ()
    """Results so far, by index; all of them once the run is finished."""
    kept: bool = False
    """Whether the answer of the round before was kept; there is no plan then."""
    pick: Pick | None = None
    """The Router's decision, if it decided: a round is a turn then."""

    @property
    def answer(self) -> str | None:
        """The completion of the last step; None if there is none.

        A turn of a thinker or verifier has none, and that of a solver is without its idea.
        """
        if self.plan is None or not self.steps:
            return None
        last = self.steps[-1]
        answered = last.index == self.plan.final.index and last.state is StepState.DONE
        return _answer(self.pick, last.text) if answered else None


def _answer(pick: Pick | None, text: str) -> str | None:
    """What the text of a round's last step is as an answer."""
    if pick is None or pick.role is None:
        return text
    return answer_of(text) if pick.role is Role.SOLVER else None


def episode(rounds: Iterable[Round]) -> Episode:
    """What the turns of a run come to so far; rounds that are no turn, or not done, don't count."""
    state = Episode()
    for each in rounds:
        if each.pick is None or each.pick.role is None:
            continue
        for step in each.steps:
            if step.state is StepState.DONE:
                state = state.after(Turn(each.pick.role, step.text))
    return state


_UNCOUNTED = Usage()
_NOTHING = Decimal(0)


@dataclass(frozen=True, slots=True)
class Account:
    """What calls took. Calls whose completion was reused are not in it: nothing was called."""

    calls: int = 0
    """Calls that were made, those that came to nothing included."""
    failed: int = 0
    usage: Usage = _UNCOUNTED
    dollars: Decimal = _NOTHING
    unpriced: int = 0
    """Calls with an unknown cost: it is not in ``dollars``."""

    def __add__(self, other: Account) -> Account:
        return _total((self, other))


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
    rounds: tuple[Round, ...] = (Round(),)
    """From the first to the last; a run begins with its first."""
    failure: Failure | None = None
    """Why there is no answer; if there is one, why the last round came to nothing."""
    pool: str = ""
    """Where the pool is from: a path, "embedded", or empty if it was made in Python."""
    planner: str = ""
    """Name of the worker that plans."""
    budget: Budget = Budget()
    most_rounds: int = 1
    parent: str = ""
    """Id of the run that this one repeats in part."""
    tool_steps: ToolSteps = "last"
    """Which steps may use the tools of ``asked``."""
    asked: Call | None = None
    """What was asked, if it was more than a query: a conversation, and how the answer is to be
    decoded. ``query`` is its text."""
    caller: str = ""
    """For whom it was: the name of a server's client."""
    router: str = ""
    """Where the Router is from, if one decides: a path, "embedded", or "python"."""

    @property
    def answer(self) -> str | None:
        """The answer of the last round that has one; None if none has (see ``failure``)."""
        for each in reversed(self.rounds):
            if (answer := each.answer) is not None:
                return answer
        return None

    @property
    def best(self) -> StepResult | None:
        """The step that comes nearest to an answer: its own if there is one, else the last done.

        None if no step is done.
        """
        for each in reversed(self.rounds):
            done = [step for step in each.steps if step.state is StepState.DONE]
            if done and (each.answer is not None or self.answer is None):
                return done[-1]
        return None

    @property
    def current(self) -> Round:
        """The last round that has a plan; the first one if none has."""
        planned = [each for each in self.rounds if each.plan is not None]
        return planned[-1] if planned else self.rounds[0]

    @property
    def plan(self) -> Plan | None:
        """The last plan."""
        return self.current.plan

    @property
    def source(self) -> PlanSource | None:
        """Who decided on the last plan."""
        return self.current.source

    @property
    def steps(self) -> tuple[StepResult, ...]:
        """Results of the last plan so far, by index."""
        return self.current.steps

    @property
    def open_calls(self) -> tuple[ToolCall, ...]:
        """The calls of tools whose results steps wait for, by step."""
        return tuple(call for step in self.rounds[-1].steps for call in _open_calls(step))

    @property
    def planning(self) -> tuple[PlanAttempt, ...]:
        """The Conductor's completions of all rounds."""
        return tuple(attempt for each in self.rounds for attempt in each.planning)

    @property
    def usage(self) -> Usage:
        """Tokens of all steps, planning apart."""
        return sum((each.usage for each in self.accounts.values()), Usage())

    @property
    def planning_usage(self) -> Usage:
        """Tokens of the Conductor model."""
        return self.orchestration.usage

    @property
    def dollars(self) -> Decimal:
        """What it cost, planning included; calls of unknown price are not in it."""
        return sum((each.dollars for each in self.accounts.values()), self.orchestration.dollars)

    @property
    def accounts(self) -> dict[str, Account]:
        """What each worker took for steps, nested runs included, planning apart."""
        calls: dict[str, list[Account]] = {}
        for worker, each in self._step_calls():
            calls.setdefault(worker, []).append(each)
        return {worker: _total(each) for worker, each in calls.items()}

    @property
    def orchestration(self) -> Account:
        """What planning took, in nested runs too."""
        own = (each for attempt in self.planning for each in _planning_calls(attempt))
        nested = (each.run.orchestration for each in self._results() if each.run)
        return _total((*own, *nested))

    def _results(self) -> Iterator[StepResult]:
        return (step for each in self.rounds for step in each.steps)

    def _step_calls(self) -> Iterator[tuple[str, Account]]:
        for step in self._results():
            yield from _turn_calls(step.turns)
            yield from ((each.worker, _lost(each)) for each in step.lost)
            if step.run is not None:
                yield from step.run._step_calls()
            elif step.state is StepState.DONE and not step.reused:
                yield step.worker, _account(step.usage, step.dollars)

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
        if self.plan is None:
            return mimebundle(None, text)
        plan, states = flattened(self)
        return mimebundle(plan, text, marks=states)


def _total(accounts: Sequence[Account]) -> Account:
    """Their sum, without an Account for each step of adding up."""
    if len(accounts) < 2:
        return accounts[0] if accounts else Account()
    return Account(
        sum(each.calls for each in accounts),
        sum(each.failed for each in accounts),
        Usage(
            sum(each.usage.input_tokens for each in accounts),
            sum(each.usage.output_tokens for each in accounts),
            sum(each.usage.cached_tokens for each in accounts),
        ),
        sum((each.dollars for each in accounts), _NOTHING),
        sum(each.unpriced for each in accounts),
    )


def _account(usage: Usage | None, dollars: Decimal | None, failed: int = 0) -> Account:
    return Account(1, failed, usage or _UNCOUNTED, dollars or _NOTHING, int(dollars is None))


def _turn_calls(turns: Iterable[ToolTurn]) -> Iterator[tuple[str, Account]]:
    for turn in turns:
        yield from ((each.worker, _lost(each)) for each in turn.lost)
        if not turn.reused:
            yield turn.worker, _account(turn.usage, turn.dollars)


def _open_calls(step: StepResult) -> tuple[ToolCall, ...]:
    if step.state is not StepState.SUSPENDED:
        return ()
    if step.run is not None:
        return step.run.open_calls
    return step.turns[-1].open_calls


def _lost(attempt: Attempt) -> Account:
    return _account(attempt.usage, attempt.dollars, failed=1)


def _given_up(attempt: PlanAttempt) -> Iterator[Attempt]:
    """The calls of an attempt to plan that does not count any more."""
    yield from attempt.lost
    if attempt.failure is None and not attempt.reused:
        told = attempt.diagnostics[0].message if attempt.diagnostics else "it led to no plan"
        failure = Failure(FailureKind.NO_PLAN, told)
        yield Attempt(attempt.worker, failure, attempt.seconds, attempt.usage, attempt.dollars)


def _planning_calls(attempt: PlanAttempt) -> Iterator[Account]:
    yield from map(_lost, attempt.lost)
    if attempt.failure is None and not attempt.reused:
        yield _account(attempt.usage, attempt.dollars)


def marks(run: Run) -> dict[int, Mark]:
    """The state of each step, for the renderers: ``to_svg(run.plan, marks=marks(run))``."""
    return {result.index: _mark(result) for result in run.steps}


def flattened(run: Run) -> tuple[Plan, dict[int, Mark]]:
    """Make one plan of all rounds and of the runs inside steps, for the renderers.

    The steps of a run inside a step stand before it: they begin with what the step reads, and it
    reads their last one. A step of a later round that saw the answer of the round before (see
    :mod:`runtime.context`) reads the step that gave it.

    Returns:
        The plan; and the marks of its steps, whose numbers say where they are from: ``R2.1`` is
        step 1 of the second round, ``1.0`` step 0 of the run inside step 1.

    Raises:
        ValueError: If the run has no plan.
    """
    flat = _Flat()
    flat.lay(run, "", ())
    if not flat.steps:
        raise ValueError(f"run {run.id} came to no plan, so there is nothing to draw")
    return Plan(tuple(flat.steps)), flat.marks


class _Flat:
    """One plan in the making, of many."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.marks: dict[int, Mark] = {}

    def lay(self, run: Run, prefix: str, before: tuple[int, ...]) -> int | None:
        """Put a run's steps behind the others.

        Args:
            run: The run.
            prefix: What the numbers of its steps begin with.
            before: What those of its steps read that read nothing else.

        Returns:
            Where its last step stands, if it has one.
        """
        planned = [each for each in run.rounds if each.plan is not None]
        answer: int | None = None
        last: int | None = None
        for number, each in enumerate(planned, 1):
            name = prefix + (f"R{number}." if len(planned) > 1 else "")
            last = self._lay_round(run, each, name, before, answer)
            if each.answer is not None or _is_turn(each):
                answer = last
        return last

    def _lay_round(
        self, run: Run, laid: Round, prefix: str, before: tuple[int, ...], answer: int | None
    ) -> int:
        assert laid.plan is not None
        results = {each.index: each for each in laid.steps}
        places: list[int] = []
        for step in laid.plan:
            access = {places[earlier] for earlier in step.access}
            if answer is not None and len(step.access) == step.index:
                access.add(answer)
            access = access or {*before}
            result = results.get(step.index)
            if result is not None and result.run is not None:
                inner = self.lay(result.run, f"{prefix}{step.index}.", tuple(sorted(access)))
                access.update(() if inner is None else (inner,))
            places.append(len(self.steps))
            if laid.pick is not None and laid.pick.role is not None:
                step = replace(step, subtask=f"{laid.pick.role}: {step.subtask}")
            self.steps.append(replace(step, index=places[-1], access=tuple(sorted(access))))
            if run.state is not RunState.PLANNED:
                mark = Mark("waiting") if result is None else _mark(result)
                number = f"{prefix}{step.index}"
                shown = "" if number == str(places[-1]) else number
                self.marks[places[-1]] = replace(mark, number=shown)
        return places[-1]


def _is_turn(laid: Round) -> bool:
    return laid.pick is not None and laid.pick.role is not None


def _mark(result: StepResult) -> Mark:
    if result.state is StepState.SKIPPED:
        if result.because_of is not None:
            return Mark("skipped", f"step {result.because_of} failed")
        return Mark("skipped", result.failure.kind if result.failure else "")
    if result.state is StepState.SUSPENDED:
        names = ", ".join(dict.fromkeys(call.name for call in _open_calls(result)))
        return Mark("running", f"waits for {names}")
    if result.state is StepState.RUNNING:
        return Mark("running")
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


class _OpenRound:
    """A round under way."""

    __slots__ = (
        "earlier",
        "kept",
        "lost",
        "nested",
        "parsed",
        "pick",
        "planning",
        "seen",
        "steps",
        "turns",
    )

    def __init__(self) -> None:
        self.planning: list[PlanAttempt] = []
        self.parsed: PlanParsed | None = None
        self.steps: dict[int, StepResult] = {}
        self.nested: dict[int, Record] = {}
        self.turns: dict[int, list[ToolTurn]] = {}
        # What steps with tools saw first, by step.
        self.seen: dict[int, tuple[Message, ...]] = {}
        self.kept = False
        self.pick: Pick | None = None
        # Calls that came to nothing and are in no result yet, by step; None is planning.
        self.lost: dict[int | None, tuple[Attempt, ...]] = {}
        # Those from before the run was stopped: the next result will not tell of them by itself.
        self.earlier: dict[int | None, tuple[Attempt, ...]] = {}

    def finish(self, result: StepResult) -> None:
        """Take in a result, with what was lost before."""
        self.lost.pop(result.index, None)
        if earlier := self.earlier.pop(result.index, None):
            result = replace(result, lost=(*earlier, *result.lost))
        self.steps[result.index] = result

    def suspend(self, event: StepSuspended) -> None:
        """Take in what a step asks for, with what was lost before."""
        self.lost.pop(event.index, None)
        self.seen.setdefault(event.index, event.messages)
        if (turn := event.turn) is not None:
            if earlier := self.earlier.pop(event.index, None):
                turn = replace(turn, lost=(*earlier, *turn.lost))
            self.turns.setdefault(event.index, []).append(turn)

    def answer_tools(self, results: dict[str, str]) -> None:
        """Take in what came of calls."""
        for index, turns in self.turns.items():
            if index in self.steps:
                continue
            last = turns[-1]
            turns[-1] = replace(
                last,
                results=tuple(
                    results.get(call.id) if known is None else known
                    for call, known in zip(last.calls, last.results, strict=True)
                ),
            )
        for record in self.nested.values():
            record.answer_tools(results)

    @property
    def suspended(self) -> frozenset[int]:
        """The steps that wait for tools."""
        waiting = {index for index, turns in self.turns.items() if turns[-1].open_calls}
        waiting |= {index for index, record in self.nested.items() if record.suspended}
        return frozenset(waiting - self.steps.keys())

    def attempted(self, attempt: PlanAttempt) -> None:
        """Take in an attempt to plan, with what was lost before."""
        self.lost.pop(None, None)
        if earlier := self.earlier.pop(None, None):
            attempt = replace(attempt, lost=(*earlier, *attempt.lost))
        self.planning.append(attempt)

    def reopen(self, *, planned: bool) -> None:
        """Forget what did not come to an end, and attempts to plan that came to nothing.

        What they took stays in the books.
        """
        for index, lost in self.lost.items():
            self.earlier[index] = (*self.earlier.get(index, ()), *lost)
        self.lost.clear()
        for index, step in list(self.steps.items()):
            if step.state is not StepState.DONE:
                self.earlier[index] = step.lost
                del self.steps[index]
        if planned and self.parsed is None:
            calls = (each for attempt in self.planning for each in _given_up(attempt))
            self.earlier[None] = (*self.earlier.get(None, ()), *calls)
            self.planning.clear()
            self.pick = None
        self.planning = [attempt for attempt in self.planning if attempt.failure is None]

    def calls(self) -> Iterator[Account]:
        """What each call took, also of steps without a result."""
        for attempt in self.planning:
            yield from _planning_calls(attempt)
        for turns in self.turns.values():
            yield from (each for _, each in _turn_calls(turns))
        for step in self.steps.values():
            yield from map(_lost, step.lost)
            called = step.state is StepState.DONE and not step.reused
            if called and step.index not in self.nested:
                yield _account(step.usage, step.dollars)
        for lost in (*self.earlier.values(), *self.lost.values()):
            yield from map(_lost, lost)
        for record in self.nested.values():
            yield from record.calls()

    def entered(self, *, again: bool) -> int:
        """Steps of its plan and of the plans inside it.

        Args:
            again: Leave those out that are entered anew when the run goes on.
        """
        plan = len(self.parsed.plan) if self.parsed and not again else 0
        return plan + sum(
            record.entered(again=again and index not in self.steps)
            for index, record in self.nested.items()
        )

    @property
    def answer(self) -> str | None:
        last = self.steps.get(self.parsed.plan.final.index) if self.parsed else None
        return _answer(self.pick, last.text) if last and last.state is StepState.DONE else None

    @property
    def round(self) -> Round:
        return Round(
            planning=tuple(self.planning),
            plan=self.parsed.plan if self.parsed else None,
            source=self.parsed.source if self.parsed else None,
            steps=tuple(self._result(index) for index in sorted({*self.steps, *self.seen})),
            kept=self.kept,
            pick=self.pick,
        )

    def _result(self, index: int) -> StepResult:
        result = self.steps.get(index) or self._unfinished(index)
        if index in self.turns:
            result = replace(result, turns=tuple(self.turns[index]))
        return replace(result, run=self.nested[index].run) if index in self.nested else result

    def _unfinished(self, index: int) -> StepResult:
        """Of a step that has asked for tools."""
        state = StepState.SUSPENDED if index in self.suspended else StepState.RUNNING
        turns = self.turns.get(index)
        if turns is None:
            assert self.parsed is not None
            worker = str(self.parsed.plan.steps[index].worker)
            return StepResult(index, worker, state, messages=self.seen[index])
        return StepResult(
            index,
            turns[-1].worker,
            state,
            messages=self.seen[index],
            started_s=turns[0].started_s,
            seconds=turns[-1].started_s + turns[-1].seconds - turns[0].started_s,
        )


def _latest(rounds: Sequence[_OpenRound]) -> str | None:
    answers = (each.answer for each in reversed(rounds))
    return next((answer for answer in answers if answer is not None), None)


PASSING = frozenset({StepDelta, PlanDelta, StepStarted, PlanStarted})
"""What they announce arrives whole with a later event."""


class Record:
    """A Run under way: takes events one by one, in constant time each."""

    def __init__(self) -> None:
        self._start: RunStarted | None = None
        self._seconds = 0.0
        self._state = RunState.RUNNING
        self._failure: Failure | None = None
        self._budget = Budget()
        self._asked: Call | None = None
        self._rounds = [_OpenRound()]

    def add(self, event: Event) -> None:
        """Take in the next event.

        Raises:
            ValueError: If it is RunStarted and not the first event, or the other way round.
        """
        if isinstance(event, RunStarted) is not (self._start is None):
            raise ValueError(f"{event.kind} is out of order: a run begins with one run_started")
        self._seconds = event.at
        if type(event) in PASSING:
            return
        match event:
            case StepFinished():
                self._rounds[-1].finish(event.result)
            case StepSuspended():
                self._rounds[-1].suspend(event)
            case NestedEvent():
                self.nested(event.index).add(event.event)
            case RunStarted():
                self._start, self._budget, self._asked = event, event.budget, event.asked
            case PlanAttempted():
                self._rounds[-1].attempted(event.attempt)
            case WorkerPicked():
                self._rounds[-1].pick = event.pick
            case PlanParsed():
                self._rounds[-1].parsed = event
            case CallRetried():
                if event.attempt.seconds:
                    lost = self._rounds[-1].lost
                    lost[event.index] = (*lost.get(event.index, ()), event.attempt)
            case PlanKept():
                self._rounds[-1].kept = True
            case RoundStarted():
                self._rounds.append(_OpenRound())
            case RunResumed():
                finished = self._state is not RunState.RUNNING
                self._rounds[-1].reopen(planned=finished)
                self._go_on_inside()
                self.answer_tools({each.call: each.text for each in event.results})
                self._state, self._failure = RunState.RUNNING, None
                self._budget = event.budget
                if event.asked is not None:
                    messages = self._asked.messages if self._asked is not None else ()
                    self._asked = replace(event.asked, messages=messages)
            case RunFinished():
                self._state, self._failure = event.state, event.failure

    def nested(self, index: int) -> Record:
        """The record of the run inside a step of the present round."""
        return self._rounds[-1].nested.setdefault(index, Record())

    def _go_on_inside(self) -> None:
        """Runs inside steps that waited are under way again, as this one is."""
        for record in self._rounds[-1].nested.values():
            if record._state is RunState.SUSPENDED:
                record._state = RunState.RUNNING
                record._go_on_inside()

    def answer_tools(self, results: dict[str, str]) -> None:
        """Take in what came of calls of tools, by their ids."""
        if results:
            self._rounds[-1].answer_tools(results)

    def missing(self, results: Iterable[ToolResult]) -> tuple[ToolResult, ...]:
        """Leave out those of some results that the run has already.

        Raises:
            ToolError: If nobody in the run asked for one of them, or does no more, or it has
                another one already.
        """
        known = dict(self._tool_results(open_round=True))
        new: dict[str, ToolResult] = {}
        for each in results:
            if each.call not in known:
                raise ToolError(f"{self._told()}: no step of it made the call {each.call}")
            there, waits = known[each.call]
            there = new[each.call].text if each.call in new else there
            if there is not None and there != each.text:
                told = "has its result already, and another one; each counts once"
                raise ToolError(f"{self._told()}: the call {each.call} {told}")
            if there is None and not waits:
                told = "is not open any more: the run has gone on without its result"
                raise ToolError(f"{self._told()}: the call {each.call} {told}")
            if there is None:
                new[each.call] = each
        return tuple(new.values())

    def _told(self) -> str:
        return f"run {self._start.run}" if self._start else "a run"

    def _tool_results(self, *, open_round: bool) -> Iterator[tuple[str, tuple[str | None, bool]]]:
        """Each call of a tool with its result so far, and whether its step waits for it."""
        for one in self._rounds:
            current = open_round and one is self._rounds[-1]
            for index, turns in one.turns.items():
                for turn in turns:
                    waits = current and turn is turns[-1] and index not in one.steps
                    for call, result in zip(turn.calls, turn.results, strict=True):
                        yield call.id, (result, waits)
            for index, record in one.nested.items():
                inner = current and index not in one.steps
                yield from record._tool_results(open_round=inner)

    def turns(self, index: int) -> tuple[ToolTurn, ...]:
        """The turns with tools of a step of the present round, its own or those taken over."""
        present = self._rounds[-1]
        if index in present.turns:
            return tuple(present.turns[index])
        return present.steps[index].turns if index in present.steps else ()

    @property
    def suspended(self) -> frozenset[int]:
        """The steps of the present round that wait for tools."""
        return self._rounds[-1].suspended

    @property
    def budget(self) -> Budget:
        """What the run may take, as it was last told."""
        return self._budget

    @property
    def asked(self) -> Call | None:
        """What was asked, as it was last told."""
        return self._asked

    @property
    def started(self) -> RunStarted | None:
        """The first event, once it is there."""
        return self._start

    @property
    def seconds(self) -> float:
        """Time of the last event."""
        return self._seconds

    @property
    def number(self) -> int:
        """Number of the present round, from 0."""
        return len(self._rounds) - 1

    @property
    def round(self) -> Round:
        """The present round so far."""
        return self._rounds[-1].round

    @property
    def plan(self) -> Plan | None:
        """The plan of the present round."""
        parsed = self._rounds[-1].parsed
        return parsed.plan if parsed else None

    @property
    def pick(self) -> Pick | None:
        """The Router's decision in the present round, if there is one."""
        return self._rounds[-1].pick

    @property
    def kept(self) -> bool:
        """Whether the present round keeps the answer of the one before."""
        return self._rounds[-1].kept

    @property
    def settled(self) -> Collection[int]:
        """The steps of the present round that are done, failed or skipped."""
        return self._rounds[-1].steps.keys()

    @property
    def answer(self) -> str | None:
        """As :attr:`Run.answer`."""
        return _latest(self._rounds)

    @property
    def previous(self) -> str | None:
        """The answer of the rounds before the present one."""
        return _latest(self._rounds[:-1])

    @property
    def rounds(self) -> tuple[Round, ...]:
        """All rounds so far."""
        return tuple(each.round for each in self._rounds)

    def calls(self) -> Iterator[Account]:
        """What each call took so far, planning included, also of steps without a result."""
        for each in self._rounds:
            yield from each.calls()

    def entered(self, *, again: bool = False) -> int:
        """Steps of all plans, nested ones included.

        Args:
            again: Leave those out that are entered anew when the run goes on.
        """
        *past, last = self._rounds
        return sum(each.entered(again=False) for each in past) + last.entered(again=again)

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
            rounds=self.rounds,
            failure=self._failure,
            pool=self._start.pool,
            planner=self._start.planner,
            budget=self._budget,
            most_rounds=self._start.rounds,
            parent=self._start.parent,
            tool_steps=self._start.tool_steps,
            asked=self._start.asked,
            caller=self._start.caller,
            router=self._start.router,
        )
