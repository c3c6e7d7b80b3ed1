"""The commands for runs that are on record: list, show, go on, repeat, replay, forget."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from grammar import visible

from .options import (
    Best,
    Calls,
    Deadline,
    Depth,
    Dollars,
    JournalFile,
    Json,
    NoJournal,
    PlannerOption,
    Quiet,
    Steps,
    TeamOption,
    Tokens,
    bounded,
    journal,
    moment,
)
from .terminal import FAILED, fail, print_json, read, remark, say, write

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from grammar import Mark, Plan
    from runtime import Journal, Pool, Run, RunSummary

_STATES = ("running", "stopped", "suspended", "done", "planned", "failed", "cancelled")

RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="Id of a run or its beginning, [bold]last[/bold], or a file with the JSON of a run.",
    ),
]
Kept = Annotated[
    str,
    typer.Argument(metavar="RUN", help="Id of a run or its beginning, or [bold]last[/bold]."),
]


def runs(
    state: Annotated[
        str, typer.Option("--state", metavar="STATE", help=f"One of {', '.join(_STATES)}.")
    ] = "",
    worker: Annotated[
        str, typer.Option("--worker", metavar="WORKER", help="In which this worker worked.")
    ] = "",
    contains: Annotated[
        str, typer.Option("--contains", metavar="TEXT", help="With this in query or answer.")
    ] = "",
    since: Annotated[
        str, typer.Option("--since", metavar="WHEN", help="A date, or how long ago: 12h, 7d.")
    ] = "",
    most: Annotated[
        int, typer.Option("--most", "-n", metavar="N", min=1, help="At most so many.")
    ] = 20,
    journal_file: JournalFile = None,
    json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the runs of the journal, the latest first."""
    from dataclasses import asdict

    from .show import runs_table, state_of

    found = _summaries(state, worker, contains, since, most, journal_file)
    if json:
        print_json([{**asdict(each), "state": state_of(each)} for each in found])
    elif found:
        console = Console(highlight=False)
        console.print(runs_table(found, console.width))
    else:
        remark("no runs")


def show(
    run: RunName,
    messages: Annotated[
        bool, typer.Option("--messages", help="Also what each step saw, in full.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Replies in full.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Draw it: x.svg, x.png, x.dot or x.mmd."
        ),
    ] = None,
    dark: Annotated[bool, typer.Option("--dark", help="For dark backgrounds.")] = False,
    journal_file: JournalFile = None,
    json: Json = False,
) -> None:
    """Show a run: its plan, what each step saw, said and cost, and when it was under way."""
    from runtime import flattened

    from .show import show as print_run

    record = _recorded(run, journal_file)
    if output is not None:
        draw(*flattened(record), output, dark=dark)
    elif json:
        say(record.to_json(indent=2))
    else:
        print_run(record, Console(highlight=False), messages=messages, full=full)


