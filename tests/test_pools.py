"""A trained Conductor with somebody missing: who is compared with whom, and where that is told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import anyio
import numpy as np
import pytest

from conductor.config import TRAINED
from conductor.router import Encoder, Head, Router
from runtime import Completion, FunctionWorker, Message, Pool
from training import pools
from training.graders import Number
from training.pools import Scores, measure
from training.sft import adapt
from training.tasks import Split, task

FOURS = [task("fours", f"four {at}?", Number("4"), split=Split.TEST) for at in range(3)]
FIVES = [task("fives", f"five {at}?", Number("5"), split=Split.TEST) for at in range(1)]


def said(name: str, text: str) -> FunctionWorker:
    async def answer(messages: Sequence[Message]) -> Completion:
        return Completion(text)

    return FunctionWorker(name, answer)


@pytest.fixture(scope="module")
def measured(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scores]:
    """A random model leads one who says 4 and one who says 5; the router picks the second."""
    folder = tmp_path_factory.mktemp("trained")
    adapt(str(tiny_folder), lambda update: [], 0, folder)
    (folder / TRAINED).write_text(json.dumps({"model": str(tiny_folder)}), encoding="utf-8")
    team = Pool([said("four", "4"), said("five", "5")])
    encoder = Encoder(str(tiny_folder), most_tokens=200)
    head = Head(np.zeros((2, 32), np.float32), ("five", "four"))  # all are equal
    router = Router(head, encoder)

    async def told() -> list[Scores]:
        return await measure(folder, team, [*FOURS, *FIVES], router, folder / "states")

    return {each.without: each for each in anyio.run(told)}


def test_the_best_is_of_those_who_are_left(measured: dict[str, Scores]) -> None:
    assert [*measured] == ["", "four", "five"]
    best = {name: (each.best_name, each.best.ravel().tolist()) for name, each in measured.items()}
    assert best == {
        "": ("four", [1, 1, 1, 0]),
        "four": ("five", [0, 0, 0, 1]),
        "five": ("four", [1, 1, 1, 0]),
    }
    assert measured[""].oracle.ravel().tolist() == [1, 1, 1, 1]
    assert measured["four"].oracle.ravel().tolist() == [0, 0, 0, 1]


def test_the_router_picks_of_those_who_are_left(measured: dict[str, Scores]) -> None:
    picked = {name: each.router.ravel().tolist() for name, each in measured.items()}

    assert picked["four"] == [0, 0, 0, 1] and picked["five"] == [1, 1, 1, 0]


def test_what_is_no_plan_is_wrong(measured: dict[str, Scores]) -> None:
    """What a random model writes is none."""
    assert all(each.valid == 0 and not each.trained.any() for each in measured.values())
    assert measured[""].beyond.value == -0.75


def test_the_table_goes_where_it_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    measured: dict[str, Scores],
) -> None:
    async def known(*given: object, **more: object) -> list[Scores]:
        return [*measured.values()]

    monkeypatch.setattr(pools, "measure", known)
    monkeypatch.setattr(Router, "load", lambda: None)

    pools.main(["trained", "--tasks", "12", "--composed", "0", "-o", str(tmp_path / "out")])

    text = (tmp_path / "out" / "pools.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() == text.strip()
    assert "held-out phrasings" in text and "| without four |" in text
    assert {each.name for each in tmp_path.iterdir()} == {"out"}
