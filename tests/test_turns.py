"""Turns: the rules of the loop of thinkers, solvers and verifiers, without any model."""

from __future__ import annotations

from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import Episode, Message, Role, Turn, accepts, answer_of, turn_messages

SOLVER, THINKER, VERIFIER = Role

TAGS = [
    f"<{slash}{tag}>"
    for tag in ("idea", "suggestion", "suggested_role", "think")
    for slash in ("", "/")
]
WORDS = ["solver", "verifier", "thinker", "ACCEPT", "REJECT", " ", "42", "İ\n"]
PIECES = st.sampled_from([*TAGS, *WORDS])
TEXTS = st.lists(PIECES, min_size=1, max_size=12).map("".join)


def episode(*turns: tuple[Role, str]) -> Episode:
    return reduce(Episode.after, (Turn(*turn) for turn in turns), Episode())


@st.composite
def episodes(draw: st.DrawFn) -> Episode:
    """What any number of turns come to, whatever was written."""
    state = Episode()
    for _ in range(draw(st.integers(0, 6))):
        if state.accepted:
            break
        drawn = draw(st.sampled_from(Role))
        role = state.role(drawn)
        if role is VERIFIER and state.answer is None:
            break
        state = state.after(Turn(role, draw(TEXTS)))
    return state


# -- the rules -----------------------------------------------------------------------------------


def test_the_last_solvers_answer_is_the_current_one() -> None:
    state = episode((SOLVER, "It is 4."), (VERIFIER, "REJECT. No."), (SOLVER, "It is 5."))

    assert (state.answer, state.thoughts) == ("It is 5.", ("It is 4.", "It is 5."))
    assert not state.accepted


def test_an_idea_is_for_the_others_and_not_of_the_answer() -> None:
    state = episode((SOLVER, "It is 4.\n<idea>Two and two.</idea>\nReally."))

    assert state.answer == "It is 4.\n\nReally."
    assert state.thoughts == ("Two and two.",)


def test_what_is_only_an_idea_is_the_answer_all_the_same() -> None:
    assert answer_of("<idea>4</idea>") == "<idea>4</idea>"


def test_a_suggestion_reaches_the_next_solver_or_verifier_and_no_further() -> None:
    thought = episode((THINKER, "Hm. <suggestion>Count.</suggestion>"))
    twice = thought.after(Turn(THINKER, "I agree."))
    solved = twice.after(Turn(SOLVER, "4"))

    assert [each.suggestion for each in (thought, twice, solved)] == ["Count.", "Count.", ""]


@pytest.mark.parametrize(
    ("said", "role"),
    [
        ("<suggestion>a</suggestion><suggested_role>solver</suggested_role>", SOLVER),
        ("<SUGGESTION>a</SUGGESTION>\n<suggested_role> Verifier </suggested_role>", VERIFIER),
        ("<suggested_role>solver</suggested_role>", None),  # no suggestion with it
        ("<suggestion>a</suggestion><suggested_role>thinker</suggested_role>", None),
        ("<suggestion>a</suggestion><suggested_role>boss</suggested_role>", None),
        ("<suggestion>a</suggestion><suggested_role>solver", None),
        ("<suggestion></suggestion><suggested_role>solver</suggested_role>", None),
    ],
)
def test_a_suggested_role_takes_the_place_of_the_next_draw(said: str, role: Role | None) -> None:
    state = episode((SOLVER, "4"), (THINKER, said))

    assert state.suggested is role
    assert [state.role(drawn) for drawn in Role] == [role or drawn for drawn in Role]
    after = state.after(Turn(state.role(SOLVER), "5"))
    assert after.suggested is None


def test_nobody_can_suggest_to_verify_what_is_not_there() -> None:
    said = "<suggestion>a</suggestion><suggested_role>verifier</suggested_role>"

    assert episode((THINKER, said)).suggested is None


@pytest.mark.parametrize(
    ("said", "accepted"),
    [
        ("ACCEPT", True),
        ("**Accept**: it is right", True),
        ("accepted.", True),
        ("<think>REJECT it?</think>\nACCEPT", True),
        ("REJECT", False),
        ("I ACCEPT", False),
        ("ACCEPTABLE", False),
        ("The answer is right.", False),
        ("...", False),
        ("", False),
    ],
)
def test_only_what_begins_with_the_word_accepts(said: str, accepted: bool) -> None:
    assert accepts(said) is accepted
    assert episode((SOLVER, "4"), (VERIFIER, said)).accepted is accepted


def test_nothing_follows_an_accepted_answer_and_nobody_verifies_nothing() -> None:
    accepted = episode((SOLVER, "4"), (VERIFIER, "ACCEPT"))

    with pytest.raises(ValueError, match="no turn follows"):
        accepted.after(Turn(SOLVER, "5"))
    with pytest.raises(ValueError, match="no answer to verify"):
        Episode().after(Turn(VERIFIER, "ACCEPT"))


# -- whatever was written ------------------------------------------------------------------------


@given(episodes())
def test_what_turns_come_to_follows_from_the_turns(state: Episode) -> None:
    """The rules of the paper's table, told from the whole list instead of turn by turn."""
    solved = [turn.text for turn in state.turns if turn.role is SOLVER]

    assert reduce(Episode.after, state.turns, Episode()) == state
    assert state.answer == (answer_of(solved[-1]) if solved else None)
    assert len(state.thoughts) == len(solved)
    assert all(state.thoughts)
    ended = bool(state.turns) and state.turns[-1].role is VERIFIER
    assert state.accepted is (ended and accepts(state.turns[-1].text))
    assert not any(accepts(turn.text) for turn in state.turns[:-1] if turn.role is VERIFIER)
    if state.suggested is not None:
        assert state.turns[-1].role is THINKER
        assert state.suggestion
        assert state.suggested is not VERIFIER or state.answer is not None


@given(TEXTS)
def test_an_answer_is_never_empty_and_has_lost_at_most_one_idea(text: str) -> None:
    answer = answer_of(text)

    assert answer.strip() or not text.strip()
    assert answer == text or "<idea>" in text


@given(episodes(), st.sampled_from(Role))
def test_each_role_sees_what_is_its_own_to_see(state: Episode, role: Role) -> None:
    """Between fences that occur in no text, with the query; solvers never a verifier's words."""
    if role is VERIFIER and state.answer is None:
        with pytest.raises(ValueError, match="no answer to verify"):
            turn_messages(role, "2 + 2?", state)
        return
    system, user = turn_messages(role, "2 + 2?", state)

    assert (system.role, user.role) == ("system", "user")
    assert "2 + 2?" in user.content
    granted = {
        SOLVER: [*state.thoughts, state.suggestion],
        THINKER: [turn.text for turn in state.turns],
        VERIFIER: [state.answer or "", state.suggestion],
    }[role]
    assert all(f"]\n{text}\n[end of " in user.content for text in granted if text)
    blocks = user.content.count("[end of ")
    assert blocks == sum(bool(text) for text in granted)
    if blocks:
        fence = user.content.split("[end of ", 1)[1].split("]", 1)[0].split()[-1]
        assert user.content.count(fence) == 2 * blocks
        assert not any(fence in text for text in granted)


def test_a_first_solver_gets_the_query_as_it_is() -> None:
    system, user = turn_messages(SOLVER, "2 + 2?", Episode())

    assert user == Message("user", "2 + 2?")
    assert "full answer" in system.content
