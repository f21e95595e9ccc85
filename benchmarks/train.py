"""The training engine side by side with its peers: NT-Xent, the pretraining step, checkpoints, two ranks.

Each measurement is a process of its own on two threads in all, the sides in turn, several times over; a ratio is the
median of the paired ratios. Steps are SimCLR's on CIFAR-10: ResNet-18 for small images with 16 or 32 channels, 256
images, two views of 32 pixels, a projection head of two layers, SGD with momentum; data included unless said otherwise,
the first steps and the start excluded. The peer is lightly in the form of its example, in float32, with whichever
of 0, 1 and 2 DataLoader workers is fastest. ``auto`` is what our configuration resolves to. Install what is compared
with by ``pip install -e .[bench]``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nt_xent
import numpy as np
from data import dataset_of, files_of, unpack
from peer import Peer
from record import RESULTS, current_commit, machine, write_result
from steps import THREADS, Side

from tenfold.environment import allocator

REPEATS, TIMED, TRIALS = 5, 30, (0, 1, 2)
WIDTHS = {"16": 0.25, "32": 0.5}
#: A checkpoint each so many steps, in every second of so many windows.
EVERY, WINDOWS = 100, 4
#: What 32,768 pairs in tiles may take, and how many seconds lightly's loss of 4,096 pairs took where that was set.
LARGE = {"seconds": 20.0, "extra_mib": 512.0}
LIGHTLY_4096 = 1.8
HERE = Path(__file__).parent
OURS = {"OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True)
class Place:
    """Where the images are, and how much is measured.

    Attributes:
        dataset: URI of ours.
        images: NumPy file of the peer's.
        warm: steps ahead of those that are timed.
        timed: steps that are timed.
        repeats: of each comparison.
        every: steps from one checkpoint to the next.
    """

    dataset: str
    images: str
    warm: int
    timed: int
    repeats: int
    every: int = EVERY

    def side(self, **settings: Any) -> Callable[[], dict[str, Any]]:
        """Return a measurement of ours."""
        return lambda: ours(Side(self.dataset, "", **{"warm": self.warm, "timed": self.timed, **settings}))

    def ranks(self, **settings: Any) -> Callable[[], dict[str, Any]]:
        """Return a measurement of ours on two ranks."""
        return lambda: ours(Side(self.dataset, "", warm=self.warm, timed=self.timed, **settings), ranks=2)

    def peer(self, *, settings: bool = False, **values: Any) -> Callable[[], dict[str, Any]]:
        """Return a measurement of the peer; with ``settings`` it gets our process's environment."""
        return lambda: peers(Peer(self.images, warm=self.warm, timed=self.timed, **values), settings=settings)


def run(command: list[str], threads: int, *, settings: bool) -> dict[str, Any]:
    """Run a measurement, with or without the environment that our stages give themselves."""
    unset = {"GLIBC_TUNABLES", "OMP_WAIT_POLICY", "TENFOLD_STORE", "TENFOLD_EVENTS", "TENFOLD_OWNER_PID"}
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    environment |= {"OMP_NUM_THREADS": str(threads), "TENFOLD_THREADS": str(threads)}
    if settings:
        environment |= {**allocator(), **OURS}
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    if found.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {found.returncode}:\n{found.stderr[-4000:]}")
    told: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return told


