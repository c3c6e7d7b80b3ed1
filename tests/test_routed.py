"""Runs that a router decides: single picks, turns with roles, and what is on record of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path

import anyio
import numpy as np
import pytest

from conductor import Budget, Conductor, Encoder, Head, Router, RouterError
from conductor.router import role_probabilities
from conductor.show import show
from runtime import (
    ROLES,
    Event,
    FailureKind,
    FunctionWorker,
    Journal,
    LocalModel,
    LocalWorker,
    Message,
    Pick,
    PlanSource,
    Pool,
    PoolFile,
    Record,
    ReplayError,
    Role,
    Run,
    RunState,
    Sampling,
    States,
    StepFinished,
    WorkerError,
    WorkerPicked,
    carry_out,
    fold,
    replay,
)

pytestmark = pytest.mark.anyio

NAMES = ("ann", "bob", "cid")
SOLVER, THINKER, VERIFIER = Role


class Scripted(Encoder):
    """Reads what a script says: states that a head of unit rows turns into its picks."""

    def __init__(self, *script: tuple[str, Role | None]) -> None:
        super().__init__(LocalModel("scripted"))
        self.script = list(script)
        self.heard: list[tuple[str, ...]] = []
        """The thoughts that it was told, reading by reading."""

    async def astates(
        self, conversations: Sequence[object], *, thoughts: Sequence[str] = ()
    ) -> States:
        await anyio.lowlevel.checkpoint()
        self.heard.append(tuple(thoughts))
        worker, role = self.script.pop(0)
        state = np.zeros((1, len(NAMES) + len(ROLES)), dtype=np.float32)
        state[0, NAMES.index(worker)] = 1
        if role is not None:
            state[0, len(NAMES) + ROLES.index(role)] = 1
        return States(state[:, : len(NAMES)] if role is None else state, (7,))


def scripted(*script: tuple[str, Role | None], **more: object) -> Router:
    roles = script[0][1] is not None
    size = len(NAMES) + len(ROLES) * roles
    head = Head(np.eye(size, dtype=np.float32) * 9, NAMES, roles)
    return Router(head, Scripted(*script), **more)  # type: ignore[arg-type]


class Team:
    """Workers that say what is next, and who was called with what."""

    def __init__(self, *said: str) -> None:
        self.said = list(said)
        self.calls: list[tuple[str, tuple[Message, ...]]] = []

    def pool(self, names: Sequence[str] = NAMES) -> Pool:
        return Pool([FunctionWorker(name, self._worker(name)) for name in names])

    def _worker(self, name: str):  # type: ignore[no-untyped-def]
        async def answer(messages: Sequence[Message]) -> str:
            self.calls.append((name, tuple(messages)))
            await anyio.lowlevel.checkpoint()
            return self.said.pop(0) if self.said else f"{name} did it"

        return answer


LOOP = [
    ("ann", THINKER),
    ("bob", VERIFIER),  # but the thinker wants a solver
    ("cid", VERIFIER),
    ("ann", SOLVER),
    ("bob", VERIFIER),
]
SAID = (
    "<suggestion>Count.</suggestion> <suggested_role>solver</suggested_role>",
    "It is 4. <idea>fingers</idea>",
    "REJECT: not sure.",
    "It is 4, surely.",
    "ACCEPT",
)


def same_again(run: Run) -> None:
    """A run replays to itself and comes back from its JSON."""
    assert Run.from_json(run.to_json()) == run
    assert replay(run) == run


async def check_again(run: Run) -> None:
    await anyio.to_thread.run_sync(same_again, run)


# -- single picks --------------------------------------------------------------------------------


async def test_a_pick_is_a_plan_of_one_step_and_is_on_record() -> None:
    team = Team()
    events: list[Event] = []
    router = scripted(("bob", None))

    run = await Conductor(team.pool(), router=router).arun("Why?", on_event=events.append)

    assert (run.state, run.answer, run.source) == (RunState.DONE, "bob did it", PlanSource.ROUTER)
    assert team.calls == [("bob", (Message("user", "Why?"),))]
    pick = run.rounds[0].pick
    assert pick is not None
    assert (pick.worker, pick.tokens, pick.backbone) == ("bob", 7, "scripted")
    assert list(pick.probabilities) == list(NAMES)
    assert sum(pick.probabilities.values()) == pytest.approx(1)
    assert [each.pick for each in events if isinstance(each, WorkerPicked)] == [pick]
    assert fold(events) == run
    assert run.router == "python"
    await check_again(run)


async def test_workers_that_may_not_be_used_are_not_picked() -> None:
    router = scripted(("bob", None))

    run = await Conductor(Team().pool(), router=router).arun("Why?", without=["bob"])

    pick = run.rounds[0].pick
    assert pick is not None and run.plan is not None
    assert pick.worker == run.plan.final.worker != "bob"
    assert list(pick.probabilities) == ["ann", "cid"]


async def test_workers_that_the_router_does_not_know_are_told() -> None:
    pool = Team().pool(["new", "cid"])

    run = await Conductor(pool, router=scripted(("bob", None))).arun("Why?")

    pick = run.rounds[0].pick
    assert pick is not None
    assert (pick.worker, pick.unknown) == ("cid", ("new",))


async def test_without_a_worker_that_it_knows_there_is_no_answer() -> None:
    run = await Conductor(Team().pool(["new"]), router=scripted(("bob", None))).arun("Why?")

    assert run.failure is not None
    assert run.failure.kind is FailureKind.EXCLUDED
    told = "no worker is left for the router: it knows ann, bob, cid; there is new"
    assert run.failure.message == told
    await check_again(run)


async def test_a_backbone_that_can_not_be_read_is_a_failure_and_no_crash() -> None:
    head = Head(np.zeros((3, 4), np.float32), NAMES)
    router = Router(head, Encoder(LocalModel("/nowhere")))

    run = await Conductor(Team().pool(), router=router).arun("Why?")

    assert run.failure is not None
    assert run.failure.kind is FailureKind.MODEL
    assert "no model '/nowhere'" in run.failure.message
    await check_again(run)


async def test_a_plan_or_worker_of_the_callers_own_comes_first() -> None:
    team = Conductor(Team().pool(), router=scripted(("bob", None)))

    assert (await team.arun("Why?", worker="ann")).source is PlanSource.PICK
    with pytest.raises(ValueError, match="rounds need a planner or a router with roles"):
        await team.arun("Why?", rounds=2)


async def test_real_states_decide_among_real_workers(tiny_folder: Path) -> None:
    """The random model with a token for each byte: it reads, and a worker of it answers."""
    model = LocalModel(str(tiny_folder))
    weight = np.random.default_rng(0).normal(size=(2, 32)).astype(np.float32)
    router = Router(Head(weight, ("ann", "bob")), Encoder(str(tiny_folder), system="s"))
    conductor = Conductor(
        Pool([LocalWorker(name, model) for name in ("ann", "bob")]), router=router
    )

    run = await conductor.arun("Why?", budget=Budget(seconds=60))

    pick = run.rounds[0].pick
    expected = await anyio.to_thread.run_sync(router.route, "Why?")
    assert pick is not None
    assert pick.worker == expected.worker == run.steps[0].worker
    for name, chance in pick.probabilities.items():
        assert chance == pytest.approx(expected.probabilities[name], abs=1e-4)
    assert conductor._router is not None
    assert conductor._router.encoder.model is model
    await check_again(run)


def test_a_pool_file_may_name_its_router(tmp_path: Path, tiny_folder: Path) -> None:
    head = Head(np.zeros((1, 32), np.float32), ("ann",))
    Router(head, Encoder(str(tiny_folder))).save(tmp_path / "r")
    text = '[run]\nrouter = "r"\n[workers.ann]\nkind = "local"\n'
    (tmp_path / "pool.toml").write_text(text)

    pool = Pool.load(tmp_path / "pool.toml")

    assert pool.settings.router == str(tmp_path / "r")
    assert PoolFile.parse(text.replace('"r"', '"embedded"')).router == "embedded"
    assert Conductor(pool)._router is not None
    assert Conductor(pool, planner="ann")._router is None


# -- turns ---------------------------------------------------------------------------------------


async def test_real_states_draw_real_roles(tiny_folder: Path) -> None:
    """Turn after turn the random model reads the ideas so far, and answers in its role."""
    weight = np.random.default_rng(5).normal(size=(5, 32)).astype(np.float32)
    encoder = Encoder(str(tiny_folder), system="s", frame="{question}", lead="")
    router = Router(Head(weight, ("ann", "bob"), roles=True), encoder, sample=True, seed=4, turns=3)
    workers = [
        LocalWorker(name, encoder.model, sampling=Sampling(temperature=0.0, max_tokens=4))
        for name in ("ann", "bob")
    ]

    run = await Conductor(Pool(workers), router=router).arun("Why?")

    state = (await encoder.astates(["Why?"])).vectors
    pick = run.rounds[0].pick
    assert pick is not None
    assert list(pick.roles.values()) == pytest.approx(role_probabilities(router.head, state)[0])
    assert [str(role) for role in ROLES] == list(pick.roles)
    await check_again(run)


async def test_a_router_from_a_folder_goes_on_where_it_is_named(
    tmp_path: Path, tiny_folder: Path
) -> None:
    """The run knows its router's folder, so that `conductor resume` needs no word of it."""
    head = Head(np.zeros((3, 32), np.float32), NAMES)
    Router(head, Encoder(str(tiny_folder), system="s")).save(tmp_path / "r")
    journal, team = Journal(tmp_path / "journal.db"), Team()
    router = Router.load(tmp_path / "r")
    first = await Conductor(team.pool(), router=router, journal=journal).arun(
        "Why?", budget=Budget(calls=0)
    )

    run = await Conductor(team.pool(), journal=journal).aresume(first.id, budget=Budget())

    assert (first.answer, first.router) == (None, str(tmp_path / "r"))
    assert (run.answer, run.source) == ("ann did it", PlanSource.ROUTER)
    assert run.rounds[0].pick == first.rounds[0].pick
    await check_again(run)
    journal.close()


