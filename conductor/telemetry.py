"""Runs as OpenTelemetry spans and metrics, and as Prometheus text: the one place that maps events.

Names follow the OpenTelemetry GenAI semantic conventions at the version of :data:`SCHEMA_URL`
(status "Development"); what they have no word for is called ``conductor.*``. A run is a tree::

    invoke_workflow conductor          the run
    ├── plan scribe                    each attempt of the Conductor model
    │   └── chat gpt-5                 its call
    ├── invoke_agent small             each step; span links lead to the steps that it reads
    │   └── chat gpt-5-mini            each worker that was called: one span for all its retries
    └── invoke_agent self              a step whose worker is the Conductor itself
        └── invoke_workflow conductor  the run inside it

``OTEL_SEMCONV_STABILITY_OPT_IN`` has nothing to switch: it lets users of instrumentations that had
names before version 1.37 keep those, and this one never had other names than it has now.

opentelemetry and prometheus_client (extra ``telemetry``) are imported when the first
:class:`Telemetry` is made.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from grammar import Plan
from runtime import (
    Attempt,
    CallRetried,
    Emit,
    Endpoint,
    Event,
    Failure,
    FailureKind,
    FinishReason,
    FunctionWorker,
    LocalWorker,
    Message,
    NestedEvent,
    PlanAttempted,
    PlanDelta,
    PlanKept,
    PlanParsed,
    PlanStarted,
    Record,
    RoundStarted,
    RunFinished,
    RunResumed,
    RunStarted,
    RunState,
    StepDelta,
    StepFinished,
    StepResult,
    StepStarted,
    StepState,
    StepSuspended,
    ToolCall,
    ToolTurn,
    Usage,
    Worker,
    WorkerPicked,
    no_listener,
    trace_headers,
)

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.metrics import Meter, MeterProvider
    from opentelemetry.trace import Span, SpanContext, TracerProvider
    from prometheus_client import CollectorRegistry

SCHEMA_URL = "https://opentelemetry.io/schemas/gen-ai/1.42.0"
"""The version of the conventions."""
CONTENT_VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
INSTALL = "telemetry needs what is not installed; pip install 'conductor-lm[telemetry]'"

_CLOSE_S = 5.0  # for what is not sent yet; a collector that hangs must not hold up the process
_log = logging.getLogger("conductor.telemetry")

Attributes = dict[str, Any]


# -- the measures -----------------------------------------------------------------------------

_SECONDS = tuple(0.01 * 2**n for n in range(14))
_TOKENS = tuple(float(4**n) for n in range(14))
_CALLED = (
    "gen_ai.operation.name",
    "gen_ai.provider.name",
    "gen_ai.request.model",
    "server.address",
    "server.port",
)
"""The model that a server says it answered with is no attribute of a measure: it is the server's
word, and each new word would be a new series."""


@dataclass(frozen=True, slots=True)
class _Described:
    kind: Literal["histogram", "counter", "gauge"]
    unit: str
    told: str
    attributes: tuple[str, ...]
    buckets: tuple[float, ...] = ()


_MEASURES = {
    "gen_ai.client.operation.duration": _Described(
        "histogram",
        "s",
        "Time from a call to its end, retries and the waits between them included.",
        (*_CALLED, "error.type"),
        _SECONDS,
    ),
    "gen_ai.client.operation.time_to_first_chunk": _Described(
        "histogram", "s", "Time from a try to the first piece of text.", _CALLED, _SECONDS
    ),
    "gen_ai.client.operation.time_per_output_chunk": _Described(
        "histogram", "s", "Time from one piece of text to the next.", _CALLED, _SECONDS
    ),
    "gen_ai.client.token.usage": _Described(
        "histogram",
        "{token}",
        "Tokens of a call, by type.",
        (*_CALLED, "gen_ai.token.type"),
        _TOKENS,
    ),
    "gen_ai.workflow.duration": _Described(
        "histogram",
        "s",
        "Time of a run; runs inside steps apart.",
        ("gen_ai.workflow.name", "error.type"),
        (1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0),
    ),
    "gen_ai.invoke_agent.duration": _Described(
        "histogram",
        "s",
        "Time of a step.",
        ("gen_ai.agent.name", "gen_ai.request.model", "error.type"),
        tuple(0.1 * 2**n for n in range(13)),
    ),
    "conductor.runs": _Described(
        "counter", "{run}", "Runs that ended; runs inside steps apart.", ("conductor.run.state",)
    ),
    "conductor.steps": _Described(
        "counter",
        "{step}",
        "Steps that ended, by who answered.",
        ("conductor.step.state", "conductor.worker"),
    ),
    "conductor.retries": _Described(
        "counter",
        "{retry}",
        "Calls that came to nothing and were made again, by the same worker.",
        ("conductor.worker", "error.type"),
    ),
    "conductor.fallbacks": _Described(
        "counter",
        "{fallback}",
        "Workers that failed and another one stood in for.",
        ("conductor.worker", "conductor.fallback", "error.type"),
    ),
    "conductor.dollars": _Described(
        "counter",
        "{dollar}",
        "What calls cost; those of unknown price are not in it.",
        ("conductor.worker", "conductor.purpose"),
    ),
    "conductor.calls.in_flight": _Described(
        "gauge", "{call}", "Calls without an answer yet, waits included.", ("conductor.worker",)
    ),
    "conductor.plan.steps": _Described(
        "histogram",
        "{step}",
        "Steps of a plan.",
        ("conductor.plan.source",),
        (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 50.0),
    ),
    "conductor.planning.failures": _Described(
        "counter",
        "{attempt}",
        "What the Conductor model wrote was no plan, by code; once for each code in a text.",
        ("conductor.diagnostic.code",),
    ),
}


class _Measure:
    """One measure, taken twice: by OpenTelemetry and for the Prometheus text."""

    def __init__(
        self, name: str, described: _Described, meter: Meter, registry: CollectorRegistry
    ) -> None:
        import prometheus_client as prometheus

        flat = name.replace(".", "_") + ("_seconds" if described.unit == "s" else "")
        self._attributes = described.attributes
        self._series: dict[tuple[object, ...], Callable[[float], None]] = {}
        labels = [each.replace(".", "_") for each in described.attributes]
        told = described.told
        self._record: Callable[[float, Attributes], None]
        ours: Any
        match described.kind:
            case "histogram":
                self._record = meter.create_histogram(
                    name,
                    described.unit,
                    told,
                    explicit_bucket_boundaries_advisory=described.buckets,
                ).record
                buckets = described.buckets
                ours = prometheus.Histogram(flat, told, labels, registry=registry, buckets=buckets)
                self._verb = "observe"
                self.samples = [f"{flat}_{part}" for part in ("bucket", "sum", "count")]
            case "counter":
                self._record = meter.create_counter(name, described.unit, told).add
                ours = prometheus.Counter(flat, told, labels, registry=registry)
                self._verb = "inc"
                self.samples = [f"{flat}_total"]
            case "gauge":
                self._record = meter.create_up_down_counter(name, described.unit, told).add
                ours = prometheus.Gauge(flat, told, labels, registry=registry)
                self._verb = "inc"
                self.samples = [flat]
        self._ours = ours

    def __call__(self, value: float, attributes: Attributes) -> None:
        self._record(value, attributes)
        values = tuple(attributes.get(each, "") for each in self._attributes)
        series = self._series.get(values)
        if series is None:
            series = self._series[values] = getattr(self._ours.labels(*values), self._verb)
        series(value)


# -- the public face --------------------------------------------------------------------------


class Telemetry:
    """Where the runs of a process are told to, as spans and metrics.

    >>> from conductor import Conductor, Telemetry
    >>> team = Conductor(telemetry=Telemetry())  # doctest: +SKIP

    Nothing here fails or holds up a run: what a processor or exporter raises ends the telemetry of
    that run, with a warning in the log ``conductor.telemetry``. Give span processors that export in
    a thread of their own (``BatchSpanProcessor``); a run waits for those that don't.

    Args:
        tracer_provider: Gets the spans; the one that is set for the process if None.
        meter_provider: Gets the metrics; the one that is set for the process if None. The text of
            :meth:`prometheus` needs neither.
        content: Whether messages, completions, subtasks and the words of failures are told too;
            also if ``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`` says so. Keys never are.
        workflow: Name of the workflow: what these runs are for.

    Raises:
        ModuleNotFoundError: If the extra ``telemetry`` is not installed.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        content: bool = False,
        *,
        workflow: str = "conductor",
    ) -> None:
        try:
            from opentelemetry import context, metrics, trace
            from opentelemetry.trace.propagation import tracecontext
            from prometheus_client import CollectorRegistry
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(INSTALL, name=error.name) from error
        scope = ("conductor", _version(), SCHEMA_URL)
        asked = os.environ.get(CONTENT_VARIABLE, "").strip().lower()
        self.content = content or asked in ("true", "span_only", "span_and_event")
        self.workflow = workflow
        self.tracer = (tracer_provider or trace.get_tracer_provider()).get_tracer(
            scope[0], scope[1], schema_url=scope[2]
        )
        meter = (meter_provider or metrics.get_meter_provider()).get_meter(
            scope[0], scope[1], schema_url=scope[2]
        )
        self._registry = CollectorRegistry()
        self.measures = {
            name: _Measure(name, described, meter, self._registry)
            for name, described in _MEASURES.items()
        }
        self._context = context
        self._propagator = tracecontext.TraceContextTextMapPropagator()
        self._shutdowns: list[Callable[[], object]] = []

    @classmethod
    def from_environment(cls, *, content: bool = False, workflow: str = "conductor") -> Telemetry:
        """Send OTLP over HTTP as the ``OTEL_*`` variables say; :meth:`close` it at the end.

        Endpoint, headers, intervals and the like are OpenTelemetry's own variables;
        ``OTEL_TRACES_EXPORTER=none`` and ``OTEL_METRICS_EXPORTER=none`` leave a signal out.

        Raises:
            ValueError: If the variables ask for what is not here: another exporter, or gRPC.
            ModuleNotFoundError: If the extra ``telemetry`` is not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.metrics import MeterProvider
            from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(INSTALL, name=error.name) from error
        sent = {signal: _is_sent(signal, os.environ) for signal in ("traces", "metrics")}
        resource = Resource.create()
        if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "conductor"}))
        tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
        if sent["traces"]:
            tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        readers = [PeriodicExportingMetricReader(OTLPMetricExporter())] if sent["metrics"] else []
        meters = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
        made = cls(tracers, meters, content, workflow=workflow)
        made._shutdowns = [tracers.shutdown, meters.shutdown]
        return made

    def follow(
        self,
        emit: Emit = no_listener,
        *,
        workers: Iterable[Worker] = (),
        traceparent: str = "",
        past: Record | None = None,
    ) -> Follower:
        """Make the listener of one run.

        Args:
            emit: Gets each event afterwards.
            workers: The pool and the planner; spans of their calls tell model and server.
            traceparent: What the run is a part of, as in W3C Trace Context; the span that is the
                current one here if empty. One that is malformed is left out.
            past: The record of a run that goes on after it was stopped.
        """
        if traceparent:
            context = self._propagator.extract({"traceparent": traceparent})
        else:
            context = self._context.get_current()
        known = {worker.name: _known(worker) for worker in workers}
        return Follower(_Trace(self, known, context, past=past), emit)

    @contextmanager
    def within(self, trace: Mapping[str, str]) -> Iterator[None]:
        """Have runs that begin in this block be a part of a trace.

        Args:
            trace: ``traceparent`` and ``tracestate``, as in W3C Trace Context.
        """
        here = self._context.get_current()
        token = self._context.attach(self._propagator.extract(trace, here))
        try:
            yield
        finally:
            self._context.detach(token)

    def pass_on(self, context: Context) -> None:
        """Have workers behind HTTP be told what their calls are a part of, in this task."""
        headers: dict[str, str] = {}
        self._propagator.inject(headers, context)
        trace_headers.set(headers or trace_headers.get())

    def prometheus(self) -> str:
        """Everything measured so far, in the text format that Prometheus reads."""
        from prometheus_client import generate_latest

        names = [name for each in self.measures.values() for name in each.samples]
        return generate_latest(self._registry.restricted_registry(names)).decode()

    def close(self, timeout_s: float = _CLOSE_S) -> bool:
        """Send what is not sent yet, if :meth:`from_environment` made this.

        Returns:
            Whether it was done in time; if not, it is given up.
        """
        shutdowns, self._shutdowns = self._shutdowns, []
        # A thread each, since the SDK waits up to 30 s for a collector that hangs.
        threads = [Thread(target=each, daemon=True) for each in shutdowns]
        for thread in threads:
            thread.start()
        end = time.monotonic() + timeout_s
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Follower:
    """The listener of one run. Call it with each event; it passes them on.

    ``close`` ends the spans of a run that told no end, as when a listener raised.
    """

    def __init__(self, trace: _Trace, emit: Emit) -> None:
        self._trace: _Trace | None = trace
        self._emit = emit

    def __call__(self, event: Event) -> None:
        """Take in the next event."""
        if self._trace is not None:
            try:
                self._trace.take(event, event.at)
            except Exception as error:  # the boundary to processors and exporters of anybody
                self._give_up(self._trace, error)
        self._emit(event)

    def close(self) -> None:
        """End what is open."""
        if self._trace is not None:
            try:
                self._trace.break_off()
            except Exception as error:  # as above
                self._give_up(self._trace, error)

    def _give_up(self, trace: _Trace, error: Exception) -> None:
        self._trace = None
        _log.warning(
            "the telemetry of run %s ends here: %s: %s", trace.id, type(error).__name__, error
        )
        with suppress(Exception):  # the same that just failed may fail again
            trace.forget_calls()


def problems() -> list[str]:
    """Collect what OpenTelemetry complains of from now on, instead of having it printed."""
    found: list[str] = []

    class Collecting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    for name in ("opentelemetry", _log.name):
        log = logging.getLogger(name)
        log.addHandler(Collecting(logging.WARNING))
        log.propagate = False
    return found


def _version() -> str:
    try:
        return installed_version("conductor-lm")
    except PackageNotFoundError:  # run from a checkout
        return ""


def _is_sent(signal: str, env: Mapping[str, str]) -> bool:
    """Whether the environment has a signal sent.

    Raises:
        ValueError: If it asks for what is not here.
    """
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    exporter = env.get(variable, "").strip() or "otlp"
    if exporter == "none":
        return False
    if exporter != "otlp":
        raise ValueError(f"{variable} is {exporter!r}; otlp and none are what is here")
    for name in (f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = env.get(name, "").strip()
        if protocol not in ("", "http/protobuf"):
            raise ValueError(f"{name} is {protocol!r}; http/protobuf is what is here")
        if protocol:
            break
    return True


# -- what is known of a worker ----------------------------------------------------------------

_PROVIDERS = {
    "api.openai.com": "openai",
    "*.openai.azure.com": "azure.ai.openai",
    "*.services.ai.azure.com": "azure.ai.inference",
    "*.models.ai.azure.com": "azure.ai.inference",
    "api.anthropic.com": "anthropic",
    "generativelanguage.googleapis.com": "gcp.gemini",
    "*aiplatform.googleapis.com": "gcp.vertex_ai",
    "bedrock-runtime.*.amazonaws.com": "aws.bedrock",
    "api.cohere.ai": "cohere",
    "api.cohere.com": "cohere",
    "api.deepseek.com": "deepseek",
    "api.groq.com": "groq",
    "*.ml.cloud.ibm.com": "ibm.watsonx.ai",
    "api.mistral.ai": "mistral_ai",
    "api.moonshot.ai": "moonshot_ai",
    "api.moonshot.cn": "moonshot_ai",
    "api.perplexity.ai": "perplexity",
    "api.x.ai": "x_ai",
}
"""By the name of the host. Another server that speaks OpenAI's language is told as "openai":
to the conventions, the provider is whose language it is, and ``server.address`` who it is."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What is told of a worker."""

    name: str
    model: str = ""
    provider: str = "other"
    address: str = ""
    port: int = 0
    streams: bool = False
    """Whether its text comes in pieces, however short it is."""
    card: str = ""
    called: Attributes = field(init=False)
    """What spans and measures of its calls have in common."""

    def __post_init__(self) -> None:
        called: Attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": self.provider,
        }
        if self.model:
            called["gen_ai.request.model"] = self.model
        if self.address:
            called |= {"server.address": self.address, "server.port": self.port}
        object.__setattr__(self, "called", called)


