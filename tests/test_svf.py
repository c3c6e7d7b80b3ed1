"""Singular-value offsets, and the layout in which TRINITY's vector was released."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from conductor import Encoder, Head, Router, RouterError, from_trinity
from runtime import Call, LocalModel, Message, ModelError, Role, Sampling
from runtime.svf import Spectrum

MATRIX = "model.layers.0.mlp.down_proj.weight"
QUERIES = ["What is 2 + 2?", "Write a poem about the sea."]


def by_the_formula(weight: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """U diag(s (1 + d)) V^T sum(s) / sum(s (1 + d)), by a full decomposition."""
    u, s, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    scaled = s * (1 + offsets.double())
    made: torch.Tensor = (u * scaled) @ vt * (s.sum() / scaled.sum())
    return made.float()


# -- one matrix ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (24, 24)])
def test_a_matrix_is_scaled_as_the_formula_says(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight, offsets = torch.randn(shape), torch.randn(24) * 0.3
    spectrum = Spectrum.of(weight)

    made, after = spectrum.scale(weight, offsets)

    torch.testing.assert_close(made, by_the_formula(weight, offsets), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(spectrum.values, torch.linalg.svdvals(weight), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after.values, torch.linalg.svdvals(made), atol=1e-4, rtol=1e-4)


def test_no_offsets_change_nothing_and_equal_ones_neither() -> None:
    weight = torch.randn(30, 20, generator=torch.Generator().manual_seed(1))

    for offsets in (torch.zeros(20), torch.full((20,), 0.5)):
        made, _ = Spectrum.of(weight).scale(weight, offsets)
        torch.testing.assert_close(made, weight, atol=1e-4, rtol=1e-4)


def test_scaling_twice_needs_no_second_decomposition() -> None:
    torch.manual_seed(2)
    weight, first, second = torch.randn(30, 20), torch.randn(20), torch.randn(20) * 0.3

    once, spectrum = Spectrum.of(weight).scale(weight, first * 0.3)
    twice, _ = spectrum.scale(once, second)

    expected = by_the_formula(by_the_formula(weight, first * 0.3), second)
    torch.testing.assert_close(twice, expected, atol=1e-4, rtol=1e-4)


def test_offsets_that_leave_no_mass_are_refused() -> None:
    weight = torch.randn(5, 5)

    with pytest.raises(ModelError, match="leave no mass"):
        Spectrum.of(weight).scale(weight, torch.full((5,), -1.0))


# -- a router with offsets -----------------------------------------------------------------------


def small_offsets(size: int = 32) -> dict[str, np.ndarray]:
    return {MATRIX: np.random.default_rng(0).normal(0, 0.3, size).astype(np.float32)}


@pytest.mark.anyio
async def test_the_router_reads_other_weights_than_the_workers(tiny_folder: Path) -> None:
    model = LocalModel(str(tiny_folder))
    call = Call((Message("user", "hello"),), Sampling(max_tokens=12))
    plain = Encoder(model, system="s")
    bent = Encoder(model, system="s", offsets=small_offsets())
    states, answer = (await plain.astates(QUERIES)).vectors, await model.complete(call)

    other = (await bent.astates(QUERIES)).vectors

    assert np.abs(other - states).max() > 0.01
    np.testing.assert_allclose((await plain.astates(QUERIES)).vectors, states, atol=1e-5)
    np.testing.assert_allclose((await bent.astates(QUERIES)).vectors, other, atol=1e-5)
    assert (await model.complete(call)).text == answer.text
    assert bent.digest != plain.digest


def test_offsets_are_saved_with_the_head(tiny_folder: Path, tmp_path: Path) -> None:
    encoder = Encoder(str(tiny_folder), system="s", offsets=small_offsets())
    head = Head(np.ones((1, 32), np.float32), ("ann",))

    Router(head, encoder).save(tmp_path)
    loaded = Router.load(tmp_path).encoder

    assert loaded.digest == encoder.digest
    np.testing.assert_array_equal(loaded.states(QUERIES), encoder.states(QUERIES))


@pytest.mark.parametrize(
    ("offsets", "told"),
    [
        ({"model.nothing": np.zeros(3, np.float32)}, "model.nothing, which is no matrix"),
        ({"model.norm.weight": np.zeros(3, np.float32)}, "model.norm.weight, which is no matrix"),
        (small_offsets(31), r"has 32 singular values, but the offsets have the shape \(31,\)"),
    ],
)
def test_offsets_that_do_not_fit_are_refused(
    offsets: Mapping[str, np.ndarray], told: str, tiny_folder: Path
) -> None:
    with pytest.raises(ModelError, match=told):
        Encoder(str(tiny_folder), offsets=offsets).states(["x"])


# -- the released vector -------------------------------------------------------------------------

SEVEN = ("a", "b", "c", "d", "e", "f", "g")
TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}<s>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)


class Factors(NamedTuple):
    """A matrix by its singular value decomposition."""

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor

    @classmethod
    def draw(cls, shape: Sequence[int], dice: torch.Generator) -> Factors:
        """Any matrix of that shape whose decomposition needs no work: shuffled Hadamard bases."""
        size = min(shape)
        bases = []
        for rows in shape:
            basis = torch.ones(1, 1)
            while len(basis) < rows:
                basis = torch.cat([torch.cat([basis, basis], 1), torch.cat([basis, -basis], 1)])
            shuffled = basis[torch.randperm(rows, generator=dice)]
            bases.append(shuffled[:, torch.randperm(rows, generator=dice)][:, :size] / rows**0.5)
        return cls(bases[0], torch.linspace(1, 0.3, size), bases[1])

    @property
    def matrix(self) -> torch.Tensor:
        return (self.left * self.values) @ self.right.T

    def scaled(self, offsets: torch.Tensor) -> Factors:
        """As the formula says, the largest value first again."""
        values = self.values * (1 + offsets)
        values = values * self.values.sum() / values.sum()
        order = values.argsort(descending=True)
        return Factors(self.left[:, order], values[order], self.right[:, order])


def scaled_names(model: Any) -> list[str]:
    """The matrices that TRINITY scales, in state-dict order, the last block but one being 0."""
    weights = model.state_dict().items()
    matrices = [name for name, weight in weights if weight.ndim == 2]
    return [name for name in matrices if "layers." not in name or "layers.0." in name]


@pytest.fixture(scope="module")
def qwen(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Qwen:
    """A random Qwen3 as wide as the 0.6B: 1,024, its embedding also its LM head; two blocks."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("models") / "qwen"
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=1024,
        hidden_size=1024,
        intermediate_size=1024,
        num_hidden_layers=2,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config)
    weights, dice = model.state_dict(), torch.Generator().manual_seed(0)
    factors = {}
    for name in scaled_names(model)[:-1]:  # the last one is the first one again
        factors[name] = Factors.draw(weights[name].shape, dice)
        weights[name].copy_(factors[name].matrix)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_folder / name).read_bytes())
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return Qwen(str(folder), model, factors)


