"""What runs a plan here: Conductor's engine, and what it is compared with.

The baselines run the steps in the right order and nothing more: no context that keeps steps apart,
no record, no failures, no deadline. LangGraph is optional (``tests/benchmarks/requirements.txt``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from operator import or_
from typing import Annotated, TypedDict

import anyio

from grammar import Plan
from runtime import FunctionWorker, Message, Pool, Run, run_plan

Work = Callable[[Sequence[Message]], Awaitable[str]]
"""What every worker does."""
Runner = Callable[[Plan, Work], Awaitable[object]]
"""Runs a plan of worker ``w``, and builds what it needs for that."""


@cache
def _pool(work: Work) -> Pool:
    return Pool([FunctionWorker("w", work)])


async def on_engine(plan: Plan, work: Work) -> Run:
    """The engine: events, record, contexts, failures."""
    return await run_plan(plan, "q", _pool(work))


async def on_anyio(plan: Plan, work: Work) -> None:
    """One task per step, which waits for the events of its inputs."""
    done = [anyio.Event() for _ in plan]

    async def step(index: int, access: tuple[int, ...]) -> None:
        for earlier in access:
            await done[earlier].wait()
        await work(())
        done[index].set()

    async with anyio.create_task_group() as group:
        for each in plan:
            group.start_soon(step, each.index, each.access)


class _State(TypedDict):
    texts: Annotated[dict[int, str], or_]


async def on_langgraph(plan: Plan, work: Work) -> None:
    """One node per step; a node that reads several waits for all of them."""
    from langgraph.graph import END, START, StateGraph

    def node_of(index: int) -> Callable[[_State], Awaitable[_State]]:
        async def node(state: _State) -> _State:
            return {"texts": {index: await work(())}}

        return node

    graph = StateGraph(_State)
    for step in plan:
        graph.add_node(str(step.index), node_of(step.index))
        reads = [str(earlier) for earlier in step.access]
        graph.add_edge(reads or START, str(step.index))
    for index, readers in enumerate(plan.readers()):
        if not readers:
            graph.add_edge(str(index), END)
    await graph.compile().ainvoke({"texts": {}}, {"recursion_limit": len(plan) + 2})


RUNNERS: dict[str, Runner] = {
    "conductor": on_engine,
    "anyio": on_anyio,
    "langgraph": on_langgraph,
}


def version_of(package: str) -> str | None:
    """The installed version of a package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
