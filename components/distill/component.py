"""The KFP component of distillation."""

from kfp import dsl


def distill(
    config: str, dataset: str, views: str, evaluation: str, soft_labels: dsl.Input[dsl.Dataset],
    teacher: dsl.Input[dsl.Model], finetuned: dsl.Input[dsl.Model], student: dsl.Output[dsl.Model],
):  # fmt: skip
    """Train the student on the teacher's soft labels, or on the live teacher."""
    from pathlib import Path

    from tenfold.components.distill.stage import Inputs, Outputs, run
    from tenfold.config import DistillConfig
    from tenfold.execution import execute

    inputs = Inputs(dataset, views, evaluation, Path(soft_labels.path), Path(teacher.path), Path(finetuned.path))
    execute("distill", run, DistillConfig, config, inputs, Outputs(Path(student.path)))


def component(image: str):
    """Return distillation as a component that runs in ``image``."""
    return dsl.component(distill, base_image=image, install_kfp_package=False)
