"""Pool files from the ``model_list`` of LiteLLM's configuration.

Its grammar: https://docs.litellm.ai/docs/proxy/configs. What a pool file has no word for is told by
name, never dropped in silence; the values are not shown, since some may be secrets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from runtime import PoolError
from runtime.discover import PROVIDERS
from runtime.pool import EndpointTable, PoolFile

_ENVIRONMENT = "os.environ/"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NO_KEYS = frozenset(("", "none", "empty", "dummy", "no-key", "not-needed", "ollama", "lm-studio"))
"""What people write where a server wants no key, in lower case."""
_SERVICES = {each.name: each for each in PROVIDERS}
_NAMES = {"together_ai": "together", "fireworks_ai": "fireworks"}
"""LiteLLM's names of services where ours differ."""
_COMPATIBLE = {
    "openai": "",
    "custom_openai": "",
    "openai_like": "",
    "hosted_vllm": "",
    "lm_studio": "",
    "llamafile": "",
    "litellm_proxy": "",
    "ollama": "/v1",
    "ollama_chat": "/v1",
}
"""Providers whose api_base has the API of OpenAI, and what to put behind it."""
_FIELDS = {
    "rpm": "requests_per_minute",
    "tpm": "tokens_per_minute",
    "timeout": "call_s",
    "max_parallel_requests": "concurrency",
    "max_retries": "retries",
    "num_retries": "retries",
    "temperature": "temperature",
    "top_p": "top_p",
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "seed": "seed",
    "tags": "tags",
}
"""What passes over as it is, and its name in a pool file."""
_COSTS = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cached",
}
_HEAD = """\
# Made from a LiteLLM configuration. Names are yours to choose; plans call workers by them.
# Keys stay in the environment: ${VARIABLE} is looked up when the pool is loaded.
# `conductor pool` tells which workers answer.
"""


class LiteLLMError(ValueError):
    """The configuration can't be read, has a key in it, or nothing of it can be carried over."""


@dataclass(frozen=True, slots=True)
class Imported:
    """A pool file, and what is not in it."""

    text: str
    """The pool file, in TOML."""
    workers: tuple[str, ...]
    left: tuple[str, ...]
    """What was not carried over or has changed, a line each."""


@dataclass(slots=True)
class _Reading:
    """What is known so far."""

    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=dict)
    """Workers by the name that LiteLLM calls them by; it shares calls among namesakes."""
    left: list[str] = field(default_factory=list)


class _Unknown(Exception):
    """Why an entry can't be carried over."""


def pool_of_litellm(text: str, path: str = "config.yaml") -> Imported:
    """Make a pool file of a configuration.

    Args:
        text: The configuration, YAML.
        path: Its name, for messages.

    Raises:
        LiteLLMError: If it is no such configuration, a key is written in it, or no entry can be
            carried over.
        ModuleNotFoundError: If PyYAML is not installed.
    """
    import yaml

    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else path
        problem = getattr(error, "problem", None) or "can't be read"
        raise LiteLLMError(f"{where}: not valid YAML: {problem}") from None
    entries = data.get("model_list") if isinstance(data, dict) else None
    if not isinstance(entries, list) or not entries:
        raise LiteLLMError(f"{path}: has no model_list; name a configuration of LiteLLM's proxy")
    reading = _Reading()
    for number, entry in enumerate(entries):
        _read_entry(reading, entry, f"{path}: model_list[{number}]")
    if not reading.tables:
        raise LiteLLMError("\n".join((f"{path}: nothing can be carried over", *reading.left)))
    _share(reading)
    _read_rest(reading, data)
    text = _pool_toml(reading.tables)
    try:
        PoolFile.parse(text)
        text.encode()
    except (PoolError, UnicodeEncodeError) as error:
        raise LiteLLMError(f"{path}: can't be written as a pool file: {error}") from error
    return Imported(text, tuple(reading.tables), tuple(reading.left))