def ours(side: Side, ranks: int = 1) -> dict[str, Any]:
    """Measure our step, on ranks with a share of the threads each."""
    with tempfile.TemporaryDirectory() as folder:
        side = replace(side, store=Path(folder).as_uri())
        spread = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
        command = [sys.executable, *spread, str(HERE / "steps.py"), side.encoded()]
        return run(command, THREADS // ranks, settings=True)


def peers(peer: Peer, *, settings: bool) -> dict[str, Any]:
    """Measure the peer's step."""
    return run([sys.executable, str(HERE / "peer.py"), peer.encoded()], THREADS, settings=settings)


def in_turn(sides: dict[str, Callable[[], dict[str, Any]]], repeats: int) -> list[dict[str, dict[str, Any]]]:
    """Measure the sides one after another, forwards and backwards in turn."""
    runs = []
    for turn in range(repeats):
        found = {}
        for name in list(sides)[:: 1 if turn % 2 else -1]:
            found[name] = sides[name]()
            print(f"  {name}: {found[name]['views_per_second']:.0f} views/s", flush=True)
        runs.append(found)
    return runs


def ratio(runs: list[dict[str, dict[str, Any]]], side: str, other: str, goal: float | None = None) -> dict[str, Any]:
    """Return the paired ratios of two sides' speed, and their median beside the goal."""
    return beside([each[side]["views_per_second"] / each[other]["views_per_second"] for each in runs], goal)


def beside(ratios: list[float], goal: float | None, *, most: bool = False) -> dict[str, Any]:
    """Return ratios and their median beside the goal, which is the least that it may be, or the most."""
    middle = float(np.median(ratios))
    held = None if goal is None else middle <= goal if most else middle >= goal
    return {"ratio": middle, "ratios": ratios, "goal": goal, "held": held}


# --- the parts -------------------------------------------------------------------------------------------


def measure_nt_xent(place: Place) -> dict[str, Any]:
    """Compare NT-Xent in tiles with its peers; at 32,768 pairs, with lightly's time for 4,096."""
    runs = nt_xent.compare(place.repeats, dict.fromkeys(("tiled", "matrix", "lightly"), 4096))
    told: dict[str, Any] = {"pairs": 4096, "runs": runs}
    for other, goal in (("lightly", 5.0), ("matrix", 3.0)):
        told[f"beside_{other}"] = beside([run[other]["seconds"] / run["tiled"]["seconds"] for run in runs], goal)
    for other, limit in (("lightly", 1 / 16), ("matrix", None)):
        shares = [run["tiled"]["extra_mib"] / run[other]["extra_mib"] for run in runs]
        told[f"memory_beside_{other}"] = beside(shares, limit, most=True)
    runs = nt_xent.compare(place.repeats, {"tiled": 32_768, "lightly": 4096})
    large = {name: float(np.median([run["tiled"][name] for run in runs])) for name in LARGE}
    held = all(large[name] <= limit for name, limit in LARGE.items())
    times = [run["tiled"]["seconds"] / run["lightly"]["seconds"] for run in runs]
    in_lightlys_time = beside(times, LARGE["seconds"] / LIGHTLY_4096, most=True)
    return {
        "nt_xent_4096": told,
        "nt_xent_32768": {"pairs": 32_768, **large, "runs": runs, "goal": LARGE, "held": held}
        | {"beside_lightly_4096": in_lightlys_time},
    }


def measure_steps(place: Place) -> dict[str, Any]:
    """Compare the pretraining step with lightly's, and with a step that need not wait for data."""
    found = {}
    for name, width in WIDTHS.items():
        trials = {str(count): place.peer(width=width, workers=count)() for count in TRIALS}
        workers = max(TRIALS, key=lambda count: trials[str(count)]["views_per_second"])
        sides = {
            "ours": place.side(width=width),
            "ours_float32": place.side(width=width, precision="float32"),
            "ours_preloaded": place.side(width=width, data=False),
            "lightly": place.peer(width=width, workers=workers),
            "lightly_channels_last": place.peer(width=width, workers=workers, channels_last=True),
            "lightly_our_environment": place.peer(width=width, workers=workers, settings=True),
        }
        runs = in_turn(sides, place.repeats)
        found[f"steps_{name}"] = {
            "channels": int(name), "workers": workers, "workers_tried": trials,
            "beside_lightly": ratio(runs, "ours", "lightly", 2.5),
            "float32_beside_lightly": ratio(runs, "ours_float32", "lightly"),
            "beside_lightly_channels_last": ratio(runs, "ours", "lightly_channels_last"),
            "float32_beside_lightly_channels_last": ratio(runs, "ours_float32", "lightly_channels_last"),
            "beside_lightly_our_environment": ratio(runs, "ours", "lightly_our_environment"),
            "beside_preloaded": ratio(runs, "ours", "ours_preloaded", 0.9), "runs": runs,
        }  # fmt: skip
    return found


def measure_ranks(place: Place) -> dict[str, Any]:
    """Compare two ranks of one thread with one process of two, on the same global batch."""
    sides: dict[str, Callable[[], dict[str, Any]]] = {}
    for told, data in (("data", True), ("preloaded", False)):
        sides[f"one_{told}"] = place.side(data=data)
        for norm in ("local", "global"):
            sides[f"two_{norm}_{told}"] = place.ranks(data=data, batch_norm=norm)
    runs = in_turn(sides, place.repeats)
    ratios = {
        f"{norm}_{told}": ratio(runs, f"two_{norm}_{told}", f"one_{told}", {"local": 0.8, "global": 0.6}[norm])
        for norm in ("local", "global") for told in ("data", "preloaded")
    }  # fmt: skip
    return {"ranks": {**ratios, "runs": runs}}


def measure_checkpoints(place: Place) -> dict[str, Any]:
    """Compare windows of steps with a checkpoint and without, in turn in the same process."""
    every = place.every
    runs = [place.side(data=False, every=every, timed=WINDOWS * every)() for _ in range(place.repeats)]
    windows = beside([1 / (1 + lost) for each in runs for lost in each["lost"]], 0.98)
    directly = beside([1 - each["lost_directly"] for each in runs], 0.98)
    return {"checkpoints": {"every": every, "windows": windows, "directly": directly, "runs": runs}}


PARTS = {"nt_xent": measure_nt_xent, "steps": measure_steps, "checkpoints": measure_checkpoints, "ranks": measure_ranks}
KEYS = {"nt_xent": ("nt_xent_4096", "nt_xent_32768"), "steps": ("steps_16", "steps_32"),
        "checkpoints": ("checkpoints",), "ranks": ("ranks",)}  # fmt: skip


def images_of(folder: Path) -> Path:
    """Write a folder's images decoded into one NumPy file beside it the first time; returns the file."""
    from PIL import Image

    path = folder.with_suffix(".npy")
    if not path.is_file():
        np.save(path, np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files_of(folder)]))
    return path


