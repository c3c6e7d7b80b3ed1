"""Limits: the pure decisions, and calls that keep to them, by a clock that the test moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grammar import Plan, chain, single
from runtime import (
    Account,
    Breaker,
    Budget,
    Call,
    CallRetried,
    Clock,
    Completion,
    Event,
    Failure,
    FailureKind,
    FunctionWorker,
    Guard,
    Ledger,
    Message,
    Pool,
    PoolError,
    Price,
    Run,
    RunState,
    StepState,
    Terms,
    Usage,
    Window,
    WorkerError,
    run_plan,
    wait_before,
)

pytestmark = pytest.mark.anyio

CALL = Call((Message("user", "q"),))
BUSY = Failure(FailureKind.OVERLOADED, "busy")


class Slow:
    """A clock on which time passes only by sleeping."""

    def __init__(self) -> None:
        self.time = 100.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds
        await anyio.lowlevel.checkpoint()


class Moody:
    """A worker by script: each entry is a text, or the failure of a call."""

    card = ""
    tags: tuple[str, ...] = ()
    constrains = False

    def __init__(self, name: str, *script: str | Failure | Completion) -> None:
        self.name = name
        self.identity = f"moody {name}"
        self.script = list(script)
        self.calls = 0

    async def __call__(self, messages: Sequence[Message]) -> str | Completion:
        self.calls += 1
        said = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(said, Failure):
            raise WorkerError(said.kind, said.message, retry_after_s=said.retry_after_s)
        return said


def team(*moody: Moody, terms: dict[str, Terms] | None = None) -> Pool:
    workers = [FunctionWorker(each.name, each) for each in moody]
    patient = {each.name: Terms(retry_base_s=1e-6) for each in moody}
    return Pool(workers, terms={**patient, **(terms or {})})


# -- how long to wait ------------------------------------------------------------------------------

kinds = st.sampled_from(FailureKind)
chances = st.floats(0, 1)


@given(st.integers(1, 100), kinds, chances)
def test_jitter_is_full_exponential_and_capped(tries: int, kind: FailureKind, dice: float) -> None:
    """A part of base * 2^(tries - 1), decided by the dice alone; none if it is of no use."""
    terms = Terms(retries=50, retry_base_s=0.5, retry_cap_s=20.0, retry_total_s=1e9)

    wait = wait_before(tries, Failure(kind, ""), 0.0, terms, dice)

    if kind.transient and tries <= 50:
        assert wait == dice * min(20.0, 0.5 * 2.0 ** (tries - 1))
    else:
        assert wait is None


@given(st.floats(0, 100), chances, st.floats(0, 100))
def test_what_a_server_asks_for_is_kept_within_the_total(
    asked: float, dice: float, elapsed: float
) -> None:
    """Never earlier than Retry-After; never later than the total, rather not at all."""
    terms = Terms(retry_base_s=1.0, retry_total_s=60.0)
    told = Failure(FailureKind.RATE_LIMITED, "", asked)

    wait = wait_before(1, told, elapsed, terms, dice)

    if elapsed + asked + dice <= 60.0:
        assert wait == asked + dice
    else:
        assert wait is None


# -- the breaker -----------------------------------------------------------------------------------


def test_a_breaker_opens_probes_and_closes() -> None:
    """Three failures in a row; then one probe at a time, which decides."""
    breaker = Breaker(3, open_s=10.0)
    for at in (0.0, 1.0):
        breaker.fail(FailureKind.TIMEOUT, at, probe=breaker.begin())
        assert breaker.closed_in_s(at) == 0.0
    breaker.fail(FailureKind.OVERLOADED, 2.0, probe=breaker.begin())
    assert breaker.closed_in_s(2.0) == 10.0
    assert breaker.closed_in_s(7.0) == 5.0

    assert breaker.closed_in_s(12.0) == 0.0
    probe = breaker.begin()
    assert breaker.closed_in_s(12.0) == 10.0, "one probe at a time"
    breaker.fail(FailureKind.TIMEOUT, 13.0, probe=probe)
    assert breaker.closed_in_s(13.0) == 10.0, "a failed probe opens it again"

    breaker.begin()
    breaker.succeed()
    assert breaker.closed_in_s(23.0) == 0.0
    breaker.fail(FailureKind.TIMEOUT, 24.0, probe=breaker.begin())
    assert breaker.closed_in_s(24.0) == 0.0, "and counts from nothing"


def test_a_probe_that_is_cancelled_says_nothing() -> None:
    """The next call is the probe then."""
    breaker = Breaker(1, open_s=5.0)
    breaker.fail(FailureKind.TIMEOUT, 0.0, probe=breaker.begin())
    breaker.abandon(probe=breaker.begin())

    assert breaker.closed_in_s(5.0) == 0.0


def test_calls_that_began_before_it_opened_do_not_end_the_probe() -> None:
    """They may end while it is under way; a second one must not follow it."""
    breaker = Breaker(1, open_s=5.0)
    old = [breaker.begin() for _ in range(3)]
    breaker.fail(FailureKind.TIMEOUT, 0.0, probe=old[0])
    probe = breaker.begin()
    breaker.fail(FailureKind.REJECTED, 5.0, probe=old[1])
    breaker.abandon(probe=old[2])

    assert (old, probe) == ([False] * 3, True)
    assert breaker.closed_in_s(6.0) == 5.0


@pytest.mark.parametrize(
    "kind", [FailureKind.REJECTED, FailureKind.RATE_LIMITED, FailureKind.EMPTY]
)
def test_what_is_not_the_workers_health_does_not_open_it(kind: FailureKind) -> None:
    """A bad request is the caller's fault, and a rate limit has its own way of waiting."""
    breaker = Breaker(1, open_s=5.0)
    breaker.fail(kind, 0.0, probe=breaker.begin())

    assert breaker.closed_in_s(0.0) == 0.0


