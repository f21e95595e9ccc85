"""The commands that bring the pipelines to an installation of Kubeflow Pipelines and look after runs there."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tenfold.cli.compile import (
    CpuImage,
    CpusPerNode,
    DeadlineHours,
    GpuImage,
    GpusPerNode,
    Launched,
    Launcher,
    MemoryPerNode,
    Nodes,
    Queue,
    Runtime,
    ServiceAccount,
    Settings,
    compile_options,
)
from tenfold.cli.options import errors
from tenfold.errors import ConfigError

if TYPE_CHECKING:  # kfp takes its time to load
    from tenfold.pipelines.connection import Connection

_PANEL = "Which Kubeflow Pipelines"
Pipeline = Annotated[str, typer.Option(help="semi-supervised.")]
Namespace = Annotated[
    str | None,
    typer.Option(envvar="KFP_NAMESPACE", help="Your namespace, where there are many users.", rich_help_panel=_PANEL),
]
Context = Annotated[
    str | None, typer.Option("--kube-context", help="Of the kubeconfig, without an address.", rich_help_panel=_PANEL)
]
CaFile = Annotated[
    Path | None, typer.Option(help="Certificates of the authority behind the server's.", rich_help_panel=_PANEL)
]


def add_cluster_commands(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("upload")(upload)


def connect(namespace: str | None, context: str | None, ca_file: Path | None) -> Connection:
    """Return the connection that the options and the environment describe."""
    from tenfold.pipelines.connection import Connection

    return Connection(namespace, context, ca_file)


def tell(text: str) -> None:
    """Print a line as it comes, on standard output."""
    typer.echo(text)


def upload(
    file: Annotated[Path | None, typer.Argument(help="A compiled pipeline; without one it is compiled now.")] = None,
    pipeline: Pipeline = "semi-supervised",
    allow_tags: Annotated[bool, typer.Option(help="Take images that are not named by digest.")] = False,
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
    namespace: Namespace = None,
    kube_context: Context = None,
    ca_file: CaFile = None,
) -> None:
    """Upload a pipeline to Kubeflow Pipelines, as a new version of it where it is there already.

    A version's name holds the digest of the file: the same pipeline twice is one version.
    """
    from tenfold.pipelines.upload import known, read_compiled
    from tenfold.pipelines.upload import upload as send

    given = {
        "nodes": nodes, "gpus_per_node": gpus_per_node, "cpus_per_node": cpus_per_node,
        "memory_per_node": memory_per_node, "runtime": runtime, "queue": queue, "service_account": service_account,
        "deadline_hours": deadline_hours,
    }  # fmt: skip
    if file is not None and (cpu_image or gpu_image or cluster or launcher is not Launcher.POD or any(given.values())):
        raise ConfigError(f"{file} is compiled already: options for compiling go without a file")
    with tempfile.TemporaryDirectory() as folder:
        path = file or Path(folder) / f"{known(pipeline).name}.yaml"
        if file is None:
            known(pipeline).compile(path, *compile_options(cpu_image, gpu_image, cluster, launcher, given))
        read_compiled(path, allow_tags=allow_tags)  # before anybody is asked to log in
        done = send(connect(namespace, kube_context, ca_file), path, allow_tags=allow_tags)
    tell(f"{done.pipeline} {done.version}: {'uploaded' if done.fresh else 'is there already; nothing was uploaded'}")
    if done.link:
        errors.print(done.link, style="dim", highlight=False, soft_wrap=True)
