"""OpenAI's Python client in several versions and inspect-ai, unmodified, against the server with
the embedded models, over both APIs: answers, streams, and round trips of tools.

    python -m venv old && old/bin/pip install "openai<3"              # 2.54 was tried, and 3.57
    python -m venv judge && judge/bin/pip install inspect-ai openai   # 0.3.285 was tried
    python -m tests.clients.embedded judge/bin/python old/bin/python ...
"""
# ruff: noqa: T201

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from tests.clients.others import told
from tests.clients.serving import serving

OPENAI = """\
import json, sys
import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="none", timeout=900, max_retries=0)
query = "What is the capital of France?"
schema = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
told = {"name": "weather", "description": "Tells the weather of a city.", "parameters": schema}


def chat(model):
    ask = client.chat.completions.create
    messages = [{"role": "user", "content": query}]
    print("chat, plain:", ask(model=model, messages=messages).choices[0].message.content)
    chunks = list(ask(model=model, messages=messages, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    print(f"chat, stream: {len(chunks)} chunks, {text}")
    tools = [{"type": "function", "function": told}]
    messages = [{"role": "user", "content": "How is the weather in Rome?"}]
    first = ask(model=model, messages=messages, tools=tools)
    message = first.choices[0].message
    (call,) = message.tool_calls
    assert set(json.loads(call.function.arguments)) == {"city"}
    print("chat, tool:", call.function.name, call.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": "Sunny, 25 degrees."}
    messages += [message, result]
    second = ask(model=model, messages=messages, tools=tools)
    assert first.conductor["run"] == second.conductor["run"]
    assert second.choices[0].finish_reason == "stop"
    print("chat, answer:", second.choices[0].message.content)


def responses(model):
    ask = client.responses.create
    print("responses, plain:", ask(model=model, input=query).output_text)
    events = list(ask(model=model, input=query, stream=True))
    assert events[-1].type == "response.completed", events[-1]
    text = events[-1].response.output_text
    assert text == "".join(each.delta for each in events if each.type.endswith("text.delta"))
    print(f"responses, stream: {len(events)} events, {text}")
    tools = [{"type": "function", **told}]
    said = [{"role": "user", "content": "How is the weather in Rome?"}]
    first = ask(model=model, input=said, tools=tools)
    (call,) = first.output
    assert set(json.loads(call.arguments)) == {"city"}
    print("responses, tool:", call.name, call.arguments)
    result = {
        "type": "function_call_output", "call_id": call.call_id, "output": "Sunny, 25 degrees.",
    }
    second = ask(model=model, input=[*said, call, result], tools=tools)
    assert first.conductor["run"] == second.conductor["run"]
    assert second.status == "completed"
    print("responses, answer:", second.output_text)


print("openai", openai.__version__)
chat("worker/steady")
responses("worker/steady")
print("conductor:", client.responses.create(model="conductor", input=query).output_text)
"""

INSPECT = """\
import sys
import inspect_ai
from inspect_ai import Task, eval
from inspect_ai.dataset import json_dataset
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import tool


@tool
def weather():
    async def execute(city: str):
        \"\"\"Tells the weather of a city.

        Args:
            city: Name of the city.
        \"\"\"
        return "Sunny, 25 degrees."

    return execute


def said(name, solver):
    return Task(name=name, dataset=json_dataset(f"{name}.jsonl"), solver=solver, scorer=includes())


tasks = [said("facts", [generate()]), said("weather", [use_tools(weather()), generate()])]
for responses in (False, True):
    logs = eval(
        tasks,
        model="openai-api/team/" + sys.argv[1],
        model_args={"responses_api": responses},
        display="none",
        max_connections=2,
    )
    for log in logs:
        assert log.status == "success", log.error
        called = [m for sample in log.samples for m in sample.messages if m.role == "tool"]
        (score,) = log.results.scores
        share = score.metrics["accuracy"].value
        api = "responses" if responses else "chat"
        print(
            f"inspect-ai {inspect_ai.__version__}, {api}, {log.eval.task}: "
            f"{len(log.samples)} samples, accuracy {share:g}, {len(called)} calls of tools"
        )
        assert log.eval.task != "weather" or len(called) == len(log.samples)
        assert all(each.text == "Sunny, 25 degrees." for each in called)
"""

FACTS = {
    "What is the capital of France?": "Paris",
    "What is the capital of Italy?": "Rome",
    "Which planet do we live on?": "Earth",
    "Who wrote the play Hamlet?": "Shakespeare",
}
WEATHER = {"How is the weather in Rome?": "25", "Is it warm in Oslo?": "25"}


def main() -> None:
    """All of them, one after another."""
    judge, *clients = (Path(each).absolute() for each in sys.argv[1:])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "ask.py").write_text(OPENAI, encoding="utf-8")
        (folder / "judge.py").write_text(INSPECT, encoding="utf-8")
        for task, asked in {"facts": FACTS, "weather": WEATHER}.items():
            lines = (json.dumps({"input": query, "target": is_}) for query, is_ in asked.items())
            (folder / f"{task}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        with serving(folder) as (url, _):
            for python in clients:
                print(told([python, "ask.py", url], folder), end="")
            env = {"TEAM_BASE_URL": url, "TEAM_API_KEY": "none"}
            print(told([judge, "judge.py", "worker/steady"], folder, **env), end="")
    print("ok")


if __name__ == "__main__":
    main()
