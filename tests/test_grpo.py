"""TRL trains a Conductor on our questions, completions and rewards; a training that stops goes on.

The model is a random one of two small layers with the packaged tokenizer, the workers are
functions. The real ones are trained by `conductor train conductor` with the smoke recipe.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
for package in ("transformers", "peft", "trl", "datasets"):
    pytest.importorskip(package)

from conductor.prompt import brief_messages  # noqa: E402
from runtime import (  # noqa: E402
    Completion,
    FailureKind,
    FunctionWorker,
    Message,
    Pool,
    WorkerError,
    fetch,
    prompt_ids,
)
from training import grpo  # noqa: E402
from training.recipes import RecipeError, Told  # noqa: E402
from training.rewards import advantages  # noqa: E402

# PEFT and TRL ask transformers for what it renames; in the product they are hushed.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing:FutureWarning", "ignore:You are using 'rollout_func'"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, and in it one with an adapter that changes what it says."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = AutoTokenizer.from_pretrained(str(fetch("smollm2-135m-instruct")))
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    adapted: Any = get_peft_model(
        model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    )
    adapted.peft_config["default"].base_model_name_or_path = str(folder)
    adapted.save_pretrained(folder / "adapter", save_embedding_layers=False)
    return folder


def workers() -> Pool:
    """Three workers; one is out of order now and then, as its message decides."""

    async def talks(messages: Sequence[Message]) -> Completion:
        return Completion("a")

    async def breaks(messages: Sequence[Message]) -> Completion:
        if len(messages[-1].content) % 2:
            raise WorkerError(FailureKind.MODEL, "out of order")
        return Completion("b")

    names = {"one": talks, "two": talks, "three": breaks}
    return Pool([FunctionWorker(name, function) for name, function in names.items()])


def recipe(tiny: Path, output: Path, **more: Any) -> grpo.Recipe:
    tables: dict[str, Any] = {
        "output": output,
        "model": str(tiny),
        "constrained": True,
        "every": 1,
        "threads": 1,
        "precision": "float32",
        "begin": {"adapter": tiny / "adapter"},
        "tasks": {"each": 10, "simple_first": 1},
        "grpo": {
            "updates": 3,
            "questions": 2,
            "group": 4,
            "most_tokens": 44,  # some are cut
            "rate": 1e-2,
            "warm_up": 1,
        },
        "run": {"most_steps": 1, "retries": 0},
    }
    for name, value in more.items():
        tables[name] = tables.get(name, {}) | value if isinstance(value, dict) else value
    return grpo.Recipe.model_validate(tables)


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = (folder / name).read_text(encoding="utf-8").splitlines()
    timed = ("seconds", "generate_s", "reward_s", "learn_s", "alone_s", "calls", "cached")
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training from beginning to end."""
    folder = tmp_path_factory.mktemp("whole")
    told: list[Told] = []
    trained = grpo.train(recipe(tiny, folder), pool=workers(), progress=told.append)

    assert trained.finished
    assert trained.updates == 3
    assert [each.done for each in told] == [0, 1, 2, 3]
    return folder


def test_what_is_written_is_the_adapter_and_what_led_to_it(whole: Path, tiny: Path) -> None:
    from safetensors.torch import load_file

    about = json.loads((whole / "conductor.json").read_text())
    before = load_file(tiny / "adapter" / "adapter_model.safetensors")
    after = load_file(whole / "adapter_model.safetensors")
    assert about["roster"] == ["one", "two", "three"]
    assert about["updates"] == 3
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name].half(), after[name]) for name in before)
    assert [row["update"] for row in rows(whole, grpo.METRICS)] == [0, 1, 2]
    assert len(rows(whole, grpo.ROLLOUTS)) == 3 * 2 * 4


