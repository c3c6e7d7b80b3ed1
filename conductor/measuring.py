"""A collection of labels on the terminal: how far each worker is, how right, how fast, how dear."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from time import monotonic

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from grammar import visible

_EVERY_S = 10.0
"""How often a line is written where there is no terminal."""


@dataclass(slots=True)
class _Lane:
    """One worker."""

    wanted: int
    done: int = 0
    """Labels that are there, earlier ones included."""
    failed: int = 0
    score: float = 0.0


class Measuring:
    """Follows a collection: a live view in a terminal, a line now and then elsewhere.

    Use it as a context manager and tell it of each label.

    Args:
        console: Where to.
        wanted: How many labels of each worker there will be, earlier ones included.
        clock: Seconds from any fixed moment.
    """

    def __init__(
        self,
        console: Console,
        wanted: Mapping[str, int],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._console = console
        self._lanes = {name: _Lane(count) for name, count in wanted.items()}
        self._clock = clock
        self._zero = self._told = clock()
        self._asked = 0
        self._dollars = Decimal(0)
        self._unpriced = 0
        self._live: Live | None = None

    def __enter__(self) -> Measuring:
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._view, console=self._console, refresh_per_second=4
            )
            self._live.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._live is not None:
            self._live.refresh()
            self._live.__exit__(None, None, None)
            self._live = None
        else:
            self._line(over=True)

    def take_up(self, worker: str, score: float) -> None:
        """A label is there from before."""
        if lane := self._lanes.get(worker):
            lane.done += 1
            lane.score += score

    def heard(self, worker: str, score: float | None, paid: Decimal, *, priced: bool) -> None:
        """A call has ended.

        Args:
            worker: Whose.
            score: None if it failed for technical reasons.
            paid: Dollars.
            priced: Whether its price is known.
        """
        lane = self._lanes[worker]
        self._asked += 1
        self._dollars += paid
        self._unpriced += not priced
        if score is None:
            lane.failed += 1
        else:
            lane.done += 1
            lane.score += score
        if self._live is None and self._clock() - self._told >= _EVERY_S:
            self._line()

    def _line(self, *, over: bool = False) -> None:
        self._told = self._clock()
        self._console.print(Text(self._state(over=over), style="dim"), soft_wrap=True)

    def _state(self, *, over: bool = False) -> str:
        lanes = self._lanes.values()
        done, wanted = sum(each.done for each in lanes), sum(each.wanted for each in lanes)
        failed = sum(each.failed for each in lanes)
        seconds = self._clock() - self._zero
        parts = [f"{done:,} of {wanted:,} labels"]
        if self._asked and seconds > 0:
            rate = self._asked / seconds
            parts.append(f"{rate:.1f} a second")
            if not over and (left := wanted - done - failed):
                parts.append(f"{_time(left / rate)} left")
        parts.append(f"${self._dollars:.4f}" if self._dollars else "$0")
        if self._unpriced:
            calls = "call" if self._unpriced == 1 else "calls"
            parts[-1] += f" + cost unknown for {self._unpriced:,} {calls}"
        if failed:
            parts.append(f"{failed:,} failed")
        return " · ".join(parts)

    def _view(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for _ in range(4):
            table.add_column(no_wrap=True)
        for name, lane in self._lanes.items():
            right = f"{lane.score / lane.done:.0%} right" if lane.done else ""
            told = f"{lane.done:,}/{lane.wanted:,}"
            if lane.failed:
                told += f", {lane.failed:,} failed"
            bar = ProgressBar(max(1, lane.wanted), lane.done + lane.failed, width=30)
            table.add_row(Text(visible(name), "bold"), bar, told, Text(right, "dim"))
        return Group(table, Text(self._state(), style="dim"))


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
