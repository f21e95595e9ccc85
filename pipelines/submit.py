"""Runs of tenfold's pipelines on an installation of Kubeflow Pipelines: start, list, stop."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import kfp_server_api as api

from tenfold.errors import ConfigError, did_you_mean
from tenfold.pipelines.connection import Connection
from tenfold.pipelines.refusals import KubeflowError
from tenfold.pipelines.upload import find, identity, named, newest, specification


@dataclass(frozen=True)
class Submitted:
    """A run that was started; ``tasks`` are those that may run in it, and none where the API does not tell them."""

    run_id: str
    link: str
    version: str
    tasks: frozenset[str]


def check_form(values: Mapping[str, str]) -> list[str]:
    """Check the configuration that a form's values make as far as that goes without data; return what to warn of.

    Values that no form of ours knows are left to :func:`check_parameters`.

    Raises:
        ConfigError: every fault of the configuration at once, or an address that means nothing in a pod.
    """
    from tenfold.components.preflight.stage import FORM, RETRAIN_FORM, Request

    places = {**FORM, **RETRAIN_FORM}
    known = {places[field]: value for field, value in values.items() if field in places}
    config = Request(values["preset"], values["overrides"], known).load()
    if not config.data.source:
        raise ConfigError("data.source is not set: name s3://bucket/prefix, or digits")
    addresses = {"data.source": config.data.source, "data.labels.file": config.data.labels.file}
    if config.pretrain.init is not None:
        addresses["pretrain.init.path"] = config.pretrain.init.path
    warnings = []
    for field, address in addresses.items():
        if not address or "://" in address or address == "digits":
            continue
        if not address.startswith("/"):
            raise ConfigError(
                f"{field}: '{address}' is a path from this folder, which the pods do not have; upload it and name its "
                "address, as s3://bucket/prefix"
            )
        warnings.append(f"{field}: {address} is looked for in the pods, not on this machine")
    return warnings


def submit(
    connection: Connection, pipeline: str, parameters: Mapping[str, str], *, version: str | None = None,
    name: str | None = None, experiment: str | None = None, service_account: str | None = None, cache: bool = True,
) -> Submitted:  # fmt: skip
    """Start a run.

    Args:
        connection: to the installation.
        pipeline: name of the uploaded pipeline.
        parameters: values of the pipeline's form.
        version: name of a version; the newest without one.
        name: of the run; the pipeline's with the time without one.
        experiment: name of the experiment, see :func:`experiment_of`.
        service_account: that the pods run as; the namespace's own without one.
        cache: False runs every task anew; the run then names the pipeline's text instead of its version.

    Raises:
        ConfigError: the pipeline has no such parameter.
        KubeflowError: there is no such pipeline or version; or the API refused or is away.
    """
    reference = find(connection, pipeline)
    chosen = newest(connection, reference, pipeline, version)
    check_parameters(chosen, parameters)
    body = api.V2beta1Run(
        display_name=name or time.strftime(f"{pipeline} %Y-%m-%d %H:%M:%S"),
        experiment_id=experiment_of(connection, experiment), service_account=service_account,
        **_what(reference, chosen, cache=cache),
        runtime_config=api.V2beta1RuntimeConfig(parameters=dict(parameters)),
    )  # fmt: skip
    run = connection.call(
        "start the run", connection.client.runs.run_service_create_run, run=body, changes=True,
        missing="the pipeline's version or the experiment was deleted",
    )  # fmt: skip
    run_id = identity(connection, run.run_id)
    return Submitted(run_id, connection.link("runs", run_id), chosen.display_name, tasks_of(chosen))


def _what(pipeline: str, version: Any, *, cache: bool) -> dict[str, Any]:
    """Return the fields of a run that say what it runs.

    Raises:
        KubeflowError: the cache is to be left out, and the API keeps the version's text to itself.
    """
    if cache:
        reference = api.V2beta1PipelineVersionReference(
            pipeline_id=pipeline, pipeline_version_id=version.pipeline_version_id
        )
        return {"pipeline_version_reference": reference}
    if not specification(version):
        raise KubeflowError(
            f"the API does not show what version {version.display_name} is, so its cache cannot be left out: upload "
            "the pipeline again, or start the run in the UI with caching switched off"
        )
    text = copy.deepcopy(version.pipeline_spec)
    spec = text.get("pipeline_spec", text)
    for component in (spec["root"], *spec.get("components", {}).values()):
        for task in component.get("dag", {}).get("tasks", {}).values():
            task["cachingOptions"] = {}
    return {"pipeline_spec": text}


def check_parameters(version: Any, parameters: Mapping[str, str]) -> None:
    """Refuse parameters that the version does not have.

    Raises:
        ConfigError: names them.
    """
    spec = specification(version)
    if not spec:
        return  # the API keeps it to itself, and checks by itself
    has = spec.get("root", {}).get("inputDefinitions", {}).get("parameters", {})
    unknown = [name for name in parameters if name not in has]
    if unknown:
        raise ConfigError(
            f"version {version.display_name} of the pipeline has no parameter {', '.join(unknown)}"
            f"{did_you_mean(unknown[0], has)}; it has {', '.join(has)}"
        )


def tasks_of(version: Any) -> frozenset[str]:
    """Return the names of a version's tasks that run in pods; the API's list of tasks holds KFP's own beside them."""
    spec = specification(version)
    components = spec.get("components", {})
    graphs = [each["dag"]["tasks"] for each in [spec.get("root", {}), *components.values()] if "dag" in each]
    return frozenset(
        name
        for graph in graphs
        for name, task in graph.items()
        if "executorLabel" in components.get(task["componentRef"]["name"], {})
    )


def experiment_of(connection: Connection, name: str | None) -> str:
    """Return the id of an experiment, which is made if there is none.

    Args:
        connection: to the installation.
        name: else ``KF_PIPELINES_DEFAULT_EXPERIMENT_NAME``, else tenfold; ``KF_PIPELINES_OVERRIDE_EXPERIMENT_NAME``
            takes the place of all, as with kfp.

    Raises:
        KubeflowError: the API refused or is away.
    """
    given = name or os.environ.get("KF_PIPELINES_DEFAULT_EXPERIMENT_NAME") or "tenfold"
    chosen = os.environ.get("KF_PIPELINES_OVERRIDE_EXPERIMENT_NAME") or given
    group = connection.client.experiments
    where: dict[str, Any] = {"namespace": connection.namespace} if connection.namespace else {}
    missing = f"there is no namespace {connection.namespace}"
    found = connection.call(
        f"look for the experiment {chosen}", group.experiment_service_list_experiments, filter=named(chosen),
        page_size=2, missing=missing, **where,
    ).experiments  # fmt: skip
    if not found:
        body = api.V2beta1Experiment(display_name=chosen, **where)
        found = [
            connection.call(
                f"create the experiment {chosen}", group.experiment_service_create_experiment, experiment=body,
                changes=True, missing=missing,
            )
        ]  # fmt: skip
    return identity(connection, found[0].experiment_id)
