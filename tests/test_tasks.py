"""Tasks: the same from the same seed, splits that share nothing, sources that say what is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grammar import PlanError
from runtime import Message, step_messages
from training.families import CHAINS, FAMILIES, Chain
from training.graders import Exact, Maths, Mention, Number, grade
from training.tasks import (
    Split,
    TaskError,
    draw,
    gather,
    gym,
    held_back,
    hub,
    plain,
    read_jsonl,
    split_of,
    task,
    voted,
    without,
    write_jsonl,
)

SMALL = {"languages": 10, "symbols": 3}
"""Families with few items in a split."""
NAMES = [*FAMILIES, *CHAINS]


def some(name: str, split: Split, wording: str = "all", most: int = 60) -> list[str]:
    count = min(most, SMALL.get(name, most))
    return [each.question for each in draw(name, count, split=split, wording=wording)]  # type: ignore[arg-type]


def content(question: str) -> frozenset[str]:
    """What a question is about, in whatever words and order: its numbers and spelled letters."""
    return frozenset(re.findall(r"\d+|(?<!\w)\w(?: \w)+(?!\w)", question))


@pytest.mark.parametrize("name", NAMES)
def test_the_answer_taught_is_right_and_another_is_wrong(name: str) -> None:
    count = SMALL.get(name, 40)
    tasks = draw(name, count, wording="all")

    assert [grade(each.grader, each.answer, each.question) for each in tasks] == [1.0] * count
    assert all(grade(each.grader, "no idea", each.question) == 0.0 for each in tasks)
    echoes = [each for each in tasks if each.answer.lower() not in each.question.lower()]
    assert all(grade(each.grader, each.question, each.question) == 0.0 for each in echoes)


@pytest.mark.parametrize("name", NAMES)
def test_equal_arguments_give_equal_tasks_and_other_seeds_others(name: str) -> None:
    count = SMALL.get(name, 20)

    assert draw(name, count, seed=3) == draw(name, count, seed=3)
    if name not in SMALL:
        assert draw(name, count, seed=3) != draw(name, count, seed=4)


@pytest.mark.parametrize("name", ["addition", "subtraction", "ordering", "largest", "reversal"])
def test_no_item_is_in_two_splits_in_whatever_words_or_order(name: str) -> None:
    train = {content(question) for question in some(name, Split.TRAIN, most=1500)}
    held = {content(question) for question in some(name, Split.TEST, most=600)}
    held |= {content(question) for question in some(name, Split.VALIDATION, most=300)}

    assert len(train) > 500
    # 7 + 7 is one number, and so are other sums with it: only pairs say what was asked.
    sizes = {2} if name in ("addition", "subtraction") else {1, 3, 4}
    assert not {each for each in train & held if len(each) in sizes}


def test_families_with_the_same_items_share_their_splits() -> None:
    train = {content(question) for question in some("addition", Split.TRAIN, most=1500)}
    assert not train & {content(question) for question in some("stories", Split.TEST, most=400)}


@pytest.mark.parametrize("name", list(CHAINS))
def test_every_part_of_a_chain_is_of_the_chains_split(name: str) -> None:
    """So no part of a test chain is trained on by itself, be it the first or the last."""
    chain = CHAINS[name]
    for split in Split:
        for each in draw(name, 12, split=split, wording="all"):
            for at, part in enumerate(each.parts):
                numbers = re.findall(r"\d+", part.subtask)
                if at:
                    numbers.append(each.parts[at - 1].answer.replace(" ", ""))
                if part.family in ("addition", "stories", "largest", "ordering"):
                    key = " ".join(map(str, sorted(map(int, numbers))))
                elif part.family == "mirror":
                    key = numbers[-1]
                else:
                    continue
                family = FAMILIES[part.family]
                assert split_of(family.dealt_as or family.name, key) is split
    assert len(chain.parts) == len(chain.asks) >= 2


@pytest.mark.parametrize("name", list(CHAINS))
def test_a_part_can_be_asked_alone_with_what_the_one_before_gives(name: str) -> None:
    for each in draw(name, 40, wording="varied"):
        assert each.alone == [part.alone for part in each.parts]
        found = ""
        for part in each.parts:
            usual = re.escape(FAMILIES[part.family].phrasings[0])
            assert re.fullmatch(re.sub(r"\\{\w+\\}", ".+", usual), part.alone)
            assert "that number" not in part.alone and found in part.alone
            if part.family == "mirror":
                assert part.alone == f"Write the digits of {found} backward."
            elif part.family != "stories":
                words = set(re.findall(r"\d+", part.usual))
                assert set(re.findall(r"\d+", part.alone)) == words | {*re.findall(r"\d+", found)}
            found = part.answer


def test_the_same_item_may_come_in_several_phrasings() -> None:
    for name in ("ordering", "addition-mirror", "voted-reversal"):
        tasks = draw(name, 30, wording="varied", often=3)
        asked: dict[str, set[str]] = {}
        for each in tasks:
            asked.setdefault(" ".join(each.alone), set()).add(each.question)

        assert len(tasks) == len({each.id for each in tasks}) == 30
        assert 10 <= len(asked) <= 14
        assert max(map(len, asked.values())) == 3


@pytest.mark.parametrize("name", list(CHAINS))
def test_each_part_is_right_given_the_one_before(name: str) -> None:
    """Worked out anew from the words of the parts."""
    for each in draw(name, 40, wording="all"):
        found = ""
        for part in each.parts:
            numbers = [int(number) for number in re.findall(r"\d+", part.subtask)]
            if "that number" in part.subtask:
                numbers.append(int(found))
            match part.family:
                case "addition" | "stories":
                    assert int(part.answer) == sum(numbers)
                case "largest":
                    assert int(part.answer) == max(numbers)
                case "ordering":
                    assert part.answer == " ".join(map(str, sorted(numbers)))
                case "mirror":
                    assert part.answer.replace(" ", "") == found[::-1] != found
                case "tally":
                    assert numbers.count(int(part.answer)) >= 2
                case "relations":
                    assert part.answer in part.subtask
                case other:
                    assert other == "sentences"
            found = part.answer
        assert grade(each.grader, each.parts[0].answer, each.question) == 0.0  # one step is not all


@pytest.mark.parametrize("chain", CHAINS.values(), ids=lambda chain: chain.name)
def test_chains_are_asked_in_many_words(chain: Chain) -> None:
    assert len({*chain.phrasings, *chain.held_out, *chain.sealed}) >= 11
    assert len(set(chain.phrasings)) >= 6
    assert len(set(chain.held_out)) >= 3
    assert len(set(chain.sealed)) >= 2
    assert all(len(set(asks)) >= 4 for asks in chain.asks)
    blanks = [set(re.findall(r"{(\w+)}", words)) - {"who", "things"} for words in chain.phrasings]
    for words in (*chain.held_out, *chain.sealed, *chain.varied):
        assert set(re.findall(r"{(\w+)}", words)) - {"who", "things"} == blanks[0]
    assert all(each == blanks[0] for each in blanks)
    sealed = draw(chain.name, 10, wording="sealed", split=Split.TEST)
    assert {each.held_out_wording for each in sealed} == {True}


@pytest.mark.parametrize("name", NAMES)
def test_held_out_phrasings_are_never_trained_on(name: str) -> None:
    source = FAMILIES.get(name) or CHAINS[name]
    count = SMALL.get(name, 40)

    assert not {*source.phrasings, *source.varied} & {*source.held_out, *source.sealed}
    assert len(source.phrasings) >= 2
    for wording, marked in (("trained", False), ("varied", False), ("held-out", True)):
        tasks = draw(name, count, wording=wording)  # type: ignore[arg-type]
        assert {each.held_out_wording for each in tasks} == {marked}
    trained = {each.question for each in draw(name, count, wording="trained")}
    other = {each.question for each in draw(name, count, wording="held-out")}
    assert not trained & other


def test_a_question_is_known_in_the_usual_words_of_its_family(tmp_path: Path) -> None:
    for each in draw("addition", 40, wording="varied"):
        assert each.usual_subtasks == [each.usual]
        usual = re.fullmatch(r"What is (\d+) \+ (\d+)\?", each.usual)
        assert usual is not None
        assert sorted(usual.groups()) == sorted(re.findall(r"\d+", each.question))
    tasks = draw("addition", 3)
    write_jsonl(tasks, tmp_path / "tasks.jsonl")
    assert "usual" not in (tmp_path / "tasks.jsonl").read_text(encoding="utf-8")
    found = read_jsonl(tmp_path / "tasks.jsonl")
    assert found == tasks
    assert [each.usual_subtasks for each in found] == [[each.question] for each in tasks]


def test_there_are_more_words_to_train_a_conductor_on() -> None:
    for source in (*FAMILIES.values(), *CHAINS.values()):
        if source.reserved:
            assert not source.varied
            continue
        least = 100 if isinstance(source, Chain) else 30
        assert len(set(source.varied)) == len(source.varied) >= least
        count = SMALL.get(source.name, 200)
        asked = {each.question for each in draw(source.name, count, wording="varied")}
        assert len(asked & {each.question for each in draw(source.name, count)}) < count / 4


@given(st.text(), st.text())
def test_an_item_has_one_split_whatever_else_is_drawn(source: str, key: str) -> None:
    assert split_of(source, key) is split_of(source, key)


def test_splits_have_their_shares() -> None:
    dealt = [split_of("any", str(at)) for at in range(4000)]

    shares = {split: dealt.count(split) / len(dealt) for split in Split}
    assert shares == pytest.approx({"train": 0.6, "validation": 0.15, "test": 0.25}, abs=0.03)


@pytest.mark.parametrize("name", list(CHAINS))
def test_a_chain_falls_into_a_plan_of_parts_that_read_one_another(name: str) -> None:
    for each in draw(name, 20, wording="all"):
        count = len(CHAINS[name].parts)
        plan = each.plan(["worker"] * count)

        assert [step.subtask for step in plan] == [part.subtask for part in each.parts]
        assert [step.access for step in plan] == [(), *((at,) for at in range(count - 1))]
        assert [part.family for part in each.parts] == list(CHAINS[name].parts)
        assert each.parts[-1].answer == each.answer


def test_a_vote_is_several_attempts_at_the_question_and_one_step_that_reads_them_all() -> None:
    base, put = draw("addition", 5), draw("voted-addition", 5)

    for one, each in zip(base, put, strict=True):
        plan = each.plan(["a", "b", "a", "judge"])
        assert [step.subtask for step in plan][:3] == [one.question] * 3
        assert [step.access for step in plan] == [(), (), (), (0, 1, 2)]
        assert each.step_families == ["addition"] * 3 + ["tally"]
        assert (each.question, each.grader, each.split) == (one.question, one.grader, one.split)
        assert each.id != one.id
        messages = step_messages(plan, 0, each.question, {})
        assert messages == (Message("user", one.question),)  # as if it were asked alone
    assert gather(["voted-addition"], 5) == put
    assert voted(base[0], 5).plan(["a"] * 6).final.access == (0, 1, 2, 3, 4)
    with pytest.raises(ValueError, match="a vote takes 2 attempts at one step; got 1 at addition"):
        voted(base[0], 1)
    with pytest.raises(ValueError, match="3 at addition-mirror"):
        voted(draw("addition-mirror", 1)[0])
    with pytest.raises(PlanError):
        put[0].plan(["a", "b"])


def test_a_family_that_has_too_few_says_how_many() -> None:
    with pytest.raises(TaskError, match=r"symbols has no more than \d+ tasks in test, trained"):
        draw("symbols", 500, split=Split.TEST)
    with pytest.raises(TaskError, match="no family is called 'sums'; there are: addition,"):
        draw("sums", 1)


def test_reasoning_gym_is_a_source() -> None:
    pytest.importorskip("reasoning_gym")
    tasks = gym("chain_sum", 12, min_terms=2, max_terms=2, min_digits=1, max_digits=2)
    test = gym("chain_sum", 12, split=Split.TEST, min_terms=2, max_terms=2, min_digits=1)

    assert len({each.id for each in tasks}) == 12
    assert {each.family for each in tasks} == {"gym:chain_sum"}
    assert all(grade(each.grader, each.answer) == 1.0 for each in tasks)
    assert not {plain(each.question) for each in tasks} & {plain(each.question) for each in test}
    with pytest.raises(TaskError, match="no family 'sums'"):
        gym("sums", 1)


def test_tasks_come_back_from_a_file(tmp_path: Path) -> None:
    tasks = [*draw("addition-ordering", 3), *draw("geography", 3), *gym("chain_sum", 2)]
    tasks.append(task("own", "é?", Maths(r"\frac12"), answer="1/2"))

    write_jsonl(tasks, tmp_path / "tasks.jsonl")

    assert read_jsonl(tmp_path / "tasks.jsonl") == tasks


def test_short_lines_are_tasks_too(tmp_path: Path) -> None:
    file = tmp_path / "quiz.jsonl"
    file.write_text(
        '{"question": "Two plus two?", "answer": "4", "grader": "number"}\n\n'
        '{"question": "Capital of France?", "answer": "Paris", "family": "geography"}\n'
        '{"question": "Of Italy?", "answer": "Rome", "grader": "mention", "split": "test"}\n'
    )

    one, two, three = read_jsonl(file)

    assert (one.family, one.grader) == ("quiz", Number("4"))
    assert (two.family, two.grader) == ("geography", Exact(("Paris",)))
    assert (three.split, three.grader) == (Split.TEST, Mention(("Rome",)))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "quiz.jsonl:2: not a task"),
        ('{"question": "x"}', "answer is missing"),
        ('{"question": "x", "answer": 4}', "answer is missing or no text"),
        ('{"question": "x", "answer": "4", "graded": "number"}', "unknown: graded"),
        ('{"question": "x", "answer": "4", "grader": "magic"}', "no grader 'magic'"),
        ('{"question": "x", "answer": "4", "split": "mine"}', "'mine' is not a valid Split"),
        ('{"id": "a", "question": "x"}', "not a task"),
        ('["x"]', "not a task"),
    ],
)
def test_a_line_that_is_no_task_is_named(tmp_path: Path, line: str, told: str) -> None:
    file = tmp_path / "quiz.jsonl"
    file.write_text('{"question": "a", "answer": "b"}\n' + line)

    with pytest.raises(TaskError, match=told):
        read_jsonl(file)


def test_what_an_evaluation_set_has_is_left_out() -> None:
    long = "one two three four five six seven eight nine ten eleven twelve thirteen"
    evaluation = [
        task("e", "What is 3 + 4?", Number("7")),
        task("e", f"Read: {long}.", Number("1")),
    ]
    tasks = [
        task("t", "what is  3 + 4", Number("7")),
        task("t", "What is 4 + 5?", Number("9")),
        task("t", "What is 4 + 5 ?", Number("9")),
        task("t", f"Now {long.upper()} and more", Number("1")),
        task("t", f"Now {long.removesuffix(' thirteen')} and more", Number("1")),
    ]

    assert without(tasks, evaluation) == [tasks[1], tasks[4]]


def test_a_folder_of_a_dataset_is_a_source(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    rows = [f'{{"question": "{at} + 1?", "answer": "so #### {at + 1}"}}\n' for at in range(40)]
    (tmp_path / "train.jsonl").write_text("".join(rows))

    tasks = hub(str(tmp_path), 5, grader="number")

    assert len(tasks) == 5
    assert all(grade(each.grader, str(int(each.question.split()[0]) + 1)) for each in tasks)
    with pytest.raises(TaskError, match="no column 'query'; it has: question, answer"):
        hub(str(tmp_path), 5, question="query")


# -- sources by name -----------------------------------------------------------------------------


def test_sources_are_taken_by_name(tmp_path: Path) -> None:
    file = tmp_path / "quiz.jsonl"
    file.write_text("".join(f'{{"question": "{at}?", "answer": "x"}}\n' for at in range(40)))

    found = gather(["addition", "addition-mirror", str(file), "addition"], 6)

    families = [each.family for each in found]
    assert families == ["addition"] * 6 + ["addition-mirror"] * 6 + ["quiz"] * 6
    assert {each.split for each in found} == {Split.TRAIN}
    assert found[:4] == gather(["addition"], 4)  # more of them begin with the same
    everything = gather(["all"], 2)
    assert gather(["trained", "reserved", "chains"], 2, seed=5) == sorted(
        gather(["all"], 2, seed=5), key=lambda each: (each.family in CHAINS, each.reserved)
    )
    assert {each.family for each in everything} == {*FAMILIES, *CHAINS}


def test_a_family_that_has_fewer_gives_what_it_has() -> None:
    found = draw("symbols", 10_000, split=Split.TEST, fewer=True)

    assert 2 <= len(found) < 100
    assert len({each.id for each in found}) == len(found)


def test_a_source_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"no tasks are called 'sums'; there are: addition, .*gym:"):
        gather(["sums"], 1)
    file = tmp_path / "quiz.jsonl"
    file.write_text('{"question": "a", "answer": "b"}\n')
    other = next(split for split in Split if split is not read_jsonl(file)[0].split)
    with pytest.raises(TaskError, match=f"no task is of the {other} split"):
        gather([str(file)], 1, split=other)


def test_what_is_held_back_is_of_later_splits() -> None:
    for split, later in (
        (Split.TRAIN, {Split.VALIDATION, Split.TEST}),
        (Split.VALIDATION, {Split.TEST}),
    ):
        kept = held_back(["addition", "relations"], 20, split=split)
        assert {each.split for each in kept} == later
        assert without(gather(["addition"], 50, split=split), kept)


def test_a_question_may_have_line_ends_of_any_kind(tmp_path: Path) -> None:
    odd = [task("own", "one\u2028two\x85three\r\nfour\x0c", Number("4"), answer="4")]

    write_jsonl(odd, tmp_path / "odd.jsonl")

    assert read_jsonl(tmp_path / "odd.jsonl") == odd


@pytest.mark.parametrize(
    "name", [each.name for of in (FAMILIES, CHAINS) for each in of.values() if not each.reserved]
)
def test_sealed_phrasings_are_in_no_other_wording(name: str) -> None:
    family = FAMILIES.get(name) or CHAINS[name]

    assert len(set(family.sealed)) == len(family.sealed) >= 9
    assert not {*family.sealed} & {*family.phrasings, *family.varied, *family.held_out}
    for each in draw(name, 20, split=Split.TEST, wording="sealed"):
        assert each.held_out_wording
        assert grade(each.grader, each.answer, each.question) == 1.0


def test_a_family_without_sealed_phrasings_says_so() -> None:
    with pytest.raises(TaskError, match="largest has no sealed phrasings; ask for the held-out"):
        draw("largest", 1, wording="sealed")
