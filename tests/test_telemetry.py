"""Telemetry: whole trees of spans, the measures, what never is told, and what it may never do."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from conductor import Conductor, Telemetry
from conductor.telemetry import SCHEMA_URL
from grammar import Plan, chain
from runtime import (
    Attempt,
    CallCache,
    CallRetried,
    Completion,
    ConductorWorker,
    Endpoint,
    Event,
    Failure,
    FailureKind,
    FinishReason,
    FunctionWorker,
    HttpClient,
    Journal,
    LocalWorker,
    Message,
    PlanAttempt,
    PlanAttempted,
    PlanDelta,
    PlanParsed,
    PlanSource,
    PlanStarted,
    Pool,
    Price,
    RoundStarted,
    Run,
    RunFinished,
    RunStarted,
    RunState,
    StepDelta,
    StepFinished,
    StepResult,
    StepStarted,
    StepState,
    StepSuspended,
    Terms,
    Tool,
    ToolCall,
    ToolTurn,
    Usage,
    Worker,
    WorkerError,
)

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[1]
SOON = Terms(retries=1, retry_base_s=1e-6)
ONCE = Terms(retries=0)
WRITTEN = 'subtasks = ["Draft.", "Check."]\nworkers = [0, 1]\naccess = [[], [0]]\n'
KEEP = "subtasks = []\nworkers = []\naccess = []\n"
AT_ONCE = pytest.approx(0, abs=1e-3)


# -- what is seen ---------------------------------------------------------------------------------


class Seen:
    """A Telemetry that keeps all it is told."""

    def __init__(self, **options: Any) -> None:
        self._spans = InMemorySpanExporter()
        tracers = TracerProvider(shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self._reader = InMemoryMetricReader()
        meters = MeterProvider([self._reader], shutdown_on_exit=False)
        self.telemetry = Telemetry(tracers, meters, **options)

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self._spans.get_finished_spans()

    @property
    def tree(self) -> Node:
        """The only trace."""
        (root,) = self.trees
        return root

    @property
    def trees(self) -> list[Node]:
        return trees(self.spans)

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    @property
    def measured(self) -> dict[str, dict[tuple[str, ...], float]]:
        """By name, then by the values of the attributes: the value, or the sum of a histogram."""
        found: dict[str, dict[tuple[str, ...], float]] = {}
        data = self._reader.get_metrics_data()
        assert data is not None
        for resource in data.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        values = tuple(str(each) for each in (point.attributes or {}).values())
                        value = getattr(point, "sum", None)
                        found.setdefault(metric.name, {})[values] = (
                            getattr(point, "value", None) if value is None else value
                        )
        return found


@dataclass
class Node:
    """A span with what is in it; its links as (round, step)."""

    name: str
    attributes: dict[str, Any]
    children: list[Node] = field(default_factory=list)
    links: list[tuple[int, int]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None


def trees(spans: Sequence[ReadableSpan]) -> list[Node]:
    """Build them, and check what holds for every one: times, links and attributes agree."""
    by_id = {span.context.span_id: span for span in spans}
    nodes: dict[int, Node] = {}
    for identifier, span in by_id.items():
        links = []
        for link in span.links:
            place = link.attributes or {}
            links.append((place["conductor.round"], place["conductor.step.index"]))
            read = by_id[link.context.span_id]
            assert read.attributes["conductor.step.index"] == place["conductor.step.index"]
            assert read.attributes["conductor.round"] == place["conductor.round"]
            assert read.context.trace_id == span.context.trace_id
        attributes = dict(span.attributes)
        error = attributes.pop("error.type", None)
        skipped = attributes.get("conductor.step.state") == "skipped"
        assert (span.status.status_code is trace.StatusCode.ERROR) is bool(error and not skipped)
        assert attributes["gen_ai.operation.name"] == span.name.split()[0]
        events = [dict(each.attributes) for each in span.events]
        nodes[identifier] = Node(span.name, attributes, [], links, events, error)
        assert span.instrumentation_scope.schema_url == SCHEMA_URL
    roots = []
    for identifier, span in sorted(by_id.items(), key=lambda each: each[1].start_time):
        assert span.start_time <= span.end_time
        outer = by_id.get(span.parent.span_id) if span.parent else None
        if outer is None:
            roots.append(nodes[identifier])
            continue
        assert outer.start_time <= span.start_time
        assert span.end_time <= outer.end_time
        assert outer.context.trace_id == span.context.trace_id
        nodes[outer.context.span_id].children.append(nodes[identifier])
    for node in nodes.values():
        node.children.sort(key=lambda each: each.attributes.get("conductor.step.index", -1))
        node.children.sort(key=lambda each: each.attributes.get("conductor.round", -1))
    return roots


def root(run: Run, *children: Node, error: str | None = None, **more: Any) -> Node:
    """What the span of a run tells."""
    attributes = {
        "gen_ai.operation.name": "invoke_workflow",
        "gen_ai.workflow.name": "conductor",
        "conductor.run.id": run.id,
        "conductor.run.state": run.state.value,
        "conductor.run.rounds": len(run.rounds),
        "conductor.dollars": float(run.dollars),
    }
    if run.plan is not None and run.source is not None:
        attributes["conductor.plan.steps"] = len(run.plan)
        attributes["conductor.plan.source"] = run.source.value
    attributes |= {"conductor.run." + name: value for name, value in more.items()}
    return Node("invoke_workflow conductor", attributes, list(children), error=error)


def planning(
    *children: Node, worker: str = "scribe", attempt: int = 0, round: int = 0,
    error: str | None = None, **more: Any,
) -> Node:  # fmt: skip
    attributes = {
        "gen_ai.operation.name": "plan",
        "gen_ai.agent.name": worker,
        "conductor.round": round,
        "conductor.plan.attempt": attempt,
        **{"conductor." + name.replace("_", ".", 1): value for name, value in more.items()},
    }
    return Node(f"plan {worker}", attributes, list(children), error=error)


def step(
    index: int, worker: str, access: tuple[int, ...], *children: Node, round: int = 0,
    state: str = "done", by: str = "", links: list[tuple[int, int]] | None = None,
    error: str | None = None, card: str = "", **more: Any,
) -> Node:  # fmt: skip
    attributes = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": worker,
        "conductor.round": round,
        "conductor.step.index": index,
        "conductor.step.access": access,
        "conductor.step.state": state,
        "conductor.step.worker": by or worker,
        **{"conductor." + name.replace("_", ".", 1): value for name, value in more.items()},
    }
    if card:
        attributes["gen_ai.agent.description"] = card
    reads = [(round, each) for each in access] if links is None else links
    return Node(f"invoke_agent {worker}", attributes, list(children), reads, error=error)


def chat(
    worker: str, events: Sequence[dict[str, Any]] = (), error: str | None = None, **more: Any
) -> Node:
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "function",
        "conductor.worker": worker,
        **{name.replace("__", "."): value for name, value in more.items()},
    }
    return Node(f"chat {worker}", attributes, events=list(events), error=error)


def told(worker: str, **more: Any) -> Node:
    """A call that was answered and costs nothing, or that nobody counted."""
    return chat(worker, gen_ai__response__finish_reasons=("stop",), conductor__dollars=0.0, **more)


def planned(worker: str = "scribe", **more: Any) -> Node:
    return chat(worker, conductor__dollars=0.0, **more)


def retried(number: int, kind: str) -> dict[str, Any]:
    return {
        "error.type": kind,
        "conductor.retry.number": number,
        "conductor.retry.wait_s": AT_ONCE,
    }


# -- workers --------------------------------------------------------------------------------------


def echo(name: str) -> FunctionWorker:
    async def answer(messages: Sequence[Message]) -> str:
        return f"{name}: {messages[-1].content[-20:]}"

    return FunctionWorker(name, answer)


def scripted(name: str, *answers: str | Completion | FailureKind) -> FunctionWorker:
    """Answers with one after the other; a kind is a failure."""
    script = list(answers)

    async def answer(messages: Sequence[Message]) -> str | Completion:
        said = script.pop(0)
        if isinstance(said, FailureKind):
            raise WorkerError(said, f"{name}: {said}")
        return said

    return FunctionWorker(name, answer)


def hanging(name: str) -> FunctionWorker:
    async def hang(messages: Sequence[Message]) -> str:
        await anyio.sleep_forever()
        raise AssertionError

    return FunctionWorker(name, hang)


def team(seen: Seen, *workers: Worker, planner: Worker | None = None, **options: Any) -> Conductor:
    terms = options.pop("terms", {})
    said = {each.name: terms.get(each.name, ONCE) for each in (*workers, planner) if each}
    return Conductor(
        Pool(workers, planner=planner, terms=said), telemetry=seen.telemetry, **options
    )


# -- whole trees ----------------------------------------------------------------------------------


async def test_a_plan_with_retries_a_fallback_a_failure_and_a_step_that_is_skipped() -> None:
    """One span covers a worker's retries; who stands in has one too; every step has a span."""
    seen = Seen()
    price = Price(Decimal(1_000_000), Decimal(2_000_000))
    conductor = team(
        seen,
        scripted("slow", FailureKind.OVERLOADED, Completion("yes", usage=Usage(3, 2, 1))),
        scripted("lost", FailureKind.UNREACHABLE, FailureKind.TIMEOUT),
        scripted("dead", FailureKind.UNAUTHORIZED),
        echo("good"),
        terms={
            "slow": Terms(retries=1, retry_base_s=1e-6, price=price),
            "lost": Terms(retries=1, retry_base_s=1e-6, fallback=("good",)),
        },
    )
    plan = Plan.of(
        ["a", "b", "c", "d", "e"],
        ["slow", "lost", "dead", "good", "good"],
        [[], [], [], [0, 2], [0, 1]],
    )

    run = await conductor.arun("Why?", plan=plan)

    assert run.state is RunState.DONE
    assert seen.tree == root(
        run,
        step(
            0,
            "slow",
            (),
            chat(
                "slow",
                [retried(1, "overloaded")],
                gen_ai__response__finish_reasons=("stop",),
                gen_ai__usage__input_tokens=3,
                gen_ai__usage__output_tokens=2,
                gen_ai__usage__cache_read__input_tokens=1,
                conductor__dollars=7.0,
            ),
        ),
        step(
            1,
            "lost",
            (),
            chat("lost", [retried(1, "unreachable")], "timeout"),
            told("good"),
            by="good",
        ),
        step(
            2, "dead", (), chat("dead", error="unauthorized"), state="failed", error="unauthorized"
        ),
        step(3, "good", (0, 2), state="skipped", step_because_of=2),
        step(4, "good", (0, 1), told("good")),
    )
    measured = seen.measured
    assert measured["conductor.retries"] == {("slow", "overloaded"): 1, ("lost", "unreachable"): 1}
    assert measured["conductor.fallbacks"] == {("lost", "good", "timeout"): 1}
    assert measured["conductor.dollars"] == {("slow", "step"): 7.0}
    assert measured["conductor.steps"] == {
        ("done", "slow"): 1,
        ("done", "good"): 2,
        ("failed", "dead"): 1,
        ("skipped", "good"): 1,
    }


