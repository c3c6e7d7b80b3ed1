"""The wire format of responses: JSON to an Ask, runs to replies and events. No I/O.

A stream is ``response.created``, ``.in_progress``; for a text ``.output_item.added``,
``.content_part.added``, ``.output_text.delta`` and so on back out again; and one terminal event:
``.completed``, ``.incomplete`` or ``.failed``. A stream that ends without one is an error to every
client.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from runtime import Call, Message, Run, ToolCall, mended

from . import ask as asking
from .accounts import disclosure, responses_usage
from .answering import Answers
from .ask import EFFORTS, MOST_MESSAGES, RESPONSES_BY_NAME, Ask
from .body import Fields
from .chat import finish_reason
from .refusals import Refusal, bad
from .sse import event

_TEXTS = {
    "input_text": "text",
    "output_text": "text",
    "text": "text",
    "refusal": "refusal",
    "summary_text": "text",
    "reasoning_text": "text",
}
_PREFIX = "resp_"


def read(body: dict[str, Any]) -> Ask:
    """Read the body of a request.

    Raises:
        Refusal: If it is wrong; ``param`` names where.
    """
    fields = Fields(body)
    model = fields.needed("model", fields.text("model"))
    ignored = asking.noted(body, RESPONSES_BY_NAME)
    given = fields.values.get("input")
    if isinstance(given, str):
        messages: tuple[Message, ...] = (Message("user", mended(given)),)
    else:
        messages = _messages(fields.needed("input", fields.objects("input")))
    instructions = fields.text("instructions")
    if instructions:
        messages = (Message("system", mended(instructions)), *messages)
    if not asking.is_spoken(messages):
        raise bad("input holds no text; ask something", "input")
    text = fields.object("text")
    form, schema, passed = "", None, {}
    if text is not None:
        form, schema = asking.response_format(_format(text))
        verbosity = text.one_of("verbosity", "low", "medium", "high")
        passed = {"verbosity": verbosity} if verbosity not in (None, "medium") else {}
    reasoning = fields.object("reasoning")
    effort = reasoning.one_of("effort", *EFFORTS) if reasoning is not None else None
    previous = fields.text("previous_response_id") or ""
    if previous and not previous.startswith(_PREFIX):
        told = f"there is no response {previous[:100]!r}"
        raise Refusal(404, told, param="previous_response_id", code="not_found")
    declared = asking.flat_tools(fields.objects("tools") or ())
    choice = body.get("tool_choice")
    if choice is not None and not isinstance(choice, str | dict):
        raise bad("tool_choice must be a text or an object", "tool_choice")
    return Ask(
        model=model,
        call=Call(
            messages,
            asking.sampling(fields, fields.whole("max_output_tokens", 1, 10**7), chat=False),
            response_format=form,
            extra=json.dumps(passed) if passed else "",
            tools=tuple(declared.tools),
            tool_choice=_choice(choice),
            parallel_tool_calls=fields.flag("parallel_tool_calls"),
        ),
        wishes=asking.wishes(fields),
        stream=bool(fields.flag("stream")),
        effort=effort,
        schema=schema,
        noted=(*ignored, *declared.left_out),
        free=frozenset(declared.free),
        spaces=declared.spaces,
        previous=previous.removeprefix(_PREFIX),
        echo={
            "instructions": instructions,
            "max_output_tokens": body.get("max_output_tokens"),
            "metadata": fields.values.get("metadata") or {},
            "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
            "previous_response_id": previous or None,
            "reasoning": {"effort": effort, "summary": None},
            "store": body.get("store") is not False,
            "temperature": body.get("temperature"),
            "text": body.get("text") or {"format": {"type": "text"}},
            "tool_choice": "auto" if choice is None else choice,
            "tools": body.get("tools") or [],
            "top_p": body.get("top_p"),
            "truncation": "disabled",
            "user": body.get("user"),
        },
    )


def _format(text: Fields) -> Fields | None:
    """A text format in the form of chat completions: a schema stands one level deeper there."""
    form = text.object("format")
    if form is None or form.values.get("type") != "json_schema":
        return form
    inner = {key: value for key, value in form.values.items() if key != "type"}
    return Fields({"type": "json_schema", "json_schema": inner}, text.at("format"))


def _choice(choice: Any) -> Any:
    """A tool choice in the form of chat completions."""
    if isinstance(choice, dict) and choice.get("type") in ("function", "custom"):
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice


def _messages(items: Sequence[Fields]) -> tuple[Message, ...]:
    if len(items) > MOST_MESSAGES:
        raise bad(f"input has {len(items)} items; at most {MOST_MESSAGES} are read", "input")
    read: list[Message] = []
    for item in items:
        kind = item.text("type") or "message"
        match kind:
            case "message":
                read.append(_message(item))
            case "function_call" | "custom_tool_call":
                call = _called(item, custom=kind == "custom_tool_call")
                last = read[-1] if read else None
                if last is not None and last.role == "assistant":
                    read[-1] = Message("assistant", last.content, (*last.tool_calls, call))
                else:
                    read.append(Message("assistant", "", (call,)))
            case "function_call_output" | "custom_tool_call_output":
                output = item.values.get("output")
                text, parts = asking.content(output, item.at("output"), _TEXTS)
                answers = item.needed("call_id", item.text("call_id"))
                read.append(Message("tool", text, tool_call_id=answers, parts=parts))
            case "reasoning":
                pass  # what a model thought before its reply; the reply follows
            case _:
                told = f"{item.at('type')}: items of type {kind[:60]!r} can't be read here"
                raise bad(f"{told}; leave it out", item.at("type"), "unsupported_item")
    return tuple(read)


def _message(item: Fields) -> Message:
    role = item.needed("role", item.one_of("role", "system", "developer", "user", "assistant"))
    text, parts = asking.content(item.values.get("content"), item.at("content"), _TEXTS)
    if parts:
        parts = json.dumps([_part(each) for each in json.loads(parts)])
    return Message(role, text, parts=parts)  # type: ignore[arg-type]  # one_of has checked it


def _part(part: dict[str, Any]) -> dict[str, Any]:
    """A part of a message in the form of chat completions, which workers read."""
    if part["type"] in _TEXTS:
        return {"type": "text", "text": part[_TEXTS[part["type"]]]}
    if part["type"] == "input_image" and isinstance(part.get("image_url"), str):
        detail = {"detail": part["detail"]} if isinstance(part.get("detail"), str) else {}
        return {"type": "image_url", "image_url": {"url": part["image_url"], **detail}}
    return part


def _called(item: Fields, *, custom: bool) -> ToolCall:
    written = mended(item.text("input" if custom else "arguments") or "")
    return ToolCall(
        item.needed("call_id", item.text("call_id")),
        mended(asking.spaced(item.text("namespace"), item.needed("name", item.text("name")))),
        json.dumps({"input": written}) if custom else written,
    )


def identifier(run: str) -> str:
    """Id of a response."""
    return f"{_PREFIX}{run}"


def continued(ask: Ask, run: Run, text: str) -> tuple[Message, ...]:
    """The conversation of an earlier run with its answer, and what is asked now.

    New instructions take the place of the earlier system message.

    Args:
        ask: What is asked.
        run: The earlier run.
        text: Its answer.
    """
    before = run.asked.messages if run.asked else (Message("user", run.query),)
    if ask.call.messages[0].role == "system" and before and before[0].role == "system":
        before = before[1:]
        first, *rest = ask.call.messages
        return (first, *before, Message("assistant", text), *rest)
    return (*before, Message("assistant", text), *ask.call.messages)


def reply(ask: Ask, policy: str, created: int, answers: Answers) -> dict[str, Any]:
    """A whole response."""
    run = answers.runs[0].run.id if answers.runs else "dry_run"
    text, last = answers.choices[0] if answers.choices else ("", None)
    reason = finish_reason(last) if last else "stop"
    done = reason not in ("length", "content_filter")
    items = [_item(run, text, "completed" if done else "incomplete")] if text else []
    items += [_call_item(ask, call) for call in (last.open_calls if last else ())]
    return {
        **_response(ask, run, created, "completed" if done else "incomplete"),
        "completed_at": created,
        "output": items,
        "incomplete_details": None if done else {"reason": _INCOMPLETE[reason]},
        "usage": responses_usage(answers.runs, answers.before),
        "conductor": disclosure(policy, answers.runs, answers.estimate),
    }


_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


def _response(ask: Ask, run: str, created: int, status: str) -> dict[str, Any]:
    echo: Mapping[str, Any] = ask.echo
    return {
        "id": identifier(run),
        "object": "response",
        "created_at": created,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": ask.model,
        "output": [],
        "service_tier": "default",
        "usage": None,
        **echo,
    }


def _item(run: str, text: str | None, status: str) -> dict[str, Any]:
    content = [] if text is None else [_part_of(text)]
    return {
        "id": f"msg_{run}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": content,
    }


def _call_item(ask: Ask, call: ToolCall) -> dict[str, Any]:
    """A call of a tool, as the client declared it."""
    told = {"call_id": call.id, "name": call.name, "status": "completed"}
    if call.name in ask.spaces:
        space, name = ask.spaces[call.name]
        told |= {"name": name, "namespace": space}
    if call.name not in ask.free:
        return {
            "id": f"fc_{call.id}",
            "type": "function_call",
            **told,
            "arguments": call.arguments,
        }
    try:
        given = json.loads(call.arguments)
    except (ValueError, RecursionError):
        given = call.arguments
    written = given.get("input") if isinstance(given, dict) else None
    text = written if isinstance(written, str) else call.arguments
    return {"id": f"ctc_{call.id}", "type": "custom_tool_call", **told, "input": text}


def _part_of(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


class Chunks:
    """The events of one streamed response; arguments as those of :class:`chat.Chunks`."""

    def __init__(self, ask: Ask, policy: str, created: int) -> None:
        self._ask = ask
        self._policy = policy
        self._created = created
        self._run = ""
        self._number = 0
        self._opened = False
        self._text: list[str] = []

    def _event(self, kind: str, **told: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return event({"type": kind, "sequence_number": number, **told}, name=kind)

    def begin(self, run: str) -> list[bytes]:
        """Name the run that it is of; nothing is sent yet, since it may still fail at once."""
        self._run = run
        return []

    def _open(self) -> list[bytes]:
        if self._opened:
            return []
        self._opened = True
        begun = _response(self._ask, self._run, self._created, "in_progress")
        return [
            self._event("response.created", response=begun),
            self._event("response.in_progress", response=begun),
        ]

    def text(self, index: int, piece: str) -> list[bytes]:
        """The next piece of the text."""
        out = self._open()
        where = {"item_id": f"msg_{self._run}", "output_index": 0, "content_index": 0}
        if not self._text:
            item = _item(self._run, None, "in_progress")
            out.append(self._event("response.output_item.added", output_index=0, item=item))
            out.append(self._event("response.content_part.added", **where, part=_part_of("")))
        self._text.append(piece)
        out.append(self._event("response.output_text.delta", **where, delta=piece, logprobs=[]))
        return out

    def progress(self, told: dict[str, Any]) -> list[bytes]:
        """What goes on, for those who asked to know."""
        return [*self._open(), self._event("response.conductor.progress", conductor=told)]

    def end(self, answers: Answers) -> list[bytes]:
        """The normal end."""
        out = self._open()
        whole = reply(self._ask, self._policy, self._created, answers)
        if self._text:
            text = "".join(self._text)
            where = {"item_id": f"msg_{self._run}", "output_index": 0, "content_index": 0}
            done = self._event("response.output_text.done", **where, text=text, logprobs=[])
            part = self._event("response.content_part.done", **where, part=_part_of(text))
            item = whole["output"][0]
            out += [
                done,
                part,
                self._event("response.output_item.done", output_index=0, item=item),
            ]
        for at, item in enumerate(whole["output"]):
            if item["type"] != "message":
                out += self._called(at, item)
        out.append(self._event(f"response.{whole['status']}", response=whole))
        return out

    def _called(self, at: int, item: dict[str, Any]) -> list[bytes]:
        custom = item["type"] == "custom_tool_call"
        name = "input" if custom else "arguments"
        kind = "response.custom_tool_call_input" if custom else "response.function_call_arguments"
        where = {"item_id": item["id"], "output_index": at}
        begun = {**item, name: "", "status": "in_progress"}
        return [
            self._event("response.output_item.added", output_index=at, item=begun),
            self._event(f"{kind}.delta", **where, delta=item[name]),
            self._event(f"{kind}.done", **where, **{name: item[name]}),
            self._event("response.output_item.done", output_index=at, item=item),
        ]

    def fail(self, refusal: Refusal) -> list[bytes]:
        """The end of a stream that breaks off: a terminal event of its own."""
        out = self._open()
        failed = _response(self._ask, self._run, self._created, "failed")
        failed["error"] = {
            "code": "rate_limit_exceeded" if refusal.status == 429 else "server_error",
            "message": refusal.message,
        }
        return [*out, self._event("response.failed", response=failed)]
