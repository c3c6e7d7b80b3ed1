"""What carrying out a plan will take, before anything is called: steps, tokens, dollars, keys.

A range, not a guess. The low end is short replies; the high end is every reply at its limit,
and every step reading such replies. Nothing here opens a connection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from math import ceil
from typing import Generic, TypeVar

from grammar import Plan, critical_path
from runtime import (
    ConductorWorker,
    Cost,
    Endpoint,
    Message,
    PlannerSettings,
    Pool,
    PoolError,
    PoolFile,
    Sampling,
    Usage,
    free,
    published,
    step_messages,
)

from .prompt import brief_messages, plan_messages

LEAST_OUTPUT = 20
"""Tokens of a short reply."""
MOST_OUTPUT = 4096
"""Tokens of the longest reply of a worker without max_tokens."""
CHARACTERS_PER_TOKEN = 4
_DEMAND_TOKENS = 200
"""What the round to repair a plan adds beside the plan itself."""
_ITSELF = "a run inside the step, not in this estimate"

N = TypeVar("N", int, Decimal)


@dataclass(frozen=True, slots=True)
class Range(Generic[N]):
    """From the least to the most."""

    least: N
    most: N

    def __add__(self, other: Range[N]) -> Range[N]:
        return Range(self.least + other.least, self.most + other.most)


_NONE = Range(0, 0)
_FREE = Range(Decimal(0), Decimal(0))


@dataclass(frozen=True, slots=True)
class StepEstimate:
    """One call for one step."""

    index: int
    worker: str
    input_tokens: Range[int]
    output_tokens: Range[int]
    dollars: Range[Decimal] | None
    """None if the price is unknown."""


@dataclass(frozen=True, slots=True)
class WorkerEstimate:
    """All calls of one worker, or those that write the plan."""

    worker: str
    calls: Range[int]
    input_tokens: Range[int]
    output_tokens: Range[int]
    dollars: Range[Decimal] | None
    """None if the price is unknown; it is in no sum then."""
    price: str
    """Where the price is from."""
    missing: tuple[str, ...] = ()
    """Variables of the environment that it needs and that are not set."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a plan, or a query that has none yet, will take."""

    steps: Range[int]
    critical_path: tuple[str, ...]
    """The longest chain of steps, by number and worker; empty before there is a plan."""
    plan: tuple[StepEstimate, ...]
    """The steps in order; empty before there is a plan."""
    planning: WorkerEstimate | None
    """The calls that write the plan; None if it is there."""
    workers: tuple[WorkerEstimate, ...]
    """In the order of the pool. Before there is a plan each may get all the steps or none, so
    that these do not add up to the total."""
    input_tokens: Range[int]
    output_tokens: Range[int]
    dollars: Range[Decimal]
    """Of all workers whose price is known."""
    unpriced: tuple[str, ...]
    """Workers whose price is unknown."""
    missing: tuple[str, ...]
    """Variables of the environment that are needed and not set."""
    assumptions: str
    """On what all this rests, in a sentence."""

    def to_json(self, *, indent: int | None = None) -> str:
        """Write it as JSON; dollars are numbers there."""
        import json

        return json.dumps(asdict(self), indent=indent, ensure_ascii=False, default=float)


@dataclass(frozen=True, slots=True)
class _Worker:
    """What an estimate has to know of a worker."""

    name: str
    system: str
    most_output: int
    cost: Cost | None
    price: str
    missing: tuple[str, ...] = ()

    def tokens(self, messages: Sequence[Message]) -> int:
        characters = sum(len(each.content) for each in messages)
        system = len(self.system) + 2 if self.system else 0  # and the blank line behind it
        return _tokens(characters + system)

    @property
    def output(self) -> Range[int]:
        return Range(min(LEAST_OUTPUT, self.most_output), self.most_output)

    def dollars(self, given: Range[int], written: Range[int]) -> Range[Decimal] | None:
        if self.cost is None:
            return None
        least, most = Usage(given.least, written.least), Usage(given.most, written.most)
        return Range(self.cost(least), self.cost(most))


def estimate(
    asked: Plan | str,
    pool: Pool | PoolFile,
    *,
    query: str = "",
    env: Mapping[str, str] | None = None,
) -> Estimate:
    """Estimate a plan, or a query for which the pool's planner will write one.

    Prices are those of the pool file, or else those that the genai-prices package knows of the
    model at the host of its url. Models in this process and functions cost nothing.

    Args:
        asked: A plan, or a query.
        pool: The workers. A PoolFile knows most: an Endpoint in a Pool does not tell its limit of
            tokens.
        query: What the plan is for; every step reads it.
        env: Where variables are looked up; the process environment by default.

    Raises:
        PlanError: If the plan names a worker that the pool does not have.
        PoolError: If the pool file names a planner that it does not have.
    """
    workers, planner, settings = _of_file(pool, env) if isinstance(pool, PoolFile) else _of(pool)
    if isinstance(asked, Plan):
        return _of_plan(asked.resolve([*workers]), query, workers)
    return _of_query(asked, workers, planner, settings, _cards(pool))