def kept(only: list[str]) -> dict[str, Any]:
    """Return the parts of the result file that are not measured now; each says which commit and machine gave it."""
    path = RESULTS / "train.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    left = [key for part, keys in KEYS.items() if part not in only for key in keys if key in before]
    return {key: {"machine": before["machine"], **before[key]} for key in left}


def main() -> None:
    """Measure everything, or some parts, and write results/train.json and train.png."""
    from train_figure import draw

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar10", type=Path, help="tar of CIFAR-10 as JPEG")
    parser.add_argument("--home", type=Path, default=Path(".tenfold/bench-data"))
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="parts; default: all")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--warm", type=int, default=10)
    parser.add_argument("--timed", type=int, default=TIMED)
    parser.add_argument("--every", type=int, default=EVERY, help="steps from one checkpoint to the next")
    parser.add_argument("--images", type=int, help="take the first so many alone (for trying it out)")
    options = parser.parse_args()
    commit, home = current_commit(), options.home.absolute()
    result = kept(options.only)
    home.mkdir(parents=True, exist_ok=True)
    folder = unpack(options.cifar10, home / f"cifar10{f'-{options.images}' if options.images else ''}", options.images)
    folder = folder / "train"
    place = Place(
        dataset_of(folder).uri, str(images_of(folder)), options.warm, options.timed, options.repeats, options.every
    )
    for name in options.only:
        print(name, flush=True)
        about = {
            "commit": commit,
            "machine": machine(),
            "repeats": options.repeats,
            "warm": options.warm,
            "timed": options.timed,
        }
        result |= {key: {**about, **found} for key, found in PARTS[name](place).items()}
        told = {"what": __doc__, "threads": THREADS, **result}
        path = write_result("train", told, commit)  # an interrupted benchmark goes on by --only
        draw(result, path.with_suffix(".png"))
    print(f"wrote {path.relative_to(RESULTS.parent.parent)}")


if __name__ == "__main__":
    main()
