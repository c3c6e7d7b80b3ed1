"""Plan and Step: what a Conductor decides, as frozen values that are valid once they exist."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Literal

from .diagnostics import Diagnostic, PlanError

ListName = Literal["subtasks", "workers", "access"]

SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair: a code point that no encoding can write."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps on what is read from a text. None of them is a taste: they bound time and memory."""

    characters: int = 256 * 1024
    """Longest text that is looked at."""
    steps: int = 64
    """Most steps of a plan. A Planner asks its model for far fewer (5 in the papers)."""
    subtask_characters: int = 16 * 1024
    """Longest subtask."""


UNLIMITED = Limits(characters=2**62, steps=2**62, subtask_characters=2**62)
"""For plans built from Python, where the caller decides how large they get."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One rule broken by the three lists: which list, which entry, what is wrong."""

    code: str
    message: str
    hint: str
    where: ListName
    index: int | None = None
    """Entry of the list; None for the list as a whole."""
    item: int | None = None
    """Position inside the entry, for one index of an access list."""


@dataclass(frozen=True, slots=True)
class Step:
    """One subtask, who does it, and whose outputs it may read."""

    index: int
    """Position in the plan, from 0."""
    worker: str | int
    """Name in the pool, or position in it from 0 (a number, in quotes or not) until
    :meth:`Plan.resolve` puts the name."""
    subtask: str
    access: tuple[int, ...] = ()
    """Earlier steps whose subtask and completion this step sees, ascending."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A workflow: steps in order, each reading only earlier ones. The last one gives the answer.

    Raises:
        PlanError: If the steps break a rule of the language (access lists point to
            earlier steps only, so a plan is a DAG by construction).
    """

    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        wrong = [
            Violation("P206", f"step {at} has index {step.index}", "number steps from 0", "access")
            for at, step in enumerate(self.steps)
            if step.index != at
        ]
        wrong += violations(self.subtasks, self.workers, self.access, UNLIMITED)
        wrong += () if wrong else self._unsettled()
        if wrong:
            raise PlanError(Diagnostic(each.code, each.message, each.hint) for each in wrong)

    def _unsettled(self) -> Iterator[Violation]:
        """What may stand in a text or in Plan.of, but not in a Step: "all", "0", (1, 0)."""
        for step in self.steps:
            if step.access != granted(step.index, step.access):
                message = f"access of step {step.index} is no ascending tuple of steps"
                hint = 'Plan.of takes any order, repeats and "all"'
                yield Violation("P210", message, hint, "access", step.index)

    @classmethod
    def of(
        cls,
        subtasks: Sequence[str],
        workers: Sequence[str | int],
        access: Sequence[Sequence[int] | Literal["all"]],
    ) -> Plan:
        """Build a plan from its three aligned lists.

        Args:
            subtasks: What each step has to do.
            workers: Who does it: names, or positions in the pool from 0.
            access: Per step the earlier steps it may read, or ``"all"``.

        Raises:
            PlanError: If the lists do not make a valid plan; every problem is listed.
        """
        wrong = violations(subtasks, workers, access, UNLIMITED)
        if wrong:
            raise PlanError(Diagnostic(each.code, each.message, each.hint) for each in wrong)
        return cls(
            tuple(
                Step(index, worker, subtask, granted(index, entry))
                for index, (subtask, worker, entry) in enumerate(
                    zip(subtasks, workers, access, strict=True)
                )
            )
        )

    @property
    def subtasks(self) -> tuple[str, ...]:
        """The subtask of each step."""
        return tuple(step.subtask for step in self.steps)

    @property
    def workers(self) -> tuple[str | int, ...]:
        """The worker of each step."""
        return tuple(step.worker for step in self.steps)

    @property
    def access(self) -> tuple[tuple[int, ...], ...]:
        """The earlier steps that each step reads."""
        return tuple(step.access for step in self.steps)

    @property
    def final(self) -> Step:
        """The step whose completion is the answer."""
        return self.steps[-1]

    def readers(self) -> tuple[tuple[int, ...], ...]:
        """Per step, the later steps that read it."""
        found: list[list[int]] = [[] for _ in self.steps]
        for step in self.steps:
            for earlier in step.access:
                found[earlier].append(step.index)
        return tuple(map(tuple, found))

    def resolve(self, names: Sequence[str]) -> Plan:
        """Put the names of a pool in place of worker numbers.

        Args:
            names: The workers of the pool, in order.

        Raises:
            PlanError: If a step names a worker that is not among them.
        """
        wrong = pool_violations(self.workers, names)
        if wrong:
            raise PlanError(Diagnostic(each.code, each.message, each.hint) for each in wrong)
        if all(worker in names for worker in self.workers):
            return self
        return Plan(
            tuple(replace(step, worker=resolved(step.worker, names)) for step in self.steps)
        )

    def to_json(self, *, indent: int | None = None) -> str:
        """Write the plan as JSON: ``{"subtasks": [...], "workers": [...], "access": [...]}``.

        :meth:`from_json` gives an equal Plan, and so does every reader of plan text.
        """
        from .format import format_json

        return format_json(self, indent)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read the JSON of a plan, of any size.

        Raises:
            PlanError: If the text is no JSON, or not that of a plan; problems have their place.
        """
        from .parse import parse_json

        return parse_json(text)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __str__(self) -> str:
        """The canonical text; ``parse(str(plan)) == plan``."""
        from .format import format_plan

        return format_plan(self)

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        """What a notebook shows."""
        from .render import mimebundle

        return mimebundle(self, str(self))


def granted(index: int, entry: object) -> tuple[int, ...]:
    """Resolve a valid access entry of step ``index`` to ascending earlier steps."""
    if isinstance(entry, str) or not isinstance(entry, Iterable):
        return tuple(range(index))
    items = list(entry)
    if any(isinstance(item, str) and item.strip().lower() == "all" for item in items):
        return tuple(range(index))
    return tuple(sorted({int(item) for item in items}))


def resolved(worker: str | int, names: Sequence[str]) -> str:
    """Name a valid worker entry: a number counts the pool from 0, a digit string does too."""
    if isinstance(worker, str):
        return worker if worker in names else names[int(worker)]
    return names[worker]


def violations(
    subtasks: Sequence[object],
    workers: Sequence[object],
    access: Sequence[object],
    limits: Limits,
) -> list[Violation]:
    """List every rule of the language that three lists break: the one place that knows them."""
    lengths = {"subtasks": len(subtasks), "workers": len(workers), "access": len(access)}
    if not any(lengths.values()):
        return [Violation("P202", "the plan has no steps", "write at least one step", "subtasks")]
    wrong: list[Violation] = []
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} has {count}" for name, count in lengths.items())
        odd = _odd_one_out(lengths)
        hint = "write one subtask, one worker and one access entry per step"
        wrong.append(Violation("P201", f"the lists differ in length: {told}", hint, odd))
    count = max(lengths.values())
    if count > limits.steps:
        message = f"the plan has {count} steps, more than the limit of {limits.steps}"
        wrong.append(Violation("P203", message, "merge or drop steps", "subtasks", limits.steps))
        return wrong
    for index, subtask in enumerate(subtasks):
        wrong += _subtask_violations(index, subtask, limits)
    for index, worker in enumerate(workers):
        if not _is_worker(worker):
            hint = 'write a name in quotes, as "gpt", or the number of a worker, from 0'
            message = f"worker of step {index} is {_kind(worker)}"
            wrong.append(Violation("P209", message, hint, "workers", index))
        elif isinstance(worker, str) and SURROGATE.search(worker):
            message = f"worker of step {index} holds half a surrogate pair"
            hint = "it is no text that can be encoded"
            wrong.append(Violation("P209", message, hint, "workers", index))
    for index, entry in enumerate(access):
        wrong += _access_violations(index, entry, count)
    return wrong


def pool_violations(workers: Sequence[object], names: Sequence[str]) -> list[Violation]:
    """List the worker entries that do not name a worker of the pool ``names``.

    An empty name is a number that nobody has at the moment.
    """
    wrong = []
    for index, worker in enumerate(workers):
        if not _is_worker(worker) or worker in names:
            continue  # what is no worker at all is told by violations
        if not names:
            message = "the pool has no workers"
            wrong.append(Violation("P302", message, "add one to the pool", "workers", index))
            break
        if isinstance(worker, str) and not _digits(worker):
            near = get_close_matches(worker[:64], names, n=1)
            there = [name for name in names if name]
            known = ", ".join(there[:12]) + (", …" if len(there) > 12 else "")
            hint = f"did you mean {near[0]!r}?" if near else f"the pool has: {known}"
            message = f"no worker is called {_short(worker)!r}"
            wrong.append(Violation("P301", message, hint, "workers", index))
        elif int(worker) >= len(names):  # type: ignore[call-overload]  # _is_worker
            message = f"there is no worker {worker}: the pool has {len(names)}"
            last = len(names) - 1
            hint = f"numbers go from 0 to {last}" if last > 0 else "write 0, the only one"
            wrong.append(Violation("P302", message, hint, "workers", index))
        elif not names[int(worker)]:  # type: ignore[call-overload]
            offered = ", ".join(str(at) for at, name in enumerate(names) if name)
            message = f"worker {worker} is not in the pool at hand"
            wrong.append(Violation("P302", message, f"it has: {offered}", "workers", index))
    return wrong


def _subtask_violations(index: int, subtask: object, limits: Limits) -> Iterator[Violation]:
    if not isinstance(subtask, str):
        message = f"subtask of step {index} is {_kind(subtask)}"
        yield Violation("P208", message, "write it in quotes", "subtasks", index)
    elif not subtask.strip():
        hint = "say what the step has to do"
        yield Violation("P211", f"subtask of step {index} is empty", hint, "subtasks", index)
    elif len(subtask) > limits.subtask_characters:
        message = f"subtask of step {index} has {len(subtask):,} characters"
        hint = f"the limit is {limits.subtask_characters:,}"
        yield Violation("P212", message, hint, "subtasks", index)
    elif SURROGATE.search(subtask):
        message = f"subtask of step {index} holds half a surrogate pair"
        yield Violation("P208", message, "it is no text that can be encoded", "subtasks", index)


def _access_violations(index: int, entry: object, count: int) -> Iterator[Violation]:
    hint = 'write a list of earlier steps, as [0, 1], or "all"'
    if isinstance(entry, str):
        if entry.strip().lower() != "all":
            message = f"access of step {index} is {_short(entry)!r}"
            yield Violation("P210", message, hint, "access", index)
        return
    if not isinstance(entry, Iterable):
        message = f"access of step {index} is {_kind(entry)}, not a list"
        yield Violation("P210", message, hint, "access", index)
        return
    for at, item in enumerate(entry):
        if isinstance(item, str) and item.strip().lower() == "all":
            continue
        if not _is_index(item):
            message = f"step {index} reads {_kind(item)}, not a step"
            yield Violation("P210", message, hint, "access", index, at)
            continue
        read = int(item)  # _is_index: an int or ASCII digits
        earlier = "it has no earlier steps" if index == 0 else _range(index)
        if read < 0:
            message = f"step {index} reads step {read}; steps count from 0"
            yield Violation("P207", message, earlier, "access", index, at)
        elif read >= count:
            message = f"step {index} reads step {read}, but the plan has {_steps(count)}"
            yield Violation("P206", message, earlier, "access", index, at)
        elif read == index:
            hint_itself = f"{earlier}; steps count from 0"
            yield Violation("P205", f"step {index} reads itself", hint_itself, "access", index, at)
        elif read > index:
            message = f"step {index} reads step {read}, which comes later"
            yield Violation("P204", message, earlier, "access", index, at)


def _range(index: int) -> str:
    return f"step {index} may read " + ("step 0" if index == 1 else f"steps 0 to {index - 1}")


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _is_worker(worker: object) -> bool:
    if isinstance(worker, str):
        return bool(worker.strip())
    return isinstance(worker, int) and not isinstance(worker, bool) and 0 <= worker < 10**6


def _is_index(item: object) -> bool:
    if isinstance(item, str):
        return _digits(item)
    return isinstance(item, int) and not isinstance(item, bool)


def _digits(text: str) -> bool:
    """A number in quotes, as models write it; bounded, since ``int`` refuses 4,300 digits."""
    return text.isascii() and text.isdigit() and len(text) <= 6


def _kind(value: object) -> str:
    match value:
        case bool():
            return f"the boolean {value}"
        case int() | float():
            return f"the number {_short(str(value))}"
        case str():
            return f"the string {_short(value)!r}" if value.strip() else "an empty string"
        case list() | tuple():
            return "a list"
        case None:
            return "nothing (None)"
        case _:
            return f"the bare word {_short(str(value))}" if isinstance(value, Word) else "no entry"


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"


def _odd_one_out(lengths: dict[str, int]) -> ListName:
    counts = list(lengths.values())
    for name, count in lengths.items():
        if counts.count(count) == 1 and len(set(counts)) == 2:
            return name  # type: ignore[return-value]  # the keys are the list names
    return "workers"


@dataclass(frozen=True, slots=True)
class Word:
    """A word without quotes in the text of a plan, such as ``gpt``; no entry of a valid plan."""

    text: str = field()

    def __str__(self) -> str:
        return self.text
