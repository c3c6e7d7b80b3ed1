"""What counts as a plan, what does not, and where the mistake is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grammar import RULES, Diagnostic, Limits, Plan, PlanError, Rule, check, parse, parse_file
from grammar.parse import parse_revision, unescape

POOL = ["gemini", "opus", "gpt"]
LISTS = 'subtasks = ["Solve it.", "Check it."]\nworkers = [2, 0]\naccess = [[], [0]]\n'
OTHER = 'subtasks = ["Draft.", "Mend."]\nworkers = [1, 1]\naccess = [[], []]\n'


def plan(
    *subtasks: str,
    workers: Sequence[str | int] = (2, 0),
    access: Sequence[Sequence[int] | Literal["all"]] = ((), (0,)),
) -> Plan:
    """The plan of LISTS, but for what is given."""
    return Plan.of(subtasks or ("Solve it.", "Check it."), workers, access)


def saying(subtask: str) -> str:
    """A plan text whose one subtask is written as given, quotes and all."""
    return f"subtasks = [{subtask}]\nworkers = [0]\naccess = [[]]\n"


def accessing(access: str, steps: int = 3) -> str:
    """A plan text whose access list is written as given."""
    return f"subtasks = {list('abcdefgh'[:steps])}\nworkers = {[0] * steps}\naccess = {access}\n"


def marked(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Take the marks ⟦ ⟧ out of a text; return it and the stretches that were marked."""
    spans = []
    while (start := text.find("⟦")) >= 0:
        end = text.index("⟧") - 1
        text = text.replace("⟦", "", 1).replace("⟧", "", 1)
        spans.append((start, end))
    return text, spans


def offsets(text: str, found: Sequence[Diagnostic]) -> list[tuple[int, int]]:
    """The stretches of text that diagnostics point to."""
    starts = [0, *(match.end() for match in re.finditer("\n", text))]
    return [
        (starts[each.line - 1] + each.column - 1, starts[each.end_line - 1] + each.end_column - 1)
        if each.end_line <= len(starts)
        else (starts[each.line - 1] + each.column - 1, len(text) + each.end_column)
        for each in found
    ]


def refusal(text: str, **options: Sequence[str]) -> tuple[Diagnostic, ...]:
    """The diagnostics of a completion that holds no plan."""
    with pytest.raises(PlanError) as error:
        parse(text, workers=options.get("workers"))
    return error.value.diagnostics


