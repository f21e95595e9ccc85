"""The command that compiles the pipeline for a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from tenfold.errors import ConfigError, first_fault

if TYPE_CHECKING:  # kfp takes its time to load
    from tenfold.pipelines.cluster import ClusterSettings
    from tenfold.pipelines.stages import Images
    from tenfold.trainjob import TrainJobSpec

_PANEL = "With --launcher trainjob"


class Launcher(StrEnum):
    """Where a training stage trains: in its task's pod, or as a TrainJob over many."""

    POD = "pod"
    TRAINJOB = "trainjob"


Pipeline = Annotated[str, typer.Option(help="Which one: semi-supervised or retrain.")]
CpuImage = Annotated[str | None, typer.Option(help="Image of preflight, shard and promote, by digest.")]
GpuImage = Annotated[str | None, typer.Option(help="Image of the other stages, by digest.")]
Settings = Annotated[
    Path | None,
    typer.Option("--cluster", help="YAML file with sizes, times and places of the pods; see docs/cluster.md."),
]
Launched = Annotated[
    Launcher, typer.Option("--launcher", help="Train in the task's pod, or as a Kubeflow TrainJob.")
]  # fmt: skip
Nodes = Annotated[int | None, typer.Option(min=1, help="Pods that train; else 1.", rich_help_panel=_PANEL)]
GpusPerNode = Annotated[
    int | None, typer.Option(min=0, help="GPUs of each, 0 to train on CPUs; else 1.", rich_help_panel=_PANEL)
]
CpusPerNode = Annotated[
    str | None, typer.Option(help="CPUs of each; else as the runtime says.", rich_help_panel=_PANEL)
]  # fmt: skip
MemoryPerNode = Annotated[
    str | None, typer.Option(help="Memory of each, e.g. 64Gi; else as the runtime says.", rich_help_panel=_PANEL)
]
Runtime = Annotated[
    str | None, typer.Option(help="Kubeflow's training runtime; else torch-distributed.", rich_help_panel=_PANEL)
]
Queue = Annotated[str | None, typer.Option(help="Kueue's local queue.", rich_help_panel=_PANEL)]
ServiceAccount = Annotated[str | None, typer.Option(help="Of the pods that train.", rich_help_panel=_PANEL)]
DeadlineHours = Annotated[
    float | None,
    typer.Option(min=0.01, max=8784, help="Longest time that a stage may train; else 72.", rich_help_panel=_PANEL),
]


def compile_to_yaml(
    output: Annotated[Path | None, typer.Option(help="File to write; else the pipeline's name.")] = None,
    pipeline: Pipeline = "semi-supervised",
    cpu_image: CpuImage = None,
    gpu_image: GpuImage = None,
    cluster: Settings = None,
    launcher: Launched = Launcher.POD,
    nodes: Nodes = None,
    gpus_per_node: GpusPerNode = None,
    cpus_per_node: CpusPerNode = None,
    memory_per_node: MemoryPerNode = None,
    runtime: Runtime = None,
    queue: Queue = None,
    service_account: ServiceAccount = None,
    deadline_hours: DeadlineHours = None,
) -> None:
    """Compile a pipeline to KFP's YAML."""
    from tenfold.pipelines.upload import known

    chosen = known(pipeline)
    output = output or Path(f"{pipeline.replace('-', '_')}.yaml")
    if output.suffix not in {".yaml", ".yml"}:
        raise ConfigError(f"--output {output} must end in .yaml")
    given = {
        "nodes": nodes, "gpus_per_node": gpus_per_node, "cpus_per_node": cpus_per_node,
        "memory_per_node": memory_per_node, "runtime": runtime, "queue": queue, "service_account": service_account,
        "deadline_hours": deadline_hours,
    }  # fmt: skip
    chosen.compile(output, *compile_options(cpu_image, gpu_image, cluster, launcher, given))
    for image, option in ((cpu_image, "--cpu-image"), (gpu_image, "--gpu-image")):
        if not image:
            typer.echo(f"note: without {option} the pipeline names a placeholder that no registry holds", err=True)
        elif "@sha256:" not in image:
            typer.echo(
                f"warning: {image} is not named by digest: KFP's cache cannot tell new content under it", err=True
            )
    typer.echo(f"wrote {output}")


def compile_options(
    cpu_image: str | None, gpu_image: str | None, cluster: Path | None, launcher: Launcher, given: Mapping[str, Any]
) -> tuple[Images, TrainJobSpec | None, ClusterSettings]:
    """Return what a pipeline is compiled with.

    Args:
        cpu_image: of preflight, shard and promote; else the placeholder.
        gpu_image: of the other stages; else the placeholder.
        cluster: file with sizes, times and places of the pods.
        launcher: where a training stage trains.
        given: the options for TrainJobs by their names; those that are None were not given.

    Raises:
        ConfigError: names the option, and what is wrong with it.
    """
    from tenfold.pipelines.cluster import ClusterSettings
    from tenfold.pipelines.compile import PLACEHOLDER
    from tenfold.pipelines.stages import Images
    from tenfold.trainjob import TrainJobSpec

    settings = ClusterSettings.read(cluster) if cluster else ClusterSettings()
    images = Images(cpu_image or PLACEHOLDER.cpu, gpu_image or PLACEHOLDER.gpu)
    given = {name: value for name, value in given.items() if value is not None}
    trainjob = None
    if launcher is Launcher.TRAINJOB:
        seconds = round(3600 * given.pop("deadline_hours", 72))
        values = {"image": images.gpu, "nodes": 1, "gpus_per_node": 1, "deadline_seconds": seconds, **given}
        try:
            trainjob = TrainJobSpec.model_validate(values)
        except ValidationError as error:
            field, _, fault = first_fault(error.errors()).partition(": ")
            option = field.partition(".")[0].replace("_", "-")  # a union's fault names its member behind the field
            raise ConfigError(f"--{option}: {fault}") from None
    elif given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(f"{options}: a pod that trains alone has none of these; give --launcher trainjob too")
    return images, trainjob, settings