async def test_a_planner_that_needs_a_second_attempt() -> None:
    """Each attempt is a span with its own call; what was wrong is told by code."""
    seen = Seen()
    scribe = scripted("scribe", "no plan at all", Completion(WRITTEN, usage=Usage(10, 5)))

    run = await team(seen, echo("a"), echo("b"), planner=scribe).arun("Why?")

    assert seen.tree == root(
        run,
        planning(planned(), error="no_plan", plan_diagnostics=("P101",)),
        planning(
            planned(
                gen_ai__usage__input_tokens=10,
                gen_ai__usage__output_tokens=5,
                gen_ai__usage__cache_read__input_tokens=0,
            ),
            attempt=1,
        ),
        step(0, "a", (), told("a")),
        step(1, "b", (0,), told("b")),
    )
    assert seen.measured["conductor.planning.failures"] == {("P101",): 1}
    assert seen.measured["conductor.plan.steps"] == {("conductor",): 2}


async def test_a_planner_that_can_not_be_reached() -> None:
    seen = Seen()
    scribe = scripted("scribe", FailureKind.UNREACHABLE)

    run = await team(seen, echo("a"), planner=scribe).arun("Why?")

    assert seen.tree == root(
        run,
        planning(chat("scribe", error="unreachable"), error="unreachable"),
        error="unreachable",
    )


