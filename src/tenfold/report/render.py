"""A run's evaluation as one HTML page that needs nothing else: no script, no font, no request.

Relies on jinja2 with autoescape, since class names, paths and titles come from users and may hold HTML. The
page's own Content-Security-Policy forbids scripts and every outside request.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tenfold.evaluation.figures import confusion_svg, curves_svg, ladder_svg, reliability_svg
from tenfold.progress import clock

#: The page shows at most this many quarantined images, and says how many there are.
_QUARANTINED = 200
_CONFUSIONS = 8


def render(evaluation: dict[str, Any], verdict: dict[str, Any] | None = None) -> str:
    """Return the report as one HTML page.

    Args:
        evaluation: what the evaluate stage wrote to evaluation.json.
        verdict: what the gate of promotion said, if it has been asked: ``alias`` (champion or challenger),
            ``model``, ``version``, ``checks`` (each with ``passed`` and ``told``) and ``champion`` (the former one's
            version and top1).
    """
    rungs = {rung["id"]: rung for rung in evaluation["rungs"]}
    served = rungs[evaluation["served"]["id"]]
    scores = served["scores"]
    template = environment().get_template("report.html.j2")
    return template.render(
        e=evaluation,
        verdict=verdict,
        served=served,
        gain=rungs["baseline"]["gain"],
        recalls=sorted(scores["recalls"].items(), key=_worst_first),
        confusions=_confusions(scores["confusion"], evaluation["classes"]),
        quarantined=evaluation["quarantined"][:_QUARANTINED],
        ladder=Markup(ladder_svg(evaluation["rungs"])),  # noqa: S704  matplotlib escapes text
        confusion=Markup(confusion_svg(scores["confusion"], evaluation["classes"])),  # noqa: S704
        reliability=Markup(reliability_svg(scores["reliability"])),  # noqa: S704
        curves=[
            Markup(curves_svg(points, stage))  # noqa: S704
            for stage, points in evaluation["curves"].items()
            if points
        ],
    )


def _worst_first(item: tuple[str, dict[str, float] | None]) -> tuple[bool, float]:
    recall = item[1]
    return recall is None, recall["value"] if recall else 0.0


def _confusions(matrix: list[list[int]], classes: list[str]) -> list[tuple[str, str, int]]:
    """Return the most frequent (true class, predicted class, count) of the mistakes."""
    counts = np.array(matrix)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:_CONFUSIONS]
    pairs = [divmod(int(place), len(classes)) for place in order]
    found = [(classes[row], classes[column], int(counts[row, column])) for row, column in pairs]
    return [pair for pair in found if pair[2]]


def _short(name: str) -> str:
    """Return the first 12 characters of a hash or an id, without the algorithm."""
    name = name.removeprefix("sha256:")
    return name if len(name) <= 12 else name[:12] + "…"


def environment() -> Environment:
    """Return where templates are found and what they may call."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "percent": lambda share: f"{100 * share:.1f}%",
        "points": lambda share: f"{100 * share:+.1f}".replace("-", "−"),
        "bare": lambda share: f"{100 * share:.1f}",
        "number": lambda count: f"{count:,}",
        "millions": lambda count: f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,}",
        "clock": clock,
        "short": _short,
    }
    made.filters.update(filters)
    return made
