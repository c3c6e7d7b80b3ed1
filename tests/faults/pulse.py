"""How long the machine kept this process from running: no promise of ours can hold meanwhile."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

import anyio

_BEAT_S = 0.01


class Pulse:
    """Wakes up again and again while it is entered, and adds up what came between.

    An event loop that wakes up late has either been busy itself, which shows in its CPU time and
    counts as ours, or was not given a CPU: only that is added up.
    """

    def __init__(self) -> None:
        self.stolen_s = 0.0
        """Seconds so far."""
        self._group = anyio.create_task_group()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._group.start_soon(self._beat)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        self._group.cancel_scope.cancel()
        return await self._group.__aexit__(kind, error, trace)

    async def _beat(self) -> None:
        while True:
            began, cpu = time.monotonic(), time.process_time()
            await anyio.sleep(_BEAT_S)
            late = time.monotonic() - began - _BEAT_S
            self.stolen_s += max(0.0, late - (time.process_time() - cpu))
