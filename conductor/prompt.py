"""What the Conductor model is asked. Training and serving call this one function, so the bytes are
the same.

The parts and their order follow the Conductor paper (role, mechanics, format, examples, question,
workers), in our words and much shorter: a small model on a CPU pays for every token of it. Workers
are anonymous ordinals by default, as in the paper, so that a trained Conductor prefers by reward
and not by brand; cards may be shown to a model that was not trained on the pool.
"""

from __future__ import annotations

from collections.abc import Sequence

from grammar import Plan, PlanError
from runtime import Message

_SYSTEM = "You coordinate a team of language models. You never answer yourself: you write a plan."

_INSTRUCTIONS = """\
Write a plan of {bounds} that gets the question answered. Each step has a subtask, a worker and an \
access list. A worker sees the question, its subtask, and the replies of the earlier steps in its \
access list. The last step's reply is the answer.

Write three lists of the same length:
subtasks = [strings: what each step has to do]
workers = [worker numbers]
access = [lists of earlier steps, counted from 0; [] reads nothing]"""

_EXAMPLES: tuple[tuple[str, Plan], ...] = (
    (
        "How many prime numbers are there below 30?",
        Plan.of(
            [
                "List the prime numbers below 30.",
                "Count the primes below 30 with a sieve.",
                "Compare both counts and give the final number.",
            ],
            [1, 0, 1],
            [[], [], [0, 1]],
        ),
    ),
    (
        "Write a haiku about rain.",
        Plan.of(
            [
                "Collect three images of rain.",
                "Write a haiku about rain from these images.",
            ],
            [0, 1],
            [[], [0]],
        ),
    ),
)


def plan_messages(
    query: str,
    workers: int,
    *,
    most_steps: int = 5,
    least_steps: int = 1,
    cards: Sequence[str] = (),
) -> tuple[Message, ...]:
    """Build the messages that ask a Conductor model for a plan.

    Args:
        query: What the user asked.
        workers: Size of the pool; workers are numbered from 0.
        most_steps: Longest plan asked for.
        least_steps: Shortest plan asked for.
        cards: What each worker is good at; left out if empty.
    """
    bounds = f"{least_steps} to {most_steps} steps" if least_steps < most_steps else "1 step"
    if least_steps == most_steps > 1:
        bounds = f"{most_steps} steps"
    parts = [_INSTRUCTIONS.format(bounds=bounds)]
    parts += [
        f"Question: {question}\n{plan_text(plan)}"
        for question, plan in _EXAMPLES
        if least_steps <= len(plan) <= most_steps and workers > 1
    ]
    named = [f"Worker {at}: {card}" if card else f"Worker {at}" for at, card in enumerate(cards)]
    parts.append("Workers: " + ("; ".join(named) or f"0 to {workers - 1}"))
    parts.append(f"Question: {query}")
    return Message("system", _SYSTEM), Message("user", "\n\n".join(parts))


def repair_messages(asked: tuple[Message, ...], text: str, error: PlanError) -> tuple[Message, ...]:
    """Continue the conversation after a completion that is no plan, with what is wrong with it."""
    problems = "\n".join(f"- {each.message}; {each.hint}" for each in error.diagnostics[:5])
    demand = f"That is not a valid plan:\n{problems}\nWrite the three lists again, corrected."
    return (*asked, Message("assistant", text or "(nothing)"), Message("user", demand))


def plan_text(plan: Plan) -> str:
    """Write a plan as the Conductor model does: one line a list, workers by number."""
    subtasks = ", ".join(f'"{step.subtask}"' for step in plan)
    workers = ", ".join(str(step.worker) for step in plan)
    access = ", ".join(str(list(step.access)) for step in plan)
    return f"subtasks = [{subtasks}]\nworkers = [{workers}]\naccess = [{access}]\n"
