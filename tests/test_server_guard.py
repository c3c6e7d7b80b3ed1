"""Who may come in, how often, and what is turned away: keys, rates, sizes, hostile bodies."""

from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from conductor.server import Key, Keyring, KeysError, Limits, add_key, new_key, read_keys
from conductor.server.body import DEPTH, read_json
from conductor.server.json_form import problem
from conductor.server.keys import digest
from conductor.server.refusals import STATUS, Refusal
from runtime import FailureKind, Journal, Pool, Price, RunState, Terms, WorkerError
from tests.serving import Team, Wire, asked, calling, client

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
ROOT = Path(__file__).parents[1]
SECRET, ANN = new_key("ann")


def ring(**bounds: Any) -> Keyring:
    return Keyring([Key("bob", digest("other")), Key("ann", ANN.sha256, **bounds)])


def mine(server: Any) -> Any:
    return client(server, authorization=f"Bearer {SECRET}")


# -- keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    ["", "Bearer", "Bearer ", "Bearer wrong", f"Basic {SECRET}", SECRET, f"Bearer {SECRET}x"],
    ids=["none", "bearer", "blank", "wrong", "basic", "bare", "longer"],  # the key is another one
)
async def test_without_a_valid_key_nothing_is_served(given: str) -> None:
    team = Team()
    async with client(team.server(keys=ring()), authorization=given) as http:
        replies = [
            await http.post(CHAT, json=asked()),
            await http.get("/v1/models"),
            await http.get("/metrics"),
            await http.get("/nowhere"),
        ]
        health = await http.get("/health/live")

    assert [reply.status_code for reply in replies] == [401] * 4
    assert replies[0].json()["error"]["code"] == "invalid_api_key"
    assert replies[0].headers["www-authenticate"] == "Bearer"
    assert health.status_code == 200
    assert team.scribe.calls == []


async def test_a_key_sees_its_part_of_the_pool_and_of_the_models() -> None:
    team = Team()
    keys = ring(without=("judge",), models=("worker/pro", "worker/judge"))
    async with mine(team.server(keys=keys)) as http:
        listed = (await http.get("/v1/models")).json()["data"]
        replies = [
            await http.post(CHAT, json=asked(model))
            for model in ("worker/pro", "worker/judge", "conductor")
        ]
        asked_for = asked("worker/pro", conductor={"only": ["judge"]})
        around = await http.post(CHAT, json=asked_for)

    assert [model["id"] for model in listed] == ["worker/pro"]
    assert [reply.status_code for reply in replies] == [200, 404, 403]
    assert around.status_code == 400
    assert team.judge.calls == []


async def test_rates_are_kept_and_told() -> None:
    team = Team()
    async with mine(team.server(keys=ring(requests_per_minute=2))) as http:
        replies = [await http.post(CHAT, json=asked("worker/pro")) for _ in range(3)]

    assert [reply.status_code for reply in replies] == [200, 200, 429]
    remaining = [reply.headers["x-ratelimit-remaining-requests"] for reply in replies]
    assert remaining == ["1", "0", "0"]
    assert replies[0].headers["x-ratelimit-limit-requests"] == "2"
    assert 0 < float(replies[2].headers["x-ratelimit-reset-requests"][:-1]) <= 60
    assert 0 < int(replies[2].headers["retry-after"]) <= 60
    assert replies[2].json()["error"]["code"] == "rate_limit_exceeded"


async def test_tokens_are_counted_against_the_rate() -> None:
    team = Team()
    async with mine(team.server(keys=ring(tokens_per_minute=30))) as http:
        replies = [await http.post(CHAT, json=asked("worker/pro")) for _ in range(3)]

    assert [reply.status_code for reply in replies] == [200, 200, 429]


async def test_requests_at_a_time_are_bounded_by_key() -> None:
    team = Team()
    team.pro.holding = anyio.Event()
    statuses = []
    async with mine(team.server(keys=ring(concurrency=1))) as http:

        async def ask() -> None:
            statuses.append((await http.post(CHAT, json=asked("worker/pro"))).status_code)

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            await ask()
            team.pro.holding.set()

    assert statuses == [429, 200]


