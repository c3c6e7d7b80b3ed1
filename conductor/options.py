"""Options that several commands have, and what they make: bounds, journal, moments."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from .config import EMBEDDED, journal_file, pool_path
from .terminal import fail, remark

if TYPE_CHECKING:
    from runtime import Budget, Journal

    from .telemetry import Telemetry

_WHO, _BOUNDS, _RECORD = "Who works", "Bounds (else those of the pool file)", "Record and output"

PoolOption = Annotated[
    Path | None,
    typer.Option(
        "--pool",
        metavar="FILE",
        help="Pool file, or orchestra. [dim]Else conductor.toml, else embedded.[/dim]",
        parser=pool_path,
    ),
]
SendTelemetry = Annotated[
    bool,
    typer.Option("--telemetry", help="Send spans and metrics, as OTEL_* variables say."),
]
TeamOption = Annotated[
    Path | None,
    typer.Option(
        "--pool",
        metavar="FILE",
        help="Pool file. [dim]Else the one of the run.[/dim]",
        rich_help_panel=_WHO,
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="WORKER", help="Use only these workers.", rich_help_panel=_WHO),
]
Without = Annotated[
    list[str] | None,
    typer.Option(
        "--without", metavar="WORKER", help="Never use these workers.", rich_help_panel=_WHO
    ),
]
Tag = Annotated[
    list[str] | None,
    typer.Option(
        "--tag", metavar="TAG", help="Use only workers with these tags.", rich_help_panel=_WHO
    ),
]
WithoutTag = Annotated[
    list[str] | None,
    typer.Option(
        "--without-tag",
        metavar="TAG",
        help="Never use workers with these tags.",
        rich_help_panel=_WHO,
    ),
]
Fallback = Annotated[
    list[str] | None,
    typer.Option(
        "--fallback",
        metavar="WORKER",
        help="Stands in for any that fails.",
        rich_help_panel=_WHO,
    ),
]
PlannerOption = Annotated[
    str | None,
    typer.Option(
        "--planner", metavar="WORKER", help="The worker that plans.", rich_help_panel=_WHO
    ),
]
RouterOption = Annotated[
    str | None,
    typer.Option(
        "--router",
        metavar="PATH",
        help="Let a router pick one worker, no plan. [dim]Without PATH the one that comes with "
        "the package.[/dim]",
        rich_help_panel=_WHO,
    ),
]
Rounds = Annotated[
    int | None,
    typer.Option(
        "--rounds",
        metavar="N",
        min=1,
        help="Let the Conductor see the answer and plan again.",
        rich_help_panel=_BOUNDS,
    ),
]
Deadline = Annotated[
    float | None,
    typer.Option(
        "--deadline",
        metavar="SECONDS",
        min=0.001,
        help="Stop after this.",
        rich_help_panel=_BOUNDS,
    ),
]
Dollars = Annotated[
    float | None,
    typer.Option("--dollars", metavar="N", min=0, help="Most money.", rich_help_panel=_BOUNDS),
]
Tokens = Annotated[
    int | None,
    typer.Option(
        "--tokens", metavar="N", min=0, help="Most tokens, in and out.", rich_help_panel=_BOUNDS
    ),
]
Calls = Annotated[
    int | None,
    typer.Option(
        "--calls", metavar="N", min=0, help="Most calls of workers.", rich_help_panel=_BOUNDS
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps", metavar="N", min=1, help="Most steps of all plans.", rich_help_panel=_BOUNDS
    ),
]
Depth = Annotated[
    int | None,
    typer.Option(
        "--depth", metavar="N", min=0, help="Most runs inside runs.", rich_help_panel=_BOUNDS
    ),
]
JournalFile = Annotated[
    Path | None,
    typer.Option(
        "--journal",
        metavar="FILE",
        help="Where runs are kept. [dim]Else $CONDUCTOR_JOURNAL, else your own one.[/dim]",
        rich_help_panel=_RECORD,
    ),
]
NoJournal = Annotated[
    bool, typer.Option("--no-journal", help="Keep no record.", rich_help_panel=_RECORD)
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print the whole record as JSON.", rich_help_panel=_RECORD),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="No progress, just the result.", rich_help_panel=_RECORD),
]
Best = Annotated[
    bool,
    typer.Option(
        "--best",
        help="Without an answer, print what comes nearest to it.",
        rich_help_panel=_RECORD,
    ),
]


class RouterCommand(TyperCommand):
    """A command whose ``--router`` may stand without a path, before a query or at the end."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the embedded router where no path follows: what is no path is the query."""
        given = list(args)
        if "--" in given:
            given = given[: given.index("--")]
        for at, arg in enumerate(given):
            following = given[at + 1] if at + 1 < len(given) else ""
            if arg == "--router" and not _is_path(following):
                args = [*args[:at], f"--router={EMBEDDED}", *args[at + 1 :]]
        return super().parse_args(ctx, args)


def _is_path(text: str) -> bool:
    if not text or text.startswith("-") or any(map(str.isspace, text)):
        return bool(text) and os.path.isdir(text)
    return text == EMBEDDED or "/" in text or os.path.exists(text)


def bounded(
    budget: Budget,
    *,
    dollars: float | None = None,
    tokens: int | None = None,
    calls: int | None = None,
    seconds: float | None = None,
    steps: int | None = None,
    depth: int | None = None,
) -> Budget:
    """The budget, with what is given in place of its own."""
    from dataclasses import replace
    from decimal import Decimal

    asked: dict[str, Any] = {
        "dollars": None if dollars is None else Decimal(str(dollars)),
        "tokens": tokens,
        "calls": calls,
        "seconds": seconds,
        "steps": steps,
        "depth": depth,
    }
    return replace(budget, **{name: value for name, value in asked.items() if value is not None})


def journal(named: Path | None = None, off: bool = False) -> Journal | None:
    """The journal to use: the named one, or the one of the environment; None for none at all."""
    from runtime import Journal

    file = None if off else named or journal_file()
    return None if file is None else Journal(file)


_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@contextmanager
def sending() -> Iterator[Telemetry]:
    """Send what telemetry is told by OTLP, as the ``OTEL_*`` variables say; at the end it is said
    if not all was sent.
    """
    from .telemetry import Telemetry, problems

    try:
        telemetry = Telemetry.from_environment()
    except ModuleNotFoundError as error:
        fail(f"--telemetry: {error}")
    found = problems()
    try:
        yield telemetry
    finally:
        sent = telemetry.close()
        if found or not sent:
            why = found[0] if found else "the collector takes too long"
            remedy = "check OTEL_EXPORTER_OTLP_ENDPOINT"
            remark(f"not all telemetry was sent: {why}; {remedy}")


def moment(text: str, now: datetime | None = None) -> str:
    """Read a moment: a date, a date and time, or how long ago: ``30d``, ``12h``.

    Args:
        text: What is given; local time if it names no zone.
        now: From when ages count.

    Returns:
        The moment as the journal writes it: ISO 8601, UTC, milliseconds.

    Raises:
        ValueError: If it is none of these.
    """
    try:
        if age := _AGE.fullmatch(text.strip()):
            seconds = float(age[1]) * _SECONDS[age[2]]
            when = (now or datetime.now(UTC)) - timedelta(seconds=seconds)
        else:
            when = datetime.fromisoformat(text.strip())
        return when.astimezone(UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError):
        told = "write a date (2026-05-31), a date and time, or an age (30d, 12h, 45m)"
        raise ValueError(f"{text!r} is no moment; {told}") from None
