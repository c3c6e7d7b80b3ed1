"""The Worker protocol: one model of the pool, seen as one method; and what goes in and out of it.

Three kinds come with the package: :class:`runtime.Endpoint` (an OpenAI-compatible server),
:class:`runtime.LocalWorker` (a model in this process) and, here, :class:`FunctionWorker` (an async
Python function). Anything else with these members is a Worker too.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Literal, Protocol, Self, runtime_checkable

from .errors import FailureKind, WorkerError


@dataclass(frozen=True, slots=True)
class ToolCall:
    """What a model asks to have done: one call of a tool, by name."""

    id: str
    """By which its result names it; empty where the model gave none."""
    name: str
    arguments: str
    """JSON as the model wrote it, valid or not; free text for a custom tool."""
    type: str = "function"
    """The kind of tool, by the server's word for it: function or custom."""
    extra: str = ""
    """Further fields that the server gave, as a JSON object, to be sent back with the call."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str
    """Its text; of parts that are no text, only a word in brackets that says what is there."""
    tool_calls: tuple[ToolCall, ...] = ()
    """What an assistant asked for beside, or in place of, its text."""
    tool_call_id: str = ""
    """For a tool's message, the call whose result it is."""
    parts: str = ""
    """The content as the caller wrote it, a JSON list, if it is more than a text (images, files).
    Servers get this in place of ``content``."""
    name: str = ""
    """Who of several speaks in this role; sent to servers."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that a model may ask for. It is the caller's: nothing here ever runs one.

    Raises:
        ValueError: If the parameters or the declaration are not JSON.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    """JSON schema of its arguments, an object; None if it takes none or does not say."""
    raw: Mapping[str, Any] | None = None
    """The whole declaration, if it says more than the fields above or is no function; it goes to
    servers as it is."""

    def __post_init__(self) -> None:
        for field in ("parameters", "raw"):
            value = getattr(self, field)
            if value is None:
                continue
            try:
                text = json.dumps(value, ensure_ascii=False, allow_nan=False)
            except (TypeError, ValueError, RecursionError) as error:
                told = f"tool {self.name!r}: its {field} are no JSON: {error}"
                raise ValueError(f"{told}; give what json.loads could have read") from None
            if not isinstance(value, dict) or mended(text) != text:
                object.__setattr__(self, field, json.loads(mended(text)))

    @classmethod
    def of(cls, declaration: Mapping[str, Any]) -> Tool:
        """Read a declaration as a chat completions request has it, of whatever type.

        Raises:
            ValueError: If it is not JSON.
        """
        function = declaration.get(str(declaration.get("type")))
        told = function if isinstance(function, Mapping) else declaration
        name, description = told.get("name"), told.get("description")
        parameters = told.get("parameters")
        plain = cls(
            name if isinstance(name, str) else str(declaration.get("type", "")),
            description if isinstance(description, str) else "",
            parameters if isinstance(parameters, Mapping) else None,
        )
        if plain.declaration == declaration:
            return plain
        return cls(plain.name, plain.description, plain.parameters, declaration)

    @property
    def declaration(self) -> Mapping[str, Any]:
        """As a chat completions request has it."""
        if self.raw is not None:
            return self.raw
        function: dict[str, Any] = {"name": self.name}
        if self.description:
            function["description"] = self.description
        if self.parameters is not None:
            function["parameters"] = self.parameters
        return {"type": "function", "function": function}

    @property
    def callable(self) -> bool:
        """Whether it is a function: other types need a server that knows them."""
        return self.raw is None or self.raw.get("type") == "function"


ToolChoice = str | Mapping[str, Any] | None
"""none, auto, required, or an object that names tools; None leaves it to the worker."""


def undemanding(choice: ToolChoice) -> ToolChoice:
    """The choice without its demand that a tool be called: what is allowed stays."""
    if choice in (None, "none"):
        return choice
    allowed = choice.get("allowed_tools") if isinstance(choice, Mapping) else None
    if isinstance(choice, Mapping) and isinstance(allowed, Mapping):
        return {**choice, "allowed_tools": {**allowed, "mode": "auto"}}
    return "auto"


def chosen_tool(choice: ToolChoice) -> str | None:
    """The name of the one tool that a choice demands, if it does."""
    if choice is None or isinstance(choice, str):
        return None
    function = choice.get(str(choice.get("type")))
    name = (function if isinstance(function, Mapping) else choice).get("name")
    return name if isinstance(name, str) else None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one or more calls, as the worker counted them."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    """Part of ``input_tokens`` that the server had cached."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
        )


