"""The figures of a run: the ladder, confusion, curves and confidence.

Relies on matplotlib through its object-oriented interface, so no state is shared with a caller's pyplot. The
ink is a mid-grey that reads on white and on black; in an SVG it and the accent are the CSS variables
``--figure-ink`` and ``--figure-accent``, so that a page may set its own. SVG text stays text: a page chooses
the font, and names are escaped by matplotlib's writer. The same input gives the same bytes.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

#: Contrast of at least 4:1 on white and on near-black.
INK = "#777777"
#: The blue of Okabe and Ito's palette, told from grey by every kind of colour vision.
ACCENT = "#0072b2"
#: A confusion matrix of more classes shows colours alone, and names some of them.
_NAMED = 20
_LONGEST_NAME = 24


def confidence_histogram(confidence: NDArray[np.float64], path: Path) -> None:
    """Draw how sure a teacher is of its pseudo-labels, as a PNG.

    Args:
        confidence: (N,) probability of the most likely class of each image.
        path: the PNG to write.
    """
    figure, axes = _axes(5.2, 2.6)
    axes.hist(confidence, bins=50, range=(0, 1), color=ACCENT)
    axes.set_xlim(0, 1)
    axes.set_xlabel("confidence: probability of the most likely class")
    axes.set_ylabel("images")
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if len(confidence):
        share = float((confidence > 0.9).mean())
        _title(axes, f"{len(confidence):,} images, {share:.0%} of them above 0.9")
    _save_png(figure, path)


def save_drift_png(
    known: NDArray[np.float64], new: NDArray[np.float64], shares: dict[str, tuple[float, float]], path: Path
) -> None:
    """Draw the confidence on known and on new images, and the shares of the classes among both, as a PNG.

    Args:
        known: (N,) confidence on known images.
        new: (M,) on new ones.
        shares: class → share of the known and of the new images; the ten that differ most are drawn.
        path: the PNG to write.
    """
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    figure.patch.set_alpha(0)
    left, right = _dress(figure.add_subplot(1, 2, 1)), _dress(figure.add_subplot(1, 2, 2))
    for values, color, name in ((known, INK, "known"), (new, ACCENT, "new")):
        weights = np.full(len(values), 1 / max(len(values), 1))
        left.hist(values, bins=25, range=(0, 1), weights=weights, color=color, alpha=0.55, label=f"{name} images")
    left.set_xlabel("confidence: probability of the most likely class")
    left.set_ylabel("share of the images")
    left.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper left")
    chosen = sorted(shares.items(), key=lambda item: -abs(item[1][0] - item[1][1]))[:10][::-1]
    rows = np.arange(len(chosen))
    for place, color in ((0, INK), (1, ACCENT)):
        right.barh(rows + 0.2 - 0.4 * place, [pair[place] for _, pair in chosen], 0.38, color=color, alpha=0.75)
    right.set_yticks(rows, [_shorten(name) for name, _ in chosen], parse_math=False)
    right.set_xlabel("share of the images that are taken for the class")
    right.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    _save_png(figure, path)


def save_label_curve_png(points: list[dict[str, Any]], path: Path) -> None:
    """Draw top-1 over the number of labels, of labels alone and of the student, as a PNG.

    Args:
        points: each with ``labels``, and top-1 by draw as ``alone`` and ``student``.
        path: the PNG to write.
    """
    figure, axes = _axes(6.4, 4.0)
    labels = [point["labels"] for point in points]
    lines = (("alone", "the student's network on the labels alone", INK), ("student", "student", ACCENT))
    for key, name, color in lines:
        means = [100 * float(np.mean(point[key])) for point in points]
        axes.plot(labels, means, color=color, marker="o", markersize=5, label=name)
        for point in points:
            values = [100 * value for value in point[key]]
            axes.plot([point["labels"]] * len(values), values, "_", color=color, markersize=9)
    axes.set_xscale("log")
    axes.set_xticks(labels, [f"{label:,.0f}" for label in labels])
    axes.minorticks_off()
    axes.set_xlabel("labelled images")
    axes.set_ylabel("top-1 on the test images")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower right")
    _save_png(figure, path)


def ladder_svg(rungs: list[dict[str, Any]]) -> str:
    """Return every rung's top-1 with its interval, in their order, the one that is shipped highlighted.

    Args:
        rungs: as in evaluation.json: ``title``, ``served`` and ``scores["top1"]`` with value, low and high.
    """
    return _svg(_ladder(rungs))


def save_ladder_png(rungs: list[dict[str, Any]], path: Path) -> None:
    """Draw :func:`ladder_svg`'s figure as a PNG."""
    _save_png(_ladder(rungs), path)


