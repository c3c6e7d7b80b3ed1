"""Train a Conductor: a cold start on the form of plans, GRPO on what they come to, a last stage.

    conductor train conductor examples/recipes/conductor-laptop.toml

The first is :mod:`training.cold_start`, the last, where a recipe has it, :mod:`training.finish`.
Between them TRL's GRPOTrainer trains. It is given a dataset (the questions of
:mod:`training.course`), a reward function (plans are carried out by :mod:`training.rollouts`) and
settings: loss "grpo", advantages normalised by group, a KL term only where the recipe has one. The
prompt is the one that serving writes.

On a CPU two things are ours, since arithmetic is the limit there: completions are sampled by
:mod:`training.sampler`, and their log-probabilities come from :mod:`training.trie`. But for
rounding, both compute what TRL would. With ``engine = "trl"`` or ``"vllm"`` TRL does these, too.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from logging import ERROR, getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from pydantic import Field, model_validator

from conductor.config import TRAINED, load_pool
from conductor.prompt import brief_messages, plan_messages, revision_messages
from grammar import decoding_grammar
from runtime import (
    PACKAGED,
    Budget,
    Cache,
    CallCache,
    LocalWorker,
    Message,
    Pool,
    WorkerError,
    fetch,
    prompt_ids,
)
from runtime.local import Precision

from .card import machine, write_card
from .cold_start import ColdStart
from .cold_start import train as train_cold
from .conductor_pictures import draw
from .course import Course, Question, Team
from .finish import Finish, finish
from .learned import read_rows
from .players import MODEL
from .recipes import RecipeError, Table, Told, read
from .rewards import DISCOUNT, Weights, blended, group_of, grouped_advantages
from .rollouts import Rollout, Rollouts, Settings
from .sampler import Allow, sample
from .sft import SFTRecipe, computing, save_adapter
from .trie import scores_of

if TYPE_CHECKING:
    from trl.trainer.grpo_config import GRPOConfig

    from runtime.decode import Grammars

FINISHED = "finished"
"""Folder of the last stage in the output; in it, ``before`` is what GRPO made."""
SECOND = "second"
"""Folder of the adapter that knows the form of second rounds, in the output."""
METRICS, ROLLOUTS = "metrics.jsonl", "rollouts.jsonl"
_TELLING = (
    *("reward", "parse", "correct", "flat", "masked"),
    *("steps", "tokens", "entropy", "seconds", "throughput"),
)
"""Metrics that are summed up at the end."""
_OURS = "output_dir", "logging_dir", "run_name"
"""Settings of TRL that follow from the output."""
_SECOND_BATCH, _SECOND_RATE = 8, 5e-4
_HALF = 0.5
"""Share of second rounds where their form is learned, and of composed questions."""
_WIDEST = 256
"""Most calls that a model in this process answers at once: nobody waits for the first of them."""
_MARK = "complete"
"""File that is written last into a checkpoint: one without it was cut short by a kill."""


class Begin(Table):
    """The cold start; see :mod:`training.cold_start`."""

    adapter: Path | None = None
    """An adapter to begin with instead."""
    updates: int = Field(default=100, ge=0)
    """0: none; the model is trained as it is, in all its weights."""
    batch: int = Field(default=16, ge=1)
    rate: float = Field(default=2e-3, gt=0)
    rank: int = Field(default=8, ge=1)
    composed: float = Field(default=0.4, ge=0, le=1)
    """Share of composed questions; of more than half, simple ones are taken apart as well."""
    second: int = Field(default=0, ge=0)
    """Updates that follow for grpo.rounds = 2, in which the form of second rounds is learned; see
    :mod:`training.finish`."""


class Tasks(Table):
    """What is asked, and of whom."""

    composed: float = Field(default=0.5, ge=0, le=1)
    """Share of composed questions in GRPO."""
    fewest: int = Field(default=3, ge=1)
    """Fewest workers that a question offers; more, up to all, are as likely."""
    simple_first: int = Field(default=0, ge=0)
    """Updates in which no composed questions come, at a third of the cost; what is left of taking
    apart afterwards is in docs/training.md."""
    each: int = Field(default=400, ge=1)
    """Different tasks of a family."""
    wording: Literal["trained", "varied"] = "trained"
    """Phrasings of the questions in GRPO: few of each family, or many more."""
    parts: bool = False
    """Whether what composed questions have parts of is asked alone as well: the largest number, and
    numbers backward, which no decider is asked otherwise."""


class Learning(Table):
    """GRPO."""

    updates: int = Field(default=80, ge=1)
    questions: int = Field(default=8, ge=1)
    """Of an update."""
    group: int = Field(default=8, ge=2)
    """Completions of a question."""
    rate: float = Field(default=5e-4, gt=0)
    """Peak of the learning rate; it rises over the first updates and falls linearly to 0."""
    warm_up: int = Field(default=3, ge=0)
    """Updates over which the rate rises."""
    layers_from: int = Field(default=0, ge=0)
    """The first layer whose part of the adapter is trained. Backward passes end there."""
    temperature: float = Field(default=1.0, gt=0)
    most_tokens: int = Field(default=128, ge=8)
    """Longest completion."""
    beta: float = Field(default=0.0, ge=0)
    """Weight of the KL term; 0: no reference model."""
    entropy: float = Field(default=0.0, ge=0)
    """Weight of the entropy bonus."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""
    rounds: Literal[1, 2] = 1
    """With 2 the Conductor is asked again in view of the first answer (recursion)."""
    discount: float = Field(default=DISCOUNT, ge=0, le=1)
    """What the second round counts for in the first one's reward."""


