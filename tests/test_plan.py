"""A Plan that exists is valid, and its text says all of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grammar import Diagnostic, Plan, PlanError, Step, format_file, parse, parse_file

NASTY = [
    "workers = [1]",
    "subtasks = [",
    '"access": [[0]]',
    "</think>",
    "<think>",
    "```python\n",
    "**workers**:",
    '"""',
    "'''",
    "\\",
    '\\"',
    "\\n",
    "\\u0041",
    "\\ud83d",
    "\n",
    "\r\n",
    "\t",
    "\x00\x1b[31m\x7f\x9b",
    "\u202eevil\u202c\u2066",
    "\u2028\u2029\ufeff\u00a0\u3000",
    "“curly” ‘quotes’ „low”",
    "it's",
    "#",
    "e\u0301",
    "日本語 שלום",
    "😀\U0010ffff\uffff",
]

texts = st.lists(
    st.one_of(st.sampled_from(NASTY), st.text(st.characters(exclude_categories=["Cs"]))),
    max_size=6,
).map("".join)
words = texts.filter(str.strip)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any valid plan."""
    count = draw(st.integers(1, 7))
    return Plan(
        tuple(
            Step(
                index,
                draw(st.one_of(st.integers(0, 999_999), words)),
                draw(words),
                tuple(earlier for earlier in range(index) if draw(st.booleans())),
            )
            for index in range(count)
        )
    )


DIAMOND = Plan(
    (
        Step(0, "gpt", "Prepare."),
        Step(1, 0, "Work.", (0,)),
        Step(2, 1, "Work.", (0,)),
        Step(3, "gpt", "Put together.", (1, 2)),
    )
)


def test_a_plan_is_built_from_three_lists() -> None:
    """The lists are aligned: entry i of each is step i."""
    plan = Plan.of(
        ["Prepare.", "Work.", "Work.", "Put together."],
        ["gpt", 0, 1, "gpt"],
        [[], "all", [0], [2, 1]],
    )

    assert plan == DIAMOND


def test_a_plan_tells_its_lists_its_end_and_its_readers() -> None:
    """What a plan says can be read by step and by list."""
    assert DIAMOND.subtasks == ("Prepare.", "Work.", "Work.", "Put together.")
    assert DIAMOND.workers == ("gpt", 0, 1, "gpt")
    assert DIAMOND.access == ((), (0,), (0,), (1, 2))
    assert DIAMOND.readers() == ((1, 2), (3,), (3,), ())
    assert DIAMOND.final == Step(3, "gpt", "Put together.", (1, 2))
    assert (len(DIAMOND), tuple(DIAMOND)) == (4, DIAMOND.steps)


def test_plans_are_values() -> None:
    """Equal plans are interchangeable, and none can be changed."""
    again = Plan.of(DIAMOND.subtasks, DIAMOND.workers, DIAMOND.access)

    assert {DIAMOND, again} == {DIAMOND}
    with pytest.raises(FrozenInstanceError):
        again.steps = ()  # type: ignore[misc]  # the point of the test


@pytest.mark.parametrize(
    ("build", "message"),
    [
        pytest.param(lambda: Plan(()), "P202 the plan has no steps", id="no steps"),
        pytest.param(lambda: Plan.of([], [], []), "P202 the plan has no steps", id="empty lists"),
        pytest.param(
            lambda: Plan((Step(1, 0, "a"),)), "P206 step 0 has index 1", id="index out of order"
        ),
        pytest.param(
            lambda: Plan((Step(0, 0, "a", (0,)),)), "P205 step 0 reads itself", id="reads itself"
        ),
        pytest.param(
            lambda: Plan((Step(0, 0, "a", (1,)), Step(1, 0, "b"))),
            "P204 step 0 reads step 1, which comes later",
            id="forward",
        ),
        pytest.param(
            lambda: Plan((Step(0, 0, "a"), Step(1, 0, "b"), Step(2, 0, "c", (1, 0)))),
            "P210 access of step 2 is no ascending tuple of steps",
            id="descending",
        ),
        pytest.param(
            lambda: Plan((Step(0, 0, "a"), Step(1, 0, "b", (0, 0)))),
            "P210 access of step 1 is no ascending tuple of steps",
            id="repeated",
        ),
        pytest.param(
            lambda: Plan((Step(0, 0, "a"), Step(1, 0, "b", "all"))),  # type: ignore[arg-type]
            "P210 access of step 1 is no ascending tuple of steps",
            id="all",
        ),
        pytest.param(
            lambda: Plan((Step(0, 0, "a"), Step(1, 0, "b", ("0",)))),  # type: ignore[arg-type]
            "P210 access of step 1 is no ascending tuple of steps",
            id="a digit string",
        ),
        pytest.param(
            lambda: Plan((Step(0, -1, "a"),)),
            "P209 worker of step 0 is the number -1",
            id="negative worker",
        ),
        pytest.param(
            lambda: Plan((Step(0, True, "a"),)),
            "P209 worker of step 0 is the boolean True",
            id="boolean worker",
        ),
        pytest.param(
            lambda: Plan.of(["a", " "], [0], [[], [7]]),
            "P201 the lists differ in length: subtasks has 2, workers has 1, access has 2\n"
            "P211 subtask of step 1 is empty\n"
            "P206 step 1 reads step 7, but the plan has 2 steps",
            id="several",
        ),
        pytest.param(
            lambda: Plan.of(["a\ud83d"], [0], [[]]),
            "P208 subtask of step 0 holds half a surrogate pair",
            id="surrogate",
        ),
        pytest.param(
            lambda: Plan.of(["a"], ["w\ud83d"], [[]]),
            "P209 worker of step 0 holds half a surrogate pair",
            id="surrogate in a worker",
        ),
    ],
)
def test_an_invalid_plan_can_not_be_built(build: Callable[[], Plan], message: str) -> None:
    """Whichever way it is built, every broken rule is told at once."""
    with pytest.raises(PlanError) as error:
        build()

    assert str(error.value) == message


def test_a_plan_from_python_may_be_larger_than_a_text() -> None:
    """The caps guard against texts; a caller decides for itself."""
    plan = Plan.of(["x" * 20_000] * 200, [0] * 200, ["all"] * 200)

    assert plan.final.access == tuple(range(199))


def test_resolving_puts_names_for_numbers() -> None:
    """Numbers, in quotes or not, count the pool from 0; names stay."""
    plan = Plan.of(["a", "b", "c"], [1, "0", "opus"], [[], [], "all"])

    resolved = plan.resolve(["gpt", "opus"])

    assert resolved == Plan.of(["a", "b", "c"], ["opus", "gpt", "opus"], [[], [], "all"])
    assert resolved.resolve(["gpt", "opus"]) == resolved


def test_resolving_tells_every_worker_that_is_not_there() -> None:
    """The message has no place, since there is no text, but has a hint."""
    plan = Plan.of(["a", "b", "c"], ["opsu", 2, "x"], [[], [], []])

    with pytest.raises(PlanError) as error:
        plan.resolve(["gpt", "opus"])

    assert error.value.diagnostics == (
        Diagnostic("P301", "no worker is called 'opsu'", "did you mean 'opus'?"),
        Diagnostic("P302", "there is no worker 2: the pool has 2", "numbers go from 0 to 1"),
        Diagnostic("P301", "no worker is called 'x'", "the pool has: gpt, opus"),
    )
    assert error.value.render().startswith(
        "error[P301]: no worker is called 'opsu'\n  = hint: did you mean 'opus'?\n\nerror[P302]"
    )


@pytest.mark.parametrize(
    ("pool", "message", "hint"),
    [
        pytest.param([], "the pool has no workers", "add one to the pool", id="none"),
        pytest.param(
            ["gpt"], "there is no worker 1: the pool has 1", "write 0, the only one", id="one"
        ),
        pytest.param(
            ["a", "b", "c"],
            "there is no worker 3: the pool has 3",
            "numbers go from 0 to 2",
            id="3",
        ),
    ],
)
def test_an_error_about_a_small_pool_makes_sense(pool: list[str], message: str, hint: str) -> None:
    """No range is given where there is none."""
    with pytest.raises(PlanError) as error:
        Plan.of(["a"], [max(1, len(pool))], [[]]).resolve(pool)

    assert error.value.diagnostics == (Diagnostic("P302", message, hint),)


@pytest.mark.parametrize("worker", [1, "1"])
def test_an_empty_name_is_a_number_that_nobody_has(worker: int | str) -> None:
    """Numbers keep their meaning when somebody is left out of the pool."""
    names = ["gpt", "", "opus"]

    assert Plan.of(["a"], [2], [[]]).resolve(names).workers == ("opus",)
    with pytest.raises(PlanError) as error:
        Plan.of(["a"], [worker], [[]]).resolve(names)

    (told,) = error.value.diagnostics
    expected = ("P302", "worker 1 is not in the pool at hand", "it has: 0, 2")
    assert (told.code, told.message, told.hint) == expected


def test_the_canonical_text_is_plain() -> None:
    """One subtask a line, and what would not show is written as an escape."""
    plan = Plan.of(
        ['Say "hi"\nthen\\stop.', "Größe 数 😀", "\x1b[0m\u202e\ufeff"],
        ["gpt", 0, 12],
        [[], [0], "all"],
    )

    assert str(plan) == (
        "subtasks = [\n"
        '    "Say \\"hi\\"\\nthen\\\\stop.",\n'
        '    "Größe 数 😀",\n'
        '    "\\u001b[0m\\u202e\\ufeff",\n'
        "]\n"
        'workers  = ["gpt", 0, 12]\n'
        "access   = [[], [0], [0, 1]]\n"
    )


@given(plans())
def test_the_text_of_a_plan_is_the_plan(plan: Plan) -> None:
    """Whatever stands in its subtasks, a plan survives being written and read."""
    text = str(plan)

    assert format_file(text) == text
    assert parse_file(text) == plan
    assert parse(text) == plan
    assert str(parse(text)) == text


@given(plans(), texts.filter(lambda text: "[" not in text and "think" not in text))
def test_prose_around_a_plan_does_not_change_it(plan: Plan, prose: str) -> None:
    """Words before and after never become part of a plan."""
    assert parse(f"{prose}\n{plan}\n{prose}") == plan


@given(plans())
def test_the_text_of_a_plan_is_safe_to_print(plan: Plan) -> None:
    """No control or bidi character of a subtask reaches a terminal."""
    assert str(plan).isascii() or not set(str(plan)) & set("\x1b\x9b\u202e\u2066\u2028\ufeff")
    assert set(str(plan)) & set(map(chr, range(32))) <= {"\n"}


@given(plans(), st.lists(words, min_size=1, max_size=5, unique=True))
def test_reading_with_a_pool_is_reading_then_resolving(plan: Plan, names: list[str]) -> None:
    """Both ways give the same plan or refuse the same workers."""
    try:
        resolved = plan.resolve(names)
    except PlanError as error:
        with pytest.raises(PlanError) as other:
            parse(str(plan), workers=names)
        assert [d.code for d in error.diagnostics] == [d.code for d in other.value.diagnostics]
    else:
        assert parse(str(plan), workers=names) == resolved
