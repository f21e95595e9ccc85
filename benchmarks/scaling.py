"""What the papers' runs would cost on 8, 64 and 512 H100 GPUs: an estimate, of which nothing was measured on a GPU.

Networks are counted from the code (counts.py), recipes are the presets', what a cluster does is published or assumed
(cluster.py), and estimate.py puts them together. The result goes into results/scaling.json and scaling.png;
``--write docs/scaling.md`` puts the tables between that document's markers. A price is the reader's: ``--price 3``
prints the money at 3 a GPU-hour.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path
from typing import Any

import cluster
from cluster import IMAGES, NODE, SCENARIOS
from counts import count, launches_of_a_norm
from estimate import (
    FP32,
    FP64,
    GPUS,
    Run,
    activation_bytes,
    checkpoint_bytes,
    core_seconds,
    hours,
    networks,
    norm_seconds,
    parts_needed,
    plan,
    runs,
    shards,
    state_bytes,
    step_flops,
    step_seconds,
)
from record import RESULTS, current_commit, write_result
from timm import create_model


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table; columns behind the first are set to the right where they are short."""
    rule = ["---"] + ["---" if max(len(row[place]) for row in rows) > 40 else "---:" for place in range(1, len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])


def number(value: float) -> str:
    """Return a value with two digits that count, or whole from 100 on."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def three(found: list[str | None]) -> str:
    """Return what holds on 8, 64 and 512 GPUs; a dash where there is nothing."""
    return " / ".join(each or "–" for each in found)


def spread(run: Run, gpus: int) -> str | None:
    """Return hours as expected, with low and high."""
    low, expected, high = (hours(run, gpus, name) for name in ("low", "expected", "high"))
    if low is None or expected is None or high is None:
        return None
    return f"{number(expected)} ({number(low)}–{number(high)})"


def tables() -> dict[str, str]:
    """Return the document's tables by the names of their markers."""
    counted = networks()
    giant = count(lambda: create_model("vit_giant_patch14_224", num_classes=1000))
    rates = cluster.published(counted["R50, classes"][1].macs, giant.macs)
    units = core_seconds()
    count_of, stored = shards()
    told: dict[str, str] = {}
    told["networks"] = table(
        ["network", "G multiply-adds a view", "M parameters", "batch norms", "MB kept a view",
         "MB, blocks checkpointed", "forward FLOPs a byte kept", "launches forward"],
        [[name, f"{c.macs / 1e9:.2f}", f"{c.parameters / 1e6:.1f}", str(c.norms), f"{c.saved / 1e6:.0f}",
          f"{c.checkpointed / 1e6:.0f}", f"{2 * c.macs / c.saved:.0f}", str(c.launches)]
         for name, (_, c) in counted.items()],
    )  # fmt: skip
    told["published"] = table(
        ["training", "GPUs", "images/s a GPU", "share of the peak", "source"],
        [[p.what, str(p.gpus), f"{p.images / p.gpus:,.0f}", f"{100 * p.share:.1f}%", p.source] for p in rates],
    )
    told["assumptions"] = table(["what", "value (low / expected / high cost)", "source or reason"],
                                [list(row) for row in cluster.ASSUMPTIONS])  # fmt: skip
    told["hours"] = table(
        ["run", "EFLOP", *(f"hours on {gpus}" for gpus in GPUS), "GPU-hours on 8 / 64 / 512"],
        [[run.name, number(run.steps * sum(step_flops(run, checkpointed=False).values()) / 1e18),
          *(spread(run, gpus) or "–" for gpus in GPUS),
          three([number(gpus * found) if (found := hours(run, gpus, "expected")) else None for gpus in GPUS])]
         for run in runs()],
    )  # fmt: skip
    told["steps"] = table(
        ["run", "GPUs", "parts", "products or launches", "batch norms' collectives", "NT-Xent",
         "gradients not hidden", "step"],
        [[run.name, str(gpus), _told(plan(run, gpus)), *(f"{1e3 * found[key]:,.0f}" for key in _PARTS)]
         for run in runs() if networks()[run.network][1].norms and run.images >= 4096 for gpus in GPUS
         if (found := step_seconds(run, gpus, SCENARIOS["expected"]))],
    )  # fmt: skip
    told["memory"] = table(
        ["run", "trained views a GPU", "state, GB (sharded)", "MB a view (checkpointed)", "parts, DDP",
         "parts, DDP, checkpointed", "parts, FSDP, checkpointed"],
        [[run.name, three([number(run.images * run.views / gpus) if gpus <= run.most else None for gpus in GPUS]),
          f"{state_bytes(run) / 1e9:.1f} ({three([f'{state_bytes(run, gpus) / 1e9:.1f}' for gpus in GPUS])})",
          f"{activation_bytes(run, checkpointed=False) / 1e6:.0f} "
          f"({activation_bytes(run, checkpointed=True) / 1e6:.0f})",
          *(three([str(parts) if (parts := parts_needed(run, gpus, checkpointed=c, sharded=s)) else None
                   for gpus in GPUS]) for c, s in ((False, False), (True, False), (True, True)))]
         for run in runs()],
    )  # fmt: skip
    told["network"] = table(
        ["network", "gradients, MB", "all-reduce sends, MB", "ms at 370 / 50 GB/s", "FSDP sends, MB"],
        [[name, f"{FP32 * c.parameters / 1e6:,.0f}",
          three([f"{cluster.ring_all_reduce(FP32 * c.parameters, gpus) / 1e6:,.0f}" for gpus in GPUS]),
          " / ".join(number(1e3 * cluster.ring_all_reduce(FP32 * c.parameters, 64) / rate)
                     for rate in (cluster.NVLINK, cluster.INFINIBAND)),
          three([f"{cluster.fully_sharded(c.parameters, gpus) / 1e6:,.0f}" for gpus in GPUS])]
         for name, (_, c) in counted.items() if "classes" not in name],
    )  # fmt: skip
    normed = [(name, c) for name, (_, c) in counted.items() if c.norms and "classes" not in name]
    told["norms"] = table(
        ["of one pass forward and backward", "8 GPUs", "64 GPUs", "512 GPUs"],
        [["a small all-reduce, µs by NCCL's model (tree)",
          *(f"{1e6 * cluster.tree_reduce(gpus):.0f}" for gpus in GPUS)],
         *([f"{name}: {c.norms} batch norms, MB sent",
            *(f"{cluster.ring_all_reduce((3 * FP64 + 2 * FP32) * c.norm_channels, gpus) / 1e6:,.1f}" for gpus in GPUS)]
           for name, c in normed),
         *([f"{name}: ms, {scenario}",
            *(f"{1e3 * sum(norm_seconds(c, gpus, SCENARIOS[scenario])):.1f}" for gpus in GPUS)]
           for name, c in normed for scenario in SCENARIOS),
         ["NT-Xent: a small all-gather, µs by NCCL's model (ring)",
          *(f"{1e6 * cluster.ring_gather(gpus):.0f}" for gpus in GPUS)],
         ["NT-Xent: MB of 4,096 images' views gathered",
          *(f"{(gpus - 1) / gpus * 2 * 4096 * 128 * FP32 / 1e6:.1f}" for gpus in GPUS)]],
    )  # fmt: skip
    told["data"] = table(
        ["run", "images/s", "CPU cores a GPU for our views", "GB/s of JPEG", "GB/s from the store, cache of 100 GB",
         "requests/s"],
        [_data_row(run, units, count_of, stored) for run in runs() if run.name not in _SMALL],
    )  # fmt: skip
    told["storage"] = table(
        ["what", "GB", "s: the loop waits", "s: written beside it"],
        [[f"ImageNet in {count_of} shards", f"{stored / 1e9:.0f}", "", ""],
         *([f"a checkpoint of {run.name}", f"{kept / 1e9:.1f}", f"{kept / cluster.COPY_RATE:.1f}",
            f"{kept / cluster.STORE_RATE:.1f}"]
           for run in runs() if run.name not in _SMALL and (kept := checkpoint_bytes(run))),
         *([name, f"{FP32 * counted[key][1].parameters / 1e9:.2f}", "", ""]
           for name, key in (("the big teacher", "R152 3x+SK, classes"), ("the R50 student", "R50, classes")))],
    )  # fmt: skip
    return told


