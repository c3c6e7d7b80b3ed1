"""The canonical text of a plan."""

from __future__ import annotations

import json
import unicodedata

from .diagnostics import _BIDI
from .plan import Plan


def format_plan(plan: Plan) -> str:
    """Write a plan as its canonical text: three lists, one subtask a line, plain characters.

    ``parse(format_plan(plan)) == plan`` holds for every plan.
    """
    subtasks = "".join(f"    {quote(step.subtask)},\n" for step in plan)
    workers = ", ".join(
        quote(step.worker) if isinstance(step.worker, str) else str(step.worker) for step in plan
    )
    access = ", ".join(f"[{', '.join(map(str, step.access))}]" for step in plan)
    return f"subtasks = [\n{subtasks}]\nworkers  = [{workers}]\naccess   = [{access}]\n"


def quote(text: str) -> str:
    """Write a string in double quotes; what would not show (control, bidi) is escaped."""
    written = json.dumps(text, ensure_ascii=False)
    if written.isprintable():
        return written
    return "".join(f"\\u{ord(c):04x}" if _hidden(c) else c for c in written)


def _hidden(c: str) -> bool:
    return c in _BIDI or c in "\u2028\u2029\ufeff" or unicodedata.category(c) in ("Cc", "Cs")
