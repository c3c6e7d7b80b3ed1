"""A model that decodes under the generated grammar writes a valid plan, and any plan it may."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lark import Lark
from lark.exceptions import UnexpectedInput

from grammar import Limits, Plan, decoding_grammar, parse
from grammar.constrain import GrammarForm

WORKERS, STEPS, CHARACTERS = 3, 4, 24
Accepts = Callable[[str], bool]
Reader = Callable[[str], Accepts]
"""Makes an engine of the text of a grammar."""


def lark(grammar: str) -> Accepts:
    parser = Lark(grammar, parser="lalr")

    def accepts(text: str) -> bool:
        try:
            parser.parse(text)
        except UnexpectedInput:
            return False
        return True

    return accepts


def llguidance(grammar: str) -> Accepts:
    """An engine for constrained decoding, fed byte by byte."""
    engine = pytest.importorskip("llguidance")
    tokenizer = engine.LLTokenizer("byte")

    start = engine.LLMatcher(tokenizer, grammar, log_level=0)
    assert not start.is_error(), start.get_error()

    def accepts(text: str) -> bool:
        matcher = start.deep_copy()
        tokens = tokenizer.tokenize_str(text)
        if matcher.validate_tokens(tokens) < len(tokens):
            return False
        return bool(matcher.consume_tokens(tokens) and matcher.is_accepting())

    return accepts


def llguidance_of_gbnf(grammar: str) -> Accepts:
    """GBNF by way of llguidance's converter, which drops the zeros of an eight-digit code."""
    converter = pytest.importorskip("llguidance.gbnf_to_lark")
    return llguidance(converter.gbnf_to_lark(grammar).replace("\\U10ffff", "\\U0010ffff"))


def xgrammar(grammar: str) -> Accepts:
    """The engine of vLLM and SGLang, fed a text at a time."""
    engine = pytest.importorskip("xgrammar")
    vocabulary = [bytes([byte]) for byte in range(256)] + [b"</s>"]
    tokens = engine.TokenizerInfo(vocabulary, engine.VocabType.RAW, stop_token_ids=[256])
    compiled = engine.GrammarCompiler(tokens).compile_grammar(engine.Grammar.from_ebnf(grammar))

    def accepts(text: str) -> bool:
        matcher = engine.GrammarMatcher(compiled, terminate_without_stop_token=True)
        return bool(matcher.accept_string(text) and matcher.is_terminated())

    return accepts


READERS = [
    pytest.param((lark, "lark"), id="lark"),
    pytest.param((llguidance, "lark"), id="llguidance, of the form lark"),
    pytest.param((llguidance, "llguidance"), id="llguidance"),
    pytest.param((llguidance_of_gbnf, "gbnf"), id="gbnf, by llguidance"),
    pytest.param((xgrammar, "gbnf"), id="gbnf, by xgrammar"),
]


@cache
def reading(how: tuple[Reader, GrammarForm]) -> Accepts:
    """An engine that has read the grammar within the bounds of this file."""
    reader, form = how
    return reader(
        decoding_grammar(WORKERS, most_steps=STEPS, subtask_characters=CHARACTERS, form=form)
    )


@pytest.fixture(params=READERS)
def accepts(request: pytest.FixtureRequest) -> Accepts:
    """All readers of all forms, one after the other."""
    return reading(request.param)


def written(plan: Plan) -> str:
    """The text of a plan as a constrained model writes it: no blank that could be left out."""
    subtasks = json.dumps(list(plan.subtasks), ensure_ascii=False)
    workers, access = list(plan.workers), [list(entry) for entry in plan.access]
    return f"subtasks = {subtasks}\nworkers = {workers}\naccess = {access}\n"


