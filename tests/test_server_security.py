"""The server against hostile clients and models: what docs/guarantees.md lists, and is not shown
by the tests of the parts."""

from __future__ import annotations

import hmac
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from conductor import Conductor
from conductor.server import Key, Keyring, Server, add_key, read_keys
from conductor.server.keys import digest
from runtime import Endpoint, HttpClient, Journal, Pool, Terms
from tests.faults import server as play
from tests.faults.server import Exchange, Play, serving
from tests.serving import CHAT, Team, asked, client, events

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")


# -- secrets --------------------------------------------------------------------------------------

WORKER_KEY = "sk-canary-of-a-worker-0123456789"
HEADER = "canary-of-a-header-0123456789"


def _telling(exchange: Exchange) -> bytes:
    """What a careless model server says of the request."""
    told = f"your key {WORKER_KEY} and X-Team {HEADER} are unknown; see Bearer {WORKER_KEY}"
    return play.sse({"error": {"message": told, "code": 500}})


async def _telling_in_the_stream(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.part(exchange.reply()[0])
    await exchange.part(_telling(exchange))
    await exchange.end()


async def _telling_in_a_page(exchange: Exchange) -> None:
    await exchange.whole(b"<html>" + _telling(exchange) + b"</html>", "text/html")


TELLING: dict[str, Play] = {
    "401": play.status(401, f"{WORKER_KEY} with {HEADER} is no key"),
    "500": play.status(500, f"Authorization: Bearer {WORKER_KEY}, X-Team: {HEADER}"),
    "429": play.status(429, f"{HEADER} is over its limit", Retry_After="0", X_Key=WORKER_KEY),
    "in the stream": _telling_in_the_stream,
    "in a page": _telling_in_a_page,
}


@pytest.mark.parametrize("telling", TELLING)
async def test_no_secret_reaches_any_sink(
    telling: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Replies, streams, records, metrics, the journal, the log and the files of keys: a server that
    repeats the keys it was sent tells nobody ours, and clients' own are nowhere either."""
    caplog.set_level(logging.DEBUG)
    file = tmp_path / "keys.toml"
    secret = add_key(file, "ann")
    (key,) = read_keys(file)
    seen: list[str] = []
    async with serving() as faults:
        faults.script("m", TELLING[telling])
        http = HttpClient()
        worker = Endpoint(
            "m",
            url=faults.url,
            model="m",
            key=WORKER_KEY,
            headers={"X-Team": HEADER},
            client=http,
        )
        terms = {"m": Terms(retries=1, retry_base_s=0.001, trip_after=None)}
        with Journal(tmp_path / "journal.db") as journal:
            team = Conductor(Pool([worker], terms=terms), journal=journal)
            keys = Keyring([key], spent=tmp_path / "keys.spent")
            server = Server(team, keys=keys)
            async with team, client(server, authorization=f"Bearer {secret}") as asking:
                for body in (asked("worker/m"), asked("conductor"), asked("worker/m", stream=True)):
                    reply = await asking.post(CHAT, json=body)
                    seen += [reply.text, str(reply.headers)]
                body = {"model": "worker/m", "input": "q", "stream": True}
                seen.append((await asking.post("/v1/responses", json=body)).text)
                runs = [f"/v1/runs/{run.id}" for run in journal.runs()]
                for path in ("/metrics", "/v1/models", *runs, *(f"{run}/events" for run in runs)):
                    seen.append((await asking.get(path)).text)
            keys.keep()
            seen += [each.read_bytes().decode("latin-1") for each in _files(tmp_path)]
    # What others log while they are debugged, as httpcore the headers of replies, is theirs.
    logged = [each for each in caplog.records if each.levelno >= logging.INFO or _ours(each)]
    seen += [each.getMessage() + str(each.exc_text) for each in logged]

    assert len(runs) == 4
    for canary in (WORKER_KEY, HEADER, secret):
        assert [each for each in seen if canary in each] == []


def _ours(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] in ("conductor", "runtime", "grammar")


def _files(folder: Path) -> list[Path]:
    return [each for each in folder.rglob("*") if each.is_file()]


async def test_a_key_is_looked_up_in_a_time_that_tells_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each key is compared, by the function that is made for it, whichever is the right one."""
    compared: list[str] = []
    original = hmac.compare_digest

    def watched(given: Any, known: Any) -> bool:
        compared.append(known)
        return original(given, known)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    keys = [Key(name, digest(name)) for name in ("ann", "bob", "eve")]
    ring = Keyring(keys)

    found = [ring.find(secret) for secret in ("ann", "eve", "nobody")]

    assert [each and each.key.name for each in found] == ["ann", "eve", None]
    assert compared == [key.sha256 for key in keys] * 3


@pytest.mark.parametrize("name", ["key", "api_key", "api-key", "access_token", "authorization"])
async def test_a_key_in_an_address_is_none(name: str) -> None:
    """Addresses are in the logs of everybody on the way."""
    server = Team().server(keys=Keyring([Key("ann", digest("secret"))]))
    async with client(server) as http:
        reply = await http.get("/v1/models", params={name: "secret"})

    assert reply.status_code == 401
    assert "secret" not in reply.text


# -- pages of others, and what is shown -----------------------------------------------------------

MARKUP = '"><script>alert(1)</script>'


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"/{MARKUP}"),
        ("GET", f"/v1/models/{MARKUP}"),
        ("GET", f"/v1/runs/{MARKUP}"),
        ("GET", f"/v1/runs/{MARKUP}/events"),
        ("GET", f"/v1/responses/{MARKUP}"),
        ("POST", f"/v1/models/{MARKUP}"),
        ("POST", CHAT),
        ("POST", "/v1/responses"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("GET", "/health/ready"),
    ],
)
async def test_no_reply_is_a_page(method: str, path: str, tmp_path: Path) -> None:
    """Whatever is quoted of a request, browsers take it for data: a type, and no guessing."""
    with Journal(tmp_path / "journal.db") as journal:
        async with client(Team(journal=journal).server()) as http:
            body = asked(MARKUP, text=MARKUP, **{MARKUP: 1}) if method == "POST" else None
            reply = await http.request(method, path, json=body)

    kind = reply.headers["content-type"].partition(";")[0]
    assert kind in ("application/json", "text/plain", "text/event-stream")
    assert reply.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/v1/runs/x", "/metrics"])
async def test_other_origins_are_allowed_nothing(path: str) -> None:
    """A browser asks beforehand, and hears no word that would let its page go on."""
    headers = {"origin": "https://evil.test", "access-control-request-method": "POST"}
    async with client(Team().server()) as http:
        reply = await http.options(path, headers=headers)

    assert reply.status_code == 405
    assert not [name for name in reply.headers if name.startswith("access-control")]


@pytest.mark.parametrize("name", ["a\r\nset-cookie: b=c", "a\nb", "a\x00b", "a\x7fb", "gr\u00fcn"])
async def test_nothing_that_a_client_writes_becomes_a_header_of_its_own(name: str) -> None:
    """Names that are told back as without effect stay on their line."""
    async with client(Team().server()) as http:
        body = asked("worker/pro", **{name: 1})
        given = {"x-client-request-id": "a b" if name.isascii() else "ok"}
        reply = await http.post(CHAT, json=body, headers=given)

    assert reply.status_code == 200
    assert "set-cookie" not in reply.headers
    for _, value in reply.headers.raw:
        assert re.fullmatch(rb"[\x20-\x7e]*", value)


# -- where nothing is fetched, and nothing is read ------------------------------------------------


@pytest.mark.parametrize(
    "field", ["base_url", "api_base", "api_key", "url", "endpoint", "extra_headers", "proxy"]
)
async def test_no_client_names_an_address(field: str) -> None:
    """The pool file says where models are. What a request says of it is told as without effect, and
    reaches no model."""
    async with serving() as faults:
        faults.script("m", play.fine)
        worker = Endpoint("m", url=faults.url, model="m")
        team = Conductor(Pool([worker]))
        async with team, client(Server(team)) as http:
            body = asked("worker/m", **{field: "http://169.254.169.254/latest"})
            reply = await http.post(CHAT, json=body)
            named = await http.post(CHAT, json=asked("worker/http://169.254.169.254/latest"))
        (entry,) = faults.ledger.entries

    assert reply.status_code == 200
    assert reply.headers["x-conductor-ignored"] == field
    assert field not in entry.body
    assert named.status_code == 404


@pytest.mark.parametrize(
    "name",
    ["../journal.db", "..%2f..%2fetc%2fpasswd", "/etc/passwd", "%00", "a" * 5000, "*", "%25"],
)
@pytest.mark.parametrize("path", ["/v1/runs/{}", "/v1/runs/{}/events", "/v1/responses/resp_{}"])
async def test_a_name_in_a_path_is_no_file(path: str, name: str, tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.db") as journal:
        team = Team(journal=journal)
        async with client(team.server()) as http:
            await http.post(CHAT, json=asked())
            reply = await http.get(path.format(name))

    assert reply.status_code == 404
    assert reply.json()["error"]["code"] in ("run_not_found", "unknown_url")


# -- caps -----------------------------------------------------------------------------------------


def talk(count: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": "q"}] * count


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"messages": talk(2049)}, "messages"),
        ("/v1/responses", {"input": talk(2049)}, "input"),
        (CHAT, {"messages": talk(1), "n": 9}, "n"),
        (CHAT, {"messages": talk(1), "stop": ["a"] * 5}, "stop"),
        (CHAT, {"messages": talk(1), "conductor": {"steps": 17}}, "conductor.steps"),
        (CHAT, {"messages": talk(1), "conductor": {"rounds": 11}}, "conductor.rounds"),
        (CHAT, {"messages": talk(1), "max_tokens": 10**12}, "max_tokens"),
    ],
    ids=["messages", "input", "n", "stop", "steps", "rounds", "tokens"],
)
async def test_each_cap_is_a_400_that_names_it(path: str, body: dict[str, Any], param: str) -> None:
    team = Team()
    async with client(team.server()) as http:
        reply = await http.post(path, json={"model": "conductor", **body})

    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert team.scribe.calls == []


async def test_a_flood_from_a_model_is_cut_and_forgotten(tmp_path: Path) -> None:
    """50 MiB of text, passed on as it came until the cap; then an error, and little is kept."""
    sent = 0
    with Journal(tmp_path / "journal.db") as journal:
        async with serving() as faults:
            faults.script("m", play.huge(50 * 2**20))
            worker = Endpoint("m", url=faults.url, model="m")
            terms = {"m": Terms(retries=0)}
            team = Conductor(Pool([worker], terms=terms), journal=journal)
            async with team, client(Server(team)) as http:
                body = asked("worker/m", stream=True)
                async with http.stream("POST", CHAT, json=body) as stream:
                    last = ""
                    async for piece in stream.aiter_text():
                        sent += len(piece)
                        last = (last + piece)[-2000:]
        journal.check()

    told = events(last.partition("\n\n")[2])[-1]
    assert told["error"]["code"] == "bad_worker_response"
    assert 2**20 < sent < 34 * 2**20
    assert sum(each.stat().st_size for each in _files(tmp_path)) < 8 * 2**20


# -- the page -------------------------------------------------------------------------------------


def test_the_tests_that_the_page_names_are_there() -> None:
    table = PAGE.partition("## Hostile clients and models")[2]
    named = set(re.findall(r"`(test_\w+)`", table))
    sources = "\n".join(each.read_text() for each in (ROOT / "tests").glob("test_*.py"))

    assert len(named) > 30
    assert {name for name in named if f"def {name}(" not in sources} == set()
