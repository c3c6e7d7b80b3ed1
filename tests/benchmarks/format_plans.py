# ruff: noqa: T201
"""Round trips of many random plans, and the time a large one takes.

    PYTHONPATH=. python tests/benchmarks/format_plans.py 100000

Every plan is written, laid out differently, read and formatted: parse -> format -> parse must be
the identity and formatting idempotent. Then a plan of 1,000 steps is parsed, checked and
formatted: CPU milliseconds, median of 9 (bar: 100 each).
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from statistics import median

from grammar import Limits, Plan, check, format_file, parse, parse_file

PIECES = [
    "Solve it.", "subtasks = [", 'workers: ["a"]', "</think>", "```python", "# noqa", '"', "'",
    "\\", "\\n", "\n", "\r\n", "\t", "it's", "“quoted”", "‘so’", "[0, 1]", "{", "}", "é", "数",
    "😀", "\u202e", "\u2028", "\ufeff", "\x00", "\x1b[31m", "\x7f", "all", "True", "//", "/*",
    "$", " ", "  ",
]  # fmt: skip
COMMENTS = ["", "", "", " # why\n", "\n# own line\n", "\n\n", "\t"]


def plan(dice: random.Random) -> Plan:
    """A plan of 1 to 8 steps with subtasks that hold everything a parser could trip over."""
    n = dice.randint(1, 8)
    subtasks = ["x" + "".join(dice.choices(PIECES, k=dice.randint(1, 8))) for _ in range(n)]
    workers = [dice.choice([0, 1, 63, "gpt", "a-b.c", "5", "naïve"]) for _ in range(n)]
    access = [sorted(dice.sample(range(i), dice.randint(0, i))) for i in range(n)]
    return Plan.of(subtasks, workers, access)


def layout(written: str, dice: random.Random) -> str:
    """The same file with other blanks, and with comments, at ends of lines and between lists."""
    lines = written.split("\n")
    return "".join(line + dice.choice(COMMENTS) + "\n" for line in lines)


def round_trips(count: int) -> None:
    """Check the promises on ``count`` plans; the seeds are 0 to count - 1."""
    for seed in range(count):
        dice = random.Random(seed)
        made = plan(dice)
        written = str(made)
        messy = layout(written, dice)
        tidy = format_file(messy)
        assert parse_file(written) == parse(written) == parse_file(messy) == made, seed
        assert parse_file(tidy) == made, seed
        assert format_file(tidy) == tidy, seed
        assert format_file(written) == written, seed
    print(f"{count:,} plans: parse -> format -> parse is the identity, formatting is idempotent")


def large() -> None:
    """Time a plan of 1,000 steps."""
    n = 1000
    text = str(
        Plan.of(
            [f"Do part {i} of the work and write down what you found." for i in range(n)],
            ["gemini", "opus"] * (n // 2),
            [[i - 1] if i else [] for i in range(n)],
        )
    )
    limits = Limits(steps=n)
    jobs: dict[str, Callable[[], object]] = {
        "parse": lambda: parse(text, limits=limits),
        "check": lambda: check(text, limits=limits),
        "format": lambda: format_file(text, limits=limits),
    }
    for name, job in jobs.items():
        took = []
        for _ in range(9):
            began = time.process_time()
            job()
            took.append(1000 * (time.process_time() - began))
        print(f"{name:7} 1,000 steps, {len(text):,} characters: {median(took):.0f} ms")


if __name__ == "__main__":
    large()
    round_trips(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
