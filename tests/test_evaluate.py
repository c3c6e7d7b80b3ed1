"""Evaluation: outcomes in closed form, choices that never see a test task, controls that bite."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import Usage
from training.evaluate import (
    Evaluation,
    EvaluationError,
    Measured,
    Outcomes,
    Planning,
    Section,
    alone,
    best_single,
    choose,
    evaluate,
    one_hot,
    oracle,
    oracle_weights,
    picks,
    random_pick,
    random_sampled,
    read_measured,
    section_of,
    self_consistency,
    vote,
)
from training.graders import Number
from training.labels import Labels, Row, line_of, write_manifest
from training.report import _spread, draw_shapes, markdown, table, to_json, write_report
from training.tasks import Part, Split, Task, task, write_jsonl

WORKERS = ("plain", "adder", "speller")
FAMILIES = ("sums", "words", "facts")


def tasks_of(count: int = 30) -> tuple[Task, ...]:
    """Of each sort so many: validation, three sections and chains."""
    made = []
    for at in range(count):
        for family in FAMILIES[:2]:
            right = Number(str(at))
            ask = f"{family} {at}"
            made += [
                task(family, f"{ask} v", right, split=Split.VALIDATION),
                task(family, f"{ask} i", right, split=Split.TEST),
                task(family, f"{ask} p", right, split=Split.TEST, held_out_wording=True),
            ]
        made += [
            task("facts", f"{at} f", right, split=Split.TEST, reserved=True),
            task("facts", f"{at} g", right, split=Split.VALIDATION, reserved=True),
        ]
        parts = (Part("sums", "add", "1"), Part("words", "spell", "2"))
        for split in (Split.VALIDATION, Split.TEST):
            made.append(task("sums-words", f"{at} {split}", right, split=split, parts=parts))
    return tuple(made)


TASKS = tasks_of()
CHANCES = {
    "sums": (0.3, 0.9, 0.1),
    "words": (0.2, 0.1, 0.8),
    "facts": (0.9, 0.1, 0.1),
    "sums-words": (0.3, 0.1, 0.2),
}


def measured_of(tasks: tuple[Task, ...] = TASKS, repeats: int = 5, seed: int = 0) -> Measured:
    """Workers of different skill; a right reply is the number, a wrong one another number."""
    random = np.random.default_rng(seed)
    chances = np.array([CHANCES[each.family] for each in tasks])[..., None]
    scores = (random.random((len(tasks), len(WORKERS), repeats)) < chances).astype(np.float32)
    replies = np.empty(scores.shape, dtype=object)
    for (row, worker, repeat), score in np.ndenumerate(scores):
        grader = tasks[row].grader
        assert isinstance(grader, Number)
        replies[row, worker, repeat] = grader.answer if score else str(1000 + worker)
    took = np.ones(scores.shape)
    return Measured(Labels(tasks, WORKERS, scores), replies, 20 * took, 0.5 * took, 0.001 * took)


MEASURED = measured_of()
CHOICES = choose(MEASURED.labels)


def router(measured: Measured) -> Outcomes:
    """One that knows the family and not the reply."""
    by_family = {"sums": 1, "words": 2, "facts": 0, "sums-words": 0}
    chosen = np.array([by_family[each.family] for each in measured.tasks])
    return picks("router", "by family", measured, one_hot(chosen, 3)[None])


# -- what is chosen ------------------------------------------------------------------------------


def test_the_best_worker_is_chosen_on_validation_tasks() -> None:
    """Of trained families and phrasings; chains have a best one of their own."""
    assert (CHOICES.best, CHOICES.best_composed) == ("adder", "plain")
    assert CHOICES.of_family == {
        "sums": "adder",
        "words": "speller",
        "facts": "plain",
        "sums-words": "plain",
    }
    assert CHOICES.tasks == 4 * 30


@given(st.integers(0, 1000))
@settings(max_examples=10)
def test_permuting_the_test_labels_changes_no_choice(seed: int) -> None:
    """Nor does any other test label: the choices can't depend on them."""
    random = np.random.default_rng(seed)
    labels = MEASURED.labels
    test = np.array([each.split is Split.TEST for each in labels.tasks])
    scores = labels.scores.copy()
    scores[test] = scores[test][random.permutation(test.sum())]
    scores[test] = scores[test][:, random.permutation(len(WORKERS))]

    assert choose(Labels(labels.tasks, WORKERS, scores)) == CHOICES
    scores[test] = np.nan
    assert choose(Labels(labels.tasks, WORKERS, scores)) == CHOICES


