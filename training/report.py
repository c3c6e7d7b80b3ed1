"""The report of an evaluation: Markdown that reads well in a terminal, JSON, and pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grammar import Topology

from .evaluate import BEST, ORACLE, RANDOM, Confusion, Evaluation, Line, Section
from .intervals import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "evaluation"
"""Files of a report are called so, with their endings."""

TITLES: Mapping[str, str] = {
    Section.ITEMS: "New items, phrasings that were trained on",
    Section.PHRASINGS: "New items, phrasings that were not trained on (the figure to go by)",
    Section.FAMILIES: "Families that no decider was trained on",
    Section.COMPOSED: "Chains of two families",
}
_SHORT: Mapping[str, str] = {
    Section.ITEMS: "trained phrasings",
    Section.PHRASINGS: "new phrasings",
    Section.FAMILIES: "new families",
    Section.COMPOSED: "chains",
}


def write_report(evaluation: Evaluation, folder: str | Path) -> list[Path]:
    """Write the report: ``evaluation.md`` and ``.json``, and pictures as SVG and PNG.

    Those are the scores, what they cost and, where somebody planned, the shapes of plans. Without
    matplotlib there are none.

    Returns:
        The files.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    files = {
        f"{NAME}.md": markdown(evaluation).encode(),
        f"{NAME}.json": (to_json(evaluation) + "\n").encode(),
    }
    if find_spec("matplotlib") is not None:
        figures = {NAME: draw_scores(evaluation), "costs": draw_costs(evaluation)}
        if evaluation.planning:
            figures["shapes"] = draw_shapes(evaluation)
        for name, figure in figures.items():
            for ending in ("svg", "png"):
                files[f"{name}.{ending}"] = rendered(figure, ending)
    for name, data in files.items():
        (target / name).write_bytes(data)
    return [target / name for name in files]


# --- text -----------------------------------------------------------------------------------------


def to_json(evaluation: Evaluation) -> str:
    """Write all that was found; what is unknown is null."""
    told = asdict(evaluation)
    for control, found in zip(told["controls"], evaluation.controls, strict=True):
        control["behaves"] = found.behaves
    for confusion, matrix in zip(told["confusion"], evaluation.confusion, strict=True):
        confusion["agreement"] = matrix.agreement
    return json.dumps(_plain(told), indent=1, ensure_ascii=False, default=str)


def _plain(value: Any) -> Any:
    match value:
        case float():
            return round(value, 6) if math.isfinite(value) else None
        case dict():
            return {str(name): _plain(each) for name, each in value.items()}
        case list() | tuple():
            return [_plain(each) for each in value]
    return value


