"""Ten plans on the embedded models, killed five times: the same answers, no finished call again.

    python -m tests.crash.real --kills 5 --seed 0

A child process carries ten plans out on the packaged model (greedy, short replies) with a journal,
and is killed with SIGKILL at seeded moments; the next one goes on. Then the same plans once more,
undisturbed, to compare the answers. Takes some minutes. Exits with 1 if a promise was broken.
"""
# ruff: noqa: T201

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio

from conductor import Conductor
from grammar import Plan, best_of_n, chain, diamond
from runtime import (
    Emit,
    Event,
    Journal,
    LocalModel,
    LocalWorker,
    Pool,
    Record,
    RunState,
    Sampling,
    StepFinished,
    StepState,
)

ROOT = Path(__file__).parents[2]
TEAM = ("one", "two", "three")
ASKED = (
    "Is it safe to drink tea every day?",
    "Why is the sky blue?",
    "What is a prime number?",
    "How do bees make honey?",
    "Why do cats purr?",
)
PLANS: dict[str, Plan] = {
    **{
        query: chain(["Name the main points.", "Explain them.", "Answer in a sentence."], TEAM)
        for query in ASKED
    },
    "What is rain?": best_of_n(TEAM[:2], "three"),
    "What is a river?": diamond(
        ("one", "Collect facts."),
        [("two", "Say where it begins."), ("three", "Say where it ends.")],
        ("one", "Sum up."),
    ),
    "Who was Isaac Newton?": chain(["Say who he was.", "Shorten it."], TEAM),
    "What is bread made of?": chain(["List the parts.", "Say it in one sentence."], TEAM),
    "What is a planet?": chain(["Describe one.", "Define the word.", "Decide."], TEAM),
}


def team(journal: Journal) -> Conductor:
    """Three workers on the packaged model, greedy, so that equal prompts have equal replies."""
    model = LocalModel("smollm2-135m-instruct")
    short = Sampling(temperature=0.0, max_tokens=24)
    workers = [LocalWorker(name, model, sampling=short) for name in TEAM]
    return Conductor(Pool(workers), journal=journal)


class Witnessed(Journal):
    """Writes each call that ends to a file before it is kept, and dies after so many, if not 0."""

    def __init__(self, path: Path, made: Path, die_after: int) -> None:
        super().__init__(path)
        self._made = made
        self._left = die_after

    def before(self, emit: Emit) -> Emit:
        """As every journal, with the witness."""
        return self._around(super().before(emit))

    @contextmanager
    def resumed(
        self, run: str, emit: Emit, *, force: bool = False
    ) -> Iterator[tuple[Record, Emit]]:
        """As every journal, with the witness."""
        with super().resumed(run, emit, force=force) as (record, writer):
            yield record, self._around(writer)

    def _around(self, writer: Emit) -> Emit:
        def emit(event: Event) -> None:
            if not (isinstance(event, StepFinished) and event.result.state is StepState.DONE):
                writer(event)
                return
            with self._made.open("a", encoding="utf-8") as file:
                file.write(f"{event.result.worker} {event.result.messages!r}\n")
            writer(event)
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        return emit


async def play(path: Path, made: Path, die_after: int) -> None:
    """Carry out what has not ended."""
    journal = Witnessed(path, made, die_after)
    conductor = team(journal)
    known = {each.query: each for each in journal.runs()}
    async with conductor:
        for query, plan in PLANS.items():
            run = known.get(query)
            if run is None:
                await conductor.arun(query, plan=plan)
            elif run.state is RunState.RUNNING:
                await conductor.aresume(run.id)


def child(path: Path, made: Path, die_after: int = 0) -> subprocess.Popen[bytes]:
    """Start a process that plays."""
    command = [sys.executable, "-m", "tests.crash.real", "--child", str(path), str(made)]
    return subprocess.Popen([*command, str(die_after)], cwd=ROOT)


def answers(path: Path) -> dict[str, str | None]:
    """By query."""
    with Journal(path) as journal:
        assert journal.check() == []
        return {each.query: each.answer for each in journal.runs()}


def main() -> None:
    """Kill, go on, compare."""
    if sys.argv[1:2] == ["--child"]:
        anyio.run(play, Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    dice, began = random.Random(given.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path, made = Path(folder, "killed.db"), Path(folder, "made")
        made.touch()
        killed = 0
        while True:
            # Two of three die right after a call has ended, the others in the middle of one.
            after = dice.randint(1, 6) if killed < given.kills else 0
            middle = after and killed % 3 == 2
            process = child(path, made, 0 if middle else after)
            if middle:
                seen = made.read_text().count("\n")
                while process.poll() is None and made.read_text().count("\n") < seen + after:
                    time.sleep(0.05)
                time.sleep(dice.uniform(0.05, 0.4))
                process.kill()
            code = process.wait()
            killed += code == -signal.SIGKILL
            print(
                f"{'killed' if code else 'ended'} after {time.monotonic() - began:.0f} s",
                flush=True,
            )
            if code != -signal.SIGKILL:
                break
        calls = Counter(made.read_text().splitlines())
        whole, once = Path(folder, "whole.db"), Path(folder, "once")
        undisturbed = child(whole, once).wait()
        same = answers(path) == answers(whole)
        again = [call for call, times in calls.items() if times > 1]
        expected = Counter(once.read_text().splitlines())
        answered = sum(answer is not None for answer in answers(path).values())
    print(f"{killed} kills (seed {given.seed}), {len(PLANS)} plans, {answered} answered")
    print(f"{calls.total()} calls ended, {expected.total()} undisturbed; {len(again)} made twice")
    print(f"answers {'the same' if same else 'DIFFER'}; {time.monotonic() - began:.0f} s")
    if code or undisturbed or again or not same or calls != expected or answered < len(PLANS):
        sys.exit(1)


if __name__ == "__main__":
    main()
