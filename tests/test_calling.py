"""Tools for models in this process: told by template or in words, read from text, or demanded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conductor import Conductor
from conductor.server.json_form import problem
from grammar import Plan
from runtime import (
    Call,
    Completion,
    FailureKind,
    FinishReason,
    Journal,
    LocalModel,
    LocalWorker,
    Message,
    Pool,
    RunState,
    Sampling,
    Tool,
    ToolCall,
    Usage,
    WorkerError,
    conversation_query,
    prompt_ids,
    step_messages,
)
from runtime.calling import (
    call_grammar,
    has_results,
    narrowed,
    offered,
    results_briefly,
    told_briefly,
    told_plainly,
    with_calls,
    without_middle,
)
from runtime.local import _circles, shortened

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
WEATHER = Tool("weather", "Tells the weather in a city.", CITY)
TIME = Tool("time")
ASKED = (Message("user", "What is the weather in Oslo?"),)


@pytest.mark.parametrize(
    ("choice", "names", "demanded"),
    [
        (None, ["weather", "time"], False),
        ("auto", ["weather", "time"], False),
        ("none", [], False),
        ("required", ["weather", "time"], True),
        ({"type": "function", "function": {"name": "time"}}, ["time"], True),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "auto",
                    "tools": [{"type": "function", "function": {"name": "time"}}],
                },
            },
            ["time"],
            False,
        ),
    ],
)
def test_a_choice_says_what_is_offered(choice: Any, names: list[str], demanded: bool) -> None:
    """Tools that only servers know are not."""
    tools = (WEATHER, TIME, Tool.of({"type": "web_search"}))
    found, must = offered(Call(ASKED, tools=tools, tool_choice=choice))
    assert ([each.name for each in found], must) == (names, demanded)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "x"}}])
def test_a_demand_that_nobody_can_meet_is_refused(choice: Any) -> None:
    with pytest.raises(WorkerError, match="correct tool_choice") as refused:
        offered(Call(ASKED, tools=(Tool.of({"type": "web_search"}),), tool_choice=choice))
    assert refused.value.failure.kind is FailureKind.REJECTED


CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("written", "text", "arguments"),
    [
        (CALL, "", ['{"city": "Oslo"}']),
        (f"I look.\n{CALL}\n{CALL}", "I look.", ['{"city": "Oslo"}'] * 2),
        (CALL.removesuffix("\n</tool_call>"), "", ['{"city": "Oslo"}']),
        ('```json\n{"name": "weather", "parameters": {}}\n```', "", ["{}"]),
        ('{"name": "weather", "arguments": "{}"}', "", ["{}"]),
        ('{"name": "weather"}', "", ["{}"]),
        ('<tool_call>{"name": "weather", "argum', None, []),
        ('<tool_call>{"name": "launch", "arguments": {}}</tool_call>', None, []),
        ('{"name": "launch", "arguments": {}}', None, []),
        ('{"name": "weather", "arguments": [1]}', None, []),
        ("[" * 100_000, None, []),
        ("It rains.", None, []),
    ],
)
def test_calls_are_found_in_what_was_written(
    written: str, text: str | None, arguments: list[str]
) -> None:
    """What is none stays text."""
    completion = with_calls(Completion(written, usage=Usage(1, 2)), [WEATHER, TIME])

    assert [call.arguments for call in completion.tool_calls] == arguments
    assert completion.text == (written if text is None else text)
    reason = FinishReason.TOOL_CALLS if arguments else FinishReason.STOP
    assert (completion.finish_reason, completion.usage) == (reason, Usage(1, 2))


def test_what_was_called_and_given_is_told_as_it_is_to_be_written() -> None:
    """A call that is told reads back as the same call."""
    call = ToolCall("x", "weather", '{"city": "Oslo"}')
    asked = Message("assistant", "I look.", (call,))
    told = told_plainly(
        [*ASKED, asked, Message("tool", "Rain.", tool_call_id="x")], [WEATHER], demanded=False
    )

    system, user, assistant, tool = told
    assert json.dumps(CITY) in system.content
    assert user == ASKED[0]
    assert assistant == Message("assistant", f"I look.\n{CALL}")
    assert tool == Message("user", "<tool_response>\nRain.\n</tool_response>")
    (again,) = with_calls(Completion(assistant.content), [WEATHER]).tool_calls
    assert (again.name, again.arguments) == (call.name, call.arguments)
    assert told_plainly([Message("system", "Be brief.")], [TIME], demanded=True)[
        0
    ].content.startswith("Be brief.\n\nYou may call")


def test_a_template_that_takes_tools_is_given_them(tokenizer: PreTrainedTokenizerFast) -> None:
    """And never a control token of what people and models wrote."""
    from copy import deepcopy

    knowing = deepcopy(tokenizer)
    knowing.chat_template = (
        "{% for tool in tools or [] %}[tool {{ tool.function.name }}]{% endfor %}"
        "{% for message in messages %}<|im_start|>{{ message.role }} {{ message.content }}"
        "{% for call in message.tool_calls or [] %}[{{ call.function.name }} "
        "{{ call.function.arguments | tojson }}]{% endfor %}"
        "{{ message.name }}<|im_end|>{% endfor %}"
    )
    messages = [
        Message("developer", "Brief."),
        *ASKED,
        Message("assistant", "", (ToolCall("x", "weather", '{"<|im_end|>": 1}'),)),
        Message("tool", "<|im_end|>", tool_call_id="x"),
    ]
    ids = prompt_ids(knowing, messages, tools=[WEATHER])
    text = str(knowing.decode(ids))

    assert text.startswith("[tool weather]<|im_start|>system Brief.")
    assert "<|im_start|>tool <|im_end|>weather" in text
    assert ids.count(knowing.convert_tokens_to_ids("<|im_end|>")) == len(messages)


@pytest.mark.anyio
async def test_a_small_model_makes_a_valid_call_where_one_is_demanded(
    small_model: LocalModel, tmp_path: Path, anyio_backend_name: str
) -> None:
    """And goes on with its result: a round trip on the packaged model."""
    if anyio_backend_name == "trio":
        pytest.skip("once is enough: the engine is a thread of its own")
    worker = LocalWorker("a", small_model, sampling=Sampling(temperature=0, max_tokens=48))
    query = "What is the weather in Oslo?"
    pieces: list[str] = []
    named = {"type": "function", "function": {"name": "time"}}
    call = Call((Message("user", query),), tools=(WEATHER, TIME), tool_choice=named)
    completion = await worker.complete(call, pieces.append)
    assert [(each.name, each.arguments) for each in completion.tool_calls] == [("time", "{}")]
    assert (completion.text, "".join(pieces)) == ("", "")

    with Journal(tmp_path / "runs.db") as journal:
        team = Conductor(Pool([worker]), journal=journal)
        run = await team.arun(query, worker="a", tools=[WEATHER], tool_choice="required")
        (asked,) = run.open_calls
        arguments = json.loads(asked.arguments)
        assert set(arguments) == {"city", "unit"}
        assert arguments["unit"] in ("C", "F")
        run = await team.aresume(run.id, tool_results={asked.id: "Rain, 4 C."})
    assert run.state is RunState.DONE
    assert run.answer


def test_a_grammar_that_allows_something_else_too_is_one_text() -> None:
    text = call_grammar([WEATHER, TIME], "start: %json {}")
    assert text.splitlines()[0] == "start: call0 | call1 | otherwise"
    assert text.splitlines()[-1] == "otherwise: %json {}"


SHELL = Tool(
    "run",
    "Runs a command in a terminal. More than a model of this size need know.\n\nAt length.",
    {
        "type": "object",
        "properties": {
            "line": {"type": "string", "description": "What to run."},
            "escalate": {"type": "boolean"},
            "questions": {
                "type": "array",
                "items": {"type": "object", "properties": {"seconds": {"type": "number"}}},
            },
        },
        "required": ["line", "questions"],
    },
)


def test_a_small_model_is_told_little_of_few_tools() -> None:
    """Bounded, and only the arguments that have to be given; the caller's tool is as it was."""
    few = narrowed([SHELL, WEATHER, TIME, TIME])

    assert [each.name for each in few] == ["run", "weather", "time"]
    assert few[0].description == "Runs a command in a terminal"
    assert few[0].parameters == {
        "type": "object",
        "properties": {
            "line": {"type": "string", "description": "What to run.", "maxLength": 120},
            "questions": {
                "type": "array",
                "maxItems": 2,
                "items": {
                    "type": "object",
                    "properties": {"seconds": {"type": "integer", "minimum": 0, "maximum": 10**6}},
                    "additionalProperties": False,
                },
            },
        },
        "required": ["line", "questions"],
        "additionalProperties": False,
    }
    assert SHELL.parameters is not None and "escalate" in SHELL.parameters["properties"]
    assert few[2] == TIME


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {}, "b": {}}, "anyOf": [{"required": ["b"]}]},
        {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["other"]},
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "^x*$"}}, "if": {}},
        {"type": "object", "oneOf": [{"properties": {"a": {"type": "string"}}}]},
        {"type": "object"},
    ],
)
def test_what_can_not_be_narrowed_safely_stays(schema: dict[str, Any]) -> None:
    (tool,) = narrowed([Tool("a", "", schema)])
    assert tool.parameters == schema


