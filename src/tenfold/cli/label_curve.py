"""The command that runs the pipeline with ever more labels and tells how many labels the unlabelled images save."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer

from tenfold.cli.options import File, Preset, Sets, errors, request
from tenfold.components.preflight.stage import check
from tenfold.environment import Environment
from tenfold.errors import ConfigError, TenfoldError
from tenfold.fingerprint import digest, source_digest
from tenfold.storage import open_store

#: Every run measures on all test images, and registers nothing that anybody serves.
_SETS = ("evaluate.selection=0", "evaluate.export=false", "data.labels.fraction=null")


def label_curve(
    budgets: Annotated[str, typer.Option(help="Labels of each class, for example 1,2,5,10.")],
    preset: Preset = None,
    file: File = None,
    sets: Sets = None,
    subsets: Annotated[int, typer.Option(min=1, help="Draws of the labelled images at each budget.")] = 1,
    output: Annotated[Path, typer.Option(help="Folder for curve.json and curve.png.")] = Path("label-curve"),
) -> None:
    """Run the pipeline with ever more labels: what labels alone reach, what the student reaches, and labels saved.

    Pretraining looks at no label, so it is done once. A curve that was stopped goes on where it was.
    """
    from tenfold.evaluation.figures import save_label_curve_png

    numbers = _budgets(budgets)
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output} is a file; name a folder")
    config = request(preset, file, sets).resolve()
    environment = Environment.read()
    if config.data.labels.file is not None:
        raise ConfigError(
            "label-curve draws the labelled images itself, and data.labels.file names them: leave it out, and give all "
            "labels by class folders or by data.annotations"
        )
    settings = digest(source_digest() + config.model_dump_json() + (check(config) or ""))[:8]
    options = ["--preset", preset] if preset else ["--config", str(file)] if file else []
    options += [part for item in sets or [] for part in ("--set", item)]
    cells: dict[int, list[dict[str, Any]]] = {}
    for number in numbers:
        cells[number] = []
        for subset in range(subsets):
            errors.print(f"{number} labels a class, draw {subset + 1} of {subsets}", highlight=False)
            own = [*_SETS, f"data.labels.per_class={number}", f"data.labels.seed={config.data.labels.seed + subset}",
                   f"promote.model={config.promote.model}-label-curve"]  # fmt: skip
            run_id = f"label-curve-{settings}-{number}-{subset}"
            cells[number].append(_run(run_id, [*options, *(p for item in own for p in ("--set", item))], environment))
    result = summarize(cells)
    output.mkdir(parents=True, exist_ok=True)
    (output / "curve.json").write_text(json.dumps(result, indent=1))
    save_label_curve_png(result["points"], output / "curve.png")
    _print(result)
    print(f"wrote {output / 'curve.json'} and {output / 'curve.png'}")


def _budgets(text: str) -> list[int]:
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = []
    if len(numbers) < 2 or numbers[0] < 1:
        raise ConfigError(f"--budgets takes two numbers of labels a class at least, as in 1,2,5,10; not {text!r}")
    return numbers


def _run(run_id: str, options: list[str], environment: Environment) -> dict[str, Any]:
    """Return what a run came to; one that is done is not done again."""
    store, key = open_store(environment.store), f"runs/{run_id}/result.json"
    if not store.exists(key):
        program = [sys.executable, "-c", "from tenfold.cli import main; main()", "run", *options]
        surroundings = {**os.environ, "TENFOLD_RUN_ID": run_id, "TENFOLD_OWNER_PID": str(os.getpid())}
        done = subprocess.run(program, env=surroundings, check=False)
        if done.returncode:
            raise _StoppedError(done.returncode)
    found: dict[str, Any] = json.loads(store.read(key))["evaluation"]
    return found


class _StoppedError(TenfoldError):
    """A run of the curve ended badly, and has said why."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("the curve stops here; the same command goes on")
        self.exit_code = exit_code


def summarize(cells: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the curve from the runs' evaluations, by labels of each class.

    Each point has the labels, top-1 of labels alone (``alone``) and of the student (``student``) by draw, and the
    labels that labels alone need for the student's mean.
    """
    from tenfold.evaluation.label_curve import equal_labels

    points = []
    for number, runs in sorted(cells.items()):
        shown = {
            name: [_top1(run, rung) for run in runs] for name, rung in (("alone", "baseline"), ("student", "student"))
        }
        labels = mean(run["counts"]["labelled"] for run in runs)
        points.append({"per_class": number, "labels": labels, **shown, "test_images": runs[0]["test_images"]})
    curve = {point["labels"]: mean(point["alone"]) for point in points}
    for point in points:
        found = equal_labels(curve, mean(point["student"]))
        point["equal_labels"] = {**vars(found), "factor": found.labels / point["labels"]}
    return {"points": points}


def _top1(run: dict[str, Any], rung: str) -> float:
    return float(next(each["top1"]["value"] for each in run["rungs"] if each["id"] == rung))


def _print(result: dict[str, Any]) -> None:
    print(f"{'labels':>8}{'alone':>9}{'student':>9}   labels that labels alone need for the student's accuracy")
    for point in result["points"]:
        equal = point["equal_labels"]
        sign = "more than " if equal["beyond"] else "at most " if equal["below"] else ""
        told = f"{sign}{equal['labels']:.0f}: {sign}{equal['factor']:.1f} times as many"
        print(
            f"{point['labels']:>8.0f}{100 * mean(point['alone']):>8.1f}%{100 * mean(point['student']):>8.1f}%   {told}"
        )
