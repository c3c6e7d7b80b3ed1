"""FunctionWorker and the values round it: what a function may return, and who a worker is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from runtime import FunctionWorker, Message, Worker


async def say(messages: Sequence[Message]) -> str:
    return "said"


async def shout(messages: Sequence[Message], mark: str = "!") -> str:
    return f"said{mark}"


class Speaker:
    async def __call__(self, messages: Sequence[Message]) -> str:
        return "said"


def test_a_function_worker_is_known_by_its_name_and_where_its_function_is_defined() -> None:
    worker = FunctionWorker("w", say)

    assert isinstance(worker, Worker)
    assert f'"{say.__module__}.say"' in worker.identity
    assert worker.identity == FunctionWorker("w", say, card="Other words.").identity
    others = [
        FunctionWorker("v", say),
        FunctionWorker("w", shout),
        FunctionWorker("w", Speaker()),
        FunctionWorker("w", partial(shout, mark="?")),
    ]
    assert len({each.identity for each in [worker, *others]}) == 5
