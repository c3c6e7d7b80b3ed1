"""What runs a plan here: Conductor's engine, and what it is compared with.

The baselines run the steps in the right order and nothing more: no context that keeps steps apart,
no record, no failures, no deadline. LangGraph is optional (``tests/benchmarks/requirements.txt``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from operator import or_
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, TypedDict

import anyio

from grammar import Plan
from runtime import FunctionWorker, Journal, Message, Pool, Run, no_listener, run_plan

Work = Callable[[Sequence[Message]], Awaitable[str]]
"""What every worker does."""
Runner = Callable[[Plan, Work], Coroutine[Any, Any, object]]
"""Runs a plan of worker ``w``, and builds what it needs for that."""


@cache
def _pool(work: Work) -> Pool:
    return Pool([FunctionWorker("w", work)])


async def on_engine(plan: Plan, work: Work) -> Run:
    """The engine: events, record, contexts, failures."""
    return await run_plan(plan, "q", _pool(work))


@asynccontextmanager
async def engine() -> AsyncIterator[Runner]:
    """Conductor without a journal."""
    yield on_engine


@asynccontextmanager
async def engine_with_journal() -> AsyncIterator[Runner]:
    """Conductor with a journal: a commit per finished step."""
    with TemporaryDirectory() as folder, Journal(Path(folder) / "runs.db") as journal:

        async def run(plan: Plan, work: Work) -> Run:
            return await run_plan(plan, "q", _pool(work), emit=journal.before(no_listener))

        yield run


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


@asynccontextmanager
async def bare_anyio() -> AsyncIterator[Runner]:
    """The least that runs a plan."""
    yield on_anyio


class _State(TypedDict):
    texts: Annotated[dict[int, str], or_]


def _graph(plan: Plan, work: Work) -> Any:
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
    return graph


@asynccontextmanager
async def langgraph() -> AsyncIterator[Runner]:
    """LangGraph without a checkpointer."""

    async def run(plan: Plan, work: Work) -> None:
        graph = _graph(plan, work).compile()
        await graph.ainvoke({"texts": {}}, {"recursion_limit": len(plan) + 2})

    yield run


@asynccontextmanager
async def langgraph_with_sqlite() -> AsyncIterator[Runner]:
    """LangGraph with its checkpointer for SQLite, which saves before the next nodes start."""
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    threads = count()
    with TemporaryDirectory() as folder:
        async with AsyncSqliteSaver.from_conn_string(f"{folder}/runs.db") as saver:

            async def run(plan: Plan, work: Work) -> None:
                graph = _graph(plan, work).compile(checkpointer=saver)
                settings = {
                    "recursion_limit": len(plan) + 2,
                    "configurable": {"thread_id": str(next(threads))},
                }
                await graph.ainvoke({"texts": {}}, settings, durability="sync")

            yield run


RUNNERS: dict[str, Callable[[], AbstractAsyncContextManager[Runner]]] = {
    "conductor": engine,
    "conductor+journal": engine_with_journal,
    "anyio": bare_anyio,
    "langgraph": langgraph,
    "langgraph+sqlite": langgraph_with_sqlite,
}


def version_of(package: str) -> str | None:
    """The installed version of a package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