_PARTS = ("computing", "norms", "loss", "gradients", "step")
_SMALL = {"its fine-tuning, 1%", "its fine-tuning, 10%"}


def _told(how: tuple[int, bool] | None) -> str:
    return f"{how[0]}{', checkpointed' if how[1] else ''}" if how else "–"


def _data_row(run: Run, units: tuple[float, float], count_of: int, stored: float) -> list[str]:
    rates = [run.images / found["step"] if (found := step_seconds(run, gpus, SCENARIOS["expected"])) else None
             for gpus in GPUS]  # fmt: skip
    missed = cluster.cache_misses(100e9 / stored)
    cost = units[0] + run.sources * units[1]

    def each(of: Any) -> str:
        return three([of(rate, gpus) if rate else None for rate, gpus in zip(rates, GPUS, strict=True)])

    return [
        run.name,
        each(lambda rate, gpus: f"{rate:,.0f}"),
        each(lambda rate, gpus: number(rate / gpus * cost)),
        each(lambda rate, gpus: number(rate * cluster.IMAGE_BYTES / 1e9)),
        each(lambda rate, gpus: number(rate / IMAGES * stored * missed * gpus / NODE / 1e9)),
        each(lambda rate, gpus: number(rate / IMAGES * count_of * missed * gpus / NODE)),
    ]


