"""Pictures say what the plan says, whatever the subtasks are made of."""

from __future__ import annotations

import re
import struct
import subprocess
import unicodedata
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grammar import (
    LayoutMissing,
    Mark,
    Plan,
    Row,
    best_of_n,
    chain,
    debate,
    diamond,
    single,
    terminal_rows,
    to_dot,
    to_mermaid,
    to_png,
    to_svg,
    to_terminal,
    tree,
)
from grammar.diagnostics import cells
from grammar.render import State, _search_path

HOSTILE = [
    pytest.param('"]; evil [label="x"]; s0 -> evil; } //', id="dot"),
    pytest.param("</td></tr></table>><b>x</b>&nbsp;&lt;<IMG SRC='/etc/passwd'/><!--", id="html"),
    pytest.param('"]\nevil["x"] --> s0\n%% #35; `**md**`\nclick s0 "javascript:x"', id="mermaid"),
    pytest.param("1. list\nsubgraph end\n{{{|||}}} ﬂ°°60¶ßscript", id="mermaid-words"),
    pytest.param("\x1b[31mred\x1b[0m\x1b]0;title\x07\x00\x9b2J\r\x08", id="ansi"),
    pytest.param(r"\N \G \l \n \\N \E \"x\" ends in \ ".strip(), id="backslashes"),
    pytest.param("\u202eevil\u202c\u2066x שלום עולם مرحبا بالعالم", id="right-to-left"),
    pytest.param("日本語の資料を要約して、重要な点を列挙する。" * 9, id="wide"),
    pytest.param("🎉👨‍👩‍👧‍👦👍🏽🇩🇪" * 20, id="emoji"),
    pytest.param("e" + "\u0301" * 900, id="marks"),
    pytest.param("a\u2028b\ufffe\uffff\ufeff\u00ad\u200b\ue000\U0001fffe", id="no-characters"),
    pytest.param("x" * 5_000, id="long"),
]
HARMLESS = "Go on."
PARTIAL = Plan.of(
    list("ABCDEF"), ["a", "b", "c", "a", "b", "c"], [[], [], [], [0, 2], [1, 3], [0, 4]]
)
STATES: tuple[State, ...] = ("waiting", "running", "done", "failed", "skipped")


def shape(text: str) -> Plan:
    """A diamond with one implied edge, made of one text all over."""
    return Plan.of([text] * 4, [text, text + "2", 3, "w"], [[], [0], [0], "all"])


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    count = draw(st.integers(1, 12))
    words = st.text(min_size=1, max_size=40).filter(
        lambda t: bool(t.strip()) and not any("\ud800" <= c <= "\udfff" for c in t)
    )
    return Plan.of(
        draw(st.lists(words, min_size=count, max_size=count)),
        draw(st.lists(st.integers(0, 5) | words, min_size=count, max_size=count)),
        [
            sorted(draw(st.sets(st.integers(0, index - 1), max_size=4))) if index else []
            for index in range(count)
        ],
    )


def laid_out(dot: str) -> tuple[list[str], list[tuple[str, ...]]]:
    """Nodes and edges as the layout program itself understands the text."""
    done = subprocess.run(
        ["graphviz-pure", "-Tplain"],
        input=dot.encode(),
        capture_output=True,
        check=True,
        env={"PATH": _search_path()},
    )
    rows = [line.split() for line in done.stdout.decode().splitlines()]
    return (
        [row[1] for row in rows if row[0] == "node"],
        sorted(tuple(row[1:3]) for row in rows if row[0] == "edge"),
    )


# --- DOT, SVG, PNG ---