def paid(**options: Any) -> Team:
    """A team whose every call of pro costs a dollar per token that it reads."""
    team = Team(**options)
    terms = {"pro": Terms(price=Price(Decimal(10**6), Decimal(0)))}
    team.conductor.pool = Pool([team.pro, team.judge], planner=team.scribe, terms=terms)
    return team


async def test_a_budget_holds_over_restarts(tmp_path: Path) -> None:
    spent = tmp_path / "keys.spent"
    key = Key("ann", ANN.sha256, dollars=Decimal(30))
    statuses = []
    for _ in range(3):
        keys = Keyring([key], spent=spent)
        async with mine(paid().server(keys=keys)) as http:
            reply = await http.post(CHAT, json=asked("worker/pro"))
            statuses.append(reply.status_code)

    assert statuses == [200, 200, 429]
    assert reply.json()["error"]["code"] == "insufficient_quota"
    assert stat.S_IMODE(spent.stat().st_mode) == 0o600


async def test_a_run_that_the_client_hung_up_on_is_paid_all_the_same() -> None:
    """What was called before is in the books, though nobody heard the answer."""
    team = paid()
    team.judge.holding = anyio.Event()
    keys = ring(dollars=Decimal(1000))
    server, wire = team.server(keys=keys), Wire(asked(), authorization=f"Bearer {SECRET}")

    async with anyio.create_task_group() as group:
        group.start_soon(server, wire.scope, wire.receive, wire.send)
        await anyio.wait_all_tasks_blocked()
        wire.gone.set()

    assert keys.accounts["ann"].dollars == Decimal(20)
    assert server.traffic.open == 0


async def suspended(server: Any) -> dict[str, Any]:
    """Have a run wait for a tool of pro's; gives the request that brings its result."""
    tool = {"type": "function", "function": {"name": "weather"}}
    body = asked(tools=[tool], conductor={"tools": "all"})
    async with mine(server) as http:
        message = (await http.post(CHAT, json=body)).json()["choices"][0]["message"]
    (call,) = message["tool_calls"]
    result = {"role": "tool", "tool_call_id": call["id"], "content": "25 degrees"}
    return {**body, "messages": [*body["messages"], message, result]}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_resumed_run_that_the_client_hung_up_on_is_paid_all_the_same(
    stream: bool, tmp_path: Path
) -> None:
    """What it took before is in the books already; what it took since is added, once."""
    with Journal(tmp_path / "journal.db") as journal:
        team = paid(journal=journal)
        team.pro.texts = [calling(("weather", "{}")), "Sunny."]
        team.judge.holding = anyio.Event()
        keys = ring()
        server = team.server(keys=keys)
        more = await suspended(server)
        before = keys.accounts["ann"].dollars
        wire = Wire({**more, "stream": stream}, authorization=f"Bearer {SECRET}")

        async with anyio.create_task_group() as group:
            group.start_soon(server, wire.scope, wire.receive, wire.send)
            await anyio.wait_all_tasks_blocked()
            wire.gone.set()
        run = journal.run(journal.runs()[0].id)

    assert run.state is RunState.CANCELLED
    assert before == Decimal(50)
    assert keys.accounts["ann"].dollars == run.dollars == Decimal(70)


async def test_a_try_that_waited_for_another_pays_its_own_part(tmp_path: Path) -> None:
    """The first one brings the results and fails later; the second goes on from there."""
    with Journal(tmp_path / "journal.db") as journal:
        team = paid(journal=journal)
        team.pro.texts = [calling(("weather", "{}")), "Sunny it is."]
        team.judge.texts = [WorkerError(FailureKind.REJECTED, "no"), "Yes."]
        keys = ring()
        server = team.server(keys=keys)
        more = await suspended(server)
        team.pro.holding = anyio.Event()
        statuses = []

        async def bring() -> None:
            async with mine(server) as http:
                reply = await http.post(CHAT, json=more, headers={"idempotency-key": "once"})
                statuses.append(reply.status_code)

        async with anyio.create_task_group() as group:
            group.start_soon(bring)
            group.start_soon(bring)
            await anyio.wait_all_tasks_blocked()
            team.pro.holding.set()
        run = journal.run(journal.runs()[0].id)

    assert sorted(statuses) == [200, 400]
    assert keys.accounts["ann"].dollars == run.dollars == Decimal(70)


