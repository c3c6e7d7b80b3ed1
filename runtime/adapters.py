"""LoRA adapters in PEFT's form, row by row of a batch: one model in memory is many workers.

Imported in the engine thread only: it brings torch.

An adapter adds ``scale * x A^T B^T`` (Hu et al., arXiv 2106.09685, eq. 3) to what a linear layer
gives. Here the A matrices of all adapters in a batch stand below one another and the B matrices
side by side, so that two products serve every row, and a mask between them takes from each row
what is not its own. For a handful of adapters of rank 8 that costs less than gathering each row's
matrices: the sum of the ranks is small beside the width of a layer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .errors import ModelError
from .local import ADAPTER_WEIGHTS

SETTINGS = "adapter_config.json"

_PREFIX = "base_model.model."
"""What PEFT puts before the names of a model's layers."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "modules_to_save": (None, []),
    "use_dora": (None, False),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "fan_in_fan_out": (None, False),
}
"""Settings of PEFT that change the arithmetic, and their values that don't."""


class Pair(NamedTuple):
    """The two matrices that are added to one linear layer."""

    down: torch.Tensor  # (R, in)
    up: torch.Tensor  # (out, R); the scale is in it


class Adapters:
    """The adapters of one model.

    Args:
        model: The model; its linear layers get a hook each once an adapter names them.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._linears = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
        self._hooked: set[str] = set()
        self._loaded: dict[str, dict[str, Pair]] = {}
        self._stacked: tuple[str, ...] = ()
        """Which adapters ``_stack`` holds, in the order of its ranks."""
        self._stack: dict[str, Pair] = {}
        self._mask: torch.Tensor | None = None  # (B, 1, R)

    def load(self, folder: str) -> None:
        """Read an adapter, once.

        Raises:
            ModelError: If it can't be read, is no plain LoRA, or does not fit the model.
        """
        if folder and folder not in self._loaded:
            self._loaded[folder] = self._fitting(folder, read(folder))
            for name in self._loaded[folder].keys() - self._hooked:
                self._linears[name].register_forward_hook(partial(self._add, name))
                self._hooked.add(name)

    def use(self, rows: Sequence[str]) -> None:
        """Give each row of the batches to come its adapter, by folder; ``""`` is none.

        All must be loaded.
        """
        wanted = tuple(sorted(set(rows) - {""}))
        if not wanted:
            self._mask = None
            return
        if wanted != self._stacked:
            self._stack, self._stacked = self._stack_up(wanted), wanted
        ranks = [self._rank(folder) for folder in wanted]
        mask = torch.zeros(len(rows), 1, sum(ranks))
        for row, folder in enumerate(rows):
            if folder:
                at = wanted.index(folder)
                mask[row, :, sum(ranks[:at]) : sum(ranks[: at + 1])] = 1
        like = next(iter(self._stack.values())).down
        self._mask = mask.to(like)

    @contextmanager
    def none(self) -> Iterator[None]:
        """Leave the model as it is for a while; then the rows have their adapters again."""
        mask, self._mask = self._mask, None
        try:
            yield
        finally:
            self._mask = mask

    def _add(
        self, name: str, module: torch.nn.Module, given: tuple[torch.Tensor], out: torch.Tensor
    ) -> torch.Tensor | None:
        if self._mask is None or name not in self._stack:
            return None
        down, up = self._stack[name]
        linear = torch.nn.functional.linear
        return out + linear(linear(given[0], down) * self._mask, up)  # (B, T, out)

    def _rank(self, folder: str) -> int:
        return max(pair.down.shape[0] for pair in self._loaded[folder].values())

    def _stack_up(self, folders: Sequence[str]) -> dict[str, Pair]:
        """Join the matrices of several adapters; zeros where one leaves a layer as it is."""
        stack: dict[str, Pair] = {}
        for name in {name for folder in folders for name in self._loaded[folder]}:
            weight = self._linears[name].weight
            downs, ups = [], []
            for folder in folders:
                rank = self._rank(folder)
                pair = self._loaded[folder].get(name) or Pair(
                    weight.new_zeros(rank, weight.shape[1]),
                    weight.new_zeros(weight.shape[0], rank),
                )
                downs.append(pair.down)
                ups.append(pair.up)
            stack[name] = Pair(torch.cat(downs), torch.cat(ups, dim=1))
        return stack

    def _fitting(self, folder: str, pairs: dict[str, Pair]) -> dict[str, Pair]:
        """Bring an adapter to the model's device and type, if every layer of it is there."""
        fitting: dict[str, Pair] = {}
        for name, (down, up) in pairs.items():
            linear = self._linears.get(name)
            if linear is None:
                raise ModelError(
                    f"the adapter {folder} changes {name}, which is no linear layer of the model; "
                    "it was made for another one"
                )
            shape = (up.shape[0], down.shape[1])
            if shape != tuple(linear.weight.shape):
                raise ModelError(
                    f"the adapter {folder} changes {name} of shape {shape}; the model's has "
                    f"{tuple(linear.weight.shape)}: it was made for another model"
                )
            fitting[name] = Pair(down.to(linear.weight), up.to(linear.weight))
        return fitting


def read(folder: str) -> dict[str, Pair]:
    """Read an adapter's matrices by the name of the layer they change.

    Raises:
        ModelError: If it can't be read or is no plain LoRA.
    """
    path = Path(folder)
    try:
        settings = json.loads((path / SETTINGS).read_text(encoding="utf-8"))
        tensors = load_file(path / ADAPTER_WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"no adapter in {folder}: {error}; it needs {SETTINGS} and {ADAPTER_WEIGHTS}, "
            "as PEFT saves them"
        ) from error
    if settings.get("peft_type") != "LORA":
        raise ModelError(
            f"the adapter {folder} is {settings.get('peft_type')}; only LORA is served"
        )
    for name, neutral in _NEUTRAL.items():
        if name in settings and settings[name] not in neutral:
            raise ModelError(
                f"the adapter {folder} has {name} = {settings[name]!r}, which is not served; "
                "merge it into its model instead"
            )
    down_rank = settings["r"]
    root = math.sqrt(down_rank) if settings.get("use_rslora") else down_rank
    scale = settings["lora_alpha"] / root
    names = {
        name.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
        for name in tensors
        if name.endswith(".lora_A.weight")
    }
    pairs = {
        name: Pair(
            tensors[f"{_PREFIX}{name}.lora_A.weight"],
            tensors[f"{_PREFIX}{name}.lora_B.weight"] * scale,
        )
        for name in names
        if f"{_PREFIX}{name}.lora_B.weight" in tensors
    }
    if not pairs or 2 * len(pairs) != len(tensors):
        raise ModelError(f"the adapter {folder} has other weights than pairs of A and B")
    return pairs