async def test_a_run_inside_a_step_is_a_tree_inside_its_span() -> None:
    """The Conductor as a worker is not called, so its step has no call of its own."""
    seen = Seen()
    priced = Terms(retries=0, price=Price(Decimal(1_000_000), Decimal(0)))
    scribe = scripted("scribe", Completion(WRITTEN, usage=Usage(4, 0)))
    conductor = team(
        seen,
        echo("a"),
        echo("b"),
        ConductorWorker("self"),
        planner=scribe,
        terms={"scribe": priced},
    )

    run = await conductor.arun("Why?", plan=chain(["x", "y"], ["self", "a"]))

    nested = run.steps[0].run
    assert nested is not None
    counted = {
        "gen_ai__usage__input_tokens": 4,
        "gen_ai__usage__output_tokens": 0,
        "gen_ai__usage__cache_read__input_tokens": 0,
    }
    inside = root(
        nested,
        planning(chat("scribe", conductor__dollars=4.0, **counted)),
        step(0, "a", (), told("a")),
        step(1, "b", (0,), told("b")),
    )
    card = "plans its part and has it done by the others"
    assert seen.tree == root(
        run,
        step(0, "self", (), inside, card=card),
        step(1, "a", (0,), told("a")),
    )
    assert run.dollars == 4
    assert seen.measured["conductor.runs"] == {("done",): 1}
    assert seen.measured["conductor.dollars"] == {("scribe", "planning"): 4.0}
    assert in_flight(seen) == {"self": 0, "scribe": 0, "a": 0, "b": 0}


def in_flight(seen: Seen) -> dict[str, float]:
    calls = seen.measured.get("conductor.calls.in_flight", {})
    return {worker: value for (worker,), value in calls.items()}


async def test_rounds_follow_each_other_and_a_later_one_reads_the_answer_before() -> None:
    """A step that reads every step before it in its round sees the previous answer too."""
    seen = Seen()
    again = 'subtasks = ["A.", "B.", "C."]\nworkers = [0, 1, 0]\naccess = [[], [], [0, 1]]\n'
    conductor = team(seen, echo("a"), echo("b"), planner=scripted("scribe", WRITTEN, again, KEEP))

    run = await conductor.arun("Why?", rounds=3)

    expected = root(
        run,
        planning(planned()),
        step(0, "a", (), told("a")),
        step(1, "b", (0,), told("b")),
        planning(planned(), round=1),
        step(0, "a", (), told("a"), round=1, links=[(0, 1)]),
        step(1, "b", (), told("b"), round=1),
        step(2, "a", (0, 1), told("a"), round=1, links=[(0, 1), (1, 0), (1, 1)]),
        planning(planned(), round=2),
        kept=True,
    )
    assert seen.tree == expected
    assert seen.measured["conductor.plan.steps"] == {("conductor",): 5}


async def test_a_run_that_the_caller_stops() -> None:
    """What was under way is told as cancelled, and what had not begun as skipped."""
    seen = Seen()
    conductor = team(seen, echo("a"), hanging("b"))
    events: list[Event] = []

    async with anyio.create_task_group() as group:

        async def ask() -> None:
            plan = chain(["x", "y", "z"], ["a", "b", "a"])
            await conductor.arun("Why?", plan=plan, on_event=events.append)

        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        assert in_flight(seen) == {"a": 0, "b": 1}
        group.cancel_scope.cancel()

    (tree,) = seen.trees
    assert tree.error == "cancelled"
    assert tree.attributes["conductor.run.state"] == "cancelled"
    assert tree.children[:2] == [
        step(0, "a", (), told("a")),
        step(1, "b", (0,), chat("b", error="cancelled"), state="failed", error="cancelled"),
    ]
    assert tree.children[2] == step(2, "a", (1,), state="skipped", error="cancelled")
    assert seen.measured["conductor.runs"] == {("cancelled",): 1}
    assert in_flight(seen) == {"a": 0, "b": 0}


async def test_a_run_that_is_stopped_while_it_plans() -> None:
    seen = Seen()
    conductor = team(seen, echo("a"), planner=hanging("scribe"))

    async with anyio.create_task_group() as group:
        group.start_soon(conductor.arun, "Why?")
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()

    (tree,) = seen.trees
    assert tree.children == [planning(chat("scribe", error="cancelled"), error="cancelled")]
    assert in_flight(seen) == {"scribe": 0}


async def test_the_retries_of_a_planner_are_in_the_span_of_its_call() -> None:
    seen = Seen()
    scribe = scripted("scribe", FailureKind.OVERLOADED, WRITTEN)
    conductor = team(seen, echo("a"), echo("b"), planner=scribe, terms={"scribe": SOON})

    run = await conductor.aplan("Why?")

    call = chat("scribe", [retried(1, "overloaded")], conductor__dollars=0.0)
    assert seen.tree == root(run, planning(call))
    assert seen.measured["conductor.retries"] == {("scribe", "overloaded"): 1}


async def test_what_was_not_called_has_no_span_of_a_call(tmp_path: Path) -> None:
    """From a cache, and from an earlier run."""
    seen = Seen()
    cached = team(seen, echo("a"), echo("b"), cache=CallCache(tmp_path / "calls.db"))
    plan = chain(["x", "y"], ["a", "b"])
    await cached.arun("Why?", plan=plan)
    before = len(seen.spans)

    run = await cached.arun("Why?", plan=plan)
    (tree,) = trees(seen.spans[before:])

    assert tree == root(run, step(0, "a", (), reused="cache"), step(1, "b", (0,), reused="cache"))
    before = len(seen.spans)

    again = await team(seen, echo("a"), echo("b")).arerun(run, from_step=1)
    (tree,) = trees(seen.spans[before:])

    assert tree == root(
        again, step(0, "a", (), reused=run.id), step(1, "b", (0,), told("b")), parent=run.id
    )
    assert in_flight(seen) == {"a": 0, "b": 0}


async def test_a_worker_that_is_left_alone_has_no_span_of_a_call() -> None:
    """After too many failures in a row; who stands in for it has one."""
    seen = Seen()
    tripped = Terms(retries=0, trip_after=1, fallback=("b",))
    conductor = team(seen, scripted("a", FailureKind.OVERLOADED), echo("b"), terms={"a": tripped})
    await conductor.arun("Why?", worker="a")
    before = len(seen.spans)

    run = await conductor.arun("Why?", worker="a")
    (tree,) = trees(seen.spans[before:])

    assert tree == root(run, step(0, "a", (), told("b"), by="b"))
    assert seen.measured["conductor.fallbacks"] == {
        ("a", "b", "overloaded"): 1,
        ("a", "b", "tripped"): 1,
    }


async def test_a_run_that_goes_on_is_a_tree_of_its_own(tmp_path: Path) -> None:
    """With the id of the run; it knows the plan, and the steps that are done have no span."""
    seen = Seen()
    journal = Journal(tmp_path / "runs.db")
    broken = team(seen, echo("a"), scripted("b", FailureKind.OVERLOADED, "better"), journal=journal)
    run = await broken.arun("Why?", plan=chain(["x", "y"], ["a", "b"]))
    before = len(seen.spans)

    done = await broken.aresume(run.id)
    (tree,) = trees(seen.spans[before:])

    assert tree.attributes["conductor.run.id"] == run.id
    assert tree.attributes["conductor.run.resumed"] is True
    assert (tree.attributes["conductor.run.state"], done.state) == ("done", RunState.DONE)
    assert tree.children == [step(1, "b", (0,), told("b"), links=[])]


