"""The data plane side by side with its peers: packing, views, reading back, growing, listing.

Each comparison runs its sides in turn, in processes of their own on the same machine, images and number of threads or
workers, several times over; the ratio is the median of the paired ratios. The peers are webdataset's ShardWriter (with
the same check decode of every image, in one process) and lightly's SimCLRTransform in a DataLoader. Install them with
``pip install -e .[bench]``.

Views are the papers': SimCLR's of ImageNet (preset ``simclr-r50-1x-100pct``) at 224 pixels and of CIFAR-10 at 32, with
TensorFlow's crops, cubic resizing, and jitter in random order on hue-saturation-value; docs/views.md tells how exact
they are. lightly gets the same strengths and probabilities. The limit is what decoding those JPEGs once, and nothing
else, would allow. Reading back is one pass, from opening the data set to the last image decoded, with and without the
digests.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from record import RESULTS, current_commit, write_result

REPEATS, SECONDS = 5, 6.0
THREADS = 2


def unpack(archive: Path, folder: Path, limit: int | None = None) -> Path:
    """Unpack an archive's images once; ``limit`` takes the first of them in the archive's order."""
    if not folder.is_dir():
        aside = folder.with_suffix(".part")
        with tarfile.open(archive) as tar:
            members = [member for member in tar if member.isfile() and "test/" not in member.name]
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Python before 3.11.4 has no filters
            tar.extractall(aside, members=members[:limit])
        aside.rename(folder)
    return folder


def many_of(folder: Path, times: int) -> Path:
    """Write each image of a folder several times, told apart by some bytes behind its end; returns the folder."""
    made = folder.with_name(f"{folder.name}-{times}-times")
    if not made.is_dir():
        aside = made.with_suffix(".part")
        for turn in range(times):
            (aside / str(turn)).mkdir(parents=True)
            for number, path in enumerate(files_of(folder)):
                (aside / str(turn) / f"{number:06d}.jpg").write_bytes(path.read_bytes() + f"{turn:08d}".encode())
        aside.rename(made)
    return made


def files_of(folder: Path) -> list[Path]:
    """Return the images below ``folder`` in order."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg"})


# --- one measurement each, run in a process of its own ---------------------------------------------------


def rate(step: Callable[[], int]) -> float:
    """Return units a second of ``step``, after a warm-up, over some seconds."""
    step()
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        done += step()
    return done / (time.perf_counter() - start)


def table_of(folder: Path) -> Path:
    """Write a table of a folder's images beside it, with two made-up classes; returns it."""
    table = folder.with_name(f"{folder.name}.csv")
    if not table.is_file():
        lines = [
            f"{path},{number % 2},{'test' if number < 2 else 'train'}\n" for number, path in enumerate(files_of(folder))
        ]
        table.write_text("path,label,split\n" + "".join(lines))
    return table


def dataset_of(folder: Path) -> Any:
    """Return a folder as a data set, sharded into a store beside it the first time."""
    from tenfold.config import DataConfig
    from tenfold.data.build import build_dataset
    from tenfold.data.sources import open_source
    from tenfold.storage import FileStore

    table = table_of(folder)
    config = DataConfig.model_validate({"source": str(table), "labels": {"per_class": 2}})
    store = FileStore(folder.with_name(f"{folder.name}-store"))
    return build_dataset(open_source(str(table)), config, store)[0]


def reader_of(folder: Path) -> Any:
    """Open the training split of a folder's data set."""
    from tenfold.data.reader import SplitReader

    return SplitReader(dataset_of(folder), "unlabelled")


#: What of a CPU preset's contrastive view is changed back to the paper's.
EXACT = {
    "cifar10-cpu": [
        "augment.contrastive.crop.sampling=height", "augment.contrastive.crop.interpolation=cubic",
        "augment.contrastive.jitter.order=random", "augment.contrastive.jitter.colours=hsv",
    ]
}  # fmt: skip


def contrastive(preset: str) -> Any:
    """Return a preset's contrastive view, as the paper has it."""
    from tenfold.augment.spec import resolve_specs
    from tenfold.config import load_config

    assignments = ["data.source=digits", *EXACT.get(preset, [])]
    return resolve_specs(load_config(preset, assignments=assignments).augment).pretrain


def views_ours(folder: Path, preset: str, batch: int) -> float:
    """Return images a second of which we make two views."""
    import torch

    from tenfold.augment.stream import ViewStream

    spec, reader = contrastive(preset), reader_of(folder)
    stream = ViewStream(reader, [spec, spec], min(batch, len(reader)), 0, torch.device("cpu"), THREADS)
    return rate(lambda: len(next(stream).numbers))


