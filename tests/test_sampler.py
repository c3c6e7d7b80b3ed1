"""Samples follow the model's distribution as closely as so few can, and their seeds alone."""

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
SEEDS = [(0, 0), (0, 1), (0, 2)]


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


def test_log_probabilities_are_those_of_the_model(model: Any) -> None:
    found = sample(model, PROMPTS, SEEDS, count=5, ends=NO_END, most_tokens=6, temperature=0.7)

    flat = [(prompt, each) for prompt, of in zip(PROMPTS, found, strict=True) for each in of]
    scored = scores_of(model, [prompt for prompt, _ in flat], [each.ids for _, each in flat], 0.7)
    assert [len(each.ids) for _, each in flat] == [6] * 15
    for (_, each), (logps, _) in zip(flat, scored, strict=True):
        assert each.logps == pytest.approx(logps.tolist(), abs=1e-4)


def test_samples_of_a_prompt_are_the_same_in_any_company(model: Any) -> None:
    def drawn(
        prompts: Sequence[list[int]], seeds: Sequence[Sequence[int]]
    ) -> list[list[list[int]]]:
        found = sample(model, prompts, seeds, count=6, ends=frozenset([0]), most_tokens=8)
        return [[each.ids for each in of] for of in found]

    together = drawn(PROMPTS, SEEDS)

    assert together == drawn(PROMPTS[::-1], SEEDS[::-1])[::-1]
    assert together == [
        drawn([prompt], [seed])[0] for prompt, seed in zip(PROMPTS, SEEDS, strict=True)
    ]
    assert together != drawn(PROMPTS, [(1, *seed) for seed in SEEDS])


def test_samples_end_where_they_are_to(model: Any) -> None:
    found = sample(model, PROMPTS, SEEDS, count=20, ends=frozenset([0, 3]), most_tokens=5)

    for each in (each for of in found for each in of):
        ended = each.ids[-1] in (0, 3)
        assert ended or len(each.ids) == 5
        assert not {0, 3} & set(each.ids[:-1])
        assert len(each.logps) == len(each.ids)
    assert {len(each.ids) for of in found for each in of} >= {1, 5}


@pytest.mark.parametrize("count", [7, 500])
def test_frequencies_are_the_models_probabilities_but_for_one_sample(
    model: Any, count: int
) -> None:
    """Of what a completion may begin with, too: here of one token and of two."""
    (found,) = sample(model, PROMPTS[:1], SEEDS[:1], count=count, ends=NO_END, most_tokens=2)
    with torch.no_grad():
        begun = torch.tensor([[*PROMPTS[0], token] for token in range(12)])
        read = torch.softmax(model(input_ids=begun).logits.double(), -1)
    first, second = read[0, -2], read[:, -1]  # (12,), (12, 12)

    ones = Counter(each.ids[0] for each in found)
    twos = Counter(tuple(each.ids) for each in found)
    for one in range(12):
        assert abs(ones[one] - count * float(first[one])) < 1.001
        for two in range(12):
            assert abs(twos[one, two] - count * float(first[one] * second[one, two])) < 1.001


def test_where_a_group_lies_is_chance(model: Any) -> None:
    """One sample of each of many prompts: nothing puts them at equal distances."""
    count = 4000
    seeds = [(at,) for at in range(count)]
    found = sample(model, PROMPTS[:1] * count, seeds, count=1, ends=NO_END, most_tokens=1)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(PROMPTS[:1])).logits[0, -1]
    expected = torch.softmax(logits, -1).numpy() * count

    counted = Counter(each.ids[0] for (each,) in found)
    seen = np.array([counted[token] for token in range(12)])
    # Pearson's statistic has 11 degrees of freedom: 31.3 is passed once in a thousand seeds.
    assert ((seen - expected) ** 2 / expected).sum() < 31.3


def test_long_completions_are_drawn_to_their_end(model: Any) -> None:
    """Of 30 tokens each has far more to choose than the group has samples."""
    (found,) = sample(model, PROMPTS[:1], SEEDS[:1], count=150, ends=NO_END, most_tokens=30)

    scored = scores_of(model, PROMPTS[:1] * 150, [each.ids for each in found])
    late = slice(15, None)
    surprise = np.array([each.logps for each in found])[:, late]
    entropy = np.array([of.tolist() for _, of in scored])[:, late]
    assert len({tuple(each.ids) for each in found}) == 150
    # What is drawn is as surprising as it should be: 2,250 draws, so within 5 standard errors.
    assert abs((-surprise - entropy).mean()) < 5 * surprise.std() / np.sqrt(surprise.size)


def test_what_is_not_allowed_is_never_drawn(model: Any) -> None:
    def odd(ids: Sequence[int]) -> np.ndarray:
        return np.arange(12) % 2 == (1 if len(ids) % 2 == 0 else 0)

    found = sample(
        model, PROMPTS, SEEDS, count=8, ends=NO_END, most_tokens=4, allow=[odd, odd, odd]
    )

    drawn = [each.ids for of in found for each in of]
    assert {token % 2 for ids in drawn for token in ids[::2]} == {1}
    assert {token % 2 for ids in drawn for token in ids[1::2]} == {0}