def _of_plan(plan: Plan, query: str, workers: Mapping[str, _Worker]) -> Estimate:
    steps: list[StepEstimate] = []
    silence = dict.fromkeys(range(len(plan)), "")
    for step in plan:
        worker = workers[str(step.worker)]
        bare = worker.tokens(step_messages(plan, step.index, query, silence))
        read = sum(steps[earlier].output_tokens.most for earlier in step.access)
        given, written = Range(bare, bare + read), worker.output
        dollars = worker.dollars(given, written)
        steps.append(StepEstimate(step.index, worker.name, given, written, dollars))
    by_worker = tuple(
        _sum(worker, [each for each in steps if each.worker == worker.name])
        for worker in workers.values()
        if worker.name in plan.workers
    )
    path, _ = critical_path(plan)
    asked = "" if query else "the query is left out, "
    return Estimate(
        steps=Range(len(plan), len(plan)),
        critical_path=tuple(f"{index} {plan.steps[index].worker}" for index in path),
        plan=tuple(steps),
        planning=None,
        workers=by_worker,
        input_tokens=sum((each.input_tokens for each in steps), _NONE),
        output_tokens=sum((each.output_tokens for each in steps), _NONE),
        dollars=sum((each.dollars for each in steps if each.dollars), _FREE),
        unpriced=tuple(each.worker for each in by_worker if each.dollars is None),
        missing=_missing(by_worker),
        assumptions=_assumptions(asked),
    )


def _of_query(
    query: str,
    workers: Mapping[str, _Worker],
    planner: _Worker,
    settings: PlannerSettings,
    cards: Sequence[str],
) -> Estimate:
    longest_subtask = settings.subtask_characters
    if settings.roster:
        offered = [at for at, name in enumerate(settings.roster) if name in workers]
        asked = brief_messages(query, offered)
        longest_subtask = max(longest_subtask, len(query))  # such a one often hands the query on
    else:
        asked = plan_messages(
            query,
            len(workers),
            most_steps=settings.most_steps,
            least_steps=settings.least_steps,
            cards=cards if settings.cards else (),
        )
    planning = _planning(planner, asked, settings.sampling)
    team = workers.values()
    least, most = settings.least_steps, settings.most_steps
    # The lightest plan reads nothing and says little; in the heaviest all read all before them.
    light = Plan.of(["x" * CHARACTERS_PER_TOKEN] * least, [0] * least, [[]] * least)
    heavy = Plan.of(["x" * longest_subtask] * most, [0] * most, ["all"] * most)
    longest = max(worker.most_output for worker in team)
    calls: dict[str, list[StepEstimate]] = {name: [] for name in workers}
    for index in range(most):
        for worker in team:
            low = worker.tokens(step_messages(light, min(index, least - 1), query, {}))
            silence = dict.fromkeys(range(index), "")
            high = worker.tokens(step_messages(heavy, index, query, silence)) + index * longest
            given, written = Range(low, high), worker.output
            dollars = worker.dollars(given, written)
            calls[worker.name].append(StepEstimate(index, worker.name, given, written, dollars))
    by_worker = tuple(_at_most(_sum(worker, calls[worker.name])) for worker in team)
    given, written, dollars = planning.input_tokens, planning.output_tokens, planning.dollars
    spent = dollars or _FREE
    for index in range(most):
        any_of = [each[index] for each in calls.values()]
        needed = index < least
        given += _either([each.input_tokens for each in any_of], needed)
        written += _either([each.output_tokens for each in any_of], needed)
        costs = [each.dollars or _FREE for each in any_of]
        low_cost = min(each.least for each in costs) if needed else Decimal(0)
        spent += Range(low_cost, max(each.most for each in costs))
    everyone = (planning, *by_worker)
    subtasks = f"subtasks of at most {longest_subtask} characters, "
    return Estimate(
        steps=Range(least, most),
        critical_path=(),
        plan=(),
        planning=planning,
        workers=by_worker,
        input_tokens=given,
        output_tokens=written,
        dollars=spent,
        unpriced=tuple(dict.fromkeys(each.worker for each in everyone if each.dollars is None)),
        missing=_missing(everyone),
        assumptions=_assumptions(subtasks),
    )


