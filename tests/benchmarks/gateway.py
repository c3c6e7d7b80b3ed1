"""What the server costs: CPU per request against bare Starlette + aiohttp, first-token forwarding,
and many streams open at once. Run it on an idle machine:

    python -m tests.benchmarks.gateway [--requests 4000] [--streams 1000]

The model server is a process of its own, and so are both gateways, in turn in the same run; only
the CPU time of the gateway counts. Ratios are what counts, absolute figures differ by machine.
"""
# ruff: noqa: T201

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from tests.benchmarks.loopback import HELD_S, answer

ROOT = Path(__file__).parents[2]
TICK = os.sysconf("SC_CLK_TCK")


# --- the parts, each a process ---------------------------------------------------------------


async def _model(hold_s: float, drip_s: float) -> None:
    """A model server: the whole stream after ``hold_s``, or from then on an event every ``drip_s``,
    each with the time at which it was written."""
    whole = answer()
    events = [event + b"\n\n" for event in whole.partition(b"\r\n\r\n")[2].split(b"\n\n") if event]
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    loop = asyncio.get_running_loop()

    class Model(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport, self.got = transport, b""

        def data_received(self, data: bytes) -> None:
            self.got += data
            start, blank, rest = self.got.partition(b"\r\n\r\n")
            length = start.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
            if not blank or len(rest) < int(length or 0):
                return
            self.got = b""
            if drip_s:
                loop.call_later(hold_s, self.drip, 0)
            else:
                loop.call_later(hold_s, self.transport.write, whole)

        def drip(self, at: int) -> None:
            stamped = events[at].replace(b"word ", b"T%f " % time.time())
            self.transport.write(stamped if at else head + stamped)
            if at + 1 < len(events):
                loop.call_later(drip_s, self.drip, at + 1)
            else:
                self.transport.close()

    server = await loop.create_server(Model, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


def _bare(url: str) -> None:
    """The baseline: Starlette takes the request, aiohttp sends it on, the answer is passed back."""
    import aiohttp
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse
    from starlette.routing import Route

    sessions: list[aiohttp.ClientSession] = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            sessions.append(session)
            yield

    async def chat(request: Request) -> Response:
        body = json.loads(await request.body())
        streams = body.pop("stream", False)
        body["stream"] = True
        reply = await sessions[0].post(f"{url}/chat/completions", json=body)
        if streams:
            return StreamingResponse(reply.content.iter_any(), media_type="text/event-stream")
        text = (await reply.read()).decode()
        pieces = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
        said = "".join(
            choice["delta"].get("content", "") for piece in pieces for choice in piece["choices"]
        )
        message = {"role": "assistant", "content": said}
        whole = {"choices": [{"index": 0, "message": message}], "usage": pieces[-1]["usage"]}
        return Response(json.dumps(whole), media_type="application/json")

    routes = [Route("/v1/chat/completions", chat, methods=["POST"])]
    app = Starlette(routes=routes, lifespan=lifespan)
    _listen(app)


def _ours(url: str, journal: str, profile: str) -> None:
    """conductor serve with one worker behind HTTP."""
    from conductor import Conductor
    from conductor.serve import settle_heap
    from conductor.server import Limits, Server
    from runtime import Endpoint, Journal, Pool

    pool = Pool([Endpoint("small", url=url, model="m")])
    team = Conductor(pool, journal=Journal(journal) if journal else None)
    server = Server(team, limits=Limits(requests=10_000))
    settle_heap()  # as the command does
    if not profile:
        _listen(server)
        return
    import cProfile

    profiler = cProfile.Profile()
    profiler.runcall(_listen, server)
    profiler.dump_stats(profile)


def _listen(app: object) -> None:
    import threading

    import uvicorn

    class Listening(uvicorn.Server):
        async def startup(self, sockets=None) -> None:  # type: ignore[no-untyped-def]
            await super().startup(sockets)
            print(self.servers[0].sockets[0].getsockname()[1], flush=True)

    config = uvicorn.Config(app, port=0, log_level="warning", access_log=False, backlog=4096)  # type: ignore[arg-type]
    server = Listening(config)

    def wait() -> None:
        sys.stdin.read()
        server.should_exit = True

    threading.Thread(target=wait, daemon=True).start()
    server.run()


# --- measuring -------------------------------------------------------------------------------


@contextmanager
def _process(*args: str) -> Iterator[tuple[int, int]]:
    """Start a part; gives its port and process id."""
    call = [sys.executable, "-m", "tests.benchmarks.gateway", *args]
    with subprocess.Popen(
        call, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline()), process.pid
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(timeout=30)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def _memory_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def _request(*, stream: bool) -> bytes:
    model = "worker/small"
    talk = [{"role": "user", "content": "Is it safe to drink tea every day?"}]
    body = json.dumps({"model": model, "messages": talk, "stream": stream}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _client(port: int, count: int, *, stream: bool, ends: list[float]) -> int:
    """Make requests one after the other on one connection; returns how many failed."""
    request, failed = _request(stream=stream), 0
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(count):
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        failed += b" 200 " not in head[:20]
        if b"chunked" in head.lower():
            while (line := await reader.readline()) != b"0\r\n":
                size = int(line, 16)
                data = await reader.readexactly(size + 2)
                now = time.time()
                ends += [now - float(each.split()[0]) for each in data.split(b'"T')[1:]]
            await reader.readline()
        else:
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            await reader.readexactly(length)
    writer.close()
    return failed


async def _load(port: int, requests: int, concurrency: int, *, stream: bool) -> list[float]:
    ends: list[float] = []
    each = requests // concurrency
    failed = await asyncio.gather(
        *(_client(port, each, stream=stream, ends=ends) for _ in range(concurrency))
    )
    if any(failed):
        raise SystemExit(f"{sum(failed)} of {requests} requests failed")
    return ends


def _cpu_us(port: int, pid: int, requests: int, *, stream: bool) -> float:
    asyncio.run(_load(port, 200, 50, stream=stream))  # warm
    before = _cpu_s(pid)
    asyncio.run(_load(port, requests, 50, stream=stream))
    return (_cpu_s(pid) - before) / requests * 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", nargs="?", default="")
    parser.add_argument("args", nargs="*")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--skip-cpu", action="store_true")
    parser.add_argument("--profile", default="", help="write a cProfile of our gateway here")
    asked = parser.parse_args()
    match asked.part:
        case "model":
            asyncio.run(_model(float(asked.args[0]), float(asked.args[1])))
        case "bare":
            _bare(*asked.args)
        case "ours":
            _ours(*asked.args)
        case _:
            print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
            if not asked.skip_cpu:
                _compare(asked.requests, asked.rounds, asked.profile)
            if not asked.profile:
                _streams(asked.streams)


def _compare(requests: int, rounds: int, profile: str) -> None:
    with tempfile.TemporaryDirectory() as folder, _process("model", "0.005", "0") as (upstream, _):
        url = f"http://127.0.0.1:{upstream}/v1"
        if profile:
            with _process("ours", url, f"{folder}/p.db", profile) as (port, pid):
                _cpu_us(port, pid, requests, stream=False)
            return
        with (
            _process("bare", url) as (bare, bare_pid),
            _process("ours", url, "", "") as (ours, ours_pid),
            _process("ours", url, f"{folder}/j.db", "") as (kept, kept_pid),
        ):
            parts = {
                "bare": (bare, bare_pid),
                "ours": (ours, ours_pid),
                "journal": (kept, kept_pid),
            }
            for stream in (False, True):
                took: dict[str, list[float]] = {name: [] for name in parts}
                for _ in range(rounds):
                    for name, (port, pid) in parts.items():
                        took[name].append(_cpu_us(port, pid, requests, stream=stream))
                middle = {name: statistics.median(each) for name, each in took.items()}
                told = ", ".join(f"{name} {each:.0f} us" for name, each in middle.items())
                ratio = middle["ours"] / middle["bare"], middle["journal"] / middle["bare"]
                kind = "streamed" if stream else "whole"
                print(f"CPU per request, {kind}: {told}; ratio {ratio[0]:.2f}, {ratio[1]:.2f}")


def _streams(streams: int) -> None:
    with (
        _process("model", str(HELD_S), "0.05") as (upstream, _),
        _process("ours", f"http://127.0.0.1:{upstream}/v1", "", "") as (port, pid),
    ):
        ends = sorted(asyncio.run(_load(port, 200, 4, stream=True)))
        p50, p99 = ends[len(ends) // 2] * 1000, ends[int(len(ends) * 0.99)] * 1000
        print(f"a token is passed on within {p50:.1f} ms (p50), {p99:.1f} ms (p99)")
    with (
        _process("model", "3", "0.2") as (upstream, _),
        _process("ours", f"http://127.0.0.1:{upstream}/v1", "", "") as (port, pid),
    ):
        idle, most = _memory_mib(pid), 0.0

        async def many() -> None:
            nonlocal most
            load = asyncio.create_task(_load(port, streams, streams, stream=True))
            while not load.done():
                most = max(most, _memory_mib(pid))
                await asyncio.sleep(0.2)
            await load

        asyncio.run(many())
        print(f"{streams} streams at once, no error: {most:.0f} MiB, idle {idle:.0f} MiB")


if __name__ == "__main__":
    main()
