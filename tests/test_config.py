"""Which pool and which journal are used where none is named."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs
import pytest

from conductor import LocalWorker, PoolError, Run, embedded_pool
from conductor.config import ORCHESTRA, journal_file, load_pool, pool_of

POOL = '[workers.small]\nkind = "local"\n'


def run_with(pool: str) -> Run:
    return Run("id", "q", ("small",), "now", pool=pool)


def test_the_journal_is_the_users_own_one_unless_another_is_named() -> None:
    own = platformdirs.user_state_path("conductor") / "journal.db"

    assert journal_file({}) == own
    assert journal_file({"CONDUCTOR_JOURNAL": ""}) == own
    assert journal_file({"CONDUCTOR_JOURNAL": "here.db"}) == Path("here.db")
    assert journal_file({"CONDUCTOR_JOURNAL": "off"}) is None


def test_the_embedded_router_has_its_own_pool_unless_one_is_named(tmp_path: Path) -> None:
    told: list[str] = []
    (tmp_path / "pool.toml").write_text(POOL, encoding="utf-8")

    orchestra = load_pool(progress=told.append, orchestra=True)
    named = load_pool(tmp_path / "pool.toml", orchestra=True)

    assert orchestra.source == load_pool("orchestra").source == str(ORCHESTRA)
    workers = [worker for worker in orchestra if isinstance(worker, LocalWorker)]
    assert len({id(worker.model) for worker in workers}) == 1
    workers[0].model.progress("fetching")
    assert told == ["fetching"]
    assert named.names == ("small",)


def test_a_run_goes_on_with_the_pool_that_it_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is resumed: the record has the whole path."""
    (tmp_path / "pool.toml").write_text(POOL, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    source = load_pool("pool.toml").source
    monkeypatch.chdir(os.sep)

    assert source == str(tmp_path / "pool.toml")
    assert pool_of(run_with(source)).names == ("small",)
    assert pool_of(run_with("embedded")).names == embedded_pool().names
    assert embedded_pool().source == "embedded"


def test_another_pool_file_may_be_named(tmp_path: Path) -> None:
    file = tmp_path / "other.toml"
    file.write_text(POOL, encoding="utf-8")

    for used in ("", "embedded", "gone.toml"):
        assert pool_of(run_with(used), file).names == ("small",)


@pytest.mark.parametrize(
    ("used", "told"),
    [("", "made in Python; name a pool file with --pool"), ("gone.toml", "gone.toml: No such")],
)
def test_a_pool_that_is_not_there_any_more_is_told(used: str, told: str) -> None:
    with pytest.raises(PoolError, match=told):
        pool_of(run_with(used))


def test_the_orchestra_comes_with_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under its name anywhere, unless a file has that name; for the embedded router by itself."""
    monkeypatch.chdir(tmp_path)
    players = ("plain", "calculator", "speller", "sorter", "logician", "teller")

    named = load_pool("orchestra")

    assert named.names == load_pool(orchestra=True).names == players
    assert pool_of(run_with(named.source)).names == players
    adapters = [worker.adapter for worker in named if isinstance(worker, LocalWorker)]
    assert [Path(each).is_dir() for each in adapters[1:]] == [True] * 5

    (tmp_path / "orchestra").write_text(POOL, encoding="utf-8")
    assert load_pool("orchestra").names == ("small",)