class Qwen(NamedTuple):
    folder: str
    model: Any
    factors: dict[str, Factors]


@pytest.fixture(scope="module")
def vector() -> np.ndarray:
    dice = np.random.default_rng(0)
    return np.concatenate([dice.normal(0, 0.1, 9_216), dice.normal(0, 1, 10_240)])


@pytest.fixture(scope="module")
def bent(qwen: Qwen, vector: np.ndarray) -> Any:
    """The model with the offsets: matrix after matrix changed in place."""
    model, factors = copy.deepcopy(qwen.model), dict(qwen.factors)
    names = scaled_names(model)
    embedding, *others, head = names
    parts = torch.from_numpy(vector[:9_216]).float().reshape(9, 1024)
    for name, offsets in zip((embedding, *others, embedding), parts, strict=True):
        factors[name] = factors[name].scaled(offsets)
        model.state_dict()[name].copy_(factors[name].matrix)
    assert (embedding, head) == ("model.embed_tokens.weight", "lm_head.weight")
    return model


@pytest.mark.parametrize("plain", [True, False])
def test_the_released_layout_is_read_as_its_parts_say(
    plain: bool, qwen: Qwen, vector: np.ndarray, bent: Any
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(qwen.folder)
    router = from_trinity(vector, SEVEN, qwen.folder, block=0, plain=plain, system="Choose.")

    picks = [router.route(query) for query in QUERIES]

    for query, pick in zip(QUERIES, picks, strict=True):
        turns = [{"role": "system", "content": "Choose."}, {"role": "user", "content": query}]
        if plain:
            ids = tokenizer(f"system: Choose.\nuser: {query}")["input_ids"]
        else:
            text = tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
            assert isinstance(text, str)
            assert text.endswith("<think>\n\n</think>\n\n")
            ids = tokenizer(text)["input_ids"]
        with torch.no_grad():
            hidden = bent.model(torch.tensor([ids])).last_hidden_state[0, -2]
        logits = torch.from_numpy(vector[9_216:].reshape(10, 1024)).float() @ hidden
        workers, roles = logits[:7].softmax(0), logits[7:].softmax(0)
        assert list(pick.probabilities) == list(SEVEN)
        assert list(pick.probabilities.values()) == pytest.approx(workers.tolist(), abs=1e-3)
        assert list(pick.roles.values()) == pytest.approx(roles.tolist(), abs=1e-3)
        assert pick.worker == SEVEN[int(workers.argmax())]
        assert pick.role == list(Role)[int(roles.argmax())]


def test_a_released_vector_is_a_router_like_any_other(
    qwen: Qwen, vector: np.ndarray, tmp_path: Path
) -> None:
    from_trinity(vector, SEVEN, qwen.folder, block=0).save(tmp_path)

    settings = json.loads((tmp_path / "router.json").read_text())
    loaded = Router.load(tmp_path)

    assert (settings["roles"], settings["template"]["plain"]) == (True, True)
    assert loaded.head.weight.size == 10_240
    assert sum(map(len, loaded.encoder.offsets.values())) == 9_216
    assert loaded.turns == 5


def test_a_vector_of_another_length_is_refused(qwen: Qwen, vector: np.ndarray) -> None:
    told = r"the shape \(19456,\); 9 matrices, 6 workers and 3 roles need a multiple of 18"

    with pytest.raises(RouterError, match=told):
        from_trinity(vector, SEVEN[:6], qwen.folder)
    with pytest.raises(RouterError, match="the shape"):
        from_trinity(vector.reshape(19, 1024), SEVEN, qwen.folder)


def test_a_large_decomposition_is_kept(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On disk, under the model's digest; and it is used the next time."""
    from runtime.svf import Scaler

    monkeypatch.setenv("CONDUCTOR_CACHE", str(tmp_path))
    weight = torch.randn(50, 8, generator=torch.Generator().manual_seed(3))
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(copy.deepcopy(weight))
    first = Scaler(model, str(tiny_folder))._kept("weight", model.weight.data)
    model.weight.data.zero_()

    again = Scaler(model, str(tiny_folder))._kept("weight", model.weight.data)

    torch.testing.assert_close(again.values, first.values)
    torch.testing.assert_close(again.basis, first.basis)
    assert len(list((tmp_path / "spectra").iterdir())) == 1