def test_rewards_are_zero_half_or_masked_and_advantages_are_trls(whole: Path) -> None:
    completions = rows(whole, grpo.ROLLOUTS)

    seen = {each["reward"] for each in completions}
    assert seen == {0.0, 0.5, None}
    for update in range(3):
        for group in range(2):
            of = [
                each for each in completions if (each["update"], each["group"]) == (update, group)
            ]
            found = [each["advantage"] for each in of]
            assert found == pytest.approx(advantages([each["reward"] for each in of]))
            assert all(each["advantage"] == 0 for each in of if each["reward"] is None)
    for row in rows(whole, grpo.METRICS):
        of = [each for each in completions if each["update"] == row["update"]]
        assert row["masked"] == sum(each["reward"] is None for each in of)
        assert row["flat"] >= row["flat_by_trl"]  # TRL does not count groups of one reward


def test_a_cold_start_comes_first_and_has_its_own_share_of_composed_questions(
    tiny: Path, tmp_path: Path
) -> None:
    begin = {"adapter": None, "updates": 2, "batch": 2, "rank": 2, "composed": 0.25}
    told: list[Told] = []

    grpo.train(
        recipe(tiny, tmp_path, begin=begin, grpo={"updates": 1}),
        pool=workers(),
        progress=told.append,
    )

    stages = [(each.stage, each.done) for each in told]
    assert stages == [("cold", 0), ("cold", 2), ("grpo", 0), ("grpo", 1)]
    about = json.loads((tmp_path / "cold" / "training.json").read_text())["cold_start"]
    assert {name: about[name] for name in ("workers", "updates", "batch", "composed")} == {
        "workers": 3,
        "updates": 2,
        "batch": 2,
        "composed": 0.25,
    }


def test_a_last_stage_follows_once_and_is_what_is_written(
    tiny: Path, whole: Path, tmp_path: Path
) -> None:
    """It goes on with what GRPO made; a kill in it, or after it, makes nobody do it twice."""
    finishing = recipe(tiny, tmp_path, finish={"updates": 2, "batch": 2, "rate": 1e-2})
    told: list[Told] = []

    grpo.train(finishing, pool=workers(), progress=told.append)

    stages = [(each.stage, each.done) for each in told]
    assert stages[:4] == [("grpo", done) for done in range(4)]
    assert {stage for stage, _ in stages[4:]} == {"finish"}
    assert stages[-1] == ("finish", 2)
    assert rows(tmp_path, grpo.METRICS) == rows(whole, grpo.METRICS)
    ended, last, before, grpos = (
        (folder / "adapter_model.safetensors").read_bytes()
        for folder in (tmp_path, tmp_path / "finished", tmp_path / "finished" / "before", whole)
    )
    assert ended == last != before == grpos
    told.clear()
    grpo.train(finishing, resume=True, pool=workers(), progress=told.append)
    assert [(each.stage, each.done) for each in told] == [("grpo", 3)]
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == ended
    told.clear()
    longer = finishing.model_copy(update={"grpo": finishing.grpo.model_copy(update={"updates": 6})})
    grpo.train(longer, resume=True, pool=workers(), progress=told.append)
    assert ("finish", 2) in [(each.stage, each.done) for each in told], "of what it has become"
    assert (tmp_path / "adapter_model.safetensors").read_bytes() != ended


def test_throughput_is_measured_now_and_then_and_changes_nothing(
    whole: Path, tiny: Path, tmp_path: Path
) -> None:
    grpo.train(recipe(tiny, tmp_path, run={"alone": 2}), pool=workers())

    found = rows(tmp_path, grpo.METRICS)
    shares = [row.pop("throughput", None) for row in found]
    assert found == rows(whole, grpo.METRICS)
    assert shares[1] is None
    assert all(share is not None and share > 0 for share in (shares[0], shares[2]))


