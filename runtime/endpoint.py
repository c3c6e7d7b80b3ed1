"""A worker behind HTTP: any server with the OpenAI-compatible ``/chat/completions``.

Everything the server sends is foreign: it is size-capped, checked for shape, and quoted in messages
only after keys are taken out. Whatever goes wrong becomes a WorkerError by the tables of this file
and nowhere else:

- ``_STATUS``: what an HTTP status means,
- ``_CODES``: what an ``error`` object in a body or stream means,
- ``exception_table()``: what an exception of httpx or aiohttp means.
"""

from __future__ import annotations

import json
import math
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from email.utils import parsedate_to_datetime
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Literal, NoReturn, Self, TypeGuard, TypeVar
from urllib.parse import SplitResult, parse_qsl, quote, urlsplit, urlunsplit

import anyio
from pydantic_core import from_json

from .connections import CappedBody, Client, HttpClient, Reply, trace_headers
from .errors import FailureKind, PoolError, WorkerError
from .worker import (
    Call,
    Completion,
    FinishReason,
    Health,
    Message,
    OnText,
    Sampling,
    ToolCall,
    Usage,
    identity_of,
    ignore,
    with_system,
)

T = TypeVar("T")

CHECK_TIMEOUT_S = 5.0
BODY_LIMIT = 32 * 2**20
"""Most bytes of one completion, with everything round it."""
ERROR_LIMIT = 2**20
"""Most bytes that are read of an answer that is no completion."""

_DRAIN_S = 0.25  # for the end of the body after [DONE], so that the connection can be used again
_TAIL_S = 2.0  # for usage and [DONE] after the finish reason; the completion itself is whole
_REFUSAL_S = 0.5  # for the body of an error; its status and headers have told the outcome
_MOST_TOKENS = 10**9  # more than any model reads or writes; a larger count is nonsense
_QUOTED = 300  # longest quotation of a server in a message


# -- the worker -------------------------------------------------------------------------------


