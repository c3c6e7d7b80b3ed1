"""The success matrix: intervals, an oracle without luck, and a report that is all there."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.graders import Number
from training.labels import Labels, read_manifest, write_manifest
from training.matrix import summarize, wilson, write_report
from training.tasks import task


def labels_of(scores: list[list[list[float]]] | np.ndarray, families: str = "") -> Labels:
    array = np.asarray(scores, np.float32)
    families = families or "a" * len(array)
    tasks = tuple(task(family, f"{at}?", Number(str(at))) for at, family in enumerate(families))
    return Labels(tasks, ("one", "two", "three")[: array.shape[1]], array)


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    # R. Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_intervals_are_those_of_the_literature(
    right: int, count: int, low: float, high: float
) -> None:
    found = wilson(right / count, count)

    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500), st.data())
def test_an_interval_holds_its_share_and_stays_between_0_and_1(
    count: int, data: st.DataObject
) -> None:
    right = data.draw(st.integers(0, count))
    found = wilson(right / count, count)

    assert 0 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1


def test_of_nothing_nothing_is_known() -> None:
    assert math.isnan(wilson(0.0, 0).value)
    summary = summarize(labels_of(np.zeros((0, 2, 1))))
    assert (summary.compared, summary.best, summary.families) == (0, "", ())


def test_rates_ties_and_headroom() -> None:
    # a: one is right twice, two once; b: two alone; then none, then all.
    scores = [[[1], [0]], [[1], [1]], [[0], [1]], [[0], [1]], [[0], [0]], [[1], [1]]]

    summary = summarize(labels_of(scores, "aabbbb"))

    assert summary.rates["a"]["one"].interval.value == 1.0
    assert summary.rates["b"]["one"].interval.value == 0.25
    assert summary.rates["all"]["two"].tasks == 6
    assert (summary.best, summary.best_mean.value) == ("two", pytest.approx(4 / 6))
    assert summary.random.value == pytest.approx(7 / 12)
    assert summary.oracle.value == pytest.approx(5 / 6)
    assert summary.headroom.value == pytest.approx(1 / 6)
    assert summary.by_family["b"].value == pytest.approx(3 / 4)
    shares = (summary.tied, summary.solved_by_none, summary.solved_by_all)
    assert [each.value for each in shares] == pytest.approx([3 / 6, 1 / 6, 2 / 6])


def test_luck_is_no_headroom_if_there_are_repeats_to_tell() -> None:
    """Two workers that toss a coin: the maximum in the sample seems better, and is not."""
    coins = np.random.default_rng(0).integers(0, 2, (2000, 2, 3))

    once, often = summarize(labels_of(coins[:, :, :1])), summarize(labels_of(coins))

    assert once.headroom.low > 0.2
    assert "the maximum in the sample" in once.fitted
    assert often.headroom.low < 0 < often.headroom.high + 0.03
    assert abs(often.headroom.value) < 0.03
    assert "Cross-fitted over 3 repeats" in often.fitted


def test_workers_that_say_the_same_again_need_no_fitting() -> None:
    summary = summarize(labels_of([[[1], [0]], [[0], [1]]]), same_again=("one", "two"))

    assert "needs no cross-fitting" in summary.fitted
    assert summary.headroom.value == 0.5


def test_what_is_missing_is_left_out_and_told() -> None:
    nan = math.nan
    scores = [[[1], [nan], [nan]], [[1], [0], [nan]], [[0], [1], [nan]]]

    summary = summarize(labels_of(scores))

    assert summary.missing == {"one": 0, "two": 1, "three": 3}
    assert summary.rates["all"]["two"].tasks == 2
    assert summary.rates["all"]["three"].tasks == 0
    assert summary.compared == 2  # of one and two; nothing is known of three


def test_the_report_has_text_figures_and_a_picture(tmp_path: Path) -> None:
    nan = math.nan
    labels_of([[[1], [0], [nan]], [[0], [1], [1]]], "ab").write(tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    manifest |= {"failed": {"three": {"timeout": 1}}, "given_up": {"three": "it is slow"}}
    manifest |= {"stopped": "its seconds are over", "calls": 7, "dollars": "0.5"}
    manifest |= {"unpriced_calls": 2, "input_tokens": 1000, "output_tokens": 10}
    write_manifest(tmp_path / "out", manifest)

    summary = write_report(tmp_path / "out")

    text = (tmp_path / "out" / "report.md").read_text()
    for told in (
        "| family | tasks |",
        "**100% [21%, 100%]**",
        "On the 1 task on which every worker was measured",
        "Labels that are missing: 1 of three.",
        "Calls of three that failed: 1 timeout.",
        "three failed again and again and was given up: it is slow",
        "It was stopped: its seconds are over.",
        "7 calls, tokens in/out 1,000/10, $0.5 and 2 calls of unknown price",
    ):
        assert told in text
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert told["rates"]["a"]["one"]["interval"]["value"] == 1.0
    assert told["rates"]["a"]["three"]["interval"]["value"] is None
    assert told["compared"] == summary.compared
    picture = ET.parse(tmp_path / "out" / "labels.svg")
    words = {each.text for each in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert {"one", "two", "three", "a (1)", "all (2)", "100%", "50%", "?"} <= words
    assert (tmp_path / "out" / "labels.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_labels_give_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        labels_of([[[1], [0]], [[0], [1]]]).write(tmp_path / name)
        write_report(tmp_path / name)
    for file in ("report.md", "report.json", "labels.svg"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
