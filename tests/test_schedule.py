"""Schedule: which steps may run, as a pure state machine driven by plain calls."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grammar import Plan, chain, diamond
from runtime import Schedule, StepState

WAITING, RUNNING, _, DONE, FAILED, SKIPPED = StepState


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any DAG of up to ten steps."""
    size = draw(st.integers(1, 10))
    access = [sorted(draw(st.sets(st.integers(0, i - 1)))) if i else [] for i in range(size)]
    return Plan.of([f"do {i}" for i in range(size)], ["a"] * size, access)


def unreachable(plan: Plan, failed: set[int]) -> set[int]:
    """Steps that read a failed one, directly or through others: by definition, not by search."""
    lost = set(failed)
    for step in plan:
        if lost & set(step.access):
            lost.add(step.index)
    return lost - failed


def test_a_new_schedule_waits_for_everything() -> None:
    """Nothing runs before it is asked for."""
    schedule = Schedule(diamond(("x", "a"), [("x", "b"), ("x", "c")], ("x", "d")))

    assert schedule.states == (WAITING,) * 4
    assert not schedule.finished


def test_a_diamond_goes_from_one_to_two_to_one() -> None:
    """Each state of a whole run, in order."""
    schedule = Schedule(diamond(("x", "a"), [("x", "b"), ("x", "c")], ("x", "d")))

    assert schedule.start() == (0,)
    assert schedule.states == (RUNNING, WAITING, WAITING, WAITING)
    assert schedule.finish(0, done=True) == ()
    assert schedule.states == (DONE, WAITING, WAITING, WAITING)
    assert schedule.start() == (1, 2)
    assert schedule.states == (DONE, RUNNING, RUNNING, WAITING)
    assert schedule.finish(2, done=True) == ()
    assert schedule.start() == ()
    assert schedule.states == (DONE, RUNNING, DONE, WAITING)
    assert schedule.finish(1, done=True) == ()
    assert schedule.start() == (3,)
    assert schedule.finish(3, done=True) == ()
    assert schedule.states == (DONE,) * 4
    assert schedule.finished


def test_a_step_starts_before_its_siblings_are_done() -> None:
    """There is no level barrier: step 2 needs only step 0."""
    schedule = Schedule(Plan.of(["a", "b", "c", "d"], ["x"] * 4, [[], [], [0], [1, 2]]))

    assert schedule.start() == (0, 1)
    schedule.finish(0, done=True)

    assert schedule.start() == (2,)
    assert schedule.states == (DONE, RUNNING, RUNNING, WAITING)


def test_a_failure_skips_all_that_builds_on_it_and_nothing_else() -> None:
    """Skipped steps are told once, in order; siblings stay as they are."""
    schedule = Schedule(Plan.of(list("abcde"), ["x"] * 5, [[], [], [0], [2, 1], [1]]))
    schedule.start()

    assert schedule.finish(0, done=False) == (2, 3)
    assert schedule.states == (FAILED, RUNNING, SKIPPED, SKIPPED, WAITING)
    assert schedule.finish(1, done=False) == (4,)
    assert schedule.states == (FAILED, FAILED, SKIPPED, SKIPPED, SKIPPED)
    assert schedule.finished


def test_a_skipped_step_never_starts_however_many_of_its_inputs_are_done() -> None:
    """Done inputs do not bring a skipped step back."""
    schedule = Schedule(Plan.of(list("abc"), ["x"] * 3, [[], [], [0, 1]]))
    schedule.start()
    schedule.finish(0, done=False)
    schedule.finish(1, done=True)

    assert schedule.start() == ()
    assert schedule.states == (FAILED, DONE, SKIPPED)


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize(
    "index",
    [
        pytest.param(0, id="done"),
        pytest.param(1, id="failed"),
        pytest.param(3, id="skipped"),
        pytest.param(5, id="waiting"),
        pytest.param(6, id="behind-the-last"),
        pytest.param(-2, id="negative"),
    ],
)
def test_only_a_running_step_can_finish(index: int, done: bool) -> None:
    """An illegal move raises and changes nothing."""
    plan = Plan.of(list("abcdef"), ["x"] * 6, [[], [], [0], [1], [0], [4]])
    schedule = Schedule(plan)
    schedule.start()
    schedule.finish(1, done=False)
    schedule.finish(0, done=True)
    schedule.start()
    before = schedule.states
    assert before == (DONE, FAILED, RUNNING, SKIPPED, RUNNING, WAITING)

    with pytest.raises(ValueError, match="not running"):
        schedule.finish(index, done=done)

    assert before == schedule.states
    assert schedule.start() == ()
    schedule.finish(4, done=True)
    assert schedule.start() == (5,)


@given(plans(), st.data())
def test_any_order_of_completions_and_failures_keeps_the_rules(
    plan: Plan, data: st.DataObject
) -> None:
    """What starts is exactly what may; every step ends in one final state, for the right reason."""
    schedule = Schedule(plan)
    started: set[int] = set()
    done: set[int] = set()
    failed: set[int] = set()
    skipped: set[int] = set()
    while True:
        new = schedule.start()
        may_start = {
            step.index for step in plan if set(step.access) <= done and step.index not in started
        }
        assert (tuple(sorted(new)), set(new)) == (tuple(sorted(may_start)), may_start)
        started |= may_start
        running = sorted(started - done - failed)
        assert schedule.finished == (not running)
        if not running:
            break
        index = data.draw(st.sampled_from(running))
        if data.draw(st.booleans()):
            done.add(index)
            assert schedule.finish(index, done=True) == ()
        else:
            failed.add(index)
            lost = unreachable(plan, failed)
            assert tuple(sorted(lost - skipped)) == schedule.finish(index, done=False)
            skipped = lost
        expected = [WAITING] * len(plan)
        for members, state in (
            (started, RUNNING),
            (done, DONE),
            (failed, FAILED),
            (skipped, SKIPPED),
        ):
            for member in members:
                expected[member] = state
        assert tuple(expected) == schedule.states

    assert done | failed | skipped == set(range(len(plan)))
    assert len(done) + len(failed) + len(skipped) == len(plan)


def test_a_long_chain_is_walked_without_recursion() -> None:
    """Neither success nor failure depends on the depth of the stack."""
    schedule = Schedule(chain([f"do {i}" for i in range(5_000)], ["x"]))
    schedule.start()

    assert tuple(range(1, 5_000)) == schedule.finish(0, done=False)
    assert schedule.finished
