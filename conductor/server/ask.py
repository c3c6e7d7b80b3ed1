"""What a request asks, whichever API it came by: one value; and the table of all parameters.

Nothing is silently ignored. Each parameter has a fate in :data:`CHAT` or :data:`RESPONSES`: it is
honoured here, passed to the worker that gives the answer, refused with a 400 that names it, or
without effect, which the header ``x-conductor-ignored`` tells. So it does of fields that are in no
table.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any

from runtime import Call, Message, Sampling, Tool, ToolSteps, mended

from .body import Fields
from .json_form import check_schema
from .refusals import Refusal, bad

MOST_MESSAGES = 2048
MOST_CHOICES = 8
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


class Fate(StrEnum):
    """What becomes of a parameter."""

    HONOURED = "honoured"
    PASSED = "passed to the worker that gives the answer"
    REFUSED = "refused"
    NOTED = "without effect"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A row of the table."""

    name: str
    fate: Fate
    remark: str = ""
    """What is done with it, or what to do instead."""
    unless: tuple[Any, ...] = ()
    """Values that say nothing: they are accepted even of what is refused."""


_H, _P, _R, _N = Fate.HONOURED, Fate.PASSED, Fate.REFUSED, Fate.NOTED
_ONLY_TEXT = "answers are text"
_PAID = "is about the accounting of a hosted service"
_PARTS = "of what is no text in them, see Models"
_CACHE = "workers decide on their caches by themselves"

_BOTH = (
    Parameter("model", _H, "conductor, trinity, worker/NAME, or one of these with @HASH"),
    Parameter("stream", _H, "server-sent events"),
    Parameter("temperature", _P, "0 to 2"),
    Parameter("top_p", _P, "0 to 1"),
    Parameter(
        "tools",
        _P,
        "functions and custom tools, also of a namespace; those that servers run have no effect",
    ),
    Parameter("tool_choice", _P),
    Parameter("parallel_tool_calls", _P),
    Parameter("service_tier", _N, f"{_PAID}; auto and default say nothing", ("auto", "default")),
    Parameter("moderation", _N, _PAID),
    Parameter("prompt_cache_key", _N, _CACHE),
    Parameter("prompt_cache_options", _N, _CACHE),
    Parameter("prompt_cache_retention", _N, _CACHE),
    Parameter("safety_identifier", _N, _PAID),
    Parameter("user", _N, _PAID),
    Parameter("conductor", _H, "who may work, what it may take, what is told; see below"),
)
CHAT = (
    *_BOTH,
    Parameter("messages", _H, f"at most {MOST_MESSAGES}; {_PARTS}"),
    Parameter("audio", _R, _ONLY_TEXT),
    Parameter("frequency_penalty", _P, "-2 to 2; refused by models in this process"),
    Parameter("function_call", _R, "write tool_choice"),
    Parameter("functions", _R, "write tools"),
    Parameter("logit_bias", _P, "refused by models in this process"),
    Parameter("logprobs", _R, "workers are not asked for probabilities", (False,)),
    Parameter("max_completion_tokens", _P, "of the last step"),
    Parameter("max_tokens", _P, "the older name of max_completion_tokens"),
    Parameter("metadata", _N, _PAID),
    Parameter("modalities", _R, _ONLY_TEXT, (["text"],)),
    Parameter("n", _H, f"1 to {MOST_CHOICES}: the last step is done so often"),
    Parameter("prediction", _P, "refused by models in this process"),
    Parameter("presence_penalty", _P, "-2 to 2; refused by models in this process"),
    Parameter("reasoning_effort", _H, "length and rounds of plans; passed on to one worker"),
    Parameter("response_format", _H, "checked; a worker is told once what is wrong"),
    Parameter("seed", _P, "also to the other steps and the Conductor model; recorded"),
    Parameter("stop", _P, "a string or up to four"),
    Parameter("store", _N, "the server's journal keeps all runs, or none"),
    Parameter("stream_options", _H, "include_usage"),
    Parameter("top_logprobs", _R, "workers are not asked for probabilities", (0,)),
    Parameter("verbosity", _P, "refused by models in this process"),
    Parameter("web_search_options", _R, "nothing is searched here; give a tool that does"),
)
RESPONSES = (
    *_BOTH,
    Parameter("access_programs", _N, _PAID),
    Parameter("background", _R, "ask with stream, and keep the connection", (False,)),
    Parameter("background_options", _R, "ask with stream, and keep the connection"),
    Parameter("context_management", _R, "nothing is left out of a conversation here", ([],)),
    Parameter("conversation", _R, "write previous_response_id"),
    Parameter("image", _R, _ONLY_TEXT),
    Parameter("include", _N, "there is nothing more to include"),
    Parameter("input", _H, f"a text, or at most {MOST_MESSAGES} items; {_PARTS}"),
    Parameter("instructions", _H, "the first system message"),
    Parameter("max_output_tokens", _P, "of the last step"),
    Parameter("max_tool_calls", _R, "it bounds tools that run on a server; none do here"),
    Parameter("metadata", _H, "given back"),
    Parameter("previous_response_id", _H, "needs a journal"),
    Parameter("prompt", _R, "there are no stored prompts here; write instructions"),
    Parameter("reasoning", _H, "effort: length and rounds of plans; summary has no effect"),
    Parameter("store", _N, "the server's journal keeps all runs, or none"),
    Parameter("stream_options", _N, "nothing is padded here"),
    Parameter("text", _H, "format is checked; verbosity is passed to a server"),
    Parameter("top_logprobs", _R, "workers are not asked for probabilities", (0,)),
    Parameter("truncation", _R, "shorten the input yourself", ("disabled",)),
)


