"""Pictures of a router's training: they read in grey, and text stays text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .router_evolve import Look
from .router_sft import Update
from .states import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#1a1a1a"
SHADES = ("#0b5fa5", "#f2a33a", "#7fb8e0", "#b5523b", "#d9d9d9", "#5e8c4a", "#a78bc0", "#ffffff")
HATCHES = ("", "////", "....", "\\\\\\\\", "", "xx", "--", "oo")


def bare(panel: Any) -> None:
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def shares(families: Sequence[str], workers: Sequence[str], picks: NDArray[np.intp]) -> Figure:
    """Draw who is picked in each family: stacked bars.

    Args:
        families: Of the tasks, (N,).
        workers: Their names, in order.
        picks: Number of the worker picked for each task, (N,).
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(families))[::-1]
    figure = Figure(figsize=(7.2, 1.4 + 0.34 * len(names)), layout="constrained")
    panel = figure.subplots()
    kinds = np.array(families)
    left = np.zeros(len(names))
    for number, worker in enumerate(workers):
        widths = np.array([(picks[kinds == name] == number).mean() for name in names])
        style = number % len(SHADES)
        bars = panel.barh(
            range(len(names)),
            widths,
            left=left,
            label=worker,
            color=SHADES[style],
            hatch=HATCHES[style],
            edgecolor=INK,
            linewidth=0.6,
        )
        for bar, width in zip(bars, widths, strict=True):
            if width >= 0.14:
                panel.text(
                    bar.get_x() + width / 2,
                    bar.get_y() + bar.get_height() / 2,
                    f"{width:.0%}",
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.2},
                )
        left += widths
    labels = [f"{name} ({int((kinds == name).sum())})" for name in names]
    panel.set_yticks(range(len(names)), labels, fontsize=9)
    panel.set_xlim(0, 1)
    panel.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"], fontsize=8)
    panel.tick_params(length=0)
    bare(panel)
    figure.legend(loc="outside upper center", ncols=min(6, len(workers)), fontsize=8, frameon=False)
    figure.supxlabel("share of tasks that go to each worker: family (tasks)", fontsize=9)
    return figure


def losses(history: Sequence[Update]) -> Figure:
    """Draw the loss on training and validation tasks, and the reward, over the updates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    loss, reward = figure.subplots(1, 2)
    at = [each.update for each in history]
    loss.plot(at, [each.loss for each in history], color=INK, marker="o", ms=3, label="training")
    ours = [each.validation_loss for each in history]
    loss.plot(at, ours, color="#0b5fa5", ls="--", marker="s", ms=3, label="validation")
    least = int(np.argmin(ours))
    loss.plot([at[least]], [ours[least]], "o", ms=9, mfc="none", color="#0b5fa5", label="kept")
    loss.set_ylabel("mean KL(targets || policy), nats", fontsize=8)
    reward.plot(at, [e.picked for e in history], color=INK, marker="o", ms=3, label="picked")
    values = [each.expected for each in history]
    reward.plot(at, values, color="#0b5fa5", ls="--", marker="s", ms=3, label="expected")
    reward.set_ylabel("reward on validation", fontsize=8)
    for panel in (loss, reward):
        panel.set_xlabel("update", fontsize=8)
        panel.legend(fontsize=7.5, frameon=False)
        panel.tick_params(labelsize=8)
        bare(panel)
    return figure


def fitness_curve(looks: Sequence[Look]) -> Figure:
    """Draw fitness over the generations with its spread over the heads, and the step size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    curve, step = figure.subplots(1, 2, width_ratios=[2, 1])
    at = [each.generation for each in looks]
    values = np.array([each.fitness for each in looks])
    curve.fill_between(
        at, values.min(axis=1), values.max(axis=1), color="#d9d9d9", label="worst to best head"
    )
    quarters = np.quantile(values, [0.25, 0.75], axis=1)
    curve.fill_between(at, *quarters, color="#9dbfdc", label="middle half")
    curve.plot(at, values.mean(axis=1), color=INK, lw=1.2, label="mean")
    seen = [each for each in looks if each.validation is not None]
    curve.plot(
        [each.generation for each in seen],
        [each.validation for each in seen],
        color="#b5523b",
        marker="D",
        ms=4,
        ls=":",
        label="search's mean, on validation",
    )
    curve.set_ylabel("fitness", fontsize=8)
    curve.legend(fontsize=7.5, frameon=False)
    step.plot(at, [each.sigma for each in looks], color=INK)
    step.set_ylabel("step size", fontsize=8)
    step.set_ylim(bottom=0)
    for panel in (curve, step):
        panel.set_xlabel("generation", fontsize=8)
        panel.tick_params(labelsize=8)
        bare(panel)
    return figure