def test_changing_the_validation_labels_changes_the_choice() -> None:
    """Or the test above could not fail."""
    labels = MEASURED.labels
    turned = Labels(labels.tasks, WORKERS, np.roll(labels.scores, 1, axis=1))

    assert choose(turned).best == "speller"


def test_without_validation_tasks_nothing_is_chosen() -> None:
    only = MEASURED.labels.where([each.split is Split.TEST for each in TASKS])

    with pytest.raises(EvaluationError, match="no labels of validation tasks"):
        choose(only)


def test_sections_are_test_tasks_only() -> None:
    sections = {section_of(each) for each in TASKS if each.split is Split.TEST}

    assert sections == set(Section)
    assert {section_of(each) for each in TASKS if each.split is not Split.TEST} == {None}


# -- outcomes ------------------------------------------------------------------------------------


def test_a_pick_scores_the_mean_of_its_replies_and_takes_one_call() -> None:
    found = alone(MEASURED, "adder")

    assert np.allclose(found.scores[:, 0], MEASURED.labels.means[:, 1])
    assert (found.calls == 1).all() and (found.tokens == 20).all() and (found.deciding == 0).all()
    assert found.workers.tolist() == [[0, 1, 0]] * len(TASKS)


def test_random_is_the_mean_of_all_and_drawing_comes_near_it() -> None:
    expected, drawn = random_pick(MEASURED), random_sampled(MEASURED, seeds=40)

    assert np.allclose(expected.scores[:, 0], MEASURED.labels.means.mean(axis=1))
    assert drawn.scores.shape == (len(TASKS), 40)
    assert drawn.scores.mean() == pytest.approx(expected.scores.mean(), abs=0.02)
    assert np.array_equal(drawn.scores, random_sampled(MEASURED, seeds=40).scores)


def test_the_best_single_worker_is_another_one_for_chains() -> None:
    found = best_single(MEASURED, CHOICES)

    for row, each in enumerate(TASKS):
        assert WORKERS[int(found.workers[row].argmax())] == ("plain" if each.parts else "adder")


def test_the_oracle_is_not_fooled_by_luck() -> None:
    """Workers that guess have no best one: in-sample the best of three looks like 7/8."""
    rows = tasks_of(200)
    random = np.random.default_rng(1)
    scores = (random.random((len(rows), 3, 4)) < 0.5).astype(np.float32)
    guessed = replace(measured_of(rows, repeats=4), labels=Labels(rows, WORKERS, scores))

    assert oracle(guessed).scores.mean() == pytest.approx(0.5, abs=0.02)
    one = replace(guessed, labels=Labels(rows, WORKERS, scores[:, :, :1]))
    assert oracle(one).scores.mean() == pytest.approx(7 / 8, abs=0.02)
    assert "too high" in oracle(one).about


def test_of_workers_that_always_say_the_same_the_oracle_is_the_best_of_each_task() -> None:
    scores = np.repeat(MEASURED.labels.scores[:, :, :1], 3, axis=2)
    same = measured_of(repeats=3)
    same = replace(same, labels=Labels(TASKS, WORKERS, scores))

    assert np.array_equal(oracle(same).scores[:, 0], scores.max(axis=(1, 2)))
    assert np.allclose(oracle(same).workers.sum(axis=1), 1)


def test_tasks_are_shared_among_equally_good_workers() -> None:
    nan = np.nan
    weights = oracle_weights(np.array([[1, 1, 0], [0, 0, 0], [nan, 0.2, 0.1], [nan, nan, nan]]))

    third = 1 / 3
    expected = [[0.5, 0.5, 0], [third, third, third], [0, 1, 0], [nan, nan, nan]]
    assert np.allclose(weights, expected, equal_nan=True)


def test_a_vote_asks_everyone_and_counts_what_most_say() -> None:
    """Two of three say the same; with three different answers everyone counts a third."""
    rows = TASKS[:2]
    replies = np.array([["7", "7", "9"], ["1", "2", "3"]], dtype=object)[..., None]
    scores = np.array([[1, 1, 0], [0, 1, 0]], np.float32)[..., None]
    took = np.ones(scores.shape) * [[1], [2], [4]]
    given = Measured(Labels(rows, WORKERS, scores), replies, took, took, took)

    found = vote(given)

    assert found.scores[:, 0].tolist() == [1.0, pytest.approx(1 / 3)]
    assert found.calls.tolist() == [[3], [3]] and found.tokens.tolist() == [[7], [7]]
    assert found.seconds.tolist() == [[4], [4]]  # they are asked at the same time


