"""tenfold's pipelines as Pipelines of Kubeflow and their versions.

Calls go to the generated API of ``kfp_server_api``: the methods of ``kfp.Client`` on top of it have no time limits and
print, and they refuse a reference to a pipeline's newest version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import kfp_server_api as api
import yaml

from tenfold import __version__
from tenfold.errors import ConfigError, did_you_mean
from tenfold.pipelines.catalogue import PIPELINES as CATALOGUE
from tenfold.pipelines.compile import PLACEHOLDER, compile_pipeline
from tenfold.pipelines.connection import Connection
from tenfold.pipelines.refusals import KubeflowError


@dataclass(frozen=True)
class Known:
    """One of tenfold's pipelines: its name in Kubeflow, and what compiles it."""

    name: str
    compile: Callable[..., None]


#: By the word that the command line has for each.
PIPELINES = {word: Known(f"tenfold-{word}", partial(compile_pipeline, pipeline=word)) for word in CATALOGUE}


@dataclass(frozen=True)
class Uploaded:
    """A pipeline's version; ``fresh`` where it was not there before."""

    pipeline: str
    version: str
    link: str
    fresh: bool


def known(word: str) -> Known:
    """Return the pipeline that ``word`` means on the command line.

    Raises:
        ConfigError: there is none of that name.
    """
    if word not in PIPELINES:
        raise ConfigError(f"--pipeline {word}: it must be {' or '.join(PIPELINES)}{did_you_mean(word, PIPELINES)}")
    return PIPELINES[word]


def read_compiled(path: Path, *, allow_tags: bool = False) -> dict[str, Any]:
    """Return the specification in a compiled file whose images a cluster can be trusted with.

    Raises:
        ConfigError: it is none of tenfold's pipelines, an image is the placeholder, or is not named by digest.
    """
    if path.suffix not in {".yaml", ".yml"}:
        raise ConfigError(f"{path} is no compiled pipeline: its name must end in .yaml")
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
        spec: dict[str, Any] = documents[0]
        name = str(spec["pipelineInfo"]["name"])
        containers = [each["container"] for each in spec["deploymentSpec"]["executors"].values()]
        images = {str(each["image"]) for each in containers}
        variables = [each for container in containers for each in container.get("env", [])]
        images |= {json.loads(each["value"])["image"] for each in variables if each["name"] == "TENFOLD_TRAINJOB"}
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise ConfigError(f"{path} is no compiled pipeline; `tenfold compile` makes one") from None
    names = [each.name for each in PIPELINES.values()]
    if name not in names:
        raise ConfigError(f"{path} holds the pipeline '{name}', which is not tenfold's ({', '.join(names)})")
    if images & {PLACEHOLDER.cpu, PLACEHOLDER.gpu}:
        raise ConfigError(
            f"{path.name} names a placeholder that no registry holds: give --cpu-image and --gpu-image, by digest"
        )
    tagged = sorted(image for image in images if "@sha256:" not in image)
    if tagged and not allow_tags:
        raise ConfigError(
            f"{', '.join(tagged)}: not named by digest (NAME@sha256:…), so that KFP's cache cannot tell new content "
            "under an old name and takes stale results; name it by digest, or give --allow-tags"
        )
    return spec