async def test_a_step_that_waits_for_tools_ends_its_span_and_goes_on_in_another(
    tmp_path: Path,
) -> None:
    """So does its run, which is no failure; what was called and given is told if asked for."""
    seen = Seen(content=True)
    asks = Completion("Hm.", FinishReason.TOOL_CALLS, tool_calls=(ToolCall("own", "look", "{}"),))
    journal = Journal(tmp_path / "runs.db")
    conductor = team(seen, scripted("a", asks, "done"), journal=journal)
    run = await conductor.arun("Why?", worker="a", tools=[Tool("look")])
    (call,) = run.open_calls
    done = await conductor.aresume(run.id, tool_results={call.id: "found"})
    assert done.state is RunState.DONE

    first, second = seen.trees
    assert (first.error, second.error) == (None, None)
    assert first.attributes["conductor.run.state"] == "suspended"
    assert second.attributes["conductor.run.state"] == "done"
    (waiting,), (going,) = first.children, second.children
    assert waiting.attributes["conductor.step.state"] == "suspended"
    assert waiting.attributes["conductor.step.tools"] == ("look",)
    assert going.attributes["conductor.step.state"] == "done"
    (asked,), (answered,) = waiting.children, going.children
    assert asked.attributes["gen_ai.response.finish_reasons"] == ("tool_calls",)
    told = {"type": "tool_call", "id": call.id, "name": "look", "arguments": "{}"}
    assert json.loads(asked.attributes["gen_ai.output.messages"])[0]["parts"] == [
        {"type": "text", "content": "Hm."},
        told,
    ]
    assert [
        part
        for message in json.loads(answered.attributes["gen_ai.input.messages"])
        for part in message["parts"]
    ][-2:] == [
        {**told, "id": "own"},
        {"type": "tool_call_response", "id": "own", "response": "found"},
    ]
    assert in_flight(seen) == {"a": 0}
    assert seen.measured["conductor.steps"] == {("suspended", "a"): 1, ("done", "a"): 1}


async def test_an_old_run_can_be_told_from_its_events() -> None:
    """By the times that the events tell, to the nanosecond."""
    seen = Seen()
    follower = seen.telemetry.follow()
    for event in STORY:
        follower(event)

    times = {
        span.name: ((span.start_time - ZERO_NS) / 1e9, (span.end_time - ZERO_NS) / 1e9)
        for span in seen.spans
    }
    assert times == {
        "chat scribe": (0.25, 1.0),
        "plan scribe": (0.25, 1.0),
        "chat a": (1.0, 4.0),
        "invoke_agent a": (1.0, 4.0),
        "invoke_workflow conductor": (0.0, 4.5),
    }
    (retry,) = seen.named("chat a")[0].events
    assert (retry.timestamp - ZERO_NS) / 1e9 == 2.0
    (call,) = seen.named("chat a")
    assert call.attributes["gen_ai.response.time_to_first_chunk"] == 0.5


ZERO_NS = 1_767_225_600_000_000_000
STORY: list[Event] = [
    RunStarted(0.0, "id", "q", ("a", "b"), "2026-01-01T00:00:00.000+00:00", planner="scribe"),
    PlanStarted(0.25, "scribe", 0),
    PlanDelta(0.5, "sub"),
    PlanAttempted(1.0, PlanAttempt("scribe", "sub", Usage(9, 3), 0.75, dollars=Decimal("0.5"))),
    PlanParsed(1.0, chain(["x"], ["a"]), PlanSource.CONDUCTOR),
    StepStarted(1.0, 0, "a", (Message("user", "q"),)),
    StepDelta(1.5, 0, "void"),
    CallRetried(
        2.0,
        0,
        Attempt("a", Failure(FailureKind.TIMEOUT, "slow"), 1.0, Usage(5, 1), Decimal("0.25")),
        "a",
        0.5,
    ),
    StepDelta(3.0, 0, "so"),
    StepDelta(3.25, 0, " it"),
    StepDelta(3.75, 0, " is"),
    StepFinished(
        4.0,
        StepResult(
            0,
            "a",
            StepState.DONE,
            "so it is",
            usage=Usage(7, 4, 2),
            finish_reason=FinishReason.LENGTH,
            model="a-2026",
            lost=(
                Attempt(
                    "a", Failure(FailureKind.TIMEOUT, "slow"), 1.0, Usage(5, 1), Decimal("0.25")
                ),
            ),
            dollars=Decimal("0.125"),
        ),
    ),
    RunFinished(4.5, RunState.DONE),
]


# -- parents --------------------------------------------------------------------------------------

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_a_run_is_a_part_of_what_the_caller_names() -> None:
    seen = Seen()

    await team(seen, echo("a")).arun("Why?", worker="a", traceparent=PARENT)

    (span,) = seen.named("invoke_workflow conductor")
    assert span.parent is not None
    assert format(span.context.trace_id, "032x") == PARENT.split("-")[1]
    assert format(span.parent.span_id, "016x") == PARENT.split("-")[2]


async def test_a_run_is_a_part_of_the_current_span() -> None:
    seen = Seen()
    with seen.telemetry.tracer.start_as_current_span("request") as request:
        await team(seen, echo("a"), planner=scripted("scribe", WRITTEN)).aplan("Why?")

    (span,) = seen.named("invoke_workflow conductor")
    assert span.parent == request.get_span_context()


@pytest.mark.parametrize("traceparent", ["nonsense", PARENT[:-1], "00-" + "0" * 32 + PARENT[35:]])
async def test_a_parent_that_can_not_be_read_is_left_out(traceparent: str) -> None:
    seen = Seen()

    run = await team(seen, echo("a")).arun("Why?", worker="a", traceparent=traceparent)

    assert seen.tree == root(run, step(0, "a", (), told("a")))


async def test_runs_at_the_same_time_do_not_mix() -> None:
    seen = Seen()
    conductor = team(seen, echo("a"), echo("b"))
    runs: list[Run] = []

    async def ask(number: int) -> None:
        plan = chain(["x"] * (number + 1), ["a", "b"])
        runs.append(await conductor.arun(f"Why {number}?", plan=plan))

    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(ask, number)

    by_id = {each.attributes["conductor.run.id"]: each for each in seen.trees}
    assert len(by_id) == len(runs) == 5
    for run in runs:
        assert len(by_id[run.id].children) == len(run.steps)