async def test_dollars_of_a_request_bound_its_run() -> None:
    async with client(paid().server()) as http:
        reply = await http.post(CHAT, json=asked(conductor={"max_dollars": 0.5}))

    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "budget_exceeded")


def test_a_key_is_shown_once_and_kept_as_its_hash(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"

    secret, other = add_key(file, "ann"), add_key(file, "bob.b")

    text = file.read_text()
    assert secret not in text and other not in text
    assert [key.name for key in read_keys(file)] == ["ann", "bob.b"]
    assert Keyring(read_keys(file)).find(secret).key.name == "ann"  # type: ignore[union-attr]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(KeysError, match="there is a key ann already"):
        add_key(file, "ann")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x", "Expected"),
        ("a = 1", "a is no table of a key"),
        ("[a]", "a has no sha256"),
        ('[a]\nsha256 = "short"', "must be 64 hexadecimal digits"),
        (f'[a]\nsha256 = "{"0" * 64}"\ndolars = 1', "no such setting"),
        (f'[a]\nsha256 = "{"0" * 64}"\ndollars = -1', "must be a number over 0"),
        (f'[a]\nsha256 = "{"0" * 64}"\nonly = "pro"', "must be a list of texts"),
        (f'[a]\nsha256 = "{"0" * 64}"\nconcurrency = 0', "must be a whole number"),
    ],
)
def test_a_file_of_keys_that_is_wrong_is_told(text: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(text)

    with pytest.raises(KeysError, match=told):
        read_keys(file)


def command(*args: str, home: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    call = [sys.executable, "-m", "conductor", *args]
    return subprocess.run(call, cwd=home, env=env, capture_output=True, text=True, timeout=60)


def test_nothing_listens_beyond_this_machine_without_a_key(tmp_path: Path) -> None:
    """The command says what to do instead of opening the team to the network."""
    done = command("serve", "--host", "0.0.0.0", "--port", "0", home=tmp_path)

    assert done.returncode == 2
    assert "there are no keys; make one with `conductor keys add NAME`" in done.stderr


def test_the_command_makes_keys(tmp_path: Path) -> None:
    made = command("keys", "add", "ann", "--keys", "k.toml", home=tmp_path)
    listed = command("keys", "list", "--keys", "k.toml", home=tmp_path)

    assert made.stdout.startswith("sk-conductor-")
    assert made.stdout.strip() not in (tmp_path / "k.toml").read_text()
    assert listed.stdout == "ann  no bounds\n"


# -- names, sizes, shapes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("LOCALHOST", 200),
        ("[::1]:8000", 200),
        ("127.0.0.1", 200),
        ("evil.test", 421),
        ("localhost.evil.test", 421),
        ("", 421),
    ],
)
async def test_on_loopback_it_answers_to_its_own_names_only(host: str, status: int) -> None:
    """A web page that has its name lead to this machine gets nothing."""
    server = Team().server(hosts=("localhost", "127.0.0.1", "::1"))
    async with client(server, host=host) as http:
        reply = await http.get("/v1/models")

    assert reply.status_code == status


