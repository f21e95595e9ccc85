"""From the DAG to KFP's YAML."""

from pathlib import Path

from kfp import compiler

from tenfold.pipelines.semi_supervised import Images, build

#: Stand-in for images that are not built yet; compile with --cpu-image and --gpu-image for a cluster.
PLACEHOLDER = Images(
    cpu="tenfold-python-cpu@sha256:" + "0" * 64,
    gpu="tenfold-python-gpu@sha256:" + "0" * 64,
)


def compile_pipeline(path: Path, images: Images = PLACEHOLDER) -> None:
    """Write the pipeline's YAML; the same images always give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(build(images), str(path))
