"""Half an hour of `conductor serve` over models that fail: does it grow, does it lose anything?

    python -m tests.benchmarks.soak [--minutes 30] [--rate 20] [--faults 0.05]

The server is a process of its own, as a user starts it, with a journal. Its models are the fault
server's, in another process: one call in twenty fails, in one of all the ways that it knows. The
load is a mix of whole and streamed answers, one worker and plans, both APIs, tools, tries with one
idempotency key, wrong requests, and clients who hang up at every stage; half of the requests come
on connections of their own. The rate is half of the capacity, which is measured first: requests
that one core can take, from the server's CPU time, so that other work on the machine does not
count. Where the machine gives the server less than that, the load gives way, since overload is
another question: never more than a hundred requests wait for an answer.

A line a minute; at the end a verdict, and exit code 1 if a promise was broken.
"""
# ruff: noqa: T201

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import anyio

from tests.faults import server as play
from tests.faults.server import DONE, End, Exchange, Play, faults, serving, sse

ROOT = Path(__file__).parents[2]
TICK = os.sysconf("SC_CLK_TCK")
TEXT = "Grüße aus dem Fuchsbau 🦊: Tee am Morgen, ja, und 日本 auch."
"""What every good answer says."""
PLAN = (
    'subtasks = ["Name the good sides.", "Name the bad sides.", "Decide."]\n'
    'workers = ["pro", "con", "judge"]\naccess = [[], [], [0, 1]]\n'
)
PACE_S = 0.02
"""Between two pieces of a good answer."""
HEAVY = 0.1
"""Weight of a fault that takes a CPU for long, against the others: 50 MiB, floods."""
SAMPLE_S = 5.0
MOST_OPEN = 100
CLIENT_S = 120
"""Patience of a client."""

# What is held against the server.
SLOPE_MIB = 1.0
"""Most growth of resident memory in 10 minutes after the warm-up: what is kept for ten minutes
(replies to idempotency keys) or bounded (caches) has its size by then."""
FDS = 2
"""Most file descriptors more than before, when all is quiet."""
QUIET_S = 35
"""Until all is quiet: connections to models are kept for 15 s, and looked after every 15 s."""
TASKS = 2
"""Most asyncio tasks more than before, 5 s after the load: the one that answers the question, and
one that just ends."""
JOURNAL = 1.25
"""Most growth of the journal per run, last third over first: a run takes what it takes."""
STATUSES = frozenset({200, 400, 404, 422, 429, 502, 503, 504})
"""What the documentation allows; 500 is a bug."""


# --- the models, a process of their own --------------------------------------------------------


async def _paced(exchange: Exchange) -> None:
    """A good reply, at the pace of a model that is in no hurry."""
    await exchange.head()
    for part in exchange.reply():
        await anyio.sleep(PACE_S)
        await exchange.part(part)
    exchange.told_usage()
    await exchange.end()


async def _calling(exchange: Exchange) -> None:
    """Ask for a tool; with its result, answer."""
    if exchange.entry.body["messages"][-1]["role"] == "tool":
        await _paced(exchange)
        return
    function = {"name": "look", "arguments": "{}"}
    call = {"index": 0, "id": "call_1", "type": "function", "function": function}
    await exchange.head()
    for delta, finish in (({"tool_calls": [call]}, None), ({}, "tool_calls")):
        await exchange.part(
            sse({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})
        )
    await exchange.part(DONE)
    await exchange.end()


def _at_times(good: Play, share: float, seed: int) -> Play:
    """Fail a share of the requests, in one of all ways."""
    bad = [each for each in faults(pause_s=0.1) if each.play is not None and each.outcomes]
    weights = [HEAVY if each.heavy else 1.0 for each in bad]
    plays = [each.play for each in bad if each.play is not None]
    chance = random.Random(seed)

    async def act(exchange: Exchange) -> None:
        fails = chance.random() < share
        await (chance.choices(plays, weights)[0] if fails else good)(exchange)

    return act


