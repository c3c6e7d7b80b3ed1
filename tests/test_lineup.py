"""The line-up: an evaluation from labels to report, by the command, with routers and a pool."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import anyio
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from conductor.cli import app
from conductor.config import ORCHESTRA, TRAINED
from conductor.router import Encoder, Head, Router
from runtime import LocalWorker, Pool, PoolError
from tests.team import Team, team
from training.evaluate import EvaluationError, Section, choose, read_measured, section_of
from training.graders import Number
from training.labels import Labels, collect
from training.lineup import Contest, LineUp, checkpoints, controls, planners_of, reported, routed
from training.router_sft import Examples, fit
from training.states import states_of
from training.tasks import Part, Split, Task, task

SAID = {"pro": "The answer is 4.", "con": "5", "judge": "6", "other": "4"}
RIGHT = {"fours": "4", "fives": "5"}


def questions(each: int = 6) -> list[Task]:
    """Two families that different workers get right, always; a third one, reserved; chains."""
    made = []
    for at in range(each):
        for family, right in RIGHT.items():
            grader = Number(right)
            # A question of fives is long, so that any model can tell them apart.
            ask = f"{family} {at} {'ab'[family == 'fives'] * (5 + 40 * (family == 'fives'))}"
            made += [
                task(family, f"{ask} t", grader),
                task(family, f"{ask} v", grader, split=Split.VALIDATION),
                task(family, f"{ask} i", grader, split=Split.TEST),
                task(family, f"{ask} p", grader, split=Split.TEST, held_out_wording=True),
            ]
        made.append(task("sixes", f"sixes {at}", Number("6"), split=Split.TEST, reserved=True))
    parts = (Part("fours", "say four", "4"), Part("fives", "say five", "5"))
    made.append(task("chain", "both", Number("5"), split=Split.TEST, parts=parts))
    made.append(task("fours", "one more", Number("4"), split=Split.VALIDATION))
    return made


class Ground(NamedTuple):
    """What an evaluation needs."""

    models: Team
    pool: Path
    labels: Path
    folder: Path


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("ground")
    with team() as models:
        models.said |= SAID
        pool = models.write_pool(folder)
        four = Pool.load(pool).only(*SAID)
        labels = folder / "labels"
        anyio.run(lambda: collect(questions(), four, folder=labels))
        yield Ground(models, pool, labels, folder)


@pytest.fixture(scope="module")
def heads(ground: Ground, tiny_folder: Path) -> Path:
    """Two routers that were trained on the labels, with a random model of 32 numbers."""
    measured = read_measured([ground.labels])
    encoder = Encoder(str(tiny_folder), most_tokens=240)
    states = states_of(measured.tasks, encoder, ground.folder / "states")
    trained = np.array([each.split is Split.TRAIN for each in measured.tasks])
    examples = Examples(states[trained], measured.labels.means[trained])
    for seed in range(2):
        weight = fit(examples, examples).weight
        head = Head(weight.astype(np.float32), measured.workers)
        Router(head, encoder).save(ground.folder / "heads" / f"seed-{seed}")
    return ground.folder / "heads"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def scores_of(out: Path, section: str = "phrasings") -> dict[str, float]:
    found = json.loads((out / "evaluation.json").read_text())
    return {
        line["decider"]: line["score"]["value"]
        for line in found["lines"]
        if line["section"] == section and not line["family"]
    }


# -- the command ---------------------------------------------------------------------------------


def test_from_labels_alone_nobody_is_called(ground: Ground, heads: Path, tmp_path: Path) -> None:
    """The router tells the families apart in new phrasings; what was trained on nonsense can't."""
    out = tmp_path / "report"
    calls = len(ground.models.calls)

    told = run(ground.labels, "--router", f"mine={heads}", "--seeds", 2, "-o", out)

    assert told.exit_code == 0, told.output
    assert len(ground.models.calls) == calls
    assert "## Families that no decider was trained on" in told.stdout
    scores = scores_of(out)
    control = scores.pop("control:permuted"), scores.pop("control:shuffled")
    assert scores == {
        "worker:pro": 0.5,
        "worker:con": 0.5,
        "worker:judge": 0.0,
        "worker:other": 0.5,
        "best-single": 0.5,
        "random": pytest.approx(3 / 8),
        "random-sampled": pytest.approx(3 / 8, abs=0.25),
        "vote": 0.5,
        "oracle": 1.0,
        "mine": 1.0,
    }
    assert max(control) < 0.8
    found = json.loads((out / "evaluation.json").read_text())
    assert [each["behaves"] for each in found["controls"]] == [True] * 4
    mine = next(line for line in found["lines"] if line["decider"] == "mine" and not line["family"])
    assert mine["seeds"] == 2 and mine["deciding"] > 0
    made_with = found["made_with"]
    assert {*made_with["workers"]} == {*SAID} and made_with["versions"]["numpy"]
    assert len(made_with["checkpoints"]["mine"]) == 2


