"""A server on loopback with models that always say the same, for tests of the command.

Each name is a model; it speaks just enough of ``/chat/completions`` that Endpoint, which is tested
against real servers' ways in ``tests/test_endpoint.py``, gets its completion.
"""

# ruff: noqa: T201

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PLAN = """\
subtasks = [
    "Name the good sides.",
    "Name the bad sides.",
    "Weigh them and decide.",
]
workers  = ["pro", "con", "judge"]
access   = [[], [], [0, 1]]
"""
SAID = {
    "scribe": PLAN,
    "pro": "Tea warms, wakes and keeps you company.",
    "con": "Much of it costs sleep.",
    "judge": "Yes, in the morning.",
    "other": "Rather not.",
}
POOL = """\
[planner]
worker = "scribe"
cards  = false

[workers.pro]
kind  = "openai"
url   = "{url}"
model = "pro"
tags  = ["cheap"]
price = {{ input = 1, output = 4 }}

[workers.con]
kind    = "openai"
url     = "{url}"
model   = "con"
retries = 0

[workers.judge]
kind    = "openai"
url     = "{url}"
model   = "judge"
retries = 0

[workers.other]
kind    = "openai"
url     = "{url}"
model   = "other"
tags    = ["cheap"]

[workers.scribe]
kind  = "openai"
url   = "{url}"
model = "scribe"

[workers.self]
kind = "conductor"
"""


class Team:
    """The models, and who was called."""

    def __init__(self) -> None:
        self.said = dict(SAID)
        self.calls: list[str] = []
        """Names of the models, in the order of the calls."""
        self.asks: dict[str, list[dict[str, Any]]] = {}
        """Tool calls of models that ask for tools before they reply, if they are offered any."""
        self.down: set[str] = set()
        """Models that answer with an error."""
        self.held: set[str] = set()
        """Models that do not answer until they are let go."""
        self.reached = threading.Semaphore(0)
        """Counts calls of models that are held."""
        self.let_go = threading.Event()
        self.url = ""

    def write_pool(self, folder: Path, more: str = "") -> Path:
        """A pool file with all of them."""
        file = folder / "team.toml"
        file.write_text(POOL.format(url=self.url) + more, encoding="utf-8")
        return file

    def reply(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        name = asked["model"]
        self.calls.append(name)
        if name in self.held:
            self.reached.release()
            self.let_go.wait(60)
        if name in self.down:
            return 503, {"error": {"message": "too much to do"}}
        message: dict[str, Any] = {"role": "assistant", "content": self.said[name]}
        if asked.get("tools") and asked["messages"][-1]["role"] != "tool" and name in self.asks:
            message = {"role": "assistant", "content": None, "tool_calls": self.asks[name]}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        return 200, {"model": name, "choices": [choice], "usage": usage}


@contextmanager
def team() -> Iterator[Team]:
    """Start the server; stop it at the end."""
    models = Team()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, reply = models.reply(asked)
            body = json.dumps(reply).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:  # the client has hung up
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    models.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield models
    finally:
        models.let_go.set()
        server.shutdown()
        thread.join()
        server.server_close()


def main() -> None:
    """Serve until interrupted, for ``conductor`` in this folder."""
    with team() as models:
        file = models.write_pool(Path()).rename("conductor.toml")
        print(f"wrote {file}; serving at {models.url} until Ctrl-C")
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