def test_dot_has_a_node_per_step_and_an_edge_per_access() -> None:
    assert laid_out(to_dot(shape(HARMLESS))) == (
        ["s0", "s1", "s2", "s3"],
        [("s0", "s1"), ("s0", "s2"), ("s0", "s3"), ("s1", "s3"), ("s2", "s3")],
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_leaves_the_layout_as_it_is(text: str) -> None:
    marks = {0: Mark("failed", text)}

    assert laid_out(to_dot(shape(HARMLESS))) == laid_out(to_dot(shape(text), marks=marks))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_leaves_the_svg_well_formed_and_inert(text: str) -> None:
    svg = ET.fromstring(to_svg(shape(text), marks={0: Mark("failed", text)}))

    harmless = ET.fromstring(to_svg(shape(HARMLESS), marks={0: Mark("failed", "late")}))
    assert {each.tag for each in svg.iter()} == {each.tag for each in harmless.iter()}
    assert {name for each in svg.iter() for name in each.attrib} == {
        name for each in harmless.iter() for name in each.attrib
    }


def test_backslashes_are_shown_as_they_stand() -> None:
    svg = to_svg(single("w", r"\N and \\G, \l"))

    assert r">\N and \\G, \l<" in svg


def test_each_line_is_set_in_the_direction_of_its_first_letter() -> None:
    """A full stop behind Hebrew or Arabic stands to the left of it."""
    svg = ET.fromstring(to_svg(single("w", "שלום עולם.")))

    lines = [each for each in svg.iter() if each.tag.endswith("text")]
    assert [each.get("unicode-bidi") for each in lines] == ["plaintext"] * len(lines)


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2) of ``#rrggbb``."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("dark", [False, True])
def test_words_stand_out_from_their_card(dark: bool, state: State) -> None:
    """All text but the number has the contrast of 4.5 that WCAG asks for."""
    svg = ET.fromstring(to_svg(single("w", "Go."), marks={0: Mark(state, "2 s")}, dark=dark))

    (node,) = (each for each in svg.iter() if each.get("class") == "node")
    card = next(each.get("fill") for each in node if (each.get("fill") or "none") != "none")
    words = [each.get("fill") or "" for each in node if each.tag.endswith("text")][1:]
    for ink in words:
        pale, deep = sorted((luminance(ink), luminance(card or "")), reverse=True)
        assert (pale + 0.05) / (deep + 0.05) >= 4.5, (ink, card)


@pytest.mark.parametrize("dark", [False, True])
def test_svg_shows_every_step_with_its_worker_and_subtask(dark: bool) -> None:
    plan = diamond(("gpt", "Outline."), [("opus", "Prove."), (7, "Refute.")], ("gemini", "Judge."))

    svg = ET.fromstring(to_svg(plan, dark=dark))

    nodes = [each for each in svg.iter() if each.get("class") == "node"]
    assert [
        ["".join(text.itertext()) for text in each if text.tag.endswith("text")] for each in nodes
    ] == [
        ["0", "gpt", "Outline."],
        ["1", "opus", "Prove."],
        ["2", "worker 7", "Refute."],
        ["3", "gemini", "answer", "Judge."],
    ]
    assert [each[0].text for each in nodes][2] == "step 2, worker 7: Refute."


def test_access_implied_by_other_access_is_dotted() -> None:
    dot = to_dot(chain(["A", "B", "C"], ["w"]))
    everything = to_dot(Plan.of(list("ABC"), ["w"] * 3, ["all"] * 3))

    assert dot.count("dotted") == 0
    assert everything.count("dotted") == 1


def test_a_plan_that_reads_all_says_so_in_words() -> None:
    dot = to_dot(Plan.of(["Go on."] * 30, ["w"] * 30, ["all"] * 30))

    assert dot.count(" -> ") == 29
    assert "reads 0–28" in dot


def test_marks_colour_cards_and_show_their_detail() -> None:
    plan = best_of_n(list("abcd"), "e")
    marks = {index: Mark(state, f"detail {index}") for index, state in enumerate(STATES)}

    svg = to_svg(plan, marks=marks)

    assert all(f"{state} · detail {index}" in svg for index, state in enumerate(STATES))
    assert len(set(re.findall(r'class="node">\n<title>.*</title>\n<path fill="([^"]+)"', svg))) == 5


