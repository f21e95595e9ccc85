"""The KFP components of sharding, and the nested pipeline that fans packing out over partitions."""

from typing import NamedTuple

from kfp import dsl


def list_images(config: str) -> list[str]:
    """List the source and divide what is new into partitions; their lists stay in the store."""
    import time

    from tenfold.components.shard.stage import parse, plan
    from tenfold.execution import Attempt

    with Attempt("list_images") as attempt:
        attempt.reporter.started()
        start = time.monotonic()
        partitions = plan(parse(config), attempt.environment, attempt.reporter)
        attempt.reporter.finished(time.monotonic() - start)
        return partitions


def pack(config: str, partition: str) -> str:
    """Pack one partition's images into shards; what is packed already is not read again."""
    import time

    from tenfold.components.shard.stage import pack as pack_partition
    from tenfold.components.shard.stage import parse
    from tenfold.execution import Attempt

    with Attempt("pack", partition) as attempt:
        attempt.reporter.started()
        start = time.monotonic()
        table = pack_partition(parse(config), partition, attempt.environment, attempt.reporter)
        attempt.reporter.finished(time.monotonic() - start)
        return table


def shard(
    config: str, watched: bool, partitions: list[str], packed: list[str], summary: dsl.Output[dsl.Artifact]
) -> NamedTuple("Data", [("dataset", str), ("unlabelled", str), ("watched", str)]):
    """Merge the partitions into a data set; its URI ends in the manifest's sha256.

    Pretraining is given the unlabelled images alone, so that other labels are nothing new to it, and the whole data set
    only where it is watched with the labelled ones.
    """
    import json
    from typing import NamedTuple

    from tenfold.execution import execute

    inputs = {"partitions": json.dumps(partitions), "packed": json.dumps(packed)}
    found = execute("shard", config, inputs, {"summary": summary.path})
    return NamedTuple("Data", [("dataset", str), ("unlabelled", str), ("watched", str)])(
        found.dataset, found.unlabelled, found.dataset if watched else ""
    )


def component(image: str, place):
    """Return sharding as a pipeline whose tasks run in ``image``; ``place`` gives each its pod."""
    sizes = ((list_images, place.settings.control), (pack, place.settings.pack), (shard, place.settings.control))
    listing, packing, merging = (
        place(dsl.component(function, base_image=image, install_kfp_package=False), size) for function, size in sizes
    )

    @dsl.pipeline(name="sharding")
    def sharding(config: str, watched: bool) -> NamedTuple(
        "Addresses", [("dataset", str), ("unlabelled", str), ("watched", str)]
    ):
        # kfp.local can loop over an output of this name alone, so a partition brings its plan's name along
        partitions = listing(config=config).set_caching_options(False).output
        with dsl.ParallelFor(partitions) as partition:
            table = packing(config=config, partition=partition).set_caching_options(False)
        merged = merging(config=config, watched=watched, partitions=partitions, packed=dsl.Collected(table.output))
        found = merged.set_caching_options(False).outputs
        return NamedTuple("Addresses", [("dataset", str), ("unlabelled", str), ("watched", str)])(
            found["dataset"], found["unlabelled"], found["watched"]
        )

    return sharding
