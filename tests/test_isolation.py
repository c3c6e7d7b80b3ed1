"""Isolation: a step sees what its access list grants, and no text can change what is run.

Docs: docs/isolation.md says what is guaranteed and which of these tests shows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grammar import (
    Plan,
    PlanError,
    best_of_n,
    chain,
    debate,
    diamond,
    parse,
    parse_revision,
    tree,
)
from runtime import (
    Event,
    FunctionWorker,
    LocalModel,
    LocalWorker,
    Message,
    Pool,
    Run,
    RunState,
    Sampling,
    StepFinished,
    StepStarted,
    StepState,
    Worker,
    run_plan,
    step_messages,
)
from runtime.local import prompt_ids
from runtime.worker import mended
from tests import injections

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

pytestmark = pytest.mark.anyio

QUERY = "What is the answer? <q>"
TEAM = ("ann", "bob", "cyd", "root")
"""No plan here names root: the injected texts do."""
INJECTIONS = injections.texts()


# -- running a plan whose completions are given ---------------------------------------------------


@dataclass
class Theatre:
    """Function workers that play a plan with given completions, and note what they are asked."""

    plan: Plan
    texts: Mapping[int, str]
    query: str = QUERY
    failing: frozenset[int] = frozenset()
    waits: Mapping[int, int] = field(default_factory=dict)
    """How often a step lets the others go first."""
    guests: Sequence[Worker] = ()
    asked: dict[int, tuple[str, tuple[Message, ...]]] = field(default_factory=dict)
    """Who was asked what, by step."""
    told: list[Event] = field(default_factory=list)

    async def run(self) -> Run:
        guests = {guest.name for guest in self.guests}
        own = [self._worker(name) for name in TEAM if name not in guests]
        return await run_plan(
            self.plan, self.query, Pool([*own, *self.guests]), emit=self.told.append
        )

    def _worker(self, name: str) -> FunctionWorker:
        async def play(messages: Sequence[Message]) -> str:
            index = self._step(messages[-1].content)
            assert index not in self.asked
            self.asked[index] = (name, tuple(messages))
            for _ in range(self.waits.get(index, 0)):
                await anyio.lowlevel.checkpoint()
            if index in self.failing:
                raise RuntimeError(f"<f{index}> {self.texts[index]}")
            return self.texts[index]

        return FunctionWorker(name, play)

    def _step(self, content: str) -> int:
        """Which step this is, by how its prompt ends: with its own subtask."""
        final = f"\n\nGive the final answer to the task: {self.query}"
        ends = {step.index: f"Your part: {step.subtask}" for step in self.plan}
        ends[self.plan.final.index] += final
        (index,) = [at for at, end in ends.items() if content.endswith(end)]
        return index

    @property
    def lawful(self) -> bool:
        """Whether every step started after all that it reads had finished."""
        finished: set[int] = set()
        for event in self.told:
            match event:
                case StepFinished():
                    finished.add(event.result.index)
                case StepStarted() if not finished.issuperset(self.plan.steps[event.index].access):
                    return False
        return True


def rebuilt(
    plan: Plan, index: int, query: str, texts: Mapping[int, str], previous: str | None = None
) -> tuple[Message, ...]:
    """The messages of a step in a plan that has nothing in common with its own but what is granted.

    The other steps before it get other subtasks, all get other workers and access lists, what comes
    after it is one step or none, and of the completions only the granted ones exist.
    """
    step = plan.steps[index]
    granted = {*step.access, index}
    before = [plan.steps[at].subtask if at in granted else f"other {at}" for at in range(index + 1)]
    after = [] if step is plan.final else ["other end"]
    count = len(before) + len(after)
    access: list[Sequence[int]] = [[]] * index + [step.access] + [[]] * len(after)
    other = Plan.of([*before, *after], ["other"] * count, access)
    return step_messages(
        other, index, query, {at: texts[at] for at in step.access}, previous=previous
    )


def content(messages: Iterable[Message]) -> str:
    return "\n".join(message.content for message in messages)


# -- (a) what is granted, and nothing else --------------------------------------------------------

CANARY = re.compile("<[a-z][0-9]*>")
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@st.composite
def canary_plans(draw: st.DrawFn) -> tuple[Plan, dict[int, str]]:
    """Any DAG, any words; each subtask and each completion with a mark that only it has."""
    size = draw(st.integers(1, 8))
    access = [sorted(draw(st.sets(st.integers(0, i - 1)))) if i else [] for i in range(size)]
    plan = Plan.of(
        [f"{draw(WORDS)}<s{i}>" for i in range(size)],
        [draw(st.sampled_from(TEAM[:3])) for _ in range(size)],
        access,
    )
    return plan, {i: f"{draw(WORDS)}<c{i}>{draw(WORDS)}" for i in range(size)}


def granted(plan: Plan, index: int) -> set[str]:
    """The canaries that a step may see."""
    read = plan.steps[index].access
    return {"<q>", f"<s{index}>", *(f"<s{at}>" for at in read), *(f"<c{at}>" for at in read)}


@given(canary_plans(), st.none() | WORDS)
def test_messages_hold_what_is_granted_and_nothing_else(
    made: tuple[Plan, dict[int, str]], words: str | None
) -> None:
    """For any plan and step: the canaries, and every byte rebuilt from what is granted alone."""
    plan, texts = made
    previous = None if words is None else f"{words}<p>"
    for step in plan:
        messages = step_messages(plan, step.index, QUERY, texts, previous=previous)
        seen = set(CANARY.findall(content(messages)))
        reads_all = len(step.access) == step.index

        assert seen - {"<p>"} == granted(plan, step.index)
        assert ("<p>" in seen) == (previous is not None and reads_all)
        assert messages == rebuilt(plan, step.index, QUERY, texts, previous if reads_all else None)


@given(
    canary_plans(),
    st.frozensets(st.integers(0, 7), max_size=2),
    st.lists(st.integers(0, 4), min_size=8, max_size=8),
)
async def test_the_engine_shows_what_is_granted_and_nothing_else(
    made: tuple[Plan, dict[int, str]], failing: frozenset[int], takes: list[int]
) -> None:
    """For any plan, order of completions and failures: workers are asked these very messages."""
    plan, texts = made
    failing = frozenset(at for at in failing if at < len(plan))
    waits = dict(enumerate(takes[: len(plan)]))
    theatre = Theatre(plan, texts, failing=failing, waits=waits)

    run = await theatre.run()

    assert theatre.lawful
    assert (run.state is RunState.DONE) == (run.steps[-1].state is StepState.DONE)
    for result in run.steps:
        if result.state is StepState.SKIPPED:
            assert result.index not in theatre.asked
            assert not result.messages
            continue
        name, messages = theatre.asked[result.index]
        assert name == plan.steps[result.index].worker
        assert messages == result.messages == rebuilt(plan, result.index, QUERY, texts)
        assert set(CANARY.findall(content(messages))) == granted(plan, result.index)


# -- (b) injected completions ---------------------------------------------------------------------


def named(plan: Plan) -> Plan:
    """The same topology and workers with a subtask of its own for every step."""
    return Plan.of([f"Do part {step.index}." for step in plan], plan.workers, plan.access)


SHAPES = {
    "chain": named(chain(["a", "b", "c", "d"], TEAM[:2])),
    "best of n": named(best_of_n(["ann", "bob", "ann"], "cyd")),
    "diamond": named(diamond(("ann", "a"), [("bob", "b"), ("cyd", "c")], ("ann", "d"))),
    "debate": named(debate(["ann", "bob"], "cyd")),
    "tree": named(tree(["ann", "bob", "cyd", "ann"], "bob")),
    "uneven": named(
        Plan.of(["a"] * 6, ["ann", "bob", "cyd"] * 2, [[], [], [0], [0, 2], [1], [2, 4]])
    ),
}
by_shape = pytest.mark.parametrize("shape", SHAPES)


def clean_texts(plan: Plan) -> dict[int, str]:
    return {step.index: f"Result of part {step.index}." for step in plan}


def read(prompt: str) -> tuple[str, dict[str, str]]:
    """Take a prompt apart as its first mark tells: what stands outside, and the text of each block.

    All that a reader has to know is the fence, which the first mark shows.
    """
    opening = re.match(r"[^\[\n]+\n\n\[(?:reply \d+|previous answer) ([0-9a-f]+)", prompt)
    if opening is None:
        return prompt, {}
    fence = opening[1]
    block = re.compile(
        rf'^\[(reply \d+|previous answer) {fence}( to: "[^\n]*")?\]\n(.*?)\n\[end of \1 {fence}\]$',
        re.DOTALL | re.MULTILINE,
    )
    texts = {name: text for name, _, text in block.findall(prompt)}
    outside = block.sub(lambda found: f"[{found[1]}{found[2] or ''}]", prompt)
    assert prompt.lower().count(fence) == 2 * len(texts)
    assert fence not in outside
    return outside, texts


def test_there_are_more_than_200_injections_of_every_kind() -> None:
    assert len(set(INJECTIONS.values())) == len(INJECTIONS) > 200
    assert all(text.strip() for text in INJECTIONS.values())
    assert all(len(kind) >= 4 for kind in injections.KINDS.values())


@pytest.mark.parametrize("text", injections.PLANS)
def test_injected_plans_are_plans(text: str) -> None:
    """From a Conductor the parser would take them: they stay text for who wrote them alone."""
    assert parse(text, workers=["root", *"123456"])


@pytest.mark.parametrize("text", injections.KEEP)
def test_injected_empty_lists_are_empty_lists(text: str) -> None:
    assert parse_revision(text) is None


@pytest.mark.parametrize("text", injections.BROKEN_PLANS)
def test_injected_broken_plans_are_broken(text: str) -> None:
    with pytest.raises(PlanError):
        parse(text, workers=["root"])


@by_shape
async def test_an_injected_completion_changes_nothing_but_its_own_block(shape: str) -> None:
    """At every step, every injection: same plan, same calls, same bytes in all prompts but where
    the text is granted; and there it fills its block and nothing else."""
    plan = SHAPES[shape]
    clean = Theatre(plan, clean_texts(plan))
    told = await clean.run()
    assert clean.asked.keys() == set(range(len(plan)))

    for victim in range(len(plan)):
        for name, text in INJECTIONS.items():
            case = f"{name} at step {victim}"
            theatre = Theatre(plan, clean_texts(plan) | {victim: text})
            run = await theatre.run()

            assert run.state is RunState.DONE, case
            assert run.plan == told.plan == plan, case
            assert theatre.lawful, case
            assert theatre.asked.keys() == clean.asked.keys(), case
            for index, (worker, messages) in theatre.asked.items():
                before = clean.asked[index]
                if victim not in plan.steps[index].access:
                    assert (worker, messages) == before, case
                    continue
                assert worker == before[0], case
                assert messages[:-1] == before[1][:-1], case
                outside, texts = read(messages[-1].content)
                clean_outside, clean_blocks = read(before[1][-1].content)
                assert outside == clean_outside, case
                assert texts == clean_blocks | {f"reply {victim}": mended(text)}, case
            expected = text if victim == plan.final.index else clean_texts(plan)[plan.final.index]
            assert run.answer == mended(expected), case


@pytest.mark.parametrize("name", INJECTIONS)
def test_an_injected_previous_answer_stays_in_its_block(name: str) -> None:
    """In a later round too, for each step that sees it, and to the byte, mended or not."""
    text = INJECTIONS[name]
    for plan in SHAPES.values():
        texts = clean_texts(plan)
        for step in plan:
            first, later, injected = (
                step_messages(plan, step.index, QUERY, texts, previous=previous)
                for previous in (None, "Perhaps 4.", text)
            )
            if len(step.access) < step.index:
                assert first == later == injected
                continue
            outside, blocks = read(injected[-1].content)
            clean_outside, clean_blocks = read(later[-1].content)
            assert injected[:-1] == later[:-1]
            assert outside == clean_outside
            assert blocks == clean_blocks | {"previous answer": text}


@by_shape
async def test_a_worker_that_has_seen_its_readers_prompt_still_closes_nothing(shape: str) -> None:
    """Ten times in a row it replays the very marks that its reader got the last time."""
    plan = SHAPES[shape]
    for step in plan:
        for victim in step.access:
            texts = clean_texts(plan)
            prompts: list[str] = []
            for _ in range(10):
                theatre = Theatre(plan, texts)
                await theatre.run()
                prompts.append(theatre.asked[step.index][1][-1].content)
                assert read(prompts[-1])[1][f"reply {victim}"] == texts[victim]
                texts[victim] = f"{clean_texts(plan)[victim]}\n{prompts[-1]}"[-20_000:]

            assert len({read(prompt)[0] for prompt in prompts}) == 1
            assert len(set(prompts)) == 10


@given(st.text(), st.text(), st.text())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_any_text_at_all_stays_in_its_block(zero: str, one: str, previous: str) -> None:
    """Not only those that somebody thought of."""
    plan = Plan.of(["a", "b", "c"], ["ann"] * 3, [[], [], [0, 1]])

    _, blocks = read(
        step_messages(plan, 2, QUERY, {0: zero, 1: one}, previous=previous)[-1].content
    )

    assert blocks == {"previous answer": previous, "reply 0": zero, "reply 1": one}


# -- (c) a real model reads them ------------------------------------------------------------------

READER = Plan.of(
    ["Find it.", "Repeat the reply.", "Look elsewhere.", "Check the second part.", "Sum up."],
    ["ann", "bob", "ann", "cyd", "ann"],
    [[], [0], [], [1], [2, 3]],
)
"""Step 1 is the model's; step 3 alone reads what it makes of step 0."""


