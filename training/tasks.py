"""Tasks: questions that can be graded, where they come from, and which are kept apart.

Sources: our own families and chains (:mod:`training.families`), reasoning-gym's generators, JSONL
files and Hugging Face datasets by name. Whatever the source, an item belongs to one split by a
digest of its content, never by its position or its wording: adding items moves none, and the same
two numbers in other words or in other order stay on the same side.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from grammar import Plan

from .families import CHAINS, FAMILIES, VERDICTS, Chain, Family, Item
from .graders import Exact, Grader, GraderError, Gym, Maths, Mention, Number


class TaskError(Exception):
    """Tasks can't be had from a source: unknown, malformed or exhausted."""


class Split(StrEnum):
    """What a task may be used for."""

    TRAIN = "train"
    VALIDATION = "validation"
    """Choosing settings, stopping early."""
    TEST = "test"
    """Reported, and used for nothing else."""


SHARES = (60, 15, 25)
"""Percent of a source's items for training, validation and test."""

Wording = Literal["trained", "varied", "held-out", "all", "sealed"]
"""Which phrasings: those that players and deciders train on; these and the many more that a
Conductor trains on; the held-out ones; the first and the third; or the sealed ones."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a composed task, as a plan may hand it out."""

    family: str
    subtask: str
    """In one of the ways to word it."""
    answer: str
    usual: str = ""
    """The subtask in the words that all of its kind have; empty where there are none."""
    alone: Annotated[str, Field(exclude=True)] = field(default="", compare=False)
    """The subtask as a question by itself, with what earlier parts give, in the first of its
    family's phrasings; empty where none is known. Files don't have it."""


@dataclass(frozen=True, slots=True)
class Task:
    """One question and how its answer is graded."""

    id: str
    """Digest of family, question and grader: equal for equal tasks."""
    family: str
    question: str
    grader: Grader
    answer: str = ""
    """A right answer, as a player is taught to write it; empty where none is known."""
    split: Split = Split.TRAIN
    held_out_wording: bool = False
    """Whether it is asked in a phrasing that nothing trains on."""
    reserved: bool = False
    """Whether it is of a family that deciders don't train on."""
    parts: tuple[Part, ...] = ()
    """How a composed task falls apart, in order; empty for others."""
    votes: int = 0
    """How many attempts its plan makes before a last step counts them; 0 for a task tried once."""
    usual: Annotated[str, Field(exclude=True)] = field(default="", compare=False)
    """The question in the first of its family's phrasings, empty where none is known. Files don't
    have it."""

    @property
    def plan_subtasks(self) -> list[str]:
        """The subtasks of the plan that solves it: its parts, its attempts, or the question."""
        if self.votes:
            return [*[self.question] * self.votes, VERDICTS[0]]
        return [part.subtask for part in self.parts] or [self.question]

    @property
    def usual_subtasks(self) -> list[str]:
        """What its parts ask for, or it, in the words that all of their kind have."""
        parts = [part.usual or part.subtask for part in self.parts]
        return parts or [self.usual or self.question]

    @property
    def alone(self) -> list[str]:
        """What its parts ask for, as questions by themselves, or it, in usual words."""
        parts = [part.alone or part.usual or part.subtask for part in self.parts]
        return parts or [self.usual or self.question]

    @property
    def step_families(self) -> list[str]:
        """Of which family each step of that plan is: who is good at that is good at the step."""
        if self.votes:
            return [*[self.family.removeprefix(VOTED)] * self.votes, TALLY]
        return [part.family for part in self.parts] or [self.family]

    def plan(self, workers: Sequence[str | int]) -> Plan:
        """The plan that solves it.

        Parts read the one before. Attempts read nothing and are asked the question as it is, so
        they are independent as far as their workers sample or differ; the last step reads them all.

        Args:
            workers: Who does each step: names, or positions in a pool.

        Raises:
            grammar.PlanError: If there are more or fewer workers than steps.
        """
        if self.votes:
            access = [*[[] for _ in range(self.votes)], list(range(self.votes))]
            return Plan.of(self.plan_subtasks, list(workers), access)
        return in_a_row(self.plan_subtasks, workers)


