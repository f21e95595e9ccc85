"""A compiled pipeline as Kubernetes resources, for KFP's API servers that keep their pipelines in Kubernetes.

    python -m tenfold.pipelines.manifests semi_supervised.yaml k8s/components/pipeline/pipeline.yaml

The resources are those of ``kfp dsl compile --kubernetes-manifest-format --include-pipeline-manifest``. They are made
from the compiled file, so that they hold whatever images, sizes and launcher it was compiled with.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

import yaml

from tenfold.errors import ConfigError

API_VERSION = "pipelines.kubeflow.org/v2beta1"
_HEADER = """\
# Made by tenfold.pipelines.manifests from a compiled pipeline, with its images; docs/install.md says how to make it of
# your own (the images of the repository's are placeholders, which no registry holds). KFP's API server reads Pipeline
# and PipelineVersion where it runs with --pipelinesStoreKubernetes; elsewhere use `tenfold upload`.
"""


def resources(compiled: str) -> list[dict[str, Any]]:
    """Return the Pipeline, and a PipelineVersion that is named after the compiled file's content.

    A version's specification cannot be changed once it is there, so other content is another version.

    Args:
        compiled: what ``tenfold compile`` wrote: the pipeline's specification, and its platform's behind it.

    Raises:
        ConfigError: it is something else.
    """
    try:
        pipeline, platform = yaml.safe_load_all(compiled)
        name, description = pipeline["pipelineInfo"]["name"], pipeline["pipelineInfo"].get("description", "")
    except (yaml.YAMLError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"this is no compiled pipeline ({type(error).__name__}); `tenfold compile` writes one"
        ) from None
    version = f"{name}-{hashlib.sha256(compiled.encode()).hexdigest()[:12]}"
    return [
        {
            "apiVersion": API_VERSION,
            "kind": "Pipeline",
            "metadata": {"name": name},
            "spec": {"description": description, "displayName": name},
        },
        {
            "apiVersion": API_VERSION,
            "kind": "PipelineVersion",
            "metadata": {"name": version},
            "spec": {
                "description": description,
                "displayName": version,
                "pipelineName": name,
                "pipelineSpec": pipeline,
                "platformSpec": platform,
            },
        },
    ]


def write(compiled: Path, output: Path) -> None:
    """Write the resources of a compiled file; the same file always gives the same bytes.

    Raises:
        ConfigError: ``compiled`` is no compiled pipeline, or cannot be read.
    """
    try:
        text = compiled.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{compiled} cannot be read: {error}") from None
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(_HEADER + yaml.safe_dump_all(resources(text), sort_keys=True, width=120))


def main() -> None:
    """Write the resources of the file that is named first to the one that is named second."""
    parser = argparse.ArgumentParser(description="A compiled pipeline as Kubernetes resources.")
    parser.add_argument("compiled", type=Path, help="what `tenfold compile` wrote")
    parser.add_argument("output", type=Path, help="file to write")
    options = parser.parse_args()
    try:
        write(options.compiled, options.output)
    except ConfigError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
