"""What a decision of the router costs, in forward passes of its backbone.

    python -m tests.benchmarks.router_cost

The packaged model reads questions of the task families, and once a long one. In one process and by
turns, so that a busy machine slows all of them alike, in seconds of CPU:

* pass: the backbone without LM head over the same prompt, template and all;
* decision: ``Router.route``, from the text to the Pick; cold, when nothing is kept of an earlier
  reading, and warm, when the template's beginning is;
* one token: the prompt read and a single token generated, by transformers (warm) and by
  ctranslate2, the default for plain text;
* embedding: the question alone, mean of its final states, cosine to a centroid of each worker;
* in batches of 32, per question.

A Markdown table: medians, and the ratio to a pass (or, batched, to a batched pass).
"""
# ruff: noqa: T201

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import anyio
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conductor import Encoder, Head, Router
from conductor.prompt import router_messages
from runtime import Call, LocalModel, Sampling, fetch, reading_ids
from training.families import FAMILIES
from training.tasks import draw

ROUNDS, BATCH = 15, 32
WORKERS = ("plain", "calculator", "speller", "sorter", "logician")
LONG = [
    f"{what} this: " + "The committee met on Tuesday and agreed on very little. " * 25
    for what in ("Summarise", "Translate", "Continue", "Criticise", "Explain")
]


def questions(count: int) -> list[str]:
    """Questions of all families in turn."""
    names = sorted(FAMILIES)
    each = -(-count // len(names))
    drawn = [[task.question for task in draw(name, each, seed=7)] for name in names]
    return [question for group in zip(*drawn, strict=True) for question in group][:count]


class Bench:
    """The backbone twice: inside the product, and bare for comparison."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.model = LocalModel("smollm2-135m-instruct")
        exact = LocalModel(self.model.name, engine="transformers")
        dice = np.random.default_rng(0)
        head = Head(dice.normal(size=(5, 576)).astype(np.float32), WORKERS)
        self.router = Router(head, Encoder(self.model))
        self.other = Router(head, Encoder(self.model, system="Think of nothing in particular now."))
        self.answering = {"transformers": exact, "ctranslate2": self.model}
        folder = fetch(self.model.name)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.bare = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).base_model
        self.centroids = dice.normal(size=(5, 576))

    @torch.inference_mode()
    def forward(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """One pass of the body over whole prompts, padded on the left."""
        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, -len(prompt) :] = torch.tensor(prompt)
            mask[row, -len(prompt) :] = 1
        if len(prompts) == 1:
            states: torch.Tensor = self.bare(ids, use_cache=False).last_hidden_state
        else:
            states = self.bare(ids, attention_mask=mask, use_cache=False).last_hidden_state
        return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def prompt(self, query: str) -> list[int]:
        """What the router reads of a query."""
        return reading_ids(self.tokenizer, router_messages(query))

    def embed(self, queries: Sequence[str]) -> np.ndarray:
        """Whom the nearest centroid would pick."""
        vectors = self.forward([self.tokenizer(each)["input_ids"] for each in queries]).numpy()
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        near = vectors / norms @ self.centroids.T / np.linalg.norm(self.centroids, axis=1)
        return np.asarray(near.argmax(axis=1))

    def one_token(self, which: str, query: str) -> None:
        """Read the prompt and generate one token."""
        call = Call(router_messages(query, lead=""), Sampling(temperature=0, max_tokens=1))
        anyio.run(self.answering[which].complete, call)


def cpu(act: Callable[[], object]) -> float:
    """Seconds of CPU of all threads."""
    began = time.process_time()
    act()
    return time.process_time() - began


def single(bench: Bench, queries: Sequence[str]) -> dict[str, float]:
    """Medians of one decision at a time."""
    took: dict[str, list[float]] = {}

    def measure(name: str, act: Callable[[], object]) -> None:
        took.setdefault(name, []).append(cpu(act))

    for at, query in enumerate(queries):
        measure("pass over the same tokens", lambda q=query: bench.forward([bench.prompt(q)]))
        bench.other.route(query)  # the router's beginning is no longer kept
        measure("decision, cold", lambda q=query: bench.router.route(q))
        next_one = queries[(at + 1) % len(queries)]
        measure("decision, warm", lambda q=next_one: bench.router.route(q))
        measure("embedding and centroids", lambda q=query: bench.embed([q]))
        for which in bench.answering:
            measure(f"one token, {which}", lambda q=query, w=which: bench.one_token(w, q))
    return {name: statistics.median(seconds) for name, seconds in took.items()}


def batched(bench: Bench, queries: Sequence[str]) -> dict[str, float]:
    """Medians per question of a batch."""
    took: dict[str, list[float]] = {}
    for _ in range(3):
        for name, act in {
            "pass over the same tokens": lambda: bench.forward([*map(bench.prompt, queries)]),
            "states": lambda: bench.router.encoder.states(queries),
            "embedding and centroids": lambda: bench.embed(queries),
        }.items():
            took.setdefault(name, []).append(cpu(act) / len(queries))
    return {name: statistics.median(seconds) for name, seconds in took.items()}


def tell(title: str, found: dict[str, float]) -> None:
    """A part of the table."""
    unit = found["pass over the same tokens"]
    for name, seconds in found.items():
        print(f"| {title} | {name} | {seconds * 1000:.0f} | {seconds / unit:.2f} |")


def main() -> None:
    """Warm up, measure, print."""
    bench = Bench()
    short = questions(max(ROUNDS, BATCH))
    single(bench, short[:2])
    tokens = statistics.median(len(bench.prompt(each)) for each in short)
    own = statistics.median(len(bench.prompt(each)) for each in short) - len(bench.prompt("x"))
    print(f"{tokens:.0f} tokens (median), of which about {own:.0f} are the question's own\n")
    print("| | | CPU ms | passes |\n|---|---|---:|---:|")
    tell("one question", single(bench, short[:ROUNDS]))
    tell(f"{len(bench.prompt(LONG[0]))} tokens", single(bench, LONG))
    tell(f"of {BATCH}", batched(bench, short[:BATCH]))


if __name__ == "__main__":
    main()
