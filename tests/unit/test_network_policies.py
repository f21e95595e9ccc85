"""Who reaches whom, by the network policies below k8s/, and by nothing else."""

from __future__ import annotations

import json

import pytest
from manifests import Object, Peer, named, pod_templates, reaches, selects

STEP = Peer({"workflows.argoproj.io/workflow": "run"})
NOTEBOOK = Peer({"notebook-name": "mine"})
CLIENT = Peer({"notebook-name": "mine", "tenfold.dev/mlflow-client": "true"})
DNS = Peer({"k8s-app": "kube-dns"}, "kube-system")
API, METADATA = Peer({"app": "ml-pipeline"}, "kubeflow"), Peer({"component": "metadata-grpc-server"}, "kubeflow")
SEAWEEDFS = Peer({"app": "seaweedfs"}, "kubeflow")


@pytest.fixture
def pods(everything: list[Object]) -> dict[str, Peer]:
    return {t.labels["app.kubernetes.io/component"]: Peer(t.labels) for t in pod_templates(everything)}


def test_every_pod_template_is_under_a_policy_that_denies_both_ways(objects: list[Object]) -> None:
    closed = [
        each["spec"]["podSelector"] for each in objects
        if each["kind"] == "NetworkPolicy" and set(each["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        and not {"ingress", "egress"} & set(each["spec"])
    ]  # fmt: skip
    for labels in [STEP.labels, *(template.labels for template in pod_templates(objects))]:
        assert [selector for selector in closed if selects(selector, labels)], labels


def test_pods_reach_what_they_need(rendered: dict[str, list[Object]], pods: dict[str, Peer]) -> None:
    everything, kind = rendered["everything"], rendered["kind"]
    train, mlflow, postgres, serving = (pods[each] for each in ("train", "mlflow", "postgres", "serve"))
    for pod in (STEP, train, mlflow, serving):
        assert reaches(everything, pod, DNS, 53)
    for pod in (STEP, train, serving, CLIENT):
        if pod is not CLIENT:  # whose way out namespace-deny closes
            assert reaches(everything, pod, mlflow, 5000)
    assert reaches(kind, CLIENT, mlflow, 5000)
    assert reaches(everything, mlflow, postgres, 5432)
    assert reaches(everything, train, train, 29500)
    assert reaches(everything, STEP, API, 8887)
    assert reaches(everything, STEP, METADATA, 8080)
    for pod in (STEP, train, mlflow):
        assert reaches(kind, pod, SEAWEEDFS, 8333)


def test_pods_reach_nothing_else(rendered: dict[str, list[Object]], pods: dict[str, Peer]) -> None:
    everything, kind = rendered["everything"], rendered["kind"]
    train, mlflow, postgres, serving = (pods[each] for each in ("train", "mlflow", "postgres", "serve"))
    for pod in (STEP, train, serving, NOTEBOOK):
        assert not reaches(kind, pod, postgres, 5432)
        assert not reaches(everything, pod, postgres, 5432)
    assert not reaches(kind, NOTEBOOK, mlflow, 5000)
    assert not reaches(kind, train, mlflow, 22)
    for pod in (train, mlflow, postgres, serving):
        assert not reaches(everything, pod, API, 8887)
        assert not reaches(everything, pod, STEP, 8080)
    assert not reaches(everything, serving, SEAWEEDFS, 8333)
    assert not reaches(everything, train, SEAWEEDFS, 8333)  # in production the store is outside
    assert not reaches(everything, NOTEBOOK, DNS, 53)
    assert reaches(kind, NOTEBOOK, DNS, 53)  # a namespace that others work in is left alone


def test_addresses_outside_are_opened_by_the_two_patches_that_say_so(rendered: dict[str, list[Object]]) -> None:
    for overlay, known in (("kind", {"tenfold-api-server"}), ("prod", {"tenfold-api-server", "tenfold-object-store",
                           "tenfold-object-store-pipelines"})):  # fmt: skip
        blocks = [e["metadata"]["name"] for e in rendered[overlay] if "ipBlock" in json.dumps(e)]
        assert set(blocks) == known
    opened = named(rendered["prod"], "NetworkPolicy", "tenfold-api-server")["spec"]
    assert selects(opened["podSelector"], STEP.labels)
    assert not any(selects(opened["podSelector"], t.labels) for t in pod_templates(rendered["prod"]))