# -- rates -----------------------------------------------------------------------------------------


@given(
    st.integers(1, 20),
    st.lists(st.tuples(st.floats(0, 30), st.integers(0, 30)), max_size=40),
)
def test_no_minute_holds_more_than_the_limit(limit: int, asked: list[tuple[float, int]]) -> None:
    """Whenever and how much is asked for; what is larger than the limit goes alone."""
    window, now = Window(limit), 0.0
    entered: list[tuple[float, int]] = []
    for gap, amount in asked:
        now += gap
        now += window.wait_s(now, amount)
        assert window.wait_s(now, amount) == 0.0
        window.spend(now, amount)
        entered.append((now, amount))

    for at, _ in entered:
        inside = [amount for other, amount in entered if at - 60 + 1e-6 < other <= at]
        assert sum(inside) <= limit or max(inside) > limit


def test_a_guess_is_replaced_by_what_was_used() -> None:
    """So that a worker that says less than feared may be called sooner."""
    window = Window(100)
    entry = window.spend(0.0, 90)
    assert window.wait_s(1.0, 50) == 59.0

    window.correct(entry, 20)

    assert window.wait_s(1.0, 50) == 0.0


async def test_calls_keep_to_requests_per_minute_in_order() -> None:
    """Two at once, the third when the first is a minute old."""
    clock = Slow()
    guard = Guard(Terms(requests_per_minute=2), clock=clock)
    begun: list[tuple[int, float]] = []

    async def call(number: int) -> None:
        async def answer(messages: Sequence[Message]) -> str:
            begun.append((number, clock.now()))
            return "x"

        await guard.attempt(FunctionWorker("w", answer), CALL, lambda text: None)

    for number in range(5):
        await call(number)

    assert begun == [(0, 100.0), (1, 100.0), (2, 160.0), (3, 160.0), (4, 220.0)]


async def test_calls_keep_to_tokens_per_minute_as_the_worker_counts_them() -> None:
    """The first guess is corrected by the worker's own count."""
    clock = Slow()
    guard = Guard(Terms(tokens_per_minute=100), clock=clock)
    begun: list[float] = []

    async def answer(messages: Sequence[Message]) -> Completion:
        begun.append(clock.now())
        return Completion("x", usage=Usage(30, 30))

    for _ in range(3):
        await guard.attempt(FunctionWorker("w", answer), CALL, lambda text: None)

    assert begun == [100.0, 100.0, 160.0]


