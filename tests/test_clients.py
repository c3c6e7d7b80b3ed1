"""Configurations of clients: what is printed is parsed as the client would."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from conductor.cli import app
from conductor.clients import Client, configuration

URL = "http://127.0.0.1:8123/v1"


def parsed(client: Client, text: str) -> Any:
    if client is Client.CODEX:
        return tomllib.loads(text)
    return json.loads(text) if client is Client.OPENCODE else yaml.safe_load(text)


def expected(client: Client, model: str, variable: str) -> Any:
    if client is Client.CODEX:
        provider = {"name": "Conductor", "base_url": URL, "wire_api": "responses"}
        if variable:
            provider["env_key"] = variable
        return {
            "model": model,
            "model_provider": "conductor",
            "model_providers": {"conductor": provider},
        }
    if client is Client.OPENCODE:
        options = {"baseURL": URL}
        if variable:
            options["apiKey"] = f"{{env:{variable}}}"
        return {
            "$schema": "https://opencode.ai/config.json",
            "model": f"conductor/{model}",
            "small_model": f"conductor/{model}",
            "provider": {
                "conductor": {
                    "npm": "@ai-sdk/openai-compatible",
                    "name": "Conductor",
                    "options": options,
                    "models": {model: {"name": f"Conductor: {model}", "tool_call": True}},
                }
            },
        }
    if client is Client.LLM:
        entry: dict[str, Any] = {"model_id": model, "model_name": model, "api_base": URL}
        entry |= {"supports_tools": True, "supports_schema": True}
        return [{**entry, "api_key_name": "conductor"} if variable else entry]
    key = f"os.environ/{variable}" if variable else "none"
    params = {"model": f"openai/{model}", "api_base": URL, "api_key": key}
    return {"model_list": [{"model_name": model, "litellm_params": params}]}


@pytest.mark.parametrize("client", list(Client))
@pytest.mark.parametrize("variable", ["", "TEAM_KEY"])
@pytest.mark.parametrize("model", ["conductor", "worker/pro-2.5", "conductor@24791215ad96"])
def test_what_the_command_prints_is_what_the_client_reads(
    client: Client, variable: str, model: str
) -> None:
    """The whole file, with a comment where the format has comments, and the guide in any case."""
    asked = ["config", client.value, "--url", URL, "--model", model]

    done = CliRunner().invoke(app, [*asked, *(["--key-env", variable] if variable else [])])

    assert done.exit_code == 0, done.output
    assert parsed(client, done.stdout) == expected(client, model, variable)
    guide = done.stderr if client is Client.OPENCODE else done.stdout
    assert "then: " in guide.replace("\n", " ")
    assert (variable or "then: ") in done.output


@pytest.mark.parametrize("client", list(Client))
def test_the_guide_is_a_comment_and_nothing_more(client: Client) -> None:
    """Without it the file says the same."""
    written = configuration(client, url=URL, model="trinity", variable="TEAM_KEY")

    assert parsed(client, written.text) == parsed(client, str(written))
    assert all("\n" not in line for line in written.guide)


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
        ("https://team.example/llm/v1/", "https://team.example/llm/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
    ],
)
def test_addresses_are_completed(given: str, base: str) -> None:
    """As every client wants them: with the path, without a slash at the end."""
    read = tomllib.loads(configuration(Client.CODEX, url=given, model="conductor").text)

    assert read["model_providers"]["conductor"]["base_url"] == base


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--key-env", "sk-conductor-secret", "name the variable, not the key itself"),
        ("--model", 'a"\nb = "c', "take conductor, trinity, worker/NAME"),
        ("--model", "{env:HOME}", "take conductor, trinity, worker/NAME"),
        ("--url", "127.0.0.1:8000", "write it as http://127.0.0.1:8000/v1"),
        ("--url", "http://a:b/v1", "write it as http://127.0.0.1:8000/v1"),
        ("--url", "http://h/{env:HOME}", "write it as http://127.0.0.1:8000/v1"),
        ("--url", "http://ann:sk-secret@h/v1", "leave them out, and name a variable"),
    ],
)
def test_what_can_not_be_written_is_refused(option: str, value: str, told: str) -> None:
    """With the remedy, and without showing what may be a key."""
    done = CliRunner().invoke(app, ["config", "codex", option, value])

    assert (done.exit_code, done.stdout) == (2, "")
    assert told in re.sub(r"\s+", " ", done.stderr)
    assert "secret" not in done.stderr
