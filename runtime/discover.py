"""What is there to use: keys in the environment and servers on this machine, as a pool file.

Nothing leaves the machine: variables are looked at, not sent, and only loopback is probed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import anyio

from .connections import HttpClient
from .endpoint import Endpoint
from .errors import WorkerError

PROBE_TIMEOUT_S = 1.0
_MODELS_PER_SERVER = 3  # more would be variations of one; the rest is named in a comment


@dataclass(frozen=True, slots=True)
class Provider:
    """A hosted service with an OpenAI-compatible API."""

    name: str
    """Of the service, and of its worker."""
    title: str
    variables: tuple[str, ...]
    """Where its key is looked for, in order."""
    url: str
    model: str
    """A strong general model of it."""
    card: str
    token_limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # noqa: S105 - a field's name


PROVIDERS: tuple[Provider, ...] = (
    Provider(
        "anthropic",
        "Anthropic",
        ("ANTHROPIC_API_KEY",),
        "https://api.anthropic.com/v1",
        "claude-opus-5-5",
        "Claude: careful reasoning, long work on code, writing",
    ),
    Provider(
        "openai",
        "OpenAI",
        ("OPENAI_API_KEY",),
        "https://api.openai.com/v1",
        "gpt-6.1-sol",
        "GPT: complex coding and professional work",
        token_limit_field="max_completion_tokens",  # noqa: S106 - a field's name
    ),
    Provider(
        "gemini",
        "Google Gemini",
        ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
        "https://generativelanguage.googleapis.com/v1beta/openai",
        "gemini-3.8-flash",
        "Gemini: long contexts, mathematics, science; fast",
    ),
    Provider(
        "xai",
        "xAI",
        ("XAI_API_KEY",),
        "https://api.x.ai/v1",
        "grok-4.7",
        "Grok: coding and knowledge work",
    ),
    Provider(
        "deepseek",
        "DeepSeek",
        ("DEEPSEEK_API_KEY",),
        "https://api.deepseek.com/v1",
        "deepseek-flash",
        "DeepSeek: reasoning and code at a low price",
    ),
    Provider(
        "mistral",
        "Mistral AI",
        ("MISTRAL_API_KEY",),
        "https://api.mistral.ai/v1",
        "mistral-large-latest",
        "Mistral: European languages, instructions, code",
    ),
    Provider(
        "openrouter",
        "OpenRouter",
        ("OPENROUTER_API_KEY",),
        "https://openrouter.ai/api/v1",
        "openrouter/auto",
        "Any of several hundred models, chosen per request",
    ),
    Provider(
        "together",
        "Together AI",
        ("TOGETHER_API_KEY",),
        "https://api.together.ai/v1",
        "moonshotai/Kimi-K3",
        "Kimi: a large open model for reasoning and code",
    ),
    Provider(
        "fireworks",
        "Fireworks AI",
        ("FIREWORKS_API_KEY",),
        "https://api.fireworks.ai/inference/v1",
        "accounts/fireworks/models/kimi-k3",
        "Kimi: a large open model for reasoning and code",
    ),
    Provider(
        "groq",
        "Groq",
        ("GROQ_API_KEY",),
        "https://api.groq.com/openai/v1",
        "openai/gpt-oss-120b",
        "gpt-oss: a mid-sized open model, answering very fast",
    ),
    Provider(
        "cerebras",
        "Cerebras",
        ("CEREBRAS_API_KEY",),
        "https://api.cerebras.ai/v1",
        "gpt-oss-120b",
        "gpt-oss: a mid-sized open model, answering very fast",
    ),
)
"""Known services, the strongest default model first."""


@dataclass(frozen=True, slots=True)
class LocalServer:
    """A program that serves models on this machine."""

    name: str
    title: str
    url: str


LOCAL_SERVERS: tuple[LocalServer, ...] = (
    LocalServer("vllm", "vLLM", "http://127.0.0.1:8000/v1"),
    LocalServer("llamacpp", "llama.cpp", "http://127.0.0.1:8080/v1"),
    LocalServer("ollama", "Ollama", "http://127.0.0.1:11434/v1"),
    LocalServer("lmstudio", "LM Studio", "http://127.0.0.1:1234/v1"),
)
"""Programs and the ports they listen on by default."""


@dataclass(frozen=True, slots=True)
class Found:
    """Something that can be a worker: a service with a key, or a server that runs."""

    name: str
    title: str
    url: str
    models: tuple[str, ...]
    """What it offers, the strongest first; never empty."""
    variable: str = ""
    """The variable with the key; empty if it needs none."""
    card: str = ""
    token_limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # noqa: S105 - a field's name


async def discover(
    env: Mapping[str, str],
    *,
    client: HttpClient | None = None,
    servers: Sequence[LocalServer] = LOCAL_SERVERS,
) -> list[Found]:
    """Find what can be used: services whose variable is set, then servers that answer.

    Args:
        env: The environment; values are only tested for being there.
        client: What to probe with.
        servers: Where to look on this machine.

    Returns:
        In order of strength, services before servers. Whether a key is good is not tried.
    """
    found = [_keyed(provider, variable) for provider, variable in _keys(env)]
    models: dict[LocalServer, tuple[str, ...]] = {}

    async def probe(server: LocalServer) -> None:
        models[server] = await _probe(shared, server)

    async with client or HttpClient() as shared, anyio.create_task_group() as group:
        for server in servers:
            group.start_soon(probe, server)
    return found + [
        Found(server.name, server.title, server.url, models[server])
        for server in servers
        if models[server]
    ]


def _keys(env: Mapping[str, str]) -> list[tuple[Provider, str]]:
    return [
        (provider, next(name for name in provider.variables if env.get(name, "").strip()))
        for provider in PROVIDERS
        if any(env.get(name, "").strip() for name in provider.variables)
    ]


def _keyed(provider: Provider, variable: str) -> Found:
    return Found(
        provider.name,
        provider.title,
        provider.url,
        (provider.model,),
        variable,
        provider.card,
        provider.token_limit_field,
    )


async def _probe(client: HttpClient, server: LocalServer) -> tuple[str, ...]:
    """Ask one server for its models; none if it isn't there or is something else."""
    endpoint = Endpoint(server.name, url=server.url, model="", client=client)
    try:
        listed = await endpoint.models(PROBE_TIMEOUT_S)
    except WorkerError:
        return ()
    usable = [each for each in listed if not _NO_CHAT.search(each) and each.isprintable()]
    return tuple(sorted(usable, key=_size, reverse=True))


