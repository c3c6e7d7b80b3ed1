"""Tools for models in this process: how they are told of them, and how a call is read.

A model whose chat template takes tools is told by that. Any other is told in its system message, in
the words of this module, and writes what such templates have models write most often::

    <tool_call>
    {"name": "weather", "arguments": {"city": "Oslo"}}
    </tool_call>

Where a call is demanded, it is decoded under a grammar made of the tools' schemas, so that what is
written is a call, whatever the model's weights are. Else the text is searched for calls; text that
is none stays text.

A model that is too small to judge whether a tool is needed never asks for one by itself. Such a
worker calls first and answers then (:attr:`runtime.LocalWorker.tools`), and is told in few words,
with examples: of each tool what it does, and the arguments that it must have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .context import GO_ON
from .errors import FailureKind, WorkerError
from .worker import (
    Call,
    Completion,
    FinishReason,
    Message,
    Tool,
    ToolCall,
    chosen_tool,
    with_system,
)

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_TELL = """\
You may call these tools, each described in a line of JSON:
{tools}
To call one, answer with nothing but its name and arguments, like this:
<tool_call>
{{"name": "the tool's name", "arguments": {{"its argument": "value"}}}}
</tool_call>
You will be given the result. {when}"""
_IF_NEEDED = "If you need no tool, answer as usual."
_NOW = "Call one now."


_SPACED = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How JSON is written under a grammar: free white space lets a small model write blanks until its
tokens are used up, and none at all makes tokens of it that it has hardly seen."""


def offered(call: Call) -> tuple[tuple[Tool, ...], bool]:
    """The tools that a model in this process can be told of, and whether one has to be called.

    Raises:
        WorkerError: If one has to be called that is not there.
    """
    tools = tuple(each for each in call.tools if each.callable)
    choice = call.tool_choice
    if choice == "none":
        return (), False
    demanded = choice == "required"
    if isinstance(choice, Mapping):
        names, demanded = _named(choice)
        tools = tuple(each for each in tools if each.name in names)
    if demanded and not tools:
        told = "a tool has to be called, but none of those is a function that was given"
        raise WorkerError(FailureKind.REJECTED, f"{told}; correct tool_choice")
    return tools, demanded


def _named(choice: Mapping[str, Any]) -> tuple[set[str], bool]:
    """The tools that a choice names, and whether one of them has to be called."""
    allowed = choice.get("allowed_tools")
    if not isinstance(allowed, Mapping):
        return {chosen_tool(choice) or ""}, True
    names = {chosen_tool(each) or "" for each in allowed.get("tools") or ()}
    return names, allowed.get("mode") == "required"


def call_grammar(tools: Sequence[Tool], otherwise: str = "") -> str:
    """The Lark text of one call of one of the tools, for llguidance.

    Args:
        tools: At least one.
        otherwise: The Lark text, a single rule ``start``, of what may be written instead of a call.
    """
    rules, names = [], []
    for at, tool in enumerate(tools):
        schema = tool.parameters or {"type": "object", "additionalProperties": False}
        begin = f'{_OPEN}\n{{"name": {json.dumps(tool.name)}, "arguments": '
        end = f"}}\n{_CLOSE}"
        rules.append(f"call{at}: {json.dumps(begin)} arguments{at} {json.dumps(end)}")
        rules.append(f"arguments{at}: %json {json.dumps({**schema, 'x-guidance': _SPACED})}")
        names.append(f"call{at}")
    if otherwise:
        names.append("otherwise")
        rules.append(otherwise.replace("start:", "otherwise:", 1))
    return "\n".join([f"start: {' | '.join(names)}", *rules])


def told_plainly(
    messages: Sequence[Message], tools: Sequence[Tool], *, demanded: bool
) -> tuple[Message, ...]:
    """Write tools, calls and results as text, for templates that know nothing of tools."""
    written = tuple(map(_plain, messages))
    if not tools:
        return written
    described = "\n".join(
        json.dumps(
            {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters or {},
            },
            ensure_ascii=False,
        )
        for tool in tools
    )
    when = _NOW if demanded else _IF_NEEDED
    told = _TELL.format(tools=described, when=when)
    if written and written[0].role == "system":
        return (replace(written[0], content=f"{written[0].content}\n\n{told}"), *written[1:])
    return with_system(told, written)


