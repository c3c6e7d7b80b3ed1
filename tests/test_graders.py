"""Graders: right, wrong and oddly written answers, and code that would do harm."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from training.graders import (
    Choice,
    Code,
    Exact,
    Grader,
    GraderError,
    Gym,
    Maths,
    Mention,
    Number,
    Referee,
    Sentence,
    Series,
    answer_of,
    final,
    grade,
    plurality,
)

PARIS = Mention(("Paris",), wrong=("Rome", "Berlin"))
RELATION = Mention(("Ann",), wrong=("Bob", "Eve"))
TALL = Choice("Ann", ("Ann", "Bob"))
TALE = Sentence(("river", "candle"))


@pytest.mark.parametrize(
    ("completion", "said"),
    [
        ("42", "42"),
        ("Let me see.\n\nThe answer is 42.\n", "42."),
        ("The answer is 41. No, wait: the answer is 42", "42"),
        ("**Answer:** 42", "** 42"),
        ("So x = 3.\nFinal answer: 42", "42"),
        (r"Thus \boxed{41} or rather \boxed{42}. The answer is 7.", "42"),
        ("Sorted: 1, 2, 3", "1, 2, 3"),
        ("It is 10:42", "It is 10:42"),
        ("Here it is:", "Here it is:"),
        (" \n", ""),
    ],
)
def test_what_a_completion_finally_says(completion: str, said: str) -> None:
    assert final(completion) == said


@pytest.mark.parametrize(
    ("grader", "completion"),
    [
        (Exact(("New Delhi", "Delhi")), "new  delhi."),
        (Exact(("yes",)), 'After some thought, the answer is "Yes".'),
        (Number("115"), "115"),
        (Number("115"), "73 + 42 = 115."),
        (Number("1900"), "It is 1,900 metres"),
        (Number("-4"), "4 - 8 = -4"),
        (Number("-4"), "\u22124"),
        (Number("7"), "12 - 5 is 12-5=7"),
        (Number("2.5"), "**2.50**"),
        (Number("3.14", tolerance=0.01), "3.1416"),
        (Series(("e", "v", "i")), "e v i"),
        (Series(("e", "v", "i")), "E-V-I."),
        (Series(("e", "v", "i")), "Backward it is: evi"),
        (Series(("3", "12", "40")), "3, 12, 40"),
        (Series(("3", "12", "40")), "Here you are:\n[3, 12, 40]"),
        (TALL, "Ann"),
        (TALL, "Ann is the tallest of all."),
        (PARIS, "The capital of France is Paris."),
        (PARIS, "paris"),
        (Mention(("O",), cased=True), "Its symbol is O."),
        (TALE, "A candle floated slowly down the dark river."),
        (TALE, "Rivers carry candles at night, say my friends."),
    ],
)
def test_right_answers_count_however_they_are_written(grader: Grader, completion: str) -> None:
    assert grade(grader, completion, "") == 1.0


@pytest.mark.parametrize(
    ("grader", "completion"),
    [
        (Exact(("Delhi",)), "Mumbai"),
        (Exact(("Delhi",)), "Delhi, Mumbai or Kolkata"),
        (Exact(("Delhi",)), ""),
        (Exact(("",)), ""),
        (Number("115"), "1150"),
        (Number("115"), "I don't know"),
        (Number("115"), "To add 115 and 27 you first"),
        (Number("4"), "-4"),
        (Series(("e", "v", "i")), "i v e"),
        (Series(("e", "v", "i")), "e v i l"),
        (Series(("3", "12", "40")), "31240"),
        (Series(("3", "12", "40")), "12 3 40"),
        (TALL, "Bob"),
        (TALL, "Either Ann or Bob"),
        (TALL, "Anna"),
        (PARIS, "Rome"),
        (PARIS, "Paris, Rome or Berlin"),
        (PARIS, "Parisian"),
        (Mention(("O",), cased=True), "o"),
        (TALE, "River candle."),
        (TALE, "A lamp floated slowly down the dark river."),
        (Sentence(("Ann",), wrong=("Bob",)), "Ann and Bob went down to the market today."),
    ],
)
def test_wrong_answers_do_not(grader: Grader, completion: str) -> None:
    assert grade(grader, completion, "") == 0.0


def test_what_only_repeats_the_question_does_not_count() -> None:
    asked = "Write a sentence with the words river and candle."

    assert grade(TALE, asked, asked) == 0.0
    assert grade(TALE, "The sentence with the words river and candle.", asked) == 0.0
    assert grade(TALE, "By the river we lit one last candle together.", asked) == 1.0


def test_a_wrong_answer_that_the_question_names_may_be_named() -> None:
    speaks = Mention(("German",), wrong=("Austria", "French"))

    assert grade(speaks, "In Austria people speak German.", "What is spoken in Austria?") == 1.0
    assert grade(speaks, "In Austria people speak German.", "What is spoken there?") == 0.0


def test_where_the_question_names_all_choices_naming_several_is_wrong() -> None:
    asked = "Ann is taller than Bob, and Bob is taller than Eve. Who is tallest?"

    assert grade(RELATION, "Ann", asked) == 1.0
    assert grade(RELATION, "It is Ann.", asked) == 1.0
    assert grade(RELATION, asked, asked) == 0.0
    assert grade(RELATION, "Ann or Eve", asked) == 0.0


@pytest.mark.parametrize(
    ("answer", "completion", "score"),
    [
        (r"\frac{1}{2}", r"So the answer is $\frac{2}{4}$", 1.0),
        (r"\frac{1}{2}", "0.5", 1.0),
        ("2*x + 1", r"\boxed{1 + 2x}", 1.0),
        (r"\frac{1}{2}", r"\boxed{\frac12}", 1.0),
        (r"\sqrt{8}", r"$2\sqrt{2}$", 1.0),
        (r"\frac{1}{2}", r"\boxed{\frac{1}{3}}", 0.0),
        ("4", "no idea", 0.0),
        ("4", "", 0.0),
    ],
)
def test_maths_is_compared_by_value(answer: str, completion: str, score: float) -> None:
    assert grade(Maths(answer), completion) == score


def test_a_reply_that_takes_for_ever_to_judge_is_wrong_and_the_next_one_is_judged() -> None:
    referee = Referee(patience_s=1.0)
    try:
        assert referee.score(Maths("4"), r"\boxed{9^{9^{9^{9}}}}") == 0.0
        assert referee.score(Maths("4"), r"\boxed{2+2}") == 1.0
    finally:
        referee.end()


@pytest.mark.parametrize("text", ["a\nb \u2028 c\r\n\\boxed{4}", "\\boxed{4} \U0001f600 \x00"])
def test_any_text_reaches_the_referee_whole(text: str) -> None:
    assert grade(Maths("4"), text) == 1.0


def test_a_scorer_that_breaks_counts_as_wrong() -> None:
    pytest.importorskip("reasoning_gym")

    assert grade(Gym("chain_sum", '{"no": "answer"}'), "4") == 0.0


def test_reasoning_gym_scores_its_own_entries() -> None:
    reasoning_gym = pytest.importorskip("reasoning_gym")

    for name in ("chain_sum", "spell_backward", "number_sorting", "leg_counting"):
        data = reasoning_gym.create_dataset(name, size=3, seed=5)
        for entry in data:
            gym = Gym(name, json.dumps(entry, default=str))
            assert grade(gym, f"The answer is: {entry['answer']}") == 1.0
            assert grade(gym, "nothing of the kind") < 0.5


# -- votes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grader", "completions", "chosen"),
    [
        (Number("7"), ["6", "It is 7.", "7"], 1),
        (Number("7"), ["no idea", "no idea", "8"], 2),
        (Number("7"), ["6", "8"], 0),
        (Number("7"), ["7.0", "6", "6", "7"], 0),
        (Series(("e", "v")), ["v e", "ev", "e v", "vv"], 1),
        (Series(("3", "12")), ["12, 3", "3 12", "[3, 12]"], 1),
        (TALL, ["Bob", "Ann or Bob", "It is Bob."], 0),
        (RELATION, ["Ann", "Eve", "Surely Eve!"], 1),
        (PARIS, ["Berlin", "The capital is Rome.", "rome"], 1),
        (Mention(("four",)), ["five", "four", "Five."], 0),
        (Exact(("yes",)), ["no", "Yes.", "the answer is yes"], 1),
        (Maths("1/2"), [r"\boxed{\frac{1}{3}}", r"\boxed{\frac{1}{2}}", "0.5"], 1),
        (Gym("chain_sum", "{}"), ["4", "5", "The answer is 5"], 1),
        (Code(""), ["def f(): return 2", "```\npass\n```", "Look:\n```py\npass\n```"], 1),
        (TALE, ["A river.", "A candle.", "a candle"], 1),
    ],
    ids=lambda value: value.kind if hasattr(value, "kind") else None,
)
def test_the_answer_given_most_often_is_chosen(
    grader: Grader, completions: list[str], chosen: int
) -> None:
    assert plurality(grader, completions) == chosen


@pytest.mark.parametrize(
    "pair",
    [
        (Number("7"), Number("6")),
        (Series(("e", "v")), Series(("v", "e"))),
        (TALL, Choice("Bob", ("Ann", "Bob"))),
        (RELATION, Mention(("Eve",), wrong=("Bob", "Ann"))),
        (Exact(("yes",)), Exact(("no",))),
        (Maths("1"), Maths("2")),
    ],
    ids=lambda pair: pair[0].kind,
)
@pytest.mark.parametrize("completion", ["6", "e v", "ve", "It is Ann.", "Ann, Eve", "yes", "", "2"])
def test_a_vote_does_not_know_the_right_answer(
    pair: tuple[Grader, Grader], completion: str
) -> None:
    one, other = pair

    assert answer_of(one, completion) == answer_of(other, completion)


def test_what_only_repeats_the_question_is_no_vote() -> None:
    asked = "Ann is taller than Bob, and Bob is taller than Eve. Who is tallest?"

    assert answer_of(PARIS, "Is it Rome?", "Rome or Berlin?") is None
    assert answer_of(RELATION, "Eve", asked) == frozenset({"Eve"})


def test_a_vote_needs_votes() -> None:
    with pytest.raises(ValueError, match="at least one completion"):
        plurality(TALL, [])


# -- code ----------------------------------------------------------------------------------------

boxed = pytest.mark.skipif(not shutil.which("bwrap"), reason="needs bubblewrap")
DOUBLE = Code("assert double(3) == 6\nassert double('ab') == 'abab'")


@boxed
@pytest.mark.parametrize(
    "completion",
    [
        "def double(x):\n    return x + x",
        "Sure!\n```python\ndef double(x):\n    return 2 * x\n```\nThis doubles it.",
        "```\ndef double(x): return x\n```\nBetter:\n```py\ndef double(x): return x + x\n```",
    ],
)
def test_code_that_passes_its_tests(completion: str) -> None:
    assert grade(DOUBLE, completion) == 1.0


@boxed
@pytest.mark.parametrize(
    "completion",
    [
        "def double(x):\n    return x",
        "def double(x",
        "I can't do that.",
        "",
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "def double(x): return bytearray(1 << 34) and x + x",
    ],
)
def test_code_that_does_not(completion: str) -> None:
    assert grade(DOUBLE, completion) == 0.0


@boxed
def test_code_that_never_ends_is_stopped() -> None:
    assert grade(Code("", seconds=0.5), "while True: pass") == 0.0


@boxed
def test_the_sandbox_has_no_files_of_ours_no_network_and_no_environment(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    os.environ["CONDUCTOR_TEST_SECRET"] = "s3cret"
    try:
        code = f"""
import os, socket
for attempt in (
    lambda: open({str(secret)!r}).read(),
    lambda: open({str(Path(__file__))!r}).read(),
    lambda: socket.create_connection(("127.0.0.1", 1), timeout=1),
    lambda: open("/usr/written", "w"),
    lambda: os.environ["CONDUCTOR_TEST_SECRET"],
):
    try:
        attempt()
    except (OSError, KeyError) as error:
        reached = getattr(error, "errno", None) == 111  # refused: there is a network to refuse
    else:
        reached = True
    assert not reached or attempt.__code__.co_firstlineno == 6
assert len(socket.if_nameindex()) <= 1
"""
        assert grade(Code(""), code) == 1.0
    finally:
        del os.environ["CONDUCTOR_TEST_SECRET"]


def test_code_is_not_run_without_a_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(GraderError, match=r"bubblewrap is not installed: apt install bubblewrap"):
        grade(DOUBLE, "def double(x): return x + x")
