"""The `conductor` command, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import conductor
from conductor.report import explain
from grammar import RULES

FIRST, *_, LAST = conductor.embedded_pool().names
GOOD = f'subtasks = ["Say yes.", "Say no."]\nworkers = ["{FIRST}", "{LAST}"]\naccess = [[], [0]]\n'
FIVE_MISTAKES = """\
subtasks = ["Draft.", "", 7]
workers  = [0, True, 1]
access   = [[2], [1], [-1]]
"""


def command(
    *arguments: str | Path, cwd: Path, stdin: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `conductor ...` in a process of its own, without the user's own pool or keys."""
    clean = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(Path.home()),
        "COLUMNS": "100",
        "CONDUCTOR_JOURNAL": "off",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        **(env or {}),
    }
    return subprocess.run(
        [sys.executable, "-m", "conductor", *map(str, arguments)],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        env=clean,
        timeout=600,
    )


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    return done.stderr.strip().splitlines()


def test_check_locates_five_different_mistakes(tmp_path: Path) -> None:
    """Five mistakes in one file give five diagnostics, each with its own code and place."""
    file = tmp_path / "five.plan"
    file.write_text(FIVE_MISTAKES, encoding="utf-8")

    done = command("check", file.name, cwd=tmp_path)

    found = [line for line in done.stdout.splitlines() if line.startswith("error[")]
    places = [line.strip() for line in done.stdout.splitlines() if "-->" in line]
    assert done.returncode == 1
    assert [line[6:10] for line in found] == ["P211", "P208", "P209", "P204", "P205", "P207"]
    assert places == [
        "--> five.plan:1:23",
        "--> five.plan:1:27",
        "--> five.plan:2:16",
        "--> five.plan:3:14",
        "--> five.plan:3:19",
        "--> five.plan:3:24",
    ]


def test_check_of_good_files_says_so(tmp_path: Path) -> None:
    """No problems, exit code 0."""
    (tmp_path / "a.plan").write_text(GOOD, encoding="utf-8")

    done = command("check", "a.plan", "-", cwd=tmp_path, stdin=GOOD)

    assert (done.returncode, done.stdout) == (0, "2 files checked: no problems\n")


def test_check_against_a_pool_suggests_the_nearest_name(tmp_path: Path) -> None:
    """A misspelt worker is found where the pool is known."""
    (tmp_path / "pool.toml").write_text('[workers.teller]\nkind = "local"\n', encoding="utf-8")
    (tmp_path / "a.plan").write_text(GOOD.replace(FIRST, "tellr"), encoding="utf-8")

    done = command("check", "a.plan", "--pool", "pool.toml", cwd=tmp_path)

    assert done.returncode == 1
    assert "did you mean 'teller'?" in done.stdout


