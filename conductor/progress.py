"""A run on the terminal: while it goes on (the plan as it is written, then the steps with their
state, time and tokens), and how it ended."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from time import monotonic

import typer
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from grammar import Mark, Plan, terminal_rows, to_terminal, topology, visible
from runtime import (
    CallRetried,
    Emit,
    Event,
    Journal,
    JournalError,
    NestedEvent,
    PlanAttempted,
    PlanDelta,
    PlanKept,
    PlanParsed,
    PlanSource,
    PlanStarted,
    Pool,
    Record,
    RoundStarted,
    Run,
    RunFinished,
    RunResumed,
    RunStarted,
    RunState,
    StepDelta,
    StepFinished,
    StepStarted,
    StepState,
    StepSuspended,
    WorkerPicked,
    marks,
    no_listener,
)

from .config import EMBEDDED
from .orchestrator import Conductor
from .show import COLOURS, cost_of, everything, incidents, pick_line, short, shown
from .terminal import FAILED, INTERRUPTED, fail, remark, say, tell


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

    def take_up(self, events: Iterable[Event]) -> None:
        """Take in what happened before a run was stopped, which now goes on."""
        for event in events:
            self._record.add(event)
        self._plan = self._record.round.plan
        done = sum(step.state is StepState.DONE for step in self._record.round.steps)
        if self._plan is not None:
            self._plain(f"goes on: {done} of {len(self._plan)} steps are done")

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
                accepted = "accepted" if self._routes else "the Conductor keeps this answer"
                self._say(accepted, "bold")
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
            case WorkerPicked():
                self._note = ""
                self._picked(event)
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
            case StepSuspended():
                self._started.pop(event.index, None)
                mark = marks(self._record.run)[event.index]
                self._plain(f"step {event.index} {mark.detail}")
            case StepFinished(result=result):
                mark = marks(self._record.run)[result.index]
                self._plain(f"step {result.index} {mark.state}: {mark.detail}")
            case RunFinished() | PlanAttempted():
                pass

    @property
    def _routes(self) -> bool:
        """Whether a router decides."""
        return self._record.started is not None and bool(self._record.started.router)

    def _picked(self, event: WorkerPicked) -> None:
        pick = event.pick
        turn = "" if pick.role is None else f"Turn {self._record.number + 1} · "
        self._say(f"{turn}{pick_line(pick)}", "bold")
        if pick.unknown and self._record.number == 0:
            told = f"not known to the router, so never picked: {', '.join(pick.unknown)}"
            self._say(told, "yellow")

    def _begin_round(self, number: int) -> None:
        """Leave the steps of the round before on the screen, and follow the next one."""
        if self._live is not None and self._plan is not None:
            self._console.print(self._steps(self._plan))
        self._plan = None
        for each in (self._started, self._pieces, self._tail):
            each.clear()
        if not self._routes:
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
        if event.source in (PlanSource.PICK, PlanSource.ROUTER):
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
            what = "routing …" if self._routes else "planning …"
            parts.append(Spinner("dots", Text(what, style="dim")))
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
            colour = COLOURS[mark.state]
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


# --- from the command to its end ----------------------------------------------------------------


class Watch:
    """Carries a run out before the user's eyes, for the commands that begin one or go on with it.

    Args:
        journal: Where the run is kept, if anywhere.
        quiet: Without progress.
        spinner: With a sign of life all the same.
        resumable: Whether a run that is interrupted can go on.
        run: Id of the run, if it is known beforehand.
    """

    def __init__(
        self,
        journal: Journal | None,
        *,
        quiet: bool = False,
        spinner: bool = False,
        resumable: bool = True,
        run: str = "",
    ) -> None:
        self._journal = journal
        self._quiet = quiet
        self._resumable = resumable
        self._console = Console(stderr=True, quiet=quiet and not spinner)
        self._run = run

    def conduct(
        self,
        load: Callable[[Callable[[str], None]], Pool],
        act: Callable[[Conductor, Emit], Run],
        *,
        planner: str | None = None,
        router: str | None = None,
        past: Iterable[Event] = (),
    ) -> Run:
        """Load the pool, make the team and let it act.

        Args:
            load: Loads the pool, telling of long preparations.
            act: Starts the run.
            planner: The worker that plans, if not the pool's own one.
            router: Folder of the router that decides instead, if not the pool's own one.
            past: What has happened already, if the run goes on.
        """
        try:
            if self._quiet:
                with self._console.status("routing" if router else "planning") as status:
                    team = self._team(load(status.update), planner, router)
                    return act(team, self._heard(no_listener))
            progress = Progress(self._console)
            team = self._team(load(progress.note), planner, router)
            with progress:
                progress.take_up(past)
                return act(team, self._heard(progress))
        except JournalError as error:
            fail(f"{error} (--journal FILE names another one, --no-journal keeps none)")
        except KeyboardInterrupt:
            kept = self._journal is not None and self._run and self._resumable
            tell(
                f"interrupted; `conductor resume {short(self._run)}` goes on"
                if kept
                else "interrupted"
            )
            raise typer.Exit(INTERRUPTED) from None
        finally:
            if self._journal is not None:
                self._journal.close()

    def _team(self, pool: Pool, planner: str | None, router: str | None) -> Conductor:
        return Conductor(pool, planner=planner, router=router, journal=self._journal)

    def _heard(self, then: Emit) -> Emit:
        def hear(event: Event) -> None:
            if isinstance(event, RunStarted):
                self._run = event.run
            then(event)

        return hear

    def end(self, run: Run, *, json: bool, best: bool = False) -> None:
        """Print the answer, or why there is none; then the command ends with exit code 1."""
        if json:
            say(run.to_json(indent=2))
        if run.state is RunState.SUSPENDED:
            self._waiting(run)
        if run.answer is None:
            self._without_answer(run, best and not json)
        if json:
            return
        if self._quiet:
            say(visible(run.answer or "", "\n\t"))
            return
        _print_framed("answer", run.answer or "")
        for line in _filled(self._footer(run), self._console.width):
            self._console.print(Text(line, style="dim"), soft_wrap=True)
        if run.pool == EMBEDDED:
            hint = "This was one small model in this process; `conductor init` sets up better ones."
            self._console.print(Text(hint, style="dim"))

    def _waiting(self, run: Run) -> None:
        """Say which tools the run waits for, and how it goes on."""
        tell("no answer yet: the run waits for tools")
        for call in run.open_calls:
            remark(f"{call.id}: {visible(call.name)} {visible(call.arguments)}")
        kept = self._journal is not None
        how = f"conductor resume {short(run.id)} --result CALL=TEXT" if kept else ""
        remark(how or "without a journal it can't go on")
        raise typer.Exit(FAILED)

    def _without_answer(self, run: Run, best: bool) -> None:
        nearest = run.best
        if best and nearest is not None:
            title = f"best so far: step {nearest.index}, {nearest.worker}"
            if self._quiet:
                say(visible(nearest.text, "\n\t"))
            else:
                _print_framed(title, nearest.text)
        tell(f"error: no answer: {shown(run.failure)}")
        if nearest is not None and not best:
            where = f"conductor show {short(run.id)}" if self._journal else "--best prints it"
            told = f"step {nearest.index} ({nearest.worker}) came nearest to one"
            remark(f"{told}: {where}")
        elif self._journal is not None:
            remark(f"what happened: conductor show {short(run.id)}")
        raise typer.Exit(FAILED)

    def _footer(self, run: Run) -> list[str]:
        """Who answered, in what time, for how much, and where more is told."""
        answered = [at for at, each in enumerate(run.rounds) if each.answer is not None]
        last = run.rounds[answered[-1]].steps[-1]
        used, planning = run.usage, run.planning_usage
        number = f" of round {answered[-1] + 1}" if len(run.rounds) > 1 else ""
        parts = [
            f"answered by {visible(last.worker)} (step {last.index}{number})",
            f"{run.seconds:.1f} s",
            f"tokens in/out {used.input_tokens:,}/{used.output_tokens:,}",
        ]
        if run.planning:
            parts.append(f"planning {planning.input_tokens:,}/{planning.output_tokens:,}")
        parts += [cost_of(everything(run)), *map(visible, incidents(run))]
        if self._journal is not None:
            parts.append(f"conductor show {short(run.id)}")
        return [each for each in parts if each]


def _filled(parts: Iterable[str], width: int) -> list[str]:
    """Join parts to lines that are no wider than the terminal, each part whole."""
    lines: list[str] = []
    for part in parts:
        joined = f"{lines[-1]} · {part}" if lines else part
        if lines and cell_len(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(part)
    return lines


def _print_framed(title: str, text: str) -> None:
    """A text on standard output, between two lines that are not."""
    console = Console(stderr=True)
    console.rule(Text(visible(title)), style="dim")
    sys.stderr.flush()
    say(visible(text, "\n\t"))
    console.rule(style="dim")
