"""The model card of a trained Conductor: README.md of its folder, in Hugging Face's form.

All in it is read from the folder; what was measured elsewhere is given.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from conductor.config import TRAINED
from conductor.prompt import brief_messages, plan_text
from runtime import PACKAGED

from .conductor_pictures import FOLDER, PICTURES, PLANS, first_rounds, plans_markdown
from .intervals import Interval
from .learned import (
    Form,
    Sample,
    against_the_rest,
    families_of,
    last_third,
    read_rows,
    worth_of,
)
from .report import number, percent, ranged, table

CARD = "README.md"
_HUB = {"smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""Where packaged models come from."""
_SAMPLED = 2
"""Families of a kind whose plans are shown; all are in the folder of the pictures."""


def machine() -> dict[str, Any]:
    """Describe this machine and what computes on it, for the record of a training."""
    import torch

    gpus = [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())]
    found: dict[str, Any] = {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "gpus": gpus,
        "python": platform.python_version(),
    }
    for name in ("torch", "transformers", "trl", "peft"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def write_card(folder: Path, figures: Mapping[str, Any] = {}) -> Path:
    """Write the card.

    Args:
        folder: Of a training that is over, pictures included if there are to be any.
        figures: What was measured, by what it is: a number, an :class:`Interval`, a text, which
            gets a paragraph of its own, or a mapping of these, which gets a table of its own.

    Returns:
        The file.

    Raises:
        OSError: If the folder is that of no training that is over.
    """
    path = folder / CARD
    path.write_text(card(_read(folder), figures), encoding="utf-8")
    return path


@dataclass(frozen=True, slots=True)
class _Folder:
    """What a card is made of."""

    about: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    samples: Sequence[Sample]
    cold: Mapping[str, Any]
    """Record of the cold start; empty if there was none."""
    second: Mapping[str, Any]
    """Record of the form of second rounds; empty if it was not learned."""
    finished: Mapping[str, Any]
    """Record of the last stage; empty if there was none."""
    rank: int | None
    """Of the adapter; None if all weights were trained."""
    megabytes: float
    pictures: Sequence[str]

    @property
    def roster(self) -> Sequence[str]:
        found: Sequence[str] = self.about["roster"]
        return found


def _read(folder: Path) -> _Folder:
    def known(name: str) -> dict[str, Any]:
        path = folder / name
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return dict(found)

    return _Folder(
        json.loads((folder / TRAINED).read_text(encoding="utf-8")),
        read_rows(folder / "metrics.jsonl"),
        first_rounds(read_rows(folder / "rollouts.jsonl")),
        known("cold/training.json"),
        known("second/training.json"),
        known("finished/training.json"),
        known("adapter_config.json").get("r"),
        sum(each.stat().st_size for each in folder.glob("*.safetensors")) / 1e6,
        [name for name in PICTURES if (folder / FOLDER / f"{name}.svg").exists()],
    )


# --- text -----------------------------------------------------------------------------------------


def card(of: _Folder, figures: Mapping[str, Any] = {}) -> str:
    """Write the text of a card; see :func:`write_card`."""
    parts = [
        _front(of),
        f"# A Conductor for {len(of.roster)} workers",
        _what(of),
        table(["", ""], list(_facts(of)), left=2),
        f"## What it reads and writes\n\n{_prompt(of)}",
        f"## How to use it\n\n{_use(of)}",
        f"## How it was trained\n\n{_trained(of)}",
        f"## Figures\n\n{_figures(of, figures)}",
        *_learned(of),
        f"## Limits\n\n{_limits(of)}",
    ]
    return "\n\n".join(parts) + "\n"


def _front(of: _Folder) -> str:
    model = str(of.about["model"])
    base = _HUB.get(model, "" if Path(model).exists() else model)
    fields: dict[str, Any] = (
        {"license": PACKAGED[model].licence.lower()} if model in PACKAGED else {}
    )
    if base:
        fields |= {"base_model": base}
        fields |= {"base_model_relation": "adapter" if of.rank else "finetune"}
    fields |= {
        "library_name": "peft" if of.rank else "transformers",
        "pipeline_tag": "text-generation",
        "language": ["en"],
        "tags": [
            "conductor",
            "orchestration",
            "planning",
            "grpo",
            "trl",
            *["lora"] * bool(of.rank),
        ],
    }
    # JSON is YAML.
    lines = (f"{name}: {json.dumps(value)}" for name, value in fields.items())
    return "---\n" + "\n".join(lines) + "\n---"


def _what(of: _Folder) -> str:
    plans = f"1 to {of.about['most_steps']} steps"
    return (
        f"A small language model that answers nothing itself. It reads a question and the numbers "
        f"of the workers that are there, and writes a plan of {plans}: what each step is told, who "
        f"does it, and which earlier steps it reads. Nobody told it who is good at what: it found "
        f"out by reinforcement learning (GRPO) from whether the answers were right."
    )


def _facts(of: _Folder) -> Iterator[list[str]]:
    about, recipe = of.about, of.about["recipe"]
    model = str(about["model"])
    base = f"`{model}`"
    if model in PACKAGED:
        found = PACKAGED[model]
        base = f"{_HUB.get(model, model)} ({found.parameters}, {found.licence})"
        base += f", as packaged in `{found.requirement}`"
    yield ["base model", base]
    if of.rank:
        yield ["this folder", f"a LoRA adapter, rank {of.rank}, {of.megabytes:.1f} MB"]
    else:
        yield ["this folder", f"all weights, {of.megabytes:,.0f} MB"]
    if model in PACKAGED:
        yield ["licence", f"{PACKAGED[model].licence}, as the base model and the project"]
    else:
        yield ["licence", "that of the base model holds for what is made of it"]
    names = (f"{at} `{name}`" for at, name in enumerate(of.roster))
    yield ["roster", f"{', '.join(names)} of the pool `{recipe['pool']}`"]
    yield ["made by", f"`conductor train conductor RECIPE`, seed {about['seed']}"]
    if made_on := _machine(about.get("machine", {})):
        yield ["made on", made_on]


def _machine(found: Mapping[str, Any]) -> str:
    if not found:
        return ""
    cores = f"{found['cores']} cores of " if found.get("cores") else ""
    gpus = ", ".join(found.get("gpus") or ["no GPU"])
    names = ("python", "torch", "transformers", "trl", "peft")
    versions = ", ".join(f"{name} {found[name]}" for name in names if name in found)
    return f"{cores}{found.get('cpu', '')}, {gpus}; {versions}"


def _prompt(of: _Folder) -> str:
    shown = _example(of)
    system, user = brief_messages(
        shown.question if shown else "What is 2 + 3?", shown.offered if shown else [0]
    )
    asked = user.content.replace("\n", "\n        ")
    text = f"```text\nsystem: {system.content}\nuser:   {asked}\n```"
    if shown is None or shown.plan is None:
        return text
    return (
        f"{text}\n\nThe line `Workers:` has the numbers of those who may be named; a number keeps "
        f"its meaning where some are not there. One that it wrote in training, for this question:"
        f"\n\n```plan\n{plan_text(shown.plan)}```\n\n"
        "`{query}` in a subtask stands for the question. Training and serving build this prompt "
        "with one function, `conductor.prompt.brief_messages`, in the base model's chat template."
    )


def _example(of: _Folder) -> Sample | None:
    """A right plan of late: of several steps if there is one."""
    late = [each for each in last_third(of.samples) if each.right and each.plan is not None]
    return max(late, key=lambda each: len(each.plan or ()) > 1, default=None)


def _use(of: _Folder) -> str:
    roster = json.dumps(list(of.roster))
    lines = [
        "[planner]",
        'worker = "conductor"',
        f"roster = {roster}",
        "constrained = false",
        "",
        "[workers.conductor]",
        'kind = "local"',
    ]
    if of.rank:
        lines += [f"model = {json.dumps(of.about['model'])}", 'engine = "transformers"']
        lines += ['adapter = "conductor"  # this folder, relative to the pool file']
    else:
        lines += ['model = "conductor"  # this folder', 'engine = "transformers"']
    fenced = "\n".join(lines)
    return (
        f"In a pool file that has the workers of the roster, or some of them:\n\n"
        f"```toml\n{fenced}\n```\n\n"
        '```sh\nconductor run --pool pool.toml "Add 25 and 61, then reverse the digits of the '
        'sum."\n```\n\n'
        "`conductor show` then tells the plan, who answered what, and what it cost. With "
        "`constrained = true` every completion is a plan, by force."
    )


def _trained(of: _Folder) -> str:
    recipe = of.about["recipe"]
    how, begin = recipe["grpo"], recipe["begin"]
    parts = []
    if begin.get("adapter"):
        parts.append(f"It began with the adapter `{begin['adapter']}`.")
    else:
        took = f", {of.cold['seconds'] / 60:.0f} minutes" if of.cold else ""
        parts.append(
            f"**Cold start**: {begin['updates']} updates of SFT, {begin['batch']} plans each"
            f"{took}, on the form of plans only. Workers were drawn by lot, so nothing about who "
            f"is good is in it."
        )
    if of.second:
        form = of.second["finish"]
        parts.append(
            f"**The form of second rounds**: {form['updates']} updates of SFT, {form['batch']} "
            f"lessons each, {of.second['seconds'] / 60:.0f} minutes. In about "
            f"{form['second']:.0%} of them its own plan counted as carried out, and the answer "
            f"was kept or a step given to somebody else, by lot, whatever the reply."
        )
    seconds, calls, cached = (
        sum(row[name] for row in of.metrics) for name in ("seconds", "calls", "cached")
    )
    families = families_of(of.samples)
    questions = len({each.question for each in of.samples})
    parts.append(
        f"**GRPO** (TRL, loss `grpo`, beta {how['beta']:g}, advantages normalised by group): "
        f"{len(of.metrics)} updates of {how['questions']} questions with {how['group']} "
        f"completions each{' in two rounds' if how['rounds'] == 2 else ''}, rate {how['rate']:g}, "
        f"temperature {how['temperature']:g}; {seconds / 60:.0f} minutes, in which workers were "
        f"called {calls:,} times and {cached:,} replies came from the cache. Each question offered "
        f"a part of the roster, drawn by lot. Sampling was "
        f"{'constrained to the grammar' if recipe['constrained'] else 'free'}."
    )
    if terms := list(_terms(how)):
        parts.append(f"**Beside the reward**: {'; '.join(terms)}.")
    parts.append(
        f"**Reward**: 0 for what is no plan, 0.5 for a plan whose answer is wrong, 1 for one whose "
        f"answer is right, as programs grade it"
        f"{_adjusted(recipe.get('run', {}))}. What failed for technical reasons was masked."
    )
    parts.append(
        f"**Data**: {questions:,} different questions that `training/families.py` drew, training "
        f"items in trained phrasings only, of {len(families)} families: {', '.join(families)}. "
        f"{len(of.samples):,} completions in all{' (first rounds)' if how['rounds'] == 2 else ''}. "
        f"No data of other people."
    )
    if of.finished:
        how = of.finished["finish"]
        parts.append(
            f"**At last**: {how['updates']} updates of SFT, {how['batch']} plans each, "
            f"{of.finished['seconds'] / 60:.0f} minutes, on questions in many more phrasings: "
            f"composed ones taken apart into their parts, others handed on. The workers were those "
            f"whom it named itself when a part, or the question in words that it knew, was all "
            f"that it was asked. So that teaches words and teams, and not who is good at what."
        )
    return "\n\n".join(parts)


def _terms(how: Mapping[str, Any]) -> Iterator[str]:
    """What the loss has beside rewards."""
    if how["beta"]:
        yield f"a KL term to the model that it began as, weight {how['beta']:g}"
    if how.get("entropy"):
        yield f"an entropy bonus, weight {how['entropy']:g}"
    if how.get("layers_from"):
        yield f"only layers from {how['layers_from']} on were trained"


def _adjusted(run: Mapping[str, Any]) -> str:
    """What else counts in a reward."""
    more = ""
    if run.get("parts"):
        more = (
            f", {run['parts']:g} more for a wrong one if a step was right about each earlier part"
        )
    told = [
        f"{run[name]:g} for {what}"
        for name, what in (("cost", "a tenth of a cent"), ("length", "a token of the completion"))
        if run.get(name)
    ]
    return more + (f", less {' and '.join(told)}" if told else "")


def _figures(of: _Folder, figures: Mapping[str, Any]) -> str:
    parts = [each for each in figures.values() if isinstance(each, str)]
    rows = [
        [name, _told(each)] for name, each in figures.items() if not isinstance(each, str | Mapping)
    ]
    if rows:
        parts.append(table(["measured", ""], rows, left=2))
    for name, group in figures.items():
        if isinstance(group, Mapping):
            rows = [[str(key), _told(each)] for key, each in group.items()]
            parts.append(table([name, ""], rows, left=2))
    if not figures:
        parts.append("On held-out questions it has not been measured: `conductor eval` does that.")
    last = of.about.get("last", {})
    rows = [
        [told, _told(last[name])]
        for name, told in (
            ("reward", "reward"),
            ("correct", "right answers, of valid plans"),
            ("parse", "valid plans"),
            ("steps", "steps of a plan"),
            ("tokens", "tokens of a completion"),
            ("entropy", "entropy, nats a token"),
            ("seconds", "seconds of an update"),
        )
        if last.get(name) is not None
    ]
    if rows:
        before = ", before the last stage" * bool(of.finished)
        parts.append(f"In GRPO, sampled, at its end{before}:")
        parts.append(table(["training", ""], rows, left=2))
    return "\n\n".join(parts)


def _told(value: Any) -> str:
    match value:
        case Interval():
            return ranged(value)
        case bool() | str():
            return str(value)
        case int():
            return f"{value:,}"
        case float():
            return number(value, 3)
    return json.dumps(value)


def _learned(of: _Folder) -> Iterator[str]:
    if not of.samples:
        return
    parts = ["This is of GRPO, before the last stage, which taught it teams."] * bool(of.finished)
    parts += [
        f"![{name}]({FOLDER}/{name}.svg)\n\n{PICTURES[name]}"
        for name in of.pictures
        if name != "plans"
    ]
    parts.append(
        "In figures, of the last third of the updates: the form of plan that each family got most "
        "often, its right answers with Wilson's 95 % interval, and how much more often it was "
        "right than the other plans that were written for the same questions."
    )
    parts.append(_worth(last_third(of.samples)))
    yield "## What it learned\n\n" + "\n\n".join(parts)
    plans = (
        "Of the families that came most often, a plan at the start, in the middle and at the end "
        "of its questions, drawn by lot; `=>` is the answer that it led to."
    )
    if of.pictures:
        plans += f" All families are in [{FOLDER}/{PLANS}]({FOLDER}/{PLANS})."
    shown = plans_markdown(of.samples, of.roster, _shown(of.samples))
    drawing = f"\n\n![plans]({FOLDER}/plans.svg)\n\n{PICTURES['plans']}"
    yield f"## Plans\n\n{plans}\n\n{shown}".rstrip() + (drawing if "plans" in of.pictures else "")


def _worth(samples: Sequence[Sample]) -> str:
    rows = []
    for family, mine in families_of(samples).items():
        found = [each for each in worth_of(mine) if each.form is not Form.NO_PLAN]
        if not found:
            continue
        first, against = found[0], against_the_rest(mine)
        same = against if against is not None and against.form is first.form else None
        rows.append(
            [
                family,
                str(first.form),
                f"{first.share:.0%}",
                percent(first.right),
                str(first.count),
                ranged(same.difference, sign=True) if same else "",
                str(same.questions) if same else "",
            ]
        )
    heads = ["family", "form", "written", "right", "n", "less the rest", "questions"]
    return table(heads, rows, left=2)


def _shown(samples: Sequence[Sample]) -> list[str]:
    """The families of both kinds that came most often."""
    families = families_of(samples)
    shown = []
    for simple in (True, False):
        kind = [name for name, mine in families.items() if (mine[0].parts == 1) is simple]
        shown += sorted(kind, key=lambda name: -len(families[name]))[:_SAMPLED]
    return shown


def _limits(of: _Folder) -> str:
    names = ", ".join(f"`{name}`" for name in of.roster)
    return "\n".join(
        [
            f"- It knows {names}, by their numbers, and nobody else. For other workers it has to "
            f"be trained again; cards that describe them mean nothing to it.",
            "- It was trained on the families of questions above. What it does with others is what "
            "the figures say, or luck.",
            "- Answers that programs can't grade (essays, advice) were no part of its training.",
            "- It is one training run of one seed. Another seed learns something else in detail.",
            "- What its workers say is not checked by anybody unless the plan does it.",
        ]
    )
