"""The KFP component of distillation."""

from kfp import dsl


def distill(
    config: str, dataset: str, views: str, evaluation: str, soft_labels: dsl.Input[dsl.Dataset],
    teacher: dsl.Input[dsl.Model], finetuned: dsl.Input[dsl.Model], student: dsl.Output[dsl.Model],
):  # fmt: skip
    """Train the student on the teacher's soft labels, or on the live teacher."""
    from pathlib import Path

    from tenfold.execution import execute

    inputs = {"dataset": dataset, "views": views, "evaluation": evaluation, "soft_labels": Path(soft_labels.path),
              "teacher": Path(teacher.path), "finetuned": Path(finetuned.path)}  # fmt: skip
    execute("distill", config, inputs, {"student": student.path}, trains=True)


def component(image: str):
    """Return distillation as a component that runs in ``image``."""
    return dsl.component(distill, base_image=image, install_kfp_package=False)
