"""Labels: the matrix and its folder; collecting that survives kills, ceilings and dead workers."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Self

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grammar import Plan
from runtime import (
    Budget,
    Call,
    CallCache,
    Completion,
    ConductorWorker,
    FailureKind,
    Health,
    JournalError,
    LocalModel,
    LocalWorker,
    OnText,
    Pool,
    Price,
    Sampling,
    Terms,
    Usage,
    WorkerError,
    run_plan,
)
from runtime.worker import ignore
from tests.team import team
from training.graders import Code, GraderError, Number
from training.labels import (
    CALLS,
    PATIENCE,
    ROWS,
    Labels,
    LabelsError,
    Row,
    collect,
    line_of,
    read,
    read_manifest,
    read_rows,
)
from training.tasks import Task, task, write_jsonl

SUMS = tuple(task("sums", f"{at} + 1?", Number(str(at + 1)), answer=str(at + 1)) for at in range(6))
WORKERS = ("one", "two", "three")


def some(
    tasks: tuple[Task, ...] = SUMS, workers: tuple[str, ...] = WORKERS, repeats: int = 2
) -> Labels:
    scores = np.random.default_rng(0).integers(0, 2, (len(tasks), len(workers), repeats))
    return Labels(tasks, workers, scores.astype(np.float32))


def same(one: Labels, other: Labels) -> bool:
    return (
        (one.tasks, one.workers) == (other.tasks, other.workers)
        and one.scores.shape == other.scores.shape
        and np.array_equal(one.scores, other.scores, equal_nan=True)
    )


# -- the value -----------------------------------------------------------------------------------


@given(st.integers(0, 6), st.integers(1, 3), st.integers(1, 4), st.integers(0, 9))
def test_labels_come_back_from_their_folder(
    tmp_path_factory: pytest.TempPathFactory, tasks: int, workers: int, repeats: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    scores = random.random((tasks, workers, repeats), dtype=np.float32)
    scores[random.random(scores.shape) < 0.3] = np.nan
    labels = Labels(SUMS[:tasks], WORKERS[:workers], scores)
    folder = tmp_path_factory.mktemp("labels") / "new"

    labels.write(folder)

    assert same(read(folder), labels)
    with pytest.raises(LabelsError, match="is there already; name another folder"):
        labels.write(folder)


def test_means_leave_out_what_was_not_measured() -> None:
    nan = np.nan
    scores = np.array([[[1, 0], [1, nan], [nan, nan]]], np.float32)

    assert np.array_equal(
        Labels(SUMS[:1], WORKERS, scores).means,
        np.array([[0.5, 1, nan]], np.float32),
        equal_nan=True,
    )


def test_labels_are_frozen_and_of_one_shape() -> None:
    labels = some()

    with pytest.raises(ValueError, match="read-only"):
        labels.scores[0, 0, 0] = 1
    with pytest.raises(LabelsError, match=r"tasks and workers ask for \(6, 3, R\)"):
        Labels(SUMS, WORKERS, np.zeros((6, 2, 1), np.float32))


def test_a_newcomer_joins() -> None:
    labels, newcomer = some(), some(workers=("four",), repeats=1)

    joined = labels.merged(newcomer)

    assert joined.workers == (*WORKERS, "four")
    assert same(joined.only(*WORKERS), labels)
    assert np.array_equal(joined.only("four").scores[:, :, :1], newcomer.scores)
    assert np.array_equal(joined.only("four").means, newcomer.means)


def test_other_tasks_join_and_what_nobody_measured_is_not_complete() -> None:
    labels, more = some(SUMS[:4]), some(SUMS[4:], WORKERS[:2])

    joined = labels.merged(more)

    assert joined.tasks == SUMS
    assert same(joined.complete(), labels)
    assert np.isnan(joined.only("three").scores[4:]).all()


def test_a_worker_that_was_not_measured_is_named() -> None:
    with pytest.raises(LabelsError, match="no worker 'nobody' was measured; there are: one, two"):
        some().only("nobody")


# -- the folder ----------------------------------------------------------------------------------


def test_of_several_rows_the_last_one_counts_and_a_torn_one_does_not(tmp_path: Path) -> None:
    some().write(tmp_path / "labels")
    key = (SUMS[0].id, "one", 0)
    file = tmp_path / "labels" / ROWS
    before = read_rows(tmp_path / "labels")[key].score
    assert before is not None
    with file.open("ab") as appended:
        appended.write(line_of(Row(*key, 1 - before)))
        appended.write(line_of(Row(*key, before))[:-9])

    assert read_rows(tmp_path / "labels")[key].score == 1 - before


def test_a_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    some().write(tmp_path / "labels")
    with (tmp_path / "labels" / ROWS).open("ab") as appended:
        appended.write(b'{"task": "x"}\n')

    with pytest.raises(LabelsError, match=r"labels.jsonl:37: not a row of labels: Field required"):
        read(tmp_path / "labels")


def test_a_folder_without_labels_says_how_to_make_some(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="`conductor labels` makes a folder of labels"):
        read(tmp_path)


# -- collecting ----------------------------------------------------------------------------------

SOON = Terms(retries=1, retry_base_s=0.001, trip_after=None)


class Player:
    """A worker that adds, or does not; it keeps the calls that reached it."""

    constrains = False
    card, tags = "", ()

    def __init__(self, name: str, answer: Callable[[str], str] = lambda sum_: "no idea") -> None:
        self.name = name
        self.identity = f"player {name}"
        self.answer = answer
        self.calls: list[Call] = []

    async def complete(self, call: Call, on_text: OnText = ignore) -> Completion:
        self.calls.append(call)
        await anyio.lowlevel.checkpoint()
        text = self.answer(call.messages[-1].content)
        return Completion(text, usage=Usage(20, 5))

    async def check(self) -> Health:
        return Health(True, "")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        pass


def right(question: str) -> str:
    return str(int(question.split()[0]) + 1)


def down(question: str) -> str:
    raise WorkerError(FailureKind.UNREACHABLE, "no connection")


@pytest.mark.anyio
async def test_every_worker_is_asked_every_task_with_the_messages_of_a_run(tmp_path: Path) -> None:
    adder, other = Player("adder", right), Player("other")
    pool = Pool([adder, other, ConductorWorker("self")])
    told: list[Row] = []

    labels = await collect(SUMS, pool, folder=tmp_path, progress=told.append)

    assert labels.workers == ("adder", "other")
    assert labels.means.tolist() == [[1.0, 0.0]] * 6
    assert same(read(tmp_path), labels)
    assert sorted(row.key for row in told) == sorted(read_rows(tmp_path))
    run = await run_plan(Plan.of([SUMS[0].question], ["adder"], [[]]), SUMS[0].question, pool)
    assert run.steps[0].messages in [call.messages for call in adder.calls[:-1]]
    row = read_rows(tmp_path)[SUMS[3].id, "adder", 0]
    assert (row.reply, row.score, row.usage, row.calls) == ("4", 1.0, Usage(20, 5), 1)


@pytest.mark.anyio
async def test_each_repeat_is_a_draw_of_its_own_and_the_same_in_another_folder(
    tmp_path: Path,
) -> None:
    one, two = Player("dice", right), Player("dice", right)

    await collect(SUMS, Pool([one]), folder=tmp_path / "a", repeats=3)
    await collect(SUMS, Pool([two]), folder=tmp_path / "b", repeats=3)

    seeds = [call.sampling.seed for call in one.calls]
    assert len(set(seeds)) == 18
    assert seeds == [call.sampling.seed for call in two.calls]
    other = Player("dice", right)
    await collect(SUMS, Pool([other]), folder=tmp_path / "c", repeats=3, seed=1)
    assert not {call.sampling.seed for call in other.calls} & set(seeds)


@pytest.mark.anyio
async def test_nothing_is_asked_twice_and_what_failed_is_asked_again(tmp_path: Path) -> None:
    adder, flaky = Player("adder", right), Player("flaky", down)
    pool = Pool([adder, flaky], terms=SOON)

    first = await collect(SUMS, pool, folder=tmp_path)

    assert np.isnan(first.only("flaky").scores).all()
    assert len(flaky.calls) == 12  # each was tried again once
    assert read_manifest(tmp_path)["failed"] == {"flaky": {"unreachable": 6}}
    row = read_rows(tmp_path)[SUMS[0].id, "flaky", 0]
    assert row.failure is not None and (row.score, row.calls) == (None, 2)

    flaky.answer = right
    again = await collect(SUMS, pool, folder=tmp_path, concurrency=1)

    assert again.means.tolist() == [[1.0, 1.0]] * 6
    assert (len(adder.calls), len(flaky.calls)) == (6, 18)
    assert read_manifest(tmp_path)["failed"] == {}


@pytest.mark.anyio
async def test_an_answer_without_text_is_wrong_and_no_failure(tmp_path: Path) -> None:
    labels = await collect(
        SUMS, Pool([Player("mute", lambda asked: " ")], terms=SOON), folder=tmp_path
    )

    assert labels.means.tolist() == [[0.0]] * 6


@pytest.mark.anyio
async def test_a_worker_that_is_dead_is_given_up_and_the_others_are_not(tmp_path: Path) -> None:
    tasks = [task("many", f"{at} + 1?", Number(str(at + 1))) for at in range(100)]
    dead, adder = Player("dead", down), Player("adder", right)

    labels = await collect(tasks, Pool([dead, adder], terms=SOON), folder=tmp_path, concurrency=4)

    assert len(dead.calls) < 2 * (PATIENCE + 4)
    assert labels.only("adder").means.tolist() == [[1.0]] * 100
    assert read_manifest(tmp_path)["given_up"] == {"dead": "no connection"}


@pytest.mark.anyio
async def test_nobody_stands_in_for_a_worker(tmp_path: Path) -> None:
    dead, adder = Player("dead", down), Player("adder", right)
    terms = {"dead": Terms(retries=0, fallback=("adder",))}

    labels = await collect(SUMS, Pool([dead, adder], terms=terms), folder=tmp_path)

    assert np.isnan(labels.only("dead").scores).all()
    assert len(adder.calls) == 6


@pytest.mark.anyio
async def test_calls_and_dollars_have_ceilings_that_count_what_was_spent_before(
    tmp_path: Path,
) -> None:
    adder = Player("adder", right)
    price = Price(Decimal(1000), Decimal(2000))  # 3 cents a call
    pool = Pool([adder], terms=Terms(price=price))

    await collect(SUMS, pool, folder=tmp_path, budget=Budget(calls=2))
    assert len(adder.calls) == 2
    assert "2 calls" in read_manifest(tmp_path)["stopped"]
    await collect(SUMS, pool, folder=tmp_path, budget=Budget(dollars=Decimal("0.1")), concurrency=1)
    assert len(adder.calls) == 4
    assert read_manifest(tmp_path)["dollars"] == "0.12"
    labels = await collect(SUMS, pool, folder=tmp_path, budget=Budget(seconds=0))
    assert len(adder.calls) == 4
    assert np.isnan(labels.scores).sum() == 2
    labels = await collect(SUMS, pool, folder=tmp_path)
    assert labels.means.tolist() == [[1.0]] * 6
    assert (len(adder.calls), read_manifest(tmp_path)["stopped"]) == (6, "")


@pytest.mark.anyio
async def test_the_cache_of_another_collection_saves_its_calls(tmp_path: Path) -> None:
    adder = Player("adder", right)
    pool = Pool([adder], terms=Terms(price=Price(Decimal(1000), Decimal(2000))))
    await collect(SUMS, pool, folder=tmp_path / "a", repeats=2)

    with CallCache(tmp_path / "a" / CALLS) as cache:
        labels = await collect(SUMS, pool, folder=tmp_path / "b", repeats=2, cache=cache)

    assert len(adder.calls) == 12
    assert labels.means.tolist() == [[1.0]] * 6
    row = read_rows(tmp_path / "b")[SUMS[0].id, "adder", 1]
    assert (row.calls, row.paid, row.dollars) == (0, 0, Decimal("0.03"))


@pytest.mark.anyio
async def test_a_newcomer_is_asked_alone_and_one_that_changed_again(tmp_path: Path) -> None:
    adder, newcomer = Player("adder", right), Player("newcomer")
    await collect(SUMS, Pool([adder]), folder=tmp_path)

    labels = await collect(SUMS, Pool([newcomer]), folder=tmp_path)

    assert labels.workers == ("adder", "newcomer")
    assert labels.means.tolist() == [[1.0, 0.0]] * 6
    assert len(adder.calls) == 6
    newcomer.identity, newcomer.answer = "player newcomer, trained", right
    labels = await collect(SUMS, Pool([adder, newcomer]), folder=tmp_path)
    assert (len(adder.calls), len(newcomer.calls)) == (6, 12)
    assert labels.means.tolist() == [[1.0, 1.0]] * 6


@pytest.mark.anyio
async def test_a_folder_is_of_one_set_of_tasks_and_one_seed(tmp_path: Path) -> None:
    pool = Pool([Player("adder", right)])
    await collect(SUMS[:4], pool, folder=tmp_path)

    with pytest.raises(LabelsError, match="has labels of 1 other tasks, such as '0 \\+ 1\\?'"):
        await collect(SUMS[1:], pool, folder=tmp_path)
    with pytest.raises(LabelsError, match="was begun with seed 0, and is asked to go on with 7"):
        await collect(SUMS, pool, folder=tmp_path, seed=7)
    labels = await collect(SUMS, pool, folder=tmp_path)
    assert labels.means.shape == (6, 1)


@pytest.mark.anyio
async def test_two_do_not_collect_into_one_folder(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    with (tmp_path / ROWS).open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(LabelsError, match="another process collects into it"):
            await collect(SUMS, Pool([Player("adder")]), folder=tmp_path)


@pytest.mark.anyio
async def test_what_a_grader_lacks_is_told_before_anybody_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    adder = Player("adder")

    with pytest.raises(GraderError, match="bubblewrap is not installed"):
        await collect([task("code", "Write f.", Code(""))], Pool([adder]), folder=tmp_path)
    assert adder.calls == []


@pytest.mark.anyio
async def test_a_cache_that_fails_ends_the_collection_and_is_told(tmp_path: Path) -> None:
    (tmp_path / "no.db").write_text("something else, and long enough to be no empty file" * 30)
    adder = Player("adder", right)

    with pytest.raises(JournalError, match=r"no\.db"):
        await collect(
            SUMS, Pool([adder]), folder=tmp_path / "new", cache=CallCache(tmp_path / "no.db")
        )
    assert adder.calls == []


KILLED = """
import os, sys
from pathlib import Path
import anyio
from runtime import FunctionWorker, Pool
from training.labels import collect
from training.tasks import read_jsonl

