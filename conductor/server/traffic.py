"""Requests for answers under way: how many there may be, and how they are stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import anyio

from .keys import Account
from .refusals import Refusal


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server takes on."""

    body_bytes: int = 10 * 2**20
    """Largest request."""
    requests: int = 2048
    """Most requests for answers at the same time; more are told to come again."""
    keep_alive_s: float = 10.0
    """Longest silence of a stream."""
    kept_bytes: int = 64 * 2**20
    """Most that is kept of replies to idempotency keys, together; the oldest are forgotten."""
    unread: int = 100_000
    """Most events that wait for a client who does not read; then its run is stopped."""


class Traffic:
    """The requests for answers of a server.

    Args:
        most: How many there may be at the same time.
    """

    def __init__(self, most: int) -> None:
        self.draining = False
        """Set when the process is about to end: no more are taken on."""
        self.stopped = False
        """Set by :meth:`stop`."""
        self.open = 0
        """How many there are."""
        self._most = most
        self._under_way: set[anyio.CancelScope] = set()

    @contextmanager
    def entered(self, account: Account) -> Iterator[None]:
        """Count a request while it lasts.

        Raises:
            Refusal: 503 if there are too many, or the server is about to end; 429 if the key is
                over its limits.
        """
        if self.draining:
            raise stopping()
        if self.open >= self._most:
            told = f"{self.open} requests are under way, the most that this server takes on"
            raise Refusal(503, f"{told}; try again", code="overloaded", retry_after_s=1.0)
        account.enter(time.monotonic())
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1
            account.leave()

    @contextmanager
    def stoppable(self, scope: anyio.CancelScope) -> Iterator[None]:
        """Cancel the scope if the server is stopped meanwhile."""
        self._under_way.add(scope)
        try:
            yield
        finally:
            self._under_way.discard(scope)

    def stop(self) -> int:
        """Stop what is under way: its runs are cancelled in the journal, its clients are told.

        Returns:
            How many requests were stopped.
        """
        self.draining = self.stopped = True
        under_way, self._under_way = self._under_way, set()
        for scope in under_way:
            scope.cancel()
        return len(under_way)


def stopping() -> Refusal:
    """What a client is told when the server ends."""
    told = "the server is about to stop; try again"
    return Refusal(503, told, code="server_stopping", retry_after_s=2.0)
