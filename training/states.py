"""Hidden states of tasks, kept on disk: the backbone is frozen, so each question is read once.

A folder holds a folder for each encoder (its digest covers weights, template and layer), and in it
a safetensors file for every batch that was read, with the digests of its questions. A batch is
there whole or not at all, so a kill costs the batch that was under way.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


def unread(tasks: Sequence[Task], encoder: Encodes, folder: str | Path) -> int:
    """Count the different questions that :func:`states_of` would have to read; raises likewise."""
    found = _read(Path(folder) / encoder.digest[:16])
    return len({_key(task.question) for task in tasks} - found.keys())


@dataclass(frozen=True, eq=False)
class Frame:
    """A linear map of states in which heads are trained; it folds back into their weights."""

    basis: Array
    """(D, K): a state x (D,) is seen as x @ basis."""

    def seen(self, states: Array) -> Array:
        """Map states (N, D) to (N, K)."""
        return states @ self.basis

    def head(self, theta: Array) -> Array:
        """Give the weights (..., D) that do to states what theta (..., K) does to seen ones."""
        return theta @ self.basis.T


def frame_of(states: Array, components: int) -> Frame:
    """Make the frame of states (N, D).

    Args:
        states: Of training tasks.
        components: How many directions are kept: those in which the states differ most once each
            coordinate is divided by its spread, each scaled to variance 1. The direction of the
            mean state is left out, which takes the part out of the logits that is the same for all
            questions: centring, without a bias. 0 keeps every coordinate and only divides it by
            its spread.
    """
    spread = states.std(axis=0)
    # Coordinates that hardly move are not blown up.
    spread = np.maximum(spread, max(float(np.median(spread)) / 100, 1e-6))
    if not components:
        return Frame(np.diag(1 / spread).astype(np.float32))
    scaled = (states / spread).astype(np.float64)
    mean = scaled.mean(axis=0)
    along = mean / max(float(np.linalg.norm(mean)), 1e-12)
    level = scaled - mean
    level -= np.outer(level @ along, along)
    values, vectors = _eigen(level.T @ level / len(states))
    real = int((values > values.max(initial=0.0) * 1e-8).sum())
    kept = min(components, real)
    directions, sizes = vectors.T[::-1][:kept], np.sqrt(values[::-1][:kept])
    return Frame(((directions / sizes[:, None]) / spread).T.astype(np.float32))


def _eigen(symmetric: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues, rising, and vectors, in columns; on one thread.

    numpy's would use all cores, whose threads wait for each other in turns: on a busy machine that
    took 100 times as long.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        values, vectors = torch.linalg.eigh(torch.from_numpy(symmetric))
    finally:
        torch.set_num_threads(threads)
    return values.numpy(), vectors.numpy()


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
