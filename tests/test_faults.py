"""What callers get when servers fail: every fault ends in an answer or in the failure it has.

The faults are those of ``tests/faults/server.py``, over real sockets; its ledger is the witness.
"""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import anyio
import pytest

from conductor import Conductor
from runtime import (
    Call,
    Completion,
    Endpoint,
    Failure,
    FailureKind,
    HttpClient,
    Message,
    Pool,
    Run,
    Terms,
    Usage,
    WorkerError,
)
from tests.faults import drills, matrix
from tests.faults import server as play
from tests.faults.server import ANSWER, End, Fault, faults, pieces, serving

pytestmark = pytest.mark.anyio

CALL = Call((Message("user", "what does the fox say"),))
USAGE = Usage(5, 6, 1)
SOON_S = 10.0
"""For what takes milliseconds, on a machine that is busy with something else."""
MODES = pytest.mark.parametrize("streamed", [True, False], ids=["stream", "body"])


ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


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
    usage = Usage()
    assert fault.play is not None
    async with serving() as server, HttpClient() as client:
        worker = server.endpoint("w", fault.play, streamed=streamed, client=client)
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
                usage = completion.usage or Usage()
        await server.ledger.quiet()
    assert len(server.ledger.entries) == 1
    assert server.ledger.usage() == usage


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
async def test_a_cancelled_call_hangs_up(streamed: bool, began: bool) -> None:
    async with serving() as server:
        silent = play.hangs_midway if began else play.hangs
        async with server.endpoint("w", silent, streamed=streamed) as worker:
            async with anyio.create_task_group() as group:
                group.start_soon(worker.complete, CALL)
                with anyio.fail_after(SOON_S):
                    await server.ledger.arrived(1)
                await anyio.wait_all_tasks_blocked()  # until it has the first piece, if one is sent
                group.cancel_scope.cancel()
            with anyio.fail_after(SOON_S):
                await server.ledger.quiet()
    (entry,) = server.ledger.entries
    assert entry.end is End.HUNG_UP
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


# -- runs: the whole matrix, and the drills, smaller than by the command --------------------------


LIGHT = [cell for cell in matrix.cells() if not cell.fault.heavy]
HEAVY = [
    cell
    for cell in matrix.cells()
    if cell.fault.heavy and cell.where is matrix.Where.PLAN and cell.fallback
]
"""The rest of these takes minutes and differs only in what it is called for."""


def test_the_page_lists_the_faults_of_the_matrix() -> None:
    assert re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE) == [each.name for each in faults()]


def test_the_commands_of_the_page_are_those_of_the_matrix() -> None:
    """They are run by the tests below; one of them here as it is written."""
    commands = re.findall(r"^python -m tests\.faults\.matrix\b *(.*)$", PAGE, re.MULTILINE)
    asked = [matrix.asked_for(command.split()).what for command in commands]
    assert asked == ["matrix", *drills.DRILLS]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.matrix", "cancellation"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == ["asyncio", "trio"]


def test_the_tests_that_the_page_names_are_here() -> None:
    named = re.findall(r"`(test_\w+)`", PAGE)
    assert named and all(callable(globals().get(name)) for name in named)


LIARS = [
    Fault("answers", play.fine, (FailureKind.TIMEOUT,)),
    Fault("says nothing", play.nothing),
    Fault("fails in another way", play.status(503), (FailureKind.RATE_LIMITED,)),
    Fault("hangs", play.hangs),
    Fault("miscounts", play.wrong_usage({"prompt_tokens": 10**6}, believed=Usage(5))),
]


@pytest.mark.parametrize("liar", LIARS, ids=lambda fault: fault.name)
async def test_the_matrix_notices_a_broken_promise(liar: Fault) -> None:
    outcomes = await matrix.measure([matrix.Cell(liar, True, matrix.Where.PICK, fallback=False)])
    assert all(outcome.broken for outcome in outcomes)


@pytest.mark.parametrize("cases", [LIGHT, HEAVY], ids=["light", "heavy"])
async def test_every_fault_ends_in_an_answer_or_its_failure_in_time(
    cases: list[matrix.Cell],
) -> None:
    """A promise that is broken is broken again alone: only a machine that is busy with something
    else breaks one that is kept."""
    outcomes = await matrix.measure(cases)
    assert len(outcomes) == len(cases)

    doubtful = [outcome.cell for outcome in outcomes if outcome.broken]
    assert len(doubtful) <= 1 + len(cases) // 50
    again = [str(each) for cell in doubtful for each in await matrix.measure([cell]) if each.broken]
    assert again == []


async def test_a_pool_with_a_dead_and_a_failing_worker_answers_all_the_same() -> None:
    report = await drills.availability(requests=300, width=20)
    assert report.broken == ()


@pytest.mark.parametrize("concurrency", [None, 1, 4], ids=["at once", "one by one", "four"])
async def test_a_dead_worker_is_left_alone_and_found_again_by_one_probe(
    concurrency: int | None,
) -> None:
    report = await drills.breaker(concurrency=concurrency, open_s=0.3)
    assert report.broken == ()


async def test_calls_that_wait_their_turn_do_not_call_a_worker_that_turned_out_dead() -> None:
    """Of a hundred, five open the breaker; three more are under way by then."""
    async with serving() as server, HttpClient() as client:
        workers = [
            server.endpoint("dead", play.status(503), client=client),
            server.endpoint("good", play.fine, client=client),
        ]
        terms = Terms(retries=0, concurrency=4, fallback=("good",))
        conductor = Conductor(Pool(workers, terms={"dead": terms}))
        runs: list[Run] = []

        async def ask() -> None:
            runs.append(await conductor.arun("q", worker="dead"))

        async with conductor, anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(ask)
        calls = len(server.ledger.of("dead"))

    assert 5 <= calls <= 8
    assert [run.answer for run in runs] == [ANSWER] * 100
    assert sum(run.accounts["dead"].calls for run in runs if "dead" in run.accounts) == calls


async def test_hanging_up_ends_every_upstream_call_at_once() -> None:
    report = await drills.cancellation(width=24)
    assert report.broken == ()


async def test_the_records_have_the_calls_tokens_and_money_of_the_server() -> None:
    report = await drills.accounting(calls=400)
    assert report.broken == ()


async def test_a_stream_that_fails_midway_without_a_fallback_stops_by_itself() -> None:
    """No endless trying, no busy waiting: as many calls as the terms allow, and hardly any CPU."""
    async with serving() as server:
        worker = server.endpoint("w", play.error_midway(429))
        pool = Pool([worker], terms={"w": Terms(retries=3, retry_base_s=0.01)})
        began = time.process_time()
        run = await Conductor(pool).arun("q", worker="w")
        spent = time.process_time() - began
    assert run.failure is not None
    assert run.failure.kind is FailureKind.RATE_LIMITED
    assert len(server.ledger.entries) == 4
    assert spent < 1.0  # spinning would take what the test may last