_CALLER = """\
You have tools. Each is told as name(what it must be given): what it does. For each message, write \
a call of the one that fits best, and nothing else."""
_OTHERS = """\
Tools:
terminal(line): Runs a command in a shell.
calendar(day): Shows the appointments of a day.
mail(to, text): Sends a mail."""
_SHOWN: tuple[tuple[str, str, Mapping[str, str]], ...] = (
    ("Which files do I have?", "terminal", {"line": "ls -l"}),
    ("Tell Ann that I am late.", "mail", {"to": "Ann", "text": "I am late."}),
    ("What does notes.txt say?", "terminal", {"line": "cat notes.txt"}),
    ("Am I free on Monday?", "calendar", {"day": "Monday"}),
)
"""Of tools that nobody has, so that what is called is told by the question and not copied."""
_LONGEST_QUESTION = 600
"""Characters of what a small model is told to call a tool for."""
_MOST_TOOLS, _MOST_ITEMS, _LARGEST = 3, 2, 10**6
_LONGEST_TEXT, _LONGEST_INNER = 120, 40


def told_briefly(messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[Message, ...]:
    """Ask a small model for a call: of the conversation it is told what was asked last, with
    examples before it and the tools beside it. With more it copies from there.

    Args:
        messages: The conversation.
        tools: As :func:`narrowed` gives them.
    """
    told = [Message("system", _CALLER)]
    for question, name, arguments in _SHOWN:
        lead = "" if len(told) > 1 else f"{_OTHERS}\n"
        told.append(Message("user", f"{lead}Message: {question}"))
        told.append(_plain(Message("assistant", "", (ToolCall("", name, json.dumps(arguments)),))))
    listed = "\n".join(
        f"{tool.name}({', '.join((tool.parameters or {}).get('properties', {}))}): "
        f"{tool.description}"
        for tool in tools
    )
    told.append(Message("user", f"Tools:\n{listed}\nMessage: {_asked_last(messages)}"))
    return tuple(told)


def results_briefly(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Tell a small model what was asked last and what its calls gave, in one message of plain
    words; it would go on writing marks and ids else.

    Args:
        messages: The conversation, with results at its end.
    """
    names = {call.id: f"{call.name} {call.arguments}" for m in messages for call in m.tool_calls}
    found: list[str] = []
    for each in reversed(messages):
        if each.role == "tool":
            found.insert(0, f"{names.get(each.tool_call_id, 'A tool')} gave:\n{each.content}")
        elif not each.tool_calls:
            break
    return (Message("user", "\n\n".join([*found, f"{_WITH_THAT} {_asked_last(messages)}"])),)


def has_results(messages: Sequence[Message]) -> bool:
    """Whether a conversation ends with results of tools, be it as the text that steps see of one:
    then whoever calls first has done so."""
    return messages[-1].role == "tool" or messages[-1].content.endswith(GO_ON)


def _asked_last(messages: Sequence[Message]) -> str:
    said = (each.content for each in reversed(messages) if each.role == "user")
    return without_middle(next(said, GO_ON), _LONGEST_QUESTION)


def without_middle(text: str, most: int) -> str:
    """Leave the middle of a text out if it has more characters; a word says how much is missing."""
    missing = len(text) - most
    if missing <= 0:
        return text
    told = f"\n[... {missing} characters left out ...]\n"
    return f"{text[: most // 2]}{told}{text[len(text) - most // 2 :]}"


_WITH_THAT = "Answer with that:"


def narrowed(tools: Sequence[Tool]) -> tuple[Tool, ...]:
    """Tools for a small model: the first few, since clients begin with what they need most, and of
    each the first sentence of what it does, the arguments that it must be given, and bounds for
    what has none, or such a model goes on until its tokens are used up.

    What fits the schema of such a tool fits that of the tool that it was made of.
    """
    return tuple(map(_narrowed_tool, tools[:_MOST_TOOLS]))


def _narrowed_tool(tool: Tool) -> Tool:
    about = tool.description.strip().splitlines() or [""]
    schema = tool.parameters and _narrowed(tool.parameters)
    return Tool(tool.name, about[0].split(". ")[0].rstrip(".")[:200], schema)


def _narrowed(schema: Any, text: int = _LONGEST_TEXT) -> Any:
    if isinstance(schema, list):  # anyOf
        return [_narrowed(each, text) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    told = dict(schema)
    for name in ("items", "anyOf", "additionalProperties"):
        if name in told:
            inner = _LONGEST_INNER if name == "items" else text
            told[name] = _narrowed(told[name], inner)
    for name in ("properties", "$defs", "definitions"):
        if isinstance(told.get(name), Mapping):
            told[name] = {key: _narrowed(value, text) for key, value in told[name].items()}
    properties, required = told.get("properties"), told.get("required")
    if isinstance(properties, Mapping) and not told.keys() & _ENTANGLED:
        if required and set(required) <= properties.keys():
            told["properties"] = {key: properties[key] for key in properties if key in required}
        if set(required or ()) <= properties.keys():
            told["additionalProperties"] = False
    kind = told.get("type")
    if kind in ("string", ["string", "null"]) and not told.keys() & _BOUND_TEXT:
        told["maxLength"] = text
    if kind == "array" and not told.keys() & _BOUND_LIST:
        told["maxItems"] = _MOST_ITEMS
    if kind in ("number", "integer") and not told.keys() & _BOUND_NUMBER:
        told |= {"type": "integer", "minimum": 0, "maximum": _LARGEST}
    return told


_ENTANGLED = frozenset(
    "allOf anyOf oneOf not if then else dependentRequired dependentSchemas minProperties "
    "patternProperties propertyNames $ref".split()
)
"""Words beside ``properties`` that may ask for one that is not required by name."""
_BOUND_TEXT = frozenset(("maxLength", "minLength", "enum", "const", "pattern", "format"))
_BOUND_LIST = frozenset(("maxItems", "minItems", "prefixItems", "enum", "const"))
_BOUND_NUMBER = frozenset(
    ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "enum", "const")
)


def _plain(message: Message) -> Message:
    if message.role == "tool":
        told = f"<tool_response>\n{message.content}\n</tool_response>"
        return Message("user", told)
    if not message.tool_calls:
        return message
    calls = (
        f'{_OPEN}\n{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}\n{_CLOSE}'
        for call in message.tool_calls
    )
    text = [message.content] if message.content else []
    return replace(message, content="\n".join([*text, *calls]), tool_calls=())


def template_turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates that know tools read them."""
    names = {call.id: call.name for each in messages for call in each.tool_calls}
    turns: list[dict[str, Any]] = []
    for each in messages:
        turn: dict[str, Any] = {"role": each.role, "content": each.content}
        if each.tool_calls:
            turn["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": _arguments(call.arguments)},
                }
                for call in each.tool_calls
            ]
        if each.role == "tool":
            turn["tool_call_id"] = each.tool_call_id
            turn["name"] = names.get(each.tool_call_id, "")
        turns.append(turn)
    return turns


