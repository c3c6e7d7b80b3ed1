"""The success matrix: who is how good at what, and what there is to gain by choosing well.

Made of the labels of a folder, as Markdown, JSON and a heat map. A rate has Wilson's interval
(E. Wilson, JASA 22, 1927), with tasks for n: repeats of a task are no tasks, so where a worker
samples, the interval is rather too wide.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .evaluate import Measured, oracle
from .intervals import Floats, Interval, difference, mean
from .labels import Labels, read, read_manifest
from .report import percent, ranged, rendered, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "report"
PICTURE = "labels"
ALL = "all"
"""The row of all families together."""
_NORMAL = 1.959963984540054
"""Quantile of the normal distribution at 97.5 %."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How often a worker is right."""

    tasks: int
    interval: Interval
    """Unknown if there are no tasks."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What labels say."""

    workers: tuple[str, ...]
    families: tuple[str, ...]
    rates: Mapping[str, Mapping[str, Rate]]
    """By family, ``all`` the last one, then by worker."""
    compared: int
    """Tasks on which every worker was measured: what follows is of them."""
    best: str
    """The worker with the best mean; empty if nothing can be compared."""
    best_mean: Interval
    random: Interval
    """Of a worker drawn anew for each task."""
    oracle: Interval
    """Of the best worker of each task."""
    headroom: Interval
    """Oracle less best worker, paired."""
    by_family: Mapping[str, Interval]
    """The oracle's mean, by family."""
    fitted: str
    """How the oracle was fitted, and what follows for reading it."""
    tied: Interval
    """Share of tasks on which all workers are equally good."""
    solved_by_none: Interval
    solved_by_all: Interval
    missing: Mapping[str, int]
    """Labels that are missing, by worker."""


def wilson(share: float, count: int) -> Interval:
    """Put Wilson's 95 % interval round a share of so many; unknown for none."""
    if not count:
        return Interval(math.nan, math.nan, math.nan)
    square = _NORMAL**2
    middle = (share + square / (2 * count)) / (1 + square / count)
    spread = math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    half = _NORMAL * spread / (1 + square / count)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def summarize(labels: Labels, *, same_again: Sequence[str] = ()) -> Summary:
    """Sum labels up.

    Args:
        labels: Whole or in part.
        same_again: Workers that always say the same, so that their repeats are no draws.
    """
    there = [name for name in labels.workers if not np.isnan(labels.only(name).means).all()]
    families = labels.families
    rates = {
        family: {name: _rate(labels, name, family) for name in labels.workers}
        for family in (*families, ALL)
    }
    whole = labels.only(*there) if there else labels
    kept = ~np.asarray(np.isnan(whole.means).any(axis=1))
    whole = whole.where(kept)
    means = whole.means.astype(np.float64)  # (T, W)
    best = int(means.mean(axis=0).argmax()) if len(means) else 0
    best_scores = means[:, best : best + 1] if there else means[:, :0]
    drawn = means.mean(axis=1, keepdims=True)
    top = oracle(_of(whole)).scores if len(means) else np.empty((0, 1))
    spread = np.ptp(means, axis=1) if len(means) else np.empty(0)
    return Summary(
        labels.workers,
        families,
        rates,
        len(means),
        whole.workers[best] if len(means) else "",
        mean(best_scores) if len(means) else wilson(0, 0),
        mean(drawn) if len(means) else wilson(0, 0),
        mean(top) if len(means) else wilson(0, 0),
        difference(top, best_scores) if len(means) else wilson(0, 0),
        {
            family: mean(top[[task.family == family for task in whole.tasks]])
            for family in whole.families
        },
        _fitted(labels, set(there) <= {*same_again}),
        _share(spread == 0),
        _share(means.max(axis=1) == 0) if len(means) else wilson(0, 0),
        _share(means.min(axis=1) == 1) if len(means) else wilson(0, 0),
        {name: int(np.isnan(labels.only(name).scores).sum()) for name in labels.workers},
    )


