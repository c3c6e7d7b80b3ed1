"""The shape of a plan follows from its access lists and from nothing else."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grammar import (
    Plan,
    PlanError,
    Topology,
    best_of_n,
    chain,
    critical_path,
    debate,
    diamond,
    graph,
    levels,
    single,
    topology,
    tree,
)

workers = st.lists(
    st.one_of(st.integers(0, 9), st.sampled_from(["a", "b"])), min_size=1, max_size=9
)


def shaped(*access: list[int]) -> Plan:
    """A plan of these access lists."""
    return Plan.of(["Go on."] * len(access), [0] * len(access), access)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """A plan of any shape."""
    count = draw(st.integers(1, 10))
    return shaped(
        *([before for before in range(index) if draw(st.booleans())] for index in range(count))
    )


@pytest.mark.parametrize(
    ("access", "name"),
    [
        pytest.param([[]], "single", id="one step"),
        pytest.param([[], [0]], "chain", id="two steps"),
        pytest.param([[], [0], [1], [2]], "chain", id="each reads the one before"),
        pytest.param([[], [0], [0, 1], [0, 1, 2]], "chain", id="each reads all before"),
        pytest.param([[], []], "independent", id="two apart"),
        pytest.param([[], [], []], "independent", id="three apart"),
        pytest.param([[], [], [0, 1]], "best-of-n", id="two attempts"),
        pytest.param([[], [], [], [], [0, 1, 2, 3]], "best-of-n", id="four attempts"),
        pytest.param([[], [0], [0]], "fan-out", id="two readers"),
        pytest.param([[], [0], [0], [0]], "fan-out", id="three readers"),
        pytest.param([[], [0], [0], [1, 2]], "diamond", id="two between"),
        pytest.param([[], [0], [0], [0], [0, 1, 2, 3]], "diamond", id="the last reads all"),
        pytest.param([[], [], [0, 1], [0, 1], [2, 3]], "debate", id="two by two"),
        pytest.param([[], [], [0, 1], [0, 1], [0, 1, 2, 3]], "debate", id="the judge reads all"),
        pytest.param(
            [[], [], [], [0, 1, 2], [0, 1, 2], [0, 1, 2], [3, 4, 5]], "debate", id="three by two"
        ),
        pytest.param([[], [], [0, 1], [0, 1], [2, 3], [2, 3], [4, 5]], "debate", id="two by three"),
        pytest.param([[], [], [], [0, 1], [2, 3]], "tree", id="uneven tree"),
        pytest.param([[], [], [], [], [0, 1], [2, 3], [4, 5]], "tree", id="even tree"),
        pytest.param([[], [], [0], [1, 2]], "tree", id="a longer branch"),
        pytest.param([[], [], [0, 1], [2]], "tree", id="best-of-n, then polish"),
        pytest.param([[], [], [0]], "general", id="a loose end"),
        pytest.param([[], [0], [0], [1, 2], [3]], "general", id="diamond, then polish"),
        pytest.param([[], [], [0], [0, 1], [2, 3]], "general", id="read twice"),
    ],
)
def test_a_shape_has_a_name(access: list[list[int]], name: str) -> None:
    """Names are read off the access lists; what follows by transitivity makes no difference."""
    assert topology(shaped(*access)) == Topology(name)


@given(plans())
def test_edges_that_follow_from_others_change_no_name(plan: Plan) -> None:
    """Reading all that the steps one reads have read is the same shape, debates apart."""
    closed = nx.transitive_closure_dag(graph(plan))
    fuller = shaped(*(sorted(closed.pred[index]) for index in range(len(plan))))

    names = {topology(plan), topology(fuller)}

    assert len(names) == 1 or names == {Topology.DEBATE, Topology.GENERAL}


@given(plans())
def test_the_graph_is_the_access_lists(plan: Plan) -> None:
    """Nodes are steps with what they do, and an edge leads from what is read to who reads it."""
    dag = graph(plan)

    assert {node: dag.nodes[node] for node in dag} == {
        step.index: {
            "worker": step.worker,
            "subtask": step.subtask,
            "final": step.index == len(plan) - 1,
        }
        for step in plan
    }
    assert {node: tuple(sorted(dag.pred[node])) for node in dag} == dict(enumerate(plan.access))
    assert {node: tuple(sorted(dag.succ[node])) for node in dag} == dict(enumerate(plan.readers()))
    assert nx.is_directed_acyclic_graph(dag)


@given(plans())
def test_levels_are_the_generations_of_the_graph(plan: Plan) -> None:
    """A step stands one level behind the deepest step it reads."""
    assert levels(plan) == tuple(map(tuple, map(sorted, nx.topological_generations(graph(plan)))))


@given(plans(), st.lists(st.integers(0, 50), min_size=10, max_size=10))
def test_the_critical_path_is_the_longest_way_through(plan: Plan, seconds: list[int]) -> None:
    """Its steps read each other in turn, and no other chain takes longer."""
    dag = graph(plan)
    start = -1  # in front of all steps, so that each step's seconds can stand on its edges
    dag.add_edges_from((start, step.index) for step in plan)
    nx.set_edge_attributes(dag, {edge: seconds[edge[1]] for edge in dag.edges}, "seconds")

    path, length = critical_path(plan, lambda step: seconds[step.index])

    assert length == nx.dag_longest_path_length(dag, weight="seconds")
    assert length == sum(seconds[index] for index in path)
    assert all(one in plan.steps[other].access for one, other in pairwise(path))


@given(plans())
def test_without_durations_the_critical_path_counts_steps(plan: Plan) -> None:
    """It has one step of each level."""
    path, length = critical_path(plan)

    assert (len(path), length) == (len(levels(plan)), len(levels(plan)))
    assert all(index in row for index, row in zip(path, levels(plan), strict=True))


def test_the_critical_path_of_an_uneven_plan() -> None:
    """The slow branch decides, not the one with more steps."""
    plan = shaped([], [], [1], [0, 2])

    assert critical_path(plan) == ((1, 2, 3), 3.0)
    assert critical_path(plan, lambda step: [10.0, 2.0, 3.0, 1.0][step.index]) == ((0, 3), 11.0)


# --- presets ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "access", "workers", "name"),
    [
        pytest.param(single("a", "Solve."), ((),), ("a",), "single", id="single"),
        pytest.param(
            chain(["x", "y", "z"], ["a", "b"]),
            ((), (0,), (1,)),
            ("a", "b", "a"),
            "chain",
            id="chain",
        ),
        pytest.param(
            best_of_n(["a", "a", "b"], "j"),
            ((), (), (), (0, 1, 2)),
            ("a", "a", "b", "j"),
            "best-of-n",
            id="best_of_n",
        ),
        pytest.param(
            diamond(("a", "x"), [("b", "y"), ("c", "z")], "j"),
            ((), (0,), (0,), (0, 1, 2)),
            ("a", "b", "c", "j"),
            "diamond",
            id="diamond",
        ),
        pytest.param(
            debate(["a", "b"], "j"),
            ((), (), (0, 1), (0, 1), (2, 3)),
            ("a", "b", "a", "b", "j"),
            "debate",
            id="debate",
        ),
        pytest.param(
            debate(["a", "b"], "j", rounds=1),
            ((), (), (0, 1)),
            ("a", "b", "j"),
            "best-of-n",
            id="debate of one round",
        ),
        pytest.param(
            tree(["a", "b", "c", "d"], "j"),
            ((), (), (), (), (0, 1), (2, 3), (4, 5)),
            ("a", "b", "c", "d", "j", "j", "j"),
            "tree",
            id="tree",
        ),
        pytest.param(
            tree(["a", "b", "c"], "j"),
            ((), (), (), (0, 1), (2, 3)),
            ("a", "b", "c", "j", "j"),
            "tree",
            id="tree with a lone leaf",
        ),
        pytest.param(
            tree(["a", "b", "c"], "j", branching=3),
            ((), (), (), (0, 1, 2)),
            ("a", "b", "c", "j"),
            "best-of-n",
            id="tree of one level",
        ),
    ],
)
def test_a_preset_builds_the_shape_of_its_name(
    plan: Plan, access: tuple[tuple[int, ...], ...], workers: tuple[str, ...], name: str
) -> None:
    """Who reads whom, and who does what, in full."""
    assert (plan.access, plan.workers, topology(plan)) == (access, workers, Topology(name))


def test_a_preset_says_what_each_step_has_to_do() -> None:
    """Subtasks can be given, and defaults stand in where they are not."""
    plan = debate(["a", "b"], "j", subtask="Try.", revise_subtask="Mend.", judge_subtask="Judge.")

    assert plan.subtasks == ("Try.", "Try.", "Mend.", "Mend.", "Judge.")
    assert diamond(("a", "x"), [("b", "y")], ("c", "z")).subtasks == ("x", "y", "z")
    assert tree(["a", "b"], "j", subtask="Try.", judge_subtask="Judge.").subtasks == (
        *("Try.", "Try."),
        "Judge.",
    )


@given(workers, st.integers(1, 4), st.integers(2, 4))
def test_presets_are_valid_at_any_size(names: list[str | int], rounds: int, branching: int) -> None:
    """However many workers, a preset ends in one step that everything leads to."""
    steps = [(name, "Work.") for name in names]
    for plan in (
        chain(["Work."] * len(names), names),
        best_of_n(names, "j"),
        diamond((0, "Prepare."), steps, "j"),
        debate(names, "j", rounds=rounds),
        tree(names, "j", branching=branching),
    ):
        last = len(plan) - 1
        assert nx.ancestors(graph(plan), last) == set(range(last))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        pytest.param(lambda: chain(["x"], []), "no workers given", id="chain without workers"),
        pytest.param(lambda: chain([], ["a"]), "P202 the plan has no steps", id="empty chain"),
        pytest.param(lambda: best_of_n([], "j"), "no workers given", id="no attempts"),
        pytest.param(lambda: debate([], "j"), "no workers given", id="no debaters"),
        pytest.param(lambda: tree([], "j"), "no workers given", id="no leaves"),
        pytest.param(lambda: tree(["a"], "j", branching=1), "branching is 1", id="branching"),
        pytest.param(lambda: debate(["a"], "j", rounds=0), "rounds is 0", id="rounds"),
    ],
)
def test_a_preset_refuses_what_has_no_shape(build: Callable[[], Plan], message: str) -> None:
    """A judge without anything to judge is a mistake of the caller, not a plan."""
    with pytest.raises(ValueError, match=message) as error:
        build()

    assert isinstance(error.value, PlanError) == message.startswith("P")