def test_a_step_keeps_its_place_when_its_mark_changes() -> None:
    plan = debate(["a", "b"], "c")
    first = {0: Mark("running")}
    later = {0: Mark("done", "2.1 s · 48 tokens"), 1: Mark("failed")}

    assert re.findall("viewBox=.*? ", to_svg(plan, marks=first)) == re.findall(
        "viewBox=.*? ", to_svg(plan, marks=later)
    )


def test_workers_keep_their_colours_in_other_plans() -> None:
    def colour(plan: Plan, worker: str) -> str:
        found = re.search(rf'bgcolor="(#\w+)"[^\n]*<b>{worker}</b>', to_dot(plan))
        assert found
        return found[1]

    both = best_of_n(["gemini", "opus"], "gemini")

    assert colour(both, "gemini") == colour(single("gemini", "Solve."), "gemini")
    assert colour(both, "gemini") != colour(both, "opus")


def test_workers_may_be_given_colours() -> None:
    plan = chain(["A.", "B."], ["gemini", "opus"])

    plain, given_one = to_dot(plan), to_dot(plan, colours={"opus": "#123456"})

    assert "#123456" not in plain
    was = re.findall('bgcolor="(#[^"]*)"', plain)
    assert re.findall('bgcolor="(#[^"]*)"', given_one) == [was[0], "#123456"]


def test_png_is_drawn_at_144_dots_per_inch() -> None:
    plan = single("w", "Solve it.")

    png = to_png(plan)

    points = re.search(r'width="(\d+)pt"', to_svg(plan))
    assert points
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">I", png[16:20])[0] == pytest.approx(2 * int(points[1]), abs=2)


def test_png_of_any_script_is_drawn() -> None:
    assert to_png(single("工人", "日本語 🎉")).startswith(b"\x89PNG")


def test_a_missing_layout_program_is_told_with_its_remedy(tmp_path: object) -> None:
    for draw in (to_svg, to_png):
        with pytest.raises(LayoutMissing, match="pip install graphviz-pure") as caught:
            draw(single("w", "Solve it."), path=str(tmp_path))
        assert "\n" not in str(caught.value)


# --- Mermaid ---

NODE = re.compile(r'    s\d+\["(?:[^"\[\]{}()<>|`;#&\\]|<br/>|#\d+;)*"\]')
EDGE = re.compile(r"    s\d+ (-->|-\.->) s\d+")
CLASS = re.compile(r"    class(Def \w+ [\w:#,-]+| s\d+(,s\d+)* \w+)")


def skeleton(text: str) -> list[str]:
    return [re.sub(r'\[".*"\]', "[]", line) for line in text.splitlines()]