def _read_entry(reading: _Reading, entry: Any, where: str) -> None:
    params = entry.get("litellm_params") if isinstance(entry, dict) else None
    alias = entry.get("model_name") if isinstance(entry, dict) else None
    if not isinstance(params, dict) or not isinstance(alias, str):
        raise LiteLLMError(f"{where}: needs a model_name and litellm_params")
    where = f"{where} ({alias})"
    info = entry.get("model_info")
    info = info if isinstance(info, dict) else {}
    key = _key(params, where)
    try:
        table = _address(alias, params, info, key, where)
    except _Unknown as reason:
        reading.left.append(f"{alias}: left out: {reason}")
        return
    name = _free_name(alias, reading.tables)
    group = reading.groups.setdefault(alias, [])
    if name != alias and not group:
        reading.left.append(f"{alias}: is called {name}, as the names of workers must be")
    group.append(name)
    table |= _headers(params, where)
    for source, target in _FIELDS.items():
        if params.get(source) is not None:
            table[target] = params[source]
    if "max_completion_tokens" in params:
        table["token_limit_field"] = "max_completion_tokens"  # noqa: S105 - a field's name
    said = {**info, **params}
    if (price := _price(said)) is not None:
        table["price"] = price
    known = {*_READ, *_FIELDS, *(_COSTS if price is not None else ())}
    lost = [str(each) for each in (*entry, *said) if each not in known]
    lost += _drop_bad(table)
    reading.tables[name] = table
    reading.left += [f"{alias}: {each} is not carried over" for each in dict.fromkeys(lost)]


_READ = {
    *("model_name", "litellm_params", "model_info", "mode", "model", "api_base", "base_url"),
    *("api_key", "extra_headers"),
}


def _key(params: Mapping[str, Any], where: str) -> str:
    """The key as a pool file has it; empty if there is none."""
    value = params.get("api_key")
    if value is None or str(value).lower() in _NO_KEYS:
        return ""
    return _variable(value, f"{where}: api_key")


def _variable(value: Any, where: str) -> str:
    """``${VAR}`` for a reference to the environment; all else is taken for a key."""
    named = str(value).removeprefix(_ENVIRONMENT)
    if not str(value).startswith(_ENVIRONMENT) or not _VARIABLE.fullmatch(named):
        remedy = "put it into an environment variable and write os.environ/NAME"
        raise LiteLLMError(f"{where}: a key is written in the file; {remedy}")
    return f"${{{named}}}"


def _address(
    alias: str, params: Mapping[str, Any], info: Mapping[str, Any], key: str, where: str
) -> dict[str, Any]:
    """Kind, url, model and key."""
    model = params.get("model")
    mode = info.get("mode", "chat")
    if mode not in ("chat", "responses"):
        raise _Unknown(f"mode {mode} is no chat")
    if not isinstance(model, str) or not model:
        raise _Unknown("it has no model")
    if not model.isprintable():
        raise _Unknown("its model has characters that can't be printed")
    if "*" in model + alias:
        raise _Unknown("a pool needs the models one by one, not *")
    provider, _, rest = model.partition("/")
    if model.startswith(_ENVIRONMENT) or not rest:
        provider, rest = _provider_of(model), model
    url = params.get("api_base") or params.get("base_url")
    service = _SERVICES.get(_NAMES.get(provider, provider))
    table: dict[str, Any] = {"kind": "openai"}
    if url and provider in _COMPATIBLE:
        table["url"] = _url(url, _COMPATIBLE[provider], where)
    elif service is not None and not url:
        table["url"] = service.url
    elif service is not None:
        table["url"] = _url(url, "", where)
        if service.url != table["url"]:
            raise _Unknown(f"api_base of {provider} may not have the API of OpenAI")
    elif provider in _COMPATIBLE and provider.startswith("ollama"):
        table["url"] = "http://127.0.0.1:11434/v1"
    elif provider in _COMPATIBLE:
        raise _Unknown("it has no api_base")
    else:
        raise _Unknown(f"nothing is known of an API of {provider} that is like OpenAI's")
    table["model"] = rest.replace("$", "$$")
    if service is not None and table["url"] == service.url and not key:
        key = f"${{{service.variables[0]}}}"  # where LiteLLM looks for it as well
    if key:
        table["key"] = key
    if service is not None and table["url"] == service.url:
        table["card"] = service.card
        if service.token_limit_field != "max_tokens":  # noqa: S105 - a field's name
            table["token_limit_field"] = service.token_limit_field
    return table


def _provider_of(model: str) -> str:
    """Whose a model without a provider is, as far as its name tells."""
    if model.startswith(_ENVIRONMENT):
        raise _Unknown("its model is in a variable; write it out")
    if re.match(r"(gpt|chatgpt|o\d)", model):
        return "openai"
    if model.startswith("claude"):
        return "anthropic"
    raise _Unknown("its model names no provider; write it as PROVIDER/MODEL")


