"""The shapes that plans often have, drawn in the terminal; and one of them carried out.

The workers are plain Python functions, so this takes no model and no time.

    python examples/03_shapes.py
"""

import re
from collections.abc import Sequence

from conductor import (
    Conductor,
    FunctionWorker,
    Message,
    Pool,
    best_of_n,
    chain,
    debate,
    diamond,
    marks,
    to_terminal,
    topology,
    tree,
)


async def guess_low(messages: Sequence[Message]) -> str:
    return "about 40"


async def guess_high(messages: Sequence[Message]) -> str:
    return "about 60"


async def judge(messages: Sequence[Message]) -> str:
    guesses = [int(number) for number in re.findall(r"about (\d+)", messages[-1].content)]
    return f"between {min(guesses)} and {max(guesses)}"


def main() -> None:
    shapes = [
        best_of_n(["low", "high"], "judge"),
        chain(["Draft.", "Criticise.", "Rewrite."], ["low", "high"]),
        debate(["low", "high"], "judge", rounds=2),
        tree(["low", "high", "low", "high"], "judge"),
        diamond(
            ("low", "Split the task."), [("low", "One half."), ("high", "The other.")], "judge"
        ),
    ]
    for plan in shapes:
        print(f"{topology(plan)}\n{to_terminal(plan)}")

    workers = {"low": guess_low, "high": guess_high, "judge": judge}
    pool = Pool([FunctionWorker(name, function) for name, function in workers.items()])
    run = Conductor(pool).run("How many beans are in the jar?", plan=shapes[0])
    print(to_terminal(shapes[0], marks=marks(run)))
    print(f"answer: {run.answer}")


if __name__ == "__main__":
    main()