def test_a_small_model_sees_what_was_asked_last_beside_the_tools() -> None:
    system, *examples, last = told_briefly(
        [Message("system", "Be kind. " * 1000), *ASKED], narrowed([WEATHER])
    )
    assert "Be kind" not in system.content
    assert {each.role for each in examples} == {"user", "assistant"}
    tools = "Tools:\nweather(city, unit): Tells the weather in a city"
    assert last == Message("user", f"{tools}\nMessage: {ASKED[0].content}")
    (_, *_, cut) = told_briefly([Message("user", "a" * 1000 + "?")], [TIME])
    assert "[... 401 characters left out ...]" in cut.content
    assert cut.content.endswith("a?")


def test_a_small_model_reads_results_in_plain_words() -> None:
    """Those at the end of the conversation, with what was asked."""
    old, new = ToolCall("x", "time", "{}"), ToolCall("y", "weather", '{"city": "Oslo"}')
    told = results_briefly(
        [
            Message("user", "What time is it?"),
            Message("assistant", "", (old,)),
            Message("tool", "noon", tool_call_id="x"),
            Message("assistant", "Noon."),
            *ASKED,
            Message("assistant", "", (new,)),
            Message("tool", "Rain.", tool_call_id="y"),
            Message("assistant", "", (old,)),
            Message("tool", "one", tool_call_id="x"),
        ]
    )
    parts = ['weather {"city": "Oslo"} gave:\nRain.', "time {} gave:\none"]
    parts.append(f"Answer with that: {ASKED[0].content}")
    assert told == (Message("user", "\n\n".join(parts)),)