async def test_turns_follow_the_rules_and_the_record_tells_them() -> None:
    team, router = Team(*SAID), scripted(*LOOP)

    run = await Conductor(team.pool(), router=router).arun("2 + 2?")

    assert (run.state, run.answer, run.failure) == (RunState.DONE, "It is 4, surely.", None)
    picks = [each.pick for each in run.rounds if each.pick is not None]
    assert [name for name, _ in team.calls] == ["ann", "bob", "cid", "ann", "bob"]
    assert [pick.role for pick in picks] == [THINKER, SOLVER, VERIFIER, SOLVER, VERIFIER]
    assert [pick.suggested for pick in picks] == [False, True, False, False, False]
    asked = [messages[-1].content for _, messages in team.calls]
    assert asked[0] == "2 + 2?"
    assert "]\nCount.\n[end of suggestion" in asked[1]
    assert "]\nIt is 4.\n[end of answer" in asked[2]
    assert "]\nfingers\n[end of idea 1" in asked[3]
    encoder = router.encoder
    assert isinstance(encoder, Scripted)
    assert encoder.heard == [(), (), ("fingers",), ("fingers",), ("fingers", "It is 4, surely.")]
    await check_again(run)


async def test_an_accepted_answer_ends_the_turns() -> None:
    team = Team("It is 4.", "ACCEPT")
    router = scripted(("ann", SOLVER), ("bob", VERIFIER), ("cid", SOLVER))

    run = await Conductor(team.pool(), router=router).arun("2 + 2?")

    assert (run.answer, len(team.calls)) == ("It is 4.", 2)
    assert [each.kept for each in run.rounds] == [False, False, True]
    assert isinstance(router.encoder, Scripted)
    assert len(router.encoder.script) == 1
    await check_again(run)


