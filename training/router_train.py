"""Train a router: labels and hidden states in, a router's folder out.

    conductor train router examples/recipes/router.toml

Stages: read the questions (kept on disk), SFT on soft targets, evolution. Each is a function of
arrays in a module of its own; here are the recipe, the order of things, and what is written: head
and router.json, metrics.jsonl, pictures.

Tasks of reserved families and in held-out wordings are never trained on, nor used to choose
anything; if labels have them, the pictures show them.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import anyio
import numpy as np
from pydantic import BaseModel, Field, model_validator

from conductor.config import EMBEDDED_MODEL, load_pool
from conductor.prompt import ROUTER_FRAME, ROUTER_LEAD, ROUTER_SYSTEM
from conductor.router import MOST_TURNS, Encoder, Head, Router
from runtime import PACKAGED, CallCache, fetch

from . import labels as on_file
from . import router_pictures as pictures
from .labels import Labels, LabelsError
from .recipes import RecipeError, Table, Told, read
from .report import rendered
from .router_evolve import Evolution, Kept, LabelProblem, Look, Problem, Shelf, evolve, formula
from .router_rollouts import RunProblem
from .router_sft import (
    SFT,
    Examples,
    Fitted,
    Joined,
    Joining,
    Trial,
    expected_reward,
    fit,
    join,
    picked_reward,
    wordings,
)
from .router_svf import SVF, Bend, bend, bent
from .states import Array, Encodes, Frame, frame_of, states_of, unread
from .tasks import Split, Task

METRICS = "metrics.jsonl"


class Backbone(Table):
    """What reads the questions."""

    model: str = EMBEDDED_MODEL
    """A packaged model, a folder, or a causal LM of the Hugging Face hub."""
    system: str = ROUTER_SYSTEM
    frame: str = ROUTER_FRAME
    """The user message, with ``{question}`` where the question goes."""
    lead: str = ROUTER_LEAD
    """The beginning of a reply, behind which the state is read."""
    layer: int = -1
    plain: bool = False


class Runs(Table):
    """How whole runs are made, where rewards = "runs"."""

    pool: Path | None = None
    """The pool file; found as for `conductor run` if there is none."""
    roles: bool = False
    """Whether turns with roles follow one another."""
    turns: int = Field(default=MOST_TURNS, ge=1)
    repeats: int = Field(default=1, ge=1)
    """Different replies that a worker may give to the same call."""
    concurrency: int = Field(default=16, ge=1)
    cache: Path | None = None
    """Replies to use instead of calls, such as ``calls.db`` of a folder of labels; a file in the
    folder of the router if there is none."""


class Recipe(Table):
    """All that decides what router comes out."""

    labels: tuple[Path, ...] = Field(min_length=1)
    """Folders that `conductor labels` made; their tasks say which split they are of."""
    output: Path
    """The router's folder."""
    states: Path | None = None
    """Where hidden states are kept; in the folder of the router if there is none."""
    seed: int = Field(default=0, ge=0)
    stages: tuple[Literal["sft", "svf", "es"], ...] = ("sft", "es")
    """In this order. With svf the backbone is bent as well (see :mod:`training.router_svf`) and the
    head is trained anew; that is kept if it does better on left-out wordings."""
    rewards: Literal["labels", "runs"] = "labels"
    """What evolution is rewarded by: measured labels, or runs of the real Conductor."""
    pictures: bool = True
    """Whether to draw; it takes matplotlib."""
    backbone: Backbone = Backbone()
    sft: SFT = SFT()
    svf: SVF = SVF()
    es: Evolution = Evolution()
    runs: Runs = Runs()

    @model_validator(mode="after")
    def _needs_a_head(self) -> Recipe:
        if "svf" in self.stages and "sft" not in self.stages:
            raise ValueError('stage "svf" begins with a head; add "sft" to the stages')
        return self

    @property
    def kept_states(self) -> Path:
        """Where hidden states are kept."""
        return self.states or self.output / "states"


def read_recipe(path: str | Path, changes: Sequence[str] = (), **given: Any) -> Recipe:
    """Read a recipe; arguments and errors as :func:`training.recipes.read`."""
    return read(Recipe, path, changes, **given)