# -- what is known of workers -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "provider", "port"),
    [
        ("https://api.openai.com/v1", "openai", 443),
        ("https://mine.openai.azure.com/openai/v1", "azure.ai.openai", 443),
        ("https://generativelanguage.googleapis.com/v1beta/openai", "gcp.gemini", 443),
        ("https://us-central1-aiplatform.googleapis.com/v1", "gcp.vertex_ai", 443),
        ("https://bedrock-runtime.us-east-1.amazonaws.com/openai/v1", "aws.bedrock", 443),
        ("https://ec2-1-2-3-4.compute-1.amazonaws.com/v1", "openai", 443),
        ("https://api.groq.com/openai/v1", "groq", 443),
        ("http://localhost:11434/v1", "openai", 11434),
        ("http://[::1]/v1", "openai", 80),
    ],
)
async def test_the_span_of_a_call_tells_model_and_server(
    url: str, provider: str, port: int
) -> None:
    seen = Seen()
    worker = Endpoint("gpt", url=url, model="gpt-5", client=HttpClient(transport=SERVER))

    await team(seen, worker).arun("Why?", worker="gpt")

    (span,) = seen.named("chat gpt-5")
    assert span.kind is trace.SpanKind.CLIENT
    attributes = dict(span.attributes or {})
    assert attributes.pop("gen_ai.response.time_to_first_chunk") == pytest.approx(0, abs=5)
    assert attributes.pop("conductor.dollars", 0) == pytest.approx(0, abs=1e-3)
    assert attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": "gpt-5",
        "gen_ai.request.stream": True,
        "gen_ai.response.model": "gpt-5-2026",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 8,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "server.address": httpx.URL(url).host,
        "server.port": port,
        "conductor.worker": "gpt",
    }
    (agent,) = seen.named("invoke_agent gpt")
    assert agent.attributes["gen_ai.request.model"] == "gpt-5"


def serve(request: httpx.Request) -> httpx.Response:
    chunks = [
        {"model": "gpt-5-2026", "choices": [{"index": 0, "delta": {"content": "so"}}]},
        {"model": "gpt-5-2026", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {
            "model": "gpt-5-2026",
            "choices": [],
            "usage": {
                "prompt_tokens": 8,
                "completion_tokens": 2,
                "prompt_tokens_details": {"cached_tokens": 4},
            },
        },
    ]
    body = "".join(f"data: {json.dumps(each)}\n\n" for each in chunks) + "data: [DONE]\n\n"
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=body)


SERVER = httpx.MockTransport(serve)


def test_a_model_in_this_process_is_told_by_name() -> None:
    seen = Seen()
    follower = seen.telemetry.follow(workers=[LocalWorker("a")])
    for event in STORY:
        follower(event)

    (span,) = seen.named("chat smollm2-135m-instruct")
    assert span.kind is trace.SpanKind.INTERNAL
    assert span.attributes["gen_ai.provider.name"] == "local"
    assert "server.address" not in span.attributes


# -- content and keys -------------------------------------------------------------------------

SECRET = "a-word-of-the-user"
KEY = "sk-canary-0123456789abcdef"


def everything(seen: Seen) -> str:
    """All that was told, in one text."""
    spans = [span.to_json() for span in seen.spans]
    data = seen._reader.get_metrics_data()
    return "\n".join([*spans, data.to_json() if data else "", seen.telemetry.prometheus()])


def leaky(name: str) -> FunctionWorker:
    """Quotes what it was asked when it fails."""

    async def answer(messages: Sequence[Message]) -> str:
        raise ValueError(messages[-1].content)

    return FunctionWorker(name, answer)


async def asked_in_confidence(seen: Seen) -> Run:
    """A run in which everybody quotes the user: the plan, a bad one, a failure, the answer."""
    plan = f'subtasks = ["{SECRET} 1", "{SECRET} 2"]\nworkers = [0, 1]\naccess = [[], [0]]\n'
    scribe = scripted("scribe", f"{SECRET} [{SECRET}", plan)
    conductor = team(
        seen, leaky("a"), echo("b"), planner=scribe, terms={"a": Terms(fallback=("b",))}
    )
    return await conductor.arun(SECRET)


async def test_what_people_and_models_say_is_not_told() -> None:
    seen = Seen()

    run = await asked_in_confidence(seen)

    assert SECRET in (run.answer or "")
    assert len(seen.spans) == 10
    assert SECRET not in everything(seen)


@pytest.mark.parametrize("by", ["argument", "environment"])
async def test_what_people_and_models_say_is_told_to_those_who_ask(
    by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "environment":
        monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "TRUE")
    seen = Seen(content=by == "argument")

    run = await asked_in_confidence(seen)

    def said(role: str, text: str, **more: str) -> dict[str, Any]:
        return {"role": role, "parts": [{"type": "text", "content": text}], **more}

    (workflow,) = seen.named("invoke_workflow conductor")
    assert json.loads(workflow.attributes["gen_ai.input.messages"]) == [said("user", SECRET)]
    assert json.loads(workflow.attributes["gen_ai.output.messages"]) == [
        said("assistant", run.answer or "")
    ]
    calls = seen.named("chat b")
    assert [json.loads(call.attributes["gen_ai.input.messages"]) for call in calls] == [
        [said(each.role, each.content) for each in result.messages] for result in run.steps
    ]
    assert [json.loads(call.attributes["gen_ai.output.messages"]) for call in calls] == [
        [said("assistant", result.text, finish_reason="stop")] for result in run.steps
    ]
    (failed,) = seen.named("chat a")
    assert failed.status.description == run.steps[0].lost[0].failure.message
    assert [
        json.loads(call.attributes["gen_ai.output.messages"]) for call in seen.named("chat scribe")
    ] == [[said("assistant", attempt.text)] for attempt in run.planning]
    steps = [*seen.named("invoke_agent a"), *seen.named("invoke_agent b")]
    assert [each.attributes["conductor.step.subtask"] for each in steps] == [
        f"{SECRET} 1",
        f"{SECRET} 2",
    ]


