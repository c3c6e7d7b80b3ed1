"""Evolution of the head: dice, fitness, searches, and a kill that leaves no trace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.router_evolve import (
    SEARCHES,
    Dice,
    Evolution,
    LabelProblem,
    Look,
    Outcome,
    SearchError,
    Shelf,
    evolve,
    fitness,
    formula,
)
from training.router_sft import Examples
from training.states import frame_of

pytestmark = pytest.mark.anyio


def problem(seed: int = 0, tasks: int = 60) -> LabelProblem:
    """Three workers, each right on a third of the plane."""
    random = np.random.default_rng(seed)

    def some(count: int) -> tuple[Examples, np.ndarray]:
        kinds = random.integers(3, size=count)
        states = np.eye(3)[kinds] * 4 + random.normal(size=(count, 3)) * 0.5
        right = np.where(np.eye(3)[kinds] > 0, 0.9, 0.1)
        scores = (random.random((count, 3, 4)) < right[:, :, None]).astype(np.float32)
        return Examples(states.astype(np.float32), scores.mean(axis=2)), scores

    train, scores = some(tasks)
    return LabelProblem(train, some(60)[0], frame_of(train.states, 0), scores)


START = np.zeros((3, 3), np.float32)
SETTINGS = Evolution(sigma=0.3, generations=12, replications=24)


def test_common_dice_are_the_same_for_all_heads_and_others_are_not() -> None:
    """And no task comes twice before each has come once."""
    common = Dice.throw(np.random.default_rng(0), 20, 5, 30, common=True)
    apart = Dice.throw(np.random.default_rng(0), 20, 5, 30, common=False)

    for of_all in (common.tasks, common.draws, common.repeats, common.seeds):
        assert of_all.shape == (5, 30)
        assert (of_all == of_all[0]).all()
    assert (apart.tasks != apart.tasks[0]).any()
    assert sorted(common.tasks[0][:20]) == list(range(20))


def test_fitness_is_mean_reward_with_bonus_and_penalty() -> None:
    """Technical failures don't count, unless all failed; late answers cost, episode by episode."""
    outcome = Outcome(
        rewards=np.array([[1.0, np.nan, 0.0], [np.nan] * 3]),
        shares=np.array([[0.5, 0.5], [1.0, 0.0]]),
        turns=np.array([[1.0, 5.0, 3.0], [1.0, 1.0, 1.0]]),
    )

    plain = fitness(outcome, Evolution(), 5)
    whole = fitness(outcome, Evolution(entropy_bonus=0.15, turn_penalty=0.1), 5)

    assert plain.tolist() == [0.5, -1.0]
    late = (0 + 4 / 5 + 2 / 5) / 4 / 3
    assert whole == pytest.approx([0.5 + 0.15 * np.log(2) - 0.1 * late, -1.0])


async def test_drawn_rewards_are_on_average_what_is_expected() -> None:
    """Sampling by the dice follows the softmax; the mean over repeats is the labels' mean."""
    thetas = np.random.default_rng(3).normal(size=(2, 3, 3)).astype(np.float32)
    one = problem()
    dice = Dice.throw(np.random.default_rng(0), one.tasks, 2, 60_000, common=True)

    drawn = await one.rollouts(thetas, dice, "sample")
    expected = await one.rollouts(thetas, dice, "expect")

    assert drawn.rewards.mean(axis=1) == pytest.approx(expected.rewards.mean(axis=1), abs=0.01)
    assert np.allclose(drawn.shares, expected.shares, atol=0.01)


async def test_one_product_for_all_heads_gives_what_each_gives_alone() -> None:
    """The short cut for common dice changes nothing."""
    thetas = np.random.default_rng(3).normal(size=(4, 3, 3)).astype(np.float32)
    one = problem()
    common = Dice.throw(np.random.default_rng(0), one.tasks, 4, 50, common=True)
    copied = Dice(
        *(np.array(each) for each in (common.tasks, common.draws)),
        *(np.array(each) for each in (common.repeats, common.seeds)),
    )

    for choose in ("sample", "expect", "argmax"):
        together = await one.rollouts(thetas, common, choose)
        apart = await one.rollouts(thetas, copied, choose)
        assert np.allclose(together.rewards, apart.rewards, atol=1e-5)
        assert np.allclose(together.shares, apart.shares, atol=1e-5)


