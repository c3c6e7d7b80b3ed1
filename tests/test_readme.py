"""The README is true: every block of it is executed or compared with what the project does."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import conductor
from runtime import PoolFile

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


def shell(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a `conductor ...` command of the README with this interpreter."""
    words = shlex.split(command)
    assert words[0] == "conductor"
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=cwd, capture_output=True, text=True, timeout=600
    )


def test_two_commands_install_and_do_the_main_job_and_the_tests() -> None:
    """The first two shell blocks are the two commands, and CI runs the same ones."""
    first, second = (block.strip() for block in blocks("sh")[:2])
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")

    assert first.split(" && ")[0] == 'pip install -c constraints.txt -e ".[local]"'
    assert first.split(" && ")[1] in ci
    assert second == 'pip install -c constraints.txt -e ".[local,test]" && python -m pytest'
    assert "\npython -m pytest\n" in ci


def test_first_command_answers_through_a_plan_of_the_trained_conductor() -> None:
    """The README's question gets a real answer from the embedded models, in the steps shown."""
    command = blocks("sh")[0].strip().split(" && ")[1]
    shown = re.search(r"^Plan · .*?(\d+) steps?$", blocks("text")[0], re.MULTILINE)

    done = shell(command + " --json", ROOT)

    run = conductor.Run.from_json(done.stdout)
    assert done.returncode == 0, done.stderr
    assert shown and run.plan is not None and len(run.plan) == int(shown[1])
    assert [each.worker for each in run.planning] == ["conductor"]
    assert run.answer and run.answer.strip()
    assert all(step.model == "smollm2-135m-instruct" for step in run.steps)


@pytest.mark.parametrize(
    "command", [line for block in blocks("sh")[2:] for line in block.splitlines()]
)
def test_other_commands_work(command: str, tmp_path: Path) -> None:
    """Every further command of the README succeeds."""
    (tmp_path / "docs").mkdir()
    plan = (ROOT / "docs" / "debate.plan").read_text(encoding="utf-8")
    (tmp_path / "docs" / "debate.plan").write_text(plan, encoding="utf-8")

    done = shell(command, tmp_path)

    assert (done.returncode, done.stderr if done.returncode else "") == (0, "")


def test_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """The ten lines of Python print an answer."""
    (example,) = blocks("python")

    exec(compile(example, "README.md", "exec"), {})

    assert capsys.readouterr().out.startswith("You said: ")


def test_plan_shown_is_the_plan_file_and_the_picture_is_its_rendering() -> None:
    """The plan, its file and the picture belong together."""
    (shown,) = blocks("plan")
    plan = conductor.parse_file(shown)

    assert shown == (ROOT / "docs" / "debate.plan").read_text(encoding="utf-8")
    assert conductor.to_svg(plan) == (ROOT / "docs" / "debate.svg").read_text(encoding="utf-8")
    assert conductor.topology(plan) == "debate"


def test_diagnostic_shown_is_the_one_given() -> None:
    """The sample of a mistake is what `conductor check` says about it."""
    sample = next(block for block in blocks("text") if block.startswith("error["))
    broken = blocks("plan")[0].replace("[[], [], [0, 1],", "[[], [], [0, 3],")

    (problem,) = conductor.check(broken)

    assert problem.render(broken, "debate.plan") == sample.rstrip("\n")


def test_pool_shown_is_valid() -> None:
    """The sample pool file is accepted, and its planner is one of its workers."""
    (sample,) = blocks("toml")

    pool = PoolFile.parse(sample).build({"OPENAI_API_KEY": "k"})

    assert (pool.names, pool.planner.name) == (("gpt", "qwen", "small"), "gpt")


def test_options_named_exist() -> None:
    """Every option that the README names is known to `conductor run`."""
    help_text = shell("conductor run --help", ROOT).stdout

    named = set(re.findall(r"`(?:conductor run )?(--\w+)", README)) - {"--help"}
    assert {option for option in named if option not in help_text} == set()


def test_links_lead_somewhere() -> None:
    """Every relative link names a file or folder of the repository."""
    links = re.findall(r"\]\(([^)#:]+)\)", README)

    assert [link for link in links if not (ROOT / link).exists()] == []
