"""docs/router.md is true: its commands and its Python are executed, with a router of that name."""

from __future__ import annotations

import json
import os
import re
import shlex
import tomllib
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from conductor import Encoder, Head, Router
from conductor.cli import app
from runtime import PoolFile
from training.graders import Exact
from training.labels import Labels
from training.tasks import Split, task

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "router.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder with the router of the page, untrained, and a pool; both on a tiny model."""
    folder = tmp_path_factory.mktemp("router")
    names = ("brief", "creative", "steady")
    weight = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    Router(Head(weight, names), Encoder(str(tiny_folder), most_tokens=200)).save(
        folder / "runs" / "router"
    )
    worker = f'kind = "local"\nmodel = "{tiny_folder}"\nmax_tokens = 4\n'
    pool = "".join(f"[workers.{name}]\n{worker}" for name in names)
    (folder / "conductor.toml").write_text(pool, encoding="utf-8")
    for split in (Split.TRAIN, Split.VALIDATION):
        _labels(split).write(folder / "runs" / "labels" / split)
    recipe = (ROOT / "examples" / "recipes" / "router.toml").read_text(encoding="utf-8")
    recipe += f'\n[backbone]\nmodel = "{tiny_folder}"\nsystem = ""\nframe = "{{question}}"\n'
    (folder / "examples" / "recipes").mkdir(parents=True)
    (folder / "examples" / "recipes" / "router.toml").write_text(recipe, encoding="utf-8")
    return folder


def _labels(split: Split) -> Labels:
    """Two workers of the pool, each good at one family; the third one is to join."""
    tasks = [
        task(family, f"{family} {number}", Exact(("x",)), split=split)
        for family in ("ADD", "spell")
        for number in (range(12) if split is Split.TRAIN else range(12, 18))
    ]
    scores = [
        [[float((each.family == "ADD") == first)] for first in (True, False)] for each in tasks
    ]
    return Labels(tuple(tasks), ("brief", "creative"), np.array(scores, np.float32))


@pytest.fixture(autouse=True)
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block runs in that folder."""
    monkeypatch.chdir(folder)


@pytest.mark.parametrize(
    "line", [line for kind, code in BLOCKS if kind == "sh" for line in code.splitlines()]
)
def test_every_command_runs(line: str) -> None:
    words = shlex.split(line)

    done = CliRunner().invoke(app, words[1:], catch_exceptions=False)

    assert (words[0], done.exit_code) == ("conductor", 0), done.stderr
    if words[1] == "route" and "--json" not in words:
        rows = [row.split()[0] for row in done.stdout.splitlines()]
        assert sorted(rows) == ["brief", "creative", "steady"]
    elif words[1] == "run":
        assert "Router · " in done.stderr
    elif words[1] == "train":
        assert ("Nothing was trained" in done.stdout) == ("--dry-run" in words)
        names = {"metrics.jsonl", "shares.svg", "confusion.svg", "loss.svg", "fitness.svg"}
        if "--dry-run" not in words:
            assert {each.name for each in Path("runs/trained").iterdir()} >= names
    elif words[1] == "router":
        assert Router.load("runs/grown").head.workers == ("brief", "creative", "steady")
        assert "steady gets" in done.stdout


@pytest.mark.parametrize("code", [code for kind, code in BLOCKS if kind == "python"])
def test_the_python_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "docs/router.md", "exec"), {})

    told = capsys.readouterr().out
    if "route(" in code:
        assert told.split()[0] in ("creative", "steady")
        assert "Pick(worker=" in told
    else:
        assert Router.load("runs/zeros").head.workers == ("brief", "steady")


def test_the_setting_of_pool_files_is_one() -> None:
    text = next(code for kind, code in BLOCKS if kind == "toml")
    data = tomllib.loads(text)

    file = PoolFile.parse('[workers.x]\nkind = "local"\n' + text, "pool.toml")

    assert file.run.router == data["run"]["router"]
    assert os.path.isabs(file.router)


def test_the_fields_of_the_folder_are_those_of_the_page(folder: Path) -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith("| `router.json`"))
    settings = json.loads((folder / "runs" / "router" / "router.json").read_text(encoding="utf-8"))

    named = set(re.findall(r"`(\w+)`", row))
    assert named >= {*settings, *settings["template"]}
