"""The commands. Each prints one clear message for a user's mistake and exits with a status above 0."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer
import yaml
from rich.console import Console
from rich.table import Table

from tenfold import __version__
from tenfold.cli.cluster import add_cluster_commands
from tenfold.cli.compile import compile_to_yaml
from tenfold.cli.data import collect_garbage, data_app, suggest_labels
from tenfold.cli.label_curve import label_curve
from tenfold.cli.local_run import Stopped, run_here
from tenfold.cli.options import File, Preset, Sets, console, errors
from tenfold.cli.options import console_on as _console
from tenfold.cli.options import request as _request
from tenfold.cli.promotion import add_promotion_commands
from tenfold.cli.runs import add_run_commands
from tenfold.cli.students import drift, predict
from tenfold.components.preflight.stage import check
from tenfold.config import RunConfig, about_preset, load_preset, preset_names
from tenfold.environment import Environment, checked_run_id
from tenfold.errors import ConfigError, DataError, TenfoldError, redact

app = typer.Typer(
    help="Ten times fewer labels: semi-supervised image classifiers as a Kubeflow pipeline.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip
config_app = typer.Typer(help="Look at configurations.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
app.command("gc")(collect_garbage)
app.command("suggest-labels")(suggest_labels)
app.command("predict")(predict)
app.command("label-curve")(label_curve)
app.command("drift")(drift)
app.command("compile")(compile_to_yaml)
add_cluster_commands(app)
add_run_commands(app)
add_promotion_commands(app)


@app.command()
def run(
    preset: Preset = None,
    file: File = None,
    sets: Sets = None,
    cache: Annotated[bool, typer.Option(help="Take unchanged stages from the cache.")] = True,
) -> None:
    """Run the whole pipeline on this machine."""
    run_here("semi-supervised", _request(preset, file, sets), console, _live(), cache=cache)


@app.command()
def retrain(
    preset: Preset = None,
    file: File = None,
    sets: Sets = None,
    cache: Annotated[bool, typer.Option(help="Take unchanged stages from the cache.")] = True,
    min_new_images: Annotated[
        int | None, typer.Option(min=0, help="End early with fewer images that are new to the champion; else 100.")
    ] = None,
) -> None:
    """Train again on this machine, from the champion, if enough images are new."""
    if min_new_images is not None:
        sets = [*(sets or []), f"retrain.min_new_images={min_new_images}"]
    run_here("retrain", _request(preset, file, sets), console, _live(), cache=cache)


def _live() -> Console:
    """Return a console for what is drawn during a run: on the real output, since KFP redirects the other."""
    return _console(sys.__stdout__ or sys.stdout)


@app.command()
def plan(preset: Preset = None, file: File = None, sets: Sets = None) -> None:
    """Show what `run` would do: each stage cached or to run, and why."""
    from tenfold.pipelines.plan import make_plan

    asked = _request(preset, file, sets)
    config = asked.resolve()
    steps = make_plan(config, check(config), Environment.read())
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "", "why"):
        table.add_column(column)
    for step in steps:
        table.add_row(step.stage, "[cyan]cached[/cyan]" if step.cached else "runs", step.why)
    console.print(table)
    for told in asked.idle(config):
        console.print(told, style="dim", markup=False, highlight=False)


@config_app.command("show")
def config_show(preset: Preset = None, file: File = None, sets: Sets = None) -> None:
    """Print the resolved configuration."""
    config: RunConfig = _request(preset, file, sets).resolve().resolved()
    console.print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), highlight=False, markup=False)


@app.command("presets")
def presets(
    name: Annotated[str | None, typer.Argument(help="One preset, or the beginning of some names.")] = None,
) -> None:
    """List the presets: where each is from, what to expect, what it costs, and whether it was measured."""
    chosen = [each for each in preset_names() if each.startswith(name or "")]
    if not chosen:
        load_preset(name or "")  # tells the nearest name
    if len(chosen) == 1:
        for field, text in about_preset(chosen[0]).model_dump().items():
            console.print(f"[bold]{field:9}[/bold] {text}", highlight=False)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("preset", "top-1", "cost", "measured"):
        table.add_column(column, overflow="fold")
    for each in chosen:
        about = about_preset(each)
        table.add_row(each, about.accuracy, about.cost, about.measured)
    console.print(table)


@app.command()
def report(
    run_id: Annotated[str | None, typer.Argument(help="The run; the newest one if left out.")] = None,
) -> None:
    """Print the path of a run's HTML report, fetched from the store; a run that never ended gets one of its tasks."""
    environment = Environment.read()
    folder = environment.home / "runs"
    if run_id is not None:
        run_id = checked_run_id(run_id, "RUN_ID")
        print(_fetched_report(replace(environment, run_id=run_id), folder / run_id))
        return
    reports = sorted(folder.glob("*/report.html"), key=lambda path: path.stat().st_mtime)
    if not reports:
        raise DataError(f"there is no report below {folder}; `tenfold run` makes one, or name a run of the cluster")
    print(reports[-1])


