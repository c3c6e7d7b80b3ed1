"""`conductor serve` as a process of its own: how it ends, and what it tells of itself."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from runtime import Journal, RunState
from tests.faults.server import ANSWER, Exchange, pieces, serving
from tests.serving import CHAT, asked, events, said

ROOT = Path(__file__).parents[1]
FIRST = pieces(ANSWER)[0]


@pytest.fixture
def anyio_backend() -> str:
    """The loop of the tests' own side only: the process has one event loop in any case."""
    return "asyncio"


pytestmark = pytest.mark.anyio


class Served:
    """The process, a client of it, and its model, which answers in two parts."""

    def __init__(self, folder: Path, process: subprocess.Popen[str], http: httpx.AsyncClient):
        self.process = process
        self.http = http
        self.rest = anyio.Event()
        """Lets the model go on after its first word."""
        self.journal = folder / "journal.db"

    def signal(self, which: int = signal.SIGTERM) -> None:
        self.process.send_signal(which)

    async def unready(self) -> None:
        """Wait until it says that it takes no more."""
        while (await self.http.get("/health/ready")).status_code == 200:
            await anyio.lowlevel.checkpoint()

    async def end(self) -> tuple[int, str]:
        """Wait for its end; gives the exit code and what it said after its address."""
        _, told = await anyio.to_thread.run_sync(self.process.communicate)
        return self.process.returncode, told

    def run_states(self) -> list[RunState]:
        """States of the runs in its journal, which it has closed, so that one file is left."""
        assert {each.name for each in self.journal.parent.glob("journal*")} == {"journal.db"}
        with Journal(self.journal) as journal:
            assert journal.check() == []
            return [each.state for each in journal.runs()]


@contextmanager
def start(folder: Path, *args: str) -> Iterator[subprocess.Popen[str]]:
    call = [sys.executable, "-m", "conductor", "serve", "--port", "0", *args]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    with subprocess.Popen(
        [*call, "--journal", "journal.db"],
        cwd=folder,
        env=env,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@asynccontextmanager
async def served(folder: Path, *args: str) -> AsyncIterator[Served]:
    async with serving() as models:

        async def held(exchange: Exchange) -> None:
            first, *parts = exchange.reply()
            await exchange.head()
            await exchange.part(first)
            await here.rest.wait()
            for part in parts:
                await exchange.part(part)
            exchange.told_usage()
            await exchange.end()

        models.script("slow", held)
        worker = f'[workers.slow]\nkind = "openai"\nurl = "{models.url}"\nmodel = "slow"\n'
        (folder / "conductor.toml").write_text(worker)
        with start(folder, *args) as process:
            assert process.stderr is not None
            line = await anyio.to_thread.run_sync(process.stderr.readline)
            found = re.search(r"http://\S+:\d+", line)
            assert found, line
            async with httpx.AsyncClient(base_url=found[0], timeout=60) as http:
                here = Served(folder, process, http)
                yield here


async def first_word(chunks: AsyncIterator[str]) -> str:
    """Read a stream up to the first text."""
    read = ""
    while not said(events(read)):
        read += await anext(chunks)
    return read


async def test_a_signal_lets_what_is_under_way_finish(tmp_path: Path) -> None:
    """Whoever asks meanwhile is told to come again, and so are load balancers; then it ends well,
    and its journal is closed."""
    async with served(tmp_path) as here:
        body = asked("worker/slow", stream=True)
        async with here.http.stream("POST", CHAT, json=body) as stream:
            chunks = stream.aiter_text()
            read = await first_word(chunks)
            here.signal()
            await here.unready()
            late = await here.http.post(CHAT, json=body)
            live = await here.http.get("/health/live")
            here.rest.set()
            read += "".join([each async for each in chunks])
        code, told = await here.end()

    assert (late.status_code, late.json()["error"]["code"]) == (503, "server_stopping")
    assert late.headers["retry-after"] == "2"
    assert live.status_code == 200
    assert said(events(read)) == ANSWER
    assert events(read)[-1] == "[DONE]"
    assert (code, told) == (0, "")
    assert here.run_states() == [RunState.DONE]


async def test_a_second_signal_stops_what_is_under_way(tmp_path: Path) -> None:
    """A stream ends with an error and without a normal end; its run is cancelled on record."""
    async with served(tmp_path) as here:
        body = asked("worker/slow", stream=True)
        async with here.http.stream("POST", CHAT, json=body) as stream:
            chunks = stream.aiter_text()
            read = await first_word(chunks)
            here.signal()
            await here.unready()
            here.signal()
            read += "".join([each async for each in chunks])
        code, told = await here.end()

    assert said(events(read)[:-1]) == FIRST
    assert events(read)[-1]["error"]["code"] == "server_stopping"
    assert "[DONE]" not in read
    assert code == 1
    assert told.startswith("error: stopped 1 requests that were under way; `conductor resume`")
    assert here.run_states() == [RunState.CANCELLED]


async def test_after_the_drain_limit_it_stops_by_itself(tmp_path: Path) -> None:
    """A whole answer that was under way becomes an error that invites to another try."""
    replies: list[Any] = []
    async with served(tmp_path, "--drain", "0") as here:

        async def ask() -> None:
            replies.append(await here.http.post(CHAT, json=asked("worker/slow")))

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            while "requests_in_flight 1" not in (await here.http.get("/metrics")).text:
                await anyio.lowlevel.checkpoint()
            here.signal()
        code, _ = await here.end()

    assert (replies[0].status_code, replies[0].json()["error"]["code"]) == (503, "server_stopping")
    assert replies[0].headers["retry-after"] == "2"
    assert code == 1
    assert here.run_states() == [RunState.CANCELLED]


async def test_with_nothing_under_way_ctrl_c_ends_it_at_once(tmp_path: Path) -> None:
    """Until then, its metrics tell how the process is."""
    async with served(tmp_path) as here:
        text = (await here.http.get("/metrics")).text
        memory = await anyio.Path(f"/proc/{here.process.pid}/statm").read_text()
        here.signal(signal.SIGINT)
        code, told = await here.end()

    figures = dict(line.split() for line in text.splitlines() if not line.startswith("#"))
    resident = int(memory.split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert float(figures["process_resident_memory_bytes"]) == pytest.approx(resident, rel=0.2)
    assert int(figures["process_open_fds"]) > 3
    assert int(figures["conductor_tasks"]) > 0
    assert float(figures["process_cpu_seconds_total"]) > 0
    assert (code, told) == (0, "")