def mended(text: str) -> str:
    """Replace halves of surrogate pairs by U+FFFD: no encoding can hold them, so no record can.

    They come from JSON that was cut inside an emoji and from file names in unknown encodings.
    """
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class FinishReason(StrEnum):
    """Why a completion ended."""

    STOP = "stop"
    """The model was done, or wrote a stop string."""
    LENGTH = "length"
    """The token limit cut it off."""
    CONTENT_FILTER = "content_filter"
    TOOL_CALLS = "tool_calls"
    """The model waits for the results of tools."""
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Completion:
    """What a worker answered."""

    text: str
    finish_reason: FinishReason = FinishReason.STOP
    usage: Usage | None = None
    """None where the worker does not count."""
    model: str = ""
    """The model that answered, as it names itself; a server may answer with a dated version."""
    tool_calls: tuple[ToolCall, ...] = ()
    """What it asks to have done before it goes on; it has answered if there are none."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to decode. None leaves it to the worker, and is not sent to servers."""

    temperature: float | None = None
    """0 is greedy."""
    top_p: float | None = None
    max_tokens: int | None = None
    """Longest completion."""
    seed: int | None = None
    stop: tuple[str, ...] = ()
    frequency_penalty: float | None = None
    presence_penalty: float | None = None

    def over(self, default: Sampling) -> Sampling:
        """Fill what is left open from ``default``."""
        return Sampling(
            default.temperature if self.temperature is None else self.temperature,
            default.top_p if self.top_p is None else self.top_p,
            default.max_tokens if self.max_tokens is None else self.max_tokens,
            default.seed if self.seed is None else self.seed,
            self.stop or default.stop,
            _first(self.frequency_penalty, default.frequency_penalty),
            _first(self.presence_penalty, default.presence_penalty),
        )


def _first(chosen: float | None, default: float | None) -> float | None:
    return default if chosen is None else chosen


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a worker: everything that decides the completion, and nothing else."""

    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    grammar: str | None = None
    """Lark text that the completion must match; only for workers with ``constrains``."""
    tools: tuple[Tool, ...] = ()
    """What the model may ask for."""
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    """Whether it may ask for several at once; None leaves it to the worker."""
    response_format: str = ""
    """What the text is to be, as JSON: ``{"type": "json_object"}`` or ``{"type": "json_schema",
    "json_schema": {...}}``. It is asked for; whoever needs it checks the text."""
    extra: str = ""
    """Further fields of a request to a server, a JSON object; no model in this process has any."""


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a worker can be used now, and if not, why and what to do."""

    ready: bool
    detail: str


OnText = Callable[[str], None]
"""Receives each piece of a completion as it is written; an empty piece only says that the worker is
at it, as while it reasons. Must not block."""


def ignore(text: str) -> None:
    """Drop a piece of text: for callers that only want the whole completion."""


