"""A pool of your own endpoints, from a TOML file; and what happens when one of them is down.

Any server with an OpenAI-compatible API will do. So that this runs offline, it starts a tiny one
on this machine, which streams a canned reply.

    python examples/04_your_own_endpoints.py
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from conductor import Conductor, Plan, Pool, marks, to_terminal

POOL = """\
[workers.up]
kind  = "openai"
url   = "${EXAMPLE_URL}"       # variables are looked up when the pool is loaded
model = "parrot-1"
card  = "is there"

[workers.down]
kind  = "openai"
url   = "http://127.0.0.1:9/v1" # nobody listens here
model = "parrot-2"
"""


class Parrot(BaseHTTPRequestHandler):
    """Answers every chat completion with the same words, streamed one by one."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for word in ("Fresh ", "bread ", "smells ", "good."):
            choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
            self._send(json.dumps({"model": "parrot-1", "choices": [choice]}))
        last = {"index": 0, "delta": {}, "finish_reason": "stop"}
        self._send(json.dumps({"model": "parrot-1", "choices": [last]}))
        self._send("[DONE]")

    def _send(self, data: str) -> None:
        self.wfile.write(f"data: {data}\n\n".encode())

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextmanager
def parrot_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Parrot) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def main() -> None:
    with parrot_server() as url, tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "pool.toml")
        file.write_text(POOL, encoding="utf-8")
        pool = Pool.load(file, env={"EXAMPLE_URL": url})
        tasks = ["Ask here.", "Ask there.", "Use the first reply.", "Use the second reply."]
        plan = Plan.of(tasks, ["up", "down", "up", "up"], [[], [], [0], [1]])
        run = Conductor(pool).run("What smells good?", plan=plan)

    print(to_terminal(plan, marks=marks(run)))
    print(f"step 2 said: {run.steps[2].text}")
    print(f"step 1 failed: {run.steps[1].failure.message if run.steps[1].failure else ''}")
    print(f"the run: {run.state}, as its last step had nothing to read")


if __name__ == "__main__":
    main()
