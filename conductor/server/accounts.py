"""What a run took and who did what, as replies of either API tell it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Self

from runtime import Account, PlanSource, Run, StepResult, StepState, Usage


@dataclass(frozen=True, slots=True)
class Took:
    """What a run took, added up once for all who tell of it: a Run adds up whenever it is asked."""

    run: Run
    accounts: Mapping[str, Account]
    """Of each worker, for steps."""
    planning: Account
    usage: Usage
    """Tokens of all calls."""
    dollars: Decimal

    @classmethod
    def by(cls, run: Run) -> Self:
        """Add up a run."""
        accounts, planning = run.accounts, run.orchestration
        usage, dollars = planning.usage, planning.dollars
        for each in accounts.values():
            usage += each.usage
            dollars += each.dollars
        return cls(run, accounts, planning, usage, dollars)

    @property
    def busy_s(self) -> float:
        """Seconds in which some worker was being called; the rest of a run is our own doing."""
        steps = (step for step in self.run.steps if step.seconds)
        calls = [(step.started_s, step.started_s + step.seconds) for step in steps]
        total, end = sum(attempt.seconds for attempt in self.run.planning), 0.0
        for start, stop in sorted(calls):
            total += max(0.0, stop - max(start, end))
            end = max(end, stop)
        return total


@dataclass(frozen=True, slots=True)
class Spent:
    """Tokens of an answer: of the call that gave it, and of all that led to it."""

    answer: Usage
    orchestration: Usage

    @property
    def total(self) -> int:
        """All tokens: the two are apart, so this is their sum."""
        parts = (self.answer, self.orchestration)
        return sum(each.input_tokens + each.output_tokens for each in parts)


def last_step(run: Run) -> StepResult | None:
    """The step whose completion is the answer."""
    for each in reversed(run.rounds):
        if each.answer is not None:
            return each.steps[-1]
    return None


def said(run: Run) -> str:
    """What the last step said beside its calls of tools, if it waits for them."""
    last = run.steps[-1] if run.steps else None
    asks = last is not None and last.state is StepState.SUSPENDED and last.turns
    return last.turns[-1].text if last is not None and asks else ""


def spent(runs: Iterable[Took], before: Took | None = None) -> Spent:
    """Tokens of one or more runs.

    Args:
        runs: The runs.
        before: The first one as it was, if it went on; that is not counted again.
    """
    answer, other = Usage(), Usage()
    for each in runs:
        own = _own(each.run)
        answer += own
        other += _less(each.usage, own)
    if before is not None:
        other = _less(other, before.usage)
    return Spent(answer, other)


def _own(run: Run) -> Usage:
    """Tokens of the call that gave the answer, or asked for tools in its place."""
    last = last_step(run)
    if last is None:
        last = run.steps[-1] if run.steps else None
        if last is None or last.state is not StepState.SUSPENDED or not last.turns:
            return Usage()
        return last.turns[-1].usage or Usage()
    return last.usage if last.usage and not last.reused and not last.run else Usage()


def _less(one: Usage, other: Usage) -> Usage:
    return Usage(
        one.input_tokens - other.input_tokens,
        one.output_tokens - other.output_tokens,
        one.cached_tokens - other.cached_tokens,
    )


def chat_usage(runs: Iterable[Took], before: Took | None = None) -> dict[str, Any]:
    """Usage as chat completions tell it."""
    took = spent(runs, before)
    return {
        "prompt_tokens": took.answer.input_tokens,
        "completion_tokens": took.answer.output_tokens,
        "total_tokens": took.total,
        "prompt_tokens_details": {
            "cached_tokens": took.answer.cached_tokens,
            "orchestration_input_tokens": took.orchestration.input_tokens,
            "orchestration_input_cached_tokens": took.orchestration.cached_tokens,
        },
        "completion_tokens_details": {
            "orchestration_output_tokens": took.orchestration.output_tokens
        },
    }


def responses_usage(runs: Iterable[Took], before: Took | None = None) -> dict[str, Any]:
    """Usage as responses tell it."""
    took = spent(runs, before)
    return {
        "input_tokens": took.answer.input_tokens,
        "input_tokens_details": {
            "cached_tokens": took.answer.cached_tokens,
            "orchestration_input_tokens": took.orchestration.input_tokens,
            "orchestration_input_cached_tokens": took.orchestration.cached_tokens,
        },
        "output_tokens": took.answer.output_tokens,
        "output_tokens_details": {
            "reasoning_tokens": 0,
            "orchestration_output_tokens": took.orchestration.output_tokens,
        },
        "total_tokens": took.total,
    }


def disclosure(
    policy: str, runs: Sequence[Took], estimate: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The ``conductor`` object of a reply: who did what in the run, and what it took.

    Args:
        policy: The pinned id of what answered.
        runs: The run, and those that gave further choices or repaired the answer; none for the
            dry run of one worker.
        estimate: Of a dry run.
    """
    estimated = {"dry_run": True, "estimate": estimate} if estimate else {}
    if not runs:
        return {"policy": policy, **estimated}
    run = runs[0].run
    accounts: dict[str, Account] = {}
    for each in runs:
        for worker, account in each.accounts.items():
            accounts[worker] = accounts.get(worker, Account()) + account
    planning = [each.planning for each in runs if each.run.planning]
    told: dict[str, Any] = {
        "run": run.id,
        "policy": policy,
        "state": run.state.value,
        "rounds": len(run.rounds),
        "plan": _plan(run),
        "workers": {worker: _account(account) for worker, account in accounts.items()},
        "steps": [_step(each) for each in run.steps],
        "dollars": float(sum(each.dollars for each in runs)),
        "seconds": round(sum(each.run.seconds for each in runs), 6),
        **estimated,
    }
    if planning:
        told["planning"] = _account(sum(planning, Account()))
    if len(runs) > 1:
        told["runs"] = [each.run.id for each in runs]
    return told


def _plan(run: Run) -> dict[str, Any] | None:
    plan = run.plan
    if plan is None:
        return None
    pick = run.current.pick
    if pick is not None:
        return {
            "source": "router",
            "workers": [pick.worker],
            "probabilities": {name: round(each, 6) for name, each in pick.probabilities.items()},
            **({"role": pick.role.value} if pick.role else {}),
        }
    if run.source is PlanSource.PICK:
        return {"source": "pick", "workers": [str(plan.final.worker)]}
    return {
        "source": run.source.value if run.source else "",
        "subtasks": [step.subtask for step in plan],
        "workers": [str(step.worker) for step in plan],
        "access": [list(step.access) for step in plan],
    }


def _step(step: StepResult) -> dict[str, Any]:
    told: dict[str, Any] = {
        "index": step.index,
        "worker": step.worker,
        "state": step.state.value,
        "seconds": round(step.seconds, 6),
    }
    if step.model:
        told["model"] = step.model
    if step.usage:
        told["input_tokens"] = step.usage.input_tokens
        told["output_tokens"] = step.usage.output_tokens
    if step.dollars is not None:
        told["dollars"] = float(step.dollars)
    if step.failure:
        told["failure"] = {"kind": step.failure.kind.value, "message": step.failure.message}
    if step.reused:
        told["reused"] = step.reused
    return told


def _account(account: Account) -> dict[str, Any]:
    return {
        "calls": account.calls,
        "failed": account.failed,
        "input_tokens": account.usage.input_tokens,
        "output_tokens": account.usage.output_tokens,
        "dollars": float(account.dollars),
        "unpriced": account.unpriced,
    }
