"""The plan grammar as engines for grammar-constrained decoding want it.

A context-free grammar can't count or compare. But for a given number of workers and steps the
plans are finitely many shapes, so a grammar can spell them out: for each length n exactly n
subtasks, n workers of the pool and n access lists, where list i offers only steps before i. A
model that decodes under it writes a valid plan whatever its weights are.

The rules are made once, as data, and printed in the dialect of an engine. Blanks are spelt out
and every string is bounded, or else a weak model would fill its token budget without ever closing
a list.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

GrammarForm = Literal["lark", "llguidance", "gbnf"]


def decoding_grammar(
    workers: int | Sequence[int],
    *,
    most_steps: int = 5,
    least_steps: int = 1,
    subtask_characters: int = 160,
    keep: bool = False,
    form: GrammarForm = "lark",
) -> str:
    """Generate the grammar of all plans within the given bounds.

    The size is O(most_steps ** 3): access lists are ascending, so that the 2 ** i subsets of the
    earlier steps need only i rules per step.

    Args:
        workers: Size of the pool; plans name workers by number, 0 to ``workers - 1``. Or the
            numbers that they may name.
        most_steps: Longest plan, at most 16.
        least_steps: Shortest plan, at least 1.
        subtask_characters: Longest subtask, at least 3. A subtask is one line without quotes and
            backslashes.
        keep: Whether three empty lists are allowed too: in later rounds they keep the answer.
        form: ``"lark"`` is for lark (LALR), and llguidance in Python reads it too;
            ``"llguidance"`` is the same behind the header by which servers tell it from GBNF;
            ``"gbnf"`` is for llama.cpp, and for vLLM and others with xgrammar.

    Raises:
        ValueError: If the bounds leave no plan or are too wide to be spelt out.
    """
    numbers = range(workers) if isinstance(workers, int) else sorted(set(workers))
    if not numbers:
        raise ValueError("a plan needs at least one worker; the pool is empty")
    if not 1 <= least_steps <= most_steps <= 16:
        message = f"steps from {least_steps} to {most_steps} asked for; possible is 1 to 16"
        raise ValueError(message)
    if subtask_characters < 3:
        raise ValueError(f"subtasks of {subtask_characters} characters asked for; at least 3")
    if form == "gbnf" and subtask_characters > _MOST_CHARACTERS:
        message = f"subtasks of {subtask_characters} characters asked for; "
        raise ValueError(message + f"llama.cpp reads at most {_MOST_CHARACTERS}")
    rules = dict(_rules(numbers, range(least_steps, most_steps + 1), subtask_characters, keep))
    match form:
        case "lark":
            return _lark(rules)
        case "llguidance":
            return "%llguidance {}\n\n" + _lark(rules)
        case "gbnf":
            return _gbnf(rules)
    raise ValueError(f"no grammar form {form!r}; there are lark, llguidance and gbnf")


# --- the rules -------------------------------------------------------------------------------


class _Ref(NamedTuple):
    """What another rule produces."""

    rule: str


class _Run(NamedTuple):
    """Characters in a row, each from one of the ranges of code points."""

    of: _Ranges
    least: int
    most: int


_Ranges = tuple[tuple[int, int], ...]
_Symbol = str | _Ref | _Run
"""A string stands for itself."""
_Rules = Mapping[str, list[list[_Symbol]]]
"""Alternatives by name of the rule, each a sequence; the first rule is the start."""


def _but(*without: tuple[int, int]) -> _Ranges:
    """All characters but those of some ranges.

    Engines get what is allowed: of a class of what is not, llama.cpp refuses every token that is
    the beginning of a character and may still become a forbidden one.
    """
    low, found = 0, []
    for first, last in sorted(without):
        found += [(low, first - 1)] if first > low else []
        low = last + 1
    return *found, (low, 0x10FFFF)


_UNSAFE = ((0x00, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x7F, 0x9F), (0xD800, 0xDFFF))
"""Control characters, quote, backslash, surrogates."""
_BLANK = (
    (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029),
    (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000),
)  # fmt: skip

_MOST_CHARACTERS = 2000
"""Of a subtask in GBNF: llama.cpp refuses what may repeat 2000 times, and one stands before."""


def _rules(
    workers: Sequence[int], lengths: range, subtask_characters: int, keep: bool
) -> Iterator[tuple[str, list[list[_Symbol]]]]:
    counts = [*([0] if keep else []), *lengths]
    yield "start", [[_Ref(f"plan{n}")] for n in counts]
    for n in counts:
        subtasks = _listed([_Ref("subtask")] * n)
        whose = _listed([_Ref("worker")] * n)
        access = _listed([_Ref(f"access{step}") for step in range(n)])
        parts = ["subtasks = [", *subtasks, "]\nworkers = [", *whose, "]\naccess = [", *access]
        yield f"plan{n}", [[*parts, "]\n"]]
    for step in range(lengths[-1]):
        # All ascending lists of steps before this one.
        first: list[list[_Symbol]] = [[f"[{at}", *_tail(at, step), "]"] for at in range(step)]
        yield f"access{step}", [["[]"], *first]
    for step in range(2, lengths[-1]):
        for after in range(step - 1):
            later = range(after + 1, step)
            more: list[list[_Symbol]] = [[f", {at}", *_tail(at, step)] for at in later]
            yield f"tail{after}of{step}", [[], *more]
    yield "worker", [[str(number)] for number in workers]
    first_character = _Run(_but(*_UNSAFE, *_BLANK), 1, 1)
    others = _Run(_but(*_UNSAFE), 2, subtask_characters - 1)
    yield "subtask", [['"', first_character, others, '"']]


def _listed(entries: list[_Ref]) -> list[_Symbol]:
    separated: list[_Symbol] = []
    for entry in entries:
        separated += [", ", entry] if separated else [entry]
    return separated


def _tail(after: int, step: int) -> list[_Symbol]:
    """What may follow ``after`` in an access list of ``step``: nothing, or a later earlier step."""
    return [_Ref(f"tail{after}of{step}")] if after < step - 1 else []


# --- the dialects ----------------------------------------------------------------------------


def _lark(rules: _Rules) -> str:
    """Print as Lark, where a rule of characters is a terminal: named in capitals, one regex."""
    characters = {
        name
        for name, alternatives in rules.items()
        if any(isinstance(symbol, _Run) for each in alternatives for symbol in each)
    }

    def printed(symbol: _Symbol) -> str:
        if isinstance(symbol, _Ref):
            return symbol.rule.upper() if symbol.rule in characters else symbol.rule
        return _class(symbol) if isinstance(symbol, _Run) else json.dumps(symbol)

    def line(name: str, alternatives: list[list[_Symbol]]) -> str:
        if name not in characters:
            return f"{name}: " + " | ".join(" ".join(map(printed, each)) for each in alternatives)
        # Its strings are quotes, which mean themselves in a regex.
        (sequence,) = alternatives
        inner = (symbol if isinstance(symbol, str) else printed(symbol) for symbol in sequence)
        return f"{name.upper()}: /{''.join(inner)}/"

    return "".join(line(*rule) + "\n" for rule in rules.items())


def _gbnf(rules: _Rules) -> str:
    """Print as GBNF, where the start is called root."""

    def printed(symbol: _Symbol) -> str:
        if isinstance(symbol, _Ref):
            return symbol.rule
        return _class(symbol) if isinstance(symbol, _Run) else json.dumps(symbol)

    def line(name: str, alternatives: list[list[_Symbol]]) -> str:
        said = " | ".join(" ".join(map(printed, each)) or '""' for each in alternatives)
        return f"{'root' if name == 'start' else name} ::= {said}"

    return "".join(line(*rule) + "\n" for rule in rules.items())


def _class(run: _Run) -> str:
    times = "" if run.most == 1 else f"{{{run.least},{run.most}}}"
    inside = (_escape(low) + (f"-{_escape(high)}" if high > low else "") for low, high in run.of)
    return f"[{''.join(inside)}]{times}"


def _escape(code: int) -> str:
    """Write a character as all dialects and both kinds of regex read it.

    lark resolves the codes before it reads a regex, so brackets need a backslash in their place.
    """
    if chr(code) in "[]":
        return "\\" + chr(code)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
