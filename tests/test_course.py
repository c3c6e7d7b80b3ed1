"""Which question comes when: by what the groups before have taught, and by the seed."""

from __future__ import annotations

from collections import Counter

import pytest

from training.course import LAG, Course, Teams
from training.families import CHAINS, FAMILIES

SIMPLE = {name for name, family in FAMILIES.items() if not family.reserved}
COMPOSED = {name for name, chain in CHAINS.items() if not chain.reserved}


def course(**more: object) -> Course:
    settings: dict[str, object] = {"questions": 6, "tasks": 20, "seed": 3}
    return Course(5, **settings | more)  # type: ignore[arg-type]


def test_an_update_is_the_same_whenever_it_is_asked_for() -> None:
    one, other = course(), course()

    assert one.update(1) == other.update(1)
    assert one.update(0) == other.update(0)
    assert one.update(0) != one.update(1)
    assert one.update(0) != course(seed=4).update(0)


def test_questions_may_come_in_many_words() -> None:
    def asked(**more: object) -> set[str]:
        questions = course(questions=60, **more).update(0)
        return {each.task.question for each in questions if each.task.family == "ordering"}

    usual = ("Sort these numbers:", "Put in ascending order:", "Order the numbers", "Arrange")
    assert all(question.startswith(usual) for question in asked())
    assert not all(question.startswith(usual) for question in asked(wording="varied"))


def test_who_is_there_is_drawn_from_the_roster() -> None:
    questions = [each for number in range(LAG) for each in course(questions=40).update(number)]

    for question in questions:
        assert list(question.offered) == sorted(set(question.offered))
        assert set(question.offered) <= set(range(5))
    assert {len(question.offered) for question in questions} == {3, 4, 5}
    assert [question.group for question in questions] == [*range(40)] * LAG


def test_all_families_of_a_kind_come_equally_often() -> None:
    often = Counter(each.task.family for each in course(questions=40).update(0))

    assert often.keys() == SIMPLE | COMPOSED
    for kind in (SIMPLE, COMPOSED):
        counts = [often[name] for name in kind]
        assert max(counts) - min(counts) <= 1


def test_what_composed_questions_have_parts_of_may_be_asked_alone() -> None:
    asked = Counter(each.task.family for each in course(questions=36, parts=True).update(0))

    assert asked.keys() == SIMPLE | COMPOSED | {"largest", "mirror"}
    counts = [count for name, count in asked.items() if name not in COMPOSED]
    assert sum(counts) == 18 and set(counts) == {2}


def test_composed_questions_wait_until_it_is_their_turn() -> None:
    made = course(questions=40, simple_first=1)

    assert {each.task.family for each in made.update(0)} == SIMPLE
    assert {each.task.family for each in made.update(1)} & COMPOSED


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.25, 10), (1.0, 40)])
def test_so_many_questions_are_composed(share: float, count: int) -> None:
    asked = course(questions=40, composed=share).update(0)

    assert sum(each.task.family in COMPOSED for each in asked) == count


def shares_offered(history: list[Teams], family: str, team: set[int]) -> float:
    """How often a team is there where a family is asked about."""
    made = course(questions=400, fewest=2, history=history)
    asked = [each for each in made.update(LAG) if each.task.family == family]
    return sum(team <= set(each.offered) for each in asked) / len(asked)


def test_who_was_right_is_mostly_there_again() -> None:
    unknown: list[Teams] = [{}] * LAG
    once: list[Teams] = [{"reversal": [(4,)]}, {}, {}]
    together: list[Teams] = [{"largest-addition": [(0, 3)]}, {}, {}]

    # By chance a worker is there in 7 of 10 cases, two in 45 of 100.
    assert shares_offered(unknown, "reversal", {4}) < 0.85
    assert shares_offered(once, "reversal", {4}) > 0.85
    assert shares_offered(unknown, "largest-addition", {0, 3}) < 0.6
    assert shares_offered(together, "largest-addition", {0, 3}) > 0.75
    assert shares_offered(together, "largest-mirror", {0, 3}) < 0.6  # others' experience


def test_until_a_team_is_known_those_come_who_were_right_about_the_parts() -> None:
    parts: list[Teams] = [
        {"addition": [(1,)], "ordering": [(2,)]},
        {},
        {},
    ]
    whole: list[Teams] = [{**parts[0], "addition-ordering": [(3, 4)]}, {}, {}]

    assert shares_offered(parts, "addition-ordering", {1, 2}) > 0.75
    assert shares_offered(whole, "addition-ordering", {1, 2}) < 0.6
    assert shares_offered(whole, "addition-ordering", {3, 4}) > 0.75


def test_how_many_are_beside_a_team_tells_nothing_about_the_family() -> None:
    known = course(questions=2000, history=[{"reversal": [(4,)]}, {}, {}]).update(LAG)
    sizes = [
        Counter(len(each.offered) for each in known if (each.task.family == "reversal") is wanted)
        for wanted in (True, False)
    ]

    for size in (3, 4, 5):
        assert all(0.2 < of[size] / of.total() < 0.47 for of in sizes)


def test_an_update_depends_on_what_is_over_and_on_nothing_later() -> None:
    """The loader asks for the next batch while the last one's rewards are not known yet."""
    eager, late = course(), course()
    for number in range(LAG):
        eager.update(number)
    with pytest.raises(ValueError, match=f"update {LAG} depends on 1; 0 are over"):
        eager.update(LAG)

    eager.note(0, {"addition": [(1,)]})
    late.note(0, {"addition": [(1,)]})
    asked = eager.update(LAG)
    late.note(1, {"addition": [(2,)]})

    assert late.update(LAG) == asked


def test_a_course_that_goes_on_knows_what_was() -> None:
    history: list[Teams] = [
        {"addition": []},
        {"reversal": [(1, 3)]},
        {"addition": [(2,)]},
    ]
    begun = course()
    for number, teams in enumerate(history):
        begun.note(number, teams)

    assert course(history=history).update(4) == begun.update(4)
    begun.note(1, {})  # what is noted anew takes what came after it away
    assert begun.history == [history[0], {}]