class Endpoint:
    """A model behind an OpenAI-compatible server.

    Args:
        name: Its name in the pool.
        url: Base address, usually ending in /v1; ``/chat/completions`` is put after its path.
        model: The server's name of the model.
        key: API key; sent as ``Authorization: Bearer`` and found nowhere else.
        headers: Further headers. Their values are kept out of messages, as the key is.
        sampling: For what a call leaves open.
        system: Put before every call, or before its system message.
        timeout_s: Longest silence of the connection, in seconds.
        connect_s: Longest wait for a connection: name look-up, connecting and TLS together.
        token_limit_field: Name of the token limit in the request.
        extra: Further fields of the request body.
        card: What it is good at.
        tags: Words to choose it by.
        client: Connections to share; its own by default.

    Raises:
        PoolError: If the address or the key can't be used, or the key would go over the network in
            the clear.
    """

    constrains = False

    def __init__(
        self,
        name: str,
        *,
        url: str,
        model: str,
        key: str = "",
        headers: Mapping[str, str] | None = None,
        sampling: Sampling = Sampling(),
        system: str = "",
        timeout_s: float = 300.0,
        connect_s: float = 10.0,
        token_limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",  # noqa: S107 - a field's name
        extra: Mapping[str, Any] | None = None,
        card: str = "",
        tags: Sequence[str] = (),
        client: HttpClient | None = None,
    ) -> None:
        self.name = name
        self.model = model
        self.card = card
        self.tags = tuple(tags)
        self._url = _checked_url(name, url)
        self.host = self._url.netloc
        headers = dict(headers or {})
        key = key.strip()
        _check_secrets(name, self._url, key, headers)
        self._given_headers = tuple(headers)
        self._headers = {"User-Agent": "conductor", **headers, "Accept-Encoding": "identity"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._post_headers = {
            **self._headers,
            "Content-Type": "application/json",
            "Accept": "text/event-stream",
        }
        self._completions = self._address("/chat/completions")
        self._secrets = _forms_of(key, headers.values())
        self._sampling = sampling
        self._system = system
        self._timeout_s = timeout_s
        self._connect_s = connect_s
        self._token_limit_field = token_limit_field
        self._extra = dict(extra or {})
        self._client = client or HttpClient()
        self._asks_usage = True

    def __repr__(self) -> str:
        return f"Endpoint({self.name!r}, url={self._address('')!r}, model={self.model!r})"

    @property
    def identity(self) -> str:
        """Address, model, settings and the names of headers, as JSON; never key or values."""
        return identity_of(
            "openai",
            url=self._address(""),
            model=self.model,
            sampling=self._sampling,
            system=self._system,
            token_limit_field=self._token_limit_field,
            extra=self._extra,
            headers=sorted(name.lower() for name in self._given_headers),
        )

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._client.__aexit__(*exc_info)

    async def complete(self, call: Call, on_text: OnText = ignore) -> Completion:
        """Send the call and stream the answer."""
        async with self._client.opened() as client:
            ask_usage = self._asks_usage
            try:
                return await self._attempt(client, call, on_text, ask_usage=ask_usage)
            except _NoStreamOptions:
                pass
            completion = await self._attempt(client, call, on_text, ask_usage=False)
            self._asks_usage = False  # known only now: an error may name what it does not mind
            return completion

    async def check(self) -> Health:
        """Ask the server for its models; nothing is generated."""
        try:
            status, payload = await self._get_models(CHECK_TIMEOUT_S)
        except WorkerError as error:
            return Health(False, error.failure.message)
        if status in (401, 403):
            if self._url.hostname in _LISTS_WITH_OTHER_KEYS:
                detail = "reachable; it lists models to its own API only, so nothing more is known"
                return Health(True, detail)
            told = self._told(payload)
            return Health(False, f"{self.host} rejected the key: {told}; check the key")
        if status in (404, 405):
            return Health(True, f"reachable, but it lists no models, so {self.model} is unchecked")
        if status != 200:
            return Health(False, self._status_error(status, payload, {}).failure.message)
        models = _model_ids(payload)
        if models is None:
            detail = f"{self.host} answers, but not as an OpenAI-compatible API; check url"
            return Health(False, detail)
        if not models:
            return Health(True, f"reachable, but it lists no models, so {self.model} is unchecked")
        if not any(_same_model(self.model, each) for each in models):
            known = self._clean(_some_of(models, self.model))
            detail = f"reachable, but it does not list model {self.model}; it has: {known}"
            return Health(False, detail)
        return Health(True, f"reachable, model {self.model} is there")

    async def models(self, timeout_s: float = CHECK_TIMEOUT_S) -> tuple[str, ...]:
        """List the models of the server.

        Args:
            timeout_s: For the whole of it.

        Raises:
            WorkerError: If it doesn't tell.
        """
        status, payload = await self._get_models(timeout_s)
        if status != 200:
            raise self._status_error(status, payload, {})
        models = _model_ids(payload)
        if models is None:
            self._fail(FailureKind.BAD_RESPONSE, "its answer is no list of models", "check url")
        return models

    # -- requests

    def _address(self, path: str) -> str:
        return urlunsplit(self._url._replace(path=self._url.path + path))

    def _body(self, call: Call, *, ask_usage: bool) -> dict[str, Any]:
        sampling = call.sampling.over(self._sampling)
        chosen = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            self._token_limit_field: sampling.max_tokens,
            "seed": sampling.seed,
            "stop": list(sampling.stop) or None,
            "tools": [each.declaration for each in call.tools] or None,
            "tool_choice": call.tool_choice,
            "parallel_tool_calls": call.parallel_tool_calls,
            "frequency_penalty": sampling.frequency_penalty,
            "presence_penalty": sampling.presence_penalty,
            "response_format": json.loads(call.response_format) if call.response_format else None,
        }
        return {
            "model": self.model,
            "messages": list(map(_message, with_system(self._system, call.messages))),
            **{field: value for field, value in chosen.items() if value is not None},
            **json.loads(call.extra or "{}"),
            **self._extra,
            "stream": True,
            **({"stream_options": {"include_usage": True}} if ask_usage else {}),
        }

    async def _attempt(
        self, client: Client, call: Call, on_text: OnText, *, ask_usage: bool
    ) -> Completion:
        answer = _Answer(self, on_text)
        # json escapes all that is not ASCII, so that lone surrogates of a broken text can be sent
        content = json.dumps(self._body(call, ask_usage=ask_usage)).encode()

        async def read(reply: Reply) -> None:
            await self._read_answer(reply, answer, ask_usage)

        failure: WorkerError | None = None
        try:
            await self._sent(
                client,
                "POST",
                self._completions,
                {**self._post_headers, **trace_headers.get()},
                self._timeout_s,
                read,
                content,
            )
        except WorkerError as error:
            failure = error
        if failure is not None and not answer.finished:
            failure.__context__ = None  # what a library raised holds the request, with its key
            raise failure
        return answer.completion()  # whole after its finish reason, whatever came then

    async def _get_models(self, timeout_s: float) -> tuple[int, Any]:
        async def read(reply: Reply) -> tuple[int, Any]:
            limit = BODY_LIMIT if reply.status == 200 else ERROR_LIMIT
            text, _ = await self._read_body(reply, limit)
            return reply.status, _json_or_text(text)

        with anyio.move_on_after(timeout_s):
            async with self._client.opened() as client:
                url = self._address("/models")
                return await self._sent(client, "GET", url, self._headers, timeout_s, read)
        self._fail(FailureKind.TIMEOUT, f"no answer within {timeout_s:g} s", "is it overloaded?")

    async def _sent(
        self,
        client: Client,
        method: str,
        url: str,
        headers: Mapping[str, str],
        timeout_s: float,
        read: Callable[[Reply], Awaitable[T]],
        content: bytes | None = None,
    ) -> T:
        """Send a request and read the reply; what HTTP libraries raise leaves as a WorkerError.

        The WorkerError has no cause: the exceptions of HTTP libraries hold the request with its
        key, and whatever logs them with their attributes would show it.
        """
        told: WorkerError
        try:
            reply = await client.send(
                method,
                url,
                headers,
                content,
                silence_s=timeout_s,
                connect_s=self._connect_s,
            )
            try:
                return await read(reply)
            finally:
                await reply.aclose()
        except tuple(exception_table()) as error:
            told = self._exception_error(error)
        raise told

    async def _read_answer(self, response: Reply, answer: _Answer, ask_usage: bool) -> None:
        status = response.status
        if status != 200:
            text, _ = await self._read_body(response, ERROR_LIMIT, _REFUSAL_S)
            payload = _json_or_text(text)
            error = self._status_error(status, payload, response.headers)
            if ask_usage and status in (400, 422) and "stream_options" in text:
                raise _NoStreamOptions(error.failure.kind, error.failure.message)
            raise error
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "text/event-stream":
            await self._read_events(response, answer)
            return
        is_json = not kind or "json" in kind
        text, whole = await self._read_body(response, BODY_LIMIT if is_json else ERROR_LIMIT)
        if not text.lstrip().startswith("{"):
            what = f"it answered with {kind or 'text'} instead of a completion"
            self._fail(FailureKind.BAD_RESPONSE, what, "check url (it usually ends in /v1)")
        if not whole:
            self._fail(FailureKind.BAD_RESPONSE, *_TOO_LONG)
        answer.take_json(text)

    async def _read_events(self, response: Reply, answer: _Answer) -> None:
        """Read server-sent events until the end, [DONE], a failure or the cap.

        The loop is never left early. HTTP libraries nest async generators, and one that is dropped
        half-way is finished by the garbage collector, some time, in some task; trio warns of it.
        Cancelling the next read instead sends an exception up from the innermost, which closes them
        in order.
        """
        failure: Exception | None = None
        events = _Events()
        with anyio.CancelScope() as scope:
            stream = self._capped(response, BODY_LIMIT, scope)
            async for piece in stream:
                if failure is not None or stream.over:
                    continue
                try:
                    answer.take_events(events.take(piece))
                except Exception as error:  # on_text is anybody's code; raised again below
                    failure = error
                    scope.cancel()
                    continue
                if answer.ended:
                    scope.deadline = min(scope.deadline, anyio.current_time() + _DRAIN_S)
                elif answer.finished:
                    scope.deadline = anyio.current_time() + _TAIL_S
        if failure is not None:
            raise failure
        if stream.over:
            self._fail(FailureKind.BAD_RESPONSE, *_TOO_LONG)

    async def _read_body(
        self, response: Reply, limit: int, seconds: float = math.inf
    ) -> tuple[str, bool]:
        """Read at most ``limit`` bytes for so many seconds; also tell whether that was all."""
        pieces: list[bytes] = []
        with anyio.move_on_after(seconds) as scope:
            stream = self._capped(response, limit, scope)
            async for piece in stream:
                pieces.append(piece)
        whole = not stream.over and not scope.cancelled_caught
        return b"".join(pieces).decode("utf-8-sig", "replace"), whole

    def _capped(self, response: Reply, limit: int, scope: anyio.CancelScope) -> CappedBody:
        """The body of a response: its first ``limit`` bytes, then the scope is cancelled."""
        coding = response.headers.get("content-encoding", "identity").lower()
        if coding != "identity":  # a few bytes of it could unpack to gigabytes
            what = f"it sent a body in {coding[:20]}, though asked for a plain one"
            self._fail(FailureKind.BAD_RESPONSE, what, "switch compression off in the proxy")
        return CappedBody(response.body, limit, scope)

    # -- failures

    def _clean(self, text: str) -> str:
        """Make a foreign text fit for a message: without secrets, one line, short."""
        for secret in self._secrets:
            text = text.replace(secret, "[key]")
        text = "".join(char if char.isprintable() else " " for char in text[: 8 * _QUOTED])
        text = " ".join(text.split())
        text = re.sub(r"[\w-]*\*{3,}[\w*-]*", "[key]", text[: 2 * _QUOTED])  # "sk-ab***yz"
        return text if len(text) <= _QUOTED else text[:_QUOTED] + "..."

    def _error(
        self, kind: FailureKind, what: str, remedy: str = "", *, retry_after_s: float | None = None
    ) -> WorkerError:
        message = f"{self.name} ({self.host}): {self._clean(what)}"
        if remedy:
            message += f"; {remedy}"
        return WorkerError(kind, message, retry_after_s=retry_after_s)

    def _fail(self, kind: FailureKind, what: str, remedy: str = "") -> NoReturn:
        raise self._error(kind, what, remedy)

    def _told(self, payload: Any) -> str:
        """The server's own words in an error body."""
        return self._clean(_error_in(payload)[0] or "(no message)")

    def _status_error(self, status: int, payload: Any, headers: Mapping[str, str]) -> WorkerError:
        if 300 <= status < 400:
            what = f"it redirects ({status}), and redirects are not followed"
            location = urlsplit(headers.get("location", "")).netloc.rpartition("@")[2]
            remedy = f"correct url{f' (it points to {self._clean(location)})' if location else ''}"
            return self._error(FailureKind.NOT_FOUND, what, remedy)
        message, code = _error_in(payload)
        kind, meaning, remedy = _by_status(status)
        row = _CODES.get(code)
        if row is not None and row[0] is FailureKind.UNAUTHORIZED:
            kind, meaning, remedy = row  # out of quota comes as 429, but waiting is vain
        what = f"{meaning} ({status}): {message}" if message else f"{meaning} ({status})"
        retry_after_s = _retry_after_s(headers)
        return self._error(kind, what, remedy.format(model=self.model), retry_after_s=retry_after_s)

    def _object_error(self, payload: Any) -> WorkerError:
        """Map an ``error`` object that came with status 200."""
        message, code = _error_in(payload)
        if code.isdecimal() and len(code) == 3 and code >= "400":
            kind, meaning, remedy = _by_status(int(code))
        else:
            unknown = (FailureKind.BAD_RESPONSE, "it broke off with an error", "")
            kind, meaning, remedy = _CODES.get(code, unknown)
        what = f"{meaning}: {message or code or 'no message'}"
        return self._error(kind, what, remedy.format(model=self.model))

    def _exception_error(self, error: Exception) -> WorkerError:
        """Map an exception of the HTTP libraries; the most specific row counts."""
        table = exception_table()
        precise = _precise(error)
        kind, what, remedy = next(table[base] for base in type(precise).__mro__ if base in table)
        detail = self._clean(str(precise))
        if kind is FailureKind.TIMEOUT:
            limit = self._connect_s if "connect" in what else self._timeout_s
            detail = f"within {limit:g} s"
        separator = " " if kind is FailureKind.TIMEOUT else ": "
        return self._error(kind, f"{what}{separator}{detail}" if detail else what, remedy)