def in_a_row(subtasks: Sequence[str], workers: Sequence[str | int]) -> Plan:
    """A plan whose steps each read the one before.

    Raises:
        grammar.PlanError: If there are more or fewer workers than subtasks.
    """
    access = [[at - 1] if at else [] for at in range(len(subtasks))]
    return Plan.of(list(subtasks), list(workers), access)


VOTED = "voted-"
"""Before the name of a family whose tasks are put to a vote."""
TALLY = "tally"
"""The family of steps that count votes."""


def voted(one: Task, votes: int = 3) -> Task:
    """Put a task to a vote: the same question, to be tried several times and counted.

    Raises:
        ValueError: If there are fewer than 2 attempts, or the task is composed.
    """
    if votes < 2 or one.parts:
        raise ValueError(f"a vote takes 2 attempts at one step; got {votes} at {one.family}")
    made = task(VOTED + one.family.removeprefix(VOTED), one.question, one.grader)
    return replace(one, id=made.id, family=made.family, votes=votes)


def task(family: str, question: str, grader: Grader, **options: Any) -> Task:
    """Make a task; its id follows from what it is.

    Args:
        family: Kind of question.
        question: What the worker is asked.
        grader: How the answer is graded.
        options: Further fields of :class:`Task`.
    """
    told = json.dumps([family, question, _GRADER.dump_python(grader, mode="json")])
    return Task(sha256(told.encode()).hexdigest()[:16], family, question, grader, **options)


def split_of(source: str, key: str, seed: int = 0, shares: Sequence[int] = SHARES) -> Split:
    """Say which split an item belongs to.

    Args:
        source: Family or data set.
        key: What makes two items the same.
        seed: Another one deals anew.
        shares: Percent for training, validation and test.
    """
    digest = sha256(f"{seed}\0{source}\0{key}".encode()).digest()
    at = int.from_bytes(digest[:8]) % 100
    for split, share in zip(Split, shares, strict=True):
        if at < share:
            return split
        at -= share
    raise AssertionError("shares add up to 100")


# --- our own families -----------------------------------------------------------------------------


def draw(
    name: str,
    count: int,
    *,
    split: Split = Split.TRAIN,
    wording: Wording = "trained",
    seed: int = 0,
    fewer: bool = False,
    often: int = 1,
) -> list[Task]:
    """Draw different tasks of one of our families or chains.

    The same arguments give the same tasks; more of them begin with the same.

    Args:
        name: Of a family (``addition``), of one put to a vote of three (``voted-addition``), or of
            a chain (``largest-addition``).
        count: How many.
        split: Items of which split.
        wording: Phrasings to ask in.
        seed: Chooses the items; the split does not depend on it.
        fewer: Give what there is if that is less.
        often: How often the same item comes, each time drawing its phrasing.

    Raises:
        TaskError: If there is no such family, or it has too few items.
    """
    if (base := name.removeprefix(VOTED)) in FAMILIES and base != name:
        options: dict[str, Any] = {"split": split, "wording": wording, "seed": seed, "often": often}
        return [voted(each) for each in draw(base, count, fewer=fewer, **options)]
    source = FAMILIES.get(name) or CHAINS.get(name)
    if source is None:
        known = ", ".join([*FAMILIES, *CHAINS])
        raise TaskError(f"no family is called {name!r}; there are: {known}")
    random = Random(f"{name} {split} {wording} {seed}")  # noqa: S311
    found: dict[str, Task] = {}
    misses = 0
    while len(found) < count:
        ask = _ask_chain(source, random) if isinstance(source, Chain) else _ask(source, random)
        made = [ask(wording) for _ in range(often)]
        new = {each.id: each for each in made if each.split is split and each.id not in found}
        found |= new
        misses = 0 if new else misses + 1
        if misses > _PATIENCE:
            if fewer and found:
                break
            message = f"{name} has no more than {len(found)} tasks in {split}, {wording} wording"
            raise TaskError(f"{message}; ask for fewer")
    return list(found.values())[:count]


_PATIENCE = 20_000
"""Draws without a new task after which a family counts as exhausted."""


