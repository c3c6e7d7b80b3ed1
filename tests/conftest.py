"""What all tests share: both event loops, properties without a clock, and no journal."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from runtime import LocalModel, fetch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

settings.register_profile("conductor", deadline=None)
settings.load_profile("conductor")

# Nobody's own journal is written to: neither by tests nor by commands that they start.
os.environ["CONDUCTOR_JOURNAL"] = "off"


@pytest.fixture(scope="session", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run every async test on both event loops."""
    return str(request.param)


@pytest.fixture(scope="session")
def small_model() -> LocalModel:
    """The packaged model, loaded once; fetched into the cache if it is not there."""
    return LocalModel("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def tokenizer(small_model: LocalModel) -> PreTrainedTokenizerFast:
    """That of the packaged model: control tokens like "<|im_end|>", ChatML as its template."""
    from transformers import AutoTokenizer

    loaded: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(fetch(small_model.name))
    return loaded
