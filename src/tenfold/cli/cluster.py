"""The commands that bring pipelines, runs and schedules to an installation of Kubeflow Pipelines."""

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
    Pipeline,
    Queue,
    Runtime,
    ServiceAccount,
    Settings,
    compile_options,
)
from tenfold.cli.options import File, Preset, Sets, errors, request
from tenfold.errors import ConfigError

if TYPE_CHECKING:  # kfp takes its time to load
    from tenfold.pipelines.connection import Connection

_PANEL = "Which Kubeflow Pipelines"

Namespace = Annotated[
    str | None,
    typer.Option(envvar="KFP_NAMESPACE", help="Your namespace, where there are many users.", rich_help_panel=_PANEL),
]
Context = Annotated[
    str | None, typer.Option("--kube-context", help="Of the kubeconfig, without an address.", rich_help_panel=_PANEL)
]
Experiment = Annotated[
    str | None, typer.Option(help="Else KF_PIPELINES_DEFAULT_EXPERIMENT_NAME, else tenfold; made where it is missing.")
]
Parameters = Annotated[
    list[str] | None, typer.Option("--param", help="One more field of the form, as name=value; may be repeated.")
]
PodAccount = Annotated[str | None, typer.Option("--service-account", help="Of the run's pods.")]
CaFile = Annotated[
    Path | None, typer.Option(help="Certificates of the authority behind the server's.", rich_help_panel=_PANEL)
]


def add_cluster_commands(app: typer.Typer) -> None:
    """Register the commands that bring something there."""
    app.command("upload")(upload)
    app.command("submit")(submit)
    app.command("schedule")(schedule)


def connect(namespace: str | None, context: str | None, ca_file: Path | None) -> Connection:
    """Return the connection that the options and the environment describe."""
    from tenfold.pipelines.connection import Connection

    return Connection(namespace, context, ca_file)


def tell(text: str) -> None:
    """Print a result, or a line as it comes, on standard output."""
    print(text, flush=True)


def say(text: str) -> None:
    """Print what is for whoever sits there, on standard error."""
    errors.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)


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
    told = [cpu_image, gpu_image, cluster, *given.values()]
    if file is not None and (launcher is not Launcher.POD or any(value is not None for value in told)):
        raise ConfigError(f"{file} is compiled already: options for compiling go without a file")
    with tempfile.TemporaryDirectory() as folder:
        path = file or Path(folder) / f"{known(pipeline).name}.yaml"
        if file is None:
            known(pipeline).compile(path, *compile_options(cpu_image, gpu_image, cluster, launcher, given))
        read_compiled(path, allow_tags=allow_tags)  # before anybody is asked to log in
        done = send(connect(namespace, kube_context, ca_file), path, allow_tags=allow_tags)
    tell(f"{done.pipeline} {done.version}: {'uploaded' if done.fresh else 'is there already; nothing was uploaded'}")
    if done.link:
        say(done.link)


def submit(
    preset: Preset = None,
    file: File = None,
    sets: Sets = None,
    parameters: Parameters = None,
    pipeline: Pipeline = "semi-supervised",
    version: Annotated[str | None, typer.Option(help="Of the pipeline; else the newest.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the run; else the pipeline's with the time.")] = None,
    experiment: Experiment = None,
    service_account: PodAccount = None,
    cache: Annotated[bool, typer.Option(help="Take unchanged tasks from KFP's cache.")] = True,
    wait: Annotated[bool, typer.Option(help="Wait for the run's end, with a line for each task.")] = True,
    poll_seconds: Annotated[float, typer.Option(min=0.05, help="Pause between two looks at the run.")] = 5.0,
    namespace: Namespace = None,
    kube_context: Context = None,
    ca_file: CaFile = None,
) -> None:
    """Start a run of an uploaded pipeline, and wait for it. Ctrl-C ends the waiting alone."""
    from tenfold.pipelines import submit as runs
    from tenfold.pipelines.upload import known
    from tenfold.pipelines.watch import wait as wait_for

    values = form(preset, file, sets, parameters)
    connection = connect(namespace, kube_context, ca_file)
    run = runs.submit(
        connection, known(pipeline).name, values, version=version, name=name, experiment=experiment,
        service_account=service_account, cache=cache,
    )  # fmt: skip
    tell(f"run {run.run_id} of version {run.version}")
    if run.link:
        tell(run.link)
    if not wait:
        return
    try:
        wait_for(connection, run, tell, poll_seconds=poll_seconds)
    except KeyboardInterrupt:
        at = f" --namespace {connection.namespace}" if connection.namespace else ""
        say(f"the run goes on: `tenfold list{at}` shows it, `tenfold stop {run.run_id}{at}` stops it")
        raise typer.Exit(130) from None


