"""Whatever schemathesis makes of the server's own description: requests of all kinds that fit it
or do not, then requests for answers that do. No reply may be a 5xx or of another form than
described.

    pip install schemathesis             # 4.32 was tried
    python -m tests.clients.fuzz [CASES] # of each of the latter; 3,500 make some 11,000 requests

The workers are scripts, since what is under test is what stands before them. Answers are asked of
models that exist most of the time, and of runs that exist; a deadline that no answer can keep is
an error that the caller asked for, so deadlines are longer.
"""
# ruff: noqa: T201

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from conductor import Conductor
from conductor.server import Server
from runtime import Call, Completion, FinishReason, FunctionWorker, Journal, OnText, Pool, ToolCall

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance,unsupported_method,"
    "allow_header_conformance"
)
PLANS = (
    'subtasks = ["Decide."]\nworkers = [0]\naccess = [[]]\n',
    'subtasks = ["Name the good sides.", "Decide."]\nworkers = [0, 0]\naccess = [[], [0]]\n',
)


class Script(FunctionWorker):
    """Says one thing, in JSON if that is asked for; of every other call with tools it asks for the
    first one that is a function."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(name, self._unused)
        self._text = text
        self._calls = 0

    async def _unused(self, messages: Any) -> str:
        raise AssertionError

    async def complete(self, call: Call, on_text: OnText = lambda text: None) -> Completion:
        self._calls += 1
        tools = [each for each in call.tools if each.callable and each.name]
        if tools and call.tool_choice != "none" and self._calls % 2:
            made = ToolCall("own", tools[0].name, "{}")
            return Completion("", FinishReason.TOOL_CALLS, tool_calls=(made,))
        text = "{}" if call.response_format else self._text
        if text == PLANS[1] and "of 1 step " in call.messages[0].content:
            text = PLANS[0]  # what it is asked for
        on_text(text)
        return Completion(text)


class Counted:
    """The server, and how often it gave which status where."""

    def __init__(self, server: ASGIApp) -> None:
        self._server = server
        self.replies: Counter[tuple[str, int]] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def told(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.replies["/".join(scope["path"].split("/")[:3]), message["status"]] += 1
            await send(message)

        await self._server(scope, receive, told)


@contextmanager
def listening(folder: Path) -> Iterator[tuple[str, Counted, list[str]]]:
    """The server in a thread; gives its base address, its books, and the ids of some runs."""
    workers = [Script("pro", "It warms."), Script("judge", "Yes, in the morning.")]
    with Journal(folder / "journal.db") as journal:
        team = Conductor(Pool(workers, planner=Script("scribe", PLANS[1])), journal=journal)
        runs = [team.run("Is tea healthy?").id, team.run("Why?", worker="pro").id]
        counted = Counted(Server(team))
        listener = uvicorn.Server(uvicorn.Config(counted, port=0, log_level="warning"))
        thread = threading.Thread(target=listener.run)
        thread.start()
        while not listener.started:
            thread.join(0.01)
        port = listener.servers[0].sockets[0].getsockname()[1]
        try:
            yield f"http://127.0.0.1:{port}", counted, runs
        finally:
            listener.should_exit = True
            thread.join()


def hooks() -> None:
    """Give what is generated a meaning; called in the process of schemathesis."""
    import schemathesis

    models = ["conductor", "worker/pro", "worker/judge"]
    runs = os.environ["FUZZ_RUNS"].split()

    def chance(value: Any) -> int:
        return crc32(json.dumps(value, sort_keys=True, default=str).encode())

    @schemathesis.hook
    def map_body(context: Any, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        lot = chance(body)
        if isinstance(body.get("model"), str) and lot % 16:
            body = {**body, "model": models[lot % len(models)]}
        asked = {"role": "user", "content": "Is tea healthy?"}
        if isinstance(body.get("messages"), list) and lot % 8:
            body = {**body, "messages": [*body["messages"], asked]}
        if isinstance(body.get("input"), list) and lot % 8:
            body = {**body, "input": [*body["input"], asked]}
        wishes = body.get("conductor")
        if isinstance(wishes, dict) and isinstance(wishes.get("deadline"), int | float):
            body = {**body, "conductor": {**wishes, "deadline": wishes["deadline"] + 20}}
        return body

    @schemathesis.hook
    def map_path_parameters(context: Any, path_parameters: Any) -> Any:
        if not path_parameters:
            return path_parameters
        lot = chance(path_parameters)
        if "id" in path_parameters and lot % 4 == 0:
            return {**path_parameters, "id": runs[lot % len(runs)]}
        if "model" in path_parameters and lot % 4 == 0:
            return {**path_parameters, "model": models[lot % len(models)]}
        return path_parameters


def generated(url: str, runs: list[str], mode: str, cases: int, *more: str) -> bool:
    """Let schemathesis at the server; whether it found nothing."""
    command = Path(sys.executable).with_name("schemathesis")
    done = subprocess.run(
        [
            *(str(command), "run", f"{url}/openapi.json", "--checks", CHECKS),
            *("--mode", mode, "--max-examples", str(cases), "--seed", "1", "--no-color"),
            *("--continue-on-failure", "--suppress-health-check", "all"),
            *("--request-timeout", "60", "--generation-database", ":memory:", *more),
        ],
        cwd=tempfile.gettempdir(),
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "SCHEMATHESIS_HOOKS": "tests.clients.fuzz",
            "FUZZ_RUNS": " ".join(runs),
        },
        check=False,
    )
    return done.returncode == 0


def main() -> None:
    """Start the server, let schemathesis at it, and tell what came of it."""
    cases = int(sys.argv[1]) if len(sys.argv) > 1 else 3500
    with tempfile.TemporaryDirectory() as name, listening(Path(name)) as (url, counted, runs):
        whole = generated(url, runs, "all", cases // 6, "--phases", "examples,coverage,fuzzing")
        fitting = generated(
            url, runs, "positive", cases, "--phases", "fuzzing", "--include-method", "POST"
        )
    for (path, status), times in sorted(counted.replies.items()):
        print(f"{path} {status}: {times}")
    broken = sum(times for (_, status), times in counted.replies.items() if status >= 500)
    print(f"{sum(counted.replies.values())} requests, {broken} of them ended in a 5xx")
    assert whole and fitting and not broken
    print("ok")


if __name__ == "__main__":
    main()
elif "FUZZ_RUNS" in os.environ:  # loaded by schemathesis
    hooks()
