"""What all tests share: both event loops, and properties without a clock."""

from __future__ import annotations

import pytest
from hypothesis import settings

from runtime import LocalModel

settings.register_profile("conductor", deadline=None)
settings.load_profile("conductor")


@pytest.fixture(scope="session", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run every async test on both event loops."""
    return str(request.param)


@pytest.fixture(scope="session")
def small_model() -> LocalModel:
    """The packaged model, loaded once; fetched into the cache if it is not there."""
    return LocalModel("smollm2-135m-instruct")
