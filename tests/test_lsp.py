"""Editor support: the answers as pure functions, and the server as an editor drives it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lsprotocol import types
from pygls.lsp.client import LanguageClient
from pygls.workspace import PositionCodec

from conductor.lsp import (
    Source,
    code_actions,
    completion,
    diagnostics,
    formatting,
    hover,
    rename,
    renameable,
    symbols,
)
from grammar import RULES, parse_file
from grammar.diagnostics import Span
from runtime import PoolFile

POOL = """\
[workers.gemini]
kind = "openai"
url = "https://example.org/v1"
model = "gemini-3"
card = "fast; good at *sums*"
tags = ["cheap", "fast"]

[workers.opus]
kind = "openai"
url = "https://example.org/v1"
model = "opus-5"

[workers.small]
kind = "local"
"""
POOL_FILE = PoolFile.parse(POOL)

PLAN = """\
# two attempts, then a judge
subtasks = [
    "Derive 😀 the invariant.",
    "推导不变量。",
    "Resolve the disagreement.",
]
workers  = ["gemini", 1, "gemini"]
access   = [[], [], [0, 1]]
"""

UTF8 = PositionCodec(types.PositionEncodingKind.Utf8)


def at(marked: str, pool: PoolFile | None = POOL_FILE) -> tuple[Source, int]:
    """The text without its mark ‸, and where the mark was."""
    return Source(marked.replace("‸", ""), pool), marked.index("‸")


def applied(source: Source, edits: list[types.TextEdit]) -> str:
    """The text after edits, which may not overlap; last first."""
    text = source.text
    spans = [(source.offset(e.range.start), source.offset(e.range.end), e.new_text) for e in edits]
    for start, end, new in sorted(spans, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def offered(marked: str, pool: PoolFile | None = POOL_FILE) -> list[str]:
    """The labels that completion offers at the mark."""
    return [each.label for each in completion(*at(marked, pool))]


def accepted(marked: str, label: str, pool: PoolFile | None = POOL_FILE) -> str:
    """The text after one of the offers is taken."""
    source, offset = at(marked, pool)
    edit = next(e for e in completion(source, offset) if e.label == label).text_edit
    assert isinstance(edit, types.TextEdit)
    assert edit.range.start.line == edit.range.end.line == source.position(offset).line
    return applied(source, [edit])


def told(marked: str, pool: PoolFile | None = POOL_FILE) -> str | None:
    """What hovering at the mark says, as plain text."""
    source, offset = at(marked, pool)
    found = hover(source, offset, markdown=False)
    if found is None:
        return None
    assert isinstance(found.contents, types.MarkupContent)
    return found.contents.value


def begun(lists: str) -> str:
    """A plan of three subtasks, with what is being written behind them."""
    return f'subtasks = ["Draft.", "Check.", "Judge."]\n{lists}'


# --- places ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "column"),
    [
        pytest.param(PositionCodec(), 3, id="utf-16: an emoji is two"),
        pytest.param(UTF8, 6, id="utf-8: an emoji is four, a CJK character three"),
        pytest.param(PositionCodec(types.PositionEncodingKind.Utf32), 2, id="utf-32: one each"),
    ],
)
def test_columns_are_counted_as_the_editor_counts_them(codec: PositionCodec, column: int) -> None:
    """By default in UTF-16 code units."""
    source = Source("a\n😀不c" if column != 6 else "a\n不不c", codec=codec)

    assert source.position(4) == types.Position(1, column)
    assert source.offset(types.Position(1, column)) == 4


def test_lines_end_where_editors_end_them() -> None:
    """At a newline or carriage return; not at the other line ends that Unicode knows."""
    source = Source("a\r\nb\rc\u2028d\x0be\nf")

    assert source.lines == ["a", "b", "c\u2028d\x0be", "f"]
    assert source.position(source.text.index("e")) == types.Position(2, 4)


@pytest.mark.parametrize(
    ("line", "character", "offset"),
    [(0, 99, 2), (1, 99, 5), (99, 0, 5), (1, 1, 5), (0, 0, 0)],
)
def test_a_place_outside_the_text_is_the_nearest_one(
    line: int, character: int, offset: int
) -> None:
    """Behind the end of a line or file, or inside a surrogate pair."""
    assert Source("ab\r\n😀").offset(types.Position(line, character)) == offset


@given(st.text(alphabet="ab😀不\r\n\u2028"), st.data())
def test_places_go_there_and_back(text: str, data: st.DataObject) -> None:
    """Every offset has a position, which has that offset."""
    offset = data.draw(st.integers(0, len(text)))
    if text[offset - 1 : offset + 1] == "\r\n":
        return  # no editor's position is between these
    source = Source(text)

    assert source.offset(source.position(offset)) == offset


# --- diagnostics and repairs -------------------------------------------------------------------


def test_a_problem_has_code_place_severity_and_hint() -> None:
    """The place in UTF-16 code units, behind an emoji and CJK."""
    text = 'subtasks = ["😀 推", "b"]\nworkers = ["gmini", 0]\naccess = [[], [0, 0]]\n'
    error, *rest = diagnostics(Source(text, POOL_FILE))

    assert rest == []
    assert error == types.Diagnostic(
        range=types.Range(types.Position(1, 11), types.Position(1, 18)),
        message="no worker is called 'gmini'\ndid you mean 'gemini'?",
        severity=types.DiagnosticSeverity.Error,
        code="P301",
        source="conductor",
    )


def test_a_warning_stands_behind_an_emoji() -> None:
    """The key is found in the string behind it."""
    text = 'subtasks = ["😀 sk-proj-4f9aK2mQ81xYt7Lw"]\nworkers = [0]\naccess = [[]]\n'
    (warning,) = diagnostics(Source(text))

    assert (warning.code, warning.severity) == ("P404", types.DiagnosticSeverity.Warning)
    assert warning.range == types.Range(types.Position(0, 16), types.Position(0, 40))


@pytest.mark.parametrize("code", RULES)
def test_every_rule_shows_in_an_editor(code: str) -> None:
    """Its bad example has a diagnostic of its code, its good one has not."""
    bad, good = Source(RULES[code].bad, POOL_FILE), Source(RULES[code].good, POOL_FILE)

    assert code in {each.code for each in diagnostics(bad)}
    assert code not in {each.code for each in diagnostics(good)}


@pytest.mark.parametrize(
    ("text", "title", "repaired"),
    [
        pytest.param(
            'subtasks = ["😀" "b"]\nworkers = [0, 1]\naccess = [[], [0]]\n',
            "Put the missing comma",
            'subtasks = ["😀", "b"]\nworkers = [0, 1]\naccess = [[], [0]]\n',
            id="comma",
        ),
        pytest.param(
            'Plan:\nsubtasks = ["a"]\nworkers = [0]\naccess = [[]]\n',
            "Make it a comment",
            '# Plan:\nsubtasks = ["a"]\nworkers = [0]\naccess = [[]]\n',
            id="stray text",
        ),
        pytest.param(
            'subtasks = ["a", "b"]\nworkers = [0, 1]\naccess = [[], [0, 0]]\n',
            "Take out the grant that adds nothing",
            'subtasks = ["a", "b"]\nworkers = [0, 1]\naccess = [[], [0]]\n',
            id="grant",
        ),
    ],
)
def test_a_problem_that_can_be_repaired_safely_offers_it(
    text: str, title: str, repaired: str
) -> None:
    """As a quick fix of its diagnostic, and as a part of "fix all"."""
    source = Source(text, POOL_FILE)
    everywhere = types.Range(source.position(0), source.position(len(text)))
    one, every = code_actions(source, "file:///x.plan", everywhere)

    assert (one.title, one.kind, one.diagnostics) == (title, "quickfix", diagnostics(source)[:1])
    assert (every.title, every.kind) == ("Make all safe repairs of this plan (1)", "source.fixAll")
    for action in (one, every):
        assert action.edit is not None and action.edit.changes is not None
        assert applied(source, [*action.edit.changes["file:///x.plan"]]) == repaired


@pytest.mark.parametrize(
    ("only", "kinds"),
    [
        (None, ["quickfix", "source.fixAll"]),
        (["quickfix"], ["quickfix"]),
        (["source"], ["source.fixAll"]),
        (["source.fixAll"], ["source.fixAll"]),
        (["source.fixAll.other"], []),
        (["refactor"], []),
    ],
)
def test_only_the_wanted_kinds_are_offered(only: list[str] | None, kinds: list[str]) -> None:
    """An editor that saves asks for "source.fixAll" and wants nothing else."""
    source = Source(RULES["P106"].bad)
    found = code_actions(source, "x", source.range(Span(0, 1)), only)

    assert [each.kind for each in found] == kinds


def test_a_fix_is_offered_where_its_problem_is() -> None:
    """Elsewhere in the file only "fix all" is."""
    source = Source(RULES["P106"].bad)
    end = len(source.text)
    found = code_actions(source, "x", source.range(Span(end, end)))

    assert [each.kind for each in found] == ["source.fixAll"]


# --- formatting --------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_formatting_changes_the_lines_that_differ(end: str) -> None:
    """Comments, canonical lines and the kind of line end stay."""
    source = Source(PLAN.replace("workers  = ", "workers: ").replace("\n", end))
    (edit,) = formatting(source)

    assert applied(source, [edit]) == PLAN.replace("\n", end)
    assert (edit.range.start.line, edit.range.end.line) == (6, 7)


@pytest.mark.parametrize("text", [PLAN, 'subtasks = ["a"\n', "", "prose"])
def test_a_canonical_or_unreadable_file_stays(text: str) -> None:
    """There is nothing to do, or nothing that could be done."""
    assert formatting(Source(text)) == []


# --- hover -------------------------------------------------------------------------------------


def test_hovering_a_worker_tells_about_it() -> None:
    """By name or number: kind, model, card and tags."""
    gemini = "gemini\nworker 0 · openai · gemini-3\nfast; good at *sums*\ntags: cheap, fast"

    assert told(PLAN.replace('["gemini"', '["gem‸ini"')) == gemini
    assert told(PLAN.replace(", 1,", ", ‸1,")) == "opus\nworker 1 · openai · opus-5"


@pytest.mark.parametrize(
    ("marked", "pool", "expected"),
    [
        pytest.param('workers = ["‸x"]', POOL_FILE, "x: not in the pool", id="unknown name"),
        pytest.param("workers = [‸7]", POOL_FILE, "7: not in the pool", id="unknown number"),
        pytest.param('workers = ["‸x"]', None, "x\nno conductor.toml found here", id="no pool"),
        pytest.param("workers = [‸7]", None, "worker 7 of the pool\nno cond", id="no pool, number"),
    ],
)
def test_hovering_a_worker_that_is_not_known_says_so(
    marked: str, pool: PoolFile | None, expected: str
) -> None:
    """And which ones there are, or what to do."""
    assert (told(marked, pool) or "").startswith(expected)


STEP_2 = """\
Step 2 · gemini
Resolve the disagreement.
sees the query, and the subtask and reply of:
  0: Derive 😀 the invariant.
  1: 推导不变量。
