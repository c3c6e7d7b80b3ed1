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
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

GrammarForm = Literal["lark", "llguidance", "gbnf"]


def decoding_grammar(
    workers: int,
    *,
    most_steps: int = 5,
    least_steps: int = 1,
    subtask_characters: int = 160,
    form: GrammarForm = "lark",
) -> str:
    """Generate the grammar of all plans within the given bounds.

    The size is O(most_steps ** 3): access lists are ascending, so that the 2 ** i subsets of the
    earlier steps need only i rules per step.

    Args:
        workers: Size of the pool; plans name workers by number, 0 to ``workers - 1``.
        most_steps: Longest plan, at most 16.
        least_steps: Shortest plan, at least 1.
        subtask_characters: Longest subtask, at least 3. A subtask is one line without quotes and
            backslashes.
        form: ``"lark"`` is for lark (LALR), and llguidance in Python reads it too;
            ``"llguidance"`` is the same behind the header by which servers tell it from GBNF;
            ``"gbnf"`` is for llama.cpp, and for vLLM and others with xgrammar.

    Raises:
        ValueError: If the bounds leave no plan or are too wide to be spelt out.
    """
    if workers < 1:
        raise ValueError("a plan needs at least one worker; the pool is empty")
    if not 1 <= least_steps <= most_steps <= 16:
        message = f"steps from {least_steps} to {most_steps} asked for; possible is 1 to 16"
        raise ValueError(message)
    if subtask_characters < 3:
        raise ValueError(f"subtasks of {subtask_characters} characters asked for; at least 3")
    if form == "gbnf" and subtask_characters > _MOST_REPEATS:
        message = f"subtasks of {subtask_characters} characters asked for; "
        raise ValueError(message + f"llama.cpp reads at most {_MOST_REPEATS}")
    rules = dict(_rules(workers, range(least_steps, most_steps + 1), subtask_characters))
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


class _Other(NamedTuple):
    """A run of characters, each none of the given ones."""

    than: str
    """Inside of a character class; the escapes are those that all dialects share."""
    least: int
    most: int


_Symbol = str | _Ref | _Other
"""A string stands for itself."""
_Rules = Mapping[str, list[list[_Symbol]]]
"""Alternatives by name of the rule, each a sequence; the first rule is the start."""

_ENDS_OR_ACTS = r'"\\\x00-\x1f\x7f-\x9f'
_BLANK = r" \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"

_MOST_REPEATS = 2000
"""llama.cpp takes a larger upper bound of a repetition for none."""


def _rules(
    workers: int, lengths: range, subtask_characters: int
) -> Iterator[tuple[str, list[list[_Symbol]]]]:
    yield "start", [[_Ref(f"plan{n}")] for n in lengths]
    for n in lengths:
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
    yield "worker", [[str(number)] for number in range(workers)]
    start = _Other(_ENDS_OR_ACTS + _BLANK, 1, 1)
    yield "subtask", [['"', start, _Other(_ENDS_OR_ACTS, 2, subtask_characters - 1), '"']]


def _listed(entries: list[_Ref]) -> list[_Symbol]:
    return [part for entry in entries for part in (", ", entry)][1:]


def _tail(after: int, step: int) -> list[_Symbol]:
    """What may follow ``after`` in an access list of ``step``: nothing, or a later earlier step."""
    return [_Ref(f"tail{after}of{step}")] if after < step - 1 else []


# --- the dialects ----------------------------------------------------------------------------


def _lark(rules: _Rules) -> str:
    """Print as Lark, where a rule of characters is a terminal: named in capitals, one regex."""
    characters = {
        name
        for name, alternatives in rules.items()
        if any(isinstance(symbol, _Other) for each in alternatives for symbol in each)
    }

    def printed(symbol: _Symbol) -> str:
        if isinstance(symbol, _Ref):
            return symbol.rule.upper() if symbol.rule in characters else symbol.rule
        return _class(symbol) if isinstance(symbol, _Other) else json.dumps(symbol)

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
        return _class(symbol) if isinstance(symbol, _Other) else json.dumps(symbol)

    def line(name: str, alternatives: list[list[_Symbol]]) -> str:
        said = " | ".join(" ".join(map(printed, each)) or '""' for each in alternatives)
        return f"{'root' if name == 'start' else name} ::= {said}"

    return "".join(line(*rule) + "\n" for rule in rules.items())


def _class(symbol: _Other) -> str:
    times = "" if symbol.most == 1 else f"{{{symbol.least},{symbol.most}}}"
    return f"[^{symbol.than}]{times}"
