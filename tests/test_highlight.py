"""Colours: plan files come out in the right tokens, none is lost, and no valid plan has errors."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pygments.lexers import get_lexer_by_name, get_lexer_for_filename
from pygments.token import Comment, Error, Keyword, Name, Number, Operator, Punctuation, String

from conductor.highlight import PlanLexer
from grammar import RULES, Plan, PlanError, format_file, parse_file

CANONICAL = """\
# two attempts, then a judge
subtasks = [
    "Say \\"hi\\".",
    "Judge.",  # at the end
]
workers  = ["gpt", 1]
access   = [[], all]
"""


def tokens(text: str) -> list[tuple[object, str]]:
    """The tokens of a text, without its blanks."""
    return [(kind, value) for kind, value in raw(text) if value.strip()]


def raw(text: str) -> list[tuple[object, str]]:
    """All tokens of a text."""
    return [(kind, value) for _, kind, value in PlanLexer().get_tokens_unprocessed(text)]


def test_the_canonical_file_comes_out_in_tokens() -> None:
    """Labels, strings, escapes, numbers, "all", comments and brackets are told apart."""
    quote, opening, closing = (String.Double, '"'), (Punctuation, "["), (Punctuation, "]")
    comma, equals = (Punctuation, ","), (Operator, "=")
    expected = [
        (Comment.Single, "# two attempts, then a judge"),
        *[(Name.Attribute, "subtasks"), equals, opening],
        *[quote, (String.Double, "Say "), (String.Escape, '\\"'), (String.Double, "hi")],
        *[(String.Escape, '\\"'), (String.Double, "."), quote, comma],
        *[quote, (String.Double, "Judge."), quote, comma, (Comment.Single, "# at the end")],
        closing,
        *[(Name.Attribute, "workers"), equals, opening, quote, (String.Double, "gpt"), quote],
        *[comma, (Number, "1"), closing],
        *[(Name.Attribute, "access"), equals, opening, opening, closing, comma],
        *[(Keyword.Constant, "all"), closing],
    ]

    assert tokens(CANONICAL) == expected


@pytest.mark.parametrize("name", ["plan", "*.plan"])
def test_the_lexer_is_registered(name: str) -> None:
    """Pygments finds it by name and by the ending of files."""
    found = get_lexer_by_name(name) if name == "plan" else get_lexer_for_filename("x.plan")

    assert isinstance(found, PlanLexer)


LISTS = st.integers(1, 4).flatmap(
    lambda count: st.tuples(
        st.lists(st.text(min_size=1).filter(str.strip), min_size=count, max_size=count),
        st.lists(
            st.one_of(st.integers(0, 99), st.text(min_size=1).filter(str.strip)),
            min_size=count,
            max_size=count,
        ),
    )
)


@given(LISTS, st.sampled_from(["file", "json", "papers", "bold"]))
def test_a_valid_plan_has_no_error_tokens(
    lists: tuple[list[str], list[str | int]], way: str
) -> None:
    """However it is written: our file, JSON, the papers' names, labels in bold."""
    subtasks, workers = lists
    access = [list(range(at)) for at in range(len(subtasks))]
    try:
        text = str(Plan.of(subtasks, workers, access))
    except PlanError:
        return  # a half surrogate, say
    if way == "json":
        made = {"subtasks": subtasks, "workers": workers, "access": access}
        text = json.dumps(made, ensure_ascii=False)
    elif way == "papers":
        text = text.replace("workers ", "model_ids: List[int]", 1).replace("access ", "access_list")
    elif way == "bold":
        text = text.replace("workers ", "**workers**", 1).replace("\nsubtasks ", "\n`sub-tasks`")
    try:
        parse_file(text)
    except PlanError:
        return  # the replacement hit the inside of a string

    assert [value for kind, value in raw(text) if kind is Error] == []


@pytest.mark.parametrize("code", [code for code in RULES if code != "P107"])
def test_the_good_examples_of_the_rules_have_no_error_tokens(code: str) -> None:
    """They are all plans."""
    good = RULES[code].good

    assert [value for kind, value in raw(good) if kind is Error] == []
    assert [value for kind, value in raw(format_file(good)) if kind is Error] == []


QUOTES = [
    "'it's'",
    '"""a "b" c"""',
    "'''a 'b' c'''",
    "“curly ‘ ones”",
    "‘it’s’",
    '"a\nb"',
    '"\\u00e9"',
]


@pytest.mark.parametrize("written", QUOTES)
def test_a_string_ends_where_the_parser_ends_it(written: str) -> None:
    """Apostrophes inside words, quotes inside triple quotes, raw newlines."""
    text = f"subtasks = [{written}]\nworkers = [0]\naccess = [[]]\n"
    parse_file(text)

    labels = [value for kind, value in raw(text) if kind is Name.Attribute]
    assert labels == ["subtasks", "workers", "access"]
    assert Error not in {kind for kind, _ in raw(text)}


def test_stray_text_is_shown_as_an_error() -> None:
    """It makes the file no plan."""
    kinds = {kind for kind, _ in tokens("Here is my plan:\n" + CANONICAL)}

    assert Error in kinds


@given(st.text(alphabet=st.sampled_from("subtasks=[]\"'“”\\ \n#all0,x") | st.characters()))
def test_nothing_is_lost(text: str) -> None:
    """The tokens of any text are the text."""
    assert "".join(value for _, value in raw(text)) == text