its reply is the answer
topology best-of-n: level 2 of 2
on the longest chain: 0 → 2"""


@pytest.mark.parametrize("place", [('"Resolve', '"Re‸solve'), ("[0, 1]", "[0, ‸1]")])
def test_hovering_a_step_tells_what_it_sees(place: tuple[str, str]) -> None:
    """On its subtask as on its access; behind emoji and CJK."""
    assert told(PLAN.replace(*place)) == STEP_2


def test_hovering_a_step_tells_who_reads_it() -> None:
    """And what runs at the same time."""
    said = told(PLAN.replace("推导", "推‸导")) or ""

    assert said.splitlines() == [
        "Step 1 · opus",
        "推导不变量。",
        "sees the query, and no other step",
        "read by step 2",
        "topology best-of-n: level 1 of 2, at the same time as step 0",
    ]


def test_what_a_file_says_stays_text_when_hovered() -> None:
    """No image is loaded and no link made of a subtask."""
    text = 'subtasks = ["‸![x](http://example.org/x.png) <b>"]\nworkers = [0]\naccess = [[]]\n'
    found = hover(*at(text))

    assert found is not None and isinstance(found.contents, types.MarkupContent)
    assert found.contents.kind == "markdown"
    assert r"\!\[x\]\(http\://example\.org/x\.png\) \<b\>" in found.contents.value


@pytest.mark.parametrize("marked", ["‸", "‸# x", 'subtasks = ["a‸"\n', "workers = [[‸]]"])
def test_hovering_nothing_tells_nothing(marked: str) -> None:
    """Comments, labels, and steps of what is no plan."""
    assert told(marked) is None


# --- completion --------------------------------------------------------------------------------

NAMES = ["gemini", "opus", "small"]
NUMBERS = ["0", "1", "2"]


@pytest.mark.parametrize(
    ("marked", "expected"),
    [
        pytest.param(begun("workers = [‸"), [*NAMES, *NUMBERS], id="the first"),
        pytest.param(begun("workers = [‸]\naccess = []"), [*NAMES, *NUMBERS], id="closed"),
        pytest.param(begun('workers = ["opus", ‸'), [*NAMES, *NUMBERS], id="the second"),
        pytest.param(begun('workers = ["opus", ge‸'), [*NAMES, *NUMBERS], id="a bare word"),
        pytest.param(begun('workers = ["opus", "‸'), NAMES, id="in quotes"),
        pytest.param(begun("workers = ['‸\naccess = [[]]"), NAMES, id="in an open string"),
        pytest.param(begun('workers = ["‸"]'), NAMES, id="in an empty string"),
        pytest.param(begun('workers = ["opus"‸'), [], id="just behind an entry"),
        pytest.param(begun('workers = ["opus" ‸'), [], id="a comma is due"),
        pytest.param(begun('workers = ["opus", # ‸'), [], id="in a comment"),
        pytest.param(begun('workers = ["opus"]‸'), [], id="behind the list"),
        pytest.param('subtasks = ["‸', [], id="in a subtask"),
        pytest.param("# subtasks‸", [], id="in a comment at the top"),
    ],
)
def test_workers_are_offered_where_one_is_due(marked: str, expected: list[str]) -> None:
    """Names and numbers; in quotes names alone."""
    assert offered(marked) == expected


@pytest.mark.parametrize(
    ("marked", "label", "expected"),
    [
        ('workers = ["gem‸"]', "gemini", 'workers = ["gemini"]'),
        ("workers = ['‸']", "opus", "workers = ['opus']"),
        ('workers = ["ge‸mni", 0]', "gemini", 'workers = ["gemini", 0]'),
        ("workers = [ge‸]", "gemini", 'workers = ["gemini"]'),
        ("workers = [0, ‸]", "1", "workers = [0, 1]"),
        ("workers = [“ge‸”]", "gemini", 'workers = ["gemini"]'),
        ('workers = ["😀", "不‸', "opus", 'workers = ["😀", "opus"'),
    ],
)
def test_an_offer_replaces_what_was_begun(marked: str, label: str, expected: str) -> None:
    """All of the entry, with its quotes."""
    assert accepted(marked, label) == expected


def test_an_offer_tells_about_the_worker() -> None:
    """Its number, kind and model beside it; its card and tags below; quotes in the filter."""
    first = completion(*at('workers = ["‸'))[0]

    assert (first.detail, first.documentation, first.filter_text, first.sort_text) == (
        "0 · openai · gemini-3",
        "fast; good at *sums*\ncheap, fast",
        '"gemini',
        "0000",
    )


def test_without_a_pool_the_names_of_the_plan_are_offered() -> None:
    """Once each, and not what is just being written."""
    assert offered('workers = ["x", "y", "x", 0, "z‸"]', None) == ["x", "y"]


@pytest.mark.parametrize(
    ("marked", "expected"),
    [
        pytest.param(begun("access = [‸"), ["[]"], id="the first step"),
        pytest.param(begun("access = [[], ‸"), ["[]", "[0]", "all"], id="an entry"),
        pytest.param(begun("access = [[], al‸]"), ["[]", "[0]", "all"], id="a word"),
        pytest.param(begun("access = [[], [‸"), ["0", "all"], id="in brackets"),
        pytest.param(begun("access = [[], [], [0, ‸]]"), ["1"], id="what is not there yet"),
        pytest.param(begun("access = [[], [], [‸, 1]]"), ["0", "1", "all"], id="a broken list"),
        pytest.param(begun("access = [[], [], [‸0, 1]]"), ["0"], id="before one"),
        pytest.param(begun('access = [[], "‸'), ["all"], id="in quotes"),
        pytest.param(begun("access = [[], []‸"), [], id="just behind an entry"),
    ],
)
def test_earlier_steps_are_offered_inside_access(marked: str, expected: list[str]) -> None:
    """Only those that the step may read, and "all"."""
    assert offered(marked) == expected


def test_a_step_is_offered_with_its_subtask() -> None:
    """An excerpt beside it, the whole below."""
    text = PLAN.replace("[0, 1]", "[‸]")
    first, second, every = completion(*at(text))

    assert (first.detail, second.detail) == ("Derive 😀 the invariant.", "推导不变量。")
    assert first.documentation == "Derive 😀 the invariant."
    assert every.detail == "every earlier step"
    assert accepted(text, "1") == PLAN.replace("[0, 1]", "[1]")


def test_what_is_offered_for_access_makes_a_valid_plan() -> None:
    """At every depth, for every step."""
    for step, marked in enumerate(("[‸, [], []]", "[[], ‸, []]", "[[], [], ‸]", "[[], [], [‸]]")):
        text = begun(f"workers = [0, 0, 0]\naccess = {marked}\n")
        for label in offered(text):
            plan = parse_file(accepted(text, label))
            assert all(earlier < step for earlier in plan.steps[min(step, 2)].access)


@pytest.mark.parametrize(
    ("marked", "expected"),
    [
        pytest.param("‸", ["subtasks", "workers", "access"], id="an empty file"),
        pytest.param("# x\nsub‸", ["subtasks", "workers", "access"], id="a begun label"),
        pytest.param('subtasks = ["a"]\n‸', ["workers", "access"], id="what is missing"),
        pytest.param('subtasks = ["a"]\nworkers = [0]\n‸\naccess = [[]]', [], id="nothing"),
        pytest.param('subtasks = ["a"] ‸', [], id="not at the start of a line"),
        pytest.param('subtasks = ["a\n‸', [], id="in a string"),
    ],
)
def test_the_missing_labels_are_offered_at_the_start_of_a_line(
    marked: str, expected: list[str]
) -> None:
    """In our order."""
    assert offered(marked) == expected


def test_a_label_comes_with_its_list() -> None:
    """With the cursor in it, where the editor can do that."""
    source, offset = at("wo‸")
    item = next(e for e in completion(source, offset, snippets=True) if e.label == "workers")

    assert accepted("wo‸", "workers") == "workers  = ["
    assert item.insert_text_format == types.InsertTextFormat.Snippet
    assert item.text_edit == types.TextEdit(source.range(Span(0, 2)), "workers  = [$0]")


# --- rename and outline ------------------------------------------------------------------------

NAMED = 'subtasks = ["a", "gemini", "c", "d"]\nworkers = ["gem‸ini", 0, \'gemini\', "opus"]\n'


@pytest.mark.parametrize(
    ("marked", "new", "workers"),
    [
        pytest.param(NAMED, "small", '["small", 0, "small", "opus"]', id="a name: numbers stay"),
        pytest.param(NAMED, "2", '[2, 0, 2, "opus"]', id="to a number"),
        pytest.param(
            NAMED.replace("‸", "").replace("0", "‸0"),
            "small",
            '["small", "small", "small", "opus"]',
            id="a number, and the name it stands for",
        ),
        pytest.param(NAMED, '😀"', '["😀\\"", 0, "😀\\"", "opus"]', id="odd names are quoted"),
    ],
)
def test_a_worker_is_renamed_wherever_the_file_has_it(marked: str, new: str, workers: str) -> None:
    """Subtasks that hold its name stay as they are."""
    source, offset = at(marked)

    expected = f'subtasks = ["a", "gemini", "c", "d"]\nworkers = {workers}\n'
    assert applied(source, rename(source, offset, new)) == expected


@pytest.mark.parametrize(
    ("marked", "shown"),
    [
        pytest.param('workers = ["‸gemini"]', ("gemini", 12, 18), id="a name"),
        pytest.param('workers = ["😀", """不‸"""]', ("不", 20, 21), id="behind an emoji"),
        pytest.param("workers = [‸1]", ("opus", 11, 12), id="a number"),
        pytest.param("workers = [‸9]", ("9", 11, 12), id="an unknown number"),
        pytest.param("workers = [‸true]", None, id="no worker"),
        pytest.param('subtasks = ["‸gemini"]', None, id="a subtask"),
    ],
)
def test_what_can_be_renamed_is_shown(marked: str, shown: tuple[str, int, int] | None) -> None:
    """The name without its quotes."""
    found = renameable(*at(marked))

    assert found == (
        shown
        and types.PrepareRenamePlaceholder(
            types.Range(types.Position(0, shown[1]), types.Position(0, shown[2])), shown[0]
        )
    )


@pytest.mark.parametrize(
    ("marked", "new", "message"),
    [
        ("workers‸ = [0]", "x", "only workers can be renamed; put the cursor on an entry"),
        ("workers = [‸0]", " ", "the new name of a worker is blank; write a name of the pool"),
    ],
)
def test_a_rename_that_can_not_be_says_why(marked: str, new: str, message: str) -> None:
    """What, and what to do."""
    with pytest.raises(ValueError, match=message):
        rename(*at(marked), new)


def test_the_outline_has_the_steps() -> None:
    """With who does each, and what it reads."""
    source = Source(PLAN, POOL_FILE)
    found = symbols(source)

    assert [(each.name, each.detail) for each in found] == [
        ("0 Derive 😀 the invariant.", "gemini"),
        ("1 推导不变量。", "opus"),
        ("2 Resolve the disagreement.", "gemini · reads 0, 1"),
    ]
    assert found[0].range == types.Range(types.Position(2, 4), types.Position(2, 30))


PIECES = st.sampled_from(
    [
        "subtasks",
        "workers",
        "access",
        " = ",
        "[",
        "]",
        '"',
        "'",
        ",",
        "\n",
        "0",
        "all",
        "😀",
        "\\",
        "#",
    ]
)


@given(st.lists(PIECES, max_size=25).map("".join), st.data())
def test_no_text_makes_an_answer_fail(text: str, data: st.DataObject) -> None:
    """Whatever is being written, at every place; edits stay inside the text."""
    source = Source(text, data.draw(st.sampled_from([None, POOL_FILE])))
    offset = data.draw(st.integers(0, len(text)))

    diagnostics(source), symbols(source), formatting(source), hover(source, offset)
    code_actions(source, "x", source.range(Span(0, len(text))))
    for item in completion(source, offset):
        assert isinstance(item.text_edit, types.TextEdit)
        begin, end = item.text_edit.range.start, item.text_edit.range.end
        assert source.offset(begin) <= offset <= source.offset(end)
    if renameable(source, offset) is not None:
        assert rename(source, offset, "x")


# --- the server, as an editor drives it --------------------------------------------------------

UTF16_EDITOR = types.ClientCapabilities(
    general=types.GeneralClientCapabilities(position_encodings=["utf-16"]),
    text_document=types.TextDocumentClientCapabilities(
        hover=types.HoverClientCapabilities(content_format=[types.MarkupKind.PlainText]),
        completion=types.CompletionClientCapabilities(
            completion_item=types.ClientCompletionItemOptions(snippet_support=True)
        ),
    ),
    workspace=types.WorkspaceClientCapabilities(
        did_change_watched_files=types.DidChangeWatchedFilesClientCapabilities(
            dynamic_registration=True, relative_pattern_support=True
        )
    ),
)
UTF8_EDITOR = types.ClientCapabilities(
    general=types.GeneralClientCapabilities(position_encodings=["utf-8"])
)


Handler = TypeVar("Handler", bound=Callable[..., Any])


class Editor:
    """A client that keeps what the server sends by itself."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.client = LanguageClient("editor", "1")
        self.registered: asyncio.Queue[types.Registration] = asyncio.Queue()
        self.messages: asyncio.Queue[str] = asyncio.Queue()
        self.published: dict[str, asyncio.Queue[types.PublishDiagnosticsParams]] = {}
        self.exit_code: int | None = None

        feature = cast("Callable[[str], Callable[[Handler], Handler]]", self.client.feature)

        @feature(types.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS)
        def _(params: types.PublishDiagnosticsParams) -> None:
            self.published[params.uri].put_nowait(params)

        @feature(types.WINDOW_SHOW_MESSAGE)
        def _(params: types.ShowMessageParams) -> None:
            self.messages.put_nowait(params.message)

        @feature(types.CLIENT_REGISTER_CAPABILITY)
        def _(params: types.RegistrationParams) -> None:
            for each in params.registrations:
                self.registered.put_nowait(each)

    async def open(self, name: str, text: str) -> str:
        """Open a file with this text and return its address."""
        uri = (self.folder / name).as_uri()
        self.published[uri] = asyncio.Queue()
        item = types.TextDocumentItem(uri, "plan", 1, text)
        self.client.text_document_did_open(types.DidOpenTextDocumentParams(item))
        return uri

    def change(self, uri: str, version: int, text: str) -> None:
        """Replace the text of an open file."""
        document = types.VersionedTextDocumentIdentifier(version, uri)
        whole = types.TextDocumentContentChangeWholeDocument(text)
        self.client.text_document_did_change(types.DidChangeTextDocumentParams(document, [whole]))

    async def codes(self, uri: str) -> list[object]:
        """The codes of the next diagnostics of a file."""
        published = await asyncio.wait_for(self.published[uri].get(), 30)
        return [each.code for each in published.diagnostics]


