"""A recipe becomes a router: read, fitted, evolved, saved, drawn; stopped and gone on with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conductor.router import Encoder, Router
from runtime import CallCache, FunctionWorker, LocalModel, Message, Pool
from training.graders import Exact
from training.labels import Labels, LabelsError
from training.recipes import Told
from training.router_evolve import Dice, LabelProblem
from training.router_rollouts import RunProblem
from training.router_sft import SFT, Examples, Joining
from training.router_svf import SVF
from training.router_train import (
    METRICS,
    Recipe,
    RecipeError,
    Runs,
    add_worker,
    dealt,
    plan_of,
    read_recipe,
    train_router,
)
from training.states import frame_of, states_of
from training.tasks import Split, Task, task

ROOT = Path(__file__).parents[1]
WORKERS = ("adder", "speller", "sorter")
WORDS = ("ADD AND ADD %d", "please spell it: %d", "~~~ /// ~~~ %d")
SHARES = (Split.TRAIN,) * 6 + (Split.VALIDATION,) * 2 + (Split.TEST,) * 2


def some_tasks(each: int = 20) -> list[Task]:
    """Three families; the answer is the family's name."""
    return [
        task(
            family,
            word % number,
            Exact((family,)),
            answer=family,
            split=SHARES[number % 10],
            held_out_wording=number % 10 == 9,
        )
        for family, word in zip(WORKERS, WORDS, strict=True)
        for number in range(each)
    ]


def some_labels() -> Labels:
    """Each worker is right on its own family, and now and then elsewhere."""
    tasks = some_tasks()
    luck = np.random.default_rng(0).random((len(tasks), 3, 2)) < 0.1
    own = np.array([[name == each.family for name in WORKERS] for each in tasks])
    return Labels(tuple(tasks), WORKERS, (own[:, :, None] | luck).astype(np.float32))


def right(router: Router) -> float:
    """Share of the test tasks that go to their own worker."""
    asked = [each for each in some_tasks() if each.split is Split.TEST]
    logits = router.head.logits(router.encoder.states([each.question for each in asked]))
    picks = [router.head.workers[at] for at in logits.argmax(axis=1)]
    return sum(map(str.__eq__, picks, (each.family for each in asked))) / len(asked)


