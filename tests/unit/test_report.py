from __future__ import annotations

import base64
import copy
import html
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tenfold.config import ResNetConfig, TimmConfig, ViTConfig
from tenfold.evaluation.figures import confidence_histogram, confusion_svg, curves_svg, save_ladder_png
from tenfold.report.render import render

SCRIPT = "<script>alert(1)</script>"
RUNGS = [
    ("pixels_logistic", "logistic regression on raw pixels", 0.41, 3),
    ("pixels_spreading", "label spreading on raw pixels", 0.46, 9),
    ("baseline", "the student's network on the labels alone", 0.62, 75),
    ("encoder_logistic", "logistic regression on the frozen encoder", 0.78, 1210),
    ("encoder_spreading", "label spreading on the frozen encoder", 0.81, 1225),
    ("finetuned", "fine-tuned teacher", 0.84, 1400),
    ("self_trained", "self-trained teacher", 0.861, 1900),
    ("student", "distilled student", 0.872, 4023),
]


def interval(value: float, width: float) -> dict[str, float]:
    return {"value": value, "low": value - width, "high": value + width}


def picture(side: int = 24) -> str:
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def evaluation() -> dict[str, Any]:
    classes = ["cat", "dog", "heron"]
    scores = {
        "top5": 1.0, "balanced": 0.85, "calibration_error": 0.031,
        "recalls": {"cat": interval(0.9, 0.05), "dog": interval(0.8, 0.05), "heron": None},
        "reliability": [{"low": 0.0, "high": 0.5, "count": 0, "confidence": 0.0, "accuracy": 0.0},
                        {"low": 0.5, "high": 1.0, "count": 200, "confidence": 0.9, "accuracy": 0.87}],
        "confusion": [[90, 10, 0], [18, 80, 2], [0, 0, 0]],
    }  # fmt: skip
    rungs = [
        {"id": name, "title": title, "seconds": float(seconds),
         "scores": {**copy.deepcopy(scores), "top1": interval(top1, 0.02)},
         "served": name == "student", "gain": None if name == "student" else interval(0.872 - top1, 0.01)}
        for name, title, top1, seconds in RUNGS
    ]  # fmt: skip
    stages = [
        {"stage": stage, "fingerprint": "f" * 64, "run_id": run, "mlflow_run_id": "m" * 32, "seconds": 60.0,
         "code": "sha256:" + "c" * 64}
        for stage, run in (("pretrain", "an-older-run"), ("distill", "this-run"))
    ]  # fmt: skip
    return {
        "name": "animals", "run_id": "this-run", "dataset": "s3://bucket/datasets/" + "a" * 64 + ".json",
        "classes": classes, "test_images": 200, "confidence": 0.95, "rungs": rungs,
        "served": {"network": {"depth": 18, "width": 1.0, "small_images": True, "selective_kernels": False},
                   "parameters": 11_173_962, "image_size": 32, "latency_ms": 12.34, "bytes": 44_700_000,
                   "id": "student", "title": "distilled student", "told": "the distilled student is the best",
                   "images_needed": 0, "choosing": 198, "temperature": 1.2345, "calibration_error_before": 0.0567},
        "counts": {"unlabelled": 50_000, "labelled": 250, "test": 200}, "labelled": {"cat": 125, "dog": 125},
        "leaks": [],
        "quarantined": [{"path": "cats/broken.jpg", "reason": "the file ends early"}],
        "curves": {"pretrain": [{"step": 10.0 * n, "loss": 5.0 / n} for n in range(1, 30)], "distill": []},
        "stages": stages, "pictures": {"views": picture(), "confidence": picture()},
        "mistakes": [{"path": "dogs/7.jpg", "true": "dog", "predicted": "cat", "confidence": 0.97,
                      "image": picture()}],
        "probe_cap": None,
    }  # fmt: skip


def rename(evaluation: dict[str, Any], index: int, name: str) -> None:
    old, evaluation["classes"][index] = evaluation["classes"][index], name
    evaluation["labelled"][name] = evaluation["labelled"].pop(old)
    for rung in evaluation["rungs"]:
        rung["scores"]["recalls"][name] = rung["scores"]["recalls"].pop(old)