def _planning(planner: _Worker, asked: tuple[Message, ...], sampling: Sampling) -> WorkerEstimate:
    """One call that writes the plan, at most a second one that repairs it."""
    longest = sampling.max_tokens or planner.most_output
    once = planner.tokens(asked)
    again = once + longest + _DEMAND_TOKENS
    short = min(LEAST_OUTPUT, longest)
    dollars = None
    if planner.cost is not None:
        repaired = planner.cost(Usage(once, longest)) + planner.cost(Usage(again, longest))
        dollars = Range(planner.cost(Usage(once, short)), repaired)
    return WorkerEstimate(
        planner.name,
        Range(1, 2),
        Range(once, once + again),
        Range(short, 2 * longest),
        dollars,
        planner.price,
        planner.missing,
    )


def _sum(worker: _Worker, steps: Sequence[StepEstimate]) -> WorkerEstimate:
    dollars = None
    if worker.cost is not None:
        dollars = sum((each.dollars for each in steps if each.dollars), _FREE)
    return WorkerEstimate(
        worker.name,
        Range(len(steps), len(steps)),
        sum((each.input_tokens for each in steps), _NONE),
        sum((each.output_tokens for each in steps), _NONE),
        dollars,
        worker.price,
        worker.missing,
    )


def _at_most(all_steps: WorkerEstimate) -> WorkerEstimate:
    """A worker that may get no step as well."""
    dollars = all_steps.dollars
    return WorkerEstimate(
        all_steps.worker,
        Range(0, all_steps.calls.most),
        Range(0, all_steps.input_tokens.most),
        Range(0, all_steps.output_tokens.most),
        None if dollars is None else Range(Decimal(0), dollars.most),
        all_steps.price,
        all_steps.missing,
    )


def _either(ranges: Sequence[Range[int]], needed: bool) -> Range[int]:
    least = min(each.least for each in ranges) if needed else 0
    return Range(least, max(each.most for each in ranges))


def _missing(workers: Sequence[WorkerEstimate]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for each in workers for name in each.missing))


def _assumptions(more: str) -> str:
    return (
        f"Assumed: {CHARACTERS_PER_TOKEN} characters a token, replies of {LEAST_OUTPUT} tokens up "
        f"to max_tokens ({MOST_OUTPUT:,} where not set), {more}nothing cached, no failed calls."
    )


def _tokens(characters: int) -> int:
    return ceil(characters / CHARACTERS_PER_TOKEN)


# --- workers and prices --------------------------------------------------------------------------


def _of_file(
    file: PoolFile, env: Mapping[str, str] | None
) -> tuple[dict[str, _Worker], _Worker, PlannerSettings]:
    workers = {}
    for name in file.workers:
        if name not in file.models:
            workers[name] = _Worker(name, "", MOST_OUTPUT, None, _ITSELF)
            continue
        table, missing = file.looked_up(name, env)
        price = table.price
        if price is not None:
            cost: Cost | None = price.price.cost
            source = "pool file"
        elif table.kind == "local":
            cost, source = free, "in this process"
        else:
            cost, source = published(table.model, table.url)
        most = table.max_tokens or MOST_OUTPUT
        workers[name] = _Worker(name, table.system, most, cost, source, missing)
    settings = file.planner.settings if file.planner else PlannerSettings()
    try:
        planner = workers[file.planning_worker]
    except PoolError as error:
        raise PoolError(f"{file.path}: {error}") from error
    return workers, planner, settings


def _of(pool: Pool) -> tuple[dict[str, _Worker], _Worker, PlannerSettings]:
    everyone = {}
    for worker in (*pool, pool.planner):
        if isinstance(worker, ConductorWorker):
            everyone[worker.name] = _Worker(worker.name, "", MOST_OUTPUT, None, _ITSELF)
            continue
        price = pool.terms(worker).price
        if price is not None:
            cost: Cost | None = price.cost
            source = "pool"
        elif isinstance(worker, Endpoint):
            cost, source = published(worker.model, f"https://{worker.host}/")
        else:
            cost, source = free, "in this process"
        sampling = getattr(worker, "sampling", Sampling())  # a function has none
        most = sampling.max_tokens or MOST_OUTPUT
        system = getattr(worker, "system", "")
        everyone[worker.name] = _Worker(worker.name, system, most, cost, source)
    workers = {name: everyone[name] for name in pool.names}
    return workers, everyone[pool.planner.name], pool.planning


def _cards(pool: Pool | PoolFile) -> list[str]:
    if isinstance(pool, PoolFile):
        return [table.card for table in pool.workers.values()]
    return [worker.card for worker in pool]
