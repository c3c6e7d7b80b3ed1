"""A model server that costs next to nothing: fixed bytes after a fixed time, on loopback.

Started as a process of its own, so that only the client's CPU counts. Prints its port, then serves
until its standard input is closed.
"""
# ruff: noqa: T201

from __future__ import annotations

import asyncio
import json
import sys

HELD_S = 0.05
"""How long an answer is held back: all calls of a round are open at once."""


def answer() -> bytes:
    """A streamed completion of five pieces, with usage."""
    pieces: list[dict[str, object]] = [
        {"choices": [{"index": 0, "delta": {"content": f"word {i} "}, "finish_reason": None}]}
        for i in range(5)
    ]
    pieces.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    usage = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}
    pieces.append({"choices": [], "usage": usage})
    head = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    events = [json.dumps({**head, **piece}) for piece in pieces] + ["[DONE]"]
    body = "".join(f"data: {event}\n\n" for event in events).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%s" % (
        len(body),
        body,
    )


class Server(asyncio.Protocol):
    """One connection; requests come one at a time."""

    answer = answer()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.got = b""

    def data_received(self, data: bytes) -> None:
        """Answer once a request is whole."""
        self.got += data
        head, blank, body = self.got.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
        if blank and len(body) >= int(length or 0):
            self.got = b""
            asyncio.get_running_loop().call_later(HELD_S, self.transport.write, self.answer)


async def main() -> None:
    """Serve until standard input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Server, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
