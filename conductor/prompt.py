"""What the Conductor model is asked. Training and serving call this one function, so the bytes are
the same.

The parts are those of the Conductor paper (role, mechanics, format, examples, question, workers),
in our words, with the examples as turns of the conversation, and much shorter: a small model on a
CPU pays for every token of it. Workers are anonymous ordinals by default, as in the paper, so
that a trained Conductor prefers by reward and not by brand; cards may be shown to a model that was
not trained on the pool.
"""

from __future__ import annotations

from collections.abc import Sequence

from grammar import Plan, PlanError
from runtime import Message, conversation_query

_SYSTEM = """\
You coordinate a team of language models. You never answer a question yourself: you write a plan \
of {bounds} that gets it answered. A plan is three lists of the same length:
subtasks: what each step has to do
workers: the number of the worker that does it
access: the earlier steps whose replies it reads, counted from 0
The reply of the last step is the answer."""

_EXAMPLES: tuple[tuple[str, Plan], ...] = (
    (
        "How many prime numbers are there below 30?",
        Plan.of(
            [
                "List the prime numbers below 30.",
                "Find the primes below 30 with a sieve.",
                "Compare both lists and say how many primes there are.",
            ],
            [1, 0, 1],
            [[], [], [0, 1]],
        ),
    ),
    (
        "Write a haiku about rain.",
        Plan.of(
            [
                "Collect images and sounds of rain.",
                "Write a haiku about rain with the best of them.",
            ],
            [0, 1],
            [[], [0]],
        ),
    ),
    (
        "Is it safe to eat raw eggs?",
        Plan.of(
            [
                "Explain the risks of eating raw eggs.",
                "Explain when raw eggs are safe to eat.",
                "Weigh both sides and answer whether raw eggs are safe to eat.",
            ],
            [0, 1, 0],
            [[], [], [0, 1]],
        ),
    ),
)
"""Out of distribution on purpose: the paper's best variant (its ablation of few-shot examples)."""


_LONGEST_ANSWER = 16_384
"""Characters of an answer that a later round sees, about the 4,096 tokens of the paper's code."""


def plan_messages(
    query: str,
    workers: int,
    *,
    most_steps: int = 5,
    least_steps: int = 1,
    cards: Sequence[str] = (),
) -> tuple[Message, ...]:
    """Build the messages that ask a Conductor model for a plan.

    Args:
        query: What the user asked.
        workers: Size of the pool; workers are numbered from 0.
        most_steps: Longest plan asked for.
        least_steps: Shortest plan asked for.
        cards: What each worker is good at; left out if empty.
    """
    bounds = f"{least_steps} to {most_steps} steps" if least_steps < most_steps else "1 step"
    if least_steps == most_steps > 1:
        bounds = f"{most_steps} steps"
    named = [f"{at}: {card}" if card else str(at) for at, card in enumerate(cards)]
    pool = "; ".join(named) or (f"0 to {workers - 1}" if workers > 1 else "0")
    messages = [Message("system", _SYSTEM.format(bounds=bounds))]
    for question, plan in _EXAMPLES:
        if least_steps <= len(plan) <= most_steps and workers > 1:
            messages.append(Message("user", _ask(question, "0 to 1")))
            messages.append(Message("assistant", plan_text(plan)))
    return (*messages, Message("user", _ask(query, pool)))


def _ask(query: str, workers: str) -> str:
    return f"Question: {query}\nWorkers: {workers}"


def brief_messages(query: str, numbers: Sequence[int]) -> tuple[Message, ...]:
    """Build the messages that ask a *trained* Conductor model for a plan.

    It knows what a plan is, so it is told the query and who is there, and no more: training reads
    the prompt many thousand times.

    Args:
        query: What the user asked.
        numbers: Who may be named: positions in the roster that the model was trained on.
    """
    told = ", ".join(map(str, numbers))
    return Message("system", "Write a plan."), Message("user", f"{query}\nWorkers: {told}")