def markdown(evaluation: Evaluation) -> str:
    """Write the report as Markdown."""
    parts = [f"# Evaluation\n\n{_how_to_read(evaluation)}"]
    for section in evaluation.sections():
        parts.append(f"## {TITLES[section]}\n\n{_scores(evaluation, section)}")
        if families := _families(evaluation, section):
            parts.append(families)
    if evaluation.controls:
        parts.append(f"## Negative controls\n\n{_controls(evaluation)}")
    if evaluation.planning:
        parts.append(f"## Plans\n\n{_planning(evaluation)}")
    parts.append(f"## Who was called\n\n{_routing(evaluation)}")
    about = table(["decider", "what it does"], [*map(list, evaluation.deciders.items())], left=2)
    parts.append(f"## Deciders\n\n{about}")
    parts.append(f"## Made with\n\n{_made_with(evaluation.made_with)}")
    return "\n\n".join(parts) + "\n"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Write a Markdown table whose columns line up in a terminal as well.

    Args:
        heads: Column titles.
        rows: Cells.
        left: So many columns are set to the left, the others to the right.
    """
    cells = [[each.replace("|", "\\|") for each in row] for row in (heads, *rows)]
    widths = [max(3, *(len(row[at]) for row in cells)) for at in range(len(heads))]
    rule = ["-" * w if at < left else "-" * (w - 1) + ":" for at, w in enumerate(widths)]

    def line(row: Sequence[str]) -> str:
        sides = ("<" if at < left else ">" for at in range(len(widths)))
        padded = (f"{each:{s}{w}}" for each, s, w in zip(row, sides, widths, strict=True))
        return f"| {' | '.join(padded)} |"

    return "\n".join(line(row) for row in (cells[0], rule, *cells[1:]))


def _how_to_read(evaluation: Evaluation) -> str:
    choices = evaluation.choices
    best = f"**{choices.best}**"
    if choices.best_composed != choices.best:
        best += f" ({choices.best_composed} for chains)"
    return (
        f"Scores are means over tasks and seeds, from 0 to 1, with 95 % intervals of a bootstrap "
        f"over both. Differences are paired: the same tasks for both. The best single worker is "
        f"{best}, chosen on {choices.tasks} validation tasks; no choice was made on test tasks. "
        f'"to oracle" is the share of the way from the best single worker to the oracle that is '
        f"gone. Calls, tokens, seconds and dollars are means per task, deciding included."
    )


def _scores(evaluation: Evaluation, section: str) -> str:
    lines = [each for each in evaluation.lines if each.section == section and not each.family]
    lines.sort(key=lambda line: -line.score.value if line.score.value == line.score.value else 9)
    heads = ["decider", "score", f"against {evaluation.reference}", "to oracle", "calls", "tokens"]
    heads += ["deciding", "s", "$", "seeds", "lost"]
    rows = [
        [
            line.decider,
            ranged(line.score),
            ranged(line.against, sign=True),
            percent(line.headroom),
            number(line.calls, 1),
            number(line.tokens, 0),
            number(line.deciding, 0),
            number(line.seconds, 2),
            dollars(line.dollars),
            str(line.seeds),
            str(line.lost),
        ]
        for line in lines
    ]
    sizes = sorted({line.tasks + line.lost for line in lines})
    n = " to ".join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))
    return f"n = {n} tasks.\n\n{table(heads, rows)}"


def _families(evaluation: Evaluation, section: str) -> str:
    mine = [line for line in evaluation.lines if line.section == section and line.family]
    families = list(dict.fromkeys(line.family for line in mine))
    if len(families) < 2:
        return ""
    by = {(line.decider, line.family): line for line in mine}
    rows = [
        [name, *(number(by[name, family].score.value, 2) for family in families)]
        for name in evaluation.deciders
    ]
    counts = [max(by[name, each].tasks for name in evaluation.deciders) for each in families]
    return table(["by family", *families], [*rows, ["tasks", *map(str, counts)]])


def _controls(evaluation: Evaluation) -> str:
    rows = [
        [
            each.decider,
            _SHORT[each.section],
            each.held_to,
            ranged(each.difference, sign=True),
            "yes" if each.behaves else "NO",
        ]
        for each in evaluation.controls
    ]
    heads = ["decider", "on", "may not beat", "difference", "behaves"]
    return (
        "Trained on nonsense, these may not do better than someone who knows nothing of the task; "
        "else the evaluation leaks.\n\n" + table(heads, rows, left=3)
    )


def _planning(evaluation: Evaluation) -> str:
    rows = []
    for name in dict.fromkeys(each.decider for each in evaluation.planning):
        for each in (each for each in evaluation.planning if each.decider == name):
            shapes = [
                f"{shape} {number(100 * count / each.planned, 0)} %"
                for shape, count in each.topologies.items()
            ]
            rows.append(
                [
                    name,
                    each.family,
                    _SHORT[each.section],
                    ", ".join(shapes[:3]),
                    str(each.trials),
                    f"{each.at_once / each.trials:.0%}",
                    f"{each.planned / each.trials:.0%}",
                    str(each.failed),
                    number(each.steps, 1),
                ]
            )
    heads = ["decider", "family", "on", "shapes", "trials", "at once", "in the end", "failed"]
    return (
        '"at once": the first text was a plan; "in the end": also after being told what is wrong. '
        '"failed": for technical reasons.\n\n' + table([*heads, "steps"], rows, left=4)
    )


def _routing(evaluation: Evaluation) -> str:
    parts = []
    for name in evaluation.deciders:
        mine = [each for each in evaluation.routing if each.decider == name]
        told = [tuple(round(share, 2) for share in each.shares.values()) for each in mine]
        if name.startswith("worker:") or len(set(told)) < 2:
            continue  # the same for every family: nothing to see
        rows = [
            [
                each.family,
                _SHORT[each.section],
                *(number(share, 2) for share in each.shares.values()),
            ]
            for each in mine
        ]
        parts.append(f"**{name}**, share of calls\n\n" + table(
            ["family", "on", *evaluation.workers], rows, left=2
        ))  # fmt: skip
        confusion = next(each for each in evaluation.confusion if each.decider == name)
        if name != ORACLE and confusion.tasks:
            parts.append(_confusion(evaluation, confusion))
    return "\n\n".join(parts) or "Nobody chose by the task."


def _confusion(evaluation: Evaluation, confusion: Confusion) -> str:
    rows = []
    for best in evaluation.workers:
        counts = [confusion.counts[best][each] for each in evaluation.workers]
        rows.append([f"{best} is best", *(number(count, 0) for count in counts)])
    told = (
        f"Of {confusion.tasks} tasks that tell workers apart, {confusion.agreement:.0%} went to "
        f"one that was best:"
    )
    return told + "\n\n" + table(["picked", *evaluation.workers], rows)


def _made_with(made_with: Mapping[str, Any]) -> str:
    rows = [[name, _told(value)] for name, value in made_with.items()]
    return table(["what", "which"], rows, left=2) if rows else "Not recorded."


def _told(value: Any) -> str:
    match value:
        case dict():
            return ", ".join(f"{name} {_told(each)}" for name, each in value.items())
        case list() | tuple():
            return ", ".join(map(_told, value))
    return str(value)


def number(value: float, digits: int) -> str:
    """Write a number; what is unknown is a question mark."""
    return f"{value:,.{digits}f}" if math.isfinite(value) else "?"


def dollars(value: float) -> str:
    """Write an amount with two digits that count; nothing is 0."""
    if not math.isfinite(value):
        return "?"
    return f"{value:.2g}" if value else "0"


def ranged(interval: Interval, *, sign: bool = False) -> str:
    """Write a number with its interval; a blank where there is none."""
    if not math.isfinite(interval.value):
        return ""
    form = "+.3f" if sign else ".3f"
    return f"{interval.value:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def percent(interval: Interval) -> str:
    """Write a share in percent with its interval; a blank where there is none."""
    if not math.isfinite(interval.value):
        return ""
    return f"{interval.value:.0%} [{interval.low:.0%}, {interval.high:.0%}]"


# --- pictures -------------------------------------------------------------------------------------

_INK, _PALE = "#1a1a1a", "#8a8a8a"


def _style(line: Line, evaluation: Evaluation) -> dict[str, Any]:
    """How a decider is drawn: told apart by shape and filling, so that grey will do."""
    held = {each.decider for each in evaluation.controls}
    if line.decider in held:
        return {"marker": "x", "color": _PALE, "markerfacecolor": _PALE}
    if line.decider.startswith("worker:"):
        return {"marker": "o", "color": _PALE, "markerfacecolor": "white"}
    if line.decider in (BEST, ORACLE, RANDOM, "random-sampled", evaluation.reference):
        return {"marker": "D", "color": _INK, "markerfacecolor": "white"}
    return {"marker": "o", "color": "#0b5fa5", "markerfacecolor": "#0b5fa5"}


def draw_scores(evaluation: Evaluation) -> Figure:
    """Draw everyone's score with its interval, a panel a section."""
    from matplotlib.figure import Figure

    sections = evaluation.sections()
    names = list(evaluation.deciders)
    figure = Figure(
        figsize=(1.9 + 2.6 * len(sections), 1.3 + 0.26 * len(names)), layout="constrained"
    )
    panels = figure.subplots(1, len(sections), sharey=True, squeeze=False)[0]
    # The best at the top, by the section to go by, or the first.
    leading = Section.PHRASINGS if Section.PHRASINGS in sections else sections[0]
    names.sort(key=lambda name: _or(evaluation.line(name, leading).score.value, -1))
    for panel, section in zip(panels, sections, strict=True):
        for at, name in enumerate(names):
            line = evaluation.line(name, section)
            if not math.isfinite(line.score.value):
                continue
            style = _style(line, evaluation)
            ends = [line.score.low, line.score.high]
            panel.plot(ends, [at, at], color=style["color"], linewidth=1.6, zorder=2)
            panel.plot([line.score.value], [at], linestyle="", markersize=6, zorder=3, **style)
        reference = evaluation.line(evaluation.reference, section).score.value
        panel.axvline(reference, color=_INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        tasks = max(evaluation.line(name, section).tasks for name in names)
        panel.set_title(f"{_SHORT[section]}\nn = {tasks}", fontsize=9)
        panel.set_xlim(-0.03, 1.03)
        panel.set_yticks(range(len(names)), names, fontsize=8)
        panel.set_ylim(-0.7, len(names) - 0.3)
        _plain_axes(panel)
        panel.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    figure.supxlabel(
        f"score, 95 % interval; dashed: {evaluation.reference}, {evaluation.choices.best}",
        fontsize=8,
    )
    return figure


def draw_costs(evaluation: Evaluation) -> Figure:
    """Draw score over tokens a task, a panel a section."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    sections = evaluation.sections()
    rows, columns = (len(sections) + 1) // 2, min(2, len(sections))
    figure = Figure(figsize=(0.6 + 5.0 * columns, 0.4 + 4.2 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for panel in panels[len(sections) :]:
        panel.set_axis_off()
    for panel, section in zip(panels, sections, strict=False):
        lines = [evaluation.line(name, section) for name in evaluation.deciders]
        lines = [
            line
            for line in lines
            if math.isfinite(line.score.value) and math.isfinite(line.tokens) and line.tokens > 0
        ]
        for line in lines:
            style = _style(line, evaluation)
            panel.plot(
                [line.tokens] * 2,
                [line.score.low, line.score.high],
                color=style["color"],
                linewidth=1,
                zorder=2,
            )
            panel.plot([line.tokens], [line.score.value], linestyle="", zorder=3, **style)
        panel.set_xscale("log")
        if lines:
            most, least = max(each.tokens for each in lines), min(each.tokens for each in lines)
            panel.set_xlim(least / 1.5, most * (most / least) ** 0.9 * 3)  # room for the names
            _name_points(panel, lines)
        panel.set_title(_SHORT[section], fontsize=9)
        panel.set_ylim(-0.05, 1.05)
        panel.set_xlabel("tokens a task", fontsize=8)
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(lambda value, at: f"{value:,.0f}")
        panel.xaxis.set_minor_locator(NullLocator())
        _plain_axes(panel)
    figure.supylabel("score, 95 % interval", fontsize=8)
    return figure


def draw_shapes(evaluation: Evaluation) -> Figure:
    """Draw the shapes of plans, a panel a decider that plans, a row a family.

    Each shape is as long as its share of the trials; full colour is the part of it that was right.
    What is left of a row had no plan. Beside it is what one worker reaches alone on the same tasks:
    the best one, and the best one of each task, in hindsight.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    places = list(dict.fromkeys((each.section, each.family) for each in evaluation.planning))
    places.sort(key=lambda place: list(TITLES).index(place[0]))
    names = list(dict.fromkeys(each.decider for each in evaluation.planning))
    several = len({section for section, _ in places}) > 1
    figure = Figure(figsize=(2.2 + 3.4 * len(names), 1.3 + 0.3 * len(places)), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    shapes = [str(shape) for shape in Topology]
    for panel, name in zip(panels, names, strict=True):
        for each in (each for each in evaluation.planning if each.decider == name):
            at, low = places.index((each.section, each.family)), 0.0
            for shape in sorted(each.topologies, key=shapes.index):
                share = each.topologies[shape] / each.trials
                right, colour = share * each.right[shape], _SHAPES[Topology(shape)]
                panel.barh(at, right, left=low, color=colour, height=0.7)
                panel.barh(
                    at, share - right, left=low + right, color=colour, alpha=0.25, height=0.7
                )
                low += share
        for decider, style in _ALONE.items():
            if decider in evaluation.deciders:
                alone = [evaluation.line(decider, *place).score.value for place in places]
                panel.plot(alone, range(len(places)), linestyle="", zorder=3, **style)
        panel.set_title(name, fontsize=9)
        panel.set_xlim(0, 1.02)
        panel.set_xlabel("share of plans; full colour: right", fontsize=8)
        _plain_axes(panel)
    counts = {(each.section, each.family): each.trials for each in evaluation.planning}
    rows = [
        f"{family}{f', {_SHORT[section]}' if several else ''} ({counts[section, family]})"
        for section, family in places
    ]
    panels[0].set_yticks(range(len(places)), rows, fontsize=8)
    panels[0].invert_yaxis()
    there = {shape for each in evaluation.planning for shape in each.topologies}
    told: list[Any] = [
        Patch(color=_SHAPES[shape], label=shape) for shape in Topology if shape in there
    ]
    told += [
        Line2D([], [], linestyle="", label=f"{decider} alone", **style)
        for decider, style in _ALONE.items()
        if decider in evaluation.deciders
    ]
    figure.legend(
        handles=told, loc="outside upper center", ncols=min(5, len(told)), fontsize=8, frameon=False
    )
    return figure


_SHAPES: Mapping[Topology, str] = {
    Topology.SINGLE: "#0b5fa5",
    Topology.CHAIN: "#c25a00",
    Topology.BEST_OF_N: "#5e8c4a",
    Topology.FAN_OUT: "#7a4fa3",
    Topology.DIAMOND: "#b5323b",
    Topology.DEBATE: "#0e8f8f",
    Topology.TREE: "#8a6d1f",
    Topology.INDEPENDENT: "#5f6b73",
    Topology.GENERAL: "#2f2f2f",
}
_ALONE: Mapping[str, dict[str, Any]] = {
    BEST: {"marker": "D", "color": _INK, "markerfacecolor": "white", "markersize": 5},
    ORACLE: {"marker": "|", "color": _INK, "markersize": 12, "markeredgewidth": 2},
}
"""How those are drawn who ask one worker."""


def _name_points(panel: Axes, lines: Sequence[Line]) -> None:
    """Write the names to the right, one above the other, so that none covers another."""
    right, lines = (
        max(line.tokens for line in lines),
        sorted(lines, key=lambda each: each.score.value),
    )
    heights = _spread([line.score.value for line in lines], 0.042, -0.02, 1.03)
    for line, height in zip(lines, heights, strict=True):
        named = panel.annotate(
            line.decider,
            (line.tokens, line.score.value),
            xytext=(right * 1.5, height),
            textcoords="data",
            fontsize=6.5,
            va="center",
            color=_INK,
            arrowprops={"arrowstyle": "-", "color": "#c8c8c8", "linewidth": 0.5},
        )
        named.set_in_layout(False)  # it is inside the panel, and slow to measure


def _spread(heights: Sequence[float], gap: float, least: float, most: float) -> list[float]:
    """Move ascending heights apart, each as little as it takes, within bounds if they can hold all.

    Those that are too close become a stack with its middle at their mean.
    """
    stacks: list[list[float]] = []
    for height in heights:
        stacks.append([height])
        while len(stacks) > 1 and _bottom(stacks[-1], gap, least, most) - gap < (
            _bottom(stacks[-2], gap, least, most) + gap * (len(stacks[-2]) - 1)
        ):
            last = stacks.pop()
            stacks[-1] += last
    return [
        _bottom(stack, gap, least, most) + gap * at for stack in stacks for at in range(len(stack))
    ]


def _bottom(stack: Sequence[float], gap: float, least: float, most: float) -> float:
    size = gap * (len(stack) - 1)
    return max(least, min(sum(stack) / len(stack) - size / 2, most - size))


def _or(value: float, other: float) -> float:
    return value if math.isfinite(value) else other


def _plain_axes(panel: Axes) -> None:
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    panel.tick_params(labelsize=8)


def rendered(figure: Figure, ending: str) -> bytes:
    """Save a figure in the format of this ending, svg or png."""
    import matplotlib

    data = BytesIO()
    # Text stays text, and the same figures give the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "conductor"}):
        metadata = {"Date": None} if ending == "svg" else None
        figure.savefig(data, format=ending, dpi=140, metadata=metadata)
    return data.getvalue()