@asynccontextmanager
async def editing(
    folder: Path, *options: str, capabilities: types.ClientCapabilities = UTF16_EDITOR
) -> AsyncIterator[Editor]:
    """Start the server as an editor does; end it as one does."""
    editor = Editor(folder)
    await editor.client.start_io(sys.executable, "-m", "conductor", "lsp", *options)
    asked = types.InitializeParams(
        capabilities=capabilities, root_uri=folder.as_uri(), process_id=None
    )
    await asyncio.wait_for(editor.client.initialize_async(asked), 60)
    editor.client.initialized(types.InitializedParams())
    try:
        yield editor
        await asyncio.wait_for(editor.client.shutdown_async(None), 30)
    finally:
        process = editor.client._server
        assert process is not None
        editor.client.exit(None)
        await asyncio.wait_for(editor.client.stop(), 30)  # type: ignore[no-untyped-call]  # pygls
        editor.exit_code = process.returncode
    assert editor.exit_code == 0


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The client of pygls knows asyncio alone."""
    return "asyncio"


@pytest.fixture(scope="module")
async def editor(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Editor]:
    """One server for the tests of this file; its folder has a pool file."""
    folder = tmp_path_factory.mktemp("plans")
    (folder / "conductor.toml").write_text(POOL)
    async with editing(folder) as made:
        yield made


def place(line: int, character: int) -> types.Position:
    """A position of an editor."""
    return types.Position(line, character)


BROKEN = 'Plan:\nsubtasks = ["😀" "不"]\nworkers = ["gemini", "gmini"]\naccess = [[], [0, 0]]\n'


@pytest.mark.anyio
async def test_problems_are_shown_on_open_change_save_and_gone_on_close(editor: Editor) -> None:
    """With the version of the text that they are about."""
    uri = await editor.open("life.plan", BROKEN)
    document = types.TextDocumentIdentifier(uri)
    assert await editor.codes(uri) == ["P106", "P105", "P301"]

    editor.change(uri, 2, PLAN)
    changed = await editor.published[uri].get()
    assert (changed.version, [*changed.diagnostics]) == (2, [])

    editor.client.text_document_did_save(types.DidSaveTextDocumentParams(document))
    assert await editor.codes(uri) == []

    editor.change(uri, 3, BROKEN)
    assert await editor.codes(uri) != []
    editor.client.text_document_did_close(types.DidCloseTextDocumentParams(document))
    assert await editor.codes(uri) == []


@pytest.mark.anyio
async def test_an_editor_gets_every_answer(editor: Editor) -> None:
    """Hover, completion, rename, formatting, outline: places behind emoji and CJK are right."""
    text = PLAN.replace('"gemini", 1, "gemini"', '"😀", 1, "gemini", 0').replace("  = ", " = ")
    uri = await editor.open("answers.plan", text)
    document = types.TextDocumentIdentifier(uri)
    client = editor.client

    hovered = await client.text_document_hover_async(types.HoverParams(document, place(6, 18)))
    assert hovered == types.Hover(
        types.MarkupContent(types.MarkupKind.PlainText, "opus\nworker 1 · openai · opus-5"),
        types.Range(place(6, 17), place(6, 18)),
    )

    offers = await client.text_document_completion_async(
        types.CompletionParams(document, place(6, 25))
    )
    assert isinstance(offers, list)
    assert [each.label for each in offers] == NAMES
    assert offers[1].text_edit == types.TextEdit(types.Range(place(6, 20), place(6, 28)), '"opus"')

    shown = await client.text_document_prepare_rename_async(
        types.PrepareRenameParams(document, place(6, 22))
    )
    renamed_range = types.Range(place(6, 21), place(6, 27))
    assert shown == types.PrepareRenamePlaceholder(renamed_range, "gemini")
    renamed = await client.text_document_rename_async(
        types.RenameParams(document, place(6, 22), "small")
    )
    edit = types.TextEdit(types.Range(place(6, 20), place(6, 28)), '"small"')
    assert renamed is not None and renamed.changes is not None
    assert [*renamed.changes[uri]] == [edit]

    options = types.FormattingOptions(4, True)
    formatted = await client.text_document_formatting_async(
        types.DocumentFormattingParams(document, options)
    )
    assert formatted is not None
    assert applied(Source(text), [*formatted]) == text.replace("workers =", "workers  =").replace(
        "access  =", "access   ="
    )

    outline = await client.text_document_document_symbol_async(types.DocumentSymbolParams(document))
    assert outline is not None
    assert [each.name for each in outline] == [
        "0 Derive 😀 the invariant.",
        "1 推导不变量。",
        "2 Resolve the disagreement.",
    ]


@pytest.mark.anyio
async def test_an_editor_can_let_problems_be_fixed(editor: Editor) -> None:
    """Each by itself, and all together; the result has no such problem."""
    uri = await editor.open("fixes.plan", BROKEN.replace("gmini", "opus"))
    found = (await editor.published[uri].get()).diagnostics
    whole = types.Range(place(0, 0), place(5, 0))
    params = types.CodeActionParams(
        types.TextDocumentIdentifier(uri), whole, types.CodeActionContext(found)
    )
    actions = await editor.client.text_document_code_action_async(params)
    assert actions is not None

    titles = [each.title for each in actions]
    assert titles == [
        "Make it a comment",
        "Put the missing comma",
        "Make all safe repairs of this plan (3)",
    ]
    assert isinstance(actions[0], types.CodeAction)
    assert [*(actions[0].diagnostics or ())] == [*found[:1]]
    last = actions[-1]
    assert isinstance(last, types.CodeAction) and last.edit and last.edit.changes
    repaired = applied(Source(BROKEN.replace("gmini", "opus")), [*last.edit.changes[uri]])
    editor.change(uri, 2, repaired)
    assert await editor.codes(uri) == []


@pytest.mark.anyio
async def test_a_rename_that_can_not_be_is_an_error_of_one_line(editor: Editor) -> None:
    """The editor shows it."""
    uri = await editor.open("no.plan", PLAN)
    params = types.RenameParams(types.TextDocumentIdentifier(uri), place(0, 0), "x")

    with pytest.raises(Exception, match="only workers can be renamed; put the cursor on an entry"):
        await editor.client.text_document_rename_async(params)


@pytest.mark.anyio
async def test_a_file_that_is_being_written_gets_offers(editor: Editor) -> None:
    """Of labels with snippets, and of steps in lists that are not closed."""
    uri = await editor.open("new.plan", begun("workers = [0, 1, 2]\nacc"))
    document = types.TextDocumentIdentifier(uri)
    params = types.CompletionParams(document, place(2, 3))
    labels = await editor.client.text_document_completion_async(params)
    assert isinstance(labels, list)
    edit = types.TextEdit(types.Range(place(2, 0), place(2, 3)), "access   = [$0]")
    assert [each.text_edit for each in labels] == [edit]

    editor.change(uri, 2, begun("workers = [0, 1, 2]\naccess = [[], [0], ["))
    params = types.CompletionParams(document, place(2, 20))
    steps = await editor.client.text_document_completion_async(params)
    assert isinstance(steps, list)
    assert [(each.label, each.detail) for each in steps] == [
        ("0", "Draft."),
        ("1", "Check."),
        ("all", "every earlier step"),
    ]


@pytest.mark.anyio
async def test_a_pool_file_that_changes_is_read_again(tmp_path: Path) -> None:
    """When the editor tells of it, or when the plan changes; the nearest one going up counts."""
    (tmp_path / "conductor.toml").write_text(POOL)
    (tmp_path / "one").mkdir()
    near = tmp_path / "one" / "conductor.toml"
    plan = 'subtasks = ["a"]\nworkers = ["opus"]\naccess = [[]]\n'
    async with editing(tmp_path) as editor:
        registration = await asyncio.wait_for(editor.registered.get(), 30)
        assert registration.method == "workspace/didChangeWatchedFiles"
        uri = await editor.open("one/x.plan", plan)
        assert await editor.codes(uri) == []

        near.write_text('[workers.other]\nkind = "local"\n')
        changed = types.FileEvent(near.as_uri(), types.FileChangeType.Created)
        editor.client.workspace_did_change_watched_files(
            types.DidChangeWatchedFilesParams([changed])
        )
        assert await editor.codes(uri) == ["P301"]

        near.write_text("[workers.opus]\nkind = 7\n")
        editor.change(uri, 2, plan)
        assert await editor.codes(uri) == []
        message = await asyncio.wait_for(editor.messages.get(), 30)
        assert message.startswith(f"{near}: workers.opus: kind")

        near.unlink()
        editor.change(uri, 3, plan.replace("opus", "small"))
        assert await editor.codes(uri) == []
        assert editor.messages.empty()


@pytest.mark.anyio
async def test_a_named_pool_counts_for_every_plan(tmp_path: Path) -> None:
    """Also for an unsaved one; its being missing is told, once. Columns in UTF-8 if agreed."""
    pool = tmp_path / "team.toml"
    (tmp_path / "conductor.toml").write_text(POOL)
    options = ("--stdio", "--pool", str(pool))
    async with editing(tmp_path, *options, capabilities=UTF8_EDITOR) as editor:
        uri = await editor.open("x.plan", PLAN)
        assert await editor.codes(uri) == []
        message = await asyncio.wait_for(editor.messages.get(), 30)
        assert "team.toml: No such file or directory; `conductor init` writes" in message

        pool.write_text('[workers.team]\nkind = "local"\n')
        unsaved = "untitled:Untitled-1"
        editor.published[unsaved] = asyncio.Queue()
        text = 'subtasks = ["不"]\nworkers = ["不", ]\naccess = [[]]\n'
        item = types.TextDocumentItem(unsaved, "plan", 1, text)
        editor.client.text_document_did_open(types.DidOpenTextDocumentParams(item))
        published = await asyncio.wait_for(editor.published[unsaved].get(), 30)
        (problem,) = published.diagnostics
        assert problem.code == "P301"
        assert problem.range == types.Range(place(1, 11), place(1, 16))
        assert editor.messages.empty()


def conductor(*arguments: str, before: str = "pass") -> subprocess.CompletedProcess[str]:
    """Run the command with nothing on its standard input."""
    told = f"import sys; {before}; sys.argv[1:] = {arguments!r}"
    code = f"{told}; from conductor.cli import main; main()"
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )


def test_without_the_extra_the_command_says_what_to_install() -> None:
    """In one line."""
    done = conductor("lsp", before="sys.modules['lsprotocol'] = None")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: `conductor lsp` needs what is not installed; pip install 'conductor-lm[lsp]'\n"
    )


def test_the_server_ends_with_its_editor() -> None:
    """When standard input is closed."""
    done = conductor("lsp")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_importing_conductor_does_not_load_what_editors_need() -> None:
    """Only the command that uses them does."""
    code = "import sys, conductor; sys.exit(not {'pygls', 'lsprotocol'}.isdisjoint(sys.modules))"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
