"""Pictures of a plan: DOT, SVG, PNG, Mermaid, and lanes in a terminal.

Every picture shows the transitive reduction of the access lists as its lines, so that "reads all"
stays readable, and says the rest more quietly: as dotted edges, or as the words "reads 0, 1".
Whatever a model wrote reaches a picture as text alone; each format's own escapes are applied at
the one place where that format is written.
"""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import sysconfig
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, groupby, islice
from typing import Literal

from .diagnostics import cells, visible
from .plan import Plan, Step
from .topology import levels

State = Literal["waiting", "running", "done", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Mark:
    """How far one step of a run has come, to be shown on its picture."""

    state: State
    detail: str = ""
    """A few words more, such as ``2.1 s · 48 tokens``."""
    number: str = ""
    """Shown in place of the step's number, where one plan is drawn of several."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the terminal drawing."""

    gutter: str
    """The lanes; all rows of a drawing are equally wide."""
    step: int | None
    """The step that stands in this row; None for a row of connecting lines."""


class LayoutMissing(RuntimeError):
    """Raised by :func:`to_svg` and :func:`to_png` where no layout program is installed."""

    def __init__(self) -> None:
        super().__init__(
            "no program to lay out graphs was found: pip install graphviz-pure, "
            "or install Graphviz so that dot is on the PATH"
        )


def _direct(plan: Plan) -> list[tuple[int, ...]]:
    """Per step what it reads in the transitive reduction.

    Sets as bits of an int: a live view asks many times a second, also of plans where 60 steps
    read all before them.
    """
    above: list[int] = []
    found = []
    for step in plan:
        through = 0
        for earlier in step.access:
            through |= above[earlier]
        found.append(tuple(i for i in step.access if not through >> i & 1))
        above.append(through | sum(1 << i for i in step.access))
    return found


def _numbers(plan: Plan, marks: Mapping[int, Mark]) -> list[str]:
    """What each step is called: its number, or what its mark says."""
    said = [marks[step.index].number if step.index in marks else "" for step in plan]
    return [_clip(_clean(each), 12) or str(at) for at, each in enumerate(said)]


def _reads(access: Sequence[int], numbers: Sequence[str]) -> list[str]:
    """Name steps; four or more in a row become a range."""
    runs: list[list[int]] = []
    for index in access:
        if runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return [
        part
        for run in runs
        for part in (
            [f"{numbers[run[0]]}–{numbers[run[-1]]}"]
            if len(run) > 3
            else [numbers[at] for at in run]
        )
    ]


# --- text ------------------------------------------------------------------------------------


def _clean(text: str, most: int = 1000) -> str:
    """Make text one line of plain characters: none acts on a terminal or is forbidden in XML.

    Of marks on one letter four are kept, since more would paint over the lines around.
    """
    cut = text[:most] + "…" if len(text) > most else text
    line = visible(" ".join(cut.split())).translate({0xFFFE: "\ufffd", 0xFFFF: "\ufffd"})
    if line.isascii():
        return line
    return "".join(
        "".join(run if not marks else islice(run, 4))
        for marks, run in groupby(line, key=lambda c: unicodedata.combining(c) > 0)
    )


def _name(step: Step) -> str:
    return _clean(step.worker) if isinstance(step.worker, str) else f"worker {step.worker}"


def _clip(text: str, width: float, measure: Callable[[str], float] = cells) -> str:
    """Shorten text to a width; an ellipsis stands for what is gone."""
    if measure(text) <= width:
        return text
    room = width - measure("…")
    used = 0.0
    for at, c in enumerate(text):
        used += measure(c)
        if used > room:
            return text[:at].rstrip() + "…" if room >= 0 else ""
    return text


def _wrap(
    text: str, width: float, lines: int, measure: Callable[[str], float] = cells
) -> list[str]:
    """Break text into at most ``lines`` lines at blanks, between wide characters, or anywhere."""
    done: list[str] = []
    line = ""
    for piece in _pieces(text, width, measure):
        if line and measure((line + piece).rstrip()) > width:
            done.append(line.rstrip())
            line = ""
            if len(done) > lines:
                break
        line += piece
    done.append(line.rstrip())
    done = [each for each in done if each]
    if len(done) > lines:
        done[lines - 1 :] = [_clip(done[lines - 1] + "…", width, measure)]
    return done


# Categories of marks, joiners, skin tones, and punctuation that no line begins with.
_PARTS_OF_A_LETTER = ("Mn", "Me", "Mc", "Cf", "Sk")
_CLOSING = (*_PARTS_OF_A_LETTER, "Pe", "Pf", "Po")


def _pieces(text: str, width: float, measure: Callable[[str], float]) -> Iterator[str]:
    """Cut text where a line may end: behind blanks, beside wide characters, or where it must."""
    piece = ""
    for c in text:
        kind = unicodedata.category(c)
        if not piece:
            ends = False
        elif piece[-1] == " " or c == " ":
            ends = c != " "
        elif _is_wide(c) or _is_wide(piece[-1]):
            ends = kind not in _CLOSING and piece[-1] != "\u200d"
        else:
            ends = measure(piece + c) > width and kind not in _PARTS_OF_A_LETTER
        if ends:
            yield piece
            piece = ""
        piece += c
    if piece:
        yield piece


def _is_wide(c: str) -> bool:
    return unicodedata.east_asian_width(c) in "WF"


def _ems(text: str) -> float:
    """Estimate how wide Helvetica or Arial draws text, in ems."""
    return sum(_em(c) for c in text)


def _em(c: str) -> float:
    if c in "ijl.,:;!|' I":
        return 0.28
    if c in 'frt()[]{}/\\-"`*^':
        return 0.36
    if c in "mMW@%w—…":
        return 0.92
    if unicodedata.combining(c):
        return 0.0
    if _is_wide(c):
        return 1.0
    if c > "\u0590":
        return 0.75
    return 0.72 if c.isupper() else 0.56


# --- DOT, SVG, PNG ---------------------------------------------------------------------------

# Okabe and Ito's colours and one more: told apart with any colour vision, on white and on black.
_PALETTE = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#882255",
)  # fmt: skip

