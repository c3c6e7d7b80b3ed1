"""A run on paper: who did what, saw what, said what, when and for how much; and a list of runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from grammar import to_terminal, topology, visible
from runtime import (
    Account,
    Attempt,
    Budget,
    Failure,
    Pick,
    PlanAttempt,
    Round,
    Run,
    RunState,
    RunSummary,
    StepResult,
    StepState,
    Terms,
    ToolTurn,
    flattened,
)

COLOURS: Mapping[str, str] = {
    "waiting": "dim",
    "running": "cyan",
    "suspended": "magenta",
    "done": "green",
    "planned": "green",
    "failed": "red",
    "skipped": "yellow",
    "stopped": "yellow",
    "cancelled": "yellow",
}
_SIGNS = {
    "done": "✓",
    "failed": "✗",
    "skipped": "⊘",
    "waiting": "◌",
    "suspended": "◍",
    "running": "◐",
}
_EXCERPT = 300
"""Characters of a text that is not asked for in full."""


def shown(failure: Failure | None) -> str:
    """A failure as one line that is safe to print."""
    return visible(failure.message) if failure else ""


def short(run: str) -> str:
    """The beginning of an id, by which it can be named; runs inside steps keep their place."""
    return run[:8]


def money(dollars: Decimal) -> str:
    """Dollars, as exact as matters."""
    if not dollars:
        return "$0"
    if dollars < Decimal("0.0001"):
        return "<$0.0001"
    return f"${dollars:,.2f}" if dollars >= 1 else f"${dollars:.4f}"


def cost_of(account: Account) -> str:
    """What calls cost, and for how many that is not known; empty if they cost nothing."""
    known = money(account.dollars) if account.dollars else ""
    calls = "1 call" if account.unpriced == 1 else f"{account.unpriced} calls"
    unknown = f"cost unknown for {calls}" if account.unpriced else ""
    return " + ".join(filter(None, (known, unknown)))


def everything(run: Run) -> Account:
    """What a run took in all."""
    return sum(run.accounts.values(), run.orchestration)


def incidents(run: Run) -> list[str]:
    """Calls that came to nothing, and who stood in for whom, in a few words each."""
    lost = everything(run).failed
    told = [f"{lost} call{'s' * (lost != 1)} failed"] if lost else []
    for each in dict.fromkeys(_stand_ins(run)):
        told.append(each)
    return told


def pick_line(pick: Pick) -> str:
    """Whom a router picked, and how sure it was, in a line."""
    others = sorted(pick.probabilities.items(), key=lambda each: -each[1])
    runners_up = [f"{name} {chance:.0%}" for name, chance in others if name != pick.worker][:3]
    sure = f"{pick.probabilities.get(pick.worker, 0):.0%}"
    role = f" as {pick.role}" if pick.role is not None else ""
    why = " (suggested)" if pick.suggested else ""
    after = f" · {', '.join(runners_up)}" if runners_up else ""
    return visible(f"Router · {pick.worker} {sure}{role}{why}{after}")


def pick_table(pick: Pick, width: int = 30) -> Table:
    """The distribution of a router's decision as bars, from the most probable worker on."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    for chances, chosen in ((pick.probabilities, pick.worker), (pick.roles, pick.role)):
        for name, chance in sorted(chances.items(), key=lambda each: -each[1]):
            style = "bold green" if name == chosen else "dim"
            bar = "█" * round(chance * width) or "▏"
            table.add_row(
                Text(visible(name), style), Text(f"{chance:.1%}", style), Text(bar, style)
            )
    return table


def _stand_ins(run: Run) -> Iterator[str]:
    for each in run.rounds:
        for step in each.steps:
            planned = each.plan.steps[step.index].worker if each.plan else step.worker
            if step.state is StepState.DONE and step.worker != planned and not step.reused:
                yield f"{step.worker} stood in for {planned}"
            if step.run is not None:
                yield from _stand_ins(step.run)


# --- one run -----------------------------------------------------------------------------------


def show(run: Run, console: Console, *, messages: bool = False, full: bool = False) -> None:
    """Print everything about a run.

    Args:
        run: The run.
        console: Where to, and how wide.
        messages: Also what each step saw, in full.
        full: Completions in full, not their beginning.
    """
    console.print(_head(run))
    if run.plan is not None:
        plan, states = flattened(run)
        console.print()
        console.print(Text(_shape(run), "bold"))
        drawing = to_terminal(
            plan, marks=states, width=console.width, colour=console.is_terminal
        ).rstrip("\n")
        console.print(Text.from_ansi(drawing), soft_wrap=True)
    for block in _story(run, "", messages=messages, full=full):
        console.print()
        console.print(block)
    accounts = _accounts(run)
    if accounts.row_count:
        console.print()
        console.print(accounts)
    bars = _bars(run, "", 0.0)
    if bars:
        console.print()
        for line in _waterfall(bars, run.seconds, console.width):
            console.print(line, soft_wrap=True)