def test_labels_without_replies_can_not_vote() -> None:
    empty = replace(MEASURED, replies=np.full(MEASURED.replies.shape, "", dtype=object))

    with pytest.raises(EvaluationError, match="kept without"):
        vote(empty)


def test_self_consistency_takes_the_repeats_of_the_best_worker() -> None:
    """Right two times of three is right always; seven repeats are two groups of three."""
    rows = tuple(each for each in TASKS if not each.parts)[:1]
    said = np.array([["5", "5", "6", "8", "6", "6", "5"]] * 3, dtype=object)[None]
    scores = (said == "5").astype(np.float32)
    took = np.ones(scores.shape)
    given = Measured(Labels(rows, WORKERS, scores), said, 10 * took, took, took)

    found = self_consistency(given, CHOICES, calls=3)

    assert found is not None
    assert found.scores.tolist() == [[1.0, 0.0]]
    assert found.calls.tolist() == [[3, 3]] and found.tokens.tolist() == [[30, 30]]
    assert found.workers.tolist() == [[0, 1, 0]]


def test_self_consistency_of_one_who_never_varies_has_to_be_carried_out() -> None:
    same = measured_of(repeats=1)
    repeated = Measured(
        Labels(TASKS, WORKERS, np.repeat(same.labels.scores, 3, axis=2)),
        np.repeat(same.replies, 3, axis=2),
        *(np.repeat(each, 3, axis=2) for each in (same.tokens, same.seconds, same.dollars)),
    )

    assert self_consistency(repeated, CHOICES, calls=3) is None
    assert self_consistency(same, CHOICES, calls=3) is None


def test_a_failed_call_is_no_wrong_answer() -> None:
    scores = MEASURED.labels.scores.copy()
    scores[0, 1] = np.nan
    given = replace(MEASURED, labels=Labels(TASKS, WORKERS, scores))

    assert np.isnan(alone(given, "adder").scores[0, 0])
    assert not np.isnan(alone(given, "plain").scores).any()
    assert np.isnan(random_pick(given).scores[0, 0])
    assert not np.isnan(oracle(given).scores).any()
    assert not np.isnan(vote(given).scores).any()


def test_what_is_lost_costs_nothing_in_the_means_and_is_counted() -> None:
    adder = alone(MEASURED, "adder")
    row = next(at for at, each in enumerate(TASKS) if section_of(each) is Section.ITEMS)
    scores, calls, seconds = adder.scores.copy(), adder.calls.copy(), adder.seconds.copy()
    scores[row] = calls[row] = seconds[row] = seconds[row + 3] = np.nan
    lost = replace(adder, scores=scores, calls=calls, seconds=seconds)

    found = evaluate(MEASURED, [lost], CHOICES, reference="worker:adder", resamples=50)

    line = found.line("worker:adder", Section.ITEMS)
    assert (line.tasks, line.lost, line.calls, line.seconds) == (59, 1, 1.0, 0.5)


# -- the comparison ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    shuffled = random_sampled(MEASURED, seeds=5, seed=9)
    cheat = picks("cheat", "", MEASURED, oracle_weights(MEASURED.labels.means)[None])
    return evaluate(
        MEASURED,
        [
            *(alone(MEASURED, worker) for worker in WORKERS),
            best_single(MEASURED, CHOICES),
            random_pick(MEASURED),
            vote(MEASURED),
            oracle(MEASURED),
            router(MEASURED),
            replace(shuffled, name="shuffled", held_to="random"),
            replace(cheat, held_to="best-single"),
        ],
        CHOICES,
        made_with={"seed": 0, "versions": {"numpy": "2"}},
        resamples=2_000,
    )


def test_a_router_that_knows_the_family_is_seen_to_be_better(evaluation: Evaluation) -> None:
    line = evaluation.line("router", Section.PHRASINGS)
    test = [each for each in TASKS if section_of(each) is Section.PHRASINGS]

    assert (line.tasks, line.seeds, line.lost, line.calls, line.tokens) == (len(test), 1, 0, 1, 20)
    assert line.against.above_zero
    assert line.score.value - evaluation.line("best-single", Section.PHRASINGS).score.value == (
        pytest.approx(line.against.value)
    )
    assert 0.5 < line.headroom.low < line.headroom.high


