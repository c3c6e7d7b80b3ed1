"""What is wrong with a plan, where, and what would be right.

Every problem has a stable code. The table :data:`RULES` pairs each code with a bad and a good
example; it is the documentation of the codes and, at the same time, their test.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of problem, with the example that shows it and the one that repairs it."""

    code: str
    """Stable: ``P1xx`` syntax, ``P2xx`` structure, ``P3xx`` pool, ``P4xx`` style."""
    name: str
    """Short name in kebab-case."""
    summary: str
    """One sentence: what is wrong, in general."""
    bad: str
    """A plan file that has exactly this problem."""
    good: str
    """The same file, repaired."""

    @property
    def severity(self) -> Literal["error", "warning"]:
        """A plan with an error is no plan; one with a warning runs."""
        return "warning" if self.code.startswith("P4") else "error"


_ONE = 'subtasks = ["Solve it."]\nworkers = [0]\naccess = [[]]\n'
_TWO = 'subtasks = ["Draft.", "Check."]\nworkers = [0, 1]\naccess = [[], [0]]\n'


def _two(access: str) -> str:
    return f'subtasks = ["Draft.", "Check."]\nworkers = [0, 1]\naccess = {access}\n'


RULES: dict[str, Rule] = {
    rule.code: rule
    for rule in (
        Rule("P101", "no-plan", "The text holds no list of a plan.", "Just solve it.\n", _ONE),
        Rule(
            "P102",
            "missing-list",
            "One of the three lists is missing.",
            'subtasks = ["Solve it."]\nworkers = [0]\n',
            _ONE,
        ),
        Rule(
            "P103",
            "unclosed-list",
            "A list is opened and never closed.",
            'subtasks = ["Solve it."\nworkers = [0]\naccess = [[]]\n',
            _ONE,
        ),
        Rule(
            "P104",
            "unterminated-string",
            "A string is opened and never closed.",
            'workers = [0]\naccess = [[]]\nsubtasks = ["Solve it.]\n',
            'workers = [0]\naccess = [[]]\nsubtasks = ["Solve it."]\n',
        ),
        Rule(
            "P105",
            "bad-list",
            "Something inside a list is not an entry, or a comma is missing.",
            'subtasks = ["Draft." "Check."]\nworkers = [0, 1]\naccess = [[], [0]]\n',
            _TWO,
        ),
        Rule(
            "P106",
            "stray-text",
            "A plan file holds text that is neither a list of the plan nor a comment.",
            "Here is my plan:\n" + _ONE,
            "# Here is my plan:\n" + _ONE,
        ),
        Rule(
            "P107",
            "too-large",
            "The text is longer than the limit.",
            "# " + "x" * 300_000 + "\n" + _ONE,
            _ONE,
        ),
        Rule(
            "P108",
            "too-deep",
            "Lists are nested deeper than a plan can be.",
            'subtasks = ["Solve it."]\nworkers = [0]\naccess = [[[[0]]]]\n',
            _ONE,
        ),
        Rule(
            "P109",
            "duplicate-list",
            "One of the three lists is given twice.",
            'subtasks = ["Solve it."]\nworkers = [0]\nworkers = [1]\naccess = [[]]\n',
            _ONE,
        ),
        Rule(
            "P201",
            "unequal-lengths",
            "The three lists differ in length: there must be one entry each per step.",
            'subtasks = ["Draft.", "Check."]\nworkers = [0]\naccess = [[], [0]]\n',
            _TWO,
        ),
        Rule(
            "P202",
            "empty-plan",
            "The plan has no steps.",
            "subtasks = []\nworkers = []\naccess = []\n",
            _ONE,
        ),
        Rule(
            "P203",
            "too-many-steps",
            "The plan has more steps than allowed.",
            f"subtasks = {['Go on.'] * 65}\nworkers = {[0] * 65}\naccess = {[[]] * 65}\n".replace(
                "'", '"'
            ),
            _ONE,
        ),
        Rule(
            "P204",
            "forward-reference",
            "A step reads a step that comes later.",
            _two("[[1], []]"),
            _two("[[], [0]]"),
        ),
        Rule(
            "P205",
            "self-reference",
            "A step reads itself.",
            _two("[[], [1]]"),
            _two("[[], [0]]"),
        ),
        Rule(
            "P206",
            "no-such-step",
            "A step reads a step that the plan does not have.",
            _two("[[], [7]]"),
            _two("[[], [0]]"),
        ),
        Rule(
            "P207",
            "negative-index",
            "A step is named by a negative number; steps count from 0.",
            _two("[[], [-1]]"),
            _two("[[], [0]]"),
        ),
        Rule(
            "P208",
            "bad-subtask",
            "A subtask is not a string.",
            'subtasks = ["Draft.", 2]\nworkers = [0, 1]\naccess = [[], [0]]\n',
            _TWO,
        ),
        Rule(
            "P209",
            "bad-worker",
            "A worker is neither a name in quotes nor a whole number from 0.",
            'subtasks = ["Draft.", "Check."]\nworkers = [0, True]\naccess = [[], [0]]\n',
            _TWO,
        ),
        Rule(
            "P210",
            "bad-access",
            'The access of a step is neither a list of earlier steps nor "all".',
            _two('[[], ["some"]]'),
            _two("[[], all]"),
        ),
        Rule(
            "P211",
            "empty-subtask",
            "A subtask says nothing.",
            'subtasks = ["Draft.", " "]\nworkers = [0, 1]\naccess = [[], [0]]\n',
            _TWO,
        ),
        Rule(
            "P212",
            "oversize-subtask",
            "A subtask is longer than the limit.",
            f'subtasks = ["{"x" * 20_000}"]\nworkers = [0]\naccess = [[]]\n',
            _ONE,
        ),
        Rule(
            "P301",
            "unknown-worker",
            "A worker is named that the pool does not have.",
            'subtasks = ["Solve it."]\nworkers = ["gmini"]\naccess = [[]]\n',
            'subtasks = ["Solve it."]\nworkers = ["gemini"]\naccess = [[]]\n',
        ),
        Rule(
            "P302",
            "no-such-worker",
            "A worker number is beyond the end of the pool.",
            'subtasks = ["Solve it."]\nworkers = [9]\naccess = [[]]\n',
            _ONE,
        ),
        Rule(
            "P401",
            "unread-step",
            "A step is not the last one and nobody reads it: its call is wasted.",
            _two("[[], []]"),
            _two("[[], [0]]"),
        ),
        Rule(
            "P402",
            "repeated-step",
            "A worker gets the same subtask twice, reading the same: the second call adds chance"
            " at most.",
            'subtasks = ["Try.", "Try.", "Compare."]\nworkers = [0, 0, 1]\n'
            "access = [[], [], [0, 1]]\n",
            'subtasks = ["Try.", "Try.", "Compare."]\nworkers = [0, 2, 1]\n'
            "access = [[], [], [0, 1]]\n",
        ),
        Rule(
            "P403",
            "empty-grant",
            "A grant adds nothing: the first step has nothing to read, or a step is named twice.",
            _two("[[], [0, 0]]"),
            _two("[[], [0]]"),
        ),
        Rule(
            "P404",
            "secret",
            "The text holds what looks like a key; every worker that reads it would see it.",
            'subtasks = ["Log in with sk-proj-4f9aK2mQ81xYt7Lw."]\nworkers = [0]\naccess = [[]]\n',
            'subtasks = ["Log in with the key of the service."]\nworkers = [0]\naccess = [[]]\n',
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of text: character offsets from 0, ``end`` not included."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One problem of one plan text. Lines and columns count characters from 1."""

    code: str
    message: str
    hint: str
    """What would be right; empty where there is nothing better to say than the message."""
    line: int = 0
    """0 where the plan was built from Python and has no text."""
    column: int = 0
    end_line: int = 0
    end_column: int = 0
    """Column just behind the last character."""

    @property
    def severity(self) -> Literal["error", "warning"]:
        """As its rule says."""
        return RULES[self.code].severity

    def __str__(self) -> str:
        where = f"{self.line}:{self.column}: " if self.line else ""
        return f"{where}{self.code} {self.message}"

    def render(self, text: str, path: str = "<plan>") -> str:
        """Show the problem with the line it stands in, a caret under it, and the hint."""
        lines = [f"{self.severity}[{self.code}]: {visible(self.message)}"]
        if self.line:
            source = text.split("\n")[self.line - 1].rstrip("\r")
            shown, first, width = _excerpt(source, self.column, self._carets(source))
            number = str(self.line)
            gutter = " " * len(number)
            lines += [
                f"{gutter}--> {path}:{self.line}:{self.column}",
                f"{gutter} |",
                f"{number} | {shown}",
                f"{gutter} | {' ' * first}{'^' * width}",
            ]
            if self.hint:
                lines.append(f"{gutter} = hint: {visible(self.hint)}")
        elif self.hint:
            lines.append(f"  = hint: {visible(self.hint)}")
        return "\n".join(lines)

    def _carets(self, source: str) -> int:
        end = self.end_column if self.end_line == self.line else len(source) + 1
        return max(1, end - self.column)


class Positions:
    """Lines and columns of one text, looked up by character offset in O(log lines)."""

    def __init__(self, text: str) -> None:
        self._starts = [0]
        at = text.find("\n")
        while at >= 0:
            self._starts.append(at + 1)
            at = text.find("\n", at + 1)

    def of(self, offset: int) -> tuple[int, int]:
        """Return (line, column), both from 1."""
        line = bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1

    def offset(self, line: int, column: int) -> int:
        """Return the character offset of a line and column; the reverse of :meth:`of`."""
        return self._starts[line - 1] + column - 1

    def diagnostic(self, code: str, message: str, hint: str, span: Span) -> Diagnostic:
        """Place a problem in the text."""
        line, column = self.of(span.start)
        end_line, end_column = self.of(max(span.start, span.end))
        return Diagnostic(code, message, hint, line, column, end_line, end_column)


class PlanError(ValueError):
    """A text or value is not a valid plan.

    Raised by :func:`grammar.parse` and by building a :class:`grammar.Plan`; ``diagnostics`` holds
    every problem that was found, in the order of the text.
    """

    def __init__(self, diagnostics: Iterable[Diagnostic], text: str = "") -> None:
        self.diagnostics: tuple[Diagnostic, ...] = tuple(diagnostics)
        self.text = text
        super().__init__("\n".join(map(str, self.diagnostics)))

    def render(self, path: str = "<plan>") -> str:
        """Show every problem with its line, caret and hint."""
        return "\n\n".join(each.render(self.text, path) for each in self.diagnostics)


_EXCERPT = 100


def _excerpt(source: str, column: int, width: int) -> tuple[str, int, int]:
    """Cut a long line round ``column``: text, cells before the caret, cells under the caret."""
    start = 0
    if len(source) > _EXCERPT:
        start = max(0, min(column - 1 - _EXCERPT // 3, len(source) - _EXCERPT))
    head = visible(source[start : column - 1].replace("\t", " "))
    marked = visible(
        source[column - 1 : min(column - 1 + width, start + _EXCERPT)].replace("\t", " ")
    )
    tail = visible(source[column - 1 + width : start + _EXCERPT].replace("\t", " "))
    left = "…" if start else ""
    right = "…" if start + _EXCERPT < len(source) else ""
    return left + head + marked + tail + right, cells(left + head), max(1, cells(marked))


def cells(text: str) -> int:
    """Count terminal cells: wide characters take two, combining marks none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: str, keep: str = "") -> str:
    """Make text from a model or a file safe to print: control and bidi characters are spelt out.

    Args:
        text: Any text.
        keep: Control characters that may pass, such as newline and tab.
    """
    if text.isprintable():
        return text
    return "".join(
        f"\\u{ord(c):04x}"
        if c not in keep and (c in BIDI or unicodedata.category(c) in ("Cc", "Cs"))
        else c
        for c in text
    )
