"""A notebook shows plans and runs as pictures, and says the same in words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from conductor import Conductor, FunctionWorker, Message, Plan, Pool, Run, single

EXAMPLE = Path(__file__).parents[1] / "examples" / "07_notebook.ipynb"
PLAN = Plan.of(["Try.", "Try again.", "Judge."], ["a", "b", "a"], [[], [], [0, 1]])


async def steady(messages: list[Message]) -> str:
    return "About \x1b[31m125\x1b[0m."


async def broken(messages: list[Message]) -> str:
    raise RuntimeError("out of order")


@pytest.fixture
def run() -> Run:
    """A run in which one step is done, one fails and one is skipped."""
    pool = Pool([FunctionWorker("a", steady), FunctionWorker("b", broken)])
    return Conductor(pool).run("How many?", plan=PLAN)


@pytest.fixture(scope="module")
def outputs() -> list[nbformat.NotebookNode]:
    """What the cells of the example show when it is run by Jupyter."""
    notebook = nbformat.read(EXAMPLE, as_version=4)
    NotebookClient(notebook, timeout=300).execute()
    return [each for cell in notebook.cells for each in cell.get("outputs", [])]


def test_the_example_is_stored_without_outputs() -> None:
    notebook = nbformat.read(EXAMPLE, as_version=4)

    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [(cell.outputs, cell.execution_count) for cell in code] == [([], None)] * len(code)


def test_jupyter_draws_plans_and_runs(outputs: list[nbformat.NotebookNode]) -> None:
    plan, done, failed = (each.data["image/svg+xml"] for each in outputs if "data" in each)

    assert all(picture.rstrip().endswith("</svg>") for picture in (plan, done, failed))
    assert "piano tuners" in plan and "done ·" not in plan
    assert done.count("done ·") == 3
    assert [failed.count(state) for state in ("done ·", "failed ·", "skipped ·")] == [1, 1, 1]


def test_jupyter_gets_the_words_as_well(outputs: list[nbformat.NotebookNode]) -> None:
    plan, done, failed = (each.data["text/plain"] for each in outputs if "data" in each)

    assert plan.startswith("subtasks = [")
    assert done.startswith("done, ") and done.endswith("\nAbout 125.")
    assert failed.startswith("failed, ") and len(failed.splitlines()) == 2


def test_a_run_is_coloured_by_what_became_of_its_steps(run: Run) -> None:
    picture = run._repr_mimebundle_()["image/svg+xml"]

    assert [picture.count(state) for state in ("done ·", "failed ·", "skipped ·")] == [1, 1, 1]


def test_what_a_model_wrote_does_not_act_on_the_page() -> None:
    pool = Pool([FunctionWorker("a", steady)])

    shown = Conductor(pool).run("How many?", worker="a")._repr_mimebundle_()

    assert shown["text/plain"].endswith("About \\u001b[31m125\\u001b[0m.")


def test_a_run_without_a_plan_is_words_alone() -> None:
    assert Run("id", "q", ("a",), "")._repr_mimebundle_() == {"text/plain": "running, 0.0 s"}


def test_without_a_layout_program_there_are_words_alone() -> None:
    """Showing a plan never fails: a fresh interpreter finds no program on an empty path."""
    code = (
        "import sysconfig; sysconfig.get_path = lambda *_: ''\n"
        "from conductor import single\n"
        "print(*single('a', 'Go.')._repr_mimebundle_(include=None, exclude=None))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PATH": ""},
        capture_output=True,
        text=True,
    )

    assert (done.stdout, done.stderr) == ("text/plain\n", "")


def test_a_layout_program_that_is_broken_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "dot"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr("sysconfig.get_path", lambda *_: "")
    monkeypatch.setenv("PATH", str(tmp_path))

    assert list(single("a", "Go.")._repr_mimebundle_()) == ["text/plain"]