def _head(run: Run) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    state = Text(run.state, COLOURS.get(run.state, "cyan"))
    grid.add_row("run", Text(run.id, "bold"))
    grid.add_row("query", visible(run.query, "\n"))
    facts = [f"{run.seconds:.1f} s", f"started {when(run.started)}"]
    cost = cost_of(everything(run))
    if run.state is RunState.RUNNING:
        facts[0] = f"so far {facts[0]}"
    grid.add_row("state", state + " · " + " · ".join(filter(None, (*facts, cost))))
    if run.failure is not None:
        grid.add_row("because", Text(shown(run.failure), "red"))
    if run.state is RunState.SUSPENDED:
        names = ", ".join(visible(call.name) for call in run.open_calls)
        grid.add_row("waits for", Text(names, "magenta"))
    if (nearest := _nearest(run)) is not None:
        grid.add_row("answer" if run.answer is not None else "nearest", nearest)
    bounds = budget_words(run.budget)
    if bounds:
        grid.add_row("bounds", ", ".join(bounds))
    pool = ", ".join(run.workers) + (f"  ({visible(run.pool)})" if run.pool else "")
    grid.add_row("pool", visible(pool))
    if run.router:
        grid.add_row("router", visible(run.router))
    if run.parent:
        grid.add_row("repeats", f"{run.parent} in part")
    return grid


def _nearest(run: Run) -> str | None:
    """Which step gave the answer, or came nearest to one."""
    best = run.best
    if best is None:
        return None
    planned = [each for each in run.rounds if each.plan is not None]
    at = next(at for at, each in enumerate(planned, 1) if any(best is x for x in each.steps))
    number = f"R{at}.{best.index}" if len(planned) > 1 else str(best.index)
    return f"step {number}, {visible(best.worker)}"


def budget_words(budget: Budget) -> list[str]:
    """The limits that there are, in words."""
    told = [money(budget.dollars)] if budget.dollars is not None else []
    for name in ("tokens", "calls", "steps"):
        most = getattr(budget, name)
        if most is not None:
            told.append(f"{most:,} {name}")
    if budget.seconds is not None:
        told.append(f"{budget.seconds:g} s")
    if budget.depth != Budget().depth:
        told.append(f"depth {budget.depth}")
    return told


def _shape(run: Run) -> str:
    told = []
    for each in run.rounds:
        if each.plan is None:
            continue
        steps = "1 step" if len(each.plan) == 1 else f"{len(each.plan)} steps"
        told.append(f"{topology(each.plan)} · {steps}")
    if len(told) == 1:
        return f"Plan · {told[0]}"
    return "Plans · " + "; ".join(f"round {at}: {each}" for at, each in enumerate(told, 1))


def _story(run: Run, prefix: str, *, messages: bool, full: bool) -> Iterator[RenderableType]:
    """Everything that was written and done, in order; a run inside a step right before it."""
    planned = sum(each.plan is not None for each in run.rounds)
    for number, each in enumerate(run.rounds, 1):
        name = f"{prefix}R{number}." if planned > 1 else prefix
        if len(run.rounds) > 1:
            who = "the verifier accepted" if run.router else "the Conductor keeps"
            kept = f": {who} the answer" if each.kept else ""
            yield Text(f"{'Turn' if run.router else 'Round'} {number}{kept}", "bold")
        if each.pick is not None:
            yield _picked(each.pick, prefix, full)
        for attempt in each.planning:
            yield _planning(attempt, prefix, full or each.plan is None)
        for step in each.steps:
            if step.run is not None:
                inner = f"{name}{step.index}."
                yield from _story(step.run, inner, messages=messages, full=full)
            yield _step(step, each, name, messages, full)


class _Block:
    """A headline and, below it, lines of a word and what it is about, with a hanging indent."""

    def __init__(self, headline: Text) -> None:
        self._headline = headline
        self._lines = Table.grid(padding=(0, 1))
        self._lines.add_column(width=2)
        self._lines.add_column(style="dim", width=9, no_wrap=True)
        self._lines.add_column(overflow="fold")

    def add(self, word: str, text: str, style: str = "") -> None:
        self._lines.add_row("", word, Text(text.rstrip(), style))

    def add_lost(self, attempts: Sequence[Attempt]) -> None:
        for each in attempts:
            told = f"{visible(each.worker)} after {each.seconds:.1f} s: {shown(each.failure)}"
            self.add("lost", told, "yellow")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._headline
        if self._lines.row_count:
            yield self._lines


