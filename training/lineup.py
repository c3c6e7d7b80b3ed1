"""The line-up: the deciders of an evaluation by name, and all of it from labels to report.

``conductor eval`` is this module with options.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from conductor import Planner
from conductor.config import TRAINED, conducted
from conductor.router import HEAD, SETTINGS, Encoder, Router, probabilities
from runtime import LocalWorker, Pool

from .evaluate import (
    BEST,
    ORACLE,
    RANDOM,
    Choices,
    Deciding,
    Evaluation,
    EvaluationError,
    Measured,
    Outcomes,
    alone,
    best_single,
    choose,
    evaluate,
    one_hot,
    oracle,
    picks,
    random_pick,
    random_sampled,
    read_measured,
    section_of,
    self_consistency,
    vote,
)
from .labels import digest_of, read_manifest
from .router_sft import SFT, Examples, fit, permuted_workers, shuffled_labels
from .states import states_of
from .tasks import Split, Task
from .trials import (
    Bench,
    Chooser,
    Decider,
    Progress,
    carry_out_trials,
    known_parts,
    mixture,
    outcomes_of,
    planning_of,
    random_plan,
    waiting,
)

FROM_LABELS: Mapping[str, str] = {
    "workers": "every worker alone",
    BEST: "the worker that is best on validation tasks, alone",
    RANDOM: "any worker, expected value",
    "random-sampled": "any worker, drawn",
    "vote": "all workers; what most of them say",
    ORACLE: "the best worker of each task, known beforehand",
    "routers": "the routers that are named",
    "controls": "routers trained on shuffled labels and on permuted workers",
}
CARRIED_OUT: Mapping[str, str] = {
    "self-consistency": "the best single worker, as often as the vote has calls, or --calls",
    "prompted": "the pool's Conductor model names a worker after reading the cards",
    "conductor": "the pool's Conductor model writes plans",
    "conductor-free": "likewise, not held to the grammar",
    "random-plans": "plans at random",
    "best-in-every-slot": "chains by their known parts, all done by the best single worker",
    "known-parts": "families and parts known: each done by who is best at it on validation tasks",
    "mixture": "all workers, and the best single one reads them and decides",
}
NAMES: Mapping[str, str] = {**FROM_LABELS, **CARRIED_OUT}
"""Deciders, or groups of them, and what they do. The first need labels only; the others calls."""

_SAMPLE = 16
"""Tasks that a router reads anew, to tell what that takes."""


@dataclass(frozen=True, slots=True)
class LineUp:
    """Who takes part, and how."""

    names: tuple[str, ...] = tuple(FROM_LABELS)
    """Of :data:`NAMES`."""
    routers: Mapping[str, tuple[Path, ...]] | None = None
    """Folders of routers by name; several of one name are seeds of one training."""
    conductors: Mapping[str, tuple[Planner, ...]] | None = None
    """Conductor models by name, beside the pool's own; several of one name are seeds of one
    training."""
    rounds: tuple[int, ...] = (1,)
    """Most rounds of planning; Conductor models are tried with each."""
    calls: tuple[int, ...] = ()
    """How often the best single worker is asked for self-consistency, so that it has what another
    decider takes; as often as there are workers if empty."""
    seeds: int = 5
    """Of what is drawn: random workers, controls, random plans."""
    seed: int = 0
    temperature: float = 0.7
    """At which the best single worker samples when it is asked several times."""

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in NAMES:
                raise EvaluationError(f"no decider {name!r}; there are: {', '.join(NAMES)}")
        for name in (*(self.routers or {}), *(self.conductors or {})):
            if name in NAMES or name.startswith(("worker:", "control:")):
                raise EvaluationError(f"no decider can be called {name!r}; that is taken")

    def lacking_a_pool(self) -> list[str]:
        """Those that can't be judged by labels."""
        roles = [
            name
            for name, folders in (self.routers or {}).items()
            if self.has("routers") and Router.load(folders[0]).roles
        ]
        named = [name for name in CARRIED_OUT if self.has(name)]
        return [*named, *(self.conductors or {}), *roles]

    def has(self, name: str) -> bool:
        """Whether a decider or group takes part."""
        return name in self.names


def reported(measured: Measured, limit: int | None = None) -> Measured:
    """Keep the test tasks, of each section at most so many, from all its families in turn.

    Args:
        measured: Labels with their replies.
        limit: Most tasks of a section.
    """
    taken: dict[Any, dict[str, list[int]]] = {}
    for row, task in enumerate(measured.tasks):
        if (section := section_of(task)) is not None:
            taken.setdefault(section, {}).setdefault(task.family, []).append(row)
    keep = np.zeros(len(measured.tasks), dtype=bool)
    for families in taken.values():
        longest = max(map(len, families.values()))
        turns = [rows[at] for at in range(longest) for rows in families.values() if at < len(rows)]
        keep[turns[:limit]] = True
    return measured.where(keep)


