"""The ladder on handwritten digits over 10 repeats, each with its own test split, labels and seed.

Each repeat is one ``tenfold run --preset digits`` through kfp.local. The differences between the student and
every cheaper rung are paired by repeat; their intervals are Student's t over the repeats. A repeat that is
there already is not run again, so the benchmark goes on where it was stopped. As many repeats run at once as
there are cores, each with one thread and a home of its own; times are therefore of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from record import RESULTS, current_commit, write_result
from scipy import stats

from tenfold.config import load_preset
from tenfold.environment import Environment
from tenfold.evaluation.figures import save_ladder_png
from tenfold.fingerprint import digest, source_digest

TUNING = (
    "Views, networks, lengths and refinements were chosen on splits of the same 1,797 images with other seeds "
    "(1000 and above), which these repeats never use; see benchmarks/README.md for what each rung's tuning saw."
)


#: The preset's share of test images.
TEST_SHARE: float = load_preset("digits")["data"]["split"]["test_fraction"]


def settings_name(extra: list[str]) -> str:
    """Return a name for code, preset and settings, so that no repeat of others is taken for one of these."""
    preset = json.dumps(load_preset("digits"), sort_keys=True)
    return digest(source_digest() + preset + "\0".join(extra))[:12]


def run_repeat(seed: int, root: Path, extra: list[str]) -> dict[str, Any]:
    """Run one repeat, unless its result is there, and return it."""
    run_id, home = f"digits-{seed}", root / str(seed)
    result = home / "store" / "runs" / run_id / "result.json"
    if not (result.parent / "wall.json").is_file():
        sets = [f"seed={seed}", f"data.split.seed={seed}", f"data.labels.seed={seed}", *extra]
        command = [str(Path(sys.executable).parent / "tenfold"), "run", "--preset", "digits",
                   "--set", "evaluate.selection=0", "--set", "evaluate.export=false"]  # fmt: skip
        for item in sets:
            command += ["--set", item]
        environment = {**os.environ, "TENFOLD_HOME": str(home), "TENFOLD_RUN_ID": run_id, "TENFOLD_THREADS": "1"}
        start = time.monotonic()
        home.mkdir(parents=True, exist_ok=True)
        with (home / "output.txt").open("w") as output:
            subprocess.run(command, env=environment, check=True, stdout=output, stderr=subprocess.STDOUT)
        print(f"repeat {seed}: {time.monotonic() - start:.0f} s", flush=True)
        (result.parent / "wall.json").write_text(json.dumps({"seconds": time.monotonic() - start}))
    found: dict[str, Any] = json.loads(result.read_text())["evaluation"]
    found["wall"] = json.loads((result.parent / "wall.json").read_text())["seconds"]
    return found


def interval(values: list[float]) -> dict[str, float]:
    """Return mean, standard deviation and 95% t-interval over the repeats.

    ``low`` and ``high`` take the repeats as independent. They share their 1,797 images, so the corrected
    interval of Nadeau and Bengio (2003), variance times (1/n + test share / training share), stands beside.
    """
    array = np.array(values)
    count, sd = len(array), array.std(ddof=1)
    reach = stats.t.ppf(0.975, count - 1) * sd
    half, wide = reach * np.sqrt(1 / count), reach * np.sqrt(1 / count + TEST_SHARE / (1 - TEST_SHARE))
    mean = array.mean()
    return {"mean": float(mean), "sd": float(sd), "low": float(mean - half), "high": float(mean + half),
            "corrected_low": float(mean - wide), "corrected_high": float(mean + wide)}  # fmt: skip


def main() -> None:
    """Run the repeats and write results/digits.json and results/digits.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=Environment.read().threads, help="repeats at once")
    parser.add_argument("--home", type=Path, default=Path(".tenfold/bench-digits"))
    parser.add_argument("--name", default="digits", help="of the result file")
    parser.add_argument("--set", action="append", default=[], help="further settings, for trials")
    options = parser.parse_args()
    commit = current_commit()
    home = options.home.absolute() / settings_name(options.set)
    seeds = range(options.first_seed, options.first_seed + options.repeats)
    with ThreadPoolExecutor(options.workers) as pool:
        runs = list(pool.map(lambda seed: run_repeat(seed, home, options.set), seeds))
    rungs = [(rung["id"], rung["title"]) for rung in runs[0]["rungs"]]
    top1 = {name: [_rung(run, name)["top1"]["value"] for run in runs] for name, _ in rungs}
    table = []
    for name, title in rungs:
        gains = [s - v for s, v in zip(top1["student"], top1[name], strict=True)]
        table.append(
            {"id": name, "title": title, "top1": interval(top1[name]), "values": top1[name],
             "student_minus_rung": interval(gains) if name != "student" else None, "gains": gains,
             "seconds": float(np.median([_rung(run, name)["seconds"] for run in runs]))}
        )  # fmt: skip
    result = {
        "what": __doc__, "tuning": TUNING, "seeds": list(seeds), "labels": runs[0]["counts"]["labelled"],
        "test_images": [run["test_images"] for run in runs], "rungs": table,
        "wall_seconds": {"median": float(np.median([r["wall"] for r in runs])), "values": [r["wall"] for r in runs]},
    }  # fmt: skip
    path = write_result(options.name, result, commit)
    figure = [
        {"id": row["id"], "title": row["title"], "seconds": row["seconds"], "served": row["id"] == "student",
         "scores": {"top1": {"value": row["top1"]["mean"], "low": row["top1"]["low"], "high": row["top1"]["high"]}}}
        for row in table
    ]  # fmt: skip
    save_ladder_png(figure, RESULTS / f"{options.name}.png")
    print(f"{'rung':<48}{'top-1':>18}{'student minus rung':>26}{'seconds':>9}")
    for row in table:
        mean, gain = row["top1"], row["student_minus_rung"]
        told = f"{gain['mean'] * 100:+.2f} ({gain['low'] * 100:+.2f} to {gain['high'] * 100:+.2f})" if gain else ""
        print(
            f"{row['title']:<48}{mean['mean'] * 100:>8.2f} ± {(mean['high'] - mean['mean']) * 100:<6.2f}{told:>26}"
            f"{row['seconds']:>9.1f}"
        )
    print(f"wrote {path}")


def _rung(run: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(rung for rung in run["rungs"] if rung["id"] == name)
    return found


if __name__ == "__main__":
    main()
