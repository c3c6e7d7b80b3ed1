"""The Conductor that comes with the package: what it is, and that it leads by itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conductor import Conductor, LocalWorker, Planner, Pool, PoolError, RunState, embedded_pool
from conductor.config import (
    EMBEDDED_CONDUCTOR,
    ORCHESTRA,
    conducted,
    described_pool,
    load_pool,
    local_model,
)
from conductor.estimate import estimate
from grammar import parse

NAMES = ("plain", "calculator", "speller", "sorter", "logician", "teller")
COMPOSED = "Add 47 and 38, then reverse the digits of the sum."


def trained(folder: Path, **about: object) -> Path:
    folder.mkdir()
    told = {"model": "smollm2-135m-instruct", "adapter": ".", "roster": NAMES[:3], "most_steps": 4}
    (folder / "conductor.json").write_text(json.dumps(told | about), encoding="utf-8")
    return folder


def test_what_a_training_made_leads_the_players_that_it_knows(tmp_path: Path) -> None:
    """With their model in memory, and the adapter's own roster, whoever else is there."""
    players = Pool.load(ORCHESTRA)

    led = conducted(players, trained(tmp_path / "made"))

    assert isinstance(led.planner, LocalWorker)
    assert led.names == NAMES
    assert (led.planner.name, led.planner.adapter) == ("conductor", str(tmp_path / "made"))
    assert led.planner.card == "trained to lead plain, calculator, speller"
    assert led.planner.model is getattr(players["plain"], "model", None)
    assert (led.planning.roster, led.planning.most_steps) == (NAMES[:3], 4)
    assert led.planning.constrained
    assert led.source == players.source


def test_one_whose_weights_were_all_trained_needs_no_adapter(tmp_path: Path) -> None:
    led = conducted(Pool.load(ORCHESTRA), trained(tmp_path / "made", adapter="", model="own"))

    assert isinstance(led.planner, LocalWorker)
    assert (led.planner.adapter, led.planner.model.name) == ("", "own")


def test_a_folder_without_a_trained_conductor_is_told(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match=r"no trained Conductor: .*conductor\.json"):
        conducted(Pool.load(ORCHESTRA), tmp_path)


def test_an_estimate_reckons_with_the_short_prompt_of_a_trained_one(tmp_path: Path) -> None:
    """And with subtasks as long as the query, which it may hand on."""
    players = Pool.load(ORCHESTRA)
    led = conducted(players, trained(tmp_path / "made"))
    long = "Why? " * 200

    short, told = (estimate("Why?", pool).planning for pool in (led, players))

    assert short is not None and told is not None
    assert short.worker == "conductor"
    assert short.input_tokens.least < told.input_tokens.least
    assert f"subtasks of at most {len(long)} characters" in estimate(long, led).assumptions
    assert "subtasks of at most 160 characters" in estimate("Why?", led).assumptions


def test_what_is_told_of_a_pool_is_what_runs(tmp_path: Path) -> None:
    """Planner included, where the package brings it; a file of one's own needs no keys."""
    file = tmp_path / "pool.toml"
    file.write_text('[workers.a]\nkind = "openai"\nurl = "${URL}"\nmodel = "m"\n', encoding="utf-8")

    embedded, orchestra = described_pool(), described_pool(ORCHESTRA)

    assert isinstance(embedded, Pool) and isinstance(orchestra, Pool)
    assert embedded.planner.card == embedded_pool().planner.card
    assert orchestra.planner.card == load_pool("orchestra").planner.card
    assert not isinstance(described_pool(file), Pool)


# -- the real one --------------------------------------------------------------------------------


def test_it_knows_the_players_of_the_package_and_is_small() -> None:
    about = json.loads((EMBEDDED_CONDUCTOR / "conductor.json").read_text(encoding="utf-8"))
    card = (EMBEDDED_CONDUCTOR / "README.md").read_text(encoding="utf-8")
    megabytes = sum(each.stat().st_size for each in EMBEDDED_CONDUCTOR.rglob("*")) / 1e6

    assert tuple(about["roster"]) == NAMES
    assert about["model"] == "smollm2-135m-instruct"
    assert (EMBEDDED_CONDUCTOR / "adapter_model.safetensors").is_file()
    assert "base_model: " in card and "license: " in card
    assert megabytes < 8


def test_it_leads_the_embedded_pool_and_the_orchestra() -> None:
    """One copy of the weights serves the players and it; the untouched model may write more."""
    embedded = embedded_pool()
    workers = [each for each in (*embedded, embedded.planner) if isinstance(each, LocalWorker)]

    assert embedded.names == NAMES
    assert len(workers) == 7 and {id(each.model) for each in workers} == {id(local_model())}
    assert [each.sampling.max_tokens for each in workers[:6]] == [120, 32, 32, 32, 32, 32]
    for pool in (embedded, load_pool("orchestra")):
        assert isinstance(pool.planner, LocalWorker)
        assert pool.planner.adapter == str(EMBEDDED_CONDUCTOR)
        assert pool.planning.roster == NAMES
        assert pool.planning.constrained


def test_it_asks_who_can_and_leaves_the_rest_to_the_untouched_model() -> None:
    team = Conductor()

    sum_, ordinary = (team.run(q) for q in ("Add 47 and 38.", "What is the capital of France?"))

    assert [sum_.steps[-1].worker, sum_.answer and "85" in sum_.answer] == ["calculator", True]
    assert [ordinary.steps[-1].worker, "Paris" in (ordinary.answer or "")] == ["plain", True]


@pytest.mark.parametrize("constrained", [True, False])
def test_it_plans_a_composed_question_at_the_first_attempt(constrained: bool) -> None:
    """Under the grammar and without."""
    pool = embedded_pool()
    planner = Planner(pool.planner, pool.planning, constrained=constrained)

    run = Conductor(pool, planner=planner).run(COMPOSED)

    assert run.state is RunState.DONE, run.failure
    (attempt,) = run.planning
    assert run.plan == parse(attempt.text, workers=NAMES)
    assert run.plan is not None and run.plan.workers == ("calculator", "speller")
    assert run.answer and run.answer.strip()


def test_it_offers_only_players_that_are_there() -> None:
    run = Conductor().plan("Add 47 and 38.", without=["calculator"])

    assert run.plan is not None and "calculator" not in run.plan.workers
