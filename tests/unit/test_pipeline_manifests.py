"""The compiled pipeline as Kubernetes resources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler
from kfp.compiler.compiler_utils import KubernetesManifestOptions
from manifests import K8S

from tenfold.errors import ConfigError
from tenfold.pipelines.cluster import ClusterSettings
from tenfold.pipelines.compile import PLACEHOLDER
from tenfold.pipelines.manifests import resources, write
from tenfold.pipelines.semi_supervised import build

COMPILED = K8S.parent / "pipelines/compiled/semi_supervised.yaml"


def test_the_pipelines_resources_are_the_golden_ones(tmp_path: Path) -> None:
    write(COMPILED, tmp_path / "pipeline.yaml")
    golden = (K8S / "components/pipeline/pipeline.yaml").read_text()
    assert (tmp_path / "pipeline.yaml").read_text() == golden, "run `make compiled` and look at the difference"


def test_the_pipelines_resources_are_those_that_kfp_compiles_itself(tmp_path: Path) -> None:
    path = tmp_path / "kfp.yaml"
    ours = resources(COMPILED.read_text())
    options = KubernetesManifestOptions(
        include_pipeline_manifest=True, pipeline_version_name=ours[1]["metadata"]["name"]
    )
    pipeline: Any = build(PLACEHOLDER, None, ClusterSettings())
    compiler.Compiler().compile(
        pipeline, str(path), kubernetes_manifest_format=True, kubernetes_manifest_options=options
    )
    assert list(yaml.safe_load_all(path.read_text())) == ours


def test_other_content_is_another_version_and_what_is_no_pipeline_is_refused(tmp_path: Path) -> None:
    text = COMPILED.read_text()
    changed = resources(text.replace(PLACEHOLDER.gpu, "registry/gpu@sha256:" + "1" * 64))
    assert changed[0] == resources(text)[0]
    assert changed[1]["metadata"]["name"] != resources(text)[1]["metadata"]["name"]
    for wrong in ("", "a: 1", "a: 1\n---\nb: 2", "{"):
        with pytest.raises(ConfigError, match="tenfold compile"):
            resources(wrong)
    with pytest.raises(ConfigError, match="cannot be read"):
        write(tmp_path / "missing.yaml", tmp_path / "out.yaml")