async def test_too_large_a_body_is_not_read() -> None:
    server = Team().server(limits=Limits(body_bytes=1000))
    wire, read = Wire({}), 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": b"x" * 100, "more_body": True}

    async with client(server) as http:
        told = await http.post(CHAT, content=b"x" * 1001)
    await server(wire.scope, receive, wire.send)

    assert (told.status_code, wire.status) == (413, 413)
    assert read == 11


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "no object"),
        (b'"x"', "no object"),
        (b'{"a": NaN}', "no JSON number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[" * 100_000, "nested more than"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "nested more than"),
        (b'{"a": "' + b'\\"' * 200_000, "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
    ],
    ids=range(10),
)
async def test_hostile_bodies_are_refused(body: bytes, told: str) -> None:
    async with client(Team().server()) as http:
        reply = await http.post(CHAT, content=body)

    assert reply.status_code == 400
    assert told in reply.json()["error"]["message"]


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.text(), _JSON), st.integers(0, DEPTH - 3))
def test_whatever_is_not_too_deep_is_read(value: dict[str, Any], more: int) -> None:
    """Brackets and quotes in strings do not count."""
    for _ in range(more):
        value = {'["{\\': value}
    body = json.dumps(value).encode()

    try:
        assert read_json(body) == value
    except Refusal:
        assert _depth(value) > DEPTH


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, dict | list) + max(map(_depth, inner), default=0)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", CHAT, 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("DELETE", "/health/live", 405, "method_not_allowed"),
        ("GET", "/", 404, "unknown_url"),
        ("POST", "/v1/chat/completions/", 404, "unknown_url"),
        ("GET", "/v1/models/nobody", 404, "model_not_found"),
        ("GET", "/v1/models/trinity", 404, "model_not_found"),
        ("GET", "/v1/runs/last", 404, "no_journal"),
    ],
)
async def test_every_error_has_the_same_shape(
    method: str, path: str, status: int, code: str
) -> None:
    async with client(Team().server()) as http:
        reply = await http.request(method, path)

    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    assert reply.headers["x-request-id"]
    assert ("allow" in reply.headers) == (status == 405)


async def test_a_method_that_is_not_taken_is_told_which_are() -> None:
    async with client(Team().server()) as http:
        found = {path: (await http.put(path)).headers["allow"] for path in (CHAT, "/v1/models")}
    assert found == {CHAT: "POST", "/v1/models": "GET, HEAD"}


@pytest.mark.parametrize("name", ["last", "0", "..", "%2e%2e", "a' OR '1'='1", "0" * 31])
async def test_ids_of_runs_are_whole_ids(name: str, tmp_path: Path) -> None:
    """No beginnings of ids and no words: who guesses gets nothing."""
    with Journal(tmp_path / "journal.db") as journal:
        team = Team(journal=journal)
        async with client(team.server()) as http:
            await http.post(CHAT, json=asked())
            reply = await http.get(f"/v1/runs/{name}")

    assert reply.status_code == 404


async def test_other_kinds_of_body_are_refused() -> None:
    async with client(Team().server()) as http:
        form = await http.post(CHAT, data={"a": "b"})
        text = await http.post(CHAT, content=b"{}", headers={"content-type": "text/plain"})

    assert [form.status_code, text.status_code] == [415, 415]


async def test_no_page_of_another_site_is_let_in() -> None:
    """CORS is off: no header allows another origin anything."""
    async with client(Team().server()) as http:
        reply = await http.get("/v1/models", headers={"origin": "https://evil.test"})

    assert not [name for name in reply.headers if name.startswith("access-control")]
    assert reply.headers["x-content-type-options"] == "nosniff"


async def test_image_addresses_are_not_fetched_but_passed_on() -> None:
    team = Team()
    image = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}
    async with client(team.server()) as http:
        body = {"model": "worker/pro", "messages": [{"role": "user", "content": [image]}]}
        reply = await http.post(CHAT, json=body)

    assert reply.status_code == 200
    assert json.loads(team.pro.calls[0].messages[0].parts) == [image]


async def test_lone_halves_of_surrogates_do_no_harm(tmp_path: Path) -> None:
    body = b'{"model": "worker/pro", "messages": [{"role": "user", "content": "a\\ud83d"}]}'
    with Journal(tmp_path / "journal.db") as journal:
        async with client(Team(journal=journal).server()) as http:
            reply = await http.post(CHAT, content=body)

    assert reply.status_code == 200


# -- load ----------------------------------------------------------------------------------------


async def test_more_requests_than_fit_are_told_to_come_again() -> None:
    team = Team()
    team.pro.holding = anyio.Event()
    server = team.server(limits=Limits(requests=1))
    replies: list[Any] = []
    async with client(server) as http:

        async def ask() -> None:
            replies.append(await http.post(CHAT, json=asked("worker/pro")))

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            await ask()
            team.pro.holding.set()

    assert [reply.status_code for reply in replies] == [503, 200]
    assert replies[0].headers["retry-after"] == "1"


