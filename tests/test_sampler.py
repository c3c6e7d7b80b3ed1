"""Samples follow the model's distribution, and each depends on its own seed alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from training.sampler import sample  # noqa: E402
from training.trie import scores_of  # noqa: E402

NO_END: frozenset[int] = frozenset()
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [1, 2]]


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=12,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.4,  # so that some tokens are far likelier than others
    )
    made = LlamaForCausalLM(config)
    made.train(False)
    return made


def seeds(prompts: int, each: int) -> list[list[tuple[int, int]]]:
    return [[(prompt, at) for at in range(each)] for prompt in range(prompts)]


def test_log_probabilities_are_those_of_the_model(model: Any) -> None:
    found = sample(model, PROMPTS, seeds(3, 5), ends=NO_END, most_tokens=6, temperature=0.7)

    flat = [(prompt, each) for prompt, of in zip(PROMPTS, found, strict=True) for each in of]
    scored = scores_of(model, [prompt for prompt, _ in flat], [each.ids for _, each in flat], 0.7)
    assert [len(each.ids) for _, each in flat] == [6] * 15
    for (_, each), (logps, _) in zip(flat, scored, strict=True):
        assert each.logps == pytest.approx(logps.tolist(), abs=1e-4)


def test_a_sample_is_the_same_in_any_company(model: Any) -> None:
    together = sample(model, PROMPTS, seeds(3, 6), ends=frozenset([0]), most_tokens=8)
    backward = sample(model, PROMPTS[::-1], seeds(3, 6)[::-1], ends=frozenset([0]), most_tokens=8)[
        ::-1
    ]
    alone = [
        [sample(model, [prompt], [[seed]], ends=frozenset([0]), most_tokens=8)[0][0] for seed in of]
        for prompt, of in zip(PROMPTS, seeds(3, 6), strict=True)
    ]

    def ids(found: Any) -> list[list[list[int]]]:
        return [[each.ids for each in of] for of in found]

    assert ids(together) == ids(backward) == ids(alone)


def test_samples_end_where_they_are_to(model: Any) -> None:
    found = sample(model, PROMPTS, seeds(3, 20), ends=frozenset([0, 3]), most_tokens=5)

    for each in (each for of in found for each in of):
        ended = each.ids[-1] in (0, 3)
        assert ended or len(each.ids) == 5
        assert not {0, 3} & set(each.ids[:-1])
        assert len(each.logps) == len(each.ids)
    assert {len(each.ids) for of in found for each in of} >= {1, 5}


def test_frequencies_are_the_models_probabilities(model: Any) -> None:
    count = 4000
    (found,) = sample(model, PROMPTS[:1], seeds(1, count), ends=NO_END, most_tokens=1)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(PROMPTS[:1])).logits[0, -1]
    expected = torch.softmax(logits, -1).numpy() * count

    counted = Counter(each.ids[0] for each in found)
    seen = np.array([counted[token] for token in range(12)])
    # Pearson's statistic has 11 degrees of freedom: 31.3 is passed once in a thousand seeds.
    assert ((seen - expected) ** 2 / expected).sum() < 31.3


def test_what_is_not_allowed_is_never_drawn(model: Any) -> None:
    def odd(ids: Sequence[int]) -> np.ndarray:
        return np.arange(12) % 2 == (1 if len(ids) % 2 == 0 else 0)

    found = sample(model, PROMPTS, seeds(3, 8), ends=NO_END, most_tokens=4, allow=[odd, odd, odd])

    drawn = [each.ids for of in found for each in of]
    assert {token % 2 for ids in drawn for token in ids[::2]} == {1}
    assert {token % 2 for ids in drawn for token in ids[1::2]} == {0}
