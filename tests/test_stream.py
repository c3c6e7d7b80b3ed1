"""Streaming: events and text as they come; the whole is the fold of the parts."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import anyio.lowlevel
import pytest

from conductor import Conductor
from grammar import Plan, chain
from runtime import (
    Call,
    Completion,
    Event,
    FailureKind,
    FunctionWorker,
    Health,
    LocalModel,
    LocalWorker,
    Message,
    OnText,
    Pool,
    Sampling,
    StepDelta,
    StepFinished,
    Terms,
    WorkerError,
    fold,
)

pytestmark = pytest.mark.anyio


class Typist:
    """Writes its pieces one by one; entries of the script that are failures break off."""

    card = ""
    tags: tuple[str, ...] = ()
    constrains = False

    def __init__(self, name: str, *script: tuple[str | WorkerError, ...]) -> None:
        self.name = name
        self.identity = name
        self.script = list(script)
        self.cancelled = False

    async def complete(self, call: Call, on_text: OnText = lambda text: None) -> Completion:
        pieces = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        text = ""
        try:
            for piece in pieces:
                await anyio.lowlevel.checkpoint()
                if isinstance(piece, WorkerError):
                    raise piece
                if piece == "hang":
                    await anyio.sleep_forever()
                on_text(piece)
                text += piece
        except anyio.get_cancelled_exc_class():
            self.cancelled = True
            raise
        return Completion(text)

    async def check(self) -> Health:
        return Health(True, "")

    async def __aenter__(self) -> Typist:
        return self

    async def __aexit__(self, *exc_info: object) -> None: ...


GONE = WorkerError(FailureKind.UNREACHABLE, "gone")
QUICK = Terms(retry_base_s=1e-6)


def team(*typists: Typist) -> Conductor:
    return Conductor(Pool(typists, terms=QUICK))


async def pieces(conductor: Conductor, plan: Plan, **options: object) -> list[str]:
    async with conductor.stream("q", plan=plan, **options) as stream:
        return [piece async for piece in stream.text()]


async def test_the_stream_of_events_folds_to_the_run() -> None:
    """One code path: what is streamed and what is returned are the same."""
    conductor = team(Typist("a", ("one ", "two")))
    events: list[Event] = []
    async with conductor.stream("q", plan=chain(["x", "y"], ["a"])) as stream:
        with pytest.raises(RuntimeError, match="has not ended"):
            stream.run  # noqa: B018
        async for event in stream:
            events.append(event)

    assert stream.run == fold(events)
    assert stream.run.answer == "one two"
    whole = await conductor.arun("q", plan=chain(["x", "y"], ["a"]))
    assert [step.text for step in whole.steps] == [step.text for step in stream.run.steps]


async def test_of_a_text_without_end_a_part_is_kept() -> None:
    """All of it was streamed; the record has as much as a model could mean."""
    conductor = team(Typist("a", (*["x" * 700_000] * 3, GONE)))
    streamed: list[str] = []

    run = await conductor.arun(
        "q",
        worker="a",
        on_event=lambda event: streamed.append(getattr(event, "text", "")),
    )

    assert sum(map(len, streamed)) == 3 * 3 * 700_000  # in three tries
    assert run.steps[0].text == "x" * 2**20


async def test_text_is_that_of_the_last_step_piece_by_piece() -> None:
    """Earlier steps write elsewhere."""
    conductor = team(Typist("a", ("not ", "this")), Typist("b", ("but ", "that")))

    assert await pieces(conductor, chain(["x", "y"], ["a", "b"])) == ["but ", "that"]


async def test_a_piece_is_out_before_the_next_one_is_written() -> None:
    """Nothing is held back until the end."""
    said = anyio.Event()

    class Waiting(Typist):
        async def complete(self, call: Call, on_text: OnText = lambda text: None) -> Completion:
            on_text("first ")
            await said.wait()
            on_text("second")
            return Completion("first second")

    async with team(Waiting("a", ("",))).stream("q", worker="a") as stream:
        heard = []
        async for piece in stream.text():
            heard.append(piece)
            said.set()

    assert heard == ["first ", "second"]


async def test_a_retry_goes_on_where_the_text_stood() -> None:
    """If the new reply begins with the same; nothing comes twice."""
    conductor = team(Typist("a", ("one ", "two ", GONE), ("one ", "two ", "three")))

    assert await pieces(conductor, chain(["x"], ["a"])) == ["one ", "two ", "three"]


async def test_a_retry_with_other_words_is_an_error_and_never_a_mixture() -> None:
    """What was streamed can't be taken back, so the stream says that it is void."""
    conductor = team(Typist("a", ("one ", GONE), ("two ", "words")))
    heard = []
    async with conductor.stream("q", worker="a") as stream:
        with pytest.raises(WorkerError, match="what was streamed is void"):
            async for piece in stream.text():
                heard.append(piece)

    assert heard == ["one "]
    assert stream.run.answer == "two words"


async def test_a_run_without_an_answer_ends_the_text_with_its_failure() -> None:
    """Never an empty success."""
    conductor = team(Typist("a", ("half ", GONE)))
    async with conductor.stream("q", worker="a") as stream:
        with pytest.raises(WorkerError, match="gone") as caught:
            async for _ in stream.text():
                pass

    assert caught.value.failure.kind is FailureKind.UNREACHABLE


async def test_with_rounds_to_come_the_answer_is_told_whole_at_the_end() -> None:
    """A later round may replace it."""
    plan = 'subtasks = ["x"]\nworkers = [0]\naccess = [[]]'
    keep = "subtasks = []\nworkers = []\naccess = []"
    texts = [plan, keep]

    async def scribe(messages: Sequence[Message]) -> str:
        return texts.pop(0)

    pool = Pool([Typist("a", ("one ", "two"))])
    conductor = Conductor(pool, planner=FunctionWorker("scribe", scribe))
    async with conductor.stream("q", rounds=2) as stream:
        assert [piece async for piece in stream.text()] == ["one two"]


async def test_leaving_the_block_stops_the_run() -> None:
    """Its calls are cancelled before the block is left."""
    typist = Typist("a", ("one ", "hang"))
    async with team(typist).stream("q", worker="a") as stream:
        async for event in stream:
            if isinstance(event, StepDelta):
                break

    assert typist.cancelled


async def test_mistakes_are_raised_where_the_events_are_read() -> None:
    """As they are by arun, and not wrapped into a group."""
    async with team(Typist("a", ("x",))).stream(" ") as stream:
        with pytest.raises(ValueError, match="the query is empty"):
            async for _ in stream:
                pass


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_real_model_streams_its_tokens(small_model: LocalModel) -> None:
    """More than one piece, before the step is finished, and together they are the answer."""
    short = Sampling(temperature=0.0, max_tokens=12)
    conductor = Conductor(Pool([LocalWorker("a", small_model, sampling=short)]))
    heard: list[str] = []
    async with conductor.stream("Count from one to ten.", worker="a") as stream:
        async for event in stream:
            match event:
                case StepDelta():
                    heard.append(event.text)
                case StepFinished():
                    assert len(heard) > 3

    assert "".join(heard) == stream.run.answer