def _arguments(text: str) -> Any:
    """What a template is given: an object, which most write as JSON themselves.

    Names in an object that look like control tokens would be taken for such by the tokenizer.
    """
    value = _json(text)
    return value if isinstance(value, dict) and "<" not in text else text


def with_calls(completion: Completion, tools: Sequence[Tool]) -> Completion:
    """Find the calls of the tools in what a model has written.

    A call whose end is missing is none; neither is one of a tool that was not offered.

    Returns:
        The completion, with the calls in place of their text.
    """
    names = {tool.name for tool in tools}
    text, found = completion.text, list[ToolCall]()
    kept: list[str] = []
    while (start := text.find(_OPEN)) >= 0:
        end = text.find(_CLOSE, start)
        body = text[start + len(_OPEN) : end if end >= 0 else len(text)]
        call = _call(body, names)
        if call is None:
            break
        kept.append(text[:start])
        found.append(call)
        text = text[end + len(_CLOSE) :] if end >= 0 else ""
    if not found and (bare := _call(_without_fence(text), names)) is not None:
        found, text = [bare], ""
    if not found:
        return completion
    said = "".join([*kept, text]).strip()
    reason = FinishReason.TOOL_CALLS
    return replace(completion, text=said, finish_reason=reason, tool_calls=tuple(found))


def _call(text: str, names: set[str]) -> ToolCall | None:
    """Read a call of one of the tools; None if it is none."""
    value = _json(text.strip())
    if not isinstance(value, dict):
        return None
    name = value.get("name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _json(arguments)
    if not isinstance(name, str) or name not in names or not isinstance(arguments, dict):
        return None
    return ToolCall("", name, json.dumps(arguments, ensure_ascii=False))


def _without_fence(text: str) -> str:
    lines = text.strip().splitlines()
    fenced = len(lines) > 2 and lines[0].startswith("```") and lines[-1] == "```"
    return "\n".join(lines[1:-1]) if fenced else text


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
