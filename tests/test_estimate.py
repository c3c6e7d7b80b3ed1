"""What a plan will take: exact arithmetic, ranges that hold, and not one call."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import pytest

from conductor import (
    Completion,
    Conductor,
    Estimate,
    FunctionWorker,
    LocalWorker,
    Message,
    Plan,
    PlannerSettings,
    Pool,
    PoolError,
    Usage,
    estimate,
    run_plan,
)
from conductor.estimate import LEAST_OUTPUT, MOST_OUTPUT, Range
from grammar import PlanError
from runtime import PoolFile, step_messages

POOL = """\
[workers.a]
kind = "openai"
url = "http://127.0.0.1:9/v1"
model = "m"
max_tokens = 100
price = { input = 1.1, output = 3.3 }

[workers.b]
kind = "openai"
url = "http://127.0.0.1:9/v1"
model = "m"
max_tokens = 10
system = "Be brief."
price = { input = 0.25, output = 2 }
"""
UNKNOWN = '[workers.c]\nkind = "openai"\nurl = "http://127.0.0.1:9/v1"\nmodel = "mine"\n'
PLAN = Plan.of(["Draft.", "Check.", "Decide."], ["a", "b", 0], [[], [0], [0, 1]])
DEBATE = Path(__file__).parents[1] / "docs" / "debate.plan"


def tokens(plan: Plan, index: int, query: str, system: str = "") -> int:
    """Four characters a token, of the very messages that the worker will get."""
    silence = dict.fromkeys(range(index), "")
    messages = step_messages(plan, index, query, silence)
    characters = sum(len(each.content) for each in messages) + len(system and f"{system}\n\n")
    return -(-characters // 4)


# -- a plan ---------------------------------------------------------------------------------------


def test_tokens_go_from_bare_messages_to_replies_at_their_limit() -> None:
    """Input is the step's own messages, then those with the longest granted replies."""
    found = estimate(PLAN, PoolFile.parse(POOL), query="Why?")

    bare = [tokens(PLAN, 0, "Why?"), tokens(PLAN, 1, "Why?", "Be brief."), tokens(PLAN, 2, "Why?")]
    assert [(each.worker, each.input_tokens, each.output_tokens) for each in found.plan] == [
        ("a", Range(bare[0], bare[0]), Range(LEAST_OUTPUT, 100)),
        ("b", Range(bare[1], bare[1] + 100), Range(10, 10)),
        ("a", Range(bare[2], bare[2] + 110), Range(LEAST_OUTPUT, 100)),
    ]
    assert found.steps == Range(3, 3)
    assert found.critical_path == ("0 a", "1 b", "2 a")
    assert [(each.worker, each.calls.most) for each in found.workers] == [("a", 2), ("b", 1)]
    assert found.planning is None


def test_dollars_are_exact() -> None:
    """Prices are per million tokens; nothing is rounded on the way."""
    found = estimate(PLAN, PoolFile.parse(POOL), query="Why?")

    n = [tokens(PLAN, 0, "Why?"), tokens(PLAN, 1, "Why?", "Be brief."), tokens(PLAN, 2, "Why?")]
    million = Decimal(1_000_000)
    a = Range(
        ((n[0] + n[2]) * Decimal("1.1") + 2 * LEAST_OUTPUT * Decimal("3.3")) / million,
        ((n[0] + n[2] + 110) * Decimal("1.1") + 200 * Decimal("3.3")) / million,
    )
    b = Range(
        (n[1] * Decimal("0.25") + 10 * 2) / million,
        ((n[1] + 100) * Decimal("0.25") + 10 * 2) / million,
    )
    assert [each.dollars for each in found.workers] == [a, b]
    assert found.dollars == Range(a.least + b.least, a.most + b.most)
    assert found.dollars == sum(
        (each.dollars for each in found.plan if each.dollars), Range(Decimal(0), Decimal(0))
    )
    assert {each.price for each in found.workers} == {"pool file"}
    assert (found.unpriced, found.missing) == ((), ())


