"""The chart of train.py: ratios beside their goals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: Panel → path of a ratio in the result → what is told of it.
PANELS = {
    "times as fast": {
        "nt_xent_4096.beside_lightly": "NT-Xent of 4,096 pairs\nbeside lightly's",
        "nt_xent_4096.beside_matrix": "beside whole matrices",
        "steps_16.beside_lightly": "a step of 16 channels\nbeside lightly's example",
        "steps_16.beside_lightly_channels_last": "with its channels last",
        "steps_16.float32_beside_lightly": "ours in float32",
        "steps_32.beside_lightly": "a step of 32 channels\nbeside lightly's example",
        "steps_32.beside_lightly_channels_last": "with its channels last",
        "steps_32.float32_beside_lightly": "ours in float32",
    },
    "share of the speed": {
        "steps_16.beside_preloaded": "16 channels, with data\nbeside without",
        "steps_32.beside_preloaded": "32 channels, with data\nbeside without",
        "checkpoints.directly": "with checkpoints\nbeside none",
        "ranks.local_data": "two ranks beside one process,\nlocal batch norm",
        "ranks.local_preloaded": "the same without data",
        "ranks.global_data": "two ranks beside one process,\nglobal batch norm",
        "ranks.global_preloaded": "the same without data",
    },
}


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the paired ratios as points, their medians as bars, and what we set out for as a line."""
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axes, (title, rows) in zip(panels, PANELS.items(), strict=True):
        there = {name: told for name, told in rows.items() if name.partition(".")[0] in result}
        for place, (name, told) in enumerate(there.items()):
            part, _, key = name.partition(".")
            found = result[part][key]
            axes.barh(place, found["ratio"], color="#9ecae1", height=0.5)
            axes.plot(found["ratios"], [place] * len(found["ratios"]), "o", color="#08519c", ms=4)
            if found["goal"] is not None:
                axes.plot([found["goal"]] * 2, [place - 0.35, place + 0.35], color="#d94801", lw=2)
            right = max(*found["ratios"], found["ratio"], found["goal"] or 0.0)
            axes.text(right, place, f"  {found['ratio']:.2f}", va="center", fontweight="bold")
            axes.text(-0.01, place, told, ha="right", va="center", transform=axes.get_yaxis_transform(), fontsize=8)
        axes.set(yticks=[], title=title, xlim=(0, 1.15 * axes.get_xlim()[1]))
        axes.invert_yaxis()
        axes.spines[["top", "right", "left"]].set_visible(False)
    figure.supxlabel("bar: median of paired runs; points: the runs; line: the goal", fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)