# --- data -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Data:
    """Labels, dealt to what they are used for."""

    labels: Labels
    train: np.ndarray
    """(T,) of bool."""
    validation: np.ndarray
    shown: np.ndarray
    """Neither trained on nor chosen by: pictures only."""

    def tasks(self, keep: np.ndarray) -> list[Task]:
        """The tasks for which ``keep`` (T,) is true."""
        return [task for task, kept in zip(self.labels.tasks, keep, strict=True) if kept]

    @property
    def digest(self) -> str:
        """Tells data from other data."""
        told = sha256(json.dumps([task.id for task in self.labels.tasks]).encode())
        told.update(json.dumps(self.labels.workers).encode() + self.labels.scores.tobytes())
        return told.hexdigest()[:16]


def read_data(folders: Sequence[Path]) -> Data:
    """Read labels and deal them; tasks on which a worker was never measured are left out.

    Raises:
        LabelsError: If there are none, or no task is left to train on or to validate with.
    """
    return dealt(merged([on_file.read(folder) for folder in folders]).complete())


def merged(labels: Sequence[Labels]) -> Labels:
    """Join labels of the same workers on different tasks."""
    found, *others = labels
    for each in others:
        found = found.merged(each)
    return found


def dealt(labels: Labels) -> Data:
    """Deal labels to what they are used for; raises as :func:`read_data`."""
    barred = np.array([task.reserved or task.held_out_wording for task in labels.tasks], bool)
    split = np.array([task.split for task in labels.tasks])
    train = (split == Split.TRAIN) & ~barred
    validation = (split == Split.VALIDATION) & ~barred
    for name, kept in (("training", train), ("validation", validation)):
        if not kept.any():
            remedy = "measure some with `conductor labels --split train` and `--split validation`"
            raise LabelsError(f"the labels have no {name} tasks in trained wordings; {remedy}")
    return Data(labels, train, validation, ~train & ~validation)


# --- training -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Trained:
    """What came out."""

    router: Router
    finished: bool
    """False if it was asked to stop before; what is saved is the best so far."""
    best: str
    """The stage that the head is of."""
    summary: Mapping[str, Any]
    """Rewards and counts, as in the training record."""


class Plan(BaseModel):
    """What a recipe will take, without doing it."""

    workers: tuple[str, ...]
    training: int
    validation: int
    shown: int
    ties: int
    """Training tasks on which all workers score the same."""
    questions: int
    """Different ones."""
    unread: int
    """Of them, not read yet."""
    fits: int
    """Heads fitted by gradient."""
    numbers: int
    """Of a head that evolution searches, at most."""
    population: int
    episodes: int
    """Of evolution."""
    seconds: float
    """Roughly, at 15 questions and 8 fits a second, and what labels answer at once; runs of
    models are not in it."""


def plan_of(recipe: Recipe, encoder: Encodes) -> Plan:
    """Say what a recipe will take; raises as :func:`train_router`."""
    data = read_data(recipe.labels)
    labels = data.labels
    rewards = labels.means
    questions = {task.question for task in labels.tasks}
    settings = recipe.sft
    count = len(settings.taus) * len(settings.weight_decays) * len(settings.components)
    folds = settings.folds if settings.choose_by == "wordings" else 0
    sft, es = "sft" in recipe.stages, "es" in recipe.stages
    fits = (1 + (count * (1 + folds) if count > 1 else 0)) * sft
    rows = len(labels.workers) + 3 * (recipe.runs.roles and recipe.rewards == "runs")
    numbers = rows * (max(settings.components) or 576)
    population = recipe.es.population or formula(numbers)
    episodes = population * recipe.es.replications * recipe.es.generations * es
    waiting = unread(labels.tasks, encoder, recipe.kept_states)
    seconds = waiting / 15 + fits / 8 + episodes / 100_000
    return Plan(
        workers=labels.workers,
        training=int(data.train.sum()),
        validation=int(data.validation.sum()),
        shown=int(data.shown.sum()),
        ties=int(
            (~Examples(np.zeros((len(rewards), 1), np.float32), rewards).decided)[data.train].sum()
        ),
        questions=len(questions),
        unread=waiting,
        fits=fits,
        numbers=numbers * es,
        population=population * es,
        episodes=episodes,
        seconds=round(seconds, 1),
    )


def forget(recipe: Recipe) -> None:
    """Forget an evolution that was stopped."""
    shutil.rmtree(recipe.output / "search", ignore_errors=True)