def test_text_of_users_is_escaped_everywhere(evaluation: dict[str, Any]) -> None:
    rename(evaluation, 0, SCRIPT)
    evaluation["name"] = evaluation["dataset"] = SCRIPT
    evaluation["quarantined"] = [{"path": SCRIPT, "reason": SCRIPT}]
    evaluation["mistakes"][0] |= {"path": SCRIPT, "true": SCRIPT, "predicted": '" onerror="alert(1)'}
    evaluation["curves"][SCRIPT] = [{"step": 1.0, "loss": 1.0}]
    evaluation["rungs"][0]["title"] = SCRIPT
    verdict = {
        "alias": "challenger",
        "model": SCRIPT,
        "version": "2",
        "champion": None,
        "checks": [{"name": SCRIPT, "passed": False, "told": SCRIPT}],
    }
    page = render(evaluation, verdict)
    assert "<script" not in page
    assert 'onerror="' not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 12


def test_the_page_asks_nobody_for_anything(evaluation: dict[str, Any]) -> None:
    page = render(evaluation)
    pattern = r"""(?:src|href)\s*=\s*["']?([^"'\s>]*)|url\(["']?([^)"']*)|@import\s+(\S+)"""
    references = re.findall(pattern, page)
    found = {"".join(groups) for groups in references}
    assert found
    assert all(reference.startswith(("data:", "#")) for reference in found), found
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    ("network", "told"),
    [
        (ResNetConfig(depth=18, width=0.25), "ResNet-18, width 0.25×, stem for small images"),
        (ViTConfig(vit="base"), "transformer, ViT-base, patches of 16 pixels"),
        (ViTConfig(vit="tiny", width=96, heads=3, depth=6, patch=4),
         "transformer, width 96, 6 blocks, patches of 4 pixels"),
        (TimmConfig(timm="resnet10t"), "timm's resnet10t"),
    ],
)  # fmt: skip
def test_the_page_names_the_student_s_network(
    network: ResNetConfig | ViTConfig | TimmConfig, told: str, evaluation: dict[str, Any]
) -> None:
    evaluation["served"]["network"] = network.model_dump()
    assert f"<dd>{told}</dd>" in html.unescape(render(evaluation))


def test_a_class_without_test_images_shows_no_number(evaluation: dict[str, Any]) -> None:
    row = re.search(r'<th scope="row">heron</th>.*?</tr>', render(evaluation), re.DOTALL)
    assert row
    assert ">n/a<" in row[0]
    assert "%" not in row[0]


def test_the_headline_gives_the_result_with_its_interval(evaluation: dict[str, Any]) -> None:
    header = render(evaluation).split("</header>")[0]
    for text in ("animals", "87.2%", "85.2 to 89.2", "+25.2 points", "+24.2 to +26.2", "250 labelled"):
        assert text in header


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.01, 0.05, "over the student"), (-0.02, 0.03, "may be chance"), (-0.05, -0.01, "which is better")],
)
def test_the_headline_claims_a_gain_only_where_there_is_one(
    evaluation: dict[str, Any], low: float, high: float, words: str
) -> None:
    evaluation["rungs"][2]["gain"] = {"value": (low + high) / 2, "low": low, "high": high}
    assert words in render(evaluation)


def test_quarantined_images_are_listed_with_their_reason(evaluation: dict[str, Any]) -> None:
    page = render(evaluation)
    assert "cats/broken.jpg" in page
    assert "the file ends early" in page
    evaluation["quarantined"] = []
    assert "Nothing was quarantined" in render(evaluation)


def test_a_long_quarantine_is_cut_and_says_so(evaluation: dict[str, Any]) -> None:
    evaluation["quarantined"] = [{"path": f"{n}.jpg", "reason": "empty"} for n in range(1234)]
    page = render(evaluation)
    assert "1,234 images" in page
    assert "The first 200 are shown" in page
    assert "200.jpg" not in page