def _ask(family: Family, random: Random) -> Callable[[Wording], Task]:
    """Draw an item; what is returned asks for it."""
    item = family.draw(random)

    def ask(wording: Wording) -> Task:
        phrasing, held_out = _phrasing(family, wording, random)
        return task(
            family.name,
            phrasing.format(**item.fields),
            item.grader,
            answer=item.answer,
            split=_item_split(family, item),
            held_out_wording=held_out,
            reserved=family.reserved,
            usual=family.phrasings[0].format(**item.fields),
        )

    return ask


def _ask_chain(chain: Chain, random: Random) -> Callable[[Wording], Task]:
    items, split = _chain_items(chain, random)
    fields = {name: text for item in items for name, text in item.fields.items()}

    def ask(wording: Wording) -> Task:
        phrasing, held_out = _phrasing(chain, wording, random)
        parts = tuple(
            Part(
                family,
                random.choice(asks).format(**fields),
                item.answer,
                usual=asks[0].format(**fields),
                alone=FAMILIES[family].phrasings[0].format(**{**item.fields, **item.alone}),
            )
            for family, asks, item in zip(chain.parts, chain.asks, items, strict=True)
        )
        return task(
            chain.name,
            phrasing.format(**fields),
            items[-1].grader,
            answer=items[-1].answer,
            split=split,
            held_out_wording=held_out,
            reserved=chain.reserved,
            parts=parts,
        )

    return ask


def _chain_items(chain: Chain, random: Random) -> tuple[tuple[Item, ...], Split]:
    """Draw until all parts are of one split: no part of a test chain is trained on by itself."""
    while True:
        items = chain.draw(random)
        of_parts = zip(chain.parts, items, strict=True)
        splits = {_item_split(FAMILIES[name], item) for name, item in of_parts}
        if len(splits) == 1:
            return items, splits.pop()


def _item_split(family: Family, item: Item) -> Split:
    return split_of(family.dealt_as or family.name, item.key, shares=family.shares)


def _phrasing(source: Family | Chain, wording: Wording, random: Random) -> tuple[str, bool]:
    if wording == "sealed" and not source.sealed:
        raise TaskError(f"{source.name} has no sealed phrasings; ask for the held-out ones")
    chosen = {
        "trained": source.phrasings,
        "varied": (*source.phrasings, *source.varied),
        "held-out": source.held_out,
        "all": (*source.phrasings, *source.held_out),
        "sealed": source.sealed,
    }[wording]
    phrasing = random.choice(chosen)
    return phrasing, phrasing in (*source.held_out, *source.sealed)


# --- other sources --------------------------------------------------------------------------------


def gym(
    name: str, count: int, *, split: Split = Split.TRAIN, seed: int = 0, **settings: Any
) -> list[Task]:
    """Generate tasks of a reasoning-gym family, with its own scorer.

    Args:
        name: Of the family in reasoning-gym.
        count: How many different ones.
        split: Of which split, by the question's content.
        seed: Of the generator.
        settings: Of the generator.

    Raises:
        TaskError: If there is no such family, or it repeats itself too soon.
        GraderError: If reasoning-gym is not installed.
    """
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise GraderError("reasoning-gym is missing: pip install 'conductor-lm[train]'") from error
    if name not in DATASETS:
        raise TaskError(
            f"reasoning-gym has no family {name!r}; it has: {', '.join(sorted(DATASETS))}"
        )
    family = f"gym:{name}"
    found: dict[str, Task] = {}
    size = 8 * count + 64
    for entry in reasoning_gym.create_dataset(name, size=size, seed=seed, **settings):
        of = split_of(family, plain(entry["question"]))
        if of is split:
            told = json.dumps(entry, default=str, sort_keys=True)
            made = task(
                family, entry["question"], Gym(name, told), answer=entry["answer"], split=of
            )
            found.setdefault(made.id, made)
        if len(found) == count:
            return list(found.values())
    raise TaskError(f"{name}: {len(found)} different tasks in {split} among {size}; ask for fewer")