def test_what_has_to_be_carried_out_is_and_only_once(ground: Ground, tmp_path: Path) -> None:
    names = "best-single,oracle,self-consistency,prompted,conductor,conductor-free,random-plans"
    names += ",best-in-every-slot,known-parts,mixture"
    given = (ground.labels, "--pool", ground.pool, "--deciders", names, "--limit", 2)
    given += ("--seeds", 1, "-o", tmp_path / "report", "-q")  # type: ignore[assignment]
    calls = len(ground.models.calls)

    planned = run(*given, "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert len(ground.models.calls) == calls
    assert "| conductor " in planned.stdout and "7 test tasks" in planned.stdout

    told = run(*given, "--compare-to", "prompted")
    assert told.exit_code == 0, told.output
    assert "against prompted" in told.stdout
    assert len(ground.models.calls) > calls
    scores = scores_of(tmp_path / "report")
    assert scores["known-parts"] == 1.0
    assert scores["conductor"] == scores["conductor-free"] == 0.0  # its judge says 6
    assert scores["prompted"] == 0.5  # it names pro first, whatever is asked
    assert scores["self-consistency"] == scores["best-single"] == 0.5
    # Four is read from pro, five is said last: the chain is right.
    assert scores_of(tmp_path / "report", "composed")["known-parts"] == 1.0

    again = run(*given, "--dry-run")
    left = [line for line in again.stdout.splitlines() if line.startswith("| mixture")]
    assert left[0].split("|")[-3].strip() == "0"


def test_conductor_models_and_routers_with_roles_are_carried_out(
    ground: Ground, heads: Path, tmp_path: Path
) -> None:
    """Each number of rounds is a decider of its own; whoever writes no plan is seen not to."""
    encoder = Router.load(checkpoints(heads)[0]).encoder
    weight = np.random.default_rng(0).random((4 + 3, 32), np.float32)
    Router(Head(weight, tuple(SAID), roles=True), encoder).save(tmp_path / "turns")
    told = run(
        *(ground.labels, "--pool", ground.pool, "--deciders", "best-single,routers"),
        *("--conductor", f"file={ground.pool}", "--conductor", "con", "--rounds", 1, "--rounds", 2),
        *("--router", f"turns={tmp_path / 'turns'}", "--limit", 1, "-o", tmp_path, "-q"),
    )

    assert told.exit_code == 0, told.output
    found = json.loads((tmp_path / "evaluation.json").read_text())
    names = ["best-single", "file@1", "file@2", "con@1", "con@2", "turns"]
    assert [*found["deciders"]] == names
    plans = {
        (each["decider"], each["family"]): (each["at_once"], each["planned"], each["topologies"])
        for each in found["planning"]
    }
    assert plans["file@1", "chain"] == (1, 1, {"best-of-n": 1})
    assert plans["con@2", "chain"] == (0, 0, {})
    assert "## Plans" in told.stdout and "best-of-n 100 %" in told.stdout
    lines = {
        line["decider"]: line
        for line in found["lines"]
        if (line["section"], line["family"]) == ("composed", "")
    }
    assert lines["file@2"]["calls"] > lines["file@1"]["calls"] == 4
    assert lines["turns"]["deciding"] > 0 and 1 <= lines["turns"]["calls"] <= 5


def test_the_best_single_worker_may_have_as_many_calls_as_another(
    ground: Ground, tmp_path: Path
) -> None:
    told = run(
        *(ground.labels, "--pool", ground.pool, "--deciders", "best-single,self-consistency"),
        *("--calls", 1, "--calls", 3, "--limit", 1, "-o", tmp_path, "-q"),
    )

    assert told.exit_code == 0, told.output
    found = json.loads((tmp_path / "evaluation.json").read_text())
    calls = {line["decider"]: line["calls"] for line in found["lines"] if not line["family"]}
    assert calls == {"best-single": 1, "self-consistency@1": 1, "self-consistency@3": 3}


def test_without_money_it_stops_and_says_how_to_go_on(ground: Ground, tmp_path: Path) -> None:
    """pro has a price: one plan costs 140 millionths."""
    given = (ground.labels, "--pool", ground.pool, "--deciders", "best-single,conductor")
    given += ("-o", tmp_path, "--at-once", 1, "--limit", 2)  # type: ignore[assignment]

    told = run(*given, "--dollars", 0.0001)

    assert told.exit_code == 1
    assert "the same command goes on" in told.stderr
    assert len((tmp_path / "trials.jsonl").read_text().splitlines()) == 1
    assert "lost" in told.stdout


def test_the_list_of_deciders(ground: Ground) -> None:
    told = run(ground.labels, "--deciders", "list")

    assert "best-in-every-slot" in told.stdout and "(carried out: --pool)" in told.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--deciders", "guess"], "no decider 'guess'; there are: workers, "),
        (["--deciders", "conductor"], "conductor has to be carried out; name the pool: --pool"),
        (["--router", "mine=nowhere"], "no router in nowhere"),
        (["--router", "oracle=HEADS"], "no decider can be called 'oracle'"),
        (["--conductor", "con"], "con has to be carried out; name the pool: --pool"),
        (["--compare-to", "nobody"], "no decider is called 'nobody'; there are: worker:pro"),
    ],
)
def test_what_is_wrong_is_said(
    ground: Ground, heads: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    told = run(
        ground.labels, "-o", tmp_path, *(each.replace("HEADS", str(heads)) for each in options)
    )

    assert told.exit_code == 2
    assert message in told.stderr.replace("\n", " ")


def test_another_pool_than_that_of_the_labels_is_refused(ground: Ground, tmp_path: Path) -> None:
    other = tmp_path / "pool.toml"
    other.write_text(ground.pool.read_text().replace('model = "pro"', 'model = "pro-2"'))

    told = run(ground.labels, "--deciders", "conductor", "--pool", other, "-o", tmp_path)

    assert told.exit_code == 2
    assert "pro is not the worker that was measured" in told.stderr


def test_no_labels_are_no_evaluation(tmp_path: Path) -> None:
    told = run(tmp_path / "none")

    assert told.exit_code == 2 and "`conductor labels` makes a folder" in told.stderr


# -- parts ---------------------------------------------------------------------------------------


def test_a_limit_takes_all_families_in_turn(ground: Ground) -> None:
    measured = read_measured([ground.labels])

    few = reported(measured, 4)

    sections = [section_of(each) for each in few.tasks]
    assert {section: sections.count(section) for section in Section} == {
        Section.ITEMS: 4,
        Section.PHRASINGS: 4,
        Section.FAMILIES: 4,
        Section.COMPOSED: 1,
    }
    items = [each.family for each in few.tasks if section_of(each) is Section.ITEMS]
    assert items.count("fours") == items.count("fives") == 2
    assert len(reported(measured).tasks) == 6 * 5 + 1


def test_permuting_the_test_labels_changes_neither_choices_nor_controls(
    ground: Ground, heads: Path
) -> None:
    """All that is chosen or trained in an evaluation; the routers' folders are not written to."""
    measured = read_measured([ground.labels])
    test = np.array([section_of(each) is not None for each in measured.tasks])
    scores = measured.labels.scores.copy()
    scores[test] = np.random.default_rng(0).permuted(scores[test], axis=1)
    other = replace(measured, labels=Labels(measured.tasks, measured.workers, scores))
    encoder = Router.load(checkpoints(heads)[0]).encoder
    states = ground.folder / "states"

    assert choose(other.labels) == choose(measured.labels)
    for one, two in zip(
        controls(measured, reported(measured), encoder, states, 2),
        controls(other, reported(other), encoder, states, 2),
        strict=True,
    ):
        assert np.array_equal(one.workers, two.workers)


def test_a_router_for_other_workers_is_refused_and_unknown_ones_are_left_out(
    ground: Ground, heads: Path
) -> None:
    measured = reported(read_measured([ground.labels]))
    encoder = Router.load(checkpoints(heads)[0]).encoder
    random = np.random.default_rng(0)
    strangers = Router(Head(random.random((2, 32), np.float32), ("a", "b")), encoder)
    mixed = Router(Head(random.random((2, 32), np.float32), ("a", "con")), encoder)
    states = ground.folder / "states"

    with pytest.raises(EvaluationError, match="trained for another pool"):
        routed("r", [strangers], measured, states)
    found = routed("r", [mixed], measured, states)
    assert found.workers[:, measured.workers.index("con")].tolist() == [1] * len(measured.tasks)


def test_checkpoints_are_one_folder_or_several(heads: Path) -> None:
    assert [each.name for each in checkpoints(heads)] == ["seed-0", "seed-1"]
    assert checkpoints(heads / "seed-1") == (heads / "seed-1",)


def test_trained_conductors_are_one_folder_or_several(tmp_path: Path) -> None:
    pool = Pool.load(ORCHESTRA)
    for at in (1, 0):
        (tmp_path / "seeds" / f"{at}").mkdir(parents=True)
        told = {"model": "smollm2-135m-instruct", "adapter": ".", "roster": ["plain"]}
        text = json.dumps(told | {"most_steps": 2 + at})
        (tmp_path / "seeds" / f"{at}" / TRAINED).write_text(text, encoding="utf-8")

    both = planners_of(str(tmp_path / "seeds"), pool)
    (alone,) = planners_of(str(tmp_path / "seeds" / "1"), pool)

    assert [each.settings.most_steps for each in both] == [2, 3]
    assert not any(each.constrained for each in both)
    adapters = [each.worker.adapter for each in both if isinstance(each.worker, LocalWorker)]
    assert adapters == [str(tmp_path / "seeds" / f"{at}") for at in (0, 1)]
    assert alone.settings == both[1].settings
    with pytest.raises(PoolError, match="no trained Conductor"):
        planners_of(str(tmp_path), pool)


def test_a_contest_without_test_tasks_is_refused(ground: Ground, tmp_path: Path) -> None:
    measured = read_measured([ground.labels])
    keep = [each.split is not Split.TEST for each in measured.tasks]
    measured.labels.where(keep).write(tmp_path / "labels")

    with pytest.raises(EvaluationError, match="no labels of test tasks"):
        Contest.of(LineUp(), [tmp_path / "labels"], tmp_path / "out")
