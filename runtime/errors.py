"""What can go wrong below the deciders.

::

    Exception
    ├── grammar.PlanError      a text or value is not a valid plan (a ValueError)
    ├── PoolError              the pool, or the file that describes it, is wrong
    ├── ModelError             an in-process model can't be had: not installed, not found
    ├── JournalError           the journal can't be opened, read or written; a run is not in it
    ├── ToolError              results of tools don't fit what a run has asked for
    ├── ReplayError            the record of a run does not follow from itself
    └── WorkerError            one call of one worker failed; its ``failure`` says how

A failed call is expected and ends as data in a StepResult; the engine is the one place that turns
a WorkerError into it. A JournalError stops a run that it comes up in; the others are raised before
anything is carried out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class PoolError(Exception):
    """A pool can't be built: a bad file, a missing variable, a name that is taken or unknown."""


class ModelError(Exception):
    """An in-process model can't be loaded; the message says what to install or fetch."""


class JournalError(Exception):
    """The journal can't be opened, read or written, or does not hold what is asked for."""


class ToolError(Exception):
    """Results of tools don't fit the run: nobody asked, there is another one, or it is too late."""


class ReplayError(Exception):
    """A run, carried out again from its own record, comes to another one: which step and field."""


class FailureKind(StrEnum):
    """What was crossed or broken when a call failed."""

    UNREACHABLE = "unreachable"
    """No connection: wrong address, server not running, network down, connection lost."""
    TIMEOUT = "timeout"
    """The worker took longer than its limit."""
    DEADLINE = "deadline"
    """The run's own deadline passed first."""
    CANCELLED = "cancelled"
    """The caller stopped the run first."""
    UNAUTHORIZED = "unauthorized"
    """The key is missing, wrong or not allowed to use the model."""
    NOT_FOUND = "not_found"
    """The server is there, but not the model or path."""
    RATE_LIMITED = "rate_limited"
    """Too many requests or tokens; may work later."""
    REJECTED = "rejected"
    """The server refused the request itself (a parameter, the length, the content)."""
    OVERLOADED = "overloaded"
    """The server failed (5xx); may work later."""
    BAD_RESPONSE = "bad_response"
    """The answer is no completion: not JSON, cut off, of another shape."""
    EMPTY = "empty"
    """The completion has no text."""
    TRIPPED = "tripped"
    """The worker failed so often lately that it is left alone for a while."""
    BUDGET = "budget"
    """The run has used up what it may take: money, tokens, calls, steps or depth."""
    EXCLUDED = "excluded"
    """The worker may not be used in this run."""
    NO_ANSWER = "no_answer"
    """The turns of a router came to their end before a solver had answered."""
    NO_PLAN = "no_plan"
    """What the Conductor model wrote is no plan, also after being told what is wrong with it."""
    INTERNAL = "internal"
    """The worker's own code raised."""
    MODEL = "model"
    """The in-process model could not be loaded."""

    @property
    def transient(self) -> bool:
        """Whether the same call may well succeed later."""
        return self in _TRANSIENT


_TRANSIENT = frozenset(
    {
        FailureKind.UNREACHABLE,
        FailureKind.TIMEOUT,
        FailureKind.RATE_LIMITED,
        FailureKind.OVERLOADED,
        FailureKind.BAD_RESPONSE,
        FailureKind.EMPTY,
        FailureKind.TRIPPED,
    }
)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something has no result. Safe to show: it never holds a key."""

    kind: FailureKind
    message: str
    """One line: what happened, where, and what would help."""
    retry_after_s: float | None = None
    """Seconds that the server asked to wait, if it did."""


class WorkerError(Exception):
    """One call of one worker failed."""

    def __init__(
        self, kind: FailureKind, message: str, *, retry_after_s: float | None = None
    ) -> None:
        self.failure = Failure(kind, message, retry_after_s)
        super().__init__(message)
