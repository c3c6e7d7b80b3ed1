"""The Conductor: a pool and a decider; ``run(query)`` gives a Run."""

from __future__ import annotations

from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import sniffio

from grammar import Plan, single
from runtime import (
    Budget,
    Cache,
    Call,
    CallRetried,
    Decide,
    Emit,
    Event,
    Failure,
    FailureKind,
    Journal,
    Message,
    PlanParsed,
    PlanSource,
    Pool,
    PoolError,
    Record,
    Run,
    RunStarted,
    RunState,
    StepDelta,
    StepResult,
    StepState,
    Tool,
    ToolChoice,
    ToolResult,
    ToolSteps,
    Worker,
    WorkerError,
    WorkerPicked,
    carry_out,
    conversation_query,
    given,
    mended,
    no_listener,
    trace_headers,
)

from .planner import Planner
from .router import Router, RouterError
from .telemetry import Telemetry


class Conductor:
    """A team of models that answers as one.

    >>> from runtime import FunctionWorker
    >>> async def shout(messages):
    ...     return messages[-1].content.upper()
    >>> team = Conductor(Pool([FunctionWorker("shout", shout)]))
    >>> team.run("hello", worker="shout").answer
    'HELLO'

    Args:
        pool: The workers; the embedded small models if None, those that the embedded router was
            trained on if it decides.
        planner: Who writes plans: a Planner, a worker, or the name of one in the pool. The pool's
            own choice if None.
        router: Who picks a worker instead, without a plan: a Router, or its folder ("embedded" for
            the one that comes with the package). The pool's own, if it has one and no planner is
            named, if None.
        journal: Where runs are kept: every finished call before anything depends on it.
        cache: Completions to use instead of calls, for training and evaluation.
        telemetry: Where spans and metrics go; what is told there is in the journal already.

    Enter it (``async with``) to keep connections open from one run to the next.
    """

    def __init__(
        self,
        pool: Pool | None = None,
        *,
        planner: Planner | Worker | str | None = None,
        router: Router | str | Path | None = None,
        journal: Journal | None = None,
        cache: Cache | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        if pool is None:
            from .config import EMBEDDED, embedded_pool, load_pool

            pool = load_pool("orchestra") if router == EMBEDDED else embedded_pool()
        self.pool = pool
        self.journal = journal
        self.cache = cache
        self.telemetry = telemetry
        self.caller = ""
        """For whom the runs are, for the record."""
        if isinstance(planner, str):
            planner = pool[planner]
        if planner is not None and not isinstance(planner, Planner):
            planner = Planner(planner, pool.planning)
        if router is None and planner is None:
            router = pool.settings.router or None
        self._planner = planner
        self._router = _loaded(router).on(pool) if router is not None else None

    async def arun(
        self,
        query: str | Call,
        *,
        plan: Plan | None = None,
        worker: str | None = None,
        only: Sequence[str] = (),
        without: Sequence[str] = (),
        tags: Sequence[str] = (),
        without_tags: Sequence[str] = (),
        budget: Budget | None = None,
        rounds: int | None = None,
        steps: int | None = None,
        fallback: Sequence[str] | None = None,
        tools: Sequence[Tool] = (),
        tool_choice: ToolChoice = None,
        tool_steps: ToolSteps = "last",
        traceparent: str = "",
        on_event: Emit = no_listener,
    ) -> Run:
        """Answer a query: decide, carry out, record.

        Args:
            query: What the user asks; a Call if it is a conversation, or says how to decode. One
                worker alone gets the Call as it is. A plan's steps see the text of the
                conversation (:func:`runtime.conversation_query`), and its last step is told how
                to answer; the seed is told to all, the Conductor model too.
            plan: A plan of your own; nobody decides then.
            worker: One worker to answer alone, without a plan.
            only: Names of the workers that may be used; all if empty.
            without: Names of workers that may not be used, neither for steps nor to plan.
            tags: Only workers with all of these tags may be used, also to plan.
            without_tags: Workers with any of these tags may not be used, neither for steps nor to
                plan.
            budget: What the run may take; as the pool says if None.
            rounds: Most rounds: after each the Conductor sees the answer and keeps it or plans
                again. As the pool says (usually 1) if None. Turns, for a router with roles.
            steps: Longest plan that the Conductor model is asked for, if that is less than the
                pool allows.
            fallback: Workers that stand in for any that fails; as the pool says if None.
            tools: What workers may ask you to do. If one does, the run ends suspended: see its
                ``open_calls``, and give :meth:`aresume` the results.
            tool_choice: ``"none"``, ``"auto"``, ``"required"``, or an object that names a tool.
            tool_steps: Whether the last step alone may use the tools, or all may. That a tool has
                to be called always concerns the last step alone, and its first turn.
            traceparent: What the run is a part of, for telemetry; see :meth:`Telemetry.follow`.
            on_event: Gets every event as it happens.

        Returns:
            The record. A run that comes to no answer is a Run too: see its ``failure``, and
            ``best`` for how far it came.

        Raises:
            PlanError: If the given plan names a worker that is not (or may not be) used.
            PoolError: If a name is unknown, or no worker is left.
            ValueError: If both a plan and a worker are given, the query is empty, or rounds are
                asked of a router that has no roles.
            JournalError: If the journal can't be written; the run is stopped.
        """
        if plan is not None and worker is not None:
            raise ValueError("both a plan and a worker are given; give one of them")
        pool = self._pool(only, without, tags, without_tags)
        planner = self._planner_for(pool).shortened(steps)
        if tools:
            call = Call((Message("user", query),)) if isinstance(query, str) else query
            query = replace(call, tools=tuple(tools), tool_choice=tool_choice)
        text, asked = _read(query)
        source = PlanSource.CONDUCTOR
        if plan is not None:
            plan, source = plan.resolve(pool.names), PlanSource.GIVEN
        elif worker is not None:
            plan, source = single(pool[worker].name, mended(text)), PlanSource.PICK
        elif self._router is not None:
            source, rounds = PlanSource.ROUTER, self._turns(rounds)
        return await self._carry_out(
            text,
            pool,
            planner,
            on_event,
            asked=asked,
            plan=plan,
            source=source,
            router=self._router if source is PlanSource.ROUTER else None,
            budget=budget,
            rounds=rounds,
            fallback=fallback,
            tool_steps=tool_steps,
            traceparent=traceparent,
        )

    async def aplan(
        self,
        query: str | Call,
        *,
        only: Sequence[str] = (),
        without: Sequence[str] = (),
        tags: Sequence[str] = (),
        without_tags: Sequence[str] = (),
        budget: Budget | None = None,
        steps: int | None = None,
        fallback: Sequence[str] | None = None,
        traceparent: str = "",
        on_event: Emit = no_listener,
    ) -> Run:
        """Let the Conductor model write a plan and go no further; ``Run.plan`` holds it.

        Args, Raises: As :meth:`arun`.
        """
        pool = self._pool(only, without, tags, without_tags)
        planner = self._planner_for(pool).shortened(steps)
        text, asked = _read(query)
        return await self._carry_out(
            text,
            pool,
            planner,
            on_event,
            asked=asked,
            budget=budget,
            fallback=fallback,
            traceparent=traceparent,
            plan_only=True,
        )

    def stream(self, query: str | Call, **options: Any) -> Stream:
        """:meth:`arun` while it happens: ``async with team.stream("...") as stream``.

        Args: As :meth:`arun`, without ``on_event``.
        """
        return Stream(partial(self.arun, query, **options))

    def run(self, query: str | Call, **options: Any) -> Run:
        """:meth:`arun` for code that is not async.

        Raises:
            RuntimeError: If called where an event loop runs already (a notebook, a server).
        """
        return anyio.run(partial(self.arun, query, **options), **_no_loop("run", "arun"))

    def plan(self, query: str | Call, **options: Any) -> Run:
        """:meth:`aplan` for code that is not async; raises as :meth:`run`."""
        return anyio.run(partial(self.aplan, query, **options), **_no_loop("plan", "aplan"))

    async def aresume(
        self,
        run: str,
        *,
        tool_results: Mapping[str, str] | Iterable[ToolResult] = (),
        asked: Call | None = None,
        budget: Budget | None = None,
        force: bool = False,
        on_event: Emit = no_listener,
    ) -> Run:
        """Go on with a run of the journal that was stopped or waits for tools.

        No finished call is made again. Steps that had failed are tried again, and so is planning
        that had come to nothing. Steps go on whose calls of tools all have their results; the run
        is suspended again if others wait on. A result that the run has already changes nothing, so
        what was interrupted can be sent again.

        Args:
            run: Id of the run, or the beginning of it.
            tool_results: What came of calls of tools, by the ids of the calls.
            asked: Which tools there are from now on, and how the answer is to be decoded; as before
                if None. Its messages count for nothing.
            budget: What it may take from now on; as it was if None, and what is left of its
                seconds if it was suspended.
            force: Also if another process seems to work at it.
            on_event: Gets the events from now on.

        Returns:
            The whole run; as it is if it had ended with an answer, or waits for other results.

        Raises:
            ToolError: If the run does not wait for one of the results.
            JournalError: If there is no such run, or another process works at it.
            PoolError: If the pool lacks a worker of the run, or has them in another order: the
                numbers in what the planner wrote would mean others.
            RouterError: If a router decided, and it is not there any more.
        """
        journal = self._journal()
        record = journal.record(run)
        past = record.run
        if isinstance(tool_results, Mapping):
            tool_results = [ToolResult(call, text) for call, text in tool_results.items()]
        results = [ToolResult(mended(each.call), mended(each.text)) for each in tool_results]
        new = record.missing(results)
        if past.state in (RunState.DONE, RunState.PLANNED):
            return past
        if past.state is RunState.SUSPENDED and not new:
            return past
        pool = self.pool.only(*past.workers)
        if pool.names != past.workers:
            told = f"run {past.id} had its workers in the order {', '.join(past.workers)}"
            raise PoolError(f"{told}; the pool has {', '.join(pool.names)}; restore the order")
        planner = self._planner_for(pool)
        if past.planner != planner.worker.name and past.planner in self.pool.names:
            planner = Planner(self.pool[past.planner], self.pool.planning)
        router = self._router_of(past)
        with (
            self._followed(on_event, pool, planner, past=record) as followed,
            journal.resumed(past.id, followed, force=force) as (record, emit),
        ):
            begun = record.started
            assert begun is not None
            return await self._carry_out(
                begun.query,
                pool,
                planner,
                emit,
                plan=begun.plan,
                source=begun.source,
                router=router,
                budget=past.budget if budget is None else budget,
                rounds=begun.rounds,
                fallback=begun.fallback,
                plan_only=begun.plan_only,
                taken=begun.taken,
                parent=begun.parent,
                past=record,
                asked=asked and replace(asked, messages=()),
                results=results,
            )

    def resume(self, run: str, **options: Any) -> Run:
        """:meth:`aresume` for code that is not async; raises as :meth:`run` too."""
        return anyio.run(partial(self.aresume, run, **options), **_no_loop("resume", "aresume"))

    async def arerun(
        self,
        run: str | Run,
        *,
        from_step: int,
        worker: str | None = None,
        budget: Budget | None = None,
        on_event: Emit = no_listener,
    ) -> Run:
        """Carry out a plan again from one step on: it and what reads it; the rest is taken over.

        Args:
            run: A run, or the id of one in the journal, or the beginning of the id.
            from_step: The step to do again.
            worker: Who does it this time.
            budget: What the new run may take; as the pool says if None.
            on_event: Gets every event.

        Returns:
            A run of its own, whose ``parent`` is the id of the old one.

        Raises:
            ValueError: If the run has no plan, or no such step.
            JournalError: If there is no such run.
            PoolError: If the pool lacks a worker of the plan.
        """
        old = run if isinstance(run, Run) else self._journal().run(run)
        plan, taken = redone(old, from_step, worker)
        pool = self.pool
        planner = self._planner_for(pool)
        return await self._carry_out(
            old.query,
            pool,
            planner,
            on_event,
            plan=plan.resolve(pool.names),
            source=PlanSource.GIVEN,
            budget=budget,
            rounds=1,
            taken=taken,
            parent=old.id,
            asked=old.asked,
            tool_steps=old.tool_steps,
        )

    def rerun(self, run: str | Run, **options: Any) -> Run:
        """:meth:`arerun` for code that is not async; raises as :meth:`run` too."""
        return anyio.run(partial(self.arerun, run, **options), **_no_loop("rerun", "arerun"))

    async def __aenter__(self) -> Conductor:
        await self.pool.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.pool.__aexit__(*exc_info)

    async def _carry_out(
        self,
        query: str,
        pool: Pool,
        planner: Planner,
        on_event: Emit,
        *,
        plan: Plan | None = None,
        source: PlanSource = PlanSource.CONDUCTOR,
        router: Router | None = None,
        budget: Budget | None = None,
        rounds: int | None = None,
        fallback: Sequence[str] | None = None,
        traceparent: str = "",
        **more: Any,
    ) -> Run:
        if not query.strip():
            raise ValueError("the query is empty; ask something")
        settings = pool.settings
        if fallback is None:
            fallback = [name for name in settings.fallback if name in pool.names]
        decide: Decide = planner.decide if router is None else router.decide
        if plan is not None:  # one that was picked is no first try: no model decides later either
            then = None if source is PlanSource.PICK else planner.decide
            decide = given(plan, then, source)
        carry = partial(
            carry_out,
            query,
            pool,
            decide,
            budget=settings.budget if budget is None else budget,
            rounds=settings.rounds if rounds is None else rounds,
            fallback=fallback,
            cache=self.cache,
            nested=planner.decide,
            planner=planner.worker.name,
            caller=self.caller,
            plan=plan,
            source=source,
            router="" if router is None else router.source or _IN_PYTHON,
            **more,
        )
        if "past" in more:  # it has a journal and telemetry already
            return await carry(emit=on_event)
        with self._followed(on_event, pool, planner, traceparent) as emit:
            return await carry(emit=self.journal.before(emit) if self.journal else emit)

    @contextmanager
    def _followed(
        self,
        on_event: Emit,
        pool: Pool,
        planner: Planner,
        traceparent: str = "",
        past: Record | None = None,
    ) -> Iterator[Emit]:
        """Put the telemetry of a run before its listener, and end it with the run at the latest."""
        if self.telemetry is None:
            yield on_event
            return
        workers = (*pool, planner.worker)
        follower = self.telemetry.follow(
            on_event, workers=workers, traceparent=traceparent, past=past
        )
        try:
            yield follower
        finally:
            follower.close()

    @contextmanager
    def part_of(self, trace: Mapping[str, str]) -> Iterator[None]:
        """Have runs that begin in this block be a part of a trace.

        Args:
            trace: ``traceparent`` and ``tracestate``, as in W3C Trace Context. Telemetry begins its
                spans under it; workers behind HTTP are told of it, or of those spans.
        """
        token = trace_headers.set(trace)
        try:
            with self.telemetry.within(trace) if self.telemetry else nullcontext():
                yield
        finally:
            trace_headers.reset(token)

    def _turns(self, rounds: int | None) -> int:
        """How many turns the router may take."""
        router = self._router
        assert router is not None
        if rounds is not None and rounds > 1 and not router.roles:
            told = "the router picks one worker, once"
            raise ValueError(f"{told}; rounds need a planner or a router with roles")
        return router.turns if rounds is None else rounds

    def _router_of(self, past: Run) -> Router | None:
        """The router that decided in a run, to go on with it.

        Raises:
            RouterError: If it is not there any more.
        """
        own = self._router
        if not past.router:
            return None
        if own is not None and past.router in (own.source, _IN_PYTHON):
            return own
        if past.router == _IN_PYTHON:
            told = "its router was made in Python"
            raise RouterError(f"run {past.id}: {told}; go on there, with router=... of the same")
        return Router.load(past.router).on(self.pool)

    def _journal(self) -> Journal:
        if self.journal is None:
            raise ValueError("this Conductor has no journal; make it with journal=Journal(path)")
        return self.journal

    def _pool(
        self,
        only: Sequence[str],
        without: Sequence[str],
        tags: Sequence[str],
        without_tags: Sequence[str],
    ) -> Pool:
        pool = self.pool
        if tags:
            pool = pool.tagged(*tags)
        if without_tags:
            pool = pool.untagged(*without_tags)
        if without:
            pool = pool.without(*(name for name in without if not pool.excludes(name)))
        if only:
            pool = pool.only(*(name for name in only if not pool.excludes(name)))
        return pool

    @property
    def planner(self) -> Planner:
        """Who writes plans if a run says nothing else."""
        return self._planner_for(self.pool)

    @property
    def router(self) -> Router | None:
        """Who picks a worker in place of plans, if somebody does."""
        return self._router

    def planning(self) -> Conductor:
        """Make the same Conductor without its router: a model writes plans."""
        if self._router is None:
            return self
        other = copy(self)
        other._router = None
        return other

    def within(
        self,
        *,
        only: Sequence[str] = (),
        without: Sequence[str] = (),
        tags: Sequence[str] = (),
        without_tags: Sequence[str] = (),
        caller: str = "",
    ) -> Conductor:
        """Make a Conductor of a part of the pool; all else is shared.

        Args: As :meth:`arun`, and:
            caller: For whom its runs are, for the record.

        Raises: As :meth:`arun`.
        """
        part = copy(self)
        part.caller = caller or self.caller
        part.pool = self._pool(only, without, tags, without_tags)
        return part

    def _planner_for(self, pool: Pool) -> Planner:
        if self._planner is None or pool.excludes(self._planner.worker.name):
            return Planner(pool.planner, pool.planning)
        return self._planner


_IN_PYTHON = "python"
"""Where a router is from that was loaded from nowhere."""


def _loaded(router: Router | str | Path) -> Router:
    return router if isinstance(router, Router) else Router.load(router)


class Stream:
    """A run while it happens: iterate over its events; afterwards ``run`` is the whole record.

    Leaving the block stops the run. Events are told as they come; the reader sets no pace.
    """

    def __init__(self, start: Callable[..., Awaitable[Run]]) -> None:
        self._start = start
        self._run: Run | None = None
        self._error: Exception | None = None

    @property
    def run(self) -> Run:
        """The record.

        Raises:
            RuntimeError: If the run has not ended.
        """
        if self._run is None:
            raise RuntimeError("the run has not ended; read the stream to its end first")
        return self._run

    async def __aenter__(self) -> Stream:
        send, self._events = anyio.create_memory_object_stream[Event](float("inf"))

        async def follow() -> None:
            with send:
                try:
                    self._run = await self._start(on_event=send.send_nowait)
                except Exception as error:  # raised again where the events are read
                    self._error = error

        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        self._group.start_soon(follow)
        return self

    async def __aexit__(self, *exc_info: Any) -> bool | None:
        self._group.cancel_scope.cancel()
        try:
            return await self._group.__aexit__(*exc_info)
        finally:
            self._events.close()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Event:
        try:
            return await self._events.receive()
        except anyio.EndOfStream:
            if self._error is not None:
                raise self._error from None
            raise StopAsyncIteration from None

    async def text(self) -> AsyncIterator[str]:
        """Yield the answer's text as it is written, and end with the run.

        What is written by the last step of a plan is the answer, unless a later round follows;
        with more than one round the answer therefore comes whole, at the end. A call that breaks
        off is made again; its text goes on where it stood, if the new one begins with the same.

        Raises:
            WorkerError: If there is no answer, or the text that was given already turned out to be
                another than the answer's.
        """
        answer = AnswerText()
        async for event in self:
            if piece := answer.take(event):
                yield piece
        if rest := answer.rest(self.run):
            yield rest


class AnswerText:
    """The answer of a run as far as it is written, read off the run's events.

    What is written by the last step of a plan is the answer, unless a later round follows. A call
    that breaks off is made again; its text goes on where it stood, if the new one begins with the
    same.

    Args:
        past: The run as it was, if it goes on.
    """

    def __init__(self, past: Run | None = None) -> None:
        self._final = past.plan.final.index if past and past.plan else None
        self._rounds = past.most_rounds if past else 1
        self._pieces: list[str] = []
        self._told = ""
        """What was given before a call broke off; pieces begin anew then."""
        self._told_now = True
        """Whether what was given is what the pieces say."""

    def take(self, event: Event) -> str:
        """Take in the next event and give the text that it adds."""
        match event:
            case StepDelta() if event.index == self._final and self._rounds == 1:
                self._pieces.append(event.text)
                if self._told_now:
                    return event.text
                written = "".join(self._pieces)
                if len(written) > len(self._told) and written.startswith(self._told):
                    self._told_now = True
                    return written[len(self._told) :]
            case RunStarted():
                self._rounds = event.rounds
            case WorkerPicked() if event.pick.role is not None:
                self._rounds = 0  # no turn's text is the answer as it is
            case PlanParsed():
                self._final = event.plan.final.index
            case CallRetried() if event.index == self._final:
                if self._told_now:
                    self._told = "".join(self._pieces)
                self._pieces.clear()
                self._told_now = not self._told
            case _:
                pass
        return ""

    def rest(self, run: Run) -> str:
        """Give the text that is still missing, once the run has ended.

        Raises:
            WorkerError: If there is no answer, or the text that was given already turned out to be
                another than the answer's.
        """
        if run.state is RunState.SUSPENDED:
            return ""
        if run.answer is None:
            failure = run.failure or Failure(FailureKind.CANCELLED, "the run was stopped")
            raise WorkerError(failure.kind, failure.message, retry_after_s=failure.retry_after_s)
        told = "".join(self._pieces) if self._told_now else self._told
        if not run.answer.startswith(told):
            what = "the answer was begun anew with other words; what was streamed is void"
            raise WorkerError(FailureKind.BAD_RESPONSE, what)
        return run.answer[len(told) :]


def _read(query: str | Call) -> tuple[str, Call | None]:
    """The text of what is asked; and what there is besides, mended, so that it can be recorded.

    Raises:
        ValueError: If nothing is asked.
    """
    if isinstance(query, str):
        return query, None
    messages = tuple(map(_mended, query.messages))
    text = conversation_query(messages)
    asked = query if messages == query.messages else replace(query, messages=messages)
    plain = messages == (Message("user", text),)
    return text, None if plain and asked == Call(messages) else asked


def _mended(message: Message) -> Message:
    texts = (message.content, message.name, message.tool_call_id)
    if not message.tool_calls and all(map(str.isascii, texts)):
        return message
    calls = (
        replace(call, id=mended(call.id), name=mended(call.name), arguments=mended(call.arguments))
        for call in message.tool_calls
    )
    return replace(
        message,
        content=mended(message.content),
        name=mended(message.name),
        tool_calls=tuple(calls),
        tool_call_id=mended(message.tool_call_id),
    )


def redone(run: Run, from_step: int, worker: str | None = None) -> tuple[Plan, list[StepResult]]:
    """Split a run for :meth:`Conductor.arerun`.

    Returns:
        The plan, with the step's new worker, and the results of the steps that don't depend on it.

    Raises:
        ValueError: If the run has no plan, or no such step.
    """
    plan = run.plan
    if plan is None:
        raise ValueError(f"run {run.id} came to no plan, so there is no step to begin at")
    if not 0 <= from_step < len(plan):
        raise ValueError(f"there is no step {from_step}; the plan has steps 0 to {len(plan) - 1}")
    again = {from_step}
    for step in plan:
        if not again.isdisjoint(step.access):
            again.add(step.index)
    if worker is not None:
        steps = list(plan.steps)
        steps[from_step] = replace(steps[from_step], worker=worker)
        plan = Plan(tuple(steps))
    kept = (step for step in run.steps if step.index not in again)
    done = (step for step in kept if step.state is StepState.DONE)
    return plan, [_taken_over(step, run.id) for step in done]


def _taken_over(step: StepResult, run: str) -> StepResult:
    turns = tuple(replace(turn, reused=run, lost=()) for turn in step.turns)
    return replace(step, reused=run, lost=(), run=None, turns=turns)


def _no_loop(sync: str, other: str) -> dict[str, Any]:
    try:
        sniffio.current_async_library()
    except sniffio.AsyncLibraryNotFoundError:
        return {}
    raise RuntimeError(
        f"an event loop runs here already: write `await conductor.{other}(...)` "
        f"instead of `conductor.{sync}(...)`"
    )
