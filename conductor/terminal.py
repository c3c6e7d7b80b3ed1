"""How the command speaks: exit codes, remarks and errors, files that it reads and writes.

What is asked for goes to standard output; all else to standard error, in lines that nothing a model
wrote can act on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from grammar import PlanError, visible

FAILED, WRONG, INTERRUPTED = 1, 2, 130
"""There is no answer, or a file has problems; the command or a file is wrong; Ctrl-C."""


def read(file: Path) -> str:
    """The text of a file, or of standard input for ``-``; ends the command if it can't be read."""
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except OSError as error:
        fail(f"{file}: {error.strerror or 'can not be read'}")
    except UnicodeDecodeError:
        fail(f"{file}: not a text in UTF-8")


def write(file: Path, data: str | bytes) -> None:
    """Write a file, or a text to standard output for ``-``; ends the command if it can't."""
    if str(file) == "-" and isinstance(data, str):
        sys.stdout.write(data)
        return
    try:
        file.write_bytes(data.encode() if isinstance(data, str) else data)
    except OSError as error:
        fail(f"{file}: {error.strerror}")


@contextmanager
def located(file: Path) -> Iterator[None]:
    """Show the problems of a plan file with the file's name, and end the command."""
    try:
        yield
    except PlanError as error:
        tell(error.render(str(file)))
        raise typer.Exit(WRONG) from error


def say(text: str, end: str = "\n") -> None:
    """What was asked for; at once, so that it keeps its place among the remarks."""
    print(text, end=end, flush=True)


def print_json(value: object) -> None:
    """Print plain values; what JSON does not know, as text."""
    import json

    say(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def remark(text: str, style: str = "dim") -> None:
    """A line beside the result."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(visible(text), style=style))


def tell(text: str) -> None:
    """What went wrong."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(escape(visible(text, "\n")))


def fail(text: str, code: int = WRONG) -> NoReturn:
    """Say what went wrong and end the command."""
    tell(f"error: {text}")
    raise typer.Exit(code)