@pytest.mark.parametrize("most", [1, 3])
async def test_no_more_calls_at_once_than_the_terms_allow(most: int) -> None:
    """The others wait their turn, and all get one."""
    running, widest = 0, 0

    async def answer(messages: Sequence[Message]) -> str:
        nonlocal running, widest
        running += 1
        widest = max(widest, running)
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        running -= 1
        return "x"

    pool = Pool([FunctionWorker("w", answer)], terms=Terms(concurrency=most))
    plan = Plan.of([f"do {i}" for i in range(10)], ["w"] * 10, [[]] * 10)
    run = await run_plan(plan, "q", pool)

    assert (run.state, widest) == (RunState.DONE, most)


async def test_all_calls_wait_while_a_server_asks_to() -> None:
    """Retry-After holds for the worker, not only for the call that was told."""
    clock = Slow()
    guard = Guard(Terms(), clock=clock, dice=lambda: 0.0)
    limited = FunctionWorker("w", Moody("w", Failure(FailureKind.RATE_LIMITED, "later", 7.0), "ok"))

    with pytest.raises(WorkerError):
        await guard.attempt(limited, CALL, lambda text: None)
    assert guard.refusal(limited) is None
    await guard.attempt(limited, CALL, lambda text: None)

    assert clock.slept == [7.0]


async def test_a_worker_that_asks_for_longer_than_the_total_is_refused_at_once() -> None:
    """Waiting for an hour helps nobody; a fallback may."""
    clock = Slow()
    guard = Guard(Terms(retry_total_s=60.0), clock=clock)
    hour = FunctionWorker("w", Moody("w", Failure(FailureKind.RATE_LIMITED, "later", 3600.0)))
    with pytest.raises(WorkerError):
        await guard.attempt(hour, CALL, lambda text: None)

    refused = guard.refusal(hour)

    assert refused is not None
    assert (refused.kind, refused.retry_after_s) == (FailureKind.RATE_LIMITED, 3600.0)


# -- time-outs -------------------------------------------------------------------------------------


class Mute:
    """Writes some pieces, then never again."""

    name = "mute"
    identity = "mute"
    card = ""
    tags: tuple[str, ...] = ()
    constrains = False

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces
        self.cancelled = False

    async def complete(self, call: Call, on_text: object) -> Completion:
        assert callable(on_text)
        for piece in self.pieces:
            on_text(piece)
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            self.cancelled = True
            raise
        raise AssertionError


LATE = "mute: no whole answer within 0.01 s; raise call_s"
MUTE = "mute: no text within 0.01 s; raise first_text_s"
SILENT = "mute: it fell silent for 0.01 s; raise silence_s"


@pytest.mark.parametrize(
    ("terms", "pieces", "told"),
    [
        (Terms(first_text_s=0.01), (), MUTE),
        (Terms(silence_s=0.01), ("half",), SILENT),
        (Terms(call_s=0.01), ("half",), LATE),
        (Terms(first_text_s=60, call_s=0.01), (), LATE),
        (Terms(first_text_s=0.01, silence_s=60), (), MUTE),
        # While a model reasons its worker sends empty pieces: it is there, but says nothing yet.
        (Terms(first_text_s=60, silence_s=0.01), ("",), SILENT),
    ],
)
async def test_time_outs_stop_the_call_and_say_which_one_it_was(
    terms: Terms, pieces: tuple[str, ...], told: str
) -> None:
    """The call is cancelled, and what was heard before was passed on."""
    mute, heard = Mute(*pieces), list[str]()

    with pytest.raises(WorkerError) as caught:
        await Guard(terms).attempt(mute, CALL, heard.append)  # type: ignore[arg-type]  # half a worker

    assert caught.value.failure == Failure(FailureKind.TIMEOUT, told)
    assert mute.cancelled
    assert heard == [piece for piece in pieces if piece]


# -- tries and fallbacks ---------------------------------------------------------------------------


async def test_a_transient_failure_is_tried_again_and_told() -> None:
    """The record has every call; the text of the one that broke off is void."""
    events: list[Event] = []
    moody = Moody("a", BUSY, BUSY, "at last")

    run = await run_plan(single("a", "q"), "q", team(moody), emit=events.append)

    step = run.steps[0]
    assert (run.answer, step.state, moody.calls) == ("at last", StepState.DONE, 3)
    assert [each.failure for each in step.lost] == [BUSY, BUSY]
    retried = [event for event in events if isinstance(event, CallRetried)]
    assert [(each.index, each.worker, each.attempt) for each in retried] == [
        (0, "a", step.lost[0]),
        (0, "a", step.lost[1]),
    ]
    assert run.accounts == {"a": Account(calls=3, failed=2, unpriced=2)}