def _of(labels: Labels) -> Measured:
    """Labels alone, for the oracle: it reads nothing else."""
    blank = np.full(labels.scores.shape, np.nan)
    return Measured(labels, np.full(labels.scores.shape, "", object), blank, blank, blank)


def _rate(labels: Labels, worker: str, family: str) -> Rate:
    means = labels.only(worker).means[:, 0]
    mine = [family in (ALL, task.family) for task in labels.tasks]
    known: Floats = means[np.asarray(mine, dtype=bool) & ~np.isnan(means)]
    return Rate(len(known), wilson(float(known.mean()) if len(known) else 0.0, len(known)))


def _share(true: Any) -> Interval:
    return wilson(float(np.mean(true)) if len(true) else 0.0, len(true))


def _fitted(labels: Labels, same_again: bool) -> str:
    repeats = labels.scores.shape[2]
    if same_again:
        return (
            "All workers always say the same, so who is best on a task is known without luck; the "
            "oracle needs no cross-fitting."
        )
    if repeats == 1:
        return (
            "There is one repeat, so the oracle is the maximum in the sample: where workers "
            "sample, luck counts as skill and it is too high. Collect with --repeats 2 or more."
        )
    return (
        f"Cross-fitted over {repeats} repeats: who is best on a task is told by all repeats but "
        "one, and how good that is by that one, so luck does not count as skill."
    )


# --- report ---------------------------------------------------------------------------------------


def write_report(folder: str | Path, *, pictures: bool = True) -> Summary:
    """Sum up the labels of a folder, into it: ``report.md``, ``report.json`` and the heat map.

    Args:
        folder: With labels, whole or in part.
        pictures: Whether to draw, as ``labels.svg`` and ``labels.png``; it takes matplotlib.

    Raises:
        training.labels.LabelsError: If there are no labels.
    """
    target = Path(folder)
    manifest = read_manifest(target)
    greedy = [name for name, about in manifest["workers"].items() if about.get("greedy")]
    summary = summarize(read(target), same_again=greedy)
    (target / f"{NAME}.md").write_text(markdown(summary, manifest), encoding="utf-8")
    told = json.dumps(_plain(asdict(summary)), indent=1) + "\n"
    (target / f"{NAME}.json").write_text(told, encoding="utf-8")
    if pictures and summary.families:
        for ending in ("svg", "png"):
            (target / f"{PICTURE}.{ending}").write_bytes(rendered(draw(summary), ending))
    return summary


