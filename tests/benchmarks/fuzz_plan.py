"""Coverage-guided fuzzing of the plan language with atheris (``pip install atheris``).

    PYTHONPATH=. python tests/benchmarks/fuzz_plan.py -max_total_time=1200 -max_len=4096

Promises checked on every input: nothing but PlanError is raised; positions lie inside the text;
parse -> format -> parse is the identity; formatting and repairing twice is doing it once; no input
takes more than 250 ms of CPU. libFuzzer's options pass through; its summary has the executions.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

import atheris

with atheris.instrument_imports(include=["grammar"]):
    from grammar import (
        RULES,
        Plan,
        PlanError,
        check,
        format_file,
        parse,
        parse_file,
        parse_revision,
        repair,
    )

SLOWEST_S = 0.25
POOL = ("gemini", "opus", "gpt")


def one(data: bytes) -> None:
    """Put one input through everything that reads plan text."""
    text = data.decode("utf-8", "replace")
    began = time.process_time()
    through(text)
    took = time.process_time() - began
    if took > SLOWEST_S:
        raise AssertionError(f"{took:.3f} s for {len(text)} characters")


def through(text: str) -> None:
    """The promises."""
    lines = text.count("\n") + 1
    for problem in check(text, workers=POOL):
        assert 1 <= problem.line <= lines and problem.column >= 1
        assert problem.render(text)
    for read in (parse, parse_file):
        try:
            plan = read(text)
        except PlanError as error:
            assert error.diagnostics
        else:
            same(plan)
    with suppress(PlanError):
        parse_revision(text, workers=POOL)
    try:
        tidy = format_file(text)
    except PlanError:
        pass
    else:
        assert format_file(tidy) == tidy
        assert outcome(tidy) == outcome(text)
    repaired, _ = repair(text)
    assert repair(repaired) == (repaired, 0)


def same(plan: Plan) -> None:
    """A plan survives being written and read, and its text needs no formatting."""
    written = str(plan)
    assert parse(written) == parse_file(written) == plan
    assert format_file(written) == written


def outcome(text: str) -> Plan | list[str]:
    """The plan of a file, or the codes of its problems."""
    try:
        return parse_file(text)
    except PlanError as error:
        return sorted(each.code for each in error.diagnostics)


def seeds() -> Path:
    """Start from the examples of every rule."""
    folder = Path(mkdtemp(prefix="plan-corpus-"))
    for code, rule in RULES.items():
        for name, text in (("bad", rule.bad), ("good", rule.good)):
            if len(text) < 4096:
                (folder / f"{code}-{name}").write_text(text, encoding="utf-8")
    return folder


if __name__ == "__main__":
    atheris.Setup([*sys.argv, str(seeds())], one)
    atheris.Fuzz()
