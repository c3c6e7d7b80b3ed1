"""Pool: workers from Python and from a file; every mistake is told with its place and remedy."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path

import pytest

from runtime import (
    Endpoint,
    FunctionWorker,
    LocalWorker,
    Message,
    PlannerSettings,
    Pool,
    PoolError,
    PoolFile,
)

KEY = "sk-canary-0123456789abcdef"


async def say(messages: Sequence[Message]) -> str:
    """Answer at once."""
    return "said"


def workers(*names: str) -> list[FunctionWorker]:
    return [FunctionWorker(name, say) for name in names]


def openai(name: str = "gpt", *lines: str) -> str:
    """The table of a worker; later lines are added."""
    given = [f"[workers.{name}]", 'kind = "openai"', 'url = "https://api.test/v1"', 'model = "m"']
    return "\n".join([*given, *lines, ""])


# -- from Python ----------------------------------------------------------------------------------


def test_a_pool_keeps_its_order() -> None:
    """Numbers in plans count it."""
    given = workers("b", "a", "c")
    pool = Pool(given)

    assert pool.names == ("b", "a", "c")
    assert list(pool) == given
    assert len(pool) == 3
    assert pool["a"] is given[1]


def test_the_planner_is_the_first_worker_unless_it_is_chosen() -> None:
    """It need not be in the pool."""
    given = workers("a", "b")
    other = FunctionWorker("planner", say)

    assert Pool(given).planner is given[0]
    assert Pool(given, planner=other).planner is other
    assert Pool(given, planner=other).names == ("a", "b")


@pytest.mark.parametrize(
    "name",
    ["", " ", "7", "7b", "_x", "-x", "a b", "a/b", "a\n", "ünder", "a" * 65, "../x", "a:b", 'a"'],
)
def test_bad_names_are_refused(name: str) -> None:
    """A name is told apart from a number, and can be written anywhere."""
    with pytest.raises(PoolError) as caught:
        Pool(workers("fine", name))

    assert str(caught.value) == (
        f"{name!r} can't be the name of a worker: start with a letter; then letters, digits, '.', "
        "'-' and '_'; at most 64"
    )


@pytest.mark.parametrize("name", ["a", "A", "gpt-5.1", "qwen2.5_7B", "a" * 64])
def test_good_names_are_taken(name: str) -> None:
    """The names that models go by are among them."""
    assert Pool(workers(name)).names == (name,)


def test_a_name_is_taken_once() -> None:
    """Two workers of one name could not be told apart in a plan."""
    with pytest.raises(PoolError, match=r"^two workers are called 'a'; names must differ$"):
        Pool(workers("a", "b", "a"))


def test_an_empty_pool_is_refused() -> None:
    """No plan can be carried out with it."""
    with pytest.raises(PoolError, match=r"^the pool has no workers; a plan needs at least one$"):
        Pool([])


def test_an_unknown_worker_is_told_with_the_known_ones() -> None:
    """By index, only and without alike."""
    pool = Pool(workers("a", "b"))
    message = r"^no worker is called 'c'; the pool has: a, b$"

    with pytest.raises(PoolError, match=message):
        pool["c"]
    with pytest.raises(PoolError, match=message):
        pool.only("a", "c")
    with pytest.raises(PoolError, match=message):
        pool.without("a", "c")


def test_only_keeps_the_order_of_the_pool() -> None:
    """However the names are given; the planner and its settings stay."""
    given = workers("a", "b", "c")
    settings = PlannerSettings(most_steps=3)
    pool = Pool(given, planner=given[1], planning=settings)

    kept = pool.only("c", "a", "c")

    assert (kept.names, kept.planner, kept.planning) == (("a", "c"), given[1], settings)
    assert pool.names == ("a", "b", "c")


def test_without_leaves_workers_out_as_planner_too() -> None:
    """Who is left out does not write plans either."""
    given = workers("a", "b", "c")
    pool = Pool(given, planner=given[1])

    assert (pool.without("a").names, pool.without("a").planner) == (("b", "c"), given[1])
    assert (pool.without("b").names, pool.without("b").planner) == (("a", "c"), given[0])
    assert pool.without().names == ("a", "b", "c")


def test_a_pool_can_t_be_emptied() -> None:
    """What was left out is told."""
    pool = Pool(workers("a", "b"))

    with pytest.raises(PoolError, match=r"^without b, a no worker is left in the pool$"):
        pool.without("b", "a")
    with pytest.raises(PoolError, match=r"^the pool has no workers"):
        pool.only()


# -- from a file ----------------------------------------------------------------------------------


def test_a_file_becomes_a_pool(tmp_path: Path) -> None:
    """Workers in the order of the file, with variables from the environment that is given."""
    path = tmp_path / "pool.toml"
    path.write_text(
        '[planner]\nworker = "small"\n'
        + openai("gpt", 'key = "${KEY}"', 'card = "Mathematics."', 'tags = ["big"]')
        + '[workers.small]\nkind = "local"\n',
        encoding="utf-8",
    )

    pool = Pool.load(path, {"KEY": KEY})

    gpt, small = pool
    assert isinstance(gpt, Endpoint)
    assert isinstance(small, LocalWorker)
    assert pool.names == ("gpt", "small")
    assert (gpt.model, gpt.host, gpt.card, gpt.tags) == ("m", "api.test", "Mathematics.", ("big",))
    assert pool.planner is small


def test_variables_and_dollars_are_written_out() -> None:
    """``${NAME}`` in url, model and headers too, in the middle as well; ``$$`` is a dollar."""
    text = (
        '[workers.gpt]\nkind = "openai"\nurl = "https://${HOST}/v1"\nmodel = "a$$b-${VERSION}"\n'
        'headers = { X-Team = "${TEAM}" }\n'
    )

    pool = PoolFile.parse(text).build({"HOST": "api.test", "VERSION": "$7", "TEAM": "t"})

    worker = pool["gpt"]
    assert isinstance(worker, Endpoint)
    assert (worker.host, worker.model) == ("api.test", "a$b-$7")


def test_local_workers_of_one_model_share_it() -> None:
    """It is loaded once, whatever the number of workers made from it."""
    text = '[workers.a]\nkind = "local"\n[workers.b]\nkind = "local"\ntemperature = 1\n'

    a, b = PoolFile.parse(text).build({})

    assert isinstance(a, LocalWorker)
    assert isinstance(b, LocalWorker)
    assert a.model is b.model


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "workers: a pool needs at least one table [workers.NAME]", id="empty"),
        pytest.param(
            "[workers]", "workers: a pool needs at least one table [workers.NAME]", id="no-workers"
        ),
        pytest.param("workers = 3", "workers: must be a table", id="workers-no-table"),
        pytest.param("[workers]\na = 3", "workers.a: must be a table", id="worker-no-table"),
        pytest.param(
            "[workers.a]",
            'workers.a: kind is missing; write kind = "openai", "local" or "conductor"',
            id="no-kind",
        ),
        pytest.param(
            '[workers.a]\nkind = "magic"',
            "workers.a: kind 'magic' is unknown; possible: openai, local, conductor",
            id="unknown-kind",
        ),
        pytest.param(
            '[workers.openai]\nkind = "openai"\nmodel = "m"',
            "workers.openai.url: is missing; write url = ...",
            id="missing-setting-of-a-worker-called-as-its-kind",
        ),
        pytest.param(
            openai("a", "temprature = 1"),
            "workers.a.temprature: there is no such setting; did you mean temperature?",
            id="misspelt-setting",
        ),
        pytest.param(
            '[workers.a]\nkind = "local"\nurl = "x"',
            "workers.a.url: there is no such setting; possible: adapter, call_s, card, "
            "concurrency, engine, fallback, first_text_s, input_tokens, kind, max_tokens, model, "
            "open_s, price, "
            "requests_per_minute, retries, retry_base_s, retry_cap_s, retry_total_s, seed, "
            "silence_s, stop, system, tags, temperature, tokens_per_minute, tools, top_p, "
            "trip_after",
            id="setting-of-the-other-kind",
        ),
        pytest.param(
            "path = 'x'\n" + openai(),
            "path: there is no such setting; possible: planner, run, workers",
            id="unknown-table",
        ),
        pytest.param(
            openai("a", 'temperature = "0.5"'),
            "workers.a.temperature: input should be a valid number",
            id="number-in-quotes",
        ),
        pytest.param(
            openai("a", "max_tokens = true"),
            "workers.a.max_tokens: input should be a valid integer",
            id="boolean-for-a-number",
        ),
        pytest.param(
            openai("a", "top_p = 0"),
            "workers.a.top_p: input should be greater than 0",
            id="out-of-range",
        ),
        pytest.param(
            openai("a", "temperature = nan"),
            "workers.a.temperature: input should be less than or equal to 5",
            id="not-a-number",
        ),
        pytest.param(openai("a", 'tags = "x"'), "workers.a.tags: must be a list", id="no-list"),
        pytest.param(
            openai("a", "stop = [1]"),
            "workers.a.stop.0: input should be a valid string",
            id="wrong-item",
        ),
        pytest.param(
            openai("a", 'headers = "x"'), "workers.a.headers: must be a table", id="no-table"
        ),
        pytest.param(
            openai("a") + openai("a"),
            "not valid TOML: Cannot declare ('workers', 'a') twice (at line 5, column 11)",
            id="worker-twice",
        ),
        pytest.param(
            "[workers.a]\nkind = openai",
            "not valid TOML: Invalid value (at line 2, column 8)",
            id="no-toml",
        ),
        pytest.param(
            openai('"a b"'),
            "'a b' can't be the name of a worker: start with a letter; then letters, digits, '.', "
            "'-' and '_'; at most 64",
            id="bad-name",
        ),
        pytest.param(
            openai("a", 'key = "${MISSING}"'),
            "workers.a.key: the environment variable MISSING is not set; export MISSING=... or "
            "take the worker out",
            id="missing-variable",
        ),
        pytest.param(
            openai("a", 'key = "${EMPTY}"'),
            "workers.a.key: the environment variable EMPTY is not set; export EMPTY=... or take "
            "the worker out",
            id="empty-variable",
        ),
        pytest.param(
            openai("a", 'headers = { X-Team = "${MISSING}" }'),
            "workers.a.headers.X-Team: the environment variable MISSING is not set; "
            "export MISSING=... or take the worker out",
            id="missing-variable-in-a-header",
        ),
        pytest.param(
            openai("a", 'key = "$SET"'),
            "workers.a.key: '$' stands alone; write ${NAME} for a variable or $$ for $",
            id="variable-without-braces",
        ),
        pytest.param(
            openai("a", 'key = "${NOT-A-NAME}"'),
            "workers.a.key: '$' stands alone; write ${NAME} for a variable or $$ for $",
            id="impossible-variable",
        ),
        pytest.param(
            '[workers.a]\nkind = "openai"\nurl = "ftp://x"\nmodel = "m"',
            "workers.a.url: must begin with https:// (or http:// for a server on this machine)",
            id="bad-address",
        ),
        pytest.param(
            '[planner]\nworker = "b"\n' + openai("a") + openai("c"),
            "planner.worker: no worker is called 'b'; the file has: a, c",
            id="unknown-planner",
        ),
        pytest.param(
            '[planner]\nworker = "a"\nmost_steps = 2\nleast_steps = 3\n' + openai("a"),
            "planner: least_steps is 3, more than most_steps (2)",
            id="no-length-of-plan-possible",
        ),
        pytest.param(
            '[planner]\nmodel = "a"\nworker = "a"\n' + openai("a"),
            "planner.model: there is no such setting; possible: cards, constrained, least_steps, "
            "max_tokens, most_steps, roster, seed, stop, subtask_characters, temperature, "
            "top_p, worker",
            id="unknown-planner-setting",
        ),
    ],
)
def test_a_mistake_is_told_with_file_setting_and_remedy(
    text: str, message: str, tmp_path: Path
) -> None:
    """In one line, before anything is connected or loaded."""
    path = tmp_path / "team.toml"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(PoolError) as caught:
        Pool.load(path, {"EMPTY": "", "SET": "x"})

    assert str(caught.value) == f"{path}: {message}"


def test_all_mistakes_of_a_file_are_told_at_once() -> None:
    """One line each."""
    text = openai("a", "seed = 1.5", "timeout_s = 0", "colour = 1")

    with pytest.raises(PoolError) as caught:
        PoolFile.parse(text)

    assert [line.partition(": ")[2].split(":")[0] for line in str(caught.value).splitlines()] == [
        "workers.a.seed",
        "workers.a.timeout_s",
        "workers.a.colour",
    ]


def test_a_file_that_can_t_be_read_is_told_with_the_way_to_one(tmp_path: Path) -> None:
    """Missing, a folder, or not a text."""
    missing, folder, binary = tmp_path / "no.toml", tmp_path, tmp_path / "bin.toml"
    binary.write_bytes(b"\xff\xfe\x00")

    told = []
    for path in (missing, folder, binary):
        with pytest.raises(PoolError) as caught:
            Pool.load(path)
        told.append(str(caught.value))

    assert told == [
        f"{missing}: No such file or directory; `conductor init` writes a pool file",
        f"{folder}: Is a directory; `conductor init` writes a pool file",
        f"{binary}: not a text in UTF-8; save it as UTF-8",
    ]


def test_variables_come_from_the_process_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """And are read when the pool is built, not before."""
    file = PoolFile.parse(openai("a", 'model = "${POOL_TEST_MODEL}"').replace('model = "m"\n', ""))
    monkeypatch.setenv("POOL_TEST_MODEL", "late")

    worker = file.build()["a"]

    assert isinstance(worker, Endpoint)
    assert worker.model == "late"


def test_a_key_is_never_shown() -> None:
    """Neither by a file, a pool or a worker nor, with its causes, by an error about the file."""
    fine = openai("a", f'key = "{KEY}"', f'headers = {{ X-Key = "{KEY}" }}')
    file = PoolFile.parse(fine)
    shown = [repr(file), str(file), repr(file.build({})), repr(file.build({})["a"])]
    for wrong in ("colour = 1", "seed = 'x'", "url = 'again'", "timeout_s = "):
        with pytest.raises(PoolError) as caught:
            PoolFile.parse(fine + wrong)
        shown += traceback.format_exception(caught.value)
    with pytest.raises(PoolError) as caught:
        PoolFile.parse(openai("a", 'key = "${K}"').replace("https://", "ftp://")).build({"K": KEY})
    shown += traceback.format_exception(caught.value)

    assert [text for text in shown if KEY in text] == []