@pytest.mark.parametrize("plan", [True, False])
def test_results_that_belong_to_no_run_are_results_all_the_same(plan: bool) -> None:
    """As where no journal is kept: whoever calls first would call for ever."""
    made = ToolCall("x", "time", "{}")
    talk = (*ASKED, Message("assistant", "", (made,)), Message("tool", "noon", tool_call_id="x"))
    query = conversation_query(talk)
    step = Plan.of(["Answer."], ["a"], [[]])
    assert has_results(step_messages(step, 0, query, {}, conversation=talk) if plan else talk)
    assert not has_results(ASKED)


@given(st.lists(st.text(max_size=400), min_size=1, max_size=5), st.integers(200, 2000))
def test_what_is_shortened_fits_and_keeps_what_is_short(texts: list[str], most: int) -> None:
    messages = [Message("user", text) for text in texts]

    def length(those: Sequence[Message]) -> int:
        return sum(len(each.content) for each in those)

    short = shortened(messages, lambda those: length(those) <= most)

    assert length(short) <= most
    if length(messages) <= most:
        assert list(short) == messages
    left = [each.content for each, was in zip(short, messages, strict=True) if each == was]
    cut = [was.content for each, was in zip(short, messages, strict=True) if each != was]
    assert not cut or max(map(len, left), default=0) <= min(map(len, cut)) + 50


def test_beginning_and_end_of_a_text_stay() -> None:
    assert without_middle("abcdefghij", 10) == "abcdefghij"
    assert without_middle("abcdefghij", 4) == "ab\n[... 6 characters left out ...]\nij"


@pytest.mark.anyio
async def test_a_model_too_small_to_judge_calls_first_and_answers_then(
    small_model: LocalModel, anyio_backend_name: str
) -> None:
    """Though nothing demands it, and of a prompt far longer than it reads."""
    if anyio_backend_name == "trio":
        pytest.skip("once is enough: the engine is a thread of its own")
    greedy = Sampling(temperature=0, max_tokens=24)
    worker = LocalWorker("a", small_model, sampling=greedy, tools="first", input_tokens=600)
    rules = Message("system", "Mind the rules. " * 600)
    assert (await worker.complete(Call((rules, *ASKED)))).text  # no tools: an answer

    query = Message("user", "Which files are in this folder?")
    call = Call((rules, query), tools=(SHELL, TIME), tool_choice="auto")
    first = await worker.complete(call)
    (made,) = first.tool_calls
    tool = {each.name: each for each in call.tools}[made.name]
    assert not problem(json.loads(made.arguments), tool.parameters or {})

    made = replace(made, id="x")
    then = (rules, query, Message("assistant", "", (made,)), Message("tool", "a.txt", (), "x"))
    pieces: list[str] = []
    second = await worker.complete(replace(call, messages=then), pieces.append)
    assert not second.tool_calls
    assert second.text == "".join(pieces) != ""
    assert second.finish_reason is not FinishReason.LENGTH
    assert second.usage is not None and second.usage.input_tokens <= 600


def test_who_says_the_same_for_the_third_time_goes_round_in_circles() -> None:
    again = "The output is a list of files."
    assert not _circles(f"{again} {again} Then it goes on.")
    assert _circles(f"{again} {again}\n\n{again} And")
    assert not _circles("Yes. Yes. Yes. Yes. ")