def test_the_verdict_is_shown_with_reasons(evaluation: dict[str, Any]) -> None:
    verdict = {
        "alias": "challenger", "model": "animals", "version": "7",
        "checks": [{"name": "top-1", "passed": False, "told": "0.8 points below it"},
                   {"name": "size", "passed": True, "told": "small enough"}],
        "champion": {"version": "6", "top1": 0.88},
    }  # fmt: skip
    page = render(evaluation, verdict)
    for text in ("Registered as challenger", "version 7", "stays the champion", "88.0%",
                 "<b>failed</b> 0.8 points below it", "<b>passed</b> small enough", "12.3 ms", "44.7 MB"):  # fmt: skip
        assert text in page
    assert "Promoted to champion" in render(evaluation, {**verdict, "alias": "champion"})
    assert "challenger" not in render(evaluation)


@pytest.mark.parametrize(
    ("champion", "words"),
    [({"version": "6", "top1": None}, "Version 6"),
     ({"version": "7", "top1": 0.872}, "Champion already")],
)  # fmt: skip
def test_the_verdict_tells_of_a_champion_that_is_missing_unmeasured_or_the_same(
    evaluation: dict[str, Any], champion: dict[str, Any] | None, words: str
) -> None:
    verdict = {"alias": "champion", "model": "m", "version": "7", "checks": [], "champion": champion}
    assert words in render(evaluation, verdict)


def test_a_run_without_self_training_pictures_or_mistakes_is_fine(evaluation: dict[str, Any]) -> None:
    evaluation["rungs"] = [rung for rung in evaluation["rungs"] if rung["id"] != "self_trained"]
    evaluation["pictures"] = {"views": None, "confidence": None}
    evaluation["mistakes"] = []
    page = render(evaluation)
    assert "self-trained" not in page
    assert "made no mistake" in page
    assert "<img" not in page


def test_stages_from_the_cache_are_marked(evaluation: dict[str, Any]) -> None:
    rows = re.findall(r'<th scope="row">(pretrain|distill)</th>(.*?)</tr>', render(evaluation), re.DOTALL)
    assert [("from another run" in row) for _, row in rows] == [True, False]


def test_the_same_evaluation_gives_the_same_page(evaluation: dict[str, Any]) -> None:
    assert render(evaluation) == render(copy.deepcopy(evaluation))


@pytest.mark.parametrize("name", ["$x^{$", "日本", "a" * 300, "--><b>", "two\nlines", "&amp;"])
def test_figures_take_any_class_name(name: str) -> None:
    svg = confusion_svg([[3, 1], [0, 0]], [name, "dog"])
    assert svg.startswith("<svg")
    assert "<b>" not in svg
    assert curves_svg([{"step": 1.0, "loss": 2.0}], name).startswith("<svg")


def test_counts_are_written_in_small_matrices_alone() -> None:
    for number, shown in ((20, True), (21, False)):
        matrix = (np.eye(number, dtype=int) * 4321).tolist()
        assert ("4321" in confusion_svg(matrix, [str(n) for n in range(number)])) == shown


def test_a_thousand_classes_make_a_small_figure() -> None:
    matrix = np.random.default_rng(0).integers(0, 9, (1000, 1000)).tolist()
    assert len(confusion_svg(matrix, [f"class {n}" for n in range(1000)])) < 2_000_000


def test_a_loss_that_is_not_finite_leaves_the_rest_of_the_curve() -> None:
    points = [{"step": 1.0, "loss": 3.0}, {"step": 2.0, "loss": float("nan")}, {"step": 3.0, "loss": 1.0}]
    assert "nan" not in curves_svg(points, "pretrain").lower()


def test_figures_are_written_as_png(tmp_path: Path, evaluation: dict[str, Any]) -> None:
    for confidence in (np.empty(0), np.random.default_rng(0).beta(8, 1, 5000)):
        confidence_histogram(confidence, tmp_path / "confidence.png")
        with Image.open(tmp_path / "confidence.png") as image:
            assert image.mode == "RGBA"
    save_ladder_png(evaluation["rungs"], tmp_path / "ladder.png")
    with Image.open(tmp_path / "ladder.png") as image:
        assert image.width > 500


def test_allowed_leaks_are_told_beside_the_figures(evaluation: dict[str, Any]) -> None:
    page = render({**evaluation, "leaks": [["train/a.png", "test/b.png"]]})
    assert "1 test images are also training images" in page
