"""The Conductor: a pool and a decider; ``run(query)`` gives a Run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import anyio
import sniffio

from grammar import Plan, single
from runtime import (
    Emit,
    PlanParsed,
    PlanSource,
    Pool,
    Run,
    Session,
    Worker,
    carry_out,
    no_listener,
    run_plan,
)

from .planner import Planner


class Conductor:
    """A team of models that answers as one.

    >>> from runtime import FunctionWorker
    >>> async def shout(messages):
    ...     return messages[-1].content.upper()
    >>> team = Conductor(Pool([FunctionWorker("shout", shout)]))
    >>> team.run("hello", worker="shout").answer
    'HELLO'

    Args:
        pool: The workers; the embedded small models if None.
        planner: Who writes plans: a Planner, a worker, or the name of one in the pool. The pool's
            own choice if None.

    Enter it (``async with``) to keep connections open from one run to the next.
    """

    def __init__(
        self, pool: Pool | None = None, *, planner: Planner | Worker | str | None = None
    ) -> None:
        if pool is None:
            from .config import embedded_pool

            pool = embedded_pool()
        self.pool = pool
        if isinstance(planner, str):
            planner = pool[planner]
        if planner is not None and not isinstance(planner, Planner):
            planner = Planner(planner, pool.planning)
        self._planner = planner

    async def arun(
        self,
        query: str,
        *,
        plan: Plan | None = None,
        worker: str | None = None,
        only: Sequence[str] = (),
        without: Sequence[str] = (),
        deadline_s: float | None = None,
        on_event: Emit = no_listener,
    ) -> Run:
        """Answer a query: decide, carry out, record.

        Args:
            query: What the user asks.
            plan: A plan of your own instead of the Conductor model's.
            worker: One worker to answer alone, without a plan.
            only: Names of the workers that may be used; all if empty.
            without: Names of workers that may not be used, neither for steps nor to plan.
            deadline_s: Seconds after which what is under way is stopped.
            on_event: Gets every event as it happens.

        Returns:
            The record. A run that comes to no answer is a Run too: see its ``failure``.

        Raises:
            PlanError: If the given plan names a worker that is not (or may not be) used.
            PoolError: If a name is unknown, or no worker is left.
            ValueError: If both a plan and a worker are given, or the query is empty.
        """
        if not query.strip():
            raise ValueError("the query is empty; ask something")
        if plan is not None and worker is not None:
            raise ValueError("both a plan and a worker are given; give one of them")
        pool = self._pool(only, without)
        if plan is not None:
            return await run_plan(plan, query, pool, emit=on_event, deadline_s=deadline_s)
        decide = self._planner_for(pool, without).decide
        if worker is not None:
            decide = partial(_pick, pool[worker].name)
        return await carry_out(query, pool, decide, emit=on_event, deadline_s=deadline_s)

    async def aplan(
        self,
        query: str,
        *,
        only: Sequence[str] = (),
        without: Sequence[str] = (),
        deadline_s: float | None = None,
        on_event: Emit = no_listener,
    ) -> Run:
        """Let the Conductor model write a plan and go no further; ``Run.plan`` holds it.

        Args, Raises: As :meth:`arun`.
        """
        if not query.strip():
            raise ValueError("the query is empty; ask something")
        pool = self._pool(only, without)
        decide = self._planner_for(pool, without).decide
        return await carry_out(
            query, pool, decide, emit=on_event, deadline_s=deadline_s, plan_only=True
        )

    def run(self, query: str, **options: Any) -> Run:
        """:meth:`arun` for code that is not async.

        Raises:
            RuntimeError: If called where an event loop runs already (a notebook, a server).
        """
        return anyio.run(partial(self.arun, query, **options), **_no_loop("run", "arun"))

    def plan(self, query: str, **options: Any) -> Run:
        """:meth:`aplan` for code that is not async; raises as :meth:`run`."""
        return anyio.run(partial(self.aplan, query, **options), **_no_loop("plan", "aplan"))

    async def __aenter__(self) -> Conductor:
        await self.pool.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.pool.__aexit__(*exc_info)

    def _pool(self, only: Sequence[str], without: Sequence[str]) -> Pool:
        pool = self.pool
        if without:
            pool = pool.without(*without)
        if only:
            pool = pool.only(*(name for name in only if name not in without))
        return pool

    def _planner_for(self, pool: Pool, without: Sequence[str]) -> Planner:
        if self._planner is None or self._planner.worker.name in without:
            return Planner(pool.planner, pool.planning)
        return self._planner


async def _pick(name: str, session: Session) -> Plan:
    """Decide for one worker: a plan of one step that hands it the query as it is."""
    plan = single(name, session.query)
    session.emit(PlanParsed(session.now(), plan, PlanSource.PICK))
    return plan


def _no_loop(sync: str, other: str) -> dict[str, Any]:
    try:
        sniffio.current_async_library()
    except sniffio.AsyncLibraryNotFoundError:
        return {}
    raise RuntimeError(
        f"an event loop runs here already: write `await conductor.{other}(...)` "
        f"instead of `conductor.{sync}(...)`"
    )
