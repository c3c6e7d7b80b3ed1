"""What changed between two plans: everything, told once, and nothing that only counts otherwise."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from time import process_time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from grammar import (
    Change,
    EdgeAdded,
    EdgeRemoved,
    Plan,
    Step,
    StepAdded,
    StepRemoved,
    SubtaskEdited,
    WorkerChanged,
    diff,
)

SUBTASKS = ["Draft.", "Draft it.", "Check the draft.", "Check it.", "Sum up \u202e\n\x1b[1m.", "é"]


@st.composite
def plans(draw: st.DrawFn, least: int = 1) -> Plan:
    """Plans of few words, so that steps of two of them are often alike."""
    count = draw(st.integers(least, 6))
    return Plan(
        tuple(
            Step(
                index,
                draw(st.sampled_from(["gpt", "opus", "0", 0, 1])),
                draw(st.sampled_from(SUBTASKS)),
                tuple(earlier for earlier in range(index) if draw(st.booleans())),
            )
            for index in range(count)
        )
    )


def applied(old: Plan, changes: tuple[Change, ...]) -> Plan:
    """Make the new plan of the old one and the changes alone."""
    gone = {change.step.index for change in changes if isinstance(change, StepRemoved)}
    added = {change.step.index: change.step for change in changes if isinstance(change, StepAdded)}
    kept = iter([step for step in old if step.index not in gone])
    count = len(old) - len(gone) + len(added)
    was = [None if index in added else next(kept) for index in range(count)]
    now = {step.index: index for index, step in enumerate(was) if step is not None}
    steps = []
    for index, step in enumerate(was):
        if step is None:
            steps.append(added[index])
            continue
        reads = {now[earlier] for earlier in step.access if earlier in now}
        worker, subtask = step.worker, step.subtask
        for change in changes:
            if isinstance(change, StepAdded | StepRemoved) or change.index != index:
                continue
            assert change.was == step.index
            match change:
                case WorkerChanged():
                    assert (change.old, worker) == (worker, change.old)
                    worker = change.new
                case SubtaskEdited():
                    assert change.old == subtask
                    subtask = change.new
                case EdgeAdded():
                    assert change.reads not in reads
                    reads.add(change.reads)
                case EdgeRemoved():
                    reads.remove(change.reads)
        steps.append(Step(index, worker, subtask, tuple(sorted(reads))))
    return Plan(tuple(steps))


# -- promises for all plans -----------------------------------------------------------------------


@given(plans())
def test_a_plan_does_not_differ_from_itself(plan: Plan) -> None:
    """Nothing is told of equal plans."""
    assert diff(plan, replace(plan)) == ()


@given(plans(), plans())
def test_the_changes_make_the_new_plan_of_the_old_one(old: Plan, new: Plan) -> None:
    """Nothing is left out and nothing is told twice, so every single edit is told."""
    changes = diff(old, new)

    assert applied(old, changes) == new
    assert len(set(changes)) == len(changes)


@given(plans(), plans())
def test_every_change_is_one_line_with_its_sign(old: Plan, new: Plan) -> None:
    """Whatever a subtask holds, it can't break the line or the terminal."""
    for change in diff(old, new):
        assert str(change).isprintable()
        assert str(change).startswith(f"{change.sign} step ")


@given(plans(), st.data())
def test_a_step_put_in_is_one_added_step(plan: Plan, data: st.DataObject) -> None:
    """References that only count differently are no change."""
    at = data.draw(st.integers(0, len(plan)))
    fresh = Step(at, "gpt", "Something entirely different: 1234567890.")
    later = [
        replace(
            step, index=step.index + 1, access=tuple(each + (each >= at) for each in step.access)
        )
        for step in plan.steps[at:]
    ]
    longer = Plan((*plan.steps[:at], fresh, *later))

    assert diff(plan, longer) == (StepAdded(fresh),)
    assert diff(longer, plan) == (StepRemoved(fresh),)


@given(plans(least=2), st.data())
def test_an_edge_is_told_alone(plan: Plan, data: st.DataObject) -> None:
    """One edge more or less, all else equal."""
    assume(len({(step.worker, step.subtask) for step in plan}) == len(plan))
    index = data.draw(st.integers(1, len(plan) - 1))
    reads = data.draw(st.integers(0, index - 1))
    step = plan.steps[index]
    without = replace(step, access=tuple(each for each in step.access if each != reads))
    with_it = replace(step, access=tuple(sorted({*step.access, reads})))
    less, more = (
        Plan((*plan.steps[:index], each, *plan.steps[index + 1 :])) for each in (without, with_it)
    )

    assert diff(less, more) == (EdgeAdded(index, index, reads),)
    assert diff(more, less) == (EdgeRemoved(index, index, reads),)


# -- as people read it ----------------------------------------------------------------------------

OLD = Plan.of(
    ["Derive the invariant.", "Derive it another way.", "Give the final answer."],
    ["gemini", "opus", "gpt"],
    [[], [], [0, 1]],
)


