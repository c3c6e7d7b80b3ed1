"""Which steps may run: the state of a plan under way, without clock, await or I/O.

The two rules that decide every schedule live here and nowhere else:

1. A step may start the moment all steps it reads are done - never later, never at a level barrier.
2. A step that reads a step without a result never runs, and neither does what reads it.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum

from grammar import Plan


class StepState(StrEnum):
    """Where a step is. Waiting, running and suspended are passing; the others are final."""

    WAITING = "waiting"
    RUNNING = "running"
    SUSPENDED = "suspended"
    """Its worker has asked for tools and waits for the results. To the schedule it is running."""
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"


class Schedule:
    """The progress of one plan. ``start`` and ``finish`` are O(steps and edges they touch).

    >>> from grammar import chain
    >>> schedule = Schedule(chain(["a", "b"], ["gpt"]))
    >>> schedule.start()
    (0,)
    >>> schedule.finish(0, done=True)
    ()
    >>> schedule.start()
    (1,)
    """

    def __init__(self, plan: Plan) -> None:
        self._readers = plan.readers()
        self._missing = [len(step.access) for step in plan]
        self._states = [StepState.WAITING] * len(plan)
        self._ready = deque(step.index for step in plan if not step.access)

    @property
    def states(self) -> tuple[StepState, ...]:
        """The state of each step."""
        return tuple(self._states)

    @property
    def finished(self) -> bool:
        """Whether every step is in a final state."""
        passing = (StepState.WAITING, StepState.RUNNING)
        return not any(state in passing for state in self._states)

    def start(self) -> tuple[int, ...]:
        """Take the steps whose inputs are all done; they are running from now on."""
        taken = tuple(self._ready)
        self._ready.clear()
        for index in taken:
            self._states[index] = StepState.RUNNING
        return taken

    def finish(self, index: int, *, done: bool) -> tuple[int, ...]:
        """Record that a running step has ended.

        Args:
            index: The step.
            done: Whether it has a completion.

        Returns:
            The steps that can never run now, in order; empty if it is done.

        Raises:
            ValueError: If the step is not running.
        """
        if not 0 <= index < len(self._states):
            raise ValueError(f"there is no step {index}, so it is not running")
        if self._states[index] is not StepState.RUNNING:
            raise ValueError(f"step {index} is {self._states[index]}, not running")
        if not done:
            self._states[index] = StepState.FAILED
            return self._skip_readers(index)
        self._states[index] = StepState.DONE
        for reader in self._readers[index]:
            self._missing[reader] -= 1
            if not self._missing[reader] and self._states[reader] is StepState.WAITING:
                self._ready.append(reader)
        return ()

    def _skip_readers(self, index: int) -> tuple[int, ...]:
        skipped: list[int] = []
        reached = deque(self._readers[index])
        while reached:
            reader = reached.popleft()
            if self._states[reader] is StepState.WAITING:
                self._states[reader] = StepState.SKIPPED
                skipped.append(reader)
                reached.extend(self._readers[reader])
        return tuple(sorted(skipped))
