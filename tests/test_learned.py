"""What a Conductor learned: forms, trends, and what pays, told from rows of its log."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grammar import Plan, best_of_n, debate
from tests.trainings import write_training
from training.course import Question
from training.graders import Number
from training.grpo import _logged
from training.intervals import Interval
from training.learned import (
    Form,
    Place,
    Sample,
    Second,
    against_the_rest,
    families_of,
    form_of,
    forms_over_time,
    last_third,
    named,
    paid,
    places_of,
    read_rows,
    sample_of,
    second_rounds,
    stages,
    trend,
    typical,
    worth_of,
)
from training.matrix import wilson
from training.rewards import Outcome
from training.rollouts import Rollout
from training.tasks import task

ASKED = "Add 1 and 2, then reverse it."
HANDED = Plan.of(["{query}"], [1], [[]])
APART = Plan.of(["What is 1 + 2?", "Reverse that."], [1, 2], [[], [0]])


NAMED = Plan.of(["{query}", "Check it."], ["speller", "plain"], [[], [0]])
NUMBERED = Plan.of(["{query}", "Check it."], [2, 0], [[], [0]])


def row_of(plan: Plan | None, score: float | None = 1.0, **changed: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "update": 0,
        "group": 0,
        "round": 1,
        "task": "t",
        "family": "addition-mirror",
        "parts": 2,
        "question": ASKED,
        "offered": [0, 1, 2],
        "text": "...",
        "valid": plan is not None,
        "kept": False,
        "subtasks": list(plan.subtasks) if plan else None,
        "workers": list(plan.workers) if plan else None,
        "access": [list(each) for each in plan.access] if plan else None,
        "score": score if plan else None,
        "answered": 0.0,
        "reward": 0.0,
        "advantage": 0.0,
        "answer": None,
    }
    return row | changed


def of(plan: Plan | None, score: float | None = 1.0, **changed: Any) -> Sample:
    found = sample_of(row_of(plan, score, **changed))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("plan", "form"),
    [
        (HANDED, Form.HANDED_ON),
        (Plan.of([ASKED], [0], [[]]), Form.HANDED_ON),
        (Plan.of(["Say 3."], [0], [[]]), Form.REWORDED),
        (Plan.of(["{query}", "Check it."], [0, 1], [[], [0]]), Form.CHECKED),
        (APART, Form.IN_TWO),
        (Plan.of(["A.", "B.", "C."], [0, 1, 2], [[], [0], [0, 1]]), Form.IN_MORE),
        (best_of_n([0, 1], 2), Form.BEST_OF_N),
        (debate([0, 1], 2), Form.OTHER),
        (Plan.of(["{query}", "{query}"], [0, 1], [[], []]), Form.OTHER),
    ],
)
def test_a_form_is_a_topology_and_whether_the_query_is_handed_on(plan: Plan, form: Form) -> None:
    assert form_of(plan, ASKED) is form


def test_rows_tell_whether_an_answer_is_right_wrong_or_unknown() -> None:
    found = [
        of(APART),
        of(APART, 0.5),
        of(APART, None),
        of(None),
        sample_of(row_of(None) | {"valid": True, "kept": True, "round": 2, "score": 1.0}),
    ]

    assert [(each.form, each.right) for each in found if each] == [
        (Form.IN_TWO, True),
        (Form.IN_TWO, False),
        (Form.IN_TWO, None),
        (Form.NO_PLAN, False),
        (Form.KEPT, True),
    ]
    assert sample_of(row_of(None, valid=None)) is None, "nobody was asked there"


def test_rows_are_those_that_training_writes(tmp_path: Path) -> None:
    given = task("addition", ASKED, Number("3"))
    rollout = Rollout(given, (0, 2), "...", NAMED, outcome=Outcome(True, 1.0))
    question = Question(given, (0, 2), 5)
    about = {"update": 3, "group": 5, "round": 1, "reward": 1.0, "advantage": 0.5}

    row = _logged(question, "...", rollout, {"plain": 0, "calculator": 1, "speller": 2}) | about

    assert sample_of(json.loads(json.dumps(row))) == Sample(
        3, 5, "addition", 1, ASKED, (0, 2), "...", NUMBERED, Form.CHECKED, right=True
    )
    write_training(tmp_path, updates=1)
    (first, *_) = read_rows(tmp_path / "rollouts.jsonl")
    assert set(first) == set(row), "what tests of pictures go by"


def test_a_log_that_is_being_written_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    log = tmp_path / "rollouts.jsonl"
    log.write_text(json.dumps({"update": 0}) + "\n" + '{"upd', encoding="utf-8")

    assert read_rows(log) == [{"update": 0}]
    assert read_rows(tmp_path / "none.jsonl") == []


def test_simple_families_come_first() -> None:
    found = [of(HANDED), of(HANDED, family="tally", parts=1), of(HANDED, family="ages", parts=1)]

    assert list(families_of(found)) == ["ages", "tally", "addition-mirror"]
    assert places_of(found) == [
        Place("ages", None),
        Place("tally", None),
        Place("addition-mirror", 0),
        Place("addition-mirror", 1),
    ]


# --- trends ---------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 300), st.floats(0, 1)), min_size=1, max_size=20),
    st.floats(0.3, 50),
)
def test_a_trend_stays_within_what_was_seen(seen: list[tuple[int, float]], width: float) -> None:
    at, values = zip(*seen, strict=True)

    found = trend(at, values, np.arange(-5, 300, 7), width)

    assert np.isfinite(found).all()
    assert found.min() >= min(values) - 1e-9
    assert found.max() <= max(values) + 1e-9


def test_a_trend_weighs_by_distance_and_leaves_out_what_is_unknown() -> None:
    found = trend([0, 2, 9], [0.0, 1.0, np.nan], [0, 1, 2], width=1)

    far = np.exp(-2)
    assert found == pytest.approx([far / (1 + far), 0.5, 1 / (1 + far)])
    assert np.isnan(trend([], np.empty((0, 3)), [0, 1], 1)).all()


def test_shares_of_forms_add_up() -> None:
    found = [of(HANDED), of(APART, update=4), of(None, update=9)]

    shares = forms_over_time(found, np.arange(10), 1.5)

    assert shares.sum(axis=1) == pytest.approx(np.ones(10))
    order = list(Form)
    assert [order[at] for at in shares[[0, 4, 9]].argmax(axis=1)] == [
        Form.HANDED_ON,
        Form.IN_TWO,
        Form.NO_PLAN,
    ]


@pytest.mark.parametrize(
    ("questions", "expected"),
    [(80, [range(16), range(32, 48), range(64, 80)]), (3, [[0], [1], [2]]), (1, [[0]] * 3)],
)
def test_stages_are_fifths_of_the_questions(
    questions: int, expected: Sequence[Sequence[int]]
) -> None:
    # Late and seldom, two completions each: what counts are its own questions.
    found = [of(APART, update=30 + 2 * at, group=1) for at in range(questions) for _ in range(2)]

    told = stages(found)

    assert {
        stage: sorted({(each.update - 30) // 2 for each in mine}) for stage, mine in told.items()
    } == dict(zip(("start", "middle", "end"), map(list, expected), strict=True))
    assert all(len(mine) == 2 * len(at) for mine, at in zip(told.values(), expected, strict=True))


def test_the_last_third_is_of_updates() -> None:
    assert {each.update for each in last_third([of(APART, update=at) for at in range(9)])} == {
        6,
        7,
        8,
    }


# --- who and what for -----------------------------------------------------------------------------


def test_who_is_named_is_counted_against_who_was_offered() -> None:
    found = [
        of(APART),
        of(APART, 0.0, offered=[1, 2]),
        of(Plan.of(["A.", "B."], [0, 2], [[], [0]]), None),
        of(HANDED, offered=[0, 1]),  # does not take it apart: no step 1 to look at
        of(None),
    ]
    first, second = Place("addition-mirror", 0), Place("addition-mirror", 1)

    assert named(found, first, 3).tolist() == [[1, 2, 0], [2, 3, 3]]
    assert named(found, second, 3).tolist() == [[0, 0, 3], [2, 3, 3]]
    assert paid(found, first, 3).tolist() == [[0, 1, 0], [0, 2, 0]]
    assert paid(found, second, 3).tolist() == [[0, 0, 1], [0, 0, 2]]


def test_the_worker_of_a_simple_question_is_the_first_of_any_plan() -> None:
    simple = {"family": "addition", "parts": 1}
    found = [of(HANDED, **simple), of(best_of_n([2, 0], 1), 0.0, **simple)]

    assert named(found, Place("addition", None), 3).tolist() == [[0, 1, 1], [2, 2, 2]]
    assert paid(found, Place("addition", None), 3).tolist() == [[0, 1, 0], [0, 1, 1]]


def test_forms_are_told_with_their_share_and_interval_the_most_frequent_first() -> None:
    found = [of(HANDED, 0.0), *[of(APART)] * 3, of(APART, 0.0), of(APART, None), of(None), of(None)]

    told = worth_of(found)

    assert [(each.form, each.share, each.count, each.right) for each in told] == [
        (Form.IN_TWO, 5 / 8, 4, wilson(0.75, 4)),
        (Form.NO_PLAN, 2 / 8, 2, wilson(0.0, 2)),
        (Form.HANDED_ON, 1 / 8, 1, wilson(0.0, 1)),
    ]


def test_a_form_is_compared_on_the_same_questions() -> None:
    # Taking apart pays nothing: it is written on the easy question only.
    easy = [of(APART, group=0)] * 9
    mixed = [of(APART, 0.0, group=1), of(HANDED, 0.0, group=1), of(None, group=1)]
    again = [of(APART, 1.0, group=2), of(HANDED, 1.0, group=2)]

    found = against_the_rest([*easy, *mixed, *again])

    assert found is not None
    assert (found.form, found.questions) == (Form.IN_TWO, 2)
    assert found.difference == Interval(0.0, 0.0, 0.0)


def test_a_form_that_pays_on_the_same_questions_says_so() -> None:
    groups = [
        each
        for group in range(12)
        for each in (of(APART, group=group), of(APART, group=group), of(HANDED, 0.0, group=group))
    ]

    found = against_the_rest(groups)

    assert found is not None
    assert found.difference == Interval(1.0, 1.0, 1.0)
    assert against_the_rest([of(APART), of(None)]) is None


def test_a_second_round_is_held_against_the_first() -> None:
    kept = {"valid": True, "kept": True}
    pairs = [
        (row_of(APART), row_of(None) | kept | {"score": 1.0}),
        (row_of(APART, 0.0), row_of(None) | kept | {"score": 0.0}),
        (row_of(APART), row_of(HANDED)),
        (row_of(APART), row_of(HANDED, 0.0)),
        (row_of(APART, 0.0), row_of(HANDED)),
        (row_of(APART, 0.0), row_of(HANDED, 0.0)),
        (row_of(APART), row_of(None)),
        (row_of(None), row_of(None, valid=None)),  # no answer, so nobody was asked again
        (row_of(APART), row_of(HANDED, None)),  # failed for technical reasons
    ]
    rows = [first | {"group": 4} for first, _ in pairs]
    rows += [second | {"group": 5, "round": 2} for _, second in pairs]

    assert [kind for _, kind in second_rounds(rows)] == [
        Second.KEPT_RIGHT,
        Second.KEPT_WRONG,
        Second.STAYED_RIGHT,
        Second.SPOILT,
        Second.MENDED,
        Second.STAYED_WRONG,
        Second.NO_PLAN,
    ]
    assert second_rounds(rows[: len(pairs)]) == []


def test_the_typical_plan_is_of_the_most_frequent_form_and_workers() -> None:
    other = Plan.of(["Add them.", "Turn it round."], [1, 2], [[], [0]])
    found = typical([of(HANDED), of(other, 0.0), of(APART), of(APART), of(None)])

    assert (found.sample.plan, found.alike, found.right, found.of) == (other, 3, 2, 5)
