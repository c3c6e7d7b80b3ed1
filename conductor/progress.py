"""A run on the terminal while it goes on: the plan as it is written, then the steps with their
state, time and tokens."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from grammar import Mark, Plan, terminal_rows, to_terminal, topology, visible
from runtime import (
    CallRetried,
    Event,
    Failure,
    NestedEvent,
    PlanAttempted,
    PlanDelta,
    PlanKept,
    PlanParsed,
    PlanSource,
    PlanStarted,
    Record,
    RoundStarted,
    RunFinished,
    RunResumed,
    RunStarted,
    StepDelta,
    StepFinished,
    StepStarted,
    marks,
)

_COLOURS = {
    "waiting": "dim",
    "running": "cyan",
    "done": "green",
    "failed": "red",
    "skipped": "yellow",
}


def shown(failure: Failure | None) -> str:
    """A failure as one line that is safe to print."""
    return visible(failure.message) if failure else ""


class Progress:
    """Follows the events of a run: a live view in a terminal, plain lines elsewhere.

    Use it as a context manager and give it as ``on_event``.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._record = Record()
        self._note = ""
        self._draft = ""
        self._plan: Plan | None = None
        self._started: dict[int, StepStarted] = {}
        self._pieces: dict[int, int] = {}
        self._tail: dict[int, str] = {}
        self._zero = monotonic()

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._view,
                console=self._console,
                refresh_per_second=8,
                vertical_overflow="crop",
            )
            self._live.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._live is not None:
            self._note = ""
            self._live.refresh()
            self._live.__exit__(None, None, None)
            self._live = None

    def note(self, stage: str) -> None:
        """Tell about a long preparation. May be called from another thread."""
        self._note = stage
        if self._live is None:
            self._console.print(f"{stage} …", style="dim", highlight=False)

    def __call__(self, event: Event) -> None:
        """Take in the next event."""
        self._record.add(event)
        match event:
            case RunStarted() | RunResumed():
                self._zero = monotonic() - event.at
            case RoundStarted():
                self._begin_round(event.round)
            case PlanKept():
                self._say("the Conductor keeps this answer", "bold")
            case CallRetried():
                self._retried(event)
            case NestedEvent():
                self._nested(event)
            case PlanStarted():
                self._note = "" if self._live else self._note
                self._draft = ""
                self._plain(f"{event.worker} writes a plan …")
            case PlanDelta():
                self._note = ""
                self._draft += event.text
            case PlanAttempted() if event.attempt.diagnostics:
                self._say("not a plan yet: " + event.attempt.diagnostics[0].message, "yellow")
            case PlanParsed():
                self._draft = ""
                self._plan = event.plan
                self._print_plan(event)
            case StepStarted():
                self._started[event.index] = event
                self._plain(f"step {event.index} starts on {event.worker}")
            case StepDelta():
                self._note = ""
                # A piece is a token with in-process models and about one with servers.
                self._pieces[event.index] = self._pieces.get(event.index, 0) + 1
                self._tail[event.index] = (self._tail.get(event.index, "") + event.text)[-200:]
            case StepFinished(result=result):
                mark = marks(self._record.run)[result.index]
                self._plain(f"step {result.index} {mark.state}: {mark.detail}")
            case RunFinished() | PlanAttempted():
                pass

    def _begin_round(self, number: int) -> None:
        """Leave the steps of the round before on the screen, and follow the next one."""
        if self._live is not None and self._plan is not None:
            self._console.print(self._steps(self._plan))
        self._plan = None
        for each in (self._started, self._pieces, self._tail):
            each.clear()
        self._say(f"Round {number + 1}: the Conductor looks at the answer", "bold")

    def _retried(self, event: CallRetried) -> None:
        lost = event.attempt
        who = "planning" if event.index is None else f"step {event.index}"
        if event.index is not None:
            self._pieces.pop(event.index, None)
            self._tail.pop(event.index, None)
        then = "again" if event.worker == lost.worker else f"now {event.worker}"
        wait = f" in {event.wait_s:.1f} s" if event.wait_s else ""
        self._say(f"{who}: {lost.failure.message}; {then}{wait}", "yellow")

    def _nested(self, event: NestedEvent) -> None:
        """Tell what the run inside a step is at, in the step's own line."""
        inner = event.event
        match inner:
            case PlanParsed():
                told = f"plans {len(inner.plan)} steps: {', '.join(map(str, inner.plan.workers))}"
                self._tail[event.index] = told
            case StepStarted():
                self._tail[event.index] = f"step {inner.index} on {inner.worker}"
            case StepDelta() | PlanDelta():
                self._pieces[event.index] = self._pieces.get(event.index, 0) + 1
            case StepFinished(result=result):
                self._plain(f"step {event.index}.{result.index} {result.state} ({result.worker})")
            case _:
                pass

    def _plain(self, line: str) -> None:
        if self._live is None:
            self._say(line, "dim")

    def _say(self, line: str, style: str) -> None:
        self._console.print(Text(visible(line), style=style))

    def _print_plan(self, event: PlanParsed) -> None:
        if event.source is PlanSource.PICK:
            return
        shape = topology(event.plan)
        steps = "1 step" if len(event.plan) == 1 else f"{len(event.plan)} steps"
        self._console.print(Text(f"Plan · {shape} · {steps}", style="bold"))
        self._console.print(Text(visible(str(event.plan), "\n")))
        if self._live is None:
            drawing = to_terminal(event.plan, width=self._console.width)
            self._console.print(Text(drawing), soft_wrap=True)

    # --- the live view -------------------------------------------------------------------------

    def _view(self) -> RenderableType:
        parts: list[RenderableType] = []
        if self._draft:
            parts.append(Text(visible(self._draft, "\n"), style="cyan"))
        if self._plan is not None:
            parts.append(self._steps(self._plan))
        if self._note:
            parts.append(Spinner("dots", Text(self._note + " …", style="dim")))
        elif self._plan is None:
            parts.append(Spinner("dots", Text("planning …", style="dim")))
        return Group(*parts)

    def _steps(self, plan: Plan) -> Table:
        current = self._marks(plan)
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, ratio=1, overflow="ellipsis")
        table.add_column(no_wrap=True, justify="right")
        for row in terminal_rows(plan, current):
            if row.step is None:
                table.add_row(Text(row.gutter, style="dim"))
                continue
            step, mark = plan.steps[row.step], current[row.step]
            colour = _COLOURS[mark.state]
            said = self._tail.get(row.step, "") if mark.state == "running" else ""
            excerpt = visible(" ".join((said or step.subtask).split()))
            table.add_row(
                Text(row.gutter, style=colour),
                Text(f"{step.index} {step.worker}", style="bold"),
                Text(excerpt[-200:] if said else excerpt, style="dim" if said else ""),
                Text(mark.detail or mark.state, style=colour),
            )
        return table

    def _marks(self, plan: Plan) -> Mapping[int, Mark]:
        current = {step.index: Mark("waiting") for step in plan}
        for index in self._started:
            seconds = monotonic() - self._zero - self._started[index].at
            current[index] = Mark(
                "running", f"{seconds:.0f} s · {self._pieces.get(index, 0)} tokens"
            )
        current.update(marks(self._record.run))
        return current
