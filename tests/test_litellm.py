"""Pool files from LiteLLM's configurations: what is carried over, what is told, what is refused."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from conductor import Pool
from conductor.cli import app
from conductor.litellm import LiteLLMError, pool_of_litellm

FILE = """\
model_list:
  - model_name: gpt-4o
    litellm_params:
      model: openai/gpt-4o
      api_key: os.environ/OPENAI_API_KEY
      rpm: 480
      tpm: 100000
      timeout: 300
      stream_timeout: 60
    model_info:
      input_cost_per_token: 2.5e-06
      output_cost_per_token: 1e-5
  - model_name: gpt-4o
    litellm_params: {model: azure/my-deployment, api_base: "https://x.openai.azure.com",
                     api_key: os.environ/AZURE_API_KEY}
  - model_name: claude
    litellm_params: {model: anthropic/claude-opus-5-5, max_tokens: 4096, num_retries: 4}
  - model_name: small llama
    litellm_params: {model: ollama_chat/llama3.1:8b, api_base: "http://127.0.0.1:11434"}
  - model_name: own
    litellm_params:
      model: openai/Qwen/Qwen3-8B
      api_base: os.environ/VLLM_BASE
      api_key: none
      max_parallel_requests: 16
      temperature: 0.2
      extra_headers: {X-Team: os.environ/TEAM}
  - model_name: own
    litellm_params: {model: hosted_vllm/Qwen/Qwen3-8B, api_base: "http://10.0.0.2:8000/v1/"}
  - model_name: embed
    litellm_params: {model: openai/text-embedding-3-small}
    model_info: {mode: embedding}
  - model_name: "*"
    litellm_params: {model: "openai/*"}
litellm_settings:
  fallbacks: [{"gpt-4o": ["claude", "small llama"]}]
  drop_params: true
general_settings:
  master_key: sk-secret-1234
"""
ENV = {"OPENAI_API_KEY": "a", "ANTHROPIC_API_KEY": "b", "VLLM_BASE": "http://v/v1", "TEAM": "t"}


def test_workers_are_those_of_the_list() -> None:
    """Field by field."""
    read = tomllib.loads(pool_of_litellm(FILE).text)

    assert read["planner"] == {"worker": "gpt-4o"}
    assert list(read["workers"]) == ["gpt-4o", "claude", "small-llama", "own", "own-2"]
    first, claude, llama, own, second = read["workers"].values()
    assert {name: each for name, each in first.items() if name != "card"} == {
        "kind": "openai",
        "url": "https://api.openai.com/v1",
        "model": "gpt-4o",
        "key": "${OPENAI_API_KEY}",
        "token_limit_field": "max_completion_tokens",
        "requests_per_minute": 480,
        "tokens_per_minute": 100_000,
        "call_s": 300,
        "price": {"input": 2.5, "output": 10.0},
        "fallback": ["claude", "small-llama"],
    }
    assert (claude["key"], claude["max_tokens"]) == ("${ANTHROPIC_API_KEY}", 4096)
    assert (claude["url"], claude["retries"]) == ("https://api.anthropic.com/v1", 4)
    assert (llama["url"], llama["model"]) == ("http://127.0.0.1:11434/v1", "llama3.1:8b")
    assert "key" not in llama
    assert own == {
        "kind": "openai",
        "url": "${VLLM_BASE}",
        "model": "Qwen/Qwen3-8B",
        "headers": {"X-Team": "${TEAM}"},
        "concurrency": 16,
        "temperature": 0.2,
        "fallback": ["own-2"],
    }
    assert second["url"] == "http://10.0.0.2:8000/v1"


def test_what_is_not_carried_over_is_told_by_name_and_without_its_value() -> None:
    """One line each."""
    left = pool_of_litellm(FILE).left

    assert left == (
        "gpt-4o: stream_timeout is not carried over",
        "gpt-4o: left out: nothing is known of an API of azure that is like OpenAI's",
        "small llama: is called small-llama, as the names of workers must be",
        "embed: left out: mode embedding is no chat",
        "*: left out: a pool needs the models one by one, not *",
        "own: own-2 stand in for own; calls are not shared among them",
        "litellm_settings.drop_params is not carried over",
        "general_settings.master_key is not carried over",
    )


def test_the_command_writes_a_file_that_is_a_pool(tmp_path: Path) -> None:
    """And shows no secret."""
    (tmp_path / "config.yaml").write_text(FILE, encoding="utf-8")
    output = tmp_path / "pool.toml"
    asked = ["init", "--from-litellm", str(tmp_path / "config.yaml"), "-o", str(output)]

    done = CliRunner().invoke(app, asked)

    assert done.exit_code == 0, done.output
    assert "found small-llama" in done.stdout
    assert "embed: left out" in done.stderr
    assert "sk-secret" not in done.output + output.read_text(encoding="utf-8")
    assert Pool.load(output, ENV).names == ("gpt-4o", "claude", "small-llama", "own", "own-2")
    assert CliRunner().invoke(app, asked).exit_code == 2  # it exists now


def entry(**params: Any) -> str:
    """A configuration of one model, in YAML's form that is JSON."""
    import json

    return json.dumps({"model_list": [{"model_name": "m", "litellm_params": params}]})