async def test_a_verifier_of_nothing_ends_without_an_answer() -> None:
    team = Team()

    run = await Conductor(team.pool(), router=scripted(("ann", VERIFIER))).arun("2 + 2?")

    assert (run.state, run.answer, team.calls) == (RunState.FAILED, None, [])
    assert run.failure is not None and run.failure.kind is FailureKind.NO_ANSWER
    await check_again(run)


async def test_thinkers_alone_come_to_no_answer() -> None:
    router = scripted(*[("ann", THINKER)] * 3, turns=3)

    run = await Conductor(Team().pool(), router=router).arun("2 + 2?")

    assert (run.state, run.answer, len(run.rounds)) == (RunState.FAILED, None, 3)
    assert run.failure is not None
    assert run.failure.message.startswith("all 3 turns went to thinkers")
    await check_again(run)


async def test_at_the_limit_the_current_answer_counts() -> None:
    team = Team(*[f"answer {at}" for at in range(9)])

    run = await Conductor(team.pool(), router=scripted(*[("ann", SOLVER)] * 9)).arun("2 + 2?")
    two = await Conductor(team.pool(), router=scripted(*[("ann", SOLVER)] * 9)).arun(
        "2 + 2?", rounds=2
    )

    assert (run.answer, len(run.rounds), run.failure) == ("answer 4", 5, None)
    assert (two.answer, len(two.rounds)) == ("answer 6", 2)
    await check_again(run)


