"""The commands that open the team to clients: ``serve``, and ``keys``."""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    JournalFile,
    NoJournal,
    PlannerOption,
    PoolOption,
    RouterOption,
    SendTelemetry,
    journal,
    sending,
)
from .terminal import fail, remark, say

if TYPE_CHECKING:
    import socket
    from types import FrameType

    from .server import Keyring, Server

keys = typer.Typer(help="Keys of clients, for `conductor serve`.", no_args_is_help=True)

KeysFile = Annotated[
    Path | None,
    typer.Option(
        "--keys",
        metavar="FILE",
        help="Who may ask. [dim]Else $CONDUCTOR_KEYS, else your own file if there is one.[/dim]",
    ),
]
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_WRITE_S = 5
"""After the drain limit: for what was stopped to tell its clients."""


def serve(
    context: typer.Context,
    pool: PoolOption = None,
    planner: PlannerOption = None,
    router: RouterOption = None,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="0: any free one.")
    ] = 8000,
    keys_file: KeysFile = None,
    requests: Annotated[
        int, typer.Option("--requests", metavar="N", min=1, help="Most at the same time.")
    ] = 2048,
    drain: Annotated[
        float,
        typer.Option(
            "--drain",
            metavar="S",
            min=0,
            help="Longest wait for requests under way when it is to stop.",
        ),
    ] = 25.0,
    journal_file: JournalFile = None,
    no_journal: NoJournal = False,
    telemetry: SendTelemetry = False,
) -> None:
    """Answer as one model behind an OpenAI-compatible API, at http://HOST:PORT/v1."""
    with _installed():
        import uvicorn

        from .server import Keyring, Limits, Server, read_keys
    from .config import load_pool
    from .orchestrator import Conductor

    file = keys_file or keys_of_user()
    ring: Keyring | None = None
    if keys_file is not None or file.exists():
        ring = Keyring(read_keys(file), spent=file.with_name(file.name + ".spent"))
    local = host in _LOOPBACK
    if not local and (ring is None or not ring.accounts):
        told = f"{host} can be reached by others, and there are no keys"
        fail(f"{told}; make one with `conductor keys add NAME`, or listen on 127.0.0.1")
    record = journal(journal_file, no_journal)
    team = Conductor(
        load_pool(pool, remark),
        planner=planner,
        router=router,
        journal=record,
        telemetry=context.with_resource(sending()) if telemetry else None,
    )
    server = Server(
        team,
        keys=ring,
        limits=Limits(requests=requests),
        hosts=_LOOPBACK if local else (),
    )
    config = uvicorn.Config(
        server,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_WRITE_S,
        timeout_keep_alive=75,
        h11_max_incomplete_event_size=64 * 1024,
    )
    listening = _listening(server, config, drain)
    settle_heap()
    with nullcontext() if record is None else record:
        listening.run()
    if listening.stopped:
        told = f"stopped {listening.stopped} requests that were under way"
        hint = "" if record is None else "; `conductor resume` goes on with their runs"
        fail(f"{told}{hint}", code=1)


def settle_heap() -> None:
    """Have Python look for garbage less often, and never in what is loaded by now.

    What a request leaves behind goes with its last reference; the search is a tenth of the CPU.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@contextmanager
def _installed() -> Iterator[None]:
    """Say what to install if an import fails for want of the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("starlette", "uvicorn"):
            raise
        fail("this needs what is not installed; pip install 'conductor-lm[serve]'")


def _listening(server: Server, config: Any, drain_s: float) -> Any:
    """A uvicorn server that says where it listens, and drains before it closes.

    At the first signal it is ready for no more, which whoever asks is told as long as requests are
    under way; at their end, after ``drain_s`` or at a second signal it stops.
    """
    import uvicorn

    class Listening(uvicorn.Server):
        stopped = 0
        """Requests that were still under way."""
        _until = math.inf

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            for each in self.servers:
                host, port = each.sockets[0].getsockname()[:2]
                shown = f"[{host}]" if ":" in host else host
                remark(f"serving at http://{shown}:{port}/v1 until Ctrl-C")

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            # Not the inherited one: it has the process die of the signal after a clean end.
            now = time.monotonic()
            self._until = now if self.should_exit else now + drain_s
            self.should_exit = server.traffic.draining = True

        async def on_tick(self, counter: int) -> bool:
            over = await super().on_tick(counter)
            if over and server.traffic.open and time.monotonic() < self._until:
                return False
            if over:
                self.stopped = server.traffic.stop()
            return over

    return Listening(config)


def keys_of_user() -> Path:
    """The file of keys where none is named: ``$CONDUCTOR_KEYS``, or the user's own one."""
    import platformdirs

    named = os.environ.get("CONDUCTOR_KEYS")
    return Path(named) if named else platformdirs.user_config_path("conductor") / "keys.toml"


@keys.command("add")
def add(
    name: Annotated[str, typer.Argument(help="For whom it is.")],
    file: KeysFile = None,
) -> None:
    """Make a key and print it, this once; the file keeps its hash only."""
    with _installed():
        from .server import add_key

    path = file or keys_of_user()
    say(add_key(path, name))
    remark(f"kept as {name} in {path}; what it may do can be written there")


@keys.command("list")
def list_keys(file: KeysFile = None) -> None:
    """Show the names of the keys, and what is said of them."""
    with _installed():
        from .server import read_keys

    for key in read_keys(file or keys_of_user()):
        bounds = {
            "models": ", ".join(key.models),
            "only": ", ".join(key.only),
            "without": ", ".join(key.without),
            "tags": ", ".join(key.tags),
            "without tags": ", ".join(key.without_tags),
            "dollars": key.dollars,
            "requests a minute": key.requests_per_minute,
            "tokens a minute": key.tokens_per_minute,
            "at a time": key.concurrency,
        }
        said = [f"{what} {value}" for what, value in bounds.items() if value]
        say(f"{key.name}  {'; '.join(said) or 'no bounds'}")