def from_labels(
    lineup: LineUp,
    measured: Measured,
    tested: Measured,
    choices: Choices,
    states: str | Path,
    progress: Callable[[str], None] = lambda stage: None,
) -> list[Outcomes]:
    """Gather the outcomes that follow from labels.

    Args:
        lineup: Who takes part.
        measured: All labels; controls are trained on them.
        tested: Those of the test tasks.
        choices: Made on validation tasks.
        states: Folder of hidden states, for routers.
        progress: Is told what is under way.
    """
    found: list[Outcomes] = []
    if lineup.has("workers"):
        found += [alone(tested, worker) for worker in tested.workers]
    for name, make in (
        (BEST, partial(best_single, tested, choices)),
        (RANDOM, partial(random_pick, tested)),
        ("random-sampled", partial(random_sampled, tested, lineup.seeds, lineup.seed)),
        ("vote", partial(vote, tested)),
        (ORACLE, partial(oracle, tested)),
    ):
        if lineup.has(name):
            found.append(make())
    if lineup.has("self-consistency"):
        for calls in lineup.calls or (len(tested.workers),):
            again = self_consistency(tested, choices, calls)
            if again is not None:
                found.append(replace(again, name=_among(again.name, calls, lineup.calls)))
    routers = {
        name: [Router.load(folder) for folder in folders]
        for name, folders in (lineup.routers or {}).items()
    }
    if lineup.has("routers"):
        for name, loaded in routers.items():
            if loaded[0].roles:
                continue  # it is carried out
            found.append(routed(name, loaded, tested, states, _reads(name, progress)))
    if lineup.has("controls") and routers:
        progress("controls are trained on nonsense")
        encoder = next(iter(routers.values()))[0].encoder
        found += controls(measured, tested, encoder, states, lineup.seeds, lineup.seed)
    return found


def carried_out(lineup: LineUp, bench: Bench, tested: Measured, choices: Choices) -> list[Decider]:
    """List the deciders that have to be carried out.

    Args:
        lineup: Who takes part.
        bench: With what.
        tested: Labels of the test tasks.
        choices: Made on validation tasks.
    """
    pool = bench.pool
    names = [name for name in pool.names if name in tested.workers]
    planner = pool.planner.name
    found = []
    for name in (name for name in CARRIED_OUT if lineup.has(name)):
        match name:
            case "self-consistency":
                found += [
                    bench.self_consistency(
                        choices, calls, lineup.temperature, name=_among(name, calls, lineup.calls)
                    )
                    for calls in lineup.calls or (len(names),)
                    if self_consistency(tested, choices, calls) is None
                ]
            case "prompted":
                about = f"{planner} names a worker after reading the cards"
                found.append(bench.chosen(name, about, Chooser(pool.planner)))
            case "conductor" | "conductor-free":
                held = name == "conductor"
                found += _planned(
                    lineup,
                    bench,
                    name,
                    (Planner(pool.planner, pool.planning, constrained=held),),
                )
            case "random-plans":
                most = pool.planning.most_steps
                about = f"plans at random, up to {most} steps"
                draw = partial(random_plan, workers=names, most_steps=most)
                found.append(
                    bench.given(
                        name, about, draw, calls=(most + 1) / 2, seeds=lineup.seeds, told=most
                    )
                )
            case "best-in-every-slot" | "known-parts":
                chosen = choices
                if name == "best-in-every-slot":
                    chosen = replace(choices, best=choices.best_composed, of_family={})
                about = NAMES[name]
                parts = partial(_parts, choices=chosen)
                found.append(bench.given(name, about, parts, calls=2, told=str(chosen)))
            case "mixture":
                mixed = partial(_mixed, choices=choices, workers=names)
                about = f"all {len(names)} workers, then {choices.best} reads them and decides"
                last = [choices.best, choices.best_composed]
                found.append(bench.given(name, about, mixed, calls=len(names) + 1, told=last))
    for name, models in (lineup.conductors or {}).items():
        found += _planned(lineup, bench, name, models)
    for name, folders in (lineup.routers or {}).items():
        routers = [Router.load(folder).on(pool) for folder in folders]
        if routers[0].roles and lineup.has("routers"):
            about = f"router that takes up to {routers[0].turns} turns, {_checkpoints(routers)}"
            told = [_head_digest(folder) for folder in folders]
            found.append(bench.routed(name, about, routers, told))
    return found