_FONT = "Helvetica"  # the layout programs know its metrics; a browser gets the whole stack
_FONT_STACK = "Helvetica, Arial, 'Liberation Sans', 'Noto Sans', sans-serif"
_CARD = 214
"""Points inside a card."""
_LINE_EMS = 18.4
"""A line of a subtask at 11 points, some 32 characters."""


@dataclass(frozen=True, slots=True)
class _Theme:
    ink: str
    muted: str
    card: str
    border: str
    edge: str
    faint: str
    states: Mapping[State, tuple[str, str]]
    """Line and fill."""


_LIGHT = _Theme(
    ink="#1F2328",
    muted="#59636E",
    card="#FFFFFF",
    border="#8C959F",
    edge="#6E7781",
    faint="#A3ACB5",
    states={
        "waiting": ("#8C959F", "#F6F8FA"),
        "running": ("#006AA6", "#DDF0FC"),
        "done": ("#007555", "#E3F6EF"),
        "failed": ("#A84300", "#FDE9DC"),
        "skipped": ("#8C959F", "#EDEFF2"),
    },
)
_DARK = _Theme(
    ink="#E6EDF3",
    muted="#A3ADB8",
    card="#1B2129",
    border="#6E7885",
    edge="#9AA4AF",
    faint="#5C6670",
    states={
        "waiting": ("#7D8794", "#1B2129"),
        "running": ("#56B4E9", "#12344A"),
        "done": ("#2CC79A", "#113A2F"),
        "failed": ("#FF8A4C", "#4A2412"),
        "skipped": ("#7D8794", "#262C34"),
    },
)