async def test_a_server_that_is_to_stop_finishes_and_takes_no_more() -> None:
    team = Team()
    team.pro.holding = anyio.Event()
    server = team.server()
    statuses = []
    async with client(server) as http:

        async def ask() -> None:
            statuses.append((await http.post(CHAT, json=asked("worker/pro"))).status_code)

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            server.traffic.draining = True
            ready = await http.get("/health/ready")
            await ask()
            team.pro.holding.set()

    assert (ready.status_code, statuses) == (503, [503, 200])


# -- retries -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_tries_with_one_key_are_one_run(stream: bool) -> None:
    """At the same time and afterwards: the reply is the same, byte for byte."""
    team = Team()
    team.judge.holding = anyio.Event()
    bodies: list[str] = []
    headers = {"idempotency-key": "once"}
    async with client(team.server()) as http:

        async def ask() -> None:
            bodies.append((await http.post(CHAT, json=asked(stream=stream), headers=headers)).text)

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            group.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            team.judge.holding.set()
        last = await http.post(CHAT, json=asked(stream=stream), headers=headers)

    assert len(team.scribe.calls) == len(team.judge.calls) == 1
    assert {*bodies, last.text} == {last.text}
    assert last.headers["x-conductor-replayed"] == "true"
    assert last.headers["x-conductor-run-id"]


async def test_a_retry_finds_the_run_that_the_client_had_hung_up_on() -> None:
    team = Team()
    team.judge.holding = anyio.Event()
    server, wire = team.server(), Wire(asked(), **{"idempotency-key": "once"})

    async with anyio.create_task_group() as group:
        group.start_soon(server, wire.scope, wire.receive, wire.send)
        await anyio.wait_all_tasks_blocked()
        wire.gone.set()
        await anyio.wait_all_tasks_blocked()
        team.judge.holding.set()
    async with client(server) as http:
        body = json.dumps(asked())  # the same bytes
        reply = await http.post(CHAT, content=body, headers={"idempotency-key": "once"})

    assert reply.json()["choices"][0]["message"]["content"] == "Yes, in the morning."
    assert len(team.judge.calls) == 1


async def test_of_replies_that_are_kept_the_oldest_make_room() -> None:
    """What is kept for retries is bounded; a retry that comes too late is a run of its own."""
    team = Team()
    team.pro.texts = ["word " * 1000]
    server = team.server(limits=Limits(kept_bytes=15_000))
    replayed = []
    async with client(server) as http:
        for key in ("a", "b", "c", "c", "b", "a"):
            body, headers = asked("worker/pro"), {"idempotency-key": key}
            reply = await http.post(CHAT, json=body, headers=headers)
            replayed.append("x-conductor-replayed" in reply.headers)

    assert replayed == [False, False, False, True, True, False]
    assert len(team.pro.calls) == 4


async def test_a_failure_is_not_kept_and_keys_are_for_one_request_of_one_client() -> None:
    team = Team()
    team.pro.texts = [WorkerError(FailureKind.REJECTED, "no"), "Tea warms."]
    headers = {"idempotency-key": "once"}
    async with client(team.server()) as http:
        statuses = [
            (await http.post(CHAT, json=asked("worker/pro"), headers=headers)).status_code
            for _ in range(3)
        ]
        other = await http.post(CHAT, json=asked("worker/judge"), headers=headers)

    assert statuses == [400, 200, 200]
    assert len(team.pro.calls) == 2
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_mismatch")


# -- what is told of what goes wrong -------------------------------------------------------------


def test_every_kind_of_failure_has_a_status() -> None:
    assert STATUS.keys() == set(FailureKind)


async def test_a_bug_is_a_500_without_its_words(caplog: pytest.LogCaptureFixture) -> None:
    """What an exception says may be secret; the log has it."""
    team = Team()

    def broken(*args: Any, **more: Any) -> Any:
        raise RuntimeError("the key is hunter2")

    team.conductor.arun = broken  # type: ignore[method-assign]
    team.conductor.planning = lambda: team.conductor  # type: ignore[method-assign]
    server = team.server()
    async with client(server) as http:
        with caplog.at_level(logging.ERROR):
            reply = await http.post(CHAT, json=asked())

    assert reply.status_code == 500
    assert "hunter2" not in reply.text
    assert reply.headers["x-request-id"] in caplog.text


