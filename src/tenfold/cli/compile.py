"""The command that compiles a pipeline for a cluster."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from tenfold.errors import ConfigError, first_fault

_PANEL = "With --launcher trainjob"


class Pipeline(StrEnum):
    """The pipelines by name."""

    SEMI_SUPERVISED = "semi-supervised"
    RETRAIN = "retrain"


class Launcher(StrEnum):
    """Where a training stage trains: in its task's pod, or as a TrainJob over many."""

    POD = "pod"
    TRAINJOB = "trainjob"


def compile_to_yaml(
    output: Annotated[Path | None, typer.Option(help="File to write; else the pipeline's name.")] = None,
    pipeline: Annotated[Pipeline, typer.Option(help="Which one.")] = Pipeline.SEMI_SUPERVISED,
    cpu_image: Annotated[str | None, typer.Option(help="Image of preflight, shard and promote, by digest.")] = None,
    gpu_image: Annotated[str | None, typer.Option(help="Image of the other stages, by digest.")] = None,
    cluster: Annotated[
        Path | None, typer.Option(help="YAML file with sizes, times and places of the pods; see docs/cluster.md.")
    ] = None,
    launcher: Annotated[Launcher, typer.Option(help="Train in the task's pod, or as a Kubeflow TrainJob.")] = (
        Launcher.POD
    ),
    nodes: Annotated[int | None, typer.Option(min=1, help="Pods that train; else 1.", rich_help_panel=_PANEL)] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option(min=0, help="GPUs of each, 0 to train on CPUs; else 1.", rich_help_panel=_PANEL)
    ] = None,
    cpus_per_node: Annotated[
        str | None, typer.Option(help="CPUs of each; else as the runtime says.", rich_help_panel=_PANEL)
    ] = None,
    memory_per_node: Annotated[
        str | None, typer.Option(help="Memory of each, e.g. 64Gi; else as the runtime says.", rich_help_panel=_PANEL)
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(help="Kubeflow's training runtime; else torch-distributed.", rich_help_panel=_PANEL)
    ] = None,
    queue: Annotated[str | None, typer.Option(help="Kueue's local queue.", rich_help_panel=_PANEL)] = None,
    service_account: Annotated[str | None, typer.Option(help="Of the pods that train.", rich_help_panel=_PANEL)] = None,
    deadline_hours: Annotated[
        float | None,
        typer.Option(min=0.01, help="Longest time that a stage may train; else 72.", rich_help_panel=_PANEL),
    ] = None,
) -> None:
    """Compile a pipeline to KFP's YAML."""
    from tenfold.pipelines.cluster import ClusterSettings
    from tenfold.pipelines.compile import PLACEHOLDER, compile_pipeline
    from tenfold.pipelines.stages import Images
    from tenfold.trainjob import TrainJobSpec

    output = output or Path(f"{pipeline.value.replace('-', '_')}.yaml")
    if output.suffix not in {".yaml", ".yml"}:
        raise ConfigError(f"--output {output} must end in .yaml")
    settings = ClusterSettings.read(cluster) if cluster else ClusterSettings()
    images = Images(cpu_image or PLACEHOLDER.cpu, gpu_image or PLACEHOLDER.gpu)
    given: dict[str, Any] = {
        "nodes": nodes, "gpus_per_node": gpus_per_node, "cpus_per_node": cpus_per_node,
        "memory_per_node": memory_per_node, "runtime": runtime, "queue": queue, "service_account": service_account,
        "deadline_hours": deadline_hours,
    }  # fmt: skip
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
    compile_pipeline(output, images, trainjob, settings, pipeline.value)
    for image, option in ((cpu_image, "--cpu-image"), (gpu_image, "--gpu-image")):
        if not image:
            typer.echo(f"note: without {option} the pipeline names a placeholder that no registry holds", err=True)
        elif "@sha256:" not in image:
            typer.echo(
                f"warning: {image} is not named by digest: KFP's cache cannot tell new content under it", err=True
            )
    typer.echo(f"wrote {output}")