def with_system(system: str, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Put a worker's own system text before the messages.

    Servers and chat templates may refuse two system messages, so one takes both texts.
    """
    if not system:
        return messages
    if messages and messages[0].role in ("system", "developer") and not messages[0].parts:
        first = messages[0]
        return (replace(first, content=f"{system}\n\n{first.content}"), *messages[1:])
    return (Message("system", system), *messages)


def identity_of(kind: str, *, sampling: Sampling = Sampling(), **parts: Any) -> str:
    """Write what decides a worker's completions as one line of JSON; what is unset is left out."""
    chosen = {name: value for name, value in asdict(sampling).items() if value not in (None, ())}
    told = {name: value for name, value in {"sampling": chosen, **parts}.items() if value}
    return json.dumps({"kind": kind, **told}, sort_keys=True, default=str)


@runtime_checkable
class Worker(Protocol):
    """One model of the pool.

    A worker is entered (``async with``) before its first call and left after its last; entering
    twice, also from concurrent tasks or other event loops, must be harmless.
    """

    @property
    def name(self) -> str:
        """Its name in the pool."""

    @property
    def card(self) -> str:
        """What it is good at, for people and, if asked for, for the Conductor; may be empty."""

    @property
    def tags(self) -> tuple[str, ...]:
        """Words to choose or exclude workers by."""

    @property
    def constrains(self) -> bool:
        """Whether it honours ``Call.grammar``."""

    @property
    def identity(self) -> str:
        """What decides its completions beside the call, without secrets.

        That is its kind, address, model, settings and system text. Two workers of equal identity
        may stand in for each other in a cache.
        """

    async def complete(self, call: Call, on_text: OnText = ignore) -> Completion:
        """Answer a call; the pieces given to ``on_text`` add up to the completion's text.

        Raises:
            WorkerError: If there is no completion.
        """

    async def check(self) -> Health:
        """Find out without generating anything whether the worker can be used."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc_info: object) -> None: ...


WorkerFunction = Callable[[Sequence[Message]], Awaitable[str | Completion]]


class FunctionWorker:
    """A plain async function as a worker: your own tool, a database, or a test.

    The function gets the messages and returns the text (or a Completion). What it raises becomes a
    failed step, not a crash.
    """

    constrains = False

    def __init__(
        self, name: str, function: WorkerFunction, *, card: str = "", tags: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.card = card
        self.tags = tuple(tags)
        self._function = function

    @property
    def identity(self) -> str:
        """Its name and where the function is defined: what the function does is not known."""
        function = self._function
        known = function if hasattr(function, "__qualname__") else type(function)
        defined = f"{known.__module__}.{known.__qualname__}"
        return identity_of("function", name=self.name, function=defined)

    async def complete(self, call: Call, on_text: OnText = ignore) -> Completion:
        """Await the function; its whole text is one piece."""
        try:
            answer = await self._function(call.messages)
        except WorkerError:
            raise
        except Exception as error:  # the boundary to the user's own code
            told = mended(f"{type(error).__name__}: {error}")
            raise WorkerError(FailureKind.INTERNAL, f"{self.name} raised {told}") from error
        match answer:
            case str():
                completion = Completion(answer)
            case Completion():
                completion = answer
            case _:
                raise WorkerError(
                    FailureKind.INTERNAL,
                    f"{self.name} returned {type(answer).__name__}, not a text or Completion",
                )
        on_text(completion.text)
        return completion

    async def check(self) -> Health:
        """A function is always there."""
        return Health(True, "a Python function")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        pass


class ConductorWorker:
    """The Conductor itself as a worker: its step is a run of its own, inside the run of the plan.

    It never answers a call: the engine plans and carries out instead, with the pool and the decider
    of the run at hand, as deep as the run's budget allows.
    """

    constrains = False

    def __init__(
        self, name: str = "conductor", *, card: str = "", tags: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.card = card or "plans its part and has it done by the others"
        self.tags = tuple(tags)

    @property
    def identity(self) -> str:
        """The Conductor has none of its own: what it answers depends on the whole pool."""
        return f"conductor {self.name}"

    async def complete(self, call: Call, on_text: OnText = ignore) -> Completion:
        """Refuse: there is nothing to plan with outside a run.

        Raises:
            WorkerError: Always.
        """
        told = f"{self.name} is the Conductor itself and works as a step of a plan only"
        raise WorkerError(FailureKind.REJECTED, told)

    async def check(self) -> Health:
        """Ready as soon as the others are."""
        return Health(True, "the Conductor itself: a run inside a step")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        pass