async def test_a_key_of_ours_is_in_no_reply_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    team = Team()
    team.pro.texts = [WorkerError(FailureKind.UNAUTHORIZED, "pro: it rejected the key")]
    with caplog.at_level(logging.DEBUG):
        async with mine(team.server(keys=ring())) as http:
            replies = [
                await http.post(CHAT, json=asked("worker/pro")),
                await http.get("/metrics"),
                await http.get("/v1/models"),
            ]

    assert all(SECRET not in reply.text + str(reply.headers) for reply in replies)
    assert SECRET not in caplog.text


async def test_the_metrics_count_what_was_done() -> None:
    team = Team()
    async with client(team.server()) as http:
        await http.post(CHAT, json=asked())
        await http.post(CHAT, json={})
        await http.get("/some/where/else")
        text = (await http.get("/metrics")).text

    lines = text.splitlines()
    assert 'conductor_http_requests_total{route="/v1/chat/completions",status="200"} 1' in lines
    assert 'conductor_http_requests_total{route="/v1/chat/completions",status="400"} 1' in lines
    assert 'conductor_http_requests_total{route="other",status="404"} 1' in lines
    assert 'conductor_worker_total{worker="judge",what="output_tokens"} 7' in lines
    assert 'conductor_worker_total{worker="planning",what="input_tokens"} 100' in lines
    assert 'conductor_runs_total{state="done"} 1' in lines


# -- pinned ids ----------------------------------------------------------------------------------


async def test_a_pinned_id_is_found_as_long_as_it_is_true() -> None:
    async with client(Team().server()) as http:
        (pinned,) = (
            each["pinned"]
            for each in (await http.get("/v1/models")).json()["data"]
            if each["id"] == "conductor"
        )
        same = await http.post(CHAT, json=asked(pinned))
    async with client(paid().server()) as http:
        other = await http.post(CHAT, json=asked(pinned))

    assert same.json()["conductor"]["policy"] == pinned
    assert other.status_code == 404
    assert "have changed" in other.json()["error"]["message"]


# -- schemas -------------------------------------------------------------------------------------

_LEAF: st.SearchStrategy[Any] = st.sampled_from(
    [
        {"type": "integer", "minimum": 0},
        {"type": "number", "exclusiveMaximum": 3},
        {"type": "string", "minLength": 1, "maxLength": 3},
        {"type": ["null", "boolean"]},
        {"enum": [1, "a", None, [True], {"a": 1.0}]},
        {"const": {"x": [0]}},
        {},
        {"$ref": "#/$defs/node"},
    ]
)
_SCHEMA = st.recursive(
    _LEAF,
    lambda inner: (
        st.fixed_dictionaries({"type": st.just("array"), "items": inner, "maxItems": st.just(2)})
        | st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=3)})
        | st.builds(
            lambda a, b, closed: {
                "type": "object",
                "properties": {"a": a, "b": b},
                "required": ["a"],
                "additionalProperties": closed,
            },
            inner,
            inner,
            st.booleans() | inner,
        )
    ),
    max_leaves=5,
)
_VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 4)
    | st.just(1.0)
    | st.sampled_from(["", "a", "abcd"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "x"]), inner)
    ),
    max_leaves=6,
)


@given(_SCHEMA, _VALUE)
def test_a_value_is_of_a_schema_exactly_if_jsonschema_says_so(schema: Any, value: Any) -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}
    schema = {**schema, "$defs": {"node": node}}

    assert (problem(value, schema) == "") is Draft202012Validator(schema).is_valid(value)


def test_a_schema_that_goes_in_circles_ends() -> None:
    circle = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
    bush = {"$defs": {"a": {"anyOf": [{"items": {"$ref": "#/$defs/a"}, "const": 0}] * 4}}}
    value: Any = []
    for _ in range(60):
        value = [value]

    assert "too intricate" in problem(1, circle)
    assert problem(value, {**bush, "$ref": "#/$defs/a"})
