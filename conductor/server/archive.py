"""Runs that are in the journal: looked up, followed, gone on with."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import datetime
from typing import Any

import anyio

from runtime import (
    Call,
    Journal,
    JournalError,
    PlanSource,
    Run,
    RunState,
    ToolError,
    ToolResult,
    suspended_run,
)

from . import responses
from .accounts import Took
from .answering import Answers
from .ask import Ask
from .refusals import Refusal, bad
from .sse import KEEP_ALIVE

_ID = re.compile(r"[0-9a-f]{32}")
_WATCH_S = 0.2
_STATUS = {RunState.RUNNING: "in_progress", RunState.CANCELLED: "cancelled"}


class Archive:
    """The runs of all clients; each finds its own alone.

    Args:
        journal: Where they are; there are none if None.
    """

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal

    def run(self, identifier: str, caller: str) -> Run:
        """A run of a client.

        Raises:
            Refusal: 404 if there is none, whether it is another's or nobody's.
        """
        return self._found(identifier, caller)[1]

    def _found(self, identifier: str, caller: str) -> tuple[Journal, Run]:
        if self._journal is None:
            raise Refusal(404, "runs are not kept here: there is no journal", code="no_journal")
        try:
            if not _ID.fullmatch(identifier):
                raise JournalError("no id")
            run = self._journal.run(identifier)
        except JournalError:
            run = None
        if run is None or run.caller != caller:
            raise Refusal(404, f"there is no run {identifier[:100]!r}", code="run_not_found")
        return self._journal, run

    def response(self, identifier: str, caller: str) -> dict[str, Any]:
        """A run as the Responses API has it; raises as :meth:`run`."""
        run = self.run(identifier.removeprefix("resp_"), caller)
        pick = run.source is PlanSource.PICK and run.plan
        model = f"worker/{run.plan.final.worker}" if pick and run.plan else "conductor"
        ask = Ask(model, run.asked or Call(()))
        created = int(datetime.fromisoformat(run.started).timestamp())
        choices = () if run.answer is None else ((run.answer, run),)
        told = responses.reply(ask, model, created, Answers(choices, (Took.by(run),)))
        if run.state is not RunState.DONE:
            told["status"] = _STATUS.get(run.state, "failed")
        if run.failure is not None and run.answer is None:
            told["error"] = {"code": "server_error", "message": run.failure.message}
        return told

    def suspended(self, ask: Ask, caller: str) -> tuple[Run | None, tuple[ToolResult, ...]]:
        """Find the run that goes on with the results of tools that a conversation ends with.

        Returns:
            The run and the results; None where there is no such run: then the conversation, results
            included, is what is asked.
        """
        found = suspended_run(ask.call.messages)
        if found is None or self._journal is None:
            return None, ()
        name, results = found
        try:
            record = self._journal.record(name)
            record.missing(results)
        except (JournalError, ToolError):
            return None, ()
        run = record.run
        return (run, results) if run.caller == caller else (None, ())

    def continued(self, ask: Ask, caller: str) -> Ask:
        """Put the conversation of an earlier response before what is asked.

        Raises:
            Refusal: 404 if there is none; 400 if it came to no answer.
        """
        if not ask.previous:
            return ask
        run = self.run(ask.previous, caller)
        if run.answer is None:
            told = f"the response resp_{run.id} has no answer to go on from"
            raise bad(told, "previous_response_id")
        messages = responses.continued(ask, run, run.answer)
        return replace(ask, call=replace(ask.call, messages=messages))

    def events(
        self, identifier: str, caller: str, *, after: int, keep_alive_s: float
    ) -> AsyncGenerator[bytes, None]:
        """The events of a run as server-sent events, as they come, until it has ended; an empty
        piece now and then if none come.

        Args:
            identifier: The run.
            caller: Whose it is.
            after: Leave so many of the first ones out.
            keep_alive_s: Longest silence.

        Raises:
            Refusal: At once, as :meth:`run`.
        """
        journal, run = self._found(identifier, caller)
        return _followed(journal, run.id, after, keep_alive_s)


async def _followed(
    journal: Journal, run: str, sent: int, keep_alive_s: float
) -> AsyncGenerator[bytes, None]:
    silent = 0.0
    while True:
        over = journal.run(run).state is not RunState.RUNNING
        lines = journal.lines(run, after=sent)
        if lines:
            silent = 0.0
            yield b"".join(
                b"id: %d\ndata: %s\n\n" % (sent + at, line) for at, line in enumerate(lines, 1)
            )
            sent += len(lines)
        elif over:
            return
        elif silent >= keep_alive_s:
            silent = 0.0
            yield KEEP_ALIVE
        else:
            yield b""
        if not over:
            await anyio.sleep(_WATCH_S)
            silent += _WATCH_S
