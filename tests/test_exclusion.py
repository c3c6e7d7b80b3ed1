"""Exclusion: who may not be used is in no plan, stands in for nobody, and plans nothing."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import pytest

from conductor import Conductor, Planner
from grammar import PlanError, single
from runtime import (
    Budget,
    Call,
    Failure,
    FailureKind,
    FunctionWorker,
    Message,
    Pool,
    PoolError,
    Price,
    RunSettings,
    RunState,
    Session,
    Terms,
    WorkerError,
    carry_out,
)

pytestmark = pytest.mark.anyio

PLAN = 'subtasks = ["Do it."]\nworkers = [0]\naccess = [[]]'


class Crew:
    """Workers that write down who was called; each of them could also plan."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def worker(self, name: str, *tags: str) -> FunctionWorker:
        async def answer(messages: Sequence[Message]) -> str:
            self.called.append(name)
            return PLAN if "You coordinate" in messages[0].content else f"{name} says"

        return FunctionWorker(name, answer, tags=tags)

    def pool(self) -> Pool:
        return Pool(
            [
                self.worker("home", "eu", "small"),
                self.worker("cloud", "us", "big"),
                self.worker("near", "eu", "big"),
            ],
            planner=self.worker("boss", "us"),
            terms=Terms(retries=0),
        )


@pytest.mark.parametrize(
    ("options", "left", "plans"),
    [
        ({}, ("home", "cloud", "near"), "boss"),
        ({"only": ["near", "home"]}, ("home", "near"), "boss"),
        ({"without": ["home"]}, ("cloud", "near"), "boss"),
        ({"without": ["boss"]}, ("home", "cloud", "near"), "home"),
        ({"tags": ["eu"]}, ("home", "near"), "home"),
        ({"tags": ["eu", "big"]}, ("near",), "near"),
        ({"without_tags": ["us"]}, ("home", "near"), "home"),
        ({"without_tags": ["eu"]}, ("cloud",), "boss"),
        ({"tags": ["big"], "without": ["cloud"]}, ("near",), "near"),
        ({"only": ["cloud", "near"], "without_tags": ["eu"]}, ("cloud",), "boss"),
    ],
)
async def test_who_may_be_used_and_who_plans(
    options: dict[str, list[str]], left: tuple[str, ...], plans: str
) -> None:
    """The planner is asked about those alone; if it is excluded itself, the first of them plans."""
    crew = Crew()

    run = await Conductor(crew.pool()).arun("Why?", **options)  # type: ignore[arg-type]

    assert (run.state, run.workers, run.planner) == (RunState.DONE, left, plans)
    assert crew.called == [plans, left[0]]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"tags": ["mars"]}, "no worker has the tags mars; the pool has: big, eu, small, us"),
        ({"without_tags": ["eu", "us"]}, "no worker is left in the pool"),
        ({"without": ["who"]}, "no worker is called 'who'"),
        ({"only": ["who"]}, "no worker is called 'who'"),
    ],
)
async def test_what_leaves_nobody_is_told_before_anything_runs(
    options: dict[str, list[str]], told: str
) -> None:
    """With what there is."""
    crew = Crew()

    with pytest.raises(PoolError, match=told):
        await Conductor(crew.pool()).arun("Why?", **options)  # type: ignore[arg-type]

    assert crew.called == []


async def test_a_given_plan_may_not_name_who_is_excluded() -> None:
    """It is refused before anything is called."""
    crew = Crew()

    with pytest.raises(PlanError, match="no worker is called 'cloud'"):
        await Conductor(crew.pool()).arun("Why?", plan=single("cloud", "x"), without=["cloud"])

    assert crew.called == []


async def test_an_excluded_worker_is_refused_at_dispatch_too() -> None:
    """Whatever a decider tries: a planner of one's own that was excluded is not called."""
    crew = Crew()
    pool = crew.pool().without("boss")

    async def stubborn(session: Session) -> None:
        with pytest.raises(WorkerError) as caught:
            await session.call(crew.worker("boss"), Call((Message("user", "plan"),)))
        assert caught.value.failure == Failure(
            FailureKind.EXCLUDED, "boss may not be used in this run"
        )

    run = await carry_out("q", pool, stubborn)

    assert crew.called == []
    assert run.orchestration.calls == 0


async def test_a_planner_of_ones_own_that_is_excluded_gives_way() -> None:
    """The pool's own choice plans then."""
    crew = Crew()
    mine = Planner(crew.worker("cloud", "us"))

    run = await Conductor(crew.pool(), planner=mine).arun("Why?", without=["cloud"])

    assert run.planner == "boss"
    assert "cloud" not in crew.called


def test_a_pool_file_says_terms_and_what_holds_for_runs(tmp_path: Path) -> None:
    """All of it, in the units of the file; what is not said is as usual."""
    path = tmp_path / "pool.toml"
    path.write_text(
        """
[planner]
worker = "gpt"
[workers.gpt]
kind = "openai"
url = "http://127.0.0.1:1/v1"
model = "m"
concurrency = 8
requests_per_minute = 60
tokens_per_minute = 90000
retries = 4
retry_base_s = 0.25
retry_cap_s = 5
retry_total_s = 30
first_text_s = 10
silence_s = 20
call_s = 120
trip_after = 3
open_s = 15
fallback = ["small"]
price = { input = 1.25, output = 10, cached = 0.125 }
[workers.small]
kind = "local"
[workers.self]
kind = "conductor"
tags = ["deep"]
[run]
dollars = 0.5
tokens = 1000
calls = 20
seconds = 60
steps = 30
depth = 2
rounds = 2
fallback = ["small"]
""",
        encoding="utf-8",
    )

    pool = Pool.load(path, {})

    price = Price(Decimal("1.25"), Decimal("10.0"), Decimal("0.125"))
    assert pool.terms(pool["gpt"]) == Terms(
        8, 60, 90_000, 4, 0.25, 5, 30, 10, 20, 120, 3, 15, ("small",), price
    )
    assert pool.terms(pool["small"]) == Terms(retries=0, trip_after=None)
    assert pool["self"].tags == ("deep",)
    assert pool.settings == RunSettings(Budget(Decimal("0.5"), 1000, 20, 60, 30, 2), 2, ("small",))
    assert pool.source == str(path)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("[run]\ndollar = 1", "run.dollar: there is no such setting; did you mean dollars?"),
        ("[run]\nrounds = 0", "run.rounds: input should be greater than or equal to 1"),
        ('[run]\nfallback = ["b"]', "run.fallback: no worker is called 'b'; the pool has: a"),
        (
            '[workers.b]\nkind = "conductor"\nmodel = "x"',
            "workers.b.model: there is no such setting; possible: card, kind, tags",
        ),
        (
            '[workers.b]\nkind = "conductor"\n[planner]\nworker = "b"',
            "planner.worker: 'b' is the Conductor itself; name the model it is",
        ),
    ],
)
def test_mistakes_in_the_new_tables_are_told(table: str, told: str, tmp_path: Path) -> None:
    """In one line, with file and setting."""
    path = tmp_path / "pool.toml"
    path.write_text(f'[workers.a]\nkind = "local"\n{table}\n', encoding="utf-8")

    with pytest.raises(PoolError) as caught:
        Pool.load(path, {})

    assert str(caught.value) == f"{path}: {told}"