def _url(url: Any, behind: str, where: str) -> str:
    text = str(url)
    if text.startswith(_ENVIRONMENT):
        if not _VARIABLE.fullmatch(text.removeprefix(_ENVIRONMENT)):
            raise _Unknown("its api_base names no variable")
        return f"${{{text.removeprefix(_ENVIRONMENT)}}}{behind}"
    try:
        parts = urlsplit(text)
    except ValueError:
        raise _Unknown("its api_base is no address") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _Unknown("its api_base is no address")
    if "@" in parts.netloc or parts.query:
        raise LiteLLMError(
            f"{where}: api_base: a name, password or query is written in the address; put the whole"
            " address into an environment variable and write os.environ/NAME"
        )
    base = text.rstrip("/").replace("$", "$$")
    return base if not behind or base.endswith(behind) else base + behind


def _headers(params: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Further headers; each is taken for a key unless it is in a variable."""
    given = params.get("extra_headers")
    if not isinstance(given, dict) or not given:
        return {}
    place = f"{where}: extra_headers"
    return {"headers": {str(n): _variable(value, f"{place}.{n}") for n, value in given.items()}}


def _price(said: Mapping[str, Any]) -> dict[str, float] | None:
    """Dollars per million tokens, if both prices are known; 1e-6 is a text in YAML 1.1."""
    try:
        prices = {
            name: float(Decimal(str(said[source])) * 1_000_000)
            for source, name in _COSTS.items()
            if said.get(source) is not None
        }
    except InvalidOperation:
        return None
    return prices if {"input", "output"} <= prices.keys() else None


def _drop_bad(table: dict[str, Any]) -> list[str]:
    """Take out what a pool file would not take, and tell what it was."""
    try:
        EndpointTable.model_validate(table)
    except ValidationError as error:
        bad = {str(each["loc"][0]) for each in error.errors()}
        back = {target: source for source, target in reversed(_FIELDS.items())}
        for name in bad:
            del table[name]
        return [f"{back.get(name, name)}, which is not as a pool file wants it," for name in bad]
    return []


def _free_name(alias: str, taken: Mapping[str, Any]) -> str:
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", alias)[:56].strip("-.") or "model"
    name = name if name[0].isalpha() else f"model-{name}"
    number, free = 2, name
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return free


def _share(reading: _Reading) -> None:
    """Namesakes stand in for the first of them, since nothing shares calls among workers here."""
    for alias, (first, *others) in reading.groups.items():
        if others:
            reading.tables[first]["fallback"] = others
            told = f"{', '.join(others)} stand in for {first}; calls are not shared among them"
            reading.left.append(f"{alias}: {told}")


def _read_rest(reading: _Reading, data: Mapping[str, Any]) -> None:
    """Fallbacks; of all other settings, their names."""
    for part, settings in data.items():
        if part == "model_list":
            continue
        if not isinstance(settings, dict):
            reading.left.append(f"{part} is not carried over")
            continue
        for name, value in settings.items():
            if name != "fallbacks" or not _read_fallbacks(reading, value):
                reading.left.append(f"{part}.{name} is not carried over")


def _read_fallbacks(reading: _Reading, value: Any) -> bool:
    """Put ``[{name: [names]}]`` into the tables; False if some of it has no place there."""
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        return False
    whole = True
    for chain in value:
        for alias, others in chain.items():
            named = others if isinstance(others, list) else [others]
            known = [each for each in named if each in reading.groups]
            whole = whole and alias in reading.groups and known == named
            stand = [name for each in known for name in reading.groups[each]]
            for name in reading.groups.get(alias, ())[:1]:
                said = reading.tables[name].get("fallback", [])
                new = [each for each in dict.fromkeys(stand) if each not in (*said, name)]
                if new:
                    reading.tables[name]["fallback"] = [*said, *new]
    return whole


def _pool_toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    parts = [_HEAD, f"[planner]  # who writes the plans\nworker = {_toml(next(iter(tables)))}\n"]
    for name, table in tables.items():
        lines = [f"{key} = {_toml(value)}" for key, value in table.items()]
        parts.append("\n".join((f"[workers.{_bare(name)}]", *lines)) + "\n")
    return "\n".join(parts)


def _bare(name: str) -> str:
    """A name as a key of TOML."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _toml(value: Any) -> str:
    """A value in TOML, on one line; JSON's form but for tables and DEL."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml(str(k))} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
