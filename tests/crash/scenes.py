"""What is carried out while a process is killed: a few runs that cover every path through the
engine, with workers whose every reply tells which call it answers.

A reply is made from the digest of the messages it answers. So equal answers prove equal prompts all
the way up, and a call can be told again wherever its text turns up: in the record of a run, in the
journal's file, in the books of a server.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from conductor import Conductor
from grammar import Plan
from runtime import (
    ConductorWorker,
    Emit,
    Event,
    Journal,
    Message,
    NestedEvent,
    PlanAttempted,
    PlannerSettings,
    Pool,
    Run,
    RunState,
    StepFinished,
    StepState,
    StepSuspended,
    Terms,
    Tool,
    ToolCall,
    Worker,
)

ABLE = ("ant", "bee", "cat")
FLAKY = "flaky"
"""Fails the first time it is asked something."""
BROKEN = "broken"
"""Fails always."""
SELF = "self"
PLANNER = "scribe"
MODELS = (*ABLE, FLAKY, BROKEN, PLANNER)
_INNER = "(to be planned)"


@dataclass(frozen=True, slots=True)
class Scene:
    """One run."""

    name: str
    plan: Plan | None = None
    """Brought along; else the planner writes one."""
    worker: str | None = None
    """Picked to answer alone."""
    rounds: int = 1
    plan_only: bool = False
    tools: bool = False
    """Whether all steps may use tools."""
    state: RunState = RunState.DONE
    """How it ends."""

    def query(self, number: int) -> str:
        """What is asked, told apart by a number; the planner knows the scene by it."""
        return f"{self.name} no. {number}: what is to be said?"

    async def play(self, team: Conductor, number: int, on_event: Emit) -> Run:
        """Carry it out."""
        if self.plan_only:
            return await team.aplan(self.query(number), on_event=on_event)
        return await team.arun(
            self.query(number),
            plan=self.plan,
            worker=self.worker,
            rounds=self.rounds,
            tools=TOOLS if self.tools else (),
            tool_steps="all" if self.tools else "last",
            on_event=on_event,
        )


TOOLS = (Tool("look"), Tool("count"))


def _plan(*steps: tuple[str, Sequence[int]], inner: Sequence[int] = ()) -> Plan:
    workers = [worker for worker, _ in steps]
    subtasks = [f"Do part {at}{' ' + _INNER * (at in inner)}." for at in range(len(steps))]
    return Plan.of(subtasks, workers, [access for _, access in steps])


SCENES = (
    Scene("chain", _plan(("ant", ()), ("bee", [0]), ("cat", [1]), ("ant", [2]))),
    Scene(
        "fan-out",
        _plan(
            ("ant", ()), *((worker, [0]) for worker in (*ABLE, *ABLE)), ("bee", [0, 1, 2, 3, 4, 6])
        ),
    ),
    Scene(
        "debate",
        _plan(("ant", ()), ("bee", ()), ("bee", [0]), ("ant", [1]), ("cat", [0, 1, 2, 3])),
    ),
    Scene("planned"),
    Scene("rounds", rounds=3),
    Scene("nested", _plan(("ant", ()), (SELF, [0]), (SELF, ()), ("bee", [1, 2]), inner=[1, 2])),
    Scene("pick", worker="cat"),
    Scene("sketch", plan_only=True, state=RunState.PLANNED),
    Scene("flaky", _plan(("ant", ()), (FLAKY, [0]), (FLAKY, ()), ("bee", [1, 2]))),
    Scene(
        "broken",
        _plan(("ant", ()), (BROKEN, [0]), ("bee", [0]), ("cat", [1, 2])),
        state=RunState.FAILED,
    ),
)


WITH_TOOLS = (
    Scene("tools", _plan(("ant", ()), ("bee", ()), ("cat", [0]), ("ant", [1, 2])), tools=True),
    Scene("tools inside", _plan(("bee", ()), (SELF, [0]), inner=[1]), tools=True),
)
"""Runs whose steps ask for tools: two at once, then one more, before they reply."""


def team_of(make: Callable[[str], Worker], journal: Journal | None = None) -> Conductor:
    """The team that plays the scenes.

    Args:
        make: Makes the workers of ``MODELS``, by name.
        journal: Where it keeps its runs.
    """
    workers = [make(name) for name in MODELS if name != PLANNER]
    pool = Pool(
        [*workers, ConductorWorker(SELF)],
        planner=make(PLANNER),
        planning=PlannerSettings(most_steps=8),
        terms=Terms(retry_base_s=0.001, trip_after=None),
    )
    return Conductor(pool, journal=journal)


# -- what the workers say ---------------------------------------------------------------------


def call_id(messages: Sequence[Message]) -> str:
    """What tells a call by its messages."""
    told = json.dumps([(each.role, each.content) for each in messages])
    return sha256(told.encode()).hexdigest()[:16]


_REPLY = re.compile(r"\(in reply to (\w{16})\)")


def reply(model: str, messages: Sequence[Message]) -> str:
    """What a worker answers: a plan if it is the planner, a few words otherwise."""
    marked = f"(in reply to {call_id(messages)})"
    return f"{marked}\n{_written(messages)}" if model == PLANNER else f"{model} {marked} 🐜"


def replied(text: str) -> str:
    """The call that a reply answers; empty if it is none."""
    found = _REPLY.search(text)
    return found[1] if found else ""


def _written(messages: Sequence[Message]) -> str:
    """A plan for what is asked; where a repair is wanted, only when asked for it."""
    questions = [each.content for each in messages if each.content.startswith("Question: ")]
    question = questions[-1].removeprefix("Question: ")
    if _INNER in question:
        if "not a valid plan" not in messages[-1].content:
            return "Steps: one, two."
        return _text([0, 2], [[], [0]])
    if not question.startswith("rounds"):
        if "not a valid plan" not in messages[-1].content:
            return _text([0, 1], [[1], []])
        return _text([0, 1, 2], [[], [], [0, 1]])
    rounds = sum("was carried out" in each.content for each in messages)
    return [_text([0, 1], [[], [0]]), _text([1, 2], [[], [0]]), _text([], [])][rounds]


def _text(workers: list[int], access: list[list[int]]) -> str:
    subtasks = [f"Do piece {at}." for at in range(len(workers))]
    return f"subtasks = {json.dumps(subtasks)}\nworkers = {workers}\naccess = {access}\n"


def asks_for(model: str, messages: Sequence[Message]) -> list[ToolCall]:
    """The tools that a worker asks for before it replies; none if it replies."""
    if model not in ABLE or not any(_TOOLED.search(each.content) for each in messages):
        return []
    given = sum(each.role == "tool" for each in messages)
    names = {0: ["look", "count"], 2: ["look"]}.get(given, [])
    told = call_id(messages)
    return [
        ToolCall(f"{told}-{at}", name, json.dumps({"for": told})) for at, name in enumerate(names)
    ]


_TOOLED = re.compile(r"\btools(?: inside)? no\. ")


def gave(call: ToolCall) -> str:
    """What a tool gives."""
    return f"{call.name} gave something for {call.arguments}"


# -- what is compared -------------------------------------------------------------------------


def finished_calls(events: Sequence[Event]) -> list[str]:
    """The calls whose completion these events tell of, nested runs included."""
    found = []
    for event in events:
        while isinstance(event, NestedEvent):
            event = event.event
        match event:
            case StepFinished(result=result) if result.state is StepState.DONE:
                if result.worker != SELF and not result.reused:
                    found.append(replied(result.text))
            case StepSuspended(turn=turn) if turn is not None:
                found.append(replied(turn.text))
            case PlanAttempted(attempt=attempt) if attempt.failure is None:
                found.append(replied(attempt.text))
    return found


_OF_THE_MOMENT = frozenset(
    {"id", "started", "seconds", "started_s", "first_text_s", "lost", "dollars"}
)
"""Fields of a record that differ between two runs that are otherwise the same."""


def essence(run: Run) -> Any:
    """A run without its id, times and lost calls: what killing and resuming must not change."""
    return _without_moment(json.loads(run.to_json()))


def _without_moment(value: Any) -> Any:
    match value:
        case dict():
            kept = {name: each for name, each in value.items() if name not in _OF_THE_MOMENT}
            return {name: _without_moment(each) for name, each in kept.items()}
        case list():
            return [_without_moment(each) for each in value]
        case _:
            return value
