"""The router: hidden states, the head, picks, and the folder that holds one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import anyio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from conductor.prompt import ROUTER_LEAD, ROUTER_SYSTEM, router_messages
from conductor.router import (
    HEAD,
    SETTINGS,
    Encoder,
    Head,
    Router,
    RouterError,
    probabilities,
    role_probabilities,
    softmax,
)
from runtime import (
    Call,
    FunctionWorker,
    LocalModel,
    LocalWorker,
    Message,
    ModelError,
    Pool,
    PoolError,
    Reader,
    Role,
    Sampling,
    fetch,
    model_digest,
    prompt_ids,
)

QUERIES = [
    "What is 12 + 45?",
    "Spell backward: b a t o",
    "Sort 3 9 1.",
    "Who is the tallest? Ann is taller than Bob, and Bob is taller than Cid. " * 3,
]
TRIO = ("adder", "speller", "plain")


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> LocalModel:
    """A random model that reads bytes: 32 wide."""
    return LocalModel(str(tiny_folder))


def random_head(workers: Sequence[str] = TRIO, *, roles: bool = False, width: int = 32) -> Head:
    rows = len(workers) + 3 * roles
    weight = np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)
    return Head(weight, tuple(workers), roles)


def router_on(model: LocalModel, *, roles: bool = False, **more: object) -> Router:
    encoder = Encoder(model, most_tokens=240)
    return Router(random_head(roles=roles), encoder, **more)  # type: ignore[arg-type]


# -- hidden states of the packaged model ---------------------------------------------------------


def test_states_are_the_models_own_alone_and_in_a_batch(small_model: LocalModel) -> None:
    """As transformers gives them at the last token but one, whatever was read before."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = fetch(small_model.name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    asked = [prompt_ids(tokenizer, router_messages(query, lead="")) for query in QUERIES]
    lead = tokenizer(ROUTER_LEAD).input_ids
    prompts = [[*ids, *lead] for ids in asked]
    with torch.no_grad():
        passes = [model(torch.tensor([ids]), output_hidden_states=True) for ids in prompts]
    expected = np.stack([each.hidden_states[-1][0, -2].numpy() for each in passes])
    halfway = np.stack([each.hidden_states[15][0, -2].numpy() for each in passes])
    encoder = Encoder(small_model)

    batch = encoder.states(QUERIES)
    single = np.concatenate([encoder.states([query]) for query in QUERIES])
    again = encoder.states([[Message("user", query)] for query in reversed(QUERIES)])[::-1]

    assert {ids[-2] for ids in prompts} == {prompts[0][-2]}
    assert (batch.dtype, batch.shape) == (np.float32, (4, 576))
    for found in (batch, single, again):
        np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(
        Encoder(small_model, layer=15).states(QUERIES), halfway, atol=1e-3, rtol=1e-4
    )


def test_a_pick_with_the_packaged_model_reads_one_prompt(small_model: LocalModel) -> None:
    router = Router(random_head(width=576), Encoder(small_model))

    pick = router.route(QUERIES[0])

    states = router.encoder.states([QUERIES[0]])
    assert pick.worker == TRIO[int(router.head.logits(states).argmax())]
    assert pick.backbone == "smollm2-135m-instruct"
    assert 60 < pick.tokens < 110


@pytest.mark.anyio
async def test_readings_come_between_two_tokens_of_the_quick_engine_too(
    small_model: LocalModel,
) -> None:
    """Its callback runs in a thread of its own, in which the backbone reads then."""
    call = Call((Message("user", "Name a colour."),), Sampling(temperature=0.0, max_tokens=12))
    encoder, reading = Encoder(small_model), anyio.Event()
    alone = (await small_model.complete(call)).text
    texts: list[str] = []

    async def answer() -> None:
        texts.append((await small_model.complete(call, lambda text: reading.set())).text)

    async with anyio.create_task_group() as group:
        group.start_soon(answer)
        await reading.wait()
        between = (await encoder.astates(QUERIES[:1])).vectors

    assert texts == [alone]
    np.testing.assert_allclose(between, (await encoder.astates(QUERIES[:1])).vectors, atol=1e-4)


# -- hidden states of any model ------------------------------------------------------------------


