"""Every example runs as it says, and prints what it is there to show."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from pathlib import Path

import pytest

from conductor import embedded_pool, parse

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))


def output(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What an example's ``main`` prints."""
    runpy.run_path(str(FOLDER / name))["main"]()
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_tells_how_to_run_it_and_needs_conductor_alone(path: Path) -> None:
    module = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        name.split(".")[0]
        for node in ast.walk(module)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }

    assert f"python examples/{path.name}" in (ast.get_docstring(module) or "")
    assert "main" in {node.name for node in module.body if isinstance(node, ast.FunctionDef)}
    assert imported - sys.stdlib_module_names <= {"conductor", "anyio"}


def test_they_are_numbered_without_gaps() -> None:
    numbers = [int(path.name.split("_")[0]) for path in sorted(FOLDER.glob("[0-9]*"))]

    assert numbers == list(range(1, len(numbers) + 1))


def test_a_first_run(capsys: pytest.CaptureFixture[str]) -> None:
    told, answer = output("01_first_run.py", capsys).split("\nThe answer:\n\n", 1)
    steps = re.findall(r"^step (\d): (\w+), \d+\.\d s, \d+ tokens$", told, re.MULTILINE)

    assert "The plan, written by conductor:" in told
    plan = parse(told)
    assert len(plan) >= 1
    assert steps == [(str(step.index), step.worker) for step in plan]
    assert answer.strip() not in ("", "None")


def test_write_a_plan_file(capsys: pytest.CaptureFixture[str]) -> None:
    text = output("02_write_a_plan_file.py", capsys)

    assert text.startswith("3 steps, a best-of-n\n")
    assert "advice.plan:4:25" in text
    assert "step 2 reads itself" in text
    heads = re.findall(r"^--- (step \d, \w+)$", text, re.MULTILINE)
    assert heads == [f"step {index}, {embedded_pool().names[0]}" for index in range(3)]


def test_shapes(capsys: pytest.CaptureFixture[str]) -> None:
    text = output("03_shapes.py", capsys)

    for shape in ("best-of-n", "chain", "debate", "tree", "diamond"):
        assert f"{shape}\n●" in text
    assert text.count("◉") == 5
    assert text.count("✓") == 3
    assert text.endswith("answer: between 40 and 60\n")


def test_your_own_endpoints(capsys: pytest.CaptureFixture[str]) -> None:
    *picture, said, failed, ended = output("04_your_own_endpoints.py", capsys).splitlines()

    states = [line.strip(" │")[0] for line in picture if line.strip(" │")]
    assert states == ["✓", "✗", "✓", "⊘"]
    assert said == "step 2 said: Fresh bread smells good."
    assert failed.startswith("step 1 failed: down (127.0.0.1:9)")
    assert ended.startswith("the run: failed")


def test_plans_from_python(capsys: pytest.CaptureFixture[str]) -> None:
    *events, empty, answer, late = output("05_plans_from_python.py", capsys).splitlines()

    assert [line.split()[-1] for line in events] == [
        "run_started",
        "plan_parsed",
        *["step_started", "step_delta", "step_finished"] * 2,
        "run_finished",
    ]
    assert empty == ""
    assert answer == "answer: The sum is 8.95."
    assert late == "with the slow worker: the deadline of 0.2 s passed"


def test_render_topologies(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["06_render_topologies.py", str(tmp_path / "made")])

    printed = output("06_render_topologies.py", capsys).splitlines()

    files = sorted((tmp_path / "made").iterdir())
    assert [line.split("  ")[0] for line in printed] == [str(file) for file in files]
    assert [file.name for file in files] == [
        f"{what}.{form}" for what in ("plan", "run") for form in ("dot", "mmd", "png", "svg")
    ]
    for what in ("plan", "run"):
        made = {file.suffix: file.read_bytes() for file in files if file.stem == what}
        assert made[".png"].startswith(b"\x89PNG\r\n")
        assert b"<svg" in made[".svg"]
        assert made[".dot"].startswith(b"digraph")
        assert b"flowchart" in made[".mmd"]
    assert "failed" not in (tmp_path / "made" / "plan.mmd").read_text(encoding="utf-8")
    assert "failed" in (tmp_path / "made" / "run.mmd").read_text(encoding="utf-8")


def test_runs_on_record(capsys: pytest.CaptureFixture[str]) -> None:
    assert output("08_runs_on_record.py", capsys).splitlines() == [
        "stopped: step 2 (cook): the run's budget of 3 calls is used up; raise calls",
        "so far:  More salt.",
        "then:    More salt.",
        "step 0, book",
        "step 1, cook (baker: the baker is busy)",
        "step 2, cook",
        "heard:   Some salt.",
        "done: What does the soup lack? replayed alike: True",
        "done: How do I bake bread? replayed alike: True",
    ]
