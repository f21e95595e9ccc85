"""The KFP component of teacher inference."""

from kfp import dsl


def pseudo_label(
    config: str, dataset: str, weak: str, evaluation: str, teacher: dsl.Input[dsl.Model],
    finetuned: dsl.Input[dsl.Model], encoder: dsl.Input[dsl.Model], soft_labels: dsl.Output[dsl.Dataset],
):  # fmt: skip
    """Write the teacher's soft labels for every training image, a file a shard."""
    from pathlib import Path

    from tenfold.execution import execute

    inputs = {"dataset": dataset, "weak": weak, "evaluation": evaluation, "teacher": Path(teacher.path),
              "finetuned": Path(finetuned.path), "encoder": Path(encoder.path)}  # fmt: skip
    execute("pseudo_label", config, inputs, {"soft_labels": soft_labels.path})


def component(image: str):
    """Return teacher inference as a component that runs in ``image``."""
    return dsl.component(pseudo_label, base_image=image, install_kfp_package=False)