def test_under_the_grammar_what_is_not_cut_is_a_plan_of_who_is_offered(whole: Path) -> None:
    for each in rows(whole, grpo.ROLLOUTS):
        assert each["valid"] == (each["workers"] is not None)
        assert set(each["workers"] or ()) <= set(each["offered"])
        assert each["valid"] == each["text"].rstrip().endswith("]]")


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not(
    tiny: Path, whole: Path, tmp_path: Path
) -> None:
    begun = recipe(tiny, tmp_path)
    first = grpo.train(begun, pool=workers(), stop=lambda: True)
    assert (first.finished, first.updates) == (False, 1)
    with pytest.raises(RecipeError, match="--resume goes on with it, --anew begins again"):
        grpo.train(begun, pool=workers())
    # A kill in the middle of an update and of a checkpoint leaves such things behind.
    with (tmp_path / grpo.ROLLOUTS).open("a") as file:
        file.write('{"update": 1, "group": 0}\n{"upda')
    (tmp_path / "checkpoints" / "checkpoint-2").mkdir()

    grpo.train(begun, resume=True, pool=workers())

    assert rows(tmp_path, grpo.METRICS) == rows(whole, grpo.METRICS)
    assert rows(tmp_path, grpo.ROLLOUTS) == rows(whole, grpo.ROLLOUTS)
    one, other = (each / "adapter_model.safetensors" for each in (tmp_path, whole))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("stage", ["cold", "second", "finish"])
def test_the_stages_before_and_after_can_be_stopped_too(
    stage: str, tiny: Path, tmp_path: Path
) -> None:
    begin = {"adapter": None, "updates": 3, "batch": 2, "rank": 2, "second": 2}
    learning = {"updates": 1, "rounds": 2}
    short = {"begin": begin, "grpo": learning, "finish": {"updates": 3, "batch": 2}}
    folders = [tmp_path / "whole", tmp_path / "stopped"]
    for folder in folders:
        folder.mkdir()
    at: list[str] = []

    def stop() -> bool:
        return at[-1] == stage

    grpo.train(recipe(tiny, folders[0], **short), pool=workers())
    stopped = recipe(tiny, folders[1], **short)
    first = grpo.train(
        stopped, pool=workers(), stop=stop, progress=lambda told: at.append(told.stage)
    )

    assert (first.finished, first.updates) == (False, int(stage == "finish"))
    assert at[-1] == stage
    assert grpo.train(stopped, resume=True, pool=workers()).finished
    for name in ("cold", "second", ".", "finished"):
        one, other = (each / name / "adapter_model.safetensors" for each in folders)
        assert one.read_bytes() == other.read_bytes()


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_grpo as this
from training import grpo
def heard(told):
    if told.done == 2:
        os.kill(os.getpid(), signal.SIGKILL)
