"""The KFP component of novelty."""

from kfp import dsl


def novelty(config: str, dataset: str, known: str, champion: str, told: dsl.Output[dsl.Markdown]) -> bool:
    """Tell whether a retraining goes on: whether enough images are new to the champion, and differ if that is asked.

    The only output parameter, since kfp.local resolves a condition on one of that kind alone.
    """
    from tenfold.execution import execute

    inputs = {"dataset": dataset, "known": known or None, "champion": champion}
    return execute("novelty", config, inputs, {"told": told.path})


def component(image: str):
    """Return novelty as a component that runs in ``image``."""
    return dsl.component(novelty, base_image=image, install_kfp_package=False)