@pytest.mark.parametrize(
    ("new", "told"),
    [
        pytest.param(
            Plan.of(
                ["List what is known.", *OLD.subtasks],
                ["mini", *OLD.workers],
                [[], [0], [], [0, 1, 2]],
            ),
            [
                '+ step 0: mini "List what is known."',
                "~ step 1 (was 0): now reads 0",
                "~ step 3 (was 2): now reads 0",
            ],
            id="a step in front that is read",
        ),
        pytest.param(
            Plan.of(OLD.subtasks[1:], OLD.workers[1:], [[], [0]]),
            ['- step 0: gemini "Derive the invariant."'],
            id="a step less, and its edges with it",
        ),
        pytest.param(
            Plan.of(OLD.subtasks, ["gemini", "qwen-3", 7], OLD.access),
            ['~ step 1: worker opus -> "qwen-3"', "~ step 2: worker gpt -> 7"],
            id="other workers",
        ),
        pytest.param(
            Plan.of([*OLD.subtasks[:2], "Give the final answer, short."], OLD.workers, OLD.access),
            ['~ step 2: subtask "Give the final answer." -> "Give the final answer, short."'],
            id="other words",
        ),
        pytest.param(
            Plan.of(OLD.subtasks, OLD.workers, [[], [0], [1]]),
            ["~ step 1: now reads 0", "~ step 2: no longer reads 0"],
            id="other edges",
        ),
        pytest.param(
            Plan.of([*OLD.subtasks[:2], "Translate all of it."], OLD.workers, OLD.access),
            [
                '- step 2: gpt "Give the final answer.", reads 0, 1',
                '+ step 2: gpt "Translate all of it.", reads 0, 1',
            ],
            id="another task is another step",
        ),
    ],
)
def test_changes_are_told_in_a_line_each(new: Plan, told: list[str]) -> None:
    """The words, in the order of the steps."""
    assert [str(change) for change in diff(OLD, new)] == told


def test_of_equal_steps_the_one_with_the_same_place_is_kept() -> None:
    """One more refinement at the end of a chain of equal ones is one change."""
    chain = Plan.of(["Refine."] * 3, [0] * 3, [[], [0], [1]])
    longer = Plan.of(["Refine."] * 4, [0] * 4, [[], [0], [1], [2]])

    assert diff(chain, longer) == (StepAdded(Step(3, 0, "Refine.", (2,))),)


def test_a_number_and_the_same_number_in_quotes_differ() -> None:
    """What is written differs, whatever a pool makes of it."""
    one, other = Plan.of(["Do."], [0], [[]]), Plan.of(["Do."], ["0"], [[]])

    assert [str(change) for change in diff(one, other)] == ['~ step 0: worker 0 -> "0"']


def test_two_large_plans_with_nothing_in_common_are_compared_soon() -> None:
    """64 long subtasks on either side, by the same worker: no comparison of all letters."""
    size = 64
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]

    def plan(shift: int) -> Plan:
        texts = [
            " ".join(words[(at * 7 + n * shift) % 10] + str(n * at % 97) for n in range(300))
            for at in range(1, size + 1)
        ]
        return Plan.of(texts, ["gpt"] * size, [[]] * size)

    before = process_time()
    changes = diff(plan(1), plan(3))

    assert len(changes) >= size
    assert process_time() - before < 20


# -- the command ----------------------------------------------------------------------------------


def command(
    *arguments: str, cwd: Path, stdin: str = "", colour: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run `conductor diff ...` in a process of its own."""
    env = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "COLUMNS": "80"}
    return subprocess.run(
        [sys.executable, "-m", "conductor", "diff", *arguments],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        env={**env, "FORCE_COLOR": "1", "TERM": "xterm-256color"} if colour else env,
        timeout=120,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two plans and what can't be read."""
    new = Plan.of(["First.", *OLD.subtasks[:2]], ["mini", "gpt", "opus"], [[], [0], []])
    (tmp_path / "old.plan").write_text(str(OLD), encoding="utf-8")
    (tmp_path / "new.json").write_text(new.to_json(), encoding="utf-8")
    (tmp_path / "bad.plan").write_text('subtasks = ["a"', encoding="utf-8")
    return tmp_path


def test_the_command_tells_a_change_a_line_and_counts_them(folder: Path) -> None:
    """Exit code 1, as of other diffs; JSON will do for a plan."""
    done = command("old.plan", "new.json", cwd=folder)

    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        '+ step 0: mini "First."',
        "~ step 1 (was 0): worker gemini -> gpt",
        "~ step 1 (was 0): now reads 0",
        '- step 2: gpt "Give the final answer.", reads 0, 1',
        "1 added, 1 removed, 2 changed",
    ]


def test_the_command_colours_by_sign(folder: Path) -> None:
    """Green, yellow and red."""
    lines = command("old.plan", "new.json", cwd=folder, colour=True).stdout.splitlines()

    assert [line[:5] for line in lines[:4]] == ["\x1b[32m", "\x1b[33m", "\x1b[33m", "\x1b[31m"]


def test_the_command_gives_the_changes_as_json(folder: Path) -> None:
    """The fields of the changes, with their kind."""
    done = command("old.plan", "new.json", "--json", cwd=folder)

    told = json.loads(done.stdout)
    assert (done.returncode, told["same"]) == (1, False)
    assert told["changes"][1] == {
        "index": 1,
        "was": 0,
        "old": "gemini",
        "new": "gpt",
        "kind": "worker_changed",
        "sign": "~",
    }


def test_the_same_plan_in_two_forms_does_not_differ(folder: Path) -> None:
    """Exit code 0; - is standard input."""
    done = command("old.plan", "-", cwd=folder, stdin=OLD.to_json(indent=2))

    assert (done.returncode, done.stdout, done.stderr) == (0, "no changes\n", "")


@pytest.mark.parametrize(
    ("other", "told"), [("no.plan", "no.plan: No such file"), ("bad.plan", "bad.plan:1:12")]
)
def test_a_plan_that_cannot_be_read_is_trouble_and_no_difference(
    other: str, told: str, folder: Path
) -> None:
    """Exit code 2."""
    done = command("old.plan", other, cwd=folder)

    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