def _precise(error: Exception) -> Exception:
    """Find the exception that tells most: to httpx a failed certificate or name look-up is a
    ConnectError like any other."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, ssl.SSLError | socket.gaierror):
            return chain
        chain = chain.__cause__ or chain.__context__
    return error


class _NoStreamOptions(WorkerError):
    """The server does not know stream_options."""


# -- bodies -----------------------------------------------------------------------------------


_MARK = "\N{BOM}".encode()


class _Events:
    """Finds the data of server-sent events in bytes, however they are cut into pieces.

    Lines end in LF, CR or CRLF, an event in an empty line; one without it at the end of the stream
    is incomplete and does not count. https://html.spec.whatwg.org/multipage/server-sent-events.html
    """

    def __init__(self) -> None:
        self._line: list[bytes] = []  # the pieces of one whose end has not come
        self._data: list[bytes] = []
        self._begun = False
        self._after_cr = False

    def take(self, piece: bytes) -> Iterator[str]:
        """Take in more bytes and give the data of each event that they complete."""
        if not piece:
            return
        after_cr, self._after_cr = self._after_cr, piece.endswith(b"\r")
        if after_cr:
            piece = piece.removeprefix(b"\n")
        if b"\r" in piece:
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = piece.split(b"\n")
        if lines:
            lines[0] = b"".join([*self._line, lines[0]])
            self._line = []
            if not self._begun:
                lines[0] = lines[0].removeprefix(_MARK)
                self._begun = True
        if rest:
            self._line.append(rest)
        for line in lines:
            if not line:
                if self._data:
                    yield b"\n".join(self._data).decode("utf-8", "replace")
                    self._data = []
            elif line.startswith(b"data"):
                name, _, value = line.partition(b":")
                if name == b"data":
                    self._data.append(value.removeprefix(b" "))


# -- messages ---------------------------------------------------------------------------------


def _message(message: Message) -> dict[str, Any]:
    """As the server reads it."""
    content = json.loads(message.parts) if message.parts else message.content
    told: dict[str, Any] = {"role": message.role, "content": content}
    if message.name:
        told["name"] = message.name
    if message.tool_calls:
        told["content"] = content or None  # as servers write such a turn themselves
        told["tool_calls"] = list(map(_tool_call, message.tool_calls))
    if message.tool_call_id:
        told["tool_call_id"] = message.tool_call_id
    return told


def _tool_call(call: ToolCall) -> dict[str, Any]:
    text = "input" if call.type == "custom" else "arguments"
    told = {"id": call.id, "type": call.type, call.type: {"name": call.name, text: call.arguments}}
    return {**(json.loads(call.extra) if call.extra else {}), **told}


@dataclass(slots=True)
class _OpenCall:
    """A tool call under way."""

    id: str = ""
    name: str = ""
    type: str = ""
    pieces: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> str:
        return "".join(self.pieces)

    @property
    def whole(self) -> bool:
        """Whether there is nothing to come."""
        return self.type == "custom" or _is_object(self.arguments or "{}")

    def take(self, piece: dict[str, Any]) -> None:
        """Take in more of it."""
        if isinstance(kind := piece.get("type"), str) and kind:
            self.type = kind
        if isinstance(given := piece.get("id"), str):
            self.id = self.id or given
        told = _called(piece)
        name = told.get("name")
        # Some servers repeat the whole name in every piece, none sends it after the arguments.
        if isinstance(name, str) and name != self.name and not self.pieces:
            self.name += name
        written = told.get("arguments", told.get("input"))
        if isinstance(written, dict):  # instead of their text
            written = json.dumps(written, ensure_ascii=False)
        if isinstance(written, str) and written:
            self.pieces.append(written)
        more = {key: each for key, each in piece.items() if key not in _OWN_FIELDS}
        self.extra.update((key, each) for key, each in more.items() if each is not None)

    def call(self) -> ToolCall:
        kind = "custom" if self.type == "custom" else "function"
        arguments = self.arguments or ("" if kind == "custom" else "{}")
        extra = json.dumps(self.extra) if self.extra else ""
        return ToolCall(self.id, self.name, arguments, kind, extra)


_OWN_FIELDS = frozenset({"index", "id", "type", "function", "custom", "name", "arguments"})


def _called(piece: dict[str, Any]) -> dict[str, Any]:
    """Name and arguments in a piece of a tool call, wherever the server puts them."""
    inner = piece.get("function") or piece.get("custom")
    return inner if isinstance(inner, dict) else piece


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


class _OpenCalls:
    """The tool calls of an answer under way, in order of their first pieces.

    Pieces belong together by their index. What servers do besides: no index at all; index 0 for
    several calls, told apart by their ids only, or by nothing but a new name after whole arguments;
    no ids; the same id in every piece; arguments as an object; the older field ``function_call``.
    """

    def __init__(self) -> None:
        self._calls: list[_OpenCall] = []
        self._by_index: dict[int, _OpenCall] = {}

    def take(self, part: Any) -> None:
        """Take in a delta or message."""
        if not isinstance(part, dict):
            return
        pieces = part.get("tool_calls")
        if not pieces and isinstance(older := part.get("function_call"), dict):
            pieces = [older]
        whole = len(pieces) > 1 if isinstance(pieces, list) else False
        for at, piece in enumerate(pieces if isinstance(pieces, list) else ()):
            if isinstance(piece, dict):
                index = piece.get("index")
                self._of(index if type(index) is int else (at if whole else 0), piece).take(piece)

    def _of(self, index: int, piece: dict[str, Any]) -> _OpenCall:
        call = self._by_index.get(index)
        if call is None or _begins_another(call, piece):
            call = self._by_index[index] = _OpenCall()
            self._calls.append(call)
        return call

    def calls(self) -> tuple[ToolCall, ...]:
        return tuple(each.call() for each in self._calls)

    @property
    def broken(self) -> bool:
        """Whether arguments are cut off."""
        return any(not each.whole for each in self._calls)


def _begins_another(call: _OpenCall, piece: dict[str, Any]) -> bool:
    given = piece.get("id")
    if given and call.id:
        return bool(given != call.id)
    return bool(_called(piece).get("name")) and bool(call.pieces) and call.whole


# -- answers ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Answer:
    """A completion under way. Shapes are checked, never trusted."""

    endpoint: Endpoint
    on_text: OnText
    pieces: list[str] = field(default_factory=list)
    untold: list[str] = field(default_factory=list)
    at_it: bool = False
    """Whether it shows work without text."""
    calls: _OpenCalls = field(default_factory=_OpenCalls)
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    model: str = ""
    ended: bool = False
    """Whether [DONE] has come."""

    @property
    def finished(self) -> bool:
        """Whether the text is whole."""
        return self.ended or self.finish_reason is not None

    def completion(self) -> Completion:
        if not self.finished:
            what = f"the answer was cut off after {sum(map(len, self.pieces))} characters"
            raise self.endpoint._error(FailureKind.BAD_RESPONSE, what, "try again")
        reason = self.finish_reason or FinishReason.STOP
        model = self.endpoint._clean(self.model)
        calls = self.calls.calls()
        if calls:
            self._check(calls, reason)
            if reason is not FinishReason.CONTENT_FILTER:  # some servers say "stop"
                reason = FinishReason.TOOL_CALLS
        elif reason is FinishReason.TOOL_CALLS:  # it says so, and calls none
            reason = FinishReason.OTHER
        return Completion("".join(self.pieces), reason, self.usage, model, calls)

    def _check(self, calls: Sequence[ToolCall], reason: FinishReason) -> None:
        if reason is FinishReason.LENGTH and self.calls.broken:
            what = "the token limit cut its tool call off"
            raise self.endpoint._error(FailureKind.BAD_RESPONSE, what, "raise max_tokens")
        if not all(call.name for call in calls):
            what = "it calls a tool without a name"
            raise self.endpoint._error(FailureKind.BAD_RESPONSE, what, "try again")

    def take_events(self, events: Iterable[str]) -> None:
        """Take in the data of server-sent events that came together; their text is one piece.

        Who falls behind thereby has less to do for each of them.
        """
        try:
            for data in events:
                self._take_event(data)
        finally:
            self._tell()

    def _take_event(self, data: str) -> None:
        if not data or self.ended:
            return
        if data.strip() == "[DONE]":
            self.ended = True
            return
        self._take(self._parsed(data, "an event of its stream is not JSON"), "delta")

    def take_json(self, text: str) -> None:
        """Take in an answer that was not streamed."""
        payload = self._parsed(text, "its JSON is broken or cut off")
        self._take(payload, "message")
        self._tell()
        if not _first(payload.get("choices")):
            what = "its JSON has no choices, so it is no completion"
            raise self.endpoint._error(FailureKind.BAD_RESPONSE, what, "check url")
        self.ended = True

    def _parsed(self, text: str, otherwise: str) -> dict[str, Any]:
        try:
            payload = from_json(text)  # a third of the price, but not everything that json reads
        except ValueError:
            payload = _json_or_text(text)
        if not isinstance(payload, dict):
            raise self.endpoint._error(FailureKind.BAD_RESPONSE, otherwise, "try again")
        return payload

    def _tell(self) -> None:
        if self.untold:
            piece = "".join(self.untold)
            self.untold.clear()
            self.pieces.append(piece)
            self.on_text(piece)
        elif self.at_it:
            self.on_text("")
        self.at_it = False

    def _take(self, payload: dict[str, Any], part: str) -> None:
        if payload.get("error") or payload.get("object") == "error":
            raise self.endpoint._object_error(payload)
        if isinstance(model := payload.get("model"), str) and model:
            self.model = model
        if isinstance(usage := payload.get("usage"), dict):
            self.usage = _usage(usage) or self.usage
        choice = _first(payload.get("choices"))
        self.calls.take(choice.get(part))
        if text := _text(choice.get(part)):
            self.untold.append(text)
        elif choice and _at_it(choice):
            self.at_it = True
        if isinstance(reason := choice.get("finish_reason"), str) and reason:
            if reason == "error":
                raise self.endpoint._object_error(payload)
            self.finish_reason = _FINISH.get(reason, FinishReason.OTHER)


_FINISH = {
    "stop": FinishReason.STOP,
    "eos": FinishReason.STOP,
    "end_turn": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "model_length": FinishReason.LENGTH,
    "content_filter": FinishReason.CONTENT_FILTER,
    "tool_calls": FinishReason.TOOL_CALLS,
    "tool_use": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
}


def _first(choices: Any) -> dict[str, Any]:
    """The choice with index 0, or an empty one."""
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and not choice.get("index"):
            return choice
    return {}


def _text(part: Any) -> str:
    """The text of a delta or message; reasoning is no part of it, a refusal is."""
    if not isinstance(part, dict):
        return ""
    content = part.get("content")
    if isinstance(content, list):  # typed parts; those that are thinking have no text of ours
        texts = (each.get("text") for each in content if isinstance(each, dict))
        content = "".join(text for text in texts if isinstance(text, str))
    content = content or part.get("refusal")
    return content if isinstance(content, str) else ""


def _at_it(choice: dict[str, Any]) -> bool:
    """Whether a choice without text shows work all the same: reasoning, a tool call, the end."""
    delta = choice.get("delta")
    work = isinstance(delta, dict) and any(value for key, value in delta.items() if key != "role")
    return work or bool(choice.get("finish_reason"))


def _usage(usage: dict[str, Any]) -> Usage | None:
    """Read a server's counts; None if they can't be believed, since one is nonsense."""

    def believable(value: Any) -> TypeGuard[int]:
        return type(value) is int and 0 <= value <= _MOST_TOKENS

    counts = [usage.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")]
    if not all(map(believable, counts)):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    if cached is None:
        cached = usage.get("prompt_cache_hit_tokens")
    given, written = counts
    return Usage(given, written, min(given, cached) if believable(cached) else 0)


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


# -- what failures mean -----------------------------------------------------------------------

_Row = tuple[FailureKind, str, str]
"""Kind, what it means, and what would help."""

_TOO_LONG = (
    f"the answer is longer than {BODY_LIMIT // 2**20} MiB and was dropped",
    "set max_tokens",
)
_AGAIN = "try again later"
_STATUS: dict[int, _Row] = {
    400: (FailureKind.REJECTED, "it refused the request", ""),
    401: (FailureKind.UNAUTHORIZED, "it rejected the key", "check the key"),
    402: (FailureKind.UNAUTHORIZED, "the account has no credit", "check its billing"),
    403: (
        FailureKind.UNAUTHORIZED,
        "the key may not do this",
        "check that it may use model {model}",
    ),
    404: (FailureKind.NOT_FOUND, "not found", "check url, and that it has model {model}"),
    405: (FailureKind.NOT_FOUND, "there is no such API here", "check url"),
    408: (FailureKind.TIMEOUT, "it gave up waiting", _AGAIN),
    409: (FailureKind.OVERLOADED, "it is busy with a conflicting request", _AGAIN),
    413: (FailureKind.REJECTED, "the request is too large", "shorten it"),
    422: (FailureKind.REJECTED, "it refused the request", ""),
    425: (FailureKind.OVERLOADED, "it is not ready", _AGAIN),
    429: (FailureKind.RATE_LIMITED, "too many requests", _AGAIN),
}
_CODES: dict[str, _Row] = {
    "insufficient_quota": (FailureKind.UNAUTHORIZED, "the quota is used up", "check its billing"),
    "billing_error": (FailureKind.UNAUTHORIZED, "the account has no credit", "check its billing"),
    "invalid_api_key": _STATUS[401],
    "authentication_error": _STATUS[401],
    "permission_error": _STATUS[403],
    "not_found_error": _STATUS[404],
    "model_not_found": _STATUS[404],
    "invalid_request_error": _STATUS[400],
    "context_length_exceeded": _STATUS[413],
    "request_too_large": _STATUS[413],
    "rate_limit_error": _STATUS[429],
    "rate_limit_exceeded": _STATUS[429],
    "overloaded_error": (FailureKind.OVERLOADED, "it is overloaded", _AGAIN),
    "server_error": (FailureKind.OVERLOADED, "it failed", _AGAIN),
    "api_error": (FailureKind.OVERLOADED, "it failed", _AGAIN),
    "internal_server_error": (FailureKind.OVERLOADED, "it failed", _AGAIN),
    "timeout_error": (FailureKind.TIMEOUT, "it gave up waiting", _AGAIN),
}
_LISTS_WITH_OTHER_KEYS = frozenset({"api.anthropic.com"})  # /models wants x-api-key, not Bearer


def _by_status(status: int) -> _Row:
    if status in _STATUS:
        return _STATUS[status]
    if status >= 500:
        return FailureKind.OVERLOADED, "it failed", _AGAIN
    if status >= 400:
        return FailureKind.REJECTED, "it refused the request", ""
    return FailureKind.BAD_RESPONSE, "it answered with an unexpected status", "check url"


@cache
def exception_table() -> dict[type[Exception], _Row]:
    """What the exceptions of the HTTP libraries mean; a subclass without a row is as its base."""
    import aiohttp
    import httpx

    kind = FailureKind
    lost: _Row = (kind.UNREACHABLE, "the connection was lost", "try again")
    silent: _Row = (kind.TIMEOUT, "no answer", "raise timeout_s or try a smaller request")
    no_link: _Row = (
        kind.TIMEOUT,
        "could not connect",
        "check that the server is up, or raise connect_s",
    )
    no_server: _Row = (
        kind.UNREACHABLE,
        "nothing listens there",
        "start it or correct url",
    )
    no_http: _Row = (kind.BAD_RESPONSE, "it does not speak proper HTTP", "check url")
    bad_url: _Row = (kind.NOT_FOUND, "its address can't be used", "correct url")
    bad_tls: _Row = (
        kind.UNREACHABLE,
        "no secure connection",
        "check that url has the right scheme and the server a valid certificate",
    )
    no_name: _Row = (
        kind.UNREACHABLE,
        "its host name is not known",
        "correct url or check the network",
    )
    internal: _Row = (kind.INTERNAL, "the request could not be made", "")
    return {
        httpx.ConnectError: no_server,
        httpx.NetworkError: lost,
        httpx.ConnectTimeout: no_link,
        httpx.PoolTimeout: no_link,
        httpx.TimeoutException: silent,
        httpx.RemoteProtocolError: lost,
        httpx.ProtocolError: no_http,
        httpx.LocalProtocolError: internal,
        httpx.ProxyError: no_server,
        httpx.UnsupportedProtocol: bad_url,
        httpx.InvalidURL: bad_url,
        httpx.DecodingError: no_http,
        httpx.TooManyRedirects: bad_url,
        httpx.TransportError: lost,
        httpx.RequestError: lost,
        httpx.HTTPError: no_http,
        httpx.CookieConflict: internal,
        httpx.StreamError: lost,
        ssl.SSLError: bad_tls,
        socket.gaierror: no_name,
        OSError: lost,
        aiohttp.ClientSSLError: bad_tls,
        aiohttp.ClientConnectorDNSError: no_name,
        aiohttp.ClientConnectorError: no_server,
        aiohttp.ConnectionTimeoutError: no_link,
        aiohttp.ServerTimeoutError: silent,
        aiohttp.ClientConnectionError: lost,
        aiohttp.ClientPayloadError: lost,
        aiohttp.ClientResponseError: no_http,
        aiohttp.InvalidURL: bad_url,
        aiohttp.NonHttpUrlClientError: bad_url,
        aiohttp.ClientError: lost,
    }


def _error_in(payload: Any) -> tuple[str, str]:
    """Find message and code in an error body of whatever shape; empty where there is none."""
    if isinstance(payload, list) and payload:  # Gemini wraps its errors in a list
        payload = payload[0]
    if isinstance(payload, str):
        return ("" if payload.lstrip()[:1] == "<" else payload), ""
    if not isinstance(payload, dict):
        return "", ""
    error = payload.get("error") or payload
    if isinstance(error, str):
        return error, ""
    if not isinstance(error, dict):
        return "", ""
    message = error.get("message") or error.get("detail") or error.get("msg") or ""
    codes = [str(error[name]) for name in ("code", "type") if error.get(name)]
    known = [code for code in codes if code in _CODES or code.isdecimal()]
    code = (known or codes or [""])[0]
    return message if isinstance(message, str) else json.dumps(message), code


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, from whichever header it uses."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) / unit
        except (KeyError, ValueError):
            continue
        return max(0.0, seconds) if math.isfinite(seconds) else None
    until = _date(headers.get("retry-after"))
    if until is None:
        return None
    now = _date(headers.get("date")) or datetime.now(UTC)  # their clock, if they tell it
    return max(0.0, (until - now).total_seconds())


def _date(text: str | None) -> datetime | None:
    try:
        date = parsedate_to_datetime(text or "")
    except (TypeError, ValueError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


# -- models that a server has -----------------------------------------------------------------


def _model_ids(payload: Any) -> tuple[str, ...] | None:
    """Read the answer to ``GET /models``; None if it is none."""
    data = payload.get("data") if isinstance(payload, dict) else payload
    if not isinstance(data, list):
        return None
    ids = (each.get("id") if isinstance(each, dict) else None for each in data)
    return tuple(each for each in ids if isinstance(each, str) and each)


def _same_model(wanted: str, listed: str) -> bool:
    return listed in (wanted, f"models/{wanted}", f"{wanted}:latest")


def _some_of(models: Sequence[str], wanted: str) -> str:
    """A few models, the most similar first."""
    near = get_close_matches(wanted, models[:1000], n=3, cutoff=0.5)
    shown = [*near, *(each for each in models if each not in near)][:8]
    rest = len(models) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")


# -- addresses and secrets --------------------------------------------------------------------

_SECRET_HEADER = re.compile(r"auth|key|token|secret|cookie", re.IGNORECASE)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_KEY_PARAMETERS = frozenset({"key", "api_key", "apikey", "api-key", "token", "access_token"})


def _checked_url(name: str, url: str) -> SplitResult:
    """Check a base address; messages never show it, since it may hold a password."""

    def wrong(what: str) -> PoolError:
        return PoolError(f"workers.{name}.url: {what}")

    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise wrong("is no address; write e.g. https://api.openai.com/v1") from None
    if parts.username is not None or parts.password is not None:
        raise wrong("holds a user name or password; put the secret into key instead")
    if parts.scheme not in ("http", "https"):
        raise wrong("must begin with https:// (or http:// for a server on this machine)")
    if not host or not url.strip().isprintable() or re.search(r"[\s\\]", url.strip()):
        raise wrong("is no address; write e.g. https://api.openai.com/v1")
    if parts.fragment:
        raise wrong("has a part after #, which is never sent; take it out")
    if any(parameter.lower() in _KEY_PARAMETERS for parameter, _ in parse_qsl(parts.query)):
        raise wrong("holds a key, and addresses end up in logs; put the secret into key instead")
    address = _address_of(host)
    if host == "metadata.google.internal" or (address and address.is_link_local):
        raise wrong("is a link-local address, where clouds keep credentials and no model runs")
    return parts._replace(path=parts.path.rstrip("/").removesuffix("/chat/completions"))


def _address_of(host: str) -> IPv4Address | IPv6Address | None:
    """The IP address that a host is written as, in any of the spellings that sockets take."""
    host = host.rstrip(".").partition("%")[0]
    try:
        address = ip_address(host)
    except ValueError:
        try:
            return IPv4Address(socket.inet_aton(host))  # 2130706433, 0x7f.1, 127.1
        except (OSError, UnicodeError):
            return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _is_loopback(host: str) -> bool:
    address = _address_of(host)
    bare = host.rstrip(".").lower()
    local = bare == "localhost" or bare.endswith(".localhost")
    return address.is_loopback if address else local


def _check_secrets(name: str, url: SplitResult, key: str, headers: Mapping[str, str]) -> None:
    if not key.isascii() or not key.isprintable() or " " in key:
        what = "holds a space, a line break or something else that no key has"
        raise PoolError(f"workers.{name}.key: {what}; check the variable")
    for header, value in headers.items():
        if not _HEADER_NAME.fullmatch(header):
            raise PoolError(f"workers.{name}.headers: {header!r} can't be the name of a header")
        if not value.isascii() or not value.isprintable():
            what = "holds a line break or something else that no header can"
            raise PoolError(f"workers.{name}.headers.{header}: {what}")
    secret = key or any(_SECRET_HEADER.search(header) for header in headers)
    if secret and url.scheme == "http" and not _is_loopback(url.hostname or ""):
        what = "the key would go over the network unencrypted"
        remedy = "use https://, or reach the server through a tunnel to localhost"
        raise PoolError(f"workers.{name}.url: {what}; {remedy}")


def _forms_of(key: str, values: Iterable[str]) -> tuple[str, ...]:
    """The spellings in which a server may echo secrets, longest first.

    Short values of headers are versions, flags and the like; blotting them out would only make
    messages unreadable.
    """
    bare = {part for value in values for part in (value, value.rpartition(" ")[2])}
    bare = {value for value in bare if len(value) >= 8} | ({key} if key else set())
    spelled = bare | {quote(secret, safe="") for secret in bare}
    return tuple(sorted(spelled, key=len, reverse=True))
