"""Which pool and which journal are used where none is named, and the pool that needs no
configuration."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from runtime import (
    LocalModel,
    LocalWorker,
    PlannerSettings,
    Pool,
    PoolError,
    PoolFile,
    Run,
    Sampling,
)

POOL_FILE = "conductor.toml"
EMBEDDED_MODEL = "smollm2-135m-instruct"
EMBEDDED = "embedded"
"""Where the embedded pool is from, in the record of a run; and the embedded router."""
EMBEDDED_ROUTER = Path(__file__).parent / "heads" / EMBEDDED
"""Folder of the router that comes with the package."""
_READS = 2048
"""Tokens of a prompt that the embedded workers read: some seven seconds on a core."""
ORCHESTRA = EMBEDDED_ROUTER / "orchestra.toml"
"""The pool that it was trained on: the packaged model and specialists made of it. Wherever a pool
file is named, its name is ``orchestra``."""
EMBEDDED_CONDUCTOR = EMBEDDED_ROUTER / "conductor"
"""Folder of the Conductor that comes with the package, trained on the same players."""
TRAINED = "conductor.json"
"""File by which the folder of a trained Conductor is known: model, adapter, roster, recipe."""


def pool_file(env: Mapping[str, str] = os.environ) -> Path | None:
    """Find the pool file: ``$CONDUCTOR_POOL``, ``conductor.toml`` here, or the user's own one."""
    import platformdirs

    named = env.get("CONDUCTOR_POOL")
    if named:
        return Path(named)
    for candidate in (Path(POOL_FILE), platformdirs.user_config_path("conductor") / POOL_FILE):
        if candidate.is_file():
            return candidate
    return None


def journal_file(env: Mapping[str, str] = os.environ) -> Path | None:
    """The journal of the command: ``$CONDUCTOR_JOURNAL``, or the user's own one.

    Returns:
        The file; None if ``$CONDUCTOR_JOURNAL`` is "off".
    """
    import platformdirs

    named = env.get("CONDUCTOR_JOURNAL")
    if named:
        return None if named == "off" else Path(named)
    return platformdirs.user_state_path("conductor") / "journal.db"


@lru_cache(maxsize=4)
def local_model(name: str = EMBEDDED_MODEL) -> LocalModel:
    """One copy of the weights, however many embedded pools and routers there are."""
    return LocalModel(name)


def embedded_pool(progress: Callable[[str], None] = lambda stage: None) -> Pool:
    """The pool that needs no keys: the orchestra, led by the Conductor that was trained on it.

    Players answer as in the pool ``orchestra``, but for the one that knows facts and writes
    sentences: it may write more of them.

    Args:
        progress: Is told about the download and conversion, the first time.
    """
    model = local_model()
    model.progress = progress
    players = [
        LocalWorker(
            each.name,
            model,
            adapter=each.adapter,
            sampling=each.sampling if each.adapter else replace(each.sampling, max_tokens=120),
            card=each.card,
            tags=("local",),
            input_tokens=_READS,
            tools="first",
        )
        for each in Pool.load(ORCHESTRA)
        if isinstance(each, LocalWorker)
    ]
    return conducted(Pool(players, source=EMBEDDED), EMBEDDED_CONDUCTOR)


def load_pool(
    path: str | Path | None = None,
    progress: Callable[[str], None] = lambda stage: None,
    *,
    orchestra: bool = False,
) -> Pool:
    """Load the named pool file, or the one that is found, or else the embedded pool.

    Args:
        path: The pool file; ``orchestra`` for the one that comes with the package.
        progress: Is told about long preparations.
        orchestra: Take that one if no file is named.

    Raises:
        PoolError: If the file is wrong.
    """
    chosen = path or ("orchestra" if orchestra else pool_file())
    if not chosen:
        return embedded_pool(progress)
    pool = _with_conductor(Pool.load(pool_path(chosen)))
    for worker in pool:
        if isinstance(worker, LocalWorker):
            worker.model.progress = progress
    return pool


def _with_conductor(pool: Pool) -> Pool:
    """Let the Conductor that comes with the package write the plans of its own players."""
    if pool.source != str(ORCHESTRA.absolute()):
        return pool
    return conducted(pool, EMBEDDED_CONDUCTOR)


def conducted(pool: Pool, folder: Path) -> Pool:
    """Let a trained Conductor write a pool's plans.

    Args:
        pool: Workers of its roster.
        folder: What `conductor train conductor` made.

    Raises:
        PoolError: If there is no trained Conductor.
    """
    try:
        about = json.loads((folder / TRAINED).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PoolError(f"{folder}: no trained Conductor: {error}") from error
    shared = (
        w.model for w in pool if isinstance(w, LocalWorker) and w.model.name == about["model"]
    )
    planner = LocalWorker(
        "conductor",
        next(shared, None) or about["model"],
        adapter=folder if about["adapter"] else "",
        card=f"trained to lead {', '.join(about['roster'])}",
        input_tokens=_READS,
    )
    planning = PlannerSettings(
        most_steps=about["most_steps"],
        roster=tuple(about["roster"]),
        sampling=Sampling(temperature=0.0, max_tokens=256),
    )
    return Pool(
        pool, planner=planner, planning=planning, settings=pool.settings, source=pool.source
    )


def described_pool(path: Path | None = None) -> PoolFile | Pool:
    """What can be told of a pool without keys: its file, or the pool itself where the package
    brings it.

    Args:
        path: The pool file; the embedded pool if None.

    Raises:
        PoolError: If the file is wrong.
    """
    if path is None:
        return embedded_pool()
    return load_pool(path) if path.absolute() == ORCHESTRA.absolute() else PoolFile.read(path)


def pool_path(path: str | Path) -> Path:
    """The pool file of that name: ``orchestra`` is the one that comes with the package."""
    return ORCHESTRA if str(path) == "orchestra" and not Path(path).exists() else Path(path)


def pool_of(
    run: Run,
    path: str | Path | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> Pool:
    """Load the pool that a run used, or the named pool file in its place.

    Raises:
        PoolError: If the run's pool was made in Python, or the file is wrong or gone.
    """
    if path is None and run.pool == EMBEDDED:
        return embedded_pool(progress)
    if path is None and not run.pool:
        told = "its pool was made in Python; name a pool file with --pool, or use resume() there"
        raise PoolError(f"run {run.id}: {told}")
    return _with_conductor(Pool.load(pool_path(path or run.pool)))
