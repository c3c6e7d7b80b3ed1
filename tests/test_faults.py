"""What callers get when servers fail: every fault ends in an answer or in the failure it has.

The faults are those of ``tests/faults/server.py``, over real sockets; its ledger is the witness.
"""

from __future__ import annotations

import gc
import time
import tracemalloc

import anyio
import pytest

from runtime import (
    Call,
    Completion,
    Endpoint,
    Failure,
    FailureKind,
    HttpClient,
    Message,
    Usage,
    WorkerError,
)
from tests.faults import server as play
from tests.faults.server import ANSWER, End, Fault, faults, pieces, serving

pytestmark = pytest.mark.anyio

CALL = Call((Message("user", "what does the fox say"),))
USAGE = Usage(5, 6, 1)
SOON_S = 10.0
"""For what takes milliseconds, on a machine that is busy with something else."""
MODES = pytest.mark.parametrize("streamed", [True, False], ids=["stream", "body"])


async def outcome(worker: Endpoint, call: Call = CALL) -> Completion | Failure:
    """What a call of a worker by itself comes to."""
    with anyio.fail_after(SOON_S):
        try:
            return await worker.complete(call)
        except WorkerError as error:
            return error.failure


# -- one call of an endpoint, without limits, retries or fallbacks --------------------------------


ENDED = [fault for fault in faults() if fault.play and not fault.by_limit]


@MODES
@pytest.mark.parametrize("fault", ENDED, ids=lambda fault: fault.name)
async def test_each_fault_ends_by_itself_as_what_it_is(fault: Fault, streamed: bool) -> None:
    told: list[str] = []
    assert fault.play is not None
    async with serving() as server:
        async with server.endpoint("w", fault.play, streamed=streamed) as worker:
            with anyio.fail_after(60):
                try:
                    completion = await worker.complete(CALL, told.append)
                except WorkerError as error:
                    assert error.failure.kind in fault.outcomes
                    assert error.failure.message.startswith(f"w ({worker.host}): ")
                else:
                    empty = FailureKind.EMPTY in fault.outcomes
                    assert completion.text == "".join(told) == ("" if empty else ANSWER)
                    assert empty or not fault.outcomes
                    assert (completion.usage or Usage()) == server.ledger.usage()
        await server.ledger.quiet()
        assert len(server.ledger.entries) == 1


@MODES
@pytest.mark.parametrize("midway", [False, True], ids=["before", "midway"])
async def test_a_short_silence_is_waited_out_and_a_long_one_is_not(
    streamed: bool, midway: bool
) -> None:
    async with serving() as server, HttpClient() as client:
        short = server.endpoint(
            "short", play.stalled(0.05, midway=midway), streamed=streamed, client=client
        )
        long = server.endpoint(
            "long",
            play.stalled(60, midway=midway),
            streamed=streamed,
            client=client,
            timeout_s=0.1,
        )
        answer = await outcome(short)
        failure = await outcome(long)
        await server.ledger.quiet()
    assert isinstance(answer, Completion)
    assert answer.text == ANSWER
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.TIMEOUT
    assert [entry.end for entry in server.ledger.entries] == [End.SENT, End.HUNG_UP]


@pytest.mark.parametrize("seconds", ["7", "0.25"])
async def test_a_refusal_without_end_is_told_with_its_retry_after(seconds: str) -> None:
    """Status and headers say it all, so the body is not waited for."""
    async with serving() as server:
        refusal = play.dripping_status(429, 0.01, Retry_After=seconds)
        failure = await outcome(server.endpoint("w", refusal))
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.retry_after_s) == (FailureKind.RATE_LIMITED, float(seconds))


async def test_where_nothing_listens_the_call_is_refused_at_once() -> None:
    with play.refusing() as url:
        failure = await outcome(Endpoint("w", url=url, model="m"))
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.UNREACHABLE


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_connecting_has_a_limit_of_its_own(scheme: str) -> None:
    """Also where a connection is taken, but the TLS handshake never answered."""

    async def ask(url: str) -> Completion | Failure:
        return await outcome(Endpoint("w", url=url, model="m", connect_s=0.1))

    if scheme == "http":
        with play.deaf() as url:
            failure = await ask(url)
    else:
        async with serving() as server:  # it waits for the end of a head that never comes
            failure = await ask(server.url.replace("http", "https"))
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.TIMEOUT
    assert "could not connect within 0.1 s" in failure.message


async def test_a_host_that_does_not_exist_is_told() -> None:
    failure = await outcome(Endpoint("w", url="http://nowhere.invalid/v1", model="m"))
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.UNREACHABLE
    assert "host name is not known" in failure.message


@MODES
async def test_pieces_are_passed_on_as_they_come(streamed: bool) -> None:
    """The server writes a piece only when the one before it has reached the listener."""
    told: list[str] = []
    news = anyio.Event()

    def on_text(text: str) -> None:
        told.append(text)
        news.set()

    async def heard(count: int) -> None:
        nonlocal news
        while streamed and len(told) < count:
            await news.wait()
            news = anyio.Event()

    async with serving() as server:
        worker = server.endpoint("w", play.in_step(heard), streamed=streamed)
        with anyio.fail_after(SOON_S):
            completion = await worker.complete(CALL, on_text)
    assert [text for text in told if text] == (pieces(ANSWER) if streamed else [ANSWER])
    assert completion == Completion(ANSWER, usage=USAGE, model="w-1")


@MODES
@pytest.mark.parametrize("began", [False, True], ids=["before", "midway"])
async def test_a_cancelled_call_hangs_up_at_once(streamed: bool, began: bool) -> None:
    async with serving() as server:
        silent = play.hangs_midway if began else play.hangs
        async with server.endpoint("w", silent, streamed=streamed) as worker:
            async with anyio.create_task_group() as group:
                group.start_soon(worker.complete, CALL)
                with anyio.fail_after(SOON_S):
                    await server.ledger.arrived(1)
                await anyio.wait_all_tasks_blocked()  # until it has the first piece, if one is sent
                cancelled_s = time.monotonic()
                group.cancel_scope.cancel()
            with anyio.fail_after(SOON_S):
                await server.ledger.quiet()
    (entry,) = server.ledger.entries
    assert entry.end is End.HUNG_UP
    assert entry.ended_s - cancelled_s < 0.25
    assert entry.usage == Usage()


async def test_a_streamed_call_leaves_no_memory_behind() -> None:
    async with (
        serving() as server,
        HttpClient() as client,
        server.endpoint("w", play.fine, client=client) as worker,
    ):

        async def grown(calls: int) -> int:
            for _ in range(calls):
                await worker.complete(CALL)
            await server.ledger.quiet()
            server.ledger.entries.clear()
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        try:
            before = await grown(60)
            after = await grown(300)
        finally:
            tracemalloc.stop()
    assert (after - before) / 300 < 100  # bytes; one forgotten event is several hundred