# --- where they go ---------------------------------------------------------------------------------------


def written(document: str, made: dict[str, str]) -> str:
    """Return a document with the tables between its markers ``<!-- scaling:NAME -->`` and ``<!-- end -->``.

    Raises:
        KeyError: a marker names no table.
    """
    pattern = re.compile(r"(<!-- scaling:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda found: f"{found[1]}{made[found[2]]}\n{found[3]}", document)


def draw(path: Path) -> None:
    """Draw the hours against the GPUs, each run in a panel, with the band from low to high."""
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(3, 3, figsize=(10, 7.5), layout="constrained", sharex=True)
    for axes, run in zip(panels.flat, runs(), strict=True):
        at = [gpus for gpus in GPUS if hours(run, gpus, "expected")]
        low, expected, high = ([hours(run, gpus, name) or 0.0 for gpus in at] for name in ("low", "expected", "high"))
        axes.fill_between(at, low, high, color="#9ecae1", alpha=0.6, lw=0)
        axes.plot(at, expected, "o-", color="#08519c", ms=4)
        axes.plot(at, [expected[0] * at[0] / gpus for gpus in at], ":", color="#d94801")
        axes.set(xscale="log", yscale="log", xticks=GPUS, xticklabels=[str(gpus) for gpus in GPUS])
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_title(run.name, fontsize=10)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("H100 GPUs. Line: expected; band: low to high; dotted: in proportion to the GPUs", fontsize=9)
    figure.supylabel("hours (estimate)", fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def money(price: float) -> str:
    """Return a table of what the runs cost at ``price`` a GPU-hour, as expected."""
    return table(
        ["run", *(f"{gpus} GPUs" for gpus in GPUS)],
        [[run.name, *(f"{found * gpus * price:,.0f}" if (found := hours(run, gpus, "expected")) else "–"
                      for gpus in GPUS)] for run in runs()],
    )  # fmt: skip


def main() -> None:
    """Compute everything, print the tables, and write results/scaling.json and .png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--price", type=float, help="of a GPU-hour; prints the money")
    parser.add_argument("--write", type=Path, help="document whose tables are replaced")
    options = parser.parse_args()
    commit, made = current_commit(), tables()
    print("\n\n".join(made.values()))
    if options.price:
        print(f"\n{money(options.price)}")
    result = {
        "what": __doc__, "gpus": GPUS,
        "networks": {name: {"kind": kind, **dataclasses.asdict(counts)} for name, (kind, counts) in networks().items()},
        "operations_of_a_norm": dict(zip(("alone", "forward", "backward"), launches_of_a_norm(), strict=True)),
        "scenarios": {name: dataclasses.asdict(scenario) for name, scenario in SCENARIOS.items()},
        "runs": {
            run.name: {
                **dataclasses.asdict(run),
                "hours": {gpus: {name: hours(run, gpus, name) for name in SCENARIOS} for gpus in GPUS},
                "seconds_of_a_step": {gpus: step_seconds(run, gpus, SCENARIOS["expected"]) for gpus in GPUS},
                "parts_and_checkpointed": {gpus: plan(run, gpus) for gpus in GPUS},
            }
            for run in runs()
        },
    }  # fmt: skip
    path = write_result("scaling", result, commit)
    draw(path.with_suffix(".png"))
    print(f"\nwrote {path.relative_to(RESULTS.parent.parent)}")
    if options.write:
        options.write.write_text(written(options.write.read_text(), made))
        print(f"wrote {options.write}")


if __name__ == "__main__":
    main()
