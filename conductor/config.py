"""Which pool is used where none is named, and the pool that needs no configuration."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

from runtime import LocalModel, LocalWorker, PlannerSettings, Pool, Sampling

POOL_FILE = "conductor.toml"
EMBEDDED_MODEL = "smollm2-135m-instruct"


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


@lru_cache(maxsize=1)
def _embedded_model() -> LocalModel:
    """One copy of the weights, however many embedded pools there are."""
    return LocalModel(EMBEDDED_MODEL)


def embedded_pool(progress: Callable[[str], None] = lambda stage: None) -> Pool:
    """The pool that needs no keys: one packaged small model, three ways of decoding it.

    These are settings of one model and not three models of different skill: enough to see plans
    written and carried out for real, not to profit from them. The Conductor model is the same one,
    untrained, so it decodes under the plan grammar.

    Args:
        progress: Is told about the download and conversion, the first time.
    """
    model = _embedded_model()
    model.progress = progress
    workers = [
        LocalWorker(
            "brief",
            model,
            sampling=Sampling(temperature=0.0, max_tokens=80),
            system="Answer in one or two sentences.",
            card="answers in a sentence or two",
            tags=("local",),
        ),
        LocalWorker(
            "creative",
            model,
            sampling=Sampling(temperature=0.7, top_p=0.9, max_tokens=120),
            card="varies its answers",
            tags=("local",),
        ),
        LocalWorker(
            "steady",
            model,
            sampling=Sampling(temperature=0.0, max_tokens=120),
            card="always gives its most likely answer",
            tags=("local",),
        ),
    ]
    planner = LocalWorker("conductor", model, card="the packaged model, untrained")
    planning = PlannerSettings(
        most_steps=3,
        least_steps=2,
        subtask_characters=100,
        sampling=Sampling(temperature=0.0, max_tokens=256),
    )
    return Pool(workers, planner=planner, planning=planning)


def load_pool(
    path: str | Path | None = None, progress: Callable[[str], None] = lambda stage: None
) -> Pool:
    """Load the named pool file, or the one that is found, or else the embedded pool.

    Raises:
        PoolError: If the file is wrong.
    """
    chosen = path or pool_file()
    return Pool.load(chosen) if chosen else embedded_pool(progress)
