"""The router on the command line: `conductor route` and `conductor run --router`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from conductor import Encoder, Head, Journal, Router, replay
from conductor.cli import app
from conductor.options import RouterCommand, RouterOption

POOL = """\
[workers.ann]
kind = "local"
model = "{model}"
max_tokens = 4

[workers.bob]
kind = "local"
model = "{model}"
max_tokens = 4

[workers.new]
kind = "local"
model = "{model}"
"""


@pytest.fixture
def folder(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a router of three workers in it, and a pool with two of them."""
    weight = np.random.default_rng(1).normal(size=(3, 32)).astype(np.float32)
    head = Head(weight, ("ann", "bob", "cid"))
    Router(head, Encoder(str(tiny_folder), system="s", frame="{question}", lead="")).save(
        tmp_path / "trained"
    )
    (tmp_path / "pool.toml").write_text(POOL.format(model=tiny_folder), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: str) -> Result:
    """The command, in this process: the tiny model is loaded once."""
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_route_prints_the_distribution(folder: Path) -> None:
    done = command("route", "Why?", "--router", "trained")

    rows = [line.split() for line in done.stdout.splitlines()]
    chances = [float(row[1].rstrip("%")) for row in rows]
    assert sorted(row[0] for row in rows) == ["ann", "bob", "cid"]
    assert chances == sorted(chances, reverse=True)
    assert sum(chances) == pytest.approx(100, abs=0.2)
    assert all(set(row[2]) <= {"█", "▏"} for row in rows)
    assert "read 5 tokens" in done.stderr


def test_route_gives_the_decision_as_json_that_the_router_makes(folder: Path) -> None:
    told = json.loads(command("route", "Why?", "--json", "--router", "trained").stdout)
    pick = Router.load(folder / "trained").route("Why?")

    assert told["worker"] == pick.worker
    assert told["probabilities"] == pytest.approx(dict(pick.probabilities), abs=1e-5)


def test_route_leaves_out_who_is_not_in_the_pool_or_not_wanted(folder: Path) -> None:
    pool = ("route", "Why?", "--json", "--router", "trained", "--pool", "pool.toml")

    everyone = json.loads(command(*pool).stdout)
    one = json.loads(command(*pool, "--without", "ann").stdout)
    other = json.loads(command(*pool, "--only", "ann").stdout)
    nobody = command(*pool, "--without", "gpt")

    assert (list(everyone["probabilities"]), everyone["unknown"]) == (["ann", "bob"], ["new"])
    assert (one["probabilities"], one["unknown"]) == ({"bob": 1.0}, ["new"])
    assert (other["worker"], other["unknown"]) == ("ann", [])
    assert nobody.exit_code == 2
    assert "no worker is called 'gpt'; there are: ann, bob, new" in nobody.stderr


def test_run_lets_the_router_pick_and_keeps_why(folder: Path) -> None:
    done = command(
        *("run", "--router", "trained", "--pool", "pool.toml", "--journal", "j.db", "--json"),
        "Why?",
    )

    assert done.exit_code == 0
    told = json.loads(done.stdout)
    pick = told["rounds"][0]["pick"]
    assert told["rounds"][0]["steps"][0]["worker"] == pick["worker"]
    assert pick["unknown"] == ["new"]
    assert f"Router · {pick['worker']} " in done.stderr
    assert "not known to the router, so never picked: new" in done.stderr
    shown = command("show", "last", "--journal", "j.db").stdout
    assert f"picked    {pick['worker']}, most probable" in shown
    journal = Journal(folder / "j.db")
    run = journal.run("last")
    journal.close()
    assert run.router == str(folder / "trained")
    assert replay(run) == run


def test_what_is_no_router_is_told_with_its_remedy(folder: Path) -> None:
    done = CliRunner().invoke(app, ["route", "Why?", "--router", "./nothing"])

    assert isinstance(done.exception, ValueError)
    assert "a router is a folder with head.safetensors and router.json" in str(done.exception)


@pytest.mark.parametrize(
    ("arguments", "query", "router"),
    [
        (["Why?"], "Why?", None),
        (["Why?", "--router"], "Why?", "embedded"),
        (["--router", "Why is it so?"], "Why is it so?", "embedded"),
        (["--router", "trained", "Why?"], "Why?", "trained"),
        (["--router", "some/where", "Why?"], "Why?", "some/where"),
        (["--router=trained", "Why?"], "Why?", "trained"),
        (["--router", "embedded", "Why?"], "Why?", "embedded"),
        (["--router", "--", "trained"], "trained", "embedded"),
        (["--", "--router"], "--router", None),
    ],
)
def test_a_path_may_follow_the_option_or_not(
    arguments: list[str], query: str, router: str | None, folder: Path
) -> None:
    found: list[str | None] = []
    small = typer.Typer()

    @small.command(cls=RouterCommand)
    def ask(query: Annotated[str, typer.Argument()] = "", router: RouterOption = None) -> None:
        found.extend((query, router))

    done = CliRunner().invoke(small, arguments)

    assert (done.exit_code, found) == (0, [query, router])
