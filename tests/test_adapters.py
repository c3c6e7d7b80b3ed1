"""Adapters: rows of one batch answer as models of their own would, by PEFT's arithmetic."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from runtime import (
    Call,
    FailureKind,
    LocalModel,
    LocalWorker,
    Message,
    ModelError,
    Pool,
    PoolError,
    PoolFile,
    Sampling,
    WorkerError,
)
from runtime.adapters import SETTINGS, Adapters, read
from runtime.local import ADAPTER_WEIGHTS

pytestmark = [
    pytest.mark.anyio,
    # PEFT asks transformers for a property that it renames.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

GREEDY = Sampling(temperature=0.0, max_tokens=12)
SHAPES: dict[str, Any] = {
    "one": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    "two": {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    "three": {"r": 3, "lora_alpha": 3, "target_modules": ["v_proj"], "layers_to_transform": [1]},
}


def load(folder: Path) -> LlamaForCausalLM:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.train(False)
    return model  # type: ignore[no-any-return]  # transformers loses the type


@pytest.fixture(scope="session")
def adapters(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three random adapters of different shapes, saved by PEFT."""
    from peft import LoraConfig, get_peft_model

    folders = {}
    for seed, (name, shape) in enumerate(SHAPES.items()):
        torch.manual_seed(seed)
        model = get_peft_model(load(tiny_folder), LoraConfig(init_lora_weights=False, **shape))
        folder = tmp_path_factory.mktemp("adapters") / name
        model.save_pretrained(str(folder))
        folders[name] = str(folder)
    return folders


def merged(tiny_folder: Path, adapter: str) -> torch.nn.Module:
    """The model with an adapter worked into its weights, by PEFT."""
    from peft import PeftModel

    if not adapter:
        return load(tiny_folder)
    model: Any = PeftModel.from_pretrained(load(tiny_folder), adapter)
    return model.merge_and_unload()  # type: ignore[no-any-return]


@torch.inference_mode()
def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=ids).logits
    return found


def test_each_row_gives_the_logits_of_the_merged_model(
    tiny_folder: Path, adapters: dict[str, str]
) -> None:
    rows = [adapters["one"], "", adapters["three"], adapters["two"], adapters["one"]]
    ids = torch.randint(0, 256, (len(rows), 9), generator=torch.Generator().manual_seed(5))
    model = load(tiny_folder)
    plain = logits(model, ids)
    serving = Adapters(model)
    for row in rows:
        serving.load(row)

    serving.use(rows)
    together = logits(model, ids)

    for at, row in enumerate(rows):
        expected = logits(merged(tiny_folder, row), ids[at : at + 1])[0]
        torch.testing.assert_close(together[at], expected, atol=1e-4, rtol=1e-4)
        if row:
            assert (together[at] - plain[at]).abs().max() > 0.05

    serving.use(rows[1:3])
    torch.testing.assert_close(logits(model, ids[1:3]), together[1:3], atol=1e-4, rtol=1e-4)
    serving.use([""])
    torch.testing.assert_close(logits(model, ids), plain, atol=0, rtol=0)


async def test_calls_with_different_adapters_answer_as_models_of_their_own(
    tiny_folder: Path, adapters: dict[str, str], tmp_path: Path
) -> None:
    """Long common beginnings too: their keys and values differ with the adapter."""
    questions = ["hello", "a much longer beginning, then x", "a much longer beginning, then y!"]
    model = LocalModel(str(tiny_folder))
    expected: dict[tuple[str, str], str] = {}
    found: dict[tuple[str, str], str] = {}
    for adapter in ["", *adapters.values()]:
        own = tmp_path / f"merged-{len(expected)}"
        merged(tiny_folder, adapter).save_pretrained(own)  # type: ignore[operator]
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(tiny_folder / name, own / name)
        alone = LocalModel(str(own))
        for question in questions:
            call = Call((Message("user", question),), GREEDY)
            expected[adapter, question] = (await alone.complete(call)).text

    async def ask(adapter: str, question: str) -> None:
        call = Call((Message("user", question),), GREEDY)
        worker = LocalWorker("w", model, adapter=adapter)
        found[adapter, question] = (await worker.complete(call)).text

    async with anyio.create_task_group() as group:
        for adapter, question in expected:
            group.start_soon(ask, adapter, question)
    assert found == expected
    assert len(set(expected.values())) > len(questions)

    found.clear()
    for question in questions:  # one after another, over what the last call left in the cache
        for adapter in ["", *adapters.values()]:
            await ask(adapter, question)
    assert found == expected


async def test_a_missing_adapter_fails_its_own_call_only(
    tiny_folder: Path, adapters: dict[str, str], tmp_path: Path
) -> None:
    model = LocalModel(str(tiny_folder))
    call = Call((Message("user", "hello"),), GREEDY)
    nowhere = LocalWorker("nowhere", model, adapter=tmp_path / "none")
    assert not (await nowhere.check()).ready

    with pytest.raises(WorkerError, match=f"no adapter in .*none.*{SETTINGS}") as caught:
        await nowhere.complete(call)

    assert caught.value.failure.kind is FailureKind.MODEL
    there = LocalWorker("there", model, adapter=adapters["one"])
    assert (await there.check()).ready
    assert (await there.complete(call)).text


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"peft_type": "IA3"}, "is IA3; only LORA"),
        ({"use_dora": True}, "use_dora = True"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
    ],
)
def test_what_is_not_plain_lora_is_refused(
    adapters: dict[str, str], tmp_path: Path, changed: dict[str, object], told: str
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(adapters["one"], folder)
    settings = json.loads((folder / SETTINGS).read_text())
    (folder / SETTINGS).write_text(json.dumps(settings | changed))

    with pytest.raises(ModelError, match=told):
        read(str(folder))


def test_an_adapter_of_another_model_is_refused(adapters: dict[str, str]) -> None:
    with pytest.raises(ModelError, match="made for another"):
        Adapters(torch.nn.Linear(3, 3)).load(adapters["one"])


def test_the_identity_tells_adapters_apart_by_content(
    adapters: dict[str, str], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(adapters["one"], copy)

    def identity(adapter: str | Path) -> str:
        return LocalWorker("w", "some/model", adapter=adapter).identity

    assert identity(copy) == identity(adapters["one"])
    assert len({identity(each) for each in ("", *adapters.values(), str(tmp_path))}) == 5


def test_a_pool_file_names_adapters_relative_to_itself(
    tiny_folder: Path, adapters: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(adapters["one"], tmp_path / "mine")
    file = tmp_path / "pool.toml"
    file.write_text(
        f'[workers.plain]\nkind = "local"\nmodel = "{tiny_folder}"\n'
        f'[workers.mine]\nkind = "local"\nmodel = "{tiny_folder}"\nadapter = "mine"\n'
    )

    plain, mine = Pool.load(file)

    assert isinstance(plain, LocalWorker)
    assert isinstance(mine, LocalWorker)
    assert (plain.adapter, mine.adapter) == ("", str(tmp_path / "mine"))
    assert plain.model is mine.model
    assert (Path(mine.adapter) / ADAPTER_WEIGHTS).is_file()
    with pytest.raises(PoolError, match="did you mean adapter"):
        PoolFile.parse('[workers.a]\nkind = "local"\nadaptor = "x"\n')
