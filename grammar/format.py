"""The canonical text of a plan, and of a plan file with its comments."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass, field

from .diagnostics import BIDI, PlanError
from .parse import Document, Items, Placed, PlacedList, blanks, read_file
from .plan import Limits, ListName, Plan

_LABELS: dict[ListName, str] = {
    "subtasks": "subtasks = ",
    "workers": "workers  = ",
    "access": "access   = ",
}


def format_plan(plan: Plan) -> str:
    """Write a plan as its canonical text: three lists, one subtask a line, plain characters.

    ``parse(format_plan(plan)) == plan`` holds for every plan.
    """
    subtasks = "".join(f"    {quote(step.subtask)},\n" for step in plan)
    workers = ", ".join(_written(step.worker) for step in plan)
    access = ", ".join(f"[{', '.join(map(str, step.access))}]" for step in plan)
    return (
        f"{_LABELS['subtasks']}[\n{subtasks}]\n"
        f"{_LABELS['workers']}[{workers}]\n"
        f"{_LABELS['access']}[{access}]\n"
    )


def format_file(text: str, *, limits: Limits = Limits()) -> str:
    """Lay a plan file out in the canonical way; comments and the order of the lists stay.

    Formatting twice is formatting once, and the plan stays the same. A file with mistakes of
    meaning (an unknown step, unequal lengths) is formatted too.

    Raises:
        PlanError: If it can't be read as three lists.
    """
    document = read_file(text, limits=limits)
    syntax = any(each.code.startswith("P1") for each in document.errors)
    if syntax or any(each.broken for each in document.lists):  # nothing unread may get lost
        raise PlanError(document.errors, text)
    lines: list[str] = []
    at = 0
    for each in document.lists:
        _between(lines, text[at : each.start])
        lines += _list_lines(document, each)
        at = each.end
    _between(lines, text[at:])
    while lines and not lines[-1]:
        lines.pop()
    return "\n".join(lines) + "\n"


def format_json(plan: Plan, indent: int | None = None) -> str:
    """Write a plan as a JSON object of its three lists; what would not show is escaped, as above.

    ``parse(format_json(plan)) == plan`` holds for every plan, and for any JSON reader it is JSON.
    """
    subtasks = [quote(step.subtask) for step in plan]
    workers = ", ".join(_written(step.worker) for step in plan)
    access = json.dumps(plan.access)
    if indent is None:
        listed = ", ".join(subtasks)
        return f'{{"subtasks": [{listed}], "workers": [{workers}], "access": {access}}}'
    pad = " " * indent
    listed = ",\n".join(pad + pad + subtask for subtask in subtasks)
    lists = (f'"subtasks": [\n{listed}\n{pad}]', f'"workers": [{workers}]', f'"access": {access}')
    return "{\n" + ",\n".join(pad + each for each in lists) + "\n}"


def _written(worker: str | int) -> str:
    return quote(worker) if isinstance(worker, str) else str(worker)


_encode = json.JSONEncoder(ensure_ascii=False).encode
"""json.dumps would make an encoder for every string."""


def quote(text: str) -> str:
    """Write a string in double quotes; what would not show (control, bidi) is escaped."""
    written = _encode(text)
    if written.isprintable():
        return written
    return "".join(f"\\u{ord(c):04x}" if _hidden(c) else c for c in written)


def _hidden(c: str) -> bool:
    return c in BIDI or c in "\u2028\u2029\ufeff" or unicodedata.category(c) in ("Cc", "Cs")


def _between(lines: list[str], gap: str) -> None:
    """Keep the comments outside the lists, and single blank lines."""
    first, *rest = gap.split("\n")
    beside = _comment(first)
    if beside and lines:
        lines[-1] += f"  {beside}"
    elif beside:
        lines.append(beside)
    for line in rest[:-1]:
        comment = _comment(line)
        if comment or (lines and lines[-1]):
            lines.append(comment)
    if rest and (comment := _comment(rest[-1])):  # else it is what stands before the next label
        lines.append(comment)


def _comment(line: str) -> str:
    """The comment in a line that holds no strings, tidied; empty if there is none."""
    _, mark, said = line.partition("#")
    return "#" + said.rstrip() if mark else ""


@dataclass(slots=True)
class _Row:
    """An entry with its comments."""

    before: list[str] = field(default_factory=list)
    written: str = ""
    beside: str = ""


def _list_lines(document: Document, each: PlacedList) -> list[str]:
    rows = [_Row(written=_write(document.text, entry)) for entry in each.entries]
    rest = _Row()
    """Comments behind the last entry."""
    for at, blank in blanks(document.text, each):
        beside, *own = blank.split("\n")
        last = max((i for i, e in enumerate(each.entries) if e.span.start < at), default=None)
        inside = last is not None and at < each.entries[last].span.end
        following = (0 if last is None else last + 1) if not inside else last
        target = rows[following] if following is not None and following < len(rows) else rest
        first = _comment(beside)
        ends = each.entries[last].span.end if last is not None else at
        if first and last is not None and not inside and "\n" not in document.text[ends:at]:
            rows[last].beside += ("  " if rows[last].beside else "") + first
        elif first:
            target.before.append(first)
        target.before += [comment for line in own if (comment := _comment(line))]
    label = _LABELS[each.name]
    commented = rest.before or any(row.before or row.beside for row in rows)
    if not rows and not commented:
        return [f"{label}[]"]
    if each.name != "subtasks" and not commented:
        return [f"{label}[{', '.join(row.written for row in rows)}]"]
    lines = [f"{label}["]
    for row in rows:
        lines += [f"    {comment}" for comment in row.before]
        lines.append(f"    {row.written}," + (f"  {row.beside}" if row.beside else ""))
    lines += [f"    {comment}" for comment in rest.before]
    return [*lines, "]"]


def _write(text: str, entry: Placed) -> str:
    match entry.value:
        case str():
            return quote(entry.value)
        case Items():
            parts = zip(entry.value, entry.value.spans, strict=True)
            return f"[{', '.join(_write(text, Placed(value, span)) for value, span in parts)}]"
        case _:
            return text[entry.span.start : entry.span.end]