def upload(connection: Connection, path: Path, *, allow_tags: bool = False) -> Uploaded:
    """Upload a compiled pipeline as a version of the Pipeline of its name, which is made if there is none.

    The version's name holds tenfold's version and the digest of the file: the same bytes are one version.

    Raises:
        ConfigError: see :func:`read_compiled`.
        KubeflowError: the API refused or is away.
    """
    spec = read_compiled(path, allow_tags=allow_tags)
    name = spec["pipelineInfo"]["name"]
    version = f"{__version__}-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    found = _pipeline(connection, name, connection.namespace)
    if found is None:
        body = api.V2beta1Pipeline(
            display_name=name, name=name, description=spec["pipelineInfo"].get("description"),
            namespace=connection.namespace or None,
        )  # fmt: skip
        found = connection.call(
            f"create the pipeline {name}", connection.client.pipelines.pipeline_service_create_pipeline, pipeline=body,
            changes=True, missing=f"there is no namespace {connection.namespace}",
        )  # fmt: skip
    pipeline = identity(connection, found.pipeline_id)
    held, fresh = _versions(connection, pipeline, version), False
    if not held:
        held, fresh = [
            connection.call(
                f"upload {name} {version}", connection.client.pipeline_uploads.upload_pipeline_version,
                uploadfile=str(path), name=version, pipelineid=pipeline, changes=True,
                description=f"tenfold {__version__}",
            )
        ], True  # fmt: skip
    page = f"{pipeline}/version/{identity(connection, held[0].pipeline_version_id)}"
    return Uploaded(name, version, connection.link("pipelines", page), fresh)


def find(connection: Connection, name: str) -> str:
    """Return the id of a pipeline of the namespace, else of one that all namespaces share.

    Raises:
        KubeflowError: there is none, or the API refused or is away.
    """
    found = find_all(connection, name)
    if found:
        return found[0]
    place = f" for the namespace {connection.namespace}" if connection.namespace else ""
    raise KubeflowError(f"{connection.where} has no pipeline {name}{place}; `tenfold upload` brings it there")


def find_all(connection: Connection, name: str) -> list[str]:
    """Return the ids of the pipelines of that name: the namespace's, then the one that all namespaces share."""
    held = [_pipeline(connection, name, namespace) for namespace in dict.fromkeys((connection.namespace, ""))]
    return [identity(connection, each.pipeline_id) for each in held if each is not None]


def newest(connection: Connection, pipeline: str, name: str, version: str | None = None) -> Any:
    """Return a pipeline's newest version, or the one of the name ``version``.

    Raises:
        KubeflowError: there is none, or the API refused or is away.
    """
    held = _versions(connection, pipeline, version)
    if held:
        return held[0]
    there = [each.display_name for each in _versions(connection, pipeline, None)]
    if not there:
        raise KubeflowError(f"the pipeline {name} has no version; `tenfold upload` makes one")
    raise KubeflowError(
        f"the pipeline {name} has no version {version}{did_you_mean(version or '', there)}; its newest are "
        f"{', '.join(there)}"
    )


def specification(version: Any) -> dict[str, Any]:
    """Return a version's specification, which the API nests where the file also holds Kubernetes' part."""
    spec = version.pipeline_spec or {}
    return dict(spec.get("pipeline_spec", spec))


def _pipeline(connection: Connection, name: str, namespace: str) -> Any:
    where: dict[str, Any] = {"namespace": namespace} if namespace else {}
    function = connection.client.pipelines.pipeline_service_list_pipelines
    found = connection.call(
        f"look for the pipeline {name}", function, filter=named(name), page_size=2, **where,
        missing=f"there is no namespace {namespace}",
    ).pipelines  # fmt: skip
    return found[0] if found else None


def _versions(connection: Connection, pipeline: str, name: str | None) -> list[Any]:
    """Return the versions of that name, or the ten newest."""
    given: dict[str, Any] = {"filter": named(name)} if name else {}
    found = connection.call(
        "list the pipeline's versions", connection.client.pipelines.pipeline_service_list_pipeline_versions,
        pipeline_id=pipeline, sort_by="created_at desc", page_size=10, missing="the pipeline was deleted", **given,
    ).pipeline_versions  # fmt: skip
    return list(found or [])


def named(name: str) -> str:
    """Return the filter for objects of that name."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "string_value": name}]})


def identity(connection: Connection, found: str | None) -> str:
    """Return an id that an answer must hold; without one it was not Kubeflow Pipelines that answered."""
    if not found:
        raise KubeflowError(
            f"{connection.where} gave an answer without an id, which is not Kubeflow Pipelines'; check "
            "KF_PIPELINES_ENDPOINT"
        )
    return found
