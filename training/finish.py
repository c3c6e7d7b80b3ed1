"""The last stage of a Conductor's training: more words, and teams of those that it would name.

GRPO learns whom to name best where one player answers a question, and on few phrasings, since its
updates are dear. SFT on plans of the Conductor's own makes more of that. Questions come in many
phrasings (``varied``). A composed one is taken apart into its parts, each done by whom the
Conductor would name if the part were the question; another is handed on to whom it would name if
the question came in words that it knows. So nothing new is learned about who is good at what: skill
at one step is put together to skill at several.

Before GRPO of two rounds (recursion) the same teaches the form of second ones. A Conductor that was
trained on single rounds plans whenever it is asked, so it never samples the word that keeps an
answer, and GRPO cannot reward what is never sampled. Some plans then count as carried out, and the
answer is kept or a step given to somebody else, by lot, whatever the reply: when to do which is
left to GRPO to find out.

This is self-distillation with the form of the plan given (on born-again networks: Furlanello et
al., ICML 2018, arXiv 1805.04770), and GRPO's record says nothing of it: it has a record of its own,
``training.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from conductor.prompt import KEEP, brief_messages, plan_text, revision_messages
from grammar import parse
from runtime import prompt_ids

from .cold_start import offered, questions
from .sft import Lesson, SFTRecipe, adapt, adapted_model
from .tasks import Task, in_a_row
from .trie import scores_of


@dataclass(frozen=True, slots=True)
class Finish:
    """How a Conductor is finished."""

    updates: int = 70
    batch: int = 8
    """Plans of an update."""
    composed: float = 0.45
    """Share of composed questions. With 0.7 simple ones in new phrasings were taken apart, too."""
    fewest: int = 4
    """Fewest workers that a question offers; more, up to all, are as likely."""
    seed: int = 0
    second: float = 0.0
    """Share of plans that a second round follows, which is what is learned then."""


_FEWEST = 100
"""Questions that are drawn at least: of fewer, some kinds would have none."""
_OFTEN = 4
"""How often the same is asked, in phrasings drawn for each: whom to name is then chosen once."""
_AT_ONCE = 16
"""Tasks whose plans are chosen together."""


def own_plans(
    model: Any, tokenizer: Any, asked: Sequence[tuple[Task, Sequence[int]]], workers: int
) -> Iterator[Lesson]:
    """Give tasks with plans whose workers are those that a Conductor itself would name.

    It is asked in the words that it knows (``Task.alone``): a composed task is taken apart into its
    parts, each done by whom it finds most likely where the part is a question by itself, with what
    earlier parts give; another is handed on to whom it finds most likely. Everybody is there when
    it is asked, once a question; who is not for a task is left out afterwards.

    Args:
        model: The Conductor, a causal LM with its body in ``model.model``.
        tokenizer: Its tokenizer.
        asked: Tasks, and who is there.
        workers: How many the roster has.
    """
    known: dict[str, list[float]] = {}
    for at in range(0, len(asked), _AT_ONCE):
        some = asked[at : at + _AT_ONCE]
        heard = dict.fromkeys(question for task, _ in some for question in task.alone)
        new = [question for question in heard if question not in known]
        known.update(zip(new, _likelihoods(model, tokenizer, new, workers), strict=True))
        for task, there in some:
            named = [max(there, key=known[question].__getitem__) for question in task.alone]
            plan = in_a_row(task.usual_subtasks if task.parts else ["{query}"], named)
            yield brief_messages(task.question, there), plan_text(plan)


def written_plans(
    model: Any, tokenizer: Any, asked: Sequence[tuple[Task, Sequence[int]]]
) -> Iterator[Lesson]:
    """Give tasks with the plans that a finished Conductor writes for them, form given.

    Each step is done by whom it finds most likely there, after those that it named before. Asked
    about a part alone it may not know that any more: parts like "Write the digits of 80 backward."
    are nothing that the last stage asks by themselves.

    Args:
        model: The Conductor, a causal LM with its body in ``model.model``.
        tokenizer: Its tokenizer.
        asked: Tasks, and who is there.
    """
    for at in range(0, len(asked), _AT_ONCE):
        some = asked[at : at + _AT_ONCE]
        subtasks = [task.usual_subtasks if task.parts else ["{query}"] for task, _ in some]
        messages = [brief_messages(task.question, there) for task, there in some]
        prompts = [prompt_ids(tokenizer, each) for each in messages]
        named: list[list[int]] = [[] for _ in some]
        for step in range(max(map(len, subtasks))):
            going = [which for which in range(len(some)) if step < len(subtasks[which])]
            rows = [(which, number) for which in going for number in some[which][1]]
            texts = [
                _up_to_worker(tokenizer, subtasks[which], [*named[which], number])
                for which, number in rows
            ]
            totals = _totals(model, [prompts[which] for which, _ in rows], texts)
            likely = dict(zip(rows, totals, strict=True))
            for which in going:
                best = max(some[which][1], key=lambda number: likely[which, number])
                named[which].append(best)
        for asking, parts, workers in zip(messages, subtasks, named, strict=True):
            yield asking, plan_text(in_a_row(parts, workers))


def second_round(lesson: Lesson, there: Sequence[int], reply: str, lot: Random) -> Lesson:
    """What a second round looks like: the answer is kept, or a step given to somebody else, by lot.

    Args:
        lesson: The first round.
        there: Who is there.
        reply: What the plan came to.
        lot: The source of chance.

    Returns:
        What the Conductor is asked in view of the reply, and what it writes.
    """
    asked, text = lesson
    plan = parse(text)
    workers = [step.worker for step in plan]
    at = lot.randrange(len(workers))
    others = [number for number in there if number != workers[at]]
    again = KEEP
    if others and lot.random() < 0.5:
        workers[at] = lot.choice(others)
        again = plan_text(in_a_row(plan.subtasks, workers))
    return revision_messages(asked, text, reply), again


def _likelihoods(
    model: Any, tokenizer: Any, questions: Sequence[str], workers: int
) -> Iterator[list[float]]:
    """How likely it is that the Conductor hands each question on to each worker, in nats."""
    everybody = range(workers)
    prompts = [prompt_ids(tokenizer, brief_messages(each, everybody)) for each in questions]
    texts = [_up_to_worker(tokenizer, ["{query}"], [number]) for number in everybody]
    totals = _totals(model, [each for each in prompts for _ in everybody], texts * len(prompts))
    for at in range(0, len(totals), workers):
        yield totals[at : at + workers]


def _totals(model: Any, prompts: Sequence[list[int]], texts: Sequence[list[int]]) -> list[float]:
    """How likely each text is after its prompt, in nats."""
    import torch

    with torch.inference_mode():
        return [float(logps.sum()) for logps, _ in scores_of(model, prompts, texts)]


def _up_to_worker(tokenizer: Any, subtasks: Sequence[str], named: Sequence[int]) -> list[int]:
    """A plan up to the last worker named so far: the rest hardly differs in likelihood.

    Returns:
        Tokens.
    """
    text = plan_text(in_a_row(subtasks, [*named, *[0] * (len(subtasks) - len(named))]))
    begun = text.index("workers = [") + len("workers = [")
    text = text[:begun] + ", ".join(map(str, named))
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def finish(
    source: Path,
    target: Path,
    workers: int,
    how: Finish = Finish(),
    recipe: SFTRecipe = SFTRecipe(rank=8, rate=1e-3, threads=2),
    *,
    model: str,
    progress: Callable[[str], None] = lambda line: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[float]:
    """Finish a Conductor.

    Args:
        source: The adapter after GRPO.
        target: Where the finished one goes.
        workers: How many the roster has.
        how: On what.
        recipe: How.
        model: A packaged model or a folder.
        progress: Gets a line now and then.
        stop: Is asked after each update whether to stop.

    Returns:
        The loss of each update, in nats; fewer than updates after a stop.
    """
    random = Random(f"finish {how.seed}")  # noqa: S311
    count = how.updates * how.batch
    wanted = max(count, _FEWEST)
    tasks = questions(
        wanted, wording="varied", composed=how.composed, seed=how.seed + 1, often=_OFTEN
    )[:count]
    asked = [(task, offered(random, workers, how.fewest)) for task in tasks]
    plain, _, tokenizer = adapted_model(model, recipe, source)
    lessons = []
    plans = (
        written_plans(plain, tokenizer, asked)
        if how.second
        else own_plans(plain, tokenizer, asked, workers)
    )
    for lesson in plans:
        lessons.append(lesson)
        if stop():
            return []
        if len(lessons) % 100 == 0:
            progress(f"0/{how.updates} chose {len(lessons)} plans of {len(asked)}")
    if how.second:
        replies = [task.answer for task in tasks if task.answer]
        for at, (task, there) in enumerate(asked):
            if random.random() < how.second:
                reply = random.choice([task.answer or replies[0], random.choice(replies)])
                lessons[at] = second_round(lessons[at], there, reply, random)
    random.shuffle(lessons)

    def batch(update: int) -> list[Lesson]:
        return [lessons[(update * how.batch + at) % len(lessons)] for at in range(how.batch)]

    about = {"finish": {"workers": workers, **asdict(how), "plans": len(lessons)}}
    return adapt(
        model,
        batch,
        how.updates,
        target,
        recipe,
        begin=source,
        about=about,
        progress=progress,
        stop=stop,
    )