def _planned(lineup: LineUp, bench: Bench, name: str, models: Sequence[Planner]) -> list[Decider]:
    """A Conductor model, or several that were trained alike, with each number of rounds."""
    model = models[0]
    among = f", {len(models)} seeds" * (len(models) > 1)
    how = "" if model.constrained and model.worker.constrains else ", not held to the grammar"
    return [
        bench.planned(
            _among(name, rounds, lineup.rounds),
            f"{model.worker.name} writes plans{how}, {rounds} round{'s' * (rounds > 1)}{among}",
            models,
            rounds=rounds,
        )
        for rounds in lineup.rounds
    ]


def _among(name: str, number: int, several: Sequence[int]) -> str:
    """The name of one of several that differ by a number alone."""
    return f"{name}@{number}" if len(several) > 1 else name


def planners_of(what: str, pool: Pool) -> tuple[Planner, ...]:
    """Find a Conductor model, or several that were trained alike.

    Args:
        what: A worker of the pool, which is asked as the pool says; a pool file, whose planner
            is asked as that file says; the folder of a trained Conductor, which is not held to
            the grammar here: what it writes freely is to be told; or a folder with several of
            these, a seed each.
        pool: Whose workers it plans for.

    Raises:
        PoolError: If it is none of these.
    """
    if (folder := Path(what)).is_dir() and what not in pool.names:
        teams = [conducted(pool, each) for each in _alike(folder, TRAINED) or (folder,)]
        return tuple(Planner(team.planner, team.planning, constrained=False) for team in teams)
    if what in pool.names or not Path(what).is_file():
        return (Planner(pool[what], pool.planning),)
    other = Pool.load(what)
    planner = other.planner
    if isinstance(planner, LocalWorker):
        for each in pool:
            if isinstance(each, LocalWorker) and (each.model.name, each.model.engine) == (
                planner.model.name,
                planner.model.engine,
            ):
                planner.model = each.model  # the weights are in memory once
    return (Planner(planner, other.planning),)


def _alike(folder: Path, file: str) -> tuple[Path, ...]:
    """The folder that has a file, or those in it that do: seeds of one training."""
    if (folder / file).is_file():
        return (folder,)
    return tuple(sorted(each.parent for each in folder.glob(f"*/{file}")))


def _parts(task: Task, seed: int, choices: Choices) -> Any:
    return known_parts(task, choices)


def _mixed(task: Task, seed: int, choices: Choices, workers: Sequence[str]) -> Any:
    return mixture(task, choices, workers)


# --- routers --------------------------------------------------------------------------------------


def checkpoints(path: str | Path) -> tuple[Path, ...]:
    """Find a router's folder, or those in a folder: seeds of one training.

    Raises:
        EvaluationError: If there is none.
    """
    folder = Path(path)
    found = _alike(folder, SETTINGS)
    if not found:
        told = f"no router in {folder}: neither {SETTINGS} nor folders that have it"
        raise EvaluationError(f"{told}; `conductor train router` makes one")
    return found


def _reads(name: str, progress: Callable[[str], None]) -> Callable[[int, int], None]:
    """Tell how far reading has come, now and then."""
    told = -1

    def read(done: int, total: int) -> None:
        nonlocal told
        tenth = 10 * done // max(total, 1)
        if done < total and tenth > told:
            told = tenth
            progress(f"{name} reads tasks: {done:,} of {total:,}")

    return read