def _known(worker: Worker) -> _Known:
    name, card = worker.name, worker.card
    match worker:
        case Endpoint():
            url = urlsplit(json.loads(worker.identity)["url"])
            host = url.hostname or ""
            port = url.port or (443 if url.scheme == "https" else 80)
            names = (each for mask, each in _PROVIDERS.items() if fnmatchcase(host, mask))
            return _Known(name, worker.model, next(names, "openai"), host, port, True, card)
        case LocalWorker():
            return _Known(name, worker.model.name, "local", streams=True, card=card)
        case FunctionWorker():
            return _Known(name, provider="function", card=card)
        case _:
            return _Known(name, card=card)


# -- one run ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Step:
    """A step under way."""

    span: Span
    context: Context
    worker: str
    started: float
    messages: tuple[Message, ...]
    calls: _Calls | None
    """None once its worker turned out to be the Conductor itself."""
    nested: _Trace | None = None


@dataclass(slots=True)
class _Planning:
    """An attempt to plan under way."""

    span: Span
    calls: _Calls


class _Trace:
    """The spans of one run. Times are seconds on the clock of the outermost run."""

    def __init__(
        self,
        telemetry: Telemetry,
        known: dict[str, _Known],
        context: Context,
        *,
        past: Record | None = None,
        outer: _Trace | None = None,
    ) -> None:
        self.telemetry = telemetry
        self.known = known
        self.id = ""
        self.dollars = Decimal(0)
        self._outer_context = context
        self._past = past
        self._outer = outer
        self._zero_ns: int = outer._zero_ns if outer else 0
        self._last = 0.0
        self._span: Span | None = None
        self._begin_round(0)
        self._answered: tuple[int, int, SpanContext] | None = None
        self._answer = ""

    def _begin_round(self, number: int) -> None:
        self._number = number
        self._plan: Plan | None = None
        self._planning: _Planning | None = None
        self._steps: dict[int, _Step] = {}
        self._spans: dict[int, SpanContext] = {}
        self._skipped: dict[int, tuple[StepResult, float]] = {}

    # -- what others need

    def ns(self, at: float) -> int:
        """The same moment as nanoseconds since 1970."""
        return self._zero_ns + round(at * 1e9)

    def start_span(
        self,
        name: str,
        at: float,
        context: Context,
        attributes: Attributes,
        *,
        links: Sequence[tuple[SpanContext, Attributes]] = (),
        remote: bool = False,
    ) -> Span:
        """Begin a span."""
        from opentelemetry.trace import Link, SpanKind

        return self.telemetry.tracer.start_span(
            name,
            context,
            SpanKind.CLIENT if remote else SpanKind.INTERNAL,
            attributes,
            [Link(*each) for each in links],
            self.ns(at),
        )

    def end_span(
        self, span: Span, at: float, attributes: Attributes, failure: Failure | None = None
    ) -> None:
        """End a span, as failed if there is a failure."""
        if failure is not None:
            from opentelemetry.trace import StatusCode

            attributes["error.type"] = failure.kind.value
            # The words may quote a prompt or a completion.
            told = failure.message if self.telemetry.content else failure.kind.value
            span.set_status(StatusCode.ERROR, told)
        span.set_attributes(attributes)
        span.end(self.ns(at))

    def measure(self, name: str, value: float, attributes: Attributes) -> None:
        """Enter a value."""
        self.telemetry.measures[name](value, attributes)

    def pay(self, worker: str, purpose: str, dollars: Decimal | None) -> None:
        """Enter what a call cost."""
        if dollars:
            self.dollars += dollars
            called = {"conductor.worker": worker, "conductor.purpose": purpose}
            self.measure("conductor.dollars", float(dollars), called)

    # -- events

    def take(self, event: Event, at: float) -> None:
        """Take in the next event, which happened at that time."""
        self._last = at
        match event:
            case StepDelta():
                step = self._steps.get(event.index)
                if step is not None and step.calls is not None:
                    step.calls.heard(at)
            case PlanDelta():
                if self._planning is not None:
                    self._planning.calls.heard(at)
            case NestedEvent():
                self._nested(event.index).take(event.event, at)
            case StepStarted():
                self._start_step(event, at)
            case StepFinished():
                self._finish_step(event.result, at)
            case StepSuspended():
                self._suspend_step(event, at)
            case CallRetried():
                self._retry(event, at)
            case PlanStarted():
                self._start_planning(event, at)
            case PlanAttempted():
                self._finish_planning(event, at)
            case WorkerPicked():
                if self._span is not None:
                    self._span.set_attribute("conductor.router.backbone", event.pick.backbone)
            case PlanParsed():
                self._settle(event)
            case PlanKept():
                if self._span is not None:
                    self._span.set_attribute("conductor.run.kept", True)
            case RoundStarted():
                self._break_open(at, _UNKNOWN)
                self._tell_skipped()
                self._past = None
                self._begin_round(event.round)
            case RunStarted():
                self._start(event, at)
            case RunResumed():
                self._resume(at)
            case RunFinished():
                self._finish(event, at)

    def break_off(self) -> None:
        """End a run that told no end."""
        if self._span is not None:
            told = "the run broke off without an end"
            failure = Failure(FailureKind.INTERNAL, told)
            self._finish(RunFinished(self._last, RunState.FAILED, failure), self._last)

    def forget_calls(self) -> None:
        """Take what is under way out of the count of calls in flight."""
        if self._planning is not None:
            self._planning.calls.leave()
        for step in self._steps.values():
            if step.calls is not None:
                step.calls.leave()
            if step.nested is not None:
                step.nested.forget_calls()

    # -- the run

    def _start(self, event: RunStarted, at: float) -> None:
        if self._outer is None:
            started = datetime.fromisoformat(event.started) - datetime.fromtimestamp(0, UTC)
            self._zero_ns = started // timedelta(microseconds=1) * 1000 - round(at * 1e9)
        attributes: Attributes = {}
        if event.parent:
            attributes["conductor.run.parent"] = event.parent
        if self.telemetry.content:
            asked = [Message("user", event.query)]
            attributes["gen_ai.input.messages"] = _written(asked)
        self._open(event.run, at, attributes)

    def _resume(self, at: float) -> None:
        """Begin a trace of its own for what is left of a run."""
        self.break_off()
        past = self._past
        if self._outer is None and not self.id:
            self._zero_ns = time.time_ns() - round(at * 1e9)
        run = self.id
        if past is not None and past.started is not None:
            run = past.started.run
            self._begin_round(past.number)
            self._plan = past.round.plan
        elif self._outer is not None:
            run = f"{self._outer.id}.{self._outer._number}.{self._outer._index_of(self)}"
        self._open(run, at, {"conductor.run.resumed": True})

    def _index_of(self, nested: _Trace) -> int:
        return next(index for index, step in self._steps.items() if step.nested is nested)

    def _open(self, run: str, at: float, attributes: Attributes) -> None:
        from opentelemetry.trace import set_span_in_context

        self.id, self._started = run, at
        self._outer_headers = trace_headers.get()
        name = self.telemetry.workflow
        self._span = self.start_span(
            f"invoke_workflow {name}",
            at,
            self._outer_context,
            {
                "gen_ai.operation.name": "invoke_workflow",
                "gen_ai.workflow.name": name,
                "conductor.run.id": run,
                **attributes,
            },
        )
        self._context = set_span_in_context(self._span, self._outer_context)

    def _finish(self, event: RunFinished, at: float) -> None:
        failure = None
        if event.state is RunState.FAILED:
            failure = event.failure or Failure(FailureKind.INTERNAL, "no reason is known")
        elif event.state is RunState.CANCELLED:
            failure = event.failure or Failure(FailureKind.CANCELLED, "the caller stopped the run")
        self._break_open(at, failure or _UNKNOWN)
        self._tell_skipped()
        assert self._span is not None
        attributes: Attributes = {
            "conductor.run.state": event.state.value,
            "conductor.run.rounds": self._number + 1,
            "conductor.dollars": float(self.dollars),
        }
        if self.telemetry.content and self._answered is not None:
            said = [Message("assistant", self._answer)]
            attributes["gen_ai.output.messages"] = _written(said)
        self.end_span(self._span, at, attributes, failure)
        self._span = None
        trace_headers.set(self._outer_headers)
        if self._outer is not None:
            self._outer.dollars += self.dollars
            return
        named: Attributes = {"gen_ai.workflow.name": self.telemetry.workflow}
        if failure is not None:
            named["error.type"] = failure.kind.value
        self.measure("gen_ai.workflow.duration", at - self._started, named)
        self.measure("conductor.runs", 1, {"conductor.run.state": event.state.value})

    def _break_open(self, at: float, failure: Failure) -> None:
        """End all that is open."""
        self._break_planning(at, failure)
        for index in list(self._steps):
            self._break_step(index, at, failure)

    # -- planning

    def _break_planning(self, at: float, failure: Failure) -> None:
        planning, self._planning = self._planning, None
        if planning is not None:
            planning.calls.break_off(at, failure)
            self.end_span(planning.span, at, {}, failure)

    def _start_planning(self, event: PlanStarted, at: float) -> None:
        self._break_planning(at, _UNKNOWN)
        from opentelemetry.trace import set_span_in_context

        span = self.start_span(
            f"plan {event.worker}",
            at,
            self._context,
            {
                "gen_ai.operation.name": "plan",
                "gen_ai.agent.name": event.worker,
                "conductor.round": self._number,
                "conductor.plan.attempt": event.attempt,
            },
        )
        context = set_span_in_context(span, self._context)
        self.telemetry.pass_on(context)
        self._planning = _Planning(span, _Calls(self, event.worker, "planning", at, context))

    def _finish_planning(self, event: PlanAttempted, at: float) -> None:
        planning, self._planning = self._planning, None
        attempt = event.attempt
        codes = sorted({each.code for each in attempt.diagnostics})
        for code in codes:
            self.measure("conductor.planning.failures", 1, {"conductor.diagnostic.code": code})
        if planning is None:
            return
        attributes: Attributes = {}
        if attempt.reused:
            attributes["conductor.reused"] = attempt.reused
            planning.calls.leave()
        elif attempt.failure is not None:
            planning.calls.fail(at, attempt.failure, attempt.lost)
        else:
            answer = _Answer(
                attempt.worker, attempt.usage, dollars=attempt.dollars, text=attempt.text
            )
            planning.calls.answer(at, answer, attempt.lost)
        failure = attempt.failure
        if codes:
            attributes["conductor.plan.diagnostics"] = codes
            failure = Failure(FailureKind.NO_PLAN, attempt.diagnostics[0].message)
        self.end_span(planning.span, at, attributes, failure)

    def _settle(self, event: PlanParsed) -> None:
        self._plan = event.plan
        source = {"conductor.plan.source": event.source.value}
        self.measure("conductor.plan.steps", len(event.plan), source)
        if self._span is not None:
            self._span.set_attributes({**source, "conductor.plan.steps": len(event.plan)})

    # -- steps

    def _break_step(self, index: int, at: float, failure: Failure) -> None:
        step = self._steps.get(index)
        if step is None:
            return
        if step.nested is not None:
            step.nested.break_off()
        if step.calls is not None:
            step.calls.break_off(at, failure)
            step.calls = None
        self._finish_step(StepResult(index, step.worker, StepState.FAILED, failure=failure), at)

    def _start_step(self, event: StepStarted, at: float) -> None:
        self._break_step(event.index, at, _UNKNOWN)
        step = self._open_step(event.index, event.worker, at, event.messages)
        self.telemetry.pass_on(step.context)
        step.calls = _Calls(self, event.worker, "step", at, step.context)

    def _open_step(
        self, index: int, worker: str, at: float, messages: tuple[Message, ...] = ()
    ) -> _Step:
        from opentelemetry.trace import set_span_in_context

        known = self.known_of(worker)
        attributes: Attributes = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": worker,
            "conductor.round": self._number,
            "conductor.step.index": index,
        }
        if known.card:
            attributes["gen_ai.agent.description"] = known.card
        if known.model:
            attributes["gen_ai.request.model"] = known.model
        links = []
        if self._plan is not None:
            planned = self._plan.steps[index]
            attributes["conductor.step.access"] = planned.access
            if self.telemetry.content:
                attributes["conductor.step.subtask"] = planned.subtask
            links = [
                (self._spans[read], {"conductor.round": self._number, "conductor.step.index": read})
                for read in planned.access
                if read in self._spans
            ]
            # As the messages of a step are built: see runtime.context.
            if self._answered is not None and len(planned.access) == index:
                number, final, read_context = self._answered
                if number < self._number:
                    place = {"conductor.round": number, "conductor.step.index": final}
                    links.insert(0, (read_context, place))
        span = self.start_span(f"invoke_agent {worker}", at, self._context, attributes, links=links)
        self._spans[index] = span.get_span_context()
        context = set_span_in_context(span, self._context)
        step = self._steps[index] = _Step(span, context, worker, at, messages, None)
        return step

    def _finish_step(self, result: StepResult, at: float) -> None:
        told = {"conductor.step.state": result.state.value, "conductor.worker": result.worker}
        if result.state is StepState.SKIPPED:
            # Told at the end of the round, when all steps that it would have read have a span.
            self._skipped[result.index] = result, at
            self.measure("conductor.steps", 1, told)
            return
        taken_over = result.index not in self._steps
        if taken_over:
            self._open_step(result.index, result.worker, at)
        step = self._steps.pop(result.index)
        attributes: Attributes = {
            "conductor.step.state": result.state.value,
            "conductor.step.worker": result.worker,
        }
        if result.reused:
            attributes["conductor.reused"] = result.reused
        if step.calls is not None:
            if result.reused:
                step.calls.leave()
            elif result.failure is not None:
                step.calls.fail(at, result.failure, result.lost, step.messages, result.text)
            else:
                step.calls.answer(at, _Answer.of(result), result.lost, step.messages)
        self.end_span(step.span, at, attributes, result.failure)
        self.measure("conductor.steps", 1, told)
        if not taken_over:
            measured: Attributes = {"gen_ai.agent.name": step.worker}
            if model := self.known_of(step.worker).model:
                measured["gen_ai.request.model"] = model
            if result.failure is not None:
                measured["error.type"] = result.failure.kind.value
            self.measure("gen_ai.invoke_agent.duration", at - step.started, measured)
        if result.state is StepState.DONE and self._plan and result.index == len(self._plan) - 1:
            self._answered = self._number, result.index, self._spans[result.index]
            self._answer = result.text

    def _suspend_step(self, event: StepSuspended, at: float) -> None:
        """End the span of a step that asks for tools; it has another one when it goes on."""
        step = self._steps.pop(event.index, None)
        if step is None:
            return
        attributes: Attributes = {"conductor.step.state": StepState.SUSPENDED.value}
        turn = event.turn
        if turn is not None:
            attributes["conductor.step.worker"] = turn.worker
            attributes["conductor.step.tools"] = [call.name for call in turn.calls]
            if turn.reused:
                attributes["conductor.reused"] = turn.reused
        if step.calls is not None:
            if turn is None or turn.reused:
                step.calls.leave()
            else:
                step.calls.answer(at, _Answer.asking(turn), turn.lost, step.messages)
        self.end_span(step.span, at, attributes)
        told: Attributes = {"conductor.worker": step.worker if turn is None else turn.worker}
        self.measure("conductor.steps", 1, {"conductor.step.state": "suspended", **told})

    def _tell_skipped(self) -> None:
        """Give the steps that never started a span without length, so that the tree is whole."""
        for index in sorted(self._skipped):
            result, at = self._skipped[index]
            step = self._open_step(index, result.worker, at)
            del self._steps[index]
            attributes: Attributes = {
                "conductor.step.state": result.state.value,
                "conductor.step.worker": result.worker,
            }
            if result.because_of is not None:
                attributes["conductor.step.because_of"] = result.because_of
            if result.failure is not None:
                attributes["error.type"] = result.failure.kind.value
            self.end_span(step.span, at, attributes)
        self._skipped.clear()

    def _nested(self, index: int) -> _Trace:
        step = self._steps[index]
        if step.nested is None:
            if step.calls is not None:  # nobody was called
                step.calls.leave()
                step.calls = None
            past = self._past.nested(index) if self._past is not None else None
            step.nested = _Trace(self.telemetry, self.known, step.context, past=past, outer=self)
        return step.nested

    def _retry(self, event: CallRetried, at: float) -> None:
        if event.index is None:
            calls = self._planning.calls if self._planning is not None else None
        else:
            step = self._steps.get(event.index)
            calls = step.calls if step is not None else None
        if calls is not None:
            calls.retry(event, at)

    def known_of(self, worker: str) -> _Known:
        known = self.known.get(worker)
        if known is None:
            known = self.known[worker] = _Known(worker)
        return known


