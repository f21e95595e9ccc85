"""Schedules that start runs of tenfold's pipelines on a cluster: Kubeflow's recurring runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import kfp_server_api as api

from tenfold.errors import ConfigError, did_you_mean
from tenfold.pipelines.connection import Connection
from tenfold.pipelines.refusals import KubeflowError
from tenfold.pipelines.submit import check_parameters, experiment_of
from tenfold.pipelines.upload import find, identity, named, newest

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DESCRIPTORS = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")


def interval(text: str) -> int:
    """Return the seconds of ``text``, as in 30m, 6h, 1d or 2w.

    Raises:
        ConfigError: it is no such length, or less than a minute.
    """
    found = re.fullmatch(r"(\d+)([smhdw])", text.strip())
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if seconds < 60:
        raise ConfigError(f"--every {text}: it must be a number with m, h, d or w, as in 6h, and a minute at least")
    return seconds


def cron(text: str) -> str:
    """Return a cron expression as Kubeflow reads it: with six fields, seconds first.

    It takes five fields too, but as seconds to months: "0 3 * * 1" would start a run in the third minute of each hour
    of each first day of the month.

    Raises:
        ConfigError: it has neither five fields nor six.
    """
    fields = text.split()
    if text.strip() in _DESCRIPTORS:
        return text.strip()
    if len(fields) not in (5, 6) or not all(re.fullmatch(r"[\w*/,?-]+", field) for field in fields):
        raise ConfigError(
            f"--cron '{text}': it must have the fields minute, hour, day, month and weekday, as in '0 3 * * 1', or "
            f"six with seconds first, or be one of {', '.join(_DESCRIPTORS)}"
        )
    return " ".join(fields if len(fields) == 6 else ["0", *fields])


def schedule(
    connection: Connection, pipeline: str, name: str, parameters: Mapping[str, str], *, every: int | None = None,
    cron_expression: str | None = None, experiment: str | None = None, service_account: str | None = None,
    replace: bool = False,
) -> bool:  # fmt: skip
    """Let Kubeflow start a run of a pipeline's newest version again and again, one at a time and none afterwards.

    Args:
        connection: to the installation.
        pipeline: name of the uploaded pipeline.
        name: of the schedule.
        parameters: values of the pipeline's form.
        every: seconds between two runs.
        cron_expression: six fields, instead of ``every``.
        experiment: name of the runs' experiment, see :func:`tenfold.pipelines.submit.experiment_of`.
        service_account: that the runs' pods have.
        replace: take the place of the schedule of that name.

    Returns:
        Whether it took the place of another one.

    Raises:
        ConfigError: there is a schedule of that name, or the pipeline has no such parameter.
        KubeflowError: there is no such pipeline; or the API refused or is away.
    """
    reference = find(connection, pipeline)
    check_parameters(newest(connection, reference, pipeline), parameters)
    held = _held(connection, reference, name)
    if held and not replace:
        raise ConfigError(f"there is a schedule {name} already: give --replace to take its place, or another --name")
    trigger = api.V2beta1Trigger(
        periodic_schedule=api.V2beta1PeriodicSchedule(interval_second=str(every)) if every else None,
        cron_schedule=api.V2beta1CronSchedule(cron=cron_expression) if cron_expression else None,
    )
    body = api.V2beta1RecurringRun(
        display_name=name, experiment_id=experiment_of(connection, experiment), service_account=service_account,
        # without a version Kubeflow takes the newest each time; kfp.Client refuses to send that
        pipeline_version_reference=api.V2beta1PipelineVersionReference(pipeline_id=reference),
        runtime_config=api.V2beta1RuntimeConfig(parameters=dict(parameters)), trigger=trigger, max_concurrency="1",
        no_catchup=True, mode="ENABLE",
    )  # fmt: skip
    made = connection.call(
        f"create the schedule {name}",
        connection.client.recurring_runs.recurring_run_service_create_recurring_run, recurring_run=body, changes=True,
        missing="the pipeline or the experiment was deleted",
    )  # fmt: skip
    identity(connection, made.recurring_run_id)
    for each in held:  # behind the new one: rather two for a moment than none for good
        _act(connection, "delete", each)
    return bool(held)


def change(connection: Connection, pipeline: str, name: str, act: str) -> None:
    """Pause, enable or delete a schedule.

    Args:
        connection: to the installation.
        pipeline: name of the uploaded pipeline.
        name: of the schedule.
        act: ``disable``, ``enable`` or ``delete``.

    Raises:
        KubeflowError: there is none of that name; or the API refused or is away.
    """
    reference = find(connection, pipeline)
    held = _held(connection, reference, name)
    if not held:
        there = sorted({each.display_name for each in _held(connection, reference, None)})
        raise KubeflowError(
            f"{pipeline} has no schedule {name}{did_you_mean(name, there)}; it has {', '.join(there) or 'none'}"
        )
    for each in held:
        _act(connection, act, each)


def list_schedules(connection: Connection, pipelines: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the schedules of some pipelines, the newest first.

    Args:
        connection: to the installation.
        pipelines: names by id.
    """
    rows = []
    for each in _recurring(connection):
        pipeline = (
            pipelines.get(each.pipeline_version_reference.pipeline_id) if each.pipeline_version_reference else None
        )
        if pipeline is None:
            continue
        rows.append(
            {
                "id": each.recurring_run_id, "name": each.display_name, "pipeline": pipeline,
                "state": "paused" if str(each.status or each.mode).startswith("DISABLE") else "enabled",
                "when": _when(each.trigger), "created": each.created_at.isoformat() if each.created_at else None,
                "link": connection.link("recurringrun", each.recurring_run_id),
            }
        )  # fmt: skip
    return rows


def _when(trigger: Any) -> str:
    if trigger is not None and trigger.cron_schedule is not None:
        return f"cron {trigger.cron_schedule.cron}"
    seconds = int(trigger.periodic_schedule.interval_second) if trigger and trigger.periodic_schedule else 0
    unit = next((unit for unit in "wdhm" if seconds and seconds % _UNITS[unit] == 0), "s")
    return f"every {seconds // _UNITS[unit]}{unit}"


def _held(connection: Connection, pipeline: str, name: str | None) -> list[Any]:
    """Return a pipeline's schedules of that name, or all of them."""
    found = _recurring(connection, **({"filter": named(name)} if name else {}))
    references = [each.pipeline_version_reference for each in found]
    return [each for each, of in zip(found, references, strict=True) if of is not None and of.pipeline_id == pipeline]


def _recurring(connection: Connection, **given: Any) -> list[Any]:
    function = connection.client.recurring_runs.recurring_run_service_list_recurring_runs
    if connection.namespace:
        given["namespace"] = connection.namespace
    found: list[Any] = []
    token: str | None = ""
    while token is not None:
        page = connection.call(
            "list the schedules", function, page_size=100, page_token=token, sort_by="created_at desc", **given,
            missing=f"there is no namespace {connection.namespace}",
        )  # fmt: skip
        found += page.recurring_runs or []
        token = page.next_page_token or None
    return found


def _act(connection: Connection, act: str, held: Any) -> None:
    group = connection.client.recurring_runs
    connection.call(
        f"{act} the schedule {held.display_name}", getattr(group, f"recurring_run_service_{act}_recurring_run"),
        recurring_run_id=held.recurring_run_id, changes=True,
        missing=f"the schedule {held.display_name} was deleted meanwhile",
    )  # fmt: skip