def _picked(pick: Pick, prefix: str, full: bool) -> _Block:
    """Why a worker was picked."""
    inside = f" {prefix.rstrip('.')}" if prefix else ""
    line = Text("✓", "green").append(f" router{inside} {visible(pick.backbone)}", "bold")
    line.append(f" · {pick.seconds:.2f} s · {pick.tokens:,} tokens read", "dim")
    block = _Block(line)
    how = "drawn" if pick.sampled else "most probable"
    block.add("picked", f"{visible(pick.worker)}, {how}")
    chances = sorted(pick.probabilities.items(), key=lambda each: -each[1])
    shown_ones = chances if full else chances[:5]
    block.add("of", " · ".join(f"{visible(name)} {chance:.1%}" for name, chance in shown_ones))
    if pick.role is not None:
        why = "as the thinker suggested" if pick.suggested else how
        roles = " · ".join(f"{name} {chance:.1%}" for name, chance in pick.roles.items())
        block.add("role", f"{pick.role}, {why}  ({roles})")
    if pick.unknown:
        block.add("unknown", f"to the router: {visible(', '.join(pick.unknown))}", "yellow")
    return block


def _planning(attempt: PlanAttempt, prefix: str, full: bool) -> _Block:
    inside = f" {prefix.rstrip('.')}" if prefix else ""
    good = attempt.failure is None and not attempt.diagnostics
    line = Text("✓" if good else "✗", "green" if good else "red")
    line.append(f" planning{inside} {visible(attempt.worker)}", "bold")
    line.append(" · " + " · ".join([f"{attempt.seconds:.1f} s", *_took(attempt)]), "dim")
    block = _Block(line)
    block.add_lost(attempt.lost)
    if attempt.failure is not None:
        block.add("failed", shown(attempt.failure), "red")
    elif attempt.diagnostics:
        block.add("no plan", visible(attempt.diagnostics[0].message), "yellow")
    if attempt.text and (full or not good):
        block.add("wrote", _extract(attempt.text, full))
    return block


def _step(step: StepResult, one: Round, prefix: str, messages: bool, full: bool) -> _Block:
    line = Text(f"{_SIGNS[step.state]} ", COLOURS[step.state])
    line.append(f"{prefix}{step.index} {visible(step.worker)}", "bold")
    if step.state is StepState.SKIPPED:
        why = shown(step.failure) or f"step {step.because_of} failed, which it reads"
        return _Block(line.append(f" · skipped: {why}", "yellow"))
    facts = [f"{step.seconds:.1f} s from {step.started_s:.1f} s", *_took(step)]
    if step.first_text_s is not None:
        facts.insert(1, f"first text after {step.first_text_s:.1f} s")
    block = _Block(line.append(" · " + " · ".join(facts), "dim"))
    planned = one.plan.steps[step.index] if one.plan else None
    if planned is not None and planned.worker != step.worker:
        block.add("stands in", f"for {visible(str(planned.worker))}")
    asked = step.messages[-1].content if step.messages else ""
    if planned is not None and planned.subtask != asked:
        block.add("does", visible(planned.subtask))
    block.add_lost(step.lost)
    if messages:
        for each in step.messages:
            block.add(each.role, visible(each.content, "\n\t"), "cyan")
    elif step.messages:
        count = "1 message" if len(step.messages) == 1 else f"{len(step.messages)} messages"
        letters = sum(len(each.content) for each in step.messages)
        block.add("saw", f"{count}, {letters:,} characters", "dim")
    for turn in step.turns:
        _add_turn(block, turn, full)
    if step.failure is not None:
        block.add("failed", shown(step.failure), "red")
    if step.text:
        block.add("said", _extract(step.text, full))
    return block


def _add_turn(block: _Block, turn: ToolTurn, full: bool) -> None:
    """What was said and asked for, call by call, with what came of it."""
    block.add_lost(turn.lost)
    if turn.text:
        block.add("said", _extract(turn.text, full))
    for call, result in zip(turn.calls, turn.results, strict=True):
        block.add("calls", f"{visible(call.name)} {_extract(call.arguments, full)}", "magenta")
        if result is None:
            block.add("waits", f"for the result of {call.id}", "magenta")
        else:
            block.add("got", _extract(result, full))
    block.add("took", " · ".join([f"{turn.seconds:.1f} s", *_took(turn)]), "dim")


