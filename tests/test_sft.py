"""SFT of an adapter: what is stopped or killed goes on as if nothing had been."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("peft")

from runtime import Message
from training.sft import UNDER_WAY, Lesson, SFTRecipe, adapt

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

RECIPE = SFTRecipe(rank=2, rate=1e-2)
UPDATES = 13


def stream(until: int = UPDATES) -> Callable[[int], Sequence[Lesson]]:
    """Lessons that come one after the other, whichever is asked for; a kill after so many."""
    numbers = iter(range(until))

    def lessons(update: int) -> Sequence[Lesson]:
        number = next(numbers, None)
        if number is None:
            raise KeyboardInterrupt
        assert number == update
        return [((Message("user", f"What is {number} + 1?"),), str(number + 1))]

    return lessons


def train(tiny: Path, folder: Path, recipe: SFTRecipe = RECIPE, **options: object) -> list[float]:
    lessons = options.pop("lessons", None) or stream()
    return adapt(str(tiny), lessons, UPDATES, folder, recipe, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(tiny_folder, folder)


def files(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


def test_a_stop_keeps_what_is_there_and_it_goes_on_as_if_there_had_been_none(
    tiny_folder: Path, whole: tuple[Path, list[float]], tmp_path: Path
) -> None:
    folder, losses = whole
    asked = iter([False, False, True])

    first = train(tiny_folder, tmp_path, stop=lambda: next(asked))

    assert first == losses[:3]
    assert files(tmp_path) == {UNDER_WAY}
    assert train(tiny_folder, tmp_path) == losses
    assert files(tmp_path) == files(folder)
    one, other = (each / "adapter_model.safetensors" for each in (tmp_path, folder))
    assert one.read_bytes() == other.read_bytes()


def test_a_kill_costs_ten_updates_at_most(
    tiny_folder: Path, whole: tuple[Path, list[float]], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tiny_folder, tmp_path, lessons=stream(12))
    assert files(tmp_path) == {UNDER_WAY}
    asked = []

    def stop() -> bool:
        asked.append(True)
        return False

    assert train(tiny_folder, tmp_path, stop=stop) == whole[1]
    assert len(asked) == UPDATES - 10 - 1, "not after the last"


def test_another_training_in_the_folder_begins_anew(
    tiny_folder: Path, whole: tuple[Path, list[float]], tmp_path: Path
) -> None:
    folder, losses = whole
    train(tiny_folder, tmp_path, stop=lambda: True)
    slower = train(tiny_folder, tmp_path, replace(RECIPE, rate=1e-3))
    assert slower[0] == losses[0] and slower[2:] != losses[2:]

    train(tiny_folder, tmp_path, begin=tmp_path, stop=lambda: True)
    assert train(tiny_folder, tmp_path, begin=folder)[0] < losses[0]
    assert UNDER_WAY not in files(tmp_path)