# --- what a language model may write ---------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(LISTS, id="our names"),
        pytest.param(
            'model_id = [2, 0]\nsubtasks = ["Solve it.", "Check it."]\naccess_list = [[], [0]]',
            id="the papers' names and order",
        ),
        pytest.param(
            'access = [[], [0]]\nworkers = [2, 0]\nsubtasks = ["Solve it.", "Check it."]',
            id="any order",
        ),
        pytest.param(
            'Model IDs: [2, 0]\nSub-tasks: ["Solve it.", "Check it."]\nAccess lists: [[], [0]]',
            id="words of a headline",
        ),
        pytest.param(
            'WORKER_ID=[2,0]\nSUBTASK=["Solve it.","Check it."]\nACCESS_LIST=[[],[0]]',
            id="capitals, no blanks",
        ),
        pytest.param(LISTS.replace("=", ":"), id="colons"),
        pytest.param(LISTS.replace(" = ", "\n=\n"), id="separator on its own line"),
        pytest.param(LISTS.replace("\n", ""), id="one line"),
        pytest.param(LISTS.replace("\n", ", "), id="keyword arguments"),
        pytest.param(LISTS.replace("\n", "\r\n"), id="carriage returns"),
        pytest.param("\ufeff" + LISTS, id="byte order mark"),
        pytest.param(LISTS.replace(", ", "\t,\t").replace("= ", "=\t"), id="tabs"),
        pytest.param(LISTS.replace(", ", "\u00a0,\u3000"), id="unicode blanks"),
        pytest.param(LISTS.replace("]\n", ",]\n"), id="trailing commas"),
        pytest.param(LISTS.replace("[0]]", "[0,],]"), id="trailing comma in an access list"),
        pytest.param(LISTS.replace("[0]]", '["0"]]'), id="step numbers in quotes"),
        pytest.param(LISTS.replace("2, 0", "+2, 00"), id="signs and leading zeros"),
        pytest.param(LISTS.replace('"', "'"), id="single quotes"),
        pytest.param(LISTS.replace('"', '"""'), id="triple double quotes"),
        pytest.param(LISTS.replace('"', "'''"), id="triple single quotes"),
        pytest.param(
            LISTS.replace('["', "[“").replace('"]', "”]").replace('", "', "”, “"),
            id="curly double quotes",
        ),
        pytest.param(
            LISTS.replace('["', "[‘").replace('"]', "’]").replace('", "', "’, ‘"),
            id="curly single quotes",
        ),
        pytest.param(LISTS.replace('"', "”"), id="curly quotes the wrong way round"),
        pytest.param(
            '{"model_id": [2, 0], "subtasks": ["Solve it.", "Check it."], "access": [[], [0]]}',
            id="JSON object",
        ),
        pytest.param(
            '{\n  "subtasks": [\n    "Solve it.",\n    "Check it."\n  ],\n  "workers": [\n    2,\n'
            '    0\n  ],\n  "access": [\n    [],\n    [\n      0\n    ]\n  ]\n}\n',
            id="indented JSON object",
        ),
        pytest.param(
            "{'workers': [2, 0], 'subtasks': ['Solve it.', 'Check it.'], 'access': [[], [0]]}",
            id="Python dict",
        ),
        pytest.param("Two solvers.\n\n" + LISTS + "\nThat should do.", id="prose around"),
        pytest.param("The subtasks are two: solve, check.\n" + LISTS, id="label in prose"),
        pytest.param("Workers: the strongest two. Access: none.\n" + LISTS, id="label and colon"),
        pytest.param("In [0, 1) it's f(x) = [x].\n" + LISTS, id="intervals and apostrophes"),
        pytest.param("<think>workers = [9]\n" + OTHER + "</think>\n" + LISTS, id="think block"),
        pytest.param("<thinking>hm</thinking>" + LISTS, id="thinking block"),
        pytest.param(OTHER + "</think>\n" + LISTS, id="think block opened in the prompt"),
        pytest.param(LISTS + "<think>Or better:\n" + OTHER, id="think block cut off behind"),
        pytest.param("```python\n" + LISTS + "```\n", id="one fence"),
        pytest.param("~~~\n" + LISTS + "~~~\n", id="tilde fence"),
        pytest.param(
            "subtasks:\n```python\n['Solve it.', 'Check it.']\n```\nworkers:\n```\n[2, 0]\n```\n"
            "access:\n```json\n[[], [0]]\n```\n",
            id="a fence each",
        ),
        pytest.param(
            "**subtasks**: ['Solve it.', 'Check it.']\n**workers:** [2, 0]\n**access** = [[], [0]]",
            id="bold labels",
        ),
        pytest.param(
            "- `subtasks` = ['Solve it.', 'Check it.']\n* `workers`: [2, 0]\n"
            "1. `access`: [[], [0]]",
            id="bullets and backticks",
        ),
        pytest.param(
            "### Subtasks:\n['Solve it.', 'Check it.']\n### Workers:\n[2, 0]\n"
            "### Access:\n[[], [0]]",
            id="headings",
        ),
        pytest.param(
            'subtasks: list[str] = ["Solve it.", "Check it."]\nworkers: List[int | str] = [2, 0]\n'
            "access: list[list[int]] = [[], [0]]",
            id="type annotations",
        ),
        pytest.param(
            "# a plan\nsubtasks = [  # two\n  # first\n  'Solve it.',\n  'Check it.',  # ]\n]\n"
            "workers = [2, 0]  # workers = [1]\naccess = [[], [0]]",
            id="comments",
        ),
        pytest.param(OTHER + LISTS, id="the last of two plans"),
        pytest.param(OTHER * 9 + LISTS, id="the last of ten plans"),
        pytest.param(OTHER + "No:\n" + LISTS + "\nsubtasks = ['Bett", id="second cut off early"),
        pytest.param(
            LISTS + "Or:\n" + "subtasks = ['Other.']\nworkers = [1]\nacc",
            id="second without access",
        ),
        pytest.param(LISTS + "Or:\nsubtasks = ['Other.', ", id="second cut off in a list"),
        pytest.param("Not access = [[], []] but:\n" + LISTS, id="list mentioned before"),
        pytest.param(LISTS + "I chose workers = [2, 0] for speed.", id="list mentioned behind"),
        pytest.param(
            LISTS + "With access = [[], []] step 1 sees nothing.", id="another list behind"
        ),
        pytest.param("First workers = [?].\n" + LISTS, id="broken list before"),
        pytest.param(
            'subtasks = ["Solve it.", "Check it."]\nSo, by strength:\nworkers = [2, 0]\n'
            "and, as a chain:\naccess = [[], [0]]",
            id="prose between",
        ),
    ],
)
def test_every_way_of_writing_a_plan_gives_the_same_plan(text: str) -> None:
    """Names, order, quotes, fences and what stands around do not matter."""
    assert parse(text) == plan()