@pytest.mark.parametrize("asked", ["", "false", "event_only", "yes please"])
def test_other_words_do_not_ask_for_content(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", asked)

    assert not Telemetry().content


@pytest.mark.parametrize("content", [False, True])
async def test_a_key_is_told_nowhere(content: bool) -> None:
    """Not where the server quotes it, and not to those who ask for content."""
    seen = Seen(content=content)

    def refuse(request: httpx.Request) -> httpx.Response:
        assert KEY in str(request.headers)
        return httpx.Response(401, json={"error": {"message": f"bad key {KEY}"}})

    worker = Endpoint(
        "gpt",
        url="https://api.openai.com/v1",
        model="gpt-5",
        key=KEY,
        headers={"X-Other": KEY + "-2"},
        client=HttpClient(transport=httpx.MockTransport(refuse)),
    )

    run = await team(seen, worker, planner=worker).arun("Why?", worker="gpt")

    assert run.failure is not None and run.failure.kind is FailureKind.UNAUTHORIZED
    assert len(seen.spans) == 3
    assert KEY not in everything(seen)
    assert ("bad key" in everything(seen)) is content


# -- measures ---------------------------------------------------------------------------------


def test_the_measures_of_a_run() -> None:
    """From events with known times: by OpenTelemetry and in the Prometheus text alike."""
    seen = Seen()
    follower = seen.telemetry.follow()
    for event in STORY:
        follower(event)

    call = ("chat", "other")
    assert seen.measured == {
        "gen_ai.client.operation.duration": {call: 0.75 + 3.0},
        "gen_ai.client.operation.time_to_first_chunk": {call: 0.5},
        "gen_ai.client.operation.time_per_output_chunk": {call: 0.25 + 0.5},
        "gen_ai.client.token.usage": {(*call, "input"): 9 + 12, (*call, "output"): 3 + 5},
        "gen_ai.workflow.duration": {("conductor",): 4.5},
        "gen_ai.invoke_agent.duration": {("a",): 3.0},
        "conductor.runs": {("done",): 1},
        "conductor.steps": {("done", "a"): 1},
        "conductor.retries": {("a", "timeout"): 1},
        "conductor.dollars": {("scribe", "planning"): 0.5, ("a", "step"): 0.375},
        "conductor.calls.in_flight": {("scribe",): 0, ("a",): 0},
        "conductor.plan.steps": {("conductor",): 1},
    }

    families = {each.name: each for each in parsed(seen.telemetry)}
    shown = {
        (sample.name, frozenset(filter(None, sample.labels.values()))): sample.value
        for family in families.values()
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }
    for name, points in seen.measured.items():
        flat = name.replace(".", "_")
        family = families.get(flat) or families[flat + "_seconds"]
        suffix = {"histogram": "_sum", "counter": "_total", "gauge": ""}[family.type]
        for values, value in points.items():
            assert shown.pop((family.name + suffix, frozenset(values))) == value
    assert all(name.endswith("_count") for name, _ in shown)
    assert shown["gen_ai_client_operation_duration_seconds_count", frozenset(call)] == 2
    assert shown["conductor_plan_steps_count", frozenset(["conductor"])] == 1


def parsed(telemetry: Telemetry) -> list[Any]:
    return list(text_string_to_metric_families(telemetry.prometheus()))


def test_histograms_have_the_buckets_of_the_conventions() -> None:
    seen = Seen()
    follower = seen.telemetry.follow()
    for event in STORY:
        follower(event)
    data = seen._reader.get_metrics_data()
    assert data is not None
    metrics = {each.name: each for each in data.resource_metrics[0].scope_metrics[0].metrics}

    seconds = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12]
    seconds += [10.24, 20.48, 40.96, 81.92]
    tokens = [1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304]
    tokens += [16777216, 67108864]

    def bounds(name: str) -> list[float]:
        (point, *_) = metrics[name].data.data_points
        return list(point.explicit_bounds)

    assert bounds("gen_ai.client.operation.duration") == seconds
    assert bounds("gen_ai.client.operation.time_to_first_chunk") == seconds
    assert bounds("gen_ai.client.operation.time_per_output_chunk") == seconds
    assert bounds("gen_ai.client.token.usage") == tokens
    assert metrics["gen_ai.client.token.usage"].unit == "{token}"
    assert metrics["gen_ai.client.operation.duration"].unit == "s"


async def test_the_measures_are_the_accounts_of_the_run() -> None:
    """Tokens and dollars, lost calls included: nothing is counted twice or left out."""
    seen = Seen()
    price = Terms(retries=1, retry_base_s=1e-6, price=Price(Decimal(1000), Decimal(100)))
    scribe = scripted("scribe", Completion(WRITTEN, usage=Usage(1000, 100)))
    conductor = team(
        seen,
        scripted("a", Completion(" ", usage=Usage(11, 1)), Completion("yes", usage=Usage(70, 7))),
        scripted("b", Completion("no", usage=Usage(500, 50))),
        planner=scribe,
        terms=dict.fromkeys(("a", "b", "scribe"), price),
    )

    run = await conductor.arun("Why?")

    told = seen.measured["conductor.dollars"]
    assert told.pop(("scribe", "planning")) == pytest.approx(float(run.orchestration.dollars))
    assert told == {
        (worker, "step"): pytest.approx(float(each.dollars))
        for worker, each in run.accounts.items()
    }
    tokens = seen.measured["gen_ai.client.token.usage"]
    everyone = run.usage + run.planning_usage
    assert tokens["chat", "function", "input"] == everyone.input_tokens == 1581
    assert tokens["chat", "function", "output"] == everyone.output_tokens == 158
    assert seen.tree.attributes["conductor.dollars"] == pytest.approx(float(run.dollars))


def test_two_in_one_process_do_not_collide() -> None:
    one, other = Telemetry(), Telemetry()
    follower = one.follow()
    for event in STORY:
        follower(event)

    assert 'conductor_runs_total{conductor_run_state="done"} 1.0' in one.prometheus()
    assert "done" not in other.prometheus()


# -- what it may never do ---------------------------------------------------------------------


class Broken(SpanProcessor):
    def on_end(self, span: ReadableSpan) -> None:
        raise OSError("no space left")


async def test_a_processor_that_fails_does_not_fail_the_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(Broken())
    telemetry = Telemetry(tracers)
    conductor = Conductor(Pool([echo("a"), echo("b")]), telemetry=telemetry)
    events: list[Event] = []

    with caplog.at_level(logging.WARNING, "conductor.telemetry"):
        run = await conductor.arun("q", plan=chain(["x"], ["a", "b"]), on_event=events.append)

    assert run.state is RunState.DONE
    assert isinstance(events[-1], RunFinished)
    (record,) = caplog.records
    assert record.getMessage() == f"the telemetry of run {run.id} ends here: OSError: no space left"
    assert 'conductor_calls_in_flight{conductor_worker="a"} 0.0' in telemetry.prometheus()


