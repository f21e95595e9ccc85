"""The KFP component of sharding."""

from typing import NamedTuple

from kfp import dsl


def shard(config: str, summary: dsl.Output[dsl.Artifact]) -> NamedTuple("Data", [("dataset", str)]):
    """Pack the images into verified WebDataset shards; the dataset URI ends in the manifest's sha256."""
    from typing import NamedTuple

    from tenfold.execution import execute

    uri = execute("shard", config, {}, {"summary": summary.path})
    return NamedTuple("Data", [("dataset", str)])(uri)


def component(image: str):
    """Return sharding as a component that runs in ``image``."""
    return dsl.component(shard, base_image=image, install_kfp_package=False)
