"""The commands that measure the workers and train the deciders.

What they do is in ``training``, which is imported when a command runs, and never before.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from grammar import visible

from .config import pool_path
from .options import JournalFile, NoJournal, Only, PoolOption, Quiet, Without, bounded, journal
from .terminal import FAILED, INTERRUPTED, fail, remark, say, tell

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime import Pool
    from training.labels import Order
    from training.lineup import Contest

train = typer.Typer(help="Train the deciders.", no_args_is_help=True)
router = typer.Typer(help="The router: who is in it.", no_args_is_help=True)

_LONG = "cold", "second", "grpo", "finish"
"""Stages of which each report is told."""
_TASKS, _BOUNDS = "Which tasks", "Bounds"


class SplitName(StrEnum):
    """What tasks may be used for."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="TASKS...",
        help="Families (`conductor tasks` lists them), [bold]all[/bold] of them, those that "
        "deciders are [bold]trained[/bold] on, the [bold]reserved[/bold] ones, "
        "[bold]chains[/bold], [bold]gym:NAME[/bold] of reasoning-gym, [bold]hub:NAME[/bold] of "
        "the Hugging Face hub, or JSONL files.",
    ),
]
SplitOption = Annotated[
    SplitName, typer.Option("--split", help="Of which split.", rich_help_panel=_TASKS)
]
Wording = Annotated[
    Literal["trained", "varied", "held-out", "all", "sealed"],
    typer.Option("--wording", help="Phrasings of our own families.", rich_help_panel=_TASKS),
]
Seed = Annotated[
    int,
    typer.Option("--seed", metavar="N", help="Chooses items and draws.", rich_help_panel=_TASKS),
]

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file.")]
Target = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FOLDER",
        help="Where what is trained goes. [dim]Else as the recipe says.[/dim]",
    ),
]
Draws = Annotated[
    int | None, typer.Option("--seed", metavar="N", min=0, help="Of all draws in training.")
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A key of the recipe, as grpo.updates=20; may come again.",
    ),
]


def tasks(
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TASKS...]", help="As for `conductor labels`; without, a list."),
    ] = None,
    count: Annotated[
        int, typer.Option("-n", "--limit", metavar="N", min=1, help="Of each source.")
    ] = 3,
    split: SplitOption = SplitName.TRAIN,
    wording: Wording = "trained",
    seed: Seed = 0,
    json: Annotated[
        bool, typer.Option("--json", help="Print them as JSONL, which `conductor labels` reads.")
    ] = False,
) -> None:
    """List the families of tasks, or show some of their tasks."""
    with _told():
        from training.families import CHAINS, FAMILIES, Chain, Family
        from training.tasks import Split, draw, gather, lines

        if not sources:
            table = _table("family", "what", "phrasings", "held out", "example")
            known: list[Family | Chain] = [*FAMILIES.values(), *CHAINS.values()]
            for each in known:
                kind = " then ".join(each.parts) if isinstance(each, Chain) else "family"
                kind += ", reserved" if each.reserved else ""
                shown = draw(each.name, 1, split=Split(split), seed=seed)[0].question
                table.add_row(
                    Text(each.name, "bold"),
                    kind,
                    str(len(each.phrasings)),
                    str(len(each.held_out)),
                    visible(" ".join(shown.split())),
                )
            Console(highlight=False).print(table)
            remark("deciders don't train on held-out phrasings, nor on reserved families at all")
            return
        found = gather(sources, count, split=Split(split), wording=wording, seed=seed)
        if json:
            say("\n".join(lines(found)))
            return
        for task in found:
            say(visible(task.question, "\n"))
            for part in task.parts:
                say(f"  {part.family}: {visible(part.subtask)}: {visible(part.answer)}")
            say(f"  {task.grader.kind}: {visible(task.answer)}\n")