def encoder_of(recipe: Recipe) -> Encoder:
    """The backbone of a recipe."""
    about = recipe.backbone
    if about.model in PACKAGED:
        fetch(about.model)
    return Encoder(
        about.model,
        system=about.system,
        frame=about.frame,
        lead=about.lead,
        layer=about.layer,
        plain=about.plain,
    )


def train_router(
    recipe: Recipe,
    *,
    encoder: Encoder | None = None,
    resume: bool = False,
    progress: Callable[[Told], None] = lambda told: None,
    stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train a router and write its folder.

    Args:
        recipe: How.
        encoder: The backbone; as the recipe says if None.
        resume: Go on with an evolution that was stopped.
        progress: Is told how it goes.
        stop: Is asked now and then whether to stop: what is there is saved.

    Raises:
        LabelsError: If labels are missing or can't be read.
        SearchError: If the evolution that is kept is of other labels or settings.
        RecipeError: If an evolution is kept and is not to be gone on with.
        KeyboardInterrupt: If it is stopped before there is a head.
    """
    encoder = encoder or encoder_of(recipe)
    data = read_data(recipe.labels)
    search = recipe.output / "search"
    if search.exists() and not resume:
        remedy = "--resume goes on with it, --anew begins again"
        raise RecipeError(f"{search}: an evolution is kept there; {remedy}")
    recipe.output.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()

    def reading(done: int, total: int) -> None:
        progress(Told("read", done, total))
        if stop() and done < total:
            raise KeyboardInterrupt

    labels = data.labels
    states = states_of(labels.tasks, encoder, recipe.kept_states, progress=reading)
    read = time.monotonic()
    examples = Examples(states, labels.means)
    train, validation = examples.where(data.train), examples.where(data.validation)
    with (recipe.output / METRICS).open("w", encoding="utf-8") as metrics:

        def note(**row: Any) -> None:
            metrics.write(json.dumps(row) + "\n")
            metrics.flush()

        fitted, best = None, "zero"
        if "sft" in recipe.stages:
            fitted = _sft(recipe, data, train, validation, note, progress, stop)
            best = "sft"
        looks_at: tuple[Bend, ...] = ()
        if fitted and "svf" in recipe.stages:
            encoder, examples, fitted, looks_at = _svf(
                recipe, data, encoder, fitted, examples, note, progress, stop, reading
            )
            train, validation = examples.where(data.train), examples.where(data.validation)
            best = "svf" if encoder.offsets else best
        gone = time.monotonic()
        frame = fitted.frame if fitted else frame_of(train.states, recipe.sft.components[0])
        kept, looks = None, list[Look]()
        if "es" in recipe.stages:
            kept, looks = _es(
                recipe, data, encoder, frame, fitted, train, validation, note, progress, stop
            )
            best = best if kept.generation == 0 else "es"
    roles = recipe.rewards == "runs" and recipe.runs.roles
    weight = _weight(frame, fitted, kept)
    head = Head(weight, labels.workers, roles)
    finished = "es" not in recipe.stages or len(looks) >= recipe.es.generations
    summary: dict[str, Any] = {
        "tasks": {"training": len(train), "validation": len(validation)},
        "validation": _rewards(weight[: len(labels.workers)], validation),
        "best_single": float(validation.rewards.mean(axis=0).max()),
        "oracle": float(validation.rewards.max(axis=1).mean()),
        "best": best,
        "seconds": {
            "read": round(read - began, 1),
            "sft": round(gone - read, 1),
            "es": round(time.monotonic() - gone, 1),
        },
    }
    if fitted:
        summary["sft"] = {
            **fitted.setting.model_dump(),
            "sharpness": fitted.sharpness,
            **_rewards(fitted.weight, validation),
        }
    if looks_at:
        summary["svf"] = {
            "kept": bool(encoder.offsets),
            "updates": looks_at[-1].update,
            "validation_loss": [round(look.validation_loss, 4) for look in looks_at],
        }
    if kept:
        summary["es"] = {
            "generations": len(looks),
            "episodes": looks[-1].episodes if looks else 0,
            "kept": kept.generation,
            "validation": kept.validation,
        }
    record = {
        "recipe": recipe.model_dump(mode="json", exclude={"labels", "output", "states"}),
        "labels": data.digest,
        **summary,
    }
    router = Router(head, encoder, training=record)
    router.save(recipe.output)
    if recipe.pictures:
        _draw(recipe.output, data, examples, head, fitted, looks)
    if finished and search.exists():
        shutil.rmtree(search)
    return Trained(router, finished, best, summary)


def _sft(
    recipe: Recipe,
    data: Data,
    train: Examples,
    validation: Examples,
    note: Callable[..., None],
    progress: Callable[[Told], None],
    stop: Callable[[], bool],
) -> Fitted:
    settings = recipe.sft
    count = len(settings.taus) * len(settings.weight_decays) * len(settings.components)
    done = 0

    def tried(trial: Trial) -> None:
        nonlocal done
        done += 1
        note(
            stage="sft",
            **trial.setting.model_dump(),
            left_out=trial.left_out,
            expected=trial.expected,
        )
        progress(Told("sft", done, count + 1, f"left out {trial.left_out or 0:.3f}"))
        if stop():
            raise KeyboardInterrupt

    folds = wordings(data.tasks(data.train), settings.folds)
    fitted = fit(train, validation, settings, folds=folds, report=tried)
    for update in fitted.history:
        note(stage="sft", **asdict(update))
    progress(Told("sft", count + 1, count + 1))
    return fitted


def _svf(
    recipe: Recipe,
    data: Data,
    encoder: Encoder,
    fitted: Fitted,
    examples: Examples,
    note: Callable[..., None],
    progress: Callable[[Told], None],
    stop: Callable[[], bool],
    reading: Callable[[int, int], None],
) -> tuple[Encoder, Examples, Fitted, tuple[Bend, ...]]:
    """Bend the backbone and train a head on its new states; all as given if they do no better."""

    def heard(look: Bend) -> None:
        note(stage="svf", **asdict(look))
        told = f"loss {look.validation_loss:.4f}"
        progress(Told("svf", look.update, recipe.svf.updates, told))

    found = bend(
        encoder,
        fitted,
        (data.tasks(data.train), examples.where(data.train)),
        (data.tasks(data.validation), examples.where(data.validation)),
        recipe.svf,
        seed=recipe.seed,
        report=heard,
        stop=stop,
    )
    if not any(each.any() for each in found.offsets.values()):
        return encoder, examples, fitted, found.looks
    other = bent(encoder, found.offsets)
    states = states_of(data.labels.tasks, other, recipe.kept_states, progress=reading)
    seen = Examples(states, examples.rewards)
    train, validation = seen.where(data.train), seen.where(data.validation)
    again = _sft(recipe, data, train, validation, note, progress, stop)
    if _left_out(again) > _left_out(fitted):
        return other, seen, again, found.looks
    return encoder, examples, fitted, found.looks


def _left_out(fitted: Fitted) -> float:
    """How the chosen setting did on what it did not see: left-out wordings, else validation."""
    for trial in fitted.trials:
        if trial.setting == fitted.setting:
            return trial.expected if trial.left_out is None else trial.left_out
    return fitted.history[-1].expected


def _es(
    recipe: Recipe,
    data: Data,
    encoder: Encoder,
    frame: Frame,
    fitted: Fitted | None,
    train: Examples,
    validation: Examples,
    note: Callable[..., None],
    progress: Callable[[Told], None],
    stop: Callable[[], bool],
) -> tuple[Kept, list[Look]]:
    labels, settings = data.labels, recipe.es
    with ExitStack() as stack:
        problem: Problem
        if recipe.rewards == "runs":
            pool = load_pool(recipe.runs.pool).only(*labels.workers)
            if pool.names != labels.workers:
                told = f"the pool's order is {', '.join(pool.names)}"
                raise LabelsError(f"{told}, that of the labels {', '.join(labels.workers)}")
            problem = RunProblem(
                data.tasks(data.train),
                data.tasks(data.validation),
                pool,
                encoder,
                frame,
                roles=recipe.runs.roles,
                most_turns=recipe.runs.turns,
                cache=stack.enter_context(
                    CallCache(recipe.runs.cache or recipe.output / "calls.db")
                ),
                repeats=recipe.runs.repeats,
                concurrency=recipe.runs.concurrency,
                stop=stop,
            )
        else:
            problem = LabelProblem(train, validation, frame, labels.scores[data.train])
        start: Array = np.zeros((problem.rows, frame.basis.shape[1]), np.float32)
        if fitted and settings.start == "sft":
            start[: len(fitted.theta)] = fitted.theta
        terms = {
            "labels": data.digest,
            "backbone": encoder.digest,
            "settings": settings.model_dump(mode="json", exclude={"generations"}),
            "runs": recipe.runs.model_dump(mode="json", exclude={"cache"})
            if recipe.rewards == "runs"
            else None,
            "seed": recipe.seed,
            "start": sha256(start.tobytes()).hexdigest()[:16],
        }

        def heard(look: Look) -> None:
            note(stage="es", **look.row(), fitness=look.fitness)
            mean = f"fitness {np.mean(look.fitness):.3f}"
            progress(Told("es", look.generation, settings.generations, mean))

        return anyio.run(
            partial(
                evolve,
                problem,
                start,
                settings,
                seed=recipe.seed,
                shelf=Shelf(recipe.output / "search", terms),
                report=heard,
                stop=stop,
            )
        )


def _weight(frame: Frame, fitted: Fitted | None, kept: Kept | None) -> Array:
    theta = kept.theta if kept else fitted.theta if fitted else None
    assert theta is not None  # there is at least one stage
    return np.ascontiguousarray(frame.head(theta), np.float32)


def _rewards(weight: Array, examples: Examples) -> dict[str, float]:
    return {
        "picked": round(picked_reward(weight, examples), 4),
        "expected": round(expected_reward(weight, examples), 4),
    }


def _draw(
    folder: Path,
    data: Data,
    examples: Examples,
    head: Head,
    fitted: Fitted | None,
    looks: Sequence[Look],
) -> None:
    """Draw what is to be seen, of tasks that were not trained on."""
    kept = ~data.train
    picks = head.logits(examples.states[kept]).argmax(axis=1)
    families = [task.family for task in data.tasks(kept)]
    drawn = {
        "shares": pictures.shares(families, head.workers, picks),
        "confusion": pictures.confusion(examples.rewards[kept], head.workers, picks),
    }
    if fitted:
        drawn["loss"] = pictures.losses(fitted.history)
    if looks:
        drawn["fitness"] = pictures.fitness_curve(looks)
        trail = list(Shelf(folder / "search", {}).trail())
        if trail:
            drawn["search"] = pictures.scatter(trail)
    for name, figure in drawn.items():
        (folder / f"{name}.svg").write_bytes(rendered(figure, "svg"))


# --- a worker joins -------------------------------------------------------------------------------


def add_worker(
    router: Router,
    labels: Labels,
    newcomer: str,
    folder: str | Path,
    settings: Joining = Joining(),
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Router, Joined]:
    """Give a router one worker more, who was measured on the tasks of the others.

    Args:
        router: As it is, without roles.
        labels: Of all workers, the newcomer among them.
        newcomer: Its name.
        folder: Where hidden states are kept.
        settings: How its row is trained.
        progress: Is told how many questions are read, of how many.

    Raises:
        LabelsError: If a worker of the router, or the newcomer, was not measured.
        ValueError: If the router knows the newcomer already, or has roles.
    """
    head = router.head
    if newcomer in head.workers:
        raise ValueError(f"the router knows {newcomer} already; it is one of its workers")
    if head.roles:
        raise ValueError(
            "the router has roles: labels of single picks can't tell what a worker does"
        )
    data = dealt(labels.only(*head.workers, newcomer).complete())
    states = states_of(data.labels.tasks, router.encoder, folder, progress=progress)
    examples = Examples(states, data.labels.means)
    joined = join(
        head.weight, examples.where(data.train), examples.where(data.validation), settings
    )
    weight = np.ascontiguousarray(joined.weight, np.float32)
    record = {
        **router.training,
        "joined": [
            *router.training.get("joined", []),
            {
                "worker": newcomer,
                "labels": data.digest,
                "settings": settings.model_dump(),
                "moved": round(joined.moved, 4),
                "share": round(joined.share, 4),
                "before": round(joined.before, 4),
                "after": round(joined.after, 4),
            },
        ],
    }
    return Router(Head(weight, data.labels.workers), router.encoder, training=record), joined