@pytest.mark.anyio
async def test_readings_come_between_two_tokens_and_leave_the_answer_as_it_is(
    tiny: LocalModel,
) -> None:
    """The batch that is being decoded has other keys, values and positions than the readings."""
    calls = [Call((Message("user", text),), Sampling(max_tokens=24)) for text in ("one", "three")]
    texts: dict[int, str] = {}
    states: list[np.ndarray] = []
    encoder = Encoder(tiny, most_tokens=240)
    expected = encoder.states(QUERIES)
    alone = [(await tiny.complete(call)).text for call in calls]
    reading = anyio.Event()

    async def answer(at: int) -> None:
        texts[at] = (await tiny.complete(calls[at], lambda text: reading.set())).text

    async with anyio.create_task_group() as group:
        for at in range(2):
            group.start_soon(answer, at)
        await reading.wait()
        states.append((await encoder.astates(QUERIES)).vectors)

    assert [texts[0], texts[1]] == alone
    np.testing.assert_allclose(states[0], expected, atol=1e-4)


@pytest.mark.anyio
async def test_many_readings_at_the_same_time_each_get_their_own(tiny: LocalModel) -> None:
    encoder = Encoder(tiny, most_tokens=240)
    expected = encoder.states([f"task {at}" for at in range(20)])
    found = np.zeros_like(expected)

    async def read(at: int) -> None:
        found[at] = (await encoder.astates([f"task {at}"])).vectors[0]

    async with anyio.create_task_group() as group:
        for at in range(20):
            group.start_soon(read, at)

    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.anyio
async def test_a_reading_can_be_given_up(tiny: LocalModel) -> None:
    encoder = Encoder(tiny, most_tokens=240)

    with anyio.CancelScope() as scope:
        scope.cancel()
        await encoder.astates(["anything"])

    assert scope.cancelled_caught
    assert (await encoder.astates(["anything"])).vectors.shape == (1, 32)


def test_the_middle_of_a_long_prompt_is_left_out(tiny: LocalModel) -> None:
    """Its beginning and its end, with the constant token, stay."""
    one, other = ("x" * 50 + middle * 3000 + "y" * 50 for middle in "ab")
    encoder = Encoder(tiny, system="s", most_tokens=64)

    states = tiny.read(encoder.rendered([one]), encoder.reader)

    assert states.tokens == (64,)
    np.testing.assert_allclose(states.vectors, encoder.states([other]), atol=1e-5)


def test_no_conversations_give_no_states(tiny: LocalModel) -> None:
    assert Encoder(tiny, most_tokens=240).states([]).shape == (0, 32)


def test_a_layer_that_is_not_there_is_refused(tiny: LocalModel) -> None:
    with pytest.raises(ModelError, match=r"no hidden state 7; the model has .* 0 to 2"):
        tiny.read([(Message("user", "x"),)], Reader(layer=7))


def test_plain_text_is_another_format(tiny: LocalModel) -> None:
    chat, plain = (Encoder(tiny, plain=plain, most_tokens=240) for plain in (False, True))

    assert np.abs(chat.states(["x"]) - plain.states(["x"])).max() > 0.01


def test_the_digest_tells_weights_template_and_layer(tiny: LocalModel) -> None:
    usual = Encoder(tiny)

    others = [
        Encoder(tiny, system="Choose."),
        Encoder(tiny, frame="{question}?"),
        Encoder(tiny, lead="It is"),
        Encoder(tiny, layer=1),
        Encoder(tiny, plain=True),
        Encoder(tiny, most_tokens=99),
        Encoder("smollm2-135m-instruct"),
    ]

    assert usual.digest == Encoder(LocalModel(tiny.name)).digest
    assert len({each.digest for each in (usual, *others)}) == 8


def test_a_conversation_is_one_text_with_the_thoughts_behind_it() -> None:
    system = Message("system", ROUTER_SYSTEM)
    talk = [Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "2 + 2?")]

    read = router_messages("2 + 2?", frame="Q: {question}!", lead="It is")
    assert read == (system, Message("user", "Q: 2 + 2?!"), Message("assistant", "It is"))
    bare = router_messages("{question}", system="", frame="{question}", lead="")
    assert bare == (Message("user", "{question}"),)
    assert router_messages([Message("user", "2 + 2?")]) == router_messages("2 + 2?")
    assert "assistant: Hello" in router_messages(talk)[1].content
    asked = router_messages("2 + 2?", thoughts=["count", "add"])[1].content
    assert asked.endswith("<reference_thought_2>\nadd\n</reference_thought_2>")