def test_the_mean_of_the_families_is_that_of_the_section(evaluation: Evaluation) -> None:
    for name in evaluation.deciders:
        parts = [evaluation.line(name, Section.ITEMS, family) for family in ("sums", "words")]
        whole = evaluation.line(name, Section.ITEMS)

        assert np.mean([part.score.value for part in parts]) == pytest.approx(whole.score.value)
        assert sum(part.tasks for part in parts) == whole.tasks


def test_a_control_that_knows_too_much_is_found_out(evaluation: Evaluation) -> None:
    behaves = {(each.decider, each.section): each.behaves for each in evaluation.controls}

    assert {section for _, section in behaves} == {Section.ITEMS, Section.PHRASINGS}
    assert behaves["shuffled", Section.ITEMS] and behaves["shuffled", Section.PHRASINGS]
    assert not behaves["cheat", Section.PHRASINGS]


def test_it_is_told_whom_a_decider_called(evaluation: Evaluation) -> None:
    shares = {
        each.family: each.shares
        for each in evaluation.routing
        if (each.decider, each.section) == ("router", Section.ITEMS)
    }

    assert shares == {
        "sums": {"plain": 0, "adder": 1, "speller": 0},
        "words": {"plain": 0, "adder": 0, "speller": 1},
    }


def test_confusion_counts_each_task_once_and_agreement_is_that_of_the_picks(
    evaluation: Evaluation,
) -> None:
    means = MEASURED.labels.means
    tested = np.array([section_of(each) is not None for each in TASKS])
    apart = tested & (means.max(axis=1) > means.min(axis=1))
    for each in evaluation.confusion:
        counted = sum(count for row in each.counts.values() for count in row.values())
        assert each.tasks == apart.sum() and counted == pytest.approx(apart.sum())
    by_name = {each.decider: each for each in evaluation.confusion}
    right = (means[:, 1] == means.max(axis=1))[apart].mean()

    assert by_name["worker:adder"].agreement == pytest.approx(right)
    assert by_name["cheat"].agreement == pytest.approx(1)


def test_a_reference_can_be_named_and_must_be_there(evaluation: Evaluation) -> None:
    given = [alone(MEASURED, "plain"), router(MEASURED)]

    found = evaluate(MEASURED, given, CHOICES, reference="worker:plain", resamples=200)

    assert found.line("router", Section.ITEMS).against.above_zero
    with pytest.raises(EvaluationError, match="no decider is called 'best-single'"):
        evaluate(MEASURED, given, CHOICES, resamples=200)


def test_without_test_tasks_there_is_nothing_to_report() -> None:
    keep = np.array([each.split is Split.VALIDATION for each in TASKS])
    part = MEASURED.where(keep)

    with pytest.raises(EvaluationError, match="no labels of test tasks"):
        evaluate(part, [best_single(part, CHOICES)], CHOICES)


# -- labels on file ------------------------------------------------------------------------------


def test_replies_and_what_they_took_are_read_from_the_folders(tmp_path: Path) -> None:
    """The second folder adds a worker that was asked once; rows of a changed worker don't count."""
    rows = TASKS[:2]
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        write_jsonl(rows, folder / "tasks.jsonl")
    manifest = {"workers": {"plain": {"digest": "now", "asked": 2}}, "repeats": 2}
    write_manifest(first, manifest)
    usage = Usage(5, 2)
    said = [
        Row(rows[0].id, "plain", 0, 1.0, "a", usage, 2.0, identity="now"),
        Row(rows[0].id, "plain", 1, 0.0, "b", usage, 4.0, identity="now"),
        Row(rows[1].id, "plain", 0, 1.0, "c", usage, 2.0, identity="before"),
    ]
    (first / "labels.jsonl").write_bytes(b"".join(map(line_of, said)))
    write_manifest(second, {"workers": {"new": {"digest": "x", "asked": 1}}, "repeats": 1})
    (second / "labels.jsonl").write_bytes(
        line_of(Row(rows[1].id, "new", 0, 1.0, "d", identity="x"))
    )

    found = read_measured([first, second])

    assert found.workers == ("plain", "new")
    assert found.replies[0].tolist() == [["a", "b"], ["", ""]]
    assert found.replies[1, 0].tolist() == ["", ""]
    assert found.replies[1, 1, 0] == "d"
    assert found.tokens[0, 0].tolist() == [7, 7] and found.seconds[0, 0].tolist() == [2, 4]
    assert np.isnan(found.tokens[1, 1, 0])