_UNKNOWN = Failure(FailureKind.INTERNAL, "it was left open")


# -- the calls of a step or of an attempt to plan -----------------------------------------------


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a call came to."""

    worker: str
    usage: Usage | None
    model: str = ""
    finish_reason: FinishReason | None = None
    dollars: Decimal | None = None
    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()

    @classmethod
    def of(cls, result: StepResult) -> _Answer:
        reason = result.finish_reason
        return cls(result.worker, result.usage, result.model, reason, result.dollars, result.text)

    @classmethod
    def asking(cls, turn: ToolTurn) -> _Answer:
        """An answer that asks for tools."""
        reason = FinishReason.TOOL_CALLS
        return cls(turn.worker, turn.usage, turn.model, reason, turn.dollars, turn.text, turn.calls)


_REFUSED = (FailureKind.TRIPPED, FailureKind.RATE_LIMITED)
"""How an attempt of no length ends that was none: the worker was left alone, and not called."""


class _Calls:
    """First the worker itself, then who stands in for it; a span for each that was called.

    A span is made when it ends, since only then is it known who was called and whether at all: a
    completion may come from a cache, and a worker may refuse before any call.
    """

    def __init__(
        self, trace: _Trace, worker: str, purpose: str, at: float, context: Context
    ) -> None:
        self._trace = trace
        self._purpose = purpose
        self._context = context
        self._told = 0
        self._begin(worker, at)

    def _begin(self, worker: str, at: float) -> None:
        self._worker = worker
        self._known = self._trace.known_of(worker)
        self._started = self._tried = at
        self._first: float | None = None
        self._last = at
        self._pieces = 0
        self._lost: list[Attempt] = []
        self._retries: list[tuple[float, Attributes]] = []
        self._count(1)

    def _count(self, change: int) -> None:
        self._trace.measure("conductor.calls.in_flight", change, {"conductor.worker": self._worker})

    def heard(self, at: float) -> None:
        """Note a piece of text."""
        if self._first is None:
            self._first = at
        else:
            name = "gen_ai.client.operation.time_per_output_chunk"
            self._trace.measure(name, at - self._last, self._known.called)
        self._last = at
        self._pieces += 1

    def retry(self, event: CallRetried, at: float) -> None:
        """Note a call that came to nothing, and who is called next."""
        attempt = event.attempt
        self._rename(attempt.worker)
        self._lose(attempt)
        kind = attempt.failure.kind.value
        if event.worker == attempt.worker:
            told: Attributes = {
                "error.type": kind,
                "conductor.retry.number": len(self._retries) + 1,
                "conductor.retry.wait_s": event.wait_s,
            }
            if self._trace.telemetry.content:
                told["conductor.failure.message"] = attempt.failure.message
            self._retries.append((at, told))
            self._first, self._pieces = None, 0
            self._tried = at + event.wait_s
            measured = {"conductor.worker": attempt.worker, "error.type": kind}
            self._trace.measure("conductor.retries", 1, measured)
            return
        self._end(at, attempt.failure)
        measured = {
            "conductor.worker": attempt.worker,
            "conductor.fallback": event.worker,
            "error.type": kind,
        }
        self._trace.measure("conductor.fallbacks", 1, measured)
        self._begin(event.worker, at)

    def answer(
        self,
        at: float,
        answer: _Answer,
        lost: Sequence[Attempt],
        messages: tuple[Message, ...] = (),
    ) -> None:
        """End with a completion."""
        self._rename(answer.worker)
        self._lose(*lost[self._told :])
        self._end(at, None, answer, messages)

    def fail(
        self,
        at: float,
        failure: Failure,
        lost: Sequence[Attempt],
        messages: tuple[Message, ...] = (),
        text: str = "",
    ) -> None:
        """End without one."""
        rest = lost[self._told :]
        if rest:
            self._rename(rest[-1].worker)
            # Of several workers the step tells all words; these are the last one's.
            failure = rest[-1].failure
        self._lose(*rest)
        self._end(at, failure, _Answer(self._worker, None, text=text), messages)

    def break_off(self, at: float, failure: Failure) -> None:
        """End in the middle of a call."""
        self._end(at, failure, called=True)

    def leave(self) -> None:
        """End without a span: nothing was called."""
        self._count(-1)

    def _rename(self, worker: str) -> None:
        """Follow a worker that was passed over without a word."""
        if worker != self._worker:
            self._count(-1)
            self._begin(worker, self._started)

    def _lose(self, *attempts: Attempt) -> None:
        for attempt in attempts:
            if attempt.seconds or attempt.failure.kind not in _REFUSED:
                self._told += 1
                self._lost.append(attempt)
                self._trace.pay(attempt.worker, self._purpose, attempt.dollars)

    def _end(
        self,
        at: float,
        failure: Failure | None,
        answer: _Answer | None = None,
        messages: tuple[Message, ...] = (),
        *,
        called: bool = False,
    ) -> None:
        trace, known = self._trace, self._known
        self._count(-1)
        if failure is not None and not called and not self._lost:
            return  # refused before any call
        attributes: Attributes = {**known.called, **self._told_of(answer, messages)}
        if known.streams or self._pieces > 1:
            attributes["gen_ai.request.stream"] = True
            if self._first is not None:
                waited = self._first - self._tried
                attributes["gen_ai.response.time_to_first_chunk"] = waited
                name = "gen_ai.client.operation.time_to_first_chunk"
                trace.measure(name, waited, known.called)
        span = trace.start_span(
            f"chat {known.model or known.name}",
            self._started,
            self._context,
            attributes,
            remote=bool(known.address),
        )
        for when, told in self._retries:
            span.add_event("conductor.retry", told, trace.ns(when))
        trace.end_span(span, at, {}, failure)
        measured = known.called
        if failure is not None:
            measured = {**measured, "error.type": failure.kind.value}
        trace.measure("gen_ai.client.operation.duration", at - self._started, measured)

    def _told_of(self, answer: _Answer | None, messages: tuple[Message, ...]) -> Attributes:
        """What was answered, counted and paid by this worker, lost calls included."""
        told: Attributes = {"conductor.worker": self._worker}
        usages = [each.usage for each in self._lost]
        prices = [each.dollars for each in self._lost]
        if answer is not None:
            usages.append(answer.usage)
            prices.append(answer.dollars)
            self._trace.pay(self._worker, self._purpose, answer.dollars)
            if answer.model:
                told["gen_ai.response.model"] = answer.model
            if answer.finish_reason is not None:
                told["gen_ai.response.finish_reasons"] = [answer.finish_reason.value]
        counted = [each for each in usages if each is not None]
        if counted:
            usage = sum(counted, Usage())
            told["gen_ai.usage.input_tokens"] = usage.input_tokens
            told["gen_ai.usage.output_tokens"] = usage.output_tokens
            told["gen_ai.usage.cache_read.input_tokens"] = usage.cached_tokens
            for kind, tokens in (("input", usage.input_tokens), ("output", usage.output_tokens)):
                measured = {**self._known.called, "gen_ai.token.type": kind}
                self._trace.measure("gen_ai.client.token.usage", tokens, measured)
        paid = [each for each in prices if each is not None]
        if paid:
            told["conductor.dollars"] = float(sum(paid, Decimal(0)))
        if self._trace.telemetry.content:
            if messages:
                told["gen_ai.input.messages"] = _written(messages)
            if answer is not None and (answer.text or answer.tool_calls):
                said = [Message("assistant", answer.text, answer.tool_calls)]
                told["gen_ai.output.messages"] = _written(said, answer.finish_reason)
        return told


def _written(messages: Iterable[Message], finish_reason: FinishReason | None = None) -> str:
    """Messages in the JSON of the conventions; system messages stand among the others there."""
    shown: list[dict[str, Any]] = [
        {"role": each.role, "parts": list(_parts(each))} for each in messages
    ]
    if finish_reason is not None:
        shown[-1]["finish_reason"] = finish_reason.value
    return json.dumps(shown, ensure_ascii=False)


def _parts(message: Message) -> Iterator[dict[str, Any]]:
    if message.role == "tool":
        yield {
            "type": "tool_call_response",
            "id": message.tool_call_id,
            "response": message.content,
        }
        return
    if message.content or not message.tool_calls:
        yield {"type": "text", "content": message.content}
    for call in message.tool_calls:
        told = {"id": call.id, "name": call.name, "arguments": call.arguments}
        yield {"type": "tool_call", **told}