async def _models(share: float) -> None:
    """Serve, tell the addresses, and stop when standard input is closed."""
    with ExitStack() as stack:
        refused, deaf = stack.enter_context(play.refusing()), stack.enter_context(play.deaf())
        async with serving() as server:
            ended: Counter[str] = Counter()

            async def forget() -> None:
                """The books would grow for ever."""
                entries = server.ledger.entries
                while True:
                    await anyio.sleep(1)
                    ended.update(each.end.value for each in entries if each.end is not End.OPEN)
                    entries[:] = [each for each in entries if each.end is End.OPEN]

            for seed, name in enumerate(("plain", "pro", "con", "judge")):
                server.script(name, _at_times(_paced, share, seed), text=TEXT)
            server.script("scribe", _at_times(_paced, share, 10), text=PLAN)
            server.script("tooler", _at_times(_calling, share, 11), text=TEXT)
            print(json.dumps({"url": server.url, "refused": refused, "deaf": deaf}), flush=True)
            async with anyio.create_task_group() as group:
                group.start_soon(forget)
                await anyio.to_thread.run_sync(sys.stdin.read)
                group.cancel_scope.cancel()
        print(json.dumps(ended), flush=True)


def _pool(urls: dict[str, str]) -> str:
    """The pool file: some workers are tried again and stood in for, others fail openly."""
    limits = "first_text_s = 4\nsilence_s = 3\ncall_s = 10\nconnect_s = 2.0"
    twice = "retries = 1\nretry_base_s = 0.05"
    kinds = {
        "plain": "retries = 0\ntrip_after = 1000",
        "pro": f'{twice}\nfallback = ["con", "judge"]',
        "con": f'{twice}\nfallback = ["pro", "judge"]',
        "judge": f'{twice}\nfallback = ["pro", "con"]',
        "scribe": twice,
        "tooler": "retries = 0\ntrip_after = 1000",
        "refused": "retries = 0\ntrip_after = 1000",
        "deaf": "retries = 0\ntrip_after = 1000",
        "nowhere": "retries = 0\ntrip_after = 1000",
    }
    urls = {**urls, "nowhere": "http://nowhere.invalid/v1"}
    tables = [
        f'[workers.{name}]\nkind = "openai"\nurl = "{urls.get(name, urls["url"])}"\n'
        f'model = "{name}"\nprice = {{ input = 1, output = 4 }}\n{limits}\n{terms}\n'
        for name, terms in kinds.items()
    ]
    return "\n".join(['[planner]\nworker = "scribe"\n', *tables])


