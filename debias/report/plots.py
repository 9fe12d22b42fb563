"""Plots as SVG in the colours of the page, readable in light and dark mode."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from markupsafe import Markup
from matplotlib.figure import Figure

from debias.report.comparison import Row, title_of

matplotlib.use("Agg")

# matplotlib does not know CSS variables, so it draws with these colours, and `svg` replaces them.
INK, FAINT, BASE, AFTER = "#010101", "#020202", "#030303", "#040404"
SERIES = [f"#0a0a{i:02x}" for i in range(8)]
VARIABLES = {INK: "var(--ink)", FAINT: "var(--line)", BASE: "var(--base)", AFTER: "var(--after)"}
VARIABLES |= {colour: f"var(--s{i})" for i, colour in enumerate(SERIES)}
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "debias",  # the same figures give the same file
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def before_after(rows: Sequence[Row]) -> Markup | None:
    """Stereotype scores of both models with their intervals, and the ideal of 50; None without such scores."""
    chosen = [row for row in rows if row.base.metric == "SS"]
    if not chosen:
        return None
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 0.9 + 0.42 * len(chosen)))
        axes.axvline(50, color=FAINT, linewidth=1.5)
        for place, row in enumerate(reversed(chosen)):
            for model, colour, shift in ((row.base, BASE, 0.13), (row.debiased, AFTER, -0.13)):
                if model is not None:
                    axes.plot([model.ci_low, model.ci_high], [place + shift] * 2, color=colour, linewidth=2)
                    axes.plot(model.value, place + shift, "o", color=colour, markersize=6)
        labels = [f"{title_of(r.base)} {r.base.bias}" for r in reversed(chosen)]
        axes.set_yticks(range(len(chosen)), labels)
        axes.tick_params(length=0)
        axes.set_xlabel("stereotype score, % (50 is unbiased), with 95% intervals")
        return svg(figure, "Stereotype scores before and after, with 95% intervals; the table below has the figures")


def loss_curve(
    points: Sequence[tuple[int, float]], parts: Mapping[str, Sequence[float]] | None = None, window: int = 10
) -> Markup:
    """Training loss by step, with running means of it and of its parts by name."""
    steps, losses = zip(*points, strict=True)

    def running(values: Sequence[float]) -> list[float]:
        return [sum(values[max(0, i - window + 1) : i + 1]) / min(window, i + 1) for i in range(len(values))]

    mean = running(losses)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 2.6))
        axes.plot(steps, losses, color=FAINT, linewidth=1)
        axes.plot(steps, mean, color=AFTER, linewidth=2, label="loss")
        for (name, values), style in zip((parts or {}).items(), ("--", ":"), strict=False):
            axes.plot(steps, running(values), color=INK, linewidth=1.5, linestyle=style, label=name)
        if parts:
            axes.legend(frameon=False)
        axes.set_xlabel("step")
        axes.set_ylabel("loss, nats per token")
        return svg(figure, f"Training loss from {losses[0]:.2f} to {mean[-1]:.2f} nats per token in {steps[-1]} steps")


def histogram(loss: Mapping[str, Any]) -> Markup:
    """The base model's loss on the attributes of training data, from `debias.data.doctor.histogram`."""
    edges, counts = loss["edges"], loss["counts"]
    widths = [high - low for low, high in pairwise(edges)]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 2.6))
        axes.bar(edges[:-1], counts, width=widths, align="edge", color=AFTER, edgecolor=FAINT)
        axes.axvline(loss["mean"], color=INK, linewidth=1.5)
        axes.set_xlabel("base model's loss, nats per attribute token (line: mean)")
        axes.set_ylabel("triplets")
        return svg(figure, f"The base model's loss on {sum(counts):,} attributes: mean {loss['mean']:.2f}, "
                           f"median {loss['median']:.2f} nats per token")  # fmt: skip


def svg(figure: Figure, label: str) -> Markup:
    """A figure as an SVG element in the page's colours and width; screen readers read `label`."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    drawn = text.getvalue()[text.getvalue().index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    for colour, variable in VARIABLES.items():
        drawn = drawn.replace(colour, variable)
    drawn = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", drawn, count=1)  # as wide as the page allows
    drawn = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", drawn, count=1)
    # Safe: matplotlib escaped the names in it, and everything else is numbers.
    return Markup(drawn.replace("<svg", f'<svg role="img" aria-label="{Markup.escape(label)}"', 1))  # noqa: S704