def to_dot(
    plan: Plan,
    *,
    marks: Mapping[int, Mark] = {},
    dark: bool = False,
    colours: Mapping[str, str] = {},
) -> str:
    """Write a plan in the DOT language of Graphviz, one card a step, on no background.

    Solid edges are the transitive reduction; further access is dotted. Where that would be more
    than about an edge a step, the cards say "reads 0–7" in its place.

    Args:
        plan: The plan.
        marks: States of a run by step index; steps without one look like the plain plan.
        dark: Colours for a dark page. The others are legible on both.
        colours: Of workers' badges, as ``#rrggbb`` by name; others have one by their name.
    """
    import graphviz  # type: ignore[import-untyped]  # ships no types

    theme = _DARK if dark else _LIGHT
    dot = graphviz.Digraph(
        "plan",
        graph_attr={
            "rankdir": _direction(plan),
            "bgcolor": "transparent",
            "pad": "0.15",
            "nodesep": "0.3",
            "ranksep": "0.5",
        },
        node_attr={
            "shape": "box",
            "fontname": _FONT,
            "fontsize": "11",
            "fontcolor": theme.ink,
            "margin": "0.11,0.08",
        },
        edge_attr={"color": theme.edge, "penwidth": "1.3", "arrowsize": "0.7"},
    )
    direct = _direct(plan)
    implied = [
        (earlier, step.index)
        for step in plan
        for earlier in step.access
        if earlier not in direct[step.index]
    ]
    # Beyond this, dotted edges hide more than they tell.
    crowded = len(implied) > len(plan) + 2
    badges = {**_colours(plan), **colours}
    numbers = _numbers(plan, marks)
    for step in plan:
        mark = marks.get(step.index)
        line, fill = theme.states[mark.state] if mark else (theme.border, theme.card)
        final = step is plan.final
        told = "reads " + ", ".join(_reads(step.access, numbers)) if crowded and step.access else ""
        dashed = ",dashed" if mark and mark.state in ("waiting", "skipped") else ""
        dot.node(
            f"s{step.index}",
            label="<"
            + _card(
                step,
                numbers[step.index],
                final,
                mark,
                told,
                badges[_name(step)],
                theme,
                bool(marks),
            )
            + ">",
            style="rounded,filled" + dashed,
            fillcolor=fill,
            color=line if mark or not final else theme.ink,
            penwidth="2.6" if final else "1.8" if mark and mark.state == "running" else "1.2",
        )
    for step in plan:
        for earlier in direct[step.index]:
            dot.edge(f"s{earlier}", f"s{step.index}")
    if not crowded:
        quiet = {"style": "dotted", "color": theme.faint, "penwidth": "1.2", "arrowsize": "0.5"}
        for earlier, index in implied:
            dot.edge(f"s{earlier}", f"s{index}", weight="0", **quiet)
    return str(dot.source)


def _direction(plan: Plan) -> Literal["TB", "LR"]:
    """Down the page, as long as a row of cards fits on it; else to the right, if that is less."""
    rows = levels(plan)
    widest = max(map(len, rows))
    return "LR" if widest > max(3, len(rows)) else "TB"


def _colours(plan: Plan) -> dict[str, str]:
    """Give each worker a colour by its name, so that it keeps it in other plans where possible."""
    taken: dict[str, int] = {}
    for name in sorted({_name(step) for step in plan}):
        wanted = zlib.crc32(name.encode())
        free = (wanted + at for at in range(len(_PALETTE)))
        slots = [slot % len(_PALETTE) for slot in free]
        unused = [slot for slot in slots if slot not in taken.values()]
        taken[name] = (unused or slots)[0]
    return {name: _PALETTE[slot] for name, slot in taken.items()}