grpo.train(this.recipe(Path({tiny!r}), Path({output!r})), pool=this.workers(), progress=heard)
"""


def test_a_killed_training_goes_on_as_if_it_had_not_been(
    tiny: Path, whole: Path, tmp_path: Path
) -> None:
    here = Path(__file__).parent
    script = KILLED.format(tests=str(here), tiny=str(tiny), output=str(tmp_path))
    environment = os.environ | {"PYTHONPATH": str(here.parent)}
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, check=False
    )
    assert ended.returncode == -signal.SIGKILL

    grpo.train(recipe(tiny, tmp_path), resume=True, pool=workers())

    assert rows(tmp_path, grpo.METRICS) == rows(whole, grpo.METRICS)
    assert rows(tmp_path, grpo.ROLLOUTS) == rows(whole, grpo.ROLLOUTS)


def test_log_probabilities_are_those_of_trl(tiny: Path, tmp_path: Path) -> None:
    from datasets import Dataset

    ours, theirs = (
        grpo._trainer_of(how)(
            model=grpo._loaded(how, tiny / "adapter")[0],
            reward_funcs=lambda **_: [0.0],
            args=grpo.config_of(how),
            train_dataset=Dataset.from_dict({"prompt": ["a"]}),
            processing_class=grpo._loaded(how, None)[1],
        )
        for how in (recipe(tiny, tmp_path), recipe(tiny, tmp_path, engine="trl", constrained=False))
    )
    ids = torch.tensor([[0, 0, 5, 6, 7, 8, 9], [0, 5, 6, 7, 7, 8, 0], [0, 5, 6, 7, 7, 8, 9]])
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1, 1]])

    found, entropies, _ = ours._get_per_token_logps_and_entropies(
        ours.model, ids, mask, 4, compute_entropy=True
    )
    expected, expected_entropies, _ = theirs._get_per_token_logps_and_entropies(
        theirs.model.float(), ids, mask, 4, compute_entropy=True
    )

    kept = mask[:, -4:].bool()
    torch.testing.assert_close(found[kept], expected[kept], atol=1e-4, rtol=0)
    torch.testing.assert_close(entropies[kept], expected_entropies[kept], atol=1e-4, rtol=0)


def test_the_prompt_in_training_is_the_one_of_serving(tiny: Path, tmp_path: Path) -> None:
    """By our tokens and by TRL's own rendering of the dataset's rows."""
    how = recipe(tiny, tmp_path)
    _, tokenizer = grpo._loaded(how, None)
    course = grpo.Course(3, questions=2, tasks=10)
    play = grpo._Play(how, course, None, ("one", "two", "three"), tokenizer, None)  # type: ignore[arg-type]

    asked = play.rows({"slot": [0, 1]})

    for prompt, question in zip(asked["prompt"], asked["question"], strict=True):
        served = prompt_ids(tokenizer, brief_messages(question.task.question, question.offered))
        rendered = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        assert rendered["input_ids"] == served


def test_two_rounds_are_groups_of_their_own(tiny: Path, tmp_path: Path) -> None:
    how = recipe(tiny, tmp_path, grpo={"rounds": 2, "updates": 1})
    grpo.train(how, pool=workers())

    found = rows(tmp_path, grpo.ROLLOUTS)
    assert [each["round"] for each in found] == [1] * 4 + [2] * 4 + [1] * 4 + [2] * 4
    firsts = [each for each in found if each["round"] == 1]
    seconds = [each for each in found if each["round"] == 2]
    assert any(each["kept"] for each in seconds)
    for first, second in zip(firsts, seconds, strict=True):
        assert first["question"] == second["question"]
        if first["answer"] is None:
            assert second["valid"] is None
            assert second["reward"] is None
            continue
        assert second["reward"] in (0.0, 0.5, None)
        if second["reward"] is None:
            assert first["reward"] is None  # a blend with the unknown is unknown
        else:
            assert first["reward"] == 0.75 * 0.5 + 0.25 * second["reward"]


def test_the_form_of_second_rounds_is_learned_between_cold_start_and_grpo(
    tiny: Path, tmp_path: Path
) -> None:
    how = recipe(
        tiny, tmp_path, begin={"second": 2}, grpo={"rounds": 2, "updates": 1, "rate": 1e-30}
    )
    told: list[Told] = []

    grpo.train(how, pool=workers(), progress=told.append)

    stages = list(dict.fromkeys((each.stage, each.done) for each in told))
    assert [each for each in stages if each[1] in (0, 2) or each[0] == "grpo"] == [
        ("second", 0),
        ("second", 2),
        ("grpo", 0),
        ("grpo", 1),
    ]
    from safetensors.torch import load_file

    about = json.loads((tmp_path / "second" / "training.json").read_text())["finish"]
    assert about["second"] == 0.5
    before, after, ended = (
        load_file(each / "adapter_model.safetensors")
        for each in (tiny / "adapter", tmp_path / "second", tmp_path)
    )
    assert any(not torch.equal(before[name].half(), after[name]) for name in before)
    assert all(torch.equal(after[name], ended[name]) for name in after), "GRPO goes on with it"


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ({"begin": {"second": 2}}, "begin.second takes grpo.rounds = 2"),
        (
            {"begin": {"second": 2, "adapter": None, "updates": 0}, "grpo": {"rounds": 2}},
            "begin.second takes an adapter, and begin makes none",
        ),
    ],
)
def test_second_rounds_take_what_they_follow(
    tables: dict[str, Any], told: str, tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=told):
        recipe(tiny, tmp_path, **tables)


def test_what_several_keys_make_wrong_is_told_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('output = "here"\n[begin]\nsecond = 2\n', encoding="utf-8")

    with pytest.raises(RecipeError) as caught:
        grpo.read_recipe(path)

    assert str(caught.value) == f"{path}: begin.second takes grpo.rounds = 2"


def test_a_recipe_that_trl_does_not_take_is_told(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"\[trl\]: .*no_such_setting"):
        grpo.config_of(recipe(tiny, tmp_path, trl={"no_such_setting": 1}))
