"""Print what parsing costs: on hostile text, and beside the least that any reader has to do.

    python tests/benchmarks/parse_speed.py

Not collected by pytest: figures belong to a machine. The bounds are 0.5 s of CPU for any hostile
text and, on a completion of two kilobytes, three times a label finder with ``ast.literal_eval``.
"""

# ruff: noqa: T201

from __future__ import annotations

import ast
import re
import time
from collections.abc import Callable
from statistics import median

from grammar import Limits, PlanError, parse

COMPLETION = """The task has two halves. I want two independent derivations, since a slip in the \
algebra is easy to make and hard to see; then someone compares them, somebody else checks the \
units and the limiting cases, and a last step writes the answer in the form that was asked for. \
The first two workers should not see each other, or the second would only repeat the first.

```python
model_id = [2, 0, 1, 2, 0]
subtasks = [
    "Derive the equation of motion of the bead on the rotating hoop from the Lagrangian. State \
the coordinates, write the kinetic and the potential energy, and keep every intermediate line.",
    "Derive the equation of motion of the bead on the rotating hoop from forces in the rotating \
frame. Draw the forces in words, say which are fictitious, and don't use the Lagrangian at all.",
    "Compare the two derivations term by term. Where they differ, find the line that is wrong, \
say why, and give the corrected equation of motion together with its equilibrium angles.",
    "Check the corrected equation: units of each term, the limits of slow and of fast rotation, \
and the stability of each equilibrium (\\"stable\\" below the critical speed, 'unstable' above).",
    "Write the final answer: the equation of motion, the critical angular velocity, and the \
equilibrium angles with their stability, in at most ten lines and without the derivation.",
]
access_list = [[], [], [0, 1], [2], "all"]
```

The last step gives the answer; it reads everything so that it can quote the checked limits. I \
kept the comparison apart from the check of units, since a worker that does both tends to trust \
its own repair. If the first two agree, the third step is short and nothing is lost; if they \
don't, the third has both derivations in full and need not start again. I thought of a sixth step \
that would look for a published solution, but no worker of this pool can search, and a wrong \
memory of one would do more harm than good.
"""

_LABELS = {
    "workers": re.compile(r"\bmodel[_ ]ids?\s*[=:]", re.I),
    "subtasks": re.compile(r"\bsubtasks?\s*[=:]", re.I),
    "access": re.compile(r"\baccess(?:[_ ]list)?\s*[=:]", re.I),
}


def baseline(text: str) -> dict[str, object]:
    """Find each label, walk to the bracket that closes its list, evaluate what is between."""
    found = {}
    for name, label in _LABELS.items():
        match = label.search(text)
        assert match is not None
        start = text.index("[", match.end())
        depth, quote, at = 0, "", start
        while True:
            c = text[at]
            if quote:
                if c == "\\":
                    at += 1
                elif c == quote:
                    quote = ""
            elif c in "\"'":
                quote = c
            elif c == "[":
                depth += 1
            elif c == "]":
                depth -= 1
                if not depth:
                    break
            at += 1
        found[name] = ast.literal_eval(text[start : at + 1])
    return found


def hostile(size: int) -> dict[str, str]:
    """Texts of ``size`` characters, each made to cost a careless parser more than linear time."""
    patterns = {
        "open brackets": "[",
        "open brackets in a list": "subtasks = [|[",
        "closed lists in a list": "access = [|[],",
        "double quote never closed": 'subtasks = ["|a',
        "single quote never closed": "subtasks = ['|a",
        "triple quote never closed": 'subtasks = ["""|a',
        "curly quote never closed": "subtasks = [“|a",
        "quotes alternating": "subtasks = [|\"'",
        "quotes in triples": "subtasks = [|\"\"\"'''",
        "all kinds of quotes": "subtasks = [|\"a' “b‘ \"\"\"c'''„ ",
        "apostrophes": "subtasks = ['|a'a",
        "label word": "|subtasks ",
        "labels without lists": "|subtasks = ",
        "list begun over and over": "|subtasks = [",
        "string begun over and over": '|subtasks = ["',
        "single-quoted string begun over and over": "|subtasks = ['",
        "triple begun over and over": '|subtasks = ["""',
        "empty lists": "|access = []\n",
        "labels in a string": "subtasks = ['|workers = [1] ",
        "broken lists": "|workers = [?]\n",
        "type annotations": "|subtasks: list[",
        "bold marks": "|*",
        "bold labels": "|**subtasks**:** ",
        "fences": "|subtasks = ```",
        "backslashes": 'subtasks = ["|\\',
        "escapes": 'subtasks = ["|\\ud83d',
        "comment lines": "subtasks = [|#\n",
        "comment lines outside": "|# subtasks\n",
        "blanks": "subtasks |  ",
        "blanks in a list": "subtasks = [|\n\t",
        "think tags": "|<think>",
        "closing think tags": "|</think>",
        "unlike think tags": "|<thinking></think>",
        "digits": "workers = [|9",
        "signs": "workers = [|+-",
        "name": "workers = [|a",
        "commas": "workers = [|,",
        "numbers": "workers = [|1,",
        "entries without commas": "workers = [|1 ",
        "words": "|word ",
        "newlines": "|\n",
    }
    texts = {}
    for name, pattern in patterns.items():
        head, _, period = pattern.rpartition("|")
        texts[name] = (head + period * (size // len(period) + 1))[:size]
    return texts


def cpu_seconds(call: Callable[..., object], *arguments: object) -> float:
    """CPU time of one call."""
    start = time.process_time()
    call(*arguments)
    return time.process_time() - start


def refused(text: str, limits: Limits) -> None:
    """Parse a text that holds no plan."""
    try:
        parse(text, limits=limits)
    except PlanError:
        return
    raise AssertionError("a hostile text was accepted")


def main() -> None:
    """Measure and print both tables."""
    parse(COMPLETION)  # builds the parser
    sizes = {"256 KiB": 256 * 1024, "1 MB": 1_000_000}
    print("CPU seconds to refuse a hostile text (1 MB under the limit of 256 KiB; then without)")
    print(f"{'':42}{'256 KiB':>10}{'1 MB':>10}{'1 MB, any size':>16}")
    worst = 0.0
    texts = {label: hostile(size) for label, size in sizes.items()}
    for name, text in texts["1 MB"].items():
        small = cpu_seconds(refused, texts["256 KiB"][name], Limits())
        capped = cpu_seconds(refused, text, Limits())
        free = cpu_seconds(refused, text, Limits(characters=2**20))
        worst = max(worst, small, capped, free)
        print(f"{name:42}{small:10.3f}{capped:10.3f}{free:16.3f}")
    print(f"worst: {worst:.3f} s (bound 0.5 s)\n")

    ours, least = [], []
    for _ in range(15):  # interleaved, so that both see the same machine
        ours.append(cpu_seconds(lambda: [parse(COMPLETION) for _ in range(40)]) / 40)
        least.append(cpu_seconds(lambda: [baseline(COMPLETION) for _ in range(40)]) / 40)
    one, other = median(ours), median(least)
    print(f"a completion of {len(COMPLETION):,} characters and 5 steps, CPU per call")
    print(f"parse {one * 1e6:,.0f} µs, label finder + literal_eval {other * 1e6:,.0f} µs")
    print(f"ratio {one / other:.2f} (bound 3)")


if __name__ == "__main__":
    main()
