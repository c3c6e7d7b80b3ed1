"""docs/evaluation.md is true: its commands and its Python are executed, what it shows is theirs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import anyio
import numpy as np
import pytest
from typer.testing import CliRunner

from conductor.cli import app
from conductor.router import Encoder, Head, Router
from runtime import Pool
from tests.team import team
from tests.test_lineup import SAID, questions
from training.labels import collect

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"^```(sh|python)\n(.*?)^```\n(?:\n^```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[Path]:
    """A folder with the page's labels, routers and pool, whose models can be reached."""
    folder = tmp_path_factory.mktemp("evaluation")
    with team() as models:
        models.said |= SAID
        pool = models.write_pool(folder).rename(folder / "conductor.toml")
        four = Pool.load(pool).only(*SAID)
        anyio.run(lambda: collect(questions(), four, folder=folder / "labels"))
        weight = np.random.default_rng(0).random((4, 32), np.float32)
        router = Router(Head(weight, tuple(SAID)), Encoder(str(tiny_folder), most_tokens=240))
        router.save(folder / "heads")
        yield folder


@pytest.mark.parametrize(("kind", "commands", "shown"), BLOCK.findall(PAGE))
def test_every_block_does_what_the_page_says(
    kind: str,
    commands: str,
    shown: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In order; the report itself has figures of its own, so there only the files are looked at.

    In this process, since others would load the models anew.
    """
    monkeypatch.chdir(folder)
    if kind == "sh":
        words = shlex.split(commands)
        assert words[0] == "conductor"
        done = CliRunner().invoke(app, words[1:])
        assert done.exit_code == 0, done.output
        printed = done.stdout
    else:
        exec(commands, {})
        printed = capsys.readouterr().out

    if shown:
        assert printed == shown
    else:
        for name in ("evaluation.md", "evaluation.json", "evaluation.svg", "costs.png"):
            assert (folder / "report" / name).is_file()
            (folder / "report" / name).unlink()


def test_the_page_names_every_decider_and_every_option_exists() -> None:
    from typer.main import get_command

    from training.lineup import NAMES

    command = get_command(app).commands["eval"]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}

    assert [name for name in NAMES if f"\n{name} " not in PAGE] == []
    assert {*re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)} - known == set()


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", PAGE)

    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