def _card(
    step: Step,
    number: str,
    final: bool,
    mark: Mark | None,
    told: str,
    colour: str,
    theme: _Theme,
    marked: bool,
) -> str:
    """Write the HTML-like label of a step: number, worker, subtask, and how it is getting on."""
    tag = "answer" if final else ""
    digit = "#FFFFFF" if _luminance(colour) < 0.35 else "#1F2328"
    badge = 16 + 6 * len(number)
    right = 44 if tag else 4
    name = _clip(_name(step), (_CARD - badge - right - 10) / 12.5, _ems)
    state = theme.muted  # of those that wait or were skipped, the line is too pale for words
    if mark and mark.state not in ("waiting", "skipped"):
        state = theme.states[mark.state][0]
    faded = mark is not None and mark.state == "skipped"
    ink = theme.muted if faded else theme.ink
    text = '<br align="left"/>'.join(map(_label, _wrap(_clean(step.subtask), _LINE_EMS, 3, _ems)))
    foot = [f'<font color="{theme.muted}">{_label(_clip(told, 21, _ems))}</font>'] if told else []
    if mark:
        said = _label(_clip(" · ".join(filter(None, (mark.state, _clean(mark.detail)))), 20, _ems))
        foot.append(f'<font color="{state}">{said}</font>')
    elif marked:  # keeps the layout as it is when this step gets its mark
        foot.append(" ")
    rows = [
        f'<tr><td><table border="0" cellborder="0" cellspacing="0" cellpadding="0"><tr>'
        f'<td fixedsize="true" width="{badge}" height="18" bgcolor="{colour}" style="rounded">'
        f'<font color="{digit}" point-size="10"><b>{_label(number)}</b></font></td>'
        f'<td width="6"></td>'
        f'<td width="{_CARD - badge - right - 6}" align="left">'
        f'<font color="{ink}" point-size="12"><b>{_label(name)}</b></font></td>'
        f'<td width="{right}" align="right">'
        + (f'<font color="{theme.muted}" point-size="10"><i>{tag}</i></font>' if tag else "")
        + "</td></tr></table></td></tr>",
        f'<tr><td align="left" balign="left"><font color="{ink}">{text}</font></td></tr>',
        *(f'<tr><td align="left"><font point-size="9.5">{each}</font></td></tr>' for each in foot),
    ]
    return (
        f'<table border="0" cellborder="0" cellspacing="3" cellpadding="0">{"".join(rows)}</table>'
    )


def _label(text: str) -> str:
    """Escape text for an HTML-like label, where ``\\N`` and the like work as well."""
    return html.escape(text).replace("\\", "\\\\")


def _luminance(colour: str) -> float:
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return float(0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2)


def to_svg(
    plan: Plan,
    *,
    marks: Mapping[int, Mark] = {},
    dark: bool = False,
    path: str | None = None,
    colours: Mapping[str, str] = {},
) -> str:
    """Draw a plan as SVG; pointing at a step shows its whole subtask.

    Args:
        plan: The plan.
        marks: States of a run by step index.
        dark: Colours for a dark page.
        path: Where to look for the layout program, as in ``PATH``; None for the scripts of this
            environment, then ``PATH``.
        colours: Of workers' badges, as for :func:`to_dot`.

    Raises:
        LayoutMissing: If no layout program is found.
    """
    dot = to_dot(plan, marks=marks, dark=dark, colours=colours)
    svg = _laid_out(dot, "svg", path).decode()
    # Neither pattern can come from a plan: quotes and angle brackets of its text are escaped.
    # Each line is set in the direction of its first letter.
    text = f'font-family="{_FONT_STACK}" unicode-bidi="plaintext"'
    svg = re.sub(f'font-family="{_FONT}[^"]*"', text, svg)
    numbers = _numbers(plan, marks)
    return re.sub(r"<title>(\S+)</title>", lambda found: _title(found[1], plan, numbers), svg)


def _title(name: str, plan: Plan, numbers: Sequence[str]) -> str:
    """Replace the title of a graph element, which browsers show as its tooltip."""
    indices = [int(digits) for digits in re.findall(r"s(\d+)", name)]
    if len(indices) == 2:
        said = f"step {numbers[indices[1]]} reads step {numbers[indices[0]]}"
    elif indices:
        step = plan.steps[indices[0]]
        said = f"step {numbers[step.index]}, {_name(step)}: {_clean(step.subtask)}"
    else:
        said = "1 step" if len(plan) == 1 else f"{len(plan)} steps"
    return f"<title>{html.escape(said)}</title>"


