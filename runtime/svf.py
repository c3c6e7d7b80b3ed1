"""Singular-value scaling: a few hundred numbers bend a matrix, its directions stay.

A matrix W = U diag(s) V^T becomes U diag(s (1 + d)) V^T, times sum(s) / sum(s (1 + d)) so that the
singular mass is kept (the SVF of TRINITY, arXiv 2512.04695). Offsets d = 0 leave it as it is.

Only the singular vectors of the shorter side are needed: with V, it is W V diag(1 + d) V^T. They
come from the Gram matrix in float64, which for an embedding of 150,000 x 1,024 takes seconds where
a full decomposition takes minutes.

Imported in the engine thread only: it brings torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .errors import ModelError
from .models import cache_dir, model_digest

if TYPE_CHECKING:
    import numpy as np

    from .local import Offsets

_ROWS = 8192
"""Rows of a Gram matrix that are summed at once: float64 copies of all would not fit."""
_WORTH_KEEPING = 16_000_000
"""Entries of a matrix whose decomposition is kept on disk: it takes longer than reading it."""


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """The singular values of a matrix, and the singular vectors of its shorter side."""

    values: torch.Tensor  # (n,), descending
    basis: torch.Tensor  # (n, n), a column a vector

    @classmethod
    def of(cls, weight: torch.Tensor) -> Spectrum:
        """Decompose a matrix (out, in)."""
        tall = weight if weight.shape[0] >= weight.shape[1] else weight.T
        size = tall.shape[1]
        gram = torch.zeros(size, size, dtype=torch.float64, device=weight.device)
        for start in range(0, tall.shape[0], _ROWS):
            rows = tall[start : start + _ROWS].double()
            gram += rows.T @ rows
        squares, basis = torch.linalg.eigh(gram)
        return cls(squares.clamp(min=0).sqrt().flip(0).float(), basis.flip(1).float())

    def scale(self, weight: torch.Tensor, offsets: torch.Tensor) -> tuple[torch.Tensor, Spectrum]:
        """Scale the singular values of the matrix that this is the spectrum of.

        Returns:
            The new matrix, and its spectrum.

        Raises:
            ModelError: If offsets take all the mass away.
        """
        factors = 1 + offsets
        scaled = self.values * factors
        mass = scaled.sum()
        if not mass > 0:
            raise ModelError("the singular-value offsets leave no mass; they must be above -1")
        factors = factors * (self.values.sum() / mass)
        scaled = (self.values * factors).abs()
        order = scaled.argsort(descending=True)
        basis = self.basis.to(weight.dtype)
        by = factors.to(weight.dtype)
        if weight.shape[0] >= weight.shape[1]:
            made = ((weight @ basis) * by) @ basis.T
        else:
            made = basis @ (by[:, None] * (basis.T @ weight))
        return made, Spectrum(scaled[order], self.basis[:, order])


class Scaler:
    """Puts scaled matrices in the place of a model's own, for a while.

    Args:
        model: The model.
        folder: Its name, under which large decompositions are kept.
    """

    def __init__(self, model: torch.nn.Module, folder: str) -> None:
        self._weights = dict(model.named_parameters(remove_duplicate=False))
        self._folder = folder
        self._spectra: dict[str, Spectrum] = {}
        self._made: tuple[Offsets, dict[str, torch.Tensor]] | None = None
        """What was made last, by the name of the matrix."""

    @contextmanager
    def scaled(self, offsets: Offsets | None) -> Iterator[None]:
        """Use the matrices of these offsets inside the block.

        Raises:
            ModelError: If a matrix is not there, or has another number of singular values.
        """
        if offsets is None:
            yield
            return
        if self._made is None or self._made[0] is not offsets:
            self._made = (offsets, self._make(offsets.values))
        own = {name: self._weights[name].data for name in self._made[1]}
        try:
            for name, made in self._made[1].items():
                self._weights[name].data = made
            yield
        finally:
            for name, weight in own.items():
                self._weights[name].data = weight

    def _make(self, offsets: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """Scale the matrices in their order in the model.

        Where an embedding is the LM head too, it is one matrix with two sets of offsets, which
        apply one after the other, as they do in code that changes matrices in place.
        """
        made: dict[int, tuple[str, torch.Tensor, Spectrum]] = {}
        for name in offsets:
            self._check(name, offsets[name])
        for name, weight in self._weights.items():
            if name not in offsets:
                continue
            first, matrix, spectrum = made.get(id(weight)) or (
                name,
                weight.data,
                self._spectrum(name),
            )
            by = torch.from_numpy(offsets[name]).float().to(weight.device)
            made[id(weight)] = (first, *spectrum.scale(matrix, by))
        return {name: matrix for name, matrix, _ in made.values()}

    def _check(self, name: str, offsets: np.ndarray) -> None:
        weight = self._weights.get(name)
        if weight is None or weight.ndim != 2:
            raise ModelError(f"there are offsets for {name}, which is no matrix of the model")
        if offsets.shape != (min(weight.shape),):
            told = f"{name} has {min(weight.shape)} singular values"
            raise ModelError(f"{told}, but the offsets have the shape {offsets.shape}")

    def _spectrum(self, name: str) -> Spectrum:
        if name not in self._spectra:
            weight = self._weights[name].data
            large = weight.numel() >= _WORTH_KEEPING
            self._spectra[name] = self._kept(name, weight) if large else Spectrum.of(weight)
        return self._spectra[name]

    def _kept(self, name: str, weight: torch.Tensor) -> Spectrum:
        """Look a large decomposition up, or make and keep it."""
        digest = model_digest(self._folder)
        key = sha256(f"{digest} {name} {weight.dtype}".encode()).hexdigest()
        file = cache_dir() / "spectra" / f"{key}.safetensors"
        try:
            found = load_file(file)
            return Spectrum(found["values"].to(weight.device), found["basis"].to(weight.device))
        except (OSError, SafetensorError):
            spectrum = Spectrum.of(weight)
        if digest:
            file.parent.mkdir(parents=True, exist_ok=True)
            scratch = file.with_suffix(".new")
            tensors = {"values": spectrum.values, "basis": spectrum.basis}
            save_file({key: each.contiguous().cpu() for key, each in tensors.items()}, scratch)
            scratch.replace(file)
        return spectrum