def test_an_unknown_price_is_said_and_left_out_of_the_sum() -> None:
    """The rest of the sum stands; a worker without max_tokens may write the stated default."""
    plan = Plan.of(["Draft.", "Check."], ["a", "c"], [[], []])

    found = estimate(plan, PoolFile.parse(POOL + UNKNOWN), query="Why?")

    assert found.unpriced == ("c",)
    assert found.plan[1].dollars is None
    assert found.dollars == found.plan[0].dollars
    assert found.plan[1].output_tokens == Range(LEAST_OUTPUT, MOST_OUTPUT)
    assert found.workers[1].price == "unknown"


def test_published_prices_are_found_by_host_and_model() -> None:
    """The same model at a host that nobody knows has no known price."""
    text = '[workers.{name}]\nkind = "openai"\nurl = "{url}"\nmodel = "gpt-4o"\n'
    file = PoolFile.parse(
        text.format(name="known", url="https://api.openai.com/v1")
        + text.format(name="elsewhere", url="https://models.example.org/v1")
        + text.format(name="own", url="https://api.openai.com/v1")
        + "price = { input = 0, output = 0 }\n"
    )
    plan = Plan.of(["x", "y", "z"], ["known", "elsewhere", "own"], [[], [], []])

    known, elsewhere, own = estimate(plan, file).workers

    assert known.price == "openai gpt-4o"
    assert known.dollars is not None and known.dollars.least > 0
    assert (elsewhere.dollars, elsewhere.price) == (None, "unknown")
    assert own.dollars == Range(Decimal(0), Decimal(0))


def test_missing_keys_are_named_and_nothing_fails() -> None:
    """Only those of workers that the plan uses."""
    file = PoolFile.parse(
        POOL.replace('model = "m"', 'model = "m"\nkey = "${KEY_A}"', 1)
        + UNKNOWN
        + 'key = "${KEY_C}"\n'
    )

    assert estimate(PLAN, file, env={}).missing == ("KEY_A",)
    assert estimate(PLAN, file, env={"KEY_A": "k"}).missing == ()
    assert estimate("Why?", file, env={}).missing == ("KEY_A", "KEY_C")


def test_an_address_may_be_a_variable() -> None:
    """It is looked up for the price; while it is not set the price is unknown."""
    file = PoolFile.parse('[workers.a]\nkind="openai"\nurl="${HOST}/v1"\nmodel="gpt-4o"\n')
    plan = Plan.of(["x"], ["a"], [[]])

    assert estimate(plan, file, env={"HOST": "https://api.openai.com"}).unpriced == ()
    unset = estimate(plan, file, env={})
    assert (unset.unpriced, unset.missing) == (("a",), ("HOST",))


async def say(messages: Sequence[Message]) -> str:
    """Answer at once."""
    return "said"


def test_functions_and_models_in_this_process_cost_nothing() -> None:
    """A pool made in Python can be estimated as well."""
    pool = Pool([FunctionWorker("f", say), LocalWorker("l")])

    found = estimate(Plan.of(["x", "y"], ["f", "l"], [[], [0]]), pool)

    assert found.dollars == Range(Decimal(0), Decimal(0))
    assert {each.price for each in found.workers} == {"in this process"}
    assert "the query is left out" in found.assumptions


def test_a_plan_for_another_pool_is_refused() -> None:
    """As when it is carried out."""
    with pytest.raises(PlanError, match="no worker is called 'x'"):
        estimate(Plan.of(["a"], ["x"], [[]]), PoolFile.parse(POOL))


