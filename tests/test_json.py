"""Plans as JSON, and the JSON Schemas of everything that is kept in files."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from conductor import Run, json_schema, run_plan
from grammar import Plan, PlanError, Step, parse, parse_file
from runtime import FunctionWorker, Pool, WorkerError

ROOT = Path(__file__).parents[1]
PLAN = Plan.of(["Draft.", 'Check "it"\u202e.'], ["gpt", 1], [[], [0]])
DICT: dict[str, Any] = {"subtasks": ["Draft."], "workers": ["gpt"], "access": [[]]}

NASTY = [
    *("workers = [1]", '"access": [[0]]', "</think>", "<think>", "```json\n{", '"""', "#", "“x”"),
    *("\\", "\\n", "\\ud83d", "\r\n", "\x00\x1b[31m\x7f\x9b", "\u202eevil\u2066"),
    *("\u2028\ufeff", "😀\U0010ffff"),
]
words = (
    st.lists(
        st.one_of(st.sampled_from(NASTY), st.text(st.characters(exclude_categories=["Cs"]))),
        max_size=5,
    )
    .map("".join)
    .filter(str.strip)
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any valid plan."""
    return Plan(
        tuple(
            Step(
                index,
                draw(st.one_of(st.integers(0, 999_999), words)),
                draw(words),
                tuple(earlier for earlier in range(index) if draw(st.booleans())),
            )
            for index in range(draw(st.integers(1, 5)))
        )
    )


def wrong(schema: dict[str, Any], document: object) -> list[str]:
    """What a schema has against a document."""
    return [error.message for error in Draft202012Validator(schema).iter_errors(document)]


# -- plans ----------------------------------------------------------------------------------------


def test_a_plan_is_a_small_object() -> None:
    """Three lists by our names; what would not show is escaped."""
    assert PLAN.to_json() == (
        '{"subtasks": ["Draft.", "Check \\"it\\"\\u202e."], '
        '"workers": ["gpt", 1], "access": [[], [0]]}'
    )


@given(plans(), st.sampled_from([None, 2]))
def test_json_loses_nothing_and_every_reader_takes_it(plan: Plan, indent: int | None) -> None:
    """Back from it, from the text of a model, and from a file; any JSON reader sees the lists."""
    text = plan.to_json(indent=indent)

    assert Plan.from_json(text) == parse(text) == parse_file(text) == plan
    assert json.loads(text) == {
        "subtasks": list(plan.subtasks),
        "workers": list(plan.workers),
        "access": [list(each) for each in plan.access],
    }
    assert not any(unicodedata.category(c) == "Cc" for c in text.replace("\n", ""))
    assert wrong(json_schema("plan"), json.loads(text)) == []


def test_a_plan_in_json_may_be_of_any_size() -> None:
    """The caps are for what models write."""
    plan = Plan.of(["x" * 20_000] * 100, [0] * 100, ["all"] * 100)

    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("", "1:1: P106 not valid JSON: expecting value", id="nothing"),
        pytest.param(str(PLAN), "1:1: P106 not valid JSON: expecting value", id="a plan file"),
        pytest.param('{"workers": [1,]}', "1:1", id="trailing comma"),
        pytest.param("[" * 100_000, "P106 not valid JSON: a number or nest too long", id="deep"),
        pytest.param("[1]", "P101 there is no plan", id="a list"),
        pytest.param(json.dumps({**DICT, "note": "x"}), "P106 this is neither", id="another key"),
        pytest.param(json.dumps({**DICT, "workers": [True]}), "P209", id="boolean worker"),
        pytest.param(json.dumps({**DICT, "access": [[0]]}), "P205 step 0 reads itself", id="self"),
        pytest.param('{"subtasks": ["a"], "workers": [0]}', "P102", id="a list is missing"),
    ],
)
def test_json_that_is_no_plan_is_told_with_its_place(text: str, told: str) -> None:
    """As everywhere: a diagnostic."""
    with pytest.raises(PlanError) as caught:
        Plan.from_json(text)

    assert told in str(caught.value)


# -- schemas --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plan", "pool", "run"])
def test_schemas_are_valid_named_and_described(kind: Any) -> None:
    """Draft 2020-12, with an id, and a description of every setting a person writes."""
    schema = json_schema(kind)

    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"] == f"urn:conductor-lm:schema:{kind}"
    assert schema["title"] and schema["description"]
    tables = [schema, *schema.get("$defs", {}).values()]
    assert all("description" in table for table in tables)


@pytest.mark.parametrize(
    "document",
    [
        pytest.param({}, id="nothing"),
        pytest.param([], id="a list"),
        pytest.param({**DICT, "note": "x"}, id="another key"),
        pytest.param({**DICT, "subtasks": []}, id="no steps"),
        pytest.param({**DICT, "subtasks": ["  "]}, id="blank subtask"),
        pytest.param({**DICT, "subtasks": [1]}, id="a number as a subtask"),
        pytest.param({**DICT, "workers": [True]}, id="boolean worker"),
        pytest.param({**DICT, "workers": [-1]}, id="negative worker"),
        pytest.param({**DICT, "workers": [""]}, id="empty worker"),
        pytest.param({**DICT, "access": [[-1]]}, id="negative step"),
        pytest.param({**DICT, "access": ["some"]}, id="some"),
        pytest.param({"subtasks": ["a"], "workers": [0]}, id="a list is missing"),
    ],
)
def test_the_schema_of_plans_refuses_what_the_parser_refuses(document: Any) -> None:
    """What a schema can say of plans it says; the order of steps is beyond it."""
    assert wrong(json_schema("plan"), document)
    with pytest.raises(PlanError):
        Plan.from_json(json.dumps(document))


@pytest.mark.parametrize("access", ["all", "ALL", ["all"], [], [0]])
def test_the_schema_of_plans_takes_every_way_to_say_access(access: object) -> None:
    """ "all" as a word or in a list."""
    document = {"subtasks": ["a", "b"], "workers": [0, "gpt"], "access": [[], access]}

    assert wrong(json_schema("plan"), document) == []
    assert Plan.from_json(json.dumps(document)).workers == (0, "gpt")


def test_the_schema_of_pools_takes_the_pool_of_the_readme() -> None:
    """A TOML file is the same data; every setting has its description."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    sample = tomllib.loads(readme.split("```toml\n")[1].split("```")[0])
    sample["workers"]["gpt"]["price"] = {"input": 1.25, "output": 10}
    schema = json_schema("pool")

    assert wrong(schema, sample) == []
    assert "path" not in schema["properties"]
    url = schema["$defs"]["EndpointTable"]["properties"]["url"]
    assert url["description"] == "Base address, usually ending in /v1."
    assert "max_tokens" in schema["$defs"]["LocalTable"]["properties"]


@pytest.mark.parametrize(
    "table",
    [
        pytest.param({"kind": "local", "modle": "m"}, id="unknown setting"),
        pytest.param({"kind": "remote"}, id="unknown kind"),
        pytest.param({"kind": "openai", "url": "http://127.0.0.1:1/v1"}, id="no model"),
        pytest.param({"kind": "local", "max_tokens": 0}, id="no tokens"),
        pytest.param({"kind": "local", "price": {"input": 1}}, id="half a price"),
        pytest.param({"kind": "local", "price": {"input": -1, "output": 1}}, id="below nothing"),
    ],
)
def test_the_schema_of_pools_refuses_wrong_settings(table: dict[str, object]) -> None:
    """As the pool itself does."""
    assert wrong(json_schema("pool"), {"workers": {"a": table}})
    assert wrong(json_schema("pool"), {"workers": {}})


@pytest.mark.anyio
async def test_the_schema_of_runs_takes_real_runs() -> None:
    """A run with an answer and one without; not one with a state nobody knows."""

    async def say(messages: object) -> str:
        return "yes"

    async def fail(messages: object) -> str:
        raise ValueError("no")

    pool = Pool([FunctionWorker("yes", say), FunctionWorker("no", fail)])
    schema = json_schema("run")
    for workers in (["yes", "yes"], ["no", "yes"]):
        run = await run_plan(Plan.of(["a", "b"], workers, [[], [0]]), "q?", pool)
        document = json.loads(run.to_json())

        assert wrong(schema, document) == []
        assert Run.from_json(json.dumps(document)) == run
        assert wrong(schema, {**document, "state": "asleep"})
        assert wrong(schema, {**document, "rounds": [{"steps": [{"index": "first"}]}]})
        del document["query"]
        assert wrong(schema, document)
    text = schema["$defs"]["StepResult"]["properties"]["started_s"]["description"]
    assert text == "Seconds from the start of the run."


def test_an_error_of_a_worker_is_no_part_of_a_document() -> None:
    """Only what a run keeps is described."""
    assert WorkerError.__name__ not in json_schema("run")["$defs"]


# -- the commands ---------------------------------------------------------------------------------


def command(*arguments: str, cwd: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run `conductor ...` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "conductor", *arguments],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(cwd), "COLUMNS": "100", "PYTHONPATH": str(ROOT)},
        timeout=120,
    )