async def test_a_listener_that_raises_ends_the_spans_too() -> None:
    """The run tells no end then; the spans have one all the same."""
    seen = Seen()

    def refuse(event: Event) -> None:
        if isinstance(event, StepStarted):
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        await team(seen, hanging("a")).arun("Why?", worker="a", on_event=refuse)

    (tree,) = seen.trees
    assert (tree.error, tree.attributes["conductor.run.state"]) == ("internal", "failed")
    (only,) = tree.children
    assert only == step(0, "a", (), chat("a", error="internal"), state="failed", error="internal")
    assert in_flight(seen) == {"a": 0}


async def test_the_journal_comes_first(tmp_path: Path) -> None:
    """What can't be kept isn't told: nothing is in a trace that is not in the journal."""
    seen = Seen()
    journal = Journal(tmp_path / "runs.db")
    told: list[bool] = []

    def look(event: Event) -> None:
        if isinstance(event, RunFinished):
            told.append(bool(seen.named("invoke_workflow conductor")))
            told.append(journal.runs()[0].state is RunState.DONE)

    await team(seen, echo("a"), journal=journal).arun("Why?", worker="a", on_event=look)

    assert told == [True, True]


times = st.floats(0, 9)
failures = st.builds(Failure, st.sampled_from(FailureKind), st.text())
attempts = st.builds(
    Attempt, st.sampled_from("abc"), failures, times, st.none() | st.just(Usage(1, 1))
)
NAMES = st.sampled_from(["a", "b", "c"])
loose: st.SearchStrategy[Event] = st.one_of(
    st.builds(RoundStarted, times, st.integers(1, 3)),
    st.builds(PlanStarted, times, NAMES, st.integers(0, 1)),
    st.builds(PlanDelta, times, st.text()),
    st.builds(
        PlanAttempted,
        times,
        st.builds(
            PlanAttempt,
            NAMES,
            st.text(),
            st.none(),
            times,
            failure=st.none() | failures,
            lost=st.lists(attempts).map(tuple),
        ),
    ),
    st.builds(
        PlanParsed, times, st.just(chain(["x", "y"], ["a", "b"])), st.sampled_from(PlanSource)
    ),
    st.builds(CallRetried, times, st.none() | st.integers(0, 1), attempts, NAMES, times),
    st.builds(StepStarted, times, st.integers(0, 1), NAMES, st.just(())),
    st.builds(StepDelta, times, st.integers(0, 1), st.text()),
    st.builds(
        StepSuspended,
        times,
        st.integers(0, 1),
        st.just(()),
        st.none()
        | st.builds(
            ToolTurn,
            NAMES,
            st.just((ToolCall("c", "look", "{}"),)),
            st.just(("own",)),
            st.just((None,)),
            lost=st.lists(attempts).map(tuple),
        ),
    ),
    st.builds(
        StepFinished,
        times,
        st.builds(
            StepResult,
            st.integers(0, 1),
            NAMES,
            st.sampled_from([StepState.DONE, StepState.FAILED, StepState.SKIPPED]),
            failure=st.none() | failures,
            lost=st.lists(attempts).map(tuple),
        ),
    ),
)


@given(st.lists(loose, max_size=25))
def test_whatever_is_told_everything_ends(events: list[Event]) -> None:
    """Spans that begin end with the run, and no call stays in flight, in any order of events."""
    seen = Seen()
    follower = seen.telemetry.follow(heard := list[Event]().append)
    begun = STORY[0]
    follower(begun)
    events = [replace(event, at=float(at)) for at, event in enumerate(events)]
    for event in events:
        follower(event)
    follower.close()

    assert follower._trace is not None, "it gave up"
    assert heard.__self__ == [begun, *events]
    assert sum(not span.parent for span in seen.spans) == 1
    ids = {span.context.span_id for span in seen.spans}
    assert all(span.parent.span_id in ids for span in seen.spans if span.parent)
    assert set(in_flight(seen).values()) <= {0}


def test_without_the_extra_one_line_tells_what_to_install() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from conductor import Telemetry\n"
        "for make in (Telemetry, Telemetry.from_environment):\n"
        "    try: make()\n"
        "    except ModuleNotFoundError as error: print(error)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )

    line = "telemetry needs what is not installed; pip install 'conductor-lm[telemetry]'"
    assert done.stdout.splitlines() == [line, line]


# -- OTLP -------------------------------------------------------------------------------------