@pytest.mark.anyio
@pytest.mark.parametrize("length", [80, 400])
async def test_an_actual_run_is_within_the_estimate(length: int) -> None:
    """Workers that keep to their limit stay in the range, counted the same way."""

    async def answer(messages: Sequence[Message]) -> Completion:
        read = -(-sum(len(each.content) for each in messages) // 4)
        return Completion("x" * length, usage=Usage(read, length // 4))

    file = PoolFile.parse(POOL.replace("max_tokens = 10\n", "max_tokens = 100\n"))
    run = await run_plan(
        PLAN, "Why?", Pool([FunctionWorker("a", answer), FunctionWorker("b", answer)])
    )

    found = estimate(PLAN, file, query="Why?")

    for step, expected in zip(run.steps, found.plan, strict=True):
        assert step.usage is not None
        assert step.usage.input_tokens <= expected.input_tokens.most
        assert expected.output_tokens.least <= step.usage.output_tokens
        assert step.usage.output_tokens <= expected.output_tokens.most


# -- a query --------------------------------------------------------------------------------------


def test_a_query_is_bounded_by_the_planner_settings() -> None:
    """From the shortest plan by the cheapest worker to the longest by the dearest."""
    text = POOL + '[planner]\nworker = "b"\nleast_steps = 2\nmost_steps = 4\nmax_tokens = 50\n'

    found = estimate("Why?", PoolFile.parse(text))

    assert found.planning is not None
    assert found.steps == Range(2, 4)
    assert (found.planning.worker, found.planning.calls) == ("b", Range(1, 2))
    assert found.planning.output_tokens == Range(LEAST_OUTPUT, 100)
    assert [(each.worker, each.calls) for each in found.workers] == [
        ("a", Range(0, 4)),
        ("b", Range(0, 4)),
    ]
    assert found.output_tokens == Range(LEAST_OUTPUT + 2 * 10, 100 + 4 * 100)
    assert found.planning.dollars is not None
    assert found.dollars.least > found.planning.dollars.least
    dearest = found.workers[0].dollars
    assert dearest is not None
    assert found.dollars.most == found.planning.dollars.most + dearest.most
    assert (found.critical_path, found.plan) == ((), ())


def test_every_plan_for_a_query_is_within_its_bounds() -> None:
    """Whatever plan the planner writes, its estimate lies in that of the query."""
    file = PoolFile.parse(POOL + '[planner]\nworker = "a"\nleast_steps = 1\nmost_steps = 3\n')
    whole = estimate("Why?", file)
    assert whole.planning is not None and whole.planning.dollars is not None

    for plan in (
        Plan.of(["Do it."], ["b"], [[]]),
        PLAN,
        Plan.of(["x" * 160] * 3, ["a"] * 3, ["all"] * 3),
        Plan.of(["x" * 160] * 3, ["b", "b", "a"], ["all"] * 3),
    ):
        part = estimate(plan, file, query="Why?")
        spent = part.dollars + whole.planning.dollars
        read = part.input_tokens + whole.planning.input_tokens
        assert whole.dollars.least <= spent.least <= spent.most <= whole.dollars.most
        assert whole.input_tokens.least <= read.least <= read.most <= whole.input_tokens.most


def test_the_embedded_pool_is_estimated_without_loading_it() -> None:
    """It costs nothing, and its planner is not one of its workers."""
    team = Conductor()

    found = estimate("Why?", team.pool)

    assert found.planning is not None
    assert found.planning.worker not in {each.worker for each in found.workers}
    settings: PlannerSettings = team.pool.planning
    assert found.steps == Range(settings.least_steps, settings.most_steps)
    assert found.dollars == Range(Decimal(0), Decimal(0))


def test_a_planner_that_is_not_there_is_told_with_the_file() -> None:
    """In one line."""
    with pytest.raises(PoolError, match=r"pool\.toml: planner\.worker: no worker is called 'x'"):
        estimate("Why?", PoolFile.parse(POOL + '[planner]\nworker = "x"\n'))


# -- the command ----------------------------------------------------------------------------------

NO_CONNECTION = """\
import sys
def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        print("CONNECTS", event, args, file=sys.stderr)
        raise SystemExit(77)
sys.addaudithook(refuse)
from conductor.cli import main
main()
"""


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `conductor ...` in a process that ends at the first attempt to connect."""
    return subprocess.run(
        [sys.executable, "-c", NO_CONNECTION, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(cwd),
            "COLUMNS": "120",
            "PYTHONPATH": str(Path(__file__).parents[1]),
        },
        timeout=120,
    )


@pytest.mark.parametrize("asked", ["x.plan", "Why is the sky blue?"])
def test_nothing_is_called(asked: str, tmp_path: Path) -> None:
    """A server stands where the pool points to, and nobody comes; nor goes anything elsewhere."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        hosted = UNKNOWN.replace("http://127.0.0.1:9", "https://api.openai.com")
        (tmp_path / "conductor.toml").write_text(
            POOL.replace(":9/", f":{port}/") + hosted.replace("mine", "gpt-4o"), encoding="utf-8"
        )
        (tmp_path / "x.plan").write_text(str(PLAN.resolve(["a"] * 2 + ["b"])), encoding="utf-8")

        done = command("estimate", asked, "--json", cwd=tmp_path)

        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["dollars"]["most"] > 0
        with pytest.raises(BlockingIOError):
            server.accept()


def test_the_table_says_what_is_unknown_and_what_is_assumed(tmp_path: Path) -> None:
    """Every number has its worker; remedies stand below."""
    (tmp_path / "p.toml").write_text(POOL + UNKNOWN + 'key = "${KEY_C}"\n', encoding="utf-8")
    (tmp_path / "x.plan").write_text(
        str(Plan.of(["Draft.", "Check."], ["a", "c"], [[], [0]])), encoding="utf-8"
    )

    done = command("estimate", "x.plan", "--pool", "p.toml", "--query", "Why?", cwd=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "2 steps, longest chain: 0 a → 1 c"
    assert [line.split()[0] for line in lines[2:6]] == ["worker", "a", "c", "total"]
    assert lines[4].split()[-2:] == ["?", "unknown"]
    assert lines[7].startswith("price unknown, not in the total: c; write price = {")
    assert lines[8] == "not set in the environment: KEY_C"
    assert lines[9].startswith("Assumed: 4 characters a token")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        pytest.param(["no.plan"], "no.plan: No such file", id="no file"),
        pytest.param([""], "the query is empty", id="empty query"),
        pytest.param(["Why?", "--query", "x"], "Why?: there is no such plan file", id="two"),
        pytest.param(["bad.plan"], "bad.plan:2:12", id="unknown worker"),
        pytest.param(["x.plan", "--pool", "bad.toml"], "price.inputs: there is no", id="price"),
        pytest.param(["x.plan", "--pool", "half.toml"], "price.output: is missing", id="half"),
    ],
)
def test_mistakes_are_told_in_a_line(arguments: list[str], told: str, tmp_path: Path) -> None:
    """What, where, and the remedy; exit code 2."""
    (tmp_path / "conductor.toml").write_text(POOL, encoding="utf-8")
    price = "price = { inputs = 1, output = 1, input = 1 }"
    (tmp_path / "bad.toml").write_text(POOL + UNKNOWN + price, encoding="utf-8")
    (tmp_path / "half.toml").write_text(POOL + UNKNOWN + "price = {input = 1}", encoding="utf-8")
    (tmp_path / "x.plan").write_text(str(PLAN), encoding="utf-8")
    (tmp_path / "bad.plan").write_text(
        'subtasks = ["x"]\nworkers = ["nobody"]\naccess = [[]]\n', encoding="utf-8"
    )

    done = command("estimate", *arguments, cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_an_estimate_is_a_value() -> None:
    """Equal inputs give equal estimates; as JSON its dollars are numbers."""
    found = estimate(PLAN, PoolFile.parse(POOL))

    assert isinstance(found, Estimate)
    assert found == estimate(PLAN, PoolFile.parse(POOL))
    assert json.loads(found.to_json())["dollars"] == {
        "least": float(found.dollars.least),
        "most": float(found.dollars.most),
    }