def read_jsonl(path: str | Path) -> list[Task]:
    """Read tasks, one JSON object a line.

    A line is what :func:`write_jsonl` writes, or short: ``question``, ``answer``, and optionally
    ``family``, ``grader`` (``exact``, the default, ``number``, ``maths`` or ``mention``) and
    ``split``. Short lines without a split are dealt to splits by their question.

    Raises:
        TaskError: If the file can't be read, or a line is no task; it says which.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path}: {error}") from error
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("no object")
            made = _TASK.validate_python(row) if "id" in row else _short(row, Path(path).stem)
        except (ValueError, TypeError, ValidationError) as error:
            raise TaskError(f"{path}:{number}: not a task: {error}") from error
        found.append(made)
    return found


def write_jsonl(tasks: Iterable[Task], path: str | Path) -> None:
    """Write tasks, one JSON object a line; :func:`read_jsonl` gives them back."""
    Path(path).write_text("".join(f"{line}\n" for line in lines(tasks)), encoding="utf-8")


def lines(tasks: Iterable[Task]) -> list[str]:
    """Write each task as one line of JSON."""
    return [_TASK.dump_json(each).decode() for each in tasks]


def task_of(line: str) -> Task:
    """Read one of these lines.

    Raises:
        ValueError: If it is no task.
    """
    return _TASK.validate_json(line)


_SIMPLE: Mapping[str, Callable[[str], Grader]] = {
    "exact": lambda answer: Exact((answer,)),
    "number": Number,
    "maths": Maths,
    "mention": lambda answer: Mention((answer,)),
}


def _short(row: Mapping[str, Any], source: str) -> Task:
    for name in ("question", "answer"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise ValueError(f"{name} is missing or no text")
    if unknown := sorted(row.keys() - {"question", "answer", "family", "grader", "split"}):
        raise ValueError(f"unknown: {', '.join(unknown)}")
    grader = row.get("grader", "exact")
    if grader not in _SIMPLE:
        raise ValueError(f"no grader {grader!r}; there are: {', '.join(_SIMPLE)}")
    family = str(row.get("family", source))
    split = Split(row.get("split") or split_of(family, plain(row["question"])))
    return task(
        family, row["question"], _SIMPLE[grader](row["answer"]), answer=row["answer"], split=split
    )


def hub(
    name: str,
    count: int,
    *,
    question: str = "question",
    answer: str = "answer",
    grader: Literal["exact", "number", "maths"] = "exact",
    of: str = "train",
    config: str | None = None,
    split: Split = Split.TRAIN,
) -> list[Task]:
    """Take tasks from a Hugging Face dataset, or from a folder or file of its forms.

    Rows are streamed: only what is looked at is downloaded.

    Args:
        name: On the hub, such as ``openai/gsm8k``, or a local folder.
        count: How many of the split wanted, or fewer if it has no more.
        question: Column of the question.
        answer: Column of the answer; of GSM8K's form ``... #### 42``, what follows the last mark.
        grader: How answers are compared.
        of: The dataset's own split to read from.
        config: The dataset's configuration, if it has several.
        split: Of ours, by the question's content.

    Raises:
        TaskError: If the dataset can't be had, or has no such column.
    """
    try:
        import datasets
    except ImportError as error:
        raise TaskError("datasets is missing: pip install 'conductor-lm[train]'") from error
    try:
        rows: Iterator[Mapping[str, Any]] = iter(
            datasets.load_dataset(name, config, split=of, streaming=True)
        )
        found: dict[str, Task] = {}
        for row in rows:
            if missing := [column for column in (question, answer) if column not in row]:
                raise TaskError(f"{name} has no column {missing[0]!r}; it has: {', '.join(row)}")
            asked, right = str(row[question]), str(row[answer]).rpartition("####")[2].strip()
            if split_of(name, plain(asked)) is split:
                made = task(name, asked, _SIMPLE[grader](right), answer=right, split=split)
                found.setdefault(made.id, made)
            if len(found) == count:
                break
    except TaskError:
        raise
    except Exception as error:  # network, authorisation, format: datasets has no common type
        raise TaskError(f"{name}: {type(error).__name__}: {error}") from error
    return list(found.values())


# --- sources by name ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a Hugging Face dataset has what; as :func:`hub`."""

    question: str = "question"
    answer: str = "answer"
    grader: Literal["exact", "number", "maths"] = "exact"
    of: str = "train"
    config: str | None = None


