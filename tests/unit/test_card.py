"""Model cards."""

from __future__ import annotations

from typing import Any

import pytest

from tenfold.report.card import model_card


def share(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.05, "high": value + 0.05}


@pytest.fixture
def evaluation() -> dict[str, Any]:
    scores = {"top1": share(0.9), "balanced": 0.85, "calibration_error": 0.031,
              "recalls": {"cat": share(0.95), "dog_*": share(0.7), "heron": None}}  # fmt: skip
    return {
        "dataset": "s3://bucket/datasets/abc", "classes": ["cat", "dog_*", "heron"], "confidence": 0.95,
        "rungs": [{"id": "student", "title": "distilled student", "scores": scores}],
        "counts": {"labelled": 20, "unlabelled": 5000, "test": 1234}, "quarantined": [{}, {}], "leaks": [],
        "labelled": {"cat": 15, "dog_*": 5},
        "test_images": 617,
        "served": {"choosing": 618, "id": "student", "title": "distilled student", "parameters": 11_173_962,
                   "bytes": 44_700_000, "image_size": 32, "latency_ms": 2.34},
    }  # fmt: skip


def test_a_card_tells_data_labels_results_and_limits(evaluation: dict[str, Any]) -> None:
    card = model_card(evaluation, "animals", "7", "sorting pictures\nof a garden")
    for text in (
        "# animals, version 7", "Distilled student: an image in, one of 3 classes", "sorting pictures of a garden",
        "20 labelled images; 5,000 for training, labelled or not; 1,234 for testing", "left out as unreadable: 2",
        "cat 15, dog\\_\\* 5, heron 0", "top-1 90.0%, 85.0% to 95.0% (95% interval); balanced accuracy 85.0%",
        "weakest class: dog\\_\\*, found 70.0%, 65.0% to 75.0%", "11,173,962 parameters, 44.7 MB",
        "No test image shows heron: nothing is known of it.",
    ):  # fmt: skip
        assert text in card
    assert "training images: the results are too good" not in card


def test_a_card_says_that_other_test_images_chose_where_some_did(evaluation: dict[str, Any]) -> None:
    told = "measured on 617 of the test images; 618 others chose or calibrated it"
    assert told in model_card(evaluation, "animals", "7", "")
    evaluation["served"]["choosing"] = 0
    assert "of the test images" not in model_card(evaluation, "animals", "7", "")


def test_a_card_says_what_nobody_told_and_what_spoils_the_results(evaluation: dict[str, Any]) -> None:
    evaluation["leaks"] = ["a.png"]
    card = model_card(evaluation, "animals", "7", " ")
    assert "Not stated: set promote.intended_use" in card
    assert "1 test images are also training images" in card
