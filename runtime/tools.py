"""Calls of tools on their way out and back: their ids, and the run that an id belongs to.

To whoever carries the tools out, a call's id says nothing; to us it says who asked. It holds the id
of the run, the round and step (of each run on the way, where the Conductor is a worker), and the
number of the call in that step::

    call_4bkqNXvT0aZ8cLmW2rYuPe_0_2_1
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase, digits

from .worker import Message

_DIGITS = digits + ascii_uppercase + ascii_lowercase
_WIDTH = 22
"""Digits of 128 bits to the base 62: so an id is shorter than the 40 characters, and made of none
but those, that clients and servers allow."""
_CALL = re.compile(rf"call_([0-9A-Za-z]{{{_WIDTH}}})((?:_[0-9]{{1,6}}){{3,99}})")


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What came of a call."""

    call: str
    """Id of the call, as it went out."""
    text: str


def outgoing_id(run: str, number: int, step: int, call: int) -> str:
    """Make the id under which a call goes out.

    Args:
        run: Id of the run; that of a run inside a step tells where that step is.
        number: Of the round.
        step: The step that asks.
        call: Number of the call, among all that the step makes.
    """
    outermost, *path = run.split(".")
    value, written = int(outermost, 16), ""
    for _ in range(_WIDTH):
        value, digit = divmod(value, 62)
        written = _DIGITS[digit] + written
    return "_".join(["call", written, *path, str(number), str(step), str(call)])


def run_of(call: str) -> str | None:
    """Id of the run that a call's id belongs to; None if it is none of ours."""
    found = _CALL.fullmatch(call)
    if found is None or found[2].count("_") % 2 == 0:
        return None
    value = 0
    for digit in found[1]:
        value = value * 62 + _DIGITS.index(digit)
    return f"{value:032x}" if value < 2**128 else None


def suspended_run(messages: Sequence[Message]) -> tuple[str, tuple[ToolResult, ...]] | None:
    """Find the run that a conversation goes on with.

    That is so if it ends with results of tools, all of calls that one run made; whoever asked for
    something else after them asks anew.

    Returns:
        Id of the run and the results at the end of the conversation; None if there is no such run.
        Whether the run is there, and waits for them, is not looked at.
    """
    results: list[ToolResult] = []
    for message in reversed(messages):
        if message.role != "tool":
            break
        results.append(ToolResult(message.tool_call_id, message.content))
    runs = {run_of(each.call) for each in results}
    run = runs.pop() if len(runs) == 1 else None
    return None if run is None else (run, tuple(reversed(results)))
