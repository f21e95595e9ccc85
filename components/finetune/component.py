"""The KFP components of supervised training: the teacher, and the baseline it is measured against."""

from kfp import dsl


def finetune(
    config: str, dataset: str, views: str, evaluation: str, encoder: dsl.Input[dsl.Model],
    classifier: dsl.Output[dsl.Model],
):  # fmt: skip
    """Fine-tune the pretrained encoder on the labelled images, with the layers of its head that are kept."""
    from pathlib import Path

    from tenfold.execution import execute

    inputs = {"dataset": dataset, "views": views, "evaluation": evaluation, "encoder": Path(encoder.path)}
    execute("finetune", config, inputs, {"classifier": classifier.path}, trains=True)


def baseline(config: str, dataset: str, views: str, evaluation: str, classifier: dsl.Output[dsl.Model]):
    """Train the student's network on the labelled images alone."""

    from tenfold.execution import execute

    inputs = {"dataset": dataset, "views": views, "evaluation": evaluation, "encoder": None}
    execute("baseline", config, inputs, {"classifier": classifier.path}, room="finetune", trains=True)


def component(image: str):
    """Return fine-tuning as a component that runs in ``image``."""
    return dsl.component(finetune, base_image=image, install_kfp_package=False)


def baseline_component(image: str):
    """Return the baseline's training as a component that runs in ``image``."""
    return dsl.component(baseline, base_image=image, install_kfp_package=False)
