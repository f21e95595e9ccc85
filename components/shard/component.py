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

    with Attempt("pack") as attempt:
        attempt.reporter.started()
        start = time.monotonic()
        table = pack_partition(parse(config), partition, attempt.environment, attempt.reporter)
        attempt.reporter.finished(time.monotonic() - start)
        return table


def shard(config: str, partitions: list[str], packed: list[str], summary: dsl.Output[dsl.Artifact]) -> NamedTuple(
    "Data", [("dataset", str)]
):
    """Merge the partitions into a data set; its URI ends in the manifest's sha256."""
    import json
    from typing import NamedTuple

    from tenfold.execution import execute

    inputs = {"partitions": json.dumps(partitions), "packed": json.dumps(packed)}
    uri = execute("shard", config, inputs, {"summary": summary.path})
    return NamedTuple("Data", [("dataset", str)])(uri)


def component(image: str, placed):
    """Return sharding as a pipeline whose tasks run in ``image``; ``placed`` tells each task its surroundings."""
    listing, packing, merging = (
        placed(dsl.component(function, base_image=image, install_kfp_package=False))
        for function in (list_images, pack, shard)
    )

    @dsl.pipeline(name="sharding")
    def sharding(config: str) -> str:
        # kfp.local can loop over an output of this name alone, so a partition brings its plan's name along
        partitions = listing(config=config).set_caching_options(False).output
        with dsl.ParallelFor(partitions) as partition:
            table = packing(config=config, partition=partition).set_caching_options(False)
        merged = merging(config=config, partitions=partitions, packed=dsl.Collected(table.output))
        merged.set_caching_options(False)
        return merged.outputs["dataset"]

    return sharding