async def test_tries_end_and_the_last_failure_counts() -> None:
    """One call and two more, by the usual terms."""
    moody = Moody("a", BUSY)

    run = await run_plan(single("a", "q"), "q", team(moody))

    assert (run.state, moody.calls) == (RunState.FAILED, 3)
    assert run.failure == Failure(FailureKind.OVERLOADED, "step 0 (a): busy")


async def test_what_would_fail_again_is_not_tried_again() -> None:
    """A refused request is refused once."""
    moody = Moody("a", Failure(FailureKind.REJECTED, "too long"))

    await run_plan(single("a", "q"), "q", team(moody))

    assert moody.calls == 1


@pytest.mark.parametrize("kind", [each for each in FailureKind if each.transient is False])
async def test_any_failure_hands_over_to_a_fallback(kind: FailureKind) -> None:
    """Its whole reply is the step's, and the record says who gave it."""
    one, two = Moody("a", Failure(kind, "no")), Moody("b", "instead")
    terms = {"a": Terms(fallback=("b",))}

    run = await run_plan(single("a", "q"), "q", team(one, two, terms=terms))

    step = run.steps[0]
    assert (run.answer, step.worker, one.calls, two.calls) == ("instead", "b", 1, 1)
    assert [(each.worker, each.failure.kind) for each in step.lost] == [("a", kind)]


async def test_fallbacks_come_in_order_the_workers_own_first() -> None:
    """Then those of the run; each once, and their failures are told together."""
    dead = [Moody(name, Failure(FailureKind.REJECTED, f"{name}: no")) for name in "abcd"]
    terms = {"a": Terms(fallback=("c",))}

    run = await run_plan(
        single("a", "q"), "q", team(*dead, terms=terms), fallback=("b", "a", "c", "d")
    )

    assert [each.worker for each in run.steps[0].lost] == ["a", "c", "b", "d"]
    assert run.failure is not None
    assert run.failure.message == "step 0 (a): a: no; then c: no; then b: no; then d: no"


async def test_a_fallback_outside_the_pool_at_hand_is_not_used() -> None:
    """``without`` holds for those that stand in, too."""
    one, two = Moody("a", BUSY), Moody("b", "instead")
    pool = team(one, two, terms={"a": Terms(fallback=("b",), retries=0)}).without("b")

    run = await run_plan(single("a", "q"), "q", pool)

    assert (run.state, two.calls) == (RunState.FAILED, 0)


async def test_a_tripped_worker_is_passed_over_without_a_call() -> None:
    """All runs of the pool know; what was not called is in no account."""
    one, two = Moody("a", BUSY), Moody("b", "instead")
    pool = team(one, two, terms={"a": Terms(fallback=("b",), retries=0, trip_after=2)})

    runs = [await run_plan(single("a", "q"), "q", pool) for _ in range(4)]

    assert [run.answer for run in runs] == ["instead"] * 4
    assert (one.calls, two.calls) == (2, 4)
    assert runs[3].accounts == {"b": Account(calls=1)}
    smaller = await run_plan(single("a", "q"), "q", pool.only("a"))
    assert smaller.failure is not None
    assert smaller.failure.kind is FailureKind.TRIPPED


async def test_an_empty_reply_is_a_failure_with_its_tokens() -> None:
    """It is never passed off as an answer, and never forgotten in the account."""
    moody = Moody("a", Completion(" \n", usage=Usage(3, 1)), Completion("ok", usage=Usage(3, 2)))

    run = await run_plan(single("a", "q"), "q", team(moody))

    assert run.answer == "ok"
    assert [each.failure.kind for each in run.steps[0].lost] == [FailureKind.EMPTY]
    assert run.accounts == {"a": Account(calls=2, failed=1, usage=Usage(6, 3))}