_NO_CHAT = re.compile(
    r"embed|minilm|rerank|whisper|(^|[/_-])(bge|e5|gte|tts|stt|clip)([_-]|$)", re.IGNORECASE
)
_SIZE = re.compile(r"(?<![a-z0-9.])(?:(\d{1,4})x)?(\d{1,4}(?:\.\d{1,4})?)([bm])(?![a-z])", re.I)


def _size(model: str) -> float:
    """Parameters in billions as far as the name tells; 0 if it doesn't."""
    sizes = [
        float(count or 1) * float(number) / (1 if unit in "bB" else 1000)
        for count, number, unit in _SIZE.findall(model)
    ]
    return max(sizes, default=0.0)


_HEAD = """\
# The models that work for you. Names are yours to choose; plans call workers by them.
# Keys stay in the environment: ${VARIABLE} is looked up when the pool is loaded.
# `conductor pool` tells which workers answer.
"""

_NOTHING = """\
# No key was in the environment and no server answered on this machine, so this pool runs small
# models inside the program: enough to see plans at work, not for hard questions. For stronger
# workers, set a key (one of {variables}, ...) or start a server
# ({servers}), then run `conductor init` again. By hand:
#
# [workers.gpt]
# kind = "openai"
# url = "https://api.openai.com/v1"
# model = "{model}"
# key = "${{OPENAI_API_KEY}}"

[planner]
worker = "one"

[workers.one]
kind = "local"
model = "smollm2-135m-instruct"
temperature = 0.2
max_tokens = 512
input_tokens = 2048  # of longer prompts the middle is left out
tools = "first"      # too small to judge: it calls one first, and answers then
card = "A very small model in this process; short, plain tasks"

[workers.two]
kind = "local"
model = "smollm2-135m-instruct"
temperature = 0.9
max_tokens = 512
input_tokens = 2048  # of longer prompts the middle is left out
tools = "first"      # too small to judge: it calls one first, and answers then
card = "The same model, decoding more freely: a second opinion"
"""


def pool_toml(found: Sequence[Found], *, planner: str | None = None) -> str:
    """Write a pool file of what was found.

    Args:
        found: From :func:`discover`.
        planner: Name of the worker that is to write plans; the strongest by default.

    Raises:
        ValueError: If no worker of the file has the name ``planner``.
    """
    workers = _workers(found)
    if not workers:
        text = _NOTHING.format(
            variables=", ".join(provider.variables[0] for provider in PROVIDERS[:3]),
            servers=", ".join(server.title for server in LOCAL_SERVERS),
            model=next(each.model for each in PROVIDERS if each.name == "openai"),
        )
        return f"{_HEAD}#\n{text}"
    names = [name for name, _, _ in workers]
    chosen = planner or names[0]
    if chosen not in names:
        raise ValueError(f"no worker is called {chosen!r}; the file has: {', '.join(names)}")
    parts = [_HEAD, f"[planner]  # who writes the plans\nworker = {_quoted(chosen)}\n"]
    parts += [_table(name, what, model) for name, what, model in workers]
    return "\n".join(parts)


def _workers(found: Sequence[Found]) -> list[tuple[str, Found, str]]:
    """Names, where from, and model of each worker."""
    workers: list[tuple[str, Found, str]] = []
    for what in found:
        models = what.models[:_MODELS_PER_SERVER]
        for model in models:
            name = what.name if len(models) == 1 else _name(f"{what.name}-{model}")
            taken = {each for each, _, _ in workers}
            numbered = (f"{name[:60]}-{number}" for number in range(2, 1000))
            workers.append((name if name not in taken else _free(numbered, taken), what, model))
    return workers


def _free(names: Iterable[str], taken: set[str]) -> str:
    return next(name for name in names if name not in taken)


def _name(text: str) -> str:
    """Make a name of a model's name, as pools and TOML's bare keys allow."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", text)[:60].strip("-").lower()


def _table(name: str, what: Found, model: str) -> str:
    lines = [f"[workers.{name}]  # {what.title}", 'kind = "openai"']
    lines.append(f"url = {_quoted(what.url)}")
    lines.append(f"model = {_quoted(model.replace('$', '$$'))}")
    if what.variable:
        lines.append(f"key = {_quoted(f'${{{what.variable}}}')}")
    if what.card:
        lines.append(f"card = {_quoted(what.card)}")
    if what.token_limit_field != "max_tokens":  # noqa: S105 - a field's name
        lines.append(f"token_limit_field = {_quoted(what.token_limit_field)}")
    left = what.models[_MODELS_PER_SERVER:]
    if left and model == what.models[_MODELS_PER_SERVER - 1]:
        shown = ", ".join(left[:10]) + (f" and {len(left) - 10} more" if len(left) > 10 else "")
        lines.append(f"# It also has: {shown}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Write a TOML basic string; JSON's escapes are a part of TOML's but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
