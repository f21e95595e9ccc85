"""The KFP component of pretraining."""

from kfp import dsl


def pretrain(config: str, dataset: str, watched: str, views: str, evaluation: str, encoder: dsl.Output[dsl.Model]):
    """Pretrain an encoder on all training images, without labels (SimCLR or masked autoencoding).

    ``watched`` is empty unless labelled images tell how well the features do.
    """
    from tenfold.execution import execute

    inputs = {"dataset": dataset, "watched": watched or None, "views": views, "evaluation": evaluation}
    execute("pretrain", config, inputs, {"encoder": encoder.path}, trains=True)


def component(image: str):
    """Return pretraining as a component that runs in ``image``."""
    return dsl.component(pretrain, base_image=image, install_kfp_package=False)
