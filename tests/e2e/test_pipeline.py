"""The whole pipeline through kfp.local, as the command line runs it, on a few dozen training steps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

TENFOLD = str(Path(sys.executable).parent / "tenfold")
pytestmark = pytest.mark.timeout(900)  # whole runs, on a machine that may be busy
ALWAYS = ["preflight", "list_images", "pack", "shard"]  # and promote and finish
STAGES = [*ALWAYS, "augment", "pretrain", "baseline", "finetune", "self_train", "pseudo_label", "distill", "evaluate",
          "promote", "finish"]  # fmt: skip
TINY = """
preset: digits
data: {split: {test_fraction: 0.3}}
augment: {image_size: 8}
pretrain: {network: {depth: 10, width: 0.0625}, batch_size: 64, steps: 8}
finetune: {steps: 4}
self_train: {steps: 4, batch_size: 8}
pseudo_label: {views: 1}
distill: {network: {depth: 10, width: 0.0625}, batch_size: 64, steps: 6}
baseline: {steps: 4}
evaluate: {bootstrap: 200, ship: student, export: false}
promote: {model: tiny}
"""


class Runs:
    """One home in which the tests of this module run the pipeline one after another."""

    def __init__(self, folder: Path) -> None:
        self.home, self.config = folder / "home", folder / "tiny.yaml"
        self.config.write_text(TINY)
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("TENFOLD_", "MLFLOW_", "AWS_"))},
            "TENFOLD_HOME": str(self.home), "TENFOLD_THREADS": "1", "TENFOLD_DEVICE": "cpu",
        }  # fmt: skip

    def call(self, command: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        line = [
            TENFOLD,
            command,
            *(["--config", str(self.config)] if command in {"run", "plan", "label-curve"} else []),
            *arguments,
        ]
        return subprocess.run(
            line, env={**self.environment, **environment}, capture_output=True, text=True, timeout=800, check=False
        )

    def run(self, run_id: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = self.call("run", *arguments, TENFOLD_RUN_ID=run_id)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def events(self, run_id: str) -> list[dict[str, Any]]:
        """Return what a run has told so far; a line that is being written is left for the next look."""
        file = self.home / "runs" / run_id / "events.jsonl"
        lines = file.read_text().split("\n")[:-1] if file.exists() else []
        return [dict(json.loads(line)) for line in lines]

    def started(self, run_id: str) -> list[str]:
        return [event["stage"] for event in self.events(run_id) if event["kind"] == "started"]

    def result(self, run_id: str) -> dict[str, Any]:
        return dict(json.loads((self.home / "store" / "runs" / run_id / "result.json").read_text()))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = Runs(tmp_path_factory.mktemp("pipeline"))
    folder.run("first")
    return folder


def test_first_run_works_every_stage_and_tells_the_ladder_and_the_verdict(runs: Runs) -> None:
    assert sorted(runs.started("first")) == sorted(STAGES)
    result = runs.result("first")
    assert [rung["id"] for rung in result["evaluation"]["rungs"]] == [
        "pixels_logistic", "pixels_spreading", "baseline", "encoder_neighbours", "encoder_logistic",
        "encoder_spreading", "finetuned",
        "self_trained", "student",
    ]  # fmt: skip
    assert result["verdict"]["alias"] == "champion"
    report = (runs.home / "runs" / "first" / "report.html").read_text()
    assert "no version was champion before" in report
    assert "label spreading on raw pixels" in report


def test_the_plan_after_a_run_is_all_cached_with_the_fingerprints_of_that_run(runs: Runs) -> None:
    from tenfold.components.preflight.stage import Request, check
    from tenfold.environment import Environment
    from tenfold.pipelines.plan import make_plan
    from tenfold.tracking import latest_tasks

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENFOLD_HOME", str(runs.home))
        environment = Environment.read()
        config = Request("", TINY, {}).resolve()
        plan = {step.stage: step for step in make_plan(config, check(config), environment)}
        recorded = latest_tasks(environment)
    cached = {stage for stage, step in plan.items() if step.cached}
    assert cached == set(STAGES) - {*ALWAYS, "promote", "finish"}
    for stage in cached:
        assert plan[stage].fingerprint == recorded[stage][0]["tenfold.fingerprint"]


def test_the_same_run_again_takes_every_training_and_inferring_stage_from_the_cache(runs: Runs) -> None:
    left = runs.home / "tmp" / "killed" / "half-a-shard"  # of a run whose process is no longer there
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x")
    (runs.home / "runs" / "killed").mkdir()
    (runs.home / "runs" / "killed" / "owner.json").write_text("[999999999, 0.0]")
    runs.run("second")
    assert not left.parent.exists()
    assert runs.started("second") == [*ALWAYS, "promote", "finish"]
    assert runs.result("second")["verdict"]["version"] == runs.result("first")["verdict"]["version"]
    assert runs.result("second")["evaluation"]["rungs"] == runs.result("first")["evaluation"]["rungs"]


def test_a_changed_temperature_reruns_distill_and_what_follows_and_the_plan_names_it(runs: Runs) -> None:
    plan = runs.call("plan", "--set", "distill.temperature=0.5")
    assert "temperature: 1.0 → 0.5" in plan.stdout
    runs.run("third", "--set", "distill.temperature=0.5")
    assert runs.started("third") == [*ALWAYS, "distill", "evaluate", "promote", "finish"]


def test_each_stage_has_one_nested_mlflow_run_with_curves_and_lineage(runs: Runs) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{runs.home}/mlflow.db")
    experiment = client.get_experiment_by_name("tenfold")
    found = client.search_runs([experiment.experiment_id], "tags.`tenfold.run_id` = 'first'")
    tasks = {run.data.tags["tenfold.task"]: run for run in found}
    assert sorted(tasks) == sorted({*STAGES, "pipeline"} - {"list_images", "pack", "finish"})
    parent = tasks.pop("pipeline")
    assert parent.info.status == "FINISHED"
    for stage, run in tasks.items():
        assert run.info.status == "FINISHED", stage
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert len(client.get_metric_history(tasks["pretrain"].info.run_id, "loss")) == 8
    version = client.get_model_version_by_alias("tiny", "champion")
    for tag in ("dataset", "code", "fingerprint", "run_id", "mlflow_run", "view", "test_split", "top1"):
        assert version.tags[f"tenfold.{tag}"]


def test_predict_classifies_with_the_champion_and_names_a_bad_file(runs: Runs, tmp_path: Path) -> None:
    from tenfold.data.sources import DigitsSource

    source = DigitsSource()
    image, broken = tmp_path / "digit.png", tmp_path / "broken.png"
    image.write_bytes(source.read(next(source.list()).key))
    broken.write_bytes(b"<html>")
    done = runs.call("predict", "--model", "tiny", "--json", str(image))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["label"] in map(str, range(10))
    assert sum(found["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    done = runs.call("predict", "--model", "tiny", str(broken), str(image))
    assert done.returncode == 2
    assert "broken.png: not an image" in done.stderr
    assert str(image) in done.stdout


def test_the_compiled_yaml_runs_when_it_is_loaded_back(runs: Runs, tmp_path: Path) -> None:
    script = f"""
