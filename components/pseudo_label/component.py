"""The KFP component of teacher inference."""

from kfp import dsl


def pseudo_label(
    config: str, dataset: str, weak: str, evaluation: str, teacher: dsl.Input[dsl.Model],
    encoder: dsl.Input[dsl.Model], soft_labels: dsl.Output[dsl.Dataset],
):  # fmt: skip
    """Write the teacher's soft labels for every training image, a file a shard."""
    from pathlib import Path

    from tenfold.components.pseudo_label.stage import Inputs, Outputs, run
    from tenfold.config import PseudoLabelConfig
    from tenfold.execution import execute

    inputs = Inputs(dataset, weak, evaluation, Path(teacher.path), Path(encoder.path))
    execute("pseudo_label", run, PseudoLabelConfig, config, inputs, Outputs(Path(soft_labels.path)))


def component(image: str):
    """Return teacher inference as a component that runs in ``image``."""
    return dsl.component(pseudo_label, base_image=image, install_kfp_package=False)