@pytest.mark.parametrize(
    ("written", "read"),
    [
        pytest.param('"it\'s"', "it's", id="apostrophe in double quotes"),
        pytest.param("'it's'", "it's", id="apostrophe in single quotes"),
        pytest.param("‘it’s’", "it’s", id="apostrophe in curly quotes"),
        pytest.param(r"'it\'s'", "it's", id="escaped apostrophe"),
        pytest.param(r'"say \"hi\""', 'say "hi"', id="escaped quote"),
        pytest.param("'say \"hi\"'", 'say "hi"', id="double quotes in single quotes"),
        pytest.param('"a “b” c"', "a “b” c", id="curly quotes in straight quotes"),
        pytest.param("“a \"b\" 'c'”", "a \"b\" 'c'", id="straight quotes in curly quotes"),
        pytest.param("„a”", "a", id="low quote"),
        pytest.param('"""a "b" c"""', 'a "b" c', id="quotes in triple quotes"),
        pytest.param("'''a 'b' ''c'''", "a 'b' ''c", id="single quotes in triple quotes"),
        pytest.param('"""a\n  b\n"""', "a\n  b\n", id="lines in triple quotes"),
        pytest.param('"a\nb"', "a\nb", id="raw newline"),
        pytest.param('"a\r\nb\tc"', "a\r\nb\tc", id="raw carriage return and tab"),
        pytest.param(r'"a\nb\tc\rd\be\ff"', "a\nb\tc\rd\be\ff", id="short escapes"),
        pytest.param(r'"a\\nb"', r"a\nb", id="escaped backslash"),
        pytest.param(r'"a\\"', "a\\", id="backslash at the end"),
        pytest.param(r'"a\/b"', "a/b", id="JSON slash"),
        pytest.param('"a\\\nb"', "ab", id="Python line continuation"),
        pytest.param(r'"\u00e9\xe9\U000000e9"', "ééé", id="escapes by number"),
        pytest.param(r'"\ud83d\ude00"', "😀", id="surrogate pair"),
        pytest.param(r'"a\ud83d\ude00\u0041"', "a😀A", id="surrogate pair among escapes"),
        pytest.param(r'"\ude00 \ud83d"', "\ufffd \ufffd", id="halves of a pair"),
        pytest.param(r'"\U0001F600"', "😀", id="astral escape"),
        pytest.param(r'"a\UFFFFFFFF"', "a\ufffd", id="number beyond Unicode"),
        pytest.param(
            r'"\frac{a}{b} \(x\) \alpha \d"', "\frac{a}{b} \\(x\\) \\alpha \\d", id="LaTeX"
        ),
        pytest.param(r'"\u12"', r"\u12", id="escape cut off"),
        pytest.param('"😀 日本語 שלום"', "😀 日本語 שלום", id="any script"),
        pytest.param('"# no comment"', "# no comment", id="hash"),
        pytest.param('"a, [b], (c]"', "a, [b], (c]", id="brackets"),
        pytest.param('"workers = [1]"', "workers = [1]", id="label in a string"),
        pytest.param('"access: [[0]] </think> ```"', "access: [[0]] </think> ```", id="tags"),
        pytest.param('  "a"  # why\n', "a", id="comment behind"),
    ],
)
def test_strings_are_read_as_python_and_json_would(written: str, read: str) -> None:
    """Each quote of both languages and of typesetting ends where its writer meant it to."""
    assert parse_file(saying(written)) == Plan.of([read], [0], [[]])


@pytest.mark.parametrize(
    ("written", "read"),
    [
        pytest.param("[[], [0], [0, 1]]", ((), (0,), (0, 1)), id="index lists"),
        pytest.param('[[], "all", "all"]', ((), (0,), (0, 1)), id="all"),
        pytest.param('["all", "all", "all"]', ((), (0,), (0, 1)), id="all of none"),
        pytest.param('[[], ["all"], ["ALL"]]', ((), (0,), (0, 1)), id="all in a list"),
        pytest.param("[[], all, [all]]", ((), (0,), (0, 1)), id="bare all"),
        pytest.param('[[], [], ["all", 0]]', ((), (), (0, 1)), id="all and an index"),
        pytest.param("[[], [], [1, 0, 1]]", ((), (), (0, 1)), id="order and repeats"),
        pytest.param("[[], ['0'], [\"1\", 0]]", ((), (0,), (0, 1)), id="numbers in quotes"),
    ],
)
def test_access_may_be_written_in_every_way_of_the_papers(
    written: str, read: tuple[tuple[int, ...], ...]
) -> None:
    """Access is kept as ascending earlier steps, however it was written."""
    assert parse(accessing(written)).access == read


