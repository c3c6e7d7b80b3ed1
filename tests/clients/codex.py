"""Codex CLI, unmodified, against the server: a plain answer of the embedded model, and a round trip
of its own shell tool with a worker that always asks for it.

    npm install @openai/codex            # 0.169 was tried
    python -m tests.clients.codex node_modules/.bin/codex
"""
# ruff: noqa: T201

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from conductor import Conductor
from conductor.server import Server
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

CONFIG = """\
model = "{model}"
model_provider = "conductor"

[model_providers.conductor]
name = "Conductor"
base_url = "{url}"
wire_api = "responses"
"""


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


def ask(
    codex: str, folder: Path, url: str, model: str, query: str, sandbox: str = "read-only"
) -> str:
    """Run `codex exec`; gives what it printed."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text(CONFIG.format(url=url, model=model), encoding="utf-8")
    done = subprocess.run(
        [codex, "exec", "--skip-git-repo-check", "--sandbox", sandbox, query],
        cwd=folder,
        env={**os.environ, "CODEX_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def main() -> None:
    """Both proofs."""
    codex = str(Path(sys.argv[1] if len(sys.argv) > 1 else "codex").absolute())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with scripted(folder) as (url, worker):
            # The one command is an echo, and not every machine has what the sandbox needs.
            free = "danger-full-access"
            told = ask(codex, folder, url, "worker/assistant", "What is 40 + 2?", free)
            names = [tool.name for tool in worker.seen[0].tools]
            print(f"{len(worker.seen)} calls, tools {', '.join(names)}")
            results = [each.content for each in worker.seen[-1].messages if each.role == "tool"]
            print(f"result of the tool: {results[-1][:200]!r}")
        print("\n".join(tail(told, 3)))
        assert "The command printed 42" in told
        with serving(folder) as (url, _):
            told = ask(codex, folder, url, "worker/steady", "Say hello in one sentence.")
            print(f"embedded: {tail(told, 1)[0]}")
    print("ok")


if __name__ == "__main__":
    main()
