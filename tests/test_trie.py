"""What rows begin with is computed once, and nothing else about them changes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from training import trie  # noqa: E402
from training.trie import scores_of, trie_of  # noqa: E402

TOKENS = st.integers(0, 5)
ROWS = st.lists(st.lists(TOKENS, min_size=1, max_size=6), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def model() -> Any:
    """A random Llama in double precision, so that sums in another order don't matter."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    made = LlamaForCausalLM(config).double()
    made.train(False)
    return made


@given(ROWS)
def test_a_trie_holds_each_beginning_once(rows: list[list[int]]) -> None:
    laid = trie_of(rows)

    spelled = [[int(laid.ids[0, node]) for node in path] for path in laid.nodes]
    beginnings = {tuple(row[: end + 1]) for row in rows for end in range(len(row))}
    assert spelled == rows
    assert laid.ids.shape == (1, len(beginnings))
    for row, path in zip(rows, laid.nodes, strict=True):
        assert path == sorted(path)  # parents come before children
        assert [int(laid.positions[0, node]) for node in path] == list(range(len(row)))
        for depth, node in enumerate(path):
            seen = set(torch.nonzero(laid.mask[0, 0, node]).flatten().tolist())
            assert seen == set(path[: depth + 1])


def by_itself(
    model: Any, prompt: list[int], completion: list[int], temperature: float
) -> tuple[Any, Any]:
    """Log-probabilities and entropies from a pass over one row."""
    logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0] / temperature
    logs = torch.log_softmax(logits[len(prompt) - 1 : -1].float(), -1)
    chosen = logs.gather(-1, torch.tensor(completion)[:, None])[:, 0]
    return chosen, -(logs.exp() * logs).sum(-1)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_scores_and_gradients_are_those_of_each_row_by_itself(model: Any, data: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trie, "_ROWS", data.draw(st.sampled_from([2, 64])))
        judge(model, data)


def judge(model: Any, data: Any) -> None:
    """Compare drawn completions of drawn prompts with passes over each row."""
    rows = st.lists(TOKENS, min_size=1, max_size=5)
    prompts = data.draw(st.lists(rows, min_size=1, max_size=3))
    pairs = data.draw(st.lists(st.tuples(st.sampled_from(prompts), rows), min_size=1, max_size=7))
    temperature = data.draw(st.sampled_from([0.5, 1.0]))
    weights = [0.5 + at for at in range(len(pairs))]

    model.zero_grad()
    found = scores_of(
        model,
        [prompt for prompt, _ in pairs],
        [completion for _, completion in pairs],
        temperature,
        most_nodes=data.draw(st.sampled_from([1, 8, 768])),
    )
    sum(w * logps.sum() for w, (logps, _) in zip(weights, found, strict=True)).backward()
    gradients = [weight.grad.clone() for weight in model.parameters()]

    model.zero_grad()
    alone = [by_itself(model, prompt, completion, temperature) for prompt, completion in pairs]
    sum(w * logps.sum() for w, (logps, _) in zip(weights, alone, strict=True)).backward()
    for (logps, entropies), (own, own_entropies) in zip(found, alone, strict=True):
        torch.testing.assert_close(logps, own, atol=1e-5, rtol=0)
        torch.testing.assert_close(entropies, own_entropies.detach(), atol=1e-5, rtol=0)
        assert not entropies.requires_grad
    for gradient, weight in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, weight.grad, atol=1e-5, rtol=1e-4)
