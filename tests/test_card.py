"""The card of a trained Conductor says what its folder holds, and what it shows works."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from conductor import Pool
from conductor.config import ORCHESTRA
from conductor.prompt import brief_messages, plan_text
from grammar import parse
from tests.trainings import ROSTER, write_training
from training.card import CARD, machine, write_card
from training.intervals import Interval


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = write_training(tmp_path_factory.mktemp("trained"), updates=40)
    (target / "adapter_config.json").write_text('{"r": 8}', encoding="utf-8")
    (target / "adapter_model.safetensors").write_bytes(bytes(4_900_000))
    (target / "cold").mkdir()
    (target / "cold" / "training.json").write_text('{"seconds": 600}', encoding="utf-8")
    return target


def written(folder: Path, **figures: Any) -> str:
    return write_card(folder, figures).read_text(encoding="utf-8")


def block(text: str, language: str) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return str(found[0])


def changed(folder: Path, target: Path, **about: Any) -> Path:
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        (target / name).write_bytes((folder / name).read_bytes())
    kept = json.loads((folder / "conductor.json").read_text(encoding="utf-8"))
    (target / "conductor.json").write_text(json.dumps(kept | about), encoding="utf-8")
    return target


def test_the_hub_is_told_what_it_is(folder: Path) -> None:
    _, front, _ = written(folder).split("---\n", 2)

    assert yaml.safe_load(front) == {
        "license": "apache-2.0",
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "language": ["en"],
        "tags": ["conductor", "orchestration", "planning", "grpo", "trl", "lora"],
    }


def test_all_weights_of_a_model_of_the_hub(folder: Path, tmp_path: Path) -> None:
    target = changed(folder, tmp_path, model="Qwen/Qwen2.5-7B-Instruct", adapter="")

    text = written(target)

    told = yaml.safe_load(text.split("---\n", 2)[1])
    assert told["base_model"] == "Qwen/Qwen2.5-7B-Instruct"
    assert (told["base_model_relation"], told["library_name"]) == ("finetune", "transformers")
    assert "license" not in told, "it is not known here"
    assert "lora" not in told["tags"]
    assert "adapter" not in tomllib.loads(block(text, "toml"))["workers"]["conductor"]


def test_the_pool_file_that_it_shows_serves_it(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    shown = block(written(folder), "toml")
    file.write_text(ORCHESTRA.read_text(encoding="utf-8") + "\n" + shown, encoding="utf-8")

    pool = Pool.load(file)

    assert pool.planner.name == "conductor"
    assert pool.planning.roster == ROSTER


def test_the_plan_that_it_shows_is_one_of_those_that_were_right(folder: Path) -> None:
    text = written(folder)
    prompt, plan = block(text, "text"), block(text, "plan")
    rows = [
        json.loads(row)
        for row in (folder / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()
    ]

    assert plan_text(parse(plan)) == plan
    (row, *_) = [
        row
        for row in rows
        if row["score"] == 1 and row["text"] == plan and row["question"] in prompt
    ]
    system, user = brief_messages(row["question"], row["offered"])
    assert (
        prompt
        == f"system: {system.content}\nuser:   " + user.content.replace("\n", "\n        ") + "\n"
    )


def test_figures_are_told_as_they_are_given(folder: Path) -> None:
    text = written(
        folder,
        parse=Interval(0.99, 0.97, 1.0),
        told="All of them were valid.",
        held_out={"this one": "0.80 [0.76, 0.83]", "tasks": 1400},
    )

    assert "\n\nAll of them were valid.\n\n" in text and "| told" not in text

    assert "| parse    | 0.990 [0.970, 1.000] |" in text
    assert "| this one | 0.80 [0.76, 0.83] |\n| tasks    | 1,400             |" in text
    assert "has not been measured" in written(folder)


def test_it_says_how_it_was_trained(folder: Path) -> None:
    text = written(folder)
    rows = [
        json.loads(row)
        for row in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]

    minutes = sum(row["seconds"] for row in rows) / 60
    assert "100 updates of SFT, 16 plans each, 10 minutes," in text
    assert "40 updates of 8 questions with 8 completions each, rate 0.0005" in text
    assert f"{minutes:.0f} minutes, in which workers were called 1,200 times" in text
    assert "a LoRA adapter, rank 8, 4.9 MB" in text
    assert "2,560 completions in all" in text


def test_it_says_whether_a_last_stage_followed(folder: Path, tmp_path: Path) -> None:
    assert "At last" not in written(folder)
    target = changed(folder, tmp_path)
    (target / "finished").mkdir()
    record = {"seconds": 480, "finish": {"updates": 100, "batch": 8}}
    (target / "finished" / "training.json").write_text(json.dumps(record), encoding="utf-8")

    text = written(target)

    assert "**At last**: 100 updates of SFT, 8 plans each, 8 minutes, on questions in many" in text
    assert "In GRPO, sampled, at its end, before the last stage:" in text
    assert "## What it learned\n\nThis is of GRPO, before the last stage" in text


def test_it_says_how_second_rounds_began(folder: Path, tmp_path: Path) -> None:
    assert "second rounds" not in written(folder)
    recipe = json.loads((folder / "conductor.json").read_text(encoding="utf-8"))["recipe"]
    target = changed(folder, tmp_path, recipe=recipe | {"grpo": {**recipe["grpo"], "rounds": 2}})
    (target / "second").mkdir()
    record = {"seconds": 300, "finish": {"updates": 40, "batch": 8, "second": 0.5}}
    (target / "second" / "training.json").write_text(json.dumps(record), encoding="utf-8")

    text = written(target)

    told = "40 updates of SFT, 8 lessons each, 5 minutes. In about 50% of them its own plan"
    assert f"**The form of second rounds**: {told}" in text
    assert "2,560 completions in all (first rounds)." in text


def test_it_says_what_else_moved_it(folder: Path, tmp_path: Path) -> None:
    assert "Beside the reward" not in written(folder)
    recipe = json.loads((folder / "conductor.json").read_text(encoding="utf-8"))["recipe"]
    how = {**recipe["grpo"], "beta": 0.3, "layers_from": 15}

    text = written(
        changed(
            folder, tmp_path, recipe=recipe | {"grpo": how, "run": {"length": 0.001, "parts": 0.25}}
        )
    )

    (line,) = [each for each in text.splitlines() if each.startswith("**Beside the reward**")]
    assert "KL term to the model that it began as, weight 0.3" in line
    assert "only layers from 15 on were trained" in line
    assert "0.25 more for a wrong one if a step was right about each earlier part" in text
    assert "less 0.001 for a token of the completion." in text


def test_pictures_are_shown_that_are_there(folder: Path, tmp_path: Path) -> None:
    target = changed(folder, tmp_path)
    assert "![" not in written(target)

    (target / "pictures").mkdir()
    for name in ("curves", "plans"):
        (target / "pictures" / f"{name}.svg").touch()

    assert re.findall(r"!\[.*?\]\((.*?)\)", written(target)) == [
        "pictures/curves.svg",
        "pictures/plans.svg",
    ]


def test_the_machine_is_told_if_it_is_known(folder: Path, tmp_path: Path) -> None:
    assert "made on" not in written(folder)
    found = machine()

    text = written(changed(folder, tmp_path, machine=found))

    (line,) = [line for line in text.splitlines() if line.startswith("| made on")]
    assert f"{found['cores']} cores of {found['cpu']}" in line
    assert f"torch {found['torch']}" in line


def test_a_training_without_updates_has_a_card(tmp_path: Path) -> None:
    write_training(tmp_path, updates=1)
    about = json.loads((tmp_path / "conductor.json").read_text(encoding="utf-8"))
    (tmp_path / "conductor.json").write_text(json.dumps(about | {"last": {}}), encoding="utf-8")
    (tmp_path / "metrics.jsonl").write_text("", encoding="utf-8")
    (tmp_path / "rollouts.jsonl").write_text("", encoding="utf-8")

    assert "## Limits" in write_card(tmp_path).read_text(encoding="utf-8")
    assert (tmp_path / CARD).exists()
