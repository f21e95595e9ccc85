"""The KFP component of evaluation."""

from kfp import dsl


def evaluate(
    config: str, dataset: str, evaluation_view: str, views: dsl.Input[dsl.Artifact],
    encoder: dsl.Input[dsl.Model], baseline: dsl.Input[dsl.Model], finetuned: dsl.Input[dsl.Model],
    teacher: dsl.Input[dsl.Model], soft_labels: dsl.Input[dsl.Dataset], student: dsl.Input[dsl.Model],
    evaluation: dsl.Output[dsl.Artifact], report: dsl.Output[dsl.HTML], metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics], served: dsl.Output[dsl.Model],
):  # fmt: skip
    """Measure every rung of the ladder on the test split, and choose the one to ship."""
    import json
    from pathlib import Path

    from tenfold.execution import execute

    inputs = {"dataset": dataset, "evaluation": evaluation_view, "views": Path(views.path),
              "encoder": Path(encoder.path), "baseline": Path(baseline.path),
              "finetuned": Path(finetuned.path), "teacher": Path(teacher.path),
              "soft_labels": Path(soft_labels.path), "student": Path(student.path)}  # fmt: skip
    outputs = {"evaluation": evaluation.path, "report": report.path, "served": served.path}
    result = execute("evaluate", config, inputs, outputs)
    scores = result.served
    values = {
        "top1": scores.top1.value, "top1_low": scores.top1.low, "top1_high": scores.top1.high, "top5": scores.top5,
        "balanced_accuracy": scores.balanced, "calibration_error": scores.calibration_error,
    }  # fmt: skip
    for name, value in values.items():
        metrics.log_metric(name, value)
    confusion.log_confusion_matrix(result.classes, scores.confusion)
    # KFP keeps both in metadata alone, and kfp.local's cache takes an artifact without a file for a lost one
    Path(metrics.path).write_text(json.dumps(values))
    Path(confusion.path).write_text(json.dumps({"classes": result.classes, "matrix": scores.confusion}))


def component(image: str):
    """Return evaluation as a component that runs in ``image``."""
    return dsl.component(evaluate, base_image=image, install_kfp_package=False)