def mimebundle(plan: Plan | None, text: str, *, marks: Mapping[int, Mark] = {}) -> dict[str, str]:
    """Say what a notebook shows, by MIME type: a text, and the picture if it can be drawn.

    Args:
        plan: The plan to draw; None for no picture.
        text: Shown where there are no pictures.
        marks: States of a run by step index.
    """
    bundle = {"text/plain": visible(text, keep="\n\t")}
    if plan is not None:
        # Without a layout program, or with a broken one, the text is what can be shown.
        with suppress(RuntimeError, OSError):
            bundle["image/svg+xml"] = to_svg(plan, marks=marks)
    return bundle


def to_png(
    plan: Plan, *, marks: Mapping[int, Mark] = {}, dark: bool = False, path: str | None = None
) -> bytes:
    """Draw a plan as PNG of 144 dots per inch.

    graphviz-pure brings its own Latin, Greek, Cyrillic and Hebrew letters; where a plan needs
    more, an installed ``dot``, which knows the fonts of the system, is preferred.

    Args:
        plan: The plan.
        marks: States of a run by step index.
        dark: Colours for a dark page.
        path: Where to look for the layout program, as for :func:`to_svg`.

    Raises:
        LayoutMissing: If no layout program is found.
    """
    return _laid_out(to_dot(plan, marks=marks, dark=dark), "png", path, "-Gdpi=144")


def _laid_out(dot: str, kind: Literal["svg", "png"], path: str | None, *options: str) -> bytes:
    """Run the layout program: the one place of this package that reaches outside.

    Raises:
        LayoutMissing: If there is none.
        RuntimeError: If it fails, or takes longer than two minutes.
    """
    programs = ["graphviz-pure", "dot"]
    if kind == "png" and any(c > "\u05ff" and not "\u2000" <= c <= "\u206f" for c in dot):
        programs.reverse()
    where = _search_path() if path is None else path
    found = next(filter(None, (shutil.which(name, path=where) for name in programs)), None)
    if found is None:
        raise LayoutMissing
    command = [found, f"-T{kind}", *options]
    try:
        # The text comes in on stdin and the arguments are ours, so there is nothing to inject.
        done = subprocess.run(command, input=dot.encode(), capture_output=True, timeout=120)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{found} took longer than two minutes to lay the plan out") from error
    if done.returncode or not done.stdout:
        said = visible(done.stderr.decode(errors="replace").strip(), keep="\n")
        raise RuntimeError(f"{found} could not lay the plan out: {said or done.returncode}")
    return done.stdout


