"""Style rules, ``# noqa`` and repairs of plan files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grammar import PlanError, check, format_file, parse_file, repair

TWO = 'subtasks = ["Draft.", "Check."]\nworkers = [0, 1]\naccess = '


def codes(text: str) -> list[str]:
    return [each.code for each in check(text)]


def test_warnings_do_not_make_a_plan_invalid() -> None:
    """A plan with a wasted step is still a plan."""
    text = TWO + "[[], []]\n"

    assert [(each.code, each.severity) for each in check(text)] == [("P401", "warning")]
    assert len(parse_file(text)) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(TWO + "[[], all]", [], id="reads all"),
        pytest.param(TWO + "[all, all]", ["P403"], id="first reads all"),
        pytest.param(TWO + '[["all"], [0]]', ["P403"], id="first reads all in a list"),
        pytest.param(TWO + "[[], [0, 0, 0]]", ["P403", "P403"], id="named three times"),
        pytest.param(
            'subtasks = ["a", "a", "b"]\nworkers = [0, 0, 1]\naccess = [[], [0], [0, 1]]',
            [],
            id="same subtask, reads another",
        ),
        pytest.param(
            "# ghp_0123456789abcdefghijABCDEFGHIJ0123\n" + TWO + "[[], [0]]", ["P404"], id="token"
        ),
        pytest.param("# AKIAIOSFODNN7EXAMPLE\n" + TWO + "[[], [0]]", ["P404"], id="access key"),
        pytest.param("# sk-learn is a library\n" + TWO + "[[], [0]]", [], id="no secret"),
    ],
)
def test_style_rules(text: str, expected: list[str]) -> None:
    """Only what carries nothing, repeats, is wasted or leaks is worth a warning."""
    assert codes(text) == expected


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        pytest.param("# noqa", [], id="all"),
        pytest.param("# NOQA: p401", [], id="this code"),
        pytest.param("# noqa: P404, P401", [], id="among others"),
        pytest.param("# noqa: P404", ["P401"], id="another code"),
        pytest.param("# not now", ["P401"], id="no noqa"),
    ],
)
def test_noqa_silences_warnings_of_its_line(comment: str, expected: list[str]) -> None:
    """A warning can be silenced where it stands."""
    text = f'subtasks = [\n    "a",  {comment}\n    "b",\n]\nworkers = [0, 1]\naccess = [[], []]\n'

    assert codes(text) == expected


def test_noqa_does_not_silence_errors() -> None:
    """No comment makes a wrong plan right."""
    assert codes(TWO + "[[], [7]]  # noqa") == ["P206"]


@pytest.mark.parametrize(
    ("text", "expected", "count"),
    [
        pytest.param(TWO + "[[], [0]]\n", TWO + "[[], [0]]\n", 0, id="nothing to do"),
        pytest.param(
            'note\nsubtasks = ["a" "b"]\nworkers=[0 1]\naccess=["all",[0,0]]',
            '# note\nsubtasks = ["a", "b"]\nworkers=[0, 1]\naccess=[[],[0]]',
            5,
            id="all kinds",
        ),
        pytest.param(
            'subtasks = ["say "hi" now"]\nworkers = [0]\naccess = [[]]',
            'subtasks = ["say "hi" now"]\nworkers = [0]\naccess = [[]]',
            0,
            id="a quote inside a string is no missing comma",
        ),
        pytest.param(
            'subtasks = ["a" # one\n"b"]\nworkers = [0, 1]\naccess = [[], [0]]',
            'subtasks = ["a" # one\n, "b"]\nworkers = [0, 1]\naccess = [[], [0]]',
            1,
            id="comma behind a comment",
        ),
        pytest.param(
            'subtasks = ["a"\nworkers = [0]\naccess = [[] # ]\n []',
            'subtasks = ["a"\nworkers = [0]\naccess = [[] # ]\n , []',
            1,
            id="comma in a list that is never closed",
        ),
        pytest.param("note " + TWO + "[[], [0]]", "note " + TWO + "[[], [0]]", 0, id="list behind"),
        pytest.param(
            TWO + "[[], [0, # why\n 0]]", TWO + "[[], [0, # why\n 0]]", 0, id="comment in between"
        ),
    ],
)
def test_repair_does_what_is_safe(text: str, expected: str, count: int) -> None:
    """Repairs keep the meaning and every comment; the rest is left to the author."""
    assert repair(text) == (expected, count)


@given(st.text(alphabet='sub tasks=workers access[]",01#\n', max_size=80))
def test_repair_ends_and_is_idempotent(text: str) -> None:
    """Repairing what is repaired changes nothing, whatever the text."""
    repaired, _ = repair(text)

    assert repair(repaired) == (repaired, 0)


@given(
    st.lists(
        st.sampled_from(["[]", "all", '"all"', "[0]", "[0, 0]", "[0,0,0]"]), min_size=2, max_size=2
    )
)
def test_repaired_plans_mean_the_same(access: list[str]) -> None:
    """The plan before and after is equal, where there is one."""
    text = TWO + f"[{', '.join(access)}]"
    try:
        plan = parse_file(text)
    except PlanError:
        return
    repaired, _ = repair(text)

    assert parse_file(repaired) == plan == parse_file(format_file(repaired))
    assert "P403" not in codes(repaired)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("Let gemini draft it, then let gpt check.", "write three lists", id="prose"),
        pytest.param(TWO.split("access")[0], "add access = [[], [0]]", id="two lists"),
        pytest.param(
            "subtasks:\n  - Draft.\nworkers:\n  - gpt\naccess:\n  - []\n",
            'add subtasks = ["what to do first"',
            id="YAML",
        ),
        pytest.param(
            "subtasks = [Draft it., Check it.]\nworkers = [0, 1]\naccess = [[], [0]]",
            "put text in quotes",
            id="no quotes",
        ),
        pytest.param(TWO + "[[], [1]]", "step 1 may read step 0; steps count from 0", id="from 1"),
        pytest.param(TWO + "[0, 1]", "write a list of earlier steps, as [0, 1]", id="flat access"),
        pytest.param(
            'subtasks = ["Say "done"."]\nworkers = [0]\naccess = [[]]',
            "a backslash before a quote that belongs to the text",
            id="quotes in quotes",
        ),
        pytest.param(
            TWO.replace('"Check."', '"Check.", "Polish."') + "[[], [0], [1]]",
            "workers has 2",
            id="one worker short",
        ),
        pytest.param(TWO.replace("]\nw", "\nw") + "[[], [0]]", "close it with ]", id="bracket"),
        pytest.param('steps = [{"do": "Draft."}]', "write three lists", id="another format"),
    ],
)
def test_the_first_line_of_advice_leads_to_the_repair(text: str, told: str) -> None:
    """Ten files as a newcomer breaks them: message or hint says what would be right."""
    first = check(text)[0]

    assert told in f"{first.message}; {first.hint}"
