"""discover: keys and servers that are there, written as a pool file that loads."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from runtime import Endpoint, HttpClient, LocalWorker, Pool, PoolFile
from runtime.discover import LOCAL_SERVERS, PROVIDERS, Found, discover, pool_toml

pytestmark = pytest.mark.anyio

KEY = "sk-canary-0123456789abcdef"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


def listening(**models: list[str]) -> HttpClient:
    """Local servers that list these models; the others refuse the connection."""
    ports = {server.name: httpx.URL(server.url).port for server in LOCAL_SERVERS}
    by_port = {ports[name]: ids for name, ids in models.items()}

    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.host == "127.0.0.1"
        assert (request.method, request.url.path) == ("GET", "/v1/models")
        assert "authorization" not in request.headers
        if request.url.port not in by_port:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, json={"data": [{"id": i} for i in by_port[request.url.port]]})

    return HttpClient(transport=httpx.MockTransport(handler))


async def test_keys_and_servers_are_found_in_order_of_strength() -> None:
    env = {"GOOGLE_API_KEY": KEY, "OPENAI_API_KEY": KEY, "MISTRAL_API_KEY": " ", "PATH": "/bin"}
    models = ["nomic-embed-text", "qwen3:0.6b", "bge-m3", "llama3.3:70b", "mixtral:8x7b"]
    found = await discover(env, client=listening(ollama=models, vllm=[]))
    assert [each.name for each in found] == ["openai", "gemini", "ollama"]
    assert [each.variable for each in found] == ["OPENAI_API_KEY", "GOOGLE_API_KEY", ""]
    assert found[2].models == ("llama3.3:70b", "mixtral:8x7b", "qwen3:0.6b")
    assert KEY not in repr(found)


async def test_what_is_no_model_server_is_not_found() -> None:
    answers = iter(
        [
            httpx.Response(200, html="<p>Jenkins</p>"),
            httpx.Response(404),
            httpx.Response(200, json={"data": [{"id": "a\nb"}, {"id": 3}]}),
            httpx.Response(200, json=[]),
        ]
    )
    client = HttpClient(transport=httpx.MockTransport(lambda request: next(answers)))
    assert await discover({}, client=client) == []


async def test_the_file_has_variables_and_no_keys_and_makes_the_pool() -> None:
    env = {name: KEY for provider in PROVIDERS for name in provider.variables}
    found = await discover(env, client=listening(ollama=["a:1b", "b:2b", "c:3b", "d:4b"]))
    text = pool_toml(found)
    assert KEY not in text
    assert "# It also has: a:1b" in text
    pool = PoolFile.parse(text).build(env)
    local = ("ollama-d-4b", "ollama-c-3b", "ollama-b-2b")
    assert pool.names == (*(provider.name for provider in PROVIDERS), *local)
    assert pool.planner is pool["anthropic"]
    assert all(isinstance(worker, Endpoint) for worker in pool)


@pytest.mark.parametrize(
    "model",
    ['a"b', "a\\b", "${HOME}", "$$", "ünï", "]", "#", "org/Model-7B-Instruct", "-", "x" * 200],
)
def test_any_model_name_comes_back_as_it_was(model: str) -> None:
    found = Found("ollama", "Ollama", "http://127.0.0.1:11434/v1", (model, "other", model))
    pool: Pool = PoolFile.parse(pool_toml([found])).build({})
    first, _, last = list(pool)
    assert isinstance(first, Endpoint)
    assert isinstance(last, Endpoint)
    assert first.model == last.model == model


def test_the_planner_may_be_chosen() -> None:
    found = [
        Found(name, name, f"https://{name}.test/v1", ("m",), f"{name.upper()}_KEY")
        for name in ("one", "two")
    ]
    file = PoolFile.parse(pool_toml(found, planner="two"))
    assert file.planner is not None
    assert file.planner.worker == "two"
    with pytest.raises(ValueError, match="'three'; the file has: one, two"):
        pool_toml(found, planner="three")


def test_with_nothing_found_models_in_process_are_written() -> None:
    text = pool_toml([])
    pool = PoolFile.parse(text).build({})
    assert pool.names == ("one", "two")
    assert all(isinstance(worker, LocalWorker) for worker in pool)
    assert pool.planner is pool["one"]
    assert "OPENAI_API_KEY" in text


def test_the_tables_are_sound() -> None:
    for provider in PROVIDERS:
        key = f"{provider.variables[0]}-value"
        Endpoint(provider.name, url=provider.url, model=provider.model, key=key)
    names = [each.name for each in PROVIDERS] + [each.name for each in LOCAL_SERVERS]
    assert len(set(names)) == len(names)
    assert all(server.url.startswith("http://127.0.0.1:") for server in LOCAL_SERVERS)
