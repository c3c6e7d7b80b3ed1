"""Killed thirty times at seeded moments, runs lose no finished call and make none again."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime import Journal
from tests.crash.scenes import SCENES, finished_calls
from tests.crash.tool import Pass, Verdict, drive, served


def test_thirty_kills_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    """By the books of a server that another process keeps."""
    verdict = drive(30, 7, tmp_path, lambda line: None)

    assert verdict.wrong == []
    assert verdict.killed == 30
    assert all(verdict.kills[kind] for kind in ("before", "after", "random"))
    assert verdict.calls > 100


@pytest.fixture
def played(tmp_path: Path) -> Pass:
    """All scenes, undisturbed."""
    one = Pass(1, tmp_path)
    with served(one.books) as port:
        assert one.child(port, "never", 0).wait(timeout=120) == 0
    return one


def test_the_tool_notices_what_it_looks_for(played: Pass) -> None:
    """A call that is made again, a result that is lost, a run that has no end, another record."""
    expected = played.essences()
    assert [*played.unfinished(), *played.compared(expected)] == []
    assert [*played.examined(Verdict())] == []
    with Journal(played.path) as journal:
        runs = journal.runs()
        calls = [call for run in runs for call in finished_calls(journal.events(run.id))]
    assert len(calls) == len(set(calls)) > len(SCENES)

    played.books.answered[calls[0]] += 1
    assert [*played.examined(Verdict())] == [
        f"pass 1, kill 0: call {calls[0]} was on record and was made again"
    ]
    played.path.with_suffix(".heard").write_text("early\n")
    assert any("early was told, but is not" in told for told in played.examined(Verdict()))
    played.recorded.add("another")
    assert any("is lost" in told for told in played.examined(Verdict()))
    name = SCENES[0].name
    assert any(name in told for told in played.compared({**expected, name: None}))
    assert any("ended as None" in told for told in Pass(2, played.path.parent).unfinished())
