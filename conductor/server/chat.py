"""The wire format of chat completions: JSON to an Ask, runs to replies and chunks. No I/O."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from runtime import Call, FinishReason, Message, Run, RunState, ToolCall, mended

from . import ask as asking
from .accounts import chat_usage, disclosure, last_step
from .answering import Answers
from .ask import CHAT_BY_NAME, EFFORTS, MOST_CHOICES, MOST_MESSAGES, Ask
from .body import Fields
from .refusals import Refusal, bad
from .sse import event

_TEXTS = {"text": "text", "refusal": "refusal"}


def read(body: dict[str, Any]) -> Ask:
    """Read the body of a request.

    Raises:
        Refusal: If it is wrong; ``param`` names where.
    """
    fields = Fields(body)
    model = fields.needed("model", fields.text("model"))
    noted = asking.noted(body, CHAT_BY_NAME)
    messages = _messages(fields.needed("messages", fields.objects("messages")))
    longest = fields.whole("max_completion_tokens", 1, 10**7)
    longest = longest or fields.whole("max_tokens", 1, 10**7)
    form, schema = asking.response_format(fields.object("response_format"))
    options = fields.object("stream_options")
    passed = {
        name: body[name]
        for name in ("logit_bias", "prediction", "verbosity")
        if body.get(name) is not None
    }
    choice = body.get("tool_choice")
    if choice is not None and not isinstance(choice, str | dict):
        raise bad("tool_choice must be a text or an object", "tool_choice")
    return Ask(
        model=model,
        call=Call(
            messages,
            asking.sampling(fields, longest, chat=True),
            response_format=form,
            extra=json.dumps(passed) if passed else "",
            tools=tuple(asking.tools(fields.objects("tools") or ()).tools),
            tool_choice=choice,
            parallel_tool_calls=fields.flag("parallel_tool_calls"),
        ),
        wishes=asking.wishes(fields),
        stream=bool(fields.flag("stream")),
        include_usage=bool(options and options.flag("include_usage")),
        n=fields.whole("n", 1, MOST_CHOICES) or 1,
        effort=fields.one_of("reasoning_effort", *EFFORTS),
        schema=schema,
        noted=noted,
    )


def _messages(given: Sequence[Fields]) -> tuple[Message, ...]:
    if not given:
        raise bad("messages is empty; send at least one", "messages")
    if len(given) > MOST_MESSAGES:
        raise bad(f"messages has {len(given)}; at most {MOST_MESSAGES} are read", "messages")
    read = tuple(map(_message, given))
    if not asking.is_spoken(read):
        raise bad("messages hold no text; ask something", "messages")
    return read


def _message(fields: Fields) -> Message:
    role = fields.needed(
        "role", fields.one_of("role", "system", "developer", "user", "assistant", "tool")
    )
    text, parts = asking.content(fields.values.get("content"), fields.at("content"), _TEXTS)
    if not text and role == "assistant":
        text = mended(fields.text("refusal") or "")
    calls = fields.objects("tool_calls") if role == "assistant" else None
    answers = ""
    if role == "tool":
        answers = fields.needed("tool_call_id", fields.text("tool_call_id"))
    return Message(
        role,  # type: ignore[arg-type]  # one_of has checked it
        text,
        tuple(map(_tool_call, calls or ())),
        answers,
        parts,
        mended(fields.text("name") or ""),
    )


def _tool_call(fields: Fields) -> ToolCall:
    kind = fields.text("type") or "function"
    inner = fields.needed(kind, fields.object(kind))
    written = inner.text("input" if kind == "custom" else "arguments") or ""
    known = {"id", "type", kind, "index"}
    extra = {key: value for key, value in fields.values.items() if key not in known}
    return ToolCall(
        fields.text("id") or "",
        mended(inner.needed("name", inner.text("name"))),
        mended(written),
        kind,
        json.dumps(extra) if extra else "",
    )


FINISH = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.CONTENT_FILTER: "content_filter",
    FinishReason.TOOL_CALLS: "tool_calls",
    FinishReason.OTHER: "stop",
}


def finish_reason(run: Run) -> str:
    """Why an answer ended, in the API's words."""
    if run.state is RunState.SUSPENDED:
        return "tool_calls"
    last = last_step(run)
    return FINISH[last.finish_reason or FinishReason.STOP] if last else "stop"


