"""The commands that ask a student: classes of images, and whether new images differ from those that it knows."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from tenfold.cli.local_run import DEFAULT_MODEL
from tenfold.cli.options import errors
from tenfold.environment import Environment
from tenfold.errors import BadImageError, ConfigError, DataError, TenfoldError, redact
from tenfold.progress import count

if TYPE_CHECKING:  # torch takes its time to load
    from tenfold.config import PixelsConfig
    from tenfold.evaluation.drift import Drift

#: What a dataset URI ends in.
_DATASET = re.compile(r"/datasets/[0-9a-f]{64}$")


def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    model: Annotated[str, typer.Option(help="Registered model: NAME, NAME@ALIAS or NAME/VERSION.")] = DEFAULT_MODEL,
    student: Annotated[Path | None, typer.Option(help="Folder of a student, instead of a registered one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV: each class's probability in a column.")] = False,
) -> None:
    """Classify images with the champion or another student."""
    if as_json and as_csv:
        raise ConfigError("give one of --json and --csv")

    missing = [str(path) for path in images if not os.path.lexists(path)]
    if missing:
        raise DataError(f"there is no file {', '.join(missing[:10])}")
    from tenfold.data.annotations import image_suffixes
    from tenfold.predictor import Predictor

    with tempfile.TemporaryDirectory() as scratch:
        predictor = Predictor(student or fetch_student(model, Path(scratch))[0])
    suffixes = image_suffixes(predictor.description.evaluation.pixels)
    failed, table = False, csv.writer(sys.stdout, lineterminator="\n")
    if as_csv:
        table.writerow(["path", "label", "probability", *(f"p({name})" for name in predictor.description.classes)])
    for path in (file for given in images for file in (_images_below(given, suffixes) or [given])):
        try:
            if path.is_dir():
                raise DataError("no images below it")
            found: dict[str, Any] = vars(predictor([path.read_bytes()])[0])
        except (TenfoldError, OSError) as error:
            errors.print(f"{path}: {error}", markup=False, highlight=False, soft_wrap=True)
            failed = True
            continue
        if as_json:
            print(json.dumps({"path": str(path), **found}))
        elif as_csv:
            shares = [f"{share:.6f}" for share in found["probabilities"].values()]
            table.writerow([str(path), found["label"], f"{found['probability']:.6f}", *shares])
        else:
            print(f"{path}\t{found['label']}\t{found['probability']:.3f}")
    if failed:
        raise typer.Exit(2)


def _images_below(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return a folder's images; none of a file."""
    return sorted(each for each in path.rglob("*") if each.suffix.lower() in suffixes) if path.is_dir() else []


def fetch_student(model: str, folder: Path) -> tuple[Path, Mapping[str, str]]:
    """Fetch a registered student, the champion unless said otherwise; return its folder and its version's tags."""
    from tenfold.registry import CHALLENGER, CHAMPION, Registry
    from tenfold.registry.models import is_version

    name, separator, which = model.partition("@") if "@" in model else model.partition("/")
    environment = Environment.read()
    missing = (
        f"no model '{name}' is registered in {redact(environment.tracking_uri)} (MLFLOW_TRACKING_URI, TENFOLD_HOME); "
        "`tenfold run` registers one under promote.model: give --model that name, or --student FOLDER"
    )
    if environment.tracking_uri.startswith("sqlite:///") and not Path(environment.tracking_uri[10:]).is_file():
        raise DataError(missing)  # MLflow would make an empty one
    registry = Registry(environment, name)
    waits = ""
    if not separator and (held := registry.by_alias(CHAMPION)) is None:
        held, waits = registry.by_alias(CHALLENGER), ", the challenger: there is no champion"
    elif separator:
        held = registry.by_version(which) if is_version(which) else registry.by_alias(which)
    if held is None:
        wanted = f"version {which}" if is_version(which) else f"alias '{which}'"
        raise DataError(f"'{name}' has no {wanted}; MLflow's registry lists what it has" if separator else missing)
    which = which or held.version
    errors.print(f"{name}, {'version ' if is_version(which) else ''}{which}{waits}", style="dim", highlight=False)
    return registry.download(which, folder), held.tags