def _fetched_report(environment: Environment, folder: Path) -> Path:
    from tenfold.components.finish.stage import known_tasks, unfinished, written
    from tenfold.storage import open_store

    path = folder / "report.html"
    try:
        page = written(environment)
    except TenfoldError:
        if path.is_file():  # fetched before
            return path
        raise
    if page is None:
        known = open_store(environment.store).exists(f"runs/{environment.run_id}/config.json")
        if not known and not known_tasks(environment):
            raise DataError(
                f"neither {environment.store} nor MLflow at {redact(environment.tracking_uri)} knows a run "
                f"{environment.run_id}: name it as `tenfold run`, `tenfold list` or the Kubeflow UI does, and set "
                "TENFOLD_STORE and MLFLOW_TRACKING_URI to the cluster's"
            )
        page, path = unfinished(environment), folder / "unfinished.html"  # which the next call makes anew
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(page)
    return path


@app.command()
def doctor() -> None:
    """Check this machine, and say how to mend what is wrong."""
    from tenfold.cli.doctor import examine

    findings = examine(Environment.read())
    for finding in findings:
        mark = "[green]ok[/green]  " if finding.ok else "[red]fail[/red]"
        console.print(f"{mark} {finding.what}: {finding.found}", highlight=False)
        if not finding.ok:
            console.print(f"     {finding.cure}", highlight=False)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command("import-checkpoint")
def import_checkpoint(
    source: Annotated[Path, typer.Argument(help="TensorFlow checkpoint of SimCLR, or weights of MAE or timm.")],
    output: Annotated[Path, typer.Argument(help="Folder to write; must not be there yet.")],
    average: Annotated[
        bool, typer.Option(help="The moving average's copy (ema_model/, or model_ema of --vit).")
    ] = False,
    from_head_layer: Annotated[
        int | None,
        typer.Option(help="Import the classifier, on this layer of the head: 1 if fine-tuned on 1% or 10%, else 0."),
    ] = None,
    classes: Annotated[Path | None, typer.Option(help="Text file of the classifier's class names in order.")] = None,
    timm: Annotated[str | None, typer.Option(help="SOURCE holds weights of this timm model.")] = None,
    vit: Annotated[
        Literal["average", "token"] | None,
        typer.Option(help="SOURCE holds a transformer of MAE, Semi-ViT or timm; what its features are of."),
    ] = None,
    image_size: Annotated[int, typer.Option(min=8, max=1024, help="Side of the views that it was trained on.")] = 224,
) -> None:
    """Make an official SimCLR or MAE checkpoint, or a timm model's weights, an encoder for `pretrain.init.path`."""
    from tenfold.models.imported import import_official, import_timm, import_vit

    if "://" in str(output) or re.match(r"[a-z0-9]+:/[^/]", str(output)):
        raise DataError(
            f"{output} is no folder of this machine: write to one, and copy that by `aws s3 cp --recursive`"
        )
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        raise DataError(f"{output} is there already; name a new folder")
    if timm is not None or vit is not None:
        if classes is not None or from_head_layer is not None or (average and timm is not None):
            raise ConfigError(
                "--classes and --from-head-layer are for SimCLR's checkpoints, not for --timm or --vit, and --average "
                "is not for --timm"
            )
        if timm is not None and vit is not None:
            raise ConfigError("give one of --timm and --vit; with --vit the network becomes one of ours")
        if vit is not None:
            description = import_vit(source, output, vit, image_size, average=average)
        else:
            description = import_timm(source, str(timm), output, image_size)
    else:
        if classes is not None and from_head_layer is None:
            raise ConfigError("--classes names a classifier's outputs: give --from-head-layer too")
        names = _class_names(classes) if classes is not None else None
        description = import_official(source, output, average, from_head_layer, names, image_size)
    what = "classifier" if description.kind == "classifier" else "encoder"
    console.print(f"wrote {output}: {what}, {description.network!r}", highlight=False, markup=False)


def _class_names(file: Path) -> list[str]:
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--classes: {file} cannot be read as text: {error}") from None
    if not names or not all(names) or len(set(names)) < len(names):
        raise DataError(f"--classes: {file} must have one name a line, none of them empty or twice there")
    return names


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def main() -> None:
    """Entry point: a :class:`TenfoldError` becomes its message and exit status."""
    os.environ.setdefault("MLFLOW_ALLOW_MODEL_CODE_EXECUTION", "false")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        app()
    except TenfoldError as error:
        errors.print(f"[red]error:[/red] {_escape(redact(str(error)))}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.filename is None:  # not of a file that the user named
            raise
        errors.print(f"[red]error:[/red] {_escape(f'{error.filename}: {error.strerror}')}", highlight=False)
        sys.exit(2)
    except Stopped as stopped:
        errors.print("stopped; the same command goes on from the last checkpoint")
        sys.exit(128 + stopped.number)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