async def test_a_worker_that_fails_ends_the_turns_with_what_there_is() -> None:
    calls = 0

    async def answer(messages: Sequence[Message]) -> str:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise WorkerError(FailureKind.REJECTED, "no more")
        return "It is 4."

    pool = Pool([FunctionWorker("ann", answer)])
    run = await Conductor(pool, router=scripted(*[("ann", SOLVER)] * 5)).arun("2 + 2?")

    assert (run.state, run.answer, len(run.rounds)) == (RunState.DONE, "It is 4.", 2)
    assert run.failure is not None and "no more" in run.failure.message
    await check_again(run)


async def test_a_budget_bounds_the_calls_of_all_turns() -> None:
    team = Team()

    run = await Conductor(team.pool(), router=scripted(*[("ann", SOLVER)] * 5)).arun(
        "2 + 2?", budget=Budget(calls=2)
    )

    assert (len(team.calls), run.answer) == (2, "ann did it")
    assert run.failure is not None and run.failure.kind is FailureKind.BUDGET
    await check_again(run)


async def test_drawn_turns_are_the_same_for_a_seed() -> None:
    def roles(run: Run) -> list[tuple[str, Role | None]]:
        return [(each.pick.worker, each.pick.role) for each in run.rounds if each.pick is not None]

    found = []
    for _ in range(2):
        router = scripted(*[("ann", SOLVER)] * 5, sample=True, seed=3)
        flat = Head(router.head.weight / 20, NAMES, True)
        router = Router(flat, router.encoder, sample=True, seed=3)
        run = await Conductor(Team().pool(), router=router).arun("2 + 2?")
        assert all(each.pick is None or each.pick.sampled for each in run.rounds)
        found.append(roles(run))
        await check_again(run)

    assert found[0] == found[1]