def test_convert_writes_the_form_of_the_ending(tmp_path: Path) -> None:
    """There and back; what was a plan file is the same but for its comments."""
    (tmp_path / "a.plan").write_text(f"# why\n{PLAN}", encoding="utf-8")

    there = command("convert", "a.plan", "-o", "a.json", cwd=tmp_path)
    back = command("convert", "a.json", "-o", "b.plan", cwd=tmp_path)

    assert (there.returncode, there.stdout, there.stderr) == (0, "", "2 steps written to a.json\n")
    assert back.returncode == 0, back.stderr
    written = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert written == PLAN.to_json(indent=2) + "\n"
    assert (tmp_path / "b.plan").read_text(encoding="utf-8") == str(PLAN)


def test_convert_prints_the_other_form(tmp_path: Path) -> None:
    """JSON of a plan file, a plan file of JSON; - is standard input."""
    to_json = command("convert", "-", cwd=tmp_path, stdin=str(PLAN))
    to_plan = command("convert", "-", cwd=tmp_path, stdin=PLAN.to_json())

    assert (to_json.returncode, to_json.stdout) == (0, PLAN.to_json(indent=2) + "\n")
    assert (to_plan.returncode, to_plan.stdout) == (0, str(PLAN))


@pytest.mark.anyio
async def test_convert_takes_the_plan_out_of_a_run(tmp_path: Path) -> None:
    """A run knows its plan; a plan with a worker called planning is no run."""

    async def say(messages: object) -> str:
        return "yes"

    plan = Plan.of(["a"], ["planning"], [[]])
    run = await run_plan(plan, "q?", Pool([FunctionWorker("planning", say)]))

    for text in (run.to_json(), plan.to_json()):
        assert command("convert", "-", cwd=tmp_path, stdin=text).stdout == str(plan)