# -- the report ----------------------------------------------------------------------------------


def test_the_report_is_written_whole_and_the_same_again(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    files = write_report(evaluation, tmp_path)
    before = {file: file.read_bytes() for file in files}

    write_report(evaluation, tmp_path)

    assert [file.name for file in files] == [
        "evaluation.md",
        "evaluation.json",
        "evaluation.svg",
        "evaluation.png",
        "costs.svg",
        "costs.png",
    ]
    assert {file: file.read_bytes() for file in files} == before
    for name in ("evaluation", "costs"):
        assert ">router</text>" in (tmp_path / f"{name}.svg").read_text()


def test_the_shapes_of_plans_are_drawn_as_long_as_they_are_frequent_and_right(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    def planning(name: str, family: str, shapes: dict[str, int], right: dict[str, float]) -> None:
        plans.append(Planning(name, Section.ITEMS, family, 20, 16, 18, 0, 1.4, shapes, right))

    plans: list[Planning] = []
    planning("led", "words", {"single": 12, "chain": 6}, {"single": 0.5, "chain": 1.0})
    planning("led", "sums", {"chain": 18}, {"chain": 0.0})
    told = replace(evaluation, planning=tuple(plans))

    (panel,) = draw_shapes(told).axes

    bars = [(bar.get_y() + 0.35, bar.get_x(), bar.get_width()) for bar in panel.patches]
    expected = [(0, 0, 0.3), (0, 0.3, 0.3), (0, 0.6, 0.3), (0, 0.9, 0), (1, 0, 0), (1, 0, 0.9)]
    assert np.array(bars) == pytest.approx(np.array(expected))
    rows = [each.get_text() for each in panel.get_yticklabels()]
    assert rows == ["words (20)", "sums (20)"]
    scores = [
        evaluation.line("best-single", Section.ITEMS, of).score.value for of in FAMILIES[1::-1]
    ]
    assert panel.lines[0].get_xdata() == pytest.approx(scores)
    assert {"shapes.svg", "shapes.png"} <= {file.name for file in write_report(told, tmp_path)}


def test_json_has_every_figure_and_knows_no_nan(evaluation: Evaluation) -> None:
    told = json.loads(to_json(evaluation), parse_constant=pytest.fail)

    line = next(
        each
        for each in told["lines"]
        if (each["decider"], each["section"], each["family"]) == ("router", "phrasings", "")
    )
    assert line["score"]["value"] == pytest.approx(
        evaluation.line("router", Section.PHRASINGS).score.value, abs=1e-6
    )
    assert told["choices"]["best"] == "adder" and told["made_with"]["seed"] == 0
    assert {each["behaves"] for each in told["controls"]} == {True, False}


def test_markdown_has_a_table_for_each_section_whose_columns_line_up(
    evaluation: Evaluation,
) -> None:
    text = markdown(evaluation)

    for title in ("New items, phrasings that were not", "Chains of two", "Negative controls"):
        assert f"## {title}" in text
    assert "cheat" in text and " NO |" in text
    for block in text.split("\n\n"):
        lines = block.splitlines()
        if lines[0].startswith("|"):
            assert len({len(line) for line in lines}) == 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=15))
def test_names_in_a_picture_keep_apart_and_inside(heights: list[float]) -> None:
    """And stay where they are if there is room."""
    wanted = sorted(heights)

    found = _spread(wanted, 0.05, -0.02, 1.03)

    assert all(b - a >= 0.05 - 1e-9 for a, b in itertools.pairwise(found))
    assert found[0] >= -0.02 - 1e-9 and found[-1] <= 1.03 + 1e-9
    if all(b - a >= 0.05 for a, b in itertools.pairwise(wanted)):
        assert found == pytest.approx(wanted)


def test_a_table_keeps_bars_in_cells_apart() -> None:
    assert table(["a", "b"], [["x|y", "1"]]) == "| a    |   b |\n| ---- | --: |\n| x\\|y |   1 |"