class Finishing(Table):
    """The last stage; see :mod:`training.finish`."""

    updates: int = Field(default=0, ge=0)
    """0: there is none."""
    batch: int = Field(default=8, ge=1)
    rate: float = Field(default=1e-3, gt=0)
    composed: float = Field(default=0.45, ge=0, le=1)
    """Share of composed questions."""


class Running(Table):
    """How plans are carried out."""

    most_steps: int = Field(default=5, ge=1)
    retries: int = Field(default=1, ge=0)
    calls: int | None = Field(default=None, ge=1)
    """Most calls of a plan."""
    tokens: int | None = Field(default=None, ge=1)
    """Most tokens of a plan."""
    parts: float = Field(default=0.0, ge=0, le=0.5)
    """Added to the reward of a wrong answer if a step before the last was right about each part of
    a composed question that comes before its last."""
    cost: float = Field(default=0.0, ge=0)
    """Taken off the reward for a tenth of a cent."""
    length: float = Field(default=0.0, ge=0)
    """Taken off the reward for each token of the completion."""
    alone: int = Field(default=0, ge=0)
    """Updates between measurements of the throughput as a share of what the workers alone can do:
    the calls of one are made anew, without plans. 0: it is not measured."""
    cache: Path | None = None
    """Workers' replies to use instead of calls; ``calls.db`` in the output if there is none."""


class Recipe(Table):
    """All that decides what Conductor comes out."""

    output: Path
    """Its folder."""
    pool: str = "orchestra"
    """The pool file of the workers, or ``orchestra``."""
    roster: tuple[str, ...] = ()
    """Who may be named, in the order of the numbers in plans; the pool in its order if empty."""
    model: str = MODEL
    """A packaged model, a folder in Hugging Face form, or a name on its hub."""
    seed: int = Field(default=0, ge=0)
    engine: Literal["in-process", "trl", "vllm"] = "in-process"
    """Who samples: we on a CPU, TRL (transformers), or vLLM on GPUs."""
    prompt: Literal["brief", "full"] = "brief"
    """What it is asked with: the query and who is there; or what a plan is, with examples, as
    models are that were not trained. The second always offers the whole roster."""
    constrained: bool = False
    """Whether to sample under the plan grammar; in-process only. The loss then takes the tokens
    that the grammar forces for chosen ones."""
    threads: int = Field(default=2, ge=1)
    """Of torch."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """What products are computed in, of the model in training and of players of this process:
    bfloat16 is twice as fast on CPUs that have instructions for it, and taken there. Weights,
    gradients and log-probabilities are float32. So is what serves, and replies differ a little."""
    every: int = Field(default=10, ge=1)
    """Updates between checkpoints; the last two are kept."""
    minutes: float | None = Field(default=None, gt=0)
    """Stop after so long, the cold start included; what is there is kept."""
    report_to: tuple[str, ...] = ()
    """Further logs, as transformers knows them: ``tensorboard``, ``trackio``."""
    pictures: bool = True
    """Whether to draw; it takes matplotlib."""
    begin: Begin = Begin()
    tasks: Tasks = Tasks()
    grpo: Learning = Learning()
    run: Running = Running()
    finish: Finishing = Finishing()
    trl: Mapping[str, Any] = Field(default_factory=dict)
    """Further settings of trl.GRPOConfig: GPUs, vLLM, accelerate."""

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        if self.engine != "in-process" and self.constrained:
            raise ValueError('constrained = true takes engine = "in-process"')
        if self.engine != "in-process" and self.grpo.rounds == 2:
            raise ValueError('grpo.rounds = 2 takes engine = "in-process"')
        if self.begin.second and self.grpo.rounds == 1:
            raise ValueError("begin.second takes grpo.rounds = 2")
        if self.begin.second and not (self.begin.updates or self.begin.adapter):
            raise ValueError("begin.second takes an adapter, and begin makes none")
        if self.finish.updates and not (self.begin.updates or self.begin.adapter):
            raise ValueError("finish.updates takes an adapter, and begin makes none")
        return self

    def asked(self, question: str, offered: Sequence[int]) -> tuple[Message, ...]:
        """What the Conductor is asked: what serving asks it.

        Args:
            question: The query.
            offered: Who is there.
        """
        if self.prompt == "brief":
            return brief_messages(question, offered)
        return plan_messages(question, len(offered), most_steps=self.run.most_steps)


def read_recipe(path: str | Path, changes: Sequence[str] = (), **given: Any) -> Recipe:
    """Read a recipe; arguments and errors as :func:`training.recipes.read`."""
    return read(Recipe, path, changes, **given)


@dataclass(frozen=True, slots=True)
class Trained:
    """What came out."""

    folder: Path
    finished: bool
    """False if it was stopped before; with `resume` it goes on."""
    updates: int
    """Updates of GRPO that are over."""
    last: Mapping[str, float]
    """Means of the last ten updates, by name of the metric; empty if there was none."""


# --- the batch under way --------------------------------------------------------------------------


_Row = tuple[list[int], list[int], list[float]]
"""Prompt and completion as tokens, and the completion's log-probabilities in nats."""
_Item = TypeVar("_Item")


