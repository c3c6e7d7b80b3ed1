"""A model that decodes under the generated grammar writes a valid plan, and any plan it may."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lark import Lark
from lark.exceptions import UnexpectedInput

from grammar import Limits, Plan, decoding_grammar, parse

WORKERS, STEPS, CHARACTERS = 3, 4, 24
Accepts = Callable[[str], bool]


@cache
def lark_accepts() -> Accepts:
    """The grammar as lark reads it."""
    text = decoding_grammar(WORKERS, most_steps=STEPS, subtask_characters=CHARACTERS)
    parser = Lark(text, parser="lalr")

    def accepts(text: str) -> bool:
        try:
            parser.parse(text)
        except UnexpectedInput:
            return False
        return True

    return accepts


@cache
def llguidance_accepts() -> Accepts:
    """The grammar as an engine for constrained decoding reads it, byte by byte."""
    llguidance = pytest.importorskip("llguidance")
    tokenizer = llguidance.LLTokenizer("byte")
    text = decoding_grammar(WORKERS, most_steps=STEPS, subtask_characters=CHARACTERS)

    def accepts(plan: str) -> bool:
        matcher = llguidance.LLMatcher(tokenizer, text, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        tokens = tokenizer.tokenize_str(plan)
        if matcher.validate_tokens(tokens) < len(tokens):
            return False
        return bool(matcher.consume_tokens(tokens) and matcher.is_accepting())

    return accepts


@pytest.fixture(params=[lark_accepts, llguidance_accepts], ids=["lark", "llguidance"])
def accepts(request: pytest.FixtureRequest) -> Accepts:
    """Both readers of the grammar, one after the other."""
    found: Accepts = request.param()
    return found


def written(plan: Plan) -> str:
    """The text of a plan as a constrained model writes it: no blank that could be left out."""
    subtasks = json.dumps(list(plan.subtasks), ensure_ascii=False)
    workers, access = list(plan.workers), [list(entry) for entry in plan.access]
    return f"subtasks = {subtasks}\nworkers = {workers}\naccess = {access}\n"


printable = st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\')
subtasks = st.text(printable, min_size=3, max_size=CHARACTERS).filter(
    lambda text: not text[0].isspace()
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """A plan within the bounds of the grammar."""
    count = draw(st.integers(1, STEPS))
    return Plan.of(
        [draw(subtasks) for _ in range(count)],
        [draw(st.integers(0, WORKERS - 1)) for _ in range(count)],
        [[before for before in range(index) if draw(st.booleans())] for index in range(count)],
    )


@st.composite
def texts(draw: st.DrawFn) -> str:
    """A text of plan shape that may break any one rule, or none."""
    count = draw(st.integers(1, STEPS + 1))
    lengths = [max(0, count + draw(st.sampled_from([0, 0, 0, 0, 1, -1]))) for _ in range(3)]
    said = [
        draw(st.sampled_from(["Try.", "Go on.", "  ", "ab", "x" * 25])) for _ in range(lengths[0])
    ]
    who = [draw(st.sampled_from([0, 0, 1, 2, 2, 3])) for _ in range(lengths[1])]
    access = [draw(st.lists(st.integers(0, 4), max_size=2)) for _ in range(lengths[2])]
    return f"subtasks = {json.dumps(said)}\nworkers = {who}\naccess = {access}\n"


@given(plan=plans())
@pytest.mark.parametrize("reader", [lark_accepts, llguidance_accepts], ids=["lark", "llguidance"])
def test_every_plan_within_the_bounds_can_be_written(
    reader: Callable[[], Accepts], plan: Plan
) -> None:
    """The grammar leaves no plan out, and the parser reads the text as that plan."""
    assert reader()(written(plan))
    assert parse(written(plan)) == plan


@given(text=texts())
@pytest.mark.parametrize("reader", [lark_accepts, llguidance_accepts], ids=["lark", "llguidance"])
def test_every_text_of_the_grammar_is_a_plan(reader: Callable[[], Accepts], text: str) -> None:
    """What the grammar accepts, the parser accepts, within the bounds asked for."""
    if reader()(text):
        plan = parse(text, workers=["a", "b", "c"], limits=Limits(steps=STEPS))
        assert all(step.access == tuple(sorted(set(step.access))) for step in plan)
        assert all(3 <= len(step.subtask) <= CHARACTERS for step in plan)


GOOD = 'subtasks = ["Try.", "Mend.", "Judge."]\nworkers = [0, 2, 1]\naccess = [[], [0], [0, 1]]\n'


def test_a_good_plan_is_accepted(accepts: Accepts) -> None:
    """The near misses below differ from a text that is in the grammar."""
    assert accepts(GOOD)


@pytest.mark.parametrize(
    ("part", "other"),
    [
        pytest.param("[[], [0], [0, 1]]", "[[], [1], [0, 1]]", id="reads itself"),
        pytest.param("[[], [0], [0, 1]]", "[[], [2], [0, 1]]", id="forward reference"),
        pytest.param("[[], [0], [0, 1]]", "[[0], [0], [0, 1]]", id="first step reads"),
        pytest.param("[[], [0], [0, 1]]", "[[], [0], [1, 0]]", id="descending"),
        pytest.param("[[], [0], [0, 1]]", "[[], [0], [1, 1]]", id="repeated"),
        pytest.param("[[], [0], [0, 1]]", "[[], [0], [0, 1, 2]]", id="all and itself"),
        pytest.param("[[], [0], [0, 1]]", "[[], [0]]", id="one access entry short"),
        pytest.param("[[], [0], [0, 1]]", "[[], [0], [0, 1], []]", id="one access entry more"),
        pytest.param("[0, 2, 1]", "[0, 3, 1]", id="unknown worker"),
        pytest.param("[0, 2, 1]", "[0, -1, 1]", id="negative worker"),
        pytest.param("[0, 2, 1]", '[0, "2", 1]', id="worker in quotes"),
        pytest.param("[0, 2, 1]", "[0, 2]", id="one worker short"),
        pytest.param("[0, 2, 1]", "[0, 2, 1, 1]", id="one worker more"),
        pytest.param('"Mend.", ', "", id="one subtask short"),
        pytest.param('"Mend."', '""', id="empty subtask"),
        pytest.param('"Mend."', '"    "', id="blank subtask"),
        pytest.param('"Mend."', '"\u3000\u00a0\u2028"', id="unicode blanks"),
        pytest.param('"Mend."', '"a\nbc"', id="newline in a subtask"),
        pytest.param('"Mend."', '"a\\"bc"', id="escape in a subtask"),
        pytest.param('"Mend."', f'"{"x" * (CHARACTERS + 1)}"', id="subtask too long"),
        pytest.param("subtasks = [", "subtasks=[", id="blank left out"),
        pytest.param(GOOD, GOOD + "x", id="text behind"),
        pytest.param(GOOD, "x" + GOOD, id="text before"),
        pytest.param(GOOD, GOOD[:-2], id="cut off"),
        pytest.param(GOOD, "subtasks = []\nworkers = []\naccess = []\n", id="no steps"),
        pytest.param(
            GOOD,
            'subtasks = ["Try.", "Try.", "Try.", "Try.", "Try."]\nworkers = [0, 0, 0, 0, 0]\n'
            "access = [[], [], [], [], []]\n",
            id="too many steps",
        ),
    ],
)
def test_a_near_miss_is_rejected(accepts: Accepts, part: str, other: str) -> None:
    """What the rules of the language forbid, a constrained model can not write."""
    assert part in GOOD
    assert not accepts(GOOD.replace(part, other))


@pytest.mark.parametrize("least", [1, 2, 3])
def test_the_shortest_plan_can_be_bounded(least: int) -> None:
    """A plan shorter than asked for is not in the grammar."""
    parser = Lark(decoding_grammar(1, most_steps=3, least_steps=least), parser="lalr")
    two = 'subtasks = ["Try.", "Judge."]\nworkers = [0, 0]\naccess = [[], []]\n'

    if least <= 2:
        parser.parse(two)
    else:
        with pytest.raises(UnexpectedInput):
            parser.parse(two)


def test_the_widest_grammar_is_read_by_lark() -> None:
    """Sixteen steps and a large pool stay within what a parser table can hold."""
    parser = Lark(decoding_grammar(64, most_steps=16), parser="lalr")
    plan = Plan.of(
        ["Go on."] * 16, list(range(48, 64)), [list(range(index)) for index in range(16)]
    )

    parser.parse(written(plan))


@pytest.mark.parametrize(
    ("workers", "least", "most", "message"),
    [
        pytest.param(0, 1, 5, "the pool is empty", id="no workers"),
        pytest.param(1, 0, 5, "steps from 0 to 5", id="no steps"),
        pytest.param(1, 3, 2, "steps from 3 to 2", id="least above most"),
        pytest.param(1, 1, 17, "possible is 1 to 16", id="too many steps"),
    ],
)
def test_bounds_that_leave_no_plan_are_refused(
    workers: int, least: int, most: int, message: str
) -> None:
    """The mistake is told before a model loads."""
    with pytest.raises(ValueError, match=message):
        decoding_grammar(workers, most_steps=most, least_steps=least)


@pytest.mark.parametrize("characters", [0, 1, 2])
def test_a_subtask_of_fewer_than_three_characters_is_refused(characters: int) -> None:
    """The grammar asks for three characters at least, so that much must be allowed."""
    with pytest.raises(ValueError, match="at least 3"):
        decoding_grammar(1, subtask_characters=characters)