@pytest.mark.parametrize(
    ("written", "names"),
    [
        pytest.param("[0, 2]", ("gemini", "gpt"), id="numbers"),
        pytest.param('["gpt", "opus"]', ("gpt", "opus"), id="names"),
        pytest.param('["1", "gpt"]', ("opus", "gpt"), id="number in quotes and a name"),
    ],
)
def test_a_pool_turns_numbers_into_names(written: str, names: tuple[str, str]) -> None:
    """With the pool given, a plan names its workers whichever way it was written."""
    text = LISTS.replace("[2, 0]", written)

    assert parse(text, workers=POOL) == plan(workers=names)


def test_a_worker_named_like_a_number_goes_before_the_number() -> None:
    """In a pool with a worker called "1", the string is its name."""
    assert parse(LISTS.replace("2, 0", '"1", 1'), workers=["1", "b"]).workers == ("1", "b")


# --- what is refused, and where --------------------------------------------------------------

REFUSED = [
    pytest.param("P101", "⟦J⟧ust solve it.\n", id="prose"),
    pytest.param("P101", "⟦\n⟧", id="blank"),
    pytest.param("P102", 'subtasks = ["a"]\nworkers = [0]⟦\n⟧', id="access missing"),
    pytest.param("P102", '⟦workers = ⟧0\nsubtasks = ["a"]\naccess = [[]]', id="no list behind"),
    pytest.param("P103", 'subtasks = ⟦[⟧"a"\nworkers = [0]\naccess = [[]]', id="unclosed"),
    pytest.param("P103", 'subtasks = ⟦[⟧"a",\nworkers = [0]\naccess = [[]]', id="unclosed, comma"),
    pytest.param(
        "P103", '{"subtasks": ⟦[⟧"a", "workers": [0], "access": [[]]}', id="unclosed in JSON"
    ),
    pytest.param(
        "P103", '{"subtasks": ⟦[⟧"a" "workers": [0], "access": [[]]}', id="unclosed, no comma"
    ),
    pytest.param("P103", 'subtasks = ["a"]\nworkers = [0]\naccess = ⟦[⟧[]', id="unclosed at end"),
    pytest.param(
        "P104", 'workers = [0]\naccess = [[]]\nsubtasks = [⟦"a]⟧\n', id="unterminated double"
    ),
    pytest.param(
        "P104", "workers = [0]\naccess = [[]]\nsubtasks = [⟦'a]⟧\n", id="unterminated single"
    ),
    pytest.param(
        "P104", "workers = [0]\naccess = [[]]\nsubtasks = [⟦'''a']⟧\n", id="unterminated triple"
    ),
    pytest.param(
        "P104", "workers = [0]\naccess = [[]]\nsubtasks = [⟦“a]⟧\n", id="unterminated curly"
    ),
    pytest.param(
        "P104", 'workers = [0]\naccess = [[]]\nsubtasks = [⟦"a\\"]⟧\n', id="ends in a backslash"
    ),
    pytest.param("P105", 'subtasks = ["a" ⟦"b"⟧]\nworkers = [0, 1]\naccess = [[], []]', id="comma"),
    pytest.param("P105", 'subtasks = ["a"]\nworkers = [0]\naccess = [⟦,⟧[]]', id="comma too many"),
    pytest.param("P105", 'subtasks = ["a"]\nworkers = [⟦(⟧0)]\naccess = [[]]', id="parenthesis"),
    pytest.param("P105", 'subtasks = ["a"]\nworkers = [⟦{⟧"id": 0}]\naccess = [[]]', id="brace"),
    pytest.param("P105", 'subtasks = [f⟦"a"⟧]\nworkers = [0]\naccess = [[]]', id="f-string"),
    pytest.param("P105", 'subtasks = ["a" ⟦+⟧ "b"]\nworkers = [0]\naccess = [[]]', id="sum"),
    pytest.param("P108", accessing("[[[⟦[⟧0]]]]", 1), id="nested too deep"),
    pytest.param("P109", LISTS + "⟦workers = [0, 1]⟧\n", id="workers twice"),
    pytest.param("P201", 'subtasks = ["a"]\n⟦workers = [0, 1]⟧\naccess = [[]]', id="two workers"),
    pytest.param(
        "P201", '⟦subtasks = ["a", "b"]⟧\nworkers = [0]\naccess = [[]]', id="two subtasks"
    ),
    pytest.param("P201", "⟦subtasks = []⟧\nworkers = [0]\naccess = [[]]", id="no subtasks"),
    pytest.param("P202", "⟦subtasks = []⟧\nworkers = []\naccess = []", id="no steps"),
    pytest.param("P204", accessing("[[], [⟦2⟧], []]"), id="forward"),
    pytest.param("P204", accessing('[[], ["0", ⟦"2"⟧], []]'), id="forward in quotes"),
    pytest.param("P205", accessing("[[], [0, ⟦1⟧], []]"), id="itself"),
    pytest.param("P205", accessing("[[⟦0⟧], [], []]"), id="first reads itself"),
    pytest.param("P206", accessing("[[], [0], [⟦3⟧]]"), id="beyond the plan"),
    pytest.param("P207", accessing("[[], [⟦-1⟧], []]"), id="negative"),
    pytest.param("P208", saying("⟦2⟧"), id="subtask is a number"),
    pytest.param("P208", saying("⟦None⟧"), id="subtask is None"),
    pytest.param("P208", saying("⟦solve⟧"), id="subtask is a bare word"),
    pytest.param("P208", saying('⟦["a"]⟧'), id="subtask is a list"),
    pytest.param("P209", 'subtasks = ["a"]\nworkers = [⟦True⟧]\naccess = [[]]', id="True"),
    pytest.param("P209", 'subtasks = ["a"]\nworkers = [⟦gpt⟧]\naccess = [[]]', id="bare name"),
    pytest.param("P209", 'subtasks = ["a"]\nworkers = [⟦-1⟧]\naccess = [[]]', id="negative worker"),
    pytest.param("P209", 'subtasks = ["a"]\nworkers = [⟦1.0⟧]\naccess = [[]]', id="fraction"),
    pytest.param("P209", 'subtasks = ["a"]\nworkers = [⟦1e3⟧]\naccess = [[]]', id="exponent"),
    pytest.param("P209", 'subtasks = ["a"]\nworkers = [⟦""⟧]\naccess = [[]]', id="empty name"),
    pytest.param("P209", 'subtasks = ["a"]\nworkers = [⟦null⟧]\naccess = [[]]', id="null"),
    pytest.param(
        "P209", f'subtasks = ["a"]\nworkers = [⟦{"9" * 5000}⟧]\naccess = [[]]', id="huge number"
    ),
    pytest.param("P210", accessing("[[], ⟦0⟧, []]"), id="access is a number"),
    pytest.param("P210", accessing("[[], ⟦None⟧, []]"), id="access is None"),
    pytest.param("P210", accessing("[[], [⟦True⟧], []]"), id="access holds True"),
    pytest.param("P210", accessing("[[], [⟦0.0⟧], []]"), id="access holds a fraction"),
    pytest.param("P210", accessing("[[], [⟦[0]⟧], []]"), id="access holds a list"),
    pytest.param("P210", accessing('[[], ⟦"none"⟧, []]'), id="access is another word"),
    pytest.param("P210", accessing("[[], [⟦opus⟧], []]"), id="access holds a worker"),
    pytest.param("P211", saying('⟦" \\n"⟧'), id="blank subtask"),
    pytest.param("P212", saying(f'⟦"{"x" * 16_385}"⟧'), id="oversize subtask"),
    pytest.param(
        "P301", 'subtasks = ["a"]\nworkers = [⟦"claude"⟧]\naccess = [[]]', id="no such name"
    ),
    pytest.param("P301", 'subtasks = ["a"]\nworkers = [⟦"GPT"⟧]\naccess = [[]]', id="other case"),
    pytest.param("P302", 'subtasks = ["a"]\nworkers = [⟦3⟧]\naccess = [[]]', id="beyond the pool"),
    pytest.param(
        "P302", 'subtasks = ["a"]\nworkers = [⟦"3"⟧]\naccess = [[]]', id="beyond, in quotes"
    ),
]


