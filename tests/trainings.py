"""A training's folder without a training: a bandit in place of the model writes its logs.

Simple questions come first. It chooses forms and workers by lot at first, and more and more as a
table says; the rows are those of training.grpo.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from conductor.prompt import plan_text
from grammar import Plan

ROSTER = ("plain", "calculator", "speller", "sorter", "logician", "teller")
KNOWS = {
    "addition": (1,),
    "geography": (0,),
    "ordering": (3,),
    "relations": (4,),
    "reversal": (2,),
    "sentences": (0,),
    "tally": (5,),
    "addition-mirror": (1, 2),
    "addition-ordering": (1, 3),
    "largest-addition": (3, 1),
    "tally-addition": (5, 1),
}
"""Who has to do what."""
SUBTASKS = {
    "addition-mirror": ("What is {a} + {b}?", "Write the digits of that number backward."),
    "addition-ordering": ("Add {a} and {b}.", "Put that number and {c}, 7 in ascending order."),
    "largest-addition": ("Which number is the largest: {a}, {b}, {c}?", "Add 12 to that number."),
    "tally-addition": ("Which vote is the most frequent: {a}, {a}, {b}?", "Add {c} to that."),
}


def write_training(
    folder: Path, *, updates: int = 80, questions: int = 8, group: int = 8, seed: int = 0
) -> Path:
    """Write ``metrics.jsonl``, ``rollouts.jsonl`` and ``conductor.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    random = Random(seed)
    metrics, rollouts = [], []
    for update in range(updates):
        learned = update / max(1, updates - 1)
        rows = [
            row
            for number in range(questions)
            for row in _group(random, update, number, group, learned)
        ]
        rollouts += rows
        metrics.append(_metrics(random, update, rows, group, learned))
    about = {
        "model": "smollm2-135m-instruct",
        "adapter": ".",
        "roster": list(ROSTER),
        "most_steps": 5,
        "seed": seed,
        "updates": updates,
        "recipe": {
            "pool": "orchestra",
            "engine": "in-process",
            "constrained": False,
            "threads": 2,
            "begin": {"adapter": None, "updates": 100, "batch": 16, "rate": 2e-3, "rank": 8},
            "grpo": {
                "updates": updates,
                "questions": questions,
                "group": group,
                "rate": 5e-4,
                "beta": 0.0,
                "rounds": 1,
                "temperature": 1.0,
            },
        },
        "last": metrics[-1],
    }
    (folder / "conductor.json").write_text(json.dumps(about), encoding="utf-8")
    for name, found in (("metrics", metrics), ("rollouts", rollouts)):
        lines = "".join(json.dumps(row) + "\n" for row in found)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def _group(
    random: Random, update: int, number: int, size: int, learned: float
) -> list[dict[str, Any]]:
    family = random.choice([each for each in KNOWS if learned > 0.3 or each not in SUBTASKS])
    there = sorted(random.sample(range(len(ROSTER)), random.randint(3, len(ROSTER))))
    a, b, c = (random.randint(11, 99) for _ in range(3))
    parts = [each.format(a=a, b=b, c=c) for each in SUBTASKS.get(family, ())]
    question = f"A question of {family} about {a}, {b} and {c}?"
    rows = [
        _row(random, family, question, there, parts, learned)
        | {"update": update, "group": number, "round": 1}
        for _ in range(size)
    ]
    mean = sum(row["reward"] for row in rows) / size
    spread = (sum((row["reward"] - mean) ** 2 for row in rows) / (size - 1)) ** 0.5
    return [row | {"advantage": (row["reward"] - mean) / (spread + 1e-4)} for row in rows]


def _row(
    random: Random,
    family: str,
    question: str,
    there: list[int],
    parts: list[str],
    learned: float,
) -> dict[str, Any]:
    knows = KNOWS[family]
    lot = random.random()
    if len(knows) > 1 and lot < 0.45 + 0.5 * learned:
        subtasks, access, wanted = parts, [[], [0]], list(knows)
    elif lot < 0.9 + 0.08 * learned:
        subtasks, access, wanted = ["{query}"], [[]], [knows[0]]
    elif lot < 0.95 + 0.03 * learned:
        subtasks, access = ["{query}", "Check the reply and give the final answer."], [[], [0]]
        wanted = [knows[0], 0]
    else:
        subtasks, access = ["{query}", "{query}", "Pick the best reply."], [[], [], [0, 1]]
        wanted = [knows[0], knows[0], 0]
    workers = [
        one if one in there and random.random() < learned else random.choice(there)
        for one in wanted
    ]
    valid = random.random() < 0.95 + 0.05 * learned
    apart = len(knows) > 1 and subtasks == parts
    chance = 0.03
    if apart:
        chance = 0.9 if tuple(workers) == knows else 0.03
    elif len(knows) == 1:
        chance = 0.95 if workers[0] == knows[0] else 0.08
        chance *= 0.5 if len(workers) > 1 else 1
    score = float(random.random() < chance) if valid else None
    text = plan_text(Plan.of(subtasks, workers, access))
    return {
        "task": f"{family}-{question[-9:]}",
        "family": family,
        "parts": len(knows),
        "question": question,
        "offered": there,
        "text": text if valid else text[:-9],
        "valid": valid,
        "kept": False,
        "subtasks": subtasks if valid else None,
        "workers": workers if valid else None,
        "access": access if valid else None,
        "score": score,
        "answered": 0.0,
        "reward": 0.5 + 0.5 * score if score is not None else 0.0,
        "answer": None if score is None else ("42" if score else "17"),
    }


def _metrics(
    random: Random, update: int, rows: list[dict[str, Any]], group: int, learned: float
) -> dict[str, Any]:
    valid = [row for row in rows if row["valid"]]
    flat = sum(
        len({row["reward"] for row in rows[at : at + group]}) == 1
        for at in range(0, len(rows), group)
    )
    seconds = random.uniform(26, 34) - 4 * learned
    return {
        "update": update,
        "reward": sum(row["reward"] for row in rows) / len(rows),
        "parse": len(valid) / len(rows),
        "correct": sum(row["score"] for row in valid) / len(valid),
        "flat": flat * group / len(rows),
        "masked": 0,
        "entropy": 0.5 - 0.35 * learned + random.gauss(0, 0.03),
        "steps": sum(len(row["workers"]) for row in valid) / len(valid),
        "tokens": sum(len(row["text"]) / 3 for row in rows) / len(rows),
        "loss": random.gauss(0, 0.02),
        "rate": 5e-4 * (1 - learned),
        "seconds": seconds,
        "generate_s": 0.4 * seconds,
        "reward_s": 0.2 * seconds,
        "learn_s": 0.4 * seconds,
        "calls": 30,
        "cached": 80,
    }
