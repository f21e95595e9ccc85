"""From the DAG to KFP's YAML."""

from pathlib import Path

from kfp import compiler

from tenfold.pipelines.cluster import ClusterSettings
from tenfold.pipelines.semi_supervised import Images, build
from tenfold.trainjob import TrainJobSpec

#: Stand-in for images that are not built yet; compile with --cpu-image and --gpu-image for a cluster.
PLACEHOLDER = Images(
    cpu="tenfold-python-cpu@sha256:" + "0" * 64,
    gpu="tenfold-python-gpu@sha256:" + "0" * 64,
)


def compile_pipeline(
    path: Path, images: Images = PLACEHOLDER, trainjob: TrainJobSpec | None = None,
    cluster: ClusterSettings | None = None,
) -> None:  # fmt: skip
    """Write the pipeline's YAML; the same arguments always give the same bytes.

    Args:
        path: file to write.
        images: of the tasks.
        trainjob: what the stages that train run as; without one they train in their task's pod.
        cluster: sizes and places of the tasks' pods.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(build(images, trainjob, cluster or ClusterSettings()), str(path))
