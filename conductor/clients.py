"""Configurations of other people's clients, for a server that `conductor serve` runs.

None of them has a key in it, only the name of the environment variable that holds one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated
from urllib.parse import urlsplit

import typer

from .terminal import fail, remark, say

_MODEL = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*(/[A-Za-z][A-Za-z0-9_.-]*)?(@[0-9a-f]+)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Client(StrEnum):
    """The clients that a configuration can be written for."""

    CODEX = "codex"
    OPENCODE = "opencode"
    LLM = "llm"
    LITELLM = "litellm"


@dataclass(frozen=True, slots=True)
class Configuration:
    """What to write into a client's file."""

    text: str
    """The content of the file."""
    guide: tuple[str, ...]
    """Where the file belongs, and how the client is started; without comment signs."""
    comment: str
    """What begins a comment in such a file; empty if it can have none."""

    def __str__(self) -> str:
        """The file, with the guide as comments at the top if it can have any."""
        lines = [f"{self.comment} {line}\n" for line in self.guide] if self.comment else []
        return "".join(lines) + self.text


def configuration(client: Client, *, url: str, model: str, variable: str = "") -> Configuration:
    """Write a client's configuration.

    Args:
        client: Which one.
        url: Base address of the server; ``/v1`` is added if it has no path.
        model: Id of a model that the server has.
        variable: The environment variable with the key; none if the server asks for no key.

    Raises:
        ValueError: If the address, the id or the name of the variable is none.
    """
    if variable and not _VARIABLE.fullmatch(variable):
        raise ValueError("the key's variable: not a name; name the variable, not the key itself")
    if not _MODEL.fullmatch(model):
        told = f"model: {model!r} is no id; take conductor, trinity, worker/NAME"
        raise ValueError(f"{told}, or one of them with @HASH")
    return _WRITERS[client](_base(url), model, variable)


def _base(url: str) -> str:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises if it is no number
    except ValueError:
        parts = urlsplit("")
    plain = url.isascii() and not re.search(r"[\s\"'\\{}$#?<>\x00-\x1f\x7f]", url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
        raise ValueError("url: not an address; write it as http://127.0.0.1:8000/v1")
    if "@" in parts.netloc:
        raise ValueError("url: has a name or password in it; leave them out, and name a variable")
    return url.rstrip("/") if parts.path.strip("/") else f"{url.rstrip('/')}/v1"


def _codex(url: str, model: str, variable: str) -> Configuration:
    lines = [
        f"model = {json.dumps(model)}",
        'model_provider = "conductor"',
        "",
        "[model_providers.conductor]",
        'name = "Conductor"',
        f"base_url = {json.dumps(url)}",
        'wire_api = "responses"',
    ]
    if variable:
        lines.append(f"env_key = {json.dumps(variable)}")
    guide = (
        "Codex CLI: put this into ~/.codex/conductor.config.toml, then: codex --profile conductor",
        "(or at the top of ~/.codex/config.toml, for all of your work; then: codex)",
    )
    return Configuration("\n".join(lines) + "\n", guide, "#")


def _opencode(url: str, model: str, variable: str) -> Configuration:
    options = {"baseURL": url}
    if variable:
        options["apiKey"] = f"{{env:{variable}}}"
    content = {
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
    guide = ("opencode: put this into opencode.json of your project, then: opencode",)
    return Configuration(json.dumps(content, indent=2) + "\n", guide, "")


def _llm(url: str, model: str, variable: str) -> Configuration:
    lines = [
        f"- model_id: {json.dumps(model)}",
        f"  model_name: {json.dumps(model)}",
        f"  api_base: {json.dumps(url)}",
        "  supports_tools: true",
        "  supports_schema: true",
    ]
    guide = [
        "llm: add this to extra-openai-models.yaml in the folder of: dirname $(llm logs path)",
        f"then: llm -m {model} 'Is tea healthy?'",
    ]
    if variable:
        lines.append("  api_key_name: conductor")
        guide.insert(1, f'once: llm keys set conductor --value "${variable}"')
    return Configuration("\n".join(lines) + "\n", tuple(guide), "#")


def _litellm(url: str, model: str, variable: str) -> Configuration:
    key = f"os.environ/{variable}" if variable else "none"  # it sends none without any at all
    lines = [
        "model_list:",
        f"  - model_name: {json.dumps(model)}",
        "    litellm_params:",
        f"      model: {json.dumps(f'openai/{model}')}",
        f"      api_base: {json.dumps(url)}",
        f"      api_key: {json.dumps(key)}",
    ]
    guide = ("LiteLLM: put this into config.yaml, then: litellm --config config.yaml --port 4000",)
    return Configuration("\n".join(lines) + "\n", guide, "#")


_WRITERS: dict[Client, Callable[[str, str, str], Configuration]] = {
    Client.CODEX: _codex,
    Client.OPENCODE: _opencode,
    Client.LLM: _llm,
    Client.LITELLM: _litellm,
}


def config(
    client: Annotated[Client, typer.Argument(help="For which client.")],
    url: Annotated[
        str, typer.Option("--url", metavar="URL", help="Where `conductor serve` listens.")
    ] = "http://127.0.0.1:8000/v1",
    model: Annotated[
        str, typer.Option("--model", metavar="ID", help="A model of the server.")
    ] = "conductor",
    key_env: Annotated[
        str, typer.Option("--key-env", metavar="NAME", help="The variable with your key, if any.")
    ] = "",
) -> None:
    """Print the configuration with which a client talks to `conductor serve`."""
    try:
        written = configuration(client, url=url, model=model, variable=key_env)
    except ValueError as error:
        fail(str(error))
    say(str(written), end="")
    if not written.comment:
        for line in written.guide:
            remark(line)