def views_lightly(folder: Path, preset: str, batch: int) -> float:
    """Return images a second of which lightly makes two views."""
    from lightly.transforms import SimCLRTransform
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    view = contrastive(preset).view
    jitter, blur = view.jitter, view.blur
    transform = SimCLRTransform(
        input_size=contrastive(preset).image_size, cj_prob=jitter.probability, cj_strength=1.0,
        cj_bright=jitter.brightness, cj_contrast=jitter.contrast, cj_sat=jitter.saturation, cj_hue=jitter.hue,
        min_scale=view.crop.area[0], random_gray_scale=view.grayscale,
        gaussian_blur=blur.probability if blur else 0.0, sigmas=blur.sigma if blur else (0.1, 2.0),
        hf_prob=view.flip, normalize=None,
    )  # fmt: skip
    files = files_of(folder)

    class Images(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 10**9

        def __getitem__(self, number: int) -> Any:
            return transform(Image.open(files[number % len(files)]).convert("RGB"))

    loader = iter(DataLoader(Images(), batch_size=min(batch, len(files)), num_workers=THREADS))
    return rate(lambda: len(next(loader)[0]))


def decode_only(folder: Path, preset: str, batch: int) -> float:
    """Return images a second that DALI decodes and does nothing else with."""
    from nvidia.dali import fn, pipeline_def, types

    reader = reader_of(folder)
    count = len(reader)

    @pipeline_def
    def graph() -> Any:
        data = fn.external_source(
            source=lambda info: reader.image(info.idx_in_epoch % count), batch=False, dtype=types.UINT8
        )
        return fn.decoders.image(data, device="cpu", output_type=types.RGB)

    size = min(batch, count)
    pipe = graph(batch_size=size, num_threads=THREADS, device_id=None, prefetch_queue_depth=2)
    pipe.build()

    def step() -> int:
        pipe.run()
        return size

    return rate(step)


def pack_ours(folder: Path) -> float:
    """Return images a second that we list, check, pack in as many processes as there are cores, and publish."""
    import pandas  # noqa: F401 - pyarrow loads it at its first table; libraries are loaded before either clock starts

    from tenfold.config import DataConfig
    from tenfold.data.adopt import check_of
    from tenfold.data.build import finish
    from tenfold.data.listing import list_images
    from tenfold.data.pack import pack
    from tenfold.data.plan import make_plan
    from tenfold.data.sources import open_source
    from tenfold.storage import FileStore

    table, count = str(table_of(folder)), len(files_of(folder))
    values = {"source": table, "labels": {"per_class": 2}, "partition_images": -(-count // THREADS)}
    config, source = DataConfig.model_validate(values), open_source(table)
    with tempfile.TemporaryDirectory() as place:
        store = FileStore(Path(place) / "store")
        start = time.perf_counter()
        listing = list_images(source, config, Path(place) / "listing")
        plan = make_plan(listing, config, store, source.uri)

        def part(number: int) -> Any:
            return pack(plan, number, check_of(plan, source, store), store, 1)

        with Forked(THREADS, part) as packers:
            packed = packers.map(range(len(plan.partitions)))
        finish(plan, packed, config, store, source.uri)
        return count / (time.perf_counter() - start)


class Forked:
    """Processes that are this one's copies, so that what they call need not be sent to them."""

    _work: Any = None

    def __init__(self, count: int, work: Callable[[int], Any]) -> None:
        Forked._work = work
        self._pool = multiprocessing.get_context("fork").Pool(count)

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.terminate()

    @staticmethod
    def _call(number: int) -> Any:
        return Forked._work(number)

    def map(self, numbers: Iterable[int]) -> list[Any]:
        """Call the work for each number."""
        return self._pool.map(Forked._call, numbers, chunksize=1)


def pack_webdataset(folder: Path) -> float:
    """Return images a second that webdataset's ShardWriter packs, each decoded once before."""
    import webdataset
    from PIL import Image

    files = files_of(folder)
    with tempfile.TemporaryDirectory() as place:
        start = time.perf_counter()
        with webdataset.ShardWriter(f"{place}/%06d.tar", maxcount=4096, verbose=0) as writer:
            for number, path in enumerate(files):
                data = path.read_bytes()
                Image.open(io.BytesIO(data)).convert("RGB")
                writer.write({"__key__": f"{number:09d}", "jpg": data, "json": {"path": str(path)}})
        return len(files) / (time.perf_counter() - start)


def read_back(folder: Path, *, verified: bool) -> float:
    """Return images a second of one pass, from opening the data set to the last image decoded."""
    from nvidia.dali import fn, pipeline_def, types

    from tenfold.data import cache
    from tenfold.data.manifest import open_dataset
    from tenfold.data.reader import SplitReader

    uri = dataset_of(folder).uri
    built = open_dataset(uri).manifest.splits["unlabelled"]
    expected = {f"{shard.sha256}.tar": shard.sha256 for shard in built.shards}
    expected |= {f"{shard.sha256}.idx": shard.index_sha256 for shard in built.shards}
    if not verified:
        cache.file_digest = lambda path: expected[path.name]
    size = min(256, built.count)

    @pipeline_def
    def graph(reader: Any) -> Any:
        data = fn.external_source(
            source=lambda info: reader.image(info.idx_in_epoch % built.count), batch=False, dtype=types.UINT8
        )
        return fn.decoders.image(data, device="cpu", output_type=types.RGB)

    def step() -> int:
        reader = SplitReader(open_dataset(uri), "unlabelled")
        pipe = graph(reader, batch_size=size, num_threads=THREADS, device_id=None, prefetch_queue_depth=2)
        pipe.build()
        batches = built.count // size
        for _ in range(batches):
            pipe.run()
        return batches * size

    return rate(step)


def grow(folder: Path) -> dict[str, float]:
    """Return the seconds of sharding a folder without 1,000 of its images, those alone, and all of it from scratch."""
    from tenfold.config import DataConfig
    from tenfold.data.build import build_dataset
    from tenfold.data.sources import StoreSource, open_source
    from tenfold.storage import Entry, FileStore

    names = sorted(path.relative_to(folder).as_posix() for path in files_of(folder))
    later = set(names[:: len(names) // 1000][:1000])

    class Before(StoreSource):
        def list(self) -> Iterator[Entry]:
            return (entry for entry in super().list() if entry.key not in later)

    config = DataConfig.model_validate({"source": str(folder), "labels": {"per_class": 2}})
    took = {}
    with tempfile.TemporaryDirectory() as place:
        for name, source, store in (
            ("most", Before(FileStore(folder)), "a"), ("new", open_source(str(folder)), "a"),
            ("all", open_source(str(folder)), "b"),
        ):  # fmt: skip
            start = time.perf_counter()
            build_dataset(source, config, FileStore(Path(place) / store), threads=THREADS)
            took[name] = time.perf_counter() - start
            if name == "new":
                shutil.rmtree(Path(place) / store)
    return {"images": len(names), **took}


def list_many(count: int) -> dict[str, float]:
    """Return seconds and peak memory (MiB) of listing and planning ``count`` made-up keys."""
    from tenfold.config import DataConfig
    from tenfold.data.listing import list_images
    from tenfold.data.plan import make_plan
    from tenfold.storage import Entry, FileStore

    class Made:
        uri = "made://up"

        def list(self) -> Iterator[Entry]:
            for number in range(count):
                yield Entry(
                    f"train/class{number % 1000:03d}/image-{number:09d}.jpg", 100_000 + number % 999, f"{number:x}"
                )

        def read(self, path: str) -> bytes:
            raise AssertionError(path)

        def lines(self) -> None:
            return

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        listing = list_images(Made(), DataConfig(), Path(place) / "listing")
        plan = make_plan(listing, DataConfig(), FileStore(Path(place) / "store"), Made.uri)
    assert sum(partition.images for partition in plan.partitions) == count
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": time.perf_counter() - start, "peak_mib": peak, "before_mib": before}


# --- the comparisons -------------------------------------------------------------------------------------


def measure(*arguments: str) -> Any:
    """Run one measurement in a process of its own."""
    command = [sys.executable, __file__, "--one", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(found.stdout.splitlines()[-1])


def paired(ours: tuple[str, ...], theirs: tuple[str, ...], repeats: int) -> dict[str, Any]:
    """Measure two things in turn; return both and the median of the ratios."""
    one, other = [], []
    for turn in range(repeats):
        sides = [(one, ours), (other, theirs)]
        for kept, arguments in sides if turn % 2 else sides[::-1]:
            kept.append(measure(*arguments))
    ratios = [a / b for a, b in zip(one, other, strict=True)]
    return {"ours": one, "theirs": other, "ratios": ratios, "ratio": float(np.median(ratios))}


def growing(folder: str) -> dict[str, float]:
    """Return what sharding 1,000 new images costs beside sharding all."""
    found: dict[str, float] = measure("grow", folder)
    return {**found, "share": found["new"] / found["all"]}


#: Measurements of the figure: what is told of each, and the ratio that we set out for.
PEERS = {
    "views_224": ("two views, 224 px, photographs\nbeside lightly", 2.0),
    "views_32": ("two views, 32 px, CIFAR-10\nbeside lightly", 6.0),
    "packing_photographs": ("packing photographs\nbeside webdataset", 2.0),
    "packing_cifar10": ("packing CIFAR-10\nbeside webdataset", 2.0),
}
LIMITS = {
    "limit_224": ("two views, 224 px, beside\ndecoding once and nothing else", None),
    "limit_32": ("two views, 32 px, beside\ndecoding once and nothing else", None),
    "reading": ("reading with digests verified\nbeside reading without", 0.9),
}


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the paired ratios as points, their medians as bars, and what we set out for as a line."""
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained")
    for axes, names, title in zip(panels, (PEERS, LIMITS), ("times as fast", "share of the speed"), strict=True):
        for place, (name, (told, goal)) in enumerate(names.items()):
            axes.barh(place, result[name]["ratio"], color="#9ecae1", height=0.5)
            axes.plot(result[name]["ratios"], [place] * len(result[name]["ratios"]), "o", color="#08519c", ms=4)
            if goal is not None:
                axes.plot([goal, goal], [place - 0.35, place + 0.35], color="#d94801", lw=2)
            right = max(*result[name]["ratios"], goal or 0.0)
            axes.text(right, place, f"  {result[name]['ratio']:.2f}", va="center", fontweight="bold")
            axes.text(-0.01, place, told, ha="right", va="center", transform=axes.get_yaxis_transform(), fontsize=8)
        axes.set(yticks=[], title=title, xlim=(0, 1.15 * axes.get_xlim()[1]))
        axes.invert_yaxis()
        axes.spines[["top", "right", "left"]].set_visible(False)
    figure.supxlabel("bar: median of paired runs; points: the runs; line: the goal", fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def run_one(what: str, arguments: list[str]) -> Any:
    """Run the measurement that ``--one`` names."""
    if what == "list_many":
        return list_many(int(arguments[0]))
    folder = Path(arguments[0])
    if what in {"views_ours", "views_lightly", "decode_only"}:
        return globals()[what](folder, arguments[1], int(arguments[2]))
    if what in {"verified", "unverified"}:
        return read_back(folder, verified=what == "verified")
    return {"pack_ours": pack_ours, "pack_webdataset": pack_webdataset, "grow": grow}[what](folder)


def main() -> None:
    """Measure everything and write results/data.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, nargs="?", help="tar of photographs of about 500 pixels (JPEG)")
    parser.add_argument("cifar10", type=Path, nargs="?", help="tar of CIFAR-10 as JPEG")
    parser.add_argument("--home", type=Path, default=Path(".tenfold/bench-data"))
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--keys", type=int, default=10_000_000)
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_one(options.one[0], options.one[1:])))
        return
    commit, home = current_commit(), options.home.absolute()
    home.mkdir(parents=True, exist_ok=True)
    photographs = str(unpack(options.photographs, home / "photographs"))
    cifar = str(unpack(options.cifar10, home / "cifar10") / "train")
    some = str(unpack(options.cifar10, home / "cifar10-some", 10_000))
    parts = home / f"parts-{commit}-{options.repeats}.json"  # an interrupted benchmark goes on where it stopped
    result: dict[str, Any] = json.loads(parts.read_text()) if parts.is_file() else {}

    def note(name: str, measured: Callable[[], dict[str, Any]]) -> None:
        if name in result:
            return
        found = result[name] = measured()
        parts.write_text(json.dumps(result))
        print(name, {key: value for key, value in found.items() if not isinstance(value, list)}, flush=True)

    for name, place, preset, batch in (
        ("224", photographs, "simclr-r50-1x-100pct", "64"), ("32", some, "cifar10-cpu", "256"),
    ):  # fmt: skip
        sides = (("views_ours", place, preset, batch), ("views_lightly", place, preset, batch))
        limit = (sides[0], ("decode_only", place, preset, batch))
        note(f"views_{name}", partial(paired, *sides, options.repeats))
        note(f"limit_{name}", partial(paired, *limit, options.repeats))
    many = str(many_of(Path(photographs), 24))  # a packer's start and end weigh too much in 250 images
    note("packing_photographs", lambda: paired(("pack_ours", many), ("pack_webdataset", many), options.repeats))
    note("packing_cifar10", lambda: paired(("pack_ours", some), ("pack_webdataset", some), options.repeats))
    note("reading", lambda: paired(("verified", some), ("unverified", some), options.repeats))
    note("growing_cifar10", lambda: growing(cifar))
    whole = many_of(Path(photographs), 204)
    note("growing_photographs", lambda: growing(str(whole)))
    shutil.rmtree(whole)
    note("listing", lambda: {"keys": options.keys, **measure("list_many", str(options.keys))})
    path = write_result("data", {"what": __doc__, "threads": THREADS, "repeats": options.repeats, **result}, commit)
    draw(result, path.with_suffix(".png"))
    print(f"wrote {path.relative_to(RESULTS.parent.parent)}")


if __name__ == "__main__":
    main()