def _plain(value: Any) -> Any:
    """Make it JSON: what is unknown is null."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def markdown(summary: Summary, manifest: Mapping[str, Any]) -> str:
    """Write the report."""
    rows = []
    for family in (*summary.families, ALL):
        rates = summary.rates[family]
        most = max(rate.tasks for rate in rates.values())
        top = max((_value(rate) for rate in rates.values()), default=0.0)
        top_of_all = summary.oracle if family == ALL else summary.by_family.get(family)
        oracle_told = f"{top_of_all.value:.0%}" if top_of_all and _known(top_of_all) else ""
        rows.append(
            [family, f"{most}", *(_cell(r, most, top) for r in rates.values()), oracle_told]
        )
    best = f"{summary.best} {ranged(summary.best_mean)}" if summary.best else ""
    lines = [
        ["best worker", best],
        ["random worker", ranged(summary.random)],
        ["oracle", ranged(summary.oracle)],
        ["headroom", ranged(summary.headroom, sign=True)],
        ["all workers tie", percent(summary.tied)],
        ["solved by none", percent(summary.solved_by_none)],
        ["solved by all", percent(summary.solved_by_all)],
    ]
    compared = "task" if summary.compared == 1 else "tasks"
    parts = [
        "# Labels",
        "Share of right answers, with 95 % intervals (Wilson). The best of each row is bold.",
        table(["family", "tasks", *summary.workers, "oracle"], rows),
        f"On the {summary.compared:,} {compared} on which every worker was measured:",
        table(["", "mean [95 % interval]"], lines, left=2),
        f"The best worker was chosen on the same tasks, so it is a little flattered, and the "
        f"headroom rather too small. {summary.fitted}",
        *_missing(summary, manifest),
        _took(manifest),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _known(interval: Interval) -> bool:
    return math.isfinite(interval.value)


def _value(rate: Rate) -> float:
    return rate.interval.value if _known(rate.interval) else -1.0


def _cell(rate: Rate, most: int, top: float) -> str:
    if not rate.tasks:
        return ""
    fewer = f" (n = {rate.tasks})" if rate.tasks < most else ""
    told = percent(rate.interval) + fewer
    return f"**{told}**" if _value(rate) == top > 0 else told


def _missing(summary: Summary, manifest: Mapping[str, Any]) -> list[str]:
    told = [f"{n} of {name}" for name, n in summary.missing.items() if n]
    parts = [f"Labels that are missing: {', '.join(told)}."] if told else []
    for worker, kinds in manifest.get("failed", {}).items():
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        parts.append(f"Calls of {worker} that failed: {counts}.")
    for worker, why in manifest.get("given_up", {}).items():
        parts.append(f"{worker} failed again and again and was given up: {why}")
    if manifest.get("stopped"):
        parts.append(f"It was stopped: {manifest['stopped']}.")
    return parts


def _took(manifest: Mapping[str, Any]) -> str:
    if "calls" not in manifest:
        return ""
    unknown = manifest["unpriced_calls"]
    more = f" and {unknown:,} calls of unknown price" if unknown else ""
    tokens = f"tokens in/out {manifest['input_tokens']:,}/{manifest['output_tokens']:,}"
    return f"It took {manifest['calls']:,} calls, {tokens}, ${manifest['dollars']}{more}."


# --- picture --------------------------------------------------------------------------------------


def draw(summary: Summary) -> Figure:
    """Draw the heat map: a row a family, a column a worker, the share of right answers in each.

    It reads in grey: darker is better, the figures stand in the cells, the best one is framed.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    names = (*summary.families, ALL)
    values = np.array(
        [[summary.rates[f][w].interval.value for w in summary.workers] for f in names]
    )
    width, height = 2.2 + 0.95 * len(summary.workers), 1.1 + 0.34 * len(names)
    figure = Figure(figsize=(width, height), layout="constrained")
    panel = figure.subplots()
    panel.imshow(values, cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
    for row, family in enumerate(names):
        best = np.nanmax(values[row]) if np.isfinite(values[row]).any() else math.nan
        for column, worker in enumerate(summary.workers):
            rate = summary.rates[family][worker]
            value = rate.interval.value
            if not rate.tasks:
                panel.text(column, row, "?", ha="center", va="center", fontsize=8)
                continue
            ink = "white" if value > 0.6 else "#1a1a1a"
            at = (column, row)
            weight = "bold" if value == best > 0 else "normal"
            panel.text(
                *at, f"{value:.0%}", ha="center", va="center", color=ink, weight=weight, fontsize=9
            )
            if value == best > 0:
                corner = (column - 0.47, row - 0.46)
                panel.add_patch(
                    Rectangle(corner, 0.94, 0.92, fill=False, edgecolor="#1a1a1a", lw=1.2)
                )
    counts = [max(rate.tasks for rate in summary.rates[family].values()) for family in names]
    panel.set_xticks(range(len(summary.workers)), summary.workers, fontsize=9)
    labels = [f"{family} ({count})" for family, count in zip(names, counts, strict=True)]
    panel.set_yticks(range(len(names)), labels, fontsize=9)
    panel.axhline(len(names) - 1.5, color="#1a1a1a", lw=1.0)
    panel.xaxis.tick_top()
    panel.tick_params(length=0)
    for side in panel.spines.values():
        side.set_visible(False)
    figure.suptitle("Share of right answers: family (tasks) x worker", fontsize=10, x=0.5)
    return figure