def test_check_fix_repairs_the_file_in_place(tmp_path: Path) -> None:
    """What is safe is repaired and told; the rest is shown."""
    file = tmp_path / "a.plan"
    file.write_text('note\nsubtasks = ["a" "b"]\nworkers = [0, 1]\naccess = [[], [0]]\n')

    done = command("check", "--fix", "a.plan", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (0, "1 file checked: no problems\n")
    assert done.stderr == "a.plan: 2 repaired\n"
    assert file.read_text() == (
        '# note\nsubtasks = ["a", "b"]\nworkers = [0, 1]\naccess = [[], [0]]\n'
    )


def test_check_speaks_to_machines(tmp_path: Path) -> None:
    """JSON, SARIF and GitHub annotations name the same problem at the same place."""
    (tmp_path / "a.plan").write_text(GOOD.replace("[0]]", "[1]]"), encoding="utf-8")

    as_json = command("check", "a.plan", "--output-format", "json", cwd=tmp_path)
    sarif = command("check", "a.plan", "--output-format", "sarif", cwd=tmp_path)
    github = command("check", "a.plan", "--output-format", "github", cwd=tmp_path)

    (record,) = json.loads(as_json.stdout)
    (result,) = json.loads(sarif.stdout)["runs"][0]["results"]
    region = result["locations"][0]["physicalLocation"]["region"]
    place = {"startLine": 3, "startColumn": 16, "endLine": 3, "endColumn": 17}
    assert (as_json.returncode, sarif.returncode, github.returncode) == (1, 1, 1)
    assert (record["code"], record["line"], record["column"]) == ("P205", 3, 16)
    assert (result["ruleId"], result["level"], region) == ("P205", "error", place)
    assert github.stdout.startswith(
        "::error file=a.plan,line=3,col=16,endLine=3,endColumn=17,title=P205 self-reference::"
    )


def test_warnings_are_shown_and_leave_the_exit_code(tmp_path: Path) -> None:
    """A wasted step is worth a word, but the plan runs."""
    (tmp_path / "a.plan").write_text(GOOD.replace("[0]]", "[]]"), encoding="utf-8")

    done = command("check", "a.plan", cwd=tmp_path)

    assert done.returncode == 0
    assert "warning[P401]" in done.stdout
    assert done.stdout.endswith("1 file checked: 1 warning\n")


def test_fmt_formats_checks_and_shows(tmp_path: Path) -> None:
    """--check and --diff change nothing and exit with 1; without them the file is laid out."""
    file = tmp_path / "a.plan"
    file.write_text(GOOD, encoding="utf-8")
    tidy = conductor.format_file(GOOD)

    checked = command("fmt", "--check", "a.plan", cwd=tmp_path)
    shown = command("fmt", "--diff", "a.plan", cwd=tmp_path)
    before = file.read_text(encoding="utf-8")
    done = command("fmt", "a.plan", cwd=tmp_path)
    again = command("fmt", "--check", "a.plan", cwd=tmp_path)
    piped = command("fmt", "-", cwd=tmp_path, stdin=GOOD)

    assert (checked.returncode, checked.stderr) == (1, "a.plan: would change\n")
    assert shown.returncode == 1
    assert '-subtasks = ["Say yes.", "Say no."]\n' in shown.stdout
    assert '\n+subtasks = [\n+    "Say yes.",\n' in shown.stdout
    assert before == GOOD
    assert (done.returncode, file.read_text(encoding="utf-8")) == (0, tidy)
    assert (again.returncode, again.stderr) == (0, "")
    assert (piped.returncode, piped.stdout) == (0, tidy)


def test_fmt_of_a_broken_file_shows_why_and_leaves_it(tmp_path: Path) -> None:
    """What can't be read is not written."""
    file = tmp_path / "a.plan"
    file.write_text("subtasks = [", encoding="utf-8")

    done = command("fmt", "a.plan", cwd=tmp_path)

    assert done.returncode == 2
    assert "error[P103]" in done.stderr
    assert file.read_text(encoding="utf-8") == "subtasks = ["


@pytest.mark.parametrize("code", sorted(RULES))
def test_every_code_is_explained(code: str) -> None:
    """With what it means, the example that shows it, and the one that is right."""
    text = explain(code.lower())

    assert text.startswith(f"{code} {RULES[code].name} ({RULES[code].severity})\n")
    assert f"{RULES[code].severity}[{code}]: " in text
    assert "Right would be:" in text


def test_explain_lists_all_codes_and_refuses_unknown_ones(tmp_path: Path) -> None:
    """The table of codes is one command away."""
    listed = command("explain", cwd=tmp_path)
    refused = command("explain", "P999", cwd=tmp_path)

    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(RULES)
    assert (refused.returncode, "no code 'P999'" in refused.stderr) == (2, True)


@pytest.mark.parametrize("ending", ["svg", "png", "dot", "mmd"])
def test_graph_writes_every_format(ending: str, tmp_path: Path) -> None:
    """A picture file is written and holds what its ending says."""
    (tmp_path / "a.plan").write_text(GOOD, encoding="utf-8")
    starts = {"svg": b"<?xml", "png": b"\x89PNG", "dot": b"digraph", "mmd": b"flowchart"}

    done = command("graph", "a.plan", "-o", f"x.{ending}", cwd=tmp_path)

    data = (tmp_path / f"x.{ending}").read_bytes()
    assert done.returncode == 0, done.stderr
    assert starts[ending] in data[:300]


def test_graph_draws_in_the_terminal(tmp_path: Path) -> None:
    """Without a file the topology is drawn as text."""
    (tmp_path / "a.plan").write_text(GOOD, encoding="utf-8")

    done = command("graph", "a.plan", cwd=tmp_path)

    assert done.stdout.startswith(f"chain, 2 steps\n\n●  0 {FIRST}")
    assert f"◉  1 {LAST}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        pytest.param(["run", ""], 2, "the query is empty", id="empty query"),
        pytest.param(["run", "q", "--plan", "no.plan"], 2, "no.plan: No such file", id="no plan"),
        pytest.param(["run", "q", "--pool", "no.toml"], 2, "conductor init", id="no pool file"),
        pytest.param(["run", "q", "--worker", "x"], 2, "no worker is called 'x'", id="no worker"),
        pytest.param(["run", "q", "--without", "x"], 2, "no worker is called 'x'", id="without x"),
        pytest.param(["run", "q", "--planner", "x"], 2, "no worker is called 'x'", id="planner x"),
        pytest.param(["run", "q", "--pool", "key.toml"], 2, "NO_SUCH_KEY is not set", id="no key"),
        pytest.param(["run", "q", "--plan", "bad.plan"], 2, "bad.plan:1:", id="bad plan"),
        pytest.param(["check", "no.plan"], 2, "no.plan: No such file", id="check nothing"),
        pytest.param(["check", "latin.plan"], 2, "not a text in UTF-8", id="not UTF-8"),
        pytest.param(["graph", "bad.plan"], 2, "bad.plan:1:", id="graph of a bad plan"),
        pytest.param(["graph", "a.plan", "-o", "x.gif"], 2, "use .svg", id="unknown format"),
        pytest.param(["graph", "a.plan", "-o", "no/x.svg"], 2, "No such file", id="no folder"),
        pytest.param(["graph", "run.json"], 2, "not the record of a run", id="not a run"),
        pytest.param(["init"], 2, "--force overwrites", id="file exists"),
        pytest.param(["models", "pull", "gpt-9"], 2, "no packaged model", id="unknown model"),
    ],
)
def test_mistakes_are_told_in_a_line_with_the_remedy(
    arguments: Sequence[str], code: int, told: str, tmp_path: Path
) -> None:
    """No traceback: what is wrong, where, what would be right, and an exit code."""
    (tmp_path / "a.plan").write_text(GOOD, encoding="utf-8")
    (tmp_path / "bad.plan").write_text('subtasks = ["a"', encoding="utf-8")
    (tmp_path / "latin.plan").write_bytes(b"# caf\xe9\n")
    (tmp_path / "run.json").write_text('{"planning": 3}', encoding="utf-8")
    (tmp_path / "conductor.toml").write_text('[workers.a]\nkind = "local"\n', encoding="utf-8")
    (tmp_path / "key.toml").write_text(
        '[workers.a]\nkind="openai"\nurl="http://127.0.0.1:9/v1"\nmodel="m"\nkey="${NO_SUCH_KEY}"',
        encoding="utf-8",
    )

    done = command(*arguments, cwd=tmp_path)

    assert (done.returncode, done.stdout) == (code, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    """With --debug the place of an error can be seen."""
    done = command("--debug", "run", "q", "--pool", "no.toml", cwd=tmp_path)

    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_pool_tells_who_is_there_and_why_not(tmp_path: Path) -> None:
    """Each worker of the file is shown with its state; a missing key and a dead server too."""
    (tmp_path / "p.toml").write_text(
        '[planner]\nworker="small"\n[workers.small]\nkind="local"\n'
        '[workers.keyless]\nkind="openai"\nurl="http://127.0.0.1:9/v1"\nmodel="m"\n'
        'key="${NO_SUCH_KEY}"\n'
        '[workers.dead]\nkind="openai"\nurl="http://127.0.0.1:9/v1"\nmodel="m"\n',
        encoding="utf-8",
    )

    done = command("pool", "--pool", "p.toml", cwd=tmp_path, env={"COLUMNS": "200"})

    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert any("✓" in line and "small (planner)" in line for line in lines)
    assert any("✗" in line and "keyless" in line and "NO_SUCH_KEY" in line for line in lines)
    assert any("✗" in line and "dead" in line and "127.0.0.1:9" in line for line in lines)


def test_pool_shows_terms_that_are_not_the_usual_ones(tmp_path: Path) -> None:
    """Compactly; and what holds for every run."""
    (tmp_path / "p.toml").write_text(
        '[workers.small]\nkind="local"\n'
        '[workers.self]\nkind="conductor"\n'
        '[workers.gpt]\nkind="openai"\nurl="http://127.0.0.1:9/v1"\nmodel="m"\n'
        'concurrency=8\nfallback=["small"]\nprice={input=1.25,output=10}\n'
        "[run]\ndollars=0.5\nrounds=2\n",
        encoding="utf-8",
    )

    done = command("pool", "--pool", "p.toml", cwd=tmp_path, env={"COLUMNS": "400"})

    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert any("8 at once, $1.25/$10 per M tokens, else small" in line for line in lines)
    assert any("✓  self" in line and "a run inside a step" in line for line in lines)
    assert lines[-1] == "every run: $0.5000, 2 rounds"


def test_init_writes_a_file_that_pool_accepts(tmp_path: Path) -> None:
    """Keys are named, never written down."""
    env = {"OPENAI_API_KEY": "sk-very-secret"}

    done = command("init", cwd=tmp_path, env=env)

    written = (tmp_path / "conductor.toml").read_text(encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "${OPENAI_API_KEY}" in written
    assert "sk-very-secret" not in written + done.stdout + done.stderr
    assert conductor.Pool.load(tmp_path / "conductor.toml", env).names


def test_run_of_a_written_plan_records_everything(tmp_path: Path) -> None:
    """`run --plan --json` gives the record on standard output; `graph` draws it by state."""
    (tmp_path / "a.plan").write_text(GOOD, encoding="utf-8")

    done = command("run", "Yes or no?", "--plan", "a.plan", "--json", cwd=tmp_path)

    run = conductor.Run.from_json(done.stdout)
    assert done.returncode == 0, done.stderr
    assert [(step.worker, step.state) for step in run.steps] == [
        (FIRST, "done"),
        (LAST, "done"),
    ]
    assert "step 1 done" in done.stderr
    (tmp_path / "run.json").write_text(done.stdout, encoding="utf-8")
    drawn = command("graph", "run.json", cwd=tmp_path)
    assert drawn.stdout.count("✓") == 2


def test_a_run_of_the_embedded_models_goes_on_and_replays(tmp_path: Path) -> None:
    """Its pool needs no file, and its planner is none of its workers."""
    (tmp_path / "a.plan").write_text(GOOD, encoding="utf-8")
    env = {"CONDUCTOR_JOURNAL": "journal.db"}

    stopped = command("run", "Yes?", "--plan", "a.plan", "--calls", "1", cwd=tmp_path, env=env)
    done = command("resume", "last", "--calls", "2", "--json", cwd=tmp_path, env=env)
    replayed = command("replay", "last", cwd=tmp_path, env=env)

    run = conductor.Run.from_json(done.stdout)
    assert (stopped.returncode, done.returncode, replayed.returncode) == (1, 0, 0)
    assert (run.pool, run.planner, run.state) == ("embedded", "conductor", "done")
    assert sum(account.calls for account in run.accounts.values()) == 2


def test_quiet_single_pick_prints_the_answer_alone(tmp_path: Path) -> None:
    """One worker, no plan, nothing but its reply."""
    query = "What is the capital of France?"

    done = command("run", "-", "--worker", FIRST, "--quiet", cwd=tmp_path, stdin=query)

    assert (done.returncode, done.stderr) == (0, "")
    assert "Paris" in done.stdout


def test_plan_writes_a_plan_that_run_accepts(tmp_path: Path) -> None:
    """`conductor plan` prints a plan file, with no more workers than allowed."""
    done = command("plan", "Why is the sky blue?", "--without", LAST, "-q", cwd=tmp_path)

    left = [name for name in conductor.embedded_pool().names if name != LAST]
    plan = conductor.parse_file(done.stdout, workers=left)
    assert done.returncode == 0, done.stderr
    assert set(plan.workers) <= set(left)


def test_deadline_ends_a_run_with_its_reason(tmp_path: Path) -> None:
    """A run that can't be done in time says so and has exit code 1."""
    done = command("run", "Tell a long story.", "--deadline", "0.01", "--json", cwd=tmp_path)

    record = json.loads(done.stdout)
    assert (done.returncode, record["state"]) == (1, "failed")
    assert "deadline" in errors(done)[-1]


def test_python_m_conductor_and_version(tmp_path: Path) -> None:
    """`python -m conductor` is the command."""
    done = command("--version", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (0, "0.1.0\n")
