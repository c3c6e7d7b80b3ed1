"""OpenAI's Python client holds a conversation with tools, on the embedded models, and the server is
killed between the call and its result:

    python -m tests.clients.openai_tools
"""
# ruff: noqa: T201

from __future__ import annotations

import json
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import httpx2
import openai

from tests.clients.serving import serving

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def talk(url: str, model: str, messages: list[Any], choice: str) -> Any:
    """One turn of the conversation."""
    with openai.OpenAI(base_url=url, api_key="none", timeout=300) as client:
        return client.chat.completions.create(
            model=model,
            messages=messages,
            tools=[TOOL],
            tool_choice=choice,  # type: ignore[call-overload]
            max_tokens=60,
        )


def main() -> None:
    """Both ways to answer: one worker, and a plan."""
    for model in ("worker/steady", "conductor"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            messages: list[Any] = [{"role": "user", "content": "How is the weather in Rome?"}]
            with serving(folder) as (url, process):
                first = talk(url, model, messages, "required")
                process.kill()  # nothing of it is left but the journal
                process.wait()
            (call,) = first.choices[0].message.tool_calls
            print(f"{model}: calls {call.function.name} {call.function.arguments}, then SIGKILL")
            json.loads(call.function.arguments)
            messages += [
                first.choices[0].message.model_dump(exclude_none=True),
                {"role": "tool", "tool_call_id": call.id, "content": "Sunny, 25 degrees."},
            ]
            with serving(folder) as (url, _):
                second = talk(url, model, messages, "auto")
                run = second.model_extra["conductor"]["run"]
                assert run == first.model_extra["conductor"]["run"], "another run answered"
                record = httpx2.get(f"{url}/runs/{run}").json()
            steps = record["rounds"][-1]["steps"]
            print(f"  answer: {second.choices[0].message.content!r}")
            print(f"  who: {[(each['worker'], each['state']) for each in steps]}")
            with sqlite3.connect(folder / "journal.db") as journal:
                (runs,) = journal.execute("SELECT count(*) FROM run").fetchone()
            assert runs == 1, f"{runs} runs"
            assert all(each["state"] == "done" for each in steps)
    print("ok")


if __name__ == "__main__":
    main()
