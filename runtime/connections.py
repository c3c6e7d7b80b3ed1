"""HTTP connections of a pool: requests out, replies back, and nothing besides.

Under asyncio requests go through aiohttp, since httpx's own connection pool slows down from some
fifty concurrent calls on and loses slots to cancellation (encode/httpx#3215, encode/httpcore#1093).
Under trio, and where a transport is given, they go through a transport of httpx. Neither is used
through a client that would follow redirects, keep cookies or read the environment. Both are
imported when the first connection is made, not before; what they raise leaves as it is.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, Self, cast

import anyio
import anyio.lowlevel

if TYPE_CHECKING:
    import aiohttp
    import httpx

trace_headers: ContextVar[Mapping[str, str]] = ContextVar(
    "trace_headers", default=MappingProxyType({})
)
"""What the calls of a task are a part of: ``traceparent`` and ``tracestate`` of W3C Trace Context.
Workers behind HTTP send them along; nothing that a completion depends on is in them."""

_TURN = 2**14  # bytes of a body after which others have a turn, however fast they come


class Reply(Protocol):
    """The answer to a request: its head is there, its body still to come."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]:
        """By name, in small or capital letters."""

    @property
    def body(self) -> AsyncIterable[bytes]:
        """The body as it was sent, in pieces as they come; to be read once, and to its end, unless
        the reading task is cancelled."""

    async def aclose(self) -> None:
        """Give the connection back if the body is at its end, else close it."""


class Client(Protocol):
    """The connections of one event loop."""

    async def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        content: bytes | None,
        *,
        silence_s: float,
        connect_s: float,
    ) -> Reply:
        """Send a request.

        Args:
            method: In capitals.
            url: Where to, encoded.
            headers: All but Host and Content-Length.
            content: The body.
            silence_s: Longest silence of the connection.
            connect_s: Longest wait for a connection: name look-up, connecting and TLS together.
        """

    async def aclose(self) -> None:
        """Close all connections."""


@dataclass(slots=True)
class _Open:
    """The client of one event loop and how many have entered it."""

    client: Client
    holders: int = 0


class HttpClient:
    """The connections of a pool: one client per event loop, opened while anyone needs it.

    Entering twice is harmless, and so is entering from several event loops, in turn or in threads:
    each has connections of its own. There is no limit of connections here: limits belong to the
    workers, and a queue that nobody sees would spoil them.

    Args:
        transport: Used instead of the network. It is shared by all loops and closed with each.
    """

    def __init__(self, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._transport = transport
        self._open: anyio.lowlevel.RunVar[_Open | None] = anyio.lowlevel.RunVar(
            f"http-{id(self)}", None
        )

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Client]:
        """Hold the client of this event loop open and give it."""
        state = self._hold()
        try:
            yield state.client
        finally:
            await self._let_go(state)

    async def __aenter__(self) -> Self:
        self._hold()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        state = self._open.get()
        assert state is not None
        await self._let_go(state)

    def _hold(self) -> _Open:
        state = self._open.get()
        if state is None:
            state = _Open(_new_client(self._transport))
            self._open.set(state)
        state.holders += 1
        return state

    async def _let_go(self, state: _Open) -> None:
        state.holders -= 1
        if state.holders == 0:
            self._open.set(None)  # before the await: who enters meanwhile gets a new client
            with anyio.CancelScope(shield=True):
                await state.client.aclose()


def _new_client(transport: httpx.AsyncBaseTransport | None) -> Client:
    import httpx

    if transport is not None:
        return _HttpxClient(transport)
    if under_trio():
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
        return _HttpxClient(httpx.AsyncHTTPTransport(verify=_tls(), trust_env=False, limits=limits))
    return _AiohttpClient()


class _AiohttpClient:
    def __init__(self) -> None:
        import aiohttp

        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=_tls()),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )
        self._timeouts: dict[tuple[float, float], aiohttp.ClientTimeout] = {}

    async def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        content: bytes | None,
        *,
        silence_s: float,
        connect_s: float,
    ) -> Reply:
        response = await self._session.request(
            method,
            url,
            headers=headers,
            data=content,
            allow_redirects=False,
            auto_decompress=False,
            timeout=self._timeout(silence_s, connect_s),
        )
        return _AiohttpReply(response)

    def _timeout(self, silence_s: float, connect_s: float) -> aiohttp.ClientTimeout:
        known = self._timeouts.get((silence_s, connect_s))
        if known is None:
            import aiohttp

            # "connect" is for the whole of it, name look-up included
            known = self._timeouts[silence_s, connect_s] = aiohttp.ClientTimeout(
                sock_read=silence_s, sock_connect=connect_s, connect=connect_s
            )
        return known

    async def aclose(self) -> None:
        await self._session.close()


class _AiohttpReply:
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    @property
    def body(self) -> AsyncIterable[bytes]:
        return self._response.content.iter_any()

    async def aclose(self) -> None:
        self._response.release()
        await self._response.wait_for_close()


class _HttpxClient:
    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    async def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        content: bytes | None,
        *,
        silence_s: float,
        connect_s: float,
    ) -> Reply:
        import httpx

        timeout = httpx.Timeout(silence_s, connect=connect_s, pool=connect_s)
        request = httpx.Request(
            method,
            url,
            headers=headers,
            content=content,
            extensions={"timeout": timeout.as_dict()},
        )
        response = await self._transport.handle_async_request(request)
        response.request = request
        return _HttpxReply(response)

    async def aclose(self) -> None:
        await self._transport.aclose()


class _HttpxReply:
    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers

    @property
    def body(self) -> AsyncIterable[bytes]:
        return cast("httpx.AsyncByteStream", self._response.stream)

    async def aclose(self) -> None:
        await self._response.aclose()


def under_trio() -> bool:
    """Whether the event loop is trio's."""
    try:
        import sniffio
    except ImportError:  # it comes with trio
        return False
    return sniffio.current_async_library() == "trio"


@cache
def _tls() -> ssl.SSLContext:
    import httpx

    return httpx.create_ssl_context(trust_env=False)


class CappedBody:
    """The bytes of a body up to a limit; what goes beyond it cancels the scope."""

    def __init__(self, body: AsyncIterable[bytes], limit: int, scope: anyio.CancelScope) -> None:
        self._body = body
        self._left = limit
        self._turn = _TURN
        self._scope = scope
        self.over = False
        """Whether there was more."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        # Under trio every read of the socket looks for cancellation and lets others run. Under
        # asyncio, somebody who sends without pause never lets the task wait: it would not find out
        # that it is cancelled, and nobody else would have a turn.
        greedy = not under_trio()
        async for piece in self._body:
            if self._scope.cancel_called:
                if greedy:
                    await anyio.lowlevel.checkpoint()
                continue
            if len(piece) > self._left:
                piece = piece[: self._left]
                self.over = True
                self._scope.cancel()
            self._left -= len(piece)
            self._turn -= len(piece)
            if greedy and self._turn < 0:
                self._turn = _TURN
                await anyio.lowlevel.checkpoint()
            if piece:
                yield piece