def routed(
    name: str,
    routers: Sequence[Router],
    tested: Measured,
    states: str | Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcomes:
    """Give what comes of a router's picks, a seed for each checkpoint.

    A worker that it doesn't know is never picked; one that was not measured may not be.

    Args:
        name: Of the decider.
        routers: One or more heads that were trained alike.
        tested: Labels of the tasks.
        states: Folder of hidden states.
        progress: Is told how many tasks have been read, and of how many.

    Raises:
        EvaluationError: If it knows none of the workers.
    """
    known = set(tested.workers)
    chosen = []
    for router in routers:
        allowed = [worker for worker in router.head.workers if worker in known]
        if not allowed:
            raise EvaluationError(
                f"{name} knows {', '.join(router.head.workers)}; the labels have "
                f"{', '.join(tested.workers)}: it was trained for another pool"
            )
        read = states_of(tested.tasks, router.encoder, states, progress=progress)
        best = probabilities(router.head, read, allowed).argmax(axis=1)
        index = [
            tested.workers.index(worker) if worker in known else -1
            for worker in router.head.workers
        ]
        chosen.append(np.array(index)[best])
    tokens, seconds = _reading(routers[0], tested.tasks)
    return picks(
        name,
        f"router, {_checkpoints(routers)}, reading with {routers[0].encoder.id}",
        tested,
        one_hot(np.array(chosen), len(tested.workers)),
        deciding=Deciding(tokens, seconds),
    )


def _checkpoints(routers: Sequence[Router]) -> str:
    return f"{len(routers)} checkpoints" if len(routers) > 1 else "one checkpoint"


def _reading(router: Router, tasks: Sequence[Task]) -> tuple[float, float]:
    """Tokens and seconds of a decision, means over a few tasks from all over the list."""
    if not tasks:
        return 0.0, 0.0
    sample = tasks[:: max(1, len(tasks) // _SAMPLE)][:_SAMPLE]
    router.route(sample[0].question)  # loads the model
    read = [router.route(task.question) for task in sample]
    return (
        float(np.mean([pick.tokens for pick in read])),
        float(np.mean([pick.seconds for pick in read])),
    )


_CONTROL = SFT(taus=(0.3,), weight_decays=(0.1,), components=(32,))
"""One recipe: where there is nothing to learn there is none to choose."""


def controls(
    measured: Measured,
    tested: Measured,
    encoder: Encoder,
    states: str | Path,
    seeds: int,
    seed: int = 0,
    settings: SFT = _CONTROL,
) -> list[Outcomes]:
    """Train heads on nonsense in the same way as the real ones: they must fall to chance.

    *Shuffled*: scores go to other tasks, so that nothing is left but who is best on the whole; it
    may not beat the best single worker. *Permuted*: the scores of each task go to other workers, so
    that nothing is left at all; it may not beat a random worker. Validation is spoilt likewise.

    Args:
        measured: Labels with training and validation tasks.
        tested: Those of the test tasks.
        encoder: The routers' backbone.
        states: Folder of hidden states.
        seeds: How many of each.
        seed: Of the first.
        settings: How each head is trained.

    Raises:
        EvaluationError: If there are no labels to train on.
    """
    labels = measured.labels.where(
        [not (task.reserved or task.held_out_wording or task.parts) for task in measured.tasks]
    ).complete()
    parts = {}
    for split in (Split.TRAIN, Split.VALIDATION):
        part = labels.where([task.split is split for task in labels.tasks])
        if not part.tasks:
            told = f"controls are trained, and there are no labels of {split} tasks"
            raise EvaluationError(f"{told}; name their folder too, or leave the controls out")
        parts[split] = part
    read = {split: states_of(part.tasks, encoder, states) for split, part in parts.items()}
    test = states_of(tested.tasks, encoder, states)
    kinds = (("shuffled", BEST, shuffled_labels), ("permuted", RANDOM, permuted_workers))
    found = []
    for kind, held_to, spoil in kinds:
        chosen = []
        for number in range(seed, seed + seeds):
            spoilt = {
                split: Examples(read[split], spoil(part.means, number))
                for split, part in parts.items()
            }
            fitted = fit(spoilt[Split.TRAIN], spoilt[Split.VALIDATION], settings)
            chosen.append((test @ fitted.weight.T).argmax(axis=1))
        about = f"a router trained on {kind} {'labels' if kind == 'shuffled' else 'workers'}"
        weights = one_hot(np.array(chosen), len(tested.workers))
        found.append(picks(f"control:{kind}", about, tested, weights, held_to=held_to))
    return found


# --- all of it ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Contest:
    """An evaluation from labels to report: what there is, who takes part, where it goes."""

    lineup: LineUp
    folders: tuple[Path, ...]
    """Of the labels."""
    out: Path
    states: Path
    measured: Measured
    tested: Measured
    """The labels of the test tasks that are reported."""
    choices: Choices
    deciders: tuple[Decider, ...] = ()
    """Those that have to be carried out."""
    bench: Bench | None = None

    @classmethod
    def of(
        cls,
        lineup: LineUp,
        folders: Sequence[str | Path],
        out: str | Path,
        *,
        bench: Bench | None = None,
        limit: int | None = None,
        states: str | Path | None = None,
    ) -> Contest:
        """Read the labels, choose by their validation tasks, and work out what is to be done.

        Args:
            lineup: Who takes part.
            folders: Of the labels.
            out: Where trials and the report go.
            bench: What deciders are carried out with; needed by some.
            limit: Most test tasks of a section.
            states: Folder of hidden states; in ``out`` if None.

        Raises:
            EvaluationError: If something is missing, or the pool is not the one of the labels.
            training.labels.LabelsError: If the labels can't be read.
        """
        measured = read_measured(folders)
        choices = choose(measured.labels)
        tested = reported(measured, limit)
        if not tested.tasks:
            raise EvaluationError("no labels of test tasks; collect some: `conductor labels`")
        deciders: tuple[Decider, ...] = ()
        if bench is not None:
            _check_same(bench, folders)
            deciders = tuple(carried_out(lineup, bench, tested, choices))
        elif lacking := lineup.lacking_a_pool():
            told = "have to be carried out" if len(lacking) > 1 else "has to be carried out"
            raise EvaluationError(f"{', '.join(lacking)} {told}; name the pool: --pool FILE")
        return cls(
            lineup,
            tuple(map(Path, folders)),
            Path(out),
            Path(states or Path(out) / "states"),
            measured,
            tested,
            choices,
            deciders,
            bench,
        )

    def waiting(self) -> dict[str, int]:
        """Count the trials that are not on file, by decider."""
        left = dict.fromkeys((each.name for each in self.deciders), 0)
        for decider, _, _ in waiting(self.deciders, self.tested.tasks, self.out):
            left[decider.name] += 1
        return left

    async def carry_out(
        self,
        *,
        concurrency: int = 8,
        dollars: Decimal | None = None,
        progress: Callable[[Progress], None] = lambda state: None,
    ) -> bool:
        """Carry out the trials that are not on file; as :func:`carry_out_trials`."""
        if self.bench is None or not self.deciders:
            return True
        return await carry_out_trials(
            self.deciders,
            self.tested.tasks,
            self.bench,
            self.out,
            concurrency=concurrency,
            dollars=dollars,
            progress=progress,
        )

    def evaluation(
        self,
        *,
        reference: str = BEST,
        command: Sequence[str] = (),
        progress: Callable[[str], None] = lambda stage: None,
    ) -> Evaluation:
        """Gather the outcomes and compare them.

        Args:
            reference: Whom the others are held against.
            command: The command line, for the record.
            progress: Is told what is under way.
        """
        found = from_labels(
            self.lineup, self.measured, self.tested, self.choices, self.states, progress
        )
        found += [outcomes_of(each, self.tested, self.out) for each in self.deciders]
        return evaluate(
            self.tested,
            found,
            self.choices,
            reference=reference,
            planning=[
                found
                for each in self.deciders
                for found in planning_of(each, self.tested.tasks, self.out)
            ],
            made_with=self._made_with(command),
            seed=self.lineup.seed,
        )

    def _made_with(self, command: Sequence[str]) -> dict[str, Any]:
        """Tell what it takes to make the evaluation again."""
        manifests = {folder.name: read_manifest(folder) for folder in self.folders}
        workers: dict[str, Any] = {}
        for manifest in manifests.values():
            workers |= manifest["workers"]
        tasks = json.dumps([task.id for task in self.tested.tasks])
        told: dict[str, Any] = {
            "labels": {name: each.get("digest", "unknown") for name, each in manifests.items()},
            "test tasks": digest_of(tasks),
            "workers": {
                name: workers[name].get("digest", "unknown") for name in self.measured.workers
            },
            "repeats": int(self.measured.labels.scores.shape[2]),
            "seeds": self.lineup.seeds,
            "seed": self.lineup.seed,
            "checkpoints": {
                name: [_head_digest(folder) for folder in folders]
                for name, folders in (self.lineup.routers or {}).items()
            },
            "carried out": {each.name: each.digest for each in self.deciders},
            "versions": {
                "conductor-lm": version("conductor-lm"),
                "numpy": np.__version__,
                "python": sys.version.split()[0],
            },
            "command": " ".join(command),
        }
        return {name: value for name, value in told.items() if value not in ({}, "")}


def _check_same(bench: Bench, folders: Sequence[str | Path]) -> None:
    """Refuse a pool whose workers are others than those that were measured.

    Raises:
        EvaluationError: If one is, or none was measured.
    """
    known: dict[str, str] = {}
    for folder in folders:
        for name, about in read_manifest(folder)["workers"].items():
            known[name] = about.get("digest", "")
    there = [worker for worker in bench.pool if worker.name in known]
    if not there:
        told = f"the labels are of {', '.join(known)}, the pool has {', '.join(bench.pool.names)}"
        raise EvaluationError(f"{told}; name the pool of the labels")
    for worker in there:
        if known[worker.name] and known[worker.name] != digest_of(worker.identity):
            raise EvaluationError(
                f"{worker.name} is not the worker that was measured: its model or settings are "
                f"others; name the pool of the labels, or collect labels of this one"
            )


def _head_digest(folder: Path) -> str:
    """SHA-256 of a router's matrix and settings."""
    digest = sha256()
    for name in (HEAD, SETTINGS):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]
