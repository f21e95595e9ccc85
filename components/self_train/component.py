"""The KFP component of self-training."""

from kfp import dsl


def self_train(
    config: str, dataset: str, weak: str, strong: str, evaluation: str, teacher: dsl.Input[dsl.Model],
    encoder: dsl.Input[dsl.Model], better: dsl.Output[dsl.Model],
):  # fmt: skip
    """Let a teacher label the unlabelled images for its own student (Semi-ViT)."""
    from pathlib import Path

    from tenfold.execution import execute

    inputs = {"dataset": dataset, "weak": weak, "strong": strong, "evaluation": evaluation,
              "teacher": Path(teacher.path), "encoder": Path(encoder.path)}  # fmt: skip
    execute("self_train", config, inputs, {"teacher": better.path}, trains=True)


def component(image: str):
    """Return self-training as a component that runs in ``image``."""
    return dsl.component(self_train, base_image=image, install_kfp_package=False)