@pytest.mark.parametrize(("code", "text"), REFUSED)
def test_every_mistake_is_named_and_placed(code: str, text: str) -> None:
    """A mistake gives one diagnostic, with its code, on exactly the text that is wrong."""
    text, spans = marked(text)

    found = check(text, workers=POOL)

    assert [each.code for each in found] == [code]
    assert offsets(text, found) == spans


@pytest.mark.parametrize(("code", "text"), REFUSED)
def test_a_completion_is_no_more_lenient_than_a_file_about_its_lists(code: str, text: str) -> None:
    """What makes a list wrong in a file makes it wrong in a completion, in the same place."""
    text, spans = marked(text)

    found = refusal(text, workers=POOL)

    assert [each.code for each in found] == [code]
    assert offsets(text, found) == spans


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("⟦Here is my plan:⟧\n" + LISTS, id="before"),
        pytest.param(LISTS + "⟦That is all.⟧\n", id="behind"),
        pytest.param(LISTS.replace("workers", "⟦So, with⟧\nworkers"), id="between"),
        pytest.param("⟦```⟧\n" + LISTS, id="fence"),
        pytest.param("⟦<think>hm</think>⟧\n" + LISTS, id="think block"),
        pytest.param("⟦- ⟧" + LISTS, id="bullet"),
    ],
)
def test_a_file_holds_nothing_but_lists_and_comments(text: str) -> None:
    """Prose that is fine round a completion's plan is a mistake in a plan file."""
    text, spans = marked(text)

    found = check(text)

    assert parse(text) == plan()
    assert [each.code for each in found] == ["P106"]
    assert offsets(text, found) == spans


