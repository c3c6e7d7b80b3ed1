"""Formatting plan files: one layout, nothing lost."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grammar import RULES, Plan, PlanError, format_file, parse_file

MESSY = """\
# head
"model_id" = [0, # zero
  # one
  1,] # tail
subtasks = ['a',
   # before b
   'it\\'s "b"' # beside b
   # dangling
]


# between

access_list: [[], [0, # why
 ]]
# end"""
TIDY = """\
# head
workers  = [
    0,  # zero
    # one
    1,
]  # tail
subtasks = [
    "a",
    # before b
    "it's \\"b\\"",  # beside b
    # dangling
]

# between

access   = [
    [],
    # why
    [0],
]
# end
"""
comments = st.from_regex(r"# ?[a-z'\"\[\]= ]{0,12}", fullmatch=True)
blanks = st.lists(
    st.one_of(st.sampled_from([" ", "\n", "\t", "\r\n"]), comments.map(lambda c: c + "\n")),
    max_size=4,
).map("".join)


@st.composite
def files(draw: st.DrawFn) -> str:
    """A valid plan file in any layout: order, quotes, spacing, trailing commas, comments."""
    n = draw(st.integers(1, 5))
    subtasks = draw(st.lists(st.text(min_size=1).filter(str.strip), min_size=n, max_size=n))
    subtasks = [text.encode("utf-8", "replace").decode() for text in subtasks]
    workers = draw(st.lists(st.integers(0, 5), min_size=n, max_size=n))
    access = [draw(st.sets(st.integers(0, i - 1))) if i else set() for i in range(n)]
    entries = {
        "subtasks": [
            str(Plan.of([text], [0], [[]])).split("\n")[1].strip(" ,") for text in subtasks
        ],
        "workers": [str(worker) for worker in workers],
        "access": [f"[{','.join(map(str, sorted(each)))}]" for each in access],
    }
    text = draw(blanks)
    for name in draw(st.permutations(sorted(entries))):
        label = draw(st.sampled_from([name, name.upper(), f'"{name}"']))
        text += label + draw(st.sampled_from([" = ", ":", "="])) + "["
        text += ",".join(draw(blanks) + entry + draw(blanks) for entry in entries[name])
        text += draw(st.sampled_from(["", ","])) + draw(blanks) + "]" + draw(blanks) + "\n"
    return text


def quoted(text: str) -> str:
    """A subtask as the canonical text writes it."""
    return str(Plan.of([text], [0], [[]])).split("\n")[1].strip(" ,")


def test_comments_and_order_stay() -> None:
    """Every comment keeps its place beside or before what it speaks of."""
    assert format_file(MESSY) == TIDY


@given(files())
def test_formatting_is_idempotent_and_keeps_plan_and_comments(text: str) -> None:
    """Once is enough; the plan is the same, and so is what comments say, in order."""
    formatted = format_file(text)

    assert format_file(formatted) == formatted
    assert parse_file(formatted) == parse_file(text)
    assert said(formatted) == said(text)


def said(text: str) -> str:
    """What the comments of a file say, in order; two beside one entry may share a line."""
    found = re.findall(r'"(?:[^"\\]|\\.)*"|(#[^\n]*)', text)
    return re.sub(r"[#\s]", "", "".join(found))


def test_canonical_text_stays_as_it_is() -> None:
    """What ``str(plan)`` writes needs no formatting."""
    text = str(Plan.of(["a", "b"], ["gpt", 1], [[], "all"]))

    assert format_file(text) == text


def test_mistakes_of_meaning_do_not_stop_formatting() -> None:
    """A file can be tidied before it is right; what is no entry stays as written."""
    text = "subtasks=['a']\nworkers=[True, 9]\naccess=[[7], all]"

    assert format_file(text) == (
        'subtasks = [\n    "a",\n]\nworkers  = [True, 9]\naccess   = [[7], "all"]\n'
    )


def test_a_list_too_long_to_be_read_is_not_emptied() -> None:
    """A file beyond the limits is refused as a whole."""
    with pytest.raises(PlanError):
        format_file(RULES["P203"].bad)


@pytest.mark.parametrize("text", ["", "hello", "subtasks = [", 'subtasks = ["a" "b"]'])
def test_what_can_not_be_read_is_not_touched(text: str) -> None:
    """A file that is not three lists is refused with its problems."""
    with pytest.raises(PlanError) as error:
        format_file(text)

    assert any(each.code.startswith("P1") for each in error.value.diagnostics)
