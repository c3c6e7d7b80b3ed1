"""OpenAI's client for node, langchain-openai, llm and opencode, unmodified, against the server: a
plain answer, a stream, and a round trip of a tool in the middle of a plan. The workers always say
the same and ask for the tool until they see its result, so an answer proves that it came back.

    npm install openai opencode-ai                # in FOLDER; 6.49 and 1.18 were tried
    pip install llm langchain-openai              # for PYTHON; 0.32 and 1.7 were tried
    python -m tests.clients.others FOLDER PYTHON
"""
# ruff: noqa: T201

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from conductor.clients import Client, configuration
from tests.clients.serving import serving, tail
from tests.team import SAID, team

NODE = """\
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none" });
const messages = [{ role: "user", content: "Is tea healthy?" }];
const parameters = { type: "object", properties: { city: { type: "string" } } };
const tools = [{ type: "function", function: { name: "weather", parameters } }];
const model = "conductor";
if (process.argv[3] === "plain") {
  const reply = await client.chat.completions.create({ model, messages });
  console.log(reply.choices[0].message.content);
} else if (process.argv[3] === "stream") {
  let text = "";
  for await (const chunk of await client.chat.completions.create({ model, messages, stream: true }))
    text += chunk.choices[0]?.delta?.content ?? "";
  console.log(text);
} else if (process.argv[3] === "responses") {
  let text = "";
  for await (const event of await client.responses.create({
    model, input: "Is tea healthy?", stream: true }))
    if (event.type === "response.output_text.delta") text += event.delta;
  console.log(text);
} else {
  const first = await client.chat.completions.create({ model, messages, tools });
  const message = first.choices[0].message;
  const [call] = message.tool_calls;
  console.log(call.function.name, call.function.arguments);
  messages.push(message, { role: "tool", tool_call_id: call.id, content: "Sunny" });
  const second = await client.chat.completions.create({ model, messages, tools });
  console.log(first.conductor.run === second.conductor.run ? "same run" : "another run");
  console.log(second.choices[0].message.content);
}
"""

LANGCHAIN = """\
import sys
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

@tool
def weather(city: str) -> str:
    "Tells the weather of a city."
    return "Sunny"

url, what = sys.argv[1:]
model = ChatOpenAI(
    model="conductor", base_url=url, api_key="none", use_responses_api=what == "responses"
)
if what == "plain":
    print(model.invoke("Is tea healthy?").content)
elif what == "stream":
    print("".join(chunk.content for chunk in model.stream("Is tea healthy?")))
elif what == "responses":
    print(model.invoke("Is tea healthy?").text)
else:
    able = model.bind_tools([weather])
    messages = [HumanMessage("Is tea healthy?")]
    first = able.invoke(messages)
    (call,) = first.tool_calls
    print(call["name"], call["args"])
    messages += [first, ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])]
    print(able.invoke(messages).content)
"""

FUNCTION = """\
def weather(city: str) -> str:
    "Tells the weather of a city."
    return f"Sunny in {city}"
"""


def told(call: Sequence[str | Path], folder: Path, **env: str | Path) -> str:
    """Run a client; gives what it printed."""
    done = subprocess.run(
        [str(each) for each in call],
        cwd=folder,
        env={
            **os.environ,
            "HOME": str(folder),
            "PWD": str(folder),  # opencode looks for its file there
            **{name: str(each) for name, each in env.items()},
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def calls(name: str, arguments: str) -> list[dict[str, object]]:
    """What a worker asks for, in its server's form."""
    return [
        {"id": "own", "type": "function", "function": {"name": name, "arguments": arguments}},
    ]


def shown(client: str, what: str, text: str) -> None:
    """Print the end of it; it has to be the answer of the last step."""
    lines = tail(text, 6 if "tool" in what else 1)
    print(f"{client}, {what}: {' | '.join(lines)}")
    assert SAID["judge"] in lines[-1], text


def main() -> None:
    """All of them, one after another."""
    node, python = (Path(each).absolute() for each in sys.argv[1:3])
    with tempfile.TemporaryDirectory() as name, team() as models:
        folder = Path(name)
        pool = models.write_pool(folder)
        (folder / "node_modules").symlink_to(node / "node_modules")
        (folder / "ask.mjs").write_text(NODE, encoding="utf-8")
        (folder / "ask.py").write_text(LANGCHAIN, encoding="utf-8")
        with serving(folder, "--pool", str(pool)) as (url, _):
            for what in ("plain", "stream", "responses", "tool"):
                models.asks["judge"] = calls("weather", '{"city": "Rome"}')
                shown("openai for node", what, told(["node", "ask.mjs", url, what], folder))
                shown("langchain-openai", what, told([python, "ask.py", url, what], folder))

            written = configuration(Client.LLM, url=url, model="conductor")
            (folder / "extra-openai-models.yaml").write_text(str(written), encoding="utf-8")
            llm = [python.parent / "llm", "-m", "conductor", "Is tea healthy?"]
            for what, more in {
                "plain": ["--no-stream"],
                "stream": [],
                "tool": ["--functions", FUNCTION, "--tools-debug"],
            }.items():
                shown("llm", what, told([*llm, *more], folder, LLM_USER_PATH=folder))

            written = configuration(Client.OPENCODE, url=url, model="conductor")
            (folder / "opencode.json").write_text(str(written), encoding="utf-8")
            run = [node / "node_modules/.bin/opencode", "run", "Is tea healthy?"]
            models.asks.clear()
            shown("opencode", "stream", told(run, folder, OPENCODE_DISABLE_MODELS_FETCH="1"))
            command = '{"command": "echo conductor-$((40+2))", "description": "Adds"}'
            models.asks["judge"] = calls("bash", command)
            text = told(run, folder, OPENCODE_DISABLE_MODELS_FETCH="1")
            shown("opencode", "tool", text)
            assert "conductor-42" in text
    print("ok")


if __name__ == "__main__":
    main()
