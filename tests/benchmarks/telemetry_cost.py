"""What telemetry costs a run: CPU time per step and per piece of text, with exporters in memory.

    python -m tests.benchmarks.telemetry_cost
    python -m tests.benchmarks.telemetry_cost --steps 500 --repeats 15

Workers answer at once, so that nothing but the work of the engine and of telemetry is measured.
"without a provider" is what stays where nobody set OpenTelemetry up: our own part, with the
Prometheus text. Figures are medians of rounds in which each is measured once.
"""
# ruff: noqa: T201

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Sequence

import anyio
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler

from conductor import Telemetry
from grammar import Plan, chain
from runtime import Call, Completion, FunctionWorker, Message, OnText, Pool, run_plan

PIECES = 200


class Typist(FunctionWorker):
    """Writes its completion piece by piece."""

    async def complete(self, call: Call, on_text: OnText = lambda text: None) -> Completion:
        for _ in range(PIECES):
            on_text("word ")
        return Completion("word " * PIECES)


async def answer(messages: Sequence[Message]) -> str:
    return "said"


def sdk(sampler: Sampler) -> tuple[Telemetry, InMemorySpanExporter]:
    """A Telemetry with the SDK's own providers, and where its spans go."""
    spans = InMemorySpanExporter()
    tracers = TracerProvider(sampler, shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    meters = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    return Telemetry(tracers, meters), spans


def cost(plan: Plan, pool: Pool, telemetry: Telemetry | None) -> float:
    """CPU time of one run, in microseconds per step."""

    async def run() -> float:
        async with pool:
            begun = time.process_time()
            if telemetry is None:
                await run_plan(plan, "q", pool)
            else:
                follower = telemetry.follow(workers=pool)
                await run_plan(plan, "q", pool, emit=follower)
                follower.close()
            return time.process_time() - begun

    gc.collect()
    return anyio.run(run) / len(plan) * 1e6


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--steps", type=int, default=200)
    options.add_argument("--repeats", type=int, default=9)
    asked = options.parse_args()
    pool = Pool([FunctionWorker("plain", answer), Typist("typist", answer)])
    full, kept = sdk(ALWAYS_ON)
    unsampled, _ = sdk(ALWAYS_OFF)
    ways = {
        "no telemetry": None,
        "without a provider": Telemetry(),
        "spans not sampled": unsampled,
        "spans and metrics": full,
    }
    shapes = {
        "plain": chain(["x"] * asked.steps, ["plain"]),
        "typist": chain(["x"] * max(1, asked.steps // 10), ["typist"]),
    }
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(asked.repeats + 1):
        for shape, plan in shapes.items():
            for way, telemetry in ways.items():
                kept.clear()
                found.setdefault((shape, way), []).append(cost(plan, pool, telemetry))
    medians = {key: statistics.median(values[1:]) for key, values in found.items()}
    print(f"{'CPU time, µs':22}{'per step':>10}{'more':>8}{'per piece of text':>20}")
    for way in ways:
        step, base = medians["plain", way], medians["plain", "no telemetry"]
        piece = (medians["typist", way] - step) / PIECES
        print(f"{way:22}{step:10.0f}{step - base:8.0f}{piece:20.2f}")


if __name__ == "__main__":
    main()