def test_mermaid_of_a_marked_plan_in_full() -> None:
    plan = Plan.of(["Draft it.", "Check: is x < 2?"], ["gpt", 1], [[], [0]])

    assert to_mermaid(plan, marks={0: Mark("done", "2.1 s")}) == (
        "flowchart TB\n"
        '    s0["0 · gpt<br/>Draft it.<br/>done · 2#46;1 s"]\n'
        '    s1["1 · worker 1 · answer<br/>Check#58; is x #60; 2#63;"]\n'
        "    s0 --> s1\n"
        "    classDef done stroke:#007555,fill:#E3F6EF,color:#1F2328\n"
        "    class s0 done\n"
        "    classDef answer stroke-width:3px\n"
        "    class s1 answer\n"
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_leaves_the_mermaid_structure_as_it_is(text: str) -> None:
    marks = {0: Mark("failed", text)}
    drawn = to_mermaid(shape(text), marks=marks)

    assert skeleton(drawn) == skeleton(to_mermaid(shape(HARMLESS), marks=marks))
    assert all(
        NODE.fullmatch(line) or EDGE.fullmatch(line) or CLASS.fullmatch(line)
        for line in drawn.splitlines()[1:]
    )


def test_mermaid_dots_access_that_other_access_implies() -> None:
    lines = to_mermaid(shape(HARMLESS)).splitlines()

    assert [line.strip() for line in lines if EDGE.fullmatch(line)] == [
        "s0 --> s1",
        "s0 --> s2",
        "s0 -.-> s3",
        "s1 --> s3",
        "s2 --> s3",
    ]


# --- terminal ---

DRAWINGS = [
    pytest.param(single("gpt", "Solve."), "◉  0 gpt  Solve.\n", id="single"),
    pytest.param(
        chain(["Plan.", "Do."], ["a", "bee"]),
        "●  0 a    Plan.\n"
        "│\n"
        "◉  1 bee  Do.   reads 0\n",
        id="chain",
    ),
    pytest.param(
        best_of_n(["gemini", "opus", "gpt"], "judge", subtask="Try.", judge_subtask="Judge."),
        "●      0 gemini  Try.\n"
        "│ ●    1 opus    Try.\n"
        "│ │ ●  2 gpt     Try.\n"
        "├─┴─┘\n"
        "◉      3 judge   Judge.   reads 0, 1, 2\n",
        id="best-of-3",
    ),
    pytest.param(
        diamond(("a", "Plan."), [("b", "Left."), ("c", "Right.")], ("d", "Merge.")),
        "●    0 a  Plan.\n"
        "├─┐\n"
        "│ ●  1 b  Left.   reads 0\n"
        "│ │\n"
        "● │  2 c  Right.   reads 0\n"
        "├─┘\n"
        "◉    3 d  Merge.   reads 0, 1, 2\n",
        id="diamond",
    ),
    pytest.param(
        debate(["a", "b"], "c", subtask="Try.", revise_subtask="Revise.", judge_subtask="Judge."),
        "●      0 a  Try.\n"
        "│ ●    1 b  Try.\n"
        "├─┼─┐\n"
        "│ │ ●  2 a  Revise.   reads 0, 1\n"
        "├─┘ │\n"
        "●   │  3 b  Revise.   reads 0, 1\n"
        "├───┘\n"
        "◉      4 c  Judge.   reads 2, 3\n",
        id="debate",
    ),
    pytest.param(
        tree(list("abcd"), "j", subtask="Try.", judge_subtask="Judge."),
        "●        0 a  Try.\n"
        "│ ●      1 b  Try.\n"
        "│ │ ●    2 c  Try.\n"
        "│ │ │ ●  3 d  Try.\n"
        "├─┘ │ │\n"
        "●   │ │  4 j  Judge.   reads 0, 1\n"
        "│   ├─┘\n"
        "│   ●    5 j  Judge.   reads 2, 3\n"
        "├───┘\n"
        "◉        6 j  Judge.   reads 4, 5\n",
        id="tree",
    ),
    pytest.param(
        PARTIAL,
        "●      0 a  A\n"
        "│ ●    1 b  B\n"
        "│ │ ●  2 c  C\n"
        "├─│─┘\n"
        "● │    3 a  D   reads 0, 2\n"
        "├─┘\n"
        "●      4 b  E   reads 1, 3\n"
        "│\n"
        "◉      5 c  F   reads 0, 4\n",
        id="partial",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("plan", "drawing"), DRAWINGS)
def test_terminal_drawing(plan: Plan, drawing: str) -> None:
    assert to_terminal(plan) == drawing


def test_marks_take_the_place_of_the_dots() -> None:
    plan = best_of_n(list("abcd"), "e", subtask="Try.", judge_subtask="Judge.")
    marks = {index: Mark(state) for index, state in enumerate(STATES)}
    marks[2] = Mark("done", "2.1 s")

    assert to_terminal(plan, marks=marks) == (
        "◌        0 a  Try.\n"
        "│ ◐      1 b  Try.\n"
        "│ │ ✓    2 c  Try.   2.1 s\n"
        "│ │ │ ✗  3 d  Try.\n"
        "├─┴─┴─┘\n"
        "⊘        4 e  Judge.   reads 0–3\n"
    )


def test_a_mark_may_say_what_a_step_is_called() -> None:
    """In every picture, wherever its number would stand; nothing in it acts on a picture."""
    plan = Plan.of(["one", "two"], ["a", "b"], [[], [0]])
    states = {0: Mark("done", number="R1.0"), 1: Mark("failed", number='<"&'), 9: Mark("done")}

    assert to_terminal(plan, marks=states) == ('✓  R1.0 a  one\n│\n✗   <"& b  two   reads R1.0\n')
    assert '["R1#46;0 · a<br/>' in to_mermaid(plan, marks=states)
    svg = to_svg(plan, marks=states)
    assert ">R1.0<" in svg
    assert "<title>step &lt;&quot;&amp; reads step R1.0</title>" in svg
    assert "<title>step R1.0, a: one</title>" in svg
    ET.fromstring(svg)


def test_a_range_of_steps_is_named_by_their_marks() -> None:
    plan = Plan.of(list("abcdef"), ["a"] * 6, [[], [], [], [], [], "all"])
    states = {step.index: Mark("done", number=f"R2.{step.index}") for step in plan}

    assert "reads R2.0–R2.4" in to_terminal(plan, marks=states)


def test_rows_carry_the_gutter_and_the_step() -> None:
    assert terminal_rows(chain(["A", "B"], ["w"]), {0: Mark("done")}) == [
        Row("✓", 0),
        Row("│", None),
        Row("◉", 1),
    ]


def test_a_gutter_wider_than_allowed_loses_its_lanes() -> None:
    plan = best_of_n(list("abcdef"), "g")

    assert [row.gutter for row in terminal_rows(plan, columns=8)] == ["●"] * 6 + ["◉"]
    assert "reads 0–5" in to_terminal(plan, width=20)


def test_a_long_access_list_goes_on_below_its_step() -> None:
    access = list(range(0, 30, 2))
    plan = Plan.of(["Note a fact."] * 31, ["w"] * 31, [[]] * 30 + [access])

    drawn = to_terminal(plan, width=60)

    told = " ".join(drawn[drawn.index("reads") :].split())
    assert told == "reads " + ", ".join(map(str, access))


def test_colour_adds_nothing_but_sgr_codes() -> None:
    plan = debate(["a", "日本"], "c")
    marks = {0: Mark("done", "1 s"), 1: Mark("failed", "\x1b[2J")}

    coloured = to_terminal(plan, marks=marks, colour=True, width=50)

    assert "\x1b[32m✓\x1b[0m" in coloured
    assert re.sub("\x1b\\[[0-9]*m", "", coloured) == to_terminal(plan, marks=marks, width=50)


@given(plans(), st.integers(10, 120))
def test_terminal_lines_fit_and_hold_no_control_characters(plan: Plan, width: int) -> None:
    lines = to_terminal(plan, width=width).splitlines()

    assert all(cells(line) <= width for line in lines)
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in "".join(lines))


@given(plans())
def test_the_gutter_shows_the_transitive_reduction_and_nothing_else(plan: Plan) -> None:
    import networkx as nx

    from grammar import graph

    rows = terminal_rows(plan)

    assert [row.step for row in rows if row.step is not None] == list(range(len(plan)))
    assert len({len(row.gutter) for row in rows}) == 1
    assert read_back(rows) == set(nx.transitive_reduction(graph(plan)).edges)


def read_back(rows: list[Row]) -> set[tuple[int, int]]:
    """Read the drawing as a person does: who stands in a lane, which lanes are joined."""
    owner: dict[int, int] = {}
    edges: set[tuple[int, int]] = set()
    joints = ""
    for row in rows:
        if row.step is None:
            joints = row.gutter
            continue
        place = next(at for at, c in enumerate(row.gutter) if c in "●◉")
        for at, c in enumerate(joints):
            read = c in "│├┤┼┴┘└" and at in owner if at == place else c in "├┤┼┴┘└"
            if read:
                edges.add((owner[at], row.step))
        owner = {at: by for at, by in owner.items() if row.gutter[at] == "│"}
        owner[place] = row.step
        joints = ""
    return edges