# -- the head ------------------------------------------------------------------------------------

LOGITS = arrays(np.float64, (3, 4), elements=st.floats(-700, 700))


@given(LOGITS)
def test_softmax_is_a_distribution_in_the_order_of_its_logits(logits: np.ndarray) -> None:
    chances = softmax(logits)

    np.testing.assert_allclose(chances.sum(axis=-1), 1)
    for row, found in zip(logits, chances, strict=True):
        assert found[row.argmax()] == found.max()


@given(st.sets(st.sampled_from(TRIO), min_size=1), st.integers(0, 2**32 - 1))
def test_masked_workers_have_no_chance_and_the_others_keep_their_odds(
    allowed: set[str], seed: int
) -> None:
    states = np.random.default_rng(seed).normal(size=(5, 32)).astype(np.float32)
    head = random_head()

    every, some = probabilities(head, states), probabilities(head, states, allowed)

    kept = [name in allowed for name in TRIO]
    assert not some[:, [not each for each in kept]].any()
    expected = every[:, kept] / every[:, kept].sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(some[:, kept], expected, rtol=1e-3, atol=1e-6)


def test_roles_are_a_softmax_of_their_own() -> None:
    states = np.random.default_rng(1).normal(size=(2, 32)).astype(np.float32)
    head = random_head(roles=True)

    np.testing.assert_allclose(probabilities(head, states).sum(axis=-1), 1, rtol=1e-5)
    expected = softmax(states @ head.weight[3:].T)
    np.testing.assert_array_equal(role_probabilities(head, states), expected)
    with pytest.raises(RouterError, match="no rows for roles"):
        role_probabilities(random_head(), states)