@dataclass(frozen=True, slots=True)
class Wishes:
    """The ``conductor`` object of a request."""

    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    without_tags: tuple[str, ...] = ()
    dollars: Decimal | None = None
    tokens: int | None = None
    calls: int | None = None
    deadline: float | None = None
    """Seconds."""
    rounds: int | None = None
    steps: int | None = None
    """Longest plan."""
    dry_run: bool = False
    """Plan and estimate, and go no further."""
    progress: bool = False
    """Tell in the stream what goes on."""
    tools: ToolSteps = "last"
    """Which steps may use the caller's tools: last or all."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, read."""

    model: str
    call: Call
    wishes: Wishes = Wishes()
    stream: bool = False
    include_usage: bool = False
    n: int = 1
    effort: str | None = None
    schema: Mapping[str, Any] | None = None
    """What the answer is to be, if it is to be JSON."""
    noted: tuple[str, ...] = ()
    """Parameters without effect."""
    previous: str = ""
    """Id of the run whose conversation goes on."""
    free: frozenset[str] = frozenset()
    """Names of tools whose input is free text and no JSON: workers know them as functions with one
    argument, ``input``, since few servers know any other kind."""
    spaces: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Namespace and name of tools that workers know by one name made of both."""
    echo: Mapping[str, Any] = field(default_factory=dict)
    """What a reply gives back."""


CHAT_BY_NAME = {row.name: row for row in CHAT}
RESPONSES_BY_NAME = {row.name: row for row in RESPONSES}


def noted(given: Mapping[str, Any], rows: Mapping[str, Parameter]) -> tuple[str, ...]:
    """Refuse what is refused; name what is without effect.

    Raises:
        Refusal: Naming the parameter.
    """
    found: list[str] = []
    for name, value in given.items():
        row = rows.get(name)
        if value is None or (row is not None and value in row.unless):
            continue
        if row is None or row.fate is Fate.NOTED:
            found.append(name)
        elif row.fate is Fate.REFUSED:
            told = f"{name} can't be had here: {row.remark}"
            raise Refusal(400, told, param=name, code="unsupported_parameter")
    return tuple(found)


def wishes(fields: Fields) -> Wishes:
    """Read the ``conductor`` object.

    Raises:
        Refusal: If it says something unknown.
    """
    said = fields.object("conductor")
    if said is None:
        return Wishes()
    said.known(*_WISHES)
    dollars = said.number("max_dollars", 0, 1e9)
    return Wishes(
        only=said.texts("only") or (),
        without=said.texts("without") or (),
        tags=said.texts("tags") or (),
        without_tags=said.texts("without_tags") or (),
        dollars=None if dollars is None else Decimal(str(dollars)),
        tokens=said.whole("max_tokens", 1, 10**12),
        calls=said.whole("max_calls", 1, 10**6),
        deadline=said.number("deadline", 0.001, 1e6),
        rounds=said.whole("rounds", 1, 10),
        steps=said.whole("steps", 1, 16),
        dry_run=bool(said.flag("dry_run")),
        progress=bool(said.flag("progress")),
        tools="all" if said.one_of("tools", "last", "all") == "all" else "last",
    )


_WISHES = (
    "only",
    "without",
    "tags",
    "without_tags",
    "max_dollars",
    "max_tokens",
    "max_calls",
    "deadline",
    "rounds",
    "steps",
    "dry_run",
    "progress",
    "tools",
)


def sampling(fields: Fields, most_tokens: int | None, *, chat: bool) -> Sampling:
    """Read how to decode."""
    if most_tokens is None and _DECODING.isdisjoint(fields.values):
        return _AS_USUAL
    return Sampling(
        temperature=fields.number("temperature", 0, 2),
        top_p=fields.number("top_p", 0, 1),
        max_tokens=most_tokens,
        seed=fields.whole("seed", -(2**63), 2**63 - 1) if chat else None,
        stop=_stop(fields) if chat else (),
        frequency_penalty=fields.number("frequency_penalty", -2, 2) if chat else None,
        presence_penalty=fields.number("presence_penalty", -2, 2) if chat else None,
    )


_DECODING = frozenset(
    {"temperature", "top_p", "seed", "stop", "frequency_penalty", "presence_penalty"}
)
_AS_USUAL = Sampling()


def _stop(fields: Fields) -> tuple[str, ...]:
    if isinstance(fields.values.get("stop"), str):
        stops: tuple[str, ...] = (fields.values["stop"],)
    else:
        stops = fields.texts("stop") or ()
    if len(stops) > 4 or "" in stops:
        raise bad("stop must be a text or up to four, none empty", "stop")
    return tuple(map(mended, stops))


def response_format(form: Fields | None) -> tuple[str, Mapping[str, Any] | None]:
    """Read a response format in the form of chat completions.

    Returns:
        Its JSON for the worker, and the schema that the answer is held against, if there is one.

    Raises:
        Refusal: If it is of an unknown type, or its schema can't be checked.
    """
    if form is None:
        return "", None
    kind = form.needed("type", form.one_of("type", "text", "json_object", "json_schema"))
    if kind == "text":
        return "", None
    if kind == "json_object":
        return json.dumps({"type": kind}), {"type": "object"}
    inner = form.needed("json_schema", form.object("json_schema"))
    inner.needed("name", inner.text("name"))
    schema = inner.values.get("schema", True)
    check_schema(schema, inner.at("schema"))
    schema = {} if schema is True else schema
    told = {**inner.values, "schema": schema}
    return json.dumps({"type": kind, "json_schema": told}), schema


@dataclass(slots=True)
class Declared:
    """The tools of a request, read."""

    tools: list[Tool] = field(default_factory=list)
    free: set[str] = field(default_factory=set)
    """As :attr:`Ask.free`."""
    spaces: dict[str, tuple[str, str]] = field(default_factory=dict)
    """As :attr:`Ask.spaces`."""
    left_out: list[str] = field(default_factory=list)

    def custom(self, name: str, about: str) -> None:
        """Add one that takes free text, as a function."""
        self.free.add(name)
        self.tools.append(Tool(name, mended(about), _FREE))

    def function(self, declared: Fields, name: str) -> None:
        """Add a function, by a name that may be another than it was declared with."""
        values = {key: value for key, value in declared.values.items() if key != "type"}
        parameters = declared.object("parameters")
        plain = values.keys() <= {"name", "description", "parameters"}
        raw = None if plain else {"type": "function", "function": {**values, "name": name}}
        about = declared.text("description") or ""
        self.tools.append(Tool(name, about, parameters.values if parameters else None, raw))


def tools(declared: Iterable[Fields]) -> Declared:
    """Read the tools of a chat completions request.

    Raises:
        Refusal: If one is broken.
    """
    read = Declared()
    for each in declared:
        kind = each.needed("type", each.text("type"))
        inner = each.object("function") or each
        name = inner.text("name")
        if kind == "function":
            read.function(inner, inner.needed("name", name))
        else:
            read.tools.append(Tool(name or kind, raw=each.values))
    return read


def flat_tools(declared: Iterable[Fields]) -> Declared:
    """Read the tools of a responses request, which have no object ``function``.

    Workers know functions only: custom tools become such, and so do those of a namespace, each by
    the names of both. Those that run on a server are left out.

    Raises:
        Refusal: If one is broken.
    """
    read = Declared()
    for each in declared:
        if each.text("type") != "namespace":
            _flat_tool(read, each, "")
            continue
        space = each.needed("name", each.text("name"))
        for inner in each.objects("tools") or ():
            _flat_tool(read, inner, space)
    return read


def _flat_tool(read: Declared, declared: Fields, space: str) -> None:
    kind = declared.needed("type", declared.text("type"))
    if kind not in ("function", "custom"):
        read.left_out.append(f"{declared.at('type')} {mended(kind)[:40]}")
        return
    own = declared.needed("name", declared.text("name"))
    name = spaced(space, own)
    if space:
        read.spaces[name] = (space, own)
    if kind == "custom":
        read.custom(name, declared.text("description") or "")
    else:
        read.function(declared, name)


def spaced(space: str | None, name: str) -> str:
    """The name by which workers know a tool of a namespace."""
    return f"{space}__{name}" if space else name


_FREE = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}


def content(value: Any, where: str, kinds: Mapping[str, str]) -> tuple[str, str]:
    """Read the content of a message.

    Args:
        value: A text, a list of parts, or null.
        where: Its place in the request.
        kinds: Types of parts that are text, and where they hold it.

    Returns:
        The text; and the parts as JSON, if any of them is no text.

    Raises:
        Refusal: If it is neither.
    """
    if value is None:
        return "", ""
    if isinstance(value, str):
        return mended(value), ""
    if not isinstance(value, list):
        raise bad(f"{where} must be a text or a list of parts", where)
    texts: list[str] = []
    other = False
    for at, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            raise bad(f"{where}[{at}] must be an object with a type", where)
        if kind in kinds:
            text = part.get(kinds[kind])
            if not isinstance(text, str):
                raise bad(f"{where}[{at}].{kinds[kind]} must be a text", where)
            texts.append(text)
        else:
            other = True
            texts.append(f"[{mended(kind)[:40]}]")
    joined = mended("\n".join(texts))
    return joined, json.dumps(value) if other else ""


def is_spoken(messages: Iterable[Message]) -> bool:
    """Whether anything is said at all."""
    return any(each.content.strip() or each.tool_calls for each in messages)