def drift(
    new: Annotated[str, typer.Argument(help="New images: a folder, s3://bucket/prefix, any source, or a dataset URI.")],
    model: Annotated[str, typer.Option(help="Registered model: NAME, NAME@ALIAS or NAME/VERSION.")] = DEFAULT_MODEL,
    student: Annotated[Path | None, typer.Option(help="Folder of a student, instead of a registered one.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="URI of the data set that it learned from; else as the registry says.")
    ] = None,
    least: Annotated[
        float | None,
        typer.Option(min=0.5, max=0.999, help="Share of pairs told apart from which on it is a drift; else 0.75."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the images that are drawn where there are more than 2,000.")] = 0,
    figure: Annotated[Path | None, typer.Option(help="Draw confidence and classes of both (PNG).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="End with 3 where the images have drifted.")] = False,
) -> None:
    """Compare new images with those that the champion learned from, as the champion sees them."""
    from tenfold.data.contents import contents, numbered
    from tenfold.data.decode import CHECKED
    from tenfold.data.manifest import open_dataset
    from tenfold.data.reader import SplitReader
    from tenfold.data.sources import TABLES
    from tenfold.evaluation.drift import FEWEST, LEAST, compare, draw
    from tenfold.predictor import Predictor

    environment = Environment.read()
    if student is not None and dataset is None:
        raise ConfigError("--student needs --dataset: the URI of the data set that it learned from")
    if figure is not None and (figure.is_dir() or not figure.parent.is_dir()):
        raise ConfigError(f"--figure {figure}: name a file in a folder that is there")
    new = new.rstrip("/") if _DATASET.search(new.rstrip("/")) else new
    if "://" not in new and new != "digits" and not os.path.lexists(new):
        raise DataError(f"there is no file or folder {new}")
    if Path(new).is_file() and not new.endswith(TABLES):
        raise DataError(f"{new} is a file: name the folder that it lies in, or a table of images")
    with tempfile.TemporaryDirectory() as scratch:
        folder, tags = (student, {}) if student is not None else fetch_student(model, Path(scratch))
        predictor = Predictor(folder, CHECKED)  # what comes from outside is checked as it is read
    uri = dataset or tags.get("tenfold.dataset", "")
    if not uri:
        raise DataError(f"the registry does not say which data set {model} learned from; name it by --dataset")
    known, cache = open_dataset(uri), environment.home / "cache"
    kind, reader = predictor.description.evaluation.pixels, SplitReader(known, "unlabelled", cache)
    if reader.pixels != (kind and kind.stored):
        raise DataError(f"the student takes images of other channels or bits than those of {uri}")
    had = contents(known)
    if _DATASET.search(new):
        other = open_dataset(new)
        now = numbered(other, "unlabelled")
        images = draw(SplitReader(other, "unlabelled", cache), seed, now.numbers[~np.isin(now.contents, had)])
    else:
        images = _read(new, kind, set(had.tolist()), seed)
    before, after = predictor.look(draw(reader, seed)), predictor.look(images)
    counts = len(after.features), len(before.features)
    if min(counts) < FEWEST:
        raise DataError(
            f"at least {FEWEST} images are needed on each side; there are {counts[0]:,} that the student's data set "
            f"lacks, and {counts[1]:,} that it has"
        )
    found = compare(before, after, predictor.description.classes, LEAST if least is None else least, seed)
    if figure is not None:
        from tenfold.evaluation.figures import save_drift_png

        save_drift_png(before.probabilities.max(1), after.probabilities.max(1), found.class_shares, figure)
    if as_json:
        print(json.dumps(found.as_dict(), indent=1))
    else:
        _print(found)
    if figure is not None:
        errors.print(f"wrote {figure}", style="dim", highlight=False)
    if exit_code and found.drifted:
        raise typer.Exit(3)  # 1 is any failure's


def _read(source: str, pixels: PixelsConfig | None, had: set[int], seed: int) -> Iterator[bytes]:
    """Yield images of a source in an order drawn by the seed, 2,000 at most.

    Those that the student's data set has are passed over, and so is what cannot be decoded, which is told.
    """
    from tenfold.data.annotations import image_suffixes
    from tenfold.data.contents import content_of
    from tenfold.data.decode import read_pixels
    from tenfold.data.sources import open_source
    from tenfold.evaluation.drift import IMAGES
    from tenfold.predictor import MAX_PIXELS

    opened = open_source(source)
    suffixes = image_suffixes(pixels)
    names = sorted(entry.key for entry in opened.list() if entry.key.lower().endswith(suffixes))
    if not names:
        raise DataError(f"no images below {source}")
    taken, bad = 0, []
    for place in np.random.default_rng(seed).permutation(len(names)):
        data = opened.read(names[place])
        if content_of(data) in had:
            continue
        try:
            read_pixels(data, pixels, MAX_PIXELS)
        except BadImageError:
            bad.append(names[place])
            continue
        yield data
        taken += 1
        if taken == IMAGES:
            break
    if bad:
        errors.print(f"passed over: {count(len(bad), 'image')} that cannot be decoded, {bad[0]} first", markup=False)


def _print(found: Drift) -> None:
    verdict = "drift" if found.drifted else "no drift"
    print(f"{verdict}: {found.new:,} new images against {found.known:,} known ones")
    print(
        f"  features     told apart in {found.separability:.0%} of pairs (p = {found.p_value:.2g}); 50% is not at all, "
        f"{found.least:.0%} is called a drift"
    )
    print(
        f"  confidence   {found.confidence_new:.1%} on new images, {found.confidence_known:.1%} on known ones; their "
        f"distributions differ by {found.confidence_distance:.2f} of 1"
    )
    shares = sorted(found.class_shares.items(), key=lambda item: -abs(item[1][1] - item[1][0]))[:3]
    moved = ", ".join(f"{name} {before:.0%} → {after:.0%}" for name, (before, after) in shares)
    print(
        f"  classes      the predicted classes' shares differ by {found.class_distance:.0%} (total variation): {moved}"
    )
