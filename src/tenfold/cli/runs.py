"""The commands that look after the runs on an installation of Kubeflow Pipelines."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from tenfold.cli.cluster import CaFile, Context, Namespace, connect, say, tell
from tenfold.progress import clock


def add_run_commands(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("list")(list_runs)
    app.command("stop")(stop)


def list_runs(
    schedules: Annotated[bool, typer.Option("--schedules", help="Schedules instead of runs.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many runs.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
    namespace: Namespace = None,
    kube_context: Context = None,
    ca_file: CaFile = None,
) -> None:
    """List the runs of tenfold's pipelines on a cluster, or their schedules, the newest first."""
    from tenfold.pipelines import runs
    from tenfold.pipelines.schedule import list_schedules

    connection = connect(namespace, kube_context, ca_file)
    pipelines = runs.known_pipelines(connection)
    rows = list_schedules(connection, pipelines) if schedules else runs.list_runs(connection, pipelines, limit)
    if as_json:
        tell(json.dumps(rows, indent=1))
    elif not rows:
        say(f"no {'schedules' if schedules else 'runs'} of tenfold's pipelines at {connection.where}")
    else:
        columns = ["state", "when", "name", "id", "link"] if schedules else ["state", "created", "time", "name", "id",
                                                                            "link"]  # fmt: skip
        for line in table(columns, rows):
            tell(line)


def table(columns: list[str], rows: list[dict[str, Any]]) -> list[str]:
    """Return rows as lines of aligned columns, which no width breaks."""
    texts = [columns, *([_cell(row, column) for column in columns] for row in rows)]
    widths = [max(len(text[place]) for text in texts) for place in range(len(columns))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(text, widths, strict=True)).rstrip() for text in texts]


def _cell(row: dict[str, Any], column: str) -> str:
    if column == "time":
        return "" if row["seconds"] is None else clock(row["seconds"])
    if column == "created":
        return str(row["created"] or "")[:16].replace("T", " ")
    return " ".join(str(row[column] or "").split())


def stop(
    run: Annotated[str, typer.Argument(help="Id of the run, as `tenfold list` shows it.")],
    namespace: Namespace = None,
    kube_context: Context = None,
    ca_file: CaFile = None,
) -> None:
    """Stop a run on a cluster, and delete the TrainJobs that it left.

    Where the installation has one user, TrainJobs are looked for in --namespace, else in kubeflow; on the cluster of
    --kube-context, else of the kubeconfig's current context, whatever the address of Kubeflow Pipelines is.
    """
    from tenfold.pipelines.runs import stop as end

    connection = connect(namespace, kube_context, ca_file)
    end(connection, run, connection.namespace or namespace or "kubeflow", tell)
