"""Pictures of a Conductor's training: what it writes, whom it names, and what that pays.

    python -m training.conductor_pictures runs/conductor

draws them from the logs in the folder, at any time, also of a training that is under way. They read
in grey, and text stays text.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conductor.config import TRAINED
from grammar import to_svg, to_terminal

from .intervals import Floats
from .learned import (
    STAGES,
    Form,
    Sample,
    Second,
    against_the_rest,
    drawn,
    families_of,
    forms_over_time,
    last_third,
    named,
    paid,
    places_of,
    read_rows,
    right_over_time,
    sample_of,
    second_rounds,
    second_rounds_over_time,
    stages,
    trend,
    typical,
    workers_over_time,
    worth_of,
)
from .report import rendered
from .router_pictures import INK, SHADES, bare

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "pictures"
PLANS = "plans.md"
PICTURES: Mapping[str, str] = {
    "curves": "Each update, and the mean of those round it (bold).",
    "forms": "What it writes, by family: shares of the forms of plans over the updates; one "
    "that names somebody who is not there is no plan. The line is the share of right answers; "
    "ticks below are the updates in which the family was asked.",
    "workers": "Whom it names, by family: shares of the workers over the updates. Of questions of "
    "several parts, the plans that take them apart, by step. Questions offer workers by lot, so "
    "none can have all. What there are fewer than 20 plans of is left out.",
    "choices": "Whom it names of those who are offered, in the first and in the last fifth of a "
    "family's questions; and how often the answer was right with each worker, all along.",
    "pays": "Why it writes what it writes: share of right answers of each form of plan in the last "
    "third of the updates, with Wilson's 95 % intervals (grey: fewer than ten). On the right, the "
    "most frequent form less the other plans that were written for the same questions.",
    "rounds": "What second rounds made of the first one's answer, by family, over the updates. "
    "Only trainings in two rounds have them.",
    "plans": "The most frequent kind of plan (form and workers) of each family at the start, in "
    "the middle and at the end: fifths of its questions.",
}
"""What each picture shows, by its name."""

_FEWEST = 20
"""Shares of fewer plans are not drawn over the updates."""
_BLUE, _PALE = "#0b5fa5", "#9dbfdc"
_FORMS: Mapping[Form, tuple[str, str]] = {
    Form.HANDED_ON: ("#cfe2f1", ""),
    Form.REWORDED: ("#f3e2ac", ""),
    Form.CHECKED: ("#f2a33a", ""),
    Form.IN_TWO: ("#0b5fa5", ""),
    Form.IN_MORE: ("#08304f", ""),
    Form.BEST_OF_N: ("#b5523b", ""),
    Form.OTHER: ("#5e8c4a", ""),
    Form.KEPT: ("#a78bc0", ""),
    Form.NO_PLAN: ("#8a8a8a", "////"),
}
"""Colour and hatch of each."""
_SECONDS: Mapping[Second, tuple[str, str]] = {
    Second.KEPT_RIGHT: ("#0b5fa5", ""),
    Second.STAYED_RIGHT: ("#7fb8e0", ""),
    Second.MENDED: ("#5e8c4a", ""),
    Second.STAYED_WRONG: ("#f2f2f2", ""),
    Second.KEPT_WRONG: ("#d9d9d9", ""),
    Second.SPOILT: ("#b5523b", ""),
    Second.NO_PLAN: ("#8a8a8a", "////"),
}


# --- curves ---------------------------------------------------------------------------------------


def _width(updates: int) -> float:
    """How far curves are smoothed, in updates."""
    return max(1.0, updates / 25)


def curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw reward, parse rate and the like over the updates.

    Args:
        rows: Of the metrics. What is null is left out.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    shown: list[tuple[str, str, tuple[float | None, float | None]]] = [
        ("reward", "reward", (0, 1)),
        ("correct", "right answers, of valid plans", (0, 1)),
        ("parse", "valid plans", (None, 1)),
        ("flat", "groups without variance", (0, 1)),
        ("entropy", "entropy, nats a token", (0, None)),
        ("steps", "steps of a plan", (1, None)),
        ("tokens", "tokens of a completion", (0, None)),
        ("seconds", "seconds of an update", (0, None)),
    ]
    figure = Figure(figsize=(10.4, 4.6), layout="constrained")
    panels = list(figure.subplots(2, 4).flat)
    at = np.array([row["update"] + 1 for row in rows])
    for panel, (name, title, (low, high)) in zip(panels, shown, strict=True):
        values = np.array([row.get(name) for row in rows], np.float64)  # None becomes NaN
        panel.plot(at, values, color=_PALE, lw=0.8, marker=".", ms=2.5)
        mean = trend(at, values, at, _width(len(at)))
        if np.isfinite(mean).any():
            panel.plot(at, mean, color=_BLUE, lw=2)
            panel.annotate(
                f"{mean[-1]:.3g}",
                (at[-1], mean[-1]),
                xytext=(4, 0),
                textcoords="offset points",
                fontsize=8,
                va="center",
                color=_BLUE,
            )
        panel.set_title(title, fontsize=9, loc="left")
        panel.set_ylim(bottom=low, top=high)
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        panel.tick_params(labelsize=8)
        bare(panel)
    for panel in panels[4:]:
        panel.set_xlabel("update", fontsize=8)
    return figure


# --- over the updates, by family ------------------------------------------------------------------


def _grid(samples: Sequence[Sample]) -> Floats:
    """Where trends of samples are told: from the first to the last."""
    seen = [each.update for each in samples]
    return np.linspace(min(seen) - 0.5, max(seen) + 0.5, 121)


def _panels(simple: int, chains: int, columns: int = 4) -> tuple[Figure, list[Any]]:
    """Panels for simple families and, from a new row on, for those of several parts."""
    from matplotlib.figure import Figure

    above, below = -(-simple // columns), -(-chains // columns)
    figure = Figure(
        figsize=(0.6 + 2.45 * columns, 0.9 + 1.75 * (above + below)), layout="constrained"
    )
    panels = figure.subplots(above + below, columns, squeeze=False, sharex=True, sharey=True)
    found = [*panels[:above].flat][:simple] + [*panels[above:].flat][:chains]
    for column in panels.T:
        there = [panel for panel in column if panel in found]
        for panel in column:
            if panel not in there:
                panel.set_axis_off()
        if there:
            there[-1].tick_params(labelbottom=True)
    return figure, found


def _smoothing(samples: Sequence[Sample]) -> float:
    """How far shares are smoothed, in updates: a family is not asked in each."""
    return 2 * _width(1 + max(each.update for each in samples))


def _stack(
    panel: Any, grid: Floats, shares: Floats, styles: Sequence[tuple[str, str]], title: str
) -> None:
    """Draw shares, (G, K), one upon the other."""
    low = np.zeros(len(grid))
    for share, (colour, hatch) in zip(shares.T, styles, strict=True):
        high = low + share
        if share.max(initial=0) > 0.002:
            panel.fill_between(
                grid + 1, low, high, facecolor=colour, hatch=hatch, edgecolor="white", lw=0.5
            )
        low = high
    panel.set_title(title, fontsize=8.5, loc="left")
    panel.set_ylim(0, 1)
    panel.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    panel.tick_params(labelsize=7.5)
    bare(panel)


def _legend(figure: Figure, styles: Mapping[str, tuple[str, str]], *lines: Any) -> None:
    from matplotlib.patches import Patch

    spots = [
        Patch(facecolor=colour, hatch=hatch, edgecolor=INK, lw=0.4, label=name)
        for name, (colour, hatch) in styles.items()
    ]
    handles = [*spots, *lines]
    # Inches of 8-point letters, and of what stands round each name: legends are not broken of
    # themselves, and one that is wider than its figure is cut off.
    wide = sum(0.06 * len(str(each.get_label())) + 0.55 for each in handles)
    rows = max(1, math.ceil(wide / figure.get_figwidth()))
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=math.ceil(len(handles) / rows),
        fontsize=8,
        frameon=False,
    )


def _seen(panel: Any, samples: Sequence[Sample]) -> None:
    """Mark the updates in which there is anything to tell."""
    at = sorted({each.update + 1 for each in samples})
    panel.plot(at, [0] * len(at), "|", color=INK, ms=4, mew=0.6, clip_on=False, zorder=5)


def forms(samples: Sequence[Sample]) -> Figure:
    """Draw the shares of the forms over the updates, a panel a family, with the right answers."""
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import withStroke

    families, width = families_of(samples), _smoothing(samples)
    simple = sum(mine[0].parts == 1 for mine in families.values())
    figure, panels = _panels(simple, len(families) - simple)
    halo = [withStroke(linewidth=3.4, foreground="white")]
    for panel, (family, mine) in zip(panels, families.items(), strict=True):
        grid = _grid(mine)
        shares = forms_over_time(mine, grid, width)
        _stack(panel, grid, shares, [_FORMS[form] for form in Form], f"{family} ({len(mine):,})")
        right = right_over_time(mine, grid, width)
        panel.plot(grid + 1, right, color=INK, lw=1.5, path_effects=halo)
        _seen(panel, mine)
    panels[0].set_xlim(0.5, 1.5 + max(each.update for each in samples))
    there = {each.form for each in samples}
    line = Line2D([], [], color=INK, lw=1.5, label="right answers")
    _legend(figure, {str(form): _FORMS[form] for form in Form if form in there}, line)
    figure.supxlabel("update: family (completions)", fontsize=8.5)
    return figure


def rounds(found: Sequence[tuple[Sample, Second]]) -> Figure:
    """Draw what second rounds made of first answers, over the updates, a panel a family."""
    samples = [each for each, _ in found]
    families, width = families_of(samples), _smoothing(samples)
    simple = sum(mine[0].parts == 1 for mine in families.values())
    figure, panels = _panels(simple, len(families) - simple)
    for panel, (family, mine) in zip(panels, families.items(), strict=True):
        grid = _grid(mine)
        there = [pair for pair in found if pair[0].family == family]
        shares = second_rounds_over_time(there, grid, width)
        _stack(panel, grid, shares, list(_SECONDS.values()), f"{family} ({len(mine):,})")
        _seen(panel, mine)
    panels[0].set_xlim(0.5, 1.5 + max(each.update for each in samples))
    kinds = {kind for _, kind in found}
    styles = {str(kind): style for kind, style in _SECONDS.items() if kind in kinds}
    _legend(figure, styles)
    figure.supxlabel("update: family (second rounds)", fontsize=8.5)
    return figure


def _shade(worker: int) -> tuple[str, str]:
    return SHADES[worker % len(SHADES)], ("", "////", "....")[worker // len(SHADES) % 3]


def workers(samples: Sequence[Sample], roster: Sequence[str]) -> Figure:
    """Draw the shares of the workers over the updates: of simple families, and of steps.

    Raises:
        ValueError: If there is no valid plan.
    """
    seen = {place: len(place.of(samples)) for place in places_of(samples)}
    least = min(_FEWEST, max(seen.values()))
    places = [place for place, count in seen.items() if count >= least > 0]
    if not places:
        raise ValueError("there is no valid plan among the samples; draw those of later updates")
    width = _smoothing(samples)
    simple = sum(place.step is None for place in places)
    figure, panels = _panels(simple, len(places) - simple)
    styles = [_shade(at) for at in range(len(roster))]
    for panel, place in zip(panels, places, strict=True):
        mine = place.of(samples)
        grid = _grid(mine)
        shares = workers_over_time(mine, place.step or 0, len(roster), grid, width)
        _stack(panel, grid, shares, styles, f"{place} ({len(mine):,})")
        _seen(panel, mine)
    panels[0].set_xlim(0.5, 1.5 + max(each.update for each in samples))
    _legend(figure, dict(zip(roster, styles, strict=True)))
    figure.supxlabel("update: family (valid plans)", fontsize=8.5)
    return figure


# --- choices and what they pay --------------------------------------------------------------------


def choices(samples: Sequence[Sample], roster: Sequence[str]) -> Figure:
    """Draw whom it names at the start and at the end, beside what came of each worker: heat maps.

    A row is a simple family or a step of one of several parts; those with fewer than five plans are
    left out.
    """
    from matplotlib.figure import Figure

    seen = {place: len(place.of(samples)) for place in places_of(samples)}
    places = [place for place, count in seen.items() if count >= 5] or list(seen)
    staged = {family: stages(mine) for family, mine in families_of(samples).items()}
    tables: list[tuple[str, list[Any]]] = [
        (
            f"named, of when offered\n{stage}",
            [named(staged[place.family][stage], place, len(roster)) for place in places],
        )
        for stage in ("start", "end")
    ]
    tables.append(
        (
            "right, of when named\nall along",
            [paid(samples, place, len(roster)) for place in places],
        )
    )
    figure = Figure(
        figsize=(2.3 + 3 * (0.3 + 0.5 * len(roster)), 1.5 + 0.3 * len(places)), layout="constrained"
    )
    panels = figure.subplots(1, 3, sharey=True)
    for panel, (title, counts), colours in zip(
        panels, tables, ("Blues", "Blues", "Greens"), strict=True
    ):
        pairs = np.array(counts, np.float64).reshape(len(places), 2, len(roster))
        share = np.divide(
            pairs[:, 0], pairs[:, 1], out=np.full(pairs[:, 0].shape, np.nan), where=pairs[:, 1] > 0
        )
        few = (pairs[:, 1] > 0) & (pairs[:, 1] < 5)
        # What stands on few is pale, however large.
        shades = np.where(few, 0.25 * share, share)
        panel.imshow(shades, cmap=colours, vmin=0, vmax=1.15, aspect="auto")
        for (row, column), value in np.ndenumerate(share):
            told = f"{100 * value:.0f}" if np.isfinite(value) else ""
            panel.text(
                column,
                row,
                f"({told})" if few[row, column] else told,
                ha="center",
                va="center",
                fontsize=7.5,
                color="white" if shades[row, column] > 0.6 else INK,
            )
        panel.set_xticks(range(len(roster)), roster, fontsize=8, rotation=40, ha="left")
        panel.set_yticks(range(len(places)), [str(place) for place in places], fontsize=8)
        panel.xaxis.tick_top()
        panel.tick_params(length=0)
        panel.set_title(title, fontsize=9)
        for spine in panel.spines.values():
            spine.set_visible(False)
    figure.supxlabel("per cent; in brackets: of fewer than five; blank: of none", fontsize=8)
    return figure


def pays(samples: Sequence[Sample]) -> Figure:
    """Draw the right answers of each form by family, with intervals: a row a form.

    Forms that were written fewer than three times are left out.

    Args:
        samples: The ones to go by, as those of the last third.
    """
    from matplotlib.figure import Figure

    families = families_of(samples)
    rows = [
        (family, each, at)
        for family, mine in families.items()
        for at, each in enumerate(
            each
            for each in worth_of(mine)
            if each.form is not Form.NO_PLAN and (each.count >= 3 or each.share > 0.5)
        )
    ]
    # Families stand a little apart.
    heights, height = [], 0.0
    for _, _, at in rows:
        height -= 1.0 if at else 1.6
        heights.append(height)
    figure = Figure(figsize=(10.4, 1.2 + 0.185 * -height), layout="constrained")
    share, right, rest = figure.subplots(1, 3, sharey=True, width_ratios=[0.8, 2, 1.4])
    for (family, each, at), here in zip(rows, heights, strict=True):
        colour, hatch = _FORMS[each.form]
        share.barh(here, each.share, height=0.72, color=colour, hatch=hatch, edgecolor=INK, lw=0.5)
        share.text(each.share + 0.03, here, f"{each.share:.0%}", fontsize=7.5, va="center")
        few = each.count < 10
        ink = "#8a8a8a" if few else INK
        if each.count:
            ends = [each.right.low, each.right.high]
            right.plot(ends, [here, here], color=ink, lw=1.3, zorder=2)
            style = {"color": ink, "mfc": colour, "mew": 0.9, "zorder": 3, "clip_on": False}
            right.plot([each.right.value], [here], "o", ms=4.5 if few else 6.5, **style)
        right.text(1.06, here, f"{each.count}", fontsize=7.5, va="center", color=ink)
        against = None if at else against_the_rest(families[family])
        if against is not None and against.form is each.form and against.questions >= 5:
            found = against.difference
            rest.plot([found.low, found.high], [here, here], color=INK, lw=1.3, zorder=2)
            rest.plot([found.value], [here], "D", ms=5, color=INK, mfc=colour, zorder=3)
            rest.text(1.12, here, f"{against.questions}", fontsize=7.5, va="center")
    names = [f"{family}   {each.form}" if not at else str(each.form) for family, each, at in rows]
    share.set_yticks(heights, names, fontsize=8)
    for label, (_, _, at) in zip(share.get_yticklabels(), rows, strict=True):
        label.set_fontweight("normal" if at else "bold")
    share.set_ylim(height - 0.8, -0.9)
    share.set_xlim(0, 1.25)
    share.set_xticks([])
    share.set_title("written", fontsize=9, loc="left")
    right.set_xlim(0, 1)
    right.set_title("right answers", fontsize=9, loc="left")
    rest.set_xlim(-1, 1)
    rest.set_xticks([-1, -0.5, 0, 0.5, 1])
    rest.axvline(0, color=INK, lw=0.8)
    rest.set_title("less other plans, same questions", fontsize=9, loc="left")
    for panel, last in ((right, 1.06), (rest, 1.12)):
        panel.annotate(
            "n",
            (last, 1),
            xycoords=panel.get_xaxis_transform(),
            xytext=(0, 6),
            textcoords="offset points",
            fontsize=8,
        )
        panel.grid(axis="x", color="#e4e4e4", lw=0.6)
        panel.tick_params(labelsize=7.5)
    for panel in (share, right, rest):
        bare(panel)
        panel.spines["left"].set_visible(False)
        panel.tick_params(axis="y", length=0)
    share.spines["bottom"].set_visible(False)
    return figure


# --- plans ----------------------------------------------------------------------------------------

_CELL, _CARD, _GAP = 266, 258, 14
"""Points: from column to column, most that a drawing is wide, margins."""
_MUTED = "#59636e"


def plans(samples: Sequence[Sample], roster: Sequence[str]) -> str:
    """Draw the most frequent kind of plan of each family at each stage, as one SVG.

    Raises:
        grammar.LayoutMissing: If no program to lay graphs out is found.
    """
    colours = {name: _shade(at)[0] for at, name in enumerate(roster)}
    width = 2 * _GAP + 3 * _CELL
    parts: list[str] = []

    def say(x: float, y: float, text: str, size: float, style: str) -> None:
        parts.append(f'<text x="{x}" y="{y:.1f}" font-size="{size}" {style}>{escape(text)}</text>')

    for column, stage in enumerate(STAGES):
        say(_GAP + column * _CELL, 18, stage, 12, 'font-weight="bold"')
    top = 28.0
    for family, mine in families_of(samples).items():
        line = f'x1="{_GAP}" x2="{width - _GAP}" y1="{top:.1f}" y2="{top:.1f}"'
        parts.append(f'<line {line} stroke="#d0d0d0"/>')
        say(_GAP, top + 16, family, 11, 'font-weight="bold"')
        bottoms = [top + 40]
        staged = [(there, typical(there)) for there in stages(mine).values()]
        questions = [textwrap.wrap(_line(each.sample.question, 96), 50) for _, each in staged]
        for column, ((there, found), asked) in enumerate(zip(staged, questions, strict=True)):
            left = _GAP + column * _CELL
            for at, text in enumerate(asked):
                say(left, top + 32 + 12 * at, text, 9.5, f'fill="{_MUTED}" font-style="italic"')
            bottom = top + 24 + 12 * max(map(len, questions))
            plan = found.sample.plan
            if plan is not None:
                drawing, wide, high = _inner(to_svg(plan.resolve(roster), colours=colours))
                scale = min(1.0, _CARD / wide)
                place = f"translate({left - 11 * scale} {bottom:.1f}) scale({scale:.3f})"
                parts.append(f'<g transform="{place}">{drawing}</g>')
                bottom += high * scale
            else:
                say(left, bottom + 18, str(found.sample.form), 10, 'font-weight="bold"')
                bottom += 24
            first, last = there[0].update + 1, there[-1].update + 1
            when = f"update {first}" if first == last else f"updates {first} to {last}"
            told = f"{when}: {found.alike} of {found.of} alike, {found.right} of them right"
            say(left, bottom + 7, told, 9.5, "")
            bottoms.append(bottom + 7)
        top = max(bottoms) + _GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}pt" height="{top:.0f}pt" '
        f'viewBox="0 0 {width} {top:.0f}" font-family="Helvetica, Arial, sans-serif" '
        f'fill="{INK}">\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _inner(svg: str) -> tuple[str, float, float]:
    """What is in a drawing of :func:`grammar.to_svg`, without its ids; width and height, points."""
    tag, _, body = svg.partition("<svg")[2].partition(">")
    width, height = (float(each) for each in re.findall(r'(?:width|height)="([\d.]+)pt"', tag))
    return re.sub(r' id="[^"]*"', "", body.rpartition("</svg>")[0]), width, height


def plans_markdown(
    samples: Sequence[Sample],
    roster: Sequence[str],
    families: Sequence[str] | None = None,
) -> str:
    """Write plans of each family at each stage, drawn by lot, as Markdown."""
    found = []
    for family, of_family in families_of(samples).items():
        if families is not None and family not in families:
            continue
        told = [
            # Whatever a model wrote, it does not end the fence.
            f"{stage}, {_shown(each, roster)}".replace("```", "'''")
            for stage, mine in stages(of_family).items()
            for each in [drawn(mine, f"{family} {stage}")]
        ]
        found.append(f"**{family}**\n\n```text\n" + "\n\n".join(told) + "\n```\n")
    return "\n".join(found)


def _shown(sample: Sample, roster: Sequence[str]) -> str:
    offered = ", ".join(roster[at] for at in sample.offered)
    lines = [f"update {sample.update + 1}: {_line(sample.question, 160)}", f"offered: {offered}"]
    if sample.plan is None:
        return "\n".join([*lines, f"  {_line(sample.text, 94)}", f"  => {sample.form}"])
    drawing = to_terminal(sample.plan.resolve(roster), width=94)
    lines += [f"  {line}" for line in drawing.splitlines()]
    outcome = {True: "right", False: "wrong", None: "nobody knows, for technical reasons"}
    told = f"{_line(sample.answer, 60)}: " if sample.answer is not None else ""
    return "\n".join([*lines, f"  => {told}{outcome[sample.right]}"])


def _line(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


# --- a folder -------------------------------------------------------------------------------------


def first_rounds(rows: Iterable[Mapping[str, Any]]) -> list[Sample]:
    """The completions of first rounds, of rows of ``rollouts.jsonl``."""
    found = map(sample_of, rows)
    return [each for each in found if each is not None and each.round == 1]


def draw(folder: Path) -> list[Path]:
    """Draw what is in the logs of a training into its folder: ``pictures/NAME.svg``.

    ``pictures/plans.md`` has plans as text. Without matplotlib only plans are drawn. Workers have
    their names if there is a ``conductor.json``, which a training writes at its end.

    Returns:
        The files; none if there is nothing in the logs.

    Raises:
        grammar.LayoutMissing: If no program to lay graphs out is found.
    """
    rows, rollouts = read_rows(folder / "metrics.jsonl"), read_rows(folder / "rollouts.jsonl")
    samples = first_rounds(rollouts)
    if not rows or not samples:
        return []
    about = folder / TRAINED
    if about.exists():
        roster = json.loads(about.read_text(encoding="utf-8"))["roster"]
    else:
        most = max(at for each in samples for at in each.offered)
        roster = [f"worker {at}" for at in range(most + 1)]
    target = folder / FOLDER
    target.mkdir(exist_ok=True)
    files = []
    for name, data in _files(rows, samples, second_rounds(rollouts), roster):
        (target / name).write_bytes(data)
        files.append(target / name)
    return files


def _files(
    rows: Sequence[Mapping[str, Any]],
    samples: Sequence[Sample],
    again: Sequence[tuple[Sample, Second]],
    roster: Sequence[str],
) -> Iterator[tuple[str, bytes]]:
    if find_spec("matplotlib") is not None:
        yield "curves.svg", rendered(curves(rows), "svg")
        yield "forms.svg", rendered(forms(samples), "svg")
        if any(each.plan is not None for each in samples):
            yield "workers.svg", rendered(workers(samples, roster), "svg")
        yield "choices.svg", rendered(choices(samples, roster), "svg")
        yield "pays.svg", rendered(pays(last_third(samples)), "svg")
        if again:
            yield "rounds.svg", rendered(rounds(again), "svg")
    yield "plans.svg", plans(samples, roster).encode()
    yield PLANS, plans_markdown(samples, roster).encode()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m training.conductor_pictures")
    parser.add_argument("folder", type=Path, help="of a training")
    for path in draw(parser.parse_args(arguments).folder):
        print(path)  # noqa: T201


if __name__ == "__main__":
    main()
