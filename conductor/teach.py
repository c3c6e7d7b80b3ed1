"""The commands that measure the workers and train the deciders.

What they do is in ``training``, which is imported when a command runs, and never before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

train = typer.Typer(help="Train the deciders.", no_args_is_help=True)
router = typer.Typer(help="The router: who is in it.", no_args_is_help=True)

COMMANDS: tuple[Callable[..., None], ...] = ()
GROUPS = {"train": train, "router": router}
"""Groups of commands; one is offered as soon as it has a command."""
