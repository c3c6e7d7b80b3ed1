"""Tokens that many rows begin with are computed once: rows are laid out as a trie.

The completions of one question share its prompt, and most of a plan's form; all prompts share the
chat template's beginning. A node of the trie is a token after all tokens before it, sees the nodes
above it and no others, and so has the hidden state that it has in its row. What is computed is the
same, at about a quarter of the cost for groups of eight plans.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch


_ROWS = 64
"""Rows of logits that are normalised together."""


class Trie(NamedTuple):
    """Rows of token ids, what they begin with in common once. N nodes, parents before children."""

    ids: torch.Tensor  # (1, N)
    positions: torch.Tensor  # (1, N): depth
    mask: torch.Tensor  # (1, 1, N, N): whether a node sees another
    nodes: list[list[int]]
    """For each row the node of each of its tokens."""


def trie_of(rows: Sequence[Sequence[int]]) -> Trie:
    """Lay rows out as a trie."""
    import torch

    ids: list[int] = []
    positions: list[int] = []
    parents: list[int] = []
    children: dict[tuple[int, int], int] = {}
    nodes: list[list[int]] = []
    for row in rows:
        at, path = -1, []
        for depth, token in enumerate(row):
            child = children.setdefault((at, token), len(ids))
            if child == len(ids):
                ids.append(token)
                positions.append(depth)
                parents.append(at)
            at = child
            path.append(at)
        nodes.append(path)
    mask = torch.eye(len(ids), dtype=torch.bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            mask[node] |= mask[parent]
    return Trie(torch.tensor([ids]), torch.tensor([positions]), mask[None, None], nodes)


def states_of(model: Any, trie: Trie) -> torch.Tensor:
    """The final hidden state of every node, (N, D).

    Args:
        model: A causal LM with its body in ``model.model``, on the CPU.
    """
    read = model.model(
        input_ids=trie.ids,
        position_ids=trie.positions,
        attention_mask=trie.mask,
        use_cache=False,
    )
    states: torch.Tensor = read.last_hidden_state[0]
    return states


def scores_of(
    model: Any,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    temperature: float = 1.0,
    *,
    most_nodes: int = 768,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Log-probabilities of completions' tokens, and entropies where they are chosen, in nats.

    Args:
        model: A causal LM with its body in ``model.model`` and its head in ``model.lm_head``.
        prompts: Token ids before each completion; at least one each.
        completions: As many. Each distinct token after a distinct beginning is computed once.
        temperature: What logits are divided by.
        most_nodes: Tries are cut at about so many tokens, since attention grows with the square.

    Returns:
        For each completion its tokens' log-probabilities (with gradient) and entropies (without).
    """
    rows = [[*before, *after] for before, after in zip(prompts, completions, strict=True)]
    found: list[Any] = [None] * len(rows)
    pack: list[int] = []
    size = 0
    # In order, so that what begins alike comes together.
    order = sorted(range(len(rows)), key=rows.__getitem__)
    for place, at in enumerate(order):
        before = rows[order[place - 1]] if pack else []
        size += len(rows[at]) - _common(before, rows[at])
        pack.append(at)
        last = place == len(order) - 1
        if last or (size >= most_nodes and prompts[order[place + 1]] != prompts[at]):
            _score(model, rows, [len(each) for each in prompts], pack, temperature, found)
            pack, size = [], 0
    return found


def _score(
    model: Any,
    rows: Sequence[Sequence[int]],
    begins: Sequence[int],
    pack: Sequence[int],
    temperature: float,
    found: list[Any],
) -> None:
    import torch

    trie = trie_of([rows[at] for at in pack])
    states = states_of(model, trie)
    # A token is scored where its node's parent predicts it; each such pair once.
    paths = [path[begins[row] - 1 :] for row, path in zip(pack, trie.nodes, strict=True)]
    pairs = sorted({pair for path in paths for pair in pairwise(path)})
    predicting = sorted({parent for parent, _ in pairs})
    place = {parent: at for at, parent in enumerate(predicting)}
    parents = torch.tensor([place[parent] for parent, _ in pairs], dtype=torch.long)
    targets = trie.ids[0, torch.tensor([node for _, node in pairs], dtype=torch.long)]
    logits = model.lm_head(states[predicting] / temperature)  # (P, V)
    # A few rows at a time, for the caches of the CPU: all of them take hundreds of megabytes.
    # Tokens are taken from rows in float32: there the gradient 1 - p adds up before it is rounded.
    chosen: list[torch.Tensor] = []
    entropies: list[torch.Tensor] = []
    for at, some in enumerate(logits.split(_ROWS)):
        some = some.float()
        totals = some.logsumexp(-1)
        here = (parents >= at * _ROWS) & (parents < (at + 1) * _ROWS)
        rows_of = parents[here] - at * _ROWS
        chosen.append(some[rows_of, targets[here]] - totals[rows_of])
        with torch.no_grad():
            mean = ((some - totals[:, None]).exp_() * some).sum(-1)
            entropies.append(totals - mean)
    logps, spread = torch.cat(chosen), torch.cat(entropies)  # (pairs,), (P,)
    number = {pair: at for at, pair in enumerate(pairs)}
    for row, path in zip(pack, paths, strict=True):
        index = torch.tensor([number[pair] for pair in pairwise(path)], dtype=torch.long)
        found[row] = (logps[index], spread[parents[index]])


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