def labels(
    sources: Sources,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the labels go, or go on.")
    ],
    pool: PoolOption = None,
    only: Only = None,
    without: Without = None,
    repeats: Annotated[
        int,
        typer.Option("--repeats", metavar="R", min=1, help="Draws of each worker on each task."),
    ] = 1,
    limit: Annotated[
        int,
        typer.Option(
            "--limit", "-n", metavar="N", min=1, help="Of each source.", rich_help_panel=_TASKS
        ),
    ] = 100,
    split: SplitOption = SplitName.TRAIN,
    wording: Wording = "trained",
    seed: Seed = 0,
    apart: Annotated[
        list[Path] | None,
        typer.Option(
            "--apart",
            metavar="FILE",
            help="An evaluation set (JSONL): what it asks is left out.",
            rich_help_panel=_TASKS,
        ),
    ] = None,
    question: Annotated[
        str, typer.Option("--question", help="Column, for hub:NAME.", rich_help_panel=_TASKS)
    ] = "question",
    answer: Annotated[
        str, typer.Option("--answer", help="Column, for hub:NAME.", rich_help_panel=_TASKS)
    ] = "answer",
    grader: Annotated[
        Literal["exact", "number", "maths"],
        typer.Option("--grader", help="For hub:NAME.", rich_help_panel=_TASKS),
    ] = "exact",
    dollars: Annotated[
        float | None,
        typer.Option(
            "--max-dollars", metavar="N", min=0, help="Most money.", rich_help_panel=_BOUNDS
        ),
    ] = None,
    calls: Annotated[
        int | None,
        typer.Option(
            "--max-calls", metavar="N", min=0, help="Most calls.", rich_help_panel=_BOUNDS
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--max-seconds",
            metavar="N",
            min=0,
            help="Begin no call later.",
            rich_help_panel=_BOUNDS,
        ),
    ] = None,
    concurrency: Annotated[
        int,
        typer.Option(
            "--concurrency",
            metavar="N",
            min=1,
            help="Most calls of a worker at once.",
            rich_help_panel=_BOUNDS,
        ),
    ] = 16,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", metavar="FILE", help="Replies. [dim]Else a file in FOLDER.[/dim]"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what it will take; call nobody.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Measure how right every worker is on every task; goes on where it was stopped.

    Exit code 1 if labels are missing in the end: the same command asks for those again.
    """
    import anyio

    from .config import load_pool

    with _told():
        from runtime import Budget, CallCache
        from training.labels import collect, order
        from training.tasks import Columns, Split

        team = load_pool(pool, remark)
        team = team.only(*only) if only else team
        team = team.without(*without) if without else team
        columns = Columns(question, answer, grader)
        given = _gathered(sources, limit, Split(split), wording, seed, columns, apart or [])
        about = {"sources": sources, "split": str(split), "wording": wording, "limit": limit}
        wanted = order(given, team, folder=out, repeats=repeats, seed=seed)
        if wanted.left_out:
            remark(f"left out, being no models: {', '.join(wanted.left_out)}")
        if dry_run:
            _print_dry_run(wanted, pool, team)
            return
        console = Console(stderr=True, quiet=quiet, highlight=False)
        kept = None if cache is None else CallCache(cache)
        try:
            with _measuring(wanted, console) as heard:
                anyio.run(
                    lambda: collect(
                        given,
                        team,
                        folder=out,
                        repeats=repeats,
                        seed=seed,
                        cache=kept,
                        budget=bounded(Budget(), dollars=dollars, calls=calls, seconds=seconds),
                        concurrency=concurrency,
                        progress=heard,
                        about=about,
                    )
                )
        except KeyboardInterrupt:
            tell("interrupted; the same command goes on")
            raise typer.Exit(INTERRUPTED) from None
        finally:
            if kept is not None:
                kept.close()
        _print_labels(out)


def eval(
    labels: Annotated[
        list[Path], typer.Argument(metavar="LABELS", help="Folders of labels; they add up.")
    ],
    router: Annotated[
        list[str] | None,
        typer.Option(
            "--router",
            metavar="NAME=FOLDER",
            help="A router; a folder of several is one router, a seed each.",
        ),
    ] = None,
    deciders: Annotated[
        str,
        typer.Option(
            "--deciders",
            metavar="A,B",
            help="Who takes part. [dim]Else all that the labels suffice for; "
            "`--deciders list` lists them.[/dim]",
        ),
    ] = "",
    pool: Annotated[
        Path | None,
        typer.Option(
            "--pool",
            metavar="FILE",
            help="Pool file, or orchestra, for deciders that have to be carried out.",
            parser=pool_path,
        ),
    ] = None,
    compare_to: Annotated[
        str, typer.Option("--compare-to", metavar="NAME", help="Whom the others are held against.")
    ] = "best-single",
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", min=1, help="Most tasks of a section."),
    ] = None,
    seeds: Annotated[
        int, typer.Option("--seeds", metavar="N", min=1, help="Of whatever is drawn.")
    ] = 5,
    conductor: Annotated[
        list[str] | None,
        typer.Option(
            "--conductor",
            metavar="NAME=WHAT",
            help="A Conductor model: a worker of the pool, a pool file whose planner it is, or "
            "the folder of a trained one, or of several that were trained alike.",
        ),
    ] = None,
    rounds: Annotated[
        list[int] | None,
        typer.Option(
            "--rounds",
            metavar="N",
            min=1,
            help="Most rounds of planning; several times for a comparison.",
        ),
    ] = None,
    calls: Annotated[
        list[int] | None,
        typer.Option(
            "--calls",
            metavar="N",
            min=1,
            help="How often self-consistency asks, to compare at an equal budget; several times "
            "for several. [dim]Else as often as there are workers.[/dim]",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the report goes.")
    ] = Path("evaluation"),
    states: Annotated[
        Path | None,
        typer.Option(
            "--states", metavar="FOLDER", help="Hidden states on file. [dim]Else in --out.[/dim]"
        ),
    ] = None,
    at_once: Annotated[
        int, typer.Option("--at-once", metavar="N", min=1, help="Most trials at the same time.")
    ] = 8,
    dollars: Annotated[
        float | None,
        typer.Option("--dollars", metavar="N", min=0, help="Stop when so much is spent."),
    ] = None,
    journal_file: JournalFile = None,
    no_journal: NoJournal = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and what it takes.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """Compare deciders on tasks that nothing was trained on: scores, costs, intervals.

    Exit code 1 if the money ran out before the end; the same command goes on.
    """
    from contextlib import ExitStack
    from dataclasses import replace
    from shlex import join

    from runtime import CallCache

    from .config import load_pool
    from .planner import Planner

    with _told(), ExitStack() as stack:
        from training.evaluate import EvaluationError
        from training.lineup import (
            FROM_LABELS,
            NAMES,
            Contest,
            LineUp,
            checkpoints,
            planners_of,
        )
        from training.report import markdown, to_json, write_report
        from training.trials import Bench

        if deciders == "list":
            for name, about in NAMES.items():
                carried = "" if name in FROM_LABELS else " (carried out: --pool)"
                say(f"{name:<20} {about}{carried}")
            return
        names = [each.strip() for each in deciders.split(",")] if deciders else [*FROM_LABELS]
        routers = dict(each.partition("=")[::2] for each in router or ())
        lineup = LineUp(
            tuple(names),
            {name: checkpoints(folder or name) for name, folder in routers.items()},
            seeds=seeds,
        )
        bench, conductors = None, dict[str, tuple[Planner, ...]]()
        if pool is not None:
            out.mkdir(parents=True, exist_ok=True)
            cache = stack.enter_context(CallCache(out / "calls.db"))
            bench = Bench(load_pool(pool), cache, journal(journal_file, no_journal))
            conductors = {
                name: planners_of(what or name, bench.pool)
                for name, _, what in (each.partition("=") for each in conductor or ())
            }
        elif conductor:
            raise EvaluationError(f"{conductor[0]} has to be carried out; name the pool: --pool")
        lineup = replace(
            lineup, conductors=conductors, rounds=tuple(rounds or (1,)), calls=tuple(calls or ())
        )
        contest = Contest.of(lineup, labels, out, bench=bench, limit=limit, states=states)
        if dry_run:
            _print_contest(contest)
            return
        whole = _carry_out(contest, at_once, dollars, quiet=quiet)
        found = contest.evaluation(
            reference=compare_to,
            command=[join(["conductor", *sys.argv[1:]])],
            progress=(lambda stage: None) if quiet else remark,
        )
        files = write_report(found, out)
        say(to_json(found) if json else markdown(found), end="\n" if json else "")
        remark(f"wrote {', '.join(file.name for file in files)} to {out}")
        if not whole:
            fail("the money ran out before all was tried; the same command goes on", FAILED)


@train.command("router")
def train_router(
    recipe: RecipeFile,
    labels: Annotated[
        list[Path] | None,
        typer.Option(
            "--labels", metavar="FOLDER", help="Labels to learn from, not those of the recipe."
        ),
    ] = None,
    output: Target = None,
    stage: Annotated[
        list[str] | None, typer.Option("--stage", metavar="sft|svf|es", help="Only these stages.")
    ] = None,
    seed: Draws = None,
    change: Changes = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an evolution that was stopped.")
    ] = False,
    anew: Annotated[
        bool, typer.Option("--anew", help="Forget an evolution that was stopped.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show recipe, counts and time; train nothing.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train a router by a recipe: read the questions, SFT on soft targets, evolution.

    What is given here wins over the recipe. Ctrl-C stops after what is under way and saves it.
    """
    with _told():
        from training import router_train

        found = router_train.read_recipe(
            recipe,
            change or (),
            labels=labels or None,
            output=output,
            stages=stage or None,
            seed=seed,
        )
        encoder = router_train.encoder_of(found)
        if dry_run:
            _print_plan(found.model_dump(mode="json"), router_train.plan_of(found, encoder))
            return
        if anew:
            router_train.forget(found)
        with _stopping() as stop, _stages(Console(stderr=True, quiet=quiet)) as heard:
            trained = router_train.train_router(
                found, encoder=encoder, resume=resume, progress=heard, stop=stop
            )
        _print_trained(trained.summary)
        say(str(found.output))
        if not trained.finished:
            tell("stopped; the same command with --resume goes on")
            raise typer.Exit(INTERRUPTED)


