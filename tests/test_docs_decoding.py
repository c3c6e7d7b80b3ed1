"""The page on constrained decoding is true: what needs no server is executed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conductor import decoding_grammar

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "decoding.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def printed(command: str, tmp_path: Path) -> str:
    words = shlex.split(command)
    assert words[0] == "conductor"
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_commands_print_the_three_forms(tmp_path: Path) -> None:
    said = [printed(line, tmp_path) for line in blocks("sh")[0].splitlines()]

    assert said == [
        decoding_grammar(3, form="gbnf"),
        decoding_grammar(3, form="llguidance"),
        decoding_grammar(3, least_steps=2, subtask_characters=120),
    ]


def test_the_command_for_llama_cpp_prints_a_grammar(tmp_path: Path) -> None:
    command, target = blocks("sh notest")[0].splitlines()[0].split(" > ")

    assert target == "plan.gbnf"
    assert printed(command, tmp_path).startswith("root ::= ")


def test_the_python_that_needs_no_server_runs(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("llguidance")
    (example,) = blocks("python")

    exec(compile(example, "decoding.md", "exec"), {})

    assert 'workers  = ["gemini", "gpt"]' in capsys.readouterr().out


def test_the_python_for_servers_sends_what_it_says() -> None:
    """It compiles, and names what exists."""
    (example,) = blocks("python notest")

    compile(example, "decoding.md", "exec")
    assert "from conductor import parse" in example


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param("--workers 0", "the pool is empty", id="no workers"),
        pytest.param("--workers 2 --steps 99", "possible is 1 to 16", id="too many steps"),
        pytest.param(
            "--workers 2 --subtask-characters 9000 --format gbnf",
            "llama.cpp reads at most 2000",
            id="too long for llama.cpp",
        ),
    ],
)
def test_bounds_that_cannot_be_spelt_out_are_told_in_a_line(options: str, message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "conductor", "grammar", *options.split()],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", PAGE)

    assert [link for link in links if not (DOCS / link).exists()] == []
