"""Plans from Python: your own async functions as workers, events as they happen, a deadline.

python examples/05_plans_from_python.py
"""

import re
from collections.abc import Sequence

import anyio

from conductor import Budget, Event, FunctionWorker, Message, Plan, Pool, Run, run_plan

PRICES = {"apple": 0.40, "bread": 3.20, "cheese": 5.75}


async def look_up(messages: Sequence[Message]) -> str:
    asked = messages[-1].content.lower()
    return "\n".join(f"{item}: {price}" for item, price in PRICES.items() if item in asked)


async def add_up(messages: Sequence[Message]) -> str:
    """Read the numbers out of the reply that this step was granted."""
    found = re.findall(r"^\w+: ([\d.]+)$", messages[-1].content, re.MULTILINE)
    return f"The sum is {sum(map(float, found)):.2f}."


async def dawdle(messages: Sequence[Message]) -> str:
    await anyio.sleep(3600)
    return "too late for anybody"


def tell(event: Event) -> None:
    print(f"{event.at:6.3f} s  {event.kind}")


async def shop() -> tuple[Run, Run]:
    tools = {"prices": look_up, "sum": add_up, "slow": dawdle}
    pool = Pool([FunctionWorker(name, function) for name, function in tools.items()])
    query = "What do bread and cheese cost together?"
    good = Plan.of(["Look the prices up.", "Add them up."], ["prices", "sum"], [[], [0]])
    slow = Plan.of(["Look the prices up.", "Add them up."], ["prices", "slow"], [[], [0]])
    return (
        await run_plan(good, query, pool, emit=tell),
        await run_plan(slow, query, pool, budget=Budget(seconds=0.2)),
    )


def main() -> None:
    good, slow = anyio.run(shop)
    print(f"\nanswer: {good.answer}")
    print(f"with the slow worker: {slow.failure.message if slow.failure else ''}")


if __name__ == "__main__":
    main()
