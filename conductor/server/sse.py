"""Server-sent events: how they are written."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json

KEEP_ALIVE = b": keep-alive\n\n"
"""A comment: every client skips it, and every proxy sees that the connection lives."""


def event(data: Any, *, name: str = "", identifier: int | None = None) -> bytes:
    """Write one event, its data as JSON on one line."""
    head = b"" if identifier is None else b"id: %d\n" % identifier
    if name:
        head += b"event: %s\n" % name.encode()
    return b"%sdata: %s\n\n" % (head, to_json(data))
