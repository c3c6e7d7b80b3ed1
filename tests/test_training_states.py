"""Hidden states are read once and kept; a frame of them folds back into weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from training.graders import Exact
from training.states import StatesError, frame_of, states_of
from training.tasks import Task, task


class Encoder:
    """Tells a text's length and first letter; counts what it reads, and may be killed."""

    def __init__(self, digest: str = "d" * 64, killed_after: int = 10**9) -> None:
        self.digest = digest
        self.left = killed_after
        self.read: list[str] = []

    def states(self, conversations: Sequence[str]) -> np.ndarray:
        if self.left < len(conversations):
            raise KeyboardInterrupt
        self.left -= len(conversations)
        self.read += conversations
        return np.array([[len(text), ord(text[0])] for text in conversations], np.float32)


def tasks(*questions: str) -> list[Task]:
    return [task("letters", question, Exact(("x",))) for question in questions]


def test_states_come_in_the_order_of_the_tasks(tmp_path: Path) -> None:
    """Whatever order they are read in; equal questions are read once."""
    encoder = Encoder()

    states = states_of(tasks("ccc", "a", "bb", "a"), encoder, tmp_path, batch=2)

    assert states.tolist() == [[3, 99], [1, 97], [2, 98], [1, 97]]
    assert states.dtype == np.float32
    assert sorted(encoder.read) == ["a", "bb", "ccc"]


def test_a_second_reading_takes_all_from_the_disk(tmp_path: Path) -> None:
    """And only the new questions are read."""
    states_of(tasks("ccc", "a"), Encoder(), tmp_path)
    again = Encoder()

    states = states_of(tasks("a", "dddd", "ccc"), again, tmp_path)

    assert again.read == ["dddd"]
    assert states[:, 0].tolist() == [1, 4, 3]


def test_a_kill_loses_the_batch_under_way_and_no_other(tmp_path: Path) -> None:
    """Batches are kept as they end."""
    asked = tasks(*(letter * 3 for letter in "abcdefgh"))
    with pytest.raises(KeyboardInterrupt):
        states_of(asked, Encoder(killed_after=5), tmp_path, batch=2)
    again, told = Encoder(), list[tuple[int, int]]()

    states_of(
        asked, again, tmp_path, batch=2, progress=lambda done, total: told.append((done, total))
    )

    assert len(again.read) == 4
    assert told == [(4, 8), (6, 8), (8, 8)]


def test_another_encoder_has_states_of_its_own(tmp_path: Path) -> None:
    """Its digest covers weights, template and layer."""
    states_of(tasks("a"), Encoder("1" * 64), tmp_path)
    other = Encoder("2" * 64)

    states_of(tasks("a"), other, tmp_path)

    assert other.read == ["a"]


def test_a_spoilt_file_is_named(tmp_path: Path) -> None:
    """With what to do about it."""
    states_of(tasks("a"), Encoder(), tmp_path)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(b"spoilt")

    with pytest.raises(StatesError, match=rf"{file.name}.*delete it"):
        states_of(tasks("a"), Encoder(), tmp_path)


@pytest.mark.parametrize("components", [0, 3])
def test_a_frame_folds_into_weights_without_a_bias(components: int) -> None:
    """The folded head gives the very logits that the head in the frame gives."""
    random = np.random.default_rng(0)
    states = (random.normal(size=(50, 8)) * np.arange(1, 9) + 5).astype(np.float32)
    frame = frame_of(states, components)
    theta = random.normal(size=(4, components or 8)).astype(np.float32)

    assert np.allclose(states @ frame.head(theta).T, frame.seen(states) @ theta.T, atol=1e-3)


def test_a_frame_of_few_directions_is_white_and_blind_to_the_mean() -> None:
    """Variance 1 in each direction; moving every state along their mean changes nothing."""
    random = np.random.default_rng(1)
    states = (random.normal(size=(200, 8)) * np.arange(1, 9) + 30).astype(np.float32)

    frame = frame_of(states, 4)

    seen = frame.seen(states)
    assert np.allclose(np.cov(seen.T), np.eye(4), atol=0.05)
    assert np.allclose(frame.seen(states.mean(axis=0, keepdims=True)), 0, atol=0.05)


def test_a_frame_has_no_more_directions_than_the_states() -> None:
    """Three states span two directions round their mean, one of which may be the mean's."""
    states = np.random.default_rng(2).normal(size=(3, 8)).astype(np.float32)

    assert frame_of(states, 32).basis.shape[1] <= 2