@pytest.mark.parametrize(
    "comment",
    [
        pytest.param("# workers = [9]\n", id="list"),
        pytest.param("# subtasks: [\n", id="list cut off"),
        pytest.param("# </think>\n", id="closing tag"),
        pytest.param("  # <think>\n", id="opening tag"),
        pytest.param("# it's [\"odd\n", id="quotes"),
    ],
)
def test_a_comment_of_a_file_is_no_plan(comment: str) -> None:
    """Nothing in a comment is read, wherever between the lists it stands."""
    assert parse_file(comment + LISTS.replace("\n", "\n" + comment)) == plan()


@pytest.mark.parametrize(
    ("code", "text"),
    [
        pytest.param("P101", "<think>Let me see. workers = [0]⟦\n⟧", id="cut off while thinking"),
        pytest.param("P101", "⟦<⟧think>" + LISTS + "</think>Done.", id="plan only in thinking"),
        pytest.param("P103", 'subtasks = ["a"]\nworkers = ⟦[⟧0, ', id="cut off in a list"),
        pytest.param("P104", 'workers = [0]\nsubtasks = [⟦"Solve the⟧', id="cut off in a string"),
        pytest.param("P204", OTHER + accessing("[[⟦1⟧], [], []]"), id="last of two is wrong"),
    ],
)
def test_a_completion_without_a_plan_says_why(code: str, text: str) -> None:
    """What a model that ran out of tokens or of sense wrote is told apart."""
    text, spans = marked(text)

    found = refusal(text)

    assert [each.code for each in found] == [code]
    assert offsets(text, found) == spans


def test_two_lists_are_missing_where_only_one_is_written() -> None:
    """Each missing list has its own diagnostic."""
    found = check("workers = [0]\n")

    assert [(each.code, each.message, each.hint) for each in found] == [
        (
            "P102",
            "the list `subtasks` is missing",
            'add subtasks = ["what to do first", "what to do next"], one text per step',
        ),
        (
            "P102",
            "the list `access` is missing",
            "add access = [[], [0]], per step the earlier steps it reads, counted from 0",
        ),
    ]


def test_too_many_steps_are_one_problem() -> None:
    """Three lists that are too long are reported once, at the first entry over the limit."""
    text = accessing("[[], [], []]").replace("'b'", "⟦'b'⟧")
    text, spans = marked(text)

    with pytest.raises(PlanError) as error:
        parse_file(text, limits=Limits(steps=1))

    assert [each.code for each in error.value.diagnostics] == ["P203"]
    assert offsets(text, error.value.diagnostics) == spans


def test_a_text_over_the_limit_is_not_looked_at() -> None:
    """One character too many is refused, the limit itself is not."""
    limits = Limits(characters=len(LISTS))

    assert parse(LISTS, limits=limits) == plan()
    assert [each.code for each in refusal("#" * 256 * 1024 + LISTS)] == ["P107"]
    with pytest.raises(PlanError, match="P107"):
        parse(LISTS + " ", limits=limits)


@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_the_examples_of_a_rule_show_it(rule: Rule) -> None:
    """The bad example has exactly that problem, the good one has none."""
    assert [each.code for each in check(rule.bad, workers=POOL)] == [rule.code]
    assert check(rule.good, workers=POOL) == ()
    assert parse(rule.good, workers=POOL) == parse_file(rule.good, workers=POOL)