def _took(done: StepResult | PlanAttempt | ToolTurn) -> list[str]:
    """Tokens, dollars and where it was taken from, as far as they are known."""
    told = []
    if done.usage is not None:
        told.append(f"tokens in/out {done.usage.input_tokens:,}/{done.usage.output_tokens:,}")
    if done.reused:
        told.append(
            "from the cache" if done.reused == "cache" else f"taken over from {short(done.reused)}"
        )
    elif done.dollars:
        told.append(money(done.dollars))
    return told


def _extract(text: str, full: bool) -> str:
    if full:
        return visible(text, "\n\t")
    line = visible(" ".join(text.split()))
    if len(line) <= _EXCERPT:
        return line
    return f"{line[:_EXCERPT].rstrip()} … ({len(text):,} characters)"


def _accounts(run: Run) -> Table:
    """What each worker took, orchestration apart."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("worker", overflow="fold")
    for title in ("calls", "failed", "tokens in", "cached", "out", "dollars"):
        table.add_column(title, justify="right", no_wrap=True)
    planning = run.orchestration
    if planning.calls:
        _account(table, Text(f"{visible(run.planner)} (planning)", "bold"), planning)
    for worker, each in run.accounts.items():
        _account(table, Text(visible(worker), "bold"), each)
    if table.row_count > 1:
        _account(table, Text("total", "dim"), everything(run))
    return table


def _account(table: Table, name: Text, took: Account) -> None:
    dollars = f"{took.dollars:,.6f}".rstrip("0").rstrip(".") or "0"
    if took.unpriced:
        dollars = "?" if took.unpriced == took.calls else f"{dollars} + ?"
    used = took.usage
    counts = (used.input_tokens, used.cached_tokens, used.output_tokens)
    failed = Text(str(took.failed), "yellow" if took.failed else "dim")
    table.add_row(name, str(took.calls), failed, *(f"{each:,}" for each in counts), dollars)


@dataclass(frozen=True, slots=True)
class _Bar:
    """One line of the waterfall; times are seconds from the start of the whole run."""

    name: str
    start: float
    first: float
    """When its text began."""
    end: float
    state: str
    """Of the step; empty for the line between two rounds."""


def _bars(run: Run, prefix: str, zero: float) -> list[_Bar]:
    bars: list[_Bar] = []
    planned = sum(each.plan is not None for each in run.rounds)
    end = 0.0
    for number, each in enumerate(run.rounds, 1):
        name = f"{prefix}R{number}." if planned > 1 else prefix
        if number > 1:
            bars.append(_Bar(f"round {number}", zero + end, zero + end, zero + end, ""))
        own = [step for step in each.steps if step.messages and step.reused in ("", "cache")]
        # An attempt to plan tells how long it took; they come one after the other, and the steps
        # begin as soon as the last one is read.
        took = sum(attempt.seconds for attempt in each.planning)
        took += each.pick.seconds if each.pick is not None else 0.0
        start = max(end, min((step.started_s for step in own), default=end + took) - took)
        if each.pick is not None:
            end = start + each.pick.seconds
            label = f"{prefix.rstrip('.')} router".strip()
            bars.append(_Bar(label, zero + start, zero + start, zero + end, "done"))
            start = end
        for attempt in each.planning:
            end = start + attempt.seconds
            good = attempt.failure is None and not attempt.diagnostics
            label = f"{prefix.rstrip('.')} planning".strip()
            state = "done" if good else "failed"
            bars.append(_Bar(label, zero + start, zero + start, zero + end, state))
            start = end
        for step in own:
            label = f"{name}{step.index} {visible(step.worker)}"
            for turn in step.turns:
                begun, first = zero + turn.started_s, turn.started_s + (turn.first_text_s or 0.0)
                ended = begun + turn.seconds
                bars.append(_Bar(label, begun, zero + first, ended, StepState.SUSPENDED))
            if step.state in (StepState.SUSPENDED, StepState.RUNNING):
                continue
            begun, stop = step.started_s, step.started_s + step.seconds
            first = begun + (step.first_text_s or 0.0)
            if step.run is not None:
                bars += _bars(step.run, f"{name}{step.index}.", zero + begun)
            bars.append(_Bar(label, zero + begun, zero + first, zero + stop, step.state))
            end = max(end, stop)
    return bars


def _waterfall(bars: Sequence[_Bar], seconds: float, width: int) -> Iterator[Text]:
    """Draw when each step was under way: light until its text began, then solid."""
    total = max([seconds, *(bar.end for bar in bars)]) or 1.0
    column = min(24, max(cell_len(bar.name) for bar in bars))
    room = max(10, width - column - 11)

    def place(at: float) -> int:
        return min(room, max(0, round(at / total * room)))

    for bar in bars:
        name = set_cell_size(bar.name, column)
        if not bar.state:
            yield Text(f"{name}  {'┄' * room}", "dim")
            continue
        start = min(place(bar.start), room - 1)
        first, end = place(bar.first), max(place(bar.end), start + 1)
        light = max(0, min(first, end) - start)
        line = Text(f"{name}  ").append(" " * start)
        line.append("░" * light, COLOURS[bar.state])
        line.append("█" * (end - start - light), COLOURS[bar.state])
        yield line.append(f"{' ' * (room - end)}  {bar.end - bar.start:5.1f} s", "dim")
    told = f"{total:.1f} s"
    yield Text(f"{' ' * column}  0 s{' ' * (room - 3 - len(told))}{told}", "dim")


# --- many runs ---------------------------------------------------------------------------------


def state_of(summary: RunSummary) -> str:
    """The state, but "stopped" for a run whose process is gone."""
    gone = summary.state is RunState.RUNNING and not summary.alive
    return "stopped" if gone else str(summary.state)


_ROOMY, _NARROW = 110, 80
"""Cells of a terminal in which a line has room for all, and below which only for some."""


def runs_table(summaries: Sequence[RunSummary], width: int = _ROOMY) -> Table:
    """One line for each run; what a narrow terminal has no room for is left out."""
    roomy, priced = width >= _ROOMY, any(each.dollars for each in summaries)
    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, 2 if roomy else 1, 0, 0),
        header_style="dim",
        expand=True,
    )
    for title in ("run", "started", "state"):
        table.add_column(title, no_wrap=True)
    for title in ("seconds", "steps") if roomy else ("s", "n"):
        table.add_column(title, justify="right", no_wrap=True)
    if width >= _NARROW:
        most = 28 if roomy else 14
        table.add_column("workers", overflow="ellipsis", no_wrap=True, max_width=most)
    if priced:
        table.add_column("cost", justify="right", no_wrap=True)
    table.add_column("query", overflow="ellipsis", no_wrap=True, ratio=1)
    for each in summaries:
        state = state_of(each)
        ended = each.state is not RunState.RUNNING
        table.add_row(
            Text(short(each.id), "bold"),
            when(each.started),
            Text(state, COLOURS.get(state, "cyan")),
            f"{each.seconds:.1f}" if ended else "",
            str(each.steps) if each.steps else "",
            *([visible(", ".join(each.workers))] if width >= _NARROW else []),
            *([money(each.dollars) if each.dollars else ""] if priced else []),
            visible(" ".join(each.query.split())[:200]),
        )
    return table


def when(started: str, now: datetime | None = None) -> str:
    """A moment of the record in local time: shorter, the nearer it is."""
    try:
        at = datetime.fromisoformat(started).astimezone()
    except ValueError:
        return visible(started)
    today = (now or datetime.now()).astimezone()
    if at.date() == today.date():
        return f"{at:%H:%M}"
    if at.year == today.year:
        return f"{at:%d %b %H:%M}"
    return f"{at:%d %b %Y}"


# --- the terms of a worker ---------------------------------------------------------------------


def terms_words(terms: Terms) -> list[str]:
    """What is not as it is for every worker, in a few words each."""
    usual = Terms()
    told = []
    if terms.concurrency:
        told.append(f"{terms.concurrency} at once")
    if terms.requests_per_minute:
        told.append(f"{terms.requests_per_minute:,}/min")
    if terms.tokens_per_minute:
        told.append(f"{terms.tokens_per_minute:,} tokens/min")
    if terms.price is not None:
        price = (f"${each.normalize():f}" for each in (terms.price.input, terms.price.output))
        told.append(f"{'/'.join(price)} per M tokens")
    if terms.retries != usual.retries:
        told.append("no retries" if not terms.retries else f"{terms.retries} retries")
    for name in ("first_text_s", "silence_s", "call_s"):
        if (seconds := getattr(terms, name)) is not None:
            told.append(f"{name.removesuffix('_s').replace('_', ' ')} {seconds:g} s")
    if terms.fallback:
        told.append(f"else {', '.join(map(visible, terms.fallback))}")
    return told
