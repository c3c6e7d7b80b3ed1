"""Text to Plan: find the lists in what a language model or a person wrote, parse, check.

Everything is one pass over the text, so time is linear whatever the text holds. Nothing is
evaluated: the grammar in ``plan.lark`` is the only reader of the lists. How it goes:

1. A finder, built from the label terminals of the grammar, jumps from label to label
   (``subtasks = [``, ``**model_id**: [``, ``"access": [``) and past ``<think>`` blocks.
2. At each label the LALR parser runs until the list closes. If it can't go on, the problem is
   noted and the finder continues from where the parser stopped, never from further back.
3. Of several complete triples the last one counts. Its entries are checked by
   :func:`grammar.plan.violations`, which knows the rules; here they only get their place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, get_args

from .diagnostics import Diagnostic, PlanError, Positions, Span
from .plan import (
    SURROGATE,
    UNLIMITED,
    Limits,
    ListName,
    Plan,
    Step,
    Violation,
    Word,
    granted,
    pool_violations,
    resolved,
    violations,
)

if TYPE_CHECKING:
    from lark import Lark, Token

LISTS: tuple[ListName, ...] = get_args(ListName)

_MOST_LABELS = 1000
"""Labels looked at in one text. Each costs a constant beside its list, so a text made of nothing
but labels stays cheap."""
_MOST_OPEN_STRINGS = 8
"""Strings that are never closed, after which a text is given up: each costs a look at the rest."""
_FIRST = r"""(?=["'`*]{0,3}+[<aAmMsSwW])"""
"""How a tag or a label can begin: looking at it first halves the time spent on prose."""
_DEEPEST = 3
"""Brackets inside brackets: the list, one access entry, and one more to say that it is too many."""


def parse(text: str, *, workers: Sequence[str] | None = None, limits: Limits = Limits()) -> Plan:
    """Read the plan in the text of a language model: prose, fences and drafts may stand round it.

    Args:
        text: The completion. Of several complete plans in it the last one counts.
        workers: Names of the pool in order. If given, numbers become names and others are errors;
            an empty name is a number that nobody has.
        limits: Caps on size.

    Raises:
        PlanError: If there is no valid plan; all problems found are in its ``diagnostics``.
    """
    return _valid(_read(text, workers, limits, whole=False))


def parse_file(
    text: str, *, workers: Sequence[str] | None = None, limits: Limits = Limits()
) -> Plan:
    """Read a plan file: the three lists once each, comments, and nothing else.

    Raises:
        PlanError: As :func:`parse`, and also for text outside the lists.
    """
    return _valid(_read(text, workers, limits, whole=True))


def parse_json(text: str) -> Plan:
    """Read a plan that is JSON and nothing else; :meth:`Plan.from_json` for everybody else.

    The standard library only says whether it is JSON: what it means is read as in every plan.

    Raises:
        PlanError: As :func:`parse_file`, and also for text that is no JSON.
    """
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        at = error.pos if isinstance(error, json.JSONDecodeError) else 0
        why = error.msg if isinstance(error, json.JSONDecodeError) else "a number or nest too long"
        hint = 'write {"subtasks": [...], "workers": [...], "access": [...]}'
        problem = Positions(text).diagnostic(
            "P106", f"not valid JSON: {why[:1].lower()}{why[1:]}", hint, Span(at, at + 1)
        )
        raise PlanError([problem], text) from error
    return parse_file(text, limits=UNLIMITED)


def parse_revision(
    text: str, *, workers: Sequence[str] | None = None, limits: Limits = Limits()
) -> Plan | None:
    """Read a later round: a new plan, or None for three explicit empty lists ("keep the answer").

    Raises:
        PlanError: As :func:`parse`. A text without lists is an error, never "keep".
    """
    document = _read(text, workers, limits, whole=False)
    if [each.code for each in document.errors] == ["P202"]:
        return None
    return _valid(document)


def _valid(document: Document) -> Plan:
    if document.plan is None:
        raise PlanError(document.errors, document.text)
    return document.plan


def read_file(
    text: str, *, workers: Sequence[str] | None = None, limits: Limits = Limits()
) -> Document:
    """Read a plan file, valid or not, with the place of all that is in it; never raises."""
    return _read(text, workers, limits, whole=True)


# --- what the grammar builds -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Placed:
    """An entry as written: a str, int, float, bool, None, Word or a list of values."""

    value: object
    span: Span


@dataclass(frozen=True, slots=True)
class PlacedList:
    """One list found in the text."""

    name: ListName
    start: int
    """Where its label begins."""
    bracket: int
    """Where the list itself begins."""
    end: int
    """Just behind its closing bracket, or where the parser gave up."""
    entries: tuple[Placed, ...]
    broken: bool = False
    """Whether it did not parse; where only commas were missing, its entries are there anyway."""


@dataclass(frozen=True, slots=True)
class Document:
    """A plan file with the place of everything in it: what formatter, linter and editors use."""

    text: str
    plan: Plan | None
    """None if there are errors."""
    lists: tuple[PlacedList, ...]
    """In the order of the text."""
    errors: tuple[Diagnostic, ...]

    def entry(self, name: ListName, index: int) -> Placed | None:
        """The entry of a step in one of the lists, if it is there."""
        for each in self.lists:
            if each.name == name and index < len(each.entries):
                return each.entries[index]
        return None


@dataclass(slots=True)
class _Found:
    """What one pass over the text saw."""

    lists: list[PlacedList] = field(default_factory=list)
    problems: list[tuple[str, str, str, Span]] = field(default_factory=list)
    labels: dict[ListName, Span] = field(default_factory=dict)
    """Labels with no list behind them."""
    open_think: bool = False

    def problem(self, code: str, message: str, hint: str, span: Span) -> None:
        if code == "P203" and any(each[0] == code for each in self.problems):
            return  # three lists that are too long are one problem
        self.problems.append((code, message, hint, span))


def _read(text: str, workers: Sequence[str] | None, limits: Limits, *, whole: bool) -> Document:
    """Parse and check: a Plan and no errors, or no Plan and at least one error."""
    if len(text) > limits.characters:
        message = f"the text has {len(text):,} characters, the limit is {limits.characters:,}"
        hint = "a plan is a few hundred characters; shorten it"
        return Document(text, None, (), (Diagnostic("P107", message, hint, 1, 1, 1, 2),))
    found = _scan(text, limits, whole=whole)
    lists = found.lists
    if whole:
        if lists:
            _note_stray_text(text, found)
        chosen = _only_triple(found)
    else:
        chosen = _last_triple(text, found)
        if chosen is not None:
            first = min(each.start for each in chosen.values())
            last = max(each.end for each in chosen.values())
            found.problems = [p for p in found.problems if first <= p[3].start < last]
    if chosen is None and (not found.problems or whole):
        _note_missing(text, found)
    problems = found.problems
    if chosen is not None and not any(each.broken for each in chosen.values()):
        subtasks, named, access = ([e.value for e in chosen[name].entries] for name in LISTS)
        wrong = violations(subtasks, named, access, limits)
        if workers is not None:
            wrong += pool_violations(named, workers)
        if not wrong and not problems:
            return Document(text, _build(subtasks, named, access, workers), tuple(lists), ())
        problems += [(each.code, each.message, each.hint, _span(chosen, each)) for each in wrong]
    elif whole:
        problems += _partial(lists, workers, limits)
    positions = Positions(text)
    placed = [positions.diagnostic(*problem) for problem in problems]
    placed.sort(key=lambda each: (each.line, each.column, each.code))
    return Document(text, None, tuple(lists), tuple(dict.fromkeys(placed)))


def _build(
    subtasks: list[object],
    named: list[object],
    access: list[object],
    workers: Sequence[str] | None,
) -> Plan:
    steps = []
    for index, (subtask, worker, entry) in enumerate(zip(subtasks, named, access, strict=True)):
        assert isinstance(subtask, str) and isinstance(worker, str | int)  # no violations
        if workers is not None:
            worker = resolved(worker, workers)
        steps.append(Step(index, worker, subtask, granted(index, entry)))
    return Plan(tuple(steps))


def _partial(
    lists: list[PlacedList], workers: Sequence[str] | None, limits: Limits
) -> Iterator[tuple[str, str, str, Span]]:
    """Check the entries of the lists that could be read where the triple as a whole could not.

    Lengths can't be compared then, so only the rules about single entries are applied.
    """
    good = {each.name: each for each in lists if each.entries or not each.broken}
    count = max((len(each.entries) for each in good.values()), default=0)
    if not count:
        return
    filled: dict[ListName, list[object]] = {
        "subtasks": ["x"] * count,
        "workers": [0] * count,
        "access": ["all"] * count,
    }
    for name, each in good.items():
        values = [entry.value for entry in each.entries]
        filled[name][: len(values)] = values
    wrong = violations(filled["subtasks"], filled["workers"], filled["access"], limits)
    if workers is not None:
        wrong += pool_violations(filled["workers"], workers)
    for violation in wrong:
        if violation.where in good and not _torn(good[violation.where], violation):
            yield (violation.code, violation.message, violation.hint, _span(good, violation))


def _torn(each: PlacedList, violation: Violation) -> bool:
    """Whether a word is half of something else that a comma was put into, as in ``f"text"``."""
    at = violation.index
    inside = at is not None and at < len(each.entries)
    return each.broken and inside and isinstance(each.entries[at or 0].value, Word)


def _span(lists: dict[ListName, PlacedList], violation: Violation) -> Span:
    chosen = lists[violation.where]
    if violation.index is None or violation.index >= len(chosen.entries):
        return Span(chosen.start, chosen.end)
    entry = chosen.entries[violation.index]
    if violation.item is not None and isinstance(entry.value, Items):
        return entry.value.spans[violation.item]
    return entry.span


# --- which lists make the plan ---------------------------------------------------------------


def _last_triple(text: str, found: _Found) -> dict[ListName, PlacedList] | None:
    """Choose the last complete triple: three neighbouring lists with three different names.

    Neighbours can be grouped in more than one way (a cut-off second plan, a list quoted in the
    reasoning). The grouping with the most triples wins, then the one with the least text inside
    its triples, then the earlier one.
    """
    lists = found.lists
    best = [(0, 0, -1)] * (len(lists) + 1)
    """For the first n lists: triples, minus the text inside them, start of the last triple."""
    for end in range(1, len(lists) + 1):
        best[end] = best[end - 1]
        triple = lists[max(0, end - 3) : end]
        if len({each.name for each in triple if not each.broken}) == 3:
            count, tight, _ = best[end - 3]
            tight -= triple[1].start - triple[0].end + triple[2].start - triple[1].end
            best[end] = max(best[end], (count + 1, tight, end - 3), key=lambda each: each[:2])
    start = best[-1][2]
    if start < 0:
        repeated = _repeated(lists)
        if repeated is not None and not any(each.broken for each in lists):
            found.problem(*_duplicate(repeated))
        return None
    triple = lists[start : start + 3]
    neighbours = []
    if best[start] == best[max(0, start - 1)] and start:
        neighbours.append((lists[start - 1], lists[start - 1], triple[0]))
    if len(lists) > start + 3 and lists[start + 3].name != triple[0].name:
        neighbours.append((lists[start + 3], triple[2], lists[start + 3]))
    for extra, one, other in neighbours:
        if _adjoin(text, one, other):
            found.problem(*_duplicate(extra))
            return None
    return {each.name: each for each in triple}


def _only_triple(found: _Found) -> dict[ListName, PlacedList] | None:
    repeated = _repeated(found.lists)
    if repeated is not None:
        found.problem(*_duplicate(repeated))
    triple = {each.name: each for each in reversed(found.lists)}
    return triple if len(triple) == 3 else None


def _repeated(lists: list[PlacedList]) -> PlacedList | None:
    names: set[ListName] = set()
    for each in lists:
        if each.name in names:
            return each
        names.add(each.name)
    return None


def _duplicate(again: PlacedList) -> tuple[str, str, str, Span]:
    hint = "keep one of the two"
    return "P109", f"the list `{again.name}` is given twice", hint, Span(again.start, again.end)


def _adjoin(text: str, one: PlacedList, other: PlacedList) -> bool:
    """Whether nothing but blanks and commas stands between two lists."""
    return not text[one.end : other.start].strip(" \t\r\n,")


_FORMS: dict[ListName, str] = {
    "subtasks": 'subtasks = ["what to do first", "what to do next"], one text per step',
    "workers": 'workers = ["name", "name"], one worker per step',
    "access": "access = [[], [0]], per step the earlier steps it reads, counted from 0",
}


def _note_missing(text: str, found: _Found) -> None:
    end = Span(len(text.rstrip()), len(text.rstrip()) + 1)
    have = {each.name for each in found.lists}
    if found.open_think and not have:
        hint = "the model ran out of tokens while thinking; allow it more"
        found.problem("P101", "the text ends inside a <think> block, before any plan", hint, end)
        return
    if not have and not found.labels:
        hint = "write three lists: subtasks = [...], workers = [...], access = [...]"
        found.problem("P101", "there is no plan in the text", hint, Span(0, 1))
        return
    for name in LISTS:
        if name not in have:
            hint = f"add {_FORMS[name]}"
            span = found.labels.get(name, end)
            what = "has no list behind it" if name in found.labels else "is missing"
            found.problem("P102", f"the list `{name}` {what}", hint, span)


def _note_stray_text(text: str, found: _Found) -> None:
    """Report what stands between the lists of a file and is no comment, blank or JSON brace."""
    between = _machinery().between
    at = 0
    broken = False
    for start, end, was_broken in [
        *((each.start, each.end, each.broken) for each in found.lists),
        (len(text), len(text), False),
    ]:
        at = _skip(between, text, at, start)
        if at < start and not broken:  # behind a broken list the rest of it is no news
            stop = text.find("\n", at, start)
            span = Span(at, stop if stop > 0 else start)
            hint = "start the line with # to make it a comment"
            if not any(label.start == at for label in found.labels.values()):
                found.problem(
                    "P106", "this is neither a list of the plan nor a comment", hint, span
                )
        at, broken = end, was_broken


def _skip(blanks: re.Pattern[str], text: str, at: int, end: int) -> int:
    match = blanks.match(text, at, end)
    return match.end() if match else at


# --- the scan --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Machinery:
    lark: Lark
    finder: re.Pattern[str]
    """Finds where an assignment or a block of thinking begins."""
    file_finder: re.Pattern[str]
    """The same, or a comment. A completion's lines with # may be Markdown headings: not there."""
    comment: re.Pattern[str]
    """The comment behind a list on its last line: in a completion too."""
    lexer: re.Pattern[str]
    """Cuts a list into tokens; what is no token of the language is OTHER."""
    between: re.Pattern[str]
    """What may stand between the lists of a file."""


@lru_cache(maxsize=1)
def _machinery() -> _Machinery:
    """Build the parser and, from the grammar's own terminals, the finder and the lexer.

    lark has a lexer too, but it counts lines, asks the parser's state which terminals may come and
    copies what it skips; inside a list one expression does, in half the time.
    """
    from lark import Lark

    lark = Lark.open(
        "plan.lark",
        rel_to=__file__,
        parser="lalr",
        lexer="basic",
        start="assignment",
        transformer=_builder(),
        maybe_placeholders=False,
    )
    terminal = {each.name: each.pattern.to_regexp() for each in lark.terminals}
    labels = "|".join(f"(?P<{name}>{terminal[name.upper()]})" for name in LISTS)
    start = (
        rf"<(?P<think>/?think(?:ing)?)>"
        rf"|(?<!\w)(?:{labels})\s*+{terminal['SEPARATOR']}\s*+(?P<open>\[)?"
    )
    finder = re.compile(rf"{_FIRST}(?:{start})")
    file_finder = re.compile(rf"#[^\n]*|{_FIRST}(?:{start})")
    comment = re.compile(r"[ \t,]*+(?:#[^\n]*)?")
    inside = ("STRING", "NUMBER", "NAME", "OPEN", "CLOSE", "COMMA", "BLANK")
    tokens = "|".join(f"(?P<{name}>{terminal[name]})" for name in inside)
    lexer = re.compile(rf"{tokens}|(?P<OTHER>[\s\S])")
    between = re.compile(rf"(?:{terminal['BLANK']}|[{{}},])+")
    return _Machinery(lark, finder, file_finder, comment, lexer, between)


def _scan(text: str, limits: Limits, *, whole: bool) -> _Found:
    """Find and parse every list of the text, in order, in one pass."""
    finder = _machinery().file_finder if whole else _machinery().finder
    found = _Found()
    at = labels = open_strings = 0
    while (match := finder.search(text, at)) is not None:
        at = match.end()
        if match.lastgroup is None:
            continue  # a comment
        if tag := match["think"]:
            if tag.startswith("/"):  # the opening tag was in the prompt: all so far was thinking
                found = _Found()
                continue
            close = text.find(f"</{tag}>", at)
            if close < 0:
                found.open_think = True
                break
            at = close
            continue
        name: ListName = next(each for each in LISTS if match[each] is not None)
        if match["open"] is None:
            found.labels.setdefault(name, Span(match.start(), match.end()))
            continue
        labels += 1
        if labels > _MOST_LABELS or open_strings >= _MOST_OPEN_STRINGS:
            found = _Found()
            message = "the text is no plan: lists begin in it over and over"
            found.problem("P105", message, "write each list once", Span(match.start(), at))
            break
        at, opened = _parse_list(text, name, match.start(), match.end() - 1, limits, found)
        open_strings += opened
    return found


def _parse_list(
    text: str, name: ListName, start: int, bracket: int, limits: Limits, found: _Found
) -> tuple[int, int]:
    """Feed one assignment to the grammar, from its opening bracket to the one that closes it.

    Returns:
        Where the scan goes on, and 1 if it stopped at a string that is never closed.
    """
    from lark import Token
    from lark.exceptions import UnexpectedToken

    machinery = _machinery()
    parser = machinery.lark.parse_interactive()
    parser.feed_token(Token(name.upper(), text[start:bracket]))
    parser.feed_token(Token("SEPARATOR", "="))
    feed = parser.parser_state.feed_token
    depth = 0
    entries = items = 0
    """Values so far: in the list, and in the nested one that is open."""
    broken = False
    before, kind_before = bracket, "OPEN"
    for match in machinery.lexer.finditer(text, bracket):
        kind = match.lastgroup
        if kind == "BLANK":
            continue
        assert kind is not None  # OTHER takes what no terminal does
        at, end = match.span()
        token = Token(kind, match.group(), at, end_pos=end)
        try:
            feed(token)
        except UnexpectedToken as error:
            for label in (before, at):  # a label in the list: its bracket is missing, further up
                if label > bracket and _begins_list(text, label, end):
                    return _give_up(found, name, (start, bracket), label, _unclosed(name, bracket))
            if kind == "OTHER" and token in _QUOTES:
                _give_up(found, name, (start, bracket), end, _unterminated(text, name, at))
                return end, 1
            if "COMMA" not in error.expected or kind not in _VALUES:
                return _give_up(found, name, (start, bracket), end, _unexpected(name, token))
            if "NAME" not in (kind, kind_before):
                found.problem("P105", "a comma is missing between two entries", *_before(token))
            elif kind_before != "NAME" or not broken:
                found.problem(*_unquoted(name, token))
            broken = True
            feed(Token("COMMA", ","))
            feed(token)
        before, kind_before = at, kind
        if kind in _VALUES and depth:
            items = items + 1 if depth > 1 else 0
            entries += depth == 1
            if max(entries, items) > limits.steps:
                return _give_up(found, name, (start, bracket), end, _too_many(name, token, limits))
        if kind == "OPEN":
            depth += 1
            if depth > _DEEPEST:
                return _give_up(found, name, (start, bracket), end, _too_deep(name, token))
        elif kind == "CLOSE":
            depth -= 1
            if not depth:
                values = parser.feed_eof()  # type: ignore[no-untyped-call]  # lark leaves it so
                found.lists.append(PlacedList(name, start, bracket, end, tuple(values), broken))
                return _skip(machinery.comment, text, end, len(text)), 0
    return _give_up(found, name, (start, bracket), len(text), _unclosed(name, bracket))


def blanks(text: str, each: PlacedList) -> Iterator[tuple[int, str]]:
    """The stretches of blanks and comments inside a list that hold a comment, with their places."""
    for match in _machinery().lexer.finditer(text, each.bracket, each.end):
        if match.lastgroup == "BLANK" and "#" in match.group():
            yield match.start(), match.group()


def _begins_list(text: str, at: int, end: int) -> bool:
    """Whether the token at ``at`` is a label: the separator stands behind it, not within it."""
    match = _machinery().finder.match(text, at)
    return match is not None and match.end() > end


_VALUES = frozenset({"STRING", "NUMBER", "NAME", "OPEN"})
_QUOTES = frozenset("\"'“”„‘’")


def _give_up(
    found: _Found,
    name: ListName,
    begins: tuple[int, int],
    stop: int,
    problem: tuple[str, str, str, Span],
) -> tuple[int, int]:
    """Record a list that does not parse; the scan goes on from where the parser stopped."""
    start, bracket = begins
    found.problem(*problem)
    found.lists.append(PlacedList(name, start, bracket, stop, (), broken=True))
    return stop, 0


def _unclosed(name: ListName, bracket: int) -> tuple[str, str, str, Span]:
    span = Span(bracket, bracket + 1)
    return "P103", f"the list `{name}` is never closed", "close it with ]", span


def _unterminated(text: str, name: ListName, quote: int) -> tuple[str, str, str, Span]:
    line = text.find("\n", quote)
    hint = "close the string with the quote it began with"
    span = Span(quote, line if line > 0 else len(text))
    return "P104", f"a string in `{name}` is never closed", hint, span


def _unexpected(name: ListName, token: Token) -> tuple[str, str, str, Span]:
    shown = str(token) if len(token) <= 20 else token[:19] + "…"
    hint = 'entries are strings in quotes, whole numbers, lists, or "all", with commas between'
    return "P105", f"unexpected {shown!r} in the list `{name}`", hint, _place(token)


def _unquoted(name: ListName, token: Token) -> tuple[str, str, str, Span]:
    hint = "put text in quotes, and a backslash before a quote that belongs to the text"
    return "P105", f"words stand without quotes in the list `{name}`", hint, _place(token)


def _too_deep(name: ListName, token: Token) -> tuple[str, str, str, Span]:
    hint = 'an access entry is a list of steps, as [0, 1], or "all"'
    return "P108", f"`{name}` is nested too deep", hint, _place(token)


def _too_many(name: ListName, token: Token, limits: Limits) -> tuple[str, str, str, Span]:
    message = f"`{name}` has more entries than the limit of {limits.steps} steps"
    return "P203", message, "merge or drop steps", _place(token)


def _before(token: Token) -> tuple[str, Span]:
    return "put a comma before it", _place(token)


def _place(token: Token) -> Span:
    return Span(token.start_pos or 0, token.end_pos or 0)


# --- tokens to values ------------------------------------------------------------------------


class Items(list[object]):
    """The values of a nested list, with the place of each."""

    def __init__(self, values: Sequence[Placed]) -> None:
        super().__init__(each.value for each in values)
        self.spans = [each.span for each in values]


def _builder() -> object:
    """Make the lark transformer that turns tokens into values while parsing."""
    from lark import Token, Transformer

    class Builder(Transformer[Token, list[Placed]]):
        def assignment(self, children: list[Placed | Token]) -> list[Placed]:
            name = str(children[0].type).lower()  # type: ignore[union-attr]  # a label token
            whole = children[2]
            assert isinstance(whole, Placed) and isinstance(whole.value, Items)
            entries = map(Placed, whole.value, whole.value.spans)
            return [_access_entry(each) for each in entries] if name == "access" else [*entries]

        def list(self, children: list[Placed | Token]) -> Placed:
            values = [each for each in children if isinstance(each, Placed)]
            first, last = children[0], children[-1]
            assert isinstance(first, Token) and isinstance(last, Token)
            return Placed(Items(values), Span(_place(first).start, _place(last).end))

    for terminal in _VALUES - {"OPEN"}:
        setattr(Builder, terminal, staticmethod(_token_value))
    return Builder()


def _token_value(token: Token) -> Placed:
    span = _place(token)
    text = str(token)
    value: object
    if token.type == "NUMBER":
        value = _number(text)
    elif token.type == "NAME":
        value = _CONSTANTS.get(text, Word(text))
    else:
        width = 3 if text.startswith(('"""', "'''")) else 1
        value = unescape(text[width:-width])
    return Placed(value, span)


_CONSTANTS: dict[str, object] = {
    "True": True,
    "true": True,
    "False": False,
    "false": False,
    "None": None,
    "null": None,
}


def _number(text: str) -> int | float | Word:
    """A whole number of sane length; anything else stays what it is: no index."""
    if len(text) > 10:
        return Word(text)
    try:
        return int(text)
    except ValueError:
        return float(text)


def _access_entry(entry: Placed) -> Placed:
    """In an access list the bare word all means "all"."""
    value = entry.value
    if isinstance(value, Word) and value.text.lower() == "all":
        return Placed("all", entry.span)
    if isinstance(value, Items):
        value[:] = [
            "all" if isinstance(item, Word) and item.text.lower() == "all" else item
            for item in value
        ]
    return entry


_ESCAPE = re.compile(
    r"\\(?:u([0-9a-fA-F]{4})(?:\\u([0-9a-fA-F]{4}))?|U([0-9a-fA-F]{8})|x([0-9a-fA-F]{2})|([\s\S]))"
)
_SIMPLE = {
    "n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\\": "\\", "/": "/",
    '"': '"', "'": "'", "\n": "",
}  # fmt: skip


def unescape(body: str) -> str:
    """Resolve the escapes that Python and JSON share; an unknown one stays as it is written.

    Half of a surrogate pair becomes U+FFFD, so the result can always be encoded.
    """
    if "\\" not in body:
        return body if body.isascii() else _mend(body)
    return _mend(_ESCAPE.sub(_unescaped, body))


def _unescaped(match: re.Match[str]) -> str:
    high, low, long, short, other = match.groups()
    if high is not None:
        return chr(int(high, 16)) + (chr(int(low, 16)) if low is not None else "")
    if long is not None:
        number = int(long, 16)
        return chr(number) if number <= 0x10FFFF else "\ufffd"
    if short is not None:
        return chr(int(short, 16))
    return _SIMPLE.get(other, "\\" + other)


def _mend(text: str) -> str:
    """Join surrogate pairs and replace halves."""
    if not SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