def test_codes_are_sorted_and_names_are_unique() -> None:
    """The table of rules reads as a list, and a name stands for one rule."""
    assert list(RULES) == sorted(RULES)
    assert len({rule.name for rule in RULES.values()}) == len(RULES)


FIVE_MISTAKES = """\
# five mistakes
subtasks = [
    "Derive the invariant.",
    "Résumé 数式 der Schritte" "Judge.",
]
workers = ["gmini", True, 2]
access = [[], [0], [0, 5]]
That is all.
"""
FIVE_ERRORS = """\
error[P105]: a comma is missing between two entries
 --> two.plan:4:30
  |
4 |     "Résumé 数式 der Schritte" "Judge.",
  |                                ^^^^^^^^
  = hint: put a comma before it

error[P301]: no worker is called 'gmini'
 --> two.plan:6:12
  |
6 | workers = ["gmini", True, 2]
  |            ^^^^^^^
  = hint: did you mean 'gemini'?

error[P209]: worker of step 1 is the boolean True
 --> two.plan:6:21
  |
6 | workers = ["gmini", True, 2]
  |                     ^^^^
  = hint: write a name in quotes, as "gpt", or the number of a worker, from 0

error[P206]: step 2 reads step 5, but the plan has 3 steps
 --> two.plan:7:24
  |
7 | access = [[], [0], [0, 5]]
  |                        ^
  = hint: step 2 may read steps 0 to 1

error[P106]: this is neither a list of the plan nor a comment
 --> two.plan:8:1
  |
8 | That is all.
  | ^^^^^^^^^^^^
  = hint: start the line with # to make it a comment"""


def test_a_file_with_five_mistakes_shows_all_of_them() -> None:
    """Each mistake is shown with its line, its caret and what would be right."""
    with pytest.raises(PlanError) as error:
        parse_file(FIVE_MISTAKES, workers=POOL)

    assert error.value.render("two.plan") == FIVE_ERRORS


@pytest.mark.parametrize(
    "number",
    [pytest.param("1234567", id="seven digits"), pytest.param("9" * 5000, id="5,000 digits")],
)
def test_a_string_of_many_digits_is_a_name(number: str) -> None:
    """No pool has a million workers; such a string is taken as it stands and never converted."""
    text = f'subtasks = ["a"]\nworkers = ["{number}"]\naccess = [[]]\n'

    assert parse(text).workers == (number,)
    assert [each.code for each in check(text, workers=POOL)] == ["P301"]
    assert [each.code for each in check(accessing(f'[[], ["{number}"]]', 2))] == ["P210"]


# --- later rounds ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("subtasks = []\nworkers = []\naccess = []", id="our names"),
        pytest.param("It holds.\nmodel_id = []\nsubtasks = []\naccess_list = []", id="papers'"),
        pytest.param('{"model_id": [], "subtasks": [], "access_list": []}', id="JSON"),
        pytest.param(LISTS + "Or rather:\nsubtasks = []\nworkers = []\naccess = []", id="last"),
    ],
)
def test_three_empty_lists_keep_the_answer(text: str) -> None:
    """In a later round, and only there, a plan may be empty."""
    assert parse_revision(text) is None
    assert [each.code for each in refusal(text)] == ["P202"]


def test_a_later_round_may_bring_a_new_plan() -> None:
    """A plan is a plan in every round."""
    assert parse_revision(LISTS, workers=POOL) == plan(workers=("gpt", "gemini"))


@pytest.mark.parametrize(
    ("code", "text"),
    [
        pytest.param("P101", "", id="nothing"),
        pytest.param("P101", "Keep it.", id="prose"),
        pytest.param("P102", "subtasks = []\nworkers = []", id="two empty lists"),
        pytest.param("P103", "subtasks = []\nworkers = []\naccess = [", id="cut off"),
        pytest.param("P105", "subtasks = [)]\nworkers = []\naccess = []", id="broken"),
        pytest.param("P201", "subtasks = []\nworkers = []\naccess = [[]]", id="not all empty"),
        pytest.param("P101", "<think>subtasks = [] workers = [] access = []", id="only thought"),
    ],
)
def test_garbled_text_never_keeps_the_answer(code: str, text: str) -> None:
    """A completion that fell apart is an error, not a vote for the answer before."""
    with pytest.raises(PlanError) as error:
        parse_revision(text)

    assert [each.code for each in error.value.diagnostics] == [code]


# --- hostile text ----------------------------------------------------------------------------