LOCAL = {"model": "openai/m", "api_base": "http://127.0.0.1:1/v1"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (entry(**LOCAL, api_key="sk-secret"), "model_list[0] (m): api_key: a key is written"),
        (entry(model="bedrock/x", api_key="sk-secret"), "write os.environ/NAME"),
        (entry(**LOCAL, api_key="os.environ/sk-secret"), "write os.environ/NAME"),
        (
            entry(**LOCAL, extra_headers={"Authorization": "Bearer sk-secret"}),
            "extra_headers.Authorization: a key is written",
        ),
        (entry(model="openai/m", api_base="http://a:sk-secret@h/v1"), "put the whole address"),
        (entry(model="openai/m", api_base="http://h/v1?key=sk-secret"), "put the whole address"),
        (entry(model="bedrock/x", aws_secret="sk-secret"), "an API of bedrock"),
        (entry(model="mystery"), "write it as PROVIDER/MODEL"),
        (entry(model="os.environ/MODEL"), "write it out"),
        (entry(model="hosted_vllm/m"), "it has no api_base"),
        (entry(model="gemini/m", api_base="http://h"), "api_base of gemini"),
        (entry(model="openai/m", api_base="h:1"), "its api_base is no address"),
        (entry(), "it has no model"),
        ("model_list: [{model_name: m}]", "needs a model_name and litellm_params"),
        ("model_list: []", "has no model_list"),
        ("- a", "has no model_list"),
        ("a: [", "config.yaml:1: not valid YAML"),
        ("a: 2026-99-99", "not valid YAML"),
        ("!!python/object:os.system a", "not valid YAML"),
    ],
)
def test_what_is_refused(text: str, told: str) -> None:
    """With the place and the remedy; a secret is not shown."""
    with pytest.raises(LiteLLMError) as raised:
        pool_of_litellm(text)

    assert told in str(raised.value)
    assert "secret" not in str(raised.value).replace("aws_secret", "")


def test_settings_that_a_pool_would_not_take_are_left_out() -> None:
    """One bad setting costs itself, not the model."""
    imported = pool_of_litellm(entry(**LOCAL, rpm="many", tpm=0, temperature=0.5, timeout=9))

    (table,) = tomllib.loads(imported.text)["workers"].values()
    assert table == {
        "kind": "openai",
        "url": "http://127.0.0.1:1/v1",
        "model": "m",
        "temperature": 0.5,
        "call_s": 9,
    }
    assert sorted(line.split(",")[0] for line in imported.left) == ["m: rpm", "m: tpm"]


@settings(max_examples=30, deadline=None)
@given(st.text(min_size=1, max_size=80), st.text(min_size=1))
@example("0", "\x85")
def test_any_names_come_to_a_pool_or_to_a_reason(alias: str, model: str) -> None:
    """And the model's name comes back from the pool as YAML has it: it folds some line breaks."""
    import json

    import yaml

    params = {**LOCAL, "model": f"openai/{model}"}
    entries = [{"model_name": alias, "litellm_params": params}] * 2
    text = json.dumps({"model_list": entries}, ensure_ascii=False)
    try:
        imported = pool_of_litellm(text)
    except LiteLLMError as error:
        unreadable = not (alias + model).isprintable()  # YAML takes some of these, not all
        assert "*" in alias + model or unreadable, str(error)
        return

    read = tomllib.loads(imported.text)["workers"].values()
    written = yaml.safe_load(text)["model_list"][0]["litellm_params"]["model"]
    named = written.removeprefix("openai/")
    assert [each["model"].replace("$$", "$") for each in read] == [named, named]
