"""Pictures of a Conductor's training: all is in them, and nothing that a model wrote acts."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from grammar import Plan
from tests.trainings import KNOWS, ROSTER, write_training
from training.conductor_pictures import (
    PICTURES,
    draw,
    first_rounds,
    main,
    pays,
    plans,
    plans_markdown,
    rounds,
)
from training.learned import Form, Sample, Second, read_rows

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_training(tmp_path_factory.mktemp("trained"), updates=30, seed=1)


@pytest.fixture(scope="module")
def files(folder: Path) -> list[Path]:
    return draw(folder)


def words(path: Path) -> list[str]:
    return ["".join(text.itertext()).strip() for text in ET.parse(path).iter(f"{SVG}text")]


def sample(text: str, plan: Plan | None = None) -> Sample:
    form = Form.REWORDED if plan else Form.NO_PLAN
    return Sample(0, 0, "addition", 1, text, (0, 1), text, plan, form, plan is not None, text)


def test_every_picture_is_drawn_and_described(folder: Path, files: list[Path]) -> None:
    expected = [*(f"{name}.svg" for name in PICTURES if name != "rounds"), "plans.md"]

    assert [path.relative_to(folder).as_posix() for path in files] == [
        f"pictures/{name}" for name in expected
    ]


@pytest.mark.parametrize("name", ["forms", "workers", "choices", "pays", "plans"])
def test_all_families_are_in_a_picture(name: str, files: list[Path]) -> None:
    (path,) = (path for path in files if path.name == f"{name}.svg")

    text = "\n".join(words(path))

    assert [family for family in KNOWS if family not in text] == []


@pytest.mark.parametrize("name", ["workers", "choices"])
def test_workers_are_called_by_their_names(name: str, files: list[Path]) -> None:
    (path,) = (path for path in files if path.name == f"{name}.svg")

    assert set(ROSTER) <= set(words(path))


def test_a_training_under_way_is_drawn_without_names(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        rows = (folder / name).read_text(encoding="utf-8").splitlines()
        two = [row for row in rows if json.loads(row)["update"] < 2]
        (tmp_path / name).write_text("\n".join(two) + '\n{"upda', encoding="utf-8")

    main([str(tmp_path)])

    assert capsys.readouterr().out.count(".svg") == len(PICTURES) - 1
    assert "worker 0" in words(tmp_path / "pictures" / "choices.svg")


def test_without_a_log_nothing_is_drawn(tmp_path: Path) -> None:
    assert draw(tmp_path) == []


def test_plans_can_be_read_as_text() -> None:
    plan = Plan.of(["What is 1 + 2?", "Reverse that."], [1, 0], [[], [0]])
    found = [
        Sample(
            0,
            0,
            "addition-mirror",
            2,
            "Add 1 and 2, then reverse it.",
            (0, 1),
            "",
            plan,
            Form.IN_TWO,
            right=True,
            answer="3",
        )
    ]

    shown = plans_markdown(found, ["plain", "calculator"])

    once = """\
{stage}, update 1: Add 1 and 2, then reverse it.
offered: plain, calculator
  ●  0 calculator  What is 1 + 2?
  │
  ◉  1 plain       Reverse that.   reads 0
  => 3: right
"""
    told = "\n".join(once.format(stage=stage) for stage in ("start", "middle", "end"))
    assert shown == f"**addition-mirror**\n\n```text\n{told}```\n"


def test_what_a_model_wrote_ends_no_fence_and_is_no_markup() -> None:
    nasty = "```\n# <script>alert(1)</script> & ]]>"
    found = [sample(nasty), sample(nasty, Plan.of([nasty], [0], [[]]))]

    text = plans_markdown(found, ["plain", "calculator"])
    picture = plans(found, ["plain", "calculator"])

    assert text.count("```") == 2
    assert "\n#" not in text
    assert not [e for e in ET.fromstring(picture).iter() if e.tag.endswith("script")]


def test_a_drawing_that_is_wide_stays_in_its_column() -> None:
    wide = Plan.of(["A."] * 4 + ["B."], [0, 1, 0, 1, 0], [[], [], [], [], [0, 1, 2, 3]])

    picture = plans([sample("Q?", wide)], ["plain", "calculator"])

    places = [e.get("transform", "") for e in ET.fromstring(picture).iterfind(f"{SVG}g")]
    scales = [float(place.rpartition("scale(")[2].rstrip(")")) for place in places]
    assert len(scales) == 3  # start, middle and end
    assert all(0.1 < scale < 0.5 for scale in scales)


def test_what_pays_is_told_in_figures(folder: Path) -> None:
    samples = [
        each
        for each in first_rounds(read_rows(folder / "rollouts.jsonl"))
        if each.family == "addition-mirror"
    ]

    figure = pays(samples)

    share, *_ = figure.axes
    labels = [label.get_text() for label in share.get_yticklabels()]
    assert labels[0] == f"addition-mirror   {Form.IN_TWO}"
    assert len(labels) == len(share.patches)


def test_all_that_second_rounds_can_make_of_an_answer_is_named_within_the_picture() -> None:
    plan = Plan.of(["{query}"], [0], [[]])
    figure = rounds([(sample("Q?", plan), kind) for kind in Second])

    figure.draw_without_rendering()

    (legend,) = figure.legends
    assert [each.get_text() for each in legend.get_texts()] == [str(kind) for kind in Second]
    box, page = legend.get_window_extent(), figure.bbox
    assert page.x0 <= box.x0
    assert box.x1 <= page.x1


def test_second_rounds_are_drawn_by_family() -> None:
    plan = Plan.of(["A."], [0], [[]])

    figure = rounds([(sample("Q?", plan), kind) for kind in (Second.MENDED, Second.KEPT_RIGHT)])

    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert told == [Second.KEPT_RIGHT, Second.MENDED]
    assert figure.axes[0].get_title(loc="left") == "addition (2)"


def test_a_training_that_wrote_no_plan_is_drawn_too(folder: Path, tmp_path: Path) -> None:
    rows = read_rows(folder / "rollouts.jsonl")[:16]
    nothing = {"valid": False, "score": None, "subtasks": None, "workers": None, "access": None}
    (tmp_path / "rollouts.jsonl").write_text(
        "".join(json.dumps(row | nothing) + "\n" for row in rows), encoding="utf-8"
    )
    (tmp_path / "metrics.jsonl").write_text(
        json.dumps({"update": 0, "reward": 0.0, "parse": 0.0, "correct": None, "steps": None})
        + "\n",
        encoding="utf-8",
    )

    names = {path.name for path in draw(tmp_path)}

    assert names == {f"{name}.svg" for name in PICTURES} - {"workers.svg", "rounds.svg"} | {
        "plans.md"
    }
