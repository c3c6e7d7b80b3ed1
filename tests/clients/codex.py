"""Codex CLI, unmodified, against the server, with its own shell tool:

* a worker that always asks for a command, so that the answer proves that its result came back;
* the embedded models, asked by themselves and in a plan: what they call may be silly, but is a
  valid call of a tool that Codex has, and its result leads to an answer in the same run;
* the same with the server killed (SIGKILL) between the call and its result.

It runs what the models ask for, without a sandbox, in a folder that is thrown away:

    npm install @openai/codex            # 0.169 was tried
    python -m tests.clients.codex node_modules/.bin/codex
"""
# ruff: noqa: T201

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import uvicorn

from conductor import Conductor
from conductor.clients import Client, configuration
from conductor.server import Server
from conductor.server.json_form import problem
from runtime import (
    Call,
    Completion,
    FinishReason,
    FunctionWorker,
    Journal,
    Message,
    OnText,
    Pool,
    ToolCall,
    Usage,
)
from tests.clients.serving import serving, tail

QUERY = "Which files are in this folder?"


class Assistant(FunctionWorker):
    """Has a shell command run, then tells what it printed."""

    def __init__(self) -> None:
        super().__init__("assistant", self._unused)
        self.seen: list[Call] = []

    async def _unused(self, messages: Sequence[Message]) -> str:
        raise AssertionError

    async def complete(self, call: Call, on_text: OnText = lambda text: None) -> Completion:
        self.seen.append(call)
        results = [each.content for each in call.messages if each.role == "tool"]
        if results:
            found = "42" if "conductor-42" in results[-1] else "nothing"
            text = f"The command printed {found}."
            on_text(text)
            return Completion(text, usage=Usage(10, 5))
        shells = [tool for tool in call.tools if "command" in json.dumps(tool.parameters or {})]
        tool = next(each for each in shells if each.name.startswith(("exec", "shell")))
        fields = (tool.parameters or {})["properties"]
        name = "cmd" if "cmd" in fields else "command"
        command = "echo conductor-$((40+2))"
        listed = fields[name].get("type") == "array"
        given = {name: ["sh", "-c", command] if listed else command}
        made = ToolCall("own", tool.name, json.dumps(given))
        return Completion("", FinishReason.TOOL_CALLS, Usage(10, 5), "", (made,))


@contextmanager
def scripted(folder: Path) -> Iterator[tuple[str, Assistant]]:
    """A server of the assistant, in this process."""
    worker = Assistant()
    journal = Journal(folder / "scripted.db")
    server = Server(Conductor(Pool([worker]), journal=journal))
    listener = uvicorn.Server(uvicorn.Config(server, port=0, log_level="warning"))
    thread = threading.Thread(target=listener.run)
    thread.start()
    while not listener.started:
        thread.join(0.01)
    try:
        port = listener.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/v1", worker
    finally:
        listener.should_exit = True
        thread.join()


@contextmanager
def relay(upstream: Callable[[], str], passed: Callable[[], None]) -> Iterator[str]:
    """Hand requests on to a server that may be another one each time.

    Args:
        upstream: Its base address.
        passed: Called after the whole reply to a request has been read, before its end is sent.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            url = upstream().removesuffix("/v1") + self.path
            kept = {"content-type": "application/json"}
            with httpx2.stream("POST", url, content=body, headers=kept, timeout=900) as reply:
                self.send_response(reply.status_code)
                self.send_header("content-type", reply.headers["content-type"])
                self.end_headers()
                last = b""
                for piece in reply.iter_bytes():
                    self.wfile.write(last)
                    self.wfile.flush()
                    last = piece
            passed()
            self.wfile.write(last)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(codex: str, folder: Path, url: str, model: str, query: str) -> str:
    """Run `codex exec`; gives what it printed."""
    home, work = folder / "home", folder / "work"
    home.mkdir(exist_ok=True)
    work.mkdir(exist_ok=True)
    (work / "notes.txt").write_text("Buy tea.\n", encoding="utf-8")
    written = configuration(Client.CODEX, url=url, model=model)
    (home / "config.toml").write_text(str(written), encoding="utf-8")
    free = "--dangerously-bypass-approvals-and-sandbox"
    done = subprocess.run(
        [codex, "exec", "--skip-git-repo-check", free, query],
        cwd=work,
        env={**os.environ, "CODEX_HOME": str(home), "HOME": str(home)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def checked(url: str, folder: Path) -> None:
    """Look at what the page of the run is made of: who was asked, who called what, what came of
    it; and that there is one run in which all of that was done."""
    with sqlite3.connect(folder / "journal.db") as journal:
        runs = [name for (name,) in journal.execute("SELECT id FROM run")]
    assert len(runs) == 1, f"{len(runs)} runs"
    record: dict[str, Any] = httpx2.get(f"{url}/runs/{runs[0]}").json()
    assert record["state"] == "done", record["failure"]
    steps = record["rounds"][-1]["steps"]
    declared = {tool["name"]: tool["parameters"] for tool in record["asked"]["tools"]}
    asked = 0
    for step in steps:
        print(f"  step {step['index']}: {step['worker']}, {step['state']}, {step['usage']}")
        for turn in step["turns"]:
            for call, result in zip(turn["calls"], turn["results"], strict=True):
                asked += 1
                print(f"    {turn['worker']} calls {call['name']} {call['arguments']}")
                print(f"    result: {tail(result, 1)[0]!r}")
                wrong = problem(json.loads(call["arguments"]), declared[call["name"]])
                assert not wrong, wrong
    assert asked == 1, f"{asked} calls"
    print(f"  answer: {steps[-1]['text'][:300]!r}")
    assert steps[-1]["text"].strip()


def embedded(codex: str, model: str, query: str, *, killed: bool) -> None:
    """One conversation with the embedded models."""
    print(f"{model}{', killed between call and result' if killed else ''}: {query}")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        url, process = stack.enter_context(serving(folder))

        def kill() -> None:
            nonlocal url, process
            if killed and process.poll() is None and not deaths:
                process.kill()
                deaths.append(process.wait())
                url, process = stack.enter_context(serving(folder))

        deaths: list[int] = []
        address = stack.enter_context(relay(lambda: url, kill))
        told = ask(codex, folder, address, model, query)
        assert "Reconnecting" not in told, told
        assert deaths == ([-9] if killed else []), deaths
        checked(url, folder)


def main() -> None:
    """All of them."""
    codex = str(Path(sys.argv[1] if len(sys.argv) > 1 else "codex").absolute())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with scripted(folder) as (url, worker):
            told = ask(codex, folder, url, "worker/assistant", "What is 40 + 2?")
            names = [tool.name for tool in worker.seen[0].tools]
            print(f"{len(worker.seen)} calls, tools {', '.join(names)}")
            results = [each.content for each in worker.seen[-1].messages if each.role == "tool"]
            print(f"result of the tool: {results[-1][:200]!r}")
        print("\n".join(tail(told, 3)))
        assert "The command printed 42" in told
    embedded(codex, "worker/steady", QUERY, killed=False)
    embedded(codex, "worker/steady", QUERY, killed=True)
    embedded(codex, "conductor", QUERY, killed=True)
    print("ok")


if __name__ == "__main__":
    main()