def repair_messages(asked: tuple[Message, ...], text: str, error: PlanError) -> tuple[Message, ...]:
    """Continue the conversation after a completion that is no plan, with what is wrong with it."""
    problems = "\n".join(f"- {each.message}; {each.hint}" for each in error.diagnostics[:5])
    demand = f"That is not a valid plan:\n{problems}\nWrite the three lists again, corrected."
    return (*asked, Message("assistant", text or "(nothing)"), Message("user", demand))


KEEP = "subtasks = []\nworkers = []\naccess = []\n"
"""What a Conductor writes in a later round to keep the answer."""


def revision_messages(asked: tuple[Message, ...], text: str, answer: str) -> tuple[Message, ...]:
    """Continue the conversation in a later round: the answer so far, to be kept or done better.

    The conversation form of the Conductor paper's trainer: the model sees its own plan and the last
    worker's reply, of which the end counts if it is long.

    Args:
        asked: The conversation up to the plan.
        text: The plan as the model wrote it.
        answer: What it led to.
    """
    if len(answer) > _LONGEST_ANSWER:
        answer = "... " + answer[-_LONGEST_ANSWER:]
    demand = (
        f"The plan was carried out. The reply of its last step:\n{answer}\n[end of reply]\n"
        "If that answers the question, keep it: write three empty lists. If not, write a better "
        "plan; steps that read all steps before them see this reply too."
    )
    return (*asked, Message("assistant", text), Message("user", demand))


def plan_text(plan: Plan, names: Sequence[str] = ()) -> str:
    """Write a plan as the Conductor model does: one line a list, workers by number.

    Args:
        plan: Workers by number, or by name in ``names``.
        names: The pool, in order.
    """
    subtasks = ", ".join(f'"{step.subtask}"' for step in plan)
    numbers = {name: at for at, name in enumerate(names)}
    workers = ", ".join(str(numbers.get(str(step.worker), step.worker)) for step in plan)
    access = ", ".join(str(list(step.access)) for step in plan)
    return f"subtasks = [{subtasks}]\nworkers = [{workers}]\naccess = [{access}]\n"


# --- the router -----------------------------------------------------------------------------------

ROUTER_SYSTEM = """\
You lead a team of experts. Read the question, recognise what kind of task it is, and decide which \
expert should answer it."""
ROUTER_FRAME = """\
Question: {question}

Do not answer it. Which kind of task is it, and who should answer it?"""
"""The user message; the question takes the place of the mark."""
ROUTER_LEAD = "This is a question about:"
"""How the router's own reply would begin. A state that stands before the name of the task's kind
told kinds apart better than one at the end of the question: of questions in phrasings that it was
not trained on, a linear head found all (n = 112) against 0.90, and of kinds that it was not trained
on 0.82 against 0.53 (n = 80)."""


def router_messages(
    conversation: str | Sequence[Message],
    *,
    system: str = ROUTER_SYSTEM,
    frame: str = ROUTER_FRAME,
    lead: str = ROUTER_LEAD,
    thoughts: Sequence[str] = (),
) -> tuple[Message, ...]:
    """Build what a router reads: a system message, a user message, and the beginning of a reply.

    Training and serving call this one function.

    Args:
        conversation: What the user asks; of more than one message, the text of all.
        system: The router's own; a head is trained on one and holds for no other. None if empty.
        frame: The user message, with the mark ``{question}`` where the question goes.
        lead: The beginning of the reply; none if empty.
        thoughts: Ideas of the solvers so far, in the turn loop.
    """
    asked = conversation if isinstance(conversation, str) else conversation_query(conversation)
    parts = [frame.replace("{question}", asked, 1)]
    if thoughts:
        parts.append("Others have worked on it already. Their ideas:")
        for number, thought in enumerate(thoughts, 1):
            tag = f"reference_thought_{number}"
            parts.append(f"<{tag}>\n{thought}\n</{tag}>")
    read = [Message("user", "\n\n".join(parts))]
    if system:
        read.insert(0, Message("system", system))
    if lead:
        read.append(Message("assistant", lead))
    return tuple(read)