def form(preset: str | None, file: Path | None, sets: list[str] | None, parameters: list[str] | None) -> dict[str, str]:
    """Return the values of the pipeline's form, with the configuration checked as far as that goes here.

    Raises:
        ConfigError: a fault of the configuration, or a ``--param`` without a value.
    """
    from tenfold.pipelines.submit import check_form

    given = request(preset, file, sets)
    values = {"preset": given.preset, "overrides": given.overrides}
    for each in parameters or []:
        name, equals, value = each.partition("=")
        if not equals or not name or name in values:
            raise ConfigError(f"--param {each}: it must be name=value, and preset and overrides have their own options")
        values[name] = value
    for warning in check_form(values):
        say(f"warning: {warning}")
    return values


def schedule(
    every: Annotated[str | None, typer.Option(help="A run each 30m, 6h, 1d, 2w; the first one interval ahead.")] = None,
    cron: Annotated[
        str | None, typer.Option(help="Minute, hour, day, month, weekday; in the cluster's time, mostly UTC.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the schedule; else the pipeline's.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the place of the schedule of this name; else that is refused.")
    ] = False,
    pause: Annotated[bool, typer.Option("--pause", help="Let the schedule of this name rest.")] = False,
    enable: Annotated[bool, typer.Option("--enable", help="Let it go on.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; its runs stay.")] = False,
    preset: Preset = None,
    file: File = None,
    sets: Sets = None,
    parameters: Parameters = None,
    pipeline: Pipeline = "semi-supervised",
    experiment: Experiment = None,
    service_account: PodAccount = None,
    namespace: Namespace = None,
    kube_context: Context = None,
    ca_file: CaFile = None,
) -> None:
    """Let Kubeflow start runs of an uploaded pipeline's newest version: one at a time, none to catch up."""
    from tenfold.pipelines import schedule as schedules
    from tenfold.pipelines.upload import known

    acts = [act for act, asked in (("disable", pause), ("enable", enable), ("delete", delete)) if asked]
    if len(acts) + (every is not None) + (cron is not None) != 1:
        raise ConfigError("give one of --every, --cron, --pause, --enable and --delete")
    chosen = known(pipeline).name
    called = name or chosen
    if acts:
        if replace or preset or file or sets or parameters:
            raise ConfigError(f"--{'pause' if pause else acts[0]} takes a --name, and no configuration")
        schedules.change(connect(namespace, kube_context, ca_file), chosen, called, acts[0])
        tell(f"schedule {called}: {'paused' if pause else f'{acts[0]}d'}")
        return
    seconds = schedules.interval(every) if every is not None else None
    expression = schedules.cron(cron) if cron is not None else None
    values = form(preset, file, sets, parameters)
    replaced = schedules.schedule(
        connect(namespace, kube_context, ca_file), chosen, called, values, every=seconds, cron_expression=expression,
        experiment=experiment, service_account=service_account, replace=replace,
    )  # fmt: skip
    when = f"every {every}" if every is not None else f"cron {expression}"
    tell(f"schedule {called}: {when}, the newest version of {chosen}{'; it replaced another' if replaced else ''}")