def _allow(grammars: Grammars, grammar: str) -> Allow:
    """Which tokens may follow in a completion, by a decoding grammar."""
    whole = grammars.matcher(grammar)

    def allowed(ids: Sequence[int]) -> np.ndarray:
        matcher = whole.deep_copy()
        matcher.consume_tokens(list(ids))
        return grammars.allowed(matcher)

    return allowed


class _Play:
    """What TRL calls: rows of the dataset, completions, rewards. Keeps the logs."""

    def __init__(
        self,
        recipe: Recipe,
        course: Course,
        rollouts: Rollouts,
        roster: Sequence[str],
        tokenizer: Any,
        decoder: Any,
    ) -> None:
        self.recipe, self.course, self.rollouts = recipe, course, rollouts
        self.numbers = {name: at for at, name in enumerate(roster)}
        self.tokenizer = tokenizer
        self.row: dict[str, Any] = {}
        """Of the metrics, of the update under way."""
        self._took: dict[str, float] = {}
        self._decoder = decoder
        self._grammars: Grammars | None = None

    # --- dataset ---

    def rows(self, batch: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
        """Turn numbers of rows into prompts and questions: the transform of the dataset."""
        how = self.recipe.grpo
        questions, rounds = [], []
        for slot in batch["slot"]:
            place, number = divmod(slot, how.rounds)
            update, group = divmod(place, how.questions)
            questions.append(self.course.update(update)[group])
            rounds.append(number + 1)
        prompts = [
            [
                {"role": each.role, "content": each.content}
                for each in self.recipe.asked(question.task.question, question.offered)
            ]
            for question in questions
        ]
        return {"prompt": prompts, "question": questions, "round": rounds}

    # --- completions ---

    def generate(self, prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        """Sample the completions of an update: TRL's ``rollout_func``."""
        how, began = self.recipe.grpo, time.perf_counter()
        update = trainer.state.global_step
        questions = self.course.update(update)
        _follow(self._decoder, trainer.accelerator.unwrap_model(trainer.model))
        firsts = self._sample(
            questions,
            [self.recipe.asked(each.task.question, each.offered) for each in questions],
            [(self.recipe.seed, update, each.group) for each in questions],
            count=how.group,
        )
        rows = [each for of in firsts for each in of]
        extra: dict[str, list[Any]] = {}
        if how.rounds == 2:
            rows, extra = self._twice(update, questions, rows, trainer.async_loop)
        self._took["generate_s"] = time.perf_counter() - began
        return {**_told(rows), **extra}

    def _twice(
        self, update: int, questions: Sequence[Question], firsts: Sequence[_Row], loop: Any
    ) -> tuple[list[_Row], dict[str, list[Any]]]:
        """Carry first rounds out, and sample a second one in view of each answer.

        Returns:
            First and second rounds of each question in turn, since TRL wants groups side by side;
            and what else their rows say: the first round that a row is or follows, None where no
            second round was, and which tokens count. A row must be there all the same.
        """
        size = self.recipe.grpo.group
        asked = [
            (questions[at // size].task, questions[at // size].offered, self._text(ids))
            for at, (_, ids, _) in enumerate(firsts)
        ]
        play = self.rollouts.play(asked, tokens=[len(ids) for _, ids, _ in firsts])
        played = asyncio.run_coroutine_threadsafe(play, loop).result()
        again = {
            at: revision_messages(
                self.recipe.asked(each.task.question, each.offered), each.text, each.run.answer
            )
            for at, each in enumerate(played)
            if each.run is not None and each.run.answer is not None and each.reward is not None
        }
        sampled = self._sample(
            [questions[at // size] for at in again],
            list(again.values()),
            [(self.recipe.seed, update, at // size, at % size) for at in again],
            keep=True,
        )
        found = {at: row for at, (row,) in zip(again, sampled, strict=True)}
        blank = [self.tokenizer.eos_token_id], [0.0]
        seconds = [found.get(at, (prompt, *blank)) for at, (prompt, _, _) in enumerate(firsts)]
        followed = [each if at in found else None for at, each in enumerate(played)]
        counted = [[1] * len(ids) for _, ids, _ in firsts]
        masked = [[int(at in found)] * len(ids) for at, (_, ids, _) in enumerate(seconds)]
        return _by_turns(firsts, seconds, size), {
            "first": _by_turns(played, followed, size),
            "env_mask": _by_turns(counted, masked, size),
        }

    def _sample(
        self,
        questions: Sequence[Question],
        asked: Sequence[tuple[Message, ...]],
        seeds: Sequence[Sequence[int]],
        *,
        count: int = 1,
        keep: bool = False,
    ) -> list[list[_Row]]:
        """Sample completions, by question."""
        if not questions:
            return []
        how = self.recipe.grpo
        prompts = [prompt_ids(self.tokenizer, each) for each in asked]
        allow: list[Allow] = []
        if self.recipe.constrained:
            from runtime.decode import Grammars

            most_steps = self.recipe.run.most_steps
            if self._grammars is None:
                self._grammars = Grammars(self.tokenizer, self._decoder.config.vocab_size)
            allow = [
                _allow(
                    self._grammars,
                    decoding_grammar(each.offered, most_steps=most_steps, keep=keep),
                )
                for each in questions
            ]
        found = sample(
            self._decoder,
            prompts,
            seeds,
            count=count,
            ends=frozenset([self.tokenizer.eos_token_id]),
            most_tokens=how.most_tokens,
            temperature=how.temperature,
            allow=allow,
        )
        return [
            [(prompt, each.ids, each.logps) for each in of]
            for prompt, of in zip(prompts, found, strict=True)
        ]

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    # --- rewards ---

    async def reward(
        self,
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        question: Sequence[Question],
        trainer_state: Any,
        first: Sequence[Rollout | None] = (),
        **_: Any,
    ) -> list[float | None]:
        """Carry out, grade and log the completions of an update: TRL's reward function."""
        how, began = self.recipe.grpo, time.perf_counter()
        update = trainer_state.global_step
        texts = [each[-1]["content"] or "" for each in completions]
        tokens = [len(each) for each in completion_ids]
        rounds = [1 + at // how.group % how.rounds for at in range(len(texts))]
        if how.rounds == 1:
            asked = [
                (each.task, each.offered, text) for each, text in zip(question, texts, strict=True)
            ]
            played: list[Rollout | None] = list(await self.rollouts.play(asked, tokens=tokens))
        else:
            played = await self._play_again(rounds, first, texts, tokens)
        summary = self.rollouts.summary
        rewards = [each.total if each else None for each in played]
        for at, number in enumerate(rounds):
            # A first round that no second followed keeps its reward.
            if number == 2 and played[at] is not None:
                before = at - how.group
                rewards[before] = blended(rewards[before], rewards[at], how.discount)
        groups = [at // how.group for at in range(len(texts))]
        gained = grouped_advantages(groups, rewards)
        rows = [
            _logged(question[at], texts[at], played[at], self.numbers)
            | {"update": update, "group": groups[at], "round": rounds[at]}
            | {"reward": rewards[at], "advantage": gained[at]}
            for at in range(len(texts))
        ]
        with (self.recipe.output / ROLLOUTS).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(each, ensure_ascii=False) + "\n" for each in rows)
        self._count(update, question, rewards, rows, tokens)
        self.row |= {"calls": summary.calls, "cached": summary.cached}
        self._took["reward_s"] = time.perf_counter() - began
        every = self.recipe.run.alone
        if every and update % every == 0 and summary.calls:
            last = zip(played, rounds, strict=True)
            await self._alone([each for each, of in last if each and of == how.rounds])
        return rewards

    async def _alone(self, played: Sequence[Rollout]) -> None:
        """Measure and log the share of the workers' own throughput that the last batch had."""
        summary, began = self.rollouts.summary, time.perf_counter()
        with suppress(WorkerError):  # who fails now is no reason to end a training
            self.row["throughput"] = round(summary.share(await self.rollouts.alone(played)), 4)
        self._took["alone_s"] = time.perf_counter() - began

    async def _play_again(
        self,
        rounds: Sequence[int],
        first: Sequence[Rollout | None],
        texts: Sequence[str],
        tokens: Sequence[int],
    ) -> list[Rollout | None]:
        """The first rounds as they were carried out, and the second ones, None where none was."""
        played = [each if of == 1 else None for each, of in zip(first, rounds, strict=True)]
        begun = {at: each for at, each in enumerate(first) if rounds[at] == 2 and each}
        again = await self.rollouts.play_again(
            list(begun.values()),
            [texts[at] for at in begun],
            tokens=[tokens[at] for at in begun],
        )
        for at, rollout in zip(begun, again, strict=True):
            played[at] = rollout
        return played

    def _count(
        self,
        update: int,
        question: Sequence[Question],
        rewards: Sequence[float | None],
        rows: Sequence[Mapping[str, Any]],
        tokens: Sequence[int],
    ) -> None:
        """Begin the update's row of the metrics; tell the course who was right."""
        size = self.recipe.grpo.group
        groups: dict[str, list[list[Mapping[str, Any]]]] = {}
        flat = 0
        for at in range(0, len(rows), size):
            flat += group_of(rewards[at : at + size]).flat
            known = [each for each in rows[at : at + size] if each["reward"] is not None]
            groups.setdefault(question[at].task.family, []).append(known)
        teams = {family: _teams(of) for family, of in groups.items()}
        self.course.note(update, teams)
        earned = [each for each in rewards if each is not None]
        written = [each for each in rows if each["valid"] is not None]
        steps = [len(each["workers"]) for each in rows if each["workers"]]
        self.row = {
            "update": update,
            "reward": _mean(earned),
            "parse": _mean([bool(each["valid"]) for each in written]),
            "correct": _mean([each["score"] >= 1 for each in rows if each["score"] is not None]),
            "flat": flat * size / len(rows),
            "masked": len(rewards) - len(earned),
            "steps": _mean(steps),
            "tokens": _mean(tokens),
            "teams": teams,
        }

    def close(self, logs: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """End the update's row with what TRL tells, and write it."""
        took = dict(self._took)
        took["learn_s"] = max(0.0, seconds - sum(took.values()))
        self.row |= {
            "entropy": logs.get("entropy"),
            "loss": logs.get("loss"),
            "gradient": logs.get("grad_norm"),
            "rate": logs.get("learning_rate"),
            "flat_by_trl": logs.get("frac_reward_zero_std"),
            "seconds": round(seconds, 3),
            **{name: round(value, 3) for name, value in took.items()},
        }
        with (self.recipe.output / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.row) + "\n")
        self._took = {}
        return self.row


def _teams(groups: Sequence[Sequence[Mapping[str, Any]]]) -> list[Team]:
    """Who was right about a family, by the rows of its groups: of each group the smallest team."""
    right = [[each for each in of if (each["score"] or 0) >= 1] for of in groups]
    teams = [[tuple(sorted(set(each["workers"] or ()))) for each in of] for of in right]
    return [min(of, key=lambda team: (len(team), team)) for of in teams if of]


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means of a few rows of the metrics."""
    found = {}
    for name in _TELLING:
        mean = _mean([row[name] for row in rows if row.get(name) is not None])
        if mean is not None:
            found[name] = round(mean, 4)
    return found


def _by_turns(ones: Sequence[_Item], others: Sequence[_Item], size: int) -> list[_Item]:
    """So many of the first, as many of the second, the next of the first, and so on."""
    begins = range(0, len(ones), size)
    return [each for at in begins for of in (ones, others) for each in of[at : at + size]]


def _told(rows: Iterable[_Row]) -> dict[str, Any]:
    prompts, ids, logps = zip(*rows, strict=True)
    return {"prompt_ids": list(prompts), "completion_ids": list(ids), "logprobs": list(logps)}


def _logged(
    question: Question, text: str, rollout: Rollout | None, numbers: Mapping[str, int]
) -> dict[str, Any]:
    """A completion's row of the rollouts; ``rollout`` is None where none was asked for."""
    plan = rollout.plan if rollout else None
    run = rollout.run if rollout else None
    return {
        "task": question.task.id,
        "family": question.task.family,
        "parts": max(1, len(question.task.parts)),
        "question": question.task.question,
        "offered": list(question.offered),
        "text": text,
        "valid": rollout.outcome.valid if rollout else None,
        "kept": bool(rollout and rollout.kept),
        "subtasks": list(plan.subtasks) if plan else None,
        "workers": [numbers[str(step.worker)] for step in plan] if plan else None,
        "access": [list(step.access) for step in plan] if plan else None,
        "score": rollout.outcome.score if rollout and rollout.outcome.valid else None,
        "answered": rollout.outcome.parts if rollout else None,
        "answer": run.answer if run else None,
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


# --- the model ------------------------------------------------------------------------------------


def _causal(model: Any) -> Any:
    """The causal LM in what PEFT may have wrapped around it."""
    return model.base_model.model if hasattr(model, "peft_config") else model


def _follow(decoder: Any, policy: Any) -> None:
    """Give the model that samples the weights of the one in training, its adapter merged in.

    Two models, since a merge in place would not be exactly undone.
    """
    import torch
    from peft.tuners.lora import Linear

    with torch.no_grad():
        for name, module in _causal(policy).named_modules():
            if isinstance(module, Linear):
                plain: Any = module.get_base_layer()
                merged = plain.weight + module.get_delta_weight("default")
                decoder.get_submodule(name).weight.copy_(merged)
        if not hasattr(policy, "peft_config"):
            for weight, trained in zip(decoder.parameters(), policy.parameters(), strict=True):
                weight.copy_(trained)


def _plain(recipe: Recipe, dtype: str) -> Any:
    """The model without an adapter."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(_folder(recipe), dtype=dtype)
    model.train(False)
    return model


def _folder(recipe: Recipe) -> str:
    return str(fetch(recipe.model)) if recipe.model in PACKAGED else recipe.model


def _loaded(recipe: Recipe, adapter: Path | None) -> tuple[Any, Any]:
    """Model and tokenizer, with the adapter to go on with."""
    from peft import PeftModel
    from transformers import AutoTokenizer, logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer: Any = AutoTokenizer.from_pretrained(_folder(recipe))
    model = _plain(recipe, "float32" if recipe.engine == "in-process" else "auto")
    if adapter is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT asks transformers for what it renames
            model = PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
            # By the name of a packaged model PEFT would look for it on the hub at each checkpoint.
            model.peft_config["default"].base_model_name_or_path = _folder(recipe)
    return model, tokenizer


def precision_of(recipe: Recipe) -> Precision:
    """What this machine multiplies in."""
    import torch

    if recipe.precision != "auto":
        return recipe.precision
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"


def _freeze(model: Any, layers_from: int) -> None:
    """Leave the adapter's lower layers as they are."""
    for name, weight in model.named_parameters():
        parts = name.split(".layers.")
        if len(parts) == 2 and weight.requires_grad:
            weight.requires_grad_(int(parts[1].split(".")[0]) >= layers_from)


def _trainer_of(recipe: Recipe) -> Any:
    """TRL's trainer; in this process with log-probabilities of ours."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    class Trainer(GRPOTrainer):
        def create_optimizer(self, *args: Any, **more: Any) -> Any:
            # Here, since a checkpoint that is loaded makes the whole adapter trainable.
            _freeze(self.model, recipe.grpo.layers_from)
            return super().create_optimizer(*args, **more)

    class InProcess(Trainer):
        def _get_per_token_logps_and_entropies(
            self,
            model: Any,
            input_ids: Any,
            attention_mask: Any,
            logits_to_keep: int,
            **_: Any,
        ) -> tuple[Any, Any, None]:
            import torch

            if torch.is_grad_enabled():
                # PEFT makes all of an adapter trainable when it comes back from another one.
                _freeze(self.model, recipe.grpo.layers_from)
            prompts, completions = [], []
            for row, mask in zip(input_ids, attention_mask.bool(), strict=True):
                prompts.append(row[:-logits_to_keep][mask[:-logits_to_keep]].tolist())
                completions.append(row[-logits_to_keep:][mask[-logits_to_keep:]].tolist())
            with computing(precision_of(recipe)):
                found = scores_of(
                    _causal(self.accelerator.unwrap_model(model)),
                    prompts,
                    completions,
                    self.temperature,
                )
            pad = torch.nn.utils.rnn.pad_sequence
            logps, entropies = (
                torch.nn.functional.pad(each, (0, logits_to_keep - each.shape[1]))
                for each in (
                    pad([logps for logps, _ in found], batch_first=True),
                    pad([entropies for _, entropies in found], batch_first=True),
                )
            )
            return logps, entropies, None

    return InProcess if recipe.engine == "in-process" else Trainer


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep from the terminal what transformers, TRL and PEFT warn of and users can't change."""
    from transformers import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    # It tells at length of each completion that is masked; the metrics count them.
    trl = getLogger("trl")
    level = trl.level
    trl.setLevel(ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You are using 'rollout_func'")
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
            yield
    finally:
        logging.set_verbosity(before)
        trl.setLevel(level)


def config_of(recipe: Recipe) -> GRPOConfig:
    """The settings that TRL is given.

    Raises:
        RecipeError: If TRL does not take one of those in ``[trl]``.
    """
    import torch
    from trl.trainer.grpo_config import GRPOConfig

    how = recipe.grpo
    batch = how.questions * how.group * how.rounds
    settings: dict[str, Any] = {
        "output_dir": str(recipe.output / "checkpoints"),
        "per_device_train_batch_size": batch,
        "num_generations": how.group,
        "max_completion_length": how.most_tokens,
        "temperature": how.temperature,
        "max_steps": how.updates,
        "learning_rate": how.rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": how.warm_up,
        "max_grad_norm": how.clip,
        "weight_decay": 0.0,
        "beta": how.beta,
        "entropy_coef": how.entropy,
        "loss_type": "grpo",
        "scale_rewards": "group",
        "num_iterations": 1,
        "shuffle_dataset": False,
        "disable_dropout": True,
        "logging_steps": 1,
        "save_steps": recipe.every,
        "save_total_limit": 2,
        "report_to": list(recipe.report_to) or "none",
        "seed": recipe.seed,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": torch.cuda.is_available(),
        "activation_checkpointing": torch.cuda.is_available(),
        "use_vllm": recipe.engine == "vllm",
        "disable_tqdm": True,
    }
    try:
        with _hushed():
            return GRPOConfig(**settings | dict(recipe.trl))
    except (TypeError, ValueError) as error:
        raise RecipeError(f"[trl]: {error}") from error


# --- training -------------------------------------------------------------------------------------


def outline(recipe: Recipe) -> list[str]:
    """Lines that say what a recipe will do, and what TRL is told.

    Raises:
        PoolError: If the pool is wrong.
        RecipeError: If TRL does not take a setting.
    """
    pool = load_pool(recipe.pool)
    roster = recipe.roster or pool.names
    for name in roster:
        pool[name]
    how = recipe.grpo
    size = how.questions * how.group * how.rounds
    config = config_of(recipe)
    with _hushed():
        plain = type(config)(output_dir=".", use_cpu=True, bf16=False)
    told = {
        each.name: getattr(config, each.name)
        for each in fields(config)
        if each.init and each.name not in _OURS
    }
    told = {name: value for name, value in told.items() if value != getattr(plain, name)}
    rounds = " in two rounds" if how.rounds == 2 else ""
    return [
        f"roster: {', '.join(f'{at} {name}' for at, name in enumerate(roster))}",
        f"cold start: {recipe.begin.adapter or f'{recipe.begin.updates} updates'}",
        *[f"the form of second rounds: {recipe.begin.second} updates"] * bool(recipe.begin.second),
        f"GRPO: {how.updates} updates of {how.questions} questions with {how.group} completions "
        f"each{rounds}, {how.updates * size:,} in all",
        *[f"last stage: {recipe.finish.updates} updates"] * bool(recipe.finish.updates),
        "told to TRL: " + ", ".join(f"{name} = {value}" for name, value in sorted(told.items())),
    ]


def forget(recipe: Recipe) -> None:
    """Forget a training that was stopped, its cold start included."""
    for name in ("checkpoints", "cold", SECOND, FINISHED):
        shutil.rmtree(recipe.output / name, ignore_errors=True)
    for name in (METRICS, ROLLOUTS):
        (recipe.output / name).unlink(missing_ok=True)


def checkpoint_of(folder: Path) -> tuple[Path | None, int]:
    """The newest whole checkpoint of a training, and how many updates are in it."""
    found = [
        (int(each.name.rpartition("-")[2]), each)
        for each in (folder / "checkpoints").glob("checkpoint-*")
        if (each / _MARK).exists()
    ]
    if not found:
        return None, 0
    updates, path = max(found)
    return path, updates


def _go_back(path: Path, updates: int) -> list[dict[str, Any]]:
    """Leave in a log what is of the first updates; a line that was cut short is not."""
    kept = [row for row in read_rows(path) if row["update"] < updates]
    if path.exists():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        aside = path.with_suffix(".new")
        aside.write_text(lines, encoding="utf-8")
        os.replace(aside, path)
    return kept


def train(
    recipe: Recipe,
    *,
    resume: bool = False,
    pool: Pool | None = None,
    progress: Callable[[Told], None] = lambda told: None,
    stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train a Conductor and write its folder.

    Args:
        recipe: How.
        resume: Go on with a training that was stopped or killed.
        pool: The workers; as the recipe says if None.
        progress: Is told how it goes.
        stop: Is asked after each update whether to stop: what is there is saved.

    Raises:
        RecipeError: If a training is kept there and is not to be gone on with, or TRL does not
            take a setting.
        PoolError: If the pool is wrong, or somebody of the roster is not in it.
    """
    output = recipe.output
    kept, updates = checkpoint_of(output)
    if (output / METRICS).exists() and not resume:
        remedy = "--resume goes on with it, --anew begins again"
        raise RecipeError(f"{output}: a training is kept there; {remedy}")
    output.mkdir(parents=True, exist_ok=True)
    pool = pool if pool is not None else load_pool(recipe.pool)
    roster = recipe.roster or pool.names
    spent = sum(row["seconds"] for row in read_rows(output / METRICS) if row["update"] < updates)
    began = time.monotonic() - spent

    def over() -> bool:
        minutes = (time.monotonic() - began) / 60
        return stop() or (recipe.minutes is not None and minutes >= recipe.minutes)

    adapter = recipe.begin.adapter
    if adapter is None and recipe.begin.updates:
        adapter = output / "cold"
        if not _cold(recipe, len(roster), adapter, progress, over):
            return Trained(output, finished=False, updates=0, last={})
    if adapter is not None and recipe.begin.second:
        begun, adapter = adapter, output / SECOND
        if not _second(recipe, len(roster), begun, adapter, progress, over):
            return Trained(output, finished=False, updates=0, last={})
    return _learn(recipe, pool, roster, adapter, kept, updates, progress, over)


def _cold(
    recipe: Recipe,
    workers: int,
    folder: Path,
    progress: Callable[[Told], None],
    stop: Callable[[], bool],
) -> bool:
    """Let the cold start come first, unless that was done; tell whether it is."""
    how = recipe.begin
    if (folder / "training.json").exists():
        return True
    cold = ColdStart(
        updates=how.updates,
        batch=how.batch,
        composed=how.composed,
        fewest=recipe.tasks.fewest,
        seed=recipe.seed,
    )
    sft = SFTRecipe(
        rank=how.rank,
        rate=how.rate,
        seed=recipe.seed,
        threads=recipe.threads,
        precision=precision_of(recipe),
    )
    heard = _heard("cold", how.updates, progress)
    losses = train_cold(folder, workers, cold, sft, model=recipe.model, progress=heard, stop=stop)
    return len(losses) == how.updates


def _heard(
    stage: Literal["cold", "second", "finish"], updates: int, progress: Callable[[Told], None]
) -> Callable[[str], None]:
    """Tell that a stage of SFT begins; what is returned passes its lines on."""

    def heard(line: str) -> None:
        done, _, text = line.partition(" ")
        progress(Told(stage, int(done.partition("/")[0]), updates, text))

    progress(Told(stage, 0, updates))
    return heard


def _second(
    recipe: Recipe,
    workers: int,
    source: Path,
    folder: Path,
    progress: Callable[[Told], None],
    stop: Callable[[], bool],
) -> bool:
    """Let the form of second rounds follow, unless that was done; tell whether it is."""
    if (folder / "training.json").exists():
        return True
    how = recipe.begin
    form = Finish(how.second, _SECOND_BATCH, _HALF, recipe.tasks.fewest, recipe.seed, second=_HALF)
    losses = _own(recipe, "second", source, folder, workers, form, _SECOND_RATE, progress, stop)
    return len(losses) == how.second


def _own(
    recipe: Recipe,
    stage: Literal["second", "finish"],
    source: Path,
    folder: Path,
    workers: int,
    how: Finish,
    rate: float,
    progress: Callable[[Told], None],
    stop: Callable[[], bool],
) -> list[float]:
    """SFT on plans of the Conductor's own; see :func:`training.finish.finish`."""
    heard = _heard(stage, how.updates, progress)
    sft = SFTRecipe(
        rate=rate, seed=recipe.seed, threads=recipe.threads, precision=precision_of(recipe)
    )
    return finish(source, folder, workers, how, sft, model=recipe.model, progress=heard, stop=stop)


def _learn(
    recipe: Recipe,
    pool: Pool,
    roster: Sequence[str],
    adapter: Path | None,
    kept: Path | None,
    updates: int,
    progress: Callable[[Told], None],
    stop: Callable[[], bool],
) -> Trained:
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback

    how = recipe.grpo
    rows = _go_back(recipe.output / METRICS, updates)
    _go_back(recipe.output / ROLLOUTS, updates)
    history = [
        {family: [tuple(team) for team in teams] for family, teams in row["teams"].items()}
        for row in rows
    ]
    course = Course(
        len(roster),
        questions=how.questions,
        composed=recipe.tasks.composed,
        fewest=recipe.tasks.fewest if recipe.prompt == "brief" else len(roster),
        tasks=recipe.tasks.each,
        simple_first=recipe.tasks.simple_first,
        wording=recipe.tasks.wording,
        parts=recipe.tasks.parts,
        seed=recipe.seed,
        history=history,
    )
    cache: Cache = CallCache(recipe.run.cache or recipe.output / "calls.db")
    precision = precision_of(recipe)
    for worker in pool:
        if isinstance(worker, LocalWorker):
            worker.model.precision = precision
            worker.model.widest = _WIDEST
    rollouts = Rollouts(
        pool,
        roster,
        cache=cache,
        budget=Budget(calls=recipe.run.calls, tokens=recipe.run.tokens),
        settings=Settings(
            most_steps=recipe.run.most_steps,
            retries=recipe.run.retries,
            weights=Weights(recipe.run.cost, recipe.run.length, recipe.run.parts),
        ),
    )
    # Players keep to half the cores, though nothing else runs meanwhile: where two teams of threads
    # are more than there are cores, OpenMP lets them sleep between products, and waking one takes
    # longer than most of these do (on two cores 3.3 s instead of 2.0 for an update of the last
    # stage).
    torch.set_num_threads(recipe.threads)
    model, tokenizer = _loaded(recipe, adapter)
    decoder = _plain(recipe, precision) if recipe.engine == "in-process" else None
    play = _Play(recipe, course, rollouts, roster, tokenizer, decoder)
    dataset = Dataset.from_dict({"slot": list(range(how.updates * how.questions * how.rounds))})
    dataset.set_transform(play.rows)
    recent: list[dict[str, Any]] = rows[-10:]

    class Watch(TrainerCallback):
        """Logs updates, marks checkpoints, and stops."""

        since = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.since = self.since or time.perf_counter()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if not logs or "loss" not in logs:
                return
            now = time.perf_counter()
            row = play.close(logs, now - self.since)
            self.since = now
            recent.append(row)
            del recent[:-10]
            means = _means(recent)
            told = ("reward", "parse", "correct", "steps", "seconds")
            text = ", ".join(f"{name} {means[name]:.2f}" for name in told if name in means)
            progress(Told("grpo", state.global_step, how.updates, text))

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            if stop():
                control.should_save = control.should_training_stop = True
            return control

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (folder / _MARK).touch()

    with _hushed():
        trainer = _trainer_of(recipe)(
            model=model,
            reward_funcs=play.reward,
            args=config_of(recipe),
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=[Watch()],
            rollout_func=play.generate if recipe.engine == "in-process" else None,
        )
        trainer.remove_callback(PrinterCallback)
        progress(Told("grpo", updates, how.updates))
        trainer.train(resume_from_checkpoint=str(kept) if kept else None)
    done = trainer.state.global_step
    last = _means(recent)
    trained = trainer.accelerator.unwrap_model(trainer.model)
    finished = done >= how.updates
    if finished and recipe.finish.updates:
        finished = _finish(recipe, trained, len(roster), progress, stop)
    _write(recipe, trained, tokenizer, roster, done, last)
    return Trained(recipe.output, finished, done, last)


def _finish(
    recipe: Recipe,
    model: Any,
    workers: int,
    progress: Callable[[Told], None],
    stop: Callable[[], bool],
) -> bool:
    """Let the last stage follow, unless it did after the same GRPO; tell whether it is over."""
    how, folder = recipe.finish, recipe.output / FINISHED
    weights, record = folder / "before" / "adapter_model.safetensors", folder / "training.json"
    was = weights.read_bytes() if weights.exists() else b""
    save_adapter(model, recipe.model, folder / "before")
    if record.exists() and weights.read_bytes() == was:
        return True
    record.unlink(missing_ok=True)
    what = Finish(how.updates, how.batch, how.composed, recipe.tasks.fewest, recipe.seed)
    source = folder / "before"
    losses = _own(recipe, "finish", source, folder, workers, what, how.rate, progress, stop)
    return len(losses) == how.updates


def _write(
    recipe: Recipe,
    model: Any,
    tokenizer: Any,
    roster: Sequence[str],
    updates: int,
    last: Mapping[str, float],
) -> None:
    finished = recipe.output / FINISHED
    over = updates >= recipe.grpo.updates and (finished / "training.json").exists()
    if recipe.finish.updates and over:
        for each in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(finished / each, recipe.output / each)
    elif hasattr(model, "peft_config"):
        save_adapter(model, recipe.model, recipe.output)
    else:
        model.save_pretrained(recipe.output)
        tokenizer.save_pretrained(recipe.output)
    about = {
        "model": recipe.model,
        "adapter": "." if hasattr(model, "peft_config") else "",
        "roster": list(roster),
        "most_steps": recipe.run.most_steps,
        "seed": recipe.seed,
        "updates": updates,
        "recipe": recipe.model_dump(mode="json"),
        "last": dict(last),
        "machine": machine(),
    }
    (recipe.output / TRAINED).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    if recipe.pictures:
        draw(recipe.output)
    write_card(recipe.output)