@pytest.mark.parametrize(
    ("weight", "workers", "told"),
    [
        (np.zeros((2, 4), np.float32), ("a",), r"shape \(2, 4\); 1 workers need 1 rows"),
        (np.zeros(4, np.float32), ("a",), "shape"),
        (np.zeros((1, 4)), ("a",), "float64; it must be float32"),
        (np.full((1, 4), np.nan, np.float32), ("a",), "not finite"),
        (np.zeros((2, 4), np.float32), ("a", "a"), "names a twice"),
        (np.zeros((0, 4), np.float32), (), "at least one worker"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(
    weight: np.ndarray, workers: tuple[str, ...], told: str
) -> None:
    with pytest.raises(RouterError, match=told):
        Head(weight, workers)


# -- picks ---------------------------------------------------------------------------------------


def test_the_most_probable_worker_is_picked_of_those_that_may_be(tiny: LocalModel) -> None:
    router = router_on(tiny)
    free = router.route("What is 1 + 1?")

    without = router.route("What is 1 + 1?", exclude=[free.worker])
    only = router.route("What is 1 + 1?", only=["plain"])

    assert free.probabilities[free.worker] == max(free.probabilities.values())
    assert list(free.probabilities) == list(TRIO)
    assert (free.role, free.sampled) == (None, False)
    assert free.worker not in without.probabilities
    assert sum(without.probabilities.values()) == pytest.approx(1)
    assert (only.worker, only.probabilities) == ("plain", {"plain": 1.0})


def test_nobody_left_and_nobody_known_are_told_apart(tiny: LocalModel) -> None:
    router = router_on(tiny)

    with pytest.raises(PoolError, match="no worker is left for the router; it knows: adder"):
        router.route("x", exclude=TRIO)
    with pytest.raises(PoolError, match="no worker is called 'gpt'; the router knows: adder"):
        router.route("x", exclude=["gpt"])


def test_draws_follow_their_probabilities_and_their_seed(tiny: LocalModel) -> None:
    router = router_on(tiny)
    flat = Router(Head(router.head.weight / 50, TRIO), router.encoder)
    expected = flat.route("x").probabilities

    drawn = [flat.route("x", sample=True, seed=seed).worker for seed in range(300)]
    again = [flat.route("x", sample=True, seed=seed).worker for seed in range(20)]

    assert drawn[:20] == again
    for name in TRIO:
        assert drawn.count(name) / 300 == pytest.approx(expected[name], abs=0.1)


def test_a_head_of_another_width_is_refused(tiny: LocalModel) -> None:
    router = Router(random_head(width=31), Encoder(tiny, most_tokens=240))

    with pytest.raises(RouterError, match="gives hidden states of 32 numbers"):
        router.route("x")


@pytest.mark.anyio
async def test_picks_are_the_same_in_async_code(tiny: LocalModel) -> None:
    router = router_on(tiny)

    assert (await router.aroute("x")).probabilities == pytest.approx(
        router.route("x").probabilities, rel=1e-4
    )


def test_the_weights_of_a_worker_are_shared(tiny: LocalModel) -> None:
    loaded = LocalModel(tiny.name)
    router = router_on(tiny)

    async def say(messages: Sequence[Message]) -> str:
        return "x"

    shared = router.on(Pool([FunctionWorker("other", say), LocalWorker("adder", loaded)]))

    assert shared.encoder.model is loaded
    assert router.encoder.model is tiny
    assert router.on(Pool([FunctionWorker("other", say)])).encoder.model is tiny


# -- the folder ----------------------------------------------------------------------------------


def test_a_router_comes_back_as_it_was_saved(tiny: LocalModel, tmp_path: Path) -> None:
    encoder = Encoder(
        tiny, system="Choose one.", frame="Q {question}", lead="A", layer=1, most_tokens=200
    )
    router = Router(random_head(roles=True), encoder, training={"tau": 0.2, "items": 40})

    router.save(tmp_path / "r")
    loaded = Router.load(tmp_path / "r", model=tiny)

    assert sorted(file.name for file in (tmp_path / "r").iterdir()) == [HEAD, SETTINGS]
    np.testing.assert_array_equal(loaded.head.weight, router.head.weight)
    assert (loaded.head.workers, loaded.roles) == (TRIO, True)
    assert loaded.training == {"tau": 0.2, "items": 40}
    assert loaded.source == str(tmp_path / "r")
    assert loaded.encoder.digest == encoder.digest
    assert loaded.route("x").role in set(Role)
    assert Router.load(tmp_path / "r", model=tiny, roles=False).route("x").role is None


SPOILT = {
    "an unknown field": ({"colour": "red"}, "colour: there is no such field"),
    "a bad type": ({"roles": "yes"}, "roles: input should be a valid boolean"),
    "no workers": ({"workers": None}, "workers: is missing"),
    "a worker too many": ({"workers": [*TRIO, "gpt"]}, r"4 workers need 4 rows"),
    "other weights": (
        {"backbone": {"name": "smollm2-135m-instruct", "digest": "0" * 64}},
        r"is not the one it was trained on \(bcc81830d10c, not 000000000000\)",
    ),
    "another format": ({"format": 2}, "format: input should be 1"),
}


@pytest.mark.parametrize(("change", "told"), SPOILT.values(), ids=SPOILT)
def test_what_does_not_fit_is_told_when_it_is_loaded(
    change: dict[str, object], told: str, tiny: LocalModel, tmp_path: Path
) -> None:
    router_on(tiny).save(tmp_path)
    settings = {**json.loads((tmp_path / SETTINGS).read_text()), **change}
    left = {name: value for name, value in settings.items() if value is not None}
    (tmp_path / SETTINGS).write_text(json.dumps(left))

    with pytest.raises(RouterError, match=told):
        Router.load(tmp_path)


def test_files_that_are_no_router_are_told(tiny: LocalModel, tmp_path: Path) -> None:
    with pytest.raises(RouterError, match=r"router\.json: No such file .* a router is a folder"):
        Router.load(tmp_path)
    router_on(tiny).save(tmp_path)
    (tmp_path / HEAD).write_bytes(b"not a tensor")
    with pytest.raises(RouterError, match=r"head\.safetensors: can't be read"):
        Router.load(tmp_path)


def test_a_head_of_the_wrong_width_is_told_before_anything_is_read(
    small_model: LocalModel, tmp_path: Path
) -> None:
    fetch(small_model.name)
    Router(random_head(width=32), Encoder(small_model)).save(tmp_path)

    with pytest.raises(RouterError, match="the head is 32 wide, smollm2-135m-instruct 576"):
        Router.load(tmp_path)


def test_the_digest_of_a_folder_is_that_of_its_files(tiny_folder: Path, tmp_path: Path) -> None:
    for file in tiny_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    same = model_digest(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")

    assert same == model_digest(str(tiny_folder))
    assert model_digest(str(tmp_path)) != same
