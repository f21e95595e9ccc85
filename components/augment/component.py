"""The KFP component of augmentation."""

from typing import NamedTuple

from kfp import dsl


def augment(
    config: str, dataset: str, views: dsl.Output[dsl.Artifact], preview: dsl.Output[dsl.HTML]
) -> NamedTuple(
    "Views",
    [
        ("pretrain", str), ("weak", str), ("strong", str), ("evaluation", str), ("baseline", str),
        ("finetune", str), ("distill", str),
    ],
):  # fmt: skip
    """Resolve the views, measure them, and show what they look like."""
    from tenfold.execution import execute

    return execute("augment", config, {"dataset": dataset}, {"views": views.path, "preview": preview.path})


def component(image: str):
    """Return augmentation as a component that runs in ``image``."""
    return dsl.component(augment, base_image=image, install_kfp_package=False)