async def test_a_loop_that_is_killed_anywhere_goes_on_without_a_second_call() -> None:
    """After every event of a run: picks and calls that are on record are not made again."""
    events: list[Event] = []
    whole = await Conductor(Team(*SAID).pool(), router=scripted(*LOOP)).arun(
        "2 + 2?", on_event=events.append
    )
    for end in range(1, len(events)):
        past = Record()
        for event in events[:end]:
            past.add(event)
        picked = sum(isinstance(event, WorkerPicked) for event in events[:end])
        called = sum(isinstance(event, StepFinished) for event in events[:end])
        team = Team(*SAID[called:])
        router = scripted(*(LOOP[picked:] or LOOP[-1:]))

        run = await carry_out(
            "2 + 2?", team.pool(), router.decide, rounds=5, past=past, source=PlanSource.ROUTER
        )

        assert len(team.calls) == len(SAID) - called
        assert (run.answer, run.state) == (whole.answer, whole.state)
        texts = [[step.text for step in each.steps] for each in run.rounds]
        assert texts == [[step.text for step in each.steps] for each in whole.rounds]
        saw = [[step.messages for step in each.steps] for each in run.rounds]
        assert saw == [[step.messages for step in each.steps] for each in whole.rounds]


async def test_a_journal_goes_on_with_turns_that_were_cancelled(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    team, router = Team(*SAID), scripted(*LOOP)
    conductor = Conductor(team.pool(), router=router, journal=journal)
    seen: list[Event] = []

    def stop(event: Event) -> None:
        seen.append(event)
        if sum(isinstance(each, StepFinished) for each in seen) == 3:
            scope.cancel()

    with anyio.CancelScope() as scope:
        await conductor.arun("2 + 2?", on_event=stop)
    stopped = journal.run("last")
    run = await conductor.aresume(stopped.id)

    assert stopped.state is RunState.CANCELLED
    assert (run.answer, [name for name, _ in team.calls]) == (
        "It is 4, surely.",
        ["ann", "bob", "cid", "ann", "bob"],
    )
    assert journal.run(run.id) == run
    await check_again(run)
    with pytest.raises(RouterError, match="its router was made in Python"):
        other = await Conductor(team.pool(), router=scripted(("ann", None)), journal=journal).arun(
            "Why?", budget=Budget(calls=0)
        )
        await Conductor(team.pool(), journal=journal).aresume(other.id)
    journal.close()


async def test_a_pick_that_does_not_follow_from_itself_is_found_in_replay() -> None:
    run = await Conductor(Team(*SAID).pool(), router=scripted(*LOOP)).arun("2 + 2?")

    def spoilt(number: int, **change: object) -> Run:
        rounds = list(run.rounds)
        pick = rounds[number].pick
        assert isinstance(pick, Pick)
        rounds[number] = replace(rounds[number], pick=replace(pick, **change))  # type: ignore[arg-type]
        return replace(run, rounds=tuple(rounds))

    for other, told in (
        (spoilt(0, worker="bob"), "pick: recorded 'bob', but what comes of it is 'ann'"),
        (spoilt(1, suggested=False), "round 2, pick"),
        (spoilt(2, role=SOLVER), "round 3, pick"),
    ):
        with pytest.raises(ReplayError, match=told):
            await check_again(other)


async def test_a_run_on_paper_tells_who_was_picked_and_why() -> None:
    from rich.console import Console

    run = await Conductor(Team(*SAID).pool(), router=scripted(*LOOP)).arun("2 + 2?")
    console = Console(record=True, width=100, file=StringIO())
    show(run, console)
    told = console.export_text()

    assert "picked    ann, most probable" in told
    assert "role      solver, as the thinker suggested" in told
    assert "ann 100.0% · bob 0.0% · cid 0.0%" in told
    assert told.count("router scripted") == 5


async def test_the_answer_of_turns_is_streamed_whole() -> None:
    conductor = Conductor(
        Team("4 <idea>x</idea>").pool(), router=scripted(("ann", SOLVER), turns=1)
    )

    async with conductor.stream("2 + 2?") as stream:
        pieces = [piece async for piece in stream.text()]

    assert pieces == ["4"]