def written(call: ToolCall) -> dict[str, Any]:
    """A tool call as the API has it."""
    text = "input" if call.type == "custom" else "arguments"
    inner = {"name": call.name, text: call.arguments}
    return {"id": call.id, "type": call.type, call.type: inner}


def identifier(run: str) -> str:
    """Id of a completion."""
    return f"chatcmpl-{run}"


def reply(ask: Ask, policy: str, created: int, answers: Answers) -> dict[str, Any]:
    """A whole completion.

    Args:
        ask: What was asked.
        policy: The pinned id of what answered.
        created: Seconds since 1970.
        answers: What came of it.
    """
    return {
        "id": identifier(answers.runs[0].run.id if answers.runs else "dry-run"),
        "object": "chat.completion",
        "created": created,
        "model": ask.model,
        "choices": [
            {
                "index": index,
                "message": _said(text, run),
                "logprobs": None,
                "finish_reason": finish_reason(run),
            }
            for index, (text, run) in enumerate(answers.choices)
        ],
        "usage": chat_usage(answers.runs, answers.before),
        "service_tier": "default",
        "system_fingerprint": policy.rpartition("@")[2],
        "conductor": disclosure(policy, answers.runs, answers.estimate),
    }


def _said(text: str, run: Run) -> dict[str, Any]:
    calls = [written(call) for call in run.open_calls]
    told: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    return {**told, "content": text or None, "tool_calls": calls} if calls else told


class Chunks:
    """The events of one streamed completion.

    Args:
        ask: What was asked.
        policy: The pinned id of what answers.
        created: Seconds since 1970.
    """

    def __init__(self, ask: Ask, policy: str, created: int) -> None:
        self._head = {
            "id": "",
            "object": "chat.completion.chunk",
            "created": created,
            "model": ask.model,
            "system_fingerprint": policy.rpartition("@")[2],
        }
        self._policy = policy
        self._usage = ask.include_usage
        self._begun: set[int] = set()

    def begin(self, run: str) -> list[bytes]:
        """Name the run that it is of."""
        self._head["id"] = identifier(run)
        return []

    def text(self, index: int, piece: str) -> list[bytes]:
        """The next piece of a choice's text; the first one tells the role."""
        delta: dict[str, Any] = {"content": piece}
        if index not in self._begun:
            self._begun.add(index)
            delta = {"role": "assistant", **delta}
        return [event(self._chunk(index, delta, None))]

    def progress(self, told: dict[str, Any]) -> list[bytes]:
        """What goes on, for those who asked to know."""
        return [event({**self._head, "choices": [], "conductor": told})]

    def end(self, answers: Answers) -> list[bytes]:
        """The normal end: finish reasons, then usage if it was asked for, then [DONE].

        What the whole took is in the last chunk but [DONE].
        """
        told = {"conductor": disclosure(self._policy, answers.runs, answers.estimate)}
        chunks = []
        for index, (_, run) in enumerate(answers.choices):
            delta: dict[str, Any] = {}
            if index not in self._begun:
                delta = {"role": "assistant", "content": None if run.open_calls else ""}
            for at, call in enumerate(run.open_calls):
                piece = {**delta, "tool_calls": [{"index": at, **written(call)}]}
                chunks.append(self._chunk(index, piece, None))
                delta = {}
            chunks.append(self._chunk(index, delta, finish_reason(run)))
        if self._usage or not chunks:
            chunks.append(
                {**self._head, "choices": [], "usage": chat_usage(answers.runs, answers.before)}
            )
        chunks[-1] |= told
        return [*map(event, chunks), b"data: [DONE]\n\n"]

    def fail(self, refusal: Refusal) -> list[bytes]:
        """The end of a stream that breaks off: an error, and no finish reason or [DONE]."""
        return [event(refusal.body)]

    def _chunk(self, index: int, delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        usage = {"usage": None} if self._usage else {}
        return {**self._head, "choices": [choice], **usage}
