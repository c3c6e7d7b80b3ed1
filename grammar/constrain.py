"""The plan grammar as an engine for grammar-constrained decoding wants it.

A context-free grammar can't count or compare. But for a given number of workers and steps the
plans are finitely many shapes, so a grammar can spell them out: for each length n exactly n
subtasks, n workers of the pool and n access lists, where list i offers only steps before i. A
model that decodes under it writes a valid plan whatever its weights are.

The text is Lark that both lark (LALR) and llguidance accept. Blanks are spelt out and every string
is bounded, or else a weak model would fill its token budget without ever closing a list.
"""

from __future__ import annotations


def decoding_grammar(
    workers: int, *, most_steps: int = 5, least_steps: int = 1, subtask_characters: int = 160
) -> str:
    """Generate the Lark grammar of all plans within the given bounds.

    The size is O(most_steps ** 3): access lists are ascending, so that the 2 ** i subsets of the
    earlier steps need only i rules per step.

    Args:
        workers: Size of the pool; plans name workers by number, 0 to ``workers - 1``.
        most_steps: Longest plan, at most 16.
        least_steps: Shortest plan, at least 1.
        subtask_characters: Longest subtask, at least 3. A subtask is one line without quotes and
            backslashes.

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
    lengths = range(least_steps, most_steps + 1)
    lines = [
        "start: " + " | ".join(f"plan{n}" for n in lengths),
        *(
            f'plan{n}: "subtasks = [" {_times("subtask", n)} '
            f'"]\\nworkers = [" {_times("worker", n)} '
            f'"]\\naccess = [" {_access_lists(n)} "]\\n"'
            for n in lengths
        ),
        *(_access_rule(step) for step in range(most_steps)),
        *(_tail_rule(after, step) for step in range(2, most_steps) for after in range(step - 1)),
        "worker: " + " | ".join(f'"{number}"' for number in range(workers)),
        "subtask: SUBTASK",
        rf'SUBTASK: /"[^\s"\\\x00-\x1f\x7f-\x9f][^"\\\x00-\x1f\x7f-\x9f]'
        rf'{{2,{subtask_characters - 1}}}"/',
    ]
    return "\n".join(lines) + "\n"


def _times(rule: str, n: int) -> str:
    return ' ", " '.join([rule] * n)


def _access_lists(n: int) -> str:
    return ' ", " '.join(f"access{step}" for step in range(n))


def _access_rule(step: int) -> str:
    """All ascending lists of steps before ``step``."""
    choices = ['"[]"', *(f'"[{first}" {_tail(first, step)} "]"' for first in range(step))]
    return f"access{step}: " + " | ".join(choices)


def _tail_rule(after: int, step: int) -> str:
    """What may follow ``after`` in an access list of ``step``: nothing, or a later earlier step."""
    choices = [f'", {nxt}" {_tail(nxt, step)}' for nxt in range(after + 1, step)]
    return f"tail{after}of{step}: | " + " | ".join(choice.rstrip() for choice in choices)


def _tail(after: int, step: int) -> str:
    return f"tail{after}of{step}" if after < step - 1 else ""
