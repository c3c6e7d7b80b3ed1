"""What other gateways got wrong, each with a test against the real server: a request comes in over
ASGI, and its model is the fault server, over real sockets.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from conductor import Conductor
from conductor.server import Server
from runtime import Pool, Terms
from tests.faults import server as play
from tests.faults.server import Exchange, FaultServer, serving
from tests.serving import CHAT, asked, client, events, said

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def team(
    faults: FaultServer, *names: str, terms: dict[str, Terms] | None = None, **options: Any
) -> AsyncIterator[Any]:
    """A client of a server whose workers are the fault server's models, scripted before."""
    from runtime import Endpoint, HttpClient

    http = HttpClient()
    workers = [Endpoint(name, url=faults.url, model=name, client=http) for name in names]
    conductor = Conductor(Pool(workers, terms=terms or {}), **options)
    async with conductor, client(Server(conductor)) as asking:
        yield asking


async def other_words(exchange: Exchange) -> None:
    """Begin with other words than the next try will, and break off."""
    await exchange.head()
    await exchange.part(play.event("Quite another "))
    exchange.reset()


# -- a stream that can't be kept ------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, "/v1/responses"])
async def test_a_stream_whose_text_became_void_ends_with_an_error(path: str) -> None:
    """Whoever stood in had other words: the client is told, and the stream has no normal end."""
    async with serving() as faults:
        faults.script("first", other_words)
        faults.script("second", play.fine)
        terms = {"first": Terms(retries=0, fallback=("second",))}
        body = (
            asked("worker/first", stream=True)
            if path == CHAT
            else {"model": "worker/first", "input": "q", "stream": True}
        )
        async with team(faults, "first", "second", terms=terms) as http:
            reply = await http.post(path, json=body)

    assert reply.status_code == 200
    told = events(reply.text)
    if path == CHAT:
        assert said(told[:-1]) == "Quite another "
        assert told[-1]["error"]["code"] == "bad_worker_response"
    else:
        assert told[-1]["type"] == "response.failed"
    assert "[DONE]" not in reply.text