import os
from pathlib import Path
from kfp import components, local
from tenfold.pipelines.compile import compile_pipeline
from tenfold.pipelines.local import local_images
path = Path({str(tmp_path)!r}) / "compiled.yaml"
compile_pipeline(path, local_images())
local.init(local.SubprocessRunner(use_venv=False), pipeline_root={str(runs.home / "kfp")!r}, raise_on_error=True,
           enable_caching=True)
components.load_component_from_file(str(path))(preset="", overrides=Path({str(runs.config)!r}).read_text())
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=800, check=False,
        env={**runs.environment, "TENFOLD_RUN_ID": "loaded", "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert runs.result("loaded")["evaluation"]["rungs"] == runs.result("first")["evaluation"]["rungs"]


def _start(runs: Runs, run_id: str, *sets: str) -> subprocess.Popen[bytes]:
    command = [TENFOLD, "run", "--config", str(runs.config), *sets]
    environment = {**runs.environment, "TENFOLD_RUN_ID": run_id, "TENFOLD_CHECKPOINT_SECONDS": "0"}
    with _output(runs, run_id).open("wb") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file)


def _output(runs: Runs, run_id: str) -> Path:
    return runs.home.parent / f"{run_id}.log"


def _wait_until(happened: Callable[[], object], runs: Runs, run_id: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 240
    while time.monotonic() < end:
        if process.poll() is not None:
            logs = (_output(runs, run_id), runs.home / "runs" / run_id / "pipeline.log")
            told = "\n".join(path.read_text()[-6000:] for path in logs if path.exists())
            pytest.fail(f"the run ended with status {process.returncode} before it was killed:\n{told}")
        if happened():
            return
        time.sleep(0.05)
    raise TimeoutError("what was waited for did not come")


def _wait_for_checkpoint(runs: Runs, run_id: str, process: subprocess.Popen[bytes]) -> None:
    kept = runs.home / "store" / "work"
    _wait_until(lambda: list(kept.glob(f"*/{run_id}/checkpoints/*/complete.json")), runs, run_id, process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM


def _gone(processes: list[psutil.Process], seconds: float = 20) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


LONG = ("--set", "pretrain.steps=60", "--set", "pretrain.seed=7")


def _went_on(event: dict[str, Any]) -> bool:
    told = str(event.get("text"))
    return event["stage"] == "pretrain" and told.startswith("goes on from the checkpoint of step ")


def test_other_labels_rerun_all_but_pretraining(runs: Runs) -> None:
    process = _start(runs, "labels", "--set", "data.labels.per_class=3")
    _wait_until(lambda: "finetune" in runs.started("labels"), runs, "labels", process)
    _end(process)
    assert "pretrain" not in runs.started("labels")


def test_killed_in_pretraining_the_same_command_goes_on_from_the_checkpoint(runs: Runs) -> None:
    process = _start(runs, "killed", *LONG)
    _wait_for_checkpoint(runs, "killed", process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert _gone(children), "a stage outlived its run"
    process = _start(runs, "again", *LONG)
    _wait_until(lambda: any(_went_on(event) for event in runs.events("again")), runs, "again", process)
    _wait_until(lambda: "finetune" in runs.started("again"), runs, "again", process)
    _end(process)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{runs.home}/mlflow.db")
    experiment = client.get_experiment_by_name("tenfold")
    left = client.search_runs([experiment.experiment_id], "tags.`tenfold.run_id` = 'killed'")
    assert {run.info.status for run in left} == {"KILLED", "FINISHED"}


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_ctrl_c_and_sigterm_leave_no_child_running(runs: Runs, number: signal.Signals) -> None:
    run_id = f"stopped-{number.name}"
    process = _start(runs, run_id, "--set", "pretrain.steps=60", "--set", f"pretrain.seed={50 + number}")
    _wait_for_checkpoint(runs, run_id, process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(number)
    assert process.wait(30) == 128 + number
    assert _gone(children)


@pytest.mark.slow
def test_a_label_curve_pretrains_once_and_goes_on_where_it_was(runs: Runs, tmp_path: Path) -> None:
    def curve(budgets: str) -> dict[str, Any]:
        done = runs.call("label-curve", "--budgets", budgets, "--output", str(tmp_path / "curve"))
        assert "times as many" in done.stdout
        return dict(json.loads((tmp_path / "curve" / "curve.json").read_text()))

    first = curve("2,4")
    assert [point["labels"] for point in first["points"]] == [20, 40]
    assert len({point["test_images"] for point in first["points"]}) == 1
    told = {path.name: runs.started(path.name) for path in (runs.home / "runs").glob("label-curve-*")}
    assert len(told) == 2
    assert not any("pretrain" in stages for stages in told.values()), "the first run's is taken"
    assert all("baseline" in stages for name, stages in told.items() if "-4-" in name)
    second = curve("2,4,6")
    assert second["points"][0]["student"] == first["points"][0]["student"]
    assert {path.name for path in (runs.home / "runs").glob("label-curve-*")} > told.keys()
    assert runs.result("first")["verdict"]["model"] == "tiny"
