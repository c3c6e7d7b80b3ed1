"""Samples many completions of a few prompts, each beginning computed once.

Samples of one prompt stay one row of the batch as long as they say the same, which for plans is
most of the time: eight plans differ first where a worker is named. A draw depends on nothing but
the seed of its sample, so a training that goes on after a kill draws what it would have drawn.
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


def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[Sequence[Sequence[int]]],
    *,
    ends: frozenset[int],
    most_tokens: int,
    temperature: float = 1.0,
    allow: Sequence[Allow] = (),
) -> list[list[Sample]]:
    """Sample completions.

    Args:
        model: A causal LM on the CPU.
        prompts: Token ids, at least two each.
        seeds: For each prompt a seed (of whole numbers) for each sample.
        ends: Tokens that end a completion.
        most_tokens: Longest completion.
        temperature: What logits are divided by.
        allow: For each prompt what may follow; anything if empty.

    Returns:
        For each prompt its samples, in the order of the seeds.
    """
    import torch

    from runtime.decode import padded, roomy_cache

    chance = [
        [np.random.default_rng(list(each)).random(most_tokens) for each in of] for of in seeds
    ]
    samples = [[Sample([], []) for _ in of] for of in seeds]
    # A row of the batch: of which prompt, and which of its samples still say the same.
    rows = [(prompt, list(range(len(of)))) for prompt, of in enumerate(seeds) if of]
    ids, mask, positions = padded([prompts[prompt] for prompt, _ in rows])
    cache = roomy_cache()
    with torch.inference_mode():
        for step in range(most_tokens):
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
                    drawn = chance[prompt][member][step]
                    token = int(first[at])
                    # The likeliest token comes first in the distribution function, so that the
                    # rest of it, over the whole vocabulary, is seldom needed.
                    if drawn >= likeliest[at]:
                        if others is None:
                            rest = (logits[at] - totals[at]).double().exp()
                            rest[token] = 0.0
                            others = rest.cumsum(-1).numpy()
                        share = (drawn - likeliest[at]) / (1 - likeliest[at])
                        token = int(np.searchsorted(others, share * others[-1], side="right"))
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