@pytest.fixture(scope="module")
def encoder(tiny_folder: Path) -> Encoder:
    """The random little model; its hidden states tell letters apart, and that is enough."""
    return Encoder(LocalModel(str(tiny_folder)), system="Who?", most_tokens=200)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Quick, in folders of its own."""
    some_labels().write(tmp_path / "labels")
    return read_recipe(
        ROOT / "examples" / "recipes" / "router.toml",
        [
            "sft.components=[8]",
            "sft.taus=[0.3]",
            "es.generations=6",
            "es.replications=16",
            "pictures=false",
        ],
        labels=[tmp_path / "labels"],
        output=tmp_path / "router",
    )


# --- singular-value offsets -----------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.05, 1e-9])
def test_a_bent_backbone_is_kept_if_it_does_better(
    recipe: Recipe, encoder: Encoder, rate: float
) -> None:
    """And told in either case; what is saved is what was measured."""
    settings = SVF(rate=rate, updates=8, batch=8, every=4)
    poor = SFT(components=(1,), taus=(0.3,), weight_decays=(0.01,))
    change = {"stages": ("sft", "svf"), "svf": settings, "sft": poor}

    trained = train_router(recipe.model_copy(update=change), encoder=encoder)

    told = trained.summary["svf"]
    rows = [json.loads(line) for line in (recipe.output / METRICS).read_text().splitlines()]
    loaded = Router.load(recipe.output, model=encoder.model)
    validation = [each for each in some_tasks() if each.split is Split.VALIDATION]
    states = loaded.encoder.states([each.question for each in validation])
    picks = loaded.head.logits(states).argmax(axis=1)
    rewards = some_labels().where([t.split is Split.VALIDATION for t in some_tasks()]).means
    assert [row["update"] for row in rows if row["stage"] == "svf"] == [0, 4, 8]
    assert told["kept"] == bool(loaded.encoder.offsets) == (rate > 0.01)
    assert trained.best == ("svf" if told["kept"] else "sft")
    assert trained.summary["validation"]["picked"] == pytest.approx(
        rewards[np.arange(len(picks)), picks].mean(), abs=1e-4
    )


def test_offsets_stay_when_evolution_goes_on_from_them(recipe: Recipe, encoder: Encoder) -> None:
    """Whatever evolution finds, the record says what the backbone is."""
    settings = SVF(rate=0.05, updates=8, batch=8, every=4)
    poor = SFT(components=(1,), taus=(0.3,), weight_decays=(0.01,))
    change = {"stages": ("sft", "svf", "es"), "svf": settings, "sft": poor}

    trained = train_router(recipe.model_copy(update=change), encoder=encoder)

    assert trained.summary["svf"]["kept"]
    assert Router.load(recipe.output, model=encoder.model).encoder.offsets


def test_bending_needs_a_head_to_begin_with(recipe: Recipe) -> None:
    with pytest.raises(ValueError, match='add "sft" to the stages'):
        Recipe.model_validate({**recipe.model_dump(), "stages": ("svf", "es")})


# --- recipes --------------------------------------------------------------------------------------


def test_what_is_given_wins_over_the_file(tmp_path: Path) -> None:
    """Changes by key, and keys of the top by name; text needs no quotes."""
    file = tmp_path / "r.toml"
    file.write_text('labels = ["a"]\noutput = "b"\n[es]\nsigma = 0.5\n')

    found = read_recipe(file, ["es.generations=7", "backbone.model=some/folder"], output="c")

    assert (found.es.sigma, found.es.generations) == (0.5, 7)
    assert (found.output, found.backbone.model) == (Path("c"), "some/folder")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('ouput = "x"', r"unknown key ouput; did you mean output\?"),
        ("[es]\nsgima = 1", r"unknown key es.sgima; did you mean sigma\?"),
        ("[sft]\nzzz = 1", r"unknown key sft.zzz; there are: taus, weight_decays"),
        ("[es]\nsigma = -1", "es.sigma: input should be greater than 0"),
        ("", "labels is missing"),
        ("x", "not TOML"),
    ],
)
def test_a_wrong_recipe_is_told_with_file_key_and_remedy(
    text: str, told: str, tmp_path: Path
) -> None:
    """Unknown keys are errors, with the nearest known one."""
    file = tmp_path / "r.toml"
    file.write_text(text)

    with pytest.raises(RecipeError, match=told) as raised:
        read_recipe(file)

    assert str(file) in str(raised.value)


def test_nothing_is_chosen_by_reserved_families_and_held_out_wordings() -> None:
    """They are for pictures only, like the test split."""
    labels = some_labels()
    tasks = tuple(replace(each, reserved=each.family == "sorter") for each in labels.tasks)

    data = dealt(Labels(tasks, WORKERS, labels.scores))

    used = data.train | data.validation
    assert not any(each.reserved or each.held_out_wording for each in data.tasks(used))
    assert {each.split for each in data.tasks(data.train)} == {Split.TRAIN}
    assert {each.split for each in data.tasks(data.validation)} == {Split.VALIDATION}
    with pytest.raises(LabelsError, match=r"no validation tasks.*--split validation"):
        dealt(labels.where([each.split is Split.TRAIN for each in labels.tasks]))


# --- training -------------------------------------------------------------------------------------


def test_a_router_is_trained_saved_and_picks(recipe: Recipe, encoder: Encoder) -> None:
    """It beats the best single worker, loads again, and its record says how it was made."""
    told: list[Told] = []
    recipe = recipe.model_copy(update={"pictures": True})

    trained = train_router(recipe, encoder=encoder, progress=told.append)

    again = Router.load(recipe.output)
    assert again.training["recipe"]["es"]["generations"] == 6
    assert trained.finished
    assert trained.summary["validation"]["picked"] > trained.summary["best_single"] + 0.2
    assert right(again) > 0.8
    assert {each.stage for each in told} == {"read", "sft", "es"}
    drawn = {file.name for file in recipe.output.glob("*.svg")}
    assert drawn == {f"{name}.svg" for name in "shares loss fitness confusion search".split()}
    assert "speller" in (recipe.output / "shares.svg").read_text()
    rows = [json.loads(line) for line in (recipe.output / METRICS).read_text().splitlines()]
    assert [row["generation"] for row in rows if row["stage"] == "es"] == [1, 2, 3, 4, 5, 6]
    assert not (recipe.output / "search").exists()


def test_a_plan_says_what_a_recipe_will_take(recipe: Recipe, encoder: Encoder) -> None:
    """And questions that were read before are not counted again."""
    before = plan_of(recipe, encoder)
    states_of(some_tasks(), encoder, recipe.kept_states)

    after = plan_of(recipe, encoder)

    assert (before.training, before.validation, before.shown) == (36, 12, 12)
    assert (before.unread, after.unread, before.questions) == (60, 0, 60)
    assert before.episodes == before.population * 16 * 6


def test_stopped_and_gone_on_with_it_ends_as_if_never_stopped(
    recipe: Recipe, encoder: Encoder, tmp_path: Path
) -> None:
    """Head and metrics are the same to the last byte; without --resume nothing is lost."""
    other = recipe.model_copy(update={"output": tmp_path / "straight"})
    train_router(other, encoder=encoder)
    seen: list[Told] = []

    def two_generations() -> bool:
        return sum(each.stage == "es" for each in seen) == 2

    cut = train_router(recipe, encoder=encoder, progress=seen.append, stop=two_generations)
    with pytest.raises(RecipeError, match="--resume goes on with it"):
        train_router(recipe, encoder=encoder)
    rest = train_router(recipe, encoder=encoder, resume=True)

    assert (cut.finished, rest.finished) == (False, True)
    for name in ("head.safetensors", METRICS):
        assert (recipe.output / name).read_bytes() == (other.output / name).read_bytes()


def test_a_newcomer_joins_a_router(recipe: Recipe, encoder: Encoder) -> None:
    """Trained without the sorter, it learns whom to give what is to be sorted."""
    labels = some_labels()
    folder = recipe.labels[0].with_name("two")
    labels.only("adder", "speller").write(folder)
    two = recipe.model_copy(update={"labels": (folder,), "stages": ("sft",)})
    router = train_router(two, encoder=encoder).router

    taught, found = add_worker(router, labels, "sorter", two.kept_states, Joining(components=8))

    assert taught.head.workers == WORKERS
    assert right(taught) > 0.8
    assert found.share == pytest.approx(1 / 3, abs=0.1)
    assert found.after > found.before
    (joined,) = taught.training["joined"]
    assert joined["worker"] == "sorter"
    with pytest.raises(ValueError, match="knows adder already"):
        add_worker(router, labels, "adder", two.kept_states)


# --- whole runs -----------------------------------------------------------------------------------


def workers(asked: list[str]) -> Pool:
    """Each answers with its name; asked to verify or to think, it does so in its way."""

    def worker(name: str) -> FunctionWorker:
        async def answer(messages: tuple[Message, ...]) -> str:
            asked.append(name)
            text = " ".join(message.content for message in messages)
            if "ACCEPT" in text:
                return "ACCEPT"
            return name

        return FunctionWorker(name, answer)

    return Pool([worker(name) for name in WORKERS])


@pytest.mark.anyio
async def test_whole_runs_and_labels_reward_the_same_picks_alike(
    encoder: Encoder, tmp_path: Path
) -> None:
    """Array arithmetic stands for the runtime: head by head, task by task."""
    tasks = some_tasks(4)
    states = states_of(tasks, encoder, tmp_path)
    own = np.array([[name == each.family for name in WORKERS] for each in tasks], np.float32)
    examples, frame = Examples(states, own), frame_of(states, 0)
    asked: list[str] = []
    with CallCache(tmp_path / "calls.db") as cache:
        runs = RunProblem(tasks, tasks, workers(asked), encoder, frame, cache=cache)
        arrays = LabelProblem(examples, examples, frame)
        thetas = np.random.default_rng(1).normal(size=(3, 3, 32)).astype(np.float32)
        dice = Dice.throw(np.random.default_rng(0), len(tasks), 3, 8, common=True)

        done = await runs.rollouts(thetas, dice, "argmax")
        expected = await arrays.rollouts(thetas, dice, "argmax")
        first = len(asked)
        again = await runs.rollouts(thetas, dice, "argmax")

        assert (done.rewards == expected.rewards).all()
        assert (done.shares == expected.shares).all()
        assert (again.rewards == done.rewards).all()
        assert len(asked) == first  # from the cache
        validation = [await each.validation(thetas[0]) for each in (runs, arrays)]
        assert validation[0] == pytest.approx(validation[1])


@pytest.mark.anyio
async def test_with_roles_turns_follow_one_another(encoder: Encoder, tmp_path: Path) -> None:
    """A head that always solves takes every turn; one that verifies first ends with nothing."""
    tasks = some_tasks(2)
    states = states_of(tasks, encoder, tmp_path)
    frame = frame_of(states, 0)
    problem = RunProblem(tasks, tasks, workers([]), encoder, frame, roles=True, most_turns=3)
    theta = np.zeros((2, 6, 32), np.float32)
    mean = frame.seen(states).mean(axis=0)
    theta[0, 3], theta[1, 5] = mean, mean  # solver, verifier
    dice = Dice.throw(np.random.default_rng(0), len(tasks), 2, 4, common=True)

    done = await problem.rollouts(theta, dice, "argmax")

    assert problem.rows == 6
    assert done.turns[0].tolist() == [3, 3, 3, 3]
    assert done.rewards[1].tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="no expected reward"):
        await problem.rollouts(theta, dice, "expect")


def test_a_recipe_rewarded_by_runs_trains_a_head_with_roles(
    recipe: Recipe, encoder: Encoder, tiny_folder: Path, tmp_path: Path
) -> None:
    """Every episode is a run of the pool of the recipe; its calls are kept."""
    worker = f'kind = "local"\nmodel = "{tiny_folder}"\nmax_tokens = 2\n'
    pool = tmp_path / "pool.toml"
    pool.write_text("".join(f"[workers.{name}]\n{worker}" for name in WORKERS))
    es = {"generations": 1, "population": 2, "replications": 2, "choose": "sample"}
    recipe = recipe.model_copy(
        update={
            "stages": ("es",),
            "rewards": "runs",
            "runs": Runs(pool=pool, roles=True, turns=2),
            "es": recipe.es.model_copy(update=es),
        }
    )

    trained = train_router(recipe, encoder=encoder)

    assert trained.router.head.weight.shape == (3 + 3, 32)
    assert Router.load(recipe.output).roles
    assert trained.summary["es"]["episodes"] == 4
    assert (recipe.output / "calls.db").is_file()


# --- the command ----------------------------------------------------------------------------------


def test_a_wrong_recipe_ends_the_command_with_one_line(tmp_path: Path) -> None:
    """Exit code 2."""
    file = tmp_path / "r.toml"
    file.write_text('labels = ["a"]\nouput = "b"\n')
    command = [sys.executable, "-m", "conductor", "train", "router", str(file)]

    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )

    assert done.returncode == 2
    assert "unknown key ouput; did you mean output?" in done.stderr
    assert "Traceback" not in done.stderr