folder, tasks, calls = map(Path, sys.argv[1:4])
dies_after = int(sys.argv[4])
done = 0

async def adder(messages):
    with calls.open("a") as file:
        file.write(messages[-1].content + chr(10))
    return str(int(messages[-1].content.split()[0]) + 1)

def die(row):
    global done
    done += 1
    if done == dies_after:
        with (folder / "labels.jsonl").open("ab") as file:
            file.write(b'{"task":"torn')
        os.kill(os.getpid(), 9)

pool = Pool([FunctionWorker("adder", adder)])
anyio.run(lambda: collect(read_jsonl(tasks), pool, folder=folder, concurrency=3, progress=die))
"""


def test_a_collection_that_is_killed_goes_on_and_asks_nothing_again(tmp_path: Path) -> None:
    write_jsonl(SUMS, tmp_path / "tasks.jsonl")
    command = [sys.executable, "-c", KILLED, tmp_path / "out", tmp_path / "tasks.jsonl"]
    command.append(tmp_path / "calls")
    root = Path(__file__).parents[1]

    first = subprocess.run([*map(str, command), "3"], cwd=root, timeout=60)
    half = read(tmp_path / "out")
    second = subprocess.run([*map(str, command), "0"], cwd=root, timeout=60)

    assert (first.returncode, second.returncode) == (-9, 0)
    assert np.isnan(half.scores).sum() == 3
    assert read(tmp_path / "out").means.tolist() == [[1.0]] * 6
    asked = (tmp_path / "calls").read_text().splitlines()
    assert sorted(asked) == sorted(each.question for each in SUMS)


# -- real workers --------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_paid_servers_are_labelled_like_any_other(tmp_path: Path) -> None:
    with team() as models:
        models.said["pro"], models.said["con"] = "The answer is 4.", "5"
        pool = Pool.load(models.write_pool(tmp_path)).only("pro", "con")

        labels = await collect(SUMS, pool, folder=tmp_path / "out", repeats=2, concurrency=2)

        assert labels.means.tolist() == [[float(at == 3), float(at == 4)] for at in range(6)]
        assert Counter(models.calls) == {"pro": 12, "con": 12}  # a server draws each repeat anew
        row = read_rows(tmp_path / "out")[SUMS[3].id, "pro", 1]
        assert (row.dollars, row.usage) == (Decimal("0.00014"), Usage(100, 10))
        manifest = read_manifest(tmp_path / "out")
        assert (manifest["dollars"], manifest["unpriced_calls"]) == ("0.00168", 12)
        assert manifest["workers"]["pro"]["asked"] == 2
        assert not manifest["workers"]["pro"]["seeded"]
        with CallCache(tmp_path / "out" / CALLS) as cache:  # the first draw is any run's call
            question = SUMS[3].question
            plan = Plan.of([question], ["pro"], [[]])
            run = await run_plan(plan, question, pool, cache=cache)
        assert run.steps[0].reused == "cache"
        assert len(models.calls) == 24


@pytest.mark.anyio
async def test_a_model_in_this_process_draws_if_it_samples_and_is_asked_once_if_not(
    tiny_folder: Path, tmp_path: Path
) -> None:
    model = LocalModel(str(tiny_folder))
    pool = Pool(
        [
            LocalWorker("greedy", model, sampling=Sampling(0.0, max_tokens=4)),
            LocalWorker("dice", model, sampling=Sampling(2.0, max_tokens=4)),
        ]
    )

    labels = await collect(SUMS[:2], pool, folder=tmp_path, repeats=3)

    rows = read_rows(tmp_path)
    assert len(rows) == 2 * (1 + 3)
    assert len({rows[SUMS[0].id, "dice", at].reply for at in range(3)}) == 3
    assert labels.scores.shape == (2, 2, 3)
    assert not np.isnan(labels.scores).any()
    asked = {name: each["asked"] for name, each in read_manifest(tmp_path)["workers"].items()}
    assert asked == {"greedy": 1, "dice": 3}
