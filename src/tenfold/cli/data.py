"""Commands that look at data sets and tidy the store."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from tenfold.environment import Environment
from tenfold.errors import DataError
from tenfold.progress import count

data_app = typer.Typer(help="Look at data sets and put them in order.", no_args_is_help=True)
Uri = Annotated[str, typer.Argument(help="Dataset URI; it ends in /datasets/<sha256>.")]


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 140, soft_wrap=not sys.stdout.isatty())


@data_app.command("inspect")
def inspect_dataset(
    uri: Uri,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet of labelled images (PNG).")] = None,
) -> None:
    """Counts, classes, sizes, quarantine, equal and look-alike images of a data set."""
    from tenfold.data.inspect import contact_sheet, inspect
    from tenfold.data.manifest import open_dataset

    dataset = open_dataset(uri)
    facts = inspect(dataset)
    if sheet is not None:
        contact_sheet(dataset, Environment.read().home / "cache").save(sheet)
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    _print(facts, _console())
    if sheet is not None:
        print(f"wrote {sheet}")


def _print(facts: dict[str, Any], console: Console) -> None:
    table = Table(title=f"{len(facts['classes'])} classes", title_justify="left", title_style="bold")
    for name in ("split", "images", "shards", "MB"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for name, split in facts["splits"].items():
        shown = "training, labelled or not" if name == "unlabelled" else name
        table.add_row(shown, f"{split['images']:,}", str(split["shards"]), f"{split['bytes'] / 1e6:,.1f}")
    console.print(table)
    fewest = sorted(facts["splits"]["labelled"]["classes"].items(), key=lambda pair: (pair[1], pair[0]))
    console.print("labels a class: " + ", ".join(f"{name} {number}" for name, number in fewest[:20]))
    sides = facts["longer_side"]
    console.print(f"longer side: {sides['smallest']} to {sides['largest']} pixels, median {sides['median']:.0f}")
    most = max(sides["histogram"].values(), default=0) or 1
    for span, number in sides["histogram"].items():
        if number:
            console.print(f"  {span:>16}  {'█' * max(1, round(40 * number / most))} {number:,}", highlight=False)
    for side in ("training", "test"):
        console.print(f"{count(facts[f'equal_{side}_images'], f'{side} image')} equal to another one")
    alike = facts["alike_in_train_and_test"]
    console.print(f"{count(len(alike), 'pair')} of a training and a test image that look alike")
    for pair in alike[:10]:
        console.print(f"  {pair['train']}  ~  {pair['test']}  ({pair['bits']} of 64 bits differ)", highlight=False)
    if len(alike) > 10:
        console.print(f"  … and {len(alike) - 10} more; --json lists them all", highlight=False)
    console.print(f"{count(len(facts['quarantined']), 'image')} quarantined")
    for each in facts["quarantined"][:10]:
        console.print(f"  {each['path']}: {each['reason']}", highlight=False)


@data_app.command("compact")
def compact_dataset(uri: Uri) -> None:
    """Pack a data set that grew as if from scratch; prints the new dataset URI."""
    from tenfold.data.compact import compact
    from tenfold.data.manifest import open_dataset
    from tenfold.progress import Reporter

    environment = Environment.read()
    reporter = Reporter("compact", environment.events)

    def advance(done: int, total: int) -> None:
        reporter.progress("packing", done, total, "images")

    print(compact(open_dataset(uri), environment.threads, advance).uri)


@data_app.command("audit-labels")
def audit(
    uri: Uri,
    encoder: Annotated[Path, typer.Option(help="Folder of a pretrained encoder or a classifier.")],
    top: Annotated[int, typer.Option(min=1, help="How many to show.")] = 20,
) -> None:
    """List the labels that are likely wrong, by what the other labelled images say of each."""
    from tenfold.data.manifest import open_dataset
    from tenfold.evaluation.audit import audit_labels

    found = audit_labels(open_dataset(uri), encoder, Environment.read().home / "cache")
    print(f"{count(len(found), 'label')} that the nearest labelled images contradict")
    for doubt in found[:top]:
        print(f"{doubt.margin:.2f}\t{doubt.path}\t{doubt.label}\tperhaps {doubt.suggestion}")


def suggest_labels(
    uri: Uri,
    encoder: Annotated[Path, typer.Option(help="Folder of a pretrained encoder or a classifier.")],
    budget: Annotated[int, typer.Option(min=1, help="How many images you can label.")] = 100,
    by: Annotated[
        Literal["typical", "doubtful"] | None,
        typer.Option(help="Else typical ones up to 10 labels a class, then doubtful ones."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder to write; must not be there yet.")] = Path("suggestions"),
    image_prefix: Annotated[
        str, typer.Option(help="Stands before each path in Label Studio's file, e.g. s3://bucket/images/.")
    ] = "/data/local-files/?d=",
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Pick the images whose labels would help most; writes a CSV, an import for Label Studio and a contact sheet."""
    from tenfold.data.manifest import open_dataset
    from tenfold.evaluation.suggest import suggest, write_suggestions

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output} is there already; name a new folder by --output")
    dataset, cache = open_dataset(uri), Environment.read().home / "cache"
    suggestions, numbers, way = suggest(dataset, encoder, budget, by, seed, cache)
    write_suggestions(output, suggestions, numbers, dataset, image_prefix, cache)
    if len(suggestions) < budget:
        print(f"no more than {count(len(suggestions), 'image')} without a label")
    told = "suggestions.csv, label_studio.json and sheet.png"
    print(f"wrote {output}: {count(len(suggestions), f'{way} image')} to label, in {told}")
    print("fill in the column label, put these rows into your list of labels, and run again with data.labels.file=LIST")


def collect_garbage(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would go, and remove nothing.")] = False,
    store: Annotated[str | None, typer.Option(help="Address of the store; default: this machine's.")] = None,
    work_days: Annotated[
        float | None,
        typer.Option(min=0, help="Also the checkpoints of stages that nobody wrote for so many days or works on."),
    ] = None,
) -> None:
    """Remove from the store what no data set and no record of one refers to."""
    from tenfold.data.garbage import find_garbage
    from tenfold.storage import open_store
    from tenfold.work import find_old

    environment = Environment.read()
    opened = open_store(store or environment.store)
    places = [] if work_days is None else find_old(opened, environment, work_days)
    found = [*find_garbage(opened), *(entry for place in places for entry in place)]
    for entry in found:
        print(f"{entry.size:>14,}  {entry.key}")
        if not dry_run:
            opened.delete(entry.key)
    for place in places if not dry_run else []:
        opened.sweep("/".join([*place[0].key.split("/")[:2], ""]))
    total = sum(entry.size for entry in found)
    print(f"{count(len(found), 'object')}, {total / 1e6:,.1f} MB {'would be' if dry_run else 'were'} removed")
