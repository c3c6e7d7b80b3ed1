"""Hidden states of tasks, kept on disk: the backbone is frozen, so each question is read once.

A folder holds a folder for each encoder (its digest covers weights, template and layer), and in it
a safetensors file for every batch that was read, with the digests of its questions. A batch is
there whole or not at all, so a kill costs the batch that was under way.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .tasks import Task

Array = NDArray[np.float32]


class StatesError(Exception):
    """Kept states can't be read or don't fit; the message names the file and the remedy."""


class Encodes(Protocol):
    """What reads questions; see :class:`conductor.router.Encoder`."""

    @property
    def digest(self) -> str:
        """Tells states of one encoder from those of another."""

    def states(self, conversations: Sequence[str], /) -> np.ndarray:
        """Read questions: (N, D) float32."""


def states_of(
    tasks: Sequence[Task],
    encoder: Encodes,
    folder: str | Path,
    *,
    batch: int = 32,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Array:
    """Give the hidden state of each task's question; what was read before is taken from the disk.

    Args:
        tasks: N of them; equal questions are read once.
        encoder: What reads them.
        folder: Where states are kept; made if need be.
        batch: Questions read, and kept, at a time.
        progress: Is told how many of the questions are there, and of how many.

    Returns:
        (N, D) float32.

    Raises:
        StatesError: If a kept file can't be read.
    """
    kept = Path(folder) / encoder.digest[:16]
    found = _read(kept)
    keys = [_key(task.question) for task in tasks]
    waiting = {key: task.question for key, task in zip(keys, tasks, strict=True)}
    total = len(waiting)
    for key in found.keys() & waiting.keys():
        del waiting[key]
    progress(total - len(waiting), total)
    # By length, so that the questions of a batch need little padding.
    ordered = sorted(waiting.items(), key=lambda item: (len(item[1]), item[0]))
    for at in range(0, len(ordered), batch):
        part = ordered[at : at + batch]
        read = np.asarray(encoder.states([question for _, question in part]), np.float32)
        names = [key for key, _ in part]
        _write(kept, names, read)
        found.update(zip(names, read, strict=True))
        progress(total - len(ordered) + at + len(part), total)
    if not keys:
        return np.zeros((0, 0), np.float32)
    return np.stack([found[key] for key in keys])


def _key(question: str) -> str:
    return sha256(question.encode()).hexdigest()[:16]


def _write(folder: Path, keys: list[str], states: Array) -> None:
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    name = sha256(" ".join(keys).encode()).hexdigest()[:16]
    fresh = folder / f".{name}.new"
    save_file({"states": states}, fresh, {"questions": json.dumps(keys)})
    os.replace(fresh, folder / f"{name}.safetensors")


def _read(folder: Path) -> dict[str, Array]:
    from safetensors import SafetensorError, safe_open

    found: dict[str, Array] = {}
    for file in sorted(folder.glob("*.safetensors")):
        opened: Any
        try:
            with safe_open(file, framework="numpy") as opened:
                keys = json.loads(opened.metadata()["questions"])
                states = opened.get_tensor("states")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise StatesError(f"{file}: can't be read: {error}; delete it") from error
        found.update(zip(keys, states, strict=True))
    return found