# --- the processes -----------------------------------------------------------------------------


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def _memory_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def _fds(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@contextmanager
def _upstream(share: float) -> Iterator[tuple[dict[str, str], subprocess.Popen[str]]]:
    call = [sys.executable, "-m", "tests.benchmarks.soak", "--models", str(share)]
    with subprocess.Popen(
        call, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield json.loads(process.stdout.readline()), process
        finally:
            process.stdin.close()
            told = process.stdout.readline()
            process.wait(timeout=30)
    print("calls of models by their end: " + told.strip())


@contextmanager
def _server(folder: Path, python: Sequence[str]) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`conductor serve`, as a user starts it; what it says goes to a file."""
    call = [sys.executable, "-W", "always::ResourceWarning", *python, "-m", "conductor", "serve"]
    said = folder / "stderr"
    with said.open("wb") as out:
        process = subprocess.Popen(
            [*call, "--port", "0", "--pool", "pool.toml", "--journal", "journal.db"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder)},
            stderr=out,
        )
    try:
        for _ in range(600):
            found = re.search(r"http://\S+:\d+", said.read_text())
            if found or process.poll() is not None:
                break
            time.sleep(0.1)
        assert found, said.read_text()
        yield found[0], process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


# --- the load ----------------------------------------------------------------------------------


@dataclass
class Books:
    """What came of the requests."""

    outcomes: Counter[str] = field(default_factory=Counter)
    took: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Seconds, by kind; of good answers."""
    wrong: Counter[str] = field(default_factory=Counter)
    """Promises that were broken."""

    def add(self, other: Books) -> None:
        """Put those of a minute into those of all."""
        self.outcomes += other.outcomes
        self.wrong += other.wrong
        for kind, each in other.took.items():
            self.took[kind] += each

    @property
    def requests(self) -> int:
        """How many there were."""
        return sum(self.outcomes.values())


class Load:
    """Clients of all kinds.

    Args:
        base: Address of the server.
        seed: Of what is asked when.
        share: Of requests that go to models which cannot be reached at all.
    """

    def __init__(self, base: str, seed: int, share: float) -> None:
        self.books = Books()
        self._base = base
        self._chance = random.Random(seed)
        self._asked = 0
        self._runs: list[str] = []
        patience = aiohttp.ClientTimeout(total=CLIENT_S)
        again = aiohttp.TCPConnector(limit=0)
        self._kept = aiohttp.ClientSession(connector=again, timeout=patience)
        once = aiohttp.TCPConnector(limit=0, force_close=True)
        self._fresh = aiohttp.ClientSession(connector=once, timeout=patience)
        self._kinds: dict[str, tuple[float, Callable[[str], Awaitable[None]]]] = {
            "whole": (25, lambda kind: self._whole(kind, "worker/plain")),
            "streamed": (25, lambda kind: self._streamed(kind, "worker/plain")),
            "whole, stood in": (6, lambda kind: self._whole(kind, "worker/pro")),
            "streamed, stood in": (6, lambda kind: self._streamed(kind, "worker/con")),
            "plan": (6, lambda kind: self._whole(kind, "conductor")),
            "plan, streamed": (6, lambda kind: self._streamed(kind, "conductor")),
            "responses": (4, lambda kind: self._whole(kind, "worker/plain", api="responses")),
            "responses, streamed": (
                4,
                lambda kind: self._streamed(kind, "worker/plain", api="responses"),
            ),
            "hung up": (9, self._hung_up),
            "tools": (4, self._tools),
            "asked twice": (1, self._twice),
            "small": (4, self._small),
            "unreachable": (share * 100, self._unreachable),
        }

    async def close(self) -> None:
        """Hang up."""
        await self._kept.close()
        await self._fresh.close()

    async def one(self) -> None:
        """Make one request, of some kind."""
        weights = [weight for weight, _ in self._kinds.values()]
        kind = self._chance.choices([*self._kinds], weights)[0]
        try:
            await self._kinds[kind][1](kind)
        except (aiohttp.ClientError, OSError, ValueError, KeyError, TypeError) as error:
            self._wrong(kind, f"{type(error).__name__}: {error}")

    # -- what is asked

    def _body(self, model: str, *, api: str = "chat", **more: Any) -> dict[str, Any]:
        self._asked += 1
        text = f"Question {self._asked}: is tea healthy? " + "Think of the morning. " * 20
        if api == "responses":
            return {"model": model, "input": text, **more}
        return {"model": model, "messages": [{"role": "user", "content": text}], **more}

    def _post(self, body: Any, api: str = "chat", **headers: str) -> Any:
        session = self._chance.choice((self._kept, self._fresh))
        path = "/v1/responses" if api == "responses" else "/v1/chat/completions"
        return session.post(self._base + path, json=body, headers=headers)

    async def _whole(self, kind: str, model: str, api: str = "chat") -> None:
        began = time.perf_counter()
        async with self._post(self._body(model, api=api), api) as reply:
            told = await reply.json()
        self._judge(kind, reply.status, told, api, began)

    def _judge(self, kind: str, status: int, told: Any, api: str, began: float) -> None:
        if status != 200:
            self._refused(kind, status, told)
            return
        if api == "responses":
            said = "".join(
                part["text"]
                for item in told["output"]
                if item["type"] == "message"
                for part in item["content"]
            )
        else:
            said = told["choices"][0]["message"]["content"]
        self._answered(kind, said, began)
        if run := (told.get("conductor") or {}).get("run"):
            self._runs = [*self._runs[-20:], run]

    async def _streamed(self, kind: str, model: str, api: str = "chat") -> None:
        began = time.perf_counter()
        async with self._post(self._body(model, api=api, stream=True), api) as reply:
            data = await reply.read()
        if reply.status != 200:
            self._refused(kind, reply.status, json.loads(data))
            return
        said, ended, broken = _read_stream(data, api)
        if broken and not ended:
            self.books.outcomes[f"broken off: {broken}"] += 1
        elif broken or not ended:
            self._wrong(kind, "an error and an end" if ended else "a stream without an end")
        else:
            self._answered(kind, said, began)

    async def _hung_up(self, kind: str) -> None:
        """Go away: before the headers, or in the middle of a stream; of a plan, too."""
        chance = self._chance
        model = chance.choice(("worker/plain", "worker/pro", "conductor"))
        api = chance.choice(("chat", "chat", "responses"))
        body = self._body(model, api=api, stream=chance.random() < 0.7)
        try:
            async with asyncio.timeout(chance.uniform(0.0, 0.4)):
                reply = await self._post(body, api)
                await reply.content.readany()
                reply.close()
        except TimeoutError:
            pass
        self.books.outcomes["hung up"] += 1

    async def _tools(self, kind: str) -> None:
        """Be asked for a tool, and bring its result; or never come back; or hang up then."""
        function = {"name": "look", "parameters": {"type": "object", "properties": {}}}
        tools = [{"type": "function", "function": function}]
        body = self._body("worker/tooler", tools=tools)
        began = time.perf_counter()
        async with self._post(body) as reply:
            told = await reply.json()
        if reply.status != 200:
            self._refused(kind, reply.status, told)
            return
        message = told["choices"][0]["message"]
        calls = message.get("tool_calls")
        if not calls:
            self._wrong(kind, "no call of a tool")
            return
        rest = self._chance.random()
        if rest < 0.2:
            self.books.outcomes["left with a tool to call"] += 1
            return
        result = {"role": "tool", "tool_call_id": calls[0]["id"], "content": "It is healthy."}
        again = {**body, "messages": [*body["messages"], message, result]}
        if rest < 0.4:
            try:
                async with asyncio.timeout(self._chance.uniform(0.0, 0.2)):
                    (await self._post({**again, "stream": True})).close()
            except TimeoutError:
                pass
            self.books.outcomes["hung up"] += 1
            return
        async with self._post(again) as reply:
            told = await reply.json()
        self._judge(kind, reply.status, told, "chat", began)

    async def _twice(self, kind: str) -> None:
        """Ask the same at the same time under one idempotency key."""
        self._asked += 1
        body, name = self._body("worker/plain"), f"key-{self._asked}"
        began = time.perf_counter()

        async def ask() -> tuple[int, bytes]:
            headers = {"idempotency-key": name}
            async with self._post(body, **headers) as reply:
                return reply.status, await reply.read()

        first, second = await asyncio.gather(ask(), ask())
        if first[0] == second[0] == 200 and first[1] != second[1]:
            self._wrong(kind, "two tries with one key got two answers")
        else:
            self._judge(kind, first[0], json.loads(first[1]), "chat", began)

    async def _small(self, kind: str) -> None:
        """What is cheap: lists, records, and what is wrong."""
        chance = self._chance
        run = chance.choice(self._runs) if self._runs else "0" * 32
        get = ("/v1/models", "/health/ready", f"/v1/runs/{run}", f"/v1/runs/{run}/events", "/no")
        if chance.random() < 0.7:
            path = chance.choice(get)
            async with self._kept.get(self._base + path) as reply:
                await reply.read()
            told: Any = None
        else:
            bad = ({"model": "nobody", "messages": []}, {"messages": 3}, [], {"model": "conductor"})
            async with self._post(chance.choice(bad)) as reply:
                told = await reply.json()
        if reply.status == 200:
            self.books.outcomes["answered"] += 1
        else:
            self._refused(kind, reply.status, told)

    async def _unreachable(self, kind: str) -> None:
        name = self._chance.choice(("refused", "deaf", "nowhere"))
        body = self._body(f"worker/{name}", stream=self._chance.random() < 0.5)
        async with self._post(body) as reply:
            told = await reply.json()
        if reply.status == 200:
            self._wrong(kind, "an answer from nowhere")
        else:
            self._refused(kind, reply.status, told)

    # -- what comes

    def _answered(self, kind: str, said: str, began: float) -> None:
        if said != TEXT:
            self._wrong(kind, f"another text: {said[:60]!r}")
            return
        self.books.outcomes["answered"] += 1
        self.books.took[kind].append(time.perf_counter() - began)

    def _refused(self, kind: str, status: int, told: Any) -> None:
        code = told["error"]["code"] if told else ""
        self.books.outcomes[f"{status} {code}".strip()] += 1
        if status not in STATUSES:
            self.books.wrong[f"{kind}: {status} {code}"] += 1

    def _wrong(self, kind: str, what: str) -> None:
        self.books.outcomes["WRONG"] += 1
        self.books.wrong[f"{kind}: {what}"] += 1


def _read_stream(data: bytes, api: str) -> tuple[str, bool, str]:
    """Give the text of a stream, whether it came to its end, and the code of its error."""
    said, ended, broken = [], False, ""
    for block in data.split(b"\n\n"):
        line = block.rpartition(b"data: ")[2] if b"data: " in block else b""
        if not line or line == b"[DONE]":
            ended = ended or line == b"[DONE]"
            continue
        told = json.loads(line)
        if api == "responses":
            kind = told["type"]
            if kind == "response.output_text.delta":
                said.append(told["delta"])
            ended = ended or kind == "response.completed"
            if kind == "response.failed":
                broken = told["response"]["error"]["code"]
        elif "error" in told:
            broken = str(told["error"]["code"])
        else:
            said += [each["delta"].get("content") or "" for each in told["choices"]]
    return "".join(said), ended, broken


# --- measuring ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """The server at one moment of the load."""

    at_s: float
    rss_mib: float
    fds: int
    tasks: int


async def _tasks(base: str) -> int:
    """How many asyncio tasks the server has, by its own word; -1 if it does not tell."""
    async with aiohttp.ClientSession() as session, session.get(f"{base}/metrics") as reply:
        found = re.search(r"^conductor_tasks (\d+)$", await reply.text(), re.MULTILINE)
    return int(found[1]) if found else -1


async def _capacity(load: Load, pid: int, requests: int) -> float:
    """Requests that one core of the server can take in a second."""
    width, first = 8, 5
    began, done = 0.0, 0
    for batch in range(max(requests // width, first + 1)):
        if batch == first:  # what is made once is made
            began, done = _cpu_s(pid), load.books.requests
        await asyncio.gather(*(load.one() for _ in range(width)))
    return (load.books.requests - done) / (_cpu_s(pid) - began)


def _slope(samples: Sequence[Sample]) -> float:
    """MiB in 10 minutes: the median of the slopes of all pairs (Theil and Sen), which a burst of
    large replies does not move."""
    slopes = [
        (late.rss_mib - early.rss_mib) / (late.at_s - early.at_s)
        for at, early in enumerate(samples)
        for late in samples[at + 1 :]
        if late.at_s - early.at_s > SAMPLE_S * 2
    ]
    return statistics.median(slopes) * 600 if slopes else 0.0


def _journal_bytes(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.glob("journal.db*"))


def _journal_states(folder: Path) -> tuple[dict[str, int], str]:
    """How many runs there are by state, and what SQLite thinks of the file."""
    from runtime import Journal

    with sqlite3.connect(folder / "journal.db") as raw:
        (health,) = raw.execute("PRAGMA integrity_check").fetchone()
    raw.close()
    with Journal(folder / "journal.db") as journal:
        states = Counter(each.state.value for each in journal.runs())
    return dict(states), health


def _ms(took: Sequence[float]) -> str:
    if not took:
        return "-"
    ordered = sorted(took)
    p50, p99 = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
    return f"{p50 * 1000:.0f}/{p99 * 1000:.0f}"


class Soak:
    """The run: paced load, samples, a line a minute, a verdict."""

    def __init__(self, asked: argparse.Namespace, folder: Path, base: str, pids: list[int]) -> None:
        self._asked = asked
        self._folder = folder
        self._base = base
        self._pids = pids
        """Server, models, and this process."""
        self._samples: list[Sample] = []
        self._per_run: list[float] = []
        """Bytes of journal per run, by minute."""
        self._all = Books()

    async def run(self) -> list[str]:
        """Returns the promises that were broken."""
        asked, pid = self._asked, self._pids[0]
        load = Load(self._base, asked.seed, asked.faults)
        capacity = await _capacity(load, pid, asked.probe)
        rate = asked.rate or capacity / 2
        print(
            f"capacity: {capacity:.0f} requests/s on one core of the server "
            f"({1000 / capacity:.1f} ms of CPU each); asked for {rate:.1f}/s, "
            f"{rate / capacity:.0%} of it, for {asked.minutes:g} min"
        )
        for what, count in load.books.wrong.items():
            print(f"before the load, WRONG: {what} ({count})")
        await load.close()
        await asyncio.sleep(QUIET_S)
        idle = Sample(0, _memory_mib(pid), _fds(pid), await _tasks(self._base))
        print(f"idle: {idle.rss_mib:.1f} MiB, {idle.fds} file descriptors, {idle.tasks} tasks\n")
        print(_HEAD, flush=True)
        load = Load(self._base, asked.seed + 1, asked.faults)
        async with asyncio.TaskGroup() as group:
            sampling = group.create_task(self._sample())
            minutes = group.create_task(self._minutes(load))
            await self._pace(load, rate)
            sampling.cancel()
            minutes.cancel()
        self._minute_over(load)
        await load.close()
        await asyncio.sleep(5)
        tasks = await _tasks(self._base)
        at_5 = _fds(pid)
        await asyncio.sleep(QUIET_S - 5)
        after = Sample(0, _memory_mib(pid), _fds(pid), tasks)
        print(f"\n5 s after: {at_5} file descriptors, {tasks} tasks")
        print(f"{QUIET_S} s after: {after.rss_mib:.1f} MiB, {after.fds} file descriptors\n")
        return self._verdict(idle, after)

    async def _pace(self, load: Load, rate: float) -> None:
        """Ask at random moments, whether there is an answer yet or not, up to a limit."""
        chance = random.Random(self._asked.seed + 2)
        room = asyncio.Semaphore(MOST_OPEN)

        async def ask() -> None:
            try:
                await load.one()
            finally:
                room.release()

        due = time.monotonic()
        until = due + self._asked.minutes * 60
        async with asyncio.TaskGroup() as group:
            while due < until:
                due += chance.expovariate(rate)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await room.acquire()
                due = max(due, time.monotonic() - 1.0)  # what was missed is not made up for
                group.create_task(ask())

    async def _sample(self) -> None:
        began, pid = time.monotonic(), self._pids[0]
        while True:
            await asyncio.sleep(SAMPLE_S)
            at = time.monotonic() - began
            tasks = await _tasks(self._base)
            self._samples.append(Sample(at, _memory_mib(pid), _fds(pid), tasks))

    async def _minutes(self, load: Load) -> None:
        self._cpu = [_cpu_s(pid) for pid in self._pids]
        self._since, self._journal = time.monotonic(), _journal_bytes(self._folder)
        while True:
            await asyncio.sleep(60)
            self._minute_over(load)

    def _minute_over(self, load: Load) -> None:
        if time.monotonic() - self._since < 10:
            return
        books, load.books = load.books, Books()
        self._all.add(books)
        seconds = time.monotonic() - self._since
        self._since = time.monotonic()
        cpu = [_cpu_s(pid) for pid in self._pids]
        shares = [(now - then) / seconds for now, then in zip(cpu, self._cpu, strict=True)]
        self._cpu = cpu
        size = _journal_bytes(self._folder)
        grown, self._journal = size - self._journal, size
        runs = books.requests - sum(
            books.outcomes[each] for each in books.outcomes if each.startswith(("400", "404"))
        )
        self._per_run.append(grown / max(1, runs))
        late = self._samples[-int(60 / SAMPLE_S) :]
        fds, tasks = [each.fds for each in late], [each.tasks for each in late]
        failed = books.requests - books.outcomes["answered"] - books.outcomes["hung up"]
        whole = books.took["whole"] + books.took["responses"]
        streamed = books.took["streamed"] + books.took["responses, streamed"]
        plans = books.took["plan"] + books.took["plan, streamed"]
        print(
            f"{len(self._per_run):>3} {books.requests:>6} {books.outcomes['hung up']:>5}"
            f" {failed:>6} {sum(books.wrong.values()):>5}"
            f" {statistics.median(each.rss_mib for each in late):>7.1f}"
            f" {max(each.rss_mib for each in late):>7.1f}"
            f" {f'{min(fds)}-{max(fds)}':>7} {f'{min(tasks)}-{max(tasks)}':>7}"
            f" {self._per_run[-1] / 1024:>6.2f}"
            f" {shares[0]:>5.0%} {sum(shares):>5.0%}"
            f" {_ms(whole):>9} {_ms(streamed):>9} {_ms(plans):>9}",
            flush=True,
        )

    def _verdict(self, idle: Sample, after: Sample) -> list[str]:
        warm_s = self._asked.minutes * 60 / 3
        warm = [each for each in self._samples if each.at_s > warm_s]
        slope = _slope(warm)
        third = max(1, len(self._per_run) // 3)
        first, last = self._per_run[:third], self._per_run[-third:]
        journal = statistics.median(last) / statistics.median(first)
        said = (self._folder / "stderr").read_text()
        loud = [line for line in said.splitlines() if _LOUD.search(line)]
        print("outcomes:")
        for what, count in self._all.outcomes.most_common():
            print(f"  {count:>7}  {count / self._all.requests:6.2%}  {what}")
        checks = [
            (
                f"memory after {warm_s / 60:.0f} min of warm-up grows by {slope:+.2f} MiB in "
                f"10 min (at most {SLOPE_MIB:g})",
                slope <= SLOPE_MIB,
            ),
            (
                f"file descriptors: {idle.fds} before, {after.fds} {QUIET_S} s after "
                f"(at most +{FDS})",
                after.fds <= idle.fds + FDS,
            ),
            (
                f"tasks: {idle.tasks} before, {after.tasks} 5 s after (at most +{TASKS})",
                0 <= after.tasks <= idle.tasks + TASKS,
            ),
            (
                f"journal per run: last third over first {journal:.2f} (at most {JOURNAL:g})",
                journal <= JOURNAL,
            ),
            (
                f"promises broken to clients: {sum(self._all.wrong.values())}"
                + "".join(f"\n      {n} x {what}" for what, n in self._all.wrong.items()),
                not self._all.wrong,
            ),
            (
                f"lines of alarm in its log: {len(loud)}" + "".join(f"\n      {x}" for x in loud),
                not loud,
            ),
        ]
        return _told(checks)


_HEAD = (
    "min    req  hung failed wrong     RSS    most     fds   tasks KiB/run   CPU   all"
    "     whole  streamed      plan\n"
    "                                  MiB     MiB                          (server)"
    "    p50/p99, ms of good answers"
)
_LOUD = re.compile(r"Traceback|never retrieved|never awaited|ResourceWarning|Unclosed|Error\b")


def _told(checks: Sequence[tuple[str, bool]]) -> list[str]:
    for what, kept in checks:
        print(f"{'ok   ' if kept else 'WRONG'} {what}")
    return [what for what, kept in checks if not kept]


def _ended(folder: Path, process: subprocess.Popen[bytes]) -> list[str]:
    """Stop the server as a user does, and look at what it leaves."""
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code = process.wait(timeout=60)
    took = time.monotonic() - began
    states, health = _journal_states(folder)
    print(f"runs in the journal: {states}")
    return _told(
        [
            (f"SIGTERM: exit code {code} after {took:.1f} s", code == 0),
            (f"the journal: {health}", health == "ok"),
            (f"runs that nobody ended: {states.get('running', 0)}", not states.get("running")),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, help="requests a second; else half of the capacity")
    parser.add_argument("--faults", type=float, default=0.05, help="share of calls that fail")
    parser.add_argument("--probe", type=int, default=400, help="requests to measure capacity with")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", metavar="FOLDER", help="leave journal and log there")
    parser.add_argument("--python", default="", help="further options for the server's Python")
    parser.add_argument("--models", type=float, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.models is not None:
        anyio.run(_models, asked.models)
        return
    with ExitStack() as stack:
        folder = Path(asked.keep or stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        urls, models = stack.enter_context(_upstream(asked.faults))
        (folder / "pool.toml").write_text(_pool(urls))
        base, server = stack.enter_context(_server(folder, asked.python.split()))
        pids = [server.pid, models.pid, os.getpid()]
        load = f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores"
        print(f"{load}; {asked.faults:.0%} of the calls of models fail")
        broken = asyncio.run(Soak(asked, folder, base, pids).run())
        broken += _ended(folder, server)
    print("VERDICT: " + (f"{len(broken)} broken" if broken else "no growth, nothing lost"))
    raise SystemExit(bool(broken))


if __name__ == "__main__":
    main()