PERIODS = [
    pytest.param(head, period, id=f"{head}({period})*".encode("unicode_escape").decode())
    for head, period in [
        ("", "["),
        ("subtasks = [", "["),
        ("access = [", "[],"),
        ("access = ", "[[0],"),
        ('subtasks = ["', "a"),
        ("subtasks = ['", "a"),
        ('subtasks = ["""', "a"),
        ("subtasks = ['''", "a"),
        ("subtasks = [“", "a"),
        ("subtasks = [‘", "a"),
        ("subtasks = [", "\"'"),
        ("subtasks = [", "\"a' “b‘ \"\"\"c'''„ "),
        ("subtasks = [", "\"\"\"'''“”‘’"),
        ("subtasks = ['", "a'a"),
        ("", "subtasks "),
        ("", "subtasks = "),
        ("", "subtasks = ["),
        ("", 'subtasks = ["'),
        ("", "subtasks = ['"),
        ("", 'subtasks = ["""'),
        ("", "subtasks = [“"),
        ("", "access = []\n"),
        ("", "access = [[]] workers = [0] "),
        ('subtasks = ["', "workers = [1] "),
        ("", "workers = [?]\n"),
        ("", "subtasks: list["),
        ("", "**subtasks**:** "),
        ("", "*"),
        ('subtasks = ["', "\\"),
        ('subtasks = ["', "\\ud83d"),
        ("subtasks = [", "#\n"),
        ("", "# subtasks\n"),
        ("subtasks = [] ", "#"),
        ("subtasks", " "),
        ("", "<think>"),
        ("", "</think>"),
        ("", "<thinking></think>"),
        ("workers = [", "9"),
        ("workers = [", "+-"),
        ("workers = [", ","),
        ("workers = [", "1,"),
        ("workers = [", "1 "),
        ("", "\n"),
        ("", "\ud800"),
    ]
]


@pytest.mark.parametrize("size", [256 * 1024, 1_000_000])
@pytest.mark.parametrize(("head", "period"), PERIODS)
def test_hostile_text_is_refused(head: str, period: str, size: int) -> None:
    """Text made to cost a reader time or stack gives a few diagnostics, whatever its length."""
    text = (head + period * (size // len(period) + 1))[:size]

    found = refusal(text)

    assert found == tuple(sorted(found, key=lambda each: (each.line, each.column, each.code)))
    assert 1 <= len(found) <= 100


# --- any text --------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        *"[]{}(),=:#\\\"'“”‘’<>/`*0-9\n\t\r \ufeff\u202e\x1b\ud800é数😀",
        *("subtasks", "workers", "access", "model_id", "access_list", " = [", "]\n", '"a", '),
        *('"""', "'''", "<think>", "</think>", "```python\n", "all", "True", "[0, 1]", "[[], [0]]"),
        *(LISTS, OTHER, "# comment\n", ": list[str] = ", "\\u12", "\\ud83d\\ude00", "1e9", "-1"),
    ]
)
TEXTS = st.one_of(st.text(st.characters()), st.lists(PIECES, max_size=40).map("".join))


@st.composite
def mutations(draw: st.DrawFn) -> str:
    """A valid plan text with a few stretches replaced."""
    text = draw(st.sampled_from([LISTS, OTHER + LISTS, FIVE_MISTAKES]))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 8)))
        text = text[:start] + draw(st.one_of(PIECES, st.just(""))) + text[end:]
    return text


@given(st.one_of(TEXTS, mutations()), st.sampled_from([None, POOL, []]))
def test_any_text_gives_a_plan_or_placed_diagnostics(text: str, pool: list[str] | None) -> None:
    """Checking never fails; a problem points into the text and shows nothing that acts."""
    found = check(text, workers=pool)

    for span in offsets(text, found):
        assert 0 <= span[0] <= len(text)
        assert span[0] <= span[1] <= len(text) + 1
    for each in found:
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800]", each.render(text))
        assert each.code in RULES
    if any(each.severity == "error" for each in found):
        with pytest.raises(PlanError):
            parse_file(text, workers=pool)
    else:
        read = parse_file(text, workers=pool)
        assert parse(str(read), workers=pool) == read


@given(st.one_of(TEXTS, mutations()))
def test_any_completion_gives_a_plan_or_a_plan_error(text: str) -> None:
    """What a model may write never ends in another error."""
    try:
        read = parse(text)
    except PlanError as error:
        assert error.diagnostics
        assert error.render().count("error[") >= len(error.diagnostics)
    else:
        assert parse(str(read)) == read


@given(st.text(st.characters()))
def test_any_string_can_be_encoded_once_read(body: str) -> None:
    """No escape, whole or half, leaves a string that UTF-8 can not hold."""
    unescape(body).encode()
