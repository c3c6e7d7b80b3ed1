"""Checking plan files beyond validity: style rules, what ``# noqa`` silences, and safe repairs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .diagnostics import Diagnostic, Positions, Span
from .parse import Document, Items, read_file
from .plan import Limits

_SECRET = re.compile(
    r"\b(?:sk|pk|rk)-[\w-]{16,}|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_\w{30,}|\bgithub_pat_\w{20,}"
    r"|\bxox[abprs]-[\w-]{10,}|\bAIza[\w-]{30,}|\bhf_\w{30,}|\beyJ[\w-]{20,}\.[\w-]{10,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_NOQA = re.compile(r"#\s*noqa(?::\s*([\w, ]+))?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace the characters of a span by ``text``."""

    span: Span
    text: str


def check(
    text: str, *, workers: Sequence[str] | None = None, limits: Limits = Limits()
) -> tuple[Diagnostic, ...]:
    """Return every problem of a plan file in the order of the text; empty if there is none.

    Errors make it no plan; warnings (``P4xx``) are left out where the line says ``# noqa`` or
    ``# noqa: P401``.

    Args:
        text: The file.
        workers: Names of the pool in order, if plans are to be checked against one.
        limits: Caps on size.
    """
    document = read_file(text, workers=workers, limits=limits)
    if document.plan is None:
        return document.errors
    positions = Positions(text)
    found = [positions.diagnostic(*problem) for problem in _style(document)]
    lines = text.split("\n")
    kept = [each for each in found if not _silenced(each, lines[each.line - 1])]
    return tuple(sorted(kept, key=lambda each: (each.line, each.column, each.code)))


def repair(
    text: str, *, workers: Sequence[str] | None = None, limits: Limits = Limits()
) -> tuple[str, int]:
    """Make the repairs that can't change what a plan means.

    These are: a comma missing between two entries that blanks separate, text outside the lists
    (made a comment), and grants that add nothing.

    Returns:
        The repaired text, and how many problems are gone.
    """
    made = 0
    problems = check(text, workers=workers, limits=limits)
    while True:
        positions = Positions(text)
        edits = [edit for each in problems if (edit := fix(text, each, positions)) is not None]
        repaired = text
        for edit in sorted(edits, key=lambda each: each.span.start, reverse=True):
            repaired = repaired[: edit.span.start] + edit.text + repaired[edit.span.end :]
        left = check(repaired, workers=workers, limits=limits)
        if len(left) >= len(problems):  # each round solves something, or is not made
            return text, made
        made += len(edits)
        text, problems = repaired, left


def fix(text: str, problem: Diagnostic, positions: Positions | None = None) -> Edit | None:
    """The safe repair of one problem, if there is one; ``positions`` of the text save time."""
    positions = positions or Positions(text)
    start = positions.offset(problem.line, problem.column)
    end = positions.offset(problem.end_line, problem.end_column)
    match problem.code:
        case "P105" if problem.message.startswith("a comma is missing"):
            bare = text[:start].rstrip()
            if len(bare) == start:  # nothing between: a quote inside a string, rather
                return None
            if "\n" in text[len(bare) : start]:  # the line before may end in a comment
                return Edit(Span(start, start), ", ")
            return Edit(Span(len(bare), len(bare)), ",")
        case "P106":  # not if a list follows on the line: it would be a comment then, too
            ends_line = end >= len(text) or text[end] == "\n"
            return Edit(Span(start, start), "# ") if ends_line else None
        case "P403":
            if text[start:end].startswith("["):
                return Edit(Span(start, end), "[]")
            if text[start:end].strip("\"'").lower() == "all":
                return Edit(Span(start, end), "[]")
            comma = text.rfind(",", 0, start)
            commented = "#" in text[comma:start]
            return Edit(Span(comma, end), "") if comma >= 0 and not commented else None
        case _:
            return None


def _style(document: Document) -> Iterator[tuple[str, str, str, Span]]:
    plan = document.plan
    assert plan is not None
    readers = plan.readers()
    seen: dict[tuple[object, ...], int] = {}
    for step in plan:
        subtask = document.entry("subtasks", step.index)
        access = document.entry("access", step.index)
        assert subtask is not None and access is not None  # a valid plan has them
        if not readers[step.index] and step is not plan.final:
            message = f"nobody reads step {step.index}, and it is not the last"
            hint = f"let a later step read {step.index}, or drop the step"
            yield "P401", message, hint, subtask.span
        same = seen.setdefault((step.worker, step.subtask, step.access), step.index)
        if same != step.index:
            message = f"step {step.index} repeats step {same}"
            yield "P402", message, "give it to another worker, or drop it", subtask.span
        yield from _grants(step.index, access.value, access.span)
    for match in _SECRET.finditer(document.text):
        hint = "take it out and revoke it; keys belong in the environment"
        yield "P404", "this looks like a secret", hint, Span(*match.span())


def _grants(index: int, value: object, span: Span) -> Iterator[tuple[str, str, str, Span]]:
    items = value if isinstance(value, Items) else None
    if index == 0 and (items or items is None):
        yield "P403", "the first step has nothing to read", "write []", span
    elif items is not None:
        for at, item in enumerate(items):
            if item in items[:at]:
                message = f"step {index} names step {item} twice"
                yield "P403", message, "once is enough", items.spans[at]


def _silenced(problem: Diagnostic, line: str) -> bool:
    match = _NOQA.search(line)
    if match is None:
        return False
    return match[1] is None or problem.code.lower() in re.split(r"[,\s]+", match[1].lower())
