"""From a DAG to KFP's YAML."""

from pathlib import Path

from kfp import compiler

from tenfold.pipelines.catalogue import PIPELINES, SEMI_SUPERVISED
from tenfold.pipelines.cluster import ClusterSettings
from tenfold.pipelines.stages import Images
from tenfold.trainjob import TrainJobSpec

#: Stand-in for images that are not built yet; compile with --cpu-image and --gpu-image for a cluster.
PLACEHOLDER = Images(
    cpu="tenfold-cpu@sha256:" + "0" * 64,
    gpu="tenfold-gpu@sha256:" + "0" * 64,
)


def compile_pipeline(
    path: Path, images: Images = PLACEHOLDER, trainjob: TrainJobSpec | None = None,
    cluster: ClusterSettings | None = None, pipeline: str = SEMI_SUPERVISED,
) -> None:  # fmt: skip
    """Write a pipeline's YAML; the same arguments always give the same bytes.

    Args:
        path: file to write.
        images: of the tasks.
        trainjob: what the stages that train run as; without one they train in their task's pod.
        cluster: sizes and places of the tasks' pods.
        pipeline: which one, by its name in the catalogue.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(PIPELINES[pipeline](images, trainjob, cluster or ClusterSettings()), str(path))
