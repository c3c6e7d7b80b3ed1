"""What is answered where there is no answer: one shape, and one table of statuses.

Clients of the OpenAI API tell failures apart by HTTP status and by ``error.type`` and
``error.code``; what they try again on their own is 408, 409, 429 and 5xx.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from runtime import Failure, FailureKind


class Refusal(Exception):
    """A request gets an error instead of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        allow: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type or _TYPES.get(status, "api_error")
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s
        self.allow = allow
        self.run = ""
        """Id of the run that came to nothing, if there is one."""

    @property
    def body(self) -> dict[str, Any]:
        """What is sent, as JSON."""
        told = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return {"error": {**told, "run": self.run} if self.run else told}

    @property
    def headers(self) -> dict[str, str]:
        """When to try again, in both spellings that clients know; and which methods there are."""
        if self.allow:
            return {"allow": ", ".join(self.allow)}
        if self.retry_after_s is None:
            return {}
        wait = min(max(self.retry_after_s, 0.0), 86_400.0)
        return {"retry-after": str(math.ceil(wait)), "retry-after-ms": str(math.ceil(wait * 1000))}


_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    421: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    499: "cancelled_error",
}

STATUS: dict[FailureKind, tuple[int, str]] = {
    FailureKind.UNREACHABLE: (502, "worker_unreachable"),
    FailureKind.TIMEOUT: (504, "worker_timeout"),
    FailureKind.DEADLINE: (504, "deadline_exceeded"),
    FailureKind.CANCELLED: (499, "cancelled"),
    FailureKind.UNAUTHORIZED: (502, "worker_key_rejected"),
    FailureKind.NOT_FOUND: (502, "worker_model_not_found"),
    FailureKind.RATE_LIMITED: (429, "rate_limit_exceeded"),
    FailureKind.REJECTED: (400, "worker_refused"),
    FailureKind.OVERLOADED: (503, "worker_overloaded"),
    FailureKind.BAD_RESPONSE: (502, "bad_worker_response"),
    FailureKind.EMPTY: (502, "empty_completion"),
    FailureKind.TRIPPED: (503, "worker_left_alone"),
    FailureKind.BUDGET: (422, "budget_exceeded"),
    FailureKind.EXCLUDED: (422, "worker_excluded"),
    FailureKind.NO_PLAN: (502, "no_plan"),
    FailureKind.NO_ANSWER: (502, "no_answer"),
    FailureKind.INTERNAL: (500, "internal_error"),
    FailureKind.MODEL: (503, "model_unavailable"),
}
"""What a failed run is to the client. The keys of workers are ours, so a rejected one is no 401 of
the client; and a budget that is used up is not worth another try, as a 429 would invite to."""


def of_failure(failure: Failure, run: str = "") -> Refusal:
    """The refusal that a failed run leads to."""
    status, code = STATUS[failure.kind]
    wait = failure.retry_after_s
    if wait is None and status in (429, 503):
        wait = 1.0
    refusal = Refusal(status, failure.message, code=code, retry_after_s=wait)
    refusal.run = run
    return refusal


def bad(message: str, param: str | None = None, code: str | None = None) -> Refusal:
    """A request that is wrong, and which parameter is."""
    return Refusal(400, message, param=param, code=code)
