"""Tracking, registry and promotion against a real MLflow server."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.tracking import MlflowClient
from torch import nn

from tenfold.augment.spec import ViewSpec
from tenfold.cli.options import errors
from tenfold.cli.students import fetch_student
from tenfold.components.promote import stage as promote
from tenfold.config import (
    BaselineConfig,
    Description,
    DistillConfig,
    EvalViewConfig,
    HeadConfig,
    PromoteConfig,
    PseudoLabelConfig,
    ResNetConfig,
    SelfTrainConfig,
    ViewConfig,
)
from tenfold.data.manifest import Dataset
from tenfold.data.reader import SplitReader
from tenfold.environment import Environment
from tenfold.evaluation.metrics import score
from tenfold.execution import execute, read_lineage
from tenfold.fingerprint import canonical_json, digest
from tenfold.models.heads import Classifier
from tenfold.models.saved import build, save
from tenfold.predictor import Predictor
from tenfold.progress import Reporter
from tenfold.registry import CHALLENGER, CHAMPION, Desk, Registry, promotion
from tenfold.storage import open_store
from tenfold.tracking import QueuedTracker, parent_run, task_run
from tenfold.work import Work

TINY = ResNetConfig(depth=10, width=0.125)
TRAINING = ViewSpec(backend="torchvision", image_size=16, view=ViewConfig(crop=None, flip=0)).encoded()
SERVING = ViewSpec(backend="torchvision", image_size=16, evaluation=EvalViewConfig()).encoded()
CLASSES = ["ant", "bee", "cat"]


@pytest.fixture
def server(mlflow_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The server, with an experiment and a pipeline run of this test's own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tmp_path.name)
    monkeypatch.setenv("TENFOLD_RUN_ID", f"run-{tmp_path.name}")
    monkeypatch.setenv("TENFOLD_THREADS", "1")
    return mlflow_server


@pytest.fixture
def client(server: str) -> MlflowClient:
    return MlflowClient(server, server)


# --- tracking -----------------------------------------------------------------------------------------


def test_a_pipeline_has_one_parent_run_and_a_nested_run_a_task(client: MlflowClient) -> None:
    environment = Environment.read()
    parent = parent_run(environment, "first name")
    assert parent_run(environment).run_id == parent.run_id
    nested = task_run(environment, "pretrain")
    other = task_run(environment, "finetune")
    assert len({parent.run_id, nested.run_id, other.run_id}) == 3
    for tracker, task in ((nested, "pretrain"), (other, "finetune")):
        run = client.get_run(tracker.run_id)
        assert run.data.tags["mlflow.parentRunId"] == parent.run_id
        assert run.data.tags["tenfold.task"] == task
        assert run.info.run_name == task
    assert client.get_run(parent.run_id).info.run_name == f"first name {environment.run_id}"
    stranger = parent_run(replace(environment, run_id="another"))
    assert stranger.run_id != parent.run_id


def test_a_retry_adopts_the_nested_run_of_the_first_try(client: MlflowClient) -> None:
    environment = Environment.read()
    first = task_run(environment, "pretrain")
    first.metrics({"loss": 2.0}, 1)
    first.finish("FAILED")
    assert client.get_run(first.run_id).info.status == "FAILED"
    again = task_run(environment, "pretrain")
    assert again.run_id == first.run_id
    assert client.get_run(first.run_id).info.status == "RUNNING"
    again.metrics({"loss": 1.0}, 2)
    again.finish("FINISHED")
    assert client.get_run(first.run_id).info.status == "FINISHED"
    assert [(m.step, m.value) for m in client.get_metric_history(first.run_id, "loss")] == [(1, 2.0), (2, 1.0)]


def test_curves_tags_parameters_and_artifacts_arrive_whole(client: MlflowClient, tmp_path: Path) -> None:
    tracker = task_run(Environment.read(), "pretrain")
    for step in range(1, 1001):
        tracker.metrics({"loss": 1 / step, "rate": step}, step)
    tracker.params({"seed": 0})
    tracker.params({"seed": 0, "depth": 10})
    tracker.tags({"note": "x" * 4000})
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("a")
    tracker.artifact(tmp_path / "folder", "things")
    tracker.finish("FINISHED")
    curve = client.get_metric_history(tracker.run_id, "loss")
    assert sorted(m.step for m in curve) == list(range(1, 1001))
    assert {m.step: m.value for m in curve}[250] == pytest.approx(0.004)
    run = client.get_run(tracker.run_id)
    assert run.data.params == {"seed": "0", "depth": "10"}
    assert run.data.tags["note"] == "x" * 4000
    assert [a.path for a in client.list_artifacts(tracker.run_id, "things")] == ["things/a.txt"]


# --- a stage as a task --------------------------------------------------------------------------------


def baseline(dataset: str, output: Path, **change: Any) -> Any:
    config = BaselineConfig(steps=2, batch_size=8, network=TINY, seed=0)
    text = canonical_json({**config.model_dump(), **change})
    inputs = {"dataset": dataset, "views": TRAINING, "evaluation": SERVING, "encoder": None}
    return execute("baseline", text, inputs, {"classifier": str(output)}, room="finetune")


def nested(client: MlflowClient, task: str) -> Any:
    (experiment,) = client.search_experiments(filter_string=f"name = '{Environment.read().experiment}'")
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`tenfold.task` = '{task}'")
    return run


def test_a_stage_leaves_its_lineage_its_curves_and_its_result_s_checkpoint_until_that_was_read(
    client: MlflowClient, digits: Dataset, tmp_path: Path
) -> None:
    baseline(digits.uri, tmp_path / "classifier")
    run = nested(client, "baseline")
    lineage = read_lineage(tmp_path / "classifier")
    assert lineage["mlflow_run_id"] == run.info.run_id
    assert lineage["fingerprint"] == run.data.tags["tenfold.fingerprint"]
    assert lineage["dataset"] == run.data.tags["tenfold.dataset"] == digits.uri
    assert run.info.status == "FINISHED"
    assert run.data.params["network.depth"] == "10"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == [1, 2]
    store = open_store(Environment.read().store)
    kept = sorted(entry.key.rpartition("/")[2] for entry in store.list("work/"))
    assert kept == ["complete.json", "final.json", "state.json", "state.safetensors"]
    inputs = {"dataset": digits.uri, "weak": TRAINING, "strong": TRAINING, "evaluation": TRAINING,
              "teacher": tmp_path / "classifier", "encoder": tmp_path / "classifier"}  # fmt: skip
    off = canonical_json(SelfTrainConfig(enabled=False, seed=0).model_dump())
    execute("self_train", off, inputs, {"teacher": str(tmp_path / "teacher")})
    assert list(store.list("work/")) == []


def test_a_stage_that_is_switched_off_ends_well_and_leaves_its_outputs(
    client: MlflowClient, digits: Dataset, tmp_path: Path
) -> None:
    baseline(digits.uri, teacher := tmp_path / "classifier")
    kept = {"dataset": digits.uri, "evaluation": TRAINING, "teacher": teacher, "finetuned": teacher}
    labels = tmp_path / "labels"
    nothing = canonical_json(PseudoLabelConfig(enabled=False, seed=0).model_dump())
    execute("pseudo_label", nothing, {**kept, "weak": TRAINING, "encoder": teacher}, {"soft_labels": str(labels)})
    assert read_lineage(labels)["stage"] == "pseudo_label"
    off = canonical_json(DistillConfig(enabled=False, seed=0, deterministic=False).model_dump())
    given = {**kept, "views": TRAINING, "soft_labels": labels}
    execute("distill", off, given, {"student": str(tmp_path / "student")})
    weights = [(folder / "model.safetensors").read_bytes() for folder in (teacher, tmp_path / "student")]
    assert weights[0] == weights[1]
    for stage in ("pseudo_label", "distill"):
        assert nested(client, stage).info.status == "FINISHED"


def test_a_process_that_hands_its_run_over_sends_what_it_recorded_and_leaves_it_open(
    client: MlflowClient, make_work: Callable[..., Work]
) -> None:
    work = make_work()
    tracker = QueuedTracker(work.environment, "pretrain", work.store, work.reporter)
    tracker.metrics({"loss": 2.0}, 1)
    tracker.hand_over("FAILED")
    run = nested(client, "pretrain")
    assert run.info.status == "RUNNING"
    assert run.data.metrics == {"loss": 2.0}


def test_a_setting_of_the_environment_that_is_wrong_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("TENFOLD_CACHE_BYTES", "100GB")
    with pytest.raises(SystemExit) as ended:
        baseline("", tmp_path / "classifier")
    assert ended.value.code == 2
    assert capfd.readouterr().err == "baseline: TENFOLD_CACHE_BYTES is '100GB', which is no number\n"


@pytest.mark.parametrize("fault", ["data set that is gone", "configuration of another version"])
def test_a_user_s_error_exits_2_in_one_line_without_traceback_and_marks_the_run_failed(
    client: MlflowClient, digits: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str], fault: str
) -> None:
    change: dict[str, Any] = {} if fault.startswith("data") else {"unheard_of": 1}
    uri = f"{digits.store.uri}/datasets/{'0' * 64}" if fault.startswith("data") else digits.uri
    with pytest.raises(SystemExit) as ended:
        baseline(uri, tmp_path / "classifier", **change)
    assert ended.value.code == 2
    told = capfd.readouterr().err
    assert "Traceback" not in told
    expected = "is not there" if fault.startswith("data") else "unheard_of"
    assert expected in told
    run = nested(client, "baseline")
    assert run.info.status == "FAILED"
    assert expected in run.data.tags["tenfold.error"]


def test_an_output_that_a_stage_never_wrote_is_a_defect_with_a_traceback(
    client: MlflowClient, digits: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from tenfold.components.finetune import stage

    monkeypatch.setattr(stage, "run", lambda config, inputs, outputs, work: None)
    with pytest.raises(SystemExit) as ended:
        baseline(digits.uri, tmp_path / "classifier")
    assert ended.value.code == 1
    told = capfd.readouterr().err
    assert "never wrote its output 'classifier'" in told
    assert "Traceback" in told
    assert nested(client, "baseline").info.status == "FAILED"


# --- the registry -------------------------------------------------------------------------------------


def make_student(folder: Path, seed: int) -> Path:
    description = Description(kind="classifier", network=TINY, classes=CLASSES, image_size=16)
    torch.manual_seed(seed)
    model = build(description)
    assert isinstance(model, Classifier)
    nn.init.normal_(model.linear.weight)
    save(folder, model, description)
    lineage = {"stage": "distill", "fingerprint": f"{seed}" * 64, "dataset": "file:///d", "code": "c" * 64,
               "mlflow_run_id": "m" * 32, "seconds": 1.0, "run_id": "r"}  # fmt: skip
    (folder / "lineage.json").write_text(json.dumps(lineage))
    return folder


def make_encoder(folder: Path, seed: int) -> Path:
    description = Description(kind="simclr", network=TINY, head=HeadConfig(layers=2, features=8), image_size=16)
    torch.manual_seed(seed)
    save(folder, build(description), description)
    return folder


def make_evaluation(folder: Path, right: int, test_split: str = "s" * 64) -> Path:
    """What the evaluate stage leaves for a student with ``right`` of 20 test images right."""
    folder.mkdir()
    truth = np.arange(20) % 3
    predicted = np.where(np.arange(20) < right, truth, (truth + 1) % 3)
    scores = score(np.eye(3)[predicted], truth, CLASSES, 100, 0.95, 0)
    rung = {"id": "student", "title": "distilled student", "seconds": 1.0, "scores": scores.as_dict(), "gain": None,
            "served": True}  # fmt: skip
    gain = {"value": 0.1, "low": 0.0, "high": 0.2}
    evaluation = {
        "name": "test", "run_id": "r", "dataset": "file:///d", "classes": CLASSES, "test_images": 20,
        "confidence": 0.95,
        "rungs": [{**rung, "id": "baseline", "gain": gain, "served": False}, rung],
        "served": {"id": "student", "title": "distilled student", "network": TINY.model_dump(), "parameters": 1,
                   "image_size": 16, "latency_ms": 1.0, "bytes": 4, "told": "it is the best", "images_needed": 0,
                   "choosing": 20, "temperature": 1.0, "calibration_error_before": 0.1, "made_by": None},
        "counts": {"unlabelled": 9, "labelled": 3, "test": 20}, "labelled": dict.fromkeys(CLASSES, 1),
        "quarantined": [], "leaks": [], "curves": {}, "pictures": {"views": None, "confidence": None}, "mistakes": [],
        "stages": [{"stage": "distill", "fingerprint": "f" * 64, "run_id": "r", "mlflow_run_id": "m" * 32,
                    "seconds": 1.0, "code": "c" * 64}],
        "probe_cap": None,
    }  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    predictions = {"test_split": test_split, "view": "v" * 64, "classes": CLASSES, "truth": truth.tolist(),
                   "predicted": predicted.tolist()}  # fmt: skip
    (folder / "predictions.json").write_text(json.dumps(predictions))
    (folder / "lineage.json").write_text(json.dumps({"mlflow_run_id": "e" * 32, "fingerprint": "e" * 64}))
    return folder


@pytest.fixture
def promoted(server: str, tmp_path: Path) -> Callable[..., promote.Verdict]:
    """Promote a student: ``promoted(seed, right)``, of the model that is named after the test."""
    calls = 0

    def run(seed: int, right: int, test_split: str = "s" * 64, *, approval: bool = False) -> promote.Verdict:
        nonlocal calls
        calls += 1
        folder = tmp_path / f"promotion-{calls}"
        folder.mkdir()
        environment = replace(Environment.read(), run_id=f"{tmp_path.name}-{calls}")
        store = open_store(environment.store)
        store.write(f"runs/{environment.run_id}/config.json", b'{"name": "test"}')
        inputs = promote.Inputs(
            make_student(folder / "student", seed), make_encoder(folder / "encoder", seed),
            make_evaluation(folder / "evaluation", right, test_split),
        )  # fmt: skip
        tracker = task_run(environment, "promote")
        work = Work("promote", "f" * 64, store, environment, Reporter("promote"), tracker)
        outputs = promote.Outputs(folder / "report.html", folder / "verdict.md")
        config = PromoteConfig(model=tmp_path.name, approval=approval)
        verdict = promote.run(config, inputs, outputs, work)
        tracker.finish("FINISHED")
        assert verdict.alias in outputs.verdict.read_text()
        assert outputs.report.stat().st_size > 1000
        return verdict

    return run


def versions(client: MlflowClient, name: str) -> list[str]:
    return sorted(str(v.version) for v in client.search_model_versions(f"name = '{name}'"))


def aliases(client: MlflowClient, name: str) -> dict[str, str]:
    return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}


def test_the_first_student_becomes_champion_with_its_lineage(
    promoted: Callable[..., promote.Verdict], client: MlflowClient, tmp_path: Path
) -> None:
    verdict = promoted(1, 12)
    assert (verdict.alias, verdict.version, verdict.champion) == (CHAMPION, "1", None)
    assert aliases(client, tmp_path.name) == {CHAMPION: "1"}
    tags = client.get_model_version(tmp_path.name, "1").tags
    assert tags["tenfold.fingerprint"] == "1" * 64
    assert tags["tenfold.dataset"] == "file:///d"
    assert tags["tenfold.code"] == "c" * 64
    assert tags["tenfold.test_split"] == "s" * 64
    assert tags["tenfold.run_id"] == f"{tmp_path.name}-1"
    assert tags["tenfold.labels"] == "3"
    assert float(tags["tenfold.top1"]) == 0.6
    assert len(tags["tenfold.weights"]) == 64
    card = client.get_model_version(tmp_path.name, "1").description
    assert card.startswith("# test")
    assert "top-1 60.0%" in card
    kept = Path(tags["tenfold.encoder"].removeprefix("file://"))
    made = tmp_path / "promotion-1" / "encoder"
    assert kept.name == digest((made / "model.json").read_text())
    for name in ("model.json", "model.safetensors"):
        assert (kept / name).read_bytes() == (made / name).read_bytes()
    parent = client.get_run(parent_run(replace(Environment.read(), run_id=f"{tmp_path.name}-1")).run_id)
    assert parent.info.status == "RUNNING", "the exit task closes it"
    assert parent.data.tags["tenfold.model_version"] == f"{tmp_path.name}/1"
    assert parent.data.tags["tenfold.stage.distill"] == "m" * 32
    assert parent.data.metrics["top1.student"] == pytest.approx(0.6)


def test_promoting_follows_the_comparison_on_equal_test_images(
    promoted: Callable[..., promote.Verdict], client: MlflowClient, tmp_path: Path
) -> None:
    promoted(1, 12)
    again = promoted(1, 12)
    assert (again.alias, again.version) == (CHAMPION, "1"), "the same student is not registered twice"
    assert versions(client, tmp_path.name) == ["1"]
    worse = promoted(2, 11)
    assert (worse.alias, worse.version) == (CHALLENGER, "2")
    assert worse.champion == {"version": "1", "top1": 0.6}
    assert aliases(client, tmp_path.name) == {CHAMPION: "1", CHALLENGER: "2"}
    equal = promoted(3, 12)
    assert (equal.alias, equal.version) == (CHALLENGER, "3"), "equal is not better"
    elsewhere = promoted(4, 20, test_split="t" * 64)
    assert elsewhere.alias == CHALLENGER
    assert "was never measured on these test images" in elsewhere.reasons[0]
    chance = promoted(5, 14)
    assert chance.alias == CHALLENGER
    assert "which may be chance" in chance.reasons[0]
    better = promoted(3, 19)
    assert (better.alias, better.version) == (CHAMPION, "3")
    assert aliases(client, tmp_path.name) == {CHAMPION: "3", CHALLENGER: "5"}


def test_what_a_person_took_back_does_not_come_again_by_itself(
    promoted: Callable[..., promote.Verdict], client: MlflowClient, tmp_path: Path
) -> None:
    promoted(1, 12)
    assert promoted(2, 19).alias == CHAMPION
    desk = Desk(Environment.read(), tmp_path.name, "a person", lambda text: None)
    desk.rollback(None, "wrong at night")
    again = promoted(2, 19)
    assert (again.alias, again.version) == (CHALLENGER, "2")
    told = f"was taken back (wrong at night); `tenfold promote 2 --model {tmp_path.name} --because …`"
    assert told in again.reasons[0]
    assert not desk.promote("2", None).decision.promote, "nor for a person who gives no reason"
    assert aliases(client, tmp_path.name)[CHAMPION] == "1"
    assert promoted(3, 19).alias == CHAMPION, "another student with as many right"
    assert desk.promote("2", "nights are lit now").decision.promote
    assert promoted(2, 19).alias == CHAMPION, "it is champion, and was not taken back since"


def test_what_a_person_took_back_by_the_alias_does_not_come_again_either(
    promoted: Callable[..., promote.Verdict], client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promotion, "PAUSE", 0.05)
    promoted(1, 12)
    promoted(2, 19)
    client.set_registered_model_alias(tmp_path.name, CHAMPION, "1")
    desk = Desk(Environment.read(), tmp_path.name, "a person", lambda text: None)
    assert not desk.promote("2", None, dry_run=True).decision.promote, "though the ledger does not know of it yet"
    again = promoted(2, 19)
    assert again.alias == CHALLENGER
    assert "was taken back (somebody set the alias champion to version 1)" in again.reasons[0]
    assert aliases(client, tmp_path.name)[CHAMPION] == "1"


def test_a_student_that_is_measured_anew_is_judged_by_that_from_then_on(
    promoted: Callable[..., promote.Verdict], client: MlflowClient, tmp_path: Path
) -> None:
    promoted(1, 12)
    assert promoted(1, 14, test_split="t" * 64).version == "1"
    tags = client.get_model_version(tmp_path.name, "1").tags
    assert (tags["tenfold.test_split"], float(tags["tenfold.top1"])) == ("t" * 64, 0.7)


def test_with_approval_who_passes_waits_with_its_encoder_until_a_person_approves(
    promoted: Callable[..., promote.Verdict], client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    waiting = promoted(1, 12, approval=True)
    monkeypatch.setattr(errors, "file", None)  # where output goes now
    fetch_student(tmp_path.name, tmp_path / "fetched")
    assert "version 1, the challenger: there is no champion" in "".join(capsys.readouterr())
    assert (waiting.alias, waiting.version) == (CHALLENGER, "1")
    assert waiting.reasons[0] == f"it passed, and waits for `tenfold approve 1 --model {tmp_path.name}`"
    tags = client.get_model_version(tmp_path.name, "1").tags
    assert tags["tenfold.approval"] == "waiting"
    assert Path(tags["tenfold.encoder"].removeprefix("file://")).is_dir()
    desk = Desk(Environment.read(), tmp_path.name, "a person", lambda text: None)
    assert desk.approve(None).decision.promote
    assert aliases(client, tmp_path.name) == {CHAMPION: "1"}
    (entry,) = desk.history()
    assert (entry.by, entry.who) == ("approval", "a person")
    again = promoted(1, 12, approval=True)
    assert again.alias == CHAMPION, "it is the champion already, and waits for nothing"
    assert client.get_model_version(tmp_path.name, "1").tags["tenfold.approval"] == "decided"


def test_a_registered_student_comes_back_whole_and_answers_as_the_predictor_does(
    server: str, digits: Dataset, tmp_path: Path
) -> None:
    import mlflow

    student = make_student(tmp_path / "student", 5)
    environment = Environment.read()
    registry = Registry(environment, tmp_path.name)
    assert registry.by_alias(CHAMPION) is None
    assert registry.by_weights("w" * 64) is None
    reader = SplitReader(digits, "labelled")
    images = [reader.image(number).tobytes() for number in range(10)]
    tracker = task_run(environment, "promote")
    registered = registry.register(student, images[0], "w" * 64, tracker.run_id, {"origin": "here"})
    assert asdict(registered)["version"] == "1"
    found = registry.by_weights("w" * 64)
    assert found is not None
    assert (found.version, found.weights, found.tags["origin"]) == ("1", "w" * 64, "here")
    registry.point(CHAMPION, "1")
    held = registry.by_alias(CHAMPION)
    assert held is not None
    assert held.version == "1"
    for which in (CHAMPION, "1"):
        folder = registry.download(which, tmp_path / f"down-{which}")
        for name in ("model.safetensors", "model.json"):
            assert (folder / name).read_bytes() == (student / name).read_bytes()
    served = mlflow.pyfunc.load_model(f"models:/{tmp_path.name}@{CHAMPION}").predict(pd.DataFrame({"image": images}))
    expected = Predictor(student)(images)
    assert served["label"].tolist() == [prediction.label for prediction in expected]
    assert served["probability"].tolist() == pytest.approx([prediction.probability for prediction in expected])
    registry.unpoint(CHAMPION, "2")
    assert registry.by_alias(CHAMPION) is not None, "it names another version"
    registry.unpoint(CHAMPION, "1")
    assert registry.by_alias(CHAMPION) is None
