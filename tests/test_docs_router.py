"""docs/router.md is true: its commands and its Python are executed, with a router of that name."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from conductor import Encoder, Head, Router
from runtime import LocalModel, PoolFile

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "router.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder with the router of the page: untrained, on a tiny backbone, for the embedded pool.

    Only the Python that names the packaged model as its backbone reads with that.
    """
    folder = tmp_path_factory.mktemp("router")
    weight = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    head = Head(weight, ("brief", "creative", "steady"))
    encoder = Encoder(LocalModel(str(tiny_folder)), system="s", most_tokens=200)
    Router(head, encoder).save(folder / "runs" / "router")
    return folder


@pytest.mark.parametrize(
    ("kind", "code"), [block for block in BLOCK.findall(PAGE) if block[0] in ("sh", "python")]
)
def test_every_block_runs(kind: str, code: str, folder: Path) -> None:
    env = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(Path.home()),
        "CONDUCTOR_JOURNAL": "off",
        "COLUMNS": "100",
    }
    if "CONDUCTOR_CACHE" in os.environ:
        env["CONDUCTOR_CACHE"] = os.environ["CONDUCTOR_CACHE"]
    call = ["sh", "-ec", code] if kind == "sh" else [sys.executable, "-c", code]

    done = subprocess.run(call, cwd=folder, env=env, capture_output=True, text=True, timeout=300)

    assert done.returncode == 0, done.stderr
    if "conductor route" in code:
        rows = done.stdout.split("{")[0].splitlines()
        assert sorted(row.split()[0] for row in rows) == ["brief", "creative", "steady"]
    elif "route(" in code:
        assert done.stdout.split()[0] in ("creative", "steady")
        assert "Pick(worker=" in done.stdout
    elif "save(" in code:
        assert Router.load(folder / "runs" / "zeros").head.workers == ("brief", "steady")


def test_the_setting_of_pool_files_is_one() -> None:
    text = next(code for kind, code in BLOCK.findall(PAGE) if kind == "toml")
    data = tomllib.loads(text)

    file = PoolFile.parse('[workers.x]\nkind = "local"\n' + text, "pool.toml")

    assert file.run.router == data["run"]["router"]
    assert os.path.isabs(file.router)


def test_the_fields_of_the_folder_are_those_of_the_page(folder: Path) -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith("| `router.json`"))
    settings = json.loads((folder / "runs" / "router" / "router.json").read_text(encoding="utf-8"))

    named = set(re.findall(r"`(\w+)`", row))
    assert named >= {*settings, *settings["template"]}
