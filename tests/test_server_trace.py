"""The trace of a client's request: told to telemetry, and passed on to workers behind HTTP."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from conductor import Conductor, Telemetry
from conductor.server import Server
from runtime import Endpoint, HttpClient, Pool, trace_headers
from tests.serving import CHAT, asked, client

pytestmark = pytest.mark.anyio

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{CALLER}-01"
STATE = "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"
PLAN = 'subtasks = ["Think.", "Say."]\nworkers = ["gpt", "gpt"]\naccess = [[], [0]]\n'


@dataclass
class Upstream:
    """A model server that keeps what each request says of its trace."""

    text: str = "so"
    seen: list[tuple[str | None, str | None]] = field(default_factory=list)

    def answer(self, request: httpx.Request) -> httpx.Response:
        headers = request.headers
        self.seen.append((headers.get("traceparent"), headers.get("tracestate")))
        chunk = {
            "choices": [{"index": 0, "delta": {"content": self.text}, "finish_reason": "stop"}]
        }
        body = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=body)

    def worker(self, name: str) -> Endpoint:
        http = HttpClient(transport=httpx.MockTransport(self.answer))
        return Endpoint(name, url="http://upstream.test/v1", model="m", client=http)


class Seen:
    """Telemetry that keeps its spans."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        tracers = TracerProvider(shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.telemetry = Telemetry(tracers, MeterProvider(shutdown_on_exit=False))

    def named(self, name: str) -> list[ReadableSpan]:
        return [each for each in self._exporter.get_finished_spans() if each.name == name]

    @property
    def steps(self) -> list[str]:
        """The traceparent of each step's span."""
        found = self.named("invoke_agent gpt")
        return [
            f"00-{one.trace_id:032x}-{one.span_id:016x}-{one.trace_flags:02x}"
            for one in (each.context for each in found)
        ]


async def ask(server: Server, model: str = "worker/gpt", /, **options: Any) -> None:
    headers = {name: options.pop(name) for name in ("traceparent", "tracestate") if name in options}
    async with client(server) as http:
        reply = await http.post(CHAT, json=asked(model, **options), headers=headers)
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize("stream", [False, True])
async def test_without_telemetry_the_callers_trace_reaches_the_worker(stream: bool) -> None:
    upstream = Upstream()
    server = Server(Conductor(Pool([upstream.worker("gpt")])))

    await ask(server, stream=stream, traceparent=PARENT, tracestate=STATE)
    await ask(server, stream=stream, traceparent=PARENT)
    await ask(server, stream=stream)

    assert upstream.seen == [(PARENT, STATE), (PARENT, None), (None, None)]
    assert not trace_headers.get()


@pytest.mark.parametrize(
    "wrong",
    [
        "nonsense",
        PARENT[:-1],
        PARENT.upper(),
        f"00-{'0' * 32}-{CALLER}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{CALLER}-01",
        f"{PARENT}-more",
    ],
)
async def test_a_trace_that_can_not_be_read_goes_no_further(wrong: str) -> None:
    upstream = Upstream()

    server = Server(Conductor(Pool([upstream.worker("gpt")])))
    await ask(server, traceparent=wrong, tracestate=STATE)

    assert upstream.seen == [(None, None)]


async def test_a_state_without_a_parent_or_too_long_goes_no_further() -> None:
    upstream = Upstream()
    server = Server(Conductor(Pool([upstream.worker("gpt")])))

    await ask(server, tracestate=STATE)
    await ask(server, traceparent=PARENT, tracestate="a=" + "x" * 511)

    assert upstream.seen == [(None, None), (PARENT, None)]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_run_is_a_part_of_the_callers_trace_and_a_call_of_its_step(stream: bool) -> None:
    upstream, seen = Upstream(), Seen()
    server = Server(Conductor(Pool([upstream.worker("gpt")]), telemetry=seen.telemetry))

    await ask(server, stream=stream, traceparent=PARENT, tracestate=STATE)

    (run,) = seen.named("invoke_workflow conductor")
    assert run.parent is not None
    assert (f"{run.parent.trace_id:032x}", f"{run.parent.span_id:016x}") == (TRACE, CALLER)
    assert upstream.seen == [(seen.steps[0], STATE)]
    assert seen.steps[0].startswith(f"00-{TRACE}-")


async def test_each_call_of_a_plan_is_told_its_own_step() -> None:
    upstream, seen = Upstream(), Seen()
    scribe = Upstream(text=PLAN)
    team = Conductor(
        Pool([upstream.worker("gpt")], planner=scribe.worker("scribe")), telemetry=seen.telemetry
    )

    await ask(Server(team), "conductor", traceparent=PARENT)

    (planning,) = seen.named("plan scribe")
    assert scribe.seen == [(f"00-{TRACE}-{planning.context.span_id:016x}-01", None)]
    assert upstream.seen == [(each, None) for each in seen.steps]
    assert len(set(seen.steps)) == 2


async def test_further_choices_are_parts_of_the_same_trace() -> None:
    upstream, seen = Upstream(), Seen()
    server = Server(Conductor(Pool([upstream.worker("gpt")]), telemetry=seen.telemetry))

    await ask(server, n=3, traceparent=PARENT)

    runs = seen.named("invoke_workflow conductor")
    parents = {each.parent.span_id for each in runs if each.parent}
    assert (len(runs), parents) == (3, {int(CALLER, 16)})


async def test_a_run_leaves_nothing_behind_in_its_task() -> None:
    upstream, seen = Upstream(), Seen()
    team = Conductor(Pool([upstream.worker("gpt")]), telemetry=seen.telemetry)

    await team.arun("Why?", worker="gpt")
    await team.arun("Why?", worker="gpt")

    assert not trace_headers.get()
    assert [each for each, _ in upstream.seen] == seen.steps
    assert len({each.split("-")[1] for each in seen.steps}) == 2