def test_terms_and_fallbacks_of_unknown_workers_are_refused() -> None:
    """Where they are written, with what there is."""
    worker = FunctionWorker("a", Moody("a", "x"))
    with pytest.raises(PoolError, match=r"terms for 'b', but no worker is called so"):
        Pool([worker], terms={"b": Terms()})
    with pytest.raises(PoolError, match=r"workers\.a\.fallback: no worker is called 'b'; .*: a"):
        Pool([worker], terms={"a": Terms(fallback=("b",))})


# -- budgets ---------------------------------------------------------------------------------------

DEAR = Price(Decimal("1000"), Decimal("2000"), Decimal("100"))


async def spend(budget: Budget, steps: int = 4, width: int = 1) -> tuple[Run, Moody]:
    """Run a chain whose every call takes 10 tokens in (4 cached), 5 out: 0.0164 dollars."""
    moody = Moody("a", Completion("x", usage=Usage(10, 5, 4)))
    pool = team(moody, terms={"a": Terms(price=DEAR)})
    plan = chain([f"do {i}" for i in range(steps)], ["a"])
    if width > 1:
        plan = Plan.of([f"do {i}" for i in range(width)], ["a"] * width, [[]] * width)
    return await run_plan(plan, "q", pool, budget=budget), moody


@pytest.mark.parametrize(
    ("budget", "calls", "told"),
    [
        (Budget(calls=2), 2, "2 calls"),
        (Budget(tokens=30), 2, "30 tokens (30 used)"),
        (Budget(tokens=31), 3, "31 tokens (45 used)"),
        (Budget(dollars=Decimal("0.02")), 2, "0.02 dollars (0.0328 spent)"),
    ],
)
async def test_a_run_stops_when_its_budget_is_used_up(
    budget: Budget, calls: int, told: str
) -> None:
    """No call begins after that; what was done stays, and the best so far is named."""
    run, moody = await spend(budget)

    assert (moody.calls, run.state, run.answer) == (calls, RunState.FAILED, None)
    assert run.failure is not None
    assert run.failure.kind is FailureKind.BUDGET
    assert told in run.failure.message
    assert run.best is not None
    assert run.best.index == calls - 1
    assert run.dollars == calls * Decimal("0.0164")


async def test_calls_are_never_exceeded_however_wide_a_plan_is() -> None:
    """They are counted when they begin."""
    run, moody = await spend(Budget(calls=3), width=10)

    assert moody.calls == run.accounts["a"].calls == 3


async def test_money_overshoots_by_the_calls_under_way_at_most() -> None:
    """Ten begin together before the first one's cost is known; none begins after."""
    run, moody = await spend(Budget(dollars=Decimal("0.01")), width=10)

    assert moody.calls <= 10
    assert run.dollars <= Decimal("0.01") + 10 * Decimal("0.0164")


async def test_a_plan_with_more_steps_than_the_budget_is_not_begun() -> None:
    """Steps are known before anything is called."""
    run, moody = await spend(Budget(steps=3))

    assert moody.calls == 0
    assert run.failure == Failure(
        FailureKind.BUDGET,
        "the run's budget of 3 steps (0 used, the plan has 4) is used up; raise steps",
    )
    assert [step.state for step in run.steps] == [StepState.SKIPPED] * 4


async def test_costs_add_up_to_the_last_digit() -> None:
    """Cached tokens at their own price; the run's sum is that of its steps."""
    run, _ = await spend(Budget(), steps=7)

    assert [step.dollars for step in run.steps] == [Decimal("0.0164")] * 7
    assert run.dollars == Decimal("0.1148") == sum(step.dollars or 0 for step in run.steps)
    assert Run.from_json(run.to_json()).dollars == run.dollars


def test_a_ledger_without_bounds_refuses_nothing() -> None:
    """Whatever was taken."""
    ledger = Ledger(Budget())
    ledger.calls = 10**9
    ledger.settle(Usage(10**9, 10**9), Decimal(10**9))

    assert ledger.refusal() is None
    assert ledger.room_for(10**9) is None


def test_the_real_clock_is_a_clock() -> None:
    """It goes forward, and satisfies the protocol that tests replace."""
    from runtime.limits import RealClock

    clock: Clock = RealClock()
    first = clock.now()

    assert math.isfinite(first)
    assert clock.now() >= first
