"""Samples many completions of a few prompts, each beginning computed once.

Samples of one prompt stay one row of the batch as long as they say the same, which for plans is
most of the time: eight plans differ first where a worker is named.

They are drawn by arithmetic sampling (Vilnis et al., ICML 2023): the completions of a prompt divide
the numbers from 0 to 1 among them, by their probability, and samples are evenly spaced numbers with
one offset for all, drawn by chance. So each is distributed as the model says,
and together they are as close to its distribution as so few can be: of n samples, n p or one more
or less are a completion of probability p, or begin in a way that has it.

Which they are follows from the seed of their prompt, so a training that goes on after a kill draws
what it would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Sample:
    """A completion as tokens."""

    ids: list[int]
    """With the token that ended it, unless it was cut."""
    logps: list[float]
    """Log-probability of each, in nats, at the temperature that it was drawn with."""


Allow = Callable[[Sequence[int]], "np.ndarray | None"]
"""Which tokens may follow these of a completion, (V,) of bool; None: any."""


_BELOW_ONE = float(np.nextafter(1.0, 0.0))


@dataclass(slots=True)
class _Code:
    """The number from 0 to 1 that a sample is."""

    at: float
    """Where it is in the part of all numbers that the tokens so far have, from 0 to below 1."""
    part: float
    """How wide that is, as a multiple of the distance to the next sample's number."""
    dice: np.random.Generator
    """Once nobody else can be in the part, its sample goes on by these: rounding would count for
    more with each token otherwise."""

    def narrow(self, low: float, width: float) -> None:
        """Go into a part of the part."""
        self.at = min(max((self.at - low) / width, 0.0), _BELOW_ONE)
        self.part *= width
        if self.part < 1:
            self.at = self.dice.random()


def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[Sequence[int]],
    *,
    count: int,
    ends: frozenset[int],
    most_tokens: int,
    temperature: float = 1.0,
    allow: Sequence[Allow] = (),
) -> list[list[Sample]]:
    """Sample completions.

    Args:
        model: A causal LM on the CPU.
        prompts: Token ids, at least two each.
        seeds: For each prompt a seed, of whole numbers.
        count: How many samples of each prompt.
        ends: Tokens that end a completion.
        most_tokens: Longest completion.
        temperature: What logits are divided by.
        allow: For each prompt what may follow; anything if empty.

    Returns:
        For each prompt its samples.
    """
    import torch

    from runtime.decode import padded, roomy_cache

    codes = [_codes(seed, count) for seed in seeds]
    samples = [[Sample([], []) for _ in range(count)] for _ in seeds]
    # A row of the batch: of which prompt, and which of its samples still say the same.
    rows = [(prompt, list(range(count))) for prompt in range(len(prompts))]
    ids, mask, positions = padded([prompts[prompt] for prompt, _ in rows])
    cache = roomy_cache()
    with torch.inference_mode():
        for _ in range(most_tokens):
            out = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logits = out.logits[:, -1].float() / temperature  # (B, V)
            for at, (prompt, members) in enumerate(rows):
                flags = allow[prompt](samples[prompt][members[0]].ids) if allow else None
                if flags is not None:
                    logits[at].masked_fill_(~torch.from_numpy(flags), float("-inf"))
            totals = torch.logsumexp(logits, -1)
            tops, first = logits.max(-1)
            likeliest = (tops - totals).exp().tolist()
            going: list[tuple[int, list[int]]] = []
            parents: list[int] = []
            tokens: list[int] = []
            for at, (prompt, members) in enumerate(rows):
                parted: dict[int, list[int]] = {}
                others: np.ndarray | None = None
                for member in members:
                    code, token = codes[prompt][member], int(first[at])
                    low, high = 0.0, likeliest[at]
                    # The likeliest token comes first in the distribution function, so that the
                    # rest of it, over the whole vocabulary, is seldom needed.
                    if code.at >= high:
                        if others is None:
                            rest = (logits[at] - totals[at]).double().exp()
                            rest[token] = 0.0
                            others = rest.cumsum(-1).numpy()
                            others = high + (1 - high) * others / others[-1]
                        below = min(code.at, np.nextafter(others[-1], 0.0))
                        token = int(np.searchsorted(others, below, side="right"))
                        low, high = max(high, others[token - 1] if token else 0.0), others[token]
                    code.narrow(low, high - low)
                    parted.setdefault(token, []).append(member)
                for token, same in parted.items():
                    logp = float(logits[at, token] - totals[at])
                    for member in same:
                        samples[prompt][member].ids.append(token)
                        samples[prompt][member].logps.append(logp)
                    if token not in ends:
                        going.append((prompt, same))
                        parents.append(at)
                        tokens.append(token)
            if not going:
                break
            if parents != list(range(len(rows))):
                index = torch.tensor(parents)
                cache.batch_select_indices(index)
                mask, positions = mask[index], positions[index]
            rows = going
            ids = torch.tensor(tokens)[:, None]
            mask = torch.cat([mask, torch.ones((len(rows), 1), dtype=mask.dtype)], -1)
            positions = positions[:, -1:] + 1
    return samples


def _codes(seed: Sequence[int], count: int) -> list[_Code]:
    """Numbers from 0 to 1 at equal distances, all put off by the same chance."""
    dice = np.random.default_rng(list(seed))
    offset = dice.random()
    return [
        _Code((number + offset) / count, count, own) for number, own in enumerate(dice.spawn(count))
    ]