def confusion_svg(matrix: list[list[int]], classes: list[str]) -> str:
    """Return a confusion matrix: a cell's opacity is the square root of its share of the true class.

    The root keeps the rare mistakes of a good classifier visible.

    Args:
        matrix: (C, C) counts; row: true class, column: prediction.
        classes: names of the C classes. Up to 20 of them, the cells also hold their counts.
    """
    counts = np.asarray(matrix, dtype=np.int64)
    opacity = np.sqrt(counts / np.maximum(counts.sum(1, keepdims=True), 1))
    number = len(classes)
    shown = range(0, number, math.ceil(number / _NAMED))
    names = [_shorten(classes[i]) for i in shown]
    size = 8.0 if number <= 12 else 6.5
    margin = 0.5 + size / 110 * max(map(len, names))  # inches for the names
    side = margin + min(max(1.6, 0.36 * number), 5.2)
    figure, axes = _axes(side, side, grid=False)
    cells = np.empty((number, number, 4))
    cells[..., :3] = to_rgb(ACCENT)
    cells[..., 3] = opacity
    axes.imshow(cells, interpolation="none")
    axes.set_xticks(list(shown), names, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(list(shown), names, fontsize=size, parse_math=False)
    axes.tick_params(length=0)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    for spine in axes.spines.values():
        spine.set(visible=True, alpha=0.4)
    if number <= _NAMED:
        for row, column in np.argwhere(counts > 0):
            ink = "white" if opacity[row, column] > 0.55 else INK
            text = f"{counts[row, column]}"
            axes.text(column, row, text, color=ink, fontsize=size, ha="center", va="center")
    return _svg(figure)


def reliability_svg(bins: list[dict[str, Any]]) -> str:
    """Return how often a prediction is right, by how sure it is; a point's area is its share of the images.

    Args:
        bins: as in evaluation.json: ``count``, ``confidence`` and ``accuracy`` of each.
    """
    figure, axes = _axes(3.5, 3.2)
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle="--", alpha=0.6)
    held = [each for each in bins if each["count"]]
    total = sum(each["count"] for each in held)
    places = [each["confidence"] for each in held], [each["accuracy"] for each in held]
    axes.plot(*places, color=ACCENT, linewidth=1.2)
    axes.scatter(*places, s=[20 + 400 * each["count"] / total for each in held], color=ACCENT, alpha=0.5, linewidths=0)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy")
    return _svg(figure)


def curves_svg(history: list[dict[str, float]], title: str) -> str:
    """Return a stage's loss over its steps, small.

    Args:
        history: points with ``step`` and ``loss``; one whose loss is not finite is left out.
        title: what stands above it.
    """
    figure, axes = _axes(3.5, 1.9)
    points = [(point["step"], point["loss"]) for point in history if math.isfinite(point["loss"])]
    _title(axes, _shorten(title))
    if points:
        steps, losses = zip(*points, strict=True)
        axes.plot(steps, losses, color=ACCENT, linewidth=1.5, marker="o" if len(points) == 1 else "")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    return _svg(figure)


def _ladder(rungs: list[dict[str, Any]]) -> Figure:
    figure, axes = _axes(6.0, 0.62 + 0.46 * len(rungs), grid=False)
    across = axes.get_yaxis_transform()  # x as a share of the axes, y in rungs
    for row, rung in enumerate(rungs):
        top1, served = rung["scores"]["top1"], rung["served"]
        value, low, high = (100 * top1[key] for key in ("value", "low", "high"))
        color, weight = (ACCENT, "bold") if served else (INK, "normal")
        axes.axhline(row, color=INK, linewidth=0.8, alpha=0.25)
        axes.hlines(row, low, high, color=color, linewidth=4, alpha=0.5)
        axes.plot(value, row, "o", color=color, markersize=8 if served else 6)
        for place, side, text in ((0, "left", rung["title"]), (1, "right", f"{value:.1f}%")):
            axes.text(place, row - 0.24, text, color=color, weight=weight, fontsize=9, ha=side, va="bottom",
                      transform=across, parse_math=False, in_layout=False)  # fmt: skip
    axes.set_ylim(len(rungs) - 0.5, -0.85)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.05)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
    axes.set_xlabel("top-1 accuracy on the test split")
    return figure


def _axes(width: float, height: float, grid: bool = True) -> tuple[Figure, Axes]:
    """Return a figure of ``width`` by ``height`` inches, and its axes in tenfold's look."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = _dress(figure.add_subplot())
    if grid:
        axes.grid(color=INK, alpha=0.18, linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, axes


def _dress(axes: Axes) -> Axes:
    """Give axes tenfold's look."""
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set(color=INK, linewidth=0.8, visible=side in ("left", "bottom"))
    axes.tick_params(colors=INK, labelsize=8, width=0.8, length=3)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=INK, fontsize=8.5)
    return axes


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", color=INK, fontsize=9.5, parse_math=False)


def _shorten(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def _save_png(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(path, format="png", dpi=160)


def _svg(figure: Figure) -> str:
    """Return the figure as an ``<svg>`` element that can stand beside others in one HTML page."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    style = {"svg.fonttype": "none", "svg.hashsalt": "tenfold", "font.sans-serif": ["DejaVu Sans"]}
    with warnings.catch_warnings(), rc_context(style):
        # a browser has the glyphs that matplotlib's own font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # the same ones in every figure
    for color, name in ((INK, "ink"), (ACCENT, "accent")):
        text = text.replace(f": {color}", f": var(--figure-{name}, {color})")
    return text