def _search_path() -> str:
    schemes = (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user"))
    scripts = [sysconfig.get_path("scripts", scheme) for scheme in schemes]
    return os.pathsep.join([*scripts, os.environ.get("PATH", os.defpath)])


# --- Mermaid ---------------------------------------------------------------------------------


def to_mermaid(plan: Plan, *, marks: Mapping[int, Mark] = {}) -> str:
    """Write a plan as a Mermaid flowchart, which GitHub and many others draw inside Markdown.

    Args:
        plan: The plan.
        marks: States of a run by step index.
    """
    lines = [f"flowchart {_direction(plan)}"]
    numbers = _numbers(plan, marks)
    for step in plan:
        mark = marks.get(step.index)
        head = f"{numbers[step.index]} · {_clip(_name(step), 32)}" + (
            " · answer" if step is plan.final else ""
        )
        parts = [head, *_wrap(_clean(step.subtask), 32, 3)]
        if mark:
            parts.append(_clip(" · ".join(filter(None, (mark.state, _clean(mark.detail)))), 40))
        lines.append(f'    s{step.index}["{"<br/>".join(map(_entities, parts))}"]')
    direct = _direct(plan)
    for step in plan:
        for earlier in step.access:
            arrow = "-->" if earlier in direct[step.index] else "-.->"
            lines.append(f"    s{earlier} {arrow} s{step.index}")
    for state, (line, fill) in _LIGHT.states.items():
        members = [f"s{step.index}" for step in plan if _state(marks, step) == state]
        if members:
            lines.append(f"    classDef {state} stroke:{line},fill:{fill},color:{_LIGHT.ink}")
            lines.append(f"    class {','.join(members)} {state}")
    lines.append("    classDef answer stroke-width:3px")
    lines.append(f"    class s{plan.final.index} answer")
    return "\n".join(lines) + "\n"


def _state(marks: Mapping[int, Mark], step: Step) -> State | None:
    mark = marks.get(step.index)
    return mark.state if mark else None


def _entities(text: str) -> str:
    """Escape text for a quoted Mermaid label, with codes for all that is not plainly a letter.

    A full stop stays behind letters only, since a line "1. x" would become a Markdown list;
    U+FB02 and the pilcrow are what Mermaid itself writes in place of codes for a while.
    """
    return "".join(
        c
        if (c not in "ﬂ¶" if c > "\x7f" else c.isalnum() or c in " ,")
        or (c == "." and at > 0 and text[at - 1].isalpha())
        else f"#{ord(c)};"
        for at, c in enumerate(text)
    )


# --- terminal --------------------------------------------------------------------------------

_GLYPHS: Mapping[State | None, str] = {
    None: "●",
    "waiting": "◌",
    "running": "◐",
    "done": "✓",
    "failed": "✗",
    "skipped": "⊘",
}
_SGR: Mapping[State | None, str] = {
    None: "",
    "waiting": "2",
    "running": "36",
    "done": "32",
    "failed": "31",
    "skipped": "2",
}

# Lines that leave a cell upwards, downwards, to the left, to the right.
_BOX = {
    (False, False, False, False): " ",
    (False, False, True, True): "─",
    (True, True, False, False): "│",
    (True, True, False, True): "├",
    (True, True, True, False): "┤",
    (True, True, True, True): "┼",
    (True, False, True, True): "┴",
    (True, False, True, False): "┘",
    (True, False, False, True): "└",
    (False, True, True, True): "┬",
    (False, True, True, False): "┐",
    (False, True, False, True): "┌",
}


def terminal_rows(
    plan: Plan, marks: Mapping[int, Mark] = {}, *, columns: int | None = None
) -> list[Row]:
    """Draw the lanes of a plan, one row a step, in the manner of ``git log --graph``.

    A step's output is a lane from its row down to its last reader. Before a step that reads, a
    row joins its lane with those it reads (``├ ┤ ┼ ┴ ┘ └``); lanes that only pass by stay whole
    (``│``) and interrupt the joining line. The lanes are the transitive reduction.

    Args:
        plan: The plan.
        marks: States of a run by step index.
        columns: Widest gutter. A plan that needs more gets its steps without lanes.
    """
    direct = _direct(plan)
    last_reader = [max(by, default=-1) for by in _reversed(direct)]
    lanes: list[int | None] = []  # the step whose output a lane carries
    rows: list[tuple[list[str], int | None]] = []
    for step in plan:
        read = [at for at, owner in enumerate(lanes) if owner in direct[step.index]]
        ends = [at for at in read if last_reader[lanes[at] or 0] == step.index]
        place = (
            ends[0] if ends else next(at for at in count() if at >= len(lanes) or lanes[at] is None)
        )
        if place == len(lanes):
            lanes.append(None)
        if read:
            rows.append((_joint([owner is not None for owner in lanes], read, ends, place), None))
        for at in ends:
            lanes[at] = None
        line = [" " if owner is None else "│" for owner in lanes]
        state = _state(marks, step)
        line[place] = "◉" if state is None and step is plan.final else _GLYPHS[state]
        rows.append((line, step.index))
        if last_reader[step.index] > step.index:
            lanes[place] = step.index
    width = 2 * len(lanes) - 1
    if columns is not None and width > columns:
        bare = (
            "".join(cell for cell in line if cell not in " │")
            for line, at in rows
            if at is not None
        )
        return [Row(gutter, at) for at, gutter in enumerate(bare)]
    return [Row(_spaced(line).ljust(width), at) for line, at in rows]


def _reversed(direct: Sequence[Sequence[int]]) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in direct]
    for index, read in enumerate(direct):
        for earlier in read:
            found[earlier].append(index)
    return found