def gather(
    sources: Sequence[str],
    count: int,
    *,
    split: Split = Split.TRAIN,
    wording: Wording = "trained",
    seed: int = 0,
    columns: Columns = Columns(),
) -> list[Task]:
    """Take tasks from sources by name, each once.

    Args:
        sources: Families or chains (as :func:`draw`), ``all`` of these but votes, the families that
            deciders are ``trained`` on, the ``reserved`` ones, ``chains``, ``gym:NAME`` of
            reasoning-gym, ``hub:NAME`` of the Hugging Face hub, or JSONL files.
        count: Most tasks of each family or source; those that have fewer give what they have.
        split: Of which split.
        wording: Phrasings of our own families.
        seed: Chooses the items of what is generated.
        columns: Of Hugging Face datasets.

    Raises:
        TaskError: If a source is unknown, can't be read or has no task of this split.
        GraderError: If what a source takes is not installed.
    """
    found: dict[str, Task] = {}
    for source in sources:
        taken = _taken(source, count, split, wording, seed, columns)
        if not taken:
            raise TaskError(f"{source}: no task is of the {split} split")
        found.update((each.id, each) for each in taken)
    return list(found.values())


def held_back(
    sources: Sequence[str],
    count: int,
    *,
    split: Split = Split.TRAIN,
    seed: int = 0,
    columns: Columns = Columns(),
) -> list[Task]:
    """Take what the sources keep for later use than a split: validation and test, or test alone.

    Args are those of :func:`gather`; so many tasks at most are taken of each.
    """
    later = [Split.TEST, Split.VALIDATION] if split is Split.TRAIN else [Split.TEST]
    return [
        each
        for source in sources
        for kept in later
        for each in _taken(source, count, kept, "all", seed, columns)
    ]


def _taken(
    source: str, count: int, split: Split, wording: Wording, seed: int, columns: Columns
) -> list[Task]:
    own = [*FAMILIES, *CHAINS]
    sets = {
        "all": own,
        "trained": [each.name for each in FAMILIES.values() if not each.reserved],
        "reserved": [each.name for each in FAMILIES.values() if each.reserved],
        "chains": list(CHAINS),
    }
    if source in sets or source.removeprefix(VOTED) in own:
        names = sets.get(source, [source])
        return [
            each
            for name in names
            for each in draw(name, count, split=split, wording=wording, seed=seed, fewer=True)
        ]
    kind, _, name = source.partition(":")
    if kind == "gym" and name:
        return gym(name, count, split=split, seed=seed)
    if kind == "hub" and name:
        return hub(
            name,
            count,
            question=columns.question,
            answer=columns.answer,
            grader=columns.grader,
            of=columns.of,
            config=columns.config,
            split=split,
        )
    if source.endswith((".jsonl", ".json")) or Path(source).is_file():
        return [each for each in read_jsonl(source) if each.split is split][:count]
    told = f"{', '.join(own)}; or {', '.join(sets)}, gym:NAME, hub:NAME, FILE.jsonl"
    raise TaskError(f"no tasks are called {source!r}; there are: {told}")


# --- keeping sets apart ---------------------------------------------------------------------------

_WINDOW = 13
"""Words in a row that two questions share only if one is copied from the other; GPT-3's choice."""


def plain(question: str) -> str:
    """Reduce a question to its words and numbers, so that layout and case make no difference."""
    return " ".join(re.findall(r"\w+", question.casefold()))


def without(tasks: Iterable[Task], evaluation: Iterable[Task]) -> list[Task]:
    """Leave out what is asked, or quoted at length, in an evaluation set; and repetitions.

    Two questions are the same if their words are, or if 13 words in a row are.
    """
    seen: set[str] = set()
    windows: set[str] = set()
    for each in evaluation:
        words = plain(each.question)
        seen.add(words)
        windows |= _windows(words)
    kept = []
    for each in tasks:
        words = plain(each.question)
        if words not in seen and not (_windows(words) & windows):
            kept.append(each)
        seen.add(words)
    return kept


def _windows(words: str) -> set[str]:
    each = words.split()
    return {" ".join(each[at : at + _WINDOW]) for at in range(len(each) - _WINDOW + 1)}


_TASK: TypeAdapter[Task] = TypeAdapter(Task)
_GRADER: TypeAdapter[Grader] = TypeAdapter(Grader)
