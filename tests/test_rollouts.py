"""Completions are carried out, all at once, and rewarded; what fails for no fault of theirs is not.

Workers are functions here, but in the last test, which asks the real players.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import anyio
import pytest

from conductor import load_pool
from conductor.prompt import plan_text
from grammar import Plan
from runtime import (
    Budget,
    CallCache,
    Completion,
    FailureKind,
    FunctionWorker,
    JournalError,
    Message,
    Pool,
    PoolError,
    Price,
    Terms,
    Usage,
    WorkerError,
)
from training.graders import Exact
from training.rewards import Reward, Weights
from training.rollouts import Rollout, Rollouts, Settings, Summary
from training.tasks import Part, Task

pytestmark = pytest.mark.anyio

TASK = Task("t", "sums", "How much is 2 and 2?", Exact(("4",)))
ROSTER = ("right", "wrong", "broken")
RIGHT, WRONG, BROKEN = 0, 1, 2
KEEP = "subtasks = []\nworkers = []\naccess = []\n"


def text(*workers: int, subtask: str = "Add.") -> str:
    """A completion: a chain of these workers."""
    access = [[at - 1] if at else [] for at in range(len(workers))]
    return plan_text(Plan.of([subtask] * len(workers), list(workers), access))


class Team:
    """Three workers: one is right, one is wrong, one breaks down as often as it is told."""

    def __init__(
        self, breakdowns: int = 0, kind: FailureKind = FailureKind.OVERLOADED, together: int = 1
    ) -> None:
        self.calls: list[str] = []
        self.seen: list[Sequence[Message]] = []
        self.breakdowns, self.kind = breakdowns, kind
        self.together = together
        """So many calls of the right one must be under way before any of them is answered."""
        self._all_here = anyio.Event()

        async def right(messages: Sequence[Message]) -> Completion:
            self.calls.append("right")
            self.seen.append(messages)
            if self.calls.count("right") >= self.together:
                self._all_here.set()
            await self._all_here.wait()
            return Completion("4", usage=Usage(100, 10))

        async def wrong(messages: Sequence[Message]) -> str:
            self.calls.append("wrong")
            return "5"

        async def broken(messages: Sequence[Message]) -> str:
            self.calls.append("broken")
            if self.breakdowns > 0:
                self.breakdowns -= 1
                raise WorkerError(self.kind, "too much to do")
            return "4"

        workers = [
            FunctionWorker(name, function)
            for name, function in zip(ROSTER, (right, wrong, broken), strict=True)
        ]
        price = Price(Decimal(1), Decimal(10))
        self.pool = Pool(workers, terms={"right": Terms(price=price), "broken": Terms(retries=0)})


async def played(
    *texts: str, team: Team | None = None, offered: Sequence[int] = (0, 1, 2)
) -> list[Rollout]:
    pool = (team or Team()).pool
    return await Rollouts(pool, ROSTER).play([(TASK, offered, each) for each in texts])


async def test_completions_earn_what_they_come_to_in_their_order() -> None:
    found = await played("Ask somebody.", text(WRONG), text(RIGHT), text(RIGHT, WRONG))

    assert [each.total for each in found] == [0, 0.5, 1, 0.5]
    assert [each.plan is None for each in found] == [True, False, False, False]
    assert found[0].failure is not None
    assert found[0].failure.kind is FailureKind.NO_PLAN
    assert found[2].run is not None
    assert found[2].run.answer == "4"


async def test_who_was_not_offered_can_not_be_named() -> None:
    """The numbers are those of the roster, whoever is there."""
    named = 'subtasks = ["Add."]\nworkers = [{}]\naccess = [[]]'
    texts = [named.format(each) for each in ("0", "1", "7", "-1", '"wrong"', '"1"', '""')]

    known, *unknown = await played(*texts, offered=[0, 2])

    assert known.total == 1
    for each in unknown:
        assert (each.total, each.run) == (0, None)
        assert each.failure is not None
        assert each.failure.kind is FailureKind.NO_PLAN


async def test_a_batch_is_under_way_all_at_once() -> None:
    """No call is answered before all have come: one after the other would never end."""
    team = Team(together=9)

    with anyio.fail_after(20):
        found = await played(*[text(RIGHT, subtask=f"Add, {n}.") for n in range(9)], team=team)

    assert [each.total for each in found] == [1] * 9


async def test_what_breaks_down_once_is_tried_again() -> None:
    team = Team(breakdowns=1)

    (found,) = await played(text(BROKEN), team=team)

    assert found.total == 1
    assert team.calls == ["broken", "broken"]


async def test_what_stays_broken_is_masked_and_told() -> None:
    team = Team(breakdowns=99)
    rollouts = Rollouts(team.pool, ROSTER, settings=Settings(retries=2))

    lost, fine = await rollouts.play([(TASK, [0, 2], text(BROKEN)), (TASK, [0, 2], text(RIGHT))])

    assert (lost.reward, lost.total, fine.total) == (None, None, 1)
    assert lost.failure is not None
    assert lost.failure.kind is FailureKind.OVERLOADED
    assert team.calls.count("broken") == 3
    assert (rollouts.summary.masked, rollouts.summary.retried) == (1, 2)


async def test_what_will_not_pass_is_not_tried_again() -> None:
    team = Team(breakdowns=99, kind=FailureKind.UNAUTHORIZED)

    (found,) = await played(text(BROKEN), team=team)

    assert found.reward is None
    assert team.calls == ["broken"]


async def test_a_plan_beyond_its_budget_is_wrong_and_not_masked() -> None:
    rollouts = Rollouts(Team().pool, ROSTER, budget=Budget(calls=1))

    short, long = await rollouts.play([(TASK, [0], text(RIGHT)), (TASK, [0], text(RIGHT, RIGHT))])

    assert (short.total, long.total) == (1, 0.5)
    assert long.failure is not None
    assert long.failure.kind is FailureKind.BUDGET


async def test_a_plan_that_is_too_long_is_no_plan() -> None:
    rollouts = Rollouts(Team().pool, ROSTER, settings=Settings(most_steps=2))

    found = await rollouts.play([(TASK, [0], text(*[RIGHT] * n)) for n in (2, 3)])

    assert [each.total for each in found] == [1, 0]


async def test_with_a_cache_nobody_is_asked_the_same_twice(tmp_path: Path) -> None:
    team = Team()
    with CallCache(tmp_path / "calls.db") as cache:
        rollouts = Rollouts(team.pool, ROSTER, cache=cache)
        batch = [(TASK, [0, 1], text(RIGHT))] * 3 + [(TASK, [0, 1], text(WRONG))]

        first = await rollouts.play(batch)
        one = rollouts.summary
        again = await rollouts.play([*batch, (TASK, [0, 1], text(RIGHT, WRONG))])
        two = rollouts.summary

    assert [each.total for each in first] == [each.total for each in again[:4]] == [1, 1, 1, 0.5]
    assert sorted(team.calls[:2]) == ["right", "wrong"]
    assert team.calls[2:] == ["right", "wrong"]  # a step of two is told otherwise
    assert (one.completions, one.valid, one.runs, one.calls, one.cached) == (4, 4, 2, 2, 0)
    assert (two.completions, two.valid, two.runs, two.calls, two.cached) == (5, 5, 3, 2, 2)
    assert first[0].run is first[1].run


async def test_a_cache_that_can_not_be_read_ends_the_batch(tmp_path: Path) -> None:
    (tmp_path / "calls.db").write_text("no database, but longer than the head of one" * 9)
    with pytest.raises(JournalError), CallCache(tmp_path / "calls.db") as cache:
        await Rollouts(Team().pool, ROSTER, cache=cache).play([(TASK, [0], text(RIGHT))] * 2)


async def test_cost_and_length_are_parts_of_their_own(tmp_path: Path) -> None:
    """What the cache had costs as if it had been asked for."""
    weights = Weights(cost=1, length=0.01)
    with CallCache(tmp_path / "calls.db") as cache:
        rollouts = Rollouts(Team().pool, ROSTER, cache=cache, settings=Settings(weights=weights))
        batch = [(TASK, [0], text(RIGHT)), (TASK, [0], "?")]

        found = [await rollouts.play(batch, tokens=[20, 10]) for _ in range(2)]
        with pytest.raises(ValueError, match="1 lengths for 2 completions"):
            await rollouts.play(batch, tokens=[20])

    dollars = 100 * 1e-6 + 10 * 10e-6
    for plan, none in found:
        assert plan.reward is not None
        assert none.reward == Reward(0, 0, length=pytest.approx(-0.1))  # type: ignore[arg-type]
        assert plan.reward.cost == pytest.approx(-1000 * dollars)
        assert plan.reward.length == pytest.approx(-0.2)


async def test_a_step_that_is_right_about_a_part_counts_where_the_answer_is_wrong() -> None:
    """Four is a part's answer, five the whole one's; only steps before the last can be a part."""
    parts = (Part("sums", "Add 2 and 2.", "4"), Part("sums", "Add one to it.", "5"))
    chain = Task("c", "chain", "Add 2, 2 and 1.", Exact(("5",)), parts=parts)
    plans = [(RIGHT, WRONG), (RIGHT, RIGHT), (RIGHT, BROKEN), (WRONG, RIGHT), (RIGHT,)]
    batch = [(chain, [0, 1, 2], text(*workers)) for workers in plans]
    weights = Weights(parts=0.25)

    paid = await Rollouts(Team().pool, ROSTER, settings=Settings(weights=weights)).play(batch)
    unpaid = await Rollouts(Team().pool, ROSTER).play(batch)

    assert [each.total for each in paid] == [1, 0.75, 0.75, 0.5, 0.5]
    assert [each.total for each in unpaid] == [1, 0.5, 0.5, 0.5, 0.5]
    assert [each.outcome.parts for each in unpaid] == [1, 1, 1, 0, 0]


async def test_throughput_is_a_share_of_what_the_workers_alone_can_do() -> None:
    """The same calls are made, each once, in the order in which they wait for one another."""
    team = Team()
    rollouts = Rollouts(team.pool, ROSTER)
    found = await rollouts.play([(TASK, [0, 1], text(RIGHT, WRONG)), (TASK, [0, 1], "?")])
    seen, team.calls = team.seen, []
    team.seen = []

    alone_s = await rollouts.alone(found)

    assert team.calls == ["right", "wrong"]
    assert team.seen == seen
    assert alone_s > 0
    assert rollouts.summary.share(alone_s) == alone_s / rollouts.summary.seconds
    assert Summary(seconds=4).share(3) == 0.75


# --- two rounds -----------------------------------------------------------------------------------


async def test_a_second_round_keeps_mends_spoils_or_is_garbled() -> None:
    team = Team()
    rollouts = Rollouts(team.pool, ROSTER)
    right, wrong = await rollouts.play([(TASK, [0, 1], text(n)) for n in (RIGHT, WRONG)])
    team.calls.clear()

    found = await rollouts.play_again(
        [right, wrong, wrong, right, right, wrong],
        [KEEP, KEEP, text(RIGHT), text(WRONG), "I keep it.", text(BROKEN)],
    )

    assert [each.total for each in found] == [1, 0.5, 1, 0.5, 0, 0]
    assert [each.kept for each in found] == [True, True, False, False, False, False]
    assert sorted(team.calls) == ["right", "wrong"]  # no step of a first round is done again
    assert found[0].run is right.run
    assert found[2].run is not None
    assert [each.answer for each in found[2].run.rounds] == ["5", "4"]


async def test_steps_of_a_second_round_see_the_first_answer() -> None:
    team = Team()
    rollouts = Rollouts(team.pool, ROSTER)
    (wrong,) = await rollouts.play([(TASK, [0, 1], text(WRONG))])

    await rollouts.play_again([wrong], [text(RIGHT)])

    assert "[previous answer" in team.seen[0][-1].content


async def test_second_rounds_without_a_fault_of_their_own_are_masked() -> None:
    team = Team(breakdowns=99)
    rollouts = Rollouts(team.pool, ROSTER)
    firsts = await rollouts.play([(TASK, [0, 1, 2], text(RIGHT))])

    (found,) = await rollouts.play_again(firsts, [text(BROKEN)])

    assert found.reward is None


async def test_no_second_round_follows_what_has_no_answer() -> None:
    rollouts = Rollouts(Team().pool, ROSTER)
    firsts = await rollouts.play([(TASK, [0, 1], "?")])

    with pytest.raises(ValueError, match="no first round with an answer"):
        await rollouts.play_again(firsts, [KEEP])


# --- mistakes of who calls ------------------------------------------------------------------------


async def test_rosters_and_numbers_are_checked() -> None:
    with pytest.raises(PoolError, match="nobody"):
        Rollouts(Team().pool, ["right", "nobody"])
    with pytest.raises(PoolError, match="roster is empty"):
        Rollouts(Team().pool, [])
    with pytest.raises(ValueError, match="worker 3 is offered; the roster has 0 to 2"):
        await Rollouts(Team().pool, ROSTER).play([(TASK, [3], text(RIGHT))])


# --- the real players -----------------------------------------------------------------------------


async def test_the_real_players_are_carried_out(tmp_path: Path) -> None:
    """Who is good at a task earns more than who is not, and than what is no plan."""
    pool = load_pool("orchestra")
    task = Task("s", "sort", "Put these numbers in order: 78, 12, 45.", Exact(("12 45 78",)))
    with CallCache(tmp_path / "calls.db") as cache:
        rollouts = Rollouts(pool, pool.names, cache=cache)
        sorter, plain = pool.names.index("sorter"), pool.names.index("plain")
        same = [text(number, subtask=task.question) for number in (sorter, plain, sorter)]

        found = await rollouts.play([(task, range(len(pool)), each) for each in [*same, "?"]])

    assert [each.total for each in found] == [1, 0.5, 1, 0]
    assert (rollouts.summary.runs, rollouts.summary.calls) == (2, 2)