@pytest.mark.parametrize("kind", ["plan", "pool", "run"])
def test_schema_prints_what_python_gives(kind: str, tmp_path: Path) -> None:
    """The same document."""
    done = command("schema", kind, cwd=tmp_path)

    assert (done.returncode, json.loads(done.stdout)) == (0, json_schema(kind))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        pytest.param(["convert", "no.plan"], "no.plan: No such file", id="no file"),
        pytest.param(["convert", "a.plan", "-o", "x.yaml"], "use .json or .plan", id="ending"),
        pytest.param(["convert", "a.plan", "-o", "no/x.json"], "No such file", id="no folder"),
        pytest.param(["convert", "bad.json"], "bad.json:1:", id="not a plan"),
        pytest.param(["schema", "router"], "'plan', 'pool', 'run'", id="unknown schema"),
    ],
)
def test_mistakes_are_told_in_a_line(arguments: list[str], told: str, tmp_path: Path) -> None:
    """What, where, and the remedy; exit code 2."""
    (tmp_path / "a.plan").write_text(str(PLAN), encoding="utf-8")
    (tmp_path / "bad.json").write_text('{"subtasks": ["a"], "workers": [0]}', encoding="utf-8")

    done = command(*arguments, cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_there_are_three_schemas() -> None:
    """Another name is an error."""
    with pytest.raises(ValueError, match="no schema of 'router'; there are: plan, pool, run"):
        json_schema("router")
