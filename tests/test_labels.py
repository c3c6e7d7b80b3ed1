"""Labels: the matrix and its folder; collecting that survives kills, ceilings and dead workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.graders import Number
from training.labels import ROWS, Labels, LabelsError, Row, line_of, read, read_rows
from training.tasks import Task, task

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