@pytest.mark.parametrize("method", list(SEARCHES))
def test_a_search_asked_twice_answers_the_same_and_goes_on_from_its_state(method: str) -> None:
    """One contract for all searches: what they draw follows from seed and generation."""
    searches = [SEARCHES[method](np.zeros(6, np.float32), 0.5, seed=7) for _ in range(2)]
    goal = np.arange(6)
    first, second = searches

    for _ in range(5):
        assert (first.ask() == first.ask()).all()
        first.tell(-((first.ask() - goal) ** 2).sum(axis=1).astype(np.float64))
    arrays, values = first.state()
    second.resume(arrays, values)

    assert first.population == formula(6) == 9
    for _ in range(3):
        drawn = first.ask()
        assert (second.ask() == drawn).all()
        for search in searches:
            search.tell(-((drawn - goal) ** 2).sum(axis=1).astype(np.float64))
    assert (first.mean == second.mean).all()
    assert first.generation == second.generation == 8


def test_evolution_gets_nearer_than_random_search() -> None:
    """On a plain bowl, with the same number of trials."""
    goal = np.linspace(-1, 1, 30)
    left = {}
    for method, make in SEARCHES.items():
        search = make(np.zeros(30, np.float32), 0.3, seed=1)
        for _ in range(80):
            search.tell(-((search.ask() - goal) ** 2).sum(axis=1).astype(np.float64))
        left[method] = float(((search.mean - goal) ** 2).sum())

    assert left["sep-cma-es"] < 0.1 * left["random"]


async def test_evolution_from_zero_learns_who_is_good_at_what() -> None:
    """Its best head on validation is far better than the best single worker there."""
    kept, looks = await evolve(problem(), START, SETTINGS)

    assert kept.validation > 0.8
    assert looks[-1].episodes == 12 * formula(9) * 24
    assert looks[-1].row()["best"] == max(looks[-1].fitness)


@pytest.mark.parametrize("method", list(SEARCHES))
async def test_killed_at_any_generation_it_gives_the_same_curve(
    method: str, tmp_path: Path
) -> None:
    """A kill may come after any step; what the resumed search tells is equal to the last digit."""
    settings = SETTINGS.model_copy(update={"method": method, "generations": 7})
    straight = await evolve(problem(), START, settings, seed=3)

    for at in range(1, 7):
        folder = tmp_path / str(at)

        def die(look: Look, at: int = at) -> None:
            if look.generation == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            await evolve(problem(), START, settings, seed=3, shelf=Shelf(folder, {}), report=die)
        kept, looks = await evolve(problem(), START, settings, seed=3, shelf=Shelf(folder, {}))

        assert looks == straight[1]
        assert (kept.theta == straight[0].theta).all()
        assert (kept.validation, kept.generation) == (
            straight[0].validation,
            straight[0].generation,
        )


async def test_asked_to_stop_it_stops_between_generations_and_goes_on(tmp_path: Path) -> None:
    """As on Ctrl-C and SIGTERM."""
    told: list[Look] = []
    _, looks = await evolve(
        problem(),
        START,
        SETTINGS,
        shelf=Shelf(tmp_path, {}),
        report=told.append,
        stop=lambda: len(told) == 4,
    )
    _, rest = await evolve(problem(), START, SETTINGS, shelf=Shelf(tmp_path, {}))

    assert [look.generation for look in looks] == [1, 2, 3, 4]
    assert rest[:4] == looks
    assert len(rest) == 12


async def test_a_search_does_not_go_on_under_other_terms(tmp_path: Path) -> None:
    """It says which differ; a spoilt file is named."""
    await evolve(problem(), START, SETTINGS, shelf=Shelf(tmp_path, {"labels": "a"}))

    with pytest.raises(SearchError, match="other labels than before"):
        await evolve(problem(), START, SETTINGS, shelf=Shelf(tmp_path, {"labels": "b"}))
    (tmp_path / "search.safetensors").write_bytes(b"spoilt")
    with pytest.raises(SearchError, match="delete it"):
        await evolve(problem(), START, SETTINGS, shelf=Shelf(tmp_path, {"labels": "a"}))


async def test_the_trail_has_the_heads_of_every_generation(tmp_path: Path) -> None:
    """For the picture of the search."""
    shelf = Shelf(tmp_path, {})
    await evolve(problem(), START, SETTINGS, shelf=shelf)

    heads = list(shelf.trail())

    assert [each.shape for each, _ in heads] == [(formula(9), 9)] * 12


async def test_reinforce_learns_in_the_same_harness() -> None:
    """The baseline is a fair one: with enough episodes it gets there too."""
    looks: list[Look] = []
    kept = await problem().reinforce(
        START, updates=150, batch=24, rate=0.05, seed=0, report=looks.append
    )

    assert kept.validation > 0.8
    assert looks[-1].episodes == 150 * 24