def _joint(
    taken: Sequence[bool], read: Sequence[int], ends: Sequence[int], place: int
) -> list[str]:
    """Draw the row that leads from the lanes read to the lane of the step that reads them."""
    low, high = min(*read, place), max(*read, place)
    line = []
    for at, open_above in enumerate(taken):
        joined = at in read or at == place
        if joined:
            below = at == place or at not in ends
            shape = (open_above, below, low < at, at < high)
        elif open_above:
            shape = (True, True, False, False)
        else:
            shape = (False, False, low < at < high, low < at < high)
        line.append(_BOX[shape])
    return line


def _spaced(line: Sequence[str]) -> str:
    """Put a column between two lanes, with a dash where a line runs through it."""
    inside = [at for at, cell in enumerate(line) if cell in "─├┤┼┴┘└┬┐┌"]
    low, high = (inside[0], inside[-1]) if inside else (0, 0)
    return "".join(cell + ("─" if low <= at < high else " ") for at, cell in enumerate(line))[:-1]


def to_terminal(
    plan: Plan, *, marks: Mapping[int, Mark] = {}, width: int = 80, colour: bool = False
) -> str:
    """Draw a plan for a terminal: lanes, number, worker, subtask, and what each step reads.

    The words "reads 0, 1" are the whole access list; the lanes are its transitive reduction.

    Args:
        plan: The plan.
        marks: States of a run by step index.
        width: Cells a line may take.
        colour: Whether to colour with SGR escape sequences.
    """
    rows = terminal_rows(plan, marks, columns=max(1, width // 2))
    names = [_clip(_name(step), 20) for step in plan]
    column = max(map(cells, names))
    numbers = _numbers(plan, marks)
    digits = max(map(cells, numbers))
    lines = []
    for row in rows:
        if row.step is None:
            lines.append([(row.gutter, "2")])
            continue
        step = plan.steps[row.step]
        mark = marks.get(row.step)
        name = names[row.step]
        number = numbers[row.step]
        head = f"  {' ' * (digits - cells(number))}{number} "
        left = f"{row.gutter}{head}{name}{' ' * (column - cells(name))}  "
        read = _reads(step.access, numbers)
        reads = "reads " + ", ".join(read) if read else ""
        detail = _clip(_clean(mark.detail), 40) if mark else ""
        behind = "".join(f"   {each}" for each in (detail, reads) if each)
        room = width - cells(left)
        subtask = _clean(step.subtask)
        below: list[str] = []
        if reads and room - cells(behind) < min(cells(subtask), 24):
            behind = f"   {detail}" if detail else ""
            below = _wrap(reads, max(room, 12), len(reads))
        excerpt = _clip(subtask, max(room - cells(behind), 0))
        sgr = _SGR[mark.state] if mark else ""
        lines.append(
            [
                *((cell, "2" if cell == "│" else sgr) for cell in row.gutter),
                (head, "2"),
                (left[len(row.gutter) + len(head) :], "1"),
                (excerpt, ""),
                (behind, "2"),
            ]
        )
        passing = "│" if any(row.step in later.access for later in plan) else " "
        under = "".join(cell if cell in " │" else passing for cell in row.gutter)
        under = under.ljust(cells(left))
        lines += [[(under, "2"), (each, "2")] for each in below]
    return "".join(_line(line, width, colour) + "\n" for line in lines)


def _line(parts: Sequence[tuple[str, str]], width: int, colour: bool) -> str:
    """Join the parts of a line, each with its SGR code, and cut it to the width."""
    shown = _clip("".join(text for text, _ in parts).rstrip(), width)
    if not colour:
        return shown
    out = ""
    for text, sgr in parts:
        piece, shown = shown[: len(text)], shown[len(text) :]
        out += f"\x1b[{sgr}m{piece}\x1b[0m" if sgr and piece.strip() else piece
    return out
