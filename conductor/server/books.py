"""The books of a server: what was asked and what it took, by client and for the metrics."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from decimal import Decimal

from .accounts import Took
from .keys import Account, Keyring
from .vitals import vitals

_COUNTED = frozenset({"/v1/chat/completions", "/v1/responses", "/v1/models"})


class Books:
    """Counts.

    Args:
        keys: Where it is kept what clients have spent, if they have keys.
    """

    def __init__(self, keys: Keyring | None) -> None:
        self._keys = keys
        self._requests: Counter[tuple[str, int]] = Counter()
        self._runs: Counter[str] = Counter()
        self._took: Counter[tuple[str, str]] = Counter()
        self._dollars: defaultdict[str, Decimal] = defaultdict(Decimal)

    def requested(self, path: str, status: int) -> None:
        """Enter a request that has ended."""
        self._requests[path if path in _COUNTED else "other", status] += 1

    def settle(self, account: Account, runs: Sequence[Took], before: Took | None = None) -> None:
        """Enter what runs took.

        Args:
            account: The client's.
            runs: The runs.
            before: One of them as it was, if it went on: that is in the books already.
        """
        tokens, dollars = 0, Decimal(0)
        for each in runs:
            self._runs[each.run.state.value] += 1
            tokens += self._enter(each, 1)
            dollars += each.dollars
        if before is not None and runs:
            tokens += self._enter(before, -1)
            dollars -= before.dollars
        account.settle(time.monotonic(), tokens, dollars)
        if self._keys is not None and any(each.dollars for each in runs):
            self._keys.keep()

    def _enter(self, took: Took, sign: int) -> int:
        """Enter a run by worker; returns its tokens."""
        tokens = 0
        for worker, each in (*took.accounts.items(), ("planning", took.planning)):
            if not each.calls:
                continue
            usage = each.usage
            tokens += sign * (usage.input_tokens + usage.output_tokens)
            self._took[worker, "calls"] += sign * each.calls
            self._took[worker, "failed"] += sign * each.failed
            self._took[worker, "input_tokens"] += sign * usage.input_tokens
            self._took[worker, "output_tokens"] += sign * usage.output_tokens
            self._dollars[worker] += sign * each.dollars
        return tokens

    def prometheus(self, under_way: int) -> str:
        """The metrics, as Prometheus reads them.

        Args:
            under_way: Requests for answers.
        """
        lines = [
            *_counter("conductor_http_requests_total", ("route", "status"), self._requests.items()),
            "# TYPE conductor_requests_in_flight gauge",
            f"conductor_requests_in_flight {under_way}",
            *_counter(
                "conductor_runs_total",
                ("state",),
                (((state,), count) for state, count in self._runs.items()),
            ),
            *_counter("conductor_worker_total", ("worker", "what"), self._took.items()),
            *_counter(
                "conductor_worker_dollars_total",
                ("worker",),
                (((worker,), dollars) for worker, dollars in self._dollars.items()),
            ),
            *vitals(),
        ]
        return "\n".join(lines) + "\n"


def _counter(
    name: str,
    labels: Sequence[str],
    figures: Iterable[tuple[tuple[str | int, ...], int | Decimal]],
) -> list[str]:
    lines = [f"# TYPE {name} counter"]
    for values, figure in sorted(figures):
        told = ",".join(f'{label}="{each}"' for label, each in zip(labels, values, strict=True))
        lines.append(f"{name}{{{told}}} {figure}")
    return lines