def confusion(rewards: Array, workers: Sequence[str], picks: NDArray[np.intp]) -> Figure:
    """Draw who is picked where one worker alone is best: the rest are ties.

    Args:
        rewards: (N, W).
        workers: Their names, in order.
        picks: Number of the worker picked for each task, (N,).
    """
    from matplotlib.figure import Figure

    best = rewards.max(axis=1, keepdims=True)
    alone = (rewards >= best - 1e-6).sum(axis=1) == 1
    table = np.zeros((len(workers), len(workers)), int)
    np.add.at(table, (rewards.argmax(axis=1)[alone], picks[alone]), 1)
    side = 1.9 + 0.62 * len(workers)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    panel = figure.subplots()
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    panel.imshow(share, cmap="Blues", vmin=0, vmax=1.15)
    for row, column in np.ndindex(table.shape):
        ink = "white" if share[row, column] > 0.6 else INK
        count = str(table[row, column])
        panel.text(column, row, count, ha="center", va="center", color=ink, fontsize=9)
    panel.set_xticks(range(len(workers)), workers, fontsize=8, rotation=30, ha="right")
    panel.set_yticks(range(len(workers)), workers, fontsize=8)
    panel.set_xlabel("picked", fontsize=9)
    panel.set_ylabel("the only best", fontsize=9)
    panel.tick_params(length=0)
    for spine in panel.spines.values():
        spine.set_visible(False)
    panel.set_title(
        f"{int(alone.sum())} tasks with one best worker\n{len(rewards)} in all", fontsize=9
    )
    return figure


def scatter(trail: Iterable[tuple[Array, Array]]) -> Figure:
    """Draw the heads of a search and the way of its mean, in their first two components.

    Args:
        trail: Heads (P, n) and mean (n,) of each generation.
    """
    from matplotlib.figure import Figure

    heads, means = (list(each) for each in zip(*trail, strict=True))
    every = np.concatenate(heads)
    middle = every.mean(axis=0)
    # The Gram matrix is small where the heads are long.
    _, sizes, axes = np.linalg.svd(every - middle, full_matrices=False)
    axes, part = axes[:2], sizes[:2] ** 2 / np.square(sizes).sum()
    figure = Figure(figsize=(5.4, 4.2), layout="constrained")
    panel = figure.subplots()
    at = np.repeat(np.arange(1, len(heads) + 1), [len(each) for each in heads])
    spots = (every - middle) @ axes.T
    drawn = panel.scatter(
        spots[:, 0], spots[:, 1], c=at, cmap="viridis_r", s=9, linewidths=0, alpha=0.7
    )
    way = (np.stack(means) - middle) @ axes.T
    panel.plot(
        way[:, 0], way[:, 1], color=INK, lw=1.2, marker="o", ms=2.5, label="mean of the search"
    )
    panel.plot(*way[-1], "D", color="#b5523b", ms=7, label="its end")
    bar = figure.colorbar(drawn, ax=panel)
    bar.set_label("generation", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    for name, axis, share in zip(
        ("first", "second"), (panel.xaxis, panel.yaxis), part, strict=True
    ):
        axis.set_label_text(f"{name} component, {share:.0%} of the variance", fontsize=8)
    panel.tick_params(labelsize=8)
    panel.legend(fontsize=7.5, frameon=False)
    bare(panel)
    return figure