def resume(
    run: Kept,
    force: Annotated[
        bool, typer.Option("--force", help="Also if another process seems to work at it.")
    ] = False,
    pool: TeamOption = None,
    deadline: Deadline = None,
    dollars: Dollars = None,
    tokens: Tokens = None,
    calls: Calls = None,
    steps: Steps = None,
    depth: Depth = None,
    results: Annotated[
        list[str] | None,
        typer.Option("--result", metavar="CALL=TEXT", help="What came of a call of a tool."),
    ] = None,
    journal_file: JournalFile = None,
    best: Best = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Go on with a run that was stopped, failed or waits for tools; no finished call is made again.

    The ids of the calls that it waits for are in [bold]conductor show[/bold].
    """
    from runtime import RunState, ToolError, ToolResult

    from .progress import Watch

    kept = _journal(journal_file)
    past = kept.run(run)
    if past.state in (RunState.DONE, RunState.PLANNED):
        remark(f"run {past.id} has ended; there is nothing to go on with")
        if past.state is RunState.PLANNED:
            say(past.to_json(indent=2) if json else str(past.plan), end="")
        else:
            Watch(kept, quiet=True).end(past, json=json)
        return
    given = [each.partition("=") for each in results or ()]
    if wrong := [call for call, equals, _ in given if not equals]:
        fail(f"--result {wrong[0]}: write CALL=TEXT")
    try:
        known = kept.record(past.id).missing([ToolResult(call, text) for call, _, text in given])
    except ToolError as error:
        fail(str(error))
    watch = Watch(kept, quiet=quiet, run=past.id)
    record = watch.conduct(
        _pool_of(past, pool),
        lambda team, on_event: team.resume(
            past.id,
            tool_results=known,
            force=force,
            budget=bounded(
                past.budget,
                dollars=dollars,
                tokens=tokens,
                calls=calls,
                seconds=deadline,
                steps=steps,
                depth=depth,
            ),
            on_event=on_event,
        ),
        past=kept.events(past.id),
    )
    watch.end(record, json=json, best=best)


def rerun(
    run: RunName,
    from_step: Annotated[
        int,
        typer.Option("--from", metavar="STEP", min=0, help="Step of the last plan to begin at."),
    ],
    worker: Annotated[
        str | None, typer.Option("--worker", metavar="WORKER", help="Who does it this time.")
    ] = None,
    pool: TeamOption = None,
    planner: PlannerOption = None,
    deadline: Deadline = None,
    dollars: Dollars = None,
    tokens: Tokens = None,
    calls: Calls = None,
    depth: Depth = None,
    journal_file: JournalFile = None,
    no_journal: NoJournal = False,
    best: Best = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Carry out a plan again from one step on; what does not depend on it is taken over."""
    from .progress import Watch

    old = _recorded(run, journal_file)
    watch = Watch(journal(journal_file, no_journal), quiet=quiet)
    record = watch.conduct(
        _pool_of(old, pool),
        lambda team, on_event: team.rerun(
            old,
            from_step=from_step,
            worker=worker,
            budget=bounded(
                team.pool.settings.budget,
                dollars=dollars,
                tokens=tokens,
                calls=calls,
                seconds=deadline,
                depth=depth,
            ),
            on_event=on_event,
        ),
        planner=planner,
    )
    if not quiet:
        _print_changes(old, record)
    watch.end(record, json=json, best=best)


def replay(run: RunName, journal_file: JournalFile = None) -> None:
    """Carry a run out again from its record, offline, and compare the two byte for byte.

    Exit code 1 if the record does not follow from itself.
    """
    from runtime import ReplayError
    from runtime import replay as replayed

    record = _recorded(run, journal_file)
    try:
        again = replayed(record)
    except ReplayError as error:
        fail(str(error), FAILED)
    steps = sum(len(each.steps) for each in again.rounds)
    counts = [f"{steps} step{'s' * (steps != 1)}"]
    if len(again.rounds) > 1:
        counts.append(f"{len(again.rounds)} rounds")
    size = len(again.to_json().encode())
    say(f"run {again.id}: {', '.join(counts)}: the same again, {size:,} bytes")


def forget(
    before: Annotated[
        str, typer.Option("--before", metavar="DATE", help="Those started before this.")
    ] = "",
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="AGE", help="As 30d, 12h.")
    ] = "",
    keep: Annotated[
        int | None,
        typer.Option("--keep", metavar="N", min=0, help="All but the latest N."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    journal_file: JournalFile = None,
) -> None:
    """Delete runs of the journal that have ended; says how many first."""
    from .show import when

    if not (before or older_than) and keep is None:
        fail("say which: --before DATE, --older-than 30d or --keep N")
    kept = _journal(journal_file)
    limit = max((moment(each) for each in (before, older_than) if each), default="")
    known = kept.runs()
    gone = [
        each
        for at, each in enumerate(known)
        if not each.alive and (each.started < limit or (keep is not None and at >= keep))
    ]
    if not gone:
        remark("no such runs")
        return
    span = f"started {when(gone[-1].started)} to {when(gone[0].started)}"
    told = f"{len(gone)} of {len(known)} runs, {span}"
    if not yes:
        if not sys.stdin.isatty():
            fail(f"this deletes {told}; --yes does it")
        typer.confirm(f"Delete {told}?", abort=True, err=True)
    deleted = kept.forget(before=limit, keep=keep)
    remark(f"deleted {deleted} of {len(known)} runs")


COMMANDS: tuple[Callable[..., None], ...] = (runs, show, resume, rerun, replay, forget)


# --- parts of the commands ---------------------------------------------------------------------


def draw(plan: Plan, marks: Mapping[int, Mark], output: Path, *, dark: bool = False) -> None:
    """Write a picture of a plan in the format that the file's ending names."""
    from grammar import to_dot, to_mermaid, to_png, to_svg, topology

    data: str | bytes
    match output.suffix.lower():
        case ".svg":
            data = to_svg(plan, marks=marks, dark=dark)
        case ".png":
            data = to_png(plan, marks=marks, dark=dark)
        case ".dot" | ".gv":
            data = to_dot(plan, marks=marks, dark=dark)
        case ".mmd" | ".mermaid":
            data = to_mermaid(plan, marks=marks)
        case other:
            fail(
                f"{output}: can't draw {other or 'a file without ending'}; "
                "use .svg, .png, .dot or .mmd"
            )
    write(output, data)
    remark(f"{topology(plan)}, {len(plan)} steps, drawn to {output}")


def _summaries(
    state: str, worker: str, contains: str, since: str, most: int, file: Path | None
) -> list[RunSummary]:
    from runtime import RunState

    if state and state not in _STATES:
        fail(f"no run is ever {state!r}; possible: {', '.join(_STATES)}")
    kept = _journal(file)
    dead = state == "stopped"
    under_way = dead or state == "running"
    found = kept.runs(
        state=RunState.RUNNING if dead else RunState(state) if state else None,
        worker=worker,
        contains=contains,
        since=moment(since) if since else "",
        most=None if under_way else most,
    )
    return [each for each in found if not under_way or each.alive is not dead][:most]


def _journal(named: Path | None) -> Journal:
    """A journal that is there already: reading makes none."""
    kept = journal(named)
    if kept is None:
        fail("the journal is off ($CONDUCTOR_JOURNAL); --journal FILE names one")
    if not kept.path.exists():
        fail(f"{kept.path}: there is no journal yet; `conductor run` begins one")
    return kept


def _recorded(run: str, file: Path | None) -> Run:
    """The run that is meant."""
    from runtime import Run

    path = Path(run)
    if run == "-" or path.is_file():
        try:
            return Run.from_json(read(path))
        except ValueError as error:
            fail(f"{run}: not the record of a run: {str(error).splitlines()[0]}")
    return _journal(file).run(run)


def _pool_of(run: Run, named: Path | None) -> Callable[[Callable[[str], None]], Pool]:
    from .config import pool_of

    return partial(pool_of, run, named)


def _print_changes(old: Run, new: Run) -> None:
    """Say what is another than it was."""
    from grammar import diff

    from .show import short

    changes = diff(old.plan, new.plan) if old.plan and new.plan else ()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for change in changes:
        console.print(Text(visible(str(change)), "yellow"))
    again = sum(not step.reused for step in new.steps)
    told = f"{again} of {len(new.steps)} steps were done again"
    if old.answer is not None and new.answer is not None:
        changed = "is the same as" if old.answer == new.answer else "is not the one of"
        told += f"; the answer {changed} run {short(old.id)}"
    remark(told)