@train.command("conductor")
def train_conductor(
    recipe: RecipeFile,
    output: Target = None,
    seed: Draws = None,
    change: Changes = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a training that was stopped or killed.")
    ] = False,
    anew: Annotated[
        bool, typer.Option("--anew", help="Forget a training that was stopped.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show recipe, roster and counts; train nothing.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train a Conductor by a recipe: a cold start on the form of plans, GRPO, maybe a last stage.

    What is given here wins over the recipe. Ctrl-C and SIGTERM stop after the update under way and
    save it.
    """
    with _told():
        from training import grpo

        found = grpo.read_recipe(recipe, change or (), output=output, seed=seed)
        if dry_run:
            _print_recipe(found.model_dump(mode="json"))
            say("\n" + "\n".join(grpo.outline(found)))
            return
        if anew:
            grpo.forget(found)
        with _stopping() as stop, _stages(Console(stderr=True, quiet=quiet)) as heard:
            trained = grpo.train(found, resume=resume, progress=heard, stop=stop)
        if trained.last:
            table = _table("mean of the last ten updates", "")
            for name, value in trained.last.items():
                table.add_row(name, f"{value:.3f}")
            Console(highlight=False).print(table)
        say(str(trained.folder))
        if not trained.finished:
            tell(f"stopped after {trained.updates} updates; the same command with --resume goes on")
            raise typer.Exit(INTERRUPTED)


@router.command("add-worker")
def add_worker(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A worker of the pool.")],
    folder: Annotated[
        Path, typer.Option("--router", metavar="FOLDER", help="The router that it joins.")
    ],
    labels: Annotated[
        list[Path],
        typer.Option(
            "--labels",
            metavar="FOLDER",
            help="Labels of the others, of both splits; may come again. The newcomer is asked the "
            "same, and its labels go there.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the new router goes.")
    ],
    pool: PoolOption = None,
    anchor: Annotated[
        float,
        typer.Option("--anchor", metavar="X", min=0, help="How firmly old decisions are held."),
    ] = 0.1,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache", metavar="FILE", help="Replies. [dim]Else one in each folder.[/dim]"
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Teach a router one worker more: ask it what the others were asked, train its row."""
    from .config import load_pool
    from .router import Router

    with _told():
        from training import labels as on_file
        from training.recipes import Told
        from training.router_sft import Joining
        from training.router_train import add_worker as joined_by
        from training.router_train import merged

        console = Console(stderr=True, quiet=quiet)
        team = load_pool(pool, remark).only(name)
        known = Router.load(folder).on(team)
        for each in labels:
            _ask_newcomer(each, team, cache, console)
        with _stages(console) as stages:
            taught, found = joined_by(
                known,
                merged([on_file.read(each) for each in labels]),
                name,
                folder / "states",
                Joining(anchor=anchor),
                progress=lambda done, total: stages(Told("read", done, total)),
            )
        taught.save(output)
        say(
            f"{name} gets {found.share:.1%} of the validation tasks; {found.moved:.1%} moved among "
            f"the others; reward {found.before:.3f} before, {found.after:.3f} with it"
        )
        say(str(output))


COMMANDS: tuple[Callable[..., None], ...] = (tasks, labels, eval)
GROUPS = {"train": train, "router": router}
"""Groups of commands; one is offered as soon as it has a command."""


# --- parts of the commands ---------------------------------------------------------------------


def _ask_newcomer(folder: Path, team: Pool, cache: Path | None, console: Console) -> None:
    """Ask a newcomer what the others of a folder of labels were asked, on the same terms."""
    from contextlib import ExitStack

    import anyio

    from runtime import CallCache
    from training import labels as on_file

    manifest = on_file.read_manifest(folder)
    tasks = on_file.read(folder).tasks
    repeats, seed = int(manifest["repeats"]), int(manifest.get("seed", 0))
    wanted = on_file.order(tasks, team, folder=folder, repeats=repeats, seed=seed)
    with ExitStack() as stack:
        heard = stack.enter_context(_measuring(wanted, console))
        calls = stack.enter_context(CallCache(cache)) if cache else None
        anyio.run(
            lambda: on_file.collect(
                tasks,
                team,
                folder=folder,
                repeats=repeats,
                seed=seed,
                cache=calls,
                progress=heard,
            )
        )


@contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Have Ctrl-C and SIGTERM ask for a stop; a second Ctrl-C stops at once."""
    import signal

    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        tell("stopping after what is under way; again to stop at once")

    before = {each: signal.signal(each, ask) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def _stages(console: Console) -> Iterator[Callable[[Any], None]]:
    """Show how far training is: a bar a stage in a terminal, its end elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    names = {
        "read": "reading questions",
        "sft": "SFT",
        "svf": "bending",
        "es": "evolution",
        "cold": "cold start",
        "second": "second rounds",
        "grpo": "GRPO",
        "finish": "last stage",
    }
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    live = Progress(
        *columns,
        TimeElapsedColumn(),
        TextColumn("{task.fields[text]}"),
        console=console,
        disable=console.quiet or not console.is_terminal,
    )
    bars: dict[str, Any] = {}

    def heard(told: Any) -> None:
        if told.stage not in bars:
            bars[told.stage] = live.add_task(names[told.stage], total=told.total, text="")
        live.update(bars[told.stage], completed=told.done, total=told.total, text=told.text)
        end = told.done == told.total
        # Where no bar can be shown, long stages tell now and then that they go on.
        if live.disable and not console.quiet and (end or (told.stage in _LONG and told.text)):
            of = "" if end else f" of {told.total:,}"
            remark(f"{names[told.stage]}: {told.done:,}{of} {told.text}".rstrip())

    with live:
        yield heard


def _print_recipe(recipe: dict[str, Any]) -> None:
    """Print a recipe as TOML."""
    import json

    def lines(table: dict[str, Any], prefix: str = "") -> Iterator[str]:
        tables = {key: value for key, value in table.items() if isinstance(value, dict)}
        for key, value in table.items():
            if value is not None and key not in tables:
                yield f"{key} = {json.dumps(value, ensure_ascii=False)}"
        for key, value in tables.items():
            yield f"\n[{prefix}{key}]"
            yield from lines(value, f"{prefix}{key}.")

    say("\n".join(lines(recipe)))


def _print_plan(recipe: dict[str, Any], plan: Any) -> None:
    """Print a recipe, and what it will take."""
    _print_recipe(recipe)
    say(f"\nworkers: {', '.join(plan.workers)}")
    say(
        f"tasks: {plan.training:,} to train on ({plan.ties:,} of them ties), "
        f"{plan.validation:,} to validate, {plan.shown:,} for pictures only"
    )
    say(f"questions to read: {plan.unread:,} of {plan.questions:,}; heads to fit: {plan.fits:,}")
    if plan.episodes:
        heads = f"{plan.population} heads of {plan.numbers:,} numbers"
        say(f"evolution: {heads}, {plan.episodes:,} episodes")
    say(f"about {plan.seconds:,.0f} s, beside runs of models. Nothing was trained.")


def _print_trained(summary: Any) -> None:
    table = _table("on validation", "picked", "expected")
    table.add_row("best single worker", f"{summary['best_single']:.3f}", "")
    if "sft" in summary:
        row = summary["sft"]
        table.add_row("SFT", f"{row['picked']:.3f}", f"{row['expected']:.3f}")
    row = summary["validation"]
    table.add_row(
        Text(f"saved ({summary['best']})", "bold"), f"{row['picked']:.3f}", f"{row['expected']:.3f}"
    )
    table.add_row("oracle", f"{summary['oracle']:.3f}", "")
    Console(highlight=False).print(table)
    took = summary["seconds"]
    remark(f"seconds: reading {took['read']}, SFT {took['sft']}, evolution {took['es']}")


@contextmanager
def _told() -> Iterator[None]:
    """End the command with what is wrong, where that is no bug."""
    try:
        from training.evaluate import EvaluationError
        from training.graders import GraderError
        from training.labels import LabelsError
        from training.recipes import RecipeError
        from training.router_evolve import SearchError
        from training.states import StatesError
        from training.tasks import TaskError
    except ModuleNotFoundError as error:
        fail(f"{error.name} is not installed: pip install 'conductor-lm[train]'")
    try:
        yield
    except (
        EvaluationError,
        GraderError,
        LabelsError,
        RecipeError,
        SearchError,
        StatesError,
        TaskError,
    ) as error:
        fail(str(error))


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in titles:
        table.add_column(title, overflow="fold")
    return table


def _gathered(
    sources: Sequence[str],
    limit: int,
    split: Any,
    wording: Literal["trained", "varied", "held-out", "all", "sealed"],
    seed: int,
    columns: Any,
    apart: Sequence[Path],
) -> list[Any]:
    """Take the tasks; of a training split without what an evaluation set asks."""
    from training.tasks import Split, gather, held_back, read_jsonl, without

    given = gather(sources, limit, split=split, wording=wording, seed=seed, columns=columns)
    if split is Split.TEST:
        return given
    evaluation = [each for file in apart for each in read_jsonl(file)]
    evaluation += held_back(sources, limit, split=split, seed=seed, columns=columns)
    kept = without(given, evaluation)
    if gone := len(given) - len(kept):
        are = "task" if gone == 1 else "tasks"
        remark(f"left out {gone} {are} that an evaluation set asks too, or that came twice")
    if not kept:
        fail("no task is left")
    return kept


@contextmanager
def _measuring(wanted: Order, console: Console) -> Iterator[Callable[[Any], None]]:
    from .measuring import Measuring

    every = Counter(row.worker for row in wanted.rows)
    every.update(asking.worker for asking in wanted.askings)
    names = [name for name in wanted.manifest["workers"] if every[name]]
    with Measuring(console, {name: every[name] for name in names}) as view:
        for row in wanted.rows:
            view.take_up(row.worker, row.score or 0.0)
        yield lambda row: view.heard(
            row.worker, row.score, row.paid, priced=row.dollars is not None or not row.calls
        )


def _print_dry_run(wanted: Order, pool: Path | None, team: Pool) -> None:
    from decimal import Decimal

    from grammar import Plan
    from runtime import PoolFile

    from .config import pool_file
    from .estimate import estimate

    file = pool or pool_file()
    known = PoolFile.read(file) if file else team
    table = _table("worker", "labels there", "calls", "tokens in", "tokens out", "dollars")
    there = Counter(row.worker for row in wanted.rows)
    counts, spent = Counter[str](), Decimal(0)
    for name in wanted.manifest["workers"]:
        asked = [each.task.question for each in wanted.askings if each.worker == name]
        took = [estimate(Plan.of([q], [name], [[]]), known, query=q) for q in asked]
        tokens_in = sum(each.input_tokens.most for each in took)
        out = sum(each.output_tokens.most for each in took)
        dear = sum((each.dollars.most for each in took), Decimal(0))
        cost = "?" if any(each.unpriced for each in took) else f"{dear:,.4f}"
        row = (f"{there[name]:,}", f"{len(asked):,}", f"{tokens_in:,}", f"{out:,}", cost)
        table.add_row(Text(name, "bold"), *row)
        counts.update({"calls": len(asked), "in": tokens_in, "out": out})
        spent += dear
    sums = (f"{counts[each]:,}" for each in ("calls", "in", "out"))
    table.add_row(Text("total", "bold"), "", *sums, f"{spent:,.4f}")
    families, repeats = len(wanted.manifest["families"]), wanted.manifest["repeats"]
    of = f"{families} famil{'y' if families == 1 else 'ies'}"
    often = "asked once" if repeats == 1 else f"asked {repeats} times at most"
    say(f"{wanted.manifest['tasks']:,} tasks of {of}, {often}\n")
    Console(highlight=False).print(table)
    say("\nTokens out and dollars at most: every reply at its limit. Nobody was called.")


def _print_labels(out: Path) -> None:
    from training.labels import read_manifest
    from training.matrix import write_report

    try:
        import matplotlib

        pictures = bool(matplotlib)
    except ModuleNotFoundError:
        pictures = False
        remark("no picture: matplotlib is not installed (pip install 'conductor-lm[train]')")
    summary = write_report(out, pictures=pictures)
    table = _table("family", "tasks", *summary.workers)
    for family, rates in summary.rates.items():
        best = max((rate.interval.value for rate in rates.values() if rate.tasks), default=0.0)
        cells = [
            Text(f"{rate.interval.value:.0%}", "bold" if rate.interval.value == best else "")
            if rate.tasks
            else Text("?", "yellow")
            for rate in rates.values()
        ]
        count = max((rate.tasks for rate in rates.values()), default=0)
        table.add_row(Text(visible(family), "bold"), f"{count:,}", *cells)
    Console(highlight=False).print(table)
    manifest = read_manifest(out)
    if summary.best:
        best_mean, top = summary.best_mean.value, summary.oracle.value
        say(
            f"\nbest worker {summary.best} {best_mean:.0%}, oracle {top:.0%}, "
            f"all tie on {summary.tied.value:.0%}, none right on {summary.solved_by_none.value:.0%}"
        )
    remark(
        f"{manifest['labels']:,} labels, {manifest['calls']:,} calls, ${manifest['dollars']}"
        f" · report in {out / 'report.md'}"
    )
    for worker, kinds in manifest["failed"].items():
        told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        remark(f"{worker}: calls that failed: {told}", "yellow")
    for worker, why in manifest["given_up"].items():
        remark(f"{worker} was given up: {why}", "yellow")
    if manifest["stopped"]:
        remark(f"stopped: {manifest['stopped']}", "yellow")
    if manifest["labels"] < manifest["wanted"]:
        missing = manifest["wanted"] - manifest["labels"]
        are, them = ("label is", "it") if missing == 1 else ("labels are", "them")
        tell(f"error: {missing:,} {are} missing; the same command asks for {them} again")
        raise typer.Exit(FAILED)


def _print_contest(contest: Contest) -> None:
    """Say what an evaluation would do."""
    from collections import Counter

    from training.evaluate import section_of
    from training.report import table

    counts = Counter(str(section_of(task)) for task in contest.tested.tasks)
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    best = contest.choices.best
    say(f"{len(contest.tested.tasks)} test tasks ({told}), {len(contest.tested.workers)} workers")
    say(f"best single worker: {best}, chosen on {contest.choices.tasks} validation tasks")
    left = contest.waiting()
    rows = [
        [each.name, each.about, str(left[each.name]), f"{left[each.name] * each.calls:.0f}"]
        for each in contest.deciders
    ]
    if rows:
        say("\n" + table(["carried out", "what", "trials left", "calls about"], rows, left=2))
    else:
        say("no calls: all follows from the labels")


def _carry_out(contest: Contest, at_once: int, dollars: float | None, *, quiet: bool) -> bool:
    """Carry out what has to be, telling how far it has come."""
    from decimal import Decimal
    from functools import partial

    import anyio
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True, quiet=quiet)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    todo = sum(contest.waiting().values())
    if not todo:
        return True
    with Bar(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("trials", total=todo)
        carry = partial(
            contest.carry_out,
            concurrency=at_once,
            dollars=None if dollars is None else Decimal(str(dollars)),
            progress=lambda state: bar.update(
                task, completed=state.done, description=f"{state.decider} · ${state.dollars:.4f}"
            ),
        )
        try:
            return anyio.run(carry)
        except KeyboardInterrupt:
            tell("interrupted; the same command goes on")
            raise typer.Exit(INTERRUPTED) from None