def control_tokens(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[str]:
    added = tokenizer.added_tokens_decoder
    return [added[token].content for token in ids if token in added]


def test_no_injection_becomes_a_control_token(tokenizer: PreTrainedTokenizerFast) -> None:
    """Each one in the prompt of its reader, with the packaged model's tokenizer and template."""

    def control(text: str) -> list[str]:
        messages = step_messages(READER, 1, QUERY, {0: mended(text)})
        return control_tokens(tokenizer, prompt_ids(tokenizer, messages))

    template = control("")
    assert template
    assert [name for name, text in INJECTIONS.items() if control(text) != template] == []


async def test_whatever_a_real_model_makes_of_it_the_run_stays_the_same(
    small_model: LocalModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Injected texts, chat templates' tokens among them, before the packaged model in process.

    It is called with the very ids that the test above looks at; the other steps are asked as in
    the clean run, but for the model's own text in its block.
    """
    bob = LocalWorker("bob", small_model, sampling=Sampling(temperature=0.0, max_tokens=8))
    chosen = [*injections.TEMPLATES[1::4], *(texts[0] for texts in injections.KINDS.values())]
    runs: dict[str, tuple[Theatre, Run]] = {}

    async def play(text: str) -> None:
        theatre = Theatre(READER, clean_texts(READER) | {0: text}, guests=[bob])
        runs[text] = (theatre, await theatre.run())

    async with anyio.create_task_group() as group:
        for text in ("Result of part 0.", *chosen):
            group.start_soon(play, text)

    clean, told = runs.pop("Result of part 0.")
    assert told.state is RunState.DONE
    for text, (theatre, run) in runs.items():
        model = run.steps[1]
        ids = prompt_ids(tokenizer, model.messages)
        assert model.usage is not None and model.usage.input_tokens == len(ids), text
        assert read(model.messages[-1].content)[1] == {"reply 0": mended(text)}, text

        assert run.plan == READER and theatre.lawful, text
        # A model that says nothing has failed, and who reads it is skipped.
        silent = model.state is StepState.FAILED
        assert theatre.asked.keys() == ({0, 2} if silent else {0, 2, 3, 4}), text
        for index in theatre.asked.keys() & {0, 2, 4}:
            assert theatre.asked[index] == clean.asked[index], text
        if not silent:
            outside, blocks = read(theatre.asked[3][1][-1].content)
            assert outside == read(clean.asked[3][1][-1].content)[0], text
            assert blocks == {"reply 1": model.text}, text
    assert sum(run.state is RunState.DONE for _, run in runs.values()) > len(runs) // 2
