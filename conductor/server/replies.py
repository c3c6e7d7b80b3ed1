"""Replies that are kept for a while under idempotency keys, so that a retry costs nothing."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from hashlib import sha256

import anyio
from starlette.types import Message

from .refusals import Refusal, bad

_KEPT_S = 600.0
_MOST = 1000
_BESIDE = 300  # bytes of a kept message beside its body


@dataclass(slots=True)
class Kept:
    """The reply to a request with an idempotency key."""

    digest: bytes
    """Of the request."""
    messages: list[Message] = field(default_factory=list)
    """What was sent; empty until it is made."""
    headers: dict[str, str] = field(default_factory=dict)
    over: anyio.Event = field(default_factory=anyio.Event)
    until: float = math.inf
    """When it is forgotten."""
    size: int = 0
    """About how many bytes it takes, once it is made."""


class Replies:
    """All that are kept.

    Args:
        most_bytes: Most that they take together; the oldest are forgotten.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._kept: dict[tuple[str, str], Kept] = {}

    async def find(self, caller: str, name: str, body: bytes) -> Kept:
        """Find the reply to an idempotency key, waiting for it if it is being made; or begin one.

        Args:
            caller: Whose key it is.
            name: The key.
            body: Of the request.

        Raises:
            Refusal: If the key is too long, or was used for another request.
        """
        if len(name) > 255:
            raise bad("idempotency-key is longer than 255 characters", "idempotency-key")
        at, digest = (caller, name), sha256(body).digest()
        while True:
            now = time.monotonic()
            for old in [key for key, each in self._kept.items() if each.until < now]:
                del self._kept[old]
            known = self._kept.get(at)
            if known is None:
                self._make_room(_MOST - 1)
                if len(self._kept) >= _MOST:
                    told = "too many replies are being made for idempotency keys"
                    raise Refusal(503, f"{told}; try again", retry_after_s=5.0)
                self._kept[at] = Kept(digest)
                return self._kept[at]
            if known.digest != digest:
                told = "this idempotency-key was used for another request"
                raise Refusal(422, f"{told}; use a new one", code="idempotency_mismatch")
            if known.over.is_set():
                return known
            await known.over.wait()
            if known.until < math.inf:
                return known

    def settle(self, caller: str, name: str, kept: Kept, *, whole: bool) -> None:
        """Keep a reply for a while, or forget it if it is none."""
        if whole:
            kept.until = time.monotonic() + _KEPT_S
            kept.size = sum(len(each.get("body", b"")) + _BESIDE for each in kept.messages)
            self._make_room(_MOST)
        else:
            del self._kept[caller, name]
        kept.over.set()

    def _make_room(self, count: int) -> None:
        """Forget the oldest replies until there are so many at most."""
        done = [key for key, each in self._kept.items() if each.until < math.inf]
        left = self._most_bytes - sum(self._kept[key].size for key in done)
        for key in done:
            if len(self._kept) <= count and left >= 0:
                return
            left += self._kept.pop(key).size