class Collector(ThreadingHTTPServer):
    """Receives OTLP over HTTP on loopback."""

    daemon_threads = True

    def __init__(self) -> None:
        self.traces: list[ExportTraceServiceRequest] = []
        self.metrics: list[ExportMetricsServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.headers.append({k.lower(): v for k, v in self.headers.items()})
                if self.path == "/v1/traces":
                    collector.traces.append(ExportTraceServiceRequest.FromString(body))
                elif self.path == "/v1/metrics":
                    collector.metrics.append(ExportMetricsServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def collecting() -> Iterator[Collector]:
    with Collector() as collector:
        thread = Thread(target=collector.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield collector
        finally:
            collector.shutdown()
            thread.join()


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


async def test_spans_and_metrics_arrive_at_a_collector(
    plain_environment: pytest.MonkeyPatch,
) -> None:
    with collecting() as collector:
        plain_environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
        plain_environment.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=us")
        with Telemetry.from_environment() as telemetry:
            conductor = Conductor(Pool([echo("a"), echo("b")]), telemetry=telemetry)
            run = await conductor.arun("Why?", plan=chain(["x", "y"], ["a", "b"]))
            assert await anyio.to_thread.run_sync(telemetry.close)

    spans, names = [], set()
    for request in collector.traces:
        for resource in request.resource_spans:
            names |= {each.value.string_value for each in resource.resource.attributes}
            for scope in resource.scope_spans:
                assert (scope.scope.name, scope.schema_url) == ("conductor", SCHEMA_URL)
                spans += scope.spans
    assert "conductor" in names
    assert sorted(span.name for span in spans) == [
        "chat a",
        "chat b",
        "invoke_agent a",
        "invoke_agent b",
        "invoke_workflow conductor",
    ]
    by_name = {span.name: span for span in spans}
    workflow = by_name["invoke_workflow conductor"]
    assert run.id in {each.value.string_value for each in workflow.attributes}
    assert by_name["chat a"].parent_span_id == by_name["invoke_agent a"].span_id
    (link,) = by_name["invoke_agent b"].links
    assert link.span_id == by_name["invoke_agent a"].span_id
    measured = {
        metric.name
        for request in collector.metrics
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    assert {"gen_ai.client.operation.duration", "conductor.runs", "conductor.steps"} <= measured
    assert all(each["x-tenant"] == "us" for each in collector.headers)


async def test_each_signal_can_be_left_out(plain_environment: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        plain_environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
        plain_environment.setenv("OTEL_METRICS_EXPORTER", "none")
        with Telemetry.from_environment() as telemetry:
            await Conductor(Pool([echo("a")]), telemetry=telemetry).arun("Why?", worker="a")
            assert await anyio.to_thread.run_sync(telemetry.close)

    assert (len(collector.traces), len(collector.metrics)) == (1, 0)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin", "OTEL_TRACES_EXPORTER is 'zipkin'; otlp and none"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'; http/pro"),
    ],
)
def test_what_is_not_here_is_told(
    name: str, value: str, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(ValueError, match=error):
        Telemetry.from_environment()


async def test_a_collector_that_hangs_holds_nothing_up(
    plain_environment: pytest.MonkeyPatch,
) -> None:
    """The run ends, and so does close: what was not taken is given up."""
    asked, end = Flag(), Flag()

    class Hanging(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.set()
            end.wait(10)

    with ThreadingHTTPServer(("127.0.0.1", 0), Hanging) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        plain_environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        plain_environment.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        telemetry = Telemetry.from_environment()
        run = await Conductor(Pool([echo("a")]), telemetry=telemetry).arun("Why?", worker="a")

        assert run.state is RunState.DONE
        assert not await anyio.to_thread.run_sync(telemetry.close, 0.2)
        assert asked.is_set()
        end.set()
        server.shutdown()


def test_a_collector_that_is_not_there_is_no_error(
    plain_environment: pytest.MonkeyPatch,
) -> None:
    plain_environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    plain_environment.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    with Telemetry.from_environment() as telemetry:
        run = Conductor(Pool([echo("a")]), telemetry=telemetry).run("Why?", worker="a")

    assert run.state is RunState.DONE


# -- the page and the command -----------------------------------------------------------------

PAGE = (ROOT / "docs" / "telemetry.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def shell(script: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run lines of the page as a user does, with the `conductor` of this checkout."""
    command = folder / "conductor"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m conductor "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    path = f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin"
    clean = {"PATH": path, "HOME": str(Path.home()), "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(
        ["sh", "-c", script], cwd=folder, env=clean, capture_output=True, text=True, timeout=600
    )


def test_the_command_of_the_page_sends_a_run(tmp_path: Path) -> None:
    (script,) = blocks("sh")
    with collecting() as collector:
        assert script.count("http://localhost:4318") == 1
        done = shell(script.replace("http://localhost:4318", collector.address), tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()
    spans = [
        span
        for request in collector.traces
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert {span.name for span in spans} == {
        "invoke_workflow conductor",
        "invoke_agent plain",
        "chat smollm2-135m-instruct",
    }
    assert len({span.trace_id for span in spans}) == 1
    assert collector.metrics


def test_the_python_of_the_page_runs(tmp_path: Path) -> None:
    (example,) = blocks("python")

    done = subprocess.run(
        [sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert 'conductor_runs_total{conductor_run_state="done"} 1.0' in done.stdout.splitlines()


async def test_the_page_names_every_attribute_and_measure() -> None:
    """Those of these tests' runs, and no measure that is not there."""
    seen = Seen()
    await asked_in_confidence(seen)
    for event in STORY:
        seen.telemetry.follow()(event)

    for span in seen.spans:
        for name in (span.attributes or {}).keys() - {"gen_ai.operation.name"}:
            assert f"`{name}`" in PAGE, name
    rows = re.findall(r"^\| `([a-z_.]+)` \| `([a-z_]+)` \|", PAGE, re.MULTILINE)
    shown = dict(rows)
    assert shown.keys() == seen.telemetry.measures.keys()
    for name, measure in seen.telemetry.measures.items():
        flat = shown[name]
        assert all(sample.startswith(flat.removesuffix("_total")) for sample in measure.samples)
    assert SCHEMA_URL.endswith("gen-ai/1.42.0") and "`gen-ai/1.42.0`" in PAGE


def test_a_collector_that_is_gone_is_told_after_the_answer(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text(
        '[workers.gone]\nkind = "openai"\nurl = "http://127.0.0.1:9"\nmodel = "m"\nretries = 0\n',
        encoding="utf-8",
    )

    done = shell(
        "conductor run --pool pool.toml --worker gone --quiet --telemetry why",
        tmp_path,
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
        OTEL_EXPORTER_OTLP_TIMEOUT="0.2",
    )

    said = " ".join(done.stderr.split())
    assert done.returncode == 1
    assert said.index("no answer") < said.index("not all telemetry was sent")
    assert said.endswith("check OTEL_EXPORTER_OTLP_ENDPOINT")


def test_the_server_sends_its_runs_as_parts_of_its_clients_traces(tmp_path: Path) -> None:
    """A process of its own, from the request to what the collector gets at the end."""
    (tmp_path / "conductor.toml").write_text(
        '[workers.gone]\nkind = "openai"\nurl = "http://127.0.0.1:9"\nmodel = "m"\nretries = 0\n',
        encoding="utf-8",
    )
    call = [sys.executable, "-m", "conductor", "serve", "--port", "0", "--no-journal"]
    body = {"model": "worker/gone", "messages": [{"role": "user", "content": "Why?"}]}
    with collecting() as collector:
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HOME": str(tmp_path),
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.address,
        }
        with subprocess.Popen(
            [*call, "--telemetry"], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stderr is not None
                found = re.search(r"http://\S+", process.stderr.readline())
                assert found
                url = f"{found[0]}/chat/completions"
                reply = httpx.post(url, json=body, headers={"traceparent": PARENT}, timeout=30)
                process.terminate()
                _, told = process.communicate(timeout=30)
            finally:
                process.kill()

    assert (reply.status_code, process.returncode, told) == (502, 0, "")
    spans = [
        span
        for request in collector.traces
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert {span.trace_id.hex() for span in spans} == {PARENT.split("-")[1]}
    (run,) = (span for span in spans if span.name == "invoke_workflow conductor")
    assert run.parent_span_id.hex() == PARENT.split("-")[2]


def test_the_command_tells_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").write_text("", encoding="utf-8")
    path = f"{tmp_path}{os.pathsep}{ROOT}"

    done = shell("conductor run --telemetry why", tmp_path, PYTHONPATH=path)

    told = "telemetry needs what is not installed; pip install 'conductor-lm[telemetry]'"
    assert (done.returncode, done.stderr) == (2, f"error: --telemetry: {told}\n")
