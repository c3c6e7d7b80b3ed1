"""The OpenAI client, unmodified, against the real server over a real socket."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import openai
import pytest
import uvicorn
from pydantic import BaseModel

from conductor import Conductor
from conductor.server import Server
from runtime import LocalModel, LocalWorker, Pool, Sampling
from tests.serving import Team


@contextmanager
def listening(server: Server) -> Iterator[str]:
    """Serve on loopback in a thread; gives the base address."""
    config = uvicorn.Config(server, port=0, log_level="warning", access_log=False)
    listener = uvicorn.Server(config)
    thread = threading.Thread(target=listener.run)
    thread.start()
    try:
        while not listener.started:
            thread.join(0.01)
        yield f"http://127.0.0.1:{listener.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        listener.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def team() -> Team:
    return Team()


@pytest.fixture(scope="module")
def sdk(team: Team) -> Iterator[openai.OpenAI]:
    with (
        listening(team.server()) as url,
        openai.OpenAI(base_url=url, api_key="none", max_retries=0) as made,
    ):
        yield made


def test_a_chat_completion(sdk: openai.OpenAI) -> None:
    made = sdk.chat.completions.create(
        model="conductor", messages=[{"role": "user", "content": "Is tea healthy?"}]
    )

    assert made.choices[0].message.content == "Yes, in the morning."
    assert made.usage and made.usage.total_tokens == 202
    assert made.model_extra and made.model_extra["conductor"]["plan"]["workers"] == ["pro", "judge"]
    assert made._request_id and made._request_id.startswith("req_")


def test_a_streamed_chat_completion_by_the_helper(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.stream(
        model="conductor",
        messages=[{"role": "user", "content": "Is tea healthy?"}],
        stream_options={"include_usage": True},
    ) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.get_final_completion()

    assert text == final.choices[0].message.content == "Yes, in the morning."
    assert final.usage and final.usage.total_tokens == 202


def test_a_parsed_completion(sdk: openai.OpenAI, team: Team) -> None:
    class Verdict(BaseModel):
        healthy: bool
        why: str

    team.judge.texts, before = ['{"healthy": true, "why": "warm"}'], team.judge.texts
    made = sdk.chat.completions.parse(
        model="worker/judge",
        messages=[{"role": "user", "content": "Is tea healthy?"}],
        response_format=Verdict,
    )
    team.judge.texts = before

    assert made.choices[0].message.parsed == Verdict(healthy=True, why="warm")


def test_a_response(sdk: openai.OpenAI) -> None:
    made = sdk.responses.create(model="conductor", input="Is tea healthy?")

    assert (made.status, made.output_text) == ("completed", "Yes, in the morning.")


def test_a_streamed_response_by_the_helper(sdk: openai.OpenAI) -> None:
    with sdk.responses.stream(model="conductor", input="Is tea healthy?") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()

    assert kinds[-1] == "response.completed"
    assert final.output_text == "Yes, in the morning."


def test_models(sdk: openai.OpenAI) -> None:
    listed = [model.id for model in sdk.models.list()]
    pinned = sdk.models.retrieve("conductor").model_extra

    assert listed == ["conductor", "worker/pro", "worker/judge"]
    assert pinned and sdk.models.retrieve(pinned["pinned"]).id == pinned["pinned"]


def test_errors_arrive_as_their_own_types(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'nobody'"):
        sdk.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "x"}])
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(
            model="conductor", messages=[{"role": "user", "content": "x"}], logprobs=True
        )
    assert caught.value.param == "logprobs"


def test_the_embedded_model_answers_over_the_wire(small_model: LocalModel) -> None:
    """Real tokens from a real small model, streamed; an answer of the form that was asked for."""
    worker = LocalWorker("small", small_model, sampling=Sampling(temperature=0.0, max_tokens=40))
    with (
        listening(Server(Conductor(Pool([worker])))) as url,
        openai.OpenAI(base_url=url, api_key="none") as sdk,
    ):
        chunks = list(
            sdk.chat.completions.create(
                model="worker/small",
                messages=[{"role": "user", "content": "What is the capital of France?"}],
                stream=True,
            )
        )
        form = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 10}}}
        made = sdk.responses.create(
            model="worker/small",
            input="What is the capital of France?",
            text={"format": {"type": "json_schema", "name": "x", "schema": form}},
        )

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert "Paris" in text
    assert len(chunks) > 3
    assert made.output_text.startswith("{")