printable = st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\')
subtasks = st.text(printable, min_size=3, max_size=CHARACTERS).filter(
    lambda text: not text[0].isspace()
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """A plan within the bounds of the grammar."""
    count = draw(st.integers(1, STEPS))
    return Plan.of(
        [draw(subtasks) for _ in range(count)],
        [draw(st.integers(0, WORKERS - 1)) for _ in range(count)],
        [[before for before in range(index) if draw(st.booleans())] for index in range(count)],
    )


@st.composite
def texts(draw: st.DrawFn) -> str:
    """A text of plan shape that may break any one rule, or none."""
    count = draw(st.integers(1, STEPS + 1))
    lengths = [max(0, count + draw(st.sampled_from([0, 0, 0, 0, 1, -1]))) for _ in range(3)]
    said = [
        draw(st.sampled_from(["Try.", "Go on.", "  ", "ab", "x" * 25])) for _ in range(lengths[0])
    ]
    who = [draw(st.sampled_from([0, 0, 1, 2, 2, 3])) for _ in range(lengths[1])]
    access = [draw(st.lists(st.integers(0, 4), max_size=2)) for _ in range(lengths[2])]
    return f"subtasks = {json.dumps(said)}\nworkers = {who}\naccess = {access}\n"


@given(plan=plans())
@pytest.mark.parametrize("how", READERS)
def test_every_plan_within_the_bounds_can_be_written(
    how: tuple[Reader, GrammarForm], plan: Plan
) -> None:
    """The grammar leaves no plan out, and the parser reads the text as that plan."""
    assert reading(how)(written(plan))
    assert parse(written(plan)) == plan


@given(text=texts())
@pytest.mark.parametrize("how", READERS)
def test_every_text_of_the_grammar_is_a_plan(how: tuple[Reader, GrammarForm], text: str) -> None:
    """What the grammar accepts, the parser accepts, within the bounds asked for."""
    if reading(how)(text):
        assert_within_the_bounds(text)


def assert_within_the_bounds(text: str) -> None:
    """The parser takes the text as it stands for a plan of the pool."""
    limits = Limits(steps=STEPS, subtask_characters=CHARACTERS)
    plan = parse(text, limits=limits)
    assert written(plan) == text
    assert len(plan.resolve(["a", "b", "c"])) <= STEPS
    assert all(len(step.subtask) >= 3 for step in plan)


SPECIMENS = [
    *map(chr, range(0x20, 0x7F)),
    *"éßя中あ한שע😀\xa0\u2028\u3000\u200b\ud7ff\ue000\uffff\U0010ffff",
]


def random_plan(random: Random) -> Plan:
    count = random.randint(1, STEPS)
    letters = [each for each in SPECIMENS if each not in '"\\']
    first = [each for each in letters if not each.isspace()]
    return Plan.of(
        [
            random.choice(first)
            + "".join(random.choices(letters, k=random.randint(2, CHARACTERS - 1)))
            for _ in range(count)
        ],
        random.choices(range(WORKERS), k=count),
        [[at for at in range(index) if random.random() < 0.5] for index in range(count)],
    )


def test_thousands_of_plans_can_be_written(accepts: Accepts) -> None:
    """The same 3,000 plans for each engine: all are accepted and mean what they say."""
    random = Random(2512)
    for _ in range(3000):
        plan = random_plan(random)
        text = written(plan)
        assert accepts(text) and parse(text) == plan, text


# --- the other way round: texts that the engines themselves would write ---


@cache
def rules() -> Lark:
    """The rules as lark has read them."""
    return Lark(
        decoding_grammar(WORKERS, most_steps=STEPS, subtask_characters=CHARACTERS), parser="lalr"
    )


@settings(max_examples=25)
@given(data=st.data())
def test_what_the_rules_produce_is_a_plan(data: st.DataObject) -> None:
    """A walk over the rules ends in a valid plan."""
    terminals = {each.name: each.pattern for each in rules().terminals}

    def produced(name: str) -> str:
        if name in terminals:
            pattern = terminals[name]
            if pattern.type == "str":
                return str(pattern.value)
            return data.draw(st.from_regex(pattern.value, fullmatch=True))
        choices = [rule.expansion for rule in rules().rules if rule.origin.name == name]
        return "".join(produced(each.name) for each in data.draw(st.sampled_from(choices)))

    assert_within_the_bounds(produced("start"))


@pytest.mark.parametrize("form", ["lark", "llguidance"])
def test_what_llguidance_lets_a_model_write_is_a_plan(form: GrammarForm) -> None:
    """A model that chooses blindly among the bytes that the engine allows writes plans."""
    engine = pytest.importorskip("llguidance")
    tokenizer = engine.LLTokenizer("byte")
    grammar = decoding_grammar(WORKERS, most_steps=STEPS, subtask_characters=CHARACTERS, form=form)
    random = Random(4388)
    for _ in range(200):
        matcher = engine.LLMatcher(tokenizer, grammar, log_level=0)
        text = b""
        while not matcher.is_stopped():
            allowed = [at for at, bias in enumerate(matcher.compute_logit_bias()) if bias]
            token = random.choice(allowed)
            matcher.consume_token(token)
            text += bytes([token]) if token < 256 else b""
        assert_within_the_bounds(text.decode())


def test_what_xgrammar_lets_a_model_write_is_a_plan() -> None:
    """The same for GBNF."""
    engine = pytest.importorskip("xgrammar")
    vocabulary = [bytes([byte]) for byte in range(256)] + [b"</s>"]
    tokens = engine.TokenizerInfo(vocabulary, engine.VocabType.RAW, stop_token_ids=[256])
    grammar = decoding_grammar(
        WORKERS, most_steps=STEPS, subtask_characters=CHARACTERS, form="gbnf"
    )
    compiled = engine.GrammarCompiler(tokens).compile_grammar(engine.Grammar.from_ebnf(grammar))
    mask = engine.allocate_token_bitmask(1, 257)
    random = Random(4695)
    for _ in range(200):
        matcher = engine.GrammarMatcher(compiled, terminate_without_stop_token=True)
        text = b""
        while not matcher.is_terminated():
            matcher.fill_next_token_bitmask(mask)
            words = mask[0].tolist()
            token = random.choice([at for at in range(256) if words[at // 32] >> at % 32 & 1])
            assert matcher.accept_token(token)
            text += bytes([token])
        assert_within_the_bounds(text.decode())


GOOD = 'subtasks = ["Try.", "Mend.", "Judge."]\nworkers = [0, 2, 1]\naccess = [[], [0], [0, 1]]\n'


def test_a_good_plan_is_accepted(accepts: Accepts) -> None:
    """The near misses below differ from a text that is in the grammar."""
    assert accepts(GOOD)


@pytest.mark.parametrize(
    ("part", "other"),
    [
        pytest.param("[[], [0], [0, 1]]", "[[], [1], [0, 1]]", id="reads itself"),
        pytest.param("[[], [0], [0, 1]]", "[[], [2], [0, 1]]", id="forward reference"),
        pytest.param("[[], [0], [0, 1]]", "[[0], [0], [0, 1]]", id="first step reads"),
        pytest.param("[[], [0], [0, 1]]", "[[], [0], [1, 0]]", id="descending"),
        pytest.param("[[], [0], [0, 1]]", "[[], [0], [1, 1]]", id="repeated"),
        pytest.param("[[], [0], [0, 1]]", "[[], [0], [0, 1, 2]]", id="all and itself"),
        pytest.param("[[], [0], [0, 1]]", "[[], [0]]", id="one access entry short"),
        pytest.param("[[], [0], [0, 1]]", "[[], [0], [0, 1], []]", id="one access entry more"),
        pytest.param("[0, 2, 1]", "[0, 3, 1]", id="unknown worker"),
        pytest.param("[0, 2, 1]", "[0, -1, 1]", id="negative worker"),
        pytest.param("[0, 2, 1]", '[0, "2", 1]', id="worker in quotes"),
        pytest.param("[0, 2, 1]", "[0, 2]", id="one worker short"),
        pytest.param("[0, 2, 1]", "[0, 2, 1, 1]", id="one worker more"),
        pytest.param('"Mend.", ', "", id="one subtask short"),
        pytest.param('"Mend."', '""', id="empty subtask"),
        pytest.param('"Mend."', '"    "', id="blank subtask"),
        pytest.param('"Mend."', '"\u3000\u00a0\u2028"', id="unicode blanks"),
        pytest.param('"Mend."', '"a\nbc"', id="newline in a subtask"),
        pytest.param('"Mend."', '"a\\"bc"', id="escape in a subtask"),
        pytest.param('"Mend."', '"a"bc"', id="quote in a subtask"),
        pytest.param('"Mend."', '"a\x85bc"', id="control character in a subtask"),
        pytest.param('"Mend."', f'"{"x" * (CHARACTERS + 1)}"', id="subtask too long"),
        pytest.param("subtasks = [", "subtasks=[", id="blank left out"),
        pytest.param(GOOD, GOOD + "x", id="text behind"),
        pytest.param(GOOD, "x" + GOOD, id="text before"),
        pytest.param(GOOD, GOOD[:-2], id="cut off"),
        pytest.param(GOOD, "subtasks = []\nworkers = []\naccess = []\n", id="no steps"),
        pytest.param(
            GOOD,
            'subtasks = ["Try.", "Try.", "Try.", "Try.", "Try."]\nworkers = [0, 0, 0, 0, 0]\n'
            "access = [[], [], [], [], []]\n",
            id="too many steps",
        ),
    ],
)
def test_a_near_miss_is_rejected(accepts: Accepts, part: str, other: str) -> None:
    """What the rules of the language forbid, a constrained model can not write."""
    assert part in GOOD
    assert not accepts(GOOD.replace(part, other))


@pytest.mark.parametrize("how", READERS)
@pytest.mark.parametrize("least", [1, 2, 3])
def test_the_shortest_plan_can_be_bounded(how: tuple[Reader, GrammarForm], least: int) -> None:
    """A plan shorter than asked for is not in the grammar."""
    reader, form = how
    accepts = reader(decoding_grammar(1, most_steps=3, least_steps=least, form=form))
    two = 'subtasks = ["Try.", "Judge."]\nworkers = [0, 0]\naccess = [[], []]\n'

    assert accepts(two) == (least <= 2)


@pytest.mark.parametrize("how", READERS)
def test_the_widest_grammar_can_be_read(how: tuple[Reader, GrammarForm]) -> None:
    """Sixteen steps and a large pool stay within what engines can hold."""
    reader, form = how
    accepts = reader(decoding_grammar(64, most_steps=16, form=form))
    plan = Plan.of(
        ["Go on."] * 16, list(range(48, 64)), [list(range(index)) for index in range(16)]
    )

    assert accepts(written(plan))


@pytest.mark.parametrize(
    ("workers", "least", "most", "message"),
    [
        pytest.param(0, 1, 5, "the pool is empty", id="no workers"),
        pytest.param(1, 0, 5, "steps from 0 to 5", id="no steps"),
        pytest.param(1, 3, 2, "steps from 3 to 2", id="least above most"),
        pytest.param(1, 1, 17, "possible is 1 to 16", id="too many steps"),
    ],
)
def test_bounds_that_leave_no_plan_are_refused(
    workers: int, least: int, most: int, message: str
) -> None:
    """The mistake is told before a model loads."""
    with pytest.raises(ValueError, match=message):
        decoding_grammar(workers, most_steps=most, least_steps=least)


@pytest.mark.parametrize("characters", [0, 1, 2])
def test_a_subtask_of_fewer_than_three_characters_is_refused(characters: int) -> None:
    """The grammar asks for three characters at least, so that much must be allowed."""
    with pytest.raises(ValueError, match="at least 3"):
        decoding_grammar(1, subtask_characters=characters)


def test_gbnf_is_refused_where_llama_cpp_would_refuse_it() -> None:
    """llama.cpp takes no repetition of 2,000 and more."""
    assert "{2,1999}" in decoding_grammar(1, subtask_characters=2000, form="gbnf")
    with pytest.raises(ValueError, match="at most 2000"):
        decoding_grammar(1, subtask_characters=2001, form="gbnf")


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match="there are lark, llguidance and gbnf"):
        decoding_grammar(1, form="ebnf")  # type: ignore[arg-type]  # what a caller may write


def test_numbers_may_be_left_out() -> None:
    """Of a roster of which not everybody is there, only who is there can be named."""
    grammar = decoding_grammar([4, 0], most_steps=2, subtask_characters=CHARACTERS)
    for reader in (lark, llguidance):
        accepts = reader(grammar)
        for worker in range(6):
            text = f'subtasks = ["Try."]\nworkers = [{worker}]\naccess = [[]]\n'
            assert accepts(text) is (worker in (0, 4))
    with pytest.raises(ValueError, match="at least one worker"):
        decoding_grammar([])
